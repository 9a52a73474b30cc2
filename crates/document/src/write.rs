//! Nodes as YAML text.

use serde::Serialize;

use crate::error::Error;
use crate::node::{At, Map, Node, Value, Written};

/// A value as a YAML document, each string that has one line on the line of its key.
///
/// # Errors
/// The value cannot be serialized: a map with keys that are no words, for instance.
pub fn to_yaml<T: Serialize + ?Sized>(value: &T) -> Result<String, Error> {
    let value = serde_json::to_value(value)
        .map_err(|error| Error::new(At::default(), crate::in_words(&error.to_string())))?;
    Ok(write(&Node::from(value)))
}

/// The document as YAML: two spaces, lists at the indentation of their key, long strings as blocks. Reading it gives
/// the same values; comments and anchors are gone. A string that has one line is never folded and never a block, however
/// long it is: scripts cut such files up by lines.
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

fn write_map(map: &Map, indent: usize, lines: &mut Vec<String>) {
    for (key, entry) in map {
        write_entry(key, &entry.node, indent, lines);
    }
}

/// The lines of a key and its value, at an indentation of so many levels.
pub fn write_entry(key: &str, node: &Node, indent: usize, lines: &mut Vec<String>) {
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

/// The lines of a list's elements, at an indentation of so many levels.
pub fn write_list(list: &[Node], indent: usize, lines: &mut Vec<String>) {
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
        Value::Bool(flag) => return lines.push(format!("{label}{flag}")),
        Value::Number(number) => {
            return lines.push(format!("{label}{}", number_text(number, node.written.as_ref())));
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

/// A number as it was written, where every parser reads that as the same number.
fn number_text(number: &serde_json::Number, written: Option<&Written>) -> String {
    match written {
        Some(Written::Float(text) | Written::Wide(text)) if is_common(text) => text.to_string(),
        _ => number.to_string(),
    }
}

/// `-12.50`: digits, perhaps a point and more digits, no zero before others.
fn is_common(text: &str) -> bool {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let whole = whole.strip_prefix('-').unwrap_or(whole);
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits(whole) && digits(fraction) && (whole == "0" || !whole.starts_with('0'))
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
#[must_use]
pub fn scalar(text: &str) -> String {
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
    !first.is_ascii_digit()
        || is_addresses(text)
        || !(is_date(text)
            || text
                .chars()
                .all(|c| c.is_ascii_hexdigit() || "_-+.:xXoO ".contains(c)))
}

/// `10.0.0.1`, `10.0.0.0/24`, `10.0.0.1-10.0.0.9`, `10.0.0.1 - 10.0.0.9`.
fn is_addresses(text: &str) -> bool {
    let address = |text: &str| {
        let (address, prefix) = text.trim().split_once('/').unwrap_or((text.trim(), "0"));
        address.parse::<std::net::Ipv4Addr>().is_ok() && prefix.parse::<u8>().is_ok_and(|prefix| prefix <= 32)
    };
    match text.split_once('-') {
        Some((from, to)) => address(from) && address(to),
        None => address(text),
    }
}

/// Whether it begins like a date, of which Ruby's parser makes one.
fn is_date(text: &str) -> bool {
    let mut parts = text.splitn(3, '-');
    let digits = |part: Option<&str>, most: usize| {
        part.is_some_and(|part| part.len() <= most && part.bytes().all(|b| b.is_ascii_digit()))
    };
    digits(parts.next(), 4) && digits(parts.next(), 2) && parts.next().is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::parse;

    #[test]
    fn a_version_with_a_fraction_stays_as_written() {
        let node = parse("a: 1.10\nb: 1.37\nc: [ 2.50 ]\n").unwrap();
        assert_eq!(node.get("a").unwrap().scalar_text().unwrap(), "1.10");
        assert_eq!(
            node.get("c").unwrap().as_list().unwrap()[0]
                .scalar_text()
                .unwrap(),
            "2.50"
        );
        assert_eq!(write(&node), "a: 1.10\nb: 1.37\nc:\n- 2.50\n");
        let odd = parse("[01750, 08, 1_0.5, 2.0, yes, 1e3]").unwrap();
        assert_eq!(write(&odd), "- 1000\n- 8\n- 10.5\n- 2.0\n- true\n- 1000\n");
    }

    /// A certificate of a kubeconfig was folded (`>-`), and `grep certificate-authority-data | awk '{print $2}'` got `>-`.
    #[test]
    fn a_string_with_one_line_stays_on_the_line_of_its_key() {
        let long = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t ".repeat(200);
        let text =
            to_yaml(&serde_json::json!({"a": {"data": long.trim(), "end": "x\n", "spaces": "  x"}})).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[1], format!("  data: {}", long.trim()));
        assert_eq!(lines[2], "  end: \"x\\n\"");
    }

    /// What any parser of YAML 1.1 or 1.2 would read as something else than a string is in quotes.
    #[test]
    fn strings_that_look_like_something_else_are_quoted() {
        for text in [
            "yes",
            "No",
            "oN",
            "off",
            "y",
            "N",
            "true",
            "nULL",
            "~",
            "",
            "0755",
            "0o755",
            "0b11",
            "0x1F",
            "1_000",
            "1:30",
            "190:20:30",
            "12e03",
            "1e3",
            "1.5",
            ".5",
            "-1",
            "+1",
            "08",
            "2020-01-01",
            "2001-12-14t21:59:43.10-05:00",
            "2001-12-14 21:59:43 +01:00",
            "<<",
            "=",
            "-",
            "---",
            "...",
            "- a",
            "a: b",
            "a #b",
            "a:",
            " a",
            "a ",
            "@x",
            "`x",
            "%x",
            "!x",
            "&x",
            "*x",
            "?",
            "|",
            ">",
            "{a}",
            "[a]",
            "'a'",
            "\"a\"",
            ".inf",
            ".nan",
            "\u{85}",
            "\u{2028}",
            "a\tb",
            "\u{feff}",
        ] {
            let written = scalar(text);
            assert!(written.starts_with('"'), "{text:?} is written as {written}");
            assert_eq!(parse(&written).unwrap().as_str(), Some(text), "{written}");
        }
        for text in [
            "10.0.0.1",
            "10.0.0.0/24",
            "10.0.0.1-10.0.0.9",
            "((a))",
            "v1.30.0",
            "https://x:8443",
            "a b",
        ] {
            assert_eq!(scalar(text), text);
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
                Just("on"),
                Just("y"),
                Just("0755"),
                Just("1:30"),
                Just("2001-12-14t21:59:43Z"),
                Just("\u{2028}a"),
                Just("a\u{2029}\nb"),
                Just("@a"),
                Just("- -"),
                Just("a\r\nb"),
                Just(" a\n b"),
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
            let back = parse(&text).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
            prop_assert_eq!(back.to_json(), json, "{}", text);
        }
    }
}
