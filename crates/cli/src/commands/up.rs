//! Bringing an installation up on this host.
//!
//! Every phase finds what an earlier run has done, so that it can be interrupted and run again.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use futures::future::try_join_all;
use serde_json::{Value, json};
use stolos_api::director::Upload;
use stolos_api::http::{Trust, client};
use stolos_api::pks;
use stolos_base::process::{Process, spawn_detached};
use stolos_base::range::{self, HostNetwork};
use stolos_base::{Class, Classify as _, Instance, ManagerFiles, Secret, files, poll};

use stolos_build::{Builder, Cache, Event, Progress, Release, Seed, Stemcell};

use super::down::sibling;
use super::managers::{self, Managers, read_config};
use super::{create, deployments, doctor, kubeconfigs, login};
use crate::args::{Create, Credentials, Given, Going, Login, Person, Sso, Trusted, Up};
use crate::failure::Failure;
use crate::output;
use crate::progress::{State, Steps};

/// The first start makes keys and databases; a busy host takes its time.
const START_LIMIT: Duration = Duration::from_secs(120);
/// The cluster of `--demo`.
const DEMO: &str = "demo";
const DEMO_PLAN: &str = "small";
const DEMO_WORKERS: i64 = 2;

/// `stolos up`
pub(crate) async fn run(args: &Up) -> Result<(), Failure> {
    let instance = args.local.instance();
    let mut phases = Phases::new();
    doctor::refuse_failed(&doctor::host(&instance))?;
    let built = build(wanted_versions(&instance)?).await?;
    phases.done("build programs, releases, stemcell and images");
    let network = configure(&instance, &built).await?;
    start(&instance)?;
    phases.done("start the services");
    log_in(&instance, &network).await?;
    upload(&built).await?;
    phases.done("upload releases and stemcell");
    if args.demo {
        demo().await?;
        phases.done("make the cluster `demo`, to a pod running and DNS answering");
    }
    phases.print();
    finish(args, &built, &network);
    Ok(())
}

/// How long each phase took.
struct Phases {
    start: Instant,
    last: Instant,
    lines: Vec<(String, Duration)>,
}

impl Phases {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            start: now,
            last: now,
            lines: Vec::new(),
        }
    }

    fn done(&mut self, what: &str) {
        self.lines.push((what.to_owned(), self.last.elapsed()));
        self.last = Instant::now();
    }

    fn print(&self) {
        let mut text = String::from("\n");
        for (what, took) in &self.lines {
            text.push_str(&format!("{:>8.1} s  {what}\n", took.as_secs_f64()));
        }
        text.push_str(&format!("{:>8.1} s  in all", self.start.elapsed().as_secs_f64()));
        output::note(&text);
    }
}

struct Built {
    nats_server: Utf8PathBuf,
    kubectl: Utf8PathBuf,
    /// By Kubernetes version.
    releases: BTreeMap<String, Release>,
    stemcell: Stemcell,
    seed: Seed,
}

/// The Kubernetes versions that the operator's plans name.
fn wanted_versions(instance: &Instance) -> Result<BTreeSet<String>, Failure> {
    let config = read_config(&instance.config_file())?;
    let plans = config["plans"].as_array().into_iter().flatten();
    // A plan without a version is refused by `stolosd`, with the line.
    let versions = plans.filter_map(|plan| plan["kubernetes_version"].as_str());
    Ok(versions.map(str::to_owned).collect())
}

/// What to build of the versions that are pinned (newest first), in that order: each one costs minutes of compiling the first time. Without
/// plans that is the newest. A version that is not pinned stays in the list, for the builder to refuse.
fn versions_to_build(pinned: Vec<String>, wanted: &BTreeSet<String>) -> Vec<String> {
    if wanted.is_empty() {
        return pinned.into_iter().take(1).collect();
    }
    let unknown: Vec<String> = wanted
        .iter()
        .filter(|version| !pinned.contains(version))
        .cloned()
        .collect();
    let known = pinned.into_iter().filter(|version| wanted.contains(version));
    known.chain(unknown).collect()
}

async fn build(wanted: BTreeSet<String>) -> Result<Built, Failure> {
    let here = std::env::current_dir()
        .map_err(|error| Failure::user(format!("failed to find this directory: {error}")))?;
    let here = Utf8PathBuf::try_from(here).map_err(|error| Failure::user(error.to_string()))?;
    let exe = sibling("stolos")?;
    let repository = stolos_build::find_repository(&here)
        .or_else(|_| stolos_build::find_repository(&exe))
        .map_err(|error| Failure::user(stolos_base::chain(&error)).hint("Run it in a checkout of Stolos."))?;
    let (init, agent, job) = (
        sibling("stolos-init")?,
        sibling("stolos-agent")?,
        sibling("stolos-job")?,
    );
    let work = move || -> Result<Built, stolos_build::Error> {
        let builder = Builder::new(Cache::of_user()?, &repository)?.with_progress(Arc::new(Shown::new()));
        let versions = versions_to_build(builder.kubernetes_versions()?, &wanted);
        builder.prepare(&versions)?;
        let newest = versions.first().map_or("", String::as_str);
        Ok(Built {
            nats_server: builder.upstream("nats-server")?.program("nats-server"),
            kubectl: builder.kubernetes(newest)?.program("kubectl"),
            releases: versions
                .iter()
                .map(|version| Ok((version.clone(), builder.release(version, &job)?)))
                .collect::<Result<_, stolos_build::Error>>()?,
            stemcell: builder.stemcell(&init, &agent)?,
            seed: builder.images_seed()?,
        })
    };
    let built = tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::ours(error.to_string()))?;
    built.map_err(|error| Failure::from_error(&error))
}

/// Shows what is being built; what was there already is not worth a line.
struct Shown(Mutex<Steps>);

impl Shown {
    fn new() -> Self {
        Self(Mutex::new(Steps::new()))
    }
}

impl Progress for Shown {
    fn event(&self, event: &Event<'_>) {
        let mut steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Found { .. } => {}
            Event::Waiting { what } => {
                steps.show(what, State::Running, Some("another process makes it"), None)
            }
            Event::Damaged { what, reason } => {
                output::note(&format!("  damaged  {what}: {reason}; it is made again"))
            }
            Event::Started { what } => steps.show(what, State::Running, None, None),
            Event::Step { what, text } => steps.show(what, State::Running, Some(text), None),
            Event::Made { what, took } => steps.show(what, State::Done, None, Some(*took)),
        }
    }
}

/// Writes what the services read at their start.
async fn configure(instance: &Instance, built: &Built) -> Result<HostNetwork, Failure> {
    let failed =
        |what: &'static str| move |error: std::io::Error| Failure::ours(format!("failed to {what}: {error}"));
    for directory in [
        instance.root.clone(),
        instance.run(),
        instance.logs(),
        instance.packages(),
        instance.images(),
    ] {
        fs_err::create_dir_all(&directory).map_err(failed("make the directories"))?;
    }
    let network = range::claim(&instance.root.join("network.json"), instance.root.as_str())
        .map_err(|error| Failure::user(stolos_base::chain(&error)))?;
    let cpi = json!({
        "instance": instance,
        "agent": {"mbus": Managers::configured(instance)?.bus_urls(&network)},
    });
    files::write_json(&instance.cpi_config(), &cpi, 0o600)
        .map_err(failed("write the CPI's configuration"))?;
    let artifacts = |release: &Release| {
        json!({
            "release": release.name,
            "release_version": release.version,
            "stemcell_os": built.stemcell.name,
            "stemcell_version": built.stemcell.version,
            "image_seed": built.seed.name,
        })
    };
    let artifacts: BTreeMap<&str, Value> = built
        .releases
        .iter()
        .map(|(version, release)| (version.as_str(), artifacts(release)))
        .collect();
    let path = artifacts_file(instance);
    // A file that is as it should be keeps its time: a running `stolosd` has read it.
    let is_there = files::read_json::<Value>(&path).is_ok_and(|there| there == Some(json!(artifacts)));
    if !is_there {
        files::write_json(&path, &artifacts, 0o644).map_err(failed("write what was built"))?;
    }
    let programs = json!({"nats_server": built.nats_server, "cpi_host": sibling("stolos-cpi-host")?});
    write_config(instance, &programs)?;
    place_seed(instance, &built.seed).await?;
    Ok(network)
}

/// The operator's file is theirs; only the paths of programs, which move with every build, are kept up to date.
fn write_config(instance: &Instance, programs: &Value) -> Result<(), Failure> {
    let path = instance.config_file();
    let failed =
        |problem: String| Failure::user(format!("failed to write the configuration `{path}`: {problem}"));
    let mut config = read_config(&path)?;
    if config["programs"] == *programs {
        return Ok(());
    }
    config["programs"] = programs.clone();
    let text = stolos_document::to_yaml(&config).map_err(|error| failed(error.to_string()))?;
    files::write_atomic(&path, text.as_bytes(), 0o600).map_err(|error| failed(error.to_string()))
}

/// What clusters are made of, by Kubernetes version; `stolosd` reads it.
fn artifacts_file(instance: &Instance) -> Utf8PathBuf {
    instance.root.join("artifacts.json")
}

/// Copies the image store next to the machines that link into it; the cache may be cleaned up meanwhile.
async fn place_seed(instance: &Instance, seed: &Seed) -> Result<(), Failure> {
    let place = instance.images().join(&seed.name);
    if place.is_dir() {
        return Ok(());
    }
    let temporary = instance
        .images()
        .join(format!(".{}.{}", seed.name, stolos_base::ids::random_hex(4)));
    let (from, to) = (seed.path.clone(), temporary.clone());
    let copy = move || {
        Command::new("cp")
            .args(["-a", "--reflink=auto", from.as_str(), to.as_str()])
            .output()
    };
    let output = tokio::task::spawn_blocking(copy)
        .await
        .map_err(|error| Failure::ours(error.to_string()))?;
    let output = output.map_err(|error| Failure::ours(format!("failed to copy the images: {error}")))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::ours(format!(
            "failed to copy the images: {}",
            why.trim()
        )));
    }
    fs_err::rename(&temporary, &place)
        .map_err(|error| Failure::ours(format!("failed to place the images: {error}")))
}

/// Starts what does not run; a `stolosd` of an older build or with an older configuration is replaced, machines go on meanwhile.
fn start(instance: &Instance) -> Result<(), Failure> {
    daemon(
        "stolos-hostd",
        &instance.run().join("hostd.pid"),
        &instance.logs().join("stolos-hostd.log"),
        &["--config", instance.cpi_config().as_str()],
        &[],
    )?;
    let managers = Managers::configured(instance)?;
    let read = [instance.config_file(), artifacts_file(instance)];
    end_outdated(instance, &managers, &read)?;
    for member in &managers.members {
        let files = instance.manager(member.as_ref());
        let mut arguments = vec![
            "--instance",
            instance.name.as_str(),
            "--root",
            instance.root.as_str(),
        ];
        if let Some(member) = member {
            arguments.extend(["--member", member.as_str()]);
        }
        daemon("stolosd", &files.record, &files.log, &arguments, &read)?;
    }
    Ok(())
}

/// Ends managers that are not configured any more, of an older build or with an older configuration; all of them before the first new one
/// starts, which may change the database in a way that they do not know.
fn end_outdated(instance: &Instance, managers: &Managers, read: &[Utf8PathBuf]) -> Result<(), Failure> {
    let path = sibling("stolosd")?;
    let failed = |error: std::io::Error| Failure::ours(format!("failed to look at stolosd: {error}"));
    let wanted: Vec<Utf8PathBuf> = managers
        .members
        .iter()
        .map(|member| instance.manager(member.as_ref()).record)
        .collect();
    let mut outdated = Vec::new();
    for (record, process) in managers::recorded(instance)? {
        let is_current = wanted.contains(&record)
            && runs(process.pid, &path)
            && !any_newer(read, &record).map_err(failed)?;
        if !is_current {
            outdated.push((record, process));
        }
    }
    managers::end(instance, outdated, " of an older build or configuration")
}

/// `read` are the files that it reads at its start, and only then.
fn daemon(
    program: &str,
    record: &Utf8Path,
    log: &Utf8Path,
    arguments: &[&str],
    read: &[Utf8PathBuf],
) -> Result<(), Failure> {
    let path = sibling(program)?;
    let failed = |error: std::io::Error| Failure::ours(format!("failed to start {program}: {error}"));
    if let Some(process) = Process::recorded(record).map_err(failed)? {
        let is_current = runs(process.pid, &path);
        if is_current && !any_newer(read, record).map_err(failed)? {
            return Ok(());
        }
        let why = if is_current {
            "whose configuration has changed"
        } else {
            "of an older build"
        };
        output::note(&format!("replacing {program} {why}"));
        process.end(Duration::from_secs(30)).map_err(failed)?;
    }
    // What the former process left would look as if the new one, which has yet to write its own, had ended.
    files::remove_if_there(record).map_err(failed)?;
    let mut command = Command::new(&path);
    command.args(arguments);
    spawn_detached(&mut command, log).map(drop).map_err(failed)
}

/// Whether a process runs the file that is at this path now, and not one that was there before.
fn runs(pid: i32, path: &Utf8Path) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == path.as_std_path())
}

/// Whether a file was changed after the process had recorded itself.
fn any_newer(read: &[Utf8PathBuf], record: &Utf8Path) -> std::io::Result<bool> {
    let changed = |path: &Utf8Path| fs_err::metadata(path).and_then(|metadata| metadata.modified());
    let since = changed(record)?;
    read.iter()
        .try_fold(false, |any, path| Ok(any || changed(path)? > since))
}

async fn log_in(instance: &Instance, network: &HostNetwork) -> Result<(), Failure> {
    let managers = Managers::configured(instance)?;
    // Each for itself: one that does not start would not be missed behind the common address.
    let each = managers.members.iter().zip(managers.hosts(network));
    try_join_all(each.map(|(member, host)| ready(instance, instance.manager(member.as_ref()), host))).await?;
    let host = network.host().to_string();
    if let Some(first @ Some(_)) = managers.members.first() {
        // The common address leads to them as soon as `stolos-hostd` has seen one answer.
        ready(instance, instance.manager(first.as_ref()), host.clone()).await?;
    }
    login::login(&Login {
        api: host,
        person: Person {
            username: Some("admin".to_owned()),
            password_file: Some(instance.root.join("admin.password")),
            ..Person::default()
        },
        client_name: None,
        client_secret: None,
        trusted: Trusted {
            ca_cert: Some(instance.ca_file()),
            skip_ssl_validation: false,
        },
        timeout: START_LIMIT.as_secs(),
    })
    .await
}

/// Waits until a manager answers at an address.
async fn ready(instance: &Instance, manager: ManagerFiles, host: String) -> Result<(), Failure> {
    let base = format!("https://{host}:{}", pks::PORT);
    let ready = poll::until("the API", Duration::from_millis(100), START_LIMIT, async || {
        let ca = fs_err::read_to_string(instance.ca_file()).map_err(|error| error.to_string())?;
        let http = client(&Trust::Authorities(ca), Some(Duration::from_secs(5)));
        let http = http.map_err(|error| stolos_base::chain(&error))?;
        pks::Client::new(&base, http, Secret::from(""))
            .info()
            .await
            .map_err(|error| stolos_base::chain(&error))
    });
    tokio::select! {
        ready = ready => ready.map(drop).map_err(|error| {
            Failure::ours(error.to_string()).hint(format!("Its log is `{}`.", manager.log))
        }),
        why = ended(&manager) => Err(why),
    }
}

/// Resolves when a manager has ended instead of becoming ready.
async fn ended(manager: &ManagerFiles) -> Failure {
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let recorded: Option<Process> = files::read_json(&manager.record).ok().flatten();
        if recorded.is_some_and(|process| !process.is_alive()) {
            let text = std::fs::read_to_string(&manager.log).unwrap_or_default();
            let last = text.lines().last().unwrap_or_default();
            let why = serde_json::from_str::<Value>(last).ok();
            let why = why
                .as_ref()
                .and_then(|line| line["error"].as_str())
                .unwrap_or(last);
            return Failure::ours(format!("stolosd ended: {why}"))
                .hint(format!("Its log is `{}`.", manager.log));
        }
    }
}

async fn upload(built: &Built) -> Result<(), Failure> {
    let director = deployments::client().await?;
    let failed = |error| Failure::from_error(&error);
    let stemcells = director.stemcells().await.map_err(failed)?;
    if !stemcells
        .iter()
        .any(|there| there.name == built.stemcell.name && there.version == built.stemcell.version)
    {
        let task = director
            .upload_stemcell(Upload::Location(&built.stemcell.path))
            .await
            .map_err(failed)?;
        deployments::follow(&director, task).await?;
    }
    let releases = director.releases().await.map_err(failed)?;
    for release in built.releases.values() {
        let is_there = releases.iter().any(|there| {
            there.name == release.name
                && there
                    .release_versions
                    .iter()
                    .any(|v| v.version == release.version)
        });
        if !is_there {
            let task = director
                .upload_release(Upload::Location(&release.path))
                .await
                .map_err(failed)?;
            deployments::follow(&director, task).await?;
        }
    }
    Ok(())
}

async fn demo() -> Result<(), Failure> {
    let client = login::pks_client().await?;
    match client.cluster(DEMO).await {
        Ok(cluster) if cluster.last_action_state == pks::LastActionState::Succeeded => {
            output::note(&format!("cluster {DEMO} is there"));
        }
        Ok(cluster) if !cluster.last_action_state.is_final() => {
            let operations = client
                .operations(Some(DEMO))
                .await
                .map_err(|error| Failure::from_error(&error))?;
            if let Some(operation) = operations.first() {
                super::operations::follow(&client, &operation.id).await?;
            }
        }
        Ok(cluster) => {
            return Err(Failure::user(format!(
                "cluster {DEMO} is there, but: {}",
                cluster.last_action_description
            ))
            .hint(format!(
                "Delete it with `stolos delete-cluster {DEMO} --wait`, then run this again."
            )));
        }
        Err(error) if error.class() == Class::NotFound => {
            create::create(&Create {
                name: DEMO.to_owned(),
                external_hostname: "demo.stolos.internal".to_owned(),
                plan: DEMO_PLAN.to_owned(),
                tags: String::new(),
                num_nodes: Some(DEMO_WORKERS),
                given: Given::default(),
                dry_run: false,
                from_backup: None,
                going: Going {
                    wait: true,
                    json: false,
                    non_interactive: true,
                },
            })
            .await?;
        }
        Err(error) => return Err(Failure::from_error(&error)),
    }
    kubeconfigs::credentials(&Credentials {
        sso: Sso::default(),
        name: DEMO.to_owned(),
        json: false,
    })
    .await
}

fn finish(args: &Up, built: &Built, network: &HostNetwork) {
    output::data(&format!(
        "\nStolos runs at https://{}:{}; you are logged in as admin.",
        network.host(),
        pks::PORT
    ));
    let kubectl =
        doctor::on_path("kubectl").map_or_else(|| built.kubectl.to_string(), |_| "kubectl".to_owned());
    if args.demo {
        output::data(&format!("Go on with: {kubectl} get nodes"));
    } else {
        output::data("Go on with: stolos create-cluster NAME -e HOST -p small --wait");
    }
    // Nothing is put outside of the installation's own places, so that nothing outside has to be taken away again.
    if let Ok(own) = sibling("stolos")
        && let Some(advice) = path_advice(&own, doctor::on_path("stolos").as_deref())
    {
        output::data(&advice);
    }
}

/// How to have `stolos` answer by its name, unless it does.
fn path_advice(own: &Utf8Path, found: Option<&Utf8Path>) -> Option<String> {
    let real = |path: &Utf8Path| path.canonicalize_utf8().unwrap_or_else(|_| path.to_owned());
    let problem = match found {
        None => "`stolos` is not on your PATH yet".to_owned(),
        Some(found) if real(found) != real(own) => {
            format!("the `stolos` of your PATH is another one, `{found}`")
        }
        Some(_) => return None,
    };
    let directory = own.parent()?.as_str().replace('\'', r"'\''");
    Some(format!(
        "For this shell, because {problem}: export PATH='{directory}':\"$PATH\""
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `make up` left nobody a hint where `stolos` was.
    #[test]
    fn a_newcomer_is_told_how_to_call_the_program() {
        let dir = camino_tempfile::tempdir().expect("a temporary directory");
        let (own, other, link) = (
            dir.path().join("it's/stolos"),
            dir.path().join("stolos"),
            dir.path().join("pks"),
        );
        fs_err::create_dir(dir.path().join("it's")).expect("a directory");
        fs_err::write(&own, "").expect("a program");
        fs_err::write(&other, "").expect("another program");
        fs_err::os::unix::fs::symlink(&own, &link).expect("a link");
        assert_eq!(path_advice(&own, Some(&own)), None);
        assert_eq!(path_advice(&own, Some(&link)), None);
        let advice = path_advice(&own, Some(&other)).expect("another one");
        assert!(advice.contains(other.as_str()), "{advice}");
        let advice = path_advice(&own, None).expect("none");
        let (_, line) = advice.split_once(": ").expect("a line");
        let script = format!("{line}; echo \"${{PATH%%:*}}\"");
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .output()
            .expect("a shell");
        let directory = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(directory.trim(), own.parent().expect("a directory").as_str());
    }

    #[test]
    fn only_what_plans_name_is_built() {
        let check = |wanted: &[&str], expected: &[&str]| {
            let pinned = vec!["1.37.1".to_owned(), "1.36.3".to_owned()];
            let wanted = wanted.iter().map(|version| (*version).to_owned()).collect();
            assert_eq!(versions_to_build(pinned, &wanted), expected);
        };
        check(&[], &["1.37.1"]);
        check(&["1.36.3"], &["1.36.3"]);
        check(&["1.36.3", "1.37.1"], &["1.37.1", "1.36.3"]);
        check(&["1.35.0", "1.36.3"], &["1.36.3", "1.35.0"]);
    }
}
