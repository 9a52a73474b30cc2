//! Writing release tarballs.

use std::io::{self, Write};

use camino::{Utf8Path, Utf8PathBuf};

use crate::digest::MultiDigest;
use crate::error::{Error, Result, invalid};
use crate::job::JobArchive;
use crate::manifest::{CompiledPackageEntry, JobEntry, ReleaseManifest};
use crate::tarball::{Level, Packer};
use crate::version::Version;

/// Collects jobs and compiled packages and writes them as one tarball; the same parts always give the same bytes.
#[derive(Debug)]
pub struct ReleaseWriter {
    manifest: ReleaseManifest,
    stemcell: String,
    jobs: Vec<(String, Vec<u8>)>,
    packages: Vec<(String, Utf8PathBuf)>,
}

impl ReleaseWriter {
    /// Begins a release whose packages are compiled for the stemcell `stemcell` (`OS/VERSION`).
    #[must_use]
    pub fn new(name: &str, version: Version, stemcell: &str) -> Self {
        Self {
            manifest: ReleaseManifest {
                name: name.to_owned(),
                version,
                commit_hash: String::new(),
                uncommitted_changes: false,
                jobs: Vec::new(),
                packages: Vec::new(),
                compiled_packages: Vec::new(),
            },
            stemcell: stemcell.to_owned(),
            jobs: Vec::new(),
            packages: Vec::new(),
        }
    }

    /// Adds a job.
    pub fn job(&mut self, job: &JobArchive) {
        let packed = job.pack();
        let fingerprint = job.fingerprint();
        self.manifest.jobs.push(JobEntry {
            name: job.spec.name.clone(),
            version: fingerprint.clone(),
            fingerprint,
            sha1: MultiDigest::sha256(&packed),
            packages: job.spec.packages.clone(),
        });
        self.jobs.push((job.spec.name.clone(), packed));
    }

    /// Adds a compiled package that lies packed in the file `archive`, whose SHA-256 is `sha256`. Its digest is its
    /// fingerprint too: what was made from the same inputs has the same bytes here.
    ///
    /// # Errors
    /// [`Error::NoDigest`].
    pub fn compiled_package(
        &mut self,
        name: &str,
        archive: &Utf8Path,
        sha256: &str,
        dependencies: &[String],
    ) -> Result<()> {
        self.manifest.compiled_packages.push(CompiledPackageEntry {
            name: name.to_owned(),
            version: sha256.to_owned(),
            fingerprint: sha256.to_owned(),
            sha1: MultiDigest::from_sha256_hex(sha256)?,
            stemcell: self.stemcell.clone(),
            dependencies: dependencies.to_vec(),
        });
        self.packages.push((name.to_owned(), archive.to_owned()));
        Ok(())
    }

    /// Checks everything and writes the tarball to `path`, which must not be there.
    ///
    /// # Errors
    /// As [`ReleaseManifest::check`]; [`Error::Read`] for a package, [`Error::Write`] for the tarball.
    pub fn write(mut self, path: &Utf8Path) -> Result<()> {
        self.manifest.jobs.sort_by(|a, b| a.name.cmp(&b.name));
        self.manifest
            .compiled_packages
            .sort_by(|a, b| a.name.cmp(&b.name));
        self.jobs.sort();
        self.packages.sort();
        self.manifest.check()?;
        let text = stolos_document::to_yaml(&self.manifest)
            .map_err(|error| invalid("release.MF", error.to_string()))?;
        let write = || -> io::Result<()> {
            let mut packer = Packer::new(fs_err::File::create_new(path)?, Level::Store);
            packer.bytes("release.MF", 0o644, text.as_bytes())?;
            for (name, bytes) in &self.jobs {
                packer.bytes(&format!("jobs/{name}.tgz"), 0o644, bytes)?;
            }
            for (name, archive) in &self.packages {
                let file = fs_err::File::open(archive)?;
                let size = file.metadata()?.len();
                packer.file(&format!("compiled_packages/{name}.tgz"), 0o644, size, file)?;
            }
            let mut file = packer.finish()?;
            file.flush()?;
            file.sync_all()
        };
        write().map_err(|source| Error::Write {
            path: path.to_owned(),
            source,
        })
    }
}

#[cfg(test)]
#[path = "release_tests.rs"]
mod tests;
