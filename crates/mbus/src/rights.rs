//! Who may say what on the bus: BOSH's rights by the common name of the verified client certificate.

use std::fmt;
use std::str::FromStr;

use stolos_base::ids::AgentId;

/// A participant, as its client certificate names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// `default.director.bosh-internal`
    Director,
    /// `default.hm.bosh-internal`
    HealthMonitor,
    /// `<agent id>.agent.bosh-internal`
    Agent(AgentId),
    /// `<agent id>.bootstrap.agent.bosh-internal`: the short-lived certificate of a first boot.
    Bootstrap(AgentId),
}

/// The common name is none that we give.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("common name `{0}` belongs to nobody on the bus")]
pub struct UnknownPeer(pub String);

const DIRECTOR: &str = "default.director.bosh-internal";
const HEALTH_MONITOR: &str = "default.hm.bosh-internal";
const BOOTSTRAP_SUFFIX: &str = ".bootstrap.agent.bosh-internal";
const AGENT_SUFFIX: &str = ".agent.bosh-internal";

impl Peer {
    /// The agent behind the peer.
    #[must_use]
    pub fn agent(self) -> Option<AgentId> {
        match self {
            Self::Agent(id) | Self::Bootstrap(id) => Some(id),
            Self::Director | Self::HealthMonitor => None,
        }
    }

    /// What the peer may do.
    #[must_use]
    pub fn rights(self) -> Rights {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        match self {
            Self::Director => Rights {
                publish: texts(&["agent.*", "hm.director.alert"]),
                subscribe: texts(&["director.>"]),
            },
            Self::HealthMonitor => Rights {
                publish: vec![],
                subscribe: texts(&[
                    "hm.agent.heartbeat.*",
                    "hm.agent.alert.*",
                    "hm.agent.shutdown.*",
                    "hm.director.alert",
                ]),
            },
            Self::Agent(id) | Self::Bootstrap(id) => Rights {
                publish: vec![
                    format!("hm.agent.heartbeat.{id}"),
                    format!("hm.agent.alert.{id}"),
                    format!("hm.agent.shutdown.{id}"),
                    format!("director.*.{id}.*"),
                ],
                subscribe: vec![format!("agent.{id}")],
            },
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Director => f.write_str(DIRECTOR),
            Self::HealthMonitor => f.write_str(HEALTH_MONITOR),
            Self::Agent(id) => write!(f, "{id}{AGENT_SUFFIX}"),
            Self::Bootstrap(id) => write!(f, "{id}{BOOTSTRAP_SUFFIX}"),
        }
    }
}

/// From a common name.
impl FromStr for Peer {
    type Err = UnknownPeer;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownPeer(name.to_owned());
        // An id has one spelling: two certificates must not name one agent differently.
        let id = |text: &str| -> Result<AgentId, UnknownPeer> {
            let id: AgentId = text.parse().map_err(|_| unknown())?;
            if id.to_string() == text {
                Ok(id)
            } else {
                Err(unknown())
            }
        };
        match name {
            DIRECTOR => Ok(Self::Director),
            HEALTH_MONITOR => Ok(Self::HealthMonitor),
            _ => match (
                name.strip_suffix(BOOTSTRAP_SUFFIX),
                name.strip_suffix(AGENT_SUFFIX),
            ) {
                (Some(text), _) => id(text).map(Self::Bootstrap),
                (None, Some(text)) => id(text).map(Self::Agent),
                (None, None) => Err(unknown()),
            },
        }
    }
}

/// Subjects that may be published to and subscribed to; NATS wildcards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// May publish to.
    pub publish: Vec<String>,
    /// May subscribe to.
    pub subscribe: Vec<String>,
}

impl Rights {
    /// Whether publishing to `subject` is allowed.
    #[must_use]
    pub fn may_publish(&self, subject: &str) -> bool {
        self.publish
            .iter()
            .any(|right| crate::subject::matches(right, subject))
    }

    /// Whether subscribing to `subject` (which may hold wildcards) is allowed.
    #[must_use]
    pub fn may_subscribe(&self, subject: &str) -> bool {
        self.subscribe
            .iter()
            .any(|right| crate::subject::covers(right, subject))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_peers_are_one_to_one() {
        let id: AgentId = "6ba7b810-9dad-11d1-80b4-00c04fd430c8".parse().expect("an id");
        for peer in [
            Peer::Director,
            Peer::HealthMonitor,
            Peer::Agent(id),
            Peer::Bootstrap(id),
        ] {
            assert_eq!(peer.to_string().parse(), Ok(peer));
        }
        for bad in [
            "",
            "director",
            "*.agent.bosh-internal",
            ".agent.bosh-internal",
            "6BA7B810-9dad-11d1-80b4-00c04fd430c8.agent.bosh-internal",
            "6ba7b8109dad11d180b400c04fd430c8.agent.bosh-internal",
            "x.6ba7b810-9dad-11d1-80b4-00c04fd430c8.agent.bosh-internal",
        ] {
            assert!(bad.parse::<Peer>().is_err(), "{bad}");
        }
    }
}
