//! How long a machine that is lost is missed: taken away, frozen, cut off; workers and masters of a real cluster.
//!
//! The breaking and the watching are done by the testbed's `stolos-faults`, because this program links none of our crates. What it is compared with is in the
//! same rows: from the fault until somebody doubts, until it is certain, and until the node is Ready again.

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::{Times, print};
use crate::installation::{Installation, output};

#[derive(Args)]
pub(crate) struct Arguments {
    /// How often each fault strikes
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const CLUSTER: &str = "repair";

/// What `stolos-faults` prints of one kind of fault.
#[derive(Deserialize)]
struct Measured {
    fault: Value,
    group: String,
    rounds: Vec<Round>,
}

/// Milliseconds.
#[derive(Deserialize)]
struct Round {
    suspect: u64,
    certain: u64,
    machine: u64,
    ready: u64,
    ready_after_certain: u64,
}

impl Arguments {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let installation = Installation::up("repair")?;
        installation.create_cluster_of(CLUSTER, "large", "2", true)?;
        let mut command = installation.program("stolos-faults");
        command.args(["repair", CLUSTER, "--rounds", &self.rounds.to_string()]);
        let said = output(&mut command)?;
        let measured: Vec<Measured> = serde_json::from_str(&said).context("it printed something else")?;
        if self.json {
            print(&said);
        } else {
            let table: Vec<String> = measured.iter().map(Measured::lines).collect();
            print(&table.join("\n"));
        }
        installation.delete_cluster(CLUSTER, true)
    }
}

/// What a row is called, and where its time is.
type Row = (&'static str, fn(&Round) -> u64);

impl Measured {
    fn lines(&self) -> String {
        let mut text = format!(
            "{:<34}{:>10}{:>10}\n",
            format!(
                "{} {}, n = {}",
                self.group,
                self.fault.as_str().unwrap_or("?"),
                self.rounds.len()
            ),
            "median",
            "worst"
        );
        let rows: [Row; 5] = [
            ("suspect", |round| round.suspect),
            ("certainly dead", |round| round.certain),
            ("another machine", |round| round.machine),
            ("node Ready", |round| round.ready),
            ("node Ready, since it is certain", |round| {
                round.ready_after_certain
            }),
        ];
        for (name, take) in rows {
            let times: Times = self.rounds.iter().map(take).collect();
            let seconds = |ms: u64| ms as f64 / 1000.0;
            text.push_str(&format!(
                "  {name:<32}{:>8.2} s{:>8.2} s\n",
                seconds(times.median()),
                seconds(times.worst())
            ));
        }
        text
    }
}
