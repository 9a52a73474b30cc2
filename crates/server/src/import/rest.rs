//! What has no place in plans: all that is left is named, with what to do instead.

use stolos_manifest::{Node, Value};

use super::report::Report;
use super::staged::{Staged, is_word};

/// A part of the tile that is told of once, whatever number of properties it has.
struct Topic {
    /// The property, or what its first part contains; see [`Topic::is_about`].
    words: &'static [&'static str],
    what: &'static str,
    next: &'static str,
}

/// In this order: the first that fits is taken.
const TOPICS: &[Topic] = &[
    Topic {
        words: &["=pks_tls"],
        what: "certificate and key of the API",
        next: "Nothing takes them: the API has a certificate of the installation's own authority; log in with `stolos login -a ADDRESS --ca-cert ca.pem`",
    },
    Topic {
        words: &["=pks_api_hostname"],
        what: "the API's name",
        next: "Nothing sets it yet: the API is reached at the address that `stolos up` prints",
    },
    Topic {
        words: &["=uaa_oidc"],
        what: "the token service as identity provider of clusters",
        next: "Clusters trust the token service already, with PKS's prefix `oidc:` for people and groups, and `get-kubeconfig` works; write `oidc: {personal_credentials: true}` into config.yml to have `get-credentials` give people their own names too, as it did with PKS. Other prefixes are `claims` there",
    },
    Topic {
        words: &["lifetime"],
        what: "how long tokens live",
        next: "Nothing sets it: access tokens live 10 minutes, refresh tokens 6 hours, the tile's defaults",
    },
    Topic {
        words: &["=uaa"],
        what: "users of another directory",
        next: "Nothing does the same yet: there is neither LDAP nor SAML",
    },
    Topic {
        words: &["uaa"],
        what: "settings of the token service",
        next: "Nothing does the same yet",
    },
    Topic {
        words: &["=cloud_provider", "=storage", "csi"],
        what: "the cloud under the clusters, with its volumes and load balancers",
        next: "Nothing does the same yet: machines are on this host, volumes are of the storage class `local`, and services of type LoadBalancer get no address",
    },
    Topic {
        words: &["proxy"],
        what: "proxies for all clusters",
        next: "Give each cluster its own with `http_proxy`, `https_proxy` and `no_proxy` in the file of `stolos create-cluster … --config-file FILE`",
    },
    Topic {
        words: &["registr"],
        what: "registries",
        next: "Give each cluster its own with `stolos create-cluster … --private-registries FILE`",
    },
    Topic {
        words: &["syslog"],
        what: "logs to a syslog server",
        next: "Nothing does the same yet; logs of a machine are in /var/vcap/sys/log",
    },
    Topic {
        words: &["vrli", "log_insight"],
        what: "logs to vRealize Log Insight",
        next: "Nothing does the same yet; logs of a machine are in /var/vcap/sys/log",
    },
    Topic {
        words: &["sink", "fluent"],
        what: "log and metric sinks",
        next: "There are no sinks yet; deploy a collector of your choice into the clusters",
    },
    Topic {
        words: &[
            "telegraf",
            "node_exporter",
            "vrops",
            "cadvisor",
            "wavefront",
            "observ",
        ],
        what: "monitoring",
        next: "Nothing does the same; metrics-server is in every cluster, deploy other monitoring into the clusters",
    },
    Topic {
        words: &["tmc", "mission_control"],
        what: "Tanzu Mission Control",
        next: "Nothing does the same",
    },
    Topic {
        words: &["telemetry", "ceip", "billing"],
        what: "telemetry",
        next: "Nothing is needed: nothing is sent to anybody",
    },
    Topic {
        words: &["vm_extensions"],
        what: "extensions of machines",
        next: "Nothing does the same: machines are on this host and reach what it reaches",
    },
    Topic {
        words: &["retr"],
        what: "how often failed changes are tried again",
        next: "Nothing sets it: steps are repeated until their time is over; `stolos update-cluster NAME` goes on with what failed",
    },
];

/// Selectors say with these that a part of the tile is switched off.
const OFF: &[&str] = &[
    "disabled",
    "disable",
    "false",
    "no",
    "none",
    "internal",
    "not_provided",
    "",
    "0",
];
/// What may be shown of a selector; other values may be anything.
const SHOWN: &[&str] = &["ldap", "saml", "vsphere", "gcp", "aws", "azure"];

impl Topic {
    fn is_about(&self, part: &str) -> bool {
        self.words.iter().any(|word| match word.strip_prefix('=') {
            Some(exact) => part == exact,
            None => part.contains(word),
        })
    }
}

/// Names what nobody has looked at.
pub(super) fn take(staged: &mut Staged, report: &mut Report) {
    while let Some((key, line)) = staged.unseen().into_iter().next() {
        properties(staged, &key, line, report);
    }
    parts(staged, report);
}

/// All properties that have the first part of their name in common.
fn properties(staged: &mut Staged, key: &str, line: u32, report: &mut Report) {
    let head = key.trim_start_matches('.');
    let (owner, rest) = head.split_once('.').unwrap_or(("", head));
    let part = rest.split('.').next().unwrap_or(rest);
    let prefix = if owner.is_empty() {
        part.to_owned()
    } else {
        format!(".{owner}.{part}")
    };
    let mut count = 1;
    staged.pass(key);
    for (below, _) in staged.unseen() {
        if below == prefix || below.starts_with(&format!("{prefix}.")) {
            staged.pass(&below);
            count += 1;
        }
    }
    if staged.says_nothing(&prefix, OFF) {
        report.switched_off += count;
        return;
    }
    let shown = staged
        .selected(&prefix)
        .and_then(|(option, _)| SHOWN.iter().find(|known| option.contains(*known)))
        .map(|known| format!(" ({known})"))
        .unwrap_or_default();
    let lower = part.to_ascii_lowercase().replace('-', "_");
    let name = prefix.strip_prefix(".properties.").unwrap_or(&prefix);
    match TOPICS.iter().find(|topic| topic.is_about(&lower)) {
        Some(topic) => report.not_taken(line, name, format!("{}{shown}", topic.what), topic.next),
        None => report.not_taken(
            line,
            name,
            "not known",
            "Nothing is known here that does the same",
        ),
    }
}

/// The parts of the file beside the properties.
fn parts(staged: &Staged, report: &mut Report) {
    for (name, line, node) in staged.parts() {
        match name {
            "network-properties" => networks(node, report),
            "resource-config" => report.not_taken(
                line,
                name,
                "machines of the API and its database",
                "Nothing is needed: the services are processes of this host",
            ),
            "errand-config" => errands(node, report),
            "syslog-properties" => report.not_taken(
                line,
                name,
                "logs of the tile's machines to a syslog server",
                "Nothing does the same yet",
            ),
            "max-in-flight" | "update-config" => report.not_taken(
                line,
                name,
                "how the tile's own machines are updated",
                "Nothing is needed: `stolos up` replaces the services of an older build",
            ),
            _ => {
                let shown = if is_word(name) { name } else { "a part" };
                report.not_taken(
                    line,
                    shown,
                    "not known",
                    "Nothing is known here that does the same",
                );
            }
        }
    }
}

fn networks(node: &Node, report: &mut Report) {
    for name in ["network", "service_network"] {
        if let Some(network) = node.get(name) {
            report.not_taken(
                network.at.line,
                name,
                "a network of Ops Manager",
                "Nothing is needed: each cluster gets a network of its own from the installation's range of addresses",
            );
        }
    }
}

fn errands(node: &Node, report: &mut Report) {
    let Value::Map(errands) = &node.value else {
        return;
    };
    for (name, entry) in errands {
        let next = if name.contains("upgrade") {
            "Upgrade clusters with `stolos upgrade-clusters -c NAMES`; nothing upgrades them by itself"
        } else if name.contains("smoke") {
            "Nothing is needed: each cluster is tested when it is made; `stolos up --demo` makes one"
        } else if name.contains("delete-all") {
            "`stolos down --purge` removes the clusters with everything else; nothing else does"
        } else {
            "Nothing does the same"
        };
        let shown = if is_word(name) { name.as_str() } else { "an errand" };
        report.not_taken(entry.key_at.line, shown, "an errand", next);
    }
}
