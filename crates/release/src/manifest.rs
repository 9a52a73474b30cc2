//! `release.MF`: what a release says it holds.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::MultiDigest;
use crate::error::{Result, invalid, is_plain_name};
use crate::graph::CompileGraph;
use crate::version::Version;

/// The content of `release.MF`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReleaseManifest {
    /// The release's name.
    pub name: String,
    /// Its version.
    pub version: Version,
    /// The commit that it was made from; the same name and version from another commit is refused by a director.
    #[serde(default)]
    pub commit_hash: String,
    /// Whether there was more than that commit.
    #[serde(default)]
    pub uncommitted_changes: bool,
    /// The jobs.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub jobs: Vec<JobEntry>,
    /// Packages as source, to be compiled.
    #[serde(
        default,
        deserialize_with = "null_as_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub packages: Vec<PackageEntry>,
    /// Packages that were compiled before; a release has either these or `packages`.
    #[serde(
        default,
        deserialize_with = "null_as_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub compiled_packages: Vec<CompiledPackageEntry>,
}

/// A job as `release.MF` lists it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobEntry {
    /// The job's name.
    pub name: String,
    /// Equal to the fingerprint.
    pub version: String,
    /// What the content is compared by.
    #[serde(default)]
    pub fingerprint: String,
    /// The digest of `jobs/NAME.tgz`.
    pub sha1: MultiDigest,
    /// The packages that the job needs.
    #[serde(
        default,
        deserialize_with = "null_as_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub packages: Vec<String>,
}

/// A package to be compiled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PackageEntry {
    /// The package's name.
    pub name: String,
    /// Equal to the fingerprint.
    pub version: String,
    /// What the content is compared by.
    #[serde(default)]
    pub fingerprint: String,
    /// The digest of `packages/NAME.tgz`.
    pub sha1: MultiDigest,
    /// Packages that must be there when this one is compiled, and used.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub dependencies: Vec<String>,
}

/// A package that was compiled for one stemcell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CompiledPackageEntry {
    /// The package's name.
    pub name: String,
    /// Equal to the fingerprint.
    pub version: String,
    /// What the content is compared by.
    #[serde(default)]
    pub fingerprint: String,
    /// The digest of `compiled_packages/NAME.tgz`.
    pub sha1: MultiDigest,
    /// `OS/VERSION` of the stemcell that it runs on.
    pub stemcell: String,
    /// Packages that must be there when this one is used.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub dependencies: Vec<String>,
}

impl ReleaseManifest {
    /// Checks the rules of the format: plain names, none twice, source or compiled but not both, known dependencies
    /// without a circle.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] or [`crate::Error::Cycle`].
    pub fn check(&self) -> Result<()> {
        let document = "release.MF";
        let mut names: Vec<(&str, &str)> = vec![("release", &self.name)];
        names.extend(self.jobs.iter().map(|job| ("job", job.name.as_str())));
        names.extend(
            self.packages
                .iter()
                .map(|package| ("package", package.name.as_str())),
        );
        names.extend(
            self.compiled_packages
                .iter()
                .map(|package| ("package", package.name.as_str())),
        );
        let mut seen = BTreeSet::new();
        for (kind, name) in names {
            if !is_plain_name(name) {
                return Err(invalid(document, format!("`{name}` cannot name a {kind}")));
            }
            if kind != "release" && !seen.insert((kind, name)) {
                return Err(invalid(document, format!("{kind} `{name}` is listed twice")));
            }
        }
        if !self.packages.is_empty() && !self.compiled_packages.is_empty() {
            return Err(invalid(document, "it has both packages and compiled packages"));
        }
        for package in &self.compiled_packages {
            let parts = package.stemcell.split_once('/');
            if !parts.is_some_and(|(os, version)| !os.is_empty() && version.parse::<Version>().is_ok()) {
                return Err(invalid(
                    document,
                    format!(
                        "the stemcell `{}` of package `{}` is not of the form OS/VERSION",
                        package.stemcell, package.name
                    ),
                ));
            }
        }
        let graph = CompileGraph::of(self)?;
        for job in &self.jobs {
            for package in &job.packages {
                if !graph.holds(package) {
                    return Err(invalid(
                        document,
                        format!(
                            "job `{}` needs package `{package}`, which is not listed",
                            job.name
                        ),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Whether a package that was compiled for `compiled_for` runs on the stemcell `stemcell` (both `OS/VERSION`): the same
/// operating system, and the same version or another of its line, which is how BOSH matches packages that came compiled.
#[must_use]
pub fn runs_on(compiled_for: &str, stemcell: &str) -> bool {
    if compiled_for == stemcell {
        return true;
    }
    let split = |text: &str| -> Option<(String, Version)> {
        let (os, version) = text.split_once('/')?;
        Some((os.to_owned(), version.parse().ok()?))
    };
    match (split(compiled_for), split(stemcell)) {
        (Some((os_a, a)), Some((os_b, b))) => os_a == os_b && a.same_line(&b),
        _ => false,
    }
}

/// Old tools write `packages:` with nothing behind it for none.
fn null_as_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Option::<Vec<T>>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiled_packages_run_on_their_line() {
        assert!(runs_on("stolos-trixie/13.0", "stolos-trixie/13.0+0123abcd"));
        assert!(runs_on("ubuntu-jammy/1.621", "ubuntu-jammy/1.621.4"));
        assert!(!runs_on("ubuntu-jammy/1.621", "ubuntu-jammy/1.622"));
        assert!(!runs_on("stolos-trixie/13.0", "stolos-bookworm/13.0"));
        assert!(!runs_on("stolos-trixie", "stolos-trixie/13.0"));
    }
}
