//! What the director keeps: tasks that are to end early, configs, disks without an instance.

use super::clusters::confirm;
use super::deployments::{client, failed, follow};
use crate::args::{CancelDirectorTask, Configs, DeleteConfig, DeleteDisk, Json};
use crate::failure::Failure;
use crate::{output, program_name};

/// `stolos cancel-director-task ID`
pub(crate) async fn cancel(args: &CancelDirectorTask) -> Result<(), Failure> {
    let client = client().await?;
    client.cancel_task(i64::from(args.id)).await.map_err(failed)?;
    output::note(&format!(
        "Task {} is asked to end; follow it with `{} director-tasks {}`.",
        args.id,
        program_name(),
        args.id
    ));
    Ok(())
}

/// `stolos configs TYPE`
pub(crate) async fn configs(args: &Configs) -> Result<(), Failure> {
    let configs = client().await?.configs(&args.kind).await.map_err(failed)?;
    if args.json {
        return output::json(&configs);
    }
    let rows: Vec<Vec<String>> = configs
        .iter()
        .map(|config| {
            vec![
                config.id.clone(),
                config.kind.clone(),
                config.name.clone(),
                config.created_at.clone(),
            ]
        })
        .collect();
    output::data(&output::table(&["ID", "Type", "Name", "Created At"], &rows));
    Ok(())
}

/// `stolos delete-config TYPE NAME`
pub(crate) async fn delete_config(args: &DeleteConfig) -> Result<(), Failure> {
    let client = client().await?;
    confirm(
        &format!(
            "Are you sure you want to delete the {} config {}? (y/n)",
            args.kind, args.name
        ),
        args.non_interactive,
    )?;
    client
        .delete_config(&args.kind, &args.name)
        .await
        .map_err(failed)?;
    output::note(&format!("Config {}/{} deleted", args.kind, args.name));
    Ok(())
}

/// `stolos orphaned-disks`
pub(crate) async fn orphaned_disks(args: &Json) -> Result<(), Failure> {
    let disks = client().await?.orphaned_disks().await.map_err(failed)?;
    if args.json {
        return output::json(&disks);
    }
    let rows: Vec<Vec<String>> = disks
        .iter()
        .map(|disk| {
            vec![
                disk.disk_cid.clone(),
                format!("{} MiB", disk.size),
                disk.deployment_name.clone(),
                disk.instance_name.clone(),
                disk.orphaned_at.clone(),
            ]
        })
        .collect();
    output::data(&output::table(
        &["Disk CID", "Size", "Deployment", "Instance", "Orphaned At"],
        &rows,
    ));
    Ok(())
}

/// `stolos delete-disk CID`
pub(crate) async fn delete_disk(args: &DeleteDisk) -> Result<(), Failure> {
    let client = client().await?;
    confirm(
        &format!(
            "Are you sure you want to delete disk {} and what is on it? (y/n)",
            args.cid
        ),
        args.non_interactive,
    )?;
    let task = client.delete_disk(&args.cid).await.map_err(failed)?;
    if args.wait {
        return follow(&client, task).await;
    }
    output::note(&format!("Task {task}"));
    Ok(())
}
