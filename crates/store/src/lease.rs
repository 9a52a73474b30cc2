//! Leases: the right of one holder to do something, with a number that only grows.
//!
//! A lease runs out by the wall clock, which may jump, so it is never the lease alone that keeps two holders apart:
//! whoever acts for a lease shows its fencing number inside the transaction that records the act ([`verify`]), and a
//! number that has been overtaken is refused there. A lease that ran out but was taken by nobody stays valid.
//!
//! The name of a holder says who may take over at once: a process that is started under an exclusive lock (one
//! `stolosd` per instance) uses the same name each time, so that it need not wait for its dead predecessor's lease.
//!
//! Other crates may read the table `store_leases` in joins; only this module writes it.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::Row as _;

use crate::db::{Db, Tx};
use crate::error::{Error, Result};
use crate::schema::Migration;

pub(crate) const MIGRATION: Migration = Migration {
    number: 1,
    name: "leases",
    statements: &["CREATE TABLE store_leases (
        name TEXT PRIMARY KEY,
        -- empty when released; the row stays for the sake of its number
        holder TEXT NOT NULL,
        number BIGINT NOT NULL,
        expires_at BIGINT NOT NULL
    )"],
};

/// What a holder shows to prove that it still holds a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The lease.
    pub name: String,
    /// Who holds it.
    pub holder: String,
    /// Grows by one each time the lease is acquired; never reused.
    pub number: i64,
}

/// A lease just acquired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// What to show.
    pub fence: Fence,
    /// When it runs out unless renewed, in milliseconds since the Unix epoch.
    pub expires_at: i64,
}

/// The outcome of asking for a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// It is ours.
    Yes(Lease),
    /// Somebody else holds it.
    No {
        /// Who.
        holder: String,
        /// When it runs out, in milliseconds since the Unix epoch.
        expires_at: i64,
    },
}

/// Takes the lease when it is new, released, run out, or held under the same holder name (an earlier life of the
/// caller); each time with the next number, so that an earlier life is shut out.
///
/// # Errors
/// Those of the database.
pub async fn acquire(tx: &mut Tx, name: &str, holder: &str, ttl: Duration) -> Result<Acquired> {
    let now = tx.now_millis();
    let expires_at = now.saturating_add(millis(ttl));
    let row = sqlx::query("SELECT holder, number, expires_at FROM store_leases WHERE name = $1")
        .bind(name)
        .fetch_optional(tx.conn())
        .await?;
    let number = match row {
        None => 1,
        Some(row) => {
            let current: String = row.try_get("holder")?;
            let until: i64 = row.try_get("expires_at")?;
            if !current.is_empty() && current != holder && until > now {
                return Ok(Acquired::No {
                    holder: current,
                    expires_at: until,
                });
            }
            row.try_get::<i64, _>("number")? + 1
        }
    };
    sqlx::query(
        "INSERT INTO store_leases (name, holder, number, expires_at) VALUES ($1, $2, $3, $4)
         ON CONFLICT (name) DO UPDATE
         SET holder = excluded.holder, number = excluded.number, expires_at = excluded.expires_at",
    )
    .bind(name)
    .bind(holder)
    .bind(number)
    .bind(expires_at)
    .execute(tx.conn())
    .await?;
    Ok(Acquired::Yes(Lease {
        fence: Fence {
            name: name.to_owned(),
            holder: holder.to_owned(),
            number,
        },
        expires_at,
    }))
}

/// Moves the end of the lease to `ttl` from now and gives the new end.
///
/// # Errors
/// [`Error::LeaseLost`] when somebody else has taken it.
pub async fn renew(tx: &mut Tx, fence: &Fence, ttl: Duration) -> Result<i64> {
    let expires_at = tx.now_millis().saturating_add(millis(ttl));
    let changed = sqlx::query(
        "UPDATE store_leases SET expires_at = $1 WHERE name = $2 AND holder = $3 AND number = $4",
    )
    .bind(expires_at)
    .bind(&fence.name)
    .bind(&fence.holder)
    .bind(fence.number)
    .execute(tx.conn())
    .await?
    .rows_affected();
    if changed == 1 {
        Ok(expires_at)
    } else {
        Err(lost(fence))
    }
}

/// Moves the end of all these leases, which one holder has, to `ttl` from now, in two statements however many they are; gives
/// those that somebody else has taken.
///
/// # Errors
/// Those of the database.
pub async fn renew_all(tx: &mut Tx, fences: &[Fence], ttl: Duration) -> Result<Vec<Fence>> {
    let expires_at = tx.now_millis().saturating_add(millis(ttl));
    let lost: Vec<Fence> = lost_of(tx, fences).await?;
    let held: Vec<&Fence> = fences.iter().filter(|fence| !lost.contains(fence)).collect();
    if !held.is_empty() {
        // The text is put together from constants and numbers only.
        let names = placeholders(2, held.len());
        let sql = format!("UPDATE store_leases SET expires_at = $1 WHERE name IN ({names})");
        let mut update = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(expires_at);
        for fence in held {
            update = update.bind(&fence.name);
        }
        update.execute(tx.conn()).await?;
    }
    Ok(lost)
}

/// Of these, those that were taken by somebody else or released: [`verify`] for several, in one statement.
///
/// # Errors
/// Those of the database.
pub async fn lost_of(tx: &mut Tx, fences: &[Fence]) -> Result<Vec<Fence>> {
    if fences.is_empty() {
        return Ok(Vec::new());
    }
    // The text is put together from constants and numbers only.
    let names = placeholders(1, fences.len());
    let sql = format!("SELECT name, holder, number FROM store_leases WHERE name IN ({names})");
    let mut held = sqlx::query(sqlx::AssertSqlSafe(sql));
    for fence in fences {
        held = held.bind(&fence.name);
    }
    let mut now = HashMap::with_capacity(fences.len());
    for row in held.fetch_all(tx.conn()).await? {
        let name: String = row.try_get("name")?;
        let fence = Fence {
            name: name.clone(),
            holder: row.try_get("holder")?,
            number: row.try_get("number")?,
        };
        now.insert(name, fence);
    }
    let lost = fences.iter().filter(|fence| now.get(&fence.name) != Some(*fence));
    Ok(lost.cloned().collect())
}

fn placeholders(first: usize, many: usize) -> String {
    let all: Vec<String> = (first..first + many).map(|number| format!("${number}")).collect();
    all.join(", ")
}

/// Gives the lease back. One that is somebody else's by now is left alone.
///
/// # Errors
/// Those of the database.
pub async fn release(tx: &mut Tx, fence: &Fence) -> Result<()> {
    sqlx::query(
        "UPDATE store_leases SET holder = '', expires_at = 0 WHERE name = $1 AND holder = $2 AND number = $3",
    )
    .bind(&fence.name)
    .bind(&fence.holder)
    .bind(fence.number)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Refuses when the lease has been taken by somebody else or released. Called first in every transaction that acts for
/// the lease; since write transactions are serial, the answer holds until the commit.
///
/// # Errors
/// [`Error::LeaseLost`].
pub async fn verify(tx: &mut Tx, fence: &Fence) -> Result<()> {
    let row = sqlx::query("SELECT holder, number FROM store_leases WHERE name = $1")
        .bind(&fence.name)
        .fetch_optional(tx.conn())
        .await?
        .ok_or_else(|| lost(fence))?;
    let same = row.try_get::<String, _>("holder")? == fence.holder
        && row.try_get::<i64, _>("number")? == fence.number;
    if same { Ok(()) } else { Err(lost(fence)) }
}

/// Forgets a released lease together with its number. Only for names that never come back.
///
/// # Errors
/// Those of the database.
pub async fn forget(tx: &mut Tx, name: &str) -> Result<()> {
    sqlx::query("DELETE FROM store_leases WHERE name = $1 AND holder = ''")
        .bind(name)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Who holds the lease now, whether or not it has run out.
///
/// # Errors
/// Those of the database.
pub async fn holder(db: &Db, name: &str) -> Result<Option<Fence>> {
    let row = sqlx::query("SELECT holder, number FROM store_leases WHERE name = $1 AND holder <> ''")
        .bind(name)
        .fetch_optional(db.read())
        .await?;
    row.map(|row| {
        Ok(Fence {
            name: name.to_owned(),
            holder: row.try_get("holder")?,
            number: row.try_get("number")?,
        })
    })
    .transpose()
}

/// Whether somebody else than `holder` has the lease and it has not run out: then there is no use in asking for it.
///
/// # Errors
/// Those of the database.
pub async fn is_held_by_other(db: &Db, name: &str, holder: &str) -> Result<bool> {
    let row = sqlx::query(
        "SELECT name FROM store_leases WHERE name = $1 AND holder <> '' AND holder <> $2 AND expires_at > $3",
    )
    .bind(name)
    .bind(holder)
    .bind(db.clock().now_millis())
    .fetch_optional(db.read())
    .await?;
    Ok(row.is_some())
}

fn lost(fence: &Fence) -> Error {
    Error::LeaseLost {
        name: fence.name.clone(),
        holder: fence.holder.clone(),
        number: fence.number,
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
