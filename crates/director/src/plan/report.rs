//! A plan for people: what will be touched, in what order, why, and what it waits for.

use serde::{Deserialize, Serialize};

use super::types::Plan;

/// A plan for people; `Display` gives text, serde gives JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Name of the deployment.
    pub deployment: String,
    /// Number of the plan.
    pub generation: u64,
    /// One sentence: how many instances are created, changed, deleted and left alone.
    pub summary: String,
    /// What happens, in order.
    pub phases: Vec<Phase>,
}

/// Things that happen side by side, after everything in the phases before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// `Delete unneeded instances`, `Update etcd, zone z1, canaries (1 at once)` …
    pub name: String,
    /// What the phase waits for; empty for the first one.
    pub waits_for: String,
    /// What happens.
    pub lines: Vec<ReportLine>,
}

/// What happens to one thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportLine {
    /// `etcd/8c1f… (0)`.
    pub subject: String,
    /// `create machine`, `recreate machine`, `update` …
    pub action: String,
    /// Why.
    pub why: String,
    /// Zone, addresses, disks.
    pub details: String,
}

impl Plan {
    /// The plan for people.
    #[must_use]
    pub fn report(&self) -> Report {
        unimplemented!("arrives with the next commit")
    }
}
