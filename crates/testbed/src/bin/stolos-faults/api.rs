//! A cluster's API and its etcd, as a client sees them.

use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// A client of a cluster with everybody's rights. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Api {
    client: reqwest::Client,
    server: String,
    token: String,
}

impl Api {
    /// From a kubeconfig that `stolos get-credentials` wrote.
    pub(crate) fn of(kubeconfig: &Value) -> anyhow::Result<Self> {
        let cluster = &kubeconfig["clusters"][0]["cluster"];
        let authority = cluster["certificate-authority-data"]
            .as_str()
            .context("the kubeconfig has no authority")?;
        let authority = reqwest::Certificate::from_pem(&STANDARD.decode(authority)?)?;
        Ok(Self {
            client: client(&[authority])?.build()?,
            server: text(cluster, "server")?,
            token: text(&kubeconfig["users"][0]["user"], "token")?,
        })
    }

    pub(crate) async fn get(&self, path: &str, patience: Duration) -> anyhow::Result<Value> {
        let request = self.client.get(format!("{}{path}", self.server));
        self.send(request, patience).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.client.post(format!("{}{path}", self.server)).json(body);
        self.send(request, Duration::from_secs(10)).await
    }

    /// A merge patch.
    pub(crate) async fn patch(&self, path: &str, body: &Value, patience: Duration) -> anyhow::Result<Value> {
        let request = self
            .client
            .patch(format!("{}{path}", self.server))
            .header("content-type", "application/merge-patch+json")
            .body(body.to_string());
        self.send(request, patience).await
    }

    pub(crate) async fn delete(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.client.delete(format!("{}{path}", self.server));
        self.send(request, Duration::from_secs(10)).await
    }

    async fn send(&self, request: reqwest::RequestBuilder, patience: Duration) -> anyhow::Result<Value> {
        answer(request.bearer_auth(&self.token).timeout(patience)).await
    }
}

/// The etcd member behind one address, asked with a member's own certificate.
pub(crate) struct Etcd {
    client: reqwest::Client,
    url: String,
}

impl Etcd {
    /// `directory` is the job's, with `ca.pem`, `member.pem` and `member.key`.
    pub(crate) fn at(address: &str, directory: &camino::Utf8Path) -> anyhow::Result<Self> {
        let read = |name: &str| fs_err::read(directory.join(name));
        let identity = [read("member.pem")?, read("member.key")?].concat();
        let client = client(&[reqwest::Certificate::from_pem(&read("ca.pem")?)?])?
            .identity(reqwest::Identity::from_pem(&identity)?)
            .build()?;
        Ok(Self {
            client,
            url: format!("https://{address}:2379"),
        })
    }

    /// Takes the member of that name out of the cluster.
    pub(crate) async fn remove(&self, name: &str) -> anyhow::Result<()> {
        let members = self.call("member/list", &json!({})).await?;
        let members = members["members"].as_array().cloned().unwrap_or_default();
        let id = members
            .iter()
            .find(|member| member["name"] == name)
            .and_then(|member| member["ID"].as_str())
            .with_context(|| format!("no member is called {name}"))?;
        self.call("member/remove", &json!({"ID": id})).await.map(drop)
    }

    async fn call(&self, verb: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self
            .client
            .post(format!("{}/v3/cluster/{verb}", self.url))
            .json(body);
        answer(request.timeout(Duration::from_secs(10))).await
    }
}

fn client(authorities: &[reqwest::Certificate]) -> anyhow::Result<reqwest::ClientBuilder> {
    Ok(reqwest::Client::builder()
        .tls_certs_only(authorities.iter().cloned())
        .no_proxy()
        .connect_timeout(Duration::from_secs(2)))
}

async fn answer(request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
    let response = request.send().await?;
    let status = response.status();
    let body = response.text().await?;
    if !status.is_success() {
        bail!("{status}: {}", body.chars().take(300).collect::<String>());
    }
    Ok(serde_json::from_str(&body).unwrap_or(Value::String(body)))
}

fn text(value: &Value, key: &str) -> anyhow::Result<String> {
    let text = value[key].as_str();
    Ok(text
        .with_context(|| format!("the kubeconfig has no {key}"))?
        .to_owned())
}
