//! Tar archives, with gzip around them: safe reading and deterministic writing.
//!
//! Reading refuses what has no place in our archives (devices, pipes, sparse files) and every path that could leave the
//! directory: absolute ones, `..`, and any path one of whose parents is not a real directory. So a symbolic link in an
//! archive may point anywhere, but nothing is ever written through it. What is read is limited in bytes and entries.
//!
//! Writing is a function of names, modes and content alone: sorted by the caller or by [`Packer::tree`], time 0, owner
//! root unless told otherwise.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::rc::Rc;

use camino::{Utf8Component, Utf8Path, Utf8PathBuf};
use flate2::{Compression, GzBuilder, read::MultiGzDecoder, write::GzEncoder};
use fs_err::os::unix::fs::OpenOptionsExt as _;
use tar::{EntryType, Header};

use crate::error::{Error, Result};

const GIB: u64 = 1 << 30;

/// How much an archive may hold, uncompressed.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries of any kind.
    pub entries: u64,
    /// Bytes of the uncompressed archive.
    pub bytes: u64,
}

impl Limits {
    /// A release or stemcell tarball: few files, large ones.
    pub const RELEASE: Self = Self {
        entries: 20_000,
        bytes: 64 * GIB,
    };
    /// A job: templates only.
    pub const JOB: Self = Self {
        entries: 10_000,
        bytes: GIB / 8,
    };
    /// A package, compiled or as source.
    pub const PACKAGE: Self = Self {
        entries: 1_000_000,
        bytes: 16 * GIB,
    };
    /// A root file system.
    pub const ROOT_FILE_SYSTEM: Self = Self {
        entries: 2_000_000,
        bytes: 32 * GIB,
    };
}

/// Whose the unpacked files are, and whether special mode bits are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// The caller's; set-user-id, set-group-id and sticky bits are dropped.
    Caller,
    /// As the archive says, with all mode bits. Needs root.
    Archive,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link with its target as text; it may point anywhere.
    Symlink(String),
    /// Another name of an earlier file of the archive, given by its cleaned path.
    Hardlink(Utf8PathBuf),
}

/// One entry of an archive, checked.
pub struct Entry<'a> {
    /// Relative, without `.` and `..`, never empty.
    pub path: Utf8PathBuf,
    /// What it is.
    pub kind: Kind,
    /// All mode bits (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of content.
    pub size: u64,
    /// The content; empty unless it is a file.
    pub data: &'a mut dyn Read,
}

/// Whether to go on with the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    Continue,
    /// Enough was seen.
    Stop,
}

/// Reads a gzip-compressed tar archive entry by entry, to its very end unless `visit` stops. `archive` names it in errors.
///
/// # Errors
/// [`Error::Archive`] for damaged input, [`Error::Entry`] and [`Error::TooLarge`] for refused input, and what `visit`
/// returns.
pub fn walk<E: From<Error>>(
    archive: &str,
    compressed: impl Read,
    limits: Limits,
    mut visit: impl FnMut(Entry<'_>) -> Result<Next, E>,
) -> Result<(), E> {
    let exceeded = Rc::new(Cell::new(false));
    let limited = Limited {
        inner: MultiGzDecoder::new(BufReader::with_capacity(256 * 1024, compressed)),
        left: limits.bytes,
        exceeded: Rc::clone(&exceeded),
    };
    let too_large = || Error::TooLarge {
        limit: limits.bytes,
        unit: "bytes",
    };
    let damaged = |source: io::Error| {
        if exceeded.get() {
            return too_large();
        }
        Error::Archive {
            archive: archive.to_owned(),
            source,
        }
    };
    let mut tar = tar::Archive::new(limited);
    let mut n_entries = 0;
    for entry in tar.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        n_entries += 1;
        if n_entries > limits.entries {
            return Err(E::from(Error::TooLarge {
                limit: limits.entries,
                unit: "entries",
            }));
        }
        let shown = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let refuse = |reason| Error::Entry {
            entry: shown.clone(),
            reason,
        };
        let kind = match entry.header().entry_type() {
            EntryType::XGlobalHeader => continue,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => {
                let target = entry
                    .link_name_bytes()
                    .ok_or_else(|| refuse("a link without a target"))?;
                let target = std::str::from_utf8(&target).map_err(|_| refuse("its target is not UTF-8"))?;
                if target.is_empty() || target.contains('\0') {
                    return Err(E::from(refuse("a link without a target")));
                }
                Kind::Symlink(target.to_owned())
            }
            EntryType::Link => {
                let target = entry
                    .link_name_bytes()
                    .ok_or_else(|| refuse("a link without a target"))?;
                match clean(&target) {
                    Ok(Some(target)) => Kind::Hardlink(target),
                    _ => return Err(E::from(refuse("a hard link that leaves the archive"))),
                }
            }
            EntryType::GNUSparse => return Err(E::from(refuse("sparse files are not supported"))),
            _ => return Err(E::from(refuse("neither a file nor a directory nor a link"))),
        };
        let Some(path) = clean(&entry.path_bytes()).map_err(refuse)? else {
            // The root itself, `./`.
            continue;
        };
        let number = |value: io::Result<u64>| -> Result<u32> {
            value
                .ok()
                .and_then(|value| u32::try_from(value).ok())
                .ok_or_else(|| refuse("a broken header"))
        };
        let mode = entry.header().mode().map_err(|_| refuse("a broken header"))? & 0o7777;
        let uid = number(entry.header().uid())?;
        let gid = number(entry.header().gid())?;
        let size = if kind == Kind::File { entry.size() } else { 0 };
        let next = visit(Entry {
            path,
            kind,
            mode,
            uid,
            gid,
            size,
            data: &mut entry,
        });
        match next {
            Ok(Next::Continue) => {}
            Ok(Next::Stop) => return Ok(()),
            // What the visitor saw as a read error was our limit.
            Err(_) if exceeded.get() => return Err(E::from(too_large())),
            Err(error) => return Err(error),
        }
    }
    // Behind the last entry are the checksum and the length of everything: without them it is not whole.
    io::copy(&mut tar.into_inner(), &mut io::sink()).map_err(damaged)?;
    if exceeded.get() {
        return Err(E::from(too_large()));
    }
    Ok(())
}

/// The path of an entry: relative, nothing but names; `None` for the root itself.
fn clean(bytes: &[u8]) -> Result<Option<Utf8PathBuf>, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "its path is not UTF-8")?;
    if text.contains('\0') {
        return Err("its path holds a zero byte");
    }
    let mut cleaned = Utf8PathBuf::new();
    for component in Utf8Path::new(text).components() {
        match component {
            Utf8Component::Normal(name) => cleaned.push(name),
            Utf8Component::CurDir => {}
            Utf8Component::ParentDir => return Err("its path holds `..`"),
            Utf8Component::RootDir | Utf8Component::Prefix(_) => return Err("its path is absolute"),
        }
    }
    Ok((!cleaned.as_str().is_empty()).then_some(cleaned))
}

struct Limited<R> {
    inner: R,
    left: u64,
    exceeded: Rc<Cell<bool>>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it ends in the middle: not all of it is there",
            ),
            _ => error,
        })?;
        match self.left.checked_sub(n as u64) {
            Some(left) => {
                self.left = left;
                Ok(n)
            }
            None => {
                self.exceeded.set(true);
                Err(io::Error::other("the archive is too large"))
            }
        }
    }
}

/// Unpacks a gzip-compressed tar archive below `directory`, which is made if it is missing.
///
/// Files are replaced, directories merged. After an error the directory holds a part; whoever needs all or nothing
/// unpacks into a temporary neighbour and renames it.
///
/// # Errors
/// As [`walk`]; [`Error::Write`] when a file cannot be made.
pub fn unpack(
    archive: &str,
    compressed: impl Read,
    directory: &Utf8Path,
    limits: Limits,
    owners: Owners,
) -> Result<()> {
    fs_err::create_dir_all(directory).map_err(|source| Error::Write {
        path: directory.to_owned(),
        source,
    })?;
    let mut unpacker = Unpacker {
        root: directory.to_owned(),
        owners,
        real: BTreeSet::new(),
        modes: BTreeMap::new(),
    };
    walk(archive, compressed, limits, |entry| {
        unpacker.place(archive, entry)?;
        Ok::<_, Error>(Next::Continue)
    })?;
    unpacker.finish()
}

struct Unpacker {
    root: Utf8PathBuf,
    owners: Owners,
    /// Directories below the root that are known to be real ones and not links.
    real: BTreeSet<Utf8PathBuf>,
    /// Modes of directories are set at the end, since a directory may forbid writing.
    modes: BTreeMap<Utf8PathBuf, u32>,
}

impl Unpacker {
    fn place(&mut self, archive: &str, entry: Entry<'_>) -> Result<()> {
        let path = self.root.join(&entry.path);
        if let Some(parent) = entry.path.parent() {
            self.real_directory(parent, &entry.path)?;
        }
        let written = |source| Error::Write {
            path: path.clone(),
            source,
        };
        let refuse = |reason| Error::Entry {
            entry: entry.path.to_string(),
            reason,
        };
        if entry.kind == Kind::Directory {
            self.real_directory(&entry.path, &entry.path)?;
            self.own(&path, entry.uid, entry.gid).map_err(written)?;
            self.modes.insert(path, self.mode(entry.mode));
            return Ok(());
        }
        match fs_err::symlink_metadata(&path) {
            Ok(there) if there.is_dir() => return Err(refuse("a directory of that name is there")),
            Ok(_) => fs_err::remove_file(&path).map_err(written)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(written(error)),
        }
        match &entry.kind {
            Kind::Directory => {}
            Kind::File => {
                let mut file = fs_err::OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path)
                    .map_err(written)?;
                copy(archive, &path, entry.data, &mut file)?;
                self.own(&path, entry.uid, entry.gid).map_err(written)?;
                file.file()
                    .set_permissions(std::fs::Permissions::from_mode(self.mode(entry.mode)))
                    .map_err(written)?;
            }
            Kind::Symlink(target) => {
                fs_err::os::unix::fs::symlink(target, &path).map_err(written)?;
                self.own(&path, entry.uid, entry.gid).map_err(written)?;
            }
            Kind::Hardlink(target) => {
                if let Some(parent) = target.parent() {
                    self.real_directory(parent, &entry.path)?;
                }
                let target = self.root.join(target);
                match fs_err::symlink_metadata(&target) {
                    Ok(there) if there.is_file() => fs_err::hard_link(&target, &path).map_err(written)?,
                    _ => return Err(refuse("a hard link to something that is no file of the archive")),
                }
            }
        }
        Ok(())
    }

    /// Makes sure that `directory` (below the root) and all its parents are directories and no links.
    fn real_directory(&mut self, directory: &Utf8Path, entry: &Utf8Path) -> Result<()> {
        if directory.as_str().is_empty() || self.real.contains(directory) {
            return Ok(());
        }
        if let Some(parent) = directory.parent() {
            self.real_directory(parent, entry)?;
        }
        let path = self.root.join(directory);
        let there = match fs_err::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs_err::create_dir(&path).and_then(|()| fs_err::symlink_metadata(&path))
            }
            other => other,
        };
        match there {
            Ok(there) if there.is_dir() => {
                self.real.insert(directory.to_owned());
                Ok(())
            }
            Ok(_) => Err(Error::Entry {
                entry: entry.to_string(),
                reason: "a parent of its path is not a directory",
            }),
            Err(source) => Err(Error::Write { path, source }),
        }
    }

    fn mode(&self, mode: u32) -> u32 {
        match self.owners {
            Owners::Caller => mode & 0o777,
            Owners::Archive => mode,
        }
    }

    fn own(&self, path: &Utf8Path, uid: u32, gid: u32) -> io::Result<()> {
        match self.owners {
            Owners::Caller => Ok(()),
            Owners::Archive => fs_err::os::unix::fs::lchown(path, Some(uid), Some(gid)),
        }
    }

    fn finish(self) -> Result<()> {
        // Children before parents: a parent's mode may take away the right to reach them.
        for (path, mode) in self.modes.into_iter().rev() {
            fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode))
                .map_err(|source| Error::Write { path, source })?;
        }
        Ok(())
    }
}

/// Copies content, telling apart whose fault an error is.
pub(crate) fn copy(archive: &str, path: &Utf8Path, data: &mut dyn Read, out: &mut impl Write) -> Result<u64> {
    let mut buffer = vec![0_u8; 128 * 1024];
    let mut total = 0;
    loop {
        let n = match data.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => {
                return Err(Error::Archive {
                    archive: archive.to_owned(),
                    source,
                });
            }
        };
        out.write_all(&buffer[..n]).map_err(|source| Error::Write {
            path: path.to_owned(),
            source,
        })?;
        total += n as u64;
    }
}

/// How to compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// No gzip around it: a plain tar archive.
    Plain,
    /// In gzip's format, not compressed: what is in it is compressed already.
    Store,
    /// Gzip level 1.
    Fast,
}

/// Writes a tar archive whose bytes depend on its entries alone.
pub struct Packer<W: Write> {
    out: BufWriter<Sink<W>>,
}

enum Sink<W: Write> {
    Plain(W),
    Gzip(Box<GzEncoder<W>>),
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(bytes),
            Self::Gzip(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.flush(),
            Self::Gzip(out) => out.flush(),
        }
    }
}

impl<W: Write> Packer<W> {
    /// Begins an archive.
    pub fn new(out: W, level: Level) -> Self {
        // No time and no file name in gzip's header, which is what makes the bytes repeatable.
        let gzip = |out, compression| Sink::Gzip(Box::new(GzBuilder::new().write(out, compression)));
        let sink = match level {
            Level::Plain => Sink::Plain(out),
            Level::Store => gzip(out, Compression::none()),
            Level::Fast => gzip(out, Compression::fast()),
        };
        Self {
            out: BufWriter::with_capacity(256 * 1024, sink),
        }
    }

    /// Appends a file of root's. `path` is written as it is, so a leading `./` stays.
    ///
    /// # Errors
    /// Any error of writing or reading; also when `data` has not exactly `size` bytes.
    pub fn file(&mut self, path: &str, mode: u32, size: u64, data: impl Read) -> io::Result<()> {
        self.entry(EntryType::Regular, path, None, mode, (0, 0), size, data)
    }

    /// Appends a file whose content is in memory.
    ///
    /// # Errors
    /// Any error of writing.
    pub fn bytes(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.file(path, mode, data.len() as u64, data)
    }

    /// Appends a directory of root's.
    ///
    /// # Errors
    /// Any error of writing.
    pub fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.entry(
            EntryType::Directory,
            &format!("{path}/"),
            None,
            mode,
            (0, 0),
            0,
            io::empty(),
        )
    }

    /// Appends everything below `root`, sorted by path, below `prefix` (empty, or ending in `/`). With
    /// [`Owners::Archive`] owners and all mode bits are kept, and files with several names stay so.
    ///
    /// # Errors
    /// Any error of reading or writing; devices, sockets and pipes are errors.
    pub fn tree(&mut self, prefix: &str, root: &Utf8Path, owners: Owners) -> io::Result<()> {
        let mut first_names = HashMap::new();
        self.subtree(prefix, root, owners, &mut first_names)
    }

    fn subtree(
        &mut self,
        prefix: &str,
        directory: &Utf8Path,
        owners: Owners,
        first_names: &mut HashMap<(u64, u64), String>,
    ) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in fs_err::read_dir(directory)? {
            let name = entry?.file_name().into_string();
            names.push(name.map_err(|name| {
                io::Error::other(format!("the name {name:?} in `{directory}` is not UTF-8"))
            })?);
        }
        names.sort_unstable();
        for name in names {
            let path = directory.join(&name);
            let inside = format!("{prefix}{name}");
            let meta = fs_err::symlink_metadata(&path)?;
            let (owner, mode) = match owners {
                Owners::Archive => ((meta.uid(), meta.gid()), meta.mode() & 0o7777),
                Owners::Caller => ((0, 0), if meta.mode() & 0o111 == 0 { 0o644 } else { 0o755 }),
            };
            let kind = meta.file_type();
            if kind.is_dir() {
                self.entry(
                    EntryType::Directory,
                    &format!("{inside}/"),
                    None,
                    mode,
                    owner,
                    0,
                    io::empty(),
                )?;
                self.subtree(&format!("{inside}/"), &path, owners, first_names)?;
            } else if kind.is_symlink() {
                let target = fs_err::read_link(&path)?;
                let target = target
                    .to_str()
                    .ok_or_else(|| io::Error::other(format!("the target of `{path}` is not UTF-8")))?;
                self.entry(
                    EntryType::Symlink,
                    &inside,
                    Some(target),
                    0o777,
                    owner,
                    0,
                    io::empty(),
                )?;
            } else if kind.is_file() {
                let key = (meta.dev(), meta.ino());
                if let Some(first) = first_names.get(&key).filter(|_| meta.nlink() > 1) {
                    let first = first.clone();
                    self.entry(
                        EntryType::Link,
                        &inside,
                        Some(&first),
                        mode,
                        owner,
                        0,
                        io::empty(),
                    )?;
                } else {
                    let file = fs_err::File::open(&path)?;
                    self.entry(EntryType::Regular, &inside, None, mode, owner, meta.len(), file)?;
                    first_names.insert(key, inside);
                }
            } else {
                return Err(io::Error::other(format!(
                    "`{path}` is neither a file nor a directory nor a link"
                )));
            }
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "these are the fields of a tar header")]
    fn entry(
        &mut self,
        kind: EntryType,
        path: &str,
        link: Option<&str>,
        mode: u32,
        (uid, gid): (u32, u32),
        size: u64,
        data: impl Read,
    ) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header.set_mtime(0);
        header.set_size(size);
        self.name(&mut header, EntryType::GNULongName, path)?;
        if let Some(link) = link {
            self.name(&mut header, EntryType::GNULongLink, link)?;
        }
        header.set_cksum();
        self.block(header.as_bytes(), size, data)
    }

    /// Puts a name or link target into the header, or before it where it is too long. The crate's own setters change
    /// names (they drop `./`), hence by hand.
    fn name(&mut self, header: &mut Header, long: EntryType, text: &str) -> io::Result<()> {
        let bytes = text.as_bytes();
        let gnu = header
            .as_gnu_mut()
            .ok_or_else(|| io::Error::other("not a GNU header"))?;
        let field = if long == EntryType::GNULongName {
            &mut gnu.name
        } else {
            &mut gnu.linkname
        };
        if bytes.len() < field.len() {
            field[..bytes.len()].copy_from_slice(bytes);
            return Ok(());
        }
        let mut cut = field.len() - 1;
        while !text.is_char_boundary(cut) {
            cut -= 1;
        }
        field[..cut].copy_from_slice(&bytes[..cut]);
        let mut extra = Header::new_gnu();
        let gnu = extra
            .as_gnu_mut()
            .ok_or_else(|| io::Error::other("not a GNU header"))?;
        gnu.name[..13].copy_from_slice(b"././@LongLink");
        extra.set_mode(0o644);
        extra.set_uid(0);
        extra.set_gid(0);
        extra.set_mtime(0);
        extra.set_entry_type(long);
        let size = bytes.len() as u64 + 1;
        extra.set_size(size);
        extra.set_cksum();
        self.block(extra.as_bytes(), size, bytes.chain(&[0_u8][..]))
    }

    fn block(&mut self, header: &[u8; 512], size: u64, mut data: impl Read) -> io::Result<()> {
        self.out.write_all(header)?;
        let copied = io::copy(&mut data.by_ref().take(size), &mut self.out)?;
        if copied != size || data.read(&mut [0_u8])? != 0 {
            return Err(io::Error::other("a file changed its size while it was packed"));
        }
        let rest = usize::try_from(size % 512).unwrap_or(0);
        if rest > 0 {
            self.out.write_all(&[0_u8; 512][rest..])?;
        }
        Ok(())
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// Any error of writing.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0_u8; 1024])?;
        self.finish_part()
    }

    /// Ends the bytes but not the archive: another part, made by another packer of the same kind, has to follow directly
    /// behind it. (A gzip file may consist of several members.)
    ///
    /// # Errors
    /// Any error of writing.
    pub fn finish_part(self) -> io::Result<W> {
        match self.out.into_inner().map_err(io::IntoInnerError::into_error)? {
            Sink::Plain(out) => Ok(out),
            Sink::Gzip(encoder) => encoder.finish(),
        }
    }

    /// Appends a symbolic link of root's.
    ///
    /// # Errors
    /// Any error of writing.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(
            EntryType::Symlink,
            path,
            Some(target),
            0o777,
            (0, 0),
            0,
            io::empty(),
        )
    }
}

#[cfg(test)]
#[path = "tarball_tests.rs"]
mod tests;
