//! Operations: what was asked, how far it is, what it waits for.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use stolos_api::pks::{Client, Operation, OperationState};

use super::clusters::block;
use super::login::pks_client;
use super::patience::{Patience, WAIT};
use crate::args::{Going, Operations};
use crate::failure::Failure;
use crate::progress::{State, Steps, meanwhile};
use crate::{output, program_name};

/// `stolos operations`
pub(crate) async fn run(args: &Operations) -> Result<(), Failure> {
    let client = pks_client().await?;
    let failure = |error| Failure::of_api(&error);
    if let (Some(id), true) = (&args.id, args.cancel) {
        client.cancel_operation(id).await.map_err(failure)?;
        output::note(&format!("Operation {id} was asked to stop."));
        if !args.follow {
            return Ok(());
        }
    }
    let operations = match &args.id {
        Some(id) => vec![client.operation(id, Duration::ZERO).await.map_err(failure)?],
        None => client
            .operations(args.cluster.as_deref())
            .await
            .map_err(failure)?,
    };
    if args.follow {
        let Some(newest) = operations.first() else {
            return Err(Failure::user("there is no operation to follow"));
        };
        return follow(&client, &newest.id).await;
    }
    if args.json {
        return output::json(&operations);
    }
    match (&args.id, operations.first()) {
        (Some(_), Some(operation)) => show(operation),
        _ => table(&operations),
    }
    Ok(())
}

/// Follows an operation to its end. Ctrl-C ends the following only.
pub(crate) async fn follow(client: &Client, id: &str) -> Result<(), Failure> {
    output::note(&format!("Operation {id}"));
    let following = async {
        let steps = Mutex::new(Steps::new());
        let mut patience = Patience::new(client);
        loop {
            let asked = patience.ask(async |client| client.operation(id, WAIT).await);
            let operation = meanwhile(&steps, asked).await?;
            let mut steps = steps.lock().unwrap_or_else(PoisonError::into_inner);
            show_steps(&mut steps, &operation);
            match operation.state {
                OperationState::Queued | OperationState::Running => {}
                OperationState::Succeeded => {
                    output::note(&format!(
                        "Operation succeeded in {:.1} s",
                        took(&operation).unwrap_or_else(|| steps.elapsed().as_secs_f64())
                    ));
                    return Ok(());
                }
                OperationState::Failed => {
                    let why = operation
                        .error
                        .unwrap_or_else(|| "the server gave no cause".to_owned());
                    return Err(Failure::user(format!("operation {id} failed: {why}")));
                }
                OperationState::Cancelled => {
                    let by = operation.cancelled_by.map(|who| format!(" by {who}"));
                    return Err(Failure::user(format!(
                        "operation {id} was cancelled{}",
                        by.unwrap_or_default()
                    )));
                }
            }
        }
    };
    tokio::select! {
        result = following => result,
        _ = tokio::signal::ctrl_c() => Err(Failure::left("operation")
            .hint(format!("Follow it again with `{} operations {id} --follow`.", program_name()))),
    }
}

/// What a verb that changes a cluster does in the end: follows the operation if it was told to, and shows the cluster as it is then, also when the operation
/// ended badly. Who stops following with Ctrl-C is told how to go on, and nothing else.
pub(crate) async fn conclude(
    client: &Client,
    cluster: &str,
    operation: Option<String>,
    going: &Going,
) -> Result<(), Failure> {
    let result = match operation {
        Some(operation) if going.wait => follow(client, &operation).await,
        _ => Ok(()),
    };
    let cluster = match &result {
        Err(failure) if failure.is_left() => return result,
        // The token may have ended while the operation went on.
        Ok(()) => {
            Patience::new(client)
                .ask(async |client| client.cluster(cluster).await)
                .await?
        }
        // The server may be away: why the operation was not followed to its end says more.
        Err(_) => match client.cluster(cluster).await {
            Ok(cluster) => cluster,
            Err(_) => return result,
        },
    };
    if going.json {
        output::json(&cluster)?;
    } else {
        output::data(&format!("\n{}", block(&cluster)));
    }
    result
}

/// Seconds from the request to the end, as the server has them.
fn took(operation: &Operation) -> Option<f64> {
    let time = |text: &str| text.parse::<jiff::Timestamp>().ok();
    let start = time(&operation.created_at)?;
    let end = time(operation.ended_at.as_deref()?)?;
    Some(end.duration_since(start).as_secs_f64())
}

fn show_steps(steps: &mut Steps, operation: &Operation) {
    for step in &operation.steps {
        let state = match step.state.as_str() {
            "running" => State::Running,
            "done" => State::Done,
            "skipped" => State::Skipped,
            "failed" => State::Failed,
            _ => continue,
        };
        let elapsed = step
            .elapsed_ms
            .and_then(|ms| u64::try_from(ms).ok())
            .map(Duration::from_millis);
        steps.show(&step.name, state, step.detail.as_deref(), elapsed);
    }
}

fn table(operations: &[Operation]) {
    let rows: Vec<Vec<String>> = operations
        .iter()
        .map(|operation| {
            vec![
                operation.id.clone(),
                operation.cluster.clone(),
                operation.action.as_str().to_owned(),
                operation.state.as_str().to_owned(),
                operation.user.clone(),
                operation.created_at.clone(),
                now_doing(operation),
            ]
        })
        .collect();
    output::data(&output::table(
        &["ID", "Cluster", "Action", "State", "User", "Created", "Now"],
        &rows,
    ));
}

/// What it does, since when, waiting on what; or why it failed.
fn now_doing(operation: &Operation) -> String {
    if let Some(error) = &operation.error {
        return error.clone();
    }
    if let (OperationState::Cancelled, Some(who)) = (operation.state, &operation.cancelled_by) {
        return format!("cancelled by {who}");
    }
    operation
        .steps
        .iter()
        .filter(|step| step.state == "running" && !operation.state.is_final())
        .map(|step| {
            let detail = step
                .detail
                .as_ref()
                .map(|text| format!(": {text}"))
                .unwrap_or_default();
            let since = step.elapsed_ms.unwrap_or(0) / 1000;
            format!("{}{detail} ({since} s)", step.name)
        })
        .collect::<Vec<_>>()
        .join("; ")
}

fn show(operation: &Operation) {
    let state = match &operation.cancelled_by {
        Some(who) => format!("{} (stop asked for by {who})", operation.state.as_str()),
        None => operation.state.as_str().to_owned(),
    };
    output::data(&output::block(&[
        ("ID", operation.id.clone()),
        ("Cluster", operation.cluster.clone()),
        ("Action", operation.action.as_str().to_owned()),
        ("State", state),
        ("User", operation.user.clone()),
        ("Created", operation.created_at.clone()),
        ("Ended", operation.ended_at.clone().unwrap_or_default()),
        ("Error", operation.error.clone().unwrap_or_default()),
    ]));
    let rows: Vec<Vec<String>> = operation
        .steps
        .iter()
        .map(|step| {
            let took = step.elapsed_ms.map(|ms| {
                format!(
                    "{:.1} s",
                    Duration::from_millis(ms.max(0).unsigned_abs()).as_secs_f64()
                )
            });
            let about = match (&step.detail, step.waiting_for.is_empty()) {
                (Some(detail), _) => detail.clone(),
                (None, false) => format!("waiting for {}", step.waiting_for.join(", ")),
                (None, true) => String::new(),
            };
            vec![
                step.name.clone(),
                step.state.clone(),
                took.unwrap_or_default(),
                about,
            ]
        })
        .collect();
    output::data(&format!(
        "\n{}",
        output::table(&["Step", "State", "Took", "About"], &rows)
    ));
}
