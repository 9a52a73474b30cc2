//! Users and groups, as `uaac` and our command line make them.

use serde_json::{Value, json};
use stolos_api::identity;
use stolos_base::Secret;
use stolos_store::testing::{Place, each};

use super::{PASSWORD, World, world};

impl World {
    /// Status and body of the answer to a request with a token.
    pub(crate) async fn ask(
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
        (&admin, "GET", "/Users?filter=userName+is+%22a%22", None, 400),
        (&admin, "GET", "/Users?filter=password+eq+%22a%22", None, 400),
        (&admin, "POST", "/Users", user("e\u{202e}ve", "long-enough"), 400),
        (&admin, "POST", "/Users", user("eve\u{200b}", "long-enough"), 400),
        (&admin, "POST", "/Users", user("e\nve", "long-enough"), 400),
        (
            &admin,
            "POST",
            "/Users",
            Some(json!({"userName": "eve", "password": "long-enough", "emails": [{"value": "e\u{1b}[2J"}]})),
            400,
        ),
        (
            &admin,
            "POST",
            "/Groups",
            Some(json!({"displayName": "dev\u{2066}s"})),
            400,
        ),
        (&admin, "DELETE", "/Groups/none", None, 404),
        (&admin, "DELETE", "/Groups/pks.clusters.admin", None, 400),
        (&nobody, "DELETE", "/Groups/uaa.admin", None, 401),
        (
            &nobody,
            "PUT",
            &format!("/Users/{own}/password"),
            Some(json!({"password": "long-enough"})),
            401,
        ),
        // An administrator's own password needs the old one, as with UAA, however the id is written.
        (
            &admin,
            "PUT",
            &format!("/Users/{own}/password"),
            Some(json!({"password": "long-enough"})),
            400,
        ),
        (
            &admin,
            "PUT",
            &format!("/Users/{}/password", own.to_uppercase()),
            Some(json!({"password": "long-enough"})),
            400,
        ),
        (
            &admin,
            "PUT",
            &format!("/Users/{own}/password"),
            Some(json!({"password": "long-enough", "oldPassword": "wrong"})),
            401,
        ),
        (
            &admin,
            "PUT",
            &format!("/Users/{own}/password"),
            Some(json!({"password": PASSWORD, "oldPassword": PASSWORD})),
            422,
        ),
        (
            &admin,
            "PATCH",
            &format!("/Users/{own}/status"),
            Some(json!({"locked": true})),
            400,
        ),
        (
            &admin,
            "PATCH",
            &format!("/Users/{own}/status"),
            Some(json!({})),
            400,
        ),
        (
            &admin,
            "PATCH",
            "/Users/nobody/status",
            Some(json!({"locked": false})),
            404,
        ),
        (
            &nobody,
            "PATCH",
            &format!("/Users/{own}/status"),
            Some(json!({"locked": false})),
            401,
        ),
        (
            &admin,
            "PATCH",
            &format!("/Users/{own}"),
            Some(json!({"active": false})),
            400,
        ),
        (&admin, "PATCH", &format!("/Users/{own}"), Some(json!({})), 400),
        (
            &nobody,
            "PATCH",
            &format!("/Users/{own}"),
            Some(json!({"active": false})),
            401,
        ),
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

/// `userName eq "admin" and origin eq "uaa"` found nobody: that is what uaa-cli asks.
#[tokio::test]
async fn users_and_groups_are_found_by_filters() {
    each(async |place| {
        let world = world(place).await;
        let admin = world.login().await.access_token;
        for name in ["naomi", "amos"] {
            let password = Secret::from("long-enough");
            world
                .client
                .create_user(&admin, name, None, &password)
                .await
                .expect("a user");
        }
        let find = async |path: &str, filter: &str, shown: &str| {
            let query = reqwest::Url::parse_with_params("http://x", [("filter", filter)]).expect("a query");
            let path = format!("{path}?{}", query.query().unwrap_or_default());
            let (status, body) = world.ask(&admin, "GET", &path, None).await;
            assert_eq!(status, 200, "{filter}: {body}");
            let names = body["resources"].as_array().expect("a list").iter();
            let names: Vec<String> = names
                .map(|one| one[shown].as_str().expect("a name").to_owned())
                .collect();
            assert_eq!(body["totalResults"], names.len());
            names
        };
        let users = async |filter: &str| find("/Users", filter, "userName").await;
        assert_eq!(
            users(r#"userName eq "admin" and origin eq "uaa""#).await,
            ["admin"]
        );
        assert_eq!(
            users(r#"username eq "naomi" or username eq "AMOS""#).await,
            ["amos", "naomi"]
        );
        assert_eq!(users(r#"groups.display eq "uaa.admin""#).await, ["admin"]);
        assert_eq!(users(r#"not (active eq true)"#).await, [""; 0]);
        assert_eq!(
            users(r#"userName eq "admin" and origin eq "ldap""#).await,
            [""; 0]
        );
        let groups = find(
            "/Groups",
            r#"displayName sw "pks." and displayName co "admin""#,
            "displayName",
        )
        .await;
        assert_eq!(groups, ["pks.clusters.admin", "pks.clusters.admin.read"]);
        // A name with letters that mean something in a filter finds nobody, and nobody else.
        assert_eq!(
            world
                .client
                .user(&admin, r#"x" or userName pr"#)
                .await
                .expect("an answer"),
            None
        );
    })
    .await;
}

#[tokio::test]
async fn passwords_are_changed_accounts_unlocked_and_groups_deleted() {
    each(async |place| {
        let world = world(place).await;
        let admin = world.login().await.access_token;
        let (old, new, reset) = (
            Secret::from("naomi-password"),
            Secret::from("new-password"),
            Secret::from("reset-password"),
        );
        let naomi = world
            .client
            .create_user(&admin, "naomi", None, &old)
            .await
            .expect("a user");
        let amos = world
            .client
            .create_user(&admin, "amos", None, &old)
            .await
            .expect("a user");
        world
            .client
            .set_member(&admin, "pks.clusters.manage", &naomi.id, true)
            .await
            .expect("a member");
        let log_in = async |password: &Secret<String>| {
            let tokens = world.client.password(identity::PKS_CLI, "naomi", password).await;
            tokens.map(|tokens| tokens.access_token)
        };
        // Her own, with the role that everybody has: with the old one, and nobody else's.
        let hers = log_in(&old).await.expect("a session");
        let wrong = world
            .client
            .set_password(&hers, &naomi.id, Some(&new), &new)
            .await;
        assert_eq!(
            wrong
                .expect_err("wrong")
                .refusal()
                .map(|it| (it.status, it.message.clone())),
            Some((401, identity::WRONG_PASSWORD.to_owned()))
        );
        let others = world.client.set_password(&hers, &amos.id, None, &new).await;
        assert_eq!(
            others.expect_err("not hers").refusal().map(|it| it.status),
            Some(403)
        );
        world
            .client
            .set_password(&hers, &naomi.id, Some(&old), &new)
            .await
            .expect("changed");
        let late = world
            .client
            .set_password(&hers, &naomi.id, Some(&new), &old)
            .await;
        assert_eq!(late.expect_err("ended").refusal().map(|it| it.status), Some(401));
        assert!(log_in(&old).await.is_err());
        log_in(&new).await.expect("the new one");
        // Wrong old passwords count as wrong logins do.
        let hers = log_in(&new).await.expect("a session");
        for _ in 0..5 {
            let wrong = world
                .client
                .set_password(&hers, &naomi.id, Some(&old), &reset)
                .await;
            assert!(wrong.is_err());
        }
        let locked = world
            .client
            .set_password(&hers, &naomi.id, Some(&new), &reset)
            .await;
        assert!(locked.expect_err("locked").to_string().contains(identity::LOCKED));

        world
            .client
            .unlock_user(&admin, &naomi.id)
            .await
            .expect("unlocked");
        log_in(&new).await.expect("unlocked");
        world.lock("NAOMI").await;
        let own = world.client.unlock_user(&hers, &naomi.id).await;
        assert_eq!(
            own.expect_err("not hers to do").refusal().map(|it| it.status),
            Some(403)
        );
        world
            .client
            .set_password(&admin, &naomi.id, None, &reset)
            .await
            .expect("reset, and unlocked");
        log_in(&reset).await.expect("the new one");

        world
            .client
            .create_group(&admin, "team/x.y")
            .await
            .expect_err("a slash");
        world
            .client
            .create_group(&admin, "team x")
            .await
            .expect_err("a blank");
        world
            .client
            .create_group(&admin, "team.x")
            .await
            .expect("a group");
        world
            .client
            .set_member(&admin, "team.x", &naomi.id, true)
            .await
            .expect("a member");
        world
            .client
            .delete_group(&admin, "team.x")
            .await
            .expect("deleted");
        let her = world
            .client
            .user(&admin, "naomi")
            .await
            .expect("an answer")
            .expect("naomi");
        assert!(her.groups.iter().all(|group| group.display != "team.x"));
        let gone = world.client.set_member(&admin, "team.x", &naomi.id, true).await;
        assert_eq!(gone.expect_err("gone").refusal().map(|it| it.status), Some(404));
    })
    .await;
}
