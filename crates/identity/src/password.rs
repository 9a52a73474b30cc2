//! Passwords: argon2id, a few at a time.
//!
//! One hash takes some 20 ms and 19 MiB on purpose, so they run on blocking threads, at most [`AT_ONCE`] together, and
//! at most [`WAITING`] wait: more logins than that are turned away instead of piling up.

use std::sync::Arc;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use stolos_base::Secret;
use tokio::sync::Semaphore;

use crate::error::{Error, Result};

/// Hashes at once.
const AT_ONCE: usize = 2;
/// Hashes that may wait or run.
const WAITING: usize = 128;

/// Hashes and checks passwords.
#[derive(Clone)]
pub(crate) struct Passwords {
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    /// What a password of an unknown user is checked against, so that it takes the same time.
    nobody: Arc<str>,
}

impl Passwords {
    pub(crate) async fn new() -> Result<Self> {
        let mut new = Self {
            running: Arc::new(Semaphore::new(AT_ONCE)),
            waiting: Arc::new(Semaphore::new(WAITING)),
            nobody: "".into(),
        };
        let random = Secret::new(stolos_base::ids::random_hex(32));
        new.nobody = new.hash(random).await?.into();
        Ok(new)
    }

    /// A hash with a random salt, in PHC's form.
    pub(crate) async fn hash(&self, password: Secret<String>) -> Result<String> {
        self.run(move || {
            Argon2::default()
                .hash_password(password.expose().as_bytes())
                .map(|hash: PasswordHash| hash.to_string())
                .map_err(|error| Error::Hash(error.to_string().into()))
        })
        .await
    }

    /// Whether the password has this hash; without a hash, takes as long and says no.
    pub(crate) async fn check(&self, password: Secret<String>, hash: Option<String>) -> Result<bool> {
        let is_known = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.nobody.to_string());
        self.run(move || {
            let hash = PasswordHash::new(&hash).map_err(|_| Error::Corrupt("password hash"))?;
            let fits = Argon2::default()
                .verify_password(password.expose().as_bytes(), &hash)
                .is_ok();
            Ok(fits && is_known)
        })
        .await
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let _waiting = self
            .waiting
            .clone()
            .try_acquire_owned()
            .map_err(|_| Error::Busy)?;
        let running = self
            .running
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| Error::Busy)?;
        // The permit goes along: when the request is given up, the hash still runs to its end and counts.
        let work = move || {
            let _running = running;
            work()
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| Error::Hash(error.into()))?
    }
}
