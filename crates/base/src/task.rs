//! Named background tasks. Nothing is spawned anonymously or forgotten.

use std::fmt;

use tokio::task::JoinHandle;
use tracing::Instrument as _;

/// What the end of a task means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Runs as long as its service; ending by itself is logged as an error.
    Service,
    /// Does one piece of work and ends; an error is logged.
    Job,
    /// Serves one connection or stream; an error is the peer's and logged at debug level.
    Connection,
}

/// Spawns `future` under a name. Errors and panics are logged by kind; dropping the handle detaches the task but never
/// silences it.
#[expect(clippy::disallowed_methods, reason = "this is the one place that spawns")]
pub fn spawn<F, E>(kind: Kind, name: impl Into<String>, future: F) -> JoinHandle<()>
where
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: fmt::Display + Send + 'static,
{
    let name = name.into();
    let span = tracing::info_span!("task", kind = ?kind, task = %name);
    tokio::spawn(
        async move {
            let result = future.await;
            match (kind, result) {
                (Kind::Service, Ok(())) => tracing::debug!(task = %name, "service task ended"),
                (Kind::Service | Kind::Job, Err(error)) => {
                    tracing::error!(task = %name, %error, "task failed")
                }
                (Kind::Connection, Err(error)) => tracing::debug!(task = %name, %error, "connection ended"),
                (Kind::Job | Kind::Connection, Ok(())) => {}
            }
        }
        .instrument(span),
    )
}
