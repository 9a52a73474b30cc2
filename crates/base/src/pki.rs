//! A small X.509 authority: what the first start and the tests need.
//!
//! ECDSA P-256 throughout, RSA where a client insists (DESIGN: the director's server certificate). The
//! CredHub-compatible generator with all its options lives in `credentials`.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::PublicKeyData as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize, SanType,
};

use crate::secret::Secret;

/// Certificates start this long before they are made: a clock that is behind accepts them, and so does everybody after a clock that was ahead was set right.
pub const BACKDATE: Duration = Duration::from_secs(24 * 60 * 60);

/// A certificate and its private key, both PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate; for a leaf, of the leaf alone.
    pub certificate: String,
    /// The private key (PKCS #8).
    pub key: Secret<String>,
}

/// A certificate authority.
#[derive(Clone, Debug)]
pub struct Authority(Identity);

/// What a leaf is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// TLS server.
    Server,
    /// TLS client.
    Client,
    /// Both, as etcd members need it.
    ServerAndClient,
}

/// The kind of a leaf's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA P-256.
    #[default]
    Ecdsa,
    /// RSA with 2048 bits.
    Rsa,
}

/// What is asked of a leaf.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Subject CN.
    pub common_name: String,
    /// Subject O, which Kubernetes reads as the group. One at most: rcgen keeps one value per attribute type.
    pub organization: Option<String>,
    /// Subject alternative names: DNS names.
    pub dns: Vec<String>,
    /// Subject alternative names: addresses.
    pub addresses: Vec<IpAddr>,
    /// Extended key usage.
    pub usage: Usage,
    /// Key algorithm.
    pub key: KeyKind,
    /// How long it is valid.
    pub validity: Duration,
}

impl Leaf {
    /// A leaf without names for `usage`, valid for a year.
    pub fn new(common_name: impl Into<String>, usage: Usage) -> Self {
        Self {
            common_name: common_name.into(),
            organization: None,
            dns: Vec::new(),
            addresses: Vec::new(),
            usage,
            key: KeyKind::Ecdsa,
            validity: Duration::from_secs(365 * 24 * 3600),
        }
    }
}

/// A key or certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Making the key or the certificate failed.
    #[error("failed to make the certificate `{common_name}`")]
    Make {
        /// Subject CN asked for.
        common_name: String,
        /// The cause.
        #[source]
        source: rcgen::Error,
    },
    /// The CA's own PEM is not usable.
    #[error("failed to read the certificate authority's key or certificate")]
    ReadAuthority(#[source] rcgen::Error),
    /// A time is outside of what X.509 can say.
    #[error("certificate `{common_name}` would be valid outside of the years that X.509 knows")]
    Validity {
        /// Subject CN asked for.
        common_name: String,
    },
}

impl Authority {
    /// Makes a self-signed root.
    ///
    /// # Errors
    /// When the key or certificate cannot be made.
    pub fn root(common_name: &str, validity: Duration, now: Timestamp) -> Result<Self, Error> {
        let make = |source| Error::Make {
            common_name: common_name.to_owned(),
            source,
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let mut params = params(common_name, validity, now)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let certificate = params.self_signed(&key).map_err(make)?;
        Ok(Self(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem().into(),
        }))
    }

    /// Takes an authority from its PEM parts.
    #[must_use]
    pub fn from_identity(identity: Identity) -> Self {
        Self(identity)
    }

    /// The CA's certificate, PEM.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.0.certificate
    }

    /// Certificate and key, to be stored.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.0
    }

    /// Issues a leaf with a fresh key.
    ///
    /// # Errors
    /// When the key or certificate cannot be made, or the CA's PEM cannot be read.
    pub fn issue(&self, leaf: &Leaf, now: Timestamp) -> Result<Identity, Error> {
        let make = |source| Error::Make {
            common_name: leaf.common_name.clone(),
            source,
        };
        let ca_key = KeyPair::from_pem(self.0.key.expose()).map_err(Error::ReadAuthority)?;
        let issuer = Issuer::from_ca_cert_pem(&self.0.certificate, ca_key).map_err(Error::ReadAuthority)?;
        let key = match leaf.key {
            KeyKind::Ecdsa => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            KeyKind::Rsa => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
        }
        .map_err(make)?;
        let mut params = params(&leaf.common_name, leaf.validity, now)?;
        if let Some(organization) = &leaf.organization {
            params
                .distinguished_name
                .push(DnType::OrganizationName, organization.as_str());
        }
        for name in &leaf.dns {
            params
                .subject_alt_names
                .push(SanType::DnsName(name.as_str().try_into().map_err(make)?));
        }
        params
            .subject_alt_names
            .extend(leaf.addresses.iter().copied().map(SanType::IpAddress));
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = match leaf.usage {
            Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Usage::ServerAndClient => vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
        };
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &issuer).map_err(make)?;
        Ok(Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem().into(),
        })
    }
}

fn params(common_name: &str, validity: Duration, now: Timestamp) -> Result<CertificateParams, Error> {
    let outside = || Error::Validity {
        common_name: common_name.to_owned(),
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = at(now.checked_sub(BACKDATE).map_err(|_| outside())?);
    params.not_after = at(now.checked_add(validity).map_err(|_| outside())?);
    Ok(params)
}

/// A certificate and key cannot serve as a root.
#[derive(Debug, thiserror::Error)]
pub enum RootProblem {
    /// The certificate is not PEM of X.509.
    #[error("holds no readable certificate")]
    Certificate,
    /// Somebody else signed it, its signature is wrong, or it is no authority.
    #[error("is not a self-signed certificate of an authority")]
    NotARoot,
    /// It is not valid yet, or not for long enough.
    #[error("is not valid from now on for at least {days} days")]
    Validity {
        /// How long it has to be valid still.
        days: u64,
    },
    /// The key cannot be read. What is wrong with it is not said: it is a secret.
    #[error("holds no readable private key")]
    Key,
    /// The key is another certificate's.
    #[error("has a private key that does not belong to the certificate")]
    OtherKey,
}

/// Checks that a certificate is a self-signed root, valid from `now` for at least `least`, and that the key is its own.
///
/// # Errors
/// [`RootProblem`].
pub fn check_root(identity: &Identity, least: Duration, now: Timestamp) -> Result<(), RootProblem> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(identity.certificate.as_bytes())
        .map_err(|_| RootProblem::Certificate)?;
    let certificate = pem.parse_x509().map_err(|_| RootProblem::Certificate)?;
    // Readable for the library that signs with it, too.
    let key = KeyPair::from_pem(identity.key.expose()).map_err(|_| RootProblem::Key)?;
    if key.subject_public_key_info() != certificate.public_key().raw {
        return Err(RootProblem::OtherKey);
    }
    if !certificate.is_ca()
        || certificate.issuer() != certificate.subject()
        || certificate.verify_signature(None).is_err()
    {
        return Err(RootProblem::NotARoot);
    }
    let validity = certificate.validity();
    let seconds = i64::try_from(least.as_secs()).unwrap_or(i64::MAX);
    let late_enough = validity.not_after.timestamp().saturating_sub(now.as_second()) >= seconds;
    if validity.not_before.timestamp() > now.as_second() || !late_enough {
        return Err(RootProblem::Validity {
            days: least.as_secs() / 86_400,
        });
    }
    Ok(())
}

/// A text is no bundle of certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleProblem {
    /// There is no PEM block in it.
    #[error("holds no certificate (PEM)")]
    Empty,
    /// A block is damaged or of another kind, such as a private key.
    #[error("holds something else than certificates (PEM)")]
    Other,
}

/// Checks that a text holds certificates as PEM and no other PEM; text between them is allowed, as every reader of PEM does.
///
/// # Errors
/// [`BundleProblem`].
pub fn check_bundle(text: &str) -> Result<(), BundleProblem> {
    let mut found = false;
    for block in x509_parser::pem::Pem::iter_from_buffer(text.as_bytes()) {
        let block = block.map_err(|_| BundleProblem::Other)?;
        if block.label != "CERTIFICATE" || block.parse_x509().is_err() {
            return Err(BundleProblem::Other);
        }
        found = true;
    }
    if found { Ok(()) } else { Err(BundleProblem::Empty) }
}

/// When a certificate (PEM) ends; `None` when it cannot be read.
#[must_use]
pub fn valid_until(certificate: &str) -> Option<Timestamp> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).ok()?;
    let end = pem.parse_x509().ok()?.validity().not_after.timestamp();
    Timestamp::from_second(end).ok()
}

/// The same instant in the type that rcgen takes, cut to whole seconds as X.509 has it.
fn at(time: Timestamp) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(time.as_second()).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_holds_certificates_and_nothing_else() {
        let make = |name| Authority::root(name, Duration::from_secs(3600), Timestamp::now()).expect("a CA");
        let (a, b) = (make("a"), make("b"));
        let both = format!("{}# ((comment))\n{}", a.certificate(), b.certificate());
        assert_eq!(check_bundle(&both), Ok(()));
        for bad in ["", "x", "-----BEGIN CERTIFICATE-----"] {
            assert!(check_bundle(bad).is_err(), "{bad}");
        }
        let key = format!("{both}{}", a.identity().key.expose());
        assert_eq!(check_bundle(&key), Err(BundleProblem::Other));
        let damaged = a.certificate().replacen('M', "N", 1);
        assert_eq!(check_bundle(&damaged), Err(BundleProblem::Other));
    }

    #[test]
    fn a_leaf_carries_its_names_and_its_issuer() {
        let ca = Authority::root("test CA", Duration::from_secs(3600), Timestamp::now()).expect("a CA");
        let mut leaf = Leaf::new("etcd", Usage::ServerAndClient);
        leaf.organization = Some("system:masters".into());
        leaf.addresses = vec![[127, 0, 0, 1].into()];
        let issued = ca.issue(&leaf, Timestamp::now()).expect("a leaf");
        let (_, pem) = x509_parser::pem::parse_x509_pem(issued.certificate.as_bytes()).expect("PEM");
        let certificate = pem.parse_x509().expect("a certificate");
        assert_eq!(certificate.issuer().to_string(), "CN=test CA");
        let subject = certificate.subject().to_string();
        assert!(
            subject.contains("O=system:masters") && subject.contains("CN=etcd"),
            "{subject}"
        );
    }
}
