//! Quotas and usages.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use stolos_api::pks;
use stolos_base::input::{Json, Unreadable};

use super::{App, Failure, unreadable};
use crate::authorize::{Caller, Right};
use crate::{db, quotas};

pub(super) async fn quota_list(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<Vec<pks::Quota>>, Failure> {
    caller.may(Right::Quotas)?;
    Ok(Json(quotas::all(&app.desk().db).await?))
}

pub(super) async fn quota_view(
    State(app): State<App>,
    caller: Caller,
    Path(owner): Path<String>,
) -> Result<Json<pks::Quota>, Failure> {
    caller.may(Right::Quotas)?;
    let named = app.desk().named_owner(&owner).await?;
    Ok(Json(quotas::one(&app.desk().db, &named).await?.1))
}

pub(super) async fn quota_create(
    State(app): State<App>,
    caller: Caller,
    body: Result<Json<pks::Quota>, Unreadable>,
) -> Result<Response, Failure> {
    caller.may(Right::Quotas)?;
    let Json(quota) = body.map_err(unreadable)?;
    let made = app.desk().create_quota(&caller, &quota).await?;
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

pub(super) async fn quota_update(
    State(app): State<App>,
    caller: Caller,
    Path(owner): Path<String>,
    body: Result<Json<pks::QuotaChange>, Unreadable>,
) -> Result<Json<pks::Quota>, Failure> {
    caller.may(Right::Quotas)?;
    let Json(change) = body.map_err(unreadable)?;
    Ok(Json(app.desk().update_quota(&caller, &owner, &change).await?))
}

pub(super) async fn quota_delete(
    State(app): State<App>,
    caller: Caller,
    Path(owner): Path<String>,
) -> Result<StatusCode, Failure> {
    app.desk().delete_quota(&caller, &owner).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn usage_list(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<Vec<pks::Usage>>, Failure> {
    caller.may(Right::Read)?;
    Ok(Json(
        quotas::usages(&app.desk().db, caller.own(Right::ReadAll)).await?,
    ))
}

pub(super) async fn usage_view(
    State(app): State<App>,
    caller: Caller,
    Path(owner): Path<String>,
) -> Result<Json<pks::Usage>, Failure> {
    caller.may(Right::Read)?;
    // Of somebody else one learns nothing, not even whether there is such an owner.
    if owner == caller.name() {
        let clusters = db::clusters(&app.desk().db, db::Whose::Of(&caller.who().key)).await?;
        return Ok(Json(quotas::usage(owner, &clusters)));
    }
    caller.may(Right::ReadAll)?;
    let clusters = app.desk().clusters_of(&owner).await?;
    Ok(Json(quotas::usage(owner, &clusters)))
}
