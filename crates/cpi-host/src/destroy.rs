//! Removing every trace of an instance's machines from the host, and proving it.

use std::io;

use stolos_base::files;

use crate::error::{Doing as _, Error, Result};
use crate::host::{Host, names};
use crate::{cgroup, net, nft};

impl Host {
    /// Stops every machine and takes everything off the host that is there for it, sysctls included. The files stay, and
    /// with them what should run: `stolos-hostd` starts it again. `stolos-hostd` has to be stopped before.
    ///
    /// # Errors
    /// What could not be stopped or removed, and [`Error::Left`] with all that is there nevertheless.
    pub fn stop_all(&self) -> Result<()> {
        for machine in self.machines()? {
            let _lock = self.lock_machine(&machine.cid)?;
            self.stop(&machine)?;
        }
        self.clear_host()?;
        self.release()?;
        match self.left()? {
            left if left.is_empty() => Ok(()),
            left => Err(Error::Left(left)),
        }
    }

    /// Removes what carries the instance's name on the host itself.
    fn clear_host(&self) -> Result<()> {
        // What follows finds what no record names: a damaged or foreign state of affairs.
        let parent = self.instance().cgroup();
        cgroup::kill(&parent)?;
        cgroup::remove(&parent)?;
        self.thaw_abandoned()?;
        net::with(async |net| {
            for link in net::names(&net).await? {
                if self.is_own_link(&link) {
                    net::remove(&net, &link).await?;
                }
            }
            Ok(())
        })?;
        for (_, file) in self.own_loops()? {
            if let Some(cid) = file.file_stem() {
                self.release_loop(&cid.into())?;
            }
        }
        nft::remove_table(self.instance())?;
        for mount in self.own_mounts()? {
            match rustix::mount::unmount(&*mount, rustix::mount::UnmountFlags::DETACH) {
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
                other => other.doing(|| format!("unmount `{mount}`"))?,
            }
        }
        Ok(())
    }

    /// Removes every machine, link, bridge, cgroup, loop device, rule and run-time file of the instance, and puts changed
    /// sysctls back. Disks, snapshots and stemcells are data and stay. `stolos-hostd` has to be stopped before.
    ///
    /// # Errors
    /// What could not be removed, and [`Error::Left`] with all that is there nevertheless.
    pub fn destroy_all(&self) -> Result<()> {
        for name in names(&self.instance().machines())? {
            if !name.starts_with('.') {
                self.delete_vm(&name.into())?;
            }
        }
        self.remove_leftovers()?;
        self.clear_host()?;
        for dir in [
            self.instance().machines(),
            self.runtime_root(),
            self.instance().run().join("locks"),
        ] {
            files::remove_tree_if_there(&dir).doing(|| format!("remove `{dir}`"))?;
        }
        self.release()?;
        match self.left()? {
            left if left.is_empty() => Ok(()),
            left => Err(Error::Left(left)),
        }
    }

    /// Everything on the host that carries the instance's name: nothing after [`Host::destroy_all`].
    ///
    /// # Errors
    /// When the host cannot be asked.
    pub fn left(&self) -> Result<Vec<String>> {
        let mut left = cgroup::left(&self.instance().cgroup())?;
        net::with(async |net| {
            let links = net::names(&net).await?;
            let own = links.into_iter().filter(|link| self.is_own_link(link));
            left.extend(own.map(|link| format!("link `{link}`")));
            Ok(())
        })?;
        left.extend(
            self.own_loops()?
                .iter()
                .map(|(device, file)| format!("loop device {} of `{file}`", device.minor)),
        );
        left.extend(self.own_mounts()?.iter().map(|mount| format!("mount `{mount}`")));
        if nft::has_table(self.instance())? {
            left.push(format!("table `{}`", self.instance().nft_table()));
        }
        Ok(left)
    }

    /// Bridges are `NAME-SEG`, links `NAMEv` and six hex digits.
    fn is_own_link(&self, link: &str) -> bool {
        let Some(rest) = link.strip_prefix(self.instance().name.as_str()) else {
            return false;
        };
        let is_machine = |tag: &str| tag.len() == 6 && tag.bytes().all(|b| b.is_ascii_hexdigit());
        rest.starts_with('-') || rest.strip_prefix('v').is_some_and(is_machine)
    }

    /// Mounts below the instance's directory in the host's namespace, innermost first. There should never be any.
    fn own_mounts(&self) -> Result<Vec<String>> {
        let table = "/proc/self/mountinfo";
        let text = fs_err::read_to_string(table).doing(|| format!("read `{table}`"))?;
        let machines = self.instance().machines();
        let mut mounts: Vec<String> = text
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .filter(|point| camino::Utf8Path::new(point).starts_with(&machines))
            .map(str::to_owned)
            .collect();
        mounts.reverse();
        Ok(mounts)
    }

    /// Makes the bridge of the host's own network, with the address that the instance's services listen on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ensure_host_network(&self, network: ipnet::Ipv4Net) -> Result<()> {
        self.prepare()?;
        let _shared = self.lock_shared()?;
        nft::add_segment(self.instance(), &network.trunc().to_string())?;
        net::bridge_now(
            &self.instance().bridge("mgmt"),
            network.addr(),
            network.prefix_len(),
        )
    }

    /// Adds a /32 to the host's own network, or finds it there.
    ///
    /// # Errors
    /// When the bridge is not there.
    pub fn add_host_address(&self, address: std::net::Ipv4Addr) -> Result<()> {
        let bridge = self.instance().bridge("mgmt");
        net::with(async |net| match net::index(&net, &bridge).await? {
            Some(_) => net::add_address(&net, &bridge, address).await,
            None => Err(Error::io(
                format!("give the host the address {address}"),
                io::Error::new(io::ErrorKind::NotFound, format!("there is no bridge `{bridge}`")),
            )),
        })
    }

    /// Takes a /32 from the host's own network; one that is not there is as good as taken.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_host_address(&self, address: std::net::Ipv4Addr) -> Result<()> {
        let bridge = self.instance().bridge("mgmt");
        net::with(async |net| net::remove_address(&net, &bridge, address).await)
    }
}
