//! What the director needs from others, and its settings.
//!
//! The traits are narrow and object safe; `server` implements them over the real services, tests put simulated ones in
//! their place.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::Value;
use stolos_base::ids::{AgentId, CredentialId, DirectorId};
use stolos_base::{Class, Classify, IdSource, Instance};
use stolos_blobs::{Blobs, SealKey, Signer};
use stolos_mbus::settings::{Blobstore, MbusCert};
use stolos_mbus::{Bus, Transport};
use stolos_store::Db;

/// Settings of a director.
#[derive(Clone, Debug)]
pub struct Config {
    /// Id of the installation.
    pub id: DirectorId,
    /// Name; part of the absolute names of variables.
    pub name: String,
    /// The directories of the installation: uploads are collected below its root, packages unpacked in it.
    pub instance: Instance,
    /// Name of the CPI, for `GET /info`.
    pub cpi: String,
    /// URL of the token service, for `GET /info`.
    pub token_url: String,
    /// What new machines are told about the bus: `nats://IP:PORT`.
    pub mbus_urls: Vec<String>,
    /// What new machines are told about blobs.
    pub blobstores: Vec<Blobstore>,
    /// Where agents reach signed URLs: `https://HOST:25250`.
    pub blobs_url: String,
    /// Name of the process among those that run flows of the same database: the same one after a restart.
    pub holder: String,
    /// CPI calls at once, over all deployments.
    pub max_cpi_calls: usize,
    /// How long a new machine's agent may take to answer.
    pub agent_limit: Duration,
    /// When machines count as dead.
    pub resurrection: Resurrection,
    /// How long disks without an instance are kept.
    pub orphaned_disks_kept: Duration,
    /// Who is told of alerts.
    pub alerts: Option<Webhook>,
}

/// A place that is told of alerts, by a `POST` with JSON for each.
#[derive(Clone)]
pub struct Webhook {
    /// Where.
    pub url: String,
    /// Its authority (PEM), beside those that the host trusts.
    pub ca: Option<String>,
    /// Shown as a bearer token.
    pub token: Option<String>,
}

/// Without the token, and without the URL, which may have one in it.
impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook").finish_non_exhaustive()
    }
}

/// Services that the director works with.
#[derive(Clone)]
pub struct Deps {
    /// Opened with [`crate::SCHEMA`]; its clock is the director's.
    pub db: Db,
    /// Where jobs, packages and (sealed) rendered templates are.
    pub blobs: Blobs,
    /// Seals rendered templates that are too large for a message; the blob server has the same one.
    pub seal: SealKey,
    /// Signs URLs for agents; the blob server has the same one.
    pub signer: Signer,
    /// The infrastructure.
    pub cpi: Arc<dyn Infrastructure>,
    /// Agents.
    pub bus: Bus,
    /// The bus with the rights of a health monitor: heartbeats, alerts, shutdowns of all agents.
    pub monitor: Arc<dyn Transport>,
    /// Hosts that see their machines end; `None` where nobody does, which only takes longer to notice.
    pub hosts: Option<Arc<dyn Hosts>>,
    /// Certificates of agents.
    pub trust: Arc<dyn AgentTrust>,
    /// Values of variables.
    pub variables: Arc<dyn Variables>,
    /// Who a token belongs to.
    pub verifier: stolos_api::token::Verifier,
    /// New ids.
    pub ids: IdSource,
    /// For tests: what goes wrong in flows.
    pub faults: stolos_flow::faults::Faults,
}

/// What a host says of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostSign {
    /// Its processes ended. The host may start it again by itself.
    Ended,
    /// The host does not have it any more.
    Gone,
}

/// Signs with the CPI's ids of machines, and the number to ask with next.
pub type HostSigns = (u64, Vec<(String, HostSign)>);

/// Hosts that see their machines end.
pub trait Hosts: Send + Sync {
    /// Waits for signs after a number; without one, only for those from now on. May answer with none.
    fn signs(&self, after: Option<u64>) -> BoxFuture<'_, Result<HostSigns, Failure>>;
}

/// When machines count as dead, and when they are made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resurrection {
    /// Silence after which a machine that is still there is fenced.
    pub fence_after: Duration,
    /// At least so many machines have to be down at once for a storm, in which nothing is repaired.
    pub storm_least: usize,
    /// And at least so many percent of a deployment, or of all.
    pub storm_percent: usize,
    /// How long a machine that was found dead counts as down for a storm.
    pub storm_window: Duration,
    /// Repairs of one instance in an hour before a person has to look.
    pub most_repairs: u32,
}

impl Default for Resurrection {
    /// 30 s of silence; a storm by BOSH's rule (bosh.md section 5.7).
    fn default() -> Self {
        Self {
            fence_after: Duration::from_secs(30),
            storm_least: 5,
            storm_percent: 20,
            storm_window: Duration::from_secs(600),
            most_repairs: 3,
        }
    }
}

/// An infrastructure behind a CPI, with a journal of calls.
pub trait Infrastructure: Send + Sync {
    /// The CPI whose next call has this id. A call that was made before under the same id, in whatever life, is not made
    /// again: its reply is given.
    fn journalled(&self, call: &str) -> Arc<dyn stolos_cpi::Cpi>;
    /// The CPI for calls that only read, or that may be repeated freely.
    fn plain(&self) -> Arc<dyn stolos_cpi::Cpi>;
}

impl Infrastructure for stolos_cpi::Runner {
    fn journalled(&self, call: &str) -> Arc<dyn stolos_cpi::Cpi> {
        Arc::new(self.call(call))
    }

    fn plain(&self) -> Arc<dyn stolos_cpi::Cpi> {
        Arc::new(self.clone())
    }
}

/// A dependency failed.
#[derive(Debug)]
pub struct Failure {
    /// Who has to act.
    pub class: Class,
    /// The cause.
    pub source: crate::error::Cause,
}

impl<E: Classify + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            class: error.class(),
            source: Box::new(error),
        }
    }
}

/// Issues the certificates with which agents show on the bus who they are.
pub trait AgentTrust: Send + Sync {
    /// A client certificate with the common name `<agent>.agent.bosh-internal`, and the CA of the bus's server.
    /// Asked again for the same agent, another certificate is as good.
    fn issue(&self, agent: AgentId) -> BoxFuture<'_, Result<MbusCert, Failure>>;
}

/// A variable to be generated.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateVariable {
    /// Name as written in the manifest: relative to the deployment unless it begins with `/`.
    pub name: String,
    /// `certificate`, `password`, …
    pub kind: String,
    /// The generator's options.
    pub options: Value,
    /// `no-overwrite`, `overwrite` or `converge`.
    pub mode: String,
}

/// Values of variables by name and version.
pub trait Variables: Send + Sync {
    /// Generates a value by mode and gives the id of the version that counts.
    fn generate<'a>(
        &'a self,
        deployment: &'a str,
        variable: &'a GenerateVariable,
    ) -> BoxFuture<'a, Result<CredentialId, Failure>>;
    /// The newest version of a variable that nobody declared, if there is one. Names as in [`GenerateVariable::name`].
    fn find<'a>(
        &'a self,
        deployment: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<CredentialId>, Failure>>;
    /// The value of a version: a text, or an object with the parts of a certificate, key or user. It holds secrets.
    fn value(&self, id: CredentialId) -> BoxFuture<'_, Result<Value, Failure>>;
    /// The absolute name of a name as written.
    fn absolute_name(&self, deployment: &str, name: &str) -> String;
}
