//! Room in etcd's database: pure decisions about compaction, defragmentation and the alarm NOSPACE.
//!
//! etcd refuses writes once the file of its database has reached its quota, and goes on refusing them until the alarm that says so is disarmed, whatever is
//! deleted meanwhile. Deleting makes no room by itself: old revisions stay until they are compacted, and the file keeps its size until it is
//! defragmented. The API server compacts every five minutes, but not under the alarm, because it notes that in etcd, which is a write.
//!
//! Rules, in this order; the keeper beside the leader applies one at a time:
//! 1. CORRUPT is a person's business: nothing is done while it stands, and it is never disarmed.
//! 2. NOSPACE of a member is disarmed when its file is below [`ROOM_PERCENT`] of its quota, after deletions and after a raised quota alike. That of a member
//!    that is no longer one is disarmed at once.
//! 3. While NOSPACE stands, everything but the newest revision is compacted.
//! 4. While NOSPACE stands, a member without room is defragmented if what is in use would leave room. Without an alarm a member is defragmented when its
//!    file is above [`LARGE_PERCENT`] of its quota and less than [`USED_PERCENT`] of it is in use, at most once in [`DEFRAGMENT_PAUSE`].
//! 5. A member that is defragmented answers nobody meanwhile. So members go one at a time, only when all of them answer, none is a learner or lags behind,
//!    and the others are a majority; the leader comes last and hands leadership on first. A cluster of one member has no others to wait for.

use std::collections::BTreeMap;
use std::time::Duration;

/// A file below this share of the quota has room: enough that the alarm does not come back with the next burst of writes.
pub const ROOM_PERCENT: u64 = 80;
/// A file above this share of the quota is large.
pub const LARGE_PERCENT: u64 = 50;
/// A large file of which less than this share is in use is worth a defragmentation.
pub const USED_PERCENT: u64 = 60;
/// In use above this share of the quota is told before writes are refused.
pub const WARN_PERCENT: u64 = 80;
/// Without an alarm no member is defragmented more often.
pub const DEFRAGMENT_PAUSE: Duration = Duration::from_secs(3600);
/// Under the alarm a defragmentation that made no room is not repeated before.
pub const RETRY_PAUSE: Duration = Duration::from_secs(60);
/// Entries of the log that a member may have applied less than the leader. More means that it catches up.
const LAG: u64 = 5_000;

/// What etcd raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlarmKind {
    /// The database has reached its quota: all members refuse writes.
    NoSpace,
    /// Members' data differ: all members refuse everything.
    Corrupt,
}

/// An alarm of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// Whose.
    pub member: String,
    /// Which.
    pub kind: AlarmKind,
}

/// What a member says of itself (`/v3/maintenance/status`). Sizes in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Id of the leader that it follows.
    pub leader: String,
    /// Size of the file; the quota is compared with this.
    pub size: u64,
    /// What of it is in use.
    pub in_use: u64,
    /// Its quota.
    pub quota: u64,
    /// The entry of the log that it has applied last.
    pub applied: u64,
    /// The newest revision that it has.
    pub revision: u64,
}

impl Figures {
    /// What is in use, in percent of the quota.
    #[must_use]
    pub fn used_percent(&self) -> u64 {
        percent(self.in_use, self.quota)
    }

    fn has_room(&self) -> bool {
        percent(self.size, self.quota) < ROOM_PERCENT
    }

    /// Whether it would have room if its file were as large as what is in use.
    fn would_have_room(&self) -> bool {
        percent(self.in_use, self.quota) < ROOM_PERCENT
    }

    fn is_mostly_empty(&self) -> bool {
        percent(self.size, self.quota) > LARGE_PERCENT && percent(self.in_use, self.size) < USED_PERCENT
    }
}

fn percent(part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(part) * 100 / u128::from(whole.max(1))).unwrap_or(u64::MAX)
}

/// A member as the keeper sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// Its id.
    pub id: String,
    /// Its name, for people.
    pub name: String,
    /// Whether it has no vote yet.
    pub is_learner: bool,
    /// `None` when it does not answer.
    pub figures: Option<Figures>,
}

/// What the keeper of the leader knows.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The leader, whose keeper decides.
    pub leader: String,
    /// All members.
    pub members: Vec<MemberView>,
    /// All alarms.
    pub alarms: Vec<Alarm>,
    /// The revision up to which was compacted last.
    pub compacted: u64,
    /// How long ago members were defragmented, by id.
    pub defragmented: BTreeMap<String, Duration>,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// All is well.
    Nothing,
    /// Something would have to be done and cannot be yet; why.
    Wait(String),
    /// Compact all revisions but the newest, which is this one.
    Compact(u64),
    /// Defragment the member with this id.
    Defragment(String),
    /// Hand leadership to the member with this id; its keeper goes on.
    Lead(String),
    /// Disarm NOSPACE of the member with this id.
    Disarm(String),
}

/// Decides; see the rules of this module.
#[must_use]
pub fn next(view: &View) -> Next {
    if view.alarms.iter().any(|alarm| alarm.kind == AlarmKind::Corrupt) {
        return Next::Wait(
            "the alarm CORRUPT is raised: members' data differ, and a person has to look".to_owned(),
        );
    }
    let full = !view.alarms.is_empty();
    for alarm in &view.alarms {
        let member = view.members.iter().find(|member| member.id == alarm.member);
        let has_room = match member {
            None => true,
            Some(member) => member.figures.as_ref().is_some_and(Figures::has_room),
        };
        if has_room {
            return Next::Disarm(alarm.member.clone());
        }
    }
    let revision = view
        .members
        .iter()
        .filter_map(|member| member.figures.as_ref())
        .map(|figures| figures.revision)
        .max();
    if full
        && let Some(revision) = revision
        && revision > view.compacted.max(1)
    {
        return Next::Compact(revision);
    }
    let due = |member: &&MemberView| {
        let Some(figures) = &member.figures else {
            return false;
        };
        let (worth, pause) = if full {
            (!figures.has_room() && figures.would_have_room(), RETRY_PAUSE)
        } else {
            (figures.is_mostly_empty(), DEFRAGMENT_PAUSE)
        };
        worth && view.defragmented.get(&member.id).is_none_or(|age| *age >= pause)
    };
    // The leader is the last one.
    let mut candidates: Vec<&MemberView> = view.members.iter().filter(due).collect();
    candidates.sort_by_key(|member| member.id == view.leader);
    let Some(candidate) = candidates.first() else {
        return if full {
            Next::Wait(no_room(view))
        } else {
            Next::Nothing
        };
    };
    if let Err(why) = may_miss_one(view) {
        return Next::Wait(why);
    }
    if candidate.id == view.leader
        && let Some(other) = view.members.iter().find(|member| member.id != view.leader)
    {
        return Next::Lead(other.id.clone());
    }
    Next::Defragment(candidate.id.clone())
}

/// Whether the cluster goes on while one member answers nobody.
fn may_miss_one(view: &View) -> Result<(), String> {
    let wait = |what: String| Err(format!("{what}; until then no member is defragmented"));
    if let Some(member) = view.members.iter().find(|member| member.is_learner) {
        return wait(format!("waiting for {} to vote", member.name));
    }
    if view.members.len() == 1 {
        return Ok(());
    }
    if view.members.len() < 3 {
        return wait("waiting for a third member".to_owned());
    }
    let applied = |member: &MemberView| member.figures.as_ref().map(|figures| figures.applied);
    let newest = view.members.iter().filter_map(applied).max().unwrap_or(0);
    for member in &view.members {
        let Some(figures) = &member.figures else {
            return wait(format!("waiting for {} to answer", member.name));
        };
        if figures.leader != view.leader {
            return wait(format!("waiting for {} to follow the leader", member.name));
        }
        if newest.saturating_sub(figures.applied) > LAG {
            return wait(format!("waiting for {} to catch up", member.name));
        }
    }
    Ok(())
}

fn no_room(view: &View) -> String {
    let fullest = view
        .members
        .iter()
        .filter_map(|member| member.figures.as_ref())
        .max_by_key(|figures| figures.used_percent());
    match fullest {
        Some(figures) => format!(
            "{} of {} MiB are in use: there is room again when objects are deleted or the quota is raised",
            figures.in_use / (1 << 20),
            figures.quota / (1 << 20)
        ),
        None => "no member says how full it is".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn member(id: &str, size: u64, in_use: u64, quota: u64) -> MemberView {
        MemberView {
            id: id.to_owned(),
            name: format!("master-{id}"),
            is_learner: false,
            figures: Some(Figures {
                leader: "0".to_owned(),
                size: size * MIB,
                in_use: in_use * MIB,
                quota: quota * MIB,
                applied: 100,
                revision: 50,
            }),
        }
    }

    /// Three members, the first of which leads, with NOSPACE of those named.
    fn view(size: u64, in_use: u64, quota: u64, alarms: &[&str]) -> View {
        View {
            leader: "0".to_owned(),
            members: (0..3)
                .map(|id| member(&id.to_string(), size, in_use, quota))
                .collect(),
            alarms: alarms
                .iter()
                .map(|member| Alarm {
                    member: (*member).to_owned(),
                    kind: AlarmKind::NoSpace,
                })
                .collect(),
            compacted: 50,
            ..View::default()
        }
    }

    #[test]
    fn a_raised_quota_and_a_member_that_is_gone_are_room() {
        assert_eq!(next(&view(64, 64, 256, &["1"])), Next::Disarm("1".to_owned()));
        assert_eq!(next(&view(64, 64, 64, &["9"])), Next::Disarm("9".to_owned()));
        assert!(matches!(next(&view(64, 64, 64, &["1"])), Next::Wait(why) if why.contains("64 of 64 MiB")));
    }

    #[test]
    fn deletions_are_compacted_and_defragmented_one_by_one_the_leader_last() {
        let mut now = view(64, 64, 64, &["0", "1"]);
        now.compacted = 10;
        assert_eq!(next(&now), Next::Compact(50));
        now.compacted = 50;
        let mut order = Vec::new();
        for member in &mut now.members {
            if let Some(figures) = &mut member.figures {
                figures.in_use = 10 * MIB;
            }
        }
        for _ in 0..10 {
            let step = next(&now);
            order.push(step.clone());
            match step {
                Next::Defragment(id) => {
                    let done = now
                        .members
                        .iter_mut()
                        .find(|member| member.id == id)
                        .expect("a member");
                    done.figures.as_mut().expect("figures").size = 10 * MIB;
                }
                Next::Lead(id) => {
                    now.leader.clone_from(&id);
                    for member in &mut now.members {
                        member.figures.as_mut().expect("figures").leader.clone_from(&id);
                    }
                }
                Next::Disarm(id) => now.alarms.retain(|alarm| alarm.member != id),
                Next::Nothing => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(
            order,
            [
                Next::Defragment("1".to_owned()),
                Next::Disarm("1".to_owned()),
                Next::Defragment("2".to_owned()),
                Next::Lead("1".to_owned()),
                Next::Defragment("0".to_owned()),
                Next::Disarm("0".to_owned()),
                Next::Nothing,
            ]
        );
    }

    #[test]
    fn no_member_is_taken_away_from_a_bare_majority() {
        let worth = view(64, 10, 64, &["1"]);
        let mut down = worth.clone();
        down.members[2].figures = None;
        assert!(matches!(next(&down), Next::Wait(why) if why.contains("master-2 to answer")));
        let mut learner = worth.clone();
        learner.members[2].is_learner = true;
        assert!(matches!(next(&learner), Next::Wait(why) if why.contains("master-2 to vote")));
        let mut late = worth.clone();
        late.members[0].figures.as_mut().expect("figures").applied = LAG + 101;
        assert!(matches!(next(&late), Next::Wait(why) if why.contains("catch up")));
        let mut two = worth.clone();
        two.members.pop();
        assert!(matches!(next(&two), Next::Wait(why) if why.contains("third member")));
        let mut one = worth;
        one.members.truncate(1);
        one.alarms[0].member = "0".to_owned();
        assert_eq!(
            next(&one),
            Next::Defragment("0".to_owned()),
            "nobody else is there"
        );
    }

    #[test]
    fn without_an_alarm_only_large_and_empty_files_are_defragmented_and_seldom() {
        assert_eq!(next(&view(20, 5, 64, &[])), Next::Nothing, "it is small");
        assert_eq!(next(&view(50, 40, 64, &[])), Next::Nothing, "it is used");
        let mut worth = view(50, 10, 64, &[]);
        assert_eq!(next(&worth), Next::Defragment("1".to_owned()));
        for id in ["0", "1", "2"] {
            worth.defragmented.insert(id.to_owned(), Duration::from_secs(600));
        }
        assert_eq!(next(&worth), Next::Nothing, "it was tried lately");
    }

    #[test]
    fn corrupt_is_a_persons_business() {
        let mut corrupt = view(64, 10, 256, &["1"]);
        corrupt.alarms.push(Alarm {
            member: "2".to_owned(),
            kind: AlarmKind::Corrupt,
        });
        assert!(matches!(next(&corrupt), Next::Wait(why) if why.contains("CORRUPT")));
    }
}
