//! Which connections go through a proxy, as the variables of the environment say.
//!
//! `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, or their lower-case names, as curl and Go's programs read them. What is on
//! this host is never reached through a proxy, as in Go's: loopback, and every address of one of its interfaces, because a proxy
//! elsewhere would reach something else under it, or nothing.

use std::net::{IpAddr, UdpSocket};

use ipnet::IpNet;
use reqwest::Url;

use super::Error;

/// The variables that name a proxy, by the scheme of an address; the first one that is set counts.
const HTTPS: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
const HTTP: [&str; 4] = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
/// A CGI server puts a request's `Proxy` header into `HTTP_PROXY`.
const HTTP_IN_CGI: [&str; 3] = ["http_proxy", "ALL_PROXY", "all_proxy"];
const NONE_FOR: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// Proxies and who is reached without.
#[derive(Clone, Default)]
pub struct Proxies {
    https: Option<Url>,
    http: Option<Url>,
    none_for: Vec<Exception>,
}

/// Shows nothing: addresses of proxies can hold passwords.
impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxies").finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Exception {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hosts {
    All,
    Network(IpNet),
    /// Lower-case, without a leading dot: the domain itself and what is below it.
    Domain(String),
}

/// A variable that names no proxy.
#[derive(Debug, thiserror::Error)]
#[error("the variable {variable} holds no address of an HTTP proxy, such as http://proxy.example.com:3128")]
struct NoAddress {
    variable: &'static str,
}

impl Proxies {
    /// Those of the environment.
    ///
    /// # Errors
    /// [`Error::Setup`] when a variable holds something else than the address of an `http://` or `https://` proxy.
    pub fn of_environment() -> Result<Self, Error> {
        Self::of(|name| std::env::var(name).ok())
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let first = |names: &[&'static str]| {
            let mut set = names.iter().filter_map(|name| Some((*name, variable(name)?)));
            set.find(|(_, value)| !value.trim().is_empty())
        };
        let server = |names: &[&'static str]| {
            first(names)
                .map(|(variable, value)| server(&value).ok_or(NoAddress { variable }))
                .transpose()
                .map_err(|error| Error::Setup(error.into()))
        };
        let is_cgi = variable("REQUEST_METHOD").is_some();
        Ok(Self {
            https: server(&HTTPS)?,
            http: server(if is_cgi { &HTTP_IN_CGI } else { &HTTP })?,
            none_for: first(&NONE_FOR)
                .map(|(_, list)| exceptions(&list))
                .unwrap_or_default(),
        })
    }

    /// The proxy for an address.
    fn proxy_for(&self, url: &Url, is_here: impl Fn(IpAddr) -> bool) -> Option<&Url> {
        let server = match url.scheme() {
            "https" => self.https.as_ref()?,
            "http" => self.http.as_ref()?,
            _ => return None,
        };
        let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']');
        let address: Option<IpAddr> = host.parse().ok();
        let on_this_host = match address {
            Some(address) => address.is_loopback() || is_here(address),
            None => is_in_domain(host, "localhost"),
        };
        let is_exception = || {
            self.none_for.iter().any(|exception| {
                exception
                    .port
                    .is_none_or(|port| url.port_or_known_default() == Some(port))
                    && match (&exception.hosts, address) {
                        (Hosts::All, _) => true,
                        (Hosts::Network(network), Some(address)) => network.contains(&address),
                        (Hosts::Domain(domain), None) => is_in_domain(host, domain),
                        _ => false,
                    }
            })
        };
        (!on_this_host && !is_exception()).then_some(server)
    }

    /// Tells a client.
    pub(super) fn apply(&self, builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
        if self.https.is_none() && self.http.is_none() {
            return builder.no_proxy();
        }
        let proxies = self.clone();
        builder.proxy(reqwest::Proxy::custom(move |url| {
            proxies.proxy_for(url, is_of_this_host).cloned()
        }))
    }
}

/// `HOST:PORT` is taken for an HTTP proxy, as curl does.
fn server(text: &str) -> Option<Url> {
    let text = text.trim();
    let text = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let url: Url = text.parse().ok()?;
    let is_http = matches!(url.scheme(), "http" | "https");
    (is_http && url.host_str().is_some_and(|host| !host.is_empty())).then_some(url)
}

fn exceptions(list: &str) -> Vec<Exception> {
    list.split(|c: char| c == ',' || c.is_whitespace())
        .filter(|text| !text.is_empty())
        .map(exception)
        .collect()
}

fn exception(text: &str) -> Exception {
    let network = |text: &str| {
        let text = text.trim_start_matches('[').trim_end_matches(']');
        text.parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .ok()
    };
    // An address of IPv6 has colons of its own.
    let (host, port) = match text.rsplit_once(':') {
        _ if network(text).is_some() => (text, None),
        Some((host, port)) => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (text, None),
        },
        None => (text, None),
    };
    let hosts = match network(host) {
        Some(network) => Hosts::Network(network),
        None if host == "*" => Hosts::All,
        None => {
            let domain = host.strip_prefix('*').unwrap_or(host);
            Hosts::Domain(
                domain
                    .trim_start_matches('.')
                    .trim_end_matches('.')
                    .to_ascii_lowercase(),
            )
        }
    };
    Exception { hosts, port }
}

/// Whether a host is a domain or below it.
fn is_in_domain(host: &str, domain: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    match host.strip_suffix(domain) {
        Some(rest) => !domain.is_empty() && (rest.is_empty() || rest.ends_with('.')),
        None => false,
    }
}

/// Whether an address is one of this host's: the kernel would talk to it from itself. Sends nothing.
fn is_of_this_host(address: IpAddr) -> bool {
    /// Any port will do.
    const DISCARD: u16 = 9;
    let any: IpAddr = match address {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let from = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((address, DISCARD))?;
        socket.local_addr()
    };
    from().is_ok_and(|from| from.ip() == address)
}

#[cfg(test)]
mod tests;
