//! Who may administer clusters, looked at again and again: what was given to somebody who is gone, or who may not have it any more, is taken back.
//!
//! A kubeconfig is good for as long as its token lives and the service account behind it is there. So whoever is deleted, loses the right to manage clusters or
//! the cluster itself is out of it with the next look and the time for which an API server remembers a token that it accepted (10 s): a minute at most in all, on
//! every cluster that answers. One that does not answer lets nobody in either.
//!
//! What a person made within a cluster as its administrator is the cluster's: other service accounts, certificates, role bindings.
//!
//! One process at a time looks ([`stolos_store::duty`]); what it does twice is done once. Nobody counts as gone while the token service does not say so.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use stolos_api::pks::{LastAction, LastActionState};
use stolos_base::{Clock, chain};
use stolos_kubernetes::access::{Binding, Holder, Kind};
use stolos_store::{Db, Fence, Tx, duty, lease};
use tokio_util::sync::CancellationToken;

use crate::api_server::binding_name;
use crate::authorize;
use crate::db::{self, ClusterRow, Whose};
use crate::deps::{Director, Kubernetes, People, Vault};
use crate::error::{Error, Result};
use crate::render::deployment_name;
use crate::who::{Key, Person, Who};
use crate::{owners, quotas};

/// How often is looked, unless tests want it otherwise: with what an API server remembers it comes to less than a minute.
pub const LOOK_AT_ACCESS: Duration = Duration::from_secs(20);
/// Clusters that are looked at at the same time: some that do not answer must not hold up the others.
const AT_ONCE: usize = 16;
/// What was given by a version that gave tokens without an end goes on for so long, if its owner may have it.
const OLD_LIVE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The name of the duty.
const DUTY: &str = "access to clusters";

/// What looking needs.
#[derive(Clone)]
pub(crate) struct Watch {
    pub(crate) db: Db,
    pub(crate) vault: Arc<dyn Vault>,
    pub(crate) director: Arc<dyn Director>,
    pub(crate) kubernetes: Arc<dyn Kubernetes>,
    pub(crate) people: Arc<dyn People>,
    pub(crate) clock: Clock,
    pub(crate) every: Duration,
}

/// Looks again and again while it is this process's duty, until `stop` fires.
pub(crate) async fn run(watch: Watch, holder: String, stop: CancellationToken) -> Result<(), Infallible> {
    let db = watch.db.clone();
    duty::hold(db, DUTY, holder, stop, |fence| {
        let watch = watch.clone();
        async move {
            loop {
                if let Err(error) = look(&watch, &fence).await {
                    tracing::warn!(error = %chain(&error), "failed to look who may have access to clusters");
                }
                tokio::time::sleep(watch.every).await;
            }
        }
    })
    .await;
    Ok(())
}

/// One look at everything.
pub(crate) async fn look(watch: &Watch, fence: &Fence) -> Result<()> {
    owners::settle(&watch.db, &*watch.people).await?;
    let clusters = db::clusters(&watch.db, Whose::All).await?;
    let mut known = Known::default();
    for cluster in &clusters {
        known.ask(&*watch.people, &cluster.owner.key).await?;
    }
    note_owners(watch, fence, &clusters, &known).await?;
    forget_quotas(watch, fence, &mut known).await?;
    if let Err(error) = note_deployments(watch, fence, &clusters).await {
        tracing::warn!(error = %chain(&error), "failed to look which deployments of clusters there are");
    }
    let known = &tokio::sync::Mutex::new(known);
    futures::stream::iter(clusters.iter().filter(|cluster| !cluster.settings.stopped))
        .for_each_concurrent(AT_ONCE, |cluster| async move {
            if let Err(error) = look_at(watch, cluster, known).await {
                // A cluster that is not well says so elsewhere.
                tracing::debug!(cluster = %cluster.name, error = %chain(&error), "failed to look who has access to a cluster");
            }
        })
        .await;
    Ok(())
}

/// The people that were asked for in one look.
#[derive(Default)]
struct Known(BTreeMap<Key, Option<Person>>);

impl Known {
    async fn ask(&mut self, people: &dyn People, key: &Key) -> Result<()> {
        if let (Some(id), false) = (key.person_id(), self.0.contains_key(key)) {
            let person = people.by_id(id).await?;
            self.0.insert(key.clone(), person);
        }
        Ok(())
    }

    /// Whether it is known that nobody has the key any more.
    fn is_gone(&self, key: &Key) -> bool {
        key.is_gone() || matches!(self.0.get(key), Some(None))
    }

    fn person(&self, key: &Key) -> Option<&Person> {
        self.0.get(key)?.as_ref()
    }
}

async fn begin(watch: &Watch, fence: &Fence, what: &'static str) -> Result<Tx> {
    let mut tx = watch.db.begin(what).await.map_err(Error::database(what))?;
    lease::verify(&mut tx, fence)
        .await
        .map_err(Error::database(what))?;
    Ok(tx)
}

async fn note_owners(watch: &Watch, fence: &Fence, clusters: &[ClusterRow], known: &Known) -> Result<()> {
    for cluster in clusters {
        let is_gone = known.is_gone(&cluster.owner.key);
        if is_gone == cluster.found.owner_gone_at.is_some() {
            continue;
        }
        let mut tx = begin(watch, fence, "note whether an owner is gone").await?;
        owners::note_owner(&mut tx, cluster, is_gone).await?;
        tx.commit()
            .await
            .map_err(Error::database("note whether an owner is gone"))?;
        if is_gone {
            tracing::warn!(cluster = %cluster.name, owner = %cluster.owner, "the owner of a cluster is gone");
        }
    }
    Ok(())
}

/// A quota of somebody who is gone limits nobody, and another one can be made for the name.
async fn forget_quotas(watch: &Watch, fence: &Fence, known: &mut Known) -> Result<()> {
    for key in owners::with_quotas(&watch.db).await? {
        known.ask(&*watch.people, &key).await?;
        if known.is_gone(&key) {
            let mut tx = begin(watch, fence, "forget a quota").await?;
            quotas::delete(&mut tx, &key).await?;
            tx.commit().await.map_err(Error::database("forget a quota"))?;
        }
    }
    Ok(())
}

/// Whether a cluster should have a deployment now: something was made of it, and nothing is being done to it.
fn should_be_deployed(cluster: &ClusterRow) -> bool {
    let was_made = cluster.address.is_some() && cluster.action != LastAction::Delete;
    let never_ran = cluster.action == LastAction::Create && cluster.state == LastActionState::Failed;
    was_made && !never_ran && cluster.state.is_final()
}

async fn note_deployments(watch: &Watch, fence: &Fence, clusters: &[ClusterRow]) -> Result<()> {
    let there: BTreeSet<String> = watch.director.deployments().await?.into_iter().collect();
    for cluster in clusters {
        let is_gone = should_be_deployed(cluster) && !there.contains(&deployment_name(cluster.id));
        if is_gone == cluster.found.deployment_gone_at.is_some() {
            continue;
        }
        let mut tx = begin(watch, fence, "note whether a deployment is gone").await?;
        owners::note_deployment(&mut tx, cluster.id, is_gone).await?;
        tx.commit()
            .await
            .map_err(Error::database("note whether a deployment is gone"))?;
        if is_gone {
            tracing::warn!(cluster = %cluster.name, "the director has no deployment of a cluster any more");
        }
    }
    Ok(())
}

async fn look_at(watch: &Watch, cluster: &ClusterRow, known: &tokio::sync::Mutex<Known>) -> Result<()> {
    let address: Option<Ipv4Addr> = cluster.address.as_ref().and_then(|text| text.parse().ok());
    // One without an address has never run.
    let Some(address) = address else { return Ok(()) };
    let admin = watch.vault.admin(&deployment_name(cluster.id)).await?;
    let now = watch.clock.now();
    let mut everybody: Option<Vec<Person>> = None;
    for binding in watch.kubernetes.bindings(address, &admin).await? {
        let adopted = match &binding.holder {
            Some(_) => None,
            None => {
                if everybody.is_none() {
                    everybody = Some(watch.people.all().await?);
                }
                adopted(&binding, cluster, everybody.as_deref().unwrap_or_default())
            }
        };
        let holder = adopted.as_ref().or(binding.holder.as_ref());
        let keeps = match holder {
            None => false,
            Some(holder) => {
                let (of, by) = (Key::kept(holder.of.clone()), Key::kept(holder.by.clone()));
                let mut known = known.lock().await;
                known.ask(&*watch.people, &of).await?;
                known.ask(&*watch.people, &by).await?;
                let has_ended = binding.ends.is_some_and(|ends| ends <= now);
                !has_ended && !known.is_gone(&of) && may_give(&by, cluster, &known)
            }
        };
        match adopted {
            _ if !keeps => {
                watch.kubernetes.unbind(address, &admin, &binding).await?;
                tracing::info!(cluster = %cluster.name, binding = %binding.name, "took access to a cluster back");
            }
            Some(holder) => {
                let ends = now.checked_add(OLD_LIVE).unwrap_or(Timestamp::MAX);
                watch
                    .kubernetes
                    .adopt(address, &admin, &binding, &holder, ends)
                    .await?;
            }
            None => {}
        }
    }
    Ok(())
}

/// Whether somebody may give access to a cluster now.
fn may_give(by: &Key, cluster: &ClusterRow, known: &Known) -> bool {
    let owns = cluster.owner.key == *by;
    match known.person(by) {
        Some(person) => person.is_in(authorize::ADMIN) || (owns && person.is_in(authorize::MANAGE)),
        // Which clients there are is the configuration's business; what they got ends by itself.
        None => by.is_client(),
    }
}

/// Whose a binding is of before bindings said so: of the person whose name it was made of, if that one was there then. What others had was given by the owner.
fn adopted(binding: &Binding, cluster: &ClusterRow, everybody: &[Person]) -> Option<Holder> {
    let prefix = cluster.settings.oidc.as_ref().map(|oidc| oidc.subject(""));
    let is_made_of = |person: &Person| match binding.kind {
        Kind::ServiceAccount => binding.name == binding_name(&person.name, &person.name),
        Kind::Person => prefix.as_ref().is_some_and(|prefix| {
            let subject = format!("{prefix}{}", person.name);
            binding.name == binding_name(&subject, &subject)
        }),
    };
    let person = everybody.iter().find(|person| is_made_of(person))?;
    if !person.was_there(binding.made_at) {
        return None;
    }
    let of = Who::person(person).key;
    let by = if person.is_in(authorize::ADMIN) {
        of.clone()
    } else {
        cluster.owner.key.clone()
    };
    Some(Holder {
        of: of.to_string(),
        by: by.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use stolos_base::ids::ClusterId;

    use super::*;

    /// An id of 2024.
    const EARLY: &str = "018cc251-f400-7000-8000-000000000000";

    fn cluster(owner: Key) -> ClusterRow {
        let size =
            serde_json::json!({"cpu": 1, "ram": 1024, "ephemeral_disk": 8192, "persistent_disk": 1024});
        let plan = serde_json::json!({"name": "small", "description": "", "kubernetes_version": "1.37.1", "master": size,
                                      "worker": size, "worker_instances": 1, "max_worker_instances": 5});
        ClusterRow {
            id: ClusterId::new(&stolos_base::IdSource::counted()),
            name: "demo".parse().expect("a name"),
            hostname: "demo.test".parse().expect("a host"),
            owner: Who {
                name: "owner".to_owned(),
                key: owner,
            },
            plan: serde_json::from_value(plan).expect("a plan"),
            workers: 1,
            action: LastAction::Create,
            state: LastActionState::Succeeded,
            description: String::new(),
            address: None,
            settings: crate::settings::Settings::default(),
            found: db::Found::default(),
        }
    }

    fn person(name: &str, id: &str, group: &str) -> Person {
        Person {
            id: id.to_owned(),
            name: name.to_owned(),
            groups: vec![group.to_owned()],
        }
    }

    #[test]
    fn only_owners_who_manage_and_administrators_may_give_access() {
        let cluster = cluster(Key::person("owner"));
        let mut known = Known::default();
        for (id, group) in [
            ("owner", authorize::MANAGE),
            ("other", authorize::MANAGE),
            ("root", authorize::ADMIN),
            ("reader", authorize::ADMIN_READ),
        ] {
            known.0.insert(Key::person(id), Some(person(id, id, group)));
        }
        known.0.insert(Key::person("deleted"), None);
        let may = |key: &Key| may_give(key, &cluster, &known);
        assert!(may(&Key::person("owner")) && may(&Key::person("root")));
        assert!(!may(&Key::person("other")) && !may(&Key::person("reader")));
        assert!(!may(&Key::person("deleted")) && known.is_gone(&Key::person("deleted")));
        assert!(may(&Key::client("ci")) && !may(&Key::unknown("owner")));
        // One that was an owner and lost the role.
        known
            .0
            .insert(Key::person("owner"), Some(person("owner", "owner", "openid")));
        assert!(!may_give(&Key::person("owner"), &cluster, &known));
    }

    #[test]
    fn bindings_of_before_are_those_of_people_who_were_there() {
        let cluster = cluster(Key::person("owner"));
        let made = |name: String, kind, at: &str| Binding {
            name,
            kind,
            holder: None,
            ends: None,
            made_at: at.parse().expect("a time"),
        };
        let everybody = [
            person("alana", EARLY, authorize::MANAGE),
            person("root", "018cc251-f400-7000-8000-000000000001", authorize::ADMIN),
        ];
        let of = |name: &str, at: &str| {
            let binding = made(binding_name(name, name), Kind::ServiceAccount, at);
            adopted(&binding, &cluster, &everybody)
        };
        let (of_alana, owner) = (format!("user:{EARLY}"), "user:owner".to_owned());
        let alana = of("alana", "2025-01-01T00:00:00Z").expect("hers");
        assert_eq!(
            (alana.of, alana.by),
            (of_alana, owner),
            "her access is what the owner gave"
        );
        let root = of("root", "2025-01-01T00:00:00Z").expect("an administrator's");
        assert_eq!(root.of, root.by);
        assert_eq!(of("alana", "2023-01-01T00:00:00Z"), None, "she came later");
        assert_eq!(
            of("cody", "2025-01-01T00:00:00Z"),
            None,
            "there is nobody of the name"
        );
    }
}
