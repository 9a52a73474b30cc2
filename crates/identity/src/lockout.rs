//! Counting wrong passwords by name, whether or not there is such a user. In memory and bounded: a restart forgets.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Wrong passwords until a name is locked: UAA's figure.
const FAILURES: u32 = 5;
/// Failures that are further apart do not count together, in milliseconds.
const WINDOW: i64 = 3600 * 1000;
/// How long a name is locked, in milliseconds: UAA's figure.
const LOCKED: i64 = 300 * 1000;
/// Names that are remembered. When there are more, those with the oldest failure are forgotten.
const REMEMBERED: usize = 10_000;

#[derive(Default)]
pub(crate) struct Lockout(Mutex<HashMap<String, Failures>>);

struct Failures {
    count: u32,
    last: i64,
}

impl Lockout {
    /// Whether a name is locked at `now` (milliseconds).
    pub(crate) fn is_locked(&self, name: &str, now: i64) -> bool {
        self.map().get(name).is_some_and(|failures| {
            failures.count >= FAILURES && (0..LOCKED).contains(&(now - failures.last))
        })
    }

    /// A wrong password.
    pub(crate) fn failed(&self, name: &str, now: i64) {
        let mut map = self.map();
        if !map.contains_key(name) && map.len() >= REMEMBERED {
            forget_oldest(&mut map);
        }
        let failures = map
            .entry(name.to_owned())
            .or_insert(Failures { count: 0, last: now });
        let age = now - failures.last;
        let was_locked = failures.count >= FAILURES;
        // A clock that was set back makes the age negative; the count then begins anew too.
        if !(0..WINDOW).contains(&age) || (was_locked && age >= LOCKED) {
            failures.count = 0;
        }
        failures.count += 1;
        failures.last = now;
    }

    /// The right password.
    pub(crate) fn succeeded(&self, name: &str) {
        self.map().remove(name);
    }

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<String, Failures>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a tenth, so that this is rare.
fn forget_oldest(map: &mut HashMap<String, Failures>) {
    let mut times: Vec<i64> = map.values().map(|failures| failures.last).collect();
    times.sort_unstable();
    let limit = times[times.len() / 10];
    map.retain(|_, failures| failures.last > limit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_locked_for_a_while() {
        let lockout = Lockout::default();
        for _ in 0..FAILURES {
            assert!(!lockout.is_locked("a", 0));
            lockout.failed("a", 0);
        }
        assert!(lockout.is_locked("a", LOCKED - 1) && !lockout.is_locked("b", 0));
        assert!(!lockout.is_locked("a", LOCKED), "it ends");
        lockout.failed("a", LOCKED);
        assert!(!lockout.is_locked("a", LOCKED), "it takes as many failures again");
        lockout.succeeded("a");
        for n in 0..FAILURES {
            lockout.failed("a", i64::from(n) * WINDOW);
        }
        assert!(
            !lockout.is_locked("a", i64::from(FAILURES - 1) * WINDOW),
            "far apart"
        );
    }

    #[test]
    fn memory_is_bounded() {
        let lockout = Lockout::default();
        for n in 0..3 * REMEMBERED {
            lockout.failed(&n.to_string(), i64::try_from(n).expect("small"));
        }
        assert!(lockout.map().len() <= REMEMBERED);
        for n in 0..2 * REMEMBERED {
            lockout.failed(&format!("same {n}"), 0);
        }
        assert!(lockout.map().len() <= REMEMBERED);
    }
}
