//! The cache of artefacts.
//!
//! ```text
//! ROOT/artefacts/KIND-NAME/KEY/content/…       what was made
//! ROOT/artefacts/KIND-NAME/KEY/artefact.json   its inputs, and size, time and SHA-256 of each file
//! ROOT/artefacts/KIND-NAME/KEY/used            milliseconds since the epoch when it was last asked for
//! ROOT/making/KIND-NAME-KEY.RANDOM/…           being made; left over after a crash, removed by the next maker
//! ROOT/locks/KIND-NAME-KEY                     held while it is made
//! ```
//! `KEY` is the beginning of the SHA-256 of the inputs, so what was made from other inputs is another artefact. On each use,
//! sizes and times are compared, and where a time differs the digest: damage is noticed without reading gigabytes.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use stolos_base::Clock;
use stolos_base::files::{read_json, remove_tree_if_there, write_atomic, write_json};
use stolos_base::ids::random_hex;
use stolos_base::lock::FileLock;
use stolos_release::digest::{Algorithm, sha256_of};

use crate::error::{Error, Result, file};
use crate::progress::{Event, Progress};

/// Everything that decides what an artefact is: name to text or digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs(BTreeMap<String, String>);

impl Inputs {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a short text: a version, a flag.
    #[must_use]
    pub fn text(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        self.0.insert(name.into(), text.into());
        self
    }

    /// Adds content by its digest.
    #[must_use]
    pub fn bytes(self, name: impl Into<String>, bytes: &[u8]) -> Self {
        self.text(name, format!("sha256:{}", Algorithm::Sha256.hex(bytes)))
    }

    /// Adds the content of a file by its digest.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn file(self, name: impl Into<String>, path: &Utf8Path) -> Result<Self> {
        let sha256 = fs_err::File::open(path)
            .and_then(sha256_of)
            .map_err(file("read", path))?;
        Ok(self.text(name, format!("sha256:{sha256}")))
    }

    /// A short digest for versions.
    pub(crate) fn short(&self) -> String {
        self.key()[..12].to_owned()
    }

    fn key(&self) -> String {
        let text = serde_json::to_vec(&self.0).expect("a map of texts is valid JSON");
        Algorithm::Sha256.hex(&text)
    }
}

/// Something in the cache, whole and checked.
#[derive(Clone, Debug)]
pub struct Artefact {
    /// The directory that holds it.
    pub content: Utf8PathBuf,
    /// SHA-256 of its inputs, 64 hex digits.
    pub key: String,
    /// SHA-256 of each of its regular files, by path.
    pub files: BTreeMap<String, String>,
}

impl Artefact {
    /// A short name of its inputs: what the cache's directory is called.
    #[must_use]
    pub fn short_key(&self) -> &str {
        &self.key[..SHORT]
    }
}

const SHORT: usize = 16;

/// An artefact as `list` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// What kind: `upstream`, `package`, `release`, `stemcell`, …
    pub kind: String,
    /// Which one of the kind.
    pub name: String,
    /// The beginning of the SHA-256 of its inputs.
    pub key: String,
    /// Where it lies.
    pub path: Utf8PathBuf,
    /// Bytes.
    pub size: u64,
    /// How long it took to make, in milliseconds.
    pub took_ms: u64,
    /// When it was made, in milliseconds since the epoch.
    pub made_ms: i64,
    /// When it was last asked for, in milliseconds since the epoch.
    pub used_ms: i64,
}

#[derive(Serialize, Deserialize)]
struct Record {
    kind: String,
    name: String,
    inputs: Inputs,
    made_ms: i64,
    took_ms: u64,
    files: BTreeMap<String, FileRecord>,
    links: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct FileRecord {
    size: u64,
    /// Nanoseconds since the epoch.
    modified: i128,
    sha256: String,
}

/// The cache. Cheap to clone; any number of them may work on one directory, in one process or several.
#[derive(Clone, Debug)]
pub struct Cache {
    root: Utf8PathBuf,
    clock: Clock,
}

impl Cache {
    /// A cache in a directory, which is made when it is first needed.
    #[must_use]
    pub fn at(root: impl Into<Utf8PathBuf>, clock: Clock) -> Self {
        Self {
            root: root.into(),
            clock,
        }
    }

    /// The user's cache: `$STOLOS_CACHE`, else `$XDG_CACHE_HOME/stolos`, else `~/.cache/stolos`.
    ///
    /// # Errors
    /// [`Error::NoCacheDirectory`].
    pub fn of_user() -> Result<Self> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let root = variable("STOLOS_CACHE")
            .map(Utf8PathBuf::from)
            .or_else(|| variable("XDG_CACHE_HOME").map(|home| Utf8PathBuf::from(home).join("stolos")))
            .or_else(|| variable("HOME").map(|home| Utf8PathBuf::from(home).join(".cache/stolos")))
            .ok_or(Error::NoCacheDirectory)?;
        Ok(Self::at(root, Clock::system()))
    }

    /// Where it lies.
    #[must_use]
    pub fn root(&self) -> &Utf8Path {
        &self.root
    }

    /// The artefact of that kind and name made from these inputs: the one that is there if it is whole, else what `make` puts
    /// into the empty directory that it is given. While another process or thread makes the same, this waits.
    ///
    /// # Errors
    /// What `make` returns; [`Error::File`] for the cache's own files. Nothing is left after an error.
    pub fn get(
        &self,
        kind: &str,
        name: &str,
        inputs: &Inputs,
        progress: &dyn Progress,
        make: impl FnOnce(&Utf8Path) -> Result<()>,
    ) -> Result<Artefact> {
        let what = format!("{kind} {name}");
        let key = inputs.key();
        let family = format!("{kind}-{name}");
        let home = self.root.join("artefacts").join(&family).join(&key[..SHORT]);
        if let Ok(artefact) = self.check(&home, &key) {
            progress.event(&Event::Found { what: &what });
            return Ok(artefact);
        }
        let unique = format!("{family}-{}", &key[..SHORT]);
        let lock = self.root.join("locks").join(&unique);
        let _lock = match FileLock::try_acquire(&lock).map_err(file("lock", &lock))? {
            Some(lock) => lock,
            None => {
                progress.event(&Event::Waiting { what: &what });
                FileLock::acquire(&lock).map_err(file("lock", &lock))?
            }
        };
        match self.check(&home, &key) {
            Ok(artefact) => {
                progress.event(&Event::Found { what: &what });
                return Ok(artefact);
            }
            Err(Unusable::Missing) => {}
            Err(Unusable::Damaged(reason)) => {
                progress.event(&Event::Damaged {
                    what: &what,
                    reason: &reason,
                });
                remove_tree_if_there(&home).map_err(file("remove", &home))?;
            }
        }
        progress.event(&Event::Started { what: &what });
        let started = Instant::now();
        self.remove_left_overs(&unique)?;
        // A name of its own each time: a process that a killed maker started may still write to the old one.
        let making = self
            .root
            .join("making")
            .join(format!("{unique}.{}", random_hex(4)));
        let content = making.join("content");
        fs_err::create_dir_all(&content).map_err(file("create", &content))?;
        let result = make(&content).and_then(|()| {
            let took = started.elapsed();
            self.record(kind, name, inputs, &making, took)?;
            self.publish(&making, &home)?;
            Ok(took)
        });
        match result {
            Ok(took) => {
                progress.event(&Event::Made { what: &what, took });
                self.check(&home, &key).map_err(|unusable| Error::File {
                    operation: "use",
                    path: home.clone(),
                    source: std::io::Error::other(match unusable {
                        Unusable::Missing => "it vanished after it was made".to_owned(),
                        Unusable::Damaged(reason) => reason,
                    }),
                })
            }
            Err(error) => {
                remove_tree_if_there(&making).map_err(file("remove", &making))?;
                Err(error)
            }
        }
    }

    /// Removes what killed makers of the artefact left. Whoever calls this holds the artefact's lock.
    fn remove_left_overs(&self, unique: &str) -> Result<()> {
        for left_over in directories(&self.root.join("making"))? {
            let maker = left_over.file_name().and_then(|name| name.rsplit_once('.'));
            if maker.is_some_and(|(name, _)| name == unique) {
                // Where a process is still at work in it, it stays until garbage is collected.
                let _ = remove_tree_if_there(&left_over);
            }
        }
        Ok(())
    }

    fn record(
        &self,
        kind: &str,
        name: &str,
        inputs: &Inputs,
        making: &Utf8Path,
        took: Duration,
    ) -> Result<()> {
        let content = making.join("content");
        let mut record = Record {
            kind: kind.to_owned(),
            name: name.to_owned(),
            inputs: inputs.clone(),
            made_ms: self.clock.now_millis(),
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            files: BTreeMap::new(),
            links: BTreeMap::new(),
        };
        for found in walk(&content)? {
            match found.kind {
                FoundKind::Link(target) => {
                    record.links.insert(found.path, target);
                }
                FoundKind::File { size, modified } => {
                    let path = content.join(&found.path);
                    let open = fs_err::File::open(&path).map_err(file("read", &path))?;
                    // What is named by a digest must be on disk before it gets its name.
                    open.sync_all().map_err(file("sync", &path))?;
                    let sha256 = sha256_of(open).map_err(file("read", &path))?;
                    record.files.insert(
                        found.path,
                        FileRecord {
                            size,
                            modified,
                            sha256,
                        },
                    );
                }
            }
        }
        let path = making.join("artefact.json");
        write_json(&path, &record, 0o644).map_err(file("write", &path))?;
        self.touch(making)
    }

    fn publish(&self, making: &Utf8Path, home: &Utf8Path) -> Result<()> {
        let parent = home.parent().unwrap_or(&self.root);
        fs_err::create_dir_all(parent).map_err(file("create", parent))?;
        fs_err::rename(making, home).map_err(file("create", home))?;
        fs_err::File::open(parent)
            .and_then(|directory| directory.sync_all())
            .map_err(file("sync", parent))
    }

    /// Whether the artefact in `home` is there and whole.
    fn check(&self, home: &Utf8Path, key: &str) -> Result<Artefact, Unusable> {
        let damaged = |error: &dyn std::error::Error| Unusable::Damaged(stolos_base::chain(error));
        if !home.exists() {
            return Err(Unusable::Missing);
        }
        let record: Record = read_json(&home.join("artefact.json"))
            .map_err(|error| damaged(&error))?
            .ok_or_else(|| Unusable::Damaged("it has no description".to_owned()))?;
        let content = home.join("content");
        let mut files = BTreeMap::new();
        let mut n_links = 0;
        for found in walk(&content).map_err(|error| damaged(&error))? {
            let extra = || Unusable::Damaged(format!("`{}` does not belong to it", found.path));
            match found.kind {
                FoundKind::Link(target) => {
                    n_links += 1;
                    if record.links.get(&found.path) != Some(&target) {
                        return Err(extra());
                    }
                }
                FoundKind::File { size, modified } => {
                    let expected = record.files.get(&found.path).ok_or_else(extra)?;
                    let same = size == expected.size
                        && (modified == expected.modified
                            || fs_err::File::open(content.join(&found.path))
                                .and_then(sha256_of)
                                .map_err(|error| damaged(&error))?
                                == expected.sha256);
                    if !same {
                        return Err(Unusable::Damaged(format!("`{}` was changed", found.path)));
                    }
                    files.insert(found.path, expected.sha256.clone());
                }
            }
        }
        if files.len() != record.files.len() || n_links != record.links.len() {
            return Err(Unusable::Damaged("a part of it is missing".to_owned()));
        }
        // That garbage collection goes by this is no reason to fail, for instance on a read-only disk.
        let _ = self.touch(home);
        Ok(Artefact {
            content,
            key: key.to_owned(),
            files,
        })
    }

    /// Notes the use, at most once an hour.
    fn touch(&self, home: &Utf8Path) -> Result<()> {
        let now = self.clock.now_millis();
        if now.abs_diff(used(home)) < 3_600_000 {
            return Ok(());
        }
        let path = home.join("used");
        write_atomic(&path, now.to_string().as_bytes(), 0o644).map_err(file("write", path))
    }

    /// Everything that is there, by kind and name.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for home in self.homes()? {
            let path = home.join("artefact.json");
            let Some(record) = read_json::<Record>(&path).map_err(file("read", &path))? else {
                continue;
            };
            listed.push(Listed {
                kind: record.kind,
                name: record.name,
                key: home.file_name().unwrap_or_default().to_owned(),
                path: home.join("content"),
                size: record.files.values().map(|file| file.size).sum(),
                took_ms: record.took_ms,
                made_ms: record.made_ms,
                used_ms: used(&home),
            });
        }
        listed.sort_by(|a, b| (&a.kind, &a.name, a.made_ms).cmp(&(&b.kind, &b.name, b.made_ms)));
        Ok(listed)
    }

    /// Removes what nobody has asked for since `age`, and what crashed makers left. Returns the directories removed.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn collect_garbage(&self, age: Duration) -> Result<Vec<Utf8PathBuf>> {
        let limit = self
            .clock
            .now_millis()
            .saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        let mut removed = Vec::new();
        for home in self.homes()? {
            if used(&home) > limit {
                continue;
            }
            self.remove_unlocked(&home, &mut removed)?;
        }
        let making = self.root.join("making");
        for left_over in directories(&making)? {
            self.remove_unlocked(&left_over, &mut removed)?;
        }
        Ok(removed)
    }

    /// Removes a directory of an artefact unless somebody makes that one just now.
    fn remove_unlocked(&self, directory: &Utf8Path, removed: &mut Vec<Utf8PathBuf>) -> Result<()> {
        let name = directory.file_name().unwrap_or_default();
        let unique = match directory.parent().and_then(Utf8Path::file_name) {
            Some("making") | None => name
                .rsplit_once('.')
                .map_or(name, |(unique, _)| unique)
                .to_owned(),
            Some(family) => format!("{family}-{name}"),
        };
        let lock = self.root.join("locks").join(unique);
        if let Some(_lock) = FileLock::try_acquire(&lock).map_err(file("lock", &lock))? {
            remove_tree_if_there(directory).map_err(file("remove", directory))?;
            removed.push(directory.to_owned());
        }
        Ok(())
    }

    fn homes(&self) -> Result<Vec<Utf8PathBuf>> {
        let mut homes = Vec::new();
        for family in directories(&self.root.join("artefacts"))? {
            homes.extend(directories(&family)?);
        }
        Ok(homes)
    }
}

enum Unusable {
    Missing,
    Damaged(String),
}

/// When it was last asked for; 0 where nobody knows, which makes it old.
fn used(home: &Utf8Path) -> i64 {
    fs_err::read_to_string(home.join("used"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

fn directories(path: &Utf8Path) -> Result<Vec<Utf8PathBuf>> {
    match path.read_dir_utf8() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(file("read", path)(error)),
        Ok(entries) => {
            let mut found = Vec::new();
            for entry in entries {
                let entry = entry.map_err(file("read", path))?;
                if entry.file_type().map_err(file("read", entry.path()))?.is_dir() {
                    found.push(entry.path().to_owned());
                }
            }
            found.sort();
            Ok(found)
        }
    }
}

struct Found {
    path: String,
    kind: FoundKind,
}

enum FoundKind {
    Link(String),
    File { size: u64, modified: i128 },
}

/// All files and links below a directory.
fn walk(directory: &Utf8Path) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in walkdir::WalkDir::new(directory) {
        let entry = entry.map_err(|error| file("read", directory)(error.into()))?;
        let path = Utf8Path::from_path(entry.path())
            .and_then(|path| path.strip_prefix(directory).ok())
            .ok_or_else(|| file("read", directory)(std::io::Error::other("a name is not UTF-8")))?
            .to_string();
        let absolute = directory.join(&path);
        if entry.file_type().is_symlink() {
            let target = absolute.read_link_utf8().map_err(file("read", &absolute))?;
            let kind = FoundKind::Link(target.into_string());
            found.push(Found { path, kind });
        } else if !entry.file_type().is_dir() {
            let meta = fs_err::symlink_metadata(&absolute).map_err(file("read", &absolute))?;
            let modified = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
            let kind = FoundKind::File {
                size: meta.len(),
                modified,
            };
            found.push(Found { path, kind });
        }
    }
    Ok(found)
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
