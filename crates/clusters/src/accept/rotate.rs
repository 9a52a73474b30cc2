//! Accepting that a cluster's certificates are made anew.

use stolos_api::pks::{LastAction, LastActionState};

use super::Desk;
use crate::authorize::{Caller, Right};
use crate::db::{self, OperationRow};
use crate::error::{Error, Result};
use crate::flows::Input;
use crate::render::Rollout;

impl Desk {
    /// Accepts a rotation of all leaves. Authorities stay: who trusts them goes on trusting the cluster.
    pub(crate) async fn rotate(&self, caller: &Caller, name: &str) -> Result<OperationRow> {
        caller.may(Right::Manage)?;
        let cluster = db::cluster(&self.db, name, caller.own(Right::ManageAll)).await?;
        if cluster.action == LastAction::Delete {
            return Err(Error::HalfDeleted {
                cluster: cluster.name.to_string(),
            });
        }
        if !self.is_current(&cluster) {
            return Err(Error::Behind {
                cluster: cluster.name.to_string(),
            });
        }
        let operation = self.operation(&cluster, LastAction::Update, caller);
        let mut input = Input::new(&operation, Rollout::Careful);
        input.renew = true;
        let mut tx = self.begin_tx("accept a rotation").await?;
        self.begin(&mut tx, &operation, &input).await?;
        let (state, words) = (LastActionState::InProgress, "Instance update in progress");
        db::set_cluster_state(&mut tx, cluster.id, LastAction::Update, state, words).await?;
        tx.commit()
            .await
            .map_err(Error::database("accept the rotation"))?;
        self.flows.nudge();
        Ok(operation)
    }
}
