//! Why a method failed. The text becomes the exception that the director sees.

use camino::Utf8PathBuf;

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A method failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written.
    #[error("failed to {what} `{path}`")]
    File {
        /// What was done.
        what: &'static str,
        /// The file.
        path: Utf8PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The machine did not do as asked.
    #[error("failed to {what}")]
    Platform {
        /// What was asked of it.
        what: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A blob cannot be had.
    #[error("failed to fetch {what}")]
    Fetch {
        /// Which.
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A blob is not what it should be.
    #[error("failed to install {what}")]
    Install {
        /// Which.
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A newer spec was applied before.
    #[error("the spec has generation {offered}, but generation {applied} was applied already")]
    Stale {
        /// What came.
        offered: u64,
        /// What there is.
        applied: u64,
    },
    /// Scripts failed; BOSH's words.
    #[error("{failed} of {total} {script} scripts failed. Failed Jobs: {failed_jobs}.{good}")]
    Scripts {
        /// Which script.
        script: String,
        /// How many failed.
        failed: usize,
        /// How many there were.
        total: usize,
        /// Whose failed.
        failed_jobs: String,
        /// ` Successful Jobs: …` or nothing.
        good: String,
    },
    /// The persistent disk is not known; BOSH's words.
    #[error("Persistent disk with volume id '{0}' could not be found")]
    NoDisk(String),
    /// A disk cannot be used.
    #[error("disk `{cid}` cannot be used: {problem}")]
    Disk {
        /// The disk.
        cid: String,
        /// Why.
        problem: String,
    },
    /// What a job says about its processes is not valid.
    #[error("`{path}` is not valid: {problem}")]
    Processes {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        problem: String,
    },
    /// A method's arguments make no sense here.
    #[error("{0}")]
    Refused(String),
    /// A blob could not be stored.
    #[error("failed to store {what}")]
    Store {
        /// Which.
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Requests do not reach us.
    #[error("failed to listen on the bus")]
    Listen(#[source] stolos_mbus::transport::Error),
    /// Somebody cancelled it.
    #[error("the task was canceled")]
    Canceled,
}

impl Error {
    /// An error of a file.
    pub(crate) fn file(
        what: &'static str,
        path: impl Into<Utf8PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}
