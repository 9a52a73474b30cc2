//! Registries of a cluster's nodes, beside those that everybody trusts.
//!
//! They become `hosts.toml` files of containerd (its documentation, `docs/hosts.md`), so the words are containerd's.

use serde::{Deserialize, Serialize};
use stolos_api::pks::{CustomCaCert, PrivateRegistries, RegistryHost, RegistryServer};
use stolos_base::pki;

/// A registry, by the host that image names begin with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    /// The host, with its port where that is not 443.
    pub host: String,
    /// Where it is asked, in order.
    pub places: Vec<Place>,
}

/// A place where a registry is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// `https://HOST[:PORT]`.
    pub url: String,
    /// `pull`, `resolve`, `push`.
    pub capabilities: Vec<String>,
    /// The authority that it is verified with (PEM); those of the operating system when empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ca: String,
    /// Whether it is not verified.
    #[serde(default)]
    pub skip_verify: bool,
}

/// What is wrong with a registry.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("registry `{registry}`: {problem}")]
pub struct Invalid {
    registry: String,
    problem: String,
}

/// The most registries of a cluster.
const MOST: usize = 50;
/// The largest certificate bundle, in bytes.
const LARGEST_CA: usize = 64 * 1024;

/// Checks what `--private-registries` says.
///
/// # Errors
/// [`Invalid`] with the registry.
pub fn check(given: &PrivateRegistries) -> Result<Vec<Registry>, Invalid> {
    let mut checked: Vec<Registry> = Vec::new();
    for server in &given.servers {
        let registry = check_server(server).map_err(|problem| Invalid {
            registry: shown(&server.url),
            problem,
        })?;
        if checked.iter().any(|other| other.host == registry.host) {
            return Err(Invalid {
                registry: registry.host,
                problem: "it is given twice".to_owned(),
            });
        }
        checked.push(registry);
    }
    if checked.len() > MOST {
        return Err(Invalid {
            registry: "…".to_owned(),
            problem: format!("there are more than {MOST}"),
        });
    }
    Ok(checked)
}

/// Adds PKS's older fields: authorities for hosts, and hosts that are not verified.
///
/// # Errors
/// [`Invalid`] with the registry.
pub fn add_older(
    registries: &mut Vec<Registry>,
    authorities: &[CustomCaCert],
    insecure: &[String],
) -> Result<(), Invalid> {
    let of_authority = authorities
        .iter()
        .map(|one| (one.domain_name.as_str(), one.ca_cert.as_str(), false));
    let all = of_authority.chain(insecure.iter().map(|host| (host.as_str(), "", true)));
    for (host, ca_cert, skip_verify) in all {
        let server = RegistryServer {
            url: host.to_owned(),
            hosts: vec![RegistryHost {
                url: format!("https://{}", host.trim_start_matches("https://")),
                ca_cert: ca_cert.to_owned(),
                skip_verify,
                ..RegistryHost::default()
            }],
        };
        let checked = check_server(&server).map_err(|problem| Invalid {
            registry: shown(host),
            problem,
        })?;
        registries.retain(|other| other.host != checked.host);
        registries.push(checked);
    }
    Ok(())
}

/// As the API shows them: without certificates.
#[must_use]
pub fn show(registries: &[Registry]) -> PrivateRegistries {
    let host = |place: &Place| RegistryHost {
        url: place.url.clone(),
        capabilities: place.capabilities.clone(),
        ca_cert: String::new(),
        skip_verify: place.skip_verify,
    };
    PrivateRegistries {
        servers: registries
            .iter()
            .map(|registry| RegistryServer {
                url: registry.host.clone(),
                hosts: registry.places.iter().map(host).collect(),
            })
            .collect(),
    }
}

fn check_server(given: &RegistryServer) -> Result<Registry, String> {
    let host = host_of(&given.url)?;
    let itself = RegistryHost {
        url: format!("https://{host}"),
        ..RegistryHost::default()
    };
    let hosts = if given.hosts.is_empty() {
        std::slice::from_ref(&itself)
    } else {
        &given.hosts
    };
    let places = hosts.iter().map(check_place).collect::<Result<_, String>>()?;
    Ok(Registry { host, places })
}

fn check_place(given: &RegistryHost) -> Result<Place, String> {
    if given.url.starts_with("http://") {
        return Err(format!(
            "`{}` would carry images and passwords in clear; registries are asked over https",
            shown(&given.url)
        ));
    }
    let url = format!("https://{}", host_of(&given.url)?);
    for capability in &given.capabilities {
        if !matches!(capability.as_str(), "pull" | "resolve" | "push") {
            return Err(format!(
                "capability `{}` is none of pull, resolve, push",
                shown(capability)
            ));
        }
    }
    let capabilities = if given.capabilities.is_empty() {
        vec!["pull".to_owned(), "resolve".to_owned()]
    } else {
        given.capabilities.clone()
    };
    if given.ca_cert.len() > LARGEST_CA {
        return Err(format!("`ca_cert` of `{url}` is larger than {LARGEST_CA} bytes"));
    }
    if !given.ca_cert.is_empty() {
        pki::check_bundle(&given.ca_cert).map_err(|problem| format!("`ca_cert` of `{url}` {problem}"))?;
    }
    Ok(Place {
        url,
        capabilities,
        ca: given.ca_cert.clone(),
        skip_verify: given.skip_verify,
    })
}

/// `HOST[:PORT]` out of a URL. It becomes the name of a directory, so nothing else may be in it.
fn host_of(url: &str) -> Result<String, String> {
    let rest = url.strip_prefix("https://").unwrap_or(url).trim_end_matches('/');
    let (name, port) = match rest.rsplit_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (rest, None),
    };
    let name_is_good = (1..=253).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    let port_is_good = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    if name_is_good && port_is_good {
        Ok(rest.to_ascii_lowercase())
    } else {
        Err(format!("`{}` is not `HOST` or `HOST:PORT`", shown(url)))
    }
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(servers: serde_json::Value) -> Result<Vec<Registry>, Invalid> {
        check(&serde_json::from_value(json!({"servers": servers})).expect("registries"))
    }

    #[test]
    fn registries_are_checked() {
        let good = checked(json!([
            {"url": "https://Harbor.example.com:8443/", "hosts": [{"url": "https://mirror.example.com", "capabilities": ["pull"], "skip_verify": true}]},
            {"url": "plain.example.com"},
        ]))
        .expect("valid");
        assert_eq!(good[0].host, "harbor.example.com:8443");
        assert_eq!(good[1].places[0].url, "https://plain.example.com");
        assert_eq!(good[1].places[0].capabilities, ["pull", "resolve"]);
        for (bad, words) in [
            (json!([{"url": "../../etc"}]), "HOST"),
            (json!([{"url": "a:99999"}]), "HOST"),
            (json!([{"url": "a"}, {"url": "https://A"}]), "twice"),
            (json!([{"url": "a", "hosts": [{"url": "http://a"}]}]), "in clear"),
            (
                json!([{"url": "a", "hosts": [{"url": "b", "capabilities": ["sing"]}]}]),
                "sing",
            ),
            (
                json!([{"url": "a", "hosts": [{"url": "b", "ca_cert": "x"}]}]),
                "no certificate",
            ),
        ] {
            let error = checked(bad.clone()).expect_err(words);
            assert!(error.to_string().contains(words), "{bad}: {error}");
        }
    }

    #[test]
    fn older_fields_replace_a_registry_of_the_same_host() {
        let mut registries = checked(json!([{"url": "a"}, {"url": "b"}])).expect("valid");
        add_older(&mut registries, &[], &["a".to_owned()]).expect("valid");
        let hosts: Vec<(&str, bool)> = registries
            .iter()
            .map(|registry| (registry.host.as_str(), registry.places[0].skip_verify))
            .collect();
        assert_eq!(hosts, [("b", false), ("a", true)]);
    }
}
