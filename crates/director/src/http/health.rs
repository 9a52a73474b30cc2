//! Events, machines that are not well, and the switch for repairs (bosh.md section 1.8).

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use stolos_api::director as wire;
use stolos_base::input::{Json, Query};

use super::{Body, Caller, Failure, Right, read};
use crate::app::App;
use crate::db::health::{self as rows, EventFilter, EventRow};
use crate::error::{Error, Result};
use crate::health::switches;

/// As many as BOSH gives at once.
const EVENTS: i64 = 200;

#[derive(Debug, Default, Deserialize)]
pub(super) struct EventQuery {
    before_id: Option<i64>,
    after_id: Option<i64>,
    deployment: Option<String>,
    instance: Option<String>,
    object_type: Option<String>,
}

pub(super) async fn event_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<EventQuery>,
) -> Result<Json<Vec<wire::PastEvent>>, Failure> {
    caller.may(Right::Read)?;
    let filter = EventFilter {
        before_id: query.before_id,
        after_id: query.after_id,
        deployment: query.deployment,
        instance: query.instance,
        object_type: query.object_type,
        limit: EVENTS,
    };
    let events = rows::events(&app.db, &filter).await?;
    Ok(Json(events.into_iter().map(shown).collect()))
}

pub(super) async fn event_view(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<wire::PastEvent>, Failure> {
    caller.may(Right::Read)?;
    let number: i64 = id.parse().map_err(|_| Error::NoEvent(id.clone()))?;
    let filter = EventFilter {
        before_id: number.checked_add(1),
        after_id: number.checked_sub(1),
        limit: 1,
        ..EventFilter::default()
    };
    let event = rows::events(&app.db, &filter).await?.into_iter().next();
    Ok(Json(shown(event.ok_or(Error::NoEvent(id))?)))
}

fn shown(event: EventRow) -> wire::PastEvent {
    wire::PastEvent {
        id: event.id.to_string(),
        timestamp: event.at / 1000,
        user: event.user,
        action: event.action,
        object_type: event.object_type,
        object_name: event.object_name,
        task: event.task.map(|task| task.to_string()),
        deployment: event.deployment,
        instance: event.instance,
        context: wire::EventContext {
            message: event.message,
            severity: event.severity,
        },
    }
}

pub(super) async fn problem_list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<wire::MachineProblem>>, Failure> {
    caller.may(Right::Read)?;
    Ok(Json(app.health.problems()))
}

/// What Prometheus scrapes.
pub(super) async fn metrics(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<impl axum::response::IntoResponse, Failure> {
    caller.may(Right::Read)?;
    let text = app.health.metrics();
    let text = text.map_err(|error| Error::Bug(format!("metrics cannot be written: {error}")))?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(axum::http::header::CONTENT_TYPE, kind)], text))
}

pub(super) async fn resurrection_view(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<wire::ResurrectionState>, Failure> {
    caller.may(Right::Read)?;
    let resurrection = !switches::paused(&app.db).await?;
    Ok(Json(wire::ResurrectionState { resurrection }))
}

pub(super) async fn resurrection_update(
    State(app): State<Arc<App>>,
    caller: Caller,
    update: Body<wire::ResurrectionUpdate>,
) -> Result<StatusCode, Failure> {
    caller.may(Right::Admin)?;
    let update = read(update)?;
    switches::pause(&app.db, caller.name(), update.resurrection_paused).await?;
    Ok(StatusCode::OK)
}
