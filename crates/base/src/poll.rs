//! Waiting for a condition, with words for what is being waited for.

use std::time::{Duration, Instant};

/// The condition did not come true in time.
#[derive(Debug, thiserror::Error)]
#[error("gave up after {} ms waiting for {what}: {last}", .after.as_millis())]
pub struct TimedOut {
    /// What was waited for.
    pub what: String,
    /// What the condition said last.
    pub last: String,
    /// How long it was waited.
    pub after: Duration,
}

/// Asks `condition` every `interval` until it gives `Ok`, at most for `limit`. The `Err` text says how things stand.
///
/// # Errors
/// [`TimedOut`] with the last text.
pub async fn until<T, F, Fut>(
    what: &str,
    interval: Duration,
    limit: Duration,
    mut condition: F,
) -> Result<T, TimedOut>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let start = Instant::now();
    loop {
        match condition().await {
            Ok(value) => return Ok(value),
            Err(last) if start.elapsed() >= limit => {
                return Err(TimedOut {
                    what: what.to_owned(),
                    last,
                    after: start.elapsed(),
                });
            }
            Err(_) => tokio::time::sleep(interval).await,
        }
    }
}
