//! Kubernetes profiles: settings of Kubernetes' own programs.
//!
//! `customizations` are known and checked. `experimental_customizations` are any flags, passed on as they are, but for those by which this
//! installation itself reaches the cluster. Contents of files may be secrets: they lie with the credentials, and the profile has their names.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use stolos_api::pks::{Customization, KubernetesProfileRequest};
use stolos_base::{Secret, pki};

use super::network::check_services;
use super::{Invalid, is_word};
use crate::plans::check_plugin;

const API_SERVER: &str = "kube-apiserver";
const ETCD: &str = "etcd";
/// The components whose flags can be given.
const COMPONENTS: [&str; 5] = [
    API_SERVER,
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
];
/// The flag whose file says how secrets are encrypted in etcd.
pub(crate) const ENCRYPTION: &str = "encryption-provider-config";
/// The largest file.
const LARGEST_FILE: usize = 256 * 1024;
/// The longest value of a flag, in bytes.
const LONGEST_VALUE: usize = 4096;

/// A checked Kubernetes profile, as a cluster keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesProfile {
    /// Its name.
    pub name: String,
    /// Its id; in the names of its files.
    pub id: String,
    /// Flags by component.
    pub flags: BTreeMap<String, BTreeMap<String, String>>,
    /// Names of flags of the API server that take a file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// Addresses of services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Ipv4Net>,
    /// Size of etcd's database at which it refuses writes, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd_quota: Option<u64>,
}

/// Contents of files by flag. Secrets.
pub(crate) type Files = BTreeMap<String, Secret<String>>;

impl KubernetesProfile {
    /// Checks a profile; gives the contents of its files apart.
    ///
    /// # Errors
    /// [`Invalid`] with the component and the argument.
    pub(crate) fn parse(id: &str, request: &KubernetesProfileRequest) -> Result<(Self, Files), Invalid> {
        let mut profile = Self {
            name: request.name.clone(),
            id: id.to_owned(),
            ..Self::default()
        };
        let mut files = Files::new();
        for customization in &request.customizations {
            let at = |Invalid(what)| Invalid(format!("{}: {what}", customization.component));
            profile.take_checked(customization, &mut files).map_err(at)?;
        }
        for customization in &request.experimental_customizations {
            let at = |Invalid(what)| Invalid(format!("{}: {what}", customization.component));
            profile.take_unchecked(customization).map_err(at)?;
        }
        if request.customizations.is_empty() && request.experimental_customizations.is_empty() {
            return Err(Invalid("the profile customizes nothing".to_owned()));
        }
        Ok((profile, files))
    }

    /// Whether it encrypts what lies in etcd.
    #[must_use]
    pub fn encrypts(&self) -> bool {
        self.files.iter().any(|file| file == ENCRYPTION)
    }

    /// Whether people of the cluster come from an identity provider that it names.
    #[must_use]
    pub fn has_identity_provider(&self) -> bool {
        let flags = self.flags.get(API_SERVER).into_iter().flat_map(BTreeMap::keys);
        flags
            .chain(&self.files)
            .any(|flag| flag.starts_with("oidc-") || flag == "authentication-config")
    }

    /// The variable of a cluster's deployment that holds a copy of a file: a deployment can name credentials of its own only.
    #[must_use]
    pub fn variable_of(&self, flag: &str) -> String {
        format!("kubernetes_profile/{}/{flag}", self.id)
    }

    /// The whole name of the credential that holds a file.
    #[must_use]
    pub fn file_name(&self, flag: &str) -> String {
        format!("{}/{flag}", credentials_of(&self.id))
    }

    /// The flags of a component.
    #[must_use]
    pub fn flags_of(&self, component: &str) -> BTreeMap<String, String> {
        self.flags.get(component).cloned().unwrap_or_default()
    }

    fn take_checked(&mut self, given: &Customization, files: &mut Files) -> Result<(), Invalid> {
        if given.component != API_SERVER && given.component != ETCD {
            return Err(Invalid(format!(
                "checked customizations are for {API_SERVER} and {ETCD}; flags of other components go into `experimental_customizations`"
            )));
        }
        for (flag, value) in &given.arguments {
            let text = plain(flag, value)?;
            if given.component == ETCD {
                self.etcd(flag, &text)?;
            } else {
                self.api_server(flag, text)?;
            }
        }
        for (flag, content) in &given.file_arguments {
            if given.component != API_SERVER || !matches!(flag.as_str(), ENCRYPTION | "oidc-ca-file") {
                return Err(Invalid(format!(
                    "file argument `{flag}` is not known; known are {ENCRYPTION} and oidc-ca-file of {API_SERVER}"
                )));
            }
            check_file(flag, content)?;
            self.files.push(flag.clone());
            files.insert(flag.clone(), Secret::from(content.as_str()));
        }
        Ok(())
    }

    fn etcd(&mut self, flag: &str, text: &str) -> Result<(), Invalid> {
        // etcd suggests 8 GiB at most; a quota below what an empty cluster writes would only break it.
        const RANGE: std::ops::RangeInclusive<u64> = 64 * 1024 * 1024..=8 * 1024 * 1024 * 1024;
        if flag != "quota-backend-bytes" {
            return Err(Invalid(format!(
                "argument `{flag}` is not known; known is quota-backend-bytes"
            )));
        }
        let quota = text.parse().ok().filter(|quota| RANGE.contains(quota));
        self.etcd_quota = Some(quota.ok_or_else(|| {
            Invalid(format!(
                "invalid value for {flag}: `{text}` is not between {} and {} bytes",
                RANGE.start(),
                RANGE.end()
            ))
        })?);
        Ok(())
    }

    fn api_server(&mut self, flag: &str, text: String) -> Result<(), Invalid> {
        // The words are PKS's for one of these flags; scripts match them.
        let invalid = |why: &str| Invalid(format!("invalid value for {flag}: {why}"));
        match flag {
            "service-cluster-ip-range" => {
                let services: Ipv4Net = text.parse().map_err(|_| invalid("it is no IPv4 network"))?;
                check_services(services).map_err(|Invalid(why)| invalid(&why))?;
                self.services = Some(services);
                // Not a flag of one program: DNS, certificates and other programs have to follow.
                return Ok(());
            }
            "service-node-port-range" => check_port_range(&text).map_err(|why| invalid(&why))?,
            "enable-admission-plugins" => text
                .split(',')
                .try_for_each(check_plugin)
                .map_err(|why| invalid(&why))?,
            "requestheader-allowed-names" => {
                // Metrics and every other aggregated API come through this name.
                if !text.split(',').any(|name| name == "front-proxy-client") {
                    return Err(invalid(
                        "`front-proxy-client` has to be among the names, or aggregated APIs stop answering",
                    ));
                }
            }
            "oidc-issuer-url" => {
                if !text.starts_with("https://") {
                    return Err(invalid("it has to begin with https://"));
                }
            }
            "oidc-client-id"
            | "oidc-username-claim"
            | "oidc-username-prefix"
            | "oidc-groups-claim"
            | "oidc-groups-prefix"
            | "oidc-signing-algs"
            | "oidc-required-claim" => {}
            _ => {
                return Err(Invalid(format!(
                    "argument `{flag}` is not among the checked ones; as `experimental_customizations` it is passed on unchecked"
                )));
            }
        }
        self.add(API_SERVER, flag, text)
    }

    fn take_unchecked(&mut self, given: &Customization) -> Result<(), Invalid> {
        if !COMPONENTS.contains(&given.component.as_str()) {
            return Err(Invalid(format!(
                "the component is not known; known are {}",
                COMPONENTS.join(", ")
            )));
        }
        if !given.file_arguments.is_empty() {
            return Err(Invalid(
                "experimental customizations take no `file-arguments`".to_owned(),
            ));
        }
        for (flag, value) in &given.arguments {
            let name_is_good = is_word(flag, false) && flag.bytes().all(|b| !b.is_ascii_uppercase());
            if !name_is_good || flag.len() > 100 {
                return Err(Invalid(format!("`{flag}` is no name of a flag")));
            }
            if is_ours(flag) {
                return Err(Invalid(format!(
                    "flag `{flag}` is set by Stolos: the cluster could not be reached with another value"
                )));
            }
            let text = plain(flag, value)?;
            self.add(&given.component, flag, text)?;
        }
        Ok(())
    }

    fn add(&mut self, component: &str, flag: &str, text: String) -> Result<(), Invalid> {
        let flags = self.flags.entry(component.to_owned()).or_default();
        if flags.insert(flag.to_owned(), text).is_some() {
            return Err(Invalid(format!("argument `{flag}` is given twice")));
        }
        Ok(())
    }
}

/// Where the files of a profile lie among the credentials.
#[must_use]
pub(crate) fn credentials_of(id: &str) -> String {
    format!("/stolos/kubernetes-profiles/{id}")
}

/// Flags that connect the programs with each other and with us.
fn is_ours(flag: &str) -> bool {
    const OURS: &[&str] = &[
        "advertise-address",
        // The plan says whether pods may be privileged; static pods would get past it and past Pod Security.
        "allow-privileged",
        "config-dir",
        "manifest-url",
        "manifest-url-header",
        "pod-manifest-path",
        "anonymous-auth",
        "audit-policy-file",
        "authentication-config",
        "authentication-kubeconfig",
        "authorization-config",
        "authorization-kubeconfig",
        "authorization-mode",
        "bind-address",
        "client-ca-file",
        "config",
        "container-runtime-endpoint",
        "encryption-provider-config",
        "hostname-override",
        "kubeconfig",
        "bootstrap-kubeconfig",
        "leader-elect",
        "node-ip",
        "node-labels",
        "root-ca-file",
        "root-dir",
        "secure-port",
        "service-cluster-ip-range",
        "tls-cert-file",
        "tls-private-key-file",
        "token-auth-file",
        "use-service-account-credentials",
    ];
    const FAMILIES: &[&str] = &[
        "etcd-",
        "image-credential-provider-",
        "kubelet-certificate-",
        "kubelet-client-",
        "proxy-client-",
        "requestheader-",
        "service-account-",
        "cluster-signing-",
        "audit-log-path",
        "admission-control-config-file",
    ];
    OURS.contains(&flag) || FAMILIES.iter().any(|family| flag.starts_with(family))
}

/// Numbers and truth values are taken as people write them in JSON.
fn plain(flag: &str, value: &Value) -> Result<String, Invalid> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .map(|items| items.join(","))
            .ok_or_else(|| Invalid(format!("`{flag}` is a list of something else than texts")))?,
        Value::Null | Value::Object(_) => {
            return Err(Invalid(format!(
                "`{flag}` is neither text, number, truth value nor list"
            )));
        }
    };
    if text.len() > LONGEST_VALUE || text.chars().any(char::is_control) {
        return Err(Invalid(format!(
            "the value of `{flag}` is longer than {LONGEST_VALUE} bytes or holds control characters"
        )));
    }
    Ok(text)
}

fn check_port_range(text: &str) -> Result<(), String> {
    let range = text
        .split_once('-')
        .and_then(|(from, to)| Some((from.parse::<u16>().ok()?, to.parse::<u16>().ok()?)));
    match range {
        // Below 1024 the machine's own services listen, and 8443 is the API.
        Some((from, to)) if from >= 1024 && from <= to && !(from..=to).contains(&crate::render::API_PORT) => {
            Ok(())
        }
        Some(_) => Err(format!(
            "`{text}` has to rise, to begin at 1024 or later, and to leave out {}",
            crate::render::API_PORT
        )),
        None => Err(format!("`{text}` is not `FROM-TO`")),
    }
}

fn check_file(flag: &str, content: &str) -> Result<(), Invalid> {
    if content.len() > LARGEST_FILE {
        return Err(Invalid(format!(
            "file `{flag}` is larger than {LARGEST_FILE} bytes"
        )));
    }
    if flag == ENCRYPTION {
        // What serde would quote of it is secret, so errors of reading it name the place only.
        let document: Value =
            stolos_document::from_yaml(content).map_err(|_| Invalid(format!("file `{flag}` is not YAML")))?;
        let kind = document["kind"].as_str().unwrap_or_default();
        if kind != "EncryptionConfiguration" {
            return Err(Invalid(format!(
                "file `{flag}` is of kind `{}`, not EncryptionConfiguration",
                kind.chars().take(40).collect::<String>()
            )));
        }
        let rules = document["resources"].as_array().filter(|rules| !rules.is_empty());
        let complete = rules.is_some_and(|rules| {
            rules.iter().all(|rule| {
                let listed = |key: &str| rule[key].as_array().is_some_and(|list| !list.is_empty());
                listed("resources") && listed("providers")
            })
        });
        if !complete {
            return Err(Invalid(format!(
                "file `{flag}` needs `resources`, each with `resources` and `providers`"
            )));
        }
        check_keys(flag, &document)?;
    } else {
        pki::check_bundle(content).map_err(|problem| Invalid(format!("file `{flag}` {problem}")))?;
    }
    Ok(())
}

/// An API server with a key of another length does not start. Errors name the key, never what it is.
fn check_keys(flag: &str, document: &Value) -> Result<(), Invalid> {
    use base64::Engine as _;
    let rules = document["resources"].as_array().into_iter().flatten();
    let providers = rules.flat_map(|rule| rule["providers"].as_array().into_iter().flatten());
    for provider in providers.filter_map(Value::as_object) {
        for (kind, lengths) in [
            ("aescbc", &[16, 24, 32][..]),
            ("aesgcm", &[16, 24, 32]),
            ("secretbox", &[32]),
        ] {
            let Some(settings) = provider.get(kind) else {
                continue;
            };
            let keys = settings["keys"].as_array().filter(|keys| !keys.is_empty());
            let keys = keys.ok_or_else(|| Invalid(format!("file `{flag}`: `{kind}` has no `keys`")))?;
            for key in keys {
                let secret = key["secret"].as_str().unwrap_or_default();
                let bytes = base64::engine::general_purpose::STANDARD.decode(secret);
                if !bytes.is_ok_and(|bytes| lengths.contains(&bytes.len())) {
                    let lengths: Vec<String> = lengths.iter().map(ToString::to_string).collect();
                    return Err(Invalid(format!(
                        "file `{flag}`: the secret of key `{}` of `{kind}` is not {} bytes in base64",
                        key["name"].as_str().unwrap_or_default(),
                        lengths.join(" or ")
                    )));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(request: Value) -> Result<(KubernetesProfile, Files), Invalid> {
        let request = serde_json::from_value(request).expect("a request");
        KubernetesProfile::parse("id", &request)
    }

    fn checked(component: &str, arguments: Value) -> Result<(KubernetesProfile, Files), Invalid> {
        parse(json!({"name": "p", "customizations": [{"component": component, "arguments": arguments}]}))
    }

    fn unchecked(component: &str, arguments: Value) -> Result<(KubernetesProfile, Files), Invalid> {
        parse(
            json!({"name": "p", "experimental_customizations": [{"component": component, "arguments": arguments}]}),
        )
    }

    #[test]
    fn a_profile_of_pks_is_understood() {
        let config = "kind: EncryptionConfiguration\nresources: [{resources: [secrets], providers: [{identity: {}}]}]\n";
        let (profile, files) = parse(json!({
            "name": "p",
            "customizations": [
                {"component": "kube-apiserver",
                 "arguments": {"service-node-port-range": "30000-40000", "enable-admission-plugins": ["NamespaceAutoProvision"],
                               "service-cluster-ip-range": "10.96.0.0/16"},
                 "file-arguments": {"encryption-provider-config": config}},
                {"component": "etcd", "arguments": {"quota-backend-bytes": 4294967296u64}},
            ],
            "experimental_customizations": [{"component": "kubelet", "arguments": {"maximum-dead-containers": 5}}],
        }))
        .expect("valid");
        assert!(profile.encrypts());
        assert_eq!(files[ENCRYPTION].expose(), config);
        assert_eq!(
            profile.file_name(ENCRYPTION),
            "/stolos/kubernetes-profiles/id/encryption-provider-config"
        );
        assert_eq!(profile.flags_of("kubelet")["maximum-dead-containers"], "5");
        assert_eq!(profile.flags_of(API_SERVER).len(), 2, "{:?}", profile.flags);
        assert_eq!(profile.etcd_quota, Some(4 << 30));
        let kept = serde_json::to_string(&profile).expect("JSON");
        assert!(
            !kept.contains("identity"),
            "the content of a file is kept in clear: {kept}"
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_place() {
        for (component, arguments, words) in [
            (
                API_SERVER,
                json!({"service-node-port-range": "1-2"}),
                "invalid value for service-node-port-range",
            ),
            (API_SERVER, json!({"service-node-port-range": "40000"}), "FROM-TO"),
            (
                API_SERVER,
                json!({"service-node-port-range": "8000-9000"}),
                "8443",
            ),
            (
                API_SERVER,
                json!({"service-cluster-ip-range": "1.2.3.0/24"}),
                "private",
            ),
            (
                API_SERVER,
                json!({"enable-admission-plugins": "PodSecurityPolicy"}),
                "removed from Kubernetes",
            ),
            (
                API_SERVER,
                json!({"enable-admission-plugins": "Nonsense"}),
                "no admission plug-in",
            ),
            (
                API_SERVER,
                json!({"requestheader-allowed-names": "me"}),
                "front-proxy-client",
            ),
            (API_SERVER, json!({"oidc-issuer-url": "http://x"}), "https://"),
            (API_SERVER, json!({"v": 9}), "not among the checked"),
            (API_SERVER, json!({"oidc-client-id": {"a": 1}}), "neither text"),
            (
                API_SERVER,
                json!({"oidc-client-id": "a\nb"}),
                "control characters",
            ),
            (ETCD, json!({"quota-backend-bytes": 1}), "between"),
            (ETCD, json!({"name": "x"}), "not known"),
            ("kubelet", json!({"v": 1}), "experimental_customizations"),
        ] {
            let error = checked(component, arguments.clone()).expect_err(words);
            assert!(error.0.contains(words), "{component} {arguments}: {error}");
        }
        for (component, arguments, words) in [
            ("kubelet", json!({"kubeconfig": "/x"}), "set by Stolos"),
            ("kubelet", json!({"manifest-url": "https://x"}), "set by Stolos"),
            (API_SERVER, json!({"allow-privileged": true}), "set by Stolos"),
            (API_SERVER, json!({"etcd-servers": "x"}), "set by Stolos"),
            ("docker", json!({"v": 1}), "the component is not known"),
            ("kubelet", json!({"--v": 1}), "no name of a flag"),
            ("kubelet", json!({"v w": 1}), "no name of a flag"),
        ] {
            let error = unchecked(component, arguments.clone()).expect_err(words);
            assert!(error.0.contains(words), "{component} {arguments}: {error}");
        }
        for (file, content, words) in [
            (ENCRYPTION, "kind: Secret", "EncryptionConfiguration"),
            (ENCRYPTION, "kind: EncryptionConfiguration", "needs `resources`"),
            (
                ENCRYPTION,
                "kind: EncryptionConfiguration\nresources: [{resources: [secrets], providers: [{aescbc: {keys: [{name: k, secret: c2hvcnQ=}]}}]}]",
                "key `k` of `aescbc` is not 16 or 24 or 32 bytes",
            ),
            ("oidc-ca-file", "x", "no certificate"),
            ("kubeconfig", "x", "not known"),
        ] {
            let error = parse(json!({"name": "p", "customizations": [{"component": API_SERVER, "file-arguments": {file: content}}]}))
                .expect_err(words);
            assert!(error.0.contains(words), "{file}: {error}");
        }
        assert!(parse(json!({"name": "p"})).is_err());
    }
}
