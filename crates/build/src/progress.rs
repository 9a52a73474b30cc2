//! How a build says what it is doing.

use std::time::Duration;

/// Something that happened. `what` names the artefact for people, for instance `upstream kubernetes-1.37`.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// It was there already.
    Found {
        /// The artefact.
        what: &'a str,
    },
    /// Another process makes it; this one waits for that.
    Waiting {
        /// The artefact.
        what: &'a str,
    },
    /// It was there but is damaged, so it is made again.
    Damaged {
        /// The artefact.
        what: &'a str,
        /// What is wrong with it.
        reason: &'a str,
    },
    /// It is being made from now on.
    Started {
        /// The artefact.
        what: &'a str,
    },
    /// What the making is at.
    Step {
        /// The artefact.
        what: &'a str,
        /// A few words.
        text: &'a str,
    },
    /// It was made.
    Made {
        /// The artefact.
        what: &'a str,
        /// How long it took.
        took: Duration,
    },
}

/// Takes events; called from several threads at once.
pub trait Progress: Send + Sync {
    /// Something happened.
    fn event(&self, event: &Event<'_>);
}

/// Ignores everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn event(&self, _event: &Event<'_>) {}
}
