//! Tracing set-up of our programs.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people at a terminal.
    Text,
    /// One JSON object a line, for services.
    Json,
}

/// Starts logging to stderr. `STOLOS_LOG` (an `EnvFilter` directive) overrides `default`. A second call does nothing.
pub fn start(format: Format, default: &str) {
    let filter = EnvFilter::try_from_env("STOLOS_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(BoxMakeWriter::new(std::io::stderr))
        // On a full disk it would say so on the same standard error, and end whoever was logging by a panic.
        .log_internal_errors(false)
        .with_target(true);
    let _ = match format {
        Format::Text => builder.with_ansi(false).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
}
