//! Blobs: those that came over the bus, and those behind a URL.

use std::time::Duration;

use indexmap::IndexMap;
use stolos_base::{Secret, files};
use stolos_mbus::settings::Blobstore;
use stolos_release::digest::MultiDigest;

use crate::apply::component;
use crate::error::{Error, Result};
use crate::paths::Paths;

/// A package of a hundred megabytes over a slow link.
const FETCH_LIMIT: Duration = Duration::from_secs(600);

/// Where blobs come from and go to.
pub(crate) struct Blobs {
    paths: Paths,
    store: Blobstore,
    http: reqwest::Client,
}

impl Blobs {
    pub(crate) fn new(paths: Paths, store: Blobstore) -> Result<Self> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Fetch { what: "blobs at all".to_owned(), source };
        stolos_base::tls::install_provider();
        let builder = reqwest::Client::builder().timeout(FETCH_LIMIT).no_proxy();
        let builder = match store.options.tls.as_ref().map(|tls| tls.cert.ca.as_str()).filter(|ca| !ca.is_empty()) {
            Some(ca) => {
                let tls = stolos_base::tls::client(ca, None).map_err(|error| failed(error.into()))?;
                builder.tls_backend_preconfigured(tls)
            }
            None => builder,
        };
        let http = builder.build().map_err(|error| failed(error.into()))?;
        Ok(Self { paths, store, http })
    }

    /// Keeps a blob that came over the bus, until the next boot.
    pub(crate) fn keep(&self, id: &str, bytes: &[u8], digest: &str) -> Result<()> {
        let what = format!("blob `{id}`");
        let invalid = |source: stolos_release::Error| Error::Install { what: what.clone(), source: Box::new(source) };
        let digest: MultiDigest = digest.parse().map_err(invalid)?;
        digest.check(&what, bytes).map_err(invalid)?;
        let directory = self.paths.sensitive_blobs();
        fs_err::create_dir_all(&directory).map_err(Error::file("make", &directory))?;
        let path = directory.join(component(id)?);
        files::write_atomic(&path, bytes, 0o600).map_err(Error::file("write", path))
    }

    /// A blob, verified.
    pub(crate) async fn fetch(
        &self,
        what: &str,
        id: &str,
        url: Option<&Secret<String>>,
        headers: Option<&IndexMap<String, String>>,
        digest: &MultiDigest,
    ) -> Result<Vec<u8>> {
        let kept = self.paths.sensitive_blobs().join(component(id)?);
        let bytes = match fs_err::read(&kept) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => self.download(what, id, url, headers).await?,
            Err(error) => return Err(Error::file("read", kept)(error)),
        };
        digest.check(what, &bytes).map_err(|source| Error::Fetch { what: what.to_owned(), source: Box::new(source) })?;
        Ok(bytes)
    }

    async fn download(
        &self,
        what: &str,
        id: &str,
        url: Option<&Secret<String>>,
        headers: Option<&IndexMap<String, String>>,
    ) -> Result<Vec<u8>> {
        // An error of reqwest names the URL, which holds a signature.
        let failed = |error: reqwest::Error| Error::Fetch { what: what.to_owned(), source: error.without_url().into() };
        let mut request = match url {
            Some(url) => self.http.get(url.expose()),
            None => self.authorized(self.http.get(self.address(what, id)?)),
        };
        for (name, value) in headers.into_iter().flatten() {
            request = request.header(name, value);
        }
        let response = request.send().await.map_err(failed)?.error_for_status().map_err(failed)?;
        Ok(response.bytes().await.map_err(failed)?.to_vec())
    }

    /// Puts bytes into the blob store under a new id.
    pub(crate) async fn put(&self, what: &str, bytes: Vec<u8>) -> Result<String> {
        let id = stolos_base::ids::random_hex(16);
        let failed = |error: reqwest::Error| Error::Fetch { what: what.to_owned(), source: error.without_url().into() };
        let request = self.authorized(self.http.put(self.address(what, &id)?)).body(bytes);
        request.send().await.map_err(failed)?.error_for_status().map_err(failed)?;
        Ok(id)
    }

    /// BOSH's dav layout: `ENDPOINT/<first two digits of the id's SHA-1>/<id>`.
    fn address(&self, what: &str, id: &str) -> Result<String> {
        let endpoint = self.store.options.endpoint.as_deref().ok_or_else(|| Error::Fetch {
            what: what.to_owned(),
            source: "it came neither over the bus nor with a URL, and there is no blob store to ask".into(),
        })?;
        let digest = stolos_release::digest::Algorithm::Sha1.hex(id.as_bytes());
        Ok(format!("{}/{}/{id}", endpoint.trim_end_matches('/'), &digest[..2]))
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.store.options.user {
            Some(user) => request.basic_auth(user, self.store.options.password.as_ref().map(|p| p.expose().clone())),
            None => request,
        }
    }
}
