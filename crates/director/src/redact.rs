//! Keeping secrets out of everything that people can read of a task.
//!
//! What is written about a task never holds a value of a variable on purpose; this is for texts that others made (a
//! script's or a CPI's error). Whoever resolves a secret registers it here first.

use std::collections::HashMap;

use serde_json::Value;

/// What stands in a secret's place.
const REDACTED: &str = "<redacted>";
/// Shorter texts are no secrets that could be told from ordinary words.
const SHORTEST: usize = 6;

/// Known secrets of one task.
#[derive(Default)]
pub(crate) struct Redactor {
    /// Secrets by their first bytes, so that a text is looked at once, however many there are.
    by_start: HashMap<[u8; SHORTEST], Vec<String>>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redactor")
    }
}

impl Redactor {
    /// Registers all texts in a value. Of texts with several lines (keys) every line counts by itself, because that is
    /// how they show up in output.
    pub(crate) fn add(&mut self, value: &Value) {
        match value {
            Value::String(text) => self.add_text(text),
            Value::Array(list) => list.iter().for_each(|value| self.add(value)),
            Value::Object(map) => {
                for (key, value) in map {
                    // Certificates are shown to everybody who connects; hiding them hides useful errors.
                    if !matches!(
                        key.as_str(),
                        "ca" | "certificate" | "public_key" | "public_key_fingerprint" | "username"
                    ) {
                        self.add(value);
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Registers one text.
    pub(crate) fn add_text(&mut self, text: &str) {
        for line in text
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with("-----"))
        {
            let Some(start) = line.as_bytes().first_chunk::<SHORTEST>() else {
                continue;
            };
            let known = self.by_start.entry(*start).or_default();
            if !known.iter().any(|one| one == line) {
                known.push(line.to_owned());
                // The longest first, so that no rest of a longer secret stays.
                known.sort_by_key(|one| std::cmp::Reverse(one.len()));
            }
        }
    }

    /// The text with every known secret replaced.
    pub(crate) fn redact(&self, text: &str) -> String {
        if self.by_start.is_empty() {
            return text.to_owned();
        }
        let mut clean = String::with_capacity(text.len());
        let mut kept = 0;
        let mut at = 0;
        while let Some(start) = text
            .as_bytes()
            .get(at..)
            .and_then(|rest| rest.first_chunk::<SHORTEST>())
        {
            let found = self.by_start.get(start).and_then(|known| {
                known
                    .iter()
                    .find(|secret| text.as_bytes()[at..].starts_with(secret.as_bytes()))
            });
            match found {
                Some(secret) => {
                    clean.push_str(&text[kept..at]);
                    clean.push_str(REDACTED);
                    at += secret.len();
                    kept = at;
                }
                None => at += 1,
            }
        }
        clean.push_str(&text[kept..]);
        clean
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_replaced_wherever_they_are() {
        let mut redactor = Redactor::default();
        redactor.add(&json!({"password": "hunter2hunter2", "private_key": "-----BEGIN X-----\nAAAABBBBCCCC\nDDDDEEEE\n"}));
        redactor.add_text("hunter2hunter2-long");
        for (text, expect) in [
            (
                "ü hunter2hunter2 ü hunter2hunter2-long.",
                "ü <redacted> ü <redacted>.",
            ),
            ("key AAAABBBBCCCC", "key <redacted>"),
            ("AAAABBBBCCCCDDDDEEEE", "<redacted><redacted>"),
            ("-----BEGIN X-----", "-----BEGIN X-----"),
            ("hunter2", "hunter2"),
            ("", ""),
        ] {
            assert_eq!(redactor.redact(text), expect);
        }
    }
}
