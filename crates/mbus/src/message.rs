//! BOSH's envelopes: a request, a reply, a running agent task.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The protocol version that the director speaks; 3 has asynchronous `stop` and `list_disk`.
pub const PROTOCOL: u32 = 3;

/// The largest message on the bus, in bytes: `nats-server`'s default and BOSH's limit.
pub const MAX_PAYLOAD: usize = 1024 * 1024;

/// What stands in the middle of an exception that was cut to fit.
const TRUNCATED: &str = "\n...[truncated]...\n";

/// A request to an agent.
#[derive(Clone, Serialize, Deserialize, PartialEq)]
pub struct Request {
    /// Protocol version of the sender, see [`PROTOCOL`].
    #[serde(default)]
    pub protocol: u32,
    /// Name of the method.
    pub method: String,
    /// Positional arguments.
    #[serde(default)]
    pub arguments: Vec<Value>,
    /// Subject of the reply: `director.<process uuid>.<agent id>.<request uuid>`.
    pub reply_to: String,
}

/// Arguments may hold secrets, so they are counted only.
impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("arguments", &self.arguments.len())
            .field("reply_to", &self.reply_to)
            .finish_non_exhaustive()
    }
}

/// An agent's answer.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The method's result.
    Value(Value),
    /// The method failed.
    Exception(Exception),
}

/// Why a method failed, in the agent's words.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Exception {
    /// For people.
    pub message: String,
    /// Stack trace of the old Ruby agent; shown as debug output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backtrace: Option<Value>,
    /// A blob with more output (of a failed compilation).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blobstore_id: Option<String>,
}

/// The immediate answer of an asynchronous method, and of `get_task` while it runs.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct AgentTask {
    /// Id that `get_task` and `cancel_task` take.
    pub agent_task_id: String,
    /// Always `running`.
    pub state: String,
    /// What the task said last. Ours; other agents do not send it, other directors do not look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
}

impl AgentTask {
    /// The answer for a task that has just been queued or still runs.
    pub fn running(id: impl Into<String>) -> Self {
        Self {
            agent_task_id: id.into(),
            state: "running".to_owned(),
            progress: None,
        }
    }

    /// The same task with what it said last.
    #[must_use]
    pub fn saying(mut self, progress: Option<String>) -> Self {
        self.progress = progress;
        self
    }

    /// Reads a value as a running task; `None` when it is a final value.
    #[must_use]
    pub fn from_value(value: &Value) -> Option<Self> {
        let object = value.as_object()?;
        if object.get("state")?.as_str()? != "running" {
            return None;
        }
        let progress = object.get("progress").and_then(Value::as_str);
        Some(Self::running(object.get("agent_task_id")?.as_str()?).saying(progress.map(str::to_owned)))
    }
}

impl Reply {
    /// A value that serializes.
    pub fn value(value: impl Serialize) -> Self {
        match serde_json::to_value(value) {
            Ok(value) => Self::Value(value),
            Err(error) => Self::exception(format!("failed to serialize the result: {error}")),
        }
    }

    /// A failure with a message only.
    pub fn exception(message: impl Into<String>) -> Self {
        Self::Exception(Exception {
            message: message.into(),
            ..Exception::default()
        })
    }

    /// The reply as bytes, never longer than `limit`: a too long exception is cut in the middle as BOSH's agent does, a
    /// too long value becomes an exception that says so.
    #[must_use]
    pub fn to_bytes(&self, limit: usize) -> Vec<u8> {
        let whole = self.encode();
        if whole.len() <= limit {
            return whole;
        }
        match self {
            Self::Value(_) => Self::exception(format!(
                "the result has {} bytes, which is more than the {limit} bytes of a message on the bus",
                whole.len()
            ))
            .encode(),
            Self::Exception(exception) => {
                let mut shorter = Exception {
                    backtrace: None,
                    ..exception.clone()
                };
                // Escaping makes text longer by up to six times, so the budget is shrunk until the result fits.
                let mut budget = limit.saturating_sub(512);
                loop {
                    shorter.message = cut_middle(&exception.message, budget);
                    let bytes = Self::Exception(shorter.clone()).encode();
                    if bytes.len() <= limit || budget == 0 {
                        return bytes;
                    }
                    budget = budget * 2 / 3;
                }
            }
        }
    }

    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a JSON value always serializes")
    }
}

/// Keeps the head and the tail of a text within `budget` bytes.
fn cut_middle(text: &str, budget: usize) -> String {
    if text.len() <= budget {
        return text.to_owned();
    }
    let half = budget.saturating_sub(TRUNCATED.len()) / 2;
    let head = text.floor_char_boundary(half);
    let tail = text.ceil_char_boundary(text.len() - half);
    format!("{}{TRUNCATED}{}", &text[..head], &text[tail..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn envelopes_have_the_bosh_shape() {
        let request: Request = serde_json::from_str(
            r#"{"protocol":3,"method":"ping","arguments":[],"reply_to":"director.a.b.c"}"#,
        )
        .expect("a request");
        assert_eq!(request.method, "ping");
        assert_eq!(
            serde_json::to_string(&Reply::value("pong")).expect("JSON"),
            r#"{"value":"pong"}"#
        );
        assert_eq!(
            serde_json::to_string(&Reply::exception("no")).expect("JSON"),
            r#"{"exception":{"message":"no"}}"#
        );
        let running = serde_json::json!({"agent_task_id": "7", "state": "running"});
        assert_eq!(AgentTask::from_value(&running), Some(AgentTask::running("7")));
        assert_eq!(AgentTask::from_value(&Value::from("applied")), None);
        let saying = AgentTask::running("7").saying(Some("evicting pod a/b".to_owned()));
        let value = serde_json::to_value(&saying).expect("JSON");
        assert_eq!(AgentTask::from_value(&value), Some(saying));
    }

    #[test]
    fn what_is_too_long_is_cut_and_still_parses() {
        for filler in ["x", "é", "\u{1}", "\""] {
            let reply = Reply::exception(format!("start{}end", filler.repeat(5000)));
            let bytes = reply.to_bytes(2000);
            assert!(bytes.len() <= 2000, "{} bytes", bytes.len());
            let Reply::Exception(exception) = serde_json::from_slice(&bytes).expect("JSON") else {
                panic!("an exception stays one");
            };
            assert!(exception.message.starts_with("start"), "{}", exception.message);
            assert!(exception.message.ends_with("end"));
            assert!(exception.message.contains("[truncated]"));
        }
        let bytes = Reply::value("y".repeat(3000)).to_bytes(2000);
        assert!(matches!(
            serde_json::from_slice(&bytes).expect("JSON"),
            Reply::Exception(_)
        ));
    }
}
