//! Network, compute and Kubernetes profiles.

use serde::de::DeserializeOwned;
use serde_json::Value;
use stolos_api::pks::{KubernetesProfile, KubernetesProfileRequest, Profile, ProfileKind, ProfileRequest};

use super::clusters::confirm;
use super::login::pks_client;
use crate::args::{CreateProfile, DeleteProfile, Json, Named};
use crate::failure::Failure;
use crate::output;

/// As PKS's texts have it, at the beginning of a sentence.
fn noun(kind: ProfileKind) -> &'static str {
    match kind {
        ProfileKind::Network => "Network profile",
        ProfileKind::Compute => "Compute profile",
        ProfileKind::Kubernetes => "Kubernetes profile",
    }
}

/// `stolos create-…-profile FILE`
pub(crate) async fn create(kind: ProfileKind, args: &CreateProfile) -> Result<(), Failure> {
    let (made, name, not_applied) = match kind {
        ProfileKind::Kubernetes => {
            let request: KubernetesProfileRequest = output::read_document(&args.file)?;
            let made: KubernetesProfile = send(kind, &request).await?;
            (to_json(&made)?, made.name, Vec::new())
        }
        ProfileKind::Network | ProfileKind::Compute => {
            let request: ProfileRequest = output::read_document(&args.file)?;
            let made: Profile = send(kind, &request).await?;
            (to_json(&made)?, made.name, made.not_applied)
        }
    };
    if args.json {
        return output::json(&made);
    }
    output::data(&format!("{} {name} successfully created", noun(kind)));
    if !not_applied.is_empty() {
        output::note(&format!(
            "\nTaken, but without effect on this installation: {}",
            not_applied.join(", ")
        ));
    }
    Ok(())
}

async fn send<T: DeserializeOwned>(
    kind: ProfileKind,
    request: &(impl serde::Serialize + Sync),
) -> Result<T, Failure> {
    pks_client()
        .await?
        .create_profile(kind, request)
        .await
        .map_err(|error| Failure::of_api(&error))
}

/// `stolos …-profiles`
pub(crate) async fn list(kind: ProfileKind, args: &Json) -> Result<(), Failure> {
    let client = pks_client().await?;
    if kind == ProfileKind::Kubernetes {
        let profiles: Vec<KubernetesProfile> = client
            .profiles(kind)
            .await
            .map_err(|error| Failure::of_api(&error))?;
        if args.json {
            return output::json(&profiles);
        }
        let rows: Vec<Vec<String>> = profiles
            .into_iter()
            .map(|profile| vec![profile.name, profile.owner, date(profile.created_at)])
            .collect();
        output::data(&output::table(&["K8s-profile", "Owner", "Created Date"], &rows));
        return Ok(());
    }
    let profiles: Vec<Profile> = client
        .profiles(kind)
        .await
        .map_err(|error| Failure::of_api(&error))?;
    if args.json {
        return output::json(&profiles);
    }
    let rows: Vec<Vec<String>> = profiles
        .into_iter()
        .map(|profile| vec![profile.name, profile.description])
        .collect();
    output::data(&output::table(&["Name", "Description"], &rows));
    Ok(())
}

/// `stolos …-profile NAME`
pub(crate) async fn show(kind: ProfileKind, args: &Named) -> Result<(), Failure> {
    let client = pks_client().await?;
    let failed = |error: stolos_api::Error| Failure::of_api(&error);
    match kind {
        ProfileKind::Kubernetes => {
            let profile: KubernetesProfile = client.profile(kind, &args.name).await.map_err(failed)?;
            if args.json {
                return output::json(&profile);
            }
            output::data(&kubernetes(&profile));
        }
        ProfileKind::Network => {
            let profile: Profile = client.profile(kind, &args.name).await.map_err(failed)?;
            if args.json {
                return output::json(&profile);
            }
            output::data(&network(&profile));
        }
        ProfileKind::Compute => {
            let profile: Profile = client.profile(kind, &args.name).await.map_err(failed)?;
            if args.json {
                return output::json(&profile);
            }
            output::data(&compute(&profile));
        }
    }
    Ok(())
}

/// `stolos delete-…-profile NAME`
pub(crate) async fn delete(kind: ProfileKind, args: &DeleteProfile) -> Result<(), Failure> {
    let client = pks_client().await?;
    // Asked before the question, so that nobody confirms the deletion of a typing error.
    let _: Value = client
        .profile(kind, &args.name)
        .await
        .map_err(|error| Failure::of_api(&error))?;
    let kind_name = match kind {
        ProfileKind::Kubernetes => "Kubernetes",
        ProfileKind::Network => "network",
        ProfileKind::Compute => "compute",
    };
    let question = format!(
        "Are you sure you want to delete the {kind_name} profile {}? (y/n):",
        args.name
    );
    confirm(&question, args.non_interactive)?;
    client
        .delete_profile(kind, &args.name)
        .await
        .map_err(|error| Failure::of_api(&error))?;
    output::data(&format!("Deletion of {} completed", args.name));
    Ok(())
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<Value, Failure> {
    serde_json::to_value(value).map_err(|error| Failure::ours(error.to_string()))
}

/// `Tue, 05 Nov 2019 16:28:15 UTC`: PKS's form, in the one zone that everybody has.
fn date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map(|time| time.strftime("%a, %d %b %Y %H:%M:%S UTC").to_string())
        .unwrap_or_default()
}

fn parameters(profile: &Profile) -> Value {
    serde_json::from_str(&profile.parameters).unwrap_or_else(|_| Value::from(profile.parameters.as_str()))
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn network(profile: &Profile) -> String {
    let mut text = output::block(&[
        ("Name", profile.name.clone()),
        ("Description", profile.description.clone()),
    ]);
    text.push_str(&format!("\nParameters:\n{}", pretty(&parameters(profile))));
    if !profile.not_applied.is_empty() {
        text.push_str(&format!("\nNot applied here: {}", profile.not_applied.join(", ")));
    }
    text
}

fn kubernetes(profile: &KubernetesProfile) -> String {
    let mut text = output::block(&[
        ("Name", profile.name.clone()),
        ("Description", profile.description.clone()),
        ("Owner", profile.owner.clone()),
        ("Created Date", date(profile.created_at)),
    ]);
    for (title, list) in [
        ("Customizations", &profile.customizations),
        (
            "Experimental Customizations",
            &profile.experimental_customizations,
        ),
    ] {
        if list.is_empty() {
            continue;
        }
        text.push_str(&format!("\n{title}:"));
        for one in list {
            text.push_str(&format!("\n  {}:", one.component));
            for (name, value) in &one.arguments {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                text.push_str(&format!("\n    {:<34}{value}", format!("{name}:")));
            }
            for (name, content) in &one.file_arguments {
                text.push_str(&format!("\n    {:<34}{content}", format!("{name}:")));
            }
        }
    }
    text
}

/// Sizes, zones, labels and taints of each group, as PKS listed them.
fn compute(profile: &Profile) -> String {
    let parameters = parameters(profile);
    let customization = &parameters["cluster_customization"];
    let mut text = output::block(&[
        ("Name", profile.name.clone()),
        ("Description", profile.description.clone()),
    ]);
    text.push_str("\nParameters:\n  Cluster Customization:");
    let mut group = |title: &str, group: &Value| {
        text.push_str(&format!("\n    {title}:"));
        for (key, field) in [
            ("CPU", "cpu"),
            ("Memory (Mb)", "memory_in_mb"),
            ("Ephemeral Disk (Mb)", "ephemeral_disk_in_mb"),
            ("Persistent Disk (Mb)", "persistent_disk_in_mb"),
            ("AZ names", "az_names"),
            ("Instances", "instances"),
            ("Max Worker Instances", "max_worker_instances"),
            ("Node Labels", "node_labels"),
            ("Node Taints", "node_taints"),
        ] {
            let value = match &group[field] {
                Value::Null => continue,
                Value::String(text) => text.clone(),
                Value::Array(items) => items
                    .iter()
                    .filter_map(Value::as_str)
                    .collect::<Vec<_>>()
                    .join(", "),
                other => other.to_string(),
            };
            text.push_str(&format!("\n      {:<26}{value}", format!("{key}:")));
        }
    };
    if customization["control_plane"].is_object() {
        group("Control Plane", &customization["control_plane"]);
    }
    for pool in customization["node_pools"].as_array().into_iter().flatten() {
        let name = pool["name"].as_str().unwrap_or_default();
        group(&format!("Node Pool {name}"), pool);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn profiles_are_shown() {
        let profile = Profile {
            name: "pools".into(),
            uuid: "u".into(),
            description: "two".into(),
            parameters: json!({"cluster_customization": {
                "control_plane": {"instances": 3, "az_names": ["z1", "z2"]},
                "node_pools": [{"name": "web", "cpu": 2, "memory_in_mb": 4096, "node_taints": "a=b:NoSchedule"}]}})
            .to_string(),
            not_applied: vec![],
        };
        insta::assert_snapshot!(compute(&profile), @r"
        Name:                     pools
        Description:              two
        Parameters:
          Cluster Customization:
            Control Plane:
              AZ names:                 z1, z2
              Instances:                3
            Node Pool web:
              CPU:                      2
              Memory (Mb):              4096
              Node Taints:              a=b:NoSchedule
        ");
        let profile = KubernetesProfile {
            name: "k".into(),
            uuid: "u".into(),
            owner: "alice".into(),
            description: String::new(),
            created_at: 1_572_971_295,
            customizations: serde_json::from_value(json!([{"component": "kube-apiserver",
                "arguments": {"service-node-port-range": "30000-40000"}, "file-arguments": {"encryption-provider-config": "(stored)"}}]))
            .expect("customizations"),
            experimental_customizations: vec![],
        };
        insta::assert_snapshot!(kubernetes(&profile), @r"
        Name:                     k
        Description:
        Owner:                    alice
        Created Date:             Tue, 05 Nov 2019 16:28:15 UTC
        Customizations:
          kube-apiserver:
            service-node-port-range:          30000-40000
            encryption-provider-config:       (stored)
        ");
    }
}
