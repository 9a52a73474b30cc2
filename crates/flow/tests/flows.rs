//! The executor, on both databases where the database matters.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stolos_base::ids::{AgentId, FlowId};
use stolos_base::{Class, Clock, poll};
use stolos_flow::faults::{Faults, Plan};
use stolos_flow::testing::{Scenario, exhaust};
use stolos_flow::{
    Builder, Change, Error, EventKind, Filter, FlowInfo, FlowState, FlowView, Flows, Graph, Interrupt, Kind,
    NewFlow, OnFailure, Retry, Step, StepContext, StepError, StepState, TABLES,
};
use stolos_store::testing::{Place, each};
use stolos_store::{Db, Migration, Part, Row as _, Schema, Tx, lease, query};
use tokio::sync::{Notify, Semaphore};

static SCHEMA: Schema = Schema {
    name: "test",
    parts: &[
        &TABLES,
        &Part {
            name: "test",
            migrations: &[Migration {
                number: 1,
                name: "operations",
                statements: &["CREATE TABLE operations (id TEXT PRIMARY KEY, state TEXT NOT NULL)"],
            }],
        },
    ],
};

/// A flow whose graph a test writes as a closure.
struct Scripted<F>(F);

impl<F: Fn(&FlowInfo) -> Graph + Send + Sync + 'static> Kind for Scripted<F> {
    const NAME: &'static str = "scripted";
    type Input = ();

    async fn graph(&self, flow: &FlowInfo, (): ()) -> Result<Graph, StepError> {
        Ok((self.0)(flow))
    }
}

fn scripted(db: &Db, script: impl Fn(&FlowInfo) -> Graph + Send + Sync + 'static) -> Flows {
    Flows::builder(db.clone(), "test").kind(Scripted(script)).start()
}

async fn submit(flows: &Flows) -> FlowId {
    // The type parameter of the kind does not matter for submitting.
    flows
        .submit_new(NewFlow::new::<Scripted<fn(&FlowInfo) -> Graph>>("subject", &()))
        .await
        .unwrap()
}

async fn eventually<T>(what: &str, condition: impl AsyncFn() -> Result<T, String>) -> T {
    poll::until(what, Duration::from_millis(5), Duration::from_secs(20), || {
        condition()
    })
    .await
    .unwrap()
}

/// Waits until the flow's view satisfies the condition.
async fn view_until(
    flows: &Flows,
    id: FlowId,
    what: &str,
    condition: impl Fn(&FlowView) -> bool,
) -> FlowView {
    eventually(what, async || {
        let view = flows.view(id).await.unwrap().unwrap();
        if condition(&view) {
            Ok(view)
        } else {
            Err(format!("{view:?}"))
        }
    })
    .await
}

// --- a world with machines, proven exhaustively ---

/// An IaaS as a CPI shows it: `create` makes one machine per agent id, whoever asks how often.
#[derive(Default)]
struct World {
    networks: Mutex<BTreeMap<String, u32>>,
    machines: Mutex<BTreeMap<AgentId, String>>,
    /// Names by the order of their start.
    started: Mutex<Vec<String>>,
    finished: AtomicUsize,
}

#[derive(Serialize, Deserialize)]
struct Create {
    names: Vec<String>,
}

struct CreateKind(Arc<World>);

impl Kind for CreateKind {
    const NAME: &'static str = "create";
    type Input = Create;

    async fn graph(&self, flow: &FlowInfo, input: Create) -> Result<Graph, StepError> {
        let mut graph = Graph::new();
        let subject = flow.subject.clone();
        let world = self.0.clone();
        let lease = graph.add(Step::new("Lease network", move |_| {
            let (world, subject) = (world.clone(), subject.clone());
            async move {
                let mut networks = world.networks.lock().unwrap();
                let next = u32::try_from(networks.len()).unwrap();
                Ok(*networks.entry(subject).or_insert(next))
            }
        }));
        let limit = graph.group("machine creation", 2);
        let mut created = Vec::new();
        for name in input.names {
            let (world, network) = (self.0.clone(), lease.clone());
            let step_name = format!("Create VM {name}");
            created.push(
                graph.add(
                    Step::new(step_name, move |ctx: StepContext| {
                        let (world, network, name) = (world.clone(), network.clone(), name.clone());
                        async move {
                            let network: u32 = ctx.output(&network)?;
                            let agent: AgentId = ctx.derive_id("agent");
                            tokio::task::yield_now().await;
                            world
                                .machines
                                .lock()
                                .unwrap()
                                .insert(agent, format!("{name} in {network}"));
                            Ok(agent)
                        }
                    })
                    .after(&lease)
                    .within(&limit),
                ),
            );
        }
        let world = self.0.clone();
        let machines = created.clone();
        let check = graph.add(
            Step::new("Start machines", move |ctx: StepContext| {
                let (world, machines) = (world.clone(), machines.clone());
                async move {
                    for machine in &machines {
                        let agent = ctx.output(machine)?;
                        let known = world.machines.lock().unwrap().get(&agent).cloned();
                        let known = known.ok_or_else(|| StepError::internal("a machine is gone"))?;
                        let mut started = world.started.lock().unwrap();
                        if !started.contains(&known) {
                            started.push(known);
                        }
                    }
                    Ok(())
                }
            })
            .after_all(&created),
        );
        graph.add(
            Step::new("Not needed", |_| async { Ok(()) })
                .after(&check)
                .skip_if(Some("nothing to do")),
        );
        let world = self.0.clone();
        graph.add(
            Step::new("Smoke test", move |_| {
                let world = world.clone();
                async move {
                    world.finished.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                }
            })
            .after("Not needed"),
        );
        Ok(graph)
    }

    async fn on_state(&self, tx: &mut Tx, change: &Change<'_>) -> Result<(), stolos_store::Error> {
        query(
            "INSERT INTO operations (id, state) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET state = excluded.state",
        )
        .bind(change.flow.id.to_string())
        .bind(change.state.to_string())
        .execute(tx.conn())
        .await?;
        Ok(())
    }
}

struct Machines;

impl Scenario for Machines {
    type World = Arc<World>;

    fn schema(&self) -> &'static Schema {
        &SCHEMA
    }

    async fn world(&self) -> Arc<World> {
        Arc::default()
    }

    fn kinds(&self, world: &Arc<World>, _db: &Db, builder: Builder) -> Builder {
        builder.kind(CreateKind(world.clone()))
    }

    async fn submit(&self, _world: &Arc<World>, _db: &Db, flows: &Flows) -> FlowId {
        let names = ["m/0", "w/0", "w/1"].map(str::to_owned).to_vec();
        flows
            .submit::<CreateKind>("demo", &Create { names })
            .await
            .unwrap()
    }

    async fn check(&self, world: &Arc<World>, db: &Db, end: &FlowView) {
        assert_eq!(world.networks.lock().unwrap().len(), 1);
        let machines: Vec<String> = world.machines.lock().unwrap().values().cloned().collect();
        let mut names = machines.clone();
        names.sort();
        assert_eq!(names, ["m/0 in 0", "w/0 in 0", "w/1 in 0"], "each machine once");
        assert_eq!(world.started.lock().unwrap().len(), 3);
        assert!(world.finished.load(Ordering::SeqCst) >= 1);
        assert_eq!(end.step("Not needed").unwrap().state, StepState::Skipped);
        assert_eq!(operation(db, end).await, "succeeded");
    }

    async fn check_unfinished(&self, _world: &Arc<World>, db: &Db, end: &FlowView) {
        assert_eq!(
            operation(db, end).await,
            end.state().to_string(),
            "the owner's row changed with the flow"
        );
    }
}

async fn operation(db: &Db, end: &FlowView) -> String {
    let row = query("SELECT state FROM operations WHERE id = $1")
        .bind(end.summary.info.id.to_string())
        .fetch_one(db.read())
        .await
        .unwrap();
    row.try_get("state").unwrap()
}

#[tokio::test]
async fn a_flow_survives_every_fault_at_every_point() {
    let report = exhaust(&Machines).await;
    assert_eq!(report.steps, 7);
    assert!(report.runs > 30, "{report:?}");
}

// --- the harness itself: each kind of mistake is found ---

/// A flow with one mistake: its step has an effect that is not repeatable.
struct Careless;

impl Scenario for Careless {
    type World = Arc<AtomicUsize>;

    fn schema(&self) -> &'static Schema {
        &SCHEMA
    }

    async fn world(&self) -> Self::World {
        Arc::default()
    }

    fn kinds(&self, world: &Self::World, _db: &Db, builder: Builder) -> Builder {
        let world = world.clone();
        builder.kind(Scripted(move |_: &FlowInfo| {
            let world = world.clone();
            let mut graph = Graph::new();
            graph.add(Step::new("Make one", move |_| {
                let world = world.clone();
                async move {
                    world.fetch_add(1, Ordering::SeqCst);
                    Ok(())
                }
            }));
            graph
        }))
    }

    async fn submit(&self, _world: &Self::World, _db: &Db, flows: &Flows) -> FlowId {
        submit(flows).await
    }

    async fn check(&self, world: &Self::World, _db: &Db, _end: &FlowView) {
        assert_eq!(world.load(Ordering::SeqCst), 1, "made once");
    }
}

#[tokio::test]
#[should_panic(expected = "made once")]
async fn a_step_that_is_not_repeatable_is_found() {
    exhaust(&Careless).await;
}

// --- order, limits, outputs ---

#[tokio::test]
async fn steps_run_in_order_and_within_limits() {
    each(async |place| {
        let db = place.open(&SCHEMA).await;
        let running = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let counters = (running.clone(), most.clone());
        let flows = scripted(&db, move |_| {
            let mut graph = Graph::new();
            let limit = graph.group("few", 3);
            let first = graph.add(Step::new("first", |_| async { Ok(40_i64) }));
            let mut all = Vec::new();
            for n in 0..20_i64 {
                let (running, most) = counters.clone();
                let output = first.clone();
                all.push(
                    graph.add(
                        Step::new(format!("step {n}"), move |ctx| {
                            let (running, most, output) = (running.clone(), most.clone(), output.clone());
                            async move {
                                let base: i64 = ctx.output(&output)?;
                                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                                for _ in 0..5 {
                                    tokio::task::yield_now().await;
                                }
                                running.fetch_sub(1, Ordering::SeqCst);
                                Ok(base + n)
                            }
                        })
                        .after(&first)
                        .within(&limit),
                    ),
                );
            }
            let parts = all.clone();
            graph.add(
                Step::new("sum", move |ctx| {
                    let parts = parts.clone();
                    async move { parts.iter().map(|part| ctx.output(part)).sum::<Result<i64, _>>() }
                })
                .after_all(&all),
            );
            graph
        });
        let end = flows.wait(submit(&flows).await).await.unwrap();
        assert_eq!(end.state(), FlowState::Succeeded, "{:?}", end.summary.failure);
        assert_eq!(end.step("sum").unwrap().output, Some((20 * 40 + 190).into()));
        assert_eq!(most.load(Ordering::SeqCst), 3);
        flows.stop().await;
    })
    .await;
}

/// Chains of two steps share a place: no third chain begins while two are in the middle.
#[tokio::test]
async fn a_place_is_held_by_a_whole_chain() {
    let place = Place::sqlite();
    let db = place.open(&SCHEMA).await;
    let log: Arc<Mutex<Vec<String>>> = Arc::default();
    let shared = log.clone();
    let flows = scripted(&db, move |_| {
        let mut graph = Graph::new();
        let limit = graph.group("max in flight", 2);
        for chain in ["a", "b", "c", "d"] {
            let mut last: Option<stolos_flow::StepRef<()>> = None;
            for part in ["stop", "update", "start"] {
                let log = shared.clone();
                let name = format!("{part} {chain}");
                let line = name.clone();
                let mut step = Step::new(name, move |_| {
                    let (log, line) = (log.clone(), line.clone());
                    async move {
                        log.lock().unwrap().push(line);
                        Ok(())
                    }
                })
                .within_slot(&limit, chain);
                if let Some(last) = &last {
                    step = step.after(last);
                }
                last = Some(graph.add(step));
            }
        }
        graph
    });
    let end = flows.wait(submit(&flows).await).await.unwrap();
    assert_eq!(end.state(), FlowState::Succeeded);
    let log = log.lock().unwrap();
    let at = |name: &str| log.iter().position(|line| line == name).unwrap();
    let first_end = at("start a").min(at("start b"));
    assert!(first_end < at("stop c") && first_end < at("stop d"), "{log:?}");
    assert_eq!(log.len(), 12);
}

#[tokio::test]
async fn a_mistake_in_a_graph_fails_the_flow_before_any_step() {
    let place = Place::sqlite();
    let db = place.open(&SCHEMA).await;
    let flows = scripted(&db, |_| {
        let mut graph = Graph::new();
        graph.add(Step::new("a", |_| async { Ok(()) }));
        graph.add(Step::new("b", |_| async { Ok(()) }).after("c"));
        graph
    });
    let end = flows.wait(submit(&flows).await).await.unwrap();
    let failure = end.summary.failure.unwrap();
    assert!(
        failure.message.contains("`b` comes after step `c`"),
        "{failure:?}"
    );
    assert_eq!((failure.step, failure.class), (None, Class::Internal));
    assert!(end.steps.is_empty());
}

/// A holds the only place for its chain, whose end waits for B, which waits for the place.
#[tokio::test]
async fn limits_that_wait_for_each_other_fail_the_flow_with_words() {
    let place = Place::sqlite();
    let db = place.open(&SCHEMA).await;
    let flows = scripted(&db, |_| {
        let mut graph = Graph::new();
        let limit = graph.group("one", 1);
        graph.add(Step::new("begin", |_| async { Ok(()) }).within_slot(&limit, "chain"));
        let other = graph.add(
            Step::new("other", |_| async { Ok(()) })
                .after("begin")
                .within(&limit),
        );
        graph.add(
            Step::new("end", |_| async { Ok(()) })
                .after(&other)
                .within_slot(&limit, "chain"),
        );
        graph
    });
    let end = flows.wait(submit(&flows).await).await.unwrap();
    let message = end.summary.failure.unwrap().message;
    assert!(
        message.contains("step `other` waits for limit `one` of 1: chain"),
        "{message}"
    );
}

// --- failing and retrying ---

fn quick() -> Retry {
    Retry {
        first: Duration::from_millis(1),
        longest: Duration::from_millis(2),
    }
}

#[tokio::test]
async fn transient_errors_are_retried_and_others_are_not() {
    let place = Place::sqlite();
    let db = place.open(&SCHEMA).await;
    let calls: Arc<Mutex<HashMap<&'static str, u32>>> = Arc::default();
    let shared = calls.clone();
    let flows = scripted(&db, move |_| {
        let mut graph = Graph::new();
        graph.on_failure(OnFailure::Continue);
        let mut add = |name: &'static str, error: StepError, times: u32| {
            let calls = shared.clone();
            graph.add(
                Step::new(name, move |ctx: StepContext| {
                    let (calls, error) = (calls.clone(), error.clone());
                    async move {
                        let mut calls = calls.lock().unwrap();
                        let count = calls.entry(name).or_default();
                        *count += 1;
                        assert_eq!(*count, ctx.attempt());
                        if *count <= times { Err(error) } else { Ok(()) }
                    }
                })
                .retry(quick()),
            )
        };
        add("transient", StepError::transient("not yet"), 3);
        add("fatal", StepError::fatal(Class::User, "wrong"), 3);
        graph.add(Step::new("panics", |_| async {
            if true { panic!("on purpose") } else { Ok(()) }
        }));
        graph.add(Step::new("after fatal", |_| async { Ok(()) }).after("fatal"));
        graph
    });
    let mut events = flows.subscribe();
    let end = flows.wait(submit(&flows).await).await.unwrap();
    assert_eq!(end.state(), FlowState::Failed);
    let state = |name: &str| end.step(name).unwrap().state;
    assert_eq!(state("transient"), StepState::Done);
    assert_eq!(end.step("transient").unwrap().attempts, 4);
    assert_eq!(
        (state("fatal"), state("panics")),
        (StepState::Failed, StepState::Failed)
    );
    assert_eq!(
        end.step("panics").unwrap().note.as_deref(),
        Some("panicked: on purpose")
    );
    assert_eq!(state("after fatal"), StepState::Waiting);
    assert_eq!(calls.lock().unwrap()["fatal"], 1);
    let mut retries = 0;
    while let Ok(event) = events.try_recv() {
        retries += u32::from(matches!(event.what, EventKind::StepRetrying { .. }));
    }
    assert_eq!(retries, 3);
}

#[tokio::test]
async fn a_failure_lets_running_steps_end_and_starts_no_others() {
    let place = Place::sqlite();
    let db = place.open(&SCHEMA).await;
    let gate = Arc::new(Notify::new());
    let shared = gate.clone();
    let flows = scripted(&db, move |_| {
        let gate = shared.clone();
        let mut graph = Graph::new();
        let slow = graph.add(Step::new("slow", move |_| {
            let gate = gate.clone();
            async move {
                gate.notified().await;
                Ok(())
            }
        }));
        graph.add(Step::new("fails", |_| async {
            Err::<(), _>(StepError::fatal(Class::Conflict, "no"))
        }));
        graph.add(Step::new("after slow", |_| async { Ok(()) }).after(&slow));
        graph
    });
    let id = submit(&flows).await;
    let view = view_until(&flows, id, "the failure", |view| {
        view.step("fails")
            .is_some_and(|step| step.state == StepState::Failed)
    })
    .await;
    assert_eq!(view.state(), FlowState::Running);
    assert_eq!(view.step("after slow").unwrap().waiting_on, ["step `slow`"]);
    gate.notify_one();
    let end = flows.wait(id).await.unwrap();
    assert_eq!(
        end.summary.failure.as_ref().unwrap().step.as_deref(),
        Some("fails")
    );
    assert_eq!(end.step("slow").unwrap().state, StepState::Done);
    assert_eq!(end.step("after slow").unwrap().state, StepState::Waiting);
    assert!(matches!(flows.cancel(id).await, Err(Error::State { .. })));
}

/// A step that could be retried for minutes does not keep a flow alive that has failed already.
#[tokio::test]
async fn a_failed_flow_makes_no_further_attempts() {
    let place = Place::sqlite();
    let db = place.open(&SCHEMA).await;
    let flows = scripted(&db, |_| {
        let mut graph = Graph::new();
        graph.add(
            Step::new("transient", |_| async {
                Err::<(), _>(StepError::transient("not yet"))
            })
            .retry(Retry {
                first: Duration::from_secs(300),
                longest: Duration::from_secs(300),
            }),
        );
        graph.add(
            Step::new("fatal", |ctx: StepContext| async move {
                // Fails once the other is between two attempts.
                if ctx.attempt() < 3 {
                    Err(StepError::transient("later"))
                } else {
                    Err::<(), _>(StepError::fatal(Class::User, "no"))
                }
            })
            .retry(quick()),
        );
        graph
    });
    let end = flows.wait(submit(&flows).await).await.unwrap();
    assert_eq!(
        end.summary.failure.as_ref().unwrap().step.as_deref(),
        Some("fatal")
    );
    let transient = end.step("transient").unwrap();
    assert_eq!((transient.state, transient.attempts), (StepState::Failed, 1));
}

#[tokio::test]
async fn a_deadline_ends_a_step_with_its_last_words() {
    let place = Place::sqlite();
    let db = place.open(&SCHEMA).await;
    let flows = scripted(&db, |_| {
        let mut graph = Graph::new();
        graph.add(
            Step::new("hangs", |ctx: StepContext| async move {
                ctx.progress("waiting for godot");
                std::future::pending::<Result<(), _>>().await
            })
            .deadline(Duration::from_millis(20))
            .interrupt(Interrupt::Within(Duration::from_millis(20))),
        );
        graph
    });
    let end = flows.wait(submit(&flows).await).await.unwrap();
    assert_eq!(
        end.summary.failure.unwrap().message,
        "the step was not done within 20ms (waiting for godot)"
    );
}

// --- cancel ---

#[tokio::test]
async fn a_cancel_interrupts_steps_as_they_say() {
    let place = Place::sqlite();
    let db = place.open(&SCHEMA).await;
    let gate = Arc::new(Semaphore::new(0));
    let runs: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    let shared = (gate.clone(), runs.clone());
    let flows = scripted(&db, move |_| {
        let mut graph = Graph::new();
        let (gate, runs) = shared.clone();
        let again = runs.clone();
        graph.add(
            Step::new("anytime", move |_| {
                let runs = again.clone();
                async move {
                    let first = {
                        let mut runs = runs.lock().unwrap();
                        runs.push("anytime");
                        runs.iter().filter(|run| **run == "anytime").count() == 1
                    };
                    if first {
                        std::future::pending::<()>().await;
                    }
                    Ok(())
                }
            })
            .interrupt(Interrupt::Anytime),
        );
        graph.add(Step::new("asked", |ctx: StepContext| async move {
            // Finishes its work when told to return.
            ctx.canceled().await;
            Ok("in order".to_owned())
        }));
        graph.add(
            Step::new("never", move |_| {
                let (gate, runs) = (gate.clone(), runs.clone());
                async move {
                    gate.acquire().await.unwrap().forget();
                    runs.lock().unwrap().push("never");
                    Ok(())
                }
            })
            .interrupt(Interrupt::Never),
        );
        graph.add(Step::new("later", |_| async { Ok(()) }).after("never"));
        graph
    });
    let id = submit(&flows).await;
    view_until(&flows, id, "all to run", |view| {
        view.steps
            .iter()
            .filter(|step| step.state == StepState::Running)
            .count()
            == 3
    })
    .await;
    flows.cancel(id).await.unwrap();
    let view = view_until(&flows, id, "the interruption", |view| {
        view.step("anytime").unwrap().state == StepState::Canceled
            && view.step("asked").unwrap().state == StepState::Done
    })
    .await;
    assert_eq!(view.step("never").unwrap().state, StepState::Running);
    assert!(view.summary.cancel_requested);
    gate.add_permits(1);
    let end = flows.wait(id).await.unwrap();
    assert_eq!(end.state(), FlowState::Canceled);
    assert_eq!(end.step("never").unwrap().state, StepState::Done);
    assert_eq!(end.step("later").unwrap().state, StepState::Waiting);

    flows.retry(id).await.unwrap();
    let end = flows.wait(id).await.unwrap();
    assert_eq!(end.state(), FlowState::Succeeded);
    assert_eq!(
        *runs.lock().unwrap(),
        ["anytime", "never", "anytime"],
        "what was done stays done"
    );
    assert!(matches!(flows.retry(id).await, Err(Error::State { .. })));
}

// --- locks, several processes ---

#[tokio::test]
async fn flows_with_the_same_lock_run_one_after_the_other() {
    each(async |place| {
        let db = place.open(&SCHEMA).await;
        let gate = Arc::new(Semaphore::new(0));
        let shared = gate.clone();
        let flows = scripted(&db, move |_| {
            let gate = shared.clone();
            let mut graph = Graph::new();
            graph.add(Step::new("gate", move |_| {
                let gate = gate.clone();
                async move {
                    gate.acquire().await.unwrap().forget();
                    Ok(())
                }
            }));
            graph
        });
        let new = || NewFlow::new::<Scripted<fn(&FlowInfo) -> Graph>>("demo", &()).lock("deployment/demo");
        let first = flows.submit_new(new()).await.unwrap();
        let second = flows.submit_new(new()).await.unwrap();
        let third = flows.submit_new(new()).await.unwrap();
        view_until(&flows, first, "the first to run", |view| {
            view.state() == FlowState::Running
        })
        .await;
        let view = flows.view(second).await.unwrap().unwrap();
        assert_eq!(view.state(), FlowState::Pending);
        assert_eq!(view.waiting_on, [format!("flow `{first}` (scripted)")]);
        flows.cancel(second).await.unwrap();
        assert_eq!(flows.wait(second).await.unwrap().state(), FlowState::Canceled);
        gate.add_permits(2);
        assert_eq!(flows.wait(first).await.unwrap().state(), FlowState::Succeeded);
        assert_eq!(flows.wait(third).await.unwrap().state(), FlowState::Succeeded);

        let unfinished = Filter {
            unfinished: true,
            ..Filter::default()
        };
        assert!(flows.list(&unfinished).await.unwrap().is_empty());
        let all = flows
            .list(&Filter {
                subject: Some("demo".into()),
                limit: 2,
                ..Filter::default()
            })
            .await
            .unwrap();
        let ids: Vec<FlowId> = all.iter().map(|flow| flow.info.id).collect();
        assert_eq!(ids, [third, second], "newest first, by pages");
        let rest = flows
            .list(&Filter {
                before: Some(all[1].seq),
                ..Filter::default()
            })
            .await
            .unwrap();
        assert_eq!(rest.len(), 1);
        assert_eq!(flows.delete_ended(i64::MAX, 10).await.unwrap(), 3);
        assert!(flows.view(first).await.unwrap().is_none());
        flows.stop().await;
    })
    .await;
}

/// A process that is frozen while its lease runs out wakes up and finishes its step: its journal write is refused, and
/// the process that has taken over is not disturbed.
#[tokio::test]
async fn a_process_that_was_overtaken_writes_nothing() {
    each(async |place| {
        let clock = Clock::manual("2026-11-21T00:00:00Z".parse().unwrap());
        let db = place.open_at(&SCHEMA, clock.clone()).await;
        let build = |db: &Db, holder: &str, answer: &'static str, gate: Arc<Semaphore>| {
            let script = move |_: &FlowInfo| {
                let gate = gate.clone();
                let mut graph = Graph::new();
                graph.add(
                    Step::new("who", move |_| {
                        let gate = gate.clone();
                        async move {
                            gate.acquire().await.unwrap().forget();
                            Ok(answer.to_owned())
                        }
                    })
                    .interrupt(Interrupt::Never),
                );
                graph
            };
            Flows::builder(db.clone(), holder).kind(Scripted(script)).start()
        };
        let (slow_gate, fast_gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let slow = build(&db, "slow", "the frozen one", slow_gate.clone());
        let id = submit(&slow).await;
        view_until(&slow, id, "the step to run", |view| {
            view.step("who")
                .is_some_and(|step| step.state == StepState::Running)
        })
        .await;
        let other = place.open_at(&SCHEMA, clock.clone()).await;
        let fast = build(&other, "fast", "the living one", fast_gate.clone());
        clock.advance(Duration::from_secs(31));
        fast.nudge();
        let name = format!("flow/{id}");
        eventually("the takeover", async || {
            match lease::holder(&other, &name).await.unwrap() {
                Some(fence) if fence.holder == "fast" => Ok(()),
                holder => Err(format!("{holder:?}")),
            }
        })
        .await;
        slow_gate.add_permits(1);
        // The overtaken run ends by itself; the step is still the other's.
        slow.stop().await;
        let view = fast.view(id).await.unwrap().unwrap();
        assert_eq!(view.step("who").unwrap().output, None);
        fast_gate.add_permits(1);
        let end = fast.wait(id).await.unwrap();
        assert_eq!(end.step("who").unwrap().output, Some("the living one".into()));
        fast.stop().await;
    })
    .await;
}

/// The same when the step of the frozen process would go on for long: it is cut off as soon as the process notices, so
/// that it does not work beside its repetition.
#[tokio::test]
async fn a_process_that_was_overtaken_stops_its_steps() {
    struct Alive(Arc<AtomicUsize>);
    impl Drop for Alive {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let place = Place::sqlite();
    let clock = Clock::manual("2026-11-21T00:00:00Z".parse().unwrap());
    let db = place.open_at(&SCHEMA, clock.clone()).await;
    let alive = Arc::new(AtomicUsize::new(0));
    let shared = alive.clone();
    let slow = Flows::builder(db, "slow")
        .lease(Duration::from_millis(30))
        .kind(Scripted(move |_: &FlowInfo| {
            let alive = shared.clone();
            let mut graph = Graph::new();
            let work = move |_| {
                let alive = alive.clone();
                async move {
                    alive.fetch_add(1, Ordering::SeqCst);
                    let _alive = Alive(alive);
                    std::future::pending::<Result<(), StepError>>().await
                }
            };
            graph.add(Step::new("for ever", work).interrupt(Interrupt::Never));
            graph
        }))
        .start();
    let id = submit(&slow).await;
    eventually("the step to run", async || {
        (alive.load(Ordering::SeqCst) == 1)
            .then_some(())
            .ok_or_else(String::new)
    })
    .await;
    // The real time passes for renewals only; whether a lease has run out, the database's clock says.
    let other = place.open_at(&SCHEMA, clock.clone()).await;
    let mut tx = other.begin("overtake").await.unwrap();
    clock.advance(Duration::from_secs(1));
    lease::acquire(&mut tx, &format!("flow/{id}"), "fast", Duration::from_secs(30))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    eventually("the step to end", async || {
        (alive.load(Ordering::SeqCst) == 0)
            .then_some(())
            .ok_or_else(String::new)
    })
    .await;
    slow.stop().await;
    let holder = lease::holder(&other, &format!("flow/{id}"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(holder.holder, "fast", "the overtaken process released nothing");
}

/// A bug in an owner's hook must not leave the flow without anybody who runs it.
#[tokio::test]
async fn a_panic_in_a_hook_does_not_strand_the_flow() {
    struct Panics(AtomicUsize);
    impl Kind for Panics {
        const NAME: &'static str = "panics";
        type Input = ();
        async fn graph(&self, _flow: &FlowInfo, (): ()) -> Result<Graph, StepError> {
            Ok(Graph::new())
        }
        async fn on_state(&self, _tx: &mut Tx, _change: &Change<'_>) -> Result<(), stolos_store::Error> {
            assert!(self.0.fetch_add(1, Ordering::SeqCst) > 0, "a bug");
            Ok(())
        }
    }
    let place = Place::sqlite();
    let flows = Flows::builder(place.open(&SCHEMA).await, "test")
        .kind(Panics(AtomicUsize::new(0)))
        .start();
    let id = flows.submit::<Panics>("x", &()).await.unwrap();
    assert_eq!(flows.wait(id).await.unwrap().state(), FlowState::Succeeded);
}

// --- stopping and dying ---

#[tokio::test]
async fn an_orderly_stop_leaves_the_flow_to_the_next_process() {
    let place = Place::sqlite();
    let db = place.open(&SCHEMA).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let script = |runs: Arc<AtomicUsize>| {
        move |_: &FlowInfo| {
            let runs = runs.clone();
            let mut graph = Graph::new();
            graph.add(Step::new("once", |_| async { Ok(()) }));
            graph.add(
                Step::new("waits", move |ctx: StepContext| {
                    let runs = runs.clone();
                    async move {
                        if runs.fetch_add(1, Ordering::SeqCst) == 0 {
                            ctx.canceled().await;
                            return Err(StepError::canceled());
                        }
                        Ok(())
                    }
                })
                .after("once"),
            );
            graph
        }
    };
    let flows = scripted(&db, script(runs.clone()));
    let id = submit(&flows).await;
    view_until(&flows, id, "the step to wait", |view| {
        view.step("waits")
            .is_some_and(|step| step.state == StepState::Running)
    })
    .await;
    flows.stop().await;
    assert_eq!(
        lease::holder(&db, &format!("flow/{id}")).await.unwrap(),
        None,
        "given back"
    );
    let flows = Flows::builder(db, "another process")
        .kind(Scripted(script(runs.clone())))
        .start();
    let end = flows.wait(id).await.unwrap();
    assert_eq!(end.state(), FlowState::Succeeded);
    assert_eq!(runs.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_crash_leaves_nothing_running() {
    let place = Place::sqlite();
    let db = place.open(&SCHEMA).await;
    let beats = Arc::new(AtomicUsize::new(0));
    let shared = beats.clone();
    let flows = Flows::builder(db, "test")
        .kind(Scripted(move |_: &FlowInfo| {
            let beats = shared.clone();
            let mut graph = Graph::new();
            graph.add(Step::new("beats", move |_| {
                let beats = beats.clone();
                async move {
                    loop {
                        beats.fetch_add(1, Ordering::SeqCst);
                        tokio::task::yield_now().await;
                    }
                    #[expect(unreachable_code, reason = "names the type of the output")]
                    Ok(())
                }
            }));
            graph.add(Step::new("quick", |_| async { Ok(()) }));
            graph
        }))
        // The begin of the flow, the begin of both steps, the end of the quick one.
        .faults(Faults::new(Plan::CrashAfter(2)))
        .start();
    submit(&flows).await;
    flows.crashed().await;
    let before = beats.load(Ordering::SeqCst);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(beats.load(Ordering::SeqCst), before);
}

#[tokio::test]
async fn a_graph_that_cannot_be_made_yet_is_made_later() {
    struct Later(AtomicUsize);
    impl Kind for Later {
        const NAME: &'static str = "later";
        type Input = String;
        async fn graph(&self, _flow: &FlowInfo, input: String) -> Result<Graph, StepError> {
            if self.0.fetch_add(1, Ordering::SeqCst) < 2 {
                return Err(StepError::transient("the store is starting"));
            }
            let mut graph = Graph::new();
            graph.add(Step::new("echo", move |_| {
                let input = input.clone();
                async move { Ok(input) }
            }));
            Ok(graph)
        }
    }
    let place = Place::sqlite();
    let flows = Flows::builder(place.open(&SCHEMA).await, "test")
        .kind(Later(AtomicUsize::new(0)))
        .start();
    let id = flows.submit::<Later>("x", &"hello".to_owned()).await.unwrap();
    let end = flows.wait(id).await.unwrap();
    assert_eq!(end.step("echo").unwrap().output, Some("hello".into()));
    assert!(matches!(
        flows
            .submit::<CreateKind>("x", &Create { names: Vec::new() })
            .await,
        Err(Error::UnknownKind(_))
    ));
}

/// Once, flows of the other executor filled the list of those that may be taken up next.
#[tokio::test]
async fn two_executors_of_one_database_leave_each_others_flows_alone() {
    struct Quick;
    impl Kind for Quick {
        const NAME: &'static str = "quick";
        type Input = ();
        async fn graph(&self, _flow: &FlowInfo, (): ()) -> Result<Graph, StepError> {
            Ok(Graph::new())
        }
    }
    each(async |place| {
        let db = place.open(&SCHEMA).await;
        let stuck = Arc::new(Semaphore::new(0));
        let waiting = stuck.clone();
        let one = scripted(&db, move |_| {
            let waiting = waiting.clone();
            let mut graph = Graph::new();
            graph.add(
                Step::new("wait", move |_| {
                    let waiting = waiting.clone();
                    async move {
                        let _ = waiting.acquire().await;
                        Ok(())
                    }
                })
                .interrupt(Interrupt::Anytime),
            );
            graph
        });
        for _ in 0..120 {
            submit(&one).await;
        }
        let two = Flows::builder(db.clone(), "two")
            .kind(Quick)
            .other_kind::<Scripted<fn(&FlowInfo) -> Graph>>()
            .max_running(1)
            .start();
        let id = two.submit::<Quick>("x", &()).await.unwrap();
        assert_eq!(two.wait(id).await.unwrap().state(), FlowState::Succeeded);
        stuck.close();
        two.stop().await;
        one.stop().await;
    })
    .await;
}
