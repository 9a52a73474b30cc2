//! What changes, and in which order.

use stolos_base::IdSource;

use super::inventory::Inventory;
use super::types::{Options, Placement, Plan, Rendered};

/// Compares what should be with what is.
#[must_use]
pub fn decide(_placement: &Placement, _rendered: &Rendered, _inventory: &Inventory, _options: &Options, _ids: &IdSource) -> Plan {
    unimplemented!("arrives with the next commit")
}
