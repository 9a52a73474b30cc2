//! `stolos-build`: makes the parts of Stolos that are not Rust, and prints where they lie.

mod terminal;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use clap::{Parser, Subcommand};
use serde::Serialize;
use stolos_base::{Classify as _, Clock};
use stolos_build::{Builder, Cache, Release, find_repository};

/// Makes upstream programs, the Kubernetes release, the stemcell and the system's images, and prints where they lie.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The Stolos repository; found upwards from here when it is not named
    #[arg(long, env = "STOLOS_REPOSITORY", global = true)]
    repository: Option<Utf8PathBuf>,
    /// The cache; $XDG_CACHE_HOME/stolos or ~/.cache/stolos when it is not named
    #[arg(long, env = "STOLOS_CACHE", global = true)]
    cache: Option<Utf8PathBuf>,
    /// The directory of stolos-job, stolos-init and stolos-agent; that of this program when it is not named
    #[arg(long, global = true)]
    programs: Option<Utf8PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything, with all Kubernetes versions
    All,
    /// What takes long and needs no program of ours: upstream programs, the stemcell's packages, images
    Prepare {
        /// Kubernetes versions; all when none is named
        kubernetes: Vec<String>,
    },
    /// The programs of one upstream component
    Upstream {
        /// A directory below `upstream`
        name: String,
    },
    /// The Kubernetes release
    Release {
        /// The Kubernetes version; the newest when it is not named
        kubernetes: Option<String>,
    },
    /// The stemcell
    Stemcell,
    /// The system's container images, and the store that nodes begin with
    Images,
    /// What is in the cache
    List,
    /// Remove what was not asked for lately
    Gc {
        /// Days without use after which something goes
        #[arg(long, default_value_t = 30)]
        older_than_days: u64,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut stderr = std::io::stderr().lock();
            // Nobody is left to be told when stderr is closed.
            let _ = writeln!(stderr, "error: {}", stolos_base::chain(error.as_ref()));
            let ours = error.downcast_ref::<stolos_build::Error>();
            for hint in ours.map(|error| error.hints()).unwrap_or_default() {
                let _ = writeln!(stderr, "\nhint: {hint}");
            }
            ExitCode::from(ours.map_or(2, |error| error.class().exit_code()))
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let cache = match &arguments.cache {
        Some(root) => Cache::at(absolute(root)?, Clock::system()),
        None => Cache::of_user()?,
    };
    let here = match &arguments.repository {
        Some(repository) => absolute(repository)?,
        None => absolute(Utf8Path::new("."))?,
    };
    let builder =
        Builder::new(cache, &find_repository(&here)?)?.with_progress(Arc::new(terminal::Terminal::new()));
    let programs = match &arguments.programs {
        Some(programs) => absolute(programs)?,
        None => own_directory()?,
    };
    let release = |version: &String| builder.release(version, &programs.join("stolos-job"));
    let stemcell = || builder.stemcell(&programs.join("stolos-init"), &programs.join("stolos-agent"));
    let print = Printer { json: arguments.json };
    match &arguments.command {
        Command::All => {
            let versions = builder.kubernetes_versions()?;
            builder.prepare(&versions)?;
            let releases: Vec<Release> = versions.iter().map(release).collect::<Result<_, _>>()?;
            let (stemcell, seed) = (stemcell()?, builder.images_seed()?);
            let nats = builder.upstream("nats-server")?;
            if print.json {
                return print.value(&serde_json::json!({
                    "releases": releases, "stemcell": stemcell, "images_seed": seed, "nats_server": nats.program("nats-server"),
                }));
            }
            for release in releases {
                print.line(&format!("release      {}  {}", release.version, release.path))?;
            }
            print.line(&format!("stemcell     {}  {}", stemcell.version, stemcell.path))?;
            print.line(&format!("images       {}  {}", seed.name, seed.path))?;
            print.line(&format!(
                "nats-server  {}  {}",
                nats.version,
                nats.program("nats-server")
            ))
        }
        Command::Prepare { kubernetes } if kubernetes.is_empty() => {
            Ok(builder.prepare(&builder.kubernetes_versions()?)?)
        }
        Command::Prepare { kubernetes } => Ok(builder.prepare(kubernetes)?),
        Command::Upstream { name } => {
            let upstream = builder.upstream(name)?;
            print.either(&upstream, upstream.bin.as_str())
        }
        Command::Release { kubernetes } => {
            let newest = builder.kubernetes_versions()?.remove(0);
            let release = release(kubernetes.as_ref().unwrap_or(&newest))?;
            print.either(&release, release.path.as_str())
        }
        Command::Stemcell => {
            let stemcell = stemcell()?;
            print.either(&stemcell, stemcell.path.as_str())
        }
        Command::Images => {
            let seed = builder.images_seed()?;
            print.either(&seed, seed.path.as_str())
        }
        Command::List => list(&builder, &print),
        Command::Gc { older_than_days } => {
            let removed = builder.collect_garbage(Duration::from_secs(older_than_days * 86_400))?;
            print.either(
                &removed,
                &removed
                    .iter()
                    .map(|path| path.as_str())
                    .collect::<Vec<_>>()
                    .join("\n"),
            )
        }
    }
}

fn list(builder: &Builder, print: &Printer) -> anyhow::Result<()> {
    let listed = builder.list()?;
    if print.json {
        return print.value(&listed);
    }
    for artefact in listed {
        print.line(&format!(
            "{:14} {:24} {:>8.1} MB  {:>7.1} s  {}",
            artefact.kind,
            artefact.name,
            artefact.size as f64 / 1e6,
            artefact.took_ms as f64 / 1e3,
            artefact.path,
        ))?;
    }
    Ok(())
}

struct Printer {
    json: bool,
}

impl Printer {
    fn either(&self, value: &impl Serialize, text: &str) -> anyhow::Result<()> {
        if self.json {
            self.value(value)
        } else {
            self.line(text)
        }
    }

    fn value(&self, value: &impl Serialize) -> anyhow::Result<()> {
        self.line(&serde_json::to_string_pretty(value)?)
    }

    fn line(&self, text: &str) -> anyhow::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        writeln!(std::io::stdout(), "{text}").context("failed to write to stdout")
    }
}

fn absolute(path: &Utf8Path) -> anyhow::Result<Utf8PathBuf> {
    camino::absolute_utf8(path).with_context(|| format!("failed to find `{path}`"))
}

fn own_directory() -> anyhow::Result<Utf8PathBuf> {
    let own = std::env::current_exe().context("failed to find this program's own path")?;
    let own = Utf8PathBuf::try_from(own).context("this program's own path is not UTF-8")?;
    Ok(own.parent().map(Utf8Path::to_owned).unwrap_or_default())
}
