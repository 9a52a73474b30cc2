//! UAA's wire: the router and who the client of a request is.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{Extensions, HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post, put};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use stolos_base::Secret;
use stolos_base::input::{Json, Unreadable};

use crate::Inner;
use crate::browser;
use crate::db::{self, Client};
use crate::error::{Error, OAuthError};
use crate::grant::{Form, TokenReply};
use crate::lockout::{Kind, Subject};
use crate::names::shortened;
use crate::scim;
use crate::source::Source;

/// The largest request body: forms are small, whatever somebody sends.
const BODY_LIMIT: usize = 64 * 1024;
/// The header with which clients say that they have encoded name and secret before base64.
const ENCODED: &str = "x-cf-encoded-credentials";
/// What a client needs to have tokens of others checked.
const CHECK_AUTHORITY: &str = "uaa.resource";

type App = State<Arc<Inner>>;

/// The router of port 8443.
pub(crate) fn router(inner: Arc<Inner>) -> Router {
    Router::new()
        .route("/oauth/token", post(token).fallback(method_not_allowed))
        .route("/oauth/token/.well-known/openid-configuration", get(discovery))
        .route("/.well-known/openid-configuration", get(discovery))
        .route("/check_token", post(check_token).fallback(method_not_allowed))
        .route("/token_keys", get(token_keys))
        .route("/token_key", get(token_key))
        .route("/info", get(info))
        .route("/Users", get(scim::user_list).post(scim::user_create))
        .route(
            "/Users/{id}",
            get(scim::user_view)
                .patch(scim::user_update)
                .delete(scim::user_delete),
        )
        .route("/Users/{id}/status", patch(scim::user_status))
        .route("/Users/{id}/password", put(scim::password_change))
        .route("/Groups", get(scim::group_list).post(scim::group_create))
        .route(
            "/Groups/{name}",
            get(scim::group_view)
                .put(scim::group_update)
                .delete(scim::group_delete),
        )
        .route("/Groups/{name}/members", post(scim::member_add))
        .route("/Groups/{name}/members/{id}", delete(scim::member_remove))
        .route("/login", get(browser::login_page).post(browser::log_in))
        .route("/logout.do", get(browser::log_out))
        .route("/passcode", get(browser::passcode))
        .route("/oauth/authorize", get(browser::authorize))
        .route("/healthz", get(async || "ok\n"))
        .fallback(async || {
            let body = json!({"error": "not_found", "error_description": "There is no such path."});
            (StatusCode::NOT_FOUND, Json(body))
        })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(inner)
}

async fn method_not_allowed() -> Response {
    let body = json!({"error": "method_not_allowed", "error_description": "Only POST is answered here."});
    (
        StatusCode::METHOD_NOT_ALLOWED,
        [(header::ALLOW, "POST")],
        Json(body),
    )
        .into_response()
}

/// `POST /oauth/token`. Nothing is read from the query: credentials in addresses end in logs.
async fn token(
    State(app): App,
    source: Source,
    extensions: Extensions,
    headers: HeaderMap,
    form: Result<stolos_base::input::Form<Form>, Unreadable>,
) -> Result<Response, OAuthError> {
    let form = read_form(form)?;
    let client = app
        .client(
            &headers,
            form.client_id.as_deref(),
            form.client_secret.as_ref(),
            &source,
        )
        .await?;
    let reply: TokenReply = app.token(&client, form, &source).await?;
    stolos_base::http::signed_in(&extensions);
    let no_store = [(header::CACHE_CONTROL, "no-store"), (header::PRAGMA, "no-cache")];
    Ok((no_store, Json(reply)).into_response())
}

/// The form of `/check_token`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Check {
    token: String,
    scopes: Option<String>,
    client_id: Option<String>,
    client_secret: Option<Secret<String>>,
}

/// `POST /check_token`: the claims of a valid token.
async fn check_token(
    State(app): App,
    source: Source,
    headers: HeaderMap,
    form: Result<stolos_base::input::Form<Check>, Unreadable>,
) -> Result<Json<Value>, OAuthError> {
    let form = read_form(form)?;
    let client = app
        .client(
            &headers,
            form.client_id.as_deref(),
            form.client_secret.as_ref(),
            &source,
        )
        .await?;
    if !client.authorities.iter().any(|own| own == CHECK_AUTHORITY) {
        return Err(OAuthError::InsufficientScope(CHECK_AUTHORITY));
    }
    let invalid = |error: stolos_api::token::Error| match error {
        stolos_api::token::Error::Standing(error) => OAuthError::Internal(Error::Standing(error)),
        error => OAuthError::InvalidToken(error.to_string()),
    };
    let claims = app.verifier.verify(&form.token).await.map_err(invalid)?;
    let wanted = form.scopes.unwrap_or_default();
    let missing = wanted
        .split([',', ' '])
        .filter(|scope| !scope.is_empty())
        .any(|scope| !claims.scope.iter().any(|own| own == scope));
    if missing {
        return Err(OAuthError::InvalidScope(
            "Some requested scopes are missing".to_owned(),
        ));
    }
    let mut shown = stolos_api::token::peek(&form.token).map_err(invalid)?;
    // What the bearer has lost since then is not in it any more.
    for (name, scopes) in [("scope", &claims.scope), ("authorities", &claims.authorities)] {
        if shown.contains_key(name) {
            shown.insert(name.to_owned(), json!(scopes));
        }
    }
    Ok(Json(Value::Object(shown)))
}

async fn token_keys(State(app): App) -> Response {
    with_etag(&app, Json(app.signing.key_set()))
}

async fn token_key(State(app): App) -> Response {
    with_etag(&app, Json(app.signing.key()))
}

/// The key's id is made from the key, so it says whether anything has changed.
fn with_etag(app: &Inner, body: impl IntoResponse) -> Response {
    let mut response = body.into_response();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", app.signing.key().kid)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

async fn discovery(State(app): App) -> Json<Value> {
    let base = &app.external_url;
    Json(json!({
        "issuer": app.issuer,
        "authorization_endpoint": format!("{base}/oauth/authorize"),
        "token_endpoint": format!("{base}/oauth/token"),
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "jwks_uri": app.jku,
        "scopes_supported": ["openid", "roles"],
        "grant_types_supported": ["authorization_code", "password", "client_credentials", "refresh_token"],
        "code_challenge_methods_supported": ["S256"],
        "response_types_supported": ["code", "id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "claim_types_supported": ["normal"],
        "claims_supported": [
            "sub", "user_name", "origin", "iss", "auth_time", "aud", "client_id", "scope", "email", "roles",
        ],
        "claims_parameter_supported": false,
    }))
}

async fn info(State(app): App) -> Json<Value> {
    Json(information(&app))
}

/// What a program wants to know before anybody has logged in.
pub(crate) fn information(app: &Inner) -> Value {
    let base = &app.external_url;
    json!({
        "app": {"version": env!("CARGO_PKG_VERSION")},
        "links": {"uaa": base, "login": base},
        "prompts": {
            "username": ["text", "Username"],
            "password": ["password", "Password"],
        },
        "zone_name": "uaa",
        "entityID": base,
        "idpDefinitions": {},
    })
}

fn read_form<T>(form: Result<stolos_base::input::Form<T>, Unreadable>) -> Result<T, OAuthError> {
    form.map(|stolos_base::input::Form(form)| form)
        .map_err(|rejection| OAuthError::InvalidRequest(rejection.body_text()))
}

impl Inner {
    /// The client of a request: by Basic authentication, else by the form.
    async fn client(
        &self,
        headers: &HeaderMap,
        form_id: Option<&str>,
        form_secret: Option<&Secret<String>>,
        source: &Source,
    ) -> Result<Client, OAuthError> {
        let candidates = match basic(headers)? {
            Some((id, secret)) => {
                let is_encoded = headers
                    .get(ENCODED)
                    .is_some_and(|value| value.as_bytes() == b"true");
                let raw = (id.clone(), secret.clone());
                // Some clients say that they have encoded and have not, so the raw text counts too.
                match (is_encoded, decoded(&id), decoded(secret.expose())) {
                    (true, Some(id), Some(text)) if id != raw.0 || text != *raw.1.expose() => {
                        vec![(id, text.into()), raw]
                    }
                    _ => vec![raw],
                }
            }
            None => {
                let id = form_id.ok_or(OAuthError::InvalidClient)?;
                vec![(id.to_owned(), form_secret.cloned().unwrap_or_else(|| "".into()))]
            }
        };
        if let Some(form_id) = form_id
            && candidates.iter().all(|(id, _)| id != form_id)
        {
            return Err(OAuthError::InvalidClient);
        }
        for (id, secret) in candidates {
            if let Some(client) = self.check_client(&id, secret, source).await? {
                return Ok(client);
            }
        }
        Err(OAuthError::InvalidClient)
    }

    /// The client, if the secret is right. One without a secret is open to everybody who shows none.
    async fn check_client(
        &self,
        id: &str,
        secret: Secret<String>,
        source: &Source,
    ) -> Result<Option<Client>, OAuthError> {
        let client = db::client_by_id(&self.db, id).await?;
        if let Some(client) = &client
            && client.secret.is_none()
        {
            return Ok(client_if(secret.expose().is_empty(), client));
        }
        let subject = Subject::new(Kind::Client, id, source);
        let hash = client.as_ref().and_then(|client| client.secret.clone());
        let fits = self.attempt(&subject, secret, hash).await?;
        if !fits {
            tracing::warn!(client = ?shortened(id), %source, "refused a client: bad credentials");
        }
        Ok(client.filter(|_| fits))
    }
}

fn client_if(fits: bool, client: &Client) -> Option<Client> {
    fits.then(|| client.clone())
}

/// Name and secret of a Basic header.
fn basic(headers: &HeaderMap) -> Result<Option<(String, Secret<String>)>, OAuthError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    let text = value.to_str().map_err(|_| OAuthError::InvalidClient)?;
    let (scheme, encoded) = text.split_once(' ').ok_or(OAuthError::InvalidClient)?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(OAuthError::InvalidClient);
    }
    let bytes = STANDARD
        .decode(encoded.trim())
        .map_err(|_| OAuthError::InvalidClient)?;
    let text = String::from_utf8(bytes).map_err(|_| OAuthError::InvalidClient)?;
    let (id, secret) = text.split_once(':').ok_or(OAuthError::InvalidClient)?;
    Ok(Some((id.to_owned(), secret.into())))
}

/// Undoes URL encoding; `None` where the text is none.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let (digits, tail) = rest.split_at_checked(2)?;
                bytes.extend(hex::decode(digits).ok()?);
                rest = tail;
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).ok()
}
