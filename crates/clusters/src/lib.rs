//! The product: people ask for clusters here.
//!
//! Owns clusters and operations (intent and state), plans, the PKS API, the rendering of a cluster's BOSH manifest, and the
//! flows that create and delete. Never speaks to an agent or a CPI: machines are the director's, reached through
//! `api::director`; Kubernetes itself is reached through `kubernetes`.
//!
//! The way through: `http` (extract, authorize) → `accept` (check, write intent) → `operations` (one runner a cluster) →
//! `flows` (named steps) → `render` (pure) → director.

pub mod model;
pub mod plans;
pub mod render;
