//! Sessions.

use std::time::Duration;

use stolos_api::http::{Limit, Proxies, Trust, client_through};
use stolos_api::{identity, pks};
use stolos_base::{Class, Clock, Secret};

use super::sign_in::{refused, sign_in};
use crate::args::{Login, Trusted};
use crate::failure::Failure;
use crate::output;
use crate::session::{self, Session};

/// No answer of these services takes longer; long-polls have their own limit.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// A token that ends sooner is renewed before it is used.
const RENEW_BEFORE: i64 = 30;
/// The port of the token service.
const IDENTITY_PORT: u16 = 8443;

/// An API and its token service.
pub(crate) struct Server {
    /// Base address of the API.
    pub(crate) api: String,
    pub(crate) identity: identity::Client,
    pub(crate) http: reqwest::Client,
    trust: Trust,
}

impl Server {
    /// Those of a session.
    ///
    /// # Errors
    /// When its certificates are none.
    pub(crate) fn of_session(session: &Session, limit: Duration) -> Result<Self, Failure> {
        let trust = trust_of(session);
        let http = http(&trust, Limit::Whole(limit))?;
        Ok(Self {
            api: session.api.clone(),
            identity: identity::Client::new(&session.identity, http.clone()),
            http,
            trust,
        })
    }
}

/// Whom a session trusts.
pub(crate) fn trust_of(session: &Session) -> Trust {
    match (session.skip_ssl_verification, session.ca_cert.is_empty()) {
        (true, _) => Trust::Everybody,
        (false, true) => Trust::System,
        (false, false) => Trust::Authorities(session.ca_cert.clone()),
    }
}

/// An HTTP client that goes through the proxies that the environment names, as that of PKS did.
///
/// # Errors
/// When there are no certificates in what is trusted, or a variable names no proxy.
pub(crate) fn http(trust: &Trust, limit: Limit) -> Result<reqwest::Client, Failure> {
    Proxies::of_environment()
        .and_then(|proxies| client_through(&proxies, trust, limit))
        .map_err(|error| Failure::from_error(&error))
}

/// Finds an API, and from there its token service.
///
/// # Errors
/// When it does not answer, or is not trusted.
pub(crate) async fn connect(api: &str, trusted: &Trusted, limit: Duration) -> Result<Server, Failure> {
    let trust = match (&trusted.ca_cert, trusted.skip_ssl_validation) {
        (_, true) => Trust::Everybody,
        (Some(path), false) => Trust::Authorities(
            fs_err::read_to_string(path)
                .map_err(|error| Failure::user(format!("failed to read the CA certificate: {error}")))?,
        ),
        (None, false) => Trust::System,
    };
    let api = base_address(api, pks::PORT)?;
    let usual = base_address(host_of(&api), IDENTITY_PORT)?;
    let http = http(&trust, Limit::Whole(limit))?;
    // The API says where tokens are to be had; an installation may have moved that.
    let info = pks::Client::new(&api, http.clone(), Secret::from(""))
        .info()
        .await;
    let identity = match info {
        Ok(info) => info.identity,
        Err(error) if error.refusal().is_some_and(|refusal| refusal.status == 404) => usual,
        Err(error) => return Err(Failure::from_error(&error)),
    };
    Ok(Server {
        api,
        identity: identity::Client::new(&identity, http.clone()),
        http,
        trust,
    })
}

/// `stolos login`
pub(crate) async fn login(args: &Login) -> Result<(), Failure> {
    let server = connect(&args.api, &args.trusted, Duration::from_secs(args.timeout)).await?;
    let (name, tokens) = match (&args.client_name, &args.client_secret) {
        (Some(name), Some(secret)) => {
            let secret = Secret::from(secret.as_str());
            let tokens = server.identity.client_credentials(name, &secret).await;
            (name.clone(), tokens.map_err(refused)?)
        }
        _ => sign_in(&server.identity, identity::PKS_CLI, &args.person, None).await?,
    };
    session::save(&Session {
        api: server.api.clone(),
        identity: server.identity.base().to_owned(),
        username: name.clone(),
        ca_cert: match &server.trust {
            Trust::Authorities(pem) => pem.clone(),
            Trust::System | Trust::Everybody => String::new(),
        },
        skip_ssl_verification: args.trusted.skip_ssl_validation,
        access_token: tokens.access_token.expose().clone(),
        refresh_token: tokens
            .refresh_token
            .map(|token| token.expose().clone())
            .unwrap_or_default(),
    })?;
    output::data(&format!("\nAPI Endpoint: {}\nUser: {name}", host_of(&server.api)));
    Ok(())
}

/// `stolos logout`
pub(crate) fn logout() -> Result<(), Failure> {
    session::remove()
}

/// The session with a token that lives, and the HTTP client that goes with it.
pub(crate) async fn current() -> Result<(Session, reqwest::Client), Failure> {
    let mut session = session::load()?;
    let server = Server::of_session(&session, REQUEST_LIMIT)?;
    if !lives(&session.access_token) {
        if session.refresh_token.is_empty() {
            return Err(Failure::not_logged_in());
        }
        let refresh = Secret::from(session.refresh_token.as_str());
        let tokens = server
            .identity
            .refresh(identity::PKS_CLI, &refresh)
            .await
            .map_err(|error| {
                use stolos_base::Classify as _;
                match error.class() {
                    Class::User | Class::Unauthenticated => Failure::not_logged_in(),
                    _ => Failure::from_error(&error),
                }
            })?;
        session.access_token = tokens.access_token.expose().clone();
        if let Some(token) = tokens.refresh_token {
            session.refresh_token = token.expose().clone();
        }
        session::save(&session)?;
    }
    Ok((session, server.http))
}

/// A client of the PKS API for the current session.
pub(crate) async fn pks_client() -> Result<pks::Client, Failure> {
    let (session, http) = current().await?;
    Ok(pks::Client::new(
        &session.api,
        http,
        Secret::from(session.access_token.as_str()),
    ))
}

/// Whether a token can still be used. Its signature is the server's business.
fn lives(token: &str) -> bool {
    let end = stolos_api::token::peek(token)
        .ok()
        .and_then(|claims| claims.get("exp")?.as_i64());
    end.is_some_and(|end| end > Clock::system().now().as_second() + RENEW_BEFORE)
}

/// `HOST`, `HOST:PORT` and `https://HOST[:PORT]` are all taken, as PKS did.
fn base_address(text: &str, port: u16) -> Result<String, Failure> {
    if text.starts_with("http://") {
        return Err(
            Failure::user(format!("`{text}` would send the password in clear"))
                .hint("The API speaks HTTPS only."),
        );
    }
    let rest = text
        .strip_prefix("https://")
        .unwrap_or(text)
        .trim_end_matches('/');
    let valid = !rest.is_empty()
        && rest
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b));
    if !valid {
        return Err(Failure::user(format!("`{text}` is not the host of an API")));
    }
    let has_port = rest.rsplit_once(':').is_some_and(|(host, port)| {
        (!host.contains(':') || host.ends_with(']')) && port.bytes().all(|b| b.is_ascii_digit())
    });
    Ok(if has_port {
        format!("https://{rest}")
    } else {
        format!("https://{rest}:{port}")
    })
}

fn host_of(base: &str) -> &str {
    let rest = base.strip_prefix("https://").unwrap_or(base);
    rest.rsplit_once(':').map_or(rest, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_an_api_address_is_taken() {
        for (text, base) in [
            ("api.example.com", "https://api.example.com:9021"),
            ("https://api.example.com/", "https://api.example.com:9021"),
            ("api.example.com:8021", "https://api.example.com:8021"),
            ("[fd00::1]", "https://[fd00::1]:9021"),
        ] {
            assert_eq!(base_address(text, 9021).expect("valid"), base);
        }
        for text in ["", "http://api.example.com", "api/../x", "a b"] {
            assert!(base_address(text, 9021).is_err(), "{text}");
        }
        assert_eq!(host_of("https://api.example.com:9021"), "api.example.com");
    }
}
