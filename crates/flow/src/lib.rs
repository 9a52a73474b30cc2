//! Flows: graphs of named steps that survive the death of the process that runs them.
//!
//! Owns: the order of steps, their limits, retries, deadlines and cancellation; the journal that is written before and
//! after each step; resuming; progress; and the faults with which tests prove all that ([`testing`]). Never does: knowing
//! what a step is for, undoing anything (an undo is a flow of its own), keeping secrets (outputs are stored in clear).
//!
//! A flow is a [`Kind`] with an input. Its graph is made by code each time the flow is taken up, so the same input must
//! give the same step names. Steps that the journal knows as done are not run again, and their outputs are there for
//! later steps; a step that was begun and not ended runs again, so **every step must be repeatable**. So does a step that
//! failed, when the process died before the flow had ended with it.
//!
//! Invariants:
//! - A step runs only after the journal says that it begins; a later step only after the journal says that the earlier
//!   one is done.
//! - Every journal write shows the fencing number of the flow's lease, so that two processes never advance one flow.
//! - A flow's state and what its kind writes about it ([`Kind::on_state`]) change in one transaction.
//!
//! ```no_run
//! use serde::{Deserialize, Serialize};
//! use stolos_flow::{FlowInfo, Flows, Graph, Kind, Step, StepError};
//! use stolos_base::ids::AgentId;
//!
//! #[derive(Serialize, Deserialize)]
//! struct CreateMachines { names: Vec<String> }
//!
//! struct Create { /* clients of the outside world */ }
//!
//! impl Kind for Create {
//!     const NAME: &'static str = "create machines";
//!     type Input = CreateMachines;
//!
//!     async fn graph(&self, _flow: &FlowInfo, input: CreateMachines) -> Result<Graph, StepError> {
//!         let mut graph = Graph::new();
//!         let lease = graph.add(Step::new("Lease network", |_ctx| async { Ok("10.117.1.0/24".to_owned()) }));
//!         let at_once = graph.group("machine creation", 5);
//!         for name in input.names {
//!             let network = lease.clone();
//!             graph.add(
//!                 Step::new(format!("Create VM {name}"), move |ctx| {
//!                     let network = network.clone();
//!                     async move {
//!                         let network: String = ctx.output(&network)?;
//!                         let agent: AgentId = ctx.derive_id("agent"); // the same one in every attempt and life
//!                         ctx.progress(format!("creating {agent} in {network}"));
//!                         Ok(agent)
//!                     }
//!                 })
//!                 .after(&lease)
//!                 .within(&at_once),
//!             );
//!         }
//!         Ok(graph)
//!     }
//! }
//!
//! # async fn example(db: stolos_store::Db) -> Result<(), stolos_flow::Error> {
//! let flows = Flows::builder(db, "stolosd").kind(Create {}).start();
//! let id = flows.submit::<Create>("demo", &CreateMachines { names: vec!["m/0".into()] }).await?;
//! let end = flows.wait(id).await?;
//! # Ok(())
//! # }
//! ```

mod attempt;
mod context;
mod engine;
mod error;
mod event;
pub mod faults;
mod graph;
mod journal;
mod kind;
mod live;
mod run;
mod slots;
pub mod testing;
mod view;

pub use crate::context::{StepContext, StepError};
pub use crate::engine::{Builder, Flows, NewFlow, News};
pub use crate::error::{Error, Result};
pub use crate::event::{Event, EventKind, Observer};
pub use crate::graph::{DEFAULT_DEADLINE, Graph, Group, Interrupt, OnFailure, Retry, Step, StepRef};
pub use crate::journal::TABLES;
pub use crate::kind::{Change, Failure, FlowInfo, FlowState, Kind};
pub use crate::view::{Filter, FlowSummary, FlowView, StepState, StepView};
