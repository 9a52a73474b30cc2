//! Tasks and their output (bosh.md section 1.3).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use stolos_api::director::{self as wire, LONGEST_WAIT_MS, OutputKind, TASK_STATE_HEADER, TaskState};
use stolos_base::input::{Json, Query};

use super::{Body, Caller, Failure, Right, read};
use crate::app::App;
use crate::db::health::{self, EventRow};
use crate::db::tasks::{self as rows, TaskRow, found};
use crate::error::{Error, Result};

/// The longest list.
const LIST_LIMIT: u32 = 1000;
/// The most output in one answer; clients ask again from where it ends.
const OUTPUT_LIMIT: usize = 8 * 1024 * 1024;
/// How long who waits for output does not look: what another process signals may get lost.
const UNHEARD: Duration = Duration::from_secs(2);
/// What `verbose=1` shows.
const SHOWN: &[&str] = &[
    "delete_deployment",
    "delete_orphan_disks",
    "delete_release",
    "delete_stemcell",
    "update_deployment",
    "update_release",
    "update_stemcell",
];

#[derive(Debug, Default, Deserialize)]
pub(super) struct ListQuery {
    state: Option<String>,
    verbose: Option<String>,
    deployment: Option<String>,
    limit: Option<u32>,
    context_id: Option<String>,
}

pub(super) async fn task_list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Json<Vec<wire::Task>>, Failure> {
    caller.may(Right::Read)?;
    let states = query.state.as_deref().unwrap_or_default();
    let states = states
        .split(',')
        .filter(|word| !word.is_empty())
        .map(|word| {
            word.parse()
                .map_err(|error: wire::UnknownWord| Error::Request(error.to_string()))
        })
        .collect::<Result<Vec<TaskState>>>()?;
    let filter = rows::Filter {
        states,
        deployment: query.deployment.as_deref(),
        context_id: query.context_id.as_deref(),
        kinds: if query.verbose.as_deref() == Some("2") {
            &[]
        } else {
            SHOWN
        },
        limit: query.limit.unwrap_or(LIST_LIMIT).min(LIST_LIMIT),
    };
    let tasks = rows::list(&app.db, &filter).await?;
    Ok(Json(tasks.iter().map(TaskRow::to_wire).collect()))
}

pub(super) async fn task_view(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<wire::Task>, Failure> {
    caller.may(Right::Read)?;
    Ok(Json(task(&app, &id).await?.to_wire()))
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct OutputQuery {
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Ours: answer when there is something new, when the task has ended, or after so many milliseconds.
    wait_ms: Option<u64>,
}

pub(super) async fn task_output(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<OutputQuery>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let kind = match query.kind.as_deref().unwrap_or("debug") {
        "event" => OutputKind::Event,
        "result" => OutputKind::Result,
        "debug" => OutputKind::Debug,
        "cpi" => OutputKind::Cpi,
        "none" => return Ok(StatusCode::NO_CONTENT.into_response()),
        other => return Err(Error::Request(format!("'{other}' is no type of output")).into()),
    };
    caller.may(match kind {
        OutputKind::Event | OutputKind::Result => Right::Read,
        OutputKind::Debug | OutputKind::Cpi => Right::Admin,
    })?;
    let from = range(&headers)?;
    let wait = Duration::from_millis(query.wait_ms.unwrap_or(0).min(LONGEST_WAIT_MS));
    let (state, bytes) = output(&app, &id, kind, from.unwrap_or(0), wait).await?;
    let state = (HeaderName::from_static(TASK_STATE_HEADER), state.as_str());
    let plain = (header::CONTENT_TYPE, "text/plain");
    let Some(from) = from else {
        return Ok((StatusCode::OK, [state, plain], bytes).into_response());
    };
    if bytes.is_empty() {
        let range = [(header::CONTENT_RANGE, format!("bytes */{from}"))];
        return Ok((StatusCode::RANGE_NOT_SATISFIABLE, [state], range).into_response());
    }
    let end = from + bytes.len() as u64;
    let range = [(header::CONTENT_RANGE, format!("bytes {from}-{}/{end}", end - 1))];
    Ok((StatusCode::PARTIAL_CONTENT, [state, plain], range, bytes).into_response())
}

/// Output from a byte on, and the state that the task had before that output was read: a final one means that there
/// will be no more.
async fn output(
    app: &App,
    id: &str,
    kind: OutputKind,
    from: u64,
    wait: Duration,
) -> Result<(TaskState, Vec<u8>)> {
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        let task = task(app, id).await?;
        let mut news = app.tasks.news(task.id);
        // After subscribing, so that what comes in between is seen.
        let state = self::task(app, id).await?.shown_state();
        let bytes = rows::output(&app.db, task.id, kind, from, OUTPUT_LIMIT).await?;
        if !bytes.is_empty() || state.is_final() {
            return Ok((state, bytes));
        }
        tokio::select! {
            changed = news.changed() => if changed.is_err() { return Ok((state, bytes)) },
            () = tokio::time::sleep(UNHEARD) => {}
            () = tokio::time::sleep_until(deadline) => return Ok((state, bytes)),
        }
    }
}

/// The first byte of `Range: bytes=N-`.
fn range(headers: &HeaderMap) -> Result<Option<u64>> {
    let Some(value) = headers.get(header::RANGE) else {
        return Ok(None);
    };
    value
        .to_str()
        .ok()
        .and_then(|text| text.strip_prefix("bytes="))
        .and_then(|text| text.strip_suffix('-'))
        .and_then(|text| text.parse().ok())
        .map(Some)
        .ok_or_else(|| Error::Request("only ranges of the form 'bytes=N-' are understood".to_owned()))
}

pub(super) async fn task_cancel(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    caller.may(Right::Admin)?;
    let task = task(&app, &id).await?;
    cancel(&app, &task, caller.name()).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn task_cancel_many(
    State(app): State<Arc<App>>,
    caller: Caller,
    which: Body<wire::CancelTasks>,
) -> Result<StatusCode, Failure> {
    caller.may(Right::Admin)?;
    let which = read(which)?;
    let mut states = Vec::new();
    for word in which
        .states
        .unwrap_or_else(|| vec!["queued".to_owned(), "processing".to_owned()])
    {
        match word.parse() {
            Ok(state @ (TaskState::Queued | TaskState::Processing)) => states.push(state),
            _ => return Err(Error::Request(format!("tasks in state '{word}' cannot be cancelled")).into()),
        }
    }
    let kinds = which.types.unwrap_or_default();
    let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
    let filter = rows::Filter {
        states,
        deployment: which.deployment.as_deref(),
        kinds: &kinds,
        limit: LIST_LIMIT,
        ..rows::Filter::default()
    };
    for task in rows::list(&app.db, &filter).await? {
        match cancel(&app, &task, caller.name()).await {
            // It ended while we asked.
            Err(Error::TaskState { .. }) => {}
            other => other?,
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn cancel(app: &App, task: &TaskRow, who: &str) -> Result<()> {
    let invalid = |state: TaskState| Error::TaskState {
        id: task.id,
        state: state.as_str(),
    };
    let state = task.shown_state();
    if state == TaskState::Cancelling {
        return Ok(());
    }
    if state.is_final() {
        return Err(invalid(state));
    }
    let mut tx = app.db.begin("cancel a task").await?;
    if rows::request_cancel(&mut tx, task.id, who).await? {
        let event = EventRow {
            user: who.to_owned(),
            action: "cancel".to_owned(),
            object_type: "task".to_owned(),
            object_name: task.id.to_string(),
            task: Some(task.id),
            deployment: task.deployment.clone(),
            message: format!("task {} ({}) is cancelled by {who}", task.id, task.description),
            ..EventRow::default()
        };
        health::insert_event(&mut tx, &event).await?;
    }
    tx.commit().await?;
    let flows = app
        .flows
        .get()
        .ok_or_else(|| Error::Bug("flows are not started".to_owned()))?;
    match flows.cancel(task.flow).await {
        Err(stolos_flow::Error::State { .. }) => {
            Err(invalid(self::task(app, &task.id.to_string()).await?.state))
        }
        other => Ok(other?),
    }
}

async fn task(app: &App, id: &str) -> Result<TaskRow> {
    let number: i64 = id.parse().map_err(|_| Error::NoTask(id.to_owned()))?;
    found(rows::find(&app.db, number).await?, number)
}
