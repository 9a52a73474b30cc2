//! Rendering the templates of instances: in parallel, in memory.
//!
//! Rendered templates are never kept: they follow from the plan (placement, versions of variables) and the jobs of the
//! releases, so a flow that goes on after a restart renders again what it still needs and gets the same bytes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt as _;
use futures::stream;
use serde_json::Value;
use stolos_base::compute;
use stolos_base::ids::InstanceId;
use stolos_blobs::{BlobId, Blobs};
use stolos_manifest::variables::interpolate;
use stolos_release::render::{DeploymentRenderErrors, JobRenderErrors, TemplateError};
use stolos_release::{
    InstanceContext, JobArchive, JobInput, Link, LinkInstance, RenderErrors, RenderedInstance,
    render_instance,
};

use crate::error::{Error, Result};
use crate::plan::{self, Placed, Placement};
use crate::variables::{Values, member, own_references};

/// The largest archive of a job that is read: templates are small.
const JOB_LIMIT: u64 = 64 * 1024 * 1024;
/// Parsed jobs that are kept, so that a deploy of a known release reads nothing.
const JOBS_KEPT: usize = 256;

/// Jobs by (release name, release version, job name).
pub(crate) type Jobs = HashMap<(String, String, String), Arc<JobArchive>>;

/// Parsed jobs by blob.
#[derive(Clone, Debug)]
pub(crate) struct JobCache {
    blobs: Blobs,
    kept: Arc<Mutex<HashMap<BlobId, Arc<JobArchive>>>>,
}

impl JobCache {
    pub(crate) fn new(blobs: Blobs) -> Self {
        Self {
            blobs,
            kept: Arc::default(),
        }
    }

    /// The parsed archive of a job.
    pub(crate) async fn get(&self, name: &str, blob: &str) -> Result<Arc<JobArchive>> {
        let id: BlobId = blob
            .parse()
            .map_err(|_| Error::Bug(format!("job `{name}` has the blob `{blob}`")))?;
        let known = self.lock().get(&id).cloned();
        if let Some(job) = known {
            return Ok(job);
        }
        let bytes = self
            .blobs
            .read(&id, JOB_LIMIT)
            .await
            .map_err(|error| Error::blob("read", error))?;
        let owned = name.to_owned();
        let job = compute::run(move || JobArchive::read(&owned, bytes.as_slice()))
            .await
            .map_err(|error| Error::Bug(format!("reading job `{name}` ended: {error}")))??;
        let job = Arc::new(job);
        let mut kept = self.lock();
        if kept.len() >= JOBS_KEPT {
            kept.clear();
        }
        kept.insert(id, job.clone());
        Ok(job)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<BlobId, Arc<JobArchive>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Renders all instances of a placement.
///
/// # Errors
/// All that is wrong with any template, as BOSH's nested list.
pub(crate) async fn render_all(
    placement: &Arc<Placement>,
    jobs: &Arc<Jobs>,
    values: &Arc<Values>,
) -> Result<BTreeMap<InstanceId, Arc<RenderedInstance>>> {
    let parallel = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let all: Vec<_> = stream::iter(0..placement.instances.len())
        .map(|i| {
            let (placement, jobs, values) = (placement.clone(), jobs.clone(), values.clone());
            async move {
                let id = placement.instances[i].id;
                let done =
                    compute::run(move || render_one(&placement, &placement.instances[i], &jobs, &values));
                (id, done.await)
            }
        })
        .buffered(parallel)
        .collect()
        .await;
    let mut rendered = BTreeMap::new();
    let mut failed = Vec::new();
    for (id, result) in all {
        match result.map_err(|error| Error::Bug(format!("rendering ended: {error}")))? {
            Ok(instance) => {
                rendered.insert(id, Arc::new(instance));
            }
            Err(errors) => failed.push(errors),
        }
    }
    if failed.is_empty() {
        Ok(rendered)
    } else {
        Err(Error::Templates(DeploymentRenderErrors::new(failed).to_string()))
    }
}

/// Renders one instance. Pure.
///
/// # Errors
/// All that is wrong with its templates and with the variables that they use.
pub(crate) fn render_one(
    placement: &Placement,
    placed: &Placed,
    jobs: &Jobs,
    values: &Values,
) -> Result<RenderedInstance, RenderErrors> {
    let member = member(placed);
    let mut failed = Vec::new();
    let mut inputs = Vec::new();
    for job in placement.jobs(&placed.group) {
        let mut errors = Vec::new();
        let mut resolve = |value: &Value| {
            interpolate(&own_references(value, &member), |name| values.get(name)).unwrap_or_else(|problems| {
                errors.extend(problems.into_iter().map(|problem| problem.to_string()));
                Value::Null
            })
        };
        let properties = resolve(&job.properties);
        let links: BTreeMap<String, Link> = job
            .links
            .iter()
            .map(|(name, link)| (name.clone(), to_link(link, resolve(&link.properties))))
            .collect();
        let key = (
            job.release.name.clone(),
            job.release.version.clone(),
            job.name.clone(),
        );
        match jobs.get(&key) {
            Some(archive) if errors.is_empty() => inputs.push((archive.clone(), properties, links)),
            Some(_) => {}
            None => errors.push(format!("release '{}/{}' has no such job", key.0, key.1)),
        }
        if !errors.is_empty() {
            let errors = errors
                .into_iter()
                .map(|message| TemplateError {
                    template: "properties".to_owned(),
                    line: None,
                    message,
                })
                .collect();
            failed.push(JobRenderErrors {
                job: job.name.clone(),
                errors,
            });
        }
    }
    let inputs: Vec<JobInput<'_>> = inputs
        .iter()
        .map(|(job, properties, links)| JobInput {
            job,
            properties,
            links,
        })
        .collect();
    match render_instance(&inputs, &context(placement, placed)) {
        Ok(rendered) if failed.is_empty() => Ok(rendered),
        Ok(_) => Err(RenderErrors {
            instance_group: placed.group.clone(),
            jobs: failed,
        }),
        Err(mut errors) => {
            errors.jobs.extend(failed);
            Err(errors)
        }
    }
}

fn context(placement: &Placement, placed: &Placed) -> InstanceContext {
    let default =
        |network: &&plan::NetworkSettings| network.default.contains(&stolos_manifest::DefaultFor::Gateway);
    let first = placed.networks.values().next();
    let ip = placed
        .networks
        .values()
        .find(default)
        .or(first)
        .map_or_else(|| placed.address.to_string(), |network| network.ip.to_string());
    InstanceContext {
        deployment: placement.deployment.clone(),
        name: placed.group.clone(),
        index: placed.index.into(),
        id: placed.id.to_string(),
        az: placed.az.clone(),
        bootstrap: placed.bootstrap,
        address: placed.address.to_string(),
        ip,
        networks: placed
            .networks
            .iter()
            .map(|(name, network)| (name.clone(), network.to_wire()))
            .collect(),
    }
}

fn to_link(link: &plan::Link, properties: Value) -> Link {
    Link {
        instances: link
            .instances
            .iter()
            .map(|instance| LinkInstance {
                name: instance.name.clone(),
                index: instance.index.into(),
                id: instance.id.clone(),
                az: (!instance.az.is_empty()).then(|| instance.az.clone()),
                address: instance.address.clone(),
                bootstrap: instance.bootstrap,
            })
            .collect(),
        properties,
    }
}
