//! Metering: ours beside the foreign API.

use axum::extract::State;
use jiff::Timestamp;
use serde::Deserialize;
use stolos_api::pks;
use stolos_base::input::{Json, Query};

use super::{App, Failure};
use crate::authorize::{Caller, Right};
use crate::error::Error;
use crate::metering;

/// What is shown unless somebody says otherwise.
const USUAL_HOURS: i64 = 30 * 24;

#[derive(Debug, Deserialize)]
pub(super) struct Between {
    #[serde(default)]
    from: Option<String>,
    #[serde(default)]
    to: Option<String>,
}

pub(super) async fn report(
    State(app): State<App>,
    caller: Caller,
    Query(between): Query<Between>,
) -> Result<Json<Vec<pks::Metered>>, Failure> {
    caller.may(Right::Read)?;
    let now = app.desk().clock.now();
    let to = time("to", between.to.as_deref())?.unwrap_or(now).min(now);
    let from = match time("from", between.from.as_deref())? {
        Some(from) => from,
        None => to - jiff::SignedDuration::from_hours(USUAL_HOURS),
    };
    if from > to {
        return Err(Error::Request("`from` is later than `to`, or than now".to_owned()).into());
    }
    let whose = caller.own(Right::ReadAll);
    let (from, to) = (from.as_millisecond(), to.as_millisecond());
    Ok(Json(metering::report(&app.desk().db, whose, from, to).await?))
}

fn time(name: &str, text: Option<&str>) -> Result<Option<Timestamp>, Error> {
    let Some(text) = text else { return Ok(None) };
    text.parse().map(Some).map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        Error::Request(format!(
            "`{name}` is `{shown}`, which is no time such as 2026-11-01T00:00:00Z"
        ))
    })
}
