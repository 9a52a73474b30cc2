//! The connection to one cluster.

use std::sync::Arc;
use std::time::Duration;

use camino::Utf8Path;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use stolos_base::Secret;
use stolos_base::pki::Identity;

use crate::error::Error;

/// A TCP connection to an API server that is there takes milliseconds; longer means that it is not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest silence of an API server within one request. Watches are restarted after it.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Who we are towards the API server.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// A client certificate.
    Certificate(Identity),
    /// A bearer token.
    Token(Secret<String>),
}

/// Where a cluster's API is and how to be let in; all in memory.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// `https://HOST:PORT`.
    pub server: String,
    /// PEM of the CA that signed the server's certificate.
    pub ca: String,
    /// The name that the server's certificate has to have, where it is not the host of `server`.
    pub tls_server_name: Option<String>,
    /// Who we are.
    pub credentials: Credentials,
}

/// A cluster; cheap to clone. Connections are opened when needed, so making one never waits.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) client: Client,
    config: Arc<Config>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cluster")
    }
}

impl Cluster {
    /// A cluster by its endpoint. Has to be called within a runtime.
    ///
    /// # Errors
    /// When URL, CA or credentials cannot be used. Whether anybody answers there shows with the first request.
    pub fn new(endpoint: &Endpoint) -> Result<Self, Error> {
        let bad = |problem: String| Error::Endpoint {
            server: endpoint.server.clone(),
            problem,
        };
        let url: http::Uri = endpoint
            .server
            .parse()
            .map_err(|error| bad(format!("not a URL: {error}")))?;
        let roots = CertificateDer::pem_slice_iter(endpoint.ca.as_bytes())
            .map(|der| der.map(|der| der.as_ref().to_vec()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| bad(format!("the CA is not PEM: {error}")))?;
        if roots.is_empty() {
            return Err(bad("the CA holds no certificate".to_owned()));
        }
        let mut config = Config::new(url);
        config.root_cert = Some(roots);
        config.tls_server_name.clone_from(&endpoint.tls_server_name);
        config.auth_info = match &endpoint.credentials {
            Credentials::Certificate(identity) => AuthInfo {
                client_certificate_data: Some(base64_text(identity.certificate.as_bytes())),
                client_key_data: Some(base64_text(identity.key.expose().as_bytes()).into()),
                ..AuthInfo::default()
            },
            Credentials::Token(token) => AuthInfo {
                token: Some(token.expose().clone().into()),
                ..AuthInfo::default()
            },
        };
        Self::from_config(config)
    }

    /// A cluster by a kubeconfig file; its current context counts.
    ///
    /// # Errors
    /// When the file or what it names cannot be read or used.
    pub async fn from_kubeconfig(path: &Utf8Path) -> Result<Self, Error> {
        let bad = |source| Error::Kubeconfig {
            path: path.to_string(),
            source,
        };
        let kubeconfig = Kubeconfig::read_from(path).map_err(bad)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(bad)?;
        Self::from_config(config)
    }

    /// A cluster by a kubeconfig in memory, as a binding gives it.
    ///
    /// # Errors
    /// When it cannot be used.
    pub async fn from_kubeconfig_value(value: serde_json::Value) -> Result<Self, Error> {
        let bad = |source| Error::Kubeconfig {
            path: "of the binding".to_owned(),
            source,
        };
        let kubeconfig: Kubeconfig = serde_json::from_value(value).map_err(|error| Error::Endpoint {
            server: "the cluster".to_owned(),
            problem: format!("the binding is no kubeconfig: {error}"),
        })?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(bad)?;
        // kube takes HTTPS_PROXY for every cluster, one of this host too, and then refuses to connect, because it is built without
        // proxies. A binding names none.
        config.proxy_url = None;
        Self::from_config(config)
    }

    /// The same cluster, whose silence within a request has no limit.
    pub(crate) fn patient(&self) -> Result<Self, Error> {
        let mut config = (*self.config).clone();
        config.read_timeout = None;
        Self::connect(config)
    }

    fn from_config(mut config: Config) -> Result<Self, Error> {
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        config.read_timeout = Some(READ_TIMEOUT);
        config.reset_reader_on_write = true;
        Self::connect(config)
    }

    fn connect(mut config: Config) -> Result<Self, Error> {
        // Callers decide what is tried again and how long: the client's own policy would sit out the ten seconds that an eviction
        // refused by a disruption budget names, again and again, and nobody would hear of it.
        config.default_retry = false;
        stolos_base::tls::install_provider();
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config.clone()).map_err(|source| Error::Client { server, source })?;
        Ok(Self {
            client,
            config: Arc::new(config),
        })
    }

    /// The client below, for requests that this crate has no words for.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The version that the API server says it has, such as `v1.37.1`.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn version(&self) -> Result<String, Error> {
        let version = self
            .client
            .apiserver_version()
            .await
            .map_err(Error::request("ask for the server's version"))?;
        Ok(version.git_version)
    }
}

pub(crate) fn base64_text(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_unusable_endpoint_says_what_is_wrong() {
        let endpoint = |server: &str, ca: &str| Endpoint {
            server: server.to_owned(),
            ca: ca.to_owned(),
            tls_server_name: None,
            credentials: Credentials::Token("secret-token".into()),
        };
        let error = Cluster::new(&endpoint("https://127.0.0.1:1", "no pem")).expect_err("no CA");
        assert!(error.to_string().contains("holds no certificate"), "{error}");
        let error = Cluster::new(&endpoint("not a url", "")).expect_err("no URL");
        assert!(
            error.to_string().contains("not a URL") && !error.to_string().contains("secret"),
            "{error}"
        );
    }
}
