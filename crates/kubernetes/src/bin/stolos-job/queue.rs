//! What is to be done, and when: each thing once at a time, and later and later while it fails.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The pause after the first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Pauses double with each failure up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How doing a thing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It is done.
    Done,
    /// It did not work and is done again after a pause.
    Failed,
    /// It is done, and done again after this time.
    Again(Duration),
}

#[derive(Debug)]
pub(crate) struct Queue<K>(BTreeMap<K, Entry>);

#[derive(Debug, Default)]
struct Entry {
    due: Option<Instant>,
    is_busy: bool,
    failures: u32,
}

impl<K: Clone + Ord> Queue<K> {
    pub(crate) fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Has a thing done: now, or after its pause where it failed before.
    pub(crate) fn add(&mut self, key: K, now: Instant) {
        let entry = self.0.entry(key).or_default();
        let due = now + pause(entry.failures);
        entry.due = Some(entry.due.map_or(due, |before| before.min(due)));
    }

    /// Nobody wants the thing any more.
    pub(crate) fn forget(&mut self, key: &K) {
        if let Some(entry) = self.0.get_mut(key) {
            entry.due = None;
            entry.failures = 0;
            if !entry.is_busy {
                self.0.remove(key);
            }
        }
    }

    /// Forgets all but what `is_wanted`.
    pub(crate) fn keep(&mut self, is_wanted: impl Fn(&K) -> bool) {
        let keys: Vec<K> = self.0.keys().filter(|key| !is_wanted(key)).cloned().collect();
        for key in keys {
            self.forget(&key);
        }
    }

    /// When there is something to do next.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0
            .values()
            .filter(|entry| !entry.is_busy)
            .filter_map(|entry| entry.due)
            .min()
    }

    /// Takes out what is to be done now; each has to be given to [`Queue::ended`] when it has been tried.
    pub(crate) fn take(&mut self, now: Instant) -> Vec<K> {
        let mut keys = Vec::new();
        for (key, entry) in &mut self.0 {
            if !entry.is_busy && entry.due.is_some_and(|due| due <= now) {
                entry.is_busy = true;
                entry.due = None;
                keys.push(key.clone());
            }
        }
        keys
    }

    /// A thing has been tried. What was added meanwhile is done again.
    pub(crate) fn ended(&mut self, key: K, end: End, now: Instant) {
        let entry = self.0.entry(key.clone()).or_default();
        entry.is_busy = false;
        entry.failures = match end {
            End::Failed => entry.failures.saturating_add(1),
            End::Done | End::Again(_) => 0,
        };
        match end {
            End::Failed => entry.due = Some(now + pause(entry.failures)),
            End::Again(after) => entry.due = Some(entry.due.map_or(now + after, |due| due.min(now + after))),
            End::Done if entry.due.is_none() => {
                self.0.remove(&key);
            }
            End::Done => {}
        }
    }
}

fn pause(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_PAUSE
            .saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX))
            .min(LONGEST_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_thing_is_done_once_at_a_time() {
        let mut queue = Queue::new();
        let now = Instant::now();
        assert_eq!(queue.next(), None);
        queue.add("a", now);
        queue.add("a", now);
        assert_eq!(queue.next(), Some(now));
        assert_eq!(queue.take(now), ["a"]);
        queue.add("a", now);
        assert_eq!(
            (queue.next(), queue.take(now)),
            (None, vec![]),
            "it is being done"
        );
        queue.ended("a", End::Done, now);
        assert_eq!(queue.take(now), ["a"], "it came again meanwhile");
        queue.ended("a", End::Done, now);
        assert_eq!(queue.next(), None);
        assert!(queue.0.is_empty(), "nothing is kept of what is done");
    }

    #[test]
    fn what_fails_is_done_later_and_later() {
        let mut queue = Queue::new();
        let mut now = Instant::now();
        queue.add("a", now);
        let mut pauses = Vec::new();
        for _ in 0..40 {
            assert_eq!(queue.take(now), ["a"]);
            queue.ended("a", End::Failed, now);
            queue.add("a", now);
            let next = queue.next().expect("it is done again");
            pauses.push(next - now);
            assert!(queue.take(next - Duration::from_millis(1)).is_empty());
            now = next;
        }
        assert_eq!(pauses[..3], [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4]);
        assert_eq!(pauses[39], LONGEST_PAUSE);
        queue.take(now);
        queue.ended("a", End::Done, now);
        queue.add("a", now);
        assert_eq!(queue.next(), Some(now), "what worked has not failed");
    }

    #[test]
    fn what_nobody_wants_any_more_is_not_done() {
        let mut queue = Queue::new();
        let now = Instant::now();
        queue.add("a", now);
        queue.keep(|key| *key != "a");
        assert_eq!(queue.next(), None);
        queue.add("b", now);
        queue.take(now);
        queue.add("b", now);
        queue.forget(&"b");
        queue.ended("b", End::Again(SECOND), now);
        assert_eq!(
            queue.next(),
            Some(now + SECOND),
            "what is being done says itself when it is done again"
        );
    }
}
