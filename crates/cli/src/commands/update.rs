//! Changing a cluster.

use stolos_api::pks::{Client, KubernetesSettings, LastActionState, LocalVolumes, UpdateParameters};

use super::clusters::{confirm, known};
use super::create::{Files, pools, show_preview, tags, warn_not_applied};
use super::login::pks_client;
use super::operations;
use crate::args::{Going, Power, Resize, Update};
use crate::failure::Failure;
use crate::{output, program_name};

/// `stolos resize NAME`
pub(crate) async fn resize(args: &Resize) -> Result<(), Failure> {
    let pools = pools(args.node_pool_instances.as_deref())?;
    let client = pks_client().await?;
    known(&client, &args.name).await?;
    let question = format!(
        "Are you sure you want to resize cluster {} to {}? (y/n):",
        args.name,
        args.node_pool_instances
            .clone()
            .unwrap_or_else(|| args.num_nodes.to_string())
    );
    confirm(&question, args.non_interactive)?;
    let change = UpdateParameters {
        kubernetes_worker_instances: pools.is_none().then_some(args.num_nodes),
        node_pool_instances: pools,
        cluster_tags: args.tags.as_deref().map(tags).transpose()?,
        ..UpdateParameters::default()
    };
    let going = Going {
        wait: args.wait,
        json: args.json,
        non_interactive: args.non_interactive,
    };
    run(&client, &args.name, change, &going, args.delete_volumes).await
}

/// `stolos update-cluster NAME`
pub(crate) async fn update(args: &Update) -> Result<(), Failure> {
    let change = change(args)?;
    let mut summary = summary(&change);
    let client = pks_client().await?;
    let cluster = client.cluster(&args.name).await;
    let cluster = cluster.map_err(|error| Failure::of_api(&error))?;
    if summary.is_empty() {
        // What failed can be gone on with as it is to be already.
        if cluster.last_action_state != LastActionState::Failed {
            return Err(Failure::user("nothing to change is named").hint(format!(
                "See `{} update-cluster --help` for what can be changed.",
                program_name()
            )));
        }
        summary = "Nothing new: what failed before is gone on with".to_owned();
    }
    if args.dry_run {
        let preview = client
            .preview_update(&args.name, &change)
            .await
            .map_err(|error| Failure::of_api(&error))?;
        return show_preview(&preview, args.going.json);
    }
    if !args.going.non_interactive {
        // Whoever confirms has to know whether nodes are drained.
        let preview = client
            .preview_update(&args.name, &change)
            .await
            .map_err(|error| Failure::of_api(&error))?;
        output::note(&format!(
            "Update summary for cluster {}:\n{summary}\n{}",
            args.name,
            sentence(&preview.machines)
        ));
    }
    confirm(
        "Are you sure you want to continue? (y/n):",
        args.going.non_interactive,
    )?;
    run(&client, &args.name, change, &args.going, args.delete_volumes).await
}

/// `stolos stop-cluster NAME`
pub(crate) async fn stop(args: &Power) -> Result<(), Failure> {
    let client = pks_client().await?;
    known(&client, &args.name).await?;
    let question = format!(
        "Everything that runs in cluster {} ends, and its API is away until it is started again. Are you sure? (y/n)",
        args.name
    );
    confirm(&question, args.going.non_interactive)?;
    let operation = client.stop_cluster(&args.name).await;
    let operation = operation.map_err(|error| Failure::of_api(&error))?;
    operations::conclude(&client, &args.name, operation, &args.going).await
}

/// `stolos start-cluster NAME`
pub(crate) async fn start(args: &Power) -> Result<(), Failure> {
    let client = pks_client().await?;
    let operation = client.start_cluster(&args.name).await;
    let operation = operation.map_err(|error| Failure::of_api(&error))?;
    operations::conclude(&client, &args.name, operation, &args.going).await
}

/// A clause of the server as a sentence.
fn sentence(clause: &str) -> String {
    let mut letters = clause.chars();
    match letters.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), letters.as_str()),
        None => String::new(),
    }
}

fn change(args: &Update) -> Result<UpdateParameters, Failure> {
    let files = Files::read(&args.given)?;
    let tags_given = args.tags.as_deref();
    Ok(UpdateParameters {
        kubernetes_worker_instances: args.num_nodes,
        kubernetes_master_instances: args.num_masters,
        node_pool_instances: pools(args.given.node_pool_instances.as_deref())?,
        network_profile_name: args.given.network_profile.clone(),
        compute_profile_name: args.given.compute_profile.clone(),
        kubernetes_profile_name: args.given.kubernetes_profile.clone(),
        enforce_compute_profile_update: args.enforce_compute_profile_update.then_some(true),
        private_registries: files.registries,
        config_file: files.config,
        drain: KubernetesSettings {
            kubelet_drain_timeout: args.kubelet_drain_timeout.clone(),
            kubelet_drain_grace_period: args.kubelet_drain_grace_period.clone(),
            kubelet_drain_force: args.kubelet_drain_force.clone(),
            kubelet_drain_ignore_daemonsets: args.kubelet_drain_ignore_daemonsets.clone(),
            kubelet_drain_delete_local_data: args.kubelet_drain_delete_local_data.clone(),
            kubelet_drain_force_node: args.kubelet_drain_force_node.clone(),
        },
        cluster_tags: tags_given
            .filter(|text| !text.trim().is_empty())
            .map(tags)
            .transpose()?,
        delete_all_tags: tags_given
            .is_some_and(|text| text.trim().is_empty())
            .then_some(true),
        ..UpdateParameters::default()
    })
}

/// What is going to change, a line each, as PKS showed it.
fn summary(change: &UpdateParameters) -> String {
    let mut lines = Vec::new();
    if let Some(n) = change.kubernetes_worker_instances {
        lines.push(format!("Worker Number: {n}"));
    }
    if let Some(n) = change.kubernetes_master_instances {
        lines.push(format!("Master Number: {n}"));
    }
    for (what, name) in [
        ("Network Profile Name", &change.network_profile_name),
        ("Compute Profile Name", &change.compute_profile_name),
        ("Kubernetes Profile Name", &change.kubernetes_profile_name),
    ] {
        if let Some(name) = name {
            lines.push(format!("{what}: {name}"));
        }
    }
    if let Some(pools) = &change.node_pool_instances {
        let pools: Vec<String> = pools
            .iter()
            .map(|pool| format!("{}:{}", pool.name, pool.instances))
            .collect();
        lines.push(format!("Node Pool Instances: {}", pools.join(",")));
    }
    if let Some(registries) = &change.private_registries {
        let hosts: Vec<&str> = registries
            .servers
            .iter()
            .map(|server| server.url.as_str())
            .collect();
        lines.push(format!("Private Registries: {}", hosts.join(",")));
    }
    if change.config_file.is_some() {
        lines.push("Configuration: from the file".to_owned());
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
    mut change: UpdateParameters,
    going: &Going,
    delete_volumes: bool,
) -> Result<(), Failure> {
    // Only what can make workers go can lose what is on their disks.
    let may_lose = change.kubernetes_worker_instances.is_some()
        || change.node_pool_instances.is_some()
        || change.compute_profile_name.is_some();
    if may_lose && !delete_volumes {
        change.local_volumes = Some(LocalVolumes::Refuse);
    }
    let begun = match client.update_cluster(name, &change).await {
        Err(error) if loses_volumes(&error) => {
            let failure = Failure::of_api(&error);
            if going.non_interactive {
                return Err(failure.hint("Copy the data first, or lose it with --delete-volumes."));
            }
            output::note(&format!("{error}"));
            confirm("Is their data to be lost? (y/n):", false)?;
            change.local_volumes = Some(LocalVolumes::Delete);
            client.update_cluster(name, &change).await
        }
        other => other,
    };
    let begun = begun.map_err(|error| Failure::of_api(&error))?;
    warn_not_applied(&begun.not_applied);
    operations::conclude(client, name, begun.operation, going).await?;
    if !going.json && !going.wait {
        output::data(&format!(
            "\nUse '{} cluster {name}' to monitor the state of your cluster",
            program_name()
        ));
    }
    Ok(())
}

fn loses_volumes(error: &stolos_api::Error) -> bool {
    let code = error.refusal().and_then(|refusal| refusal.code.as_deref());
    code == Some(stolos_api::pks::LOSES_VOLUMES)
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
            cluster_tags: Some(tags("team:blue, stage : test").expect("tags")),
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
