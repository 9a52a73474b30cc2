//! One bad cluster, or many of them, block no other.

use std::time::{Duration, Instant};

use futures::future::join_all;
use stolos_api::pks::{self, ClusterParameters, ClusterRequest, ClusterTag, LastActionState, OperationState};
use stolos_store::testing::each;
use stolos_testbed::note;
use stolos_testbed::simulated::Simulation;
use tokio_util::sync::CancellationToken;

/// What is wrong with a cluster, as the tag by which its machines know.
const FAULTS: [&str; 4] = ["silent", "stuck", "hanging", "failing"];
/// Bad clusters of each kind: together they have more machines than there are places for CPI calls.
const BAD: usize = 5;
const GOOD: usize = 6;

pub(crate) async fn create(client: &pks::Client, name: &str, tag: &str) -> String {
    let request = ClusterRequest {
        name: name.to_owned(),
        plan_name: "small".to_owned(),
        parameters: ClusterParameters {
            kubernetes_master_host: Some(format!("{name}.test")),
            cluster_tags: Some(vec![ClusterTag {
                name: "kind".to_owned(),
                value: tag.to_owned(),
                category: None,
            }]),
            ..ClusterParameters::default()
        },
        network_profile_name: None,
        compute_profile_name: None,
        kubernetes_profile_name: None,
        other: indexmap::IndexMap::new(),
    };
    let (_, begun) = client.create_cluster(&request).await.expect("it is accepted");
    begun.operation.expect("an operation")
}

/// Follows an operation to its end.
pub(crate) async fn ended(client: &pks::Client, id: &str) -> pks::Operation {
    loop {
        let operation = client.operation(id, Duration::from_secs(10)).await;
        let operation = operation.expect("the operation");
        if operation.state.is_final() {
            return operation;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_clusters_block_no_other_and_can_be_deleted() {
    each(async |place| {
        let directory = camino_tempfile::tempdir().expect("a directory");
        let simulation = Simulation::start(directory.path(), place.url().clone())
            .await
            .expect("an installation");
        let client = simulation.access().client().await.expect("a client");
        let stuck = CancellationToken::new();
        {
            let mut state = simulation.machines.state();
            state.silent.insert("silent".to_owned());
            state.stuck.insert("stuck".to_owned(), stuck.clone());
            state.hanging.push("hanging master/0 pre-start".to_owned());
            state.failing.insert(
                "failing master/0 pre-start".to_owned(),
                "it does not like this".to_owned(),
            );
        }
        let mut bad = Vec::new();
        for number in 0..BAD {
            for fault in FAULTS {
                let name = format!("{fault}-{number}");
                create(&client, &name, fault).await;
                bad.push(name);
            }
        }
        // The good ones come last, when the bad ones have taken all that can be taken.
        let mut good = Vec::new();
        for number in 0..GOOD {
            good.push(create(&client, &format!("good-{number}"), "good").await);
        }
        let began = Instant::now();
        for operation in join_all(good.iter().map(|id| ended(&client, id))).await {
            assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
        }
        note(format!(
            "{GOOD} good clusters among {} bad ones on {}: {:?}",
            bad.len(),
            place.engine(),
            began.elapsed()
        ));
        for cluster in client.clusters().await.expect("the clusters") {
            let expected: &[LastActionState] = match cluster.name.split('-').next() {
                Some("good") => &[LastActionState::Succeeded],
                // Its turn may not have come.
                Some("failing") => &[LastActionState::Failed, LastActionState::InProgress],
                _ => &[LastActionState::InProgress],
            };
            assert!(expected.contains(&cluster.last_action_state), "{cluster:?}");
        }

        // What hangs at the infrastructure can only be waited for; everything else is cancelled.
        stuck.cancel();
        let deletions = join_all(bad.iter().map(|name| client.delete_cluster(name))).await;
        for deletion in deletions {
            let id = deletion.expect("it is accepted").expect("an operation");
            let operation = ended(&client, &id).await;
            assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
        }
        let left = client.clusters().await.expect("the clusters");
        assert_eq!(left.len(), GOOD, "{left:?}");
        assert_eq!(simulation.machines.books().vms.len(), 2 * GOOD);
        simulation.stop().await;
    })
    .await;
}
