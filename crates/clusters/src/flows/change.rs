//! Change a cluster: from whatever it is, half made included, to what its row says now. An upgrade is an update whose row names newer parts.

use stolos_api::pks::LastAction;
use stolos_flow::{Change, FlowInfo, Graph, Kind, StepError};
use stolos_store::Tx;

use super::{Input, Tools, steps, write_state};
use crate::db;

/// The kind of flow of an update.
pub(crate) type Update = Changing<false>;
/// The kind of flow of an upgrade.
pub(crate) type Upgrade = Changing<true>;

/// Both kinds; they differ in their names alone.
pub(crate) struct Changing<const UPGRADE: bool>(Tools);

impl<const UPGRADE: bool> Changing<UPGRADE> {
    pub(crate) fn new(tools: Tools) -> Self {
        Self(tools)
    }
}

impl<const UPGRADE: bool> Kind for Changing<UPGRADE> {
    const NAME: &'static str = if UPGRADE {
        "upgrade cluster"
    } else {
        "update cluster"
    };
    type Input = Input;

    async fn graph(&self, flow: &FlowInfo, input: Input) -> Result<Graph, StepError> {
        super::refuse_old_life(&self.0.db, flow).await?;
        let cluster = db::cluster_by_id(&self.0.db, input.cluster).await?;
        Ok(steps::changed(&self.0, &input, &cluster))
    }

    async fn on_state(&self, tx: &mut Tx, change: &Change<'_>) -> Result<(), stolos_store::Error> {
        let Some(input) = super::input_of(change) else {
            return Ok(());
        };
        let action = if UPGRADE {
            LastAction::Upgrade
        } else {
            LastAction::Update
        };
        write_state(tx, &input, action, change).await
    }
}
