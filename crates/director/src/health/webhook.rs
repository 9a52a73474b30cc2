//! Alerts, told to a place of the operator's: one request for each event, in their order, at least once.
//!
//! What was told is kept in the database, so a restart repeats at most the one that was under way. One member of an installation does it at a time. A place
//! that does not answer gets the same one again later, and then what happened meanwhile; what is older than the director keeps is left out.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stolos_base::chain;
use stolos_store::duty;
use stolos_store::lease::{self, Fence};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::db::health::{self as rows, EventFilter, EventRow};
use crate::deps::Webhook;
use crate::error::{Error, Result};

/// The duty, and the setting that says which event was told last.
const DUTY: &str = "webhook";
const TOLD: &str = "webhook_told";
/// How often is looked for news.
const LOOK: Duration = Duration::from_secs(1);
/// Events read at once.
const AT_ONCE: i64 = 50;
/// How long the other side may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause after the first failure; twice as long after each further one, up to the other.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Tells alerts whenever that is this process's duty, until `stop` fires.
///
/// # Errors
/// [`Error::Request`] when the settings make no client.
pub(crate) fn start(app: &Arc<App>, webhook: Webhook, stop: CancellationToken) -> Result<()> {
    let mut client = reqwest::Client::builder().timeout(PATIENCE);
    if let Some(ca) = &webhook.ca {
        let ca = reqwest::Certificate::from_pem(ca.as_bytes());
        client = client.add_root_certificate(ca.map_err(unusable)?);
    }
    let (client, app) = (client.build().map_err(unusable)?, app.clone());
    stolos_base::task::spawn(stolos_base::task::Kind::Service, "webhook", async move {
        let (db, holder) = (app.db.clone(), app.config.holder.clone());
        let teller = Teller { app, client, webhook };
        duty::hold(db, DUTY, holder, stop, |fence| {
            teller.clone().tell_for_ever(fence)
        })
        .await;
        Ok::<(), std::convert::Infallible>(())
    });
    Ok(())
}

fn unusable(error: reqwest::Error) -> Error {
    Error::Request(format!(
        "the webhook for alerts cannot be used: {}",
        chain(&error)
    ))
}

#[derive(Clone)]
struct Teller {
    app: Arc<App>,
    client: reqwest::Client,
    webhook: Webhook,
}

impl Teller {
    async fn tell_for_ever(self, fence: Fence) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.tell_news(&fence).await {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    tokio::time::sleep(LOOK).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to tell an alert to the webhook; trying again in {} s", pause.as_secs());
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn tell_news(&self, fence: &Fence) -> Result<(), String> {
        let text = |error: Error| chain(&error);
        let told = rows::setting(&self.app.db, TOLD).await.map_err(text)?;
        let Some(told) = told.and_then(|told| told.parse::<i64>().ok()) else {
            // Nobody wants to be told what happened before there was anybody to tell.
            let newest = EventFilter {
                limit: 1,
                ..EventFilter::default()
            };
            let newest = rows::events(&self.app.db, &newest).await.map_err(text)?;
            let id = newest.first().map_or(0, |event| event.id);
            return self.told(fence, id).await.map_err(text);
        };
        let news = EventFilter {
            after_id: Some(told),
            limit: AT_ONCE,
            ..EventFilter::default()
        };
        for event in rows::events(&self.app.db, &news).await.map_err(text)? {
            if event.object_type == "alert" {
                self.post(&event).await?;
            }
            self.told(fence, event.id).await.map_err(text)?;
        }
        Ok(())
    }

    async fn post(&self, event: &EventRow) -> Result<(), String> {
        let mut request = self
            .client
            .post(&self.webhook.url)
            .json(&body(event, &self.app.config.name));
        if let Some(token) = &self.webhook.token {
            request = request.bearer_auth(token);
        }
        let answer = request
            .send()
            .await
            .map_err(|error| chain(&error.without_url()))?;
        let status = answer.status();
        if status.is_success() {
            Ok(())
        } else {
            Err(format!("it answered {status}"))
        }
    }

    async fn told(&self, fence: &Fence, id: i64) -> Result<()> {
        let mut tx = self.app.db.begin_background("note which alert was told").await?;
        lease::verify(&mut tx, fence).await?;
        rows::set_setting(&mut tx, TOLD, &id.to_string()).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// `text` is what chat programs show.
fn body(event: &EventRow, director: &str) -> Value {
    let at = jiff::Timestamp::from_millisecond(event.at).unwrap_or_default();
    let place = match (&event.deployment, &event.instance) {
        (Some(deployment), Some(instance)) => format!("{instance} of {deployment}: "),
        (Some(deployment), None) => format!("{deployment}: "),
        (None, _) => String::new(),
    };
    json!({
        "text": format!("{place}{}", event.message),
        "id": event.id,
        "at": at.to_string(),
        "director": director,
        "severity": event.severity,
        "kind": event.object_name,
        "deployment": event.deployment,
        "instance": event.instance,
        "task": event.task,
        "message": event.message,
    })
}
