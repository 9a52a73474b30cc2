//! Plans and clusters.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use indexmap::IndexMap;
use stolos_api::pks::{Cluster, ClusterParameters, ClusterRequest, ClusterTag};

use super::login::pks_client;
use super::operations;
use crate::args::{Create, Credentials, Delete, Json, Show};
use crate::failure::Failure;
use crate::{kubeconfig, output, program_name};

/// `stolos plans`
pub(crate) async fn plans(args: &Json) -> Result<(), Failure> {
    let plans = pks_client()
        .await?
        .plans()
        .await
        .map_err(|error| Failure::from_error(&error))?;
    if args.json {
        return output::json(&plans);
    }
    let rows: Vec<Vec<String>> = plans
        .into_iter()
        .map(|plan| vec![plan.name, plan.id, plan.description])
        .collect();
    output::data(&output::table(&["Name", "ID", "Description"], &rows));
    Ok(())
}

/// `stolos clusters`
pub(crate) async fn list(args: &Json) -> Result<(), Failure> {
    let clusters = pks_client()
        .await?
        .clusters()
        .await
        .map_err(|error| Failure::from_error(&error))?;
    if args.json {
        return output::json(&clusters);
    }
    let rows: Vec<Vec<String>> = clusters
        .into_iter()
        .map(|cluster| {
            vec![
                cluster.pks_version,
                cluster.name,
                cluster.k8s_version,
                cluster.plan_name,
                cluster.uuid,
                cluster.last_action_state.as_str().to_owned(),
                cluster.last_action.as_str().to_owned(),
            ]
        })
        .collect();
    output::data(&output::table(
        &[
            "PKS Version",
            "Name",
            "k8s Version",
            "Plan Name",
            "UUID",
            "Status",
            "Action",
        ],
        &rows,
    ));
    Ok(())
}

/// `stolos cluster NAME`
pub(crate) async fn show(args: &Show) -> Result<(), Failure> {
    let client = pks_client().await?;
    let cluster = if args.details {
        client.cluster_details(&args.name).await
    } else {
        client.cluster(&args.name).await
    };
    let cluster = cluster.map_err(|error| Failure::from_error(&error))?;
    if args.json {
        return output::json(&cluster);
    }
    output::data(&format!("\n{}", block(&cluster)));
    if args.details {
        output::data(&details(&cluster));
    }
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

/// `stolos create-cluster NAME`
pub(crate) async fn create(args: &Create) -> Result<(), Failure> {
    let client = pks_client().await?;
    let request = ClusterRequest {
        name: args.name.clone(),
        plan_name: args.plan.clone(),
        parameters: ClusterParameters {
            kubernetes_master_host: Some(args.external_hostname.clone()),
            kubernetes_master_port: None,
            kubernetes_worker_instances: args.num_nodes,
            cluster_tags: Some(tags(&args.tags)).filter(|tags| !tags.is_empty()),
            ..ClusterParameters::default()
        },
        other: IndexMap::new(),
    };
    let (mut cluster, operation) = client
        .create_cluster(&request)
        .await
        .map_err(|error| Failure::from_error(&error))?;
    if args.wait
        && let Some(operation) = &operation
    {
        let result = operations::follow(&client, operation).await;
        // The cluster is shown as it ended, also when it ended badly.
        if let Ok(now) = client.cluster(&args.name).await {
            cluster = now;
        }
        show_created(args, &cluster)?;
        return result;
    }
    show_created(args, &cluster)?;
    if !args.json {
        output::note(&format!(
            "\nUse '{} cluster {}' to monitor the state of your cluster",
            program_name(),
            args.name
        ));
    }
    Ok(())
}

fn show_created(args: &Create, cluster: &Cluster) -> Result<(), Failure> {
    if args.json {
        return output::json(cluster);
    }
    output::data(&format!("\n{}", block(cluster)));
    Ok(())
}

/// `stolos delete-cluster NAME`
pub(crate) async fn delete(args: &Delete) -> Result<(), Failure> {
    let client = pks_client().await?;
    // Asked before the question, so that nobody confirms the deletion of a typing error.
    client
        .cluster(&args.name)
        .await
        .map_err(|error| Failure::from_error(&error))?;
    confirm(
        &format!("Are you sure you want to delete cluster {}? (y/n)", args.name),
        args.non_interactive,
    )?;
    let operation = client
        .delete_cluster(&args.name)
        .await
        .map_err(|error| Failure::from_error(&error))?;
    output::note(&format!("Deletion of {} in progress", args.name));
    match operation {
        Some(operation) if args.wait => operations::follow(&client, &operation).await,
        _ => Ok(()),
    }
}

/// `stolos get-credentials NAME`
pub(crate) async fn credentials(args: &Credentials) -> Result<(), Failure> {
    let config = pks_client()
        .await?
        .bind(&args.name)
        .await
        .map_err(|error| Failure::from_error(&error))?;
    if args.json {
        return output::json(&config);
    }
    output::note(&format!("\nFetching credentials for cluster {}.", args.name));
    kubeconfig::merge_into_file(&kubeconfig::path()?, &config)?;
    output::note(&format!(
        "Context set for cluster {}.\n\nYou can now switch between clusters by using:\n$kubectl config use-context <cluster-name>",
        args.name
    ));
    Ok(())
}

/// Asks on the terminal, or takes the answer from a pipe, as scripts of PKS users give it.
pub(crate) fn confirm(question: &str, skip: bool) -> Result<(), Failure> {
    if skip {
        return Ok(());
    }
    let mut err = anstream::stderr().lock();
    let _ = write!(err, "{question} ");
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

/// Tags as they are typed; the server says what is wrong with them.
pub(crate) fn tags(text: &str) -> Vec<ClusterTag> {
    text.split(',')
        .filter(|tag| !tag.trim().is_empty())
        .map(|tag| {
            let (name, value) = tag.split_once(':').unwrap_or((tag, ""));
            ClusterTag {
                name: name.trim().to_owned(),
                value: value.trim().to_owned(),
                category: None,
            }
        })
        .collect()
}

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
        ("Last Action Description", cluster.last_action_description.clone()),
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
