//! Giving a person access to a cluster: what PKS calls a binding.
//!
//! A binding is a service account in the namespace `default`, a cluster role binding `NAME-cluster-admin` and a token secret that the
//! cluster fills. The token has no end of its own; deleting the binding ends it.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Secret as TokenSecret, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::{Value, json};
use stolos_base::{Class, Classify as _, Secret, poll};

use crate::apply::Document;
use crate::client::{Cluster, base64_text};
use crate::error::Error;

const NAMESPACE: &str = "default";

impl Cluster {
    /// Makes the binding `name` (or finds it) and gives its token.
    ///
    /// # Errors
    /// When the API server refuses, does not answer, or does not fill in the token within `limit`.
    pub async fn bind(&self, name: &str, limit: Duration) -> Result<Secret<String>, Error> {
        let secret_name = token_secret(name);
        let documents = Document::parse(&json_documents(&[
            json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": name, "namespace": NAMESPACE},
            }),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": {"name": role_binding(name)},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
                "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}],
            }),
            json!({
                "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
                "metadata": {
                    "name": secret_name, "namespace": NAMESPACE,
                    "annotations": {"kubernetes.io/service-account.name": name},
                },
            }),
        ]))?;
        self.apply(&documents, limit, |_| {}).await?;
        let secrets: Api<TokenSecret> = Api::namespaced(self.client.clone(), NAMESPACE);
        let what = format!("the token of binding `{name}`");
        let token = poll::until(&what, Duration::from_millis(50), limit, || async {
            let secret = secrets
                .get(&secret_name)
                .await
                .map_err(|error| error.to_string())?;
            let token = secret.data.and_then(|mut data| data.remove("token"));
            let token = token.ok_or_else(|| "the secret is there, but still empty".to_owned())?;
            String::from_utf8(token.0).map_err(|_| "the token is no text".to_owned())
        })
        .await?;
        Ok(token.into())
    }

    /// Lets the user `subject` administer the cluster, by a cluster role binding called after `name`.
    ///
    /// # Errors
    /// When the API server refuses, or does not answer within `limit`.
    pub async fn admit(&self, name: &str, subject: &str, limit: Duration) -> Result<(), Error> {
        let documents = Document::parse(&json_documents(&[json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": role_binding(name)},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": subject}],
        })]))?;
        self.apply(&documents, limit, |_| {}).await
    }

    /// Removes the binding `name`; its token is worthless from then on. One that is not there is as good as removed.
    ///
    /// # Errors
    /// When the API server refuses or does not answer.
    pub async fn unbind(&self, name: &str) -> Result<(), Error> {
        let params = DeleteParams::default();
        let roles: Api<ClusterRoleBinding> = Api::all(self.client.clone());
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), NAMESPACE);
        let secrets: Api<TokenSecret> = Api::namespaced(self.client.clone(), NAMESPACE);
        gone(
            roles.delete(&role_binding(name), &params).await,
            &format!("delete the role binding of `{name}`"),
        )?;
        gone(
            secrets.delete(&token_secret(name), &params).await,
            &format!("delete the token of `{name}`"),
        )?;
        gone(
            accounts.delete(name, &params).await,
            &format!("delete the service account `{name}`"),
        )
    }
}

fn gone<T>(result: Result<T, kube::Error>, what: &str) -> Result<(), Error> {
    match result.map_err(Error::request(what)) {
        Err(error) if error.class() != Class::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn role_binding(name: &str) -> String {
    format!("{name}-cluster-admin")
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
    },
}

impl Credential<'_> {
    fn user(&self) -> Value {
        match self {
            Self::Token(token) => json!({"token": token.expose()}),
            // PKS's shape (pks.md, section 2.5), which client-go's plug-in `oidc` reads.
            Self::Oidc { issuer, ca, client } => json!({"auth-provider": {"name": "oidc", "config": {
                "client-id": client,
                "cluster_client_secret": "",
                "id-token": "",
                "idp-certificate-authority-data": base64_text(ca.as_bytes()),
                "idp-issuer-url": issuer,
                "refresh-token": "",
            }}}),
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
