//! Following an operation or a director task to its end.
//!
//! A terminal gets a line per step with a running clock. A file gets a line when a step ends, and meanwhile one whenever it waits on
//! something else, though not more often than every [`QUIET`], and one every [`HEARTBEAT`] when it goes on waiting. Ctrl-C ends
//! the following, not the operation, and says how to follow again.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use stolos_base::text;

/// A step that is shorter than this says nothing before its end, and no step says more often what it waits on.
const QUIET: Duration = Duration::from_secs(3);
/// A log whose last line is older looks like that of a command that hangs.
const HEARTBEAT: Duration = Duration::from_secs(30);
/// How often it is looked whether there is something to say.
const TICK: Duration = Duration::from_millis(500);

/// Lines of named steps.
pub(crate) struct Steps {
    bars: MultiProgress,
    live: bool,
    shown: BTreeMap<String, Shown>,
    start: Instant,
}

struct Shown {
    bar: ProgressBar,
    ended: bool,
    since: Instant,
    /// What it waits on, and what was last said of that, when.
    detail: String,
    told: String,
    told_at: Instant,
}

/// How a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// At work.
    Running,
    /// Ended well.
    Done,
    /// Nothing was to be done.
    Skipped,
    /// Ended badly.
    Failed,
}

impl Steps {
    /// Draws on stderr; plain lines unless it is a terminal.
    #[must_use]
    pub(crate) fn new() -> Self {
        let live = std::io::IsTerminal::is_terminal(&std::io::stderr());
        Self::drawn(live, Instant::now())
    }

    fn drawn(live: bool, start: Instant) -> Self {
        let target = if live {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            bars: MultiProgress::with_draw_target(target),
            live,
            shown: BTreeMap::new(),
            start,
        }
    }

    /// Shows a step. `elapsed` is what the server says, when it knows better than we do.
    pub(crate) fn show(&mut self, name: &str, state: State, detail: Option<&str>, elapsed: Option<Duration>) {
        let (name, detail) = (text::line(name), detail.map(text::line));
        let line = self.step(&name, state, detail.as_deref(), elapsed, Instant::now());
        if let Some(line) = line {
            self.print(&line);
        }
    }

    /// Says what steps are waiting on, where that is due.
    fn tick(&mut self) {
        for line in self.due(Instant::now()) {
            self.print(&line);
        }
    }

    fn print(&self, line: &str) {
        if self.live {
            // Nobody can be told that a terminal is gone.
            let _ = self.bars.println(line);
        } else {
            crate::output::note(line);
        }
    }

    /// Notes how a step stands; the line of one that has just ended.
    fn step(
        &mut self,
        name: &str,
        state: State,
        detail: Option<&str>,
        elapsed: Option<Duration>,
        now: Instant,
    ) -> Option<String> {
        let (bars, live) = (&self.bars, self.live);
        let shown = self.shown.entry(name.to_owned()).or_insert_with(|| Shown {
            bar: bar(bars, live),
            ended: false,
            since: elapsed
                .and_then(|elapsed| now.checked_sub(elapsed))
                .unwrap_or(now),
            detail: String::new(),
            told: String::new(),
            told_at: now,
        });
        if shown.ended {
            return None;
        }
        let suffix = detail.map(|text| format!(": {text}")).unwrap_or_default();
        if state == State::Running {
            shown.bar.set_message(format!("{name}{suffix}"));
            shown.detail = detail.unwrap_or_default().to_owned();
            return None;
        }
        shown.ended = true;
        shown.bar.finish_and_clear();
        let took = elapsed.unwrap_or_else(|| now.saturating_duration_since(shown.since));
        Some(match state {
            State::Done => format!("  done     {name} ({:.1} s)", took.as_secs_f64()),
            State::Skipped => format!("  skipped  {name}{suffix}"),
            State::Failed | State::Running => format!("  failed   {name}{suffix}"),
        })
    }

    /// The lines of steps that wait on something else than was last said, or have said nothing for long. A terminal shows all that anyway.
    fn due(&mut self, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        if self.live {
            return lines;
        }
        for (name, step) in self.shown.iter_mut().filter(|(_, step)| !step.ended) {
            let silent = now.saturating_duration_since(step.told_at);
            let is_news = step.detail != step.told && !step.detail.is_empty();
            if silent < QUIET || (!is_news && silent < HEARTBEAT) {
                continue;
            }
            let suffix = if step.detail.is_empty() {
                String::new()
            } else {
                format!(": {}", step.detail)
            };
            let since = now.saturating_duration_since(step.since).as_secs();
            lines.push(format!("  running  {name}{suffix} ({since} s)"));
            step.told.clone_from(&step.detail);
            step.told_at = now;
        }
        lines
    }

    /// Time since the first line.
    #[must_use]
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Waits for an answer of the server, and says meanwhile what steps are waiting on.
pub(crate) async fn meanwhile<T>(steps: &Mutex<Steps>, answer: impl Future<Output = T>) -> T {
    let mut answer = std::pin::pin!(answer);
    loop {
        tokio::select! {
            answer = &mut answer => return answer,
            () = tokio::time::sleep(TICK) => steps.lock().unwrap_or_else(PoisonError::into_inner).tick(),
        }
    }
}

fn bar(bars: &MultiProgress, live: bool) -> ProgressBar {
    let bar = bars.add(ProgressBar::new_spinner());
    if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} {elapsed:.dim}") {
        bar.set_style(style);
    }
    if live {
        bar.enable_steady_tick(Duration::from_millis(120));
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Deploy machines (100.4 s)` was all that a log said, after nodes had been drained for a minute and a half.
    #[test]
    fn a_log_says_what_a_long_step_waits_on() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut steps = Steps::drawn(false, start);
        let mut said = Vec::new();
        let running: [(u64, &str, Option<&str>); 8] = [
            (0, "Lease network", None),
            (0, "Deploy machines", Some("worker/0: draining")),
            (
                1,
                "Deploy machines",
                Some("worker/0: draining, default/web is left"),
            ),
            (
                4,
                "Deploy machines",
                Some("worker/0: draining, default/web is left"),
            ),
            (5, "Deploy machines", Some("worker/1: draining")),
            (20, "Deploy machines", Some("worker/1: draining")),
            (40, "Deploy machines", Some("worker/1: draining")),
            (69, "Deploy machines", Some("worker/1: draining")),
        ];
        for (second, name, detail) in running {
            said.extend(steps.step(name, State::Running, detail, None, at(second)));
            if second == 1 {
                said.extend(steps.step("Lease network", State::Done, None, None, at(second)));
            }
            said.extend(steps.due(at(second)));
        }
        said.extend(steps.step("Deploy machines", State::Done, None, None, at(71)));
        said.extend(steps.due(at(200)));
        assert_eq!(
            said,
            [
                "  done     Lease network (1.0 s)",
                "  running  Deploy machines: worker/0: draining, default/web is left (4 s)",
                "  running  Deploy machines: worker/1: draining (20 s)",
                "  running  Deploy machines: worker/1: draining (69 s)",
                "  done     Deploy machines (71.0 s)",
            ]
        );
    }
}
