//! Certificates of a cluster, and whether it may be upgraded. PKS's command line has the verbs; its paths were never published, so these are
//! ours.

use axum::extract::{Path, State};
use axum::response::Response;
use serde::Deserialize;
use stolos_api::pks;
use stolos_base::input::{Json, Query};

use super::{App, Failure, begun};
use crate::authorize::{Caller, Right};
use crate::db;
use crate::render::deployment_name;

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    /// Only those that end within so many days.
    #[serde(default)]
    days: Option<i64>,
}

pub(super) async fn certificate_list(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<pks::Certificate>>, Failure> {
    caller.may(Right::Read)?;
    let cluster = db::cluster(&app.desk().db, &name, caller.own(Right::ReadAll)).await?;
    let found = app
        .desk()
        .vault
        .certificates(&deployment_name(cluster.id))
        .await?;
    let now = app.desk().clock.now();
    let shown = found
        .into_iter()
        .map(|certificate| crate::show::certificate(certificate, now));
    Ok(Json(
        shown
            .filter(|certificate| query.days.is_none_or(|days| certificate.days_left <= days))
            .collect(),
    ))
}

/// Whether the cluster may be upgraded.
pub(super) async fn pre_check(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<pks::PreCheck>, Failure> {
    caller.may(Right::Read)?;
    let cluster = db::cluster(&app.desk().db, &name, caller.own(Right::ReadAll)).await?;
    Ok(Json(app.pre_check(&cluster).await?))
}

pub(super) async fn certificates_rotate(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Response, Failure> {
    let operation = app.desk().rotate(&caller, &name).await?;
    Ok(begun(&operation))
}
