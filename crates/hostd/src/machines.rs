//! Machines that should run, run.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use stolos_base::task::{self, Kind};
use stolos_base::{Clock, chain};
use stolos_cpi::VmCid;
use stolos_cpi_host::{Host, Power, State};
use stolos_network::hostd_client::{MachineEvent, MachineStatus};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::virtual_addresses;

/// How often the CPI's mark is looked at: one `stat`, so idling costs nothing.
const LOOK: Duration = Duration::from_millis(500);
/// The CPI may have been killed before it left its mark.
const SWEEP: Duration = Duration::from_secs(30);
/// Events that are kept.
const KEPT: usize = 1000;
/// The first pause before a machine that does not start is started again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A machine that ran so long has not failed in a row.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// The machines. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Service(Arc<Inner>);

struct Inner {
    host: Host,
    addresses: virtual_addresses::Service,
    clock: Clock,
    look: Notify,
    known: Mutex<Known>,
    /// Number of the last event, for those who wait for the next.
    told: watch::Sender<u64>,
}

#[derive(Default)]
struct Known {
    machines: BTreeMap<VmCid, Entry>,
    events: VecDeque<MachineEvent>,
    number: u64,
}

#[derive(Default)]
struct Entry {
    /// The process that is watched.
    watched: Option<i32>,
    started: Option<Instant>,
    failures: u32,
    restarts: u64,
    not_before: Option<Instant>,
}

impl Service {
    pub(crate) fn new(host: Host, addresses: virtual_addresses::Service, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            host,
            addresses,
            clock,
            look: Notify::new(),
            known: Mutex::default(),
            told: watch::Sender::new(0),
        }))
    }

    /// Looks after the machines until told to stop.
    pub(crate) async fn keep(&self, stop: CancellationToken) {
        let mut seen: Option<SystemTime> = None;
        let mut swept: Option<Instant> = None;
        loop {
            let mark = fs_err::metadata(self.0.host.changes())
                .and_then(|meta| meta.modified())
                .ok();
            let due = self.next_due();
            let is_due = due.is_some_and(|at| at <= Instant::now());
            if mark != seen || swept.is_none_or(|at| at.elapsed() > SWEEP) || is_due {
                seen = mark;
                swept = Some(Instant::now());
                self.look().await;
            }
            let pause = self
                .next_due()
                .map_or(LOOK, |at| at.saturating_duration_since(Instant::now()).min(LOOK));
            tokio::select! {
                () = tokio::time::sleep(pause.max(Duration::from_millis(5))) => {}
                () = self.0.look.notified() => swept = None,
                () = stop.cancelled() => return,
            }
        }
    }

    pub(crate) fn status(&self) -> Result<Vec<MachineStatus>, String> {
        let machines = self.0.host.machines().map_err(|error| chain(&error))?;
        let known = self.known();
        Ok(machines
            .into_iter()
            .map(|machine| MachineStatus {
                pid: self
                    .0
                    .host
                    .init(&machine.cid)
                    .ok()
                    .flatten()
                    .map(|process| process.pid),
                wanted: machine.power == Power::On,
                restarts: known.machines.get(&machine.cid).map_or(0, |entry| entry.restarts),
                cid: machine.cid.to_string(),
            })
            .collect())
    }

    /// Events after a number; waits for some when there are none. A number that was not reached yet is another life's: then it is all of them.
    pub(crate) async fn events(&self, after: u64, wait: Duration) -> Vec<MachineEvent> {
        let mut told = self.0.told.subscribe();
        let last = *told.borrow_and_update();
        let after = if after > last { 0 } else { after };
        if last == after {
            // Nothing in time is an answer too.
            let _ = tokio::time::timeout(wait, told.changed()).await;
        }
        let known = self.known();
        known
            .events
            .iter()
            .filter(|event| event.number > after)
            .cloned()
            .collect()
    }

    async fn look(&self) {
        let host = self.0.host.clone();
        let machines = match tokio::task::spawn_blocking(move || host.machines()).await {
            Ok(Ok(machines)) => machines,
            Ok(Err(error)) => return tracing::warn!(error = %chain(&error), "failed to list machines"),
            Err(error) => return tracing::error!(%error, "listing machines panicked"),
        };
        let gone: Vec<VmCid> = {
            let mut known = self.known();
            let is_there = |cid: &VmCid| machines.iter().any(|machine| machine.cid == *cid);
            let gone = known
                .machines
                .keys()
                .filter(|cid| !is_there(cid))
                .cloned()
                .collect();
            known.machines.retain(|cid, _| is_there(cid));
            gone
        };
        for cid in gone {
            self.tell(&cid, "gone", String::new());
        }
        for machine in machines {
            if machine.state != State::Ready || machine.power != Power::On {
                continue;
            }
            match self.0.host.init(&machine.cid) {
                Ok(Some(process)) => self.watch(&machine.cid, process.pid),
                Ok(None) => self.restore(&machine.cid).await,
                Err(error) => {
                    tracing::warn!(cid = %machine.cid, error = %chain(&error), "failed to look at a machine")
                }
            }
        }
    }

    /// Watches a machine's first process, once.
    fn watch(&self, cid: &VmCid, pid: i32) {
        {
            let mut known = self.known();
            let entry = known.machines.entry(cid.clone()).or_default();
            if entry.watched == Some(pid) {
                return;
            }
            entry.watched = Some(pid);
            entry.started = Some(Instant::now());
        }
        let Some(raw) = Pid::from_raw(pid) else { return };
        let watched = pidfd_open(raw, PidfdFlags::NONBLOCK)
            .map_err(std::io::Error::from)
            .and_then(register);
        let (service, cid) = (self.clone(), cid.clone());
        match watched {
            Ok(fd) => {
                task::spawn(Kind::Job, format!("watch {cid}"), async move {
                    let ended = fd.readable().await.map(drop);
                    service.exited(&cid, pid);
                    ended
                });
            }
            // It ended while we were looking.
            Err(_) => service.exited(&cid, pid),
        }
    }

    fn exited(&self, cid: &VmCid, pid: i32) {
        {
            let mut known = self.known();
            if let Some(entry) = known.machines.get_mut(cid)
                && entry.watched == Some(pid)
            {
                entry.watched = None;
                if entry.started.is_some_and(|at| at.elapsed() > HEALTHY_AFTER) {
                    entry.failures = 0;
                }
            }
        }
        self.tell(cid, "exited", format!("process {pid}"));
        let links = match self.0.host.machine(cid) {
            Ok(machine) => machine.map(|machine| machine.links).unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%cid, error = %chain(&error), "the addresses of a machine that ended are not known");
                Vec::new()
            }
        };
        let service = self.clone();
        task::spawn(Kind::Job, format!("end of {cid}"), async move {
            for link in links {
                service.0.addresses.ended(link.address).await;
            }
            // Not before nobody is sent to it any more.
            service.0.look.notify_one();
            Ok::<(), std::convert::Infallible>(())
        });
    }

    async fn restore(&self, cid: &VmCid) {
        {
            let known = self.known();
            let wait = known.machines.get(cid).and_then(|entry| entry.not_before);
            if wait.is_some_and(|at| at > Instant::now()) {
                return;
            }
        }
        let (host, name) = (self.0.host.clone(), cid.clone());
        let result = tokio::task::spawn_blocking(move || host.restore(&name)).await;
        let failure = match result {
            Ok(Ok(false)) => return,
            Ok(Ok(true)) => None,
            Ok(Err(error)) => Some(chain(&error)),
            Err(error) => Some(error.to_string()),
        };
        {
            let mut known = self.known();
            let entry = known.machines.entry(cid.clone()).or_default();
            entry.failures = entry.failures.saturating_add(1);
            let pause = FIRST_PAUSE
                .saturating_mul(1 << entry.failures.saturating_sub(1).min(10))
                .min(LONGEST_PAUSE);
            entry.not_before = Some(Instant::now() + pause);
            entry.restarts += u64::from(failure.is_none());
        }
        match failure {
            None => {
                self.tell(cid, "started", String::new());
                if let Ok(Some(process)) = self.0.host.init(cid) {
                    self.watch(cid, process.pid);
                }
            }
            Some(why) => {
                tracing::warn!(%cid, error = %why, "failed to start a machine again");
                self.tell(cid, "failed to start", why);
            }
        }
    }

    /// When a machine that did not start is to be tried again.
    fn next_due(&self) -> Option<Instant> {
        let known = self.known();
        known
            .machines
            .values()
            .filter(|entry| entry.watched.is_none())
            .filter_map(|entry| entry.not_before)
            .min()
    }

    fn tell(&self, cid: &VmCid, what: &str, detail: String) {
        let mut known = self.known();
        known.number += 1;
        let event = MachineEvent {
            number: known.number,
            at: self.0.clock.now_millis(),
            cid: cid.to_string(),
            what: what.to_owned(),
            detail,
        };
        tracing::info!(cid = %event.cid, what = %event.what, "machine");
        known.events.push_back(event);
        while known.events.len() > KEPT {
            known.events.pop_front();
        }
        self.0.told.send_replace(known.number);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(
    unsafe_code,
    reason = "tokio leaves it to the caller that the descriptor stays the same"
)]
fn register(fd: std::os::fd::OwnedFd) -> std::io::Result<AsyncFd<std::os::fd::OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, always gives the same descriptor, and is owned by the `AsyncFd` from here on.
    // JUSTIFICATION: machines are no children of ours; a pidfd tells of their end without polling and without a thread.
    Ok(unsafe { AsyncFd::register(fd) }?)
}
