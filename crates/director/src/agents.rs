//! Who answers and who does not.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream;
use stolos_base::ids::{AgentId, InstanceId};
use stolos_mbus::Bus;

use crate::db::inventory::InstanceRow;

/// How long an agent may take to answer before its machine counts as one in which nobody does.
const PATIENCE: Duration = Duration::from_secs(5);
/// Agents asked at once.
const AT_ONCE: usize = 32;

/// An instance whose agent is asked.
pub(crate) struct Asked {
    instance: InstanceId,
    agent: AgentId,
    name: String,
}

impl Asked {
    /// `None` for one without a machine.
    pub(crate) fn of(row: &InstanceRow) -> Option<Self> {
        row.machine().map(|(vm, _)| Self {
            instance: row.id,
            agent: vm.agent,
            name: row.name(),
        })
    }

    pub(crate) fn instance(&self) -> InstanceId {
        self.instance
    }
}

/// Those that do not answer, `times` in a row.
pub(crate) async fn silent(bus: &Bus, asked: Vec<Asked>, times: u32) -> BTreeSet<InstanceId> {
    let bus = bus.clone();
    stream::iter(asked)
        .map(move |asked| {
            let client = bus.agent(asked.agent, asked.name).with_timeout(PATIENCE);
            async move {
                for _ in 0..times {
                    if client.ping().await.is_ok() {
                        return None;
                    }
                }
                Some(asked.instance)
            }
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await
}
