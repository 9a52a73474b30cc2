//! Numbers for people (task 17, deployment 4): growing, never given twice, even after a delete.

use sqlx::Row as _;

use crate::db::Tx;
use crate::error::Result;
use crate::schema::Migration;

pub(crate) const MIGRATION: Migration = Migration {
    number: 2,
    name: "sequences",
    statements: &["CREATE TABLE store_sequences (name TEXT PRIMARY KEY, last BIGINT NOT NULL)"],
};

/// The next number of the sequence, from 1. A rolled back transaction gives its number back.
///
/// # Errors
/// Those of the database.
pub async fn next(tx: &mut Tx, name: &str) -> Result<i64> {
    let row = sqlx::query(
        "INSERT INTO store_sequences (name, last) VALUES ($1, 1)
         ON CONFLICT (name) DO UPDATE SET last = store_sequences.last + 1
         RETURNING last",
    )
    .bind(name)
    .fetch_one(tx.conn())
    .await?;
    Ok(row.try_get("last")?)
}
