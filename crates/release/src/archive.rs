//! Reading release tarballs.

use std::collections::BTreeMap;
use std::io::Read;

use camino::{Utf8Path, Utf8PathBuf};

use crate::digest::{HashingReader, MultiDigest, Received};
use crate::error::{Error, Result, yaml};
use crate::job::JobArchive;
use crate::manifest::ReleaseManifest;
use crate::tarball::{self, Kind, Limits, Next};

/// A release tarball whose `release.MF` was read and checked. The rest is read in one pass when it is wanted.
#[derive(Clone, Debug)]
pub struct ReleaseArchive {
    path: Utf8PathBuf,
    manifest: ReleaseManifest,
}

/// What kind of blob a release holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlobKind {
    /// `jobs/NAME.tgz`.
    Job,
    /// `packages/NAME.tgz`.
    Package,
    /// `compiled_packages/NAME.tgz`.
    CompiledPackage,
}

impl BlobKind {
    fn directory(self) -> &'static str {
        match self {
            Self::Job => "jobs",
            Self::Package => "packages",
            Self::CompiledPackage => "compiled_packages",
        }
    }
}

/// One blob as `release.MF` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobEntry {
    /// Its kind.
    pub kind: BlobKind,
    /// The name of the job or package.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its fingerprint; the version where `release.MF` has none.
    pub fingerprint: String,
    /// What its bytes must have.
    pub digest: MultiDigest,
}

impl BlobEntry {
    /// Its place in the tarball.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}.tgz", self.kind.directory(), self.name)
    }
}

/// A blob that lies in a file now, its digest checked.
#[derive(Clone, Debug)]
pub struct ExtractedBlob {
    /// What it is.
    pub entry: BlobEntry,
    /// Where it lies.
    pub path: Utf8PathBuf,
    /// SHA-256 as lower-case hex, whatever algorithm `release.MF` uses.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
}

/// A job of an extracted release, parsed and checked.
#[derive(Clone, Debug)]
pub struct ExtractedJob {
    /// The blob.
    pub blob: ExtractedBlob,
    /// Its content.
    pub job: JobArchive,
}

/// Everything that a release tarball holds, checked.
#[derive(Clone, Debug)]
pub struct ExtractedRelease {
    /// `release.MF`.
    pub manifest: ReleaseManifest,
    /// All jobs, in the order of `release.MF`.
    pub jobs: Vec<ExtractedJob>,
    /// The packages that the tarball holds, source or compiled, in the order of `release.MF`. A package may be missing when
    /// the uploader was told that its fingerprint is known: see [`ExtractedRelease::absent`].
    pub packages: Vec<ExtractedBlob>,
    /// Packages that are listed and not there; they have to be found by fingerprint.
    pub absent: Vec<BlobEntry>,
}

impl ReleaseArchive {
    /// Opens a tarball and reads `release.MF`, which is the first entry where BOSH's or our own tools wrote it and is
    /// looked for otherwise.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Archive`], [`Error::Missing`], [`Error::Yaml`], [`Error::Invalid`], [`Error::Cycle`].
    pub fn open(path: &Utf8Path) -> Result<Self> {
        let mut text = None;
        tarball::walk(path.as_str(), open(path)?, Limits::RELEASE, |entry| {
            if entry.path != "release.MF" || entry.kind != Kind::File {
                return Ok::<_, Error>(Next::Continue);
            }
            let mut bytes = Vec::new();
            // A manifest of more than 16 MiB is none; what is cut off makes the YAML fail.
            entry
                .data
                .take(16 << 20)
                .read_to_end(&mut bytes)
                .map_err(|source| Error::Archive {
                    archive: path.to_string(),
                    source,
                })?;
            text = Some(bytes);
            Ok(Next::Stop)
        })?;
        let text = text.ok_or_else(|| Error::Missing {
            file: "release.MF".to_owned(),
            archive: path.to_string(),
        })?;
        let manifest: ReleaseManifest = yaml("release.MF", &text)?;
        manifest.check()?;
        Ok(Self {
            path: path.to_owned(),
            manifest,
        })
    }

    /// `release.MF`.
    #[must_use]
    pub fn manifest(&self) -> &ReleaseManifest {
        &self.manifest
    }

    /// All blobs that `release.MF` lists, jobs first.
    #[must_use]
    pub fn entries(&self) -> Vec<BlobEntry> {
        let entry = |kind, name: &str, version: &str, fingerprint: &str, digest: &MultiDigest| BlobEntry {
            kind,
            name: name.to_owned(),
            version: version.to_owned(),
            fingerprint: if fingerprint.is_empty() {
                version
            } else {
                fingerprint
            }
            .to_owned(),
            digest: digest.clone(),
        };
        let m = &self.manifest;
        let jobs = m
            .jobs
            .iter()
            .map(|j| entry(BlobKind::Job, &j.name, &j.version, &j.fingerprint, &j.sha1));
        let packages = m
            .packages
            .iter()
            .map(|p| entry(BlobKind::Package, &p.name, &p.version, &p.fingerprint, &p.sha1));
        let compiled = m.compiled_packages.iter().map(|p| {
            entry(
                BlobKind::CompiledPackage,
                &p.name,
                &p.version,
                &p.fingerprint,
                &p.sha1,
            )
        });
        jobs.chain(packages).chain(compiled).collect()
    }

    /// Streams each listed blob to `sink`, in the order of the tarball, in one pass. The digest is checked after the sink has
    /// read: what it made of a blob counts only when this returns well. Files that `release.MF` does not list are
    /// passed over. Returns what was found.
    ///
    /// # Errors
    /// As [`ReleaseArchive::open`]; [`Error::DigestMismatch`]; what the sink returns.
    pub fn for_each_blob<E: From<Error>>(
        &self,
        mut sink: impl FnMut(&BlobEntry, &mut dyn Read) -> Result<(), E>,
    ) -> Result<Vec<(BlobEntry, Received)>, E> {
        let mut wanted: BTreeMap<String, BlobEntry> = self
            .entries()
            .into_iter()
            .map(|entry| (entry.path(), entry))
            .collect();
        let mut found = Vec::new();
        let file = open(&self.path)?;
        tarball::walk(self.path.as_str(), file, Limits::RELEASE, |file| {
            if file.kind != Kind::File {
                return Ok::<_, E>(Next::Continue);
            }
            let Some(entry) = wanted.remove(file.path.as_str()) else {
                return Ok(Next::Continue);
            };
            let mut reader = HashingReader::new(file.data, &entry.digest);
            sink(&entry, &mut reader)?;
            let received = reader.finish(file.path.as_str(), &entry.digest)?;
            found.push((entry, received));
            Ok(Next::Continue)
        })?;
        Ok(found)
    }

    /// Reads everything and checks the digests of the blobs that are there, for an archive of which nothing is needed.
    ///
    /// # Errors
    /// As [`ReleaseArchive::for_each_blob`]; [`Error::Missing`] for a job that is not there.
    pub fn verify(&self) -> Result<()> {
        // What the sink leaves is read for the digest.
        let found = self.for_each_blob(|_, _| Ok::<_, Error>(()))?;
        let is_there = |entry: &BlobEntry| found.iter().any(|(found, _)| found == entry);
        match self
            .entries()
            .into_iter()
            .find(|entry| entry.kind == BlobKind::Job && !is_there(entry))
        {
            None => Ok(()),
            Some(job) => Err(Error::Missing {
                file: job.path(),
                archive: self.path.to_string(),
            }),
        }
    }

    /// Extracts all blobs into `directory` (one file each, named by content) and parses all jobs. When this returns well,
    /// digests, job specs, templates and their packages are checked, and nothing in the release needs Ruby.
    ///
    /// # Errors
    /// As [`ReleaseArchive::for_each_blob`] and [`JobArchive::read`]; [`Error::Missing`] for a job that is not there.
    pub fn extract(&self, directory: &Utf8Path) -> Result<ExtractedRelease> {
        let written = |path: &Utf8Path, source| Error::Write {
            path: path.to_owned(),
            source,
        };
        fs_err::create_dir_all(directory).map_err(|source| written(directory, source))?;
        let place =
            |entry: &BlobEntry| directory.join(format!("{}-{}.tgz", entry.kind.directory(), entry.name));
        let found = self.for_each_blob(|entry, reader| {
            let path = place(entry);
            let mut file = fs_err::File::create(&path).map_err(|source| written(&path, source))?;
            tarball::copy(self.path.as_str(), &path, reader, &mut file)?;
            Ok::<_, Error>(())
        })?;
        let mut found: BTreeMap<String, ExtractedBlob> = found
            .into_iter()
            .map(|(entry, received)| {
                let blob = ExtractedBlob {
                    path: place(&entry),
                    sha256: received.sha256,
                    size: received.size,
                    entry,
                };
                (blob.entry.path(), blob)
            })
            .collect();
        let mut release = ExtractedRelease {
            manifest: self.manifest.clone(),
            jobs: Vec::new(),
            packages: Vec::new(),
            absent: Vec::new(),
        };
        for entry in self.entries() {
            let blob = found.remove(&entry.path());
            match (entry.kind, blob) {
                (BlobKind::Job, Some(blob)) => {
                    let job = JobArchive::open(&entry.name, &blob.path)?;
                    self.check_packages(&job)?;
                    release.jobs.push(ExtractedJob { blob, job });
                }
                (BlobKind::Job, None) => {
                    return Err(Error::Missing {
                        file: entry.path(),
                        archive: self.path.to_string(),
                    });
                }
                (_, Some(blob)) => release.packages.push(blob),
                (_, None) => release.absent.push(entry),
            }
        }
        Ok(release)
    }

    /// A job may only need packages of its release.
    fn check_packages(&self, job: &JobArchive) -> Result<()> {
        let m = &self.manifest;
        let known = |name: &String| {
            m.packages.iter().any(|p| p.name == *name) || m.compiled_packages.iter().any(|p| p.name == *name)
        };
        match job.spec.packages.iter().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => Err(crate::error::invalid(
                format!("spec of job `{}`", job.spec.name),
                format!("it needs package `{name}`, which the release does not have"),
            )),
        }
    }
}

pub(crate) fn open(path: &Utf8Path) -> Result<fs_err::File> {
    fs_err::File::open(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })
}
