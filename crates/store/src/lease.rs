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
