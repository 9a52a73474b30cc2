//! Benchmarks: each measures one thing several times, beside something else in the same run, and prints what is usual and what is worst.

mod api;
mod create_cluster;
mod failover;
mod repair;
mod soak;

use clap::Subcommand;
use serde::{Deserialize, Serialize};

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// A cluster of one master and one worker, to a pod running and DNS answering, beside the same programs started by hand
    CreateCluster(create_cluster::Arguments),
    /// Requests to the API while many clusters on simulated machines are worked on, beside a request for nothing and a row in the database
    Api(api::Arguments),
    /// From SIGKILL of one of two managers until the other one answers and goes on with its work
    Failover(failover::Arguments),
    /// From the loss of a machine of a real cluster until its node is Ready again
    Repair(repair::Arguments),
    /// What memory the services take after an hour of everything, floods and held connections among it, on simulated machines
    Soak(soak::Arguments),
}

impl Bench {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::CreateCluster(arguments) => arguments.run(),
            Self::Api(arguments) => arguments.run(),
            Self::Failover(arguments) => arguments.run(),
            Self::Repair(arguments) => arguments.run(),
            Self::Soak(arguments) => arguments.run(),
        }
    }
}

/// Measured times in one unit, in the order in which they were taken.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(transparent)]
pub(crate) struct Times(Vec<u64>);

impl FromIterator<u64> for Times {
    fn from_iter<T: IntoIterator<Item = u64>>(times: T) -> Self {
        Self(times.into_iter().collect())
    }
}

impl Times {
    pub(crate) fn push(&mut self, time: u64) {
        self.0.push(time);
    }

    /// The middle one; the mean of the middle two when their number is even. 0 when there are none.
    pub(crate) fn median(&self) -> u64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let n = sorted.len();
        match n {
            0 => 0,
            _ if n % 2 == 1 => sorted[n / 2],
            _ => sorted[n / 2 - 1].midpoint(sorted[n / 2]),
        }
    }

    /// The least of them that `percent` of a hundred do not exceed (nearest rank). 0 when there are none.
    pub(crate) fn percentile(&self, percent: usize) -> u64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100);
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
    }

    pub(crate) fn worst(&self) -> u64 {
        self.0.iter().copied().max().unwrap_or(0)
    }

    pub(crate) fn all(&self) -> &[u64] {
        &self.0
    }
}

#[expect(clippy::print_stdout, reason = "this program prints measurements")]
fn print(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_worst() {
        let times = |all: &[u64]| Times(all.to_vec());
        assert_eq!((times(&[]).median(), times(&[]).worst()), (0, 0));
        assert_eq!((times(&[3, 1, 2]).median(), times(&[3, 1, 2]).worst()), (2, 3));
        assert_eq!(times(&[4, 1, 2, 10]).median(), 3);
        assert_eq!((times(&[]).percentile(99), times(&[7]).percentile(99)), (0, 7));
        let hundred: Vec<u64> = (1..=100).rev().collect();
        assert_eq!(
            (times(&hundred).percentile(99), times(&hundred).percentile(50)),
            (99, 50)
        );
    }
}
