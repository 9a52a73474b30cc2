//! One step with its attempts: retries, deadline, interruption.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::context::{StepContext, StepError};
use crate::event::EventKind;
use crate::faults::Faults;
use crate::graph::{Interrupt, Spec};
use stolos_base::Class;

/// How a step ended.
#[derive(Debug)]
pub(crate) enum StepEnd {
    Done {
        attempts: u32,
        output: serde_json::Value,
    },
    Skipped {
        reason: String,
    },
    Failed {
        attempts: u32,
        error: StepError,
    },
    /// It was told to return, and did so without having done its work (or was dropped).
    Canceled {
        attempts: u32,
    },
}

/// How an attempt ended.
enum Attempt {
    Done(serde_json::Value),
    Skipped(String),
    Failed(StepError),
    Canceled,
    TooLate,
}

/// Runs the step until it is done, fails for good, its deadline passes, or it is canceled. `ctx.cancel` is the step's own.
/// Once `give_up` is canceled, no further attempt is made.
pub(crate) async fn run(
    spec: &Spec,
    mut ctx: StepContext,
    give_up: &CancellationToken,
    faults: &Faults,
) -> StepEnd {
    if let Some(error) = faults.instead_of(&spec.name) {
        return StepEnd::Failed { attempts: 1, error };
    }
    let deadline = Instant::now() + spec.deadline;
    let mut pause = spec.retry.first;
    let mut attempts = 0;
    loop {
        attempts += 1;
        ctx.attempt = attempts;
        ctx.live.attempt(ctx.index, attempts);
        let mut attempt = once(spec, &ctx, deadline).await;
        if faults.repeats() && matches!(attempt, Attempt::Done(_)) {
            attempt = once(spec, &ctx, deadline).await;
        }
        if matches!(attempt, Attempt::Done(_))
            && let Some(error) = faults.after(&spec.name)
        {
            attempt = Attempt::Failed(error);
        }
        let error = match attempt {
            Attempt::Done(output) => return StepEnd::Done { attempts, output },
            Attempt::Skipped(reason) => return StepEnd::Skipped { reason },
            Attempt::Canceled => return StepEnd::Canceled { attempts },
            Attempt::TooLate => {
                let error = too_late(spec, &ctx);
                return StepEnd::Failed { attempts, error };
            }
            Attempt::Failed(error) => error,
        };
        if ctx.cancel.is_cancelled() {
            return StepEnd::Canceled { attempts };
        }
        if !error.retryable || give_up.is_cancelled() || Instant::now() + pause >= deadline {
            return StepEnd::Failed { attempts, error };
        }
        ctx.live.note(ctx.index, &error.message);
        ctx.live.emit(EventKind::StepRetrying {
            step: spec.name.to_string(),
            attempt: attempts,
            error: error.message.clone(),
            pause_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
        });
        tokio::select! {
            () = sleep(pause) => {}
            () = give_up.cancelled() => return StepEnd::Failed { attempts, error },
            () = ctx.cancel.cancelled() => return StepEnd::Canceled { attempts },
        }
        pause = (pause * 2).min(spec.retry.longest);
    }
}

async fn once(spec: &Spec, ctx: &StepContext, deadline: Instant) -> Attempt {
    let work = async {
        if let Some(skip_when) = &spec.skip_when
            && let Some(reason) = skip_when(ctx.clone()).await?
        {
            return Ok(Attempt::Skipped(reason));
        }
        (spec.run)(ctx.clone()).await.map(Attempt::Done)
    };
    // A panic is a bug of one step; the flow fails with it, and other flows go on.
    let work = AssertUnwindSafe(work).catch_unwind().map(|result| match result {
        Ok(Ok(attempt)) => attempt,
        Ok(Err(error)) => Attempt::Failed(error),
        Err(panic) => Attempt::Failed(StepError::internal(format!("panicked: {}", panic_text(&*panic)))),
    });
    let mut work = std::pin::pin!(work);
    let grace = match spec.interrupt {
        Interrupt::Never => return work.await,
        Interrupt::Anytime => Duration::ZERO,
        Interrupt::Within(grace) => grace,
    };
    let cut = tokio::select! {
        biased;
        attempt = &mut work => return attempt,
        () = ctx.cancel.cancelled() => Attempt::Canceled,
        () = sleep_until(deadline) => Attempt::TooLate,
    };
    ctx.cancel.cancel();
    match timeout(grace, work).await {
        Ok(done @ (Attempt::Done(_) | Attempt::Skipped(_))) => done,
        // Having been told to return, whatever error it gives is not the step's own.
        _ => cut,
    }
}

fn too_late(spec: &Spec, ctx: &StepContext) -> StepError {
    let last = ctx
        .live
        .last_words(ctx.index)
        .map(|text| format!(" ({text})"))
        .unwrap_or_default();
    StepError {
        message: format!("the step was not done within {:?}{last}", spec.deadline),
        class: Class::Unavailable,
        retryable: false,
        hints: Vec::new(),
    }
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}
