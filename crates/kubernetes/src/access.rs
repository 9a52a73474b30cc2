//! Giving a person access to a cluster: what PKS calls a binding.
//!
//! A binding is a service account in the namespace `default` and a cluster role binding `NAME-cluster-admin`; its tokens end by themselves and
//! are worthless as soon as the service account is gone. What is given says in its annotations whose it is, who gave it and when the last of
//! its tokens ends, so that it can be taken back. Bindings of before that had a token in a secret, without an end.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret as TokenSecret, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use stolos_base::{Class, Classify as _, Secret};

use crate::apply::{Document, FIELD_MANAGER};
use crate::client::{Cluster, base64_text};
use crate::error::Error;

const NAMESPACE: &str = "default";
/// The label of what is given here.
const GIVEN: &str = "stolos.dev/access";
/// The annotations: whose it is, who gave it, when its last token ends.
const OF: &str = "stolos.dev/access-of";
const BY: &str = "stolos.dev/access-by";
const ENDS: &str = "stolos.dev/access-ends";
/// What the names of all bindings begin with, those without annotations too.
const PREFIX: &str = "stolos-";
const ROLE_SUFFIX: &str = "-cluster-admin";

/// For whom access is, and who answers for it; what they are called means something to the caller alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Whose it is.
    pub of: String,
    /// Who gave it.
    pub by: String,
}

/// What a binding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A service account with its role binding.
    ServiceAccount,
    /// A role binding of a person under the own name.
    Person,
}

/// A binding that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Whose it is; absent in those of before bindings said so.
    pub holder: Option<Holder>,
    /// When the last of its tokens ends; absent where that is not known, and for people.
    pub ends: Option<Timestamp>,
    /// When it was made.
    pub made_at: Timestamp,
}

impl Cluster {
    /// Makes the binding `name` (or finds it) and gives a token that lives for `lives` from `now` on, 600 s at least.
    ///
    /// # Errors
    /// When the API server refuses, or does not answer within `limit`.
    pub async fn bind(
        &self,
        name: &str,
        holder: &Holder,
        now: Timestamp,
        lives: Duration,
        limit: Duration,
    ) -> Result<Secret<String>, Error> {
        let ends = now.checked_add(lives).unwrap_or(Timestamp::MAX);
        let documents = Document::parse(&json_documents(&[
            json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {
                    "name": name, "namespace": NAMESPACE, "labels": {GIVEN: "true"},
                    "annotations": annotations(holder, Some(ends)),
                },
            }),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": {"name": role_binding(name), "labels": {GIVEN: "true"}},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
                "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}],
            }),
        ]))?;
        self.apply(&documents, limit, |_| {}).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), NAMESPACE);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                // For the API server itself, where it names no audience.
                expiration_seconds: Some(i64::try_from(lives.as_secs()).unwrap_or(i64::MAX)),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let what = format!("get a token of binding `{name}`");
        let params = PostParams::default();
        let made = self.asked(&what, limit, || {
            accounts.create_token_request(name, &params, &request)
        });
        made.await?
            .status
            .and_then(|status| status.token)
            .map(Secret::from)
            .ok_or_else(|| Error::Document {
                position: 1,
                problem: "the API server gave a token request without a token".to_owned(),
            })
    }

    /// Lets the user `subject` administer the cluster, by a cluster role binding called after `name`.
    ///
    /// # Errors
    /// When the API server refuses, or does not answer within `limit`.
    pub async fn admit(
        &self,
        name: &str,
        subject: &str,
        holder: &Holder,
        limit: Duration,
    ) -> Result<(), Error> {
        let documents = Document::parse(&json_documents(&[json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {
                "name": role_binding(name), "labels": {GIVEN: "true"},
                "annotations": annotations(holder, None),
            },
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": subject}],
        })]))?;
        self.apply(&documents, limit, |_| {}).await
    }

    /// All bindings, those of before they said whose they are too.
    ///
    /// # Errors
    /// When the API server refuses, or does not answer within `limit`.
    pub async fn bindings(&self, limit: Duration) -> Result<Vec<Binding>, Error> {
        let all = ListParams::default();
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), NAMESPACE);
        let listed = self.asked("list the service accounts", limit, || accounts.list(&all));
        let mut found: Vec<Binding> = listed
            .await?
            .iter()
            .filter_map(|account| binding(&account.metadata, account.name_any(), Kind::ServiceAccount))
            .collect();
        let roles: Api<ClusterRoleBinding> = Api::all(self.client.clone());
        let listed = self.asked("list the role bindings", limit, || roles.list(&all));
        let people = listed.await?.into_iter().filter(|role| {
            let mut subjects = role.subjects.iter().flatten();
            subjects.all(|subject| subject.kind == "User")
        });
        found.extend(people.filter_map(|role| {
            let name = role.name_any().strip_suffix(ROLE_SUFFIX)?.to_owned();
            binding(&role.metadata, name, Kind::Person)
        }));
        Ok(found)
    }

    /// Writes down whose a binding of before is, and when it ends.
    ///
    /// # Errors
    /// When the API server refuses, or does not answer within `limit`.
    pub async fn adopt(
        &self,
        binding: &Binding,
        holder: &Holder,
        ends: Timestamp,
        limit: Duration,
    ) -> Result<(), Error> {
        let ends = (binding.kind == Kind::ServiceAccount).then_some(ends);
        let body = json!({"metadata": {"labels": {GIVEN: "true"}, "annotations": annotations(holder, ends)}});
        let (patch, params) = (Patch::Merge(&body), PatchParams::default());
        let (what, name) = (format!("adopt binding `{}`", binding.name), &binding.name);
        match binding.kind {
            Kind::ServiceAccount => {
                let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), NAMESPACE);
                let done = self.asked(&what, limit, || accounts.patch(name, &params, &patch));
                gone(done.await)
            }
            Kind::Person => {
                let (roles, name): (Api<ClusterRoleBinding>, _) =
                    (Api::all(self.client.clone()), role_binding(name));
                let done = self.asked(&what, limit, || roles.patch(&name, &params, &patch));
                gone(done.await)
            }
        }
    }

    /// Removes the binding `name`; its tokens are worthless from then on. One that is not there is as good as removed.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn unbind(&self, name: &str, kind: Kind, limit: Duration) -> Result<(), Error> {
        let params = DeleteParams::default();
        let roles: Api<ClusterRoleBinding> = Api::all(self.client.clone());
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), NAMESPACE);
        let secrets: Api<TokenSecret> = Api::namespaced(self.client.clone(), NAMESPACE);
        let (role, secret) = (role_binding(name), token_secret(name));
        let what = format!("delete the role binding of `{name}`");
        gone(self.asked(&what, limit, || roles.delete(&role, &params)).await)?;
        if kind == Kind::Person {
            return Ok(());
        }
        // Bindings of before have one.
        let what = format!("delete the token of `{name}`");
        gone(
            self.asked(&what, limit, || secrets.delete(&secret, &params))
                .await,
        )?;
        let what = format!("delete the service account `{name}`");
        gone(self.asked(&what, limit, || accounts.delete(name, &params)).await)
    }
}

fn annotations(holder: &Holder, ends: Option<Timestamp>) -> BTreeMap<&'static str, String> {
    let fixed = [(OF, holder.of.clone()), (BY, holder.by.clone())];
    let ends = ends.map(|ends| (ENDS, ends.to_string()));
    fixed.into_iter().chain(ends).collect()
}

/// A binding by its object, if it is one of ours: it says so, or it has the name of one of before and was applied by us.
fn binding(meta: &ObjectMeta, name: String, kind: Kind) -> Option<Binding> {
    let annotations = meta.annotations.as_ref();
    let text = |key: &str| annotations.and_then(|all| all.get(key)).cloned();
    let is_given = meta
        .labels
        .as_ref()
        .is_some_and(|labels| labels.contains_key(GIVEN));
    let mut managers = meta.managed_fields.iter().flatten();
    let is_applied = managers.any(|fields| fields.manager.as_deref() == Some(FIELD_MANAGER));
    let is_ours = is_given || (is_old_name(&name) && is_applied);
    if !is_ours {
        return None;
    }
    let holder = match (text(OF), text(BY)) {
        (Some(of), Some(by)) => Some(Holder { of, by }),
        _ => None,
    };
    Some(Binding {
        name,
        kind,
        holder,
        ends: text(ENDS).and_then(|ends| ends.parse().ok()),
        made_at: meta
            .creation_timestamp
            .as_ref()
            .map_or(Timestamp::MAX, |made| made.0),
    })
}

/// `stolos-SOMETHING-` and sixteen digits in hex.
fn is_old_name(name: &str) -> bool {
    let hash = name.strip_prefix(PREFIX).and_then(|rest| rest.rsplit_once('-'));
    hash.is_some_and(|(_, hash)| hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn gone<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.class() != Class::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn role_binding(name: &str) -> String {
    format!("{name}{ROLE_SUFFIX}")
}

fn token_secret(name: &str) -> String {
    format!("{name}-token")
}

/// JSON is YAML, so documents of JSON go the way of all documents.
fn json_documents(values: &[Value]) -> String {
    values
        .iter()
        .map(Value::to_string)
        .collect::<Vec<_>>()
        .join("\n---\n")
}

/// What a kubeconfig says.
#[derive(Debug)]
pub struct Kubeconfig<'a> {
    /// Name of cluster, context and current context.
    pub cluster: &'a str,
    /// `https://HOST:PORT`.
    pub server: &'a str,
    /// PEM of the cluster's CA.
    pub ca: &'a str,
    /// The name that the server's certificate has to have, where it is not the host of `server`.
    pub tls_server_name: Option<&'a str>,
    /// Name of the user entry.
    pub user: &'a str,
    /// What shows who the user is.
    pub credential: Credential<'a>,
}

/// The key that says in a kubeconfig for whom its tokens have to be.
pub const AUDIENCE: &str = "audience";

/// What shows an API server who somebody is.
#[derive(Debug)]
pub enum Credential<'a> {
    /// A bearer token.
    Token(&'a Secret<String>),
    /// Tokens of a token service, which have yet to be filled in as `id-token` and `refresh-token`; kubectl renews them by itself.
    Oidc {
        /// `iss` of the tokens.
        issuer: &'a str,
        /// Authority of the issuer's certificate (PEM).
        ca: &'a str,
        /// The client that they are issued to; its secret is empty.
        client: &'a str,
        /// For whom they have to be, where that is not the client.
        audience: Option<&'a str>,
    },
}

impl Credential<'_> {
    fn user(&self) -> Value {
        match self {
            Self::Token(token) => json!({"token": token.expose()}),
            // PKS's shape (pks.md, section 2.5), which client-go's plug-in `oidc` reads.
            Self::Oidc {
                issuer,
                ca,
                client,
                audience,
            } => {
                let mut config = json!({
                    "client-id": client,
                    "cluster_client_secret": "",
                    "id-token": "",
                    "idp-certificate-authority-data": base64_text(ca.as_bytes()),
                    "idp-issuer-url": issuer,
                    "refresh-token": "",
                });
                if let Some(audience) = audience {
                    // Ours: the plug-in keeps what it does not know. Whoever fills the tokens in asks for those.
                    config[AUDIENCE] = json!(audience);
                }
                json!({"auth-provider": {"name": "oidc", "config": config}})
            }
        }
    }
}

/// A kubeconfig as PKS's `binds` answers it: one cluster, one user, one context named like the cluster.
#[must_use]
pub fn kubeconfig(parts: &Kubeconfig<'_>) -> Value {
    let mut cluster = json!({
        "certificate-authority-data": base64_text(parts.ca.as_bytes()),
        "server": parts.server,
    });
    if let Some(name) = parts.tls_server_name {
        cluster["tls-server-name"] = json!(name);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "clusters": [{"name": parts.cluster, "cluster": cluster}],
        "contexts": [{"name": parts.cluster, "context": {"cluster": parts.cluster, "user": parts.user}}],
        "current-context": parts.cluster,
        "users": [{"name": parts.user, "user": parts.credential.user()}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_are_told_from_what_others_made() {
        let meta = |value: Value| -> ObjectMeta { serde_json::from_value(value).expect("metadata") };
        let read = |name: &str, value: Value| binding(&meta(value), name.to_owned(), Kind::ServiceAccount);
        let (ours, theirs) = (
            json!([{"manager": "stolos"}]),
            json!([{"manager": "kubectl-client-side-apply"}]),
        );
        let old = "stolos-alana-0123456789abcdef";
        let time = "2026-11-01T00:00:00Z";
        // One of before bindings said whose they are.
        let found = read(old, json!({"creationTimestamp": time, "managedFields": ours})).expect("ours");
        assert_eq!((found.holder, found.ends), (None, None));
        assert_eq!(found.made_at, time.parse().expect("a time"));
        // A tenant's own of such a name, and one of ours that is something else.
        assert_eq!(read(old, json!({"managedFields": theirs})), None);
        assert_eq!(read("stolos-smoke-test", json!({"managedFields": ours})), None);
        let holder = Holder {
            of: "user:1".to_owned(),
            by: "user:2".to_owned(),
        };
        let ends: Timestamp = time.parse().expect("a time");
        let given = json!({"labels": {GIVEN: "true"}, "annotations": annotations(&holder, Some(ends))});
        let found = read("stolos-x", given).expect("ours");
        assert_eq!((found.holder, found.ends), (Some(holder), Some(ends)));
    }

    #[test]
    fn a_kubeconfig_is_what_client_libraries_read() {
        let token = Secret::from("abc");
        let parts = Kubeconfig {
            cluster: "demo",
            server: "https://10.117.0.10:8443",
            ca: "PEM",
            tls_server_name: Some("demo.example.com"),
            user: "0b1f",
            credential: Credential::Token(&token),
        };
        let read =
            kube::config::Kubeconfig::from_yaml(&kubeconfig(&parts).to_string()).expect("a kubeconfig");
        assert_eq!(read.current_context.as_deref(), Some("demo"));
        let cluster = read.clusters[0].cluster.as_ref().expect("a cluster");
        assert_eq!(cluster.server.as_deref(), Some("https://10.117.0.10:8443"));
        assert_eq!(cluster.tls_server_name.as_deref(), Some("demo.example.com"));
        assert_eq!(cluster.certificate_authority_data.as_deref(), Some("UEVN"));
        assert!(
            read.auth_infos[0]
                .auth_info
                .as_ref()
                .is_some_and(|user| user.token.is_some())
        );
        assert_eq!(
            read.contexts[0].context.as_ref().and_then(|c| c.user.as_deref()),
            Some("0b1f")
        );
    }
}
