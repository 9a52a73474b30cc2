//! Create a cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use stolos_api::pks::LastAction;
use stolos_base::Class;
use stolos_flow::{Change, FlowInfo, Graph, Interrupt, Kind, Step, StepContext, StepError};
use stolos_store::Tx;

use super::{Input, Tools, follow, masters, write_state};
use crate::db::{self, ClusterRow};
use crate::render::{ClusterSpec, NetworkLease, render};

/// A lease is a transaction; longer means that the database is stuck.
const LEASE_DEADLINE: Duration = Duration::from_secs(60);
/// PKS gives a creation thirty minutes, and that on slow clouds; the director's own steps have their own deadlines.
const DEPLOY_DEADLINE: Duration = Duration::from_secs(30 * 60);
/// A pod on a fresh node of a busy host starts within seconds; minutes are for a host that is swapping.
const SMOKE_DEADLINE: Duration = Duration::from_secs(5 * 60);
/// How often the director is asked where the masters are; placement takes well under a second.
const PLACEMENT_INTERVAL: Duration = Duration::from_millis(50);

/// The kind of flow.
pub(crate) struct Create(pub(crate) Tools);

impl Kind for Create {
    const NAME: &'static str = "create cluster";
    type Input = Input;

    async fn graph(&self, _flow: &FlowInfo, input: Input) -> Result<Graph, StepError> {
        let cluster = db::cluster_by_id(&self.0.db, input.cluster).await?;
        let deployment = crate::render::deployment_name(cluster.id);
        let mut graph = Graph::new();

        let tools = self.0.clone();
        let lease = graph.add(
            Step::new("Lease network", move |_| {
                let tools = tools.clone();
                async move {
                    let lease = tools.network.lease(input.cluster).await?;
                    let mut tx = tools
                        .db
                        .begin("note the address")
                        .await
                        .map_err(crate::Error::database("begin"))?;
                    db::set_address(&mut tx, input.cluster, &lease.virtual_address.to_string()).await?;
                    tx.commit()
                        .await
                        .map_err(crate::Error::database("note the address"))?;
                    Ok(lease)
                }
            })
            .deadline(LEASE_DEADLINE),
        );

        // Told by the deploy to the step beside it, which waits for what a failed deploy will never bring.
        let failed = Arc::new(AtomicBool::new(false));
        let (tools, from, spec, told) = (self.0.clone(), lease.clone(), cluster.clone(), failed.clone());
        let deploy = graph.add(
            Step::new("Deploy machines", move |ctx| {
                let (tools, from, cluster, failed) =
                    (tools.clone(), from.clone(), spec.clone(), told.clone());
                async move {
                    let lease: NetworkLease = ctx.output(&from)?;
                    let result = run_deploy(&tools, &ctx, &cluster, &lease).await;
                    failed.store(
                        result.as_ref().is_err_and(|error| !error.retryable),
                        Ordering::Relaxed,
                    );
                    result
                }
            })
            .after(&lease)
            .deadline(DEPLOY_DEADLINE)
            .interrupt(Interrupt::Within(Duration::from_secs(60))),
        );

        // Beside the deploy, not after it: nodes join through the virtual address.
        let (tools, from, name, told) = (self.0.clone(), lease.clone(), deployment.clone(), failed);
        let publish = graph.add(
            Step::new("Publish API address", move |ctx| {
                let (tools, from, deployment, failed) =
                    (tools.clone(), from.clone(), name.clone(), told.clone());
                async move {
                    let lease: NetworkLease = ctx.output(&from)?;
                    ctx.progress("waiting for the masters' addresses");
                    let addresses = loop {
                        let addresses = masters(&tools, &deployment).await?;
                        if !addresses.is_empty() {
                            break addresses;
                        }
                        if failed.load(Ordering::Relaxed) {
                            return Err(StepError::fatal(
                                Class::Conflict,
                                "the deploy failed before masters had addresses",
                            ));
                        }
                        tokio::time::sleep(PLACEMENT_INTERVAL).await;
                    };
                    tools
                        .network
                        .publish(input.cluster, lease.virtual_address, addresses)
                        .await?;
                    Ok(())
                }
            })
            .after(&lease)
            .deadline(DEPLOY_DEADLINE)
            .interrupt(Interrupt::Anytime),
        );

        let (tools, from) = (self.0.clone(), lease);
        graph.add(
            Step::new("Smoke test", move |ctx| {
                let (tools, from, deployment) = (tools.clone(), from.clone(), deployment.clone());
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
            .after(&deploy)
            .after(&publish)
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

async fn run_deploy(
    tools: &Tools,
    ctx: &StepContext,
    cluster: &ClusterRow,
    lease: &NetworkLease,
) -> Result<(), StepError> {
    let spec = ClusterSpec {
        id: cluster.id,
        hostname: cluster.hostname.clone(),
        workers: cluster.workers,
    };
    let rendered = render(&spec, &cluster.plan, lease, &tools.artifacts);
    tools
        .director
        .set_cloud_config(&rendered.deployment, &rendered.cloud_config)
        .await?;
    let context = ctx.flow_id().to_string();
    let task = tools
        .director
        .deploy(&rendered.deployment, &rendered.manifest, &context)
        .await?;
    follow(tools, ctx, task).await
}
