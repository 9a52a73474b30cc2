//! Persistent disks: where they are, mounting them, moving data to another one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use stolos_base::files;
use stolos_mbus::settings::{DiskHint, Settings};

use crate::apply::component;
use crate::error::{Error, Result};
use crate::paths::Paths;
use crate::platform::{Content, Platform};

/// How long an attached disk may take to appear.
const APPEAR_LIMIT: Duration = Duration::from_secs(10);
/// How long a disk may be busy: the last process that used it may only just be ending.
const BUSY_LIMIT: Duration = Duration::from_secs(20);
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(100);

type Hints = BTreeMap<String, DiskHint>;

/// The disk that belongs at the store: what is mounted there after a boot.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Managed {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    disk_cid: Option<String>,
}

/// All disk calls of one agent.
pub(crate) struct Disks<'a> {
    pub(crate) paths: &'a Paths,
    pub(crate) settings: &'a Settings,
    pub(crate) platform: &'a dyn Platform,
}

impl Disks<'_> {
    fn hints(&self) -> Result<Hints> {
        let path = self.paths.disk_hints();
        Ok(files::read_json(&path)
            .map_err(Error::file("read", path))?
            .unwrap_or_default())
    }

    fn write_hints(&self, hints: &Hints) -> Result<()> {
        let path = self.paths.disk_hints();
        files::write_json(&path, hints, 0o600).map_err(Error::file("write", path))
    }

    /// Those that the director told us of, and those that the machine was made with.
    fn known(&self) -> Result<Hints> {
        let mut all: Hints = self
            .settings
            .disks
            .persistent
            .iter()
            .map(|(cid, hint)| (cid.clone(), hint.clone()))
            .collect();
        all.extend(self.hints()?);
        Ok(all)
    }

    /// Remembers where a disk is.
    pub(crate) fn add(&self, cid: &str, hint: DiskHint) -> Result<()> {
        component(cid)?;
        if hint.path().is_none() {
            return Err(Error::Disk {
                cid: cid.to_owned(),
                problem: "its hint names no path".to_owned(),
            });
        }
        let mut all = self.hints()?;
        all.insert(cid.to_owned(), hint);
        self.write_hints(&all)
    }

    /// Forgets a disk.
    pub(crate) fn remove(&self, cid: &str) -> Result<()> {
        let mut all = self.hints()?;
        all.remove(cid);
        self.write_hints(&all)?;
        if self.managed()?.as_deref() == Some(cid) {
            self.manage(None)?;
        }
        Ok(())
    }

    fn managed(&self) -> Result<Option<String>> {
        let path = self.paths.managed_disk();
        let managed: Option<Managed> = files::read_json(&path).map_err(Error::file("read", path))?;
        Ok(managed.and_then(|managed| managed.disk_cid))
    }

    fn manage(&self, cid: Option<&str>) -> Result<()> {
        let path = self.paths.managed_disk();
        let managed = Managed {
            disk_cid: cid.map(str::to_owned),
        };
        files::write_json(&path, &managed, 0o600).map_err(Error::file("write", path))
    }

    /// Mounts a disk at the store; beside it when another disk is there, to be migrated to.
    pub(crate) fn mount(&self, cid: &str) -> Result<()> {
        let device = self.device(cid)?;
        let failed = failed(format!("mount disk `{cid}`"));
        let store = self.paths.store();
        let target = match self.platform.mounted(&store).map_err(&failed)? {
            Some(there) if there != device => self.paths.migration_target(),
            _ => store.clone(),
        };
        if self.platform.mounted(&target).map_err(&failed)?.as_deref() != Some(&device) {
            self.wait_for(cid, &device)?;
            self.format_if_blank(cid, &device)?;
            self.platform.mount(&device, &target).map_err(&failed)?;
        }
        if target == store {
            self.manage(Some(cid))?;
        }
        Ok(())
    }

    fn wait_for(&self, cid: &str, device: &str) -> Result<()> {
        let start = Instant::now();
        while !self.platform.has_device(device) {
            if start.elapsed() > APPEAR_LIMIT {
                return Err(Error::Disk {
                    cid: cid.to_owned(),
                    problem: format!("there is no device `{device}`"),
                });
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// A disk is only ever formatted when it is blank, or when a former attempt to format it was cut off: that is journalled,
    /// since what such an attempt leaves looks like anything.
    fn format_if_blank(&self, cid: &str, device: &str) -> Result<()> {
        let mark = self.paths.formatting(component(cid)?);
        let content = self
            .platform
            .content(device)
            .map_err(failed(format!("look at disk `{cid}`")))?;
        match content {
            Content::FileSystem if !mark.exists() => return Ok(()),
            Content::Blank | Content::FileSystem => {}
            Content::Other if mark.exists() => {}
            Content::Other => {
                return Err(Error::Disk {
                    cid: cid.to_owned(),
                    problem: "it is neither blank nor has a file system of ours; it is left alone".to_owned(),
                });
            }
        }
        files::write_atomic(&mark, b"", 0o600).map_err(Error::file("write", &mark))?;
        self.platform
            .format(device)
            .map_err(failed(format!("format disk `{cid}`")))?;
        files::remove_if_there(&mark).map_err(Error::file("remove", mark))
    }

    /// Unmounts a disk wherever it is; says what it did in BOSH's words.
    pub(crate) fn unmount(&self, cid: &str) -> Result<String> {
        let device = self.device(cid)?;
        let failed = failed(format!("unmount disk `{cid}`"));
        for target in [self.paths.store(), self.paths.migration_target()] {
            if self.platform.mounted(&target).map_err(&failed)?.as_deref() == Some(device.as_str()) {
                self.unmount_patiently(&target).map_err(&failed)?;
                if self.managed()?.as_deref() == Some(cid) {
                    self.manage(None)?;
                }
                return Ok(format!("Unmounted partition of {{\"path\":\"{device}\"}}"));
            }
        }
        Ok(format!("Partition of {{\"path\":\"{device}\"}} is not mounted"))
    }

    fn unmount_patiently(&self, target: &camino::Utf8Path) -> std::io::Result<()> {
        let start = Instant::now();
        loop {
            match self.platform.unmount(target) {
                Err(error)
                    if error.kind() == std::io::ErrorKind::ResourceBusy && start.elapsed() < BUSY_LIMIT =>
                {
                    std::thread::sleep(LOOK);
                }
                result => return result,
            }
        }
    }

    /// The disks that are mounted.
    pub(crate) fn mounted(&self) -> Result<Vec<String>> {
        let mut devices = Vec::new();
        for target in [self.paths.store(), self.paths.migration_target()] {
            let mounted = self.platform.mounted(&target);
            devices.extend(mounted.map_err(failed("list mounted disks".to_owned()))?);
        }
        let all = self.known()?;
        Ok(all
            .into_iter()
            .filter(|(_, hint)| devices.iter().any(|device| hint.path() == Some(device)))
            .map(|(cid, _)| cid)
            .collect())
    }

    /// Copies the store to the disk beside it and puts that in its place. Cut off and done again, it does what is missing.
    pub(crate) fn migrate(&self) -> Result<()> {
        let (store, target) = (self.paths.store(), self.paths.migration_target());
        let new = self
            .platform
            .mounted(&target)
            .map_err(failed("look at the new disk".to_owned()))?;
        let Some(new) = new else {
            return Err(Error::Refused("there is no second disk to migrate to".to_owned()));
        };
        let known = self.known()?;
        let cid = known
            .iter()
            .find(|(_, hint)| hint.path() == Some(new.as_str()))
            .map(|(cid, _)| cid.clone());
        let copied = self.platform.copy_tree(&store, &target);
        copied.map_err(failed("copy the store".to_owned()))?;
        // From here on the new one is whole, and after a boot it is the one to mount.
        self.manage(cid.as_deref())?;
        self.unmount_patiently(&target)
            .map_err(failed("unmount the new disk".to_owned()))?;
        self.unmount_patiently(&store)
            .map_err(failed("unmount the old disk".to_owned()))?;
        self.platform
            .mount(&new, &store)
            .map_err(failed("mount the new disk".to_owned()))
    }

    /// After a boot: mounts the disk that was at the store, or the one that the machine was made with. `needed` says that
    /// there has to be one: jobs must not begin with an empty directory where their data were.
    pub(crate) fn mount_known(&self, needed: bool) -> Result<()> {
        let cid = match self.managed()? {
            Some(cid) => Some(cid),
            None => {
                let mut known = self.known()?.into_keys();
                match (known.next(), known.next()) {
                    (only, None) => only,
                    // Which one holds the data is the director's to say.
                    (_, Some(_)) => None,
                }
            }
        };
        match cid {
            Some(cid) => self.mount(&cid),
            None if needed => Err(Error::Refused(
                "it is not known which persistent disk belongs to the store".to_owned(),
            )),
            None => Ok(()),
        }
    }

    fn device(&self, cid: &str) -> Result<String> {
        let known = self.known()?;
        let hint = known.get(cid).ok_or_else(|| Error::NoDisk(cid.to_owned()))?;
        hint.path()
            .map(str::to_owned)
            .ok_or_else(|| Error::NoDisk(cid.to_owned()))
    }
}

fn failed(what: String) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Platform {
        what: what.clone(),
        source,
    }
}
