//! Following an operation or a director task to its end.
//!
//! A terminal gets a line per step with a running clock; a file gets a line when a step ends. Ctrl-C ends the following,
//! not the operation, and says how to follow again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Lines of named steps.
pub(crate) struct Steps {
    bars: MultiProgress,
    live: bool,
    shown: BTreeMap<String, (ProgressBar, Shown)>,
    start: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Running,
    Ended,
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
        let target = if live {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            bars: MultiProgress::with_draw_target(target),
            live,
            shown: BTreeMap::new(),
            start: Instant::now(),
        }
    }

    /// Shows a step. `elapsed` is what the server says, when it knows better than we do.
    pub(crate) fn show(&mut self, name: &str, state: State, detail: Option<&str>, elapsed: Option<Duration>) {
        let bars = &self.bars;
        let live = self.live;
        let (bar, shown) = self.shown.entry(name.to_owned()).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new_spinner());
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} {elapsed:.dim}") {
                bar.set_style(style);
            }
            if live {
                bar.enable_steady_tick(Duration::from_millis(120));
            }
            (bar, Shown::Running)
        });
        if *shown == Shown::Ended {
            return;
        }
        let suffix = detail.map(|text| format!(": {text}")).unwrap_or_default();
        if state == State::Running {
            bar.set_message(format!("{name}{suffix}"));
            return;
        }
        *shown = Shown::Ended;
        let took = elapsed.unwrap_or_else(|| bar.elapsed());
        let line = match state {
            State::Done => format!("  done     {name} ({:.1} s)", took.as_secs_f64()),
            State::Skipped => format!("  skipped  {name}{suffix}"),
            State::Failed | State::Running => format!("  failed   {name}{suffix}"),
        };
        bar.finish_and_clear();
        if live {
            let _ = self.bars.println(line);
        } else {
            crate::output::note(&line);
        }
    }

    /// Time since the first line.
    #[must_use]
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}
