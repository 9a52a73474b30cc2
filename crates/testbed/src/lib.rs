//! The whole system in a test: the programs of this workspace on this host with a picture of it before and after, or an installation with
//! simulated machines ([`simulated`]), which needs nothing of the host.
//!
//! Tests that need root, namespaces or upstream programs ask [`cannot_run_machines`] and say why they skip.

pub mod host;
pub mod programs;
pub mod simulated;

use std::fmt::Display;

/// Why a test with real machines cannot run here; `None` when it can.
#[must_use]
pub fn cannot_run_machines() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    for program in ["runc", "nft", "mmdebstrap", "go"] {
        if programs::on_path(program).is_none() {
            return Some(format!("`{program}` is not installed"));
        }
    }
    if !camino::Utf8Path::new("/proc/self/ns/cgroup").exists() {
        return Some("the kernel has no cgroup namespaces".to_owned());
    }
    None
}

/// Something measured in passing, for whoever reads the output of a test. No test asserts a time.
#[expect(clippy::print_stderr, reason = "shown by the test runner")]
pub fn note(text: impl Display) {
    eprintln!("{text}");
}

/// Says on stderr that a test is skipped, and why.
#[expect(
    clippy::print_stderr,
    reason = "a skipped test has to say so where the test runner shows it"
)]
pub fn skip(test: &str, why: impl Display) {
    eprintln!("skipped: {test}: {why}");
}
