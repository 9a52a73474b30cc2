//! Documents that people write: YAML and JSON.
//!
//! Owns: the document tree with its positions ([`Node`]), the one reader of YAML, the one writer, typed values from either
//! format, and the words of every error in them. Never does: I/O.
//!
//! Invariants:
//! - the same text has the same values everywhere: add-ons, manifests, cloud configs, profiles, configuration files, ops
//!   files and kubeconfigs are read by [`parse`] and its kin, by the rules of [`scalar`];
//! - what [`write()`] writes reads as what it was, here and with the parsers of YAML 1.1 and 1.2 that `kubectl`, BOSH and
//!   scripts use;
//! - an error says line, column and path (`plans[0].worker_instances`), in words that name neither a type of this program
//!   nor a function of a library, and quotes no value;
//! - a text costs what it is long: aliases, depth and size are bounded ([`limits`]).

mod de;
mod error;
pub mod foreign;
mod json;
pub mod limits;
mod node;
mod read;
pub mod scalar;
mod write;

pub use error::{Error, in_words};
pub use json::{from_json, from_value};
pub use node::{At, Entry, Located, Map, Node, Place, Value};
pub use read::{Duplicates, documents, parse, parse_with};
pub use write::{scalar as scalar_text, to_yaml, write, write_entry, write_list};

/// Reads one YAML document as a value. An empty document is `null`, which is an empty list or map where one is wanted.
///
/// A string may be written like a number or a boolean where a string is wanted: `kubernetes_version: 1.30` is `1.30`.
///
/// # Errors
/// The text is not one YAML document, or not such a value.
pub fn from_yaml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Error> {
    from_node(&read::single(text, Duplicates::Refuse, true)?)
}

/// Reads a value from a text that is YAML, or JSON that is no YAML: with escaped surrogates, for one.
///
/// # Errors
/// As [`from_yaml`] and [`from_json`].
pub fn from_text<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Error> {
    match read::single(text, Duplicates::Refuse, true) {
        Ok(node) => from_node(&node),
        Err(_) if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => from_json(text.as_bytes()),
        Err(error) => Err(error),
    }
}

/// As [`from_yaml`], of bytes.
///
/// # Errors
/// As [`from_yaml`], and when the bytes are not UTF-8.
pub fn from_yaml_bytes<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    from_yaml(read::utf8(bytes)?)
}

/// A node of a YAML document as a value.
///
/// # Errors
/// The node is not such a value.
pub fn from_node<T: serde::de::DeserializeOwned>(node: &Node) -> Result<T, Error> {
    de::read(node, de::Form::Yaml)
}
