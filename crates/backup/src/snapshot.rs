//! What a snapshot of etcd's database looks like from outside: a bolt file, and behind it its SHA-256, which etcd itself
//! computed and `etcdutl` asks for when it restores. Pure.

use aws_lc_rs::digest;

/// The digest that etcd writes behind its database.
const TRAILER: usize = 32;
/// Where bolt's first meta page says what it is, behind the page's head.
const MAGIC_AT: usize = 16;
const MAGIC: [u8; 4] = 0xED0C_DAED_u32.to_le_bytes();
/// Two meta pages, a list of free pages and one of data; etcd's own database has more.
const SMALLEST: u64 = 4 * 4096;

/// Looks at a snapshot as it passes.
pub(crate) struct Check {
    /// Of everything.
    all: digest::Context,
    /// Of everything but the last bytes, which may be the trailer.
    database: digest::Context,
    head: Vec<u8>,
    tail: Vec<u8>,
    size: u64,
}

/// A snapshot that is what etcd gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Bytes, trailer included.
    pub(crate) size: u64,
    /// SHA-256 of all of them, in hex.
    pub(crate) sha256: String,
}

impl Check {
    pub(crate) fn new() -> Self {
        Self {
            all: digest::Context::new(&digest::SHA256),
            database: digest::Context::new(&digest::SHA256),
            head: Vec::with_capacity(MAGIC_AT + MAGIC.len()),
            tail: Vec::new(),
            size: 0,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.all.update(bytes);
        self.size += bytes.len() as u64;
        let missing = (MAGIC_AT + MAGIC.len()).saturating_sub(self.head.len());
        self.head.extend_from_slice(&bytes[..missing.min(bytes.len())]);
        self.tail.extend_from_slice(bytes);
        let surplus = self.tail.len().saturating_sub(TRAILER);
        self.database.update(&self.tail[..surplus]);
        self.tail.drain(..surplus);
    }

    /// The error says what is wrong.
    pub(crate) fn finish(self) -> Result<Checked, String> {
        if self.size < SMALLEST + TRAILER as u64 {
            return Err(format!(
                "it has {} bytes, fewer than an empty database",
                self.size
            ));
        }
        if self.head[MAGIC_AT..] != MAGIC {
            return Err("it is no database of etcd".to_owned());
        }
        if self.database.finish().as_ref() != self.tail.as_slice() {
            return Err("it does not end with its digest: it is cut off or damaged".to_owned());
        }
        Ok(Checked {
            size: self.size,
            sha256: hex::encode(self.all.finish()),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Bytes that pass for a snapshot.
    pub(crate) fn snapshot(pages: usize, fill: u8) -> Vec<u8> {
        let mut bytes = vec![fill; pages * 4096];
        bytes[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(&MAGIC);
        let trailer = digest::digest(&digest::SHA256, &bytes);
        bytes.extend_from_slice(trailer.as_ref());
        bytes
    }

    fn check(bytes: &[u8], piece: usize) -> Result<Checked, String> {
        let mut check = Check::new();
        bytes.chunks(piece).for_each(|piece| check.update(piece));
        check.finish()
    }

    #[test]
    fn a_snapshot_passes_in_any_pieces_and_nothing_else_does() {
        let good = snapshot(5, 7);
        for piece in [1, 7, 31, 32, 33, 4096, good.len()] {
            let checked = check(&good, piece).expect("good");
            assert_eq!(checked.size, good.len() as u64);
            assert_eq!(
                checked.sha256,
                hex::encode(digest::digest(&digest::SHA256, &good))
            );
        }
        for (bad, words) in [
            (good[..good.len() - 1].to_vec(), "cut off"),
            (good[..5 * 4096].to_vec(), "cut off"),
            (good[..100].to_vec(), "fewer than"),
            (Vec::new(), "fewer than"),
            (vec![0; 40_000], "no database"),
        ] {
            let error = check(&bad, 4096).expect_err(words);
            assert!(error.contains(words), "{error}");
        }
        let mut changed = good;
        changed[9000] ^= 1;
        assert!(check(&changed, 4096).expect_err("changed").contains("damaged"));
    }
}
