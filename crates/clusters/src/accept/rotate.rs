//! Accepting that a cluster's certificates are made anew.

use stolos_api::pks::LastAction;

use super::{Desk, refuse_unfit};
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
        refuse_unfit(&cluster)?;
        if !self.is_current(&cluster) {
            return Err(Error::Behind {
                cluster: cluster.name.to_string(),
            });
        }
        let operation = self.operation(&cluster, LastAction::Update, caller);
        let mut input = Input::new(&operation, Rollout::Careful);
        input.renew = true;
        let mut tx = self.begin_tx("accept a rotation").await?;
        self.begin_change(&mut tx, &operation, &input).await?;
        tx.commit()
            .await
            .map_err(Error::database("accept the rotation"))?;
        self.flows.nudge();
        Ok(operation)
    }
}
