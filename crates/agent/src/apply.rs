//! Becoming what a spec says: packages, rendered jobs, links.
//!
//! Everything is unpacked into a temporary neighbour and renamed, links are switched by rename, so that a crash leaves
//! either the old or the new; doing it again does what is missing.

use std::collections::BTreeSet;
use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use stolos_base::files;
use stolos_mbus::spec::{ApplySpec, Archive, Package};
use stolos_release::digest::{Algorithm, MultiDigest};
use stolos_release::tarball::{self, Limits, Owners};

use crate::blobs::{Blobs, Wanted, private_directory};
use crate::error::{Error, Result};
use crate::paths::Paths;
use crate::platform::Platform;

/// What is needed to become something.
pub(crate) struct Applier<'a> {
    pub(crate) paths: &'a Paths,
    pub(crate) blobs: &'a Blobs,
    pub(crate) platform: &'a dyn Platform,
}

/// The stored spec, if there is one.
pub(crate) fn stored(paths: &Paths) -> Result<ApplySpec> {
    let path = paths.spec();
    Ok(files::read_json(&path)
        .map_err(Error::file("read", path))?
        .unwrap_or_default())
}

/// Refuses a spec that is older than one that was applied. A spec without generation comes from a director that does not
/// count; it neither is refused nor changes what is remembered.
pub(crate) fn check_generation(paths: &Paths, offered: &ApplySpec) -> Result<()> {
    let path = paths.generation();
    let applied: Option<u64> = files::read_json(&path).map_err(Error::file("read", path))?;
    match (applied, offered.generation) {
        (Some(applied), Some(offered)) if offered < applied => Err(Error::Stale { offered, applied }),
        _ => Ok(()),
    }
}

/// Remembers a generation before anything of it is applied, so that an older one has no chance even if this one is cut off.
fn remember_generation(paths: &Paths, spec: &ApplySpec) -> Result<()> {
    let path = paths.generation();
    match spec.generation {
        Some(generation) => files::write_json(&path, &generation, 0o600).map_err(Error::file("write", path)),
        None => Ok(()),
    }
}

/// Removes what a former life left half done.
pub(crate) fn clean_up(paths: &Paths) -> Result<()> {
    let path = paths.data_tmp();
    files::remove_tree_if_there(&path).map_err(Error::file("empty", path))
}

/// Makes the directories that jobs expect. Some are gone after a boot.
pub(crate) fn make_directories(paths: &Paths, platform: &dyn Platform, jobs: &[String]) -> Result<()> {
    for job in jobs {
        let job = component(job)?;
        for directory in [
            paths.log().join(job),
            paths.sys_run().join(job),
            paths.data().join(job),
        ] {
            if !directory.is_dir() {
                fs_err::create_dir_all(&directory).map_err(Error::file("make", &directory))?;
                // Jobs that do not run as root write here.
                set_mode(&directory, 0o770).map_err(Error::file("set the mode of", &directory))?;
                let given = platform.give_to_jobs(&directory);
                given.map_err(Error::file("give to jobs", &directory))?;
            }
        }
    }
    Ok(())
}

impl Applier<'_> {
    /// Fetches and unpacks everything without switching to it.
    pub(crate) async fn prepare(&self, spec: &ApplySpec) -> Result<()> {
        check_generation(self.paths, spec)?;
        for package in spec.packages.values() {
            self.place_package(package).await?;
        }
        if let Some(archive) = &spec.rendered_templates_archive {
            self.place_jobs(archive).await?;
        }
        Ok(())
    }

    /// Switches to a spec and stores it.
    pub(crate) async fn apply(&self, spec: &ApplySpec) -> Result<()> {
        let jobs = job_names(spec);
        for name in jobs.iter().chain(spec.packages.keys()) {
            component(name)?;
        }
        check_generation(self.paths, spec)?;
        remember_generation(self.paths, spec)?;
        if spec
            .configuration_hash
            .as_ref()
            .is_some_and(|hash| !hash.is_empty())
        {
            self.switch(spec, &jobs).await?;
        }
        write_instance(self.paths, spec)?;
        let path = self.paths.spec();
        create_parent(&path)?;
        files::write_json(&path, &without_urls(spec), 0o600).map_err(Error::file("write", path))?;
        if let Some(archive) = &spec.rendered_templates_archive {
            self.blobs.forget(&archive.blobstore_id)?;
        }
        Ok(())
    }

    async fn switch(&self, spec: &ApplySpec, jobs: &[String]) -> Result<()> {
        let mut used = BTreeSet::new();
        // All is there before the first link changes.
        let mut links = Vec::new();
        for package in spec.packages.values() {
            let place = self.place_package(package).await?;
            links.push((
                self.paths.packages().join(component(&package.name)?),
                place.clone(),
            ));
            used.insert(place);
        }
        if let Some(archive) = &spec.rendered_templates_archive {
            let place = self.place_jobs(archive).await?;
            for job in jobs {
                let content = place.join(job);
                // A job without templates has nothing to link to.
                if content.is_dir() {
                    links.push((self.paths.jobs().join(job), content));
                }
            }
            used.insert(place);
        }
        make_directories(self.paths, self.platform, jobs)?;
        for (from, to) in &links {
            link(from, to)?;
        }
        let wanted: BTreeSet<&Utf8Path> = links.iter().map(|(from, _)| from.as_path()).collect();
        for directory in [self.paths.packages(), self.paths.jobs()] {
            unlink_others(&directory, &wanted)?;
        }
        forget_old(&self.paths.data_jobs(), &used)?;
        for package in directories(&self.paths.data_packages())? {
            forget_old(&package, &used)?;
        }
        Ok(())
    }

    async fn place_package(&self, package: &Package) -> Result<Utf8PathBuf> {
        let what = format!("package `{}`", package.name);
        let digest = parse_digest(&what, &package.sha1)?;
        if let Some(hex) = digest.hex(Algorithm::Sha256) {
            let shared = self.paths.shared_packages().join(hex);
            if shared.is_dir() {
                return Ok(shared);
            }
        }
        let (_, hex) = digest.strongest();
        let place = self
            .paths
            .data_packages()
            .join(component(&package.name)?)
            .join(hex);
        if !place.is_dir() {
            let wanted = Wanted {
                what: &what,
                id: &package.blobstore_id,
                url: package.signed_url.as_ref(),
                headers: package.blobstore_headers.as_ref(),
                digest: &digest,
            };
            self.unpack(&wanted, &place, Limits::PACKAGE, |_| Ok(())).await?;
        }
        Ok(place)
    }

    async fn place_jobs(&self, archive: &Archive) -> Result<Utf8PathBuf> {
        const WHAT: &str = "the rendered jobs";
        let digest = parse_digest(WHAT, &archive.sha1)?;
        let (_, hex) = digest.strongest();
        let place = self.paths.data_jobs().join(hex);
        if !place.is_dir() {
            let wanted = Wanted {
                what: WHAT,
                id: &archive.blobstore_id,
                url: archive.signed_url.as_ref(),
                headers: archive.blobstore_headers.as_ref(),
                digest: &digest,
            };
            self.unpack(&wanted, &place, Limits::JOB, |place| {
                protect(place)?;
                self.platform.give_to_jobs(place)
            })
            .await?;
        }
        Ok(place)
    }

    /// Fetches an archive and unpacks it; `finish` sees the content before it is in its place.
    async fn unpack(
        &self,
        wanted: &Wanted<'_>,
        place: &Utf8Path,
        limits: Limits,
        finish: impl FnOnce(&Utf8Path) -> io::Result<()>,
    ) -> Result<()> {
        let fetched = self.blobs.fetch(wanted).await?;
        private_directory(&self.paths.data_tmp())?;
        let temporary = self.paths.data_tmp().join(stolos_base::ids::random_hex(8));
        let (name, from, into) = (wanted.what.to_owned(), fetched.path.clone(), temporary.clone());
        let work = move || -> Result<()> {
            let file = fs_err::File::open(&from).map_err(Error::file("open", from))?;
            tarball::unpack(&name, file, &into, limits, Owners::Caller).map_err(|source| Error::Install {
                what: name,
                source: Box::new(source),
            })?;
            sync_tree(&into).map_err(Error::file("sync", into))
        };
        let result = async {
            tokio::task::spawn_blocking(work)
                .await
                .map_err(crate::core::panicked)??;
            finish(&temporary).map_err(Error::file("protect", &temporary))?;
            create_parent(place)?;
            fs_err::rename(&temporary, place).map_err(Error::file("install", place))
        };
        let result = result.await;
        files::remove_tree_if_there(&temporary).map_err(Error::file("clean up", temporary))?;
        result
    }
}

/// A directory counts as installed once it has its name, also after the host lost power: so its content is on disk before.
fn sync_tree(path: &Utf8Path) -> io::Result<()> {
    /// Syncs that wait together cost little more than one.
    const AT_ONCE: usize = 4;
    let mut files = Vec::new();
    collect(path, &mut files)?;
    std::thread::scope(|scope| {
        let part = files.len().div_ceil(AT_ONCE).max(1);
        let syncs: Vec<_> = files
            .chunks(part)
            .map(|files| {
                scope.spawn(move || {
                    files
                        .iter()
                        .try_for_each(|file| fs_err::File::open(file)?.sync_all())
                })
            })
            .collect();
        syncs.into_iter().try_for_each(|sync| {
            sync.join()
                .unwrap_or_else(|_| Err(io::Error::other("syncing panicked")))
        })
    })
}

/// All regular files and directories below.
fn collect(path: &Utf8Path, into: &mut Vec<Utf8PathBuf>) -> io::Result<()> {
    for entry in path.read_dir_utf8()? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(entry.path(), into)?;
        } else if kind.is_file() {
            into.push(entry.into_path());
        }
    }
    into.push(path.to_owned());
    Ok(())
}

/// Signed URLs are keys; nobody needs them once the spec is applied.
fn without_urls(spec: &ApplySpec) -> ApplySpec {
    let mut spec = spec.clone();
    if let Some(archive) = &mut spec.rendered_templates_archive {
        archive.signed_url = None;
    }
    for package in spec.packages.values_mut() {
        package.signed_url = None;
    }
    spec
}

/// The jobs of a spec, in the manifest's order.
pub(crate) fn job_names(spec: &ApplySpec) -> Vec<String> {
    spec.job
        .iter()
        .flat_map(|job| job.templates.iter().map(|template| template.name.clone()))
        .collect()
}

/// Executables 0750, all else 0640: rendered templates hold secrets.
fn protect(path: &Utf8Path) -> io::Result<()> {
    let meta = fs_err::symlink_metadata(path)?;
    if meta.is_dir() {
        set_mode(path, 0o750)?;
        for entry in path.read_dir_utf8()? {
            protect(entry?.path())?;
        }
        Ok(())
    } else if meta.is_symlink() {
        Ok(())
    } else {
        let executable = path
            .parent()
            .is_some_and(|parent| parent.file_name() == Some("bin"));
        set_mode(path, if executable { 0o750 } else { 0o640 })
    }
}

fn set_mode(path: &Utf8Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Points a link at a target by rename.
fn link(link: &Utf8Path, target: &Utf8Path) -> Result<()> {
    if fs_err::read_link(link).is_ok_and(|now| now == target.as_std_path()) {
        return Ok(());
    }
    create_parent(link)?;
    let temporary = Utf8PathBuf::from(format!("{link}.{}", stolos_base::ids::random_hex(4)));
    fs_err::os::unix::fs::symlink(target, &temporary).map_err(Error::file("make", &temporary))?;
    if fs_err::symlink_metadata(link).is_ok_and(|meta| meta.is_dir()) {
        // A foreign stemcell may have put a directory where we want a link.
        fs_err::remove_dir_all(link).map_err(Error::file("replace", link))?;
    }
    fs_err::rename(&temporary, link).map_err(Error::file("switch", link))
}

fn unlink_others(directory: &Utf8Path, wanted: &BTreeSet<&Utf8Path>) -> Result<()> {
    if !directory.is_dir() {
        return Ok(());
    }
    let entries = directory
        .read_dir_utf8()
        .map_err(Error::file("list", directory))?;
    for entry in entries {
        let entry = entry.map_err(Error::file("list", directory))?;
        if !wanted.contains(entry.path()) && entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
            files::remove_if_there(entry.path()).map_err(Error::file("remove", entry.path()))?;
        }
    }
    Ok(())
}

fn forget_old(directory: &Utf8Path, used: &BTreeSet<Utf8PathBuf>) -> Result<()> {
    for old in directories(directory)? {
        if !used.contains(&old) {
            files::remove_tree_if_there(&old).map_err(Error::file("remove", old))?;
        }
    }
    Ok(())
}

/// The directories in a directory, which need not be there.
fn directories(directory: &Utf8Path) -> Result<Vec<Utf8PathBuf>> {
    let mut found = Vec::new();
    if directory.is_dir() {
        for entry in directory
            .read_dir_utf8()
            .map_err(Error::file("list", directory))?
        {
            let entry = entry.map_err(Error::file("list", directory))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.into_path());
            }
        }
    }
    Ok(found)
}

fn write_instance(paths: &Paths, spec: &ApplySpec) -> Result<()> {
    let directory = paths.instance();
    fs_err::create_dir_all(&directory).map_err(Error::file("make", &directory))?;
    for (name, value) in [
        ("id", spec.id.as_deref()),
        ("az", spec.az.as_deref()),
        ("name", spec.name.as_deref()),
        ("deployment", Some(spec.deployment.as_str())),
    ] {
        let path = directory.join(name);
        if fs_err::read(&path).is_ok_and(|now| now == value.unwrap_or_default().as_bytes()) {
            continue;
        }
        files::write_atomic(&path, value.unwrap_or_default().as_bytes(), 0o644)
            .map_err(Error::file("write", path))?;
    }
    Ok(())
}

fn create_parent(path: &Utf8Path) -> Result<()> {
    match path.parent() {
        Some(parent) => fs_err::create_dir_all(parent).map_err(Error::file("make", parent)),
        None => Ok(()),
    }
}

/// A name that came over the bus becomes part of a path only when it is one component.
pub(crate) fn component(name: &str) -> Result<&str> {
    let good = !name.is_empty()
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b));
    if good {
        Ok(name)
    } else {
        Err(Error::Refused(format!(
            "`{name}` is no name of a job, package or blob"
        )))
    }
}

fn parse_digest(what: &str, text: &str) -> Result<MultiDigest> {
    text.parse()
        .map_err(|source: stolos_release::Error| Error::Install {
            what: what.to_owned(),
            source: Box::new(source),
        })
}
