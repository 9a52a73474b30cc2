//! Plans, clusters and their kubeconfigs.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use stolos_api::pks;
use stolos_base::input::{Json, Query, Unreadable};

use super::{App, Failure, LONGEST_WAIT, begun, operation_header, page, unreadable};
use crate::accept::{Accepted, Deletion, Mode};
use crate::authorize::{Caller, Right};
use crate::db;
use crate::error::Error;
use crate::flows::Power;
use crate::pages;
use crate::service::Access;
use crate::show;
use crate::who::Key;

/// Ours beside the foreign API: everything is checked as for the request itself, and nothing is written.
#[derive(Debug, Deserialize)]
pub(super) struct DryRun {
    #[serde(default)]
    dry_run: bool,
}

impl DryRun {
    fn mode(&self) -> Mode {
        if self.dry_run { Mode::DryRun } else { Mode::Do }
    }
}

/// The operation, and what of the request has no effect here: PKS's bodies have no place for either.
fn headers(accepted: &Accepted) -> HeaderMap {
    let mut headers = HeaderMap::from_iter(operation_header(&accepted.operation));
    if !accepted.not_applied.is_empty()
        && let Ok(value) = HeaderValue::try_from(accepted.not_applied.join(", "))
    {
        headers.insert("x-stolos-not-applied", value);
    }
    headers
}

pub(super) async fn plan_list(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<Vec<pks::Plan>>, Failure> {
    caller.may(Right::Plans)?;
    Ok(Json(
        app.desk()
            .plans
            .active()
            .map(|(id, plan)| show::plan(id, plan))
            .collect(),
    ))
}

pub(super) async fn room_view(State(app): State<App>, caller: Caller) -> Result<Json<pks::Room>, Failure> {
    caller.may(Right::Plans)?;
    Ok(Json(app.desk().room().await?))
}

pub(super) async fn cluster_list(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<Vec<pks::Cluster>>, Failure> {
    caller.may(Right::Read)?;
    let rows = db::clusters(&app.desk().db, caller.own(Right::ReadAll)).await?;
    Ok(Json(rows.iter().map(|row| app.desk().show(row)).collect()))
}

/// Clusters on a page, unless the caller says otherwise.
const USUAL: u32 = 50;

#[derive(Debug, Deserialize)]
pub(super) struct PageQuery {
    #[serde(default)]
    limit: Option<String>,
    #[serde(default)]
    after: Option<String>,
    #[serde(default)]
    search: Option<String>,
    /// Id of a person: those that are theirs.
    #[serde(default)]
    owner: Option<String>,
}

pub(super) async fn cluster_page(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<PageQuery>,
) -> Result<Json<pks::Page<pks::Cluster>>, Failure> {
    caller.may(Right::Read)?;
    let limit = page::limit(query.limit.as_deref(), USUAL)?;
    let after: Option<String> = page::after(query.after.as_deref())?;
    let owner = query.owner.as_deref().map(Key::person);
    let whose = match &owner {
        // Of somebody else one learns nothing, not even whether there is such an owner.
        Some(key) if *key != caller.who().key => {
            caller.may(Right::ReadAll)?;
            db::Whose::Of(key)
        }
        Some(key) => db::Whose::Of(key),
        None => caller.own(Right::ReadAll),
    };
    let db = &app.desk().db;
    let search = query.search.as_deref().unwrap_or_default();
    let total = pages::count_clusters(db, whose, search).await?;
    let mut rows = pages::clusters(db, whose, search, after.as_deref(), limit + 1).await?;
    let next = page::cut(&mut rows, limit, |row| row.name.to_string());
    Ok(Json(pks::Page {
        items: rows.iter().map(|row| app.desk().show(row)).collect(),
        next,
        total: Some(total),
    }))
}

pub(super) async fn cluster_view(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<pks::Cluster>, Failure> {
    caller.may(Right::Read)?;
    let row = db::cluster(&app.desk().db, &name, caller.own(Right::ReadAll)).await?;
    Ok(Json(app.desk().show(&row)))
}

pub(super) async fn cluster_create(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<DryRun>,
    body: Result<Json<pks::ClusterRequest>, Unreadable>,
) -> Result<Response, Failure> {
    caller.may(Right::Manage)?;
    let Json(request) = body.map_err(unreadable)?;
    let accepted = app.desk().create(&caller, &request, query.mode()).await?;
    if query.dry_run {
        return Ok(Json(accepted.preview()).into_response());
    }
    let shown = Json(app.desk().show(&accepted.cluster));
    Ok((StatusCode::ACCEPTED, headers(&accepted), shown).into_response())
}

pub(super) async fn cluster_details(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<pks::Cluster>, Failure> {
    caller.may(Right::Read)?;
    let row = db::cluster(&app.desk().db, &name, caller.own(Right::ReadAll)).await?;
    Ok(Json(app.desk().show_details(&row)))
}

pub(super) async fn cluster_update(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<DryRun>,
    body: Result<Json<pks::UpdateParameters>, Unreadable>,
) -> Result<Response, Failure> {
    caller.may(Right::Manage)?;
    let Json(change) = body.map_err(unreadable)?;
    let accepted = app.desk().update(&caller, &name, &change, query.mode()).await?;
    if query.dry_run {
        return Ok(Json(accepted.preview()).into_response());
    }
    Ok((StatusCode::ACCEPTED, headers(&accepted)).into_response())
}

pub(super) async fn cluster_delete(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Response, Failure> {
    let operation = match app.desk().delete(&caller, &name).await? {
        Deletion::Accepted(operation) => operation,
        // The running operation has to stop first; that is quick, because every step can be cancelled. Should it not be,
        // the caller hears that the cluster is busy and may ask again.
        Deletion::After(running) => {
            app.cancel(&running, caller.who()).await?;
            app.wait_ended(running.id, LONGEST_WAIT).await;
            match app.desk().delete(&caller, &name).await? {
                Deletion::Accepted(operation) => operation,
                Deletion::After(running) => {
                    return Err(Error::Busy {
                        cluster: running.cluster,
                    }
                    .into());
                }
            }
        }
    };
    Ok((StatusCode::NO_CONTENT, operation_header(&operation)).into_response())
}

/// For a person, under the person's own name where the operator wants that and the cluster can.
pub(super) async fn bind_create(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Response, Failure> {
    caller.may(Right::Manage)?;
    let row = db::cluster(&app.desk().db, &name, caller.own(Right::ManageAll)).await?;
    let personal = app.gives_personal() && caller.is_person() && row.settings.trusted_oidc().is_some();
    let access = if personal {
        Access::Person { administers: true }
    } else {
        Access::ServiceAccount
    };
    let kubeconfig = app.bind(&caller, &row, caller.name(), access).await?;
    Ok(credentials(StatusCode::CREATED, kubeconfig))
}

#[derive(Debug, Deserialize)]
pub(super) struct BindQuery {
    /// Give no rights in the cluster; an operator has given some, or will.
    #[serde(default)]
    suppress_cluster_role_binding: bool,
}

/// Everybody may have a kubeconfig without rights for themselves, as PKS's end users did: it says where the cluster is, and what the person
/// may do there is Kubernetes' business.
pub(super) async fn bind_view(
    State(app): State<App>,
    caller: Caller,
    Path((name, user)): Path<(String, String)>,
    Query(query): Query<BindQuery>,
) -> Result<Response, Failure> {
    let suppress = query.suppress_cluster_role_binding;
    let whose = if suppress && caller.is_person() && caller.name() == user {
        db::Whose::All
    } else {
        caller.may(Right::Manage)?;
        caller.own(Right::ManageAll)
    };
    let row = db::cluster(&app.desk().db, &name, whose).await?;
    let access = if suppress || app.gives_personal() {
        Access::Person {
            administers: !suppress,
        }
    } else {
        Access::ServiceAccount
    };
    let kubeconfig = app.bind(&caller, &row, &user, access).await?;
    Ok(credentials(StatusCode::OK, kubeconfig))
}

fn credentials(status: StatusCode, kubeconfig: serde_json::Value) -> Response {
    let no_store = [(header::CACHE_CONTROL, "no-store")];
    (status, no_store, Json(kubeconfig)).into_response()
}

pub(super) async fn cluster_transfer(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    body: Result<Json<pks::TransferRequest>, Unreadable>,
) -> Result<Json<pks::Cluster>, Failure> {
    caller.may(Right::ManageAll)?;
    let Json(request) = body.map_err(unreadable)?;
    let cluster = app.desk().transfer(&caller, &name, &request).await?;
    Ok(Json(app.desk().show(&cluster)))
}

pub(super) async fn cluster_stop(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Response, Failure> {
    let operation = app.desk().switch(&caller, &name, Power::Stop).await?;
    Ok(begun(&operation))
}

pub(super) async fn cluster_start(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Response, Failure> {
    let operation = app.desk().switch(&caller, &name, Power::Start).await?;
    Ok(begun(&operation))
}
