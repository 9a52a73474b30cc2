//! The client of the token service (UAA's wire).

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::{Method, RequestBuilder};
use serde::{Deserialize, Serialize};
use stolos_base::ids::random_hex;
use stolos_base::{Clock, Secret};
use tokio::sync::Mutex;

use crate::http::{self, Error};
use crate::token::KeySet;

/// The client that PKS's command line uses; its secret is empty.
pub const PKS_CLI: &str = "pks_cli";
/// The client of kubeconfigs; its secret is empty too.
pub const PKS_CLUSTER_CLIENT: &str = "pks_cluster_client";
/// What the audience of one cluster's tokens begins with; its id follows.
pub const CLUSTER_AUDIENCE: &str = "cluster/";

/// The audience of the identity tokens that the cluster with an id takes: what a person shows one cluster is worth nothing at another.
#[must_use]
pub fn cluster_audience(id: &str) -> String {
    format!("{CLUSTER_AUDIENCE}{id}")
}

/// How the message of a refusal begins while a name is locked after wrong passwords: UAA's words. When it ends is said after them.
pub const LOCKED: &str = "Your account has been locked because of too many failed attempts to login.";
/// The message of a refusal because the old password that goes with a new one is wrong: UAA's words. The session is not.
pub const WRONG_PASSWORD: &str = "Old password is incorrect";
/// A cached token is renewed when it has less than this left, so that it does not end on its way.
const RENEW_BEFORE: Duration = Duration::from_secs(30);

/// The answer of `/oauth/token`.
#[derive(Clone, Debug, Deserialize)]
pub struct Tokens {
    /// The access token.
    pub access_token: Secret<String>,
    /// `bearer`
    #[serde(default)]
    pub token_type: String,
    /// Gets the next access token; absent for clients on their own.
    #[serde(default)]
    pub refresh_token: Option<Secret<String>>,
    /// OpenID Connect.
    #[serde(default)]
    pub id_token: Option<Secret<String>>,
    /// Seconds.
    pub expires_in: u64,
    /// Scopes, joined by spaces.
    #[serde(default)]
    pub scope: String,
    /// The access token's id.
    #[serde(default)]
    pub jti: String,
}

/// `/info`: what a client wants to know before anybody has logged in.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Info {
    /// The service's version.
    #[serde(default)]
    pub app: App,
    /// Addresses: `uaa`, `login`.
    #[serde(default)]
    pub links: indexmap::IndexMap<String, String>,
    /// What to ask a person for: kind and text by field.
    #[serde(default)]
    pub prompts: indexmap::IndexMap<String, (String, String)>,
    /// `uaa`
    #[serde(default)]
    pub zone_name: String,
}

/// `app` of [`Info`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct App {
    /// Version.
    #[serde(default)]
    pub version: String,
}

/// A user, as SCIM has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// Id.
    pub id: String,
    /// What the person types to log in.
    pub user_name: String,
    /// Whether the person may log in.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub active: bool,
    /// Addresses.
    #[serde(default)]
    pub emails: Vec<Email>,
    /// Groups; the scopes are among them.
    #[serde(default)]
    pub groups: Vec<Group>,
}

const fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
const fn is_yes(value: &bool) -> bool {
    *value
}

/// An address of a [`User`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Email {
    /// The address.
    pub value: String,
}

/// A group of a [`User`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    pub display: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UserPage {
    resources: Vec<User>,
    #[serde(default)]
    total_results: usize,
}

/// Users that a page may have; UAA's most.
const USERS_AT_ONCE: usize = 500;

/// What a command line keeps to itself while a browser fetches a code for it (RFC 7636): whoever else sees the code can do nothing with it.
#[derive(Debug)]
pub struct Challenge {
    verifier: Secret<String>,
    state: String,
}

impl Challenge {
    /// A new one.
    #[must_use]
    pub fn random() -> Self {
        Self {
            verifier: random_hex(32).into(),
            state: random_hex(16),
        }
    }

    /// What comes back with the code; a code with another state was not asked for here.
    #[must_use]
    pub fn state(&self) -> &str {
        &self.state
    }

    fn text(&self) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, self.verifier.expose().as_bytes());
        URL_SAFE_NO_PAD.encode(digest)
    }
}

/// A client of one token service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    base: String,
    http: reqwest::Client,
}

impl Client {
    /// `base` is the service's base address, `https://HOST:8443`.
    #[must_use]
    pub fn new(base: &str, http: reqwest::Client) -> Self {
        Self {
            base: base.trim_end_matches('/').to_owned(),
            http,
        }
    }

    /// The base address.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// A person's tokens by name and password, through a client with an empty secret ([`PKS_CLI`]).
    ///
    /// # Errors
    /// A refusal with code `unauthorized` when the name or password is wrong.
    pub async fn password(
        &self,
        client: &str,
        user: &str,
        password: &Secret<String>,
    ) -> Result<Tokens, Error> {
        self.token(
            client,
            &Secret::from(""),
            &[
                ("grant_type", "password"),
                ("username", user),
                ("password", password.expose()),
            ],
        )
        .await
    }

    /// A person's tokens by the one-time code that the page `/passcode` shows.
    ///
    /// # Errors
    /// A refusal with code `unauthorized` when the code is wrong, used or too old.
    pub async fn passcode(&self, client: &str, code: &Secret<String>) -> Result<Tokens, Error> {
        let form = [("grant_type", "password"), ("passcode", code.expose().as_str())];
        self.token(client, &Secret::from(""), &form).await
    }

    /// A person's tokens by the code that a browser brought to `redirect`.
    ///
    /// # Errors
    /// A refusal with code `invalid_grant` when the code is wrong, used or too old.
    pub async fn authorization_code(
        &self,
        client: &str,
        code: &Secret<String>,
        redirect: &str,
        challenge: &Challenge,
    ) -> Result<Tokens, Error> {
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code.expose().as_str()),
            ("redirect_uri", redirect),
            ("code_verifier", challenge.verifier.expose()),
        ];
        self.token(client, &Secret::from(""), &form).await
    }

    /// Where a browser gets a code for `client` that it then brings to `redirect`, an address of this machine's loopback interface.
    #[must_use]
    pub fn authorize_url(&self, client: &str, redirect: &str, challenge: &Challenge) -> String {
        format!(
            "{}/oauth/authorize?response_type=code&client_id={}&redirect_uri={}&state={}&code_challenge={}&code_challenge_method=S256",
            self.base,
            http::encoded(client),
            http::encoded(redirect),
            challenge.state,
            challenge.text(),
        )
    }

    /// The page where a person gets a one-time code.
    #[must_use]
    pub fn passcode_url(&self) -> String {
        format!("{}/passcode", self.base)
    }

    /// A client's own token.
    ///
    /// # Errors
    /// A refusal with code `invalid_client` (or `unauthorized`) when the secret is wrong.
    pub async fn client_credentials(&self, client: &str, secret: &Secret<String>) -> Result<Tokens, Error> {
        self.token(client, secret, &[("grant_type", "client_credentials")])
            .await
    }

    /// New tokens for a refresh token; the answer may hold a new refresh token too.
    ///
    /// # Errors
    /// A refusal with code `invalid_token` when one has to log in again.
    pub async fn refresh(&self, client: &str, refresh_token: &Secret<String>) -> Result<Tokens, Error> {
        self.token(
            client,
            &Secret::from(""),
            &[
                ("grant_type", "refresh_token"),
                ("refresh_token", refresh_token.expose()),
            ],
        )
        .await
    }

    /// New tokens of the same log-in, which is for one audience from then on: it, and whatever is renewed with it, is worth nothing elsewhere.
    ///
    /// # Errors
    /// As [`Client::refresh`], and a refusal with code `invalid_target` when the log-in is for another audience, or there is no such.
    pub async fn narrow(
        &self,
        client: &str,
        refresh_token: &Secret<String>,
        audience: &str,
    ) -> Result<Tokens, Error> {
        let form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token.expose().as_str()),
            ("audience", audience),
        ];
        self.token(client, &Secret::from(""), &form).await
    }

    async fn token(
        &self,
        client: &str,
        secret: &Secret<String>,
        form: &[(&str, &str)],
    ) -> Result<Tokens, Error> {
        let url = format!("{}/oauth/token", self.base);
        let request = self
            .http
            .post(url)
            .basic_auth(client, Some(secret.expose()))
            .header("Accept", "application/json")
            .form(form);
        http::json(request).await
    }

    /// All users, with a token of the scope `scim.read`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn users(&self, token: &Secret<String>) -> Result<Vec<User>, Error> {
        let mut users: Vec<User> = Vec::new();
        loop {
            // Counted from 1.
            let (start, count) = ((users.len() + 1).to_string(), USERS_AT_ONCE.to_string());
            let query = [("startIndex", start.as_str()), ("count", count.as_str())];
            let page = self.user_page(token, &query).await?;
            let (is_empty, total) = (page.resources.is_empty(), page.total_results);
            users.extend(page.resources);
            if is_empty || users.len() >= total {
                return Ok(users);
            }
        }
    }

    /// The user of a name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn user(&self, token: &Secret<String>, name: &str) -> Result<Option<User>, Error> {
        let filter = format!(
            "userName eq {} and origin eq \"uaa\"",
            serde_json::Value::from(name)
        );
        let mut page = self.user_page(token, &[("filter", &filter)]).await?;
        Ok(page.resources.pop())
    }

    /// The user of an id.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn user_by_id(&self, token: &Secret<String>, id: &str) -> Result<Option<User>, Error> {
        let path = format!("/Users/{}", http::encoded(id));
        match http::json(self.scim(Method::GET, &path, token)).await {
            Ok(user) => Ok(Some(user)),
            Err(Error::Refused(refusal)) if refusal.status == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn user_page(&self, token: &Secret<String>, query: &[(&str, &str)]) -> Result<UserPage, Error> {
        http::json(self.scim(Method::GET, "/Users", token).query(query)).await
    }

    /// Makes a user, with a token of the scope `scim.write`.
    ///
    /// # Errors
    /// A refusal with status 409 when the name is taken.
    pub async fn create_user(
        &self,
        token: &Secret<String>,
        name: &str,
        email: Option<&str>,
        password: &Secret<String>,
    ) -> Result<User, Error> {
        let emails: Vec<_> = email
            .iter()
            .map(|email| serde_json::json!({"value": email}))
            .collect();
        let body = serde_json::json!({"userName": name, "password": password.expose(), "emails": emails});
        http::json(self.scim(Method::POST, "/Users", token).json(&body)).await
    }

    /// Deletes a user.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_user(&self, token: &Secret<String>, id: &str) -> Result<(), Error> {
        let path = format!("/Users/{id}");
        http::send(self.scim(Method::DELETE, &path, token))
            .await
            .map(drop)
    }

    /// Puts a user into a group, or takes the user out of it.
    ///
    /// # Errors
    /// A refusal with status 404 when there is no such group.
    pub async fn set_member(
        &self,
        token: &Secret<String>,
        group: &str,
        id: &str,
        is_member: bool,
    ) -> Result<(), Error> {
        let group = http::encoded(group);
        let request = if is_member {
            let body = serde_json::json!({"value": id, "type": "USER", "origin": "uaa"});
            self.scim(Method::POST, &format!("/Groups/{group}/members"), token)
                .json(&body)
        } else {
            self.scim(Method::DELETE, &format!("/Groups/{group}/members/{id}"), token)
        };
        http::send(request).await.map(drop)
    }

    /// Makes a group.
    ///
    /// # Errors
    /// A refusal with status 409 when there is one of that name.
    pub async fn create_group(&self, token: &Secret<String>, name: &str) -> Result<(), Error> {
        let body = serde_json::json!({"displayName": name});
        http::send(self.scim(Method::POST, "/Groups", token).json(&body))
            .await
            .map(drop)
    }

    /// Deletes a group.
    ///
    /// # Errors
    /// A refusal with status 404 when there is none of that name, 400 when it is a role of the installation.
    pub async fn delete_group(&self, token: &Secret<String>, name: &str) -> Result<(), Error> {
        let path = format!("/Groups/{}", http::encoded(name));
        http::send(self.scim(Method::DELETE, &path, token))
            .await
            .map(drop)
    }

    /// Changes a user's password: the own one with `old`, somebody else's without it and with a token of the scope `scim.write`. All sessions and
    /// tokens of the user end, the given one too when it is the user's.
    ///
    /// # Errors
    /// A refusal with status 401 and [`WRONG_PASSWORD`] or [`LOCKED`] when the old one is not right, 400 or 422 when the new one is not taken.
    pub async fn set_password(
        &self,
        token: &Secret<String>,
        id: &str,
        old: Option<&Secret<String>>,
        new: &Secret<String>,
    ) -> Result<(), Error> {
        let mut body = serde_json::json!({"password": new.expose()});
        if let Some(old) = old {
            body["oldPassword"] = old.expose().as_str().into();
        }
        let path = format!("/Users/{}/password", http::encoded(id));
        let request = self.scim(Method::PUT, &path, token).json(&body);
        http::send(request).await.map(drop)
    }

    /// Opens an account that wrong passwords have locked, wherever they came from.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn unlock_user(&self, token: &Secret<String>, id: &str) -> Result<(), Error> {
        let path = format!("/Users/{}/status", http::encoded(id));
        let request = self.scim(Method::PATCH, &path, token);
        http::send(request.json(&serde_json::json!({"locked": false})))
            .await
            .map(drop)
    }

    fn scim(&self, method: Method, path: &str, token: &Secret<String>) -> RequestBuilder {
        self.http
            .request(method, format!("{}{path}", self.base))
            .bearer_auth(token.expose())
            .header("Accept", "application/json")
    }

    /// The keys that verify tokens.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn token_keys(&self) -> Result<KeySet, Error> {
        http::json(self.http.get(format!("{}/token_keys", self.base))).await
    }

    /// What the service says about itself.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn info(&self) -> Result<Info, Error> {
        let request = self.http.get(format!("{}/info", self.base));
        http::json(request.header("Accept", "application/json")).await
    }
}

/// A client's own token, kept and renewed: for a service that calls another. Cheap to clone.
#[derive(Clone)]
pub struct TokenSource(Arc<Source>);

struct Source {
    identity: Client,
    client: String,
    secret: Secret<String>,
    clock: Clock,
    kept: Mutex<Option<(i64, Secret<String>)>>,
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSource")
            .field("client", &self.0.client)
            .finish_non_exhaustive()
    }
}

/// For [`crate::director::Client`].
impl crate::director::Tokens for TokenSource {
    fn token(
        &self,
    ) -> Pin<Box<dyn Future<Output = Result<Secret<String>, crate::director::TokenError>> + Send + '_>> {
        Box::pin(async { Self::token(self).await.map_err(Into::into) })
    }
}

impl TokenSource {
    /// Tokens of the given client.
    #[must_use]
    pub fn new(identity: Client, client: impl Into<String>, secret: Secret<String>, clock: Clock) -> Self {
        Self(Arc::new(Source {
            identity,
            client: client.into(),
            secret,
            clock,
            kept: Mutex::default(),
        }))
    }

    /// A token that lives for half a minute at least. Callers at the same time wait for one request.
    ///
    /// # Errors
    /// As [`Client::client_credentials`].
    pub async fn token(&self) -> Result<Secret<String>, Error> {
        let mut kept = self.0.kept.lock().await;
        let now = self.0.clock.now_millis();
        if let Some((until, token)) = &*kept
            && now < *until
        {
            return Ok(token.clone());
        }
        let tokens = self
            .0
            .identity
            .client_credentials(&self.0.client, &self.0.secret)
            .await?;
        let lives = Duration::from_secs(tokens.expires_in).saturating_sub(RENEW_BEFORE);
        let until = now.saturating_add(i64::try_from(lives.as_millis()).unwrap_or(i64::MAX));
        *kept = Some((until, tokens.access_token.clone()));
        Ok(tokens.access_token)
    }

    /// Forgets the kept token: after a service has answered 401 to it.
    pub async fn forget(&self) {
        *self.0.kept.lock().await = None;
    }
}
