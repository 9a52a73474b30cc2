//! For tests only: a real S3-compatible store on a free port of the loopback address.
//!
//! It is `versitygw`, pinned in `upstream/versitygw` and built by `stolos-build upstream versitygw`, over a temporary
//! directory. It ends with the test process, even when that is killed.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use camino_tempfile::Utf8TempDir;
use stolos_base::Secret;
use stolos_base::ids::random_hex;

use super::Objects;
use super::s3::{Credentials, S3, Settings};

/// The machine may be busy with other tests.
const START_LIMIT: Duration = Duration::from_secs(60);
/// The bucket that is there.
pub const BUCKET: &str = "backups";
/// The region that it takes signatures for.
const REGION: &str = "us-east-1";

/// A running store with one bucket. Ends when dropped.
#[derive(Debug)]
pub struct Store {
    directory: Utf8TempDir,
    program: Utf8PathBuf,
    port: u16,
    credentials: Credentials,
    child: Option<Child>,
}

impl Store {
    /// Starts one, or says why there is none.
    ///
    /// # Errors
    /// The reason for which tests on S3 are skipped.
    ///
    /// # Panics
    /// When the program is there and does not start.
    pub fn start() -> Result<Self, String> {
        let program = program()?;
        let directory = camino_tempfile::tempdir().expect("a temporary directory");
        fs_err::create_dir_all(directory.path().join("data").join(BUCKET)).expect("a bucket");
        let mut store = Self {
            directory,
            program,
            port: 0,
            credentials: Credentials {
                access_key_id: format!("test{}", random_hex(4)),
                secret_access_key: Secret::new(random_hex(16)),
                session_token: None,
            },
            child: None,
        };
        // Another test may take the port between the look and the start.
        for _ in 0..10 {
            store.port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .and_then(|listener| listener.local_addr())
                .expect("a free port")
                .port();
            if store.resume() {
                return Ok(store);
            }
        }
        panic!("versitygw does not start");
    }

    /// Starts it (again) on its port; false when it ends at once.
    pub fn resume(&mut self) -> bool {
        let mut child = Command::new("setpriv")
            .arg("--pdeathsig=KILL")
            .arg(&self.program)
            .args(["--quiet", "--region", REGION, "--port"])
            .arg(format!("127.0.0.1:{}", self.port))
            .arg("posix")
            .arg("--sidecar")
            .arg(self.made("meta"))
            .arg(self.directory.path().join("data"))
            .env("ROOT_ACCESS_KEY_ID", &self.credentials.access_key_id)
            .env(
                "ROOT_SECRET_ACCESS_KEY",
                self.credentials.secret_access_key.expose(),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("setpriv is there");
        let began = Instant::now();
        loop {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                self.child = Some(child);
                return true;
            }
            if child.try_wait().expect("a child").is_some() {
                return false;
            }
            assert!(began.elapsed() < START_LIMIT, "versitygw does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it; what it holds stays.
    pub fn pause(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Where it is.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The settings of a place in its bucket.
    #[must_use]
    pub fn settings(&self, prefix: &str) -> Settings {
        Settings {
            bucket: BUCKET.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: Some(self.endpoint()),
            region: REGION.to_owned(),
            ca_file: None,
        }
    }

    /// Its access key.
    #[must_use]
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The access key in a file, as AWS's programs have it.
    ///
    /// # Panics
    /// When the file cannot be written.
    #[must_use]
    pub fn credentials_file(&self) -> Utf8PathBuf {
        let path = self.directory.path().join("credentials");
        let text = format!(
            "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            self.credentials.access_key_id,
            self.credentials.secret_access_key.expose()
        );
        stolos_base::files::write_atomic(&path, text.as_bytes(), 0o600).expect("a credentials file");
        path
    }

    /// A place in its bucket.
    ///
    /// # Panics
    /// When the settings are not valid.
    #[must_use]
    pub fn objects(&self, prefix: &str) -> Objects {
        let s3 = S3::new(&self.settings(prefix), &self.credentials).expect("valid settings");
        Objects::s3(s3)
    }

    fn made(&self, name: &str) -> Utf8PathBuf {
        let path = self.directory.path().join(name);
        fs_err::create_dir_all(&path).expect("a directory");
        path
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.pause();
    }
}

/// Where the program is: the environment, else the build cache.
fn program() -> Result<Utf8PathBuf, String> {
    if let Ok(path) = std::env::var("STOLOS_VERSITYGW") {
        return Ok(path.into());
    }
    let cache = std::env::var("STOLOS_CACHE")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cache/stolos")))
        .map_err(|_| "neither STOLOS_VERSITYGW nor STOLOS_CACHE nor HOME is set".to_owned())?;
    let artefacts = Utf8Path::new(&cache).join("artefacts");
    artefacts
        .read_dir_utf8()
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name() == "upstream-versitygw")
        .filter_map(|entry| entry.path().read_dir_utf8().ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("content/bin/versitygw"))
        .filter(|path| path.is_file())
        .max_by_key(|path| {
            fs_err::metadata(path)
                .and_then(|metadata| metadata.modified())
                .ok()
        })
        .ok_or_else(|| format!("no versitygw below {artefacts}; run `stolos-build upstream versitygw`"))
}
