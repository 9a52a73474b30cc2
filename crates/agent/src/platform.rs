//! The machine below an agent: real, or simulated for tests with hundreds of agents.

mod linux;
mod memory;
mod vitals;

use std::io;
use std::time::Duration;

use camino::Utf8Path;
use stolos_init::wire::{Event, ProcessSpec, ProcessStatus};
use stolos_mbus::state::Vitals;

pub use linux::Linux;
pub use memory::Memory;

/// What an agent does to its machine. Calls block for moments at most, but for stopping a process and making a file
/// system.
pub trait Platform: Send + Sync + 'static {
    /// All processes of jobs.
    ///
    /// # Errors
    /// When init does not answer; so for all.
    fn processes(&self) -> io::Result<Vec<ProcessStatus>>;
    /// Defines a process and wants it running.
    ///
    /// # Errors
    /// See [`Platform::processes`].
    fn start(&self, spec: &ProcessSpec) -> io::Result<()>;
    /// Stops a process and waits for its end, `limit` at most.
    ///
    /// # Errors
    /// See [`Platform::processes`].
    fn stop(&self, name: &str, limit: Duration) -> io::Result<()>;
    /// Forgets a stopped process.
    ///
    /// # Errors
    /// See [`Platform::processes`].
    fn forget(&self, name: &str) -> io::Result<()>;
    /// Waits for events of processes and tells them until `told` says to stop. Those after number `after` come first; without
    /// a number only new ones come. A machine without events returns at once.
    ///
    /// # Errors
    /// When init went away.
    fn watch(&self, after: Option<u64>, told: &mut dyn FnMut(Event) -> bool) -> io::Result<()>;
    /// Memory in KiB and share of the machine's in percent, and CPU in percent, of a process.
    fn usage(&self, pid: i32) -> Usage;
    /// How the machine does.
    fn vitals(&self, ephemeral: &Utf8Path, persistent: &Utf8Path) -> Vitals;
    /// Whether a device is there.
    fn has_device(&self, device: &str) -> bool;
    /// What a device holds.
    ///
    /// # Errors
    /// When it cannot be read.
    fn content(&self, device: &str) -> io::Result<Content>;
    /// Makes a file system on the whole device. Whatever it holds is lost.
    ///
    /// # Errors
    /// When it cannot be made.
    fn format(&self, device: &str) -> io::Result<()>;
    /// Mounts a device that has a file system; fine when it is mounted there.
    ///
    /// # Errors
    /// When it cannot be mounted.
    fn mount(&self, device: &str, target: &Utf8Path) -> io::Result<()>;
    /// Unmounts what is mounted there; fine when nothing is.
    ///
    /// # Errors
    /// When it is in use.
    fn unmount(&self, target: &Utf8Path) -> io::Result<()>;
    /// The device that is mounted there.
    ///
    /// # Errors
    /// When the mount table cannot be read.
    fn mounted(&self, target: &Utf8Path) -> io::Result<Option<String>>;
    /// Copies everything of one directory into another.
    ///
    /// # Errors
    /// When something could not be copied.
    fn copy_tree(&self, from: &Utf8Path, to: &Utf8Path) -> io::Result<()>;
    /// Gives a directory and all below to root and the group of jobs.
    ///
    /// # Errors
    /// When it cannot.
    fn give_to_jobs(&self, path: &Utf8Path) -> io::Result<()>;
    /// Whether scripts of jobs can run here; in an imagined machine all of them succeed without running.
    fn runs_scripts(&self) -> bool {
        true
    }
    /// Forgets the hardware address of a neighbour.
    fn forget_neighbour(&self, address: &str);
    /// Ends the machine.
    ///
    /// # Errors
    /// When init does not answer.
    fn power_off(&self) -> io::Result<()>;
}

/// What a device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing: its beginning is all zeros.
    Blank,
    /// A file system of the kind that we make.
    FileSystem,
    /// Something else.
    Other,
}

/// What a process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// KiB.
    pub memory_kb: u64,
    /// Percent of the machine's memory.
    pub memory_percent: f64,
    /// Percent of a processor, over the life of the process.
    pub cpu_percent: f64,
}
