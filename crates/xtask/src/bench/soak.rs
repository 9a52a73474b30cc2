//! What the services take after everything that people and attackers do has gone on for long, and how they answer all the while.
//!
//! The work is done by the testbed's `simulated` example, because this program links none of our crates. Here it is run and shown.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{Times, print};
use crate::ci::cargo;
use crate::installation::output;

#[derive(Args)]
pub(crate) struct Arguments {
    /// How long
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(2..=24 * 60))]
    minutes: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// At the end at most so many times what is taken after ten minutes, in percent …
const MOST_GROWTH: u64 = 150;
/// … and at most so much.
const MOST_MIB: u64 = 150;

/// What the example prints.
#[derive(Deserialize, Serialize)]
struct Soaked {
    database: String,
    minutes: u64,
    clusters: u32,
    settled_after_s: u64,
    memory_kib: Memory,
    /// Seconds and KiB.
    samples: Vec<(u64, u64)>,
    requests_us: BTreeMap<String, Times>,
    errors: BTreeMap<String, u64>,
}

/// Resident memory of the process of all services, simulated machines included.
#[derive(Deserialize, Serialize)]
struct Memory {
    fresh: u64,
    settled: u64,
    end: u64,
    worst: u64,
    rested: u64,
}

impl Arguments {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut command = cargo();
        command.args([
            "run",
            "--quiet",
            "--package",
            "stolos-testbed",
            "--example",
            "simulated",
            "--",
            "soak",
        ]);
        command.arg(format!("--minutes={}", self.minutes));
        let said = output(&mut command)?;
        let soaked: Soaked = serde_json::from_str(&said).context("it printed something else")?;
        if self.json {
            print(&serde_json::to_string(&soaked)?);
        } else {
            print(&soaked.table());
        }
        soaked.memory_kib.check()
    }
}

impl Memory {
    fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.end * 100 <= self.settled * MOST_GROWTH,
            "at the end it takes {} % of what it took when it had settled, and {MOST_GROWTH} % are allowed",
            self.end * 100 / self.settled.max(1)
        );
        ensure!(
            self.end <= MOST_MIB * 1024,
            "at the end it takes {} MiB, and {MOST_MIB} MiB are allowed",
            self.end / 1024
        );
        Ok(())
    }
}

impl Soaked {
    fn table(&self) -> String {
        let memory = &self.memory_kib;
        let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
        let mut text = format!(
            "{} clusters on {}, {} minutes\n\n",
            self.clusters, self.database, self.minutes
        );
        for (title, kib) in [
            ("fresh, with all clusters", memory.fresh),
            (&format!("after {} s", self.settled_after_s), memory.settled),
            ("at the end", memory.end),
            ("worst", memory.worst),
            ("after a rest", memory.rested),
        ] {
            text.push_str(&format!("{title:<28}{:>14}\n", mib(kib)));
        }
        let ratio = memory.end as f64 / memory.settled.max(1) as f64;
        text.push_str(&format!("{:<28}{ratio:>14.2}\n\n", "end by settled"));
        text.push_str(&format!(
            "{:<28}{:>7}{:>12}{:>12}{:>12}\n",
            "", "n", "p50", "p99", "worst"
        ));
        let ms = |us: u64| format!("{:.1} ms", us as f64 / 1000.0);
        for (name, times) in &self.requests_us {
            text.push_str(&format!(
                "{name:<28}{:>7}{:>12}{:>12}{:>12}\n",
                times.all().len(),
                ms(times.median()),
                ms(times.percentile(99)),
                ms(times.worst())
            ));
        }
        text.push_str("\nwhat was refused or ended:\n");
        for (kind, times) in &self.errors {
            text.push_str(&format!("{times:>7}  {kind}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_grows_or_is_much_is_a_failure() {
        let memory = |settled: u64, end: u64| Memory {
            fresh: 1,
            settled: settled * 1024,
            end: end * 1024,
            worst: 1,
            rested: 1,
        };
        assert!(memory(100, 150).check().is_ok());
        assert!(memory(60, 91).check().is_err());
        assert!(memory(140, 151).check().is_err());
    }
}
