//! The database of a service: SQLite or PostgreSQL behind one [`Db`].
//!
//! Owns: opening, migrations with a backup before them, named transactions, leases with fencing numbers, duties that one
//! process at a time has, signals between processes, sequences, dumps that either engine takes
//! ([`dump`](mod@dump)), the errors that a database gives, and the harness that runs a service's database tests on both engines
//! ([`testing`]). Never does: knowing any service's tables, or a transaction across services.
//!
//! Invariants:
//! - Each service has its own database file (SQLite) or schema (PostgreSQL).
//! - Write transactions of one service are serial, on both engines and across processes. What a transaction has read
//!   cannot change before it commits, and no commit fails because of another transaction.
//! - A database that is newer than the program, or whose migrations were changed afterwards, is refused.
//!
//! # SQL that both engines understand
//! - Column types: `TEXT` (ids, names, JSON), `BIGINT` (numbers, booleans as 0 and 1, times as milliseconds since the
//!   Unix epoch) and `{blob}` in migrations (bytes). Nothing else: no `BOOLEAN`, `REAL`, `NUMERIC`, `TIMESTAMP`, `JSONB`.
//! - Placeholders are `$1`, `$2`, …; bind `&str`/`String`, `i64`, `&[u8]`/`Vec<u8>` and `Option`s of them.
//! - Read with `row.try_get::<i64, _>("n")?`. `SUM` of a `BIGINT` is `NUMERIC` on PostgreSQL:
//!   write `CAST(SUM(n) AS BIGINT)`. Truth values out of a query: `CASE WHEN … THEN 1 ELSE 0 END`, or count.
//! - `INSERT … ON CONFLICT (…) DO UPDATE/NOTHING` and `RETURNING` work on both. No `AUTOINCREMENT`: see [`sequence`].
//! - SQLite orders text by bytes, PostgreSQL by the database's locale: where the order matters, order by ids, numbers
//!   and times.
//!
//! ```no_run
//! use stolos_store::{Db, DatabaseUrl, Migration, Part, Row as _, Schema, query};
//!
//! static TABLES: Part = Part {
//!     name: "shop",
//!     migrations: &[Migration {
//!         number: 1,
//!         name: "orders",
//!         statements: &["CREATE TABLE orders (id TEXT PRIMARY KEY, body {blob} NOT NULL)"],
//!     }],
//! };
//! static SCHEMA: Schema = Schema { name: "shop", parts: &[&TABLES] };
//!
//! # async fn example(url: DatabaseUrl, clock: stolos_base::Clock) -> Result<(), stolos_store::Error> {
//! let db = Db::open(&url, &SCHEMA, clock).await?;
//! let mut tx = db.begin("add an order").await?;
//! query("INSERT INTO orders (id, body) VALUES ($1, $2)").bind("a").bind(vec![1_u8]).execute(tx.conn()).await?;
//! tx.commit().await?;
//! let row = query("SELECT body FROM orders WHERE id = $1").bind("a").fetch_one(db.read()).await?;
//! let body: Vec<u8> = row.try_get("body")?;
//! # Ok(())
//! # }
//! ```

mod db;
pub mod dump;
pub mod duty;
mod error;
pub mod lease;
pub mod restored;
mod schema;
pub mod sequence;
pub mod signal;
pub mod testing;

pub use sqlx;
pub use sqlx::any::{AnyQueryResult, AnyRow};
pub use sqlx::{AnyConnection, AssertSqlSafe, Row, query, query_scalar};

pub use crate::db::{DatabaseUrl, Db, Engine, InvalidDatabaseUrl, Tx};
pub use crate::error::{Error, Result};
pub use crate::lease::{Fence, Lease};
pub use crate::schema::{Migration, Part, Schema};
pub use crate::signal::{Signal, Signals};
