//! Faults of all kinds, one after the other, for as long as one likes.

use std::time::{Duration, Instant};

use serde::Serialize;
use stolos_testbed::note;

use crate::checker::{Checker, Seen};
use crate::faults::Fault;
use crate::site::{Machine, Site};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The cluster that is broken; it needs three masters
    cluster: String,
    /// How long
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// The same number makes the same faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writers beside the faults
    #[arg(long, default_value_t = 8)]
    writers: usize,
}

/// How long a cluster may take to be well after a fault.
const LIMIT: Duration = Duration::from_secs(240);

/// Everything that strikes. The first five are those that `HyperShift` tests its etcd with.
const FAULTS: [Fault; 21] = [
    Fault::EtcdDataLost,
    Fault::Process("etcd"),
    Fault::EtcdAllKilled,
    Fault::EtcdCorrupted,
    Fault::EtcdRemoved,
    Fault::Process("kube-apiserver"),
    Fault::Process("kube-controller-manager"),
    Fault::Process("kube-scheduler"),
    Fault::Process("kubelet"),
    Fault::Process("containerd"),
    Fault::Process("kube-proxy"),
    Fault::Process("stolos-agent"),
    Fault::Killed,
    Fault::Deleted,
    Fault::Deleted,
    Fault::DiskLost,
    Fault::Frozen,
    Fault::Frozen,
    Fault::CutOff,
    Fault::FullDisk,
    Fault::Manager,
];

/// One fault and what became of it.
#[derive(Debug, Serialize)]
struct Struck {
    at_s: u64,
    fault: Fault,
    machine: String,
    /// How long it lasted, where that is not up to the cluster.
    lasted_ms: u64,
    /// From its end until all was well.
    well_after_ms: Option<u64>,
    trouble: Option<String>,
    /// Repairs of machines to which nothing was done.
    wrong: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    seed: u64,
    faults: Vec<Struck>,
    not_well: usize,
    wrong_repairs: usize,
    checker: Seen,
    availability_percent: f64,
}

impl Arguments {
    pub(crate) async fn run(self) -> anyhow::Result<bool> {
        let site = Site::open(&self.cluster)?;
        let masters = site
            .machines()?
            .iter()
            .filter(|machine| machine.is_master())
            .count();
        anyhow::ensure!(
            masters >= 3,
            "cluster `{}` has {masters} masters; it needs three",
            site.cluster
        );
        site.well(Duration::from_secs(60)).await?;
        let checker = Checker::start(&site.api, self.writers).await?;
        let mut random = Random(self.seed | 1);
        let (start, mut faults) = (Instant::now(), Vec::new());
        let mut bag = Vec::new();
        while start.elapsed() < Duration::from_secs(self.minutes * 60) {
            // Each once in a random order, and then again.
            if bag.is_empty() {
                bag = FAULTS.to_vec();
            }
            let fault = bag.swap_remove(random.below(bag.len()));
            let struck = strike(&site, fault, &mut random, start.elapsed()).await?;
            note(format!(
                "{:>5} s {} {:?}: {}",
                struck.at_s,
                struck.machine,
                struck.fault,
                match (&struck.trouble, struck.well_after_ms) {
                    (Some(trouble), _) => trouble.clone(),
                    (None, after) => format!("well after {} ms", after.unwrap_or_default()),
                }
            ));
            faults.push(struck);
        }
        let checker = checker.end().await?;
        let not_well = faults.iter().filter(|struck| struck.trouble.is_some()).count();
        let availability_percent = 100.0 * checker.answered as f64 / checker.asked.max(1) as f64;
        let wrong_repairs = faults.iter().map(|struck| struck.wrong.len()).sum();
        let good = not_well == 0 && wrong_repairs == 0 && checker.broken.is_empty();
        crate::print(&Report {
            seed: self.seed,
            faults,
            not_well,
            wrong_repairs,
            checker,
            availability_percent,
        })?;
        Ok(good)
    }
}

async fn strike(site: &Site, fault: Fault, random: &mut Random, at: Duration) -> anyhow::Result<Struck> {
    let all = site.machines()?;
    let machines: Vec<&Machine> = all
        .iter()
        .filter(|machine| machine.is_master() || !fault.is_masters())
        .collect();
    anyhow::ensure!(!machines.is_empty(), "the cluster has no machines");
    let machine = machines[random.below(machines.len())].clone();
    fault.strike(site, &machine).await?;
    let lasts = if fault.lasts() {
        Duration::from_millis(2_000 + random.below(58_000) as u64)
    } else {
        Duration::ZERO
    };
    tokio::time::sleep(lasts).await;
    fault.lift(site, &machine)?;
    // What was struck a moment ago need not be seen yet.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let well = site.well(LIMIT).await;
    let wrong: Vec<String> = site
        .machines()?
        .iter()
        .filter(|now| now.name != machine.name)
        .filter(|now| {
            all.iter()
                .any(|before| before.name == now.name && before.cid != now.cid)
        })
        .map(|now| format!("{} was made anew, and nothing was done to it", now.name))
        .collect();
    Ok(Struck {
        at_s: at.as_secs(),
        fault,
        machine: machine.name,
        lasted_ms: u64::try_from(lasts.as_millis())?,
        well_after_ms: match &well {
            Ok(took) => Some(u64::try_from(took.as_millis())? + 2_000),
            Err(_) => None,
        },
        trouble: well.err().map(|error| format!("{error:#}")),
        wrong,
    })
}

/// A small generator with a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(drawn).unwrap_or(0) % n
    }
}
