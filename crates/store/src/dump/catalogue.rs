//! What tables a database has, as its engine's catalogue knows them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sqlx::{AnyConnection, Row as _};

use crate::db::Engine;
use crate::error::{Error, Result};

/// The type of a column: those of the dialect that both engines understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// `TEXT`.
    Text,
    /// `BIGINT`.
    Bigint,
    /// `{blob}`.
    Blob,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// The place in the primary key.
    pub(crate) key: Option<i64>,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) name: String,
    /// In the order of their declaration, which the migrations fix on both engines.
    pub(crate) columns: Vec<Column>,
}

impl Table {
    /// What reads all rows in an order that depends on their values alone, so that both engines give the same: by the
    /// primary key, and by everything where there is none.
    pub(crate) fn select(&self, engine: Engine) -> String {
        let names: Vec<String> = self.columns.iter().map(|column| quoted(&column.name)).collect();
        let mut order: Vec<&Column> = self
            .columns
            .iter()
            .filter(|column| column.key.is_some())
            .collect();
        order.sort_by_key(|column| column.key);
        if order.is_empty() {
            order = self.columns.iter().collect();
        }
        let order: Vec<String> = order
            .into_iter()
            .map(|column| {
                // SQLite compares texts by their bytes, and PostgreSQL does with this collation. Without it, the database's locale decides.
                let bytes = engine == Engine::Postgres && column.kind == Kind::Text;
                let collation = if bytes { " COLLATE \"C\"" } else { "" };
                format!("{}{collation} NULLS FIRST", quoted(&column.name))
            })
            .collect();
        format!(
            "SELECT {} FROM {} ORDER BY {}",
            names.join(", "),
            quoted(&self.name),
            order.join(", ")
        )
    }

    /// What inserts so many rows.
    pub(crate) fn insert(&self, rows: usize) -> String {
        let names: Vec<String> = self.columns.iter().map(|column| quoted(&column.name)).collect();
        let width = names.len();
        let values: Vec<String> = (0..rows)
            .map(|row| {
                let places: Vec<String> = (1..=width).map(|i| format!("${}", row * width + i)).collect();
                format!("({})", places.join(", "))
            })
            .collect();
        format!(
            "INSERT INTO {} ({}) VALUES {}",
            quoted(&self.name),
            names.join(", "),
            values.join(", ")
        )
    }
}

/// As an identifier.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The names of all tables of a service, sorted.
pub(crate) async fn tables(
    connection: &mut AnyConnection,
    engine: Engine,
    schema: &str,
) -> Result<Vec<String>> {
    let rows = match engine {
        Engine::Sqlite => {
            sqlx::query("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'")
        }
        Engine::Postgres => sqlx::query(
            "SELECT CAST(c.relname AS TEXT) AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = $1 AND c.relkind IN ('r', 'p')",
        )
        .bind(schema),
    };
    let mut names: Vec<String> = rows
        .fetch_all(connection)
        .await?
        .iter()
        .map(|row| row.try_get("name"))
        .collect::<Result<_, sqlx::Error>>()?;
    names.sort();
    Ok(names)
}

/// All tables of a service: each after those that it refers to, so that rows can be inserted in this order.
pub(crate) async fn read(connection: &mut AnyConnection, engine: Engine, schema: &str) -> Result<Vec<Table>> {
    let names = tables(connection, engine, schema).await?;
    let mut refers = references(connection, engine, schema).await?;
    let mut sorted = Vec::with_capacity(names.len());
    let mut left: BTreeSet<String> = names.into_iter().collect();
    while !left.is_empty() {
        let free: Vec<String> = left
            .iter()
            .filter(|name| {
                let targets = refers.get(*name);
                !targets.is_some_and(|targets| targets.iter().any(|one| one != *name && left.contains(one)))
            })
            .cloned()
            .collect();
        let Some(_) = free.first() else {
            // A ring cannot be made by migrations of the dialect: a table refers to what is there when it is made.
            return Err(Error::Undumpable(format!("tables {left:?} refer to one another")));
        };
        for name in free {
            left.remove(&name);
            refers.remove(&name);
            let columns = columns(connection, engine, schema, &name).await?;
            sorted.push(Table { name, columns });
        }
    }
    Ok(sorted)
}

/// Table → the tables that it refers to.
async fn references(
    connection: &mut AnyConnection,
    engine: Engine,
    schema: &str,
) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let rows = match engine {
        Engine::Sqlite => sqlx::query(
            "SELECT m.name AS name, f.\"table\" AS target FROM sqlite_master m, pragma_foreign_key_list(m.name) f
             WHERE m.type = 'table'",
        ),
        Engine::Postgres => sqlx::query(
            "SELECT CAST(c.relname AS TEXT) AS name, CAST(t.relname AS TEXT) AS target
             FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_class t ON t.oid = k.confrelid
             JOIN pg_namespace n ON n.oid = k.connamespace WHERE k.contype = 'f' AND n.nspname = $1",
        )
        .bind(schema),
    };
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for row in rows.fetch_all(connection).await? {
        all.entry(row.try_get("name")?)
            .or_default()
            .insert(row.try_get("target")?);
    }
    Ok(all)
}

async fn columns(
    connection: &mut AnyConnection,
    engine: Engine,
    schema: &str,
    table: &str,
) -> Result<Vec<Column>> {
    let rows = match engine {
        Engine::Sqlite => sqlx::query(
            "SELECT name, type AS kind, CAST(pk AS BIGINT) AS place FROM pragma_table_info($1) ORDER BY cid",
        )
        .bind(table),
        Engine::Postgres => sqlx::query(
            "SELECT CAST(a.attname AS TEXT) AS name, format_type(a.atttypid, a.atttypmod) AS kind,
                    CAST(COALESCE(array_position(CAST(i.indkey AS SMALLINT[]), a.attnum), -1) + 1 AS BIGINT) AS place
             FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
             LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
             WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
        )
        .bind(schema)
        .bind(table),
    };
    rows.fetch_all(connection)
        .await?
        .iter()
        .map(|row| {
            let (name, kind): (String, String) = (row.try_get("name")?, row.try_get("kind")?);
            let kind = match kind.to_ascii_lowercase().as_str() {
                "text" => Kind::Text,
                "bigint" => Kind::Bigint,
                "blob" | "bytea" => Kind::Blob,
                other => {
                    return Err(Error::Undumpable(format!(
                        "column `{name}` of table `{table}` has type `{other}`, which is not of the dialect of both engines"
                    )));
                }
            };
            let place: i64 = row.try_get("place")?;
            Ok(Column {
                name,
                kind,
                key: (place > 0).then_some(place),
            })
        })
        .collect()
}
