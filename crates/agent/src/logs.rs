//! Packing logs for somebody who asks.

use std::io;

use camino::Utf8Path;
use stolos_release::tarball::{Level, Packer};

use crate::error::{Error, Result};
use crate::paths::Paths;

/// Packs the logs of jobs (`job`) and of the agent (`agent`); an empty list of filters means all files.
pub(crate) fn pack(paths: &Paths, kinds: &str, filters: &[String]) -> Result<Vec<u8>> {
    let mut packer = Packer::new(Vec::new(), Level::Fast);
    for kind in kinds.split(',').map(str::trim) {
        let root = match kind {
            "job" => paths.log(),
            "agent" => paths.agent_log(),
            // Machines have no system logs of their own: the host's are nobody's business here.
            "system" => continue,
            other => return Err(Error::Refused(format!("there are no logs of kind `{other}`"))),
        };
        add(&mut packer, &root, &root, filters).map_err(Error::file("pack", root))?;
    }
    packer.finish().map_err(Error::file("pack", paths.log()))
}

fn add(packer: &mut Packer<Vec<u8>>, root: &Utf8Path, directory: &Utf8Path, filters: &[String]) -> io::Result<()> {
    if !directory.is_dir() {
        return Ok(());
    }
    for entry in directory.read_dir_utf8()? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            add(packer, root, entry.path(), filters)?;
        } else if kind.is_file() {
            let relative = entry.path().strip_prefix(root).unwrap_or(entry.path()).as_str();
            if filters.is_empty() || filters.iter().any(|filter| matches(filter, relative)) {
                // Read whole: a file that grows meanwhile must not change its announced size.
                packer.bytes(relative, 0o640, &fs_err::read(entry.path())?)?;
            }
        }
    }
    Ok(())
}

/// BOSH's globs: `*` within a component, `**` over components, `?` one character.
fn matches(pattern: &str, text: &str) -> bool {
    fn go(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            ([b'*', b'*', b'/', rest @ ..], _) if go(rest, text) => true,
            ([b'*', b'*', rest @ ..], _) => (0..=text.len()).any(|skip| go(rest, &text[skip..])),
            ([b'*', rest @ ..], _) => {
                let end = text.iter().position(|byte| *byte == b'/').unwrap_or(text.len());
                (0..=end).any(|skip| go(rest, &text[skip..]))
            }
            ([b'?', rest @ ..], [byte, tail @ ..]) => *byte != b'/' && go(rest, tail),
            ([a, rest @ ..], [b, tail @ ..]) => a == b && go(rest, tail),
            _ => false,
        }
    }
    go(pattern.as_bytes(), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_are_boshs() {
        for (pattern, text, expected) in [
            ("**/*", "etcd/etcd.stderr.log", true),
            ("**/*", "top.log", true),
            ("*.log", "top.log", true),
            ("*.log", "etcd/x.log", false),
            ("**/*.stderr.log", "etcd/etcd.stderr.log", true),
            ("etcd/?tcd.*", "etcd/etcd.stdout.log", true),
            ("kubelet/**", "etcd/etcd.stdout.log", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
