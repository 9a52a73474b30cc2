//! What a document may cost. The limits hold for every text that is read, whoever sent it.

/// Bytes of a text: a manifest with a group for each of ten thousand machines has fewer.
pub const TEXT: usize = 16 << 20;

/// Levels of lists and maps, aliases expanded. Kubernetes' deepest schemas have half of it, and JSON parsers, `serde_json`
/// among them, refuse more than 128.
pub const DEPTH: usize = 100;

/// Nodes of a document, aliases expanded.
pub const NODES: usize = 1_000_000;

/// Nodes that a short text may expand to: a document of a few kilobytes that makes more of itself is made to do so.
pub const EXPANDED: usize = 100_000;

/// A text may expand to this many times the nodes that are written, or to [`EXPANDED`], whichever is more.
pub const EXPANSION: usize = 10;

/// Bytes of all strings of a document, aliases expanded.
pub const STRINGS: usize = 4 * TEXT;

/// The longest value of a user that an error repeats, in characters.
pub(crate) const QUOTED: usize = 60;
