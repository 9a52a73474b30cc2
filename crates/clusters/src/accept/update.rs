//! Accepting a change of a cluster.

use stolos_api::pks::{LastAction, LastActionState, LocalVolumes, PoolInstances, UpdateParameters};

use super::{
    Accepted, Desk, GivenFiles, Mode, VERSION, checked_tags, given, refuse_unfit, refuse_unknown,
    worker_count,
};
use crate::authorize::{Caller, Right};
use crate::config_file::Secrets;
use crate::db::{self, ClusterRow};
use crate::error::{Error, Result};
use crate::flows::Input;
use crate::plans::can_be_masters;
use crate::profiles::compute::ComputeProfile;
use crate::quotas;
use crate::render::Rollout;

impl Desk {
    /// Accepts a change. What is absent in it stays as it is; a plan that the operator changed applies from now on.
    pub(crate) async fn update(
        &self,
        caller: &Caller,
        name: &str,
        change: &UpdateParameters,
        mode: Mode,
    ) -> Result<Accepted> {
        caller.may(Right::Manage)?;
        let before = db::cluster(&self.db, name, caller.own(Right::ManageAll)).await?;
        refuse_unfit(&before)?;
        let (after, secrets, not_applied) = self.check_update(caller, &before, change).await?;
        if change.local_volumes == Some(LocalVolumes::Refuse) {
            self.refuse_losses(&before, &after).await?;
        }
        let operation = self.operation(&after, LastAction::Update, caller);
        // What ended well and only gets more or fewer workers keeps every machine as it is.
        let keeps_machines = before.state == LastActionState::Succeeded && !touches_machines(&before, &after);
        // What never ran is not protected but finished; masters that wait for each other could not come up one after the other.
        let never_ran = before.state == LastActionState::Failed && before.action == LastAction::Create;
        let is_gone = before.found.deployment_gone_at.is_some();
        let rollout = if (keeps_machines || never_ran) || is_gone {
            Rollout::Fresh
        } else {
            Rollout::Careful
        };
        let mut tx = self.begin_tx("accept a change").await?;
        // The operation first: with one in flight, nothing of the cluster may change.
        let input = Input::new(&operation, rollout);
        self.begin_change(&mut tx, &operation, &input).await?;
        let (was, is) = (before.shape().amount(), after.shape().amount());
        // Who becomes smaller may, also above a limit that was lowered meanwhile.
        if is.memory_mib > was.memory_mib {
            self.fits(&mut tx, &after).await?;
        }
        if !caller.has(Right::ManageAll) && (is.memory_mib > was.memory_mib || is.cpu > was.cpu) {
            quotas::refuse_excess(&mut tx, &after).await?;
        }
        self.hold_profiles(&mut tx, &after).await?;
        db::set_intent(&mut tx, &after).await?;
        let accepted = Accepted {
            before: Some(before),
            cluster: after,
            operation,
            rollout,
            not_applied,
        };
        if mode == Mode::DryRun {
            return Ok(accepted);
        }
        self.keep(&accepted.cluster, secrets).await?;
        tx.commit().await.map_err(Error::database("accept the change"))?;
        self.flows.nudge();
        Ok(accepted)
    }

    async fn check_update(
        &self,
        caller: &Caller,
        before: &ClusterRow,
        change: &UpdateParameters,
    ) -> Result<(ClusterRow, Secrets, Vec<String>)> {
        refuse_unknown(&change.other)?;
        // What is not as it is to be can be gone on with.
        let is_broken = before.state == LastActionState::Failed || before.found.deployment_gone_at.is_some();
        if names_nothing(change) && !is_broken {
            return Err(Error::Request("the request names nothing to change".to_owned()));
        }
        let mut after = before.clone();
        if self.is_current(before) {
            self.refresh(&mut after);
            VERSION.clone_into(&mut after.settings.version);
        } else if !is_only_size(change) {
            // What is made of older artefacts may not know what is asked; PKS had the same rule.
            return Err(Error::Behind {
                cluster: before.name.to_string(),
            });
        }
        self.set_drain(&mut after, change)?;
        match (&change.cluster_tags, change.delete_all_tags) {
            (Some(tags), Some(true)) if !tags.is_empty() => {
                return Err(Error::Request(
                    "`cluster_tags` and `delete_all_tags` exclude each other".to_owned(),
                ));
            }
            (_, Some(true)) => after.settings.tags.clear(),
            (Some(tags), _) => after.settings.tags = checked_tags(tags)?,
            (None, _) => {}
        }
        self.change_profiles(caller, before, &mut after, change).await?;
        if let Some(asked) = change.kubernetes_worker_instances {
            let names_pools = change
                .node_pool_instances
                .as_ref()
                .is_some_and(|pools| !pools.is_empty());
            self.set_workers(&mut after, asked, names_pools)?;
        }
        if let Some(asked) = change.kubernetes_master_instances {
            set_masters(&mut after, asked)?;
        }
        self.set_pools(
            &mut after,
            change.node_pool_instances.as_deref().unwrap_or_default(),
        )?;
        if change
            .config_file
            .as_ref()
            .is_some_and(|file| file.custom_ca.is_some())
        {
            return Err(Error::Request(
                "configuration: `custom_ca` can only be given when a cluster is made".to_owned(),
            ));
        }
        let given = GivenFiles {
            registries: change.private_registries.as_ref(),
            authorities: change.custom_ca_certs.as_deref(),
            insecure: change.insecure_registries.as_deref(),
            config: change.config_file.as_ref(),
        };
        let (secrets, not_applied) = given.take(&mut after.settings, self.clock.now())?;
        self.check_shape(&after)?;
        after.workers = after.shape().workers();
        Ok((after, secrets, not_applied))
    }

    /// Takes over what the operator changed: who is trusted, and the plan, but for the number of masters, which a cluster keeps. A plan that is
    /// no longer on offer goes on for those who have it.
    pub(super) fn refresh(&self, cluster: &mut ClusterRow) {
        cluster.settings.oidc = self.oidc_of(cluster.id, cluster.settings.oidc.as_ref());
        if let Some(plan) = self.plans.find(&cluster.plan.name) {
            let masters = cluster.plan.master_instances;
            cluster.plan = plan.clone();
            cluster.plan.master_instances = masters;
        }
    }

    fn set_drain(&self, after: &mut ClusterRow, change: &UpdateParameters) -> Result<()> {
        let (own, drain) = (&mut after.settings.drain, &change.drain);
        set(
            &mut own.timeout,
            "kubelet_drain_timeout",
            drain.kubelet_drain_timeout.as_ref(),
            |n| *n <= 1440,
        )?;
        set(
            &mut own.grace_period,
            "kubelet_drain_grace_period",
            drain.kubelet_drain_grace_period.as_ref(),
            |n| (-1..=86_400).contains(n),
        )?;
        for (slot, name, text) in [
            (&mut own.force, "kubelet_drain_force", &drain.kubelet_drain_force),
            (
                &mut own.ignore_daemonsets,
                "kubelet_drain_ignore_daemonsets",
                &drain.kubelet_drain_ignore_daemonsets,
            ),
            (
                &mut own.delete_local_data,
                "kubelet_drain_delete_local_data",
                &drain.kubelet_drain_delete_local_data,
            ),
            (
                &mut own.force_node,
                "kubelet_drain_force_node",
                &drain.kubelet_drain_force_node,
            ),
        ] {
            set(slot, name, text.as_ref(), |_| true)?;
        }
        Ok(())
    }

    async fn change_profiles(
        &self,
        caller: &Caller,
        before: &ClusterRow,
        after: &mut ClusterRow,
        change: &UpdateParameters,
    ) -> Result<()> {
        if let Some(name) = given(change.network_profile_name.as_ref()) {
            after.settings.network_profile = Some(self.network_profile(caller, name).await?);
        }
        if let Some(name) = given(change.kubernetes_profile_name.as_ref()) {
            let profile = self.kubernetes_profile(caller, name).await?;
            let old = before.settings.kubernetes_profile.as_ref();
            if old.is_some_and(|old| old.encrypts() && old.id != profile.id) {
                return Err(Error::Request(
                    "the cluster's Kubernetes profile encrypts what lies in etcd; no other can replace it, because nobody could read that any more"
                        .to_owned(),
                ));
            }
            after.settings.kubernetes_profile = Some(profile);
        }
        let networks = |cluster: &ClusterRow| cluster.settings.networks().ok();
        if networks(before) != networks(after) {
            return Err(Error::Request(
                "the networks of pods and services cannot change after a cluster is made".to_owned(),
            ));
        }
        if let Some(name) = given(change.compute_profile_name.as_ref()) {
            let profile = self.compute_profile(caller, name).await?;
            after.settings.compute_profile = Some(profile);
            let pools = after
                .settings
                .compute_profile
                .as_ref()
                .map(ComputeProfile::pool_names);
            let pools: Vec<String> = pools.into_iter().flatten().map(str::to_owned).collect();
            after
                .settings
                .pool_instances
                .retain(|pool, _| pools.contains(pool));
            let enforced = change.enforce_compute_profile_update == Some(true);
            check_compute_change(before, after, enforced)?;
        }
        Ok(())
    }

    /// Sets the number of workers. One number says nothing about several pools, which have numbers of their own; PKS took it and did nothing.
    fn set_workers(&self, cluster: &mut ClusterRow, asked: i64, names_pools: bool) -> Result<()> {
        let profile = cluster.settings.compute_profile.as_ref();
        let pools: Vec<String> = profile
            .into_iter()
            .flat_map(ComputeProfile::pool_names)
            .map(str::to_owned)
            .collect();
        match pools.as_slice() {
            [] => cluster.workers = worker_count(&cluster.plan, asked)?,
            // What says the number of each pool, too, has said everything.
            _ if names_pools || i64::from(cluster.shape().workers()) == asked => {}
            [pool] => {
                let number = PoolInstances {
                    name: pool.clone(),
                    instances: asked,
                };
                self.set_pools(cluster, &[number])?;
            }
            _ => {
                return Err(Error::InPools {
                    cluster: cluster.name.to_string(),
                    pools,
                });
            }
        }
        Ok(())
    }

    /// Sets the numbers of workers of pools.
    pub(super) fn set_pools(&self, cluster: &mut ClusterRow, numbers: &[PoolInstances]) -> Result<()> {
        for number in numbers {
            let profile = cluster.settings.compute_profile.as_ref();
            let Some(pool) = profile.and_then(|profile| profile.pool(&number.name)) else {
                let name: String = number.name.chars().take(80).collect();
                return Err(Error::Request(match profile {
                    None => format!("there is no node pool `{name}`: the cluster has no compute profile"),
                    Some(profile) => format!(
                        "compute profile `{}` has no node pool `{name}`; it has {}",
                        profile.name,
                        profile.pool_names().into_iter().collect::<Vec<_>>().join(", ")
                    ),
                }));
            };
            let most = pool.max_instances.unwrap_or(cluster.plan.max_worker_instances);
            let instances = u32::try_from(number.instances)
                .ok()
                .filter(|n| (1..=most).contains(n))
                .ok_or_else(|| {
                    Error::Request(format!(
                        "number of workers {} of node pool `{}` is not between 1 and {most}",
                        number.instances, number.name
                    ))
                })?;
            let name = number.name.clone();
            cluster.settings.pool_instances.insert(name, instances);
        }
        Ok(())
    }
}

/// The one part of its plan that a cluster has of its own, because a plan's number applies to new clusters only.
fn set_masters(cluster: &mut ClusterRow, asked: i64) -> Result<()> {
    let masters = u32::try_from(asked).ok().filter(|n| can_be_masters(*n));
    let Some(masters) = masters else {
        return Err(Error::Request(format!(
            "number of masters {asked} is not 1, 3 or 5: others survive no more than the next smaller one"
        )));
    };
    cluster.plan.master_instances = masters;
    // A compute profile that names another number says how many there are to begin with.
    if cluster.shape().masters.instances != masters {
        cluster.settings.master_instances = Some(masters);
    }
    Ok(())
}

/// Old clients send what they do not mean as empty texts.
fn names_nothing(change: &UpdateParameters) -> bool {
    let empty = |text: &Option<String>| given(text.as_ref()).is_none();
    change.kubernetes_worker_instances.is_none()
        && change.kubernetes_master_instances.is_none()
        && change.node_pool_instances.as_ref().is_none_or(Vec::is_empty)
        && change.cluster_tags.is_none()
        && change.delete_all_tags.is_none()
        && change.private_registries.is_none()
        && change.custom_ca_certs.is_none()
        && change.insecure_registries.is_none()
        && change.config_file.is_none()
        && empty(&change.network_profile_name)
        && empty(&change.compute_profile_name)
        && empty(&change.kubernetes_profile_name)
        && change.drain.named().is_empty()
}

/// Whether a change is about numbers of workers alone.
fn is_only_size(change: &UpdateParameters) -> bool {
    let rest = UpdateParameters {
        kubernetes_worker_instances: None,
        node_pool_instances: None,
        local_volumes: None,
        ..change.clone()
    };
    names_nothing(&rest)
}

/// Whether what runs has to change.
fn touches_machines(before: &ClusterRow, after: &ClusterRow) -> bool {
    let (old, new) = (&before.settings, &after.settings);
    before.plan != after.plan
        || old.artifacts != new.artifacts
        || old.oidc != new.oidc
        || old.network_profile != new.network_profile
        || old.compute_profile != new.compute_profile
        || old.kubernetes_profile != new.kubernetes_profile
        || old.registries != new.registries
        || old.proxies != new.proxies
}

/// PKS's rules for a compute profile of a cluster that is there (pks.md, section 2.7).
fn check_compute_change(before: &ClusterRow, after: &ClusterRow, enforced: bool) -> Result<()> {
    let (old, new) = (before.shape(), after.shape());
    if old.masters.instances != new.masters.instances {
        return Err(Error::Request(format!(
            "the cluster has {} masters; a compute profile cannot change that to {}",
            old.masters.instances, new.masters.instances
        )));
    }
    if enforced {
        return Ok(());
    }
    let names = |shape: &crate::shape::Shape| -> Vec<String> {
        shape.pools.iter().map(|pool| pool.name.clone()).collect()
    };
    let (old_names, new_names) = (names(&old), names(&new));
    let gone: Vec<&String> = old_names
        .iter()
        .filter(|name| !new_names.contains(name))
        .collect();
    let added: Vec<&String> = new_names
        .iter()
        .filter(|name| !old_names.contains(name))
        .collect();
    if let (Some(gone), Some(added)) = (gone.first(), added.first()) {
        return Err(Error::Request(format!(
            "the compute profile would delete the group `{gone}` and add `{added}` in one step; do it in two, or enforce it"
        )));
    }
    for group in new.groups() {
        let was = old.groups().find(|other| other.name == group.name);
        if was.is_some_and(|was| was.zones != group.zones) {
            return Err(Error::Request(format!(
                "the compute profile would move the machines of `{}` to other zones; enforce it, if that is meant",
                group.name
            )));
        }
    }
    Ok(())
}

/// Takes a setting that comes as text, when it comes.
fn set<T: std::str::FromStr>(
    slot: &mut Option<T>,
    name: &str,
    text: Option<&String>,
    good: impl Fn(&T) -> bool,
) -> Result<()> {
    let Some(text) = text else { return Ok(()) };
    match text.trim().parse::<T>().ok().filter(good) {
        Some(value) => *slot = Some(value),
        None => {
            let shown: String = text.chars().take(80).collect();
            return Err(Error::Request(format!("`{shown}` is not valid for `{name}`")));
        }
    }
    Ok(())
}
