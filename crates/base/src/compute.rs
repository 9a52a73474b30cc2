//! Work for processors: keys, templates, large documents.
//!
//! It runs on threads of its own, as many as there are processors, at a lower priority than everybody who waits for input. So a fleet that is
//! being made does not slow down the answers to people: with Tokio's blocking threads, of which there may be hundreds, each request would
//! share the processors with all of them. Work is begun in the order in which it came and has to end by itself; waiting for anything does not
//! belong here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::oneshot;

/// How much these threads yield to others: with 5 they get a third of what others get where both want a processor, and all of it otherwise. More
/// would starve them on a host whose machines are busy.
const NICENESS: i32 = 5;

type Work = Box<dyn FnOnce() + Send>;

/// The work panicked; the panic has been printed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("a computation panicked")]
pub struct Panicked;

/// Runs work and gives its result. Work that has begun goes on when nobody waits for it any more.
///
/// # Errors
/// [`Panicked`].
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Panicked> {
    static QUEUE: OnceLock<Sender<Work>> = OnceLock::new();
    let queue = QUEUE.get_or_init(start);
    let (give, take) = oneshot::channel();
    let work: Work = Box::new(move || {
        if give.is_closed() {
            return;
        }
        let result = catch_unwind(AssertUnwindSafe(work));
        // Who asked may have gone meanwhile.
        let _ = give.send(result.map_err(|_| Panicked));
    });
    queue.send(work).map_err(|_| Panicked)?;
    take.await.map_err(|_| Panicked)?
}

fn start() -> Sender<Work> {
    let (queue, work) = channel();
    let work = Arc::new(Mutex::new(work));
    let threads = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    for number in 0..threads {
        let work = Arc::clone(&work);
        let thread = std::thread::Builder::new().name(format!("compute-{number}"));
        let started = thread.spawn(move || {
            // On Linux this is the calling thread alone. Where it is refused, the work is done nevertheless.
            if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
                tracing::debug!(%error, "computations run at the usual priority");
            }
            while let Some(next) = next(&work) {
                next();
            }
        });
        if let Err(error) = started {
            tracing::error!(%error, "failed to start a thread for computations");
        }
    }
    queue
}

fn next(work: &Mutex<Receiver<Work>>) -> Option<Work> {
    work.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    #[tokio::test]
    async fn work_is_done_on_a_few_threads_and_a_panic_takes_none_away() {
        let names = join_all((0..50).map(|number| {
            run(move || {
                assert!(number % 10 != 3, "as it should");
                std::thread::current().name().map(str::to_owned)
            })
        }))
        .await;
        let panicked = names.iter().filter(|name| name.is_err()).count();
        assert_eq!(panicked, 5);
        let threads: std::collections::BTreeSet<_> = names.into_iter().flatten().flatten().collect();
        assert!(
            threads.iter().all(|name| name.starts_with("compute-")),
            "{threads:?}"
        );
    }
}
