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
        overlay(&mut settings, update);
    }
    Ok(settings)
}

/// Stores an update beside those before it; says whether something changed that counts at the agent's start only.
pub(crate) fn update(paths: &Paths, new: &UpdateSettings) -> Result<bool> {
    let path = paths.updated_settings();
    let old: Option<UpdateSettings> = files::read_json(&path).map_err(Error::file("read", &path))?;
    // What an update does not speak of stays as it is: a director may send parts.
    let mut merged = new.clone();
    if let Some(old) = old {
        merged.trusted_certs = merged.trusted_certs.or(old.trusted_certs);
        merged.mbus = merged.mbus.or(old.mbus);
        if merged.blobstores.is_empty() {
            merged.blobstores = old.blobstores;
        }
        if merged.disk_associations.is_empty() {
            merged.disk_associations = old.disk_associations;
        }
        for (key, value) in old.other {
            merged.other.entry(key).or_insert(value);
        }
    }
    let before = read(paths)?;
    files::write_json(&path, &merged, 0o600).map_err(Error::file("write", path))?;
    let mut after = before.clone();
    overlay(&mut after, merged);
    let (before, after) = (before.env.bosh, after.env.bosh);
    Ok(before.mbus != after.mbus || before.blobstores != after.blobstores)
}

fn overlay(settings: &mut Settings, update: UpdateSettings) {
    if let Some(mbus) = update.mbus {
        settings.env.bosh.mbus = Some(mbus);
    }
    if !update.blobstores.is_empty() {
        settings.env.bosh.blobstores = update.blobstores;
    }
}
