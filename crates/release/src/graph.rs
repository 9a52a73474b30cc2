//! Which packages have to be there before which.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result, invalid};
use crate::manifest::ReleaseManifest;

/// The dependencies between the packages of one release, known to be free of circles.
#[derive(Clone, Debug)]
pub struct CompileGraph {
    dependencies: BTreeMap<String, BTreeSet<String>>,
    order: Vec<String>,
}

impl CompileGraph {
    /// The graph of a release's packages, whether they are source or compiled.
    ///
    /// # Errors
    /// [`Error::Cycle`], naming the circle; [`Error::Invalid`] for a dependency that is not there.
    pub fn of(manifest: &ReleaseManifest) -> Result<Self> {
        let source = manifest
            .packages
            .iter()
            .map(|p| (p.name.as_str(), &p.dependencies));
        let compiled = manifest
            .compiled_packages
            .iter()
            .map(|p| (p.name.as_str(), &p.dependencies));
        Self::new(
            source
                .chain(compiled)
                .map(|(name, needs)| (name, needs.iter().map(String::as_str))),
        )
    }

    /// A graph from names and what they depend on.
    ///
    /// # Errors
    /// As [`CompileGraph::of`].
    pub fn new<'a, D>(packages: impl IntoIterator<Item = (&'a str, D)>) -> Result<Self>
    where
        D: IntoIterator<Item = &'a str>,
    {
        let dependencies: BTreeMap<String, BTreeSet<String>> = packages
            .into_iter()
            .map(|(name, needs)| (name.to_owned(), needs.into_iter().map(str::to_owned).collect()))
            .collect();
        for (name, needs) in &dependencies {
            if let Some(missing) = needs.iter().find(|need| !dependencies.contains_key(*need)) {
                return Err(invalid(
                    "release.MF",
                    format!("package `{name}` depends on package `{missing}`, which is not listed"),
                ));
            }
        }
        let order = sort(&dependencies)?;
        Ok(Self { dependencies, order })
    }

    /// Whether the package is one of the release.
    #[must_use]
    pub fn holds(&self, package: &str) -> bool {
        self.dependencies.contains_key(package)
    }

    /// All packages, each after those that it depends on. The same graph always gives the same order.
    #[must_use]
    pub fn order(&self) -> &[String] {
        &self.order
    }

    /// What the package names as its dependencies.
    #[must_use]
    pub fn direct(&self, package: &str) -> Vec<&str> {
        self.dependencies
            .get(package)
            .map(|needs| needs.iter().map(String::as_str).collect())
            .unwrap_or_default()
    }

    /// Everything that has to be there for the given packages, they included, each after those that it depends on.
    #[must_use]
    pub fn closure<'a>(&self, packages: impl IntoIterator<Item = &'a str>) -> Vec<&str> {
        let mut needed = BTreeSet::new();
        let mut open: Vec<&str> = packages.into_iter().collect();
        while let Some(name) = open.pop() {
            if let Some((name, needs)) = self.dependencies.get_key_value(name)
                && needed.insert(name.as_str())
            {
                open.extend(needs.iter().map(String::as_str));
            }
        }
        self.order
            .iter()
            .map(String::as_str)
            .filter(|name| needed.contains(name))
            .collect()
    }
}

fn sort(dependencies: &BTreeMap<String, BTreeSet<String>>) -> Result<Vec<String>> {
    #[derive(PartialEq)]
    enum Mark {
        Open,
        Done,
    }
    let mut marks: BTreeMap<&str, Mark> = BTreeMap::new();
    let mut order = Vec::with_capacity(dependencies.len());
    // Depth first with a stack of our own: the depth comes from a file that somebody sent us.
    for start in dependencies.keys() {
        let mut path: Vec<(&str, std::collections::btree_set::Iter<'_, String>)> = Vec::new();
        let mut enter = Some(start.as_str());
        loop {
            if let Some(name) = enter.take() {
                match marks.get(name) {
                    Some(Mark::Done) => {}
                    Some(Mark::Open) => {
                        let from = path.iter().position(|(on_path, _)| *on_path == name).unwrap_or(0);
                        let mut circle: Vec<String> =
                            path[from..].iter().map(|(name, _)| (*name).to_owned()).collect();
                        circle.push(name.to_owned());
                        return Err(Error::Cycle(circle));
                    }
                    None => {
                        if let Some(needs) = dependencies.get(name) {
                            marks.insert(name, Mark::Open);
                            path.push((name, needs.iter()));
                        }
                    }
                }
            }
            let Some((name, needs)) = path.last_mut() else {
                break;
            };
            if let Some(need) = needs.next() {
                enter = Some(need);
            } else {
                marks.insert(name, Mark::Done);
                order.push((*name).to_owned());
                path.pop();
            }
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(packages: &[(&str, &[&str])]) -> Result<CompileGraph> {
        CompileGraph::new(
            packages
                .iter()
                .map(|(name, needs)| (*name, needs.iter().copied())),
        )
    }

    #[test]
    fn dependencies_come_first_and_closures_hold_only_what_is_needed() {
        let graph = graph(&[
            ("app", &["lib", "tool"]),
            ("lib", &["base"]),
            ("base", &[]),
            ("tool", &["base"]),
            ("x", &[]),
        ])
        .expect("no circle");
        assert_eq!(graph.order(), ["base", "lib", "tool", "app", "x"]);
        assert_eq!(graph.closure(["lib"]), ["base", "lib"]);
        assert_eq!(graph.direct("app"), ["lib", "tool"]);
    }

    #[test]
    fn circles_are_named_and_unknown_packages_refused() {
        let error = graph(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]).expect_err("a circle");
        assert_eq!(
            error.to_string(),
            "packages depend on each other in a circle: b -> c -> b"
        );
        let error = graph(&[("a", &["nowhere"])]).expect_err("an unknown package");
        insta::assert_snapshot!(error.to_string(), @"`release.MF` is not valid: package `a` depends on package `nowhere`, which is not listed");
    }
}
