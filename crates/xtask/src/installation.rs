//! An installation of its own for a benchmark or a trial: own name, own root, own session; gone afterwards.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::ci::cargo;
use crate::say;

pub(crate) struct Installation {
    name: &'static str,
    home: PathBuf,
    bin: PathBuf,
    cache: PathBuf,
}

impl Installation {
    /// Builds our programs and brings the installation up.
    pub(crate) fn up(name: &'static str) -> anyhow::Result<Self> {
        let status = cargo().args(["build", "--workspace", "--bins"]).status()?;
        if !status.success() {
            bail!("the programs could not be built");
        }
        let bin = std::env::current_exe()?
            .parent()
            .context("this program lies nowhere")?
            .to_owned();
        let cache = match (
            std::env::var_os("STOLOS_CACHE"),
            std::env::var_os("XDG_CACHE_HOME"),
        ) {
            (Some(cache), _) => cache.into(),
            (None, Some(cache)) => Path::new(&cache).join("stolos"),
            (None, None) => {
                Path::new(&std::env::var_os("HOME").context("HOME is not set")?).join(".cache/stolos")
            }
        };
        let home = std::env::temp_dir().join(format!("stolos-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&home)?;
        let installation = Self {
            name,
            home,
            bin,
            cache,
        };
        say("bringing up an installation of its own");
        installation.stolos(&["up"])?;
        Ok(installation)
    }

    pub(crate) fn root(&self) -> PathBuf {
        Path::new("/var/lib/stolos").join(self.name)
    }

    pub(crate) fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        command
            .env("HOME", &self.home)
            .env("KUBECONFIG", self.home.join("kubeconfig"))
            .env("STOLOS_CACHE", &self.cache)
            .env("STOLOS_INSTANCE", self.name)
            .env_remove("STOLOS_ROOT")
            .env_remove("PKS_HOME");
        command
    }

    /// Runs `stolos` and gives what it printed.
    pub(crate) fn stolos(&self, arguments: &[&str]) -> anyhow::Result<String> {
        output(self.program("stolos").args(arguments))
    }

    /// Makes a cluster of one master and one worker.
    pub(crate) fn create_cluster(&self, name: &str, wait: bool) -> anyhow::Result<()> {
        self.create_cluster_of(name, "small", "1", wait)
    }

    /// Makes a cluster of a plan with so many workers.
    pub(crate) fn create_cluster_of(
        &self,
        name: &str,
        plan: &str,
        workers: &str,
        wait: bool,
    ) -> anyhow::Result<()> {
        let host = format!("{name}.test");
        let mut arguments = vec![
            "create-cluster",
            name,
            "-e",
            &host,
            "-p",
            plan,
            "-n",
            workers,
            "--non-interactive",
        ];
        arguments.extend(wait.then_some("--wait"));
        self.stolos(&arguments).map(drop)
    }

    /// Deletes a cluster.
    pub(crate) fn delete_cluster(&self, name: &str, wait: bool) -> anyhow::Result<()> {
        let mut arguments = vec!["delete-cluster", name, "--non-interactive"];
        arguments.extend(wait.then_some("--wait"));
        self.stolos(&arguments).map(drop)
    }

    /// The same, of something that prints JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let text = self.stolos(arguments)?;
        serde_json::from_str(&text)
            .with_context(|| format!("`stolos {}` printed no JSON", arguments.join(" ")))
    }

    /// The directory with the built programs of an upstream component.
    pub(crate) fn upstream(&self, component: &str) -> anyhow::Result<String> {
        let text = output(
            self.program("stolos-build")
                .args(["--json", "upstream", component]),
        )?;
        let built: Value = serde_json::from_str(&text)?;
        Ok(built["bin"].as_str().context("no directory")?.to_owned())
    }
}

/// Also when the benchmark failed.
impl Drop for Installation {
    fn drop(&mut self) {
        if let Err(error) = self.stolos(&["down", "--purge"]) {
            say(&format!("failed to take the installation down: {error:#}"));
        }
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

/// What a program printed on standard output; its failure with what it said on the other.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("failed to start `{name}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{name}` failed ({}): {}", output.status, said.trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}
