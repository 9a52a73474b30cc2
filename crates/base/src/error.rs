//! How errors are told apart and printed.
//!
//! Each module boundary has one `thiserror` enum whose variants name the operation that failed and carry its
//! subject. `Display` never shows the source; [`chain`] does.

use std::error::Error;
use std::fmt::Write as _;

/// Who has to act on an error. HTTP statuses and exit codes are derived from it in one place each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The request is wrong; repeating it unchanged cannot work.
    User,
    /// What the request names is not there.
    NotFound,
    /// The request is right but collides with the present state.
    Conflict,
    /// The caller is not known (no token, a wrong or an expired one).
    Unauthenticated,
    /// The caller is known but may not do this.
    Denied,
    /// Something that we depend on does not answer; repeating may work.
    Unavailable,
    /// A bug or a broken invariant of ours.
    Internal,
}

impl Class {
    /// The HTTP status that this class has on our own APIs.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::User => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Unauthenticated => 401,
            Self::Denied => 403,
            Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }

    /// The exit code of a command that fails so: 1 for the caller's side, 2 for ours.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::User | Self::NotFound | Self::Conflict | Self::Unauthenticated | Self::Denied => 1,
            Self::Unavailable | Self::Internal => 2,
        }
    }
}

/// What every service error can say about itself.
pub trait Classify: Error {
    /// Who has to act.
    fn class(&self) -> Class;

    /// Whether the same call may succeed later without anybody changing anything.
    fn retryable(&self) -> bool {
        self.class() == Class::Unavailable
    }

    /// Whole sentences that name the next step; empty where there is none.
    fn hints(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The error and all its sources on one line, joined by `: `; a source that repeats its parent's text is left out.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut last = text.clone();
    let mut next = error.source();
    while let Some(source) = next {
        let own = source.to_string();
        if !last.ends_with(&own) {
            let _ = write!(text, ": {own}");
        }
        last = own;
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to open `x`")]
    struct Open(#[source] std::io::Error);

    #[test]
    fn chain_shows_each_source_once() {
        let error = Open(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&error), "failed to open `x`: disk on fire");
    }
}
