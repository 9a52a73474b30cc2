//! Which crate may use which.
//!
//! The table is the one of ARCHITECTURE.md: a crate may use those listed and nothing else of ours. A new edge is a
//! decision, so it is made here first. What only tests use is freer: everything but the programs.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::ci::cargo;
use crate::say;

/// The prefix of our packages.
const PREFIX: &str = "stolos-";

/// Each crate and those of ours that it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("document", &[]),
    ("base", &["document"]),
    ("api", &["base"]),
    ("store", &["base"]),
    ("blobs", &["base"]),
    ("backup", &["base", "store", "blobs"]),
    ("flow", &["base", "store"]),
    ("manifest", &["base", "document"]),
    ("release", &["base", "document", "manifest"]),
    ("build", &["base", "document", "release", "manifest"]),
    ("mbus", &["base"]),
    ("cpi", &["base"]),
    ("cpi-host", &["base", "cpi"]),
    ("network", &["base", "store", "api"]),
    // It powers machines on the way `cpi-host` made them.
    ("hostd", &["base", "network", "cpi", "cpi-host"]),
    ("init", &["base"]),
    ("agent", &["base", "document", "mbus", "release", "init"]),
    ("credentials", &["base", "store", "api"]),
    ("identity", &["base", "store", "api"]),
    ("kubernetes", &["base", "document", "api"]),
    (
        "director",
        &[
            "base", "document", "api", "store", "flow", "blobs", "manifest", "release", "cpi", "mbus",
        ],
    ),
    (
        "clusters",
        &[
            "base",
            "document",
            "api",
            "store",
            "flow",
            "manifest",
            "kubernetes",
        ],
    ),
    // `stolos up` builds what is missing; `load-image` hands archives to nodes through the cluster's own API.
    ("cli", &["base", "document", "api", "build", "kubernetes"]),
    (
        "server",
        &[
            "base",
            "document",
            "backup",
            "api",
            "store",
            "flow",
            "blobs",
            "manifest",
            "release",
            "cpi",
            "mbus",
            "network",
            "credentials",
            "identity",
            "kubernetes",
            "director",
            "clusters",
        ],
    ),
    ("testbed", ANY),
    ("xtask", &[]),
    // crates without an entry are refused: a new crate gets its line where it belongs in this order
];

/// Stands for every crate.
const ANY: &[&str] = &["*"];

/// Programs: nobody uses them as a library but the testbed, not even a test.
const PROGRAMS: &[&str] = &["server", "cli", "xtask"];

/// Foreign packages that only these may use: the seam behind which they can be replaced.
const BEHIND_A_SEAM: &[(&str, &[&str])] = &[
    ("sqlx", &["store"]),
    ("kube", &["kubernetes"]),
    ("k8s-openapi", &["kubernetes"]),
    ("async-nats", &["mbus"]),
    ("rtnetlink", &["network", "cpi-host", "hostd", "agent"]),
    ("nftables", &["network", "cpi-host", "hostd", "agent"]),
    ("minijinja", &["release"]),
    ("object_store", &["blobs"]),
    // One reader of YAML has one set of rules (docs/design/0025-documents.md).
    ("granit-parser", &["document"]),
    ("serde-saphyr", &["document"]),
    ("serde_yaml", &["document"]),
    ("serde_yaml_ng", &["document"]),
    ("serde_norway", &["document"]),
];

/// Crates without any I/O use no runtime.
const PURE: &[&str] = &["document", "manifest"];
/// What a pure crate does not use.
const IMPURE: &[&str] = &["tokio", "reqwest", "axum", "hyper", "fs-err", "rustix"];

/// Foreign packages that nothing may bring in, and why.
const BANNED: &[(&str, &str)] = &[
    ("ring", "aws-lc-rs is the one crypto provider"),
    ("openssl-sys", "aws-lc-rs is the one crypto provider"),
    ("native-tls", "rustls is the one TLS implementation"),
];

/// One use of a package by one of our crates.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Edge {
    from: String,
    /// A package name; ours with the prefix.
    to: String,
    /// Only in tests.
    dev: bool,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

/// Asks `cargo metadata` and fails with every forbidden edge by name.
pub(crate) fn check_workspace() -> anyhow::Result<()> {
    let metadata = metadata()?;
    let mut wrong = Vec::new();
    let mut crates = BTreeSet::new();
    let mut edges = Vec::new();
    for package in metadata
        .packages
        .iter()
        .filter(|p| metadata.workspace_members.contains(&p.id))
    {
        let from = package
            .name
            .strip_prefix(PREFIX)
            .unwrap_or(&package.name)
            .to_owned();
        crates.insert(from.clone());
        edges.extend(package.dependencies.iter().map(|dependency| Edge {
            from: from.clone(),
            to: dependency.name.clone(),
            dev: dependency.kind.as_deref() == Some("dev"),
        }));
    }
    wrong.extend(check(&crates, &edges));
    wrong.extend(check_banned(&built_packages()?));
    if !wrong.is_empty() {
        bail!(
            "{} forbidden dependencies:\n  {}",
            wrong.len(),
            wrong.join("\n  ")
        );
    }
    let ours = edges.iter().filter(|edge| edge.to.starts_with(PREFIX)).count();
    say(&format!(
        "{} crates, {ours} dependencies among them, all allowed",
        crates.len()
    ));
    Ok(())
}

fn metadata() -> anyhow::Result<Metadata> {
    let text = output(&["metadata", "--format-version=1", "--locked", "--no-deps"])?;
    serde_json::from_str(&text).context("failed to read the output of cargo metadata")
}

/// The names of all packages that are built for this host. `cargo metadata` does not know: it lists optional
/// dependencies that no enabled feature reaches.
fn built_packages() -> anyhow::Result<BTreeSet<String>> {
    let text = output(&["tree", "--workspace", "--locked", "--prefix=none", "--format={p}"])?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

fn output(arguments: &[&str]) -> anyhow::Result<String> {
    let name = arguments[0];
    let output = cargo()
        .args(arguments)
        .output()
        .with_context(|| format!("failed to start cargo {name}"))?;
    if !output.status.success() {
        bail!(
            "cargo {name} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("failed to read the output of cargo {name}"))
}

/// Every edge that the tables do not allow, in words. Pure.
fn check(crates: &BTreeSet<String>, edges: &[Edge]) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut wrong: Vec<String> = crates
        .iter()
        .filter(|name| !allowed.contains_key(name.as_str()))
        .map(|name| format!("{name}: has no line in the table of xtask/src/deps.rs"))
        .collect();
    for edge in edges {
        let Edge { from, to, dev } = edge;
        match to.strip_prefix(PREFIX) {
            Some(to) => {
                let listed = allowed.get(from.as_str()).copied().unwrap_or_default();
                let is_listed = listed == ANY || listed.contains(&to);
                let is_program = PROGRAMS.contains(&to) && from != "testbed";
                if is_program || (!is_listed && !dev) {
                    let how = if *dev { " (in tests)" } else { "" };
                    wrong.push(format!(
                        "{from} -> {to}{how}: {from} may use only: {}",
                        listed.join(", ")
                    ));
                }
            }
            None => wrong.extend(check_foreign(from, to, *dev)),
        }
    }
    wrong
}

fn check_foreign(from: &str, to: &str, dev: bool) -> Option<String> {
    if dev || from == "testbed" {
        return None;
    }
    if let Some((_, owners)) = BEHIND_A_SEAM.iter().find(|(name, _)| *name == to)
        && !owners.contains(&from)
    {
        return Some(format!("{from} -> {to}: only for: {}", owners.join(", ")));
    }
    (PURE.contains(&from) && IMPURE.contains(&to)).then(|| format!("{from} -> {to}: {from} is pure"))
}

/// Banned packages that are part of the build.
fn check_banned(built: &BTreeSet<String>) -> Vec<String> {
    BANNED
        .iter()
        .filter(|(name, _)| built.contains(*name))
        .map(|(name, why)| {
            format!("{name} is built: {why} (`cargo tree --workspace -i {name}` says who wants it)")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(from: &str, to: &str, dev: bool) -> Edge {
        Edge {
            from: from.to_owned(),
            to: to.to_owned(),
            dev,
        }
    }

    fn wrong(edges: &[Edge]) -> Vec<String> {
        let crates = edges.iter().map(|edge| edge.from.clone()).collect();
        check(&crates, edges)
    }

    #[test]
    fn forbidden_edges_are_named() {
        for (from, to, dev) in [
            ("clusters", "stolos-director", false),
            ("manifest", "stolos-store", false),
            ("director", "stolos-clusters", false),
            ("base", "stolos-api", false),
            ("director", "stolos-server", true),
            ("director", "sqlx", false),
            ("clusters", "kube", false),
            ("cli", "serde-saphyr", false),
            ("manifest", "tokio", false),
        ] {
            let found = wrong(&[edge(from, to, dev)]);
            let name = to.strip_prefix(PREFIX).unwrap_or(to);
            assert!(
                found.len() == 1 && found[0].starts_with(&format!("{from} -> {name}")),
                "{from} -> {to}: {found:?}"
            );
        }
        assert!(wrong(&[edge("newcomer", "serde", false)])[0].contains("no line"));
    }

    #[test]
    fn banned_packages_are_named() {
        let built = ["serde", "ring"].map(str::to_owned).into();
        let found = check_banned(&built);
        assert!(
            found.len() == 1 && found[0].starts_with("ring is built: aws-lc-rs"),
            "{found:?}"
        );
    }

    #[test]
    fn allowed_edges_pass() {
        let edges = [
            edge("director", "stolos-flow", false),
            edge("store", "sqlx", false),
            edge("flow", "sqlx", true),
            edge("clusters", "stolos-director", true),
            edge("testbed", "stolos-server", false),
        ];
        assert_eq!(wrong(&edges), Vec::<String>::new());
    }

    #[test]
    fn the_table_has_no_circle_and_names_only_itself() {
        let names: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
        for (index, (name, uses)) in ALLOWED.iter().enumerate() {
            for used in uses.iter().filter(|used| **used != "*") {
                assert!(names.contains(used), "{name} -> {used}");
                assert!(
                    ALLOWED[..index].iter().any(|(earlier, _)| earlier == used),
                    "{name} comes before {used}, which it uses"
                );
            }
        }
    }
}
