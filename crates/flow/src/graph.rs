//! What is to be done: steps, their order and their limits. Pure.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::{StepContext, StepError};

/// How long a step may take with all its attempts, unless it says otherwise: nothing hangs for ever, and the longest
/// ordinary step (a machine whose stemcell has to be unpacked first) fits ten times over.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(600);

/// A graph of steps. Acyclic by construction: a step can only come after steps that were added before it.
#[derive(Default)]
pub struct Graph {
    pub(crate) steps: Vec<Spec>,
    pub(crate) groups: Vec<GroupSpec>,
    pub(crate) on_failure: OnFailure,
    /// The first mistake in the making of the graph; the flow fails with it before any step runs.
    pub(crate) mistake: Option<String>,
    index: HashMap<Arc<str>, usize>,
}

/// What one step's failure means to the steps that do not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// No further step begins, and none is attempted again; attempts that run end in their own time.
    #[default]
    Stop,
    /// All steps that do not depend on the failed one are still run.
    Continue,
}

/// A named limit for steps of one graph.
#[derive(Clone, Debug)]
pub struct Group {
    index: usize,
    name: Arc<str>,
}

pub(crate) struct GroupSpec {
    pub(crate) name: Arc<str>,
    pub(crate) limit: usize,
}

/// How failed attempts of a step are repeated. Only errors that say that they are retryable are.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// The first pause; each further one is twice as long.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
}

impl Default for Retry {
    /// Quick at first, because most transient errors are a service that is just starting.
    fn default() -> Self {
        Self {
            first: Duration::from_millis(200),
            longest: Duration::from_secs(5),
        }
    }
}

/// What happens to a running step when the flow is canceled, its process stops, or its deadline passes. A process can
/// die at any instant, so a step has to be repeatable whatever it says here; this is about being orderly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// It is dropped at its next await: for waiting and reading.
    Anytime,
    /// It sees [`StepContext::canceled`] and is given this long to return, then it is dropped.
    Within(Duration),
    /// It is left to end by itself; its deadline only ends the attempts, and only the end of our process cuts it off. For
    /// what another process does for us and cannot be told to stop.
    Never,
}

impl Default for Interrupt {
    fn default() -> Self {
        Self::Within(Duration::from_secs(10))
    }
}

/// A step that was added to a graph, with the type of its output.
pub struct StepRef<T> {
    name: Arc<str>,
    _output: PhantomData<fn() -> T>,
}

impl<T> StepRef<T> {
    /// The step's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl<T> Clone for StepRef<T> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            _output: PhantomData,
        }
    }
}

impl<T> AsRef<str> for StepRef<T> {
    fn as_ref(&self) -> &str {
        &self.name
    }
}

impl<T> std::fmt::Debug for StepRef<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StepRef({:?})", self.name)
    }
}

pub(crate) type Run =
    Arc<dyn Fn(StepContext) -> BoxFuture<'static, Result<serde_json::Value, StepError>> + Send + Sync>;
pub(crate) type SkipWhen =
    Arc<dyn Fn(StepContext) -> BoxFuture<'static, Result<Option<String>, StepError>> + Send + Sync>;

/// A step without the type of its output: what the executor works on.
pub(crate) struct Spec {
    pub(crate) name: Arc<str>,
    pub(crate) stage: Option<Arc<str>>,
    pub(crate) after: Vec<usize>,
    /// Group index and the key of the slot.
    pub(crate) slots: Vec<(usize, Arc<str>)>,
    pub(crate) retry: Retry,
    pub(crate) deadline: Duration,
    pub(crate) interrupt: Interrupt,
    pub(crate) skip: Option<String>,
    pub(crate) skip_when: Option<SkipWhen>,
    pub(crate) run: Run,
}

/// A step to be added to a graph.
pub struct Step<T> {
    name: Arc<str>,
    stage: Option<Arc<str>>,
    after: Vec<Arc<str>>,
    slots: Vec<(Group, Arc<str>)>,
    retry: Retry,
    deadline: Duration,
    interrupt: Interrupt,
    skip: Option<String>,
    skip_when: Option<SkipWhen>,
    run: Run,
    _output: PhantomData<fn() -> T>,
}

impl<T> Step<T>
where
    T: Serialize + DeserializeOwned + Send + 'static,
{
    /// A step under a name that a person reads as progress and that is unique in its graph ("Create VM worker/0").
    /// `run` is called once per attempt, maybe in several lives of the process; its output is journalled.
    pub fn new<F, Fut>(name: impl Into<String>, run: F) -> Self
    where
        F: Fn(StepContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<T, StepError>> + Send + 'static,
    {
        let run: Run = Arc::new(move |ctx| {
            let attempt = run(ctx);
            Box::pin(async move {
                let output = attempt.await?;
                serde_json::to_value(&output).map_err(|error| {
                    StepError::internal(format!("failed to write the step's output: {error}"))
                })
            })
        });
        Self {
            name: name.into().into(),
            stage: None,
            after: Vec::new(),
            slots: Vec::new(),
            retry: Retry::default(),
            deadline: DEFAULT_DEADLINE,
            interrupt: Interrupt::default(),
            skip: None,
            skip_when: None,
            run,
            _output: PhantomData,
        }
    }

    /// Begins only when `step` is done or skipped. Takes a [`StepRef`] or the name of a step added before.
    #[must_use]
    pub fn after(mut self, step: &(impl AsRef<str> + ?Sized)) -> Self {
        self.after.push(step.as_ref().into());
        self
    }

    /// Begins only when all of them are done or skipped.
    #[must_use]
    pub fn after_all<S: AsRef<str>>(mut self, steps: impl IntoIterator<Item = S>) -> Self {
        self.after
            .extend(steps.into_iter().map(|step| step.as_ref().into()));
        self
    }

    /// Takes a place of the group while it runs.
    #[must_use]
    pub fn within(self, group: &Group) -> Self {
        let key = self.name.clone();
        self.within_slot(group, &key)
    }

    /// Shares a place of the group with all steps of the same `key` ("worker/0"): it is taken when the first of them
    /// begins and given back when the last has ended, so that a limit holds for chains of steps.
    #[must_use]
    pub fn within_slot(mut self, group: &Group, key: &str) -> Self {
        self.slots.push((group.clone(), key.into()));
        self
    }

    /// A heading that several steps share ("Creating missing vms"); only shown.
    #[must_use]
    pub fn stage(mut self, stage: &str) -> Self {
        self.stage = Some(stage.into());
        self
    }

    /// How failed attempts are repeated.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// How long the step may take with all its attempts, from its beginning in this life of the process.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How the step can be interrupted.
    #[must_use]
    pub fn interrupt(mut self, interrupt: Interrupt) -> Self {
        self.interrupt = interrupt;
        self
    }

    /// Does not run the step when there is a reason not to, known from the input.
    #[must_use]
    pub fn skip_if(mut self, reason: Option<impl Into<String>>) -> Self {
        self.skip = reason.map(Into::into);
        self
    }

    /// Asks right before the step would run whether there is a reason not to.
    #[must_use]
    pub fn skip_when<F, Fut>(mut self, reason: F) -> Self
    where
        F: Fn(StepContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<String>, StepError>> + Send + 'static,
    {
        self.skip_when = Some(Arc::new(move |ctx| Box::pin(reason(ctx))));
        self
    }
}

impl Graph {
    /// An empty graph.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A limit of at least one.
    pub fn group(&mut self, name: &str, limit: usize) -> Group {
        let group = Group {
            index: self.groups.len(),
            name: name.into(),
        };
        self.groups.push(GroupSpec {
            name: group.name.clone(),
            limit: limit.max(1),
        });
        group
    }

    /// What a failed step means to the others; [`OnFailure::Stop`] unless said.
    pub fn on_failure(&mut self, on_failure: OnFailure) {
        self.on_failure = on_failure;
    }

    /// Adds a step. A name that is there already, or an order after a step that is not there yet, is a bug with which
    /// the flow fails before any step runs.
    pub fn add<T>(&mut self, step: Step<T>) -> StepRef<T> {
        let name = step.name.clone();
        let mut after = Vec::with_capacity(step.after.len());
        for earlier in &step.after {
            match self.index.get(earlier) {
                Some(&index) => after.push(index),
                None => self.wrong(format!(
                    "step `{name}` comes after step `{earlier}`, which was not added before it"
                )),
            }
        }
        after.sort_unstable();
        after.dedup();
        let mut slots = Vec::with_capacity(step.slots.len());
        for (group, key) in step.slots {
            if self
                .groups
                .get(group.index)
                .is_some_and(|spec| spec.name == group.name)
            {
                slots.push((group.index, key));
            } else {
                self.wrong(format!(
                    "step `{name}` is in group `{}` of another graph",
                    group.name
                ));
            }
        }
        if self.index.insert(name.clone(), self.steps.len()).is_some() {
            self.wrong(format!("step `{name}` is there twice"));
        }
        self.steps.push(Spec {
            name: name.clone(),
            stage: step.stage,
            after,
            slots,
            retry: step.retry,
            deadline: step.deadline,
            interrupt: step.interrupt,
            skip: step.skip,
            skip_when: step.skip_when,
            run: step.run,
        });
        StepRef {
            name,
            _output: PhantomData,
        }
    }

    /// The names of the steps in the order of adding.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().map(|step| &*step.name)
    }

    /// The names of the steps that `name` directly comes after; for tests of graphs.
    #[must_use]
    pub fn order(&self, name: &str) -> Vec<&str> {
        let Some(&index) = self.index.get(name) else {
            return Vec::new();
        };
        self.steps[index]
            .after
            .iter()
            .map(|&i| &*self.steps[i].name)
            .collect()
    }

    fn wrong(&mut self, mistake: String) {
        self.mistake.get_or_insert(mistake);
    }
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}
