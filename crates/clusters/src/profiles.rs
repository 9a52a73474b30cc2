//! Profiles: named wishes that clusters are made with.
//!
//! A profile never changes; a cluster keeps a copy of what it says, and its name so that nobody deletes it meanwhile. Each kind has a module that
//! turns the foreign document into a checked one; this one keeps them.

pub mod compute;
pub mod kubernetes;
pub mod network;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stolos_store::{AnyRow, Db, Migration, Tx, query};

use crate::db::{self, Whose};
use crate::error::{Error, Result};
use crate::who::Who;

/// Profiles, and which of them a cluster has.
pub(crate) const TABLE: Migration = Migration {
    number: 4,
    name: "profiles",
    statements: &[
        "CREATE TABLE profiles (
            kind        TEXT   NOT NULL,
            name        TEXT   NOT NULL,
            id          TEXT   NOT NULL UNIQUE,
            owner       TEXT   NOT NULL,
            description TEXT   NOT NULL,
            body        TEXT   NOT NULL,
            created_at  BIGINT NOT NULL,
            PRIMARY KEY (kind, name)
        )",
        "ALTER TABLE clusters ADD COLUMN network_profile TEXT",
        "ALTER TABLE clusters ADD COLUMN compute_profile TEXT",
        "ALTER TABLE clusters ADD COLUMN kubernetes_profile TEXT",
    ],
};

/// The longest name, in characters; PKS's limit for Kubernetes profiles.
const LONGEST_NAME: usize = 200;
/// The longest description, in characters.
const LONGEST_DESCRIPTION: usize = 4000;

/// The kinds of profiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Network,
    Compute,
    Kubernetes,
}

impl Kind {
    /// As texts have it: `network profile`.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Self::Network => "network profile",
            Self::Compute => "compute profile",
            Self::Kubernetes => "Kubernetes profile",
        }
    }

    /// As the table has it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Compute => "compute",
            Self::Kubernetes => "kubernetes",
        }
    }

    /// The clusters whose profile of this kind has a name. Written out, because a column's name cannot be bound.
    fn users_of(self) -> &'static str {
        match self {
            Self::Network => "SELECT name FROM clusters WHERE network_profile = $1 ORDER BY name",
            Self::Compute => "SELECT name FROM clusters WHERE compute_profile = $1 ORDER BY name",
            Self::Kubernetes => "SELECT name FROM clusters WHERE kubernetes_profile = $1 ORDER BY name",
        }
    }
}

/// A profile as kept.
#[derive(Clone, Debug)]
pub(crate) struct ProfileRow {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) owner: Who,
    pub(crate) description: String,
    /// What was sent, without secrets.
    pub(crate) body: Value,
    /// Milliseconds since 1970.
    pub(crate) created_at: i64,
}

/// Checks name and description of a new profile.
///
/// # Errors
/// [`Error::Request`].
pub(crate) fn check_names(name: &str, description: &str) -> Result<()> {
    let good = (1..=LONGEST_NAME).contains(&name.chars().count())
        && name
            .chars()
            .all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ' '))
        && name.trim() == name
        && !name.starts_with('.');
    if !good {
        return Err(Error::Request(format!(
            "`name` has to have 1 to {LONGEST_NAME} letters, digits, blanks, `-`, `_` or `.`, and no blank at its ends"
        )));
    }
    if description.chars().count() > LONGEST_DESCRIPTION {
        return Err(Error::Request(format!(
            "`description` is longer than {LONGEST_DESCRIPTION} characters"
        )));
    }
    Ok(())
}

const SELECT: &str = "SELECT kind, name, id, owner, owner_key, description, body, created_at FROM profiles";

/// All profiles of a kind that the caller may see, by name.
///
/// # Errors
/// Those of the database.
pub(crate) async fn all(db: &Db, kind: Kind, whose: Whose<'_>) -> Result<Vec<ProfileRow>> {
    let sql = format!("{SELECT} WHERE kind = $1 AND ($2 = '' OR owner_key = $2) ORDER BY name");
    query(stolos_store::AssertSqlSafe(sql))
        .bind(kind.word())
        .bind(whose.owner())
        .fetch_all(db.read())
        .await
        .map_err(|e| Error::database("list profiles")(e.into()))?
        .iter()
        .map(|row| to_profile(kind, row))
        .collect()
}

/// One profile, if the caller may see it.
///
/// # Errors
/// [`Error::NoProfile`] and those of the database.
pub(crate) async fn one(db: &Db, kind: Kind, name: &str, whose: Whose<'_>) -> Result<ProfileRow> {
    let sql = format!("{SELECT} WHERE kind = $1 AND name = $2 AND ($3 = '' OR owner_key = $3)");
    let row = query(stolos_store::AssertSqlSafe(sql))
        .bind(kind.word())
        .bind(name)
        .bind(whose.owner())
        .fetch_optional(db.read())
        .await
        .map_err(|e| Error::database("read the profile")(e.into()))?;
    row.map_or_else(
        || {
            Err(Error::NoProfile {
                kind: kind.noun(),
                name: name.chars().take(80).collect(),
            })
        },
        |row| to_profile(kind, &row),
    )
}

/// Writes a new profile.
///
/// # Errors
/// [`Error::ProfileTaken`] and those of the database.
pub(crate) async fn insert(tx: &mut Tx, profile: &ProfileRow) -> Result<()> {
    query(
        "INSERT INTO profiles (kind, name, id, owner, description, body, created_at, owner_key) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(profile.kind.word())
    .bind(&profile.name)
    .bind(&profile.id)
    .bind(&profile.owner.name)
    .bind(&profile.description)
    .bind(profile.body.to_string())
    .bind(profile.created_at)
    .bind(profile.owner.key.as_str())
    .execute(tx.conn())
    .await
    .map_err(|e| match stolos_store::Error::from(e) {
        stolos_store::Error::Unique { .. } => Error::ProfileTaken {
            kind: profile.kind.noun(),
            name: profile.name.clone(),
        },
        other => Error::database("write the profile")(other),
    })?;
    Ok(())
}

/// Deletes a profile that no cluster has.
///
/// # Errors
/// [`Error::ProfileInUse`] with the clusters, and those of the database.
pub(crate) async fn delete(tx: &mut Tx, kind: Kind, name: &str) -> Result<()> {
    let users: Vec<String> = query(kind.users_of())
        .bind(name)
        .fetch_all(tx.conn())
        .await
        .map_err(|e| Error::database("look for clusters with the profile")(e.into()))?
        .iter()
        .map(|row| db::get(row, "name"))
        .collect::<Result<_>>()?;
    if !users.is_empty() {
        return Err(Error::ProfileInUse {
            kind: kind.noun(),
            name: name.to_owned(),
            clusters: users,
        });
    }
    query("DELETE FROM profiles WHERE kind = $1 AND name = $2")
        .bind(kind.word())
        .bind(name)
        .execute(tx.conn())
        .await
        .map_err(|e| Error::database("delete the profile")(e.into()))?;
    Ok(())
}

/// Makes sure, in the transaction that gives a cluster a profile, that the profile is still there.
///
/// # Errors
/// [`Error::NoProfile`] and those of the database.
pub(crate) async fn hold(tx: &mut Tx, kind: Kind, name: &str) -> Result<()> {
    let row = query("SELECT id FROM profiles WHERE kind = $1 AND name = $2")
        .bind(kind.word())
        .bind(name)
        .fetch_optional(tx.conn())
        .await
        .map_err(|e| Error::database("read the profile")(e.into()))?;
    row.map(drop).ok_or_else(|| Error::NoProfile {
        kind: kind.noun(),
        name: name.to_owned(),
    })
}

fn to_profile(kind: Kind, row: &AnyRow) -> Result<ProfileRow> {
    let body: String = db::get(row, "body")?;
    Ok(ProfileRow {
        kind,
        name: db::get(row, "name")?,
        id: db::get(row, "id")?,
        owner: db::who(row, "owner", "owner_key")?,
        description: db::get(row, "description")?,
        body: db::from_json(&body)?,
        created_at: db::get(row, "created_at")?,
    })
}

/// What a profile's document got wrong: where, and what.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Invalid(pub String);

/// `KEY=VALUE,KEY=VALUE`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, Invalid> {
    text.split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| Invalid(format!("`{pair}` is not `KEY=VALUE`")))?;
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        })
        .collect()
}

/// Checks the key of a label or taint: an optional DNS prefix, and a name of at most 63 characters.
fn check_key(key: &str) -> Result<(), Invalid> {
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(p, n)| (Some(p), n));
    let prefix_is_good = prefix.is_none_or(|prefix| {
        (1..=253).contains(&prefix.len())
            && prefix
                .split('.')
                .all(|label| is_word(label, false) && label.len() <= 63)
    });
    if prefix_is_good && is_word(name, true) && name.len() <= 63 {
        Ok(())
    } else {
        Err(Invalid(format!("`{key}` is not a valid label key")))
    }
}

/// Letters and digits at both ends; `-` and, where `wide`, `_` and `.` in between.
fn is_word(text: &str, wide: bool) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || (wide && matches!(b, b'_' | b'.'));
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    text.bytes().all(inner) && ends(text.as_bytes().first()) && ends(text.as_bytes().last())
}

/// Checks the value of a label or taint: empty, or a name of at most 63 characters.
fn check_value(value: &str) -> Result<(), Invalid> {
    if value.is_empty() || (value.len() <= 63 && is_word(value, true)) {
        Ok(())
    } else {
        Err(Invalid(format!("`{value}` is not a valid label value")))
    }
}
