//! Types of credentials and their values.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use stolos_base::Secret;
use stolos_base::ids::CredentialId;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::name::Name;

/// The types, by CredHub's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Any text.
    Value,
    /// Any JSON.
    Json,
    /// A random text.
    Password,
    /// A name and a random text.
    User,
    /// A certificate and its key.
    Certificate,
    /// An RSA key pair.
    Rsa,
    /// An RSA key pair in OpenSSH's form.
    Ssh,
}

impl Kind {
    /// The word on wires and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Value => "value",
            Self::Json => "json",
            Self::Password => "password",
            Self::User => "user",
            Self::Certificate => "certificate",
            Self::Rsa => "rsa",
            Self::Ssh => "ssh",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        [
            Self::Value,
            Self::Json,
            Self::Password,
            Self::User,
            Self::Certificate,
            Self::Rsa,
            Self::Ssh,
        ]
        .into_iter()
        .find(|kind| kind.as_str() == text)
        .ok_or_else(|| Error::NotGenerated(text.to_owned()))
    }
}

/// One version of a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Id of this version; what a deployment pins.
    pub id: CredentialId,
    /// Name.
    pub name: Name,
    /// When this version was made.
    pub created_at: Timestamp,
    /// When the certificate ends.
    pub expires_at: Option<Timestamp>,
    /// What is secret.
    pub value: Value,
}

/// One line of a list: nothing secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Id of the newest version.
    pub id: CredentialId,
    /// Name.
    pub name: Name,
    /// Type.
    pub kind: Kind,
    /// When the newest version was made.
    pub created_at: Timestamp,
    /// When the certificate ends.
    pub expires_at: Option<Timestamp>,
}

/// A value. `Debug` shows what is public only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Any text.
    Value(Secret<String>),
    /// JSON, as text.
    Json(Secret<String>),
    /// A random text.
    Password(Secret<String>),
    /// A name and a random text.
    User {
        /// Name.
        username: String,
        /// Password.
        password: Secret<String>,
    },
    /// A certificate and its key, PEM.
    Certificate(Certificate),
    /// An RSA key pair, PEM.
    Rsa {
        /// `PUBLIC KEY`
        public_key: String,
        /// `RSA PRIVATE KEY` (PKCS #1)
        private_key: Secret<String>,
    },
    /// An RSA key pair in OpenSSH's form.
    Ssh {
        /// `ssh-rsa …`
        public_key: String,
        /// `RSA PRIVATE KEY` (PKCS #1)
        private_key: Secret<String>,
        /// SHA-256, base64 without padding and prefix.
        public_key_fingerprint: String,
    },
}

/// A certificate, its issuer's and its key, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The issuer's certificate; of a self-signed one, itself.
    pub ca: String,
    /// The certificate.
    pub certificate: String,
    /// Its key: PKCS #8 for ECDSA, PKCS #1 for RSA.
    pub private_key: Secret<String>,
}

impl Value {
    /// The type.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Value(_) => Kind::Value,
            Self::Json(_) => Kind::Json,
            Self::Password(_) => Kind::Password,
            Self::User { .. } => Kind::User,
            Self::Certificate(_) => Kind::Certificate,
            Self::Rsa { .. } => Kind::Rsa,
            Self::Ssh { .. } => Kind::Ssh,
        }
    }

    /// The plaintext as JSON, in CredHub's shape: what `((name))` stands for. Never log it.
    #[must_use]
    pub fn expose(&self) -> Json {
        match self {
            Self::Value(text) | Self::Password(text) => json!(text.expose()),
            Self::Json(text) => serde_json::from_str(text.expose()).unwrap_or_else(|_| json!(text.expose())),
            Self::User { username, password } => {
                json!({"username": username, "password": password.expose()})
            }
            Self::Certificate(certificate) => json!({
                "ca": certificate.ca,
                "certificate": certificate.certificate,
                "private_key": certificate.private_key.expose(),
            }),
            Self::Rsa {
                public_key,
                private_key,
            } => json!({"public_key": public_key, "private_key": private_key.expose()}),
            Self::Ssh {
                public_key,
                private_key,
                public_key_fingerprint,
            } => json!({
                "public_key": public_key,
                "private_key": private_key.expose(),
                "public_key_fingerprint": public_key_fingerprint,
            }),
        }
    }

    /// The certificate, if it is one.
    #[must_use]
    pub fn certificate(&self) -> Option<&Certificate> {
        match self {
            Self::Certificate(certificate) => Some(certificate),
            _ => None,
        }
    }

    /// The text of a value or password.
    #[must_use]
    pub fn text(&self) -> Option<&Secret<String>> {
        match self {
            Self::Value(text) | Self::Password(text) => Some(text),
            _ => None,
        }
    }

    /// What is encrypted.
    pub(crate) fn to_plaintext(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(serde_json::to_vec(&self.expose()).expect("a JSON value always serializes"))
    }

    /// The reverse of [`Self::to_plaintext`]; `None` when the text has another shape.
    pub(crate) fn from_plaintext(kind: Kind, plaintext: &[u8]) -> Option<Self> {
        if kind == Kind::Json {
            return String::from_utf8(plaintext.to_vec())
                .ok()
                .map(|text| Self::Json(text.into()));
        }
        let json: Json = serde_json::from_slice(plaintext).ok()?;
        let text = |key: &str| json[key].as_str().map(str::to_owned);
        let secret = |key: &str| json[key].as_str().map(Secret::from);
        Some(match kind {
            Kind::Value => Self::Value(json.as_str()?.into()),
            Kind::Password => Self::Password(json.as_str()?.into()),
            Kind::Json => return None,
            Kind::User => Self::User {
                username: text("username")?,
                password: secret("password")?,
            },
            Kind::Certificate => Self::Certificate(Certificate {
                ca: text("ca")?,
                certificate: text("certificate")?,
                private_key: secret("private_key")?,
            }),
            Kind::Rsa => Self::Rsa {
                public_key: text("public_key")?,
                private_key: secret("private_key")?,
            },
            Kind::Ssh => Self::Ssh {
                public_key: text("public_key")?,
                private_key: secret("private_key")?,
                public_key_fingerprint: text("public_key_fingerprint")?,
            },
        })
    }
}
