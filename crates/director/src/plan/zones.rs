//! Which existing instance stays, which zone gets a new one, which static address goes where.
//!
//! Without static addresses (bosh.md section 5.3): ignored instances keep their place; instances with persistent disks
//! stay in their zone while the group has disks; the rest fill the least loaded zone, on a tie one with an instance to reuse, else in the order
//! of the group.
//!
//! With static addresses: instances keep the ones that they have; every zone gets as many as its subnets name, where a
//! subnet spans several zones the least loaded one; further networks have to fit the same numbers, which is a matching
//! of subnets to zones and needs no search through combinations.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use stolos_manifest::{ResolvedDeployment, ResolvedGroup};

use super::error::Error;
use super::inventory::Existing;

/// One instance that a group should have.
#[derive(Debug)]
pub(super) struct Slot<'i> {
    pub(super) existing: Option<&'i Existing>,
    pub(super) az: Option<String>,
    /// Network → static address.
    pub(super) statics: BTreeMap<String, IpAddr>,
}

/// Distributes the instances of a group. `existing` are the group's instances with the zone that counts for them,
/// sorted by index.
pub(super) fn distribute<'i>(
    deployment: &ResolvedDeployment,
    group: &ResolvedGroup,
    existing: &[(&'i Existing, Option<String>)],
    errors: &mut Vec<Error>,
) -> Vec<Slot<'i>> {
    let mut zones = Zones::new(group, existing);
    if group
        .networks
        .iter()
        .any(|network| !network.static_ips.is_empty())
    {
        statics(deployment, group, &mut zones, errors)
    } else {
        dynamics(group, &mut zones)
    }
}

/// The zones of a group and who is in them.
struct Zones<'i> {
    /// Zones in order; a single `None` when the group has none.
    order: Vec<Option<String>>,
    /// How many instances each zone has been given.
    load: Vec<usize>,
    /// Existing instances that nobody has claimed, by zone, in the order in which they are to be claimed.
    unclaimed: Vec<Vec<&'i Existing>>,
}

impl<'i> Zones<'i> {
    fn new(group: &ResolvedGroup, existing: &[(&'i Existing, Option<String>)]) -> Self {
        let order: Vec<Option<String>> = if group.azs.is_empty() {
            vec![None]
        } else {
            group.azs.iter().cloned().map(Some).collect()
        };
        let mut unclaimed = vec![Vec::new(); order.len()];
        for (instance, az) in existing {
            if let Some(zone) = order.iter().position(|zone| zone == az) {
                unclaimed[zone].push(*instance);
            }
        }
        // Whom nobody may move comes first, then who has something to lose, then by index.
        for zone in &mut unclaimed {
            zone.sort_by_key(|instance| (!instance.ignored, !has_disk(group, instance), instance.index));
        }
        Self {
            load: vec![0; order.len()],
            order,
            unclaimed,
        }
    }

    /// The least loaded zone; on a tie one with an instance to reuse, else the first.
    fn least_loaded(&self, among: impl Iterator<Item = usize>) -> Option<usize> {
        among.min_by_key(|&zone| (self.load[zone], self.unclaimed[zone].is_empty(), zone))
    }

    /// Gives the zone one more instance: an existing one when there is one.
    fn fill(&mut self, zone: usize) -> Slot<'i> {
        self.load[zone] += 1;
        let existing = (!self.unclaimed[zone].is_empty()).then(|| self.unclaimed[zone].remove(0));
        self.slot(zone, existing)
    }

    fn claim(&mut self, zone: usize, instance: &'i Existing) -> Slot<'i> {
        self.load[zone] += 1;
        self.unclaimed[zone].retain(|other| other.id != instance.id);
        self.slot(zone, Some(instance))
    }

    fn slot(&self, zone: usize, existing: Option<&'i Existing>) -> Slot<'i> {
        Slot {
            existing,
            az: self.order[zone].clone(),
            statics: BTreeMap::new(),
        }
    }

    /// All unclaimed instances with their zones for which `which` holds, by index.
    fn select(&self, which: impl Fn(&Existing) -> bool) -> Vec<(usize, &'i Existing)> {
        let all = self.unclaimed.iter().enumerate();
        let mut found: Vec<_> = all
            .flat_map(|(zone, list)| list.iter().map(move |&instance| (zone, instance)))
            .filter(|(_, i)| which(i))
            .collect();
        found.sort_by_key(|(_, instance)| instance.index);
        found
    }
}

/// Whether an instance would lose its data elsewhere. A disk that the group gives up anyway holds nobody back: else
/// the deploy that gives it up would leave the next, unchanged one something to spread.
fn has_disk(group: &ResolvedGroup, instance: &Existing) -> bool {
    group.persistent_disk.is_some() && instance.disks.iter().any(|disk| disk.active)
}

fn wanted(group: &ResolvedGroup) -> usize {
    usize::try_from(group.instances).unwrap_or(usize::MAX)
}

fn dynamics<'i>(group: &ResolvedGroup, zones: &mut Zones<'i>) -> Vec<Slot<'i>> {
    let wanted = wanted(group);
    let mut slots = Vec::new();
    let mut pinned = zones.select(|instance| instance.ignored);
    pinned.extend(zones.select(|instance| !instance.ignored && has_disk(group, instance)));
    for (zone, instance) in pinned.into_iter().take(wanted) {
        slots.push(zones.claim(zone, instance));
    }
    while slots.len() < wanted {
        let zone = zones
            .least_loaded(0..zones.order.len())
            .expect("a group has at least one zone, even if nameless");
        slots.push(zones.fill(zone));
    }
    slots
}

/// A static address and the zones that it may be used in.
struct Static {
    address: IpAddr,
    zones: Vec<usize>,
}

fn statics<'i>(
    deployment: &ResolvedDeployment,
    group: &ResolvedGroup,
    zones: &mut Zones<'i>,
    errors: &mut Vec<Error>,
) -> Vec<Slot<'i>> {
    let mut free: Vec<(String, Vec<Static>)> = Vec::new();
    for network in group
        .networks
        .iter()
        .filter(|network| !network.static_ips.is_empty())
    {
        let subnets = deployment
            .networks
            .get(&network.name)
            .map_or(&[][..], |network| &network.subnets);
        let allowed = |address: IpAddr| -> Vec<usize> {
            let subnet = subnets.iter().find(|subnet| subnet.range.contains(&address));
            let fits = |zone: &Option<String>| {
                subnet.is_some_and(|subnet| {
                    subnet.azs.is_empty() || zone.as_ref().is_some_and(|zone| subnet.azs.contains(zone))
                })
            };
            (0..zones.order.len())
                .filter(|&zone| fits(&zones.order[zone]))
                .collect()
        };
        let list = network
            .static_ips
            .iter()
            .map(|&address| Static {
                address,
                zones: allowed(address),
            })
            .collect();
        free.push((network.name.clone(), list));
    }
    let mut slots: Vec<(usize, Slot<'i>)> = keep_owners(&mut free, zones)
        .into_iter()
        .take(wanted(group))
        .collect();

    // Every network still has to serve each zone as often as the network with the fewest choices does.
    free.sort_by_key(|(_, list)| list.iter().map(|address| address.zones.len() - 1).sum::<usize>());
    let Some((leading, list)) = free.first() else {
        return Vec::new();
    };
    let leading = leading.clone();
    let pinned = |network: &str, zone: usize| {
        slots
            .iter()
            .filter(|(z, slot)| *z == zone && slot.statics.contains_key(network))
            .count()
    };
    let mut quota: Vec<usize> = (0..zones.order.len())
        .map(|zone| pinned(&leading, zone))
        .collect();
    let by_choice = |list: &[Static]| {
        let mut order: Vec<usize> = (0..list.len()).collect();
        order.sort_by_key(|&i| list[i].zones.len());
        order
    };
    for i in by_choice(list) {
        // An instance that was kept for another network's address needs one of this network in its zone.
        let lacking = |zone: usize| {
            slots
                .iter()
                .filter(|(z, _)| *z == zone)
                .count()
                .saturating_sub(quota[zone])
        };
        let zone = list[i].zones.iter().copied().min_by_key(|&zone| {
            (
                std::cmp::Reverse(lacking(zone).min(1)),
                quota[zone],
                zones.unclaimed[zone].is_empty(),
                zone,
            )
        });
        if let Some(zone) = zone {
            quota[zone] += 1;
        }
    }
    let mut assigned: BTreeMap<(String, usize), Vec<IpAddr>> = BTreeMap::new();
    for (network, list) in &free {
        let room: Vec<usize> = (0..quota.len())
            .map(|zone| quota[zone].saturating_sub(pinned(network, zone)))
            .collect();
        match match_zones(list, &room) {
            Ok(zone_of) => {
                for (address, zone) in list.iter().zip(zone_of) {
                    assigned
                        .entry((network.clone(), zone))
                        .or_default()
                        .push(address.address);
                }
            }
            Err((zone, have)) => errors.push(Error::StaticAddressesUneven {
                group: group.name.clone(),
                az: zones.order[zone].clone().unwrap_or_default(),
                network: network.clone(),
                have: have + pinned(network, zone),
                other: leading.clone(),
                want: quota[zone],
            }),
        }
    }
    for (zone, wanted) in quota.iter().enumerate() {
        for _ in slots.iter().filter(|(z, _)| *z == zone).count()..*wanted {
            slots.push((zone, zones.fill(zone)));
        }
    }
    // Addresses are taken from the front, in the order of the manifest.
    assigned.values_mut().for_each(|list| list.reverse());
    slots.sort_by_key(|(_, slot)| {
        slot.existing
            .map_or((true, 0), |instance| (false, instance.index))
    });
    for (zone, slot) in &mut slots {
        for (network, _) in &free {
            if !slot.statics.contains_key(network)
                && let Some(address) = assigned.get_mut(&(network.clone(), *zone)).and_then(Vec::pop)
            {
                slot.statics.insert(network.clone(), address);
            }
        }
    }
    slots.into_iter().map(|(_, slot)| slot).collect()
}

/// Instances that own a static address of the group keep it, as long as it may be used in their zone.
fn keep_owners<'i>(free: &mut [(String, Vec<Static>)], zones: &mut Zones<'i>) -> Vec<(usize, Slot<'i>)> {
    let owned =
        |instance: &Existing, zone: usize, free: &[(String, Vec<Static>)]| -> BTreeMap<String, IpAddr> {
            free.iter()
                .filter_map(|(network, list)| {
                    let address = *instance.addresses.get(network)?;
                    let fits = list
                        .iter()
                        .any(|item| item.address == address && item.zones.contains(&zone));
                    fits.then(|| (network.clone(), address))
                })
                .collect()
        };
    let mut candidates = zones.select(|_| true);
    candidates.sort_by_key(|(_, instance)| (!instance.ignored, instance.index));
    let mut slots = Vec::new();
    for (zone, instance) in candidates {
        let statics = owned(instance, zone, free);
        if statics.is_empty() && !instance.ignored {
            continue;
        }
        for (network, list) in free.iter_mut() {
            if let Some(mine) = statics.get(network) {
                list.retain(|item| item.address != *mine);
            }
        }
        let mut slot = zones.claim(zone, instance);
        slot.statics = statics;
        slots.push((zone, slot));
    }
    slots
}

/// Gives each address one of its zones so that no zone gets more than its room, by augmenting paths.
///
/// # Errors
/// A zone that stays short, with how many addresses it got.
fn match_zones(list: &[Static], room: &[usize]) -> Result<Vec<usize>, (usize, usize)> {
    let mut zone_of: Vec<Option<usize>> = vec![None; list.len()];
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); room.len()];
    for address in 0..list.len() {
        let mut visited = BTreeSet::new();
        augment(address, list, room, &mut zone_of, &mut members, &mut visited);
    }
    let short = (0..room.len()).find(|&zone| members[zone].len() < room[zone]);
    match (short, zone_of.into_iter().collect::<Option<Vec<_>>>()) {
        (None, Some(zones)) => Ok(zones),
        (Some(zone), _) => Err((zone, members[zone].len())),
        (None, None) => Err((0, members[0].len())),
    }
}

fn augment(
    address: usize,
    list: &[Static],
    room: &[usize],
    zone_of: &mut [Option<usize>],
    members: &mut [Vec<usize>],
    visited: &mut BTreeSet<usize>,
) -> bool {
    for &zone in &list[address].zones {
        if !visited.insert(zone) {
            continue;
        }
        if members[zone].len() < room[zone] {
            members[zone].push(address);
            zone_of[address] = Some(zone);
            return true;
        }
        // Somebody in this full zone may be able to go elsewhere. Of those with the same choices one is enough.
        let mut tried: Vec<&[usize]> = Vec::new();
        for position in 0..members[zone].len() {
            let other = members[zone][position];
            if tried.contains(&list[other].zones.as_slice()) {
                continue;
            }
            tried.push(&list[other].zones);
            if augment(other, list, room, zone_of, members, visited) {
                members[zone].retain(|&member| member != other || zone_of[member] == Some(zone));
                members[zone].push(address);
                zone_of[address] = Some(zone);
                return true;
            }
        }
    }
    false
}
