//! Walking through a document: each question is answered or becomes a problem, and what was not asked for is unknown.

use std::borrow::Cow;

use crate::ip::{Range, RangeError};
use crate::problem::{Problem, code};
use crate::variables;
use stolos_document::{Located, Map, Node, Place, Value};

/// Collects problems of one document.
pub(crate) struct Reader {
    pub(crate) document: Cow<'static, str>,
    pub(crate) problems: Vec<Problem>,
}

impl Reader {
    pub(crate) fn new(document: impl Into<Cow<'static, str>>) -> Self {
        Self {
            document: document.into(),
            problems: Vec::new(),
        }
    }

    pub(crate) fn problem(&mut self, place: &Place, code: u32, text: impl Into<String>) {
        self.problem_with_hint(place, code, text, None);
    }

    pub(crate) fn problem_with_hint(
        &mut self,
        place: &Place,
        code: u32,
        text: impl Into<String>,
        hint: Option<String>,
    ) {
        self.problems.push(Problem {
            document: self.document.clone(),
            place: place.clone(),
            text: text.into(),
            hint,
            code,
        });
    }

    fn wrong_type(&mut self, place: &Place, node: &Node, want: &str) {
        let key = place.path.rsplit('.').next().unwrap_or_default();
        self.problem(
            place,
            code::WRONG_TYPE,
            format!("property '{key}' must be {want}, not {}", node.kind()),
        );
    }

    /// A scalar as text. Variables are resolved where values are free-form only, never in names and numbers.
    pub(crate) fn text(&mut self, node: &Node, place: Place) -> Option<Located<String>> {
        let Some(value) = node.scalar_text() else {
            self.wrong_type(&place, node, "a string");
            return None;
        };
        if variables::has_reference(&value) {
            self.problem(
                &place,
                code::BAD_MANIFEST,
                format!("the variable {value} cannot be used here; write the value itself"),
            );
            return None;
        }
        let value = variables::unescape(&value).into_owned();
        Some(Located { value, place })
    }

    /// A mapping of texts.
    pub(crate) fn text_map(&mut self, node: &Node, place: &Place) -> indexmap::IndexMap<String, String> {
        let Some(map) = node.as_map() else {
            self.wrong_type(place, node, "a map");
            return indexmap::IndexMap::new();
        };
        map.iter()
            .filter_map(|(key, entry)| {
                let text = self.text(&entry.node, place.key(key, entry.node.at))?;
                Some((key.clone(), text.value))
            })
            .collect()
    }

    pub(crate) fn range(&mut self, node: &Node, place: Place) -> Option<Located<Range>> {
        let text = self.text(node, place)?;
        match text.value.parse() {
            Ok(value) => Some(Located {
                value,
                place: text.place,
            }),
            Err(err) => {
                let err: RangeError = err;
                self.problem(&text.place, code::BAD_MANIFEST, err.to_string());
                None
            }
        }
    }

    /// Names must differ.
    pub(crate) fn unique<'a>(&mut self, what: &str, names: impl Iterator<Item = (&'a str, &'a Place)>) {
        let mut seen = std::collections::BTreeMap::new();
        for (name, place) in names {
            if let Some(first) = seen.insert(name, place) {
                let line = first.at.line;
                self.problem(
                    place,
                    code::BAD_MANIFEST,
                    format!("duplicate {what} name '{name}', first used in line {line}"),
                );
            }
        }
    }
}

/// The fields of one mapping.
pub(crate) struct Fields<'n> {
    map: &'n Map,
    pub(crate) place: Place,
    asked: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    pub(crate) fn open(node: &'n Node, place: Place, r: &mut Reader) -> Option<Self> {
        let Some(map) = node.as_map() else {
            if place.path.is_empty() {
                r.problem(
                    &place,
                    code::WRONG_TYPE,
                    format!("must be a map, not {}", node.kind()),
                );
            } else {
                r.wrong_type(&place, node, "a map");
            }
            return None;
        };
        Some(Self {
            map,
            place,
            asked: Vec::new(),
        })
    }

    /// The value of a key, `null` included.
    pub(crate) fn present(&mut self, key: &'static str) -> Option<(&'n Node, Place)> {
        self.asked.push(key);
        let entry = self.map.get(key)?;
        Some((&entry.node, self.place.key(key, entry.node.at)))
    }

    /// The value of a key; `null` counts as absent.
    pub(crate) fn raw(&mut self, key: &'static str) -> Option<(&'n Node, Place)> {
        self.present(key).filter(|(node, _)| !node.is_null())
    }

    fn missing(&self, key: &str, r: &mut Reader) {
        r.problem(
            &self.place,
            code::MISSING_FIELD,
            format!("required property '{key}' was not specified"),
        );
    }

    pub(crate) fn text(&mut self, key: &'static str, r: &mut Reader) -> Option<Located<String>> {
        let (node, place) = self.raw(key)?;
        r.text(node, place)
    }

    /// A text that has to be there and not to be empty; an empty one stands in when it is not.
    pub(crate) fn required_text(&mut self, key: &'static str, r: &mut Reader) -> Located<String> {
        let Some((node, place)) = self.raw(key) else {
            self.missing(key, r);
            return Located {
                value: String::new(),
                place: self.place.clone(),
            };
        };
        let fallback = place.clone();
        let Some(text) = r.text(node, place) else {
            return Located {
                value: String::new(),
                place: fallback,
            };
        };
        if text.is_empty() {
            r.problem(
                &text.place,
                code::WRONG_TYPE,
                format!("property '{key}' must not be empty"),
            );
        }
        text
    }

    pub(crate) fn number(&mut self, key: &'static str, r: &mut Reader) -> Option<Located<u64>> {
        let (node, place) = self.raw(key)?;
        match &node.value {
            Value::Number(number) if number.as_u64().is_some() => Some(Located {
                value: number.as_u64()?,
                place,
            }),
            Value::Number(_) => {
                r.problem(
                    &place,
                    code::WRONG_TYPE,
                    format!("property '{key}' must be a whole number, 0 or more"),
                );
                None
            }
            _ => {
                r.wrong_type(&place, node, "an integer");
                None
            }
        }
    }

    pub(crate) fn required_number(&mut self, key: &'static str, r: &mut Reader) -> Option<Located<u64>> {
        if self.map.get(key).is_none_or(|entry| entry.node.is_null()) {
            self.asked.push(key);
            self.missing(key, r);
            return None;
        }
        self.number(key, r)
    }

    pub(crate) fn flag(&mut self, key: &'static str, r: &mut Reader) -> Option<bool> {
        let (node, place) = self.raw(key)?;
        match node.value {
            Value::Bool(flag) => Some(flag),
            _ => {
                r.wrong_type(&place, node, "true or false");
                None
            }
        }
    }

    pub(crate) fn list(&mut self, key: &'static str, r: &mut Reader) -> Vec<(&'n Node, Place)> {
        let Some((node, place)) = self.raw(key) else {
            return Vec::new();
        };
        let Some(list) = node.as_list() else {
            r.wrong_type(&place, node, "a list");
            return Vec::new();
        };
        list.iter()
            .enumerate()
            .map(|(i, node)| (node, place.index(i, node.at)))
            .collect()
    }

    pub(crate) fn required_list(&mut self, key: &'static str, r: &mut Reader) -> Vec<(&'n Node, Place)> {
        if self.map.get(key).is_none_or(|entry| entry.node.is_null()) {
            self.missing(key, r);
        }
        self.list(key, r)
    }

    pub(crate) fn texts(&mut self, key: &'static str, r: &mut Reader) -> Vec<Located<String>> {
        self.list(key, r)
            .into_iter()
            .filter_map(|(node, place)| r.text(node, place))
            .collect()
    }

    /// A mapping that is not looked into; an empty one when it is not there.
    pub(crate) fn object(&mut self, key: &'static str, r: &mut Reader) -> Node {
        self.optional_object(key, r)
            .unwrap_or_else(|| Node::new(Value::Map(Map::new())))
    }

    pub(crate) fn optional_object(&mut self, key: &'static str, r: &mut Reader) -> Option<Node> {
        let (node, place) = self.raw(key)?;
        if node.as_map().is_none() {
            r.wrong_type(&place, node, "a map");
            return None;
        }
        Some(node.clone())
    }

    /// Reports keys that nobody asked for. `refused` are keys that are known but not supported, with what to say.
    pub(crate) fn close(self, refused: &[(&'static str, &'static str)], r: &mut Reader) {
        for (key, entry) in self.map {
            if self.asked.contains(&key.as_str()) {
                continue;
            }
            let place = self.place.key(key, entry.key_at);
            if let Some((_, text)) = refused.iter().find(|(refused, _)| refused == key) {
                r.problem(&place, code::EXTRA_FIELD, *text);
                continue;
            }
            let hint = similar(key, self.asked.iter().copied()).map(|name| format!("did you mean '{name}'?"));
            r.problem_with_hint(
                &place,
                code::EXTRA_FIELD,
                format!("unknown property '{key}'"),
                hint,
            );
        }
    }
}

/// The name that was probably meant: the closest one, if it is close.
pub(crate) fn similar<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).clamp(1, 3);
    known
        .map(|known| (distance(name, known), known))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, name)| name)
}

/// Edit distance; two neighboring letters in the wrong order count once.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(x != y))
                .min(last[j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}
