//! The words of the command line.

use camino::Utf8PathBuf;
use clap::{Args, Parser, Subcommand};

/// Makes, heals and deletes Kubernetes clusters.
#[derive(Debug, Parser)]
#[command(name = "stolos", version, about, long_about = None, disable_help_subcommand = true, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Log in to a Stolos installation.
    #[command(
        after_help = "Examples:\n  stolos login -a 10.117.0.1 -u admin --ca-cert /var/lib/stolos/stolos/ca.pem\n  stolos login -a api.example.com -u admin -p \"$PASSWORD\" -k"
    )]
    Login(Login),
    /// Forget the session. The kubeconfig stays as it is.
    Logout,
    /// List the plans on offer.
    #[command(alias = "list-plans")]
    Plans(Json),
    /// List clusters.
    #[command(alias = "list-clusters")]
    Clusters(Json),
    /// Show one cluster.
    #[command(after_help = "Examples:\n  stolos cluster demo\n  stolos cluster demo --details")]
    Cluster(Show),
    /// Make a cluster.
    #[command(
        after_help = "Examples:\n  stolos create-cluster demo -e demo.example.com -p small -n 2 --wait\n  stolos create-cluster demo -e demo.example.com -p small --json --non-interactive"
    )]
    CreateCluster(Create),
    /// Change a cluster: its size, how its nodes are drained, its tags.
    #[command(
        after_help = "Examples:\n  stolos update-cluster demo --num-nodes 3 --wait\n  stolos update-cluster demo --kubelet-drain-timeout 5 --kubelet-drain-force-node true --non-interactive\n  stolos update-cluster demo --tags \"team:blue,stage:test\"\n  stolos update-cluster demo --tags \"\"   # removes all tags"
    )]
    UpdateCluster(Update),
    /// Change the number of a cluster's workers.
    #[command(after_help = "Example:\n  stolos resize demo --num-nodes 3 --wait")]
    Resize(Resize),
    /// Delete a cluster and everything in it.
    #[command(after_help = "Example:\n  stolos delete-cluster demo --non-interactive --wait")]
    DeleteCluster(Delete),
    /// Write a cluster's credentials into the kubeconfig and make it the current context.
    #[command(after_help = "Example:\n  stolos get-credentials demo && kubectl get nodes")]
    GetCredentials(Credentials),
    /// Give a container image to all nodes of a cluster, from an archive instead of a registry.
    #[command(
        after_help = "Example:\n  docker save my/app:1 -o app.tar && stolos load-image demo app.tar\n\nNodes that join later do not have the image; load it again for them."
    )]
    LoadImage(LoadImage),
    /// Show what was asked of clusters and how far it is.
    Operations(Operations),
    /// Deploy a BOSH manifest with the director.
    #[command(after_help = "Example:\n  stolos deploy etcd.yml --cloud-config cloud.yml")]
    Deploy(Deploy),
    /// List deployments.
    Deployments(Json),
    /// Show the instances of a deployment.
    Instances(Named),
    /// Delete a deployment.
    DeleteDeployment(Delete),
    /// Show director tasks, or follow one.
    Tasks(Tasks),
    /// Check whether this host can run Stolos, and whether a running installation is well.
    Doctor(Doctor),
    /// Build what is missing and start Stolos on this host.
    #[command(after_help = "Examples:\n  stolos up\n  stolos up --demo")]
    Up(Up),
    /// Stop Stolos on this host and remove everything that it put there.
    Down(Down),
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
pub(crate) struct Login {
    /// Host of the API; port 9021 unless given.
    #[arg(short = 'a', long)]
    pub(crate) api: String,
    /// User name.
    #[arg(short = 'u', long, required_unless_present = "client_name")]
    pub(crate) username: Option<String>,
    /// Password; asked for when absent. Others can see arguments of a process: prefer the question or --password-file.
    #[arg(short = 'p', long, conflicts_with = "password_file")]
    pub(crate) password: Option<String>,
    /// File that holds the password, `-` for standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<Utf8PathBuf>,
    /// Client name, to log in as a client instead of a person.
    #[arg(long, requires = "client_secret", conflicts_with = "username")]
    pub(crate) client_name: Option<String>,
    /// Client secret.
    #[arg(long)]
    pub(crate) client_secret: Option<String>,
    /// File with the certificates to trust (PEM).
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_cert: Option<Utf8PathBuf>,
    /// Do not verify the server. Anybody between you and it can read the password.
    #[arg(short = 'k', long, alias = "skip-ssl-verification")]
    pub(crate) skip_ssl_validation: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Name of the cluster.
    pub(crate) name: String,
    /// Address or name under which its API will be called.
    #[arg(short = 'e', long)]
    pub(crate) external_hostname: String,
    /// Plan, see `plans`.
    #[arg(short = 'p', long)]
    pub(crate) plan: String,
    /// Number of workers; the plan's own when absent.
    #[arg(short = 'n', long)]
    pub(crate) num_nodes: Option<i64>,
    /// Tags of its machines, `NAME:VALUE,NAME:VALUE`.
    #[arg(long, value_name = "TAGS", default_value = "", hide_default_value = true)]
    pub(crate) tags: String,
    /// Follow the operation to its end.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Print JSON in place of text.
    #[arg(long)]
    pub(crate) json: bool,
    /// Ask nothing.
    #[arg(long)]
    pub(crate) non_interactive: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Name.
    pub(crate) name: String,
    /// Also show how its nodes are drained.
    #[arg(long)]
    pub(crate) details: bool,
    /// Print JSON in place of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Name of the cluster.
    pub(crate) name: String,
    /// Number of workers.
    #[arg(short = 'n', long)]
    pub(crate) num_nodes: Option<i64>,
    /// All tags that the cluster's machines are to have, `NAME:VALUE,NAME:VALUE`; an empty text removes all.
    #[arg(long, value_name = "TAGS")]
    pub(crate) tags: Option<String>,
    /// Minutes that draining a node may take; 0 for no limit.
    #[arg(long, value_name = "MINUTES")]
    pub(crate) kubelet_drain_timeout: Option<String>,
    /// Seconds that a pod gets to end; -1 for the pod's own.
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub(crate) kubelet_drain_grace_period: Option<String>,
    /// Whether pods that no controller makes anew are evicted too.
    #[arg(long, value_name = "BOOL")]
    pub(crate) kubelet_drain_force: Option<String>,
    /// Whether pods of daemon sets are left where they are; otherwise they stop the drain.
    #[arg(long, value_name = "BOOL")]
    pub(crate) kubelet_drain_ignore_daemonsets: Option<String>,
    /// Whether pods with data in emptyDir volumes are evicted too.
    #[arg(long, value_name = "BOOL")]
    pub(crate) kubelet_drain_delete_local_data: Option<String>,
    /// Whether pods that are left when the time is over are deleted.
    #[arg(long, value_name = "BOOL")]
    pub(crate) kubelet_drain_force_node: Option<String>,
    /// Follow the operation to its end.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Print JSON in place of text.
    #[arg(long)]
    pub(crate) json: bool,
    /// Ask nothing.
    #[arg(long)]
    pub(crate) non_interactive: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Resize {
    /// Name of the cluster.
    pub(crate) name: String,
    /// Number of workers.
    #[arg(short = 'n', long, default_value_t = 1)]
    pub(crate) num_nodes: i64,
    /// Follow the operation to its end.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Print JSON in place of text.
    #[arg(long, requires = "wait")]
    pub(crate) json: bool,
    /// Ask nothing.
    #[arg(long)]
    pub(crate) non_interactive: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Name.
    pub(crate) name: String,
    /// Follow the deletion to its end.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Ask nothing.
    #[arg(long)]
    pub(crate) non_interactive: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Credentials {
    /// Name of the cluster.
    pub(crate) name: String,
    /// Print the kubeconfig instead of merging it.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LoadImage {
    /// Name of the cluster.
    pub(crate) name: String,
    /// Archive of one or more images, as `docker save`, `podman save` or OCI tools write it; may be compressed by gzip.
    pub(crate) file: Utf8PathBuf,
    /// Only these nodes; all of them when absent.
    #[arg(long = "node", value_name = "NODE")]
    pub(crate) nodes: Vec<String>,
    /// Seconds that a node may take.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: u64,
    /// Print JSON in place of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Operations {
    /// Id of one operation.
    pub(crate) id: Option<String>,
    /// Only those of this cluster.
    #[arg(short = 'c', long)]
    pub(crate) cluster: Option<String>,
    /// Follow to the end: the named operation, else the newest.
    #[arg(short = 'f', long)]
    pub(crate) follow: bool,
    /// Cancel the named operation.
    #[arg(long, requires = "id")]
    pub(crate) cancel: bool,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
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
pub(crate) struct Tasks {
    /// Follow this task.
    pub(crate) id: Option<u64>,
    /// Print JSON in place of a table.
    #[arg(long)]
    pub(crate) json: bool,
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
