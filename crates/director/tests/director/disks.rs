//! Persistent disks that belong to nobody: `delete-deployment` used to destroy them at once, with everything on them.

use std::time::Duration;

use stolos_api::director::{DeleteOptions, TaskFilter};
use stolos_base::Classify as _;
use stolos_flow::faults::Faults;
use stolos_store::testing::Place;

use crate::world::{Site, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_deployment_leaves_its_disks_for_a_while() {
    let (mut world, place) = (World::new(), Place::sqlite());
    let life = world.ready(&place).await;
    life.deploy(&Site::default().manifest()).await;
    world.outside.take_calls();
    let task = life
        .client
        .delete_deployment("site", DeleteOptions::default())
        .await
        .expect("a task");
    life.done(task).await;
    let calls = world.outside.take_calls();
    assert!(
        calls
            .iter()
            .filter(|call| call.ends_with(" unmount_disk"))
            .count()
            == 3,
        "disks that are kept are unmounted in order: {calls:?}"
    );
    let books = world.outside.books();
    assert_eq!((books.vms.len(), books.disks.len()), (0, 3));
    let orphans = life.client.orphaned_disks().await.expect("disks");
    assert_eq!(orphans.len(), 3);
    for orphan in &orphans {
        assert_eq!((orphan.deployment_name.as_str(), orphan.size), ("site", 1024));
        assert!(orphan.instance_name.starts_with("web/"), "{orphan:?}");
        assert!(orphan.orphaned_at.ends_with(" UTC"), "{orphan:?}");
    }
    // A person may delete one sooner.
    let gone = &orphans[0].disk_cid;
    let task = life.client.delete_disk(gone).await.expect("a task");
    life.done(task).await;
    assert_eq!(world.outside.books().disks.len(), 2);
    let again = life.client.delete_disk(gone).await.expect_err("it is gone");
    assert_eq!(again.class().status(), 404, "{again}");
    life.stop().await;

    // What was kept long enough goes by itself.
    world.orphaned_disks_kept = Duration::ZERO;
    let life = world.start(&place, Faults::default()).await;
    crate::health::eventually("the cleaner", async || {
        let left = life.client.orphaned_disks().await.expect("disks");
        if left.is_empty() && world.outside.books().disks.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await;
    let tasks = life.client.tasks(&TaskFilter::default()).await.expect("tasks");
    let cleaned = tasks.iter().filter(|task| task.user == "cleaner").count();
    assert_eq!(cleaned, 2, "{tasks:?}");
    life.stop().await;
}
