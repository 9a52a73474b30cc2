//! From the document to the typed instance groups and jobs.

use indexmap::IndexMap;

use crate::fields::{Fields, Reader};
use crate::model::{
    Consume, DefaultFor, GroupNetwork, InstanceGroup, Job, Lifecycle, Link, ManualInstance, MigratedFrom,
    Provide, ProviderDefinition,
};
use crate::problem::code;
use crate::read::{canonical, choice, update};
use stolos_document::{Located, Node, Place};

/// More instances than this in one group are taken for a slip of the finger.
const MAX_INSTANCES: u64 = 10_000;

/// Keys of a group that exist elsewhere and what to use instead.
const GROUP_REFUSED: &[(&str, &str)] = &[
    (
        "resource_pool",
        "'resource_pool' belongs to the old manifest schema; use 'vm_type' and 'stemcell'",
    ),
    (
        "persistent_disk_pool",
        "'persistent_disk_pool' belongs to the old manifest schema; use 'persistent_disk_type'",
    ),
    (
        "template",
        "'template' belongs to the old manifest schema; use 'jobs'",
    ),
    (
        "templates",
        "'templates' belongs to the old manifest schema; use 'jobs'",
    ),
    ("vm_resources", "'vm_resources' is not supported; use 'vm_type'"),
    (
        "persistent_disks",
        "'persistent_disks' is not supported; an instance has at most one persistent disk",
    ),
];

pub(crate) fn group(node: &Node, place: Place, r: &mut Reader) -> Option<InstanceGroup> {
    let mut f = Fields::open(node, place.clone(), r)?;
    let name = f.required_text("name", r);
    canonical(&name, "instance group", r);
    let instances = f.required_number("instances", r);
    if let Some(instances) = instances
        .as_ref()
        .filter(|instances| instances.value > MAX_INSTANCES)
    {
        r.problem(
            &instances.place,
            code::BAD_MANIFEST,
            format!("at most {MAX_INSTANCES} instances fit into one group"),
        );
    }
    let azs = f.texts("azs", r);
    r.unique("availability zone", azs.iter().map(|az| (az.as_str(), &az.place)));
    let lifecycle = match choice(&mut f, "lifecycle", &["service", "errand"], r).as_deref() {
        Some("errand") => Lifecycle::Errand,
        _ => Lifecycle::Service,
    };
    let vm_type = f.required_text("vm_type", r);
    let vm_extensions = f.texts("vm_extensions", r);
    let stemcell = f.required_text("stemcell", r);
    let persistent_disk = f.number("persistent_disk", r);
    let persistent_disk_type = f.text("persistent_disk_type", r);
    if let (Some(size), Some(_)) = (&persistent_disk, &persistent_disk_type) {
        let text = format!(
            "instance group '{}' specifies both 'persistent_disk' and 'persistent_disk_type'; use one of them",
            name.value
        );
        r.problem(&size.place, code::BAD_MANIFEST, text);
    }
    let networks: Vec<_> = f
        .required_list("networks", r)
        .into_iter()
        .filter_map(|(node, place)| network(node, place, r))
        .collect();
    check_networks(
        &name,
        &place,
        &networks,
        instances.as_ref().map(|instances| instances.value),
        r,
    );
    let jobs: Vec<_> = f
        .required_list("jobs", r)
        .into_iter()
        .filter_map(|(node, place)| job(node, place, r))
        .collect();
    check_colocation(&name, &jobs, r);
    let group = InstanceGroup {
        instances: instances.map_or(0, |instances| u32::try_from(instances.value).unwrap_or(u32::MAX)),
        azs,
        lifecycle,
        vm_type,
        vm_extensions,
        stemcell,
        persistent_disk_mib: persistent_disk.map(|size| size.value).filter(|size| *size > 0),
        persistent_disk_type,
        networks,
        jobs,
        update: f
            .raw("update")
            .and_then(|(node, place)| update(node, place, r))
            .unwrap_or_default(),
        migrated_from: f
            .list("migrated_from", r)
            .into_iter()
            .filter_map(|(node, place)| migrated_from(node, place, r))
            .collect(),
        env: f.object("env", r),
        properties: f.optional_object("properties", r),
        tags: f
            .raw("tags")
            .map(|(node, place)| r.text_map(node, &place))
            .unwrap_or_default(),
        name: name.value,
        place,
    };
    f.close(GROUP_REFUSED, r);
    Some(group)
}

fn check_colocation(group: &Located<String>, jobs: &[Job], r: &mut Reader) {
    for (i, job) in jobs.iter().enumerate() {
        if !job.name.is_empty() && jobs[..i].iter().any(|other| other.name.value == job.name.value) {
            let text = format!(
                "colocated job '{}' is already added to the instance group '{}'",
                job.name.value, group.value
            );
            r.problem(&job.name.place, code::BAD_MANIFEST, text);
        }
    }
}

fn check_networks(
    group: &Located<String>,
    place: &Place,
    networks: &[GroupNetwork],
    instances: Option<u64>,
    r: &mut Reader,
) {
    let group = &group.value;
    if networks.is_empty() {
        r.problem(
            place,
            code::BAD_MANIFEST,
            format!("instance group '{group}' must specify at least one network"),
        );
    }
    r.unique(
        "network",
        networks
            .iter()
            .map(|network| (network.name.as_str(), &network.name.place)),
    );
    for what in [DefaultFor::Dns, DefaultFor::Gateway, DefaultFor::Addressable] {
        let word = default_word(what);
        let n = networks
            .iter()
            .filter(|network| network.default.contains(&what))
            .count();
        if n > 1 {
            r.problem(
                place,
                code::BAD_MANIFEST,
                format!("instance group '{group}' has several networks that are the default for '{word}'"),
            );
        } else if n == 0 && networks.len() > 1 && what != DefaultFor::Addressable {
            r.problem(place, code::BAD_MANIFEST, format!("instance group '{group}' must specify which network is the default for '{word}', since it has more than one network configured"));
        }
    }
    let Some(instances) = instances else {
        return;
    };
    for network in networks.iter().filter(|network| !network.static_ips.is_empty()) {
        let n = network.n_static();
        if n != instances {
            let text = format!(
                "instance group '{group}' requests {n} static IPs on network '{}' for {instances} instances; the numbers must be equal",
                network.name.value
            );
            r.problem(&network.static_ips[0].place, code::STATIC_IP_MISMATCH, text);
        }
    }
}

pub(crate) fn default_word(what: DefaultFor) -> &'static str {
    match what {
        DefaultFor::Dns => "dns",
        DefaultFor::Gateway => "gateway",
        DefaultFor::Addressable => "addressable",
    }
}

fn network(node: &Node, place: Place, r: &mut Reader) -> Option<GroupNetwork> {
    let mut f = Fields::open(node, place, r)?;
    let name = f.required_text("name", r);
    let static_ips: Vec<_> = f
        .list("static_ips", r)
        .into_iter()
        .filter_map(|(node, place)| r.range(node, place))
        .collect();
    let mut seen = crate::ip::IpSet::new();
    for range in &static_ips {
        if seen.overlaps(&range.value) {
            r.problem(
                &range.place,
                code::BAD_MANIFEST,
                format!(
                    "static IP '{}' is named twice on network '{}'",
                    range.value, name.value
                ),
            );
        }
        seen.insert_range(&range.value);
    }
    let mut default = Vec::new();
    for text in f.texts("default", r) {
        match text.as_str() {
            "dns" => default.push(DefaultFor::Dns),
            "gateway" => default.push(DefaultFor::Gateway),
            "addressable" => default.push(DefaultFor::Addressable),
            other => r.problem(
                &text.place,
                code::BAD_MANIFEST,
                format!("'{other}' is not one of dns, gateway, addressable"),
            ),
        }
    }
    default.sort_unstable();
    default.dedup();
    f.close(
        &[
            ("nic_group", "'nic_group' is not supported"),
            ("vip", "virtual networks are not supported"),
        ],
        r,
    );
    Some(GroupNetwork {
        name,
        static_ips,
        default,
    })
}

fn migrated_from(node: &Node, place: Place, r: &mut Reader) -> Option<MigratedFrom> {
    let mut f = Fields::open(node, place, r)?;
    let migrated = MigratedFrom {
        name: f.required_text("name", r).value,
        az: f.text("az", r),
    };
    f.close(&[], r);
    Some(migrated)
}

pub(crate) fn job(node: &Node, place: Place, r: &mut Reader) -> Option<Job> {
    let mut f = Fields::open(node, place.clone(), r)?;
    let name = f.required_text("name", r);
    let release = f.required_text("release", r);
    let properties = f.optional_object("properties", r);
    let consumes = links(&mut f, "consumes", consume, r);
    let provides = links(&mut f, "provides", provide, r);
    let custom_providers = f
        .list("custom_provider_definitions", r)
        .into_iter()
        .filter_map(|(node, place)| definition(node, place, r))
        .collect();
    f.close(&[], r);
    Some(Job {
        name,
        release,
        properties,
        consumes,
        provides,
        custom_providers,
        place,
    })
}

fn links<T>(
    f: &mut Fields<'_>,
    key: &'static str,
    read: fn(&Node, Place, &mut Reader) -> Option<T>,
    r: &mut Reader,
) -> IndexMap<String, T> {
    let Some((node, place)) = f.raw(key) else {
        return IndexMap::new();
    };
    let Some(map) = node.as_map() else {
        r.problem(
            &place,
            code::WRONG_TYPE,
            format!("property '{key}' must be a map, not {}", node.kind()),
        );
        return IndexMap::new();
    };
    map.iter()
        .filter_map(|(name, entry)| {
            Some((
                name.clone(),
                read(&entry.node, place.key(name, entry.node.at), r)?,
            ))
        })
        .collect()
}

/// BOSH writes the blocking of a link as the string `nil`; YAML's null means the same.
fn is_nil(node: &Node) -> bool {
    node.is_null() || node.as_str() == Some("nil")
}

fn consume(node: &Node, place: Place, r: &mut Reader) -> Option<Consume> {
    if is_nil(node) {
        return Some(Consume::Blocked);
    }
    let mut f = Fields::open(node, place, r)?;
    let manual = node.get("instances").is_some();
    let consume = if manual {
        let instances = f
            .list("instances", r)
            .into_iter()
            .filter_map(|(node, place)| {
                let mut f = Fields::open(node, place, r)?;
                let address = f.required_text("address", r).value;
                let _ = (
                    f.raw("name"),
                    f.raw("id"),
                    f.raw("index"),
                    f.raw("az"),
                    f.raw("bootstrap"),
                );
                f.close(&[], r);
                Some(ManualInstance { address })
            })
            .collect();
        Consume::Manual {
            instances,
            properties: f.object("properties", r),
            address: f.text("address", r).map(|text| text.value),
        }
    } else {
        let link = Link {
            from: f.text("from", r),
            network: f.text("network", r),
        };
        // Links show IP addresses anyway, as there is no DNS for instances.
        let _ = f.flag("ip_addresses", r);
        Consume::Link(link)
    };
    f.close(
        &[("deployment", "links from other deployments are not supported")],
        r,
    );
    Some(consume)
}

fn provide(node: &Node, place: Place, r: &mut Reader) -> Option<Provide> {
    if is_nil(node) {
        return Some(Provide::Blocked);
    }
    let mut f = Fields::open(node, place, r)?;
    let provide = Provide::As {
        alias: f.text("as", r).map(|text| text.value),
        shared: f.flag("shared", r).unwrap_or_default(),
    };
    f.close(
        &[(
            "aliases",
            "aliases of links need DNS for instances, which is not there",
        )],
        r,
    );
    Some(provide)
}

fn definition(node: &Node, place: Place, r: &mut Reader) -> Option<ProviderDefinition> {
    let mut f = Fields::open(node, place, r)?;
    let definition = ProviderDefinition {
        name: f.required_text("name", r).value,
        kind: f.required_text("type", r).value,
        properties: f
            .texts("properties", r)
            .into_iter()
            .map(|text| text.value)
            .collect(),
    };
    f.close(&[], r);
    Some(definition)
}
