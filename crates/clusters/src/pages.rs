//! Clusters and operations in pages: in an order that does not change, each page from where the one before ended, so that what is made or
//! deleted meanwhile neither repeats nor hides anything else.

use stolos_store::{Db, query};

use crate::db::{CLUSTER, ClusterRow, OPERATION, OperationRow, Whose, get, to_cluster, to_operation};
use crate::error::{Error, Result};

/// Clusters that the caller may see and that have the text in their name, host or owner: by name, those after a name.
///
/// # Errors
/// Those of the database.
pub(crate) async fn clusters(
    db: &Db,
    whose: Whose<'_>,
    search: &str,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<ClusterRow>> {
    // No name is empty.
    let sql = format!("{CLUSTER} {FOUND} AND name > $3 ORDER BY name LIMIT $4");
    query(stolos_store::AssertSqlSafe(sql))
        .bind(whose.owner())
        .bind(pattern(search))
        .bind(after.unwrap_or_default())
        .bind(i64::from(limit))
        .fetch_all(db.read())
        .await
        .map_err(|e| Error::database("list a page of clusters")(e.into()))?
        .iter()
        .map(to_cluster)
        .collect()
}

/// How many [`clusters`] would find on all pages.
///
/// # Errors
/// Those of the database.
pub(crate) async fn count_clusters(db: &Db, whose: Whose<'_>, search: &str) -> Result<u64> {
    let sql = format!("SELECT COUNT(*) AS total FROM clusters {FOUND}");
    let row = query(stolos_store::AssertSqlSafe(sql))
        .bind(whose.owner())
        .bind(pattern(search))
        .fetch_one(db.read())
        .await
        .map_err(|e| Error::database("count clusters")(e.into()))?;
    Ok(u64::try_from(get::<i64>(&row, "total")?).unwrap_or(0))
}

const FOUND: &str = "WHERE ($1 = '' OR owner_key = $1) AND (LOWER(name) LIKE $2 ESCAPE '!' OR LOWER(hostname) LIKE $2 ESCAPE '!' \
                     OR LOWER(owner) LIKE $2 ESCAPE '!')";

/// A text anywhere, whatever its case, with nothing in it that `LIKE` would take for a pattern.
fn pattern(search: &str) -> String {
    let mut pattern = String::from("%");
    for letter in search.to_lowercase().chars() {
        if matches!(letter, '%' | '_' | '!') {
            pattern.push('!');
        }
        pattern.push(letter);
    }
    pattern.push('%');
    pattern
}

/// The newest operations that the caller may see, newest first; `cluster` filters by name. After the operation with this time (in
/// milliseconds) and id, where a page before ended with one.
///
/// # Errors
/// Those of the database.
pub(crate) async fn operations(
    db: &Db,
    whose: Whose<'_>,
    cluster: Option<&str>,
    after: Option<(i64, String)>,
    limit: u32,
) -> Result<Vec<OperationRow>> {
    let sql = format!(
        "{OPERATION} WHERE ($1 = '' OR owner_key = $1) AND ($2 = '' OR cluster = $2) AND created_at <= $3 \
         AND (created_at < $3 OR id < $4) ORDER BY created_at DESC, id DESC LIMIT $5"
    );
    let (time, id) = after.unwrap_or((i64::MAX, String::new()));
    query(stolos_store::AssertSqlSafe(sql))
        .bind(whose.owner())
        .bind(cluster.unwrap_or_default())
        .bind(time)
        .bind(id)
        .bind(i64::from(limit))
        .fetch_all(db.read())
        .await
        .map_err(|e| Error::database("list operations")(e.into()))?
        .iter()
        .map(to_operation)
        .collect()
}
