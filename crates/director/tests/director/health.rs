//! Machines that die: who is made anew, what stays as it is, and when nothing is done.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stolos_api::director::{InstanceSummary, MachineProblem, TaskFilter};
use stolos_base::ids::AgentId;
use stolos_cpi::{DiskCid, VmCid};
use stolos_director::{HostSign, Infrastructure as _};
use stolos_flow::faults::Faults;
use stolos_mbus::state::{Alert, Heartbeat, JobState, Problem};
use stolos_store::testing::Place;

use crate::world::{Life, Site, World};

/// A repair takes seconds, and what has to be silent for a while more.
const LIMIT: Duration = Duration::from_secs(120);

async fn site(world: &World, place: &Place, site: &Site) -> (Life, Vec<InstanceSummary>) {
    let life = world.ready(place).await;
    life.deploy(&site.manifest()).await;
    let instances = instances(&life).await;
    world.outside.take_calls();
    (life, instances)
}

async fn instances(life: &Life) -> Vec<InstanceSummary> {
    let mut instances = life.client.instances("site").await.expect("instances");
    instances.sort_by_key(|instance| instance.index);
    instances
}

fn cid(instance: &InstanceSummary) -> &str {
    instance.cid.as_deref().expect("a machine")
}

fn agent(instance: &InstanceSummary) -> AgentId {
    let text = instance.agent_id.as_deref().expect("an agent");
    text.parse().expect("an id")
}

/// Ends a machine without asking the director, as its host would see it.
async fn lose(world: &World, instance: &InstanceSummary) {
    let vm = VmCid::from(cid(instance));
    world.outside.plain().delete_vm(&vm).await.expect("deleted");
    world.host.say(cid(instance), HostSign::Gone);
}

#[track_caller]
fn same_but(before: &[InstanceSummary], after: &[InstanceSummary], renewed: &BTreeSet<u32>) {
    for (old, new) in before.iter().zip(after) {
        assert_eq!(
            (&old.id, &old.ips, &old.az),
            (&new.id, &new.ips, &new.az),
            "an instance keeps what is its own"
        );
        assert_eq!(
            old.cid != new.cid,
            renewed.contains(&old.index),
            "instance {}: {old:?} {new:?}",
            old.index
        );
    }
}

pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(problem) => assert!(start.elapsed() < LIMIT, "{what}: {problem}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until all instances have machines of their own again and nobody is in doubt.
async fn whole(life: &Life, renewed: &BTreeSet<u32>, before: &[InstanceSummary]) -> Vec<InstanceSummary> {
    eventually("a repair", async || {
        let mut problems = life.client.problems().await.expect("problems");
        // A deploy that failed on purpose is not the machine's.
        problems.retain(|problem| problem.state != "unfinished");
        let now = instances(life).await;
        let done = before
            .iter()
            .zip(&now)
            .all(|(old, new)| new.cid.is_some() && (old.cid != new.cid) == renewed.contains(&old.index));
        if problems.is_empty() && done {
            Ok(now)
        } else {
            Err(format!("{problems:?}"))
        }
    })
    .await
}

async fn problem(life: &Life, good: impl Fn(&MachineProblem) -> bool) -> MachineProblem {
    eventually("a problem", async || {
        let problems = life.client.problems().await.expect("problems");
        let found = problems.iter().find(|problem| good(problem)).cloned();
        found.ok_or_else(|| format!("{problems:?}"))
    })
    .await
}

async fn repairs(life: &Life) -> usize {
    let tasks = life.client.tasks(&TaskFilter::default()).await.expect("tasks");
    tasks
        .iter()
        .filter(|task| task.description == "scan and fix")
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_gone_is_made_anew() {
    let (world, place) = (World::new(), Place::sqlite());
    let (life, before) = site(&world, &place, &Site::default()).await;
    lose(&world, &before[1]).await;
    let after = whole(&life, &BTreeSet::from([1]), &before).await;
    same_but(&before, &after, &BTreeSet::from([1]));
    let calls = world.outside.take_calls();
    assert!(
        // A new machine's agent does not know yet who it is.
        calls
            .iter()
            .all(|call| call.starts_with("web/1 ") || call.starts_with("?/999 ")),
        "others were touched: {calls:?}"
    );
    assert!(
        calls.contains(&"?/999 mount_disk".to_owned()),
        "it has its disk again: {calls:?}"
    );
    let disks = world.outside.books().disks.len();
    assert_eq!(disks, 3, "no disk was made or lost");
    let events = life.client.events(Some("site"), None).await.expect("events");
    assert!(
        events.iter().any(|event| event.object_name == "repair"),
        "{events:?}"
    );
    // What the deployment is did not change by it: the same manifest again has nothing to do.
    let deployed = life.deploy(&Site::default().manifest()).await;
    assert!(
        deployed
            .iter()
            .all(|event| event.stage.as_deref() != Some("Updating instance")),
        "{deployed:?}"
    );
    // And the next repair stands on the same plan.
    lose(&world, &after[2]).await;
    whole(&life, &BTreeSet::from([2]), &after).await;
    assert_eq!(repairs(&life).await, 2);
    life.stop().await;
}

/// A failed update leaves a manifest that nobody finished. A repair brings back what the machine ran, not that.
#[tokio::test(flavor = "multi_thread")]
async fn a_repair_brings_back_what_ran() {
    let (world, place) = (World::new(), Place::sqlite());
    let (life, _) = site(&world, &place, &Site::default()).await;
    world.outside.state().broken.push("web/0".to_owned());
    let wanted = Site {
        greeting: "later".into(),
        ..Site::default()
    };
    let task = life
        .client
        .deploy(
            &wanted.manifest(),
            &stolos_api::director::DeployOptions::default(),
        )
        .await
        .expect("a task");
    life.failed(task).await;
    world.outside.state().broken.clear();
    let before = instances(&life).await;
    lose(&world, &before[2]).await;
    let after = whole(&life, &BTreeSet::from([2]), &before).await;
    let machine = agent(&after[2]);
    let files = crate::machines::files(&world.outside.state().machines[&machine]);
    let script = String::from_utf8_lossy(&files["web/bin/run"]).into_owned();
    assert!(script.contains("echo hello"), "{script}");
    life.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_repaired_while_that_is_off() {
    let (world, place) = (World::new(), Place::sqlite());
    let (life, before) = site(&world, &place, &Site::default()).await;
    life.client.set_resurrection(false).await.expect("off");
    lose(&world, &before[0]).await;
    let shown = problem(&life, |problem| problem.waiting_on.is_some()).await;
    assert_eq!((shown.state.as_str(), shown.instance.as_str()), ("dead", "web/0"));
    assert_eq!(shown.waiting_on.as_deref(), Some("resurrection is off"));
    assert_eq!(repairs(&life).await, 0);
    life.client.set_resurrection(true).await.expect("on");
    whole(&life, &BTreeSet::from([0]), &before).await;
    life.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_is_left_to_people() {
    let (world, place) = (World::new(), Place::sqlite());
    let (life, before) = site(
        &world,
        &place,
        &Site {
            instances: 6,
            ..Site::default()
        },
    )
    .await;
    // While an update works nothing is decided, so all are seen together.
    for instance in &before[..5] {
        let vm = VmCid::from(cid(instance));
        world.outside.plain().delete_vm(&vm).await.expect("deleted");
    }
    for instance in &before[..5] {
        world.host.say(cid(instance), HostSign::Gone);
    }
    let shown = problem(&life, |problem| {
        problem
            .waiting_on
            .as_deref()
            .is_some_and(|why| why.contains("storm"))
    })
    .await;
    assert!(
        shown
            .waiting_on
            .as_deref()
            .is_some_and(|why| why.contains("5 of 6")),
        "{shown:?}"
    );
    assert_eq!(repairs(&life).await, 0);
    life.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_machine_is_ended_before_another_takes_its_place() {
    let (world, place) = (World::new(), Place::sqlite());
    let (life, before) = site(&world, &place, &Site::default()).await;
    world.outside.state().frozen.insert(agent(&before[1]));
    world.host.say(cid(&before[1]), HostSign::Ended);
    let shown = problem(&life, |problem| problem.instance == "web/1").await;
    assert_eq!(shown.state, "suspect");
    let after = whole(&life, &BTreeSet::from([1]), &before).await;
    same_but(&before, &after, &BTreeSet::from([1]));
    let machines = world.outside.books().vms;
    assert!(
        !machines.contains_key(&VmCid::from(cid(&before[1]))),
        "the old one is still there"
    );
    // One that answers again in time is left alone.
    world.host.say(cid(&after[0]), HostSign::Ended);
    eventually("a suspect that lives", async || {
        let problems = life.client.problems().await.expect("problems");
        if problems.is_empty() {
            Ok(())
        } else {
            Err(format!("{problems:?}"))
        }
    })
    .await;
    assert_eq!(repairs(&life).await, 1);
    life.stop().await;
}

/// The job has no copies of its disk elsewhere, so an empty one in its place would be a lie.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_disk_without_copies_is_a_persons_business() {
    let (world, place) = (World::new(), Place::sqlite());
    let (life, before) = site(&world, &place, &Site::default()).await;
    let mounted: Vec<String> = world.outside.state().machines[&agent(&before[1])].mounted.clone();
    // Both, before anybody is told.
    let vm = VmCid::from(cid(&before[1]));
    world.outside.plain().delete_vm(&vm).await.expect("deleted");
    let disk = DiskCid::from(mounted.first().expect("a disk").as_str());
    world.outside.plain().delete_disk(&disk).await.expect("deleted");
    world.host.say(cid(&before[1]), HostSign::Gone);
    let task = eventually("a task", async || {
        let tasks = life.client.tasks(&TaskFilter::default()).await.expect("tasks");
        let found = tasks
            .into_iter()
            .find(|task| task.description == "scan and fix" && task.state.is_final());
        found.ok_or_else(|| "no repair has ended".to_owned())
    })
    .await;
    let result = task.result.unwrap_or_default();
    assert!(result.contains("is lost, and nobody has a copy"), "{result}");
    life.stop().await;
}

/// A manager that starts anew knows nothing: it finds the dead by asking, and goes on with what another began.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_life_sees_the_dead() {
    let (world, place) = (World::new(), Place::sqlite());
    let (life, before) = site(&world, &place, &Site::default()).await;
    life.client.set_resurrection(false).await.expect("off");
    lose(&world, &before[0]).await;
    problem(&life, |problem| problem.state == "dead").await;
    life.stop().await;
    let life = world.start(&place, Faults::default()).await;
    life.client.set_resurrection(true).await.expect("on");
    world.host.say(cid(&before[0]), HostSign::Gone);
    whole(&life, &BTreeSet::from([0]), &before).await;
    life.stop().await;
}

/// A place for alerts that is down at first: everything comes in the end, in order, once it was taken.
#[tokio::test(flavor = "multi_thread")]
async fn alerts_are_told_to_a_webhook_and_counted() {
    type Posts = Arc<Mutex<Vec<(Option<String>, Value)>>>;
    let (posts, refusals) = (Posts::default(), Arc::new(AtomicUsize::new(2)));
    let (taken, left) = (posts.clone(), refusals.clone());
    let place_for_alerts = axum::Router::new().route(
        "/alerts",
        axum::routing::post(
            async move |headers: axum::http::HeaderMap,
                        stolos_base::input::Json(body): stolos_base::input::Json<Value>| {
                let refuse =
                    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
                if refuse.is_ok() {
                    return axum::http::StatusCode::SERVICE_UNAVAILABLE;
                }
                let token = headers
                    .get("authorization")
                    .map(|value| value.to_str().expect("text").to_owned());
                taken.lock().expect("posts").push((token, body));
                axum::http::StatusCode::OK
            },
        ),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let url = format!("http://{}/alerts", listener.local_addr().expect("an address"));
    stolos_base::task::spawn(
        stolos_base::task::Kind::Service,
        "a place for alerts",
        async move { axum::serve(listener, place_for_alerts).await },
    );
    let mut world = World::new();
    world.alerts = Some(stolos_director::Webhook {
        url,
        ca: None,
        token: Some("who-tells".to_owned()),
    });
    let place = Place::sqlite();
    let (life, before) = site(&world, &place, &Site::default()).await;
    lose(&world, &before[0]).await;
    whole(&life, &BTreeSet::from([0]), &before).await;
    let told = eventually("an alert", async || {
        let posts = posts.lock().expect("posts").clone();
        if posts.is_empty() {
            Err("nobody was told".to_owned())
        } else {
            Ok(posts)
        }
    })
    .await;
    assert_eq!(
        refusals.load(Ordering::SeqCst),
        0,
        "it was refused and told again"
    );
    let (token, alert) = &told[0];
    assert_eq!(token.as_deref(), Some("Bearer who-tells"));
    assert_eq!(
        (&alert["kind"], &alert["deployment"]),
        (&json!("repair"), &json!("site"))
    );
    let text = alert["text"].as_str().expect("a text");
    assert!(text.contains("is made anew"), "{text}");
    let ids: Vec<i64> = told
        .iter()
        .filter_map(|(_, alert)| alert["id"].as_i64())
        .collect();
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");

    let authority = reqwest::Certificate::from_pem(world.authority.certificate().as_bytes()).expect("a CA");
    let scraper = reqwest::Client::builder()
        .tls_certs_only([authority])
        .build()
        .expect("a client");
    let scrape = scraper
        .get(format!("{}/metrics", life.url))
        .bearer_auth(world.token(&["bosh.read"]));
    let figures = scrape
        .send()
        .await
        .expect("an answer")
        .text()
        .await
        .expect("figures");
    assert!(figures.contains("stolos_repairs_total 1"), "{figures}");
    assert!(
        figures.contains(r#"stolos_alerts_total{kind="repair"} 1"#),
        "{figures}"
    );
    assert!(
        figures.contains(r#"stolos_machines{state="Alive"} 3"#),
        "{figures}"
    );
    life.stop().await;
}

/// What an agent of a machine says on the bus.
async fn say<T: serde::Serialize>(world: &World, agent: AgentId, subject: String, said: &T) {
    use stolos_mbus::Transport as _;
    let transport = world
        .outside
        .bus()
        .connect(stolos_mbus::rights::Peer::Agent(agent));
    let payload = serde_json::to_vec(said).expect("JSON");
    transport
        .publish(&subject, payload.into())
        .await
        .expect("the bus takes it");
}

/// One failing process made an event every five seconds for ever, what a machine said reached a terminal as it was, and ten thousand events of one machine
/// washed out all others.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_machine_says_is_counted_bounded_and_harmless() {
    let (world, place) = (World::new(), Place::sqlite());
    let (life, before) = site(&world, &place, &Site::default()).await;
    life.client.set_resurrection(false).await.expect("off");
    let (evil, other) = (agent(&before[0]), agent(&before[1]));
    let subject = stolos_mbus::subject::alert;
    for n in 0..1_000 {
        let alert = Alert {
            id: format!("a{n}"),
            severity: 2,
            title: format!("web/nginx - exited with code {n} - restart"),
            summary: format!("\u{1b}[2J\n{}", "x".repeat(10_000)),
            ..Alert::default()
        };
        say(&world, evil, subject(evil), &alert).await;
    }
    for n in 0..1_000 {
        let alert = Alert {
            id: format!("b{n}"),
            severity: 1,
            title: format!("subject {n} - x - y"),
            ..Alert::default()
        };
        say(&world, evil, subject(evil), &alert).await;
    }
    let one = Alert {
        id: "c".to_owned(),
        severity: 3,
        title: "etcd: alarm NOSPACE - raised - tell".to_owned(),
        summary: "etcd refuses writes".to_owned(),
        ..Alert::default()
    };
    say(&world, other, subject(other), &one).await;
    let over = Alert {
        id: "d".to_owned(),
        over: true,
        title: "etcd: alarm NOSPACE - over - tell".to_owned(),
        ..one.clone()
    };
    let about = async |instance: &InstanceSummary| {
        let events = life.client.events(Some("site"), None).await.expect("events");
        let of = |event: &stolos_api::director::PastEvent| {
            event
                .instance
                .as_deref()
                .is_some_and(|name| name.ends_with(&instance.id))
        };
        events.into_iter().filter(of).collect::<Vec<_>>()
    };
    let told = eventually("the other machine's alert", async || {
        let told = about(&before[1]).await;
        if told.is_empty() {
            Err("nothing yet".to_owned())
        } else {
            Ok(told)
        }
    })
    .await;
    assert_eq!(told[0].context.severity, "error");
    say(&world, other, subject(other), &over).await;
    eventually("its end", async || {
        let told = about(&before[1]).await;
        if told.len() == 2 && told[0].context.message.contains("over") {
            Ok(())
        } else {
            Err(format!("{told:?}"))
        }
    })
    .await;
    let flood = eventually("the flood is cut off", async || {
        let told = about(&before[0]).await;
        if told
            .iter()
            .any(|event| event.context.message.contains("counted and not told"))
        {
            Ok(told)
        } else {
            Err(format!("{} events", told.len()))
        }
    })
    .await;
    assert_eq!(
        flood.len(),
        21,
        "twenty, and the one that says that there are more"
    );
    let repeated = flood
        .iter()
        .filter(|event| event.context.message.contains("web/nginx"))
        .count();
    assert_eq!(repeated, 1, "a thousand failures of one process are one event");
    for event in &flood {
        let message = &event.context.message;
        assert!(!message.contains(stolos_base::text::is_harmful), "{message:?}");
        assert!(
            message.chars().count() < 700,
            "{} characters",
            message.chars().count()
        );
    }
    let all = life.client.events(None, None).await.expect("events");
    assert!(
        all.iter().any(|event| event.user == "tester"),
        "what a person did is still there: {all:?}"
    );
    life.stop().await;
}

/// `stolos health` said that all was well while a process failed for the 41st time and etcd had an alarm.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_answers_and_is_not_well_is_shown() {
    let (world, place) = (World::new(), Place::sqlite());
    let (life, before) = site(&world, &place, &Site::default()).await;
    let agent = agent(&before[1]);
    let subject = stolos_mbus::subject::heartbeat(agent);
    let beat = |problems: Vec<Problem>| Heartbeat {
        job_state: if problems.is_empty() {
            JobState::Running
        } else {
            JobState::Failing
        },
        problems,
        ..Heartbeat::default()
    };
    let alarm = Problem {
        source: "etcd".to_owned(),
        kind: "alarm NOSPACE".to_owned(),
        severity: 1,
        text: "etcd refuses writes\u{1b}[2J".to_owned(),
        next: Some("delete objects".to_owned()),
        since_s: 41,
    };
    say(&world, agent, subject.clone(), &beat(vec![alarm; 100])).await;
    let shown = problem(&life, |problem| problem.state == "failing").await;
    assert_eq!((shown.instance.as_str(), shown.since), ("web/1", 41));
    assert_eq!(shown.why, r"etcd: etcd refuses writes\u{1b}[2J");
    assert_eq!(shown.next.as_deref(), Some("delete objects"));
    let all = life.client.problems().await.expect("problems");
    assert!(all.len() <= 16, "{} problems of one machine", all.len());
    say(&world, agent, subject, &beat(Vec::new())).await;
    eventually("it is well again", async || {
        let problems = life.client.problems().await.expect("problems");
        if problems.is_empty() {
            Ok(())
        } else {
            Err(format!("{problems:?}"))
        }
    })
    .await;

    // A deploy that failed in the middle and that nobody works on.
    world.outside.state().broken.push("web/0".to_owned());
    let wanted = Site {
        greeting: "later".into(),
        ..Site::default()
    };
    let options = stolos_api::director::DeployOptions::default();
    let task = life
        .client
        .deploy(&wanted.manifest(), &options)
        .await
        .expect("a task");
    life.failed(task).await;
    let shown = problem(&life, |problem| problem.state == "unfinished").await;
    assert_eq!((shown.deployment.as_str(), shown.task), ("site", Some(task)));
    assert!(shown.why.contains("is not running after update"), "{shown:?}");
    world.outside.state().broken.clear();
    life.deploy(&wanted.manifest()).await;
    let problems = life.client.problems().await.expect("problems");
    assert!(problems.is_empty(), "{problems:?}");
    life.stop().await;
}
