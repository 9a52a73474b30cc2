//! Operations: ours beside the foreign API.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use stolos_api::pks;

use super::{App, Failure, LONGEST_WAIT, WaitQuery};
use crate::authorize::{Caller, Right};
use crate::db;

#[derive(Debug, Deserialize)]
pub(super) struct OperationQuery {
    #[serde(default)]
    cluster: Option<String>,
    #[serde(default)]
    limit: Option<u32>,
}

pub(super) async fn operation_list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<OperationQuery>,
) -> Result<Json<Vec<pks::Operation>>, Failure> {
    caller.may(Right::Read)?;
    let limit = query.limit.unwrap_or(20).clamp(1, 500);
    let whose = caller.own(Right::ReadAll);
    let rows = db::operations(&app.desk().db, whose, query.cluster.as_deref(), limit).await?;
    let mut operations = Vec::with_capacity(rows.len());
    for row in &rows {
        operations.push(app.show_operation(row).await);
    }
    Ok(Json(operations))
}

pub(super) async fn operation_view(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<WaitQuery>,
) -> Result<Json<pks::Operation>, Failure> {
    caller.may(Right::Read)?;
    let mut row = db::operation(&app.desk().db, &id, caller.own(Right::ReadAll)).await?;
    if let Some(wait) = query.wait_ms
        && !row.state.is_final()
    {
        app.wait_news(row.id, Duration::from_millis(wait).min(LONGEST_WAIT))
            .await;
        row = db::operation(&app.desk().db, &id, caller.own(Right::ReadAll)).await?;
    }
    Ok(Json(app.show_operation(&row).await))
}

pub(super) async fn operation_cancel(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    caller.may(Right::Manage)?;
    let row = db::operation(&app.desk().db, &id, caller.own(Right::ManageAll)).await?;
    app.cancel(&row).await?;
    Ok(StatusCode::ACCEPTED)
}
