//! The director, as far as a person uses it directly.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stolos_api::director::{
    Client, ConfigUpdate, DeleteOptions, DeployOptions, Error, Event, EventState, READ_LIMIT, TaskFilter,
    Token, TokenError, TokenSource, Tokens,
};
use stolos_api::http::Limit;
use stolos_api::pks;
use stolos_base::{Class, Secret};

use super::clusters::confirm;
use super::login;
use crate::args::{Delete, Deploy, DirectorTasks, Json, Named};
use crate::failure::Failure;
use crate::progress::{State, Steps, meanwhile};
use crate::session::Session;
use crate::{output, program_name};

/// The session's token, renewed when it is about to end: a deploy may take longer than one lives. Where that cannot be done, or somebody has logged in elsewhere
/// meanwhile, it is the one that we began with, for as long as the director takes it.
struct OfSession(Session);

impl Tokens for OfSession {
    fn token(&self) -> Pin<Box<dyn Future<Output = Result<Token, TokenError>> + Send + '_>> {
        Box::pin(async {
            let session = match login::current().await {
                Ok((session, _)) if session.api == self.0.api => session,
                _ => self.0.clone(),
            };
            Ok(Secret::from(session.access_token.as_str()))
        })
    }
}

/// A client of the director for the current session.
pub(crate) async fn client() -> Result<Client, Failure> {
    let (session, http) = login::current().await?;
    let info = pks::Client::new(&session.api, http, Secret::from(""))
        .info()
        .await;
    let info = info.map_err(|error| Failure::from_error(&error))?;
    let tokens: TokenSource = Arc::new(OfSession(session.clone()));
    let http = login::http(&login::trust_of(&session), Limit::Silence(READ_LIMIT))?;
    Ok(Client::with_http(&info.director, http, tokens))
}

/// `stolos deploy MANIFEST`
pub(crate) async fn deploy(args: &Deploy) -> Result<(), Failure> {
    let manifest = read(&args.manifest)?;
    let name = deployment_name(&manifest)?;
    let client = client().await?;
    if let Some(path) = &args.cloud_config {
        let update = ConfigUpdate {
            kind: "cloud".into(),
            name: name.clone(),
            content: read(path)?,
            expected_latest_id: None,
        };
        client.update_config(&update).await.map_err(failed)?;
    }
    let diff = client.diff(&name, manifest.clone()).await.map_err(failed)?;
    if let Some(error) = &diff.error {
        output::note(&format!("warning: no difference can be shown: {error}"));
    }
    for (line, change) in &diff.diff {
        let mark = match change.as_deref() {
            Some("added") => "+",
            Some("removed") => "-",
            _ => " ",
        };
        output::note(&format!("{mark} {line}"));
    }
    if !args.dry_run {
        confirm(
            &format!("Continue with deployment {name}? (y/n)"),
            args.non_interactive,
        )?;
    }
    let options = DeployOptions {
        dry_run: args.dry_run,
        ..DeployOptions::default()
    };
    let task = client.deploy(manifest, &options).await.map_err(failed)?;
    follow(&client, task).await
}

/// `stolos deployments`
pub(crate) async fn list(args: &Json) -> Result<(), Failure> {
    let deployments = client().await?.deployments().await.map_err(failed)?;
    if args.json {
        return output::json(&deployments);
    }
    let names = |list: &[stolos_api::director::NameVersion]| {
        list.iter()
            .map(|one| format!("{}/{}", one.name, one.version))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let rows: Vec<Vec<String>> = deployments
        .iter()
        .map(|one| vec![one.name.clone(), names(&one.releases), names(&one.stemcells)])
        .collect();
    output::data(&output::table(&["Name", "Release(s)", "Stemcell(s)"], &rows));
    Ok(())
}

/// `stolos instances DEPLOYMENT`
pub(crate) async fn instances(args: &Named) -> Result<(), Failure> {
    let client = client().await?;
    let states = client.instance_states(&args.name).await.map_err(failed)?;
    if args.json {
        return output::json(&states);
    }
    let rows: Vec<Vec<String>> = states
        .iter()
        .map(|one| {
            vec![
                format!("{}/{}", one.job_name, one.index),
                one.id.clone(),
                one.job_state.clone().unwrap_or_default(),
                one.az.clone().unwrap_or_default(),
                one.ips.join(", "),
                one.vm_cid.clone().unwrap_or_default(),
            ]
        })
        .collect();
    output::data(&output::table(
        &["Instance", "ID", "State", "AZ", "IPs", "VM CID"],
        &rows,
    ));
    Ok(())
}

/// `stolos delete-deployment NAME`
pub(crate) async fn delete(args: &Delete) -> Result<(), Failure> {
    let client = client().await?;
    match client.deployment(&args.name).await {
        Err(error) if args.if_exists && stolos_base::Classify::class(&error) == Class::NotFound => {
            output::note(&format!("There is no deployment {}", args.name));
            return Ok(());
        }
        other => other.map(drop).map_err(failed)?,
    }
    confirm(
        &format!("Are you sure you want to delete deployment {}? (y/n)", args.name),
        args.non_interactive,
    )?;
    let task = client
        .delete_deployment(&args.name, DeleteOptions::default())
        .await
        .map_err(failed)?;
    if args.wait {
        return follow(&client, task).await;
    }
    output::note(&format!("Task {task}"));
    Ok(())
}

/// `stolos director-tasks [ID]`
pub(crate) async fn tasks(args: &DirectorTasks) -> Result<(), Failure> {
    let client = client().await?;
    if let Some(id) = args.id {
        let id = i64::try_from(id).map_err(|_| Failure::user("there is no such task"))?;
        return follow(&client, id).await;
    }
    let tasks = client
        .tasks(&TaskFilter {
            limit: Some(30),
            ..TaskFilter::default()
        })
        .await
        .map_err(failed)?;
    if args.json {
        return output::json(&tasks);
    }
    let rows: Vec<Vec<String>> = tasks
        .iter()
        .map(|task| {
            vec![
                task.id.to_string(),
                task.state.as_str().to_owned(),
                task.user.clone(),
                task.deployment.clone().unwrap_or_default(),
                task.description.clone(),
                outcome(task),
            ]
        })
        .collect();
    output::data(&output::table(
        &["ID", "State", "User", "Deployment", "Description", "Result"],
        &rows,
    ));
    Ok(())
}

/// What became of it, and who ended it early.
fn outcome(task: &stolos_api::director::Task) -> String {
    let result = task.result.clone().unwrap_or_default();
    match &task.cancelled_by {
        None => result,
        Some(who) if result.is_empty() => format!("cancelled by {who}"),
        Some(who) => format!("cancelled by {who}: {result}"),
    }
}

/// Follows a director task to its end. Ctrl-C ends the following only.
pub(crate) async fn follow(client: &Client, task: i64) -> Result<(), Failure> {
    output::note(&format!("Task {task}"));
    let steps = Mutex::new(Steps::new());
    let seen = |event: &Event| show(&mut steps.lock().unwrap_or_else(PoisonError::into_inner), event);
    let followed = tokio::select! {
        followed = meanwhile(&steps, client.follow(task, seen)) => followed,
        _ = tokio::signal::ctrl_c() => {
            return Err(Failure::left("task")
                .hint(format!("Follow it again with `{} director-tasks {task}`.", program_name())));
        }
    };
    match followed {
        Ok(done) => {
            output::note(&format!(
                "Task {task} done in {:.1} s",
                steps
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .elapsed()
                    .as_secs_f64()
            ));
            if let Some(result) = done.result {
                output::data(&result);
            }
            Ok(())
        }
        Err(error @ Error::TaskFailed { .. }) => {
            let text = stolos_base::chain(&error);
            Err(match &error {
                Error::TaskFailed { task, .. } if task.cancelled_by.is_some() => {
                    let who = task.cancelled_by.as_deref().unwrap_or_default();
                    Failure::user(format!("{text} (cancelled by {who})"))
                }
                _ => Failure::user(text),
            })
        }
        Err(error) => Err(failed(error)),
    }
}

fn show(steps: &mut Steps, event: &Event) {
    if let (Some(kind), Some(message)) = (&event.kind, &event.message) {
        output::note(&format!("{kind}: {message}"));
    }
    let (Some(stage), Some(task), Some(state)) = (&event.stage, &event.task, event.state) else {
        return;
    };
    let name = format!("{stage}: {task}");
    let data = event.data.as_ref();
    let detail = data.and_then(|data| data.error.as_deref().or(data.status.as_deref()));
    let state = match state {
        EventState::Started | EventState::InProgress => State::Running,
        EventState::Finished => State::Done,
        EventState::Failed => State::Failed,
    };
    steps.show(&name, state, detail, None::<Duration>);
}

fn read(path: &camino::Utf8Path) -> Result<String, Failure> {
    fs_err::read_to_string(path).map_err(|error| Failure::user(error.to_string()))
}

fn deployment_name(manifest: &str) -> Result<String, Failure> {
    let document: serde_json::Value = stolos_document::from_yaml(manifest)
        .map_err(|error| Failure::user(format!("the manifest is not YAML: {error}")))?;
    match document["name"].as_str() {
        Some(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(Failure::user("the manifest has no `name`")),
    }
}

pub(super) fn failed(error: Error) -> Failure {
    use stolos_base::Classify as _;
    match error.class() {
        Class::Unauthenticated => Failure::not_logged_in(),
        _ => Failure::from_error(&error),
    }
}
