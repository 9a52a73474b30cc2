//! Which instance, where, with which addresses.

use stolos_base::IdSource;
use stolos_manifest::ResolvedDeployment;

use super::catalog::Catalog;
use super::error::Errors;
use super::inventory::Inventory;
use super::types::Placement;

/// Decides which instances there are, their zones, addresses and links.
///
/// # Errors
/// All reasons why that is not possible.
pub fn place(_deployment: &ResolvedDeployment, _catalog: &Catalog, _inventory: &Inventory, _ids: &IdSource) -> Result<Placement, Errors> {
    unimplemented!("arrives with the next commit")
}
