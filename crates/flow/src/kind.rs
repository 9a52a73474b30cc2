//! Kinds of flows, and what a flow is to them.

use std::fmt;

use futures::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stolos_base::Class;
use stolos_base::ids::FlowId;
use stolos_store::Tx;

use crate::context::StepError;
use crate::graph::Graph;

/// Makes the graph of each flow of one name from its input.
pub trait Kind: Send + Sync + 'static {
    /// Stored with each flow; never changed.
    const NAME: &'static str;
    /// Everything the flow needs to know; stored in clear as JSON. Changes must keep old inputs readable.
    type Input: Serialize + DeserializeOwned + Send;

    /// The graph. Called whenever a process takes the flow up. It may read (a stored plan, say) but the same input has to
    /// give the same steps; a retryable error is retried until it works or the flow is canceled.
    ///
    /// # Errors
    /// What makes the flow fail, or be retried.
    fn graph(
        &self,
        flow: &FlowInfo,
        input: Self::Input,
    ) -> impl Future<Output = Result<Graph, StepError>> + Send;

    /// Called in the transaction in which the flow's state changes, so that the owner's rows (an operation, a task)
    /// change with it. It may be called again with the same change after a lost commit.
    ///
    /// # Errors
    /// Those of the database; the change is undone then and tried again.
    fn on_state(
        &self,
        tx: &mut Tx,
        change: &Change<'_>,
    ) -> impl Future<Output = Result<(), stolos_store::Error>> + Send {
        let _ = (tx, change);
        async { Ok(()) }
    }
}

/// Which flow it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowInfo {
    /// Its id.
    pub id: FlowId,
    /// The name of its kind.
    pub kind: String,
    /// What it is about: a cluster's or deployment's name or id.
    pub subject: String,
    /// When it was submitted, in milliseconds since the Unix epoch.
    pub created_at: i64,
}

/// A change of a flow's state.
#[derive(Debug)]
pub struct Change<'a> {
    /// The flow.
    pub flow: &'a FlowInfo,
    /// The new state. `Pending` comes only when an ended flow is to go on ([`crate::Flows::retry`]).
    pub state: FlowState,
    /// Why, when it has failed.
    pub failure: Option<&'a Failure>,
}

/// How a flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowState {
    /// Accepted, not begun (or to go on after it had ended).
    Pending,
    /// Begun; also while its process is dead and nobody has taken it up.
    Running,
    /// All steps are done or skipped.
    Succeeded,
    /// A step has failed. It can be told to go on.
    Failed,
    /// Ended on request. It can be told to go on.
    Canceled,
}

impl FlowState {
    /// Whether nothing more happens by itself.
    #[must_use]
    pub fn is_end(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Canceled)
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [
            Self::Pending,
            Self::Running,
            Self::Succeeded,
            Self::Failed,
            Self::Canceled,
        ]
        .into_iter()
        .find(|state| state.as_str() == text)
    }
}

impl fmt::Display for FlowState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a flow has failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The step that failed; none when the graph could not be made.
    pub step: Option<String>,
    /// The error with its sources, on one line.
    pub message: String,
    /// Who has to act.
    #[serde(with = "class_name")]
    pub class: Class,
    /// Whole sentences that name the next step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
}

mod class_name {
    use serde::{Deserialize as _, Deserializer, Serializer};
    use stolos_base::Class;

    const NAMES: [(Class, &str); 7] = [
        (Class::User, "user"),
        (Class::NotFound, "not_found"),
        (Class::Conflict, "conflict"),
        (Class::Unauthenticated, "unauthenticated"),
        (Class::Denied, "denied"),
        (Class::Unavailable, "unavailable"),
        (Class::Internal, "internal"),
    ];

    pub(super) fn serialize<S: Serializer>(class: &Class, serializer: S) -> Result<S::Ok, S::Error> {
        let name = NAMES
            .iter()
            .find(|(known, _)| known == class)
            .map_or("internal", |(_, name)| name);
        serializer.serialize_str(name)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Class, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        NAMES
            .iter()
            .find(|(_, name)| *name == text)
            .map(|(class, _)| *class)
            .ok_or_else(|| serde::de::Error::custom(format!("unknown class `{text}`")))
    }
}

/// A kind without its type.
pub(crate) trait AnyKind: Send + Sync {
    fn graph<'a>(&'a self, flow: &'a FlowInfo, input: &'a str) -> BoxFuture<'a, Result<Graph, StepError>>;
    fn on_state<'a>(
        &'a self,
        tx: &'a mut Tx,
        change: &'a Change<'a>,
    ) -> BoxFuture<'a, Result<(), stolos_store::Error>>;
}

impl<K: Kind> AnyKind for K {
    fn graph<'a>(&'a self, flow: &'a FlowInfo, input: &'a str) -> BoxFuture<'a, Result<Graph, StepError>> {
        Box::pin(async move {
            let input = serde_json::from_str(input)
                .map_err(|error| StepError::internal(format!("failed to read the flow's input: {error}")))?;
            Kind::graph(self, flow, input).await
        })
    }

    fn on_state<'a>(
        &'a self,
        tx: &'a mut Tx,
        change: &'a Change<'a>,
    ) -> BoxFuture<'a, Result<(), stolos_store::Error>> {
        Box::pin(Kind::on_state(self, tx, change))
    }
}
