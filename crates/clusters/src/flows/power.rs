//! Stop what runs on a cluster's machines, and start it again. Machines, disks, addresses and certificates stay.
//!
//! Workers stop before masters and start after them, as in PKS's instructions for a planned shutdown. Nothing is drained: pods have nowhere to go. Machines end
//! the containers of pods themselves (`containerd`'s post-stop script), with the time to finish that a host's shutdown gives them.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use stolos_api::pks::LastAction;
use stolos_flow::{Change, FlowInfo, Graph, Interrupt, Kind, Step, StepError, StepRef};
use stolos_store::Tx;

use super::{Input, Tools, follow, steps, write_state};
use crate::db::{self, ClusterRow};
use crate::deps::StateChange;
use crate::render::{MASTERS, NetworkLease, Phase};

/// All machines of a group at once.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// What becomes of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Power {
    /// Nothing runs on its machines.
    Stop,
    /// Everything runs on them.
    Start,
}

/// The kind of flow.
pub(crate) struct SwitchPower(pub(crate) Tools);

impl Kind for SwitchPower {
    const NAME: &'static str = "switch cluster";
    type Input = Input;

    async fn graph(&self, flow: &FlowInfo, input: Input) -> Result<Graph, StepError> {
        super::refuse_old_life(&self.0.db, flow).await?;
        let tools = &self.0;
        let cluster = db::cluster_by_id(&tools.db, input.cluster).await?;
        let power = input
            .power
            .ok_or_else(|| StepError::internal("the operation does not say whether to stop or to start"))?;
        let shape = cluster.shape();
        let pools: Vec<String> = shape.pools.iter().map(|pool| pool.name.clone()).collect();
        let mut graph = Graph::new();
        let lease = steps::lease(&mut graph, tools, &input);
        let switch = Switch {
            tools,
            input: &input,
            cluster: &cluster,
            lease: &lease,
            power,
        };
        match power {
            Power::Stop => {
                let workers = graph.add(switch.step("Stop workers", pools));
                graph.add(
                    switch
                        .step("Stop masters", vec![MASTERS.to_owned()])
                        .after(&workers),
                );
            }
            Power::Start => {
                let masters = graph.add(switch.step("Start masters", vec![MASTERS.to_owned()]));
                let workers = graph.add(switch.step("Start workers", pools).after(&masters));
                graph.add(
                    steps::settings("Apply cluster settings", false, tools, &cluster, &lease).after(&workers),
                );
            }
        }
        Ok(graph)
    }

    async fn on_state(&self, tx: &mut Tx, change: &Change<'_>) -> Result<(), stolos_store::Error> {
        let Some(input) = super::input_of(change) else {
            return Ok(());
        };
        write_state(tx, &input, LastAction::Update, change).await
    }
}

/// What all steps of a flow have.
struct Switch<'a> {
    tools: &'a Tools,
    input: &'a Input,
    cluster: &'a ClusterRow,
    lease: &'a StepRef<NetworkLease>,
    power: Power,
}

impl Switch<'_> {
    /// Group after group; again after a death, the director finds those done that are.
    fn step(&self, name: &'static str, groups: Vec<String>) -> Step<()> {
        let power = self.power;
        let captured = (
            self.tools.clone(),
            self.lease.clone(),
            self.cluster.clone(),
            self.input.clone(),
            groups,
        );
        Step::new(name, move |ctx| {
            let (tools, from, cluster, input, groups) = captured.clone();
            async move {
                let lease: NetworkLease = ctx.output(&from)?;
                let rendered = steps::prepare_deploy(&tools, &cluster, &lease, &input, Phase::Usual).await?;
                for group in groups {
                    // Each deploy of an operation has a context of its own, under which it is found again.
                    let context = format!("{}-{group}", ctx.flow_id());
                    let change = StateChange {
                        group,
                        runs: power == Power::Start,
                    };
                    let task = tools
                        .director
                        .change_state(&rendered.deployment, &rendered.manifest, &context, &change)
                        .await?;
                    follow(&tools, &ctx, task).await?;
                }
                Ok(())
            }
        })
        .after(self.lease)
        .deadline(DEADLINE)
        .interrupt(Interrupt::Within(Duration::from_secs(60)))
    }
}
