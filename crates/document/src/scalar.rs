//! What an unquoted scalar means.
//!
//! `kubectl` reads YAML with `sigs.k8s.io/yaml` (the library `go.yaml.in/yaml/v2`) and the BOSH CLI with `gopkg.in/yaml.v2`;
//! they are the same code (`resolve.go`), and these are its rules. The CLI writes the manifest anew before it sends it, so the
//! director's own parser (Ruby's Psych) sees what the CLI has read:
//!
//! | written | read as |
//! |---|---|
//! | empty, `~`, `null`, `Null`, `NULL` | null |
//! | `true`, `yes`, `on`, `y` and `false`, `no`, `off`, `n`, each also `Capitalized` and `UPPER` | a boolean |
//! | `0755`, `0o755`, `0x1F`, `0b11`, `1_000`, each with a sign | an integer: 493, 493, 31, 3, 1000 |
//! | `08`, `1e3`, `1.0` | a number; a whole one is an integer, as in the JSON that `kubectl` sends: 8, 1000, 1 |
//! | `1.5`, `.5`, `1_0.5` | a number |
//! | `1:30`, `2001-12-14`, `0o8`, `yEs`, `1e999`, `0b2`, `_1` | a string |
//! | anything in quotes or in a block, `!!str 12`, `!mine 12` | a string |
//! | `.inf`, `.nan` | refused: JSON has neither |
//!
//! Keys are read by the same rules and then are text: `on: 1` has the key `true`, `0755: 1` the key `493`; an empty key is
//! refused. A plain `<<` merges maps, in the order of the document: it overwrites what stands before it. A key that stands
//! twice is refused, unless the reader asks for go-yaml's rule, that the last one counts ([`crate::Duplicates`]).
//!
//! An integer beyond 64 bits, of which go-yaml silently makes a float, is refused where a number is wanted.

use serde_json::Number;

/// What a plain scalar is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Plain {
    Null,
    Bool(bool),
    /// Written without a point or an exponent.
    Integer(Number),
    /// Written as a float, though its value may be whole.
    Float(Number),
    /// An integer that does not fit into 64 bits.
    Wide,
    /// `.inf` or `.nan`.
    NotFinite,
    Text,
}

/// Resolves a scalar that is neither quoted nor tagged.
pub(crate) fn resolve(text: &str) -> Plain {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Plain::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Plain::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Plain::Bool(false);
        }
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf"
        | "-.Inf" | "-.INF" => return Plain::NotFinite,
        _ => {}
    }
    match text.as_bytes()[0] {
        b'.' => float(text).map_or(Plain::Text, Plain::Float),
        b'+' | b'-' | b'0'..=b'9' => number(&text.replace('_', "")),
        _ => Plain::Text,
    }
}

/// A text that begins with a sign or a digit, its underscores taken out.
fn number(text: &str) -> Plain {
    let (negative, digits) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    // `from_str_radix` would take another sign.
    let is_integer = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    if is_integer {
        let value = u128::from_str_radix(digits, radix)
            .ok()
            .and_then(|value| i128::try_from(value).ok())
            .map(|value| if negative { -value } else { value });
        let fits = value.and_then(|value| {
            let signed = i64::try_from(value).ok().map(Number::from);
            signed.or_else(|| u64::try_from(value).ok().map(Number::from))
        });
        return match fits {
            Some(number) => Plain::Integer(number),
            None if radix == 10 => Plain::Wide,
            None => Plain::Text,
        };
    }
    float(text).map_or(Plain::Text, Plain::Float)
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`, when its value is finite. A whole value is an integer.
fn float(text: &str) -> Option<Number> {
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (&unsigned[..at], Some(&unsigned[at + 1..])),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let has_digits = !whole.is_empty() || !fraction.is_empty();
    let is_exponent = |text: &str| {
        digits(text.strip_prefix(['-', '+']).unwrap_or(text)) && text.ends_with(|c: char| c.is_ascii_digit())
    };
    if !has_digits || !digits(whole) || !digits(fraction) || !exponent.is_none_or(is_exponent) {
        return None;
    }
    let value: f64 = text.parse().ok()?;
    /// Up to here every whole number is a float and every integer of it is exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the value is whole and within 53 bits"
        )]
        return Some(Number::from(value as i64));
    }
    Number::from_f64(value)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use crate::{from_yaml, parse, write};

    /// What a document is read as, here and by `sigs.k8s.io/yaml` 1.6.0 (`YAMLToJSON`), which the right column was taken from.
    #[test]
    fn each_form_is_read_as_kubectl_and_bosh_read_it() {
        let table = [
            ("yes", json!(true)),
            ("Yes", json!(true)),
            ("YES", json!(true)),
            ("yEs", json!("yEs")),
            ("y", json!(true)),
            ("N", json!(false)),
            ("no", json!(false)),
            ("on", json!(true)),
            ("oN", json!("oN")),
            ("OFF", json!(false)),
            ("TRUE", json!(true)),
            ("tRue", json!("tRue")),
            ("~", json!(null)),
            ("Null", json!(null)),
            ("nULL", json!("nULL")),
            ("", json!(null)),
            ("0755", json!(493)),
            ("01750", json!(1000)),
            ("0o755", json!(493)),
            ("0O17", json!(15)),
            ("08", json!(8)),
            ("0b11", json!(3)),
            ("-0b11", json!(-3)),
            ("0x1F", json!(31)),
            ("-0x1", json!(-1)),
            ("1_000", json!(1000)),
            ("_1", json!("_1")),
            ("1_", json!(1)),
            ("0_7", json!(7)),
            ("0x_1", json!(1)),
            ("0755_0", json!(3944)),
            ("1:30", json!("1:30")),
            ("190:20:30", json!("190:20:30")),
            ("1.5", json!(1.5)),
            ("1.", json!(1)),
            ("1.0", json!(1)),
            ("+1.5", json!(1.5)),
            ("-.5", json!(-0.5)),
            (".5", json!(0.5)),
            ("1e3", json!(1000)),
            ("1.5e3", json!(1500)),
            ("1e", json!("1e")),
            ("1_0.5", json!(10.5)),
            ("+12", json!(12)),
            ("-0755", json!(-493)),
            ("00", json!(0)),
            ("-0", json!(0)),
            ("2020-01-01", json!("2020-01-01")),
            (
                "2001-12-14t21:59:43.10-05:00",
                json!("2001-12-14t21:59:43.10-05:00"),
            ),
            ("12345678901234567890", json!(12_345_678_901_234_567_890_u64)),
            ("0x1p-2", json!("0x1p-2")),
            ("Infinity", json!("Infinity")),
            ("nan", json!("nan")),
            ("0xG", json!("0xG")),
            ("1,000", json!("1,000")),
            ("+", json!("+")),
            ("1e999", json!("1e999")),
            ("<<", json!("<<")),
            ("=", json!("=")),
            ("0o8", json!("0o8")),
            ("0b2", json!("0b2")),
            ("0x", json!("0x")),
            ("010.5", json!(10.5)),
            ("1.5.5", json!("1.5.5")),
            ("+-1", json!("+-1")),
            ("0o-7", json!("0o-7")),
            ("--", json!("--")),
            ("!!str 0755", json!("0755")),
            ("!!str", json!("")),
            ("!!int \"0755\"", json!(493)),
            ("!!float 1", json!(1)),
            ("!!bool \"yes\"", json!(true)),
            ("!foo 12", json!("12")),
            ("! 12", json!("12")),
            ("!!binary aGk=", json!("hi")),
            ("!!timestamp 2020-01-01", json!("2020-01-01")),
            ("'0755'", json!("0755")),
            ("\"yes\"", json!("yes")),
            ("|\n 0755\n", json!("0755\n")),
            ("|-\n 0755\n", json!("0755")),
            ("on: 1", json!({"true": 1})),
            ("yes: 1", json!({"true": 1})),
            ("y: 1", json!({"true": 1})),
            ("\"y\": 1", json!({"y": 1})),
            ("1: 1", json!({"1": 1})),
            ("0755: 1", json!({"493": 1})),
            ("1.5: 1", json!({"1.5": 1})),
            ("1e3: x", json!({"1000": "x"})),
            ("2020-01-01: x", json!({"2020-01-01": "x"})),
            (
                "a: &x {k: 1, l: 2}\nb:\n  <<: *x\n  k: 3",
                json!({"a": {"k": 1, "l": 2}, "b": {"k": 3, "l": 2}}),
            ),
            (
                "a: &x {k: 1}\nc: &y {k: 2, m: 3}\nb:\n  <<: [*x, *y]\n  z: 1",
                json!({"a": {"k": 1}, "c": {"k": 2, "m": 3}, "b": {"k": 1, "m": 3, "z": 1}}),
            ),
            ("b:\n  k: 3\n  <<: {k: 1, l: 2}", json!({"b": {"k": 1, "l": 2}})),
            ("b:\n  <<: {k: 1}\n  <<: {l: 2}", json!({"b": {"k": 1, "l": 2}})),
            ("b:\n  \"<<\": {k: 1}", json!({"b": {"<<": {"k": 1}}})),
            ("a: 1\n---\n", json!({"a": 1})),
            ("a: 1\n...\n", json!({"a": 1})),
            ("---\na: 1\n...\n---\n", json!({"a": 1})),
            ("# only", json!(null)),
            ("%YAML 1.1\n---\na: on", json!({"a": true})),
            ("{a: 1, b}", json!({"a": 1, "b": null})),
            ("a: [1,]", json!({"a": [1]})),
            ("a:\t1", json!({"a": 1})),
            ("a: &b", json!({"a": null})),
            ("\u{feff}a: 1", json!({"a": 1})),
            ("a: 1\r\nb: 2\r\n", json!({"a": 1, "b": 2})),
            (
                "{\n\t\"a\": 1,\n\t\"b\": [\n\t\t1\n\t]\n}",
                json!({"a": 1, "b": [1]}),
            ),
            ("{\"a\":\"\\/\"}", json!({"a": "/"})),
            ("!!set {a}", json!({"a": null})),
        ];
        for (text, expect) in table {
            let read = parse(text).map(|node| node.to_json());
            assert_eq!(read.as_ref().ok(), Some(&expect), "{text:?}: {read:?}");
            let typed: Json = from_yaml(text).expect(text);
            assert_eq!(typed, expect, "{text:?}");
            let again = parse(&write(&parse(text).expect(text))).map(|node| node.to_json());
            assert_eq!(again.ok(), Some(expect), "{text:?}, written and read again");
        }
    }

    #[test]
    fn what_json_cannot_hold_is_refused() {
        for (text, words) in [
            ("a: .inf", "neither infinity nor"),
            ("a: .NaN", "neither infinity nor"),
            ("a: 18446744073709551616", "64 bits"),
            ("a: -9223372036854775809", "64 bits"),
            ("~: 1", "a key is empty"),
            ("null: 1", "a key is empty"),
            ("? [a]\n: 1", "a key is a list"),
            ("b:\n  <<: 3", "merged"),
            ("!!null x", "!!null"),
            ("!!int 1.5", "!!int"),
            ("!!binary '*'", "base64"),
            ("a: *x", "anchor"),
            ("a: &a [*a]", "itself"),
            ("a: @x", "character"),
            ("a: b: c", "line 1, column"),
            ("a: 1\na: 2", "twice"),
            ("1: a\n\"1\": b", "twice"),
            ("true: a\nyes: b", "twice"),
            ("a: \u{7}", "control character"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }
}
