//! Persistent disks: sparse files, seen as loop devices while attached; and their snapshots.

use std::io::{self, Seek as _};
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{CWD, FileType, Mode, OFlags, SeekFrom, copy_file_range, makedev, mknodat, open, seek};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stolos_base::files;
use stolos_base::process::Process;
use stolos_cpi::{CloudProperties, DiskCid, Kind, Metadata, SnapshotCid, VmCid};

use crate::error::{Doing as _, Error, Result};
use crate::host::{Host, is_plain, names};
use crate::machines::space_mib;
use crate::power::Device;
use crate::record::{Disk, Machine};

/// The largest disk in MiB: 16 TiB, the largest file of ext4.
const LARGEST: u64 = 16 << 20;
/// How long a disk may stay in use after its machine has ended or its agent has unmounted it: the kernel unmounts what a
/// dead mount namespace held in the background.
const IN_USE_PATIENCE: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(10);

/// `snapshots/.frozen-DISK.json`: a file system that is stopped while its disk is copied.
#[derive(Debug, Serialize, Deserialize)]
struct Frozen {
    init: Process,
    at: Utf8PathBuf,
}

impl Host {
    /// Makes a disk. The same call id gives the same disk.
    ///
    /// # Errors
    /// When there is no space, or the size is none.
    pub fn create_disk(
        &self,
        size: u64,
        properties: &CloudProperties,
        call: Option<&str>,
    ) -> Result<DiskCid> {
        if size == 0 || size > LARGEST {
            let text = format!("a disk has from 1 to {LARGEST} MiB, not {size}");
            return Err(Error::refuse(Kind::CloudError, text));
        }
        let cid = DiskCid(self.new_name("disk", call));
        let _lock = self.lock_disk(cid.as_str())?;
        if self.has_disk(&cid) {
            return Ok(cid);
        }
        let disks = self.instance().disks();
        // What an attempt that was killed left goes first, so that a refusal leaves nothing.
        let part = disks.join(format!(".{cid}.part"));
        for left in [&part, &self.disk_record(&cid)] {
            files::remove_if_there(left).doing(|| format!("remove `{left}`"))?;
        }
        self.check_space(size)?;
        let disk = Disk {
            size,
            cloud_properties: properties.clone(),
            metadata: Metadata::new(),
        };
        let what = || format!("make disk `{cid}`");
        fs_err::create_dir_all(&disks).doing(what)?;
        files::write_json(&self.disk_record(&cid), &disk, 0o600).doing(what)?;
        // The image comes last and whole: it is the disk.
        let file = fs_err::File::create(&part).doing(what)?;
        file.set_len(size << 20)
            .and_then(|()| file.sync_all())
            .doing(what)?;
        fs_err::rename(&part, self.image(&cid)).doing(what)?;
        Ok(cid)
    }

    /// Removes a disk that is attached nowhere.
    ///
    /// # Errors
    /// When it is attached.
    pub fn delete_disk(&self, cid: &DiskCid) -> Result<()> {
        if !is_plain(cid.as_str()) {
            return Ok(());
        }
        let _lock = self.lock_disk(cid.as_str())?;
        if let Some(vm) = self.holder(cid)? {
            let text = format!("disk `{cid}` is attached to machine `{vm}`");
            return Err(Error::refuse(Kind::CloudError, text));
        }
        self.release_loop(cid)?;
        for path in [
            self.image(cid),
            self.disk_record(cid),
            self.lock_path(cid.as_str()),
        ] {
            files::remove_if_there(&path).doing(|| format!("remove `{path}`"))?;
        }
        Ok(())
    }

    /// Whether the disk is there.
    #[must_use]
    pub fn has_disk(&self, cid: &DiskCid) -> bool {
        is_plain(cid.as_str()) && self.image(cid).exists()
    }

    /// Attaches a disk, to a running machine at once; gives the hint for its agent.
    ///
    /// # Errors
    /// When the machine or the disk is not there, or the disk is attached elsewhere.
    pub fn attach_disk(&self, vm: &VmCid, cid: &DiskCid) -> Result<Value> {
        let _machine = self.lock_machine(vm)?;
        let mut machine = self.need(vm)?;
        self.need_disk(cid)?;
        let _disk = self.lock_disk(cid.as_str())?;
        if let Some(other) = self.holder(cid)?.filter(|other| other != vm) {
            let text = format!("disk `{cid}` is attached to machine `{other}`");
            return Err(Error::refuse(Kind::CloudError, text));
        }
        if machine.disks.insert(cid.clone()) {
            self.save(&machine)?;
        }
        if let Some(init) = self.init(vm)? {
            let device = self.loop_of(cid)?;
            show(&init, cid, device)?;
        }
        self.update_settings(&machine)?;
        Ok(json!({"path": format!("/dev/stolos/{cid}")}))
    }

    /// Detaches a disk that is no longer mounted. One that is not attached is as good as detached.
    ///
    /// # Errors
    /// When it stays mounted.
    pub fn detach_disk(&self, vm: &VmCid, cid: &DiskCid) -> Result<()> {
        if !is_plain(vm.as_str()) || !is_plain(cid.as_str()) || self.machine(vm)?.is_none() {
            return Ok(());
        }
        let _machine = self.lock_machine(vm)?;
        let Some(mut machine) = self.machine(vm)?.filter(|machine| machine.disks.contains(cid)) else {
            return Ok(());
        };
        let _disk = self.lock_disk(cid.as_str())?;
        self.release_loop(cid)?;
        if let Some(init) = self.init(vm)? {
            let node = node_path(&init, cid);
            files::remove_if_there(&node).doing(|| format!("take disk `{cid}` from machine `{vm}`"))?;
        }
        machine.disks.remove(cid);
        self.save(&machine)?;
        self.update_settings(&machine)
    }

    /// The disks attached to a machine.
    ///
    /// # Errors
    /// When it is not there.
    pub fn get_disks(&self, vm: &VmCid) -> Result<Vec<DiskCid>> {
        Ok(self.need(vm)?.disks.into_iter().collect())
    }

    /// Records whose disk it is.
    ///
    /// # Errors
    /// When it is not there.
    pub fn set_disk_metadata(&self, cid: &DiskCid, metadata: &Metadata) -> Result<()> {
        self.need_disk(cid)?;
        let _lock = self.lock_disk(cid.as_str())?;
        self.change_record(cid, |disk| disk.metadata = metadata.clone())
    }

    /// Grows a detached disk.
    ///
    /// # Errors
    /// When it is attached, would shrink, or there is no space.
    pub fn resize_disk(&self, cid: &DiskCid, size: u64) -> Result<()> {
        self.need_disk(cid)?;
        let _lock = self.lock_disk(cid.as_str())?;
        let path = self.image(cid);
        let what = || format!("resize disk `{cid}`");
        let before = fs_err::metadata(&path).doing(what)?.len() >> 20;
        if let Some(vm) = self.holder(cid)? {
            let text =
                format!("disk `{cid}` is attached to machine `{vm}`; only a detached disk can be resized");
            return Err(Error::refuse(Kind::CloudError, text));
        }
        if size < before || size > LARGEST {
            let text = format!(
                "disk `{cid}` of {before} MiB can grow to {LARGEST} MiB and not shrink, so {size} cannot be"
            );
            return Err(Error::refuse(Kind::CloudError, text));
        }
        self.check_space(size - before)?;
        let file = fs_err::OpenOptions::new().write(true).open(&path).doing(what)?;
        file.set_len(size << 20)
            .and_then(|()| file.sync_all())
            .doing(what)?;
        self.change_record(cid, |disk| disk.size = size)
    }

    /// Copies a disk as it is now. File systems of it that a machine has mounted are stopped meanwhile, so that the copy is
    /// one of an instant. The same call id gives the same snapshot.
    ///
    /// # Errors
    /// When the disk is not there or there is no space.
    pub fn snapshot_disk(
        &self,
        cid: &DiskCid,
        metadata: &Metadata,
        call: Option<&str>,
    ) -> Result<SnapshotCid> {
        self.need_disk(cid)?;
        let _lock = self.lock_disk(cid.as_str())?;
        self.thaw(cid)?;
        let snapshots = self.instance().snapshots();
        let snapshot = SnapshotCid(self.new_name("snap", call));
        let (whole, part) = (
            self.snapshot(&snapshot),
            snapshots.join(format!(".{snapshot}.part")),
        );
        if whole.exists() {
            return Ok(snapshot);
        }
        let what = || format!("copy disk `{cid}` to snapshot `{snapshot}`");
        fs_err::create_dir_all(&snapshots).doing(what)?;
        let used = fs_err::metadata(self.image(cid)).doing(what)?.blocks() >> 11;
        self.check_space(used)?;
        let note = json!({"disk": cid, "metadata": metadata});
        files::write_json(&snapshots.join(format!("{snapshot}.json")), &note, 0o600).doing(what)?;
        let frozen = self.freeze(cid)?;
        let copied = copy_sparse(&self.image(cid), &part);
        if frozen {
            self.thaw(cid)?;
        }
        copied.doing(what)?;
        fs_err::rename(&part, &whole).doing(what)?;
        Ok(snapshot)
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// Any error of the file system.
    pub fn delete_snapshot(&self, cid: &SnapshotCid) -> Result<()> {
        if !is_plain(cid.as_str()) {
            return Ok(());
        }
        let note = self.instance().snapshots().join(format!("{cid}.json"));
        let part = self.instance().snapshots().join(format!(".{cid}.part"));
        for path in [self.snapshot(cid), note, part] {
            files::remove_if_there(&path).doing(|| format!("remove `{path}`"))?;
        }
        Ok(())
    }

    /// Lets go on what a snapshot stopped whose process was killed meanwhile. For `stolos-hostd`, again and again.
    ///
    /// # Errors
    /// When a file system cannot be let go.
    pub fn thaw_abandoned(&self) -> Result<()> {
        for name in names(&self.instance().snapshots())? {
            let disk = name
                .strip_prefix(".frozen-")
                .and_then(|rest| rest.strip_suffix(".json"));
            let Some(disk) = disk else { continue };
            let path = self.lock_path(disk);
            let free =
                stolos_base::lock::FileLock::try_acquire(&path).doing(|| format!("lock disk `{disk}`"))?;
            if free.is_some() {
                self.thaw(&DiskCid::from(disk))?;
            }
        }
        Ok(())
    }

    fn freeze(&self, cid: &DiskCid) -> Result<bool> {
        let Some(device) = self.attached_loop(cid)? else {
            return Ok(false);
        };
        let Some(vm) = self.holder(cid)? else {
            return Ok(false);
        };
        let Some(init) = self.init(&vm)? else {
            return Ok(false);
        };
        let Some(point) = mount_point(&init, device)? else {
            return Ok(false);
        };
        let at = Utf8PathBuf::from(format!("/proc/{}/root{point}", init.pid));
        let marker = self.frozen(cid);
        files::write_json(&marker, &Frozen { init, at: at.clone() }, 0o600)
            .doing(|| format!("write `{marker}`"))?;
        run("fsfreeze", &["--freeze", at.as_str()]).map(|()| true)
    }

    fn thaw(&self, cid: &DiskCid) -> Result<()> {
        let marker = self.frozen(cid);
        let frozen: Option<Frozen> = files::read_json(&marker).doing(|| format!("read `{marker}`"))?;
        let Some(frozen) = frozen else { return Ok(()) };
        if frozen.init.is_alive() {
            // It may not have come to the freezing; thawing what is not frozen fails, which is fine then.
            if let Err(error) = run("fsfreeze", &["--unfreeze", frozen.at.as_str()]) {
                tracing::debug!(disk = %cid, %error, "nothing to let go");
            }
        }
        files::remove_if_there(&marker).doing(|| format!("remove `{marker}`"))
    }

    /// The machine that has the disk.
    fn holder(&self, cid: &DiskCid) -> Result<Option<VmCid>> {
        let found = self
            .machines()?
            .into_iter()
            .find(|machine: &Machine| machine.disks.contains(cid));
        Ok(found.map(|machine| machine.cid))
    }

    /// The loop device of a disk, made if there is none.
    pub(crate) fn loop_of(&self, cid: &DiskCid) -> Result<Device> {
        if let Some(device) = self.attached_loop(cid)? {
            return Ok(device);
        }
        let image = self.image(cid);
        // Without direct I/O every block would be cached twice; file systems that cannot do it have to.
        let direct = run("losetup", &["--find", "--direct-io=on", image.as_str()]);
        if direct.is_err() && self.attached_loop(cid)?.is_none() {
            run("losetup", &["--find", image.as_str()])?;
        }
        self.attached_loop(cid)?.ok_or_else(|| Error::Program {
            what: format!("attach disk `{cid}`"),
            detail: "no loop device has it".to_owned(),
        })
    }

    fn attached_loop(&self, cid: &DiskCid) -> Result<Option<Device>> {
        let image = self.image(cid);
        Ok(loops()?
            .into_iter()
            .find(|(_, file)| *file == image)
            .map(|(device, _)| device))
    }

    /// Frees the loop device of a disk once nothing has it mounted.
    pub(crate) fn release_loop(&self, cid: &DiskCid) -> Result<()> {
        let start = Instant::now();
        while let Some(device) = self.attached_loop(cid)? {
            let path = format!("/dev/loop{}", device.minor);
            // Exclusive opening fails as long as a file system on the device is mounted anywhere.
            match open(
                &*path,
                OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC,
                Mode::empty(),
            ) {
                Ok(_) => run("losetup", &["--detach", &path])?,
                Err(rustix::io::Errno::BUSY) if start.elapsed() > IN_USE_PATIENCE => {
                    return Err(stolos_cpi::Error::retryable(
                        Kind::CloudError,
                        format!("disk `{cid}` is still mounted"),
                    )
                    .into());
                }
                Err(rustix::io::Errno::BUSY | rustix::io::Errno::NXIO) => {}
                Err(error) => return Err(Error::io(format!("open `{path}`"), error)),
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Loop devices of the instance's disks, by file.
    pub(crate) fn own_loops(&self) -> Result<Vec<(Device, Utf8PathBuf)>> {
        let root = &self.instance().root;
        Ok(loops()?
            .into_iter()
            .filter(|(_, file)| file.starts_with(root))
            .collect())
    }

    fn need_disk(&self, cid: &DiskCid) -> Result<()> {
        if self.has_disk(cid) {
            return Ok(());
        }
        let text = format!("disk `{cid}` does not exist");
        Err(Error::refuse(Kind::DiskNotFound, text))
    }

    fn check_space(&self, wanted: u64) -> Result<()> {
        let root = &self.instance().root;
        let (free, _) = space_mib(root)?;
        if wanted <= free {
            return Ok(());
        }
        let text = format!("{wanted} MiB do not fit below `{root}`, which has {free} MiB free");
        Err(Error::refuse(Kind::NoDiskSpace, text))
    }

    fn change_record(&self, cid: &DiskCid, change: impl FnOnce(&mut Disk)) -> Result<()> {
        let path = self.disk_record(cid);
        let what = || format!("record disk `{cid}`");
        let mut disk: Disk = files::read_json(&path).doing(what)?.unwrap_or_default();
        change(&mut disk);
        files::write_json(&path, &disk, 0o600).doing(what)
    }

    /// `PREFIX-UUID`, the same one for the same call id.
    fn new_name(&self, prefix: &str, call: Option<&str>) -> String {
        let id = match call {
            None => self.ids.next(),
            Some(call) => {
                let digest = digest::digest(&digest::SHA256, format!("{prefix}/{call}").as_bytes());
                let mut bytes = [0; 16];
                bytes.copy_from_slice(&digest.as_ref()[..16]);
                uuid::Builder::from_custom_bytes(bytes).into_uuid()
            }
        };
        format!("{prefix}-{id}")
    }

    fn image(&self, cid: &DiskCid) -> Utf8PathBuf {
        self.instance().disks().join(format!("{cid}.img"))
    }

    fn disk_record(&self, cid: &DiskCid) -> Utf8PathBuf {
        self.instance().disks().join(format!("{cid}.json"))
    }

    fn snapshot(&self, cid: &SnapshotCid) -> Utf8PathBuf {
        self.instance().snapshots().join(format!("{cid}.img"))
    }

    fn frozen(&self, cid: &DiskCid) -> Utf8PathBuf {
        self.instance().snapshots().join(format!(".frozen-{cid}.json"))
    }
}

/// All loop devices in use with their files. Numbers are the host's and change; files are ours.
fn loops() -> Result<Vec<(Device, Utf8PathBuf)>> {
    let mut found = Vec::new();
    for name in names("/sys/block".into())? {
        let Some(minor) = name.strip_prefix("loop").and_then(|rest| rest.parse().ok()) else {
            continue;
        };
        let path = format!("/sys/block/{name}/loop/backing_file");
        match fs_err::read_to_string(&path) {
            Ok(text) => {
                let file = text.trim_end().trim_end_matches(" (deleted)");
                found.push((Device { major: 7, minor }, file.into()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(format!("read `{path}`"), error)),
        }
    }
    Ok(found)
}

fn node_path(init: &Process, cid: &DiskCid) -> Utf8PathBuf {
    format!("/proc/{}/root/dev/stolos/{cid}", init.pid).into()
}

/// Makes the device appear in a running machine.
fn show(init: &Process, cid: &DiskCid, device: Device) -> Result<()> {
    let path = node_path(init, cid);
    let what = || format!("show disk `{cid}` in the machine");
    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent).doing(what)?;
    }
    let number = makedev(device.major, device.minor);
    if let Ok(there) = fs_err::metadata(&path) {
        if there.rdev() == number {
            return Ok(());
        }
        files::remove_if_there(&path).doing(what)?;
    }
    mknodat(
        CWD,
        path.as_str(),
        FileType::BlockDevice,
        Mode::from(0o660),
        number,
    )
    .doing(what)
}

/// Where a machine has the device mounted.
fn mount_point(init: &Process, device: Device) -> Result<Option<String>> {
    let path = format!("/proc/{}/mountinfo", init.pid);
    let text = fs_err::read_to_string(&path).doing(|| format!("read `{path}`"))?;
    let number = format!("{}:{}", device.major, device.minor);
    Ok(text.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        (fields.next()? == number).then_some(())?;
        fields.nth(1).map(str::to_owned)
    }))
}

/// Copies data and keeps holes; a file system that can share blocks does so.
fn copy_sparse(from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
    let source = fs_err::File::open(from)?.into_file();
    let target = fs_err::File::create(to)?.into_file();
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut at = 0;
    while at < length {
        let start = match seek(&source, SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => break,
            other => other?,
        };
        let end = seek(&source, SeekFrom::Hole(start))?;
        let (mut read, mut written) = (start, start);
        while read < end {
            let rest = usize::try_from(end - read).unwrap_or(usize::MAX);
            if copy_file_range(&source, Some(&mut read), &target, Some(&mut written), rest)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        at = end;
    }
    (&target).seek(io::SeekFrom::Start(0))?;
    target.sync_all()
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let what = || format!("run `{program} {}`", arguments.join(" "));
    let output = Command::new(program).args(arguments).output().doing(what)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Program {
        what: what(),
        detail: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
