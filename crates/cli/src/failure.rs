//! How a command fails: a text, hints and an exit code.

use std::fmt;

use stolos_base::{Class, Classify, chain};

/// Why a command failed, for a person.
#[derive(Debug)]
pub(crate) struct Failure {
    class: Class,
    message: String,
    hints: Vec<String>,
    /// Whether the person has ended the following, and nothing else has failed.
    left: bool,
}

impl Failure {
    /// The caller's side: wrong input or wrong state. Exit code 1.
    pub(crate) fn user(message: impl Into<String>) -> Self {
        Self {
            class: Class::User,
            message: message.into(),
            hints: Vec::new(),
            left: false,
        }
    }

    /// The person has pressed Ctrl-C while something was followed that goes on.
    pub(crate) fn left(what: &str) -> Self {
        Self {
            left: true,
            ..Self::user(format!("stopped following; the {what} goes on"))
        }
    }

    /// Whether it is [`Failure::left`]: the person wants to hear no more than how to go on.
    #[must_use]
    pub(crate) fn is_left(&self) -> bool {
        self.left
    }

    /// Our side. Exit code 2.
    pub(crate) fn ours(message: impl Into<String>) -> Self {
        Self {
            class: Class::Internal,
            ..Self::user(message)
        }
    }

    /// No session, or one that has ended; the text is PKS's, scripts match it.
    #[must_use]
    pub(crate) fn not_logged_in() -> Self {
        Self {
            class: Class::Unauthenticated,
            hints: vec![format!("Log in with `{} login`.", crate::program_name())],
            ..Self::user("You are not currently authenticated. Please log in to continue")
        }
    }

    /// An error of a service or client of ours.
    pub(crate) fn from_error<E: Classify + 'static>(error: &E) -> Self {
        Self {
            class: error.class(),
            hints: error.hints(),
            ..Self::user(chain(error))
        }
    }

    /// An answer of the PKS API. A session that has ended says so in PKS's words.
    pub(crate) fn of_api(error: &stolos_api::Error) -> Self {
        match error.class() {
            Class::Unauthenticated => Self::not_logged_in(),
            _ => Self::from_error(error),
        }
    }

    /// Adds a whole sentence that names the next step.
    #[must_use]
    pub(crate) fn hint(mut self, text: impl Into<String>) -> Self {
        self.hints.push(text.into());
        self
    }

    /// Whose side it is.
    #[must_use]
    pub(crate) fn class(&self) -> Class {
        self.class
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::ours(format!("{error:#}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error: {}", self.message)?;
        for hint in &self.hints {
            // The servers' hints name commands of `stolos`.
            let hint = crate::usage::in_name_of(&crate::program_name(), hint);
            write!(f, "\n\nhint: {hint}")?;
        }
        Ok(())
    }
}
