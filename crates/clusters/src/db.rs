//! Clusters and operations as they are kept.
//!
//! Intent columns are written by `accept` on behalf of users, state columns by the operations; the schema says
//! which is which. The SQL of quotas, profiles, upgrade tasks, metering and of lists in pages is with them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stolos_api::pks::{LastAction, LastActionState, OperationState};
use stolos_base::ids::{ClusterId, OperationId};
use stolos_store::{AnyRow, Db, Migration, Part, Row as _, Tx, query};

use crate::error::{Error, Result};
use crate::model::{ClusterName, Hostname};
use crate::plans::Plan;
use crate::profiles::Kind;
use crate::settings::Settings;
use crate::who::{Key, Who};

/// The tables of this service.
pub static TABLES: Part = Part {
    name: "clusters",
    migrations: &[
        Migration {
            number: 1,
            name: "clusters_and_operations",
            statements: &[
                "CREATE TABLE clusters (
                id          TEXT   PRIMARY KEY,
                -- intent, written when a request is accepted
                name        TEXT   NOT NULL UNIQUE,
                hostname    TEXT   NOT NULL UNIQUE,
                owner       TEXT   NOT NULL,
                plan        TEXT   NOT NULL,
                workers     BIGINT NOT NULL,
                created_at  BIGINT NOT NULL,
                -- state, written by operations
                action      TEXT   NOT NULL,
                state       TEXT   NOT NULL,
                description TEXT   NOT NULL,
                address     TEXT,
                memory_mib  BIGINT NOT NULL
            )",
                "CREATE TABLE operations (
                id          TEXT   PRIMARY KEY,
                -- intent
                cluster_id  TEXT   NOT NULL,
                cluster     TEXT   NOT NULL,
                owner       TEXT   NOT NULL,
                action      TEXT   NOT NULL,
                actor       TEXT   NOT NULL,
                created_at  BIGINT NOT NULL,
                cancel      BIGINT NOT NULL,
                -- state
                state       TEXT   NOT NULL,
                ended_at    BIGINT,
                error       TEXT
            )",
                // One request in flight per cluster, whoever asks and however many ask at once.
                "CREATE UNIQUE INDEX operations_in_flight ON operations (cluster_id) WHERE ended_at IS NULL",
                "CREATE INDEX operations_by_time ON operations (created_at, id)",
            ],
        },
        Migration {
            number: 2,
            name: "cluster_settings",
            // Intent: drain settings, tags, what the machines are made of; JSON.
            statements: &["ALTER TABLE clusters ADD COLUMN settings TEXT NOT NULL DEFAULT '{}'"],
        },
        crate::quotas::TABLE,
        crate::profiles::TABLE,
        crate::upgrades::TABLES,
        crate::metering::TABLE,
        crate::pods::TABLE,
        crate::backups::TABLE,
        crate::owners::KEYS,
    ],
};

/// A cluster as kept.
#[derive(Clone, Debug)]
pub struct ClusterRow {
    /// Id.
    pub id: ClusterId,
    /// Name.
    pub name: ClusterName,
    /// External host.
    pub hostname: Hostname,
    /// Whose it is.
    pub owner: Who,
    /// The plan as it was when the cluster was made or last updated.
    pub plan: Plan,
    /// Workers wanted.
    pub workers: u32,
    /// What it was last asked to do.
    pub action: LastAction,
    /// How that stands.
    pub state: LastActionState,
    /// The same in words.
    pub description: String,
    /// Virtual API address, once it is leased.
    pub address: Option<String>,
    /// What it has of its own beside plan and size.
    pub settings: Settings,
    /// What a look found that its last action does not say.
    pub found: Found,
}

/// What looks at a cluster found, as times in milliseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Since when its owner is gone.
    pub owner_gone_at: Option<i64>,
    /// Since when the director has no such deployment.
    pub deployment_gone_at: Option<i64>,
}

/// An operation as kept.
#[derive(Clone, Debug)]
pub struct OperationRow {
    /// Id; also the id of its flow.
    pub id: OperationId,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The cluster's name, which stays readable after it is gone.
    pub cluster: String,
    /// The cluster's owner, for the same reason.
    pub owner: Who,
    /// What was asked.
    pub action: LastAction,
    /// Who asked.
    pub actor: Who,
    /// When.
    pub created_at: Timestamp,
    /// Whether somebody asked to cancel it.
    pub cancel: bool,
    /// Who did.
    pub canceled_by: Option<String>,
    /// How it stands.
    pub state: OperationState,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it failed.
    pub error: Option<String>,
}

/// Whose clusters a query shows.
#[derive(Clone, Copy, Debug)]
pub enum Whose<'a> {
    /// Everybody's.
    All,
    /// Those of one owner.
    Of(&'a Key),
}

impl<'a> Whose<'a> {
    /// The owner's key, empty for everybody: as queries bind it.
    pub(crate) fn owner(self) -> &'a str {
        match self {
            Self::All => "",
            Self::Of(owner) => owner.as_str(),
        }
    }
}

pub(crate) const CLUSTER: &str = "SELECT id, name, hostname, owner, owner_key, plan, workers, action, state, description, address, settings, \
                                owner_gone_at, deployment_gone_at FROM clusters";
pub(crate) const OPERATION: &str = "SELECT id, cluster_id, cluster, owner, owner_key, action, actor, actor_key, created_at, cancel, \
                                  canceled_by, state, ended_at, error FROM operations";

/// Writes a new cluster.
///
/// # Errors
/// [`Error::NameTaken`] and [`Error::HostnameTaken`], and those of the database.
pub async fn insert_cluster(tx: &mut Tx, cluster: &ClusterRow) -> Result<()> {
    let now = tx.now_millis();
    // Asked first, because a violated index does not say its name on every engine; the index decides between two at once.
    let taken = query("SELECT name FROM clusters WHERE name = $1 OR hostname = $2")
        .bind(cluster.name.as_str())
        .bind(cluster.hostname.as_str())
        .fetch_optional(tx.conn())
        .await
        .map_err(|e| Error::database("look for the same name")(e.into()))?;
    if let Some(row) = taken {
        let name: String = get(&row, "name")?;
        return Err(if name == cluster.name.as_str() {
            Error::NameTaken(name)
        } else {
            Error::HostnameTaken(cluster.hostname.to_string())
        });
    }
    query(
        "INSERT INTO clusters (id, name, hostname, owner, plan, workers, created_at, action, state, description, memory_mib, settings, \
         network_profile, compute_profile, kubernetes_profile, owner_key) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
    )
    .bind(cluster.id.to_string())
    .bind(cluster.name.as_str())
    .bind(cluster.hostname.as_str())
    .bind(&cluster.owner.name)
    .bind(to_json(&cluster.plan)?)
    .bind(i64::from(cluster.workers))
    .bind(now)
    .bind(word(&cluster.action)?)
    .bind(word(&cluster.state)?)
    .bind(&cluster.description)
    .bind(memory(cluster))
    .bind(to_json(&cluster.settings)?)
    .bind(profile(cluster, Kind::Network))
    .bind(profile(cluster, Kind::Compute))
    .bind(profile(cluster, Kind::Kubernetes))
    .bind(cluster.owner.key.as_str())
    .execute(tx.conn())
    .await
    .map_err(|e| Error::database("write the cluster")(e.into()))?;
    crate::metering::note(tx, cluster).await
}

/// Writes what a cluster is to be from now on: plan, workers, settings.
///
/// # Errors
/// Those of the database.
pub async fn set_intent(tx: &mut Tx, cluster: &ClusterRow) -> Result<()> {
    let sql = "UPDATE clusters SET plan = $2, workers = $3, settings = $4, memory_mib = $5, network_profile = $6, compute_profile = $7, \
               kubernetes_profile = $8 WHERE id = $1";
    query(sql)
        .bind(cluster.id.to_string())
        .bind(to_json(&cluster.plan)?)
        .bind(i64::from(cluster.workers))
        .bind(to_json(&cluster.settings)?)
        .bind(memory(cluster))
        .bind(profile(cluster, Kind::Network))
        .bind(profile(cluster, Kind::Compute))
        .bind(profile(cluster, Kind::Kubernetes))
        .execute(tx.conn())
        .await
        .map_err(|e| Error::database("write what the cluster is to be")(e.into()))?;
    crate::metering::note(tx, cluster).await
}

fn memory(cluster: &ClusterRow) -> i64 {
    i64::try_from(cluster.shape().amount().memory_mib).unwrap_or(i64::MAX)
}

fn profile(cluster: &ClusterRow, wanted: Kind) -> Option<String> {
    let mut profiles = cluster.profiles();
    profiles
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, name)| name.to_owned())
}

/// The memory that all clusters but one together are allotted, in MiB.
///
/// # Errors
/// Those of the database.
pub async fn allotted_memory(tx: &mut Tx, but: ClusterId) -> Result<u64> {
    let row =
        query("SELECT CAST(COALESCE(SUM(memory_mib), 0) AS BIGINT) AS total FROM clusters WHERE id <> $1")
            .bind(but.to_string())
            .fetch_one(tx.conn())
            .await
            .map_err(|e| Error::database("add up the memory of all clusters")(e.into()))?;
    Ok(u64::try_from(get::<i64>(&row, "total")?).unwrap_or(0))
}

/// Writes a new operation.
///
/// # Errors
/// [`Error::Busy`] when the cluster has one in flight, and those of the database.
pub async fn insert_operation(tx: &mut Tx, operation: &OperationRow) -> Result<()> {
    query(
        "INSERT INTO operations (id, cluster_id, cluster, owner, action, actor, created_at, cancel, state, owner_key, actor_key) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $8, $9, $10)",
    )
    .bind(operation.id.to_string())
    .bind(operation.cluster_id.to_string())
    .bind(&operation.cluster)
    .bind(&operation.owner.name)
    .bind(word(&operation.action)?)
    .bind(&operation.actor.name)
    .bind(operation.created_at.as_millisecond())
    .bind(word(&operation.state)?)
    .bind(operation.owner.key.as_str())
    .bind(operation.actor.key.as_str())
    .execute(tx.conn())
    .await
    .map_err(|e| match stolos_store::Error::from(e) {
        stolos_store::Error::Unique { .. } => Error::Busy {
            cluster: operation.cluster.clone(),
        },
        other => Error::database("write the operation")(other),
    })?;
    Ok(())
}

/// Writes how a cluster's last action stands.
///
/// # Errors
/// Those of the database.
pub async fn set_cluster_state(
    tx: &mut Tx,
    id: ClusterId,
    action: LastAction,
    state: LastActionState,
    description: &str,
) -> Result<()> {
    query("UPDATE clusters SET action = $2, state = $3, description = $4 WHERE id = $1")
        .bind(id.to_string())
        .bind(word(&action)?)
        .bind(word(&state)?)
        .bind(description)
        .execute(tx.conn())
        .await
        .map_err(|e| Error::database("write the state of the cluster")(e.into()))?;
    Ok(())
}

/// Writes the virtual API address of a cluster.
///
/// # Errors
/// Those of the database.
pub async fn set_address(tx: &mut Tx, id: ClusterId, address: &str) -> Result<()> {
    query("UPDATE clusters SET address = $2 WHERE id = $1")
        .bind(id.to_string())
        .bind(address)
        .execute(tx.conn())
        .await
        .map_err(|e| Error::database("write the address of the cluster")(e.into()))?;
    Ok(())
}

/// Forgets a cluster; its operations stay.
///
/// # Errors
/// Those of the database.
pub async fn delete_cluster(tx: &mut Tx, id: ClusterId) -> Result<()> {
    query("DELETE FROM clusters WHERE id = $1")
        .bind(id.to_string())
        .execute(tx.conn())
        .await
        .map_err(|e| Error::database("forget the cluster")(e.into()))?;
    crate::metering::end(tx, id).await?;
    crate::pods::end(tx, id).await
}

/// Writes how an operation stands; a final state sets the time of its end.
///
/// # Errors
/// Those of the database.
pub async fn set_operation_state(
    tx: &mut Tx,
    id: OperationId,
    state: OperationState,
    error: Option<&str>,
) -> Result<()> {
    let ended = state.is_final().then(|| tx.now_millis());
    query("UPDATE operations SET state = $2, ended_at = $3, error = $4 WHERE id = $1")
        .bind(id.to_string())
        .bind(word(&state)?)
        .bind(ended)
        .bind(error)
        .execute(tx.conn())
        .await
        .map_err(|e| Error::database("write the state of the operation")(e.into()))?;
    Ok(())
}

/// Notes that somebody wants an operation cancelled. Who asked first is remembered.
///
/// # Errors
/// Those of the database.
pub async fn request_cancel(tx: &mut Tx, id: OperationId, by: &Who) -> Result<()> {
    query(
        "UPDATE operations SET cancel = 1, canceled_by = COALESCE(canceled_by, $2) WHERE id = $1 AND ended_at IS NULL",
    )
        .bind(id.to_string())
        .bind(&by.name)
        .execute(tx.conn())
        .await
        .map_err(|e| Error::database("note the cancellation")(e.into()))?;
    Ok(())
}

/// The cluster of that name, if the caller may see it.
///
/// # Errors
/// [`Error::NoCluster`] and those of the database.
pub async fn cluster(db: &Db, name: &str, whose: Whose<'_>) -> Result<ClusterRow> {
    let sql = format!("{CLUSTER} WHERE name = $1");
    let row = query(stolos_store::AssertSqlSafe(sql))
        .bind(name)
        .fetch_optional(db.read())
        .await
        .map_err(|e| Error::database("read the cluster")(e.into()))?;
    match row.map(|row| to_cluster(&row)).transpose()? {
        Some(cluster) if visible(&cluster.owner.key, whose) => Ok(cluster),
        _ => Err(Error::NoCluster(name.to_owned())),
    }
}

/// The cluster of that id.
///
/// # Errors
/// [`Error::NoCluster`] and those of the database.
pub async fn cluster_by_id(db: &Db, id: ClusterId) -> Result<ClusterRow> {
    let sql = format!("{CLUSTER} WHERE id = $1");
    query(stolos_store::AssertSqlSafe(sql))
        .bind(id.to_string())
        .fetch_optional(db.read())
        .await
        .map_err(|e| Error::database("read the cluster")(e.into()))?
        .map_or_else(|| Err(Error::NoCluster(id.to_string())), |row| to_cluster(&row))
}

/// All clusters that the caller may see, by name.
///
/// # Errors
/// Those of the database.
pub async fn clusters(db: &Db, whose: Whose<'_>) -> Result<Vec<ClusterRow>> {
    let sql = format!("{CLUSTER} WHERE ($1 = '' OR owner_key = $1) ORDER BY name");
    query(stolos_store::AssertSqlSafe(sql))
        .bind(whose.owner())
        .fetch_all(db.read())
        .await
        .map_err(|e| Error::database("list clusters")(e.into()))?
        .iter()
        .map(to_cluster)
        .collect()
}

/// The clusters of an owner as a transaction sees them.
///
/// # Errors
/// Those of the database.
pub(crate) async fn clusters_in(tx: &mut Tx, owner: &Key) -> Result<Vec<ClusterRow>> {
    let sql = format!("{CLUSTER} WHERE owner_key = $1");
    query(stolos_store::AssertSqlSafe(sql))
        .bind(owner.as_str())
        .fetch_all(tx.conn())
        .await
        .map_err(|e| Error::database("list the clusters of an owner")(e.into()))?
        .iter()
        .map(to_cluster)
        .collect()
}

/// One operation, if the caller may see it.
///
/// # Errors
/// [`Error::NoOperation`] and those of the database.
pub async fn operation(db: &Db, id: &str, whose: Whose<'_>) -> Result<OperationRow> {
    let sql = format!("{OPERATION} WHERE id = $1");
    let row = query(stolos_store::AssertSqlSafe(sql))
        .bind(id)
        .fetch_optional(db.read())
        .await
        .map_err(|e| Error::database("read the operation")(e.into()))?;
    match row.map(|row| to_operation(&row)).transpose()? {
        Some(operation) if visible(&operation.owner.key, whose) => Ok(operation),
        _ => Err(Error::NoOperation(id.to_owned())),
    }
}

/// The operations that have not ended, oldest first: what a new process goes on with.
///
/// # Errors
/// Those of the database.
pub async fn unfinished(db: &Db) -> Result<Vec<OperationRow>> {
    let sql = format!("{OPERATION} WHERE ended_at IS NULL ORDER BY created_at, id");
    query(stolos_store::AssertSqlSafe(sql))
        .fetch_all(db.read())
        .await
        .map_err(|e| Error::database("list unfinished operations")(e.into()))?
        .iter()
        .map(to_operation)
        .collect()
}

fn visible(owner: &Key, whose: Whose<'_>) -> bool {
    match whose {
        Whose::All => true,
        Whose::Of(key) => owner == key,
    }
}

pub(crate) fn to_cluster(row: &AnyRow) -> Result<ClusterRow> {
    Ok(ClusterRow {
        id: parse(&get::<String>(row, "id")?)?,
        name: parse(&get::<String>(row, "name")?)?,
        hostname: parse(&get::<String>(row, "hostname")?)?,
        owner: who(row, "owner", "owner_key")?,
        plan: from_json(&get::<String>(row, "plan")?)?,
        workers: u32::try_from(get::<i64>(row, "workers")?).map_err(stored)?,
        action: from_word(get(row, "action")?)?,
        state: from_word(get(row, "state")?)?,
        description: get(row, "description")?,
        address: get(row, "address")?,
        settings: from_json(&get::<String>(row, "settings")?)?,
        found: Found {
            owner_gone_at: get(row, "owner_gone_at")?,
            deployment_gone_at: get(row, "deployment_gone_at")?,
        },
    })
}

pub(crate) fn to_operation(row: &AnyRow) -> Result<OperationRow> {
    let time = |millis: i64| Timestamp::from_millisecond(millis).map_err(stored);
    Ok(OperationRow {
        id: parse(&get::<String>(row, "id")?)?,
        cluster_id: parse(&get::<String>(row, "cluster_id")?)?,
        cluster: get(row, "cluster")?,
        owner: who(row, "owner", "owner_key")?,
        action: from_word(get(row, "action")?)?,
        actor: who(row, "actor", "actor_key")?,
        created_at: time(get(row, "created_at")?)?,
        cancel: get::<i64>(row, "cancel")? != 0,
        canceled_by: get(row, "canceled_by")?,
        state: from_word(get(row, "state")?)?,
        ended_at: get::<Option<i64>>(row, "ended_at")?.map(time).transpose()?,
        error: get(row, "error")?,
    })
}

pub(crate) fn get<'r, T>(row: &'r AnyRow, column: &str) -> Result<T>
where
    T: stolos_store::sqlx::Decode<'r, stolos_store::sqlx::Any>
        + stolos_store::sqlx::Type<stolos_store::sqlx::Any>,
{
    row.try_get(column).map_err(stored)
}

/// Somebody by the columns of name and key.
pub(crate) fn who(row: &AnyRow, name: &str, key: &str) -> Result<Who> {
    Ok(Who {
        name: get(row, name)?,
        key: Key::kept(get(row, key)?),
    })
}

pub(crate) fn stored(source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Stored {
        what: "clusters or operations",
        source: Box::new(source),
    }
}

pub(crate) fn parse<T>(text: &str) -> Result<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().map_err(stored)
}

fn to_json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(stored)
}

pub(crate) fn from_json<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(stored)
}

/// The word that a plain enum is written as.
pub(crate) fn word<T: Serialize>(value: &T) -> Result<String> {
    match serde_json::to_value(value).map_err(stored)? {
        serde_json::Value::String(word) => Ok(word),
        other => Err(stored(std::io::Error::other(format!("`{other}` is no word")))),
    }
}

pub(crate) fn from_word<T: for<'de> Deserialize<'de>>(word: String) -> Result<T> {
    serde_json::from_value(serde_json::Value::String(word)).map_err(stored)
}
