//! What was given to somebody ends with that somebody: for good, everywhere, and before its time.

use std::time::Duration;

use serde_json::json;
use stolos_api::identity::{PKS_CLI, PKS_CLUSTER_CLIENT};
use stolos_api::token::{Error, Verifier};
use stolos_base::Secret;
use stolos_base::error::{Class, Classify as _};
use stolos_store::testing::each;

use super::{World, world};

const NEW: &str = "another-password";

impl World {
    /// A user with a role, and its access and refresh tokens.
    async fn person(&self, admin: &Secret<String>, name: &str) -> (String, Secret<String>, Secret<String>) {
        let password = Secret::from("naomi-password");
        let made = self
            .client
            .create_user(admin, name, None, &password)
            .await
            .expect("a user");
        for group in ["pks.clusters.manage", "bosh.read"] {
            self.client
                .set_member(admin, group, &made.id, true)
                .await
                .expect("a member");
        }
        let tokens = self
            .client
            .password(PKS_CLI, name, &password)
            .await
            .expect("tokens");
        (made.id, tokens.access_token, tokens.refresh_token.expect("one"))
    }

    async fn refused(&self, verifiers: &[Verifier], token: &Secret<String>) {
        for verifier in verifiers {
            // The other manager may believe its last answer for a few seconds.
            let refused = async || match verifier.verify(token.expose()).await {
                Err(error) => {
                    assert!(matches!(error, Error::Revoked), "{error}");
                    assert_eq!(error.class(), Class::Unauthenticated);
                    Some(())
                }
                Ok(_) => None,
            };
            eventually("the token is refused", refused).await;
        }
    }
}

async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> Option<()>) {
    let limit = Duration::from_secs(30);
    let waited = tokio::time::timeout(limit, async {
        while is_so().await.is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    waited
        .await
        .unwrap_or_else(|_| panic!("not within {limit:?}: {what}"));
}

/// A deleted user's access token made a new kubeconfig for an administrator of a cluster; `rev_sig` was written and never read.
#[tokio::test]
async fn tokens_end_with_their_user_and_its_password_at_every_manager() {
    each(async |place| {
        let world = world(place).await;
        let second = world.second_manager(place).await;
        let verifiers = [world.identity.verifier(), second.verifier()];
        let admin = world.login().await.access_token;
        let valid = async |token: &Secret<String>| {
            for verifier in &verifiers {
                verifier.verify(token.expose()).await.expect("valid");
            }
        };

        let (id, token, refresh) = world.person(&admin, "deleted").await;
        valid(&token).await;
        world.client.delete_user(&admin, &id).await.expect("deleted");
        world.refused(&verifiers, &token).await;
        assert!(world.client.refresh(PKS_CLI, &refresh).await.is_err());
        // Somebody new of the same name is somebody else.
        let (again, other, _) = world.person(&admin, "deleted").await;
        assert_ne!(again, id);
        valid(&other).await;
        world.refused(&verifiers, &token).await;

        let (id, token, refresh) = world.person(&admin, "changed").await;
        valid(&token).await;
        world
            .client
            .set_password(&admin, &id, None, &NEW.into())
            .await
            .expect("changed");
        world.refused(&verifiers, &token).await;
        assert!(world.client.refresh(PKS_CLI, &refresh).await.is_err());
        // A new token counts at once, whatever another manager believed a moment ago.
        let tokens = world
            .client
            .password(PKS_CLI, "changed", &NEW.into())
            .await
            .expect("tokens");
        valid(&tokens.access_token).await;

        let (id, token, refresh) = world.person(&admin, "switched").await;
        valid(&token).await;
        let path = format!("/Users/{id}");
        let (status, body) = world
            .ask(&admin, "PATCH", &path, Some(json!({"active": false})))
            .await;
        assert_eq!((status, body["active"].as_bool()), (200, Some(false)));
        world.refused(&verifiers, &token).await;
        assert!(world.client.refresh(PKS_CLI, &refresh).await.is_err());
        let password = Secret::from("naomi-password");
        assert!(
            world
                .client
                .password(PKS_CLUSTER_CLIENT, "switched", &password)
                .await
                .is_err()
        );
        world
            .ask(&admin, "PATCH", &path, Some(json!({"active": true})))
            .await;
        world
            .client
            .password(PKS_CLI, "switched", &password)
            .await
            .expect("on again");

        // The administrator's own were not touched.
        valid(&admin).await;
    })
    .await;
}

#[tokio::test]
async fn a_token_allows_what_its_bearer_still_may() {
    each(async |place| {
        let world = world(place).await;
        let second = world.second_manager(place).await;
        let admin = world.login().await.access_token;
        let (id, token, _) = world.person(&admin, "naomi").await;
        for verifier in [world.identity.verifier(), second.verifier()] {
            let claims = verifier.verify(token.expose()).await.expect("valid");
            assert_eq!(claims.scope, ["bosh.read", "pks.clusters.manage"]);
        }
        world
            .client
            .set_member(&admin, "pks.clusters.manage", &id, false)
            .await
            .expect("taken out");
        for verifier in [world.identity.verifier(), second.verifier()] {
            let fewer = async || {
                let claims = verifier.verify(token.expose()).await.expect("valid");
                (claims.scope == ["bosh.read"]).then_some(())
            };
            eventually("the scope is gone", fewer).await;
        }
        let (status, claims) = world
            .post(
                "/check_token",
                Some(("clusters", super::SECRET)),
                &[("token", token.expose())],
            )
            .await;
        assert_eq!(
            (status, &claims["scope"]),
            (200, &json!(["bosh.read"])),
            "{claims}"
        );
        // What was given after the last answer counts at once.
        world
            .client
            .set_member(&admin, "pks.clusters.admin", &id, true)
            .await
            .expect("put in");
        let tokens = world
            .client
            .password(PKS_CLI, "naomi", &"naomi-password".into())
            .await
            .expect("tokens");
        for verifier in [world.identity.verifier(), second.verifier()] {
            let claims = verifier
                .verify(tokens.access_token.expose())
                .await
                .expect("valid");
            assert_eq!(claims.scope, ["bosh.read", "pks.clusters.admin"]);
        }
    })
    .await;
}

/// A client's token ends when its secret changes, and when it is not configured any more.
#[tokio::test]
async fn tokens_of_clients_end_with_their_secret() {
    each(async |place| {
        let world = world(place).await;
        let mut tokens = Vec::new();
        for (client, secret) in [("clusters", super::SECRET), ("plain", "other-secret")] {
            let own = world.client.client_credentials(client, &secret.into()).await;
            tokens.push(own.expect("a token").access_token);
        }
        let (public_key, private_key) = super::key_pair().await;
        let signing = super::SigningKey::from_pem(public_key, private_key).expect("a key");
        let mut config = super::config(&world.base);
        config.clients.remove(1);
        config.clients[0].secret = "a-new-secret".into();
        let db = place.open_at(&super::SCHEMA, world.clock.clone()).await;
        let restarted = super::Identity::start(db, &config, signing, &super::IdSource::random())
            .await
            .expect("a service");
        for token in &tokens {
            world
                .refused(&[restarted.verifier(), world.identity.verifier()], token)
                .await;
        }
    })
    .await;
}
