//! The PKS API, version 1, and our own resources beside it.
//!
//! The router is a table of contents; handlers extract, authorize through the desk, and convert. A token is looked at before
//! anything else, so that nobody learns from a 404 what exists.

mod backups;
mod certificates;
mod clusters;
mod metering;
mod operations;
mod page;
mod profiles;
mod quotas;
mod tasks;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use stolos_api::pks;
use stolos_base::input::{Json, Unreadable};
use stolos_base::{Classify, chain};

use crate::Service;
use crate::authorize::Caller;
use crate::db::OperationRow;
use crate::error::Error;

/// The largest request body: the certificates of fifty registries, or the files of a profile.
const BODY_LIMIT: usize = 1024 * 1024;
/// The longest that a request for an operation may wait for news.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The router of port 9021.
pub(crate) fn router(service: Service) -> Router {
    Router::new()
        .route(
            "/v1/clusters",
            get(clusters::cluster_list)
                .post(clusters::cluster_create)
                .patch(tasks::clusters_upgrade),
        )
        .route(
            "/v1/clusters/{name}",
            get(clusters::cluster_view)
                .patch(clusters::cluster_update)
                .delete(clusters::cluster_delete),
        )
        .route("/v1/clusterdetails/{name}", get(clusters::cluster_details))
        .route("/v1/clusters/{name}/binds", post(clusters::bind_create))
        .route("/v1/clusters/{name}/binds/{user}", get(clusters::bind_view))
        .route(
            "/v1/clusters/{name}/certificates",
            get(certificates::certificate_list).post(certificates::certificates_rotate),
        )
        .route("/v1/plans", get(clusters::plan_list))
        .route("/stolos/v1/room", get(clusters::room_view))
        .route(
            "/v1/network-profiles",
            get(profiles::network_list).post(profiles::network_create),
        )
        .route(
            "/v1/network-profiles/{name}",
            get(profiles::network_view).delete(profiles::network_delete),
        )
        .route(
            "/v1/compute-profiles",
            get(profiles::compute_list).post(profiles::compute_create),
        )
        .route(
            "/v1/compute-profiles/{name}",
            get(profiles::compute_view).delete(profiles::compute_delete),
        )
        .route(
            "/v1/kubernetes-profiles",
            get(profiles::kubernetes_list).post(profiles::kubernetes_create),
        )
        .route(
            "/v1/kubernetes-profiles/{name}",
            get(profiles::kubernetes_view).delete(profiles::kubernetes_delete),
        )
        .route("/v1/quotas", get(quotas::quota_list).post(quotas::quota_create))
        .route(
            "/v1/quotas/{owner}",
            get(quotas::quota_view)
                .patch(quotas::quota_update)
                .delete(quotas::quota_delete),
        )
        .route("/v1/usages", get(quotas::usage_list))
        .route("/v1/usages/{owner}", get(quotas::usage_view))
        .route("/v1/tasks", get(tasks::task_list))
        .route("/v1/tasks/{id}", get(tasks::task_view).put(tasks::task_cancel))
        .route("/v1/upgradable", get(tasks::upgradable))
        .route("/stolos/v1/info", get(info))
        .route(
            "/stolos/v1/clusters/{name}/pre-check",
            get(certificates::pre_check),
        )
        .route("/stolos/v1/cluster-backups", get(backups::summary_list))
        .route(
            "/stolos/v1/clusters/{name}/backups",
            get(backups::backup_list).post(backups::backup_create),
        )
        .route(
            "/stolos/v1/clusters/{name}/backups/{id}/verify",
            post(backups::backup_verify),
        )
        .route(
            "/stolos/v1/clusters/{name}/restore",
            post(backups::cluster_restore),
        )
        .route("/stolos/v1/clusters/{name}/stop", post(clusters::cluster_stop))
        .route("/stolos/v1/clusters/{name}/start", post(clusters::cluster_start))
        .route(
            "/stolos/v1/clusters/{name}/transfer",
            post(clusters::cluster_transfer),
        )
        .route("/stolos/v1/backup-runs/{id}", get(backups::run_view))
        .route("/stolos/v1/backup-runs/{id}/cancel", post(backups::run_cancel))
        .route("/stolos/v1/metering", get(metering::report))
        .route("/stolos/v1/clusters", get(clusters::cluster_page))
        .route("/stolos/v1/operations", get(operations::operation_list))
        .route("/stolos/v1/operations/{id}", get(operations::operation_view))
        .route(
            "/stolos/v1/operations/{id}/cancel",
            post(operations::operation_cancel),
        )
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

async fn info(State(app): State<App>) -> Json<pks::Info> {
    Json(app.info().clone())
}

#[derive(Debug, Deserialize)]
struct WaitQuery {
    /// Answer later: when something happens, or after so many milliseconds.
    #[serde(default)]
    wait_ms: Option<u64>,
}

/// A body that cannot be read: too large, of another type, or not what is expected.
fn unreadable(rejection: Unreadable) -> Failure {
    let status = match rejection.status() {
        status @ (StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNSUPPORTED_MEDIA_TYPE) => status,
        _ => StatusCode::BAD_REQUEST,
    };
    Failure(Error::Request(rejection.body_text()), status)
}

/// PKS's bodies have no place for the operation; a header takes nothing away from its clients.
fn operation_header(operation: &OperationRow) -> [(header::HeaderName, header::HeaderValue); 1] {
    let id = header::HeaderValue::try_from(operation.id.to_string());
    let id = id.unwrap_or(header::HeaderValue::from_static("?"));
    [(header::HeaderName::from_static("x-stolos-operation"), id)]
}

/// The answer to a request for which an operation began.
fn begun(operation: &OperationRow) -> Response {
    (StatusCode::ACCEPTED, operation_header(operation)).into_response()
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
        stolos_base::http::signed_in(&parts.extensions);
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
            error_code: error.code().map(str::to_owned),
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
