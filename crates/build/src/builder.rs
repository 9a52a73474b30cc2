//! What can be built, from the repository into the cache.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use stolos_release::{JobArchive, ReleaseWriter, Version};

use crate::cache::{Artefact, Cache, Inputs, Listed};
use crate::definition::{ReleaseDefinition, StemcellDefinition};
use crate::error::{Error, Result, file};
use crate::images::{self, ImageArchive};
use crate::programs::{self, Package, Program};
use crate::progress::{NoProgress, Progress};
use crate::source::{Component, GoModules, Source};
use crate::{seed, stemcell};

/// The programs of one upstream component, built.
#[derive(Clone, Debug, Serialize)]
pub struct Upstream {
    /// The component's name, for instance `kubernetes-1.37`.
    pub name: String,
    /// Its version, for instance `v1.37.1`.
    pub version: String,
    /// The directory that holds the programs.
    pub bin: Utf8PathBuf,
}

impl Upstream {
    /// The path of one of its programs.
    #[must_use]
    pub fn program(&self, name: &str) -> Utf8PathBuf {
        self.bin.join(name)
    }
}

/// A release tarball.
#[derive(Clone, Debug, Serialize)]
pub struct Release {
    /// Its name.
    pub name: String,
    /// Its version: that of the definition, `+`, and a digest of everything in it.
    pub version: String,
    /// The tarball.
    pub path: Utf8PathBuf,
}

/// A stemcell tarball.
#[derive(Clone, Debug, Serialize)]
pub struct Stemcell {
    /// Its name, and the operating system that packages are compiled for.
    pub name: String,
    /// Its version: the line, `+`, and a digest of everything in it.
    pub version: String,
    /// The tarball.
    pub path: Utf8PathBuf,
}

/// The system's container images, unpacked as containerd keeps them.
#[derive(Clone, Debug, Serialize)]
pub struct Seed {
    /// What to call it below `/var/vcap/shared/images`: a digest of its inputs.
    pub name: String,
    /// A tree for containerd's `root`; not to be written to.
    pub path: Utf8PathBuf,
    /// The images in it, with the archives that it was made of.
    pub images: Vec<ImageArchive>,
}

/// Builds. All calls block; calls for the same thing, also in other processes, wait for each other.
#[derive(Clone)]
pub struct Builder {
    cache: Cache,
    repository: Utf8PathBuf,
    source: Arc<dyn Source>,
    progress: Arc<dyn Progress>,
}

impl Builder {
    /// A builder for the repository in `repository`, compiling upstream programs, without progress.
    ///
    /// # Errors
    /// [`Error::NoRepository`].
    pub fn new(cache: Cache, repository: &Utf8Path) -> Result<Self> {
        if crate::find_repository(repository)? != repository {
            return Err(Error::NoRepository(repository.to_owned()));
        }
        Ok(Self {
            cache,
            repository: repository.to_owned(),
            source: Arc::new(GoModules),
            progress: Arc::new(NoProgress),
        })
    }

    /// Says what it is doing.
    #[must_use]
    pub fn with_progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
        self
    }

    /// Gets upstream programs from elsewhere.
    #[must_use]
    pub fn with_source(mut self, source: Arc<dyn Source>) -> Self {
        self.source = source;
        self
    }

    /// All upstream components that the repository pins.
    ///
    /// # Errors
    /// When a `go.mod` is not understood.
    pub fn components(&self) -> Result<Vec<Component>> {
        Component::all(&self.repository.join("upstream"))
    }

    /// The programs of one component. `kubernetes-1.37` takes minutes when it is made for the first time.
    ///
    /// # Errors
    /// [`Error::UnknownComponent`]; what the source says.
    pub fn upstream(&self, name: &str) -> Result<Upstream> {
        let components = self.components()?;
        let component =
            components
                .iter()
                .find(|c| c.name == name)
                .ok_or_else(|| Error::UnknownComponent {
                    name: name.to_owned(),
                    known: components
                        .iter()
                        .map(|c| c.name.as_str())
                        .collect::<Vec<_>>()
                        .join(", "),
                })?;
        self.built(component)
    }

    /// The Kubernetes versions that releases are packed for, newest first.
    ///
    /// # Errors
    /// When the release's definition is not understood.
    pub fn kubernetes_versions(&self) -> Result<Vec<String>> {
        let (definition, _) = self.release_definition()?;
        Ok(definition.versions.iter().map(Version::to_string).collect())
    }

    /// The programs of one Kubernetes version, such as `1.37.1`.
    ///
    /// # Errors
    /// [`Error::UnknownVersion`]; what the source says.
    pub fn kubernetes(&self, version: &str) -> Result<Upstream> {
        let (definition, _) = self.release_definition()?;
        let components = self.components()?;
        self.built(kubernetes_of(&components, definition.version(version)?)?)
    }

    fn built(&self, component: &Component) -> Result<Upstream> {
        let artefact = self.component(component)?;
        Ok(Upstream {
            name: component.name.clone(),
            version: component.version.clone(),
            bin: artefact.content.join("bin"),
        })
    }

    fn release_definition(&self) -> Result<(ReleaseDefinition, Vec<JobArchive>)> {
        ReleaseDefinition::read(&self.repository.join("releases/kubernetes"))
    }

    fn component(&self, component: &Component) -> Result<Artefact> {
        let inputs = self.source.inputs(component)?.text("version", &component.version);
        self.cache.get(
            "upstream",
            &component.name,
            &inputs,
            &*self.progress,
            |directory| {
                let bin = directory.join("bin");
                fs_err::create_dir(&bin).map_err(file("create", &bin))?;
                self.source.make(component, &bin, &*self.progress)
            },
        )
    }

    /// The release `kubernetes` for one Kubernetes version, with the given `stolos-job` in it.
    ///
    /// # Errors
    /// [`Error::UnknownVersion`]; when a definition is wrong or a part cannot be built.
    pub fn release(&self, version: &str, stolos_job: &Utf8Path) -> Result<Release> {
        let (definition, jobs) = self.release_definition()?;
        let version = definition.version(version)?;
        let components = self.components()?;
        let own = BTreeMap::from([("stolos-job", stolos_job)]);
        let mut built: BTreeMap<String, Artefact> = BTreeMap::new();
        let mut packages = BTreeMap::new();
        for package in &definition.packages {
            let mut programs = BTreeMap::new();
            for place in &package.files {
                let name = place.file_name().unwrap_or_default();
                let program = match own.get(name) {
                    Some(path) => Program::at(path)?,
                    None => {
                        let component = builder_of(&components, name, &package.name, version)?;
                        let artefact = match built.get(&component.name) {
                            Some(artefact) => artefact.clone(),
                            None => self.component(component)?,
                        };
                        built.insert(component.name.clone(), artefact.clone());
                        Program::of(&artefact, name).ok_or_else(|| Error::UnknownProgram {
                            program: name.to_owned(),
                            package: package.name.clone(),
                        })?
                    }
                };
                programs.insert(place.clone(), program);
            }
            let packed = programs::pack(&self.cache, &*self.progress, &package.name, &programs)?;
            packages.insert(package.name.clone(), packed);
        }
        let stemcell = StemcellDefinition::read(&self.repository.join("stemcell"))?;
        let target = format!("{}/{}", stemcell.name, stemcell.version);
        self.pack_release(&definition.name, version, &jobs, &packages, &target)
    }

    fn pack_release(
        &self,
        name: &str,
        version: &Version,
        jobs: &[JobArchive],
        packages: &BTreeMap<String, Package>,
        target: &str,
    ) -> Result<Release> {
        let mut inputs = Inputs::new()
            .text("packing", "1")
            .text("name", name)
            .text("version", version.as_str())
            .text("stemcell", target);
        for job in jobs {
            inputs = inputs.bytes(format!("job {}", job.spec.name), &job.pack());
        }
        for (package, packed) in packages {
            inputs = inputs.text(format!("package {package}"), &packed.sha256);
        }
        let version = with_digest(version, &inputs)?;
        let tarball = format!("{name}-{version}.tgz");
        let artefact = self
            .cache
            .get("release", name, &inputs, &*self.progress, |directory| {
                let mut writer = ReleaseWriter::new(name, version.clone(), target);
                for job in jobs {
                    writer.job(job);
                }
                for (package, packed) in packages {
                    writer.compiled_package(package, &packed.archive, &packed.sha256, &[])?;
                }
                Ok(writer.write(&directory.join(&tarball))?)
            })?;
        Ok(Release {
            name: name.to_owned(),
            version: version.to_string(),
            path: artefact.content.join(tarball),
        })
    }

    /// The stemcell with the given `stolos-init` and `stolos-agent` in it.
    ///
    /// # Errors
    /// [`Error::NotRoot`], [`Error::MissingProgram`]; when packages cannot be had.
    pub fn stemcell(&self, stolos_init: &Utf8Path, stolos_agent: &Utf8Path) -> Result<Stemcell> {
        let definition = StemcellDefinition::read(&self.repository.join("stemcell"))?;
        let base = stemcell::base(&self.cache, &*self.progress, &definition)?;
        let (init, agent) = (Program::at(stolos_init)?, Program::at(stolos_agent)?);
        stemcell::assemble(&self.cache, &*self.progress, &definition, &base, &init, &agent)
    }

    /// The archives of the system's container images, in OCI's layout.
    ///
    /// # Errors
    /// As [`Builder::stemcell`] (the test image is made of the stemcell's packages) and [`Builder::upstream`].
    pub fn images(&self) -> Result<Vec<ImageArchive>> {
        let definition = StemcellDefinition::read(&self.repository.join("stemcell"))?;
        let base = stemcell::base(&self.cache, &*self.progress, &definition)?;
        let mut programs = Vec::new();
        for name in ["coredns", "metrics-server"] {
            let upstream = self.upstream(name)?;
            let program = Program::at(&upstream.program(name))?;
            programs.push((name, upstream.version, program));
        }
        images::all(&self.cache, &*self.progress, &self.repository, &base, &programs)
    }

    /// The images unpacked as a node's containerd needs them, so that nothing is pulled or unpacked when a node starts.
    ///
    /// # Errors
    /// As [`Builder::images`]; [`Error::ContainerdNotReady`].
    pub fn images_seed(&self) -> Result<Seed> {
        let images = self.images()?;
        let containerd = self.upstream("containerd")?;
        let artefact = seed::make(&self.cache, &*self.progress, &images, &containerd)?;
        Ok(Seed {
            name: artefact.short_key().to_owned(),
            path: artefact.content,
            images,
        })
    }

    /// Builds what takes long and needs no program of ours: upstream programs, Kubernetes in the given versions among
    /// them, the root file system of the stemcell, the images. Network and processor are used at the same time.
    ///
    /// # Errors
    /// [`Error::UnknownVersion`], before anything is built; the first thing that failed.
    pub fn prepare(&self, kubernetes: &[String]) -> Result<()> {
        let definition = StemcellDefinition::read(&self.repository.join("stemcell"))?;
        let (release, _) = self.release_definition()?;
        let mut components = self.components()?;
        let mut wanted = Vec::new();
        for version in kubernetes {
            wanted.push(
                kubernetes_of(&components, release.version(version)?)?
                    .name
                    .clone(),
            );
        }
        components.retain(|component| !component.is_kubernetes() || wanted.contains(&component.name));
        std::thread::scope(|scope| {
            let base = scope.spawn(|| stemcell::base(&self.cache, &*self.progress, &definition).map(drop));
            let compiled = components
                .iter()
                .try_for_each(|component| self.component(component).map(drop));
            let base = base.join().expect("the thread does not panic");
            compiled.and(base)
        })?;
        self.images_seed().map(drop)
    }

    /// Everything in the cache.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>> {
        self.cache.list()
    }

    /// Removes what nobody has asked for since `age`.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn collect_garbage(&self, age: Duration) -> Result<Vec<Utf8PathBuf>> {
        self.cache.collect_garbage(age)
    }
}

/// The component of one Kubernetes version.
fn kubernetes_of<'a>(components: &'a [Component], version: &Version) -> Result<&'a Component> {
    let pinned = || components.iter().filter(|component| component.is_kubernetes());
    let wanted = format!("v{version}");
    pinned()
        .find(|component| component.version == wanted)
        .ok_or_else(|| {
            let versions: Vec<&str> = pinned().map(|component| component.version.as_str()).collect();
            Error::Definition {
                path: "releases/kubernetes/release.yml".into(),
                reason: format!(
                    "it has version {version}, but pinned are {}",
                    versions.join(" and ")
                ),
            }
        })
}

/// The component that builds a program. Where several do (two Kubernetes minors), the one of the release's version.
fn builder_of<'a>(
    components: &'a [Component],
    program: &str,
    package: &str,
    release: &Version,
) -> Result<&'a Component> {
    let able: Vec<&Component> = components
        .iter()
        .filter(|c| c.programs.contains_key(program))
        .collect();
    let wanted = format!("v{release}");
    able.iter()
        .find(|component| component.version == wanted)
        .or_else(|| able.first().filter(|c| able.len() == 1 && !c.is_kubernetes()))
        .copied()
        .ok_or_else(|| match able.first() {
            None => Error::UnknownProgram {
                program: program.to_owned(),
                package: package.to_owned(),
            },
            Some(_) => Error::Definition {
                path: "releases/kubernetes/release.yml".into(),
                reason: format!("it has version {release}, but `{program}` is pinned at {}", {
                    let versions: Vec<&str> = able.iter().map(|c| c.version.as_str()).collect();
                    versions.join(" and ")
                }),
            },
        })
}

/// `VERSION+DIGEST`.
pub(crate) fn with_digest(version: &Version, inputs: &Inputs) -> Result<Version> {
    Ok(format!("{version}+{}", inputs.short()).parse::<Version>()?)
}
