//! What is forgotten with time: the journals of flows that ended, uploads that nobody needs, disks that were orphans for long enough.
//!
//! Each process does it: twice is as good as once.

use std::sync::Arc;
use std::time::Duration;

use stolos_base::task;
use stolos_flow::Flows;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::error::Result;

/// How often is looked.
const INTERVAL: Duration = Duration::from_secs(3600);
/// Journals of ended flows are kept so long for those who ask what happened; their tasks stay longer.
const KEPT_MILLIS: i64 = 7 * 24 * 3600 * 1000;
/// Flows forgotten in one transaction.
const AT_ONCE: u32 = 200;

/// Starts looking; ends with `stop`.
pub(crate) fn start(app: Arc<App>, flows: Flows, stop: CancellationToken) {
    task::spawn(task::Kind::Service, "director maintenance", async move {
        loop {
            if let Err(error) = crate::flows::import::remove_stale_uploads(&app).await {
                tracing::warn!(error = %stolos_base::chain(&error), "failed to remove old uploads; trying again later");
            }
            if let Err(error) = forget(&app, &flows).await {
                tracing::warn!(error = %stolos_base::chain(&error), "failed to forget what is old; trying again later");
            }
            if let Err(error) = crate::flows::disks::clean(&app).await {
                tracing::warn!(error = %stolos_base::chain(&error), "failed to clean up orphaned disks; trying again later");
            }
            tokio::select! {
                () = stop.cancelled() => return Ok::<(), std::convert::Infallible>(()),
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    });
}

async fn forget(app: &App, flows: &Flows) -> Result<()> {
    let before = app.db.clock().now_millis() - KEPT_MILLIS;
    while flows.delete_ended(before, AT_ONCE).await? == u64::from(AT_ONCE) {}
    let mut tx = app.db.begin_background("forget old alerts").await?;
    crate::db::alerts::forget(&mut tx, before).await?;
    Ok(tx.commit().await?)
}
