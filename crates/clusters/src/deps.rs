//! The other services as this one needs them.
//!
//! Narrow, object safe, and implemented in `server` over the real services; tests put simulated ones in their place.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stolos_base::Secret;
use stolos_base::ids::ClusterId;
use stolos_base::pki::Identity;
use stolos_kubernetes::access::{Binding, Holder};
use stolos_kubernetes::losses::LocalVolume;
use stolos_kubernetes::marks::Marks;
use stolos_kubernetes::running::PodRun;

use crate::error::Result;
use crate::plans::Drain;
use crate::render::{NetworkLease, Networks};
use crate::who::{Key, Person, Who};

/// The people whom the token service knows.
pub trait People: Send + Sync + 'static {
    /// The person who has a name now.
    fn named<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Person>>>;
    /// The person of an id.
    fn by_id<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<Person>>>;
    /// Everybody.
    fn all(&self) -> BoxFuture<'_, Result<Vec<Person>>>;
}

/// Access to a cluster that is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Whose it is.
    pub of: Who,
    /// Who gives it and answers for it: it is taken back when that one may not give it any more.
    pub by: Key,
    /// When it is given.
    pub at: Timestamp,
    /// How long its token lives.
    pub lives: Duration,
}

impl Grant {
    /// As the cluster keeps it.
    #[must_use]
    pub fn holder(&self) -> Holder {
        Holder {
            of: self.of.key.to_string(),
            by: self.by.to_string(),
        }
    }
}

/// One address range and one virtual API address for each cluster.
pub trait Network: Send + Sync + 'static {
    /// Leases them; the same again for a cluster that has them.
    fn lease(&self, cluster: ClusterId) -> BoxFuture<'_, Result<NetworkLease>>;
    /// The lease of a cluster, if it has one.
    fn find(&self, cluster: ClusterId) -> BoxFuture<'_, Result<Option<NetworkLease>>>;
    /// Gives them back; fine when there are none.
    fn release(&self, cluster: ClusterId) -> BoxFuture<'_, Result<()>>;
    /// Has the virtual address balanced over `masters` from now on, also while this process is down.
    fn publish(
        &self,
        cluster: ClusterId,
        address: Ipv4Addr,
        masters: Vec<Ipv4Addr>,
    ) -> BoxFuture<'_, Result<()>>;
    /// Ends that; fine when it is not published.
    fn withdraw(&self, address: Ipv4Addr) -> BoxFuture<'_, Result<()>>;
}

/// A client certificate for a cluster's API, or for its etcd.
#[derive(Clone)]
pub struct AdminCredential {
    /// The cluster's CA (PEM).
    pub ca: String,
    /// Client certificate (PEM); for the API in group `system:masters`.
    pub certificate: String,
    /// Its key (PEM).
    pub private_key: Secret<String>,
}

impl fmt::Debug for AdminCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminCredential")
    }
}

/// A certificate that the director generated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Its whole name.
    pub name: String,
    /// Whether it signed itself.
    pub is_root: bool,
    /// When it ends.
    pub valid_until: Timestamp,
}

/// What the director generated for a deployment.
pub trait Vault: Send + Sync + 'static {
    /// The administrator's certificate of a deployment.
    fn admin(&self, deployment: &str) -> BoxFuture<'_, Result<AdminCredential>>;
    /// A certificate of a deployment that is not an administrator's, by the name of its variable.
    fn client<'a>(&'a self, deployment: &'a str, variable: &'a str)
    -> BoxFuture<'a, Result<AdminCredential>>;
    /// Deletes all that a deployment had; fine when there is nothing.
    fn forget(&self, deployment: &str) -> BoxFuture<'_, Result<()>>;
    /// The whole name of a deployment's variable.
    ///
    /// # Errors
    /// When it cannot be a name.
    fn name(&self, deployment: &str, variable: &str) -> Result<String>;
    /// Keeps a secret text under its whole name, from where manifests refer to it; it replaces an older one.
    fn put(&self, name: &str, text: Secret<String>) -> BoxFuture<'_, Result<()>>;
    /// Copies a secret text that never changes from its whole name to a variable of a deployment; one that is there stays.
    ///
    /// # Errors
    /// When there is no such text.
    fn copy<'a>(&'a self, name: &'a str, deployment: &'a str, variable: &'a str)
    -> BoxFuture<'a, Result<()>>;
    /// Keeps a cluster's own root authority in the place of the one that would be generated.
    fn put_authority(&self, deployment: &str, authority: Identity) -> BoxFuture<'_, Result<()>>;
    /// The newest certificates of a deployment, by name.
    fn certificates<'a>(&'a self, deployment: &'a str) -> BoxFuture<'a, Result<Vec<Certificate>>>;
    /// Makes those of a deployment's leaves anew that were made before a time; gives their names.
    fn renew<'a>(&'a self, deployment: &'a str, before: Timestamp) -> BoxFuture<'a, Result<Vec<String>>>;
    /// Deletes a certificate by its whole name; fine when there is none.
    fn forget_certificate<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<()>>;
    /// Deletes everything below a whole name; fine when there is nothing.
    fn forget_below(&self, name: &str) -> BoxFuture<'_, Result<()>>;
}

/// A deployment's instance, as far as this service looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Instance group.
    pub group: String,
    /// Its number in the group; with the group it makes the node's name.
    pub index: u32,
    /// Its address, once it is placed.
    pub address: Option<Ipv4Addr>,
    /// Its zone, where it has one.
    pub zone: Option<String>,
}

/// How a machine is, as its agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineHealth {
    /// `GROUP/ID`.
    pub name: String,
    /// `running` when everything runs; else the director's word.
    pub state: String,
    /// Processes that do not run.
    pub not_running: Vec<String>,
    /// Name and fill of each disk, in percent.
    pub disks: Vec<(String, u32)>,
}

/// How a director task stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// Queued, running or being cancelled; what it does at the moment.
    Running(String),
    /// Ended well.
    Done,
    /// Ended otherwise, and why.
    Failed(String),
}

/// The director.
pub trait Director: Send + Sync + 'static {
    /// Stores the deployment's cloud config.
    fn set_cloud_config<'a>(&'a self, deployment: &'a str, yaml: &'a str) -> BoxFuture<'a, Result<()>>;
    /// Deletes it; fine when there is none.
    fn delete_cloud_config<'a>(&'a self, deployment: &'a str) -> BoxFuture<'a, Result<()>>;
    /// Starts a deploy under a context id and gives the task. A context that has a task gives that one again.
    fn deploy<'a>(
        &'a self,
        deployment: &'a str,
        manifest: &'a str,
        context: &'a str,
    ) -> BoxFuture<'a, Result<u64>>;
    /// The same without the drain scripts of a group, which would ask an API that is about to end.
    fn deploy_abruptly<'a>(
        &'a self,
        deployment: &'a str,
        manifest: &'a str,
        context: &'a str,
        group: &'a str,
    ) -> BoxFuture<'a, Result<u64>>;
    /// Starts a deploy after which the machines of a group all run their jobs, or none of them; all at once. As [`Director::deploy`].
    fn change_state<'a>(
        &'a self,
        deployment: &'a str,
        manifest: &'a str,
        context: &'a str,
        change: &'a StateChange,
    ) -> BoxFuture<'a, Result<u64>>;
    /// Starts a deletion, as [`Director::deploy`]. `None` when there is no such deployment.
    fn delete<'a>(&'a self, deployment: &'a str, context: &'a str) -> BoxFuture<'a, Result<Option<u64>>>;
    /// How a task stands; waits a moment for news when it runs. `seen` is the text seen last.
    fn task<'a>(&'a self, id: u64, seen: &'a str) -> BoxFuture<'a, Result<TaskState>>;
    /// Asks a task to stop.
    fn cancel(&self, id: u64) -> BoxFuture<'_, Result<()>>;
    /// How the machines of a deployment are; asks their agents, and waits a few seconds for those that do not answer.
    fn health<'a>(&'a self, deployment: &'a str) -> BoxFuture<'a, Result<Vec<MachineHealth>>>;
    /// The names of all deployments.
    fn deployments(&self) -> BoxFuture<'_, Result<Vec<String>>>;
    /// The instances of a deployment; empty when there is none.
    fn instances<'a>(&'a self, deployment: &'a str) -> BoxFuture<'a, Result<Vec<Instance>>>;
}

/// What the machines of a group are to do from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// The group.
    pub group: String,
    /// Whether their jobs run. Then machines that do not answer are made anew first; otherwise nothing is drained.
    pub runs: bool,
}

/// What is known of a cluster when its backup is taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackedUp {
    /// Its name.
    pub name: String,
    /// Its owner.
    pub owner: String,
    /// Version of Kubernetes.
    pub kubernetes_version: String,
    /// Networks inside of it: its services have addresses there.
    pub networks: Networks,
    /// Id and name of the Kubernetes profile that encrypts what lies in etcd.
    pub encrypted_by: Option<(String, String)>,
    /// Whether it is taken because a restore is about to replace it.
    pub before_restore: bool,
}

/// A backup of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its id; with the cluster's it names it.
    pub id: String,
    /// What the cluster was.
    pub of: BackedUp,
    /// When it was begun.
    pub taken_at: Timestamp,
    /// Revision of etcd that it has at least.
    pub revision: i64,
    /// Bytes of the snapshot.
    pub size: u64,
    /// Bytes in the place.
    pub stored: u64,
    /// SHA-256 of the snapshot in hex.
    pub sha256: String,
}

/// A backup in a list, whatever state it is in.
#[derive(Clone, Debug)]
pub struct ListedBackup {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its id.
    pub id: String,
    /// Bytes in the place.
    pub stored: u64,
    /// What it says, when it can be read.
    pub backup: Option<Backup>,
    /// Why it cannot be restored, as far as one sees without reading it.
    pub problem: Option<String>,
}

/// How a machine gets a backup's snapshot.
pub struct Offer {
    /// Where it is, for a while and for whoever has the URL.
    pub url: Secret<String>,
    /// Authority (PEM) of the server there.
    pub ca: String,
}

/// Where backups of clusters are kept.
pub trait Backups: Send + Sync + 'static {
    /// Takes one from the first of `masters` whose etcd gives one. There is a backup when this gives it, and not before.
    fn take<'a>(
        &'a self,
        cluster: ClusterId,
        of: &'a BackedUp,
        masters: &'a [Ipv4Addr],
        client: &'a AdminCredential,
        progress: &'a (dyn Fn(String) + Send + Sync),
    ) -> BoxFuture<'a, Result<Backup>>;
    /// Those of a cluster, oldest first.
    fn list(&self, cluster: ClusterId) -> BoxFuture<'_, Result<Vec<ListedBackup>>>;
    /// One of them, or the newest whole one that was not taken for a restore. Whether it is whole is not looked at.
    ///
    /// # Errors
    /// [`crate::Error::NoBackup`].
    fn find<'a>(&'a self, cluster: ClusterId, id: Option<&'a str>) -> BoxFuture<'a, Result<Backup>>;
    /// Reads one back.
    fn verify<'a>(&'a self, cluster: ClusterId, id: &'a str) -> BoxFuture<'a, Result<Backup>>;
    /// Removes all but the newest `keep`, one of which always stays; gives those that were removed.
    fn retain(&self, cluster: ClusterId, keep: usize) -> BoxFuture<'_, Result<Vec<String>>>;
    /// Has machines get one.
    fn offer(&self, backup: &Backup) -> Result<Offer>;
}

/// What a cluster is told beside its manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// How nodes are drained; nodes read it when it comes to that.
    pub drain: Drain,
    /// How many DNS servers run.
    pub dns_replicas: u32,
    /// Labels and taints by group of nodes; `None` while they are to stay as they are.
    pub marks: Option<BTreeMap<String, Marks>>,
}

/// A cluster's API server.
pub trait Kubernetes: Send + Sync + 'static {
    /// Runs a pod that looks a name up, and takes it away again.
    fn smoke_test<'a>(
        &'a self,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
        progress: &'a (dyn Fn(String) + Send + Sync),
    ) -> BoxFuture<'a, Result<()>>;
    /// Tells the cluster what it has to know beside its manifest.
    fn apply_settings<'a>(
        &'a self,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
        settings: &'a Told,
    ) -> BoxFuture<'a, Result<()>>;
    /// The pods that run or have run and are still there.
    fn pod_runs<'a>(
        &'a self,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
    ) -> BoxFuture<'a, Result<Vec<PodRun>>>;
    /// Deletes the nodes that have no machine any more, all but `keep`; gives their names.
    fn forget_nodes<'a>(
        &'a self,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
        keep: &'a BTreeSet<String>,
    ) -> BoxFuture<'a, Result<Vec<String>>>;
    /// Renews what the cluster has from another one, whose backup it began with, and what that one's keys vouched for: all of it that was made before `since`.
    /// Says in words what it was.
    fn renew_inherited<'a>(
        &'a self,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
        since: Timestamp,
    ) -> BoxFuture<'a, Result<String>>;
    /// A kubeconfig with a token that administers the cluster until it ends or is taken back, PKS's shape.
    fn bind<'a>(
        &'a self,
        cluster: &'a crate::db::ClusterRow,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
        grant: &'a Grant,
    ) -> BoxFuture<'a, Result<serde_json::Value>>;
    /// Lets a person administer the cluster, by the name that its API servers give the person; fine when that is so already.
    fn admit<'a>(
        &'a self,
        cluster: &'a crate::db::ClusterRow,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
        subject: &'a str,
        grant: &'a Grant,
    ) -> BoxFuture<'a, Result<()>>;
    /// What [`Kubernetes::bind`] and [`Kubernetes::admit`] gave, in this version or in one before.
    fn bindings<'a>(
        &'a self,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
    ) -> BoxFuture<'a, Result<Vec<Binding>>>;
    /// The volumes in use on the disks of some nodes.
    fn local_volumes<'a>(
        &'a self,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
        nodes: &'a BTreeSet<String>,
    ) -> BoxFuture<'a, Result<Vec<LocalVolume>>>;
    /// Writes down whose one of a version before is, and when it ends.
    fn adopt<'a>(
        &'a self,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
        binding: &'a Binding,
        holder: &'a Holder,
        ends: Timestamp,
    ) -> BoxFuture<'a, Result<()>>;
    /// Takes one back: its tokens are worthless from then on. Fine when it is gone.
    fn unbind<'a>(
        &'a self,
        address: Ipv4Addr,
        admin: &'a AdminCredential,
        binding: &'a Binding,
    ) -> BoxFuture<'a, Result<()>>;
}
