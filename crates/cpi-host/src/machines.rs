//! Making, removing and changing machines.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use aws_lc_rs::digest;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use stolos_base::{chain, files};
use stolos_cpi::{CreateVm, Kind, Metadata, Networks, VmCid};

use crate::error::{Doing as _, Error, Result};
use crate::host::{Host, MachineLock, is_plain, names};
use crate::record::{Link, Machine, Power, Size, State};
use crate::{cgroup, net, nft, wanted};

/// The segment of the instance's own services. Its bridge carries virtual addresses, so it stays with no machine on it.
const MANAGEMENT: &str = "mgmt";
/// Less free space than this below the instance's directory makes machines fail at odd places. MiB.
const LEAST_FREE: u64 = 256;

impl Host {
    /// Makes a machine and starts it, or finishes what a killed call began.
    ///
    /// # Errors
    /// A refusal, or what failed; nothing half-made stays then.
    pub fn create_vm(&self, request: &CreateVm) -> Result<(VmCid, Networks)> {
        let (size, links) = (
            wanted::size(&request.cloud_properties)?,
            wanted::links(&request.networks)?,
        );
        let cid = VmCid(format!("vm-{}", request.agent_id));
        let lock = self.lock_machine(&cid)?;
        match self.machine(&cid)? {
            Some(machine) if machine.state == State::Ready => {
                if machine.power == Power::On && self.init(&cid)?.is_none() {
                    self.start(&machine, &lock)?;
                    self.changed()?;
                }
                return Ok((cid, machine.networks));
            }
            Some(half) => self.tear_down(half)?,
            None => self.remove_dir(&cid)?,
        }
        if !self.stemcell_root(&request.stemcell).is_dir() {
            let text = format!("stemcell `{}` does not exist", request.stemcell);
            self.forget_lock(&cid)?;
            return Err(Error::refuse(Kind::VmCreationFailed, text));
        }
        let mut machine = Machine {
            cid: cid.clone(),
            agent_id: request.agent_id,
            state: State::Creating,
            power: Power::On,
            stemcell: request.stemcell.clone(),
            cloud_properties: request.cloud_properties.clone(),
            networks: request.networks.clone(),
            size,
            links,
            disks: std::collections::BTreeSet::new(),
            metadata: Metadata::new(),
        };
        if let Err(error) = self.reserve(&mut machine) {
            self.forget_lock(&cid)?;
            return Err(error);
        }
        match self.make(&mut machine, request, &lock) {
            Ok(()) => Ok((cid, machine.networks)),
            Err(error) => {
                tracing::warn!(vm = %cid, error = %chain(&error), "taking a half-made machine down");
                self.tear_down(machine)?;
                self.forget_lock(&cid)?;
                Err(error)
            }
        }
    }

    /// Ends and removes a machine; its disks stay. One that is not there is as good as removed.
    ///
    /// # Errors
    /// What could not be removed; repeating goes on from there.
    pub fn delete_vm(&self, cid: &VmCid) -> Result<()> {
        if !is_plain(cid.as_str()) {
            return Ok(());
        }
        let _lock = self.lock_machine(cid)?;
        match self.machine(cid)? {
            Some(machine) => self.tear_down(machine)?,
            None => self.remove_dir(cid)?,
        }
        self.forget_lock(cid)
    }

    /// Whether the machine is there, whole.
    ///
    /// # Errors
    /// When its record cannot be read.
    pub fn has_vm(&self, cid: &VmCid) -> Result<bool> {
        Ok(self
            .machine(cid)?
            .is_some_and(|machine| machine.state == State::Ready))
    }

    /// Stops and starts a machine.
    ///
    /// # Errors
    /// When it is not there or does not start.
    pub fn reboot_vm(&self, cid: &VmCid) -> Result<()> {
        let lock = self.lock_machine(cid)?;
        let mut machine = self.need(cid)?;
        self.set_power(&mut machine, Power::On)?;
        self.stop(&machine)?;
        self.start(&machine, &lock)?;
        self.changed()
    }

    /// Starts a machine that is to run from now on, unless it runs. Gives whether it had to be started.
    ///
    /// # Errors
    /// When it is not there or does not start.
    pub fn power_on(&self, cid: &VmCid) -> Result<bool> {
        let lock = self.lock_machine(cid)?;
        let mut machine = self.need(cid)?;
        self.set_power(&mut machine, Power::On)?;
        self.start_if_needed(&machine, &lock)
    }

    /// Starts a machine if it is whole, should run and does not: what `stolos-hostd` does again and again. Gives whether it
    /// had to be started.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restore(&self, cid: &VmCid) -> Result<bool> {
        let lock = self.lock_machine(cid)?;
        match self.machine(cid)? {
            Some(machine) if machine.state == State::Ready && machine.power == Power::On => {
                self.start_if_needed(&machine, &lock)
            }
            Some(_) => Ok(false),
            None => {
                self.forget_lock(cid)?;
                Ok(false)
            }
        }
    }

    /// Stops a machine, which then stays off.
    ///
    /// # Errors
    /// When it is not there or does not end.
    pub fn power_off(&self, cid: &VmCid) -> Result<()> {
        let _lock = self.lock_machine(cid)?;
        let mut machine = self.need(cid)?;
        self.set_power(&mut machine, Power::Off)?;
        self.stop(&machine)?;
        self.changed()
    }

    /// Records who the machine is.
    ///
    /// # Errors
    /// When it is not there.
    pub fn set_vm_metadata(&self, cid: &VmCid, metadata: &Metadata) -> Result<()> {
        let _lock = self.lock_machine(cid)?;
        let mut machine = self.need(cid)?;
        if machine.metadata != *metadata {
            machine.metadata = metadata.clone();
            self.save(&machine)?;
        }
        Ok(())
    }

    fn set_power(&self, machine: &mut Machine, power: Power) -> Result<()> {
        if machine.power != power {
            machine.power = power;
            self.save(machine)?;
        }
        Ok(())
    }

    fn start_if_needed(&self, machine: &Machine, lock: &MachineLock) -> Result<bool> {
        if self.init(&machine.cid)?.is_some() {
            return Ok(false);
        }
        self.start(machine, lock)?;
        self.changed()?;
        Ok(true)
    }

    /// Checks what depends on other machines and writes the intent, which from then on counts for them.
    fn reserve(&self, machine: &mut Machine) -> Result<()> {
        let _shared = self.lock_shared()?;
        let others = self.machines()?;
        self.check_fit(&machine.size, &others)?;
        let mut taken = Vec::new();
        for other in others.iter().filter(|other| other.cid != machine.cid) {
            for link in &other.links {
                for own in &machine.links {
                    if own.segment == link.segment && own.address == link.address {
                        let text = format!("address {} is in use by machine `{}`", own.address, other.cid);
                        return Err(Error::refuse(Kind::VmCreationFailed, text));
                    }
                }
                taken.push(link.host_end.clone());
            }
        }
        for link in &mut machine.links {
            link.host_end = choose_name(&machine.cid, link, &taken, |tag| self.instance().veth(tag));
            taken.push(link.host_end.clone());
        }
        let dir = self.dir(&machine.cid);
        for part in ["upper", "work", "rootfs", "var"] {
            let path = dir.join(part);
            fs_err::create_dir_all(&path).doing(|| format!("make `{path}`"))?;
        }
        self.save(machine)
    }

    fn check_fit(&self, size: &Size, others: &[Machine]) -> Result<()> {
        let memory = memory_mib();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let promised: u64 = others.iter().map(|machine| machine.size.ram).sum();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "MiB of memory fit; the factor is small and positive"
        )]
        let most = (memory as f64 * self.config.memory_overcommit.max(0.0)) as u64;
        let root = &self.instance().root;
        let (free, whole) = space_mib(root)?;
        let refuse = |kind, text| Err(Error::refuse(kind, text));
        if size.ram > memory {
            return refuse(
                Kind::VmCreationFailed,
                format!(
                    "a machine of {} MiB memory does not fit a host of {memory} MiB",
                    size.ram
                ),
            );
        }
        if promised.saturating_add(size.ram) > most {
            return refuse(
                Kind::VmCreationFailed,
                format!(
                    "a machine of {} MiB memory does not fit: machines of {promised} MiB are there, and at most {most} MiB \
                     are promised on a host of {memory} MiB",
                    size.ram
                ),
            );
        }
        #[expect(clippy::cast_precision_loss, reason = "a number of cores fits")]
        if size.cpu > cores as f64 {
            return refuse(
                Kind::VmCreationFailed,
                format!("a machine of {} cores does not fit a host of {cores}", size.cpu),
            );
        }
        if size.ephemeral_disk_size > whole || free < LEAST_FREE {
            return refuse(
                Kind::NoDiskSpace,
                format!(
                    "an ephemeral disk of {} MiB does not fit below `{root}`, which has {free} of {whole} MiB free",
                    size.ephemeral_disk_size
                ),
            );
        }
        Ok(())
    }

    fn make(&self, machine: &mut Machine, request: &CreateVm, lock: &MachineLock) -> Result<()> {
        let begun = std::time::Instant::now();
        let dir = self.dir(&machine.cid);
        let stemcell = self.stemcell_root(&machine.stemcell);
        copy_tree(&stemcell.join("var"), &dir.join("var")).doing(|| format!("fill `{dir}/var`"))?;
        write_identity(machine, &stemcell, &dir).doing(|| format!("write into `{dir}`"))?;
        self.write_settings(machine, &request.env)?;
        tracing::info!(vm = %machine.cid, filled_ms = begun.elapsed().as_millis(), "machine filled");
        self.start(machine, lock)?;
        machine.state = State::Ready;
        self.save(machine)?;
        self.changed()
    }

    /// What the agent reads at its start, in BOSH's shape.
    fn write_settings(&self, machine: &Machine, env: &Value) -> Result<()> {
        let agent = &self.config.agent;
        let mut networks = json!(machine.networks);
        for link in &machine.links {
            let mac = Link::mac_of(link.address)
                .map(|byte| format!("{byte:02x}"))
                .join(":");
            networks[&link.network]["mac"] = json!(mac);
            networks[&link.network]["preconfigured"] = json!(true);
        }
        let settings = json!({
            "agent_id": machine.agent_id,
            "mbus": agent.mbus.first(),
            "ntp": agent.ntp,
            "vm": {"name": machine.cid},
            "blobstore": agent.blobstore,
            "disks": {"system": null, "ephemeral": null, "persistent": persistent(machine)},
            "networks": networks,
            "env": env,
        });
        let path = self.settings(&machine.cid);
        if let Some(parent) = path.parent() {
            fs_err::create_dir_all(parent).doing(|| format!("make `{parent}`"))?;
        }
        files::write_json(&path, &settings, 0o600).doing(|| format!("write `{path}`"))
    }

    /// Brings the disks in the settings up to date, for the machine's next start.
    pub(crate) fn update_settings(&self, machine: &Machine) -> Result<()> {
        let path = self.settings(&machine.cid);
        let what = || format!("update `{path}`");
        let Some(mut settings) = files::read_json::<Value>(&path).doing(what)? else {
            return Ok(());
        };
        settings["disks"]["persistent"] = persistent(machine);
        files::write_json(&path, &settings, 0o600).doing(what)
    }

    fn settings(&self, cid: &VmCid) -> Utf8PathBuf {
        self.dir(cid).join("var/vcap/bosh/settings.json")
    }

    /// Removes all of a machine, from whatever state.
    pub(crate) fn tear_down(&self, mut machine: Machine) -> Result<()> {
        if machine.state != State::Deleting {
            machine.state = State::Deleting;
            self.save(&machine)?;
            self.changed()?;
        }
        self.clear(&machine)?;
        for disk in &machine.disks {
            self.release_loop(disk)?;
        }
        let _shared = self.lock_shared()?;
        let rest: Vec<Machine> = self
            .machines()?
            .into_iter()
            .filter(|m| m.cid != machine.cid)
            .collect();
        for link in &machine.links {
            let in_use = rest
                .iter()
                .flat_map(|m| &m.links)
                .any(|other| other.segment == link.segment);
            if !in_use && link.segment != MANAGEMENT {
                let bridge = self.instance().bridge(&link.segment);
                net::with(async |net| net::remove(&net, &bridge).await)?;
                nft::remove_segment(self.instance(), &link.range())?;
            }
        }
        if rest.is_empty() {
            cgroup::remove_if_empty(&self.instance().cgroup())?;
        }
        self.remove_dir(&machine.cid)?;
        self.changed()
    }

    /// Removes a machine's directory. It is renamed first: a record without its files would be no machine.
    fn remove_dir(&self, cid: &VmCid) -> Result<()> {
        let dir = self.dir(cid);
        let away = self.instance().machines().join(format!(".removed-{cid}"));
        files::remove_tree_if_there(&away).doing(|| format!("remove `{away}`"))?;
        match std::fs::rename(&dir, &away) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.doing(|| format!("rename `{dir}`"))?,
        }
        files::remove_tree_if_there(&away).doing(|| format!("remove `{away}`"))
    }

    /// Removes the lock file of a machine that is gone; the caller holds the lock.
    fn forget_lock(&self, cid: &VmCid) -> Result<()> {
        let path = self.lock_path(cid.as_str());
        files::remove_if_there(&path).doing(|| format!("remove `{path}`"))
    }

    /// Removes what a killed call left without a record: directories on their way out.
    pub(crate) fn remove_leftovers(&self) -> Result<()> {
        for name in names(&self.instance().machines())? {
            if name.starts_with(".removed-") {
                let path = self.instance().machines().join(name);
                files::remove_tree_if_there(&path).doing(|| format!("remove `{path}`"))?;
            }
        }
        Ok(())
    }
}

fn persistent(machine: &Machine) -> Value {
    let disks = machine.disks.iter();
    Value::Object(
        disks
            .map(|disk| (disk.to_string(), json!({"path": format!("/dev/stolos/{disk}")})))
            .collect(),
    )
}

/// A name for the host's end of a link that no other machine has.
fn choose_name(cid: &VmCid, link: &Link, taken: &[String], name: impl Fn(&str) -> String) -> String {
    let mut salt = 0_u32;
    loop {
        let text = format!("{cid}/{}/{salt}", link.inner);
        let digest = digest::digest(&digest::SHA256, text.as_bytes());
        let name = name(&hex::encode(&digest.as_ref()[..3]));
        if !taken.contains(&name) {
            return name;
        }
        salt += 1;
    }
}

/// Host name, machine id, hosts and resolver, into the upper layer of the machine's root.
fn write_identity(machine: &Machine, stemcell: &Utf8Path, dir: &Utf8Path) -> std::io::Result<()> {
    let etc = dir.join("upper/etc");
    fs_err::create_dir_all(&etc)?;
    if let Ok(metadata) = fs_err::metadata(stemcell.join("etc")) {
        fs_err::set_permissions(&etc, metadata.permissions())?;
    }
    let link = machine
        .links
        .iter()
        .find(|link| link.is_default)
        .or(machine.links.first());
    let Some(link) = link else { return Ok(()) };
    let mut servers: Vec<&str> = link
        .dns
        .iter()
        .map(String::as_str)
        .filter(|server| server.parse().is_ok_and(|ip: std::net::IpAddr| !ip.is_loopback()))
        .collect();
    let gateway = link.gateway.to_string();
    if servers.is_empty() {
        servers.push(&gateway);
    }
    let resolver: String = servers
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    let cid = &machine.cid;
    let hosts = format!(
        "127.0.0.1 localhost\n{} {cid}\n::1 localhost ip6-localhost\n",
        link.address
    );
    for (name, text) in [
        ("hostname", format!("{cid}\n")),
        ("machine-id", format!("{}\n", machine.agent_id.as_uuid().simple())),
        ("hosts", hosts),
        ("resolv.conf", resolver),
    ] {
        fs_err::write(etc.join(name), text)?;
    }
    Ok(())
}

/// Copies directories, files and symbolic links with mode and owner.
fn copy_tree(from: &Utf8Path, to: &Utf8Path) -> std::io::Result<()> {
    let entries = match from.read_dir_utf8() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let own = fs_err::symlink_metadata(from)?;
    fs_err::create_dir_all(to)?;
    std::os::unix::fs::chown(to, Some(own.uid()), Some(own.gid()))?;
    fs_err::set_permissions(to, std::fs::Permissions::from_mode(own.mode() & 0o7777))?;
    for entry in entries {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let metadata = fs_err::symlink_metadata(source)?;
        if metadata.is_dir() {
            copy_tree(source, &target)?;
            continue;
        }
        // A repeated call finds what a killed one copied.
        files::remove_if_there(&target)?;
        if metadata.is_symlink() {
            fs_err::os::unix::fs::symlink(fs_err::read_link(source)?, &target)?;
            std::os::unix::fs::lchown(&target, Some(metadata.uid()), Some(metadata.gid()))?;
        } else if metadata.is_file() {
            fs_err::copy(source, &target)?;
            std::os::unix::fs::chown(&target, Some(metadata.uid()), Some(metadata.gid()))?;
            // Changing the owner clears the set-user-id bits.
            fs_err::set_permissions(&target, std::fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
        }
    }
    Ok(())
}

fn memory_mib() -> u64 {
    let info = rustix::system::sysinfo();
    #[expect(clippy::useless_conversion, reason = "the width differs between platforms")]
    let bytes = u64::from(info.totalram).saturating_mul(u64::from(info.mem_unit));
    bytes >> 20
}

/// Free and whole space of the file system in MiB.
pub(crate) fn space_mib(path: &Utf8Path) -> Result<(u64, u64)> {
    fs_err::create_dir_all(path).doing(|| format!("make `{path}`"))?;
    let stat = rustix::fs::statvfs(path.as_std_path()).doing(|| format!("ask for the space of `{path}`"))?;
    let mib = |blocks: u64| blocks.saturating_mul(stat.f_frsize) >> 20;
    Ok((mib(stat.f_bavail), mib(stat.f_blocks)))
}
