//! The client of port 9021.

use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use stolos_base::Secret;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{
    BackupRun, Certificate, Cluster, ClusterBackup, ClusterBackups, ClusterRequest, Info, Metered, Operation,
    Page, PageOf, Plan, PreCheck, Preview, Quota, QuotaChange, RestoreRequest, Room, TaskInfo,
    TransferRequest, UpdateParameters, UpgradeClusters, Usage,
};
use crate::http::{self, Error};

/// Which profiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProfileKind {
    /// [`super::Profile`], made by [`super::ProfileRequest`].
    Network,
    /// The same types.
    Compute,
    /// [`super::KubernetesProfile`], made by [`super::KubernetesProfileRequest`].
    Kubernetes,
}

impl ProfileKind {
    /// The last part of the path of all of them.
    fn segment(self) -> &'static str {
        match self {
            Self::Network => "network-profiles",
            Self::Compute => "compute-profiles",
            Self::Kubernetes => "kubernetes-profiles",
        }
    }
}

/// Header of answers to create and delete requests: the operation's id.
const OPERATION_HEADER: &str = "x-stolos-operation";

/// Header of answers to create and update requests: what of the request has no effect.
const NOT_APPLIED_HEADER: &str = "x-stolos-not-applied";

/// What a request began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Begun {
    /// Id of the operation; none from a server that does not say it.
    pub operation: Option<String>,
    /// What of the request was taken and has no effect on the installation's infrastructure.
    pub not_applied: Vec<String>,
}

/// Talks to one installation, as one person. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    base: String,
    http: reqwest::Client,
    token: Secret<String>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client for `base` (`https://HOST:9021`). An empty token is for [`Client::info`] only.
    #[must_use]
    pub fn new(base: &str, http: reqwest::Client, token: Secret<String>) -> Self {
        Self {
            base: base.trim_end_matches('/').to_owned(),
            http,
            token,
        }
    }

    /// What the server says about itself; needs no token.
    ///
    /// # Errors
    /// See [`Error`]; so for all methods.
    pub async fn info(&self) -> Result<Info, Error> {
        http::json(self.http.get(format!("{}/stolos/v1/info", self.base))).await
    }

    /// The plans on offer.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn plans(&self) -> Result<Vec<Plan>, Error> {
        http::json(self.request(Method::GET, &["v1", "plans"])).await
    }

    /// What there is room for.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn room(&self) -> Result<Room, Error> {
        http::json(self.request(Method::GET, &["stolos", "v1", "room"])).await
    }

    /// The clusters that the caller may see.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn clusters(&self) -> Result<Vec<Cluster>, Error> {
        http::json(self.request(Method::GET, &["v1", "clusters"])).await
    }

    /// One cluster.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cluster(&self, name: &str) -> Result<Cluster, Error> {
        http::json(self.request(Method::GET, &["v1", "clusters", name])).await
    }

    /// Asks for a cluster; gives it as accepted, and what was begun.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_cluster(&self, request: &ClusterRequest) -> Result<(Cluster, Begun), Error> {
        let response = http::send(self.request(Method::POST, &["v1", "clusters"]).json(request)).await?;
        let begun = begun(&response);
        let url = response.url().path().to_owned();
        let cluster = response.json().await.map_err(|source| Error::BadReply {
            url,
            source: source.into(),
        })?;
        Ok((cluster, begun))
    }

    /// What a request for a cluster would do.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn preview_create(&self, request: &ClusterRequest) -> Result<Preview, Error> {
        let asked = self.request(Method::POST, &["v1", "clusters"]).json(request);
        http::json(asked.query(&[("dry_run", "true")])).await
    }

    /// What a change of a cluster would do.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn preview_update(&self, name: &str, change: &UpdateParameters) -> Result<Preview, Error> {
        let asked = self
            .request(Method::PATCH, &["v1", "clusters", name])
            .json(change);
        http::json(asked.query(&[("dry_run", "true")])).await
    }

    /// One cluster with its settings.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cluster_details(&self, name: &str) -> Result<Cluster, Error> {
        http::json(self.request(Method::GET, &["v1", "clusterdetails", name])).await
    }

    /// Asks for a change of a cluster.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn update_cluster(&self, name: &str, change: &UpdateParameters) -> Result<Begun, Error> {
        let request = self
            .request(Method::PATCH, &["v1", "clusters", name])
            .json(change);
        Ok(begun(&http::send(request).await?))
    }

    /// Asks for a cluster's end; gives the operation's id.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_cluster(&self, name: &str) -> Result<Option<String>, Error> {
        let response = http::send(self.request(Method::DELETE, &["v1", "clusters", name])).await?;
        Ok(begun(&response).operation)
    }

    /// A kubeconfig with a fresh identity.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn bind(&self, cluster: &str) -> Result<Value, Error> {
        http::json(self.request(Method::POST, &["v1", "clusters", cluster, "binds"])).await
    }

    /// A kubeconfig for the caller, a person, without rights of its own in the cluster: tokens have to be filled in.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn bind_person(&self, cluster: &str, user: &str) -> Result<Value, Error> {
        let request = self.request(Method::GET, &["v1", "clusters", cluster, "binds", user]);
        http::json(request.query(&[("suppress_cluster_role_binding", "true")])).await
    }

    /// The certificates of a cluster that end within so many days.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn certificates(&self, cluster: &str, days: i64) -> Result<Vec<Certificate>, Error> {
        let request = self.request(Method::GET, &["v1", "clusters", cluster, "certificates"]);
        http::json(request.query(&[("days", days.to_string())])).await
    }

    /// Whether a cluster is well enough to be upgraded.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn pre_check(&self, cluster: &str) -> Result<PreCheck, Error> {
        http::json(self.request(Method::GET, &["stolos", "v1", "clusters", cluster, "pre-check"])).await
    }

    /// How the backups of all clusters stand.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn backups_of_all(&self) -> Result<Vec<ClusterBackups>, Error> {
        http::json(self.request(Method::GET, &["stolos", "v1", "cluster-backups"])).await
    }

    /// The backups of a cluster, oldest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cluster_backups(&self, cluster: &str) -> Result<Vec<ClusterBackup>, Error> {
        http::json(self.request(Method::GET, &["stolos", "v1", "clusters", cluster, "backups"])).await
    }

    /// Asks for a backup of a cluster.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn back_up_cluster(&self, cluster: &str) -> Result<BackupRun, Error> {
        http::json(self.request(Method::POST, &["stolos", "v1", "clusters", cluster, "backups"])).await
    }

    /// How the taking of a backup stands; answers when something happens in it, at the latest after `wait`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn backup_run(&self, id: &str, wait: Duration) -> Result<BackupRun, Error> {
        let request = self.request(Method::GET, &["stolos", "v1", "backup-runs", id]);
        http::json(request.query(&[("wait_ms", wait.as_millis().to_string())])).await
    }

    /// Stops the taking of a backup.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cancel_backup(&self, id: &str) -> Result<(), Error> {
        let request = self.request(Method::POST, &["stolos", "v1", "backup-runs", id, "cancel"]);
        http::send(request).await.map(drop)
    }

    /// Reads a backup of a cluster back; `latest` is the newest.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn verify_cluster_backup(&self, cluster: &str, id: &str) -> Result<ClusterBackup, Error> {
        let path = ["stolos", "v1", "clusters", cluster, "backups", id, "verify"];
        http::json(self.request(Method::POST, &path)).await
    }

    /// Asks for the contents of a backup in place of those that a cluster has; gives the operation's id.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn restore_cluster(&self, cluster: &str, backup: &str) -> Result<Option<String>, Error> {
        let request = self.request(Method::POST, &["stolos", "v1", "clusters", cluster, "restore"]);
        let body = RestoreRequest {
            backup: backup.to_owned(),
        };
        Ok(begun(&http::send(request.json(&body)).await?).operation)
    }

    /// Asks for a cluster to be stopped; gives the operation's id.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stop_cluster(&self, cluster: &str) -> Result<Option<String>, Error> {
        let request = self.request(Method::POST, &["stolos", "v1", "clusters", cluster, "stop"]);
        Ok(begun(&http::send(request).await?).operation)
    }

    /// Asks for a cluster that was stopped to be started; gives the operation's id.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn start_cluster(&self, cluster: &str) -> Result<Option<String>, Error> {
        let request = self.request(Method::POST, &["stolos", "v1", "clusters", cluster, "start"]);
        Ok(begun(&http::send(request).await?).operation)
    }

    /// Gives a cluster to another owner; for administrators.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn transfer_cluster(&self, cluster: &str, owner: &str) -> Result<Cluster, Error> {
        let request = self.request(Method::POST, &["stolos", "v1", "clusters", cluster, "transfer"]);
        let body = TransferRequest {
            owner: owner.to_owned(),
        };
        http::json(request.json(&body)).await
    }

    /// The clusters of the person with this id, as on [`Client::cluster_page`].
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn clusters_of(&self, owner: &str) -> Result<Vec<Cluster>, Error> {
        let mut found = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let request = self.request(Method::GET, &["stolos", "v1", "clusters"]);
            let after_query = after.iter().map(|after| ("after", after.as_str()));
            let query: Vec<_> = std::iter::once(("owner", owner)).chain(after_query).collect();
            let page: Page<Cluster> = http::json(request.query(&query)).await?;
            found.extend(page.items);
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(found),
            }
        }
    }

    /// All quotas.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn quotas(&self) -> Result<Vec<Quota>, Error> {
        http::json(self.request(Method::GET, &["v1", "quotas"])).await
    }

    /// Makes a quota.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_quota(&self, quota: &Quota) -> Result<Quota, Error> {
        http::json(self.request(Method::POST, &["v1", "quotas"]).json(quota)).await
    }

    /// Changes the limits of a quota.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn update_quota(&self, owner: &str, change: &QuotaChange) -> Result<Quota, Error> {
        let request = self.request(Method::PATCH, &["v1", "quotas", owner]);
        http::json(request.json(change)).await
    }

    /// Deletes a quota: its owner has no limit from then on.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_quota(&self, owner: &str) -> Result<(), Error> {
        http::send(self.request(Method::DELETE, &["v1", "quotas", owner]))
            .await
            .map(drop)
    }

    /// What all owners have that the caller may see.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn usages(&self) -> Result<Vec<Usage>, Error> {
        http::json(self.request(Method::GET, &["v1", "usages"])).await
    }

    /// Asks for new certificates of a cluster; gives the operation's id.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn rotate_certificates(&self, cluster: &str) -> Result<Option<String>, Error> {
        let request = self.request(Method::POST, &["v1", "clusters", cluster, "certificates"]);
        Ok(begun(&http::send(request).await?).operation)
    }

    /// All profiles of a kind that the caller may see.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn profiles<T: DeserializeOwned>(&self, kind: ProfileKind) -> Result<Vec<T>, Error> {
        http::json(self.request(Method::GET, &["v1", kind.segment()])).await
    }

    /// One profile.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn profile<T: DeserializeOwned>(&self, kind: ProfileKind, name: &str) -> Result<T, Error> {
        http::json(self.request(Method::GET, &["v1", kind.segment(), name])).await
    }

    /// Makes a profile.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_profile<T: DeserializeOwned>(
        &self,
        kind: ProfileKind,
        request: &(impl Serialize + Sync),
    ) -> Result<T, Error> {
        http::json(self.request(Method::POST, &["v1", kind.segment()]).json(request)).await
    }

    /// Deletes a profile.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_profile(&self, kind: ProfileKind, name: &str) -> Result<(), Error> {
        http::send(self.request(Method::DELETE, &["v1", kind.segment(), name]))
            .await
            .map(drop)
    }

    /// Asks for an upgrade of clusters.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn upgrade_clusters(&self, request: &UpgradeClusters) -> Result<TaskInfo, Error> {
        http::json(self.request(Method::PATCH, &["v1", "clusters"]).json(request)).await
    }

    /// The newest upgrade tasks, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn tasks(&self, limit: u32) -> Result<Vec<TaskInfo>, Error> {
        let request = self.request(Method::GET, &["v1", "tasks"]);
        http::json(request.query(&[("limit", limit.to_string())])).await
    }

    /// One upgrade task; answers when something happens in it, at the latest after `wait`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn task(&self, id: &str, wait: Duration) -> Result<TaskInfo, Error> {
        let request = self.request(Method::GET, &["v1", "tasks", id]);
        http::json(request.query(&[("wait_ms", wait.as_millis().to_string())])).await
    }

    /// Leaves alone those clusters of a task that are still pending.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cancel_task(&self, id: &str) -> Result<(), Error> {
        http::send(self.request(Method::PUT, &["v1", "tasks", id]))
            .await
            .map(drop)
    }

    /// The version that clusters can go to.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn upgradable(&self) -> Result<String, Error> {
        http::json(self.request(Method::GET, &["v1", "upgradable"])).await
    }

    /// How large clusters were between two times (RFC 3339); the last 30 days unless said.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn metering(&self, from: Option<&str>, to: Option<&str>) -> Result<Vec<Metered>, Error> {
        let request = self.request(Method::GET, &["stolos", "v1", "metering"]);
        let times = [("from", from), ("to", to)];
        let given: Vec<(&str, &str)> = times
            .into_iter()
            .filter_map(|(name, time)| Some((name, time?)))
            .collect();
        http::json(request.query(&given)).await
    }

    /// A page of the clusters that the caller may see, by name; `search` is part of a name, host or owner.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cluster_page(&self, search: Option<&str>, page: PageOf<'_>) -> Result<Page<Cluster>, Error> {
        let request = self.request(Method::GET, &["stolos", "v1", "clusters"]);
        let search = search.map(|search| ("search", search.to_owned()));
        http::json(request.query(&page.query()).query(&Vec::from_iter(search))).await
    }

    /// The newest operations, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn operations(&self, cluster: Option<&str>) -> Result<Vec<Operation>, Error> {
        let page = self.operation_page(cluster, PageOf::default()).await?;
        Ok(page.items)
    }

    /// A page of operations, newest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn operation_page(
        &self,
        cluster: Option<&str>,
        page: PageOf<'_>,
    ) -> Result<Page<Operation>, Error> {
        let request = self.request(Method::GET, &["stolos", "v1", "operations"]);
        let request = request.query(&[("cluster", cluster.unwrap_or_default())]);
        http::json(request.query(&page.query())).await
    }

    /// One operation; answers when something happens in it, at the latest after `wait`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn operation(&self, id: &str, wait: Duration) -> Result<Operation, Error> {
        let request = self.request(Method::GET, &["stolos", "v1", "operations", id]);
        http::json(request.query(&[("wait_ms", wait.as_millis().to_string())])).await
    }

    /// Asks an operation to stop.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cancel_operation(&self, id: &str) -> Result<(), Error> {
        http::send(self.request(Method::POST, &["stolos", "v1", "operations", id, "cancel"]))
            .await
            .map(drop)
    }

    /// Names are encoded: whatever a person typed stays one segment of the path.
    fn request(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        for segment in segments {
            url.push_str(&format!("/{}", http::encoded(segment)));
        }
        self.http.request(method, url).bearer_auth(self.token.expose())
    }
}

fn begun(response: &reqwest::Response) -> Begun {
    let text = |name| response.headers().get(name)?.to_str().ok();
    Begun {
        operation: text(OPERATION_HEADER).map(str::to_owned),
        not_applied: text(NOT_APPLIED_HEADER)
            .into_iter()
            .flat_map(|list| list.split(", "))
            .map(str::to_owned)
            .collect(),
    }
}
