//! Pages of our own lists. A cursor is where the page before ended, in base64: clients give it back as it came.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// The most on a page: more would be felt by others who ask at the same time.
const MOST: u32 = 500;

/// How many to a page: what was asked for, else `usual`.
///
/// # Errors
/// [`Error::Request`] when it is no number from 1 to 500.
pub(super) fn limit(asked: Option<&str>, usual: u32) -> Result<u32> {
    let Some(text) = asked else { return Ok(usual) };
    let number = text.parse().ok().filter(|limit| (1..=MOST).contains(limit));
    number.ok_or_else(|| {
        let shown: String = text.chars().take(80).collect();
        Error::Request(format!(
            "`limit` is `{shown}`, which is no number from 1 to {MOST}"
        ))
    })
}

/// Where the page before ended; none on the first page.
///
/// # Errors
/// [`Error::Request`] for what no server gave.
pub(super) fn after<T: DeserializeOwned>(asked: Option<&str>) -> Result<Option<T>> {
    let Some(text) = asked else { return Ok(None) };
    let bytes = URL_SAFE_NO_PAD.decode(text).ok();
    let place = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    place.map(Some).ok_or_else(|| {
        Error::Request("`after` is no `next` of an earlier page; leave it out for the first one".to_owned())
    })
}

/// Takes one row more than the page holds off its rows, and gives the cursor if there was one.
pub(super) fn cut<R, T: Serialize>(rows: &mut Vec<R>, limit: u32, place: impl Fn(&R) -> T) -> Option<String> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    if rows.len() <= limit {
        return None;
    }
    rows.truncate(limit);
    let last = serde_json::to_vec(&place(rows.last()?)).expect("names and numbers are JSON");
    Some(URL_SAFE_NO_PAD.encode(last))
}
