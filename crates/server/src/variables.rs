//! Generated credentials as `director` and `clusters` need them, over `credentials`.

use anyhow::Context as _;
use futures::future::BoxFuture;
use jiff::Timestamp;
use serde_json::Value;
use stolos_base::ids::{AgentId, CredentialId};
use stolos_base::pki::{Authority, Identity, Leaf, Usage};
use stolos_base::{Clock, Secret};
use stolos_clusters::deps::{self, AdminCredential, Vault};
use stolos_clusters::render::{ADMIN_VARIABLE, CA_VARIABLE};
use stolos_credentials::{Credentials, Mode, Name, Parameters, Scope};
use stolos_director::{AgentTrust, Failure, GenerateVariable, Variables};
use stolos_mbus::settings::MbusCert;

/// The director's name: the first part of the absolute names of its variables.
pub(crate) const DIRECTOR_NAME: &str = "stolos";
/// Agents' certificates live as long as upstream's; a machine is made anew far more often.
const AGENT_CERTIFICATE_VALIDITY: std::time::Duration = std::time::Duration::from_secs(2 * 365 * 24 * 3600);

/// The credentials below.
#[derive(Clone)]
pub(crate) struct Store(pub(crate) Credentials);

impl Variables for Store {
    fn generate<'a>(
        &'a self,
        deployment: &'a str,
        variable: &'a GenerateVariable,
    ) -> BoxFuture<'a, Result<CredentialId, Failure>> {
        Box::pin(async move {
            let scope = Scope::deployment(DIRECTOR_NAME, deployment)?;
            let name = scope.name(&variable.name)?;
            let parameters = Parameters::parse(&variable.kind, &variable.options, &scope)?;
            let mode: Mode = variable.mode.parse()?;
            Ok(self.0.generate(&name, &parameters, mode).await?.id)
        })
    }

    fn find<'a>(
        &'a self,
        deployment: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<CredentialId>, Failure>> {
        Box::pin(async move {
            let name = Scope::deployment(DIRECTOR_NAME, deployment)?.name(name)?;
            Ok(self.0.find(&name).await?.map(|credential| credential.id))
        })
    }

    fn value(&self, id: CredentialId) -> BoxFuture<'_, Result<Value, Failure>> {
        Box::pin(async move { Ok(self.0.get_by_id(id).await?.value.expose()) })
    }

    fn absolute_name(&self, deployment: &str, name: &str) -> String {
        match Scope::deployment(DIRECTOR_NAME, deployment).and_then(|scope| scope.name(name)) {
            Ok(name) => name.as_str().to_owned(),
            // A name that cannot be one is shown as it was written; using it fails with the reason.
            Err(_) => name.to_owned(),
        }
    }
}

impl Store {
    async fn client_certificate(
        &self,
        deployment: &str,
        variable: &str,
        what: &'static str,
    ) -> stolos_clusters::Result<AdminCredential> {
        let failed = |error| stolos_clusters::Error::service(what, error);
        let name = Scope::deployment(DIRECTOR_NAME, deployment).and_then(|scope| scope.name(variable));
        let credential = self.0.get(&name.map_err(failed)?).await.map_err(failed)?;
        let certificate = credential.value.certificate().ok_or_else(|| {
            stolos_clusters::Error::Request(format!("`{}` is no certificate", credential.name))
        })?;
        Ok(AdminCredential {
            ca: certificate.ca.clone(),
            certificate: certificate.certificate.clone(),
            private_key: certificate.private_key.clone(),
        })
    }
}

impl Vault for Store {
    fn admin(&self, deployment: &str) -> BoxFuture<'_, stolos_clusters::Result<AdminCredential>> {
        let deployment = deployment.to_owned();
        Box::pin(async move {
            self.client_certificate(
                &deployment,
                ADMIN_VARIABLE,
                "read the cluster's administrator certificate",
            )
            .await
        })
    }

    fn client<'a>(
        &'a self,
        deployment: &'a str,
        variable: &'a str,
    ) -> BoxFuture<'a, stolos_clusters::Result<AdminCredential>> {
        Box::pin(self.client_certificate(deployment, variable, "read a client certificate of the cluster"))
    }

    fn forget(&self, deployment: &str) -> BoxFuture<'_, stolos_clusters::Result<()>> {
        let deployment = deployment.to_owned();
        Box::pin(async move {
            let failed =
                |error| stolos_clusters::Error::service("delete the deployment's credentials", error);
            let scope = Scope::deployment(DIRECTOR_NAME, &deployment).map_err(failed)?;
            self.0
                .delete_below(&scope.prefix())
                .await
                .map(drop)
                .map_err(failed)
        })
    }

    fn name(&self, deployment: &str, variable: &str) -> stolos_clusters::Result<String> {
        Scope::deployment(DIRECTOR_NAME, deployment)
            .and_then(|scope| scope.name(variable))
            .map(|name| name.as_str().to_owned())
            .map_err(|error| stolos_clusters::Error::service("name a credential", error))
    }

    fn put(&self, name: &str, text: Secret<String>) -> BoxFuture<'_, stolos_clusters::Result<()>> {
        let name = name.to_owned();
        Box::pin(async move {
            let failed = |error| stolos_clusters::Error::service("store a credential", error);
            let name = Name::absolute(&name).map_err(failed)?;
            let value = stolos_credentials::Value::Value(text);
            self.0.set(&name, value).await.map(drop).map_err(failed)
        })
    }

    fn copy<'a>(
        &'a self,
        name: &'a str,
        deployment: &'a str,
        variable: &'a str,
    ) -> BoxFuture<'a, stolos_clusters::Result<()>> {
        Box::pin(async move {
            let failed = |error| stolos_clusters::Error::service("copy a credential", error);
            let from = Name::absolute(name).map_err(failed)?;
            let scope = Scope::deployment(DIRECTOR_NAME, deployment).map_err(failed)?;
            let to = scope.name(variable).map_err(failed)?;
            let value = self.0.get(&from).await.map_err(failed)?.value;
            self.0.set_once(&to, value).await.map(drop).map_err(failed)
        })
    }

    fn put_authority(
        &self,
        deployment: &str,
        authority: Identity,
    ) -> BoxFuture<'_, stolos_clusters::Result<()>> {
        let deployment = deployment.to_owned();
        Box::pin(async move {
            let failed = |error| stolos_clusters::Error::service("store the cluster's own authority", error);
            let scope = Scope::deployment(DIRECTOR_NAME, &deployment).map_err(failed)?;
            let name = scope.name(CA_VARIABLE).map_err(failed)?;
            let value = stolos_credentials::Value::Certificate(stolos_credentials::Certificate {
                ca: authority.certificate.clone(),
                certificate: authority.certificate,
                private_key: authority.key,
            });
            self.0.set(&name, value).await.map(drop).map_err(failed)
        })
    }

    fn certificates<'a>(
        &'a self,
        deployment: &'a str,
    ) -> BoxFuture<'a, stolos_clusters::Result<Vec<deps::Certificate>>> {
        Box::pin(async move {
            let failed = |error| stolos_clusters::Error::service("list the cluster's certificates", error);
            let scope = Scope::deployment(DIRECTOR_NAME, deployment).map_err(failed)?;
            let mut found = Vec::new();
            for listed in self.0.list(&scope.prefix()).await.map_err(failed)? {
                let Some(valid_until) = listed.expires_at else {
                    continue;
                };
                let credential = self.0.get_by_id(listed.id).await.map_err(failed)?;
                let certificate = credential.value.certificate();
                found.push(deps::Certificate {
                    name: listed.name.as_str().to_owned(),
                    is_root: certificate.is_some_and(|own| own.ca == own.certificate),
                    valid_until,
                });
            }
            Ok(found)
        })
    }

    fn renew<'a>(
        &'a self,
        deployment: &'a str,
        before: Timestamp,
    ) -> BoxFuture<'a, stolos_clusters::Result<Vec<String>>> {
        Box::pin(async move {
            let failed = |error| stolos_clusters::Error::service("renew the cluster's certificates", error);
            let scope = Scope::deployment(DIRECTOR_NAME, deployment).map_err(failed)?;
            let listed = self.0.list(&scope.prefix()).await.map_err(failed)?;
            let mut renewed = Vec::new();
            for old in listed
                .into_iter()
                .filter(|one| one.expires_at.is_some() && one.created_at < before)
            {
                let credential = self.0.get_by_id(old.id).await.map_err(failed)?;
                let certificate = credential.value.certificate();
                if certificate.is_some_and(|own| own.ca != own.certificate) {
                    self.0.regenerate(&old.name).await.map_err(failed)?;
                    renewed.push(old.name.as_str().to_owned());
                }
            }
            Ok(renewed)
        })
    }

    fn forget_certificate<'a>(&'a self, name: &'a str) -> BoxFuture<'a, stolos_clusters::Result<()>> {
        Box::pin(async move {
            let failed = |error| stolos_clusters::Error::service("delete a certificate", error);
            let name = Name::absolute(name).map_err(failed)?;
            self.0.delete(&name).await.map(drop).map_err(failed)
        })
    }

    fn forget_below(&self, name: &str) -> BoxFuture<'_, stolos_clusters::Result<()>> {
        let name = name.to_owned();
        Box::pin(async move {
            let failed = |error| stolos_clusters::Error::service("delete credentials", error);
            self.0
                .delete_below(&format!("{name}/"))
                .await
                .map(drop)
                .map_err(failed)
        })
    }
}

/// A secret text of the installation itself: made once, then the same.
pub(crate) async fn password(
    credentials: &Credentials,
    name: &str,
) -> stolos_credentials::Result<Secret<String>> {
    let name = Name::absolute(name)?;
    let scope = Scope::deployment(DIRECTOR_NAME, "installation")?;
    let parameters = Parameters::parse("password", &serde_json::json!({"length": 40}), &scope)?;
    let credential = credentials
        .generate(&name, &parameters, Mode::NoOverwrite)
        .await?;
    credential
        .value
        .text()
        .cloned()
        .ok_or_else(|| stolos_credentials::Error::NotFound(name.as_str().to_owned()))
}

/// A text that is made once, by us, and then the same for all managers.
pub(crate) async fn once(
    credentials: &Credentials,
    name: &str,
    make: impl FnOnce() -> anyhow::Result<Secret<String>>,
) -> anyhow::Result<Secret<String>> {
    let name = Name::absolute(name)?;
    let known = match credentials.find(&name).await? {
        Some(known) => known,
        None => {
            let value = stolos_credentials::Value::Value(make()?);
            credentials.set_once(&name, value).await?
        }
    };
    let text = known.value.text().cloned();
    text.with_context(|| format!("`{name}` is no text"))
}

/// A certificate of the installation itself: made again when its options change or its CA does.
pub(crate) async fn certificate(
    credentials: &Credentials,
    name: &str,
    options: Value,
) -> stolos_credentials::Result<stolos_credentials::Certificate> {
    let name = Name::absolute(name)?;
    let scope = Scope::deployment(DIRECTOR_NAME, "installation")?;
    let parameters = Parameters::parse("certificate", &options, &scope)?;
    let credential = credentials.generate(&name, &parameters, Mode::Converge).await?;
    credential
        .value
        .certificate()
        .cloned()
        .ok_or_else(|| stolos_credentials::Error::NotFound(name.as_str().to_owned()))
}

/// Certificate and key of a credential, as TLS takes them.
pub(crate) fn identity(certificate: &stolos_credentials::Certificate) -> Identity {
    Identity {
        certificate: certificate.certificate.clone(),
        key: certificate.private_key.clone(),
    }
}

/// Issues agents' certificates from the bus's CA.
pub(crate) struct BusAuthority {
    pub(crate) authority: Authority,
    pub(crate) clock: Clock,
}

impl AgentTrust for BusAuthority {
    fn issue(&self, agent: AgentId) -> BoxFuture<'_, Result<MbusCert, Failure>> {
        Box::pin(async move {
            let mut leaf = Leaf::new(stolos_mbus::Peer::Agent(agent).to_string(), Usage::Client);
            leaf.validity = AGENT_CERTIFICATE_VALIDITY;
            let issued = self
                .authority
                .issue(&leaf, self.clock.now())
                .map_err(|error| Failure {
                    class: stolos_base::Class::Internal,
                    source: Box::new(error),
                })?;
            Ok(MbusCert {
                ca: self.authority.certificate().to_owned(),
                certificate: issued.certificate,
                private_key: issued.key,
            })
        })
    }
}
