//! Objects in an S3-compatible store, by way of `object_store`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use camino::{Utf8Path, Utf8PathBuf};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    Certificate, ClientOptions, MultipartUpload, ObjectStore, ObjectStoreExt as _, PutPayload, RetryConfig,
};
use serde::{Deserialize, Serialize};
use stolos_base::Secret;
use tokio_util::io::StreamReader;

use super::{Error, ObjectInfo, ObjectName, Reader, Result};

/// How long a request is tried again when the store or the way to it fails.
pub const RETRIED: Duration = Duration::from_secs(60);
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the store may say nothing: time enough to take a part over a slow line.
const SILENCE: Duration = Duration::from_secs(120);
/// Bytes of a part. An object of one part is put at once; S3 takes 10,000 parts.
const PART: usize = 16 * 1024 * 1024;

/// Where the store is and which part of it is ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The bucket; it exists already.
    pub bucket: String,
    /// What our objects' keys begin with, before a slash; empty for none.
    pub prefix: String,
    /// The store's URL, `https://HOST[:PORT]`; AWS's own when absent. `http://` only where the way is safe: objects are
    /// authenticated by whoever writes them, requests are signed, but names and sizes can be seen.
    pub endpoint: Option<String>,
    /// AWS's name of the region; most other stores take any.
    pub region: String,
    /// Certificates (PEM) of authorities to trust beside the system's, for a store with a private one.
    pub ca_file: Option<Utf8PathBuf>,
}

/// An access key.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Its id; no secret.
    pub access_key_id: String,
    /// The secret.
    pub secret_access_key: Secret<String>,
    /// Beside temporary keys.
    pub session_token: Option<Secret<String>>,
}

impl Credentials {
    /// Reads a file in AWS's form: lines `aws_access_key_id = …`, `aws_secret_access_key = …` and perhaps
    /// `aws_session_token = …`, below `[default]` or no heading. Others than its owner must not be able to read it.
    ///
    /// # Errors
    /// [`Error::Settings`] with the reason; never with a part of the secret.
    pub fn read(path: &Utf8Path) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let wrong = |reason: String| Error::Settings(format!("the credentials file `{path}` {reason}"));
        let metadata =
            fs_err::metadata(path).map_err(|error| wrong(format!("cannot be read: {}", error.kind())))?;
        if metadata.permissions().mode() & 0o077 != 0 {
            return Err(wrong(
                "can be read by others than its owner; set its mode to 0600".to_owned(),
            ));
        }
        let text = fs_err::read_to_string(path)
            .map_err(|error| wrong(format!("cannot be read: {}", error.kind())))?;
        let text = Secret::new(text);
        let mut ours = true;
        let find = |key: &str, ours: &mut bool| {
            text.expose().lines().map(str::trim).find_map(|line| {
                if let Some(heading) = line.strip_prefix('[') {
                    *ours = heading.trim_end_matches(']').trim() == "default";
                }
                let (name, value) = line.split_once('=')?;
                (*ours && name.trim() == key).then(|| value.trim().to_owned())
            })
        };
        let mut value = |key: &str| {
            ours = true;
            find(key, &mut ours).filter(|value| !value.is_empty())
        };
        Ok(Self {
            access_key_id: value("aws_access_key_id")
                .ok_or_else(|| wrong("has no line `aws_access_key_id = …`".to_owned()))?,
            secret_access_key: value("aws_secret_access_key")
                .ok_or_else(|| wrong("has no line `aws_secret_access_key = …`".to_owned()))?
                .into(),
            session_token: value("aws_session_token").map(Secret::from),
        })
    }

    /// Takes the environment's `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`.
    ///
    /// # Errors
    /// [`Error::Settings`] when one of the first two is missing.
    pub fn from_environment() -> Result<Self> {
        let value = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let missing = |name: &str| {
            Error::Settings(format!(
                "there is no `credentials_file`, and no `{name}` in the environment"
            ))
        };
        Ok(Self {
            access_key_id: value("AWS_ACCESS_KEY_ID").ok_or_else(|| missing("AWS_ACCESS_KEY_ID"))?,
            secret_access_key: value("AWS_SECRET_ACCESS_KEY")
                .ok_or_else(|| missing("AWS_SECRET_ACCESS_KEY"))?
                .into(),
            session_token: value("AWS_SESSION_TOKEN").map(Secret::from),
        })
    }
}

/// A store.
#[derive(Clone)]
pub struct S3(Arc<Inner>);

struct Inner {
    store: AmazonS3,
    bucket: String,
    prefix: Path,
    endpoint: String,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "s3://{}/{} at {}",
            self.0.bucket, self.0.prefix, self.0.endpoint
        )
    }
}

impl S3 {
    /// A store; nothing is asked of it yet.
    ///
    /// # Errors
    /// [`Error::Settings`].
    pub fn new(settings: &Settings, credentials: &Credentials) -> Result<Self> {
        Self::with_patience(settings, credentials, RETRIED)
    }

    /// The same with another time than [`RETRIED`].
    ///
    /// # Errors
    /// [`Error::Settings`].
    pub fn with_patience(settings: &Settings, credentials: &Credentials, patience: Duration) -> Result<Self> {
        let wrong =
            |error: object_store::Error| Error::Settings(format!("the S3 store cannot be used: {error}"));
        let mut options = ClientOptions::new()
            .with_connect_timeout(CONNECT)
            .with_timeout_disabled()
            .with_read_timeout(SILENCE);
        if let Some(path) = &settings.ca_file {
            let unreadable = |error: &dyn std::error::Error| {
                Error::Settings(format!(
                    "the authorities' certificates `{path}` cannot be used: {error}"
                ))
            };
            let pem = fs_err::read(path).map_err(|error| unreadable(&error))?;
            for certificate in Certificate::from_pem_bundle(&pem).map_err(|error| unreadable(&error))? {
                options = options.with_root_certificate(certificate);
            }
        }
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&settings.bucket)
            .with_region(&settings.region)
            .with_access_key_id(&credentials.access_key_id)
            .with_secret_access_key(credentials.secret_access_key.expose())
            .with_retry(RetryConfig {
                retry_timeout: patience,
                max_retries: 20,
                ..RetryConfig::default()
            });
        if let Some(token) = &credentials.session_token {
            builder = builder.with_token(token.expose());
        }
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
            if endpoint.starts_with("http://") {
                options = options.with_allow_http(true);
            }
        }
        Ok(Self(Arc::new(Inner {
            store: builder.with_client_options(options).build().map_err(wrong)?,
            bucket: settings.bucket.clone(),
            prefix: Path::parse(&settings.prefix)
                .map_err(|error| Error::Settings(format!("the prefix is not valid: {error}")))?,
            endpoint: settings.endpoint.clone().unwrap_or_else(|| "AWS".to_owned()),
        })))
    }

    fn key(&self, name: &ObjectName) -> Path {
        let parts = name.as_str().split('/');
        self.0.prefix.parts().chain(parts.map(Into::into)).collect()
    }

    fn error(&self, action: String) -> impl FnOnce(object_store::Error) -> Error + use<> {
        let own = self.clone();
        move |source| {
            let said = Said::in_chain(&source);
            let place = own.to_string();
            // Some stores give these codes with other statuses than 401 and 403.
            const REFUSALS: [&str; 6] = [
                "InvalidAccessKeyId",
                "XAdminUserNotFound",
                "SignatureDoesNotMatch",
                "AccessDenied",
                "ExpiredToken",
                "InvalidToken",
            ];
            let refused = matches!(
                source,
                object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. }
            ) || said
                .as_ref()
                .is_some_and(|said| REFUSALS.contains(&said.code.as_str()));
            match said.as_ref().map(|said| said.code.as_str()) {
                Some("NoSuchBucket") => Error::NoBucket {
                    bucket: own.0.bucket.clone(),
                    endpoint: own.0.endpoint.clone(),
                },
                _ if refused => Error::Refused {
                    place,
                    action,
                    code: said
                        .as_ref()
                        .map_or_else(|| "access denied".to_owned(), |said| said.code.clone()),
                    message: said.and_then(|said| said.message),
                },
                _ => Error::Store {
                    place,
                    action,
                    source: Box::new(source),
                },
            }
        }
    }

    pub(super) fn writer(&self, name: &ObjectName) -> Writer {
        Writer {
            s3: self.clone(),
            name: name.clone(),
            buffer: BytesMut::new(),
            upload: None,
            size: 0,
        }
    }

    pub(super) async fn reader(&self, name: &ObjectName) -> Result<Reader> {
        let got = self.0.store.get(&self.key(name)).await;
        let got = got.map_err(|source| {
            let missing = matches!(source, object_store::Error::NotFound { .. });
            match self.error(format!("get object `{name}`"))(source) {
                Error::Store { place, .. } if missing => Error::NotFound {
                    name: name.clone(),
                    place,
                },
                other => other,
            }
        })?;
        // The library goes on where a connection broke, and says so when the object has changed meanwhile.
        let bytes = got.into_stream().map_err(std::io::Error::other);
        Ok(Box::new(StreamReader::new(bytes)))
    }

    pub(super) async fn list(&self, prefix: Option<&ObjectName>) -> Result<Vec<ObjectInfo>> {
        let below = match prefix {
            Some(prefix) => Some(self.key(prefix)),
            None => Some(self.0.prefix.clone()).filter(|prefix| !prefix.as_ref().is_empty()),
        };
        let mut found = Vec::new();
        let mut listed = self.0.store.list(below.as_ref());
        while let Some(one) = listed.next().await {
            let one = one.map_err(self.error("list objects".to_owned()))?;
            let Some(inside) = one.location.prefix_match(&self.0.prefix) else {
                continue;
            };
            let parts: Vec<_> = inside.map(|part| part.as_ref().to_owned()).collect();
            let Ok(name) = parts.join("/").parse() else {
                tracing::warn!(key = %one.location, "a key among the objects is none of ours");
                continue;
            };
            found.push(ObjectInfo {
                name,
                size: one.size,
                written_at: one.last_modified.timestamp_millis(),
            });
        }
        Ok(found)
    }

    pub(super) async fn delete(&self, name: &ObjectName) -> Result<()> {
        match self.0.store.delete(&self.key(name)).await {
            Ok(()) => Ok(()),
            Err(source) => {
                let missing = matches!(source, object_store::Error::NotFound { .. });
                match self.error(format!("remove object `{name}`"))(source) {
                    Error::Store { .. } if missing => Ok(()),
                    other => Err(other),
                }
            }
        }
    }
}

/// What a store says in the body of an error.
struct Said {
    code: String,
    message: Option<String>,
}

impl Said {
    /// The library gives the body as a part of a text. Only two elements of it are for people; among the others are
    /// what was signed and the key's id.
    fn in_chain(error: &object_store::Error) -> Option<Self> {
        let text = stolos_base::chain(error);
        let element = |name: &str| {
            let (_, rest) = text.split_once(&format!("<{name}>"))?;
            Some(rest.split_once("</")?.0.to_owned())
        };
        Some(Self {
            code: element("Code")?,
            message: element("Message"),
        })
    }
}

pub(super) struct Writer {
    s3: S3,
    name: ObjectName,
    buffer: BytesMut,
    upload: Option<Box<dyn MultipartUpload>>,
    size: u64,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Writer {
    fn failed(&self) -> impl FnOnce(object_store::Error) -> Error + use<> {
        self.s3.error(format!("put object `{}`", self.name))
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.size += bytes.len() as u64;
        self.buffer.extend_from_slice(&bytes);
        // More than a part, so that the last part is never empty.
        while self.buffer.len() > PART {
            let part = self.buffer.split_to(PART).freeze();
            self.put_part(part).await?;
        }
        Ok(())
    }

    async fn put_part(&mut self, part: Bytes) -> Result<()> {
        let mut upload = match self.upload.take() {
            Some(upload) => upload,
            None => {
                let key = self.s3.key(&self.name);
                self.s3.0.store.put_multipart(&key).await.map_err(self.failed())?
            }
        };
        let done = upload.put_part(PutPayload::from_bytes(part)).await;
        self.upload = Some(upload);
        done.map_err(self.failed())
    }

    pub(super) async fn finish(mut self) -> Result<u64> {
        let rest = self.buffer.split().freeze();
        if self.upload.is_none() {
            let key = self.s3.key(&self.name);
            let put = self.s3.0.store.put(&key, PutPayload::from_bytes(rest)).await;
            put.map_err(self.failed())?;
            return Ok(self.size);
        }
        let finished = match self.put_part(rest).await {
            Ok(()) => match self.upload.as_mut() {
                Some(upload) => upload.complete().await.map(drop).map_err(self.failed()),
                None => Ok(()),
            },
            Err(error) => Err(error),
        };
        match finished {
            Ok(()) => Ok(self.size),
            Err(error) => {
                self.abort().await;
                Err(error)
            }
        }
    }

    pub(super) async fn abort(mut self) {
        if let Some(mut upload) = self.upload.take()
            && let Err(error) = upload.abort().await
        {
            tracing::warn!(object = %self.name, error = %stolos_base::chain(&error), "failed to remove the parts of an unfinished object");
        }
    }
}
