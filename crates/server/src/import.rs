//! `stolos import`: what PKS's tile was told, as `om staged-config -p pivotal-container-service` prints it, becomes plans and zones of ours.
//!
//! [`convert`] is pure; [`command`] reads, prints and writes. Whatever the file says ends up in the report: taken, changed with the reason, or not
//! taken with what to do instead. Only what belongs to switched-off parts of the tile is counted and not told. Values are shown and taken where
//! their meaning is known; of all else, which may hold passwords, only the name is.

pub mod command;
mod machines;
mod network;
mod plans;
mod report;
mod rest;
mod staged;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use stolos_base::Classify;
use stolos_clusters::plans::{InvalidPlans, Plan};
use stolos_manifest::Problem;

pub use machines::VmType;
pub use report::{Line, Outcome, Report};

/// What is not in the file but decides about the result.
#[derive(Clone, Debug)]
pub struct Options {
    /// Kubernetes version of all plans, without `v`.
    pub kubernetes_version: String,
    /// Sizes of VM types by name; they go before those that are known.
    pub vm_types: BTreeMap<String, VmType>,
}

/// What became of a file.
#[derive(Clone, Debug, Serialize)]
pub struct Imported {
    /// Line by line, what was done with it.
    pub report: Report,
    /// For `config.yml`.
    pub configuration: Configuration,
    /// A network profile for the tile's networks of pods and services, where they differ from ours: a file for `create-network-profile`.
    pub network_profile: Option<Value>,
}

/// The part of `config.yml` that comes from a tile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Configuration {
    /// Plans, each in its place: ids go by it.
    pub plans: Vec<Plan>,
    /// Zones; empty where the file names none, those of `config.yml` stay then.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
}

/// A file cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no YAML.
    #[error("{0}")]
    Syntax(Box<Problem>),
    /// It is YAML, but not of the tile.
    #[error("not the staged configuration of pivotal-container-service{at}: {problem}", at = at(*line, *column))]
    NotStaged {
        /// Line, from 1; 0 where there is none to name.
        line: u32,
        /// Column, from 1.
        column: u32,
        /// What is wrong.
        problem: String,
    },
    /// No plan is active.
    #[error("no plan from 1 to 10 is active, so nothing would be on offer")]
    NoPlan,
    /// The plans do not go together; each one of them does alone.
    #[error("the plans cannot be used")]
    Plans(#[source] InvalidPlans),
}

fn at(line: u32, column: u32) -> String {
    if line == 0 {
        String::new()
    } else {
        format!(" (line {line}, column {column})")
    }
}

impl Classify for Error {
    fn class(&self) -> stolos_base::Class {
        stolos_base::Class::User
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Syntax(_) | Self::NotStaged { .. } => vec![
                "Write the file with `om staged-config -p pivotal-container-service > tile.yml`.".to_owned(),
            ],
            Self::NoPlan | Self::Plans(_) => Vec::new(),
        }
    }
}

/// Makes plans, zones and a network profile of a staged configuration.
///
/// # Errors
/// When the text is not one, or no plan comes of it.
pub fn convert(text: &str, options: &Options) -> Result<Imported, Error> {
    let mut staged = staged::Staged::parse(text)?;
    let mut report = Report::default();
    let (plans, zones) = plans::take(&mut staged, &mut report, options)?;
    let network_profile = network::take(&mut staged, &mut report);
    rest::take(&mut staged, &mut report);
    Ok(Imported {
        report,
        configuration: Configuration { plans, zones },
        network_profile,
    })
}

#[cfg(test)]
mod tests;
