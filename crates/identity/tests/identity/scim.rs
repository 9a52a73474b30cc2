//! Users and groups, as `uaac` and our command line make them.

use serde_json::{Value, json};
use stolos_api::identity;
use stolos_base::Secret;
use stolos_store::testing::{Place, each};

use super::{World, world};

impl World {
    /// Status and body of the answer to a request with a token.
    async fn ask(
        &self,
        token: &Secret<String>,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        let method = method.parse().expect("a method");
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if !token.expose().is_empty() {
            request = request.bearer_auth(token.expose());
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.expect("an answer");
        (
            response.status().as_u16(),
            response.json().await.unwrap_or_default(),
        )
    }
}

#[tokio::test]
async fn users_are_made_get_rights_and_go() {
    each(async |place| {
        let world = world(place).await;
        let admin = world.login().await.access_token;
        let password = Secret::from("naomi-password");
        let made = world
            .client
            .create_user(&admin, "naomi", Some("naomi@example.com"), &password)
            .await
            .expect("a user");
        assert_eq!(made.user_name, "naomi");
        // Without a role of PKS the command line has nothing to give; for kubeconfigs it is enough.
        let refused = world.client.password(identity::PKS_CLI, "naomi", &password).await;
        assert!(refused.is_err());
        let tokens = world
            .client
            .password(identity::PKS_CLUSTER_CLIENT, "naomi", &password)
            .await
            .expect("an identity");
        assert!(tokens.id_token.is_some());

        world
            .client
            .set_member(&admin, "pks.clusters.manage", &made.id, true)
            .await
            .expect("a member");
        world
            .client
            .create_group(&admin, "developers")
            .await
            .expect("a group");
        world
            .client
            .set_member(&admin, "developers", &made.id, true)
            .await
            .expect("a member");
        let tokens = world
            .client
            .password(identity::PKS_CLI, "NAOMI", &password)
            .await
            .expect("a session");
        let actor = world
            .identity
            .verifier()
            .verify(tokens.access_token.expose())
            .await
            .expect("valid")
            .actor();
        assert!(actor.has("pks.clusters.manage") && !actor.has("pks.clusters.admin"));
        let tokens = world
            .client
            .password(identity::PKS_CLUSTER_CLIENT, "naomi", &password)
            .await
            .expect("an identity");
        let id = tokens.id_token.expect("an identity token");
        let claims = world
            .identity
            .verifier()
            .verify(id.expose())
            .await
            .expect("valid");
        assert!(claims.roles.expect("groups").contains(&"developers".to_owned()));
        // What she may not: see or make others.
        let hers = world
            .client
            .password(identity::PKS_CLI, "naomi", &password)
            .await
            .expect("a session")
            .access_token;
        assert_eq!(world.ask(&hers, "GET", "/Users", None).await.0, 403);

        let found = world.client.users(&admin).await.expect("the users");
        let names: Vec<&str> = found.iter().map(|user| user.user_name.as_str()).collect();
        assert_eq!(names, ["admin", "naomi"]);
        world
            .client
            .set_member(&admin, "pks.clusters.manage", &made.id, false)
            .await
            .expect("no member any more");
        let refused = world.client.password(identity::PKS_CLI, "naomi", &password).await;
        assert!(refused.is_err(), "the right is gone");
        world.client.delete_user(&admin, &made.id).await.expect("deleted");
        assert_eq!(world.client.user(&admin, "naomi").await.expect("an answer"), None);
        let refused = world
            .client
            .password(identity::PKS_CLUSTER_CLIENT, "naomi", &password)
            .await;
        assert!(refused.is_err(), "the user is gone");
    })
    .await;
}

#[tokio::test]
async fn bad_requests_about_users_change_nothing() {
    let place = Place::sqlite();
    let world = world(&place).await;
    let admin = world.login().await.access_token;
    let own = world
        .client
        .user(&admin, "admin")
        .await
        .expect("an answer")
        .expect("the administrator")
        .id;
    let nobody = Secret::from("");
    let user = |name: &str, password: &str| Some(json!({"userName": name, "password": password}));
    let long = "x".repeat(300);
    for (token, method, path, body, status) in [
        (&nobody, "GET", "/Users", None, 401),
        (&nobody, "POST", "/Users", user("eve", "long-enough"), 401),
        (&admin, "POST", "/Users", user("admin", "long-enough"), 409),
        (&admin, "POST", "/Users", user("ADMIN", "long-enough"), 409),
        (&admin, "POST", "/Users", user("eve", "short"), 400),
        (&admin, "POST", "/Users", user("", "long-enough"), 400),
        (&admin, "POST", "/Users", user(" eve", "long-enough"), 400),
        (&admin, "POST", "/Users", user("a/b", "long-enough"), 400),
        (&admin, "POST", "/Users", user(&long, "long-enough"), 400),
        (&admin, "POST", "/Users", Some(json!({"userName": "eve"})), 400),
        (&admin, "POST", "/Users", Some(json!([1])), 400),
        (&admin, "GET", "/Users?filter=userName+co+%22a%22", None, 400),
        (&admin, "GET", "/Users/nobody", None, 404),
        (&admin, "DELETE", "/Users/nobody", None, 404),
        (&admin, "DELETE", &format!("/Users/{own}"), None, 400),
        (
            &admin,
            "DELETE",
            &format!("/Groups/uaa.admin/members/{own}"),
            None,
            400,
        ),
        (
            &admin,
            "PUT",
            "/Groups/uaa.admin",
            Some(json!({"displayName": "uaa.admin", "members": []})),
            400,
        ),
        (
            &admin,
            "POST",
            "/Groups/none/members",
            Some(json!({"value": own})),
            404,
        ),
        (
            &admin,
            "POST",
            "/Groups/pks.clusters.manage/members",
            Some(json!({"value": "nobody"})),
            404,
        ),
        (
            &admin,
            "POST",
            "/Groups",
            Some(json!({"displayName": "uaa.admin"})),
            409,
        ),
        (
            &admin,
            "POST",
            "/Groups",
            Some(json!({"displayName": "a b"})),
            400,
        ),
    ] {
        let (got, answer) = world.ask(token, method, path, body).await;
        assert_eq!(got, status, "{method} {path}: {answer}");
        assert!(answer["error"].is_string(), "{answer}");
    }
    let left = world.client.users(&admin).await.expect("the users");
    assert_eq!(left.len(), 1);
    let (_, group) = world.ask(&admin, "GET", "/Groups/uaa.admin", None).await;
    assert_eq!(group["members"][0]["value"], own);
    // As uaac finds a group: by a filter, with its members.
    let (_, found) = world
        .ask(
            &admin,
            "GET",
            "/Groups?filter=displayName+eq+%22pks.clusters.admin%22",
            None,
        )
        .await;
    assert_eq!(found["totalResults"], 1, "{found}");
    assert_eq!(found["resources"][0]["members"][0]["value"], own);
}
