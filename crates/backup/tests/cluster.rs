//! Backups of clusters in a directory and in an S3-compatible store: whole or not there, bound to their cluster, verified, retained.

use aws_lc_rs::digest;
use stolos_backup::{
    About, BackupKey, ClusterManifest, ClusterSource, Error, give_cluster, list_clusters, newest_cluster,
    retain_cluster, take_cluster, verify_cluster,
};
use stolos_base::ids::ClusterId;
use stolos_base::{Clock, IdSource};
use stolos_blobs::objects::testing::Store;
use stolos_blobs::objects::{ObjectName, Objects};

struct World {
    objects: Objects,
    key: BackupKey,
    clock: Clock,
}

impl World {
    fn new(objects: Objects) -> Self {
        Self {
            objects,
            key: BackupKey::new([7; 32]),
            clock: Clock::system(),
        }
    }

    async fn take(&self, cluster: ClusterId, bytes: &[u8]) -> Result<ClusterManifest, Error> {
        let source = ClusterSource {
            installation: "here",
            version: "1",
            cluster,
            about: About {
                name: "demo".to_owned(),
                owner: "alana".to_owned(),
                kubernetes_version: "1.37.1".to_owned(),
                etcd_version: "3.6.16".to_owned(),
                revision: 42,
                members: 3,
                pods: "10.200.0.0/16".to_owned(),
                services: "10.100.200.0/24".to_owned(),
                encrypted_by: None,
                before_restore: false,
            },
            clock: self.clock.clone(),
        };
        take_cluster(&source, bytes, &self.objects, &self.key).await
    }

    async fn names(&self) -> Vec<String> {
        let listed = self.objects.list(None).await.expect("a list");
        listed.into_iter().map(|object| object.name.to_string()).collect()
    }

    async fn listed(&self, cluster: ClusterId) -> Vec<(String, Option<String>)> {
        let all = list_clusters(&self.objects, &self.key, Some(cluster)).await;
        let all = all.expect("a list").into_iter();
        all.map(|one| (one.which.id.to_string(), one.problem)).collect()
    }
}

/// Runs a test in a directory, and in a store of S3's kind where there is one.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
async fn everywhere(test: impl AsyncFn(World)) {
    let directory = camino_tempfile::tempdir().expect("a directory");
    test(World::new(Objects::directory(directory.path().join("place")))).await;
    match Store::start() {
        Ok(store) => test(World::new(store.objects("clusters-of-a-test"))).await,
        Err(reason) => eprintln!("skipped on S3: {reason}"),
    }
}

/// Bytes that pass for etcd's.
fn snapshot(fill: u8) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..900_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 ^ fill)
        .collect();
    bytes[16..20].copy_from_slice(&0xED0C_DAED_u32.to_le_bytes());
    let trailer = digest::digest(&digest::SHA256, &bytes);
    bytes.extend_from_slice(trailer.as_ref());
    bytes
}

fn cluster() -> ClusterId {
    ClusterId::new(&IdSource::random())
}

#[tokio::test]
async fn what_was_taken_comes_back_and_only_that() {
    everywhere(comes_back).await;
}

async fn comes_back(world: World) {
    let (one, two) = (cluster(), cluster());
    let bytes = snapshot(1);
    let manifest = world.take(one, &bytes).await.expect("taken");
    assert_eq!(manifest.size, bytes.len() as u64);
    let mut given = Vec::new();
    give_cluster(&world.objects, &world.key, &manifest, &mut given)
        .await
        .expect("given");
    assert!(given == bytes);
    let other = world.take(two, &snapshot(2)).await.expect("taken");
    let verified = verify_cluster(&world.objects, &world.key, &manifest.which())
        .await
        .expect("it is whole");
    assert_eq!(verified, manifest);
    assert_eq!(
        newest_cluster(&world.objects, &world.key, two)
            .await
            .expect("one"),
        other
    );

    // Nothing of it lies there in clear.
    for name in world.names().await.iter().filter(|name| *name != "place.json") {
        let name: ObjectName = name.parse().expect("a name");
        let stored = world.objects.get(&name, 1 << 30).await.expect("there");
        let text = String::from_utf8_lossy(&stored);
        assert!(
            stored.starts_with(b"stolos-backup-1\n") && !text.contains("demo"),
            "{name}"
        );
    }

    // Another cluster's snapshot, or another key's, does not open.
    let object = |manifest: &ClusterManifest| -> ObjectName {
        format!("clusters/{}/{}/snapshot", manifest.cluster, manifest.id)
            .parse()
            .expect("a name")
    };
    let own = world.objects.get(&object(&manifest), 1 << 30).await.expect("own");
    let foreign = world
        .objects
        .get(&object(&other), 1 << 30)
        .await
        .expect("foreign");
    let verify = async |bytes: Vec<u8>| {
        world.objects.put(&object(&manifest), bytes).await.expect("put");
        let error = verify_cluster(&world.objects, &world.key, &manifest.which()).await;
        error.expect_err("it is not what it was").to_string()
    };
    assert!(verify(foreign).await.contains("does not open"));
    assert!(
        verify(own[..own.len() - 5].to_vec())
            .await
            .contains("does not open")
    );
    world
        .objects
        .put(&object(&manifest), own)
        .await
        .expect("put back");
    let error = verify_cluster(&world.objects, &BackupKey::new([8; 32]), &manifest.which())
        .await
        .expect_err("another key");
    assert!(matches!(error, Error::OtherKey { .. }), "{error}");
    let missing = format!("{one}/20200101T000000Z-0000").parse().expect("an id");
    let error = verify_cluster(&world.objects, &world.key, &missing)
        .await
        .expect_err("none");
    assert!(
        error
            .to_string()
            .contains("no cluster backup 20200101T000000Z-0000"),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_no_whole_snapshot_is_no_backup() {
    everywhere(no_whole_snapshot).await;
}

async fn no_whole_snapshot(world: World) {
    let one = cluster();
    let bytes = snapshot(1);
    for bad in [
        bytes[..bytes.len() - 1].to_vec(),
        Vec::new(),
        b"not found".to_vec(),
    ] {
        let error = world.take(one, &bad).await.expect_err("refused");
        assert!(matches!(error, Error::Snapshot { .. }), "{error}");
    }
    assert_eq!(world.listed(one).await, []);
    assert_eq!(world.names().await, ["place.json"], "nothing is left");
    world.take(one, &bytes).await.expect("taken");
    let source = ClusterSource {
        installation: "elsewhere",
        ..ClusterSource {
            installation: "",
            version: "1",
            cluster: one,
            about: world.listed_about(one).await,
            clock: world.clock.clone(),
        }
    };
    let error = take_cluster(&source, bytes.as_slice(), &world.objects, &world.key)
        .await
        .expect_err("another installation's place");
    assert!(matches!(error, Error::OtherInstallation { .. }), "{error}");
}

impl World {
    async fn listed_about(&self, cluster: ClusterId) -> About {
        let newest = newest_cluster(&self.objects, &self.key, cluster).await;
        newest.expect("one").about
    }
}

#[tokio::test]
async fn retention_keeps_the_last_whole_ones_of_each_cluster() {
    everywhere(retention).await;
}

async fn retention(world: World) {
    let (one, two) = (cluster(), cluster());
    let mut taken = Vec::new();
    for fill in 0..4 {
        taken.push(world.take(one, &snapshot(fill)).await.expect("taken"));
    }
    taken.sort_by_key(|one| one.taken_at);
    let other = world.take(two, &snapshot(9)).await.expect("taken");
    // The newest loses its snapshot: it does not count.
    let newest = taken.last().expect("four");
    let lost: ObjectName = format!("clusters/{one}/{}/snapshot", newest.id)
        .parse()
        .expect("a name");
    world.objects.delete(&lost).await.expect("deleted");
    let retain = async |keep: usize| {
        retain_cluster(&world.objects, &world.key, one, keep, &world.clock)
            .await
            .expect("retained")
            .len()
    };
    assert_eq!(retain(2).await, 1);
    assert_eq!(retain(0).await, 1, "one always stays");
    assert_eq!(retain(0).await, 0);
    let left = world.listed(one).await;
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(
        newest_cluster(&world.objects, &world.key, one)
            .await
            .expect("one")
            .id,
        taken[2].id
    );
    assert_eq!(
        world.listed(two).await,
        [(other.id.to_string(), None)],
        "another cluster's"
    );
    // What was begun a moment ago may still be at work; what was begun long ago is not.
    for id in ["20200101T000000Z-abcd", newest.id.as_str()] {
        let begun: ObjectName = format!("clusters/{two}/{id}/snapshot").parse().expect("a name");
        world.objects.put(&begun, b"begun".to_vec()).await.expect("put");
    }
    retain_cluster(&world.objects, &world.key, two, 1, &world.clock)
        .await
        .expect("retained");
    let names = world.names().await;
    let of_two = names
        .iter()
        .filter(|name| name.contains(&two.to_string()))
        .count();
    assert_eq!(of_two, 3, "{names:?}");
}
