//! Create a cluster.

use std::time::Duration;

use stolos_api::pks::LastAction;
use stolos_flow::{Change, FlowInfo, Graph, Interrupt, Kind, Step, StepError};
use stolos_store::Tx;

use super::{Input, Tools, restore, steps, write_state};
use crate::db;
use crate::render::{NetworkLease, deployment_name};

/// A pod on a fresh node of a busy host starts within seconds; minutes are for a host that is swapping.
const SMOKE_DEADLINE: Duration = Duration::from_secs(5 * 60);

/// The kind of flow.
pub(crate) struct Create(pub(crate) Tools);

impl Kind for Create {
    const NAME: &'static str = "create cluster";
    type Input = Input;

    async fn graph(&self, flow: &FlowInfo, input: Input) -> Result<Graph, StepError> {
        super::refuse_old_life(&self.0.db, flow).await?;
        let cluster = db::cluster_by_id(&self.0.db, input.cluster).await?;
        let mut graph = Graph::new();
        let lease = steps::lease(&mut graph, &self.0, &input);
        // One that begins with a backup's contents has them before it has anything else.
        let restored = input
            .restore
            .clone()
            .map(|source| restore::first(&mut graph, &self.0, &input, &cluster, &lease, source));
        let machines = steps::machines(&mut graph, &self.0, &input, &cluster, &lease, restored.as_ref());
        let mut inherited = None;
        if restored.is_some() {
            // Before anything is tried: what the other cluster's keys vouched for does not work here.
            inherited = Some(
                graph.add(
                    restore::renew_inherited(&self.0, &cluster, &lease)
                        .after(&machines.deploy)
                        .after(&machines.publish),
                ),
            );
            // The nodes of the cluster whose backup it was, as far as this one has no such node.
            graph.add(
                steps::forget_nodes(&self.0, &cluster, &lease)
                    .after(&machines.deploy)
                    .after(&machines.publish),
            );
        }
        // Beside the smoke test: nobody waits for a second DNS server.
        graph.add(
            steps::settings("Apply cluster settings", false, &self.0, &cluster, &lease)
                .after(&machines.deploy)
                .after(&machines.publish),
        );
        let captured = (self.0.clone(), lease.clone(), deployment_name(cluster.id));
        graph.add(
            Step::new("Smoke test", move |ctx| {
                let (tools, from, deployment) = captured.clone();
                async move {
                    let lease: NetworkLease = ctx.output(&from)?;
                    let admin = tools.vault.admin(&deployment).await?;
                    let progress = |text: String| ctx.progress(text);
                    tools
                        .kubernetes
                        .smoke_test(lease.virtual_address, &admin, &progress)
                        .await?;
                    Ok(())
                }
            })
            .after(&lease)
            .after(&machines.deploy)
            .after(&machines.publish)
            .after_all(inherited.as_ref())
            .deadline(SMOKE_DEADLINE)
            .interrupt(Interrupt::Anytime),
        );
        Ok(graph)
    }

    async fn on_state(&self, tx: &mut Tx, change: &Change<'_>) -> Result<(), stolos_store::Error> {
        let Some(input) = super::input_of(change) else {
            return Ok(());
        };
        write_state(tx, &input, LastAction::Create, change).await
    }
}
