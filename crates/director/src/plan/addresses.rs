//! Which address each instance gets on each network: its own while that is allowed, else the lowest free one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use stolos_manifest::{IpSet, Range, ResolvedDeployment, ResolvedSubnet};

use super::error::Error;
use super::inventory::Inventory;

/// Hands out the addresses of a deployment's networks. An address is given to one instance only, whatever the network.
pub(super) struct Addresses<'d> {
    deployment: &'d ResolvedDeployment,
    foreign: &'d BTreeMap<IpAddr, String>,
    /// Belong to others or were given away.
    taken: IpSet,
    /// Belong to instances or machines that this plan removes: given away only when nothing else is left.
    leaving: IpSet,
    /// (network, subnet) → nothing below this address is free.
    cursors: BTreeMap<(&'d str, usize), IpAddr>,
    owners: BTreeMap<IpAddr, String>,
}

impl<'d> Addresses<'d> {
    pub(super) fn new(deployment: &'d ResolvedDeployment, inventory: &'d Inventory) -> Self {
        let mut taken = IpSet::new();
        inventory.foreign.keys().for_each(|&address| {
            taken.insert(address);
        });
        let mut leaving = IpSet::new();
        for address in inventory
            .instances
            .iter()
            .flat_map(|instance| instance.addresses.values())
        {
            leaving.insert(*address);
        }
        Self {
            deployment,
            foreign: &inventory.foreign,
            taken,
            leaving,
            cursors: BTreeMap::new(),
            owners: BTreeMap::new(),
        }
    }

    /// Takes a particular address, for example a static one.
    pub(super) fn take(&mut self, address: IpAddr, group: &str, instance: &str) -> Result<(), Error> {
        if !self.taken.insert(address) {
            let owner = self
                .owners
                .get(&address)
                .or_else(|| self.foreign.get(&address))
                .map_or_else(|| "another instance".to_owned(), |owner| format!("'{owner}'"));
            return Err(Error::AddressInUse {
                address,
                group: group.to_owned(),
                owner,
            });
        }
        self.owners.insert(address, instance.to_owned());
        Ok(())
    }

    /// Whether an instance may keep a dynamic address, and takes it if so.
    pub(super) fn keep(&mut self, network: &str, az: Option<&str>, address: IpAddr, instance: &str) -> bool {
        let allowed = self.subnets(network, az).any(|(_, subnet)| {
            subnet.range.contains(&address)
                && !subnet.reserved.contains(address)
                && !subnet.statics.contains(address)
        });
        if !allowed || !self.taken.insert(address) {
            return false;
        }
        self.owners.insert(address, instance.to_owned());
        true
    }

    /// The lowest free address in the subnets of the zone, in their order.
    pub(super) fn next(&mut self, network: &'d str, az: Option<&str>, instance: &str) -> Option<IpAddr> {
        let deployment = self.deployment;
        let subnets: Vec<(usize, &'d ResolvedSubnet)> = matching(deployment, network, az).collect();
        let fresh = subnets.iter().find_map(|&(i, subnet)| {
            let sets = [&subnet.reserved, &subnet.statics, &self.taken, &self.leaving];
            let found = IpSet::lowest_free(
                &Range::of(subnet.range),
                self.cursors.get(&(network, i)).copied(),
                &sets,
            )?;
            // Addresses are only ever taken while a plan is made, so the next search can start here.
            self.cursors.insert((network, i), found);
            Some(found)
        });
        let address = fresh.or_else(|| {
            subnets.iter().find_map(|(_, subnet)| {
                IpSet::lowest_free(
                    &Range::of(subnet.range),
                    None,
                    &[&subnet.reserved, &subnet.statics, &self.taken],
                )
            })
        })?;
        self.taken.insert(address);
        self.owners.insert(address, instance.to_owned());
        Some(address)
    }

    /// The subnet of an address on a network.
    pub(super) fn subnet_of(&self, network: &str, address: IpAddr) -> Option<&'d ResolvedSubnet> {
        self.deployment
            .networks
            .get(network)?
            .subnets
            .iter()
            .find(|subnet| subnet.range.contains(&address))
    }

    fn subnets<'s>(
        &'s self,
        network: &str,
        az: Option<&'s str>,
    ) -> impl Iterator<Item = (usize, &'d ResolvedSubnet)> + use<'s, 'd> {
        matching(self.deployment, network, az)
    }
}

fn matching<'d, 'a>(
    deployment: &'d ResolvedDeployment,
    network: &str,
    az: Option<&'a str>,
) -> impl Iterator<Item = (usize, &'d ResolvedSubnet)> + use<'a, 'd> {
    let subnets = deployment
        .networks
        .get(network)
        .map_or(&[][..], |network| &network.subnets);
    subnets.iter().enumerate().filter(move |(_, subnet)| {
        subnet.azs.is_empty() || az.is_some_and(|az| subnet.azs.iter().any(|other| other == az))
    })
}
