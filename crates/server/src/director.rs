//! The director as `clusters` needs it, over its HTTP API.

use std::time::Duration;

use futures::future::BoxFuture;
use stolos_api::director::{
    Client, ConfigUpdate, DeleteOptions, DeployOptions, Error, Event, InstanceState, OutputKind, TaskFilter,
    code,
};
use stolos_clusters::Result;
use stolos_clusters::deps::{Director, Instance, MachineHealth, StateChange, TaskState};

/// How long one look at a running task waits for news.
const NEWS_WAIT: Duration = Duration::from_secs(5);

/// The director at the end of a client.
#[derive(Clone, Debug)]
pub(crate) struct RemoteDirector(pub(crate) Client);

impl Director for RemoteDirector {
    fn set_cloud_config<'a>(&'a self, deployment: &'a str, yaml: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let update = ConfigUpdate {
                kind: "cloud".to_owned(),
                name: deployment.to_owned(),
                content: yaml.to_owned(),
                expected_latest_id: None,
            };
            self.0
                .update_config(&update)
                .await
                .map(drop)
                .map_err(|error| service("store the cloud config", error))
        })
    }

    fn delete_cloud_config<'a>(&'a self, deployment: &'a str) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            match self.0.delete_config("cloud", deployment).await {
                Err(error) if !is_missing(&error) => Err(service("delete the cloud config", error)),
                _ => Ok(()),
            }
        })
    }

    fn deploy<'a>(
        &'a self,
        _deployment: &'a str,
        manifest: &'a str,
        context: &'a str,
    ) -> BoxFuture<'a, Result<u64>> {
        Box::pin(self.start_deploy(manifest, context, of_cluster()))
    }

    fn deploy_abruptly<'a>(
        &'a self,
        _deployment: &'a str,
        manifest: &'a str,
        context: &'a str,
        group: &'a str,
    ) -> BoxFuture<'a, Result<u64>> {
        let options = DeployOptions {
            skip_drain: Some(group.to_owned()),
            ..of_cluster()
        };
        Box::pin(self.start_deploy(manifest, context, options))
    }

    fn change_state<'a>(
        &'a self,
        deployment: &'a str,
        manifest: &'a str,
        context: &'a str,
        change: &'a StateChange,
    ) -> BoxFuture<'a, Result<u64>> {
        let options = DeployOptions {
            canaries: Some("0".to_owned()),
            max_in_flight: Some("100%".to_owned()),
            fix: change.runs,
            skip_drain: (!change.runs).then(|| "*".to_owned()),
            ..of_cluster()
        };
        Box::pin(async move {
            if let Some(task) = self.started(context).await? {
                return Ok(task);
            }
            let state = if change.runs { "started" } else { "stopped" };
            let task = self
                .0
                .with_context(context)
                .change_state(deployment, &change.group, state, manifest, &options)
                .await;
            number(task.map_err(|error| service("start the change of state", error))?)
        })
    }

    fn delete<'a>(&'a self, deployment: &'a str, context: &'a str) -> BoxFuture<'a, Result<Option<u64>>> {
        Box::pin(async move {
            if let Some(task) = self.started(context).await? {
                return Ok(Some(task));
            }
            let client = self.0.with_context(context);
            match client
                // As PKS did: who deletes a cluster deletes what is in it.
                .delete_deployment(
                    deployment,
                    DeleteOptions {
                        force: true,
                        delete_disks: true,
                    },
                )
                .await
            {
                Ok(task) => number(task).map(Some),
                Err(error) if is_missing(&error) => Ok(None),
                Err(error) => Err(service("start the deletion", error)),
            }
        })
    }

    fn task<'a>(&'a self, id: u64, seen: &'a str) -> BoxFuture<'a, Result<TaskState>> {
        Box::pin(async move {
            let id = signed(id)?;
            let failed = |error| service(&format!("look at task {id}"), error);
            let text = self.0.whole_output(id, OutputKind::Event).await.map_err(failed)?;
            let mut now = doing(&text);
            if now == seen {
                // Nothing new yet: the answer may wait for some.
                let from = text.len() as u64;
                let more = self
                    .0
                    .output(id, OutputKind::Event, from, Some(NEWS_WAIT))
                    .await
                    .map_err(failed)?;
                now = doing(&format!("{text}{}", more.text));
            }
            let task = self.0.task(id).await.map_err(failed)?;
            Ok(match task.state {
                stolos_api::director::TaskState::Done => TaskState::Done,
                state if state.is_final() => {
                    let all = self.0.whole_output(id, OutputKind::Event).await.map_err(failed)?;
                    let fallback = || task.result.clone().unwrap_or_else(|| state.as_str().to_owned());
                    TaskState::Failed(error_of(&all).unwrap_or_else(fallback))
                }
                _ => TaskState::Running(now),
            })
        })
    }

    fn cancel(&self, id: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            match self.0.cancel_task(signed(id)?).await {
                // It ended while we asked.
                Err(error) if error.code() == Some(code::TASK_STATE) => Ok(()),
                other => other.map_err(|error| service("cancel the task", error)),
            }
        })
    }

    fn deployments(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        Box::pin(async move {
            let all = self.0.deployments().await;
            let all = all.map_err(|error| service("list the deployments", error))?;
            Ok(all.into_iter().map(|deployment| deployment.name).collect())
        })
    }

    fn instances<'a>(&'a self, deployment: &'a str) -> BoxFuture<'a, Result<Vec<Instance>>> {
        Box::pin(async move {
            match self.0.instances(deployment).await {
                Ok(instances) => Ok(instances
                    .into_iter()
                    .map(|one| Instance {
                        index: one.index,
                        zone: one.az.filter(|zone| !zone.is_empty()),
                        group: one.job,
                        address: one.ips.first().and_then(|text| text.parse().ok()),
                    })
                    .collect()),
                Err(error) if is_missing(&error) => Ok(Vec::new()),
                Err(error) => Err(service("list the instances", error)),
            }
        })
    }

    fn health<'a>(&'a self, deployment: &'a str) -> BoxFuture<'a, Result<Vec<MachineHealth>>> {
        Box::pin(async move {
            match self.0.instance_states(deployment).await {
                Ok(states) => Ok(states.into_iter().map(health).collect()),
                Err(error) if is_missing(&error) => Ok(Vec::new()),
                Err(error) => Err(service("ask the machines how they are", error)),
            }
        })
    }
}

/// What is said of a machine, as far as it matters before an upgrade.
fn health(state: InstanceState) -> MachineHealth {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let not_running = state
        .processes
        .iter()
        .flatten()
        .filter(|process| process["state"] != "running")
        .map(|process| text(&process["name"]))
        .collect();
    let disks = state
        .vitals
        .as_ref()
        .and_then(|vitals| vitals["disk"].as_object())
        .into_iter()
        .flatten()
        // Percents are texts on BOSH's wire; one that is none was not measured.
        .filter_map(|(name, disk)| Some((name.clone(), text(&disk["percent"]).parse().ok()?)))
        .collect();
    MachineHealth {
        name: format!("{}/{}", state.job_name, state.id),
        state: state.job_state.unwrap_or_else(|| "no machine".to_owned()),
        not_running,
        disks,
    }
}

impl RemoteDirector {
    async fn start_deploy(&self, manifest: &str, context: &str, options: DeployOptions) -> Result<u64> {
        if let Some(task) = self.started(context).await? {
            return Ok(task);
        }
        let client = self.0.with_context(context);
        let task = client.deploy(manifest, &options).await;
        number(task.map_err(|error| service("start the deployment", error))?)
    }

    /// The task that was started under a context, unless that failed: then a new one is to be started.
    async fn started(&self, context: &str) -> Result<Option<u64>> {
        let filter = TaskFilter {
            context: Some(context),
            limit: Some(1),
            ..TaskFilter::default()
        };
        let tasks = self
            .0
            .tasks(&filter)
            .await
            .map_err(|error| service("look for a started task", error))?;
        let usable = |task: &stolos_api::director::Task| {
            !task.state.is_final() || task.state == stolos_api::director::TaskState::Done
        };
        tasks
            .into_iter()
            .next()
            .filter(usable)
            .map(|task| number(task.id))
            .transpose()
    }
}

/// How every deployment of a cluster is deployed: what its owner wrote is part of the manifest, so it may name nothing of others.
fn of_cluster() -> DeployOptions {
    DeployOptions {
        own_credentials: true,
        ..DeployOptions::default()
    }
}

fn service(what: &str, error: Error) -> stolos_clusters::Error {
    stolos_clusters::Error::service(what, error)
}

fn is_missing(error: &Error) -> bool {
    matches!(
        error.code(),
        Some(code::DEPLOYMENT_NOT_FOUND | code::CONFIG_NOT_FOUND)
    )
}

fn number(task: i64) -> Result<u64> {
    u64::try_from(task)
        .map_err(|_| stolos_clusters::Error::Request(format!("the director named task {task}")))
}

fn signed(task: u64) -> Result<i64> {
    i64::try_from(task).map_err(|_| stolos_clusters::Error::Request(format!("there is no task {task}")))
}

/// What a task does at the moment, from its event lines: the last thing that was begun, with its status.
fn doing(events: &str) -> String {
    let last = events.lines().rev().find_map(|line| {
        serde_json::from_str::<Event>(line)
            .ok()
            .filter(|e| e.stage.is_some())
    });
    let Some(event) = last else {
        return "queued".to_owned();
    };
    let mut text = event.stage.unwrap_or_default();
    if let Some(task) = event.task {
        text.push_str(": ");
        text.push_str(&task);
    }
    if let Some(status) = event.data.and_then(|data| data.status) {
        text.push_str(", ");
        text.push_str(&status);
    }
    text
}

fn error_of(events: &str) -> Option<String> {
    events.lines().rev().find_map(|line| {
        serde_json::from_str::<Event>(line)
            .ok()?
            .error
            .map(|error| error.message)
    })
}
