//! From the document to the typed cloud config.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::cloud::{Az, CloudConfig, Compilation, DiskType, Network, Subnet, VmType};
use crate::fields::{Fields, Reader, similar};
use crate::ip::{IpSet, Range};
use crate::problem::{Problems, code};
use crate::read::canonical;
use crate::yaml;
use stolos_document::{Located, Node, Place};

/// A cloud config as a document. What it means follows from all that count together, so it can be kept and put together with others again:
/// reading the text is most of the work.
#[derive(Clone, Debug)]
pub struct CloudDocument {
    name: String,
    node: Node,
}

impl CloudDocument {
    /// Reads the text of the cloud config of that name.
    ///
    /// # Errors
    /// When it is not YAML.
    pub fn parse(name: &str, text: &str) -> Result<Self, Problems> {
        Self::read(format!("cloud config '{name}'"), text)
    }

    fn read(name: String, text: &str) -> Result<Self, Problems> {
        let node = yaml::parse(name.clone(), text)?;
        Ok(Self { name, node })
    }
}

impl CloudConfig {
    /// Reads a cloud config and checks everything that can be checked without a manifest.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        Self::of(&[CloudDocument::read("cloud config".to_owned(), text)?])
    }

    /// Several cloud configs that count as one: their lists follow each other and may name what another one defines; `compilation` may be
    /// in one of them only.
    ///
    /// # Errors
    /// Everything that is wrong with them; each problem says in which one.
    pub fn of(documents: &[impl Borrow<CloudDocument>]) -> Result<Self, Problems> {
        let documents = || documents.iter().map(Borrow::borrow);
        let known = Names::of(documents().map(|document| &document.node));
        let mut problems = Vec::new();
        let mut all = Parts::default();
        let mut seen = Seen::default();
        for document in documents() {
            let mut r = Reader::new(document.name.clone());
            if let Some(parts) = parts(&document.node, &known, &mut r) {
                all.add(parts, &mut seen, &mut r);
            }
            problems.extend(r.problems);
        }
        Problems::check(problems)?;
        Ok(Self {
            azs: strip(all.azs),
            vm_types: strip(all.vm_types),
            vm_extensions: strip(all.vm_extensions),
            disk_types: strip(all.disk_types),
            networks: strip(all.networks),
            compilation: all.compilation,
        })
    }
}

/// What the documents define together, so that each can name what another one has.
struct Names {
    azs: Vec<String>,
    vm_types: Vec<String>,
    networks: Vec<String>,
}

impl Names {
    fn of<'n>(documents: impl Iterator<Item = &'n Node> + Clone) -> Self {
        let names = |section: &str| {
            let lists = documents.clone().filter_map(|node| node.get(section)?.as_list());
            lists
                .flatten()
                .filter_map(|item| item.get("name")?.scalar_text())
                .collect()
        };
        Self {
            azs: names("azs"),
            vm_types: names("vm_types"),
            networks: names("networks"),
        }
    }
}

/// The lists of one or several documents, with the place of each element.
#[derive(Default)]
struct Parts {
    azs: Vec<(Az, Place)>,
    vm_types: Vec<(VmType, Place)>,
    vm_extensions: Vec<(VmType, Place)>,
    disk_types: Vec<(DiskType, Place)>,
    networks: Vec<(Network, Place)>,
    compilation: Option<Compilation>,
}

/// The names of what [`Parts`] has, list by list.
#[derive(Default)]
struct Seen {
    azs: BTreeSet<String>,
    vm_types: BTreeSet<String>,
    vm_extensions: BTreeSet<String>,
    disk_types: BTreeSet<String>,
    networks: BTreeSet<String>,
}

impl Parts {
    fn add(&mut self, more: Self, seen: &mut Seen, r: &mut Reader) {
        let zones = (&mut self.azs, &mut seen.azs);
        extend("availability zone", zones, more.azs, |az| &az.name, r);
        let types = (&mut self.vm_types, &mut seen.vm_types);
        extend("vm type", types, more.vm_types, |vm_type| &vm_type.name, r);
        let extensions = (&mut self.vm_extensions, &mut seen.vm_extensions);
        extend("vm extension", extensions, more.vm_extensions, |one| &one.name, r);
        let disks = (&mut self.disk_types, &mut seen.disk_types);
        extend(
            "disk type",
            disks,
            more.disk_types,
            |disk_type| &disk_type.name,
            r,
        );
        let networks = (&mut self.networks, &mut seen.networks);
        extend("network", networks, more.networks, |network| &network.name, r);
        match (&self.compilation, more.compilation) {
            (_, None) => {}
            (None, compilation) => self.compilation = compilation,
            (Some(_), Some(second)) => {
                r.problem(
                    &second.network.place,
                    code::BAD_MANIFEST,
                    "'compilation' is in another cloud config already",
                );
            }
        }
    }
}

/// Appends elements whose names are new.
fn extend<T>(
    what: &str,
    (all, seen): (&mut Vec<(T, Place)>, &mut BTreeSet<String>),
    more: Vec<(T, Place)>,
    name: fn(&T) -> &String,
    r: &mut Reader,
) {
    for (item, place) in more {
        if !seen.insert(name(&item).clone()) {
            r.problem(
                &place,
                code::BAD_MANIFEST,
                format!("duplicate {what} name '{}'", name(&item)),
            );
        }
        all.push((item, place));
    }
}

fn parts(document: &Node, names: &Names, r: &mut Reader) -> Option<Parts> {
    let mut f = Fields::open(
        document,
        Place {
            at: document.at,
            path: String::new(),
        },
        r,
    )?;
    let parts = Parts {
        azs: f
            .list("azs", r)
            .into_iter()
            .filter_map(|(node, place)| az(node, place, r))
            .collect(),
        vm_types: f
            .list("vm_types", r)
            .into_iter()
            .filter_map(|(node, place)| vm_type(node, place, r))
            .collect(),
        vm_extensions: f
            .list("vm_extensions", r)
            .into_iter()
            .filter_map(|(node, place)| vm_type(node, place, r))
            .collect(),
        disk_types: f
            .list("disk_types", r)
            .into_iter()
            .filter_map(|(node, place)| disk_type(node, place, r))
            .collect(),
        networks: f
            .list("networks", r)
            .into_iter()
            .filter_map(|(node, place)| {
                let network = network(node, place, &names.azs, r)?;
                let place = network.place.clone();
                Some((network, place))
            })
            .collect(),
        compilation: f.raw("compilation").and_then(|(node, place)| {
            let compilation = compilation(node, place, r)?;
            known(&compilation.network, "network", &names.networks, r);
            compilation
                .az
                .as_ref()
                .inspect(|az| known(az, "availability zone", &names.azs, r));
            compilation
                .vm_type
                .as_ref()
                .inspect(|name| known(name, "vm type", &names.vm_types, r));
            Some(compilation)
        }),
    };
    f.close(
        &[(
            "resource_pools",
            "'resource_pools' belongs to the old schema; use 'vm_types'",
        )],
        r,
    );
    Some(parts)
}

fn strip<T>(list: Vec<(T, Place)>) -> Vec<T> {
    list.into_iter().map(|(item, _)| item).collect()
}

fn known(name: &Located<String>, what: &str, names: &[String], r: &mut Reader) {
    if !name.is_empty() && !names.contains(&name.value) {
        let hint =
            similar(name, names.iter().map(String::as_str)).map(|name| format!("did you mean '{name}'?"));
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

fn network(node: &Node, place: Place, azs: &[String], r: &mut Reader) -> Option<Network> {
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

fn subnet(node: &Node, place: Place, azs: &[String], r: &mut Reader) -> Option<Subnet> {
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
