//! Encryption at rest: AES-256-GCM with data keys that lie in the database, wrapped by the root key.
//!
//! The associated data of each secret are its name, its id and its type, so a row that is moved does not decrypt.

use std::collections::HashMap;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::root_key::RootKey;

/// A nonce and what it encrypts.
pub(crate) struct Sealed {
    pub(crate) nonce: Vec<u8>,
    pub(crate) ciphertext: Vec<u8>,
}

/// The bytes did not come out of [`seal`] with this key and these associated data.
#[derive(Debug)]
pub(crate) struct DoesNotOpen;

/// The data keys by id; new secrets take the active one.
pub(crate) struct Keys {
    active: String,
    keys: HashMap<String, LessSafeKey>,
}

impl Keys {
    /// Unwraps the data keys (id, nonce, wrapped key); the last one is active.
    pub(crate) fn unwrap(root: &RootKey, wrapped: &[(String, Sealed)]) -> Result<Self, DoesNotOpen> {
        let root = key(root.bytes());
        let mut keys = HashMap::new();
        let mut active = String::new();
        for (id, sealed) in wrapped {
            let bytes = open(&root, sealed, wrapping(id).as_bytes())?;
            let bytes: Zeroizing<[u8; 32]> =
                Zeroizing::new(bytes.as_slice().try_into().map_err(|_| DoesNotOpen)?);
            keys.insert(id.clone(), key(&bytes));
            active.clone_from(id);
        }
        if active.is_empty() {
            return Err(DoesNotOpen);
        }
        Ok(Self { active, keys })
    }

    /// A new data key, wrapped.
    pub(crate) fn generate(root: &RootKey, id: &str) -> Sealed {
        let data = RootKey::random();
        seal(&key(root.bytes()), data.bytes(), wrapping(id).as_bytes())
    }

    /// The id of the key that new secrets take.
    pub(crate) fn active(&self) -> &str {
        &self.active
    }

    pub(crate) fn seal(&self, plaintext: &[u8], associated: &[u8]) -> Sealed {
        seal(&self.keys[&self.active], plaintext, associated)
    }

    pub(crate) fn open(
        &self,
        id: &str,
        sealed: &Sealed,
        associated: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, DoesNotOpen> {
        open(self.keys.get(id).ok_or(DoesNotOpen)?, sealed, associated)
    }
}

fn wrapping(id: &str) -> String {
    format!("stolos data key {id}")
}

fn key(bytes: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).expect("the key has the algorithm's length"))
}

fn seal(key: &LessSafeKey, plaintext: &[u8], associated: &[u8]) -> Sealed {
    let mut nonce = [0_u8; NONCE_LEN];
    aws_lc_rs::rand::fill(&mut nonce).expect("the operating system gives random bytes");
    // Encrypted in place, with room for the tag: the plaintext's only copy is overwritten by the ciphertext.
    let mut bytes = Vec::with_capacity(plaintext.len() + AES_256_GCM.tag_len());
    bytes.extend_from_slice(plaintext);
    key.seal_in_place_append_tag(
        Nonce::assume_unique_for_key(nonce),
        Aad::from(associated),
        &mut bytes,
    )
    .expect("a secret is far shorter than the cipher's limit");
    Sealed {
        nonce: nonce.to_vec(),
        ciphertext: bytes,
    }
}

fn open(key: &LessSafeKey, sealed: &Sealed, associated: &[u8]) -> Result<Zeroizing<Vec<u8>>, DoesNotOpen> {
    let nonce = Nonce::try_assume_unique_for_key(&sealed.nonce).map_err(|_| DoesNotOpen)?;
    let mut bytes = Zeroizing::new(sealed.ciphertext.clone());
    let length = key
        .open_in_place(nonce, Aad::from(associated), &mut bytes)
        .map_err(|_| DoesNotOpen)?
        .len();
    bytes.truncate(length);
    Ok(bytes)
}
