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

use crate::blobs::Blobs;
use crate::error::{Error, Result};
use crate::paths::Paths;
use crate::platform::Platform;

/// The stored spec, if there is one.
pub(crate) fn stored(paths: &Paths) -> Result<ApplySpec> {
    let path = paths.spec();
    Ok(files::read_json(&path).map_err(Error::file("read", path))?.unwrap_or_default())
}

/// Refuses a spec that is older than the one that was applied.
pub(crate) fn check_generation(applied: &ApplySpec, offered: &ApplySpec) -> Result<()> {
    match (applied.generation, offered.generation) {
        (Some(applied), Some(offered)) if offered < applied => Err(Error::Stale { offered, applied }),
        _ => Ok(()),
    }
}

/// Fetches and unpacks everything without switching to it.
pub(crate) async fn prepare(paths: &Paths, blobs: &Blobs, platform: &dyn Platform, spec: &ApplySpec) -> Result<()> {
    for package in spec.packages.values() {
        place_package(paths, blobs, package).await?;
    }
    if let Some(archive) = &spec.rendered_templates_archive {
        place_jobs(paths, blobs, platform, archive).await?;
    }
    Ok(())
}

/// Switches to a spec and stores it.
pub(crate) async fn apply(paths: &Paths, blobs: &Blobs, platform: &dyn Platform, spec: &ApplySpec) -> Result<()> {
    if spec.configuration_hash.as_ref().is_some_and(|hash| !hash.is_empty()) {
        let mut packages = BTreeSet::new();
        for package in spec.packages.values() {
            let place = place_package(paths, blobs, package).await?;
            link(&paths.packages().join(component(&package.name)?), &place)?;
            packages.insert(package.name.clone());
        }
        let mut jobs = BTreeSet::new();
        let mut kept = None;
        if let Some(archive) = &spec.rendered_templates_archive {
            let place = place_jobs(paths, blobs, platform, archive).await?;
            for job in job_names(spec) {
                let name = component(&job)?;
                make_directories(paths, platform, name)?;
                if place.join(name).is_dir() {
                    link(&paths.jobs().join(name), &place.join(name))?;
                    jobs.insert(job);
                }
            }
            kept = Some(place);
        }
        unlink_others(&paths.packages(), &packages)?;
        unlink_others(&paths.jobs(), &jobs)?;
        forget_old(&paths.data_jobs(), kept.as_deref())?;
    }
    write_instance(paths, spec)?;
    let path = paths.spec();
    create_parent(&path)?;
    files::write_json(&path, spec, 0o600).map_err(Error::file("write", path))
}

/// The jobs of a spec, in the manifest's order.
pub(crate) fn job_names(spec: &ApplySpec) -> Vec<String> {
    spec.job.iter().flat_map(|job| job.templates.iter().map(|template| template.name.clone())).collect()
}

async fn place_package(paths: &Paths, blobs: &Blobs, package: &Package) -> Result<Utf8PathBuf> {
    let what = format!("package `{}`", package.name);
    let digest = parse_digest(&what, &package.sha1)?;
    if let Some(hex) = digest.hex(Algorithm::Sha256) {
        let shared = paths.shared_packages().join(hex);
        if shared.is_dir() {
            return Ok(shared);
        }
    }
    let (_, hex) = digest.strongest();
    let place = paths.data_packages().join(component(&package.name)?).join(hex);
    if !place.is_dir() {
        let bytes = blobs
            .fetch(&what, &package.blobstore_id, package.signed_url.as_ref(), package.blobstore_headers.as_ref(), &digest)
            .await?;
        unpack(paths, &what, bytes, &place, Limits::PACKAGE).await?;
    }
    Ok(place)
}

async fn place_jobs(paths: &Paths, blobs: &Blobs, platform: &dyn Platform, archive: &Archive) -> Result<Utf8PathBuf> {
    const WHAT: &str = "the rendered jobs";
    let digest = parse_digest(WHAT, &archive.sha1)?;
    let (_, hex) = digest.strongest();
    let place = paths.data_jobs().join(hex);
    if !place.is_dir() {
        let bytes = blobs
            .fetch(WHAT, &archive.blobstore_id, archive.signed_url.as_ref(), archive.blobstore_headers.as_ref(), &digest)
            .await?;
        unpack(paths, WHAT, bytes, &place, Limits::JOB).await?;
    }
    protect(&place).map_err(Error::file("set the modes of", &place))?;
    platform.give_to_jobs(&place).map_err(Error::file("give to jobs", &place))?;
    Ok(place)
}

async fn unpack(paths: &Paths, what: &str, bytes: Vec<u8>, place: &Utf8Path, limits: Limits) -> Result<()> {
    let temporary = paths.data_tmp().join(stolos_base::ids::random_hex(8));
    let (name, into, target) = (what.to_owned(), temporary.clone(), place.to_owned());
    let work = move || -> Result<()> {
        let failed = |source: stolos_release::Error| Error::Install { what: name.clone(), source: Box::new(source) };
        tarball::unpack(&name, bytes.as_slice(), &into, limits, Owners::Caller).map_err(failed)?;
        create_parent(&target)?;
        match fs_err::rename(&into, &target) {
            // Somebody was quicker with the same content.
            Err(_) if target.is_dir() => Ok(()),
            other => other.map_err(Error::file("install", target)),
        }
    };
    let result = tokio::task::spawn_blocking(work).await.map_err(|error| Error::Install { what: what.to_owned(), source: error.into() });
    files::remove_tree_if_there(&temporary).map_err(Error::file("clean up", temporary))?;
    result?
}

/// Executables 0750, all else 0640: rendered templates hold secrets.
fn protect(path: &Utf8Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let set = |path: &Utf8Path, mode| fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode));
    let meta = fs_err::symlink_metadata(path)?;
    if meta.is_dir() {
        set(path, 0o750)?;
        for entry in path.read_dir_utf8()? {
            protect(entry?.path())?;
        }
        Ok(())
    } else if meta.is_symlink() {
        Ok(())
    } else {
        let executable = path.parent().is_some_and(|parent| parent.file_name() == Some("bin"));
        set(path, if executable { 0o750 } else { 0o640 })
    }
}

fn make_directories(paths: &Paths, platform: &dyn Platform, job: &str) -> Result<()> {
    for directory in [paths.log().join(job), paths.sys_run().join(job)] {
        if !directory.is_dir() {
            fs_err::create_dir_all(&directory).map_err(Error::file("make", &directory))?;
            platform.give_to_jobs(&directory).map_err(Error::file("give to jobs", &directory))?;
        }
    }
    Ok(())
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

fn unlink_others(directory: &Utf8Path, wanted: &BTreeSet<String>) -> Result<()> {
    if !directory.is_dir() {
        return Ok(());
    }
    for entry in directory.read_dir_utf8().map_err(Error::file("list", directory))?.flatten() {
        if !wanted.contains(entry.file_name()) && entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
            files::remove_if_there(entry.path()).map_err(Error::file("remove", entry.path()))?;
        }
    }
    Ok(())
}

fn forget_old(directory: &Utf8Path, keep: Option<&Utf8Path>) -> Result<()> {
    if !directory.is_dir() {
        return Ok(());
    }
    for entry in directory.read_dir_utf8().map_err(Error::file("list", directory))?.flatten() {
        if Some(entry.path()) != keep {
            files::remove_tree_if_there(entry.path()).map_err(Error::file("remove", entry.path()))?;
        }
    }
    Ok(())
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
        files::write_atomic(&path, value.unwrap_or_default().as_bytes(), 0o644).map_err(Error::file("write", path))?;
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
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b));
    if good { Ok(name) } else { Err(Error::Refused(format!("`{name}` is no name of a job, package or blob"))) }
}

fn parse_digest(what: &str, text: &str) -> Result<MultiDigest> {
    text.parse().map_err(|source: stolos_release::Error| Error::Install { what: what.to_owned(), source: Box::new(source) })
}
