//! Everything that is not well with deployments: machines in doubt, machines that answer and whose jobs are not well, changes that did not come to their end.
//!
//! Every member of an installation hears all heartbeats, so each gives the same list; what did not come to its end is in the database.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use stolos_api::director::MachineProblem as Problem;
use stolos_base::ids::AgentId;
use stolos_base::text;

use crate::app::App;
use crate::db::health::{self as rows, Unfinished, Unwell};
use crate::error::Result;
use crate::states;

/// Who was not heard for so long says nothing of how its jobs are now; the monitor is about it.
const FRESH: Duration = Duration::from_secs(60);
/// Jobs that fail for less may just be starting.
const FAILING_AFTER: Duration = Duration::from_secs(30);
/// Machines and deployments that are shown at most of each kind.
const MOST: usize = 500;
/// Characters of a task's result that are shown.
const RESULT: usize = 300;

/// The list, machines in doubt first.
pub(crate) async fn all(app: &App) -> Result<Vec<Problem>> {
    let mut problems = app.health.problems();
    let doubted: BTreeSet<String> = problems.iter().map(|problem| problem.id.clone()).collect();
    let unwell = app.states.unwell();
    let now = Instant::now();
    let agents: Vec<AgentId> = unwell
        .iter()
        .filter(|(_, one)| now.duration_since(one.at) < FRESH)
        .map(|(agent, _)| *agent)
        .take(MOST)
        .collect();
    for row in rows::instances_of(&app.db, &agents).await? {
        let said = unwell.iter().find(|(agent, _)| *agent == row.agent);
        if let Some((_, said)) = said.filter(|_| !doubted.contains(&row.instance)) {
            problems.extend(of_machine(&row, said, now));
        }
    }
    let doubted: BTreeSet<String> = problems
        .iter()
        .map(|problem| problem.deployment.clone())
        .collect();
    let unfinished = rows::unfinished(&app.db, i64::try_from(MOST).unwrap_or(i64::MAX)).await?;
    let now = app.db.clock().now_millis();
    problems.extend(
        unfinished
            .iter()
            .filter(|one| !doubted.contains(&one.deployment))
            .map(|one| of_deployment(one, now)),
    );
    Ok(problems)
}

fn of_machine(row: &Unwell, said: &states::Unwell, now: Instant) -> Vec<Problem> {
    let problem = |since: u64, why: String, next: Option<String>| Problem {
        deployment: row.deployment.clone(),
        instance: format!("{}/{}", row.group, row.index),
        id: row.instance.clone(),
        agent_id: Some(row.agent.to_string()),
        cid: row.cid.clone(),
        state: "failing".to_owned(),
        since,
        why,
        waiting_on: None,
        next,
        task: None,
    };
    if !said.problems.is_empty() {
        let told = said.problems.iter().map(|one| {
            problem(
                one.since_s,
                format!("{}: {}", one.source, one.text),
                one.next.clone(),
            )
        });
        return told.collect();
    }
    // An agent that does not say what fails.
    let since = said.failing_since.map(|since| now.duration_since(since));
    let since = since.filter(|since| *since >= FAILING_AFTER);
    since
        .map(|since| {
            let next = "`stolos instances DEPLOYMENT` shows its jobs".to_owned();
            problem(since.as_secs(), "its jobs do not stay up".to_owned(), Some(next))
        })
        .into_iter()
        .collect()
}

fn of_deployment(one: &Unfinished, now: i64) -> Problem {
    let (since, why, task) = match &one.task {
        None => (0, "its last change did not come to its end".to_owned(), None),
        Some((id, state, ended_at, result)) => {
            let said = text::line(result);
            let said = text::clip(&said, RESULT);
            let why = if said.is_empty() {
                format!(
                    "its last change did not come to its end: task {id} is {}",
                    state.as_str()
                )
            } else {
                format!(
                    "its last change did not come to its end: task {id} is {}: {said}",
                    state.as_str()
                )
            };
            let since = u64::try_from(now.saturating_sub(*ended_at) / 1000).unwrap_or(0);
            (since, why, Some(*id))
        }
    };
    Problem {
        deployment: one.deployment.clone(),
        instance: String::new(),
        id: String::new(),
        agent_id: None,
        cid: None,
        state: "unfinished".to_owned(),
        since,
        why,
        waiting_on: None,
        next: Some("mend what the task says and ask for the change again; the same manifest goes on where it stopped".to_owned()),
        task,
    }
}
