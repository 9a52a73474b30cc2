//! Who holds the places of limits, and why a step does not begin. Pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::graph::Graph;
use crate::view::StepState;

/// Which keys hold a place of each group. A key holds one from the beginning of its first step until none of its steps
/// runs or is still to come.
pub(crate) struct Slots {
    held: Vec<HashSet<Arc<str>>>,
}

impl Slots {
    pub(crate) fn new(graph: &Graph, states: &[StepState]) -> Self {
        let blocked = blocked(graph, states);
        let mut begun: HashSet<(usize, &str)> = HashSet::new();
        let mut open: HashMap<(usize, &str), &Arc<str>> = HashMap::new();
        for (index, spec) in graph.steps.iter().enumerate() {
            for (group, key) in &spec.slots {
                match states[index] {
                    StepState::Running => {
                        begun.insert((*group, key));
                        open.insert((*group, key), key);
                    }
                    StepState::Done => {
                        begun.insert((*group, key));
                    }
                    StepState::Waiting if !blocked[index] => {
                        open.insert((*group, key), key);
                    }
                    _ => {}
                }
            }
        }
        let mut held = vec![HashSet::new(); graph.groups.len()];
        for ((group, key), shared) in open {
            if begun.contains(&(group, key)) {
                held[group].insert(shared.clone());
            }
        }
        Self { held }
    }

    pub(crate) fn free(&self, graph: &Graph, group: usize, key: &str) -> bool {
        self.held[group].contains(key) || self.held[group].len() < graph.groups[group].limit
    }

    pub(crate) fn take(&mut self, group: usize, key: &Arc<str>) {
        self.held[group].insert(key.clone());
    }
}

/// Steps that cannot run in this life because one before them failed or was canceled.
fn blocked(graph: &Graph, states: &[StepState]) -> Vec<bool> {
    let mut blocked = vec![false; graph.steps.len()];
    // Steps only come after steps added before them, so one pass is enough.
    for (index, spec) in graph.steps.iter().enumerate() {
        blocked[index] = spec
            .after
            .iter()
            .any(|&i| blocked[i] || matches!(states[i], StepState::Failed | StepState::Canceled));
    }
    blocked
}

/// What a waiting step waits for: steps, and limits with their present holders.
pub(crate) fn waiting_on(graph: &Graph, states: &[StepState], slots: &Slots, index: usize) -> Vec<String> {
    let spec = &graph.steps[index];
    let mut reasons: Vec<String> = spec
        .after
        .iter()
        .filter(|&&earlier| !states[earlier].is_past())
        .map(|&earlier| format!("step `{}`", graph.steps[earlier].name))
        .collect();
    for (group, key) in &spec.slots {
        if !slots.free(graph, *group, key) {
            let mut holders: Vec<&str> = slots.held[*group].iter().map(|key| &**key).collect();
            holders.sort_unstable();
            let group = &graph.groups[*group];
            reasons.push(format!(
                "limit `{}` of {}: {}",
                group.name,
                group.limit,
                holders.join(", ")
            ));
        }
    }
    reasons
}
