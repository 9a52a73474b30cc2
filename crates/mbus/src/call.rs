//! The methods of an agent, typed, for both ends: the director makes a [`Call`] into a request, the agent parses it back.

use std::fmt;

use indexmap::IndexMap;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stolos_base::secret::Secret;

use crate::message::Request;
use crate::settings::{DiskHint, UpdateSettings, expose};
use crate::spec::ApplySpec;

/// A method and its arguments.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// Is anybody there? → `"pong"`
    Ping,
    /// → `{"api_version":1}`
    Info,
    /// How does an asynchronous call stand? → its value, or a running task.
    GetTask(String),
    /// → `"canceled"`
    CancelTask(String),
    /// → [`crate::state::AgentState`]; with vitals when `full`.
    GetState {
        /// Whether vitals are wanted.
        full: bool,
    },
    /// Fetches packages and jobs without switching to them. Asynchronous. → `"prepared"`
    Prepare(Box<ApplySpec>),
    /// Becomes what the spec says. Asynchronous. → `"applied"`
    Apply(Box<ApplySpec>),
    /// Starts all processes. → `"started"`
    Start,
    /// Stops all processes. Asynchronous. → `"stopped"`
    Stop,
    /// Runs the drain scripts. Asynchronous. → an integer, 0 when done.
    Drain(Drain),
    /// Runs the named script of every job that has it. Asynchronous. → `{}`
    RunScript {
        /// `pre-start`, `post-start`, `post-deploy`, `pre-stop` or `post-stop`.
        script: String,
        /// Extra environment.
        env: IndexMap<String, String>,
    },
    /// Runs a job's `bin/run`. Asynchronous. → [`ErrandResult`]
    RunErrand {
        /// The job; the only one when absent.
        job: Option<String>,
    },
    /// Mounts an attached persistent disk. Asynchronous. → `{}`
    MountDisk(String),
    /// Asynchronous. → `{"message": …}`
    UnmountDisk(String),
    /// Asynchronous since protocol 3. → the CIDs that are mounted
    ListDisk,
    /// Copies the store to a second mounted disk and swaps them. Asynchronous. → `{}`
    MigrateDisk,
    /// Tells where an attached disk is. Asynchronous. → `{}`
    AddPersistentDisk {
        /// The disk.
        cid: String,
        /// What `attach_disk` returned.
        hint: DiskHint,
    },
    /// Forgets a disk. Asynchronous. → `{}`
    RemovePersistentDisk(String),
    /// Packs logs into the blob store. Asynchronous. → [`LogsResult`]
    FetchLogs {
        /// `job`, `agent`, `system`, joined by commas.
        kind: String,
        /// Globs.
        filters: Vec<String>,
    },
    /// Takes a blob into the machine. Asynchronous. → its id
    UploadBlob(UploadBlob),
    /// Changes settings for good. Asynchronous. → `"ok"`
    UpdateSettings(Box<UpdateSettings>),
    /// Forgets ARP entries of machines that moved.
    DeleteArpEntries(ArpEntries),
    /// Takes DNS records from the blob store. → `"synced"`
    SyncDns {
        /// The blob.
        blob_id: String,
        /// Its digest.
        digest: String,
        /// Older ones are ignored.
        version: u64,
    },
    /// Takes DNS records by a signed URL. → `"synced"`
    SyncDnsWithSignedUrl(SignedDns),
    /// Makes or removes a temporary user. → [`SshResult`]
    Ssh(Ssh),
    /// Powers the machine off. → `""`
    Shutdown,
}

/// Why a machine is drained.
#[derive(Clone, Debug, PartialEq)]
pub enum Drain {
    /// It will get this spec.
    Update(Box<ApplySpec>),
    /// It will go away, or be remade with this spec.
    Shutdown(Option<Box<ApplySpec>>),
}

/// The argument of `upload_blob`.
#[derive(Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct UploadBlob {
    /// Id to keep it under.
    pub blob_id: String,
    /// Digest of the content.
    pub checksum: String,
    /// Content, base64.
    #[serde(serialize_with = "expose")]
    pub payload: Secret<String>,
}

impl fmt::Debug for UploadBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UploadBlob({})", self.blob_id)
    }
}

/// The argument of `delete_arp_entries`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct ArpEntries {
    /// Addresses.
    pub ips: Vec<String>,
}

/// The argument of `sync_dns_with_signed_url`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct SignedDns {
    /// Needs no more credentials.
    #[serde(serialize_with = "expose")]
    pub signed_url: Secret<String>,
    /// Digest of the records.
    pub multi_digest: String,
    /// Older ones are ignored.
    pub version: u64,
    /// Headers to send.
    #[serde(default)]
    pub blobstore_headers: IndexMap<String, String>,
}

/// The argument of `ssh`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ssh {
    /// Makes a user.
    Setup {
        /// Its name.
        user: String,
        /// Its public key.
        public_key: String,
    },
    /// Removes users.
    Cleanup {
        /// Those whose name matches.
        user_regex: String,
    },
}

/// The result of `ssh`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct SshResult {
    /// `setup` or `cleanup`.
    pub command: String,
    /// `success`.
    pub status: String,
    /// Where to connect to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// Whom to expect there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_public_key: Option<String>,
}

/// The result of `run_errand`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct ErrandResult {
    /// What it printed.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
    /// How it ended.
    pub exit_code: i32,
}

/// The result of `fetch_logs`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct LogsResult {
    /// The archive's blob.
    pub blobstore_id: String,
    /// Its digest (may be a multi digest).
    pub sha1: String,
}

/// A request is no call that we know.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// BOSH's agent says exactly this.
    #[error("unknown message {0}")]
    UnknownMethod(String),
    /// The arguments have another shape.
    #[error("message {method} has wrong arguments")]
    Arguments {
        /// The method.
        method: String,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

impl Call {
    /// The method's name on the wire.
    #[must_use]
    pub fn method(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Info => "info",
            Self::GetTask(_) => "get_task",
            Self::CancelTask(_) => "cancel_task",
            Self::GetState { .. } => "get_state",
            Self::Prepare(_) => "prepare",
            Self::Apply(_) => "apply",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Drain(_) => "drain",
            Self::RunScript { .. } => "run_script",
            Self::RunErrand { .. } => "run_errand",
            Self::MountDisk(_) => "mount_disk",
            Self::UnmountDisk(_) => "unmount_disk",
            Self::ListDisk => "list_disk",
            Self::MigrateDisk => "migrate_disk",
            Self::AddPersistentDisk { .. } => "add_persistent_disk",
            Self::RemovePersistentDisk(_) => "remove_persistent_disk",
            Self::FetchLogs { .. } => "fetch_logs",
            Self::UploadBlob(_) => "upload_blob",
            Self::UpdateSettings(_) => "update_settings",
            Self::DeleteArpEntries(_) => "delete_arp_entries",
            Self::SyncDns { .. } => "sync_dns",
            Self::SyncDnsWithSignedUrl(_) => "sync_dns_with_signed_url",
            Self::Ssh(_) => "ssh",
            Self::Shutdown => "shutdown",
        }
    }

    /// Whether the call does no harm when an agent that died in the middle of it gets it again. All do none but the errand: what it does is
    /// its author's business.
    #[must_use]
    pub fn can_be_repeated(&self) -> bool {
        !matches!(self, Self::RunErrand { .. })
    }

    /// Whether the agent answers with a task that has to be polled.
    #[must_use]
    pub fn is_asynchronous(&self) -> bool {
        matches!(
            self,
            Self::Prepare(_)
                | Self::Apply(_)
                | Self::Stop
                | Self::Drain(_)
                | Self::RunScript { .. }
                | Self::RunErrand { .. }
                | Self::MountDisk(_)
                | Self::UnmountDisk(_)
                | Self::ListDisk
                | Self::MigrateDisk
                | Self::AddPersistentDisk { .. }
                | Self::RemovePersistentDisk(_)
                | Self::FetchLogs { .. }
                | Self::UploadBlob(_)
                | Self::UpdateSettings(_)
        )
    }

    /// Whether the call only reads, so that sending it twice does no harm even to an agent that does not recognize
    /// repeated requests.
    #[must_use]
    pub fn is_read(&self) -> bool {
        matches!(
            self,
            Self::Ping | Self::Info | Self::GetTask(_) | Self::GetState { .. }
        )
    }

    /// The positional arguments.
    #[must_use]
    pub fn arguments(&self) -> Vec<Value> {
        match self {
            Self::Ping
            | Self::Info
            | Self::Start
            | Self::Stop
            | Self::ListDisk
            | Self::MigrateDisk
            | Self::Shutdown
            | Self::GetState { full: false }
            | Self::RunErrand { job: None } => vec![],
            Self::GetState { full: true } => vec![json!("full")],
            Self::GetTask(id) | Self::CancelTask(id) => vec![json!(id)],
            Self::Prepare(spec) | Self::Apply(spec) => vec![value(spec)],
            Self::Drain(Drain::Update(spec)) => vec![json!("update"), value(spec)],
            Self::Drain(Drain::Shutdown(None)) => vec![json!("shutdown")],
            Self::Drain(Drain::Shutdown(Some(spec))) => vec![json!("shutdown"), value(spec)],
            Self::RunScript { script, env } => vec![json!(script), json!({ "env": env })],
            Self::RunErrand { job: Some(job) } => vec![json!(job)],
            Self::MountDisk(cid) | Self::UnmountDisk(cid) | Self::RemovePersistentDisk(cid) => {
                vec![json!(cid)]
            }
            Self::AddPersistentDisk { cid, hint } => vec![json!(cid), value(hint)],
            Self::FetchLogs { kind, filters } => vec![json!(kind), json!(filters)],
            Self::UploadBlob(argument) => vec![value(argument)],
            Self::UpdateSettings(argument) => vec![value(argument)],
            Self::DeleteArpEntries(argument) => vec![value(argument)],
            Self::SyncDns {
                blob_id,
                digest,
                version,
            } => vec![json!(blob_id), json!(digest), json!(version)],
            Self::SyncDnsWithSignedUrl(argument) => vec![value(argument)],
            Self::Ssh(Ssh::Setup { user, public_key }) => {
                vec![json!("setup"), json!({ "user": user, "public_key": public_key })]
            }
            Self::Ssh(Ssh::Cleanup { user_regex }) => {
                vec![json!("cleanup"), json!({ "user_regex": user_regex })]
            }
        }
    }

    /// Reads a request.
    ///
    /// # Errors
    /// [`ParseError`]; its text goes back as the exception's message.
    pub fn parse(request: &Request) -> Result<Self, ParseError> {
        let mut arguments = Arguments {
            method: &request.method,
            values: request.arguments.iter(),
        };
        let call = match request.method.as_str() {
            "ping" => Self::Ping,
            "info" => Self::Info,
            "get_task" => Self::GetTask(arguments.next()?),
            "cancel_task" => Self::CancelTask(arguments.next()?),
            "get_state" => Self::GetState {
                full: arguments.optional::<String>()?.is_some_and(|word| word == "full"),
            },
            "prepare" => Self::Prepare(arguments.next()?),
            "apply" => Self::Apply(arguments.next()?),
            "start" => Self::Start,
            "stop" => Self::Stop,
            "drain" => Self::Drain(arguments.drain()?),
            "run_script" => Self::RunScript {
                script: arguments.next()?,
                env: arguments.optional::<ScriptOptions>()?.unwrap_or_default().env,
            },
            "run_errand" => Self::RunErrand {
                job: arguments.optional()?,
            },
            "mount_disk" => Self::MountDisk(arguments.next()?),
            "unmount_disk" => Self::UnmountDisk(arguments.next()?),
            "list_disk" => Self::ListDisk,
            "migrate_disk" => Self::MigrateDisk,
            "add_persistent_disk" => Self::AddPersistentDisk {
                cid: arguments.next()?,
                hint: arguments.next()?,
            },
            "remove_persistent_disk" => Self::RemovePersistentDisk(arguments.next()?),
            "fetch_logs" => Self::FetchLogs {
                kind: arguments.next()?,
                filters: arguments.optional()?.unwrap_or_default(),
            },
            "upload_blob" => Self::UploadBlob(arguments.next()?),
            "update_settings" => Self::UpdateSettings(arguments.next()?),
            "delete_arp_entries" => Self::DeleteArpEntries(arguments.next()?),
            "sync_dns" => Self::SyncDns {
                blob_id: arguments.next()?,
                digest: arguments.next()?,
                version: arguments.next()?,
            },
            "sync_dns_with_signed_url" => Self::SyncDnsWithSignedUrl(arguments.next()?),
            "ssh" => Self::Ssh(arguments.ssh()?),
            "shutdown" => Self::Shutdown,
            other => return Err(ParseError::UnknownMethod(other.to_owned())),
        };
        Ok(call)
    }
}

/// The second argument of `run_script`.
#[derive(Default, Deserialize)]
struct ScriptOptions {
    #[serde(default)]
    env: IndexMap<String, String>,
}

/// Positional arguments, taken one by one.
struct Arguments<'a> {
    method: &'a str,
    values: std::slice::Iter<'a, Value>,
}

impl Arguments<'_> {
    fn next<T: DeserializeOwned>(&mut self) -> Result<T, ParseError> {
        let value = self.values.next().unwrap_or(&Value::Null);
        T::deserialize(value).map_err(|source| self.wrong(source))
    }

    fn optional<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ParseError> {
        match self.values.next() {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value)
                .map(Some)
                .map_err(|source| self.wrong(source)),
        }
    }

    fn drain(&mut self) -> Result<Drain, ParseError> {
        let kind: String = self.next()?;
        match kind.as_str() {
            "update" => Ok(Drain::Update(self.next()?)),
            "shutdown" => Ok(Drain::Shutdown(self.optional()?)),
            other => Err(self.word(other, "update or shutdown")),
        }
    }

    fn ssh(&mut self) -> Result<Ssh, ParseError> {
        #[derive(Deserialize)]
        struct Setup {
            user: String,
            public_key: String,
        }
        #[derive(Deserialize)]
        struct Cleanup {
            user_regex: String,
        }
        let kind: String = self.next()?;
        match kind.as_str() {
            "setup" => {
                let Setup { user, public_key } = self.next()?;
                Ok(Ssh::Setup { user, public_key })
            }
            "cleanup" => {
                let Cleanup { user_regex } = self.next()?;
                Ok(Ssh::Cleanup { user_regex })
            }
            other => Err(self.word(other, "setup or cleanup")),
        }
    }

    fn word(&self, word: &str, expected: &str) -> ParseError {
        self.wrong(serde::de::Error::custom(format!(
            "`{word}` where {expected} is expected"
        )))
    }

    fn wrong(&self, source: serde_json::Error) -> ParseError {
        ParseError::Arguments {
            method: self.method.to_owned(),
            source,
        }
    }
}

fn value(argument: &impl Serialize) -> Value {
    serde_json::to_value(argument).expect("arguments have text keys only")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_call() -> Vec<Call> {
        let spec = || {
            Box::new(ApplySpec {
                deployment: "d".into(),
                generation: Some(3),
                ..ApplySpec::default()
            })
        };
        let cid = || "disk-1".to_owned();
        vec![
            Call::Ping,
            Call::Info,
            Call::GetTask("7".into()),
            Call::CancelTask("7".into()),
            Call::GetState { full: false },
            Call::GetState { full: true },
            Call::Prepare(spec()),
            Call::Apply(spec()),
            Call::Start,
            Call::Stop,
            Call::Drain(Drain::Update(spec())),
            Call::Drain(Drain::Shutdown(None)),
            Call::Drain(Drain::Shutdown(Some(spec()))),
            Call::RunScript {
                script: "pre-start".into(),
                env: IndexMap::from([("A".to_owned(), "b".to_owned())]),
            },
            Call::RunErrand { job: None },
            Call::RunErrand {
                job: Some("j".into()),
            },
            Call::MountDisk(cid()),
            Call::UnmountDisk(cid()),
            Call::ListDisk,
            Call::MigrateDisk,
            Call::AddPersistentDisk {
                cid: cid(),
                hint: DiskHint::Path("/dev/x".into()),
            },
            Call::RemovePersistentDisk(cid()),
            Call::FetchLogs {
                kind: "job".into(),
                filters: vec!["**/*".into()],
            },
            Call::UploadBlob(UploadBlob {
                blob_id: "b".into(),
                checksum: "c".into(),
                payload: "cA==".into(),
            }),
            Call::UpdateSettings(Box::default()),
            Call::DeleteArpEntries(ArpEntries {
                ips: vec!["1.2.3.4".into()],
            }),
            Call::SyncDns {
                blob_id: "b".into(),
                digest: "d".into(),
                version: 4,
            },
            Call::SyncDnsWithSignedUrl(SignedDns {
                signed_url: "https://x".into(),
                multi_digest: "d".into(),
                version: 4,
                blobstore_headers: IndexMap::new(),
            }),
            Call::Ssh(Ssh::Setup {
                user: "u".into(),
                public_key: "k".into(),
            }),
            Call::Ssh(Ssh::Cleanup {
                user_regex: "^u".into(),
            }),
            Call::Shutdown,
        ]
    }

    #[test]
    fn every_call_is_read_back_as_it_was_written() {
        for call in every_call() {
            let request = Request {
                protocol: 3,
                method: call.method().to_owned(),
                arguments: call.arguments(),
                reply_to: "director.a.b.c".into(),
            };
            let text = serde_json::to_string(&request).expect("JSON");
            let request: Request = serde_json::from_str(&text).expect("a request");
            assert_eq!(Call::parse(&request).expect("a call"), call, "{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused_in_the_words_of_bosh() {
        let mut request = Request {
            protocol: 3,
            method: "frobnicate".into(),
            arguments: vec![],
            reply_to: String::new(),
        };
        let error = Call::parse(&request).expect_err("no such method");
        assert_eq!(error.to_string(), "unknown message frobnicate");
        request.method = "mount_disk".into();
        assert!(matches!(Call::parse(&request), Err(ParseError::Arguments { .. })));
    }
}
