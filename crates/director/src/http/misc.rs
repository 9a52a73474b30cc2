//! Info, configs, locks, orphaned disks, blobs.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use indexmap::IndexMap;
use serde::Deserialize;
use stolos_api::director as wire;
use stolos_base::input::{Json, Query};
use stolos_blobs::BlobId;
use tokio_util::io::ReaderStream;

use super::{Caller, Failure, Right, actor, is_on, read, to_task};
use crate::app::App;
use crate::db::tasks::{self, time_text};
use crate::db::{configs, inventory};
use crate::error::{Error, Result};
use crate::flows::{self, DELETE_DEPLOYMENT, SCAN_AND_FIX, UPDATE_DEPLOYMENT};
use crate::health::switches;

/// Never asks for a token; says who it is when a good one is shown.
pub(super) async fn info(State(app): State<Arc<App>>, headers: HeaderMap) -> Json<wire::Info> {
    let user = actor(&app, &headers).await.ok().map(|actor| actor.name);
    let url = app.config.token_url.clone();
    let off = |name: &str| (name.to_owned(), wire::Feature::default());
    let mut features: IndexMap<String, wire::Feature> =
        ["local_dns", "snapshots"].into_iter().map(off).collect();
    let on = wire::Feature {
        status: true,
        extras: IndexMap::new(),
    };
    features.insert("config_server".to_owned(), on);
    Json(wire::Info {
        name: app.config.name.clone(),
        uuid: app.config.id.to_string(),
        version: format!("{} (stolos)", env!("CARGO_PKG_VERSION")),
        user,
        cpi: app.config.cpi.clone(),
        stemcell_os: "-".to_owned(),
        stemcell_version: "-".to_owned(),
        user_authentication: wire::UserAuthentication {
            kind: "uaa".to_owned(),
            options: wire::AuthenticationOptions {
                urls: vec![url.clone()],
                url,
            },
        },
        features,
    })
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct ConfigQuery {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: Option<String>,
    limit: Option<u32>,
    latest: Option<String>,
}

pub(super) async fn config_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<ConfigQuery>,
) -> Result<Json<Vec<wire::Config>>, Failure> {
    caller.may(Right::Read)?;
    let latest = is_on(query.latest.as_deref()) || query.limit.is_none();
    let filter = configs::Filter {
        kind: query.kind.as_deref(),
        name: query.name.as_deref(),
        latest,
        limit: query.limit.filter(|_| !latest).unwrap_or(u32::MAX),
    };
    let rows = configs::list(&app.db, &filter).await?;
    Ok(Json(rows.iter().map(configs::ConfigRow::to_wire).collect()))
}

/// Ours: machines whose agents are heard of and that the database does not know, after a restore for instance.
pub(super) async fn unknown_machine_list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<wire::UnknownMachine>>, Failure> {
    caller.may(Right::Read)?;
    Ok(Json(app.adoption.unknown()))
}

pub(super) async fn config_view(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<wire::Config>, Failure> {
    caller.may(Right::Read)?;
    Ok(Json(configs::find(&app.db, number(&id)?).await?.to_wire()))
}

pub(super) async fn config_update(
    State(app): State<Arc<App>>,
    caller: Caller,
    update: super::Body<wire::ConfigUpdate>,
) -> Result<Response, Failure> {
    caller.may(Right::Admin)?;
    let update = read(update)?;
    if update.name.is_empty() {
        return Err(Error::Request("a config needs a name".to_owned()).into());
    }
    match update.kind.as_str() {
        "cloud" => app.cloud.check(&app.db, &update).await?,
        "resurrection" => drop(switches::check(&update.content)?),
        other => {
            return Err(Error::Request(format!("configs of type '{other}' are not supported")).into());
        }
    }
    let mut tx = app.db.begin("update a config").await.map_err(Error::from)?;
    let row = configs::write(&mut tx, &update).await?;
    tx.commit().await.map_err(Error::from)?;
    Ok((StatusCode::CREATED, Json(row.to_wire())).into_response())
}

pub(super) async fn config_delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    caller.may(Right::Admin)?;
    let id_number = number(&id)?;
    let mut tx = app.db.begin("delete a config").await.map_err(Error::from)?;
    let deleted = configs::delete_one(&mut tx, id_number).await?;
    tx.commit().await.map_err(Error::from)?;
    if deleted == 0 {
        Err(Error::NoConfig(id).into())
    } else {
        Ok(StatusCode::NO_CONTENT)
    }
}

pub(super) async fn config_delete_named(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<ConfigQuery>,
) -> Result<StatusCode, Failure> {
    caller.may(Right::Admin)?;
    let (Some(kind), Some(name)) = (query.kind, query.name) else {
        return Err(Error::Request("'type' and 'name' are needed".to_owned()).into());
    };
    let mut tx = app.db.begin("delete a config").await.map_err(Error::from)?;
    let deleted = configs::delete(&mut tx, &kind, &name).await?;
    tx.commit().await.map_err(Error::from)?;
    if deleted == 0 {
        Err(Error::NoConfig(format!("{kind}/{name}")).into())
    } else {
        Ok(StatusCode::NO_CONTENT)
    }
}

fn number(id: &str) -> Result<i64> {
    id.parse().map_err(|_| Error::NoConfig(id.to_owned()))
}

/// The tasks that work on deployments hold their locks; flows know no other end of a lock than the task's.
pub(super) async fn lock_list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<wire::Lock>>, Failure> {
    caller.may(Right::Read)?;
    let filter = tasks::Filter {
        states: vec![wire::TaskState::Processing, wire::TaskState::Cancelling],
        kinds: &[UPDATE_DEPLOYMENT, DELETE_DEPLOYMENT, SCAN_AND_FIX],
        limit: u32::MAX,
        ..tasks::Filter::default()
    };
    let renewed_until = app.db.clock().now().as_second() + LOCK_SECONDS;
    let locks = tasks::list(&app.db, &filter)
        .await?
        .into_iter()
        .filter(|task| task.started_at.is_some())
        .filter_map(|task| {
            Some(wire::Lock {
                kind: "deployment".to_owned(),
                resource: vec![task.deployment?],
                timeout: format!("{renewed_until}.0"),
                task_id: task.id.to_string(),
            })
        });
    Ok(Json(locks.collect()))
}

/// Leases of flows are renewed long before they end.
const LOCK_SECONDS: i64 = 30;

pub(super) async fn orphan_list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<wire::OrphanedDisk>>, Failure> {
    caller.may(Right::Read)?;
    let orphans = inventory::orphans(&app.db, None).await?;
    let shown = orphans.into_iter().filter_map(|disk| {
        Some(wire::OrphanedDisk {
            disk_cid: disk.cid?,
            size: disk.made_as.size_mib,
            az: None,
            deployment_name: disk.deployment,
            instance_name: disk.instance_name,
            cloud_properties: disk.made_as.cloud_properties,
            orphaned_at: time_text(disk.orphaned_at.unwrap_or(0), "%Y-%m-%d %H:%M:%S UTC"),
        })
    });
    Ok(Json(shown.collect()))
}

pub(super) async fn orphan_delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(cid): Path<String>,
) -> Result<Response, Failure> {
    caller.may(Right::Admin)?;
    let task = flows::disks::delete(&app, &cid, caller.name(), caller.context()).await?;
    Ok(to_task(task))
}

pub(super) async fn resource_view(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    caller.may(Right::Admin)?;
    let id: BlobId = id
        .parse()
        .map_err(|_| Error::Request(format!("'{id}' is no blob id")))?;
    let reader = app
        .blobs
        .get(&id)
        .await
        .map_err(|error| Error::blob("read", error))?;
    let length = reader.size().to_string();
    let headers = [
        (header::CONTENT_TYPE, "application/x-gzip".to_owned()),
        (header::CONTENT_LENGTH, length),
    ];
    Ok((headers, Body::from_stream(ReaderStream::new(reader))).into_response())
}
