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
use crate::health::{problems, switches};

/// As many as BOSH gives at once.
const EVENTS: i64 = 200;

/// What `GET /events` is asked with (bosh.md 1.8). Texts, so that what is wrong can be said.
#[derive(Debug, Default, Deserialize)]
pub(super) struct EventQuery {
    before_id: Option<String>,
    after_id: Option<String>,
    before_time: Option<String>,
    after_time: Option<String>,
    task: Option<String>,
    deployment: Option<String>,
    instance: Option<String>,
    user: Option<String>,
    action: Option<String>,
    object_type: Option<String>,
    object_name: Option<String>,
}

pub(super) async fn event_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<EventQuery>,
) -> Result<Json<Vec<wire::PastEvent>>, Failure> {
    caller.may(Right::Read)?;
    let filter = EventFilter {
        before_id: number("before_id", query.before_id.as_deref())?,
        after_id: number("after_id", query.after_id.as_deref())?,
        before: time("before_time", query.before_time.as_deref())?,
        after: time("after_time", query.after_time.as_deref())?,
        task: number("task", query.task.as_deref())?,
        deployment: query.deployment,
        instance: query.instance,
        user: query.user,
        action: query.action,
        object_type: query.object_type,
        object_name: query.object_name,
        limit: EVENTS,
    };
    let events = rows::events(&app.db, &filter).await?;
    Ok(Json(events.into_iter().map(shown).collect()))
}

fn number(name: &str, text: Option<&str>) -> Result<Option<i64>> {
    text.map(|text| text.trim().parse()).transpose().map_err(|_| {
        Error::Request(format!(
            "invalid parameter '{name}': '{}' is no number",
            text.unwrap_or_default()
        ))
    })
}

/// Seconds since the Unix epoch, RFC 3339, or as BOSH prints times; in milliseconds.
fn time(name: &str, text: Option<&str>) -> Result<Option<i64>> {
    let Some(text) = text.map(str::trim) else {
        return Ok(None);
    };
    let read = match text.parse() {
        Ok(seconds) => jiff::Timestamp::from_second(seconds).ok(),
        Err(_) => text
            .parse()
            .or_else(|_| jiff::Timestamp::strptime("%Y-%m-%d %H:%M:%S %z", text.replace("UTC", "+0000")))
            .ok(),
    };
    match read {
        Some(time) => Ok(Some(time.as_millisecond())),
        None => Err(Error::Request(format!(
            "invalid parameter '{name}': '{text}' is no time; it is written as seconds since 1970, as 2026-01-02T03:04:05Z or as 2026-01-02 03:04:05 UTC"
        ))),
    }
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
            severity: severity(event.severity).to_owned(),
        },
    }
}

/// BOSH's words.
fn severity(number: i64) -> &'static str {
    match number {
        1 => "alert",
        2 => "critical",
        3 => "error",
        4 => "warning",
        _ => "",
    }
}

pub(super) async fn problem_list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<wire::MachineProblem>>, Failure> {
    caller.may(Right::Read)?;
    Ok(Json(problems::all(&app).await?))
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
