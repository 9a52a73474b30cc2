//! Why there can be no plan.

use std::fmt;
use std::net::IpAddr;

use stolos_base::{Class, Classify};

/// One reason why there can be no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A job that its release does not have.
    #[error("job '{job}' of instance group '{group}' does not exist in release '{release}'")]
    UnknownJob {
        /// Job.
        job: String,
        /// Group.
        group: String,
        /// `name/version`.
        release: String,
        /// Names that look like it.
        candidates: Vec<String>,
    },
    /// A job names a package that its release does not have.
    #[error("job '{job}' needs package '{package}', which release '{release}' does not have")]
    UnknownPackage {
        /// Job.
        job: String,
        /// Package.
        package: String,
        /// `name/version`.
        release: String,
    },
    /// Two jobs of a group want different packages of one name.
    #[error(
        "package name collision detected in instance group '{group}': '{package}' is needed by {first} and by {second}"
    )]
    PackageCollision {
        /// Group.
        group: String,
        /// Package.
        package: String,
        /// `job 'etcd' of release 'etcd/3.6.10'`.
        first: String,
        /// The same of the other one.
        second: String,
    },
    /// No free address is left in any subnet that the instance may use.
    #[error("failed to reserve IP for '{instance}' for manual network '{network}': no more available{}", at_az(.az.as_deref()))]
    NoAddressLeft {
        /// `group (index)`.
        instance: String,
        /// Network.
        network: String,
        /// Zone.
        az: Option<String>,
    },
    /// A static address belongs to somebody else.
    #[error("failed to reserve IP '{address}' for instance group '{group}': IP already reserved by {owner}")]
    AddressInUse {
        /// Address.
        address: IpAddr,
        /// Group.
        group: String,
        /// Who has it.
        owner: String,
    },
    /// The static addresses of several networks cannot be matched zone by zone.
    #[error(
        "failed to evenly distribute static IPs of instance group '{group}' among its zones: zone '{az}' has {have} of network '{network}' and {want} of network '{other}'"
    )]
    StaticAddressesUneven {
        /// Group.
        group: String,
        /// Zone.
        az: String,
        /// Network.
        network: String,
        /// How many it has there.
        have: usize,
        /// The network to match.
        other: String,
        /// How many that has there.
        want: usize,
    },
    /// An ignored instance would have to go or to move.
    #[error("instance '{instance}' of instance group '{group}' is ignored and cannot be {what}")]
    Ignored {
        /// Group.
        group: String,
        /// `group/id (index)`.
        instance: String,
        /// What would happen to it.
        what: &'static str,
    },
    /// A link without a provider.
    #[error("failed to resolve link '{link}' with type '{kind}' from job '{job}' in instance group '{group}'. No link providers found.{}", details(.candidates))]
    NoProvider {
        /// Link.
        link: String,
        /// Type.
        kind: String,
        /// Consumer.
        job: String,
        /// Its group.
        group: String,
        /// Providers of the type or of the name.
        candidates: Vec<String>,
    },
    /// A link with several providers.
    #[error("failed to resolve link '{link}' with type '{kind}' from job '{job}' in instance group '{group}'. Multiple link providers found:{}", details(.candidates))]
    SeveralProviders {
        /// Link.
        link: String,
        /// Type.
        kind: String,
        /// Consumer.
        job: String,
        /// Its group.
        group: String,
        /// The providers.
        candidates: Vec<String>,
    },
    /// A link's provider is not on the network that the consumer asks for.
    #[error(
        "failed to resolve link '{link}' from job '{job}' in instance group '{group}': provider group '{provider}' is not on network '{network}'"
    )]
    LinkNetwork {
        /// Link.
        link: String,
        /// Consumer.
        job: String,
        /// Its group.
        group: String,
        /// Group of the provider.
        provider: String,
        /// Network.
        network: String,
    },
    /// `consumes` or `provides` names a link that the job does not have.
    #[error("job '{job}' in instance group '{group}' has no link '{link}' to {verb}")]
    UnknownLink {
        /// Job.
        job: String,
        /// Group.
        group: String,
        /// Link.
        link: String,
        /// `consume` or `provide`.
        verb: &'static str,
        /// The links that it has.
        candidates: Vec<String>,
    },
}

fn at_az(az: Option<&str>) -> String {
    az.map_or_else(String::new, |az| format!(" in zone '{az}'"))
}

fn details(candidates: &[String]) -> String {
    if candidates.is_empty() {
        return String::new();
    }
    candidates
        .iter()
        .fold(" Details below:".to_owned(), |text, candidate| {
            text + "\n    - Link provider " + candidate
        })
}

impl Error {
    /// The BOSH error code (bosh.md section 1.12).
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Self::UnknownJob { .. } | Self::UnknownPackage { .. } => 100,
            Self::PackageCollision { .. } => 80011,
            Self::NoAddressLeft { .. } => 130_011,
            Self::AddressInUse { .. } => 130_008,
            Self::StaticAddressesUneven { .. } => 150_002,
            Self::Ignored { .. } => 190_020,
            Self::NoProvider { .. } => 140_014,
            Self::SeveralProviders { .. } | Self::LinkNetwork { .. } | Self::UnknownLink { .. } => 190_016,
        }
    }
}

/// All reasons why there can be no plan; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Errors(pub(super) Vec<Error>);

impl Errors {
    /// The reasons.
    #[must_use]
    pub fn list(&self) -> &[Error] {
        &self.0
    }

    /// The BOSH error code: that of the first one.
    #[must_use]
    pub fn code(&self) -> u32 {
        self.0.first().map_or(100, Error::code)
    }
}

/// One per line.
impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl Classify for Errors {
    fn class(&self) -> Class {
        Class::User
    }

    fn hints(&self) -> Vec<String> {
        let known = |what: &str, names: &[String]| {
            (!names.is_empty()).then(|| format!("{what}: {}.", names.join(", ")))
        };
        self.0
            .iter()
            .filter_map(|error| match error {
                Error::UnknownJob { candidates, .. } => known("The release has these jobs", candidates),
                Error::UnknownLink { candidates, .. } => known("The job has these links", candidates),
                _ => None,
            })
            .collect()
    }
}
