//! The client of the director's API.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8Path;
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde::de::DeserializeOwned;
use stolos_base::{Class, Classify, Secret};

use super::{
    CancelTasks, Config, ConfigUpdate, Deployment, DeploymentSummary, Diff, ErrorBody, Event, Info,
    InstanceState, InstanceSummary, Lock, MachineProblem, OrphanedDisk, OutputKind, PastEvent, Release,
    Remote, ResurrectionState, ResurrectionUpdate, Stemcell, TASK_STATE_HEADER, Task, TaskState,
    UnknownMachine, Variable, code,
};

/// How long to wait for a connection: the director is on this host or near it.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// BOSH's header for the context of a task (bosh.md 1.1); at most 64 characters.
const CONTEXT_HEADER: &str = "X-Bosh-Context-Id";
/// How long an answer may be silent: longer than [`LONGEST_WAIT_MS`](super::LONGEST_WAIT_MS).
pub const READ_LIMIT: Duration = Duration::from_secs(60);
/// How long [`Client::follow`] lets one request wait for news.
const FOLLOW_WAIT: Duration = Duration::from_secs(20);
/// Pauses of [`Client::follow`] while the director does not answer: it may be restarting.
const FOLLOW_RETRY: Duration = Duration::from_millis(250);
/// How long [`Client::follow`] puts up with a director that does not answer.
const FOLLOW_PATIENCE: Duration = Duration::from_secs(120);

/// A result with this client's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A bearer token.
pub type Token = Secret<String>;

/// Where a [`Client`] gets its tokens from; asked once a request, so it should keep a token while that is valid.
pub trait Tokens: Send + Sync {
    /// A token that is valid now.
    ///
    /// # Errors
    /// When none can be had.
    fn token(&self) -> Pin<Box<dyn Future<Output = Result<Token, TokenError>> + Send + '_>>;
}

/// Why there is no token.
pub type TokenError = Box<dyn std::error::Error + Send + Sync>;
/// A shared [`Tokens`].
pub type TokenSource = Arc<dyn Tokens>;

/// A token that never changes; for tests and short programs.
impl Tokens for Token {
    fn token(&self) -> Pin<Box<dyn Future<Output = Result<Token, TokenError>> + Send + '_>> {
        Box::pin(std::future::ready(Ok(self.clone())))
    }
}

/// The director did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client could not be made.
    #[error("failed to set up the director's client")]
    SetUp(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// There is no token.
    #[error("failed to get a token for the director")]
    Token(#[source] TokenError),
    /// The director was not reached, or the connection was lost.
    #[error("failed to reach the director to {what}")]
    Unreachable {
        /// What was wanted.
        what: String,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
    /// The director refused.
    #[error("the director refused to {what}: {} (code {})", .body.description, .body.code)]
    Refused {
        /// What was wanted.
        what: String,
        /// HTTP status.
        status: u16,
        /// What it said.
        body: ErrorBody,
    },
    /// The director's answer is not what it should be.
    #[error("failed to read the director's answer to {what}: {detail}")]
    Answer {
        /// What was wanted.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A file to upload cannot be read.
    #[error("failed to read `{path}`")]
    File {
        /// Which.
        path: camino::Utf8PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A task did not end well.
    #[error("director task {} ended as {}{}", .task.id, .task.state.as_str(), .task.result.as_deref().map(|text| format!(": {text}")).unwrap_or_default())]
    TaskFailed {
        /// The task.
        task: Box<Task>,
        /// What its last event said.
        error: Option<super::EventError>,
    },
}

impl Classify for Error {
    fn class(&self) -> Class {
        match self {
            Self::SetUp(_) | Self::Answer { .. } => Class::Internal,
            Self::Token(_) | Self::Unreachable { .. } => Class::Unavailable,
            Self::File { .. } => Class::User,
            Self::Refused { status, .. } => match status {
                401 => Class::Unauthenticated,
                403 => Class::Denied,
                404 => Class::NotFound,
                409 | 412 => Class::Conflict,
                400..=499 => Class::User,
                502..=504 => Class::Unavailable,
                _ => Class::Internal,
            },
            Self::TaskFailed { task, .. } => match task.state {
                TaskState::Cancelled => Class::Conflict,
                _ => Class::Internal,
            },
        }
    }
}

impl Error {
    /// BOSH's code, when the director said one.
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        match self {
            Self::Refused { body, .. } => Some(body.code),
            Self::TaskFailed { error, .. } => error.as_ref().map(|error| error.code),
            _ => None,
        }
    }
}

/// How to deploy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeployOptions {
    /// Make every machine anew.
    pub recreate: bool,
    /// Make machines anew whose agents do not answer.
    pub fix: bool,
    /// Stop after rendering; nothing is made or kept.
    pub dry_run: bool,
    /// Overrides `canaries`.
    pub canaries: Option<String>,
    /// Overrides `max_in_flight`.
    pub max_in_flight: Option<String>,
    /// Skip pre-stop and drain scripts: `*`, or `group,group/index`.
    pub skip_drain: Option<String>,
    /// The deployment may name credentials of its own only, now and in every later deploy, whoever asks for it.
    pub own_credentials: bool,
}

impl DeployOptions {
    fn query(&self) -> Vec<(&'static str, &str)> {
        let on = [
            ("recreate", self.recreate),
            ("fix", self.fix),
            ("dry_run", self.dry_run),
            ("own_credentials", self.own_credentials),
        ];
        let texts = [
            ("canaries", &self.canaries),
            ("max_in_flight", &self.max_in_flight),
            ("skip_drain", &self.skip_drain),
        ];
        let on = on
            .into_iter()
            .filter_map(|(name, on)| on.then_some((name, "true")));
        let texts = texts.into_iter();
        on.chain(texts.filter_map(|(name, text)| Some((name, text.as_deref()?))))
            .collect()
    }
}

/// How to delete a deployment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Go on past agents that do not answer and disks that cannot be deleted.
    pub force: bool,
    /// Delete its disks too, instead of keeping them as orphans.
    pub delete_disks: bool,
}

/// What to upload.
#[derive(Clone, Debug)]
pub enum Upload<'a> {
    /// A file that this process reads.
    File(&'a Utf8Path),
    /// A file on the director's host.
    Location(&'a Utf8Path),
}

/// A piece of a task's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// What is new.
    pub text: String,
    /// Where to go on, in bytes.
    pub next: u64,
    /// How the task stands after this piece; `None` from a director that does not say.
    pub state: Option<TaskState>,
}

/// A client of the director; cheap to clone.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: Arc<str>,
    tokens: TokenSource,
    context: Option<Arc<str>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("director::Client")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the director at `url` (`https://HOST:25555`) that trusts `ca` (PEM) alone.
    ///
    /// # Errors
    /// [`Error::SetUp`].
    pub fn new(url: &str, ca: &str, tokens: TokenSource) -> Result<Self> {
        let tls = stolos_base::tls::client(ca, None).map_err(|error| Error::SetUp(error.into()))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .read_timeout(READ_LIMIT)
            .no_proxy()
            .build()
            .map_err(|error| Error::SetUp(error.into()))?;
        Ok(Self::with_http(url, http, tokens))
    }

    /// A client over a ready HTTP client, which must not follow redirects.
    #[must_use]
    pub fn with_http(url: &str, http: reqwest::Client, tokens: TokenSource) -> Self {
        Self {
            http,
            url: url.trim_end_matches('/').into(),
            tokens,
            context: None,
        }
    }

    /// The same client with a context: tasks that it starts carry it, and [`TaskFilter::context`] finds them again, so
    /// that a caller that lost the answer to a call does not start the task twice.
    #[must_use]
    pub fn with_context(&self, context: &str) -> Self {
        Self {
            context: Some(context.into()),
            ..self.clone()
        }
    }

    /// Who is there.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn info(&self) -> Result<Info> {
        let request = self.http.get(format!("{}/info", self.url));
        let response = checked("ask who it is", request.send().await).await?;
        read("ask who it is", response).await
    }

    /// Deploys a manifest; the answer is the task's number.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn deploy(&self, manifest: impl Into<String>, options: &DeployOptions) -> Result<i64> {
        let request = self
            .request(Method::POST, "/deployments")
            .await?
            .query(&options.query())
            .header(header::CONTENT_TYPE, "text/yaml")
            .body(manifest.into());
        started("deploy", request).await
    }

    /// Deploys, and says what the instances of a group (`*` for all groups) are to do from now on: `started`, `stopped` or `detached`, which has no machine.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn change_state(
        &self,
        deployment: &str,
        group: &str,
        state: &str,
        manifest: impl Into<String>,
        options: &DeployOptions,
    ) -> Result<i64> {
        let request = self
            .request(Method::PUT, &format!("/deployments/{deployment}/jobs/{group}"))
            .await?
            .query(&[("state", state)])
            .query(&options.query())
            .header(header::CONTENT_TYPE, "text/yaml")
            .body(manifest.into());
        started("change the state", request).await
    }

    /// What would change, with secrets redacted.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn diff(&self, deployment: &str, manifest: impl Into<String>) -> Result<Diff> {
        let request = self
            .request(Method::POST, &format!("/deployments/{deployment}/diff"))
            .await?
            .query(&[("redact", "true")])
            .header(header::CONTENT_TYPE, "text/yaml")
            .body(manifest.into());
        json("compare manifests", request).await
    }

    /// All deployments.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn deployments(&self) -> Result<Vec<DeploymentSummary>> {
        json(
            "list deployments",
            self.request(Method::GET, "/deployments").await?,
        )
        .await
    }

    /// One deployment.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn deployment(&self, name: &str) -> Result<Deployment> {
        json(
            "show the deployment",
            self.request(Method::GET, &format!("/deployments/{name}")).await?,
        )
        .await
    }

    /// Machines whose agents are heard of and that the director's database does not know.
    ///
    /// # Errors
    /// As all calls.
    pub async fn unknown_machines(&self) -> Result<Vec<UnknownMachine>> {
        json(
            "list unknown machines",
            self.request(Method::GET, "/unknown_machines").await?,
        )
        .await
    }

    /// Deletes a deployment; the answer is the task's number.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_deployment(&self, name: &str, options: DeleteOptions) -> Result<i64> {
        let mut request = self
            .request(Method::DELETE, &format!("/deployments/{name}"))
            .await?;
        if options.force {
            request = request.query(&[("force", "true")]);
        }
        if options.delete_disks {
            request = request.query(&[("delete_disks", "true")]);
        }
        started("delete the deployment", request).await
    }

    /// Disks without an instance.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn orphaned_disks(&self) -> Result<Vec<OrphanedDisk>> {
        json("list orphaned disks", self.request(Method::GET, "/disks").await?).await
    }

    /// Deletes a disk without an instance; the answer is the task's number.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_disk(&self, cid: &str) -> Result<i64> {
        let request = self.request(Method::DELETE, &format!("/disks/{cid}")).await?;
        started("delete the disk", request).await
    }

    /// Instances of a deployment as the director has them.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn instances(&self, deployment: &str) -> Result<Vec<InstanceSummary>> {
        let path = format!("/deployments/{deployment}/instances");
        json("list instances", self.request(Method::GET, &path).await?).await
    }

    /// Instances of a deployment with what their agents say.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn instance_states(&self, deployment: &str) -> Result<Vec<InstanceState>> {
        let path = format!("/deployments/{deployment}/instances");
        let request = self
            .request(Method::GET, &path)
            .await?
            .query(&[("format", "full")]);
        let task = started("ask instances for their state", request).await?;
        self.follow(task, |_| {}).await?;
        let text = self.whole_output(task, OutputKind::Result).await?;
        text.lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| serde_json::from_str(line).map_err(|error| answer("list instance states", error)))
            .collect()
    }

    /// Variables of a deployment.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn variables(&self, deployment: &str) -> Result<Vec<Variable>> {
        let path = format!("/deployments/{deployment}/variables");
        json("list variables", self.request(Method::GET, &path).await?).await
    }

    /// Uploads a release; the answer is the task's number. One that is there already is skipped by the task.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn upload_release(&self, upload: Upload<'_>) -> Result<i64> {
        self.upload("/releases", "upload the release", upload).await
    }

    /// Uploads a stemcell; the answer is the task's number. One that is there already is skipped by the task.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn upload_stemcell(&self, upload: Upload<'_>) -> Result<i64> {
        self.upload("/stemcells", "upload the stemcell", upload).await
    }

    /// All releases.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn releases(&self) -> Result<Vec<Release>> {
        json("list releases", self.request(Method::GET, "/releases").await?).await
    }

    /// All stemcells.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stemcells(&self) -> Result<Vec<Stemcell>> {
        json("list stemcells", self.request(Method::GET, "/stemcells").await?).await
    }

    /// The newest configs of a type.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn configs(&self, kind: &str) -> Result<Vec<Config>> {
        let request = self
            .request(Method::GET, "/configs")
            .await?
            .query(&[("type", kind), ("latest", "true")]);
        json("list configs", request).await
    }

    /// Writes a config; the same content again changes nothing.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn update_config(&self, update: &ConfigUpdate) -> Result<Config> {
        json(
            "update the config",
            self.request(Method::POST, "/configs").await?.json(update),
        )
        .await
    }

    /// Deletes all versions of a config.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_config(&self, kind: &str, name: &str) -> Result<()> {
        let request = self
            .request(Method::DELETE, "/configs")
            .await?
            .query(&[("type", kind), ("name", name)]);
        checked("delete the config", request.send().await).await.map(drop)
    }

    /// Locks that are held.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn locks(&self) -> Result<Vec<Lock>> {
        json("list locks", self.request(Method::GET, "/locks").await?).await
    }

    /// What happened, newest first; with `after`, what happened since then, oldest first. Two hundred at most.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn events(&self, deployment: Option<&str>, after: Option<&str>) -> Result<Vec<PastEvent>> {
        let mut query = Vec::new();
        query.extend(deployment.map(|name| ("deployment", name)));
        query.extend(after.map(|id| ("after_id", id)));
        json(
            "list events",
            self.request(Method::GET, "/events").await?.query(&query),
        )
        .await
    }

    /// Machines that are not well.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn problems(&self) -> Result<Vec<MachineProblem>> {
        let request = self.request(Method::GET, "/health/problems").await?;
        json("list problems", request).await
    }

    /// Whether dead machines are made anew at all.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn resurrection(&self) -> Result<bool> {
        let request = self.request(Method::GET, "/resurrection").await?;
        let state: ResurrectionState = json("ask about resurrection", request).await?;
        Ok(state.resurrection)
    }

    /// Turns the making anew of dead machines on or off.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn set_resurrection(&self, on: bool) -> Result<()> {
        let update = ResurrectionUpdate {
            resurrection_paused: !on,
        };
        let request = self.request(Method::PUT, "/resurrection").await?.json(&update);
        checked("turn resurrection on or off", request.send().await)
            .await
            .map(drop)
    }

    /// One task.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn task(&self, id: i64) -> Result<Task> {
        json(
            "show the task",
            self.request(Method::GET, &format!("/tasks/{id}")).await?,
        )
        .await
    }

    /// The newest tasks, running ones only if `running`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn tasks(&self, filter: &TaskFilter<'_>) -> Result<Vec<Task>> {
        let mut query: Vec<(&str, String)> = vec![("verbose", "2".to_owned())];
        if !filter.states.is_empty() {
            let states: Vec<&str> = filter.states.iter().map(|state| state.as_str()).collect();
            query.push(("state", states.join(",")));
        }
        if let Some(deployment) = filter.deployment {
            query.push(("deployment", deployment.to_owned()));
        }
        if let Some(context) = filter.context {
            query.push(("context_id", context.to_owned()));
        }
        if let Some(limit) = filter.limit {
            query.push(("limit", limit.to_string()));
        }
        json(
            "list tasks",
            self.request(Method::GET, "/tasks").await?.query(&query),
        )
        .await
    }

    /// Asks a task to end early.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cancel_task(&self, id: i64) -> Result<()> {
        let request = self.request(Method::DELETE, &format!("/task/{id}")).await?;
        checked("cancel the task", request.send().await).await.map(drop)
    }

    /// Asks several tasks to end early.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cancel_tasks(&self, which: &CancelTasks) -> Result<()> {
        let request = self.request(Method::POST, "/tasks/cancel").await?.json(which);
        checked("cancel tasks", request.send().await).await.map(drop)
    }

    /// Output of a task from a byte on. With `wait`, the answer comes when there is something new, when the task has
    /// ended, or after that time.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn output(
        &self,
        id: i64,
        kind: OutputKind,
        from: u64,
        wait: Option<Duration>,
    ) -> Result<Output> {
        let what = "read the task's output";
        let mut request = self
            .request(Method::GET, &format!("/tasks/{id}/output"))
            .await?
            .query(&[("type", kind.as_str())])
            .header(header::RANGE, format!("bytes={from}-"));
        if let Some(wait) = wait {
            request = request.query(&[("wait_ms", wait.as_millis().to_string())]);
        }
        let response = match request.send().await {
            Ok(response) if response.status() == StatusCode::RANGE_NOT_SATISFIABLE => response,
            other => checked(what, other).await?,
        };
        let state = response
            .headers()
            .get(TASK_STATE_HEADER)
            .and_then(|value| value.to_str().ok())
            .and_then(|word| word.parse().ok());
        if matches!(
            response.status(),
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::NO_CONTENT
        ) {
            return Ok(Output {
                text: String::new(),
                next: from,
                state,
            });
        }
        let text = response.text().await.map_err(|source| Error::Unreachable {
            what: what.to_owned(),
            source,
        })?;
        let next = from.saturating_add(text.len() as u64);
        Ok(Output { text, next, state })
    }

    /// All output of one kind.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn whole_output(&self, id: i64, kind: OutputKind) -> Result<String> {
        Ok(self.output(id, kind, 0, None).await?.text)
    }

    /// Follows a task to its end and gives each event to `on_event`. A director that restarts meanwhile is waited for.
    ///
    /// # Errors
    /// [`Error::TaskFailed`] when it does not end as `done`; see [`Error`] for the rest.
    pub async fn follow(&self, id: i64, mut on_event: impl FnMut(&Event)) -> Result<Task> {
        let mut from = 0;
        let mut pending = String::new();
        let mut last_error = None;
        let mut silent_since: Option<std::time::Instant> = None;
        loop {
            let output = match self.output(id, OutputKind::Event, from, Some(FOLLOW_WAIT)).await {
                Err(error @ (Error::Unreachable { .. } | Error::Token(_))) => {
                    let since = silent_since.get_or_insert_with(std::time::Instant::now);
                    if since.elapsed() > FOLLOW_PATIENCE {
                        return Err(error);
                    }
                    tokio::time::sleep(FOLLOW_RETRY).await;
                    continue;
                }
                other => other?,
            };
            silent_since = None;
            from = output.next;
            pending.push_str(&output.text);
            while let Some(end) = pending.find('\n') {
                let line: String = pending.drain(..=end).collect();
                if let Ok(event) = serde_json::from_str::<Event>(&line) {
                    if let Some(error) = &event.error {
                        last_error = Some(error.clone());
                    }
                    on_event(&event);
                }
            }
            // Without our header the state has to be asked for, and output may have come between the two answers: the
            // state is asked first there by the next round.
            if output.state.is_some_and(TaskState::is_final)
                || (output.state.is_none() && output.text.is_empty())
            {
                let task = self.task(id).await?;
                if task.state == TaskState::Done {
                    return Ok(task);
                }
                if task.state.is_final() {
                    return Err(Error::TaskFailed {
                        task: Box::new(task),
                        error: last_error,
                    });
                }
                tokio::time::sleep(FOLLOW_RETRY).await;
            }
        }
    }

    async fn upload(&self, path: &str, what: &str, upload: Upload<'_>) -> Result<i64> {
        let request = self.request(Method::POST, path).await?;
        let request = match upload {
            Upload::Location(file) => request.json(&Remote {
                location: format!("file://{file}"),
                sha1: None,
            }),
            Upload::File(file) => {
                let failed = |source| Error::File {
                    path: file.to_owned(),
                    source,
                };
                let opened = tokio::fs::File::open(file).await.map_err(failed)?;
                let length = opened.metadata().await.map_err(failed)?.len();
                request
                    .header(header::CONTENT_TYPE, "application/x-compressed")
                    .header(header::CONTENT_LENGTH, length)
                    .body(reqwest::Body::from(opened))
            }
        };
        started(what, request).await
    }

    async fn request(&self, method: Method, path: &str) -> Result<RequestBuilder> {
        let token = self.tokens.token().await.map_err(Error::Token)?;
        let request = self
            .http
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(token.expose());
        Ok(match &self.context {
            Some(context) => request.header(CONTEXT_HEADER, context.as_ref()),
            None => request,
        })
    }
}

/// Which tasks to list.
#[derive(Clone, Copy, Debug, Default)]
pub struct TaskFilter<'a> {
    /// Only those started under this context.
    pub context: Option<&'a str>,
    /// Only in these states; empty: any.
    pub states: &'a [TaskState],
    /// Only of this deployment.
    pub deployment: Option<&'a str>,
    /// At most so many.
    pub limit: Option<u32>,
}

async fn checked(what: &str, sent: reqwest::Result<Response>) -> Result<Response> {
    let response = sent.map_err(|source| Error::Unreachable {
        what: what.to_owned(),
        source,
    })?;
    let status = response.status();
    if status.is_success() || status == StatusCode::FOUND {
        return Ok(response);
    }
    // BOSH answers 401 to those who are known and have no right, too. Ours says which of both it is.
    let challenges = response.headers().get_all(header::WWW_AUTHENTICATE).iter();
    let is_known = challenges
        .filter_map(|challenge| challenge.to_str().ok())
        .any(|challenge| challenge.contains("insufficient_scope"));
    let status = if is_known { StatusCode::FORBIDDEN } else { status };
    let text = response.text().await.unwrap_or_default();
    let body = serde_json::from_str(&text).unwrap_or_else(|_| ErrorBody {
        code: if status == StatusCode::UNAUTHORIZED {
            code::UNAUTHORIZED
        } else {
            code::GENERIC
        },
        description: match text.trim() {
            "" => status.to_string(),
            text => text.to_owned(),
        },
    });
    Err(Error::Refused {
        what: what.to_owned(),
        status: status.as_u16(),
        body,
    })
}

async fn json<T: DeserializeOwned>(what: &str, request: RequestBuilder) -> Result<T> {
    read(what, checked(what, request.send().await).await?).await
}

async fn read<T: DeserializeOwned>(what: &str, response: Response) -> Result<T> {
    let bytes = response.bytes().await.map_err(|source| Error::Unreachable {
        what: what.to_owned(),
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|error| answer(what, error))
}

fn answer(what: &str, error: impl fmt::Display) -> Error {
    Error::Answer {
        what: what.to_owned(),
        detail: error.to_string(),
    }
}

/// The number in `Location: /tasks/N`.
async fn started(what: &str, request: RequestBuilder) -> Result<i64> {
    let response = checked(what, request.send().await).await?;
    response
        .headers()
        .get(header::LOCATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|location| location.rsplit('/').next())
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| answer(what, "it names no task"))
}
