//! The session file, `creds.yml`.
//!
//! It lies in `$PKS_HOME`, else in `$HOME/.pks`, because pipelines of PKS users copy it between workers and read
//! `access_token` from it: its place and keys are public surface.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use stolos_base::files;

use crate::failure::Failure;

/// The bits of a mode that let others than the owner in.
const OTHERS: u32 = 0o077;

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

/// Writes the session, readable by the user alone; through symbolic links.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn save(session: &Session) -> Result<(), Failure> {
    save_to(&path()?, session)
}

fn save_to(path: &Utf8Path, session: &Session) -> Result<(), Failure> {
    let write = || -> std::io::Result<()> {
        if let Some(parent) = path.parent() {
            fs_err::create_dir_all(parent)?;
        }
        // Each value but certificates is on the line of its key, for scripts that cut the file up.
        let text = stolos_document::to_yaml(session).map_err(std::io::Error::other)?;
        // A file that somebody made beforehand keeps its mode otherwise.
        if let Ok(old) = fs_err::metadata(path)
            && old.is_file()
            && old.permissions().mode() & OTHERS != 0
        {
            fs_err::set_permissions(
                path,
                Permissions::from_mode(old.permissions().mode() & !OTHERS & 0o7777),
            )?;
        }
        files::write_through(path, text.as_bytes(), 0o600)
    };
    write().map_err(|error| Failure::user(format!("failed to write the session file `{path}`: {error}")))
}

/// Removes the session file: of a symbolic link, what it leads to, because that is where the tokens are.
///
/// # Errors
/// When the file cannot be removed.
pub(crate) fn remove() -> Result<(), Failure> {
    let path = path()?;
    files::target(&path)
        .and_then(|target| files::remove_if_there(&target))
        .map_err(|error| Failure::user(format!("failed to remove the session file `{path}`: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `login` put a file in the place of a link, and the file that it led to kept the old tokens.
    #[test]
    fn a_linked_session_file_stays_a_link() {
        let dir = camino_tempfile::tempdir().expect("a temporary directory");
        let (link, real) = (dir.path().join("creds.yml"), dir.path().join("real.yml"));
        fs_err::write(&real, "api: https://old\n").expect("a file");
        fs_err::set_permissions(&real, Permissions::from_mode(0o644)).expect("a mode");
        fs_err::os::unix::fs::symlink("real.yml", &link).expect("a link");
        let session = Session {
            api: "https://new".to_owned(),
            ..Session::default()
        };
        save_to(&link, &session).expect("a session");
        assert!(fs_err::symlink_metadata(&link).expect("metadata").is_symlink());
        let text = fs_err::read_to_string(&real).expect("the file");
        assert!(text.contains("https://new"), "{text}");
        let mode = fs_err::metadata(&real).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "tokens are for their owner alone");
    }
}
