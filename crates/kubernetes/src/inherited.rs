//! What a new cluster inherits with the backup of another one, and what of it is worth nothing here: everything that the other cluster's keys vouch for.
//!
//! Tokens of service accounts in secrets are signed by a key that nobody has here; the copies of the cluster's authority in every namespace are of the other
//! one; and pods that the other cluster placed were started with both before anybody could change them.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use stolos_base::{Class, Classify as _, retry};

use crate::client::Cluster;
use crate::error::Error;
use crate::nodes::policy;

/// The config map with the authority, which Kubernetes puts into every namespace.
const AUTHORITY: &str = "kube-root-ca.crt";

/// How many of each were renewed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renewed {
    /// Secrets with tokens, which Kubernetes fills in again.
    pub tokens: usize,
    /// Pods that were deleted; their controllers make them anew.
    pub pods: usize,
}

impl Cluster {
    /// Renews what was made before `since` by the cluster whose backup this one began with. `authority` is this cluster's (PEM). Again, it finds less to do.
    ///
    /// # Errors
    /// When the API server refuses or does not answer within `limit`.
    pub async fn renew_inherited(
        &self,
        authority: &str,
        since: Timestamp,
        limit: Duration,
    ) -> Result<Renewed, Error> {
        let is_inherited = |meta: &ObjectMeta| {
            let made = meta.creation_timestamp.as_ref();
            made.is_some_and(|made| made.0 < since)
        };
        let all = ListParams::default();
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let listed = self.asked("list the namespaces", limit, || namespaces.list(&all));
        for namespace in listed.await? {
            let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &namespace.name_any());
            let body = json!({"data": {"ca.crt": authority}});
            self.patched(&maps, AUTHORITY, &body, limit).await?;
        }

        let mut renewed = Renewed::default();
        let secrets: Api<Secret> = Api::all(self.client.clone());
        let tokens = ListParams::default().fields("type=kubernetes.io/service-account-token");
        let listed = self.asked("list the tokens", limit, || secrets.list(&tokens));
        for secret in listed
            .await?
            .into_iter()
            .filter(|secret| is_inherited(&secret.metadata))
        {
            let namespace = secret.namespace().unwrap_or_default();
            let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
            let body = json!({"data": {"token": null, "ca.crt": null}});
            self.patched(&secrets, &secret.name_any(), &body, limit).await?;
            renewed.tokens += 1;
        }

        let pods: Api<Pod> = Api::all(self.client.clone());
        let listed = self.asked("list the pods", limit, || pods.list(&all));
        for pod in listed
            .await?
            .into_iter()
            .filter(|pod| is_inherited(&pod.metadata))
        {
            if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) {
                continue;
            }
            let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            // Not one that has taken its name meanwhile.
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: pod.metadata.uid.clone(),
                    ..Preconditions::default()
                }),
                ..DeleteParams::default()
            };
            let what = format!("delete pod `{namespace}/{name}`");
            match self.asked(&what, limit, || pods.delete(&name, &params)).await {
                Ok(_) => renewed.pods += 1,
                Err(error) if matches!(error.class(), Class::NotFound | Class::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(renewed)
    }

    pub(crate) async fn asked<T, F>(
        &self,
        what: &str,
        limit: Duration,
        ask: impl Fn() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, kube::Error>>,
    {
        let asked = || {
            let answer = ask();
            async move { answer.await.map_err(Error::request(what.to_owned())) }
        };
        retry::run(policy(limit), Error::retryable, asked).await
    }

    /// Fine when there is no such object: it comes without the other cluster's word then.
    async fn patched<K>(&self, api: &Api<K>, name: &str, body: &Value, limit: Duration) -> Result<(), Error>
    where
        K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let (patch, params) = (Patch::Merge(body), PatchParams::default());
        let what = format!("renew `{name}`");
        let done = self.asked(&what, limit, || api.patch(name, &params, &patch));
        match done.await {
            Err(error) if error.class() != Class::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
