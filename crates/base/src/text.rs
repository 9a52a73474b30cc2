//! Text that came from elsewhere, made fit to be shown: it can neither move a terminal's cursor, nor look like other lines, nor reorder what is beside it.
//!
//! What is shown this way is still complete: what could do harm is written as an escape that a person can read.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character changes how others are shown: control characters (C0, C1 and DEL, so all that begins a terminal's sequences), line and paragraph
/// separators, marks and overrides of the direction of writing, and invisible ones with which two texts look alike.
#[must_use]
pub fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// As one line: a line feed is written as `\n`, anything else that is harmful as `\u{1b}`.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_harmful)
}

/// As lines: line feeds and tabs stay as they are.
#[must_use]
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_harmful(c) && c != '\n' && c != '\t')
}

/// JSON with the same meaning in which everything harmful is written as `\u001b`. White space between values stays.
#[must_use]
pub fn json(text: &str) -> Cow<'_, str> {
    let is_harmful = |c: char| is_harmful(c) && !matches!(c, '\n' | '\t' | '\r');
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_harmful(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing into a String does not fail.
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// The first `most` characters; says how many more there were.
#[must_use]
pub fn clip(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        None => Cow::Borrowed(text),
        Some((end, _)) => {
            let more = text[end..].chars().count();
            Cow::Owned(format!("{}… ({more} more characters)", &text[..end]))
        }
    }
}

fn escaped(text: &str, is_harmful: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_harmful(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_a_terminal_that_it_would_obey() {
        assert_eq!(
            line("all is well: größer, 日本, 👩‍🚀"),
            "all is well: größer, 日本, 👩‍🚀"
        );
        assert_eq!(line("\u{1b}[2J\u{9b}31m\r\nfake"), r"\u{1b}[2J\u{9b}31m\r\nfake");
        assert_eq!(lines("one\n\ttwo\u{7f}\r"), "one\n\ttwo\\u{7f}\\r");
        assert_eq!(
            line("a\u{202e}b\u{2066}c\u{200b}d\u{e0041}"),
            r"a\u{202e}b\u{2066}c\u{200b}d\u{e0041}"
        );
        for c in (0..=0x10_ffff_u32)
            .filter_map(char::from_u32)
            .filter(|c| is_harmful(*c))
        {
            let text = String::from(c);
            assert!(
                !line(&text).contains(is_harmful),
                "{:?} stays",
                c.escape_unicode().to_string()
            );
        }
    }

    #[test]
    fn json_keeps_its_meaning() {
        let value = serde_json::json!({"a": "x\u{202e}\u{9b}\u{e0041}\u{1b}y"});
        let text = serde_json::to_string_pretty(&value).expect("JSON");
        let shown = json(&text);
        assert!(shown.is_ascii(), "{shown}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&shown).expect("JSON"),
            value
        );
    }

    #[test]
    fn clipped_text_says_so() {
        assert_eq!(clip("größe", 5), "größe");
        assert_eq!(clip("größer", 3), "grö… (3 more characters)");
    }
}
