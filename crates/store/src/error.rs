//! What a database can say, told apart by who has to act.

use camino::Utf8PathBuf;
use stolos_base::{Class, Classify};

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A database could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The database cannot be reached or opened.
    #[error("failed to open database `{database}`")]
    Open {
        /// The service's schema name.
        database: &'static str,
        /// The cause.
        #[source]
        source: sqlx::Error,
    },
    /// The directory or file of a SQLite database cannot be made.
    #[error("failed to prepare `{path}`")]
    Prepare {
        /// What was to be made.
        path: Utf8PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A schema declaration breaks a rule of [`crate::Schema`]; a bug of the program.
    #[error("schema `{schema}` is not well formed: {rule}")]
    Declaration {
        /// The service's schema name.
        schema: &'static str,
        /// The broken rule.
        rule: String,
    },
    /// The copy before a migration could not be made; nothing was migrated.
    #[error("failed to back up database `{database}` to `{path}` before migrating it")]
    Backup {
        /// The service's schema name.
        database: &'static str,
        /// Where the copy was to lie.
        path: Utf8PathBuf,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A migration failed and left no trace.
    #[error("failed to apply migration {part}/{number} `{name}`")]
    Migrate {
        /// The part it belongs to.
        part: &'static str,
        /// Its number.
        number: i64,
        /// Its name.
        name: &'static str,
        /// The cause.
        #[source]
        source: sqlx::Error,
    },
    /// A migration that this database already has reads differently in this program.
    #[error(
        "migration {part}/{number} `{name}` was changed after it had been applied to database `{database}`"
    )]
    MigrationChanged {
        /// The service's schema name.
        database: &'static str,
        /// The part it belongs to.
        part: String,
        /// Its number.
        number: i64,
        /// Its name as applied.
        name: String,
    },
    /// The database was made by a newer program.
    #[error(
        "database `{database}` has migration {part}/{number} `{name}`, which this program does not know: it is older than the database"
    )]
    Newer {
        /// The service's schema name.
        database: &'static str,
        /// The part of the unknown migration.
        part: String,
        /// Its number.
        number: i64,
        /// Its name.
        name: String,
    },
    /// A row with the same key is there already.
    #[error("the same key is there already{}", .constraint.as_ref().map(|c| format!(" (`{c}`)")).unwrap_or_default())]
    Unique {
        /// The violated index, where the engine names it (PostgreSQL).
        constraint: Option<String>,
        /// The cause.
        #[source]
        source: sqlx::Error,
    },
    /// A row refers to another that is not there, or is still referred to.
    #[error("a row that is referred to is missing, or still in use")]
    ForeignKey {
        /// The cause.
        #[source]
        source: sqlx::Error,
    },
    /// A query that must give a row gave none.
    #[error("no such row")]
    NoRow,
    /// Somebody else holds the database for too long; the same call may succeed later.
    #[error("the database is busy{}", .held_by.map(|name| format!(" with transaction `{name}`")).unwrap_or_default())]
    Busy {
        /// The transaction of this process that holds the writer, if one does.
        held_by: Option<&'static str>,
        /// The cause.
        #[source]
        source: sqlx::Error,
    },
    /// No space is left where the database lies.
    #[error("no space is left for the database")]
    Full {
        /// The cause.
        #[source]
        source: sqlx::Error,
    },
    /// The connection to the database was lost.
    #[error("lost the connection to the database")]
    Lost {
        /// The cause.
        #[source]
        source: sqlx::Error,
    },
    /// A statement failed for another reason, mostly a bug.
    #[error("failed to run a statement")]
    Statement {
        /// The cause.
        #[source]
        source: sqlx::Error,
    },
    /// A stored value does not read as what it should be.
    #[error("column `{column}` holds what is no {expected}")]
    Corrupt {
        /// The column.
        column: &'static str,
        /// What it should hold.
        expected: &'static str,
    },
    /// The bytes of a dump could not be written or read.
    #[error("failed to {action} the dump of database `{database}`")]
    Stream {
        /// `write`, `read` or `note`.
        action: &'static str,
        /// The service's schema name.
        database: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The text is no dump, or was damaged.
    #[error("line {line} of the dump {problem}")]
    Dump {
        /// From 1.
        line: u64,
        /// What is wrong with it: the rest of the sentence.
        problem: String,
    },
    /// The database has something that migrations do not make.
    #[error("the database cannot be dumped: {0}")]
    Undumpable(String),
    /// What a column holds cannot be dumped.
    #[error("{place} cannot be dumped: it holds what is no {expected}")]
    Value {
        /// Row, column and table.
        place: String,
        /// What it should hold.
        expected: &'static str,
        /// The cause.
        #[source]
        source: sqlx::Error,
    },
    /// The engine refuses a row of a dump.
    #[error("failed to load table `{table}`: a row up to line {line} of the dump")]
    Load {
        /// The table.
        table: String,
        /// The last line of the rows that were inserted together.
        line: u64,
        /// The cause.
        #[source]
        source: sqlx::Error,
    },
    /// The database into which something was to be restored holds something.
    #[error("database `{database}` at {place} is not empty: it has table `{table}`")]
    NotEmpty {
        /// The service's schema name.
        database: &'static str,
        /// Where, without user and password.
        place: String,
        /// One of its tables.
        table: String,
    },
    /// What was read back is not what was written.
    #[error("table `{table}` of database `{database}` was not restored as it was dumped: {problem}")]
    Differs {
        /// The service's schema name.
        database: &'static str,
        /// The table.
        table: String,
        /// In which way.
        problem: String,
    },
    /// The lease is now somebody else's; whoever held it must stop.
    #[error("lease `{name}` number {number} is no longer held by `{holder}`")]
    LeaseLost {
        /// The lease.
        name: String,
        /// Who believed to hold it.
        holder: String,
        /// The fencing number that was shown.
        number: i64,
    },
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Unique { .. } | Self::ForeignKey { .. } | Self::LeaseLost { .. } => Class::Conflict,
            Self::NoRow => Class::NotFound,
            Self::Newer { .. } | Self::Dump { .. } => Class::User,
            Self::NotEmpty { .. } => Class::Conflict,
            Self::Open { .. } | Self::Busy { .. } | Self::Full { .. } | Self::Lost { .. } => {
                Class::Unavailable
            }
            Self::Prepare { .. }
            | Self::Declaration { .. }
            | Self::Backup { .. }
            | Self::Migrate { .. }
            | Self::MigrationChanged { .. }
            | Self::Statement { .. }
            | Self::Stream { .. }
            | Self::Load { .. }
            | Self::Undumpable(_)
            | Self::Value { .. }
            | Self::Differs { .. }
            | Self::Corrupt { .. } => Class::Internal,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Newer { .. } => {
                vec!["Start the program version that wrote the database, or a newer one.".to_owned()]
            }
            Self::Full { .. } => vec!["Free some space on the file system of the database.".to_owned()],
            _ => Vec::new(),
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(source: sqlx::Error) -> Self {
        match &source {
            sqlx::Error::RowNotFound => return Self::NoRow,
            sqlx::Error::PoolTimedOut => {
                return Self::Busy {
                    held_by: None,
                    source,
                };
            }
            sqlx::Error::Io(_)
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Tls(_) => {
                return Self::Lost { source };
            }
            _ => {}
        }
        let Some(database) = source.as_database_error() else {
            return Self::Statement { source };
        };
        if database.is_unique_violation() {
            let constraint = database.constraint().map(str::to_owned);
            return Self::Unique { constraint, source };
        }
        if database.is_foreign_key_violation() {
            return Self::ForeignKey { source };
        }
        match condition(database.code().as_deref().unwrap_or_default()) {
            Condition::Busy => Self::Busy {
                held_by: None,
                source,
            },
            Condition::Full => Self::Full { source },
            Condition::Lost => Self::Lost { source },
            Condition::Other => Self::Statement { source },
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Condition {
    Busy,
    Full,
    Lost,
    Other,
}

/// PostgreSQL gives a five-character SQLSTATE, SQLite an extended result code of at most four digits whose low byte is
/// the primary code (both tables are in the engines' manuals).
fn condition(code: &str) -> Condition {
    if code.len() == 5 {
        return match code {
            "40001" | "40P01" | "55P03" | "57014" => Condition::Busy,
            "53100" => Condition::Full,
            "57P01" | "57P02" | "57P03" | "53300" => Condition::Lost,
            _ if code.starts_with("08") => Condition::Lost,
            _ => Condition::Other,
        };
    }
    match code.parse::<u32>().map(|code| code & 0xff) {
        Ok(5 | 6) => Condition::Busy,
        Ok(13) => Condition::Full,
        _ => Condition::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_both_engines_are_understood() {
        for (code, expected) in [
            ("5", Condition::Busy),
            ("517", Condition::Busy),
            ("13", Condition::Full),
            ("40001", Condition::Busy),
            ("53100", Condition::Full),
            ("08006", Condition::Lost),
            ("42601", Condition::Other),
            ("1", Condition::Other),
            ("", Condition::Other),
        ] {
            assert_eq!(condition(code), expected, "{code}");
        }
    }
}
