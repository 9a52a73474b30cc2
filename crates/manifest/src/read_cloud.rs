//! From the document to the typed cloud config.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::cloud::{Az, CloudConfig, Compilation, DiskType, Network, Subnet, VmType};
use crate::fields::{Fields, Reader, similar};
use crate::ip::{IpSet, Range};
use crate::node::{Located, Node, Place};
use crate::problem::{Problems, code};
use crate::read::canonical;
use crate::yaml;

pub(crate) const DOCUMENT: &str = "cloud config";

impl CloudConfig {
    /// Reads a cloud config and checks everything that can be checked without a manifest.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        let document = yaml::parse(DOCUMENT, text)?;
        let mut r = Reader::new(DOCUMENT);
        let cloud = cloud(&document, &mut r);
        Problems::check(r.problems)?;
        let mut cloud = cloud.expect("a cloud config that could not be read has problems");
        cloud.document = document;
        Ok(cloud)
    }
}

fn cloud(document: &Node, r: &mut Reader) -> Option<CloudConfig> {
    let mut f = Fields::open(
        document,
        Place {
            at: document.at,
            path: String::new(),
        },
        r,
    )?;
    let azs: Vec<(Az, Place)> = f
        .list("azs", r)
        .into_iter()
        .filter_map(|(node, place)| az(node, place, r))
        .collect();
    unique("availability zone", &azs, |az| &az.name, r);
    let vm_types: Vec<_> = f
        .list("vm_types", r)
        .into_iter()
        .filter_map(|(node, place)| vm_type(node, place, r))
        .collect();
    unique("vm type", &vm_types, |vm_type| &vm_type.name, r);
    let vm_extensions: Vec<_> = f
        .list("vm_extensions", r)
        .into_iter()
        .filter_map(|(node, place)| vm_type(node, place, r))
        .collect();
    unique("vm extension", &vm_extensions, |vm_type| &vm_type.name, r);
    let disk_types: Vec<_> = f
        .list("disk_types", r)
        .into_iter()
        .filter_map(|(node, place)| disk_type(node, place, r))
        .collect();
    unique("disk type", &disk_types, |disk_type| &disk_type.name, r);
    let az_names: Vec<&str> = azs.iter().map(|(az, _)| az.name.as_str()).collect();
    let networks: Vec<Network> = f
        .list("networks", r)
        .into_iter()
        .filter_map(|(node, place)| network(node, place, &az_names, r))
        .collect();
    r.unique(
        "network",
        networks
            .iter()
            .map(|network| (network.name.as_str(), &network.place)),
    );
    let network_names: Vec<&str> = networks.iter().map(|network| network.name.as_str()).collect();
    let compilation = f.raw("compilation").and_then(|(node, place)| {
        let compilation = compilation(node, place, r)?;
        known(&compilation.network, "network", &network_names, r);
        compilation
            .az
            .as_ref()
            .inspect(|az| known(az, "availability zone", &az_names, r));
        let types: Vec<&str> = vm_types
            .iter()
            .map(|(vm_type, _)| vm_type.name.as_str())
            .collect();
        compilation
            .vm_type
            .as_ref()
            .inspect(|name| known(name, "vm type", &types, r));
        Some(compilation)
    });
    f.close(
        &[(
            "resource_pools",
            "'resource_pools' belongs to the old schema; use 'vm_types'",
        )],
        r,
    );
    Some(CloudConfig {
        azs: strip(azs),
        vm_types: strip(vm_types),
        vm_extensions: strip(vm_extensions),
        disk_types: strip(disk_types),
        networks,
        compilation,
        document: Node::default(),
    })
}

fn strip<T>(list: Vec<(T, Place)>) -> Vec<T> {
    list.into_iter().map(|(item, _)| item).collect()
}

fn unique<T>(what: &str, list: &[(T, Place)], name: fn(&T) -> &String, r: &mut Reader) {
    r.unique(
        what,
        list.iter().map(|(item, place)| (name(item).as_str(), place)),
    );
}

fn known(name: &Located<String>, what: &str, names: &[&str], r: &mut Reader) {
    if !name.is_empty() && !names.contains(&name.as_str()) {
        let hint = similar(name, names.iter().copied()).map(|name| format!("did you mean '{name}'?"));
        r.problem_with_hint(
            &name.place,
            code::BAD_MANIFEST,
            format!("unknown {what} '{}'", name.value),
            hint,
        );
    }
}

fn az(node: &Node, place: Place, r: &mut Reader) -> Option<(Az, Place)> {
    let mut f = Fields::open(node, place.clone(), r)?;
    let az = Az {
        name: f.required_text("name", r).value,
        cpi: f.text("cpi", r).map(|text| text.value),
        cloud_properties: f.object("cloud_properties", r),
    };
    f.close(&[], r);
    Some((az, place))
}

fn vm_type(node: &Node, place: Place, r: &mut Reader) -> Option<(VmType, Place)> {
    let mut f = Fields::open(node, place.clone(), r)?;
    let vm_type = VmType {
        name: f.required_text("name", r).value,
        cloud_properties: f.object("cloud_properties", r),
    };
    f.close(&[], r);
    Some((vm_type, place))
}

fn disk_type(node: &Node, place: Place, r: &mut Reader) -> Option<(DiskType, Place)> {
    let mut f = Fields::open(node, place.clone(), r)?;
    let disk_type = DiskType {
        name: f.required_text("name", r).value,
        size_mib: f.required_number("disk_size", r).map_or(0, |size| size.value),
        cloud_properties: f.object("cloud_properties", r),
    };
    f.close(&[], r);
    Some((disk_type, place))
}

fn network(node: &Node, place: Place, azs: &[&str], r: &mut Reader) -> Option<Network> {
    let mut f = Fields::open(node, place.clone(), r)?;
    let name = f.required_text("name", r);
    canonical(&name, "network", r);
    let kind = f.text("type", r);
    if let Some(kind) = kind.filter(|kind| kind.value != "manual") {
        let text = format!(
            "network type '{}' is not supported; networks are manual",
            kind.value
        );
        r.problem(&kind.place, code::BAD_MANIFEST, text);
        return None;
    }
    let nodes = f.required_list("subnets", r);
    let places: Vec<Place> = nodes.iter().map(|(_, place)| place.clone()).collect();
    let subnets: Vec<Option<Subnet>> = nodes
        .into_iter()
        .map(|(node, place)| subnet(node, place, azs, r))
        .collect();
    f.close(&[("managed", "managed networks are not supported")], r);
    check_subnets(&name, &subnets, &places, r);
    Some(Network {
        name: name.value,
        subnets: subnets.into_iter().flatten().collect(),
        place,
    })
}

fn check_subnets(network: &str, subnets: &[Option<Subnet>], places: &[Place], r: &mut Reader) {
    for (i, (subnet, place)) in subnets.iter().zip(places).enumerate() {
        let Some(subnet) = subnet else {
            continue;
        };
        for other in subnets[..i].iter().flatten() {
            if subnet.range.contains(&other.range) || other.range.contains(&subnet.range) {
                let text = format!(
                    "subnets of network '{network}' overlap: '{}' and '{}'",
                    other.range, subnet.range
                );
                r.problem(place, code::OVERLAPPING_SUBNETS, text);
            }
            if subnet.azs.is_empty() != other.azs.is_empty() {
                let text = format!(
                    "network '{network}' has subnets with and without availability zones; all need them or none"
                );
                r.problem(place, code::BAD_MANIFEST, text);
            }
        }
    }
}

fn subnet(node: &Node, place: Place, azs: &[&str], r: &mut Reader) -> Option<Subnet> {
    let mut f = Fields::open(node, place, r)?;
    let range_text = f.required_text("range", r);
    let range = range_text.parse::<IpNet>().map(|range| range.trunc());
    if range.is_err() && !range_text.is_empty() {
        let text = format!("'{}' is not a network such as 10.0.0.0/24", range_text.value);
        r.problem(&range_text.place, code::BAD_MANIFEST, text);
    }
    let range = range.ok();
    let gateway = f.text("gateway", r).and_then(|text| address(&text, r));
    let dns = f
        .texts("dns", r)
        .iter()
        .filter_map(|text| address(text, r))
        .map(|dns| dns.value)
        .collect();
    let reserved_ranges: Vec<_> = f
        .list("reserved", r)
        .into_iter()
        .filter_map(|(node, place)| r.range(node, place))
        .collect();
    let static_ranges: Vec<_> = f
        .list("static", r)
        .into_iter()
        .filter_map(|(node, place)| r.range(node, place))
        .collect();
    let (one, several) = (f.text("az", r), f.texts("azs", r));
    if let (Some(az), false) = (&one, several.is_empty()) {
        r.problem(
            &az.place,
            code::BAD_MANIFEST,
            "only one of 'az' and 'azs' can be specified",
        );
    }
    let subnet_azs: Vec<_> = one.into_iter().chain(several).collect();
    for az in &subnet_azs {
        known(az, "availability zone", azs, r);
    }
    let cloud_properties = f.object("cloud_properties", r);
    f.close(
        &[
            ("prefix", "blocks of addresses ('prefix') are not supported"),
            ("nic_group", "'nic_group' is not supported"),
            ("netmask_bits", "managed networks are not supported"),
        ],
        r,
    );

    let range = range?;
    let all = Range::of(range);
    let mut reserved = IpSet::new();
    for set in [&reserved_ranges, &static_ranges] {
        for inner in set.iter().filter(|inner| !all.covers(&inner.value)) {
            let text = format!("'{}' is not inside '{range}'", inner.value);
            r.problem(&inner.place, code::BAD_MANIFEST, text);
        }
    }
    if range.addr().is_ipv4() && range.prefix_len() < 31 || range.addr().is_ipv6() && range.prefix_len() < 127
    {
        for own in [all.first(), all.last()] {
            reserved.insert(own);
        }
    }
    if let Some(gateway) = &gateway {
        if range.contains(&gateway.value) {
            reserved.insert(gateway.value);
        } else {
            r.problem(
                &gateway.place,
                code::BAD_MANIFEST,
                format!("gateway '{}' is not inside '{range}'", gateway.value),
            );
        }
    }
    reserved_ranges
        .iter()
        .for_each(|range| reserved.insert_range(&range.value));
    for range in static_ranges
        .iter()
        .filter(|range| reserved.overlaps(&range.value))
    {
        r.problem(
            &range.place,
            code::BAD_MANIFEST,
            format!("static IP '{}' is in the reserved range", range.value),
        );
    }
    let statics = static_ranges.iter().map(|range| range.value).collect();
    Some(Subnet {
        range,
        gateway: gateway.map(|gateway| gateway.value),
        dns,
        reserved,
        statics,
        azs: subnet_azs,
        cloud_properties,
    })
}

fn address(text: &Located<String>, r: &mut Reader) -> Option<Located<IpAddr>> {
    let Ok(value) = text.parse() else {
        r.problem(
            &text.place,
            code::BAD_MANIFEST,
            format!("'{}' is not an IP address", text.value),
        );
        return None;
    };
    Some(Located {
        value,
        place: text.place.clone(),
    })
}

fn compilation(node: &Node, place: Place, r: &mut Reader) -> Option<Compilation> {
    let mut f = Fields::open(node, place, r)?;
    let workers = f.required_number("workers", r);
    if let Some(workers) = workers.as_ref().filter(|workers| workers.value == 0) {
        r.problem(
            &workers.place,
            code::BAD_MANIFEST,
            "at least one worker is needed",
        );
    }
    let compilation = Compilation {
        workers: workers.map_or(1, |workers| u32::try_from(workers.value).unwrap_or(u32::MAX)),
        az: f.text("az", r),
        vm_type: f.text("vm_type", r),
        cloud_properties: f.object("cloud_properties", r),
        network: f.required_text("network", r),
        reuse_compilation_vms: f.flag("reuse_compilation_vms", r).unwrap_or_default(),
        env: f.object("env", r),
    };
    f.close(
        &[
            ("vm_resources", "'vm_resources' is not supported; use 'vm_type'"),
            (
                "vm_extensions",
                "'vm_extensions' are not supported for compilation; use a 'vm_type' of its own",
            ),
            ("orphan_workers", "'orphan_workers' is not supported"),
        ],
        r,
    );
    Some(compilation)
}
