//! Quotas of owners, and what they have. PKS had them in its API and its console only.

use stolos_api::pks::{Limits, LimitsChange, Quota, QuotaChange, Usage};

use super::clusters::confirm;
use super::login::pks_client;
use crate::args::{ChangeQuota, CreateQuota, DeleteProfile, Json};
use crate::failure::Failure;
use crate::output;

/// `stolos quotas`
pub(crate) async fn list(args: &Json) -> Result<(), Failure> {
    let quotas = pks_client()
        .await?
        .quotas()
        .await
        .map_err(|error| Failure::of_api(&error))?;
    if args.json {
        return output::json(&quotas);
    }
    output::data(&table(&quotas));
    Ok(())
}

fn table(quotas: &[Quota]) -> String {
    let rows: Vec<Vec<String>> = quotas
        .iter()
        .map(|quota| {
            vec![
                quota.owner.clone(),
                quota.limit.cpu.to_string(),
                quota.limit.memory.to_string(),
                quota.limit.cluster.to_string(),
            ]
        })
        .collect();
    output::table(&["Owner", "CPU", "Memory (GB)", "Clusters"], &rows)
}

/// `stolos create-quota OWNER`
pub(crate) async fn create(args: &CreateQuota) -> Result<(), Failure> {
    let quota = Quota {
        owner: args.owner.clone(),
        limit: Limits {
            cpu: args.cpu,
            memory: args.memory,
            cluster: args.clusters,
        },
    };
    let made = pks_client()
        .await?
        .create_quota(&quota)
        .await
        .map_err(|error| Failure::of_api(&error))?;
    if args.json {
        return output::json(&made);
    }
    output::data(&table(&[made]));
    Ok(())
}

/// `stolos update-quota OWNER`
pub(crate) async fn update(args: &ChangeQuota) -> Result<(), Failure> {
    let change = QuotaChange {
        owner: None,
        limit: LimitsChange {
            cpu: args.cpu,
            memory: args.memory,
            cluster: args.clusters,
        },
    };
    let changed = pks_client()
        .await?
        .update_quota(&args.owner, &change)
        .await
        .map_err(|error| Failure::of_api(&error))?;
    if args.json {
        return output::json(&changed);
    }
    output::data(&table(&[changed]));
    Ok(())
}

/// `stolos delete-quota OWNER`
pub(crate) async fn delete(args: &DeleteProfile) -> Result<(), Failure> {
    confirm(
        &format!(
            "Are you sure you want to delete the quota of {}? (y/n):",
            args.name
        ),
        args.non_interactive,
    )?;
    pks_client()
        .await?
        .delete_quota(&args.name)
        .await
        .map_err(|error| Failure::of_api(&error))?;
    output::data(&format!("Deletion of {} completed", args.name));
    Ok(())
}

/// `stolos usages`
pub(crate) async fn usages(args: &Json) -> Result<(), Failure> {
    let usages = pks_client()
        .await?
        .usages()
        .await
        .map_err(|error| Failure::of_api(&error))?;
    if args.json {
        return output::json(&usages);
    }
    output::data(&usage_table(&usages));
    Ok(())
}

/// A line for each cluster, and one for all of an owner's.
fn usage_table(usages: &[Usage]) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for usage in usages {
        for cluster in &usage.clusters {
            rows.push(vec![
                usage.owner.clone(),
                cluster.name.clone(),
                cluster.cpu.to_string(),
                cluster.memory.to_string(),
            ]);
        }
        rows.push(vec![
            usage.owner.clone(),
            format!("({} in all)", usage.totals.cluster),
            usage.totals.cpu.to_string(),
            usage.totals.memory.to_string(),
        ]);
    }
    output::table(&["Owner", "Cluster", "CPU", "Memory (GB)"], &rows)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quotas_and_usages_are_tables() {
        let quota: Quota = serde_json::from_value(
            json!({"owner": "alice", "limit": {"cpu": 8, "memory": 12.5, "cluster": 2}}),
        )
        .expect("a quota");
        insta::assert_snapshot!(table(&[quota]), @"
        Owner  CPU  Memory (GB)  Clusters
        alice  8    12.5         2
        ");
        let usage: Usage = serde_json::from_value(json!({"owner": "alice", "totals": {"cpu": 6, "memory": 6.0, "cluster": 2},
            "clusters": [{"name": "one", "cpu": 4, "memory": 4.0}, {"name": "two", "cpu": 2, "memory": 2.0}]}))
        .expect("a usage");
        insta::assert_snapshot!(usage_table(&[usage]), @"
        Owner  Cluster     CPU  Memory (GB)
        alice  one         4    4
        alice  two         2    2
        alice  (2 in all)  6    6
        ");
    }
}
