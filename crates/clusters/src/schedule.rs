//! Backups of clusters by themselves: whichever are due, a few at a time.
//!
//! One process at a time looks ([`stolos_store::duty`]); whichever runs flows takes them. What fails is tried again a while later and holds up nobody else.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use stolos_api::pks::LastAction;
use stolos_base::chain;
use stolos_base::ids::BackupRunId;
use stolos_store::duty;
use tokio_util::sync::CancellationToken;

use crate::accept::Desk;
use crate::backups::{self, due};
use crate::db::{self, ClusterRow, Whose};
use crate::error::{Error, Result};
use crate::flows::BackUp;
use crate::who::Who;

/// The name of the duty.
const DUTY: &str = "backups of clusters";
/// How often is looked, or more often where backups are.
const LOOK: Duration = Duration::from_secs(20);
/// After a failure a backup is tried again, or after a quarter of the interval when that is shorter.
const RETRY: Duration = Duration::from_secs(600);
/// Journals of backups are kept so long for those who ask what happened.
const JOURNALS_KEPT_MILLIS: i64 = 24 * 3600 * 1000;
/// Journals forgotten at each look.
const JOURNALS_AT_ONCE: u32 = 200;
/// Who asks for what nobody asked for.
pub(crate) const ACTOR: &str = "schedule";

/// What the operator wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    pub(crate) every: Duration,
    pub(crate) at_once: usize,
}

/// Looks again and again while it is this process's duty, until `stop` fires.
pub(crate) async fn run(
    desk: Arc<Desk>,
    schedule: Schedule,
    holder: String,
    stop: CancellationToken,
) -> Result<(), Infallible> {
    let db = desk.db.clone();
    duty::hold(db, DUTY, holder, stop, |_| {
        let desk = desk.clone();
        async move {
            loop {
                // Begun twice by two holders, the second finds the first one's in flight.
                if let Err(error) = look(&desk, schedule).await {
                    tracing::warn!(error = %chain(&error), "failed to look for clusters whose backup is due");
                }
                tokio::time::sleep(LOOK.min(schedule.every / 10)).await;
            }
        }
    })
    .await;
    Ok(())
}

async fn look(desk: &Desk, schedule: Schedule) -> Result<()> {
    // Every cluster leaves one each time; what came of it stays in its row.
    let before = desk.clock.now_millis() - JOURNALS_KEPT_MILLIS;
    desk.flows
        .delete_ended_of::<BackUp>(before, JOURNALS_AT_ONCE)
        .await
        .map_err(|error| Error::service("forget the journals of old backups", error))?;
    let last: std::collections::HashMap<_, _> = backups::last(&desk.db).await?.into_iter().collect();
    let open = last.values().filter(|last| last.open).count();
    let room = schedule.at_once.saturating_sub(open);
    if room == 0 {
        return Ok(());
    }
    let now = desk.clock.now_millis();
    let clusters = db::clusters(&desk.db, Whose::All).await?;
    let mut waiting: Vec<(i64, ClusterRow)> = clusters
        .into_iter()
        .filter(has_etcd)
        .filter_map(|cluster| {
            let last = last.get(&cluster.id).copied().unwrap_or_default();
            let due = due(cluster.id, last, schedule.every, RETRY.min(schedule.every / 4));
            (!last.open && due <= now).then_some((due, cluster))
        })
        .collect();
    waiting.sort_by_key(|(due, cluster)| (*due, cluster.id));
    for (_, cluster) in waiting.into_iter().take(room) {
        match desk
            .begin_backup(BackupRunId::new(&desk.ids), &cluster, &Who::ourselves(ACTOR))
            .await
        {
            // Somebody asked for one meanwhile.
            Ok(_) | Err(Error::BackingUp { .. }) => {}
            Err(error) => {
                tracing::warn!(cluster = %cluster.name, error = %chain(&error), "failed to begin the backup of a cluster");
            }
        }
    }
    Ok(())
}

/// Whether there is something to be saved, and somebody who gives it: it was made once, runs, and is not being deleted.
pub(crate) fn has_etcd(cluster: &ClusterRow) -> bool {
    let is_new = cluster.action == LastAction::Create && !cluster.state.is_final();
    let runs = cluster.address.is_some() && !cluster.settings.stopped;
    runs && cluster.action != LastAction::Delete && !is_new
}
