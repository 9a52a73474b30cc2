//! From a manifest to a plan: everything that is read, generated and rendered before anything is made.
//!
//! Nothing here touches a machine, and all of it can be repeated: a flow whose process died before its plan was kept
//! begins again. The plan is kept together with the instances and addresses that it wants, in one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stolos_api::director::NameVersion;
use stolos_base::compute;
use stolos_base::ids::{AgentId, CredentialId, FlowId, InstanceId};
use stolos_blobs::BlobId;
use stolos_manifest::{
    Count, Known, Manifest, PersistentDisk, ResolvedDeployment, ResolvedRelease, StemcellOffer, resolve,
};
use stolos_release::RenderedInstance;

use crate::adopt;
use crate::agents::{self, Asked};
use crate::app::App;
use crate::db::deployments::{self as rows, Uses};
use crate::db::inventory::{self, InstanceRow};
use crate::db::releases::{self, PackageRow, StemcellRow};
use crate::db::{begin_fenced, from_json, to_json};
use crate::error::{Error, Result};
use crate::flows::fence;
use crate::plan::{
    Catalog, ConsumeSpec, Existing, Inventory, JobSpec, MachineSpec, Options, PackageSpec, Placement, Plan,
    PropertySpec, ProvideSpec, Rendered, State, decide, place,
};
use crate::render::{Jobs, render_all};
use crate::tasks::{Line, StageState};
use crate::variables::{self, Reach};

/// What a person asked for; the input of the flow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) manifest: String,
    #[serde(default)]
    pub(crate) recreate: bool,
    #[serde(default)]
    pub(crate) fix: bool,
    #[serde(default)]
    pub(crate) dry_run: bool,
    #[serde(default)]
    pub(crate) canaries: Option<Count>,
    #[serde(default)]
    pub(crate) max_in_flight: Option<Count>,
    /// Groups or `group/index` whose pre-stop and drain scripts are skipped; `*` for all.
    #[serde(default)]
    pub(crate) skip_drain: Vec<String>,
    /// Whether the deployment may name its own credentials only, from now on.
    #[serde(default)]
    pub(crate) own_credentials: bool,
    /// What instances are to do from now on, where that is to change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) wanted: Option<Wanted>,
}

/// A state that instances which exist are brought into, and stay in through later deploys.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Wanted {
    pub(crate) state: State,
    /// All groups when absent.
    pub(crate) group: Option<String>,
    /// Id or index in the group; all when absent.
    pub(crate) instance: Option<String>,
}

impl Wanted {
    fn means(&self, existing: &Existing) -> bool {
        let group = self.group.as_ref().is_none_or(|group| *group == existing.group);
        let same =
            |wanted: &String| *wanted == existing.id.to_string() || *wanted == existing.index.to_string();
        group && self.instance.as_ref().is_none_or(same)
    }

    /// Changes what instances are wanted to do. Whoever names something that is not there is told.
    fn apply(&self, deployment: &str, instances: &mut [Existing]) -> Result<()> {
        let mut named = false;
        for existing in instances.iter_mut().filter(|existing| self.means(existing)) {
            existing.state = self.state;
            named = true;
        }
        if named || (self.group.is_none() && self.instance.is_none()) {
            return Ok(());
        }
        let (group, instance) = (self.group.as_deref().unwrap_or("*"), &self.instance);
        let of = instance
            .as_ref()
            .map_or(String::new(), |instance| format!("/{instance}"));
        Err(Error::NoInstance(format!("{group}{of}"), deployment.to_owned()))
    }
}

/// Everything that the flow does, kept once and never changed. Variables by name only.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) plan: Plan,
    pub(crate) placement: Arc<Placement>,
    pub(crate) uses: Uses,
    /// Group → package → where it is.
    pub(crate) packages: BTreeMap<String, BTreeMap<String, PackageBlob>>,
    /// `name/version` → the CPI's id.
    pub(crate) stemcells: BTreeMap<String, String>,
    pub(crate) leftovers: Leftovers,
    pub(crate) skip_drain: Vec<String>,
    /// Machines whose agents are known not to answer: their jobs are not stopped first.
    pub(crate) unresponsive: BTreeSet<InstanceId>,
    /// What all this is for.
    #[serde(default)]
    pub(crate) purpose: Purpose,
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Purpose {
    /// The deployment becomes what somebody wants.
    #[default]
    Deploy,
    /// A few machines are made anew as they were.
    Repair,
}

/// A compiled package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PackageBlob {
    pub(crate) version: String,
    pub(crate) digest: String,
    pub(crate) blob: String,
}

/// What interrupted deploys may have made without anybody knowing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Leftovers {
    pub(crate) vms: Vec<LeftVm>,
    pub(crate) disks: Vec<LeftDisk>,
}

/// A disk that may exist.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LeftDisk {
    pub(crate) call_id: String,
    pub(crate) made_as: PersistentDisk,
}

/// A machine that may exist.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LeftVm {
    pub(crate) agent: AgentId,
    pub(crate) call_id: String,
    pub(crate) cid: Option<String>,
    pub(crate) made_as: MachineSpec,
    /// For people.
    pub(crate) name: String,
}

/// A plan and what was rendered for it.
pub(crate) struct Prepared {
    pub(crate) kept: Kept,
    reach: Reach,
    /// Version of each variable, by name as written.
    pub(crate) versions: BTreeMap<String, CredentialId>,
    pub(crate) rendered: BTreeMap<InstanceId, Arc<RenderedInstance>>,
}

/// Makes the plan of a flow and keeps it, unless it is a dry run: then its report is the task's result.
pub(crate) async fn prepare(app: &App, flow: FlowId, request: &Request) -> Result<Option<Prepared>> {
    let preparing = Line::new("Preparing deployment", "Preparing deployment");
    let ground = staged(app, flow, &preparing, ground(app, request)).await?;
    let rendering = Line {
        index: 1,
        ..Line::new("Preparing deployment", "Rendering templates")
    };
    let prepared = staged(
        app,
        flow,
        &rendering,
        render_and_decide(app, flow, request, ground),
    )
    .await?;
    let report = prepared.kept.plan.report();
    app.tasks.debug(flow, &format!("plan: {}", report.summary));
    if request.dry_run {
        app.tasks.result_output(flow, &format!("{report}\n"));
        return Ok(None);
    }
    if keep(app, flow, request, &prepared).await? {
        return Ok(Some(prepared));
    }
    // Another life of this flow was quicker; its plan counts, and is rendered again step by step.
    let body = rows::plan(&app.db, flow).await?;
    let body = body.ok_or_else(|| Error::Bug(format!("flow {flow} lost its plan")))?;
    Ok(Some(Prepared {
        kept: from_json("body", &body)?,
        reach: prepared.reach,
        versions: BTreeMap::new(),
        rendered: BTreeMap::new(),
    }))
}

async fn staged<T>(app: &App, flow: FlowId, line: &Line, work: impl Future<Output = Result<T>>) -> Result<T> {
    app.tasks.stage(flow, line, StageState::Started);
    let result = work.await;
    match &result {
        Ok(_) => app.tasks.stage(flow, line, StageState::Finished),
        // What passes is tried again, and the line goes on.
        Err(error) if stolos_base::Classify::retryable(error) => {}
        Err(error) => app
            .tasks
            .stage(flow, line, StageState::Failed(&stolos_base::chain(error))),
    }
    result
}

/// What planning stands on.
struct Ground {
    deployment: ResolvedDeployment,
    cloud_config_ids: Vec<i64>,
    instances: Vec<InstanceRow>,
    inventory: Inventory,
    packages: Vec<(ResolvedRelease, PackageRow)>,
    jobs: Jobs,
    stemcells: Vec<StemcellRow>,
    catalog: Catalog,
    generation: u64,
    reach: Reach,
}

async fn ground(app: &App, request: &Request) -> Result<Ground> {
    let text = request.manifest.clone();
    let manifest = compute::run(move || Manifest::parse(&text))
        .await
        .map_err(|error| Error::Bug(format!("reading the manifest ended: {error}")))??;
    let row = rows::find(&app.db, &manifest.name).await?;
    let reach = Reach::next(row.as_ref().map(|row| &row.reach), request.own_credentials);
    check_variables(app, &manifest, &reach).await?;
    let (cloud, cloud_config_ids) = app.cloud.newest(&app.db).await?;
    let stemcells = releases::stemcells(&app.db).await?;
    let deployment = resolve(&manifest, &cloud, &known(app, &stemcells).await?)?;
    let mut catalog = Catalog::default();
    let mut jobs = Jobs::new();
    let mut packages = Vec::new();
    for release in &deployment.releases {
        for job in releases::jobs(&app.db, &release.name, &release.version).await? {
            let archive = app.jobs.get(&job.name, &job.blob).await?;
            let key = (release.name.clone(), release.version.clone(), job.name.clone());
            jobs.insert(key, archive);
            catalog
                .add_job(release, job_spec(&job))
                .map_err(|error| Error::Bug(error.to_string()))?;
        }
        let mut by_name: BTreeMap<String, PackageSpec> = BTreeMap::new();
        for package in releases::packages(&app.db, &release.name, &release.version).await? {
            let used = deployment.stemcells.iter().any(|stemcell| {
                let offered = format!("{}/{}", stemcell.os, stemcell.version);
                stolos_release::manifest::runs_on(&package.stemcell, &offered)
            });
            // A package counts as changed when it does for any stemcell of the deployment.
            let spec = by_name
                .entry(package.name.clone())
                .or_insert_with(|| PackageSpec {
                    name: package.name.clone(),
                    version: package.fingerprint.clone(),
                    digest: String::new(),
                });
            if used {
                spec.digest.push_str(&package.digest);
            }
            packages.push((release.clone(), package));
        }
        for spec in by_name.into_values() {
            catalog
                .add_package(release, spec)
                .map_err(|error| Error::Bug(error.to_string()))?;
        }
    }
    let networks: BTreeSet<&str> = deployment
        .groups
        .iter()
        .flat_map(|group| group.networks.iter().map(|network| network.name.as_str()))
        .collect();
    let networks: Vec<&str> = networks.into_iter().collect();
    // What is there may be newer than what is known of it: seen before anything is decided on it.
    adopt::before_plan(app, &deployment.name).await?;
    let ranges = networks
        .iter()
        .filter_map(|name| deployment.networks.get(*name))
        .flat_map(|network| {
            network
                .subnets
                .iter()
                .map(|subnet| inventory::pattern(subnet.range))
        })
        .collect();
    let mut inventory = inventory::load(&app.db, &deployment.name, &networks, &ranges).await?;
    if let Some(wanted) = &request.wanted {
        wanted.apply(&deployment.name, &mut inventory.instances)?;
    }
    let instances = inventory::instances(&app.db, &deployment.name).await?;
    let generation = rows::find(&app.db, &deployment.name)
        .await?
        .map_or(0, |row| row.generation);
    Ok(Ground {
        deployment,
        cloud_config_ids,
        instances,
        inventory,
        packages,
        jobs,
        stemcells,
        catalog,
        generation: generation + 1,
        reach,
    })
}

/// Refuses references to variables that the deployment may not name, and to those that are neither declared nor known, with their places.
async fn check_variables(app: &App, manifest: &Manifest, reach: &Reach) -> Result<()> {
    let references = stolos_manifest::variables::references(&manifest.document);
    // Before anybody is told which credentials there are.
    let named = references.iter().map(|reference| reference.name.as_str());
    reach.check(&*app.variables, &manifest.name, named)?;
    let declared: BTreeSet<&str> = manifest
        .variables
        .iter()
        .map(|variable| variable.name.as_str())
        .collect();
    let mut known = BTreeSet::new();
    for reference in references {
        if !declared.contains(reference.name.as_str())
            && !known.contains(&reference.name)
            && variables::is_known(&*app.variables, &manifest.name, &reference.name).await?
        {
            known.insert(reference.name);
        }
    }
    Ok(manifest.check_variables(|name| known.contains(name))?)
}

async fn known(app: &App, stemcells: &[StemcellRow]) -> Result<Known> {
    let mut known = Known::default();
    for release in releases::list(&app.db).await? {
        known
            .releases
            .entry(release.name)
            .or_default()
            .push(release.version);
    }
    known.stemcells = stemcells
        .iter()
        .map(|stemcell| StemcellOffer {
            name: stemcell.name.clone(),
            os: stemcell.os.clone(),
            version: stemcell.version.clone(),
        })
        .collect();
    Ok(known)
}

fn job_spec(row: &releases::JobRow) -> JobSpec {
    let spec = &row.spec;
    JobSpec {
        name: row.name.clone(),
        fingerprint: row.fingerprint.clone(),
        packages: spec.packages.clone(),
        properties: spec
            .properties
            .iter()
            .map(|(name, property)| {
                let default = (!property.default.is_null()).then(|| property.default.clone());
                (name.clone(), PropertySpec { default })
            })
            .collect(),
        provides: spec
            .provides
            .iter()
            .map(|link| ProvideSpec {
                name: link.name.clone(),
                kind: link.kind.clone(),
                properties: link.properties.clone(),
            })
            .collect(),
        consumes: spec
            .consumes
            .iter()
            .map(|link| ConsumeSpec {
                name: link.name.clone(),
                kind: link.kind.clone(),
                optional: link.optional,
            })
            .collect(),
    }
}

async fn render_and_decide(app: &App, flow: FlowId, request: &Request, ground: Ground) -> Result<Prepared> {
    let name = ground.deployment.name.clone();
    let placement = Arc::new(place(
        &ground.deployment,
        &ground.catalog,
        &ground.inventory,
        &app.ids,
    )?);
    let packages = package_blobs(&placement, &ground)?;
    let needed = variables::needed(&placement);
    let versions = variables::generate(&*app.variables, &name, &ground.reach, &needed).await?;
    let values = variables::values(&*app.variables, &name, &ground.reach, &versions).await?;
    for value in values.iter() {
        app.tasks.add_secret(flow, value);
    }
    let rendered = render_all(&placement, &Arc::new(ground.jobs), &Arc::new(values)).await?;
    let (broken, unresponsive) = broken_machines(app, request, &ground.instances).await;
    let options = Options {
        generation: ground.generation,
        recreate: request.recreate,
        recreate_instances: broken,
        canaries: request.canaries,
        max_in_flight: request.max_in_flight,
        together: request
            .wanted
            .as_ref()
            .is_some_and(|wanted| wanted.instance.is_none()),
        director_settings: app.settings_digest.clone(),
    };
    let digests = Rendered {
        template_hashes: rendered
            .iter()
            .map(|(id, one)| (*id, one.template_hashes()))
            .collect(),
        configuration_hashes: rendered
            .iter()
            .map(|(id, one)| (*id, one.configuration_hash.clone()))
            .collect(),
    };
    let plan = decide(&placement, &digests, &ground.inventory, &options, &app.ids);
    let uses = Uses {
        cloud_config_ids: ground.cloud_config_ids,
        releases: ground
            .deployment
            .releases
            .iter()
            .map(|release| named(&release.name, &release.version))
            .collect(),
        stemcells: ground
            .deployment
            .stemcells
            .iter()
            .map(|stemcell| named(&stemcell.name, &stemcell.version))
            .collect(),
    };
    let stemcells = ground
        .stemcells
        .iter()
        .filter(|row| uses.stemcells.contains(&named(&row.name, &row.version)))
        .map(|row| (format!("{}/{}", row.name, row.version), row.cid.clone()))
        .collect();
    Ok(Prepared {
        versions,
        reach: ground.reach,
        kept: Kept {
            plan,
            placement,
            uses,
            packages,
            stemcells,
            leftovers: leftovers(&ground.instances),
            skip_drain: request.skip_drain.clone(),
            unresponsive,
            purpose: Purpose::Deploy,
        },
        rendered,
    })
}

fn named(name: &str, version: &str) -> NameVersion {
    NameVersion {
        name: name.to_owned(),
        version: version.to_owned(),
    }
}

/// Where each group's packages are, compiled for the group's stemcell.
fn package_blobs(
    placement: &Placement,
    ground: &Ground,
) -> Result<BTreeMap<String, BTreeMap<String, PackageBlob>>> {
    let mut all = BTreeMap::new();
    for (group, placed) in &placement.groups {
        let stemcell = ground
            .deployment
            .stemcells
            .iter()
            .find(|one| one.name == placed.stemcell.name && one.version == placed.stemcell.version)
            .map(|one| format!("{}/{}", one.os, one.version))
            .unwrap_or_default();
        let mut blobs = BTreeMap::new();
        for (name, wanted) in &placed.packages {
            let compiled: Vec<&PackageRow> = ground
                .packages
                .iter()
                .filter(|(release, package)| *release == wanted.release && package.name == *name)
                .map(|(_, package)| package)
                .collect();
            let runs =
                |package: &&&PackageRow| stolos_release::manifest::runs_on(&package.stemcell, &stemcell);
            let Some(package) = compiled.iter().find(runs) else {
                let others: Vec<&str> = compiled.iter().map(|package| package.stemcell.as_str()).collect();
                return Err(Error::NotCompiled(format!(
                    "package '{name}' of release '{}/{}' is not compiled for stemcell '{stemcell}', which instance group \
                     '{group}' uses; it is compiled for: {}",
                    wanted.release.name,
                    wanted.release.version,
                    others.join(", ")
                )));
            };
            let blob = PackageBlob {
                version: package.fingerprint.clone(),
                digest: package.digest.clone(),
                blob: package.blob.clone(),
            };
            blobs.insert(name.clone(), blob);
        }
        all.insert(group.clone(), blobs);
    }
    Ok(all)
}

/// Instances whose machines have to be made anew because nobody answers in them, and among them those of which that is
/// known. A machine whose agent never answered is of no use; `fix` asks all others.
async fn broken_machines(
    app: &App,
    request: &Request,
    instances: &[InstanceRow],
) -> (Vec<InstanceId>, BTreeSet<InstanceId>) {
    let doubtful = instances.iter().filter(|instance| {
        let ready = instance.machine().is_none_or(|(vm, _)| vm.ready);
        !ready || request.fix
    });
    let doubtful = doubtful.filter_map(Asked::of).collect();
    let broken = agents::silent(&app.bus, doubtful, 1).await;
    (broken.iter().copied().collect(), broken)
}

/// Machines and disks of which nobody knows whether they were made.
pub(crate) fn leftovers<'a>(instances: impl IntoIterator<Item = &'a InstanceRow>) -> Leftovers {
    let mut left = Leftovers::default();
    for instance in instances {
        let current = instance.machine().map(|(vm, _)| vm.agent);
        for vm in instance.vms.iter().filter(|vm| Some(vm.agent) != current) {
            left.vms.push(LeftVm {
                agent: vm.agent,
                call_id: vm.call_id.clone(),
                cid: vm.cid.clone(),
                made_as: vm.made_as.clone(),
                name: format!("{} ({})", instance.name(), instance.index),
            });
        }
        let unknown = instance.disks.iter().filter(|disk| disk.cid.is_none());
        left.disks.extend(unknown.map(|disk| LeftDisk {
            call_id: disk.call_id.clone(),
            made_as: disk.made_as.clone(),
        }));
    }
    left
}

/// Keeps the plan with what it wants. False when another life of this flow has kept one meanwhile.
async fn keep(app: &App, flow: FlowId, request: &Request, prepared: &Prepared) -> Result<bool> {
    let kept = &prepared.kept;
    let body = to_json(kept)?;
    let plan = &kept.plan;
    let fence = fence(app, flow).await?;
    let mut tx = begin_fenced(&app.db, "keep a plan", &fence).await?;
    if !rows::insert_plan(&mut tx, flow, &plan.deployment, plan.generation, &body).await? {
        return Ok(false);
    }
    rows::check_uses(&mut tx, &kept.uses).await?;
    rows::want(
        &mut tx,
        &plan.deployment,
        &request.manifest,
        plan.generation,
        &kept.uses,
        &prepared.reach,
    )
    .await?;
    inventory::want(&mut tx, plan).await?;
    rows::pin(&mut tx, &plan.deployment, plan.generation, &prepared.versions).await?;
    tx.commit().await?;
    Ok(true)
}

/// The digest of what machines are told about the director: when it changes, they have to be told again.
pub(crate) fn settings_digest(config: &crate::deps::Config) -> Result<String> {
    let text = to_json(&(&config.mbus_urls, &config.blobstores))?;
    Ok(BlobId::of(text.as_bytes()).to_string())
}
