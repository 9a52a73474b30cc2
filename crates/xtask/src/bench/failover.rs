//! How long it takes until another manager does what one did that was killed.
//!
//! The measuring is done by the testbed's `stolos-simulated`, because this program links none of our crates. Here it is run and shown.

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;

use super::{Times, print};
use crate::ci::cargo;
use crate::installation::output;

#[derive(Args)]
pub(crate) struct Arguments {
    /// How often a manager is killed
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Clusters that are in the making all the while, on simulated machines
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    clusters: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `stolos-simulated` prints.
#[derive(Deserialize)]
struct Measured {
    clusters: u32,
    flows: Times,
    answered_ms: Times,
    first_ms: Times,
    last_ms: Times,
}

impl Arguments {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut command = cargo();
        command.args([
            "run",
            "--quiet",
            "--package",
            "stolos-testbed",
            "--bin",
            "stolos-simulated",
        ]);
        command.args(["--", "failover"]);
        command.args([self.rounds.to_string(), self.clusters.to_string()]);
        let said = output(&mut command)?;
        let measured: Measured = serde_json::from_str(&said).context("it printed something else")?;
        if self.json {
            print(&said);
        } else {
            print(&measured.table());
        }
        Ok(())
    }
}

impl Measured {
    fn table(&self) -> String {
        let mut text = format!(
            "one of two managers is killed (SIGKILL) while {} clusters are in the making; it has {} flows (median)\n\n{:<44}{:>5}{:>12}{:>12}\n",
            self.clusters,
            self.flows.median(),
            "",
            "n",
            "p50",
            "worst"
        );
        let seconds = |ms: u64| format!("{:.2} s", ms as f64 / 1000.0);
        for (title, times) in [
            ("until the API answers a new connection", &self.answered_ms),
            ("until its first flow is taken over", &self.first_ms),
            ("until its last flow is taken over", &self.last_ms),
        ] {
            text.push_str(&format!(
                "{title:<44}{:>5}{:>12}{:>12}\n",
                times.all().len(),
                seconds(times.median()),
                seconds(times.worst())
            ));
        }
        text.push_str(
            "\nThe common address is simulated: it leads to a manager that accepts connections. On a host, stolos-hostd needs up to a second.",
        );
        text
    }
}
