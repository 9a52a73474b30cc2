//! From a manifest and a cloud config to a deployment in which no name is left to look up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use indexmap::IndexMap;
use serde_json::Value as Json;

use crate::cloud::{CloudConfig, Network, Subnet};
use crate::fields::{Reader, similar};
use crate::model::{
    Consume, Count, DefaultFor, InstanceGroup, Job, Manifest, Provide, UpdateOverride, Variable, VersionWish,
    WatchTime,
};
use crate::problem::{Problems, code};
use crate::read_group::default_word;
use crate::resolved::{
    Known, PersistentDisk, ResolvedAz, ResolvedCompilation, ResolvedConsume, ResolvedDeployment,
    ResolvedGroup, ResolvedGroupNetwork, ResolvedJob, ResolvedNetwork, ResolvedProvide, ResolvedProvider,
    ResolvedRelease, ResolvedStemcell, ResolvedSubnet, ResolvedVariable, Update,
};
use crate::{variables, version};
use stolos_document::{Located, Place};

/// The name as it becomes part of DNS names: lower case, `-` for `_`. Two groups may not have the same one.
#[must_use]
pub fn canonical_name(name: &str) -> String {
    name.to_lowercase().replace('_', "-")
}

/// Resolves every name of a manifest: types and networks against the cloud config, releases and stemcells against
/// what has been uploaded.
///
/// # Errors
/// Everything that is wrong with the manifest in view of the others; all problems point into the manifest.
pub fn resolve(
    manifest: &Manifest,
    cloud: &CloudConfig,
    known: &Known,
) -> Result<ResolvedDeployment, Problems> {
    let mut r = Reader::new("manifest");
    let releases: Vec<_> = manifest
        .releases
        .iter()
        .map(|wish| release(&wish.name, &wish.version, known, &mut r))
        .collect();
    let stemcells: Vec<_> = manifest
        .stemcells
        .iter()
        .filter_map(|wish| stemcell(wish, known, &mut r))
        .collect();
    let mut ctx = Ctx {
        manifest,
        cloud,
        releases: &releases,
        stemcells: &stemcells,
        static_owners: BTreeMap::new(),
        r: &mut r,
    };
    let groups: Vec<_> = manifest
        .instance_groups
        .iter()
        .filter_map(|group| ctx.group(group))
        .collect();
    let variables = ordered_variables(manifest, &mut r);
    Problems::check(r.problems)?;
    Ok(ResolvedDeployment {
        name: manifest.name.clone(),
        azs: cloud
            .azs
            .iter()
            .map(|az| {
                (
                    az.name.clone(),
                    ResolvedAz {
                        cpi: az.cpi.clone(),
                        cloud_properties: az.cloud_properties.to_json(),
                    },
                )
            })
            .collect(),
        networks: used_networks(manifest, cloud),
        compilation: compilation(cloud),
        tags: manifest.tags.clone(),
        converge_variables: manifest.features.converge_variables,
        releases,
        stemcells,
        variables,
        groups,
    })
}

fn release(name: &Located<String>, wish: &VersionWish, known: &Known, r: &mut Reader) -> ResolvedRelease {
    let mut resolved = ResolvedRelease {
        name: name.value.clone(),
        version: String::new(),
    };
    let Some(versions) = known
        .releases
        .get(&name.value)
        .filter(|versions| !versions.is_empty())
    else {
        let hint = similar(name, known.releases.keys().map(String::as_str))
            .map(|name| format!("did you mean '{name}'?"));
        r.problem_with_hint(
            &name.place,
            code::RELEASE_NOT_FOUND,
            format!("release '{}' doesn't exist", name.value),
            hint,
        );
        return resolved;
    };
    match pick(wish, versions.iter().map(String::as_str)) {
        Some(version) => resolved.version = version.to_owned(),
        None => {
            let text = format!(
                "release version '{}/{}' doesn't exist",
                name.value,
                wish_text(wish)
            );
            r.problem(&name.place, code::RELEASE_VERSION_NOT_FOUND, text);
        }
    }
    resolved
}

/// The version that a wish means among those that there are.
fn pick<'v>(wish: &VersionWish, versions: impl Iterator<Item = &'v str>) -> Option<&'v str> {
    let mut matching = versions.filter(|version| match wish {
        VersionWish::Exact(exact) => version == exact,
        VersionWish::Latest => true,
        VersionWish::LatestOf(prefix) => version.starts_with(prefix.as_str()),
    });
    match wish {
        VersionWish::Exact(_) => matching.next(),
        VersionWish::Latest | VersionWish::LatestOf(_) => matching.max_by(|a, b| version::compare(a, b)),
    }
}

fn wish_text(wish: &VersionWish) -> String {
    match wish {
        VersionWish::Exact(version) => version.clone(),
        VersionWish::Latest => "latest".to_owned(),
        VersionWish::LatestOf(prefix) => format!("{prefix}latest"),
    }
}

fn stemcell(wish: &crate::model::Stemcell, known: &Known, r: &mut Reader) -> Option<ResolvedStemcell> {
    let fits = |offer: &&crate::resolved::StemcellOffer| {
        wish.os.as_ref().is_none_or(|os| *os == offer.os)
            && wish.name.as_ref().is_none_or(|name| *name == offer.name)
    };
    let version = pick(
        &wish.version,
        known
            .stemcells
            .iter()
            .filter(fits)
            .map(|offer| offer.version.as_str()),
    );
    let found = version.and_then(|version| {
        known
            .stemcells
            .iter()
            .filter(fits)
            .find(|offer| offer.version == version)
    });
    let Some(offer) = found else {
        let version = wish_text(&wish.version);
        let text = match (&wish.os, &wish.name) {
            (Some(os), _) => format!("stemcell version '{version}' for OS '{os}' doesn't exist"),
            (None, name) => format!(
                "stemcell '{}/{version}' doesn't exist",
                name.as_deref().unwrap_or_default()
            ),
        };
        r.problem(&wish.alias.place, code::STEMCELL_NOT_FOUND, text);
        return None;
    };
    Some(ResolvedStemcell {
        alias: wish.alias.value.clone(),
        name: offer.name.clone(),
        os: offer.os.clone(),
        version: offer.version.clone(),
    })
}

/// The networks of the deployment's groups; a cloud config may have thousands of others.
fn used_networks(manifest: &Manifest, cloud: &CloudConfig) -> IndexMap<String, ResolvedNetwork> {
    let groups = manifest.instance_groups.iter().flat_map(|group| &group.networks);
    let used: BTreeSet<&str> = groups.map(|network| network.name.as_str()).collect();
    cloud
        .networks
        .iter()
        .filter(|network| used.contains(network.name.as_str()))
        .map(|network| (network.name.clone(), resolved_network(network)))
        .collect()
}

fn resolved_network(network: &Network) -> ResolvedNetwork {
    let subnet = |subnet: &Subnet| ResolvedSubnet {
        range: subnet.range,
        gateway: subnet.gateway,
        dns: subnet.dns.clone(),
        reserved: subnet.reserved.clone(),
        statics: subnet.statics.clone(),
        azs: subnet.azs.iter().map(|az| az.value.clone()).collect(),
        cloud_properties: subnet.cloud_properties.to_json(),
    };
    ResolvedNetwork {
        subnets: network.subnets.iter().map(subnet).collect(),
    }
}

fn compilation(cloud: &CloudConfig) -> Option<ResolvedCompilation> {
    let compilation = cloud.compilation.as_ref()?;
    let az = compilation
        .az
        .as_ref()
        .and_then(|name| cloud.azs.iter().find(|az| az.name == name.value));
    let vm_type = compilation
        .vm_type
        .as_ref()
        .and_then(|name| cloud.vm_types.iter().find(|vm_type| vm_type.name == name.value));
    let mut cloud_properties = az.map_or_else(
        || Json::Object(serde_json::Map::new()),
        |az| az.cloud_properties.to_json(),
    );
    if let Some(vm_type) = vm_type {
        merge(&mut cloud_properties, vm_type.cloud_properties.to_json());
    }
    merge(&mut cloud_properties, compilation.cloud_properties.to_json());
    Some(ResolvedCompilation {
        workers: compilation.workers,
        az: az.map(|az| az.name.clone()),
        cloud_properties,
        network: compilation.network.value.clone(),
        reuse_compilation_vms: compilation.reuse_compilation_vms,
        env: compilation.env.to_json(),
    })
}

/// Deep merge; the later wins.
fn merge(into: &mut Json, from: Json) {
    match (into, from) {
        (Json::Object(into), Json::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Json::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

struct Ctx<'c> {
    manifest: &'c Manifest,
    cloud: &'c CloudConfig,
    releases: &'c [ResolvedRelease],
    stemcells: &'c [ResolvedStemcell],
    /// Static addresses so far, by network, with the group that named them.
    static_owners: BTreeMap<(&'c str, IpAddr), &'c str>,
    r: &'c mut Reader,
}

impl<'c> Ctx<'c> {
    fn group(&mut self, group: &'c InstanceGroup) -> Option<ResolvedGroup> {
        let cloud = self.cloud;
        self.check_azs(group);
        let vm_type = self.named(group, "vm type", &group.vm_type, &cloud.vm_types, |vm_type| {
            &vm_type.name
        });
        let extensions: Vec<_> = group
            .vm_extensions
            .iter()
            .filter_map(|name| {
                self.named(group, "vm extension", name, &cloud.vm_extensions, |vm_type| {
                    &vm_type.name
                })
            })
            .collect();
        let properties = vm_type.map(|vm_type| {
            let azs: Vec<&str> = if group.azs.is_empty() {
                vec![""]
            } else {
                group.azs.iter().map(|az| az.as_str()).collect()
            };
            azs.into_iter()
                .map(|name| {
                    let az = cloud.azs.iter().find(|az| az.name == name);
                    let mut merged = az.map_or_else(
                        || Json::Object(serde_json::Map::new()),
                        |az| az.cloud_properties.to_json(),
                    );
                    merge(&mut merged, vm_type.cloud_properties.to_json());
                    extensions
                        .iter()
                        .for_each(|extension| merge(&mut merged, extension.cloud_properties.to_json()));
                    (name.to_owned(), merged)
                })
                .collect()
        });
        let persistent_disk = self.disk(group);
        let networks = self.networks(group);
        let jobs = self.jobs(group);
        self.check_migrations(group);
        let stemcell = self
            .stemcells
            .iter()
            .find(|stemcell| stemcell.alias == group.stemcell.value)
            .cloned();
        let mut tags = self.manifest.tags.clone();
        tags.extend(group.tags.clone());
        Some(ResolvedGroup {
            name: group.name.clone(),
            instances: group.instances,
            azs: group.azs.iter().map(|az| az.value.clone()).collect(),
            lifecycle: group.lifecycle,
            vm_type: group.vm_type.value.clone(),
            cloud_properties: properties?,
            stemcell: stemcell?,
            persistent_disk,
            networks,
            jobs,
            update: update(&self.manifest.update, &group.update),
            migrated_from: group
                .migrated_from
                .iter()
                .map(|former| (former.name.clone(), former.az.as_ref().map(|az| az.value.clone())))
                .collect(),
            env: group.env.to_json(),
            tags,
        })
    }

    /// Looks a name up or reports that it is not there.
    fn named<T>(
        &mut self,
        group: &InstanceGroup,
        what: &str,
        name: &Located<String>,
        list: &'c [T],
        name_of: fn(&T) -> &String,
    ) -> Option<&'c T> {
        let found = list.iter().find(|item| *name_of(item) == name.value);
        if found.is_none() {
            let hint = similar(name, list.iter().map(|item| name_of(item).as_str()))
                .map(|name| format!("did you mean '{name}'?"));
            let text = format!(
                "instance group '{}' references an unknown {what} '{}'",
                group.name, name.value
            );
            self.r
                .problem_with_hint(&name.place, code::BAD_MANIFEST, text, hint);
        }
        found
    }

    fn check_azs(&mut self, group: &InstanceGroup) {
        for az in group
            .azs
            .iter()
            .chain(group.migrated_from.iter().filter_map(|former| former.az.as_ref()))
        {
            self.named(group, "availability zone", az, &self.cloud.azs, |az| &az.name);
        }
    }

    fn check_migrations(&mut self, group: &InstanceGroup) {
        for former in &group.migrated_from {
            if former.name != group.name
                && self
                    .manifest
                    .instance_groups
                    .iter()
                    .any(|other| other.name == former.name)
            {
                let text = format!(
                    "failed to migrate instance group '{}' to '{}': the former is still in the manifest",
                    former.name, group.name
                );
                self.r.problem(&group.place, code::BAD_MANIFEST, text);
            }
        }
    }

    fn disk(&mut self, group: &InstanceGroup) -> Option<PersistentDisk> {
        if let Some(size_mib) = group.persistent_disk_mib {
            return Some(PersistentDisk {
                size_mib,
                kind: None,
                cloud_properties: Json::Object(serde_json::Map::new()),
            });
        }
        let name = group.persistent_disk_type.as_ref()?;
        let kind = self.named(group, "disk type", name, &self.cloud.disk_types, |disk_type| {
            &disk_type.name
        })?;
        (kind.size_mib > 0).then(|| PersistentDisk {
            size_mib: kind.size_mib,
            kind: Some(kind.name.clone()),
            cloud_properties: kind.cloud_properties.to_json(),
        })
    }

    fn networks(&mut self, group: &'c InstanceGroup) -> Vec<ResolvedGroupNetwork> {
        let only = group.networks.len() == 1;
        let addressable_given = group
            .networks
            .iter()
            .any(|network| network.default.contains(&DefaultFor::Addressable));
        let mut resolved = Vec::new();
        for wish in &group.networks {
            let Some(network) = self.named(group, "network", &wish.name, &self.cloud.networks, |network| {
                &network.name
            }) else {
                continue;
            };
            self.check_network_azs(group, &wish.name, network);
            let statics = self.statics(group, wish, network);
            let mut default = if only {
                vec![DefaultFor::Addressable, DefaultFor::Dns, DefaultFor::Gateway]
            } else {
                wish.default.clone()
            };
            // The network of the default route shows itself unless another one was chosen.
            if !addressable_given && !only && default.contains(&DefaultFor::Gateway) {
                default.push(DefaultFor::Addressable);
            }
            default.sort_unstable();
            self.check_default_gateway(group, &wish.name, network, &default);
            resolved.push(ResolvedGroupNetwork {
                name: wish.name.value.clone(),
                static_ips: statics,
                default,
            });
        }
        resolved
    }

    fn check_default_gateway(
        &mut self,
        group: &InstanceGroup,
        name: &Located<String>,
        network: &Network,
        default: &[DefaultFor],
    ) {
        if group.networks.len() > 1
            && default.contains(&DefaultFor::Gateway)
            && network.subnets.iter().all(|subnet| subnet.gateway.is_none())
        {
            let text = format!(
                "network '{}' of instance group '{}' is the default for '{}' but has none",
                name.value,
                group.name,
                default_word(DefaultFor::Gateway)
            );
            self.r.problem(&name.place, code::BAD_MANIFEST, text);
        }
    }

    fn check_network_azs(&mut self, group: &InstanceGroup, name: &Located<String>, network: &Network) {
        let zoned = network.subnets.iter().any(|subnet| !subnet.azs.is_empty());
        if !zoned {
            return;
        }
        if group.azs.is_empty() {
            let text = format!(
                "instance group '{}' must specify availability zone that matches availability zones of network '{}'",
                group.name, name.value
            );
            self.r.problem(&name.place, code::BAD_MANIFEST, text);
        }
        for az in &group.azs {
            if !network.subnets.iter().any(|subnet| has_az(subnet, az)) {
                let text = format!(
                    "network '{}' has no subnet in availability zone '{}' of instance group '{}'",
                    name.value, az.value, group.name
                );
                self.r.problem(&name.place, code::BAD_MANIFEST, text);
            }
        }
    }

    fn statics(
        &mut self,
        group: &'c InstanceGroup,
        wish: &'c crate::model::GroupNetwork,
        network: &Network,
    ) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for range in &wish.static_ips {
            for address in range.iter() {
                if let Some(text) = self.static_fault(group, wish.name.as_str(), network, address) {
                    self.r.problem(&range.place, code::STATIC_IP_MISMATCH, text);
                    // One problem per range is enough to find all of them.
                    break;
                }
                addresses.push(address);
            }
        }
        addresses
    }

    fn static_fault(
        &mut self,
        group: &'c InstanceGroup,
        name: &'c str,
        network: &Network,
        address: IpAddr,
    ) -> Option<String> {
        let group_name = &group.name;
        let Some(subnet) = network
            .subnets
            .iter()
            .find(|subnet| subnet.range.contains(&address))
        else {
            return Some(format!(
                "instance group '{group_name}' with network '{name}' declares static ip '{address}', which belongs to no subnet"
            ));
        };
        if !subnet.statics.contains(address) {
            return Some(format!(
                "instance group '{group_name}' with network '{name}' declares static ip '{address}', which is not in the static range of '{}'",
                subnet.range
            ));
        }
        if !subnet.azs.is_empty() && !group.azs.iter().any(|az| has_az(subnet, az)) {
            return Some(format!(
                "instance group '{group_name}' declares static ip '{address}' which does not belong to any of the instance group's availability zones"
            ));
        }
        let owner = self.static_owners.insert((name, address), group_name)?;
        Some(format!(
            "static ip '{address}' on network '{name}' is declared by both '{owner}' and '{group_name}'"
        ))
    }

    fn jobs(&mut self, group: &InstanceGroup) -> Vec<ResolvedJob> {
        let mut jobs: Vec<_> = group.jobs.iter().filter_map(|job| self.job(job, group)).collect();
        for addon in &self.manifest.addons {
            let included = addon.include_groups.is_empty() || addon.include_groups.contains(&group.name);
            if !included || addon.exclude_groups.contains(&group.name) {
                continue;
            }
            for job in &addon.jobs {
                if jobs.iter().any(|other| other.name == job.name.value) {
                    let text = format!(
                        "colocated job '{}' is already added to the instance group '{}'",
                        job.name.value, group.name
                    );
                    self.r.problem(&job.name.place, code::BAD_MANIFEST, text);
                } else {
                    jobs.extend(self.job(job, group));
                }
            }
        }
        jobs
    }

    fn job(&mut self, job: &Job, group: &InstanceGroup) -> Option<ResolvedJob> {
        let consume = |consume: &Consume| match consume {
            Consume::Blocked => ResolvedConsume::Blocked,
            Consume::Link(link) => ResolvedConsume::Link {
                from: link.from.as_ref().map(|from| from.value.clone()),
                network: link.network.as_ref().map(|network| network.value.clone()),
            },
            Consume::Manual {
                instances,
                properties,
                address,
            } => ResolvedConsume::Manual {
                addresses: instances
                    .iter()
                    .map(|instance| instance.address.clone())
                    .collect(),
                properties: properties.to_json(),
                address: address.clone(),
            },
        };
        let provide = |provide: &Provide| match provide {
            Provide::Blocked => ResolvedProvide::Blocked,
            Provide::As { alias, shared } => ResolvedProvide::As {
                alias: alias.clone(),
                shared: *shared,
            },
        };
        let properties = job.properties.as_ref().or(group.properties.as_ref());
        Some(ResolvedJob {
            name: job.name.value.clone(),
            release: self
                .releases
                .iter()
                .find(|release| release.name == job.release.value)?
                .clone(),
            properties: properties.map_or_else(|| Json::Object(serde_json::Map::new()), crate::Node::to_json),
            consumes: job
                .consumes
                .iter()
                .map(|(name, link)| (name.clone(), consume(link)))
                .collect(),
            provides: job
                .provides
                .iter()
                .map(|(name, link)| (name.clone(), provide(link)))
                .collect(),
            custom_providers: job
                .custom_providers
                .iter()
                .map(|provider| ResolvedProvider {
                    name: provider.name.clone(),
                    kind: provider.kind.clone(),
                    properties: provider.properties.clone(),
                })
                .collect(),
        })
    }
}

fn has_az(subnet: &Subnet, az: &Located<String>) -> bool {
    subnet.azs.iter().any(|other| other.value == az.value)
}

/// What the group says, else what the deployment says. The deployment's numbers were checked to be there.
fn update(base: &UpdateOverride, group: &UpdateOverride) -> Update {
    let instant = WatchTime { min_ms: 0, max_ms: 0 };
    Update {
        canaries: group.canaries.or(base.canaries).unwrap_or(Count::Absolute(1)),
        max_in_flight: group
            .max_in_flight
            .or(base.max_in_flight)
            .unwrap_or(Count::Absolute(1)),
        canary_watch_time: group
            .canary_watch_time
            .or(base.canary_watch_time)
            .unwrap_or(instant),
        update_watch_time: group
            .update_watch_time
            .or(base.update_watch_time)
            .unwrap_or(instant),
        serial: group.serial.or(base.serial).unwrap_or(true),
        initial_deploy_az_parallel: group
            .initial_deploy_az_parallel
            .or(base.initial_deploy_az_parallel)
            .unwrap_or(false),
    }
}

/// Variables so that each comes after those that its options name; otherwise in the order of the manifest.
fn ordered_variables(manifest: &Manifest, r: &mut Reader) -> Vec<ResolvedVariable> {
    let by_name: IndexMap<&str, &Variable> = manifest
        .variables
        .iter()
        .map(|variable| (variable.name.as_str(), variable))
        .collect();
    let mut done = BTreeSet::new();
    let mut ordered = Vec::new();
    for name in by_name.keys() {
        visit(name, &by_name, &mut Vec::new(), &mut done, &mut ordered, r);
    }
    let default_mode = if manifest.features.converge_variables {
        "converge"
    } else {
        "no-overwrite"
    };
    ordered
        .into_iter()
        .map(|variable| ResolvedVariable {
            name: variable.name.value.clone(),
            kind: variable.kind.clone(),
            options: variable.options.to_json(),
            mode: variable
                .update_mode
                .clone()
                .unwrap_or_else(|| default_mode.to_owned()),
        })
        .collect()
}

fn visit<'m>(
    name: &'m str,
    by_name: &IndexMap<&'m str, &'m Variable>,
    path: &mut Vec<&'m str>,
    done: &mut BTreeSet<&'m str>,
    ordered: &mut Vec<&'m Variable>,
    r: &mut Reader,
) {
    let Some(&variable) = by_name.get(name) else {
        return;
    };
    if done.contains(name) {
        return;
    }
    if path.contains(&name) {
        let place: &Place = &variable.name.place;
        let text = format!("variable '{name}' needs itself: {} → {name}", path.join(" → "));
        r.problem(place, code::BAD_MANIFEST, text);
        done.insert(name);
        return;
    }
    path.push(name);
    let named = variables::names(&variable.options.to_json());
    let authority = variable.options.get("ca").and_then(|ca| ca.as_str());
    for needed in named.iter().map(String::as_str).chain(authority) {
        if let Some((&needed, _)) = by_name.get_key_value(needed) {
            visit(needed, by_name, path, done, ordered, r);
        }
    }
    path.pop();
    if done.insert(name) {
        ordered.push(variable);
    }
}
