//! Duties: work that one process at a time does, of all that share a database, for as long as it lives.
//!
//! For reconcilers, which would disturb each other. Whoever holds the duty's lease works; the others wait, and look often
//! enough that one of them goes on within [`LEASE`] and [`LOOK`] of the holder's death. A holder that was frozen, or cut off from the
//! database, may still be at work when another one begins: so each of its transactions verifies the fence that the work
//! is given ([`crate::lease::verify`]), and what it does elsewhere has to be harmless if done twice.

use std::time::Duration;

use stolos_base::chain;
use tokio_util::sync::CancellationToken;

use crate::db::Db;
use crate::error::Error;
use crate::lease::{self, Acquired, Fence, Lease};

/// How long a duty belongs to a process that gives no sign of life.
pub const LEASE: Duration = Duration::from_secs(6);
/// A living holder says so this many times while a lease lasts.
const RENEWALS: u32 = 3;
/// How often the others look whether they may begin.
pub const LOOK: Duration = Duration::from_secs(1);

/// Does `work` whenever this process holds the duty `name`, until `stop` fires; then the duty is given back. The work is ended
/// (dropped at its next `await`) when the duty is lost; when it returns by itself, it is begun again after [`LOOK`].
///
/// `holder` names this process among those of the database: see [`crate::lease`].
pub async fn hold<W: Future<Output = ()> + Send>(
    db: Db,
    name: &'static str,
    holder: String,
    stop: CancellationToken,
    work: impl Fn(Fence) -> W + Send,
) {
    let (db, holder) = (&db, holder.as_str());
    while !stop.is_cancelled() {
        match take(db, name, holder).await {
            Ok(Some(lease)) => {
                tracing::debug!(duty = name, holder, "took a duty up");
                tokio::select! {
                    () = work(lease.fence.clone()) => {}
                    () = keep(db, &lease.fence) => tracing::warn!(duty = name, holder, "the duty is somebody else's now"),
                    () = stop.cancelled() => {}
                }
                if stop.is_cancelled()
                    && let Err(error) = give_back(db, &lease.fence).await
                {
                    tracing::warn!(duty = name, error = %chain(&error), "failed to give a duty back");
                }
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(duty = name, error = %chain(&error), "failed to look for a duty; trying again");
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn take(db: &Db, name: &str, holder: &str) -> Result<Option<Lease>, Error> {
    // Looked at without the writer first: most of the time it is somebody else's.
    if lease::is_held_by_other(db, name, holder).await? {
        return Ok(None);
    }
    let mut tx = db.begin_background("take a duty up").await?;
    let acquired = lease::acquire(&mut tx, name, holder, LEASE).await?;
    tx.commit().await?;
    Ok(match acquired {
        Acquired::Yes(lease) => Some(lease),
        Acquired::No { .. } => None,
    })
}

/// Renews the lease until it is lost.
async fn keep(db: &Db, fence: &Fence) {
    loop {
        tokio::time::sleep(LEASE / RENEWALS).await;
        let renewed = async {
            let mut tx = db.begin("renew a duty").await?;
            lease::renew(&mut tx, fence, LEASE).await?;
            tx.commit().await
        };
        match renewed.await {
            Ok(()) => {}
            Err(Error::LeaseLost { .. }) => return,
            // It is ours until somebody takes it, which they note in the same database.
            Err(error) => {
                tracing::warn!(duty = fence.name, error = %chain(&error), "failed to renew a duty; trying again");
            }
        }
    }
}

async fn give_back(db: &Db, fence: &Fence) -> Result<(), Error> {
    let mut tx = db.begin("give a duty back").await?;
    lease::release(&mut tx, fence).await?;
    tx.commit().await
}
