//! Alerts of agents: bounded when they come in, counted into one while they repeat, told with back-off.
//!
//! An agent is a stranger's machine as far as this goes: whoever has taken a node over can say what it likes as often as it likes. So what an agent says is
//! made one short harmless line, an agent has so many subjects and so many writes in a time, and what is more is only counted. Every member of an
//! installation hears every alert; which alerts were counted is kept with the count, so that two members, or one that starts anew, count each once and
//! tell it once.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use stolos_base::ids::AgentId;
use stolos_base::text;
use stolos_mbus::state::Alert;

/// Characters of a subject, of a message and of an alert's id that are kept.
const SUBJECT: usize = 80;
const MESSAGE: usize = 500;
const ID: usize = 64;
/// Subjects of one agent that wait to be written. More are counted as one.
const SUBJECTS: usize = 32;
/// What is counted as one, when there are too many.
const OTHERS: &str = "other alerts";
/// Ids of alerts that are remembered for each subject: more than come between two writes of two members.
pub(crate) const REMEMBERED: usize = 32;
/// An agent's alerts are written so often in a row, and once more after each pause.
const WRITES: u32 = 20;
const WRITE_PAUSE: Duration = Duration::from_secs(3);

/// Milliseconds until an alert that goes on is told again, for each time that it was told; the last one goes on for ever.
const PAUSES: [i64; 6] = [60_000, 300_000, 1_800_000, 7_200_000, 21_600_000, 86_400_000];
/// Milliseconds of silence after which the same alert is a new one.
const CALM: i64 = 3_600_000;

/// Alerts about one subject that came in and are not written yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) subject: String,
    /// 1 to 4; the worst.
    pub(crate) severity: i64,
    /// The newest.
    pub(crate) message: String,
    /// How many, not counting those that say that it is over.
    pub(crate) times: i64,
    /// Whether the newest says that it is over.
    pub(crate) over: bool,
    /// Ids of the newest, oldest first.
    pub(crate) ids: Vec<String>,
}

/// Alerts that came in and are not written yet.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    agents: HashMap<AgentId, Pending>,
}

#[derive(Debug)]
struct Pending {
    subjects: BTreeMap<String, Arrived>,
    writes: u32,
    refilled: Instant,
}

impl Intake {
    /// An agent says something.
    pub(crate) fn add(&mut self, now: Instant, agent: AgentId, alert: &Alert) {
        // BOSH's word for those that nobody wants to hear.
        if alert.severity == -1 {
            return;
        }
        let title = text::line(alert.title.split(" - ").next().unwrap_or_default().trim()).into_owned();
        let arrived = Arrived {
            subject: text::clip(&title, SUBJECT).into_owned(),
            severity: i64::from(alert.severity.clamp(1, 4)),
            message: message(alert),
            times: i64::from(!alert.over),
            over: alert.over,
            ids: vec![text::line(&alert.id).chars().take(ID).collect()],
        };
        self.merge(now, agent, arrived);
    }

    /// What could not be written is written later.
    pub(crate) fn give_back(&mut self, now: Instant, agent: AgentId, mut old: Arrived) {
        let newer = self
            .agents
            .get_mut(&agent)
            .and_then(|pending| pending.subjects.remove(&old.subject));
        if let Some(newer) = newer {
            old.join(newer);
        }
        self.merge(now, agent, old);
    }

    fn merge(&mut self, now: Instant, agent: AgentId, mut arrived: Arrived) {
        let pending = self.agents.entry(agent).or_insert_with(|| Pending {
            subjects: BTreeMap::new(),
            writes: WRITES,
            refilled: now,
        });
        if !pending.subjects.contains_key(&arrived.subject) && pending.subjects.len() >= SUBJECTS {
            OTHERS.clone_into(&mut arrived.subject);
        }
        match pending.subjects.get_mut(&arrived.subject) {
            Some(known) => known.join(arrived),
            None => {
                pending.subjects.insert(arrived.subject.clone(), arrived);
            }
        }
    }

    /// What may be written now.
    pub(crate) fn take(&mut self, now: Instant) -> Vec<(AgentId, Arrived)> {
        let mut taken = Vec::new();
        self.agents.retain(|agent, pending| {
            let earned = now.duration_since(pending.refilled).as_secs() / WRITE_PAUSE.as_secs();
            if earned > 0 {
                pending.writes = WRITES.min(
                    pending
                        .writes
                        .saturating_add(u32::try_from(earned).unwrap_or(WRITES)),
                );
                pending.refilled = now;
            }
            while pending.writes > 0
                && let Some((_, arrived)) = pending.subjects.pop_first()
            {
                pending.writes -= 1;
                taken.push((*agent, arrived));
            }
            // Forgotten only once forgetting earns it nothing.
            !pending.subjects.is_empty() || pending.writes < WRITES
        });
        taken
    }
}

impl Arrived {
    /// Takes in what came after it.
    fn join(&mut self, newer: Self) {
        self.severity = self.severity.min(newer.severity);
        self.message = newer.message;
        self.times = self.times.saturating_add(newer.times);
        self.over = newer.over;
        self.ids.extend(newer.ids);
        let more = self.ids.len().saturating_sub(REMEMBERED);
        self.ids.drain(..more);
    }
}

fn message(alert: &Alert) -> String {
    let whole = format!(
        "{}: {}",
        text::clip(&alert.title, MESSAGE),
        text::clip(&alert.summary, MESSAGE)
    );
    text::clip(&text::line(&whole), MESSAGE).into_owned()
}

/// How alerts about one subject of one source stand, as kept. Times in milliseconds since the Unix epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) times: i64,
    pub(crate) first_at: i64,
    pub(crate) last_at: i64,
    /// How often it was told since it was new.
    pub(crate) told: i64,
    /// When it is told again if it goes on.
    pub(crate) next_at: i64,
    /// The worst that was told.
    pub(crate) severity: i64,
    /// Whether it was told, and not that it is over.
    pub(crate) is_open: bool,
    /// Ids of alerts that are counted in it, oldest first.
    pub(crate) recent: Vec<String>,
}

/// Counts what arrived into what stands. Gives what stands now, unless all of it was counted before, and what is to be told, if anything.
pub(crate) fn count(
    before: Option<Standing>,
    arrived: &Arrived,
    now: i64,
) -> Option<(Standing, Option<String>)> {
    let mut standing = before.unwrap_or_default();
    let known = |id: &&String| standing.recent.contains(id);
    let known = arrived.ids.iter().filter(known).count();
    if known == arrived.ids.len() {
        return None;
    }
    if standing.times == 0 || now.saturating_sub(standing.last_at) >= CALM {
        standing = Standing {
            first_at: now,
            next_at: now,
            severity: i64::MAX,
            recent: standing.recent,
            ..Standing::default()
        };
    }
    let fresh = arrived
        .times
        .saturating_sub(i64::try_from(known).unwrap_or(i64::MAX))
        .max(0);
    standing.times = standing.times.saturating_add(fresh);
    standing.last_at = now;
    for id in &arrived.ids {
        if !standing.recent.contains(id) {
            standing.recent.push(id.clone());
        }
    }
    let more = standing.recent.len().saturating_sub(REMEMBERED);
    standing.recent.drain(..more);
    let times = if standing.times > 1 {
        format!(" ({} times since {})", standing.times, time(standing.first_at))
    } else {
        String::new()
    };
    let text = format!("{}{times}", arrived.message);
    if arrived.over {
        let was_open = std::mem::take(&mut standing.is_open);
        return Some((standing, was_open.then_some(text)));
    }
    if now < standing.next_at && arrived.severity >= standing.severity {
        return Some((standing, None));
    }
    let level = usize::try_from(standing.told)
        .unwrap_or(usize::MAX)
        .min(PAUSES.len() - 1);
    standing.next_at = now.saturating_add(PAUSES[level]);
    standing.told = standing.told.saturating_add(1);
    standing.severity = standing.severity.min(arrived.severity);
    standing.is_open = true;
    Some((standing, Some(text)))
}

fn time(millis: i64) -> String {
    jiff::Timestamp::from_millisecond(millis)
        .map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(n: u8) -> AgentId {
        format!("00000000-0000-7000-8000-0000000000{n:02}")
            .parse()
            .expect("an id")
    }

    fn alert(id: usize, title: &str) -> Alert {
        Alert {
            id: id.to_string(),
            severity: 3,
            title: title.to_owned(),
            summary: "why".to_owned(),
            created_at: 0,
            over: false,
        }
    }

    /// A process that failed every five seconds made an event every five seconds, for ever.
    #[test]
    fn what_repeats_is_told_less_and_less_often_and_counted() {
        let mut standing = None;
        let mut told = Vec::new();
        for n in 0..17_280 {
            let mut intake = Intake::default();
            let mut failed = alert(n, "web/nginx - exited with code 1 - restart");
            failed.severity = if n < 2 { 3 } else { 2 };
            let start = Instant::now();
            intake.add(start, agent(1), &failed);
            let (_, arrived) = intake.take(start).pop().expect("it may be written");
            let at = i64::try_from(n).expect("small") * 5_000;
            let (now, text) = count(standing.take(), &arrived, at).expect("it is new");
            told.extend(text.map(|text| (at / 1000, text)));
            // A second member, or this one after a restart, hears it too.
            assert_eq!(count(Some(now.clone()), &arrived, at), None);
            standing = Some(now);
        }
        let seconds: Vec<i64> = told.iter().map(|(at, _)| *at).collect();
        assert_eq!(
            seconds,
            [0, 10, 310, 2_110, 9_310, 30_910],
            "a day of failures, and the one that was worse"
        );
        assert!(
            told[3].1.ends_with("(423 times since 1970-01-01T00:00:00Z)"),
            "{}",
            told[3].1
        );
    }

    #[test]
    fn an_end_is_told_once_and_flapping_is_not() {
        let arrived = |id: &str, over: bool| Arrived {
            subject: "etcd: alarm NOSPACE".to_owned(),
            severity: 1,
            message: "full".to_owned(),
            times: i64::from(!over),
            over,
            ids: vec![id.to_owned()],
        };
        let mut standing = None;
        let mut told = Vec::new();
        for (at, over) in [
            (0, false),
            (5, true),
            (10, false),
            (15, true),
            (20, false),
            (70, false),
            (75, true),
        ] {
            let (now, text) =
                count(standing.take(), &arrived(&at.to_string(), over), at * 1000).expect("it is new");
            told.extend(text.map(|_| (at, over)));
            standing = Some(now);
        }
        assert_eq!(told, [(0, false), (5, true), (70, false), (75, true)]);
        let (again, text) = count(standing, &arrived("later", false), 2 * CALM).expect("it is new");
        assert!(
            text.is_some() && again.times == 1,
            "after an hour of silence it is a new one: {again:?}"
        );
    }

    #[test]
    fn a_flood_of_one_agent_is_bounded_and_holds_back_no_other() {
        let mut intake = Intake::default();
        let start = Instant::now();
        for n in 0..100_000_usize {
            intake.add(start, agent(1), &alert(n, &format!("subject {n} - x - y")));
        }
        let evil = Alert {
            title: format!("\u{1b}[2J{} - x", "a".repeat(100_000)),
            summary: "b\n".repeat(100_000),
            id: "c".repeat(100_000),
            ..alert(1, "")
        };
        intake.add(start, agent(2), &evil);
        let taken = intake.take(start);
        let of = |wanted: AgentId| taken.iter().filter(move |(agent, _)| *agent == wanted);
        assert_eq!(of(agent(1)).count(), WRITES as usize);
        let (_, said) = of(agent(2)).next().expect("it is heard");
        assert!(said.message.chars().count() < MESSAGE + 40 && said.subject.chars().count() < SUBJECT + 40);
        assert!(!said.message.contains(text::is_harmful) && said.ids[0].len() <= ID);
        // Nothing is lost that was counted.
        let mut times: i64 = of(agent(1)).map(|(_, arrived)| arrived.times).sum();
        for second in 1..200 {
            let more = intake.take(start + Duration::from_secs(second));
            times += more.iter().map(|(_, arrived)| arrived.times).sum::<i64>();
        }
        assert_eq!(times, 100_000);
        assert!(intake.agents.is_empty(), "who is quiet is forgotten");
    }
}
