//! Deployments, their plans, and the versions of variables that a plan resolves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stolos_api::director::NameVersion;
use stolos_base::ids::{CredentialId, FlowId};
use stolos_store::{AnyRow, AssertSqlSafe, Db, Fence, Tx, query};

use super::{begin_fenced, from_json, get, parse, to_json};
use crate::error::{Error, Result};
use crate::variables::Reach;

/// A deployment as kept.
#[derive(Clone, Debug)]
pub(crate) struct DeploymentRow {
    pub(crate) name: String,
    /// Number of the last plan.
    pub(crate) generation: u64,
    /// What was last deployed to its end.
    pub(crate) manifest: Option<String>,
    pub(crate) cloud_config_ids: Vec<i64>,
    pub(crate) releases: Vec<NameVersion>,
    pub(crate) stemcells: Vec<NameVersion>,
    /// Which credentials it may name.
    pub(crate) reach: Reach,
}

/// What a deployment uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Uses {
    pub(crate) cloud_config_ids: Vec<i64>,
    pub(crate) releases: Vec<NameVersion>,
    pub(crate) stemcells: Vec<NameVersion>,
}

const COLUMNS: &str = "name, generation, manifest, cloud_config_ids, releases, stemcells, may_name";

pub(crate) async fn find(db: &Db, name: &str) -> Result<Option<DeploymentRow>> {
    let sql = format!("SELECT {COLUMNS} FROM deployments WHERE name = $1");
    let row = query(AssertSqlSafe(sql))
        .bind(name)
        .fetch_optional(db.read())
        .await?;
    row.map(|row| deployment(&row)).transpose()
}

pub(crate) async fn existing(db: &Db, name: &str) -> Result<DeploymentRow> {
    find(db, name)
        .await?
        .ok_or_else(|| Error::NoDeployment(name.to_owned()))
}

/// All, by name.
pub(crate) async fn list(db: &Db) -> Result<Vec<DeploymentRow>> {
    let sql = format!("SELECT {COLUMNS} FROM deployments ORDER BY name");
    query(AssertSqlSafe(sql))
        .fetch_all(db.read())
        .await?
        .iter()
        .map(deployment)
        .collect()
}

/// Refuses when a release or stemcell was deleted while the plan was made.
pub(crate) async fn check_uses(tx: &mut Tx, uses: &Uses) -> Result<()> {
    for release in &uses.releases {
        let row = query("SELECT 1 AS there FROM release_versions WHERE name = $1 AND version = $2")
            .bind(&release.name)
            .bind(&release.version)
            .fetch_optional(tx.conn())
            .await?;
        if row.is_none() {
            return Err(Error::NoRelease(format!("{}/{}", release.name, release.version)));
        }
    }
    for stemcell in &uses.stemcells {
        let row = query("SELECT 1 AS there FROM stemcells WHERE name = $1 AND version = $2")
            .bind(&stemcell.name)
            .bind(&stemcell.version)
            .fetch_optional(tx.conn())
            .await?;
        if row.is_none() {
            return Err(Error::NoStemcell(format!(
                "{}/{}",
                stemcell.name, stemcell.version
            )));
        }
    }
    Ok(())
}

/// Makes the row where it is missing, and notes what is wanted. Releases and stemcells in use are the old and the new
/// ones until the deploy has ended, so that nobody deletes either meanwhile.
pub(crate) async fn want(
    tx: &mut Tx,
    name: &str,
    manifest: &str,
    generation: u64,
    uses: &Uses,
    reach: &Reach,
) -> Result<()> {
    let now = tx.now_millis();
    let sql = format!("SELECT {COLUMNS} FROM deployments WHERE name = $1");
    let row = query(AssertSqlSafe(sql))
        .bind(name)
        .fetch_optional(tx.conn())
        .await?;
    let mut uses = uses.clone();
    if let Some(old) = row.map(|row| deployment(&row)).transpose()? {
        for (list, more) in [
            (&mut uses.releases, old.releases),
            (&mut uses.stemcells, old.stemcells),
        ] {
            list.extend(more);
            list.sort();
            list.dedup();
        }
        if old.manifest.is_some() {
            uses.cloud_config_ids = old.cloud_config_ids;
        }
    }
    query(
        "INSERT INTO deployments (name, created_at, wanted_manifest, generation, cloud_config_ids, releases, stemcells,
             may_name)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (name) DO UPDATE SET wanted_manifest = excluded.wanted_manifest, generation = excluded.generation,
             cloud_config_ids = excluded.cloud_config_ids, releases = excluded.releases, stemcells = excluded.stemcells,
             may_name = excluded.may_name",
    )
    .bind(name)
    .bind(now)
    .bind(manifest)
    .bind(number(generation))
    .bind(to_json(&uses.cloud_config_ids)?)
    .bind(to_json(&uses.releases)?)
    .bind(to_json(&uses.stemcells)?)
    .bind(match reach {
        Reach::All => None,
        Reach::Own { also } => Some(to_json(also)?),
    })
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Notes that what was wanted is there now, and forgets plans and variable versions of before.
pub(crate) async fn finish(db: &Db, fence: &Fence, name: &str, generation: u64, uses: &Uses) -> Result<()> {
    let mut tx = begin_fenced(db, "finish a deployment", fence).await?;
    query(
        "UPDATE deployments SET manifest = wanted_manifest, deployed_generation = $2, cloud_config_ids = $3, releases = $4,
             stemcells = $5 WHERE name = $1",
    )
    .bind(name)
    .bind(number(generation))
    .bind(to_json(&uses.cloud_config_ids)?)
    .bind(to_json(&uses.releases)?)
    .bind(to_json(&uses.stemcells)?)
    .execute(tx.conn())
    .await?;
    for sql in [
        "DELETE FROM variables WHERE deployment = $1 AND generation < $2",
        "DELETE FROM plans WHERE deployment = $1 AND generation < $2",
    ] {
        query(sql)
            .bind(name)
            .bind(number(generation))
            .execute(tx.conn())
            .await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Forgets a deployment. Its instances, machines and disks have to be gone.
pub(crate) async fn delete(tx: &mut Tx, name: &str) -> Result<()> {
    for sql in [
        "DELETE FROM variables WHERE deployment = $1",
        "DELETE FROM plans WHERE deployment = $1",
        "DELETE FROM deployments WHERE name = $1",
    ] {
        query(sql).bind(name).execute(tx.conn()).await?;
    }
    Ok(())
}

/// The plan of a flow, if it has been made: `(generation, body)`.
pub(crate) async fn plan(db: &Db, flow: FlowId) -> Result<Option<String>> {
    let row = query("SELECT body FROM plans WHERE flow = $1")
        .bind(flow.to_string())
        .fetch_optional(db.read())
        .await?;
    row.map(|row| get(&row, "body")).transpose()
}

/// The plans of a deployment that are kept, newest first: what was last deployed, and what was wanted since then and did not come to its end.
pub(crate) async fn plans(db: &Db, deployment: &str) -> Result<Vec<(u64, String)>> {
    query("SELECT generation, body FROM plans WHERE deployment = $1 ORDER BY generation DESC")
        .bind(deployment)
        .fetch_all(db.read())
        .await?
        .iter()
        .map(|row| {
            let generation = u64::try_from(get::<i64>(row, "generation")?).unwrap_or(0);
            Ok((generation, get(row, "body")?))
        })
        .collect()
}

/// Takes the next number for a plan that changes nothing of what is wanted. False when another plan took it.
pub(crate) async fn advance(tx: &mut Tx, name: &str, generation: u64) -> Result<bool> {
    let changed = query("UPDATE deployments SET generation = $2 WHERE name = $1 AND generation = $2 - 1")
        .bind(name)
        .bind(number(generation))
        .execute(tx.conn())
        .await?
        .rows_affected();
    Ok(changed == 1)
}

/// Forgets the plan of a flow that has ended and left no new state of the deployment behind.
pub(crate) async fn forget_plan(tx: &mut Tx, flow: FlowId) -> Result<(), stolos_store::Error> {
    query("DELETE FROM plans WHERE flow = $1")
        .bind(flow.to_string())
        .execute(tx.conn())
        .await?;
    Ok(())
}

/// Keeps a plan. False when the flow has one already, which then counts.
pub(crate) async fn insert_plan(
    tx: &mut Tx,
    flow: FlowId,
    deployment: &str,
    generation: u64,
    body: &str,
) -> Result<bool> {
    let now = tx.now_millis();
    let inserted = query(
        "INSERT INTO plans (flow, deployment, generation, body, created_at) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (flow) DO NOTHING",
    )
    .bind(flow.to_string())
    .bind(deployment)
    .bind(number(generation))
    .bind(body)
    .bind(now)
    .execute(tx.conn())
    .await?
    .rows_affected();
    Ok(inserted == 1)
}

/// Pins the versions of variables that a plan resolves.
pub(crate) async fn pin(
    tx: &mut Tx,
    deployment: &str,
    generation: u64,
    variables: &BTreeMap<String, CredentialId>,
) -> Result<()> {
    for (name, id) in variables {
        query(
            "INSERT INTO variables (deployment, generation, name, id) VALUES ($1, $2, $3, $4)
             ON CONFLICT (deployment, generation, name) DO UPDATE SET id = excluded.id",
        )
        .bind(deployment)
        .bind(number(generation))
        .bind(name)
        .bind(id.to_string())
        .execute(tx.conn())
        .await?;
    }
    Ok(())
}

/// The versions of variables that a plan resolves.
pub(crate) async fn pinned(
    db: &Db,
    deployment: &str,
    generation: u64,
) -> Result<BTreeMap<String, CredentialId>> {
    query("SELECT name, id FROM variables WHERE deployment = $1 AND generation = $2")
        .bind(deployment)
        .bind(number(generation))
        .fetch_all(db.read())
        .await?
        .iter()
        .map(|row| Ok((get(row, "name")?, parse("id", "id", &get::<String>(row, "id")?)?)))
        .collect()
}

fn deployment(row: &AnyRow) -> Result<DeploymentRow> {
    Ok(DeploymentRow {
        name: get(row, "name")?,
        generation: u64::try_from(get::<i64>(row, "generation")?).unwrap_or(0),
        manifest: get(row, "manifest")?,
        cloud_config_ids: from_json("cloud_config_ids", &get::<String>(row, "cloud_config_ids")?)?,
        releases: from_json("releases", &get::<String>(row, "releases")?)?,
        stemcells: from_json("stemcells", &get::<String>(row, "stemcells")?)?,
        reach: match get::<Option<String>>(row, "may_name")? {
            None => Reach::All,
            Some(also) => Reach::Own {
                also: from_json("may_name", &also)?,
            },
        },
    })
}

fn number(generation: u64) -> i64 {
    i64::try_from(generation).unwrap_or(i64::MAX)
}
