//! What a step gets, and what it gives back when it fails.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::digest;
use serde::de::DeserializeOwned;
use stolos_base::ids::FlowId;
use stolos_base::{Class, Classify};
use stolos_store::Fence;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::event::EventKind;
use crate::graph::StepRef;
use crate::kind::FlowInfo;
use crate::live::Live;

/// The outputs of the steps that are done, by name.
pub(crate) type Outputs = Arc<RwLock<HashMap<Arc<str>, Arc<serde_json::Value>>>>;

/// What a step works with. Cheap to clone.
#[derive(Clone)]
pub struct StepContext {
    pub(crate) flow: Arc<FlowInfo>,
    pub(crate) step: Arc<str>,
    pub(crate) index: usize,
    pub(crate) attempt: u32,
    pub(crate) cancel: CancellationToken,
    pub(crate) outputs: Outputs,
    pub(crate) fence: Arc<Fence>,
    pub(crate) live: Arc<Live>,
}

impl StepContext {
    /// The flow that the step is part of.
    #[must_use]
    pub fn flow(&self) -> &FlowInfo {
        &self.flow
    }

    /// The flow's id.
    #[must_use]
    pub fn flow_id(&self) -> FlowId {
        self.flow.id
    }

    /// The step's name.
    #[must_use]
    pub fn step(&self) -> &str {
        &self.step
    }

    /// 1 for the first attempt in this life of the process.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Canceled when the step should return soon: the flow is canceled, the process stops, or the deadline has passed.
    /// Whatever it returns then counts if it is `Ok`; an error is taken as the interruption.
    #[must_use]
    pub fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Ends when the step should return soon; see [`StepContext::cancel`].
    pub async fn canceled(&self) {
        self.cancel.cancelled().await;
    }

    /// What the step is doing or waiting for right now, for people.
    pub fn progress(&self, text: impl Into<String>) {
        let text = text.into();
        self.live.progress(self.index, &text);
        self.live.emit(EventKind::Progress {
            step: self.step.to_string(),
            text,
        });
    }

    /// The output of an earlier step.
    ///
    /// # Errors
    /// When that step is not done (not in this step's past, or skipped).
    pub fn output<T: DeserializeOwned>(&self, step: &StepRef<T>) -> Result<T, StepError> {
        self.output_of(step.name())
    }

    /// The output of an earlier step, unless that was skipped.
    ///
    /// # Errors
    /// When it cannot be read as this type.
    pub fn output_if_done<T: DeserializeOwned>(&self, step: &StepRef<T>) -> Result<Option<T>, StepError> {
        self.find(step.name())
    }

    /// The output of an earlier step by name; prefer [`StepContext::output`].
    ///
    /// # Errors
    /// When that step is not done, or its output is of another type.
    pub fn output_of<T: DeserializeOwned>(&self, step: &str) -> Result<T, StepError> {
        self.find(step)?.ok_or_else(|| {
            StepError::internal(format!(
                "step `{step}` has no output that step `{}` could use",
                self.step
            ))
        })
    }

    fn find<T: DeserializeOwned>(&self, step: &str) -> Result<Option<T>, StepError> {
        let value = {
            let outputs = self.outputs.read().unwrap_or_else(PoisonError::into_inner);
            outputs.get(step).cloned()
        };
        value
            .map(|value| {
                T::deserialize(&*value).map_err(|error| {
                    StepError::internal(format!("failed to read the output of step `{step}`: {error}"))
                })
            })
            .transpose()
    }

    /// The right to act for this flow; steps that write to the service's database verify it in their transaction
    /// ([`stolos_store::lease::verify`]), and its number can serve as a generation towards others.
    #[must_use]
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// An id that is the same in every attempt and every life of this flow, and that no other flow, step or `label`
    /// gets: chosen, in effect, when the flow was journalled. It follows from the flow's id by SHA-256.
    #[must_use]
    pub fn derive_id<I: From<Uuid>>(&self, label: &str) -> I {
        derive_id(self.flow.id, &self.step, label).into()
    }
}

pub(crate) fn derive_id(flow: FlowId, step: &str, label: &str) -> Uuid {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [flow.as_uuid().as_bytes(), step.as_bytes(), label.as_bytes()] {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let hash = context.finish();
    let bytes = hash.as_ref()[..16].try_into().expect("a SHA-256 has 32 bytes");
    // Version 8: of our own making (RFC 9562).
    uuid::Builder::from_bytes(bytes)
        .with_variant(uuid::Variant::RFC4122)
        .with_version(uuid::Version::Custom)
        .into_uuid()
}

impl std::fmt::Debug for StepContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StepContext")
            .field("flow", &self.flow.id)
            .field("step", &self.step)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// Why an attempt failed. Made from any service error with `?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepError {
    /// The error with its sources, on one line. It is stored and shown: no secrets.
    pub message: String,
    /// Who has to act.
    pub class: Class,
    /// Whether another attempt may succeed.
    pub retryable: bool,
    /// Whole sentences that name the next step.
    pub hints: Vec<String>,
}

impl StepError {
    /// An error that another attempt does not change.
    #[must_use]
    pub fn fatal(class: Class, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            class,
            retryable: false,
            hints: Vec::new(),
        }
    }

    /// An error that may pass.
    #[must_use]
    pub fn transient(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            class: Class::Unavailable,
            retryable: true,
            hints: Vec::new(),
        }
    }

    /// A broken invariant of ours.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::fatal(Class::Internal, message)
    }

    /// For a step that returns because it was told to ([`StepContext::canceled`]).
    #[must_use]
    pub fn canceled() -> Self {
        Self::fatal(Class::Conflict, "canceled")
    }

    /// Says what was being done: `what` comes before the message.
    #[must_use]
    pub fn during(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl<E: Classify> From<E> for StepError {
    fn from(error: E) -> Self {
        Self {
            message: stolos_base::chain(&error),
            class: error.class(),
            retryable: error.retryable(),
            hints: error.hints(),
        }
    }
}
