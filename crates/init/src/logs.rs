//! Log files of processes: written by a thread of their own, capped and rotated.
//!
//! Each process writes into pipes, and this thread moves what comes into the files. That costs a copy; what it gives
//! is that a cap holds to the byte, that nothing is lost while a file is put aside, and that nothing has to look at file
//! sizes while nothing happens. A full disk loses output and nothing else: the pipes are emptied all the same, and when
//! there is room again a line says how much is missing. A disk that hangs holds up this thread, and processes once
//! their pipes are full, but never the thread that supervises.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// How much is moved at a time: a pipe's whole content.
const CHUNK: usize = 64 * 1024;
/// The pause before a file that could not be written is tried again; output is dropped meanwhile.
const RETRY: Duration = Duration::from_secs(1);
/// How long the last output may take at the end of the machine.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// The other threads' end.
#[derive(Debug)]
pub(crate) struct Logs {
    orders: Sender<Order>,
    wake: Arc<OwnedFd>,
    own: PathBuf,
}

/// How large logs may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cap {
    pub(crate) bytes: u64,
    pub(crate) files: u32,
}

#[derive(Debug)]
enum Order {
    /// Moves what comes out of a pipe into a file until all writers have closed it.
    Follow(PipeReader, PathBuf),
    /// Writes a line of ours.
    Line(PathBuf, String),
    /// Says when all that was written before has been moved.
    Flush(SyncSender<()>),
}

impl Logs {
    /// Starts the thread. `own` is the file of our own lines, which also go to stderr.
    pub(crate) fn start(own: PathBuf, cap: Cap) -> io::Result<Self> {
        let (orders, receiver) = mpsc::channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut writer = Writer {
            orders: receiver,
            wake: wake.clone(),
            cap,
            pipes: Vec::new(),
            files: BTreeMap::new(),
            buffer: vec![0; CHUNK],
        };
        std::thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || writer.run())?;
        Ok(Self { orders, wake, own })
    }

    /// Follows a stream of a process.
    pub(crate) fn follow(&self, pipe: PipeReader, file: PathBuf) {
        self.send(Order::Follow(pipe, file));
    }

    /// Writes a line of our own.
    pub(crate) fn line(&self, text: &str) {
        self.send(Order::Line(self.own.clone(), text.to_owned()));
    }

    /// Waits, not for long, until what was written so far is in the files.
    pub(crate) fn flush(&self) {
        let (done, wait) = mpsc::sync_channel(1);
        self.send(Order::Flush(done));
        let _ = wait.recv_timeout(FLUSH_LIMIT);
    }

    fn send(&self, order: Order) {
        // The thread ends only with the process.
        let _ = self.orders.send(order);
        let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes());
    }
}

struct Writer {
    orders: Receiver<Order>,
    wake: Arc<OwnedFd>,
    cap: Cap,
    pipes: Vec<(PipeReader, PathBuf)>,
    files: BTreeMap<PathBuf, LogFile>,
    buffer: Vec<u8>,
}

impl Writer {
    fn run(&mut self) {
        loop {
            let ready = self.wait();
            let woken = ready.first().copied().unwrap_or(false);
            // The oldest first: the last words of a process come before the first of its next life.
            self.move_from(|i, _| ready.get(i + 1).copied().unwrap_or(false));
            if woken {
                let mut count = [0; 8];
                let _ = rustix::io::read(&*self.wake, &mut count);
                while let Ok(order) = self.orders.try_recv() {
                    self.obey(order);
                }
            }
        }
    }

    /// Waits until something is to be done; says for the wake-up call and for each pipe whether it is.
    fn wait(&self) -> Vec<bool> {
        let mut fds = vec![PollFd::new(&*self.wake, PollFlags::IN)];
        fds.extend(
            self.pipes
                .iter()
                .map(|(pipe, _)| PollFd::new(pipe, PollFlags::IN)),
        );
        match poll(&mut fds, None) {
            Ok(_) => fds.iter().map(|fd| !fd.revents().is_empty()).collect(),
            Err(_) => Vec::new(),
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Follow(pipe, file) => self.pipes.push((pipe, file)),
            Order::Line(path, text) => {
                let line = format!("{text}\n");
                to_stderr(line.as_bytes());
                self.write(&path, line.as_bytes());
            }
            Order::Flush(done) => {
                // What is in the pipes now, and no more: a process that never stops writing must not hold this up.
                self.move_from(|_, pipe| readable(pipe));
                let _ = done.try_send(());
            }
        }
    }

    /// Moves some of what is in those pipes that are ready, and forgets those that have come to their end.
    fn move_from(&mut self, ready: impl Fn(usize, &PipeReader) -> bool) {
        let mut ended = Vec::new();
        for i in 0..self.pipes.len() {
            if ready(i, &self.pipes[i].0) && !self.move_some(i) {
                ended.push(i);
            }
        }
        for i in ended.into_iter().rev() {
            let (_, path) = self.pipes.remove(i);
            // The file is opened again when it is needed: no descriptor is kept for what no longer runs.
            if !self.pipes.iter().any(|(_, other)| *other == path) {
                self.files.remove(&path);
            }
        }
    }

    /// Whether more may come.
    fn move_some(&mut self, i: usize) -> bool {
        let mut buffer = std::mem::take(&mut self.buffer);
        let (pipe, path) = &mut self.pipes[i];
        let goes_on = match pipe.read(&mut buffer) {
            Ok(0) => false,
            Ok(n) => {
                let path = path.clone();
                self.write(&path, &buffer[..n]);
                true
            }
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
            ),
        };
        self.buffer = buffer;
        goes_on
    }

    fn write(&mut self, path: &Path, bytes: &[u8]) {
        let cap = self.cap;
        self.files
            .entry(path.to_owned())
            .or_insert_with(|| LogFile::new(path.to_owned()))
            .write(bytes, cap);
    }
}

/// A log file, open while something writes to it.
struct LogFile {
    path: PathBuf,
    open: Option<(File, u64)>,
    /// Bytes lost since the last successful write, and why.
    lost: Option<(u64, String)>,
    retry_at: Option<Instant>,
}

impl LogFile {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            open: None,
            lost: None,
            retry_at: None,
        }
    }

    fn write(&mut self, bytes: &[u8], cap: Cap) {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            if let Some((lost, _)) = &mut self.lost {
                *lost += bytes.len() as u64;
            }
            return;
        }
        match self.try_write(bytes, cap) {
            Ok(()) => self.retry_at = None,
            Err((written, error)) => {
                let missing = (bytes.len() - written) as u64;
                let before = self.lost.take().map_or(0, |(lost, _)| lost);
                self.lost = Some((before + missing, error.to_string()));
                self.open = None;
                self.retry_at = Some(Instant::now() + RETRY);
            }
        }
    }

    /// On failure: how many of `bytes` are in the file.
    fn try_write(&mut self, bytes: &[u8], cap: Cap) -> Result<(), (usize, io::Error)> {
        self.reopen_if_moved().map_err(|error| (0, error))?;
        if self.size() > 0 && self.size() + bytes.len() as u64 > cap.bytes {
            self.rotate(cap.files).map_err(|error| (0, error))?;
        }
        if let Some((lost, why)) = &self.lost {
            let note = format!("[stolos-init: {lost} bytes are missing here: {why}]\n");
            self.append(note.as_bytes())?;
            self.lost = None;
        }
        self.append(bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
        let Some((file, size)) = &mut self.open else {
            return Err((0, io::ErrorKind::NotFound.into()));
        };
        let mut written = 0;
        while written < bytes.len() {
            match file.write(&bytes[written..]) {
                Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    written += n;
                    *size += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((written, error)),
            }
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.open.as_ref().map_or(0, |(_, size)| *size)
    }

    /// Opens the file; also when somebody has moved or removed the one that was open.
    fn reopen_if_moved(&mut self) -> io::Result<()> {
        if let Some((file, size)) = &mut self.open {
            let meta = file.metadata()?;
            if meta.nlink() > 0 && fs::metadata(&self.path).is_ok_and(|there| there.ino() == meta.ino()) {
                *size = meta.len();
                return Ok(());
            }
        }
        if let Some(parent) = self.path.parent() {
            fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o640)
            .open(&self.path)?;
        let size = file.metadata()?.len();
        self.open = Some((file, size));
        Ok(())
    }

    /// `x.log` → `x.log.1` → `x.log.2` …; the last one goes. Where renaming is not possible the file is emptied: the cap
    /// comes before the content.
    fn rotate(&mut self, files: u32) -> io::Result<()> {
        let aside = |n: u32| {
            let mut name = self.path.as_os_str().to_owned();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        let renamed = (|| {
            if files <= 1 {
                return fs::remove_file(&self.path);
            }
            for n in (1..files - 1).rev() {
                match fs::rename(aside(n), aside(n + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            fs::rename(&self.path, aside(1))
        })();
        match renamed {
            Ok(()) => self.open = None,
            Err(_) => {
                if let Some((file, size)) = &mut self.open {
                    file.set_len(0)?;
                    *size = 0;
                }
            }
        }
        self.reopen_if_moved()
    }
}

/// Whether a read would give something at once.
fn readable(fd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|n| n > 0)
}

/// Writes to stderr unless that would block: nobody may be reading it.
fn to_stderr(bytes: &[u8]) {
    let stderr = rustix::stdio::stderr();
    // A pipe that poll calls writable has room for 4096 bytes at least.
    let bytes = &bytes[..bytes.len().min(4096)];
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    if poll(&mut fds, Some(&Timespec::default())).is_ok_and(|n| n > 0)
        && fds[0].revents().contains(PollFlags::OUT)
    {
        let _ = rustix::io::write(stderr, bytes);
    }
}
