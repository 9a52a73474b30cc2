//! What an installation makes once and keeps: its authorities, the certificates of its listeners, its id, its own secrets.

use std::net::IpAddr;

use anyhow::Context as _;
use serde_json::json;
use stolos_base::ids::DirectorId;
use stolos_base::pki::{Authority, Identity as Pair};
use stolos_base::{IdSource, Instance, Secret, files};
use stolos_credentials::{Credentials, Mode, Name, Parameters, Scope, Value};
use stolos_identity::{Identity, SigningKey};

use crate::variables::{self, DIRECTOR_NAME};

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
    ) -> anyhow::Result<Self> {
        let ca_options = |name: &str| json!({"is_ca": true, "common_name": name, "duration": 3650});
        let ca = variables::certificate(credentials, "/stolos/ca", ca_options("Stolos CA")).await?;
        let bus = variables::certificate(credentials, "/stolos/bus_ca", ca_options("Stolos bus CA")).await?;
        let leaf = |name: &str, algorithm: &str| {
            json!({
                "ca": "/stolos/ca",
                "common_name": name,
                "alternative_names": [host.to_string(), name],
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
    let name = Name::absolute(name)?;
    if let Some(text) = credentials
        .find(&name)
        .await?
        .and_then(|credential| credential.value.text().cloned())
    {
        let bytes = hex_bytes(text.expose()).context("a stored key is not valid")?;
        return Ok(bytes);
    }
    let text = Secret::new(stolos_base::ids::random_hex(32));
    credentials.set(&name, Value::Value(text.clone())).await?;
    hex_bytes(text.expose()).context("a new key is not valid")
}

fn hex_bytes(text: &str) -> Option<[u8; 32]> {
    let bytes: Option<Vec<u8>> = (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect();
    bytes?.try_into().ok()
}

pub(crate) fn director_id(instance: &Instance, ids: &IdSource) -> anyhow::Result<DirectorId> {
    let path = instance.root.join("director.json");
    if let Some(id) = files::read_json(&path)? {
        return Ok(id);
    }
    let id = DirectorId::new(ids);
    files::write_json(&path, &id, 0o644)?;
    Ok(id)
}

/// The first administrator's password goes to a file that only root reads, so that `stolos up` can log in.
pub(crate) fn remember_password(instance: &Instance, identity: &Identity) -> anyhow::Result<()> {
    if let Some(password) = identity.first_password() {
        let path = instance.root.join("admin.password");
        files::write_atomic(&path, format!("{}\n", password.expose()).as_bytes(), 0o600)
            .context("failed to write down the administrator's password")?;
    }
    Ok(())
}
