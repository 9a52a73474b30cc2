//! `((variables))`: finding references and putting values in their place.
//!
//! A reference is `((name))`, `((name.key.key))` for a part of a value, `((!name))` (the mark is ignored), and the name may
//! be absolute (`((/dir/name))`). Names consist of letters, digits and `-_/`, and of the placeholder `{instance}` of
//! families (design note 0004); anything else in double parentheses, such as shell arithmetic, is text.
//!
//! `((!))` stands for two opening parentheses. Text from people who may not name variables is written with it
//! ([`escape`]), so that nothing in it can be a reference (design note 0019).

use std::borrow::Cow;
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

/// Stands for [`OPEN`] in a document.
const ESCAPED_OPEN: &str = "((!))";
/// What a reference begins with.
const OPEN: &str = "((";

/// One reference in a text, or one [`ESCAPED_OPEN`].
struct Token<'t> {
    start: usize,
    end: usize,
    kind: TokenKind<'t>,
}

enum TokenKind<'t> {
    Open,
    Reference { name: &'t str, parts: Vec<&'t str> },
}

/// The references in a text.
fn references_in(text: &str) -> impl Iterator<Item = (&str, Vec<&str>)> {
    tokens(text).into_iter().filter_map(|token| match token.kind {
        TokenKind::Reference { name, parts } => Some((name, parts)),
        TokenKind::Open => None,
    })
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(open) = text[from..].find(OPEN) {
        let start = from + open;
        if text[start..].starts_with(ESCAPED_OPEN) {
            from = start + ESCAPED_OPEN.len();
            found.push(Token {
                start,
                end: from,
                kind: TokenKind::Open,
            });
            continue;
        }
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
            kind: TokenKind::Reference {
                name,
                parts: parts.collect(),
            },
        });
        from = end;
    }
    found
}

/// Whether a text has a reference.
#[must_use]
pub fn has_reference(text: &str) -> bool {
    references_in(text).next().is_some()
}

/// Whether a text is one reference and nothing else.
pub(crate) fn is_one_reference(text: &str) -> bool {
    let whole = |token: &Token<'_>| token.start == 0 && token.end == text.len();
    matches!(tokens(text).as_slice(), [token @ Token { kind: TokenKind::Reference { .. }, .. }] if whole(token))
}

/// Writes a text so that [`interpolate`] and [`unescape`] give it back byte for byte, whatever it holds.
#[must_use]
pub fn escape(text: &str) -> Cow<'_, str> {
    if text.contains(OPEN) {
        Cow::Owned(text.replace(OPEN, ESCAPED_OPEN))
    } else {
        Cow::Borrowed(text)
    }
}

/// The text that was written with [`escape`]; references stay as they are.
#[must_use]
pub fn unescape(text: &str) -> Cow<'_, str> {
    let mut result = String::new();
    let mut from = 0;
    for token in tokens(text) {
        if let TokenKind::Open = token.kind {
            result.push_str(&text[from..token.start]);
            result.push_str(OPEN);
            from = token.end;
        }
    }
    if from == 0 {
        return Cow::Borrowed(text);
    }
    result.push_str(&text[from..]);
    Cow::Owned(result)
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
    fn add(text: &str, place: &Place, found: &mut Vec<Reference>) {
        found.extend(references_in(text).map(|(name, parts)| Reference {
            name: name.to_owned(),
            parts: parts.into_iter().map(str::to_owned).collect(),
            place: place.clone(),
        }));
    }
    match &node.value {
        Value::Text(text) => add(text, place, found),
        Value::List(list) => {
            for (i, node) in list.iter().enumerate() {
                collect(node, &place.index(i, node.at), found);
            }
        }
        Value::Map(map) => {
            for (key, entry) in map {
                if key.contains(OPEN) {
                    add(key, &place.key(key, entry.key_at), found);
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
            Json::String(text) => found.extend(references_in(text).map(|(name, _)| name.to_owned())),
            Json::Array(list) => list.iter().for_each(|value| walk(value, found)),
            Json::Object(map) => {
                for (key, value) in map {
                    found.extend(references_in(key).map(|(name, _)| name.to_owned()));
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
        let (name, value) = match &token.kind {
            TokenKind::Open => ("", Json::from(OPEN)),
            TokenKind::Reference { name, parts } => match part_of(name, parts, path, value_of) {
                Ok(value) => (*name, value),
                Err(err) => {
                    errors.push(err);
                    continue;
                }
            },
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
                name: name.to_owned(),
                kind: Node::from(value).kind(),
                path: path.to_owned(),
            }),
        }
    }
    result.push_str(&text[from..]);
    Json::String(result)
}

fn part_of(
    name: &str,
    parts: &[&str],
    path: &str,
    value_of: &mut dyn FnMut(&str) -> Option<Json>,
) -> Result<Json, Error> {
    let mut value = value_of(name).ok_or_else(|| Error::Missing {
        name: name.to_owned(),
        path: path.to_owned(),
    })?;
    for part in parts {
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
            name: name.to_owned(),
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

    proptest::proptest! {
        /// Tenants read any credential by writing `((/…))` into a setting of their own cluster: what is escaped is never a reference.
        #[test]
        fn escaped_text_is_never_a_reference(text in "[(){}!/.a-c ]{0,24}|\\PC{0,24}") {
            let escaped = escape(&text);
            proptest::prop_assert!(!has_reference(&escaped), "{escaped}");
            let never = |name: &str| -> Option<Json> { panic!("asked for `{name}`") };
            proptest::prop_assert_eq!(interpolate(&json!(&*escaped), never), Ok(json!(&text)));
            let unescaped = unescape(&escaped);
            proptest::prop_assert_eq!(&*unescaped, &text);
        }
    }

    #[test]
    fn escapes_stand_beside_references() {
        let text = format!("{}((pw)){}", escape("((a))"), escape("((("));
        assert_eq!(interpolate(&json!(text), values), Ok(json!("((a))s3cret(((")));
        assert_eq!(unescape("((!))x ((pw))"), "((x ((pw))");
        assert_eq!(interpolate(&json!({"((!))k": 1}), values), Ok(json!({"((k": 1})));
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
