//! Releases and stemcells.

use std::collections::BTreeMap;

use stolos_release::JobSpec;
use stolos_store::{AnyRow, Db, Tx, query, sequence};

use super::{from_json, get, to_json};
use crate::error::{Error, Result};

/// A version of a release as kept.
#[derive(Clone, Debug)]
pub(crate) struct ReleaseRow {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) commit_hash: String,
    pub(crate) uncommitted_changes: bool,
    pub(crate) jobs: Vec<String>,
}

/// A job of a release version.
#[derive(Clone, Debug)]
pub(crate) struct JobRow {
    pub(crate) name: String,
    pub(crate) fingerprint: String,
    pub(crate) digest: String,
    pub(crate) blob: String,
    pub(crate) spec: JobSpec,
}

/// A package of a release version, compiled for a stemcell.
#[derive(Clone, Debug)]
pub(crate) struct PackageRow {
    pub(crate) name: String,
    pub(crate) fingerprint: String,
    /// `OS/VERSION`.
    pub(crate) stemcell: String,
    pub(crate) digest: String,
    pub(crate) blob: String,
    pub(crate) dependencies: Vec<String>,
}

/// A stemcell as kept.
#[derive(Clone, Debug)]
pub(crate) struct StemcellRow {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) os: String,
    pub(crate) api_version: u32,
    pub(crate) cid: String,
}

/// A release version with everything in it, to be written.
#[derive(Debug)]
pub(crate) struct NewRelease<'a> {
    pub(crate) name: &'a str,
    pub(crate) version: String,
    pub(crate) commit_hash: &'a str,
    pub(crate) uncommitted_changes: bool,
    pub(crate) jobs: Vec<JobRow>,
    pub(crate) packages: Vec<PackageRow>,
}

/// All versions of all releases, by name.
pub(crate) async fn list(db: &Db) -> Result<Vec<ReleaseRow>> {
    let mut jobs: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for row in query("SELECT release_name, release_version, name FROM release_jobs ORDER BY name")
        .fetch_all(db.read())
        .await?
    {
        let key = (get(&row, "release_name")?, get(&row, "release_version")?);
        jobs.entry(key).or_default().push(get(&row, "name")?);
    }
    query("SELECT name, version, commit_hash, uncommitted_changes FROM release_versions ORDER BY name, created_at")
        .fetch_all(db.read())
        .await?
        .iter()
        .map(|row| {
            let (name, version): (String, String) = (get(row, "name")?, get(row, "version")?);
            Ok(ReleaseRow {
                commit_hash: get(row, "commit_hash")?,
                uncommitted_changes: get::<i64>(row, "uncommitted_changes")? != 0,
                jobs: jobs.remove(&(name.clone(), version.clone())).unwrap_or_default(),
                name,
                version,
            })
        })
        .collect()
}

/// The commit of a release version, if it is there.
pub(crate) async fn commit_of(db: &Db, name: &str, version: &str) -> Result<Option<String>> {
    let row = query("SELECT commit_hash FROM release_versions WHERE name = $1 AND version = $2")
        .bind(name)
        .bind(version)
        .fetch_optional(db.read())
        .await?;
    row.map(|row| get(&row, "commit_hash")).transpose()
}

pub(crate) async fn jobs(db: &Db, name: &str, version: &str) -> Result<Vec<JobRow>> {
    query(
        "SELECT name, fingerprint, digest, blob, spec FROM release_jobs
         WHERE release_name = $1 AND release_version = $2 ORDER BY name",
    )
    .bind(name)
    .bind(version)
    .fetch_all(db.read())
    .await?
    .iter()
    .map(|row| {
        Ok(JobRow {
            name: get(row, "name")?,
            fingerprint: get(row, "fingerprint")?,
            digest: get(row, "digest")?,
            blob: get(row, "blob")?,
            spec: from_json("spec", &get::<String>(row, "spec")?)?,
        })
    })
    .collect()
}

pub(crate) async fn packages(db: &Db, name: &str, version: &str) -> Result<Vec<PackageRow>> {
    query(
        "SELECT name, fingerprint, stemcell, digest, blob, dependencies FROM release_packages
         WHERE release_name = $1 AND release_version = $2 ORDER BY name, stemcell",
    )
    .bind(name)
    .bind(version)
    .fetch_all(db.read())
    .await?
    .iter()
    .map(package)
    .collect()
}

/// A compiled package with this fingerprint from any release: what an upload may leave out.
pub(crate) async fn package_by_fingerprint(
    db: &Db,
    name: &str,
    fingerprint: &str,
    stemcell: &str,
) -> Result<Option<PackageRow>> {
    let row = query(
        "SELECT name, fingerprint, stemcell, digest, blob, dependencies FROM release_packages
         WHERE name = $1 AND fingerprint = $2 AND stemcell = $3 LIMIT 1",
    )
    .bind(name)
    .bind(fingerprint)
    .bind(stemcell)
    .fetch_optional(db.read())
    .await?;
    row.map(|row| package(&row)).transpose()
}

/// Writes a release version, replacing one that is there (an upload that is made again with `fix`).
pub(crate) async fn write(tx: &mut Tx, new: &NewRelease<'_>) -> Result<()> {
    query("DELETE FROM release_versions WHERE name = $1 AND version = $2")
        .bind(new.name)
        .bind(&new.version)
        .execute(tx.conn())
        .await?;
    let now = tx.now_millis();
    query(
        "INSERT INTO release_versions (name, version, commit_hash, uncommitted_changes, created_at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(new.name)
    .bind(&new.version)
    .bind(new.commit_hash)
    .bind(i64::from(new.uncommitted_changes))
    .bind(now)
    .execute(tx.conn())
    .await?;
    for job in &new.jobs {
        query(
            "INSERT INTO release_jobs (release_name, release_version, name, fingerprint, digest, blob, spec)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(new.name)
        .bind(&new.version)
        .bind(&job.name)
        .bind(&job.fingerprint)
        .bind(&job.digest)
        .bind(&job.blob)
        .bind(to_json(&job.spec)?)
        .execute(tx.conn())
        .await?;
    }
    for package in &new.packages {
        query(
            "INSERT INTO release_packages (release_name, release_version, name, fingerprint, stemcell, digest, blob, dependencies)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(new.name)
        .bind(&new.version)
        .bind(&package.name)
        .bind(&package.fingerprint)
        .bind(&package.stemcell)
        .bind(&package.digest)
        .bind(&package.blob)
        .bind(to_json(&package.dependencies)?)
        .execute(tx.conn())
        .await?;
    }
    Ok(())
}

/// Forgets a release version, or all of a release.
pub(crate) async fn delete(tx: &mut Tx, name: &str, version: Option<&str>) -> Result<u64> {
    Ok(
        query("DELETE FROM release_versions WHERE name = $1 AND ($2 = '' OR version = $2)")
            .bind(name)
            .bind(version.unwrap_or_default())
            .execute(tx.conn())
            .await?
            .rows_affected(),
    )
}

pub(crate) async fn stemcells(db: &Db) -> Result<Vec<StemcellRow>> {
    query("SELECT id, name, version, os, api_version, cid FROM stemcells ORDER BY id")
        .fetch_all(db.read())
        .await?
        .iter()
        .map(stemcell)
        .collect()
}

pub(crate) async fn stemcell_by_version(db: &Db, name: &str, version: &str) -> Result<Option<StemcellRow>> {
    let row = query(
        "SELECT id, name, version, os, api_version, cid FROM stemcells WHERE name = $1 AND version = $2",
    )
    .bind(name)
    .bind(version)
    .fetch_optional(db.read())
    .await?;
    row.map(|row| stemcell(&row)).transpose()
}

/// Writes a stemcell; one that is there already stays as it is.
pub(crate) async fn write_stemcell(tx: &mut Tx, new: &StemcellRow, digest: &str) -> Result<()> {
    let id = sequence::next(tx, "stemcells").await?;
    let now = tx.now_millis();
    query(
        "INSERT INTO stemcells (id, name, version, os, api_version, cid, digest, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (name, version) DO NOTHING",
    )
    .bind(id)
    .bind(&new.name)
    .bind(&new.version)
    .bind(&new.os)
    .bind(i64::from(new.api_version))
    .bind(&new.cid)
    .bind(digest)
    .bind(now)
    .execute(tx.conn())
    .await?;
    Ok(())
}

pub(crate) async fn delete_stemcell(tx: &mut Tx, name: &str, version: &str) -> Result<()> {
    query("DELETE FROM stemcells WHERE name = $1 AND version = $2")
        .bind(name)
        .bind(version)
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// All blobs that releases refer to.
pub(crate) async fn blobs(db: &Db) -> Result<Vec<String>> {
    query("SELECT blob FROM release_jobs UNION SELECT blob FROM release_packages")
        .fetch_all(db.read())
        .await?
        .iter()
        .map(|row| get(row, "blob"))
        .collect()
}

fn package(row: &AnyRow) -> Result<PackageRow> {
    Ok(PackageRow {
        name: get(row, "name")?,
        fingerprint: get(row, "fingerprint")?,
        stemcell: get(row, "stemcell")?,
        digest: get(row, "digest")?,
        blob: get(row, "blob")?,
        dependencies: from_json("dependencies", &get::<String>(row, "dependencies")?)?,
    })
}

fn stemcell(row: &AnyRow) -> Result<StemcellRow> {
    Ok(StemcellRow {
        id: get(row, "id")?,
        name: get(row, "name")?,
        version: get(row, "version")?,
        os: get(row, "os")?,
        api_version: u32::try_from(get::<Option<i64>>(row, "api_version")?.unwrap_or(1)).unwrap_or(1),
        cid: get(row, "cid")?,
    })
}

/// Whether the error says that the stemcell is not there.
pub(crate) fn found(stemcell: Option<StemcellRow>, name: &str, version: &str) -> Result<StemcellRow> {
    stemcell.ok_or_else(|| Error::NoStemcell(format!("{name}/{version}")))
}
