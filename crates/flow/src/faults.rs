//! Faults that tests put into the executor; a program starts its flows without any.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use stolos_base::Class;

use crate::context::StepError;

/// What goes wrong, and what has been counted. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<State>);

#[derive(Debug, Default)]
struct State {
    plan: Plan,
    writes: AtomicU64,
    /// Steps whose single failure has happened.
    failed: Mutex<HashSet<String>>,
}

/// What is to go wrong.
#[derive(Clone, Debug, Default)]
pub enum Plan {
    /// Nothing; writes are only counted.
    #[default]
    Nothing,
    /// The process "dies" right before the journal write of this number (from 0): whatever was done before it has
    /// happened and is not recorded.
    CrashBefore(u64),
    /// The process "dies" right after the journal write of this number (from 0).
    CrashAfter(u64),
    /// This step fails for good, once, instead of being run.
    Fail(String),
    /// This step fails for good, once, after having been run: its effect has happened.
    FailAfter(String),
    /// Every step is run twice in a row.
    Repeat,
}

/// The process "dies" now.
#[derive(Debug)]
pub(crate) struct Crash;

impl Faults {
    /// The given plan, with nothing counted yet.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        Self(Arc::new(State {
            plan,
            ..State::default()
        }))
    }

    /// How many journal writes there were.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.0.writes.load(Ordering::SeqCst)
    }

    /// Called before each journal write; gives its number.
    pub(crate) fn before_write(&self) -> Result<u64, Crash> {
        let number = self.0.writes.fetch_add(1, Ordering::SeqCst);
        match self.0.plan {
            Plan::CrashBefore(at) if at == number => Err(Crash),
            _ => Ok(number),
        }
    }

    pub(crate) fn after_write(&self, number: u64) -> Result<(), Crash> {
        match self.0.plan {
            Plan::CrashAfter(at) if at == number => Err(Crash),
            _ => Ok(()),
        }
    }

    /// The failure that takes the place of running the step.
    pub(crate) fn instead_of(&self, step: &str) -> Option<StepError> {
        match &self.0.plan {
            Plan::Fail(name) if name == step => self.once(step),
            _ => None,
        }
    }

    /// The failure that takes the place of the step's success.
    pub(crate) fn after(&self, step: &str) -> Option<StepError> {
        match &self.0.plan {
            Plan::FailAfter(name) if name == step => self.once(step),
            _ => None,
        }
    }

    pub(crate) fn repeats(&self) -> bool {
        matches!(self.0.plan, Plan::Repeat)
    }

    fn once(&self, step: &str) -> Option<StepError> {
        let first = self
            .0
            .failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(step.to_owned());
        first.then(|| StepError::fatal(Class::Internal, "a fault of the test"))
    }
}
