//! What a flow is doing, since when, and what it waits for.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use stolos_base::ids::FlowId;
use stolos_store::{Db, Row as _, query};

use crate::error::{Error, Result};
use crate::journal;
use crate::kind::{Failure, FlowInfo, FlowState};

/// The longest page of a list.
const PAGE_LIMIT: u32 = 500;

/// How a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepState {
    /// Not begun.
    Waiting,
    /// Begun; also while its process is dead and nobody has taken the flow up.
    Running,
    /// Ended well.
    Done,
    /// Not needed.
    Skipped,
    /// Ended badly.
    Failed,
    /// Interrupted by a cancel.
    Canceled,
}

impl StepState {
    const ALL: [Self; 6] = [
        Self::Waiting,
        Self::Running,
        Self::Done,
        Self::Skipped,
        Self::Failed,
        Self::Canceled,
    ];

    /// Whether later steps may begin.
    #[must_use]
    pub fn is_past(self) -> bool {
        matches!(self, Self::Done | Self::Skipped)
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Done => "done",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// A flow without its steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowSummary {
    /// Which flow.
    #[serde(flatten)]
    pub info: FlowInfo,
    /// Its place in the order of submission; the position in lists.
    pub seq: i64,
    /// How it stands.
    pub state: FlowState,
    /// Whether somebody asked to cancel it.
    pub cancel_requested: bool,
    /// When it was first begun, in milliseconds since the Unix epoch.
    pub started_at: Option<i64>,
    /// When it ended, in milliseconds since the Unix epoch.
    pub ended_at: Option<i64>,
    /// Why it has failed.
    pub failure: Option<Failure>,
}

/// A flow with its steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowView {
    /// The flow.
    #[serde(flatten)]
    pub summary: FlowSummary,
    /// What the whole flow waits for: an earlier flow, the database. Empty when it goes on.
    pub waiting_on: Vec<String>,
    /// All steps in the order of the graph; empty before the flow was first taken up.
    pub steps: Vec<StepView>,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepView {
    /// Its name.
    pub name: String,
    /// Its heading.
    pub stage: Option<String>,
    /// How it stands.
    pub state: StepState,
    /// The attempts made in the present or last life of its process.
    pub attempts: u32,
    /// When it last began, in milliseconds since the Unix epoch.
    pub began_at: Option<i64>,
    /// When it ended, in milliseconds since the Unix epoch.
    pub ended_at: Option<i64>,
    /// What a running step said last that it is doing.
    pub progress: Option<String>,
    /// Why it failed or was skipped; why the last attempt failed while it is retried.
    pub note: Option<String>,
    /// What a waiting step waits for: steps, and limits with their present holders.
    pub waiting_on: Vec<String>,
    /// What a done step gave, as JSON.
    pub output: Option<serde_json::Value>,
}

impl FlowView {
    /// The step of that name.
    #[must_use]
    pub fn step(&self, name: &str) -> Option<&StepView> {
        self.steps.iter().find(|step| step.name == name)
    }

    /// How the flow stands.
    #[must_use]
    pub fn state(&self) -> FlowState {
        self.summary.state
    }
}

/// Which flows to list, newest first.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only those about this.
    pub subject: Option<String>,
    /// Only those that have not ended.
    pub unfinished: bool,
    /// Only those with a smaller [`FlowSummary::seq`]: the last one of the page before.
    pub before: Option<i64>,
    /// At most so many; 0 is the largest page (500).
    pub limit: u32,
}

const COLUMNS: &str =
    "id, seq, kind, subject, created_at, cancel_requested_at, state, started_at, ended_at, failure";

pub(crate) async fn list(db: &Db, filter: &Filter) -> Result<Vec<FlowSummary>> {
    let limit = match filter.limit {
        0 => PAGE_LIMIT,
        limit => limit.min(PAGE_LIMIT),
    };
    // The text is put together from constants only.
    let mut sql = format!("SELECT {COLUMNS} FROM flow_flows WHERE seq < $1");
    if filter.unfinished {
        sql.push_str(" AND state IN ('pending', 'running')");
    }
    if filter.subject.is_some() {
        sql.push_str(" AND subject = $3");
    }
    sql.push_str(" ORDER BY seq DESC LIMIT $2");
    let mut list = query(stolos_store::AssertSqlSafe(sql))
        .bind(filter.before.unwrap_or(i64::MAX))
        .bind(i64::from(limit));
    if let Some(subject) = &filter.subject {
        list = list.bind(subject);
    }
    list.fetch_all(db.read()).await?.iter().map(summary).collect()
}

/// The flows with their steps, in no order.
pub(crate) async fn find(db: &Db, ids: &[FlowId]) -> Result<Vec<FlowView>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let these = journal::placeholders(1, ids.len());
    // The texts are put together from constants and numbers only.
    let flows = format!("SELECT {COLUMNS} FROM flow_flows WHERE id IN ({these})");
    let steps = format!(
        "SELECT flow, name, stage, state, attempts, began_at, ended_at, output, note
         FROM flow_steps WHERE flow IN ({these}) ORDER BY flow, position, name"
    );
    let mut flows = query(stolos_store::AssertSqlSafe(flows));
    let mut steps = query(stolos_store::AssertSqlSafe(steps));
    for id in ids {
        flows = flows.bind(id.to_string());
        steps = steps.bind(id.to_string());
    }
    let mut views = HashMap::with_capacity(ids.len());
    for row in flows.fetch_all(db.read()).await? {
        let summary = summary(&row)?;
        let view = FlowView {
            waiting_on: Vec::new(),
            steps: Vec::new(),
            summary,
        };
        views.insert(view.summary.info.id.to_string(), view);
    }
    for row in steps.fetch_all(db.read()).await? {
        let flow: String = row.try_get("flow")?;
        // One that began its steps between the two queries has none yet here.
        if let Some(view) = views.get_mut(&flow) {
            view.steps.push(step(&row, &flow, view.summary.info.id)?);
        }
    }
    Ok(views.into_values().collect())
}

fn step(row: &stolos_store::AnyRow, flow: &str, id: FlowId) -> Result<StepView> {
    let output = row
        .try_get::<Option<String>, _>("output")?
        .map(|output| serde_json::from_str(&output))
        .transpose()
        .map_err(|source| Error::Json {
            what: "an output",
            flow: id,
            source,
        })?;
    Ok(StepView {
        name: row.try_get("name")?,
        stage: row.try_get("stage")?,
        state: journal::step_state(row, flow)?,
        attempts: u32::try_from(row.try_get::<i64, _>("attempts")?).unwrap_or(u32::MAX),
        began_at: row.try_get("began_at")?,
        ended_at: row.try_get("ended_at")?,
        progress: None,
        note: row.try_get("note")?,
        waiting_on: Vec::new(),
        output,
    })
}

fn summary(row: &stolos_store::AnyRow) -> Result<FlowSummary> {
    let info = journal::info(row)?;
    let failure = row
        .try_get::<Option<String>, _>("failure")?
        .map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|source| Error::Json {
            what: "the failure",
            flow: info.id,
            source,
        })?;
    Ok(FlowSummary {
        info,
        seq: row.try_get("seq")?,
        state: journal::state(row)?,
        cancel_requested: row.try_get::<Option<i64>, _>("cancel_requested_at")?.is_some(),
        started_at: row.try_get("started_at")?,
        ended_at: row.try_get("ended_at")?,
        failure,
    })
}
