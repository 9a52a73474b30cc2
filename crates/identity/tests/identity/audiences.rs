//! Tokens for one cluster: an owner of another one could use what a person showed there.

use stolos_api::identity::{PKS_CLI, PKS_CLUSTER_CLIENT, Tokens, cluster_audience};
use stolos_api::token::{Claims, peek};
use stolos_base::ids::{ClusterId, IdSource};
use stolos_store::testing::each;

use crate::{PASSWORD, world};

fn claims(tokens: &Tokens) -> Claims {
    let token = tokens.id_token.as_ref().expect("an identity token");
    let claims = peek(token.expose()).expect("claims");
    serde_json::from_value(claims.into()).expect("UAA's")
}

#[tokio::test]
async fn a_log_in_is_narrowed_to_one_cluster_for_good() {
    each(async |place| {
        let world = world(place).await;
        let ids = IdSource::random();
        let audience = || cluster_audience(&ClusterId::new(&ids).to_string());
        let (one, other) = (audience(), audience());
        let client = &world.client;
        let log_in = async |of: &str| {
            let tokens = client.password(of, "admin", &PASSWORD.into()).await;
            tokens.expect("tokens")
        };
        let wide = log_in(PKS_CLUSTER_CLIENT).await;
        assert_eq!(claims(&wide).aud, [PKS_CLUSTER_CLIENT]);
        let refresh = wide.refresh_token.clone().expect("one");
        let narrow = client
            .narrow(PKS_CLUSTER_CLIENT, &refresh, &one)
            .await
            .expect("tokens");
        assert_eq!(claims(&narrow).aud, [one.as_str()]);
        // Clusters hear of groups for clusters, not of what somebody may do in the installation.
        assert_eq!(claims(&narrow).roles, Some(Vec::new()));
        // kubectl renews without a word about the audience, and gets the same.
        let next = narrow.refresh_token.clone().expect("one");
        let renewed = client.refresh(PKS_CLUSTER_CLIENT, &next).await.expect("tokens");
        assert_eq!(claims(&renewed).aud, [one.as_str()]);
        // Neither it nor the first token of the log-in gets anything else any more.
        for token in [renewed.refresh_token.clone().expect("one"), refresh] {
            let error = client
                .narrow(PKS_CLUSTER_CLIENT, &token, &other)
                .await
                .expect_err("narrowed");
            assert!(error.to_string().contains("for another audience"), "{error}");
        }
        // What is none of a cluster is no audience, and the command line's own tokens are for nobody else.
        let long = format!("{one}/..");
        for bad in [
            "",
            "pks_cli",
            "pks.clusters",
            "cluster/",
            "cluster/x",
            long.as_str(),
        ] {
            let token = log_in(PKS_CLUSTER_CLIENT).await.refresh_token.expect("one");
            let error = client
                .narrow(PKS_CLUSTER_CLIENT, &token, bad)
                .await
                .expect_err(bad);
            assert!(error.to_string().contains("none of a cluster"), "{bad}: {error}");
        }
        let token = log_in(PKS_CLI).await.refresh_token.expect("one");
        assert!(client.narrow(PKS_CLI, &token, &one).await.is_err());
    })
    .await;
}
