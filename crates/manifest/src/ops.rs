//! Ops files: changes to a document, in the dialect of BOSH's command line (a relative of RFC 6902).
//!
//! An ops file is a list of `{type: replace, path, value}` and `{type: remove, path}`. A path consists of keys (`/a`),
//! indexes (`/0`, `/-1` counts from the end), `/-` for "behind the last one" and `/name=x` for the element whose `name`
//! is `x`; `?` behind a part says that it and everything below is made when it is missing. `~0` stands for `~` and `~1`
//! for `/`.

use crate::fields::{Fields, Reader};
use crate::problem::{Problem, Problems, code};
use crate::yaml;
use stolos_document::{Entry, Map, Node, Place, Value};

const DOCUMENT: &str = "ops file";

/// A change.
#[derive(Clone, Debug)]
pub struct Op {
    path: Path,
    change: Change,
}

#[derive(Clone, Debug)]
enum Change {
    Replace(Node),
    Remove,
}

#[derive(Clone, Debug)]
struct Path {
    text: String,
    place: Place,
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Key {
        key: String,
        optional: bool,
    },
    Index(i64),
    Append,
    Match {
        key: String,
        value: String,
        optional: bool,
    },
}

/// Reads an ops file.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str) -> Result<Vec<Op>, Problems> {
    let document = yaml::parse(DOCUMENT, text)?;
    let mut r = Reader::new(DOCUMENT);
    let root = Place {
        at: document.at,
        path: String::new(),
    };
    let mut ops = Vec::new();
    match document.as_list() {
        Some(list) => {
            for (i, node) in list.iter().enumerate() {
                ops.extend(op(node, root.index(i, node.at), &mut r));
            }
        }
        None => r.problem(
            &root,
            code::WRONG_TYPE,
            format!("must be a list of operations, not {}", document.kind()),
        ),
    }
    Problems::check(r.problems)?;
    Ok(ops)
}

fn op(node: &Node, place: Place, r: &mut Reader) -> Option<Op> {
    let mut f = Fields::open(node, place.clone(), r)?;
    let kind = f.required_text("type", r);
    let path = f.required_text("path", r);
    let value = f.present("value").map(|(node, _)| node.clone());
    f.close(&[], r);
    let change = match (kind.as_str(), value) {
        ("replace", Some(value)) => Change::Replace(value),
        ("replace", None) => {
            r.problem(
                &place,
                code::MISSING_FIELD,
                "required property 'value' was not specified",
            );
            return None;
        }
        ("remove", None) => Change::Remove,
        ("remove", Some(_)) => {
            r.problem(&place, code::EXTRA_FIELD, "'value' does not belong to 'remove'");
            return None;
        }
        ("", _) => return None,
        (other, _) => {
            r.problem(
                &kind.place,
                code::BAD_MANIFEST,
                format!("'{other}' is not one of replace, remove"),
            );
            return None;
        }
    };
    match parts(&path) {
        Ok(parts) => Some(Op {
            path: Path {
                text: path.value,
                place: path.place,
                parts,
            },
            change,
        }),
        Err(text) => {
            r.problem(&path.place, code::BAD_MANIFEST, text);
            None
        }
    }
}

fn parts(path: &str) -> Result<Vec<Part>, String> {
    let Some(rest) = path.strip_prefix('/') else {
        return Err(format!("path '{path}' does not begin with '/'"));
    };
    if rest.is_empty() {
        return Ok(Vec::new());
    }
    let unescape = |text: &str| text.replace("~1", "/").replace("~7", ":").replace("~0", "~");
    let mut all = Vec::new();
    // What is below an optional part is optional too.
    let mut optional = false;
    for text in rest.split('/') {
        if text.contains(":prev")
            || text.contains(":next")
            || text.ends_with(":before")
            || text.ends_with(":after")
        {
            return Err(format!("path '{path}' has '{text}', which is not supported"));
        }
        let bare = text.strip_suffix('?').unwrap_or(text);
        optional |= bare.len() < text.len();
        all.push(match (bare, bare.split_once('=')) {
            ("", _) => return Err(format!("path '{path}' has an empty part")),
            ("-", _) => Part::Append,
            (_, Some((key, value))) => Part::Match {
                key: unescape(key),
                value: unescape(value),
                optional,
            },
            (bare, None) => match bare.parse() {
                Ok(index) => Part::Index(index),
                Err(_) => Part::Key {
                    key: unescape(bare),
                    optional,
                },
            },
        });
    }
    if all.iter().rev().skip(1).any(|part| matches!(part, Part::Append)) {
        return Err(format!("path '{path}' has '-' before its end"));
    }
    Ok(all)
}

/// Applies changes one after another; each sees what the ones before have done.
///
/// # Errors
/// The first change that does not fit; the document is then half changed and of no use.
pub fn apply(document: &mut Node, ops: &[Op]) -> Result<(), Problems> {
    for op in ops {
        let done = match &op.change {
            Change::Replace(value) => replace(document, &op.path.parts, value),
            Change::Remove => remove(document, &op.path.parts),
        };
        done.map_err(|text| Problem {
            document: DOCUMENT.into(),
            place: op.path.place.clone(),
            text: format!("path '{}': {text}", op.path.text),
            hint: None,
            code: code::BAD_MANIFEST,
        })?;
    }
    Ok(())
}

fn replace(node: &mut Node, parts: &[Part], value: &Node) -> Result<(), String> {
    let Some((part, rest)) = parts.split_first() else {
        *node = value.clone();
        return Ok(());
    };
    match part {
        Part::Key { key, optional } => {
            let last = rest.is_empty();
            let optional = *optional;
            let map = map_of(node, key)?;
            if !map.contains_key(key) {
                if !optional && !last {
                    return Err(missing_key(map, key));
                }
                if !optional {
                    return Err(format!("{}; write '{key}?' to add it", missing_key(map, key)));
                }
                map.insert(
                    key.clone(),
                    Entry {
                        key_at: value.at,
                        node: container_for(rest),
                    },
                );
            }
            let entry = map.get_mut(key).ok_or_else(|| format!("no key '{key}'"))?;
            replace(&mut entry.node, rest, value)
        }
        Part::Append => {
            list_of(node, "-")?.push(value.clone());
            Ok(())
        }
        Part::Index(index) => {
            let list = list_of(node, &index.to_string())?;
            let at = position(list, *index)?;
            replace(&mut list[at], rest, value)
        }
        Part::Match {
            key,
            value: wanted,
            optional,
        } => {
            let list = list_of(node, &format!("{key}={wanted}"))?;
            let at = match find(list, key, wanted) {
                Ok(at) => at,
                Err(Found::None) if *optional => {
                    let mut map = Map::new();
                    map.insert(
                        key.clone(),
                        Entry {
                            key_at: value.at,
                            node: Node::string(wanted),
                        },
                    );
                    list.push(Node::new(Value::Map(map)));
                    list.len() - 1
                }
                Err(found) => return Err(found.text(key, wanted)),
            };
            replace(&mut list[at], rest, value)
        }
    }
}

fn remove(node: &mut Node, parts: &[Part]) -> Result<(), String> {
    let Some((part, rest)) = parts.split_first() else {
        return Err("the whole document cannot be removed".to_owned());
    };
    match part {
        Part::Key { key, optional } => {
            let map = map_of(node, key)?;
            match map.get_mut(key) {
                None if *optional => Ok(()),
                None => Err(missing_key(map, key)),
                Some(_) if rest.is_empty() => {
                    map.shift_remove(key);
                    Ok(())
                }
                Some(entry) => remove(&mut entry.node, rest),
            }
        }
        Part::Append => Err("nothing is behind the last element".to_owned()),
        Part::Index(index) => {
            let list = list_of(node, &index.to_string())?;
            let at = position(list, *index)?;
            remove_element(list, at, rest)
        }
        Part::Match { key, value, optional } => {
            let list = list_of(node, &format!("{key}={value}"))?;
            match find(list, key, value) {
                Ok(at) => remove_element(list, at, rest),
                Err(Found::None) if *optional => Ok(()),
                Err(found) => Err(found.text(key, value)),
            }
        }
    }
}

fn remove_element(list: &mut Vec<Node>, at: usize, rest: &[Part]) -> Result<(), String> {
    if rest.is_empty() {
        list.remove(at);
        return Ok(());
    }
    remove(&mut list[at], rest)
}

/// What an optional part becomes: a list when the next part looks into one.
fn container_for(rest: &[Part]) -> Node {
    Node::new(match rest.first() {
        Some(Part::Append | Part::Index(_) | Part::Match { .. }) => Value::List(Vec::new()),
        Some(Part::Key { .. }) => Value::Map(Map::new()),
        None => Value::Null,
    })
}

fn map_of<'n>(node: &'n mut Node, part: &str) -> Result<&'n mut Map, String> {
    let kind = node.kind();
    match &mut node.value {
        Value::Map(map) => Ok(map),
        _ => Err(format!("'{part}' needs a map, found {kind}")),
    }
}

fn list_of<'n>(node: &'n mut Node, part: &str) -> Result<&'n mut Vec<Node>, String> {
    let kind = node.kind();
    match &mut node.value {
        Value::List(list) => Ok(list),
        _ => Err(format!("'{part}' needs a list, found {kind}")),
    }
}

fn missing_key(map: &Map, key: &str) -> String {
    let known: Vec<&str> = map.keys().map(String::as_str).collect();
    format!(
        "no key '{key}', only {}",
        if known.is_empty() {
            "an empty map".to_owned()
        } else {
            known.join(", ")
        }
    )
}

fn position(list: &[Node], index: i64) -> Result<usize, String> {
    let len = i64::try_from(list.len()).unwrap_or(i64::MAX);
    let at = if index < 0 { index + len } else { index };
    usize::try_from(at)
        .ok()
        .filter(|at| *at < list.len())
        .ok_or_else(|| format!("no element {index}, the list has {len}"))
}

enum Found {
    None,
    Several(usize),
}

impl Found {
    fn text(&self, key: &str, value: &str) -> String {
        match self {
            Self::None => format!("no element with {key} '{value}'"),
            Self::Several(n) => format!("{n} elements with {key} '{value}', expected one"),
        }
    }
}

fn find(list: &[Node], key: &str, value: &str) -> Result<usize, Found> {
    let fits = |node: &Node| {
        node.get(key)
            .and_then(Node::scalar_text)
            .is_some_and(|text| text == value)
    };
    let found: Vec<usize> = (0..list.len()).filter(|&i| fits(&list[i])).collect();
    match found[..] {
        [one] => Ok(one),
        [] => Err(Found::None),
        _ => Err(Found::Several(found.len())),
    }
}
