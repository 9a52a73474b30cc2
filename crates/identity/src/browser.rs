//! The pages on which people log in with a browser, so that a command line never sees their password: `--sso` shows a one-time code to type,
//! `--sso-auto` has the browser bring a code back to a listener of the command line (RFC 8252, with RFC 7636's challenge).
//!
//! The session is a cookie that no other site's page can have sent along (`SameSite=Strict`), and the login form takes no other site's form.

use std::sync::Arc;

use askama::Template;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use stolos_api::http::encoded;
use stolos_api::identity::LOCKED;
use stolos_base::Secret;
use stolos_base::input::{Form, Json, Query, Unreadable};

use crate::Inner;
use crate::db;
use crate::error::{Error, OAuthError};
use crate::source::Source;
use crate::tickets::{Detail, Kind, Shown};

/// The cookie; the prefix makes browsers insist on HTTPS and this host (RFC 6265bis, section 4.1.3).
const COOKIE: &str = "__Host-stolos-session";
const PASSCODE_PATH: &str = "/passcode";
const AUTHORIZE_PATH: &str = "/oauth/authorize";
/// Nothing from elsewhere is loaded, and nobody shows these pages inside of others.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'";

type App = State<Arc<Inner>>;

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage<'a> {
    problem: Option<&'a str>,
    username: &'a str,
    return_to: &'a str,
}

#[derive(Template)]
#[template(path = "passcode.html")]
struct PasscodePage<'a> {
    user: &'a str,
    code: &'a str,
    minutes: i64,
}

#[derive(Template)]
#[template(path = "problem.html")]
struct ProblemPage<'a> {
    problem: &'a str,
}

/// Why a page is not shown.
pub(crate) enum Refusal {
    /// The browser is sent to log in first, and then to this path.
    NotLoggedIn(String),
    /// The request makes no sense.
    Request(String),
    /// Ours.
    Internal(Error),
}

impl<E: Into<Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Internal(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::NotLoggedIn(path) => see(&format!("/login?return_to={}", encoded(&path))),
            Self::Request(problem) => page(StatusCode::BAD_REQUEST, &ProblemPage { problem: &problem }),
            Self::Internal(error) => {
                let problem = "The service could not answer. Try again in a moment.";
                page(error.report("a page"), &ProblemPage { problem })
            }
        }
    }
}

/// The query of `/login`.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Login {
    return_to: String,
}

/// `GET /login`: a form for people; programs get what `/info` says, as from UAA.
pub(crate) async fn login_page(
    State(app): App,
    headers: HeaderMap,
    query: Result<Query<Login>, Unreadable>,
) -> Result<Response, Refusal> {
    let wants_page = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|accept| accept.contains("text/html"));
    if !wants_page {
        return Ok(Json(crate::http::information(&app)).into_response());
    }
    let Query(login) = query.map_err(|rejection| Refusal::Request(rejection.body_text()))?;
    Ok(login_form(StatusCode::OK, None, "", &login.return_to))
}

/// What the form sends.
#[derive(Deserialize)]
pub(crate) struct Credentials {
    username: String,
    password: Secret<String>,
    #[serde(default)]
    return_to: String,
}

/// `POST /login`
pub(crate) async fn log_in(
    State(app): App,
    source: Source,
    uri: Uri,
    headers: HeaderMap,
    form: Result<Form<Credentials>, Unreadable>,
) -> Result<Response, Refusal> {
    check_origin(&uri, &headers).map_err(|problem| Refusal::Request(problem.to_owned()))?;
    let Form(sent) = form.map_err(|rejection| Refusal::Request(rejection.body_text()))?;
    let checked = app.check_user(&sent.username, sent.password, &source).await;
    let locked;
    let problem = match checked {
        Ok(user) => {
            let session = app
                .give_ticket(Kind::Session, &user, app.now(), &Detail::default())
                .await?
                .ok_or_else(|| Refusal::NotLoggedIn(own_page(&sent.return_to).to_owned()))?;
            tracing::info!(user = %user.name, "logged in with a browser");
            let mut response = see(own_page(&sent.return_to));
            set_cookie(&mut response, &session, Kind::Session.lives());
            return Ok(response);
        }
        Err(OAuthError::Internal(error)) => return Err(Refusal::Internal(error)),
        Err(OAuthError::Locked { until }) => {
            locked = format!("{} {}", LOCKED, crate::lockout::again(until));
            locked.as_str()
        }
        Err(_) => "User name or password is wrong.",
    };
    Ok(login_form(
        StatusCode::UNAUTHORIZED,
        Some(problem),
        &sent.username,
        &sent.return_to,
    ))
}

/// `GET /logout.do`, UAA's path.
pub(crate) async fn log_out(State(app): App, headers: HeaderMap) -> Result<Response, Refusal> {
    if let Some(session) = session_of(&headers) {
        app.use_ticket(Kind::Session, &session).await?;
    }
    let mut response = see("/login");
    set_cookie(&mut response, "", 0);
    Ok(response)
}

/// `GET /passcode`: a code for one login of a command line.
pub(crate) async fn passcode(State(app): App, headers: HeaderMap) -> Result<Response, Refusal> {
    let shown = app.browser(&headers, PASSCODE_PATH).await?;
    let code = app
        .give_ticket(Kind::Passcode, &shown.user, shown.auth_time, &Detail::default())
        .await?
        .ok_or_else(|| Refusal::NotLoggedIn(PASSCODE_PATH.to_owned()))?;
    Ok(page(
        StatusCode::OK,
        &PasscodePage {
            user: &shown.user.name,
            code: &code,
            minutes: Kind::Passcode.lives() / 60,
        },
    ))
}

/// The query of `/oauth/authorize`.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Authorize {
    response_type: String,
    client_id: String,
    redirect_uri: String,
    state: Option<String>,
    scope: Option<String>,
    code_challenge: String,
    code_challenge_method: String,
}

/// `GET /oauth/authorize`: a code for a command line that listens on this person's own machine. There is no question whether the person
/// agrees: the clients are ours, and the listener is a program that the person runs.
pub(crate) async fn authorize(
    State(app): App,
    headers: HeaderMap,
    uri: Uri,
    query: Result<Query<Authorize>, Unreadable>,
) -> Result<Response, Refusal> {
    let Query(asked) = query.map_err(|rejection| Refusal::Request(rejection.body_text()))?;
    let refuse = |problem: &str| Err(Refusal::Request(problem.to_owned()));
    let client = db::client_by_id(&app.db, &asked.client_id).await?;
    let may = client.is_some_and(|client| client.grants.iter().any(|grant| grant == "authorization_code"));
    if !may {
        return refuse("No such client may ask for a code.");
    }
    if !is_loopback(&asked.redirect_uri) {
        return refuse("The code can only go to a program on your own machine (http://127.0.0.1:PORT/…).");
    }
    if asked.response_type != "code" {
        return refuse("`response_type` is not `code`.");
    }
    // 32 bytes in base64 (RFC 7636, section 4.2).
    if asked.code_challenge_method != "S256" || asked.code_challenge.len() != 43 {
        return refuse("There is no `code_challenge` of the method S256.");
    }
    let path = uri.path_and_query().map_or(AUTHORIZE_PATH, |path| path.as_str());
    let shown = app.browser(&headers, path).await?;
    let detail = Detail {
        client: asked.client_id,
        redirect_uri: asked.redirect_uri.clone(),
        challenge: asked.code_challenge,
        scope: asked.scope,
    };
    let code = app
        .give_ticket(Kind::Code, &shown.user, shown.auth_time, &detail)
        .await?
        .ok_or_else(|| Refusal::NotLoggedIn(path.to_owned()))?;
    let separator = if asked.redirect_uri.contains('?') {
        '&'
    } else {
        '?'
    };
    let mut target = format!("{}{separator}code={code}", asked.redirect_uri);
    if let Some(state) = &asked.state {
        target.push_str(&format!("&state={}", encoded(state)));
    }
    Ok(see(&target))
}

impl Inner {
    /// Who sits at the browser; who has not logged in is sent to do so, and then to `path`.
    async fn browser(&self, headers: &HeaderMap, path: &str) -> Result<Shown, Refusal> {
        let session = session_of(headers);
        let shown = match &session {
            Some(session) => self.look_at_ticket(Kind::Session, session).await?,
            None => None,
        };
        shown.ok_or_else(|| Refusal::NotLoggedIn(path.to_owned()))
    }
}

fn login_form(status: StatusCode, problem: Option<&str>, username: &str, return_to: &str) -> Response {
    page(
        status,
        &LoginPage {
            problem,
            username,
            return_to: own_page(return_to),
        },
    )
}

fn page(status: StatusCode, template: &impl Template) -> Response {
    let body = match template.render() {
        Ok(body) => body,
        Err(error) => {
            tracing::error!(%error, "a page could not be made");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    let mut response = (status, body).into_response();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Sends the browser elsewhere.
fn see(target: &str) -> Response {
    match HeaderValue::from_str(target) {
        Ok(location) => {
            let headers: [(HeaderName, HeaderValue); 2] = [
                (header::LOCATION, location),
                (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            ];
            (StatusCode::SEE_OTHER, headers).into_response()
        }
        Err(_) => Refusal::Request("The address has letters that no address has.".to_owned()).into_response(),
    }
}

/// A path of a page of ours, whatever was asked for: a login must not send people to other sites.
fn own_page(path: &str) -> &str {
    let is_own = path == PASSCODE_PATH || path.starts_with("/oauth/authorize?");
    if is_own { path } else { PASSCODE_PATH }
}

/// Refuses the form of another site's page. Browsers name the site of the page that a form is on (`Origin`); what they do not name was sent by no
/// browser.
///
/// The site that a request was sent to is in `:authority` with HTTP/2, which browsers send without `Host`, and in `Host` with HTTP/1.1; a request
/// with an absolute target has both there, and the target counts (RFC 9112, section 3.2.2). One that contradicts itself is refused: whatever is
/// in front of the service may have looked at the other one.
fn check_origin(uri: &Uri, headers: &HeaderMap) -> Result<(), &'static str> {
    let Some(origin) = one(headers, &header::ORIGIN)? else {
        return Ok(());
    };
    let target = uri.authority().map(axum::http::uri::Authority::as_str);
    let host = match (target, one(headers, &header::HOST)?) {
        (Some(target), Some(host)) if site(target) != site(host) => {
            return Err("The request names two hosts.");
        }
        (Some(host), _) | (None, Some(host)) => host,
        (None, None) => return Err("The request names no host."),
    };
    match origin.strip_prefix("https://") {
        Some(origin) if site(origin) == site(host) => Ok(()),
        _ => Err("The form was sent by a page of another site."),
    }
}

/// The only value of a header; `None` where there is no such header.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, &'static str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| "A header is not text."),
        (Some(_), Some(_)) => Err("A header is there twice."),
    }
}

/// A host and port for comparison: without regard to case, and without the port that HTTPS has anyway.
fn site(authority: &str) -> String {
    let authority = authority.to_ascii_lowercase();
    authority
        .strip_suffix(":443")
        .map(str::to_owned)
        .unwrap_or(authority)
}

fn session_of(headers: &HeaderMap) -> Option<String> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
        .map(str::to_owned)
}

fn set_cookie(response: &mut Response, value: &str, lives: i64) {
    let text = format!("{COOKIE}={value}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={lives}");
    if let Ok(value) = HeaderValue::from_str(&text) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
}

/// Whether an address is that of a listener on the machine of whoever follows it.
fn is_loopback(address: &str) -> bool {
    let Some(rest) = address.strip_prefix("http://") else {
        return false;
    };
    let Some((place, path)) = rest.split_once('/') else {
        return false;
    };
    let port = ["127.0.0.1:", "localhost:", "[::1]:"]
        .iter()
        .find_map(|host| place.strip_prefix(host));
    port.is_some_and(|port| port.parse::<u16>().is_ok())
        && path
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._~/?=&%".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_go_to_loopback_addresses_alone() {
        for good in [
            "http://127.0.0.1:4711/",
            "http://localhost:80/callback?a=b",
            "http://[::1]:9/x",
        ] {
            assert!(is_loopback(good), "{good}");
        }
        for bad in [
            "https://127.0.0.1:4711/",
            "http://127.0.0.1/",
            "http://127.0.0.1:4711",
            "http://127.0.0.1:4711@evil.example/",
            "http://127.0.0.1:x/",
            "http://localhost.evil.example:80/",
            "http://127.0.0.1:80/\r\nx",
            "http://127.0.0.1:80/#x",
            "javascript:alert(1)",
            "",
        ] {
            assert!(!is_loopback(bad), "{bad}");
        }
    }

    /// With HTTP/2, browsers send no `Host`: every browser's login was refused.
    #[test]
    fn a_form_comes_from_the_site_that_it_is_sent_to() {
        let check = |target: &str, host: Option<&str>, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            for (name, value) in [(header::HOST, host), (header::ORIGIN, origin)] {
                if let Some(value) = value {
                    headers.insert(name, HeaderValue::from_str(value).expect("a value"));
                }
            }
            check_origin(&target.parse().expect("a target"), &headers).is_ok()
        };
        let (path, absolute) = ("/login", "https://10.0.0.1:8443/login");
        let (host, origin) = (Some("10.0.0.1:8443"), Some("https://10.0.0.1:8443"));
        assert!(check(path, host, origin), "HTTP/1.1");
        assert!(check(absolute, None, origin), "HTTP/2");
        assert!(check(absolute, host, origin), "both, and they agree");
        assert!(
            check(path, host, None) && check(absolute, None, None),
            "no browser"
        );
        assert!(check("/login", Some("A.example"), Some("https://a.example:443")));

        assert!(!check(absolute, Some("evil.example"), origin), "they contradict");
        assert!(!check(
            absolute,
            Some("evil.example"),
            Some("https://evil.example")
        ));
        assert!(!check(path, None, origin), "no host at all");
        for foreign in [
            "https://evil.example",
            "https://10.0.0.1",
            "https://10.0.0.1:8443.evil.example",
            "https://10.0.0.1:8443/",
            "http://10.0.0.1:8443",
            "null",
            "",
        ] {
            assert!(!check(path, host, Some(foreign)), "{foreign}");
            assert!(!check(absolute, None, Some(foreign)), "{foreign}");
        }
        let mut twice = HeaderMap::new();
        for value in ["https://10.0.0.1:8443", "https://evil.example"] {
            twice.append(header::ORIGIN, HeaderValue::from_static(value));
        }
        assert!(check_origin(&absolute.parse().expect("a target"), &twice).is_err());
    }

    #[test]
    fn a_login_returns_to_pages_of_ours_alone() {
        assert_eq!(own_page("/oauth/authorize?x=1"), "/oauth/authorize?x=1");
        for elsewhere in [
            "",
            "https://evil.example/",
            "//evil.example/",
            "/oauth/authorize",
            "/passcode/../x",
        ] {
            assert_eq!(own_page(elsewhere), PASSCODE_PATH, "{elsewhere}");
        }
    }
}
