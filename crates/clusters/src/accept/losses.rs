//! What a change loses: data on the disks of workers that go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::Desk;
use crate::db::ClusterRow;
use crate::deps::Instance;
use crate::error::{Error, Result};
use crate::render::deployment_name;

impl Desk {
    /// Refuses a change with which workers go whose disks have data of volumes in use, and names them.
    pub(super) async fn refuse_losses(&self, before: &ClusterRow, after: &ClusterRow) -> Result<()> {
        let (old, new) = (before.shape(), after.shape());
        let shrinks = old.pools.iter().any(|pool| {
            let now = new.pools.iter().find(|other| other.name == pool.name);
            now.is_none_or(|now| now.instances < pool.instances || now.zones != pool.zones)
        });
        let address: Option<Ipv4Addr> = before.address.as_ref().and_then(|text| text.parse().ok());
        // What has no address has never run.
        let (true, Some(address)) = (shrinks, address) else {
            return Ok(());
        };
        let deployment = deployment_name(before.id);
        let instances = self.director.instances(&deployment).await?;
        let mut nodes = BTreeSet::new();
        for pool in &old.pools {
            let now = new.pools.iter().find(|other| other.name == pool.name);
            let (number, zones) =
                now.map_or((0, &[] as &[String]), |now| (now.instances, now.zones.as_slice()));
            let own: Vec<&Instance> = instances.iter().filter(|one| one.group == pool.name).collect();
            let gone = leaving(&own, number, zones);
            nodes.extend(gone.into_iter().map(|index| format!("{}-{index}", pool.name)));
        }
        if nodes.is_empty() {
            return Ok(());
        }
        let admin = self.vault.admin(&deployment).await?;
        let volumes = self.kubernetes.local_volumes(address, &admin, &nodes).await?;
        if volumes.is_empty() {
            return Ok(());
        }
        Err(Error::LosesVolumes {
            cluster: before.name.to_string(),
            volumes: volumes
                .iter()
                .map(|volume| format!("{} on {}", volume.claim, volume.node))
                .collect(),
        })
    }
}

/// The indexes of those instances of a group that go when it is to have so many in these zones. The director keeps the lowest of each zone, and as many in
/// one as in another (`director::plan::zones`).
fn leaving(instances: &[&Instance], number: u32, zones: &[String]) -> BTreeSet<u32> {
    let mut by_zone: BTreeMap<usize, BTreeSet<u32>> = BTreeMap::new();
    let mut leaving = BTreeSet::new();
    for instance in instances {
        let zone = instance.zone.as_ref();
        match zones.iter().position(|known| Some(known) == zone) {
            Some(position) => by_zone.entry(position).or_default().insert(instance.index),
            // A group without zones, or a director that does not say: one zone for all.
            None if zone.is_none() => by_zone.entry(0).or_default().insert(instance.index),
            None => leaving.insert(instance.index),
        };
    }
    let mut load = vec![0_u32; zones.len().max(1)];
    for _ in 0..number {
        let fullest_first = |zone: &usize| (load[*zone], !by_zone.contains_key(zone), *zone);
        let Some(zone) = (0..load.len()).min_by_key(fullest_first) else {
            break;
        };
        load[zone] += 1;
        if let Some(left) = by_zone.get_mut(&zone) {
            left.pop_first();
            if left.is_empty() {
                by_zone.remove(&zone);
            }
        }
    }
    leaving.extend(by_zone.into_values().flatten());
    leaving
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_of_each_zone_leave() {
        let check = |there: &[(u32, Option<&str>)], number: u32, zones: &[&str], expected: &[u32]| {
            let instances: Vec<Instance> = there
                .iter()
                .map(|(index, zone)| Instance {
                    group: "worker".to_owned(),
                    index: *index,
                    address: None,
                    zone: zone.map(str::to_owned),
                })
                .collect();
            let instances: Vec<&Instance> = instances.iter().collect();
            let zones: Vec<String> = zones.iter().map(|zone| (*zone).to_owned()).collect();
            let found: Vec<u32> = leaving(&instances, number, &zones).into_iter().collect();
            assert_eq!(found, expected, "{there:?} to {number}");
        };
        let (a, b) = (Some("a"), Some("b"));
        check(&[(0, None), (1, None), (2, None)], 2, &[], &[2]);
        check(&[(0, a), (1, a), (2, a)], 1, &["a"], &[1, 2]);
        check(&[(0, a), (1, b), (2, a), (3, b)], 2, &["a", "b"], &[2, 3]);
        check(&[(0, a), (2, a), (3, b)], 2, &["a", "b"], &[2]);
        // A zone that is given up goes whole, and so does a group.
        check(&[(0, a), (1, b)], 2, &["a"], &[1]);
        check(&[(0, a), (1, b)], 0, &[], &[0, 1]);
        check(&[(0, a)], 3, &["a"], &[]);
    }
}
