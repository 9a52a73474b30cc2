//! The images as a node's containerd keeps them: unpacked, named, pinned.
//!
//! containerd itself makes the tree: it runs once in a mount namespace of its own with its root in the cache, imports
//! the archives into the namespace `k8s.io` and ends. What belongs to that one run (its identity, its tasks) is
//! removed, so any number of nodes can begin with the tree. Nothing in it depends on the device or the path.
//!
//! The layers' compressed blobs are kept: containerd's CRI part takes no image after a start whose blobs are not all there,
//! even if it is unpacked (`internal/cri/server/images/check.go` of containerd 2.4).
//!
//! A node need not copy much: in its own tree, `snapshots/N/fs` of the snapshotter and the blobs may be symbolic links into
//! this one, because lower layers and blobs are only read. Then 0.3 MB are copied.

use std::process::Child;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use stolos_base::files::remove_tree_if_there;

use crate::builder::Upstream;
use crate::cache::{Artefact, Cache, Inputs};
use crate::error::{Error, Result, file};
use crate::images::ImageArchive;
use crate::programs::Program;
use crate::progress::{Event, Progress};
use crate::run;

const HINT: &str = "Install the distribution's package `util-linux`.";

/// Everything else in containerd's root is about one run of it.
const KEPT: &[&str] = &[
    "io.containerd.content.v1.content",
    "io.containerd.metadata.v1.bolt",
    "io.containerd.snapshotter.v1.overlayfs",
];

pub(crate) fn make(
    cache: &Cache,
    progress: &dyn Progress,
    images: &[ImageArchive],
    containerd: &Upstream,
) -> Result<Artefact> {
    let mut inputs = Inputs::new().text("making", "1").text(
        "containerd",
        Program::at(&containerd.program("containerd"))?.sha256,
    );
    for image in images {
        inputs = inputs.text(format!("image {}", image.name), &image.sha256);
    }
    cache.get("images-seed", "system", &inputs, progress, |root| {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot("the store of container images"));
        }
        let daemon = Daemon::start(containerd, root)?;
        for image in images {
            progress.event(&Event::Step {
                what: "images-seed system",
                text: &image.name,
            });
            daemon.ctr(
                &["images", "import", "--local", "--snapshotter", "overlayfs"],
                |ctr| {
                    // What CRI would set itself at the first start of every node, and what keeps kubelet's garbage
                    // collection away.
                    ctr.args(["--label", "io.cri-containerd.image=managed"])
                        .args(["--label", "io.cri-containerd.pinned=pinned"])
                        .arg(&image.path);
                },
            )?;
        }
        // Deleting a lease and waiting for it runs containerd's own garbage collection.
        daemon.ctr(&["leases", "create", "--id", "end"], |_| {})?;
        daemon.ctr(&["leases", "delete", "--sync", "end"], |_| {})?;
        daemon.stop()?;
        for entry in root.read_dir_utf8().map_err(file("read", root))? {
            let entry = entry.map_err(file("read", root))?;
            if !KEPT.contains(&entry.file_name()) {
                remove_tree_if_there(entry.path()).map_err(file("remove", entry.path()))?;
            }
        }
        Ok(())
    })
}

/// A containerd that runs for a moment. Dropped without [`Daemon::stop`], it is killed.
struct Daemon {
    child: Child,
    ctr: Utf8PathBuf,
    /// Holds the socket, the configuration and the log. A short path: a socket's has at most 107 bytes.
    directory: camino_tempfile::Utf8TempDir,
}

impl Daemon {
    fn start(containerd: &Upstream, root: &Utf8Path) -> Result<Self> {
        let directory = camino_tempfile::Builder::new()
            .prefix("stolos-seed-")
            .tempdir()
            .map_err(file("create", "a temporary directory"))?;
        let config = directory.path().join("config.toml");
        fs_err::write(&config, configuration(root, directory.path())).map_err(file("write", &config))?;
        let log = directory.path().join("log");
        let open = fs_err::File::create(&log).map_err(file("create", &log))?;
        let second = open.try_clone().map_err(file("create", &log))?;
        // None of these forks, so the child's id is containerd's.
        let mut command = run::bound("unshare", HINT)?;
        command
            .args(["--mount", "--propagation", "private"])
            .arg(containerd.program("containerd"))
            .arg("--config")
            .arg(&config)
            .stdout(open.into_file())
            .stderr(second.into_file());
        let mut daemon = Self {
            child: run::start(&mut command, HINT)?,
            ctr: containerd.program("ctr"),
            directory,
        };
        daemon.wait_until_ready()?;
        Ok(daemon)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if self.ctr(&["version"], |_| {}).is_ok() {
                return Ok(());
            }
            let ended = self
                .child
                .try_wait()
                .map_err(file("wait for", "containerd"))?
                .is_some();
            if ended || Instant::now() > deadline {
                let log = fs_err::read_to_string(self.directory.path().join("log")).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                return Err(Error::ContainerdNotReady {
                    output: lines[lines.len().saturating_sub(20)..].join("\n"),
                });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn ctr(&self, arguments: &[&str], more: impl FnOnce(&mut std::process::Command)) -> Result<()> {
        let mut ctr = run::command(self.ctr.as_str());
        ctr.arg("--address")
            .arg(self.directory.path().join("sock"))
            .args(["--namespace", "k8s.io"])
            .args(arguments);
        more(&mut ctr);
        run::run(&mut ctr, HINT, |_| {})
    }

    /// Ends it so that its databases are closed.
    fn stop(mut self) -> Result<()> {
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::TERM,
        )
        .map_err(|errno| file("end", "containerd")(errno.into()))?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if self
                .child
                .try_wait()
                .map_err(file("wait for", "containerd"))?
                .is_some()
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(file("end", "containerd")(std::io::Error::from(
            std::io::ErrorKind::TimedOut,
        )))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail when it has ended and was waited for, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(root: &Utf8Path, run: &Utf8Path) -> String {
    format!(
        r#"version = 3
root = {root:?}
state = "{run}/state"
disabled_plugins = [
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.grpc.v1.cri",
  "io.containerd.nri.v1.nri",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.native",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{run}/sock"
[ttrpc]
address = "{run}/ttrpc"
"#,
        root = root.as_str(),
    )
}
