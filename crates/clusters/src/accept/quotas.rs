//! Accepting quotas.

use stolos_api::pks::{Quota, QuotaChange};

use super::Desk;
use crate::authorize::{Caller, Right};
use crate::error::{Error, Result};
use crate::quotas;

impl Desk {
    /// Makes a quota.
    pub(crate) async fn create_quota(&self, caller: &Caller, quota: &Quota) -> Result<Quota> {
        caller.may(Right::Quotas)?;
        let limits = quotas::check(&quota.owner, &quota.limit)?;
        let named = self.named_owner(&quota.owner).await?;
        let mut tx = self
            .db
            .begin("make a quota")
            .await
            .map_err(Error::database("begin a quota"))?;
        quotas::insert(&mut tx, &named, limits).await?;
        tx.commit().await.map_err(Error::database("make the quota"))?;
        Ok(quotas::one(&self.db, &named).await?.1)
    }

    /// Changes a quota.
    pub(crate) async fn update_quota(
        &self,
        caller: &Caller,
        owner: &str,
        change: &QuotaChange,
    ) -> Result<Quota> {
        caller.may(Right::Quotas)?;
        if change.owner.as_deref().is_some_and(|named| named != owner) {
            return Err(Error::Request(
                "the owner of a quota cannot be changed".to_owned(),
            ));
        }
        let named = self.named_owner(owner).await?;
        let (key, before) = quotas::one(&self.db, &named).await?;
        let limits = quotas::check(owner, &quotas::changed(before.limit, change.limit))?;
        let mut tx = self
            .db
            .begin("change a quota")
            .await
            .map_err(Error::database("begin a quota"))?;
        quotas::update(&mut tx, &key, limits).await?;
        tx.commit().await.map_err(Error::database("change the quota"))?;
        Ok(quotas::one(&self.db, &named).await?.1)
    }

    /// Deletes a quota: its owner is not limited any more.
    pub(crate) async fn delete_quota(&self, caller: &Caller, owner: &str) -> Result<()> {
        caller.may(Right::Quotas)?;
        let (key, _) = quotas::one(&self.db, &self.named_owner(owner).await?).await?;
        let mut tx = self
            .db
            .begin("delete a quota")
            .await
            .map_err(Error::database("begin a quota"))?;
        quotas::delete(&mut tx, &key).await?;
        tx.commit().await.map_err(Error::database("delete the quota"))
    }
}
