//! Faults of all kinds on a cluster of three masters, for as long as one likes, with a checker of what it promised.
//!
//! The breaking and the watching are done by the testbed's `stolos-faults`, because this program links none of our crates.

use anyhow::{Context as _, bail};
use clap::Args;

use crate::installation::Installation;

#[derive(Args)]
pub(crate) struct Arguments {
    /// How long
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    minutes: u32,
    /// The same number makes the same faults, in the same order
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writers beside the faults
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=200))]
    writers: u32,
}

/// The cluster that is broken.
const CLUSTER: &str = "chaos";

impl Arguments {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let installation = Installation::up("chaos")?;
        installation.create_cluster_of(CLUSTER, "large", "2", true)?;
        // What is printed goes by as it comes; the report is the last of it.
        let status = installation
            .program("stolos-faults")
            .args(["chaos", CLUSTER, "--minutes", &self.minutes.to_string()])
            .args([
                "--seed",
                &self.seed.to_string(),
                "--writers",
                &self.writers.to_string(),
            ])
            .status()
            .context("failed to start `stolos-faults`")?;
        if !status.success() {
            bail!("something was broken, or did not get well: see the report");
        }
        installation.delete_cluster(CLUSTER, true)
    }
}
