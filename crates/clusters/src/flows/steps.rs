//! The steps that creating and updating share: from a cluster's row to machines that are as the row says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use stolos_base::Class;
use stolos_flow::{Graph, Interrupt, Step, StepContext, StepError, StepRef};
use stolos_kubernetes::marks::{Mark, Marks};

use super::{Input, Tools, follow, masters};
use crate::db::{self, ClusterRow};
use crate::deps::{Instance, Told};
use crate::render::{
    ClusterSpec, MASTERS, NetworkLease, Phase, Rendered, deployment_name, dns_replicas, member_of, render,
};
use crate::shape::Group;

/// A lease is a transaction; longer means that the database is stuck.
const LEASE_DEADLINE: Duration = Duration::from_secs(60);
/// PKS gives a creation thirty minutes, and that on slow clouds; the director's own steps have their own deadlines. An update drains one
/// worker after the other, each with its own limit, so it gets much more.
const DEPLOY_DEADLINE: Duration = Duration::from_secs(30 * 60);
const UPDATE_DEADLINE: Duration = Duration::from_secs(24 * 60 * 60);
/// The cluster's API answers or is restarting.
const SETTINGS_DEADLINE: Duration = Duration::from_secs(5 * 60);
/// An API that is there answers in milliseconds; a cluster without one must not hold up its own repair.
const BEST_EFFORT: Duration = Duration::from_secs(3);
/// How often the director is asked where the masters are; placement takes well under a second.
const PLACEMENT_INTERVAL: Duration = Duration::from_millis(50);

/// From whatever a cluster is, half made included, to what its row says: the list of an update and of an upgrade.
pub(super) fn changed(tools: &Tools, input: &Input, cluster: &ClusterRow) -> Graph {
    let mut graph = Graph::new();
    let lease = lease(&mut graph, tools, input);
    // Before any node is drained, so that it is drained as the person wants it now.
    let told = graph.add(settings("Tell drain settings", true, tools, cluster, &lease));
    // Deployed like any other change: one master after the other, then workers.
    let before = if input.renew {
        graph.add(renew_certificates(tools, cluster).after(&told))
    } else {
        told
    };
    let machines = machines(&mut graph, tools, input, cluster, &lease, Some(&before));
    graph.add(
        settings("Apply cluster settings", false, tools, cluster, &lease)
            .after(&machines.deploy)
            .after(&machines.publish),
    );
    graph.add(
        forget_nodes(tools, cluster, &lease)
            .after(&lease)
            .after(&machines.deploy)
            .after(&machines.publish),
    );
    graph
}

/// Leases network and address, and notes the address in the cluster's row.
pub(super) fn lease(graph: &mut Graph, tools: &Tools, input: &Input) -> StepRef<NetworkLease> {
    let (tools, cluster) = (tools.clone(), input.cluster);
    graph.add(
        Step::new("Lease network", move |_| {
            let tools = tools.clone();
            async move {
                let lease = tools.network.lease(cluster).await?;
                let mut tx = tools
                    .db
                    .begin_background("note the address")
                    .await
                    .map_err(crate::Error::database("begin"))?;
                db::set_address(&mut tx, cluster, &lease.virtual_address.to_string()).await?;
                tx.commit()
                    .await
                    .map_err(crate::Error::database("note the address"))?;
                Ok(lease)
            }
        })
        .deadline(LEASE_DEADLINE),
    )
}

/// The machines, and beside them the address that they are reached under.
pub(super) struct Machines {
    pub(super) deploy: StepRef<()>,
    pub(super) publish: StepRef<()>,
}

/// Has the director make the machines as the row says, after `before` where that is given, and publishes the API's address as soon as
/// masters have theirs.
pub(super) fn machines(
    graph: &mut Graph,
    tools: &Tools,
    input: &Input,
    cluster: &ClusterRow,
    lease: &StepRef<NetworkLease>,
    before: Option<&StepRef<()>>,
) -> Machines {
    // Told by the deploy to the step beside it, which waits for what a failed deploy will never bring.
    let failed = Arc::new(AtomicBool::new(false));
    let deadline = match input.rollout {
        crate::render::Rollout::Fresh => DEPLOY_DEADLINE,
        crate::render::Rollout::Careful => UPDATE_DEADLINE,
    };
    let captured = (
        tools.clone(),
        lease.clone(),
        cluster.clone(),
        input.clone(),
        Arc::clone(&failed),
    );
    let deploy = graph.add({
        let step = Step::new("Deploy machines", move |ctx| {
            let (tools, from, cluster, input, failed) = captured.clone();
            async move {
                let lease: NetworkLease = ctx.output(&from)?;
                let result = run_deploy(&tools, &ctx, &cluster, &lease, &input, Phase::Usual).await;
                failed.store(
                    result.as_ref().is_err_and(|error| !error.retryable),
                    Ordering::Relaxed,
                );
                result
            }
        })
        .after(lease)
        .after_all(before)
        .deadline(deadline);
        step.interrupt(Interrupt::Within(Duration::from_secs(60)))
    });

    // Beside the deploy, not after it: nodes join through the virtual address.
    let captured = (
        tools.clone(),
        lease.clone(),
        deployment_name(cluster.id),
        input.cluster,
        failed,
        usize::try_from(cluster.shape().masters.instances).unwrap_or(1),
    );
    let publish = graph.add(
        Step::new("Publish API address", move |ctx| {
            let (tools, from, deployment, cluster, failed, count) = captured.clone();
            async move {
                let lease: NetworkLease = ctx.output(&from)?;
                ctx.progress("waiting for the masters' addresses");
                let addresses = loop {
                    let addresses = masters(&tools, &deployment).await?;
                    // Those that are going are not to be led to any more.
                    if addresses.len() == count {
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
                    .publish(cluster, lease.virtual_address, addresses)
                    .await?;
                Ok(())
            }
        })
        .after(lease)
        .deadline(deadline)
        .interrupt(Interrupt::Anytime),
    );
    Machines { deploy, publish }
}

/// Renders what the cluster is to be, and gives its cloud config to the director.
pub(super) async fn prepare_deploy(
    tools: &Tools,
    cluster: &ClusterRow,
    lease: &NetworkLease,
    input: &Input,
    phase: Phase,
) -> Result<Rendered, StepError> {
    let networks = cluster.settings.networks();
    let spec = ClusterSpec {
        id: cluster.id,
        hostname: &cluster.hostname,
        plan: &cluster.plan,
        workers: cluster.workers,
        settings: &cluster.settings,
        networks: networks.map_err(|invalid| StepError::fatal(Class::Internal, invalid.to_string()))?,
        rollout: input.rollout,
        in_flight: input.in_flight,
        phase,
    };
    // Rows of an older version do not say what their machines are made of.
    let artifacts = match &cluster.settings.artifacts {
        Some(own) => own,
        None => tools.artifacts.for_plan(&cluster.plan)?,
    };
    let rendered = render(&spec, lease, artifacts);
    if let Some(profile) = &cluster.settings.kubernetes_profile {
        for flag in &profile.files {
            let (from, to) = (profile.file_name(flag), profile.variable_of(flag));
            tools.vault.copy(&from, &rendered.deployment, &to).await?;
        }
    }
    tools
        .director
        .set_cloud_config(&rendered.deployment, &rendered.cloud_config)
        .await?;
    Ok(rendered)
}

/// One deploy of the cluster, followed to its end.
pub(super) async fn run_deploy(
    tools: &Tools,
    ctx: &StepContext,
    cluster: &ClusterRow,
    lease: &NetworkLease,
    input: &Input,
    phase: Phase,
) -> Result<(), StepError> {
    let rendered = prepare_deploy(tools, cluster, lease, input, phase).await?;
    let flow = ctx.flow_id();
    let (name, manifest) = (&rendered.deployment, &rendered.manifest);
    // Each deploy of an operation has a context of its own, under which it is found again.
    let task = match phase {
        Phase::Usual => tools.director.deploy(name, manifest, &flow.to_string()).await?,
        Phase::Held => {
            let context = format!("{flow}-held");
            tools
                .director
                .deploy_abruptly(name, manifest, &context, MASTERS)
                .await?
        }
        Phase::Restoring { .. } => {
            let context = format!("{flow}-restoring");
            tools.director.deploy(name, manifest, &context).await?
        }
    };
    follow(tools, ctx, task).await
}

/// Tells the cluster how its nodes are drained, and scales what follows the number of workers. `best_effort` is for before a deploy: a
/// cluster that is half made has no API to tell.
pub(super) fn settings(
    name: &'static str,
    best_effort: bool,
    tools: &Tools,
    cluster: &ClusterRow,
    lease: &StepRef<NetworkLease>,
) -> Step<()> {
    let captured = (tools.clone(), lease.clone(), cluster.clone());
    Step::new(name, move |ctx| {
        let (tools, from, cluster) = captured.clone();
        async move {
            let lease: NetworkLease = ctx.output(&from)?;
            let told = async {
                let admin = tools.vault.admin(&deployment_name(cluster.id)).await?;
                let settings = Told {
                    drain: cluster.settings.drain.over(cluster.plan.drain),
                    dns_replicas: dns_replicas(cluster.workers),
                    // Before a deploy, nodes are as they were.
                    marks: (!best_effort).then(|| marks(&cluster)),
                };
                tools
                    .kubernetes
                    .apply_settings(lease.virtual_address, &admin, &settings)
                    .await
            };
            if !best_effort {
                return Ok(told.await?);
            }
            let why = match tokio::time::timeout(BEST_EFFORT, told).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => stolos_base::chain(&error),
                Err(_) => format!("its API did not answer within {} s", BEST_EFFORT.as_secs()),
            };
            ctx.progress(format!("the cluster cannot be told yet: {why}"));
            Ok(())
        }
    })
    .after(lease)
    .deadline(SETTINGS_DEADLINE)
    .interrupt(Interrupt::Anytime)
}

/// Labels and taints of the groups of nodes.
fn marks(cluster: &ClusterRow) -> BTreeMap<String, Marks> {
    let of = |group: &Group| Marks {
        labels: group.labels.clone(),
        taints: group
            .taints
            .iter()
            .map(|taint| Mark {
                key: taint.key.clone(),
                value: taint.value.clone(),
                effect: taint.effect.clone(),
            })
            .collect(),
    };
    let shape = cluster.shape();
    let pools = shape.pools.iter();
    pools.map(|group| (group.name.clone(), of(group))).collect()
}

/// Makes the leaves anew that are older than the request. Again after a death, it finds those that are new already.
fn renew_certificates(tools: &Tools, cluster: &ClusterRow) -> Step<()> {
    let captured = (tools.clone(), deployment_name(cluster.id));
    Step::new("Renew certificates", move |ctx| {
        let (tools, deployment) = captured.clone();
        async move {
            let asked = jiff::Timestamp::from_millisecond(ctx.flow().created_at)
                .map_err(|error| StepError::fatal(Class::Internal, error.to_string()))?;
            let renewed = tools.vault.renew(&deployment, asked).await?;
            ctx.progress(format!("{} certificates", renewed.len()));
            Ok(())
        }
    })
    .deadline(SETTINGS_DEADLINE)
}

/// Deletes the nodes whose machines are gone, and their certificates.
pub(super) fn forget_nodes(tools: &Tools, cluster: &ClusterRow, lease: &StepRef<NetworkLease>) -> Step<()> {
    let captured = (tools.clone(), lease.clone(), deployment_name(cluster.id));
    Step::new("Forget nodes that are gone", move |ctx| {
        let (tools, from, deployment) = captured.clone();
        async move {
            let lease: NetworkLease = ctx.output(&from)?;
            let admin = tools.vault.admin(&deployment).await?;
            let instances = tools.director.instances(&deployment).await?;
            let keep: BTreeSet<String> = instances.iter().map(node_name).collect();
            let gone = tools
                .kubernetes
                .forget_nodes(lease.virtual_address, &admin, &keep)
                .await?;
            // Certificates of machines that are gone end some day, and would be shown and renewed until then.
            for certificate in tools.vault.certificates(&deployment).await? {
                if member_of(&certificate.name).is_some_and(|node| !keep.contains(node)) {
                    tools.vault.forget_certificate(&certificate.name).await?;
                }
            }
            if !gone.is_empty() {
                ctx.progress(gone.join(", "));
            }
            Ok(())
        }
    })
    .deadline(SETTINGS_DEADLINE)
    .interrupt(Interrupt::Anytime)
}

/// The name under which an instance's node registers.
fn node_name(instance: &Instance) -> String {
    format!("{}-{}", instance.group, instance.index)
}
