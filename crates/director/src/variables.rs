//! `((variables))` of a deployment: which there are, generating them, and their values by version.
//!
//! A variable whose declared name holds `{instance}` is a family with one member per instance that refers to it
//! (design note 0004): the placeholders are replaced before anything is looked up.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::try_join_all;
use serde_json::Value;
use stolos_base::ids::CredentialId;
use stolos_manifest::{ResolvedVariable, variables};

use crate::deps::{Failure, GenerateVariable, Variables};
use crate::error::{Error, Result};
use crate::plan::{Placed, Placement};

/// Stands for `GROUP-INDEX` in names, options and references.
const INSTANCE: &str = "{instance}";
/// Stands for the instance's address in options.
const ADDRESS: &str = "{address}";

/// Which credentials a deployment may name beside its own (design note 0019).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All: what an operator deploys.
    All,
    /// Its own, and those below absolute prefixes.
    Own {
        /// The prefixes, each with its final slash.
        also: Vec<String>,
    },
}

impl Reach {
    /// The reach of a deployment's next deploy: one that was narrow once stays so, whoever deploys.
    pub(crate) fn next(current: Option<&Self>, own_only: bool) -> Self {
        match current {
            _ if own_only => Self::Own { also: Vec::new() },
            Some(current) => current.clone(),
            None => Self::All,
        }
    }

    /// Refuses names, as written, that the deployment may not use.
    ///
    /// # Errors
    /// [`Error::NotItsOwn`] with all of them.
    pub(crate) fn check<'n>(
        &self,
        vault: &dyn Variables,
        deployment: &str,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<()> {
        let Self::Own { also } = self else {
            return Ok(());
        };
        let own = vault.absolute_name(deployment, "x");
        let own = own.strip_suffix('x').unwrap_or(&own).to_ascii_lowercase();
        let may = |name: &str| {
            // Relative names lie below the deployment; all are compared without regard to case, as the credentials themselves are.
            let name = name.to_ascii_lowercase();
            !name.starts_with('/')
                || name.starts_with(&own)
                || also
                    .iter()
                    .any(|prefix| name.starts_with(&prefix.to_ascii_lowercase()))
        };
        let others: BTreeSet<&str> = names.into_iter().filter(|name| !may(name)).collect();
        if others.is_empty() {
            return Ok(());
        }
        Err(Error::NotItsOwn {
            deployment: deployment.to_owned(),
            names: others.into_iter().map(|name| format!("`{name}`")).collect(),
        })
    }
}

/// Values by name as written, of one plan. They are secrets: never stored or logged.
#[derive(Clone, Default)]
pub(crate) struct Values(BTreeMap<String, Value>);

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Values {
    /// The value of a name.
    pub(crate) fn get(&self, name: &str) -> Option<Value> {
        self.0.get(name).cloned()
    }

    /// All values.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Value> {
        self.0.values()
    }
}

/// The instance's own name in placeholders.
pub(crate) fn member(placed: &Placed) -> String {
    format!("{}-{}", placed.group, placed.index)
}

/// Puts an instance's name into the references of a value; text outside of references stays as it is.
pub(crate) fn own_references(value: &Value, member: &str) -> Value {
    match value {
        Value::String(text) => Value::String(own_text(text, member)),
        Value::Array(list) => list.iter().map(|value| own_references(value, member)).collect(),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (own_text(key, member), own_references(value, member)))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

fn own_text(text: &str, member: &str) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some(open) = rest.find("((") {
        let (before, reference) = rest.split_at(open);
        result.push_str(before);
        let Some(close) = reference.find("))") else {
            result.push_str(reference);
            return result;
        };
        let (reference, after) = reference.split_at(close + 2);
        result.push_str(&reference.replace(INSTANCE, member));
        rest = after;
    }
    result.push_str(rest);
    result
}

/// The names that an instance's jobs, links and environment refer to.
fn names_of(placement: &Placement, placed: &Placed) -> BTreeSet<String> {
    let member = member(placed);
    let mut names = variables::names(&own_references(&placed.machine.env, &member));
    for job in placement.jobs(&placed.group) {
        names.extend(variables::names(&own_references(&job.properties, &member)));
        for link in job.links.values() {
            names.extend(variables::names(&own_references(&link.properties, &member)));
        }
    }
    names
}

/// What a placement needs: variables to generate, in layers (each after those that it needs), and names that nobody
/// declares.
pub(crate) struct Needed {
    pub(crate) layers: Vec<Vec<GenerateVariable>>,
    pub(crate) undeclared: BTreeSet<String>,
}

/// Finds out what is needed. Pure.
pub(crate) fn needed(placement: &Placement) -> Needed {
    let mut wanted: Vec<GenerateVariable> = Vec::new();
    let mut names = BTreeSet::new();
    let members: Vec<(&Placed, BTreeSet<String>)> = placement
        .instances
        .iter()
        .map(|placed| (placed, names_of(placement, placed)))
        .collect();
    for variable in &placement.variables {
        if !variable.name.contains(INSTANCE) {
            wanted.push(request(variable, placement.converge_variables, |text| {
                text.to_owned()
            }));
            continue;
        }
        for (placed, used) in &members {
            let member = member(placed);
            let name = variable.name.replace(INSTANCE, &member);
            if used.contains(&name) {
                let address = placed.address.to_string();
                wanted.push(request(variable, placement.converge_variables, |text| {
                    text.replace(INSTANCE, &member).replace(ADDRESS, &address)
                }));
            }
        }
    }
    for (_, used) in members {
        names.extend(used);
    }
    let declared: BTreeSet<&str> = wanted.iter().map(|variable| variable.name.as_str()).collect();
    let undeclared = names
        .into_iter()
        .filter(|name| !declared.contains(name.as_str()))
        .collect();
    Needed {
        layers: layers(wanted),
        undeclared,
    }
}

fn request(variable: &ResolvedVariable, converge: bool, own: impl Fn(&str) -> String) -> GenerateVariable {
    fn replace(value: &Value, own: &impl Fn(&str) -> String) -> Value {
        match value {
            Value::String(text) => Value::String(own(text)),
            Value::Array(list) => list.iter().map(|value| replace(value, own)).collect(),
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| (key.clone(), replace(value, own)))
                .collect(),
            other => other.clone(),
        }
    }
    let mode = if converge && variable.mode == "no-overwrite" {
        "converge"
    } else {
        &variable.mode
    };
    GenerateVariable {
        name: own(&variable.name),
        kind: variable.kind.clone(),
        options: replace(&variable.options, &own),
        mode: mode.to_owned(),
    }
}

/// Those whose authority is also to be generated come after it; all others together.
fn layers(wanted: Vec<GenerateVariable>) -> Vec<Vec<GenerateVariable>> {
    let mut depth: BTreeMap<String, usize> = BTreeMap::new();
    let mut layers: Vec<Vec<GenerateVariable>> = Vec::new();
    // The planner's order has each variable after those that it needs.
    for variable in wanted {
        let layer = match variable.options.get("ca").and_then(Value::as_str) {
            Some(ca) => depth.get(ca).map_or(0, |depth| depth + 1),
            None => 0,
        };
        depth.insert(variable.name.clone(), layer);
        if layers.len() <= layer {
            layers.resize_with(layer + 1, Vec::new);
        }
        layers[layer].push(variable);
    }
    layers
}

/// Generates what is needed and gives the version of each name, as written, that counts from now on.
///
/// # Errors
/// [`Error::NotItsOwn`] before anything is made, and those of the credentials.
pub(crate) async fn generate(
    vault: &dyn Variables,
    deployment: &str,
    reach: &Reach,
    needed: &Needed,
) -> Result<BTreeMap<String, CredentialId>> {
    let made = needed.layers.iter().flatten().flat_map(|variable| {
        let authority = variable.options.get("ca").and_then(Value::as_str);
        std::iter::once(variable.name.as_str()).chain(authority)
    });
    reach.check(
        vault,
        deployment,
        made.chain(needed.undeclared.iter().map(String::as_str)),
    )?;
    let failed = |action, name: &str, failure: Failure| Error::Variable {
        action,
        name: vault.absolute_name(deployment, name),
        class: failure.class,
        source: failure.source,
    };
    let mut versions = BTreeMap::new();
    for layer in &needed.layers {
        let made = layer.iter().map(|variable| {
            let made = vault.generate(deployment, variable);
            async move {
                let id = made
                    .await
                    .map_err(|failure| failed("generate", &variable.name, failure))?;
                Ok::<_, Error>((variable.name.clone(), id))
            }
        });
        versions.extend(try_join_all(made).await?);
    }
    for name in &needed.undeclared {
        let id = vault
            .find(deployment, name)
            .await
            .map_err(|failure| failed("read", name, failure))?;
        // What nobody knows is reported with its place when templates are rendered.
        versions.extend(id.map(|id| (name.clone(), id)));
    }
    Ok(versions)
}

/// Whether somebody has put a variable there that no manifest declares.
pub(crate) async fn is_known(vault: &dyn Variables, deployment: &str, name: &str) -> Result<bool> {
    let found = vault
        .find(deployment, name)
        .await
        .map_err(|failure| Error::Variable {
            action: "read",
            name: vault.absolute_name(deployment, name),
            class: failure.class,
            source: failure.source,
        })?;
    Ok(found.is_some())
}

/// Reads the values of versions, also for a plan that was made before its deployment's reach was narrowed.
///
/// # Errors
/// [`Error::NotItsOwn`], and those of the credentials.
pub(crate) async fn values(
    vault: &dyn Variables,
    deployment: &str,
    reach: &Reach,
    versions: &BTreeMap<String, CredentialId>,
) -> Result<Values> {
    reach.check(vault, deployment, versions.keys().map(String::as_str))?;
    let read = versions.iter().map(|(name, id)| {
        let value = vault.value(*id);
        async move {
            let value = value.await.map_err(|failure| Error::Variable {
                action: "read",
                name: vault.absolute_name(deployment, name),
                class: failure.class,
                source: failure.source,
            })?;
            Ok::<_, Error>((name.clone(), value))
        }
    });
    Ok(Values(try_join_all(read).await?.into_iter().collect()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_references_get_the_instance() {
        let value = json!({"a": "((x_{instance}.key)) {instance}", "b": ["((x_{instance}))-((y))"]});
        assert_eq!(
            own_references(&value, "worker-1"),
            json!({"a": "((x_worker-1.key)) {instance}", "b": ["((x_worker-1))-((y))"]})
        );
        assert_eq!(own_text("((open {instance}", "w-0"), "((open {instance}");
    }

    #[test]
    fn a_narrow_reach_stays_narrow() {
        let own = Reach::Own { also: Vec::new() };
        let old = Reach::Own {
            also: vec!["/profiles/".to_owned()],
        };
        assert_eq!(Reach::next(None, false), Reach::All);
        assert_eq!(Reach::next(None, true), own);
        assert_eq!(Reach::next(Some(&Reach::All), true), own);
        assert_eq!(Reach::next(Some(&old), false), old);
        assert_eq!(Reach::next(Some(&old), true), own);
    }

    #[test]
    fn a_certificate_comes_after_its_authority() {
        let variable = |name: &str, ca: Option<&str>| GenerateVariable {
            name: name.to_owned(),
            kind: "certificate".to_owned(),
            options: ca.map_or_else(|| json!({}), |ca| json!({"ca": ca})),
            mode: "converge".to_owned(),
        };
        let made = layers(vec![
            variable("root", None),
            variable("sub", Some("root")),
            variable("leaf", Some("sub")),
            variable("other", Some("/elsewhere")),
        ]);
        let names: Vec<Vec<&str>> = made
            .iter()
            .map(|layer| layer.iter().map(|one| one.name.as_str()).collect())
            .collect();
        assert_eq!(names, [vec!["root", "other"], vec!["sub"], vec!["leaf"]]);
    }
}
