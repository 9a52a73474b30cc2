//! Plans and clusters.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use stolos_api::pks::{Client, Cluster, Plan, Room};
use stolos_base::{Class, Classify as _};

use super::login::pks_client;
use super::operations;
use crate::args::{Delete, Json, List, Show, TransferCluster};
use crate::failure::Failure;
use crate::{output, program_name};

/// `stolos plans`
pub(crate) async fn plans(args: &Json) -> Result<(), Failure> {
    let client = pks_client().await?;
    let plans = client.plans().await.map_err(|error| Failure::of_api(&error))?;
    if args.json {
        return output::json(&plans);
    }
    let rows: Vec<Vec<String>> = plans
        .iter()
        .map(|plan| vec![plan.name.clone(), plan.id.clone(), plan.description.clone()])
        .collect();
    output::data(&output::table(&["Name", "ID", "Description"], &rows));
    // A server of before does not say.
    if let Ok(room) = client.room().await
        && let Some(text) = room_for(&plans, &room)
    {
        output::note(&format!("\n{text}"));
    }
    Ok(())
}

/// What there is room for, where that has an end.
fn room_for(plans: &[Plan], room: &Room) -> Option<String> {
    let free = room.free_memory_mib?;
    let sizes = plans
        .iter()
        .filter_map(|plan| Some(format!("{} {}", plan.name, gib(plan.memory_mib?))));
    let sizes: Vec<String> = sizes.collect();
    Some(format!(
        "Room for machines: {}. A cluster takes as it comes: {}.",
        gib(free),
        sizes.join(", ")
    ))
}

/// `1.5 GiB`
pub(crate) fn gib(mib: u64) -> String {
    format!("{:.1} GiB", mib as f64 / 1024.0)
}

/// `stolos clusters`
pub(crate) async fn list(args: &List) -> Result<(), Failure> {
    let shown = || async {
        let client = pks_client().await?;
        let failed = |error: stolos_api::Error| Failure::of_api(&error);
        let clusters = client.clusters().await.map_err(failed)?;
        if args.json {
            return output::to_json(&clusters);
        }
        let newest = client.upgradable().await.map_err(failed)?;
        Ok(table(&clusters, &newest))
    };
    if args.watch {
        return output::watch(shown).await;
    }
    output::data(&shown().await?);
    Ok(())
}

fn table(clusters: &[Cluster], newest: &str) -> String {
    let rows: Vec<Vec<String>> = clusters
        .iter()
        .map(|cluster| {
            vec![
                cluster.pks_version.clone(),
                cluster.name.clone(),
                cluster.k8s_version.clone(),
                cluster.plan_name.clone(),
                cluster.uuid.clone(),
                cluster.last_action_state.as_str().to_owned(),
                cluster.last_action.as_str().to_owned(),
            ]
        })
        .collect();
    let (product, header) = (
        product(),
        [
            "PKS Version",
            "Name",
            "k8s Version",
            "Plan Name",
            "UUID",
            "Status",
            "Action",
        ],
    );
    let table = output::table(&header, &rows);
    // PKS's line for as long as any cluster lags.
    if clusters
        .iter()
        .any(|cluster| !cluster.available_upgrades.is_empty())
    {
        format!("Upgrade is available to {product} Version: {newest}\n\n{table}")
    } else {
        table
    }
}

/// The product's name in texts: scripts of TKGI match another than those of PKS.
fn product() -> &'static str {
    if program_name() == "tkgi" { "TKGI" } else { "PKS" }
}

/// `stolos cluster NAME`
pub(crate) async fn show(args: &Show) -> Result<(), Failure> {
    let shown = || async {
        let client = pks_client().await?;
        let cluster = if args.details {
            client.cluster_details(&args.name).await
        } else {
            client.cluster(&args.name).await
        };
        let cluster = cluster.map_err(|error| Failure::of_api(&error))?;
        if args.json {
            return output::to_json(&cluster);
        }
        let mut text = format!("\n{}", block(&cluster));
        if args.details {
            text.push('\n');
            text.push_str(&details(&cluster));
        }
        Ok(text)
    };
    if args.watch {
        return output::watch(shown).await;
    }
    output::data(&shown().await?);
    Ok(())
}

/// The settings of a cluster, as PKS printed them.
fn details(cluster: &Cluster) -> String {
    let mut text = "\nKubernetes Settings Details:".to_owned();
    let parameters = &cluster.parameters;
    for (title, settings) in [
        ("Set by Plan:", &parameters.kubernetes_setting_plan_details),
        ("Set by User:", &parameters.kubernetes_setting_cluster_details),
    ] {
        let Some(settings) = settings else { continue };
        text.push_str(&format!("\n  {title}"));
        for (name, value) in settings.named() {
            text.push_str(&format!("\n    {:<34}{value}", format!("{name}:")));
        }
    }
    text
}

/// `stolos transfer-cluster NAME --to USER`
pub(crate) async fn transfer(args: &TransferCluster) -> Result<(), Failure> {
    let client = pks_client().await?;
    let given = client.transfer_cluster(&args.name, &args.to).await;
    let given = given.map_err(|error| Failure::of_api(&error))?;
    if args.json {
        return output::json(&given);
    }
    output::data(&format!("Cluster {} belongs to {}", args.name, args.to));
    Ok(())
}

/// `stolos delete-cluster NAME`
pub(crate) async fn delete(args: &Delete) -> Result<(), Failure> {
    let client = pks_client().await?;
    match client.cluster(&args.name).await {
        Err(error) if args.if_exists && error.class() == Class::NotFound => {
            output::note(&format!("There is no cluster {}", args.name));
            return Ok(());
        }
        other => other.map(drop).map_err(|error| Failure::of_api(&error))?,
    }
    confirm(
        &format!("Are you sure you want to delete cluster {}? (y/n)", args.name),
        args.non_interactive,
    )?;
    let operation = client
        .delete_cluster(&args.name)
        .await
        .map_err(|error| Failure::of_api(&error))?;
    output::data(&format!("Deletion of {} in progress", args.name));
    match operation {
        Some(operation) if args.wait => operations::follow(&client, &operation).await,
        _ => Ok(()),
    }
}

/// Asked before a question, so that nobody confirms what a typing error would do.
pub(crate) async fn known(client: &Client, name: &str) -> Result<(), Failure> {
    client
        .cluster(name)
        .await
        .map(drop)
        .map_err(|error| Failure::of_api(&error))
}

/// Asks on the terminal, or takes the answer from a pipe, as scripts of PKS users give it.
pub(crate) fn confirm(question: &str, skip: bool) -> Result<(), Failure> {
    if skip {
        return Ok(());
    }
    let mut err = anstream::stderr().lock();
    let _ = write!(err, "{} ", stolos_base::text::lines(question));
    let _ = err.flush();
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer).unwrap_or(0);
    if read == 0 && !std::io::stdin().is_terminal() {
        let _ = writeln!(err);
        return Err(Failure::user("nobody answered the question").hint("Use --non-interactive in scripts."));
    }
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(Failure::user("not confirmed; nothing was changed"))
    }
}

/// What was last done to a cluster, and what one has to know beside that.
fn described(cluster: &Cluster) -> String {
    let mut text = cluster.last_action_description.clone();
    if cluster.stopped {
        text.push_str(" (the cluster is stopped)");
    }
    if cluster.owner_gone {
        let owner = cluster.owner.as_deref().unwrap_or_default();
        text.push_str(&format!(
            " (its owner {owner} is gone; give it to somebody with `{} transfer-cluster`)",
            program_name()
        ));
    }
    text
}

/// The block of `cluster NAME` (pks.md, section 1.6).
pub(crate) fn block(cluster: &Cluster) -> String {
    let parameters = &cluster.parameters;
    output::block(&[
        ("PKS Version", cluster.pks_version.clone()),
        ("Name", cluster.name.clone()),
        ("K8s Version", cluster.k8s_version.clone()),
        ("Plan Name", cluster.plan_name.clone()),
        ("UUID", cluster.uuid.clone()),
        ("Last Action", cluster.last_action.as_str().to_owned()),
        ("Last Action State", cluster.last_action_state.as_str().to_owned()),
        ("Last Action Description", described(cluster)),
        (
            "Kubernetes Master Host",
            parameters.kubernetes_master_host.clone().unwrap_or_default(),
        ),
        (
            "Kubernetes Master Port",
            parameters
                .kubernetes_master_port
                .map(|port| port.to_string())
                .unwrap_or_default(),
        ),
        (
            "Worker Nodes",
            parameters
                .kubernetes_worker_instances
                .map(|n| n.to_string())
                .unwrap_or_default(),
        ),
        (
            "Kubernetes Master IP(s)",
            cluster.kubernetes_master_ips.join(", "),
        ),
        (
            "Network Profile Name",
            cluster.network_profile_name.clone().unwrap_or_default(),
        ),
        (
            "Kubernetes Profile Name",
            cluster.kubernetes_profile_name.clone().unwrap_or_default(),
        ),
        (
            "Compute Profile Name",
            cluster.compute_profile_name.clone().unwrap_or_default(),
        ),
        // There is no NSX-T here; TKGI's scripts look for the line.
        ("NSX Policy", "false".to_owned()),
        (
            "Private Registries",
            parameters
                .private_registries
                .iter()
                .flat_map(|registries| &registries.servers)
                .map(|server| server.url.clone())
                .collect::<Vec<_>>()
                .join(","),
        ),
        (
            "Tags",
            parameters
                .cluster_tags
                .iter()
                .flatten()
                .map(|tag| format!("{}:{}", tag.name, tag.value))
                .collect::<Vec<_>>()
                .join(","),
        ),
    ])
}
