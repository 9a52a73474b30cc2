//! Who provides what to whom (bosh.md section 5.6), within one deployment.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde_json::Value;
use stolos_manifest::{ResolvedConsume, ResolvedDeployment, ResolvedGroup, ResolvedJob, ResolvedProvide};

use super::catalog::{Catalog, ConsumeSpec};
use super::error::Error;
use super::properties;
use super::types::{Link, LinkInstance, Placed};

/// A link that some job offers.
struct Provider<'d> {
    group: &'d ResolvedGroup,
    job: &'d str,
    name: String,
    alias: String,
    kind: String,
    properties: Value,
}

impl Provider<'_> {
    /// As BOSH lists it in errors.
    fn describe(&self) -> String {
        let alias = if self.alias == self.name {
            String::new()
        } else {
            format!(" with alias '{}'", self.alias)
        };
        format!(
            "'{}'{alias} from job '{}' in instance group '{}'",
            self.name, self.job, self.group.name
        )
    }
}

/// All links of a deployment.
pub(super) struct Links<'d> {
    deployment: &'d ResolvedDeployment,
    providers: Vec<Provider<'d>>,
    /// Group → its instances by index.
    instances: BTreeMap<&'d str, Vec<&'d Placed>>,
}

impl<'d> Links<'d> {
    /// `effective` has the properties that each job gets to see, by group and job.
    pub(super) fn new(
        deployment: &'d ResolvedDeployment,
        catalog: &Catalog,
        effective: &BTreeMap<(&str, &str), Value>,
        placed: &'d [Placed],
        errors: &mut Vec<Error>,
    ) -> Self {
        let mut providers = Vec::new();
        for group in &deployment.groups {
            for job in &group.jobs {
                let Some(properties) = effective.get(&(group.name.as_str(), job.name.as_str())) else {
                    continue;
                };
                provided_by(group, job, catalog, properties, &mut providers, errors);
            }
        }
        let mut instances: BTreeMap<&str, Vec<&Placed>> = BTreeMap::new();
        for instance in placed {
            instances.entry(&instance.group).or_default().push(instance);
        }
        Self {
            deployment,
            providers,
            instances,
        }
    }

    /// The links of one job, by its own names for them.
    pub(super) fn of(
        &self,
        group: &ResolvedGroup,
        job: &ResolvedJob,
        catalog: &Catalog,
        errors: &mut Vec<Error>,
    ) -> IndexMap<String, Link> {
        let Some(spec) = catalog.job(&job.release, &job.name) else {
            return IndexMap::new();
        };
        let names = || spec.consumes.iter().map(|link| link.name.clone()).collect();
        for name in job
            .consumes
            .keys()
            .filter(|name| spec.consumes.iter().all(|link| link.name != **name))
        {
            errors.push(unknown(group, job, name, "consume", names()));
        }
        let mut links = IndexMap::new();
        for wanted in &spec.consumes {
            match self.resolve(group, job, wanted) {
                Ok(Some(link)) => {
                    links.insert(wanted.name.clone(), link);
                }
                Ok(None) => {}
                Err(err) => errors.push(err),
            }
        }
        links
    }

    fn resolve(
        &self,
        group: &ResolvedGroup,
        job: &ResolvedJob,
        wanted: &ConsumeSpec,
    ) -> Result<Option<Link>, Error> {
        let (from, network) = match job.consumes.get(&wanted.name) {
            Some(ResolvedConsume::Blocked) => return Ok(None),
            Some(ResolvedConsume::Manual {
                addresses,
                properties,
                address,
            }) => {
                return Ok(Some(self.manual(addresses, properties, address.as_ref())));
            }
            Some(ResolvedConsume::Link { from, network }) => (from.as_deref(), network.as_deref()),
            None => (None, None),
        };
        let found: Vec<&Provider<'_>> = self
            .providers
            .iter()
            .filter(|provider| {
                provider.kind == wanted.kind && from.is_none_or(|alias| provider.alias == alias)
            })
            .collect();
        let (link, kind, job_name, group_name) = (
            from.unwrap_or(&wanted.name).to_owned(),
            wanted.kind.clone(),
            job.name.clone(),
            group.name.clone(),
        );
        match found[..] {
            [provider] => self.content(provider, network, group, job, wanted).map(Some),
            [] if from.is_none() && wanted.optional => Ok(None),
            [] => {
                let near = |provider: &&Provider<'_>| {
                    provider.kind == wanted.kind || from == Some(provider.alias.as_str())
                };
                let candidates = self.providers.iter().filter(near);
                let candidates = candidates
                    .map(|provider| format!("{} with type '{}'", provider.describe(), provider.kind))
                    .collect();
                Err(Error::NoProvider {
                    link,
                    kind,
                    job: job_name,
                    group: group_name,
                    candidates,
                })
            }
            _ => {
                let candidates = found.iter().map(|provider| provider.describe()).collect();
                Err(Error::SeveralProviders {
                    link,
                    kind,
                    job: job_name,
                    group: group_name,
                    candidates,
                })
            }
        }
    }

    fn content(
        &self,
        provider: &Provider<'_>,
        network: Option<&str>,
        group: &ResolvedGroup,
        job: &ResolvedJob,
        wanted: &ConsumeSpec,
    ) -> Result<Link, Error> {
        let own = &provider.group.networks;
        let default = own
            .iter()
            .find(|network| {
                network
                    .default
                    .contains(&stolos_manifest::DefaultFor::Addressable)
            })
            .or(own.first());
        let default_network = network
            .or(default.map(|network| network.name.as_str()))
            .unwrap_or_default();
        if !own.iter().any(|network| network.name == default_network) {
            return Err(Error::LinkNetwork {
                link: wanted.name.clone(),
                job: job.name.clone(),
                group: group.name.clone(),
                provider: provider.group.name.clone(),
                network: default_network.to_owned(),
            });
        }
        let instances = self
            .instances
            .get(provider.group.name.as_str())
            .map_or(&[][..], Vec::as_slice);
        Ok(Link {
            deployment_name: self.deployment.name.clone(),
            instance_group: provider.group.name.clone(),
            default_network: default_network.to_owned(),
            networks: own.iter().map(|network| network.name.clone()).collect(),
            properties: provider.properties.clone(),
            instances: instances
                .iter()
                .map(|instance| LinkInstance {
                    name: instance.group.clone(),
                    id: instance.id.to_string(),
                    index: instance.index,
                    bootstrap: instance.bootstrap,
                    az: instance.az.clone().unwrap_or_default(),
                    address: instance
                        .networks
                        .get(default_network)
                        .map_or(instance.address, |network| network.ip)
                        .to_string(),
                })
                .collect(),
            address: None,
        })
    }

    fn manual(&self, addresses: &[String], properties: &Value, address: Option<&String>) -> Link {
        Link {
            deployment_name: self.deployment.name.clone(),
            instance_group: String::new(),
            default_network: String::new(),
            networks: Vec::new(),
            properties: properties.clone(),
            instances: (0..)
                .zip(addresses)
                .map(|(index, address)| LinkInstance {
                    name: String::new(),
                    id: String::new(),
                    index,
                    bootstrap: index == 0,
                    az: String::new(),
                    address: address.clone(),
                })
                .collect(),
            address: address.cloned(),
        }
    }
}

fn provided_by<'d>(
    group: &'d ResolvedGroup,
    job: &'d ResolvedJob,
    catalog: &Catalog,
    effective: &Value,
    providers: &mut Vec<Provider<'d>>,
    errors: &mut Vec<Error>,
) {
    let Some(spec) = catalog.job(&job.release, &job.name) else {
        return;
    };
    let own = spec
        .provides
        .iter()
        .map(|link| (&link.name, &link.kind, &link.properties));
    let custom = job
        .custom_providers
        .iter()
        .map(|link| (&link.name, &link.kind, &link.properties));
    let all: Vec<_> = own.chain(custom).collect();
    for name in job
        .provides
        .keys()
        .filter(|name| all.iter().all(|(other, ..)| other != name))
    {
        errors.push(unknown(
            group,
            job,
            name,
            "provide",
            all.iter().map(|(name, ..)| (*name).clone()).collect(),
        ));
    }
    for (name, kind, names) in all {
        let alias = match job.provides.get(name) {
            Some(ResolvedProvide::Blocked) => continue,
            Some(ResolvedProvide::As { alias, .. }) => alias.clone(),
            None => None,
        };
        // What the manifest adds may show any property that it gives, declared by the job or not.
        let mut properties = properties::select(effective, names);
        if job.custom_providers.iter().any(|custom| custom.name == *name) {
            let given = properties::select(&job.properties, names);
            if let (Value::Object(properties), Value::Object(given)) = (&mut properties, given) {
                given.into_iter().for_each(|(key, value)| {
                    properties.entry(key).or_insert(value);
                });
            }
        }
        providers.push(Provider {
            group,
            job: &job.name,
            name: name.clone(),
            alias: alias.unwrap_or_else(|| name.clone()),
            kind: kind.clone(),
            properties,
        });
    }
}

fn unknown(
    group: &ResolvedGroup,
    job: &ResolvedJob,
    link: &str,
    verb: &'static str,
    candidates: Vec<String>,
) -> Error {
    Error::UnknownLink {
        job: job.name.clone(),
        group: group.name.clone(),
        link: link.to_owned(),
        verb,
        candidates,
    }
}
