//! `((variables))`: finding references and putting values in their place.
//!
//! A reference is `((name))`, `((name.key.key))` for a part of a value, `((!name))` (the mark is ignored), and the name may
//! be absolute (`((/dir/name))`). Names consist of letters, digits and `-_/`, and of the placeholder `{instance}` of
//! families (design note 0004); anything else in double parentheses, such as shell arithmetic, is text.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use stolos_document::{Node, Place, Value};

/// A variable that a document names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Name as written, without the parts: `ca` of `((ca.certificate))`.
    pub name: String,
    /// Parts of the value: `["certificate"]`.
    pub parts: Vec<String>,
    /// Where.
    pub place: Place,
}

/// Why values could not be put in place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nobody knows the variable.
    #[error("expected to find variable '{name}' ({path})")]
    Missing {
        /// Name.
        name: String,
        /// Where it is used.
        path: String,
    },
    /// The value has no such part.
    #[error("variable '{name}' has no '{part}' ({path})")]
    NoPart {
        /// Name.
        name: String,
        /// The first part that is not there.
        part: String,
        /// Where it is used.
        path: String,
    },
    /// A list or a map cannot become part of a string.
    #[error("variable '{name}' is {kind} and cannot be put into a string ({path})")]
    NotScalar {
        /// Name.
        name: String,
        /// What it is.
        kind: &'static str,
        /// Where it is used.
        path: String,
    },
}

/// What stands for an instance's own values (design note 0004). The address is not allowed in references, but who
/// writes it there has to be told that there is no such variable.
const PLACEHOLDERS: [&str; 2] = ["{instance}", "{address}"];

/// One reference in a text.
struct Token<'t> {
    start: usize,
    end: usize,
    name: &'t str,
    parts: Vec<&'t str>,
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(open) = text[from..].find("((") {
        let start = from + open;
        let inside = start + 2;
        // In "(((a))" the reference is the inner one.
        from = start + 1;
        let Some(len) = text[inside..].find("))") else {
            break;
        };
        let full = &text[inside..inside + len];
        let path = full.strip_prefix('!').unwrap_or(full);
        let valid = |c: char| c.is_alphanumeric() || "-_/.".contains(c);
        if path.is_empty()
            || !PLACEHOLDERS
                .iter()
                .fold(path.to_owned(), |path, placeholder| {
                    path.replace(placeholder, "i")
                })
                .chars()
                .all(valid)
            || path.split('.').any(str::is_empty)
        {
            continue;
        }
        let mut parts = path.split('.');
        let name = parts.next().unwrap_or_default();
        let end = inside + len + 2;
        found.push(Token {
            start,
            end,
            name,
            parts: parts.collect(),
        });
        from = end;
    }
    found
}

/// Whether a text has a reference.
#[must_use]
pub fn has_reference(text: &str) -> bool {
    !tokens(text).is_empty()
}

/// All references in a document, keys of mappings included, in the order of the document.
#[must_use]
pub fn references(node: &Node) -> Vec<Reference> {
    let mut found = Vec::new();
    collect(
        node,
        &Place {
            at: node.at,
            path: String::new(),
        },
        &mut found,
    );
    found
}

fn collect(node: &Node, place: &Place, found: &mut Vec<Reference>) {
    let mut add = |text: &str, place: &Place| {
        found.extend(tokens(text).into_iter().map(|token| Reference {
            name: token.name.to_owned(),
            parts: token.parts.iter().map(|&part| part.to_owned()).collect(),
            place: place.clone(),
        }));
    };
    match &node.value {
        Value::Text(text) => add(text, place),
        Value::List(list) => {
            for (i, node) in list.iter().enumerate() {
                collect(node, &place.index(i, node.at), found);
            }
        }
        Value::Map(map) => {
            for (key, entry) in map {
                if key.contains("((") {
                    found.extend(tokens(key).into_iter().map(|token| Reference {
                        name: token.name.to_owned(),
                        parts: token.parts.iter().map(|&part| part.to_owned()).collect(),
                        place: place.key(key, entry.key_at),
                    }));
                }
                collect(&entry.node, &place.key(key, entry.node.at), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The names of all variables that a value refers to, without parts.
#[must_use]
pub fn names(value: &Json) -> BTreeSet<String> {
    fn walk(value: &Json, found: &mut BTreeSet<String>) {
        match value {
            Json::String(text) => found.extend(tokens(text).into_iter().map(|token| token.name.to_owned())),
            Json::Array(list) => list.iter().for_each(|value| walk(value, found)),
            Json::Object(map) => {
                for (key, value) in map {
                    found.extend(tokens(key).into_iter().map(|token| token.name.to_owned()));
                    walk(value, found);
                }
            }
            Json::Null | Json::Bool(_) | Json::Number(_) => {}
        }
    }
    let mut found = BTreeSet::new();
    walk(value, &mut found);
    found
}

/// Puts values in place of references. `value_of` is asked with the name without parts, possibly several times for
/// one name. A string that is one reference takes the type of the value; in longer strings values must be scalars.
/// Values are not looked into for further references.
///
/// The result holds secrets in clear: it must not be stored or logged.
///
/// # Errors
/// All references that could not be resolved. No error text holds a value.
pub fn interpolate(value: &Json, mut value_of: impl FnMut(&str) -> Option<Json>) -> Result<Json, Vec<Error>> {
    let mut errors = Vec::new();
    let result = fill(value, "", &mut value_of, &mut errors);
    if errors.is_empty() {
        Ok(result)
    } else {
        Err(errors)
    }
}

fn fill(
    value: &Json,
    path: &str,
    value_of: &mut dyn FnMut(&str) -> Option<Json>,
    errors: &mut Vec<Error>,
) -> Json {
    match value {
        Json::String(text) => fill_text(text, path, value_of, errors),
        Json::Array(list) => list
            .iter()
            .enumerate()
            .map(|(i, value)| fill(value, &format!("{path}[{i}]"), value_of, errors))
            .collect(),
        Json::Object(map) => Json::Object(
            map.iter()
                .map(|(key, value)| {
                    let path = if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    };
                    let new_key = match fill_text(key, &path, value_of, errors) {
                        Json::String(text) => text,
                        other => other.to_string(),
                    };
                    (new_key, fill(value, &path, value_of, errors))
                })
                .collect(),
        ),
        Json::Null | Json::Bool(_) | Json::Number(_) => value.clone(),
    }
}

fn fill_text(
    text: &str,
    path: &str,
    value_of: &mut dyn FnMut(&str) -> Option<Json>,
    errors: &mut Vec<Error>,
) -> Json {
    let tokens = tokens(text);
    let mut result = String::new();
    let mut from = 0;
    for token in &tokens {
        let value = match part_of(token, path, value_of) {
            Ok(value) => value,
            Err(err) => {
                errors.push(err);
                continue;
            }
        };
        if token.start == 0 && token.end == text.len() {
            return value;
        }
        result.push_str(&text[from..token.start]);
        from = token.end;
        match &value {
            Json::String(text) => result.push_str(text),
            Json::Number(_) | Json::Bool(_) => result.push_str(&value.to_string()),
            Json::Null | Json::Array(_) | Json::Object(_) => errors.push(Error::NotScalar {
                name: token.name.to_owned(),
                kind: Node::from(value).kind(),
                path: path.to_owned(),
            }),
        }
    }
    result.push_str(&text[from..]);
    Json::String(result)
}

fn part_of(
    token: &Token<'_>,
    path: &str,
    value_of: &mut dyn FnMut(&str) -> Option<Json>,
) -> Result<Json, Error> {
    let mut value = value_of(token.name).ok_or_else(|| Error::Missing {
        name: token.name.to_owned(),
        path: path.to_owned(),
    })?;
    for part in &token.parts {
        let inner = match &mut value {
            Json::Object(map) => map.shift_remove(*part),
            Json::Array(list) => part
                .parse::<usize>()
                .ok()
                .filter(|i| *i < list.len())
                .map(|i| list.swap_remove(i)),
            _ => None,
        };
        value = inner.ok_or_else(|| Error::NoPart {
            name: token.name.to_owned(),
            part: (*part).to_owned(),
            path: path.to_owned(),
        })?;
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn values(name: &str) -> Option<Json> {
        Some(match name {
            "pw" => json!("s3cret"),
            "port" => json!(8443),
            "/abs/ca" => json!({"certificate": "PEM", "chain": ["a", "b"]}),
            _ => return None,
        })
    }

    #[test]
    fn values_take_the_place_of_references() {
        for (text, expect) in [
            ("((pw))", json!("s3cret")),
            ("((!port))", json!(8443)),
            ("https://u:((pw))@h:((port))/", json!("https://u:s3cret@h:8443/")),
            ("((/abs/ca.certificate))", json!("PEM")),
            ("((/abs/ca.chain.1))", json!("b")),
            ("(((pw)))", json!("(s3cret)")),
            ("$((1 + 2)) ((", json!("$((1 + 2)) ((")),
            ("((.pw)) (())", json!("((.pw)) (())")),
            ("((p{w}))", json!("((p{w}))")),
        ] {
            assert_eq!(interpolate(&json!(text), values), Ok(expect), "{text}");
        }
        let nested = json!({"a": [{"((pw))": "((port))"}]});
        assert_eq!(interpolate(&nested, values), Ok(json!({"a": [{"s3cret": 8443}]})));
    }

    #[test]
    fn all_errors_are_reported_without_values() {
        let value =
            json!({"a": "((nobody))", "b": ["x((/abs/ca))"], "c": "((pw.part))", "d": "((/abs/ca.no.way))"});
        let errors = interpolate(&value, values).unwrap_err();
        let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "expected to find variable 'nobody' (a)",
                "variable '/abs/ca' is a map and cannot be put into a string (b[0])",
                "variable 'pw' has no 'part' (c)",
                "variable '/abs/ca' has no 'no' (d)",
            ]
        );
    }

    #[test]
    fn names_are_found_everywhere() {
        let found = names(&json!({"x((k))": [" ((a.b)) ((c)) "], "y": 1, "z": "((c_{instance}.key))"}));
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            ["a", "c", "c_{instance}", "k"]
        );
    }
}
