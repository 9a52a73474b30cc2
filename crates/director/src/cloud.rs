//! Cloud configs as deploys see them: all newest ones together. A row never changes, so what was read of it is kept; with hundreds of clusters,
//! each with a config of its own, reading them all anew would be most of the work of a deploy.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stolos_api::director::ConfigUpdate;
use stolos_base::compute;
use stolos_manifest::{CloudConfig, CloudDocument, Problems};
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
        documents.push(Arc::new(CloudDocument::parse(&update.name, &update.content)?));
        put_together(documents).await.map(drop)
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

async fn put_together(documents: Vec<Arc<CloudDocument>>) -> Result<CloudConfig> {
    let whole: Result<CloudConfig, Problems> = compute::run(move || CloudConfig::of(&documents))
        .await
        .map_err(|error| Error::Bug(format!("reading cloud configs ended: {error}")))?;
    Ok(whole?)
}
