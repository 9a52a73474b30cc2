//! YAML documents of BOSH: read as everywhere ([`stolos_document`]), with BOSH's code in what is wrong.

use std::borrow::Cow;

pub use stolos_document::write;
use stolos_document::{Error, Node};

use crate::problem::{Problem, code};

/// Reads one YAML document. Aliases and merge keys are expanded; a key that stands twice in a mapping is refused.
/// Scalars are what BOSH's CLI and `kubectl` read ([`stolos_document::scalar`]).
///
/// # Errors
/// The text is not one YAML document.
pub fn parse(document: impl Into<Cow<'static, str>>, text: &str) -> Result<Node, Problem> {
    stolos_document::parse(text).map_err(|error| problem(document, error))
}

fn problem(document: impl Into<Cow<'static, str>>, error: Error) -> Problem {
    Problem {
        document: document.into(),
        place: error.place,
        text: format!("not valid YAML: {}", error.text),
        hint: None,
        code: code::INVALID_YAML,
    }
}
