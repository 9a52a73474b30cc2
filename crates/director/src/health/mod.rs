//! The health of machines: who is a suspect, who is dead, and what is done about it.
//!
//! Owns: listening to heartbeats, alerts and the host; asking suspects; deciding about repairs ([`judge`], pure); beginning them; saying all of it as
//! events. Never does: repairing (that is a task like any other, [`crate::flows::Repair`]), or anything to a machine that lives.
//!
//! Every member of an installation listens for itself. What follows from it is done under one lease, inside whose transactions the repair's task is
//! written, so that two members, or one that was paused, never begin the same repair twice. While all is well nothing is written; who was silent for a
//! moment is asked whether it is there, and that is all.

pub(crate) mod alerts;
pub(crate) mod judge;
mod metrics;
mod monitor;
pub(crate) mod problems;
#[cfg(test)]
mod simulation;

pub(crate) mod switches;
pub(crate) mod webhook;

pub(crate) use monitor::Health;
