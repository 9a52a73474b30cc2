//! Deployments, their instances and variables (bosh.md section 1.5).

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use stolos_api::director as wire;
use stolos_base::ids::FlowId;
use stolos_base::input::{Json, Query};
use stolos_manifest::diff::{Change, Redaction, diff};
use stolos_manifest::{Count, Manifest, yaml};

use super::{Caller, Failure, Right, is_on, to_task};
use crate::app::App;
use crate::db::configs;
use crate::db::deployments::{self as rows, DeploymentRow};
use crate::db::inventory::{self, InstanceRow};
use crate::db::tasks::{self, time_text};
use crate::error::{Error, Result};
use crate::flows::{
    self, DELETE_DEPLOYMENT, Delete, Deploy, InstanceStates, SCAN_AND_FIX, UPDATE_DEPLOYMENT, Wish,
    deployment_lock,
};
use crate::plan::State as Wanted;
use crate::prepare::{self, Request};
use crate::steps::delete;

pub(super) async fn deployment_list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<wire::DeploymentSummary>>, Failure> {
    caller.may(Right::Read)?;
    let newest = configs::newest_ids(&app.db, "cloud").await?;
    let newest: Vec<i64> = newest.into_iter().map(|(id, _)| id).collect();
    let running = tasks::Filter {
        states: vec![wire::TaskState::Processing, wire::TaskState::Cancelling],
        kinds: &[UPDATE_DEPLOYMENT, DELETE_DEPLOYMENT, SCAN_AND_FIX],
        limit: u32::MAX,
        ..tasks::Filter::default()
    };
    let running = tasks::list(&app.db, &running).await?;
    let list = rows::list(&app.db).await?;
    let show = |row: DeploymentRow| {
        let cloud_config = match () {
            () if row.cloud_config_ids.is_empty() => "none",
            () if row.cloud_config_ids == newest => "latest",
            () => "outdated",
        };
        wire::DeploymentSummary {
            teams: Vec::new(),
            cloud_config: cloud_config.to_owned(),
            locked: running
                .iter()
                .any(|task| task.deployment.as_deref() == Some(&row.name)),
            name: row.name,
            releases: row.releases,
            stemcells: row.stemcells,
        }
    };
    Ok(Json(list.into_iter().map(show).collect()))
}

pub(super) async fn deployment_view(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<wire::Deployment>, Failure> {
    caller.may(Right::Read)?;
    let row = rows::existing(&app.db, &name).await?;
    Ok(Json(wire::Deployment {
        manifest: row.manifest,
    }))
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct DeployQuery {
    recreate: Option<String>,
    fix: Option<String>,
    dry_run: Option<String>,
    canaries: Option<String>,
    max_in_flight: Option<String>,
    skip_drain: Option<String>,
    /// Ours: the deployment may name its own credentials only, now and later.
    own_credentials: Option<String>,
    /// For changes of state alone.
    state: Option<String>,
}

pub(super) async fn deployment_create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<DeployQuery>,
    manifest: String,
) -> Result<Response, Failure> {
    caller.may(Right::Admin)?;
    // Only what is wrong with the document itself is told at once; the rest needs the world and is the task's.
    let name = Manifest::parse(&manifest).map_err(Error::from)?.name;
    let input = query.request(manifest)?;
    let description = if input.dry_run {
        "create deployment (dry run)"
    } else {
        "create deployment"
    };
    start(&app, &caller, &name, description.to_owned(), input).await
}

async fn start(
    app: &App,
    caller: &Caller,
    name: &str,
    description: String,
    input: Request,
) -> Result<Response, Failure> {
    let wish = Wish {
        id: FlowId::new(&app.ids),
        kind: UPDATE_DEPLOYMENT,
        description,
        deployment: Some(name),
        user: caller.name(),
        context: caller.context(),
        lock: Some(deployment_lock(name)),
        input,
    };
    Ok(to_task(flows::submit::<Deploy>(app, wish).await?))
}

impl DeployQuery {
    fn request(&self, manifest: String) -> Result<Request> {
        Ok(Request {
            manifest,
            recreate: is_on(self.recreate.as_deref()),
            fix: is_on(self.fix.as_deref()),
            dry_run: is_on(self.dry_run.as_deref()),
            canaries: count("canaries", self.canaries.as_deref())?,
            max_in_flight: count("max_in_flight", self.max_in_flight.as_deref())?,
            skip_drain: words(self.skip_drain.as_deref()),
            own_credentials: is_on(self.own_credentials.as_deref()),
            wanted: None,
        })
    }
}

/// What instances are to do from now on: `bosh start`, `bosh stop` and `bosh stop --hard`. The whole deployment converges, as in BOSH.
pub(super) async fn state_update(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, group)): Path<(String, String)>,
    Query(query): Query<DeployQuery>,
    manifest: String,
) -> Result<Response, Failure> {
    change_state(&app, &caller, &name, (&group, None), &query, manifest).await
}

/// The same for one instance, by id or index.
pub(super) async fn instance_state_update(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, group, instance)): Path<(String, String, String)>,
    Query(query): Query<DeployQuery>,
    manifest: String,
) -> Result<Response, Failure> {
    change_state(&app, &caller, &name, (&group, Some(instance)), &query, manifest).await
}

async fn change_state(
    app: &App,
    caller: &Caller,
    name: &str,
    (group, instance): (&str, Option<String>),
    query: &DeployQuery,
    manifest: String,
) -> Result<Response, Failure> {
    caller.may(Right::Admin)?;
    let row = rows::existing(&app.db, name).await?;
    let state = query.state.as_deref().unwrap_or_default();
    let state = match state {
        "started" => Wanted::Started,
        "stopped" => Wanted::Stopped,
        "detached" => Wanted::Detached,
        other => {
            return Err(Error::Request(format!(
                "'state' has to be started, stopped or detached, not '{}'",
                other.chars().take(80).collect::<String>()
            ))
            .into());
        }
    };
    // An empty body means the manifest that is there.
    let manifest = match (manifest.trim().is_empty(), row.manifest) {
        (false, _) => manifest,
        (true, Some(stored)) => stored,
        (true, None) => {
            return Err(Error::Request(format!(
                "deployment '{name}' was never deployed to its end: give its manifest"
            ))
            .into());
        }
    };
    let parsed = Manifest::parse(&manifest).map_err(Error::from)?;
    if parsed.name != name {
        return Err(Error::Request(format!(
            "the manifest is of deployment '{}', not of '{name}'",
            parsed.name
        ))
        .into());
    }
    let mut input = query.request(manifest)?;
    let of = instance.as_ref().map_or(String::new(), |one| format!("/{one}"));
    let description = match state {
        Wanted::Started => format!("start {group}{of}"),
        Wanted::Stopped => format!("stop {group}{of}"),
        Wanted::Detached => format!("stop {group}{of} and delete the machines"),
    };
    input.wanted = Some(prepare::Wanted {
        state,
        group: (group != "*").then(|| group.to_owned()),
        instance,
    });
    start(app, caller, name, description, input).await
}

fn count(name: &str, text: Option<&str>) -> Result<Option<Count>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let parsed = match text.strip_suffix('%') {
        Some(percent) => percent.parse().map(Count::Percent),
        None => text.parse().map(Count::Absolute),
    };
    parsed.map(Some).map_err(|_| {
        Error::Request(format!(
            "'{name}' has to be a number or a percentage, not '{text}'"
        ))
    })
}

fn words(text: Option<&str>) -> Vec<String> {
    let words = text.unwrap_or_default().split(',').map(str::trim);
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct DeleteQuery {
    force: Option<String>,
    /// Ours: disks are deleted too instead of being kept as orphans.
    delete_disks: Option<String>,
}

pub(super) async fn deployment_delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> Result<Response, Failure> {
    caller.may(Right::Admin)?;
    rows::existing(&app.db, &name).await?;
    let wish = Wish {
        id: FlowId::new(&app.ids),
        kind: DELETE_DEPLOYMENT,
        description: format!("delete deployment {name}"),
        deployment: Some(&name),
        user: caller.name(),
        context: caller.context(),
        lock: Some(deployment_lock(&name)),
        input: delete::Request {
            deployment: name.clone(),
            force: is_on(query.force.as_deref()),
            keep_disks: !is_on(query.delete_disks.as_deref()),
        },
    };
    Ok(to_task(flows::submit::<Delete>(&app, wish).await?))
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct DiffQuery {
    redact: Option<String>,
}

pub(super) async fn deployment_diff(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<DiffQuery>,
    manifest: String,
) -> Result<Json<wire::Diff>, Failure> {
    caller.may(Right::Admin)?;
    let after = Manifest::parse(&manifest).map_err(Error::from)?.document;
    let before = rows::find(&app.db, &name).await?.and_then(|row| row.manifest);
    let before = before
        .map(|text| yaml::parse("manifest", &text).map_err(stolos_manifest::Problems::from))
        .transpose()
        .map_err(Error::from)?;
    let redaction = match query.redact.as_deref() {
        Some("false") => Redaction::Plain,
        _ => Redaction::Redacted,
    };
    let lines = diff(before.as_ref(), &after, redaction).into_iter().map(|line| {
        let word = line.change.map(|change| match change {
            Change::Added => "added".to_owned(),
            Change::Removed => "removed".to_owned(),
        });
        (line.text, word)
    });
    let newest = configs::newest_ids(&app.db, "cloud").await?;
    let ids = newest.into_iter().map(|(id, _)| id).collect();
    Ok(Json(wire::Diff {
        context: wire::DiffContext {
            cloud_config_ids: ids,
            runtime_config_ids: Vec::new(),
        },
        diff: lines.collect(),
        error: None,
    }))
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct FormatQuery {
    format: Option<String>,
}

pub(super) async fn instance_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<FormatQuery>,
) -> Result<Response, Failure> {
    list(&app, &caller, &name, &query, true).await
}

pub(super) async fn vm_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<FormatQuery>,
) -> Result<Response, Failure> {
    list(&app, &caller, &name, &query, false).await
}

async fn list(
    app: &Arc<App>,
    caller: &Caller,
    name: &str,
    query: &FormatQuery,
    all: bool,
) -> Result<Response, Failure> {
    caller.may(Right::Read)?;
    rows::existing(&app.db, name).await?;
    if query.format.as_deref() == Some("full") {
        let wish = Wish {
            id: FlowId::new(&app.ids),
            kind: if all { "instances" } else { "vms" },
            description: "retrieve vm-stats".to_owned(),
            deployment: Some(name),
            user: caller.name(),
            context: caller.context(),
            lock: None,
            input: crate::flows::StatesRequest {
                deployment: name.to_owned(),
                all,
            },
        };
        return Ok(to_task(flows::submit::<InstanceStates>(app, wish).await?));
    }
    let instances = inventory::instances(&app.db, name).await?;
    let shown = instances
        .iter()
        .filter(|instance| all || instance.machine().is_some());
    let summaries: Vec<wire::InstanceSummary> = shown.map(|instance| summary(instance, all)).collect();
    Ok(Json(summaries).into_response())
}

fn summary(instance: &InstanceRow, all: bool) -> wire::InstanceSummary {
    let machine = instance.machine();
    wire::InstanceSummary {
        agent_id: machine.map(|(vm, _)| vm.agent.to_string()),
        cid: machine.map(|(_, cid)| cid.to_owned()),
        job: instance.group.clone(),
        index: instance.index,
        id: instance.id.to_string(),
        az: instance.az.clone(),
        ips: instance.addresses.values().map(ToString::to_string).collect(),
        vm_created_at: machine.map(|(vm, _)| time_text(vm.created_at, "%Y-%m-%dT%H:%M:%SZ")),
        expects_vm: all.then_some(instance.state != Wanted::Detached),
    }
}

pub(super) async fn variable_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Vec<wire::Variable>>, Failure> {
    caller.may(Right::Read)?;
    let row = rows::existing(&app.db, &name).await?;
    let pinned = rows::pinned(&app.db, &name, row.generation).await?;
    let shown = pinned.into_iter().map(|(variable, id)| wire::Variable {
        id: id.to_string(),
        name: app.variables.absolute_name(&name, &variable),
    });
    Ok(Json(shown.collect()))
}
