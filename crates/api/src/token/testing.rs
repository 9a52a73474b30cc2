//! Tokens for tests of services: a signing key, and the verifier that believes it.

use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;
use stolos_base::Clock;
use stolos_base::pki::{Authority, KeyKind, Leaf, Usage};

use super::{Key, KeySet, Verifier};

const ISSUER: &str = "https://identity.test/oauth/token";

/// Signs tokens of users with a key of its own.
pub struct Mint {
    signing: EncodingKey,
    keys: KeySet,
}

impl Mint {
    /// A mint with a fresh key.
    ///
    /// # Panics
    /// When no key can be made, which fails the test.
    #[must_use]
    pub fn new() -> Self {
        stolos_base::tls::install_provider();
        let now = Clock::system().now();
        let authority = Authority::root("test", Duration::from_secs(3600), now).expect("a CA");
        let mut leaf = Leaf::new("tokens", Usage::Server);
        leaf.key = KeyKind::Rsa;
        let key = authority.issue(&leaf, now).expect("an RSA key").key;
        let signing = EncodingKey::from_rsa_pem(key.expose().as_bytes()).expect("a signing key");
        let jwk = Jwk::from_encoding_key(&signing, Algorithm::RS256).expect("a JWK");
        let AlgorithmParameters::RSA(numbers) = &jwk.algorithm else {
            panic!("it is RSA")
        };
        let key = Key {
            kty: "RSA".into(),
            kid: "k".into(),
            alg: "RS256".into(),
            n: numbers.n.clone(),
            e: numbers.e.clone(),
            ..Key::default()
        };
        Self {
            signing,
            keys: KeySet { keys: vec![key] },
        }
    }

    /// A verifier that accepts this mint's tokens.
    ///
    /// # Panics
    /// When the key is not understood, which fails the test.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        Verifier::fixed(ISSUER, &self.keys, Clock::system()).expect("a verifier")
    }

    /// A token of a user that lives for so many seconds; negative for one that has ended.
    ///
    /// # Panics
    /// When it cannot be signed, which fails the test.
    #[must_use]
    pub fn token(&self, user: &str, scopes: &[&str], lives_for: i64) -> String {
        self.token_of(user, &format!("id-of-{user}"), scopes, lives_for)
    }

    /// The same of a user with this id.
    ///
    /// # Panics
    /// When it cannot be signed, which fails the test.
    #[must_use]
    pub fn token_of(&self, user: &str, id: &str, scopes: &[&str], lives_for: i64) -> String {
        let now = Clock::system().now().as_second();
        let claims = json!({"iss": ISSUER, "exp": now + lives_for, "iat": now - 700, "client_id": "pks_cli", "user_name": user, "user_id": id,
                            "scope": scopes, "jti": "j"});
        let header = Header {
            kid: Some("k".into()),
            ..Header::new(Algorithm::RS256)
        };
        jsonwebtoken::encode(&header, &claims, &self.signing).expect("a token")
    }
}

impl Default for Mint {
    fn default() -> Self {
        Self::new()
    }
}
