//! Users and groups, as UAA's SCIM endpoints have them (UAA's API documentation, "Users" and "Groups"): what `uaac user add` and
//! `uaac member add` speak.
//!
//! A group is a scope: whoever is in `pks.clusters.manage` may make clusters. Its id is its name. Other groups are for clusters, where they are
//! groups of Kubernetes (`oidc:NAME`, by the claim `roles`).

use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stolos_api::token::Actor;
use stolos_base::Secret;
use stolos_base::error::{Class, Classify as _};
use stolos_base::ids::UserId;
use stolos_base::input::{Json, Query};

use crate::Inner;
use crate::db::{self, User};
use crate::error::Error;

const READ: &str = "scim.read";
const WRITE: &str = "scim.write";
/// May do both.
const ADMIN: &str = "uaa.admin";
/// Entries of a page, and the most that may be asked for; UAA's figures.
const PAGE: usize = 100;
const MOST: usize = 500;
/// The longest name of a user or group, in bytes; UAA's.
const LONGEST: usize = 255;
const SCHEMA: &str = "urn:scim:schemas:core:1.0";

type App = State<Arc<Inner>>;

/// Why a request is refused.
#[derive(Debug)]
pub(crate) enum Refusal {
    Unauthenticated,
    Denied(&'static str),
    Invalid(String),
    NotFound(String),
    Taken(String),
    /// It would leave nobody who could undo it.
    LastAdministrator,
    Internal(Error),
}

impl<E: Into<Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::Internal(error.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, code, text) = match self {
            Self::Unauthenticated => (
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "Full authentication is required to access this resource".to_owned(),
            ),
            Self::Denied(scope) => (
                StatusCode::FORBIDDEN,
                "insufficient_scope",
                format!("Insufficient scope for this resource: {scope} is needed"),
            ),
            Self::Invalid(text) => (StatusCode::BAD_REQUEST, "invalid_scim_resource", text),
            Self::NotFound(text) => (StatusCode::NOT_FOUND, "scim_resource_not_found", text),
            Self::Taken(text) => (StatusCode::CONFLICT, "scim_resource_already_exists", text),
            Self::LastAdministrator => (
                StatusCode::BAD_REQUEST,
                "invalid_scim_resource",
                format!("the last member of {ADMIN} stays: nobody could undo that"),
            ),
            Self::Internal(error) => (
                error.report("a request about users"),
                "server_error",
                "The service could not answer. Try again in a moment.".to_owned(),
            ),
        };
        let body = json!({"error": code, "error_description": text, "message": text});
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::UNAUTHORIZED {
            let realm = header::HeaderValue::from_static("Bearer realm=\"uaa\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, realm);
        }
        response
    }
}

/// The query of a list.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ListQuery {
    filter: Option<String>,
    start_index: Option<usize>,
    count: Option<usize>,
}

/// What a request about a user says; other fields of SCIM are tolerated.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewUser {
    user_name: String,
    #[serde(default)]
    password: Option<Secret<String>>,
    #[serde(default)]
    emails: Vec<Email>,
}

#[derive(Debug, Deserialize)]
struct Email {
    value: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct NewPassword {
    password: Secret<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewGroup {
    display_name: String,
    #[serde(default)]
    members: Vec<Member>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Member {
    value: String,
}

pub(crate) async fn user_list(
    State(app): App,
    _: Reader,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, Refusal> {
    let name = query
        .filter
        .as_deref()
        .map(|filter| equals(filter, &["userName", "username"]))
        .transpose()?;
    let users = db::users(&app.db, name.as_deref()).await?;
    Ok(Json(page(
        users.iter().map(|user| app.shown(user)).collect(),
        &query,
    )))
}

pub(crate) async fn user_view(
    State(app): App,
    _: Reader,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    Ok(Json(app.shown(&app.user(&id).await?)))
}

pub(crate) async fn user_create(
    State(app): App,
    Writer(actor): Writer,
    Body(wanted): Body<NewUser>,
) -> Result<Response, Refusal> {
    check_name("userName", &wanted.user_name)?;
    let password = wanted
        .password
        .ok_or_else(|| Refusal::Invalid("there is no `password`".to_owned()))?;
    crate::check_length(&password).map_err(|error| Refusal::Invalid(error.to_string()))?;
    let email = match wanted.emails.into_iter().next() {
        Some(email) => email.value,
        None => wanted.user_name.clone(),
    };
    let user = User {
        id: UserId::new(&app.ids),
        name: wanted.user_name,
        email,
        password: app.passwords.hash(password).await?,
        // What everybody has: without `openid` there is no identity token, without `roles` no groups in it.
        scopes: vec!["openid".to_owned(), "roles".to_owned()],
    };
    let mut tx = app.db.begin("make a user").await?;
    let added = db::insert_user(&mut tx, &user).await?;
    tx.commit().await?;
    if !added {
        return Err(Refusal::Taken(format!("Username already in use: {}", user.name)));
    }
    tracing::info!(user = %user.name, by = %actor.name, "made a user");
    Ok((StatusCode::CREATED, Json(app.shown(&user))).into_response())
}

pub(crate) async fn user_delete(
    State(app): App,
    Writer(actor): Writer,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let user = app.user(&id).await?;
    let mut tx = app.db.begin("delete a user").await?;
    db::delete_user(&mut tx, user.id).await?;
    if db::members(&mut tx, ADMIN).await?.is_empty() {
        return Err(Refusal::LastAdministrator);
    }
    tx.commit().await?;
    tracing::info!(user = %user.name, by = %actor.name, "deleted a user");
    Ok(Json(app.shown(&user)))
}

pub(crate) async fn password_change(
    State(app): App,
    Writer(actor): Writer,
    Path(id): Path<String>,
    Body(wanted): Body<NewPassword>,
) -> Result<Json<Value>, Refusal> {
    let user = app.user(&id).await?;
    crate::check_length(&wanted.password).map_err(|error| Refusal::Invalid(error.to_string()))?;
    let hash = app.passwords.hash(wanted.password).await?;
    let mut tx = app.db.begin("set a password").await?;
    db::set_password(&mut tx, &user.name, &hash).await?;
    tx.commit().await?;
    tracing::info!(user = %user.name, by = %actor.name, "set a password");
    Ok(Json(json!({"status": "ok", "message": "password updated"})))
}

pub(crate) async fn group_list(
    State(app): App,
    _: Reader,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, Refusal> {
    let name = query
        .filter
        .as_deref()
        .map(|filter| equals(filter, &["displayName", "displayname"]))
        .transpose()?;
    let groups = db::groups(&app.db).await?;
    let chosen = groups
        .iter()
        .filter(|(group, _)| name.as_ref().is_none_or(|name| name == *group));
    let shown = chosen.map(|(group, members)| shown_group(group, members));
    Ok(Json(page(shown.collect(), &query)))
}

pub(crate) async fn group_view(
    State(app): App,
    _: Reader,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    Ok(Json(app.group(&name).await?))
}

pub(crate) async fn group_create(
    State(app): App,
    Writer(actor): Writer,
    Body(wanted): Body<NewGroup>,
) -> Result<Response, Refusal> {
    check_name("displayName", &wanted.display_name)?;
    let name = &wanted.display_name;
    // Scopes of a token are separated by blanks.
    if name.contains(char::is_whitespace) {
        return Err(Refusal::Invalid("`displayName` has a blank in it".to_owned()));
    }
    if db::groups(&app.db).await?.contains_key(name) {
        return Err(Refusal::Taken(format!(
            "A group with displayName: {name} already exists."
        )));
    }
    let mut tx = app.db.begin("make a group").await?;
    db::insert_group(&mut tx, name).await?;
    app.set_members(&mut tx, name, &wanted.members).await?;
    tx.commit().await?;
    tracing::info!(group = %name, by = %actor.name, "made a group");
    Ok((StatusCode::CREATED, Json(app.group(name).await?)).into_response())
}

/// The members are those that the body names, as `uaac member add` and `delete` send them.
pub(crate) async fn group_update(
    State(app): App,
    Writer(actor): Writer,
    Path(name): Path<String>,
    Body(wanted): Body<NewGroup>,
) -> Result<Json<Value>, Refusal> {
    app.group(&name).await?;
    if wanted.display_name != name {
        return Err(Refusal::Invalid("a group keeps its `displayName`".to_owned()));
    }
    let mut tx = app.db.begin("change a group").await?;
    app.set_members(&mut tx, &name, &wanted.members).await?;
    tx.commit().await?;
    tracing::info!(group = %name, by = %actor.name, "changed a group");
    Ok(Json(app.group(&name).await?))
}

pub(crate) async fn member_add(
    State(app): App,
    Writer(actor): Writer,
    Path(name): Path<String>,
    Body(member): Body<Member>,
) -> Result<Response, Refusal> {
    app.group(&name).await?;
    let user = app.user(&member.value).await?;
    let mut tx = app.db.begin("add a member").await?;
    db::add_member(&mut tx, user.id, &name).await?;
    tx.commit().await?;
    tracing::info!(group = %name, user = %user.name, by = %actor.name, "added a member");
    Ok((StatusCode::CREATED, Json(shown_member(&user.id))).into_response())
}

pub(crate) async fn member_remove(
    State(app): App,
    Writer(actor): Writer,
    Path((name, id)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    app.group(&name).await?;
    let user = app.user(&id).await?;
    let mut tx = app.db.begin("remove a member").await?;
    db::remove_member(&mut tx, user.id, &name).await?;
    if name == ADMIN && db::members(&mut tx, ADMIN).await?.is_empty() {
        return Err(Refusal::LastAdministrator);
    }
    tx.commit().await?;
    tracing::info!(group = %name, user = %user.name, by = %actor.name, "removed a member");
    Ok(Json(shown_member(&user.id)))
}

/// Somebody who may see users and groups.
pub(crate) struct Reader;

/// Somebody who may change them.
pub(crate) struct Writer(Actor);

impl FromRequestParts<Arc<Inner>> for Reader {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<Inner>) -> Result<Self, Refusal> {
        app.may(&parts.headers, &[READ, WRITE, ADMIN]).await?;
        stolos_base::http::signed_in(&parts.extensions);
        Ok(Self)
    }
}

impl FromRequestParts<Arc<Inner>> for Writer {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<Inner>) -> Result<Self, Refusal> {
        let actor = app.may(&parts.headers, &[WRITE, ADMIN]).await?;
        stolos_base::http::signed_in(&parts.extensions);
        Ok(Self(actor))
    }
}

/// A body of JSON; what is none is refused as everything else here is.
pub(crate) struct Body<T>(T);

impl<T: DeserializeOwned> FromRequest<Arc<Inner>> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &Arc<Inner>) -> Result<Self, Refusal> {
        match Json::from_request(request, app).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(Refusal::Invalid(rejection.body_text())),
        }
    }
}

impl Inner {
    /// Who asks, if that one has one of the scopes; the first is the one to ask for.
    async fn may(&self, headers: &HeaderMap, scopes: &[&'static str]) -> Result<Actor, Refusal> {
        let actor = self
            .verifier
            .actor(headers)
            .await
            .map_err(|error| match error.class() {
                Class::Unavailable => Refusal::Internal(Error::Corrupt("a token could not be verified")),
                _ => Refusal::Unauthenticated,
            })?;
        if actor.has_any(scopes) {
            Ok(actor)
        } else {
            Err(Refusal::Denied(scopes[0]))
        }
    }

    async fn user(&self, id: &str) -> Result<User, Refusal> {
        let unknown = || Refusal::NotFound(format!("User {} does not exist", shortened(id)));
        let id: UserId = id.parse().map_err(|_| unknown())?;
        db::user_by_id(&self.db, id).await?.ok_or_else(unknown)
    }

    /// A group as it is shown.
    async fn group(&self, name: &str) -> Result<Value, Refusal> {
        match db::groups(&self.db).await?.get(name) {
            Some(members) => Ok(shown_group(name, members)),
            None => Err(Refusal::NotFound(format!(
                "Group {} does not exist",
                shortened(name)
            ))),
        }
    }

    async fn set_members(
        &self,
        tx: &mut stolos_store::Tx,
        group: &str,
        members: &[Member],
    ) -> Result<(), Refusal> {
        let mut wanted = Vec::new();
        for member in members {
            wanted.push(self.user(&member.value).await?.id);
        }
        for id in db::members(tx, group).await? {
            if !wanted.contains(&id) {
                db::remove_member(tx, id, group).await?;
            }
        }
        for id in &wanted {
            db::add_member(tx, *id, group).await?;
        }
        if group == ADMIN && wanted.is_empty() {
            return Err(Refusal::LastAdministrator);
        }
        Ok(())
    }

    fn shown(&self, user: &User) -> Value {
        let groups: Vec<Value> = user
            .scopes
            .iter()
            .map(|scope| json!({"value": scope, "display": scope, "type": "DIRECT"}))
            .collect();
        json!({
            "id": user.id.to_string(),
            "userName": user.name,
            "emails": [{"value": user.email, "primary": true}],
            "groups": groups,
            "active": true,
            "verified": true,
            "origin": "uaa",
            "zoneId": "uaa",
            "schemas": [SCHEMA],
            "meta": {"version": 0},
        })
    }
}

fn shown_group(name: &str, members: &[UserId]) -> Value {
    let members: Vec<Value> = members.iter().map(shown_member).collect();
    json!({"id": name, "displayName": name, "members": members, "zoneId": "uaa", "schemas": [SCHEMA], "meta": {"version": 0}})
}

fn shown_member(user: &UserId) -> Value {
    json!({"value": user.to_string(), "type": "USER", "origin": "uaa"})
}

fn page(all: Vec<Value>, query: &ListQuery) -> Value {
    let total = all.len();
    let start = query.start_index.unwrap_or(1).max(1);
    let count = query.count.unwrap_or(PAGE).clamp(1, MOST);
    let resources: Vec<Value> = all.into_iter().skip(start - 1).take(count).collect();
    json!({"resources": resources, "startIndex": start, "itemsPerPage": count, "totalResults": total, "schemas": [SCHEMA]})
}

/// The one filter that `uaac` and others need: `ATTRIBUTE eq "VALUE"`.
fn equals(filter: &str, attributes: &[&str]) -> Result<String, Refusal> {
    let mut words = filter.trim().splitn(3, char::is_whitespace);
    let (attribute, operator, value) = (words.next(), words.next(), words.next());
    let value = value.and_then(|value| value.trim().strip_prefix('"')?.strip_suffix('"'));
    match (attribute, operator, value) {
        (Some(attribute), Some(operator), Some(value))
            if attributes.contains(&attribute) && operator.eq_ignore_ascii_case("eq") =>
        {
            Ok(value.to_owned())
        }
        _ => Err(Refusal::Invalid(format!(
            "the filter `{}` is not of the form {} eq \"VALUE\"",
            shortened(filter),
            attributes[0]
        ))),
    }
}

fn check_name(field: &str, name: &str) -> Result<(), Refusal> {
    let good = !name.trim().is_empty()
        && name.len() <= LONGEST
        && name.trim() == name
        && !name.chars().any(|c| c.is_control() || "/\\\"%".contains(c));
    if good {
        Ok(())
    } else {
        Err(Refusal::Invalid(format!(
            "`{field}` is not valid: it takes 1 to {LONGEST} bytes without control characters, slashes, quotes and percent signs"
        )))
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}
