//! The installation and the cluster: what its machines are, and whether all is well.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use stolos_base::{Instance, InstanceName};

use crate::api::{Api, Etcd};

/// One cluster of an installation.
pub(crate) struct Site {
    bin: Utf8PathBuf,
    pub(crate) instance: Instance,
    pub(crate) cluster: String,
    pub(crate) deployment: String,
    pub(crate) api: Api,
}

/// A machine as the infrastructure has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) cid: String,
    /// `GROUP/INDEX`; also its node's name with `-`.
    pub(crate) name: String,
    pub(crate) address: String,
    /// Its first process.
    pub(crate) pid: i32,
}

impl Machine {
    pub(crate) fn node(&self) -> String {
        self.name.replace('/', "-")
    }

    pub(crate) fn is_master(&self) -> bool {
        self.name.starts_with("master/")
    }

    /// A file in it. Not by way of [`Self::path`]: links lead out of there.
    pub(crate) fn read(&self, path: &str) -> anyhow::Result<Vec<u8>> {
        let pid = self.pid.to_string();
        said(Command::new("nsenter").args(["-t", &pid, "-a", "cat", path])).map(String::into_bytes)
    }

    /// A path in it without links, seen from outside.
    pub(crate) fn path(&self, path: &str) -> Utf8PathBuf {
        Utf8PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }
}

impl Site {
    pub(crate) fn open(cluster: &str) -> anyhow::Result<Self> {
        let own = Utf8PathBuf::try_from(std::env::current_exe()?)?;
        let bin = own.parent().context("this program lies nowhere")?.to_owned();
        let name = match std::env::var("STOLOS_INSTANCE") {
            Ok(name) => name.parse()?,
            Err(_) => InstanceName::default(),
        };
        let mut instance = Instance::at_default(name);
        if let Ok(root) = std::env::var("STOLOS_ROOT") {
            instance.root = root.into();
        }
        let directory = camino_tempfile::tempdir()?;
        let kubeconfig = directory.path().join("kubeconfig");
        let stolos = || {
            let mut command = Command::new(bin.join("stolos"));
            command.env("KUBECONFIG", &kubeconfig);
            command
        };
        said(stolos().args(["get-credentials", cluster]))?;
        let kubeconfig: Value = stolos_document::from_yaml(&fs_err::read_to_string(&kubeconfig)?)?;
        let shown: Value = serde_json::from_str(&said(stolos().args(["cluster", cluster, "--json"]))?)?;
        let id = shown["uuid"].as_str().context("the cluster has no uuid")?;
        Ok(Self {
            instance,
            cluster: cluster.to_owned(),
            deployment: format!("service-instance_{id}"),
            api: Api::of(&kubeconfig)?,
            bin,
        })
    }

    pub(crate) fn stolos(&self, arguments: &[&str]) -> anyhow::Result<String> {
        said(Command::new(self.bin.join("stolos")).args(arguments))
    }

    fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.stolos(arguments)?)?)
    }

    /// The cluster's machines, in the order of their names.
    pub(crate) fn machines(&self) -> anyhow::Result<Vec<Machine>> {
        let listed = said(self.cpi().arg("list"))?;
        let mut machines = Vec::new();
        for line in listed.lines() {
            let value: Value = serde_json::from_str(line)?;
            let metadata = &value["metadata"];
            if metadata["deployment"] != self.deployment.as_str() {
                continue;
            }
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let Some(pid) = value["pid"].as_i64() else {
                continue;
            };
            machines.push(Machine {
                cid: text(&value["cid"]),
                name: format!(
                    "{}/{}",
                    text(&metadata["instance_group"]),
                    text(&metadata["index"])
                ),
                address: text(&value["links"][0]["address"]),
                pid: i32::try_from(pid)?,
            });
        }
        machines.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(machines)
    }

    /// Deletes a machine as somebody would who goes behind the director's back.
    pub(crate) fn delete_machine(&self, cid: &str) -> anyhow::Result<()> {
        self.ask_cpi("delete_vm", cid).map(drop)
    }

    /// The same with its persistent disks.
    pub(crate) fn delete_machine_and_disks(&self, cid: &str) -> anyhow::Result<()> {
        let disks = self.ask_cpi("get_disks", cid)?;
        self.delete_machine(cid)?;
        let disks = disks.as_array().filter(|disks| !disks.is_empty());
        for disk in disks.with_context(|| format!("{cid} has no disk"))? {
            self.ask_cpi("delete_disk", disk.as_str().context("a disk without a name")?)?;
        }
        Ok(())
    }

    fn ask_cpi(&self, method: &str, of: &str) -> anyhow::Result<Value> {
        let mut child = self.cpi().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let request = serde_json::json!({
            "method": method, "arguments": [of],
            "context": {"director_uuid": "faults", "request_id": "faults"}, "api_version": 2,
        });
        let stdin = child.stdin.take().context("the CPI takes no input")?;
        serde_json::to_writer(stdin, &request)?;
        let output = child.wait_with_output()?;
        let mut reply: Value = serde_json::from_slice(&output.stdout).context("the CPI's reply")?;
        if !reply["error"].is_null() {
            bail!("the CPI failed to {method} {of}: {}", reply["error"]);
        }
        Ok(reply["result"].take())
    }

    fn cpi(&self) -> Command {
        let mut command = Command::new(self.bin.join("stolos-cpi-host"));
        command.arg("--config").arg(self.instance.cpi_config());
        command
    }

    /// The processes of a machine, of whatever kind of cgroups.
    pub(crate) fn pids(&self, cid: &str) -> Vec<i32> {
        let below = format!("stolos-{}/{cid}", self.instance.name);
        let mut pids = Vec::new();
        for parent in ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"] {
            collect(&Utf8Path::new(parent).join(&below), &mut pids);
            if !pids.is_empty() {
                break;
            }
        }
        pids
    }

    /// What `stolos health` shows of this cluster.
    pub(crate) fn problems(&self) -> anyhow::Result<Vec<Value>> {
        let all = self.json(&["health", "--json"])?;
        let all = all.as_array().cloned().unwrap_or_default();
        let of_us = |problem: &Value| problem["deployment"] == self.deployment.as_str();
        Ok(all.into_iter().filter(of_us).collect())
    }

    /// Why the cluster is not as it should be: every instance running, every node there on its machine and Ready,
    /// every member of etcd votes, nobody in doubt.
    pub(crate) async fn ailments(&self) -> anyhow::Result<Vec<String>> {
        let mut found: Vec<String> = self
            .problems()?
            .iter()
            .map(|problem| {
                format!(
                    "{} is {}: {}",
                    problem["instance"], problem["state"], problem["why"]
                )
            })
            .collect();
        let instances = self.json(&["instances", &self.deployment, "--json"])?;
        for instance in instances.as_array().into_iter().flatten() {
            if instance["job_state"] != "running" {
                found.push(format!(
                    "{}/{} is {}",
                    instance["job_name"], instance["index"], instance["job_state"]
                ));
            }
        }
        for machine in self.machines()? {
            if let Err(why) = self.ready(&machine).await {
                found.push(format!("node {}: {why:#}", machine.node()));
            }
        }
        for machine in self.machines()?.iter().filter(|machine| machine.is_master()) {
            match async { Etcd::of(machine)?.votes().await }.await {
                Ok(true) => {}
                Ok(false) => found.push(format!("etcd of {} does not vote", machine.name)),
                Err(error) => found.push(format!("etcd of {}: {error:#}", machine.name)),
            }
        }
        let servers = self.api.get("/readyz/etcd", Duration::from_secs(3)).await;
        found.extend(servers.err().map(|error| format!("the API: {error:#}")));
        Ok(found)
    }

    /// Whether the machine's node is there and Ready. An older machine's node of that name does not count.
    ///
    /// # Errors
    /// Why not.
    pub(crate) async fn ready(&self, machine: &Machine) -> anyhow::Result<()> {
        let path = format!("/api/v1/nodes/{}", machine.node());
        let node = self.api.get(&path, Duration::from_secs(3)).await?;
        let id = machine.cid.trim_start_matches("vm-").replace('-', "");
        let its = &node["status"]["nodeInfo"]["machineID"];
        anyhow::ensure!(*its == id.as_str(), "it is of machine {its}, not of {id}");
        let conditions = node["status"]["conditions"].as_array();
        let ready = conditions
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == "Ready")
            .unwrap_or(&Value::Null);
        anyhow::ensure!(ready["status"] == "True", "it is not Ready: {}", ready["message"]);
        Ok(())
    }

    /// Waits until all is well, and says how long it took.
    ///
    /// # Errors
    /// What ails the cluster when the time is over.
    pub(crate) async fn well(&self, within: Duration) -> anyhow::Result<Duration> {
        let start = Instant::now();
        loop {
            let ailments = match self.ailments().await {
                Ok(none) if none.is_empty() => return Ok(start.elapsed()),
                Ok(ailments) => ailments.join("; "),
                Err(error) => format!("{error:#}"),
            };
            if start.elapsed() > within {
                bail!("not well after {} s: {ailments}", within.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

fn collect(directory: &Utf8Path, pids: &mut Vec<i32>) {
    if let Ok(text) = std::fs::read_to_string(directory.join("cgroup.procs")) {
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    let Ok(entries) = directory.read_dir_utf8() else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(entry.path(), pids);
        }
    }
}

/// What a command printed on standard output; its failure with what it said on the other.
pub(crate) fn said(command: &mut Command) -> anyhow::Result<String> {
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
