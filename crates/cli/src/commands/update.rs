//! Changing a cluster.

use stolos_api::pks::{Client, KubernetesSettings, UpdateParameters};

use super::clusters::{block, confirm, tags};
use super::login::pks_client;
use super::operations;
use crate::args::{Resize, Update};
use crate::failure::Failure;
use crate::{output, program_name};

/// `stolos resize NAME`
pub(crate) async fn resize(args: &Resize) -> Result<(), Failure> {
    let client = pks_client().await?;
    known(&client, &args.name).await?;
    let question = format!(
        "Are you sure you want to resize cluster {} to {}? (y/n):",
        args.name, args.num_nodes
    );
    confirm(&question, args.non_interactive)?;
    let change = UpdateParameters {
        kubernetes_worker_instances: Some(args.num_nodes),
        ..UpdateParameters::default()
    };
    run(&client, &args.name, &change, args.wait, args.json).await
}

/// `stolos update-cluster NAME`
pub(crate) async fn update(args: &Update) -> Result<(), Failure> {
    let change = UpdateParameters {
        kubernetes_worker_instances: args.num_nodes,
        drain: KubernetesSettings {
            kubelet_drain_timeout: args.kubelet_drain_timeout.clone(),
            kubelet_drain_grace_period: args.kubelet_drain_grace_period.clone(),
            kubelet_drain_force: args.kubelet_drain_force.clone(),
            kubelet_drain_ignore_daemonsets: args.kubelet_drain_ignore_daemonsets.clone(),
            kubelet_drain_delete_local_data: args.kubelet_drain_delete_local_data.clone(),
            kubelet_drain_force_node: args.kubelet_drain_force_node.clone(),
        },
        cluster_tags: args
            .tags
            .as_deref()
            .filter(|text| !text.trim().is_empty())
            .map(tags),
        delete_all_tags: args
            .tags
            .as_deref()
            .is_some_and(|text| text.trim().is_empty())
            .then_some(true),
        ..UpdateParameters::default()
    };
    let summary = summary(&change);
    if summary.is_empty() {
        return Err(Failure::user("nothing to change is named").hint(format!(
            "See `{} update-cluster --help` for what can be changed.",
            program_name()
        )));
    }
    let client = pks_client().await?;
    known(&client, &args.name).await?;
    if !args.non_interactive {
        output::note(&format!("Update summary for cluster {}:\n{summary}", args.name));
    }
    confirm("Are you sure you want to continue? (y/n):", args.non_interactive)?;
    run(&client, &args.name, &change, args.wait, args.json).await
}

/// Asked before the question, so that nobody confirms the change of a typing error.
async fn known(client: &Client, name: &str) -> Result<(), Failure> {
    client
        .cluster(name)
        .await
        .map(drop)
        .map_err(|error| Failure::from_error(&error))
}

/// What is going to change, a line each, as PKS showed it.
fn summary(change: &UpdateParameters) -> String {
    let mut lines = Vec::new();
    if let Some(n) = change.kubernetes_worker_instances {
        lines.push(format!("Worker Number: {n}"));
    }
    for (name, value) in change.drain.named() {
        lines.push(format!("{name}: {value}"));
    }
    if let Some(tags) = &change.cluster_tags {
        let tags: Vec<String> = tags
            .iter()
            .map(|tag| format!("{}:{}", tag.name, tag.value))
            .collect();
        lines.push(format!("Tags: {}", tags.join(",")));
    }
    if change.delete_all_tags == Some(true) {
        lines.push("Tags: none".to_owned());
    }
    lines.join("\n")
}

async fn run(
    client: &Client,
    name: &str,
    change: &UpdateParameters,
    wait: bool,
    json: bool,
) -> Result<(), Failure> {
    let operation = client
        .update_cluster(name, change)
        .await
        .map_err(|error| Failure::from_error(&error))?;
    let result = match operation {
        Some(operation) if wait => operations::follow(client, &operation).await,
        _ => Ok(()),
    };
    // The cluster is shown as it is now, also when the operation ended badly.
    let cluster = client
        .cluster(name)
        .await
        .map_err(|error| Failure::from_error(&error))?;
    if json {
        output::json(&cluster)?;
    } else {
        output::data(&format!("\n{}", block(&cluster)));
        if !wait {
            output::note(&format!(
                "\nUse '{} cluster {name}' to monitor the state of your cluster",
                program_name()
            ));
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_each_change() {
        let change = UpdateParameters {
            kubernetes_worker_instances: Some(4),
            drain: KubernetesSettings {
                kubelet_drain_force: Some("false".to_owned()),
                ..KubernetesSettings::default()
            },
            cluster_tags: Some(tags("team:blue, stage : test")),
            ..UpdateParameters::default()
        };
        insta::assert_snapshot!(summary(&change), @r"
        Worker Number: 4
        kubelet-drain-force: false
        Tags: team:blue,stage:test
        ");
        assert_eq!(summary(&UpdateParameters::default()), "");
    }
}
