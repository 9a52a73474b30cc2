//! Digests as BOSH writes them: 40 hex digits are SHA-1, others carry their algorithm (`sha256:…`, `sha512:…`), several
//! are joined by `;`. The strongest one is checked.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA512};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A digest algorithm; later ones are stronger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-1: what BOSH began with; detects damage, no attack.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Self::Sha1 => 40,
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }

    fn context(self) -> Context {
        Context::new(match self {
            Self::Sha1 => &SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &SHA256,
            Self::Sha512 => &SHA512,
        })
    }

    /// The digest of `bytes` as lower-case hex.
    #[must_use]
    pub fn hex(self, bytes: &[u8]) -> String {
        let mut context = self.context();
        context.update(bytes);
        hex::encode(context.finish())
    }
}

/// One or several digests of the same content.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MultiDigest(BTreeMap<Algorithm, String>);

impl MultiDigest {
    /// The SHA-256 of `bytes`.
    #[must_use]
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::from_hex(Algorithm::Sha256, Algorithm::Sha256.hex(bytes))
    }

    /// A digest from 64 lower-case hex digits that are known to be a SHA-256.
    ///
    /// # Errors
    /// When the text is anything else.
    pub fn from_sha256_hex(hex: &str) -> Result<Self> {
        format!("sha256:{hex}").parse()
    }

    fn from_hex(algorithm: Algorithm, hex: String) -> Self {
        Self(BTreeMap::from([(algorithm, hex)]))
    }

    /// The strongest digest, which is the one that counts.
    #[must_use]
    pub fn strongest(&self) -> (Algorithm, &str) {
        self.0
            .last_key_value()
            .map(|(algorithm, hex)| (*algorithm, hex.as_str()))
            .expect("a multi-digest is never empty")
    }

    /// The hex digits of one algorithm, where it is there.
    #[must_use]
    pub fn hex(&self, algorithm: Algorithm) -> Option<&str> {
        self.0.get(&algorithm).map(String::as_str)
    }

    /// Checks content that lies in memory.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`], naming `what`.
    pub fn check(&self, what: &str, bytes: &[u8]) -> Result<()> {
        let (algorithm, _) = self.strongest();
        self.compare(what, &algorithm.hex(bytes))
    }

    fn compare(&self, what: &str, found: &str) -> Result<()> {
        let (algorithm, expected) = self.strongest();
        if found == expected {
            return Ok(());
        }
        Err(Error::DigestMismatch {
            what: what.to_owned(),
            expected: Self::from_hex(algorithm, expected.to_owned()).to_string(),
            found: Self::from_hex(algorithm, found.to_owned()).to_string(),
        })
    }
}

impl fmt::Display for MultiDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (algorithm, hex)) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(";")?;
            }
            match algorithm {
                Algorithm::Sha1 => f.write_str(hex)?,
                other => write!(f, "{}:{hex}", other.name())?,
            }
        }
        Ok(())
    }
}

impl FromStr for MultiDigest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::NoDigest(text.to_owned());
        let mut digests = BTreeMap::new();
        for part in text.split(';') {
            let part = part.trim();
            let (algorithm, hex) = match part.split_once(':') {
                None => (Algorithm::Sha1, part),
                Some(("sha1", hex)) => (Algorithm::Sha1, hex),
                Some(("sha256", hex)) => (Algorithm::Sha256, hex),
                Some(("sha512", hex)) => (Algorithm::Sha512, hex),
                // An algorithm of the future is no reason to refuse those that we can check.
                Some((_, rest)) if !rest.is_empty() => continue,
                Some(_) => return Err(bad()),
            };
            if hex.len() != algorithm.hex_len() || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            digests.insert(algorithm, hex.to_ascii_lowercase());
        }
        if digests.is_empty() {
            return Err(bad());
        }
        Ok(Self(digests))
    }
}

impl TryFrom<String> for MultiDigest {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<MultiDigest> for String {
    fn from(digest: MultiDigest) -> Self {
        digest.to_string()
    }
}

/// What was found while content went past a [`HashingReader`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// SHA-256 as lower-case hex: the name of the content in content-addressed stores.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
}

/// Passes bytes on and digests them on the way.
pub struct HashingReader<R> {
    inner: R,
    sha256: Context,
    expected: Option<(Algorithm, Context)>,
    size: u64,
}

impl<R: Read> HashingReader<R> {
    /// Digests with SHA-256 and, where it is another, with the strongest algorithm of `expected`.
    pub fn new(inner: R, expected: &MultiDigest) -> Self {
        let (algorithm, _) = expected.strongest();
        Self {
            inner,
            sha256: Algorithm::Sha256.context(),
            expected: (algorithm != Algorithm::Sha256).then(|| (algorithm, algorithm.context())),
            size: 0,
        }
    }

    /// Reads what is left and compares.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`], naming `what`; [`Error::Archive`] when the rest cannot be read.
    pub fn finish(mut self, what: &str, expected: &MultiDigest) -> Result<Received> {
        io::copy(&mut self, &mut io::sink()).map_err(|source| Error::Archive {
            archive: what.to_owned(),
            source,
        })?;
        let sha256 = hex::encode(self.sha256.finish());
        match self.expected {
            Some((_, context)) => expected.compare(what, &hex::encode(context.finish()))?,
            None => expected.compare(what, &sha256)?,
        }
        Ok(Received {
            sha256,
            size: self.size,
        })
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.sha256.update(&buffer[..n]);
        if let Some((_, context)) = &mut self.expected {
            context.update(&buffer[..n]);
        }
        self.size += n as u64;
        Ok(n)
    }
}

/// The SHA-256 of all that a reader has, as lower-case hex.
///
/// # Errors
/// Any error of the reader.
pub fn sha256_of(mut reader: impl Read) -> io::Result<String> {
    let mut context = Algorithm::Sha256.context();
    let mut buffer = vec![0_u8; 64 * 1024];
    loop {
        let n = match reader.read(&mut buffer) {
            Ok(0) => return Ok(hex::encode(context.finish())),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        context.update(&buffer[..n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA1_ABC: &str = "a9993e364706816aba3e25717850c26c9cd0d89d";
    const SHA256_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn the_strongest_digest_is_checked() {
        // The SHA-1 is right and the SHA-256 wrong: a damaged strong digest must not be saved by a good weak one.
        let wrong = SHA256_ABC.replace('b', "c");
        let digest: MultiDigest = format!("{SHA1_ABC};sha256:{wrong}").parse().expect("a digest");
        assert!(matches!(
            digest.check("x", b"abc"),
            Err(Error::DigestMismatch { .. })
        ));
        let digest: MultiDigest = format!("sha256:{SHA256_ABC};{}", SHA1_ABC.replace('a', "b"))
            .parse()
            .expect("a digest");
        digest.check("x", b"abc").expect("the SHA-256 counts");
        let digest: MultiDigest = SHA1_ABC.parse().expect("a digest");
        digest.check("x", b"abc").expect("a plain SHA-1");
    }

    #[test]
    fn a_reader_names_content_by_sha256_whatever_was_expected() {
        for text in [SHA1_ABC.to_owned(), format!("sha256:{SHA256_ABC}")] {
            let expected: MultiDigest = text.parse().expect("a digest");
            let received = HashingReader::new(&b"abc"[..], &expected)
                .finish("x", &expected)
                .expect("the digest fits");
            assert_eq!((received.sha256.as_str(), received.size), (SHA256_ABC, 3));
        }
    }

    #[test]
    fn texts_round_trip_and_bad_ones_are_refused() {
        let text = format!("{SHA1_ABC};sha256:{SHA256_ABC}");
        assert_eq!(text.parse::<MultiDigest>().expect("a digest").to_string(), text);
        assert_eq!(
            format!("sha3:abcd;{SHA1_ABC}")
                .parse::<MultiDigest>()
                .expect("one is known")
                .to_string(),
            SHA1_ABC
        );
        for bad in [
            "",
            "abc",
            "sha256:",
            "sha256:abc",
            "sha3:abcd",
            &SHA256_ABC[..40].replace('a', "x"),
        ] {
            assert!(bad.parse::<MultiDigest>().is_err(), "{bad}");
        }
    }
}
