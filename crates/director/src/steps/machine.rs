//! Making and deleting machines.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde_json::{Map, Value, json};
use stolos_base::ids::AgentId;
use stolos_manifest::canonical_name;
use stolos_manifest::variables::interpolate;
use stolos_mbus::settings::{Mbus, MbusCert};

use super::Attempt;
use crate::app::App;
use crate::db::inventory;
use crate::db::releases;
use crate::error::{Error, Result};
use crate::machines::NewMachine;
use crate::plan::{MachineSpec, Placed};
use crate::variables::{Values, member, own_references};

/// A machine to be made.
pub(crate) struct Wanted<'a> {
    pub(crate) agent: AgentId,
    pub(crate) deployment: &'a str,
    pub(crate) placed: &'a Placed,
    pub(crate) spec: &'a MachineSpec,
    /// The CPI's id of the stemcell.
    pub(crate) stemcell: &'a str,
    pub(crate) tags: &'a IndexMap<String, String>,
    /// Disks that will be attached: where the machine should be near to.
    pub(crate) disks: &'a [String],
}

/// Makes a machine and waits until its agent answers; gives its CID.
///
/// Expected flow: note the intent, call the CPI, note the CID, then metadata and the first answer side by side.
/// Guarantees: repeated in whatever state, one machine comes out of it.
pub(crate) async fn create<T>(attempt: &Attempt<T>, wanted: &Wanted<'_>, values: &Values) -> Result<String> {
    let app = &attempt.app;
    let fence = attempt.ctx.fence();
    let call = attempt.call_id("create_vm");
    inventory::intend_vm(&app.db, fence, wanted.agent, wanted.placed.id, wanted.spec, &call).await?;
    let issued = app
        .trust
        .issue(wanted.agent)
        .await
        .map_err(|failure| Error::Trust {
            agent: wanted.agent.to_string(),
            source: failure.source,
        })?;
    app.tasks
        .add_secret(attempt.flow, &json!(issued.private_key.expose()));
    let machine = NewMachine {
        agent: wanted.agent,
        stemcell: wanted.stemcell,
        cloud_properties: wanted.spec.cloud_properties.clone(),
        networks: networks(wanted.spec),
        disks: wanted.disks,
        env: env(app, wanted, issued, values)?,
    };
    attempt.status("creating the machine");
    let cid = attempt.machines().create_vm(&call, &machine).await?;
    inventory::vm_made(&app.db, fence, wanted.agent, &cid).await?;
    attempt.status("waiting for its agent");
    let name = format!("{}/{}", wanted.placed.group, wanted.placed.id);
    let agent = attempt.agent(wanted.agent, &name);
    let answered = async {
        // The first heartbeat may be there before an answer to a ping, or the other way round.
        tokio::select! {
            () = app.states.heard_of(wanted.agent) => Ok(()),
            answer = agent.wait_until_ready(app.config.agent_limit) => answer.map_err(Error::from),
        }
    };
    let described = describe(attempt, &cid, wanted.deployment, wanted.placed, wanted.tags);
    let (answered, described) = tokio::join!(answered, described);
    answered?;
    described?;
    inventory::vm_ready(&app.db, fence, wanted.agent).await?;
    Ok(cid)
}

/// Tells the CPI what the machine is for.
pub(crate) async fn describe<T>(
    attempt: &Attempt<T>,
    cid: &str,
    deployment: &str,
    placed: &Placed,
    tags: &IndexMap<String, String>,
) -> Result<()> {
    let mut metadata: Map<String, Value> = tags
        .iter()
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect();
    let own = [
        ("director", attempt.app.config.name.clone()),
        ("deployment", deployment.to_owned()),
        ("id", placed.id.to_string()),
        ("job", placed.group.clone()),
        ("instance_group", placed.group.clone()),
        ("index", placed.index.to_string()),
        ("name", format!("{}/{}", placed.group, placed.id)),
        (
            "created_at",
            attempt
                .app
                .db
                .clock()
                .now()
                .strftime("%Y-%m-%dT%H:%M:%SZ")
                .to_string(),
        ),
    ];
    metadata.extend(own.into_iter().map(|(key, value)| (key.to_owned(), json!(value))));
    attempt.machines().set_vm_metadata(cid, metadata).await
}

/// Deletes a machine and forgets it. One that is gone already is as good as deleted.
pub(crate) async fn delete<T>(attempt: &Attempt<T>, agent: AgentId, cid: &str) -> Result<()> {
    attempt.status("deleting the machine");
    let app = &attempt.app;
    attempt
        .machines()
        .delete_vm(&attempt.call_id(&format!("delete_vm {cid}")), cid)
        .await?;
    inventory::vm_gone(&app.db, attempt.ctx.fence(), agent).await
}

/// A machine of which it is not known whether it was made.
pub(crate) struct Unknown<'a> {
    pub(crate) agent: AgentId,
    pub(crate) call_id: &'a str,
    pub(crate) cid: Option<&'a str>,
    pub(crate) made_as: &'a MachineSpec,
}

/// Deletes a machine of which it is not known whether it was made: asks for it under the same call and the same agent,
/// which gives the one that is there or makes it, and deletes that.
pub(crate) async fn delete_unknown<T>(attempt: &Attempt<T>, unknown: &Unknown<'_>) -> Result<()> {
    let app = &attempt.app;
    let cid = match unknown.cid {
        Some(cid) => cid.to_owned(),
        None => {
            let stemcell = &unknown.made_as.stemcell;
            let row = releases::stemcell_by_version(&app.db, &stemcell.name, &stemcell.version).await?;
            let row = releases::found(row, &stemcell.name, &stemcell.version)?;
            let machine = NewMachine {
                agent: unknown.agent,
                stemcell: &row.cid,
                cloud_properties: unknown.made_as.cloud_properties.clone(),
                networks: networks(unknown.made_as),
                disks: &[],
                env: json!({"bosh": {}}),
            };
            match attempt.machines().find_vm(unknown.call_id, &machine).await? {
                Some(cid) => cid,
                None => return inventory::vm_gone(&app.db, attempt.ctx.fence(), unknown.agent).await,
            }
        }
    };
    delete(attempt, unknown.agent, &cid).await
}

fn networks(spec: &MachineSpec) -> Value {
    spec.networks
        .iter()
        .map(|(name, network)| (name.clone(), network.to_wire()))
        .collect()
}

/// What the director passes through the CPI to the agent (bosh.md section 4.3): secrets among it.
fn env(app: &App, wanted: &Wanted<'_>, issued: MbusCert, values: &Values) -> Result<Value> {
    let member = member(wanted.placed);
    let own = own_references(&wanted.spec.env, &member);
    let mut env = interpolate(&own, |name| values.get(name)).map_err(|problems| {
        let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Error::Templates(format!(
            "env of instance group '{}': {}",
            wanted.placed.group,
            texts.join("; ")
        ))
    })?;
    if env.is_null() {
        env = json!({});
    }
    let group = &wanted.placed.group;
    let words = [app.config.name.as_str(), wanted.deployment, group.as_str()].map(canonical_name);
    let [director, deployment, group] = &words;
    let full = format!("{director}-{deployment}-{group}");
    let mbus = Mbus {
        cert: issued,
        urls: app.config.mbus_urls.clone(),
    };
    let mut bosh: BTreeMap<&str, Value> = BTreeMap::new();
    bosh.insert(
        "mbus",
        serde_json::to_value(mbus).map_err(|error| Error::Bug(error.to_string()))?,
    );
    bosh.insert(
        "blobstores",
        serde_json::to_value(&app.config.blobstores).map_err(|error| Error::Bug(error.to_string()))?,
    );
    bosh.insert("group", json!(full));
    bosh.insert(
        "groups",
        json!([
            director,
            deployment,
            group,
            format!("{director}-{deployment}"),
            format!("{deployment}-{group}"),
            full
        ]),
    );
    bosh.insert("tags", json!(wanted.tags));
    let slot = env
        .as_object_mut()
        .ok_or_else(|| Error::Request(format!("env of instance group '{group}' is not a map")))?
        .entry("bosh")
        .or_insert_with(|| json!({}));
    let own = slot
        .as_object_mut()
        .ok_or_else(|| Error::Request(format!("env.bosh of instance group '{group}' is not a map")))?;
    own.extend(bosh.into_iter().map(|(key, value)| (key.to_owned(), value)));
    Ok(env)
}
