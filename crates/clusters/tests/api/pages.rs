//! Our own lists come in pages.

use std::collections::BTreeSet;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use stolos_store::testing::{Place, each};

use crate::world::World;
use crate::{ALICE, BOB, ROOT, WATCHER};

async fn get(world: &World, who: (&str, &str), path: &str) -> Value {
    let answer = world.ask(who, Method::GET, path, &Value::Null).await;
    assert_eq!(answer.status, StatusCode::OK, "{path}: {answer:?}");
    answer.body
}

fn names(page: &Value, field: &str) -> Vec<String> {
    let items = page["items"].as_array().expect("items").iter();
    items
        .map(|item| item[field].as_str().expect("a text").to_owned())
        .collect()
}

#[tokio::test]
async fn clusters_come_by_name_and_page_by_page() {
    each(async |place| {
        let world = World::new(place).await;
        for (who, name) in [(ALICE, "e"), (BOB, "b"), (ALICE, "d"), (BOB, "a-1"), (ALICE, "c")] {
            assert_eq!(world.ended(&world.create(who, name, 1).await).await, "succeeded");
        }
        let first = get(&world, ROOT, "/stolos/v1/clusters?limit=2").await;
        assert_eq!(names(&first, "name"), ["a-1", "b"]);
        assert_eq!(first["total"], 5);
        let next = first["next"].as_str().expect("there is more");
        // What goes and comes between two pages neither repeats nor hides others.
        let gone = world
            .ask(BOB, Method::DELETE, "/v1/clusters/b", &Value::Null)
            .await;
        assert_eq!(world.ended(&gone).await, "succeeded");
        assert_eq!(world.ended(&world.create(BOB, "a-2", 1).await).await, "succeeded");
        let second = get(
            &world,
            WATCHER,
            &format!("/stolos/v1/clusters?limit=2&after={next}"),
        )
        .await;
        assert_eq!(names(&second, "name"), ["c", "d"]);
        let next = second["next"].as_str().expect("there is more");
        let third = get(&world, ROOT, &format!("/stolos/v1/clusters?limit=2&after={next}")).await;
        assert_eq!(names(&third, "name"), ["e"]);
        assert_eq!(third["next"], Value::Null, "the last page says so");
        let whole = get(&world, ROOT, "/stolos/v1/clusters?limit=5").await;
        assert_eq!((names(&whole, "name").len(), &whole["next"]), (5, &Value::Null));

        let own = get(&world, BOB, "/stolos/v1/clusters").await;
        assert_eq!(names(&own, "name"), ["a-1", "a-2"]);
        assert_eq!(
            own["total"], 2,
            "who may manage sees and counts only what is theirs"
        );
        for (search, expected) in [
            ("A-", &["a-1", "a-2"][..]),
            // In the host.
            ("c.test", &["c"]),
            // The owner.
            ("alice", &["c", "d", "e"]),
            // Not patterns.
            ("%25", &[]),
            ("_", &[]),
            ("!", &[]),
            ("nothing", &[]),
        ] {
            let found = get(&world, ROOT, &format!("/stolos/v1/clusters?search={search}")).await;
            assert_eq!(names(&found, "name"), expected, "{search}");
            assert_eq!(found["total"], expected.len(), "{search}");
        }
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn operations_come_newest_first_and_page_by_page() {
    each(async |place| {
        let world = World::new(place).await;
        for name in ["a", "b", "c", "d", "e"] {
            assert_eq!(
                world.ended(&world.create(ALICE, name, 1).await).await,
                "succeeded"
            );
        }
        let whole = get(&world, ROOT, "/stolos/v1/operations").await;
        assert_eq!(names(&whole, "cluster"), ["e", "d", "c", "b", "a"]);
        assert_eq!(whole["next"], Value::Null);
        let mut seen = Vec::new();
        let mut path = "/stolos/v1/operations?limit=2".to_owned();
        loop {
            let page = get(&world, ROOT, &path).await;
            seen.extend(names(&page, "id"));
            // A new one is on no later page.
            let change = json!({"cluster_tags": [{"name": "seen", "value": seen.len().to_string()}]});
            let later = world.ask(ALICE, Method::PATCH, "/v1/clusters/a", &change).await;
            assert_eq!(world.ended(&later).await, "succeeded");
            let Some(next) = page["next"].as_str() else { break };
            path = format!("/stolos/v1/operations?limit=2&after={next}");
        }
        assert_eq!(seen, names(&whole, "id"));
        assert_eq!(BTreeSet::from_iter(&seen).len(), 5);
        let others = get(&world, BOB, "/stolos/v1/operations").await;
        assert!(
            names(&others, "id").is_empty(),
            "who may manage sees only what is theirs"
        );
        world.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_is_no_page_is_refused_by_name() {
    let place = Place::sqlite();
    let world = World::new(&place).await;
    for (query, words) in [
        ("limit=0", "`limit` is `0`, which is no number from 1 to 500"),
        ("limit=501", "`limit` is `501`"),
        ("limit=-1", "`limit` is `-1`"),
        ("limit=ten", "`limit` is `ten`"),
        ("limit=", "`limit` is ``"),
        ("after=x", "`after` is no `next` of an earlier page"),
        ("after=", "`after` is no `next`"),
        // JSON of another kind.
        ("after=e30", "`after` is no `next`"),
    ] {
        for list in ["clusters", "operations"] {
            let path = format!("/stolos/v1/{list}?{query}");
            let answer = world.ask(ROOT, Method::GET, &path, &Value::Null).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}");
            assert!(answer.error().contains(words), "{path}: {}", answer.error());
        }
    }
    world.stop().await;
}
