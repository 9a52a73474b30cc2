//! Leases on both databases.

use std::collections::HashSet;

use stolos_base::IdSource;
use stolos_base::ids::ClusterId;
use stolos_network::model::CAPACITY;
use stolos_network::{Base, Error, Leases, SCHEMA};
use stolos_store::testing::each;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_lease_is_out_once_and_all_come_back() {
    each(async |place| {
        let base: Base = "10.117.0.0/16".parse().unwrap();
        // Two processes.
        let mut leases = Vec::new();
        for _ in 0..2 {
            leases.push(Leases::open(place.open(&SCHEMA).await, base).await.unwrap());
        }
        let ids = IdSource::counted();
        let clusters: Vec<ClusterId> = (0..CAPACITY).map(|_| ClusterId::new(&ids)).collect();
        let asked = clusters
            .iter()
            .zip(leases.iter().cycle())
            .map(|(cluster, leases)| leases.lease(*cluster));
        let given = futures::future::try_join_all(asked).await.unwrap();
        let segments: HashSet<&str> = given.iter().map(|lease| lease.segment.as_str()).collect();
        let addresses: HashSet<_> = given.iter().map(|lease| lease.virtual_address).collect();
        assert_eq!(
            (segments.len(), addresses.len()),
            (clusters.len(), clusters.len())
        );

        let late = ClusterId::new(&ids);
        assert!(matches!(leases[0].lease(late).await, Err(Error::Exhausted)));
        assert_eq!(
            leases[1].lease(clusters[3]).await.unwrap(),
            given[3],
            "asking again gives the same"
        );

        leases[0].release(clusters[7]).await.unwrap();
        leases[1].release(clusters[7]).await.unwrap();
        assert_eq!(leases[0].find(clusters[7]).await.unwrap(), None);
        assert_eq!(leases[0].lease(late).await.unwrap().segment, given[7].segment);
        for cluster in clusters.iter().chain([&late]) {
            leases[1].release(*cluster).await.unwrap();
        }
        assert_eq!(leases[0].list().await.unwrap(), []);
    })
    .await;
}

#[tokio::test]
async fn the_range_of_an_instance_does_not_change() {
    each(async |place| {
        let db = place.open(&SCHEMA).await;
        Leases::open(db.clone(), "10.117.0.0/16".parse().unwrap())
            .await
            .unwrap();
        let error = Leases::open(db, "10.118.0.0/16".parse().unwrap())
            .await
            .unwrap_err();
        assert!(matches!(error, Error::BaseChanged { .. }), "{error}");
    })
    .await;
}
