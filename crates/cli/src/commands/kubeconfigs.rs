//! Kubeconfigs: of what a cluster's owner may do, and of what somebody may do under their own name.

use std::time::Duration;

use serde_json::{Value, json};
use stolos_api::identity::{self, PKS_CLUSTER_CLIENT, Tokens};
use stolos_api::pks;

use super::login::{Server, connect, current};
use super::sign_in::sign_in;
use crate::args::{Credentials, GetKubeconfig, Person};
use crate::failure::Failure;
use crate::{kubeconfig, output, session};

const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// `stolos get-credentials NAME`
pub(crate) async fn credentials(args: &Credentials) -> Result<(), Failure> {
    let (session, http) = current().await?;
    let client = pks::Client::new(&session.api, http.clone(), session.access_token.as_str().into());
    let mut config = client
        .bind(&args.name)
        .await
        .map_err(|error| Failure::of_api(&error))?;
    if !args.json {
        output::data(&format!("\nFetching credentials for cluster {}.", args.name));
    }
    if let Some(user) = wants_tokens(&config) {
        let service = identity::Client::new(&session.identity, http);
        let person = Person {
            username: Some(user),
            sso: args.sso.clone(),
            ..Person::default()
        };
        let (_, tokens) = sign_in(&service, PKS_CLUSTER_CLIENT, &person, None).await?;
        fill_in(&mut config, &service, tokens).await?;
    }
    if args.json {
        return output::json(&config);
    }
    kubeconfig::merge(&kubeconfig::Files::of_environment()?, &config).await?;
    output::data(&format!(
        "Context set for cluster {}.\n\nYou can now switch between clusters by using:\n$kubectl config use-context <cluster-name>",
        args.name
    ));
    Ok(())
}

/// `stolos get-kubeconfig NAME`
pub(crate) async fn personal(args: &GetKubeconfig) -> Result<(), Failure> {
    // What is not said is as in the session, if there is one.
    let known = session::load().ok();
    let server = match (&args.api, &known) {
        (Some(api), _) => connect(api, &args.trusted, ANSWER_LIMIT).await?,
        (None, Some(session)) => Server::of_session(session, ANSWER_LIMIT)?,
        (None, None) => {
            return Err(Failure::user("there is no session that says where the API is").hint("Use -a HOST."));
        }
    };
    if !args.json {
        output::data(&format!("Fetching kubeconfig for cluster {}.", args.name));
    }
    let usual = known.as_ref().filter(|_| args.api.is_none());
    let usual = usual.map(|session| session.username.as_str());
    let (user, tokens) = sign_in(&server.identity, PKS_CLUSTER_CLIENT, &args.person, usual).await?;
    let client = pks::Client::new(&server.api, server.http.clone(), tokens.access_token.clone());
    let mut config = client
        .bind_person(&args.name, &user)
        .await
        .map_err(|error| Failure::of_api(&error))?;
    fill_in(&mut config, &server.identity, tokens).await?;
    if args.json {
        return output::json(&config);
    }
    kubeconfig::merge(&kubeconfig::Files::of_environment()?, &config).await?;
    output::data(&format!(
        "\nYou can now use the kubeconfig for user {user}:\n$kubectl config use-context {}",
        args.name
    ));
    Ok(())
}

/// The user of a kubeconfig that lacks its tokens.
fn wants_tokens(config: &Value) -> Option<String> {
    let user = &config["users"][0];
    user["user"]
        .get("auth-provider")
        .and_then(|_| user["name"].as_str())
        .map(str::to_owned)
}

/// Fills in tokens; those for the one cluster where it takes no others.
async fn fill_in(config: &mut Value, service: &identity::Client, tokens: Tokens) -> Result<(), Failure> {
    let audience = config["users"][0]["user"]["auth-provider"]["config"]["audience"].as_str();
    let tokens = match (audience, &tokens.refresh_token) {
        (Some(audience), Some(refresh)) => service
            .narrow(PKS_CLUSTER_CLIENT, refresh, audience)
            .await
            .map_err(|error| Failure::from_error(&error))?,
        (Some(_), None) => return Err(Failure::ours("the token service gave no refresh token")),
        (None, _) => tokens,
    };
    let id = tokens
        .id_token
        .as_ref()
        .ok_or_else(|| Failure::ours("the token service gave no identity token"))?;
    let provider = &mut config["users"][0]["user"]["auth-provider"]["config"];
    provider["id-token"] = json!(id.expose());
    provider["refresh-token"] = json!(
        tokens
            .refresh_token
            .as_ref()
            .map(|token| token.expose().as_str())
            .unwrap_or_default()
    );
    Ok(())
}
