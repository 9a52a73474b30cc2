//! From the document to the typed manifest.

use crate::fields::{Fields, Reader, similar};
use crate::model::{
    Addon, Count, Features, Manifest, Release, Stemcell, UpdateOverride, Variable, VersionWish, WatchTime,
};
use crate::problem::{Problems, code};
use crate::read_group::{group, job};
use crate::resolve::canonical_name;
use crate::{variables, yaml};
use stolos_document::{Located, Node, Place, Value};

const DOCUMENT: &str = "manifest";

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

pub(crate) fn update(node: &Node, place: Place, r: &mut Reader) -> Option<UpdateOverride> {
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
pub(crate) fn choice(
    f: &mut Fields<'_>,
    key: &'static str,
    known: &[&str],
    r: &mut Reader,
) -> Option<String> {
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
