//! Stemcells: a root file system, unpacked once, the lower layer of every machine made from it.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};

use aws_lc_rs::digest;
use camino::{Utf8Path, Utf8PathBuf};
use flate2::read::MultiGzDecoder;
use stolos_base::files;
use stolos_base::lock::FileLock;
use stolos_cpi::{Kind, StemcellCid};

use crate::error::{Doing as _, Error, Result};
use crate::host::{Host, is_plain};

/// The format that `info` names: a tar of a root file system, plain or gzip.
pub(crate) const FORMAT: &str = "stolos-rootfs";

impl Host {
    /// Unpacks an image. Its digest is its name, so the same image is the same stemcell.
    ///
    /// # Errors
    /// When the image cannot be read or is no tar.
    pub fn create_stemcell(&self, image: &Utf8Path) -> Result<StemcellCid> {
        let what = || format!("read the stemcell image `{image}`");
        let cid = StemcellCid(format!("sc-{}", &digest_of(image).doing(what)?[..20]));
        let lock = self.lock_path(cid.as_str());
        let _lock = FileLock::acquire(&lock).doing(|| format!("lock stemcell `{cid}`"))?;
        let dir = self.instance().stemcells().join(cid.as_str());
        if dir.is_dir() {
            return Ok(cid);
        }
        let part = self.instance().stemcells().join(format!(".{cid}.part"));
        files::remove_tree_if_there(&part).doing(|| format!("remove `{part}`"))?;
        if let Err(error) = unpack(image, &part.join("rootfs")) {
            files::remove_tree_if_there(&part).doing(|| format!("remove `{part}`"))?;
            return Err(Error::io(format!("unpack the stemcell image `{image}`"), error));
        }
        if part.join("rootfs/sbin/init").symlink_metadata().is_err() {
            files::remove_tree_if_there(&part).doing(|| format!("remove `{part}`"))?;
            let text = format!("the stemcell image `{image}` has no /sbin/init");
            return Err(Error::refuse(Kind::CloudError, text));
        }
        // The name must not reach the disk before the content.
        let root = File::open(&part).doing(what)?;
        rustix::fs::syncfs(&root).doing(|| format!("sync `{part}`"))?;
        fs_err::rename(&part, &dir).doing(|| format!("rename `{part}`"))?;
        Ok(cid)
    }

    /// Removes a stemcell. Machines made from it need it to start again, so it stays while there are any.
    ///
    /// # Errors
    /// When machines use it.
    pub fn delete_stemcell(&self, cid: &StemcellCid) -> Result<()> {
        if !is_plain(cid.as_str()) {
            return Ok(());
        }
        let _shared = self.lock_shared()?;
        if let Some(machine) = self
            .machines()?
            .into_iter()
            .find(|machine| machine.stemcell == *cid)
        {
            let text = format!("stemcell `{cid}` is in use by machine `{}`", machine.cid);
            return Err(Error::refuse(Kind::CloudError, text));
        }
        let dir = self.instance().stemcells().join(cid.as_str());
        let away = self.instance().stemcells().join(format!(".{cid}.removed"));
        files::remove_tree_if_there(&away).doing(|| format!("remove `{away}`"))?;
        match std::fs::rename(&dir, &away) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.doing(|| format!("rename `{dir}`"))?,
        }
        files::remove_tree_if_there(&away).doing(|| format!("remove `{away}`"))?;
        let lock = self.lock_path(cid.as_str());
        files::remove_if_there(&lock).doing(|| format!("remove `{lock}`"))
    }

    pub(crate) fn stemcell_root(&self, cid: &StemcellCid) -> Utf8PathBuf {
        // A name from outside must not lead elsewhere; this one is never there.
        let name = if is_plain(cid.as_str()) {
            cid.as_str()
        } else {
            ".none"
        };
        self.instance().stemcells().join(name).join("rootfs")
    }
}

fn digest_of(image: &Utf8Path) -> io::Result<String> {
    let mut file = fs_err::File::open(image)?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(context.finish())),
            n => context.update(&buffer[..n]),
        }
    }
}

fn unpack(image: &Utf8Path, root: &Utf8Path) -> io::Result<()> {
    let mut file = fs_err::File::open(image)?;
    let mut magic = [0; 2];
    let is_gzip = file.read(&mut magic)? == 2 && magic == [0x1f, 0x8b];
    file.rewind()?;
    let reader = BufReader::with_capacity(1 << 18, file);
    let source: Box<dyn Read> = if is_gzip {
        Box::new(MultiGzDecoder::new(reader))
    } else {
        Box::new(reader)
    };
    let mut archive = tar::Archive::new(source);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_preserve_mtime(true);
    archive.set_overwrite(true);
    fs_err::create_dir_all(root)?;
    for entry in archive.entries()? {
        let mut entry = entry?;
        // Device nodes come from the runtime; a tar of a root file system may still have some below /dev.
        let kind = entry.header().entry_type();
        if kind.is_character_special() || kind.is_block_special() || kind.is_fifo() {
            continue;
        }
        if !entry.unpack_in(root)? {
            let path = entry.path()?.into_owned();
            return Err(io::Error::other(format!(
                "the entry `{}` leads out of it",
                path.display()
            )));
        }
    }
    Ok(())
}
