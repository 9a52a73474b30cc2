//! Images for a cluster's nodes.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;
use stolos_kubernetes::Cluster;
use stolos_kubernetes::images::{Archive, Loading};

use super::login::pks_client;
use crate::args::LoadImage;
use crate::failure::Failure;
use crate::output;
use crate::progress::{State, Steps, meanwhile};

/// An API server that is there lists its nodes in milliseconds.
const NODES_LIMIT: Duration = Duration::from_secs(10);

/// `stolos load-image CLUSTER FILE`
pub(crate) async fn load(args: &LoadImage) -> Result<(), Failure> {
    // The file is looked at first: what is wrong with it is known without asking anybody.
    let archive = Archive::read(&args.file).map_err(|error| {
        let failure = Failure::from_error(&error);
        if args.file.exists() {
            failure.hint("Make one with `docker save NAME:TAG -o FILE`.")
        } else {
            failure
        }
    })?;
    let binding = pks_client()
        .await?
        .bind(&args.name)
        .await
        .map_err(|error| Failure::from_error(&error))?;
    let failed = |error: stolos_kubernetes::Error| Failure::from_error(&error);
    let cluster = Cluster::from_kubeconfig_value(binding).await.map_err(failed)?;
    let nodes = chosen(
        &args.nodes,
        cluster.node_names(NODES_LIMIT).await.map_err(failed)?,
    )?;
    let steps = Mutex::new(Steps::new());
    let shown = Mutex::new(BTreeMap::new());
    let show = |node: &str, loading: Loading| {
        let (Ok(mut steps), Ok(mut shown)) = (steps.lock(), shown.lock()) else {
            return;
        };
        match loading {
            Loading::Done => steps.show(node, State::Done, None, None),
            Loading::Sent(bytes) => {
                let percent = bytes.saturating_mul(100) / archive.size.max(1);
                // A line for each hundredth is enough.
                if shown.insert(node.to_owned(), percent) != Some(percent) {
                    steps.show(node, State::Running, Some(&format!("{percent} % sent")), None);
                }
            }
        }
    };
    let sent = cluster.load_images(&args.file, &nodes, Duration::from_secs(args.timeout), &show);
    let result = meanwhile(&steps, sent).await;
    result.map_err(|error| {
        Failure::from_error(&error)
            .hint("Run the same command again: nodes that have the images take them again without harm.")
    })?;
    if args.json {
        return output::json(&json!({"images": archive.names, "nodes": nodes}));
    }
    for name in &archive.names {
        output::data(name);
    }
    Ok(())
}

/// The nodes that are meant, each of which has to be there.
fn chosen(wanted: &[String], all: Vec<String>) -> Result<Vec<String>, Failure> {
    if let Some(unknown) = wanted.iter().find(|name| !all.contains(name)) {
        return Err(Failure::user(format!("the cluster has no node `{unknown}`"))
            .hint(format!("Its nodes are: {}.", all.join(", "))));
    }
    Ok(if wanted.is_empty() { all } else { wanted.to_vec() })
}
