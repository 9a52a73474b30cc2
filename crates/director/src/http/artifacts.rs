//! Releases and stemcells (bosh.md section 1.6).

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::header;
use axum::response::Response;
use camino::{Utf8Path, Utf8PathBuf};
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use stolos_api::director as wire;
use stolos_base::http::PeerAddress;
use stolos_base::ids::FlowId;
use stolos_base::input::{Json, Query};
use stolos_base::{chain, files};
use stolos_flow::Kind;
use tokio::io::AsyncWriteExt as _;

use super::{Caller, Failure, Right, is_on, read, to_task};
use crate::app::App;
use crate::db::deployments;
use crate::db::releases::{self as rows, ReleaseRow};
use crate::error::{Error, Result};
use crate::flows::import::{Artifact, Upload, upload_path};
use crate::flows::{self, DeleteArtifact, ImportRelease, ImportStemcell, Wish};

/// One task at a time takes releases and stemcells in or gives them up: they share blobs and packages.
const LOCK: &str = "artifacts";

pub(super) async fn release_list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<wire::Release>>, Failure> {
    caller.may(Right::Read)?;
    let used = deployments::list(&app.db).await?;
    let mut releases: BTreeMap<String, Vec<ReleaseRow>> = BTreeMap::new();
    for row in rows::list(&app.db).await? {
        releases.entry(row.name.clone()).or_default().push(row);
    }
    let shown = releases.into_iter().map(|(name, mut versions)| {
        versions.sort_by(|a, b| stolos_manifest::compare_versions(&b.version, &a.version));
        let version = |row: ReleaseRow| wire::ReleaseVersion {
            currently_deployed: used.iter().any(|one| {
                one.releases
                    .iter()
                    .any(|used| used.name == row.name && used.version == row.version)
            }),
            version: row.version,
            commit_hash: row.commit_hash,
            uncommitted_changes: row.uncommitted_changes,
            job_names: row.jobs,
        };
        wire::Release {
            release_versions: versions.into_iter().map(version).collect(),
            name,
        }
    });
    Ok(Json(shown.collect()))
}

/// What `GET /releases/N?version=V` shows.
#[derive(Debug, Serialize)]
pub(super) struct ReleaseView {
    jobs: Vec<JobView>,
    packages: Vec<PackageView>,
    versions: Vec<String>,
}

#[derive(Debug, Serialize)]
struct JobView {
    name: String,
    blobstore_id: String,
    sha1: String,
    fingerprint: String,
}

#[derive(Debug, Serialize)]
struct PackageView {
    name: String,
    fingerprint: String,
    compiled_packages: Vec<CompiledView>,
}

#[derive(Debug, Serialize)]
struct CompiledView {
    stemcell: String,
    sha1: String,
    blobstore_id: String,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct VersionQuery {
    version: Option<String>,
}

pub(super) async fn release_view(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<VersionQuery>,
) -> Result<Json<ReleaseView>, Failure> {
    caller.may(Right::Read)?;
    let mut versions: Vec<String> = rows::list(&app.db)
        .await?
        .into_iter()
        .filter(|row| row.name == name)
        .map(|row| row.version)
        .collect();
    versions.sort_by(|a, b| stolos_manifest::compare_versions(a, b));
    let version = match query.version {
        Some(version) if versions.contains(&version) => version,
        Some(version) => return Err(Error::NoRelease(format!("{name}/{version}")).into()),
        None => versions
            .last()
            .cloned()
            .ok_or_else(|| Error::NoRelease(name.clone()))?,
    };
    let jobs = rows::jobs(&app.db, &name, &version)
        .await?
        .into_iter()
        .map(|job| JobView {
            name: job.name,
            blobstore_id: job.blob,
            sha1: job.digest,
            fingerprint: job.fingerprint,
        });
    let mut packages: Vec<PackageView> = Vec::new();
    for row in rows::packages(&app.db, &name, &version).await? {
        let compiled = CompiledView {
            stemcell: row.stemcell,
            sha1: row.digest,
            blobstore_id: row.blob,
        };
        match packages.iter_mut().find(|package| package.name == row.name) {
            Some(package) => package.compiled_packages.push(compiled),
            None => packages.push(PackageView {
                name: row.name,
                fingerprint: row.fingerprint,
                compiled_packages: vec![compiled],
            }),
        }
    }
    Ok(Json(ReleaseView {
        jobs: jobs.collect(),
        packages,
        versions,
    }))
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct UploadQuery {
    fix: Option<String>,
}

pub(super) async fn release_upload(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<UploadQuery>,
    request: Request,
) -> Result<Response, Failure> {
    caller.may(Right::UploadReleases)?;
    let fix = is_on(query.fix.as_deref());
    Ok(upload::<ImportRelease>(&app, &caller, ("update_release", "create release"), fix, request).await?)
}

pub(super) async fn stemcell_upload(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<UploadQuery>,
    request: Request,
) -> Result<Response, Failure> {
    caller.may(Right::UploadStemcells)?;
    let fix = is_on(query.fix.as_deref());
    Ok(upload::<ImportStemcell>(
        &app,
        &caller,
        ("update_stemcell", "create stemcell"),
        fix,
        request,
    )
    .await?)
}

async fn upload<K: Kind<Input = Upload>>(
    app: &Arc<App>,
    caller: &Caller,
    (kind, description): (&'static str, &str),
    fix: bool,
    request: Request,
) -> Result<Response> {
    let id = FlowId::new(&app.ids);
    let peer = request.extensions().get::<PeerAddress>().copied();
    let content_type = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let input = if content_type.starts_with("application/json") {
        let Json(remote) = Json::<wire::Remote>::from_request(request, &())
            .await
            .map_err(|rejection| Error::Request(rejection.body_text()))?;
        Upload {
            path: local(caller, peer, &remote.location)?,
            ours: false,
            digest: remote.sha1,
            fix,
        }
    } else if content_type.starts_with("application/x-compressed") {
        let path = upload_path(app, id);
        let announced = request.headers().get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|value| value.to_str().ok()?.parse().ok());
        receive(&path, request.into_body(), announced).await?;
        Upload {
            path,
            ours: true,
            digest: None,
            fix,
        }
    } else {
        return Err(Error::Request(
            "an upload has the content type application/x-compressed, or application/json for a location"
                .to_owned(),
        ));
    };
    let wish = Wish {
        id,
        kind,
        description: description.to_owned(),
        deployment: None,
        user: caller.name(),
        context: caller.context(),
        lock: Some(LOCK.to_owned()),
        input,
    };
    Ok(to_task(flows::submit::<K>(app, wish).await?))
}

/// A file on this host, for administrators who are on it: it is read with our rights. Whoever comes from elsewhere gets the same
/// answer for every location, so that nobody learns which files there are.
fn local(caller: &Caller, peer: Option<PeerAddress>, location: &str) -> Result<Utf8PathBuf> {
    if caller.may(Right::Admin).is_err() {
        return Err(Error::Denied {
            needed: vec!["bosh.admin".to_owned()],
        });
    }
    if !peer.is_some_and(is_of_this_host) {
        return Err(Error::Request(
            "a location is taken on the director's host only; upload the file itself".to_owned(),
        ));
    }
    let path = location
        .strip_prefix("file://")
        .map(Utf8Path::new)
        .filter(|path| path.is_absolute())
        .ok_or_else(|| Error::Request(format!("'{location}' is not of the form file:///PATH")))?;
    if path.is_file() {
        Ok(path.to_owned())
    } else {
        Err(Error::Request(format!(
            "there is no file '{path}' on the director's host"
        )))
    }
}

/// Whether the connection comes from an address of this host: only such can be bound. Nothing is sent. Connections to a balanced address
/// keep theirs.
fn is_of_this_host(PeerAddress(peer): PeerAddress) -> bool {
    std::net::UdpSocket::bind((peer.ip(), 0)).is_ok()
}

/// Streams a body to a file, all of the length that was announced; what was written so far goes when the sender does.
async fn receive(path: &Utf8Path, body: Body, announced: Option<u64>) -> Result<()> {
    let failed = |action| {
        move |source| Error::File {
            action,
            path: path.to_owned(),
            source,
        }
    };
    if let Some(directory) = path.parent() {
        fs_err::create_dir_all(directory).map_err(failed("make the directory of"))?;
    }
    let unfinished = Unfinished(path);
    let file = tokio::fs::File::create_new(path).await.map_err(failed("make"))?;
    let mut file = tokio::io::BufWriter::with_capacity(1 << 20, file);
    let mut chunks = body.into_data_stream();
    let mut received = 0_u64;
    let of = announced.map_or_else(String::new, |length| format!(" of {length}"));
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            let why = chain(&error);
            Error::Request(format!("the upload broke off after {received}{of} bytes: {why}"))
        })?;
        received += chunk.len() as u64;
        file.write_all(&chunk).await.map_err(failed("write"))?;
    }
    if announced.is_some_and(|length| length != received) {
        return Err(Error::Request(format!(
            "the upload ended after {received}{of} bytes"
        )));
    }
    file.flush().await.map_err(failed("write"))?;
    file.get_ref().sync_all().await.map_err(failed("sync"))?;
    std::mem::forget(unfinished);
    Ok(())
}

struct Unfinished<'a>(&'a Utf8Path);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Err(error) = files::remove_if_there(self.0) {
            tracing::warn!(path = %self.0, %error, "failed to remove an unfinished upload");
        }
    }
}

pub(super) async fn release_delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<VersionQuery>,
) -> Result<Response, Failure> {
    caller.may(Right::Admin)?;
    let there = rows::list(&app.db).await?;
    let matches = |row: &ReleaseRow| {
        row.name == name
            && query
                .version
                .as_ref()
                .is_none_or(|version| *version == row.version)
    };
    if !there.iter().any(matches) {
        return Err(Error::NoRelease(name).into());
    }
    let description = format!("delete release: {name}");
    let input = Artifact::Release {
        name,
        version: query.version,
    };
    give_up(&app, &caller, ("delete_release", description), input).await
}

pub(super) async fn stemcell_delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, version)): Path<(String, String)>,
) -> Result<Response, Failure> {
    caller.may(Right::Admin)?;
    rows::found(
        rows::stemcell_by_version(&app.db, &name, &version).await?,
        &name,
        &version,
    )?;
    let description = format!("delete stemcell: {name}/{version}");
    give_up(
        &app,
        &caller,
        ("delete_stemcell", description),
        Artifact::Stemcell { name, version },
    )
    .await
}

async fn give_up(
    app: &Arc<App>,
    caller: &Caller,
    (kind, description): (&'static str, String),
    input: Artifact,
) -> Result<Response, Failure> {
    let wish = Wish {
        id: FlowId::new(&app.ids),
        kind,
        description,
        deployment: None,
        user: caller.name(),
        context: caller.context(),
        lock: Some(LOCK.to_owned()),
        input,
    };
    Ok(to_task(flows::submit::<DeleteArtifact>(app, wish).await?))
}

pub(super) async fn stemcell_list(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Vec<wire::Stemcell>>, Failure> {
    caller.may(Right::Read)?;
    let used = deployments::list(&app.db).await?;
    let stemcells = rows::stemcells(&app.db).await?;
    let show = |row: rows::StemcellRow| wire::Stemcell {
        deployments: used
            .iter()
            .filter(|one| {
                one.stemcells
                    .iter()
                    .any(|used| used.name == row.name && used.version == row.version)
            })
            .map(|one| wire::NameOnly {
                name: one.name.clone(),
            })
            .collect(),
        id: row.id.to_string(),
        name: row.name,
        operating_system: row.os,
        version: row.version,
        cid: row.cid,
        cpi: String::new(),
        api_version: Some(row.api_version),
    };
    Ok(Json(stemcells.into_iter().map(show).collect()))
}

#[derive(Debug, Deserialize)]
pub(super) struct StemcellOffer {
    stemcell: wire::NameVersion,
}

#[derive(Debug, Serialize)]
pub(super) struct Needed {
    needed: bool,
}

pub(super) async fn stemcell_needed(
    State(app): State<Arc<App>>,
    caller: Caller,
    offer: super::Body<StemcellOffer>,
) -> Result<Json<Needed>, Failure> {
    caller.may(Right::Read)?;
    let offer = read(offer)?;
    let there = rows::stemcell_by_version(&app.db, &offer.stemcell.name, &offer.stemcell.version).await?;
    Ok(Json(Needed {
        needed: there.is_none(),
    }))
}
