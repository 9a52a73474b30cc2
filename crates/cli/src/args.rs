//! The words of the command line.

mod backups;
mod clusters;
mod director;
mod users;

use camino::Utf8PathBuf;
use clap::{Args, Parser, Subcommand};

pub(crate) use backups::{BackUpCluster, ClusterBackups, RestoreCluster, VerifyClusterBackup};
pub(crate) use clusters::{
    Certificates, Create, Credentials, Delete, GetKubeconfig, Given, Going, List, LoadImage, Metering,
    Operations, Power, Resize, RotateCertificates, Show, Task, Tasks, TransferCluster, Update, UpgradeMany,
    UpgradeOne,
};
pub(crate) use director::{CancelDirectorTask, Configs, DeleteConfig, DeleteDisk};
pub(crate) use users::{ChangePassword, ResetPassword};

/// Makes, heals and deletes Kubernetes clusters.
#[derive(Debug, Parser)]
#[command(name = "stolos", version, about, long_about = None, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Log in to a Stolos installation.
    #[command(
        after_help = "Examples:\n  stolos login -a 10.117.0.1 -u admin --ca-cert /var/lib/stolos/stolos/ca.pem\n  stolos login -a api.example.com -u admin -p \"$PASSWORD\" -k\n  stolos login -a api.example.com --sso-auto"
    )]
    Login(Login),
    /// Forget the session. The kubeconfig stays as it is.
    #[command(after_help = "Example:\n  stolos logout")]
    Logout,
    /// List the plans on offer.
    #[command(
        alias = "list-plans",
        after_help = "Examples:\n  stolos plans\n  stolos plans --json"
    )]
    Plans(Json),
    /// List clusters.
    #[command(
        alias = "list-clusters",
        after_help = "Examples:\n  stolos clusters\n  stolos clusters --watch"
    )]
    Clusters(List),
    /// Show one cluster.
    #[command(
        after_help = "Examples:\n  stolos cluster demo\n  stolos cluster demo --details\n  stolos cluster demo --watch"
    )]
    Cluster(Show),
    /// Make a cluster.
    #[command(
        after_help = "Examples:\n  stolos create-cluster demo -e demo.example.com -p small -n 2 --wait\n  stolos create-cluster demo -e demo.example.com -p small --dry-run\n  stolos create-cluster demo -e demo.example.com -p small --compute-profile pools --node-pool-instances \"web:3,batch:1\"\n  stolos create-cluster demo -e demo.example.com -p small --json --non-interactive\n  stolos create-cluster copy -e copy.example.com -p small --from-backup demo/20261121T235959Z-1f2e"
    )]
    CreateCluster(Create),
    /// Change a cluster: its size, profiles, proxies, registries, tags, how its nodes are drained.
    #[command(
        after_help = "Examples:\n  stolos update-cluster demo --num-nodes 3 --wait\n  stolos update-cluster demo --kubernetes-profile audit --dry-run\n  stolos update-cluster demo --kubelet-drain-timeout 5 --kubelet-drain-force-node true --non-interactive\n  stolos update-cluster demo --tags \"team:blue,stage:test\"\n  stolos update-cluster demo --tags \"\"   # removes all tags"
    )]
    UpdateCluster(Update),
    /// Change the number of a cluster's workers.
    #[command(
        after_help = "Examples:\n  stolos resize demo --num-nodes 3 --wait\n  stolos resize demo --node-pool-instances \"web:5\""
    )]
    Resize(Resize),
    /// Stop everything that runs in a cluster. Its machines, disks and addresses stay.
    #[command(
        after_help = "Examples:\n  stolos stop-cluster demo --wait\n  stolos stop-cluster demo --non-interactive --wait --json\n\nPods are ended, not moved; they come back with `stolos start-cluster`. All clusters of a host, and Stolos itself: stolos down."
    )]
    StopCluster(Power),
    /// Start a cluster that was stopped.
    #[command(after_help = "Example:\n  stolos start-cluster demo --wait")]
    StartCluster(Power),
    /// Give a cluster to another owner; for administrators.
    #[command(
        after_help = "Example:\n  stolos transfer-cluster demo --to cody\n\nNothing of the cluster is touched. The former owner's access ends within a minute."
    )]
    TransferCluster(TransferCluster),
    /// Delete a cluster and everything in it.
    #[command(after_help = "Example:\n  stolos delete-cluster demo --non-interactive --wait")]
    DeleteCluster(Delete),
    /// Take a backup of what is in a cluster: all that its etcd holds.
    #[command(
        name = "backup-cluster",
        after_help = "Examples:\n  stolos backup-cluster demo --wait\n  stolos backup-cluster demo --wait --json\n\nVolumes are not in it. Where backups go, and how often they are taken, an operator says in config.yml."
    )]
    BackUpCluster(BackUpCluster),
    /// List the backups of a cluster, or the last one of each.
    #[command(
        after_help = "Examples:\n  stolos cluster-backups\n  stolos cluster-backups demo\n  stolos cluster-backups demo --json"
    )]
    ClusterBackups(ClusterBackups),
    /// Read a backup of a cluster back and check it.
    #[command(
        after_help = "Examples:\n  stolos verify-cluster-backup demo\n  stolos verify-cluster-backup demo 20261121T235959Z-1f2e"
    )]
    VerifyClusterBackup(VerifyClusterBackup),
    /// Give a cluster the contents of one of its backups, in place of what it has.
    #[command(
        after_help = "Examples:\n  stolos restore-cluster demo --backup latest --wait\n  stolos restore-cluster demo --backup 20261121T235959Z-1f2e --non-interactive\n\nA new cluster with the contents of a backup: stolos create-cluster NEW ... --from-backup demo"
    )]
    RestoreCluster(RestoreCluster),
    /// Move a cluster to its plan's newest Kubernetes and release.
    #[command(
        after_help = "Examples:\n  stolos upgrade-cluster demo --wait\n  stolos upgrade-cluster demo --pre-check"
    )]
    UpgradeCluster(UpgradeOne),
    /// Move several clusters to their plans' newest Kubernetes and release.
    #[command(
        after_help = "Example:\n  stolos upgrade-clusters -c one,two,three --canaries one --max-in-flight 2 --wait"
    )]
    UpgradeClusters(UpgradeMany),
    /// Show an upgrade of clusters.
    #[command(after_help = "Example:\n  stolos task 7a1f3f3e-3c1e-4d0e-9d4f-0c6f7d0f3a11")]
    Task(Task),
    /// List upgrades of clusters.
    #[command(after_help = "Examples:\n  stolos tasks\n  stolos tasks --limit 50")]
    Tasks(Tasks),
    /// Stop an upgrade of clusters: those whose turn has not come are left alone.
    #[command(after_help = "Example:\n  stolos cancel-task 7a1f3f3e-3c1e-4d0e-9d4f-0c6f7d0f3a11")]
    CancelTask(Id),
    /// List the certificates of a cluster that end soon.
    #[command(after_help = "Examples:\n  stolos certificates demo\n  stolos certificates demo --days 3650")]
    Certificates(Certificates),
    /// Make a cluster's certificates anew, but for its authorities.
    #[command(
        alias = "rotate-certs",
        after_help = "Example:\n  stolos rotate-certificates demo --all --wait\n\nMasters are changed one after the other, then workers; kubeconfigs stay valid."
    )]
    RotateCertificates(RotateCertificates),
    /// Write a cluster's credentials into the kubeconfig and make it the current context.
    #[command(after_help = "Example:\n  stolos get-credentials demo && kubectl get nodes")]
    GetCredentials(Credentials),
    /// Write a kubeconfig under your own name, for a cluster in which somebody has given you rights. Needs no session.
    #[command(
        after_help = "Examples:\n  stolos get-kubeconfig demo -u naomi -a api.example.com --ca-cert ca.pem\n  stolos get-kubeconfig demo --sso-auto\n\nAn administrator gives rights to the user `oidc:naomi`:\n  kubectl create rolebinding naomi --clusterrole=edit --user=oidc:naomi -n web"
    )]
    GetKubeconfig(GetKubeconfig),
    /// Make a network profile.
    #[command(
        after_help = "Example:\n  stolos create-network-profile own-networks.json\n\nThe file:\n  {\"name\": \"own-networks\", \"description\": \"\", \"parameters\": {\"nodes_dns\": [\"10.0.0.53\"],\n   \"cni_configurations\": {\"type\": \"stolos\", \"parameters\": {\"pod_network\": \"172.20.0.0/16\", \"service_network\": \"10.96.0.0/20\"}}}}\n\nKeys of NSX-T are taken and named as not applied."
    )]
    CreateNetworkProfile(CreateProfile),
    /// List network profiles.
    #[command(after_help = "Example:\n  stolos network-profiles")]
    NetworkProfiles(Json),
    /// Show a network profile.
    #[command(after_help = "Example:\n  stolos network-profile own-networks")]
    NetworkProfile(Named),
    /// Delete a network profile that no cluster has.
    #[command(after_help = "Example:\n  stolos delete-network-profile own-networks --non-interactive")]
    DeleteNetworkProfile(DeleteProfile),
    /// Make a compute profile.
    #[command(
        after_help = "Example:\n  stolos create-compute-profile pools.json\n\nThe file:\n  {\"name\": \"pools\", \"description\": \"\", \"parameters\": {\"cluster_customization\": {\"node_pools\": [\n    {\"name\": \"web\", \"instances\": 2, \"node_labels\": \"tier=web\"},\n    {\"name\": \"batch\", \"instances\": 1, \"cpu\": 2, \"memory_in_mb\": 4096, \"ephemeral_disk_in_mb\": 16384, \"node_taints\": \"only=batch:NoSchedule\"}]}}}"
    )]
    CreateComputeProfile(CreateProfile),
    /// List compute profiles.
    #[command(after_help = "Example:\n  stolos compute-profiles")]
    ComputeProfiles(Json),
    /// Show a compute profile.
    #[command(after_help = "Example:\n  stolos compute-profile pools")]
    ComputeProfile(Named),
    /// Delete a compute profile that no cluster has.
    #[command(after_help = "Example:\n  stolos delete-compute-profile pools --non-interactive")]
    DeleteComputeProfile(DeleteProfile),
    /// Make a Kubernetes profile.
    #[command(
        alias = "create-k8s-profile",
        after_help = "Example:\n  stolos create-kubernetes-profile ports.json\n\nThe file:\n  {\"name\": \"ports\", \"description\": \"\", \"customizations\": [\n    {\"component\": \"kube-apiserver\", \"arguments\": {\"service-node-port-range\": \"30000-40000\"}}]}\n\nContents of files in `file-arguments`, such as encryption-provider-config, are kept encrypted and never shown."
    )]
    CreateKubernetesProfile(CreateProfile),
    /// List Kubernetes profiles.
    #[command(alias = "k8s-profiles", after_help = "Example:\n  stolos kubernetes-profiles")]
    KubernetesProfiles(Json),
    /// Show a Kubernetes profile.
    #[command(
        alias = "k8s-profile",
        after_help = "Example:\n  stolos kubernetes-profile ports"
    )]
    KubernetesProfile(Named),
    /// Delete a Kubernetes profile that no cluster has.
    #[command(
        alias = "delete-k8s-profile",
        after_help = "Example:\n  stolos delete-kubernetes-profile ports --non-interactive"
    )]
    DeleteKubernetesProfile(DeleteProfile),
    /// Give a container image to all nodes of a cluster, from an archive instead of a registry.
    #[command(
        after_help = "Example:\n  docker save my/app:1 -o app.tar && stolos load-image demo app.tar\n\nNodes that join later do not have the image; load it again for them."
    )]
    LoadImage(LoadImage),
    /// List users and their groups.
    #[command(after_help = "Example:\n  stolos users")]
    Users(Json),
    /// Make a user. A role is a group: pks.clusters.admin, pks.clusters.manage (own clusters only) or pks.clusters.admin.read.
    #[command(
        after_help = "Examples:\n  stolos create-user naomi --group pks.clusters.manage\n  stolos create-user naomi --group developers --password-file secret.txt\n\nWho is in no role cannot log in, but can have kubeconfigs with get-kubeconfig; groups are `oidc:GROUP` in clusters."
    )]
    CreateUser(CreateUser),
    /// Delete a user. Of one who owns clusters it is asked what becomes of them.
    #[command(
        after_help = "Examples:\n  stolos delete-user naomi\n  stolos delete-user naomi --clusters-to cody --non-interactive\n  stolos delete-user naomi --keep-clusters --non-interactive\n\nWithin a minute nothing of the user works any more. What the user made inside a cluster as its administrator stays there: other service accounts, certificates, role bindings."
    )]
    DeleteUser(DeleteUser),
    /// Make a group, for role bindings in clusters.
    #[command(after_help = "Example:\n  stolos create-group developers")]
    CreateGroup(Id),
    /// Delete a group. Its members lose what it allowed; role bindings for it in clusters stay.
    #[command(after_help = "Example:\n  stolos delete-group developers --non-interactive")]
    DeleteGroup(DeleteProfile),
    /// Put a user into a group.
    #[command(after_help = "Example:\n  stolos add-member pks.clusters.manage naomi")]
    AddMember(Member),
    /// Take a user out of a group.
    #[command(after_help = "Example:\n  stolos remove-member pks.clusters.manage naomi")]
    RemoveMember(Member),
    /// Change your own password. Your sessions elsewhere end.
    #[command(
        after_help = "Examples:\n  stolos change-password\n  stolos change-password --old-password-file old.txt --password-file new.txt"
    )]
    ChangePassword(ChangePassword),
    /// Give a user another password, as an administrator. The user's sessions end, and the account is unlocked.
    #[command(
        after_help = "Examples:\n  stolos reset-password naomi\n  stolos reset-password naomi --password-file secret.txt"
    )]
    ResetPassword(ResetPassword),
    /// Unlock an account that wrong passwords have locked, as an administrator.
    #[command(
        after_help = "Example:\n  stolos unlock-user naomi\n\nAn account is locked only for the addresses that the wrong passwords came from."
    )]
    UnlockUser(Id),
    /// List quotas of owners.
    #[command(after_help = "Examples:\n  stolos quotas\n  stolos quotas --json")]
    Quotas(Json),
    /// Limit what an owner's clusters may take together. Administrators are not limited.
    #[command(
        after_help = "Example:\n  stolos create-quota alice --cpu 16 --memory 32 --clusters 3\n\nWhat counts is the size of machines, not what pods use."
    )]
    CreateQuota(CreateQuota),
    /// Change the limits of an owner.
    #[command(after_help = "Example:\n  stolos update-quota alice --clusters 5")]
    UpdateQuota(ChangeQuota),
    /// Delete a quota: its owner has no limit from then on.
    #[command(after_help = "Example:\n  stolos delete-quota alice --non-interactive")]
    DeleteQuota(DeleteProfile),
    /// Show what owners' clusters take.
    #[command(after_help = "Example:\n  stolos usages")]
    Usages(Json),
    /// Show how large clusters were for how long, gone ones included: what can be billed.
    #[command(
        after_help = "Examples:\n  stolos metering\n  stolos metering --from 2026-10-01T00:00:00Z --to 2026-11-01T00:00:00Z --json"
    )]
    Metering(Metering),
    /// Show what was asked of clusters and how far it is.
    #[command(
        after_help = "Examples:\n  stolos operations --cluster demo\n  stolos operations --follow\n  stolos operations 01a1fe87-c523-7059-9df1-cbbe513005ba --cancel"
    )]
    Operations(Operations),
    /// Deploy a BOSH manifest with the director.
    #[command(
        after_help = "Example:\n  stolos deploy examples/etcd/manifest.yml --cloud-config examples/etcd/cloud-config.yml"
    )]
    Deploy(Deploy),
    /// List deployments.
    #[command(after_help = "Example:\n  stolos deployments")]
    Deployments(Json),
    /// Show the instances of a deployment.
    #[command(
        after_help = "Example:\n  stolos instances service-instance_01a1fdf4-667d-77ee-afb8-4a2431c97306"
    )]
    Instances(Named),
    /// Delete a deployment. Its persistent disks are kept for a while as orphaned disks.
    #[command(after_help = "Example:\n  stolos delete-deployment etcd --non-interactive --wait")]
    DeleteDeployment(Delete),
    /// Show the director's tasks, or follow one.
    #[command(after_help = "Examples:\n  stolos director-tasks\n  stolos director-tasks 7")]
    DirectorTasks(DirectorTasks),
    /// Ask a task of the director to end early. What it has done stays.
    #[command(after_help = "Example:\n  stolos cancel-director-task 7")]
    CancelDirectorTask(CancelDirectorTask),
    /// List the director's configs of a type: cloud or resurrection.
    #[command(after_help = "Examples:\n  stolos configs cloud\n  stolos configs cloud --json")]
    Configs(Configs),
    /// Delete a config of the director, all versions of it.
    #[command(after_help = "Example:\n  stolos delete-config cloud etcd --non-interactive")]
    DeleteConfig(DeleteConfig),
    /// List persistent disks that belong to no instance any more.
    #[command(
        after_help = "Examples:\n  stolos orphaned-disks\n  stolos orphaned-disks --json\n\nThey are deleted after `orphaned_disk_days` of config.yml."
    )]
    OrphanedDisks(Json),
    /// Delete a persistent disk that belongs to no instance any more.
    #[command(after_help = "Example:\n  stolos delete-disk disk-01a1fdf4-667d-77ee-afb8-4a2431c97306 --wait")]
    DeleteDisk(DeleteDisk),
    /// Show clusters and machines that are not well, what is done about them, and what you can do.
    #[command(after_help = "Examples:\n  stolos health\n  stolos health --json")]
    Health(Json),
    /// Show what happened to machines: alerts, repairs, switches.
    #[command(after_help = "Examples:\n  stolos events\n  stolos events demo --json")]
    Events(Events),
    /// Show or switch whether dead machines are made anew, everywhere or in one cluster.
    #[command(
        after_help = "Examples:\n  stolos resurrection\n  stolos resurrection off          # before a planned shutdown\n  stolos resurrection on\n  stolos resurrection off demo"
    )]
    Resurrection(Resurrection),
    /// Check whether this host can run Stolos, and whether a running installation is well.
    #[command(after_help = "Example:\n  stolos doctor")]
    Doctor(Doctor),
    /// Build what is missing and start Stolos on this host.
    #[command(after_help = "Examples:\n  stolos up\n  stolos up --demo")]
    Up(Up),
    /// Stop Stolos on this host and remove everything that it put there.
    #[command(after_help = "Examples:\n  stolos down\n  stolos down --purge   # removes the state too")]
    Down(Down),
    /// Make plans and zones of what PKS's tile was told.
    #[command(
        after_help = "Examples:\n  om staged-config -p pivotal-container-service > tile.yml\n  stolos import tile.yml\n  stolos import tile.yml --vm-type worker.big=8:32768:65536 --write && stolos up\n\nWithout --write it says line by line what it takes, what it changes and what has no place here, prints the configuration, and changes nothing."
    )]
    Import(Import),
    /// Verbs of PKS for what is not here.
    #[command(
        name = "create-sink",
        aliases = ["delete-sink", "sinks"],
        hide = true
    )]
    Sinks(Rest),
    /// A verb of PKS for NSX-T.
    #[command(name = "promote-cluster-to-policy", hide = true)]
    PromoteToPolicy(Rest),
    /// Print the completion script of a shell.
    #[command(after_help = "Example:\n  source <(stolos completion bash)")]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Json {
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Name.
    pub(crate) name: String,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Id {
    /// Id.
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Login {
    /// Host of the API; port 9021 unless given.
    #[arg(short = 'a', long)]
    pub(crate) api: String,
    #[command(flatten)]
    pub(crate) person: Person,
    /// Client name, to log in as a client instead of a person.
    #[arg(long, requires = "client_secret", conflicts_with_all = ["username", "Sso"])]
    pub(crate) client_name: Option<String>,
    /// Client secret.
    #[arg(long)]
    pub(crate) client_secret: Option<String>,
    #[command(flatten)]
    pub(crate) trusted: Trusted,
    /// Seconds that each answer may take.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: u64,
}

/// Who somebody is, and how that is shown.
#[derive(Debug, Default, Args)]
pub(crate) struct Person {
    /// User name; asked for when absent.
    #[arg(short = 'u', long, conflicts_with = "Sso")]
    pub(crate) username: Option<String>,
    /// Password; asked for when absent. Others can see arguments of a process: prefer the question or --password-file.
    #[arg(short = 'p', long, conflicts_with_all = ["password_file", "Sso"])]
    pub(crate) password: Option<String>,
    /// File that holds the password, `-` for standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "Sso")]
    pub(crate) password_file: Option<Utf8PathBuf>,
    #[command(flatten)]
    pub(crate) sso: Sso,
}

/// Logging in with a browser, which alone sees the password.
#[derive(Clone, Debug, Default, Args)]
#[group(multiple = false)]
pub(crate) struct Sso {
    /// Log in with a browser and type the one-time code that it shows.
    #[arg(long)]
    pub(crate) sso: bool,
    /// Log in with the browser of this machine, which is opened.
    #[arg(long)]
    pub(crate) sso_auto: bool,
    /// The one-time code of the browser.
    #[arg(long, value_name = "CODE")]
    pub(crate) sso_passcode: Option<String>,
}

/// Which servers are trusted.
#[derive(Debug, Default, Args)]
pub(crate) struct Trusted {
    /// File with the certificates to trust (PEM).
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_cert: Option<Utf8PathBuf>,
    /// Do not verify the server. Anybody between you and it can read the password.
    #[arg(short = 'k', long, alias = "skip-ssl-verification")]
    pub(crate) skip_ssl_validation: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// The manifest.
    pub(crate) manifest: Utf8PathBuf,
    /// Cloud config to store first, under the name of the deployment.
    #[arg(long, value_name = "FILE")]
    pub(crate) cloud_config: Option<Utf8PathBuf>,
    /// Show what would change and stop.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Ask nothing.
    #[arg(long)]
    pub(crate) non_interactive: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Only of this cluster.
    pub(crate) cluster: Option<String>,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Resurrection {
    /// What is wanted; without it, how it stands.
    pub(crate) state: Option<Switch>,
    /// Only in this cluster.
    pub(crate) cluster: Option<String>,
    /// Print JSON in place of text.
    #[arg(long)]
    pub(crate) json: bool,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Switch {
    /// Dead machines are made anew.
    On,
    /// They are only shown.
    Off,
}

#[derive(Debug, Args)]
pub(crate) struct DirectorTasks {
    /// Follow this task.
    pub(crate) id: Option<u64>,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A profile in a file.
#[derive(Debug, Args)]
pub(crate) struct CreateProfile {
    /// JSON or YAML file with `name`, `description` and what the profile says.
    pub(crate) file: Utf8PathBuf,
    /// Print JSON in place of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteProfile {
    /// Name.
    pub(crate) name: String,
    /// Ask nothing.
    #[arg(long)]
    pub(crate) non_interactive: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CreateQuota {
    /// User or client.
    pub(crate) owner: String,
    /// Processors of all machines together.
    #[arg(long)]
    pub(crate) cpu: i64,
    /// Memory of all machines together, in GB.
    #[arg(long, value_name = "GB")]
    pub(crate) memory: f64,
    /// Clusters.
    #[arg(long)]
    pub(crate) clusters: i64,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ChangeQuota {
    /// User or client.
    pub(crate) owner: String,
    /// Processors of all machines together.
    #[arg(long, required_unless_present_any = ["memory", "clusters"])]
    pub(crate) cpu: Option<i64>,
    /// Memory of all machines together, in GB.
    #[arg(long, value_name = "GB", required_unless_present_any = ["cpu", "clusters"])]
    pub(crate) memory: Option<f64>,
    /// Clusters.
    #[arg(long, required_unless_present_any = ["cpu", "memory"])]
    pub(crate) clusters: Option<i64>,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CreateUser {
    /// What the person types to log in.
    pub(crate) name: String,
    /// Mail address.
    #[arg(long)]
    pub(crate) email: Option<String>,
    /// Group that the user is to be in; may be given several times.
    #[arg(long = "group", value_name = "GROUP")]
    pub(crate) groups: Vec<String>,
    /// File that holds the password, `-` for standard input; asked for when absent.
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<Utf8PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteUser {
    /// Name.
    pub(crate) name: String,
    /// Give the user's clusters to this one first.
    #[arg(long, value_name = "USER", conflicts_with = "keep_clusters")]
    pub(crate) clusters_to: Option<String>,
    /// Leave the user's clusters without an owner; administrators see and change them.
    #[arg(long)]
    pub(crate) keep_clusters: bool,
    /// Ask nothing.
    #[arg(long)]
    pub(crate) non_interactive: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Member {
    /// Group.
    pub(crate) group: String,
    /// User.
    pub(crate) user: String,
}

/// Whatever else was typed.
#[derive(Debug, Args)]
pub(crate) struct Rest {
    /// Ignored.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) rest: Vec<String>,
}

/// Which installation on this host.
#[derive(Debug, Args)]
pub(crate) struct Local {
    /// Name of the installation: a letter, then up to seven letters or digits, lower-case.
    #[arg(long, env = "STOLOS_INSTANCE", default_value = "stolos")]
    pub(crate) instance: stolos_base::InstanceName,
    /// Where it keeps everything; /var/lib/stolos/INSTANCE unless given.
    #[arg(long, env = "STOLOS_ROOT")]
    pub(crate) root: Option<Utf8PathBuf>,
}

impl Local {
    /// The instance meant.
    #[must_use]
    pub(crate) fn instance(&self) -> stolos_base::Instance {
        match &self.root {
            None => stolos_base::Instance::at_default(self.instance.clone()),
            Some(root) => stolos_base::Instance {
                name: self.instance.clone(),
                root: root.clone(),
            },
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub(crate) local: Local,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) local: Local,
    /// Also make the cluster `demo` and wait until a pod runs in it.
    #[arg(long)]
    pub(crate) demo: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Down {
    #[command(flatten)]
    pub(crate) local: Local,
    /// Also remove the state: databases, disks, keys. Nothing can be restored then.
    #[arg(long)]
    pub(crate) purge: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// What `om staged-config -p pivotal-container-service` printed, `-` for standard input.
    pub(crate) file: Utf8PathBuf,
    /// Write plans and zones into the installation's config.yml.
    #[arg(long)]
    pub(crate) write: bool,
    /// Write them in place of plans and zones that config.yml has.
    #[arg(long, requires = "write")]
    pub(crate) replace: bool,
    /// The size that a VM type of the tile stands for; may be given several times.
    #[arg(long = "vm-type", value_name = "NAME=CPU:RAM_MB:DISK_MB")]
    pub(crate) vm_types: Vec<String>,
    /// Kubernetes version of all plans; the newest that is built, else the newest that can be, unless given.
    #[arg(long, value_name = "VERSION")]
    pub(crate) kubernetes_version: Option<String>,
    #[command(flatten)]
    pub(crate) local: Local,
    /// Print JSON in place of text.
    #[arg(long)]
    pub(crate) json: bool,
}
