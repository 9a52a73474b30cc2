//! The product: people ask for clusters here.
//!
//! Owns clusters and operations (intent and state), plans, the PKS API, the rendering of a cluster's BOSH manifest, and the
//! flows that create and delete. Never speaks to an agent or a CPI: machines are the director's, reached through
//! [`deps::Director`]; Kubernetes itself is reached through [`deps::Kubernetes`].
//!
//! The way through: `http` (extract, authorize) → `accept` (check, write intent) → `service` (one flow per operation) →
//! `flows` (named steps) → `render` (pure) → director.

mod accept;
mod access;
mod api_server;
mod authorize;
mod backups;
pub mod config_file;
pub mod db;
pub mod deps;
mod error;
mod flows;
mod http;
mod metering;
pub mod model;
pub mod oidc;
mod owners;
mod pages;
pub mod plans;
mod pods;
mod precheck;
pub mod profiles;
mod quotas;
pub mod registries;
pub mod render;
mod schedule;
mod service;
pub mod settings;
pub mod shape;
mod show;
mod upgrades;
pub mod who;

pub use accept::Capacity;
pub use access::LOOK_AT_ACCESS;
pub use api_server::ApiServers;
pub use error::{Error, Result};
pub use service::{BackupSettings, Config, Deps, Service};

/// The tables of this service, with those of its flows.
pub static SCHEMA: stolos_store::Schema = stolos_store::Schema {
    name: "clusters",
    parts: &[&stolos_flow::TABLES, &db::TABLES],
};
