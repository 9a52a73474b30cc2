//! Blobs: those that came over the bus, and those behind a URL.

use std::io::Write as _;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use indexmap::IndexMap;
use stolos_base::{Secret, files};
use stolos_mbus::settings::Blobstore;
use stolos_release::digest::{Algorithm, HashingReader, MultiDigest};

use crate::apply::component;
use crate::error::{Error, Result};
use crate::paths::Paths;

/// How long a connection may take to stand.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// A transfer in which nothing comes for so long is given up. The whole may take as long as it needs.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Where blobs come from and go to.
pub(crate) struct Blobs {
    paths: Paths,
    store: Blobstore,
    http: reqwest::Client,
}

/// A blob as somebody names it.
pub(crate) struct Wanted<'a> {
    /// For people.
    pub(crate) what: &'a str,
    pub(crate) id: &'a str,
    pub(crate) url: Option<&'a Secret<String>>,
    pub(crate) headers: Option<&'a IndexMap<String, String>>,
    pub(crate) digest: &'a MultiDigest,
}

/// A verified blob in a file, which goes with this value unless it is one that was kept.
pub(crate) struct Fetched {
    pub(crate) path: Utf8PathBuf,
    temporary: bool,
}

impl Drop for Fetched {
    fn drop(&mut self) {
        if self.temporary {
            let _ = files::remove_if_there(&self.path);
        }
    }
}

impl Blobs {
    pub(crate) fn new(paths: Paths, store: Blobstore) -> Result<Self> {
        let failed = |source: Cause| Error::Fetch {
            what: "blobs at all".to_owned(),
            source,
        };
        stolos_base::tls::install_provider();
        let builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .read_timeout(SILENCE_LIMIT)
            .no_proxy();
        let authority = store.options.tls.as_ref().map(|tls| tls.cert.ca.as_str());
        let builder = match authority.filter(|ca| !ca.is_empty()) {
            Some(ca) => {
                let tls = stolos_base::tls::client(ca, None).map_err(|error| failed(error.into()))?;
                builder.tls_backend_preconfigured(tls)
            }
            None => builder,
        };
        let http = builder.build().map_err(|error| failed(error.into()))?;
        Ok(Self { paths, store, http })
    }

    /// Keeps a blob that came over the bus, until it is used or the machine boots.
    pub(crate) fn keep(&self, id: &str, bytes: &[u8], digest: &str) -> Result<()> {
        let what = format!("blob `{id}`");
        let invalid = |source: stolos_release::Error| Error::Install {
            what: what.clone(),
            source: Box::new(source),
        };
        let digest: MultiDigest = digest.parse().map_err(invalid)?;
        digest.check(&what, bytes).map_err(invalid)?;
        let path = self.paths.sensitive_blobs().join(component(id)?);
        private_directory(&self.paths.sensitive_blobs())?;
        files::write_atomic(&path, bytes, 0o600).map_err(Error::file("write", path))
    }

    /// Forgets a blob that came over the bus.
    pub(crate) fn forget(&self, id: &str) -> Result<()> {
        let path = self.paths.sensitive_blobs().join(component(id)?);
        files::remove_if_there(&path).map_err(Error::file("remove", path))
    }

    /// A blob, verified.
    pub(crate) async fn fetch(&self, wanted: &Wanted<'_>) -> Result<Fetched> {
        let kept = self.paths.sensitive_blobs().join(component(wanted.id)?);
        let fetched = if kept.is_file() {
            Fetched {
                path: kept,
                temporary: false,
            }
        } else {
            self.download(wanted).await?
        };
        let (path, what, digest) = (
            fetched.path.clone(),
            wanted.what.to_owned(),
            wanted.digest.clone(),
        );
        let check = move || -> Result<()> {
            let file = fs_err::File::open(&path).map_err(Error::file("open", path))?;
            let checked = HashingReader::new(file, &digest).finish(&what, &digest);
            checked.map(drop).map_err(|source| Error::Fetch {
                what,
                source: Box::new(source),
            })
        };
        tokio::task::spawn_blocking(check)
            .await
            .map_err(crate::core::panicked)??;
        Ok(fetched)
    }

    /// Into a file as it comes: a package may be larger than the machine's memory has room for.
    async fn download(&self, wanted: &Wanted<'_>) -> Result<Fetched> {
        let what = wanted.what;
        let failed = |error: reqwest::Error| Error::Fetch {
            what: what.to_owned(),
            // An error of reqwest names the URL, which may hold a signature.
            source: error.without_url().into(),
        };
        let mut request = match wanted.url {
            Some(url) => self.http.get(url.expose()),
            None => {
                let address = self.address(wanted.id).map_err(|source| Error::Fetch {
                    what: what.to_owned(),
                    source,
                })?;
                self.authorized(self.http.get(address))
            }
        };
        for (name, value) in wanted.headers.into_iter().flatten() {
            request = request.header(name, value);
        }
        let mut response = request
            .send()
            .await
            .and_then(reqwest::Response::error_for_status)
            .map_err(failed)?;
        private_directory(&self.paths.data_tmp())?;
        let fetched = Fetched {
            path: self.paths.data_tmp().join(stolos_base::ids::random_hex(8)),
            temporary: true,
        };
        let path = &fetched.path;
        let mut file = fs_err::File::create_new(path).map_err(Error::file("make", path))?;
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            file.write_all(&chunk).map_err(Error::file("write", path))?;
        }
        Ok(fetched)
    }

    /// Puts a file into the blob store under a new id; gives that.
    pub(crate) async fn put(&self, what: &str, path: &Utf8Path) -> Result<String> {
        let failed = |source: Cause| Error::Store {
            what: what.to_owned(),
            source,
        };
        let id = stolos_base::ids::random_hex(16);
        let address = self.address(&id).map_err(failed)?;
        let file = fs_err::tokio::File::open(path)
            .await
            .map_err(Error::file("open", path))?;
        let size = file.metadata().await.map_err(Error::file("look at", path))?.len();
        let sent = self
            .authorized(self.http.put(address))
            // The store wants to know how much comes.
            .header("content-length", size)
            .body(reqwest::Body::wrap_stream(tokio_util::io::ReaderStream::new(file)))
            .send()
            .await;
        sent.and_then(reqwest::Response::error_for_status)
            .map_err(|error| failed(error.without_url().into()))?;
        Ok(id)
    }

    /// BOSH's dav layout: `ENDPOINT/<first two digits of the id's SHA-1>/<id>`.
    fn address(&self, id: &str) -> Result<String, Cause> {
        let endpoint = self
            .store
            .options
            .endpoint
            .as_deref()
            .ok_or("there is no URL for it, and no blob store with an endpoint")?;
        let digest = Algorithm::Sha1.hex(id.as_bytes());
        Ok(format!(
            "{}/{}/{id}",
            endpoint.trim_end_matches('/'),
            &digest[..2]
        ))
    }

    fn authorized(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match &self.store.options.user {
            Some(user) => {
                let password = self.store.options.password.as_ref();
                request.basic_auth(user, password.map(|password| password.expose().clone()))
            }
            None => request,
        }
    }
}

/// Makes a directory that only root can enter.
pub(crate) fn private_directory(path: &Utf8Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    if path.is_dir() {
        return Ok(());
    }
    fs_err::create_dir_all(path).map_err(Error::file("make", path))?;
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o700))
        .map_err(Error::file("protect", path))
}
