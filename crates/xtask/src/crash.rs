//! `cargo xtask crash`: real SIGKILL of `stolosd` while it makes real clusters, moment after moment.
//!
//! Tests kill at a few moments; this goes through an operation from its first millisecond to its last. After each death the manager is started
//! again, the operation has to end well, and the host has to have exactly the machines that the cluster needs: none twice, none left.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Value;

use crate::bench::Times;
use crate::installation::Installation;
use crate::say;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Every moment, a tenth of a second apart, of creating and of deleting; otherwise one each second
    #[arg(long)]
    all: bool,
}

/// What is going on when the manager dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum During {
    Create,
    Delete,
}

/// One master and one worker.
const MACHINES: usize = 2;
/// How long the manager may take to go on; far more than it does, because nothing here measures by failing.
const PATIENCE: Duration = Duration::from_secs(60);

impl Arguments {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let installation = Installation::up("crash")?;
        let pause = if self.all { 100 } else { 1000 };
        let mut resumed = Times::default();
        let mut rounds = 0;
        for during in [During::Create, During::Delete] {
            // How long it takes undisturbed says how far the moments reach.
            let length = undisturbed(&installation, during)?;
            let mut moment = pause / 2;
            while moment < length {
                let took = round(&installation, during, moment, rounds)
                    .with_context(|| format!("killed {moment} ms after the begin of {during:?}"))?;
                say(&format!(
                    "{during:?}, killed after {moment} ms: goes on {took} ms after its start, ends well"
                ));
                resumed.push(took);
                rounds += 1;
                moment += pause;
            }
        }
        say(&format!(
            "{rounds} deaths, every operation ended well, nothing twice, nothing left; goes on after: median {} ms, worst {} ms",
            resumed.median(),
            resumed.worst()
        ));
        Ok(())
    }
}

/// Milliseconds that the operation takes when nobody dies.
fn undisturbed(installation: &Installation, during: During) -> anyhow::Result<u64> {
    let start = Instant::now();
    installation.create_cluster("calm", true)?;
    let created = start.elapsed();
    let start = Instant::now();
    installation.delete_cluster("calm", true)?;
    let taken = if during == During::Create {
        created
    } else {
        start.elapsed()
    };
    Ok(u64::try_from(taken.as_millis())?)
}

/// One death. Gives how many milliseconds after the manager's start the operation went on, or had ended.
fn round(installation: &Installation, during: During, moment: u64, number: usize) -> anyhow::Result<u64> {
    let name = format!("dies{number}");
    installation.create_cluster(&name, during == During::Delete)?;
    if during == During::Delete {
        installation.delete_cluster(&name, false)?;
    }
    std::thread::sleep(Duration::from_millis(moment));
    kill(installation)?;
    let start = Instant::now();
    installation.stolos(&["up"])?;
    goes_on(installation, &name)?;
    let took = u64::try_from(start.elapsed().as_millis())?;
    installation.stolos(&["operations", "--cluster", &name, "--follow"])?;
    if during == During::Create {
        expect_machines(installation, MACHINES)?;
        installation.delete_cluster(&name, true)?;
    }
    expect_machines(installation, 0)?;
    let left = installation.json(&["clusters", "--json"])?;
    if left.as_array().is_none_or(|clusters| !clusters.is_empty()) {
        bail!("a deleted cluster is still listed: {left}");
    }
    Ok(took)
}

fn kill(installation: &Installation) -> anyhow::Result<()> {
    let record = std::fs::read_to_string(installation.root().join("run/stolosd.pid"))?;
    let record: Value = serde_json::from_str(&record)?;
    let status = Command::new("kill")
        .args(["-KILL", &record["pid"].to_string()])
        .stderr(Stdio::null())
        .status()?;
    if !status.success() {
        bail!("stolosd was dead already");
    }
    Ok(())
}

/// Waits until a step of the newest operation of the cluster runs again, or the operation has ended.
fn goes_on(installation: &Installation, name: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let shown = installation.json(&["operations", "--cluster", name, "--json"])?;
        let newest = &shown[0];
        let runs = newest["steps"]
            .as_array()
            .is_some_and(|steps| steps.iter().any(|step| step["state"] == "running"));
        if runs || newest["state"] == "succeeded" {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            bail!("the operation does not go on: {newest}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn expect_machines(installation: &Installation, wanted: usize) -> anyhow::Result<()> {
    let config = installation.root().join("cpi-host.json");
    let mut list = installation.program("stolos-cpi-host");
    let listed = crate::installation::output(list.arg("--config").arg(config).arg("list"))?;
    let found = listed.lines().count();
    if found != wanted {
        bail!("the host has {found} machines and not {wanted}:\n{listed}");
    }
    Ok(())
}
