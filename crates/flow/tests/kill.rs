//! Real SIGKILL: a child process runs a flow with effects on disk, and is killed at points chosen by what it reports.
//!
//! The child is this test binary again. It prints a line for each effect and each event; the parent reads lines and kills
//! it after one of them, so the points are spread over effects and journal writes without waiting for any time.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use stolos_base::Clock;
use stolos_base::ids::{AgentId, FlowId};
use stolos_flow::{
    Event, EventKind, FlowInfo, FlowState, Flows, Graph, Kind, Step, StepContext, StepError, TABLES,
};
use stolos_store::{Db, Schema};

static SCHEMA: Schema = Schema {
    name: "kill",
    parts: &[&TABLES],
};
/// Tells the child where to work.
const DIRECTORY: &str = "STOLOS_FLOW_KILL_TEST_DIRECTORY";
const FLOW: &str = "00000000-0000-7000-8000-00000000abcd";
const MACHINES: usize = 8;

struct Machines(Utf8PathBuf);

impl Kind for Machines {
    const NAME: &'static str = "machines";
    type Input = usize;

    async fn graph(&self, _flow: &FlowInfo, n: usize) -> Result<Graph, StepError> {
        let mut graph = Graph::new();
        let limit = graph.group("creation", 3);
        let mut all = Vec::new();
        for i in 0..n {
            let world = self.0.clone();
            all.push(
                graph.add(
                    Step::new(format!("Create VM {i}"), move |ctx: StepContext| {
                        let world = world.clone();
                        async move {
                            let agent: AgentId = ctx.derive_id("agent");
                            // The file stands for a machine; a second one under another id would be a leak.
                            std::fs::write(world.join(agent.to_string()), format!("{i}")).map_err(broken)?;
                            say(&format!("made {i}"));
                            tokio::task::yield_now().await;
                            Ok(agent)
                        }
                    })
                    .within(&limit),
                ),
            );
        }
        let (world, machines) = (self.0.clone(), all.clone());
        graph.add(
            Step::new("Check", move |ctx: StepContext| {
                let (world, machines) = (world.clone(), machines.clone());
                async move {
                    for machine in &machines {
                        let agent: AgentId = ctx.output(machine)?;
                        std::fs::metadata(world.join(agent.to_string())).map_err(broken)?;
                    }
                    say("checked");
                    Ok(())
                }
            })
            .after_all(&all),
        );
        Ok(graph)
    }
}

fn broken(error: std::io::Error) -> StepError {
    StepError::internal(error.to_string())
}

/// A line to the parent, not captured by the test harness.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "\n@{line}");
    let _ = out.flush();
}

async fn open(directory: &Utf8Path) -> Db {
    let url = format!("sqlite:{directory}/db").parse().expect("a database");
    Db::open(&url, &SCHEMA, Clock::system())
        .await
        .expect("the database opens after every death")
}

/// The child's part; does nothing in an ordinary test run.
#[tokio::test]
async fn child() {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let directory = Utf8PathBuf::from(directory);
    let db = open(&directory).await;
    let flows = Flows::builder(db, "child")
        .kind(Machines(directory.join("world")))
        .observer(|event: &Event| {
            let name = match &event.what {
                EventKind::StepStarted { step, .. } => format!("started {step}"),
                EventKind::StepFinished { step, .. } => format!("finished {step}"),
                EventKind::FlowEnded { .. } => "ended".to_owned(),
                _ => return,
            };
            say(&name);
        })
        .start();
    let id: FlowId = FLOW.parse().expect("an id");
    if flows.view(id).await.expect("the view").is_none() {
        let new = stolos_flow::NewFlow::new::<Machines>("kill", &MACHINES).id(id);
        flows.submit_new(new).await.expect("the flow is submitted");
    }
    let end = flows.wait(id).await.expect("the end");
    assert_eq!(end.state(), FlowState::Succeeded, "{:?}", end.summary.failure);
}

fn spawn(directory: &Utf8Path) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the child starts")
}

/// Runs children until the flow has succeeded, killing the n-th after as many of its lines as the n-th pause says.
fn run(pauses: &[usize]) -> usize {
    let directory = camino_tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir(directory.path().join("world")).expect("the world");
    let mut lives = 0;
    let mut pauses = pauses.iter();
    loop {
        lives += 1;
        let mut child = spawn(directory.path());
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let lines = lines.map_while(Result::ok).filter(|line| line.starts_with('@'));
        match pauses.next() {
            Some(pause) => {
                let _ = lines.take(*pause).count();
                child.kill().expect("SIGKILL");
            }
            None => drop(lines.count()),
        }
        if child.wait().expect("its end").success() {
            break;
        }
        assert!(lives < 100, "the flow does not come to its end");
    }
    let machines = std::fs::read_dir(directory.path().join("world"))
        .expect("the world")
        .count();
    assert_eq!(machines, MACHINES, "each machine once after {lives} lives");
    lives
}

#[test]
fn a_flow_ends_right_however_often_its_process_is_killed() {
    // A fixed pseudo-random sample; each life makes some progress, or none.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..12 {
        let pauses: Vec<usize> = (0..4)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                usize::try_from(state % 14).expect("small")
            })
            .collect();
        let lives = run(&pauses);
        assert!(lives > 1, "nothing was killed with {pauses:?}");
    }
}
