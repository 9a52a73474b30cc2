//! What the agent is told about itself: the CPI's file, and what the director changed since.

use stolos_base::files;
use stolos_mbus::settings::{Settings, UpdateSettings};

use crate::error::{Error, Result};
use crate::paths::Paths;

/// Reads both and gives what counts.
///
/// # Errors
/// When the CPI's file is missing or either cannot be read.
pub fn read(paths: &Paths) -> Result<Settings> {
    let path = paths.settings();
    let read: Option<Settings> = files::read_json(&path).map_err(Error::file("read", &path))?;
    let mut settings = read.ok_or_else(|| Error::file("find", path)(std::io::ErrorKind::NotFound.into()))?;
    let path = paths.updated_settings();
    let update: Option<UpdateSettings> = files::read_json(&path).map_err(Error::file("read", path))?;
    if let Some(update) = update {
        if let Some(mbus) = update.mbus {
            settings.env.bosh.mbus = Some(mbus);
        }
        if !update.blobstores.is_empty() {
            settings.env.bosh.blobstores = update.blobstores;
        }
    }
    Ok(settings)
}
