//! The CPI for this Linux host: containers as machines, sparse files on loop devices as disks.
//!
//! Owns: everything that an instance puts on the host for machines — their directories, processes, mounts, cgroups, links,
//! bridges, loop devices, the masquerading of the instance's nft table, and the record of changed sysctls. Never does: who
//! gets which address, what runs inside a machine. It is no security boundary: the kernel is shared.
//!
//! Invariants: what will be made is in `machine.json` before it is made; every method can be repeated after the death of the
//! process at any instant; no mount of a machine is ever in the host's mount namespace; whoever works on a machine holds
//! its lock, which the OCI runtime inherits, so that a killed CPI's runtime has ended before anybody else starts.

mod cgroup;
mod config;
mod cpi;
mod destroy;
mod disks;
mod error;
mod host;
mod machines;
mod net;
mod nft;
mod power;
mod prepare;
mod record;
mod stemcells;
mod wanted;

pub use config::{AgentConfig, Config};
pub use cpi::HostCpi;
pub use error::{Error, Result};
pub use host::Host;
pub use nft::apply as nft_apply;
pub use prepare::{REQUIRED, SysctlRecord, Sysctls};
pub use record::{Link, Machine, Power, Size, State};
