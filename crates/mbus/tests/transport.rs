//! One suite for both transports, and what only the in-memory one can show: faults on demand.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::{LIMIT, Script, TICK, World, simulated_agent};
use futures::{FutureExt as _, StreamExt as _};
use stolos_base::ids::{AgentId, IdSource};
use stolos_base::poll;
use stolos_mbus::client::{Error, Event, events};
use stolos_mbus::memory::{Fate, MemoryBus};
use stolos_mbus::message::MAX_PAYLOAD;
use stolos_mbus::rights::Peer;
use stolos_mbus::state::{Alert, Heartbeat};
use stolos_mbus::{Bus, Call, Endpoint, Reply, Transport, transport};
use tokio_util::sync::CancellationToken;

/// What every transport has to do. `connect` gives a connected transport of a peer.
async fn conformance(connect: impl AsyncFn(Peer) -> Arc<dyn Transport>) {
    let ids = IdSource::random();
    let (one, two) = (AgentId::new(&ids), AgentId::new(&ids));
    let director = connect(Peer::Director).await;
    let monitor = connect(Peer::HealthMonitor).await;
    let first = connect(Peer::Agent(one)).await;
    let second = connect(Peer::Bootstrap(two)).await;

    // Requests and answers; an answer that is too long becomes an exception.
    let bus = Bus::start(director.clone(), ids.clone()).await.expect("a bus");
    let _script = simulated_agent(first.clone(), one).await;
    let client = bus.agent(one, "worker/1");
    client.wait_until_ready(LIMIT).await.expect("it answers");
    client.ping().await.expect("pong");
    let error = client.call(&Call::Info).await.expect_err("two megabytes");
    assert!(
        error.to_string().contains("more than the 1048576 bytes"),
        "{error}"
    );

    // An agent hears nothing that is meant for another one, whatever it subscribes to. The server works through a
    // connection in order: once its own subject works, the subscriptions before it are there too.
    let mut spied = Vec::new();
    for pattern in [
        format!("agent.{one}"),
        "agent.*".to_owned(),
        "director.>".to_owned(),
        ">".to_owned(),
    ] {
        spied.push(second.subscribe(&pattern).await.expect("a silent subscription"));
    }
    let subject = format!("agent.{two}");
    let mut own = second.subscribe(&subject).await.expect("its own");
    let probe = async || {
        poll::until("the subscription", TICK, LIMIT, || async {
            director
                .publish(&subject, Bytes::from_static(b"probe"))
                .await
                .expect("published");
            Err::<(), _>("nothing heard".to_owned())
        })
        .await
    };
    tokio::select! {
        result = probe() => panic!("{result:?}"),
        message = own.next() => assert_eq!(message.expect("a message").payload.as_ref(), b"probe"),
    }
    client.ping().await.expect("pong");
    for n in 0..3_u8 {
        director
            .publish(&subject, Bytes::from(vec![n]))
            .await
            .expect("published");
    }
    let mut heard = Vec::new();
    while heard.last() != Some(&2) {
        let message = own.next().await.expect("a message");
        heard.extend((message.payload.len() == 1).then(|| message.payload[0]));
    }
    assert_eq!(heard, [0, 1, 2], "in order");
    // What the ping and these messages could have brought would have come before the last one.
    for subscription in &mut spied {
        assert!(
            subscription.next().now_or_never().is_none(),
            "heard what is not its own"
        );
    }

    // An agent speaks neither as another one nor to one. Its heartbeat comes after what it may not say.
    let mut news = events(monitor.as_ref()).await.expect("events");
    let mut other = first.subscribe(&format!("agent.{one}")).await.expect("its own");
    let ping = async || {
        loop {
            client.ping().await.expect("pong");
        }
    };
    let request = tokio::select! {
        () = ping() => unreachable!("it goes on for ever"),
        message = other.next() => message.expect("a ping").payload,
    };
    let endpoint = Endpoint::start(second.clone(), two).await.expect("an endpoint");
    let heartbeat = Heartbeat {
        deployment: "d".into(),
        ..Heartbeat::default()
    };
    let alert = Alert {
        id: "a".into(),
        ..Alert::default()
    };
    let talk = async || {
        let announcer = endpoint.announcer();
        loop {
            for subject in [
                format!("hm.agent.heartbeat.{one}"),
                format!("agent.{one}"),
                format!("director.x.{one}.y"),
                "hm.director.alert".to_owned(),
            ] {
                second
                    .publish(&subject, Bytes::from_static(b"{}"))
                    .await
                    .expect("swallowed");
            }
            announcer.heartbeat(&heartbeat).await.expect("sent");
            announcer.alert(&alert).await.expect("sent");
            announcer.shutdown().await.expect("sent");
            tokio::time::sleep(TICK).await;
        }
    };
    let mut expected = vec![
        Event::Heartbeat(two, Box::new(heartbeat.clone())),
        Event::Alert(two, alert.clone()),
        Event::Shutdown(two),
    ];
    let listen = async {
        while !expected.is_empty() {
            let event = news.next().await.expect("an event");
            assert!(
                !matches!(&event, Event::Heartbeat(id, _) if *id == one),
                "spoke as another"
            );
            expected.retain(|one| *one != event);
        }
    };
    tokio::select! {
        () = talk() => {}
        heard = tokio::time::timeout(LIMIT, listen) => heard.expect("all three in time"),
    }
    // Only pings have come, up to the last one, which was sent after the forbidden words were worked through.
    client.ping().await.expect("pong");
    let next = other.next().await.expect("a ping").payload;
    assert_eq!(next.len(), request.len(), "an agent spoke to another: {next:?}");
    while let Some(Some(message)) = other.next().now_or_never() {
        assert_eq!(
            message.payload.len(),
            request.len(),
            "an agent spoke to another: {message:?}"
        );
    }

    // Limits.
    let large = Bytes::from(vec![0; MAX_PAYLOAD + 1]);
    let error = director.publish(&subject, large).await.expect_err("too large");
    assert!(matches!(error, transport::Error::TooLarge { .. }), "{error}");
    let whole = Bytes::from(vec![0; MAX_PAYLOAD]);
    director
        .publish(&subject, whole.clone())
        .await
        .expect("just fits");
    while own.next().await.expect("a message").payload != whole {}
    let error = director
        .publish("agent.*", Bytes::new())
        .await
        .expect_err("a wildcard");
    assert!(matches!(error, transport::Error::Subject { .. }), "{error}");
}

#[tokio::test]
async fn memory_conforms() {
    let bus = MemoryBus::new();
    let suite = conformance(async |peer| Arc::new(bus.connect(peer)) as Arc<dyn Transport>);
    tokio::time::timeout(2 * LIMIT, suite).await.expect("ends");
}

#[tokio::test]
async fn nats_conforms() {
    let Some(mut world) = World::new() else { return };
    let server = world.server().await;
    let _callout = world.callout().await;
    let suite = conformance(async |peer| world.connect(peer).await);
    tokio::time::timeout(2 * LIMIT, suite).await.expect("ends");
    server.stop().await.expect("stopped");
}

struct Simulation {
    memory: MemoryBus,
    bus: Bus,
    agent: AgentId,
    script: Arc<Script>,
}

async fn simulation() -> Simulation {
    let (memory, ids) = (MemoryBus::new(), IdSource::random());
    let director = Arc::new(memory.connect(Peer::Director));
    let bus = Bus::start(director, ids.clone()).await.expect("a bus");
    let agent = AgentId::new(&ids);
    let script = simulated_agent(Arc::new(memory.connect(Peer::Agent(agent))), agent).await;
    Simulation {
        memory,
        bus,
        agent,
        script,
    }
}

#[tokio::test]
async fn tasks_are_followed_to_their_end() {
    let it = simulation().await;
    let client = it.bus.agent(it.agent, "worker/1");
    let running = tokio::join!(client.stop_jobs(), async {
        poll::until("a poll", TICK, LIMIT, || async {
            if it.script.count("get_task") > 1 {
                Ok(())
            } else {
                Err("no poll yet".to_owned())
            }
        })
        .await
        .expect("the task is polled");
        it.script.finish(Reply::value("stopped"));
    });
    running.0.expect("stopped");

    // An agent that was started again does not know its task: it is told again, a few times.
    let told = it.script.count("stop");
    it.script.finish(Reply::exception(
        "Action Failed get_task: Task with id task-1 could not be found",
    ));
    client
        .stop_jobs()
        .await
        .expect_err("the agent loses each of its tasks");
    assert_eq!(it.script.count("stop"), told + 4);

    it.script.finish(Reply::exception("drain script failed"));
    let error = client.stop_jobs().await.expect_err("the task failed");
    assert_eq!(
        error.to_string(),
        "agent of 'worker/1' failed to stop: drain script failed"
    );
    let error = client.mount_disk("disk-1").await.expect_err("no such disk");
    assert!(
        matches!(
            &error,
            Error::Exception {
                method: "mount_disk",
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn cancelling_tells_the_agent() {
    let it = simulation().await;
    let cancel = CancellationToken::new();
    let client = it.bus.agent(it.agent, "worker/1").with_cancel(cancel.clone());
    let (result, ()) = tokio::join!(client.stop_jobs(), async {
        poll::until("a poll", TICK, LIMIT, || async {
            if it.script.count("get_task") > 0 {
                Ok(())
            } else {
                Err("no poll yet".to_owned())
            }
        })
        .await
        .expect("the task is polled");
        cancel.cancel();
    });
    assert!(
        matches!(result, Err(Error::Cancelled { method: "stop", .. })),
        "{result:?}"
    );
    assert_eq!(it.script.count("cancel_task"), 1);
}

#[tokio::test]
async fn silence_is_a_timeout_in_the_words_of_bosh() {
    let it = simulation().await;
    it.memory.cut(|peer| peer == Peer::Agent(it.agent));
    let client = it
        .bus
        .agent(it.agent, "worker/1")
        .with_timeout(Duration::from_secs(1));
    let error = client.ping().await.expect_err("nobody answers");
    let text = error.to_string();
    assert!(
        text.starts_with("Timed out sending 'ping' to instance: 'worker/1', agent-id: '"),
        "{text}"
    );
    assert!(text.ends_with("' after 1 seconds"), "{text}");
}

#[tokio::test]
async fn lost_messages_are_sent_again_and_work_is_done_once() {
    let it = simulation().await;
    let client = it.bus.agent(it.agent, "worker/1");
    // A read comes through although the first message is lost.
    let lost = Arc::new(AtomicUsize::new(0));
    let counter = lost.clone();
    it.memory.set_fault(move |_| {
        if counter.fetch_add(1, Ordering::SeqCst) < 1 {
            Fate::Drop
        } else {
            Fate::Deliver
        }
    });
    client.ping().await.expect("pong in the end");
    assert!(lost.load(Ordering::SeqCst) > 1);

    // The answer to a write is lost with the connection: it is asked for again, and the agent does the work once.
    let agent = it.agent;
    let memory = it.memory.clone();
    it.memory.set_fault(move |delivery| {
        let is_answer = delivery.from == Peer::Agent(agent);
        if is_answer { Fate::Drop } else { Fate::Deliver }
    });
    let before = it.script.count("start");
    let (started, ()) = tokio::join!(client.start_jobs(), async {
        poll::until("the request", TICK, LIMIT, || async {
            if it.script.count("start") > before {
                Ok(())
            } else {
                Err("not yet".to_owned())
            }
        })
        .await
        .expect("the agent has it");
        memory.cut(|peer| peer == Peer::Director);
        memory.clear_fault();
        memory.heal(|peer| peer == Peer::Director);
    });
    started.expect("answered again");
    assert_eq!(it.script.count("start"), before + 1);
}

#[tokio::test]
async fn a_request_that_a_dying_agent_had_in_hand_is_told_again_but_no_errand() {
    let it = simulation().await;
    let client = it.bus.agent(it.agent, "worker/1");
    let agent = it.agent;
    // As when it dies with the request: neither is it done, nor is there an answer.
    let lost = Arc::new(AtomicUsize::new(0));
    let counter = lost.clone();
    it.memory.set_fault(move |delivery| {
        let is_request = delivery.subject == format!("agent.{agent}");
        if is_request && counter.fetch_add(1, Ordering::SeqCst) < 1 {
            Fate::Drop
        } else {
            Fate::Deliver
        }
    });
    let before = it.script.count("start");
    client.start_jobs().await.expect("started in the end");
    assert_eq!(it.script.count("start"), before + 1);
    assert_eq!(lost.load(Ordering::SeqCst), 2);

    // What an errand has done is its author's business.
    lost.store(0, Ordering::SeqCst);
    let patient = it
        .bus
        .agent(it.agent, "worker/1")
        .with_timeout(Duration::from_secs(7));
    let errand = patient.call(&Call::RunErrand { job: None }).await;
    assert!(matches!(errand, Err(Error::Timeout { .. })), "{errand:?}");
    assert_eq!(lost.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn delays_keep_the_order() {
    let (memory, ids) = (MemoryBus::new(), IdSource::random());
    let director = memory.connect(Peer::Director);
    let agent = AgentId::new(&ids);
    let connection = memory.connect(Peer::Agent(agent));
    let mut subscription = connection
        .subscribe(&format!("agent.{agent}"))
        .await
        .expect("subscribed");
    memory
        .set_fault(|delivery| Fate::Delay(Duration::from_millis(100 - 20 * u64::from(delivery.payload[0]))));
    for n in 0..5_u8 {
        let payload = Bytes::from(vec![n]);
        director
            .publish(&format!("agent.{agent}"), payload)
            .await
            .expect("published");
    }
    for n in 0..5_u8 {
        assert_eq!(
            subscription.next().await.expect("a message").payload.as_ref(),
            [n]
        );
    }
}

#[tokio::test]
async fn hundreds_of_agents_share_one_bus() {
    let (memory, ids) = (MemoryBus::new(), IdSource::random());
    let bus = Bus::start(Arc::new(memory.connect(Peer::Director)), ids.clone())
        .await
        .expect("a bus");
    let mut agents = Vec::new();
    for _ in 0..500 {
        let agent = AgentId::new(&ids);
        simulated_agent(Arc::new(memory.connect(Peer::Agent(agent))), agent).await;
        agents.push(agent);
    }
    let pings = agents.iter().map(|agent| {
        let client = bus.agent(*agent, "worker/x");
        async move { client.ping().await }
    });
    for result in futures::future::join_all(pings).await {
        result.expect("pong");
    }
}
