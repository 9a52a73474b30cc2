//! Documents that code builds: the type keeps text apart from references to variables.
//!
//! Every string that becomes a [`Doc`] is escaped, keys of maps included, so text of people is data wherever it is put. Only
//! [`Doc::variable`] and [`Doc::part`] make a reference (design note 0019).

use serde::Serialize;
use serde_json::{Map, Value as Json};

use crate::variables::{escape, is_one_reference};

/// A value of a document: what it holds is literal, but for the references that [`Doc::variable`] and [`Doc::part`] made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Doc(Json);

/// A map in the order of its entries: `doc_map! {"key" => value, …}`, each value anything that becomes a [`Doc`].
#[macro_export]
macro_rules! doc_map {
    ($($key:expr => $value:expr),* $(,)?) => {
        $crate::build::Doc::map([$(($key, $crate::build::Doc::from($value))),*])
    };
}

impl Doc {
    /// A reference to a whole variable.
    ///
    /// # Panics
    /// When `name` cannot be the name of a variable: names come from code, never from people.
    #[must_use]
    pub fn variable(name: &str) -> Self {
        Self::reference(name.to_owned())
    }

    /// A reference to a part of a variable, such as the `certificate` of a certificate.
    ///
    /// # Panics
    /// As [`Doc::variable`].
    #[must_use]
    pub fn part(name: &str, part: &str) -> Self {
        Self::reference(format!("{name}.{part}"))
    }

    fn reference(path: String) -> Self {
        let text = format!("(({path}))");
        assert!(is_one_reference(&text), "`{path}` cannot name a variable");
        Self(Json::String(text))
    }

    /// A map in the order of its entries; a later entry takes the place of an earlier one with the same key.
    pub fn map<K: AsRef<str>, V: Into<Self>>(entries: impl IntoIterator<Item = (K, V)>) -> Self {
        let entries = entries.into_iter();
        let entries = entries.map(|(key, value)| (escape(key.as_ref()).into_owned(), value.into().0));
        Self(Json::Object(entries.collect()))
    }

    /// Whatever serde makes of a value, all of it literal.
    ///
    /// # Panics
    /// When serde cannot make JSON of it, as of a map whose keys are no strings.
    pub fn literal(value: &impl Serialize) -> Self {
        let json = serde_json::to_value(value).expect("values of manifests can be written as JSON");
        Self(escape_all(json))
    }

    /// Sets the value of a key of a map.
    ///
    /// # Panics
    /// When this is no map.
    pub fn set(&mut self, key: &str, value: impl Into<Self>) {
        let map = self.0.as_object_mut().expect("only maps have keys");
        map.insert(escape(key).into_owned(), value.into().0);
    }

    /// The document as JSON, in which references are `((text))`.
    #[must_use]
    pub fn as_json(&self) -> &Json {
        &self.0
    }
}

fn escape_all(json: Json) -> Json {
    match json {
        Json::String(text) => Json::String(escape(&text).into_owned()),
        Json::Array(list) => Json::Array(list.into_iter().map(escape_all).collect()),
        Json::Object(map) => {
            let entries = map.into_iter();
            let escaped: Map<String, Json> = entries
                .map(|(key, value)| (escape(&key).into_owned(), escape_all(value)))
                .collect();
            Json::Object(escaped)
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => json,
    }
}

impl From<&str> for Doc {
    fn from(text: &str) -> Self {
        Self(Json::String(escape(text).into_owned()))
    }
}

impl From<&String> for Doc {
    fn from(text: &String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<String> for Doc {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<bool> for Doc {
    fn from(flag: bool) -> Self {
        Self(Json::Bool(flag))
    }
}

impl From<u32> for Doc {
    fn from(number: u32) -> Self {
        Self(Json::from(number))
    }
}

impl From<u64> for Doc {
    fn from(number: u64) -> Self {
        Self(Json::from(number))
    }
}

impl<T: Into<Self>> From<Vec<T>> for Doc {
    fn from(list: Vec<T>) -> Self {
        list.into_iter().collect()
    }
}

impl<T: Into<Self>, const N: usize> From<[T; N]> for Doc {
    fn from(list: [T; N]) -> Self {
        list.into_iter().collect()
    }
}

impl<T: Into<Self>> FromIterator<T> for Doc {
    fn from_iter<I: IntoIterator<Item = T>>(list: I) -> Self {
        Self(Json::Array(
            list.into_iter().map(|value| value.into().0).collect(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::variables::{interpolate, names};

    #[test]
    fn only_references_are_references() {
        let hostile = "((/stolos/token_key.private_key))";
        let flags = BTreeMap::from([(hostile, hostile)]);
        let mut doc = doc_map! {
            "ca" => Doc::part("kubernetes_ca", "certificate"),
            "text" => hostile,
            "list" => [hostile.to_owned()],
            "flags" => Doc::map(flags.clone()),
            "whole" => Doc::literal(&flags),
        };
        doc.set(hostile, 1_u32);
        let found: Vec<String> = names(doc.as_json()).into_iter().collect();
        assert_eq!(found, ["kubernetes_ca"]);
        let resolved = interpolate(doc.as_json(), |_| Some(json!({"certificate": "PEM"})));
        let expect = json!({
            "ca": "PEM", "text": hostile, "list": [hostile], "flags": {hostile: hostile}, "whole": {hostile: hostile},
            hostile: 1,
        });
        assert_eq!(resolved, Ok(expect));
    }

    #[test]
    #[should_panic(expected = "cannot name a variable")]
    fn a_name_from_outside_is_no_name() {
        let _ = Doc::variable("x))((/stolos/token_key");
    }
}
