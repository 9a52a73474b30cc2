//! An instance of its own for a test, with a stemcell whose init is `stolos-machine-probe`.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::print_stderr,
    reason = "each test binary uses its part; skips are told on stderr"
)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use camino_tempfile::Utf8TempDir;
use serde_json::json;
use stolos_base::ids::{AgentId, random_hex};
use stolos_base::{IdSource, Instance, poll};
use stolos_cpi::{CreateVm, Networks, StemcellCid, VmCid};
use stolos_cpi_host::{Config, Host};

pub struct Bench {
    pub dir: Utf8TempDir,
    pub host: Host,
    pub ids: IdSource,
    pub subnet: [u8; 3],
}

/// Why machines cannot be had here, if so.
pub fn why_not() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("it needs root".to_owned());
    }
    let missing: Vec<&str> = ["runc", "nft", "losetup", "fsfreeze", "mkfs.ext4"]
        .into_iter()
        .filter(|program| {
            let path = std::env::var("PATH").unwrap_or_default();
            !path
                .split(':')
                .any(|dir| Utf8Path::new(dir).join(program).exists())
        })
        .collect();
    (!missing.is_empty()).then(|| format!("missing programs: {}", missing.join(", ")))
}

impl Bench {
    /// `None`, and why on stderr, where machines cannot be had.
    pub fn new() -> Option<Self> {
        if let Some(why) = why_not() {
            eprintln!("skipped: {why}");
            return None;
        }
        let dir = camino_tempfile::tempdir().expect("a directory");
        let random = random_hex(3);
        let bytes = hex::decode(&random).expect("hex");
        // Away from the ranges of instances, pods and services.
        let subnet = [10, 140 + bytes[0] % 50, bytes[1]];
        let instance = Instance {
            name: format!("t{random}").parse().expect("a name"),
            root: dir.path().join("instance"),
        };
        let config = Config::new(instance);
        stolos_base::files::write_json(&dir.path().join("config.json"), &config, 0o600)
            .expect("a configuration");
        let bench = Self {
            dir,
            host: Host::new(config, IdSource::random()),
            ids: IdSource::random(),
            subnet,
        };
        bench.make_image();
        Some(bench)
    }

    pub fn config(&self) -> Utf8PathBuf {
        self.dir.path().join("config.json")
    }

    pub fn image(&self) -> Utf8PathBuf {
        self.dir.path().join("image")
    }

    fn make_image(&self) {
        let root = self.dir.path().join("image-root");
        for dir in ["sbin", "etc", "var/vcap/bosh", "proc", "sys", "dev", "run", "tmp"] {
            fs_err::create_dir_all(root.join(dir)).expect("a directory");
        }
        let init = root.join("sbin/init");
        fs_err::copy(env!("CARGO_BIN_EXE_stolos-machine-probe"), &init).expect("init");
        fs_err::set_permissions(&init, std::fs::Permissions::from_mode(0o755)).expect("a mode");
        fs_err::write(root.join("var/vcap/bosh/from-stemcell"), "yes").expect("a file");
        let mut tar = tar::Builder::new(fs_err::File::create(self.image()).expect("a file"));
        tar.follow_symlinks(false);
        tar.append_dir_all(".", &root).expect("a tar");
        tar.finish().expect("a tar");
        fs_err::remove_dir_all(root).expect("removed");
    }

    pub fn stemcell(&self) -> StemcellCid {
        self.host.create_stemcell(&self.image()).expect("a stemcell")
    }

    pub fn address(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, last)
    }

    pub fn networks(&self, last: u8) -> Networks {
        serde_json::from_value(json!({"default": {
            "type": "manual", "ip": self.address(last), "prefix": "24", "netmask": "255.255.255.0",
            "gateway": self.address(1), "default": ["dns", "gateway"], "dns": [], "cloud_properties": {"segment": "c1"},
        }}))
        .expect("networks")
    }

    pub fn request(&self, stemcell: &StemcellCid, last: u8) -> CreateVm {
        let properties = json!({"cpu": 1, "ram": 128, "ephemeral_disk_size": 256, "pids": 200});
        CreateVm {
            agent_id: AgentId::new(&self.ids),
            stemcell: stemcell.clone(),
            cloud_properties: properties.as_object().cloned().expect("an object"),
            networks: self.networks(last),
            disks: vec![],
            env: json!({"bosh": {"mbus": {"cert": {"private_key": "a key"}}}}),
        }
    }

    /// Sends a command to the init of the machine with this address.
    pub fn ask(&self, last: u8, command: &str) -> String {
        ask(self.address(last), command).unwrap_or_else(|error| panic!("`{command}` to .{last}: {error}"))
    }

    pub fn until_up(&self, last: u8) {
        block_on(poll::until(
            "the machine",
            Duration::from_millis(10),
            Duration::from_secs(60),
            || async {
                ask(self.address(last), "report")
                    .map(drop)
                    .map_err(|error| error.to_string())
            },
        ))
        .expect("it is up");
    }

    pub fn pid(&self, cid: &VmCid) -> Option<i32> {
        self.host.init(cid).expect("the record").map(|init| init.pid)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Err(error) = self.host.destroy_all() {
            eprintln!("failed to clean up: {}", stolos_base::chain(&error));
        }
    }
}

pub fn ask(address: Ipv4Addr, command: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, 7)), Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(format!("{command}\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Runs a future of a test; the host's own functions block and are called outside of it.
pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Runtime::new()
        .expect("a runtime")
        .block_on(future)
}
