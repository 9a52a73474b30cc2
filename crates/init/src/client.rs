//! A blocking client: each call is a few microseconds, but for a stop, which takes as long as the process.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::wire::{Event, Process, Reply, Request, Spec};

/// Everything but a stop is answered at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A connection to init.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(socket: impl AsRef<Path>) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Asks for one thing.
    ///
    /// # Errors
    /// When init refuses (kind `Other`, its words) or does not answer.
    pub fn ask(&mut self, request: &Request) -> io::Result<Reply> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        match self.read::<Reply>()? {
            Reply::Error(why) => Err(io::Error::other(why)),
            reply => Ok(reply),
        }
    }

    /// Defines a process and wants it running.
    ///
    /// # Errors
    /// See [`Client::ask`].
    pub fn start(&mut self, name: &str, spec: Spec) -> io::Result<()> {
        self.ask(&Request::Define { name: name.to_owned(), spec })?;
        self.ask(&Request::Start { name: name.to_owned() }).map(drop)
    }

    /// Stops a process and waits until it has ended, at most its own time-out and some.
    ///
    /// # Errors
    /// See [`Client::ask`].
    pub fn stop(&mut self, name: &str, limit: Duration) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(Some(limit + ANSWER_LIMIT))?;
        let answer = self.ask(&Request::Stop { name: name.to_owned() });
        self.stream.get_ref().set_read_timeout(Some(ANSWER_LIMIT))?;
        answer.map(drop)
    }

    /// All processes.
    ///
    /// # Errors
    /// See [`Client::ask`].
    pub fn list(&mut self) -> io::Result<Vec<Process>> {
        match self.ask(&Request::List)? {
            Reply::Processes(processes) => Ok(processes),
            other => Err(io::Error::other(format!("init answered {other:?} to a list"))),
        }
    }

    /// Turns the connection into a source of events; [`Client::next_event`] waits for them.
    ///
    /// # Errors
    /// See [`Client::ask`].
    pub fn subscribe(&mut self) -> io::Result<()> {
        self.ask(&Request::Subscribe)?;
        self.stream.get_ref().set_read_timeout(None)
    }

    /// The next event of a subscription.
    ///
    /// # Errors
    /// When the connection ends.
    pub fn next_event(&mut self) -> io::Result<Event> {
        self.read()
    }

    fn read<T: serde::de::DeserializeOwned>(&mut self) -> io::Result<T> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_str(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}
