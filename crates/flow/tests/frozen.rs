//! Processes that are frozen in the middle of a step for longer than their leases last, and then go on: whatever they had in hand
//! is refused, and nobody is disturbed.
//!
//! Each process is a thread with a runtime and a database of its own; a step that blocks its thread freezes everything in it, renewals
//! too, between the moment in which it decided to write and the moment in which it writes.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use stolos_base::{Clock, poll};
use stolos_flow::{FlowInfo, Flows, Graph, Kind, Step, StepContext, StepError, TABLES};
use stolos_store::testing::{Place, each};
use stolos_store::{DatabaseUrl, Db, Error, Migration, Part, Row as _, Schema, lease, query, sequence};
use tokio_util::sync::CancellationToken;

static SCHEMA: Schema = Schema {
    name: "frozen",
    parts: &[
        &TABLES,
        &Part {
            name: "frozen",
            migrations: &[Migration {
                number: 1,
                name: "effects",
                statements: &["CREATE TABLE effects (
                    seq BIGINT PRIMARY KEY, flow TEXT NOT NULL, step TEXT NOT NULL, number BIGINT NOT NULL)"],
            }],
        },
    ],
};

const LEASE: Duration = Duration::from_millis(300);
/// Several times as long, so that others are sure to go on meanwhile.
const FROZEN: Duration = Duration::from_millis(1500);
const PROCESSES: usize = 3;
/// Flows that each process submits.
const FLOWS: usize = 3;
const STEPS: usize = 5;
/// How often each process is frozen; but for one that stays awake: when all are frozen at once nobody takes anything over.
const FREEZES: usize = 2;

struct Work {
    db: Db,
    freezes: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
}

impl Kind for Work {
    const NAME: &'static str = "work";
    type Input = ();

    async fn graph(&self, _flow: &FlowInfo, (): ()) -> Result<Graph, StepError> {
        let mut graph = Graph::new();
        for n in 0..STEPS {
            let (db, freezes, refused) = (self.db.clone(), self.freezes.clone(), self.refused.clone());
            let step = Step::new(format!("step {n}"), move |ctx: StepContext| {
                let (db, freezes, refused) = (db.clone(), freezes.clone(), refused.clone());
                async move {
                    let is_due = n == STEPS / 2
                        && freezes
                            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                            .is_ok();
                    if is_due {
                        std::thread::sleep(FROZEN);
                    }
                    // In a task of its own: the step may be given up before it has tried, and it is the trying that must be refused.
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "it has to outlive the step, whatever becomes of it"
                    )]
                    let attempt = tokio::spawn(async move {
                        let result = write(&db, &ctx).await;
                        if matches!(result, Err(Error::LeaseLost { .. })) {
                            refused.fetch_add(1, Ordering::SeqCst);
                        }
                        result
                    });
                    attempt.await.unwrap()?;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    Ok(())
                }
            });
            graph.add(match n {
                0 => step,
                n => step.after(format!("step {}", n - 1).as_str()),
            });
        }
        Ok(graph)
    }
}

async fn write(db: &Db, ctx: &StepContext) -> Result<(), Error> {
    let mut tx = db.begin("an effect").await?;
    lease::verify(&mut tx, ctx.fence()).await?;
    let seq = sequence::next(&mut tx, "effects").await?;
    query("INSERT INTO effects (seq, flow, step, number) VALUES ($1, $2, $3, $4)")
        .bind(seq)
        .bind(ctx.flow_id().to_string())
        .bind(ctx.step())
        .bind(ctx.fence().number)
        .execute(tx.conn())
        .await?;
    tx.commit().await
}

fn process(
    url: DatabaseUrl,
    number: usize,
    refused: Arc<AtomicUsize>,
    stop: CancellationToken,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let db = Db::open(&url, &SCHEMA, Clock::system()).await.unwrap();
            let work = Work {
                db: db.clone(),
                freezes: Arc::new(AtomicUsize::new(if number == 0 { 0 } else { FREEZES })),
                refused,
            };
            let flows = Flows::builder(db, format!("process {number}"))
                .lease(LEASE)
                .kind(work)
                .start();
            for flow in 0..FLOWS {
                flows
                    .submit::<Work>(format!("{number}/{flow}"), &())
                    .await
                    .unwrap();
            }
            stop.cancelled().await;
            flows.stop().await;
        });
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_process_is_shut_out_and_its_flows_go_on() {
    each(async |place: &Place| {
        let db = place.open(&SCHEMA).await;
        let (refused, stop) = (Arc::<AtomicUsize>::default(), CancellationToken::new());
        let processes: Vec<_> = (0..PROCESSES)
            .map(|number| process(place.url().clone(), number, refused.clone(), stop.clone()))
            .collect();
        let all = i64::try_from(PROCESSES * FLOWS).unwrap();
        poll::until(
            "all flows",
            Duration::from_millis(20),
            Duration::from_secs(60),
            async || {
                let row = query("SELECT COUNT(*) AS n FROM flow_flows WHERE state = 'succeeded'")
                    .fetch_one(db.read())
                    .await
                    .map_err(|error| error.to_string())?;
                match row.try_get::<i64, _>("n").unwrap() {
                    n if n == all => Ok(()),
                    n => Err(format!("{n} of {all}")),
                }
            },
        )
        .await
        .unwrap();
        stop.cancel();
        for process in processes {
            process.join().unwrap();
        }
        let mut effects: BTreeMap<String, Vec<(String, i64)>> = BTreeMap::new();
        for row in query("SELECT flow, step, number FROM effects ORDER BY seq")
            .fetch_all(db.read())
            .await
            .unwrap()
        {
            let effect = (row.try_get("step").unwrap(), row.try_get("number").unwrap());
            effects
                .entry(row.try_get("flow").unwrap())
                .or_default()
                .push(effect);
        }
        assert_eq!(effects.len(), PROCESSES * FLOWS);
        for (flow, effects) in &effects {
            let mut last = ("", 0);
            for (step, number) in effects {
                // Never one of an older taking after one of a newer, and never a step back. The same step twice is a repetition.
                assert!(
                    *number >= last.1 && step.as_str() >= last.0,
                    "{flow}: {effects:?}"
                );
                last = (step, *number);
            }
            assert_eq!(last.0, format!("step {}", STEPS - 1), "{flow}: {effects:?}");
        }
        assert!(
            refused.load(Ordering::SeqCst) > 0,
            "nobody who was frozen tried to write under an old fence: the test shows nothing"
        );
    })
    .await;
}
