//! Packing logs for somebody who asks.

use std::io::{self, Read as _, Write};

use camino::Utf8Path;
use stolos_release::MultiDigest;
use stolos_release::digest::sha256_of;
use stolos_release::tarball::{Level, Packer};

use crate::error::{Error, Result};
use crate::paths::Paths;

/// Packs the logs of jobs (`job`) and of the agent (`agent`) into a file; an empty list of filters means all files. Gives
/// the file's digest.
pub(crate) fn pack(paths: &Paths, kinds: &str, filters: &[String], into: &Utf8Path) -> Result<MultiDigest> {
    let file = fs_err::File::create_new(into).map_err(Error::file("make", into))?;
    let mut packer = Packer::new(io::BufWriter::new(file), Level::Fast);
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
    let failed = Error::file("write", into);
    let written = packer.finish().and_then(|mut out| out.flush());
    written.map_err(failed)?;
    let file = fs_err::File::open(into).map_err(Error::file("open", into))?;
    let hex = sha256_of(file).map_err(Error::file("read", into))?;
    MultiDigest::from_sha256_hex(&hex).map_err(|source| Error::Install {
        what: "the logs".to_owned(),
        source: Box::new(source),
    })
}

fn add<W: Write>(
    packer: &mut Packer<W>,
    root: &Utf8Path,
    directory: &Utf8Path,
    filters: &[String],
) -> io::Result<()> {
    if !directory.is_dir() {
        return Ok(());
    }
    let mut entries: Vec<_> = directory.read_dir_utf8()?.collect::<io::Result<_>>()?;
    entries.sort_by(|a, b| a.path().cmp(b.path()));
    for entry in entries {
        let kind = entry.file_type()?;
        if kind.is_dir() {
            add(packer, root, entry.path(), filters)?;
        } else if kind.is_file() {
            let relative = entry.path().strip_prefix(root).unwrap_or(entry.path()).as_str();
            if filters.is_empty() || filters.iter().any(|filter| matches(filter, relative)) {
                // A file that grows meanwhile is cut at its present size, one that is rotated away is filled up.
                let file = fs_err::File::open(entry.path())?;
                let size = file.metadata()?.len();
                packer.file(relative, 0o640, size, file.chain(io::repeat(0)).take(size))?;
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
