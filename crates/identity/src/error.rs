//! What can go wrong, in two kinds: ours, and OAuth's, which have UAA's words and statuses.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use stolos_api::identity::LOCKED;
use stolos_base::chain;
use stolos_base::error::{Class, Classify};
use stolos_base::input::Json;

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The service cannot be started or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The signing key is no RSA key pair.
    #[error("the key that signs tokens is not usable")]
    SigningKey(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A password cannot be hashed.
    #[error("failed to hash a password")]
    Hash(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// More passwords wait to be checked than is sensible.
    #[error("too many logins at once")]
    Busy,
    /// There is no such user.
    #[error("user `{0}` does not exist")]
    NoUser(String),
    /// The password is too short or too long.
    #[error("a password has 8 to 1024 bytes")]
    PasswordLength,
    /// A configured client makes no sense.
    #[error("client `{client}` is not well configured: {rule}")]
    Client {
        /// Which.
        client: String,
        /// The broken rule.
        rule: &'static str,
    },
    /// A stored value does not read as what it should be.
    #[error("the stored {0} is not readable")]
    Corrupt(&'static str),
    /// Nobody can tell whether a token still counts.
    #[error("failed to find out whether a token has been revoked")]
    Standing(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database.
    #[error(transparent)]
    Store(#[from] stolos_store::Error),
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::SigningKey(_) | Self::Hash(_) | Self::Corrupt(_) => Class::Internal,
            Self::Busy | Self::Standing(_) => Class::Unavailable,
            Self::NoUser(_) => Class::NotFound,
            Self::PasswordLength | Self::Client { .. } => Class::User,
            Self::Store(error) => error.class(),
        }
    }

    fn retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.retryable(),
            other => other.class() == Class::Unavailable,
        }
    }
}

impl Error {
    /// Writes into the log that `what` failed, and gives the status of the answer: what is over in a moment is worth another attempt.
    pub(crate) fn report(&self, what: &str) -> StatusCode {
        if self.retryable() {
            tracing::warn!(error = %chain(self), "{what} failed for now");
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            tracing::error!(error = %chain(self), "{what} failed");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

/// An error of the token endpoints.
#[derive(Debug)]
pub(crate) enum OAuthError {
    /// The client is not known or its secret is wrong: one answer for both.
    InvalidClient,
    /// The user is not known or the password is wrong: one answer for both.
    BadCredentials,
    /// Too many wrong passwords for this name from this source; the next one is looked at after this time (milliseconds).
    Locked { until: i64 },
    /// The client may not use this grant.
    UnauthorizedGrant(String),
    /// Nobody may.
    UnsupportedGrant(String),
    /// The request is not complete or contradicts itself.
    InvalidRequest(String),
    /// Nothing of what was asked for may be had.
    InvalidScope(String),
    /// A refresh token is not valid any more; one has to log in again.
    InvalidRefreshToken,
    /// A one-time code is not valid any more.
    InvalidPasscode,
    /// A code of a browser is not valid any more, or was not given to this client.
    InvalidCode,
    /// A token to be checked is not valid. Status 400, unlike the others of this name.
    InvalidToken(String),
    /// The caller lacks a scope.
    InsufficientScope(&'static str),
    /// Ours.
    Internal(Error),
}

impl From<Error> for OAuthError {
    fn from(error: Error) -> Self {
        Self::Internal(error)
    }
}

impl From<stolos_store::Error> for OAuthError {
    fn from(error: stolos_store::Error) -> Self {
        Self::Internal(error.into())
    }
}

impl IntoResponse for OAuthError {
    fn into_response(self) -> Response {
        let (status, code, description) = match self {
            Self::InvalidClient => (401, "invalid_client", "Bad credentials".to_owned()),
            Self::BadCredentials => (401, "unauthorized", "Bad credentials".to_owned()),
            Self::Locked { until } => (
                401,
                "unauthorized",
                format!("{LOCKED} {}", crate::lockout::again(until)),
            ),
            Self::UnauthorizedGrant(grant) => (
                401,
                "unauthorized_client",
                format!("Unauthorized grant type: {grant}"),
            ),
            Self::UnsupportedGrant(grant) => (
                400,
                "unsupported_grant_type",
                format!("Unsupported grant type: {grant}"),
            ),
            Self::InvalidRequest(text) => (400, "invalid_request", text),
            Self::InvalidScope(text) => (400, "invalid_scope", text),
            Self::InvalidRefreshToken => (
                401,
                "invalid_token",
                "The refresh token is not valid or has expired. Log in again.".to_owned(),
            ),
            Self::InvalidPasscode => (401, "unauthorized", "Invalid passcode".to_owned()),
            Self::InvalidCode => (
                400,
                "invalid_grant",
                "The code is not valid or has expired. Log in again.".to_owned(),
            ),
            Self::InvalidToken(text) => (400, "invalid_token", text),
            Self::InsufficientScope(scope) => (
                403,
                "insufficient_scope",
                format!("Insufficient scope: {scope} is needed"),
            ),
            Self::Internal(error) => match error.report("a token request") {
                StatusCode::SERVICE_UNAVAILABLE => (
                    503,
                    "temporarily_unavailable",
                    "The service is busy. Try again.".to_owned(),
                ),
                _ => (500, "server_error", "An internal error occurred.".to_owned()),
            },
        };
        let status = StatusCode::from_u16(status).expect("the statuses above exist");
        let body = Json(json!({"error": code, "error_description": description}));
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if code == "invalid_client" {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static(
                    r#"Basic realm="UAA/client", error="unauthorized", error_description="Bad credentials""#,
                ),
            );
        }
        response
    }
}
