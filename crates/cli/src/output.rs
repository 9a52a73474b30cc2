//! What people and scripts read: stdout is data, stderr the rest.
//!
//! Everything is printed here, and nothing that came from elsewhere (a service, a machine, a file) reaches a terminal as anything but text.

use std::io::Write as _;
use std::sync::OnceLock;

use serde::Serialize;
use stolos_base::text;

use crate::failure::Failure;

/// The first error of writing to stdout. What was printed is data, so a command whose data did not arrive has failed.
static LOST: OnceLock<std::io::Error> = OnceLock::new();

/// Prints data. Whether it arrived says [`arrived`] in the end.
pub(crate) fn data(text: &str) {
    let mut out = anstream::stdout().lock();
    if let Err(error) = writeln!(out, "{}", text::lines(text)).and_then(|()| out.flush()) {
        lost(error);
    }
}

/// Notes that what was printed did not arrive.
pub(crate) fn lost(error: std::io::Error) {
    // A second error has the same cause.
    let _ = LOST.set(error);
}

/// Whether all data arrived. A reader that went away (`| head`) is no error.
///
/// # Errors
/// When stdout could not be written.
pub(crate) fn arrived() -> Result<(), Failure> {
    match LOST.get() {
        Some(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::user(format!(
            "failed to write to the standard output: {error}"
        ))),
        _ => Ok(()),
    }
}

/// Prints something about the data: progress, confirmation, hints.
pub(crate) fn note(text: &str) {
    let mut err = anstream::stderr().lock();
    let _ = writeln!(err, "{}", text::lines(text));
}

/// Prints a value as pretty JSON.
///
/// # Errors
/// When the value cannot be serialized.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<(), Failure> {
    data(&to_json(value)?);
    Ok(())
}

/// A value as pretty JSON.
///
/// # Errors
/// When the value cannot be serialized.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map(|json| text::json(&json).into_owned())
        .map_err(|error| Failure::ours(format!("failed to write JSON: {error}")))
}

/// Reads a file with JSON or YAML, which is a superset of it; an error names line and column.
///
/// # Errors
/// When the file cannot be read or is not what is expected.
pub(crate) fn read_document<T: serde::de::DeserializeOwned>(path: &camino::Utf8Path) -> Result<T, Failure> {
    let text = fs_err::read_to_string(path).map_err(|error| Failure::user(error.to_string()))?;
    stolos_document::from_text(&text)
        .map_err(|error| Failure::user(format!("`{path}` is not valid: {error}")))
}

/// Shows something again and again until Ctrl-C: in place on a terminal, one after the other elsewhere.
///
/// # Errors
/// Those of `shown`.
pub(crate) async fn watch<F: Future<Output = Result<String, Failure>>>(
    shown: impl Fn() -> F,
) -> Result<(), Failure> {
    /// As often as `watch` does.
    const EVERY: std::time::Duration = std::time::Duration::from_secs(2);
    let in_place = std::io::IsTerminal::is_terminal(&std::io::stdout());
    let mut last = String::new();
    let watching = async {
        loop {
            let text = shown().await?;
            if text != last {
                // Home, and clear what is below.
                if in_place {
                    let mut out = anstream::stdout().lock();
                    let _ = write!(out, "\u{1b}[H\u{1b}[J");
                }
                data(&text);
                last = text;
                if LOST.get().is_some() {
                    return Ok(());
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    tokio::select! {
        ended = watching => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

/// A table without borders, columns as wide as their content, two blanks between: what PKS printed, and what `awk` splits.
#[must_use]
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.iter().map(ToString::to_string).collect::<Vec<_>>());
    for row in rows {
        table.add_row(
            row.iter()
                .map(|cell| text::line(cell).into_owned())
                .collect::<Vec<_>>(),
        );
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The two-column block of `cluster NAME`: values start in column 26, as PKS had it.
#[must_use]
pub(crate) fn block(rows: &[(&str, String)]) -> String {
    const KEY_WIDTH: usize = 26;
    rows.iter()
        .map(|(key, value)| {
            let value = text::line(value);
            format!("{:<KEY_WIDTH$}{value}", format!("{key}:"))
                .trim_end()
                .to_owned()
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_lines_up() {
        insta::assert_snapshot!(block(&[("Name", "demo".into()), ("Last Action Description", "x".into()), ("Tags", String::new())]), @r"
        Name:                     demo
        Last Action Description:  x
        Tags:
        ");
    }

    /// An alert of a machine, a task's output or a description says what its author likes; a table of it is still a table.
    #[test]
    fn what_came_from_elsewhere_is_only_text() {
        let evil = "\u{1b}[2Jfine\nworker/9  all is well\u{202e}".to_owned();
        insta::assert_snapshot!(table(&["Name", "Why"], &[vec!["a".into(), evil.clone()]]), @r"
        Name  Why
        a     \u{1b}[2Jfine\nworker/9  all is well\u{202e}
        ");
        assert_eq!(block(&[("Name", evil.clone())]).lines().count(), 1);
        let json = to_json(&serde_json::json!({"why": evil})).expect("JSON");
        assert!(json.is_ascii() && json.contains("\\u202e"), "{json}");
    }

    #[test]
    fn a_table_lines_up() {
        insta::assert_snapshot!(table(&["Name", "Plan Name"], &[vec!["a-long-name".into(), "small".into()], vec!["b".into(), String::new()]]), @r"
        Name         Plan Name
        a-long-name  small
        b
        ");
    }
}
