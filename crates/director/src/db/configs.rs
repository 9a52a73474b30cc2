//! Configs: versions by type and name, the newest counts.

use stolos_api::director as wire;
use stolos_store::{AnyRow, AssertSqlSafe, Db, Tx, query, sequence};

use super::get;
use super::tasks::time_text;
use crate::error::{Error, Result};

/// A config as kept.
#[derive(Clone, Debug)]
pub(crate) struct ConfigRow {
    pub(crate) id: i64,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) content: String,
    pub(crate) created_at: i64,
    pub(crate) current: bool,
}

/// Which configs to list.
#[derive(Debug, Default)]
pub(crate) struct Filter<'a> {
    pub(crate) kind: Option<&'a str>,
    pub(crate) name: Option<&'a str>,
    /// Only the newest of each type and name.
    pub(crate) latest: bool,
    pub(crate) limit: u32,
}

impl ConfigRow {
    pub(crate) fn to_wire(&self) -> wire::Config {
        wire::Config {
            content: self.content.clone(),
            id: self.id.to_string(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            team: None,
            created_at: time_text(self.created_at, "%Y-%m-%d %H:%M:%S UTC"),
            current: self.current,
        }
    }
}

const SELECT: &str = "SELECT c.id, c.kind, c.name, c.content, c.created_at,
    CASE WHEN c.id = (SELECT MAX(n.id) FROM configs n WHERE n.kind = c.kind AND n.name = c.name) THEN 1 ELSE 0 END AS current
    FROM configs c WHERE 1 = 1";

/// Newest first.
pub(crate) async fn list(db: &Db, filter: &Filter<'_>) -> Result<Vec<ConfigRow>> {
    let mut sql = format!("{SELECT} AND ($1 = '' OR c.kind = $1) AND ($2 = '' OR c.name = $2)");
    if filter.latest {
        sql.push_str(
            " AND c.id = (SELECT MAX(n.id) FROM configs n WHERE n.kind = c.kind AND n.name = c.name)",
        );
    }
    sql.push_str(" ORDER BY c.id DESC LIMIT $3");
    query(AssertSqlSafe(sql))
        .bind(filter.kind.unwrap_or_default())
        .bind(filter.name.unwrap_or_default())
        .bind(i64::from(filter.limit))
        .fetch_all(db.read())
        .await?
        .iter()
        .map(config)
        .collect()
}

/// Id and name of the newest of each name of a type, oldest first: what a deploy merges.
pub(crate) async fn newest_ids(db: &Db, kind: &str) -> Result<Vec<(i64, String)>> {
    query("SELECT MAX(id) AS id, name FROM configs WHERE kind = $1 GROUP BY name ORDER BY 1")
        .bind(kind)
        .fetch_all(db.read())
        .await?
        .iter()
        .map(|row| Ok((get(row, "id")?, get(row, "name")?)))
        .collect()
}

pub(crate) async fn find(db: &Db, id: i64) -> Result<ConfigRow> {
    let sql = format!("{SELECT} AND c.id = $1");
    let row = query(AssertSqlSafe(sql))
        .bind(id)
        .fetch_optional(db.read())
        .await?;
    row.map_or_else(|| Err(Error::NoConfig(id.to_string())), |row| config(&row))
}

/// Writes a new version, unless the newest one says the same.
pub(crate) async fn write(tx: &mut Tx, update: &wire::ConfigUpdate) -> Result<ConfigRow> {
    let sql = format!("{SELECT} AND c.kind = $1 AND c.name = $2 ORDER BY c.id DESC LIMIT 1");
    let newest = query(AssertSqlSafe(sql))
        .bind(&update.kind)
        .bind(&update.name)
        .fetch_optional(tx.conn())
        .await?
        .map(|row| config(&row))
        .transpose()?
        .filter(|row| row.current);
    let latest = newest
        .as_ref()
        .map_or_else(|| "0".to_owned(), |row| row.id.to_string());
    if let Some(expected) = &update.expected_latest_id
        && *expected != latest
    {
        return Err(Error::ConfigChanged {
            latest,
            expected: expected.clone(),
        });
    }
    if let Some(row) = newest
        && row.content == update.content
    {
        return Ok(row);
    }
    let row = ConfigRow {
        id: sequence::next(tx, "configs").await?,
        kind: update.kind.clone(),
        name: update.name.clone(),
        content: update.content.clone(),
        created_at: tx.now_millis(),
        current: true,
    };
    query("INSERT INTO configs (id, kind, name, content, created_at) VALUES ($1, $2, $3, $4, $5)")
        .bind(row.id)
        .bind(&row.kind)
        .bind(&row.name)
        .bind(&row.content)
        .bind(row.created_at)
        .execute(tx.conn())
        .await?;
    Ok(row)
}

/// Deletes all versions of a name and gives how many there were.
pub(crate) async fn delete(tx: &mut Tx, kind: &str, name: &str) -> Result<u64> {
    Ok(query("DELETE FROM configs WHERE kind = $1 AND name = $2")
        .bind(kind)
        .bind(name)
        .execute(tx.conn())
        .await?
        .rows_affected())
}

/// Deletes one version.
pub(crate) async fn delete_one(tx: &mut Tx, id: i64) -> Result<u64> {
    Ok(query("DELETE FROM configs WHERE id = $1")
        .bind(id)
        .execute(tx.conn())
        .await?
        .rows_affected())
}

fn config(row: &AnyRow) -> Result<ConfigRow> {
    Ok(ConfigRow {
        id: get(row, "id")?,
        kind: get(row, "kind")?,
        name: get(row, "name")?,
        content: get(row, "content")?,
        created_at: get(row, "created_at")?,
        current: get::<i64>(row, "current")? != 0,
    })
}
