//! What is wrong with a document, all of it at once.

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;
use stolos_base::{Class, Classify};

use stolos_document::Place;

/// One thing that is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// `manifest`, `cloud config`, `cloud config 'NAME'`, `ops file`.
    pub document: Cow<'static, str>,
    /// Where.
    pub place: Place,
    /// What is wrong; BOSH's words where they are known.
    pub text: String,
    /// A whole sentence that says what to do; not always there.
    pub hint: Option<String>,
    /// BOSH's error code, see [`code`].
    pub code: u32,
}

/// BOSH error codes that documents can raise (bosh.md section 1.12).
pub mod code {
    /// A required field is missing.
    pub const MISSING_FIELD: u32 = 40001;
    /// A field has the wrong type.
    pub const WRONG_TYPE: u32 = 40002;
    /// A field is not known.
    pub const EXTRA_FIELD: u32 = 40004;
    /// An instance group names a stemcell that is not declared or not uploaded.
    pub const UNKNOWN_STEMCELL: u32 = 140005;
    /// Static addresses and instances do not match.
    pub const STATIC_IP_MISMATCH: u32 = 150002;
    /// Two subnets of a network overlap.
    pub const OVERLAPPING_SUBNETS: u32 = 160001;
    /// A release that is not uploaded.
    pub const RELEASE_NOT_FOUND: u32 = 30005;
    /// A release version that is not uploaded.
    pub const RELEASE_VERSION_NOT_FOUND: u32 = 30006;
    /// A stemcell that is not uploaded.
    pub const STEMCELL_NOT_FOUND: u32 = 50003;
    /// The manifest is not right in some other way.
    pub const BAD_MANIFEST: u32 = 440001;
    /// A variable that nobody knows.
    pub const MISSING_VARIABLE: u32 = 540009;
    /// The text is not YAML.
    pub const INVALID_YAML: u32 = 710000;
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.document)?;
        if self.place.at.line > 0 {
            write!(f, " line {}, column {}", self.place.at.line, self.place.at.column)?;
        }
        f.write_str(": ")?;
        if !self.place.path.is_empty() {
            write!(f, "{}: ", self.place.path)?;
        }
        f.write_str(&self.text)?;
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

/// All problems of one or several documents, in the order of the text; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub(crate) Vec<Problem>);

impl Problems {
    /// The problems.
    #[must_use]
    pub fn list(&self) -> &[Problem] {
        &self.0
    }

    /// The BOSH error code: that of the first problem.
    #[must_use]
    pub fn code(&self) -> u32 {
        self.0.first().map_or(code::BAD_MANIFEST, |problem| problem.code)
    }

    /// `Ok` when there is nothing wrong.
    pub(crate) fn check(mut list: Vec<Problem>) -> Result<(), Self> {
        if list.is_empty() {
            return Ok(());
        }
        // In the order of the text; documents stay in the order in which they were read.
        let mut documents: Vec<Cow<'static, str>> = Vec::new();
        for problem in &list {
            if !documents.contains(&problem.document) {
                documents.push(problem.document.clone());
            }
        }
        let rank = |document: &str| documents.iter().position(|other| other == document);
        list.sort_by_cached_key(|problem| {
            (
                rank(&problem.document),
                problem.place.at.line,
                problem.place.at.column,
            )
        });
        Err(Self(list))
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

/// One line per problem.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl Classify for Problems {
    fn class(&self) -> Class {
        Class::User
    }
}
