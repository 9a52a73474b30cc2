//! A member of etcd: how it comes, catches up and goes. What is right for it is decided in [`stolos_kubernetes::etcd`]; here others are asked.
//!
//! Blocking, as everything that waits before a process of the control plane starts; `etcd-member` becomes etcd in the end and costs nothing then.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use camino::Utf8PathBuf;
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};
use stolos_base::pki::Identity;
use stolos_kubernetes::etcd::{self, Member, Own, Part, Voice};
use stolos_kubernetes::raft_snapshot;

use crate::https::{Target, client_config, connect};
use crate::note;

/// Where clients reach a member.
const CLIENTS: u16 = 2379;
/// Where peers do.
const PEERS: u16 = 2380;
/// Where one that has no etcd yet says so.
const FOUNDING: &str = "/stolos/founding";
/// What another member may take to answer. Without a quorum it would take longer to say so than anybody wants to wait at a start.
pub(crate) const ANSWER: Duration = Duration::from_millis(1500);
/// What a change of the list of members may take: it has to be agreed upon.
pub(crate) const CHANGE: Duration = Duration::from_secs(10);
/// Pause between two looks while nobody knows what to do.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause after a change that etcd refused, because another one goes on for instance.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// A small database has caught up by then; a large one is asked about less often.
const QUICK: Duration = Duration::from_secs(5);
/// A wait says what it waits for this often.
const REPORT: Duration = Duration::from_secs(10);
/// How long a member that leaves tries to.
const LEAVE_LIMIT: Duration = Duration::from_secs(120);
/// How long a learner may take until it votes, when somebody waits for that.
const VOTE_LIMIT: Duration = Duration::from_secs(120);
/// A part of what etcd answers to most questions while it is a learner (`ErrGRPCNotSupportedForLearner`).
pub(crate) const LEARNER: &str = "not supported for learner";

/// A cluster of etcd as one of its members sees it.
#[derive(Args, Clone)]
pub(crate) struct Ensemble {
    /// Name of this member
    #[arg(long)]
    name: String,
    /// Its address
    #[arg(long)]
    address: String,
    /// NAME=ADDRESS of each other member that there should be
    #[arg(long, value_parser = peer)]
    peer: Vec<(String, String)>,
    /// Where its data lies
    #[arg(long)]
    data_dir: Utf8PathBuf,
    /// PEM file of the CA of members and clients
    #[arg(long)]
    ca: Utf8PathBuf,
    /// PEM file of the member's certificate
    #[arg(long)]
    cert: Utf8PathBuf,
    /// PEM file of its key
    #[arg(long)]
    key: Utf8PathBuf,
}

#[derive(Args)]
pub(crate) struct Start {
    #[command(flatten)]
    ensemble: Ensemble,
    /// An argument that etcd gets too when a majority of the others runs. Its check against the others' data before it serves is such a one: where all
    /// start at once, each waits in vain for the others' answers, seconds for each
    #[arg(long, allow_hyphen_values = true)]
    when_others_run: Option<String>,
    /// etcd, with the arguments that do not depend on the member's part
    #[arg(last = true, required = true)]
    program: Vec<String>,
}

#[derive(Args)]
pub(crate) struct Promote {
    #[command(flatten)]
    ensemble: Ensemble,
    /// Return at once and go on in another process
    #[arg(long)]
    background: bool,
}

#[derive(Args)]
pub(crate) struct Leave {
    #[command(flatten)]
    ensemble: Ensemble,
}

#[derive(Args)]
pub(crate) struct Tidy {
    #[command(flatten)]
    ensemble: Ensemble,
}

fn peer(text: &str) -> Result<(String, String), String> {
    let (name, address) = text.split_once('=').ok_or("not of the form NAME=ADDRESS")?;
    Ok((name.to_owned(), address.to_owned()))
}

impl Start {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut others = self.ensemble.connect()?;
        if self.ensemble.left().exists() {
            note("stolos-job: this member left its cluster; it does not come back by itself");
            loop {
                sleep(Duration::from_secs(3600));
            }
        }
        let cluster = self.decide(&mut others)?;
        if !self.ensemble.peer.is_empty() {
            self.ensemble.promote_in_background()?;
        }
        self.ensemble.distrust_snapshots()?;
        let (program, arguments) = self.program.split_first().context("there is no program")?;
        let error = Command::new(program)
            .args(arguments)
            .arg(format!("--initial-cluster={}", cluster.list))
            .arg(format!("--initial-cluster-state={}", cluster.state))
            .args(self.when_others_run.filter(|_| cluster.others_run))
            .exec();
        Err(anyhow!(error).context(format!("failed to start `{program}`")))
    }

    fn decide(&self, others: &mut Others) -> anyhow::Result<Cluster> {
        let ensemble = &self.ensemble;
        let peer_url = peer_url(&ensemble.address);
        let mut waiting = Waiting::default();
        let mut founding: Option<Founding> = None;
        loop {
            let own = Own {
                peer_url: &peer_url,
                has_data: ensemble.has_data()?,
                failures: failures(),
            };
            if ensemble.peer.is_empty() {
                return Ok(ensemble.all("new"));
            }
            let agreed = others.agreed();
            match etcd::part(own, agreed.as_deref()) {
                Part::Run => {
                    return Ok(Cluster {
                        others_run: agreed.is_some(),
                        ..ensemble.all("new")
                    });
                }
                Part::Take { .. } => return Ok(ensemble.listed(agreed.as_deref().unwrap_or_default())),
                Part::Join {
                    remove,
                    set_aside,
                    why,
                } => {
                    note(&format!("stolos-job: joining the cluster anew: {why}"));
                    drop(founding.take());
                    match self.join(others, remove.as_deref(), set_aside) {
                        Ok(members) => return Ok(ensemble.listed(&members)),
                        Err(error) => {
                            waiting.say(&format!("{error:#}"));
                            sleep(REFUSED_PAUSE);
                        }
                    }
                }
                Part::Ask => {
                    if founding.is_none() {
                        founding = Some(Founding::serve(ensemble)?);
                    }
                    match etcd::may_found(own, &others.voices()) {
                        Ok(()) => return Ok(ensemble.all("new")),
                        Err(why) => waiting.say(&why),
                    }
                    sleep(PAUSE);
                }
            }
        }
    }

    /// Removes the old entry, puts what is left of its data aside, and is added as a learner. Killed in between, it begins anew at the next start and
    /// finds less to do.
    fn join(&self, others: &Others, remove: Option<&str>, set_aside: bool) -> anyhow::Result<Vec<Member>> {
        let ensemble = &self.ensemble;
        if let Some(id) = remove {
            others.change("member/remove", &json!({"ID": id}))?;
            note(&format!("stolos-job: member {id} was removed from the list"));
        }
        if set_aside {
            ensemble.set_aside()?;
        }
        let answer = others.change(
            "member/add",
            &json!({"peerURLs": [peer_url(&ensemble.address)], "isLearner": true}),
        )?;
        let list: List = serde_json::from_value(answer)?;
        note("stolos-job: added as a learner");
        Ok(list.members)
    }
}

impl Promote {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        if self.background {
            return self.ensemble.spawn_promotion();
        }
        let others = self.ensemble.connect()?;
        let own = peer_url(&self.ensemble.address);
        let mut waiting = Waiting::default();
        let start = Instant::now();
        loop {
            let problem = match others.agreed() {
                None => "no majority of members answers".to_owned(),
                Some(members) => {
                    let entry = members
                        .iter()
                        .find(|member| member.peer_urls.contains(&own))
                        .filter(|member| member.is_learner);
                    let Some(entry) = entry else { return Ok(()) };
                    match others.change("member/promote", &json!({"ID": entry.id})) {
                        Ok(_) => {
                            note("stolos-job: the member has caught up and votes");
                            return Ok(());
                        }
                        Err(error) => format!("{error:#}"),
                    }
                }
            };
            waiting.say(&problem);
            sleep(if start.elapsed() < QUICK {
                PAUSE
            } else {
                REFUSED_PAUSE
            });
        }
    }
}

impl Leave {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let ensemble = &self.ensemble;
        let others = ensemble.connect()?;
        let own_url = peer_url(&ensemble.address);
        let start = Instant::now();
        loop {
            let agreed = others.agreed().or_else(|| others.list(&ensemble.address).ok());
            let result = match agreed {
                None => Err(anyhow!("no majority of members answers")),
                Some(members) => {
                    let entry = members.iter().find(|member| member.peer_urls.contains(&own_url));
                    let Some(entry) = entry.filter(|_| members.len() > 1) else {
                        note("the member is in no list with others: nothing to leave");
                        return Ok(());
                    };
                    // From here on it must not come back by itself.
                    fs_err::write(ensemble.left(), "")?;
                    others.change("member/remove", &json!({"ID": entry.id})).map(drop)
                }
            };
            match result {
                Ok(()) => {
                    note(&format!("{} left the etcd cluster", ensemble.name));
                    return Ok(());
                }
                Err(error) if start.elapsed() > LEAVE_LIMIT => {
                    stolos_base::files::remove_if_there(&ensemble.left())?;
                    return Err(error.context("the member cannot leave without harm to the cluster"));
                }
                Err(error) => note(&format!("waiting to leave the etcd cluster: {error:#}")),
            }
            sleep(REFUSED_PAUSE);
        }
    }
}

impl Tidy {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let ensemble = &self.ensemble;
        let others = ensemble.connect()?;
        // Its etcd may answer as a learner, which says nothing of members until it votes; that is being seen to.
        let start = Instant::now();
        let members = loop {
            match others.list(&ensemble.address) {
                Ok(members) => break members,
                Err(error) if start.elapsed() > VOTE_LIMIT || !error.to_string().contains(LEARNER) => {
                    return Err(error);
                }
                Err(_) => sleep(PAUSE),
            }
        };
        let mut instances = vec![peer_url(&ensemble.address)];
        instances.extend(ensemble.peer.iter().map(|(_, address)| peer_url(address)));
        for member in etcd::forsaken(&members, &instances) {
            let answers = member
                .peer_urls
                .iter()
                .filter_map(|url| Target::parse(url).ok())
                .any(|target| connect(&target.address, ANSWER).is_ok());
            if answers {
                continue;
            }
            others.ask(
                &ensemble.address,
                "member/remove",
                &json!({"ID": member.id}),
                CHANGE,
            )?;
            note(&format!(
                "member {} was removed: no instance stands for it",
                member.id
            ));
        }
        Ok(())
    }
}

impl Ensemble {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn data_dir(&self) -> &camino::Utf8Path {
        &self.data_dir
    }

    /// Whether a majority of the others runs.
    pub(crate) fn others_agree(&self) -> anyhow::Result<bool> {
        Ok(self.connect()?.agreed().is_some())
    }

    pub(crate) fn connect(&self) -> anyhow::Result<Others> {
        let ca = fs_err::read_to_string(&self.ca)?;
        Ok(Others {
            peers: self.peer.clone(),
            tls: client_config(&ca, Some(&self.identity()?))?,
        })
    }

    fn identity(&self) -> anyhow::Result<Identity> {
        Ok(Identity {
            certificate: fs_err::read_to_string(&self.cert)?,
            key: fs_err::read_to_string(&self.key)?.into(),
        })
    }

    /// As etcd itself looks for it.
    fn has_data(&self) -> anyhow::Result<bool> {
        let wal = self.data_dir.join("member/wal");
        let entries = match wal.read_dir_utf8() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            other => other.with_context(|| format!("failed to look into `{wal}`"))?,
        };
        for entry in entries {
            if entry?.file_name().ends_with(".wal") {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes files out of etcd's sight that would make it forget who its peers are; see [`stolos_kubernetes::raft_snapshot`].
    fn distrust_snapshots(&self) -> anyhow::Result<()> {
        let directory = self.data_dir.join("member/snap");
        let entries = match directory.read_dir_utf8() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.with_context(|| format!("failed to look into `{directory}`"))?,
        };
        for entry in entries {
            let path = entry?.into_path();
            if path.extension() != Some("snap") {
                continue;
            }
            if raft_snapshot::contradicts_itself(&fs_err::read(&path)?) == Some(true) {
                fs_err::rename(&path, path.with_extension("snap.contradictory"))?;
                note(&format!(
                    "stolos-job: `{path}` names other members in raft's state than in its list, and is put aside"
                ));
            }
        }
        Ok(())
    }

    /// Data of which others have all that matters. The last such is kept, for those who want to know what broke.
    fn set_aside(&self) -> anyhow::Result<()> {
        let (from, to) = (self.data_dir.join("member"), self.data_dir.join("member.aside"));
        stolos_base::files::remove_tree_if_there(&to)?;
        match std::fs::rename(&from, &to) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other.with_context(|| format!("failed to put `{from}` aside"))?,
        }
        note(&format!("stolos-job: the member's data was put aside as `{to}`"));
        Ok(())
    }

    /// Says that the member left on purpose; beside its data, so that it goes with the disk.
    fn left(&self) -> Utf8PathBuf {
        let mut path = self.data_dir.clone();
        path.set_file_name(format!("{}.left", self.data_dir.file_name().unwrap_or("etcd")));
        path
    }

    /// All members that there should be.
    fn all(&self, state: &'static str) -> Cluster {
        let own = [(self.name.clone(), self.address.clone())];
        let all: BTreeMap<String, String> = own.into_iter().chain(self.peer.clone()).collect();
        let list: Vec<String> = all
            .iter()
            .map(|(name, address)| format!("{name}={}", peer_url(address)))
            .collect();
        Cluster {
            list: list.join(","),
            state,
            others_run: false,
        }
    }

    /// Those of a list that the cluster gave. One that was added and never ran has no name there yet.
    fn listed(&self, members: &[Member]) -> Cluster {
        let own = peer_url(&self.address);
        let known = |url: &String| {
            let known = self.peer.iter().find(|(_, address)| peer_url(address) == *url);
            known.map(|(name, _)| name.clone())
        };
        let mut list = Vec::new();
        for member in members {
            for url in &member.peer_urls {
                let name = match () {
                    () if *url == own => self.name.clone(),
                    () if !member.name.is_empty() => member.name.clone(),
                    () => known(url).unwrap_or_else(|| format!("member-{}", member.id)),
                };
                list.push(format!("{name}={url}"));
            }
        }
        Cluster {
            list: list.join(","),
            state: "existing",
            others_run: false,
        }
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--name={}", self.name),
            format!("--address={}", self.address),
            format!("--data-dir={}", self.data_dir),
            format!("--ca={}", self.ca),
            format!("--cert={}", self.cert),
            format!("--key={}", self.key),
        ];
        let peers = self.peer.iter();
        arguments.extend(peers.map(|(name, address)| format!("--peer={name}={address}")));
        arguments
    }

    /// Starts the promotion as a grandchild, which this process, soon etcd, need not wait for. It ends with etcd's process group.
    fn promote_in_background(&self) -> anyhow::Result<()> {
        let status = Command::new(std::env::current_exe()?)
            .args(["etcd-promote", "--background"])
            .args(self.arguments())
            .status()?;
        if !status.success() {
            bail!("the promotion could not be started: {status}");
        }
        Ok(())
    }

    fn spawn_promotion(&self) -> anyhow::Result<()> {
        // Its output is etcd's; whoever reads it wants to know both.
        Command::new(std::env::current_exe()?)
            .arg("etcd-promote")
            .args(self.arguments())
            .stdin(Stdio::null())
            .spawn()?;
        Ok(())
    }
}

pub(crate) fn peer_url(address: &str) -> String {
    format!("https://{address}:{PEERS}")
}

/// Failures in a row that were etcd's own: a member that somebody kills has no broken data.
fn failures() -> u32 {
    let text = |name: &str| std::env::var(name).unwrap_or_default();
    // `Exit`'s words in stolos-init. A Go program that panics ends with code 2, one that gives up with 1.
    if text("STOLOS_LAST_EXIT").starts_with("exited with code") {
        text("STOLOS_FAILURES").parse().unwrap_or(0)
    } else {
        0
    }
}

/// What etcd is told of its cluster at its first start; it ignores that at later ones.
struct Cluster {
    list: String,
    state: &'static str,
    /// Whether a majority of the others runs.
    others_run: bool,
}

#[derive(Default)]
struct Waiting {
    said: Option<(Instant, String)>,
}

impl Waiting {
    /// Says what is waited for when that changes, and now and then.
    fn say(&mut self, what: &str) {
        let fresh = self
            .said
            .as_ref()
            .is_none_or(|(at, said)| said != what || at.elapsed() > REPORT);
        if fresh {
            note(&format!("stolos-job: waiting: {what}"));
            self.said = Some((Instant::now(), what.to_owned()));
        }
    }
}

/// The other members that there should be.
pub(crate) struct Others {
    peers: Vec<(String, String)>,
    pub(crate) tls: Arc<rustls::ClientConfig>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct List {
    pub(crate) members: Vec<Member>,
}

/// What the gateway says when it refuses.
#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    message: String,
}

impl Others {
    /// The list of members as a majority has it, from whoever says so first.
    fn agreed(&self) -> Option<Vec<Member>> {
        let (answers, first) = mpsc::channel();
        for (_, address) in &self.peers {
            let (answers, address, tls) = (answers.clone(), address.clone(), Arc::clone(&self.tls));
            thread::spawn(move || {
                if let Ok(list) = list(&tls, &address) {
                    // Nobody listens to the second one.
                    let _ = answers.send(list);
                }
            });
        }
        drop(answers);
        first.recv().ok()
    }

    fn list(&self, address: &str) -> anyhow::Result<Vec<Member>> {
        list(&self.tls, address)
    }

    /// What each of the others says of itself.
    fn voices(&self) -> Vec<(String, Voice)> {
        let asked: Vec<_> = self
            .peers
            .iter()
            .map(|(name, address)| {
                let (address, tls) = (address.clone(), Arc::clone(&self.tls));
                (name.clone(), thread::spawn(move || voice(&tls, &address)))
            })
            .collect();
        asked
            .into_iter()
            .map(|(name, asked)| {
                let voice = asked.join().unwrap_or_else(|_| Err(anyhow!("asking it failed")));
                (
                    name,
                    voice.unwrap_or_else(|error| Voice::Silent(format!("{error:#}"))),
                )
            })
            .collect()
    }

    /// Has one of the others change the list of members.
    fn change(&self, what: &str, body: &Value) -> anyhow::Result<Value> {
        let mut last = anyhow!("there is nobody to ask");
        for (_, address) in &self.peers {
            match self.ask(address, what, body, CHANGE) {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error.context(format!("asked {address}")),
            }
        }
        Err(last)
    }

    fn ask(&self, address: &str, what: &str, body: &Value, limit: Duration) -> anyhow::Result<Value> {
        ask(&self.tls, address, what, body, limit)
    }
}

fn ask(
    tls: &Arc<rustls::ClientConfig>,
    address: &str,
    what: &str,
    body: &Value,
    limit: Duration,
) -> anyhow::Result<Value> {
    call(tls, &client_url(address), &format!("cluster/{what}"), body, limit)
}

/// Where clients reach the member with an address.
pub(crate) fn client_url(address: &str) -> String {
    format!("https://{address}:{CLIENTS}")
}

/// Asks the JSON gateway of the member behind a client URL; `what` is a path below `/v3/`.
pub(crate) fn call(
    tls: &Arc<rustls::ClientConfig>,
    url: &str,
    what: &str,
    body: &Value,
    limit: Duration,
) -> anyhow::Result<Value> {
    let target = Target::parse(&format!("{}/v3/{what}", url.trim_end_matches('/')))?;
    let answer = target.request(tls, Some(body), limit)?;
    if answer.status == 200 {
        return Ok(serde_json::from_slice(&answer.body)?);
    }
    let why = serde_json::from_slice::<Refusal>(&answer.body).map(|refusal| refusal.message);
    bail!(
        "{what}: {}",
        why.unwrap_or_else(|_| format!("status {}", answer.status))
    )
}

fn list(tls: &Arc<rustls::ClientConfig>, address: &str) -> anyhow::Result<Vec<Member>> {
    let answer = ask(
        tls,
        address,
        "member/list",
        &json!({"linearizable": true}),
        ANSWER,
    )?;
    let list: List = serde_json::from_value(answer)?;
    if list.members.is_empty() {
        bail!("{address} gave an empty list of members");
    }
    Ok(list.members)
}

fn voice(tls: &Arc<rustls::ClientConfig>, address: &str) -> anyhow::Result<Voice> {
    let at = |path: &str| Target::parse(&format!("https://{address}:{PEERS}{path}"));
    let answer = at(FOUNDING)?.request(tls, None, ANSWER)?;
    if answer.status == 200 {
        return Ok(Voice::NoData);
    }
    let answer = at("/members")?.request(tls, None, ANSWER)?;
    if answer.status != 200 {
        bail!("it answered with status {}", answer.status);
    }
    Ok(Voice::Runs(serde_json::from_slice(&answer.body)?))
}

/// Says on the peers' port that this member has no data, until it is dropped.
struct Founding {
    stop: Arc<AtomicBool>,
    serving: Option<thread::JoinHandle<()>>,
}

impl Founding {
    fn serve(ensemble: &Ensemble) -> anyhow::Result<Self> {
        let ca = fs_err::read_to_string(&ensemble.ca)?;
        let clients = stolos_base::tls::Clients::Required(&ca);
        let tls = stolos_base::tls::server(&ensemble.identity()?, clients)?;
        let listener = TcpListener::bind((ensemble.address.as_str(), PEERS))
            .with_context(|| format!("failed to listen on {}:{PEERS}", ensemble.address))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let serving = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let tls = Arc::clone(&tls);
                        thread::spawn(move || {
                            // One that does not understand asks again.
                            let _ = say_no_data(stream, tls);
                        });
                    }
                    Err(_) => sleep(Duration::from_millis(10)),
                }
            }
        });
        Ok(Self {
            stop,
            serving: Some(serving),
        })
    }
}

impl Drop for Founding {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(serving) = self.serving.take() {
            // The port has to be free before etcd wants it.
            let _ = serving.join();
        }
    }
}

fn say_no_data(stream: TcpStream, tls: Arc<rustls::ServerConfig>) -> anyhow::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    let mut stream = rustls::StreamOwned::new(rustls::ServerConnection::new(tls)?, stream);
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") && request.len() < 4096 {
        let mut part = [0_u8; 512];
        match stream.read(&mut part)? {
            0 => return Ok(()),
            n => request.extend_from_slice(&part[..n]),
        }
    }
    let path = String::from_utf8_lossy(&request);
    let is_ours = path.lines().next().and_then(|line| line.split(' ').nth(1)) == Some(FOUNDING);
    let (status, body) = if is_ours {
        ("200 OK", r#"{"data":false}"#)
    } else {
        ("404 Not Found", "{}")
    };
    write!(
        stream,
        "HTTP/1.0 {status}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    stream.conn.send_close_notify();
    stream.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use camino::Utf8Path;

    fn ensemble(directory: &Utf8Path) -> Ensemble {
        Ensemble {
            name: "master-2".to_owned(),
            address: "10.0.1.4".to_owned(),
            peer: vec![
                ("master-0".to_owned(), "10.0.1.2".to_owned()),
                ("master-1".to_owned(), "10.0.1.3".to_owned()),
            ],
            data_dir: directory.join("etcd"),
            ca: "ca".into(),
            cert: "cert".into(),
            key: "key".into(),
        }
    }

    #[test]
    fn the_list_names_members_that_never_ran() {
        let directory = camino_tempfile::tempdir().expect("a directory");
        let ensemble = ensemble(directory.path());
        assert_eq!(
            ensemble.all("new").list,
            "master-0=https://10.0.1.2:2380,master-1=https://10.0.1.3:2380,master-2=https://10.0.1.4:2380"
        );
        let member = |id: &str, name: &str, address: &str| Member {
            id: id.to_owned(),
            name: name.to_owned(),
            peer_urls: vec![peer_url(address)],
            ..Member::default()
        };
        let listed = ensemble.listed(&[
            member("1", "master-0", "10.0.1.2"),
            member("2", "", "10.0.1.3"),
            member("3", "", "10.0.1.4"),
        ]);
        assert_eq!(listed.list, ensemble.all("new").list);
        assert_eq!(listed.state, "existing");
    }

    #[test]
    fn data_is_what_etcd_takes_for_it_and_is_put_aside_once() {
        let directory = camino_tempfile::tempdir().expect("a directory");
        let ensemble = ensemble(directory.path());
        assert!(!ensemble.has_data().expect("nothing there"));
        let wal = ensemble.data_dir.join("member/wal");
        fs_err::create_dir_all(&wal).expect("a directory");
        assert!(
            !ensemble.has_data().expect("an empty directory"),
            "a start that was killed"
        );
        for _ in 0..2 {
            fs_err::create_dir_all(&wal).expect("a directory");
            fs_err::write(wal.join("0000000000000000-0000000000000000.wal"), "x").expect("a file");
            assert!(ensemble.has_data().expect("data"));
            ensemble.set_aside().expect("put aside");
            assert!(!ensemble.has_data().expect("gone"));
        }
        assert_eq!(ensemble.left(), directory.path().join("etcd.left"));
    }
}
