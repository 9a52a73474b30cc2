//! `place-images`: a fresh node begins with images that are unpacked already.
//!
//! A seed is the root directory of a containerd that holds the images, unpacked. The two databases are copied, since the node's containerd
//! goes on writing them; everything else that is large is never written again, so a link into the seed stands for it: content blobs
//! and the directories of unpacked snapshots. When containerd drops one, it removes the link.

use std::io;
use std::os::unix::fs::symlink;

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;

use crate::note;

/// Blobs up to this size are copied: a link would take as long.
const SMALL: u64 = 16 * 1024;
/// What says that the node has a store of its own already.
const DATABASE: &str = "io.containerd.metadata.v1.bolt/meta.db";
const SNAPSHOTS: &str = "io.containerd.snapshotter.v1.overlayfs/snapshots";
/// What makes up the images. The rest of a root directory is containerd's own identity and scratch space.
const PARTS: [&str; 3] = [
    "io.containerd.content.v1.content",
    "io.containerd.metadata.v1.bolt",
    "io.containerd.snapshotter.v1.overlayfs",
];

#[derive(Args)]
pub(crate) struct PlaceImages {
    /// Root directory of the seed
    #[arg(long)]
    seed: Utf8PathBuf,
    /// Root directory of the node's containerd
    #[arg(long, default_value = "/var/lib/containerd")]
    root: Utf8PathBuf,
}

impl PlaceImages {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        if !self.seed.join(DATABASE).is_file() {
            anyhow::bail!("`{}` is no image seed: it has no `{DATABASE}`", self.seed);
        }
        if self.root.join(DATABASE).exists() {
            note("the node has images of its own already");
            return Ok(());
        }
        place(&self.seed, &self.root).with_context(|| format!("failed to place the seed `{}`", self.seed))
    }
}

/// Places the seed. The database goes last, so that an interrupted attempt is done again.
fn place(seed: &Utf8Path, root: &Utf8Path) -> io::Result<()> {
    let mut pending: Vec<Utf8PathBuf> = PARTS.iter().map(Utf8PathBuf::from).collect();
    while let Some(directory) = pending.pop() {
        fs_err::create_dir_all(root.join(&directory))?;
        for entry in seed.join(&directory).read_dir_utf8()? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() && directory != SNAPSHOTS {
                pending.push(path);
            } else if path != DATABASE {
                place_one(
                    &seed.join(&path),
                    &root.join(&path),
                    kind.is_dir(),
                    entry.metadata()?.len(),
                )?;
            }
        }
    }
    let target = root.join(DATABASE);
    let temporary = target.with_extension("new");
    fs_err::copy(seed.join(DATABASE), &temporary)?;
    fs_err::rename(temporary, target)
}

fn place_one(from: &Utf8Path, to: &Utf8Path, is_directory: bool, size: u64) -> io::Result<()> {
    stolos_base::files::remove_if_there(to)?;
    let is_database = from.extension() == Some("db");
    if is_directory || (size > SMALL && !is_database) {
        symlink(from, to)
    } else {
        fs_err::copy(from, to).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_placed_once_and_never_written() {
        let dir = camino_tempfile::tempdir().expect("a directory");
        let (seed, root) = (dir.path().join("seed"), dir.path().join("root"));
        let write = |path: &str, content: &[u8]| {
            let path = seed.join(path);
            fs_err::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs_err::write(path, content).expect("a file");
        };
        write(DATABASE, b"meta");
        write("io.containerd.snapshotter.v1.overlayfs/metadata.db", &[7; 40_000]);
        write(
            "io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs/pause",
            b"program",
        );
        write("io.containerd.content.v1.content/blobs/sha256/small", b"{}");
        write(
            "io.containerd.content.v1.content/blobs/sha256/large",
            &[1; 40_000],
        );
        let command = || PlaceImages {
            seed: seed.clone(),
            root: root.clone(),
        };
        command().run().expect("placed");
        let is_link = |path: &str| root.join(path).is_symlink();
        assert!(!is_link(DATABASE) && !is_link("io.containerd.snapshotter.v1.overlayfs/metadata.db"));
        assert!(is_link("io.containerd.snapshotter.v1.overlayfs/snapshots/1"));
        assert!(is_link("io.containerd.content.v1.content/blobs/sha256/large"));
        assert!(!is_link("io.containerd.content.v1.content/blobs/sha256/small"));
        let inside = root.join("io.containerd.snapshotter.v1.overlayfs/snapshots/1/fs/pause");
        assert_eq!(fs_err::read(inside).expect("through the link"), b"program");

        fs_err::write(root.join(DATABASE), b"changed").expect("the node's own database");
        command().run().expect("nothing to do");
        assert_eq!(
            fs_err::read(root.join(DATABASE)).expect("the database"),
            b"changed"
        );
        assert_eq!(fs_err::read(seed.join(DATABASE)).expect("the seed"), b"meta");
    }

    #[test]
    fn an_interrupted_attempt_is_done_again() {
        let dir = camino_tempfile::tempdir().expect("a directory");
        let (seed, root) = (dir.path().join("seed"), dir.path().join("root"));
        let database = seed.join(DATABASE);
        fs_err::create_dir_all(database.parent().expect("a parent")).expect("a directory");
        fs_err::write(&database, b"meta").expect("a file");
        fs_err::create_dir_all(seed.join(SNAPSHOTS).join("1")).expect("a snapshot");
        fs_err::create_dir_all(seed.join(PARTS[0])).expect("no blobs");
        fs_err::create_dir_all(root.join(SNAPSHOTS)).expect("a half-made root");
        symlink(seed.join(SNAPSHOTS).join("1"), root.join(SNAPSHOTS).join("1"))
            .expect("a link of the first attempt");
        place(&seed, &root).expect("placed");
        assert!(root.join(DATABASE).is_file());
    }
}
