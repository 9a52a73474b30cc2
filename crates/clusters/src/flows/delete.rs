//! Delete a cluster: everything that creating it made, in the opposite order. Reads nothing of the cluster's row, so that a
//! cluster that was half made, or whose row is broken, can be deleted too.

use std::time::Duration;

use stolos_api::pks::LastAction;
use stolos_base::Class;
use stolos_base::ids::ClusterId;
use stolos_flow::{Change, FlowInfo, Graph, Interrupt, Kind, Step, StepError};
use stolos_store::Tx;

use super::{Input, Tools, follow, write_state};
use crate::error::Result;

/// Machines are ended, not asked: minutes are for a host that is swapping.
const DELETE_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// Each of the others is a transaction or one local call.
const SHORT_DEADLINE: Duration = Duration::from_secs(60);

/// The kind of flow.
pub(crate) struct Delete(pub(crate) Tools);

/// What there still is of a cluster, as each of those says that had a part of it.
async fn left(tools: &Tools, cluster: ClusterId, deployment: &str) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let instances = tools.director.instances(deployment).await?;
    left.extend(
        instances
            .iter()
            .map(|instance| format!("machine {}/{}", instance.group, instance.index)),
    );
    let certificates = tools.vault.certificates(deployment).await?;
    left.extend(
        certificates
            .into_iter()
            .map(|certificate| format!("credential {}", certificate.name)),
    );
    if let Some(lease) = tools.network.find(cluster).await? {
        left.push(format!("network {}", lease.range));
    }
    Ok(left)
}

impl Kind for Delete {
    const NAME: &'static str = "delete cluster";
    type Input = Input;

    async fn graph(&self, flow: &FlowInfo, input: Input) -> std::result::Result<Graph, StepError> {
        super::refuse_old_life(&self.0.db, flow).await?;
        let deployment = crate::render::deployment_name(input.cluster);
        let mut graph = Graph::new();

        let (tools, name) = (self.0.clone(), deployment.clone());
        let machines = graph.add(
            Step::new("Delete machines", move |ctx| {
                let (tools, deployment) = (tools.clone(), name.clone());
                async move {
                    let context = ctx.flow_id().to_string();
                    match tools.director.delete(&deployment, &context).await? {
                        Some(task) => follow(&tools, &ctx, task).await,
                        None => Ok(()),
                    }
                }
            })
            .deadline(DELETE_DEADLINE)
            .interrupt(Interrupt::Within(Duration::from_secs(60))),
        );

        let tools = self.0.clone();
        let withdraw = graph.add(
            Step::new("Withdraw API address", move |_| {
                let tools = tools.clone();
                async move {
                    if let Some(lease) = tools.network.find(input.cluster).await? {
                        tools.network.withdraw(lease.virtual_address).await?;
                    }
                    Ok(())
                }
            })
            .after(&machines)
            .deadline(SHORT_DEADLINE),
        );

        let (tools, name) = (self.0.clone(), deployment.clone());
        let credentials = graph.add(
            Step::new("Delete credentials", move |_| {
                let (tools, deployment) = (tools.clone(), name.clone());
                async move {
                    tools.vault.forget(&deployment).await?;
                    tools.director.delete_cloud_config(&deployment).await?;
                    Ok(())
                }
            })
            .after(&machines)
            .deadline(SHORT_DEADLINE),
        );

        let tools = self.0.clone();
        let network = graph.add(
            Step::new("Release network", move |_| {
                let tools = tools.clone();
                async move {
                    tools.network.release(input.cluster).await?;
                    Ok(())
                }
            })
            .after(&withdraw)
            .deadline(SHORT_DEADLINE),
        );

        let tools = self.0.clone();
        graph.add(
            Step::new("Check that nothing is left", move |_| {
                let (tools, deployment) = (tools.clone(), deployment.clone());
                async move {
                    let left = left(&tools, input.cluster, &deployment).await?;
                    if left.is_empty() {
                        return Ok(());
                    }
                    Err(StepError::fatal(
                        Class::Internal,
                        format!("still there: {}", left.join(", ")),
                    ))
                }
            })
            .after(&credentials)
            .after(&network)
            .deadline(SHORT_DEADLINE),
        );
        Ok(graph)
    }

    async fn on_state(
        &self,
        tx: &mut Tx,
        change: &Change<'_>,
    ) -> std::result::Result<(), stolos_store::Error> {
        let Some(input) = super::input_of(change) else {
            return Ok(());
        };
        write_state(tx, &input, LastAction::Delete, change).await
    }
}
