//! Who people and programs are: a token service that speaks UAA's wire.
//!
//! Owns: users and their scopes, clients, passwords, access and refresh tokens, the key set that verifies them, the
//! router of port 8443 with its few pages for browsers. Never does: deciding what a scope allows (each service does), keeping the signing key (given
//! by the caller, from `credentials`).
//!
//! Invariants:
//! - A wrong password and an unknown name take the same way, the same time and the same answer.
//! - A token is void within seconds when its user is gone or has another password, at each service and manager.
//! - As many wrong passwords are looked at as are allowed, however many come at once; nobody locks a name for others.
//! - Passwords and client secrets are in the database as argon2id hashes, refresh tokens as digests.
//! - Users are made once and then belong to people; clients belong to the configuration and follow it.

mod audiences;
mod browser;
mod db;
mod error;
mod filter;
mod grant;
mod http;
mod keys;
mod lockout;
mod names;
mod password;
mod scim;
mod source;
mod standing;
mod tickets;
mod turns;

use std::fmt;
use std::sync::Arc;

use axum::Router;
use stolos_api::identity::{PKS_CLI, PKS_CLUSTER_CLIENT};
use stolos_api::token::Verifier;
use stolos_base::ids::{IdSource, UserId, random_hex};
use stolos_base::{Clock, Secret};
use stolos_store::Db;

use crate::lockout::Lockout;
use crate::password::Passwords;
use crate::source::Source;
use crate::standing::Standings;

pub use crate::db::{SCHEMA, TABLES};
pub use crate::error::{Error, Result};
pub use crate::keys::SigningKey;

/// Lifetime of PKS's access tokens in seconds.
const ACCESS_VALIDITY: i64 = 600;
/// Lifetime of a login by PKS's command line in seconds.
const REFRESH_VALIDITY: i64 = 21_600;

/// What the first administrator may do.
pub const ADMINISTRATOR_SCOPES: &[&str] = &[
    "bosh.admin",
    "bosh.read",
    "credhub.read",
    "credhub.write",
    "openid",
    "pks.clusters.admin",
    "pks.clusters.admin.read",
    "pks.clusters.manage",
    "roles",
    "scim.me",
    "scim.read",
    "scim.write",
    "uaa.admin",
    "uaa.user",
];

/// What the service needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Base address that everybody reaches the service under, without a final slash: it is in every token.
    pub external_url: String,
    /// The first administrator.
    pub administrator: Administrator,
    /// The clients besides `pks_cli` and `pks_cluster_client`. Those that are not named any more are forgotten.
    pub clients: Vec<ClientConfig>,
}

/// The first administrator; read at the first start only.
#[derive(Clone, Debug)]
pub struct Administrator {
    /// Name.
    pub name: String,
    /// Password; a random one when absent, see [`Identity::first_password`].
    pub password: Option<Secret<String>>,
}

/// A client that acts on its own.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Name.
    pub id: String,
    /// Secret; not empty.
    pub secret: Secret<String>,
    /// What it may do.
    pub authorities: Vec<String>,
}

/// The running service. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
    first_password: Option<Secret<String>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("issuer", &self.inner.issuer)
            .finish_non_exhaustive()
    }
}

pub(crate) struct Inner {
    pub(crate) db: Db,
    pub(crate) clock: Clock,
    pub(crate) passwords: Passwords,
    pub(crate) lockout: Lockout,
    pub(crate) signing: SigningKey,
    pub(crate) verifier: Verifier,
    pub(crate) standings: Arc<Standings>,
    pub(crate) external_url: String,
    pub(crate) issuer: String,
    /// Address of the key set.
    pub(crate) jku: String,
    pub(crate) ids: IdSource,
}

impl Identity {
    /// Starts the service over `db` (of [`SCHEMA`]): makes the administrator if there is none of that name, and brings
    /// the clients to what the configuration says. When nothing has changed, nothing is written.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start(db: Db, config: &Config, signing: SigningKey, ids: &IdSource) -> Result<Self> {
        let external_url = config.external_url.trim_end_matches('/').to_owned();
        let issuer = format!("{external_url}/oauth/token");
        let clock = db.clock().clone();
        let standings = Arc::new(Standings::new(db.clone()));
        let verifier = Verifier::fixed(issuer.clone(), &signing.key_set(), clock.clone())
            .map_err(|error| Error::SigningKey(error.into()))?
            .with_standing(standings.clone());
        let inner = Inner {
            passwords: Passwords::new().await?,
            lockout: Lockout::new(db.clone()),
            jku: format!("{external_url}/token_keys"),
            db,
            clock,
            signing,
            verifier,
            standings,
            external_url,
            issuer,
            ids: ids.clone(),
        };
        let first_password = inner.seed_administrator(&config.administrator, ids).await?;
        inner.seed_clients(&config.clients).await?;
        Ok(Self {
            inner: Arc::new(inner),
            first_password,
        })
    }

    /// What port 8443 serves.
    pub fn router(&self) -> Router {
        http::router(self.inner.clone())
    }

    /// Verifies this service's tokens without asking it over the network, and refuses those that have been revoked: within seconds after the user or
    /// client was deleted or got another password or secret, by whichever manager.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        self.inner.verifier.clone()
    }

    /// `<external_url>/oauth/token`
    #[must_use]
    pub fn issuer(&self) -> &str {
        &self.inner.issuer
    }

    /// The administrator's random password, if this start has made one: to be shown once.
    #[must_use]
    pub fn first_password(&self) -> Option<&Secret<String>> {
        self.first_password.as_ref()
    }

    /// Changes a user's password, ends all its logins and tokens, and unlocks it.
    ///
    /// # Errors
    /// [`Error::NoUser`], [`Error::PasswordLength`], or those of the database.
    pub async fn set_password(&self, user: &str, password: Secret<String>) -> Result<()> {
        check_length(&password)?;
        let hash = self.inner.passwords.hash(password, &Source::own()).await?;
        let mut tx = self.inner.db.begin("set a password").await?;
        let changed = db::set_password(&mut tx, user, &hash).await?;
        tx.commit().await?;
        self.inner.standings.forget();
        if !changed {
            return Err(Error::NoUser(user.to_owned()));
        }
        self.inner.lockout.unlock(user).await
    }
}

/// Whether there is a user of that name: before the first start there is none.
///
/// # Errors
/// Those of the database.
pub async fn has_user(db: &Db, name: &str) -> Result<bool> {
    Ok(db::user_by_name(db, name).await?.is_some())
}

/// Longer than 8, so that it cannot be tried out in seconds; not endless, because hashing takes longer then.
fn check_length(password: &Secret<String>) -> Result<()> {
    if (8..=1024).contains(&password.expose().len()) {
        Ok(())
    } else {
        Err(Error::PasswordLength)
    }
}

impl Inner {
    async fn seed_administrator(
        &self,
        administrator: &Administrator,
        ids: &IdSource,
    ) -> Result<Option<Secret<String>>> {
        if db::user_by_name(&self.db, &administrator.name).await?.is_some() {
            return Ok(None);
        }
        let (password, generated) = match &administrator.password {
            Some(password) => (password.clone(), None),
            None => {
                let random = Secret::new(random_hex(16));
                (random.clone(), Some(random))
            }
        };
        check_length(&password)?;
        let user = db::User {
            id: UserId::new(ids),
            name: administrator.name.clone(),
            // UAA insists on an address; nothing is ever sent to it.
            email: administrator.name.clone(),
            password: self.passwords.hash(password, &Source::own()).await?,
            scopes: ADMINISTRATOR_SCOPES
                .iter()
                .map(|scope| (*scope).to_owned())
                .collect(),
            active: true,
            created_at: self.clock.now_millis(),
        };
        let mut tx = self.db.begin("make the administrator").await?;
        let added = db::insert_user(&mut tx, &user).await?;
        tx.commit().await?;
        // Somebody else may have been first: then the password that counts is theirs.
        Ok(generated.filter(|_| added))
    }

    async fn seed_clients(&self, configured: &[ClientConfig]) -> Result<()> {
        let known = db::clients(&self.db).await?;
        let mut wanted = public_clients();
        for client in configured {
            wanted.push(self.configured_client(client, &known).await?);
        }
        let changed: Vec<_> = wanted.iter().filter(|client| !known.contains(client)).collect();
        let gone: Vec<_> = known
            .iter()
            .filter(|client| !wanted.iter().any(|other| other.id == client.id))
            .collect();
        if changed.is_empty() && gone.is_empty() {
            return Ok(());
        }
        let mut tx = self.db.begin("set up the clients").await?;
        for client in gone {
            db::delete_client(&mut tx, &client.id).await?;
        }
        for client in changed {
            db::upsert_client(&mut tx, client).await?;
        }
        Ok(tx.commit().await?)
    }

    /// With the old hash where the secret still has it.
    async fn configured_client(&self, config: &ClientConfig, known: &[db::Client]) -> Result<db::Client> {
        let wrong = |rule| Error::Client {
            client: config.id.clone(),
            rule,
        };
        if config.secret.expose().is_empty() {
            return Err(wrong("its secret is empty"));
        }
        if config.id.is_empty() || public_clients().iter().any(|client| client.id == config.id) {
            return Err(wrong("its name is empty or taken"));
        }
        let old = known.iter().find(|client| client.id == config.id);
        let old = old.and_then(|client| client.secret.clone());
        let keeps = match &old {
            Some(_) => {
                let secret = config.secret.clone();
                self.passwords.check(secret, old.clone(), &Source::own()).await?
            }
            None => false,
        };
        Ok(db::Client {
            id: config.id.clone(),
            secret: if keeps {
                old
            } else {
                Some(self.passwords.hash(config.secret.clone(), &Source::own()).await?)
            },
            grants: vec!["client_credentials".to_owned()],
            scopes: Vec::new(),
            authorities: config.authorities.clone(),
            access_validity: ACCESS_VALIDITY,
            refresh_validity: REFRESH_VALIDITY,
        })
    }
}

/// PKS's clients with empty secrets: people log in through them.
fn public_clients() -> Vec<db::Client> {
    let client = |id: &str, scopes: &[&str]| db::Client {
        id: id.to_owned(),
        secret: None,
        grants: ["authorization_code", "password", "refresh_token"]
            .map(str::to_owned)
            .to_vec(),
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        authorities: Vec::new(),
        access_validity: ACCESS_VALIDITY,
        refresh_validity: REFRESH_VALIDITY,
    };
    vec![
        client(
            PKS_CLI,
            &[
                "bosh.admin",
                "bosh.read",
                "pks.clusters.admin",
                "pks.clusters.admin.read",
                "pks.clusters.manage",
                "scim.read",
                "scim.write",
            ],
        ),
        client(PKS_CLUSTER_CLIENT, &["openid", "roles"]),
    ]
}
