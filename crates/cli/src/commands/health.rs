//! What the director says of machines: who is not well, what happened, whether the dead are made anew.

use std::collections::BTreeMap;

use stolos_api::director::{ConfigUpdate, MachineProblem, code};

use super::deployments::failed;
use super::{deployments, login};
use crate::args::{Events, Json, Resurrection, Switch};
use crate::failure::Failure;
use crate::output;

/// What a cluster's deployment is called, before its id.
const PREFIX: &str = "service-instance_";
/// The type of configs that switch repairs off.
const SWITCHES: &str = "resurrection";

/// Deployment → cluster, for people.
async fn names() -> Result<BTreeMap<String, String>, Failure> {
    let clusters = login::pks_client().await?.clusters().await;
    let clusters = clusters.map_err(|error| Failure::from_error(&error))?;
    Ok(clusters
        .into_iter()
        .map(|cluster| (format!("{PREFIX}{}", cluster.uuid), cluster.name))
        .collect())
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
    if args.json {
        return output::json(&problems);
    }
    let resurrection = client.resurrection().await.map_err(failed)?;
    if problems.is_empty() {
        output::data("All machines are well.");
    } else {
        let names = names().await?;
        let rows: Vec<Vec<String>> = problems.iter().map(|problem| row(problem, &names)).collect();
        output::data(&output::table(
            &["Cluster", "Machine", "State", "Since", "Why", "Waiting on"],
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

fn row(problem: &MachineProblem, names: &BTreeMap<String, String>) -> Vec<String> {
    let doing = match (&problem.waiting_on, problem.task) {
        (Some(waiting), _) => waiting.clone(),
        (None, Some(task)) => format!("director task {task}"),
        (None, None) => String::new(),
    };
    vec![
        shown(&problem.deployment, names),
        problem.instance.clone(),
        problem.state.clone(),
        format!("{} s", problem.since),
        problem.why.clone(),
        doing,
    ]
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
                event.object_name.clone(),
                event.context.message.clone(),
            ]
        })
        .collect();
    output::data(&output::table(
        &["ID", "Time", "Cluster", "What", "Message"],
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
