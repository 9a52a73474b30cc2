//! Sealing: AES-256-GCM with a random nonce. A sealed file is `nonce (12 bytes) || ciphertext || tag (16 bytes)`.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use stolos_base::Secret;

/// What sealing adds.
pub(crate) const OVERHEAD: u64 = 12 + 16;
/// Binds the bytes to their use, so that nothing else encrypted under the same key passes for a blob.
const PURPOSE: &[u8] = b"stolos sealed blob 1";

/// The key with which blobs are sealed.
#[derive(Clone, Debug)]
pub struct SealKey(Secret<[u8; 32]>);

impl SealKey {
    /// A key of 32 random bytes, or derived from such.
    #[must_use]
    pub fn new(key: [u8; 32]) -> Self {
        Self(Secret::new(key))
    }

    fn key(&self) -> RandomizedNonceKey {
        RandomizedNonceKey::new(&AES_256_GCM, self.0.expose()).expect("AES-256 takes keys of 32 bytes")
    }
}

pub(crate) fn seal(key: &SealKey, bytes: &[u8]) -> Vec<u8> {
    let mut text = bytes.to_vec();
    let nonce = key
        .key()
        .seal_in_place_append_tag(Aad::from(PURPOSE), &mut text)
        .expect("AES-GCM seals what fits into memory");
    let mut sealed = nonce.as_ref().to_vec();
    sealed.append(&mut text);
    sealed
}

pub(crate) fn unseal(key: &SealKey, mut sealed: Vec<u8>) -> Option<Vec<u8>> {
    let nonce: [u8; NONCE_LEN] = sealed.get(..NONCE_LEN)?.try_into().ok()?;
    let mut text = sealed.split_off(NONCE_LEN);
    let n = key
        .key()
        .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(PURPOSE), &mut text)
        .ok()?
        .len();
    text.truncate(n);
    Some(text)
}
