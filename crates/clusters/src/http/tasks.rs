//! Upgrades of several clusters.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use stolos_api::pks;
use stolos_base::input::{Json, Query, Unreadable};

use super::{App, Failure, LONGEST_WAIT, WaitQuery, unreadable};
use crate::authorize::{Caller, Right};
use crate::upgrades;

/// Tasks that a list shows unless it is asked for more; PKS's number.
const SHOWN: u32 = 10;

pub(super) async fn clusters_upgrade(
    State(app): State<App>,
    caller: Caller,
    body: Result<Json<pks::UpgradeClusters>, Unreadable>,
) -> Result<(StatusCode, Json<pks::TaskInfo>), Failure> {
    caller.may(Right::Manage)?;
    let Json(request) = body.map_err(unreadable)?;
    let task = app.desk().upgrade(&caller, &request).await?;
    Ok((StatusCode::ACCEPTED, Json(task)))
}

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    #[serde(default)]
    limit: Option<u32>,
}

pub(super) async fn task_list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<pks::TaskInfo>>, Failure> {
    caller.may(Right::Read)?;
    let limit = query.limit.unwrap_or(SHOWN).clamp(1, 500);
    Ok(Json(
        upgrades::newest(&app.desk().db, caller.own(Right::ReadAll), limit).await?,
    ))
}

pub(super) async fn task_view(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<WaitQuery>,
) -> Result<Json<pks::TaskInfo>, Failure> {
    caller.may(Right::Read)?;
    let whose = caller.own(Right::ReadAll);
    let mut task = upgrades::one(&app.desk().db, &id, whose).await?;
    if let (Some(wait), Ok(id)) = (query.wait_ms, task.uuid.parse())
        && !task.status.is_final()
    {
        app.wait_task_news(id, Duration::from_millis(wait).min(LONGEST_WAIT))
            .await;
        task = upgrades::one(&app.desk().db, &task.uuid, whose).await?;
    }
    Ok(Json(task))
}

pub(super) async fn task_cancel(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    caller.may(Right::Manage)?;
    let task = upgrades::one(&app.desk().db, &id, caller.own(Right::ManageAll)).await?;
    if let Ok(id) = task.uuid.parse() {
        app.cancel_task(id, caller.who()).await?;
    }
    Ok(StatusCode::OK)
}

/// The version that clusters can go to: this one's.
pub(super) async fn upgradable(caller: Caller) -> Result<Json<String>, Failure> {
    caller.may(Right::Read)?;
    Ok(Json(crate::accept::VERSION.to_owned()))
}
