//! `stolosd import`: reads a staged configuration, prints what becomes of it and, when asked to, writes it into `config.yml`.

use std::io::{Read as _, Write};
use std::process::ExitCode;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use stolos_base::{Class, Classify, Instance, files};
use stolos_clusters::render::Catalogue;
use stolos_manifest::{Map, Node, Value, yaml};

use super::machines::NamedVmType;
use super::{Configuration, Imported, Options, convert};
use crate::config::{Config, default_plans};

/// The versions that this build pins, newest first: what `stolos up` can build.
const PINNED: &str = include_str!("../../../../releases/kubernetes/release.yml");
/// The largest file that is read; a tile with everything in it has a hundredth of that.
const MOST_BYTES: u64 = 16 * 1024 * 1024;
/// Beside `config.yml`.
const PROFILE_FILE: &str = "imported-network-profile.json";
/// `config.yml` as it was before.
const FORMER_FILE: &str = "config.yml.before-import";

/// The words of `stolosd import`; `stolos import` has the same and hands them on.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What `om staged-config -p pivotal-container-service` printed, `-` for standard input.
    pub file: Utf8PathBuf,
    /// Write plans and zones into the installation's config.yml.
    #[arg(long)]
    pub write: bool,
    /// Write them in place of plans and zones that config.yml has.
    #[arg(long, requires = "write")]
    pub replace: bool,
    /// The size that a VM type of the tile stands for; may be given several times.
    #[arg(long = "vm-type", value_name = "NAME=CPU:RAM_MB:DISK_MB")]
    pub vm_types: Vec<NamedVmType>,
    /// Kubernetes version of all plans; the newest that is built, else the newest that can be, unless given.
    #[arg(long, value_name = "VERSION")]
    pub kubernetes_version: Option<String>,
    /// Print JSON in place of text.
    #[arg(long)]
    pub json: bool,
}

/// An import did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not readable.
    #[error("failed to read `{path}`")]
    Read {
        /// The file.
        path: Utf8PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is far too large to be one.
    #[error("`{0}` is larger than {MOST_BYTES} bytes, so it is no staged configuration")]
    Large(Utf8PathBuf),
    /// The file is not what it should be.
    #[error("`{path}` cannot be imported")]
    Convert {
        /// The file.
        path: Utf8PathBuf,
        /// The cause.
        #[source]
        source: super::Error,
    },
    /// No Kubernetes version is known.
    #[error("no Kubernetes version is pinned in this build")]
    NoVersion,
    /// What is built could not be read.
    #[error("failed to read what is built")]
    Built(#[source] std::io::Error),
    /// There are plans or zones already.
    #[error("`{path}` names {what} already")]
    Configured {
        /// The configuration.
        path: Utf8PathBuf,
        /// `plans` or other zones.
        what: &'static str,
    },
    /// The configuration that is there is not valid.
    #[error("the configuration `{path}` is not valid: {problem}")]
    Configuration {
        /// The configuration.
        path: Utf8PathBuf,
        /// With line and column.
        problem: String,
    },
    /// Something could not be written.
    #[error("failed to write `{path}`")]
    Write {
        /// The file.
        path: Utf8PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The result could not be printed.
    #[error("failed to print the result")]
    Print(#[source] std::io::Error),
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::Read { .. } | Self::Large(_) | Self::Configuration { .. } => Class::User,
            Self::Convert { source, .. } => source.class(),
            Self::Configured { .. } => Class::Conflict,
            Self::NoVersion | Self::Built(_) | Self::Write { .. } | Self::Print(_) => Class::Internal,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            Self::Convert { source, .. } => source.hints(),
            Self::Configured { .. } => vec![
                "Say `--replace` to have them replaced. Clusters of plans that are gone then stay, but are not upgraded any more.".to_owned(),
            ],
            _ => Vec::new(),
        }
    }
}

/// What was written, and what follows from it.
#[derive(Default, Serialize)]
struct Written {
    files: Vec<Utf8PathBuf>,
    /// Plans that were on offer.
    plans_gone: Vec<String>,
}

/// `stolosd import`: exit code 0 done, 1 the caller's side, 2 ours.
#[must_use]
pub fn main(instance: &Instance, arguments: &Arguments) -> ExitCode {
    match run(instance, arguments, &mut std::io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where standard error is closed, the exit code has to do.
            let _ = writeln!(std::io::stderr(), "{}", explain(&error));
            ExitCode::from(error.class().exit_code())
        }
    }
}

/// Imports a file and prints on `out` what became of it. After an error, `config.yml` is as it was.
fn run(instance: &Instance, arguments: &Arguments, out: &mut impl Write) -> Result<(), Error> {
    let text = read(&arguments.file)?;
    let options = Options {
        kubernetes_version: match &arguments.kubernetes_version {
            Some(version) => version.trim_start_matches('v').to_owned(),
            None => newest(instance)?,
        },
        vm_types: arguments
            .vm_types
            .iter()
            .map(|named| (named.name.clone(), named.size))
            .collect(),
    };
    let imported = convert(&text, &options).map_err(|source| Error::Convert {
        path: arguments.file.clone(),
        source,
    })?;
    let written = if arguments.write {
        Some(write(instance, &imported, &options, arguments.replace)?)
    } else {
        None
    };
    let shown = if arguments.json {
        as_json(&imported, written.as_ref()).map_err(Error::Print)?
    } else {
        as_text(instance, &imported, written.as_ref()).map_err(Error::Print)?
    };
    match writeln!(out, "{shown}") {
        // A reader that went away (`| head`) is no error.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::Print(error)),
        _ => Ok(()),
    }
}

fn read(path: &Utf8Path) -> Result<String, Error> {
    let failed = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let source: Box<dyn std::io::Read> = if path == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(fs_err::File::open(path).map_err(failed)?)
    };
    let size = source
        .take(MOST_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if u64::try_from(size).unwrap_or(u64::MAX) > MOST_BYTES {
        return Err(Error::Large(path.to_owned()));
    }
    Ok(text)
}

/// What plans get that name no version: the newest that is built; before the first `stolos up`, the newest that it can build.
fn newest(instance: &Instance) -> Result<String, Error> {
    let built: Option<Catalogue> =
        files::read_json(&instance.root.join("artifacts.json")).map_err(Error::Built)?;
    if let Some(version) = built.as_ref().and_then(|built| built.versions().first().copied()) {
        return Ok(version.to_owned());
    }
    #[derive(Deserialize)]
    struct Release {
        versions: Vec<String>,
    }
    let release: Release =
        stolos_document::from_yaml(PINNED).expect("the file is a part of this program, and tests read it");
    release.versions.into_iter().next().ok_or(Error::NoVersion)
}

fn as_json(imported: &Imported, written: Option<&Written>) -> std::io::Result<String> {
    let mut value = serde_json::to_value(imported)?;
    value["written"] = serde_json::to_value(written)?;
    Ok(serde_json::to_string_pretty(&value)?)
}

/// The report and, where nothing was written, the configuration: one YAML text with the report as its comment.
fn as_text(instance: &Instance, imported: &Imported, written: Option<&Written>) -> std::io::Result<String> {
    let report = imported.report.to_string();
    let Some(written) = written else {
        let comment: String = report
            .lines()
            .map(|line| format!("# {line}").trim_end().to_owned() + "\n")
            .collect();
        let mut text = format!("{comment}\n{}", yaml::write(&node(&imported.configuration)?));
        if let Some(profile) = &imported.network_profile {
            text.push_str(&format!(
                "\n# Network profile, for a file of its own:\n# {profile}\n"
            ));
        }
        text.push_str("\n# Nothing is written; --write puts plans and zones into config.yml.");
        return Ok(text);
    };
    let mut text = format!("{report}\n");
    for file in &written.files {
        text.push_str(&format!("Written: {file}\n"));
    }
    if !written.plans_gone.is_empty() {
        text.push_str(&format!(
            "No longer on offer: {}. Clusters that have such a plan go on, but are not upgraded.\n",
            written.plans_gone.join(", ")
        ));
    }
    text.push_str(&format!(
        "Run `stolos up{}` for it to take effect.",
        place(instance)
    ));
    if imported.network_profile.is_some() {
        text.push_str(&format!(
            "\nThen make the network profile: stolos create-network-profile {}",
            instance.root.join(PROFILE_FILE)
        ));
    }
    Ok(text)
}

/// The words that name an instance which is not the usual one.
fn place(instance: &Instance) -> String {
    if *instance == Instance::at_default(instance.name.clone()) {
        if instance.name.as_str() == "stolos" {
            String::new()
        } else {
            format!(" --instance {}", instance.name)
        }
    } else {
        format!(" --instance {} --root {}", instance.name, instance.root)
    }
}

fn node(value: &impl Serialize) -> std::io::Result<Node> {
    Ok(Node::from(serde_json::to_value(value)?))
}

/// Puts plans and zones into `config.yml`. All that can be refused is refused before anything is written.
fn write(
    instance: &Instance,
    imported: &Imported,
    options: &Options,
    replace: bool,
) -> Result<Written, Error> {
    let path = instance.config_file();
    let former = former(&path)?;
    let parsed = parse(&path, former.as_deref().unwrap_or_default())?;
    let mut written = Written {
        files: Vec::new(),
        plans_gone: match &former {
            Some(_) => gone(&parsed, &imported.configuration, options),
            None => Vec::new(),
        },
    };
    let text = merged(&path, parsed, &imported.configuration, replace)?;
    let failed = |path: &Utf8Path| {
        let path = path.to_owned();
        move |source| Error::Write { path, source }
    };
    fs_err::create_dir_all(&instance.root).map_err(failed(&instance.root))?;
    if let Some(profile) = &imported.network_profile {
        let path = instance.root.join(PROFILE_FILE);
        files::write_json(&path, profile, 0o644).map_err(failed(&path))?;
        written.files.push(path);
    }
    if let Some(former) = &former {
        let path = instance.root.join(FORMER_FILE);
        files::write_atomic(&path, former.as_bytes(), 0o600).map_err(failed(&path))?;
        written.files.push(path);
    }
    files::write_atomic(&path, text.as_bytes(), 0o600).map_err(failed(&path))?;
    written.files.push(path);
    Ok(written)
}

fn former(path: &Utf8Path) -> Result<Option<String>, Error> {
    match fs_err::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn parse(path: &Utf8Path, text: &str) -> Result<Node, Error> {
    if text.trim().is_empty() {
        return Ok(Node::default());
    }
    yaml::parse("config.yml", text).map_err(|problem| Error::Configuration {
        path: path.to_owned(),
        problem: problem.to_string(),
    })
}

/// The configuration with the plans and zones. Everything else in it stays as it is, but for its comments.
fn merged(
    path: &Utf8Path,
    former: Node,
    configuration: &Configuration,
    replace: bool,
) -> Result<String, Error> {
    let invalid = |problem: String| Error::Configuration {
        path: path.to_owned(),
        problem,
    };
    let mut map = match former.value {
        Value::Map(map) => map,
        Value::Null => Map::new(),
        _ => return Err(invalid("it is no map".to_owned())),
    };
    let ours = node(configuration).map_err(|error| invalid(error.to_string()))?;
    for (what, entry) in ours.as_map().into_iter().flatten() {
        if let Some(there) = map.get(what)
            && !there.node.is_null()
            && there.node != entry.node
            && !replace
        {
            return Err(Error::Configured {
                path: path.to_owned(),
                what: if what == "plans" { "plans" } else { "other zones" },
            });
        }
        map.insert(what.clone(), entry.clone());
    }
    let has_programs = map.contains_key("programs");
    let text = yaml::write(&Node::new(Value::Map(map)));
    // `stolos up` writes the programs; until then the file is not complete.
    if has_programs {
        let config: Config = stolos_document::from_yaml(&text).map_err(|error| invalid(error.to_string()))?;
        if config.plans.as_ref() != Some(&configuration.plans) {
            return Err(invalid("it does not keep what is written into it".to_owned()));
        }
    }
    Ok(text)
}

/// Names of plans that were on offer and are not among the new ones.
fn gone(former: &Node, configuration: &Configuration, options: &Options) -> Vec<String> {
    let mut names: Vec<String> = match former.get("plans").and_then(Node::as_list) {
        Some(plans) => plans
            .iter()
            .filter_map(|plan| plan.get("name")?.scalar_text())
            .collect(),
        None => default_plans(&options.kubernetes_version)
            .into_iter()
            .map(|plan| plan.name)
            .collect(),
    };
    names.retain(|name| !configuration.plans.iter().any(|plan| plan.name == *name));
    names
}

/// An error as `stolos` prints it.
fn explain(error: &Error) -> String {
    let mut text = format!("Error: {}", stolos_base::chain(error));
    for hint in error.hints() {
        text.push_str(&format!("\n\nhint: {hint}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TILE: &str = include_str!("../../tests/import/flannel.yml");

    struct Place {
        instance: Instance,
        dir: camino_tempfile::Utf8TempDir,
    }

    impl Place {
        fn new() -> Self {
            let dir = camino_tempfile::tempdir().expect("a temporary directory");
            let instance = Instance {
                name: "stolos".parse().expect("a name"),
                root: dir.path().join("root"),
            };
            fs_err::write(dir.path().join("tile.yml"), TILE).expect("the tile");
            Self { instance, dir }
        }

        fn configure(&self, text: &str) {
            fs_err::create_dir_all(&self.instance.root).expect("the root");
            fs_err::write(self.instance.config_file(), text).expect("the configuration");
        }

        fn import(&self, words: &[&str]) -> Result<String, Error> {
            #[derive(clap::Parser)]
            struct Program {
                #[command(flatten)]
                arguments: Arguments,
            }
            let file = self.dir.path().join("tile.yml");
            let words = ["import", file.as_str()].into_iter().chain(words.iter().copied());
            let program: Program = clap::Parser::try_parse_from(words).expect("the words");
            let mut out = Vec::new();
            run(&self.instance, &program.arguments, &mut out)?;
            Ok(String::from_utf8(out).expect("text"))
        }

        fn config(&self) -> Config {
            let text = fs_err::read_to_string(self.instance.config_file()).expect("the configuration");
            stolos_document::from_yaml(&text).expect("a configuration")
        }
    }

    #[test]
    fn without_write_it_prints_yaml_and_leaves_everything() {
        let place = Place::new();
        let text = place.import(&[]).expect("imported");
        assert!(!place.instance.root.exists(), "nothing is made");
        let read: serde_json::Value = stolos_document::from_yaml(&text).expect("the whole output is YAML");
        assert_eq!(read["plans"][0]["name"], "small", "{text}");
        let json = place.import(&["--json"]).expect("imported");
        let read: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(read["configuration"]["plans"][0]["name"], "small");
        assert_eq!(read["written"], json!(null));
    }

    #[test]
    fn what_is_in_the_configuration_stays() {
        let place = Place::new();
        let former =
            "# ours\ndatabase: postgres://u:p@h/d\nprograms: {nats_server: /n, cpi_host: /c}\nplans: null\n";
        place.configure(former);
        let text = place.import(&["--write"]).expect("imported");
        assert!(text.contains("No longer on offer: large"), "{text}");
        assert!(text.contains("stolos up --instance stolos --root"), "{text}");
        let config = place.config();
        assert_eq!(config.database, "postgres://u:p@h/d");
        assert_eq!(config.programs.nats_server, "/n");
        assert_eq!(config.plans.expect("plans")[0].name, "small");
        let kept = fs_err::read_to_string(place.instance.root.join(FORMER_FILE)).expect("the former one");
        assert_eq!(kept, former);
    }

    #[test]
    fn plans_are_replaced_when_that_is_said() {
        let place = Place::new();
        let plans = serde_json::to_string(&default_plans("1.37.1")).expect("JSON");
        let former = format!("programs: {{nats_server: /n, cpi_host: /c}}\nplans: {plans}\n");
        place.configure(&former);
        let error = place.import(&["--write"]).expect_err("there are plans");
        assert_eq!(error.class().exit_code(), 1);
        assert!(explain(&error).contains("--replace"), "{}", explain(&error));
        let kept = fs_err::read_to_string(place.instance.config_file()).expect("the configuration");
        assert_eq!(kept, former, "a refusal writes nothing");
        place.import(&["--write", "--replace"]).expect("imported");
        place
            .import(&["--write"])
            .expect("the same again is no replacement");
        assert_eq!(place.config().plans.expect("plans").len(), 4);
    }

    #[test]
    fn before_the_first_start_there_is_no_configuration() {
        let place = Place::new();
        let text = place.import(&["--write", "--json"]).expect("imported");
        let read: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(read["written"]["plans_gone"], json!([]));
        let written = fs_err::read_to_string(place.instance.config_file()).expect("the configuration");
        let completed = format!("{written}programs: {{nats_server: /n, cpi_host: /c}}\n");
        let config: Config = stolos_document::from_yaml(&completed).expect("what `stolos up` makes of it");
        assert_eq!(config.plans.expect("plans").len(), 4);
    }

    #[test]
    fn a_configuration_that_is_not_valid_is_left_as_it_is() {
        let place = Place::new();
        for (bad, words) in [
            ("programs: [\n", "line"),
            ("- a\n", "no map"),
            (
                "programs: {nats_server: /n, cpi_host: /c}\ndatabse: x\n",
                "databse",
            ),
        ] {
            place.configure(bad);
            let error = place.import(&["--write"]).expect_err(words);
            assert!(explain(&error).contains(words), "{}", explain(&error));
            let kept = fs_err::read_to_string(place.instance.config_file()).expect("the configuration");
            assert_eq!(kept, bad);
        }
    }

    #[test]
    fn the_newest_version_that_is_built_is_taken() {
        let place = Place::new();
        fs_err::create_dir_all(&place.instance.root).expect("the root");
        let artifacts = json!({
            "release": "kubernetes", "release_version": "1", "stemcell_os": "s", "stemcell_version": "1", "image_seed": "",
        });
        files::write_json(
            &place.instance.root.join("artifacts.json"),
            &json!({"1.99.7": artifacts, "1.100.1": artifacts}),
            0o644,
        )
        .expect("what is built");
        let text = place.import(&[]).expect("imported");
        assert!(text.contains("kubernetes_version: 1.100.1"), "{text}");
        let text = place
            .import(&["--kubernetes-version", "v1.99.7"])
            .expect("imported");
        assert!(text.contains("kubernetes_version: 1.99.7"), "{text}");
    }
}
