//! The loop: signals, the control socket, timers.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Deserialize;
use stolos_init::wire::{Event, Reply, Request, Restart, Spec, Stop};

use crate::supervisor::Supervisor;
use crate::{Options, boot, log, sys};

/// Log files are looked at this often; they cannot grow past their cap by more than that.
const ROTATION: Duration = Duration::from_secs(30);
/// A line that is longer is no request.
const LONGEST_LINE: usize = 1024 * 1024;
/// A peer that does not read its answers is dropped once so much waits for it.
const LONGEST_BACKLOG: usize = 4 * 1024 * 1024;
/// The longest that a power-off waits for processes beyond their own time-outs.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(90);
const CONFIG: &str = "/etc/stolos/init.json";
/// The agent, which is a process like the others but started by init itself.
const AGENT: &str = "agent";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Program and arguments of the agent; a foreign agent can be put here. Empty for none.
    agent: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self { agent: vec!["/var/vcap/bosh/bin/stolos-agent".to_owned()] }
    }
}

struct Peer {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    subscribed: bool,
    /// The process whose stop it waits for; its next requests wait too.
    waits_for: Option<String>,
    gone: bool,
}

/// Runs until the machine is powered off.
pub(crate) fn run(options: &Options) -> io::Result<()> {
    let signals = sys::signal_descriptor()?;
    let in_machine = !options.no_boot;
    if in_machine {
        boot::boot();
    }
    if std::process::id() != 1 {
        sys::become_subreaper()?;
    }
    let listener = listen(options.socket.as_deref().unwrap_or(stolos_init::SOCKET))?;
    let mut supervisor = Supervisor::new(in_machine);
    start_agent(options, &mut supervisor);
    let mut peers: BTreeMap<u64, Peer> = BTreeMap::new();
    let mut next_peer = 0;
    let mut rotation = Instant::now() + ROTATION;
    let mut power_off: Option<Instant> = None;
    loop {
        let due = supervisor.tick();
        if let Some(limit) = power_off
            && (supervisor.all_stopped() || Instant::now() >= limit)
        {
            break;
        }
        if rotation <= Instant::now() {
            supervisor.rotate_logs();
            rotation = Instant::now() + ROTATION;
        }
        answer_waiting(&supervisor, &mut peers);
        let wake = [due, Some(rotation), power_off].into_iter().flatten().min().unwrap_or(rotation);
        let ready = wait(&signals.as_fd(), &listener, &peers, wake)?;
        if ready.signals {
            while let Some(signal) = sys::read_signal(&signals) {
                if signal != libc::SIGCHLD && signal != libc::SIGHUP {
                    begin_power_off(&mut supervisor, &mut power_off);
                }
            }
            while let Some((pid, exit)) = sys::reap() {
                if let Some(event) = supervisor.exited(pid, exit) {
                    tell(&mut peers, &event);
                }
            }
        }
        if ready.listener {
            accept(&listener, &mut peers, &mut next_peer);
        }
        for id in ready.peers {
            if let Some(peer) = peers.get_mut(&id) {
                serve(peer, &mut supervisor, &mut power_off);
            }
        }
        peers.retain(|_, peer| !peer.gone);
    }
    finish(options);
    Ok(())
}

fn start_agent(options: &Options, supervisor: &mut Supervisor) {
    let path = options.config.as_deref().unwrap_or(CONFIG);
    let config = match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            log(&format!("`{path}` is not valid, the usual agent is started: {error}"));
            Config::default()
        }),
        Err(_) => Config::default(),
    };
    if config.agent.is_empty() || (options.no_boot && options.config.is_none()) {
        return;
    }
    let log_directory = "/var/vcap/bosh/log";
    let spec = Spec {
        argv: config.agent,
        env: BTreeMap::new(),
        cwd: "/".to_owned(),
        user: "root".to_owned(),
        limits: Default::default(),
        oom_score_adj: None,
        restart: Restart { min_ms: 100, max_ms: 5_000 },
        stop: Stop::default(),
        stdout: format!("{log_directory}/agent.stdout.log"),
        stderr: format!("{log_directory}/agent.stderr.log"),
    };
    if let Err(problem) = supervisor.define(AGENT, spec).and_then(|()| supervisor.start(AGENT)) {
        log(&format!("failed to start the agent: {problem}"));
    }
}

fn listen(path: &str) -> io::Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    if let Some(parent) = Path::new(path).parent() {
        std::fs::create_dir_all(parent)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

struct Ready {
    signals: bool,
    listener: bool,
    peers: Vec<u64>,
}

fn wait(signals: &BorrowedFd<'_>, listener: &UnixListener, peers: &BTreeMap<u64, Peer>, wake: Instant) -> io::Result<Ready> {
    let mut fds = vec![PollFd::new(signals, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
    for peer in peers.values() {
        let mut flags = PollFlags::empty();
        if peer.waits_for.is_none() {
            flags |= PollFlags::IN;
        }
        if !peer.output.is_empty() {
            flags |= PollFlags::OUT;
        }
        fds.push(PollFd::new(&peer.stream, flags));
    }
    let left = wake.saturating_duration_since(Instant::now());
    let timeout = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(60),
        tv_nsec: left.subsec_nanos().into(),
    };
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
    Ok(Ready {
        signals: is_ready(&fds[0]),
        listener: is_ready(&fds[1]),
        peers: peers.keys().zip(&fds[2..]).filter(|(_, fd)| is_ready(fd)).map(|(id, _)| *id).collect(),
    })
}

fn accept(listener: &UnixListener, peers: &mut BTreeMap<u64, Peer>, next: &mut u64) {
    while let Ok((stream, _)) = listener.accept() {
        if stream.set_nonblocking(true).is_ok() {
            let peer =
                Peer { stream, input: Vec::new(), output: Vec::new(), subscribed: false, waits_for: None, gone: false };
            peers.insert(*next, peer);
            *next += 1;
        }
    }
}

fn serve(peer: &mut Peer, supervisor: &mut Supervisor, power_off: &mut Option<Instant>) {
    if peer.waits_for.is_none() {
        let mut buffer = [0; 16 * 1024];
        loop {
            match peer.stream.read(&mut buffer) {
                Ok(0) => {
                    peer.gone = true;
                    break;
                }
                Ok(n) => peer.input.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    peer.gone = true;
                    break;
                }
            }
        }
    }
    handle_lines(peer, supervisor, power_off);
    flush(peer);
}

fn handle_lines(peer: &mut Peer, supervisor: &mut Supervisor, power_off: &mut Option<Instant>) {
    while peer.waits_for.is_none() {
        let Some(end) = peer.input.iter().position(|byte| *byte == b'\n') else {
            peer.gone |= peer.input.len() > LONGEST_LINE;
            return;
        };
        let line: Vec<u8> = peer.input.drain(..=end).collect();
        let reply = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => handle(request, peer, supervisor, power_off),
            Err(error) => Some(Reply::Error(format!("this is no request: {error}"))),
        };
        if let Some(reply) = reply {
            send(peer, &reply);
        }
    }
}

/// The answer, or none when it comes later.
fn handle(request: Request, peer: &mut Peer, supervisor: &mut Supervisor, power_off: &mut Option<Instant>) -> Option<Reply> {
    let done = |result: Result<(), String>| Some(result.map_or_else(Reply::Error, |()| Reply::Ok));
    match request {
        Request::Define { name, .. } if name == AGENT => done(Err("the agent is init's own".to_owned())),
        Request::Define { name, spec } => done(supervisor.define(&name, spec)),
        Request::Start { name } => {
            if power_off.is_some() {
                return done(Err("the machine is powering off".to_owned()));
            }
            done(supervisor.start(&name))
        }
        Request::Stop { name } => match supervisor.stop(&name) {
            Ok(true) => Some(Reply::Ok),
            Ok(false) => {
                peer.waits_for = Some(name);
                None
            }
            Err(problem) => Some(Reply::Error(problem)),
        },
        Request::Remove { name } => done(supervisor.remove(&name)),
        Request::List => Some(Reply::Processes(supervisor.list())),
        Request::Subscribe => {
            peer.subscribed = true;
            Some(Reply::Ok)
        }
        Request::PowerOff => {
            begin_power_off(supervisor, power_off);
            Some(Reply::Ok)
        }
    }
}

fn answer_waiting(supervisor: &Supervisor, peers: &mut BTreeMap<u64, Peer>) {
    for peer in peers.values_mut() {
        if peer.waits_for.as_ref().is_some_and(|name| supervisor.is_stopped(name)) {
            peer.waits_for = None;
            send(peer, &Reply::Ok);
            flush(peer);
        }
    }
}

fn tell(peers: &mut BTreeMap<u64, Peer>, event: &Event) {
    for peer in peers.values_mut().filter(|peer| peer.subscribed) {
        send(peer, event);
        flush(peer);
    }
}

fn send<T: serde::Serialize>(peer: &mut Peer, value: &T) {
    match serde_json::to_vec(value) {
        Ok(mut line) => {
            line.push(b'\n');
            peer.output.append(&mut line);
            peer.gone |= peer.output.len() > LONGEST_BACKLOG;
        }
        Err(error) => log(&format!("failed to write an answer: {error}")),
    }
}

fn flush(peer: &mut Peer) {
    while !peer.output.is_empty() {
        match peer.stream.write(&peer.output) {
            Ok(0) => {
                peer.gone = true;
                return;
            }
            Ok(n) => drop(peer.output.drain(..n)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => {
                peer.gone = true;
                return;
            }
        }
    }
}

fn begin_power_off(supervisor: &mut Supervisor, power_off: &mut Option<Instant>) {
    if power_off.is_none() {
        log("powering off");
        *power_off = Some(Instant::now() + POWER_OFF_LIMIT);
        supervisor.stop_all();
    }
}

/// The last things, in a machine: nobody runs, nothing is half written.
fn finish(options: &Options) {
    if options.no_boot {
        return;
    }
    sys::kill_everybody(libc::SIGKILL);
    while sys::reap().is_some() {}
    rustix::fs::sync();
    for mount in ["/var/vcap/store"] {
        let _ = rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH);
    }
}
