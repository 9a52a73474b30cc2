//! Backups that `stolosd` takes by itself. Of several members only the one that has the turn does.

use std::time::Duration;

use stolos_backup::BackupKey;
use stolos_base::task::{self, Kind};
use stolos_base::{Clock, Instance};
use stolos_store::DatabaseUrl;
use tokio_util::sync::CancellationToken;

use super::{Settings, holder, read_configuration, take_in_turn, turn};

/// After a failure it is tried again no sooner and no later than this, or after the interval when that is shorter.
const RETRY: Duration = Duration::from_secs(600);
/// The first look comes when the services have settled after a start.
const FIRST: Duration = Duration::from_secs(30);

/// The schedule of an installation, when its configuration has one.
///
/// # Errors
/// When the configuration's `backup` makes no sense.
pub(crate) fn configured(instance: &Instance) -> anyhow::Result<Option<Schedule>> {
    if !instance.config_file().exists() {
        // Whoever starts the services says so better.
        return Ok(None);
    }
    let config = read_configuration(instance)?;
    let Some(settings) = config.backup else {
        return Ok(None);
    };
    let Some(interval) = settings.interval()? else {
        return Ok(None);
    };
    Ok(Some(Schedule {
        instance: instance.clone(),
        database: crate::start::database(instance, &config.database)?,
        settings,
        interval,
        clock: Clock::system(),
    }))
}

/// What the schedule needs to know.
pub struct Schedule {
    /// Whose backups.
    pub instance: Instance,
    /// Where its databases are.
    pub database: DatabaseUrl,
    /// Where they go.
    pub settings: Settings,
    /// How often.
    pub interval: Duration,
    /// Time.
    pub clock: Clock,
}

impl Schedule {
    /// Looks by itself until `stop` fires.
    pub(crate) fn start(self, stop: CancellationToken) {
        task::spawn(Kind::Service, "backups", async move {
            let mut pause = FIRST;
            loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok::<(), std::convert::Infallible>(()),
                    () = tokio::time::sleep(pause) => {}
                }
                let looked = tokio::select! {
                    // A backup that is cut off leaves nothing that counts.
                    () = stop.cancelled() => return Ok(()),
                    looked = self.look() => looked,
                };
                pause = match looked {
                    Ok(pause) => pause,
                    Err(error) => {
                        tracing::error!(error = %format!("{error:#}"), to = self.settings.to, "failed to take a backup");
                        RETRY.min(self.interval)
                    }
                };
            }
        });
    }

    /// Takes a backup when one is due; gives how long until the next look.
    ///
    /// # Errors
    /// Whatever kept it from being taken.
    pub async fn look(&self) -> anyhow::Result<Duration> {
        let (key, made) = BackupKey::load_or_create(&self.settings.key_file(&self.instance))?;
        if made == stolos_backup::Made::Now {
            tracing::warn!(file = %self.settings.key_file(&self.instance), "made the key that encrypts backups; keep a copy elsewhere, without it they are lost");
        }
        // Asked in the same turn in which it is taken, so that two members do not both find that one is due.
        let turn = match turn(&self.database, &holder(), &self.clock).await? {
            Ok(turn) => turn,
            // Somebody takes one right now.
            Err(_) => return Ok(self.interval.min(RETRY)),
        };
        turn.work(async {
            let due = self.due_in(&key).await?;
            if !due.is_zero() {
                return Ok(due.min(self.interval));
            }
            let say = |text: &str| tracing::debug!(text, "backup");
            let (manifest, removed) = take_in_turn(
                &self.instance,
                &self.database,
                &self.settings,
                &key,
                &self.clock,
                &say,
            )
            .await?;
            tracing::info!(backup = %manifest.id, bytes = manifest.stored(), took_ms = manifest.took_ms, removed = removed.backups.len(), "took a backup");
            Ok(self.interval)
        })
        .await
    }

    async fn due_in(&self, key: &BackupKey) -> anyhow::Result<Duration> {
        let listed = stolos_backup::list(&self.settings.objects()?, Some(key)).await?;
        let newest = listed
            .iter()
            .filter(|one| one.problem.is_none())
            .filter_map(|one| one.taken_at)
            .max();
        let Some(newest) = newest else {
            return Ok(Duration::ZERO);
        };
        let age = self.clock.now_millis() - newest.as_millisecond();
        let age = Duration::from_millis(u64::try_from(age).unwrap_or(0));
        Ok(self.interval.saturating_sub(age))
    }
}
