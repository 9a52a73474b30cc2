//! What only the process that runs a flow knows: progress, attempts, and what everything waits for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::engine::Sink;
use crate::event::EventKind;
use crate::graph::Graph;
use crate::kind::FlowInfo;
use crate::slots::{self, Slots};
use crate::view::{FlowView, StepState};

/// What is known of a flow in this process beyond the journal.
pub(crate) struct Live {
    pub(crate) flow: Arc<FlowInfo>,
    sink: Arc<Sink>,
    pub(crate) graph: OnceLock<Arc<Graph>>,
    steps: Mutex<Vec<LiveStep>>,
    waiting_on: Mutex<Option<String>>,
}

#[derive(Clone)]
pub(crate) struct LiveStep {
    pub(crate) state: StepState,
    pub(crate) attempts: u32,
    pub(crate) progress: Option<String>,
    pub(crate) note: Option<String>,
}

impl Live {
    pub(crate) fn new(flow: Arc<FlowInfo>, sink: Arc<Sink>) -> Self {
        Self {
            flow,
            sink,
            graph: OnceLock::new(),
            steps: Mutex::default(),
            waiting_on: Mutex::default(),
        }
    }

    pub(crate) fn emit(&self, what: EventKind) {
        self.sink.emit(&self.flow, what);
    }

    pub(crate) fn steps(&self) -> MutexGuard<'_, Vec<LiveStep>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn with(&self, index: usize, change: impl FnOnce(&mut LiveStep)) {
        if let Some(step) = self.steps().get_mut(index) {
            change(step);
        }
    }

    pub(crate) fn attempt(&self, index: usize, number: u32) {
        self.with(index, |step| step.attempts = number);
    }

    pub(crate) fn progress(&self, index: usize, text: &str) {
        self.with(index, |step| step.progress = Some(text.to_owned()));
    }

    pub(crate) fn note(&self, index: usize, text: &str) {
        self.with(index, |step| step.note = Some(text.to_owned()));
    }

    /// What the step said or failed with last.
    pub(crate) fn last_words(&self, index: usize) -> Option<String> {
        let steps = self.steps();
        let step = steps.get(index)?;
        step.note.clone().or_else(|| step.progress.clone())
    }

    pub(crate) fn set_waiting_on(&self, what: Option<String>) {
        *self.waiting_on.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    /// Adds to a view from the journal what only this process knows.
    pub(crate) fn enrich(&self, view: &mut FlowView) {
        let waiting_on = self
            .waiting_on
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        view.waiting_on.extend(waiting_on);
        let Some(graph) = self.graph.get() else { return };
        let live = self.steps().clone();
        let states: Vec<StepState> = live.iter().map(|step| step.state).collect();
        let slots = Slots::new(graph, &states);
        let by_name: HashMap<&str, usize> = graph.names().zip(0..).collect();
        for step in &mut view.steps {
            let Some(&index) = by_name.get(step.name.as_str()) else {
                continue;
            };
            match (step.state, live.get(index)) {
                (StepState::Running, Some(live)) => {
                    step.attempts = live.attempts;
                    step.progress.clone_from(&live.progress);
                    step.note.clone_from(&live.note);
                }
                (StepState::Waiting, _) => step.waiting_on = slots::waiting_on(graph, &states, &slots, index),
                _ => {}
            }
        }
    }
}
