//! How our clients speak HTTP: whom they trust, how long they wait, and what an error body says.

mod proxy;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use std::fmt;
use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use stolos_base::error::{Class, Classify};

pub use proxy::Proxies;

/// A server that does not accept a connection in this time is not there.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The largest error body that is read.
const ERROR_BODY_LIMIT: usize = 64 * 1024;

/// Which servers a client believes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those with a certificate that the operating system trusts.
    #[default]
    System,
    /// Those with a certificate of these authorities (PEM, one or more) and no other.
    Authorities(String),
    /// All. A person has to ask for it (`--skip-ssl-validation`).
    Everybody,
}

/// How long a client waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// For a whole request with its body.
    Whole(Duration),
    /// Between two pieces of an answer, however long all of it takes.
    Silence(Duration),
    /// For ever, once there is a connection.
    None,
}

/// A client with our settings, for services: it goes through no proxy, because the others are on this host or in its networks.
/// `limit` is for a whole request with its body; without one a long-poll may last.
///
/// # Errors
/// [`Error::Setup`] when the authorities cannot be read.
pub fn client(trust: &Trust, limit: Option<Duration>) -> Result<reqwest::Client, Error> {
    client_through(
        &Proxies::default(),
        trust,
        limit.map_or(Limit::None, Limit::Whole),
    )
}

/// A client with our settings that goes through proxies, for people.
///
/// # Errors
/// [`Error::Setup`] when the authorities cannot be read.
pub fn client_through(proxies: &Proxies, trust: &Trust, limit: Limit) -> Result<reqwest::Client, Error> {
    // Libraries below ask for the process's default provider.
    stolos_base::tls::install_provider();
    let builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_LIMIT)
        .user_agent(concat!("stolos/", env!("CARGO_PKG_VERSION")))
        // BOSH answers long calls with a redirect that the caller wants to see.
        .redirect(reqwest::redirect::Policy::none());
    let builder = proxies.apply(builder);
    let builder = match trust {
        Trust::System => builder,
        Trust::Authorities(pem) => builder.tls_backend_preconfigured(
            stolos_base::tls::client(pem, None).map_err(|e| Error::Setup(e.into()))?,
        ),
        Trust::Everybody => builder.tls_backend_preconfigured(
            stolos_base::tls::client_without_verification().map_err(|e| Error::Setup(e.into()))?,
        ),
    };
    let builder = match limit {
        Limit::Whole(limit) => builder.timeout(limit),
        Limit::Silence(limit) => builder.read_timeout(limit),
        Limit::None => builder,
    };
    builder.build().map_err(|error| Error::Setup(error.into()))
}

/// A call to one of our services failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client itself could not be made.
    #[error("failed to set up the HTTP client")]
    Setup(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No answer came.
    #[error("failed to reach {url}")]
    Unreachable {
        /// Where to, without query.
        url: String,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
    /// The service answered with an error.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The answer is not what the API says.
    #[error("{url} answered with something else than expected")]
    BadReply {
        /// Where from, without query.
        url: String,
        /// What does not fit.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What stands for itself in any part of an address. The full stop does not: `..` is a way up.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~');

/// A text as one part of an address: a segment of a path, a name or value of a query.
#[must_use]
pub fn encoded(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, PLAIN)
}

/// An error answer. Shown as the service's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// `error` of OAuth, `code` of BOSH, `error_code` of ours; as text.
    pub code: Option<String>,
    /// For people; the status's own words when the body has none.
    pub message: String,
    /// Whole sentences that name the next step.
    pub hints: Vec<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

impl Error {
    /// The refusal, if the service answered at all.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Setup(_) => Class::User,
            Self::Unreachable { .. } => Class::Unavailable,
            Self::BadReply { .. } => Class::Internal,
            Self::Refused(refusal) => match refusal.status {
                401 => Class::Unauthenticated,
                403 => Class::Denied,
                404 | 410 => Class::NotFound,
                409 | 412 | 422 => Class::Conflict,
                408 | 429 | 502 | 503 | 504 => Class::Unavailable,
                400..500 => Class::User,
                _ => Class::Internal,
            },
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Refused(refusal) => refusal.hints.clone(),
            Self::Unreachable { source, .. } if is_certificate_problem(source) => vec![
                "The server's certificate is not trusted: give its CA certificate, or ask to skip the verification."
                    .to_owned(),
            ],
            Self::Unreachable { source, .. } if is_proxy_problem(source) => vec![
                "The variables HTTPS_PROXY and ALL_PROXY of the environment name a proxy for this address; name its host in NO_PROXY to reach it without one."
                    .to_owned(),
            ],
            _ => Vec::new(),
        }
    }
}

/// hyper's words for what a proxy did not do; reqwest has no kind of its own.
fn is_proxy_problem(error: &reqwest::Error) -> bool {
    stolos_base::chain(error).contains("tunnel error")
}

/// rustls' words for it; reqwest has no kind of its own.
fn is_certificate_problem(error: &reqwest::Error) -> bool {
    stolos_base::chain(error).contains("invalid peer certificate")
}

/// Sends a request and reads a JSON answer.
///
/// # Errors
/// See [`Error`].
pub async fn json<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> Result<T, Error> {
    let response = send(request).await?;
    let url = shown(response.url());
    let bytes = response.bytes().await.map_err(|source| Error::Unreachable {
        url: url.clone(),
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|source| Error::BadReply {
        url,
        source: source.into(),
    })
}

/// Sends a request and gives the answer unless it is an error. Redirects are given too.
///
/// # Errors
/// See [`Error`].
pub async fn send(request: reqwest::RequestBuilder) -> Result<Response, Error> {
    let response = request.send().await.map_err(|source| Error::Unreachable {
        url: source.url().map_or_else(|| "the server".to_owned(), shown),
        source: source.without_url(),
    })?;
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        return Err(Error::Refused(refusal(status, response).await));
    }
    Ok(response)
}

/// An address without query and user: those may hold secrets.
fn shown(url: &reqwest::Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}{}", url.scheme(), url.path())
}

async fn refusal(status: StatusCode, mut response: Response) -> Refusal {
    let mut body = Vec::new();
    // What has come so far may be enough, so an error while reading the error is left out.
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > ERROR_BODY_LIMIT {
            break;
        }
    }
    parse_refusal(status.as_u16(), &body)
}

/// Reads the error bodies of PKS (`body`), BOSH (`code`, `description`), UAA and CredHub (`error`, `error_description`)
/// and ours (`error_code`, `message`, `hint`); anything else counts as text when it is short and no markup.
#[must_use]
pub fn parse_refusal(status: u16, body: &[u8]) -> Refusal {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |key: &str| match &json[key] {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let plain = || {
        let text = std::str::from_utf8(body).ok()?.trim();
        let is_short_text = !text.is_empty() && text.len() < 1000 && !text.starts_with(['<', '{', '[']);
        is_short_text.then(|| text.to_owned())
    };
    let message = text("message")
        .or_else(|| text("error_description"))
        .or_else(|| text("description"))
        .or_else(|| text("body"))
        .or_else(|| text("error"))
        .or_else(plain)
        .unwrap_or_else(|| {
            let reason = StatusCode::from_u16(status)
                .ok()
                .and_then(|status| status.canonical_reason());
            format!("the server answered {status} {}", reason.unwrap_or_default())
                .trim_end()
                .to_owned()
        });
    let hints = match &json["hint"] {
        Value::String(hint) => vec![hint.clone()],
        Value::Array(hints) => hints
            .iter()
            .filter_map(|hint| hint.as_str().map(str::to_owned))
            .collect(),
        _ => Vec::new(),
    };
    Refusal {
        status,
        code: text("error_code")
            .or_else(|| text("code"))
            .or_else(|| text("error")),
        message,
        hints,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_of_error_body_is_read() {
        let check = |status, body: &str, code: Option<&str>, message: &str| {
            let refusal = parse_refusal(status, body.as_bytes());
            assert_eq!(
                (refusal.code.as_deref(), refusal.message.as_str()),
                (code, message),
                "{body}"
            );
        };
        check(
            404,
            r#"{"body":"Cluster x not found"}"#,
            None,
            "Cluster x not found",
        );
        check(400, r#"{"code":70000,"description":"no"}"#, Some("70000"), "no");
        check(
            401,
            r#"{"error":"unauthorized","error_description":"Bad credentials"}"#,
            Some("unauthorized"),
            "Bad credentials",
        );
        check(
            409,
            r#"{"error_code":"taken","message":"m","request_id":"r","hint":"Do."}"#,
            Some("taken"),
            "m",
        );
        check(
            404,
            r#"{"error":"The credential does not exist."}"#,
            Some("The credential does not exist."),
            "The credential does not exist.",
        );
        check(502, "<html>", None, "the server answered 502 Bad Gateway");
        check(503, "starting\n", None, "starting");
        let hints = parse_refusal(400, br#"{"message":"m","hint":["A.","B."]}"#).hints;
        assert_eq!(hints, ["A.", "B."]);
        assert_eq!(
            Error::from(parse_refusal(401, b"")).class(),
            Class::Unauthenticated
        );
    }

    #[tokio::test]
    async fn nobody_there_is_unavailable_and_shows_no_query() {
        let client = client(&Trust::Everybody, None).expect("a client");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let request = client.get(format!("http://{address}/path?password=TOPSECRET"));
        let error = send(request).await.expect_err("nobody listens");
        assert_eq!(error.class(), Class::Unavailable);
        let text = format!("{} {error:?}", stolos_base::chain(&error));
        assert!(text.contains("/path") && !text.contains("TOPSECRET"), "{text}");
    }
}
