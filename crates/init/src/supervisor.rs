//! The processes: what each should do, what it does, and what follows when it ends.
//!
//! A state machine without waiting: the loop calls [`Supervisor::reaped`] for each child that ended and
//! [`Supervisor::tick`] at the times that [`Supervisor::next_deadline`] names.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};

use crate::cgroup::{Group, Hierarchies};
use crate::config::Config;
use crate::logs::Logs;
use crate::spawn::{Program, spawn};
use crate::system;
use crate::wire::{
    Event, Exit, FAILURES_VARIABLE, KillMode, LAST_EXIT_VARIABLE, LONG_LIFE, Limits, ProcessSpec,
    ProcessStatus, Restart, State, Stop, What, is_process_name,
};

/// The agent's name: no job process can have it, for it has no slash.
const AGENT: &str = "agent";
/// How many events are kept for clients that come back.
const EVENTS_KEPT: usize = 512;
/// How often it is looked whether what a stopped process left behind is gone: nobody tells us about those that are not
/// our children.
const LOOK: Duration = Duration::from_millis(20);
/// SIGKILL is sent again after this time: what was forked meanwhile may have missed it.
const KILL_AGAIN: Duration = Duration::from_millis(200);
/// After so long without effect of SIGKILL, those who wait are told.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// All processes.
pub(crate) struct Supervisor {
    hierarchies: Hierarchies,
    logs: Logs,
    log_dir: PathBuf,
    own_log_dir: PathBuf,
    processes: BTreeMap<String, Process>,
    events: VecDeque<Event>,
    last_event: u64,
    /// Names whose stop has come to an end, for those who wait for it.
    finished: Vec<(String, Result<(), String>)>,
    /// Once set, nothing is started any more.
    ending: Option<End>,
}

/// Everything is being stopped.
#[derive(Clone, Copy, Debug)]
struct End {
    /// Until then those that come after others wait for them.
    turns_until: Instant,
    /// When patience ends.
    deadline: Instant,
}

struct Process {
    spec: ProcessSpec,
    wanted: Wanted,
    phase: Phase,
    failures: u32,
    restarts: u64,
    last_exit: Option<Exit>,
    changed: bool,
    group: Group,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Up,
    Down,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Down,
    Up { pid: Pid, since: Instant },
    BackingOff { until: Instant },
    Stopping(Stopping),
}

#[derive(Clone, Copy, Debug)]
struct Stopping {
    /// The process itself, until it is reaped.
    main: Option<Pid>,
    /// Its process group, which may outlive it.
    pgid: Pid,
    /// When patience ends.
    deadline: Instant,
    /// When to look next whether what it left behind is gone, once it is gone itself.
    look: Instant,
    /// When SIGKILL was sent first and last.
    killed: Option<(Instant, Instant)>,
    /// Whether those who wait were told that SIGKILL does not work.
    told: bool,
}

impl Supervisor {
    pub(crate) fn new(config: &Config, hierarchies: Hierarchies, logs: Logs) -> Self {
        Self {
            hierarchies,
            logs,
            log_dir: config.log_dir.clone(),
            own_log_dir: config.own_log_dir.clone(),
            processes: BTreeMap::new(),
            events: VecDeque::new(),
            last_event: 0,
            finished: Vec::new(),
            ending: None,
        }
    }

    pub(crate) fn logs(&self) -> &Logs {
        &self.logs
    }

    /// Starts the agent and keeps it running.
    pub(crate) fn start_agent(&mut self, argv: Vec<String>, env: BTreeMap<String, String>) {
        let spec = ProcessSpec {
            name: AGENT.to_owned(),
            argv,
            env,
            cwd: "/".to_owned(),
            user: "root".to_owned(),
            limits: Limits::default(),
            oom_score_adj: None,
            restart: Restart::default(),
            stop: Stop::default(),
        };
        self.insert(spec);
        self.set_up(AGENT);
    }

    /// See [`crate::wire::Request::Define`].
    pub(crate) fn define(&mut self, spec: ProcessSpec) -> Result<(), String> {
        if !is_process_name(&spec.name) {
            return Err(format!("`{}` is not a process name (JOB/PROCESS)", spec.name));
        }
        if spec.argv.first().is_none_or(String::is_empty) {
            return Err(format!("process `{}` has no program", spec.name));
        }
        let texts = spec.argv.iter().chain(spec.env.keys()).chain(spec.env.values());
        if texts
            .chain([&spec.cwd, &spec.user])
            .any(|text| text.contains('\0'))
        {
            return Err(format!(
                "the definition of process `{}` has a NUL byte",
                spec.name
            ));
        }
        if spec.env.keys().any(|key| key.is_empty() || key.contains('=')) {
            return Err(format!("process `{}` has a variable that is no name", spec.name));
        }
        match self.processes.get_mut(&spec.name) {
            Some(process) => {
                if process.spec != spec {
                    process.changed = matches!(process.phase, Phase::Up { .. } | Phase::Stopping(_));
                    process.spec = spec;
                }
            }
            None => self.insert(spec),
        }
        Ok(())
    }

    fn insert(&mut self, spec: ProcessSpec) {
        let process = Process {
            wanted: Wanted::Down,
            phase: Phase::Down,
            failures: 0,
            restarts: 0,
            last_exit: None,
            changed: false,
            group: Group::default(),
            spec,
        };
        self.processes.insert(process.spec.name.clone(), process);
    }

    /// See [`crate::wire::Request::Start`].
    pub(crate) fn start(&mut self, name: &str) -> Result<(), String> {
        if self.ending.is_some() {
            return Err("the machine is being powered off".to_owned());
        }
        if name == AGENT || !self.processes.contains_key(name) {
            return Err(unknown(name));
        }
        self.set_up(name);
        Ok(())
    }

    fn set_up(&mut self, name: &str) {
        let Some(process) = self.processes.get_mut(name) else {
            return;
        };
        process.wanted = Wanted::Up;
        match process.phase {
            Phase::Down => {
                process.failures = 0;
                process.restarts = 0;
                self.launch(name);
            }
            // Somebody who asks does not want to wait for the pause.
            Phase::BackingOff { .. } => self.launch(name),
            // After the stop it is started again.
            Phase::Up { .. } | Phase::Stopping(_) => {}
        }
    }

    /// See [`crate::wire::Request::Stop`]. Whether it has ended already; if not, [`Supervisor::take_finished`] will tell.
    pub(crate) fn stop(&mut self, name: &str, now: Instant) -> Result<bool, String> {
        if name == AGENT || !self.processes.contains_key(name) {
            return Err(unknown(name));
        }
        Ok(self.bring_down(name, now, None))
    }

    /// Whether it is down already. `limit` cuts the process's own patience.
    fn bring_down(&mut self, name: &str, now: Instant, limit: Option<Duration>) -> bool {
        let Some(process) = self.processes.get_mut(name) else {
            return true;
        };
        process.wanted = Wanted::Down;
        match &mut process.phase {
            Phase::Down => true,
            Phase::BackingOff { .. } => {
                process.phase = Phase::Down;
                self.note(name, What::Stopped { exit: None });
                true
            }
            Phase::Stopping(stopping) => {
                if let Some(limit) = limit {
                    stopping.deadline = stopping.deadline.min(now + limit);
                }
                false
            }
            Phase::Up { pid, .. } => {
                let pid = *pid;
                let own = Duration::from_secs(process.spec.stop.timeout_s);
                send(
                    pid,
                    process.spec.stop.kill,
                    system::signal(process.spec.stop.signal),
                );
                process.phase = Phase::Stopping(Stopping {
                    main: Some(pid),
                    pgid: pid,
                    deadline: now + limit.map_or(own, |limit| own.min(limit)),
                    look: now,
                    killed: None,
                    told: false,
                });
                false
            }
        }
    }

    /// See [`crate::wire::Request::Remove`].
    pub(crate) fn remove(&mut self, name: &str) -> Result<(), String> {
        match self.processes.get(name) {
            None => Ok(()),
            Some(process) if name != AGENT && matches!(process.phase, Phase::Down) => {
                process.group.remove();
                self.processes.remove(name);
                Ok(())
            }
            Some(_) => Err(format!("process `{name}` is not stopped")),
        }
    }

    /// See [`crate::wire::Request::List`].
    pub(crate) fn list(&self, now: Instant) -> Vec<ProcessStatus> {
        self.processes
            .values()
            .filter(|process| process.spec.name != AGENT)
            .map(|process| ProcessStatus {
                name: process.spec.name.clone(),
                state: match process.phase {
                    Phase::Down => State::Stopped,
                    Phase::Up { pid, since } => State::Running {
                        pid: pid.as_raw_nonzero().get(),
                        uptime_ms: millis(now.saturating_duration_since(since)),
                    },
                    Phase::BackingOff { until } => State::BackingOff {
                        retry_ms: millis(until.saturating_duration_since(now)),
                    },
                    Phase::Stopping(stopping) => State::Stopping {
                        pid: stopping.main.map(|pid| pid.as_raw_nonzero().get()),
                    },
                },
                failures: match process.phase {
                    Phase::Up { since, .. } if now.saturating_duration_since(since) >= LONG_LIFE => 0,
                    _ => process.failures,
                },
                restarts: process.restarts,
                last_exit: process.last_exit.clone(),
                changed: process.changed,
            })
            .collect()
    }

    /// Number of the last event.
    pub(crate) fn last_event(&self) -> u64 {
        self.last_event
    }

    /// Those events that are kept and came after a number.
    pub(crate) fn events_after(&self, number: u64) -> impl Iterator<Item = &Event> {
        self.events.iter().filter(move |event| event.number > number)
    }

    /// Stops that have come to an end since the last call.
    pub(crate) fn take_finished(&mut self) -> Vec<(String, Result<(), String>)> {
        std::mem::take(&mut self.finished)
    }

    /// Begins to stop everything, the agent too, with at most `limit` of patience. Those that come after others wait for at most half of it.
    pub(crate) fn end(&mut self, now: Instant, limit: Duration) {
        self.ending = Some(End {
            turns_until: now + limit / 2,
            deadline: now + limit,
        });
        self.end_those_whose_turn_it_is(now);
    }

    fn end_those_whose_turn_it_is(&mut self, now: Instant) {
        let Some(end) = self.ending else { return };
        let left = end.deadline.saturating_duration_since(now);
        // Nothing is started any more.
        let waiting = |process: &Process| matches!(process.phase, Phase::BackingOff { .. });
        for name in self.names(waiting) {
            self.bring_down(&name, now, Some(left));
        }
        let is_down = |name: &String| {
            let process = self.processes.get(name);
            process.is_none_or(|process| matches!(process.phase, Phase::Down))
        };
        let turn = |process: &Process| {
            let mut before = process
                .spec
                .stop
                .after
                .iter()
                .filter(|name| **name != process.spec.name);
            now >= end.turns_until || before.all(is_down)
        };
        for name in self.names(turn) {
            self.bring_down(&name, now, Some(left));
        }
    }

    fn names(&self, which: impl Fn(&Process) -> bool) -> Vec<String> {
        let these = self.processes.iter().filter(|(_, process)| which(process));
        these.map(|(name, _)| name.clone()).collect()
    }

    /// Whether nothing runs any more.
    pub(crate) fn is_quiet(&self) -> bool {
        self.processes
            .values()
            .all(|process| matches!(process.phase, Phase::Down))
    }

    /// A child has ended.
    pub(crate) fn reaped(&mut self, pid: Pid, exit: Exit, now: Instant) {
        let name = self.processes.iter().find_map(|(name, process)| {
            let ours = match process.phase {
                Phase::Up { pid, .. } => Some(pid),
                Phase::Stopping(stopping) => stopping.main,
                Phase::Down | Phase::BackingOff { .. } => None,
            };
            (ours == Some(pid)).then(|| name.clone())
        });
        let Some(name) = name else {
            // An orphan that was given to us.
            return;
        };
        let Some(process) = self.processes.get_mut(&name) else {
            return;
        };
        process.last_exit = Some(exit.clone());
        match &mut process.phase {
            Phase::Stopping(stopping) => {
                stopping.main = None;
                self.settle(&name, now);
            }
            Phase::Up { since, .. } => {
                let life = now.saturating_duration_since(*since);
                if process.spec.stop.kill == KillMode::Group {
                    end_group(pid, &process.group);
                }
                self.failed(&name, exit, life, now);
            }
            Phase::Down | Phase::BackingOff { .. } => {}
        }
    }

    /// A process that should run does not: it is started again after a pause.
    fn failed(&mut self, name: &str, exit: Exit, life: Duration, now: Instant) {
        let Some(process) = self.processes.get_mut(name) else {
            return;
        };
        if life >= LONG_LIFE {
            process.failures = 0;
        }
        process.failures = process.failures.saturating_add(1);
        process.last_exit = Some(exit.clone());
        let pause = process.spec.restart.pause(process.failures);
        process.phase = Phase::BackingOff { until: now + pause };
        let failures = process.failures;
        self.logs.line(&format!(
            "{name} {exit} after {} ms; starting it again in {} ms",
            life.as_millis(),
            pause.as_millis()
        ));
        self.note(
            name,
            What::Failed {
                exit,
                uptime_ms: millis(life),
                failures,
                retry_ms: millis(pause),
            },
        );
    }

    /// Does what is due.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.end_those_whose_turn_it_is(now);
        let due: Vec<String> = self
            .processes
            .iter()
            .filter(|(_, process)| deadline(process).is_some_and(|at| at <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            match self.processes.get(&name).map(|process| process.phase) {
                Some(Phase::BackingOff { .. }) => {
                    if let Some(process) = self.processes.get_mut(&name) {
                        process.restarts += 1;
                    }
                    self.launch(&name);
                }
                Some(Phase::Stopping(_)) => {
                    self.settle(&name, now);
                    self.insist(&name, now);
                }
                _ => {}
            }
        }
        self.end_those_whose_turn_it_is(now);
    }

    /// When [`Supervisor::tick`] has to be called next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let is_up = |process: &Process| matches!(process.phase, Phase::Up { .. });
        let turns = self.ending.filter(|_| self.processes.values().any(is_up));
        let turns = turns.map(|end| end.turns_until);
        self.processes.values().filter_map(deadline).chain(turns).min()
    }

    /// Sees whether a process that is being stopped is gone, with all that was to go with it.
    fn settle(&mut self, name: &str, now: Instant) {
        let Some(process) = self.processes.get_mut(name) else {
            return;
        };
        let Phase::Stopping(stopping) = process.phase else {
            return;
        };
        let lingers = process.spec.stop.kill == KillMode::Group && group_lives(stopping.pgid, &process.group);
        if stopping.main.is_some() || lingers {
            if let Phase::Stopping(stopping) = &mut process.phase {
                stopping.look = now + LOOK;
            }
            return;
        }
        process.phase = Phase::Down;
        process.failures = 0;
        let exit = process.last_exit.clone();
        let again = process.wanted == Wanted::Up && self.ending.is_none();
        if !again {
            process.group.remove();
        }
        self.logs.line(&format!(
            "{name} was stopped{}",
            exit.as_ref()
                .map(|exit| format!(" and {exit}"))
                .unwrap_or_default()
        ));
        self.note(name, What::Stopped { exit });
        self.finished.push((name.to_owned(), Ok(())));
        if again {
            self.launch_at(name, now);
        }
    }

    /// Sends SIGKILL when patience is at its end.
    fn insist(&mut self, name: &str, now: Instant) {
        let Some(process) = self.processes.get_mut(name) else {
            return;
        };
        let Phase::Stopping(stopping) = &mut process.phase else {
            return;
        };
        if now < stopping.deadline {
            return;
        }
        let first = match stopping.killed {
            Some((first, last)) if now < last + KILL_AGAIN => {
                if now < first + KILL_LIMIT || stopping.told {
                    return;
                }
                first
            }
            Some((first, _)) => first,
            None => {
                self.logs
                    .line(&format!("{name} has not ended in time and is killed"));
                now
            }
        };
        stopping.killed = Some((first, now));
        match process.spec.stop.kill {
            KillMode::Process => {
                if let Some(pid) = stopping.main {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            KillMode::Group => {
                end_group(stopping.pgid, &process.group);
                // A process that left its group and has no control group is reached by its id alone.
                if let Some(pid) = stopping.main {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
        }
        if now >= first + KILL_LIMIT && !stopping.told {
            stopping.told = true;
            let message = format!(
                "process `{name}` is still there {} s after SIGKILL",
                KILL_LIMIT.as_secs()
            );
            self.logs.line(&message);
            self.finished.push((name.to_owned(), Err(message)));
        }
    }

    fn launch(&mut self, name: &str) {
        self.launch_at(name, Instant::now());
    }

    fn launch_at(&mut self, name: &str, now: Instant) {
        let Some(process) = self.processes.get_mut(name) else {
            return;
        };
        let started = self.hierarchies.group(name).and_then(|group| {
            process.group = group;
            let program = Program {
                history: history(process),
                ..Program::from(&process.spec)
            };
            spawn(&program, &process.group)
        });
        match started {
            Ok(started) => {
                process.phase = Phase::Up {
                    pid: started.pid,
                    since: now,
                };
                process.changed = false;
                let base = match name.split_once('/') {
                    Some((job, process)) => self.log_dir.join(job).join(process),
                    None => self.own_log_dir.join(name),
                };
                for (pipe, ending) in [(started.stdout, "stdout.log"), (started.stderr, "stderr.log")] {
                    let mut path = base.clone().into_os_string();
                    path.push(format!(".{ending}"));
                    self.logs.follow(pipe, path.into());
                }
                let pid = started.pid.as_raw_nonzero().get();
                self.logs.line(&format!("{name} was started as process {pid}"));
                self.note(name, What::Started { pid });
            }
            Err(error) => self.failed(name, Exit::NotStarted(error.to_string()), Duration::ZERO, now),
        }
    }

    fn note(&mut self, name: &str, what: What) {
        if name == AGENT {
            return;
        }
        self.last_event += 1;
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
        }
        self.events.push_back(Event {
            number: self.last_event,
            name: name.to_owned(),
            what,
        });
    }
}

/// What a process is told of the lives before this one, when they were short: a program that fails again and again may know a way out.
fn history(process: &Process) -> Vec<(&'static str, String)> {
    let mut told = Vec::new();
    if process.failures > 0 {
        told.push((FAILURES_VARIABLE, process.failures.to_string()));
        told.extend(
            process
                .last_exit
                .as_ref()
                .map(|exit| (LAST_EXIT_VARIABLE, exit.to_string())),
        );
    }
    told
}

fn deadline(process: &Process) -> Option<Instant> {
    match process.phase {
        Phase::Down | Phase::Up { .. } => None,
        Phase::BackingOff { until } => Some(until),
        Phase::Stopping(stopping) => Some(match (stopping.main, stopping.killed) {
            (_, Some(_)) => stopping.look,
            // What it left behind ends without a word to us.
            (None, None) => stopping.look.min(stopping.deadline),
            (Some(_), None) => stopping.deadline,
        }),
    }
}

fn send(pid: Pid, kill: KillMode, signal: Signal) {
    let _ = match kill {
        KillMode::Group => kill_process_group(pid, signal),
        KillMode::Process => kill_process(pid, signal),
    };
}

fn end_group(pgid: Pid, group: &Group) {
    let _ = kill_process_group(pgid, Signal::KILL);
    if group.exists() {
        group.kill();
    }
}

fn group_lives(pgid: Pid, group: &Group) -> bool {
    if group.exists() {
        return !group.members().is_empty();
    }
    !matches!(test_kill_process_group(pgid), Err(Errno::SRCH))
}

fn unknown(name: &str) -> String {
    format!("there is no process `{name}`")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
