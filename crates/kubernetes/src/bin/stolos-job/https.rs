//! HTTPS by hand, blocking and small: dozens of these processes start at once when a cluster does, on few cores.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use rustls::pki_types::ServerName;
use stolos_base::pki::Identity;

/// The longest answer that is read: a list of members is a few hundred bytes for each.
const LONGEST_ANSWER: u64 = 1 << 20;

pub(crate) fn connect(address: &str, limit: Duration) -> anyhow::Result<TcpStream> {
    let mut last = anyhow!("`{address}` has no address");
    for candidate in address
        .to_socket_addrs()
        .with_context(|| format!("`{address}`"))?
    {
        let candidate: SocketAddr = candidate;
        match TcpStream::connect_timeout(&candidate, limit) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

pub(crate) fn client_config(
    ca: &str,
    identity: Option<&Identity>,
) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let mut config = stolos_base::tls::client(ca, identity)?;
    // What is spoken here is HTTP/1, written by hand.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// An https URL in parts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) address: String,
    host: String,
    pub(crate) path: String,
}

/// An answer: the status and the whole body.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Target {
    /// HOST:PORT without a path.
    pub(crate) fn at(address: &str) -> anyhow::Result<Self> {
        let (host, _) = address
            .rsplit_once(':')
            .with_context(|| format!("`{address}` is not HOST:PORT"))?;
        Ok(Self {
            address: address.to_owned(),
            host: host.to_owned(),
            path: String::new(),
        })
    }

    pub(crate) fn parse(url: &str) -> anyhow::Result<Self> {
        let uri: http::Uri = url.parse().with_context(|| format!("`{url}` is no URL"))?;
        if uri.scheme_str() != Some("https") {
            bail!("`{url}` does not begin with https://");
        }
        let host = uri
            .host()
            .with_context(|| format!("`{url}` has no host"))?
            .to_owned();
        let address = format!("{host}:{}", uri.port_u16().unwrap_or(443));
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { address, host, path })
    }

    /// A connection on which the server has shown its certificate.
    pub(crate) fn handshake(
        &self,
        tls: &Arc<rustls::ClientConfig>,
        limit: Duration,
    ) -> anyhow::Result<rustls::StreamOwned<rustls::ClientConnection, TcpStream>> {
        let mut stream = connect(&self.address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_write_timeout(Some(limit))?;
        let name = ServerName::try_from(self.host.trim_matches(['[', ']']).to_owned())?;
        let mut connection = rustls::ClientConnection::new(Arc::clone(tls), name)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        Ok(rustls::StreamOwned::new(connection, stream))
    }

    /// One request whose answer is not read beyond its first line; anything but 200 is an error.
    pub(crate) fn ask(&self, tls: &Arc<rustls::ClientConfig>, limit: Duration) -> anyhow::Result<()> {
        let mut stream = self.handshake(tls, limit)?;
        write!(
            stream,
            "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.path, self.address
        )?;
        let mut head = [0_u8; 256];
        let mut length = 0;
        while length < head.len() && !head[..length].contains(&b'\n') {
            match stream.read(&mut head[length..])? {
                0 => break,
                n => length += n,
            }
        }
        let head = String::from_utf8_lossy(&head[..length]);
        let line = head.lines().next().unwrap_or_default();
        match status(line) {
            Some(200) => Ok(()),
            Some(_) => bail!("it answered `{}`", line.trim()),
            None => bail!("it did not answer HTTP"),
        }
    }

    /// One request with its whole answer. `body` makes it a POST of JSON.
    ///
    /// It is asked in HTTP/1.0, to which a server answers in one piece. Nobody waits for the end of the connection where the length is known: etcd's port
    /// for peers may keep one open for five seconds after its answer. (Go's server ends its own read ahead by a deadline in the past, which etcd's
    /// `transport.timeoutConn` puts off by five seconds when that read begins a moment later; seen nearly always on a busy machine.)
    pub(crate) fn request(
        &self,
        tls: &Arc<rustls::ClientConfig>,
        body: Option<&serde_json::Value>,
        limit: Duration,
    ) -> anyhow::Result<Answer> {
        let mut stream = self.handshake(tls, limit)?;
        let (method, body) = match body {
            Some(body) => ("POST", body.to_string()),
            None => ("GET", String::new()),
        };
        let request = format!(
            "{method} {} HTTP/1.0\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.path,
            self.address,
            body.len()
        );
        // In one piece: each part would be a record of its own.
        stream.write_all(request.as_bytes())?;
        let mut stream = stream.take(LONGEST_ANSWER);
        let mut answer = Vec::new();
        let mut part = [0_u8; 4096];
        while !is_whole(&answer) {
            match stream.read(&mut part) {
                // A server that closes without a farewell has said what it had to say, unless it announced more.
                Ok(0) => break,
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
                Ok(n) => answer.extend_from_slice(&part[..n]),
                Err(error) => return Err(error.into()),
            }
        }
        let (head, body) = parts(&answer).context("it did not answer HTTP")?;
        let length = announced(&head).unwrap_or(body.len());
        Ok(Answer {
            status: head
                .lines()
                .next()
                .and_then(status)
                .context("it did not answer HTTP")?,
            body: body.get(..length).context("its answer was cut off")?.to_vec(),
        })
    }
}

/// Head and body of what has come so far, once the head is complete.
fn parts(answer: &[u8]) -> Option<(String, &[u8])> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some((
        String::from_utf8_lossy(&answer[..end]).into_owned(),
        &answer[end + 4..],
    ))
}

fn announced(head: &str) -> Option<usize> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse().ok())?
    })
}

/// Whether everything that was announced is there. An answer of unknown length ends with its connection.
fn is_whole(answer: &[u8]) -> bool {
    parts(answer).is_some_and(|(head, body)| announced(&head).is_some_and(|length| body.len() >= length))
}

fn status(line: &str) -> Option<u16> {
    line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use stolos_base::pki::{Authority, Leaf, Usage};
    use stolos_base::tls::Clients;

    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let target = Target::parse("https://127.0.0.1:8443/livez?verbose").expect("a URL");
        assert_eq!(
            (target.address.as_str(), target.path.as_str()),
            ("127.0.0.1:8443", "/livez?verbose")
        );
        assert!(Target::parse("http://127.0.0.1/").is_err());
    }

    /// One that answers and keeps the connection open until the other side closes it.
    fn answering(answer: &'static str) -> (Target, Arc<rustls::ClientConfig>, std::thread::JoinHandle<()>) {
        let now = stolos_base::Clock::system().now();
        let ca = Authority::root("test", Duration::from_secs(3600), now).expect("a CA");
        let mut leaf = Leaf::new("server", Usage::Server);
        leaf.addresses = vec![[127, 0, 0, 1].into()];
        let identity = ca.issue(&leaf, now).expect("a certificate");
        let server = stolos_base::tls::server(&identity, Clients::Any).expect("a configuration");
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let target = Target::parse(&format!(
            "https://{}/",
            listener.local_addr().expect("an address")
        ));
        let serving = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("somebody");
            let connection = rustls::ServerConnection::new(server).expect("a connection");
            let mut stream = rustls::StreamOwned::new(connection, stream);
            let mut request = [0_u8; 4096];
            let _ = stream.read(&mut request).expect("a request");
            stream.write_all(answer.as_bytes()).expect("it is told");
            while stream.read(&mut request).is_ok_and(|n| n > 0) {}
        });
        let tls = client_config(ca.certificate(), None).expect("a configuration");
        (target.expect("a URL"), tls, serving)
    }

    #[test]
    fn an_answer_of_known_length_is_not_waited_for_longer() {
        let limit = Duration::from_secs(5);
        let (target, tls, serving) = answering("HTTP/1.0 404 Not Found\r\ncontent-length: 4\r\n\r\nnone");
        let answer = target.request(&tls, None, limit).expect("an answer");
        assert_eq!((answer.status, answer.body.as_slice()), (404, b"none".as_slice()));
        serving.join().expect("it saw us close");
        let (target, tls, serving) = answering("HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\nnone");
        let result = target.request(&tls, None, Duration::from_millis(200));
        assert!(result.is_err(), "a part is no answer");
        serving.join().expect("it saw us close");
    }
}
