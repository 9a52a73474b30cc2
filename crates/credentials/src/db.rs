//! All SQL of this crate.

use jiff::Timestamp;
use stolos_base::ids::CredentialId;
use stolos_store::{AnyRow, Db, Migration, Part, Row as _, Schema, Tx, query};

use crate::cipher::Sealed;
use crate::error::{Error, Result};
use crate::name::Name;
use crate::value::{Kind, Listed};

/// The tables of this service.
pub static TABLES: Part = Part {
    name: "credentials",
    migrations: &[
        Migration {
            number: 1,
            name: "keys, names and versions",
            statements: &[
                // Data keys, wrapped by the root key. The newest is active.
                "CREATE TABLE credentials_keys (
                    id TEXT PRIMARY KEY,
                    number BIGINT NOT NULL UNIQUE,
                    nonce {blob} NOT NULL,
                    wrapped {blob} NOT NULL,
                    created_at BIGINT NOT NULL
                )",
                // `key` is the name in lower case: names are compared without regard to case.
                "CREATE TABLE credentials_names (
                    key TEXT PRIMARY KEY,
                    name TEXT NOT NULL,
                    kind TEXT NOT NULL
                )",
                // `parameters`: what was asked of the generator (JSON, nothing secret); NULL for what was set.
                // `signed_by`: the version of the CA.
                "CREATE TABLE credentials_versions (
                    id TEXT PRIMARY KEY,
                    key TEXT NOT NULL REFERENCES credentials_names (key) ON DELETE CASCADE,
                    number BIGINT NOT NULL,
                    created_at BIGINT NOT NULL,
                    expires_at BIGINT,
                    parameters TEXT,
                    signed_by TEXT,
                    data_key TEXT NOT NULL REFERENCES credentials_keys (id),
                    nonce {blob} NOT NULL,
                    ciphertext {blob} NOT NULL,
                    UNIQUE (key, number)
                )",
            ],
        },
        // new migrations go above this line, with the next number
    ],
};

/// The schema of this service.
pub static SCHEMA: Schema = Schema {
    name: "credentials",
    parts: &[&TABLES],
};

/// A stored version.
pub(crate) struct Version {
    pub(crate) id: CredentialId,
    pub(crate) name: Name,
    pub(crate) kind: Kind,
    pub(crate) number: i64,
    pub(crate) created_at: Timestamp,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) parameters: Option<String>,
    pub(crate) signed_by: Option<CredentialId>,
    pub(crate) data_key: String,
    pub(crate) sealed: Sealed,
}

const VERSION: &str =
    "SELECT v.id, n.name, n.kind, v.number, v.created_at, v.expires_at, v.parameters, v.signed_by,
        v.data_key, v.nonce, v.ciphertext
    FROM credentials_versions v JOIN credentials_names n ON n.key = v.key ";

const BY_NAME: &str = "WHERE v.key = $1 ORDER BY v.number DESC LIMIT 1";

/// A stored value does not read as what it should be.
fn corrupt(text: &str) -> Error {
    Error::Corrupt(text.to_owned())
}

fn time(millis: i64) -> Result<Timestamp> {
    Timestamp::from_millisecond(millis).map_err(|_| corrupt("a time"))
}

fn store<T>(result: Result<T, stolos_store::sqlx::Error>) -> Result<T> {
    result.map_err(|error| Error::Store(error.into()))
}

fn version(row: &AnyRow) -> Result<Version> {
    let name: String = store(row.try_get("name"))?;
    let id: String = store(row.try_get("id"))?;
    let kind: String = store(row.try_get("kind"))?;
    let signed_by: Option<String> = store(row.try_get("signed_by"))?;
    let expires_at: Option<i64> = store(row.try_get("expires_at"))?;
    Ok(Version {
        id: id.parse().map_err(|_| corrupt(&name))?,
        kind: kind.parse().map_err(|_| corrupt(&name))?,
        number: store(row.try_get("number"))?,
        created_at: time(store(row.try_get("created_at"))?)?,
        expires_at: expires_at.map(time).transpose()?,
        parameters: store(row.try_get("parameters"))?,
        signed_by: signed_by
            .map(|id| id.parse())
            .transpose()
            .map_err(|_| corrupt(&name))?,
        data_key: store(row.try_get("data_key"))?,
        sealed: Sealed {
            nonce: store(row.try_get("nonce"))?,
            ciphertext: store(row.try_get("ciphertext"))?,
        },
        name: Name::absolute(&name)?,
    })
}

/// The newest version of a name.
pub(crate) async fn newest(db: &Db, name: &Name) -> Result<Option<Version>> {
    let sql = const_format(BY_NAME);
    let row = query(sql).bind(name.key()).fetch_optional(db.read()).await;
    store(row)?.as_ref().map(version).transpose()
}

/// The newest version of a name, within a transaction.
pub(crate) async fn newest_in(tx: &mut Tx, name: &Name) -> Result<Option<Version>> {
    let sql = const_format(BY_NAME);
    let row = query(sql).bind(name.key()).fetch_optional(tx.conn()).await;
    store(row)?.as_ref().map(version).transpose()
}

/// The version of that id.
pub(crate) async fn by_id(db: &Db, id: CredentialId) -> Result<Option<Version>> {
    let sql = const_format("WHERE v.id = $1");
    let row = query(sql).bind(id.to_string()).fetch_optional(db.read()).await;
    store(row)?.as_ref().map(version).transpose()
}

/// Only constants of this file are put together.
fn const_format(condition: &'static str) -> stolos_store::AssertSqlSafe<String> {
    stolos_store::AssertSqlSafe(format!("{VERSION}{condition}"))
}

/// Adds a version with the next number. The name is made where it is new; its type must be the same.
pub(crate) async fn insert(tx: &mut Tx, new: &Version) -> Result<()> {
    store(
        query("INSERT INTO credentials_names (key, name, kind) VALUES ($1, $2, $3) ON CONFLICT (key) DO NOTHING")
            .bind(new.name.key())
            .bind(new.name.as_str())
            .bind(new.kind.as_str())
            .execute(tx.conn())
            .await,
    )?;
    store(
        query(
            "INSERT INTO credentials_versions
                (id, key, number, created_at, expires_at, parameters, signed_by, data_key, nonce, ciphertext)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(new.id.to_string())
        .bind(new.name.key())
        .bind(new.number)
        .bind(new.created_at.as_millisecond())
        .bind(new.expires_at.map(Timestamp::as_millisecond))
        .bind(new.parameters.clone())
        .bind(new.signed_by.map(|id| id.to_string()))
        .bind(new.data_key.clone())
        .bind(new.sealed.nonce.clone())
        .bind(new.sealed.ciphertext.clone())
        .execute(tx.conn())
        .await,
    )?;
    Ok(())
}

/// Forgets a name and all its versions; whether there was one.
pub(crate) async fn delete(tx: &mut Tx, name: &Name) -> Result<bool> {
    let result = query("DELETE FROM credentials_names WHERE key = $1")
        .bind(name.key())
        .execute(tx.conn())
        .await;
    Ok(store(result)?.rows_affected() > 0)
}

/// Forgets all names with a prefix; how many there were. `_` and `%` in names are no wildcards here.
pub(crate) async fn delete_below(tx: &mut Tx, prefix: &str) -> Result<u64> {
    let prefix = prefix.to_ascii_lowercase();
    let length = i64::try_from(prefix.len()).map_err(|_| corrupt("a prefix"))?;
    let result = query("DELETE FROM credentials_names WHERE SUBSTR(key, 1, CAST($1 AS INTEGER)) = $2")
        .bind(length)
        .bind(prefix)
        .execute(tx.conn())
        .await;
    Ok(store(result)?.rows_affected())
}

/// The newest version of each name with a prefix, at most `limit`, after the name `after`.
pub(crate) async fn list(db: &Db, prefix: &str, after: &str, limit: i64) -> Result<Vec<Listed>> {
    let prefix = prefix.to_ascii_lowercase();
    let length = i64::try_from(prefix.len()).map_err(|_| corrupt("a prefix"))?;
    let rows = query(
        "SELECT v.id, n.name, n.kind, v.created_at, v.expires_at
         FROM credentials_names n
         JOIN credentials_versions v ON v.key = n.key
            AND v.number = (SELECT MAX(number) FROM credentials_versions WHERE key = n.key)
         WHERE SUBSTR(n.key, 1, CAST($1 AS INTEGER)) = $2 AND n.key > $3
         ORDER BY n.key LIMIT $4",
    )
    .bind(length)
    .bind(prefix)
    .bind(after.to_ascii_lowercase())
    .bind(limit)
    .fetch_all(db.read())
    .await;
    store(rows)?
        .iter()
        .map(|row| {
            let name: String = store(row.try_get("name"))?;
            let id: String = store(row.try_get("id"))?;
            let kind: String = store(row.try_get("kind"))?;
            let expires_at: Option<i64> = store(row.try_get("expires_at"))?;
            Ok(Listed {
                id: id.parse().map_err(|_| corrupt(&name))?,
                kind: kind.parse().map_err(|_| corrupt(&name))?,
                created_at: time(store(row.try_get("created_at"))?)?,
                expires_at: expires_at.map(time).transpose()?,
                name: Name::absolute(&name)?,
            })
        })
        .collect()
}

/// The wrapped data keys, oldest first.
pub(crate) async fn data_keys(tx: &mut Tx) -> Result<Vec<(String, Sealed)>> {
    let rows = query("SELECT id, nonce, wrapped FROM credentials_keys ORDER BY number")
        .fetch_all(tx.conn())
        .await;
    store(rows)?
        .iter()
        .map(|row| {
            Ok((
                store(row.try_get("id"))?,
                Sealed {
                    nonce: store(row.try_get("nonce"))?,
                    ciphertext: store(row.try_get("wrapped"))?,
                },
            ))
        })
        .collect()
}

/// Adds the first data key.
pub(crate) async fn insert_data_key(tx: &mut Tx, id: &str, sealed: &Sealed) -> Result<()> {
    let now = tx.now_millis();
    let result = query(
        "INSERT INTO credentials_keys (id, number, nonce, wrapped, created_at) VALUES ($1, 1, $2, $3, $4)",
    )
    .bind(id)
    .bind(sealed.nonce.clone())
    .bind(sealed.ciphertext.clone())
    .bind(now)
    .execute(tx.conn())
    .await;
    store(result).map(drop)
}
