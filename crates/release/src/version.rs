//! BOSH's semi-semantic versions: `RELEASE[-PRE][+POST]`, each a dotted list of numbers and words.
//!
//! A release without PRE is newer than the same with one; one with POST is newer than without. In a list, numbers are
//! compared as numbers, words as text, a number comes before a word, and missing places count as 0.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A version of a release or a stemcell. Compared by meaning: `1.0` equals `1.0.0`; printed as it was written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    text: String,
    release: Vec<Part>,
    pre: Option<Vec<Part>>,
    post: Option<Vec<Part>>,
}

#[derive(Clone, Debug)]
enum Part {
    /// Digits without leading zeros: numbers of any length are compared without overflow.
    Number(String),
    Word(String),
}

impl Version {
    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether both are of one line: their first two places are the same. Compiled packages run on any stemcell of the
    /// line that they were compiled for.
    #[must_use]
    pub fn same_line(&self, other: &Self) -> bool {
        let zero = Part::Number(String::new());
        (0..2).all(|i| {
            let part = |version: &Self| version.release.get(i).unwrap_or(&zero).clone();
            compare_parts(&part(self), &part(other)) == Ordering::Equal
        })
    }

    /// Whether the version is of the given line, as in `3586.latest`: its first places are those.
    fn is_of_line(&self, line: &[Part]) -> bool {
        line.len() <= self.release.len()
            && line
                .iter()
                .zip(&self.release)
                .all(|(a, b)| compare_parts(a, b) == Ordering::Equal)
    }
}

/// What a manifest asks for.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// `latest`: the newest.
    Latest,
    /// `1.2.latest`: the newest that begins so.
    LatestOf(Vec<String>),
    /// Exactly this one.
    Exact(Version),
}

impl Wanted {
    /// Picks from what is there; `None` where nothing fits.
    pub fn pick<'a>(&self, versions: impl IntoIterator<Item = &'a Version>) -> Option<&'a Version> {
        let versions = versions.into_iter();
        match self {
            Self::Latest => versions.max(),
            Self::LatestOf(line) => {
                let line: Vec<Part> = line.iter().map(|text| Part::from(text.as_str())).collect();
                versions.filter(|version| version.is_of_line(&line)).max()
            }
            Self::Exact(wanted) => {
                // Where both `1.0` and `1.0.0` are there, the one that was written wins.
                let all: Vec<&Version> = versions.filter(|version| *version == wanted).collect();
                all.iter()
                    .find(|version| version.text == wanted.text)
                    .or(all.first())
                    .copied()
            }
        }
    }
}

impl FromStr for Wanted {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if let Some(line) = text.strip_suffix(".latest") {
            line.parse::<Version>()
                .map_err(|_| Error::NoVersion(text.to_owned()))?;
            return Ok(Self::LatestOf(line.split('.').map(str::to_owned).collect()));
        }
        text.parse().map(Self::Exact)
    }
}

impl From<&str> for Part {
    fn from(text: &str) -> Self {
        if text.bytes().all(|b| b.is_ascii_digit()) {
            Self::Number(text.trim_start_matches('0').to_owned())
        } else {
            Self::Word(text.to_owned())
        }
    }
}

fn compare_parts(a: &Part, b: &Part) -> Ordering {
    match (a, b) {
        (Part::Number(a), Part::Number(b)) => a.len().cmp(&b.len()).then_with(|| a.cmp(b)),
        (Part::Word(a), Part::Word(b)) => a.cmp(b),
        (Part::Number(_), Part::Word(_)) => Ordering::Less,
        (Part::Word(_), Part::Number(_)) => Ordering::Greater,
    }
}

fn compare_lists(a: &[Part], b: &[Part]) -> Ordering {
    let zero = Part::Number(String::new());
    (0..a.len().max(b.len()))
        .map(|i| compare_parts(a.get(i).unwrap_or(&zero), b.get(i).unwrap_or(&zero)))
        .find(|ordering| *ordering != Ordering::Equal)
        .unwrap_or(Ordering::Equal)
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        compare_lists(&self.release, &other.release)
            .then_with(|| match (&self.pre, &other.pre) {
                (None, None) => Ordering::Equal,
                (None, Some(_)) => Ordering::Greater,
                (Some(_), None) => Ordering::Less,
                (Some(a), Some(b)) => compare_lists(a, b),
            })
            .then_with(|| match (&self.post, &other.post) {
                (None, None) => Ordering::Equal,
                (None, Some(_)) => Ordering::Less,
                (Some(_), None) => Ordering::Greater,
                (Some(a), Some(b)) => compare_lists(a, b),
            })
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Version {}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let list = |part: &str, dash: bool| -> Option<Vec<Part>> {
            part.split('.')
                .map(|piece| {
                    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || (dash && b == b'-');
                    (!piece.is_empty() && piece.bytes().all(fits)).then(|| Part::from(piece))
                })
                .collect()
        };
        let (rest, post) = match text.split_once('+') {
            Some((rest, post)) => (rest, Some(post)),
            None => (text, None),
        };
        let (release, pre) = match rest.split_once('-') {
            Some((release, pre)) => (release, Some(pre)),
            None => (rest, None),
        };
        let optional = |part: Option<&str>| match part {
            None => Some(None),
            Some(part) => list(part, true).map(Some),
        };
        match (
            text != "latest",
            list(release, false),
            optional(pre),
            optional(post),
        ) {
            (true, Some(release), Some(pre), Some(post)) => Ok(Self {
                text: text.to_owned(),
                release,
                pre,
                post,
            }),
            _ => Err(Error::NoVersion(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Version {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().expect("a version")
    }

    #[test]
    fn versions_are_ordered_by_meaning() {
        let ascending = [
            "0.9",
            "1.0-alpha",
            "1.0-alpha.1",
            "1.0-rc.2",
            "1.0-rc.10",
            "1.0",
            "1.0+dev.1",
            "1.0+dev.10",
            "1.1-rc.1",
            "1.9",
            "1.10",
            "2",
            "2.a",
            "99999999999999999999999",
            "100000000000000000000000",
        ];
        for pair in ascending.windows(2) {
            assert!(version(pair[0]) < version(pair[1]), "{} < {}", pair[0], pair[1]);
        }
        assert_eq!(version("1.0"), version("1.0.0"));
        assert_eq!(version("01"), version("1"));
        for bad in ["", "latest", "1..2", "1 2", "1/2", "1-", "1+", "-1", "1+a+b"] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_line_is_the_first_two_places() {
        assert!(version("13.0+abc").same_line(&version("13")));
        assert!(version("621.5").same_line(&version("621.5.9-rc.1")));
        assert!(!version("13.0").same_line(&version("13.1")));
    }

    #[test]
    fn latest_is_the_newest_that_fits() {
        let versions = ["1.2", "1.10", "2.1-rc.1", "1.10-rc.3"].map(version);
        let pick = |text: &str| {
            text.parse::<Wanted>()
                .expect("a wish")
                .pick(&versions)
                .map(ToString::to_string)
        };
        assert_eq!(pick("latest").as_deref(), Some("2.1-rc.1"));
        assert_eq!(pick("1.latest").as_deref(), Some("1.10"));
        assert_eq!(pick("1.2.0").as_deref(), Some("1.2"));
        assert_eq!(pick("3.latest"), None);
        assert_eq!(pick("1.3"), None);
    }
}
