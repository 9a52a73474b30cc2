//! What is told about an import.

use std::fmt;

use serde::Serialize;

/// What became of a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It has the same meaning here.
    Taken,
    /// Something stands in its place; the text says why.
    Changed,
    /// It has no place here.
    NotTaken,
}

/// One property, or a group of them that belong together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What became of it.
    pub outcome: Outcome,
    /// Where it stands in the file, from 1; 0 where it is missing there.
    pub line: u32,
    /// Its name, without the parts that all names have.
    pub property: String,
    /// What was taken, or why not.
    pub text: String,
    /// A whole sentence that says what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// All that is told about an import.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In the order of plans, networks and the rest.
    pub lines: Vec<Line>,
    /// Properties of switched-off parts of the tile, which say nothing.
    pub switched_off: usize,
}

impl Report {
    /// A property has the same meaning here.
    pub(super) fn taken(&mut self, line: u32, property: &str, text: impl Into<String>) {
        self.add(Outcome::Taken, line, property, text.into(), None);
    }

    /// Something else stands in a property's place.
    pub(super) fn changed(&mut self, line: u32, property: &str, text: impl Into<String>) {
        self.add(Outcome::Changed, line, property, text.into(), None);
    }

    /// A property has no place here.
    pub(super) fn not_taken(
        &mut self,
        line: u32,
        property: &str,
        text: impl Into<String>,
        next: impl Into<String>,
    ) {
        self.add(Outcome::NotTaken, line, property, text.into(), Some(next.into()));
    }

    fn add(&mut self, outcome: Outcome, line: u32, property: &str, text: String, next: Option<String>) {
        self.lines.push(Line {
            outcome,
            line,
            property: property.to_owned(),
            text,
            next,
        });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (outcome, title) in [
            (Outcome::Taken, "Taken"),
            (Outcome::Changed, "Changed"),
            (Outcome::NotTaken, "Not taken"),
        ] {
            let lines: Vec<&Line> = self.lines.iter().filter(|line| line.outcome == outcome).collect();
            if lines.is_empty() {
                continue;
            }
            writeln!(f, "{title}:")?;
            for line in lines {
                write!(f, "  {}", line.property)?;
                if line.line > 0 {
                    write!(f, " (line {})", line.line)?;
                }
                write!(f, ": {}", line.text)?;
                if let Some(next) = &line.next {
                    write!(f, ". {next}")?;
                }
                writeln!(f)?;
            }
            writeln!(f)?;
        }
        let count = |outcome| self.lines.iter().filter(|line| line.outcome == outcome).count();
        writeln!(
            f,
            "{} taken, {} changed, {} not taken; {} left aside, which belong to parts of the tile that are switched off",
            count(Outcome::Taken),
            count(Outcome::Changed),
            count(Outcome::NotTaken),
            self.switched_off
        )
    }
}
