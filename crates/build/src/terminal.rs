//! Progress for people: one moving line for each thing being made where stderr is a terminal, else plain lines.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use stolos_build::{Event, Progress};

/// Plain lines about the same thing are at least this far apart.
const PAUSE: Duration = Duration::from_secs(15);

pub(crate) struct Terminal {
    bars: Option<MultiProgress>,
    running: Mutex<HashMap<String, Running>>,
}

struct Running {
    since: Instant,
    said: Instant,
    bar: Option<ProgressBar>,
}

impl Terminal {
    pub(crate) fn new() -> Self {
        Self {
            bars: std::io::stderr().is_terminal().then(MultiProgress::new),
            running: Mutex::new(HashMap::new()),
        }
    }

    fn line(&self, text: &str) {
        let told = match &self.bars {
            Some(bars) => bars.println(text),
            None => writeln!(std::io::stderr(), "{text}"),
        };
        // Progress that nobody can see is no reason to stop.
        drop(told);
    }

    fn begin(&self, what: &str, text: &str) {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new_spinner());
            let style = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_prefix(what.to_owned());
            bar.set_message(text.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        if bar.is_none() {
            self.line(&format!("{what}: {text}"));
        }
        let now = Instant::now();
        let running = Running {
            since: now,
            said: now,
            bar,
        };
        self.running().insert(what.to_owned(), running);
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, what: &str) {
        if let Some(Running { bar: Some(bar), .. }) = self.running().remove(what) {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Terminal {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Found { what } => self.end(what),
            Event::Waiting { what } => self.begin(what, "waiting for another process that makes it"),
            Event::Damaged { what, reason } => self.line(&format!(
                "{what}: damaged in the cache ({reason}), making it again"
            )),
            Event::Started { what } => {
                self.end(what);
                self.begin(what, "making it");
            }
            Event::Step { what, text } => {
                let line = {
                    let mut all = self.running();
                    let Some(running) = all.get_mut(*what) else { return };
                    match &running.bar {
                        Some(bar) => {
                            bar.set_message((*text).to_owned());
                            None
                        }
                        None if running.said.elapsed() >= PAUSE => {
                            running.said = Instant::now();
                            Some(format!("{what}: {} s, {text}", running.since.elapsed().as_secs()))
                        }
                        None => None,
                    }
                };
                if let Some(line) = line {
                    self.line(&line);
                }
            }
            Event::Made { what, took } => {
                self.end(what);
                self.line(&format!("{what}: made in {:.1} s", took.as_secs_f64()));
            }
        }
    }
}
