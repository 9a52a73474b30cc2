//! Signed URLs: whoever has one may read or write one blob for a while, and needs nothing else.
//!
//! The shape is that of BOSH's DAV blob store with `enable_signed_urls`:
//! `/signed/<aa>/<id>?st=<signature>&ts=<seconds>&e=<seconds>&v=2` where `aa` are the first two hex digits of the id's SHA-1,
//! `ts` is the time of signing (seconds since the Unix epoch) and `e` the time it holds, at most [`LONGEST_VALIDITY`].
//! The signature is the unpadded URL-safe base64 of HMAC-SHA256 over a purpose, the verb, `<aa>`, the id, `ts` and `e`,
//! each preceded by its length: BOSH puts them one after the other, so there digits that are moved from `ts` to `e` make
//! another URL of the same signature, which never ends. Agents use a URL as it is, so they do not mind.
//!
//! URLs of BOSH's form that were signed before an upgrade are read to their end, where they can be read in one way only.
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
use axum::http::{Extensions, HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::StreamExt as _;
use serde::Deserialize;
use stolos_base::http::signed_in;
use stolos_base::input::Query;
use stolos_base::{Classify as _, Clock, Secret};
use tokio_util::io::ReaderStream;

use crate::error::{Error, Result};
use crate::id::{BlobId, UploadName};
use crate::seal::SealKey;
use crate::store::{Blobs, CHUNK, Form};

/// How long BOSH's director lets a URL hold.
pub const USUAL_VALIDITY: Duration = Duration::from_secs(86_400);
/// The longest that a URL holds, whatever is asked for or signed.
pub const LONGEST_VALIDITY: Duration = USUAL_VALIDITY;
/// What is signed begins with it: nothing else that is made with the same key passes for a URL.
const PURPOSE: &[u8] = b"stolos signed URL 2";
/// The form of the signatures that are made.
const FORM: u8 = 2;
/// Times of ten digits: from 2001 to 2286. In BOSH's form, where nothing is between the numbers, all others are somebody's
/// attempt to move a digit.
const TEN_DIGITS: std::ops::RangeInclusive<i64> = 1_000_000_000..=9_999_999_999;
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
    /// an [`UploadName`]. It holds for `validity`, but no longer than [`LONGEST_VALIDITY`].
    #[must_use]
    pub fn sign(&self, verb: Verb, id: &str, now: i64, validity: Duration) -> String {
        let (prefix, seconds) = (prefix(id), validity.min(LONGEST_VALIDITY).as_secs());
        let signature = hmac::sign(&self.0, &text(verb, &prefix, id, now, seconds));
        let signature = URL_SAFE_NO_PAD.encode(signature);
        format!("/signed/{prefix}/{id}?st={signature}&ts={now}&e={seconds}&v={FORM}")
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
        let signed = match shown.v {
            Some(FORM) => text(verb, prefix, id, shown.ts, shown.e),
            Some(_) => return Err(Refused::Signature),
            None => bosh_text(verb, prefix, id, shown).ok_or(Refused::Signature)?,
        };
        // Compares in constant time.
        hmac::verify(&self.0, &signed, &signature).map_err(|_| Refused::Signature)?;
        if shown.ts > now.saturating_add(CLOCK_SKEW) {
            return Err(Refused::Signature);
        }
        let longest = LONGEST_VALIDITY.as_secs();
        let validity = i64::try_from(shown.e.min(longest)).map_err(|_| Refused::Expired)?;
        let end = shown.ts.checked_add(validity).ok_or(Refused::Expired)?;
        if shown.e > longest || now > end {
            return Err(Refused::Expired);
        }
        Ok(())
    }
}

fn prefix(id: &str) -> String {
    hex::encode(&digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, id.as_bytes()).as_ref()[..1])
}

/// What is signed: each field after its length, so that no two URLs have the same text.
fn text(verb: Verb, prefix: &str, id: &str, ts: i64, e: u64) -> Vec<u8> {
    let mut text = Vec::with_capacity(128);
    for field in [
        PURPOSE,
        verb.as_str().as_bytes(),
        prefix.as_bytes(),
        id.as_bytes(),
        &ts.to_be_bytes(),
        &e.to_be_bytes(),
    ] {
        text.extend_from_slice(&(field.len() as u64).to_be_bytes());
        text.extend_from_slice(field);
    }
    text
}

/// What was signed before: one after the other. `None` where the same text could have been signed for something else:
/// `ts` has to have ten digits, which leaves one border between it and `e`, and what is read has names of one length.
fn bosh_text(verb: Verb, prefix: &str, id: &str, shown: &Shown) -> Option<Vec<u8>> {
    let (ts, e) = (shown.ts, shown.e);
    let is_clear =
        verb == Verb::Get && TEN_DIGITS.contains(&ts) && (1..=LONGEST_VALIDITY.as_secs()).contains(&e);
    is_clear.then(|| format!("{}{prefix}/{id}{ts}{e}", verb.as_str()).into_bytes())
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
    /// The form of the signature: 2; none for BOSH's.
    #[serde(default)]
    pub v: Option<u8>,
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
    extensions: Extensions,
) -> Response {
    if let Err(refused) = config.check(Verb::Get, &prefix, &id, &shown) {
        return forbidden(&refused);
    }
    signed_in(&extensions);
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
    extensions: Extensions,
    body: Body,
) -> Response {
    if let Err(refused) = config.check(Verb::Put, &prefix, &id, &shown) {
        return forbidden(&refused);
    }
    signed_in(&extensions);
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
