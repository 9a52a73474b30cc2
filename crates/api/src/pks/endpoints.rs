//! The table of what port 9021 answers, for those who describe and who test it.

/// One method of one path.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// HTTP method, lower-case.
    pub method: &'static str,
    /// Path, with `{parameters}`.
    pub path: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// Whether one who may only read is refused.
    pub changes: bool,
    /// Parameters of the query.
    pub query: &'static [&'static str],
    /// Type of the request's body.
    pub request: Option<&'static str>,
    /// Status of success.
    pub status: u16,
    /// Type of the answer's body; `[T]` is a list.
    pub response: Option<&'static str>,
}

impl Endpoint {
    const fn new(method: &'static str, path: &'static str, summary: &'static str) -> Self {
        Self {
            method,
            path,
            summary,
            changes: false,
            query: &[],
            request: None,
            status: 200,
            response: None,
        }
    }

    const fn query(mut self, query: &'static [&'static str]) -> Self {
        self.query = query;
        self
    }

    const fn changes(mut self) -> Self {
        self.changes = true;
        self
    }

    const fn takes(mut self, request: &'static str) -> Self {
        self.request = Some(request);
        self
    }

    const fn gives(mut self, status: u16, response: &'static str) -> Self {
        self.status = status;
        self.response = Some(response);
        self
    }

    const fn ends(mut self, status: u16) -> Self {
        self.status = status;
        self
    }
}

const fn get(path: &'static str, summary: &'static str) -> Endpoint {
    Endpoint::new("get", path, summary)
}
const fn post(path: &'static str, summary: &'static str) -> Endpoint {
    Endpoint::new("post", path, summary).changes()
}
const fn patch(path: &'static str, summary: &'static str) -> Endpoint {
    Endpoint::new("patch", path, summary).changes()
}
const fn put(path: &'static str, summary: &'static str) -> Endpoint {
    Endpoint::new("put", path, summary).changes()
}
const fn delete(path: &'static str, summary: &'static str) -> Endpoint {
    Endpoint::new("delete", path, summary).changes()
}

/// Everything that needs a token. `GET /stolos/v1/info` does not.
pub const ENDPOINTS: &[Endpoint] = &[
    get("/v1/clusters", "The clusters that the caller may see").gives(200, "[Cluster]"),
    post("/v1/clusters", "Make a cluster")
        .query(&["dry_run"])
        .takes("ClusterRequest")
        .gives(202, "Cluster"),
    patch("/v1/clusters", "Upgrade clusters")
        .takes("UpgradeClusters")
        .gives(202, "TaskInfo"),
    get("/v1/clusters/{name}", "One cluster").gives(200, "Cluster"),
    patch("/v1/clusters/{name}", "Change a cluster")
        .query(&["dry_run"])
        .takes("UpdateParameters")
        .ends(202),
    delete("/v1/clusters/{name}", "Delete a cluster").ends(204),
    get("/v1/clusterdetails/{name}", "One cluster with its settings").gives(200, "Cluster"),
    post("/v1/clusters/{name}/binds", "A kubeconfig for the caller").gives(201, "Kubeconfig"),
    get("/v1/clusters/{name}/binds/{user}", "A kubeconfig for a user")
        .query(&["suppress_cluster_role_binding"])
        .changes()
        .gives(200, "Kubeconfig"),
    get(
        "/v1/clusters/{name}/certificates",
        "The certificates of a cluster",
    )
    .query(&["days"])
    .gives(200, "[Certificate]"),
    get(
        "/stolos/v1/clusters/{name}/pre-check",
        "Whether a cluster is well enough to be upgraded",
    )
    .gives(200, "PreCheck"),
    get(
        "/stolos/v1/cluster-backups",
        "How the backups of all clusters stand that the caller may see, gone ones included",
    )
    .gives(200, "[ClusterBackups]"),
    get(
        "/stolos/v1/clusters/{name}/backups",
        "The backups of a cluster, oldest first; the name or id of one that is gone will do",
    )
    .gives(200, "[ClusterBackup]"),
    post("/stolos/v1/clusters/{name}/backups", "Take a backup of a cluster's etcd").gives(202, "BackupRun"),
    post(
        "/stolos/v1/clusters/{name}/backups/{id}/verify",
        "Read a backup of a cluster back and check it; `latest` is the newest",
    )
    .gives(200, "ClusterBackup"),
    get("/stolos/v1/backup-runs/{id}", "One taking of a cluster's backup")
        .query(&["wait_ms"])
        .gives(200, "BackupRun"),
    post("/stolos/v1/backup-runs/{id}/cancel", "Stop the taking of a backup").ends(202),
    post(
        "/stolos/v1/clusters/{name}/restore",
        "Give a cluster the contents of one of its backups",
    )
    .takes("RestoreRequest")
    .ends(202),
    post(
        "/stolos/v1/clusters/{name}/stop",
        "Stop everything that runs on a cluster's machines; machines and disks stay",
    )
    .ends(202),
    post(
        "/stolos/v1/clusters/{name}/transfer",
        "Give a cluster to another owner",
    )
    .takes("TransferRequest")
    .gives(200, "Cluster"),
    post(
        "/stolos/v1/clusters/{name}/start",
        "Start a cluster that was stopped",
    )
    .ends(202),
    post(
        "/v1/clusters/{name}/certificates",
        "Make a cluster's certificates anew, but for its authorities",
    )
    .ends(202),
    get("/v1/plans", "The plans on offer").gives(200, "[Plan]"),
    get("/stolos/v1/room", "What there is room for").gives(200, "Room"),
    get("/v1/network-profiles", "All network profiles").gives(200, "[Profile]"),
    post("/v1/network-profiles", "Make a network profile")
        .takes("ProfileRequest")
        .gives(201, "Profile"),
    get("/v1/network-profiles/{name}", "One network profile").gives(200, "Profile"),
    delete("/v1/network-profiles/{name}", "Delete a network profile").ends(204),
    get("/v1/compute-profiles", "All compute profiles").gives(200, "[Profile]"),
    post("/v1/compute-profiles", "Make a compute profile")
        .takes("ProfileRequest")
        .gives(201, "Profile"),
    get("/v1/compute-profiles/{name}", "One compute profile").gives(200, "Profile"),
    delete("/v1/compute-profiles/{name}", "Delete a compute profile").ends(204),
    get(
        "/v1/kubernetes-profiles",
        "The Kubernetes profiles that the caller may see",
    )
    .gives(200, "[KubernetesProfile]"),
    post("/v1/kubernetes-profiles", "Make a Kubernetes profile")
        .takes("KubernetesProfileRequest")
        .gives(201, "KubernetesProfile"),
    get("/v1/kubernetes-profiles/{name}", "One Kubernetes profile").gives(200, "KubernetesProfile"),
    delete("/v1/kubernetes-profiles/{name}", "Delete a Kubernetes profile").ends(204),
    get("/v1/quotas", "All quotas").changes().gives(200, "[Quota]"),
    post("/v1/quotas", "Make a quota")
        .takes("Quota")
        .gives(201, "Quota"),
    get("/v1/quotas/{owner}", "The quota of an owner")
        .changes()
        .gives(200, "Quota"),
    patch("/v1/quotas/{owner}", "Change a quota")
        .takes("QuotaChange")
        .gives(200, "Quota"),
    delete("/v1/quotas/{owner}", "Delete a quota").ends(204),
    get("/v1/usages", "What owners have").gives(200, "[Usage]"),
    get("/v1/usages/{owner}", "What an owner has").gives(200, "Usage"),
    get("/v1/tasks", "The newest upgrades of clusters")
        .query(&["limit"])
        .gives(200, "[TaskInfo]"),
    get("/v1/tasks/{id}", "One upgrade of clusters")
        .query(&["wait_ms"])
        .gives(200, "TaskInfo"),
    put(
        "/v1/tasks/{id}",
        "Leave alone those clusters of an upgrade whose turn has not come",
    )
    .ends(200),
    get("/v1/upgradable", "The version that clusters can go to").gives(200, "Version"),
    get(
        "/stolos/v1/metering",
        "How large clusters were for how long, gone ones included",
    )
    .query(&["from", "to"])
    .gives(200, "[Metered]"),
    get(
        "/stolos/v1/clusters",
        "The clusters that the caller may see, by name and page by page; `search` is part of a name, host or owner, `owner` the id of a user",
    )
    .query(&["limit", "after", "search", "owner"])
    .gives(200, "ClusterPage"),
    get(
        "/stolos/v1/operations",
        "What was asked of clusters, newest first and page by page",
    )
    .query(&["cluster", "limit", "after"])
    .gives(200, "OperationPage"),
    get("/stolos/v1/operations/{id}", "One operation with its steps")
        .query(&["wait_ms"])
        .gives(200, "Operation"),
    post("/stolos/v1/operations/{id}/cancel", "Stop an operation").ends(202),
];
