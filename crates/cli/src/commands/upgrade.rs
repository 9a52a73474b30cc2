//! Upgrades of clusters, and the tasks that they run as.

use std::collections::BTreeMap;
use std::time::Duration;

use stolos_api::pks::{CheckKind, Client, LastActionState, PreCheck, TaskInfo, TaskStatus, UpgradeClusters};

use super::certificates;
use super::clusters::{confirm, known};
use super::login::pks_client;
use super::patience::{Patience, WAIT};
use crate::args::{Going, Id, Task, Tasks, UpgradeMany, UpgradeOne};
use crate::failure::Failure;
use crate::{output, program_name};

/// `stolos upgrade-cluster NAME`
pub(crate) async fn one(args: &UpgradeOne) -> Result<(), Failure> {
    if args.pre_check {
        let client = pks_client().await?;
        let found = client
            .pre_check(&args.name)
            .await
            .map_err(|error| Failure::of_api(&error))?;
        for line in looked_at(&found) {
            if args.going.json {
                output::note(&line);
            } else {
                output::data(&line);
            }
        }
        judge_check(&found)?;
    }
    let request = UpgradeClusters {
        clusters: vec![args.name.clone()],
        nodes_parallel: args.nodes_parallel,
        ..UpgradeClusters::default()
    };
    run(&request, &args.going).await
}

/// What the pre-check looked at, with what ends soon; PKS's words where they are known (pks.md, section 1.6).
fn looked_at(found: &PreCheck) -> Vec<String> {
    let mut lines: Vec<String> = found
        .checks
        .iter()
        .map(|check| format!("Validating {}.", words(check.kind).0))
        .collect();
    if !found.ends_soon.is_empty() {
        lines.push("The following certificates end within 180 days:".to_owned());
        lines.extend(found.ends_soon.iter().map(|certificate| {
            let name = certificates::shown_name(&program_name(), &certificate.name);
            format!("  {name} ({} days left)", certificate.days_left)
        }));
    }
    lines
}

/// What is validated, what is said of it when it is not well, and the check's name.
fn words(kind: CheckKind) -> (&'static str, &'static str, &'static str) {
    match kind {
        CheckKind::Certificates => (
            "cluster certificates",
            "The following certificates have expired. Rotate them with `rotate-certificates --all`.",
            "certificate status",
        ),
        CheckKind::Processes => (
            "cluster VM processes",
            "Processes on the following VMs are not running. Use the BOSH CLI to investigate.",
            "VM process status",
        ),
        CheckKind::Storage => (
            "cluster VM storage",
            "Storage on the following VMs is full. Use the BOSH CLI to investigate.",
            "VM storage status",
        ),
    }
}

fn judge_check(found: &PreCheck) -> Result<(), Failure> {
    let failed: Vec<_> = found.checks.iter().filter(|check| !check.passed).collect();
    if failed.is_empty() {
        return Ok(());
    }
    for check in &failed {
        output::note(&format!(
            "Error: {}\n  {}",
            words(check.kind).1,
            check.problems.join("\n  ")
        ));
    }
    let names: Vec<_> = failed.iter().map(|check| words(check.kind).2).collect();
    Err(Failure::user(format!(
        "upgrade pre-check failure: {}",
        names.join(", ")
    )))
}

/// `stolos upgrade-clusters`
pub(crate) async fn many(args: &UpgradeMany) -> Result<(), Failure> {
    let named = |names: &[String]| -> Vec<String> {
        let names = names.iter().map(|name| name.trim().to_owned());
        names.filter(|name| !name.is_empty()).collect()
    };
    let request = UpgradeClusters {
        clusters: named(&args.clusters),
        canaries: Some(named(&args.canaries)).filter(|names| !names.is_empty()),
        max_in_flight: Some(args.max_in_flight),
        nodes_parallel: None,
    };
    run(&request, &args.going).await
}

fn is_up_to_date(error: &stolos_api::Error) -> bool {
    let code = error.refusal().and_then(|refusal| refusal.code.as_deref());
    code == Some(stolos_api::pks::UP_TO_DATE)
}

async fn run(request: &UpgradeClusters, going: &Going) -> Result<(), Failure> {
    let client = pks_client().await?;
    let mut names: Vec<&str> = Vec::new();
    for name in request.canaries.iter().flatten().chain(&request.clusters) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    for name in &names {
        known(&client, name).await?;
    }
    if !going.non_interactive {
        output::note(&format!(
            "You are about to upgrade {}.\nWarning: This operation might be long running and might block further operations on the cluster(s) until complete",
            listed(&names)
        ));
    }
    confirm("Continue? (y/n):", going.non_interactive)?;
    let task = match client.upgrade_clusters(request).await {
        // What was wanted is so already: a script that runs again goes on.
        Err(error) if names.len() == 1 && is_up_to_date(&error) => {
            output::note(&error.to_string());
            if going.json {
                let cluster = client.cluster(names[0]).await;
                output::json(&cluster.map_err(|error| Failure::of_api(&error))?)?;
            }
            return Ok(());
        }
        other => other.map_err(|error| Failure::of_api(&error))?,
    };
    if !going.json {
        output::data(&format!("Your taskID for the upgrade task is: {}", task.uuid));
    }
    if !going.wait {
        if going.json {
            return output::json(&task);
        }
        output::data(&format!(
            "\nUse '{} task {}' to monitor the upgrade",
            program_name(),
            task.uuid
        ));
        return Ok(());
    }
    let ended = follow(&client, &task.uuid, going.json).await?;
    if going.json {
        output::json(&ended)?;
    } else {
        output::data(&format!(
            "Upgrade task {} is {}.",
            ended.uuid,
            ended.status.as_str()
        ));
    }
    judge(&ended)
}

/// `a, b and c`
fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// Follows a task to its end. Ctrl-C ends the following only.
async fn follow(client: &Client, id: &str, quiet: bool) -> Result<TaskInfo, Failure> {
    let following = async {
        let mut patience = Patience::new(client);
        let mut told: BTreeMap<String, LastActionState> = BTreeMap::new();
        loop {
            let task = patience.ask(async |client| client.task(id, WAIT).await).await?;
            for line in news(&task, &mut told) {
                if !quiet {
                    output::data(&line);
                }
            }
            if task.status.is_final() {
                return Ok(task);
            }
        }
    };
    tokio::select! {
        result = following => result,
        _ = tokio::signal::ctrl_c() => Err(Failure::left("upgrade")
            .hint(format!("See how far it is with `{} task {id}`.", program_name()))),
    }
}

/// A line for each cluster whose upgrade has begun or ended since the last look.
fn news(task: &TaskInfo, told: &mut BTreeMap<String, LastActionState>) -> Vec<String> {
    let mut lines = Vec::new();
    for cluster in &task.clusters {
        let (name, state) = (&cluster.cluster_name, cluster.last_action_state);
        let before = told.insert(name.clone(), state);
        if before == Some(state) || state == LastActionState::Queued {
            continue;
        }
        if before.is_none_or(|before| before == LastActionState::Queued) {
            lines.push(format!("Started upgrading cluster: {name}"));
        }
        match state {
            LastActionState::Succeeded => lines.push(format!("Finished upgrading cluster: {name}")),
            LastActionState::Failed => {
                let why = cluster.error.as_deref().unwrap_or("no cause was given");
                lines.push(format!("Upgrading cluster failed: {name}: {why}"));
            }
            LastActionState::Queued | LastActionState::InProgress => {}
        }
    }
    lines
}

/// A task that ended is a success when all its clusters are.
fn judge(task: &TaskInfo) -> Result<(), Failure> {
    let failed: Vec<&str> = task
        .clusters
        .iter()
        .filter(|cluster| cluster.last_action_state != LastActionState::Succeeded)
        .map(|cluster| cluster.cluster_name.as_str())
        .collect();
    match (task.status, failed.is_empty()) {
        (TaskStatus::Done, true) => Ok(()),
        (TaskStatus::Canceled, _) => Err(Failure::user(format!(
            "the upgrade ended early; not upgraded: {}",
            failed.join(", ")
        ))),
        _ => Err(Failure::user(format!("not upgraded: {}", failed.join(", ")))),
    }
}

/// `stolos task ID`
pub(crate) async fn show(args: &Task) -> Result<(), Failure> {
    let task = pks_client()
        .await?
        .task(&args.id, Duration::ZERO)
        .await
        .map_err(|error| Failure::of_api(&error))?;
    if args.json {
        return output::json(&task);
    }
    output::data(&text(&task));
    Ok(())
}

fn text(task: &TaskInfo) -> String {
    let time = |time: &Option<String>| time.clone().unwrap_or_else(|| "---".to_owned());
    let rows: Vec<Vec<String>> = task
        .clusters
        .iter()
        .map(|cluster| {
            vec![
                cluster.cluster_name.clone(),
                cluster.last_action_state.as_str().to_owned(),
                time(&cluster.start_time),
                time(&cluster.end_time),
                cluster.is_canary.to_string(),
            ]
        })
        .collect();
    format!(
        "Your upgrade task is: {}\n\n{}",
        task.status.as_str(),
        output::table(&["Name", "Status", "Start time", "End time", "isCanary"], &rows)
    )
}

/// `stolos tasks`
pub(crate) async fn list(args: &Tasks) -> Result<(), Failure> {
    let tasks = pks_client()
        .await?
        .tasks(args.limit)
        .await
        .map_err(|error| Failure::of_api(&error))?;
    if args.json {
        return output::json(&tasks);
    }
    let time = |time: &Option<String>| time.clone().unwrap_or_else(|| "---".to_owned());
    let rows: Vec<Vec<String>> = tasks
        .iter()
        .map(|task| {
            let names: Vec<&str> = task.clusters.iter().map(|c| c.cluster_name.as_str()).collect();
            vec![
                task.uuid.clone(),
                task.kind.as_str().to_owned(),
                task.status.as_str().to_owned(),
                time(&task.start_time),
                time(&task.end_time),
                names.join(","),
            ]
        })
        .collect();
    output::data(&output::table(
        &["ID", "Type", "Status", "Start time", "End time", "Clusters"],
        &rows,
    ));
    Ok(())
}

/// `stolos cancel-task ID`
pub(crate) async fn cancel(args: &Id) -> Result<(), Failure> {
    pks_client()
        .await?
        .cancel_task(&args.id)
        .await
        .map_err(|error| Failure::of_api(&error))?;
    output::note(&format!(
        "Task {} was asked to stop: clusters whose turn has not come are left alone, those that are being upgraded end in their own time.",
        args.id
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn task(status: &str, states: [&str; 2]) -> TaskInfo {
        serde_json::from_value(json!({"uuid": "u", "type": "UPGRADE", "status": status, "start_time": "2026-01-01T00:00:00Z", "end_time": null,
            "clusters": [
                {"cluster_name": "one", "last_action": "UPGRADE", "last_action_state": states[0], "start_time": "2026-01-01T00:00:00Z",
                 "end_time": null, "is_canary": true},
                {"cluster_name": "two", "last_action": "UPGRADE", "last_action_state": states[1], "start_time": null, "end_time": null,
                 "is_canary": false, "error": "no disk"}]}))
        .expect("a task")
    }

    #[test]
    fn a_task_is_shown_as_pks_showed_it() {
        insta::assert_snapshot!(text(&task("in progress", ["in progress", "queued"])), @r"
        Your upgrade task is: in progress

        Name  Status       Start time            End time  isCanary
        one   in progress  2026-01-01T00:00:00Z  ---       true
        two   queued       ---                   ---       false
        ");
        assert_eq!(listed(&["a", "b", "c"]), "a, b and c");
    }

    #[test]
    fn a_pre_check_says_what_stands_against_an_upgrade() {
        let found = |storage: bool| -> PreCheck {
            let problems = if storage {
                json!([])
            } else {
                json!(["worker/0: the persistent disk is 100 % full"])
            };
            serde_json::from_value(json!({"checks": [
                {"check": "certificates", "passed": true, "problems": []},
                {"check": "storage", "passed": storage, "problems": problems}],
                "ends_soon": [{"name": "/x/etcd", "type": "Leaf", "days_left": 9, "valid_until": "2030-01-01T00:00:00Z"}]}))
            .expect("a pre-check")
        };
        assert_eq!(
            looked_at(&found(true)),
            [
                "Validating cluster certificates.",
                "Validating cluster VM storage.",
                "The following certificates end within 180 days:",
                "  /x/etcd (9 days left)",
            ]
        );
        assert!(judge_check(&found(true)).is_ok());
        let failure = judge_check(&found(false)).expect_err("a full disk");
        assert_eq!(
            failure.to_string(),
            "Error: upgrade pre-check failure: VM storage status"
        );
    }

    #[test]
    fn news_come_once() {
        let mut told = BTreeMap::new();
        assert_eq!(
            news(&task("in progress", ["in progress", "queued"]), &mut told),
            ["Started upgrading cluster: one"]
        );
        let last = task("done", ["succeeded", "failed"]);
        assert_eq!(
            news(&last, &mut told),
            [
                "Finished upgrading cluster: one",
                "Started upgrading cluster: two",
                "Upgrading cluster failed: two: no disk"
            ]
        );
        assert!(news(&last, &mut told).is_empty());
        assert!(judge(&last).is_err());
        assert!(judge(&task("done", ["succeeded", "succeeded"])).is_ok());
        assert!(judge(&task("canceled", ["succeeded", "queued"])).is_err());
    }
}
