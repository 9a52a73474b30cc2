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
