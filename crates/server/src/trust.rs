//! What an installation makes once and keeps: its authorities, the certificates of its listeners, its id, its own secrets.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;
use stolos_base::ids::DirectorId;
use stolos_base::lock::FileLock;
use stolos_base::pki::{Authority, Identity as Pair};
use stolos_base::{IdSource, Instance, Secret, files, poll};
use stolos_credentials::{Credentials, Mode, Name, Parameters, Scope, Value};
use stolos_identity::SigningKey;
use stolos_store::Db;

use crate::variables::{self, DIRECTOR_NAME};

/// How often a manager looks whether another one has made what is made once.
const LOOK: Duration = Duration::from_millis(20);
/// Keys and databases take a second; a busy host takes its time.
const START_LIMIT: Duration = Duration::from_secs(120);

/// Authorities and the certificates of our own listeners.
pub(crate) struct Trust {
    pub(crate) ca: String,
    pub(crate) api: Pair,
    pub(crate) director: Pair,
    pub(crate) bus: Authority,
}

impl Trust {
    pub(crate) async fn make(
        instance: &Instance,
        credentials: &Credentials,
        host: IpAddr,
        managers: &[IpAddr],
    ) -> anyhow::Result<Self> {
        let ca_options = |name: &str| json!({"is_ca": true, "common_name": name, "duration": 3650});
        let ca = variables::certificate(credentials, "/stolos/ca", ca_options("Stolos CA")).await?;
        let bus = variables::certificate(credentials, "/stolos/bus_ca", ca_options("Stolos bus CA")).await?;
        let leaf = |name: &str, algorithm: &str| {
            let mut names = vec![host.to_string(), name.to_owned()];
            let others = managers.iter().filter(|manager| **manager != host);
            names.extend(others.map(ToString::to_string));
            json!({
                "ca": "/stolos/ca",
                "common_name": name,
                "alternative_names": names,
                "extended_key_usage": ["server_auth"],
                "duration": 825,
                "key_algorithm": algorithm,
            })
        };
        let api =
            variables::certificate(credentials, "/stolos/api", leaf("api.stolos.internal", "ecdsa")).await?;
        // BOSH's command line takes ECDSA certificates over TLS 1.3 only (bosh.md, section 0).
        let director = variables::certificate(
            credentials,
            "/stolos/director",
            leaf("director.stolos.internal", "rsa"),
        )
        .await?;
        files::write_atomic(&instance.ca_file(), ca.certificate.as_bytes(), 0o644)?;
        Ok(Self {
            ca: ca.certificate,
            api: variables::identity(&api),
            director: variables::identity(&director),
            bus: Authority::from_identity(variables::identity(&bus)),
        })
    }
}

/// The key that signs tokens.
pub(crate) async fn signing_key(credentials: &Credentials) -> anyhow::Result<SigningKey> {
    let scope = Scope::deployment(DIRECTOR_NAME, "installation")?;
    let parameters = Parameters::parse("rsa", &json!({}), &scope)?;
    let key = credentials
        .generate(
            &Name::absolute("/stolos/token_key")?,
            &parameters,
            Mode::NoOverwrite,
        )
        .await?;
    let Value::Rsa {
        public_key,
        private_key,
    } = &key.value
    else {
        anyhow::bail!("`/stolos/token_key` is no RSA key");
    };
    Ok(SigningKey::from_pem(public_key, private_key)?)
}

/// 32 bytes that are made once.
pub(crate) async fn secret_bytes(credentials: &Credentials, name: &str) -> anyhow::Result<[u8; 32]> {
    let made = || Ok(Secret::new(stolos_base::ids::random_hex(32)));
    let text = variables::once(credentials, name, made).await?;
    hex_bytes(text.expose()).with_context(|| format!("the stored key `{name}` is not valid"))
}

fn hex_bytes(text: &str) -> Option<[u8; 32]> {
    let bytes: Option<Vec<u8>> = (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect();
    bytes?.try_into().ok()
}

/// The id of the installation; made at the first start.
pub(crate) async fn director_id(instance: &Instance, ids: &IdSource) -> anyhow::Result<DirectorId> {
    let path = instance.root.join("director.json");
    if let Some(id) = files::read_json(&path)? {
        return Ok(id);
    }
    let _alone = alone(instance).await?;
    if let Some(id) = files::read_json(&path)? {
        return Ok(id);
    }
    let id = DirectorId::new(ids);
    files::write_json(&path, &id, 0o644)?;
    Ok(id)
}

/// Waits until no other manager of this host is at what is made once, in files as well as in the database: two that start for the first
/// time at once do so one after the other.
pub(crate) async fn alone(instance: &Instance) -> anyhow::Result<FileLock> {
    let path = instance.run().join("first-start.lock");
    poll::until(
        "another manager's start",
        LOOK,
        START_LIMIT,
        async || match FileLock::try_acquire(&path) {
            Ok(Some(lock)) => Ok(lock),
            Ok(None) => Err("it has not ended".to_owned()),
            Err(error) => Err(error.to_string()),
        },
    )
    .await
    .context("failed to wait for another manager's start")
}

/// A new password for the first administrator, where there is none yet: in a file that only root reads, so that `stolos up` can log in. The
/// file is written before the administrator is made, so that no death in between makes one whose password nobody knows.
pub(crate) async fn first_password(
    instance: &Instance,
    db: &Db,
    name: &str,
) -> anyhow::Result<Option<Secret<String>>> {
    if stolos_identity::has_user(db, name).await? {
        return Ok(None);
    }
    let password = Secret::new(stolos_base::ids::random_hex(16));
    let path = instance.root.join("admin.password");
    files::write_atomic(&path, format!("{}\n", password.expose()).as_bytes(), 0o600)
        .context("failed to write down the administrator's password")?;
    Ok(Some(password))
}
