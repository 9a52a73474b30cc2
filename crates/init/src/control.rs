//! The control socket: connections that never make us wait.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::fs::Mode;

use crate::supervisor::Supervisor;
use crate::wire::{LINE_LIMIT, Reply, Request};

/// More than an agent and a few curious people need.
const CONNECTIONS: usize = 128;
/// What a client may leave unread: a long list and many events.
const UNREAD_LIMIT: usize = 16 * LINE_LIMIT;

/// The end of the machine, asked for over the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    PowerOff,
    Reboot,
}

/// The socket and its connections.
pub(crate) struct Control {
    listener: UnixListener,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    started: Instant,
}

struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// The name whose end the client waits for; its further requests wait too.
    waits_for: Option<String>,
    /// Number of the last event that it was sent, once it has subscribed.
    sent: Option<u64>,
    closing: bool,
}

impl Control {
    /// Listens. A socket that a former life left is replaced.
    pub(crate) fn listen(path: &Path, started: Instant) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::other(format!("`{}` is not a socket", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        // There must be no moment at which others could connect.
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = listener?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            connections: BTreeMap::new(),
            next: 0,
            started,
        })
    }

    /// What to wait for: the listener first (no number), then each connection.
    pub(crate) fn interests(&self) -> Vec<(Option<u64>, BorrowedFd<'_>, PollFlags)> {
        let mut all = vec![(None, self.listener.as_fd(), PollFlags::IN)];
        for (number, connection) in &self.connections {
            let mut flags = PollFlags::empty();
            // A client that waits for a stop, or does not read, is not listened to; its end is noticed all the same.
            if connection.waits_for.is_none() && !connection.closing && connection.output.len() < LINE_LIMIT {
                flags |= PollFlags::IN;
            }
            if !connection.output.is_empty() {
                flags |= PollFlags::OUT;
            }
            all.push((Some(*number), connection.stream.as_fd(), flags));
        }
        all
    }

    /// Takes all connections that wait to be taken.
    pub(crate) fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() >= CONNECTIONS || stream.set_nonblocking(true).is_err() {
                // Closed at once: the client sees the end of the stream.
                continue;
            }
            let connection = Connection {
                stream,
                input: Vec::new(),
                output: Vec::new(),
                waits_for: None,
                sent: None,
                closing: false,
            };
            self.connections.insert(self.next, connection);
            self.next += 1;
        }
    }

    /// Reads from and answers one connection. Gives an ending if one was asked for.
    pub(crate) fn serve(
        &mut self,
        number: u64,
        flags: PollFlags,
        supervisor: &mut Supervisor,
    ) -> Option<Ending> {
        let connection = self.connections.get_mut(&number)?;
        let broken = flags.intersects(PollFlags::ERR | PollFlags::NVAL)
            || (flags.contains(PollFlags::HUP) && !flags.contains(PollFlags::IN));
        if broken {
            self.connections.remove(&number);
            return None;
        }
        if flags.contains(PollFlags::IN) {
            connection.fill();
        }
        self.answer(number, supervisor)
    }

    /// Answers the requests that are there, until one has to wait.
    fn answer(&mut self, number: u64, supervisor: &mut Supervisor) -> Option<Ending> {
        let mut ending = None;
        while let Some(connection) = self.connections.get_mut(&number)
            && connection.waits_for.is_none()
            && let Some(line) = connection.line()
        {
            let reply = match line {
                Err(message) => {
                    connection.closing = true;
                    connection.input.clear();
                    Some(Reply::Error { message })
                }
                Ok(line) if line.iter().all(u8::is_ascii_whitespace) => None,
                Ok(line) => match serde_json::from_slice(&line) {
                    Ok(request) => obey(connection, request, supervisor, self.started, &mut ending),
                    Err(error) => Some(Reply::Error {
                        message: format!("not a request: {error}"),
                    }),
                },
            };
            if let Some(reply) = reply {
                connection.say(&reply);
            }
        }
        self.flush();
        ending
    }

    /// Tells those who wait or have subscribed what there is to tell.
    pub(crate) fn pass_on(&mut self, supervisor: &mut Supervisor) -> Option<Ending> {
        let mut released = Vec::new();
        for (name, result) in supervisor.take_finished() {
            for (number, connection) in &mut self.connections {
                if connection.waits_for.as_ref() == Some(&name) {
                    connection.waits_for = None;
                    connection.say(&match &result {
                        Ok(()) => Reply::Done,
                        Err(message) => Reply::Error {
                            message: message.clone(),
                        },
                    });
                    released.push(*number);
                }
            }
        }
        for connection in self.connections.values_mut() {
            if let Some(sent) = connection.sent {
                for event in supervisor.events_after(sent) {
                    connection.sent = Some(event.number);
                    connection.say(&Reply::Event { event: event.clone() });
                }
            }
        }
        self.flush();
        // Requests that came while their connection waited.
        released
            .into_iter()
            .filter_map(|number| self.answer(number, supervisor))
            .last()
    }

    fn flush(&mut self) {
        self.connections.retain(|_, connection| connection.flush());
    }
}

/// Does what is asked; no reply means that it comes later.
fn obey(
    connection: &mut Connection,
    request: Request,
    supervisor: &mut Supervisor,
    started: Instant,
    ending: &mut Option<Ending>,
) -> Option<Reply> {
    let now = Instant::now();
    let done = |result: Result<(), String>| match result {
        Ok(()) => Reply::Done,
        Err(message) => Reply::Error { message },
    };
    Some(match request {
        Request::Hello => Reply::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            uptime_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        },
        Request::Define { process } => done(supervisor.define(process)),
        Request::Start { name } => done(supervisor.start(&name)),
        Request::Stop { name } => match supervisor.stop(&name, now) {
            Ok(true) => Reply::Done,
            Ok(false) => {
                connection.waits_for = Some(name);
                return None;
            }
            Err(message) => Reply::Error { message },
        },
        Request::Remove { name } => done(supervisor.remove(&name)),
        Request::List => Reply::Processes {
            processes: supervisor.list(now),
        },
        Request::Subscribe { after } => {
            let last = supervisor.last_event();
            // Somebody who has seen more than there was knew another init.
            connection.sent = Some(after.map_or(last, |after| if after > last { 0 } else { after }));
            Reply::Subscribed { last }
        }
        Request::PowerOff => {
            *ending = Some(Ending::PowerOff);
            Reply::Done
        }
        Request::Reboot => {
            *ending = Some(Ending::Reboot);
            Reply::Done
        }
    })
}

impl Connection {
    fn fill(&mut self) {
        let mut buffer = [0_u8; 16 * 1024];
        // A little more than a line: the rest waits in the socket.
        while self.input.len() <= LINE_LIMIT {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.closing = true;
                    return;
                }
                Ok(n) => self.input.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.closing = true;
                    return;
                }
            }
        }
    }

    /// The next whole line; an error when it is too long.
    fn line(&mut self) -> Option<Result<Vec<u8>, String>> {
        match self.input.iter().position(|byte| *byte == b'\n') {
            Some(end) if end <= LINE_LIMIT => {
                let rest = self.input.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.input, rest);
                line.truncate(end);
                Some(Ok(line))
            }
            None if self.input.len() <= LINE_LIMIT => None,
            _ => Some(Err(format!("a line has more than {LINE_LIMIT} bytes"))),
        }
    }

    fn say(&mut self, reply: &Reply) {
        match serde_json::to_vec(reply) {
            Ok(mut line) => {
                line.push(b'\n');
                self.output.extend_from_slice(&line);
            }
            Err(_) => self.closing = true,
        }
    }

    /// Writes what can be written; whether the connection goes on.
    fn flush(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return false,
                Ok(n) => drop(self.output.drain(..n)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        // A client that has closed its end may still be told what it waits for.
        let owed = !self.output.is_empty() || self.waits_for.is_some();
        self.output.len() <= UNREAD_LIMIT && (!self.closing || owed)
    }
}
