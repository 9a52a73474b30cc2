//! What can be asked of the generator: CredHub's options, plus `key_algorithm` of ours.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::error::Error;
use crate::name::{Name, Scope};
use crate::value::Kind;

/// When a new version is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Never when there is one.
    NoOverwrite,
    /// Always.
    Overwrite,
    /// When the options differ from those of the newest version, or its CA has changed.
    #[default]
    Converge,
}

impl std::str::FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "no-overwrite" => Ok(Self::NoOverwrite),
            "overwrite" => Ok(Self::Overwrite),
            "converge" => Ok(Self::Converge),
            _ => Err(Error::Mode(text.to_owned())),
        }
    }
}

/// What to generate; checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "type")]
pub enum Parameters {
    /// A random text.
    Password(PasswordOptions),
    /// A name and a random text.
    User(UserOptions),
    /// A certificate.
    Certificate(Box<CertificateOptions>),
    /// An RSA key pair.
    Rsa(KeyOptions),
    /// An RSA key pair in OpenSSH's form.
    Ssh(SshOptions),
}

/// Options of a password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PasswordOptions {
    /// Characters.
    pub length: usize,
    /// Also punctuation.
    pub include_special: bool,
    /// No digits.
    pub exclude_number: bool,
    /// No upper case.
    pub exclude_upper: bool,
    /// No lower case.
    pub exclude_lower: bool,
}

impl Default for PasswordOptions {
    fn default() -> Self {
        Self {
            length: 30,
            include_special: false,
            exclude_number: false,
            exclude_upper: false,
            exclude_lower: false,
        }
    }
}

/// Options of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserOptions {
    /// The name; a random one when absent.
    pub username: Option<String>,
    /// The password.
    pub password: PasswordOptions,
}

/// Options of an RSA key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyOptions {
    /// Bits.
    pub key_length: KeyLength,
}

/// Options of an SSH key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SshOptions {
    /// Bits.
    pub key_length: KeyLength,
    /// At the end of the public key's line.
    pub ssh_comment: String,
}

/// Bits of an RSA key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub enum KeyLength {
    /// 2048
    #[default]
    Bits2048,
    /// 3072
    Bits3072,
    /// 4096
    Bits4096,
}

impl TryFrom<u32> for KeyLength {
    type Error = String;

    fn try_from(bits: u32) -> Result<Self, String> {
        match bits {
            2048 => Ok(Self::Bits2048),
            3072 => Ok(Self::Bits3072),
            4096 => Ok(Self::Bits4096),
            _ => Err(format!("key_length {bits} is none of 2048, 3072, 4096")),
        }
    }
}

impl From<KeyLength> for u32 {
    fn from(length: KeyLength) -> Self {
        match length {
            KeyLength::Bits2048 => 2048,
            KeyLength::Bits3072 => 3072,
            KeyLength::Bits4096 => 4096,
        }
    }
}

/// The kind of a certificate's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyAlgorithm {
    /// P-256.
    Ecdsa,
    /// With the length of [`CertificateOptions::key_length`].
    Rsa,
}

/// Options of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateOptions {
    /// Subject.
    pub subject: Subject,
    /// Alternative names.
    pub alternative_names: Vec<AlternativeName>,
    /// Key usages.
    pub key_usage: Vec<KeyUsage>,
    /// Extended key usages.
    pub extended_key_usage: Vec<ExtendedKeyUsage>,
    /// Kind of key.
    pub key_algorithm: KeyAlgorithm,
    /// Bits of an RSA key.
    pub key_length: KeyLength,
    /// Days.
    pub duration: u32,
    /// Who signs.
    pub signer: Signer,
    /// Whether it can sign others.
    pub is_ca: bool,
}

/// Who signs a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signer {
    /// Itself.
    Oneself,
    /// The credential of that name.
    Authority(String),
}

/// The subject of a certificate. Each part is there once at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// CN
    pub common_name: Option<String>,
    /// O
    pub organization: Option<String>,
    /// OU
    pub organization_unit: Option<String>,
    /// L
    pub locality: Option<String>,
    /// ST
    pub state: Option<String>,
    /// C
    pub country: Option<String>,
}

/// A name that a certificate is valid for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AlternativeName {
    /// An address.
    Address(IpAddr),
    /// A host name; `*.` may lead.
    Dns(String),
}

/// What a key may be used for, by CredHub's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyUsage {
    /// digitalSignature
    DigitalSignature,
    /// nonRepudiation
    NonRepudiation,
    /// keyEncipherment
    KeyEncipherment,
    /// dataEncipherment
    DataEncipherment,
    /// keyAgreement
    KeyAgreement,
    /// keyCertSign
    KeyCertSign,
    /// cRLSign
    CrlSign,
    /// encipherOnly
    EncipherOnly,
    /// decipherOnly
    DecipherOnly,
}

/// What a certificate may be used for, by CredHub's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExtendedKeyUsage {
    /// TLS client.
    ClientAuth,
    /// TLS server.
    ServerAuth,
    /// Code.
    CodeSigning,
    /// Mail.
    EmailProtection,
    /// Time stamps.
    Timestamping,
}

/// The days that certificates are valid when nobody says otherwise.
const DURATION: u32 = 365;
/// The longest duration in days. CredHub's ten years are too short for the CA of a cluster that outlives them.
const LONGEST_DURATION: u32 = 36_500;

impl Parameters {
    /// Reads a manifest variable's `type` and `options`. A relative `ca` is meant in `scope`.
    ///
    /// # Errors
    /// [`Error::NotGenerated`], [`Error::Options`], [`Error::Option`], [`Error::Name`].
    pub fn parse(kind: &str, options: &Json, scope: &Scope) -> Result<Self, Error> {
        let kind: Kind = kind.parse()?;
        let empty = Json::Object(serde_json::Map::new());
        let options = if options.is_null() { &empty } else { options };
        match kind {
            Kind::Value | Kind::Json => Err(Error::NotGenerated(kind.as_str().to_owned())),
            Kind::Password => {
                let options: PasswordOptions = read(kind, options)?;
                options.check(kind)?;
                Ok(Self::Password(options))
            }
            Kind::User => {
                let mut options = options.clone();
                let username = options
                    .as_object_mut()
                    .and_then(|map| map.shift_remove("username"));
                let username = username.map(|name| read(kind, &name)).transpose()?;
                let password: PasswordOptions = read(kind, &options)?;
                password.check(kind)?;
                Ok(Self::User(UserOptions { username, password }))
            }
            Kind::Certificate => {
                let wire: CertificateWire = read(kind, options)?;
                wire.check(scope)
                    .map(|options| Self::Certificate(Box::new(options)))
            }
            Kind::Rsa => read(kind, options).map(Self::Rsa),
            Kind::Ssh => read(kind, options).map(Self::Ssh),
        }
    }

    /// The type that these make.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Password(_) => Kind::Password,
            Self::User(_) => Kind::User,
            Self::Certificate(_) => Kind::Certificate,
            Self::Rsa(_) => Kind::Rsa,
            Self::Ssh(_) => Kind::Ssh,
        }
    }

    /// The CA that is to sign, if another than oneself.
    pub(crate) fn authority(&self) -> Result<Option<Name>, Error> {
        match self {
            Self::Certificate(options) => match &options.signer {
                Signer::Authority(name) => Name::absolute(name).map(Some),
                Signer::Oneself => Ok(None),
            },
            _ => Ok(None),
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(kind: Kind, options: &Json) -> Result<T, Error> {
    T::deserialize(options).map_err(|source| Error::Options { kind, source })
}

impl PasswordOptions {
    fn check(&self, kind: Kind) -> Result<(), Error> {
        let wrong = |option, rule: &str| {
            Err(Error::Option {
                kind,
                option,
                rule: rule.to_owned(),
            })
        };
        if !(4..=200).contains(&self.length) {
            return wrong("length", "it is none of 4 to 200");
        }
        if self.exclude_lower && self.exclude_upper && self.exclude_number && !self.include_special {
            return wrong("exclude_lower", "no characters are left to choose from");
        }
        Ok(())
    }
}

/// The options of a certificate as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CertificateWire {
    common_name: Option<String>,
    organization: Option<String>,
    organization_unit: Option<String>,
    locality: Option<String>,
    state: Option<String>,
    country: Option<String>,
    #[serde(default)]
    alternative_names: Vec<String>,
    #[serde(default)]
    key_usage: Vec<KeyUsage>,
    #[serde(default)]
    extended_key_usage: Vec<ExtendedKeyUsage>,
    key_algorithm: Option<KeyAlgorithm>,
    key_length: Option<KeyLength>,
    duration: Option<u32>,
    ca: Option<String>,
    #[serde(default)]
    is_ca: bool,
    #[serde(default)]
    self_sign: bool,
}

impl CertificateWire {
    fn check(self, scope: &Scope) -> Result<CertificateOptions, Error> {
        let wrong = |option, rule: String| Error::Option {
            kind: Kind::Certificate,
            option,
            rule,
        };
        let subject = Subject {
            common_name: self.common_name,
            organization: self.organization,
            organization_unit: self.organization_unit,
            locality: self.locality,
            state: self.state,
            country: self.country,
        };
        if subject == Subject::default() && self.alternative_names.is_empty() {
            return Err(wrong("common_name", "the certificate names nobody".to_owned()));
        }
        if subject.country.as_ref().is_some_and(|country| country.len() != 2) {
            return Err(wrong("country", "it has two letters".to_owned()));
        }
        let signer = match (self.ca, self.self_sign || self.is_ca) {
            (Some(_), _) if self.self_sign => {
                return Err(wrong("ca", "it excludes `self_sign`".to_owned()));
            }
            (Some(ca), _) => Signer::Authority(scope.name(&ca)?.as_str().to_owned()),
            (None, true) => Signer::Oneself,
            (None, false) => {
                return Err(wrong(
                    "ca",
                    "one of `ca`, `is_ca` and `self_sign` is needed".to_owned(),
                ));
            }
        };
        let duration = self.duration.unwrap_or(DURATION);
        if !(1..=LONGEST_DURATION).contains(&duration) {
            return Err(wrong(
                "duration",
                format!("it is none of 1 to {LONGEST_DURATION} days"),
            ));
        }
        let alternative_names = self
            .alternative_names
            .into_iter()
            .map(|name| AlternativeName::parse(name).map_err(|rule| wrong("alternative_names", rule)))
            .collect::<Result<_, _>>()?;
        // Who gives a length means RSA, as in CredHub, which knows no other.
        let by_length = if self.key_length.is_some() {
            KeyAlgorithm::Rsa
        } else {
            KeyAlgorithm::Ecdsa
        };
        Ok(CertificateOptions {
            subject,
            alternative_names,
            key_usage: self.key_usage,
            extended_key_usage: self.extended_key_usage,
            key_algorithm: self.key_algorithm.unwrap_or(by_length),
            key_length: self.key_length.unwrap_or_default(),
            duration,
            signer,
            is_ca: self.is_ca,
        })
    }
}

impl AlternativeName {
    fn parse(text: String) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let labels = text.strip_prefix("*.").unwrap_or(&text);
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if text.len() <= 253 && labels.split('.').all(is_label) {
            Ok(Self::Dns(text))
        } else {
            Err(format!("`{text}` is neither a host name nor an address"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn options_are_checked() {
        let scope = Scope::deployment("d", "dep").expect("a scope");
        let check =
            |kind: &str, options: Json, expected: &str| match Parameters::parse(kind, &options, &scope) {
                Ok(parameters) => assert_eq!(expected, "", "{parameters:?}"),
                Err(error) => {
                    let text = stolos_base::chain(&error);
                    assert!(!expected.is_empty() && text.contains(expected), "{text}");
                }
            };
        check("password", Json::Null, "");
        check("password", json!({"lenght": 3}), "unknown field `lenght`");
        check("password", json!({"length": 3}), "4 to 200");
        check("user", json!({"username": "u", "length": 20}), "");
        check("certificate", json!({"is_ca": true, "common_name": "c"}), "");
        check(
            "certificate",
            json!({"ca": "c", "common_name": "c", "alternative_names": ["*.a.b", "::1"]}),
            "",
        );
        check(
            "certificate",
            json!({"common_name": "c"}),
            "one of `ca`, `is_ca` and `self_sign`",
        );
        check("certificate", json!({"is_ca": true}), "names nobody");
        check(
            "certificate",
            json!({"is_ca": true, "common_name": "c", "alternative_names": ["a b"]}),
            "neither a host",
        );
        check(
            "certificate",
            json!({"is_ca": true, "common_name": "c", "key_usage": ["fly"]}),
            "fly",
        );
        check(
            "certificate",
            json!({"is_ca": true, "common_name": "c", "key_length": 1024}),
            "1024",
        );
        check("rsa", json!({"key_length": 4096}), "");
        check("value", Json::Null, "cannot be generated");
        check("magic", Json::Null, "magic");
    }

    #[test]
    fn parameters_are_read_back_as_written() {
        let scope = Scope::deployment("d", "dep").expect("a scope");
        for (kind, options) in [
            ("user", json!({"username": "u"})),
            (
                "certificate",
                json!({"ca": "c", "organization": "o", "alternative_names": ["a.b", "1.2.3.4"], "key_length": 3072}),
            ),
            ("ssh", json!({"ssh_comment": "me"})),
        ] {
            let parameters = Parameters::parse(kind, &options, &scope).expect("parameters");
            let text = serde_json::to_string(&parameters).expect("JSON");
            assert_eq!(
                serde_json::from_str::<Parameters>(&text).expect("parameters"),
                parameters,
                "{text}"
            );
        }
    }
}
