//! The people whom the token service knows, as `clusters` needs them, over its HTTP API.

use futures::future::BoxFuture;
use stolos_api::http::Error;
use stolos_api::identity::{Client, TokenSource, User};
use stolos_base::Secret;
use stolos_clusters::Result;
use stolos_clusters::deps::People;
use stolos_clusters::who::Person;

/// The token service at the end of a client.
pub(crate) struct RemotePeople {
    /// Its client.
    pub(crate) identity: Client,
    /// Tokens with the scope `scim.read`.
    pub(crate) tokens: TokenSource,
}

impl RemotePeople {
    /// Asks with a token, and once more with a fresh one when the kept one is not good any more.
    async fn ask<T, F: Future<Output = Result<T, Error>>>(
        &self,
        what: &str,
        ask: impl Fn(Secret<String>) -> F,
    ) -> Result<T> {
        let failed = |error| stolos_clusters::Error::service(what, error);
        let token = self.tokens.token().await.map_err(failed)?;
        match ask(token).await {
            Err(Error::Refused(refusal)) if refusal.status == 401 => {
                self.tokens.forget().await;
                let token = self.tokens.token().await.map_err(failed)?;
                ask(token).await.map_err(failed)
            }
            other => other.map_err(failed),
        }
    }
}

impl People for RemotePeople {
    fn named<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Person>>> {
        Box::pin(async move {
            let ask = |token: Secret<String>| async move { self.identity.user(&token, name).await };
            Ok(self.ask("ask for a user by name", ask).await?.and_then(present))
        })
    }

    fn by_id<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Person>>> {
        Box::pin(async move {
            let ask = |token: Secret<String>| async move { self.identity.user_by_id(&token, id).await };
            Ok(self.ask("ask for a user", ask).await?.and_then(present))
        })
    }

    fn all(&self) -> BoxFuture<'_, Result<Vec<Person>>> {
        Box::pin(async move {
            let ask = |token: Secret<String>| async move { self.identity.users(&token).await };
            let users = self.ask("ask for all users", ask).await?;
            Ok(users.into_iter().map(person).collect())
        })
    }
}

/// Who is switched off may have nothing, as if they were not there; what was theirs stays theirs.
fn present(user: User) -> Option<Person> {
    user.active.then(|| person(user))
}

fn person(user: User) -> Person {
    Person {
        id: user.id,
        name: user.user_name,
        groups: user.groups.into_iter().map(|group| group.display).collect(),
    }
}
