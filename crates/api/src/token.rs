//! Access tokens: what UAA puts into them, and how a service verifies one.
//!
//! Only RS256 with a key of the key set is accepted, whatever a token's header says. Time is the [`Clock`]'s. A signature says what was so when
//! the token was issued; whether that is still so is asked of a [`Standing`].

#[cfg(feature = "testing")]
pub mod testing;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use reqwest::header::{AUTHORIZATION, HeaderMap};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use stolos_base::Clock;
use stolos_base::error::{Class, Classify};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::http;

/// How far the clocks of issuer and verifier may differ.
const LEEWAY_SECONDS: i64 = 5;
/// A key set is fetched at most so often: an unknown key id in a token costs its sender nothing.
const REFETCH_PAUSE: Duration = Duration::from_secs(10);
/// The largest token that is looked at.
const TOKEN_LIMIT: usize = 16 * 1024;

/// Somebody with a verified token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The user's name, or the client's id where there is no user: the owner of what it makes.
    pub name: String,
    /// The user's id; absent for a client on its own.
    pub user_id: Option<String>,
    /// The client that got the token.
    pub client: String,
    /// What the token allows.
    pub scopes: Vec<String>,
}

impl Actor {
    /// Whether the token has the scope.
    #[must_use]
    pub fn has(&self, scope: &str) -> bool {
        self.scopes.iter().any(|own| own == scope)
    }

    /// Whether the token has one of the scopes.
    #[must_use]
    pub fn has_any(&self, scopes: &[&str]) -> bool {
        scopes.iter().any(|scope| self.has(scope))
    }

    /// Checks for one of the scopes.
    ///
    /// # Errors
    /// [`Error::Scope`].
    pub fn require_any(&self, scopes: &[&str]) -> Result<(), Error> {
        if self.has_any(scopes) {
            return Ok(());
        }
        Err(Error::Scope {
            needed: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        })
    }
}

/// The claims of an access token as UAA writes them. Unknown ones are ignored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    /// Unique id.
    #[serde(default)]
    pub jti: String,
    /// User id, or client id where there is no user.
    #[serde(default)]
    pub sub: String,
    /// Only of a client on its own: the same as `scope`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<String>,
    /// What it allows.
    #[serde(default)]
    pub scope: Vec<String>,
    /// The client.
    #[serde(default)]
    pub client_id: String,
    /// The client again.
    #[serde(default)]
    pub cid: String,
    /// And again.
    #[serde(default)]
    pub azp: String,
    /// How it was got.
    #[serde(default)]
    pub grant_type: String,
    /// The user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// Where the user comes from: `uaa`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// The user's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_name: Option<String>,
    /// The user's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// When the user showed a password; seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_time: Option<i64>,
    /// Changes with the client's secret and the user's password: see [`Standing`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rev_sig: String,
    /// Issued at; seconds.
    #[serde(default)]
    pub iat: i64,
    /// Expires at; seconds.
    pub exp: i64,
    /// Not before; seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    /// `<base>/oauth/token`.
    #[serde(default)]
    pub iss: String,
    /// Zone.
    #[serde(default)]
    pub zid: String,
    /// For whom: of each scope what is before its last dot, and the client.
    #[serde(default, deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    /// Groups, in an identity token: read by kube-apiserver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<String>>,
}

impl Claims {
    /// Who it is.
    #[must_use]
    pub fn actor(&self) -> Actor {
        let client = [&self.client_id, &self.cid, &self.sub]
            .into_iter()
            .find(|text| !text.is_empty())
            .cloned()
            .unwrap_or_default();
        Actor {
            name: self.user_name.clone().unwrap_or_else(|| client.clone()),
            user_id: self.user_id.clone(),
            client,
            scopes: self.scope.clone(),
        }
    }
}

/// `aud` is a list from UAA, but one word in tokens of others.
fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::One(one) => vec![one],
        Either::Many(many) => many,
    })
}

/// The answer of `/token_keys`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySet {
    /// The keys.
    pub keys: Vec<Key>,
}

/// One verification key as UAA shows it: a JWK with the PEM text beside it, which uaac, BOSH and CredHub read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// `RSA`
    pub kty: String,
    /// Exponent, base64url.
    #[serde(default)]
    pub e: String,
    /// `sig`
    #[serde(rename = "use", default)]
    pub usage: String,
    /// Id.
    #[serde(default)]
    pub kid: String,
    /// `RS256`
    #[serde(default)]
    pub alg: String,
    /// PEM.
    #[serde(default)]
    pub value: String,
    /// Modulus, base64url.
    #[serde(default)]
    pub n: String,
}

/// A token was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is none.
    #[error("there is no bearer token in the request")]
    Missing,
    /// It is no token of ours: garbage, another algorithm, a wrong signature, an unknown key.
    #[error("the access token is not valid")]
    Invalid(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It was valid.
    #[error("the access token has expired")]
    Expired,
    /// It was valid: its user or client is gone, or has another password or secret now.
    #[error("the access token has been revoked")]
    Revoked,
    /// Somebody else issued it.
    #[error("the access token was issued by `{issuer}`, not by `{expected}`")]
    Issuer {
        /// Who.
        issuer: String,
        /// Who should have.
        expected: String,
    },
    /// It is valid but does not allow this.
    #[error("the access token has none of the scopes {}", .needed.join(", "))]
    Scope {
        /// One of these would do.
        needed: Vec<String>,
    },
    /// The keys cannot be had, so nobody can tell.
    #[error("failed to get the keys that verify tokens")]
    Keys(#[source] http::Error),
    /// Whether it has been revoked cannot be found out, so nobody can tell.
    #[error("failed to find out whether the access token has been revoked")]
    Standing(#[source] StandingError),
}

/// Why it cannot be found out whether a token still counts.
pub type StandingError = Box<dyn std::error::Error + Send + Sync>;

/// Knows whether a token that was issued still counts: the issuer, which has the users.
pub trait Standing: Send + Sync {
    /// What the bearer of a token may do at present; `None` when the token is void.
    ///
    /// Expected flow: called for each request with a token that is otherwise valid, so an answer may be some seconds old.
    /// Guarantees: a change counts within half a minute, in each process, whatever else fails.
    ///
    /// # Errors
    /// When nobody can tell.
    fn scopes<'a>(&'a self, claims: &'a Claims) -> BoxFuture<'a, Result<Option<Vec<String>>, StandingError>>;
}

impl Error {
    /// UAA's word for it, also in `WWW-Authenticate: Bearer error="…"`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing => "unauthorized",
            Self::Invalid(_) | Self::Issuer { .. } | Self::Expired | Self::Revoked => "invalid_token",
            Self::Scope { .. } => "insufficient_scope",
            Self::Keys(_) | Self::Standing(_) => "temporarily_unavailable",
        }
    }
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Missing | Self::Invalid(_) | Self::Expired | Self::Revoked | Self::Issuer { .. } => {
                Class::Unauthenticated
            }
            Self::Scope { .. } => Class::Denied,
            Self::Keys(_) | Self::Standing(_) => Class::Unavailable,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Missing | Self::Expired | Self::Revoked => vec!["Log in again.".to_owned()],
            _ => Vec::new(),
        }
    }
}

/// Verifies tokens of one issuer. Cheap to clone.
#[derive(Clone)]
pub struct Verifier {
    inner: Arc<Inner>,
    standing: Option<Arc<dyn Standing>>,
}

struct Inner {
    issuer: String,
    clock: Clock,
    keys: Keys,
}

enum Keys {
    Fixed(Vec<Known>),
    Fetched {
        url: String,
        client: reqwest::Client,
        cache: Mutex<Cache>,
    },
}

#[derive(Default)]
struct Cache {
    keys: Vec<Known>,
    asked: Option<Instant>,
}

#[derive(Clone)]
struct Known {
    kid: String,
    key: DecodingKey,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("issuer", &self.inner.issuer)
            .finish_non_exhaustive()
    }
}

impl Verifier {
    /// With keys that are known; for services in one process with the issuer.
    ///
    /// # Errors
    /// [`Error::Invalid`] when a key cannot be read.
    pub fn fixed(issuer: impl Into<String>, keys: &KeySet, clock: Clock) -> Result<Self, Error> {
        Ok(Self::new(issuer, clock, Keys::Fixed(read(keys)?)))
    }

    /// With the keys that `<base>/token_keys` gives, fetched when a token names one that is not known. `base` is the
    /// issuer's base address; tokens must have been issued by `<base>/oauth/token`.
    #[must_use]
    pub fn remote(base: &str, client: reqwest::Client, clock: Clock) -> Self {
        let base = base.trim_end_matches('/');
        let keys = Keys::Fetched {
            url: format!("{base}/token_keys"),
            client,
            cache: Mutex::default(),
        };
        Self::new(format!("{base}/oauth/token"), clock, keys)
    }

    fn new(issuer: impl Into<String>, clock: Clock, keys: Keys) -> Self {
        Self {
            inner: Arc::new(Inner {
                issuer: issuer.into(),
                clock,
                keys,
            }),
            standing: None,
        }
    }

    /// The same, and tokens count only as long as `standing` says so. Without it they count until they end.
    #[must_use]
    pub fn with_standing(self, standing: Arc<dyn Standing>) -> Self {
        Self {
            standing: Some(standing),
            ..self
        }
    }

    /// Who sent the request, by its bearer token.
    ///
    /// # Errors
    /// See [`Error`]; all but [`Error::Keys`] and [`Error::Standing`] are the caller's.
    pub async fn actor(&self, headers: &HeaderMap) -> Result<Actor, Error> {
        self.verify(bearer(headers)?).await.map(|claims| claims.actor())
    }

    /// The claims of a token that is valid now. `scope` (and `authorities`) are those that its bearer still has.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn verify(&self, token: &str) -> Result<Claims, Error> {
        let mut claims = self.read(token).await?;
        if let Some(standing) = &self.standing {
            let scopes = standing.scopes(&claims).await.map_err(Error::Standing)?;
            let scopes = scopes.ok_or(Error::Revoked)?;
            claims.scope.retain(|scope| scopes.contains(scope));
            claims.authorities.retain(|scope| scopes.contains(scope));
        }
        Ok(claims)
    }

    /// The claims of a token that was issued by the issuer and has not ended.
    async fn read(&self, token: &str) -> Result<Claims, Error> {
        if token.len() > TOKEN_LIMIT {
            return Err(invalid("it is too long"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(invalid)?;
        if header.alg != Algorithm::RS256 {
            return Err(invalid("it is not signed with RS256"));
        }
        let key = self.key(header.kid.as_deref()).await?;
        let mut validation = Validation::new(Algorithm::RS256);
        // Times are checked below, by our clock; an audience is a matter of scopes with UAA.
        validation.validate_exp = false;
        validation.validate_aud = false;
        let claims: Claims = jsonwebtoken::decode::<Claims>(token, &key, &validation)
            .map_err(invalid)?
            .claims;
        if claims.iss != self.inner.issuer {
            return Err(Error::Issuer {
                issuer: claims.iss,
                expected: self.inner.issuer.clone(),
            });
        }
        let now = self.inner.clock.now().as_second();
        if claims.exp.saturating_add(LEEWAY_SECONDS) <= now {
            return Err(Error::Expired);
        }
        let begins = claims.nbf.unwrap_or(claims.iat).max(claims.iat);
        if begins > now.saturating_add(LEEWAY_SECONDS) {
            return Err(invalid("it is not valid yet"));
        }
        Ok(claims)
    }

    async fn key(&self, kid: Option<&str>) -> Result<DecodingKey, Error> {
        let (url, client, cache) = match &self.inner.keys {
            Keys::Fixed(keys) => return pick(keys, kid).ok_or_else(|| invalid("its key is not known")),
            Keys::Fetched { url, client, cache } => (url, client, cache),
        };
        let mut cache = cache.lock().await;
        if let Some(key) = pick(&cache.keys, kid) {
            return Ok(key);
        }
        if cache.asked.is_some_and(|asked| asked.elapsed() < REFETCH_PAUSE) && !cache.keys.is_empty() {
            return Err(invalid("its key is not known"));
        }
        let keys: KeySet = http::json(client.get(url)).await.map_err(Error::Keys)?;
        cache.asked = Some(Instant::now());
        cache.keys = read(&keys)?;
        pick(&cache.keys, kid).ok_or_else(|| invalid("its key is not known"))
    }
}

/// The key by its id; without an id the only one.
fn pick(keys: &[Known], kid: Option<&str>) -> Option<DecodingKey> {
    let known = match kid {
        Some(kid) => keys.iter().find(|key| key.kid == kid),
        None if keys.len() == 1 => keys.first(),
        None => None,
    };
    known.map(|known| known.key.clone())
}

/// RSA signature keys; others are not for us.
fn read(set: &KeySet) -> Result<Vec<Known>, Error> {
    set.keys
        .iter()
        .filter(|key| key.kty == "RSA" && matches!(key.alg.as_str(), "" | "RS256"))
        .map(|key| {
            Ok(Known {
                kid: key.kid.clone(),
                key: DecodingKey::from_rsa_components(&key.n, &key.e).map_err(invalid)?,
            })
        })
        .collect()
}

fn invalid(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Invalid(source.into())
}

/// The bearer token of a request.
///
/// # Errors
/// [`Error::Missing`] when there is no such header, or one of another scheme.
pub fn bearer(headers: &HeaderMap) -> Result<&str, Error> {
    let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, token) = value
        .and_then(|value| value.split_once(' '))
        .ok_or(Error::Missing)?;
    let token = token.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() {
        Ok(token)
    } else {
        Err(Error::Missing)
    }
}

/// Reads a token's claims without verifying anything: for a client that wants to know when its own token ends.
///
/// # Errors
/// [`Error::Invalid`] when it is no token.
pub fn peek(token: &str) -> Result<Map<String, Value>, Error> {
    jsonwebtoken::dangerous::insecure_decode_claims(token).map_err(invalid)
}
