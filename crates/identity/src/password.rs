//! Passwords: argon2id, a few at a time.
//!
//! One hash takes some 20 ms and 19 MiB on purpose, so they run on blocking threads, by turns ([`crate::turns`]). The memory is kept
//! for the next hash: an allocator that gets such pieces from one thread after the other keeps many of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use stolos_base::Secret;

use crate::error::{Error, Result};
use crate::source::Source;
use crate::turns::{AT_ONCE, Turn, Turns};

/// Hashes and checks passwords. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Passwords {
    turns: Turns,
    memory: Memory,
    /// What a password of an unknown user is checked against, so that it takes the same time.
    nobody: Arc<str>,
}

/// A turn to check one password.
pub(crate) struct Check<'a> {
    passwords: &'a Passwords,
    turn: Arc<Turn>,
}

impl Passwords {
    pub(crate) async fn new() -> Result<Self> {
        let mut new = Self {
            turns: Turns::default(),
            memory: Memory::default(),
            nobody: "".into(),
        };
        let random = Secret::new(stolos_base::ids::random_hex(32));
        new.nobody = new.hash(random, &Source::own()).await?.into();
        Ok(new)
    }

    /// A hash with a random salt, in PHC's form.
    pub(crate) async fn hash(&self, password: Secret<String>, source: &Source) -> Result<String> {
        let turn = Arc::new(self.turns.turn(source).await?);
        self.run(turn, move |memory| made(&password, memory)).await
    }

    /// Waits for a turn of `source`. Its other attempts wait until the answer is dropped.
    pub(crate) async fn turn(&self, source: &Source) -> Result<Check<'_>> {
        Ok(Check {
            passwords: self,
            turn: Arc::new(self.turns.turn(source).await?),
        })
    }

    /// Whether the password has this hash; without a hash, takes as long and says no.
    pub(crate) async fn check(
        &self,
        password: Secret<String>,
        hash: Option<String>,
        source: &Source,
    ) -> Result<bool> {
        self.turn(source).await?.fits(password, hash).await
    }

    async fn run<T: Send + 'static>(
        &self,
        turn: Arc<Turn>,
        work: impl FnOnce(&mut Vec<Block>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let memory = self.memory.clone();
        // The turn goes along: when the request is given up, the hash still runs to its end and counts.
        let work = move || {
            let _turn = turn;
            let mut blocks = memory.take();
            let result = work(&mut blocks);
            memory.give_back(blocks);
            result
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| Error::Hash(error.into()))?
    }
}

impl Check<'_> {
    /// As [`Passwords::check`].
    pub(crate) async fn fits(&self, password: Secret<String>, hash: Option<String>) -> Result<bool> {
        let is_known = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.passwords.nobody.to_string());
        let work = move |memory: &mut Vec<Block>| Ok(has(&password, &hash, memory)? && is_known);
        self.passwords.run(self.turn.clone(), work).await
    }
}

/// What hashes run in, kept from one to the next: at most [`AT_ONCE`] pieces.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<Vec<Block>>>>);

impl Memory {
    fn take(&self) -> Vec<Block> {
        self.pieces().pop().unwrap_or_default()
    }

    fn give_back(&self, blocks: Vec<Block>) {
        let mut pieces = self.pieces();
        if pieces.len() < AT_ONCE {
            pieces.push(blocks);
        }
    }

    fn pieces(&self) -> MutexGuard<'_, Vec<Vec<Block>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn made(password: &Secret<String>, memory: &mut Vec<Block>) -> Result<String> {
    let wrong = |error: argon2::password_hash::phc::Error| Error::Hash(error.to_string().into());
    let params = Params::DEFAULT;
    let salt = Salt::generate();
    let mut output = [0; Params::DEFAULT_OUTPUT_LEN];
    let (algorithm, version) = (Algorithm::Argon2id, Version::V0x13);
    let params_text =
        ParamsString::try_from(&params).map_err(|error| Error::Hash(error.to_string().into()))?;
    let argon2 = Argon2::new(algorithm, version, params);
    fill(&argon2, password, &salt, &mut output, memory)?;
    let hash = PasswordHash {
        algorithm: algorithm.ident(),
        version: Some(version.into()),
        params: params_text,
        salt: Some(salt),
        hash: Some(Output::new(&output).map_err(wrong)?),
    };
    Ok(hash.to_string())
}

fn has(password: &Secret<String>, hash: &str, memory: &mut Vec<Block>) -> Result<bool> {
    let corrupt = || Error::Corrupt("password hash");
    let hash = PasswordHash::new(hash).map_err(|_| corrupt())?;
    let (Some(salt), Some(expected)) = (&hash.salt, &hash.hash) else {
        return Err(corrupt());
    };
    let algorithm = Algorithm::try_from(hash.algorithm.as_str()).map_err(|_| corrupt())?;
    let version = hash
        .version
        .map(Version::try_from)
        .transpose()
        .map_err(|_| corrupt())?;
    let params = Params::try_from(&hash).map_err(|_| corrupt())?;
    let argon2 = Argon2::new(algorithm, version.unwrap_or_default(), params);
    let mut output = vec![0; expected.len()];
    fill(&argon2, password, salt, &mut output, memory)?;
    Ok(aws_lc_rs::constant_time::verify_slices_are_equal(&output, expected.as_bytes()).is_ok())
}

fn fill(
    argon2: &Argon2<'_>,
    password: &Secret<String>,
    salt: &Salt,
    output: &mut [u8],
    memory: &mut Vec<Block>,
) -> Result<()> {
    let needed = argon2.params().block_count();
    if memory.len() < needed {
        memory.resize(needed, Block::default());
    }
    argon2
        .hash_password_into_with_memory(password.expose().as_bytes(), salt, output, &mut memory[..needed])
        .map_err(|error| Error::Hash(error.to_string().into()))
}

#[cfg(test)]
mod tests {
    use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};

    use super::*;

    /// Hashes are as others make and read them, whatever the memory was used for before: those of earlier versions stay valid.
    #[test]
    fn hashes_are_those_of_the_library() {
        let mut memory = Vec::new();
        let (right, wrong) = (Secret::from("planted"), Secret::from("other"));
        let theirs: PasswordHash = Argon2::default().hash_password(b"planted").expect("a hash");
        let theirs = theirs.to_string();
        let ours = made(&right, &mut memory).expect("a hash");
        for hash in [&theirs, &ours] {
            assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
            assert!(has(&right, hash, &mut memory).expect("an answer"));
            assert!(!has(&wrong, hash, &mut memory).expect("an answer"));
        }
        let ours = PasswordHash::new(&ours).expect("PHC's form");
        Argon2::default()
            .verify_password(b"planted", &ours)
            .expect("it fits");
        assert!(has(&right, "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ", &mut memory).is_err());
    }

    /// Memory that many threads allocated and freed stayed with the allocator: 800 MiB after a flood.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_flood_takes_two_pieces_of_memory() {
        let passwords = Passwords::new().await.expect("passwords");
        let mut floods = Vec::new();
        for n in 0..8_u8 {
            let passwords = passwords.clone();
            floods.push(async move {
                let source = Source::of([10, 0, 0, n].into());
                for _ in 0..3 {
                    let fits = passwords.check(Secret::from("x"), None, &source).await;
                    assert!(!fits.expect("an answer"));
                }
            });
        }
        futures::future::join_all(floods).await;
        let pieces = passwords.memory.pieces();
        assert!((1..=AT_ONCE).contains(&pieces.len()), "{}", pieces.len());
        assert!(
            pieces
                .iter()
                .all(|piece| piece.len() == Params::DEFAULT.block_count())
        );
    }
}
