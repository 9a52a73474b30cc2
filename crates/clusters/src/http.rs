//! The PKS API, version 1, and our own resources beside it.
//!
//! The router is a table of contents; handlers extract, authorize through the desk, and convert. A token is looked at before
//! anything else, so that nobody learns from a 404 what exists.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use stolos_api::pks;
use stolos_base::{Classify, chain};

use crate::Service;
use crate::accept::Deletion;
use crate::authorize::{Caller, Right};
use crate::db;
use crate::error::{Error, Result};
use crate::{quotas, show};

/// The largest request body: requests are small, whatever somebody sends.
const BODY_LIMIT: usize = 256 * 1024;
/// The longest that a request for an operation may wait for news.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The router of port 9021.
pub(crate) fn router(service: Service) -> Router {
    Router::new()
        .route("/v1/clusters", get(cluster_list).post(cluster_create))
        .route(
            "/v1/clusters/{name}",
            get(cluster_view).patch(cluster_update).delete(cluster_delete),
        )
        .route("/v1/clusterdetails/{name}", get(cluster_details))
        .route("/v1/clusters/{name}/binds", post(bind_create))
        .route("/v1/clusters/{name}/binds/{user}", get(bind_view))
        .route("/v1/plans", get(plan_list))
        .route("/v1/quotas", get(quota_list).post(quota_create))
        .route(
            "/v1/quotas/{owner}",
            get(quota_view).patch(quota_update).delete(quota_delete),
        )
        .route("/v1/usages", get(usage_list))
        .route("/v1/usages/{owner}", get(usage_view))
        .route("/stolos/v1/info", get(info))
        .route("/stolos/v1/operations", get(operation_list))
        .route("/stolos/v1/operations/{id}", get(operation_view))
        .route("/stolos/v1/operations/{id}/cancel", post(operation_cancel))
        .fallback(async || {
            Failure(
                Error::Request("there is no such path".to_owned()),
                StatusCode::NOT_FOUND,
            )
        })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(App(Arc::new(service)))
}

/// The state of the router.
#[derive(Clone)]
struct App(Arc<Service>);

impl std::ops::Deref for App {
    type Target = Service;
    fn deref(&self) -> &Service {
        &self.0
    }
}

async fn plan_list(State(app): State<App>, caller: Caller) -> Result<Json<Vec<pks::Plan>>, Failure> {
    caller.may(Right::Plans)?;
    Ok(Json(
        app.desk()
            .plans
            .iter()
            .map(|(id, plan)| show::plan(id, plan))
            .collect(),
    ))
}

async fn cluster_list(State(app): State<App>, caller: Caller) -> Result<Json<Vec<pks::Cluster>>, Failure> {
    caller.may(Right::Read)?;
    let rows = db::clusters(&app.desk().db, caller.own(Right::ReadAll)).await?;
    Ok(Json(rows.iter().map(show::cluster).collect()))
}

async fn cluster_view(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<pks::Cluster>, Failure> {
    caller.may(Right::Read)?;
    let row = db::cluster(&app.desk().db, &name, caller.own(Right::ReadAll)).await?;
    Ok(Json(show::cluster(&row)))
}

async fn cluster_create(
    State(app): State<App>,
    caller: Caller,
    body: Result<Json<pks::ClusterRequest>, JsonRejection>,
) -> Result<Response, Failure> {
    caller.may(Right::Manage)?;
    let Json(request) = body.map_err(unreadable)?;
    let (cluster, operation) = app.desk().create(&caller, &request).await?;
    let id = operation_header(&operation.id.to_string());
    Ok((StatusCode::ACCEPTED, id, Json(show::cluster(&cluster))).into_response())
}

async fn cluster_details(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<pks::Cluster>, Failure> {
    caller.may(Right::Read)?;
    let row = db::cluster(&app.desk().db, &name, caller.own(Right::ReadAll)).await?;
    Ok(Json(show::cluster_details(&row)))
}

async fn cluster_update(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    body: Result<Json<pks::UpdateParameters>, JsonRejection>,
) -> Result<Response, Failure> {
    caller.may(Right::Manage)?;
    let Json(change) = body.map_err(unreadable)?;
    let operation = app.desk().update(&caller, &name, &change).await?;
    Ok((StatusCode::ACCEPTED, operation_header(&operation.id.to_string())).into_response())
}

async fn cluster_delete(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Response, Failure> {
    let operation = match app.desk().delete(&caller, &name).await? {
        Deletion::Accepted(operation) => operation,
        // The running operation has to stop first; that is quick, because every step can be cancelled. Should it not be,
        // the caller hears that the cluster is busy and may ask again.
        Deletion::After(running) => {
            app.cancel(&running).await?;
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
    Ok((
        StatusCode::NO_CONTENT,
        operation_header(&operation.id.to_string()),
    )
        .into_response())
}

async fn bind_create(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Response, Failure> {
    caller.may(Right::Manage)?;
    let row = db::cluster(&app.desk().db, &name, caller.own(Right::ManageAll)).await?;
    let kubeconfig = app.bind(&row, caller.name()).await?;
    Ok((
        StatusCode::CREATED,
        [(header::CACHE_CONTROL, "no-store")],
        Json(kubeconfig),
    )
        .into_response())
}

async fn bind_view(
    State(app): State<App>,
    caller: Caller,
    Path((name, user)): Path<(String, String)>,
) -> Result<Response, Failure> {
    caller.may(Right::Manage)?;
    let row = db::cluster(&app.desk().db, &name, caller.own(Right::ManageAll)).await?;
    let kubeconfig = app.bind(&row, &user).await?;
    Ok((
        StatusCode::OK,
        [(header::CACHE_CONTROL, "no-store")],
        Json(kubeconfig),
    )
        .into_response())
}

async fn quota_list(State(app): State<App>, caller: Caller) -> Result<Json<Vec<pks::Quota>>, Failure> {
    caller.may(Right::Quotas)?;
    Ok(Json(quotas::all(&app.desk().db).await?))
}

async fn quota_view(
    State(app): State<App>,
    caller: Caller,
    Path(owner): Path<String>,
) -> Result<Json<pks::Quota>, Failure> {
    caller.may(Right::Quotas)?;
    Ok(Json(quotas::one(&app.desk().db, &owner).await?))
}

async fn quota_create(
    State(app): State<App>,
    caller: Caller,
    body: Result<Json<pks::Quota>, JsonRejection>,
) -> Result<Response, Failure> {
    caller.may(Right::Quotas)?;
    let Json(quota) = body.map_err(unreadable)?;
    let made = app.desk().create_quota(&caller, &quota).await?;
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

async fn quota_update(
    State(app): State<App>,
    caller: Caller,
    Path(owner): Path<String>,
    body: Result<Json<pks::QuotaChange>, JsonRejection>,
) -> Result<Json<pks::Quota>, Failure> {
    caller.may(Right::Quotas)?;
    let Json(change) = body.map_err(unreadable)?;
    Ok(Json(app.desk().update_quota(&caller, &owner, &change).await?))
}

async fn quota_delete(
    State(app): State<App>,
    caller: Caller,
    Path(owner): Path<String>,
) -> Result<StatusCode, Failure> {
    app.desk().delete_quota(&caller, &owner).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn usage_list(State(app): State<App>, caller: Caller) -> Result<Json<Vec<pks::Usage>>, Failure> {
    caller.may(Right::Read)?;
    Ok(Json(
        quotas::usages(&app.desk().db, caller.own(Right::ReadAll)).await?,
    ))
}

async fn usage_view(
    State(app): State<App>,
    caller: Caller,
    Path(owner): Path<String>,
) -> Result<Json<pks::Usage>, Failure> {
    caller.may(Right::Read)?;
    // Of somebody else one learns nothing, not even whether there is such an owner.
    if owner != caller.name() {
        caller.may(Right::ReadAll)?;
    }
    let clusters = db::clusters(&app.desk().db, db::Whose::Of(&owner)).await?;
    Ok(Json(quotas::usage(owner, &clusters)))
}

async fn info(State(app): State<App>) -> Json<pks::Info> {
    Json(app.info().clone())
}

#[derive(Debug, Deserialize)]
struct OperationQuery {
    #[serde(default)]
    cluster: Option<String>,
    #[serde(default)]
    limit: Option<u32>,
}

async fn operation_list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<OperationQuery>,
) -> Result<Json<Vec<pks::Operation>>, Failure> {
    caller.may(Right::Read)?;
    let limit = query.limit.unwrap_or(20).clamp(1, 500);
    let whose = caller.own(Right::ReadAll);
    let rows = db::operations(&app.desk().db, whose, query.cluster.as_deref(), limit).await?;
    let mut operations = Vec::with_capacity(rows.len());
    for row in &rows {
        operations.push(app.show_operation(row).await);
    }
    Ok(Json(operations))
}

#[derive(Debug, Deserialize)]
struct WaitQuery {
    /// Answer later: when a step begins or ends, or after so many milliseconds.
    #[serde(default)]
    wait_ms: Option<u64>,
}

async fn operation_view(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<WaitQuery>,
) -> Result<Json<pks::Operation>, Failure> {
    caller.may(Right::Read)?;
    let mut row = db::operation(&app.desk().db, &id, caller.own(Right::ReadAll)).await?;
    if let Some(wait) = query.wait_ms
        && !row.state.is_final()
    {
        app.wait_news(row.id, Duration::from_millis(wait).min(LONGEST_WAIT))
            .await;
        row = db::operation(&app.desk().db, &id, caller.own(Right::ReadAll)).await?;
    }
    Ok(Json(app.show_operation(&row).await))
}

async fn operation_cancel(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    caller.may(Right::Manage)?;
    let row = db::operation(&app.desk().db, &id, caller.own(Right::ManageAll)).await?;
    app.cancel(&row).await?;
    Ok(StatusCode::ACCEPTED)
}

/// A body that cannot be read: too large, of another type, or not what is expected.
fn unreadable(rejection: JsonRejection) -> Failure {
    let status = match rejection.status() {
        status @ (StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNSUPPORTED_MEDIA_TYPE) => status,
        _ => StatusCode::BAD_REQUEST,
    };
    Failure(Error::Request(rejection.body_text()), status)
}

/// PKS's bodies have no place for the operation; a header takes nothing away from its clients.
fn operation_header(id: &str) -> [(header::HeaderName, String); 1] {
    [(
        header::HeaderName::from_static("x-stolos-operation"),
        id.to_owned(),
    )]
}

impl FromRequestParts<App> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Failure> {
        let actor = app
            .verifier()
            .actor(&parts.headers)
            .await
            .map_err(|error| match error.class() {
                stolos_base::Class::Unavailable => Error::service("verify the token", error),
                _ => Error::Unauthenticated(Box::new(error)),
            })?;
        Ok(Self::new(actor))
    }
}

/// An error on its way out, with its status.
pub(crate) struct Failure(Error, StatusCode);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status =
            StatusCode::from_u16(error.class().status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self(error, status)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self(error, status) = self;
        if status.is_server_error() {
            tracing::error!(error = %chain(&error), "request failed");
        }
        // Causes of our own failures stay in the log: they name hosts and files that are nobody's business.
        let text = if status == StatusCode::INTERNAL_SERVER_ERROR {
            error.to_string()
        } else {
            chain(&error)
        };
        let hint = error.hints().into_iter().next();
        let body = pks::ErrorBody {
            body: text.clone(),
            message: Some(text),
            hint,
            request_id: None,
        };
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let realm = header::HeaderValue::from_static("Bearer realm=\"pks\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, realm);
        }
        response
    }
}
