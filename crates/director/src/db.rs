//! Everything the director keeps, and every statement on it.
//!
//! Owns the tables. Intent columns are written for people (by request handlers and plans), state columns by steps; the
//! schema says which is which. Steps show the fence of their flow inside their transaction ([`Fence`]), so that a
//! process that has lost a flow cannot write for it any more. Never holds a secret: manifests, plans and specs name
//! variables; their values stay with whoever keeps credentials.

pub(crate) mod adoption;
pub(crate) mod alerts;
pub(crate) mod configs;
pub(crate) mod deployments;
pub(crate) mod health;
pub(crate) mod inventory;
pub(crate) mod releases;
pub(crate) mod tasks;

use serde::Serialize;
use serde::de::DeserializeOwned;
use stolos_store::{AnyRow, Db, Fence, Migration, Part, Row as _, Schema, Tx, lease};

use crate::error::{Error, Result};

/// The director's own tables.
pub static TABLES: Part = Part {
    name: "director",
    migrations: &[
        Migration {
            number: 1,
            name: "tasks_and_deployments",
            statements: &[
                "CREATE TABLE tasks (
                    id BIGINT PRIMARY KEY,
                    flow TEXT NOT NULL UNIQUE,
                    -- intent: written when a request is accepted
                    kind TEXT NOT NULL,
                    description TEXT NOT NULL,
                    deployment TEXT,
                    username TEXT NOT NULL,
                    context_id TEXT NOT NULL,
                    created_at BIGINT NOT NULL,
                    cancel_requested_at BIGINT,
                    -- state: written with the state of the flow
                    state TEXT NOT NULL,
                    started_at BIGINT,
                    ended_at BIGINT,
                    result TEXT
                )",
                "CREATE INDEX tasks_state ON tasks (state, id)",
                "CREATE INDEX tasks_deployment ON tasks (deployment, id)",
                // Append only: pieces of one text; `first` is the offset of the piece in bytes.
                "CREATE TABLE task_output (
                    task BIGINT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
                    kind TEXT NOT NULL,
                    first BIGINT NOT NULL,
                    length BIGINT NOT NULL,
                    body TEXT NOT NULL,
                    PRIMARY KEY (task, kind, first)
                )",
                "CREATE TABLE configs (
                    id BIGINT PRIMARY KEY,
                    kind TEXT NOT NULL,
                    name TEXT NOT NULL,
                    content TEXT NOT NULL,
                    created_at BIGINT NOT NULL
                )",
                "CREATE INDEX configs_by_name ON configs (kind, name, id)",
                "CREATE TABLE deployments (
                    name TEXT PRIMARY KEY,
                    created_at BIGINT NOT NULL,
                    -- intent: the manifest of the last plan, and that plan's number; numbers only grow
                    wanted_manifest TEXT,
                    generation BIGINT NOT NULL,
                    -- state: what was last deployed to its end
                    manifest TEXT,
                    deployed_generation BIGINT,
                    cloud_config_ids TEXT NOT NULL,
                    releases TEXT NOT NULL,
                    stemcells TEXT NOT NULL
                )",
                // A plan is written once and never changed; it says everything that its flow does.
                "CREATE TABLE plans (
                    flow TEXT PRIMARY KEY,
                    deployment TEXT NOT NULL,
                    generation BIGINT NOT NULL,
                    body TEXT NOT NULL,
                    created_at BIGINT NOT NULL
                )",
                "CREATE INDEX plans_deployment ON plans (deployment)",
                // Which version of each variable a plan resolves.
                "CREATE TABLE variables (
                    deployment TEXT NOT NULL,
                    generation BIGINT NOT NULL,
                    name TEXT NOT NULL,
                    id TEXT NOT NULL,
                    PRIMARY KEY (deployment, generation, name)
                )",
            ],
        },
        Migration {
            number: 2,
            name: "releases_and_stemcells",
            statements: &[
                "CREATE TABLE release_versions (
                    name TEXT NOT NULL,
                    version TEXT NOT NULL,
                    commit_hash TEXT NOT NULL,
                    uncommitted_changes BIGINT NOT NULL,
                    created_at BIGINT NOT NULL,
                    PRIMARY KEY (name, version)
                )",
                "CREATE TABLE release_jobs (
                    release_name TEXT NOT NULL,
                    release_version TEXT NOT NULL,
                    name TEXT NOT NULL,
                    fingerprint TEXT NOT NULL,
                    digest TEXT NOT NULL,
                    blob TEXT NOT NULL,
                    -- the job's own description (job.MF) as JSON
                    spec TEXT NOT NULL,
                    PRIMARY KEY (release_name, release_version, name),
                    FOREIGN KEY (release_name, release_version) REFERENCES release_versions (name, version)
                        ON DELETE CASCADE
                )",
                // Packages come compiled for one stemcell; `blob` is what the agent gets.
                "CREATE TABLE release_packages (
                    release_name TEXT NOT NULL,
                    release_version TEXT NOT NULL,
                    name TEXT NOT NULL,
                    fingerprint TEXT NOT NULL,
                    stemcell TEXT NOT NULL,
                    digest TEXT NOT NULL,
                    blob TEXT NOT NULL,
                    dependencies TEXT NOT NULL,
                    PRIMARY KEY (release_name, release_version, name, stemcell),
                    FOREIGN KEY (release_name, release_version) REFERENCES release_versions (name, version)
                        ON DELETE CASCADE
                )",
                "CREATE TABLE stemcells (
                    id BIGINT PRIMARY KEY,
                    name TEXT NOT NULL,
                    version TEXT NOT NULL,
                    os TEXT NOT NULL,
                    api_version BIGINT,
                    cid TEXT NOT NULL,
                    digest TEXT NOT NULL,
                    created_at BIGINT NOT NULL,
                    UNIQUE (name, version)
                )",
            ],
        },
        Migration {
            number: 3,
            name: "inventory",
            statements: &[
                "CREATE TABLE instances (
                    id TEXT PRIMARY KEY,
                    deployment TEXT NOT NULL REFERENCES deployments (name),
                    -- intent: written with a plan
                    grp TEXT NOT NULL,
                    idx BIGINT NOT NULL,
                    az TEXT,
                    bootstrap BIGINT NOT NULL,
                    wanted_state TEXT NOT NULL,
                    ignored BIGINT NOT NULL,
                    -- state: written by steps
                    applied TEXT,
                    update_completed BIGINT NOT NULL
                )",
                "CREATE INDEX instances_deployment ON instances (deployment, grp, idx)",
                "CREATE TABLE ip_addresses (
                    address TEXT PRIMARY KEY,
                    network TEXT NOT NULL,
                    instance TEXT NOT NULL REFERENCES instances (id),
                    -- 0: no longer planned, but the machine that is to be replaced still has it
                    wanted BIGINT NOT NULL
                )",
                "CREATE INDEX ip_addresses_network ON ip_addresses (network)",
                "CREATE INDEX ip_addresses_instance ON ip_addresses (instance)",
                // Written before the machine is made: without a cid it may or may not exist.
                "CREATE TABLE vms (
                    agent TEXT PRIMARY KEY,
                    instance TEXT NOT NULL REFERENCES instances (id),
                    made_as TEXT NOT NULL,
                    call_id TEXT NOT NULL,
                    created_at BIGINT NOT NULL,
                    -- state
                    cid TEXT,
                    ready BIGINT NOT NULL
                )",
                "CREATE INDEX vms_instance ON vms (instance)",
                // Written before the disk is made: without a cid it may or may not exist. The instance is absent for
                // orphans; they keep the text that people know it by.
                "CREATE TABLE disks (
                    call_id TEXT PRIMARY KEY,
                    deployment TEXT NOT NULL,
                    instance TEXT,
                    instance_name TEXT NOT NULL,
                    made_as TEXT NOT NULL,
                    created_at BIGINT NOT NULL,
                    -- state
                    cid TEXT UNIQUE,
                    active BIGINT NOT NULL,
                    orphaned_at BIGINT
                )",
                "CREATE INDEX disks_instance ON disks (instance)",
                "CREATE INDEX disks_deployment ON disks (deployment)",
            ],
        },
        Migration {
            number: 4,
            name: "health",
            statements: &[
                "CREATE TABLE repairs (
                    task BIGINT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
                    deployment TEXT NOT NULL,
                    instance TEXT NOT NULL,
                    why TEXT NOT NULL,
                    created_at BIGINT NOT NULL,
                    PRIMARY KEY (task, instance)
                )",
                "CREATE INDEX repairs_created ON repairs (created_at)",
                "CREATE TABLE events (
                    id BIGINT PRIMARY KEY,
                    at BIGINT NOT NULL,
                    username TEXT NOT NULL,
                    action TEXT NOT NULL,
                    object_type TEXT NOT NULL,
                    object_name TEXT NOT NULL,
                    task BIGINT,
                    deployment TEXT,
                    instance TEXT,
                    severity BIGINT NOT NULL,
                    message TEXT NOT NULL
                )",
                // What people set for the whole director.
                "CREATE TABLE settings (
                    name TEXT PRIMARY KEY,
                    value TEXT NOT NULL
                )",
            ],
        },
        Migration {
            number: 5,
            name: "reach_of_deployments",
            statements: &[
                // intent: beside its own credentials, those that a deployment may name: a JSON list of absolute prefixes. NULL: all.
                "ALTER TABLE deployments ADD COLUMN may_name TEXT",
                // Clusters of before named the files of their Kubernetes profile where these lie; their next deploy does not.
                "UPDATE deployments SET may_name = '[\"/stolos/kubernetes-profiles/\"]' WHERE name LIKE 'service-instance%'",
            ],
        },
        Migration {
            number: 6,
            name: "counted_alerts_and_cancelling",
            statements: &[
                // The machine whose words caused an event; absent for the director's own.
                "ALTER TABLE events ADD COLUMN source TEXT",
                "CREATE INDEX events_source ON events (source, id)",
                // Alerts of machines, counted while they repeat.
                "CREATE TABLE alerts (
                    source TEXT NOT NULL,
                    subject TEXT NOT NULL,
                    times BIGINT NOT NULL,
                    first_at BIGINT NOT NULL,
                    last_at BIGINT NOT NULL,
                    told BIGINT NOT NULL,
                    next_at BIGINT NOT NULL,
                    severity BIGINT NOT NULL,
                    is_open BIGINT NOT NULL,
                    recent TEXT NOT NULL,
                    PRIMARY KEY (source, subject)
                )",
                // intent: who wanted the task to end early
                "ALTER TABLE tasks ADD COLUMN cancelled_by TEXT",
            ],
        },
        // new migrations go above this line, with the next number
    ],
};

/// All tables in the director's database.
pub static SCHEMA: Schema = Schema {
    name: "director",
    parts: &[&TABLES, &stolos_flow::TABLES],
};

/// A column, with our error.
pub(crate) fn get<'r, T>(row: &'r AnyRow, column: &'static str) -> Result<T>
where
    T: stolos_store::sqlx::Decode<'r, stolos_store::sqlx::Any>
        + stolos_store::sqlx::Type<stolos_store::sqlx::Any>,
{
    row.try_get(column).map_err(|error| Error::Store(error.into()))
}

/// A JSON column.
pub(crate) fn from_json<T: DeserializeOwned>(column: &'static str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|source| Error::Stored { column, source })
}

/// A parsed column.
pub(crate) fn parse<T: std::str::FromStr>(
    column: &'static str,
    expected: &'static str,
    text: &str,
) -> Result<T> {
    text.parse()
        .map_err(|_| Error::Store(stolos_store::Error::Corrupt { column, expected }))
}

/// A value for a JSON column.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|source| Error::Stored {
        column: "(new)",
        source,
    })
}

/// Begins a transaction that acts for a flow: refused when another process has taken the flow over.
pub(crate) async fn begin_fenced(db: &Db, name: &'static str, fence: &Fence) -> Result<Tx> {
    let mut tx = db.begin_background(name).await?;
    lease::verify(&mut tx, fence).await?;
    Ok(tx)
}
