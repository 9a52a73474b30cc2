//! The deletion of disks that belong to no instance: asked for by a person, or because they were kept long enough.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stolos_base::ids::FlowId;
use stolos_flow::{Change, FlowInfo, Graph, Kind, StepError};
use stolos_store::Tx;
use stolos_store::lease::{self, Acquired};

use super::{DELETE_DISK, Wish, follow, nudge, open, submit, submit_in};
use crate::app::App;
use crate::db::inventory;
use crate::error::{Error, Result};
use crate::steps::single::CPI_GRACE;
use crate::steps::{Attempt, Work, step};
use crate::tasks::Line;

/// Who deletes what was kept long enough.
const CLEANER: &str = "cleaner";
/// The right to begin that, and for how long it is held.
const LEASE: &str = "orphaned disks";
const LEASE_TTL: std::time::Duration = std::time::Duration::from_secs(15);
/// Disks whose deletion begins in one look: a CPI has other things to do.
const AT_ONCE: i64 = 20;

/// Deletes one disk.
pub(crate) struct DeleteDisk(pub(crate) Arc<App>);

/// Which; the input of the flow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) cid: String,
}

fn wish<'a>(app: &App, cid: &str, user: &'a str, context: &'a str) -> Wish<'a, Request> {
    Wish {
        id: FlowId::new(&app.ids),
        kind: DELETE_DISK,
        description: format!("delete orphaned disk {cid}"),
        deployment: None,
        user,
        context,
        lock: Some(format!("disk/{cid}")),
        input: Request { cid: cid.to_owned() },
    }
}

/// Begins the deletion of an orphan that somebody names; gives the task.
pub(crate) async fn delete(app: &App, cid: &str, user: &str, context: &str) -> Result<i64> {
    if inventory::orphan(&app.db, cid).await?.is_none() {
        return Err(Error::NoDisk(cid.to_owned()));
    }
    submit::<DeleteDisk>(app, wish(app, cid, user, context)).await
}

/// Begins the deletion of all that were orphans for longer than they are kept. One member does it at a time.
pub(crate) async fn clean(app: &App) -> Result<()> {
    let kept = i64::try_from(app.config.orphaned_disks_kept.as_millis()).unwrap_or(i64::MAX);
    let mut tx = app.db.begin_background("clean up orphaned disks").await?;
    let before = tx.now_millis().saturating_sub(kept);
    if inventory::old_orphans(&mut tx, before, DELETE_DISK, 1)
        .await?
        .is_empty()
    {
        return Ok(());
    }
    let Acquired::Yes(held) = lease::acquire(&mut tx, LEASE, &app.config.holder, LEASE_TTL).await? else {
        return Ok(());
    };
    for cid in inventory::old_orphans(&mut tx, before, DELETE_DISK, AT_ONCE).await? {
        let task = submit_in::<DeleteDisk>(app, &mut tx, wish(app, &cid, CLEANER, "")).await?;
        tracing::info!(
            disk = cid,
            task,
            "a disk was an orphan for long enough and is deleted"
        );
    }
    lease::release(&mut tx, &held.fence).await?;
    tx.commit().await?;
    nudge(app);
    Ok(())
}

impl Kind for DeleteDisk {
    const NAME: &'static str = "delete orphaned disk";
    type Input = Request;

    async fn graph(&self, flow: &FlowInfo, input: Request) -> Result<Graph, StepError> {
        let made = async {
            open(&self.0, flow.id).await?;
            let work = Arc::new(Work {
                app: self.0.clone(),
                flow: flow.id,
                what: input,
            });
            let mut graph = Graph::new();
            let delete = step(
                &work,
                format!("Delete orphaned disk {}", work.what.cid),
                |attempt| async move { delete_disk(&attempt).await },
            );
            let delete = graph.add(delete.interrupt(CPI_GRACE));
            let line = Line::new("Deleting orphaned disks", work.what.cid.clone());
            follow(&self.0, flow.id, (graph, vec![(delete.name().to_owned(), line)])).await
        };
        made.await
            .map_err(|error| self.0.tasks.step_error(flow.id, &error))
    }

    async fn on_state(&self, tx: &mut Tx, change: &Change<'_>) -> Result<(), stolos_store::Error> {
        self.0.tasks.on_state(tx, change, "").await
    }
}

async fn delete_disk(attempt: &Attempt<Request>) -> Result<()> {
    let cid = &attempt.what.cid;
    let Some(row) = inventory::orphan(&attempt.app.db, cid).await? else {
        let text = format!("disk {cid} is no orphan any more and is left alone");
        attempt.app.tasks.warn(attempt.flow, &text);
        return Ok(());
    };
    let call = attempt.call_id(&format!("delete_disk {cid}"));
    attempt.machines().delete_disk(&call, cid).await?;
    inventory::disk_gone(&attempt.app.db, attempt.ctx.fence(), &row.call_id).await
}
