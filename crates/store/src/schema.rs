//! Schemas as lists of numbered migrations, and their application.

use std::collections::BTreeMap;

use aws_lc_rs::digest;
use sqlx::{AnyConnection, Row as _};

use crate::db::{Engine, Tx};
use crate::error::{Error, Result};
use crate::{lease, restored, sequence};

/// All tables of one service.
#[derive(Debug)]
pub struct Schema {
    /// The database file's or PostgreSQL schema's name: a lower-case letter, then lower-case letters, digits or `_`.
    pub name: &'static str,
    /// The parts, each with its own line of migrations. Libraries that keep tables in a service's database export one
    /// (`flow::TABLES`); the service adds its own. This crate's tables (leases, sequences) are always there.
    pub parts: &'static [&'static Part],
}

/// A group of tables that changes together.
#[derive(Debug)]
pub struct Part {
    /// The name under which the migrations are recorded; never changed.
    pub name: &'static str,
    /// Numbered 1, 2, 3 …; append only.
    pub migrations: &'static [Migration],
}

/// One change, applied once, in a transaction together with its record.
#[derive(Debug)]
pub struct Migration {
    /// The position in its part, from 1.
    pub number: i64,
    /// What it does, for people; never changed.
    pub name: &'static str,
    /// SQL of one statement each, run in order. The token `{blob}` stands for the engine's type for bytes.
    pub statements: &'static [&'static str],
}

impl Migration {
    fn digest(&self) -> String {
        let mut context = digest::Context::new(&digest::SHA256);
        for text in std::iter::once(&self.name).chain(self.statements) {
            context.update(text.as_bytes());
            context.update(&[0]);
        }
        hex::encode(context.finish())
    }
}

static OWN: Part = Part {
    name: "store",
    migrations: &[
        lease::MIGRATION,
        sequence::MIGRATION,
        restored::MIGRATION,
        // new migrations go above this line, with the next number
    ],
};

/// Its name.
pub(crate) const RECORD_TABLE: &str = "store_migrations";

/// The table that says which migrations a database has.
pub(crate) const RECORD: &str = "CREATE TABLE IF NOT EXISTS store_migrations (
    part TEXT NOT NULL,
    number BIGINT NOT NULL,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    applied_at BIGINT NOT NULL,
    PRIMARY KEY (part, number)
)";

/// Whether the name can be a file name, a PostgreSQL schema and part of a statement without quoting.
fn is_plain(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_lowercase())
        && name.len() <= 40
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

impl Schema {
    pub(crate) fn parts(&self) -> impl Iterator<Item = &'static Part> {
        std::iter::once(&OWN).chain(self.parts.iter().copied())
    }

    pub(crate) fn check(&'static self) -> Result<()> {
        let broken = |rule: String| Error::Declaration {
            schema: self.name,
            rule,
        };
        if !is_plain(self.name) {
            return Err(broken("its name is not plain".to_owned()));
        }
        let mut names = std::collections::BTreeSet::new();
        for part in self.parts() {
            if !names.insert(part.name) {
                return Err(broken(format!("part `{}` is there twice", part.name)));
            }
            for (expected, migration) in (1..).zip(part.migrations) {
                if migration.number != expected {
                    return Err(broken(format!(
                        "part `{}` has migration {} where {expected} is due",
                        part.name, migration.number
                    )));
                }
            }
        }
        Ok(())
    }

    /// What the database has against what the program has: refuses, or gives what is still to be applied.
    pub(crate) fn pending(
        &'static self,
        applied: &Applied,
    ) -> Result<Vec<(&'static Part, &'static Migration)>> {
        let mut known: BTreeMap<(&str, i64), &Migration> = BTreeMap::new();
        for part in self.parts() {
            known.extend(part.migrations.iter().map(|m| ((part.name, m.number), m)));
        }
        for ((part, number), (name, digest)) in applied {
            match known.get(&(part.as_str(), *number)) {
                None => {
                    return Err(Error::Newer {
                        database: self.name,
                        part: part.clone(),
                        number: *number,
                        name: name.clone(),
                    });
                }
                Some(migration) if migration.digest() != *digest => {
                    return Err(Error::MigrationChanged {
                        database: self.name,
                        part: part.clone(),
                        number: *number,
                        name: name.clone(),
                    });
                }
                Some(_) => {}
            }
        }
        Ok(self
            .parts()
            .flat_map(|part| part.migrations.iter().map(move |m| (part, m)))
            .filter(|(part, m)| !applied.contains_key(&(part.name.to_owned(), m.number)))
            .collect())
    }
}

/// Name and digest of the applied migrations by part and number.
pub(crate) type Applied = BTreeMap<(String, i64), (String, String)>;

pub(crate) async fn applied(connection: &mut AnyConnection) -> Result<Applied> {
    sqlx::query("SELECT part, number, name, digest FROM store_migrations")
        .fetch_all(connection)
        .await?
        .into_iter()
        .map(|row| {
            Ok((
                (row.try_get("part")?, row.try_get("number")?),
                (row.try_get("name")?, row.try_get("digest")?),
            ))
        })
        .collect()
}

/// What a database needs before the program can use it.
pub(crate) enum Need {
    /// Nothing.
    Nothing,
    /// All tables; there is nothing yet that a backup could save.
    Everything,
    /// Some migrations.
    Some,
}

/// Looks without changing anything but the (empty) record table.
pub(crate) async fn look(mut tx: Tx, schema: &'static Schema) -> Result<Need> {
    sqlx::query(RECORD).execute(tx.conn()).await?;
    let applied = applied(tx.conn()).await?;
    let pending = schema.pending(&applied)?;
    tx.commit().await?;
    Ok(match (applied.is_empty(), pending.is_empty()) {
        (_, true) => Need::Nothing,
        (true, false) => Need::Everything,
        (false, false) => Need::Some,
    })
}

/// Applies what is missing, all in one transaction: either the whole step to this program's schema or nothing.
/// The write lock that `tx` holds keeps other processes out; what they did meanwhile is seen.
pub(crate) async fn apply(mut tx: Tx, schema: &'static Schema) -> Result<()> {
    apply_in(&mut tx, schema).await?;
    tx.commit().await
}

/// The same in a transaction that goes on.
pub(crate) async fn apply_in(tx: &mut Tx, schema: &'static Schema) -> Result<()> {
    let applied = applied(tx.conn()).await?;
    for (part, migration) in schema.pending(&applied)? {
        tracing::info!(
            database = schema.name,
            part = part.name,
            number = migration.number,
            name = migration.name,
            "migrating"
        );
        run(tx, part, migration).await?;
        let now = tx.now_millis();
        sqlx::query(
            "INSERT INTO store_migrations (part, number, name, digest, applied_at) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(part.name)
        .bind(migration.number)
        .bind(migration.name)
        .bind(migration.digest())
        .bind(now)
        .execute(tx.conn())
        .await
        .map_err(|source| failed(part, migration, source))?;
    }
    Ok(())
}

/// Runs a migration's statements without recording it.
pub(crate) async fn run(tx: &mut Tx, part: &Part, migration: &Migration) -> Result<()> {
    let blob = match tx.engine() {
        Engine::Sqlite => "BLOB",
        Engine::Postgres => "BYTEA",
    };
    for statement in migration.statements {
        // Only the program's own constants are put together here.
        let statement = statement.replace("{blob}", blob);
        sqlx::query(sqlx::AssertSqlSafe(statement))
            .execute(tx.conn())
            .await
            .map_err(|source| failed(part, migration, source))?;
    }
    Ok(())
}

fn failed(part: &Part, migration: &Migration, source: sqlx::Error) -> Error {
    Error::Migrate {
        part: part.name,
        number: migration.number,
        name: migration.name,
        source,
    }
}
