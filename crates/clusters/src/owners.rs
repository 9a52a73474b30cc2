//! Owners by key ([`crate::who`]): the columns, and finding out whose rows are that have a name alone.

use std::collections::BTreeSet;

use stolos_base::ids::ClusterId;
use stolos_store::{Db, Migration, Tx, query};

use crate::db::{self, ClusterRow};
use crate::deps::People;
use crate::error::{Error, Result};
use crate::quotas;
use crate::who::{Key, Who};

/// The keys. Rows of before have one that is nobody's, which [`settle`] looks at.
pub(crate) const KEYS: Migration = Migration {
    number: 9,
    name: "keys of owners",
    statements: &[
        "ALTER TABLE clusters ADD COLUMN owner_key TEXT NOT NULL DEFAULT ''",
        "UPDATE clusters SET owner_key = 'name:' || owner",
        // State, written by looks: milliseconds since 1970.
        "ALTER TABLE clusters ADD COLUMN owner_gone_at BIGINT",
        "ALTER TABLE clusters ADD COLUMN deployment_gone_at BIGINT",
        "ALTER TABLE operations ADD COLUMN owner_key TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE operations ADD COLUMN actor_key TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE operations ADD COLUMN canceled_by TEXT",
        "UPDATE operations SET owner_key = 'name:' || owner, actor_key = 'name:' || actor",
        "ALTER TABLE metering ADD COLUMN owner_key TEXT NOT NULL DEFAULT ''",
        "UPDATE metering SET owner_key = 'name:' || owner",
        "ALTER TABLE profiles ADD COLUMN owner_key TEXT NOT NULL DEFAULT ''",
        "UPDATE profiles SET owner_key = 'name:' || owner",
        "ALTER TABLE upgrade_tasks ADD COLUMN owner_key TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE upgrade_tasks ADD COLUMN canceled_by TEXT",
        "UPDATE upgrade_tasks SET owner_key = 'name:' || owner",
        "ALTER TABLE cluster_backups ADD COLUMN owner_key TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE cluster_backups ADD COLUMN actor_key TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE cluster_backups ADD COLUMN canceled_by TEXT",
        "UPDATE cluster_backups SET owner_key = 'name:' || owner, actor_key = 'name:' || actor",
        // The name was the primary key, which two people can have one after the other.
        "CREATE TABLE quotas_by_key (
            owner_key  TEXT   PRIMARY KEY,
            owner      TEXT   NOT NULL,
            cpu        BIGINT NOT NULL,
            memory_mib BIGINT NOT NULL,
            clusters   BIGINT NOT NULL
        )",
        "INSERT INTO quotas_by_key (owner_key, owner, cpu, memory_mib, clusters) \
         SELECT 'name:' || owner, owner, cpu, memory_mib, clusters FROM quotas",
        "DROP TABLE quotas",
    ],
};

/// The names of whom it is not known who they are.
const UNKNOWN: &str = "SELECT owner AS name FROM clusters WHERE owner_key LIKE 'name:%' \
     UNION SELECT owner FROM operations WHERE owner_key LIKE 'name:%' \
     UNION SELECT actor FROM operations WHERE actor_key LIKE 'name:%' \
     UNION SELECT owner FROM metering WHERE owner_key LIKE 'name:%' \
     UNION SELECT owner FROM profiles WHERE owner_key LIKE 'name:%' \
     UNION SELECT owner FROM upgrade_tasks WHERE owner_key LIKE 'name:%' \
     UNION SELECT owner FROM cluster_backups WHERE owner_key LIKE 'name:%' \
     UNION SELECT actor FROM cluster_backups WHERE actor_key LIKE 'name:%'";

/// Gives the rows of a name ($3) to the person who has it ($1) as far as that one was there ($4, in milliseconds) when they began, and to nobody ($2) else. What
/// belongs to a cluster began with the cluster: who was made later did not make it, whenever the row is from.
const GIVE: [&str; 8] = [
    "UPDATE clusters SET owner_key = CASE WHEN created_at >= $4 THEN $1 ELSE $2 END WHERE owner_key = $3",
    "UPDATE operations SET owner_key = CASE WHEN (SELECT MIN(o.created_at) FROM operations AS o \
     WHERE o.cluster_id = operations.cluster_id) >= $4 THEN $1 ELSE $2 END WHERE owner_key = $3",
    "UPDATE operations SET actor_key = CASE WHEN created_at >= $4 THEN $1 ELSE $2 END WHERE actor_key = $3",
    "UPDATE metering SET owner_key = CASE WHEN (SELECT MIN(m.since) FROM metering AS m \
     WHERE m.cluster_id = metering.cluster_id) >= $4 THEN $1 ELSE $2 END WHERE owner_key = $3",
    "UPDATE profiles SET owner_key = CASE WHEN created_at >= $4 THEN $1 ELSE $2 END WHERE owner_key = $3",
    "UPDATE upgrade_tasks SET owner_key = CASE WHEN created_at >= $4 THEN $1 ELSE $2 END WHERE owner_key = $3",
    "UPDATE cluster_backups SET owner_key = CASE WHEN COALESCE((SELECT MIN(o.created_at) FROM operations AS o \
     WHERE o.cluster_id = cluster_backups.cluster_id), created_at) >= $4 THEN $1 ELSE $2 END WHERE owner_key = $3",
    "UPDATE cluster_backups SET actor_key = CASE WHEN created_at >= $4 THEN $1 ELSE $2 END WHERE actor_key = $3",
];

/// Finds out whose the rows are that have a name alone, as those of before there were keys have. Who was made after a row did not make it: then, and where
/// nobody has the name, it is nobody's, and an administrator can give it to somebody. Again, it finds nothing more to do; two at once do the same.
///
/// # Errors
/// Those of the database, and of asking for people; what is settled by then stays.
pub(crate) async fn settle(db: &Db, people: &dyn People) -> Result<()> {
    let names: Vec<String> = query(UNKNOWN)
        .fetch_all(db.read())
        .await
        .map_err(|e| Error::database("look for owners who are known by name alone")(e.into()))?
        .iter()
        .map(|row| db::get(row, "name"))
        .collect::<Result<_>>()?;
    for name in names {
        let person = people.named(&name).await?;
        let gone = Key::gone(&name);
        let (key, since) = match &person {
            Some(person) => {
                let made = person.made_at().map_or(i64::MAX, |made| made.as_millisecond());
                (Key::person(&person.id), made)
            }
            None => (gone.clone(), i64::MAX),
        };
        let mut tx = db
            .begin("give rows to their owner")
            .await
            .map_err(Error::database("begin to give rows to their owner"))?;
        for sql in GIVE {
            query(sql)
                .bind(key.as_str())
                .bind(gone.as_str())
                .bind(Key::unknown(&name).as_str())
                .bind(since)
                .execute(tx.conn())
                .await
                .map_err(|e| Error::database("give rows to their owner")(e.into()))?;
        }
        tx.commit()
            .await
            .map_err(Error::database("give rows to their owner"))?;
        tracing::info!(
            name,
            known = person.is_some(),
            "found out whose the rows of a name are"
        );
    }
    give_quotas(db, people).await
}

/// Quotas of names wait for a person who has the name.
async fn give_quotas(db: &Db, people: &dyn People) -> Result<()> {
    let names: Vec<String> = query("SELECT owner FROM quotas_by_key WHERE owner_key LIKE 'name:%'")
        .fetch_all(db.read())
        .await
        .map_err(|e| Error::database("look for quotas of names")(e.into()))?
        .iter()
        .map(|row| db::get(row, "owner"))
        .collect::<Result<_>>()?;
    for name in names {
        let Some(person) = people.named(&name).await? else {
            continue;
        };
        let mut tx = db
            .begin("give a quota to its owner")
            .await
            .map_err(Error::database("begin to give a quota to its owner"))?;
        // Under the name as the quota has it.
        let who = Who {
            name,
            key: Key::person(&person.id),
        };
        quotas::give(&mut tx, &who).await?;
        tx.commit()
            .await
            .map_err(Error::database("give a quota to its owner"))?;
    }
    Ok(())
}

/// The people who have quotas.
///
/// # Errors
/// Those of the database.
pub(crate) async fn with_quotas(db: &Db) -> Result<BTreeSet<Key>> {
    query("SELECT owner_key FROM quotas_by_key")
        .fetch_all(db.read())
        .await
        .map_err(|e| Error::database("list who has a quota")(e.into()))?
        .iter()
        .map(|row| db::get(row, "owner_key").map(Key::kept))
        .collect()
}

/// Gives a cluster to somebody, with the history that goes with it.
///
/// # Errors
/// Those of the database.
pub(crate) async fn transfer(tx: &mut Tx, cluster: &ClusterRow, to: &Who) -> Result<()> {
    let id = cluster.id.to_string();
    for sql in [
        "UPDATE clusters SET owner = $2, owner_key = $3, owner_gone_at = NULL WHERE id = $1",
        "UPDATE operations SET owner = $2, owner_key = $3 WHERE cluster_id = $1",
        "UPDATE cluster_backups SET owner = $2, owner_key = $3 WHERE cluster_id = $1",
    ] {
        query(sql)
            .bind(&id)
            .bind(&to.name)
            .bind(to.key.as_str())
            .execute(tx.conn())
            .await
            .map_err(|e| Error::database("give the cluster to its new owner")(e.into()))?;
    }
    // What was metered stays the old owner's.
    let mut given = cluster.clone();
    given.owner = to.clone();
    crate::metering::hand_over(tx, &given).await
}

/// Notes whether the owner of a cluster is gone. One that was given to somebody meanwhile is left alone.
///
/// # Errors
/// Those of the database.
pub(crate) async fn note_owner(tx: &mut Tx, cluster: &ClusterRow, gone: bool) -> Result<()> {
    let now = tx.now_millis();
    query("UPDATE clusters SET owner_gone_at = $3 WHERE id = $1 AND owner_key = $2")
        .bind(cluster.id.to_string())
        .bind(cluster.owner.key.as_str())
        .bind(gone.then_some(now))
        .execute(tx.conn())
        .await
        .map_err(|e| Error::database("note whether the owner of a cluster is gone")(e.into()))?;
    Ok(())
}

/// Notes whether the director has no deployment of a cluster any more. One to which something is being done is left alone.
///
/// # Errors
/// Those of the database.
pub(crate) async fn note_deployment(tx: &mut Tx, cluster: ClusterId, gone: bool) -> Result<()> {
    let now = tx.now_millis();
    query(
        "UPDATE clusters SET deployment_gone_at = $2 WHERE id = $1 \
         AND NOT EXISTS (SELECT 1 FROM operations AS o WHERE o.cluster_id = clusters.id AND o.ended_at IS NULL)",
    )
    .bind(cluster.to_string())
    .bind(gone.then_some(now))
    .execute(tx.conn())
    .await
    .map_err(|e| Error::database("note whether the deployment of a cluster is gone")(e.into()))?;
    Ok(())
}
