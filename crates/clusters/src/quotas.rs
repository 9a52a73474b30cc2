//! Quotas: what an owner may have, against what an owner has.
//!
//! Counted is the allotted size of all machines, masters included, from the moment a request is accepted: PKS counted so, and it is what a
//! host or a cloud bill knows. Administrators are not limited. The check and the write of the request are one transaction.
//!
//! A quota is made for a name and becomes the quota of the person who has it ([`crate::who`]): of one who is there at once, of one who comes
//! later with the first request. A new person of an old name is not limited by what limited the old one.

use stolos_api::pks::{Amounts, ClusterUsage, Limits, LimitsChange, Quota, Usage};
use stolos_store::{Db, Migration, Tx, query};

use crate::db::{self, ClusterRow, Whose};
use crate::error::{Error, Result};
use crate::shape::Amount;
use crate::who::{Key, Who};

/// The table of quotas. Memory is kept in MiB, so that no sum is inexact.
pub(crate) const TABLE: Migration = Migration {
    number: 3,
    name: "quotas",
    statements: &["CREATE TABLE quotas (
        owner      TEXT   PRIMARY KEY,
        cpu        BIGINT NOT NULL,
        memory_mib BIGINT NOT NULL,
        clusters   BIGINT NOT NULL
    )"],
};

/// The largest sensible value: a thousand large hosts.
const LARGEST: i64 = 1_000_000;
/// Longest name of an owner, in bytes; user names of directories are shorter.
const LONGEST_OWNER: usize = 255;

/// Checked limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    cpu: i64,
    memory_mib: i64,
    clusters: i64,
}

impl Checked {
    fn limits(self) -> Limits {
        Limits {
            cpu: self.cpu,
            memory: gigabytes(self.memory_mib),
            cluster: self.clusters,
        }
    }
}

/// Checks an owner and limits.
///
/// # Errors
/// [`Error::Request`] with the field and its range.
pub(crate) fn check(owner: &str, limits: &Limits) -> Result<Checked> {
    if owner.is_empty() || owner.len() > LONGEST_OWNER || owner.chars().any(char::is_control) {
        return Err(Error::Request(
            "`owner` has to be a user or client name of 1 to 255 bytes".to_owned(),
        ));
    }
    let range = |name: &str, least: i64, value: i64| {
        if (least..=LARGEST).contains(&value) {
            Ok(value)
        } else {
            Err(Error::Request(format!(
                "`limit.{name}` is {value}, which is not between {least} and {LARGEST}"
            )))
        }
    };
    if !limits.memory.is_finite() || !(0.0..=LARGEST as f64).contains(&limits.memory) {
        return Err(Error::Request(format!(
            "`limit.memory` is {}, which is not between 0 and {LARGEST} GB",
            limits.memory
        )));
    }
    Ok(Checked {
        cpu: range("cpu", 0, limits.cpu)?,
        memory_mib: (limits.memory * 1024.0).round() as i64,
        clusters: range("cluster", 1, limits.cluster)?,
    })
}

/// All quotas, by owner.
///
/// # Errors
/// Those of the database.
pub(crate) async fn all(db: &Db) -> Result<Vec<Quota>> {
    query("SELECT owner, cpu, memory_mib, clusters FROM quotas_by_key ORDER BY owner, owner_key")
        .fetch_all(db.read())
        .await
        .map_err(|e| Error::database("list quotas")(e.into()))?
        .iter()
        .map(|row| {
            Ok(Quota {
                owner: db::get(row, "owner")?,
                limit: checked(row)?.limits(),
            })
        })
        .collect()
}

/// The quota of somebody whom a name means, and its key.
///
/// # Errors
/// [`Error::NoQuota`] and those of the database.
pub(crate) async fn one(db: &Db, named: &Named<'_>) -> Result<(Key, Quota)> {
    // A person who is there is meant before anybody else; of a name that nobody has, whatever there is.
    let sql = match named.person {
        Some(_) => {
            "SELECT owner_key, cpu, memory_mib, clusters FROM quotas_by_key WHERE owner_key = $1 OR owner_key = $2 \
             ORDER BY CASE WHEN owner_key = $1 THEN 0 ELSE 1 END LIMIT 1"
        }
        None => {
            "SELECT owner_key, cpu, memory_mib, clusters FROM quotas_by_key WHERE owner = $1 OR owner_key = $2 \
             ORDER BY owner_key LIMIT 1"
        }
    };
    let row = query(sql)
        .bind(named.person.as_ref().map_or(named.name, Key::as_str))
        .bind(Key::unknown(named.name).as_str())
        .fetch_optional(db.read())
        .await
        .map_err(|e| Error::database("read the quota")(e.into()))?;
    match row {
        Some(row) => Ok((
            Key::kept(db::get(&row, "owner_key")?),
            Quota {
                owner: named.name.to_owned(),
                limit: checked(&row)?.limits(),
            },
        )),
        None => Err(Error::NoQuota(named.name.chars().take(80).collect())),
    }
}

/// A name, and who has it now.
#[derive(Clone, Debug)]
pub(crate) struct Named<'a> {
    pub(crate) name: &'a str,
    /// The person; none where there is nobody of that name.
    pub(crate) person: Option<Key>,
}

impl Named<'_> {
    /// Under which a new quota is kept.
    fn key(&self) -> Key {
        self.person.clone().unwrap_or_else(|| Key::unknown(self.name))
    }
}

/// Writes a new quota.
///
/// # Errors
/// [`Error::QuotaTaken`] and those of the database.
pub(crate) async fn insert(tx: &mut Tx, named: &Named<'_>, limits: Checked) -> Result<()> {
    let taken = query("SELECT owner_key FROM quotas_by_key WHERE owner_key = $1")
        .bind(Key::unknown(named.name).as_str())
        .fetch_optional(tx.conn())
        .await
        .map_err(|e| Error::database("look for the quota")(e.into()))?;
    if taken.is_some() {
        return Err(Error::QuotaTaken(named.name.to_owned()));
    }
    query(
        "INSERT INTO quotas_by_key (owner_key, owner, cpu, memory_mib, clusters) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(named.key().as_str())
    .bind(named.name)
    .bind(limits.cpu)
    .bind(limits.memory_mib)
    .bind(limits.clusters)
    .execute(tx.conn())
    .await
    .map_err(|e| match stolos_store::Error::from(e) {
        stolos_store::Error::Unique { .. } => Error::QuotaTaken(named.name.to_owned()),
        other => Error::database("write the quota")(other),
    })?;
    Ok(())
}

/// Gives a quota that was made for a name to who has that name.
///
/// # Errors
/// Those of the database.
pub(crate) async fn give(tx: &mut Tx, who: &Who) -> Result<()> {
    query(
        "UPDATE quotas_by_key SET owner_key = $1 WHERE owner_key = $2 \
         AND NOT EXISTS (SELECT 1 FROM quotas_by_key AS other WHERE other.owner_key = $1)",
    )
    .bind(who.key.as_str())
    .bind(Key::unknown(&who.name).as_str())
    .execute(tx.conn())
    .await
    .map_err(|e| Error::database("give the quota to its owner")(e.into()))?;
    Ok(())
}

/// The limits of a quota after a change.
pub(crate) fn changed(before: Limits, change: LimitsChange) -> Limits {
    Limits {
        cpu: change.cpu.unwrap_or(before.cpu),
        memory: change.memory.unwrap_or(before.memory),
        cluster: change.cluster.unwrap_or(before.cluster),
    }
}

/// Changes a quota. What an owner has already stays, also where it is more.
///
/// # Errors
/// Those of the database.
pub(crate) async fn update(tx: &mut Tx, owner: &Key, limits: Checked) -> Result<()> {
    query("UPDATE quotas_by_key SET cpu = $2, memory_mib = $3, clusters = $4 WHERE owner_key = $1")
        .bind(owner.as_str())
        .bind(limits.cpu)
        .bind(limits.memory_mib)
        .bind(limits.clusters)
        .execute(tx.conn())
        .await
        .map_err(|e| Error::database("change the quota")(e.into()))?;
    Ok(())
}

/// Deletes a quota; fine when there is none.
///
/// # Errors
/// Those of the database.
pub(crate) async fn delete(tx: &mut Tx, owner: &Key) -> Result<()> {
    query("DELETE FROM quotas_by_key WHERE owner_key = $1")
        .bind(owner.as_str())
        .execute(tx.conn())
        .await
        .map_err(|e| Error::database("delete the quota")(e.into()))?;
    Ok(())
}

/// Refuses a cluster that would bring its owner above a limit. `cluster` is as it is to be; as it was, it does not count.
///
/// # Errors
/// [`Error::OverQuota`] with the numbers, and those of the database.
pub(crate) async fn refuse_excess(tx: &mut Tx, cluster: &ClusterRow) -> Result<()> {
    give(tx, &cluster.owner).await?;
    let row = query("SELECT cpu, memory_mib, clusters FROM quotas_by_key WHERE owner_key = $1")
        .bind(cluster.owner.key.as_str())
        .fetch_optional(tx.conn())
        .await
        .map_err(|e| Error::database("read the quota")(e.into()))?;
    let Some(row) = row else { return Ok(()) };
    let limits = checked(&row)?;
    let others = db::clusters_in(tx, &cluster.owner.key).await?;
    let others = others.iter().filter(|other| other.id != cluster.id);
    let all: Vec<&ClusterRow> = others.chain([cluster]).collect();
    let (cpu, memory_mib) = signed(sum(all.iter().copied()));
    let clusters = i64::try_from(all.len()).unwrap_or(i64::MAX);
    let over = |what: &'static str, unit: &'static str, wanted: f64, limit: f64| Error::OverQuota {
        owner: cluster.owner.name.clone(),
        what,
        unit,
        wanted: wanted.to_string(),
        limit: limit.to_string(),
    };
    if clusters > limits.clusters {
        return Err(over("clusters", "", clusters as f64, limits.clusters as f64));
    }
    if cpu > limits.cpu {
        return Err(over("cpu", "", cpu as f64, limits.cpu as f64));
    }
    if memory_mib > limits.memory_mib {
        return Err(over(
            "memory",
            " GB",
            gigabytes(memory_mib),
            gigabytes(limits.memory_mib),
        ));
    }
    Ok(())
}

/// What everybody has, by owner.
///
/// # Errors
/// Those of the database.
pub(crate) async fn usages(db: &Db, whose: Whose<'_>) -> Result<Vec<Usage>> {
    let mut found: std::collections::BTreeMap<(String, Key), Vec<ClusterRow>> =
        std::collections::BTreeMap::new();
    for cluster in db::clusters(db, whose).await? {
        let owner = (cluster.owner.name.clone(), cluster.owner.key.clone());
        found.entry(owner).or_default().push(cluster);
    }
    Ok(found
        .into_iter()
        .map(|((owner, _), clusters)| usage(owner, &clusters))
        .collect())
}

/// What an owner has who has these clusters.
pub(crate) fn usage(owner: String, clusters: &[ClusterRow]) -> Usage {
    let (cpu, memory_mib) = signed(sum(clusters));
    let clusters: Vec<ClusterUsage> = clusters
        .iter()
        .map(|cluster| {
            let (cpu, memory_mib) = signed(cluster.shape().amount());
            ClusterUsage {
                name: cluster.name.to_string(),
                cpu,
                memory: gigabytes(memory_mib),
            }
        })
        .collect();
    Usage {
        owner,
        totals: Amounts {
            cpu,
            memory: gigabytes(memory_mib),
            cluster: i64::try_from(clusters.len()).unwrap_or(i64::MAX),
        },
        clusters,
    }
}

fn sum<'a>(clusters: impl IntoIterator<Item = &'a ClusterRow>) -> Amount {
    let mut sum = Amount::default();
    for cluster in clusters {
        sum += cluster.shape().amount();
    }
    sum
}

/// As the wire and the table have it.
fn signed(amount: Amount) -> (i64, i64) {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    (signed(amount.cpu), signed(amount.memory_mib))
}

fn gigabytes(mib: i64) -> f64 {
    mib as f64 / 1024.0
}

fn checked(row: &stolos_store::AnyRow) -> Result<Checked> {
    Ok(Checked {
        cpu: db::get(row, "cpu")?,
        memory_mib: db::get(row, "memory_mib")?,
        clusters: db::get(row, "clusters")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_checked() {
        let limits = |cpu, memory, cluster| Limits { cpu, memory, cluster };
        let good = check("alice", &limits(4, 8.5, 1)).expect("good");
        assert_eq!((good.cpu, good.memory_mib, good.clusters), (4, 8704, 1));
        assert_eq!(good.limits(), limits(4, 8.5, 1));
        assert!(
            check("alice", &limits(0, 0.0, 1)).is_ok(),
            "nothing at all is a limit too"
        );
        for (owner, bad, words) in [
            ("", limits(1, 1.0, 1), "owner"),
            (&*"x".repeat(256), limits(1, 1.0, 1), "owner"),
            ("a", limits(-1, 1.0, 1), "limit.cpu"),
            ("a", limits(1, -0.1, 1), "limit.memory"),
            ("a", limits(1, f64::NAN, 1), "limit.memory"),
            ("a", limits(1, 1e300, 1), "limit.memory"),
            ("a", limits(1, 1.0, 0), "limit.cluster"),
            ("a", limits(1, 1.0, i64::MAX), "limit.cluster"),
        ] {
            let error = check(owner, &bad).expect_err(words);
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
    }
}
