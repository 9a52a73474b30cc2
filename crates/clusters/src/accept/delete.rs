//! Accepting a cluster's end.

use stolos_api::pks::LastAction;

use super::Desk;
use crate::authorize::{Caller, Right};
use crate::db::{self, OperationRow};
use crate::error::{Error, Result};
use crate::flows::Input;
use crate::render::Rollout;

/// What became of a delete request.
#[derive(Debug)]
pub(crate) enum Deletion {
    /// It is written (or was before).
    Accepted(OperationRow),
    /// Another operation is running and has to be stopped first; then the deletion is to be asked for again.
    After(OperationRow),
}

impl Desk {
    /// Accepts a delete request. A deletion that is running goes on.
    pub(crate) async fn delete(&self, caller: &Caller, name: &str) -> Result<Deletion> {
        caller.may(Right::Manage)?;
        let cluster = db::cluster(&self.db, name, caller.own(Right::ManageAll)).await?;
        let running = db::unfinished(&self.db)
            .await?
            .into_iter()
            .find(|operation| operation.cluster_id == cluster.id);
        match running {
            Some(operation) if operation.action == LastAction::Delete => Ok(Deletion::Accepted(operation)),
            Some(operation) => Ok(Deletion::After(operation)),
            None => {
                let operation = self.operation(&cluster, LastAction::Delete, caller);
                let mut tx = self.begin_tx("accept a deletion").await?;
                let input = Input::new(&operation, Rollout::Fresh);
                self.begin_change(&mut tx, &operation, &input).await?;
                tx.commit()
                    .await
                    .map_err(Error::database("accept the deletion"))?;
                self.flows.nudge();
                Ok(Deletion::Accepted(operation))
            }
        }
    }
}
