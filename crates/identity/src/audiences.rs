//! Audiences of log-ins: identity tokens of a log-in that was narrowed are for one cluster, whoever renews them.
//!
//! Owns its table. A log-in is narrowed once and never widened or given to another audience, so a refresh token in somebody else's kubeconfig gets
//! nothing for other clusters.

use stolos_api::identity::{CLUSTER_AUDIENCE, PKS_CLUSTER_CLIENT};
use stolos_base::ids::ClusterId;
use stolos_store::{Db, Migration, Part, Row as _, query};

use crate::db::{Client, RefreshToken};
use crate::error::{Error, OAuthError};

/// The table.
pub(crate) static AUDIENCES: Part = Part {
    name: "identity audiences",
    migrations: &[Migration {
        number: 1,
        name: "audiences of log-ins",
        // `login`: as in `identity_refresh_tokens`. `expires_at`: milliseconds, when the log-in ends.
        statements: &["CREATE TABLE identity_login_audiences (
            login TEXT PRIMARY KEY,
            audience TEXT NOT NULL,
            expires_at BIGINT NOT NULL
        )"],
    }],
};

/// The audience of a log-in, which becomes `asked` where it has none; none where nobody ever asked.
///
/// # Errors
/// A refusal when the log-in is for another audience, or `asked` is none of a cluster.
pub(crate) async fn of_login(
    db: &Db,
    client: &Client,
    token: &RefreshToken,
    asked: Option<&str>,
) -> Result<Option<String>, OAuthError> {
    if client.id != PKS_CLUSTER_CLIENT {
        return match asked {
            None => Ok(None),
            Some(_) => Err(refused("This client's tokens have no other audience")),
        };
    }
    if let Some(asked) = asked {
        let id = asked.strip_prefix(CLUSTER_AUDIENCE);
        if !id.is_some_and(|id| {
            id.parse::<ClusterId>()
                .is_ok_and(|parsed| parsed.to_string() == id)
        }) {
            return Err(refused("The audience is none of a cluster"));
        }
        narrow(db, token, asked).await?;
    }
    let known = kept(db, &token.login).await?;
    if asked.is_some_and(|asked| known.as_deref() != Some(asked)) {
        return Err(refused("The log-in is for another audience"));
    }
    Ok(known)
}

fn refused(text: &str) -> OAuthError {
    OAuthError::InvalidRequest(text.to_owned())
}

fn store<T>(result: Result<T, stolos_store::sqlx::Error>) -> Result<T, Error> {
    result.map_err(|error| Error::Store(error.into()))
}

/// The first one stays, of two at once too. Forgets those of log-ins that have ended.
async fn narrow(db: &Db, token: &RefreshToken, audience: &str) -> Result<(), Error> {
    let mut tx = db.begin("narrow a log-in").await?;
    let now = tx.now_millis();
    let forgotten = query("DELETE FROM identity_login_audiences WHERE expires_at <= $1")
        .bind(now)
        .execute(tx.conn())
        .await;
    store(forgotten)?;
    let kept = query(
        "INSERT INTO identity_login_audiences (login, audience, expires_at) VALUES ($1, $2, $3) ON CONFLICT (login) DO NOTHING",
    )
    .bind(token.login.clone())
    .bind(audience.to_owned())
    .bind(token.expires_at)
    .execute(tx.conn())
    .await;
    store(kept)?;
    Ok(tx.commit().await?)
}

async fn kept(db: &Db, login: &str) -> Result<Option<String>, Error> {
    let row = query("SELECT audience FROM identity_login_audiences WHERE login = $1")
        .bind(login.to_owned())
        .fetch_optional(db.read())
        .await;
    store(row)?.map(|row| store(row.try_get("audience"))).transpose()
}
