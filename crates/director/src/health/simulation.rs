//! Years of machines in seconds: faults of every kind against the judge and its decisions, with a count of wrong repairs.
//!
//! A repair is **wrong** when the machine was alive and could be reached, or would have been within the time in which silence is forgiven: what ended it
//! then was our mistake. Machines that are frozen, cut off for longer, or whose agent is dead for good, are rightly fenced; what was to be seen is not
//! what was there, so the simulation knows both.

use std::collections::BTreeMap;
use std::time::Duration;

use stolos_base::IdSource;
use stolos_base::ids::{AgentId, InstanceId};

use super::judge::{Case, Death, Decision, Judge, Probe, Witness, decide, storm};
use crate::deps::Resurrection;

const HOUR: u64 = 3_600_000;

/// A small generator with a seed (xorshift64*): the same seed gives the same years.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least)
    }
}

/// What is true of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Truth {
    Alive,
    /// Its infrastructure does not have it any more.
    Gone,
    /// There, and nothing of it works, for good.
    Frozen,
    /// It does not answer until then: a pause, a reboot, a partition, a busy host.
    Away {
        since: u64,
        until: u64,
    },
}

struct Machine {
    agent: AgentId,
    instance: InstanceId,
    cluster: usize,
    master: bool,
    truth: Truth,
    /// When its next heartbeat leaves.
    beat: u64,
    interval: u64,
}

struct World {
    random: Random,
    ids: IdSource,
    now: u64,
    machines: Vec<Machine>,
    /// Agent → index in `machines`.
    places: BTreeMap<AgentId, usize>,
    /// The manager does not listen until then, and knows it (link down) or not (it is paused).
    deaf: Option<(u64, Deaf)>,
    /// The infrastructure does not answer, or says that everything is gone, until then.
    cpi: Option<(u64, Cpi)>,
    repairs_lately: BTreeMap<InstanceId, Vec<u64>>,
    count: Count,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deaf {
    /// The link to the bus is down.
    Link,
    /// The process is paused: a long stop of the world, a suspended host.
    Paused,
    /// Another member takes over and knows nothing.
    Failover,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cpi {
    Down,
    Lies,
}

#[derive(Debug, Default)]
struct Count {
    repairs: u64,
    gone: u64,
    frozen: u64,
    wrong: Vec<String>,
    refused: u64,
    slowest: u64,
    died: BTreeMap<AgentId, u64>,
}

/// Nudges in a pass, as many as the monitor's.
const NUDGES: usize = super::monitor::NUDGES;
/// Machines of a cluster: three masters and some workers.
const CLUSTER: usize = 10;
const MASTERS: usize = 3;

impl World {
    fn new(seed: u64, clusters: usize) -> Self {
        let (mut random, ids) = (Random(seed | 1), IdSource::counted());
        let machines: Vec<Machine> = (0..clusters * CLUSTER)
            .map(|n| Machine {
                agent: AgentId::new(&ids),
                instance: InstanceId::new(&ids),
                cluster: n / CLUSTER,
                master: n % CLUSTER < MASTERS,
                truth: Truth::Alive,
                beat: random.below(10_000),
                // Ours, and foreign agents.
                interval: if n % 7 == 0 { 30_000 } else { 10_000 },
            })
            .collect();
        Self {
            random,
            ids,
            now: 0,
            places: machines
                .iter()
                .enumerate()
                .map(|(n, machine)| (machine.agent, n))
                .collect(),
            machines,
            deaf: None,
            cpi: None,
            repairs_lately: BTreeMap::new(),
            count: Count::default(),
        }
    }

    fn deployment(cluster: usize) -> String {
        format!("cluster-{cluster}")
    }

    fn cluster(&self, number: usize) -> &[Machine] {
        &self.machines[number * CLUSTER..(number + 1) * CLUSTER]
    }

    fn judge(&self) -> Judge {
        let mut judge = Judge::new(Resurrection::default());
        for machine in &self.machines {
            judge.expect(machine.agent, &Self::deployment(machine.cluster));
        }
        judge
    }

    fn is_away(&self, machine: &Machine) -> bool {
        match machine.truth {
            Truth::Alive => false,
            Truth::Gone | Truth::Frozen => true,
            Truth::Away { until, .. } => until > self.now,
        }
    }

    /// One episode of trouble, of some minutes, step by step.
    fn episode(&mut self, judge: &mut Judge) {
        let length = self.random.between(120_000, 400_000);
        let end = self.now + length;
        let mut trouble = self.trouble();
        let mut paused_since = None;
        while self.now < end {
            let step = 500;
            self.now += step;
            trouble.retain(|(at, fault)| {
                if *at <= self.now {
                    self.strike(*fault, judge);
                }
                *at > self.now
            });
            if self.deaf.is_some_and(|(until, _)| until <= self.now) {
                self.deaf = None;
            }
            if self.cpi.is_some_and(|(until, _)| until <= self.now) {
                self.cpi = None;
            }
            let paused = matches!(self.deaf, Some((_, Deaf::Paused)));
            self.beats(judge);
            if paused {
                paused_since.get_or_insert(self.now - step);
                continue;
            }
            // What passed in a pause passes at once, as it does for a process that goes on.
            let since = paused_since.take().unwrap_or(self.now - step);
            judge.pass(Duration::from_millis(self.now - since), self.deaf.is_none());
            self.look(judge);
        }
        // Calm: everything that was away is back, everything dead was repaired or stays for a person, who does it now.
        self.deaf = None;
        self.cpi = None;
        for n in 0..self.machines.len() {
            if matches!(self.machines[n].truth, Truth::Away { .. }) {
                self.machines[n].truth = Truth::Alive;
            }
            if self.machines[n].truth != Truth::Alive {
                self.renew(n, judge);
            }
            judge.hear(self.machines[n].agent);
        }
    }

    /// What goes wrong in an episode, and when.
    fn trouble(&mut self) -> Vec<(u64, Fault)> {
        let mut faults = Vec::new();
        for _ in 0..self.random.between(1, 5) {
            let at = self.now + self.random.below(60_000);
            let fault = match self.random.below(12) {
                0 => Fault::Gone(self.random.between(1, 4)),
                1 => Fault::Frozen(self.random.between(1, 4)),
                2 => Fault::Slow(self.random.between(1, 400)),
                3 => Fault::Reboot(self.random.between(1, 3)),
                4 => Fault::Partition(self.random.between(2, 60)),
                5 => Fault::Deaf(Deaf::Link),
                6 => Fault::Deaf(Deaf::Paused),
                7 => Fault::Deaf(Deaf::Failover),
                8 => Fault::Cpi(Cpi::Down),
                9 => Fault::Cpi(Cpi::Lies),
                10 => Fault::Cluster,
                _ => Fault::Everything,
            };
            faults.push((at, fault));
        }
        faults
    }

    fn strike(&mut self, fault: Fault, judge: &mut Judge) {
        let all = self.machines.len() as u64;
        let some = |world: &mut Self, many: u64| -> Vec<usize> {
            (0..many)
                .map(|_| usize::try_from(world.random.below(all)).expect("an index"))
                .collect()
        };
        match fault {
            Fault::Gone(many) => {
                for n in some(self, many) {
                    self.machines[n].truth = Truth::Gone;
                    self.count.died.insert(self.machines[n].agent, self.now);
                    // Some hosts see it.
                    if self.random.below(2) == 0 {
                        judge.alarm(self.machines[n].agent, "it ended");
                    }
                }
            }
            Fault::Frozen(many) => {
                for n in some(self, many) {
                    self.machines[n].truth = Truth::Frozen;
                }
            }
            Fault::Slow(many) => {
                for n in some(self, many) {
                    let until = self.now + self.random.between(1_000, 24_000);
                    self.away(n, until);
                }
            }
            Fault::Reboot(many) => {
                for n in some(self, many) {
                    let until = self.now + self.random.between(500, 20_000);
                    self.away(n, until);
                    judge.alarm(self.machines[n].agent, "it ended");
                }
            }
            Fault::Partition(percent) => {
                let until = self.now + self.random.between(5_000, 200_000);
                for n in 0..self.machines.len() {
                    if self.random.below(100) < percent {
                        self.away(n, until);
                    }
                }
            }
            Fault::Cluster => {
                let cluster = usize::try_from(self.random.below(all)).expect("an index") / CLUSTER;
                let until = self.now + self.random.between(5_000, 200_000);
                for n in cluster * CLUSTER..(cluster + 1) * CLUSTER {
                    self.away(n, until);
                }
            }
            Fault::Everything => {
                let until = self.now + self.random.between(5_000, 200_000);
                for n in 0..self.machines.len() {
                    self.away(n, until);
                }
            }
            Fault::Deaf(kind) => {
                self.deaf = Some((self.now + self.random.between(1_000, 120_000), kind));
                if kind == Deaf::Failover {
                    *judge = self.judge();
                    self.deaf = None;
                }
            }
            Fault::Cpi(kind) => self.cpi = Some((self.now + self.random.between(5_000, 120_000), kind)),
        }
    }

    fn away(&mut self, n: usize, until: u64) {
        if self.machines[n].truth == Truth::Alive {
            self.machines[n].truth = Truth::Away {
                since: self.now,
                until,
            };
        }
    }

    fn beats(&mut self, judge: &mut Judge) {
        let heard = self.deaf.is_none();
        for n in 0..self.machines.len() {
            let away = self.is_away(&self.machines[n]);
            let machine = &mut self.machines[n];
            if let Truth::Away { until, .. } = machine.truth
                && until <= self.now
            {
                machine.truth = Truth::Alive;
                // An agent that reaches the bus again says so.
                machine.beat = self.now;
            }
            if machine.beat > self.now {
                continue;
            }
            // Up to a second late on a busy host.
            machine.beat = self.now + machine.interval + self.random.below(1_000);
            // One in a thousand is lost.
            if heard && !away && self.random.below(1_000) != 0 {
                judge.hear(machine.agent);
            }
        }
    }

    fn look(&mut self, judge: &mut Judge) {
        for agent in judge.take_quiet(NUDGES) {
            let place = self.places.get(&agent);
            // One answer in a thousand is lost.
            let lost = self.random.below(1_000) == 0;
            let answers = place.is_some_and(|n| !self.is_away(&self.machines[*n])) && self.deaf.is_none();
            if answers && !lost {
                judge.hear(agent);
            } else {
                judge.unmoved(agent, judge.epoch());
            }
        }
        for agent in judge.take_due() {
            let Some(n) = self.places.get(&agent).copied() else {
                judge.forget(agent);
                continue;
            };
            let (away, gone) = (
                self.is_away(&self.machines[n]),
                self.machines[n].truth == Truth::Gone,
            );
            let exists = match self.cpi {
                _ if !judge.is_worth_a_call(agent) => None,
                Some((_, Cpi::Down)) => None,
                // It denies whoever lives, too.
                Some((_, Cpi::Lies)) if judge.witness(agent) != Witness::Nobody => None,
                Some((_, Cpi::Lies)) => Some(false),
                // What it says rightly has to wait for a witness too.
                None if gone && judge.witness(agent) == Witness::Unknown => None,
                None => Some(!gone),
            };
            let answered = !away && self.deaf.is_none();
            judge.probed(agent, Probe { answered, exists });
        }
        if judge.is_calm() {
            return;
        }
        let doubts = judge.doubts();
        if doubts.iter().all(|doubt| doubt.death.is_none()) {
            return;
        }
        for doubt in doubts.iter().filter(|doubt| doubt.death.is_some()) {
            judge.count(doubt.agent);
        }
        let storms = judge.storms();
        for doubt in doubts {
            let Some(death) = doubt.death else { continue };
            let Some(n) = self.places.get(&doubt.agent).copied() else {
                judge.forget(doubt.agent);
                continue;
            };
            let case = self.case(n, death, judge);
            match decide(
                &case,
                storms.over(&doubt.deployment).as_ref(),
                &Resurrection::default(),
            ) {
                Decision::Repair => self.repair(n, death, judge),
                Decision::Wait(_) | Decision::Person(_) => self.count.refused += 1,
            }
        }
    }

    fn case(&self, n: usize, death: Death, judge: &Judge) -> Case {
        let machine = &self.machines[n];
        let group = || {
            self.cluster(machine.cluster)
                .iter()
                .filter(|other| other.master == machine.master)
        };
        let recent = self.repairs_lately.get(&machine.instance);
        let recent = recent.map_or(0, |times| {
            times.iter().filter(|at| self.now - **at < HOUR).count()
        });
        Case {
            instance: machine.instance,
            death,
            enabled: true,
            busy: false,
            stateful: machine.master,
            group: group().count(),
            alive: group().filter(|other| judge.is_alive(other.agent)).count(),
            other_in_repair: false,
            repairs: u32::try_from(recent).expect("few"),
            too_soon: false,
        }
    }

    /// As the repair's task does it: it asks twice more, asks the others of a group that needs its majority, then ends the machine and makes another.
    fn repair(&mut self, n: usize, death: Death, judge: &mut Judge) {
        // Two questions of five seconds each.
        let machine = &self.machines[n];
        let back = match machine.truth {
            Truth::Alive => true,
            Truth::Away { until, .. } => until <= self.now + 10_000,
            Truth::Gone | Truth::Frozen => false,
        };
        if back && self.deaf.is_none() {
            judge.hear(machine.agent);
            return;
        }
        if death == Death::Silent && machine.master {
            let answering = self
                .cluster(machine.cluster)
                .iter()
                .filter(|other| other.master && other.agent != machine.agent)
                .filter(|other| !self.is_away(other) && self.deaf.is_none())
                .count();
            if answering < MASTERS / 2 + 1 {
                self.count.refused += 1;
                return;
            }
        }
        if death == Death::Silent && self.census(machine.cluster) {
            self.count.refused += 1;
            return;
        }
        self.count.repairs += 1;
        match machine.truth {
            Truth::Gone => {
                self.count.gone += 1;
                if let Some(at) = self.count.died.get(&machine.agent) {
                    self.count.slowest = self.count.slowest.max(self.now - at);
                }
            }
            Truth::Frozen => self.count.frozen += 1,
            Truth::Alive | Truth::Away { .. } => {
                // Cut off for good reason: a short absence must be forgiven, and so must one that befell many.
                let forgiven = match machine.truth {
                    Truth::Away { since, until } => until - since < 30_000,
                    _ => true,
                };
                let masters_left = self
                    .cluster(machine.cluster)
                    .iter()
                    .filter(|other| other.master && !self.is_away(other))
                    .count();
                let many = self.machines.iter().filter(|other| self.is_away(other)).count();
                // With a margin: those whose heartbeats are rare are not missed yet when the others are.
                let is_storm = many >= 10 && many * 100 >= 25 * self.machines.len();
                if forgiven || is_storm || (machine.master && masters_left < 2) {
                    // A few of many say it.
                    if self.count.wrong.len() < 20 {
                        self.count.wrong.push(format!(
                        "at {} ms: {death:?}, truth {:?}, {many} away, {masters_left} masters left, cpi {:?}, deaf {:?}",
                        self.now, machine.truth, self.cpi, self.deaf
                    ));
                    }
                }
            }
        }
        let (instance, now) = (machine.instance, self.now);
        self.repairs_lately.entry(instance).or_default().push(now);
        self.renew(n, judge);
    }

    /// Whether too many do not answer in the moment before a machine is ended, as `flows::repair` asks.
    fn census(&self, cluster: usize) -> bool {
        let count = |machines: &[Machine]| {
            let silent = |machine: &&Machine| self.is_away(machine) || self.deaf.is_some();
            (machines.iter().filter(silent).count(), machines.len())
        };
        let rules = Resurrection::default();
        storm(&rules, count(self.cluster(cluster)), false)
            .or_else(|| storm(&rules, count(&self.machines), true))
            .is_some()
    }

    /// Another machine stands for the instance.
    fn renew(&mut self, n: usize, judge: &mut Judge) {
        judge.forget(self.machines[n].agent);
        let agent = AgentId::new(&self.ids);
        self.places.remove(&self.machines[n].agent);
        self.places.insert(agent, n);
        let machine = &mut self.machines[n];
        machine.agent = agent;
        machine.truth = Truth::Alive;
        machine.beat = self.now + machine.interval;
        judge.expect(agent, &Self::deployment(machine.cluster));
        judge.hear(agent);
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Gone(u64),
    Frozen(u64),
    /// So many are silent for up to 24 s.
    Slow(u64),
    Reboot(u64),
    /// So many percent cannot be reached.
    Partition(u64),
    Deaf(Deaf),
    Cpi(Cpi),
    /// A whole cluster cannot be reached.
    Cluster,
    Everything,
}

/// A thousand machines for a thousand hours, with an episode of trouble in each hour. `STOLOS_HOURS` and `STOLOS_SEED` make other worlds.
#[test]
fn a_million_hours_of_machines_without_a_wrong_repair() {
    let (clusters, hours) = (
        100,
        std::env::var("STOLOS_HOURS")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(1000),
    );
    let seed = std::env::var("STOLOS_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(2026);
    let mut world = World::new(seed, clusters);
    let mut judge = world.judge();
    for hour in 0..hours {
        world.episode(&mut judge);
        assert!(
            world.count.wrong.is_empty(),
            "seed {seed}, hour {hour}: {}",
            world.count.wrong.join("\n")
        );
        // The rest of the hour is calm: heartbeats come, nobody is in doubt.
        world.now = (hour + 1) * HOUR;
        for machine in &mut world.machines {
            machine.beat = world.now + machine.interval;
        }
        // As long as a pass counts, until the deaths of this hour are no part of a storm any more.
        let rest = Duration::from_secs(2);
        for pass in 0..350 {
            judge.pass(rest, true);
            if pass % 5 == 0 {
                for machine in &world.machines {
                    judge.hear(machine.agent);
                }
            }
        }
    }
    let count = &world.count;
    // A judge that never repairs makes no mistake either.
    assert!(
        count.gone > hours / 4 && count.frozen > hours / 5,
        "{} gone, {} frozen",
        count.gone,
        count.frozen
    );
    assert!(count.refused > hours, "no storm was ever refused");
    let _ = std::io::Write::write_all(
        &mut std::io::stderr(),
        format!(
            "{} machines for {hours} hours: {} repairs, {} of machines that were gone, {} of frozen ones, {} of some cut off for long; 0 wrong; \
             the last one that was gone was noticed after {} ms at most\n",
            world.machines.len(),
            count.repairs,
            count.gone,
            count.frozen,
            count.repairs - count.gone - count.frozen,
            count.slowest
        )
        .as_bytes(),
    );
}
