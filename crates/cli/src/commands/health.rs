//! What is not well with clusters and machines, what happened, whether the dead are made anew.

use std::collections::BTreeMap;

use stolos_api::director::{ConfigUpdate, MachineProblem, code};
use stolos_api::pks::{Cluster, LastActionState};

use super::deployments::failed;
use super::{deployments, login};
use crate::args::{Events, Json, Resurrection, Switch};
use crate::failure::Failure;
use crate::{output, program_name};

/// What a cluster's deployment is called, before its id.
const PREFIX: &str = "service-instance_";
/// The type of configs that switch repairs off.
const SWITCHES: &str = "resurrection";

/// Deployment → cluster, for people.
async fn names() -> Result<BTreeMap<String, String>, Failure> {
    let clusters = login::pks_client().await?.clusters().await;
    let clusters = clusters.map_err(|error| Failure::from_error(&error))?;
    Ok(names_of(&clusters))
}

fn names_of(clusters: &[Cluster]) -> BTreeMap<String, String> {
    clusters
        .iter()
        .map(|cluster| (format!("{PREFIX}{}", cluster.uuid), cluster.name.clone()))
        .collect()
}

/// The deployment of a cluster, or one that is named itself.
fn deployment_of(names: &BTreeMap<String, String>, wanted: &str) -> Result<String, Failure> {
    let of_cluster = names.iter().find(|(_, name)| *name == wanted);
    let found = of_cluster.map(|(deployment, _)| deployment.clone());
    found
        .or_else(|| names.contains_key(wanted).then(|| wanted.to_owned()))
        .ok_or_else(|| Failure::user(format!("no such cluster: {wanted}")))
}

/// `stolos health`
pub(crate) async fn problems(args: &Json) -> Result<(), Failure> {
    let client = deployments::client().await?;
    let problems = client.problems().await.map_err(failed)?;
    let resurrection = client.resurrection().await.map_err(failed)?;
    let clusters = login::pks_client().await?.clusters().await;
    let clusters = clusters.map_err(|error| Failure::from_error(&error))?;
    let deployments = client.deployments().await.map_err(failed)?;
    let has_deployment = |cluster: &Cluster| {
        let name = format!("{PREFIX}{}", cluster.uuid);
        deployments.iter().any(|deployment| deployment.name == name)
    };
    let mut all: Vec<MachineProblem> = clusters
        .iter()
        .filter_map(|cluster| of_cluster(cluster, has_deployment(cluster)))
        .collect();
    // What a failed operation left unfinished is said once, by the cluster.
    let is_said = |problem: &MachineProblem| {
        problem.state == "unfinished" && all.iter().any(|one| one.deployment == problem.deployment)
    };
    let others: Vec<MachineProblem> = problems.into_iter().filter(|one| !is_said(one)).collect();
    all.extend(others);
    if args.json {
        return output::json(&all);
    }
    let names = names_of(&clusters);
    let rows: Vec<Vec<String>> = all.iter().map(|problem| row(problem, &names)).collect();
    if rows.is_empty() {
        output::data("All clusters and machines are well.");
    } else {
        output::data(&output::table(
            &["Cluster", "Machine", "State", "Since", "Why", "What is next"],
            &rows,
        ));
    }
    if !resurrection {
        output::note(
            "Resurrection is off: dead machines are only shown. `stolos resurrection on` turns it on.",
        );
    }
    Ok(())
}

/// A cluster whose last operation failed, or whose deployment somebody deleted at the director, in the form of the director's problems.
fn of_cluster(cluster: &Cluster, has_deployment: bool) -> Option<MachineProblem> {
    let (program, name) = (program_name(), &cluster.name);
    let (state, why, next) = match cluster.last_action_state {
        LastActionState::Failed => (
            "failed",
            cluster.last_action_description.clone(),
            format!("`{program} operations --cluster {name}` shows where; mend that and ask for it again"),
        ),
        LastActionState::Succeeded if !has_deployment => (
            "gone",
            "the director has no deployment of it: nothing of the cluster runs".to_owned(),
            format!(
                "`{program} delete-cluster {name}` removes what is left; a backup makes a new one with its contents"
            ),
        ),
        _ => return None,
    };
    Some(MachineProblem {
        deployment: format!("{PREFIX}{}", cluster.uuid),
        instance: String::new(),
        id: String::new(),
        agent_id: None,
        cid: None,
        state: state.to_owned(),
        since: 0,
        why,
        waiting_on: None,
        next: Some(next),
        task: None,
    })
}

fn row(problem: &MachineProblem, names: &BTreeMap<String, String>) -> Vec<String> {
    let doing = match (&problem.waiting_on, &problem.next, problem.task) {
        (Some(waiting), _, _) => format!("waits: {waiting}"),
        (None, Some(next), _) => next.clone(),
        (None, None, Some(task)) => format!("director task {task}"),
        (None, None, None) => String::new(),
    };
    vec![
        shown(&problem.deployment, names),
        problem.instance.clone(),
        problem.state.clone(),
        // Nobody knows since when.
        if matches!(problem.state.as_str(), "failed" | "gone") {
            String::new()
        } else {
            since(problem.since)
        },
        problem.why.clone(),
        doing,
    ]
}

/// As people say it: the largest unit that is not 0.
fn since(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn shown(deployment: &str, names: &BTreeMap<String, String>) -> String {
    names
        .get(deployment)
        .map_or(deployment, String::as_str)
        .to_owned()
}

/// `stolos events [CLUSTER]`
pub(crate) async fn events(args: &Events) -> Result<(), Failure> {
    let client = deployments::client().await?;
    let names = names().await?;
    let deployment = args
        .cluster
        .as_deref()
        .map(|name| deployment_of(&names, name))
        .transpose()?;
    let events = client.events(deployment.as_deref(), None).await.map_err(failed)?;
    if args.json {
        return output::json(&events);
    }
    let rows: Vec<Vec<String>> = events
        .iter()
        .map(|event| {
            let time = jiff::Timestamp::from_second(event.timestamp);
            vec![
                event.id.clone(),
                time.map(|time| time.to_string()).unwrap_or_default(),
                event
                    .deployment
                    .as_deref()
                    .map(|name| shown(name, &names))
                    .unwrap_or_default(),
                event.context.severity.clone(),
                event.object_name.clone(),
                event.context.message.clone(),
            ]
        })
        .collect();
    output::data(&output::table(
        &["ID", "Time", "Cluster", "Severity", "What", "Message"],
        &rows,
    ));
    Ok(())
}

/// `stolos resurrection [on|off] [CLUSTER]`
pub(crate) async fn resurrection(args: &Resurrection) -> Result<(), Failure> {
    let client = deployments::client().await?;
    let names = names().await?;
    if let Some(state) = args.state {
        match &args.cluster {
            None => client
                .set_resurrection(state == Switch::On)
                .await
                .map_err(failed)?,
            Some(cluster) => {
                let deployment = deployment_of(&names, cluster)?;
                switch(&client, &deployment, state).await?;
            }
        }
    }
    let on = client.resurrection().await.map_err(failed)?;
    let configs = client.configs(SWITCHES).await.map_err(failed)?;
    let off: Vec<String> = configs.iter().map(|config| shown(&config.name, &names)).collect();
    if args.json {
        return output::json(&serde_json::json!({"resurrection": on, "rules": off}));
    }
    output::data(if on {
        "Resurrection is on."
    } else {
        "Resurrection is off."
    });
    if !off.is_empty() {
        output::data(&format!("There are rules of their own for: {}", off.join(", ")));
    }
    Ok(())
}

async fn switch(
    client: &stolos_api::director::Client,
    deployment: &str,
    state: Switch,
) -> Result<(), Failure> {
    match state {
        Switch::Off => {
            let update = ConfigUpdate {
                kind: SWITCHES.to_owned(),
                name: deployment.to_owned(),
                content: format!("rules:\n- enabled: false\n  include: {{deployments: [{deployment}]}}\n"),
                expected_latest_id: None,
            };
            client.update_config(&update).await.map(drop).map_err(failed)
        }
        Switch::On => match client.delete_config(SWITCHES, deployment).await {
            // It was on.
            Err(error) if error.code() == Some(code::CONFIG_NOT_FOUND) => Ok(()),
            other => other.map_err(failed),
        },
    }
}
