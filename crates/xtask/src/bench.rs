//! Benchmarks: each measures one thing several times, beside something else in the same run, and prints median and worst.

mod create_cluster;

use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// A cluster of one master and one worker, to a pod running and DNS answering, beside the same programs started by hand
    CreateCluster(create_cluster::Arguments),
}

impl Bench {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::CreateCluster(arguments) => arguments.run(),
        }
    }
}

/// Measured times in milliseconds, in the order in which they were taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times(Vec<u64>);

impl Times {
    pub(crate) fn push(&mut self, ms: u64) {
        self.0.push(ms);
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

    pub(crate) fn worst(&self) -> u64 {
        self.0.iter().copied().max().unwrap_or(0)
    }

    pub(crate) fn all(&self) -> &[u64] {
        &self.0
    }
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
    }
}
