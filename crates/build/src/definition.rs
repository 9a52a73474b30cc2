//! The files of the repository that say what to build.

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;
use stolos_release::{JobArchive, Version};

use crate::error::{Error, Result, file};

/// The Stolos repository that `start` lies in: the nearest directory upwards with `upstream`, `releases` and `stemcell`.
///
/// # Errors
/// [`Error::NoRepository`].
pub fn find_repository(start: &Utf8Path) -> Result<Utf8PathBuf> {
    start
        .ancestors()
        .find(|directory| {
            ["upstream", "releases", "stemcell"]
                .iter()
                .all(|name| directory.join(name).is_dir())
        })
        .map(Utf8Path::to_owned)
        .ok_or_else(|| Error::NoRepository(start.to_owned()))
}

/// `releases/NAME/release.yml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReleaseDefinition {
    pub(crate) name: String,
    /// The Kubernetes versions that it is packed for, newest first.
    pub(crate) versions: Vec<Version>,
    pub(crate) packages: Vec<PackageDefinition>,
    jobs: Vec<String>,
}

/// A package and the files that it holds; each one's last element is the program's name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PackageDefinition {
    pub(crate) name: String,
    pub(crate) files: Vec<Utf8PathBuf>,
}

impl ReleaseDefinition {
    /// Reads a release's definition and its jobs, and checks that they fit each other.
    pub(crate) fn read(directory: &Utf8Path) -> Result<(Self, Vec<JobArchive>)> {
        let path = directory.join("release.yml");
        let release: Self = yaml(&path)?;
        let refuse = |reason: String| Error::Definition {
            path: path.clone(),
            reason,
        };
        if release.versions.is_empty() || !release.versions.is_sorted_by(|a, b| a > b) {
            return Err(refuse(
                "`versions` is empty, or not sorted with the newest first".to_owned(),
            ));
        }
        let packages: BTreeSet<&str> = release.packages.iter().map(|p| p.name.as_str()).collect();
        let listed: BTreeSet<&str> = release.jobs.iter().map(String::as_str).collect();
        let jobs_directory = directory.join("jobs");
        for entry in jobs_directory
            .read_dir_utf8()
            .map_err(file("read", &jobs_directory))?
        {
            let entry = entry.map_err(file("read", &jobs_directory))?;
            if !listed.contains(entry.file_name()) {
                return Err(refuse(format!(
                    "the directory of job `{}` is there, but it is not listed",
                    entry.file_name()
                )));
            }
        }
        let mut jobs = Vec::new();
        for name in &listed {
            let job = JobArchive::from_source(&jobs_directory.join(name))?;
            if let Some(package) = job.spec.packages.iter().find(|p| !packages.contains(p.as_str())) {
                return Err(refuse(format!(
                    "job `{name}` needs package `{package}`, which is not listed"
                )));
            }
            jobs.push(job);
        }
        Ok((release, jobs))
    }

    /// The listed version that is written so.
    pub(crate) fn version(&self, wanted: &str) -> Result<&Version> {
        self.versions
            .iter()
            .find(|version| version.as_str() == wanted)
            .ok_or_else(|| Error::UnknownVersion {
                version: wanted.to_owned(),
                known: self
                    .versions
                    .iter()
                    .map(Version::as_str)
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }
}

/// `stemcell/stemcell.yml` and `stemcell/packages.txt`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StemcellDefinition {
    pub(crate) name: String,
    /// The line; a digest is appended.
    pub(crate) version: Version,
    pub(crate) suite: String,
    pub(crate) remove: Vec<Utf8PathBuf>,
    pub(crate) remove_endings: Vec<String>,
    pub(crate) users: Vec<User>,
    pub(crate) directories: Vec<Directory>,
    #[serde(skip)]
    pub(crate) packages: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) id: u32,
    pub(crate) home: String,
    pub(crate) shell: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Directory {
    pub(crate) path: Utf8PathBuf,
    /// Octal, as a text.
    mode: String,
    #[serde(default)]
    pub(crate) owner: u32,
    #[serde(default)]
    pub(crate) group: u32,
}

impl Directory {
    pub(crate) fn mode(&self) -> u32 {
        u32::from_str_radix(&self.mode, 8).unwrap_or(0o755)
    }
}

impl StemcellDefinition {
    pub(crate) fn read(directory: &Utf8Path) -> Result<Self> {
        let path = directory.join("stemcell.yml");
        let mut stemcell: Self = yaml(&path)?;
        let refuse = |reason: String| Error::Definition {
            path: path.clone(),
            reason,
        };
        let paths = stemcell
            .remove
            .iter()
            .chain(stemcell.directories.iter().map(|d| &d.path));
        for inside in paths {
            if inside.is_absolute()
                || inside.as_str().is_empty()
                || inside.components().any(|c| c.as_str() == "..")
            {
                return Err(refuse(format!(
                    "`{inside}` is no path below the root file system"
                )));
            }
        }
        if let Some(directory) = stemcell
            .directories
            .iter()
            .find(|d| u32::from_str_radix(&d.mode, 8).is_err())
        {
            return Err(refuse(format!("the mode of `{}` is not octal", directory.path)));
        }
        let packages = directory.join("packages.txt");
        stemcell.packages = fs_err::read_to_string(&packages)
            .map_err(file("read", &packages))?
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default().trim())
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect();
        Ok(stemcell)
    }
}

fn yaml<T: serde::de::DeserializeOwned>(path: &Utf8Path) -> Result<T> {
    let text = fs_err::read_to_string(path).map_err(file("read", path))?;
    stolos_document::from_yaml(&text).map_err(|error| Error::Definition {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_s_definitions_fit_together() {
        let repository = find_repository(Utf8Path::new(env!("CARGO_MANIFEST_DIR"))).expect("the repository");
        let (release, jobs) =
            ReleaseDefinition::read(&repository.join("releases/kubernetes")).expect("the release");
        assert_eq!(release.name, "kubernetes");
        assert!(!jobs.is_empty());
        let stemcell = StemcellDefinition::read(&repository.join("stemcell")).expect("the stemcell");
        assert!(stemcell.packages.iter().any(|package| package == "crun"));
    }
}
