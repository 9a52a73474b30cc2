//! Network, compute and Kubernetes profiles.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use stolos_api::pks;
use stolos_base::input::{Json, Unreadable};

use super::{App, Failure, unreadable};
use crate::authorize::{Caller, Right};
use crate::error::Result;
use crate::profiles::Kind;

type Body<T> = Result<Json<T>, Unreadable>;

/// The handlers of a kind whose profiles are a name and parameters.
macro_rules! handlers {
    ($kind:expr, $list:ident, $view:ident, $create:ident, $delete:ident) => {
        pub(super) async fn $list(
            State(app): State<App>,
            caller: Caller,
        ) -> Result<Json<Vec<pks::Profile>>, Failure> {
            let rows = app.desk().profiles(&caller, $kind).await?;
            Ok(Json(
                rows.iter()
                    .map(|row| app.desk().show_profile(row))
                    .collect(),
            ))
        }

        pub(super) async fn $view(
            State(app): State<App>,
            caller: Caller,
            Path(name): Path<String>,
        ) -> Result<Json<pks::Profile>, Failure> {
            let row = app.desk().profile(&caller, $kind, &name).await?;
            Ok(Json(app.desk().show_profile(&row)))
        }

        pub(super) async fn $create(
            State(app): State<App>,
            caller: Caller,
            body: Body<pks::ProfileRequest>,
        ) -> Result<(StatusCode, Json<pks::Profile>), Failure> {
            caller.may(Right::Profiles)?;
            let Json(request) = body.map_err(unreadable)?;
            let row = app.desk().create_profile(&caller, $kind, &request).await?;
            Ok((StatusCode::CREATED, Json(app.desk().show_profile(&row))))
        }

        pub(super) async fn $delete(
            State(app): State<App>,
            caller: Caller,
            Path(name): Path<String>,
        ) -> Result<StatusCode, Failure> {
            app.desk().delete_profile(&caller, $kind, &name).await?;
            Ok(StatusCode::NO_CONTENT)
        }
    };
}

handlers!(
    Kind::Network,
    network_list,
    network_view,
    network_create,
    network_delete
);
handlers!(
    Kind::Compute,
    compute_list,
    compute_view,
    compute_create,
    compute_delete
);

pub(super) async fn kubernetes_list(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<Vec<pks::KubernetesProfile>>, Failure> {
    let rows = app.desk().profiles(&caller, Kind::Kubernetes).await?;
    let shown: Result<Vec<_>> = rows.iter().map(crate::show::kubernetes_profile).collect();
    Ok(Json(shown?))
}

pub(super) async fn kubernetes_view(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Json<pks::KubernetesProfile>, Failure> {
    let row = app.desk().profile(&caller, Kind::Kubernetes, &name).await?;
    Ok(Json(crate::show::kubernetes_profile(&row)?))
}

pub(super) async fn kubernetes_create(
    State(app): State<App>,
    caller: Caller,
    body: Body<pks::KubernetesProfileRequest>,
) -> Result<(StatusCode, Json<pks::KubernetesProfile>), Failure> {
    caller.may(Right::Manage)?;
    let Json(request) = body.map_err(unreadable)?;
    let row = app.desk().create_kubernetes_profile(&caller, &request).await?;
    Ok((StatusCode::CREATED, Json(crate::show::kubernetes_profile(&row)?)))
}

pub(super) async fn kubernetes_delete(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    app.desk()
        .delete_profile(&caller, Kind::Kubernetes, &name)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
