//! The operator's configuration of `stolosd`, `config.yml`.
//!
//! Written by `stolos up` on the first start; afterwards it only keeps `programs` up to date, which move with every build. Unknown keys are
//! errors, because a typing error must not silently become a default.

use std::time::Duration;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};
use stolos_base::MemberName;
use stolos_base::range::MANAGERS;
use stolos_clusters::oidc::{Claims, InvalidClaims};
use stolos_clusters::plans::{
    Drain, InvalidPlans, KubeletReservations, MachineSize, Plan, Plans, PodSecurity,
};
use stolos_clusters::render::Catalogue;

use crate::cluster_backups::ClusterBackupSettings;
use crate::connections::Connections;

/// The configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `sqlite` (files in the instance's directory) or a `postgres://` URL.
    #[serde(default = "sqlite")]
    pub database: String,
    /// Upstream programs that the services start.
    pub programs: Programs,
    /// Plans on offer, in order; the first four get PKS's fixed ids. [`default_plans`] when the file names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plans: Option<Vec<Plan>>,
    /// Availability zones, in order. On one host they are labels: machines of all zones share its power and its disk.
    #[serde(default = "default_zones")]
    pub zones: Vec<String>,
    /// How people are known in clusters.
    #[serde(default, skip_serializing_if = "is_default")]
    pub oidc: Oidc,
    /// When machines count as dead, and when that is too much to be believed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub resurrection: Resurrection,
    /// Days for which disks without an instance are kept: of a deployment that was deleted, of an instance that is gone. Deleted clusters leave none.
    #[serde(default = "orphaned_disk_days")]
    pub orphaned_disk_days: u32,
    /// Who is told of alerts: a repair, a process that ends again and again, a machine that nobody repairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alerts: Option<Alerts>,
    /// Several `stolosd` that share the work, by name; empty for one alone. They need a PostgreSQL database.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberName>,
    /// The bus between us and the machines.
    #[serde(default, skip_serializing_if = "is_default")]
    pub bus: Bus,
    /// How many connections there may be, and how long their other ends are waited for.
    #[serde(default, skip_serializing_if = "is_default")]
    pub connections: Connections,
    /// Where backups go, and when they are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<crate::backup::Settings>,
    /// How much of the host machines may be allotted.
    #[serde(default, skip_serializing_if = "is_default")]
    pub capacity: Capacity,
    /// How often clusters are backed up, to the same place.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cluster_backups: ClusterBackupSettings,
}

/// How much of the host machines may be allotted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Capacity {
    /// Memory in percent of what the host has, 10 to 1000. A machine's memory is a limit, of which an idle one takes a fifth: so more may be allotted than
    /// there is. Where machines fill theirs, the host's own memory comes to an end, and 100 is right.
    pub memory_percent: u64,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { memory_percent: 200 }
    }
}

/// As in BOSH.
fn orphaned_disk_days() -> u32 {
    5
}

/// When machines count as dead. Whether dead ones are made anew is switched at the director (`stolos resurrection`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Resurrection {
    /// Seconds of silence after which a machine that is still there is ended and made anew; at least 15.
    pub fence_after: u64,
    /// Nothing is repaired while at least so many machines are down at once …
    pub storm_machines: usize,
    /// … and these are at least so many percent of their deployment, or of all.
    pub storm_percent: usize,
    /// Seconds for which a machine that was found dead counts as down for that.
    pub storm_window: u64,
    /// Repairs of one instance within an hour before a person has to look.
    pub most_repairs: u32,
}

impl Default for Resurrection {
    fn default() -> Self {
        let rules = stolos_director::Resurrection::default();
        Self {
            fence_after: rules.fence_after.as_secs(),
            storm_machines: rules.storm_least,
            storm_percent: rules.storm_percent,
            storm_window: rules.storm_window.as_secs(),
            most_repairs: rules.most_repairs,
        }
    }
}

impl From<Resurrection> for stolos_director::Resurrection {
    fn from(config: Resurrection) -> Self {
        Self {
            // Less would call a machine dead that missed a heartbeat.
            fence_after: Duration::from_secs(config.fence_after.max(15)),
            storm_least: config.storm_machines.max(1),
            storm_percent: config.storm_percent,
            storm_window: Duration::from_secs(config.storm_window),
            most_repairs: config.most_repairs,
        }
    }
}

/// A place that gets a `POST` with JSON for each alert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alerts {
    /// Where, `https` or `http`.
    pub webhook: String,
    /// A file with its authority (PEM), when that is none that the host trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<Utf8PathBuf>,
    /// A file with a token that is shown to it (`Authorization: Bearer`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<Utf8PathBuf>,
}

impl Alerts {
    /// With what the files hold now.
    ///
    /// # Errors
    /// An URL that is none, or a file that cannot be read.
    pub(crate) fn webhook(&self) -> anyhow::Result<stolos_director::Webhook> {
        let scheme = self.webhook.split_once("://").map(|(scheme, _)| scheme);
        anyhow::ensure!(
            matches!(scheme, Some("https" | "http")),
            "`alerts.webhook` of config.yml is no URL that begins with https:// or http://"
        );
        let read = |file: &Option<Utf8PathBuf>| file.as_ref().map(fs_err::read_to_string).transpose();
        Ok(stolos_director::Webhook {
            url: self.webhook.clone(),
            ca: read(&self.ca_file)?,
            token: read(&self.token_file)?.map(|token| token.trim().to_owned()),
        })
    }
}

/// The bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bus {
    /// How many `nats-server` there are: 1 or 3.
    pub servers: u8,
}

impl Default for Bus {
    fn default() -> Self {
        Self { servers: 1 }
    }
}

/// Whether clusters know people by the tokens of our token service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Oidc {
    /// Whether API servers of new and of changed clusters trust the token service, so that `get-kubeconfig` works.
    pub enabled: bool,
    /// Whether `get-credentials`, too, gives people kubeconfigs under their own names. They need their password for that, and role bindings and
    /// audit logs name them. Otherwise it gives each a service account's.
    pub personal_credentials: bool,
    /// Whether each cluster takes tokens for itself alone. Without it all clusters take the same, so that whoever controls one can use at another what a person showed
    /// it: for installations where people still use PKS's own command line, which knows no others.
    pub audience_per_cluster: bool,
    /// Days for which the tokens of service accounts live that `get-credentials` gives, 1 to 365. They end before that when their owner is deleted, or
    /// may not have them any more.
    pub credentials_days: u16,
    /// What people and groups are called in clusters.
    pub claims: Claims,
}

impl Oidc {
    /// [`Oidc::credentials_days`] as a time.
    #[must_use]
    pub fn credentials_live(&self) -> Duration {
        const DAY: u64 = 24 * 60 * 60;
        Duration::from_secs(u64::from(self.credentials_days) * DAY)
    }
}

impl Default for Oidc {
    fn default() -> Self {
        Self {
            enabled: true,
            personal_credentials: false,
            audience_per_cluster: true,
            credentials_days: 30,
            claims: Claims::default(),
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Paths of programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Programs {
    /// `nats-server`.
    pub nats_server: Utf8PathBuf,
    /// `stolos-cpi-host`.
    pub cpi_host: Utf8PathBuf,
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not readable.
    #[error("failed to read the configuration `{path}`")]
    Read {
        /// The file.
        path: Utf8PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be; the source says line and column.
    #[error("the configuration `{path}` is not valid: {problem}")]
    Parse {
        /// The file.
        path: Utf8PathBuf,
        /// With line and column.
        problem: String,
    },
    /// The plans do not make sense.
    #[error("the configuration `{path}` is not valid")]
    Plans {
        /// The file.
        path: Utf8PathBuf,
        /// The cause.
        #[source]
        source: InvalidPlans,
    },
    /// Machines could be allotted next to nothing, or anything.
    #[error("`capacity.memory_percent` is {0}, which is not between 10 and 1000")]
    MemoryPercent(u64),
    /// Kubeconfigs would live for no time, or for ever.
    #[error("`oidc.credentials_days` is {0}, which is not between 1 and 365")]
    CredentialsDays(u16),
    /// Names of people make no sense.
    #[error("the configuration `{path}` is not valid")]
    Claims {
        /// The file.
        path: Utf8PathBuf,
        /// The cause.
        #[source]
        source: InvalidClaims,
    },
    /// A plan has a Kubernetes version that was not built.
    #[error("the configuration `{path}` offers what is not there; run `stolos up` to have it built")]
    NotBuilt {
        /// The file.
        path: Utf8PathBuf,
        /// The cause.
        #[source]
        source: Box<stolos_clusters::Error>,
    },
    /// Members or servers of the bus make no sense.
    #[error("the configuration `{path}` is not valid: {problem}")]
    Managers {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// What is said about connections makes no sense.
    #[error("the configuration `{path}` is not valid: {problem}")]
    Connections {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// What is said about backups of clusters makes no sense.
    #[error("the configuration `{path}` is not valid: {problem}")]
    Backups {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Nothing was built at all.
    #[error("no Kubernetes version is built; run `stolos up`")]
    NothingBuilt,
}

impl Config {
    /// Reads a configuration file and checks it against what is built.
    ///
    /// # Errors
    /// When it cannot be read, is not valid, or offers a Kubernetes version that is not built.
    pub fn read(path: &camino::Utf8Path, built: &Catalogue) -> Result<(Self, Plans), Error> {
        let text = fs_err::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        let config: Self = stolos_document::from_yaml(&text).map_err(|error| Error::Parse {
            path: path.to_owned(),
            problem: error.to_string(),
        })?;
        if !(10..=1000).contains(&config.capacity.memory_percent) {
            return Err(Error::MemoryPercent(config.capacity.memory_percent));
        }
        if !(1..=365).contains(&config.oidc.credentials_days) {
            return Err(Error::CredentialsDays(config.oidc.credentials_days));
        }
        config.oidc.claims.check().map_err(|source| Error::Claims {
            path: path.to_owned(),
            source,
        })?;
        config.check_managers().map_err(|problem| Error::Managers {
            path: path.to_owned(),
            problem,
        })?;
        config.connections.check().map_err(|problem| Error::Connections {
            path: path.to_owned(),
            problem,
        })?;
        config.check_backups().map_err(|problem| Error::Backups {
            path: path.to_owned(),
            problem,
        })?;
        let newest = built.versions().first().copied().ok_or(Error::NothingBuilt)?;
        let offered = config.plans.clone().unwrap_or_else(|| default_plans(newest));
        let plans = Plans::new(offered, config.zones.clone()).map_err(|source| Error::Plans {
            path: path.to_owned(),
            source,
        })?;
        for (_, plan) in plans.iter() {
            built.for_plan(plan).map_err(|source| Error::NotBuilt {
                path: path.to_owned(),
                source: Box::new(source),
            })?;
        }
        Ok((config, plans))
    }
}

impl Config {
    fn check_backups(&self) -> Result<(), String> {
        let wanted = self
            .cluster_backups
            .to_service()
            .map_err(|error| format!("{error:#}"))?;
        if wanted.every.is_some() && self.backup.is_none() {
            return Err("`cluster_backups` is to be taken, and `backup` does not say where to".to_owned());
        }
        Ok(())
    }

    fn check_managers(&self) -> Result<(), String> {
        if !matches!(self.bus.servers, 1 | 3) {
            return Err(format!(
                "`servers` of `bus` is {}, and can be 1 or 3",
                self.bus.servers
            ));
        }
        if self.members.is_empty() {
            return Ok(());
        }
        if self.database == "sqlite" || self.database.starts_with("sqlite:") {
            return Err(
                "`members` share a database, which has to be PostgreSQL: `database: postgres://…`".to_owned(),
            );
        }
        if self.members.len() > MANAGERS {
            return Err(format!("`members` has more than {MANAGERS} names"));
        }
        let mut names = self.members.clone();
        names.sort();
        names.dedup();
        if names.len() < self.members.len() {
            return Err("a name is twice in `members`".to_owned());
        }
        Ok(())
    }

    /// Which of the members a process is, counted from 0, by the name that it was started with; `None` when there are none.
    ///
    /// # Errors
    /// When the name is none of theirs, is missing, or there are no members; in words for people.
    pub fn position(&self, member: Option<&MemberName>) -> Result<Option<usize>, String> {
        let names = || {
            let names: Vec<&str> = self.members.iter().map(MemberName::as_str).collect();
            names.join(", ")
        };
        match member {
            None if self.members.is_empty() => Ok(None),
            None => Err(format!("`members` are {}: say which with --member", names())),
            Some(member) if self.members.is_empty() => Err(format!(
                "there is no member `{member}`: the configuration has no `members`"
            )),
            Some(member) => match self.members.iter().position(|name| name == member) {
                Some(position) => Ok(Some(position)),
                None => Err(format!(
                    "there is no member `{member}`; `members` are {}",
                    names()
                )),
            },
        }
    }
}

/// What stands in the place of zones until an operator names some.
#[must_use]
pub fn default_zones() -> Vec<String> {
    ["z1", "z2", "z3"].map(str::to_owned).to_vec()
}

fn sqlite() -> String {
    "sqlite".to_owned()
}

/// What is on offer until an operator says otherwise: sizes that fit a laptop, with that Kubernetes version.
#[must_use]
pub fn default_plans(kubernetes_version: &str) -> Vec<Plan> {
    let master = MachineSize {
        cpu: 2,
        ram: 2048,
        ephemeral_disk: 8192,
        persistent_disk: 5120,
    };
    let plan = |name: &str, description: &str, worker_instances, worker_ram| Plan {
        name: name.to_owned(),
        description: description.to_owned(),
        active: true,
        kubernetes_version: kubernetes_version.to_owned(),
        master_instances: 1,
        master,
        master_zones: Vec::new(),
        worker_instances,
        max_worker_instances: 50,
        worker: MachineSize {
            cpu: 2,
            ram: worker_ram,
            ephemeral_disk: 16_384,
            persistent_disk: 0,
        },
        worker_zones: Vec::new(),
        allow_privileged_containers: true,
        admission_plugins: Vec::new(),
        pod_security: PodSecurity::default(),
        drain: Drain::default(),
        worker_max_in_flight: 1,
        kubelet: KubeletReservations::default(),
        addons: String::new(),
    };
    let large = Plan {
        master_instances: 3,
        ..plan(
            "large",
            "3 masters, 3 workers with 4 GiB: for what has to go on when a machine dies",
            3,
            4096,
        )
    };
    vec![
        plan(
            "small",
            "1 master, 1 worker with 2 GiB: for trying things",
            1,
            2048,
        ),
        plan("medium", "1 master, 3 workers with 4 GiB: for a team", 3, 4096),
        large,
    ]
}

#[cfg(test)]
mod tests {
    use stolos_clusters::render::Artifacts;

    use super::*;

    fn read(text: &str) -> Result<(Config, Plans), Error> {
        let dir = camino_tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("config.yml");
        fs_err::write(&path, text).expect("the file");
        let artifacts = Artifacts {
            release: "kubernetes".to_owned(),
            release_version: "1".to_owned(),
            stemcell_os: "stolos-trixie".to_owned(),
            stemcell_version: "1".to_owned(),
            image_seed: String::new(),
        };
        let built = ["1.99.7", "1.100.1"].map(|version| (version.to_owned(), artifacts.clone()));
        Config::read(&path, &built.into_iter().collect())
    }

    /// Whatever is wrong with the file is told with its place and in words for who wrote it.
    #[test]
    fn mistakes_are_told_in_our_words() {
        use stolos_document::foreign::{foreign_word, spoiled};
        let good = serde_json::json!({
            "programs": {"nats_server": "/n", "cpi_host": "/c"},
            "database": "sqlite", "zones": ["a"], "backup": {"to": "/b", "every": "6h", "keep": 3},
            "cluster_backups": {"every": "24h"}, "oidc": {"claims": {}}, "members": [],
            "plans": default_plans("1.99.7")[..1],
        });
        let mut refused = 0;
        for document in spoiled(&good) {
            let text = stolos_document::to_yaml(&document).expect("YAML");
            let Err(error) = read(&text) else { continue };
            let told = stolos_base::chain(&error);
            refused += 1;
            assert_eq!(foreign_word(&told), None, "{text}\n{told}");
        }
        assert!(refused > 100, "{refused} refused");
        let error =
            read("programs: {nats_server: /n, cpi_host: /c}\nplans:\n- name: a\n  worker_instances: many\n");
        let told = stolos_base::chain(&error.expect_err("many is no number"));
        assert!(
            told.contains("line 4, column 21: plans[0].worker_instances: an integer"),
            "{told}"
        );
    }

    #[test]
    fn the_least_configuration_has_plans() {
        let (config, plans) = read("programs: {nats_server: /n, cpi_host: /c}\n").expect("valid");
        assert_eq!(config.database, "sqlite");
        let small = plans.find("small").expect("a plan");
        assert_eq!(small.kubernetes_version, "1.100.1", "the newest that is built");
    }

    #[test]
    fn a_plan_without_its_kubernetes_version_is_refused() {
        let plans = |version: &str| {
            let text = serde_json::json!({
                "programs": {"nats_server": "/n", "cpi_host": "/c"},
                "plans": default_plans(version),
            });
            read(&text.to_string())
        };
        assert!(plans("1.99.7").is_ok());
        let error = plans("1.98.0").expect_err("it is not built");
        let text = stolos_base::chain(&error);
        assert!(text.contains("run `stolos up`"), "{text}");
        assert!(
            text.contains(
                "plan `small` has Kubernetes 1.98.0, which is not built; built are 1.100.1, 1.99.7"
            ),
            "{text}"
        );
    }

    #[test]
    fn people_are_known_in_clusters_unless_the_operator_says_otherwise() {
        let rest = "programs: {nats_server: /n, cpi_host: /c}\n";
        let (config, _) = read(rest).expect("valid");
        assert!(config.oidc.enabled && !config.oidc.personal_credentials);
        assert_eq!(config.oidc.credentials_live(), Duration::from_secs(30 * 86_400));
        for days in [0, 366] {
            let error = read(&format!("{rest}oidc: {{credentials_days: {days}}}\n")).expect_err("no time");
            assert!(error.to_string().contains("credentials_days"), "{error}");
        }
        let (config, _) = read(&format!("{rest}oidc: {{enabled: false}}\n")).expect("valid");
        assert!(!config.oidc.enabled);
        let error = read(&format!("{rest}oidc: {{claims: {{groups_prefix: 'system:'}}}}\n"))
            .expect_err("a reserved name");
        let text = stolos_base::chain(&error);
        assert!(text.contains("`groups_prefix` of `oidc`"), "{text}");
    }

    #[test]
    fn members_need_a_database_that_can_be_shared() {
        let rest = "programs: {nats_server: /n, cpi_host: /c}\n";
        let problem = |text: &str| {
            let error = read(&format!("{rest}{text}")).expect_err("it makes no sense");
            stolos_base::chain(&error)
        };
        assert!(problem("members: [a, b]\n").contains("has to be PostgreSQL"));
        assert!(problem("database: 'sqlite:/x'\nmembers: [a]\n").contains("has to be PostgreSQL"));
        let postgres = "database: 'postgres://h/d'\n";
        assert!(problem(&format!("{postgres}members: [a, a]\n")).contains("twice"));
        assert!(problem(&format!("{postgres}members: [A]\n")).contains("member name `A`"));
        let nine: Vec<String> = (1..=9).map(|n| format!("m{n}")).collect();
        assert!(problem(&format!("{postgres}members: [{}]\n", nine.join(", "))).contains("more than 8"));
        assert!(problem("bus: {servers: 2}\n").contains("1 or 3"));

        let (config, _) =
            read(&format!("{rest}{postgres}members: [a, b]\nbus: {{servers: 3}}\n")).expect("valid");
        let name = |text: &str| text.parse::<MemberName>().expect("a name");
        assert_eq!(config.position(Some(&name("b"))), Ok(Some(1)));
        assert!(
            config
                .position(Some(&name("c")))
                .expect_err("nobody")
                .contains("a, b")
        );
        assert!(config.position(None).expect_err("which?").contains("--member"));
        let (config, _) = read(rest).expect("valid");
        assert_eq!(config.position(None), Ok(None));
        assert!(config.position(Some(&name("a"))).is_err());
    }

    #[test]
    fn connections_have_limits_and_some_are_kept_for_who_has_signed_in() {
        let rest = "programs: {nats_server: /n, cpi_host: /c}\n";
        let (config, _) = read(rest).expect("valid");
        assert_eq!(config.connections.limits(), stolos_base::http::Limits::default());
        let (config, _) = read(&format!("{rest}connections: {{per_address: 40}}\n")).expect("valid");
        assert_eq!(
            (config.connections.per_address, config.connections.total),
            (40, 2048)
        );
        let problem = |text: &str| {
            let error = read(&format!("{rest}connections: {text}\n")).expect_err("it makes no sense");
            stolos_base::chain(&error)
        };
        assert!(problem("{idle_seconds: 0}").contains("`idle_seconds` of `connections` is 0"));
        assert!(problem("{total: 1000}").contains("leaves nothing of 1000"));
    }

    #[test]
    fn a_typing_error_is_named_with_its_line() {
        let error =
            read("programs: {nats_server: /n, cpi_host: /c}\ndatabse: sqlite\n").expect_err("a typing error");
        let text = error.to_string();
        assert!(text.contains("databse") && text.contains('2'), "{text}");
    }
}
