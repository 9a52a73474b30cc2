//! For tests only: proves that a flow survives everything.
//!
//! A [`Scenario`] says how to make an outside world (fakes that outlive a "crash"), which kinds there are, what to
//! submit, and what must be true afterwards. [`exhaust`] then runs it, each time in a new world and a new database:
//! - undisturbed;
//! - with every step run twice in a row;
//! - "killed" before and after each journal write, and taken up again by a new executor;
//! - with each step failing for good, once without having run and once after having run, and told to go on;
//! - canceled when each step begins, and told to go on.
//!
//! After each of these the flow must have succeeded and [`Scenario::check`] must hold; after a failure or a cancel,
//! before it goes on, [`Scenario::check_unfinished`] must.

use std::time::Duration;

use stolos_base::ids::FlowId;
use stolos_store::testing::Place;
use stolos_store::{Db, Schema};

use crate::engine::{Builder, Flows};
use crate::event::EventKind;
use crate::faults::{Faults, Plan};
use crate::kind::FlowState;
use crate::view::FlowView;

/// How long one run may take; only a flow that hangs does.
const LIMIT: Duration = Duration::from_secs(60);

/// A flow to be proven.
pub trait Scenario {
    /// The outside world; shared by all lives of the process in one run.
    type World;

    /// The service's schema, with [`crate::TABLES`].
    fn schema(&self) -> &'static Schema;

    /// A new world.
    fn world(&self) -> impl Future<Output = Self::World>;

    /// Adds the kinds as the program does, on this database. Called again for each life.
    fn kinds(&self, world: &Self::World, db: &Db, builder: Builder) -> Builder;

    /// Submits the flow as the program does, with whatever rows go with it. Called once per run.
    fn submit(&self, world: &Self::World, db: &Db, flows: &Flows) -> impl Future<Output = FlowId>;

    /// Panics unless the world is as it should be after the flow has succeeded.
    fn check(&self, world: &Self::World, db: &Db, end: &FlowView) -> impl Future<Output = ()>;

    /// Panics unless the world is as it may be after the flow has failed or been canceled.
    fn check_unfinished(&self, world: &Self::World, db: &Db, end: &FlowView) -> impl Future<Output = ()> {
        let _ = (world, db, end);
        async {}
    }
}

/// What was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Steps of the undisturbed run.
    pub steps: usize,
    /// Journal writes of the undisturbed run.
    pub writes: u64,
    /// Runs in all.
    pub runs: usize,
}

/// Runs the scenario with every fault at every point.
///
/// # Panics
/// When the flow does not survive one of them; the message names it.
pub async fn exhaust<S: Scenario>(scenario: &S) -> Report {
    exhaust_each(scenario, 1).await
}

/// The same with every `stride`-th point only, for flows with hundreds of steps.
///
/// # Panics
/// As [`exhaust`].
pub async fn exhaust_each<S: Scenario>(scenario: &S, stride: usize) -> Report {
    let stride = stride.max(1);
    let (plain, writes) = disturbed(scenario, "undisturbed", Plan::Nothing, None).await;
    let steps: Vec<String> = plain.steps.iter().map(|step| step.name.clone()).collect();
    let mut runs = 1;
    disturbed(scenario, "every step twice", Plan::Repeat, None).await;
    runs += 1;
    for write in (0..writes).step_by(stride) {
        for plan in [Plan::CrashBefore(write), Plan::CrashAfter(write)] {
            let what = format!("{plan:?}");
            disturbed(scenario, &what, plan, None).await;
            runs += 1;
        }
    }
    let run = plain
        .steps
        .iter()
        .filter(|step| step.state == crate::view::StepState::Done);
    for step in run.step_by(stride) {
        for plan in [Plan::Fail(step.name.clone()), Plan::FailAfter(step.name.clone())] {
            let what = format!("{plan:?}");
            disturbed(scenario, &what, plan, None).await;
            runs += 1;
        }
        let what = format!("canceled at step `{}`", step.name);
        disturbed(scenario, &what, Plan::Nothing, Some(&step.name)).await;
        runs += 1;
    }
    Report {
        steps: steps.len(),
        writes,
        runs,
    }
}

/// One run with one disturbance; gives the final view and the number of journal writes of the first life.
async fn disturbed<S: Scenario>(
    scenario: &S,
    what: &str,
    plan: Plan,
    cancel_at: Option<&str>,
) -> (FlowView, u64) {
    let run = run(scenario, what, plan, cancel_at);
    match tokio::time::timeout(LIMIT, run).await {
        Ok(result) => result,
        Err(_) => panic!("{what}: the flow hangs"),
    }
}

async fn run<S: Scenario>(scenario: &S, what: &str, plan: Plan, cancel_at: Option<&str>) -> (FlowView, u64) {
    let place = Place::sqlite();
    let world = scenario.world().await;
    let faults = Faults::new(plan);
    let db = place.open(scenario.schema()).await;
    let flows = start(scenario, &world, &db, faults.clone());
    let events = flows.subscribe();
    let id = scenario.submit(&world, &db, &flows).await;
    let first = tokio::select! {
        end = flows.wait(id) => match end {
            Ok(end) => Some(end),
            Err(crate::Error::Stopped) => None,
            Err(error) => panic!("{what}: {}", stolos_base::chain(&error)),
        },
        () = cancel_when(&flows, events, id, cancel_at) => unreachable!("it never ends by itself"),
    };
    let writes = faults.writes();
    let Some(end) = first else {
        // The next life of the process, with a database that was not closed in order.
        flows.crashed().await;
        drop(flows);
        let db = place.open(scenario.schema()).await;
        let flows = start(scenario, &world, &db, Faults::default());
        let end = wait(&flows, id, what).await;
        succeeded(scenario, &world, &db, &end, what).await;
        flows.stop().await;
        return (end, writes);
    };
    let end = match end.state() {
        FlowState::Succeeded => end,
        _ => {
            scenario.check_unfinished(&world, &db, &end).await;
            flows
                .retry(id)
                .await
                .unwrap_or_else(|error| panic!("{what}: it cannot go on: {}", stolos_base::chain(&error)));
            wait(&flows, id, what).await
        }
    };
    succeeded(scenario, &world, &db, &end, what).await;
    flows.stop().await;
    (end, writes)
}

fn start<S: Scenario>(scenario: &S, world: &S::World, db: &Db, faults: Faults) -> Flows {
    let builder = Flows::builder(db.clone(), "test").faults(faults);
    scenario.kinds(world, db, builder).start()
}

async fn wait(flows: &Flows, id: FlowId, what: &str) -> FlowView {
    flows
        .wait(id)
        .await
        .unwrap_or_else(|error| panic!("{what}: {}", stolos_base::chain(&error)))
}

async fn succeeded<S: Scenario>(scenario: &S, world: &S::World, db: &Db, end: &FlowView, what: &str) {
    assert_eq!(
        end.state(),
        FlowState::Succeeded,
        "{what}: the flow has not succeeded: {:?}",
        end.summary.failure
    );
    let unfinished: Vec<&str> = end
        .steps
        .iter()
        .filter(|step| !step.state.is_past())
        .map(|step| step.name.as_str())
        .collect();
    assert!(
        unfinished.is_empty(),
        "{what}: steps are not finished: {unfinished:?}"
    );
    tracing::debug!(what, "checking the world");
    scenario.check(world, db, end).await;
}

/// Cancels the flow when the step begins, then does nothing for ever. A flow that is faster than the cancel is fine.
async fn cancel_when(
    flows: &Flows,
    mut events: tokio::sync::broadcast::Receiver<crate::event::Event>,
    id: FlowId,
    step: Option<&str>,
) {
    while let Some(step) = step {
        match events.recv().await {
            Ok(event) if matches!(&event.what, EventKind::StepStarted { step: begun, .. } if begun == step) => {
                match flows.cancel(id).await {
                    Ok(()) | Err(crate::Error::State { .. }) => break,
                    Err(error) => panic!(
                        "failed to cancel at step `{step}`: {}",
                        stolos_base::chain(&error)
                    ),
                }
            }
            Ok(_) => {}
            Err(error) => panic!("missed events while waiting for step `{step}`: {error}"),
        }
    }
    std::future::pending().await
}
