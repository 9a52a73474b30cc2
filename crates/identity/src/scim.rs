//! Users and groups, as UAA's SCIM endpoints have them (UAA's API documentation, "Users" and "Groups"): what `uaac user add` and
//! `uaac member add` speak.
//!
//! A group is a scope: whoever is in `pks.clusters.manage` may make clusters. Its id is its name. Other groups are for clusters, where they are
//! groups of Kubernetes (`oidc:NAME`, by the claim `roles`).

use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stolos_api::identity::{LOCKED, WRONG_PASSWORD};
use stolos_api::token::Actor;
use stolos_base::Secret;
use stolos_base::error::{Class, Classify as _};
use stolos_base::ids::UserId;
use stolos_base::input::{Json, Query};

use crate::Inner;
use crate::db::{self, User};
use crate::error::{Error, OAuthError};
use crate::filter::{Filter, Resource, Value as Attribute};
use crate::lockout::{self, Subject};
use crate::names::shortened;
use crate::source::Source;

const READ: &str = "scim.read";
const WRITE: &str = "scim.write";
/// May do both.
const ADMIN: &str = "uaa.admin";
/// Entries of a page, and the most that may be asked for; UAA's figures.
const PAGE: usize = 100;
const MOST: usize = 500;
/// May open locked accounts, besides who may change users.
const UNLOCK: &str = "uaa.account_status.write";
/// Somebody else was faster.
const OTHER_PASSWORD: &str = "The password has been changed in the meantime.";
const SCHEMA: &str = "urn:scim:schemas:core:1.0";

type App = State<Arc<Inner>>;

/// Why a request is refused.
#[derive(Debug)]
pub(crate) enum Refusal {
    Unauthenticated,
    /// The old password is wrong.
    WrongPassword,
    /// Too many wrong ones, until this time (milliseconds).
    Locked(i64),
    Denied(&'static str),
    Invalid(String),
    /// It is understood, and not possible for this user.
    Unprocessable(&'static str),
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
            Self::WrongPassword => (
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                WRONG_PASSWORD.to_owned(),
            ),
            Self::Locked(until) => (
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                format!("{LOCKED} {}", lockout::again(until)),
            ),
            Self::Denied(scope) => (
                StatusCode::FORBIDDEN,
                "insufficient_scope",
                format!("Insufficient scope for this resource: {scope} is needed"),
            ),
            Self::Invalid(text) => (StatusCode::BAD_REQUEST, "invalid_scim_resource", text),
            Self::Unprocessable(text) => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid_password",
                text.to_owned(),
            ),
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
#[serde(rename_all = "camelCase")]
pub(crate) struct NewPassword {
    password: Secret<String>,
    #[serde(default)]
    old_password: Option<Secret<String>>,
}

/// What `PATCH /Users/ID` can change.
#[derive(Debug, Deserialize)]
pub(crate) struct Activity {
    #[serde(default)]
    active: Option<bool>,
}

/// The body of `PATCH /Users/ID/status`, and its answer.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    #[serde(default)]
    locked: Option<bool>,
    #[serde(default)]
    password_change_required: Option<bool>,
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
    let filter = query.filter::<User>()?;
    let name = filter.as_ref().and_then(|filter| filter.has_to_be("username"));
    let users = db::users(&app.db, name).await?;
    let fits = |user: &&User| filter.as_ref().is_none_or(|filter| filter.fits(*user));
    let shown = users.iter().filter(fits).map(|user| app.shown(user));
    Ok(Json(page(shown.collect(), &query)))
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
    source: Source,
    Body(wanted): Body<NewUser>,
) -> Result<Response, Refusal> {
    check_name("userName", &wanted.user_name)?;
    let password = wanted
        .password
        .ok_or_else(|| Refusal::Invalid("there is no `password`".to_owned()))?;
    crate::check_length(&password).map_err(|error| Refusal::Invalid(error.to_string()))?;
    let email = match wanted.emails.into_iter().next() {
        Some(email) => {
            check_name("emails", &email.value)?;
            email.value
        }
        None => wanted.user_name.clone(),
    };
    let user = User {
        id: UserId::new(&app.ids),
        name: wanted.user_name,
        email,
        password: app.passwords.hash(password, &source).await?,
        // What everybody has: without `openid` there is no identity token, without `roles` no groups in it.
        scopes: vec!["openid".to_owned(), "roles".to_owned()],
        active: true,
        created_at: app.clock.now_millis(),
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
    if !db::has_active_member(&mut tx, ADMIN).await? {
        return Err(Refusal::LastAdministrator);
    }
    tx.commit().await?;
    app.standings.forget();
    tracing::info!(user = %user.name, by = %actor.name, "deleted a user");
    Ok(Json(app.shown(&user)))
}

/// `PUT /Users/ID/password`: a person's own with the old one, or somebody else's by an administrator. All that the user was given ends.
pub(crate) async fn password_change(
    State(app): App,
    Bearer(actor): Bearer,
    source: Source,
    Path(id): Path<String>,
    Body(wanted): Body<NewPassword>,
) -> Result<Json<Value>, Refusal> {
    let asked: Option<UserId> = id.parse().ok();
    let own = actor.user_id.as_deref().and_then(|id| id.parse().ok());
    let is_own = own.is_some() && own == asked;
    if !is_own && !actor.has_any(&[WRITE, ADMIN]) {
        return Err(Refusal::Denied(WRITE));
    }
    let user = app.user(&id).await?;
    crate::check_length(&wanted.password).map_err(|error| Refusal::Invalid(error.to_string()))?;
    if is_own {
        app.check_old_password(&user, wanted.old_password, &wanted.password, &source)
            .await?;
    }
    let hash = app.passwords.hash(wanted.password, &source).await?;
    let mut tx = app.db.begin("set a password").await?;
    // Of two who change it at once, the second one does not know what the first one has made of it.
    if is_own && !db::has_password(&mut tx, &user).await? {
        return Err(Refusal::Unprocessable(OTHER_PASSWORD));
    }
    db::set_password(&mut tx, &user.name, &hash).await?;
    tx.commit().await?;
    app.standings.forget();
    if !is_own {
        app.lockout.unlock(&user.name).await?;
    }
    tracing::info!(user = %user.name, by = %actor.name, "set a password");
    Ok(Json(json!({"status": "ok", "message": "password updated"})))
}

/// `PATCH /Users/ID`: switches a user off, which ends all that the user was given, or on again.
pub(crate) async fn user_update(
    State(app): App,
    Writer(actor): Writer,
    Path(id): Path<String>,
    Body(wanted): Body<Activity>,
) -> Result<Json<Value>, Refusal> {
    let user = app.user(&id).await?;
    let active = wanted
        .active
        .ok_or_else(|| Refusal::Invalid("only `active` of a user can be changed".to_owned()))?;
    let mut tx = app.db.begin("switch a user").await?;
    db::set_active(&mut tx, user.id, active).await?;
    if !db::has_active_member(&mut tx, ADMIN).await? {
        return Err(Refusal::LastAdministrator);
    }
    tx.commit().await?;
    app.standings.forget();
    tracing::info!(user = %user.name, by = %actor.name, active, "switched a user");
    Ok(Json(app.shown(&app.user(&id).await?)))
}

/// `PATCH /Users/ID/status`: opens a locked account. Accounts are locked by wrong passwords alone, as with UAA.
pub(crate) async fn user_status(
    State(app): App,
    Bearer(actor): Bearer,
    Path(id): Path<String>,
    Body(wanted): Body<Status>,
) -> Result<Json<Value>, Refusal> {
    if !actor.has_any(&[WRITE, UNLOCK, ADMIN]) {
        return Err(Refusal::Denied(WRITE));
    }
    let user = app.user(&id).await?;
    match (wanted.locked, wanted.password_change_required) {
        (Some(false), None) => {}
        (Some(true), _) => {
            return Err(Refusal::Invalid(
                "Cannot set user account to locked. User accounts only become locked through exceeding the allowed failed login attempts."
                    .to_owned(),
            ));
        }
        _ => {
            return Err(Refusal::Invalid(
                "only `locked` can be changed, to false".to_owned(),
            ));
        }
    }
    app.lockout.unlock(&user.name).await?;
    tracing::info!(user = %user.name, by = %actor.name, "unlocked a user");
    Ok(Json(json!({"locked": false})))
}

pub(crate) async fn group_list(
    State(app): App,
    _: Reader,
    Query(query): Query<ListQuery>,
) -> Result<Json<Value>, Refusal> {
    let filter = query.filter::<Group<'_>>()?;
    let groups = db::groups(&app.db).await?;
    let chosen = groups.iter().filter(|(name, members)| {
        let group = Group { name, members };
        filter.as_ref().is_none_or(|filter| filter.fits(&group))
    });
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

/// `DELETE /Groups/NAME`. Its members lose what it allowed, those with tokens too.
pub(crate) async fn group_delete(
    State(app): App,
    Writer(actor): Writer,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let shown = app.group(&name).await?;
    if crate::ADMINISTRATOR_SCOPES.contains(&name.as_str()) {
        return Err(Refusal::Invalid(format!(
            "the group {name} is a role of the installation and stays"
        )));
    }
    let mut tx = app.db.begin("delete a group").await?;
    db::delete_group(&mut tx, &name).await?;
    tx.commit().await?;
    app.standings.forget();
    tracing::info!(group = %name, by = %actor.name, "deleted a group");
    Ok(Json(shown))
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
    app.standings.forget();
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
    app.standings.forget();
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
    if name == ADMIN && !db::has_active_member(&mut tx, ADMIN).await? {
        return Err(Refusal::LastAdministrator);
    }
    tx.commit().await?;
    app.standings.forget();
    tracing::info!(group = %name, user = %user.name, by = %actor.name, "removed a member");
    Ok(Json(shown_member(&user.id)))
}

/// Somebody who may see users and groups.
pub(crate) struct Reader;

/// Anybody with a valid token.
pub(crate) struct Bearer(Actor);

/// Somebody who may change them.
pub(crate) struct Writer(Actor);

impl FromRequestParts<Arc<Inner>> for Reader {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<Inner>) -> Result<Self, Refusal> {
        app.may(parts, &[READ, WRITE, ADMIN]).await.map(|_| Self)
    }
}

impl FromRequestParts<Arc<Inner>> for Bearer {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<Inner>) -> Result<Self, Refusal> {
        app.actor(parts).await.map(Self)
    }
}

impl FromRequestParts<Arc<Inner>> for Writer {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<Inner>) -> Result<Self, Refusal> {
        app.may(parts, &[WRITE, ADMIN]).await.map(Self)
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
    async fn may(&self, parts: &Parts, scopes: &[&'static str]) -> Result<Actor, Refusal> {
        let actor = self.actor(parts).await?;
        if actor.has_any(scopes) {
            Ok(actor)
        } else {
            Err(Refusal::Denied(scopes[0]))
        }
    }

    async fn actor(&self, parts: &Parts) -> Result<Actor, Refusal> {
        let actor = self.verifier.actor(&parts.headers).await;
        let actor = actor.map_err(|error| match error.class() {
            Class::Unavailable => Refusal::Internal(Error::Standing(error.into())),
            _ => Refusal::Unauthenticated,
        })?;
        stolos_base::http::signed_in(&parts.extensions);
        Ok(actor)
    }

    /// The old password of somebody who wants another one: an attempt like a login, with UAA's words where there is none.
    async fn check_old_password(
        &self,
        user: &User,
        old: Option<Secret<String>>,
        new: &Secret<String>,
        source: &Source,
    ) -> Result<(), Refusal> {
        let old = old.ok_or_else(|| Refusal::Invalid("Previous password is required".to_owned()))?;
        let is_same = old.expose() == new.expose();
        let subject = Subject::new(lockout::Kind::User, &user.name, source);
        match self.attempt(&subject, old, Some(user.password.clone())).await {
            Ok(true) if is_same => Err(Refusal::Unprocessable(
                "Your new password cannot be the same as the old password.",
            )),
            Ok(true) => Ok(()),
            Ok(false) => Err(Refusal::WrongPassword),
            Err(OAuthError::Locked { until }) => Err(Refusal::Locked(until)),
            Err(OAuthError::Internal(error)) => Err(Refusal::Internal(error)),
            Err(_) => Err(Refusal::Unauthenticated),
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
        if group == ADMIN && !db::has_active_member(tx, ADMIN).await? {
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
        let created = jiff::Timestamp::from_millisecond(user.created_at).map(|time| time.to_string());
        json!({
            "id": user.id.to_string(),
            "userName": user.name,
            "emails": [{"value": user.email, "primary": true}],
            "groups": groups,
            "active": user.active,
            "verified": true,
            "origin": "uaa",
            "zoneId": "uaa",
            "schemas": [SCHEMA],
            "meta": {"version": 0, "created": created.unwrap_or_default()},
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

impl ListQuery {
    fn filter<R: Resource>(&self) -> Result<Option<Filter>, Refusal> {
        let filter = self.filter.as_deref().map(Filter::parse::<R>).transpose();
        filter.map_err(|problem| Refusal::Invalid(format!("Invalid filter expression: {problem}")))
    }
}

impl Resource for User {
    const ATTRIBUTES: &'static [&'static str] = &[
        "id",
        "externalid",
        "username",
        "emails",
        "emails.value",
        "email",
        "groups",
        "groups.value",
        "groups.display",
        "active",
        "verified",
        "origin",
        "zoneid",
        "meta.created",
        "created",
    ];

    fn values(&self, attribute: &str) -> Vec<Attribute> {
        let text = |text: &str| vec![Attribute::Text(text.to_owned())];
        match attribute {
            "id" => text(&self.id.to_string()),
            "username" => text(&self.name),
            "emails" | "emails.value" | "email" => text(&self.email),
            "groups" | "groups.value" | "groups.display" => {
                self.scopes.iter().cloned().map(Attribute::Text).collect()
            }
            "active" => vec![Attribute::Truth(self.active)],
            "verified" => vec![Attribute::Truth(true)],
            "origin" | "zoneid" => text("uaa"),
            "meta.created" | "created" => vec![Attribute::Time(self.created_at)],
            _ => Vec::new(),
        }
    }
}

/// A group, to be filtered.
struct Group<'a> {
    name: &'a str,
    members: &'a [UserId],
}

impl Resource for Group<'_> {
    const ATTRIBUTES: &'static [&'static str] = &[
        "id",
        "displayname",
        "members",
        "members.value",
        "zoneid",
        "zone_id",
    ];

    fn values(&self, attribute: &str) -> Vec<Attribute> {
        let text = |text: &str| vec![Attribute::Text(text.to_owned())];
        match attribute {
            "id" | "displayname" => text(self.name),
            "members" | "members.value" => self
                .members
                .iter()
                .map(|id| Attribute::Text(id.to_string()))
                .collect(),
            "zoneid" | "zone_id" => text("uaa"),
            _ => Vec::new(),
        }
    }
}

fn check_name(field: &str, name: &str) -> Result<(), Refusal> {
    crate::names::check(field, name).map_err(Refusal::Invalid)
}
