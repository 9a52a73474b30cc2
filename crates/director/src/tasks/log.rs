//! The event lines of one task (bosh.md section 1.4), from what its flow does. Knows what was said already, so that a
//! flow that goes on after a restart says nothing twice.

use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;

use stolos_api::director::{Event, EventData, EventError, EventState};
use stolos_flow::EventKind;

use crate::redact::Redactor;

/// Weights of what happens while an instance is updated, as upstream has them.
const WEIGHTS: &[(&str, u8)] = &[
    ("installing packages", 10),
    ("configuring jobs", 10),
    ("executing pre-stop", 5),
    ("executing drain", 5),
    ("skipped pre-stop & drain", 10),
    ("stopping jobs", 20),
    ("executing post-stop", 10),
    ("executing pre-start", 10),
    ("starting jobs", 20),
    ("executing post-start", 10),
];

/// One line that people see; several steps of a flow may share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) stage: String,
    pub(crate) tags: Vec<String>,
    pub(crate) task: String,
    /// Number in the stage, from 1.
    pub(crate) index: u64,
    pub(crate) total: u64,
    /// Whether the step is the last of those that share the line.
    pub(crate) closes: bool,
}

type Key = (String, Vec<String>, String);

/// What was said of a task.
#[derive(Debug, Default)]
pub(crate) struct Log {
    pub(crate) redactor: Redactor,
    steps: HashMap<String, Line>,
    started: IndexMap<Key, Line>,
    ended: HashSet<Key>,
    statuses: HashSet<(Key, String)>,
    percent: HashMap<Key, u8>,
    closed: bool,
}

impl Line {
    /// A line of its own.
    pub(crate) fn new(stage: &str, task: impl Into<String>) -> Self {
        Self {
            stage: stage.to_owned(),
            tags: Vec::new(),
            task: task.into(),
            index: 1,
            total: 1,
            closes: true,
        }
    }

    fn key(&self) -> Key {
        (self.stage.clone(), self.tags.clone(), self.task.clone())
    }

    fn event(&self, state: EventState, progress: u8, time: i64) -> Event {
        Event {
            time,
            stage: Some(self.stage.clone()),
            tags: Some(self.tags.clone()),
            total: Some(self.total),
            task: Some(self.task.clone()),
            index: Some(self.index),
            state: Some(state),
            progress: Some(progress),
            ..Event::default()
        }
    }
}

impl Log {
    /// A log that goes on after what was said in an earlier life.
    pub(crate) fn after(said: &str) -> Self {
        let mut log = Self::default();
        for event in said
            .lines()
            .filter_map(|line| serde_json::from_str::<Event>(line).ok())
        {
            log.closed |= event.error.is_some();
            let (Some(stage), Some(task), Some(state)) = (event.stage, event.task, event.state) else {
                continue;
            };
            let key = (stage, event.tags.unwrap_or_default(), task);
            match state {
                EventState::Started => {
                    let (stage, tags, task) = key.clone();
                    let line = Line {
                        stage,
                        tags,
                        task,
                        index: event.index.unwrap_or(1),
                        total: event.total.unwrap_or(1),
                        closes: true,
                    };
                    log.started.insert(key, line);
                }
                EventState::InProgress => {
                    log.percent.insert(key.clone(), event.progress.unwrap_or(0));
                    if let Some(status) = event.data.and_then(|data| data.status) {
                        log.statuses.insert((key, status));
                    }
                }
                EventState::Finished | EventState::Failed => {
                    log.ended.insert(key);
                }
            }
        }
        log
    }

    pub(crate) fn register(&mut self, lines: Vec<(String, Line)>) {
        self.steps.extend(lines);
    }

    pub(crate) fn started(&mut self, step: &str, time: i64) -> Vec<Event> {
        match self.steps.get(step).cloned() {
            Some(line) => self.start_line(&line, time),
            None => Vec::new(),
        }
    }

    pub(crate) fn finished(&mut self, step: &str, time: i64) -> Vec<Event> {
        match self.steps.get(step).cloned() {
            Some(line) if line.closes => self.finish_line(&line, time),
            _ => Vec::new(),
        }
    }

    pub(crate) fn failed(&mut self, step: &str, error: &str, time: i64) -> Vec<Event> {
        match self.steps.get(step).cloned() {
            Some(line) => self.fail_line(&line, error, time),
            None => Vec::new(),
        }
    }

    /// Ends every line that is still open: with an error, or well.
    pub(crate) fn close_all(&mut self, error: Option<&str>, time: i64) -> Vec<Event> {
        let open: Vec<Line> = self
            .started
            .iter()
            .filter(|(key, _)| !self.ended.contains(*key))
            .map(|(_, line)| line.clone())
            .collect();
        let end = |line: Line| match error {
            Some(error) => self.fail_line(&line, error, time),
            None => self.finish_line(&line, time),
        };
        open.into_iter().flat_map(end).collect()
    }

    pub(crate) fn start_line(&mut self, line: &Line, time: i64) -> Vec<Event> {
        if self.started.insert(line.key(), line.clone()).is_none() {
            vec![line.event(EventState::Started, 0, time)]
        } else {
            Vec::new()
        }
    }

    pub(crate) fn finish_line(&mut self, line: &Line, time: i64) -> Vec<Event> {
        if self.ended.insert(line.key()) {
            vec![line.event(EventState::Finished, 100, time)]
        } else {
            Vec::new()
        }
    }

    pub(crate) fn fail_line(&mut self, line: &Line, error: &str, time: i64) -> Vec<Event> {
        let mut lines = self.start_line(line, time);
        if self.ended.insert(line.key()) {
            let mut event = line.event(EventState::Failed, 100, time);
            event.data = Some(EventData {
                status: None,
                error: Some(self.redactor.redact(error)),
            });
            lines.push(event);
        }
        lines
    }

    /// Only what upstream shows becomes a line, and what an agent says while it is at it (`STATUS: LINE`); other progress is for views of the
    /// flow.
    pub(crate) fn progress(&mut self, step: &str, status: &str, time: i64) -> Vec<Event> {
        let Some(line) = self.steps.get(step).cloned() else {
            return Vec::new();
        };
        let (known, detail) = status
            .split_once(": ")
            .map_or((status, None), |(known, detail)| (known, Some(detail)));
        let Some((_, weight)) = WEIGHTS.iter().find(|(name, _)| *name == known) else {
            return Vec::new();
        };
        // The status itself has been counted when it began.
        let weight = if detail.is_none() { *weight } else { 0 };
        if !self.statuses.insert((line.key(), status.to_owned())) {
            return Vec::new();
        }
        let mut lines = self.start_line(&line, time);
        let percent = self.percent.entry(line.key()).or_default();
        let mut event = line.event(EventState::InProgress, *percent, time);
        *percent = percent.saturating_add(weight).min(100);
        event.data = Some(EventData {
            status: Some(status.to_owned()),
            error: None,
        });
        lines.push(event);
        lines
    }

    pub(crate) fn warning(&self, text: &str, time: i64) -> Event {
        Event {
            time,
            kind: Some("warning".to_owned()),
            message: Some(text.to_owned()),
            ..Event::default()
        }
    }

    /// The error that ends the task, once.
    pub(crate) fn end(&mut self, mut error: EventError, time: i64) -> Vec<Event> {
        if std::mem::replace(&mut self.closed, true) {
            return Vec::new();
        }
        error.message = self.redactor.redact(&error.message);
        vec![Event {
            time,
            error: Some(error),
            ..Event::default()
        }]
    }
}

/// A flow's event as a line of debug output.
pub(crate) fn debug_text(what: &EventKind) -> Option<String> {
    Some(match what {
        EventKind::FlowStarted { resumed, steps, done } => {
            let word = if *resumed { "resumed" } else { "began" };
            format!("{word}: {steps} steps, {done} of them done")
        }
        EventKind::StepStarted { step, .. } => format!("{step}: began"),
        EventKind::Progress { step, text } => format!("{step}: {text}"),
        EventKind::StepRetrying {
            step,
            attempt,
            error,
            pause_ms,
        } => {
            format!("{step}: attempt {attempt} failed, next in {pause_ms} ms: {error}")
        }
        EventKind::StepFinished { step, .. } => format!("{step}: done"),
        EventKind::StepSkipped { step, reason, .. } => format!("{step}: skipped: {reason}"),
        EventKind::StepFailed { step, error, .. } => format!("{step}: failed: {error}"),
        EventKind::StepCanceled { step, .. } => format!("{step}: cancelled"),
        EventKind::CancelRequested => "somebody asked to cancel".to_owned(),
        EventKind::Waiting { on } => format!("waiting for {on}"),
        EventKind::FlowEnded { .. } | EventKind::FlowLost => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_says_is_shown_beside_the_status_and_counted_once() {
        let mut log = Log::after("");
        log.register(vec![("s".to_owned(), Line::new("Updating instance", "worker/0"))]);
        let said = |events: Vec<Event>| -> Vec<(Option<u8>, String)> {
            let status = |event: Event| Some((event.progress, event.data?.status?));
            events.into_iter().filter_map(status).collect()
        };
        let first = said(log.progress("s", "executing drain", 1));
        let held = said(log.progress("s", "executing drain: pod a/b is held by a disruption budget", 2));
        assert_eq!(first.len(), 1);
        assert_eq!(held.len(), 1);
        assert_eq!(
            held[0].1,
            "executing drain: pod a/b is held by a disruption budget"
        );
        let next = said(log.progress("s", "executing drain: evicting pod a/b", 3));
        assert_eq!(held[0].0, next[0].0, "words do not move the percentage");
        assert!(said(log.progress("s", "something that upstream does not show", 4)).is_empty());
    }
}
