//! What names of users and groups may look like, and how names of strangers are written into logs.

use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory as _};

/// The longest name of a user or group, in bytes; UAA's.
const LONGEST: usize = 255;
/// Letters and marks by their category that show nothing: fillers, joiners and selectors (`Default_Ignorable_Code_Point` of Unicode without the
/// category Cf), and the empty pattern of Braille.
const INVISIBLE: &[std::ops::RangeInclusive<char>] = &[
    '\u{034F}'..='\u{034F}',
    '\u{115F}'..='\u{1160}',
    '\u{17B4}'..='\u{17B5}',
    '\u{180B}'..='\u{180F}',
    '\u{2800}'..='\u{2800}',
    '\u{3164}'..='\u{3164}',
    '\u{FE00}'..='\u{FE0F}',
    '\u{FFA0}'..='\u{FFA0}',
    '\u{E0000}'..='\u{E0FFF}',
];

/// Checks what somebody wants a user, a group or a mail address to be called: what people read has to be what is there. So nothing is
/// taken that is not seen, that moves what is around it, or that ends a line.
///
/// # Errors
/// The broken rule, as a sentence about `field`.
pub(crate) fn check(field: &str, name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > LONGEST {
        return Err(format!("`{field}` is not valid: it has 1 to {LONGEST} bytes"));
    }
    if name.starts_with(char::is_whitespace) || name.ends_with(char::is_whitespace) {
        return Err(format!("`{field}` is not valid: it begins or ends with a blank"));
    }
    match name.chars().find(|c| !is_seen(*c)) {
        None => {}
        Some(c) => {
            return Err(format!(
                "`{field}` is not valid: the character U+{:04X} cannot be seen or changes how others are seen",
                u32::from(c)
            ));
        }
    }
    match name.chars().find(|c| "/\\\"%".contains(*c)) {
        None => Ok(()),
        Some(c) => Err(format!("`{field}` is not valid: it has the character {c}")),
    }
}

fn is_seen(c: char) -> bool {
    if INVISIBLE.iter().any(|range| range.contains(&c)) {
        return false;
    }
    match c.general_category_group() {
        // Controls, formats (those for bidirectional text among them), private ones and what is not assigned.
        GeneralCategoryGroup::Other => false,
        // One blank is like another to the eye.
        GeneralCategoryGroup::Separator => c == ' ',
        _ => c.general_category() != GeneralCategory::Unassigned,
    }
}

/// A name of anybody's, for a log or an answer. To be written with `{:?}` where it goes to a terminal.
pub(crate) fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_it_looks_like() {
        for good in [
            "naomi",
            "José Ångström",
            "山田",
            "a.b+c@example.com",
            "O'Neil",
            "עברית",
            "oidc:x",
            "नमस्ते",
        ] {
            assert_eq!(check("userName", good), Ok(()), "{good}");
        }
        for bad in [
            "",
            " a",
            "a ",
            "\u{a0}a",
            "a\u{3000}",
            "a\u{a0}b",
            "a\nb",
            "a\u{1b}[31mb",
            "a\u{7f}b",
            "a\u{85}b",
            "a\u{200b}b",
            "a\u{200d}b",
            "a\u{202e}b",
            "a\u{2066}b\u{2069}",
            "a\u{61c}b",
            "a\u{feff}b",
            "a\u{ad}b",
            "a\u{2028}b",
            "a\u{e0041}b",
            "a\u{fe0f}b",
            "a\u{3164}b",
            "a\u{115f}b",
            "a\u{2800}b",
            "a\u{34f}b",
            "a\u{e000}b",
            "a\u{378}b",
            "a/b",
            "a\"b",
            "a%b",
            "a\\b",
            &"x".repeat(256),
        ] {
            assert!(check("userName", bad).is_err(), "{bad:?}");
        }
    }
}
