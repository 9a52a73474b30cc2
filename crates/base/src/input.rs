//! What requests bring: JSON bodies, queries and forms, refused in our own words.
//!
//! axum's extractors of the same names pass on what serde says (`expected struct ClusterRequest`). These say line, column and field
//! of a body ([`stolos_document::from_json`]); the linter keeps axum's out of the services.

#![expect(
    clippy::disallowed_types,
    reason = "this is the one place that sees axum's extractors, and answers for them"
)]

use std::fmt;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stolos_document::{from_json, in_words};

/// A JSON body, of a request or of an answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Json<T>(pub T);

/// The query of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Query<T>(pub T);

/// A form, in the body of a POST or in the query of a GET.
#[derive(Clone, Copy, Debug, Default)]
pub struct Form<T>(pub T);

/// Input that cannot be read, and what the answer to it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    status: StatusCode,
    text: String,
}

impl Unreadable {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
        }
    }

    /// The status that fits: 400, 413 (too large), 415 (another content type) or 422 (well-formed, but of another shape).
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What is wrong, for whoever sent it.
    #[must_use]
    pub fn body_text(&self) -> String {
        self.text.clone()
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Unreadable {}

impl IntoResponse for Unreadable {
    fn into_response(self) -> Response {
        (self.status, self.text).into_response()
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Unreadable;

    async fn from_request(request: Request, state: &S) -> Result<Self, Unreadable> {
        if !is_json(request.headers()) {
            return Err(Unreadable::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the body has to be JSON, with the header `Content-Type: application/json`",
            ));
        }
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| body_refused(rejection.status()))?;
        from_json(&bytes).map(Self).map_err(|error| {
            let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok();
            let status = if is_json {
                StatusCode::UNPROCESSABLE_ENTITY
            } else {
                StatusCode::BAD_REQUEST
            };
            Unreadable::new(status, format!("the body cannot be read: {error}"))
        })
    }
}

fn body_refused(status: StatusCode) -> Unreadable {
    let text = match status {
        StatusCode::PAYLOAD_TOO_LARGE => "the body is larger than it may be here",
        _ => "the body did not come to its end",
    };
    Unreadable::new(status, text)
}

/// `application/json`, or `application/….+json`, with parameters or without.
fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| {
        let essence = value
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        let subtype = essence.strip_prefix("application/");
        subtype.is_some_and(|subtype| subtype == "json" || subtype.ends_with("+json"))
    })
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Unreadable;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Unreadable> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(Unreadable::new(
                rejection.status(),
                format!("the query cannot be read: {}", pairs(&rejection.body_text())),
            )),
        }
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Form<T> {
    type Rejection = Unreadable;

    async fn from_request(request: Request, state: &S) -> Result<Self, Unreadable> {
        use axum::extract::rejection::FormRejection;
        let rejection = match axum::extract::Form::from_request(request, state).await {
            Ok(axum::extract::Form(value)) => return Ok(Self(value)),
            Err(rejection) => rejection,
        };
        let status = rejection.status();
        Err(match &rejection {
            FormRejection::InvalidFormContentType(_) => Unreadable::new(
                status,
                "the body has to be a form, with the header `Content-Type: application/x-www-form-urlencoded`",
            ),
            FormRejection::BytesRejection(_) => body_refused(status),
            _ => Unreadable::new(
                status,
                format!("the form cannot be read: {}", pairs(&rejection.body_text())),
            ),
        })
    }
}

/// What axum says of a query or a form: `Failed to deserialize query string: KEY: message`.
fn pairs(text: &str) -> String {
    let text = text.split_once(": ").map_or(text, |(_, rest)| rest);
    match text.split_once(": ") {
        Some((key, message)) if !key.contains(' ') => format!("{key}: {}", in_words(message)),
        _ => in_words(text),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "the test looks at what is refused only")]
    struct Wish {
        name: String,
        #[serde(default)]
        wait_ms: Option<u64>,
    }

    fn request(uri: &str, content_type: &str, body: &'static str) -> Request {
        let request = Request::builder()
            .uri(uri)
            .header(header::CONTENT_TYPE, content_type);
        let request = if content_type.is_empty() {
            request
        } else {
            request.method("POST")
        };
        request.body(body.into()).expect("a request")
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_refused_in_our_words() {
        let json = async |content_type, body| {
            let read = Json::<Wish>::from_request(request("/", content_type, body), &()).await;
            let error = read.expect_err(body);
            (error.status().as_u16(), error.body_text())
        };
        let refused = |status: u16, text: &str| (status, text.to_owned());
        assert_eq!(
            json("application/json", "[]").await,
            refused(
                422,
                "the body cannot be read: line 1, column 1: an object is needed here, not a list"
            )
        );
        assert_eq!(
            json("application/json; charset=utf-8", "{\"name\": ").await,
            refused(
                400,
                "the body cannot be read: line 1, column 9: the JSON ends where a value has to be"
            )
        );
        assert_eq!(
            json("text/plain", "{}").await,
            refused(
                415,
                "the body has to be JSON, with the header `Content-Type: application/json`"
            )
        );
        let query = async |uri| {
            let (mut parts, _) = request(uri, "", "").into_parts();
            let read = Query::<Wish>::from_request_parts(&mut parts, &()).await;
            let error = read.expect_err(uri);
            (error.status().as_u16(), error.body_text())
        };
        assert_eq!(
            query("/").await,
            refused(400, "the query cannot be read: `name` is missing")
        );
        assert_eq!(
            query("/?name=a&wait_ms=x").await,
            refused(
                400,
                "the query cannot be read: wait_ms: an integer is needed here"
            )
        );
        let form = Form::<Wish>::from_request(
            request("/", "application/x-www-form-urlencoded", "wait_ms=1"),
            &(),
        )
        .await;
        assert_eq!(
            form.expect_err("no name").body_text(),
            "the form cannot be read: `name` is missing"
        );
    }
}
