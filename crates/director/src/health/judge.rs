//! Whether a machine is dead, and whether it may be made anew: pure, with a time of its own.
//!
//! The time here is the time during which this process listened: it stands still while the process was paused, while its link to the bus was down, and
//! it knows no clock. A silence that is measured by it is the machine's, not ours.
//!
//! The way of a machine: **alive** → **suspect** (it does not answer, its heartbeat is overdue, or its host saw it end; shown, and asked, nothing else) → **dead**
//! (nobody answers in it, and either its infrastructure says that it is gone, or it was silent so long that it is to be fenced) → made anew. Whatever is
//! heard of it leads back to alive.
//!
//! Slow is never dead: as long as anything of a machine is heard, be it one answer in half a minute, it lives. How long it is silent is counted from the
//! first question without an answer, not from its last heartbeat: one that was lost on the way must not shorten what it is forgiven.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use stolos_base::ids::{AgentId, InstanceId};

use crate::deps::Resurrection;

/// Milliseconds of listening.
pub(crate) type Millis = u64;

/// A pass longer than this was a pause: of it only so much counts.
const LONGEST_PASS: Millis = 2_000;
/// A pass longer than this was so long a pause that a silence before and one after it are two.
const PAUSE: Millis = 5_000;
/// What is taken for the interval of heartbeats until two were heard: that of our agents. Others have 30 s, and are asked once too often.
const FIRST_GAP: Millis = 10_000;
/// The longest interval that is believed.
const LONGEST_GAP: Millis = 30_000;
/// Silence that makes suspect, whatever the interval. A question costs little.
const LEAST_SILENCE: Millis = 12_000;
const MOST_SILENCE: Millis = 62_000;
/// One that counts as alive is asked whether it is after so much silence, many a time between two heartbeats: a frozen machine is to be seen in three
/// seconds. That it does not answer makes it a suspect and no more.
const QUIET: Millis = 1_500;
/// Pause between two questions to a suspect.
const PROBE_PAUSE: Millis = 3_000;
/// The same while it is not known whether it is there at all: its end was seen.
const FIRST_PROBE_PAUSE: Millis = 500;
/// So many questions in a row have to stay without an answer.
const UNANSWERED: u32 = 3;
/// How long a repair itself asks before it ends a machine (`crate::flows::repair`): that belongs to the time in which silence is forgiven.
const ASKED_AGAIN: Millis = 10_000;

/// What a question to a suspect found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    /// Whether its agent answered.
    pub(crate) answered: bool,
    /// Whether its infrastructure has it; `None` when that could not be found out.
    pub(crate) exists: Option<bool>,
}

/// Why a machine counts as dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// Its infrastructure does not have it any more.
    Gone,
    /// It is there and silent: it has to be fenced.
    Silent,
}

/// How a machine that is not simply alive stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Doubt {
    pub(crate) agent: AgentId,
    pub(crate) deployment: Arc<str>,
    /// Since when it is a suspect, ago.
    pub(crate) since: Duration,
    /// For people.
    pub(crate) why: String,
    pub(crate) death: Option<Death>,
}

/// Too much is down at once for this to be the machines' own deaths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Storm {
    pub(crate) down: usize,
    pub(crate) of: usize,
    /// Over all deployments rather than in one.
    pub(crate) everywhere: bool,
}

/// How many machines are down of how many, by deployment.
#[derive(Debug)]
pub(crate) struct Storms {
    counts: BTreeMap<Arc<str>, (usize, usize)>,
    everywhere: (usize, usize),
    rules: Resurrection,
}

impl Storms {
    /// Whether too much is down: in a deployment, or everywhere.
    pub(crate) fn over(&self, deployment: &str) -> Option<Storm> {
        let here = self.counts.get(deployment).copied().unwrap_or_default();
        storm(&self.rules, here, false).or_else(|| storm(&self.rules, self.everywhere, true))
    }
}

/// Whether so many of so many are a storm.
pub(crate) fn storm(rules: &Resurrection, (down, of): (usize, usize), everywhere: bool) -> Option<Storm> {
    let is_storm = down >= rules.storm_least && down * 100 >= rules.storm_percent * of;
    is_storm.then_some(Storm { down, of, everywhere })
}

impl std::fmt::Display for Storm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = if self.everywhere {
            "everywhere"
        } else {
            "in this deployment"
        };
        write!(
            f,
            "{} of {} machines are down {place}: a storm, which repairs would only make worse",
            self.down, self.of
        )
    }
}

/// What the director knows about a dead machine's instance when it is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) instance: InstanceId,
    pub(crate) death: Death,
    /// Whether resurrection is on, for all and for this instance's group.
    pub(crate) enabled: bool,
    /// Whether something works on the deployment.
    pub(crate) busy: bool,
    /// Whether the instance has a persistent disk: what it runs may count its members.
    pub(crate) stateful: bool,
    /// Instances of its group.
    pub(crate) group: usize,
    /// Those of them that are alive.
    pub(crate) alive: usize,
    /// Whether another instance of the group is being repaired.
    pub(crate) other_in_repair: bool,
    /// How often it was repaired in the last hour, with success or without.
    pub(crate) repairs: u32,
    /// Whether its last repair began so short ago that another one would come too soon.
    pub(crate) too_soon: bool,
}

/// What is done about a dead machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Make it anew.
    Repair,
    /// Later; why.
    Wait(&'static str),
    /// Nothing until a person has looked; why.
    Person(String),
}

/// All machines.
#[derive(Debug)]
pub(crate) struct Judge {
    rules: Resurrection,
    now: Millis,
    lives: BTreeMap<AgentId, Life>,
    /// Machines that were found dead, for storms: when, which, in which deployment.
    deaths: Vec<(Millis, AgentId, Arc<str>)>,
    names: BTreeMap<Arc<str>, usize>,
    /// Whether nobody listened in the last pass.
    was_deaf: bool,
    /// How often it began to listen anew. Who was nudged before that need not have been able to answer.
    epoch: u64,
    /// Until then nobody is nudged: others need time to come back, too.
    nudge_from: Millis,
}

/// Who is asked about before an infrastructure is believed that a machine is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Witness {
    /// This one lives: an infrastructure that denies it too has lost its memory, or looks at the wrong place.
    Lives(AgentId),
    /// It is not known yet who lives, so nobody is believed.
    Unknown,
    /// Everybody else is in doubt, or there is nobody else.
    Nobody,
}

#[derive(Debug)]
struct Life {
    deployment: Arc<str>,
    /// When something was heard last.
    heard: Millis,
    /// Whether something was heard at all since we listen.
    ever: bool,
    /// The longest pause between two heartbeats of late.
    gap: Millis,
    /// Whether there was one.
    measured: bool,
    /// Whether it is being asked although nothing speaks against it.
    asked: bool,
    /// Whether it was nudged, and neither answered nor failed to.
    nudged: bool,
    suspect: Option<Suspect>,
}

#[derive(Debug)]
struct Suspect {
    since: Millis,
    why: String,
    seen_to_end: bool,
    next_probe: Millis,
    asked: bool,
    unanswered: u32,
    first_unanswered: Option<Millis>,
    exists: Option<bool>,
    counted: bool,
}

impl Judge {
    pub(crate) fn new(rules: Resurrection) -> Self {
        Self {
            rules,
            now: 0,
            lives: BTreeMap::new(),
            deaths: Vec::new(),
            names: BTreeMap::new(),
            was_deaf: false,
            epoch: 0,
            nudge_from: 0,
        }
    }

    /// A machine that should be alive. Nothing has been heard of it since we listen, so its silence begins now.
    pub(crate) fn expect(&mut self, agent: AgentId, deployment: &str) {
        if self.lives.contains_key(&agent) {
            return;
        }
        let deployment = self.name(deployment);
        *self.names.entry(deployment.clone()).or_default() += 1;
        let life = Life {
            deployment,
            heard: self.now,
            ever: false,
            gap: FIRST_GAP,
            measured: false,
            asked: false,
            nudged: false,
            suspect: None,
        };
        self.lives.insert(agent, life);
    }

    /// Whether the machine is watched.
    pub(crate) fn knows(&self, agent: AgentId) -> bool {
        self.lives.contains_key(&agent)
    }

    /// Something was heard of a machine; whether it was a suspect before.
    pub(crate) fn hear(&mut self, agent: AgentId) -> bool {
        let now = self.now;
        let Some(life) = self.lives.get_mut(&agent) else {
            return false;
        };
        if life.ever {
            let gap = (now - life.heard).clamp(500, LONGEST_GAP);
            // News come between heartbeats, so a short pause says little and a long one much.
            let before = if life.measured { life.gap - life.gap / 8 } else { 0 };
            life.gap = gap.max(before);
            life.measured = true;
        }
        life.heard = now;
        life.ever = true;
        life.nudged = false;
        life.suspect.take().is_some()
    }

    /// Somebody saw the machine end, or it said that it goes down.
    pub(crate) fn alarm(&mut self, agent: AgentId, why: &str) {
        let now = self.now;
        if let Some(life) = self.lives.get_mut(&agent)
            && life.suspect.is_none()
        {
            life.suspect = Some(Suspect::new(now, why.to_owned(), true));
        }
    }

    /// The machine is nobody's business any more.
    pub(crate) fn forget(&mut self, agent: AgentId) {
        if let Some(life) = self.lives.remove(&agent)
            && let Some(count) = self.names.get_mut(&life.deployment)
        {
            *count -= 1;
            if *count == 0 {
                self.names.remove(&life.deployment);
            }
        }
    }

    /// Time goes on, if we listened meanwhile.
    pub(crate) fn pass(&mut self, elapsed: Duration, listening: bool) {
        if !listening {
            self.was_deaf = true;
            return;
        }
        if std::mem::take(&mut self.was_deaf) || millis(elapsed) > PAUSE {
            self.epoch += 1;
            self.nudge_from = self.now + LEAST_SILENCE;
            // Who was silent may have been back while nobody listened: what is asked of it begins anew.
            for life in self.lives.values_mut() {
                life.nudged = false;
                let Some(suspect) = life.suspect.as_mut() else {
                    continue;
                };
                suspect.unanswered = 0;
                suspect.first_unanswered = None;
                suspect.exists = None;
                suspect.next_probe = self.now;
            }
        }
        self.now += millis(elapsed).min(LONGEST_PASS);
        let now = self.now;
        for life in self.lives.values_mut() {
            let silence = now - life.heard;
            if life.suspect.is_none() && silence > life.limit() {
                let why = format!("it was silent for {} s", silence / 1000);
                life.suspect = Some(Suspect::new(now, why, false));
            }
        }
        let window = millis(self.rules.storm_window);
        self.deaths.retain(|(at, ..)| now - at < window);
    }

    /// Who is to be asked now. Each has to be given back by [`Self::probed`].
    ///
    /// Suspects are; and while one of them does not answer, so is everybody who was not heard for a while, however rare its heartbeats are or how little is
    /// known of them: whether one machine is silent or a third of them has to be known before one is fenced.
    pub(crate) fn take_due(&mut self) -> Vec<AgentId> {
        let now = self.now;
        let is_unanswered = |life: &Life| {
            let suspect = life.suspect.as_ref();
            suspect.is_some_and(|suspect| suspect.unanswered > 0 && suspect.exists != Some(false))
        };
        let in_doubt = self.lives.values().any(is_unanswered);
        let due = self.lives.iter_mut().filter_map(|(agent, life)| {
            let Some(suspect) = life.suspect.as_mut() else {
                let due = in_doubt && !life.asked && now - life.heard > LEAST_SILENCE;
                life.asked |= due;
                return due.then_some(*agent);
            };
            if suspect.asked || suspect.next_probe > now {
                return None;
            }
            suspect.asked = true;
            Some(*agent)
        });
        due.collect()
    }

    /// Who counts as alive and was silent for a moment, the longest first, at most so many: each is to be nudged, and to be given to [`Self::hear`] or
    /// [`Self::unmoved`]. Nobody is where we have just begun to listen.
    pub(crate) fn take_quiet(&mut self, most: usize) -> Vec<AgentId> {
        let now = self.now;
        if self.was_deaf || now < self.nudge_from {
            return Vec::new();
        }
        let is_quiet =
            |life: &Life| life.ever && life.suspect.is_none() && !life.nudged && now - life.heard >= QUIET;
        let quiet = self.lives.iter().filter(|(_, life)| is_quiet(life));
        let mut quiet: Vec<(Millis, AgentId)> = quiet.map(|(agent, life)| (life.heard, *agent)).collect();
        if quiet.len() > most {
            quiet.select_nth_unstable(most);
            quiet.truncate(most);
        }
        for (_, agent) in &quiet {
            if let Some(life) = self.lives.get_mut(agent) {
                life.nudged = true;
            }
        }
        quiet.into_iter().map(|(_, agent)| agent).collect()
    }

    /// Changes when silence from before says nothing any more.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A nudge of an epoch without an answer. Counts only if the machine was not heard since, and we listened all the while.
    pub(crate) fn unmoved(&mut self, agent: AgentId, epoch: u64) {
        let now = self.now;
        if self.was_deaf || epoch != self.epoch {
            return;
        }
        if let Some(life) = self.lives.get_mut(&agent)
            && std::mem::take(&mut life.nudged)
            && life.suspect.is_none()
        {
            life.suspect = Some(Suspect::new(now, "it does not answer".to_owned(), false));
        }
    }

    /// What a question found; whether the machine is a suspect no more.
    pub(crate) fn probed(&mut self, agent: AgentId, probe: Probe) -> bool {
        if probe.answered {
            if let Some(life) = self.lives.get_mut(&agent) {
                life.asked = false;
            }
            return self.hear(agent);
        }
        let now = self.now;
        let Some(life) = self.lives.get_mut(&agent) else {
            return false;
        };
        let silence = now - life.heard;
        if life.suspect.is_none() && (!std::mem::take(&mut life.asked) || silence <= LEAST_SILENCE) {
            // It was heard meanwhile.
            return false;
        }
        let suspect = life.suspect.get_or_insert_with(|| {
            let why = format!("it does not answer, {} s after it was heard last", silence / 1000);
            Suspect::new(now, why, false)
        });
        suspect.asked = false;
        suspect.unanswered += 1;
        suspect.first_unanswered.get_or_insert(now);
        suspect.exists = probe.exists;
        let pause = if suspect.seen_to_end && suspect.unanswered < UNANSWERED {
            FIRST_PROBE_PAUSE
        } else {
            PROBE_PAUSE
        };
        suspect.next_probe = now + pause;
        false
    }

    /// Everything that is not simply alive, the longest suspects first.
    pub(crate) fn doubts(&self) -> Vec<Doubt> {
        let mut doubts: Vec<Doubt> = self
            .lives
            .iter()
            .filter_map(|(agent, life)| {
                let suspect = life.suspect.as_ref()?;
                Some(Doubt {
                    agent: *agent,
                    deployment: life.deployment.clone(),
                    since: Duration::from_millis(self.now - suspect.since),
                    why: suspect.why.clone(),
                    death: self.death(life),
                })
            })
            .collect();
        doubts.sort_by_key(|doubt| std::cmp::Reverse(doubt.since));
        doubts
    }

    /// How many are alive, suspect and dead.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let mut counts = (0, 0, 0);
        for life in self.lives.values() {
            match (&life.suspect, self.death(life)) {
                (None, _) => counts.0 += 1,
                (Some(_), None) => counts.1 += 1,
                (Some(_), Some(_)) => counts.2 += 1,
            }
        }
        counts
    }

    /// Whether anything is in doubt; cheap.
    pub(crate) fn is_calm(&self) -> bool {
        self.lives.values().all(|life| life.suspect.is_none())
    }

    /// Whether something was heard of the machine in the last so many milliseconds.
    pub(crate) fn is_fresh(&self, agent: AgentId, within: Millis) -> bool {
        let life = self.lives.get(&agent);
        life.is_some_and(|life| life.ever && life.suspect.is_none() && self.now - life.heard <= within)
    }

    /// Whether the machine is alive as far as is known.
    pub(crate) fn is_alive(&self, agent: AgentId) -> bool {
        self.lives
            .get(&agent)
            .is_some_and(|life| life.suspect.is_none() && life.ever)
    }

    /// Whether the infrastructure is to be asked about a machine too: not at the first doubt, which may be a line that is busy for a second.
    pub(crate) fn is_worth_a_call(&self, agent: AgentId) -> bool {
        let suspect = self.lives.get(&agent).and_then(|life| life.suspect.as_ref());
        suspect.is_none_or(|suspect| suspect.seen_to_end || suspect.unanswered > 0)
    }

    /// Who is asked about before an infrastructure is believed that a machine is gone. Of the same deployment where there is one.
    pub(crate) fn witness(&self, of: AgentId) -> Witness {
        let deployment = self.lives.get(&of).map(|life| &life.deployment);
        // Where all are silent for seconds only, that is our own link more likely than everybody's end.
        let is_undoubted = |life: &Life| match &life.suspect {
            None => true,
            Some(suspect) => !suspect.seen_to_end && self.now - life.heard <= LEAST_SILENCE,
        };
        let undoubted = || {
            self.lives
                .iter()
                .filter(|(agent, life)| **agent != of && is_undoubted(life))
        };
        let alive = || undoubted().filter(|(_, life)| life.ever && life.suspect.is_none());
        let near = alive().find(|(_, life)| Some(&life.deployment) == deployment);
        match near.or_else(|| alive().next()) {
            Some((agent, _)) => Witness::Lives(*agent),
            None if undoubted().next().is_some() => Witness::Unknown,
            None => Witness::Nobody,
        }
    }

    fn death(&self, life: &Life) -> Option<Death> {
        let suspect = life.suspect.as_ref()?;
        let unanswered_for = self.now - suspect.first_unanswered?;
        let forgiven = millis(self.rules.fence_after).saturating_sub(ASKED_AGAIN);
        match suspect.exists {
            Some(false) => Some(Death::Gone),
            Some(true) if suspect.unanswered >= UNANSWERED && unanswered_for >= forgiven => {
                Some(Death::Silent)
            }
            _ => None,
        }
    }

    /// Notes that a machine was found dead, once.
    pub(crate) fn count(&mut self, agent: AgentId) {
        let now = self.now;
        if let Some(life) = self.lives.get_mut(&agent)
            && let Some(suspect) = &mut life.suspect
            && !suspect.counted
        {
            suspect.counted = true;
            self.deaths.push((now, agent, life.deployment.clone()));
        }
    }

    /// How much is down, in each deployment and everywhere. Machines whose heartbeat is overdue count, suspects or not: those that fell silent together do
    /// not become suspects together.
    pub(crate) fn storms(&self) -> Storms {
        let mut counts: BTreeMap<Arc<str>, (usize, usize)> = BTreeMap::new();
        for life in self.lives.values() {
            let (down, all) = match counts.get_mut(&life.deployment) {
                Some(counts) => counts,
                None => counts.entry(life.deployment.clone()).or_default(),
            };
            *all += 1;
            let overdue = self.now - life.heard > life.limit();
            if life.suspect.is_some() || (overdue && life.ever) {
                *down += 1;
            }
        }
        // Those that are still in doubt were counted above, for as long as they are.
        let is_in_doubt = |agent: &AgentId| {
            let life = self.lives.get(agent);
            life.is_some_and(|life| life.suspect.is_some())
        };
        for (_, agent, deployment) in &self.deaths {
            if !is_in_doubt(agent) {
                counts.entry(deployment.clone()).or_default().0 += 1;
            }
        }
        let everywhere = counts
            .values()
            .fold((0, 0), |sum, counts| (sum.0 + counts.0, sum.1 + counts.1));
        Storms {
            counts,
            everywhere,
            rules: self.rules,
        }
    }

    fn name(&self, name: &str) -> Arc<str> {
        self.names
            .get_key_value(name)
            .map_or_else(|| Arc::from(name), |(name, _)| name.clone())
    }
}

impl Life {
    /// Silence that makes suspect: an interval and a quarter.
    fn limit(&self) -> Millis {
        (self.gap + (self.gap / 4).max(2_000)).clamp(LEAST_SILENCE, MOST_SILENCE)
    }
}

impl Suspect {
    fn new(now: Millis, why: String, seen_to_end: bool) -> Self {
        Self {
            since: now,
            why,
            seen_to_end,
            next_probe: now,
            asked: false,
            unanswered: 0,
            first_unanswered: None,
            exists: None,
            counted: false,
        }
    }
}

/// What is done about one dead machine. The first reason against it counts.
pub(crate) fn decide(case: &Case, storm: Option<&Storm>, rules: &Resurrection) -> Decision {
    if !case.enabled {
        return Decision::Person("resurrection is off".to_owned());
    }
    if let Some(storm) = storm {
        return Decision::Person(storm.to_string());
    }
    if case.busy {
        return Decision::Wait("another task works on the deployment");
    }
    if case.repairs >= rules.most_repairs {
        return Decision::Person(format!(
            "there were {} repairs of it within an hour",
            case.repairs
        ));
    }
    if case.too_soon {
        return Decision::Wait("its last repair was a moment ago");
    }
    if case.stateful {
        if case.other_in_repair {
            return Decision::Wait("another instance of its group is being repaired");
        }
        // What is silent to us may be half of a majority that works. Taking it down is a person's decision.
        let majority = case.group / 2 + 1;
        if case.death == Death::Silent && case.group > 1 && case.alive < majority {
            return Decision::Person(format!(
                "it may still run, and only {} of the {} instances of its group are alive",
                case.alive, case.group
            ));
        }
    }
    Decision::Repair
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(machines: usize) -> (Judge, Vec<AgentId>) {
        let ids = stolos_base::IdSource::random();
        let mut judge = Judge::new(Resurrection::default());
        let agents: Vec<AgentId> = (0..machines).map(|_| AgentId::new(&ids)).collect();
        for agent in &agents {
            judge.expect(*agent, "d");
        }
        (judge, agents)
    }

    /// Seconds in which these are heard every ten.
    fn live(judge: &mut Judge, alive: &[AgentId], seconds: u64, probe: Probe) {
        for second in 0..seconds {
            judge.pass(Duration::from_secs(1), true);
            if second % 10 == 0 {
                for agent in alive {
                    judge.hear(*agent);
                }
            }
            for agent in judge.take_due() {
                judge.probed(agent, probe);
            }
        }
    }

    const NOBODY: Probe = Probe {
        answered: false,
        exists: Some(true),
    };
    const GONE: Probe = Probe {
        answered: false,
        exists: Some(false),
    };

    #[test]
    fn silence_makes_suspect_and_then_dead() {
        let (mut judge, agents) = judge(10);
        live(&mut judge, &agents, 60, NOBODY);
        assert!(judge.is_calm());
        live(&mut judge, &agents[1..], 15, NOBODY);
        let doubts = judge.doubts();
        assert!(
            doubts.len() == 1 && doubts[0].agent == agents[0] && doubts[0].death.is_none(),
            "{doubts:?}"
        );
        live(&mut judge, &agents[1..], 20, NOBODY);
        assert_eq!(judge.doubts()[0].death, Some(Death::Silent));
        assert!(judge.hear(agents[0]), "whatever is heard leads back");
        assert!(judge.is_calm());
    }

    #[test]
    fn one_that_does_not_answer_between_heartbeats_is_a_suspect() {
        let (mut judge, agents) = judge(10);
        live(&mut judge, &agents, 30, NOBODY);
        for agent in &agents {
            judge.hear(*agent);
        }
        judge.pass(Duration::from_secs(1), true);
        assert!(judge.take_quiet(100).is_empty(), "they were heard a moment ago");
        judge.pass(Duration::from_millis(500), true);
        assert_eq!(judge.take_quiet(4).len(), 4, "not more than wanted");
        assert_eq!(judge.take_quiet(100).len(), 6, "nobody twice");
        judge.hear(agents[0]);
        for agent in &agents[..2] {
            judge.unmoved(*agent, judge.epoch());
        }
        let doubts = judge.doubts();
        assert!(
            doubts.len() == 1 && doubts[0].agent == agents[1] && doubts[0].death.is_none(),
            "{doubts:?}"
        );
        // Nobody listened: what was not answered then says nothing.
        let before = judge.epoch();
        judge.pass(Duration::from_secs(1), false);
        assert!(judge.take_quiet(100).is_empty());
        judge.unmoved(agents[2], before);
        judge.pass(Duration::from_secs(1), true);
        judge.unmoved(agents[2], before);
        assert_eq!(judge.doubts().len(), 1);
        for _ in 0..6 {
            judge.pass(Duration::from_secs(2), true);
            judge.hear(agents[0]);
            assert!(judge.take_quiet(100).is_empty(), "others need time to come back");
        }
        judge.pass(Duration::from_secs(2), true);
        assert_eq!(
            judge.take_quiet(100),
            [agents[0]],
            "the others are suspects by now"
        );
    }

    #[test]
    fn a_machine_that_was_seen_to_end_and_is_gone_is_dead_at_once() {
        let (mut judge, agents) = judge(10);
        live(&mut judge, &agents, 60, NOBODY);
        judge.alarm(agents[3], "its host saw it end");
        live(&mut judge, &agents, 1, GONE);
        // The heartbeat in that second was another life's, as when a host starts it again.
        assert!(judge.is_calm());
        judge.alarm(agents[3], "its host saw it end");
        judge.pass(Duration::from_secs(1), true);
        for agent in judge.take_due() {
            judge.probed(agent, GONE);
        }
        assert_eq!(judge.doubts()[0].death, Some(Death::Gone));
    }

    #[test]
    fn silence_before_and_after_a_time_without_listening_is_not_one() {
        let (mut judge, agents) = judge(10);
        live(&mut judge, &agents, 60, NOBODY);
        live(&mut judge, &agents[1..], 15, NOBODY);
        assert_eq!(judge.doubts()[0].death, None);
        judge.pass(Duration::from_secs(60), true);
        live(&mut judge, &agents[1..], 15, NOBODY);
        assert_eq!(judge.doubts()[0].death, None, "it may have been back meanwhile");
        live(&mut judge, &agents[1..], 10, NOBODY);
        assert_eq!(judge.doubts()[0].death, Some(Death::Silent));
    }

    #[test]
    fn an_infrastructure_is_not_believed_before_anybody_is_known_to_live() {
        let (mut judge, agents) = judge(3);
        assert_eq!(judge.witness(agents[0]), Witness::Unknown);
        judge.hear(agents[2]);
        assert_eq!(judge.witness(agents[0]), Witness::Lives(agents[2]));
        judge.alarm(agents[1], "its host saw it end");
        judge.alarm(agents[2], "its host saw it end");
        assert_eq!(judge.witness(agents[0]), Witness::Nobody);
    }

    #[test]
    fn time_that_we_did_not_listen_is_nobodys_silence() {
        let (mut judge, agents) = judge(10);
        live(&mut judge, &agents, 60, NOBODY);
        judge.pass(Duration::from_secs(3600), true);
        assert!(judge.is_calm(), "we were paused for an hour");
        for _ in 0..3600 {
            judge.pass(Duration::from_secs(1), false);
        }
        assert!(judge.is_calm(), "the link was down for an hour");
    }

    #[test]
    fn many_at_once_are_a_storm_before_the_first_is_dead() {
        let (mut judge, agents) = judge(10);
        live(&mut judge, &agents, 60, NOBODY);
        live(&mut judge, &agents[5..], 31, NOBODY);
        let storm = judge.storms().over("d").expect("a storm");
        assert_eq!((storm.down, storm.of), (5, 10));
        let (mut judge, agents) = super::tests::judge(100);
        live(&mut judge, &agents, 60, NOBODY);
        live(&mut judge, &agents[5..], 31, NOBODY);
        assert_eq!(judge.storms().over("d"), None, "five of a hundred are no storm");
    }

    #[test]
    fn machines_with_rare_heartbeats_are_asked_before_one_is_fenced() {
        let (mut judge, agents) = judge(10);
        // A manager that has just taken over knows nobody's rhythm: all but one were heard once.
        for agent in &agents {
            judge.hear(*agent);
        }
        for _ in 0..3 {
            judge.pass(Duration::from_secs(1), true);
            judge.hear(agents[0]);
        }
        // Then all of them fall silent, and only the rhythm of the first is known.
        live(&mut judge, &[], 33, NOBODY);
        assert!(
            judge
                .doubts()
                .iter()
                .any(|doubt| doubt.agent == agents[0] && doubt.death.is_some()),
            "{:?}",
            judge.doubts()
        );
        let storm = judge.storms().over("d").expect("a storm");
        assert_eq!((storm.down, storm.of), (10, 10));
    }

    #[test]
    fn what_may_still_run_is_not_taken_from_a_majority() {
        let case = Case {
            instance: InstanceId::new(&stolos_base::IdSource::random()),
            death: Death::Silent,
            enabled: true,
            busy: false,
            stateful: true,
            group: 3,
            alive: 2,
            other_in_repair: false,
            repairs: 0,
            too_soon: false,
        };
        let rules = Resurrection::default();
        let decided = |case: &Case| decide(case, None, &rules);
        assert_eq!(decided(&case), Decision::Repair);
        let below = Case {
            alive: 1,
            ..case.clone()
        };
        assert!(matches!(decided(&below), Decision::Person(why) if why.contains("only 1 of the 3")));
        assert_eq!(
            decided(&Case {
                death: Death::Gone,
                ..below.clone()
            }),
            Decision::Repair,
            "it has left already"
        );
        assert_eq!(
            decided(&Case {
                stateful: false,
                ..below
            }),
            Decision::Repair
        );
        assert_eq!(
            decided(&Case {
                group: 1,
                alive: 0,
                ..case.clone()
            }),
            Decision::Repair,
            "nothing is left to lose"
        );
        assert!(matches!(
            decided(&Case {
                enabled: false,
                ..case.clone()
            }),
            Decision::Person(_)
        ));
        assert!(matches!(
            decided(&Case {
                repairs: 3,
                ..case.clone()
            }),
            Decision::Person(_)
        ));
        assert!(matches!(
            decided(&Case {
                too_soon: true,
                ..case.clone()
            }),
            Decision::Wait(_)
        ));
        assert!(matches!(
            decided(&Case {
                busy: true,
                ..case.clone()
            }),
            Decision::Wait(_)
        ));
        assert!(matches!(
            decided(&Case {
                other_in_repair: true,
                ..case
            }),
            Decision::Wait(_)
        ));
    }
}
