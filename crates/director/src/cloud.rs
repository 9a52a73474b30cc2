//! Cloud configs as deploys see them: all newest ones together. A row never changes, so what was read of it is kept; with hundreds of clusters,
//! each with a config of its own, reading them all anew would be most of the work of a deploy.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stolos_api::director::ConfigUpdate;
use stolos_base::compute;
use stolos_manifest::{CloudConfig, CloudDocument, IpSet, Network, Problems, Range, Subnet};
use stolos_store::Db;

use crate::db::configs;
use crate::error::{Error, Result};

/// What was read of cloud configs.
#[derive(Default)]
pub(crate) struct CloudConfigs(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// By id of the row; no more than are in use.
    documents: HashMap<i64, Arc<CloudDocument>>,
    /// Those that were last put together, and what came out.
    whole: Option<(Vec<i64>, Arc<CloudConfig>)>,
}

impl CloudConfigs {
    /// All newest cloud configs as one, and which they are, oldest first.
    pub(crate) async fn newest(&self, db: &Db) -> Result<(Arc<CloudConfig>, Vec<i64>)> {
        let (ids, _) = self.ids(db).await?;
        if let Some((known, whole)) = &self.kept().whole
            && *known == ids
        {
            return Ok((whole.clone(), ids));
        }
        let (ids, documents): (Vec<i64>, _) = self.documents(db, &ids).await?.into_iter().unzip();
        let whole = Arc::new(put_together(documents).await?);
        self.kept().whole = Some((ids.clone(), whole.clone()));
        Ok((whole, ids))
    }

    /// Checks what deploys will see: the update in the place of its former version among all others.
    pub(crate) async fn check(&self, db: &Db, update: &ConfigUpdate) -> Result<()> {
        let (ids, names) = self.ids(db).await?;
        let others = ids.into_iter().zip(names);
        let others: Vec<i64> = others
            .filter(|(_, name)| *name != update.name)
            .map(|(id, _)| id)
            .collect();
        let others = self.documents(db, &others).await?.into_iter();
        let mut documents: Vec<Arc<CloudDocument>> = others.map(|(_, document)| document).collect();
        let new = Arc::new(CloudDocument::parse(&update.name, &update.content)?);
        let before = documents.clone();
        documents.push(new.clone());
        let whole = put_together(documents).await?;
        let names = |config: &CloudConfig| -> Vec<String> {
            config
                .networks
                .iter()
                .map(|network| network.name.clone())
                .collect()
        };
        // Only what the update brings is judged: what was there before it is used by somebody.
        let added = match put_together(vec![new]).await {
            Ok(own) => names(&own),
            // It needs others to be whole.
            Err(_) => {
                let old = put_together(before)
                    .await
                    .map(|old| names(&old))
                    .unwrap_or_default();
                let mut added = names(&whole);
                added.retain(|name| !old.contains(name));
                added
            }
        };
        match shared(&whole, &added) {
            None => Ok(()),
            Some(text) => Err(Error::Request(text)),
        }
    }

    /// Ids and names of the newest ones. Forgets what was read of others.
    async fn ids(&self, db: &Db) -> Result<(Vec<i64>, Vec<String>)> {
        let newest: (Vec<i64>, Vec<String>) = configs::newest_ids(db, "cloud").await?.into_iter().unzip();
        let mut kept = self.kept();
        if kept.documents.len() > 2 * newest.0.len() {
            kept.documents.retain(|id, _| newest.0.contains(id));
        }
        Ok(newest)
    }

    /// The documents of rows, but for rows that were deleted meanwhile.
    async fn documents(&self, db: &Db, ids: &[i64]) -> Result<Vec<(i64, Arc<CloudDocument>)>> {
        let mut documents = Vec::with_capacity(ids.len());
        for id in ids {
            let known = self.kept().documents.get(id).cloned();
            if let Some(document) = known {
                documents.push((*id, document));
                continue;
            }
            let row = match configs::find(db, *id).await {
                Err(Error::NoConfig(_)) => continue,
                row => row?,
            };
            let document = Arc::new(CloudDocument::parse(&row.name, &row.content)?);
            self.kept().documents.insert(*id, document.clone());
            documents.push((*id, document));
        }
        Ok(documents)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two networks of different names that would hand out the same address, one of them among those named. An address is given to one instance only, whatever
/// the network, so a plan on one of them could take what a plan on the other one has. Networks may share a range where each reserves what the other hands out.
fn shared(whole: &CloudConfig, added: &[String]) -> Option<String> {
    let networks: Vec<&Network> = whole.networks.iter().collect();
    for (i, one) in networks.iter().enumerate() {
        if !added.contains(&one.name) {
            continue;
        }
        let others = networks
            .iter()
            .enumerate()
            .filter(|(j, other)| i != *j && one.name != other.name);
        for (_, other) in others {
            for (ours, theirs) in one
                .subnets
                .iter()
                .flat_map(|ours| other.subnets.iter().map(move |theirs| (ours, theirs)))
            {
                if let Some(address) = common(ours, theirs) {
                    return Some(format!(
                        "networks '{}' ({}) and '{}' ({}) overlap: both would hand out {address}; give them ranges of their own, or reserve in each what the \
                         other one hands out",
                        one.name, ours.range, other.name, theirs.range
                    ));
                }
            }
        }
    }
    None
}

/// An address that both hand out.
fn common(one: &Subnet, other: &Subnet) -> Option<IpAddr> {
    // Ranges of networks contain each other or have nothing in common.
    let smaller = if one.range.contains(&other.range) {
        other.range
    } else if other.range.contains(&one.range) {
        one.range
    } else {
        return None;
    };
    IpSet::lowest_free(&Range::of(smaller), None, &[&one.reserved, &other.reserved])
}

async fn put_together(documents: Vec<Arc<CloudDocument>>) -> Result<CloudConfig> {
    let whole: Result<CloudConfig, Problems> = compute::run(move || CloudConfig::of(&documents))
        .await
        .map_err(|error| Error::Bug(format!("reading cloud configs ended: {error}")))?;
    Ok(whole?)
}
