//! What the releases of a deployment hold, as far as the planner has to know.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use stolos_manifest::ResolvedRelease;

/// Jobs and packages of all releases that a deployment uses. The caller fills it from uploaded releases.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    jobs: BTreeMap<JobKey, JobSpec>,
    packages: BTreeMap<JobKey, PackageSpec>,
}

/// A job or a package of a release.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobKey {
    /// Release.
    pub release: ResolvedRelease,
    /// Name of the job or package.
    pub name: String,
}

/// A job as its release describes it (`job.MF`; bosh.md section 2.3).
#[derive(Clone, Debug, Default)]
pub struct JobSpec {
    /// Name.
    pub name: String,
    /// Fingerprint; the same job in two versions of a release has the same one.
    pub fingerprint: String,
    /// Names of packages of the same release.
    pub packages: Vec<String>,
    /// Dotted name → what is known about the property.
    pub properties: IndexMap<String, PropertySpec>,
    /// Links that it offers.
    pub provides: Vec<ProvideSpec>,
    /// Links that it wants.
    pub consumes: Vec<ConsumeSpec>,
}

/// A property of a job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PropertySpec {
    /// Used when the manifest says nothing; `None` is different from a default of null only for people.
    pub default: Option<serde_json::Value>,
}

/// A link that a job offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvideSpec {
    /// Name.
    pub name: String,
    /// Type.
    pub kind: String,
    /// Dotted names of properties that it shows.
    pub properties: Vec<String>,
}

/// A link that a job wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumeSpec {
    /// Name.
    pub name: String,
    /// Type.
    pub kind: String,
    /// Whether it can do without.
    pub optional: bool,
}

/// A package as its release describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageSpec {
    /// Name.
    pub name: String,
    /// Version as the agent is told; for our releases the fingerprint.
    pub version: String,
    /// Digest that changes when the content does.
    pub digest: String,
}

/// Something was added twice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{name}' is twice in release '{release}/{version}'")]
pub struct CatalogError {
    name: String,
    release: String,
    version: String,
}

impl Catalog {
    /// Adds a job of a release.
    ///
    /// # Errors
    /// The release has a job of that name already.
    pub fn add_job(&mut self, release: &ResolvedRelease, job: JobSpec) -> Result<(), CatalogError> {
        let key = JobKey {
            release: release.clone(),
            name: job.name.clone(),
        };
        add(&mut self.jobs, key, job)
    }

    /// Adds a package of a release.
    ///
    /// # Errors
    /// The release has a package of that name already.
    pub fn add_package(
        &mut self,
        release: &ResolvedRelease,
        package: PackageSpec,
    ) -> Result<(), CatalogError> {
        let key = JobKey {
            release: release.clone(),
            name: package.name.clone(),
        };
        add(&mut self.packages, key, package)
    }

    /// A job of a release.
    #[must_use]
    pub fn job(&self, release: &ResolvedRelease, name: &str) -> Option<&JobSpec> {
        self.jobs.get(&JobKey {
            release: release.clone(),
            name: name.to_owned(),
        })
    }

    /// A package of a release.
    #[must_use]
    pub fn package(&self, release: &ResolvedRelease, name: &str) -> Option<&PackageSpec> {
        self.packages.get(&JobKey {
            release: release.clone(),
            name: name.to_owned(),
        })
    }

    /// Names of all jobs of a release.
    pub fn job_names<'c>(&'c self, release: &'c ResolvedRelease) -> impl Iterator<Item = &'c str> {
        self.jobs
            .keys()
            .filter(move |key| key.release == *release)
            .map(|key| key.name.as_str())
    }
}

fn add<T>(map: &mut BTreeMap<JobKey, T>, key: JobKey, value: T) -> Result<(), CatalogError> {
    let error = CatalogError {
        name: key.name.clone(),
        release: key.release.name.clone(),
        version: key.release.version.clone(),
    };
    match map.insert(key, value) {
        None => Ok(()),
        Some(_) => Err(error),
    }
}
