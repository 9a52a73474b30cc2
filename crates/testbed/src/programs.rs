//! Where programs are.

use camino::{Utf8Path, Utf8PathBuf};

/// A program found on `PATH`.
#[must_use]
pub fn on_path(name: &str) -> Option<Utf8PathBuf> {
    let path = std::env::var("PATH").ok()?;
    path.split(':')
        .map(|dir| Utf8PathBuf::from(dir).join(name))
        .find(|candidate| candidate.is_file())
}

/// `nats-server`: `STOLOS_NATS_SERVER`, else the newest one in the cache of builds; or why there is none.
///
/// # Errors
/// Where it was looked for.
pub fn nats_server() -> Result<Utf8PathBuf, String> {
    if let Ok(path) = std::env::var("STOLOS_NATS_SERVER") {
        return Ok(path.into());
    }
    let cache = std::env::var("STOLOS_CACHE")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cache/stolos")))
        .map_err(|_| "neither STOLOS_NATS_SERVER nor STOLOS_CACHE nor HOME is set".to_owned())?;
    let mut found = Vec::new();
    search(Utf8Path::new(&cache), 6, &mut found);
    found
        .into_iter()
        .max_by_key(|path| {
            fs_err::metadata(path)
                .and_then(|metadata| metadata.modified())
                .ok()
        })
        .ok_or_else(|| format!("no nats-server below {cache}; run `stolos-build upstream nats-server`"))
}

fn search(directory: &Utf8Path, depth: u32, found: &mut Vec<Utf8PathBuf>) {
    use std::os::unix::fs::PermissionsExt as _;
    let Ok(entries) = directory.read_dir_utf8() else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(metadata) = fs_err::symlink_metadata(entry.path()) else {
            continue;
        };
        if metadata.is_dir() && depth > 0 {
            search(entry.path(), depth - 1, found);
        } else if metadata.is_file()
            && entry.file_name() == "nats-server"
            && metadata.permissions().mode() & 0o111 != 0
        {
            found.push(entry.path().to_owned());
        }
    }
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
