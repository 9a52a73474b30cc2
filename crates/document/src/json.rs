//! JSON, with the same words for what is wrong.

use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::de::{Form, read};
use crate::error::{Error, in_words, without_place};
use crate::node::{At, Node};
use crate::read::{Duplicates, single};

/// Reads a JSON text as a value.
///
/// # Errors
/// The bytes are not one JSON text, or not such a value.
pub fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let error = match serde_json::from_slice(bytes) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let at = At {
        line: number(error.line()),
        column: number(error.column()),
    };
    if error.classify() != Category::Data {
        return Err(Error::new(at, syntax(without_place(&error.to_string()))));
    }
    // `serde_json` knows where it stopped, but not which field that is. JSON is YAML, whose reader has the place of each value;
    // a text that it refuses has its path at least.
    let places = std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| single(text, Duplicates::TakeLast, false).ok());
    let node = places.or_else(|| {
        serde_json::from_slice::<serde_json::Value>(bytes)
            .ok()
            .map(Node::from)
    });
    let found = node.and_then(|node| read::<T>(&node, Form::Json).err());
    let error = found.unwrap_or_else(|| Error::new(at, in_words(&error.to_string())));
    Err(in_json_s_words(error.or_at(at)))
}

/// A JSON value as a value of a type: what `serde_json::from_value` does, with our words for what is wrong.
///
/// # Errors
/// It is not such a value. The error has a path and no line.
pub fn from_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, Error> {
    read(&Node::from(value), Form::Json).map_err(in_json_s_words)
}

/// JSON's maps are objects.
fn in_json_s_words(mut error: Error) -> Error {
    for (yaml, json) in [
        ("a map", "an object"),
        ("one key of", "an object with one key of"),
    ] {
        let Some(rest) = error.text.strip_prefix(yaml) else {
            continue;
        };
        error.text = format!("{json}{rest}");
    }
    if let Some(rest) = error.text.strip_suffix(", not a map") {
        error.text = format!("{rest}, not an object");
    }
    error
}

/// What `serde_json` says of a text that is not JSON.
fn syntax(message: &str) -> String {
    match message {
        "EOF while parsing a list" | "EOF while parsing an object" | "EOF while parsing a string" => {
            format!(
                "the JSON ends within {}",
                message.trim_start_matches("EOF while parsing ")
            )
        }
        "EOF while parsing a value" => "the JSON ends where a value has to be".to_owned(),
        "recursion limit exceeded" => "the JSON is nested too deep".to_owned(),
        "trailing characters" => "something stands after the end of the JSON".to_owned(),
        "expected value" => "no JSON value stands here".to_owned(),
        other => format!("this is not JSON: {}", in_words(other)),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "the test looks at errors only")]
    struct Request {
        name: String,
        #[serde(default)]
        parameters: Parameters,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "the test looks at errors only")]
    struct Parameters {
        workers: Option<u32>,
    }

    #[test]
    fn errors_say_place_and_path() {
        for (text, expect) in [
            ("[]", "line 1, column 1: an object is needed here, not a list"),
            (
                "{\"name\": 7}",
                "line 1, column 10: name: a string is needed here, not 7",
            ),
            (
                "{\"name\": \"a\",\n \"parameters\": {\"workers\": \"x\"}}",
                "line 2, column 28: parameters.workers: an integer from 0 to 4294967295 is needed here, not a string",
            ),
            (
                "{\"name\": \"a\", \"parameters\": null}",
                "line 1, column 29: parameters: an object is needed here, not nothing",
            ),
            (
                "{\"name\": \"a\", \"parameters\": {\"nodes\": 1}}",
                "line 1, column 30: parameters: `nodes` is not known here; known are `workers`",
            ),
            ("{}", "line 1, column 1: `name` is missing"),
            (
                "{\"name\": \"\\ud83d\\ude00\", \"parameters\": 1}",
                "line 1, column 40: parameters: an object is needed here, not 1",
            ),
            (
                "{\"name\": ",
                "line 1, column 9: the JSON ends where a value has to be",
            ),
            (
                "{\"name\": \"a",
                "line 1, column 11: the JSON ends within a string",
            ),
            (
                "{\"name\": \"a\"",
                "line 1, column 12: the JSON ends within an object",
            ),
            ("", "line 1, column 0: the JSON ends where a value has to be"),
            (
                "{name: a}",
                "line 1, column 2: this is not JSON: key must be a string",
            ),
            (
                "{\"name\": \"a\"} {}",
                "line 1, column 15: something stands after the end of the JSON",
            ),
        ] {
            let error = from_json::<Request>(text.as_bytes()).expect_err(text).to_string();
            assert_eq!(error, expect, "{text:?}");
        }
    }
}
