//! `await`: a process that waits for what it needs instead of crashing until it is there.
//!
//! Blocking and small: dozens of these start at once when a cluster does, on few cores.

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use camino::Utf8PathBuf;
use clap::Args;
use stolos_base::pki::Identity;

use crate::https::{Target, client_config, connect};
use crate::note;

/// Pause between attempts. A refused connection costs microseconds; a wait on the critical path costs what is paused here.
const PAUSE: Duration = Duration::from_millis(15);
/// One attempt takes at most this long. A server that listens but does not serve yet holds the connection; it may take all of it.
const ATTEMPT: Duration = Duration::from_secs(2);
/// A wait says what it waits for this often.
const REPORT: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(crate) struct Await {
    /// HOST:PORT that has to accept a connection
    #[arg(long)]
    tcp: Vec<String>,
    /// Unix socket that has to accept a connection
    #[arg(long)]
    unix: Vec<Utf8PathBuf>,
    /// HOST:PORT that has to complete a TLS handshake: a server that serves, whatever it would answer
    #[arg(long, requires = "ca")]
    tls: Vec<String>,
    /// https URL that has to answer with 200
    #[arg(long, requires = "ca")]
    url: Vec<String>,
    /// PEM file of the CA of `--tls` and `--url`
    #[arg(long)]
    ca: Option<Utf8PathBuf>,
    /// PEM file of a client certificate for `--tls` and `--url`
    #[arg(long, requires = "key")]
    cert: Option<Utf8PathBuf>,
    /// PEM file of the key of `--cert`
    #[arg(long, requires = "cert")]
    key: Option<Utf8PathBuf>,
    /// Seconds to wait; 0 for ever
    #[arg(long, default_value_t = 0)]
    timeout: u64,
    /// The program to become, with its arguments
    #[arg(last = true)]
    program: Vec<String>,
}

impl Await {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let start = Instant::now();
        let limit = (self.timeout > 0).then(|| Duration::from_secs(self.timeout));
        let tls = self.tls()?;
        for address in &self.tcp {
            wait(address, start, limit, || connect(address, ATTEMPT).map(drop))?;
        }
        for path in &self.unix {
            wait(path.as_str(), start, limit, || {
                Ok(UnixStream::connect(path).map(drop)?)
            })?;
        }
        for address in &self.tls {
            let target = Target::at(address)?;
            let tls = tls.as_ref().context("--tls needs --ca")?;
            wait(address, start, limit, || target.handshake(tls, ATTEMPT).map(drop))?;
        }
        for url in &self.url {
            let target = Target::parse(url)?;
            let tls = tls.as_ref().context("--url needs --ca")?;
            wait(url, start, limit, || target.ask(tls, ATTEMPT))?;
        }
        match self.program.split_first() {
            None => Ok(()),
            Some((program, arguments)) => {
                let error = std::process::Command::new(program).args(arguments).exec();
                Err(anyhow!(error).context(format!("failed to start `{program}`")))
            }
        }
    }

    fn tls(&self) -> anyhow::Result<Option<Arc<rustls::ClientConfig>>> {
        let Some(ca) = &self.ca else { return Ok(None) };
        let ca = fs_err::read_to_string(ca)?;
        let identity = match (&self.cert, &self.key) {
            (Some(certificate), Some(key)) => Some(Identity {
                certificate: fs_err::read_to_string(certificate)?,
                key: fs_err::read_to_string(key)?.into(),
            }),
            _ => None,
        };
        Ok(Some(client_config(&ca, identity.as_ref())?))
    }
}

fn wait(
    what: &str,
    start: Instant,
    limit: Option<Duration>,
    mut attempt: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut reported = Instant::now();
    loop {
        let Err(error) = attempt() else { return Ok(()) };
        if limit.is_some_and(|limit| start.elapsed() >= limit) {
            return Err(error.context(format!(
                "gave up after {} s waiting for `{what}`",
                start.elapsed().as_secs()
            )));
        }
        if reported.elapsed() >= REPORT {
            note(&format!(
                "stolos-job: waiting for `{what}` since {} s: {error:#}",
                start.elapsed().as_secs()
            ));
            reported = Instant::now();
        }
        sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::time::Duration as D;
    use stolos_base::pki::{Authority, Leaf, Usage};

    /// Serves two TLS connections: the first answer is 500, the second 200.
    fn server() -> (String, String, std::thread::JoinHandle<()>) {
        let now = stolos_base::Clock::system().now();
        let ca = Authority::root("test", D::from_secs(3600), now).expect("a CA");
        let mut leaf = Leaf::new("server", Usage::Server);
        leaf.addresses = vec![[127, 0, 0, 1].into()];
        let identity = ca.issue(&leaf, now).expect("a leaf");
        let config = stolos_base::tls::server(&identity, stolos_base::tls::Clients::Any).expect("a server");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("https://{}/livez", listener.local_addr().expect("an address"));
        let thread = std::thread::spawn(move || {
            for status in ["500 Internal Server Error", "200 OK"] {
                let (stream, _) = listener.accept().expect("a connection");
                let connection = rustls::ServerConnection::new(Arc::clone(&config)).expect("TLS");
                let mut stream = rustls::StreamOwned::new(connection, stream);
                // A request may come in several TLS records, so it is read up to the blank line that ends it.
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut part = [0_u8; 512];
                    let n = stream.read(&mut part).expect("a request");
                    assert!(n > 0, "the request ends early");
                    request.extend_from_slice(&part[..n]);
                }
                assert!(request.starts_with(b"GET /livez HTTP/1.1\r\n"));
                write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").expect("an answer");
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        });
        (url, ca.certificate().to_owned(), thread)
    }

    #[test]
    fn a_url_is_asked_until_it_answers_200() {
        let (url, ca, thread) = server();
        let tls = client_config(&ca, None).expect("TLS");
        let target = Target::parse(&url).expect("a URL");
        let mut answers = Vec::new();
        wait(&url, Instant::now(), Some(D::from_secs(30)), || {
            let answer = target.ask(&tls, ATTEMPT);
            answers.push(answer.as_ref().map_err(ToString::to_string).copied());
            answer
        })
        .expect("200 at last");
        thread.join().expect("the server");
        assert_eq!(
            answers,
            [
                Err("it answered `HTTP/1.1 500 Internal Server Error`".to_owned()),
                Ok(())
            ]
        );
    }

    #[test]
    fn a_limit_ends_the_wait_and_says_for_what() {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("an address").to_string();
        drop(free);
        let error = wait(&address, Instant::now(), Some(D::ZERO), || {
            connect(&address, ATTEMPT).map(drop)
        })
        .expect_err("refused");
        assert!(format!("{error:#}").contains(&address), "{error:#}");
    }
}
