//! Which instance, where, with which addresses and links.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;
use serde_json::Value;
use stolos_base::IdSource;
use stolos_base::ids::InstanceId;
use stolos_manifest::{DefaultFor, ResolvedDeployment, ResolvedGroup, ResolvedJob};

use super::addresses::Addresses;
use super::catalog::{Catalog, JobSpec};
use super::error::{Error, Errors};
use super::inventory::{Existing, Inventory, MachineSpec, NetworkSettings, PackageRef, State, StemcellRef};
use super::links::Links;
use super::properties;
use super::types::{GroupPlacement, JobPlacement, Placed, Placement, Reason};
use super::zones::{Slot, distribute};

/// Decides which instances there are, their zones, indexes, addresses and links, and what their jobs get to see.
///
/// New instances get their ids from `ids`; the same deployment, catalog and inventory give the same placement except
/// for those.
///
/// # Errors
/// All reasons why that is not possible.
pub fn place(
    deployment: &ResolvedDeployment,
    catalog: &Catalog,
    inventory: &Inventory,
    ids: &IdSource,
) -> Result<Placement, Errors> {
    let mut errors = Vec::new();
    let mut obsolete = Vec::new();
    let mut drafts = Vec::new();
    let assigned = assign_groups(deployment, inventory, &mut obsolete, &mut errors);
    for (group, existing) in deployment.groups.iter().zip(&assigned) {
        drafts.extend(group_drafts(
            deployment,
            group,
            existing,
            ids,
            &mut obsolete,
            &mut errors,
        ));
    }
    let instances = give_addresses(deployment, inventory, drafts, &mut errors);
    let groups = describe_groups(deployment, catalog, &instances, &mut errors);
    if !errors.is_empty() {
        return Err(Errors(errors));
    }
    Ok(Placement {
        deployment: deployment.name.clone(),
        instances,
        obsolete,
        groups,
        variables: deployment.variables.clone(),
        converge_variables: deployment.converge_variables,
    })
}

/// An instance before it has addresses.
struct Draft<'d> {
    group: &'d ResolvedGroup,
    id: InstanceId,
    index: u32,
    bootstrap: bool,
    slot: Slot<'d>,
}

/// Existing instances of each group, with the zone that counts for them, by index; those of groups that are gone are
/// obsolete.
fn assign_groups<'d>(
    deployment: &'d ResolvedDeployment,
    inventory: &'d Inventory,
    obsolete: &mut Vec<(InstanceId, Reason)>,
    errors: &mut Vec<Error>,
) -> Vec<Vec<(&'d Existing, Option<String>)>> {
    let mut assigned = vec![Vec::new(); deployment.groups.len()];
    // Current names go before former ones: a group may take over its own name's instances and others.
    let mut by_name: BTreeMap<&str, (usize, Option<&String>)> = BTreeMap::new();
    for (i, group) in deployment.groups.iter().enumerate() {
        for (former, az) in &group.migrated_from {
            by_name.insert(former, (i, az.as_ref()));
        }
    }
    for (i, group) in deployment.groups.iter().enumerate() {
        let az = by_name
            .get(group.name.as_str())
            .filter(|(owner, _)| *owner == i)
            .and_then(|(_, az)| *az);
        by_name.insert(&group.name, (i, az));
    }
    let mut sorted: Vec<&Existing> = inventory.instances.iter().collect();
    sorted.sort_by(|a, b| (&a.group, a.index, a.id).cmp(&(&b.group, b.index, b.id)));
    for instance in sorted {
        match by_name.get(instance.group.as_str()) {
            Some((group, az)) => {
                assigned[*group].push((instance, instance.az.clone().or_else(|| az.cloned())))
            }
            None if instance.ignored => errors.push(ignored(instance, "deleted")),
            None => obsolete.push((instance.id, Reason::GroupRemoved)),
        }
    }
    assigned
}

fn ignored(instance: &Existing, what: &'static str) -> Error {
    let name = format!("{}/{} ({})", instance.group, instance.id, instance.index);
    Error::Ignored {
        group: instance.group.clone(),
        instance: name,
        what,
    }
}

fn group_drafts<'d>(
    deployment: &'d ResolvedDeployment,
    group: &'d ResolvedGroup,
    existing: &[(&'d Existing, Option<String>)],
    ids: &IdSource,
    obsolete: &mut Vec<(InstanceId, Reason)>,
    errors: &mut Vec<Error>,
) -> Vec<Draft<'d>> {
    let slots = distribute(deployment, group, existing, errors);
    let kept: BTreeSet<InstanceId> = slots.iter().filter_map(|slot| Some(slot.existing?.id)).collect();
    for (instance, az) in existing
        .iter()
        .filter(|(instance, _)| !kept.contains(&instance.id))
    {
        let in_zone = match az {
            Some(az) => group.azs.contains(az),
            None => group.azs.is_empty(),
        };
        let fixed = group
            .networks
            .iter()
            .any(|network| !network.static_ips.is_empty());
        let why = if !in_zone {
            Reason::ZoneRemoved
        } else if existing.len() > slots.len() {
            Reason::ScaledDown
        } else if fixed {
            Reason::StaticAddressRemoved
        } else {
            Reason::Rebalanced
        };
        if instance.ignored {
            errors.push(ignored(
                instance,
                if why == Reason::ZoneRemoved {
                    "moved out of its zone"
                } else {
                    "deleted"
                },
            ));
        }
        obsolete.push((instance.id, why));
    }

    // Indexes of obsolete instances are still in use while the plan is carried out.
    let mut used = BTreeSet::new();
    let mut drafts: Vec<Draft<'d>> = Vec::new();
    let mut unnumbered = Vec::new();
    for (instance, _) in existing
        .iter()
        .filter(|(instance, _)| !kept.contains(&instance.id))
    {
        used.insert(instance.index);
    }
    for slot in slots {
        match slot.existing {
            // Two former groups may both have an instance 0; the first keeps the index.
            Some(instance) if used.insert(instance.index) => {
                drafts.push(Draft {
                    group,
                    id: instance.id,
                    index: instance.index,
                    bootstrap: false,
                    slot,
                });
            }
            _ => unnumbered.push(slot),
        }
    }
    let mut next = 0;
    for slot in unnumbered {
        while !used.insert(next) {
            next += 1;
        }
        let id = slot
            .existing
            .map_or_else(|| InstanceId::new(ids), |instance| instance.id);
        drafts.push(Draft {
            group,
            id,
            index: next,
            bootstrap: false,
            slot,
        });
    }
    drafts.sort_by_key(|draft| draft.index);
    choose_bootstrap(&mut drafts);
    drafts
}

/// The bootstrap instance stays what it is; otherwise it is the one with the lowest index that is not ignored, one
/// that exists before one that is new: a newcomer must not found a second cluster beside the one that is there.
fn choose_bootstrap(drafts: &mut [Draft<'_>]) {
    let first = |which: fn(&Existing) -> bool| {
        drafts
            .iter()
            .position(|draft| draft.slot.existing.is_some_and(which))
    };
    let chosen = first(|instance| instance.bootstrap)
        .or_else(|| first(|instance| !instance.ignored))
        .or_else(|| drafts.iter().position(|draft| draft.slot.existing.is_none()))
        .or(Some(0));
    if let Some(draft) = chosen.and_then(|position| drafts.get_mut(position)) {
        draft.bootstrap = true;
    }
}

fn give_addresses(
    deployment: &ResolvedDeployment,
    inventory: &Inventory,
    drafts: Vec<Draft<'_>>,
    errors: &mut Vec<Error>,
) -> Vec<Placed> {
    let mut addresses = Addresses::new(deployment, inventory);
    let mut given: Vec<BTreeMap<&str, std::net::IpAddr>> = vec![BTreeMap::new(); drafts.len()];
    // First what must be: ignored instances keep what they have, and static addresses.
    for (draft, given) in drafts.iter().zip(&mut given) {
        let label = label(draft);
        let ignored = draft.slot.existing.filter(|instance| instance.ignored);
        for network in &draft.group.networks {
            let own = ignored
                .and_then(|instance| instance.addresses.get(&network.name))
                .copied();
            let fixed = own.or_else(|| draft.slot.statics.get(&network.name).copied());
            let Some(address) = fixed else {
                continue;
            };
            match addresses.take(address, &draft.group.name, &label) {
                Ok(()) => {
                    given.insert(&network.name, address);
                }
                Err(err) => errors.push(err),
            }
        }
    }
    // Then what can be: instances keep what they have.
    for (draft, given) in drafts.iter().zip(&mut given) {
        for network in draft
            .group
            .networks
            .iter()
            .filter(|network| network.static_ips.is_empty())
        {
            let own = draft
                .slot
                .existing
                .and_then(|instance| instance.addresses.get(&network.name))
                .copied();
            if let Some(own) = own.filter(|_| !given.contains_key(network.name.as_str()))
                && addresses.keep(&network.name, draft.slot.az.as_deref(), own, &label(draft))
            {
                given.insert(&network.name, own);
            }
        }
    }
    // Then the lowest free ones.
    let mut placed = Vec::with_capacity(drafts.len());
    for (draft, mut given) in drafts.into_iter().zip(given) {
        for network in draft
            .group
            .networks
            .iter()
            .filter(|network| network.static_ips.is_empty())
        {
            if given.contains_key(network.name.as_str()) {
                continue;
            }
            match addresses.next(&network.name, draft.slot.az.as_deref(), &label(&draft)) {
                Some(address) => {
                    given.insert(&network.name, address);
                }
                None => errors.push(Error::NoAddressLeft {
                    instance: label(&draft),
                    network: network.name.clone(),
                    az: draft.slot.az.clone(),
                }),
            }
        }
        placed.extend(finish(draft, &given, &addresses));
    }
    placed
}

fn label(draft: &Draft<'_>) -> String {
    format!("{}/{}", draft.group.name, draft.index)
}

/// The instance with its addresses; `None` when it did not get all of them, which is an error already.
fn finish(
    draft: Draft<'_>,
    given: &BTreeMap<&str, std::net::IpAddr>,
    addresses: &Addresses<'_>,
) -> Option<Placed> {
    let group = draft.group;
    let mut networks = IndexMap::new();
    for network in &group.networks {
        let ip = *given.get(network.name.as_str())?;
        // An ignored instance may have an address that is in no subnet any more; nothing is done to it anyway.
        let subnet = addresses.subnet_of(&network.name, ip);
        let range = subnet.map_or_else(|| ip.into(), |subnet| subnet.range);
        networks.insert(
            network.name.clone(),
            NetworkSettings {
                ip,
                range,
                gateway: subnet.and_then(|subnet| subnet.gateway),
                dns: subnet.map(|subnet| subnet.dns.clone()).unwrap_or_default(),
                default: network.default.clone(),
                cloud_properties: subnet.map_or(Value::Null, |subnet| subnet.cloud_properties.clone()),
            },
        );
    }
    let shown = networks
        .values()
        .find(|network: &&NetworkSettings| network.default.contains(&DefaultFor::Addressable));
    let address = shown.or_else(|| networks.values().next())?.ip;
    let az = draft.slot.az;
    let properties = group.cloud_properties.get(az.as_deref().unwrap_or_default());
    Some(Placed {
        id: draft.id,
        group: group.name.clone(),
        index: draft.index,
        bootstrap: draft.bootstrap,
        existing: draft.slot.existing.is_some(),
        ignored: draft.slot.existing.is_some_and(|instance| instance.ignored),
        state: draft
            .slot
            .existing
            .map_or(State::Started, |instance| instance.state),
        address,
        machine: MachineSpec {
            stemcell: stemcell(group),
            az: az.clone(),
            cloud_properties: properties
                .cloned()
                .unwrap_or_else(|| Value::Object(serde_json::Map::new())),
            env: group.env.clone(),
            networks: networks.clone(),
        },
        az,
        networks,
    })
}

fn stemcell(group: &ResolvedGroup) -> StemcellRef {
    StemcellRef {
        name: group.stemcell.name.clone(),
        version: group.stemcell.version.clone(),
    }
}

fn describe_groups(
    deployment: &ResolvedDeployment,
    catalog: &Catalog,
    placed: &[Placed],
    errors: &mut Vec<Error>,
) -> IndexMap<String, GroupPlacement> {
    let mut effective = BTreeMap::new();
    for group in &deployment.groups {
        for job in &group.jobs {
            if let Some(spec) = known_job(group, job, catalog, errors) {
                effective.insert(
                    (group.name.as_str(), job.name.as_str()),
                    properties::effective(spec, &job.properties),
                );
            }
        }
    }
    let links = Links::new(deployment, catalog, &effective, placed, errors);
    let mut groups = IndexMap::new();
    for group in &deployment.groups {
        let mut jobs = Vec::new();
        for job in &group.jobs {
            let Some(spec) = catalog.job(&job.release, &job.name) else {
                continue;
            };
            jobs.push(JobPlacement {
                name: job.name.clone(),
                release: job.release.clone(),
                fingerprint: spec.fingerprint.clone(),
                packages: spec.packages.clone(),
                properties: effective
                    .get(&(group.name.as_str(), job.name.as_str()))
                    .cloned()
                    .unwrap_or(Value::Null),
                links: links.of(group, job, catalog, errors),
            });
        }
        let packages = packages(group, &jobs, catalog, errors);
        groups.insert(
            group.name.clone(),
            GroupPlacement {
                lifecycle: group.lifecycle,
                azs: group.azs.clone(),
                update: group.update,
                stemcell: stemcell(group),
                persistent_disk: group.persistent_disk.clone(),
                tags: group.tags.clone(),
                jobs,
                packages,
            },
        );
    }
    groups
}

fn known_job<'c>(
    group: &ResolvedGroup,
    job: &ResolvedJob,
    catalog: &'c Catalog,
    errors: &mut Vec<Error>,
) -> Option<&'c JobSpec> {
    let spec = catalog.job(&job.release, &job.name);
    if spec.is_none() {
        errors.push(Error::UnknownJob {
            job: job.name.clone(),
            group: group.name.clone(),
            release: format!("{}/{}", job.release.name, job.release.version),
            candidates: catalog.job_names(&job.release).map(str::to_owned).collect(),
        });
    }
    spec
}

fn packages(
    group: &ResolvedGroup,
    jobs: &[JobPlacement],
    catalog: &Catalog,
    errors: &mut Vec<Error>,
) -> BTreeMap<String, PackageRef> {
    let mut packages: BTreeMap<String, (PackageRef, &str)> = BTreeMap::new();
    for job in jobs {
        let release = format!("{}/{}", job.release.name, job.release.version);
        for name in &job.packages {
            let Some(spec) = catalog.package(&job.release, name) else {
                errors.push(Error::UnknownPackage {
                    job: job.name.clone(),
                    package: name.clone(),
                    release: release.clone(),
                });
                continue;
            };
            let wanted = PackageRef {
                release: job.release.clone(),
                version: spec.version.clone(),
                digest: spec.digest.clone(),
            };
            match packages.get(name) {
                Some((other, other_job)) if *other != wanted => errors.push(Error::PackageCollision {
                    group: group.name.clone(),
                    package: name.clone(),
                    first: format!(
                        "job '{other_job}' of release '{}/{}'",
                        other.release.name, other.release.version
                    ),
                    second: format!("job '{}' of release '{release}'", job.name),
                }),
                Some(_) => {}
                None => {
                    packages.insert(name.clone(), (wanted, &job.name));
                }
            }
        }
    }
    packages
        .into_iter()
        .map(|(name, (package, _))| (name, package))
        .collect()
}
