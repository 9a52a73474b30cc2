//! Wrong passwords: how many are looked at, whom they lock out, and whom they do not.

use std::time::Duration;

use futures::future::join_all;
use stolos_api::identity::{self, LOCKED, PKS_CLI};
use stolos_store::testing::{Place, each};

use super::{PASSWORD, World, world};

/// What the service says to a login.
async fn told(client: &identity::Client, name: &str, password: &str) -> String {
    match client.password(PKS_CLI, name, &password.into()).await {
        Ok(_) => "welcome".to_owned(),
        Err(error) => match error.refusal() {
            Some(refusal) => format!("{} {}", refusal.status, refusal.message),
            None => stolos_base::chain(&error),
        },
    }
}

fn count(all: &[String], what: &str) -> usize {
    all.iter().filter(|told| told.contains(what)).count()
}

/// 60 passwords that came at once were all looked at, where five may be.
#[tokio::test]
async fn as_many_passwords_are_tried_as_are_allowed_however_many_come_at_once() {
    each(async |place| {
        let world = world(place).await;
        for name in ["admin", "nobody"] {
            let all = join_all((0..60).map(|n| {
                let client = world.client.clone();
                async move { told(&client, name, &format!("wrong-{n}")).await }
            }))
            .await;
            assert_eq!(
                (count(&all, "Bad credentials"), count(&all, LOCKED)),
                (5, 55),
                "{all:?}"
            );
            let right = told(&world.client, name, PASSWORD).await;
            assert!(
                right.starts_with(&format!("401 {LOCKED} Try again after 2")),
                "{right}"
            );
        }
    })
    .await;
}

/// Five wrong passwords locked a name for everybody.
#[tokio::test]
async fn nobody_locks_somebody_out_from_elsewhere() {
    let place = Place::sqlite();
    let world = world(&place).await;
    let evil = world.client_at([127, 0, 0, 66]);
    for _ in 0..6 {
        told(&evil, "admin", "wrong").await;
    }
    assert!(told(&evil, "admin", PASSWORD).await.contains(LOCKED));
    // Not at this address, not for a new one, not for another name; and the right password elsewhere opens nothing for the failing source.
    assert_eq!(told(&world.client, "admin", PASSWORD).await, "welcome");
    assert_eq!(
        told(&world.client_at([127, 0, 0, 2]), "ADMIN", PASSWORD).await,
        "welcome"
    );
    assert!(told(&evil, "Admin", PASSWORD).await.contains(LOCKED));
    assert!(told(&evil, "other", "wrong").await.contains("Bad credentials"));
    world.clock.advance(Duration::from_secs(301));
    // The first lock is over, and the next one is longer.
    assert!(told(&evil, "admin", "wrong").await.contains("Bad credentials"));
    world.clock.advance(Duration::from_secs(301));
    assert!(told(&evil, "admin", PASSWORD).await.contains(LOCKED));
    world.clock.advance(Duration::from_secs(300));
    assert_eq!(told(&evil, "admin", PASSWORD).await, "welcome");

    // A client's secret is counted as a password is, and apart from users of the same name.
    let wrong = [("grant_type", "client_credentials")];
    for _ in 0..5 {
        world.post("/oauth/token", Some(("plain", "wrong")), &wrong).await;
    }
    let (status, body) = world
        .post("/oauth/token", Some(("plain", "other-secret")), &wrong)
        .await;
    assert!(
        status == 401
            && body["error_description"]
                .as_str()
                .is_some_and(|text| text.contains(LOCKED))
    );
    let elsewhere = world.client_at([127, 0, 0, 3]);
    elsewhere
        .client_credentials("plain", &"other-secret".into())
        .await
        .expect("no lock elsewhere");
}

/// 150 logins of unknown names at once made a good one fail with 503.
#[tokio::test]
async fn a_flood_of_unknown_names_makes_no_good_login_fail() {
    let place = Place::sqlite();
    let world = world(&place).await;
    let flood = |client: identity::Client| async move {
        join_all((0..150).map(|n| {
            let client = client.clone();
            async move { told(&client, &format!("unknown-{n}"), "wrong").await }
        }))
        .await
    };
    let good = async |client: identity::Client| {
        let mut all = Vec::new();
        for _ in 0..3 {
            all.push(told(&client, "admin", PASSWORD).await);
        }
        all
    };
    let evil = world.client_at([127, 0, 0, 66]);
    let (flooded, elsewhere, beside) = futures::join!(
        flood(evil.clone()),
        good(world.client_at([127, 0, 0, 2])),
        good(evil)
    );
    assert_eq!(count(&flooded, "Bad credentials"), 150, "{flooded:?}");
    assert_eq!(
        (count(&elsewhere, "welcome"), count(&beside, "welcome")),
        (3, 3),
        "{elsewhere:?} {beside:?}"
    );
}

/// Many logins with the right password at once are no attack.
#[tokio::test]
async fn a_pipeline_may_log_in_many_times_at_once() {
    let place = Place::sqlite();
    let world = world(&place).await;
    let all = join_all((0..20).map(|_| told(&world.client, "admin", PASSWORD))).await;
    assert_eq!(count(&all, "welcome"), 20, "{all:?}");
}

impl World {
    /// Locks a name at the address of the world's own client.
    pub(crate) async fn lock(&self, name: &str) {
        for _ in 0..5 {
            told(&self.client, name, "wrong").await;
        }
        assert!(told(&self.client, name, PASSWORD).await.contains(LOCKED));
    }
}
