//! The RSA key that signs tokens, and how it is shown to those who verify them.

use std::fmt;

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use stolos_api::token::{Key, KeySet};
use stolos_base::Secret;

use crate::error::{Error, Result};

/// An RSA key pair.
#[derive(Clone)]
pub struct SigningKey {
    encoding: EncodingKey,
    key: Key,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("kid", &self.key.kid)
            .finish_non_exhaustive()
    }
}

impl SigningKey {
    /// From PEM texts as `credentials` keeps them: `public_key` (`PUBLIC KEY`) and `private_key` (PKCS #1 or #8).
    /// The key's id is made from the public key, so it changes with it.
    ///
    /// # Errors
    /// [`Error::SigningKey`] when they are no RSA key pair.
    pub fn from_pem(public_key: &str, private_key: &Secret<String>) -> Result<Self> {
        let wrong = |error: jsonwebtoken::errors::Error| Error::SigningKey(error.into());
        let encoding = EncodingKey::from_rsa_pem(private_key.expose().as_bytes()).map_err(wrong)?;
        let jwk = Jwk::from_encoding_key(&encoding, Algorithm::RS256).map_err(wrong)?;
        let AlgorithmParameters::RSA(numbers) = &jwk.algorithm else {
            return Err(Error::SigningKey("it is no RSA key".into()));
        };
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, numbers.n.as_bytes());
        let key = Key {
            kty: "RSA".to_owned(),
            e: numbers.e.clone(),
            usage: "sig".to_owned(),
            kid: format!("key-{}", hex::encode(&digest.as_ref()[..8])),
            alg: "RS256".to_owned(),
            value: public_key.trim_end().to_owned(),
            n: numbers.n.clone(),
        };
        let new = Self { encoding, key };
        // Whoever reads the PEM text and whoever reads the numbers have to come to the same key.
        let token = new.sign(&serde_json::json!({"exp": 0}), "")?;
        let decoding = jsonwebtoken::DecodingKey::from_rsa_pem(public_key.as_bytes()).map_err(wrong)?;
        let mut validation = jsonwebtoken::Validation::new(Algorithm::RS256);
        validation.validate_exp = false;
        jsonwebtoken::decode::<serde_json::Value>(token, &decoding, &validation).map_err(wrong)?;
        Ok(new)
    }

    /// What verifiers get.
    #[must_use]
    pub fn key_set(&self) -> KeySet {
        KeySet {
            keys: vec![self.key.clone()],
        }
    }

    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// A signed token. `jku` is the address of the key set.
    pub(crate) fn sign(&self, claims: &impl Serialize, jku: &str) -> Result<String> {
        let header = Header {
            kid: Some(self.key.kid.clone()),
            jku: (!jku.is_empty()).then(|| jku.to_owned()),
            ..Header::new(Algorithm::RS256)
        };
        jsonwebtoken::encode(&header, claims, &self.encoding).map_err(|error| Error::SigningKey(error.into()))
    }
}
