//! A snapshot of a cluster's etcd, taken over its JSON gateway from outside of the cluster's machines.
//!
//! The gateway gives a stream of JSON lines, each with a piece of the database in base64, the last with etcd's SHA-256 of all before it.
//! It is handed on as it comes: nothing is kept. Whether it is whole is for the reader to check, by that digest.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stolos_base::pki::Identity;
use stolos_base::{Class, Classify};
use tokio::io::AsyncRead;
use tokio_util::io::StreamReader;

use crate::etcd::Member;

/// Where clients reach a member.
const PORT: u16 = 2379;
/// A member of this host or of its networks accepts a connection at once, or it is not there.
const CONNECT: Duration = Duration::from_secs(5);
/// A member with a quorum answers in milliseconds; without one it would take longer to say so than anybody wants to wait.
const ANSWER: Duration = Duration::from_secs(10);
/// A snapshot may take as long as it takes, but something has to come.
const SILENCE: Duration = Duration::from_secs(60);
/// Pieces are 32 KiB; in base64 and JSON no line is near this.
const LONGEST_LINE: usize = 4 << 20;
/// The largest answer beside a snapshot.
const LONGEST_ANSWER: usize = 1 << 20;

/// etcd did not do as asked.
#[derive(Debug, thiserror::Error)]
#[error("failed to {what} of the member of etcd at {address}: {problem}")]
pub struct SnapshotError {
    what: &'static str,
    address: String,
    problem: String,
}

impl Classify for SnapshotError {
    fn class(&self) -> Class {
        Class::Unavailable
    }

    fn retryable(&self) -> bool {
        // Another member may answer, or this one after its election.
        true
    }
}

/// How a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// The revision that a majority has agreed upon, and this member has.
    pub revision: i64,
    /// etcd's version.
    pub version: String,
    /// Members that vote.
    pub voters: u32,
    /// Size of its database in bytes.
    pub size: u64,
}

/// A member of a cluster's etcd, as a client reaches it.
#[derive(Clone, Debug)]
pub struct EtcdMember {
    address: String,
    http: reqwest::Client,
}

impl EtcdMember {
    /// A member at an address. `ca` (PEM) is the authority of etcd's members, `identity` a client's.
    ///
    /// # Errors
    /// When the certificates cannot be used.
    pub fn new(address: &str, ca: &str, identity: &Identity) -> Result<Self, SnapshotError> {
        let failed = |problem: String| SnapshotError {
            what: "set up a client",
            address: address.to_owned(),
            problem,
        };
        let tls = stolos_base::tls::client(ca, Some(identity))
            .map_err(|error| failed(stolos_base::chain(&error)))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .no_proxy()
            .build()
            .map_err(|error| failed(stolos_base::chain(&error)))?;
        Ok(Self {
            address: address.to_owned(),
            http,
        })
    }

    /// How it is, after it has seen all that was agreed upon: a snapshot that is taken next has all of it.
    ///
    /// # Errors
    /// [`SnapshotError`], also for a member without a majority, one that has no vote, and one that says that something is wrong with its data.
    pub async fn status(&self) -> Result<MemberStatus, SnapshotError> {
        #[derive(Deserialize)]
        struct Header {
            revision: String,
        }
        #[derive(Deserialize)]
        struct Read {
            header: Header,
        }
        #[derive(Deserialize)]
        struct Said {
            version: String,
            #[serde(default, rename = "dbSize")]
            size: String,
            #[serde(default, rename = "isLearner")]
            is_learner: bool,
            #[serde(default)]
            errors: Vec<String>,
        }
        #[derive(Deserialize)]
        struct List {
            members: Vec<Member>,
        }
        const WHAT: &str = "learn the state";
        // A linearizable read of one key that nobody has: it waits until this member has applied what a majority has.
        let read: Read = self
            .ask(WHAT, "kv/range", &json!({"key": "AA==", "count_only": true}))
            .await?;
        let said: Said = self.ask(WHAT, "maintenance/status", &json!({})).await?;
        let list: List = self
            .ask(WHAT, "cluster/member/list", &json!({"linearizable": true}))
            .await?;
        if said.is_learner {
            return Err(self.failed(WHAT, "it has no vote yet"));
        }
        // A database that is full can be saved; one that differs from the others' must not become anybody's last hope.
        if let Some(bad) = said.errors.iter().find(|error| !error.contains("NOSPACE")) {
            return Err(self.failed(WHAT, bad));
        }
        let number = |text: &str| text.parse().unwrap_or_default();
        Ok(MemberStatus {
            revision: read
                .header
                .revision
                .parse()
                .map_err(|_| self.failed(WHAT, "its revision is no number"))?,
            version: said.version,
            voters: u32::try_from(list.members.iter().filter(|member| !member.is_learner).count())
                .unwrap_or(u32::MAX),
            size: number(&said.size),
        })
    }

    /// Its database, and behind that its SHA-256, as they come.
    ///
    /// # Errors
    /// [`SnapshotError`] when it does not begin; what breaks off later is an error of the reader.
    pub async fn snapshot(&self) -> Result<impl AsyncRead + Send + Unpin + use<>, SnapshotError> {
        const WHAT: &str = "take a snapshot";
        let answer = self
            .http
            .post(self.url("maintenance/snapshot"))
            .json(&json!({}))
            .send()
            .await
            .map_err(|error| self.failed(WHAT, &stolos_base::chain(&error)))?;
        if !answer.status().is_success() {
            return Err(self.failed(WHAT, &format!("it answered {}", answer.status())));
        }
        let bytes = answer.bytes_stream().map_err(io::Error::other).boxed();
        Ok(StreamReader::new(pieces(bytes).boxed()))
    }

    fn url(&self, what: &str) -> String {
        format!("https://{}:{PORT}/v3/{what}", self.address)
    }

    fn failed(&self, what: &'static str, problem: &str) -> SnapshotError {
        SnapshotError {
            what,
            address: self.address.clone(),
            problem: problem.to_owned(),
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        what: &'static str,
        path: &str,
        body: &Value,
    ) -> Result<T, SnapshotError> {
        let asked = async {
            let answer = self.http.post(self.url(path)).json(body).send().await?;
            let status = answer.status();
            let mut bytes = Vec::new();
            let mut stream = answer.bytes_stream();
            while let Some(piece) = stream.next().await {
                bytes.extend_from_slice(&piece?);
                if bytes.len() > LONGEST_ANSWER {
                    break;
                }
            }
            Ok::<_, reqwest::Error>((status, bytes))
        };
        let (status, bytes) = match tokio::time::timeout(ANSWER, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(self.failed(what, &stolos_base::chain(&error))),
            Err(_) => {
                return Err(self.failed(what, &format!("no answer within {} s", ANSWER.as_secs())));
            }
        };
        if !status.is_success() {
            let said = serde_json::from_slice::<Refusal>(&bytes).map(|refusal| refusal.message);
            return Err(self.failed(what, &said.unwrap_or_else(|_| format!("it answered {status}"))));
        }
        serde_json::from_slice(&bytes).map_err(|error| self.failed(what, &error.to_string()))
    }
}

/// What the gateway says when it refuses.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    message: String,
}

/// A line of the stream.
#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    result: Option<Piece>,
    #[serde(default)]
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Piece {
    #[serde(default)]
    blob: String,
}

type Incoming = Pin<Box<dyn Stream<Item = io::Result<bytes::Bytes>> + Send>>;

/// Takes the lines apart.
fn pieces(incoming: Incoming) -> impl Stream<Item = io::Result<bytes::Bytes>> + Send {
    struct State {
        incoming: Incoming,
        buffer: Vec<u8>,
        /// Where to look for the end of the line.
        looked: usize,
        ended: bool,
    }
    let state = State {
        incoming,
        buffer: Vec::new(),
        looked: 0,
        ended: false,
    };
    futures::stream::try_unfold(state, |mut state| async move {
        loop {
            let end = state.buffer[state.looked..]
                .iter()
                .position(|byte| *byte == b'\n');
            let line: Vec<u8> = match end {
                Some(end) => {
                    let line = state.buffer.drain(..=state.looked + end).collect();
                    state.looked = 0;
                    line
                }
                None if state.ended => std::mem::take(&mut state.buffer),
                None => {
                    state.looked = state.buffer.len();
                    if state.looked > LONGEST_LINE {
                        return Err(io::Error::other("etcd sent something else than a snapshot"));
                    }
                    match state.incoming.next().await {
                        Some(bytes) => state.buffer.extend_from_slice(&bytes?),
                        None => state.ended = true,
                    }
                    if state.ended {
                        state.looked = 0;
                    }
                    continue;
                }
            };
            if line.iter().all(u8::is_ascii_whitespace) {
                if state.ended && state.buffer.is_empty() {
                    return Ok(None);
                }
                continue;
            }
            let line: Line = serde_json::from_slice(&line).map_err(|error| {
                io::Error::other(format!("etcd sent a line that is no snapshot: {error}"))
            })?;
            if let Some(refusal) = line.error {
                return Err(io::Error::other(format!(
                    "etcd ended the snapshot: {}",
                    refusal.message
                )));
            }
            let blob = line.result.map(|piece| piece.blob).unwrap_or_default();
            let blob = STANDARD
                .decode(blob)
                .map_err(|error| io::Error::other(format!("etcd sent a piece that is no base64: {error}")))?;
            if !blob.is_empty() {
                return Ok(Some((bytes::Bytes::from(blob), state)));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    async fn read(text: &str, piece: usize) -> io::Result<Vec<u8>> {
        let parts: Vec<io::Result<bytes::Bytes>> = text
            .as_bytes()
            .chunks(piece)
            .map(|part| Ok(bytes::Bytes::copy_from_slice(part)))
            .collect();
        let mut reader = StreamReader::new(pieces(futures::stream::iter(parts).boxed()).boxed());
        let mut all = Vec::new();
        reader.read_to_end(&mut all).await.map(|_| all)
    }

    #[tokio::test]
    async fn lines_become_bytes_however_they_are_cut() {
        let text = "{\"result\":{\"remaining_bytes\":\"3\",\"blob\":\"YWJj\"}}\n{\"result\":{\"version\":\"3.6.0\"}}\n\n{\"result\":{\"blob\":\"ZGVm\"}}";
        for piece in [1, 3, 10, 1000] {
            assert_eq!(read(text, piece).await.expect("a snapshot"), b"abcdef");
            assert_eq!(
                read(&format!("{text}\n"), piece).await.expect("a snapshot"),
                b"abcdef"
            );
        }
        assert_eq!(read("", 1).await.expect("nothing"), b"");
        for (bad, words) in [
            (
                "{\"result\":{\"blob\":\"YWJj\"}}\n{\"error\":{\"code\":14,\"message\":\"etcdserver: stopped\"}}",
                "etcdserver: stopped",
            ),
            ("{\"result\":{\"blob\":\"YW", "no snapshot"),
            ("{\"result\":{\"blob\":\"!\"}}", "no base64"),
            ("<html>", "no snapshot"),
        ] {
            let error = read(bad, 7).await.expect_err(words);
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
