//! Stemcell tarballs: `stemcell.MF`, `image`, `packages.txt`.

use std::io::{self, Read, Write};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::archive::open;
use crate::digest::{HashingReader, MultiDigest, Received};
use crate::error::{Error, Result, invalid, is_plain_name, yaml};
use crate::tarball::{self, Kind, Level, Limits, Next, Packer};
use crate::version::Version;

/// The content of `stemcell.MF`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StemcellManifest {
    /// The stemcell's name.
    pub name: String,
    /// Its version.
    pub version: Version,
    /// What packages are compiled for; the name where it is missing.
    #[serde(default)]
    pub operating_system: Option<String>,
    /// The digest of `image`.
    pub sha1: MultiDigest,
    /// The version of the CPI API that the agent in it expects; 1 where it is missing. 2 means settings without a
    /// registry, 3 signed URLs for blobs.
    #[serde(default = "one")]
    pub api_version: u32,
    /// The version of the agent protocol; a text in BOSH, `"1"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bosh_protocol: Option<String>,
    /// Formats of the image; a CPI says in `info` which it takes.
    #[serde(default)]
    pub stemcell_formats: Vec<String>,
    /// For the CPI.
    #[serde(default)]
    pub cloud_properties: Map<String, Value>,
}

fn one() -> u32 {
    1
}

impl StemcellManifest {
    /// The operating system that compiled packages name, `OS` in `OS/VERSION`.
    #[must_use]
    pub fn os(&self) -> &str {
        self.operating_system.as_deref().unwrap_or(&self.name)
    }

    fn check(&self) -> Result<()> {
        for name in [self.name.as_str(), self.os()] {
            if !is_plain_name(name) {
                return Err(invalid("stemcell.MF", format!("`{name}` cannot name a stemcell")));
            }
        }
        Ok(())
    }
}

/// A stemcell tarball whose `stemcell.MF` was read and checked.
#[derive(Clone, Debug)]
pub struct StemcellArchive {
    path: Utf8PathBuf,
    manifest: StemcellManifest,
}

impl StemcellArchive {
    /// Opens a tarball and reads `stemcell.MF`.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Archive`], [`Error::Missing`], [`Error::Yaml`], [`Error::Invalid`].
    pub fn open(path: &Utf8Path) -> Result<Self> {
        let mut text = None;
        tarball::walk(path.as_str(), open(path)?, Limits::RELEASE, |entry| {
            if entry.path != "stemcell.MF" || entry.kind != Kind::File {
                return Ok::<_, Error>(Next::Continue);
            }
            let mut bytes = Vec::new();
            entry
                .data
                .take(1 << 20)
                .read_to_end(&mut bytes)
                .map_err(|source| Error::Archive {
                    archive: path.to_string(),
                    source,
                })?;
            text = Some(bytes);
            Ok(Next::Stop)
        })?;
        let text = text.ok_or_else(|| Error::Missing {
            file: "stemcell.MF".to_owned(),
            archive: path.to_string(),
        })?;
        let manifest: StemcellManifest = yaml("stemcell.MF", &text)?;
        manifest.check()?;
        Ok(Self {
            path: path.to_owned(),
            manifest,
        })
    }

    /// `stemcell.MF`.
    #[must_use]
    pub fn manifest(&self) -> &StemcellManifest {
        &self.manifest
    }

    /// Reads everything and checks the digest of the image, for an archive of which nothing is needed.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::DigestMismatch`], [`Error::Archive`].
    pub fn verify(&self) -> Result<()> {
        let digest = &self.manifest.sha1;
        let mut is_there = false;
        tarball::walk(self.path.as_str(), open(&self.path)?, Limits::RELEASE, |entry| {
            if entry.path == "image" && entry.kind == Kind::File {
                HashingReader::new(entry.data, digest).finish("image", digest)?;
                is_there = true;
            }
            Ok::<_, Error>(Next::Continue)
        })?;
        if is_there {
            return Ok(());
        }
        Err(Error::Missing {
            file: "image".to_owned(),
            archive: self.path.to_string(),
        })
    }

    /// Writes the image to `destination` and checks its digest. The file is removed again when the digest is wrong.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::DigestMismatch`], [`Error::Write`], [`Error::Archive`].
    pub fn extract_image(&self, destination: &Utf8Path) -> Result<Received> {
        let written = |source| Error::Write {
            path: destination.to_owned(),
            source,
        };
        let digest = &self.manifest.sha1;
        let mut received = None;
        let result = tarball::walk(self.path.as_str(), open(&self.path)?, Limits::RELEASE, |entry| {
            if entry.path != "image" || entry.kind != Kind::File {
                return Ok::<_, Error>(Next::Continue);
            }
            let mut file = fs_err::File::create(destination).map_err(written)?;
            let mut reader = HashingReader::new(entry.data, digest);
            tarball::copy(self.path.as_str(), destination, &mut reader, &mut file)?;
            received = Some(reader.finish("image", digest)?);
            file.sync_all().map_err(written)?;
            Ok(Next::Stop)
        });
        if let Err(error) = result {
            stolos_base::files::remove_if_there(destination).map_err(written)?;
            return Err(error);
        }
        received.ok_or_else(|| Error::Missing {
            file: "image".to_owned(),
            archive: self.path.to_string(),
        })
    }
}

/// Writes a stemcell tarball to `path`, which must not be there. The digest of the image is put into the manifest.
///
/// # Errors
/// [`Error::Read`] for the image, [`Error::Write`] for the tarball.
pub fn write_stemcell(
    mut manifest: StemcellManifest,
    image: &Utf8Path,
    packages: &str,
    path: &Utf8Path,
) -> Result<()> {
    let sha256 = crate::digest::sha256_of(open(image)?).map_err(|source| Error::Read {
        path: image.to_owned(),
        source,
    })?;
    manifest.sha1 = MultiDigest::from_sha256_hex(&sha256)?;
    manifest.check()?;
    let text =
        stolos_document::to_yaml(&manifest).map_err(|error| invalid("stemcell.MF", error.to_string()))?;
    let write = || -> io::Result<()> {
        let mut packer = Packer::new(fs_err::File::create_new(path)?, Level::Store);
        packer.bytes("stemcell.MF", 0o644, text.as_bytes())?;
        packer.bytes("packages.txt", 0o644, packages.as_bytes())?;
        let file = fs_err::File::open(image)?;
        let size = file.metadata()?.len();
        packer.file("image", 0o644, size, file)?;
        let mut file = packer.finish()?;
        file.flush()?;
        file.sync_all()
    };
    write().map_err(|source| Error::Write {
        path: path.to_owned(),
        source,
    })
}
