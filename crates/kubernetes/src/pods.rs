//! What the smoke test and the loading of images share about the pods that they make.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::DeleteParams;
use stolos_base::{Class, Classify as _, chain, poll};

use crate::error::Error;

/// Deletes a pod at once and waits until it is gone; fine when there is none.
pub(crate) async fn remove(pods: &Api<Pod>, name: &str, limit: Duration) -> Result<(), Error> {
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    let what = format!("pod `{name}` to be gone");
    poll::until(&what, Duration::from_millis(50), limit, || async {
        match pods
            .delete(name, &params)
            .await
            .map_err(Error::request(format!("delete pod `{name}`")))
        {
            Ok(_) => Err("it is being deleted".to_owned()),
            Err(error) if error.class() == Class::NotFound => Ok(()),
            Err(error) => Err(chain(&error)),
        }
    })
    .await?;
    Ok(())
}

/// Why the pod is where it is, in the cluster's own words.
pub(crate) fn words(pod: &Pod) -> String {
    let Some(status) = &pod.status else {
        return "the pod has no status".to_owned();
    };
    let waiting = status.container_statuses.iter().flatten().find_map(|container| {
        let state = container.state.as_ref()?;
        if let Some(waiting) = &state.waiting {
            return Some(format!(
                "container waits: {} {}",
                waiting.reason.as_deref().unwrap_or(""),
                waiting.message.as_deref().unwrap_or("")
            ));
        }
        let ended = state.terminated.as_ref()?;
        Some(format!("container ended with {}", ended.exit_code))
    });
    let unmet = || {
        let conditions = status.conditions.iter().flatten();
        let unmet = conditions
            .filter(|c| c.status != "True")
            .find(|c| c.message.is_some())?;
        Some(format!(
            "{}: {}",
            unmet.type_,
            unmet.message.as_deref().unwrap_or("")
        ))
    };
    waiting
        .or_else(unmet)
        .or_else(|| status.message.clone())
        .unwrap_or_else(|| format!("phase {}", status.phase.as_deref().unwrap_or("unknown")))
        .trim()
        .to_owned()
}
