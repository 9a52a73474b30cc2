//! Where upstream programs come from.
//!
//! A [`Component`] is a directory below `upstream/` whose `go.mod` pins one upstream project and lists its programs as
//! tools. [`Source`] is the seam for other origins, official downloads for instance; [`GoModules`] compiles.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

use crate::cache::Inputs;
use crate::error::{Error, Result, file};
use crate::progress::{Event, Progress};
use crate::run;

/// One upstream project at one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// The name of its directory below `upstream/`.
    pub name: String,
    /// Its version as the Go module has it, `v1.37.1`.
    pub version: String,
    /// Program to Go package.
    pub programs: BTreeMap<String, String>,
    directory: Utf8PathBuf,
}

/// Makes the programs of a component.
pub trait Source: Send + Sync {
    /// Everything that decides what [`Source::make`] makes.
    ///
    /// # Errors
    /// When what is pinned cannot be read.
    fn inputs(&self, component: &Component) -> Result<Inputs>;

    /// Puts the component's programs into `directory`, each under its name, executable.
    ///
    /// # Errors
    /// When that fails.
    fn make(&self, component: &Component, directory: &Utf8Path, progress: &dyn Progress) -> Result<()>;
}

/// Programs whose Go package does not end in their name.
const RENAMED: &[(&str, &str)] = &[("go.etcd.io/etcd/server/v3", "etcd")];

const GO_HINT: &str =
    "Install Go 1.26 or newer, as its project publishes it or from the distribution where it is new enough.";

impl Component {
    /// All components below `upstream`, by name.
    ///
    /// # Errors
    /// When a `go.mod` is missing or not understood.
    pub fn all(upstream: &Utf8Path) -> Result<Vec<Self>> {
        let mut components = Vec::new();
        for entry in upstream.read_dir_utf8().map_err(file("read", upstream))? {
            let entry = entry.map_err(file("read", upstream))?;
            if entry.path().join("go.mod").exists() {
                components.push(Self::read(entry.path())?);
            }
        }
        components.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(components)
    }

    fn read(directory: &Utf8Path) -> Result<Self> {
        let path = directory.join("go.mod");
        let text = fs_err::read_to_string(&path).map_err(file("read", &path))?;
        let refuse = |reason: &str| Error::Definition {
            path: path.clone(),
            reason: reason.to_owned(),
        };
        let mut required: Vec<(&str, &str)> = Vec::new();
        let mut tools: Vec<&str> = Vec::new();
        let mut block = None;
        for line in text.lines() {
            let line = line.split("//").next().unwrap_or_default().trim();
            let (directive, rest) = match (block, line) {
                (_, "") => continue,
                (Some(_), ")") => {
                    block = None;
                    continue;
                }
                (Some(directive), rest) => (directive, rest),
                (None, line) => {
                    let (directive, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
                    if rest.trim() == "(" {
                        block = Some(directive);
                        continue;
                    }
                    (directive, rest.trim())
                }
            };
            match directive {
                "require" => required.extend(rest.split_once(' ')),
                "tool" => tools.push(rest),
                _ => {}
            }
        }
        let first = tools.first().ok_or_else(|| refuse("it names no tool"))?;
        let version = required
            .iter()
            .filter(|(module, _)| *first == *module || first.starts_with(&format!("{module}/")))
            .max_by_key(|(module, _)| module.len())
            .map(|(_, version)| version.trim().to_owned())
            .ok_or_else(|| refuse("it requires no module that has its first tool"))?;
        Ok(Self {
            name: directory.file_name().unwrap_or_default().to_owned(),
            version,
            programs: tools
                .iter()
                .map(|tool| (program_name(tool), (*tool).to_owned()))
                .collect(),
            directory: directory.to_owned(),
        })
    }

    /// Whether it is a minor version of Kubernetes: only those that somebody asks for are compiled.
    #[must_use]
    pub fn is_kubernetes(&self) -> bool {
        self.name.starts_with("kubernetes-")
    }

    /// Link flags that put the version into programs that report one.
    fn link_flags(&self) -> String {
        let mut flags = "-s -w".to_owned();
        if self.is_kubernetes() {
            let version = &self.version;
            let mut places = version.trim_start_matches('v').split('.');
            let (major, minor) = (
                places.next().unwrap_or_default(),
                places.next().unwrap_or_default(),
            );
            for (variable, value) in [
                ("k8s.io/component-base/version.gitVersion", version.as_str()),
                ("k8s.io/component-base/version.gitMajor", major),
                ("k8s.io/component-base/version.gitMinor", minor),
                ("k8s.io/client-go/pkg/version.gitVersion", version.as_str()),
            ] {
                flags.push_str(&format!(" -X {variable}={value}"));
            }
        }
        if self.name == "metrics-server" {
            let version = &self.version;
            flags.push_str(&format!(" -X k8s.io/client-go/pkg/version.gitVersion={version}"));
        }
        flags
    }
}

fn program_name(package: &str) -> String {
    match RENAMED.iter().find(|(renamed, _)| *renamed == package) {
        Some((_, name)) => (*name).to_owned(),
        None => last_element(package).to_owned(),
    }
}

/// The last element of a package path that is no major version: what Go calls the program.
fn last_element(package: &str) -> &str {
    let is_major = |part: &str| {
        part.strip_prefix('v')
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    package
        .rsplit('/')
        .find(|part| !is_major(part))
        .unwrap_or(package)
}

/// Compiles with `go build`, without C, from modules that `go.sum` vouches for.
#[derive(Clone, Copy, Debug, Default)]
pub struct GoModules;

impl GoModules {
    fn go(component: &Component) -> Result<std::process::Command> {
        let mut go = run::bound("go", GO_HINT)?;
        go.current_dir(&component.directory)
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-mod=readonly")
            .env("GOWORK", "off");
        Ok(go)
    }

    fn flags(component: &Component) -> Vec<String> {
        let mut flags: Vec<String> = ["-trimpath", "-buildvcs=false", "-ldflags"]
            .map(str::to_owned)
            .into();
        flags.push(component.link_flags());
        flags
    }
}

impl Source for GoModules {
    fn inputs(&self, component: &Component) -> Result<Inputs> {
        let settings = run::output(
            Self::go(component)?.args([
                "env",
                "GOVERSION",
                "GOOS",
                "GOARCH",
                "GOAMD64",
                "GOARM64",
                "GOEXPERIMENT",
            ]),
            GO_HINT,
        )?;
        Inputs::new()
            .text("source", "go build")
            .text("go", settings.split('\n').collect::<Vec<_>>().join(" "))
            .text("flags", Self::flags(component).join(" "))
            .text("programs", format!("{:?}", component.programs))
            .file("go.mod", &component.directory.join("go.mod"))?
            .file("go.sum", &component.directory.join("go.sum"))
    }

    fn make(&self, component: &Component, directory: &Utf8Path, progress: &dyn Progress) -> Result<()> {
        let what = format!("upstream {}", component.name);
        let mut n_packages = 0_u32;
        // All at once: they share most of their packages, and the last one's linking need not wait for the others'.
        let mut go = Self::go(component)?;
        go.arg("build")
            .arg("-v")
            .args(Self::flags(component))
            .arg("-o")
            .arg(format!("{directory}/"))
            .args(component.programs.values());
        run::run(&mut go, GO_HINT, |line| {
            let text = match line.strip_prefix("go: ") {
                Some(said) => said.to_owned(),
                None => {
                    n_packages += 1;
                    format!("package {n_packages}, {line}")
                }
            };
            progress.event(&Event::Step {
                what: &what,
                text: &text,
            });
        })?;
        for (program, package) in &component.programs {
            let named_by_go = directory.join(last_element(package));
            let path = directory.join(program);
            if named_by_go != path {
                fs_err::rename(&named_by_go, &path).map_err(file("create", path))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_named_after_their_package() {
        for (package, name) in [
            ("k8s.io/kubernetes/cmd/kubelet", "kubelet"),
            ("github.com/nats-io/nats-server/v2", "nats-server"),
            ("go.etcd.io/etcd/server/v3", "etcd"),
            ("go.etcd.io/etcd/etcdctl/v3", "etcdctl"),
            ("example.com/vault", "vault"),
        ] {
            assert_eq!(program_name(package), name);
        }
    }

    #[test]
    fn version_and_programs_are_read_from_go_mod() {
        let dir = camino_tempfile::tempdir().expect("a directory");
        let component = dir.path().join("kubernetes-1.99");
        fs_err::create_dir(&component).expect("a component");
        let text = "// pins\nmodule x\n\ngo 1.26\n\ntool (\n\tk8s.io/kubernetes/cmd/kubelet\n\tk8s.io/kubernetes/cmd/kubectl // a tool\n)\n\n\
                    replace k8s.io/api => k8s.io/api v0.99.1\nrequire k8s.io/kubernetes v1.99.3\nrequire (\n\tk8s.io/api v0.0.0 // indirect\n)\n";
        fs_err::write(component.join("go.mod"), text).expect("a go.mod");
        let all = Component::all(dir.path()).expect("one component");
        assert_eq!(all[0].name, "kubernetes-1.99");
        assert_eq!(all[0].version, "v1.99.3");
        assert_eq!(all[0].programs.keys().collect::<Vec<_>>(), ["kubectl", "kubelet"]);
        assert_eq!(
            all[0].link_flags(),
            "-s -w -X k8s.io/component-base/version.gitVersion=v1.99.3 -X k8s.io/component-base/version.gitMajor=1 -X \
             k8s.io/component-base/version.gitMinor=99 -X k8s.io/client-go/pkg/version.gitVersion=v1.99.3"
        );

        fs_err::write(component.join("go.mod"), "module x\ntool a.b/c\n").expect("a go.mod");
        let error = Component::all(dir.path()).expect_err("no version");
        assert!(
            error
                .to_string()
                .contains("it requires no module that has its first tool"),
            "{error}"
        );
    }

    #[test]
    fn the_repository_pins_what_it_needs() {
        let repository =
            crate::find_repository(Utf8Path::new(env!("CARGO_MANIFEST_DIR"))).expect("the repository");
        let all = Component::all(&repository.join("upstream")).expect("all components");
        let programs: Vec<&str> = all
            .iter()
            .flat_map(|c| c.programs.keys().map(String::as_str))
            .collect();
        for program in [
            "etcd",
            "etcdctl",
            "etcdutl",
            "kube-apiserver",
            "kubelet",
            "containerd",
            "ctr",
            "portmap",
            "coredns",
            "metrics-server",
            "nats-server",
            "versitygw",
        ] {
            assert!(programs.contains(&program), "{program} in {programs:?}");
        }
        assert!(all.iter().all(|component| component.version.starts_with('v')));
    }
}
