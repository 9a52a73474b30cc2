//! Backups of clusters: ours beside the foreign API.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use stolos_api::pks;
use stolos_base::input::{Json, Query, Unreadable};

use super::{App, Failure, LONGEST_WAIT, WaitQuery, begun, unreadable};
use crate::authorize::{Caller, Right};
use crate::backups;
use crate::deps::{Backup, ListedBackup};
use crate::error::Error;

pub(super) async fn summary_list(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<Vec<pks::ClusterBackups>>, Failure> {
    caller.may(Right::Read)?;
    Ok(Json(
        backups::of_all(&app.desk().db, caller.own(Right::ReadAll)).await?,
    ))
}

pub(super) async fn backup_list(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<Vec<pks::ClusterBackup>>, Failure> {
    caller.may(Right::Read)?;
    let cluster = backups::cluster_of(&app.desk().db, &name, caller.own(Right::ReadAll)).await?;
    let listed = app.desk().kept()?.place.list(cluster).await?;
    Ok(Json(listed.into_iter().map(show_listed).collect()))
}

pub(super) async fn backup_create(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Response, Failure> {
    let run = app.desk().back_up(&caller, &name).await?;
    Ok((StatusCode::ACCEPTED, Json(app.show_backup_run(&run).await)).into_response())
}

pub(super) async fn backup_verify(
    State(app): State<App>,
    caller: Caller,
    Path((name, id)): Path<(String, String)>,
) -> Result<Json<pks::ClusterBackup>, Failure> {
    // It reads everything back: not for those who only look.
    caller.may(Right::Manage)?;
    let cluster = backups::cluster_of(&app.desk().db, &name, caller.own(Right::ManageAll)).await?;
    let place = &app.desk().kept()?.place;
    let id = match id.as_str() {
        pks::LATEST => place.find(cluster, None).await?.id,
        _ => id,
    };
    Ok(Json(show(&place.verify(cluster, &id).await?)))
}

pub(super) async fn run_view(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<WaitQuery>,
) -> Result<Json<pks::BackupRun>, Failure> {
    caller.may(Right::Read)?;
    let mut run = backups::one(&app.desk().db, &id, caller.own(Right::ReadAll)).await?;
    if let Some(wait) = query.wait_ms
        && !run.state.is_final()
    {
        app.wait_backup_news(run.id, Duration::from_millis(wait).min(LONGEST_WAIT))
            .await;
        run = backups::one(&app.desk().db, &id, caller.own(Right::ReadAll)).await?;
    }
    Ok(Json(app.show_backup_run(&run).await))
}

pub(super) async fn run_cancel(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    caller.may(Right::Manage)?;
    let run = backups::one(&app.desk().db, &id, caller.own(Right::ManageAll)).await?;
    app.cancel_backup(run.id, caller.who()).await?;
    Ok(StatusCode::ACCEPTED)
}

pub(super) async fn cluster_restore(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    body: Result<Json<pks::RestoreRequest>, Unreadable>,
) -> Result<Response, Failure> {
    caller.may(Right::Manage)?;
    let Json(request) = body.map_err(unreadable)?;
    if request.backup.trim().is_empty() {
        return Err(Error::Request("`backup` is empty; it takes an id, or `latest`".to_owned()).into());
    }
    let operation = app.desk().restore(&caller, &name, request.backup.trim()).await?;
    Ok(begun(&operation))
}

fn show(backup: &Backup) -> pks::ClusterBackup {
    pks::ClusterBackup {
        id: backup.id.clone(),
        cluster: Some(backup.of.name.clone()),
        cluster_uuid: backup.cluster.to_string(),
        taken_at: Some(backups::seconds(backup.taken_at)),
        kubernetes_version: Some(backup.of.kubernetes_version.clone()),
        revision: Some(backup.revision),
        size: Some(backup.size),
        stored: backup.stored,
        sha256: Some(backup.sha256.clone()),
        before_restore: backup.of.before_restore,
        problem: None,
    }
}

fn show_listed(listed: ListedBackup) -> pks::ClusterBackup {
    let shown = listed.backup.as_ref().map(show);
    let shown = shown.unwrap_or_else(|| pks::ClusterBackup {
        id: listed.id,
        cluster: None,
        cluster_uuid: listed.cluster.to_string(),
        taken_at: None,
        kubernetes_version: None,
        revision: None,
        size: None,
        stored: listed.stored,
        sha256: None,
        before_restore: false,
        problem: None,
    });
    pks::ClusterBackup {
        stored: listed.stored,
        problem: listed.problem,
        ..shown
    }
}
