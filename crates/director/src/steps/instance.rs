//! What is asked of the agent of one instance: stop, configure, start (bosh.md sections 2.7 and 5.5).

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use indexmap::IndexMap;
use serde_json::{Map, Value, json};
use stolos_base::compute;
use stolos_base::ids::InstanceId;
use stolos_blobs::{BlobId, Verb};
use stolos_manifest::{DefaultFor, WatchTime};
use stolos_mbus::call::{Call, Drain, UploadBlob};
use stolos_mbus::settings::{Mbus, UpdateSettings};
use stolos_mbus::spec::{ApplySpec, Archive, Job, JobTemplate, Package};
use stolos_mbus::state::JobState;
use stolos_mbus::{AgentClient, client};
use stolos_release::RenderedInstance;

use super::{Attempt, Work};
use crate::error::{Error, Result};
use crate::plan::{InstancePlan, MachineRef, Placed};
use crate::prepare::Kept;
use crate::render::{Jobs, render_one};
use crate::states::Seen;
use crate::{db, variables};

/// How long stopping jobs may take, as in BOSH.
const STOP_LIMIT: Duration = Duration::from_secs(300);
/// The first pause between two looks at an instance that is to run; most processes are there by then.
const LOOK_FIRST: Duration = Duration::from_millis(50);
/// The longest such pause.
const LOOK_LONGEST: Duration = Duration::from_secs(1);
/// What an upload message has besides its payload, at most.
const UPLOAD_OVERHEAD: usize = 4096;
/// How long agents may use a signed URL: as long as a deploy may reasonably take.
const URL_VALIDITY: Duration = Duration::from_secs(24 * 3600);
/// A drain script that asks for more is not waited for at a stretch: the wait can be cancelled all the time anyway.
const DRAIN_LIMIT: u64 = 24 * 3600;

/// What becomes of an instance that is stopped; its scripts see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The machine stays and gets something else.
    Update,
    /// The machine stays and does nothing.
    Stop,
    /// The machine goes, the instance comes back on another.
    Recreate,
    /// The instance goes, its deployment stays.
    Delete,
    /// The deployment goes.
    DeleteDeployment,
}

impl Next {
    fn environment(self) -> IndexMap<String, String> {
        let (vm, instance, deployment) = match self {
            Self::Update | Self::Stop => ("keep", "keep", "keep"),
            Self::Recreate => ("delete", "keep", "keep"),
            Self::Delete => ("delete", "delete", "keep"),
            Self::DeleteDeployment => ("delete", "delete", "delete"),
        };
        [
            ("BOSH_VM_NEXT_STATE", vm),
            ("BOSH_INSTANCE_NEXT_STATE", instance),
            ("BOSH_DEPLOYMENT_NEXT_STATE", deployment),
        ]
        .into_iter()
        // Ours: BOSH's three say nothing about who only stops.
        .chain((self == Self::Stop).then_some(("STOLOS_NEXT_STATE", "stopped")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
    }
}

/// An instance's machine, to be stopped.
pub(crate) struct Stopping<'a> {
    pub(crate) machine: &'a MachineRef,
    /// `group/id`.
    pub(crate) instance: &'a str,
    pub(crate) next: Next,
    /// Whether pre-stop and drain scripts are left out.
    pub(crate) skip_drain: bool,
    /// What it will run next, for the drain scripts of an update.
    pub(crate) spec: Option<ApplySpec>,
}

/// Drains and stops the jobs. A machine that the infrastructure no longer has needs no stopping.
pub(crate) async fn stop<T>(attempt: &Attempt<T>, stopping: Stopping<'_>) -> Result<()> {
    let machine = stopping.machine;
    match drain_and_stop(attempt, stopping).await {
        Err(Error::Agent(error)) if matches!(*error, client::Error::Timeout { .. }) => {
            if attempt.machines().has_vm(&machine.cid).await? {
                return Err(Error::Agent(error));
            }
            attempt.app.tasks.debug(
                attempt.flow,
                &format!("machine {} is gone; nothing to stop", machine.cid),
            );
            Ok(())
        }
        other => other,
    }
}

async fn drain_and_stop<T>(attempt: &Attempt<T>, stopping: Stopping<'_>) -> Result<()> {
    let agent = attempt.agent(stopping.machine.agent_id, stopping.instance);
    let env = stopping.next.environment();
    if stopping.skip_drain {
        attempt.status("skipped pre-stop & drain");
    } else {
        attempt.status("executing pre-stop");
        agent.run_script("pre-stop", env.clone()).await?;
        attempt.status("executing drain");
        drain(attempt, &agent, stopping.next, stopping.spec).await?;
    }
    attempt.status("stopping jobs");
    agent.clone().with_timeout(STOP_LIMIT).stop_jobs().await?;
    attempt.status("executing post-stop");
    agent.run_script("post-stop", env).await?;
    Ok(())
}

/// Our agent and the Go agent wait themselves and answer 0; others say how long to wait, negative when to ask again.
async fn drain<T>(
    attempt: &Attempt<T>,
    agent: &AgentClient,
    next: Next,
    spec: Option<ApplySpec>,
) -> Result<()> {
    let (ctx, what) = (attempt.ctx.clone(), "executing drain");
    let agent = agent
        .clone()
        .with_listener(move |said| ctx.progress(format!("{what}: {said}")));
    loop {
        let what = match (next, &spec) {
            (Next::Update, Some(spec)) => Drain::Update(Box::new(spec.clone())),
            _ => Drain::Shutdown(None),
        };
        let seconds = agent.drain(what).await?;
        if seconds != 0 {
            let pause = Duration::from_secs(seconds.unsigned_abs().min(DRAIN_LIMIT));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = attempt.ctx.canceled() => {
                    return Err(Error::Canceled);
                }
            }
        }
        if seconds >= 0 {
            return Ok(());
        }
    }
}

impl Work<Kept> {
    /// The plan of an instance.
    pub(crate) fn instance(&self, id: InstanceId) -> Result<&InstancePlan> {
        self.what
            .plan
            .instance(id)
            .ok_or_else(|| Error::Bug(format!("the plan has no instance {id}")))
    }

    /// The instance's rendered templates: those at hand, else rendered again from what the plan pinned.
    pub(crate) async fn rendered(&self, placed: &Placed) -> Result<Arc<RenderedInstance>> {
        if let Some(rendered) = self.app.rendered_for(self.flow, placed.id) {
            return Ok(rendered);
        }
        let values = self.values().await?;
        let mut jobs = Jobs::new();
        for job in self.what.placement.jobs(&placed.group) {
            let release = &job.release;
            let rows = db::releases::jobs(&self.app.db, &release.name, &release.version).await?;
            let row = rows
                .iter()
                .find(|row| row.name == job.name)
                .ok_or_else(|| Error::NoRelease(format!("{}/{}", release.name, release.version)))?;
            let archive = self.app.jobs.get(&row.name, &row.blob).await?;
            let key = (release.name.clone(), release.version.clone(), job.name.clone());
            jobs.insert(key, archive);
        }
        let (placement, placed) = (self.what.placement.clone(), placed.clone());
        let rendered = compute::run(move || render_one(&placement, &placed, &jobs, &values))
            .await
            .map_err(|error| Error::Bug(format!("rendering ended: {error}")))?
            .map_err(|errors| Error::Templates(errors.to_string()))?;
        Ok(Arc::new(rendered))
    }

    /// The values of the variables as the plan pinned them, known to the redactor.
    pub(crate) async fn values(&self) -> Result<variables::Values> {
        let plan = &self.what.plan;
        let pinned = db::deployments::pinned(&self.app.db, &plan.deployment, plan.generation).await?;
        let reach = db::deployments::existing(&self.app.db, &plan.deployment)
            .await?
            .reach;
        let values = variables::values(&*self.app.variables, &plan.deployment, &reach, &pinned).await?;
        for value in values.iter() {
            self.app.tasks.add_secret(self.flow, value);
        }
        Ok(values)
    }

    /// What the agent is told to be. Without an archive it is only fit for drain scripts.
    pub(crate) fn spec(&self, instance: &InstancePlan, archive: Option<Archive>) -> Result<ApplySpec> {
        let placed = &instance.placed;
        let group = self.what.placement.groups.get(&placed.group);
        let mut networks = IndexMap::new();
        for (name, network) in &placed.networks {
            let wire =
                serde_json::from_value(network.to_wire()).map_err(|error| Error::Bug(error.to_string()))?;
            networks.insert(name.clone(), wire);
        }
        let default = placed
            .networks
            .values()
            .find(|network| network.default.contains(&DefaultFor::Gateway));
        let ip = default
            .or_else(|| placed.networks.values().next())
            .map(|network| network.ip.to_string());
        let jobs = instance.desired.jobs.iter().map(|job| JobTemplate {
            name: job.name.clone(),
            version: Some(job.fingerprint.clone()),
            ..JobTemplate::default()
        });
        let disk = group.and_then(|group| group.persistent_disk.as_ref());
        let mut other = Map::new();
        other.insert("stemcell".to_owned(), json!(placed.machine.stemcell));
        other.insert(
            "template_hashes".to_owned(),
            json!(instance.desired.template_hashes),
        );
        Ok(ApplySpec {
            generation: Some(self.what.plan.generation),
            deployment: self.what.plan.deployment.clone(),
            job: Some(Job {
                name: placed.group.clone(),
                templates: jobs.collect(),
                other: Map::new(),
            }),
            index: Some(placed.index.into()),
            bootstrap: Some(placed.bootstrap),
            lifecycle: group.map(|group| match group.lifecycle {
                stolos_manifest::Lifecycle::Service => "service".to_owned(),
                stolos_manifest::Lifecycle::Errand => "errand".to_owned(),
            }),
            name: Some(placed.group.clone()),
            id: Some(placed.id.to_string()),
            az: placed.az.clone(),
            networks,
            packages: self.packages(&placed.group),
            address: Some(placed.address.to_string()),
            ip,
            persistent_disk: disk.map_or(0, |disk| disk.size_mib),
            configuration_hash: Some(instance.desired.configuration_hash.clone()),
            rendered_templates_archive: archive,
            other,
            ..ApplySpec::default()
        })
    }

    fn packages(&self, group: &str) -> IndexMap<String, Package> {
        let mut packages = IndexMap::new();
        for (name, package) in self.what.packages.get(group).into_iter().flatten() {
            let package = Package {
                name: name.clone(),
                version: package.version.clone(),
                sha1: package.digest.clone(),
                signed_url: Some(self.signed_url(&package.blob).into()),
                blobstore_id: package.blob.clone(),
                blobstore_headers: None,
            };
            packages.insert(name.clone(), package);
        }
        packages
    }

    fn signed_url(&self, blob: &str) -> String {
        let now = self.app.db.clock().now().as_second();
        let path = self.app.signer.sign(Verb::Get, blob, now, URL_VALIDITY);
        format!("{}{path}", self.app.config.blobs_url.trim_end_matches('/'))
    }
}

/// An archive that the agent can get now, and the blob to be deleted afterwards if it took one.
struct Delivered {
    archive: Archive,
    blob: Option<BlobId>,
}

/// Brings the rendered templates to the agent: in a message if they fit, else as a sealed blob behind a signed URL.
async fn deliver(attempt: &Attempt<Kept>, agent: &AgentClient, placed: &Placed) -> Result<Delivered> {
    let rendered = attempt.rendered(placed).await?;
    let packed = compute::run(move || rendered.pack())
        .await
        .map_err(|error| Error::Bug(format!("packing ended: {error}")))?;
    let digest = BlobId::of(packed.expose());
    let payload = STANDARD.encode(packed.expose());
    let limit = attempt
        .app
        .bus
        .transport()
        .max_payload()
        .saturating_sub(UPLOAD_OVERHEAD);
    let mut archive = Archive {
        sha1: format!("sha256:{digest}"),
        blobstore_id: digest.to_string(),
        ..Archive::default()
    };
    if payload.len() <= limit {
        let upload = UploadBlob {
            blob_id: digest.to_string(),
            checksum: format!("sha256:{digest}"),
            payload: payload.into(),
        };
        agent.run(&Call::UploadBlob(upload)).await?;
        return Ok(Delivered { archive, blob: None });
    }
    let stored = attempt
        .app
        .blobs
        .put_sealed(&attempt.app.seal, packed.expose())
        .await
        .map_err(|error| Error::blob("write", error))?;
    archive.blobstore_id = stored.id.to_string();
    archive.signed_url = Some(attempt.signed_url(stored.id.as_str()).into());
    Ok(Delivered {
        archive,
        blob: Some(stored.id),
    })
}

/// Has the agent fetch what the instance will need, while the old jobs go on.
pub(crate) async fn prepare(
    attempt: &Attempt<Kept>,
    instance: &InstancePlan,
    machine: &MachineRef,
) -> Result<()> {
    let agent = attempt.agent(machine.agent_id, &short_name(&instance.placed));
    with_archive(attempt, &agent, instance, async |spec| {
        agent.prepare(spec).await?;
        Ok(())
    })
    .await
}

/// Switches the agent to what the plan wants; its jobs do not run yet.
pub(crate) async fn configure(
    attempt: &Attempt<Kept>,
    instance: &InstancePlan,
    machine: &MachineRef,
) -> Result<()> {
    let agent = attempt.agent(machine.agent_id, &short_name(&instance.placed));
    attempt.status("installing packages");
    let result = with_archive(attempt, &agent, instance, async |spec| {
        attempt.status("configuring jobs");
        agent.apply(spec).await?;
        Ok(())
    })
    .await;
    if result.is_ok() {
        attempt
            .app
            .forget_rendered(attempt.flow, Some(instance.placed.id));
    }
    result
}

async fn with_archive(
    attempt: &Attempt<Kept>,
    agent: &AgentClient,
    instance: &InstancePlan,
    work: impl AsyncFnOnce(ApplySpec) -> Result<()>,
) -> Result<()> {
    let delivered = deliver(attempt, agent, &instance.placed).await?;
    let spec = attempt.spec(instance, Some(delivered.archive))?;
    let result = work(spec).await;
    if let Some(blob) = delivered.blob {
        // A life that dies before this leaves a sealed blob to the garbage collection.
        attempt
            .app
            .blobs
            .delete(&blob)
            .map_err(|error| Error::blob("delete", error))?;
    }
    result
}

/// Starts the jobs and waits until they run: pre-start, start, look, post-start.
pub(crate) async fn start(
    attempt: &Attempt<Kept>,
    instance: &InstancePlan,
    machine: &MachineRef,
    watch: WatchTime,
) -> Result<()> {
    let agent = attempt.agent(machine.agent_id, &short_name(&instance.placed));
    attempt.status("executing pre-start");
    agent.run_script("pre-start", IndexMap::new()).await?;
    attempt.status("starting jobs");
    agent.start_jobs().await?;
    wait_until_running(attempt, &agent, instance, watch).await?;
    attempt.status("executing post-start");
    agent.run_script("post-start", IndexMap::new()).await?;
    Ok(())
}

/// Looks quickly at first: an instance that runs after 50 ms need not be waited for any longer, whatever the minimum.
async fn wait_until_running(
    attempt: &Attempt<Kept>,
    agent: &AgentClient,
    instance: &InstancePlan,
    watch: WatchTime,
) -> Result<()> {
    let began = Instant::now();
    let limit = Duration::from_millis(watch.max_ms);
    let mut pause = LOOK_FIRST;
    loop {
        let state = agent.get_state().await?;
        let seen = Seen {
            at: Instant::now(),
            job_state: state.job_state,
            vitals: attempt.app.states.get(agent.id()).and_then(|seen| seen.vitals),
            processes: Some(state.processes.clone()),
        };
        attempt.app.states.note(agent.id(), seen);
        if state.job_state == JobState::Running {
            return Ok(());
        }
        if began.elapsed() >= limit {
            let mut jobs: Vec<&str> = state
                .processes
                .iter()
                .filter(|process| process.state != JobState::Running.as_str())
                .map(|process| process.name.split('/').next().unwrap_or(&process.name))
                .collect();
            jobs.dedup();
            return Err(Error::NotRunning {
                instance: instance.placed.name(),
                jobs: jobs.join(", "),
            });
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = attempt.ctx.canceled() => return Err(Error::Canceled),
        }
        pause = (pause * 2).min(LOOK_LONGEST);
    }
}

/// Tells a running machine what changed about the director: nothing stops.
pub(crate) async fn update_settings(
    attempt: &Attempt<Kept>,
    instance: &InstancePlan,
    machine: &MachineRef,
) -> Result<()> {
    let app = &attempt.app;
    let agent = attempt.agent(machine.agent_id, &short_name(&instance.placed));
    let cert = app
        .trust
        .issue(machine.agent_id)
        .await
        .map_err(|failure| Error::Trust {
            agent: machine.agent_id.to_string(),
            source: failure.source,
        })?;
    let secret = Value::String(cert.private_key.expose().clone());
    app.tasks.add_secret(attempt.flow, &secret);
    let settings = UpdateSettings {
        blobstores: app.config.blobstores.clone(),
        mbus: Some(Mbus {
            cert,
            urls: app.config.mbus_urls.clone(),
        }),
        ..UpdateSettings::default()
    };
    agent.update_settings(settings).await?;
    // It restarts itself when something changed.
    agent.wait_until_ready(app.config.agent_limit).await?;
    Ok(())
}

/// `group/id`, as errors of agents name an instance.
pub(crate) fn short_name(placed: &Placed) -> String {
    format!("{}/{}", placed.group, placed.id)
}
