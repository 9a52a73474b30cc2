//! Which credentials a deployment may name.
//!
//! A tenant wrote `((/stolos/token_key.public_key))` and `((/stolos/service-instance_OTHER/kubernetes_admin.private_key))` into a
//! profile of their own cluster, and the director resolved both.

use stolos_api::director::DeployOptions;
use stolos_store::testing::each;

use crate::machines::files;
use crate::world::{Life, PASSWORD, Site, World};

/// What belongs to the deployment `site`, as another deployment would name it.
const OTHERS: &str = "((/test/site/password))";

/// A manifest of the deployment `other`.
fn other(greeting: &str) -> String {
    let site = Site {
        instances: 1,
        greeting: format!("'{greeting}'"),
        ..Site::default()
    };
    site.manifest()
        .replace("name: site\nreleases", "name: other\nreleases")
}

fn own() -> DeployOptions {
    DeployOptions {
        own_credentials: true,
        ..DeployOptions::default()
    }
}

/// What the machines of `other` were given.
fn greetings(world: &World) -> Vec<String> {
    let state = world.outside.state();
    let machines = state.machines.values();
    machines
        .filter(|machine| machine.spec.deployment == "other")
        .map(|machine| String::from_utf8_lossy(&files(machine)["web/bin/run"]).into_owned())
        .collect()
}

async fn refused(life: &Life, manifest: &str, options: &DeployOptions, name: &str) {
    let task = life.client.deploy(manifest, options).await.expect("a task");
    let (_, error) = life.failed(task).await;
    let expected = format!("deployment 'other' may name credentials of its own only, and names `{name}`");
    assert!(error.message.contains(&expected), "{}", error.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_of_clusters_names_its_own_credentials_only() {
    each(async |place| {
        let world = World::new();
        let life = world.ready(place).await;
        life.deploy(&Site::default().manifest()).await;
        let before = world.vault.generated();

        // As a property, as the authority of a certificate, as the name of what is to be generated; in whatever case.
        refused(&life, &other(OTHERS), &own(), "/test/site/password").await;
        refused(
            &life,
            &other("((!/TEST/Site/password.part))"),
            &own(),
            "/TEST/Site/password",
        )
        .await;
        let signed = other("hello").replace("ca: ca", "ca: /test/site/ca");
        refused(&life, &signed, &own(), "/test/site/ca").await;
        let replaced = format!(
            "{}- name: /test/site/ca\n  type: password\n",
            other("((/test/site/ca))")
        );
        refused(&life, &replaced, &own(), "/test/site/ca").await;
        assert_eq!(
            world.vault.generated(),
            before,
            "a refused deploy generates nothing"
        );
        assert!(
            life.client.deployment("other").await.is_err(),
            "a refused deploy leaves a deployment"
        );

        // Its own by their whole names are its own; and text that is escaped is text.
        for greeting in ["hello", "((/test/other/password))"] {
            let task = life.client.deploy(other(greeting), &own()).await;
            life.done(task.expect("a task")).await;
        }
        let task = life
            .client
            .deploy(other("((!))/test/site/password))"), &own())
            .await;
        life.done(task.expect("a task")).await;
        assert_eq!(greetings(&world), [format!("#!/bin/sh\necho {OTHERS}\n")]);

        // Narrow for ever: an operator who deploys the manifest again, or stops and starts it, widens nothing.
        refused(
            &life,
            &other(OTHERS),
            &DeployOptions::default(),
            "/test/site/password",
        )
        .await;
        let usual = DeployOptions::default();
        let task = life
            .client
            .change_state("other", "*", "stopped", other(OTHERS), &usual)
            .await;
        let (_, error) = life.failed(task.expect("a task")).await;
        assert!(error.message.contains("its own only"), "{}", error.message);
        life.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_deployment_may_name_all() {
    each(async |place| {
        let world = World::new();
        let life = world.ready(place).await;
        life.deploy(&Site::default().manifest()).await;
        life.deploy(&other(OTHERS)).await;
        let shown = greetings(&world)
            .iter()
            .any(|run| run.contains(&format!("{PASSWORD}-password")));
        assert!(shown, "the operator's deployment has the other one's password");
        life.stop().await;
    })
    .await;
}
