//! Accepting that a cluster is stopped or started.

use stolos_api::pks::{LastAction, LastActionState};

use super::{Desk, refuse_half_deleted};
use crate::authorize::{Caller, Right};
use crate::db::{self, OperationRow};
use crate::error::{Error, Result};
use crate::flows::{Input, Power};
use crate::render::Rollout;

impl Desk {
    /// Accepts a stop or a start. What is so already ends at once, so that scripts may ask twice.
    pub(crate) async fn switch(&self, caller: &Caller, name: &str, power: Power) -> Result<OperationRow> {
        caller.may(Right::Manage)?;
        let mut cluster = db::cluster(&self.db, name, caller.own(Right::ManageAll)).await?;
        refuse_half_deleted(&cluster)?;
        if !cluster.state.is_final() {
            return Err(Error::Busy {
                cluster: cluster.name.to_string(),
            });
        }
        if cluster.action == LastAction::Create && cluster.state == LastActionState::Failed {
            return Err(Error::Request(format!(
                "cluster `{}` was never made; any update of it goes on with that",
                cluster.name
            )));
        }
        // The jobs of an older release leave pods running.
        if power == Power::Stop && !self.is_current(&cluster) {
            return Err(Error::Behind {
                cluster: cluster.name.to_string(),
            });
        }
        cluster.settings.stopped = power == Power::Stop;
        let operation = self.operation(&cluster, LastAction::Update, caller);
        // Nothing that a canary could save. Whole groups change their state together, see the director's order.
        let mut input = Input::new(&operation, Rollout::Fresh);
        input.power = Some(power);
        let mut tx = self.begin_tx("accept a stop or a start").await?;
        self.begin_change(&mut tx, &operation, &input).await?;
        db::set_intent(&mut tx, &cluster).await?;
        tx.commit()
            .await
            .map_err(Error::database("accept the stop or the start"))?;
        self.flows.nudge();
        Ok(operation)
    }
}
