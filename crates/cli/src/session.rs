//! The session file, `creds.yml`.
//!
//! It lies in `$PKS_HOME`, else in `$HOME/.pks`, because pipelines of PKS users copy it between workers and read
//! `access_token` from it: its place and keys are public surface.

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};
use stolos_base::files;

use crate::failure::Failure;

/// What a login leaves behind. The tokens are secrets: the file has mode 0600, and `Debug` hides them.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Session {
    /// Base address of the PKS API.
    pub(crate) api: String,
    /// Base address of the token service.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) identity: String,
    /// Who is logged in.
    #[serde(default)]
    pub(crate) username: String,
    /// Trusted certificates, PEM; empty for those of the operating system.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) ca_cert: String,
    /// Whether servers are not verified.
    #[serde(default)]
    pub(crate) skip_ssl_verification: bool,
    /// Sent with each request; lives for minutes.
    #[serde(default)]
    pub(crate) access_token: String,
    /// Gets the next access token; lives for hours. Absent for clients.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) refresh_token: String,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("api", &self.api)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Where the session file lies.
///
/// # Errors
/// When neither `PKS_HOME` nor `HOME` is set.
pub(crate) fn path() -> Result<Utf8PathBuf, Failure> {
    let directory = match (std::env::var("PKS_HOME"), std::env::var("HOME")) {
        (Ok(dir), _) if !dir.is_empty() => Utf8PathBuf::from(dir),
        (_, Ok(home)) if !home.is_empty() => Utf8PathBuf::from(home).join(".pks"),
        _ => {
            return Err(Failure::user(
                "neither PKS_HOME nor HOME is set, so there is no place for the session file",
            ));
        }
    };
    Ok(directory.join("creds.yml"))
}

/// Reads the session.
///
/// # Errors
/// When nobody is logged in, or the file cannot be read.
pub(crate) fn load() -> Result<Session, Failure> {
    let path = path()?;
    match fs_err::read_to_string(&path) {
        Ok(text) => {
            let session: Session = stolos_document::from_yaml(&text).map_err(|error| {
                Failure::user(format!("failed to read the session file `{path}`: {error}"))
                    .hint("Log in again with `stolos login`.")
            })?;
            if session.access_token.is_empty() {
                Err(Failure::not_logged_in())
            } else {
                Ok(session)
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Failure::not_logged_in()),
        Err(error) => Err(Failure::user(format!("failed to read the session file: {error}"))),
    }
}

/// Writes the session, readable by the user alone.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn save(session: &Session) -> Result<(), Failure> {
    let path = path()?;
    let write = || -> std::io::Result<()> {
        if let Some(parent) = path.parent() {
            fs_err::create_dir_all(parent)?;
        }
        // Each value but certificates is on the line of its key, for scripts that cut the file up.
        let text = stolos_document::to_yaml(session).map_err(std::io::Error::other)?;
        files::write_atomic(&path, text.as_bytes(), 0o600)
    };
    write().map_err(|error| Failure::user(format!("failed to write the session file `{path}`: {error}")))
}
