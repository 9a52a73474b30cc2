//! Fingerprints as the BOSH CLI computes them (`release/resource/fingerprint.go` of bosh-cli, version 2 of the scheme,
//! with SHA-256). A director treats them as opaque.

use crate::digest::Algorithm;

/// What a path of a job or package is.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// A file and whether any execute bit is set.
    File {
        /// Its bytes.
        bytes: &'a [u8],
        /// Whether any execute bit is set.
        executable: bool,
    },
    /// A file whose mode does not count: the `packaging` hooks.
    Hook(&'a [u8]),
    /// A symbolic link with its target.
    Symlink(&'a str),
}

/// The fingerprint of files with additional chunks (names of the packages that a package depends on).
///
/// Each item is the relative path that it is sorted by, the name that counts (jobs and licences use the base name) and
/// the content.
#[must_use]
pub fn fingerprint<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a str, Content<'a>)>,
    chunks: impl IntoIterator<Item = &'a str>,
) -> String {
    let mut files: Vec<_> = files.into_iter().collect();
    files.sort_by_key(|(path, _, _)| *path);
    let mut text = "v2".to_owned();
    for (_, name, content) in files {
        text.push_str(name);
        let (bytes, mode) = match content {
            Content::File { bytes, executable } => (bytes, if executable { "100755" } else { "100644" }),
            Content::Hook(bytes) => (bytes, ""),
            Content::Symlink(target) => (target.as_bytes(), "symlink"),
        };
        text.push_str("sha256:");
        text.push_str(&Algorithm::Sha256.hex(bytes));
        text.push_str(mode);
    }
    let mut chunks: Vec<&str> = chunks.into_iter().collect();
    chunks.sort_unstable();
    text.push_str(&chunks.join(","));
    Algorithm::Sha256.hex(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_is_that_of_the_bosh_cli() {
        // Put together by hand from the description of the scheme: two files given out of order, one hook, two chunks.
        let a = Algorithm::Sha256.hex(b"A");
        let b = Algorithm::Sha256.hex(b"B");
        let hook = Algorithm::Sha256.hex(b"make");
        let expected = format!("v2a/xsha256:{a}100755b/ysha256:{b}symlinkpackagingsha256:{hook}dep1,dep2");
        let found = fingerprint(
            [
                ("packaging", "packaging", Content::Hook(b"make")),
                ("b/y", "b/y", Content::Symlink("B")),
                (
                    "a/x",
                    "a/x",
                    Content::File {
                        bytes: b"A",
                        executable: true,
                    },
                ),
            ],
            ["dep2", "dep1"],
        );
        assert_eq!(found, Algorithm::Sha256.hex(expected.as_bytes()));
        assert_eq!(found.len(), 64);
    }
}
