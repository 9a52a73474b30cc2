//! Where programs are.

use camino::Utf8PathBuf;

/// A program found on `PATH`.
#[must_use]
pub fn on_path(name: &str) -> Option<Utf8PathBuf> {
    let path = std::env::var("PATH").ok()?;
    path.split(':')
        .map(|dir| Utf8PathBuf::from(dir).join(name))
        .find(|candidate| candidate.is_file())
}

/// A program of this workspace, as `cargo build --workspace --bins` left it beside the running test.
///
/// # Panics
/// When the test does not run from a cargo target directory.
#[must_use]
pub fn ours(name: &str) -> Utf8PathBuf {
    let exe = std::env::current_exe().expect("the path of the test");
    let exe = Utf8PathBuf::try_from(exe).expect("a UTF-8 path");
    // target/TRIPLE/debug/deps/test-HASH → target/TRIPLE/debug
    let directory = exe
        .parent()
        .and_then(|deps| deps.parent())
        .expect("a target directory");
    directory.join(name)
}
