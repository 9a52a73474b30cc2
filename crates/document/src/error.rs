//! What is wrong with a document, in our own words.
//!
//! serde and the libraries of YAML and JSON speak to programmers (`expected struct ClusterRequest`, `use from_multiple`). No text of
//! theirs passes here without being put into words for whoever wrote the document.

use std::fmt::{self, Display, Write as _};

use serde::de::{Expected, Unexpected};

use crate::limits::QUOTED;
use crate::node::{At, Place};

/// One thing that is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Where. The path is empty where the text itself is wrong, the line 0 where the document has no lines.
    pub place: Place,
    /// What is wrong: a phrase without a full stop.
    pub text: String,
}

impl Error {
    pub(crate) fn new(at: At, text: impl Into<String>) -> Self {
        Self {
            place: Place {
                at,
                path: String::new(),
            },
            text: text.into(),
        }
    }

    /// The same, from one level further up.
    pub(crate) fn below(mut self, key: &str) -> Self {
        let path = &mut self.place.path;
        let shown = shown(key);
        *path = match path.chars().next() {
            None => shown,
            Some('[') => format!("{shown}{path}"),
            Some(_) => format!("{shown}.{path}"),
        };
        self
    }

    /// The same, from the list that holds it.
    pub(crate) fn within(mut self, index: usize) -> Self {
        let path = &mut self.place.path;
        let point = if path.is_empty() || path.starts_with('[') {
            ""
        } else {
            "."
        };
        *path = format!("[{index}]{point}{path}");
        self
    }

    /// The same, at this place unless it has one.
    pub(crate) fn or_at(mut self, at: At) -> Self {
        if self.place.at.line == 0 {
            self.place.at = at;
        }
        self
    }
}

impl std::error::Error for Error {}

/// `line 3, column 5: plans[0].name: a string is needed here, not a list`.
impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { at, path } = &self.place;
        if at.line > 0 {
            write!(f, "line {}, column {}: ", at.line, at.column)?;
        }
        if !path.is_empty() {
            write!(f, "{path}: ")?;
        }
        f.write_str(&self.text)
    }
}

impl serde::de::Error for Error {
    fn custom<T: Display>(message: T) -> Self {
        Self::new(At::default(), in_words(&message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(
            At::default(),
            mismatch(Some(&found_kind(&found)), &expected.to_string()),
        )
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(
            At::default(),
            mismatch(Some(&found_kind(&found)), &expected.to_string()),
        )
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        Self::new(
            At::default(),
            mismatch(Some(&format!("{length} entries")), &expected.to_string()),
        )
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let text = match expected {
            [] => format!("`{}` is not known here", shown(variant)),
            _ => format!(
                "`{}` is not known here; it can be {}",
                shown(variant),
                either(expected)
            ),
        };
        Self::new(At::default(), text)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let text = match expected {
            [] => format!("`{}` is not known here", shown(field)),
            _ => format!(
                "`{}` is not known here; known are {}",
                shown(field),
                all(expected)
            ),
        };
        Self::new(At::default(), text)
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(At::default(), format!("`{field}` is missing"))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(At::default(), format!("`{field}` is there twice"))
    }
}

/// Something that a user wrote, short and without what a terminal would act upon.
pub(crate) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for (at, c) in text.chars().enumerate() {
        if at == QUOTED {
            shown.push('…');
            break;
        }
        if is_invisible(c) {
            let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Control characters, line separators, and those that turn the direction of a text or cannot be seen.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

pub(crate) fn either(words: &[&str]) -> String {
    list(words, " or ")
}

fn all(words: &[&str]) -> String {
    list(words, " and ")
}

fn list(words: &[&str], last: &str) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((word, [])) => word.clone(),
        Some((word, others)) => format!("{}{last}{word}", others.join(", ")),
    }
}

/// What was found, by its kind: what a string says may be a secret.
fn found_kind(found: &Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(flag) => format!("`{flag}`"),
        Unexpected::Unsigned(number) => format!("the number {number}"),
        Unexpected::Signed(number) => format!("the number {number}"),
        Unexpected::Float(number) => format!("the number {number}"),
        Unexpected::Char(_) | Unexpected::Str(_) => "a string".to_owned(),
        Unexpected::Bytes(_) => "bytes".to_owned(),
        Unexpected::Unit | Unexpected::Option => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map | Unexpected::NewtypeStruct | Unexpected::StructVariant => "a map".to_owned(),
        _ => "something else".to_owned(),
    }
}

pub(crate) fn mismatch(found: Option<&str>, expected: &str) -> String {
    match (wanted(expected), found) {
        (Some(wanted), Some(found)) => format!("{wanted} is needed here, not {found}"),
        (Some(wanted), None) => format!("{wanted} is needed here"),
        (None, Some(found)) => format!("{found} cannot stand here"),
        (None, None) => "this cannot stand here".to_owned(),
    }
}

/// serde's name of what is expected, in words; `None` when it says nothing to who wrote the document.
fn wanted(expected: &str) -> Option<String> {
    let expected = expected.trim();
    let first = expected.split([' ', '<']).next().unwrap_or_default();
    let words = match (first, expected) {
        (_, "a map" | "map" | "an object") | ("struct", _) => "a map",
        (_, "a sequence" | "sequence" | "an array") => "a list",
        (_, "a string" | "string" | "a borrowed string" | "str" | "a str" | "a character") => "a string",
        (_, "a boolean" | "boolean" | "bool") => "`true` or `false`",
        (_, "unit" | "null" | "option" | "a unit") | ("unit", _) => "nothing",
        (_, "variant identifier" | "field identifier" | "identifier") => "a name",
        ("enum", _) => "a name, or a map with one key",
        ("tuple" | "array", _) => "a list",
        ("newtype" | "variant", _) => return None,
        _ => return own_words(expected),
    };
    Some(words.to_owned())
}

/// What somebody wrote for their type: kept, but for names of types.
fn own_words(expected: &str) -> Option<String> {
    let mut words: Vec<&str> = Vec::new();
    for word in expected.split(' ') {
        words.push(match word {
            "u8" => "integer from 0 to 255",
            "u16" => "integer from 0 to 65535",
            "u32" => "integer from 0 to 4294967295",
            "u64" | "u128" | "usize" => "integer from 0 on",
            "i8" => "integer from -128 to 127",
            "i16" => "integer from -32768 to 32767",
            "i32" => "integer from -2147483648 to 2147483647",
            "i64" | "i128" | "isize" => "integer",
            "f32" | "f64" => "number",
            word => word,
        });
    }
    let named = ["struct", "enum", "tuple", "variant", "newtype"];
    if expected.contains("::") || words.iter().any(|word| named.contains(word)) {
        return None;
    }
    let text = words.join(" ");
    let article = if text.starts_with("integer") {
        "an "
    } else if text.starts_with("number") {
        "a "
    } else {
        ""
    };
    Some(format!("{article}{text}"))
}

/// The message of an error of serde, `serde_json` or a type that is read through them, in words for whoever wrote the document.
///
/// For messages that come as text only; where the document is at hand, [`crate::from_yaml`] and [`crate::from_json`] say the place
/// as well.
#[must_use]
pub fn in_words(message: &str) -> String {
    let message = without_place(message.trim());
    let quoted = |rest: &str| {
        let mut parts = rest.split('`');
        parts.next();
        let name = parts.next().map(shown);
        let known: Vec<String> = parts.skip(1).step_by(2).map(shown).collect();
        (name.unwrap_or_default(), known)
    };
    let names = |known: &[String], last| list(&known.iter().map(String::as_str).collect::<Vec<_>>(), last);
    for prefix in ["invalid type: ", "invalid value: ", "invalid length "] {
        if let Some(rest) = message.strip_prefix(prefix) {
            let (found, expected) = rest.rsplit_once(", expected ").unwrap_or((rest, ""));
            let found = match prefix {
                "invalid length " => Some(format!("{} entries", shown(found))),
                _ => found_words(found),
            };
            return mismatch(found.as_deref(), expected);
        }
    }
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let (name, known) = quoted(rest);
        return match known.as_slice() {
            [] => format!("`{name}` is not known here"),
            known => format!("`{name}` is not known here; known are {}", names(known, " and ")),
        };
    }
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        let (name, known) = quoted(rest);
        return match known.as_slice() {
            [] => format!("`{name}` is not known here"),
            known => format!("`{name}` is not known here; it can be {}", names(known, " or ")),
        };
    }
    if let Some(rest) = message.strip_prefix("missing field ") {
        return format!("`{}` is missing", quoted(rest).0);
    }
    if let Some(rest) = message.strip_prefix("duplicate field ") {
        return format!("`{}` is there twice", quoted(rest).0);
    }
    if message.starts_with("data did not match any variant") || message.contains("untagged enum") {
        return "this has none of the forms that can stand here".to_owned();
    }
    // What the standard library says of a text that is no number.
    match message {
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            return "an integer is needed here".to_owned();
        }
        "number too large to fit in target type" | "number too small to fit in target type" => {
            return "the number is out of range".to_owned();
        }
        "invalid float literal" | "cannot parse float from empty string" => {
            return "a number is needed here".to_owned();
        }
        "provided string was not `true` or `false`" => return "`true` or `false` is needed here".to_owned(),
        _ => {}
    }
    if message.starts_with("no variant of enum") {
        return "this is none of what can stand here".to_owned();
    }
    shown_line(message)
}

/// What `serde` says that it found, without what was in it.
fn found_words(found: &str) -> Option<String> {
    let (kind, rest) = found.split_once(' ').unwrap_or((found, ""));
    Some(match kind {
        "string" | "character" => "a string".to_owned(),
        "integer" | "boolean" => rest.trim_matches('`').to_owned(),
        "floating" => format!(
            "the number {}",
            rest.trim_start_matches("point ").trim_matches('`')
        ),
        "null" | "unit" | "Option" => "nothing".to_owned(),
        "sequence" => "a list".to_owned(),
        "map" | "newtype" | "struct" => "a map".to_owned(),
        _ => return None,
    })
}

/// Without ` at line 1 column 2`, which the place says.
pub(crate) fn without_place(message: &str) -> &str {
    message
        .rsplit_once(" at line ")
        .filter(|(_, place)| {
            place
                .bytes()
                .all(|b| b.is_ascii_digit() || b" column".contains(&b))
        })
        .map_or(message, |(text, _)| text)
}

/// A message of somebody's own, on one line.
fn shown_line(message: &str) -> String {
    message
        .chars()
        .map(|c| if is_invisible(c) { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serde_s_words_become_ours() {
        for (message, expect) in [
            (
                "invalid type: string \"s3cret, expected\", expected struct ClusterRequest at line 1 column 7",
                "a map is needed here, not a string",
            ),
            (
                "invalid type: null, expected u16",
                "an integer from 0 to 65535 is needed here, not nothing",
            ),
            (
                "invalid value: integer `300`, expected u8",
                "an integer from 0 to 255 is needed here, not 300",
            ),
            (
                "invalid value: integer `0`, expected a nonzero u16",
                "a nonzero integer from 0 to 65535 is needed here, not 0",
            ),
            (
                "invalid type: map, expected a sequence",
                "a list is needed here, not a map",
            ),
            (
                "unknown field `worker`, expected `name` or `plan`",
                "`worker` is not known here; known are `name` and `plan`",
            ),
            (
                "unknown variant `a`, expected one of `b`, `c`",
                "`a` is not known here; it can be `b` or `c`",
            ),
            ("missing field `name` at line 3 column 1", "`name` is missing"),
            (
                "data did not match any variant of untagged enum Wish",
                "this has none of the forms that can stand here",
            ),
            ("`often` is no time", "`often` is no time"),
        ] {
            assert_eq!(in_words(message), expect, "{message}");
        }
    }
}
