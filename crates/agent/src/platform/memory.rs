//! A machine that is only imagined: its processes run when they are told to.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use stolos_init::wire::{Event, ProcessSpec, ProcessStatus, State};
use stolos_mbus::state::Vitals;

use super::{Content, Platform, Usage};

/// An imagined machine.
#[derive(Debug, Default)]
pub struct Memory(Mutex<World>);

#[derive(Debug, Default)]
struct World {
    runs_scripts: bool,
    formatted: BTreeSet<String>,
    processes: BTreeMap<String, State>,
    mounts: BTreeMap<Utf8PathBuf, String>,
    off: bool,
}

impl Memory {
    /// One whose jobs' scripts do run, on the real machine below.
    #[must_use]
    pub fn with_scripts() -> Self {
        let memory = Self::default();
        memory.lock().runs_scripts = true;
        memory
    }

    /// Makes a process fail, or be well again.
    pub fn set_failing(&self, name: &str, failing: bool) {
        if let Some(state) = self.lock().processes.get_mut(name) {
            *state = if failing {
                State::BackingOff { retry_ms: 1000 }
            } else {
                State::Running {
                    pid: 1,
                    uptime_ms: 60_000,
                }
            };
        }
    }

    /// Whether it was powered off.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.lock().off
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Platform for Memory {
    fn processes(&self) -> io::Result<Vec<ProcessStatus>> {
        let show = |(name, state): (&String, &State)| ProcessStatus {
            name: name.clone(),
            state: state.clone(),
            failures: 0,
            restarts: 0,
            last_exit: None,
            changed: false,
        };
        Ok(self.lock().processes.iter().map(show).collect())
    }

    fn start(&self, spec: &ProcessSpec) -> io::Result<()> {
        let mut world = self.lock();
        let state = world.processes.entry(spec.name.clone()).or_insert(State::Stopped);
        if *state == State::Stopped {
            *state = State::Running {
                pid: 1,
                uptime_ms: 60_000,
            };
        }
        Ok(())
    }

    fn stop(&self, name: &str, _: Duration) -> io::Result<()> {
        if let Some(state) = self.lock().processes.get_mut(name) {
            *state = State::Stopped;
        }
        Ok(())
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        self.lock().processes.remove(name);
        Ok(())
    }

    fn watch(&self, _: Option<u64>, _: &mut dyn FnMut(Event) -> bool) -> io::Result<()> {
        Ok(())
    }

    fn usage(&self, _: i32) -> Usage {
        Usage::default()
    }

    fn vitals(&self, _: &Utf8Path, _: &Utf8Path) -> Vitals {
        Vitals::default()
    }

    fn has_device(&self, _: &str) -> bool {
        true
    }

    fn content(&self, device: &str) -> io::Result<Content> {
        let formatted = self.lock().formatted.contains(device);
        Ok(if formatted {
            Content::FileSystem
        } else {
            Content::Blank
        })
    }

    fn format(&self, device: &str) -> io::Result<()> {
        self.lock().formatted.insert(device.to_owned());
        Ok(())
    }

    fn runs_scripts(&self) -> bool {
        self.lock().runs_scripts
    }

    fn mount(&self, device: &str, target: &Utf8Path) -> io::Result<()> {
        self.lock().mounts.insert(target.to_owned(), device.to_owned());
        Ok(())
    }

    fn unmount(&self, target: &Utf8Path) -> io::Result<()> {
        self.lock().mounts.remove(target);
        Ok(())
    }

    fn mounted(&self, target: &Utf8Path) -> io::Result<Option<String>> {
        Ok(self.lock().mounts.get(target).cloned())
    }

    fn copy_tree(&self, _: &Utf8Path, _: &Utf8Path) -> io::Result<()> {
        Ok(())
    }

    fn give_to_jobs(&self, _: &Utf8Path) -> io::Result<()> {
        Ok(())
    }

    fn forget_neighbour(&self, _: &str) {}

    fn power_off(&self) -> io::Result<()> {
        self.lock().off = true;
        Ok(())
    }
}
