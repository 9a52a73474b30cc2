//! Which cluster has which addresses, in the service's database.

use std::collections::BTreeSet;

use stolos_base::ids::ClusterId;
use stolos_base::{Class, Classify};
use stolos_store::{Db, Migration, Part, Row as _, Schema, Tx, query, restored};

use crate::model::{Base, CAPACITY, Lease, Number, choose};

/// The tables of this service.
pub static SCHEMA: Schema = Schema {
    name: "network",
    parts: &[&Part {
        name: "network",
        migrations: &[
            Migration {
                number: 1,
                name: "leases",
                statements: &[
                    // One row: what the leases are numbers of, and the last number given.
                    "CREATE TABLE pool (id BIGINT PRIMARY KEY CHECK (id = 1), base TEXT NOT NULL, last BIGINT)",
                    "CREATE TABLE leases (
                        number BIGINT PRIMARY KEY,
                        cluster TEXT NOT NULL UNIQUE,
                        leased_at BIGINT NOT NULL
                    )",
                ],
            },
            Migration {
                number: 2,
                name: "restored",
                // The last restore from a backup that numbers were moved on for.
                statements: &["ALTER TABLE pool ADD COLUMN restored_at BIGINT"],
            },
            // new migrations go above this line, with the next number
        ],
    }],
};

/// Addresses could not be leased.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The database.
    #[error(transparent)]
    Store(#[from] stolos_store::Error),
    /// Every lease is out.
    #[error("all {CAPACITY} network segments of the instance are in use")]
    Exhausted,
    /// The database was made for another range, on which clusters may live.
    #[error("the instance's network is {recorded} and cannot be changed to {wanted}")]
    BaseChanged {
        /// What the leases are of.
        recorded: String,
        /// What was asked for.
        wanted: Base,
    },
    /// A row does not read as what it should be.
    #[error("the stored lease of cluster `{cluster}` with number {number} is damaged")]
    Damaged {
        /// The cluster as stored.
        cluster: String,
        /// The number as stored.
        number: i64,
    },
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Store(error) => error.class(),
            Self::Exhausted => Class::Conflict,
            Self::BaseChanged { .. } => Class::User,
            Self::Damaged { .. } => Class::Internal,
        }
    }

    fn retryable(&self) -> bool {
        matches!(self, Self::Store(error) if error.retryable())
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Exhausted => vec!["Delete a cluster that is no longer needed.".to_owned()],
            _ => Vec::new(),
        }
    }
}

impl From<stolos_store::sqlx::Error> for Error {
    fn from(error: stolos_store::sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

/// The leases of an instance. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Leases {
    db: Db,
    base: Base,
}

impl Leases {
    /// The leases of the instance that owns `base`, in a database opened with [`SCHEMA`].
    ///
    /// # Errors
    /// [`Error::BaseChanged`] when the database was made for another range, and those of the database.
    pub async fn open(db: Db, base: Base) -> Result<Self, Error> {
        let mut tx = db.begin("record the network").await?;
        query("INSERT INTO pool (id, base) VALUES (1, $1) ON CONFLICT (id) DO NOTHING")
            .bind(base.to_string())
            .execute(tx.conn())
            .await?;
        let recorded: String = query("SELECT base FROM pool")
            .fetch_one(tx.conn())
            .await?
            .try_get("base")?;
        if recorded != base.to_string() {
            return Err(Error::BaseChanged {
                recorded,
                wanted: base,
            });
        }
        if let Some(restored) = restored::last(&db).await? {
            move_on(&mut tx, restored.at).await?;
        }
        tx.commit().await?;
        Ok(Self { db, base })
    }

    /// The instance's range.
    #[must_use]
    pub fn base(&self) -> Base {
        self.base
    }

    /// The cluster's lease; the same one each time until it is released.
    ///
    /// # Errors
    /// [`Error::Exhausted`] and those of the database.
    pub async fn lease(&self, cluster: ClusterId) -> Result<Lease, Error> {
        let mut tx = self.db.begin("lease a network").await?;
        let number = match find(&mut tx, cluster).await? {
            Some(number) => number,
            None => give(&mut tx, cluster).await?,
        };
        tx.commit().await?;
        Ok(Lease::new(self.base, number, cluster))
    }

    /// The cluster's lease, if it has one.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn find(&self, cluster: ClusterId) -> Result<Option<Lease>, Error> {
        let row = query("SELECT number, cluster FROM leases WHERE cluster = $1")
            .bind(cluster.to_string())
            .fetch_optional(self.db.read())
            .await?;
        row.map(|row| self.read(&row)).transpose()
    }

    /// Returns the cluster's addresses; a cluster that has none is as good as that.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn release(&self, cluster: ClusterId) -> Result<(), Error> {
        let mut tx = self.db.begin("release a network").await?;
        query("DELETE FROM leases WHERE cluster = $1")
            .bind(cluster.to_string())
            .execute(tx.conn())
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// All leases by number; there are at most [`CAPACITY`].
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list(&self) -> Result<Vec<Lease>, Error> {
        query("SELECT number, cluster FROM leases ORDER BY number")
            .fetch_all(self.db.read())
            .await?
            .iter()
            .map(|row| self.read(row))
            .collect()
    }

    fn read(&self, row: &stolos_store::AnyRow) -> Result<Lease, Error> {
        let number: i64 = row.try_get("number")?;
        let cluster: String = row.try_get("cluster")?;
        match (Number::new(number), cluster.parse()) {
            (Some(number), Ok(cluster)) => Ok(Lease::new(self.base, number, cluster)),
            _ => Err(Error::Damaged { cluster, number }),
        }
    }
}

/// After a restore, machines of clusters that were made after the backup may still have addresses that the database takes for free.
/// New leases begin half of the pool away, so that nobody gets those before a person has had time to look.
async fn move_on(tx: &mut Tx, restored_at: i64) -> Result<(), Error> {
    let row = query("SELECT last, restored_at FROM pool")
        .fetch_one(tx.conn())
        .await?;
    let done: Option<i64> = row.try_get("restored_at")?;
    if done.is_some_and(|done| done >= restored_at) {
        return Ok(());
    }
    let last: Option<i64> = row.try_get("last")?;
    let capacity = i64::from(CAPACITY);
    let moved = (last.unwrap_or(0) + capacity / 2) % capacity + 1;
    query("UPDATE pool SET last = $1, restored_at = $2")
        .bind(moved)
        .bind(restored_at)
        .execute(tx.conn())
        .await?;
    Ok(())
}

async fn find(tx: &mut Tx, cluster: ClusterId) -> Result<Option<Number>, Error> {
    let row = query("SELECT number FROM leases WHERE cluster = $1")
        .bind(cluster.to_string())
        .fetch_optional(tx.conn())
        .await?;
    let Some(row) = row else { return Ok(None) };
    let number = row.try_get("number")?;
    Number::new(number).map(Some).ok_or_else(|| Error::Damaged {
        cluster: cluster.to_string(),
        number,
    })
}

async fn give(tx: &mut Tx, cluster: ClusterId) -> Result<Number, Error> {
    let mut taken = BTreeSet::new();
    for row in query("SELECT number FROM leases").fetch_all(tx.conn()).await? {
        taken.extend(Number::new(row.try_get("number")?));
    }
    let last: Option<i64> = query("SELECT last FROM pool")
        .fetch_one(tx.conn())
        .await?
        .try_get("last")?;
    let number = choose(last.and_then(Number::new), &taken).ok_or(Error::Exhausted)?;
    let now = tx.now_millis();
    query("INSERT INTO leases (number, cluster, leased_at) VALUES ($1, $2, $3)")
        .bind(i64::from(number.get()))
        .bind(cluster.to_string())
        .bind(now)
        .execute(tx.conn())
        .await?;
    query("UPDATE pool SET last = $1")
        .bind(i64::from(number.get()))
        .execute(tx.conn())
        .await?;
    Ok(number)
}
