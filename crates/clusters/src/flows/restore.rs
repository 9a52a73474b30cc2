//! Give a cluster the contents of a backup, in place of its own or as its first.
//!
//! First all masters are held: nothing runs on them, and one, the seed, lays the backup's data ready beside its own. Until then nothing is lost, and an update
//! brings the cluster back as it was. Then etcd alone runs: the seed with the backup's data, the others as members that join it. Then everything runs
//! again, as after any update. Machines do each part once for each operation, however often it is begun (`stolos-job etcd-restore`).

use std::time::Duration;

use serde_json::json;
use stolos_api::pks::LastAction;
use stolos_base::{Class, Secret, chain};
use stolos_flow::{Change, FlowInfo, Graph, Interrupt, Kind, Step, StepContext, StepError, StepRef};
use stolos_store::Tx;

use super::backup::save;
use super::{Input, Source, Tools, steps, write_state};
use crate::db::{self, ClusterRow};
use crate::deps::Backup;
use crate::error::Error;
use crate::render::{MASTERS, NetworkLease, Phase, RESTORE_VARIABLE, deployment_name};

/// Two gigabytes over a slow line from the place.
const READ_DEADLINE: Duration = Duration::from_secs(60 * 60);
/// As many pods as a cluster may have, one after the other.
const RENEW_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// A credential is written.
const OFFER_DEADLINE: Duration = Duration::from_secs(60);
/// The seed reads the backup; machines change one after the other.
const DEPLOY_DEADLINE: Duration = Duration::from_secs(2 * 60 * 60);
/// How far revisions are moved on beside what the cluster may have written since the backup: so whoever remembers later revisions,
/// a kubelet or a controller, sees none of them again.
const LEAP: u64 = 1_000_000_000;
/// Revisions that a cluster makes in a second at most, over days. Counted from the backup's time, so that of two restores of one backup the later one is ahead.
const PER_SECOND: u64 = 1_000;

/// The kind of flow.
pub(crate) struct Restore(pub(crate) Tools);

impl Kind for Restore {
    const NAME: &'static str = "restore cluster";
    type Input = Input;

    async fn graph(&self, flow: &FlowInfo, input: Input) -> Result<Graph, StepError> {
        super::refuse_old_life(&self.0.db, flow).await?;
        let tools = &self.0;
        let cluster = db::cluster_by_id(&tools.db, input.cluster).await?;
        let source = input
            .restore
            .clone()
            .ok_or_else(|| StepError::internal("the operation does not say what is restored"))?;
        let mut graph = Graph::new();
        let lease = steps::lease(&mut graph, tools, &input);
        let found = look(&mut graph, tools, source);
        let captured = (tools.clone(), cluster.clone());
        let saved = graph.add(
            Step::new("Back up what there is", move |ctx| {
                let (tools, cluster) = captured.clone();
                async move {
                    // Often it is restored because there is nothing left to be saved.
                    match save(&tools, &ctx, &cluster).await {
                        Ok(backup) => ctx.progress(format!("backup {}", backup.id)),
                        Err(error) => {
                            tracing::warn!(cluster = %cluster.name, error = %chain(&error), "what a cluster has cannot be saved before it is restored");
                            ctx.progress(format!("what there is cannot be saved: {}", chain(&error)));
                        }
                    }
                    Ok(())
                }
            })
            .after(&found)
            .deadline(READ_DEADLINE)
            .interrupt(Interrupt::Anytime),
        );
        let offered = graph.add(offer(tools, &cluster, &found).after(&saved));
        let held =
            graph.add(deploy("Stop masters", Phase::Held, tools, &input, &cluster, &lease).after(&offered));
        let phase = Phase::Restoring { alone: false };
        let restored = graph.add(deploy("Restore etcd", phase, tools, &input, &cluster, &lease).after(&held));
        let machines = steps::machines(&mut graph, tools, &input, &cluster, &lease, Some(&restored));
        let settings = graph.add(
            steps::settings("Apply cluster settings", false, tools, &cluster, &lease)
                .after(&machines.deploy)
                .after(&machines.publish),
        );
        graph.add(
            steps::forget_nodes(tools, &cluster, &lease)
                .after(&lease)
                .after(&settings),
        );
        graph.add(withdraw(tools, &cluster).after(&machines.deploy));
        Ok(graph)
    }

    async fn on_state(&self, tx: &mut Tx, change: &Change<'_>) -> Result<(), stolos_store::Error> {
        let Some(input) = super::input_of(change) else {
            return Ok(());
        };
        write_state(tx, &input, LastAction::Update, change).await
    }
}

/// What comes before the machines of a new cluster that begins with a backup's contents: masters with etcd alone.
pub(super) fn first(
    graph: &mut Graph,
    tools: &Tools,
    input: &Input,
    cluster: &ClusterRow,
    lease: &StepRef<NetworkLease>,
    source: Source,
) -> StepRef<()> {
    let found = look(graph, tools, source);
    let offered = graph.add(offer(tools, cluster, &found));
    let phase = Phase::Restoring { alone: true };
    graph.add(deploy("Restore etcd", phase, tools, input, cluster, lease).after(&offered))
}

/// Renews what only the other cluster's keys make good, from the time before this operation.
pub(super) fn renew_inherited(
    tools: &Tools,
    cluster: &ClusterRow,
    lease: &StepRef<NetworkLease>,
) -> Step<()> {
    let captured = (tools.clone(), lease.clone(), deployment_name(cluster.id));
    Step::new("Renew identities", move |ctx| {
        let (tools, from, deployment) = captured.clone();
        async move {
            let lease: NetworkLease = ctx.output(&from)?;
            let admin = tools.vault.admin(&deployment).await?;
            let since = jiff::Timestamp::from_millisecond(ctx.flow().created_at)
                .map_err(|error| StepError::fatal(Class::Internal, error.to_string()))?;
            let renewed = tools
                .kubernetes
                .renew_inherited(lease.virtual_address, &admin, since)
                .await?;
            ctx.progress(renewed);
            Ok(())
        }
    })
    .after(lease)
    .deadline(RENEW_DEADLINE)
    .interrupt(Interrupt::Anytime)
}

/// Reads all of the backup before anything is stopped for it.
fn look(graph: &mut Graph, tools: &Tools, source: Source) -> StepRef<Backup> {
    let captured = (tools.clone(), source);
    graph.add(
        Step::new("Verify backup", move |ctx| {
            let (tools, source) = captured.clone();
            async move {
                let kept = tools.backups.as_ref().ok_or(Error::NoBackups)?;
                let backup = kept.place.verify(source.cluster, &source.backup).await?;
                ctx.progress(format!("{} of cluster {}", backup.id, backup.of.name));
                Ok(backup)
            }
        })
        .deadline(READ_DEADLINE)
        .interrupt(Interrupt::Anytime),
    )
}

/// Tells masters where the backup is, through a credential: the address is a right.
fn offer(tools: &Tools, cluster: &ClusterRow, found: &StepRef<Backup>) -> Step<()> {
    let captured = (tools.clone(), found.clone(), deployment_name(cluster.id));
    Step::new("Offer backup", move |ctx| {
        let (tools, from, deployment) = captured.clone();
        async move {
            let backup: Backup = ctx.output(&from)?;
            let kept = tools.backups.as_ref().ok_or(Error::NoBackups)?;
            let offer = kept.place.offer(&backup)?;
            let instances = tools.director.instances(&deployment).await?;
            let masters = instances.iter().filter(|instance| instance.group == MASTERS);
            // A new cluster has none yet; its first will be number 0.
            let seed = masters.map(|master| master.index).min().unwrap_or(0);
            let age = tools.db.clock().now().as_second() - backup.taken_at.as_second();
            let wish = json!({
                "id": ctx.flow_id().to_string(),
                "seed": format!("{MASTERS}-{seed}"),
                "url": offer.url.expose(),
                "ca": offer.ca,
                "sha256": backup.sha256,
                "size": backup.size,
                "bump_revision": LEAP + PER_SECOND * u64::try_from(age).unwrap_or(0),
            });
            let name = tools.vault.name(&deployment, RESTORE_VARIABLE)?;
            tools.vault.put(&name, Secret::from(wish.to_string())).await?;
            Ok(())
        }
    })
    .after(found)
    .deadline(OFFER_DEADLINE)
}

/// Nothing refers to it any more; what is left of the address holds for a day at most.
fn withdraw(tools: &Tools, cluster: &ClusterRow) -> Step<()> {
    let captured = (tools.clone(), deployment_name(cluster.id));
    Step::new("Withdraw backup", move |_: StepContext| {
        let (tools, deployment) = captured.clone();
        async move {
            let name = tools.vault.name(&deployment, RESTORE_VARIABLE)?;
            tools.vault.put(&name, Secret::from(String::new())).await?;
            Ok(())
        }
    })
    .deadline(OFFER_DEADLINE)
}

fn deploy(
    name: &'static str,
    phase: Phase,
    tools: &Tools,
    input: &Input,
    cluster: &ClusterRow,
    lease: &StepRef<NetworkLease>,
) -> Step<()> {
    let captured = (tools.clone(), lease.clone(), cluster.clone(), input.clone());
    Step::new(name, move |ctx| {
        let (tools, from, cluster, input) = captured.clone();
        async move {
            let lease: NetworkLease = ctx.output(&from)?;
            steps::run_deploy(&tools, &ctx, &cluster, &lease, &input, phase).await
        }
    })
    .after(lease)
    .deadline(DEPLOY_DEADLINE)
    .interrupt(Interrupt::Within(Duration::from_secs(60)))
}
