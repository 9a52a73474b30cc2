//! What jobs say about their processes, and what becomes of it at init.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use stolos_init::wire::{ProcessSpec, ProcessStatus, State, Stop};
use stolos_mbus::state::{JobState, Process as Shown, ProcessCpu, ProcessMemory, Uptime};

use crate::apply::component;
use crate::error::{Error, Result};
use crate::paths::Paths;
use crate::platform::Platform;

/// A process that failed and lives for less has not shown that it stays up.
const STEADY_MS: u64 = 1_000;

/// `config/processes.yml` of a job (ARCHITECTURE.md, Jobs): processes by their short names.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    processes: Vec<ProcessSpec>,
}

/// The processes of all jobs by their full names.
pub(crate) fn declared(paths: &Paths, jobs: &[String]) -> Result<BTreeMap<String, ProcessSpec>> {
    let mut all = BTreeMap::new();
    for job in jobs {
        let path = paths.jobs().join(component(job)?).join("config/processes.yml");
        let text = match fs_err::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::file("read", path)(error)),
        };
        let invalid = |problem: String| Error::Processes { path: path.clone(), problem };
        let file: File = serde_saphyr::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        for mut process in file.processes {
            component(&process.name).map_err(|error| invalid(error.to_string()))?;
            process.name = format!("{job}/{}", process.name);
            if let Some(twice) = all.insert(process.name.clone(), process) {
                return Err(invalid(format!("process `{}` is there twice", twice.name)));
            }
        }
    }
    Ok(all)
}

/// Starts all processes of the jobs and forgets those of jobs that are gone.
pub(crate) fn start(paths: &Paths, platform: &dyn Platform, jobs: &[String]) -> Result<()> {
    let wanted = declared(paths, jobs)?;
    let failed = |what: String| move |source| Error::Platform { what, source };
    let names: BTreeSet<&String> = wanted.keys().collect();
    for process in platform.processes().map_err(failed("list processes".to_owned()))? {
        if !names.contains(&process.name) {
            platform.stop(&process.name, Duration::from_secs(60)).map_err(failed(format!("stop `{}`", process.name)))?;
            platform.forget(&process.name).map_err(failed(format!("forget `{}`", process.name)))?;
        }
    }
    for (name, spec) in &wanted {
        platform.start(spec).map_err(failed(format!("start `{name}`")))?;
    }
    let mark = paths.stopped();
    stolos_base::files::remove_if_there(&mark).map_err(Error::file("remove", mark))
}

/// Stops all processes, all at once.
pub(crate) fn stop(paths: &Paths, platform: &dyn Platform, jobs: &[String]) -> Result<()> {
    let mark = paths.stopped();
    stolos_base::files::write_atomic(&mark, b"", 0o600).map_err(Error::file("write", mark))?;
    // A job that cannot be read any more still has processes to stop.
    let specs = declared(paths, jobs).unwrap_or_default();
    let failed = |what: String| move |source| Error::Platform { what, source };
    let running = platform.processes().map_err(failed("list processes".to_owned()))?;
    std::thread::scope(|scope| {
        let stops: Vec<_> = running
            .iter()
            .filter(|process| process.state != State::Stopped)
            .map(|process| {
                let limit = specs.get(&process.name).map_or(Stop::default().timeout_s, |spec| spec.stop.timeout_s);
                (&process.name, scope.spawn(move || platform.stop(&process.name, Duration::from_secs(limit))))
            })
            .collect();
        for (name, stopped) in stops {
            let result = stopped.join().unwrap_or_else(|_| Err(std::io::Error::other("the call panicked")));
            result.map_err(failed(format!("stop `{name}`")))?;
        }
        Ok(())
    })
}

/// The sum over all processes, and each of them.
pub(crate) fn state(paths: &Paths, platform: &dyn Platform) -> (JobState, Vec<Shown>) {
    let processes = match platform.processes() {
        Ok(processes) => processes,
        Err(error) => {
            tracing::warn!(%error, "init does not answer");
            return (JobState::Unknown, Vec::new());
        }
    };
    let shown = processes.iter().map(|process| show(process, platform)).collect();
    if paths.stopped().exists() {
        return (JobState::Stopped, shown);
    }
    let failing = |process: &ProcessStatus| match process.state {
        State::Running { uptime_ms, .. } => process.failures > 0 && uptime_ms < STEADY_MS,
        State::BackingOff { .. } | State::Stopping { .. } | State::Stopped => true,
    };
    let sum = if processes.iter().any(failing) { JobState::Failing } else { JobState::Running };
    (sum, shown)
}

fn show(process: &ProcessStatus, platform: &dyn Platform) -> Shown {
    let (state, uptime, usage) = match process.state {
        State::Running { pid, uptime_ms } => ("running", uptime_ms / 1000, platform.usage(pid)),
        State::BackingOff { .. } => ("failing", 0, Default::default()),
        State::Stopping { .. } | State::Stopped => ("stopped", 0, Default::default()),
    };
    Shown {
        name: process.name.clone(),
        state: state.to_owned(),
        uptime: Uptime { secs: uptime },
        mem: ProcessMemory { kb: usage.memory_kb, percent: usage.memory_percent },
        cpu: ProcessCpu { total: usage.cpu_percent },
    }
}
