//! Counting attempts by name and source, in the database, before a password is looked at.
//!
//! An attempt counts as failed until it has succeeded: however many come at once, and to however many managers, as many passwords are tried as
//! are allowed. What is counted is a name at a source, whether or not there is such a name. So whoever fails locks a name for
//! themselves, and nobody locks it for others.
//!
//! Times are only compared with `now`; a clock that is set back makes no count begin anew and no lock longer than [`LONGEST`].

use aws_lc_rs::digest::{Context, SHA256};
use stolos_store::Db;

use crate::db::{self, Attempts};
use crate::error::Result;
use crate::source::Source;

/// Attempts until a name is locked: UAA's figure.
const FAILURES: i64 = 5;
/// How long a name is locked for the first time, in milliseconds: UAA's figure. Each failure after that doubles it.
const SHORTEST: i64 = 300 * 1000;
/// The longest that a name is locked at once, in milliseconds.
const LONGEST: i64 = 3600 * 1000;
/// A few failures are forgotten after this time without another one, in milliseconds: UAA's figure.
const WINDOW: i64 = 3600 * 1000;
/// Failures that led to a lock are forgotten this long after it, in milliseconds: who waits an hour between attempts is not a new person.
const MEMORY: i64 = 24 * 3600 * 1000;
/// What is kept of one source, and of all: an attempt is a row of some 200 bytes.
const LIMITS: Limits = Limits {
    of_source: 10_000,
    of_all: 100_000,
};

/// Whose secret is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    User,
    Client,
}

/// A name at a source.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// A digest: people type passwords into the field for the name.
    name: String,
    source: Source,
}

impl Subject {
    pub(crate) fn new(kind: Kind, name: &str, source: &Source) -> Self {
        Self {
            name: key(kind, name),
            source: source.clone(),
        }
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }
}

/// Under what a name is counted.
fn key(kind: Kind, name: &str) -> String {
    let (kind, name) = match kind {
        // Names are the same without regard to case.
        Kind::User => ("user", name.to_lowercase()),
        Kind::Client => ("client", name.to_owned()),
    };
    let mut context = Context::new(&SHA256);
    context.update(kind.as_bytes());
    context.update(&[0]);
    context.update(name.as_bytes());
    hex::encode(&context.finish().as_ref()[..16])
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
struct Limits {
    of_source: i64,
    of_all: i64,
}

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may be made, and counts as failed from now on.
    Begun,
    /// Not before this time (milliseconds).
    Locked(i64),
}

#[derive(Clone, Debug)]
pub(crate) struct Lockout {
    db: Db,
    limits: Limits,
}

impl Lockout {
    pub(crate) fn new(db: Db) -> Self {
        Self { db, limits: LIMITS }
    }

    /// Until when the subject is locked, in milliseconds. For who comes to a closed door: nothing is written.
    pub(crate) async fn locked(&self, subject: &Subject) -> Result<Option<i64>> {
        let now = self.db.clock().now_millis();
        let attempts = db::attempts(&self.db, &subject.name, subject.source.as_str()).await?;
        Ok(attempts.and_then(|attempts| closed(&attempts, now)))
    }

    /// Counts an attempt, before its password is looked at.
    pub(crate) async fn begin(&self, subject: &Subject) -> Result<Verdict> {
        let (name, source) = (subject.name.as_str(), subject.source.as_str());
        let mut tx = self.db.begin("count an attempt").await?;
        let now = tx.now_millis();
        let known = db::attempts_in(&mut tx, name, source).await?;
        let known = known.filter(|attempts| attempts.forget_at > now);
        if let Some(until) = known.as_ref().and_then(|attempts| closed(attempts, now)) {
            return Ok(Verdict::Locked(until));
        }
        if known.is_none() && !self.make_room(&mut tx, source, now).await? {
            return Ok(Verdict::Locked(now + SHORTEST));
        }
        let next = after(known.as_ref(), now);
        db::set_attempts(&mut tx, name, source, &next).await?;
        tx.commit().await?;
        if next.failures >= FAILURES {
            tracing::warn!(
                source,
                failures = next.failures,
                "this attempt is the last one for a while"
            );
        }
        Ok(Verdict::Begun)
    }

    /// Forgets the attempts of a subject that has shown the right password.
    pub(crate) async fn succeeded(&self, subject: &Subject) -> Result<()> {
        let mut tx = self.db.begin("forget attempts").await?;
        db::forget_attempts(&mut tx, &subject.name, Some(subject.source.as_str())).await?;
        Ok(tx.commit().await?)
    }

    /// Opens a user's name at all sources.
    pub(crate) async fn unlock(&self, user: &str) -> Result<()> {
        let mut tx = self.db.begin("unlock a user").await?;
        db::forget_attempts(&mut tx, &key(Kind::User, user), None).await?;
        Ok(tx.commit().await?)
    }

    /// Whether one more row may be added. What is old goes; where that is not enough, what has failed least goes, so that whoever wants a
    /// lock forgotten has to make thousands of others first. Locks of a source that is full of them stay.
    async fn make_room(&self, tx: &mut stolos_store::Tx, source: &str, now: i64) -> Result<bool> {
        db::forget_old_attempts(tx, now).await?;
        let of_source = db::count_attempts(tx, Some(source)).await?;
        if of_source >= self.limits.of_source {
            let tenth = (self.limits.of_source / 10).max(1);
            return Ok(db::evict_attempts(tx, Some(source), now, tenth).await? > 0);
        }
        if db::count_attempts(tx, None).await? >= self.limits.of_all {
            let tenth = (self.limits.of_all / 10).max(1);
            // As a last resort locks too: many sources together must not keep everybody else out.
            if db::evict_attempts(tx, None, now, tenth).await? == 0 {
                db::evict_attempts(tx, None, i64::MAX, tenth).await?;
            }
        }
        Ok(true)
    }
}

/// Until when a door is closed, if it is. No lock lasts longer than [`LONGEST`], whatever the clock said when it began.
fn closed(attempts: &Attempts, now: i64) -> Option<i64> {
    (attempts.locked_until > now).then(|| attempts.locked_until.min(now + LONGEST))
}

/// What is kept when one more attempt is made at `now`. A clock that was set back forgets nothing earlier than was decided before.
fn after(known: Option<&Attempts>, now: i64) -> Attempts {
    let failures = known.map_or(0, |attempts| attempts.failures) + 1;
    let (locked_until, forget_at) = if failures < FAILURES {
        (0, now + WINDOW)
    } else {
        // Four doublings are more than the longest.
        let doublings = (failures - FAILURES).min(4);
        let until = now + (SHORTEST << doublings).min(LONGEST);
        (until, until + MEMORY)
    };
    Attempts {
        failures,
        last_at: now,
        locked_until,
        forget_at: known.map_or(forget_at, |attempts| attempts.forget_at.max(forget_at)),
    }
}

/// How a person is told when to come back: a time in UTC, to the second.
pub(crate) fn again(until: i64) -> String {
    // Rounded up: at the time that is told the door is open.
    match jiff::Timestamp::from_second(until.saturating_add(999) / 1000) {
        Ok(time) => format!("Try again after {time}."),
        Err(_) => "Try again later.".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stolos_base::Clock;
    use stolos_store::testing::{Place, each};

    use super::*;

    async fn lockout(place: &Place, clock: &Clock) -> Lockout {
        Lockout::new(place.open_at(&crate::SCHEMA, clock.clone()).await)
    }

    fn at(name: &str, source: &str) -> Subject {
        Subject::new(Kind::User, name, &Source::of(source.parse().expect("an address")))
    }

    fn millis(minutes: u64) -> Duration {
        Duration::from_secs(minutes * 60)
    }

    #[tokio::test]
    async fn a_name_is_locked_at_the_source_that_fails_for_longer_and_longer() {
        each(async |place| {
            let clock = Clock::manual(jiff::Timestamp::now());
            let lockout = lockout(place, &clock).await;
            let (here, there) = (at("a", "10.0.0.1"), at("a", "10.0.0.2"));
            let begin = async |subject: &Subject| lockout.begin(subject).await.expect("an answer");
            for _ in 0..FAILURES {
                assert_eq!(begin(&here).await, Verdict::Begun);
            }
            let until = clock.now_millis() + SHORTEST;
            assert_eq!(begin(&here).await, Verdict::Locked(until));
            assert_eq!(
                begin(&at("A", "10.0.0.1")).await,
                Verdict::Locked(until),
                "the same name"
            );
            assert_eq!(lockout.locked(&here).await.expect("an answer"), Some(until));
            assert_eq!(begin(&there).await, Verdict::Begun, "nobody locks others");
            let mut expected = [10, 20, 40, 60, 60].into_iter();
            for minutes in [5, 10, 20, 40, 60] {
                clock.advance(millis(minutes));
                assert_eq!(begin(&here).await, Verdict::Begun);
                let until = clock.now_millis() + expected.next().expect("one") * 60_000;
                assert_eq!(begin(&here).await, Verdict::Locked(until), "after {minutes}");
            }
            lockout.succeeded(&here).await.expect("forgotten");
            assert_eq!(lockout.locked(&here).await.expect("an answer"), None);
            for _ in 0..2 * FAILURES {
                assert_eq!(begin(&here).await, Verdict::Begun, "failures that are far apart");
                clock.advance(millis(61));
            }
        })
        .await;
    }

    /// A failure whose time was before that of the last one made the count begin anew.
    #[tokio::test]
    async fn a_clock_that_goes_back_opens_nothing_and_locks_nobody_for_days() {
        let place = Place::sqlite();
        let start = jiff::Timestamp::now();
        let ahead = lockout(
            &place,
            &Clock::manual(start + jiff::SignedDuration::from_hours(72)),
        )
        .await;
        let clock = Clock::manual(start);
        let back = lockout(&place, &clock).await;
        let subject = at("a", "10.0.0.1");
        for n in 0..FAILURES {
            let lockout = if n % 2 == 0 { &ahead } else { &back };
            assert_eq!(lockout.begin(&subject).await.expect("an answer"), Verdict::Begun);
        }
        let locked = back.locked(&subject).await.expect("an answer").expect("locked");
        assert!(locked <= clock.now_millis() + LONGEST, "{locked}");
    }

    /// However many names a source tries, the database does not grow without end, and its locks stay.
    #[tokio::test]
    async fn what_is_kept_is_bounded_and_locks_are_kept_longest() {
        each(async |place| {
            let clock = Clock::manual(jiff::Timestamp::now());
            let mut lockout = lockout(place, &clock).await;
            lockout.limits = Limits {
                of_source: 20,
                of_all: 30,
            };
            let locked = at("victim", "10.0.0.1");
            for _ in 0..FAILURES {
                lockout.begin(&locked).await.expect("an answer");
            }
            for n in 0..100 {
                let subject = at(&n.to_string(), "10.0.0.1");
                assert_eq!(lockout.begin(&subject).await.expect("an answer"), Verdict::Begun);
            }
            for n in 0..100 {
                let subject = at("x", &format!("10.0.1.{n}"));
                assert_eq!(lockout.begin(&subject).await.expect("an answer"), Verdict::Begun);
            }
            assert!(lockout.locked(&locked).await.expect("an answer").is_some());
            let mut tx = lockout.db.begin("count").await.expect("a transaction");
            let rows = db::count_attempts(&mut tx, None).await.expect("a count");
            assert!(rows <= 31, "{rows}");
        })
        .await;
    }

    #[test]
    fn the_time_that_is_told_is_not_too_early() {
        assert_eq!(again(0), "Try again after 1970-01-01T00:00:00Z.");
        assert_eq!(again(1_001), "Try again after 1970-01-01T00:00:02Z.");
    }
}
