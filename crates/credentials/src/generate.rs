//! Making values. Blocks for as long as an RSA key takes; the database is not touched here.

use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize, SanType,
};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use stolos_base::Secret;
use stolos_base::pki::BACKDATE;
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::name::Name;
use crate::parameters::{
    AlternativeName, CertificateOptions, ExtendedKeyUsage, KeyAlgorithm, KeyLength, KeyUsage, Parameters,
    PasswordOptions, SshOptions,
};
use crate::value::{Certificate, Value};

/// The length of a user's name that nobody chose.
const USERNAME_LENGTH: usize = 20;

const LOWER: &str = "abcdefghijklmnopqrstuvwxyz";
const UPPER: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const DIGITS: &str = "0123456789";
const SPECIAL: &str = "!#$%&()*,-./:;<=>?@[]^_{|}~";

/// A new value and, of a certificate, when it ends.
pub(crate) fn generate(
    name: &Name,
    parameters: &Parameters,
    authority: Option<&Certificate>,
    now: Timestamp,
) -> Result<(Value, Option<Timestamp>)> {
    let value = match parameters {
        Parameters::Password(options) => Value::Password(password(options)),
        Parameters::User(options) => Value::User {
            username: options
                .username
                .clone()
                .unwrap_or_else(|| random_text(&[LOWER], USERNAME_LENGTH)),
            password: password(&options.password),
        },
        Parameters::Certificate(options) => {
            let certificate = certificate(name, options, authority, now)?;
            let ends = expiry(&certificate.certificate).map_err(|source| make(name, source))?;
            return Ok((Value::Certificate(certificate), Some(ends)));
        }
        Parameters::Rsa(options) => {
            let key = rsa(options.key_length).map_err(|source| make(name, source))?;
            Value::Rsa {
                public_key: key.public_key_pem(),
                private_key: private_pem(&key),
            }
        }
        Parameters::Ssh(options) => ssh(name, options)?,
    };
    Ok((value, None))
}

fn make(name: &Name, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Make {
        name: name.to_string(),
        source: source.into(),
    }
}

fn password(options: &PasswordOptions) -> Secret<String> {
    let mut classes = Vec::new();
    if !options.exclude_lower {
        classes.push(LOWER);
    }
    if !options.exclude_upper {
        classes.push(UPPER);
    }
    if !options.exclude_number {
        classes.push(DIGITS);
    }
    if options.include_special {
        classes.push(SPECIAL);
    }
    // Some systems insist on one of each; a random text of 30 has that almost always, one of 4 often not.
    loop {
        let text = Zeroizing::new(random_text(&classes, options.length));
        if classes.iter().all(|class| text.contains(|c| class.contains(c))) {
            return Secret::new(text.to_string());
        }
    }
}

/// Uniform over the characters of all classes: bytes above the largest multiple are thrown away.
fn random_text(classes: &[&str], length: usize) -> String {
    let alphabet: Vec<u8> = classes.concat().into_bytes();
    let limit = 256 / alphabet.len() * alphabet.len();
    let mut text = String::with_capacity(length);
    let mut bytes = Zeroizing::new([0_u8; 64]);
    while text.len() < length {
        aws_lc_rs::rand::fill(bytes.as_mut()).expect("the operating system gives random bytes");
        for byte in bytes.iter().map(|byte| usize::from(*byte)) {
            if byte < limit && text.len() < length {
                text.push(char::from(alphabet[byte % alphabet.len()]));
            }
        }
    }
    text
}

fn rsa(length: KeyLength) -> Result<KeyPair, rcgen::Error> {
    let size = match length {
        KeyLength::Bits2048 => RsaKeySize::_2048,
        KeyLength::Bits3072 => RsaKeySize::_3072,
        KeyLength::Bits4096 => RsaKeySize::_4096,
    };
    KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size)
}

fn certificate(
    name: &Name,
    options: &CertificateOptions,
    authority: Option<&Certificate>,
    now: Timestamp,
) -> Result<Certificate> {
    let failed = |source: rcgen::Error| make(name, source);
    let mut params = params(name, options, now)?;
    let key = match options.key_algorithm {
        KeyAlgorithm::Ecdsa => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
        KeyAlgorithm::Rsa => rsa(options.key_length),
    }
    .map_err(failed)?;
    let private_key = private_pem(&key);
    let Some(authority) = authority else {
        let certificate = params.self_signed(&key).map_err(failed)?.pem();
        return Ok(Certificate {
            ca: certificate.clone(),
            certificate,
            private_key,
        });
    };
    // A leaf that outlives its CA is refused by everybody from that day on, so it does not pretend to.
    let ends = expiry(&authority.certificate).map_err(|source| make(name, source))?;
    params.not_after = params.not_after.min(at(ends));
    params.use_authority_key_identifier_extension = true;
    let issuer_key = read_key(authority.private_key.expose()).map_err(|source| make(name, source))?;
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, issuer_key).map_err(failed)?;
    let certificate = params.signed_by(&key, &issuer).map_err(failed)?.pem();
    Ok(Certificate {
        ca: authority.certificate.clone(),
        certificate,
        private_key,
    })
}

fn params(name: &Name, options: &CertificateOptions, now: Timestamp) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    let of = &options.subject;
    for (kind, text) in [
        (DnType::CountryName, &of.country),
        (DnType::StateOrProvinceName, &of.state),
        (DnType::LocalityName, &of.locality),
        (DnType::OrganizationName, &of.organization),
        (DnType::OrganizationalUnitName, &of.organization_unit),
        (DnType::CommonName, &of.common_name),
    ] {
        if let Some(text) = text {
            subject.push(kind, text.as_str());
        }
    }
    params.distinguished_name = subject;
    params.subject_alt_names = options
        .alternative_names
        .iter()
        .map(|name| match name {
            AlternativeName::Address(address) => Ok(SanType::IpAddress(*address)),
            AlternativeName::Dns(dns) => dns.as_str().try_into().map(SanType::DnsName),
        })
        .collect::<Result<_, _>>()
        .map_err(|source| make(name, source))?;
    params.key_usages = options.key_usage.iter().copied().map(key_usage).collect();
    params.extended_key_usages = options
        .extended_key_usage
        .iter()
        .copied()
        .map(extended_key_usage)
        .collect();
    if options.is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
            if !params.key_usages.contains(&usage) {
                params.key_usages.push(usage);
            }
        }
    } else {
        params.is_ca = IsCa::ExplicitNoCa;
        if params.key_usages.is_empty() {
            // What TLS needs, with either kind of key.
            params.key_usages = vec![
                KeyUsagePurpose::DigitalSignature,
                KeyUsagePurpose::KeyEncipherment,
            ];
        }
    }
    let days = Duration::from_secs(u64::from(options.duration) * 24 * 3600);
    let outside = |_| make(name, "it would be valid outside of the years that X.509 knows");
    params.not_before = at(now.checked_sub(BACKDATE).map_err(outside)?);
    params.not_after = at(now.checked_add(days).map_err(outside)?);
    Ok(params)
}

fn key_usage(usage: KeyUsage) -> KeyUsagePurpose {
    match usage {
        KeyUsage::DigitalSignature => KeyUsagePurpose::DigitalSignature,
        KeyUsage::NonRepudiation => KeyUsagePurpose::ContentCommitment,
        KeyUsage::KeyEncipherment => KeyUsagePurpose::KeyEncipherment,
        KeyUsage::DataEncipherment => KeyUsagePurpose::DataEncipherment,
        KeyUsage::KeyAgreement => KeyUsagePurpose::KeyAgreement,
        KeyUsage::KeyCertSign => KeyUsagePurpose::KeyCertSign,
        KeyUsage::CrlSign => KeyUsagePurpose::CrlSign,
        KeyUsage::EncipherOnly => KeyUsagePurpose::EncipherOnly,
        KeyUsage::DecipherOnly => KeyUsagePurpose::DecipherOnly,
    }
}

fn extended_key_usage(usage: ExtendedKeyUsage) -> ExtendedKeyUsagePurpose {
    match usage {
        ExtendedKeyUsage::ClientAuth => ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsage::ServerAuth => ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsage::CodeSigning => ExtendedKeyUsagePurpose::CodeSigning,
        ExtendedKeyUsage::EmailProtection => ExtendedKeyUsagePurpose::EmailProtection,
        ExtendedKeyUsage::Timestamping => ExtendedKeyUsagePurpose::TimeStamping,
    }
}

/// The same instant in the type that rcgen takes, cut to whole seconds as X.509 has it.
fn at(time: Timestamp) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(time.as_second()).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

type Unreadable = Box<dyn std::error::Error + Send + Sync>;

/// A private key in any PEM form.
fn read_key(pem: &str) -> Result<KeyPair, Unreadable> {
    Ok(KeyPair::try_from(&PrivateKeyDer::from_pem_slice(
        pem.as_bytes(),
    )?)?)
}

/// When a certificate (PEM) ends.
pub(crate) fn expiry(pem: &str) -> Result<Timestamp, Unreadable> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes())?;
    Ok(Timestamp::from_second(
        pem.parse_x509()?.validity().not_after.timestamp(),
    )?)
}

/// Whether a certificate (PEM) may sign others.
pub(crate) fn is_authority(pem: &str) -> bool {
    x509_parser::pem::parse_x509_pem(pem.as_bytes())
        .ok()
        .and_then(|(_, pem)| pem.parse_x509().ok().map(|certificate| certificate.is_ca()))
        .unwrap_or_default()
}

/// Checks that a certificate and a key given by somebody belong together.
pub(crate) fn check_pair(certificate: &Certificate) -> Result<(), Unreadable> {
    let key = read_key(certificate.private_key.expose())?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.certificate.as_bytes())?;
    let parsed = pem.parse_x509()?;
    let bits = &parsed.public_key().subject_public_key.data;
    if bits.as_ref() == key.public_key_raw() {
        Ok(())
    } else {
        Err("the private key does not belong to the certificate".into())
    }
}

/// PKCS #1 for RSA, as CredHub has it; PKCS #8 otherwise.
fn private_pem(key: &KeyPair) -> Secret<String> {
    let der = Zeroizing::new(key.serialize_der());
    match pkcs1(&der) {
        Some(inner) if key.is_compatible(&PKCS_RSA_SHA256) => pem("RSA PRIVATE KEY", inner),
        _ => pem("PRIVATE KEY", &der),
    }
}

fn pem(label: &str, der: &[u8]) -> Secret<String> {
    let encoded = Zeroizing::new(STANDARD.encode(der));
    let mut text = String::with_capacity(encoded.len() + encoded.len() / 32 + 80);
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    for line in encoded.as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    Secret::new(text)
}

/// The key inside of PKCS #8: the OCTET STRING after version and algorithm (RFC 5208).
fn pkcs1(pkcs8: &[u8]) -> Option<&[u8]> {
    let (body, _) = element(0x30, pkcs8)?;
    let (_, rest) = element(0x02, body)?;
    let (_, rest) = element(0x30, rest)?;
    element(0x04, rest).map(|(content, _)| content)
}

/// The content of the DER element with the tag at the beginning, and what follows it.
fn element(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let (&length, rest) = rest.split_first()?;
    let (length, rest) = if length < 0x80 {
        (usize::from(length), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
        let length = digits.iter().try_fold(0_usize, |sum, digit| {
            Some(sum.checked_mul(256)? + usize::from(*digit))
        })?;
        (length, rest)
    };
    if first == tag {
        rest.split_at_checked(length)
    } else {
        None
    }
}

/// An RSA key pair in OpenSSH's form (RFC 4253, section 6.6): exponent, then modulus.
fn ssh(name: &Name, options: &SshOptions) -> Result<Value> {
    let key = rsa(options.key_length).map_err(|source| make(name, source))?;
    let (exponent, modulus) =
        public_numbers(&key).ok_or_else(|| make(name, "the public key is not readable"))?;
    let mut blob = Vec::new();
    for part in [b"ssh-rsa".as_slice(), exponent, modulus] {
        let length = u32::try_from(part.len()).map_err(|source| make(name, source))?;
        blob.extend_from_slice(&length.to_be_bytes());
        blob.extend_from_slice(part);
    }
    let comment = if options.ssh_comment.is_empty() {
        String::new()
    } else {
        format!(" {}", options.ssh_comment)
    };
    Ok(Value::Ssh {
        public_key: format!("ssh-rsa {}{comment}", STANDARD.encode(&blob)),
        private_key: private_pem(&key),
        public_key_fingerprint: STANDARD_NO_PAD.encode(digest::digest(&digest::SHA256, &blob)),
    })
}

/// Exponent and modulus as DER has them: the content of an INTEGER, which is also SSH's `mpint`.
fn public_numbers(key: &KeyPair) -> Option<(&[u8], &[u8])> {
    let (numbers, _) = element(0x30, key.public_key_raw())?;
    let (modulus, rest) = element(0x02, numbers)?;
    let (exponent, _) = element(0x02, rest)?;
    Some((exponent, modulus))
}
