//! What happens to tasks when the director dies.

use std::collections::BTreeSet;

use stolos_api::director::{DeleteOptions, DeployOptions, EventState};
use stolos_flow::faults::{Faults, Plan};
use stolos_mbus::state::JobState;
use stolos_store::testing::Place;

use crate::world::{Life, Site, World};

fn site() -> Site {
    Site {
        instances: 2,
        canaries: 0,
        ..Site::default()
    }
}

/// Runs a deploy in a world of its own whose director "dies" by plan, and again in a next life. Gives the number of
/// journal writes.
async fn deploy_through(plan: Plan) -> u64 {
    let (world, place) = (World::new(), Place::sqlite());
    let first = world.ready(&place).await;
    first.stop().await;
    let faults = Faults::new(plan.clone());
    let life = world.start(&place, faults.clone()).await;
    let task = life
        .client
        .deploy(site().manifest(), &DeployOptions::default())
        .await
        .expect("a task");
    let life = if matches!(plan, Plan::Nothing | Plan::Repeat) {
        life
    } else {
        // Steps that end at the same time are written together, so this run may have fewer writes than the one that was counted.
        let crashed = tokio::select! {
            () = life.handle.flows().crashed() => true,
            _ = life.done(task) => false,
        };
        if crashed {
            life.bury().await;
        } else {
            life.stop().await;
        }
        world.start(&place, Faults::default()).await
    };
    check(&world, &life, task, &format!("{plan:?}")).await;
    let writes = faults.writes();
    life.stop().await;
    writes
}

async fn check(world: &World, life: &Life, task: i64, what: &str) {
    let events = life.done(task).await;
    let books = world.outside.books();
    assert_eq!(books.vms.len(), 2, "{what}: machines");
    assert_eq!(books.disks.len(), 2, "{what}: disks");
    assert!(
        books.disks.values().all(|(_, vm)| vm.is_some()),
        "{what}: {:?}",
        books.disks
    );
    let mut agents = BTreeSet::new();
    for (agent, machine) in &world.outside.state().machines {
        agents.insert(*agent);
        assert_eq!(machine.job_state, JobState::Running, "{what}");
        assert_eq!(machine.mounted.len(), 1, "{what}");
    }
    assert_eq!(agents.len(), 2, "{what}: agents");
    let instances = life.client.instances("site").await.expect("instances");
    assert!(
        instances.iter().all(|one| one.cid.is_some()),
        "{what}: {instances:?}"
    );
    // Every line begins once and ends once, in whichever life.
    for state in [EventState::Started, EventState::Finished] {
        let mut lines: Vec<_> = events
            .iter()
            .filter(|event| event.state == Some(state))
            .map(|event| (event.stage.clone(), event.task.clone()))
            .collect();
        let n = lines.len();
        lines.sort();
        lines.dedup();
        assert_eq!(lines.len(), n, "{what}: {state:?} twice: {events:?}");
        assert_eq!(n, 6, "{what}: {events:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_survives_a_crash_at_every_journal_write() {
    let writes = deploy_through(Plan::Nothing).await;
    assert!(writes > 10, "{writes} writes");
    deploy_through(Plan::Repeat).await;
    for n in 0..writes {
        deploy_through(Plan::CrashBefore(n)).await;
        deploy_through(Plan::CrashAfter(n)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_survives_a_crash_at_every_journal_write() {
    let mut n = 0;
    loop {
        let (world, place) = (World::new(), Place::sqlite());
        let first = world.ready(&place).await;
        first.deploy(&site().manifest()).await;
        first.stop().await;
        // Disks go, or stay as orphans; both at half of the moments.
        let delete_disks = n % 2 == 0;
        let faults = Faults::new(Plan::CrashAfter(n));
        let life = world.start(&place, faults.clone()).await;
        let task = life
            .client
            .delete_deployment(
                "site",
                DeleteOptions {
                    delete_disks,
                    ..DeleteOptions::default()
                },
            )
            .await
            .expect("a task");
        tokio::select! {
            () = life.handle.flows().crashed() => {}
            _ = life.done(task) => {}
        }
        let crashed = faults.writes() == n + 1;
        if crashed {
            life.bury().await;
        } else {
            life.stop().await;
        }
        let life = world.start(&place, Faults::default()).await;
        life.done(task).await;
        let books = world.outside.books();
        let orphans = life.client.orphaned_disks().await.expect("disks").len();
        let kept = if delete_disks { 0 } else { 2 };
        assert!(
            books.vms.is_empty() && books.disks.len() == kept && orphans == kept,
            "after write {n}: {books:?}, {orphans} orphans"
        );
        assert!(life.client.deployments().await.expect("deployments").is_empty());
        life.stop().await;
        if !crashed {
            break;
        }
        n += 1;
    }
    assert!(n > 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_was_just_being_made_is_not_forgotten() {
    // The director dies when the machine is there and nobody has written so; then the deploy is cancelled.
    let (world, place) = (World::new(), Place::sqlite());
    let first = world.ready(&place).await;
    first.stop().await;
    let writes = 2; // the beginning, and the first machine's
    let life = world.start(&place, Faults::new(Plan::CrashAfter(writes))).await;
    let task = life
        .client
        .deploy(site().manifest(), &DeployOptions::default())
        .await
        .expect("a task");
    life.bury().await;
    world.outside.state().hanging = vec!["web/0 pre-start".into(), "web/1 pre-start".into()];
    let life = world.start(&place, Faults::default()).await;
    // Ended already or not: it must not go on.
    let _ = life.client.cancel_task(task).await;
    let _ = life.client.follow(task, |_| {}).await;
    world.outside.state().hanging.clear();
    life.deploy(&site().manifest()).await;
    let books = world.outside.books();
    assert_eq!((books.vms.len(), books.disks.len()), (2, 2));
    life.stop().await;
}
