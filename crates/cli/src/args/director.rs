//! The words for the director.

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct CancelDirectorTask {
    /// Its number.
    pub(crate) id: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Configs {
    /// `cloud` or `resurrection`.
    #[arg(value_name = "TYPE")]
    pub(crate) kind: String,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteConfig {
    /// `cloud` or `resurrection`.
    #[arg(value_name = "TYPE")]
    pub(crate) kind: String,
    /// Its name, as in `stolos configs TYPE`.
    pub(crate) name: String,
    /// Ask nothing.
    #[arg(long)]
    pub(crate) non_interactive: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteDisk {
    /// Its CID, as in `stolos orphaned-disks`.
    pub(crate) cid: String,
    /// Ask nothing.
    #[arg(long)]
    pub(crate) non_interactive: bool,
    /// Wait for the end.
    #[arg(long)]
    pub(crate) wait: bool,
}
