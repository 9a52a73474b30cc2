//! What happens, as it happens.

use serde::{Deserialize, Serialize};
use stolos_base::ids::FlowId;

use crate::kind::{Failure, FlowState};

/// Something that happened in a flow. Told after it was journalled; a listener that must not miss a change of state
/// uses [`crate::Kind::on_state`] instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The flow.
    pub flow: FlowId,
    /// The name of its kind.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// When, in milliseconds since the Unix epoch.
    pub at: i64,
    /// What.
    #[serde(flatten)]
    pub what: EventKind,
}

/// What can happen in a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// This process has taken the flow up.
    FlowStarted {
        /// It had been begun before, by an earlier life or another process, or has been told to go on.
        resumed: bool,
        /// All steps.
        steps: usize,
        /// Those already done or skipped.
        done: usize,
    },
    /// A step begins.
    StepStarted {
        /// Its name.
        step: String,
        /// Its heading.
        stage: Option<String>,
    },
    /// What a step is doing.
    Progress {
        /// Its name.
        step: String,
        /// In words.
        text: String,
    },
    /// An attempt failed; there will be another.
    StepRetrying {
        /// The step's name.
        step: String,
        /// The number of the failed attempt.
        attempt: u32,
        /// Why it failed.
        error: String,
        /// Until the next, in milliseconds.
        pause_ms: u64,
    },
    /// A step is done.
    StepFinished {
        /// Its name.
        step: String,
        /// Its heading.
        stage: Option<String>,
    },
    /// A step was not needed.
    StepSkipped {
        /// Its name.
        step: String,
        /// Its heading.
        stage: Option<String>,
        /// Why.
        reason: String,
    },
    /// A step has failed for good.
    StepFailed {
        /// Its name.
        step: String,
        /// Its heading.
        stage: Option<String>,
        /// Why.
        error: String,
    },
    /// A step was interrupted by a cancel.
    StepCanceled {
        /// Its name.
        step: String,
        /// Its heading.
        stage: Option<String>,
    },
    /// Somebody asked to cancel the flow.
    CancelRequested,
    /// The flow cannot go on for a reason outside of it (the database, mostly).
    Waiting {
        /// For what.
        on: String,
    },
    /// Another process has the flow now, because this one gave no sign of life for too long: whatever is kept for it here can go.
    FlowLost,
    /// The flow has ended.
    FlowEnded {
        /// How.
        state: FlowState,
        /// Why, when it has failed.
        failure: Option<Failure>,
    },
}

/// Is told every event of every flow that this process runs. Called by the executor itself, so it must be quick and
/// never block; slow listeners use [`crate::Flows::subscribe`].
pub trait Observer: Send + Sync {
    /// Something happened.
    fn on(&self, event: &Event);
}

impl<F: Fn(&Event) + Send + Sync> Observer for F {
    fn on(&self, event: &Event) {
        self(event);
    }
}
