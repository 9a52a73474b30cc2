//! Releases and stemcells: taking them in and giving them up.
//!
//! A release's compiled packages are kept twice: as blobs, for agents that fetch them, and unpacked below
//! [`stolos_base::Instance::packages`], which the CPI of this host mounts into machines. What lies there under its name
//! is whole and never changes.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use stolos_api::director::code;
use stolos_base::files;
use stolos_base::ids::FlowId;
use stolos_blobs::BlobId;
use stolos_flow::{Change, FlowInfo, Graph, Interrupt, Kind, Step, StepError};
use stolos_release::tarball::{self, Limits, Owners};
use stolos_release::{
    BlobKind, ExtractedBlob, ExtractedRelease, MultiDigest, ReleaseArchive, ReleaseManifest, StemcellArchive,
};
use stolos_store::Tx;

use super::follow;
use crate::app::App;
use crate::db::begin_fenced;
use crate::db::releases::{self, JobRow, NewRelease, PackageRow, StemcellRow};
use crate::error::{Error, Result};
use crate::steps::{Attempt, Work, step};
use crate::tasks::Line;

/// Unpacking and hashing are not stopped half-way; what they left is begun anew.
const PATIENT: Interrupt = Interrupt::Never;
/// A large release on a slow disk.
const LIMIT: Duration = Duration::from_secs(3600);
/// Nobody pauses for so long in the middle of an upload: connections are given up before.
const UPLOAD_AGE: Duration = Duration::from_secs(600);
/// What the names of directories with unpacked uploads end with.
const UNPACKED: &str = "unpacked";
/// Blobs that nobody refers to are kept so long, because one may just be being recorded.
const BLOB_AGE: Duration = Duration::from_secs(3600);

/// Takes a release in.
pub(crate) struct ImportRelease(pub(crate) Arc<App>);
/// Takes a stemcell in.
pub(crate) struct ImportStemcell(pub(crate) Arc<App>);
/// Gives a release or stemcell up.
pub(crate) struct DeleteArtifact(pub(crate) Arc<App>);

/// An archive to take in; the input of the flow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Upload {
    pub(crate) path: Utf8PathBuf,
    /// Whether the file is ours and goes when it has been taken in.
    pub(crate) ours: bool,
    /// What the file's bytes must have.
    pub(crate) digest: Option<String>,
    /// Replace what is there.
    pub(crate) fix: bool,
}

/// What to give up; the input of the flow.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Artifact {
    Release { name: String, version: Option<String> },
    Stemcell { name: String, version: String },
}

/// Where a task's upload is collected.
pub(crate) fn upload_path(app: &App, flow: FlowId) -> Utf8PathBuf {
    app.config.instance.uploads().join(format!("{flow}.tgz"))
}

/// Removes uploads of tasks that have ended or never began, once nobody writes to them any more.
pub(crate) async fn remove_stale_uploads(app: &App) -> Result<()> {
    for path in uploads(app)? {
        let name = path.file_name().unwrap_or_default();
        let flow = name
            .split('.')
            .next()
            .and_then(|text| text.parse::<FlowId>().ok());
        let needed = match flow {
            Some(flow) => crate::db::tasks::by_flow(&app.db, flow)
                .await?
                .is_some_and(|task| !task.state.is_final()),
            None => false,
        };
        // Another process may be receiving one whose task begins with its last byte.
        if !needed && is_left(&path) {
            remove(&path)?;
        }
    }
    Ok(())
}

fn remove(path: &Utf8Path) -> Result<()> {
    let removed = if path.is_dir() {
        files::remove_tree_if_there(path)
    } else {
        files::remove_if_there(path)
    };
    removed.map_err(|source| Error::File {
        action: "remove",
        path: path.to_owned(),
        source,
    })
}

/// Blocking work away from the runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::Bug(format!("the work ended: {error}")))?
}

impl Kind for ImportRelease {
    const NAME: &'static str = "import release";
    type Input = Upload;

    async fn graph(&self, flow: &FlowInfo, input: Upload) -> Result<Graph, StepError> {
        let stages = ("Extracting release", "Extracting release");
        import_graph(&self.0, flow.id, input, stages, |attempt| async move {
            take_release(&attempt).await
        })
        .await
    }

    async fn on_state(&self, tx: &mut Tx, change: &Change<'_>) -> Result<(), stolos_store::Error> {
        self.0.tasks.on_state(tx, change, "").await
    }
}

impl Kind for ImportStemcell {
    const NAME: &'static str = "import stemcell";
    type Input = Upload;

    async fn graph(&self, flow: &FlowInfo, input: Upload) -> Result<Graph, StepError> {
        let stages = ("Update stemcell", "Uploading stemcell to the cloud");
        import_graph(&self.0, flow.id, input, stages, |attempt| async move {
            take_stemcell(&attempt).await
        })
        .await
    }

    async fn on_state(&self, tx: &mut Tx, change: &Change<'_>) -> Result<(), stolos_store::Error> {
        self.0.tasks.on_state(tx, change, "").await
    }
}

async fn import_graph<F>(
    app: &Arc<App>,
    flow: FlowId,
    input: Upload,
    (stage, task): (&str, &str),
    take: impl Fn(Attempt<Upload>) -> F + Send + Sync + 'static,
) -> Result<Graph, StepError>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let made = async {
        super::open(app, flow).await?;
        let work = Arc::new(Work {
            app: app.clone(),
            flow,
            what: input,
        });
        let mut graph = Graph::new();
        let take: Step<()> = step(&work, "Take in".to_owned(), take);
        let take = graph.add(take.interrupt(PATIENT).deadline(LIMIT));
        let clean = step(&work, "Remove upload".to_owned(), |attempt| async move {
            remove_scratch(&attempt.app, attempt.flow)?;
            if attempt.what.ours {
                remove(&attempt.what.path)?;
            }
            Ok(())
        });
        graph.add(clean.after(&take));
        let lines = vec![(take.name().to_owned(), Line::new(stage, task))];
        follow(app, flow, (graph, lines)).await
    };
    made.await.map_err(|error| app.tasks.step_error(flow, &error))
}

/// Where a task unpacks; emptied at the beginning of each attempt. Another place for each process that takes the task up: one that
/// was overtaken may still be unpacking.
fn scratch(attempt: &Attempt<Upload>) -> Utf8PathBuf {
    let name = format!("{}.{}.{UNPACKED}", attempt.flow, attempt.ctx.fence().number);
    attempt.app.config.instance.uploads().join(name)
}

/// Removes what all processes have unpacked for a task.
fn remove_scratch(app: &App, flow: FlowId) -> Result<()> {
    let prefix = format!("{flow}.");
    for path in uploads(app)? {
        let name = path.file_name().unwrap_or_default();
        if name.starts_with(&prefix) && name.ends_with(UNPACKED) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Everything in the directory of uploads.
fn uploads(app: &App) -> Result<Vec<Utf8PathBuf>> {
    let directory = app.config.instance.uploads();
    let failed = |source| Error::File {
        action: "list",
        path: directory.clone(),
        source,
    };
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let entries = directory.read_dir_utf8().map_err(failed)?;
    entries
        .map(|entry| entry.map(|entry| entry.into_path()).map_err(failed))
        .collect()
}

/// Whether nobody has written to it for a while; what is gone was somebody else's to remove.
fn is_left(path: &Utf8Path) -> bool {
    let changed = fs_err::symlink_metadata(path).and_then(|metadata| metadata.modified());
    changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > UPLOAD_AGE))
}

async fn check_digest(upload: &Upload, code: u32) -> Result<()> {
    let Some(digest) = upload.digest.clone() else {
        return Ok(());
    };
    let path = upload.path.clone();
    blocking(move || {
        let digest: MultiDigest = digest.parse()?;
        let file = fs_err::File::open(&path).map_err(|source| Error::File {
            action: "read",
            path: path.clone(),
            source,
        })?;
        let reader = stolos_release::digest::HashingReader::new(file, &digest);
        reader
            .finish(path.as_str(), &digest)
            .map(drop)
            .map_err(|error| Error::Mismatch {
                text: stolos_base::chain(&error),
                code,
            })
    })
    .await
}

async fn take_release(attempt: &Attempt<Upload>) -> Result<()> {
    let app = &attempt.app;
    check_digest(&attempt.what, code::RELEASE_DIGEST).await?;
    let path = attempt.what.path.clone();
    let archive = blocking(move || Ok(ReleaseArchive::open(&path)?)).await?;
    let manifest = archive.manifest().clone();
    let label = format!("{}/{}", manifest.name, manifest.version);
    if !manifest.packages.is_empty() {
        return Err(Error::NotCompiled(format!(
            "release '{label}' has its packages as source; only compiled releases can be taken in"
        )));
    }
    if !attempt.what.fix && is_there(app, &manifest).await? {
        // The same words at its beginning do not make it the same, or whole.
        attempt.status("verifying");
        blocking(move || Ok(archive.verify()?)).await?;
        app.tasks
            .set_result(attempt.flow, format!("Created release '{label}'"));
        app.tasks
            .debug(attempt.flow, &format!("release {label} is there already"));
        return Ok(());
    }
    attempt.status("extracting");
    let directory = scratch(attempt);
    let extracted = {
        let (archive, directory) = (archive.clone(), directory.clone());
        blocking(move || {
            remove(&directory)?;
            Ok(archive.extract(&directory)?)
        })
        .await?
    };
    attempt.status("storing jobs and packages");
    let new = store_release(app, &manifest, &extracted).await?;
    attempt.status("unpacking packages");
    for package in &new.packages {
        unpack_package(app, package).await?;
    }
    let mut tx = begin_fenced(&app.db, "record a release", attempt.ctx.fence()).await?;
    releases::write(&mut tx, &new).await?;
    tx.commit().await?;
    app.tasks
        .set_result(attempt.flow, format!("Created release '{label}'"));
    Ok(())
}

/// Whether the same release is there, whole. One that differs is refused.
async fn is_there(app: &App, manifest: &ReleaseManifest) -> Result<bool> {
    let (name, version) = (manifest.name.as_str(), manifest.version.to_string());
    let Some(commit) = releases::commit_of(&app.db, name, &version).await? else {
        return Ok(false);
    };
    if commit != manifest.commit_hash {
        return Err(Error::Mismatch {
            text: format!(
                "release '{name}/{version}' has already been uploaded with commit_hash as '{commit}'"
            ),
            code: code::COMMIT_HASH_MISMATCH,
        });
    }
    let differs = |kind: &str, one: &str, code| {
        Err(Error::Mismatch {
            text: format!(
                "{kind} '{one}' of release '{name}/{version}' has another fingerprint than the one that was uploaded before"
            ),
            code,
        })
    };
    let jobs: BTreeMap<String, String> = releases::jobs(&app.db, name, &version)
        .await?
        .into_iter()
        .map(|job| (job.name, job.fingerprint))
        .collect();
    for job in &manifest.jobs {
        if jobs.get(&job.name) != Some(fingerprint(&job.fingerprint, &job.version)) {
            return differs("job", &job.name, code::JOB_MISMATCH);
        }
    }
    let packages = releases::packages(&app.db, name, &version).await?;
    for package in &manifest.compiled_packages {
        let known = packages
            .iter()
            .find(|row| row.name == package.name && row.stemcell == package.stemcell);
        let Some(known) = known else { return Ok(false) };
        if known.fingerprint != *fingerprint(&package.fingerprint, &package.version) {
            return differs("package", &package.name, code::PACKAGE_MISMATCH);
        }
        let digest: MultiDigest = package.sha1.clone();
        let blob: Result<BlobId, _> = known.blob.parse();
        let whole =
            blob.is_ok_and(|id| app.blobs.contains(&id)) && package_directory(app, &known.blob).exists();
        // The same content packed anew has another digest; agents and machines know packages by it.
        let same = digest
            .hex(stolos_release::digest::Algorithm::Sha256)
            .is_none_or(|hex| hex == known.blob);
        if !whole || !same {
            return Ok(false);
        }
    }
    Ok(true)
}

fn fingerprint<'a>(fingerprint: &'a String, version: &'a String) -> &'a String {
    if fingerprint.is_empty() {
        version
    } else {
        fingerprint
    }
}

async fn store_release<'m>(
    app: &App,
    manifest: &'m ReleaseManifest,
    extracted: &ExtractedRelease,
) -> Result<NewRelease<'m>> {
    let mut new = NewRelease {
        name: &manifest.name,
        version: manifest.version.to_string(),
        commit_hash: &manifest.commit_hash,
        uncommitted_changes: manifest.uncommitted_changes,
        jobs: Vec::new(),
        packages: Vec::new(),
    };
    for job in &extracted.jobs {
        new.jobs.push(JobRow {
            name: job.blob.entry.name.clone(),
            fingerprint: job.blob.entry.fingerprint.clone(),
            digest: format!("sha256:{}", job.blob.sha256),
            blob: store(app, &job.blob).await?,
            spec: job.job.spec.clone(),
        });
    }
    let compiled = |name: &str| {
        manifest
            .compiled_packages
            .iter()
            .find(|package| package.name == name)
    };
    for package in &extracted.packages {
        let listed = compiled(&package.entry.name)
            .filter(|_| package.entry.kind == BlobKind::CompiledPackage)
            .ok_or_else(|| Error::Bug(format!("package `{}` is not listed", package.entry.name)))?;
        new.packages.push(PackageRow {
            name: package.entry.name.clone(),
            fingerprint: package.entry.fingerprint.clone(),
            stemcell: listed.stemcell.clone(),
            digest: format!("sha256:{}", package.sha256),
            blob: store(app, package).await?,
            dependencies: listed.dependencies.clone(),
        });
    }
    for absent in &extracted.absent {
        let listed = compiled(&absent.name);
        let stemcell = listed.map_or("", |package| package.stemcell.as_str());
        let known =
            releases::package_by_fingerprint(&app.db, &absent.name, &absent.fingerprint, stemcell).await?;
        new.packages.push(known.ok_or_else(|| Error::Mismatch {
            text: format!(
                "the release archive has no package '{}', and no other release has it",
                absent.name
            ),
            code: code::RELEASE_INVALID,
        })?);
    }
    Ok(new)
}

/// Stores a blob under the SHA-256 that it was extracted with.
async fn store(app: &App, blob: &ExtractedBlob) -> Result<String> {
    let id: BlobId = blob
        .sha256
        .parse()
        .map_err(|_| Error::Bug(format!("`{}` is no SHA-256", blob.sha256)))?;
    if !app.blobs.contains(&id) {
        let failed = |source| Error::File {
            action: "read",
            path: blob.path.clone(),
            source,
        };
        let file = tokio::fs::File::open(&blob.path).await.map_err(failed)?;
        let stored = app
            .blobs
            .put(file, blob.size)
            .await
            .map_err(|error| Error::blob("write", error))?;
        if stored.id != id {
            return Err(Error::Bug(format!(
                "blob `{}` changed while it was stored",
                blob.path
            )));
        }
    }
    Ok(blob.sha256.clone())
}

fn package_directory(app: &App, sha256: &str) -> Utf8PathBuf {
    app.config.instance.packages().join(sha256)
}

/// Unpacks a package beside its place and renames it, so that under its name it is whole or not there.
async fn unpack_package(app: &App, package: &PackageRow) -> Result<()> {
    let place = package_directory(app, &package.blob);
    if place.exists() {
        return Ok(());
    }
    let id: BlobId = package.blob.parse().map_err(|_| {
        Error::Bug(format!(
            "package `{}` has the blob `{}`",
            package.name, package.blob
        ))
    })?;
    let archive = app
        .blobs
        .path(&id)
        .ok_or_else(|| Error::blob("read", stolos_blobs::Error::NotFound(id.clone())))?;
    let name = package.name.clone();
    blocking(move || {
        let all = place.parent().unwrap_or(&place).to_owned();
        let temporary = all.join(format!(".{}.{}", id.as_str(), stolos_base::ids::random_hex(4)));
        let failed = |action| {
            let path = temporary.clone();
            move |source| Error::File { action, path, source }
        };
        fs_err::create_dir_all(&all).map_err(failed("make"))?;
        let unpacked = (|| {
            let digest = MultiDigest::from_sha256_hex(id.as_str())?;
            let file = fs_err::File::open(&archive).map_err(failed("read"))?;
            let mut reader = stolos_release::digest::HashingReader::new(file, &digest);
            tarball::unpack(&name, &mut reader, &temporary, Limits::PACKAGE, Owners::Caller)?;
            reader.finish(&name, &digest)?;
            make_read_only(&temporary).map_err(failed("protect"))?;
            sync(&temporary).map_err(failed("sync"))?;
            match fs_err::rename(&temporary, &place) {
                // Another task was quicker with the same bytes.
                Err(_) if place.exists() => Ok(()),
                other => other.map_err(failed("rename")),
            }
        })();
        if unpacked.is_err() || temporary.exists() {
            files::remove_tree_if_there(&temporary).map_err(failed("remove"))?;
        }
        unpacked
    })
    .await
}

/// Takes the right to write from everything below; links are left alone.
fn make_read_only(path: &Utf8Path) -> io::Result<()> {
    let metadata = fs_err::symlink_metadata(path)?;
    if metadata.is_symlink() {
        return Ok(());
    }
    if metadata.is_dir() {
        for entry in path.read_dir_utf8()? {
            make_read_only(entry?.path())?;
        }
    }
    let mode = metadata.permissions().mode() & 0o7777 & !0o222;
    // Machines run as other users than the one that unpacked.
    let readable = if metadata.is_dir() || mode & 0o100 != 0 {
        0o555
    } else {
        0o444
    };
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode | readable))
}

/// Everything below is on disk before the name that says so is.
fn sync(path: &Utf8Path) -> io::Result<()> {
    let directory = fs_err::File::open(path)?;
    rustix::fs::syncfs(directory.file())?;
    Ok(())
}

async fn take_stemcell(attempt: &Attempt<Upload>) -> Result<()> {
    let app = &attempt.app;
    check_digest(&attempt.what, code::STEMCELL_DIGEST).await?;
    let path = attempt.what.path.clone();
    let archive = blocking(move || Ok(StemcellArchive::open(&path)?)).await?;
    let manifest = archive.manifest().clone();
    let (name, version) = (manifest.name.clone(), manifest.version.to_string());
    app.tasks
        .set_result(attempt.flow, format!("/stemcells/{name}/{version}"));
    if !attempt.what.fix
        && releases::stemcell_by_version(&app.db, &name, &version)
            .await?
            .is_some()
    {
        attempt.status("verifying");
        blocking(move || Ok(archive.verify()?)).await?;
        app.tasks.debug(
            attempt.flow,
            &format!("stemcell {name}/{version} is there already"),
        );
        return Ok(());
    }
    let formats = attempt.machines().stemcell_formats().await?;
    let fits = manifest.stemcell_formats.is_empty()
        || manifest
            .stemcell_formats
            .iter()
            .any(|format| formats.contains(format));
    if !fits {
        return Err(Error::Mismatch {
            text: format!(
                "stemcell '{name}/{version}' has the formats {}, and the CPI takes {}",
                manifest.stemcell_formats.join(", "),
                formats.join(", ")
            ),
            code: code::STEMCELL_INVALID,
        });
    }
    attempt.status("extracting the image");
    let directory = scratch(attempt);
    let image = directory.join("image");
    let received = {
        let image = image.clone();
        blocking(move || {
            remove(&directory)?;
            fs_err::create_dir_all(&directory).map_err(|source| Error::File {
                action: "make",
                path: directory.clone(),
                source,
            })?;
            Ok(archive.extract_image(&image)?)
        })
        .await?
    };
    attempt.status("handing it to the CPI");
    let call = attempt.call_id("create_stemcell");
    let cid = attempt
        .machines()
        .create_stemcell(&call, image.as_str(), &manifest.cloud_properties)
        .await?;
    let row = StemcellRow {
        id: 0,
        os: manifest.os().to_owned(),
        api_version: manifest.api_version,
        name,
        version,
        cid,
    };
    let mut tx = begin_fenced(&app.db, "record a stemcell", attempt.ctx.fence()).await?;
    releases::write_stemcell(&mut tx, &row, &format!("sha256:{}", received.sha256)).await?;
    tx.commit().await?;
    Ok(())
}

impl Kind for DeleteArtifact {
    const NAME: &'static str = "delete artifact";
    type Input = Artifact;

    async fn graph(&self, flow: &FlowInfo, input: Artifact) -> Result<Graph, StepError> {
        let made = async {
            super::open(&self.0, flow.id).await?;
            let work = Arc::new(Work {
                app: self.0.clone(),
                flow: flow.id,
                what: input,
            });
            let mut graph = Graph::new();
            let find = step(&work, "Find".to_owned(), |attempt| async move {
                stemcell_cid(&attempt).await
            });
            let find = graph.add(find);
            let forget = step(&work, "Forget".to_owned(), |attempt| async move {
                forget(&attempt).await
            });
            let forget = graph.add(forget.after(&find));
            let delete = step(&work, "Delete".to_owned(), move |attempt| {
                let find = find.clone();
                async move {
                    let cid = attempt
                        .ctx
                        .output(&find)
                        .map_err(|error| Error::Bug(error.message))?;
                    if let Some(cid) = cid {
                        let call = attempt.call_id("delete_stemcell");
                        attempt.machines().delete_stemcell(&call, &cid).await?;
                    }
                    collect_garbage(&attempt.app).await
                }
            });
            let delete = graph.add(delete.interrupt(PATIENT).after(&forget));
            let line = Line::new("Deleting", "Deleting");
            let lines = vec![
                (
                    forget.name().to_owned(),
                    Line {
                        closes: false,
                        ..line.clone()
                    },
                ),
                (delete.name().to_owned(), line),
            ];
            follow(&self.0, flow.id, (graph, lines)).await
        };
        made.await
            .map_err(|error| self.0.tasks.step_error(flow.id, &error))
    }

    async fn on_state(&self, tx: &mut Tx, change: &Change<'_>) -> Result<(), stolos_store::Error> {
        self.0.tasks.on_state(tx, change, "").await
    }
}

/// The CPI's id of the stemcell, known before its row goes.
async fn stemcell_cid(attempt: &Attempt<Artifact>) -> Result<Option<String>> {
    match &attempt.what {
        Artifact::Release { .. } => Ok(None),
        Artifact::Stemcell { name, version } => {
            let row = releases::stemcell_by_version(&attempt.app.db, name, version).await?;
            Ok(row.map(|row| row.cid))
        }
    }
}

/// Forgets what nobody uses. The transaction keeps plans out that would begin to use it.
async fn forget(attempt: &Attempt<Artifact>) -> Result<()> {
    let app = &attempt.app;
    let mut tx = begin_fenced(&app.db, "forget a release or stemcell", attempt.ctx.fence()).await?;
    let users = users_of(app, &attempt.what).await?;
    if !users.is_empty() {
        let (what, code) = match &attempt.what {
            Artifact::Release { name, version: None } => (format!("Release '{name}'"), code::RELEASE_IN_USE),
            Artifact::Release {
                name,
                version: Some(version),
            } => (format!("Release '{name}/{version}'"), code::RELEASE_IN_USE),
            Artifact::Stemcell { name, version } => {
                (format!("Stemcell '{name}/{version}'"), code::STEMCELL_IN_USE)
            }
        };
        return Err(Error::InUse {
            what,
            users: users.join(", "),
            code,
        });
    }
    match &attempt.what {
        Artifact::Release { name, version } => {
            releases::delete(&mut tx, name, version.as_deref()).await?;
        }
        Artifact::Stemcell { name, version } => releases::delete_stemcell(&mut tx, name, version).await?,
    }
    tx.commit().await?;
    Ok(())
}

/// Deployments that use it.
async fn users_of(app: &App, artifact: &Artifact) -> Result<Vec<String>> {
    let deployments = crate::db::deployments::list(&app.db).await?;
    let uses = deployments.into_iter().filter(|deployment| match artifact {
        Artifact::Release { name, version } => deployment
            .releases
            .iter()
            .any(|one| one.name == *name && version.as_ref().is_none_or(|version| *version == one.version)),
        Artifact::Stemcell { name, version } => deployment
            .stemcells
            .iter()
            .any(|one| one.name == *name && one.version == *version),
    });
    Ok(uses.map(|deployment| deployment.name).collect())
}

/// Removes blobs and unpacked packages that no release refers to.
async fn collect_garbage(app: &App) -> Result<()> {
    let referred = releases::blobs(&app.db).await?;
    let keep: HashSet<BlobId> = referred.iter().filter_map(|text| text.parse().ok()).collect();
    let (blobs, packages) = (app.blobs.clone(), app.config.instance.packages());
    blocking(move || {
        blobs
            .sweep(&keep, BLOB_AGE)
            .map_err(|error| Error::blob("sweep", error))?;
        if !packages.exists() {
            return Ok(());
        }
        let failed = |source| Error::File {
            action: "list",
            path: packages.clone(),
            source,
        };
        for entry in packages.read_dir_utf8().map_err(failed)? {
            let path = entry.map_err(failed)?.into_path();
            let name: Option<BlobId> = path.file_name().and_then(|name| name.parse().ok());
            if name.is_some_and(|id| !keep.contains(&id)) {
                remove(&path)?;
            }
        }
        Ok(())
    })
    .await
}
