//! What changes between two documents, as BOSH shows it: lines of YAML that were added, removed or give context.
//!
//! Elements of lists are matched by `name`, then by `range`, then by equality. Values that may be secret are compared
//! as they are and shown as `<redacted>`.

use serde::{Serialize, Serializer};

use stolos_document::{Entry, Map, Node, Value, scalar_text, write_entry, write_list};

/// Whether values that may be secret are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redaction {
    /// Values below `properties`, `env`, `bosh` and `cloud_properties.env`, and credentials in URLs, are `<redacted>`.
    Redacted,
    /// Everything is shown.
    Plain,
}

/// What a line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
}

/// A line of a difference; serialized as BOSH has it: `["text", "added" | "removed" | null]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The line with its indentation.
    pub text: String,
    /// What it says; `None` for context.
    pub change: Option<Change>,
}

impl Serialize for Line {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (&self.text, self.change).serialize(serializer)
    }
}

/// Keys whose values may be secret.
const SECRET_KEYS: [&str; 3] = ["properties", "env", "bosh"];

const REDACTED: &str = "<redacted>";

/// What changes from `before` (nothing, for a new document) to `after`. No line means no change.
///
/// The top-level sections are separated by empty context lines.
#[must_use]
pub fn diff(before: Option<&Node>, after: &Node, redaction: Redaction) -> Vec<Line> {
    let empty = Node::new(Value::Map(Map::new()));
    let before = Side::of(before.unwrap_or(&empty), redaction);
    let after = Side::of(after, redaction);
    let mut lines = Vec::new();
    let mut sections = Vec::new();
    maps(before, after, 0, &mut |section| sections.push(section));
    for section in sections.into_iter().filter(|section| !section.is_empty()) {
        if !lines.is_empty() {
            lines.push(Line {
                text: String::new(),
                change: None,
            });
        }
        lines.extend(section);
    }
    lines
}

/// A value as it is, for comparison, and as it may be shown.
#[derive(Clone)]
struct Side {
    real: Node,
    shown: Node,
}

impl Side {
    fn of(node: &Node, redaction: Redaction) -> Self {
        let shown = match redaction {
            Redaction::Plain => node.clone(),
            Redaction::Redacted => redact(node, false),
        };
        Self {
            real: node.clone(),
            shown,
        }
    }

    /// The elements of a mapping.
    fn entries(&self) -> Vec<(&str, Side)> {
        let (Some(real), Some(shown)) = (self.real.as_map(), self.shown.as_map()) else {
            return Vec::new();
        };
        real.iter()
            .zip(shown.values())
            .map(|((key, real), shown)| {
                (
                    key.as_str(),
                    Side {
                        real: real.node.clone(),
                        shown: shown.node.clone(),
                    },
                )
            })
            .collect()
    }

    /// The elements of a list.
    fn elements(&self) -> Vec<Side> {
        let (Some(real), Some(shown)) = (self.real.as_list(), self.shown.as_list()) else {
            return Vec::new();
        };
        real.iter()
            .zip(shown)
            .map(|(real, shown)| Side {
                real: real.clone(),
                shown: shown.clone(),
            })
            .collect()
    }
}

/// The same without what may be secret.
#[must_use]
pub fn redacted(node: &Node) -> Node {
    redact(node, false)
}

fn redact(node: &Node, secret: bool) -> Node {
    let value = match &node.value {
        Value::Map(map) => Value::Map(
            map.iter()
                .map(|(key, entry)| {
                    let secret = secret || SECRET_KEYS.contains(&key.as_str());
                    (
                        key.clone(),
                        Entry {
                            key_at: entry.key_at,
                            node: redact(&entry.node, secret),
                        },
                    )
                })
                .collect(),
        ),
        Value::List(list) => Value::List(list.iter().map(|node| redact(node, secret)).collect()),
        Value::Null => Value::Null,
        Value::Bool(_) | Value::Number(_) | Value::Text(_) if secret => Value::Text(REDACTED.to_owned()),
        Value::Text(text) => Value::Text(without_credentials(text)),
        other => other.clone(),
    };
    node.with_value(value)
}

/// `https://user:password@host/` → `https://<redacted>@host/`.
fn without_credentials(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let (authority, path) = rest
        .find(['/', '?', '#'])
        .map_or((rest, ""), |at| rest.split_at(at));
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{REDACTED}@{host}{path}"),
        None => text.to_owned(),
    }
}

/// Compares two mappings; each key's lines go to `section` on their own.
fn maps(before: Side, after: Side, indent: usize, section: &mut dyn FnMut(Vec<Line>)) {
    let (old, new) = (before.entries(), after.entries());
    // Keys in the order of the old document, new ones last.
    let added = new
        .iter()
        .filter(|(key, _)| old.iter().all(|(other, _)| other != key));
    for (key, old) in &old {
        match new.iter().find(|(other, _)| other == key) {
            Some((_, new)) => section(values(key, old, new, indent)),
            None => section(entry(key, old, indent, Change::Removed)),
        }
    }
    for (key, new) in added {
        section(entry(key, new, indent, Change::Added));
    }
}

fn values(key: &str, before: &Side, after: &Side, indent: usize) -> Vec<Line> {
    if before.real == after.real {
        return Vec::new();
    }
    let mut inner = Vec::new();
    match (&before.real.value, &after.real.value) {
        (Value::Map(_), Value::Map(_)) => {
            maps(before.clone(), after.clone(), indent + 1, &mut |lines| {
                inner.extend(lines)
            });
        }
        (Value::List(_), Value::List(_)) => lists(before, after, indent, &mut inner),
        _ => {}
    }
    if inner.is_empty() {
        // Scalars, values of different kinds, and lists in which only the order changed.
        inner.extend(entry(key, before, indent, Change::Removed));
        inner.extend(entry(key, after, indent, Change::Added));
    } else {
        inner.insert(
            0,
            Line {
                text: format!("{}{}:", "  ".repeat(indent), scalar_text(key)),
                change: None,
            },
        );
    }
    inner
}

/// How an element of a list is found again in the other list.
fn identity(node: &Node) -> Option<(&'static str, String)> {
    ["name", "range"]
        .into_iter()
        .find_map(|key| Some((key, node.get(key)?.scalar_text()?)))
}

fn lists(before: &Side, after: &Side, indent: usize, lines: &mut Vec<Line>) {
    let (old, mut new) = (before.elements(), after.elements());
    for old in &old {
        let same = match identity(&old.real) {
            Some(id) => new
                .iter()
                .position(|new| identity(&new.real).as_ref() == Some(&id)),
            None => new.iter().position(|new| new.real == old.real),
        };
        let Some(position) = same else {
            lines.extend(element(old, indent, Change::Removed));
            continue;
        };
        let new = new.remove(position);
        if new.real == old.real {
            continue;
        }
        // The identity becomes a context line with the dash; it is equal on both sides.
        let mut inner = Vec::new();
        maps(old.clone(), new, indent + 1, &mut |lines| inner.extend(lines));
        if let Some((key, name)) = identity(&old.shown) {
            let text = format!("{}- {key}: {}", "  ".repeat(indent), scalar_text(&name));
            lines.push(Line { text, change: None });
        }
        lines.extend(inner);
    }
    for new in &new {
        lines.extend(element(new, indent, Change::Added));
    }
}

fn entry(key: &str, side: &Side, indent: usize, change: Change) -> Vec<Line> {
    let mut lines = Vec::new();
    write_entry(key, &side.shown, indent, &mut lines);
    lines
        .into_iter()
        .map(|text| Line {
            text,
            change: Some(change),
        })
        .collect()
}

fn element(side: &Side, indent: usize, change: Change) -> Vec<Line> {
    let mut lines = Vec::new();
    write_list(std::slice::from_ref(&side.shown), indent, &mut lines);
    lines
        .into_iter()
        .map(|text| Line {
            text,
            change: Some(change),
        })
        .collect()
}

/// The lines as text: `+ `, `- ` or two spaces before each.
#[must_use]
pub fn to_text(lines: &[Line]) -> String {
    lines
        .iter()
        .map(|line| {
            let mark = match line.change {
                Some(Change::Added) => "+ ",
                Some(Change::Removed) => "- ",
                None => "  ",
            };
            format!("{mark}{}", line.text).trim_end().to_owned() + "\n"
        })
        .collect()
}
