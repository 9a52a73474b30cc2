use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::thread;
use std::time::Duration;

use stolos_base::error::Classify as _;

use super::super::{Limit, Trust, client_through, send};
use super::*;

fn of(variables: &[(&str, &str)]) -> Result<Proxies, Error> {
    let variables: BTreeMap<&str, &str> = variables.iter().copied().collect();
    Proxies::of(|name| variables.get(name).map(ToString::to_string))
}

/// PKS's command line went through the proxy that the environment names; ours went past it.
#[test]
fn the_environment_says_who_is_reached_through_a_proxy() {
    let here = |address: IpAddr| address == Ipv4Addr::new(10, 117, 0, 1);
    let check = |variables: &[(&str, &str)], url: &str, expected: Option<&str>| {
        let proxies = of(variables).expect("valid");
        let url: Url = url.parse().expect("an address");
        let found = proxies
            .proxy_for(&url, here)
            .map(|url| url.as_str().trim_end_matches('/'));
        assert_eq!(found, expected, "{variables:?} {url}");
    };
    const API: &str = "https://api.example.com:9021/v1/clusters";
    let proxied = Some("http://proxy:3128");
    check(&[], API, None);
    check(&[("HTTPS_PROXY", "http://proxy:3128")], API, proxied);
    check(&[("https_proxy", "proxy:3128")], API, proxied);
    check(&[("ALL_PROXY", "http://proxy:3128")], API, proxied);
    check(
        &[("HTTPS_PROXY", ""), ("all_proxy", "http://proxy:3128")],
        API,
        proxied,
    );
    check(&[("HTTP_PROXY", "http://proxy:3128")], API, None);
    check(
        &[("HTTP_PROXY", "http://proxy:3128")],
        "http://api.example.com/",
        proxied,
    );
    check(
        &[("HTTP_PROXY", "http://proxy:3128"), ("REQUEST_METHOD", "GET")],
        "http://api.example.com/",
        None,
    );

    let both = |list: &'static str| [("HTTPS_PROXY", "http://proxy:3128"), ("no_proxy", list)];
    for list in [
        "*",
        "example.com",
        "other.org, .example.com",
        "*.Example.com",
        "api.example.com:9021",
        "a b api.example.com",
    ] {
        check(&both(list), API, None);
    }
    for list in [
        "ample.com",
        "api.example.com:443",
        "10.0.0.0/8",
        "example.com.evil.org",
        "",
    ] {
        check(&both(list), API, proxied);
    }
    for (list, url, expected) in [
        ("10.0.0.0/8", "https://10.1.2.3:9021", None),
        ("10.1.2.3", "https://10.1.2.3:9021", None),
        ("10.1.2.3:443", "https://10.1.2.3:9021", proxied),
        ("10.0.0.0/16", "https://10.1.2.3:9021", proxied),
        ("fd00::/8", "https://[fd00::1]:9021", None),
        ("[fd00::1]:9021", "https://[fd00::1]:9021", None),
        ("fd00::1", "https://[fd00::2]:9021", proxied),
        // What is on this host, asked for or not.
        ("", "https://localhost:9021", None),
        ("", "https://127.0.0.2:9021", None),
        ("", "https://[::1]:9021", None),
        ("", "https://10.117.0.1:9021", None),
        ("", "https://10.117.0.2:9021", proxied),
    ] {
        check(&both(list), url, expected);
    }

    for bad in ["socks5://proxy:1080", "http:///", "pro xy"] {
        let error = of(&[("HTTPS_PROXY", bad)]).expect_err(bad);
        let text = stolos_base::chain(&error);
        assert!(text.contains("HTTPS_PROXY") && !text.contains(bad), "{text}");
    }
    assert!(is_of_this_host(Ipv4Addr::LOCALHOST.into()));
    assert!(
        !is_of_this_host(Ipv4Addr::new(192, 0, 2, 1).into()),
        "an address of a documentation network"
    );
}

/// The proxy is asked for the host by name, with the password of the variable, and a refusal says where it came from.
#[tokio::test]
async fn a_connection_is_asked_of_the_proxy() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    let proxy = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        let mut reader = BufReader::new(stream);
        let mut head = Vec::new();
        for line in reader.by_ref().lines() {
            let line = line.expect("a line");
            if line.is_empty() {
                break;
            }
            head.push(line);
        }
        let refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";
        reader.into_inner().write_all(refusal).expect("an answer");
        head
    });
    let proxies = of(&[("https_proxy", &format!("me:p%40ss@{address}"))]).expect("valid");
    let client = client_through(&proxies, &Trust::Everybody, Limit::Whole(Duration::from_secs(30)));
    let request = client
        .expect("a client")
        .get("https://api.stolos.test:9021/v1/plans");
    let error = send(request).await.expect_err("the proxy refuses");
    let head = proxy.join().expect("the proxy");
    assert_eq!(head[0], "CONNECT api.stolos.test:9021 HTTP/1.1");
    // me:p@ss
    let password = head
        .iter()
        .any(|line| line.eq_ignore_ascii_case("proxy-authorization: Basic bWU6cEBzcw=="));
    assert!(password, "{head:?}");
    let hints = error.hints().concat();
    assert!(
        hints.contains("NO_PROXY"),
        "{}: {hints}",
        stolos_base::chain(&error)
    );
}
