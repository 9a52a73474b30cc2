//! How long a person waits for a cluster, beside the same programs started by a script.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};

use super::{Times, print};
use crate::installation::{Installation, output};
use crate::say;

#[derive(Args)]
pub(crate) struct Arguments {
    /// How often each side is measured
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Programs that run in the containers made by hand.
const UPSTREAM: [&str; 4] = ["etcd", "containerd", "cni-plugins", "kubernetes-1.37"];
/// How long a cluster is left alone before its memory is looked at.
const SETTLE: Duration = Duration::from_secs(30);

/// One side: the whole, and its phases in their order.
#[derive(Default)]
struct Side {
    whole: Times,
    names: Vec<String>,
    phases: BTreeMap<String, Times>,
}

impl Side {
    fn phase(&mut self, name: &str, ms: u64) {
        if !self.phases.contains_key(name) {
            self.names.push(name.to_owned());
        }
        self.phases.entry(name.to_owned()).or_default().push(ms);
    }

    fn lines(&self, title: &str) -> String {
        let line = |name: &str, times: &Times| {
            let seconds = |ms: u64| ms as f64 / 1000.0;
            format!(
                "{name:<34}{:>8.2} s{:>8.2} s\n",
                seconds(times.median()),
                seconds(times.worst())
            )
        };
        let mut text = line(title, &self.whole);
        for name in &self.names {
            text.push_str(&line(&format!("  {name}"), &self.phases[name]));
        }
        text
    }

    fn json(&self) -> Value {
        let show = |times: &Times| json!({"median_ms": times.median(), "worst_ms": times.worst(), "all_ms": times.all()});
        let phases: serde_json::Map<String, Value> = self
            .names
            .iter()
            .map(|name| (name.clone(), show(&self.phases[name])))
            .collect();
        json!({"whole": show(&self.whole), "phases": phases})
    }
}

impl Arguments {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let installation = Installation::up("bench")?;
        let by_hand = ByHand::find(&installation)?;
        let (mut ours, mut theirs) = (Side::default(), Side::default());
        let mut memory = Value::Null;
        // One of each is for the page cache, which the first one fills for both.
        create(&installation, "warm", &mut Side::default())?;
        installation.delete_cluster("warm", true)?;
        by_hand.run(&mut Side::default())?;
        for round in 1..=self.rounds {
            // They take turns, and who begins changes, so that neither gets the quieter minutes.
            let name = format!("bench{round}");
            if round % 2 == 0 {
                by_hand.run(&mut theirs)?;
            }
            create(&installation, &name, &mut ours)?;
            if round == self.rounds {
                std::thread::sleep(SETTLE);
                memory = idle_memory(&installation)?;
            }
            installation.delete_cluster(&name, true)?;
            if round % 2 == 1 {
                by_hand.run(&mut theirs)?;
            }
            say(&format!(
                "round {round} of {}: {} ms, by hand {} ms",
                self.rounds,
                ours.whole.all().last().copied().unwrap_or_default(),
                theirs.whole.all().last().copied().unwrap_or_default()
            ));
        }
        let ratio = ours.whole.median() as f64 / theirs.whole.median().max(1) as f64;
        if self.json {
            print(&serde_json::to_string_pretty(&json!({
                "rounds": self.rounds, "stolos": ours.json(), "by_hand": theirs.json(), "ratio_of_medians": ratio, "idle": memory,
            }))?);
        } else {
            let heading = format!(
                "{:<34}{:>10}{:>10}\n",
                format!("n = {}", self.rounds),
                "median",
                "worst"
            );
            print(&format!(
                "{heading}{}{}ratio of the medians: {ratio:.2}\nidle: stolosd {} MiB, cluster {} MiB",
                ours.lines("stolos create-cluster --wait"),
                theirs.lines("by hand (phases from the start)"),
                memory["stolosd_mib"],
                memory["cluster_mib"]
            ));
        }
        Ok(())
    }
}

/// What a person types, from the key to the prompt; phases are those of the operation.
fn create(installation: &Installation, name: &str, side: &mut Side) -> anyhow::Result<()> {
    let start = Instant::now();
    installation.create_cluster(name, true)?;
    side.whole.push(millis(start.elapsed()));
    let operations = installation.json(&["operations", "--cluster", name, "--json"])?;
    let steps = operations[0]["steps"]
        .as_array()
        .context("the operation has no steps")?;
    for step in steps {
        side.phase(
            step["name"].as_str().unwrap_or_default(),
            step["elapsed_ms"].as_u64().unwrap_or_default(),
        );
    }
    Ok(())
}

/// The script and what it needs.
struct ByHand {
    root_fs: String,
    programs: String,
    seed: String,
}

impl ByHand {
    /// The same stemcell, programs and images that the installation's machines have.
    fn find(installation: &Installation) -> anyhow::Result<Self> {
        let root = installation.root();
        let built: BTreeMap<String, Value> =
            serde_json::from_str(&std::fs::read_to_string(root.join("artifacts.json"))?)?;
        // All Kubernetes versions have the same images.
        let seed = built
            .values()
            .find_map(|artifacts| artifacts["image_seed"].as_str())
            .context("no image seed")?;
        let programs: Vec<String> = UPSTREAM
            .iter()
            .map(|component| installation.upstream(component))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            root_fs: text(&only_entry(&root.join("stemcells"))?),
            programs: programs.join(":"),
            seed: text(&root.join("images").join(seed)),
        })
    }

    fn run(&self, side: &mut Side) -> anyhow::Result<()> {
        let said = output(
            Command::new("bench/by-hand/run.sh")
                .env("ROOTFS", &self.root_fs)
                .env("PROGRAMS", &self.programs)
                .env("SEED", &self.seed),
        )?;
        let times: Value = serde_json::from_str(&said).context("the script printed no JSON")?;
        let take = |key: &str| {
            times[key]
                .as_u64()
                .with_context(|| format!("the script printed no {key}"))
        };
        side.whole.push(take("dns_answers_ms")?);
        for (key, name) in [
            ("machines_ms", "machines"),
            ("api_ms", "API server"),
            ("nodes_ready_ms", "nodes Ready"),
            ("pod_running_ms", "pod running"),
            ("dns_answers_ms", "DNS answers"),
        ] {
            side.phase(name, take(key)?);
        }
        Ok(())
    }
}

fn only_entry(directory: &Path) -> anyhow::Result<std::path::PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(directory)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only.join("rootfs")),
        _ => bail!("`{}` does not hold exactly one stemcell", directory.display()),
    }
}

/// Resident memory of `stolosd`, and the anonymous memory of all machines of the one cluster there is.
fn idle_memory(installation: &Installation) -> anyhow::Result<Value> {
    let record: Value = serde_json::from_str(&std::fs::read_to_string(
        installation.root().join("run/stolosd.pid"),
    )?)?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", record["pid"]))?;
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .context("stolosd has no VmRSS")?;
    let parents = [
        "/sys/fs/cgroup/memory/stolos-bench",
        "/sys/fs/cgroup/stolos-bench",
    ];
    let parent = parents
        .iter()
        .map(Path::new)
        .find(|path| path.is_dir())
        .context("the machines have no memory cgroup")?;
    let mut bytes = 0;
    for machine in std::fs::read_dir(parent)? {
        // `total_rss` is version 1's word, `anon` version 2's.
        if let Ok(stat) = std::fs::read_to_string(machine?.path().join("memory.stat")) {
            bytes += stat
                .lines()
                .find_map(|line| {
                    line.strip_prefix("total_rss ")
                        .or_else(|| line.strip_prefix("anon "))
                })
                .and_then(|value| value.parse::<u64>().ok())
                .unwrap_or(0);
        }
    }
    Ok(json!({"stolosd_mib": resident / 1024, "cluster_mib": bytes >> 20}))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
