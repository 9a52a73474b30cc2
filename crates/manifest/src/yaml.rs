//! YAML text to nodes and back.

use std::borrow::Cow;

use crate::node::{At, Map, Node, Place, Value, Written};
use crate::problem::{Problem, code};

/// How many nodes a document may have: a manifest with a group for each of ten thousand machines has fewer.
const MAX_NODES: usize = 1_000_000;

/// Reads one YAML document. Aliases and merge keys are expanded; a key that stands twice in a mapping is refused.
/// `yes`, `no`, `on` and `off` are booleans, as BOSH's own parsers have it.
///
/// # Errors
/// The text is not one YAML document.
pub fn parse(document: impl Into<Cow<'static, str>>, text: &str) -> Result<Node, Problem> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! { max_nodes: MAX_NODES, max_events: 3 * MAX_NODES },
    };
    let mut node: Node = serde_saphyr::from_str_with_options(text, options).map_err(|err| {
        use serde_saphyr::MessageFormatter as _;
        let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let at = err.location().map_or_else(At::default, |at| At {
            line: number(at.line()),
            column: number(at.column()),
        });
        let message = serde_saphyr::UserMessageFormatter.format_message(err.without_snippet());
        Problem {
            document: document.into(),
            place: Place {
                at,
                path: String::new(),
            },
            text: format!("not valid YAML: {}", message.replace(char::is_control, " ")),
            hint: None,
            code: code::INVALID_YAML,
        }
    })?;
    take_written_numbers(&mut node, text);
    Ok(node)
}

/// Looks up what was written where the deserializer has left places only.
fn take_written_numbers(node: &mut Node, source: &str) {
    match &mut node.value {
        Value::List(list) => list
            .iter_mut()
            .for_each(|node| take_written_numbers(node, source)),
        Value::Map(map) => map
            .values_mut()
            .for_each(|entry| take_written_numbers(&mut entry.node, source)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Text(_) => {
            if let Some(Written::At { from, len }) = node.text {
                let end = from.saturating_add(len);
                let range =
                    usize::try_from(from).unwrap_or(usize::MAX)..usize::try_from(end).unwrap_or(usize::MAX);
                node.text = source
                    .get(range)
                    .map(|written| Written::Text(written.trim().into()));
            }
        }
    }
}

/// The document as YAML: two spaces, lists at the indentation of their key, long strings as blocks. Reading it gives
/// the same values; comments and anchors are gone.
#[must_use]
pub fn write(node: &Node) -> String {
    let mut lines = Vec::new();
    match &node.value {
        Value::Map(map) if !map.is_empty() => write_map(map, 0, &mut lines),
        Value::List(list) if !list.is_empty() => write_list(list, 0, &mut lines),
        _ => write_scalar("", node, 0, &mut lines),
    }
    lines.push(String::new());
    lines.join("\n")
}

pub(crate) fn write_map(map: &Map, indent: usize, lines: &mut Vec<String>) {
    for (key, entry) in map {
        write_entry(key, &entry.node, indent, lines);
    }
}

pub(crate) fn write_entry(key: &str, node: &Node, indent: usize, lines: &mut Vec<String>) {
    let label = format!("{}{}:", "  ".repeat(indent), scalar(key));
    match &node.value {
        Value::Map(map) if !map.is_empty() => {
            lines.push(label);
            write_map(map, indent + 1, lines);
        }
        Value::List(list) if !list.is_empty() => {
            lines.push(label);
            write_list(list, indent, lines);
        }
        _ => write_scalar(&format!("{label} "), node, indent, lines),
    }
}

pub(crate) fn write_list(list: &[Node], indent: usize, lines: &mut Vec<String>) {
    for node in list {
        let first = lines.len();
        match &node.value {
            Value::Map(map) if !map.is_empty() => write_map(map, indent + 1, lines),
            Value::List(list) if !list.is_empty() => write_list(list, indent + 1, lines),
            _ => {
                write_scalar(&format!("{}- ", "  ".repeat(indent)), node, indent, lines);
                continue;
            }
        }
        // The dash takes the place of the last two spaces of the first line's indentation.
        lines[first].replace_range(indent * 2..indent * 2 + 2, "- ");
    }
}

fn write_scalar(label: &str, node: &Node, indent: usize, lines: &mut Vec<String>) {
    let text = match &node.value {
        Value::Text(text) => text,
        Value::Null => return lines.push(format!("{label}null")),
        Value::Map(_) => return lines.push(format!("{label}{{}}")),
        Value::List(_) => return lines.push(format!("{label}[]")),
        Value::Bool(_) | Value::Number(_) => {
            return lines.push(format!("{label}{}", node.scalar_text().unwrap_or_default()));
        }
    };
    let Some(body) = block(text) else {
        return lines.push(format!("{label}{}", scalar(text)));
    };
    lines.push(format!("{label}|{}", if text.ends_with('\n') { "" } else { "-" }));
    for line in body.split('\n') {
        lines.push(if line.is_empty() {
            String::new()
        } else {
            format!("{}{line}", "  ".repeat(indent + 1))
        });
    }
}

/// The body of a literal block when the text can be written as one and looks better so.
fn block(text: &str) -> Option<&str> {
    let body = text.strip_suffix('\n').unwrap_or(text);
    let plain = |c: char| {
        c == '\n'
            || c == '\t'
            || (!c.is_control() && c != '\u{feff}' && !matches!(c, '\u{2028}' | '\u{2029}'))
    };
    let fits = body.contains('\n')
        && !body.ends_with('\n')
        && !body.starts_with([' ', '\t', '\n'])
        && body.chars().all(plain)
        && !body
            .split('\n')
            .any(|line| line.starts_with('\t') || (!line.is_empty() && line.trim().is_empty()));
    fits.then_some(body)
}

/// A string as a plain scalar where nothing else could be read from it, in double quotes otherwise.
pub(crate) fn scalar(text: &str) -> String {
    if is_plain(text) {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            c if c.is_control()
                || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') =>
            {
                quoted.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn is_plain(text: &str) -> bool {
    let Some(first) = text.chars().next() else {
        return false;
    };
    if !(first.is_ascii_alphanumeric() || matches!(first, '/' | '_' | '(' | '<'))
        || !text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || " _-./:@+()<>=,;%^$*!?'~".contains(c))
        || text.contains(": ")
        || text.ends_with([':', ' '])
        || text == "<<"
    {
        return false;
    }
    let words = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    if words.iter().any(|word| text.eq_ignore_ascii_case(word)) {
        return false;
    }
    // Addresses are everywhere in manifests and cannot be read as anything else; other things that consist of what
    // numbers, times and dates are made of are quoted.
    let address = text.parse::<std::net::Ipv4Addr>().is_ok() || text.parse::<ipnet::Ipv4Net>().is_ok();
    let range = text.parse::<crate::ip::Range>().is_ok() && text.contains('.');
    address
        || range
        || !first.is_ascii_digit()
        || !text
            .chars()
            .all(|c| c.is_ascii_hexdigit() || "_-+.:xXoO ".contains(c))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_survive_aliases_and_merges() {
        let node = parse("test", "a: &x\n  k: 1\nb:\n  <<: *x\n  l: [1, two]\n").unwrap();
        let two = &node.get("b").unwrap().get("l").unwrap().as_list().unwrap()[1];
        assert_eq!((two.at.line, two.at.column), (5, 10));
        assert_eq!(node.get("b").unwrap().get("k").unwrap().to_json(), 1);
    }

    #[test]
    fn a_version_with_a_fraction_stays_as_written() {
        let node = parse("test", "a: 1.10\nb: 1.37\nc: [ 2.50 ]\n").unwrap();
        assert_eq!(node.get("a").unwrap().scalar_text().unwrap(), "1.10");
        assert_eq!(
            node.get("c").unwrap().as_list().unwrap()[0]
                .scalar_text()
                .unwrap(),
            "2.50"
        );
        assert_eq!(write(&node), "a: 1.10\nb: 1.37\nc:\n- 2.50\n");
    }

    #[test]
    fn bad_yaml_says_where() {
        for (text, line) in [
            ("a: [1\nb: 2\n", 2),
            ("a: 1\na: 2\n", 2),
            ("a: *nobody\n", 1),
            ("x: 1\n---\ny: 2\n", 3),
        ] {
            let problem = parse("manifest", text).unwrap_err();
            assert_eq!(
                (problem.code, problem.place.at.line),
                (code::INVALID_YAML, line),
                "{problem}"
            );
        }
    }

    fn node() -> impl Strategy<Value = serde_json::Value> {
        let text = prop_oneof![
            "[ -~]{0,12}",
            "\\PC{0,8}",
            "[a-z \t\n:#-]{0,20}",
            prop_oneof![
                Just("~"),
                Just("null"),
                Just("Yes"),
                Just("1e3"),
                Just("0x10"),
                Just("1_000"),
                Just("12:30:45"),
                Just("2020-01-01"),
                Just("10.0.0.1"),
                Just("10.0.0.0/24"),
                Just("((a))"),
                Just("<<"),
                Just("---"),
                Just("a: b"),
                Just("- a"),
                Just(".5"),
                Just("a\nb\n"),
                Just("a\n\n  b"),
                Just("a\nb\n\n"),
                Just("\u{85}"),
                Just("0b11"),
                Just("1e999"),
                Just("inf"),
                Just("NaN"),
            ]
            .prop_map(str::to_owned),
        ];
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            text.clone().prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 40, 5, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
                proptest::collection::vec((text.clone(), inner), 0..5)
                    .prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// What is written reads as what it was.
        #[test]
        fn writing_keeps_the_values(json in node()) {
            let text = write(&Node::from(json.clone()));
            let back = parse("test", &text).map_err(|problem| TestCaseError::fail(format!("{problem}\n{text}")))?;
            prop_assert_eq!(back.to_json(), json, "{}", text);
        }
    }
}
