//! The loop: signals, timers, the control socket.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;

use crate::cgroup::Hierarchies;
use crate::config::Config;
use crate::control::{Control, Ending};
use crate::logs::{Cap, Logs};
use crate::supervisor::Supervisor;
use crate::system::{self, Received};
use crate::{boot, power};

/// Exit code of a machine that was powered off.
pub const POWERED_OFF: u8 = 0;
/// Exit code of a machine that is to be started again.
pub const REBOOT: u8 = 3;

/// How to start.
#[derive(Clone, Debug)]
pub struct Start {
    /// Where the control socket is made.
    pub socket: PathBuf,
    /// The configuration.
    pub config: Config,
    /// Whether we are in a machine of our own and may mount, make directories and unmount.
    pub machine: bool,
}

/// Runs until the machine ends; gives the exit code.
///
/// # Errors
/// When the control socket or the signals cannot be set up: then nothing has been started.
pub fn run(start: Start) -> io::Result<u8> {
    let began = Instant::now();
    if rustix::process::getpid() != Pid::INIT {
        // Orphans of our processes come to us as they would to PID 1.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // Before the first thread, which inherits what is blocked.
    let signals = system::signals()?;
    let config = &start.config;
    let mut warnings = Vec::new();
    if start.machine {
        boot::prepare(|text| warnings.push(text.to_owned()));
    }
    let cap = Cap {
        bytes: config.log_max_bytes.max(1),
        files: config.log_files.max(1),
    };
    let logs = Logs::start(config.own_log_dir.join("init.log"), cap)?;
    let hierarchies = match &config.cgroup {
        None => Hierarchies::default(),
        Some(root) => {
            Hierarchies::set_up(root, |text| warnings.push(text.to_owned())).unwrap_or_else(|error| {
                warnings.push(format!("control groups are not used: {error}"));
                Hierarchies::default()
            })
        }
    };
    let control = Control::listen(&start.socket, began)?;
    logs.line(&format!("stolos-init {} is up", env!("CARGO_PKG_VERSION")));
    for warning in &warnings {
        logs.line(warning);
    }
    let mut supervisor = Supervisor::new(config, hierarchies, logs);
    if let Some(agent) = &config.agent {
        supervisor.start_agent(agent.argv.clone(), agent.env.clone());
    }
    let patience = Duration::from_secs(config.power_off_timeout_s);
    let ending = supervise(&signals, control, &mut supervisor, patience);
    power::end_all();
    supervisor.logs().flush();
    if start.machine {
        power::unmount_below(&config.unmount, |text| supervisor.logs().line(text));
    }
    supervisor.logs().line(match ending {
        Ending::PowerOff => "powering off",
        Ending::Reboot => "rebooting",
    });
    supervisor.logs().flush();
    rustix::fs::sync();
    let _ = std::fs::remove_file(&start.socket);
    Ok(match ending {
        Ending::PowerOff => POWERED_OFF,
        Ending::Reboot => REBOOT,
    })
}

/// Supervises until an end was asked for and all processes have ended.
fn supervise(
    signals: &std::os::fd::OwnedFd,
    mut control: Control,
    supervisor: &mut Supervisor,
    patience: Duration,
) -> Ending {
    let mut ending = None;
    loop {
        let mut asked = None;
        let ready = wait(signals, &control, supervisor.next_deadline());
        // Also without a signal: one that came while it was blocked elsewhere is never missed this way.
        let now = Instant::now();
        let mut ends = 0;
        for received in system::received(signals) {
            if received == Received::End {
                ends += 1;
            }
        }
        while let Some((pid, exit)) = system::reap() {
            supervisor.reaped(pid, exit, now);
        }
        supervisor.tick(Instant::now());
        for (number, flags) in ready {
            match number {
                None => control.accept(),
                Some(number) => asked = control.serve(number, flags, supervisor).or(asked),
            }
        }
        asked = control.pass_on(supervisor).or(asked);
        if ends > 0 {
            asked = asked.or(Some(Ending::PowerOff));
        }
        if let Some(asked) = asked {
            // Who asks a second time by signal has no patience left.
            let again = ending.is_some() && ends > 0;
            let ending = *ending.get_or_insert(asked);
            supervisor
                .logs()
                .line(&format!("stopping everything ({ending:?})"));
            supervisor.end(Instant::now(), if again { Duration::ZERO } else { patience });
        }
        if let Some(ending) = ending
            && supervisor.is_quiet()
        {
            return ending;
        }
    }
}

/// Waits for a signal, the socket, or the deadline. Gives what is ready of the socket.
fn wait(
    signals: &std::os::fd::OwnedFd,
    control: &Control,
    deadline: Option<Instant>,
) -> Vec<(Option<u64>, PollFlags)> {
    let interests = control.interests();
    let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
    fds.extend(
        interests
            .iter()
            .map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)),
    );
    let timeout = deadline.map(|at| {
        let left = at.saturating_duration_since(Instant::now());
        Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        }
    });
    if poll(&mut fds, timeout.as_ref()).is_err() {
        return Vec::new();
    }
    interests
        .iter()
        .zip(&fds[1..])
        .filter(|(_, fd)| !fd.revents().is_empty())
        .map(|((number, ..), fd)| (*number, fd.revents()))
        .collect()
}
