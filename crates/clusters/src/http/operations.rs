//! Operations: ours beside the foreign API.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use stolos_api::pks;
use stolos_base::input::{Json, Query};

use super::{App, Failure, LONGEST_WAIT, WaitQuery, page};
use crate::authorize::{Caller, Right};
use crate::db;
use crate::pages;

/// Operations on a page, unless the caller says otherwise.
const USUAL: u32 = 20;

#[derive(Debug, Deserialize)]
pub(super) struct OperationQuery {
    #[serde(default)]
    cluster: Option<String>,
    #[serde(default)]
    limit: Option<String>,
    #[serde(default)]
    after: Option<String>,
}

pub(super) async fn operation_list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<OperationQuery>,
) -> Result<Json<pks::Page<pks::Operation>>, Failure> {
    caller.may(Right::Read)?;
    let limit = page::limit(query.limit.as_deref(), USUAL)?;
    let after: Option<(i64, String)> = page::after(query.after.as_deref())?;
    let whose = caller.own(Right::ReadAll);
    let mut rows =
        pages::operations(&app.desk().db, whose, query.cluster.as_deref(), after, limit + 1).await?;
    let next = page::cut(&mut rows, limit, |row| {
        (row.created_at.as_millisecond(), row.id.to_string())
    });
    Ok(Json(pks::Page {
        items: app.show_operations(&rows).await,
        next,
        total: None,
    }))
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
    app.cancel(&row, caller.who()).await?;
    Ok(StatusCode::ACCEPTED)
}
