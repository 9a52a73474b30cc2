//! How long it takes until a machine that was lost is back.

use std::time::{Duration, Instant};

use anyhow::bail;
use serde::Serialize;
use stolos_testbed::note;

use crate::faults::Fault;
use crate::site::{Machine, Site};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The cluster whose machines are taken away
    cluster: String,
    /// How often each fault strikes
    #[arg(long, default_value_t = 10)]
    rounds: usize,
}

/// Longer than any repair may take.
const LIMIT: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_millis(100);

/// Milliseconds after the fault, but for `ready_after_certain`.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Times {
    /// Shown as a suspect, or worse.
    suspect: u64,
    /// Shown as dead or in repair: it is certain.
    certain: u64,
    /// Another machine is there for the instance.
    machine: u64,
    /// Its node is Ready.
    ready: u64,
    ready_after_certain: u64,
}

#[derive(Debug, Serialize)]
struct Measured {
    fault: Fault,
    group: &'static str,
    rounds: Vec<Times>,
}

impl Arguments {
    pub(crate) async fn run(self) -> anyhow::Result<bool> {
        let site = Site::open(&self.cluster)?;
        site.well(Duration::from_secs(60)).await?;
        let mut measured = Vec::new();
        for (fault, group) in [
            (Fault::Deleted, "worker"),
            (Fault::Frozen, "worker"),
            (Fault::CutOff, "worker"),
            (Fault::Deleted, "master"),
            (Fault::DiskLost, "master"),
        ] {
            let mut rounds = Vec::new();
            for round in 0..self.rounds {
                let times = one(&site, fault, group, round).await?;
                note(format!("{group} {fault:?}: {times:?}"));
                rounds.push(times);
            }
            measured.push(Measured { fault, group, rounds });
        }
        crate::print(&measured)?;
        Ok(true)
    }
}

async fn one(site: &Site, fault: Fault, group: &str, round: usize) -> anyhow::Result<Times> {
    let machines: Vec<Machine> = site
        .machines()?
        .into_iter()
        .filter(|machine| machine.name.starts_with(group))
        .collect();
    let Some(victim) = machines.get(round % machines.len().max(1)) else {
        bail!("the cluster has no {group}");
    };
    fault.strike(site, victim).await?;
    let start = Instant::now();
    let mut times = Times::default();
    while times.ready == 0 {
        if start.elapsed() > LIMIT {
            bail!(
                "{} is not back after {} s: {times:?}",
                victim.name,
                LIMIT.as_secs()
            );
        }
        let passed = || u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let problems = site.problems()?;
        let problem = problems
            .iter()
            .find(|problem| problem["instance"] == victim.name.as_str());
        if let Some(problem) = problem {
            set(&mut times.suspect, passed());
            if problem["state"] != "suspect" {
                set(&mut times.certain, passed());
            }
        }
        let new = site
            .machines()?
            .into_iter()
            .find(|machine| machine.name == victim.name && machine.cid != victim.cid);
        if let Some(new) = new {
            set(&mut times.machine, passed());
            if site.ready(&new).await.is_ok() {
                times.ready = passed();
            }
        }
        tokio::time::sleep(POLL).await;
    }
    if times.certain == 0 {
        bail!("{} was made anew without having been shown as dead", victim.name);
    }
    times.ready_after_certain = times.ready - times.certain;
    site.well(LIMIT).await?;
    Ok(times)
}

/// The first time counts.
fn set(time: &mut u64, now: u64) {
    if *time == 0 {
        *time = now.max(1);
    }
}
