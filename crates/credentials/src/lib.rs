//! Secrets by name: generated, kept encrypted, versioned. CredHub's core without its HTTP API.
//!
//! Owns: the root key file ([`root_key`]), names ([`name`]), what can be asked for ([`parameters`]) and what comes
//! out ([`value`]), encryption at rest, the tables. Never does: deciding what a deployment needs, showing a secret.
//!
//! Invariants:
//! - A name keeps its type. Versions are only added, until the whole name is deleted.
//! - Secrets are in the database as AES-256-GCM ciphertext only, bound to their name, id and type. Data keys are
//!   wrapped by the root key; with another root key nothing starts.
//! - Two generations of one name at once give one version (unless both overwrite).

mod cipher;
mod db;
mod error;
mod generate;
pub mod name;
pub mod parameters;
pub mod root_key;
pub mod value;

use std::fmt;
use std::sync::Arc;

use stolos_base::compute;
use stolos_base::ids::{CredentialId, IdSource};
use stolos_store::Db;

use crate::cipher::Keys;
use crate::db::Version;

pub use crate::db::{SCHEMA, TABLES};
pub use crate::error::{Error, Result};
pub use crate::name::{Name, Scope};
pub use crate::parameters::{Mode, Parameters};
pub use crate::root_key::RootKey;
pub use crate::value::{Certificate, Credential, Kind, Listed, Value};

/// How many names one list query gives.
const PAGE: i64 = 500;

/// The credentials of an installation. Cheap to clone.
#[derive(Clone)]
pub struct Credentials(Arc<Inner>);

struct Inner {
    db: Db,
    keys: Keys,
    ids: IdSource,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// Opens the credentials in `db` (of [`SCHEMA`]) with the root key. The first time, a data key is made.
    ///
    /// # Errors
    /// [`Error::WrongRootKey`], or those of the database.
    pub async fn open(db: Db, root: &RootKey, ids: IdSource) -> Result<Self> {
        let mut tx = db.begin("open the data keys").await?;
        let mut wrapped = db::data_keys(&mut tx).await?;
        if wrapped.is_empty() {
            let id = ids.next().to_string();
            let sealed = Keys::generate(root, &id);
            db::insert_data_key(&mut tx, &id, &sealed).await?;
            wrapped.push((id, sealed));
        }
        tx.commit().await?;
        let keys = Keys::unwrap(root, &wrapped).map_err(|_| Error::WrongRootKey)?;
        Ok(Self(Arc::new(Inner { db, keys, ids })))
    }

    /// The newest version.
    ///
    /// # Errors
    /// [`Error::NotFound`], or those of the database.
    pub async fn get(&self, name: &Name) -> Result<Credential> {
        self.find(name)
            .await?
            .ok_or_else(|| Error::NotFound(name.to_string()))
    }

    /// The newest version, if there is one.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn find(&self, name: &Name) -> Result<Option<Credential>> {
        let version = db::newest(&self.0.db, name).await?;
        version.map(|version| self.open_version(version)).transpose()
    }

    /// A version by its id: what a deployment has pinned.
    ///
    /// # Errors
    /// [`Error::NotFound`], or those of the database.
    pub async fn get_by_id(&self, id: CredentialId) -> Result<Credential> {
        let version = db::by_id(&self.0.db, id).await?;
        self.open_version(version.ok_or_else(|| Error::NotFound(id.to_string()))?)
    }

    /// All names that begin with `prefix` (`/` for all, [`Scope::prefix`] for a deployment), in order.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let mut all: Vec<Listed> = Vec::new();
        loop {
            let after = all.last().map_or("", |last| last.name.as_str()).to_owned();
            let page = db::list(&self.0.db, prefix, &after, PAGE).await?;
            let is_last = page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
            all.extend(page);
            if is_last {
                return Ok(all);
            }
        }
    }

    /// Generates a value, or gives the one that is there, by mode.
    ///
    /// Expected flow: look, make the value outside of any transaction (an RSA key takes a while), look again and keep
    /// it. Guarantees: of several calls at once for one name one value is kept, and all get it, unless the mode is
    /// [`Mode::Overwrite`].
    ///
    /// # Errors
    /// [`Error::KindChange`], [`Error::NoAuthority`], [`Error::NotAnAuthority`], [`Error::Make`], or those of the
    /// database.
    pub async fn generate(&self, name: &Name, parameters: &Parameters, mode: Mode) -> Result<Credential> {
        let authority = self.authority(name, parameters).await?;
        let wanted = Wanted {
            kind: parameters.kind(),
            parameters: Some(serde_json::to_string(parameters).expect("parameters have text keys only")),
            signed_by: authority.as_ref().map(|authority| authority.id),
        };
        let known = db::newest(&self.0.db, name).await?;
        if let Some(known) = &known {
            wanted.check(known)?;
        }
        if let Some(known) = known.filter(|known| wanted.is_met_by(known, mode)) {
            return self.open_version(known);
        }
        let now = self.0.db.clock().now();
        let (subject, options) = (name.clone(), parameters.clone());
        let signer = authority.and_then(|authority| authority.value.certificate().cloned());
        let made = compute::run(move || generate::generate(&subject, &options, signer.as_ref(), now));
        let (value, expires_at) = made.await.map_err(|source| Error::Make {
            name: name.to_string(),
            source: source.into(),
        })??;
        self.keep(name, value, expires_at, wanted, mode).await
    }

    /// Sets a value that somebody gives. A certificate must belong to its key.
    ///
    /// # Errors
    /// [`Error::KindChange`], [`Error::Make`] for a certificate that does not fit, or those of the database.
    pub async fn set(&self, name: &Name, value: Value) -> Result<Credential> {
        self.set_as(name, value, Mode::Overwrite).await
    }

    /// Sets a value unless there is one; gives the one that counts, which all get who call this at once.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub async fn set_once(&self, name: &Name, value: Value) -> Result<Credential> {
        self.set_as(name, value, Mode::NoOverwrite).await
    }

    async fn set_as(&self, name: &Name, value: Value, mode: Mode) -> Result<Credential> {
        let expires_at = match &value {
            Value::Certificate(certificate) => generate::check_pair(certificate)
                .and_then(|()| generate::expiry(&certificate.certificate))
                .map(Some)
                .map_err(|source| Error::Make {
                    name: name.to_string(),
                    source,
                })?,
            _ => None,
        };
        let wanted = Wanted {
            kind: value.kind(),
            parameters: None,
            signed_by: None,
        };
        self.keep(name, value, expires_at, wanted, mode).await
    }

    /// Generates a new version with the options of the newest one.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Static`], and those of [`Self::generate`].
    pub async fn regenerate(&self, name: &Name) -> Result<Credential> {
        let newest = db::newest(&self.0.db, name).await?;
        let newest = newest.ok_or_else(|| Error::NotFound(name.to_string()))?;
        let parameters = newest.parameters.ok_or_else(|| Error::Static(name.to_string()))?;
        let parameters: Parameters =
            serde_json::from_str(&parameters).map_err(|_| Error::Corrupt(name.to_string()))?;
        self.generate(name, &parameters, Mode::Overwrite).await
    }

    /// Forgets a name and all its versions; whether there was one.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn delete(&self, name: &Name) -> Result<bool> {
        let mut tx = self.0.db.begin("delete a credential").await?;
        let was_there = db::delete(&mut tx, name).await?;
        tx.commit().await?;
        Ok(was_there)
    }

    /// Forgets all names that begin with `prefix` ([`Scope::prefix`]); how many there were.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn delete_below(&self, prefix: &str) -> Result<u64> {
        let mut tx = self.0.db.begin("delete credentials").await?;
        let deleted = db::delete_below(&mut tx, prefix).await?;
        tx.commit().await?;
        Ok(deleted)
    }

    /// The CA that `parameters` name, if any.
    async fn authority(&self, name: &Name, parameters: &Parameters) -> Result<Option<Credential>> {
        let Some(ca) = parameters.authority()? else {
            return Ok(None);
        };
        let found = self.find(&ca).await?.ok_or_else(|| Error::NoAuthority {
            name: name.to_string(),
            ca: ca.to_string(),
        })?;
        match found.value.certificate() {
            Some(certificate) if generate::is_authority(&certificate.certificate) => Ok(Some(found)),
            _ => Err(Error::NotAnAuthority {
                name: name.to_string(),
                ca: ca.to_string(),
            }),
        }
    }

    /// Adds a version unless somebody else has met the wish meanwhile.
    async fn keep(
        &self,
        name: &Name,
        value: Value,
        expires_at: Option<jiff::Timestamp>,
        wanted: Wanted,
        mode: Mode,
    ) -> Result<Credential> {
        let inner = &self.0;
        let id = CredentialId::new(&inner.ids);
        // As the database keeps it, so that what is returned now and what is read later are equal.
        let created_at = jiff::Timestamp::from_millisecond(inner.db.clock().now_millis())
            .expect("the clock gives times that its own type can hold");
        let mut tx = inner.db.begin_background("keep a credential").await?;
        let newest = db::newest_in(&mut tx, name).await?;
        let number = newest.as_ref().map_or(1, |newest| newest.number + 1);
        if let Some(newest) = newest {
            wanted.check(&newest)?;
            if wanted.is_met_by(&newest, mode) {
                return self.open_version(newest);
            }
        }
        let associated = associated(name, id, wanted.kind);
        let version = Version {
            id,
            name: name.clone(),
            kind: wanted.kind,
            number,
            created_at,
            expires_at,
            parameters: wanted.parameters,
            signed_by: wanted.signed_by,
            data_key: inner.keys.active().to_owned(),
            sealed: inner.keys.seal(&value.to_plaintext(), &associated),
        };
        db::insert(&mut tx, &version).await?;
        tx.commit().await?;
        self.open_version(version)
    }

    fn open_version(&self, version: Version) -> Result<Credential> {
        let corrupt = || Error::Corrupt(version.name.to_string());
        let associated = associated(&version.name, version.id, version.kind);
        let plaintext = self
            .0
            .keys
            .open(&version.data_key, &version.sealed, &associated)
            .map_err(|_| corrupt())?;
        let value = Value::from_plaintext(version.kind, &plaintext).ok_or_else(corrupt)?;
        Ok(Credential {
            id: version.id,
            created_at: version.created_at,
            expires_at: version.expires_at,
            value,
            name: version.name,
        })
    }
}

/// What a new version would be.
struct Wanted {
    kind: Kind,
    parameters: Option<String>,
    signed_by: Option<CredentialId>,
}

impl Wanted {
    fn check(&self, known: &Version) -> Result<()> {
        if known.kind == self.kind {
            return Ok(());
        }
        Err(Error::KindChange {
            name: known.name.to_string(),
            is: known.kind,
            wanted: self.kind,
        })
    }

    fn is_met_by(&self, known: &Version, mode: Mode) -> bool {
        match mode {
            Mode::NoOverwrite => true,
            Mode::Overwrite => false,
            Mode::Converge => known.parameters == self.parameters && known.signed_by == self.signed_by,
        }
    }
}

/// What a ciphertext is bound to.
fn associated(name: &Name, id: CredentialId, kind: Kind) -> Vec<u8> {
    format!("{}\0{id}\0{kind}", name.key()).into_bytes()
}
