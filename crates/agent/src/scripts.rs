//! Scripts of jobs: all jobs' at once, as in BOSH.

use std::process::Stdio;

use camino::Utf8Path;
use indexmap::IndexMap;
use stolos_mbus::call::ErrandResult;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::paths::Paths;

/// What BOSH gives scripts.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs a script of all jobs that have it.
pub(crate) async fn run_all(
    paths: &Paths,
    jobs: &[String],
    script: &str,
    env: &IndexMap<String, String>,
    cancel: &CancellationToken,
) -> Result<()> {
    let runs = jobs.iter().filter_map(|job| {
        let path = paths.jobs().join(job).join("bin").join(script);
        path.is_file().then(|| async move { (job.clone(), run(paths, job, script, &path, &[], env, cancel).await) })
    });
    let results = futures::future::join_all(runs).await;
    if cancel.is_cancelled() {
        return Err(Error::Canceled);
    }
    let names = |good: bool| {
        let names = results.iter().filter(|(_, result)| result.as_ref().is_ok_and(|code| *code == Some(0)) == good);
        names.map(|(job, _)| job.as_str()).collect::<Vec<_>>()
    };
    let (good, failed) = (names(true), names(false));
    for (job, result) in &results {
        match result {
            Ok(Some(0)) => {}
            Ok(code) => tracing::warn!(%job, script, ?code, "script failed"),
            Err(error) => tracing::warn!(%job, script, error = %stolos_base::chain(error), "script failed"),
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    let good = if good.is_empty() { String::new() } else { format!(" Successful Jobs: {}.", good.join(", ")) };
    Err(Error::Scripts {
        script: script.to_owned(),
        failed: failed.len(),
        total: results.len(),
        failed_jobs: failed.join(", "),
        good,
    })
}

/// Runs the drain scripts until each has printed what it had to say: a number of seconds to wait, negative for "ask again".
pub(crate) async fn drain_all(
    paths: &Paths,
    jobs: &[String],
    arguments: &[String],
    env: &IndexMap<String, String>,
    cancel: &CancellationToken,
) -> Result<()> {
    let runs = jobs.iter().filter_map(|job| {
        let path = paths.jobs().join(job).join("bin/drain");
        path.is_file().then(|| async move { (job.clone(), drain(paths, job, &path, arguments, env, cancel).await) })
    });
    let results = futures::future::join_all(runs).await;
    let total = results.len();
    let (failed, good): (Vec<_>, Vec<_>) = results.into_iter().partition(|(_, result)| result.is_err());
    if cancel.is_cancelled() {
        return Err(Error::Canceled);
    }
    if failed.is_empty() {
        return Ok(());
    }
    for (job, result) in &failed {
        if let Err(error) = result {
            tracing::warn!(%job, error = %stolos_base::chain(error), "drain failed");
        }
    }
    let names = |list: &[(String, Result<()>)]| list.iter().map(|(job, _)| job.as_str()).collect::<Vec<_>>().join(", ");
    Err(Error::Scripts {
        script: "drain".to_owned(),
        failed: failed.len(),
        total,
        failed_jobs: names(&failed),
        good: if good.is_empty() { String::new() } else { format!(" Successful Jobs: {}.", names(&good)) },
    })
}

async fn drain(
    paths: &Paths,
    job: &str,
    path: &Utf8Path,
    arguments: &[String],
    env: &IndexMap<String, String>,
    cancel: &CancellationToken,
) -> Result<()> {
    let mut arguments = arguments.to_vec();
    loop {
        let output = capture(paths, job, "drain", path, &arguments, env, cancel).await?;
        if output.exit_code != 0 {
            return Err(Error::Refused(format!("drain of job `{job}` ended with {}", output.exit_code)));
        }
        let wait: i64 = output
            .stdout
            .trim()
            .parse()
            .map_err(|_| Error::Refused(format!("drain of job `{job}` printed something else than a number")))?;
        let pause = std::time::Duration::from_secs(wait.unsigned_abs());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cancel.cancelled() => return Err(Error::Canceled),
        }
        if wait >= 0 {
            return Ok(());
        }
        if let Some(first) = arguments.first_mut() {
            "job_check_status".clone_into(first);
        }
    }
}

/// Runs an errand and gives all that it printed.
pub(crate) async fn errand(paths: &Paths, job: &str, cancel: &CancellationToken) -> Result<ErrandResult> {
    let path = paths.jobs().join(job).join("bin/run");
    if !path.is_file() {
        return Err(Error::Refused(format!("job `{job}` has no errand")));
    }
    capture(paths, job, "run", &path, &[], &IndexMap::new(), cancel).await
}

/// Runs a script with its output appended to its log files; its exit code, or none when a signal ended it.
async fn run(
    paths: &Paths,
    job: &str,
    script: &str,
    path: &Utf8Path,
    arguments: &[String],
    env: &IndexMap<String, String>,
    cancel: &CancellationToken,
) -> Result<Option<i32>> {
    let mut command = command(path, arguments, env);
    command.stdout(log(paths, job, script, "stdout")?).stderr(log(paths, job, script, "stderr")?);
    let mut child = command.spawn().map_err(Error::file("run", path))?;
    let status = tokio::select! {
        status = child.wait() => status.map_err(Error::file("wait for", path))?,
        () = cancel.cancelled() => {
            end_group(&mut child).await;
            return Err(Error::Canceled);
        }
    };
    Ok(status.code())
}

/// Runs a script and gives what it printed; its errors go to its log too.
async fn capture(
    paths: &Paths,
    job: &str,
    script: &str,
    path: &Utf8Path,
    arguments: &[String],
    env: &IndexMap<String, String>,
    cancel: &CancellationToken,
) -> Result<ErrandResult> {
    use std::io::Write as _;
    let mut command = command(path, arguments, env);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(Error::file("run", path))?;
    let group = child.id();
    let output = tokio::select! {
        output = child.wait_with_output() => output.map_err(Error::file("wait for", path))?,
        () = cancel.cancelled() => {
            signal_group(group);
            return Err(Error::Canceled);
        }
    };
    log(paths, job, script, "stderr")?.write_all(&output.stderr).map_err(Error::file("write the log of", path))?;
    Ok(ErrandResult {
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        // BOSH's convention for a run that a signal ended.
        exit_code: output.status.code().unwrap_or(143),
    })
}

fn command(path: &Utf8Path, arguments: &[String], env: &IndexMap<String, String>) -> Command {
    let mut command = Command::new(path);
    command.args(arguments).env_clear().env("PATH", PATH).envs(env).stdin(Stdio::null()).process_group(0);
    command
}

fn log(paths: &Paths, job: &str, script: &str, stream: &str) -> Result<std::fs::File> {
    let path = paths.log().join(job).join(format!("{script}.{stream}.log"));
    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent).map_err(Error::file("make", parent))?;
    }
    let file = fs_err::OpenOptions::new().create(true).append(true).open(&path).map_err(Error::file("open", &path))?;
    Ok(file.into_file())
}

async fn end_group(child: &mut tokio::process::Child) {
    /// What a script gets to clean up after itself.
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
    signal_group(child.id());
    if tokio::time::timeout(PATIENCE, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn signal_group(pid: Option<u32>) {
    use rustix::process::{Pid, Signal, kill_process_group};
    if let Some(group) = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::TERM);
    }
}
