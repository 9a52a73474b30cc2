//! Accepting that a cluster is backed up, or gets the contents of a backup.

use stolos_api::pks::{LATEST, LastAction, LastActionState, OperationState};
use stolos_base::ids::BackupRunId;

use super::upgrade::may_go;
use super::{Desk, refuse_unfit};
use crate::authorize::{Caller, Right};
use crate::backups::{self, RunRow};
use crate::db::{self, ClusterRow, OperationRow};
use crate::deps::Backup;
use crate::error::{Error, Result};
use crate::flows::{Input, KeptBackups, Source, backup_of};
use crate::render::Rollout;
use crate::schedule::has_etcd;
use crate::who::Who;

impl Desk {
    /// Where backups are kept.
    pub(crate) fn kept(&self) -> Result<&KeptBackups> {
        self.backups.as_ref().ok_or(Error::NoBackups)
    }

    /// Accepts a backup.
    pub(crate) async fn back_up(&self, caller: &Caller, name: &str) -> Result<RunRow> {
        caller.may(Right::Manage)?;
        let cluster = db::cluster(&self.db, name, caller.own(Right::ManageAll)).await?;
        self.kept()?;
        refuse_unfit(&cluster)?;
        if !has_etcd(&cluster) {
            return Err(Error::Busy {
                cluster: cluster.name.to_string(),
            });
        }
        self.begin_backup(BackupRunId::new(&self.ids), &cluster, caller.who())
            .await
    }

    /// Begins a backup.
    pub(crate) async fn begin_backup(
        &self,
        id: BackupRunId,
        cluster: &ClusterRow,
        actor: &Who,
    ) -> Result<RunRow> {
        let run = RunRow {
            id,
            cluster_id: cluster.id,
            cluster: cluster.name.to_string(),
            owner: cluster.owner.clone(),
            actor: actor.clone(),
            canceled_by: None,
            created_at: self.clock.now(),
            state: OperationState::Queued,
            ended_at: None,
            backup: None,
            error: None,
        };
        let mut tx = self.begin_tx("accept a backup").await?;
        backups::insert(&mut tx, &run).await?;
        self.flows
            .submit_in(&mut tx, backup_of(&run))
            .await
            .map_err(|error| Error::service("begin the backup", error))?;
        tx.commit().await.map_err(Error::database("accept the backup"))?;
        self.flows.nudge();
        Ok(run)
    }

    /// Accepts that a cluster gets the contents of one of its own backups.
    pub(crate) async fn restore(&self, caller: &Caller, name: &str, backup: &str) -> Result<OperationRow> {
        caller.may(Right::Manage)?;
        let cluster = db::cluster(&self.db, name, caller.own(Right::ManageAll)).await?;
        let kept = self.kept()?;
        refuse_unfit(&cluster)?;
        if !cluster.state.is_final() {
            return Err(Error::Busy {
                cluster: cluster.name.to_string(),
            });
        }
        if cluster.action == LastAction::Create && cluster.state == LastActionState::Failed {
            return Err(Error::Request(format!(
                "cluster `{}` was never made; `create-cluster NEW --from-backup` makes one of a backup",
                cluster.name
            )));
        }
        // The jobs of an older release know nothing of restores.
        if !self.is_current(&cluster) {
            return Err(Error::Behind {
                cluster: cluster.name.to_string(),
            });
        }
        let id = (backup != LATEST).then_some(backup);
        let found = kept.place.find(cluster.id, id).await?;
        fits(&found, &cluster)?;
        let operation = self.operation(&cluster, LastAction::Update, caller);
        let mut input = Input::new(&operation, Rollout::Careful);
        input.restore = Some(source(&found));
        let mut tx = self.begin_tx("accept a restore").await?;
        self.begin_change(&mut tx, &operation, &input).await?;
        tx.commit().await.map_err(Error::database("accept the restore"))?;
        self.flows.nudge();
        Ok(operation)
    }

    /// The backup that a new cluster is to begin with: `CLUSTER` or `CLUSTER/ID`.
    pub(super) async fn first_contents(
        &self,
        caller: &Caller,
        reference: &str,
        new: &ClusterRow,
    ) -> Result<Source> {
        let kept = self.kept()?;
        let (named, id) = match reference.split_once('/') {
            Some((named, id)) => (named, Some(id).filter(|id| *id != LATEST)),
            None => (reference, None),
        };
        let cluster = backups::cluster_of(&self.db, named, caller.own(Right::ManageAll)).await?;
        let found = kept.place.find(cluster, id).await?;
        fits(&found, new)?;
        Ok(source(&found))
    }
}

fn source(backup: &Backup) -> Source {
    Source {
        cluster: backup.cluster,
        backup: backup.id.clone(),
    }
}

/// Refuses what the cluster's programs could not go on with.
fn fits(backup: &Backup, cluster: &ClusterRow) -> Result<()> {
    let unfit = |problem: String| Error::Unfit {
        backup: backup.id.clone(),
        cluster: cluster.name.to_string(),
        problem,
    };
    let (was, is) = (&backup.of.kubernetes_version, &cluster.plan.kubernetes_version);
    if !may_go(was, is) {
        return Err(unfit(format!(
            "it was taken of Kubernetes {was}, and {is} is neither that nor the next minor version"
        )));
    }
    let networks = cluster.settings.networks();
    let networks = networks.map_err(|invalid| Error::Request(invalid.to_string()))?;
    if networks.services != backup.of.networks.services {
        return Err(unfit(format!(
            "its services have addresses in {}, and those of the cluster are in {}",
            backup.of.networks.services, networks.services
        )));
    }
    let own = cluster.settings.kubernetes_profile.as_ref();
    let own = own.filter(|profile| profile.encrypts());
    match (&backup.of.encrypted_by, own) {
        (Some((id, _)), Some(own)) if *id == own.id => Ok(()),
        (Some((_, name)), _) => Err(unfit(format!(
            "what is in it is encrypted with Kubernetes profile `{name}`, which the cluster does not have"
        ))),
        // The profile may name `identity` among its providers; whether it does is for the person who wrote it.
        (None, _) => Ok(()),
    }
}
