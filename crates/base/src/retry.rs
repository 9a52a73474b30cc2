//! Repeating what may work later, within a deadline.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ExponentialBuilder};

/// How often and how long to repeat.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The first pause.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
    /// No attempt starts after this much time.
    pub deadline: Duration,
}

/// Calls `attempt` until it succeeds, fails with an error that `retryable` denies, or the deadline is near.
/// The last error is returned.
///
/// # Errors
/// The last attempt's error.
pub async fn run<T, E, F, Fut>(policy: Policy, retryable: impl Fn(&E) -> bool, mut attempt: F) -> Result<T, E>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let start = Instant::now();
    let mut pauses = ExponentialBuilder::default()
        .with_min_delay(policy.first)
        .with_max_delay(policy.longest)
        .with_jitter()
        .without_max_times()
        .build();
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if !retryable(&error) => return Err(error),
            Err(error) => {
                let pause = pauses.next().unwrap_or(policy.longest);
                if start.elapsed() + pause >= policy.deadline {
                    return Err(error);
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
}
