//! Accepting that a cluster gets another owner; who is meant by a name.

use stolos_api::pks::TransferRequest;

use super::Desk;
use crate::authorize::{Caller, Right};
use crate::db::{self, ClusterRow, Whose};
use crate::error::{Error, Result};
use crate::owners;
use crate::quotas::Named;
use crate::who::{Key, Who};

impl Desk {
    /// Gives a cluster to somebody. Nothing of it is touched; what the former owner was given in it is taken back by the next look
    /// ([`crate::access`]).
    pub(crate) async fn transfer(
        &self,
        caller: &Caller,
        name: &str,
        request: &TransferRequest,
    ) -> Result<ClusterRow> {
        caller.may(Right::ManageAll)?;
        let cluster = db::cluster(&self.db, name, Whose::All).await?;
        let person = self.people.named(&request.owner).await?;
        let person = person.ok_or_else(|| Error::NoPerson(request.owner.chars().take(80).collect()))?;
        let to = Who::person(&person);
        if cluster.owner.key != to.key {
            let mut tx = self.begin_tx("give a cluster to somebody").await?;
            owners::transfer(&mut tx, &cluster, &to).await?;
            tx.commit()
                .await
                .map_err(Error::database("give a cluster to somebody"))?;
            tracing::info!(cluster = %cluster.name, from = %cluster.owner, to = %to, by = %caller.name(), "gave a cluster to another owner");
        }
        db::cluster_by_id(&self.db, cluster.id).await
    }

    /// Refuses a person who is gone, whatever the token says.
    pub(crate) async fn is_there(&self, caller: &Caller) -> Result<()> {
        let Some(id) = caller.who().key.person_id() else {
            return Ok(());
        };
        match self.people.by_id(id).await? {
            Some(_) => Ok(()),
            None => Err(Error::Unauthenticated("the user of the token is gone".into())),
        }
    }

    /// Who is meant by a name: the caller by their own, else the person who has it now.
    pub(crate) async fn who_is(&self, caller: &Caller, name: &str) -> Result<Option<Who>> {
        if caller.name() == name {
            return Ok(Some(caller.who().clone()));
        }
        Ok(self.people.named(name).await?.as_ref().map(Who::person))
    }

    /// A name, and who has it now.
    pub(crate) async fn named_owner<'a>(&self, name: &'a str) -> Result<Named<'a>> {
        let person = self.people.named(name).await?;
        Ok(Named {
            name,
            person: person.map(|person| Key::person(&person.id)),
        })
    }

    /// The clusters of whoever has a name now; of a name that nobody has, those of who had it.
    pub(crate) async fn clusters_of(&self, name: &str) -> Result<Vec<ClusterRow>> {
        if let Some(key) = self.named_owner(name).await?.person {
            return db::clusters(&self.db, Whose::Of(&key)).await;
        }
        let mut clusters = db::clusters(&self.db, Whose::All).await?;
        clusters.retain(|cluster| cluster.owner.name == name);
        Ok(clusters)
    }
}
