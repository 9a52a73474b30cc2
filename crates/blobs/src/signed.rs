//! Signed URLs: whoever has one may read or write one blob for a while, and needs nothing else.
//!
//! The shape is BOSH's DAV blob store with `enable_signed_urls`: `/signed/<aa>/<id>?st=<signature>&ts=<seconds>&e=<seconds>`
//! where `aa` are the first two hex digits of the id's SHA-1, `ts` is the time of signing (seconds since the Unix epoch),
//! `e` the time it holds, and the signature the unpadded URL-safe base64 of HMAC-SHA256 over verb, `<aa>/<id>`, `ts` and `e`
//! put one after the other.
//!
//! `GET` (and `HEAD`, under the same signature) gives a blob; a sealed one is unsealed when the router has the key.
//! `PUT` to a blob id takes only bytes of that digest; `PUT` to another name ([`UploadName`]) takes any and records which
//! blob they became ([`Blobs::uploaded`]).

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{digest, hmac};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::StreamExt as _;
use serde::Deserialize;
use stolos_base::input::Query;
use stolos_base::{Classify as _, Clock, Secret};
use tokio_util::io::ReaderStream;

use crate::error::{Error, Result};
use crate::id::{BlobId, UploadName};
use crate::seal::SealKey;
use crate::store::{Blobs, CHUNK, Form};

/// How long BOSH's director lets a URL hold.
pub const USUAL_VALIDITY: Duration = Duration::from_secs(86_400);
/// Sealed blobs are served from memory; rendered templates are far smaller.
const SEALED_LIMIT: u64 = 64 * 1024 * 1024;

/// How many seconds the signer's clock may be ahead of ours.
const CLOCK_SKEW: i64 = 300;

/// What a URL allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Reading.
    Get,
    /// Writing.
    Put,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
        }
    }
}

/// Signs URLs and checks signatures. Cheap to clone.
#[derive(Clone)]
pub struct Signer(Arc<hmac::Key>);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

/// A signature is wrong, or the URL no longer holds.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// Not signed by us for this.
    #[error("the signature is wrong")]
    Signature,
    /// Signed by us too long ago.
    #[error("the URL has expired")]
    Expired,
}

impl Signer {
    /// A signer with a secret of at least 32 random bytes.
    #[must_use]
    pub fn new(secret: &Secret<Vec<u8>>) -> Self {
        Self(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, secret.expose())))
    }

    /// Path and query of a signed URL; put the blob store's `https://host:port` before it. `id` is a [`BlobId`] or
    /// an [`UploadName`].
    #[must_use]
    pub fn sign(&self, verb: Verb, id: &str, now: i64, validity: Duration) -> String {
        let (prefix, seconds) = (prefix(id), validity.as_secs());
        let signature = hmac::sign(&self.0, text(verb, &prefix, id, now, seconds).as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(signature);
        format!("/signed/{prefix}/{id}?st={signature}&ts={now}&e={seconds}")
    }

    /// Checks what a request shows; `now` in seconds since the Unix epoch.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn check(
        &self,
        verb: Verb,
        prefix: &str,
        id: &str,
        shown: &Shown,
        now: i64,
    ) -> std::result::Result<(), Refused> {
        let signature = URL_SAFE_NO_PAD
            .decode(&shown.st)
            .map_err(|_| Refused::Signature)?;
        hmac::verify(
            &self.0,
            text(verb, prefix, id, shown.ts, shown.e).as_bytes(),
            &signature,
        )
        .map_err(|_| Refused::Signature)?;
        // Verb, name and numbers are signed without anything between them (that is BOSH's form), so a digit could be moved
        // from `e` to `ts`; that makes a time far in the future, which nobody signs.
        if shown.ts > now.saturating_add(CLOCK_SKEW) {
            return Err(Refused::Signature);
        }
        let end = shown
            .ts
            .saturating_add(i64::try_from(shown.e).unwrap_or(i64::MAX));
        if now > end { Err(Refused::Expired) } else { Ok(()) }
    }
}

fn prefix(id: &str) -> String {
    hex::encode(&digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, id.as_bytes()).as_ref()[..1])
}

fn text(verb: Verb, prefix: &str, id: &str, ts: i64, e: u64) -> String {
    format!("{}{prefix}/{id}{ts}{e}", verb.as_str())
}

/// The query of a signed URL.
#[derive(Clone, Debug, Deserialize)]
pub struct Shown {
    /// The signature.
    pub st: String,
    /// When it was signed, in seconds since the Unix epoch.
    pub ts: i64,
    /// How long it holds, in seconds.
    pub e: u64,
}

/// What the router works with.
#[derive(Clone, Debug)]
pub struct Config {
    /// The store.
    pub blobs: Blobs,
    /// Who signed.
    pub signer: Signer,
    /// By which the end of a URL is judged.
    pub clock: Clock,
    /// The largest upload, in bytes.
    pub max_upload: u64,
    /// With which sealed blobs are unsealed for their readers; without it they are not served.
    pub seal_key: Option<SealKey>,
}

/// The routes of signed URLs.
pub fn router(config: Config) -> Router {
    Router::new()
        .route("/signed/{prefix}/{id}", get(blob_view).put(blob_upload))
        .with_state(Arc::new(config))
}

async fn blob_view(
    State(config): State<Arc<Config>>,
    Path((prefix, id)): Path<(String, String)>,
    Query(shown): Query<Shown>,
) -> Response {
    if let Err(refused) = config.check(Verb::Get, &prefix, &id, &shown) {
        return forbidden(&refused);
    }
    let Ok(id) = id.parse::<BlobId>() else {
        return (StatusCode::NOT_FOUND, "there is no such blob\n").into_response();
    };
    config.give(&id).await.unwrap_or_else(|error| failed(&error))
}

async fn blob_upload(
    State(config): State<Arc<Config>>,
    Path((prefix, id)): Path<(String, String)>,
    Query(shown): Query<Shown>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    if let Err(refused) = config.check(Verb::Put, &prefix, &id, &shown) {
        return forbidden(&refused);
    }
    let size = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok());
    match config.take(&id, size, body).await {
        Ok(()) => StatusCode::CREATED.into_response(),
        Err(error) => failed(&error),
    }
}

impl Config {
    fn check(&self, verb: Verb, prefix: &str, id: &str, shown: &Shown) -> std::result::Result<(), Refused> {
        self.signer
            .check(verb, prefix, id, shown, self.clock.now().as_second())
    }

    async fn give(&self, id: &BlobId) -> Result<Response> {
        let kind = (header::CONTENT_TYPE, "application/octet-stream");
        if let (Some(Form::Sealed), Some(key)) = (self.blobs.form(id), &self.seal_key) {
            let bytes = self.blobs.read_sealed(key, id, SEALED_LIMIT).await?;
            return Ok(([kind], bytes).into_response());
        }
        let reader = self.blobs.get(id).await?;
        let size = reader.size();
        // The reader withholds the last bytes of a damaged blob, so the client sees a body that is too short.
        let body = Body::from_stream(ReaderStream::with_capacity(reader, CHUNK));
        Ok(([kind, (header::CONTENT_LENGTH, size.to_string().as_str())], body).into_response())
    }

    async fn take(&self, id: &str, size: Option<u64>, body: Body) -> Result<()> {
        let expected: Option<BlobId> = id.parse().ok();
        let name: Option<UploadName> = match &expected {
            Some(_) => None,
            None => Some(id.parse().map_err(|_| Error::NoUpload(id.to_owned()))?),
        };
        let mut writer = self.blobs.writer(size, self.max_upload)?;
        let mut stream = body.into_data_stream();
        while let Some(bytes) = stream.next().await {
            let bytes = bytes.map_err(|error| Error::Receive(error.into()))?;
            writer.write(&bytes).await?;
        }
        let stored = writer.finish(expected.as_ref()).await?;
        match name {
            Some(name) => self.blobs.record_upload(&name, &stored.id),
            None => Ok(()),
        }
    }
}

fn forbidden(refused: &Refused) -> Response {
    (StatusCode::FORBIDDEN, format!("{refused}\n")).into_response()
}

fn failed(error: &Error) -> Response {
    let status = match error {
        Error::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        Error::Full { .. } => StatusCode::INSUFFICIENT_STORAGE,
        other => StatusCode::from_u16(other.class().status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
    };
    if status.is_server_error() {
        tracing::error!(error = %stolos_base::chain(error), "failed to serve a blob");
    }
    (status, format!("{error}\n")).into_response()
}
