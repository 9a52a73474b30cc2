//! Networks of pods and services: the tile has them for all clusters, here they are a network profile's.

use serde_json::{Map, Value, json};
use stolos_clusters::profiles::network::NetworkProfile;
use stolos_clusters::render::Networks;

use super::report::Report;
use super::staged::{Staged, short};

/// The name of the profile.
pub(super) const PROFILE: &str = "imported-networks";
const SELECTOR: &str = ".properties.network_selector";
/// The parameter that stands beside those of the plug-in.
const NAME_SERVERS: &str = "nodes_dns";
/// What to do where no profile can be made.
const OWN_PROFILE: &str = "Clusters get our usual network; make a network profile with another one, and give it to clusters with --network-profile";

/// A network or name servers, for the profile.
struct Entry {
    line: u32,
    property: String,
    /// The parameter in a profile.
    name: &'static str,
    value: Value,
}

/// Takes the networks. The profile is `None` where clusters get the same without one, or what the tile says is not possible.
pub(super) fn take(staged: &mut Staged, report: &mut Report) -> Option<Value> {
    let (selected, line) = staged.selected(SELECTOR)?;
    let plugin = ["flannel", "antrea", "nsx"]
        .into_iter()
        .find(|known| selected.contains(known));
    plug_in(plugin, line, report);
    let mut entries = Vec::new();
    for (key, line) in staged.below(&format!("{SELECTOR}.")) {
        let is_selected = plugin.is_some_and(|name| key.starts_with(&format!("{SELECTOR}.{name}.")));
        if !is_selected {
            staged.pass(&key);
            report.switched_off += 1;
            continue;
        }
        let field = key.rsplit('.').next().unwrap_or_default();
        let name = match field.contains("cidr") {
            true if field.contains("service") => Some("service_network"),
            true if field.contains("pod") => Some("pod_network"),
            false if field.contains("dns") => Some(NAME_SERVERS),
            _ => None,
        };
        let given = staged.take(&key);
        staged.pass(&key);
        let property = short(&key);
        match (name, given) {
            (Some(_), None) => {}
            (Some(_), Some(given)) if given.is_empty() => {}
            (Some(_), Some(given)) if given.is_placeholder() => {
                report.not_taken(line, &property, "a placeholder", OWN_PROFILE);
            }
            (Some(name), Some(given)) => {
                let value = if name == NAME_SERVERS {
                    json!(given.list())
                } else {
                    given.text().into()
                };
                entries.push(Entry {
                    line,
                    property,
                    name,
                    value,
                });
            }
            (None, _) => report.not_taken(
                line,
                &property,
                "it is about a network that is not there",
                "Nothing does the same",
            ),
        }
    }
    let entries = without_usual(entries, report);
    profile(entries, line, report)
}

fn plug_in(plugin: Option<&str>, line: u32, report: &mut Report) {
    let property = short(SELECTOR);
    match plugin {
        Some("nsx") => report.not_taken(
            line,
            &property,
            "NSX-T: its load balancers, its NAT and its network policies",
            "Nothing does the same; profiles made for NSX-T can be kept with `stolos create-network-profile`, which says what of them has no effect",
        ),
        Some("antrea") => report.changed(
            line,
            &property,
            "pods reach each other by routes of ours in place of Antrea; network policies are not enforced",
        ),
        Some(_) => report.changed(
            line,
            &property,
            "pods reach each other by routes of ours in place of flannel; there is no overlay",
        ),
        None => report.changed(line, &property, "pods reach each other by routes of ours"),
    }
}

/// Leaves out what clusters get anyway.
fn without_usual(mut entries: Vec<Entry>, report: &mut Report) -> Vec<Entry> {
    let usual = Networks::default();
    entries.retain(|entry| {
        let ours = match entry.name {
            "pod_network" => usual.pods,
            "service_network" => usual.services,
            _ => return true,
        };
        let is_usual = entry.value == ours.to_string();
        if is_usual {
            let text = format!("{ours}, what clusters get without a profile");
            report.taken(entry.line, &entry.property, text);
        }
        !is_usual
    });
    entries
}

/// The profile of what can be in one.
fn profile(mut entries: Vec<Entry>, line: u32, report: &mut Report) -> Option<Value> {
    if let Err(of_all) = check(&entries) {
        // Together they cannot be; what cannot be alone either is to blame, else all of them are.
        let is_good: Vec<_> = entries.iter().map(|entry| check([entry])).collect();
        let any_bad = is_good.iter().any(Result::is_err);
        let mut results = is_good.into_iter();
        entries.retain(|entry| {
            let problem = match results.next() {
                Some(Ok(())) | None if any_bad => return true,
                Some(Err(problem)) => problem,
                Some(Ok(())) | None => of_all.clone(),
            };
            report.not_taken(entry.line, &entry.property, problem, OWN_PROFILE);
            false
        });
    }
    if entries.is_empty() {
        return None;
    }
    for entry in &entries {
        let text = match &entry.value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        report.taken(
            entry.line,
            &entry.property,
            format!("{text}, in the network profile `{PROFILE}`"),
        );
    }
    report.changed(
        line,
        "network profile",
        format!(
            "networks are each cluster's here, not the installation's: make the profile, and create clusters with --network-profile {PROFILE}"
        ),
    );
    Some(json!({
        "name": PROFILE,
        "description": "The networks of pods and services that the tile had",
        "parameters": parameters(&entries),
    }))
}

fn check<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Result<(), String> {
    NetworkProfile::parse(PROFILE, &parameters(entries))
        .map(drop)
        .map_err(|problem| problem.0)
}

fn parameters<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Value {
    let mut parameters = Map::new();
    let mut own = Map::new();
    for entry in entries {
        let place = if entry.name == NAME_SERVERS {
            &mut parameters
        } else {
            &mut own
        };
        place.insert(entry.name.to_owned(), entry.value.clone());
    }
    if !own.is_empty() {
        parameters.insert(
            "cni_configurations".to_owned(),
            json!({"type": "stolos", "parameters": own}),
        );
    }
    Value::Object(parameters)
}
