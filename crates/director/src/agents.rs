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
/// The same where it is about how many they are rather than who.
const MANY_AT_ONCE: usize = 256;

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
    let asked = asked
        .into_iter()
        .map(|asked| (asked.instance, asked.agent, asked.name));
    silent_among(bus, asked.collect(), times, AT_ONCE).await
}

/// Those among many agents that do not answer once.
pub(crate) async fn silent_agents(bus: &Bus, agents: Vec<AgentId>) -> BTreeSet<AgentId> {
    let asked = agents.into_iter().map(|agent| (agent, agent, agent.to_string()));
    silent_among(bus, asked.collect(), 1, MANY_AT_ONCE).await
}

async fn silent_among<K: Ord + Send + 'static>(
    bus: &Bus,
    asked: Vec<(K, AgentId, String)>,
    times: u32,
    at_once: usize,
) -> BTreeSet<K> {
    let bus = bus.clone();
    stream::iter(asked)
        .map(move |(key, agent, name)| {
            let client = bus.agent(agent, name).with_timeout(PATIENCE);
            async move {
                for _ in 0..times {
                    if client.ping().await.is_ok() {
                        return None;
                    }
                }
                Some(key)
            }
        })
        .buffer_unordered(at_once)
        .filter_map(std::future::ready)
        .collect()
        .await
}
