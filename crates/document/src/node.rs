//! The document tree: what YAML and JSON can say, with the place of each node.

use std::ops::Deref;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize, Serializer};

/// Line and column in a document, both from 1; 0 means that the node was not read from a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct At {
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

/// Where something stands in a document, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Line and column.
    pub at: At,
    /// `instance_groups[0].jobs[1].name`; empty for the whole document.
    pub path: String,
}

impl Place {
    /// The place of the value below `key`.
    #[must_use]
    pub fn key(&self, key: &str, at: At) -> Self {
        let path = if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        };
        Self { at, path }
    }

    /// The place of the element `index`.
    #[must_use]
    pub fn index(&self, index: usize, at: At) -> Self {
        Self {
            at,
            path: format!("{}[{index}]", self.path),
        }
    }
}

/// A value and where it was written, so that later checks can point at it.
#[derive(Clone, Debug, Default)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it was written.
    pub place: Place,
}

impl<T> Deref for Located<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// One value of a document with its place. Two nodes are equal when their values are, wherever they stand.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Where it begins.
    pub at: At,
    /// The scalar as written, where it says more than the value: `version: 1.10` must not become 1.1.
    pub(crate) written: Option<Written>,
}

/// A scalar that is no string, as written.
#[derive(Clone, Debug)]
pub(crate) enum Written {
    /// Anything but a float: `0755`, `yes`.
    Plain(Box<str>),
    /// A float, though its value may be whole: `1.10`, `2.0`.
    Float(Box<str>),
    /// An integer that does not fit into 64 bits; the node's value is no more than near to it.
    Wide(Box<str>),
}

impl Written {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Plain(text) | Self::Float(text) | Self::Wide(text) => text,
        }
    }
}

/// What a node can be.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing.
    #[default]
    Null,
    /// A boolean.
    Bool(bool),
    /// An integer or a finite float.
    Number(serde_json::Number),
    /// A string.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the document.
    Map(Map),
}

/// A mapping, in the order of the document.
pub type Map = IndexMap<String, Entry>;

/// The value of one key of a mapping.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Where the key stands.
    pub key_at: At,
    /// The value.
    pub node: Node,
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.node == other.node
    }
}

impl Node {
    /// A node that was not read from a text.
    #[must_use]
    pub fn new(value: Value) -> Self {
        Self {
            value,
            at: At::default(),
            written: None,
        }
    }

    /// A string node that was not read from a text.
    #[must_use]
    pub fn string(text: impl Into<String>) -> Self {
        Self::new(Value::Text(text.into()))
    }

    /// A node of another value at the same place. How a number was written stays with the number only.
    #[must_use]
    pub fn with_value(&self, value: Value) -> Self {
        let written = self.written.clone().filter(|_| value == self.value);
        Self {
            value,
            at: self.at,
            written,
        }
    }

    /// The value of a key when this is a mapping that has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.as_map()?.get(key).map(|entry| &entry.node)
    }

    /// The mapping, when it is one.
    #[must_use]
    pub fn as_map(&self) -> Option<&Map> {
        match &self.value {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The elements, when it is a sequence.
    #[must_use]
    pub fn as_list(&self) -> Option<&[Node]> {
        match &self.value {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    /// The text, when it is a string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether it is `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.value == Value::Null
    }

    /// A scalar as text: strings, booleans and integers as their value is, floats as they were written, so that a version
    /// keeps its zeros; `None` for the rest.
    #[must_use]
    pub fn scalar_text(&self) -> Option<String> {
        match &self.value {
            Value::Text(text) => Some(text.clone()),
            Value::Number(number) => Some(match &self.written {
                Some(Written::Float(text) | Written::Wide(text)) => text.to_string(),
                Some(Written::Plain(_)) | None => number.to_string(),
            }),
            Value::Bool(flag) => Some(flag.to_string()),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// What kind of value this is, for error messages.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(number) if number.is_f64() => "a number",
            Value::Number(_) => "an integer",
            Value::Text(_) => "a string",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }

    /// The same without places.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(flag) => (*flag).into(),
            Value::Number(number) => serde_json::Value::Number(number.clone()),
            Value::Text(text) => text.clone().into(),
            Value::List(list) => list.iter().map(Node::to_json).collect(),
            Value::Map(map) => serde_json::Value::Object(
                map.iter()
                    .map(|(key, entry)| (key.clone(), entry.node.to_json()))
                    .collect(),
            ),
        }
    }
}

impl From<serde_json::Value> for Node {
    fn from(json: serde_json::Value) -> Self {
        Self::new(match json {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(flag) => Value::Bool(flag),
            serde_json::Value::Number(number) => Value::Number(number),
            serde_json::Value::String(text) => Value::Text(text),
            serde_json::Value::Array(list) => Value::List(list.into_iter().map(Node::from).collect()),
            serde_json::Value::Object(map) => Value::Map(
                map.into_iter()
                    .map(|(key, value)| {
                        (
                            key,
                            Entry {
                                key_at: At::default(),
                                node: Node::from(value),
                            },
                        )
                    })
                    .collect(),
            ),
        })
    }
}

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_json().serialize(serializer)
    }
}
