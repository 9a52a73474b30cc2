//! Persistent disks: where they are, mounting them, moving data to another one.

use std::collections::BTreeMap;

use stolos_base::files;
use stolos_mbus::settings::DiskHint;

use crate::error::{Error, Result};
use crate::paths::Paths;
use crate::platform::Platform;

type Hints = BTreeMap<String, DiskHint>;

fn hints(paths: &Paths) -> Result<Hints> {
    let path = paths.disk_hints();
    Ok(files::read_json(&path).map_err(Error::file("read", path))?.unwrap_or_default())
}

fn write(paths: &Paths, hints: &Hints) -> Result<()> {
    let path = paths.disk_hints();
    files::write_json(&path, hints, 0o600).map_err(Error::file("write", path))
}

/// Remembers where a disk is.
pub(crate) fn add(paths: &Paths, cid: &str, hint: DiskHint) -> Result<()> {
    if hint.path().is_none() {
        return Err(Error::Disk { cid: cid.to_owned(), problem: "its hint names no path".to_owned() });
    }
    let mut all = hints(paths)?;
    all.insert(cid.to_owned(), hint);
    write(paths, &all)
}

/// Forgets a disk.
pub(crate) fn remove(paths: &Paths, cid: &str) -> Result<()> {
    let mut all = hints(paths)?;
    all.remove(cid);
    write(paths, &all)
}

/// Mounts a disk at the store; beside it when another disk is there, to be migrated to.
pub(crate) fn mount(paths: &Paths, platform: &dyn Platform, cid: &str) -> Result<()> {
    let device = device(paths, cid)?;
    let failed = |source| Error::Platform { what: format!("mount disk `{cid}`"), source };
    let store = paths.store();
    let target = match platform.mounted(&store).map_err(failed)? {
        Some(there) if there != device => paths.migration_target(),
        _ => store,
    };
    platform.mount(&device, &target).map_err(failed)
}

/// Unmounts a disk wherever it is; says what it did in BOSH's words.
pub(crate) fn unmount(paths: &Paths, platform: &dyn Platform, cid: &str) -> Result<String> {
    let device = device(paths, cid)?;
    let failed = |source| Error::Platform { what: format!("unmount disk `{cid}`"), source };
    for target in [paths.store(), paths.migration_target()] {
        if platform.mounted(&target).map_err(failed)?.as_deref() == Some(device.as_str()) {
            platform.unmount(&target).map_err(failed)?;
            return Ok(format!("Unmounted partition of {{\"path\":\"{device}\"}}"));
        }
    }
    Ok(format!("Partition of {{\"path\":\"{device}\"}} is not mounted"))
}

/// The disks that are mounted.
pub(crate) fn mounted(paths: &Paths, platform: &dyn Platform) -> Result<Vec<String>> {
    let failed = |source| Error::Platform { what: "list mounted disks".to_owned(), source };
    let mut devices = Vec::new();
    for target in [paths.store(), paths.migration_target()] {
        devices.extend(platform.mounted(&target).map_err(failed)?);
    }
    let all = hints(paths)?;
    Ok(all.into_iter().filter(|(_, hint)| devices.iter().any(|d| hint.path() == Some(d))).map(|(cid, _)| cid).collect())
}

/// Copies the store to the disk beside it and puts that in its place.
pub(crate) fn migrate(paths: &Paths, platform: &dyn Platform) -> Result<()> {
    let (store, target) = (paths.store(), paths.migration_target());
    let failed = |what: &'static str| move |source| Error::Platform { what: what.to_owned(), source };
    let Some(new) = platform.mounted(&target).map_err(failed("look at the new disk"))? else {
        return Err(Error::Refused("there is no second disk to migrate to".to_owned()));
    };
    platform.copy_tree(&store, &target).map_err(failed("copy the store"))?;
    platform.unmount(&target).map_err(failed("unmount the new disk"))?;
    platform.unmount(&store).map_err(failed("unmount the old disk"))?;
    platform.mount(&new, &store).map_err(failed("mount the new disk"))
}

/// After a boot: mounts the disk that the spec's instance had. More than one known disk means a migration was cut off; then
/// the director decides.
pub(crate) fn mount_known(paths: &Paths, platform: &dyn Platform) -> Result<()> {
    let all = hints(paths)?;
    let mut cids = all.keys();
    match (cids.next(), cids.next()) {
        (Some(only), None) => mount(paths, platform, only),
        _ => Ok(()),
    }
}

fn device(paths: &Paths, cid: &str) -> Result<String> {
    let hint = hints(paths)?.remove(cid).ok_or_else(|| Error::NoDisk(cid.to_owned()))?;
    hint.path().map(str::to_owned).ok_or_else(|| Error::NoDisk(cid.to_owned()))
}
