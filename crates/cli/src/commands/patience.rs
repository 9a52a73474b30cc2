//! Asking the server for news for as long as something goes on there.

use std::time::Duration;

use stolos_api::Error;
use stolos_api::pks::Client;
use stolos_base::{Class, Classify as _};

use super::login::pks_client;
use crate::failure::Failure;

/// How long the server may hold an answer back while nothing happens.
pub(crate) const WAIT: Duration = Duration::from_secs(20);
/// How often an unreachable server is asked again, and how long: `stolosd` may be restarting.
const AGAIN: Duration = Duration::from_millis(500);
const GIVE_UP_AFTER: u32 = 60;

/// A client that outlives restarts of the server and the end of its token.
pub(crate) struct Patience(Client);

impl Patience {
    pub(crate) fn new(client: &Client) -> Self {
        Self(client.clone())
    }

    /// Asks until there is an answer.
    ///
    /// # Errors
    /// What the server refuses, or that it did not come back.
    pub(crate) async fn ask<T>(
        &mut self,
        question: impl AsyncFn(&Client) -> Result<T, Error>,
    ) -> Result<T, Failure> {
        let mut attempts = 0;
        loop {
            match question(&self.0).await {
                Err(error) if error.retryable() && attempts < GIVE_UP_AFTER => {
                    tokio::time::sleep(AGAIN).await;
                }
                // The token has ended while we waited: a create can take longer than ten minutes on a slow host.
                Err(error) if error.class() == Class::Unauthenticated && attempts < GIVE_UP_AFTER => {
                    self.0 = pks_client().await?;
                }
                answer => return answer.map_err(|error| Failure::of_api(&error)),
            }
            attempts += 1;
        }
    }
}
