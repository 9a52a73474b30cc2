//! What the product can say no with. HTTP statuses come from the class, in one place.

use stolos_base::{Class, Classify};

use crate::model::Invalid;

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A request or an operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name or host is malformed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A field is missing, unknown or of the wrong kind.
    #[error("{0}")]
    Request(String),
    /// No such plan. The words `Plan Not Found` are PKS's.
    #[error("Plan Not Found: there is no plan `{name}`")]
    NoPlan {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Nothing is built for a plan's Kubernetes version.
    #[error("plan `{plan}` has Kubernetes {version}, which is not built; built are {built}")]
    NotBuilt {
        /// The plan.
        plan: String,
        /// Its version.
        version: String,
        /// Those that are built, joined by commas.
        built: String,
    },
    /// No such profile, or one that the caller may not see.
    #[error("{kind} `{name}` not found")]
    NoProfile {
        /// Which kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// There is one of that name.
    #[error("there is a {kind} `{name}` already")]
    ProfileTaken {
        /// Which kind.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Clusters have the profile.
    #[error("{kind} `{name}` is in use by {}", clusters.join(", "))]
    ProfileInUse {
        /// Which kind.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The clusters that have it.
        clusters: Vec<String>,
    },
    /// A registry is malformed.
    #[error(transparent)]
    Registry(#[from] crate::registries::Invalid),
    /// A configuration makes no sense.
    #[error(transparent)]
    ConfigFile(#[from] crate::config_file::Invalid),
    /// The cluster is made of older parts than those that know what is asked.
    #[error(
        "cluster `{cluster}` has to be upgraded first: it is made of an older release, on which only the number of workers can change"
    )]
    Behind {
        /// The cluster.
        cluster: String,
    },
    /// Nothing runs on its machines.
    #[error("cluster `{cluster}` is stopped")]
    Stopped {
        /// The cluster.
        cluster: String,
    },
    /// There is nothing newer.
    #[error("cluster `{cluster}` is up to date (Kubernetes {version})")]
    UpToDate {
        /// The cluster.
        cluster: String,
        /// Its version.
        version: String,
    },
    /// Kubernetes goes one minor version at a time, and never back.
    #[error(
        "cluster `{cluster}` has Kubernetes {from} and cannot go to {to} at once: one minor version at a time, and never back"
    )]
    Skew {
        /// The cluster.
        cluster: String,
        /// Its version.
        from: String,
        /// That of its plan.
        to: String,
    },
    /// The cluster's API servers do not trust the token service.
    #[error("cluster `{cluster}` does not know people of this installation: {why}")]
    NotPersonal {
        /// The cluster.
        cluster: String,
        /// Why.
        why: String,
    },
    /// No place for backups of clusters is configured.
    #[error("this installation keeps no backups of clusters")]
    NoBackups,
    /// No such backup of a cluster, or no such taking of one, or one that the caller may not see.
    #[error("cluster backup `{0}` not found")]
    NoBackup(String),
    /// A backup is damaged, or was encrypted with another key.
    #[error("the backup cannot be used: {0}")]
    BadBackup(String),
    /// One at a time for each cluster.
    #[error("a backup of cluster `{cluster}` is being taken already")]
    BackingUp {
        /// The cluster.
        cluster: String,
    },
    /// A backup cannot become a cluster's contents.
    #[error("backup `{backup}` cannot be restored into cluster `{cluster}`: {problem}")]
    Unfit {
        /// The backup.
        backup: String,
        /// The cluster.
        cluster: String,
        /// What stands against it.
        problem: String,
    },
    /// No such task, or one that the caller may not see.
    #[error("task `{0}` not found")]
    NoTask(String),
    /// The number of workers is outside of the plan's range.
    #[error("number of worker nodes {asked} is not between 1 and {most}, the maximum of plan `{plan}`")]
    WorkerCount {
        /// What was asked for.
        asked: i64,
        /// The plan's maximum.
        most: u32,
        /// The plan.
        plan: String,
    },
    /// The cluster's machines together are larger than what the host has left.
    #[error("the cluster needs {needed_mib} MiB of memory, and there are {free_mib} MiB for it")]
    DoesNotFit {
        /// Sum of the machines' memory.
        needed_mib: u64,
        /// What it may have.
        free_mib: u64,
    },
    /// One number does not say how many workers each pool has.
    #[error("the workers of cluster `{cluster}` are in the node pools {}, each of which has a number of its own", pools.join(", "))]
    InPools {
        /// The cluster.
        cluster: String,
        /// Its pools.
        pools: Vec<String>,
    },
    /// One machine is larger than the host.
    #[error("a machine of plan `{plan}` has {cpus} processors, but this host has {host}")]
    TooManyProcessors {
        /// The plan.
        plan: String,
        /// The machine's processors.
        cpus: u32,
        /// The host's.
        host: u32,
    },
    /// No such cluster, or one that the caller may not see. The words are PKS's.
    #[error("Cluster {0} not found")]
    NoCluster(String),
    /// No such operation, or one that the caller may not see.
    #[error("operation `{0}` not found")]
    NoOperation(String),
    /// The name is taken.
    #[error("cluster name `{0}` is already in use")]
    NameTaken(String),
    /// The name is that of a cluster of the caller's that could not be made.
    #[error("cluster name `{0}` is already in use by your cluster of that name, which could not be made")]
    HalfMade(String),
    /// The host name is taken.
    #[error("external hostname `{0}` is already in use by another cluster")]
    HostnameTaken(String),
    /// One request at a time for each cluster. The words are those of PKS's broker.
    #[error("An operation is in progress for your service instance. Please try again later.")]
    Busy {
        /// The cluster.
        cluster: String,
    },
    /// A tag is malformed.
    #[error(transparent)]
    Tag(#[from] crate::settings::InvalidTag),
    /// What is asked does not go with the cluster's state.
    #[error("cluster `{cluster}` is being deleted, or half deleted; nothing but deleting it is possible")]
    HalfDeleted {
        /// The cluster.
        cluster: String,
    },
    /// The owner of a quota is not known.
    #[error("there is no quota for `{0}`")]
    NoQuota(String),
    /// Nobody has the name.
    #[error("there is no user `{0}`")]
    NoPerson(String),
    /// The owner has a quota already.
    #[error("there is a quota for `{0}` already")]
    QuotaTaken(String),
    /// The request would bring the owner above a limit.
    #[error(
        "the quota of `{owner}` allows {what} {limit}{unit}, but with this request it would be {wanted}{unit}"
    )]
    OverQuota {
        /// Whose quota.
        owner: String,
        /// Which limit.
        what: &'static str,
        /// The unit of the numbers.
        unit: &'static str,
        /// What it would be.
        wanted: String,
        /// The limit.
        limit: String,
    },
    /// Machines would go that have data on their disks which is nowhere else.
    #[error("with the machines that go, cluster `{cluster}` loses the data of the volumes {}", volumes.join(", "))]
    LosesVolumes {
        /// The cluster.
        cluster: String,
        /// `NAMESPACE/CLAIM on NODE` of each.
        volumes: Vec<String>,
    },
    /// The cluster has no API yet, or none any more.
    #[error("cluster `{cluster}` cannot give credentials while its last action {action} is {state}")]
    NotReady {
        /// The cluster.
        cluster: String,
        /// Its last action.
        action: &'static str,
        /// How that stands.
        state: &'static str,
    },
    /// Nobody is logged in.
    #[error("you are not currently authenticated")]
    Unauthenticated(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The caller's scopes do not suffice. The words are PKS's.
    #[error(
        "You do not have enough privileges to perform this action. Please contact the PKS administrator."
    )]
    Denied,
    /// The database did not do as asked.
    #[error("failed to {what}")]
    Database {
        /// The transaction.
        what: &'static str,
        /// The cause.
        #[source]
        source: stolos_store::Error,
    },
    /// What was stored cannot be read back.
    #[error("failed to read stored {what}")]
    Stored {
        /// What it was.
        what: &'static str,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another service of ours failed.
    #[error("failed to {what}")]
    Service {
        /// What was asked of it.
        what: String,
        /// Whether asking again may help.
        retryable: bool,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Another service failed.
    pub fn service<E: Classify + Send + Sync + 'static>(what: impl Into<String>, source: E) -> Self {
        Self::Service {
            what: what.into(),
            retryable: source.retryable(),
            source: Box::new(source),
        }
    }

    /// The database failed.
    pub fn database(what: &'static str) -> impl FnOnce(stolos_store::Error) -> Self {
        move |source| Self::Database { what, source }
    }
}

impl Error {
    /// A word that programs tell the error by, where they have something to do about it.
    pub(crate) fn code(&self) -> Option<&'static str> {
        match self {
            Self::UpToDate { .. } => Some(stolos_api::pks::UP_TO_DATE),
            Self::LosesVolumes { .. } => Some(stolos_api::pks::LOSES_VOLUMES),
            _ => None,
        }
    }
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Invalid(_)
            | Self::Request(_)
            | Self::Tag(_)
            | Self::Registry(_)
            | Self::ConfigFile(_)
            | Self::NoPlan { .. }
            | Self::WorkerCount { .. }
            | Self::DoesNotFit { .. }
            | Self::InPools { .. }
            | Self::OverQuota { .. }
            | Self::TooManyProcessors { .. } => Class::User,
            Self::NoCluster(_)
            | Self::NoOperation(_)
            | Self::NoQuota(_)
            | Self::NoPerson(_)
            | Self::NoTask(_)
            | Self::NoBackup(_)
            | Self::NoProfile { .. } => Class::NotFound,
            Self::QuotaTaken(_)
            | Self::NameTaken(_)
            | Self::HalfMade(_)
            | Self::HostnameTaken(_)
            | Self::Busy { .. }
            | Self::NotReady { .. }
            | Self::LosesVolumes { .. }
            | Self::NotBuilt { .. }
            | Self::ProfileTaken { .. }
            | Self::ProfileInUse { .. }
            | Self::Behind { .. }
            | Self::Stopped { .. }
            | Self::NotPersonal { .. }
            | Self::UpToDate { .. }
            | Self::Skew { .. }
            | Self::NoBackups
            | Self::BadBackup(_)
            | Self::BackingUp { .. }
            | Self::Unfit { .. }
            | Self::HalfDeleted { .. } => Class::Conflict,
            Self::Unauthenticated(_) => Class::Unauthenticated,
            Self::Denied => Class::Denied,
            Self::Database { source, .. } => source.class(),
            Self::Stored { .. } => Class::Internal,
            Self::Service { retryable: true, .. } => Class::Unavailable,
            Self::Service { .. } => Class::Internal,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::NoPlan { known, .. } => vec![format!("The plans are: {}.", known.join(", "))],
            Self::NotBuilt { .. } => vec!["`stolos up` builds the versions that the plans name.".to_owned()],
            Self::Behind { cluster } => vec![format!("Upgrade it with `stolos upgrade-cluster {cluster}`.")],
            Self::HalfMade(cluster) => vec![format!(
                "Go on with it by `stolos update-cluster {cluster}`, or delete it first with `stolos delete-cluster {cluster}`."
            )],
            Self::Stopped { cluster } => vec![format!("Start it with `stolos start-cluster {cluster}`.")],
            Self::NotPersonal { cluster, .. } => vec![format!(
                "Use `get-credentials {cluster}`, which needs none of that; where the operator's `oidc` is on, any `update-cluster` makes the cluster trust the token service."
            )],
            Self::ProfileInUse { clusters, .. } => vec![format!(
                "Give {} another profile with `update-cluster`, or delete {} first.",
                clusters.join(", "),
                if clusters.len() == 1 { "it" } else { "them" }
            )],
            Self::InPools { pools, .. } => {
                let numbers: Vec<String> = pools.iter().map(|pool| format!("{pool}:N")).collect();
                vec![format!(
                    "Name the number of each that changes: `--node-pool-instances \"{}\"`.",
                    numbers.join(",")
                )]
            }
            Self::DoesNotFit { .. } => {
                vec![
                    "Take a smaller plan or fewer nodes, or delete a cluster that is not needed any more."
                        .to_owned(),
                ]
            }
            Self::OverQuota { .. } => vec![
                "Take fewer or smaller nodes, delete a cluster that is not needed any more, or ask an administrator for a larger quota."
                    .to_owned(),
            ],
            Self::Busy { cluster } => {
                vec![format!(
                    "See what it does with `stolos operations --cluster {cluster} --follow`."
                )]
            }
            Self::NoBackups => vec![
                "An operator names a place for them in `backup` of config.yml; docs/backup.md says how.".to_owned(),
            ],
            Self::NoBackup(_) | Self::BadBackup(_) => {
                vec!["`stolos cluster-backups NAME` lists those of a cluster.".to_owned()]
            }
            Self::NotReady { cluster, .. } => {
                vec![format!(
                    "Follow it with `stolos operations --cluster {cluster} --follow`."
                )]
            }
            _ => Vec::new(),
        }
    }
}
