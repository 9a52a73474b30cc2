//! `--config-file`: a cluster's own authority, its proxies, extensions of its machines.
//!
//! What is secret in it goes to the credentials at once (`Secrets`); the cluster's row says only that it is there.

use serde::{Deserialize, Serialize};
use stolos_api::pks::{ConfigFile, CustomCa, Proxy};
use stolos_base::Secret;
use stolos_base::pki;

/// A root has to be valid for so long still; PKS's rule of six months.
const LEAST_VALIDITY: std::time::Duration = std::time::Duration::from_secs(183 * 24 * 3600);
/// The longest proxy URL or exception list, in bytes.
const LONGEST: usize = 4096;

/// Proxies of a cluster's container runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Proxies {
    /// There is one for HTTP, in the credential [`HTTP_PROXY`].
    pub http: bool,
    /// There is one for HTTPS, in the credential [`HTTPS_PROXY`].
    pub https: bool,
    /// What is reached without one, separated by commas.
    pub none_for: String,
}

/// Name of the credential with the URL of a cluster's HTTP proxy, user and password included.
pub const HTTP_PROXY: &str = "http_proxy";
/// The same for HTTPS.
pub const HTTPS_PROXY: &str = "https_proxy";

/// What of a configuration goes to the credentials.
#[derive(Default)]
pub(crate) struct Secrets {
    /// The cluster's own authority.
    pub(crate) authority: Option<pki::Identity>,
    /// Texts by name.
    pub(crate) texts: Vec<(&'static str, Secret<String>)>,
}

impl Secrets {
    pub(crate) fn is_empty(&self) -> bool {
        self.authority.is_none() && self.texts.is_empty()
    }
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("configuration: {0}")]
pub struct Invalid(pub String);

/// Checks a configuration and takes it over: proxies into `proxies`, secrets out. Gives also the extensions that have no effect here.
///
/// # Errors
/// [`Invalid`] with the field.
pub(crate) fn take(
    given: &ConfigFile,
    proxies: &mut Proxies,
    now: jiff::Timestamp,
) -> Result<(Secrets, Vec<String>), Invalid> {
    let mut secrets = Secrets::default();
    if let Some(ca) = &given.custom_ca {
        secrets.authority = Some(authority(ca, now)?);
    }
    for (field, name, proxy, there) in [
        ("http_proxy", HTTP_PROXY, &given.http_proxy, &mut proxies.http),
        ("https_proxy", HTTPS_PROXY, &given.https_proxy, &mut proxies.https),
    ] {
        let Some(proxy) = proxy else { continue };
        *there = !proxy.url.is_empty();
        if *there {
            let url = proxy_url(proxy).map_err(|why| Invalid(format!("`{field}` {why}")))?;
            secrets.texts.push((name, Secret::from(url)));
        } else if !proxy.username.is_empty() || !proxy.password.is_empty() {
            return Err(Invalid(format!("`{field}` has a user but no `url`")));
        }
    }
    if let Some(list) = &given.no_proxy {
        let good = list.len() <= LONGEST
            && list
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.:/,*[] ".contains(&b));
        if !good {
            return Err(Invalid(
                "`no_proxy` holds something else than hosts and networks separated by commas".to_owned(),
            ));
        }
        proxies.none_for = list
            .split(',')
            .map(str::trim)
            .filter(|host| !host.is_empty())
            .collect::<Vec<_>>()
            .join(",");
    }
    let not_applied = given
        .instance_groups
        .iter()
        .flat_map(|group| {
            let name = &group.name;
            group
                .vm_extension
                .keys()
                .map(move |key| format!("instance_groups.{name}.vm_extension.{key}"))
        })
        .collect();
    Ok((secrets, not_applied))
}

fn authority(ca: &CustomCa, now: jiff::Timestamp) -> Result<pki::Identity, Invalid> {
    let identity = pki::Identity {
        certificate: ca.certificate.clone(),
        key: Secret::from(ca.private_key.as_str()),
    };
    pki::check_root(&identity, LEAST_VALIDITY, now)
        .map_err(|error| Invalid(format!("`custom_ca` {}", stolos_base::chain(&error))))?;
    Ok(identity)
}

/// The URL with user and password in it, as programs read it from their environment.
fn proxy_url(proxy: &Proxy) -> Result<String, String> {
    let (scheme, rest) = proxy
        .url
        .split_once("://")
        .filter(|(scheme, _)| matches!(*scheme, "http" | "https"))
        .ok_or("does not begin with http:// or https://")?;
    let rest = rest.trim_end_matches('/');
    let good = !rest.is_empty()
        && proxy.url.len() <= LONGEST
        && rest
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b));
    if !good {
        return Err("is not `http://HOST:PORT`; user and password have fields of their own".to_owned());
    }
    if proxy.username.is_empty() {
        return Ok(format!("{scheme}://{rest}"));
    }
    let encode = |text: &str| -> String {
        text.bytes()
            .map(|b| {
                if b.is_ascii_alphanumeric() {
                    char::from(b).to_string()
                } else {
                    format!("%{b:02X}")
                }
            })
            .collect()
    };
    Ok(format!(
        "{scheme}://{}:{}@{rest}",
        encode(&proxy.username),
        encode(&proxy.password)
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use stolos_base::Clock;
    use stolos_base::pki::Authority;

    use super::*;

    fn take_json(given: serde_json::Value, proxies: &mut Proxies) -> Result<(Secrets, Vec<String>), Invalid> {
        let given = serde_json::from_value(given).expect("a configuration");
        take(&given, proxies, Clock::system().now())
    }

    #[test]
    fn proxies_are_set_and_cleared() {
        let mut proxies = Proxies::default();
        let given = json!({"http_proxy": {"url": "http://proxy:3128", "username": "a@b", "password": "p:w"}, "no_proxy": "10.0.0.0/8, .local,"});
        let (secrets, _) = take_json(given, &mut proxies).expect("valid");
        assert_eq!(
            (proxies.http, proxies.none_for.as_str()),
            (true, "10.0.0.0/8,.local")
        );
        assert_eq!(secrets.texts[0].1.expose(), "http://a%40b:p%3Aw@proxy:3128");
        let kept = serde_json::to_string(&proxies).expect("JSON");
        assert!(!kept.contains("p:w") && !kept.contains("proxy:3128"), "{kept}");
        let (secrets, _) = take_json(json!({"http_proxy": {}, "no_proxy": ""}), &mut proxies).expect("valid");
        assert!(secrets.is_empty() && proxies == Proxies::default());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let now = Clock::system().now();
        let root = |days: u64| Authority::root("own", Duration::from_secs(days * 86_400), now).expect("a CA");
        let ca = |certificate: &Authority, key: &Authority| json!({"custom_ca": {"certificate": certificate.certificate(), "private_key": key.identity().key.expose()}});
        let (good, short) = (root(400), root(30));
        assert!(take_json(ca(&good, &good), &mut Proxies::default()).is_ok());
        for (bad, words) in [
            (ca(&short, &short), "valid"),
            (ca(&good, &short), "key"),
            (
                json!({"custom_ca": {"certificate": "x", "private_key": "y"}}),
                "custom_ca",
            ),
            (json!({"http_proxy": {"url": "ftp://x"}}), "http_proxy"),
            (
                json!({"http_proxy": {"url": "http://a:b@x"}}),
                "fields of their own",
            ),
            (json!({"https_proxy": {"username": "a"}}), "no `url`"),
            (json!({"no_proxy": "a;b"}), "no_proxy"),
        ] {
            let error = take_json(bad, &mut Proxies::default())
                .map(drop)
                .expect_err(words);
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
