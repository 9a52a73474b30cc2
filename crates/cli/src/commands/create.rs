//! Making a cluster, and what making and changing share.

use indexmap::IndexMap;
use stolos_api::pks::{
    Cluster, ClusterParameters, ClusterRequest, ClusterTag, ConfigFile, PoolInstances, Preview,
    PrivateRegistries,
};

use super::clusters::block;
use super::login::pks_client;
use super::operations;
use super::patience::Patience;
use crate::args::{Create, Given};
use crate::failure::Failure;
use crate::{output, program_name};

/// `stolos create-cluster NAME`
pub(crate) async fn create(args: &Create) -> Result<(), Failure> {
    let files = Files::read(&args.given)?;
    let given = &args.given;
    let request = ClusterRequest {
        name: args.name.clone(),
        plan_name: args.plan.clone(),
        parameters: ClusterParameters {
            kubernetes_master_host: Some(args.external_hostname.clone()),
            kubernetes_worker_instances: args.num_nodes,
            node_pool_instances: pools(given.node_pool_instances.as_deref())?,
            cluster_tags: Some(tags(&args.tags)?).filter(|tags| !tags.is_empty()),
            private_registries: files.registries,
            config_file: files.config,
            from_backup: args.from_backup.clone(),
            ..ClusterParameters::default()
        },
        network_profile_name: given.network_profile.clone(),
        compute_profile_name: given.compute_profile.clone(),
        kubernetes_profile_name: given.kubernetes_profile.clone(),
        other: IndexMap::new(),
    };
    let client = pks_client().await?;
    if args.dry_run {
        let preview = client
            .preview_create(&request)
            .await
            .map_err(|error| Failure::of_api(&error))?;
        return show_preview(&preview, args.going.json);
    }
    let (mut cluster, begun) = client
        .create_cluster(&request)
        .await
        .map_err(|error| Failure::of_api(&error))?;
    warn_not_applied(&begun.not_applied);
    if args.going.wait
        && let Some(operation) = &begun.operation
    {
        let result = operations::follow(&client, operation).await;
        if result.as_ref().is_err_and(Failure::is_left) {
            return result;
        }
        // The cluster is shown as it ended, also when it ended badly. The token may have ended meanwhile.
        let now = match &result {
            Ok(()) => {
                Patience::new(&client)
                    .ask(async |client| client.cluster(&args.name).await)
                    .await
            }
            Err(_) => client
                .cluster(&args.name)
                .await
                .map_err(|error| Failure::of_api(&error)),
        };
        if let Ok(now) = now {
            cluster = now;
        }
        show_created(args, &cluster)?;
        return result;
    }
    show_created(args, &cluster)?;
    if !args.going.json {
        output::data(&format!(
            "\nUse '{} cluster {}' to monitor the state of your cluster",
            program_name(),
            args.name
        ));
    }
    Ok(())
}

fn show_created(args: &Create, cluster: &Cluster) -> Result<(), Failure> {
    if args.going.json {
        return output::json(cluster);
    }
    output::data(&format!("\n{}", block(cluster)));
    Ok(())
}

/// The files that a request names.
pub(crate) struct Files {
    pub(crate) registries: Option<PrivateRegistries>,
    pub(crate) config: Option<ConfigFile>,
}

impl Files {
    pub(crate) fn read(given: &Given) -> Result<Self, Failure> {
        Ok(Self {
            registries: given
                .private_registries
                .as_deref()
                .map(output::read_document)
                .transpose()?,
            config: given
                .config_file
                .as_deref()
                .map(output::read_document)
                .transpose()?,
        })
    }
}

/// Says what of a request was taken and has no effect here.
pub(crate) fn warn_not_applied(keys: &[String]) {
    if !keys.is_empty() {
        output::note(&format!(
            "Taken, but without effect on this installation: {}",
            keys.join(", ")
        ));
    }
}

/// What a request would do.
pub(crate) fn show_preview(preview: &Preview, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(preview);
    }
    output::data(&preview_text(preview));
    warn_not_applied(&preview.not_applied);
    Ok(())
}

fn preview_text(preview: &Preview) -> String {
    let rows: Vec<Vec<String>> = preview
        .groups
        .iter()
        .map(|group| {
            vec![
                group.name.clone(),
                group.before.to_string(),
                group.after.to_string(),
                group.cpu.to_string(),
                format!("{} MiB", group.memory_mib),
                group.zones.join(","),
            ]
        })
        .collect();
    let mut text = format!(
        "{} of cluster {}, Kubernetes {}\n\n{}\n",
        preview.action.as_str(),
        preview.cluster,
        preview.k8s_version,
        output::table(&["Group", "Now", "Then", "CPU", "Memory", "Zones"], &rows)
    );
    for change in &preview.changes {
        text.push_str(&format!("\n  {change}"));
    }
    if !preview.changes.is_empty() {
        text.push('\n');
    }
    text.push_str(&format!("\n{}.\nNothing was changed.", preview.machines));
    text
}

/// `POOL:N,POOL:N`
pub(crate) fn pools(text: Option<&str>) -> Result<Option<Vec<PoolInstances>>, Failure> {
    let Some(text) = text else { return Ok(None) };
    text.split(',')
        .map(str::trim)
        .filter(|pool| !pool.is_empty())
        .map(|pool| {
            let number = pool
                .split_once(':')
                .and_then(|(name, number)| Some((name.trim(), number.trim().parse().ok()?)));
            let (name, instances) = number.ok_or_else(|| {
                Failure::user(format!("`{pool}` is not `POOL:NUMBER`")).hint("Write `web:3,batch:1`.")
            })?;
            Ok(PoolInstances {
                name: name.to_owned(),
                instances,
            })
        })
        .collect::<Result<Vec<_>, Failure>>()
        .map(Some)
}

/// Tags as they are typed; the server says what else is wrong with them.
pub(crate) fn tags(text: &str) -> Result<Vec<ClusterTag>, Failure> {
    text.split(',')
        .map(str::trim)
        .filter(|tag| !tag.is_empty())
        .map(|tag| match tag.split_once(':') {
            Some((name, value)) if !value.trim().is_empty() => Ok(ClusterTag {
                name: name.trim().to_owned(),
                value: value.trim().to_owned(),
                category: None,
            }),
            _ => Err(Failure::user(format!("tag `{tag}` has no value"))
                .hint("Write tags as `NAME:VALUE`, for instance `--tags \"team:blue,stage:test\"`.")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_tag_has_a_value() {
        for text in ["team", "team:", "stage:test,team : ", "stage:test,team"] {
            let refused = tags(text).expect_err(text).to_string();
            assert!(
                refused.contains("`team") && refused.contains("has no value"),
                "{refused}"
            );
        }
        let given = tags(" team:blue , ,stage : test").expect("tags");
        let given: Vec<_> = given
            .iter()
            .map(|tag| (tag.name.as_str(), tag.value.as_str()))
            .collect();
        assert_eq!(given, [("team", "blue"), ("stage", "test")]);
        assert!(tags("").expect("none").is_empty());
    }

    #[test]
    fn a_preview_says_what_would_change() {
        let preview: Preview = serde_json::from_value(json!({"cluster": "demo", "action": "UPDATE", "k8s_version": "1.37.1",
            "groups": [{"name": "master", "before": 1, "after": 1, "cpu": 2, "memory_mib": 2048, "zones": ["z1"]},
                       {"name": "worker", "before": 2, "after": 4, "cpu": 2, "memory_mib": 2048, "zones": ["z1", "z2"]}],
            "changes": ["workers: 2 → 4"], "machines": "machines that stay are not touched"}))
        .expect("a preview");
        insta::assert_snapshot!(preview_text(&preview), @r"
        UPDATE of cluster demo, Kubernetes 1.37.1

        Group   Now  Then  CPU  Memory    Zones
        master  1    1     2    2048 MiB  z1
        worker  2    4     2    2048 MiB  z1,z2

          workers: 2 → 4

        machines that stay are not touched.
        Nothing was changed.
        ");
    }

    #[test]
    fn numbers_of_pools() {
        let read = pools(Some("web:3, batch : 1")).expect("valid").expect("some");
        assert_eq!((read[0].name.as_str(), read[1].instances), ("web", 1));
        assert_eq!(pools(None).expect("nothing"), None);
        for bad in ["web", "web:x", "web=3"] {
            assert!(pools(Some(bad)).is_err(), "{bad}");
        }
    }
}
