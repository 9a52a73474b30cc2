//! From the document to the typed manifest.

use indexmap::IndexMap;

use crate::fields::{Fields, Reader, similar};
use crate::model::{
    Addon, Consume, Count, DefaultFor, Features, GroupNetwork, InstanceGroup, Job, Lifecycle, Link, Manifest,
    ManualInstance, MigratedFrom, Provide, ProviderDefinition, Release, Stemcell, UpdateOverride, Variable,
    VersionWish, WatchTime,
};
use crate::node::{Located, Node, Place, Value};
use crate::problem::{Problems, code};
use crate::resolve::canonical_name;
use crate::{variables, yaml};

const DOCUMENT: &str = "manifest";

/// More instances than this in one group are taken for a slip of the finger.
const MAX_INSTANCES: u64 = 10_000;

/// Sections of manifest schema v1 and what to use instead.
const V1: &[(&str, &str)] = &[
    (
        "jobs",
        "'jobs' is a section of the old manifest schema; use 'instance_groups'",
    ),
    (
        "resource_pools",
        "'resource_pools' is a section of the old manifest schema; use 'vm_types' and 'stemcells' of the cloud config and the manifest",
    ),
    (
        "disk_pools",
        "'disk_pools' is a section of the old manifest schema; use 'disk_types' of the cloud config",
    ),
    (
        "networks",
        "'networks' does not belong into a manifest; use 'networks' of the cloud config",
    ),
    (
        "compilation",
        "'compilation' does not belong into a manifest; use 'compilation' of the cloud config",
    ),
    (
        "properties",
        "top-level 'properties' are not supported; give them to jobs",
    ),
    (
        "release",
        "'release' is a section of the old manifest schema; use 'releases'",
    ),
    (
        "azs",
        "'azs' does not belong into a manifest; use 'azs' of the cloud config",
    ),
    (
        "vm_types",
        "'vm_types' does not belong into a manifest; use 'vm_types' of the cloud config",
    ),
    (
        "disk_types",
        "'disk_types' does not belong into a manifest; use 'disk_types' of the cloud config",
    ),
];

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

impl Manifest {
    /// Reads a manifest and checks everything that can be checked without a cloud config.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Problems> {
        Self::read(yaml::parse(DOCUMENT, text)?)
    }

    /// The same for a document that was read already, for example after ops files were applied.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn read(document: Node) -> Result<Self, Problems> {
        let mut r = Reader::new(DOCUMENT);
        let manifest = manifest(&document, &mut r);
        Problems::check(r.problems)?;
        let mut manifest = manifest.expect("a manifest that could not be read has problems");
        manifest.document = document;
        Ok(manifest)
    }

    /// Checks that every variable that the manifest names is declared in `variables` or known to `given`, which is
    /// asked with names as written (relative or absolute, without parts).
    ///
    /// # Errors
    /// All references to variables that nobody knows.
    pub fn check_variables(&self, given: impl Fn(&str) -> bool) -> Result<(), Problems> {
        let mut r = Reader::new(DOCUMENT);
        let declared: Vec<&str> = self
            .variables
            .iter()
            .map(|variable| variable.name.as_str())
            .collect();
        for reference in variables::references(&self.document) {
            if declared.contains(&reference.name.as_str()) || given(&reference.name) {
                continue;
            }
            let hint = similar(&reference.name, declared.iter().copied())
                .map(|name| format!("did you mean '{name}'?"));
            let text = format!(
                "variable '{}' is neither declared in 'variables' nor known",
                reference.name
            );
            r.problem_with_hint(&reference.place, code::MISSING_VARIABLE, text, hint);
        }
        Problems::check(r.problems)
    }
}

fn manifest(document: &Node, r: &mut Reader) -> Option<Manifest> {
    let mut f = Fields::open(
        document,
        Place {
            at: document.at,
            path: String::new(),
        },
        r,
    )?;
    let name = f.required_text("name", r);
    canonical(&name, "deployment", r);
    let _ = f.raw("director_uuid");
    let releases: Vec<_> = f
        .required_list("releases", r)
        .into_iter()
        .filter_map(|(node, place)| release(node, place, r))
        .collect();
    r.unique(
        "release",
        releases
            .iter()
            .map(|release| (release.name.as_str(), &release.name.place)),
    );
    let stemcells: Vec<_> = f
        .required_list("stemcells", r)
        .into_iter()
        .filter_map(|(node, place)| stemcell(node, place, r))
        .collect();
    r.unique(
        "stemcell alias",
        stemcells
            .iter()
            .map(|stemcell| (stemcell.alias.as_str(), &stemcell.alias.place)),
    );
    let update = required_update(&mut f, r);
    let features = f
        .raw("features")
        .and_then(|(node, place)| features(node, place, r))
        .unwrap_or_default();
    let tags = f
        .raw("tags")
        .map(|(node, place)| r.text_map(node, &place))
        .unwrap_or_default();
    let variables: Vec<_> = f
        .list("variables", r)
        .into_iter()
        .filter_map(|(node, place)| variable(node, place, r))
        .collect();
    r.unique(
        "variable",
        variables
            .iter()
            .map(|variable| (variable.name.as_str(), &variable.name.place)),
    );
    let addons: Vec<_> = f
        .list("addons", r)
        .into_iter()
        .filter_map(|(node, place)| addon(node, place, r))
        .collect();
    let groups = f.required_list("instance_groups", r);
    let instance_groups: Vec<_> = groups
        .into_iter()
        .filter_map(|(node, place)| group(node, place, r))
        .collect();
    let canonical_names: Vec<_> = instance_groups
        .iter()
        .map(|group| canonical_name(&group.name))
        .collect();
    r.unique(
        "instance group",
        canonical_names
            .iter()
            .map(String::as_str)
            .zip(instance_groups.iter().map(|group| &group.place)),
    );
    f.close(V1, r);

    let known: Vec<&str> = releases.iter().map(|release| release.name.as_str()).collect();
    let aliases: Vec<&str> = stemcells.iter().map(|stemcell| stemcell.alias.as_str()).collect();
    for group in &instance_groups {
        declared(
            &group.stemcell,
            "stemcell alias",
            &aliases,
            "stemcells",
            code::UNKNOWN_STEMCELL,
            r,
        );
    }
    for job in instance_groups
        .iter()
        .flat_map(|group| &group.jobs)
        .chain(addons.iter().flat_map(|addon| &addon.jobs))
    {
        declared(&job.release, "release", &known, "releases", code::BAD_MANIFEST, r);
    }
    let names: Vec<&str> = instance_groups.iter().map(|group| group.name.as_str()).collect();
    check_addon_groups(&addons, &names, &f_place(document), r);
    Some(Manifest {
        name: name.value,
        releases,
        stemcells,
        update,
        features,
        tags,
        variables,
        addons,
        instance_groups,
        document: Node::default(),
    })
}

fn f_place(document: &Node) -> Place {
    let at = document
        .as_map()
        .and_then(|map| map.get("addons"))
        .map_or(document.at, |entry| entry.key_at);
    Place {
        at,
        path: "addons".to_owned(),
    }
}

fn check_addon_groups(addons: &[Addon], groups: &[&str], place: &Place, r: &mut Reader) {
    for addon in addons {
        for name in addon.include_groups.iter().chain(&addon.exclude_groups) {
            if !groups.contains(&name.as_str()) {
                r.problem(
                    place,
                    code::BAD_MANIFEST,
                    format!("addon '{}' names unknown instance group '{name}'", addon.name),
                );
            }
        }
    }
}

/// Names that become part of DNS names and of objects of the host.
pub(crate) fn canonical(name: &Located<String>, what: &str, r: &mut Reader) {
    if name.is_empty() {
        return;
    }
    let canonical = canonical_name(name);
    let good = canonical.starts_with(|c: char| c.is_ascii_alphanumeric())
        && canonical.ends_with(|c: char| c.is_ascii_alphanumeric())
        && canonical.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && canonical.len() <= 63;
    if !good {
        let text = format!(
            "{what} name '{}' must be letters, digits, '-' and '_', begin and end with a letter or digit, and have at most 63 of them",
            name.value
        );
        r.problem(&name.place, code::BAD_MANIFEST, text);
    }
}

fn declared(name: &Located<String>, what: &str, known: &[&str], section: &str, code: u32, r: &mut Reader) {
    if name.is_empty() || known.contains(&name.as_str()) {
        return;
    }
    let hint = similar(name, known.iter().copied()).map(|name| format!("did you mean '{name}'?"));
    r.problem_with_hint(
        &name.place,
        code,
        format!("unknown {what} '{}'; '{section}' does not have it", name.value),
        hint,
    );
}

fn version(f: &mut Fields<'_>, r: &mut Reader) -> VersionWish {
    let version = f.required_text("version", r).value;
    if version == "latest" {
        return VersionWish::Latest;
    }
    match version.strip_suffix("latest") {
        Some(prefix) if prefix.ends_with('.') => VersionWish::LatestOf(prefix.to_owned()),
        _ => VersionWish::Exact(version),
    }
}

fn release(node: &Node, place: Place, r: &mut Reader) -> Option<Release> {
    let mut f = Fields::open(node, place, r)?;
    let release = Release {
        name: f.required_text("name", r),
        version: version(&mut f, r),
        url: f.text("url", r).map(|text| text.value),
        sha1: f.text("sha1", r).map(|text| text.value),
    };
    // What stemcell a release was compiled for is written in the release.
    let _ = (f.raw("stemcell"), f.raw("exported_from"));
    f.close(&[], r);
    Some(release)
}

fn stemcell(node: &Node, place: Place, r: &mut Reader) -> Option<Stemcell> {
    let mut f = Fields::open(node, place.clone(), r)?;
    let stemcell = Stemcell {
        alias: f.required_text("alias", r),
        os: f.text("os", r).map(|text| text.value),
        name: f.text("name", r).map(|text| text.value),
        version: version(&mut f, r),
    };
    f.close(&[], r);
    match (&stemcell.os, &stemcell.name) {
        (None, None) => r.problem(
            &place,
            code::MISSING_FIELD,
            "one of 'os' and 'name' must be specified",
        ),
        (Some(_), Some(_)) => r.problem(
            &place,
            code::BAD_MANIFEST,
            "only one of 'os' and 'name' can be specified",
        ),
        _ => {}
    }
    Some(stemcell)
}

fn required_update(f: &mut Fields<'_>, r: &mut Reader) -> UpdateOverride {
    let Some((node, place)) = f.raw("update") else {
        r.problem(
            &f.place,
            code::MISSING_FIELD,
            "required property 'update' was not specified",
        );
        return UpdateOverride::default();
    };
    let problems = r.problems.len();
    let update = update(node, place.clone(), r).unwrap_or_default();
    if r.problems.len() > problems {
        return update;
    }
    let missing = [
        ("canaries", update.canaries.is_none()),
        ("max_in_flight", update.max_in_flight.is_none()),
        ("canary_watch_time", update.canary_watch_time.is_none()),
        ("update_watch_time", update.update_watch_time.is_none()),
    ];
    for (key, _) in missing.iter().filter(|(_, missing)| *missing) {
        r.problem(
            &place,
            code::MISSING_FIELD,
            format!("required property '{key}' was not specified"),
        );
    }
    update
}

fn update(node: &Node, place: Place, r: &mut Reader) -> Option<UpdateOverride> {
    let mut f = Fields::open(node, place, r)?;
    let update = UpdateOverride {
        canaries: count(&mut f, "canaries", r),
        max_in_flight: count(&mut f, "max_in_flight", r),
        canary_watch_time: watch_time(&mut f, "canary_watch_time", r),
        update_watch_time: watch_time(&mut f, "update_watch_time", r),
        serial: f.flag("serial", r),
        initial_deploy_az_parallel: choice(
            &mut f,
            "initial_deploy_az_update_strategy",
            &["serial", "parallel"],
            r,
        )
        .map(|text| text == "parallel"),
    };
    if let Some(strategy) = f.text("vm_strategy", r)
        && strategy.value != "delete-create"
    {
        let text = format!(
            "vm_strategy '{}' is not supported; use 'delete-create'",
            strategy.value
        );
        r.problem(&strategy.place, code::BAD_MANIFEST, text);
    }
    f.close(&[], r);
    Some(update)
}

/// A text that has to be one of a few.
fn choice(f: &mut Fields<'_>, key: &'static str, known: &[&str], r: &mut Reader) -> Option<String> {
    let text = f.text(key, r)?;
    if !known.contains(&text.as_str()) {
        r.problem(
            &text.place,
            code::BAD_MANIFEST,
            format!("'{}' is not one of {}", text.value, known.join(", ")),
        );
        return None;
    }
    Some(text.value)
}

fn count(f: &mut Fields<'_>, key: &'static str, r: &mut Reader) -> Option<Count> {
    let (node, place) = f.raw(key)?;
    let text = r.text(node, place)?;
    let parsed = match text.strip_suffix('%') {
        Some(percent) => percent
            .trim()
            .parse()
            .ok()
            .filter(|percent| *percent <= 100)
            .map(Count::Percent),
        None => text.parse().ok().map(Count::Absolute),
    };
    if parsed.is_none() {
        let problem = format!(
            "'{}' is neither a number of instances nor a percentage from 0% to 100%",
            text.value
        );
        r.problem(&text.place, code::WRONG_TYPE, problem);
    }
    parsed
}

fn watch_time(f: &mut Fields<'_>, key: &'static str, r: &mut Reader) -> Option<WatchTime> {
    let (node, place) = f.raw(key)?;
    let text = r.text(node, place)?;
    let parsed = match text.split_once('-') {
        Some((min, max)) => min.trim().parse().ok().zip(max.trim().parse().ok()),
        None => text.trim().parse().ok().map(|time| (time, time)),
    };
    let parsed = parsed
        .filter(|(min, max)| min <= max)
        .map(|(min_ms, max_ms)| WatchTime { min_ms, max_ms });
    if parsed.is_none() {
        let problem = format!(
            "'{}' is not a watch time; write milliseconds (30000) or a range of them (1000-90000)",
            text.value
        );
        r.problem(&text.place, code::BAD_MANIFEST, problem);
    }
    parsed
}

fn features(node: &Node, place: Place, r: &mut Reader) -> Option<Features> {
    let mut f = Fields::open(node, place, r)?;
    let features = Features {
        converge_variables: f.flag("converge_variables", r).unwrap_or_default(),
    };
    for key in [
        "use_dns_addresses",
        "use_short_dns_addresses",
        "use_link_dns_names",
        "randomize_az_placement",
        "use_tmpfs_config",
    ] {
        if let Some((node, place)) = f.raw(key)
            && node.value != Value::Bool(false)
        {
            r.problem(
                &place,
                code::BAD_MANIFEST,
                format!("feature '{key}' is not supported"),
            );
        }
    }
    f.close(&[], r);
    Some(features)
}

fn variable(node: &Node, place: Place, r: &mut Reader) -> Option<Variable> {
    let mut f = Fields::open(node, place, r)?;
    let variable = Variable {
        name: f.required_text("name", r),
        kind: f.required_text("type", r).value,
        options: f.object("options", r),
        update_mode: choice(
            &mut f,
            "update_mode",
            &["no-overwrite", "overwrite", "converge"],
            r,
        ),
    };
    if variable.name.contains('.') {
        r.problem(
            &variable.name.place,
            code::BAD_MANIFEST,
            "the name of a variable cannot have a dot",
        );
    }
    if let Some((node, place)) = f.raw("update")
        && let Some(mut update) = Fields::open(node, place, r)
    {
        if let Some(strategy) = choice(&mut update, "strategy", &["on-deploy", "on-stemcell-change"], r)
            && strategy != "on-deploy"
        {
            r.problem(
                &update.place,
                code::BAD_MANIFEST,
                "variables are updated on deploy only",
            );
        }
        update.close(&[], r);
    }
    f.close(&[("consumes", "links cannot be consumed by variables here; give 'alternative_names' and 'common_name' in 'options'")], r);
    Some(variable)
}

fn group(node: &Node, place: Place, r: &mut Reader) -> Option<InstanceGroup> {
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

fn job(node: &Node, place: Place, r: &mut Reader) -> Option<Job> {
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

fn addon(node: &Node, place: Place, r: &mut Reader) -> Option<Addon> {
    let mut f = Fields::open(node, place, r)?;
    let mut groups = |key: &'static str, r: &mut Reader| -> Vec<String> {
        let Some((node, place)) = f.raw(key) else {
            return Vec::new();
        };
        let Some(mut rule) = Fields::open(node, place, r) else {
            return Vec::new();
        };
        let groups = rule
            .texts("instance_groups", r)
            .into_iter()
            .map(|text| text.value)
            .collect();
        let refused = "add-ons are included and excluded by 'instance_groups' only";
        rule.close(
            &[
                "stemcell",
                "deployments",
                "jobs",
                "lifecycle",
                "networks",
                "teams",
                "azs",
            ]
            .map(|key| (key, refused)),
            r,
        );
        groups
    };
    let (include_groups, exclude_groups) = (groups("include", r), groups("exclude", r));
    let addon = Addon {
        name: f.required_text("name", r).value,
        jobs: f
            .required_list("jobs", r)
            .into_iter()
            .filter_map(|(node, place)| job(node, place, r))
            .collect(),
        include_groups,
        exclude_groups,
    };
    f.close(
        &[(
            "properties",
            "properties of add-ons are not supported; give them to its jobs",
        )],
        r,
    );
    Some(addon)
}
