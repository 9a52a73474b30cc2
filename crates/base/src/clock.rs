//! Time as an argument.
//!
//! Wall-clock time is for people and certificates only; durations are measured with [`std::time::Instant`].

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;

/// A cheap, cloneable source of wall-clock time.
#[derive(Clone, Debug, Default)]
pub struct Clock(Source);

#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    System,
    Corrected(Arc<Corrected>),
    Manual(Arc<AtomicI64>),
}

/// Milliseconds.
#[derive(Debug, Default)]
struct Corrected {
    /// By how much it is wrong on purpose.
    wrong: i64,
    /// What is added to come to the time that counts.
    correction: AtomicI64,
}

impl Clock {
    /// The machine's own clock.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// The machine's own clock, which somebody who knows better may correct ([`Clock::correct`]).
    #[must_use]
    pub fn correctable() -> Self {
        Self(Source::Corrected(Arc::default()))
    }

    /// The same of a machine whose clock is wrong by so many milliseconds, ahead when positive; for tests of what that does.
    #[must_use]
    pub fn wrong_by(millis: i64) -> Self {
        Self(Source::Corrected(Arc::new(Corrected {
            wrong: millis,
            ..Corrected::default()
        })))
    }

    /// What the machine itself says, in milliseconds since the Unix epoch; `None` of a clock that cannot be corrected.
    #[must_use]
    pub fn uncorrected_millis(&self) -> Option<i64> {
        match &self.0 {
            Source::Corrected(it) => Some(Timestamp::now().as_millisecond() + it.wrong),
            Source::System | Source::Manual(_) => None,
        }
    }

    /// From now on the time is the machine's plus so many milliseconds. A clock that cannot be corrected is left alone.
    pub fn correct(&self, millis: i64) {
        if let Source::Corrected(it) = &self.0 {
            it.correction.store(millis, Ordering::SeqCst);
        }
    }

    /// A clock that stands still until [`Clock::advance`] moves it; for tests.
    #[must_use]
    pub fn manual(start: Timestamp) -> Self {
        Self(Source::Manual(Arc::new(AtomicI64::new(start.as_millisecond()))))
    }

    /// The time now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => Timestamp::now(),
            Source::Corrected(it) => {
                let own = Timestamp::now().as_millisecond() + it.wrong;
                Timestamp::from_millisecond(own + it.correction.load(Ordering::SeqCst))
                    .unwrap_or(Timestamp::UNIX_EPOCH)
            }
            Source::Manual(millis) => {
                Timestamp::from_millisecond(millis.load(Ordering::SeqCst)).unwrap_or(Timestamp::UNIX_EPOCH)
            }
        }
    }

    /// The time now in milliseconds since the Unix epoch: the form in which databases keep it.
    #[must_use]
    pub fn now_millis(&self) -> i64 {
        self.now().as_millisecond()
    }

    /// Moves a manual clock; the system clock is left alone.
    pub fn advance(&self, by: std::time::Duration) {
        if let Source::Manual(millis) = &self.0 {
            millis.fetch_add(
                i64::try_from(by.as_millis()).unwrap_or(i64::MAX),
                Ordering::SeqCst,
            );
        }
    }
}
