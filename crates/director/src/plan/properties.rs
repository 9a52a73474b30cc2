//! Properties by dotted name.

use serde_json::Value;

/// The value at a dotted name; `None` when a part is missing.
#[must_use]
pub fn lookup<'v>(properties: &'v Value, dotted: &str) -> Option<&'v Value> {
    dotted.split('.').try_fold(properties, |value, key| value.get(key))
}
