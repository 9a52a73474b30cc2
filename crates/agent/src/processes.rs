//! What jobs say about their processes, and what becomes of it at init.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stolos_base::files;
use stolos_init::wire::{ProcessSpec, ProcessStatus, State, Stop};
use stolos_mbus::state::{JobState, Problem, Process as Shown, ProcessCpu, ProcessMemory, Uptime};

use crate::apply::component;
use crate::error::{Error, Result};
use crate::paths::Paths;
use crate::platform::Platform;
use crate::problems;

/// A process that failed and lives for less has not shown that it stays up.
const STEADY_MS: u64 = 1_000;

/// `config/processes.yml` of a job (ARCHITECTURE.md, Jobs): processes by their short names.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    processes: Vec<ProcessSpec>,
}

/// What the director wants of the processes. It survives the machine's end: after a boot the same is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wanted {
    /// Nothing was asked yet.
    #[default]
    Nothing,
    /// `start` was called last.
    Running,
    /// `stop` was called last.
    Stopped,
}

impl Wanted {
    pub(crate) fn read(paths: &Paths) -> Result<Self> {
        let path = paths.wanted();
        Ok(files::read_json(&path)
            .map_err(Error::file("read", path))?
            .unwrap_or_default())
    }

    fn write(self, paths: &Paths) -> Result<()> {
        let path = paths.wanted();
        files::write_json(&path, &self, 0o600).map_err(Error::file("write", path))
    }
}

/// The processes of all jobs under their full names, in the order in which the jobs name them.
pub(crate) fn declared(paths: &Paths, jobs: &[String]) -> Result<Vec<ProcessSpec>> {
    let mut all = Vec::new();
    let mut names = BTreeSet::new();
    for job in jobs {
        let path = paths.jobs().join(component(job)?).join("config/processes.yml");
        let text = match fs_err::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::file("read", path)(error)),
        };
        let invalid = |problem: String| Error::Processes {
            path: path.clone(),
            problem,
        };
        let file: File = stolos_document::from_yaml(&text).map_err(|error| invalid(error.to_string()))?;
        for mut process in file.processes {
            let full = format!("{job}/{}", process.name);
            if !stolos_init::wire::is_process_name(&full) {
                return Err(invalid(format!("`{}` is not a process name", process.name)));
            }
            if process.argv.is_empty() {
                return Err(invalid(format!("process `{}` has no argv", process.name)));
            }
            if !names.insert(full.clone()) {
                return Err(invalid(format!("process `{}` is there twice", process.name)));
            }
            process.name = full;
            all.push(process);
        }
    }
    Ok(all)
}

/// Starts all processes of the jobs, in the jobs' order, and forgets those of jobs that are gone.
pub(crate) fn start(paths: &Paths, platform: &dyn Platform, jobs: &[String]) -> Result<()> {
    let wanted = declared(paths, jobs)?;
    // First, so that a boot in the middle of this ends it.
    Wanted::Running.write(paths)?;
    let names: BTreeSet<&String> = wanted.iter().map(|spec| &spec.name).collect();
    let mut stale = list(platform)?;
    stale.retain(|process| !names.contains(&process.name));
    stop_all(platform, &stale, |_| Stop::default().timeout_s)?;
    for process in &stale {
        let failed = failed(format!("forget `{}`", process.name));
        platform.forget(&process.name).map_err(failed)?;
    }
    for spec in &wanted {
        platform
            .start(spec)
            .map_err(failed(format!("start `{}`", spec.name)))?;
    }
    Ok(())
}

/// Stops all processes, all at once but for those that come after others ([`Stop::after`]).
pub(crate) fn stop(paths: &Paths, platform: &dyn Platform, jobs: &[String]) -> Result<()> {
    Wanted::Stopped.write(paths)?;
    // A job that cannot be read any more still has processes to stop.
    let specs = declared(paths, jobs).unwrap_or_default();
    let how = |name: &str| specs.iter().find(|spec| spec.name == name).map(|spec| &spec.stop);
    let patience = |name: &str| how(name).map_or(Stop::default().timeout_s, |stop| stop.timeout_s);
    let mut left = list(platform)?;
    left.retain(|process| process.state != State::Stopped);
    let mut result = Ok(());
    while !left.is_empty() {
        let waits = |process: &ProcessStatus| {
            let is_left = |name: &String| {
                left.iter()
                    .any(|other| other.name == *name && other.name != process.name)
            };
            how(&process.name).is_some_and(|stop| stop.after.iter().any(is_left))
        };
        let (mut later, mut now): (Vec<_>, Vec<_>) = left.iter().cloned().partition(waits);
        if now.is_empty() {
            // They wait for each other.
            now = std::mem::take(&mut later);
        }
        // The others are stopped all the same; the first failure is told.
        result = result.and(stop_all(platform, &now, patience));
        left = later;
    }
    result
}

fn stop_all(
    platform: &dyn Platform,
    processes: &[ProcessStatus],
    patience: impl Fn(&str) -> u64,
) -> Result<()> {
    std::thread::scope(|scope| {
        let stops: Vec<_> = processes
            .iter()
            .filter(|process| process.state != State::Stopped)
            .map(|process| {
                let limit = Duration::from_secs(patience(&process.name));
                (
                    &process.name,
                    scope.spawn(move || platform.stop(&process.name, limit)),
                )
            })
            .collect();
        // All are waited for before the first failure is told.
        let results: Vec<_> = stops
            .into_iter()
            .map(|(name, stop)| (name, stop.join()))
            .collect();
        for (name, result) in results {
            let result = result.unwrap_or_else(|_| Err(std::io::Error::other("the call panicked")));
            result.map_err(failed(format!("stop `{name}`")))?;
        }
        Ok(())
    })
}

fn list(platform: &dyn Platform) -> Result<Vec<ProcessStatus>> {
    platform.processes().map_err(failed("list processes".to_owned()))
}

fn failed(what: String) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Platform { what, source }
}

/// The sum over all processes, and each of them.
pub(crate) fn state(paths: &Paths, platform: &dyn Platform, jobs: &[String]) -> (JobState, Vec<Shown>) {
    let asked = list(platform).and_then(|processes| Ok((processes, Wanted::read(paths)?)));
    let (processes, wanted) = match asked {
        Ok(asked) => asked,
        Err(error) => {
            tracing::warn!(error = %stolos_base::chain(&error), "the state of the jobs is not known");
            return (JobState::Unknown, Vec::new());
        }
    };
    let sum = match wanted {
        Wanted::Stopped => JobState::Stopped,
        // As BOSH's agent says of a machine without jobs.
        Wanted::Nothing if jobs.is_empty() => JobState::Running,
        Wanted::Nothing => JobState::Stopped,
        Wanted::Running => sum(paths, jobs, &processes),
    };
    let shown = processes.iter().map(|process| show(process, platform)).collect();
    (sum, shown)
}

/// What is not well while the jobs should run.
pub(crate) fn problems(paths: &Paths, platform: &dyn Platform, jobs: &[String]) -> Vec<Problem> {
    match list(platform).and_then(|processes| Ok((processes, Wanted::read(paths)?))) {
        Ok((processes, Wanted::Running)) => problems::found(paths, &processes, jobs),
        // Why they cannot be listed is told with the state.
        _ => Vec::new(),
    }
}

fn sum(paths: &Paths, jobs: &[String], processes: &[ProcessStatus]) -> JobState {
    let failing = |process: &ProcessStatus| match process.state {
        State::Running { uptime_ms, .. } => process.failures > 0 && uptime_ms < STEADY_MS,
        State::BackingOff { .. } | State::Stopping { .. } | State::Stopped => true,
    };
    if processes.iter().any(failing) {
        return JobState::Failing;
    }
    match declared(paths, jobs) {
        Err(error) => {
            tracing::warn!(error = %stolos_base::chain(&error), "the jobs cannot be read");
            JobState::Failing
        }
        // After a boot init knows nothing until the jobs have been started again.
        Ok(specs)
            if specs
                .iter()
                .any(|spec| processes.iter().all(|one| one.name != spec.name)) =>
        {
            JobState::Starting
        }
        Ok(_) => JobState::Running,
    }
}

fn show(process: &ProcessStatus, platform: &dyn Platform) -> Shown {
    let (state, uptime, usage) = match process.state {
        State::Running { pid, uptime_ms } if process.failures > 0 && uptime_ms < STEADY_MS => {
            (JobState::Failing, uptime_ms / 1000, platform.usage(pid))
        }
        State::Running { pid, uptime_ms } => (JobState::Running, uptime_ms / 1000, platform.usage(pid)),
        State::BackingOff { .. } => (JobState::Failing, 0, Default::default()),
        State::Stopping { .. } | State::Stopped => (JobState::Stopped, 0, Default::default()),
    };
    Shown {
        name: process.name.clone(),
        state: state.as_str().to_owned(),
        uptime: Uptime { secs: uptime },
        mem: ProcessMemory {
            kb: usage.memory_kb,
            percent: usage.memory_percent,
        },
        cpu: ProcessCpu {
            total: usage.cpu_percent,
        },
    }
}
