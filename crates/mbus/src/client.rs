//! The director's end of the bus.
//!
//! [`Bus`] holds the one subscription that all replies of this process arrive at; [`AgentClient`] makes calls to one
//! agent. A call whose caller goes away is forgotten: a late reply is dropped.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::StreamExt as _;
use indexmap::IndexMap;
use serde::de::DeserializeOwned;
use serde_json::Value;
use stolos_base::error::{Class, Classify};
use stolos_base::ids::{AgentId, IdSource};
use stolos_base::task;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::call::{ArpEntries, Call, Drain, LogsResult};
use crate::message::{AgentTask, Exception, PROTOCOL, Reply, Request};
use crate::settings::{DiskHint, UpdateSettings};
use crate::spec::ApplySpec;
use crate::state::{AgentState, Alert, Heartbeat};
use crate::subject;
use crate::transport::{self, Transport};

/// How long a call waits for its answer: BOSH's figure.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(45);
/// A read is sent again this long after the last time: the request or its answer may have been lost with a connection.
const RESEND_READ: Duration = Duration::from_secs(2);
/// What may be done twice is sent again this long after the last time: an agent that died had it in hand, or was not back yet when it came. Ours
/// are back within a second, and a living one, foreign ones too, has answered long before.
const RESEND_WRITE: Duration = Duration::from_secs(5);
/// An agent that loses its task more often than this has a problem that telling it again does not mend.
const LOST_TASKS: u32 = 3;
/// First pause between two `get_task`; most scripts of ours end within it.
const POLL_FIRST: Duration = Duration::from_millis(20);
/// Longest pause between two `get_task`: what a person would not notice at the end of a long script.
const POLL_LONGEST: Duration = Duration::from_millis(250);
/// First pause between two pings of a machine that boots.
const PING_FIRST: Duration = Duration::from_millis(25);
/// Longest pause between two pings: BOSH's figure.
const PING_LONGEST: Duration = Duration::from_secs(1);

/// A call to an agent failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answered. The text is BOSH's (error code 450002).
    #[error("Timed out sending '{method}' to instance: '{instance}', agent-id: '{agent}' after {} seconds", .after.as_secs())]
    Timeout {
        /// The method.
        method: &'static str,
        /// `GROUP/ID` as the caller named it.
        instance: String,
        /// The agent.
        agent: AgentId,
        /// How long it was waited.
        after: Duration,
    },
    /// The agent did what was asked and failed.
    #[error("agent of '{instance}' failed to {method}: {}", .exception.message)]
    Exception {
        /// The method.
        method: &'static str,
        /// `GROUP/ID` as the caller named it.
        instance: String,
        /// The agent's own words.
        exception: Exception,
    },
    /// The answer has another shape than the method's.
    #[error("agent of '{instance}' answered '{method}' with something else than expected")]
    BadReply {
        /// The method.
        method: &'static str,
        /// `GROUP/ID` as the caller named it.
        instance: String,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// The bus did not take the request.
    #[error("failed to send '{method}' to instance '{instance}'")]
    Send {
        /// The method.
        method: &'static str,
        /// `GROUP/ID` as the caller named it.
        instance: String,
        /// The cause.
        #[source]
        source: transport::Error,
    },
    /// The caller cancelled; the agent was told.
    #[error("'{method}' on instance '{instance}' was cancelled")]
    Cancelled {
        /// The method.
        method: &'static str,
        /// `GROUP/ID` as the caller named it.
        instance: String,
    },
}

impl Error {
    /// Whether the agent says that it does not know its own task: the words of ours and of the Go agent (bosh-agent, action/get_task.go).
    fn is_lost_task(&self, task: &str) -> bool {
        matches!(self, Self::Exception { exception, .. }
            if exception.message.ends_with(&format!("Task with id {task} could not be found")))
    }
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Timeout { .. } => Class::Unavailable,
            Self::Send { source, .. } => source.class(),
            Self::Cancelled { .. } => Class::Conflict,
            Self::Exception { .. } | Self::BadReply { .. } => Class::Internal,
        }
    }
}

/// The director's end of the bus; a cheap handle. When the last one goes, the subscription ends.
#[derive(Clone, Debug)]
pub struct Bus(Arc<Inner>);

struct Inner {
    transport: Arc<dyn Transport>,
    process: Uuid,
    ids: IdSource,
    pending: Arc<Pending>,
    _stop: DropGuard,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus")
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}

type Pending = Mutex<HashMap<Uuid, oneshot::Sender<Reply>>>;

/// What agents say unasked.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It lives.
    Heartbeat(AgentId, Box<Heartbeat>),
    /// Something happened to one of its processes.
    Alert(AgentId, Alert),
    /// Its machine goes down in an orderly way.
    Shutdown(AgentId),
}

impl Bus {
    /// Subscribes to the replies of this process. `ids` makes the process's own id and those of requests.
    ///
    /// # Errors
    /// When the subscription cannot be made.
    pub async fn start(transport: Arc<dyn Transport>, ids: IdSource) -> Result<Self, transport::Error> {
        let process = ids.next();
        let mut replies = transport.subscribe(&subject::replies(process)).await?;
        transport.flush().await?;
        let pending = Arc::<Pending>::default();
        let stop = CancellationToken::new();
        let (router, stopped) = (pending.clone(), stop.clone());
        task::spawn(task::Kind::Service, "replies of agents", async move {
            loop {
                tokio::select! {
                    () = stopped.cancelled() => return Ok::<(), &str>(()),
                    message = replies.next() => match message {
                        Some(message) => route(&router, &message),
                        None => return Err("the connection to the bus was closed"),
                    },
                }
            }
        });
        Ok(Self(Arc::new(Inner {
            transport,
            process,
            ids,
            pending,
            _stop: stop.drop_guard(),
        })))
    }

    /// A client of one agent. `instance` is how people know it (`GROUP/ID`); it appears in errors.
    #[must_use]
    pub fn agent(&self, agent: AgentId, instance: impl Into<String>) -> AgentClient {
        AgentClient {
            bus: self.clone(),
            agent,
            instance: instance.into(),
            timeout: CALL_TIMEOUT,
            cancel: CancellationToken::new(),
            listener: None,
        }
    }

    /// The transport below.
    #[must_use]
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.0.transport
    }
}

/// Heartbeats, alerts and shutdowns of all agents. The transport needs the rights of the health monitor. What is no
/// such message is logged and skipped.
///
/// # Errors
/// When a subscription cannot be made.
pub async fn events(
    transport: &dyn Transport,
) -> Result<impl Stream<Item = Event> + Send + Unpin + 'static, transport::Error> {
    let heartbeats = transport.subscribe("hm.agent.heartbeat.*").await?;
    let alerts = transport.subscribe("hm.agent.alert.*").await?;
    let shutdowns = transport.subscribe("hm.agent.shutdown.*").await?;
    transport.flush().await?;
    let all = futures::stream::select(heartbeats, futures::stream::select(alerts, shutdowns));
    Ok(all.filter_map(|message| std::future::ready(read_event(&message))))
}

fn read_event(message: &transport::Message) -> Option<Event> {
    let agent = subject::last_agent(&message.subject)?;
    let read = if message.subject.starts_with("hm.agent.heartbeat.") {
        serde_json::from_slice(&message.payload).map(|heartbeat| Event::Heartbeat(agent, Box::new(heartbeat)))
    } else if message.subject.starts_with("hm.agent.alert.") {
        serde_json::from_slice(&message.payload).map(|alert| Event::Alert(agent, alert))
    } else {
        Ok(Event::Shutdown(agent))
    };
    read.inspect_err(
        |error| tracing::warn!(subject = %message.subject, %error, "ignored an unreadable message"),
    )
    .ok()
}

fn route(pending: &Pending, message: &transport::Message) {
    let request = message
        .subject
        .rsplit('.')
        .next()
        .and_then(|id| id.parse::<Uuid>().ok());
    let Some(request) = request else { return };
    let waiting = lock(pending).remove(&request);
    let Some(waiting) = waiting else {
        // The caller gave up, or the answer came twice because the request was sent twice.
        tracing::debug!(subject = %message.subject, "nobody waits for this reply");
        return;
    };
    let reply = serde_json::from_slice(&message.payload)
        .unwrap_or_else(|error| Reply::exception(format!("the agent's reply is not readable: {error}")));
    let _ = waiting.send(reply);
}

/// Makes calls to one agent; a cheap clone.
#[derive(Clone, Debug)]
pub struct AgentClient {
    bus: Bus,
    agent: AgentId,
    instance: String,
    timeout: Duration,
    cancel: CancellationToken,
    listener: Option<Listener>,
}

/// Hears what a running task says.
#[derive(Clone)]
struct Listener(Arc<dyn Fn(&str) + Send + Sync>);

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listener")
    }
}

impl AgentClient {
    /// The agent that is called.
    #[must_use]
    pub fn id(&self) -> AgentId {
        self.agent
    }

    /// Waits at most so long for each answer; 45 s otherwise.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Ends calls when `cancel` fires. A running task is cancelled on the agent too.
    #[must_use]
    pub fn with_cancel(mut self, cancel: CancellationToken) -> Self {
        self.cancel = cancel;
        self
    }

    /// Calls `listener` with each new line that a running task of the agent says.
    #[must_use]
    pub fn with_listener(mut self, listener: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.listener = Some(Listener(Arc::new(listener)));
        self
    }

    /// One call, one answer.
    ///
    /// Expected flow: publish, wait for the reply at a subject of this request's own. Guarantees: a read is sent again
    /// every 2 s, an errand only when the link to the bus was lost meanwhile, anything else every 5 s too; always with
    /// the same `reply_to`, which our agents recognize. Assumptions: none about delivery.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn call(&self, call: &Call) -> Result<Value, Error> {
        match self.exchange(call, None).await? {
            Reply::Value(value) => Ok(value),
            Reply::Exception(exception) => Err(Error::Exception {
                method: call.method(),
                instance: self.instance.clone(),
                exception,
            }),
        }
    }

    /// As [`Self::call`], and follows the agent's task to its end where the method is asynchronous. An agent that was started again meanwhile
    /// does not know the task any more; what it had begun ended with it, so it is told again, but for errands, which are not ours to repeat.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run(&self, call: &Call) -> Result<Value, Error> {
        let mut lost = 0;
        loop {
            let task = match self.start(call).await? {
                Started::Done(value) => return Ok(value),
                Started::Running(task) => task,
            };
            match self.wait(call.method(), &task).await {
                Err(error) if error.is_lost_task(&task) && lost < LOST_TASKS && call.can_be_repeated() => {
                    lost += 1;
                    tracing::warn!(instance = %self.instance, method = call.method(),
                        "the agent was started again and has lost its task; telling it once more");
                }
                result => return result,
            }
        }
    }

    /// Starts an asynchronous call without waiting for its end, so that the task's id can be journalled.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start(&self, call: &Call) -> Result<Started, Error> {
        let value = self.call(call).await?;
        Ok(match AgentTask::from_value(&value) {
            Some(task) if call.is_asynchronous() => Started::Running(task.agent_task_id),
            _ => Started::Done(value),
        })
    }

    /// Follows a running task of the agent to its end. `method` names it in errors.
    ///
    /// # Errors
    /// See [`Error`]; an exception of the task is an error here. A restarted agent does not know its old tasks, which
    /// is an exception too.
    pub async fn wait(&self, method: &'static str, task: &str) -> Result<Value, Error> {
        let poll = Call::GetTask(task.to_owned());
        let mut pause = POLL_FIRST;
        let mut heard = None;
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => return Err(self.cancel_task(method, task).await),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(POLL_LONGEST);
            let value = match self.call(&poll).await {
                Ok(value) => value,
                Err(Error::Exception {
                    exception, instance, ..
                }) => {
                    return Err(Error::Exception {
                        method,
                        instance,
                        exception,
                    });
                }
                Err(Error::Cancelled { .. }) => return Err(self.cancel_task(method, task).await),
                Err(error) => return Err(error),
            };
            match AgentTask::from_value(&value) {
                Some(running) if running.agent_task_id == task => {
                    if let (Some(listener), Some(said)) = (&self.listener, &running.progress)
                        && heard != running.progress
                    {
                        (listener.0)(said);
                        heard.clone_from(&running.progress);
                    }
                }
                _ => return Ok(value),
            }
        }
    }

    async fn cancel_task(&self, method: &'static str, task: &str) -> Error {
        // The caller's token has fired already, so this one call goes without it, and shortly: the caller waits.
        let told = Self {
            cancel: CancellationToken::new(),
            timeout: RESEND_READ,
            ..self.clone()
        };
        if let Err(error) = told.call(&Call::CancelTask(task.to_owned())).await {
            tracing::warn!(instance = %self.instance, method, error = %stolos_base::chain(&error),
                "failed to cancel a task of the agent");
        }
        Error::Cancelled {
            method,
            instance: self.instance.clone(),
        }
    }

    async fn exchange(&self, call: &Call, pings: Option<Duration>) -> Result<Reply, Error> {
        let method = call.method();
        let inner = &self.bus.0;
        let request = inner.ids.next();
        let reply_to = subject::reply(inner.process, self.agent, request);
        let payload: Bytes = serde_json::to_vec(&Request {
            protocol: PROTOCOL,
            method: method.to_owned(),
            arguments: call.arguments(),
            reply_to,
        })
        .expect("a JSON value always serializes")
        .into();
        let subject = subject::agent(self.agent);
        let (waiting, _forget) = expect_reply(&inner.pending, request);
        tokio::pin!(waiting);
        let mut link = inner.transport.link();
        let deadline = Instant::now() + self.timeout;
        let usual = if call.is_read() { RESEND_READ } else { RESEND_WRITE };
        let mut pause = pings.unwrap_or(usual);
        loop {
            link.mark_unchanged();
            let epoch = link.borrow().epoch;
            inner
                .transport
                .publish(&subject, payload.clone())
                .await
                .map_err(|source| Error::Send {
                    method,
                    instance: self.instance.clone(),
                    source,
                })?;
            let again = Instant::now() + pause;
            pause = match pings {
                Some(_) => (pause * 2).min(PING_LONGEST),
                None => usual,
            };
            let repeat = async {
                tokio::select! {
                    () = tokio::time::sleep_until(again), if call.can_be_repeated() => {}
                    () = reconnected(&mut link, epoch) => {}
                }
            };
            tokio::select! {
                reply = &mut waiting => {
                    return Ok(reply.unwrap_or_else(|_| Reply::exception("the reply was dropped")));
                }
                () = self.cancel.cancelled() => {
                    return Err(Error::Cancelled { method, instance: self.instance.clone() });
                }
                () = tokio::time::sleep_until(deadline) => {
                    return Err(Error::Timeout {
                        method,
                        instance: self.instance.clone(),
                        agent: self.agent,
                        after: self.timeout,
                    });
                }
                () = repeat => {}
            }
        }
    }

    async fn typed<T: DeserializeOwned>(&self, call: &Call) -> Result<T, Error> {
        let value = self.run(call).await?;
        serde_json::from_value(value).map_err(|source| Error::BadReply {
            method: call.method(),
            instance: self.instance.clone(),
            source,
        })
    }
}

/// How an asynchronous call began.
#[derive(Clone, Debug, PartialEq)]
pub enum Started {
    /// The agent works on it; the id is for [`AgentClient::wait`].
    Running(String),
    /// The agent has answered at once.
    Done(Value),
}

/// The methods, typed. Each fails as [`AgentClient::call`] does.
impl AgentClient {
    /// Whether the agent answers.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn ping(&self) -> Result<(), Error> {
        self.call(&Call::Ping).await.map(drop)
    }

    /// Waits for a machine that boots: pings, quickly at first, until an answer comes or `limit` has passed.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn wait_until_ready(&self, limit: Duration) -> Result<(), Error> {
        let patient = self.clone().with_timeout(limit);
        match patient.exchange(&Call::Ping, Some(PING_FIRST)).await? {
            Reply::Value(_) => Ok(()),
            Reply::Exception(exception) => Err(Error::Exception {
                method: "ping",
                instance: self.instance.clone(),
                exception,
            }),
        }
    }

    /// The stored spec and how the machine does, without vitals.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_state(&self) -> Result<AgentState, Error> {
        self.typed(&Call::GetState { full: false }).await
    }

    /// As [`Self::get_state`], with vitals.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_full_state(&self) -> Result<AgentState, Error> {
        self.typed(&Call::GetState { full: true }).await
    }

    /// Fetches what `spec` needs without switching to it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn prepare(&self, spec: ApplySpec) -> Result<(), Error> {
        self.run(&Call::Prepare(Box::new(spec))).await.map(drop)
    }

    /// Switches to `spec`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn apply(&self, spec: ApplySpec) -> Result<(), Error> {
        self.run(&Call::Apply(Box::new(spec))).await.map(drop)
    }

    /// Starts all processes.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start_jobs(&self) -> Result<(), Error> {
        self.run(&Call::Start).await.map(drop)
    }

    /// Stops all processes.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stop_jobs(&self) -> Result<(), Error> {
        self.run(&Call::Stop).await.map(drop)
    }

    /// Runs the drain scripts. A negative result of a foreign agent asks to be called again after that many seconds.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn drain(&self, drain: Drain) -> Result<i64, Error> {
        self.typed(&Call::Drain(drain)).await
    }

    /// Runs a life-cycle script of every job.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run_script(&self, script: &str, env: IndexMap<String, String>) -> Result<(), Error> {
        let script = script.to_owned();
        self.run(&Call::RunScript { script, env }).await.map(drop)
    }

    /// CIDs of mounted persistent disks.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_disk(&self) -> Result<Vec<String>, Error> {
        self.typed(&Call::ListDisk).await
    }

    /// Mounts an attached disk.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn mount_disk(&self, cid: &str) -> Result<(), Error> {
        self.run(&Call::MountDisk(cid.to_owned())).await.map(drop)
    }

    /// Unmounts a disk.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn unmount_disk(&self, cid: &str) -> Result<(), Error> {
        self.run(&Call::UnmountDisk(cid.to_owned())).await.map(drop)
    }

    /// Moves the content of the mounted disk to the second one and swaps them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn migrate_disk(&self) -> Result<(), Error> {
        self.run(&Call::MigrateDisk).await.map(drop)
    }

    /// Tells where an attached disk is.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn add_persistent_disk(&self, cid: &str, hint: DiskHint) -> Result<(), Error> {
        let cid = cid.to_owned();
        self.run(&Call::AddPersistentDisk { cid, hint }).await.map(drop)
    }

    /// Makes the agent forget a disk.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove_persistent_disk(&self, cid: &str) -> Result<(), Error> {
        self.run(&Call::RemovePersistentDisk(cid.to_owned()))
            .await
            .map(drop)
    }

    /// Changes settings for good. The agent may restart itself while it answers.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn update_settings(&self, settings: UpdateSettings) -> Result<(), Error> {
        self.run(&Call::UpdateSettings(Box::new(settings)))
            .await
            .map(drop)
    }

    /// Packs logs into the blob store.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn fetch_logs(&self, kind: &str, filters: Vec<String>) -> Result<LogsResult, Error> {
        let kind = kind.to_owned();
        self.typed(&Call::FetchLogs { kind, filters }).await
    }

    /// Forgets ARP entries.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_arp_entries(&self, ips: Vec<String>) -> Result<(), Error> {
        self.run(&Call::DeleteArpEntries(ArpEntries { ips }))
            .await
            .map(drop)
    }

    /// Powers the machine off.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.call(&Call::Shutdown).await.map(drop)
    }
}

/// Ends when the link has come up again after `epoch`; never when the transport is gone.
async fn reconnected(link: &mut tokio::sync::watch::Receiver<transport::Link>, epoch: u64) {
    if link.wait_for(|now| now.up && now.epoch > epoch).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Registers a request; the guard forgets it when the caller goes away.
fn expect_reply(pending: &Arc<Pending>, request: Uuid) -> (oneshot::Receiver<Reply>, Forget) {
    let (sender, receiver) = oneshot::channel();
    lock(pending).insert(request, sender);
    let forget = Forget {
        pending: pending.clone(),
        request,
    };
    (receiver, forget)
}

struct Forget {
    pending: Arc<Pending>,
    request: Uuid,
}

impl Drop for Forget {
    fn drop(&mut self) {
        lock(&self.pending).remove(&self.request);
    }
}

fn lock(pending: &Pending) -> std::sync::MutexGuard<'_, HashMap<Uuid, oneshot::Sender<Reply>>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}
