//! Where repair is on: for the whole director, and by rules of configs of the type `resurrection` (bosh.md section 5.2).

use serde::Deserialize;
use stolos_store::Db;

use crate::db::{configs, health};
use crate::error::{Error, Result};

/// The setting that pauses everything.
const PAUSED: &str = "resurrection_paused";

/// What is on. A rule that includes nothing includes everything; off wins over on, as in BOSH.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Switches {
    pub(crate) paused: bool,
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    rules: Vec<Rule>,
}

/// One rule of a config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    enabled: bool,
    #[serde(default)]
    include: Option<Scope>,
    #[serde(default)]
    exclude: Option<Scope>,
}

/// To what a rule applies; an empty list stands for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Scope {
    deployments: Vec<String>,
    instance_groups: Vec<String>,
}

impl Scope {
    fn has(&self, deployment: &str, group: &str) -> bool {
        let in_list = |list: &[String], name: &str| list.is_empty() || list.iter().any(|one| one == name);
        in_list(&self.deployments, deployment) && in_list(&self.instance_groups, group)
    }
}

impl Switches {
    /// As they are now.
    pub(crate) async fn read(db: &Db) -> Result<Self> {
        let filter = configs::Filter {
            kind: Some("resurrection"),
            latest: true,
            limit: u32::MAX,
            ..configs::Filter::default()
        };
        let mut rules = Vec::new();
        for row in configs::list(db, &filter).await? {
            rules.extend(check(&row.content)?);
        }
        Ok(Self {
            paused: paused(db).await?,
            rules,
        })
    }

    /// Whether dead machines of a group are made anew.
    pub(crate) fn are_on(&self, deployment: &str, group: &str) -> bool {
        let off = self.rules.iter().any(|rule| {
            let included = rule
                .include
                .as_ref()
                .is_none_or(|scope| scope.has(deployment, group));
            let excluded = rule
                .exclude
                .as_ref()
                .is_some_and(|scope| scope.has(deployment, group));
            !rule.enabled && included && !excluded
        });
        !self.paused && !off
    }
}

/// Whether everything is paused.
pub(crate) async fn paused(db: &Db) -> Result<bool> {
    Ok(health::setting(db, PAUSED).await?.as_deref() == Some("true"))
}

/// Pauses everything, or ends that; said as an event, because somebody will ask later why nothing was repaired.
pub(crate) async fn pause(db: &Db, user: &str, paused: bool) -> Result<()> {
    let mut tx = db.begin("pause or resume resurrection").await?;
    health::set_setting(&mut tx, PAUSED, if paused { "true" } else { "false" }).await?;
    let event = health::EventRow {
        user: user.to_owned(),
        action: "update".to_owned(),
        object_type: "resurrection".to_owned(),
        object_name: if paused { "off" } else { "on" }.to_owned(),
        message: format!("resurrection is {}", if paused { "off" } else { "on" }),
        ..health::EventRow::default()
    };
    health::insert_event(&mut tx, &event).await?;
    Ok(tx.commit().await?)
}

/// The rules of a config's text.
///
/// # Errors
/// What is wrong with it, for whoever sends it.
pub(crate) fn check(content: &str) -> Result<Vec<Rule>> {
    let document: Document = stolos_document::from_yaml(content)
        .map_err(|error| Error::Request(format!("the resurrection config is not valid: {error}")))?;
    Ok(document.rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_wins_and_excludes_are_kept_out() {
        let rules = check(
            "rules:\n- enabled: true\n- enabled: false\n  include: {deployments: [a]}\n  exclude: {instance_groups: [worker]}\n",
        )
        .expect("rules");
        let switches = Switches { paused: false, rules };
        assert!(!switches.are_on("a", "master"));
        assert!(switches.are_on("a", "worker"));
        assert!(switches.are_on("b", "master"));
        let paused = Switches {
            paused: true,
            ..switches
        };
        assert!(!paused.are_on("b", "master"));
        assert!(check("rules:\n- enabeld: true\n").is_err());
    }
}
