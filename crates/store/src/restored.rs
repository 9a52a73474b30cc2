//! The mark that a database was restored from a backup, and is therefore older than the world that it describes.
//!
//! What was under way when the backup was taken ended long ago, one way or the other, and may have been undone since. So
//! whoever takes up unfinished work asks [`last`] first, and does not go on with what began before.

use sqlx::Row as _;

use crate::db::{Db, Tx};
use crate::error::Result;
use crate::schema::Migration;

pub(crate) const MIGRATION: Migration = Migration {
    number: 3,
    name: "restored",
    statements: &["CREATE TABLE store_restored (
        -- milliseconds since the Unix epoch
        at BIGINT PRIMARY KEY,
        backup TEXT NOT NULL,
        taken_at BIGINT NOT NULL
    )"],
};

/// That a database was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// When, in milliseconds since the Unix epoch.
    pub at: i64,
    /// The backup's id.
    pub backup: String,
    /// When the backup was taken, in milliseconds since the Unix epoch.
    pub taken_at: i64,
}

/// The last time that this database was restored, if it ever was.
///
/// # Errors
/// Those of the database.
pub async fn last(db: &Db) -> Result<Option<Restored>> {
    let row = sqlx::query("SELECT at, backup, taken_at FROM store_restored ORDER BY at DESC LIMIT 1")
        .fetch_optional(db.read())
        .await?;
    row.map(|row| {
        Ok(Restored {
            at: row.try_get("at")?,
            backup: row.try_get("backup")?,
            taken_at: row.try_get("taken_at")?,
        })
    })
    .transpose()
}

/// Why what began at `began` (milliseconds since the Unix epoch) must not go on, if it must not: the database was restored
/// since, so what is known of it is older than what became of it.
///
/// # Errors
/// Those of the database.
pub async fn refusal(db: &Db, began: i64) -> Result<Option<String>> {
    let last = last(db).await?.filter(|restored| began <= restored.at);
    Ok(last.map(|restored| {
        let taken = jiff_text(restored.taken_at);
        format!(
            "it was under way when backup {} was taken ({taken}); the installation was restored from that, and nobody knows how far it \
             had come. Look how things are, and ask for it again",
            restored.backup
        )
    }))
}

fn jiff_text(millis: i64) -> String {
    jiff::Timestamp::from_millisecond(millis)
        .map(|at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .unwrap_or_default()
}

/// Notes that the database was restored.
pub(crate) async fn note(tx: &mut Tx, restored: &Restored) -> Result<()> {
    sqlx::query(
        "INSERT INTO store_restored (at, backup, taken_at) VALUES ($1, $2, $3) ON CONFLICT (at) DO NOTHING",
    )
    .bind(restored.at)
    .bind(&restored.backup)
    .bind(restored.taken_at)
    .execute(tx.conn())
    .await?;
    Ok(())
}
