//! The director–agent bus: what is said on it, what carries it, and who may say what.
//!
//! Owns: BOSH's envelopes and method shapes ([`message`], [`call`], [`state`]), the apply spec ([`spec`]) and
//! `settings.json` ([`settings`]); the [`transport::Transport`] seam with NATS ([`nats`]) and in-memory ([`memory`])
//! implementations; the director's end ([`client`]) and the agent's end ([`endpoint`]); the rights of each client
//! certificate ([`rights`]), the service that grants them ([`callout`]) and the supervision of a `nats-server`
//! ([`server`]).
//!
//! Never does: decide what to send, run jobs, keep keys (callers store them).
//!
//! Invariants: a request is answered at the subject in its `reply_to`, at most once per request id as far as a caller
//! can see; a request that may have been lost with a connection is sent again with the same `reply_to`, which is why
//! the agent's end remembers what it has answered; no message is larger than 1 MiB.

pub mod call;
pub mod callout;
mod claims;
pub mod client;
pub mod endpoint;
pub mod memory;
pub mod message;
pub mod nats;
pub mod rights;
pub mod server;
pub mod settings;
pub mod spec;
pub mod state;
pub mod subject;
pub mod transport;

pub use call::Call;
pub use callout::{AgentDirectory, AuthCallout};
pub use client::{AgentClient, Bus};
pub use endpoint::Endpoint;
pub use message::{Exception, Reply, Request};
pub use nats::NatsTransport;
pub use rights::Peer;
pub use server::NatsServer;
pub use transport::{Message, Subscription, Transport};
