//! What every other crate stands on.
//!
//! Owns: typed ids, the error classes and the printing of error chains, [`secret::Secret`], the clock and the
//! source of ids, named tasks, work for processors, TLS set-up over one crypto provider, a small X.509 authority, atomic files, the
//! names and places of an instance, tracing set-up. Never does: anything that knows a protocol or a product word.

pub mod clock;
pub mod compute;
pub mod error;
pub mod files;
pub mod http;
pub mod ids;
pub mod input;
pub mod instance;
pub mod lock;
pub mod logging;
pub mod memory;
pub mod pki;
pub mod poll;
pub mod process;
pub mod range;
pub mod retry;
pub mod secret;
pub mod task;
pub mod text;
pub mod tls;

pub use clock::Clock;
pub use error::{Class, Classify, chain};
pub use ids::IdSource;
pub use instance::{Instance, InstanceName, ManagerFiles, MemberName};
pub use secret::Secret;
