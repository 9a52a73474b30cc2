//! Upgrade a cluster: an update, with machines made of what is newest.

use stolos_api::pks::LastAction;
use stolos_flow::{Change, FlowInfo, Graph, Kind, StepError};
use stolos_store::Tx;

use super::{Input, Tools, steps, write_state};
use crate::db;

/// The kind of flow.
pub(crate) struct Upgrade(pub(crate) Tools);

impl Kind for Upgrade {
    const NAME: &'static str = "upgrade cluster";
    type Input = Input;

    async fn graph(&self, _flow: &FlowInfo, input: Input) -> Result<Graph, StepError> {
        let cluster = db::cluster_by_id(&self.0.db, input.cluster).await?;
        Ok(steps::changed(&self.0, &input, &cluster))
    }

    async fn on_state(&self, tx: &mut Tx, change: &Change<'_>) -> Result<(), stolos_store::Error> {
        let Some(input) = super::input_of(change) else {
            return Ok(());
        };
        write_state(tx, &input, LastAction::Upgrade, change).await
    }
}
