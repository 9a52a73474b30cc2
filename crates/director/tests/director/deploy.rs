//! What deploys do to machines.

use std::time::Duration;
use stolos_api::director::{DeleteOptions, DeployOptions, Event, EventState, OutputKind, TaskState, Upload};
use stolos_base::poll;
use stolos_mbus::state::JobState;
use stolos_store::testing::{Place, each};

use crate::machines::{RealAgents, files};
use crate::world::{PASSWORD, Site, World};

fn stages(events: &[Event]) -> Vec<String> {
    let mut stages: Vec<String> = Vec::new();
    for stage in events.iter().filter_map(|event| event.stage.clone()) {
        if !stages.contains(&stage) {
            stages.push(stage);
        }
    }
    stages
}

/// Lines that ended in this way.
fn ended(events: &[Event], state: EventState) -> Vec<&Event> {
    events.iter().filter(|event| event.state == Some(state)).collect()
}

/// `group/index` of machines that were changed, in the order of their stops.
fn stopped(calls: &[String]) -> Vec<&str> {
    calls
        .iter()
        .filter_map(|call| call.strip_suffix(" stop"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_comes_grows_changes_shrinks_and_goes() {
    each(async |place| {
        let world = World::new();
        let life = world.ready(place).await;
        let mut site = Site::default();

        let events = life.deploy(&site.manifest()).await;
        assert_eq!(
            stages(&events),
            [
                "Preparing deployment",
                "Creating missing vms",
                "Updating instance"
            ]
        );
        for event in events
            .iter()
            .filter(|event| event.state == Some(EventState::Started))
        {
            let ended = events.iter().filter(|one| {
                one.state == Some(EventState::Finished) && one.task == event.task && one.stage == event.stage
            });
            assert_eq!(ended.count(), 1, "{event:?}");
        }
        let books = world.outside.books();
        assert_eq!(books.vms.len(), 3);
        assert_eq!(
            books
                .disks
                .values()
                .filter(|(size, vm)| *size == 1024 && vm.is_some())
                .count(),
            3
        );
        for machine in world.outside.state().machines.values() {
            assert_eq!(machine.job_state, JobState::Running);
            assert_eq!(machine.mounted.len(), 1);
            let index = machine.spec.index.expect("an index");
            let run = String::from_utf8_lossy(&files(machine)["web/bin/run"]).into_owned();
            assert_eq!(run, "#!/bin/sh\necho hello\n");
            let config = String::from_utf8_lossy(&files(machine)["web/config/config.yml"]).into_owned();
            assert!(
                config.contains(&format!("password: {PASSWORD}-password-")),
                "{config}"
            );
            assert!(
                config.contains(&format!("own: {PASSWORD}-own_web-{index}-")),
                "{config}"
            );
            assert!(config.contains("peers: 3"), "{config}");
            assert_eq!(
                machine.spec.packages["prog"].sha1,
                format!("sha256:{}", machine.spec.packages["prog"].blobstore_id)
            );
        }
        let generated = world.vault.generated();
        assert_eq!(generated["/test/site/own_web-1"]["common_name"], "web-1");
        let instances = life.client.instances("site").await.expect("instances");
        let address = &instances.iter().find(|one| one.index == 1).expect("web/1").ips[0];
        assert_eq!(
            generated["/test/site/own_web-1"]["alternative_names"][0],
            address.as_str()
        );

        // Nothing changed: nobody is called.
        let before = world.outside.books().calls.len();
        world.outside.take_calls();
        let task = life
            .client
            .deploy(site.manifest(), &DeployOptions::default())
            .await
            .expect("a task");
        life.done(task).await;
        assert_eq!(world.outside.books().calls.len(), before);
        assert_eq!(world.outside.take_calls(), Vec::<String>::new());
        let result = life
            .client
            .whole_output(task, OutputKind::Result)
            .await
            .expect("a result");
        assert_eq!(result, "nothing has changed\n");

        // One more: only it is made, and the others learn of it.
        site.instances = 4;
        life.deploy(&site.manifest()).await;
        assert_eq!(world.outside.books().vms.len(), 4);
        world.outside.take_calls();

        // Another property: first the canary, then two at once.
        site.greeting = "goodbye".into();
        let events = life.deploy(&site.manifest()).await;
        let calls = world.outside.take_calls();
        let order = stopped(&calls);
        assert_eq!(order.len(), 4);
        let started = calls
            .iter()
            .position(|call| *call == format!("{} post-start", order[0]))
            .expect("a post-start");
        let second = calls
            .iter()
            .position(|call| *call == format!("{} stop", order[1]))
            .expect("a stop");
        assert!(
            started < second,
            "the canary runs before the next one stops: {calls:?}"
        );
        let canaries = events.iter().filter(|event| {
            event.state == Some(EventState::Started)
                && event
                    .task
                    .as_deref()
                    .is_some_and(|task| task.ends_with("(canary)"))
        });
        assert_eq!(canaries.count(), 1);
        assert!(events.iter().any(|event| {
            event.state == Some(EventState::InProgress)
                && event.data.as_ref().and_then(|data| data.status.as_deref()) == Some("executing pre-start")
        }));

        // Fewer: machines go, disks stay as orphans.
        site.instances = 2;
        let events = life.deploy(&site.manifest()).await;
        assert!(stages(&events).contains(&"Deleting unneeded instances".to_owned()));
        let books = world.outside.books();
        assert_eq!((books.vms.len(), books.disks.len()), (2, 4));

        // Larger disks: the content is brought over.
        site.disk = 2048;
        life.deploy(&site.manifest()).await;
        let books = world.outside.books();
        assert_eq!(
            books
                .disks
                .values()
                .filter(|(size, vm)| *size == 2048 && vm.is_some())
                .count(),
            2
        );
        assert_eq!(books.disks.values().filter(|(_, vm)| vm.is_none()).count(), 4);
        for machine in world.outside.state().machines.values() {
            assert_eq!(machine.mounted.len(), 1);
        }

        // Other machines: the disks move over.
        let old: Vec<_> = world.outside.books().vms.into_keys().collect();
        site.vm_type = "large";
        life.deploy(&site.manifest()).await;
        let books = world.outside.books();
        assert_eq!(books.vms.len(), 2);
        assert!(books.vms.keys().all(|vm| !old.contains(vm)));
        assert_eq!(
            books
                .disks
                .values()
                .filter(|(size, vm)| *size == 2048 && vm.is_some())
                .count(),
            2
        );

        let with_disks = DeleteOptions {
            delete_disks: true,
            ..DeleteOptions::default()
        };
        let task = life
            .client
            .delete_deployment("site", with_disks)
            .await
            .expect("a task");
        let events = life.done(task).await;
        assert_eq!(
            stages(&events),
            ["Deleting instances", "Removing deployment artifacts"]
        );
        assert_eq!(ended(&events, EventState::Finished).len(), 3);
        let books = world.outside.books();
        assert!(books.vms.is_empty() && books.disks.is_empty(), "{books:?}");
        assert!(life.client.deployments().await.expect("deployments").is_empty());
        assert_eq!(
            life.client
                .deployment("site")
                .await
                .expect_err("it is gone")
                .code(),
            Some(70_000)
        );
        life.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_canary_stops_the_deploy() {
    let (world, place) = (World::new(), Place::sqlite());
    let life = world.ready(&place).await;
    let mut site = Site {
        disk: 0,
        ..Site::default()
    };
    life.deploy(&site.manifest()).await;
    world.outside.take_calls();
    site.greeting = "bad".into();
    world.outside.state().broken = (0..3).map(|i| format!("web/{i}")).collect();
    let task = life
        .client
        .deploy(site.manifest(), &DeployOptions::default())
        .await
        .expect("a task");
    let (task, error) = life.failed(task).await;
    assert_eq!(task.state, TaskState::Error);
    assert_eq!(error.code, 400_007);
    assert!(
        error
            .message
            .ends_with("is not running after update. Review logs for failed jobs: web"),
        "{}",
        error.message
    );
    assert_eq!(stopped(&world.outside.take_calls()).len(), 1);
    let text = life
        .client
        .whole_output(task.id, OutputKind::Event)
        .await
        .expect("events");
    let events: Vec<Event> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let failed = ended(&events, EventState::Failed);
    assert_eq!(failed.len(), 1);
    assert!(
        failed[0]
            .task
            .as_deref()
            .is_some_and(|task| task.ends_with("(canary)")),
        "{failed:?}"
    );
    let why = failed[0].data.as_ref().and_then(|data| data.error.as_deref());
    assert!(
        why.is_some_and(|text| text.contains("is not running after update")),
        "{failed:?}"
    );

    // The next deploy goes on with what was left half-way, although the manifest is the same.
    world.outside.state().broken.clear();
    life.deploy(&site.manifest()).await;
    assert_eq!(stopped(&world.outside.take_calls()).len(), 3);
    life.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_deploy_ends_and_can_be_done_again() {
    let (world, place) = (World::new(), Place::sqlite());
    let life = world.ready(&place).await;
    world.outside.state().hanging.push("web/0 pre-start".into());
    let task = life
        .client
        .deploy(Site::default().manifest(), &DeployOptions::default())
        .await
        .expect("a task");
    poll::until(
        "the script to run",
        Duration::from_millis(20),
        Duration::from_secs(20),
        async || {
            let state = world.outside.state();
            if state.calls.iter().any(|call| call == "web/0 pre-start") {
                Ok(())
            } else {
                Err(format!("{:?}", state.calls))
            }
        },
    )
    .await
    .expect("the script runs");
    life.client.cancel_task(task).await.expect("a cancel");
    let (ended, error) = life.failed(task).await;
    assert_eq!((ended.state, error.code), (TaskState::Cancelled, 10_001));
    let again = life.client.cancel_task(task).await.expect_err("it has ended");
    assert!(
        again
            .to_string()
            .contains(&format!("Cannot cancel task {task}: invalid state (cancelled)")),
        "{again}"
    );
    world.outside.state().hanging.clear();
    life.deploy(&Site::default().manifest()).await;
    let books = world.outside.books();
    assert_eq!((books.vms.len(), books.disks.len()), (3, 3));
    life.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_whose_agents_are_silent_are_made_anew_with_fix() {
    let (world, place) = (World::new(), Place::sqlite());
    let life = world.ready(&place).await;
    let site = Site {
        instances: 2,
        ..Site::default()
    };
    life.deploy(&site.manifest()).await;
    let lost = *world.outside.state().machines.keys().next().expect("a machine");
    world.outside.bus().cut(move |peer| peer.agent() == Some(lost));
    let options = DeployOptions {
        fix: true,
        ..DeployOptions::default()
    };
    let task = life
        .client
        .deploy(site.manifest(), &options)
        .await
        .expect("a task");
    life.done(task).await;
    let books = world.outside.books();
    assert_eq!(books.vms.len(), 2);
    assert!(!world.outside.state().machines.contains_key(&lost));
    assert_eq!(books.disks.values().filter(|(_, vm)| vm.is_some()).count(), 2);
    life.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_templates_come_by_signed_url() {
    let (world, place) = (World::new(), Place::sqlite());
    let life = world.ready(&place).await;
    // Does not compress: a megabyte and a half of digests.
    let noise: String = (0..24_000)
        .map(|i: u32| stolos_blobs::BlobId::of(&i.to_be_bytes()).to_string())
        .collect();
    let release = world.release("2", format!("#!/bin/sh\n# {noise}\n").as_bytes());
    let task = life
        .client
        .upload_release(Upload::File(&release))
        .await
        .expect("an upload");
    life.done(task).await;
    let site = Site {
        instances: 1,
        disk: 0,
        ..Site::default()
    };
    life.deploy(&site.manifest()).await;
    let url = world
        .outside
        .state()
        .machines
        .values()
        .next()
        .and_then(|machine| machine.signed_url.clone());
    let url = url.expect("a signed URL");
    assert!(url.starts_with("https://10.0.0.1:25250/signed/"), "{url}");
    // The sealed blob is gone when it has been used.
    let blobs = stolos_blobs::Blobs::open(world.dir.path().join("blobs"), stolos_blobs::Options::default())
        .expect("blobs");
    let id = url
        .split('/')
        .nth(5)
        .and_then(|rest| rest.split('?').next())
        .expect("an id")
        .parse()
        .expect("a blob id");
    assert!(!blobs.contains(&id));
    life.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_agent_does_what_it_is_told() {
    let (world, place) = (World::new(), Place::sqlite());
    let real = RealAgents::default();
    world.outside.state().boot =
        Some(real.boot(world.dir.path().join("machines"), world.instance().packages()));
    let life = world.ready(&place).await;
    let mut site = Site {
        instances: 2,
        ..Site::default()
    };
    life.deploy(&site.manifest()).await;
    for state in real.states().await {
        assert_eq!(
            (state.job_state, state.spec.generation),
            (JobState::Running, Some(1))
        );
    }
    // Changed on the machine, with a larger disk; then on other machines.
    site.greeting = "goodbye".into();
    site.disk = 2048;
    life.deploy(&site.manifest()).await;
    site.vm_type = "large";
    life.deploy(&site.manifest()).await;
    for state in real.states().await {
        assert_eq!(
            (state.job_state, state.spec.generation),
            (JobState::Running, Some(3))
        );
    }
    let books = world.outside.books();
    assert_eq!(
        books
            .disks
            .values()
            .filter(|(size, vm)| *size == 2048 && vm.is_some())
            .count(),
        2
    );
    // Unchanged: nobody is touched, so nobody hears of the new generation.
    life.deploy(&site.manifest()).await;
    for state in real.states().await {
        assert_eq!(state.spec.generation, Some(3));
    }
    let task = life
        .client
        .delete_deployment("site", DeleteOptions::default())
        .await
        .expect("a task");
    life.done(task).await;
    assert!(world.outside.books().vms.is_empty());
    life.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_stop_stay_stopped_and_start() {
    each(async |place| {
        let world = World::new();
        let life = world.ready(place).await;
        let mut site = Site::default();
        life.deploy(&site.manifest()).await;
        world.outside.take_calls();
        let change = async |group: &str, state: &str, options: &DeployOptions| {
            let task = life.client.change_state("site", group, state, "", options).await;
            life.done(task.expect("a task")).await
        };
        let running = || {
            let state = world.outside.state();
            let machines = state.machines.values();
            machines.filter(|one| one.job_state == JobState::Running).count()
        };

        // Nothing is asked of scripts that would look for another place for what runs here.
        let abruptly = DeployOptions {
            skip_drain: Some("*".to_owned()),
            ..DeployOptions::default()
        };
        change("*", "stopped", &abruptly).await;
        let calls = world.outside.take_calls();
        assert_eq!(stopped(&calls).len(), 3, "{calls:?}");
        assert!(!calls.iter().any(|call| call.ends_with(" drain")), "{calls:?}");
        assert!(
            !calls.iter().any(|call| call.ends_with(" post-deploy")),
            "{calls:?}"
        );
        assert_eq!(running(), 0);
        assert_eq!(world.outside.books().vms.len(), 3, "machines stay");

        // What is stopped stays stopped through a deploy that changes it, and what does not run is not drained.
        site.greeting = "goodbye".into();
        life.deploy(&site.manifest()).await;
        assert_eq!(running(), 0);

        // One may run alone; the rest comes all at once.
        let one = life
            .client
            .change_state("site", "web/1", "started", "", &DeployOptions::default())
            .await;
        life.done(one.expect("a task")).await;
        assert_eq!(running(), 1);
        let at_once = DeployOptions {
            canaries: Some("0".to_owned()),
            max_in_flight: Some("100%".to_owned()),
            ..DeployOptions::default()
        };
        change("web", "started", &at_once).await;
        assert_eq!(running(), 3);
        let calls = world.outside.take_calls();
        assert!(!calls.iter().any(|call| call.ends_with(" drain")), "{calls:?}");

        // Without machines, disks stay; with them, they come back.
        let disks = world.outside.books().disks.len();
        change("*", "detached", &DeployOptions::default()).await;
        assert_eq!(world.outside.books().vms.len(), 0);
        assert_eq!(world.outside.books().disks.len(), disks);
        change("*", "started", &DeployOptions::default()).await;
        assert_eq!((running(), world.outside.books().vms.len()), (3, 3));
        assert_eq!(world.outside.books().disks.len(), disks);

        // What is not there is named, and nothing changes.
        world.outside.take_calls();
        for group in ["nobody", "web/7"] {
            let task = life
                .client
                .change_state("site", group, "stopped", "", &DeployOptions::default())
                .await;
            let (_, error) = life.failed(task.expect("a task")).await;
            assert!(error.message.contains("doesn't exist"), "{error:?}");
        }
        let options = DeployOptions::default();
        let unknown = life
            .client
            .change_state("site", "*", "asleep", "", &options)
            .await;
        assert!(unknown.is_err_and(|error| error.to_string().contains("started, stopped or detached")));
        let other = site.manifest().replacen("name: site", "name: other", 1);
        let foreign = life
            .client
            .change_state("site", "*", "stopped", other, &options)
            .await;
        assert!(foreign.is_err_and(|error| error.to_string().contains("not of 'site'")));
        assert_eq!(world.outside.take_calls(), Vec::<String>::new());
        life.stop().await;
    })
    .await;
}
