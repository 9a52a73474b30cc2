//! What is not well in a machine although it answers: processes that do not stay up, and what jobs say themselves.
//!
//! A job says it in `sys/run/JOB/problems.json`, a list of `{kind, severity, text, next}`, which it writes anew at least every minute while it runs
//! (ARCHITECTURE.md, Jobs). What it says is data: it is bounded here, and made harmless where it is shown.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use serde::Deserialize;
use stolos_base::Clock;
use stolos_init::wire::{Exit, ProcessStatus, State};
use stolos_mbus::state::{Alert, Problem};

use crate::apply::component;
use crate::paths::Paths;

/// BOSH's severity of a process that does not stay up.
const CRITICAL: i32 = 2;
/// From so many failures in a row on, a process does not stay up.
pub(crate) const CRITICAL_AFTER: u32 = 3;
/// A list that was not written for so long is left over from a process that is gone.
const STALE_SECONDS: i64 = 300;
/// The largest list that is read, and how many entries of it.
const LONGEST: u64 = 64 * 1024;
const MOST: usize = 16;
/// What stands is told again after so long, to whoever did not hear it.
const AGAIN: Duration = Duration::from_secs(300);

/// One entry of a job's list.
#[derive(Debug, Deserialize)]
struct Said {
    kind: String,
    severity: i32,
    text: String,
    #[serde(default)]
    next: Option<String>,
}

/// Everything that is not well now.
pub(crate) fn found(paths: &Paths, processes: &[ProcessStatus], jobs: &[String]) -> Vec<Problem> {
    let mut problems: Vec<Problem> = processes.iter().filter_map(of_process).collect();
    for job in jobs {
        match of_job(paths, job) {
            Ok(said) => problems.extend(said),
            Err(error) => tracing::debug!(job, %error, "what the job says of itself cannot be read"),
        }
    }
    problems
}

fn of_process(process: &ProcessStatus) -> Option<Problem> {
    if process.failures < CRITICAL_AFTER || matches!(process.state, State::Stopped | State::Stopping { .. }) {
        return None;
    }
    let exit = process
        .last_exit
        .as_ref()
        .map_or_else(|| "ended".to_owned(), Exit::to_string);
    let (job, name) = process.name.split_once('/').unwrap_or(("", &process.name));
    Some(Problem {
        source: process.name.clone(),
        kind: String::new(),
        severity: CRITICAL,
        text: format!("{exit}, {} times in a row", process.failures),
        next: Some(format!(
            "its last words are in /var/vcap/sys/log/{job}/{name}.stderr.log on the machine"
        )),
        since_s: 0,
    })
}

fn of_job(paths: &Paths, job: &str) -> std::io::Result<Vec<Problem>> {
    let name = component(job).map_err(std::io::Error::other)?;
    let path = paths.sys_run().join(name).join("problems.json");
    let metadata = match std::fs::symlink_metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    // A clock that was set back makes a list new, not old.
    let age = Clock::system().now().as_second() - metadata.mtime();
    if !metadata.is_file() || metadata.len() > LONGEST || age > STALE_SECONDS {
        return Ok(Vec::new());
    }
    let said: Vec<Said> = serde_json::from_slice(&fs_err::read(&path)?)?;
    let problems = said.into_iter().take(MOST).map(|said| Problem {
        source: job.to_owned(),
        kind: said.kind,
        severity: said.severity,
        text: said.text,
        next: said.next,
        since_s: 0,
    });
    Ok(problems.collect())
}

/// What stands, since when, and what has to be told about it.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    known: BTreeMap<(String, String), Known>,
}

#[derive(Debug)]
struct Known {
    since: Instant,
    told: Instant,
    text: String,
}

/// An alert but for its id and time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) problem: Problem,
    pub(crate) over: bool,
}

impl Standing {
    /// Compares with what stood before: fills in since when each stands, and gives what is new, was told long ago, or is over. That a process failed is
    /// told by its failures, so only its end is news here.
    pub(crate) fn compare(&mut self, now: Instant, problems: &mut [Problem]) -> Vec<News> {
        let mut news = Vec::new();
        for problem in problems.iter_mut() {
            let key = (problem.source.clone(), problem.kind.clone());
            let is_new = !self.known.contains_key(&key);
            let known = self.known.entry(key).or_insert_with(|| Known {
                since: now,
                told: now,
                text: String::new(),
            });
            known.text.clone_from(&problem.text);
            problem.since_s = now.duration_since(known.since).as_secs();
            if (is_new || now.duration_since(known.told) >= AGAIN) && !problem.kind.is_empty() {
                known.told = now;
                news.push(News {
                    problem: problem.clone(),
                    over: false,
                });
            }
        }
        self.known.retain(|(source, kind), known| {
            let stands = problems
                .iter()
                .any(|problem| problem.source == *source && problem.kind == *kind);
            if !stands {
                news.push(News {
                    problem: Problem {
                        source: source.clone(),
                        kind: kind.clone(),
                        severity: 4,
                        text: known.text.clone(),
                        next: None,
                        since_s: now.duration_since(known.since).as_secs(),
                    },
                    over: true,
                });
            }
            stands
        });
        news
    }
}

impl News {
    /// In BOSH's form: `WHAT - EVENT - ACTION`; what comes before the first ` - ` is what alerts of one kind have in common.
    pub(crate) fn alert(self, id: String, created_at: i64) -> Alert {
        let Problem {
            source,
            kind,
            severity,
            text,
            next,
            since_s,
        } = self.problem;
        let what = if kind.is_empty() {
            source.clone()
        } else {
            format!("{source}: {kind}")
        };
        let (event, summary) = if self.over {
            ("over", format!("over after {since_s} s: {text}"))
        } else {
            let next = next.map_or_else(String::new, |next| format!("; {next}"));
            ("raised", format!("{text}{next}"))
        };
        Alert {
            id,
            severity,
            title: format!("{what} - {event} - tell"),
            summary,
            created_at,
            over: self.over,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Problem {
        Problem {
            source: "etcd".to_owned(),
            kind: "alarm NOSPACE".to_owned(),
            severity: 1,
            text: "etcd refuses writes".to_owned(),
            next: Some("delete objects".to_owned()),
            since_s: 0,
        }
    }

    #[test]
    fn what_stands_is_told_once_again_now_and_then_and_when_it_is_over() {
        let mut standing = Standing::default();
        let start = Instant::now();
        let mut told = Vec::new();
        for second in (0..700).step_by(10) {
            let mut now = if second < 600 { vec![full()] } else { Vec::new() };
            let news = standing.compare(start + Duration::from_secs(second), &mut now);
            assert!(now.iter().all(|problem| problem.since_s == second));
            told.extend(news.into_iter().map(|news| (second, news.over)));
        }
        assert_eq!(told, [(0, false), (300, false), (600, true)]);
        let news = News {
            problem: full(),
            over: true,
        };
        let alert = news.alert("1".to_owned(), 7);
        assert!(
            alert.over && alert.title.starts_with("etcd: alarm NOSPACE - over"),
            "{alert:?}"
        );
    }

    #[test]
    fn lists_of_jobs_are_bounded_and_a_broken_one_is_none() {
        let directory = camino_tempfile::tempdir().expect("a directory");
        let paths = Paths::below(directory.path());
        let jobs = ["etcd".to_owned(), "other".to_owned(), "..".to_owned()];
        assert!(found(&paths, &[], &jobs).is_empty());
        let at = |job: &str, text: &str| {
            let path = paths.sys_run().join(job);
            fs_err::create_dir_all(&path).expect("a directory");
            fs_err::write(path.join("problems.json"), text).expect("a file");
        };
        let one = r#"{"kind": "alarm NOSPACE", "severity": 1, "text": "full", "next": "delete"}"#;
        at("etcd", &format!("[{}]", vec![one; 100].join(",")));
        at("other", "[{");
        let said = found(&paths, &[], &jobs);
        assert_eq!(said.len(), MOST);
        assert_eq!(
            (said[0].source.as_str(), said[0].next.as_deref()),
            ("etcd", Some("delete"))
        );
    }

    #[test]
    fn a_process_that_does_not_stay_up_is_a_problem_until_it_lives_or_is_stopped() {
        let process = |failures: u32, state: State| ProcessStatus {
            name: "web/nginx".to_owned(),
            state,
            failures,
            restarts: failures.into(),
            last_exit: Some(Exit::Code(1)),
            changed: false,
        };
        let text = |status: ProcessStatus| of_process(&status).map(|problem| problem.text);
        assert_eq!(
            text(process(41, State::BackingOff { retry_ms: 5 })).as_deref(),
            Some("exited with code 1, 41 times in a row")
        );
        assert_eq!(text(process(2, State::BackingOff { retry_ms: 5 })), None);
        assert_eq!(text(process(41, State::Stopped)), None);
    }
}
