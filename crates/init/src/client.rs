//! The blocking client of the control socket.

use std::fmt;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::wire::{Event, LINE_LIMIT, ProcessSpec, ProcessStatus, Reply, Request};

/// How long init may take to answer what it answers at once.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Beyond a process's own patience: SIGKILL works within this time unless the process hangs in the kernel.
const STOP_MARGIN: Duration = Duration::from_secs(30);
/// A list of processes is longer than a request may be.
const REPLY_LIMIT: u64 = 16 * LINE_LIMIT as u64;

/// Init did not do what it was asked.
#[derive(Debug)]
pub enum Error {
    /// The socket failed, or nobody answered in time.
    Io {
        /// What was being done.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// Init refused.
    Refused(String),
    /// Init said something that does not fit the request.
    Unexpected(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { what, .. } => write!(f, "failed to {what} init"),
            Self::Refused(message) => f.write_str(message),
            Self::Unexpected(what) => write!(f, "init answered {what}, which does not fit the request"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Refused(_) | Self::Unexpected(_) => None,
        }
    }
}

/// One connection.
#[derive(Debug)]
pub struct Client(BufReader<UnixStream>);

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(socket: impl AsRef<Path>) -> Result<Self, Error> {
        let failed = |source| Error::Io {
            what: "connect to",
            source,
        };
        let stream = UnixStream::connect(socket).map_err(failed)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT)).map_err(failed)?;
        stream.set_write_timeout(Some(ANSWER_LIMIT)).map_err(failed)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// See [`Request::Hello`]; gives version, process id and milliseconds since the start.
    ///
    /// # Errors
    /// As all calls: [`Error`].
    pub fn hello(&mut self) -> Result<(String, i32, u64), Error> {
        match self.call(&Request::Hello)? {
            Reply::Hello {
                version,
                pid,
                uptime_ms,
            } => Ok((version, pid, uptime_ms)),
            other => Err(unexpected(&other)),
        }
    }

    /// See [`Request::Define`].
    ///
    /// # Errors
    /// As all calls: [`Error`].
    pub fn define(&mut self, process: &ProcessSpec) -> Result<(), Error> {
        self.done(&Request::Define {
            process: process.clone(),
        })
    }

    /// See [`Request::Start`].
    ///
    /// # Errors
    /// As all calls: [`Error`].
    pub fn start(&mut self, name: &str) -> Result<(), Error> {
        self.done(&Request::Start {
            name: name.to_owned(),
        })
    }

    /// See [`Request::Stop`]. `patience` is the process's own time to end; the answer is waited for somewhat longer.
    ///
    /// # Errors
    /// As all calls: [`Error`].
    pub fn stop(&mut self, name: &str, patience: Duration) -> Result<(), Error> {
        let limit = |limit: Duration| move |client: &Self| client.0.get_ref().set_read_timeout(Some(limit));
        let failed = |source| Error::Io {
            what: "set up the connection to",
            source,
        };
        limit(patience + STOP_MARGIN)(self).map_err(failed)?;
        let result = self.done(&Request::Stop {
            name: name.to_owned(),
        });
        limit(ANSWER_LIMIT)(self).map_err(failed)?;
        result
    }

    /// See [`Request::Remove`].
    ///
    /// # Errors
    /// As all calls: [`Error`].
    pub fn remove(&mut self, name: &str) -> Result<(), Error> {
        self.done(&Request::Remove {
            name: name.to_owned(),
        })
    }

    /// See [`Request::List`].
    ///
    /// # Errors
    /// As all calls: [`Error`].
    pub fn list(&mut self) -> Result<Vec<ProcessStatus>, Error> {
        match self.call(&Request::List)? {
            Reply::Processes { processes } => Ok(processes),
            other => Err(unexpected(&other)),
        }
    }

    /// See [`Request::PowerOff`].
    ///
    /// # Errors
    /// As all calls: [`Error`].
    pub fn power_off(&mut self) -> Result<(), Error> {
        self.done(&Request::PowerOff)
    }

    /// See [`Request::Reboot`].
    ///
    /// # Errors
    /// As all calls: [`Error`].
    pub fn reboot(&mut self) -> Result<(), Error> {
        self.done(&Request::Reboot)
    }

    /// See [`Request::Subscribe`]. Gives the number of the last event so far and the events to come.
    ///
    /// # Errors
    /// As all calls: [`Error`].
    pub fn subscribe(mut self, after: Option<u64>) -> Result<(u64, Events), Error> {
        match self.call(&Request::Subscribe { after })? {
            Reply::Subscribed { last } => {
                self.0
                    .get_ref()
                    .set_read_timeout(None)
                    .map_err(|source| Error::Io {
                        what: "set up the connection to",
                        source,
                    })?;
                Ok((last, Events(self)))
            }
            other => Err(unexpected(&other)),
        }
    }

    fn done(&mut self, request: &Request) -> Result<(), Error> {
        match self.call(request)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn call(&mut self, request: &Request) -> Result<Reply, Error> {
        let mut line = serde_json::to_vec(request).map_err(|error| Error::Io {
            what: "make a request to",
            source: error.into(),
        })?;
        line.push(b'\n');
        self.0.get_mut().write_all(&line).map_err(|source| Error::Io {
            what: "write to",
            source,
        })?;
        match self.read()? {
            Reply::Error { message } => Err(Error::Refused(message)),
            reply => Ok(reply),
        }
    }

    fn read(&mut self) -> Result<Reply, Error> {
        let failed = |source| Error::Io {
            what: "read from",
            source,
        };
        let mut line = Vec::new();
        let n = (&mut self.0)
            .take(REPLY_LIMIT)
            .read_until(b'\n', &mut line)
            .map_err(failed)?;
        if n == 0 {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_slice(&line).map_err(|error| failed(error.into()))
    }
}

/// A subscription.
#[derive(Debug)]
pub struct Events(Client);

impl Events {
    /// Waits for the next event.
    ///
    /// # Errors
    /// When the connection ends.
    pub fn next_event(&mut self) -> Result<Event, Error> {
        match self.0.read()? {
            Reply::Event { event } => Ok(event),
            other => Err(unexpected(&other)),
        }
    }
}

fn unexpected(reply: &Reply) -> Error {
    Error::Unexpected(format!("{reply:?}"))
}
