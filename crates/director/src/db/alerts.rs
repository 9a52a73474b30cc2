//! Alerts of agents as they are counted, and the events that tell of them.

use stolos_store::{AnyRow, Tx, query};

use super::health::{self, EventRow};
use super::{from_json, get, to_json};
use crate::error::Result;
use crate::health::alerts::{Arrived, Standing, count};

/// Subjects that are kept for each source; those that were silent longest are forgotten.
const SUBJECTS: i64 = 64;
/// Events that one source may cause in an hour. What is more is counted and not told.
const TOLD_AT_MOST: i64 = 20;
const HOUR_MILLIS: i64 = 3_600_000;

/// Where an alert comes from.
pub(crate) struct Origin<'a> {
    pub(crate) deployment: &'a str,
    /// `GROUP/ID`.
    pub(crate) instance: &'a str,
}

/// Counts an alert, and tells of it if that is due. Gives the event that was written.
pub(crate) async fn note(tx: &mut Tx, from: &Origin<'_>, arrived: &Arrived) -> Result<Option<EventRow>> {
    let now = tx.now_millis();
    // Written first, so that of two members the second one waits here and then sees what the first one counted.
    query(
        "INSERT INTO alerts (source, subject, times, first_at, last_at, told, next_at, severity, is_open, recent)
         VALUES ($1, $2, 0, 0, 0, 0, 0, 0, 0, '[]') ON CONFLICT (source, subject) DO UPDATE SET source = excluded.source",
    )
    .bind(from.instance)
    .bind(&arrived.subject)
    .execute(tx.conn())
    .await?;
    let row = query(
        "SELECT times, first_at, last_at, told, next_at, severity, is_open, recent FROM alerts
         WHERE source = $1 AND subject = $2",
    )
    .bind(from.instance)
    .bind(&arrived.subject)
    .fetch_one(tx.conn())
    .await?;
    let Some((standing, text)) = count(Some(standing(&row)?), arrived, now) else {
        return Ok(None);
    };
    keep(tx, from, &arrived.subject, &standing).await?;
    let Some(message) = text else { return Ok(None) };
    let told = query("SELECT COUNT(*) AS told FROM events WHERE source = $1 AND at > $2")
        .bind(from.instance)
        .bind(now - HOUR_MILLIS)
        .fetch_one(tx.conn())
        .await?;
    let told: i64 = get(&told, "told")?;
    if told > TOLD_AT_MOST {
        return Ok(None);
    }
    let message = if told == TOLD_AT_MOST {
        format!(
            "it has told of {told} things within an hour; what it says for a while is counted and not told"
        )
    } else {
        message
    };
    // What a job says of itself is `JOB: KIND`, a process is `JOB/PROCESS`.
    let kind = if arrived.subject.contains(": ") {
        "job"
    } else {
        "process"
    };
    let event = EventRow {
        severity: arrived.severity,
        message,
        deployment: Some(from.deployment.to_owned()),
        instance: Some(from.instance.to_owned()),
        source: Some(from.instance.to_owned()),
        ..EventRow::alert(kind)
    };
    health::insert_event(tx, &event).await?;
    Ok(Some(event))
}

async fn keep(tx: &mut Tx, from: &Origin<'_>, subject: &str, standing: &Standing) -> Result<()> {
    query(
        "UPDATE alerts SET times = $3, first_at = $4, last_at = $5, told = $6, next_at = $7, severity = $8, is_open = $9, recent = $10
         WHERE source = $1 AND subject = $2",
    )
    .bind(from.instance)
    .bind(subject)
    .bind(standing.times)
    .bind(standing.first_at)
    .bind(standing.last_at)
    .bind(standing.told)
    .bind(standing.next_at)
    .bind(standing.severity)
    .bind(i64::from(standing.is_open))
    .bind(to_json(&standing.recent)?)
    .execute(tx.conn())
    .await?;
    query(
        "DELETE FROM alerts WHERE source = $1 AND subject NOT IN
         (SELECT subject FROM alerts WHERE source = $1 ORDER BY last_at DESC LIMIT $2)",
    )
    .bind(from.instance)
    .bind(SUBJECTS)
    .execute(tx.conn())
    .await?;
    Ok(())
}

/// Forgets what was silent since a time, in milliseconds since the Unix epoch.
pub(crate) async fn forget(tx: &mut Tx, before: i64) -> Result<()> {
    query("DELETE FROM alerts WHERE last_at < $1")
        .bind(before)
        .execute(tx.conn())
        .await?;
    Ok(())
}

fn standing(row: &AnyRow) -> Result<Standing> {
    Ok(Standing {
        times: get(row, "times")?,
        first_at: get(row, "first_at")?,
        last_at: get(row, "last_at")?,
        told: get(row, "told")?,
        next_at: get(row, "next_at")?,
        severity: get(row, "severity")?,
        is_open: get::<i64>(row, "is_open")? != 0,
        recent: from_json("recent", &get::<String>(row, "recent")?)?,
    })
}
