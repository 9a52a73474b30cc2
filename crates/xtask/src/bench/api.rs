//! How long one who asks waits, while operations on many clusters are running; beside what it costs to ask for nothing at all, and to write
//! one row.
//!
//! The measuring is done by the testbed's `simulated` example, because this program links none of our crates. Here it is run and shown.

use std::collections::BTreeMap;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Times, print};
use crate::ci::cargo;
use crate::installation::output;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Clusters on simulated machines
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=245))]
    clusters: u32,
    /// How often all of them are made, changed and deleted
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// The database's engine; PostgreSQL is a server for tests, which syncs nothing
    #[arg(long, value_enum, default_value_t = Database::Sqlite)]
    database: Database,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Database {
    Sqlite,
    Postgres,
}

/// What is shown, by the name under which it was measured.
const REQUESTS: [(&str, &str); 10] = [
    ("create", "create a cluster"),
    ("resize", "resize a cluster"),
    ("delete", "delete a cluster"),
    ("show", "show a cluster"),
    ("list", "list all, PKS's way"),
    ("page", "list a page of 50"),
    ("search", "search"),
    ("operations", "the newest 20 operations"),
    ("info", "ask for nothing (info)"),
    ("insert", "INSERT one row and commit"),
];
const PHASES: [(&str, &str); 3] = [
    ("create", "until all are made"),
    ("resize", "until all are resized"),
    ("delete", "until all are deleted"),
];

/// What the example prints.
#[derive(Deserialize)]
struct Measured {
    database: String,
    clusters: u32,
    rounds: u32,
    asking_at_once: u32,
    requests_us: BTreeMap<String, Times>,
    phases: BTreeMap<String, Vec<Phase>>,
    memory_kib: Memory,
}

/// One phase of one round.
#[derive(Deserialize)]
struct Phase {
    asked_ms: u64,
    all_ms: u64,
    processor_ms: u64,
}

/// Resident memory of the process of all services, simulated machines included.
#[derive(Deserialize)]
struct Memory {
    idle: u64,
    fleet: u64,
}

impl Arguments {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let database = match self.database {
            Database::Sqlite => "sqlite",
            Database::Postgres => "postgres",
        };
        let mut command = cargo();
        command.args([
            "run",
            "--quiet",
            "--package",
            "stolos-testbed",
            "--example",
            "simulated",
        ]);
        command.args(["--", "bench", "--database", database]);
        command.arg(format!("--clusters={}", self.clusters));
        command.arg(format!("--rounds={}", self.rounds));
        let said = output(&mut command)?;
        let measured: Measured = serde_json::from_str(&said).context("it printed something else")?;
        if self.json {
            print(&measured.json().to_string());
        } else {
            print(&measured.table());
        }
        Ok(())
    }
}

impl Measured {
    fn table(&self) -> String {
        let mut text = format!(
            "{} clusters on {}, rounds: {}; {} ask at the same time, one reads all the while\n\n{:<28}{:>7}{:>12}{:>12}{:>12}\n",
            self.clusters, self.database, self.rounds, self.asking_at_once, "", "n", "p50", "p99", "worst"
        );
        let ms = |us: u64| format!("{:.1} ms", us as f64 / 1000.0);
        for (name, title) in REQUESTS {
            let Some(times) = self.requests_us.get(name) else {
                continue;
            };
            text.push_str(&format!(
                "{title:<28}{:>7}{:>12}{:>12}{:>12}\n",
                times.all().len(),
                ms(times.median()),
                ms(times.percentile(99)),
                ms(times.worst())
            ));
        }
        text.push_str(&format!(
            "\n{:<28}{:>19}{:>12}{:>12}\n",
            "", "asked within", "p50", "processor"
        ));
        let seconds = |ms: u64| format!("{:.1} s", ms as f64 / 1000.0);
        for (name, title) in PHASES {
            let median = |of: fn(&Phase) -> u64| {
                let phases = self.phases.get(name).map(Vec::as_slice).unwrap_or_default();
                phases.iter().map(of).collect::<Times>().median()
            };
            text.push_str(&format!(
                "{title:<28}{:>19}{:>12}{:>12}\n",
                seconds(median(|phase| phase.asked_ms)),
                seconds(median(|phase| phase.all_ms)),
                seconds(median(|phase| phase.processor_ms))
            ));
        }
        text.push_str(&format!(
            "\nall services with the simulated machines: {} MiB idle, {} MiB with the fleet",
            self.memory_kib.idle / 1024,
            self.memory_kib.fleet / 1024
        ));
        text
    }

    fn json(&self) -> Value {
        let show = |times: &Times| {
            json!({
                "n": times.all().len(),
                "p50_us": times.median(),
                "p99_us": times.percentile(99),
                "worst_us": times.worst(),
                "all_us": times.all(),
            })
        };
        let requests: BTreeMap<&str, Value> = self
            .requests_us
            .iter()
            .map(|(name, times)| (name.as_str(), show(times)))
            .collect();
        let phase = |phase: &Phase| json!({"asked_ms": phase.asked_ms, "all_ms": phase.all_ms, "processor_ms": phase.processor_ms});
        let phases: BTreeMap<&str, Vec<Value>> = self
            .phases
            .iter()
            .map(|(name, rounds)| (name.as_str(), rounds.iter().map(phase).collect()))
            .collect();
        json!({
            "database": self.database,
            "clusters": self.clusters,
            "rounds": self.rounds,
            "requests": requests,
            "phases": phases,
            "memory_kib": {"idle": self.memory_kib.idle, "fleet": self.memory_kib.fleet},
        })
    }
}
