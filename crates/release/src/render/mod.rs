//! Rendering of an instance's job templates. Pure: no I/O, no clock.
//!
//! Templates whose source ends in `.j2` are Jinja (undefined names are errors, nothing is escaped, the final newline
//! stays, null cannot be printed, booleans are `true` and `false`); all others are copied. What a template may use is listed in ARCHITECTURE.md,
//! "Templates". Errors of all templates are collected and phrased as BOSH phrases them.
//!
//! Rendered content holds secrets: it is kept in [`Secret`] and no type here shows it, errors included.

mod engine;
mod errors;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stolos_base::Secret;

pub use errors::{DeploymentRenderErrors, JobRenderErrors, RenderErrors, TemplateError};

use crate::digest::Algorithm;
use crate::job::JobArchive;
use crate::tarball::{Level, Packer};

/// What templates know of the instance that they are rendered for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InstanceContext {
    /// The deployment's name.
    pub deployment: String,
    /// The instance group's name.
    pub name: String,
    /// The instance's number in its group.
    pub index: u64,
    /// The instance's id, a UUID.
    pub id: String,
    /// Its availability zone.
    pub az: Option<String>,
    /// Whether it is the one instance of its group that starts what has to be started once.
    pub bootstrap: bool,
    /// Where others reach it: an address or a DNS name.
    pub address: String,
    /// Its address on the default network.
    pub ip: String,
    /// Its networks by name, as in the apply spec.
    pub networks: Value,
}

/// A job of the instance and what it gets.
pub struct JobInput<'a> {
    /// The job.
    pub job: &'a JobArchive,
    /// What [`crate::JobSpec::properties_for`] made of the manifest, secrets resolved.
    pub properties: &'a Value,
    /// The links that the job consumes, by name. One that is optional and absent is left out.
    pub links: &'a BTreeMap<String, Link>,
}

/// What a consumer sees of a provider.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Link {
    /// The instances of the provider's group.
    pub instances: Vec<LinkInstance>,
    /// The properties that the provider shows, secrets resolved.
    #[serde(default)]
    pub properties: Value,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("instances", &self.instances)
            .field("properties", &"<redacted>")
            .finish()
    }
}

/// An instance of a provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkInstance {
    /// Its group's name.
    pub name: String,
    /// Its number in the group.
    pub index: u64,
    /// Its id, a UUID.
    pub id: String,
    /// Its availability zone.
    pub az: Option<String>,
    /// Where it is reached.
    pub address: String,
    /// Whether it is its group's bootstrap instance.
    pub bootstrap: bool,
}

/// One rendered file.
#[derive(Clone, Debug)]
pub struct RenderedFile {
    /// Its content.
    pub bytes: Secret<Vec<u8>>,
    /// Its mode: 0750 below `bin/`, 0640 elsewhere.
    pub mode: u32,
}

/// A rendered job.
#[derive(Clone, Debug)]
pub struct RenderedJob {
    /// By path below the job's directory.
    pub files: BTreeMap<String, RenderedFile>,
    /// BOSH's `template_hashes` entry: SHA-1 of monit and all contents in the order of their sources.
    pub template_hash: String,
}

/// Everything rendered for one instance.
#[derive(Clone, Debug)]
pub struct RenderedInstance {
    /// By job name.
    pub jobs: BTreeMap<String, RenderedJob>,
    /// BOSH's `configuration_hash`: changes when any rendered content does.
    pub configuration_hash: String,
}

impl RenderedInstance {
    /// BOSH's `template_hashes`: job name to hash.
    #[must_use]
    pub fn template_hashes(&self) -> BTreeMap<String, String> {
        self.jobs
            .iter()
            .map(|(name, job)| (name.clone(), job.template_hash.clone()))
            .collect()
    }

    /// Packs everything as the archive that an agent unpacks: `./JOB/PATH` for each file, sorted, the same bytes for the
    /// same content.
    #[must_use]
    pub fn pack(&self) -> Secret<Vec<u8>> {
        let pack = || -> std::io::Result<Vec<u8>> {
            let mut packer = Packer::new(Vec::new(), Level::Fast);
            for (name, job) in &self.jobs {
                for (path, file) in &job.files {
                    packer.bytes(&format!("./{name}/{path}"), file.mode, file.bytes.expose())?;
                }
            }
            packer.finish()
        };
        Secret::new(pack().expect("writing into memory cannot fail"))
    }
}

/// Checks a template's syntax, so that a mistake is found when a job comes in and not when it is deployed. Templates that
/// are copied are always right.
pub(crate) fn check_template(source: &str, text: &[u8]) -> Result<(), (usize, String)> {
    if !source.ends_with(".j2") {
        return Ok(());
    }
    let text = std::str::from_utf8(text).map_err(|_| (1, "the template is not UTF-8".to_owned()))?;
    engine::check(source, text)
}

/// Renders all templates of an instance's jobs.
///
/// # Errors
/// All that went wrong in any template, as one list.
pub fn render_instance(
    jobs: &[JobInput<'_>],
    context: &InstanceContext,
) -> Result<RenderedInstance, RenderErrors> {
    let mut rendered = BTreeMap::new();
    let mut failed = Vec::new();
    let mut configuration: Vec<(&str, Secret<Vec<u8>>)> = Vec::new();
    for input in jobs {
        let name = input.job.spec.name.as_str();
        match render_job(input, context) {
            Ok((job, hashed)) => {
                rendered.insert(name.to_owned(), job);
                configuration.push((name, hashed));
            }
            Err(errors) => failed.push(JobRenderErrors {
                job: name.to_owned(),
                errors,
            }),
        }
    }
    if !failed.is_empty() {
        return Err(RenderErrors {
            instance_group: context.name.clone(),
            jobs: failed,
        });
    }
    configuration.sort_by_key(|(name, _)| *name);
    let all: Secret<Vec<u8>> = Secret::new(
        configuration
            .iter()
            .flat_map(|(_, hashed)| hashed.expose().iter().copied())
            .collect(),
    );
    Ok(RenderedInstance {
        jobs: rendered,
        configuration_hash: Algorithm::Sha1.hex(all.expose()),
    })
}

/// One job, and what it adds to the configuration hash.
fn render_job(
    input: &JobInput<'_>,
    context: &InstanceContext,
) -> Result<(RenderedJob, Secret<Vec<u8>>), Vec<TemplateError>> {
    let engine = engine::Engine::new(input, context);
    let job = input.job;
    let mut by_source = BTreeMap::new();
    let mut errors = Vec::new();
    for (source, destination) in &job.spec.templates {
        // `JobArchive` has checked that every source is there.
        let text = job.template(source).unwrap_or_default();
        let result = if source.ends_with(".j2") {
            engine.render(source, text)
        } else {
            Ok(text.to_vec())
        };
        match result {
            Ok(bytes) => {
                by_source.insert(source.as_str(), (destination.as_str(), Secret::new(bytes)));
            }
            Err(error) => errors.push(error),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let monit = job.monit().unwrap_or_default();
    let mut templates = monit.to_vec();
    let mut configuration = [monit, job.spec.name.as_bytes()].concat();
    for (destination, bytes) in by_source.values() {
        templates.extend_from_slice(bytes.expose());
        configuration.extend_from_slice(bytes.expose());
        configuration.extend_from_slice(destination.as_bytes());
    }
    let (templates, configuration) = (Secret::new(templates), Secret::new(configuration));
    let mut files: BTreeMap<String, RenderedFile> = by_source
        .into_values()
        .map(|(destination, bytes)| {
            let mode = if destination.starts_with("bin/") {
                0o750
            } else {
                0o640
            };
            (destination.to_owned(), RenderedFile { bytes, mode })
        })
        .collect();
    if job.monit().is_some() {
        let bytes = Secret::new(monit.to_vec());
        files.insert("monit".to_owned(), RenderedFile { bytes, mode: 0o640 });
    }
    let job = RenderedJob {
        files,
        template_hash: Algorithm::Sha1.hex(templates.expose()),
    };
    Ok((job, configuration))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
