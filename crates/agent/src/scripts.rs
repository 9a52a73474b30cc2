//! Scripts of jobs: all jobs' at once, as in BOSH.

use std::process::Stdio;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use futures::future::join_all;
use indexmap::IndexMap;
use rustix::process::{Pid, Signal, kill_process_group};
use stolos_mbus::call::ErrandResult;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::apply::component;
use crate::error::{Error, Result};
use crate::paths::Paths;
use crate::platform::Platform;

/// What BOSH gives scripts.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// What a script that is cancelled gets to clean up after itself.
const PATIENCE: Duration = Duration::from_secs(10);
/// A script's log that is larger is put aside before the script runs again.
const LOG_LIMIT: u64 = 10 * 1024 * 1024;
/// What each output of an errand may have in bytes: both have to fit into one message of 1 MiB.
const OUTPUT_LIMIT: usize = 480 * 1024;

/// What all scripts of one call have in common.
pub(crate) struct Run<'a> {
    pub(crate) paths: &'a Paths,
    pub(crate) platform: &'a dyn Platform,
    pub(crate) jobs: &'a [String],
    pub(crate) env: &'a IndexMap<String, String>,
    pub(crate) cancel: &'a CancellationToken,
}

impl Run<'_> {
    /// The jobs that have a script, and where it is.
    fn having(&self, script: &str) -> Result<Vec<(&str, Utf8PathBuf)>> {
        let mut all = Vec::new();
        if !self.platform.runs_scripts() {
            return Ok(all);
        }
        for job in self.jobs {
            let path = self
                .paths
                .jobs()
                .join(component(job)?)
                .join("bin")
                .join(component(script)?);
            if path.is_file() {
                all.push((job.as_str(), path));
            }
        }
        Ok(all)
    }

    /// Runs a script of all jobs that have it.
    pub(crate) async fn all(&self, script: &str) -> Result<()> {
        let runs = self
            .having(script)?
            .into_iter()
            .map(|(job, path)| async move { (job, self.logged(job, script, &path).await) });
        self.sum_up(script, join_all(runs).await)
    }

    /// Runs the drain scripts until each has printed what it had to say: a number of seconds to wait, negative for "ask
    /// again".
    pub(crate) async fn drain(&self, arguments: &[String]) -> Result<()> {
        let runs = self
            .having("drain")?
            .into_iter()
            .map(|(job, path)| async move { (job, self.drain_one(job, &path, arguments).await) });
        self.sum_up("drain", join_all(runs).await)
    }

    /// Runs an errand and gives what it printed.
    pub(crate) async fn errand(&self, job: &str) -> Result<ErrandResult> {
        let path = self.paths.jobs().join(component(job)?).join("bin/run");
        if !self.platform.runs_scripts() {
            return Ok(ErrandResult::default());
        }
        if !path.is_file() {
            return Err(Error::Refused(format!("job `{job}` has no errand")));
        }
        let mut result = self.captured(job, "run", &path, &[]).await?;
        result.stdout = cut(result.stdout);
        result.stderr = cut(result.stderr);
        Ok(result)
    }

    /// BOSH's words about several scripts.
    fn sum_up(&self, script: &str, results: Vec<(&str, Result<()>)>) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::Canceled);
        }
        let total = results.len();
        let (mut good, mut failed) = (Vec::new(), Vec::new());
        for (job, result) in results {
            match result {
                Ok(()) => good.push(job),
                Err(error) => {
                    tracing::warn!(job, script, error = %stolos_base::chain(&error), "script failed");
                    failed.push(job);
                }
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        Err(Error::Scripts {
            script: script.to_owned(),
            failed: failed.len(),
            total,
            failed_jobs: failed.join(", "),
            good: match good.as_slice() {
                [] => String::new(),
                good => format!(" Successful Jobs: {}.", good.join(", ")),
            },
        })
    }

    async fn drain_one(&self, job: &str, path: &Utf8Path, arguments: &[String]) -> Result<()> {
        let mut arguments = arguments.to_vec();
        loop {
            let output = self.captured(job, "drain", path, &arguments).await?;
            if output.exit_code != 0 {
                return Err(Error::Refused(format!(
                    "it ended with exit code {}",
                    output.exit_code
                )));
            }
            let wait: i64 = output
                .stdout
                .trim()
                .parse()
                .map_err(|_| Error::Refused("it printed something else than a number".to_owned()))?;
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(wait.unsigned_abs())) => {}
                () = self.cancel.cancelled() => return Err(Error::Canceled),
            }
            if wait >= 0 {
                return Ok(());
            }
            arguments = vec!["job_check_status".to_owned(), "hash_unchanged".to_owned()];
        }
    }

    /// Runs a script with its output appended to its log files.
    async fn logged(&self, job: &str, script: &str, path: &Utf8Path) -> Result<()> {
        let mut command = self.command(path, &[]);
        command
            .stdout(log(self.paths, job, script, "stdout")?)
            .stderr(log(self.paths, job, script, "stderr")?);
        let mut child = command.spawn().map_err(Error::file("run", path))?;
        let group = group(&child);
        let status = tokio::select! {
            status = child.wait() => status.map_err(Error::file("wait for", path))?,
            () = self.cancel.cancelled() => {
                end(group, async { child.wait().await.map(drop) }).await;
                return Err(Error::Canceled);
            }
        };
        if status.success() {
            Ok(())
        } else {
            Err(Error::Refused(format!("it ended with {status}")))
        }
    }

    /// Runs a script and gives what it printed; its errors go to its log too.
    async fn captured(
        &self,
        job: &str,
        script: &str,
        path: &Utf8Path,
        arguments: &[String],
    ) -> Result<ErrandResult> {
        use std::io::Write as _;
        use std::os::unix::process::ExitStatusExt as _;
        let mut command = self.command(path, arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Error::file("run", path))?;
        let group = group(&child);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let output = async {
            let (stdout, stderr, status) = tokio::join!(whole(stdout), lines(stderr), child.wait());
            Ok(std::process::Output {
                status: status?,
                stdout: stdout?,
                stderr: stderr?,
            })
        };
        tokio::pin!(output);
        let output = tokio::select! {
            output = &mut output => output.map_err(Error::file("wait for", path))?,
            () = self.cancel.cancelled() => {
                end(group, async { output.await.map(drop) }).await;
                return Err(Error::Canceled);
            }
        };
        for (stream, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            let mut log = log(self.paths, job, script, stream)?;
            log.write_all(bytes)
                .map_err(Error::file("write the log of", path))?;
        }
        Ok(ErrandResult {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            // As shells count: 128 and the signal's number.
            exit_code: output
                .status
                .code()
                .unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
        })
    }

    fn command(&self, path: &Utf8Path, arguments: &[String]) -> Command {
        let mut command = Command::new(path);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .envs(self.env)
            .current_dir("/")
            .stdin(Stdio::null())
            // A life of the agent that ends takes its scripts with it: the next one begins them anew.
            .kill_on_drop(true)
            .process_group(0);
        command
    }
}

async fn whole(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        stream.read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// As [`whole`]; each line is progress of the task that runs the script.
async fn lines(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let Some(stream) = stream else {
        return Ok(bytes);
    };
    let mut stream = BufReader::new(stream);
    loop {
        let start = bytes.len();
        if stream.read_until(b'\n', &mut bytes).await? == 0 {
            return Ok(bytes);
        }
        crate::tasks::say(&String::from_utf8_lossy(&bytes[start..]));
    }
}

fn log(paths: &Paths, job: &str, script: &str, stream: &str) -> Result<std::fs::File> {
    let path = paths.log().join(job).join(format!("{script}.{stream}.log"));
    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent).map_err(Error::file("make", parent))?;
    }
    if fs_err::metadata(&path).is_ok_and(|meta| meta.len() > LOG_LIMIT) {
        let aside = Utf8PathBuf::from(format!("{path}.1"));
        fs_err::rename(&path, aside).map_err(Error::file("put aside", &path))?;
    }
    let file = fs_err::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(Error::file("open", &path))?;
    Ok(file.into_file())
}

/// The process group of a script is its own.
fn group(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()?).ok()?)
}

/// Ends a script with all that it started; politely first.
async fn end(group: Option<Pid>, ended: impl Future<Output = std::io::Result<()>>) {
    let Some(group) = group else {
        return;
    };
    let _ = kill_process_group(group, Signal::TERM);
    let waited = tokio::time::timeout(PATIENCE, ended).await;
    if !matches!(waited, Ok(Ok(()))) {
        tracing::warn!(
            group = group.as_raw_nonzero(),
            "a cancelled script did not end and is killed"
        );
    }
    // What it started may be there still.
    let _ = kill_process_group(group, Signal::KILL);
}

/// Keeps the head and the tail of a text, so that it has at most [`OUTPUT_LIMIT`] bytes as a JSON string.
fn cut(text: String) -> String {
    // Escaping makes one byte into six at most.
    let fits = |text: &str| text.len() <= OUTPUT_LIMIT / 6 || json_len(text) <= OUTPUT_LIMIT;
    if fits(&text) {
        return text;
    }
    let mut half = OUTPUT_LIMIT.min(text.len()) / 2;
    loop {
        let head = text.floor_char_boundary(half);
        let tail = text.ceil_char_boundary(text.len() - half);
        let short = format!("{}\n...[truncated]...\n{}", &text[..head], &text[tail..]);
        if fits(&short) {
            return short;
        }
        half = half * 2 / 3;
    }
}

fn json_len(text: &str) -> usize {
    serde_json::to_string(text).map_or(usize::MAX, |json| json.len())
}
