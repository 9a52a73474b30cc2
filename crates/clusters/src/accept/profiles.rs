//! Accepting profiles, and giving them to clusters.

use serde_json::{Value, json};
use stolos_api::pks::{KubernetesProfileRequest, ProfileRequest};
use stolos_base::ids::ProfileId;

use super::Desk;
use super::create::whose;
use crate::authorize::{Caller, Right};
use crate::error::{Error, Result};
use crate::profiles::compute::ComputeProfile;
use crate::profiles::kubernetes::{KubernetesProfile, credentials_of};
use crate::profiles::network::NetworkProfile;
use crate::profiles::{self, Invalid, Kind, ProfileRow};

impl Desk {
    /// Makes a network or compute profile.
    pub(crate) async fn create_profile(
        &self,
        caller: &Caller,
        kind: Kind,
        request: &ProfileRequest,
    ) -> Result<ProfileRow> {
        caller.may(Right::Profiles)?;
        let description = request.description.clone().unwrap_or_default();
        profiles::check_names(&request.name, &description)?;
        let parameters = object(&request.parameters)?;
        self.read_profile(kind, &request.name, &parameters)?;
        let row = self.profile_row(caller, kind, &request.name, description, parameters);
        let mut tx = self.begin_tx("make a profile").await?;
        profiles::insert(&mut tx, &row).await?;
        tx.commit().await.map_err(Error::database("make the profile"))?;
        Ok(row)
    }

    /// Keys of a network or compute profile that have no effect here.
    pub(crate) fn not_applied(&self, row: &ProfileRow) -> Vec<String> {
        // It was checked when it was made; should the rules have changed since, it says so when it is used.
        self.read_profile(row.kind, &row.name, &row.body)
            .unwrap_or_default()
    }

    fn read_profile(&self, kind: Kind, name: &str, parameters: &Value) -> Result<Vec<String>> {
        let read = match kind {
            Kind::Network => NetworkProfile::parse(name, parameters).map(|(_, not_applied)| not_applied),
            Kind::Compute => ComputeProfile::parse(name, parameters, self.plans.zones())
                .map(|(_, not_applied)| not_applied),
            Kind::Kubernetes => Ok(Vec::new()),
        };
        read.map_err(|invalid| refused(kind, name, &invalid))
    }

    /// Makes a Kubernetes profile.
    pub(crate) async fn create_kubernetes_profile(
        &self,
        caller: &Caller,
        request: &KubernetesProfileRequest,
    ) -> Result<ProfileRow> {
        caller.may(Right::Manage)?;
        let description = request.description.clone().unwrap_or_default();
        profiles::check_names(&request.name, &description)?;
        let mut row = self.profile_row(caller, Kind::Kubernetes, &request.name, description, Value::Null);
        let (profile, files) = KubernetesProfile::parse(&row.id, request)
            .map_err(|invalid| refused(Kind::Kubernetes, &request.name, &invalid))?;
        // What is kept has no contents of files in it, so it is made of the request with those taken out.
        let mut shown = request.clone();
        for customization in &mut shown.customizations {
            for content in customization.file_arguments.values_mut() {
                "(stored with the credentials)".clone_into(content);
            }
        }
        row.body = json!({"profile": profile, "customizations": shown.customizations,
                          "experimental_customizations": shown.experimental_customizations});
        let mut tx = self.begin_tx("make a profile").await?;
        profiles::insert(&mut tx, &row).await?;
        for (flag, content) in files {
            self.vault.put(&profile.file_name(&flag), content).await?;
        }
        if let Err(error) = tx.commit().await {
            self.vault.forget_below(&credentials_of(&row.id)).await?;
            return Err(Error::database("make the profile")(error));
        }
        Ok(row)
    }

    /// Deletes a profile that no cluster has.
    pub(crate) async fn delete_profile(&self, caller: &Caller, kind: Kind, name: &str) -> Result<()> {
        let right = match kind {
            Kind::Network | Kind::Compute => Right::Profiles,
            Kind::Kubernetes => Right::Manage,
        };
        caller.may(right)?;
        let row = profiles::one(&self.db, kind, name, whose(caller, kind, Right::ManageAll)).await?;
        let mut tx = self.begin_tx("delete a profile").await?;
        profiles::delete(&mut tx, kind, name).await?;
        tx.commit().await.map_err(Error::database("delete the profile"))?;
        if kind == Kind::Kubernetes {
            self.vault.forget_below(&credentials_of(&row.id)).await?;
        }
        Ok(())
    }

    /// All profiles of a kind that the caller may see.
    pub(crate) async fn profiles(&self, caller: &Caller, kind: Kind) -> Result<Vec<ProfileRow>> {
        caller.may(Right::Read)?;
        profiles::all(&self.db, kind, whose(caller, kind, Right::ReadAll)).await
    }

    /// One profile.
    pub(crate) async fn profile(&self, caller: &Caller, kind: Kind, name: &str) -> Result<ProfileRow> {
        caller.may(Right::Read)?;
        profiles::one(&self.db, kind, name, whose(caller, kind, Right::ReadAll)).await
    }

    /// A profile that a request names. Where there is none, the request is wrong, not its path.
    async fn named(&self, caller: &Caller, kind: Kind, name: &str) -> Result<ProfileRow> {
        match profiles::one(&self.db, kind, name, whose(caller, kind, Right::ManageAll)).await {
            Err(error @ Error::NoProfile { .. }) => Err(Error::Request(error.to_string())),
            other => other,
        }
    }

    pub(super) async fn network_profile(&self, caller: &Caller, name: &str) -> Result<NetworkProfile> {
        let row = self.named(caller, Kind::Network, name).await?;
        let (profile, _) = NetworkProfile::parse(&row.name, &row.body)
            .map_err(|invalid| refused(Kind::Network, name, &invalid))?;
        Ok(profile)
    }

    pub(super) async fn compute_profile(&self, caller: &Caller, name: &str) -> Result<ComputeProfile> {
        let row = self.named(caller, Kind::Compute, name).await?;
        // Zones may have gone since it was made.
        let (profile, _) = ComputeProfile::parse(&row.name, &row.body, self.plans.zones())
            .map_err(|invalid| refused(Kind::Compute, name, &invalid))?;
        Ok(profile)
    }

    pub(super) async fn kubernetes_profile(&self, caller: &Caller, name: &str) -> Result<KubernetesProfile> {
        let row = self.named(caller, Kind::Kubernetes, name).await?;
        crate::db::from_json(&row.body["profile"].to_string())
    }

    fn profile_row(
        &self,
        caller: &Caller,
        kind: Kind,
        name: &str,
        description: String,
        body: Value,
    ) -> ProfileRow {
        ProfileRow {
            kind,
            name: name.to_owned(),
            id: ProfileId::new(&self.ids).to_string(),
            owner: caller.who().clone(),
            description,
            body,
            created_at: self.clock.now_millis(),
        }
    }
}

/// `parameters` come as an object, or as a text that holds one, as PKS's client sends them.
fn object(parameters: &Value) -> Result<Value> {
    let parsed = match parameters {
        Value::String(text) => stolos_document::from_json(text.as_bytes())
            .map_err(|error| Error::Request(format!("`parameters` is no JSON: {error}")))?,
        other => other.clone(),
    };
    if parsed.is_object() {
        Ok(parsed)
    } else {
        Err(Error::Request("`parameters` is no object".to_owned()))
    }
}

fn refused(kind: Kind, name: &str, invalid: &Invalid) -> Error {
    Error::Request(format!("{} `{name}`: {invalid}", kind.noun()))
}
