//! The planner: what has to be done so that a deployment becomes what its manifest says.
//!
//! Owns: placement (which instance, where, with which addresses), links, the comparison of what is with what should
//! be, the order of the work, and the [`Report`] that explains all of it. Never does: I/O, async, clocks, randomness
//! (new ids come from the [`IdSource`](stolos_base::IdSource) argument), rendering, looking anything up.
//!
//! Two steps, because whether an instance's configuration changed is known only after its templates were rendered,
//! and they are rendered with addresses and links:
//!
//! ```text
//! manifest::resolve(&manifest, &cloud, &known)            -> ResolvedDeployment
//! plan::place(&deployment, &catalog, &inventory, &ids)    -> Placement        ids, zones, addresses, links, properties
//!    the caller renders placement.instances × placement.jobs                  -> Rendered (hashes by instance)
//! plan::decide(&placement, &rendered, &inventory, &options, &ids) -> Plan     actions, order, reasons
//! plan.report()                                           -> Report           the same for people
//! ```
//!
//! What the caller stores, so that the next deploy finds it in its [`Inventory`]:
//! - when [`place()`] has returned: nothing yet; a dry run ends after [`decide()`];
//! - before anything is made: every [`InstancePlan`]'s id, group, index, zone, bootstrap flag and addresses;
//! - when a machine was made: its cid, agent id and [`Placed::machine`] as [`ExistingMachine::made_as`];
//! - when a disk was made: its cid and [`PersistentDisk`](stolos_manifest::PersistentDisk) as [`ExistingDisk::disk`];
//! - when the agent runs what it should: [`InstancePlan::desired`] as [`Existing::applied`], and `update_completed`.
//!
//! Invariants of a [`Plan`]: no address is used twice; an instance keeps its index, zone and addresses while they are
//! still allowed; every instance that changes is in exactly one wave; everything in `deletions` and
//! `vacate_first` is gone before anything is made; a plan of an unchanged deployment [is empty](Plan::is_empty).
//! The same input always gives the same plan.

mod addresses;
mod catalog;
mod decide;
mod error;
mod inventory;
mod links;
mod order;
mod place;
mod properties;
mod repair;
mod report;
#[cfg(test)]
mod tests;
mod types;
mod zones;

pub use catalog::{
    Catalog, CatalogError, ConsumeSpec, JobKey, JobSpec, PackageSpec, PropertySpec, ProvideSpec,
};
pub use decide::decide;
pub use error::{Error, Errors};
pub use inventory::{
    Applied, AppliedJob, Existing, ExistingDisk, ExistingMachine, Inventory, MachineSpec, NetworkSettings,
    PackageRef, Settings, State, StemcellRef,
};
pub use place::place;
pub use properties::lookup as property_at;
pub use repair::{Repair, describes, repair};
pub use report::{Phase, Report, ReportLine};
pub use types::{
    Action, Change, Deletion, DiskPlan, GroupOrder, GroupPlacement, InstancePlan, JobPlacement, Link,
    LinkInstance, MachineRef, Options, Placed, Placement, Plan, Reason, Recreate, Rendered, Stage, Wave,
};
