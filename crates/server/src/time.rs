//! What time it is, where several managers share a database.
//!
//! Leases, tokens and certificates carry times that one manager writes and another one reads. With clocks an hour apart, one would take all leases away from the other, or
//! wait an hour for those of a dead one, and would refuse its tokens. So the database's clock counts for all, and each manager measures how far its own is off.
//! A manager alone on SQLite has nobody to ask: there the host's clock counts, right or wrong.

use std::convert::Infallible;
use std::time::Duration;

use stolos_base::{chain, task};
use stolos_store::Db;
use tokio_util::sync::CancellationToken;

/// How often it is measured. A clock that jumps in between is wrong for so long; leases last longer.
const LOOK: Duration = Duration::from_secs(2);
/// Less is what asking over a busy line looks like.
const TOLERATED_MILLIS: i64 = 500;
/// Somebody should set this host's clock.
const TOLD_MILLIS: i64 = 30_000;

/// Corrects the clock that the database was opened with, now and again until `stop` fires.
pub(crate) async fn follow(db: Db, stop: CancellationToken) -> anyhow::Result<()> {
    let Some(ahead) = db.ahead_of_us().await? else {
        return Ok(());
    };
    correct(&db, ahead, 0);
    task::spawn(task::Kind::Service, "clock of the database", async move {
        let mut known = ahead;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok::<(), Infallible>(()),
                () = tokio::time::sleep(LOOK) => {}
            }
            match db.ahead_of_us().await {
                Ok(Some(ahead)) if (ahead - known).abs() > TOLERATED_MILLIS => {
                    correct(&db, ahead, known);
                    known = ahead;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(error = %chain(&error), "the database does not say what time it is");
                }
            }
        }
    });
    Ok(())
}

fn correct(db: &Db, ahead: i64, known: i64) {
    if ahead.abs().max((ahead - known).abs()) > TOLD_MILLIS {
        tracing::warn!(
            seconds = ahead / 1000,
            "this host's clock is behind the database's by so much; the database's counts"
        );
    }
    db.clock().correct(ahead);
}
