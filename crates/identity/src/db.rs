//! All SQL of this crate.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::DeserializeOwned;
use stolos_base::ids::UserId;
use stolos_store::{AnyRow, Db, Migration, Part, Row as _, Schema, Tx, query};

use crate::error::{Error, Result};

/// The tables of this service.
pub static TABLES: Part = Part {
    name: "identity",
    migrations: &[
        Migration {
            number: 1,
            name: "users, clients and refresh tokens",
            statements: &[
                // `key` is the name in lower case: names are compared without regard to case.
                "CREATE TABLE identity_users (
                    id TEXT PRIMARY KEY,
                    key TEXT NOT NULL UNIQUE,
                    name TEXT NOT NULL,
                    email TEXT NOT NULL,
                    password TEXT NOT NULL,
                    created_at BIGINT NOT NULL,
                    password_changed_at BIGINT NOT NULL
                )",
                "CREATE TABLE identity_memberships (
                    user_id TEXT NOT NULL REFERENCES identity_users (id) ON DELETE CASCADE,
                    scope TEXT NOT NULL,
                    PRIMARY KEY (user_id, scope)
                )",
                // `secret`: a hash; NULL for a client with an empty secret. Lists are JSON; validities are seconds.
                "CREATE TABLE identity_clients (
                    id TEXT PRIMARY KEY,
                    secret TEXT,
                    grants TEXT NOT NULL,
                    scopes TEXT NOT NULL,
                    authorities TEXT NOT NULL,
                    access_validity BIGINT NOT NULL,
                    refresh_validity BIGINT NOT NULL
                )",
                // `digest`: of the token, which itself is kept nowhere. `login`: all tokens of one login.
                // `used_at`: when the next token was given for it.
                "CREATE TABLE identity_refresh_tokens (
                    digest TEXT PRIMARY KEY,
                    login TEXT NOT NULL,
                    user_id TEXT NOT NULL REFERENCES identity_users (id) ON DELETE CASCADE,
                    client_id TEXT NOT NULL REFERENCES identity_clients (id) ON DELETE CASCADE,
                    scopes TEXT NOT NULL,
                    auth_time BIGINT NOT NULL,
                    expires_at BIGINT NOT NULL,
                    used_at BIGINT
                )",
                "CREATE INDEX identity_refresh_tokens_login ON identity_refresh_tokens (login)",
                "CREATE INDEX identity_refresh_tokens_expiry ON identity_refresh_tokens (expires_at)",
            ],
        },
        Migration {
            number: 2,
            name: "tickets of browsers",
            statements: &[
                // `digest`: of the ticket, which itself is kept nowhere. `kind`: `session`, `passcode` or `code`. `detail`: JSON.
                "CREATE TABLE identity_tickets (
                    digest TEXT PRIMARY KEY,
                    kind TEXT NOT NULL,
                    user_id TEXT NOT NULL REFERENCES identity_users (id) ON DELETE CASCADE,
                    detail TEXT NOT NULL,
                    auth_time BIGINT NOT NULL,
                    expires_at BIGINT NOT NULL
                )",
                "CREATE INDEX identity_tickets_expiry ON identity_tickets (expires_at)",
            ],
        },
        Migration {
            number: 3,
            name: "groups that are nobody's yet",
            statements: &["CREATE TABLE identity_groups (name TEXT PRIMARY KEY)"],
        },
        Migration {
            number: 4,
            name: "attempts to log in",
            statements: &[
                // `name`: a digest of whose secret was tried. `source`: where from. `failures`: attempts that have not succeeded, those that
                // are under way among them. Times are milliseconds; `locked_until` is 0 where nothing is locked.
                "CREATE TABLE identity_attempts (
                    name TEXT NOT NULL,
                    source TEXT NOT NULL,
                    failures BIGINT NOT NULL,
                    last_at BIGINT NOT NULL,
                    locked_until BIGINT NOT NULL,
                    forget_at BIGINT NOT NULL,
                    PRIMARY KEY (name, source)
                )",
                "CREATE INDEX identity_attempts_source ON identity_attempts (source)",
                "CREATE INDEX identity_attempts_age ON identity_attempts (forget_at)",
            ],
        },
        Migration {
            number: 5,
            name: "users that are switched off",
            statements: &[
                // 0 or 1; an administrator sets it.
                "ALTER TABLE identity_users ADD COLUMN active BIGINT NOT NULL DEFAULT 1",
            ],
        },
        // new migrations go above this line, with the next number
    ],
};

/// The schema of this service.
pub static SCHEMA: Schema = Schema {
    name: "identity",
    parts: &[&TABLES, &crate::audiences::AUDIENCES],
};

/// A person.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) id: UserId,
    pub(crate) name: String,
    pub(crate) email: String,
    /// A hash.
    pub(crate) password: String,
    pub(crate) scopes: Vec<String>,
    /// Who is not can do nothing.
    pub(crate) active: bool,
    /// Milliseconds.
    pub(crate) created_at: i64,
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) id: String,
    /// A hash.
    pub(crate) secret: Option<String>,
    pub(crate) grants: Vec<String>,
    pub(crate) scopes: Vec<String>,
    pub(crate) authorities: Vec<String>,
    pub(crate) access_validity: i64,
    pub(crate) refresh_validity: i64,
}

/// A refresh token, by its digest.
#[derive(Clone, Debug)]
pub(crate) struct RefreshToken {
    pub(crate) digest: String,
    pub(crate) login: String,
    pub(crate) user: UserId,
    pub(crate) client: String,
    pub(crate) scopes: Vec<String>,
    /// Seconds.
    pub(crate) auth_time: i64,
    /// Milliseconds.
    pub(crate) expires_at: i64,
    /// Milliseconds.
    pub(crate) used_at: Option<i64>,
    /// The user's, when the token was looked at: a hash.
    pub(crate) password: String,
}

fn store<T>(result: Result<T, stolos_store::sqlx::Error>) -> Result<T> {
    result.map_err(|error| Error::Store(error.into()))
}

fn list(row: &AnyRow, column: &'static str) -> Result<Vec<String>> {
    let text: String = store(row.try_get(column))?;
    from_json(&text, column)
}

fn from_json<T: DeserializeOwned>(text: &str, what: &'static str) -> Result<T> {
    serde_json::from_str(text).map_err(|_| Error::Corrupt(what))
}

fn user_id(row: &AnyRow, column: &'static str) -> Result<UserId> {
    let id: String = store(row.try_get(column))?;
    id.parse().map_err(|_| Error::Corrupt("user id"))
}

fn is_active(row: &AnyRow) -> Result<bool> {
    Ok(store(row.try_get::<i64, _>("active"))? != 0)
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("a list of texts serializes")
}

pub(crate) async fn user_by_name(db: &Db, name: &str) -> Result<Option<User>> {
    let row =
        query("SELECT id, name, email, password, active, created_at FROM identity_users WHERE key = $1")
            .bind(name.to_lowercase())
            .fetch_optional(db.read())
            .await;
    user(db, store(row)?).await
}

pub(crate) async fn user_by_id(db: &Db, id: UserId) -> Result<Option<User>> {
    let row = query("SELECT id, name, email, password, active, created_at FROM identity_users WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(db.read())
        .await;
    user(db, store(row)?).await
}

async fn user(db: &Db, row: Option<AnyRow>) -> Result<Option<User>> {
    let Some(row) = row else { return Ok(None) };
    let id: String = store(row.try_get("id"))?;
    let scopes = query("SELECT scope FROM identity_memberships WHERE user_id = $1 ORDER BY scope")
        .bind(id.clone())
        .fetch_all(db.read())
        .await;
    let scopes = store(scopes)?;
    Ok(Some(User {
        id: id.parse().map_err(|_| Error::Corrupt("user id"))?,
        name: store(row.try_get("name"))?,
        email: store(row.try_get("email"))?,
        password: store(row.try_get("password"))?,
        active: is_active(&row)?,
        created_at: store(row.try_get("created_at"))?,
        scopes: scopes
            .iter()
            .map(|row| store(row.try_get("scope")))
            .collect::<Result<_>>()?,
    }))
}

/// Adds a user unless there is one of that name; whether it was added.
pub(crate) async fn insert_user(tx: &mut Tx, user: &User) -> Result<bool> {
    let now = tx.now_millis();
    let added = query(
        "INSERT INTO identity_users (id, key, name, email, password, created_at, password_changed_at)
         VALUES ($1, $2, $3, $4, $5, $6, $6) ON CONFLICT (key) DO NOTHING",
    )
    .bind(user.id.to_string())
    .bind(user.name.to_lowercase())
    .bind(user.name.clone())
    .bind(user.email.clone())
    .bind(user.password.clone())
    .bind(now)
    .execute(tx.conn())
    .await;
    if store(added)?.rows_affected() == 0 {
        return Ok(false);
    }
    for scope in &user.scopes {
        let added = query("INSERT INTO identity_memberships (user_id, scope) VALUES ($1, $2)")
            .bind(user.id.to_string())
            .bind(scope.clone())
            .execute(tx.conn())
            .await;
        store(added)?;
    }
    Ok(true)
}

/// All users by name, or the one of a name.
pub(crate) async fn users(db: &Db, name: Option<&str>) -> Result<Vec<User>> {
    let rows = query(
        "SELECT u.id, u.name, u.email, u.password, u.active, u.created_at, m.scope
         FROM identity_users u LEFT JOIN identity_memberships m ON m.user_id = u.id
         WHERE $1 = '' OR u.key = $1 ORDER BY u.key, m.scope",
    )
    .bind(name.unwrap_or_default().to_lowercase())
    .fetch_all(db.read())
    .await;
    let mut users: Vec<User> = Vec::new();
    for row in store(rows)? {
        let id = user_id(&row, "id")?;
        if users.last().is_none_or(|user| user.id != id) {
            users.push(User {
                id,
                name: store(row.try_get("name"))?,
                email: store(row.try_get("email"))?,
                password: store(row.try_get("password"))?,
                active: is_active(&row)?,
                created_at: store(row.try_get("created_at"))?,
                scopes: Vec::new(),
            });
        }
        let scope: Option<String> = store(row.try_get("scope"))?;
        if let Some(user) = users.last_mut() {
            user.scopes.extend(scope);
        }
    }
    Ok(users)
}

/// Switches a user on or off; what the user has ends with the latter.
pub(crate) async fn set_active(tx: &mut Tx, id: UserId, active: bool) -> Result<()> {
    let done = query("UPDATE identity_users SET active = $1 WHERE id = $2")
        .bind(i64::from(active))
        .bind(id.to_string())
        .execute(tx.conn())
        .await;
    store(done)?;
    if active {
        return Ok(());
    }
    for sql in [
        "DELETE FROM identity_refresh_tokens WHERE user_id = $1",
        "DELETE FROM identity_tickets WHERE user_id = $1",
    ] {
        store(query(sql).bind(id.to_string()).execute(tx.conn()).await)?;
    }
    Ok(())
}

/// Deletes a user with everything that the user has.
pub(crate) async fn delete_user(tx: &mut Tx, id: UserId) -> Result<()> {
    for sql in [
        "DELETE FROM identity_memberships WHERE user_id = $1",
        "DELETE FROM identity_refresh_tokens WHERE user_id = $1",
        "DELETE FROM identity_tickets WHERE user_id = $1",
        "DELETE FROM identity_users WHERE id = $1",
    ] {
        store(query(sql).bind(id.to_string()).execute(tx.conn()).await)?;
    }
    Ok(())
}

/// All groups with their members. The scopes are groups even when nobody is in them.
pub(crate) async fn groups(db: &Db) -> Result<BTreeMap<String, Vec<UserId>>> {
    let mut groups: BTreeMap<String, Vec<UserId>> = crate::ADMINISTRATOR_SCOPES
        .iter()
        .map(|scope| ((*scope).to_owned(), Vec::new()))
        .collect();
    let names = query("SELECT name FROM identity_groups")
        .fetch_all(db.read())
        .await;
    for row in store(names)? {
        groups.entry(store(row.try_get("name"))?).or_default();
    }
    let members = query("SELECT scope, user_id FROM identity_memberships ORDER BY user_id")
        .fetch_all(db.read())
        .await;
    for row in store(members)? {
        let members = groups.entry(store(row.try_get("scope"))?).or_default();
        members.push(user_id(&row, "user_id")?);
    }
    Ok(groups)
}

/// Makes a group; fine when it is there.
pub(crate) async fn insert_group(tx: &mut Tx, name: &str) -> Result<()> {
    let done = query("INSERT INTO identity_groups (name) VALUES ($1) ON CONFLICT (name) DO NOTHING")
        .bind(name.to_owned())
        .execute(tx.conn())
        .await;
    store(done).map(drop)
}

/// Deletes a group and takes everybody out of it.
pub(crate) async fn delete_group(tx: &mut Tx, name: &str) -> Result<()> {
    for sql in [
        "DELETE FROM identity_memberships WHERE scope = $1",
        "DELETE FROM identity_groups WHERE name = $1",
    ] {
        store(query(sql).bind(name.to_owned()).execute(tx.conn()).await)?;
    }
    Ok(())
}

/// Whether somebody is in a group who is not switched off.
pub(crate) async fn has_active_member(tx: &mut Tx, group: &str) -> Result<bool> {
    let row = query(
        "SELECT u.id FROM identity_memberships m JOIN identity_users u ON u.id = m.user_id
         WHERE m.scope = $1 AND u.active = 1 LIMIT 1",
    )
    .bind(group.to_owned())
    .fetch_optional(tx.conn())
    .await;
    Ok(store(row)?.is_some())
}

/// Who is in a group.
pub(crate) async fn members(tx: &mut Tx, group: &str) -> Result<Vec<UserId>> {
    let rows = query("SELECT user_id FROM identity_memberships WHERE scope = $1 ORDER BY user_id")
        .bind(group.to_owned())
        .fetch_all(tx.conn())
        .await;
    store(rows)?.iter().map(|row| user_id(row, "user_id")).collect()
}

/// Puts a user into a group; fine when that is so.
pub(crate) async fn add_member(tx: &mut Tx, user: UserId, group: &str) -> Result<()> {
    let done = query(
        "INSERT INTO identity_memberships (user_id, scope) VALUES ($1, $2) ON CONFLICT (user_id, scope) DO NOTHING",
    )
    .bind(user.to_string())
    .bind(group.to_owned())
    .execute(tx.conn())
    .await;
    store(done).map(drop)
}

/// Takes a user out of a group; fine when that is so.
pub(crate) async fn remove_member(tx: &mut Tx, user: UserId, group: &str) -> Result<()> {
    let done = query("DELETE FROM identity_memberships WHERE user_id = $1 AND scope = $2")
        .bind(user.to_string())
        .bind(group.to_owned())
        .execute(tx.conn())
        .await;
    store(done).map(drop)
}

/// Whether a user is still there, not switched off, and has the password that was known.
pub(crate) async fn has_password(tx: &mut Tx, user: &User) -> Result<bool> {
    let row = query("SELECT id FROM identity_users WHERE id = $1 AND password = $2 AND active = 1")
        .bind(user.id.to_string())
        .bind(user.password.clone())
        .fetch_optional(tx.conn())
        .await;
    Ok(store(row)?.is_some())
}

/// Changes a user's password and ends all its logins; whether there is such a user.
pub(crate) async fn set_password(tx: &mut Tx, name: &str, hash: &str) -> Result<bool> {
    let now = tx.now_millis();
    let changed = query("UPDATE identity_users SET password = $1, password_changed_at = $2 WHERE key = $3")
        .bind(hash)
        .bind(now)
        .bind(name.to_lowercase())
        .execute(tx.conn())
        .await;
    let ended = query(
        "DELETE FROM identity_refresh_tokens WHERE user_id IN (SELECT id FROM identity_users WHERE key = $1)",
    )
    .bind(name.to_lowercase())
    .execute(tx.conn())
    .await;
    store(ended)?;
    let ended =
        query("DELETE FROM identity_tickets WHERE user_id IN (SELECT id FROM identity_users WHERE key = $1)")
            .bind(name.to_lowercase())
            .execute(tx.conn())
            .await;
    store(ended)?;
    Ok(store(changed)?.rows_affected() > 0)
}

const CLIENT: &str =
    "SELECT id, secret, grants, scopes, authorities, access_validity, refresh_validity FROM identity_clients";

fn client(row: &AnyRow) -> Result<Client> {
    Ok(Client {
        id: store(row.try_get("id"))?,
        secret: store(row.try_get("secret"))?,
        grants: list(row, "grants")?,
        scopes: list(row, "scopes")?,
        authorities: list(row, "authorities")?,
        access_validity: store(row.try_get("access_validity"))?,
        refresh_validity: store(row.try_get("refresh_validity"))?,
    })
}

pub(crate) async fn client_by_id(db: &Db, id: &str) -> Result<Option<Client>> {
    // Only constants are put together.
    let sql = stolos_store::AssertSqlSafe(format!("{CLIENT} WHERE id = $1"));
    let row = query(sql).bind(id.to_owned()).fetch_optional(db.read()).await;
    store(row)?.as_ref().map(client).transpose()
}

pub(crate) async fn clients(db: &Db) -> Result<Vec<Client>> {
    let rows = query(CLIENT).fetch_all(db.read()).await;
    store(rows)?.iter().map(client).collect()
}

pub(crate) async fn upsert_client(tx: &mut Tx, client: &Client) -> Result<()> {
    let done = query(
        "INSERT INTO identity_clients
            (id, secret, grants, scopes, authorities, access_validity, refresh_validity)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (id) DO UPDATE SET secret = excluded.secret, grants = excluded.grants,
            scopes = excluded.scopes, authorities = excluded.authorities,
            access_validity = excluded.access_validity, refresh_validity = excluded.refresh_validity",
    )
    .bind(client.id.clone())
    .bind(client.secret.clone())
    .bind(to_json(&client.grants))
    .bind(to_json(&client.scopes))
    .bind(to_json(&client.authorities))
    .bind(client.access_validity)
    .bind(client.refresh_validity)
    .execute(tx.conn())
    .await;
    store(done).map(drop)
}

pub(crate) async fn delete_client(tx: &mut Tx, id: &str) -> Result<()> {
    let done = query("DELETE FROM identity_clients WHERE id = $1")
        .bind(id.to_owned())
        .execute(tx.conn())
        .await;
    store(done).map(drop)
}

/// Adds a refresh token, and forgets those that have expired.
pub(crate) async fn insert_refresh_token(tx: &mut Tx, token: &RefreshToken) -> Result<()> {
    let now = tx.now_millis();
    let gone = query("DELETE FROM identity_refresh_tokens WHERE expires_at <= $1")
        .bind(now)
        .execute(tx.conn())
        .await;
    store(gone)?;
    let added = query(
        "INSERT INTO identity_refresh_tokens
            (digest, login, user_id, client_id, scopes, auth_time, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(token.digest.clone())
    .bind(token.login.clone())
    .bind(token.user.to_string())
    .bind(token.client.clone())
    .bind(to_json(&token.scopes))
    .bind(token.auth_time)
    .bind(token.expires_at)
    .execute(tx.conn())
    .await;
    store(added).map(drop)
}

pub(crate) async fn refresh_token(tx: &mut Tx, digest: &str) -> Result<Option<RefreshToken>> {
    let row = query(
        "SELECT digest, login, user_id, client_id, scopes, auth_time, expires_at, used_at, password
         FROM identity_refresh_tokens t JOIN identity_users u ON u.id = t.user_id WHERE digest = $1",
    )
    .bind(digest.to_owned())
    .fetch_optional(tx.conn())
    .await;
    let Some(row) = store(row)? else {
        return Ok(None);
    };
    Ok(Some(RefreshToken {
        digest: store(row.try_get("digest"))?,
        login: store(row.try_get("login"))?,
        user: user_id(&row, "user_id")?,
        client: store(row.try_get("client_id"))?,
        scopes: list(&row, "scopes")?,
        auth_time: store(row.try_get("auth_time"))?,
        expires_at: store(row.try_get("expires_at"))?,
        used_at: store(row.try_get("used_at"))?,
        password: store(row.try_get("password"))?,
    }))
}

/// Notes the first use of a refresh token.
pub(crate) async fn use_refresh_token(tx: &mut Tx, digest: &str) -> Result<()> {
    let now = tx.now_millis();
    let done = query("UPDATE identity_refresh_tokens SET used_at = $1 WHERE digest = $2 AND used_at IS NULL")
        .bind(now)
        .bind(digest.to_owned())
        .execute(tx.conn())
        .await;
    store(done).map(drop)
}

/// Ends a login.
pub(crate) async fn end_login(tx: &mut Tx, login: &str) -> Result<()> {
    let done = query("DELETE FROM identity_refresh_tokens WHERE login = $1")
        .bind(login.to_owned())
        .execute(tx.conn())
        .await;
    store(done).map(drop)
}

/// A ticket, as kept.
#[derive(Clone, Debug)]
pub(crate) struct TicketRow {
    pub(crate) digest: String,
    pub(crate) kind: &'static str,
    pub(crate) user: UserId,
    pub(crate) detail: String,
    /// Seconds.
    pub(crate) auth_time: i64,
    /// Milliseconds.
    pub(crate) expires_at: i64,
    /// The user's, when the ticket was looked at: a hash.
    pub(crate) password: String,
}

/// Adds a ticket, and forgets those that have expired.
pub(crate) async fn insert_ticket(tx: &mut Tx, ticket: &TicketRow) -> Result<()> {
    let now = tx.now_millis();
    let gone = query("DELETE FROM identity_tickets WHERE expires_at <= $1")
        .bind(now)
        .execute(tx.conn())
        .await;
    store(gone)?;
    let added = query(
        "INSERT INTO identity_tickets (digest, kind, user_id, detail, auth_time, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(ticket.digest.clone())
    .bind(ticket.kind)
    .bind(ticket.user.to_string())
    .bind(ticket.detail.clone())
    .bind(ticket.auth_time)
    .bind(ticket.expires_at)
    .execute(tx.conn())
    .await;
    store(added).map(drop)
}

/// The ticket of that kind, if it has not expired.
pub(crate) async fn ticket(db: &Db, kind: &'static str, digest: &str, now: i64) -> Result<Option<TicketRow>> {
    let row = query(
        "SELECT user_id, detail, auth_time, expires_at, password
         FROM identity_tickets t JOIN identity_users u ON u.id = t.user_id
         WHERE digest = $1 AND kind = $2 AND expires_at > $3",
    )
    .bind(digest.to_owned())
    .bind(kind)
    .bind(now)
    .fetch_optional(db.read())
    .await;
    let Some(row) = store(row)? else {
        return Ok(None);
    };
    Ok(Some(TicketRow {
        digest: digest.to_owned(),
        kind,
        user: user_id(&row, "user_id")?,
        detail: store(row.try_get("detail"))?,
        auth_time: store(row.try_get("auth_time"))?,
        expires_at: store(row.try_get("expires_at"))?,
        password: store(row.try_get("password"))?,
    }))
}

/// Deletes a ticket; whether it was there, so that of two who use it at once only one has it.
pub(crate) async fn delete_ticket(tx: &mut Tx, digest: &str) -> Result<bool> {
    let done = query("DELETE FROM identity_tickets WHERE digest = $1")
        .bind(digest.to_owned())
        .execute(tx.conn())
        .await;
    Ok(store(done)?.rows_affected() > 0)
}

/// What is known of attempts at one name from one source. Times are milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempts {
    pub(crate) failures: i64,
    pub(crate) last_at: i64,
    /// 0 where nothing is locked.
    pub(crate) locked_until: i64,
    pub(crate) forget_at: i64,
}

const ATTEMPTS: &str = "SELECT failures, last_at, locked_until, forget_at FROM identity_attempts
     WHERE name = $1 AND source = $2";

fn attempts_of(row: Option<AnyRow>) -> Result<Option<Attempts>> {
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Attempts {
        failures: store(row.try_get("failures"))?,
        last_at: store(row.try_get("last_at"))?,
        locked_until: store(row.try_get("locked_until"))?,
        forget_at: store(row.try_get("forget_at"))?,
    }))
}

pub(crate) async fn attempts(db: &Db, name: &str, source: &str) -> Result<Option<Attempts>> {
    let row = query(ATTEMPTS).bind(name.to_owned()).bind(source.to_owned());
    attempts_of(store(row.fetch_optional(db.read()).await)?)
}

/// The same, of which nothing changes until the transaction ends.
pub(crate) async fn attempts_in(tx: &mut Tx, name: &str, source: &str) -> Result<Option<Attempts>> {
    let row = query(ATTEMPTS).bind(name.to_owned()).bind(source.to_owned());
    attempts_of(store(row.fetch_optional(tx.conn()).await)?)
}

pub(crate) async fn set_attempts(tx: &mut Tx, name: &str, source: &str, attempts: &Attempts) -> Result<()> {
    let done = query(
        "INSERT INTO identity_attempts (name, source, failures, last_at, locked_until, forget_at)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (name, source) DO UPDATE SET failures = excluded.failures, last_at = excluded.last_at,
            locked_until = excluded.locked_until, forget_at = excluded.forget_at",
    )
    .bind(name.to_owned())
    .bind(source.to_owned())
    .bind(attempts.failures)
    .bind(attempts.last_at)
    .bind(attempts.locked_until)
    .bind(attempts.forget_at)
    .execute(tx.conn())
    .await;
    store(done).map(drop)
}

/// Forgets the attempts at a name from one source, or from all.
pub(crate) async fn forget_attempts(tx: &mut Tx, name: &str, source: Option<&str>) -> Result<()> {
    let done = query("DELETE FROM identity_attempts WHERE name = $1 AND ($2 = '' OR source = $2)")
        .bind(name.to_owned())
        .bind(source.unwrap_or_default().to_owned())
        .execute(tx.conn())
        .await;
    store(done).map(drop)
}

pub(crate) async fn forget_old_attempts(tx: &mut Tx, now: i64) -> Result<()> {
    let done = query("DELETE FROM identity_attempts WHERE forget_at <= $1")
        .bind(now)
        .execute(tx.conn())
        .await;
    store(done).map(drop)
}

/// How many names are counted, at one source or at all.
pub(crate) async fn count_attempts(tx: &mut Tx, source: Option<&str>) -> Result<i64> {
    let row = match source {
        Some(source) => {
            query("SELECT COUNT(*) AS n FROM identity_attempts WHERE source = $1").bind(source.to_owned())
        }
        None => query("SELECT COUNT(*) AS n FROM identity_attempts"),
    };
    store(store(row.fetch_one(tx.conn()).await)?.try_get("n"))
}

/// Forgets up to `most` names that are not locked at `now`, those with the fewest failures and the oldest first; how many were forgotten.
pub(crate) async fn evict_attempts(tx: &mut Tx, source: Option<&str>, now: i64, most: i64) -> Result<u64> {
    let done = query(
        "DELETE FROM identity_attempts WHERE (name, source) IN (
            SELECT name, source FROM identity_attempts
            WHERE ($1 = '' OR source = $1) AND locked_until <= $2
            ORDER BY failures, last_at LIMIT $3)",
    )
    .bind(source.unwrap_or_default().to_owned())
    .bind(now)
    .bind(most)
    .execute(tx.conn())
    .await;
    Ok(store(done)?.rows_affected())
}
