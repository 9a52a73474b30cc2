//! What is about many clusters, or about every word of the command line: on simulated machines.

mod backups;
mod browser;
mod command_line;
mod fairness;
mod members;
mod restore;
mod transcripts;
