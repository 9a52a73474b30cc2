//! The director's HTTP API (bosh.md section 1).
//!
//! The router is a table of contents; handlers extract, authorize, call, convert. A token is looked at before anything
//! else, so that nobody learns from a 404 what exists. Everything long answers with a redirect to its task.

mod artifacts;
mod deployments;
mod health;
mod misc;
mod tasks;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use stolos_api::director as wire;
use stolos_api::token::Actor;
use stolos_base::input::{Json, Unreadable};
use stolos_base::{Class, Classify, chain};

use crate::app::App;
use crate::error::Error;

/// The largest manifest or config: one with a group for each of ten thousand machines fits.
const TEXT_LIMIT: usize = 32 * 1024 * 1024;

/// The router of port 25555.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/info", get(misc::info))
        .route("/tasks", get(tasks::task_list))
        .route("/tasks/cancel", post(tasks::task_cancel_many))
        .route("/tasks/{id}", get(tasks::task_view))
        .route("/tasks/{id}/output", get(tasks::task_output))
        .route("/task/{id}", delete(tasks::task_cancel))
        .route(
            "/deployments",
            get(deployments::deployment_list).post(deployments::deployment_create),
        )
        .route(
            "/deployments/{name}",
            get(deployments::deployment_view).delete(deployments::deployment_delete),
        )
        .route("/deployments/{name}/diff", post(deployments::deployment_diff))
        .route("/deployments/{name}/jobs/{group}", put(deployments::state_update))
        .route(
            "/deployments/{name}/jobs/{group}/{instance}",
            put(deployments::instance_state_update),
        )
        .route("/deployments/{name}/instances", get(deployments::instance_list))
        .route("/deployments/{name}/vms", get(deployments::vm_list))
        .route("/deployments/{name}/variables", get(deployments::variable_list))
        .route(
            "/configs",
            get(misc::config_list)
                .post(misc::config_update)
                .delete(misc::config_delete_named),
        )
        .route(
            "/configs/{id}",
            get(misc::config_view).delete(misc::config_delete),
        )
        .route("/locks", get(misc::lock_list))
        .route("/events", get(health::event_list))
        .route("/events/{id}", get(health::event_view))
        .route("/health/problems", get(health::problem_list))
        .route("/metrics", get(health::metrics))
        .route(
            "/resurrection",
            get(health::resurrection_view).put(health::resurrection_update),
        )
        .route("/disks", get(misc::orphan_list))
        .route("/disks/{cid}", delete(misc::orphan_delete))
        .route("/orphan_disks", get(misc::orphan_list))
        .route("/orphan_disks/{cid}", delete(misc::orphan_delete))
        .route("/unknown_machines", get(misc::unknown_machine_list))
        .route("/resources/{id}", get(misc::resource_view))
        .route(
            "/releases/{name}",
            get(artifacts::release_view).delete(artifacts::release_delete),
        )
        .route("/stemcells/{name}/{version}", delete(artifacts::stemcell_delete))
        .route("/stemcell_uploads", post(artifacts::stemcell_needed))
        .layer(DefaultBodyLimit::max(TEXT_LIMIT))
        .merge(
            // Uploads are streamed to disk, which has limits of its own.
            Router::new()
                .route(
                    "/releases",
                    get(artifacts::release_list).post(artifacts::release_upload),
                )
                .route(
                    "/stemcells",
                    get(artifacts::stemcell_list).post(artifacts::stemcell_upload),
                )
                .layer(DefaultBodyLimit::disable()),
        )
        .fallback(async |uri: axum::http::Uri| {
            (
                StatusCode::NOT_FOUND,
                format!("Endpoint '{}' not found.", uri.path()),
            )
        })
        .with_state(app)
}

/// What a caller may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    /// See everything that is no secret.
    Read,
    /// Change everything.
    Admin,
    /// Upload releases.
    UploadReleases,
    /// Upload stemcells.
    UploadStemcells,
}

/// Somebody with a verified token.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    actor: Actor,
    director: String,
    context: String,
}

impl Caller {
    /// Who it is: the owner of the tasks that it starts.
    pub(crate) fn name(&self) -> &str {
        &self.actor.name
    }

    /// What it calls the things that it starts.
    pub(crate) fn context(&self) -> &str {
        &self.context
    }

    /// Whether the caller has the right.
    pub(crate) fn may(&self, right: Right) -> Result<(), Failure> {
        let needed = self.scopes(right);
        if needed.iter().any(|scope| self.actor.has(scope)) {
            return Ok(());
        }
        Err(Error::Denied { needed }.into())
    }

    fn scopes(&self, right: Right) -> Vec<String> {
        let id = &self.director;
        let mut scopes = vec!["bosh.admin".to_owned(), format!("bosh.{id}.admin")];
        match right {
            Right::Admin => {}
            Right::Read => scopes.extend(["bosh.read".to_owned(), format!("bosh.{id}.read")]),
            Right::UploadReleases => scopes.push("bosh.releases.upload".to_owned()),
            Right::UploadStemcells => scopes.push("bosh.stemcells.upload".to_owned()),
        }
        scopes
    }
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Failure> {
        let actor = actor(app, &parts.headers).await?;
        stolos_base::http::signed_in(&parts.extensions);
        let context = parts
            .headers
            .get("x-bosh-context-id")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        if context.len() > 64 {
            return Err(
                Error::Request("X-Bosh-Context-Id cannot be longer than 64 characters".to_owned()).into(),
            );
        }
        Ok(Self {
            actor,
            director: app.config.id.to_string(),
            context: context.to_owned(),
        })
    }
}

/// Who sent a request.
pub(crate) async fn actor(app: &App, headers: &HeaderMap) -> Result<Actor, Error> {
    app.verifier
        .actor(headers)
        .await
        .map_err(|error| match error.class() {
            Class::Unavailable => Error::Verify(error),
            _ => Error::Unauthenticated(error),
        })
}

/// An error on its way out.
pub(crate) struct Failure(Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self(error) = self;
        if matches!(error.class(), Class::Internal | Class::Unavailable) {
            tracing::error!(error = %chain(&error), "request failed");
        }
        // BOSH's clients know 401 for both, and get a new token then.
        if matches!(error.class(), Class::Unauthenticated | Class::Denied) {
            // RFC 6750, section 3.1: clients that know it do not log in again where that would not help.
            let (challenge, reason) = match &error {
                Error::Unauthenticated(cause) => ("Basic realm=\"BOSH Director\"", chain(cause)),
                other => (
                    "Bearer realm=\"BOSH Director\", error=\"insufficient_scope\"",
                    chain(other),
                ),
            };
            let challenge = [(header::WWW_AUTHENTICATE, challenge)];
            let body = wire::ErrorBody {
                code: error.code(),
                description: format!("Not authorized: {reason}"),
            };
            return (StatusCode::UNAUTHORIZED, challenge, Json(body)).into_response();
        }
        if let Error::ConfigChanged { latest, expected } = &error {
            let body = wire::ConfigMismatch {
                latest_id: latest.clone(),
                expected_latest_id: expected.clone(),
                description: error.to_string(),
            };
            return (StatusCode::PRECONDITION_FAILED, Json(body)).into_response();
        }
        let status =
            StatusCode::from_u16(error.class().status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // Causes of our own failures stay in the log: they name hosts and files that are nobody's business.
        let description = if status == StatusCode::INTERNAL_SERVER_ERROR {
            error.to_string()
        } else {
            chain(&error)
        };
        let body = wire::ErrorBody {
            code: error.code(),
            description,
        };
        (status, Json(body)).into_response()
    }
}

/// A JSON body, looked at after the right to send one.
pub(crate) type Body<T> = Result<Json<T>, Unreadable>;

/// What a JSON body holds.
pub(crate) fn read<T>(body: Body<T>) -> Result<T, Error> {
    match body {
        Ok(Json(value)) => Ok(value),
        Err(rejection) => Err(Error::Request(rejection.body_text())),
    }
}

/// The answer of everything long: 302, so that clients ask for the task with GET, and relative, so that they keep host
/// and scheme.
pub(crate) fn to_task(id: i64) -> Response {
    (StatusCode::FOUND, [(header::LOCATION, format!("/tasks/{id}"))]).into_response()
}

/// `true` and `1`, as BOSH's clients write it.
pub(crate) fn is_on(value: Option<&str>) -> bool {
    matches!(value, Some("true" | "1"))
}
