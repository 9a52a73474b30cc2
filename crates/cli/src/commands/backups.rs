//! Backups of clusters: taken, listed, verified, restored.

use std::sync::{Mutex, PoisonError};

use stolos_api::pks::{BackupRun, Client, ClusterBackup, ClusterBackups as Summary, LATEST, OperationState};

use super::clusters::confirm;
use super::login::pks_client;
use super::operations;
use super::patience::{Patience, WAIT};
use crate::args::{BackUpCluster, ClusterBackups, RestoreCluster, VerifyClusterBackup};
use crate::failure::Failure;
use crate::progress::{State, Steps, meanwhile};
use crate::{output, program_name};

/// `stolos backup-cluster NAME`
pub(crate) async fn take(args: &BackUpCluster) -> Result<(), Failure> {
    let client = pks_client().await?;
    let begun = client
        .back_up_cluster(&args.name)
        .await
        .map_err(|error| Failure::of_api(&error))?;
    let run = if args.wait {
        follow(&client, &begun.id).await?
    } else {
        begun
    };
    if args.json {
        output::json(&run)?;
    } else if let Some(backup) = &run.backup {
        output::data(backup);
    } else if !args.wait {
        output::note(&format!(
            "Backup of {} in progress; '{} cluster-backups' shows what comes of it",
            args.name,
            program_name()
        ));
    }
    match run.state {
        OperationState::Failed | OperationState::Cancelled => {
            let why = run.error.unwrap_or_else(|| "it was cancelled".to_owned());
            Err(Failure::user(format!(
                "there is no backup of {}: {why}",
                args.name
            )))
        }
        _ => Ok(()),
    }
}

/// Ctrl-C ends the following only.
async fn follow(client: &Client, id: &str) -> Result<BackupRun, Failure> {
    let following = async {
        let steps = Mutex::new(Steps::new());
        let mut patience = Patience::new(client);
        loop {
            let asked = patience.ask(async |client| client.backup_run(id, WAIT).await);
            let run = meanwhile(&steps, asked).await?;
            if let Some(doing) = &run.doing {
                let mut steps = steps.lock().unwrap_or_else(PoisonError::into_inner);
                steps.show("Back up", State::Running, Some(doing), None);
            }
            if run.state.is_final() {
                return Ok(run);
            }
        }
    };
    tokio::select! {
        result = following => result,
        _ = tokio::signal::ctrl_c() => Err(Failure::left("backup")
            .hint(format!("See what came of it with `{} cluster-backups`.", program_name()))),
    }
}

/// `stolos cluster-backups [NAME]`
pub(crate) async fn list(args: &ClusterBackups) -> Result<(), Failure> {
    let client = pks_client().await?;
    let failure = |error| Failure::of_api(&error);
    match &args.name {
        Some(name) => {
            let backups = client.cluster_backups(name).await.map_err(failure)?;
            if args.json {
                return output::json(&backups);
            }
            output::data(&backups_table(&backups));
        }
        None => {
            let all = client.backups_of_all().await.map_err(failure)?;
            if args.json {
                return output::json(&all);
            }
            output::data(&summary_table(&all));
        }
    }
    Ok(())
}

fn summary_table(all: &[Summary]) -> String {
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|one| {
            let state = match (one.running, &one.error) {
                (true, _) => "being taken".to_owned(),
                (false, Some(error)) => {
                    format!("failed {}: {error}", one.failed_at.as_deref().unwrap_or_default())
                }
                (false, None) if one.deleted => "the cluster is gone".to_owned(),
                (false, None) => String::new(),
            };
            vec![
                one.cluster.clone(),
                one.last_success.clone().unwrap_or_else(|| "never".to_owned()),
                one.last_backup.clone().unwrap_or_default(),
                state,
            ]
        })
        .collect();
    output::table(&["Cluster", "Last good", "Backup", "State"], &rows)
}

fn backups_table(backups: &[ClusterBackup]) -> String {
    let rows: Vec<Vec<String>> = backups
        .iter()
        .map(|backup| {
            vec![
                backup.id.clone(),
                backup.taken_at.clone().unwrap_or_default(),
                backup.kubernetes_version.clone().unwrap_or_default(),
                backup.revision.map(|n| n.to_string()).unwrap_or_default(),
                backup.size.map(|n| n.to_string()).unwrap_or_default(),
                match &backup.problem {
                    Some(problem) => problem.clone(),
                    None if backup.before_restore => "what was there before a restore".to_owned(),
                    None => String::new(),
                },
            ]
        })
        .collect();
    output::table(
        &["ID", "Taken", "Kubernetes", "Revision", "Bytes", "Remark"],
        &rows,
    )
}

/// `stolos verify-cluster-backup NAME [ID]`
pub(crate) async fn verify(args: &VerifyClusterBackup) -> Result<(), Failure> {
    let backup = pks_client()
        .await?
        .verify_cluster_backup(&args.name, &args.backup)
        .await
        .map_err(|error| Failure::of_api(&error))?;
    if args.json {
        return output::json(&backup);
    }
    output::data(&format!(
        "backup {} is whole: {} bytes, revision {}, SHA-256 {}",
        backup.id,
        backup.size.unwrap_or_default(),
        backup.revision.unwrap_or_default(),
        backup.sha256.unwrap_or_default()
    ));
    Ok(())
}

/// `stolos restore-cluster NAME --backup ID`
pub(crate) async fn restore(args: &RestoreCluster) -> Result<(), Failure> {
    let client = pks_client().await?;
    let failure = |error| Failure::of_api(&error);
    // Asked before the question, so that nobody confirms what a typing error would do.
    let cluster = client.cluster(&args.name).await.map_err(failure)?;
    let backups = client.cluster_backups(&args.name).await.map_err(failure)?;
    let found = if args.backup == LATEST {
        let newest = backups.iter().rev();
        newest
            .filter(|backup| !backup.before_restore)
            .find(|backup| backup.problem.is_none())
    } else {
        backups.iter().find(|backup| backup.id == args.backup)
    };
    let Some(found) = found else {
        return Err(
            Failure::user(format!("cluster {} has no backup {}", args.name, args.backup)).hint(format!(
                "`{} cluster-backups {}` lists those that it has.",
                program_name(),
                args.name
            )),
        );
    };
    let question = format!(
        "Everything in cluster {} becomes what it was at {} (UTC): what was made since then is lost, what was deleted comes back, and its API is away meanwhile. Are you sure? (y/n)",
        cluster.name,
        found.taken_at.as_deref().unwrap_or("the time of the backup")
    );
    confirm(&question, args.going.non_interactive)?;
    let operation = client
        .restore_cluster(&args.name, &found.id)
        .await
        .map_err(failure)?;
    operations::conclude(&client, &args.name, operation, &args.going).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_say_what_is_good_and_what_is_not() {
        let summary = |cluster: &str| Summary {
            cluster: cluster.to_owned(),
            cluster_uuid: "x".to_owned(),
            deleted: false,
            last_success: Some("2026-11-22T01:00:00Z".to_owned()),
            last_backup: Some("20261122T010000Z-1f2e".to_owned()),
            failed_at: None,
            error: None,
            running: false,
        };
        let never = Summary {
            last_success: None,
            last_backup: None,
            failed_at: Some("2026-11-22T02:00:00Z".to_owned()),
            error: Some("no leader".to_owned()),
            ..summary("broken")
        };
        let gone = Summary {
            deleted: true,
            ..summary("gone")
        };
        insta::assert_snapshot!(summary_table(&[summary("demo"), never, gone]), @r"
        Cluster  Last good             Backup                 State
        demo     2026-11-22T01:00:00Z  20261122T010000Z-1f2e
        broken   never                                        failed 2026-11-22T02:00:00Z: no leader
        gone     2026-11-22T01:00:00Z  20261122T010000Z-1f2e  the cluster is gone
        ");
        let backup = ClusterBackup {
            id: "20261122T010000Z-1f2e".to_owned(),
            cluster: Some("demo".to_owned()),
            cluster_uuid: "x".to_owned(),
            taken_at: Some("2026-11-22T01:00:00Z".to_owned()),
            kubernetes_version: Some("1.37.1".to_owned()),
            revision: Some(1234),
            size: Some(4_000_000),
            stored: 1_000_000,
            sha256: None,
            before_restore: true,
            problem: None,
        };
        insta::assert_snapshot!(backups_table(&[backup]), @r"
        ID                     Taken                 Kubernetes  Revision  Bytes    Remark
        20261122T010000Z-1f2e  2026-11-22T01:00:00Z  1.37.1      1234      4000000  what was there before a restore
        ");
    }
}
