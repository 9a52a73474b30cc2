//! Whether what a token says of its bearer is still so: what services ask before they believe a token that was issued minutes ago.
//!
//! A token carries a signature of what it was given for (`rev_sig`: the client, its secret's hash, the user's password hash). It is void when that is
//! not the same any more, when the user or the client is gone; and it allows only what the user still may. The answer is the database's,
//! so that all managers and each restart come to the same one, and is kept for [`FRESH`]: so long a change takes at most.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use stolos_api::token::{Claims, Standing, StandingError};
use stolos_base::ids::UserId;
use stolos_store::Db;
use tokio::time::Instant;

use crate::db;
use crate::error::Result;
use crate::grant::revocation_signature;

/// How long an answer is believed.
const FRESH: Duration = Duration::from_secs(5);
/// How long the last answer is believed while the database gives none: a switch of databases ends no session, and within half a minute nothing
/// void is believed.
const STALE: Duration = Duration::from_secs(30);
/// Bearers that are remembered; each has a token of ours, so there are few.
const REMEMBERED: usize = 10_000;

/// Who has a token: a client, and a user unless the client acts on its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Bearer {
    client: String,
    user: Option<UserId>,
}

/// What is so at present.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Present {
    signature: String,
    scopes: Vec<String>,
}

impl Present {
    /// Whether all that a token says is so.
    fn agrees(&self, claims: &Claims) -> bool {
        self.signature == claims.rev_sig && claims.scope.iter().all(|scope| self.scopes.contains(scope))
    }
}

/// Answers, with their age. `None`: there is no such bearer.
pub(crate) struct Standings {
    db: Db,
    known: Mutex<HashMap<Bearer, (Instant, Option<Present>)>>,
}

impl Standings {
    pub(crate) fn new(db: Db) -> Self {
        Self {
            db,
            known: Mutex::default(),
        }
    }

    /// Has the database asked again: after a change by this process.
    pub(crate) fn forget(&self) {
        self.known().clear();
    }

    /// What is so at present. A kept answer is believed only where it takes nothing away from the token: one that has just been issued, after a
    /// change that another process has made, is newer than what is kept.
    async fn present(&self, bearer: &Bearer, claims: &Claims) -> Result<Option<Present>> {
        let now = Instant::now();
        let kept = self.known().get(bearer).cloned();
        if let Some((asked, present)) = &kept
            && now.duration_since(*asked) < FRESH
            && present.as_ref().is_some_and(|present| present.agrees(claims))
        {
            return Ok(present.clone());
        }
        match self.ask(bearer).await {
            Ok(present) => {
                self.remember(bearer.clone(), now, present.clone());
                Ok(present)
            }
            Err(error) => match kept {
                Some((asked, present)) if now.duration_since(asked) < STALE => {
                    let error = stolos_base::chain(&error);
                    tracing::warn!(%error, "failed to ask whether a token still counts; the last answer does");
                    Ok(present)
                }
                _ => Err(error),
            },
        }
    }

    async fn ask(&self, bearer: &Bearer) -> Result<Option<Present>> {
        let Some(client) = db::client_by_id(&self.db, &bearer.client).await? else {
            return Ok(None);
        };
        let Some(id) = bearer.user else {
            return Ok(Some(Present {
                signature: revocation_signature(&client, None),
                scopes: client.authorities,
            }));
        };
        let user = db::user_by_id(&self.db, id).await?;
        Ok(user.filter(|user| user.active).map(|user| Present {
            signature: revocation_signature(&client, Some(&user)),
            scopes: user.scopes,
        }))
    }

    /// `asked` is when the question was put: what has changed since then is not in the answer.
    fn remember(&self, bearer: Bearer, asked: Instant, present: Option<Present>) {
        let mut known = self.known();
        if known.len() >= REMEMBERED {
            known.retain(|_, (since, _)| asked.duration_since(*since) < FRESH);
        }
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(bearer, (asked, present));
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Bearer, (Instant, Option<Present>)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Standing for Standings {
    fn scopes<'a>(&'a self, claims: &'a Claims) -> BoxFuture<'a, Result<Option<Vec<String>>, StandingError>> {
        Box::pin(async {
            let user = claims.user_id.as_deref().map(str::parse).transpose();
            let Ok(user) = user else { return Ok(None) };
            let bearer = Bearer {
                client: claims.actor().client,
                user,
            };
            let present = self.present(&bearer, claims).await?;
            Ok(present
                .filter(|present| present.signature == claims.rev_sig)
                .map(|present| present.scopes))
        })
    }
}
