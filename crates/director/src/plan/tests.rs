//! The planner from the outside: manifests go in, plans come out and are carried out by a simulated director that
//! fails when the plan cannot be carried out in the order that it says.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::json;
use stolos_base::IdSource;
use stolos_base::ids::{AgentId, InstanceId};
use stolos_manifest::{
    CloudConfig, Known, Manifest, ResolvedDeployment, ResolvedRelease, StemcellOffer, resolve,
};

use super::*;

const CLOUD: &str = "
azs: [{name: z1}, {name: z2}, {name: z3}]
vm_types:
- {name: small, cloud_properties: {cpu: 1}}
- {name: large, cloud_properties: {cpu: 4}}
networks:
- name: default
  subnets:
  - {range: 10.0.1.0/28, gateway: 10.0.1.1, static: [10.0.1.8-10.0.1.12], azs: [z1], cloud_properties: {segment: c1}}
  - {range: 10.0.2.0/28, gateway: 10.0.2.1, static: [10.0.2.8-10.0.2.12], azs: [z2], cloud_properties: {segment: c2}}
  - {range: 10.0.3.0/28, gateway: 10.0.3.1, static: [10.0.3.8-10.0.3.12], azs: [z3], cloud_properties: {segment: c3}}
- name: wide
  subnets:
  - {range: 10.1.0.0/24, gateway: 10.1.0.1, static: [10.1.0.100-10.1.0.199], azs: [z1, z2, z3]}
- name: huge
  subnets:
  - {range: 10.2.0.0/16, gateway: 10.2.0.1}
";

/// A deployment, what exists of it, and a director that carries plans out.
struct World {
    inventory: Inventory,
    catalog: Catalog,
    ids: IdSource,
    generation: u64,
    n_disks: u32,
    options: Options,
}

impl World {
    fn new() -> Self {
        Self {
            inventory: Inventory::default(),
            catalog: catalog(),
            ids: IdSource::counted(),
            generation: 0,
            n_disks: 0,
            options: Options::default(),
        }
    }

    fn place(&self, deployment: &ResolvedDeployment) -> Result<Placement, Errors> {
        place(deployment, &self.catalog, &self.inventory, &self.ids)
    }

    /// Plans, checks the plan, carries it out.
    fn deploy(&mut self, deployment: &ResolvedDeployment) -> Plan {
        let placement = self.place(deployment).unwrap_or_else(|errors| panic!("{errors}"));
        self.generation += 1;
        let options = Options {
            generation: self.generation,
            ..self.options.clone()
        };
        let plan = decide(
            &placement,
            &render(&placement),
            &self.inventory,
            &options,
            &self.ids,
        );
        check(&plan, &placement, &self.inventory);
        self.carry_out(&plan);
        plan
    }

    /// Does what a plan says, in its order; panics when an address is still in use or a disk is not where it should be.
    fn carry_out(&mut self, plan: &Plan) {
        let mut machines: BTreeMap<IpAddr, InstanceId> = BTreeMap::new();
        for instance in self
            .inventory
            .instances
            .iter()
            .filter(|instance| instance.machine.is_some())
        {
            machines.extend(instance.addresses.values().map(|address| (*address, instance.id)));
        }
        let delete_machine = |machines: &mut BTreeMap<IpAddr, InstanceId>, id: InstanceId| {
            machines.retain(|_, owner| *owner != id)
        };
        let create_machine = |machines: &mut BTreeMap<IpAddr, InstanceId>, instance: &InstancePlan| {
            for network in instance.placed.networks.values() {
                let other = machines.insert(network.ip, instance.placed.id);
                assert_eq!(
                    other,
                    None,
                    "{} is still in use when {} gets it",
                    network.ip,
                    instance.placed.name()
                );
            }
        };
        for deletion in &plan.deletions {
            delete_machine(&mut machines, deletion.id);
            self.inventory
                .instances
                .retain(|instance| instance.id != deletion.id);
        }
        plan.vacate_first
            .iter()
            .for_each(|id| delete_machine(&mut machines, *id));
        for instance in &plan.instances {
            if matches!(instance.action, Action::Create { .. })
                || plan.vacate_first.contains(&instance.placed.id)
            {
                create_machine(&mut machines, instance);
            }
        }
        for id in plan
            .stages
            .iter()
            .flat_map(|stage| &stage.groups)
            .flat_map(|group| &group.waves)
            .flat_map(|wave| &wave.instances)
        {
            let instance = plan.instance(*id).expect("a wave has instances of the plan");
            match &instance.action {
                Action::Recreate { .. } if !plan.vacate_first.contains(id) => {
                    delete_machine(&mut machines, *id);
                    create_machine(&mut machines, instance);
                }
                Action::Detach => delete_machine(&mut machines, *id),
                _ => {}
            }
        }
        for instance in &plan.instances {
            self.store(instance);
        }
    }

    fn store(&mut self, plan: &InstancePlan) {
        let placed = &plan.placed;
        let position = self
            .inventory
            .instances
            .iter()
            .position(|instance| instance.id == placed.id);
        let old = position.map(|position| self.inventory.instances.remove(position));
        assert_eq!(old.is_some(), placed.existing);
        if placed.ignored {
            self.inventory.instances.extend(old);
            return;
        }
        let (mut machine, mut disks) = old
            .as_ref()
            .map_or((None, Vec::new()), |old| (old.machine.clone(), old.disks.clone()));
        if let Some(agent_id) = plan.new_agent_id {
            machine = Some(ExistingMachine {
                cid: format!("vm-{agent_id}"),
                agent_id,
                made_as: placed.machine.clone(),
            });
        }
        if plan.action == Action::Detach {
            machine = None;
        }
        let mut create = |disk: &stolos_manifest::PersistentDisk| {
            self.n_disks += 1;
            ExistingDisk {
                cid: format!("disk-{}", self.n_disks),
                active: true,
                disk: disk.clone(),
            }
        };
        match &plan.disk {
            DiskPlan::None => assert!(disks.is_empty()),
            DiskPlan::Keep { cid } => assert_eq!(disks[0].cid, *cid),
            DiskPlan::Create { disk } if machine.is_some() => disks.push(create(disk)),
            DiskPlan::Create { .. } => {}
            DiskPlan::Migrate { from, disk } => {
                assert_eq!(disks[0].cid, *from);
                disks = vec![create(disk)];
            }
            DiskPlan::Orphan { cid } => disks.retain(|disk| disk.cid != *cid),
        }
        let running = machine.is_some();
        self.inventory.instances.push(Existing {
            id: placed.id,
            group: placed.group.clone(),
            index: placed.index,
            az: placed.az.clone(),
            bootstrap: placed.bootstrap,
            ignored: false,
            state: placed.state,
            addresses: placed
                .networks
                .iter()
                .map(|(name, network)| (name.clone(), network.ip))
                .collect(),
            applied: if running {
                Some(plan.desired.clone())
            } else {
                old.and_then(|old| old.applied)
            },
            machine,
            disks,
            update_completed: true,
        });
    }

    fn find(&mut self, group: &str, index: u32) -> &mut Existing {
        let mut all = self.inventory.instances.iter_mut();
        all.find(|instance| instance.group == group && instance.index == index)
            .expect("the instance is there")
    }
}

fn catalog() -> Catalog {
    let mut catalog = Catalog::default();
    let property = |default: Option<serde_json::Value>| PropertySpec { default };
    for version in ["1", "2"] {
        let release = ResolvedRelease {
            name: "db".into(),
            version: version.into(),
        };
        let link = |name: &str, kind: &str, optional| ConsumeSpec {
            name: name.into(),
            kind: kind.into(),
            optional,
        };
        let etcd = JobSpec {
            name: "etcd".into(),
            fingerprint: format!("etcd-{version}"),
            packages: vec!["etcd".into()],
            properties: [
                ("quota".to_owned(), property(Some(json!(8)))),
                ("tls.ca".to_owned(), property(None)),
            ]
            .into_iter()
            .collect(),
            provides: vec![ProvideSpec {
                name: "etcd".into(),
                kind: "etcd".into(),
                properties: vec!["quota".into()],
            }],
            consumes: vec![],
        };
        let client = JobSpec {
            name: "client".into(),
            fingerprint: "client-1".into(),
            packages: vec!["tools".into()],
            properties: indexmap::IndexMap::new(),
            provides: vec![],
            consumes: vec![link("store", "etcd", false), link("metrics", "metrics", true)],
        };
        catalog.add_job(&release, etcd).unwrap();
        catalog.add_job(&release, client).unwrap();
        for (name, digest) in [
            ("etcd", format!("etcd-package-{version}")),
            ("tools", "tools-package".to_owned()),
        ] {
            catalog
                .add_package(
                    &release,
                    PackageSpec {
                        name: name.into(),
                        version: digest.clone(),
                        digest,
                    },
                )
                .unwrap();
        }
    }
    catalog
}

/// Digests of everything that a template could see.
fn render(placement: &Placement) -> Rendered {
    let digest = |value: &serde_json::Value| {
        let mut hasher = DefaultHasher::new();
        value.to_string().hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    };
    let mut rendered = Rendered::default();
    for instance in &placement.instances {
        let mut hashes = BTreeMap::new();
        for job in placement.jobs(&instance.group) {
            let seen = json!([
                instance.index,
                instance.bootstrap,
                instance.az,
                instance.networks,
                job.fingerprint,
                job.properties,
                job.links
            ]);
            hashes.insert(job.name.clone(), digest(&seen));
        }
        rendered
            .configuration_hashes
            .insert(instance.id, digest(&json!(hashes)));
        rendered.template_hashes.insert(instance.id, hashes);
    }
    rendered
}

/// What must hold for every plan.
fn check(plan: &Plan, placement: &Placement, inventory: &Inventory) {
    let mut addresses = BTreeSet::new();
    let mut indexes = BTreeSet::new();
    let mut bootstraps = BTreeMap::new();
    for instance in &placement.instances {
        for network in instance.networks.values() {
            assert!(addresses.insert(network.ip), "{} is given twice", network.ip);
            assert!(
                !inventory.foreign.contains_key(&network.ip),
                "{} is foreign",
                network.ip
            );
        }
        assert!(
            indexes.insert((&instance.group, instance.index)),
            "{} has a taken index",
            instance.name()
        );
        *bootstraps.entry(&instance.group).or_insert(0) += u32::from(instance.bootstrap);
    }
    assert!(bootstraps.values().all(|n| *n == 1), "{bootstraps:?}");
    let staying: BTreeSet<InstanceId> = plan.instances.iter().map(|instance| instance.placed.id).collect();
    for existing in &inventory.instances {
        let leaving = plan.deletions.iter().any(|deletion| deletion.id == existing.id);
        assert!(
            leaving != staying.contains(&existing.id),
            "{}/{} neither stays nor goes",
            existing.group,
            existing.index
        );
        if let Some(instance) = plan
            .instance(existing.id)
            .filter(|instance| instance.placed.group == existing.group)
        {
            assert_eq!(
                (instance.placed.index, &instance.placed.az),
                (existing.index, &existing.az)
            );
        }
    }
    let waves = || {
        plan.stages
            .iter()
            .flat_map(|stage| &stage.groups)
            .flat_map(|group| &group.waves)
    };
    let mut touched: Vec<InstanceId> = waves().flat_map(|wave| wave.instances.clone()).collect();
    touched.sort_unstable();
    let mut changing: Vec<InstanceId> = plan
        .instances
        .iter()
        .filter(|instance| instance.action != Action::Nothing)
        .map(|instance| instance.placed.id)
        .collect();
    changing.sort_unstable();
    assert_eq!(
        touched, changing,
        "every changing instance is in exactly one wave"
    );
    assert!(waves().all(|wave| wave.max_in_flight > 0 && !wave.instances.is_empty()));
    for instance in &plan.instances {
        assert_eq!(instance.new_agent_id.is_some(), instance.action.makes_machine());
    }
    // A plan survives being stored.
    let stored = serde_json::to_string(plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&stored).unwrap(), *plan);
}

fn known() -> Known {
    let offer = |version: &str| StemcellOffer {
        name: "trixie".into(),
        os: "trixie".into(),
        version: version.into(),
    };
    Known {
        releases: [("db".to_owned(), vec!["1".to_owned(), "2".to_owned()])]
            .into_iter()
            .collect(),
        stemcells: vec![offer("1"), offer("2")],
    }
}

fn resolved(manifest: &str) -> ResolvedDeployment {
    let cloud = CloudConfig::parse(CLOUD).unwrap_or_else(|problems| panic!("{problems}"));
    let manifest = Manifest::parse(manifest).unwrap_or_else(|problems| panic!("{problems}"));
    resolve(&manifest, &cloud, &known()).unwrap_or_else(|problems| panic!("{problems}"))
}

/// A manifest with these groups and whatever else is given.
fn manifest(release: u32, stemcell: u32, groups: &str) -> ResolvedDeployment {
    resolved(&format!(
        "name: test
releases: [{{name: db, version: {release}}}]
stemcells: [{{alias: default, os: trixie, version: {stemcell}}}]
update: {{canaries: 1, max_in_flight: 2, canary_watch_time: 1000-60000, update_watch_time: 1000-30000}}
variables:
- {{name: leaf, type: certificate, options: {{ca: ca}}}}
- {{name: ca, type: certificate, options: {{is_ca: true}}}}
instance_groups:
{groups}"
    ))
}

/// A group of etcd; `more` are further lines of the group.
fn etcd(instances: u32, azs: &str, more: &str) -> String {
    format!(
        "- name: etcd
  instances: {instances}
  azs: {azs}
  stemcell: default
  persistent_disk: 1024
  jobs: [{{name: etcd, release: db, properties: {{tls: {{ca: ((ca.certificate))}}}}}}]
  {}
",
        more.replace('\n', "\n  ")
    )
}

const PLAIN: &str = "vm_type: small\nnetworks: [{name: default}]";

#[test]
fn three_etcd_and_their_clients_from_nothing() {
    let mut world = World::new();
    let groups = etcd(3, "[z1, z2]", PLAIN)
        + "- {name: client, instances: 1, azs: [z3], stemcell: default, vm_type: large, networks: [{name: wide}], jobs: [{name: client, release: db}]}\n";
    let deployment = manifest(1, 1, &groups);
    let plan = world.deploy(&deployment);
    insta::assert_snapshot!("from_nothing", plan.report());
    let placement = world.place(&deployment).unwrap();
    insta::assert_json_snapshot!("links_of_the_client", placement.jobs("client"));
    assert_eq!(
        plan.variables
            .iter()
            .map(|variable| variable.name.as_str())
            .collect::<Vec<_>>(),
        ["ca", "leaf"]
    );

    let again = world.deploy(&deployment);
    assert!(again.is_empty(), "{}", again.report());
    assert_eq!(
        again.report().to_string(),
        "plan 2 of deployment 'test': 4 unchanged\n"
    );
}

#[test]
fn growing_and_shrinking() {
    let mut world = World::new();
    world.deploy(&manifest(1, 1, &etcd(3, "[z1, z2]", PLAIN)));
    let grow = world.deploy(&manifest(1, 1, &etcd(5, "[z1, z2]", PLAIN)));
    insta::assert_snapshot!("growing", grow.report());
    let shrink = world.deploy(&manifest(1, 1, &etcd(1, "[z1, z2]", PLAIN)));
    insta::assert_snapshot!("shrinking", shrink.report());
    let gone = world.deploy(&manifest(
        1,
        1,
        "- {name: other, instances: 0, azs: [z1], stemcell: default, vm_type: small, networks: [{name: default}], jobs: []}",
    ));
    insta::assert_snapshot!("group_removed", gone.report());
}

#[test]
fn changes_in_place_and_new_machines() {
    let mut world = World::new();
    world.deploy(&manifest(1, 1, &etcd(3, "[z1, z2]", PLAIN)));

    let property = etcd(3, "[z1, z2]", PLAIN).replace("tls: ", "quota: 9, tls: ");
    insta::assert_snapshot!(
        "changed_property",
        world.deploy(&manifest(1, 1, &property)).report()
    );
    insta::assert_snapshot!("new_release", world.deploy(&manifest(2, 1, &property)).report());
    insta::assert_snapshot!("new_stemcell", world.deploy(&manifest(2, 2, &property)).report());
    let disk = property.replace("persistent_disk: 1024", "persistent_disk: 2048");
    insta::assert_snapshot!("larger_disk", world.deploy(&manifest(2, 2, &disk)).report());
    let no_disk = property
        .replace("persistent_disk: 1024", "persistent_disk: 0")
        .replace("vm_type: small", "vm_type: large");
    insta::assert_snapshot!(
        "no_disk_other_machine",
        world.deploy(&manifest(2, 2, &no_disk)).report()
    );
    let tags = no_disk.clone() + "  tags: {team: red}\n";
    insta::assert_snapshot!("tags_only", world.deploy(&manifest(2, 2, &tags)).report());
    let network = tags.replace("{name: default}", "{name: wide}");
    insta::assert_snapshot!("other_network", world.deploy(&manifest(2, 2, &network)).report());
    assert!(world.deploy(&manifest(2, 2, &network)).is_empty());
}

#[test]
fn a_new_release_version_with_the_same_job_changes_nothing() {
    let mut world = World::new();
    let client = |release| {
        let group = "- {name: client, instances: 1, azs: [z1], stemcell: default, vm_type: small, networks: [{name: default}], jobs: [{name: client, release: db, consumes: {store: nil}}]}";
        manifest(release, 1, group)
    };
    world.deploy(&client(1));
    assert!(world.deploy(&client(2)).is_empty());
}

#[test]
fn what_happened_to_the_instances_in_between() {
    let mut world = World::new();
    let deployment = manifest(1, 1, &etcd(5, "[z1]", PLAIN));
    world.deploy(&deployment);
    world.find("etcd", 0).machine = None;
    world.find("etcd", 1).update_completed = false;
    world.find("etcd", 2).state = State::Stopped;
    world.find("etcd", 3).state = State::Detached;
    world.find("etcd", 4).ignored = true;
    let leftover = ExistingDisk {
        active: false,
        cid: "disk-left".into(),
        ..world.find("etcd", 1).disks[0].clone()
    };
    world.find("etcd", 1).disks.push(leftover);
    let plan = world.deploy(&manifest(1, 2, &etcd(5, "[z1]", PLAIN)));
    insta::assert_snapshot!("in_between", plan.report());
    let one = plan
        .instances
        .iter()
        .find(|instance| instance.placed.index == 1)
        .unwrap();
    assert_eq!(one.leftover_disks, ["disk-left"]);
    let ignored = plan
        .instances
        .iter()
        .find(|instance| instance.placed.index == 4)
        .unwrap();
    assert_eq!(ignored.action, Action::Nothing);
}

#[test]
fn ignored_instances_cannot_go() {
    let mut world = World::new();
    world.deploy(&manifest(1, 1, &etcd(2, "[z1, z2]", PLAIN)));
    world.find("etcd", 1).ignored = true;
    let errors = world.place(&manifest(1, 1, &etcd(1, "[z1]", PLAIN))).unwrap_err();
    insta::assert_snapshot!(errors, @"instance 'etcd/00000000-0000-7000-8000-000000000002 (1)' of instance group 'etcd' is ignored and cannot be moved out of its zone");
    assert_eq!(errors.code(), 190_020);
    // The ignored instance stays although it has the higher index.
    let plan = world.deploy(&manifest(1, 1, &etcd(1, "[z1, z2]", PLAIN)));
    assert_eq!(
        plan.instances
            .iter()
            .map(|instance| instance.placed.index)
            .collect::<Vec<_>>(),
        [1]
    );
}

#[test]
fn zones_are_filled_evenly_and_disks_stay() {
    let zones = |world: &World| -> Vec<(u32, String)> {
        let mut list: Vec<_> = world
            .inventory
            .instances
            .iter()
            .map(|i| (i.index, i.az.clone().unwrap_or_default()))
            .collect();
        list.sort();
        list
    };
    let expect = |list: &[(u32, &str)]| -> Vec<(u32, String)> {
        list.iter().map(|(i, az)| (*i, (*az).to_owned())).collect()
    };
    let mut world = World::new();
    world.deploy(&manifest(1, 1, &etcd(4, "[z1]", PLAIN)));
    // Instances with disks do not move when the group gets more zones.
    world.deploy(&manifest(1, 1, &etcd(5, "[z1, z2, z3]", PLAIN)));
    assert_eq!(
        zones(&world),
        expect(&[(0, "z1"), (1, "z1"), (2, "z1"), (3, "z1"), (4, "z2")])
    );
    // Without disks they are spread again, at once: an unchanged deploy afterwards has nothing left to do.
    let no_disk = |azs| {
        manifest(
            1,
            1,
            &etcd(5, azs, PLAIN).replace("persistent_disk: 1024", "persistent_disk: 0"),
        )
    };
    let plan = world.deploy(&no_disk("[z1, z2, z3]"));
    assert_eq!(
        zones(&world),
        expect(&[(0, "z1"), (1, "z1"), (4, "z2"), (5, "z3"), (6, "z2")])
    );
    assert!(
        plan.deletions
            .iter()
            .all(|deletion| deletion.why == Reason::Rebalanced)
    );
    assert!(world.deploy(&no_disk("[z1, z2, z3]")).is_empty());
    // A zone that the group has left is emptied; the lowest index of those that were there becomes the bootstrap instance.
    let plan = world.deploy(&no_disk("[z2, z3]"));
    assert_eq!(
        zones(&world),
        expect(&[(2, "z3"), (3, "z2"), (4, "z2"), (5, "z3"), (6, "z2")])
    );
    assert!(
        plan.deletions
            .iter()
            .all(|deletion| deletion.why == Reason::ZoneRemoved)
    );
    let bootstrap: Vec<_> = plan
        .instances
        .iter()
        .filter(|i| i.placed.bootstrap)
        .map(|i| i.placed.index)
        .collect();
    assert_eq!(bootstrap, [4]);
}

#[test]
fn static_addresses() {
    let mut world = World::new();
    let with = |instances, ips: &str| {
        manifest(
            1,
            1,
            &etcd(
                instances,
                "[z1, z2]",
                &format!("vm_type: small\nnetworks: [{{name: default, static_ips: {ips}}}]"),
            ),
        )
    };
    let first = world.deploy(&with(3, "[10.0.1.8, 10.0.2.8-10.0.2.9]"));
    insta::assert_snapshot!("static_first", first.report());
    // Owners keep theirs whatever the order, a new one takes the new address.
    let more = world.deploy(&with(4, "[10.0.2.9, 10.0.1.10, 10.0.2.8, 10.0.1.8]"));
    insta::assert_snapshot!("static_more", more.report());
    // An address goes: its owner takes another one in its zone.
    let other = world.deploy(&with(4, "[10.0.2.9, 10.0.1.10, 10.0.2.10, 10.0.1.8]"));
    insta::assert_snapshot!("static_other", other.report());
    assert!(
        world
            .deploy(&with(4, "[10.0.2.9, 10.0.1.10, 10.0.2.10, 10.0.1.8]"))
            .is_empty()
    );
}

#[test]
fn static_addresses_of_two_networks_meet_in_the_same_zone() {
    let mut world = World::new();
    let networks = |wide: &str| {
        format!(
            "vm_type: small\nnetworks: [{{name: default, static_ips: [10.0.1.8, 10.0.2.8, 10.0.2.9], default: [dns, gateway]}}, {{name: wide, static_ips: {wide}}}]"
        )
    };
    let deployment = manifest(1, 1, &etcd(3, "[z1, z2]", &networks("[10.1.0.100-10.1.0.102]")));
    let plan = world.deploy(&deployment);
    let by_zone: Vec<_> = plan
        .instances
        .iter()
        .map(|i| {
            (
                i.placed.az.clone().unwrap(),
                i.placed.networks["default"].ip.to_string(),
            )
        })
        .collect();
    assert_eq!(
        by_zone,
        [
            ("z1".into(), "10.0.1.8".into()),
            ("z2".into(), "10.0.2.8".into()),
            ("z2".into(), "10.0.2.9".to_owned())
        ]
    );
    assert_eq!(plan.instances[0].placed.address.to_string(), "10.0.1.8");

    let uneven = "vm_type: small\nnetworks: [{name: default, static_ips: [10.0.1.8, 10.0.2.8], default: [dns, gateway]}, {name: huge}]";
    world.deploy(&manifest(1, 1, &etcd(2, "[z1, z2]", uneven)));
}

#[test]
fn static_addresses_that_cannot_meet() {
    // z1 has two of one network and one of the other.
    let cloud = CLOUD.replace(
        "{range: 10.1.0.0/24, gateway: 10.1.0.1, static: [10.1.0.100-10.1.0.199], azs: [z1, z2, z3]}",
        "{range: 10.1.0.0/24, gateway: 10.1.0.1, static: [10.1.0.100-10.1.0.199], azs: [z2]}",
    );
    let mut deployment = manifest(
        1,
        1,
        &etcd(
            2,
            "[z1, z2]",
            "vm_type: small\nnetworks: [{name: default, static_ips: [10.0.1.8, 10.0.2.8], default: [dns, gateway]}, {name: wide, static_ips: [10.1.0.100-10.1.0.101]}]",
        ),
    );
    let cloud = CloudConfig::parse(&cloud).unwrap();
    deployment.networks["wide"].subnets[0].azs = cloud.networks[1].subnets[0]
        .azs
        .iter()
        .map(|az| az.value.clone())
        .collect();
    let errors = World::new().place(&deployment).unwrap_err();
    insta::assert_snapshot!(errors, @"failed to evenly distribute static IPs of instance group 'etcd' among its zones: zone 'z1' has 0 of network 'wide' and 1 of network 'default'");
}

#[test]
fn an_address_that_others_need_is_vacated_first() {
    let mut world = World::new();
    // Instance 0 has the first dynamic address. Then the cloud config makes that address static and another group wants it.
    world.deploy(&manifest(1, 1, &etcd(1, "[z1]", PLAIN)));
    assert_eq!(world.find("etcd", 0).addresses["default"].to_string(), "10.0.1.2");
    let groups = etcd(1, "[z1]", PLAIN)
        + "- {name: fixed, instances: 1, azs: [z1], stemcell: default, vm_type: small, networks: [{name: default, static_ips: [10.0.1.8]}], jobs: []}\n";
    let mut deployment = manifest(1, 1, &groups);
    let address: IpAddr = "10.0.1.2".parse().unwrap();
    deployment.networks["default"].subnets[0].statics.insert(address);
    deployment.groups[1].networks[0].static_ips = vec![address];
    let plan = world.deploy(&deployment);
    insta::assert_snapshot!("vacated", plan.report());
}

#[test]
fn errands_get_a_place_but_no_machine() {
    let mut world = World::new();
    let groups = etcd(1, "[z1]", PLAIN)
        + "- {name: check, lifecycle: errand, instances: 1, azs: [z1], stemcell: default, vm_type: small, networks: [{name: default}], jobs: [{name: client, release: db}]}\n";
    let plan = world.deploy(&manifest(1, 1, &groups));
    let check = plan
        .instances
        .iter()
        .find(|instance| instance.placed.group == "check")
        .unwrap();
    assert_eq!(
        (check.action.clone(), check.placed.address.to_string()),
        (Action::Nothing, "10.0.1.3".to_owned())
    );
    assert!(world.deploy(&manifest(1, 1, &groups)).is_empty());
}

#[test]
fn groups_side_by_side_and_canaries() {
    let group = |name: &str, serial: bool, instances: u32| {
        format!(
            "- {{name: {name}, instances: {instances}, azs: [z1, z2], stemcell: default, vm_type: small, networks: [{{name: wide}}], jobs: [], update: {{serial: {serial}, canaries: 2, max_in_flight: 50%}}}}\n"
        )
    };
    let groups = group("a", true, 1) + &group("b", false, 5) + &group("c", false, 1) + &group("d", true, 1);
    let plan = World::new().deploy(&manifest(1, 1, &groups));
    insta::assert_snapshot!("stages", plan.report());
}

/// Members of a quorum, one after the other by their update settings.
#[test]
fn a_group_is_stopped_and_started_together() {
    let mut world = World::new();
    let careful = format!("{PLAIN}\nupdate: {{serial: true, canaries: 1, max_in_flight: 1}}");
    let deployment = manifest(1, 1, &etcd(3, "[z1, z2, z3]", &careful));
    world.deploy(&deployment);
    let mut waves = |together: bool, states: [State; 3]| {
        world.options.together = together;
        for (index, state) in (0_u32..).zip(states) {
            world.find("etcd", index).state = state;
        }
        let plan = world.deploy(&deployment);
        let waves = plan
            .stages
            .iter()
            .flat_map(|stage| &stage.groups)
            .flat_map(|group| &group.waves);
        waves
            .map(|wave| (wave.instances.len(), wave.canary, wave.max_in_flight))
            .collect::<Vec<_>>()
    };
    let (on, off) = (State::Started, State::Stopped);
    assert_eq!(
        waves(false, [off, on, on]),
        [(1, true, 1)],
        "one of them is as careful as ever"
    );
    assert_eq!(waves(true, [off, off, off]), [(2, false, 8)]);
    assert_eq!(
        waves(false, [on, off, on]).len(),
        2,
        "another deploy goes zone by zone"
    );
    assert_eq!(waves(true, [on, on, on]), [(1, false, 8)]);
    assert_eq!(waves(true, [on, on, on]), []);
}

#[test]
fn renamed_groups_keep_their_instances() {
    let mut world = World::new();
    world.deploy(&manifest(
        1,
        1,
        &(etcd(2, "[z1]", PLAIN) + &etcd(2, "[z1]", PLAIN).replace("- name: etcd", "- name: more")),
    ));
    let renamed = etcd(4, "[z1]", PLAIN).replace(
        "- name: etcd",
        "- name: store\n  migrated_from: [{name: etcd}, {name: more}]",
    );
    let plan = world.deploy(&manifest(1, 1, &renamed));
    assert!(
        plan.deletions.is_empty()
            && !plan
                .instances
                .iter()
                .any(|instance| instance.action.makes_machine()),
        "{}",
        plan.report()
    );
    let indexes: Vec<_> = plan
        .instances
        .iter()
        .map(|instance| instance.placed.index)
        .collect();
    assert_eq!(indexes, [0, 1, 2, 3]);
}

#[test]
fn links_that_cannot_be_resolved() {
    let client = |more: &str| {
        format!(
            "- {{name: client, instances: 1, azs: [z1], stemcell: default, vm_type: small, networks: [{{name: default}}], jobs: [{{name: client, release: db{more}}}]}}\n"
        )
    };
    let errors = |groups: &str| World::new().place(&manifest(1, 1, groups)).unwrap_err();
    let none = errors(&client(""));
    assert_eq!(none.code(), 140_014);
    insta::assert_snapshot!(none, @"failed to resolve link 'store' with type 'etcd' from job 'client' in instance group 'client'. No link providers found.");

    let two = etcd(1, "[z1]", PLAIN) + &etcd(1, "[z1]", PLAIN).replace("- name: etcd", "- name: other");
    insta::assert_snapshot!(errors(&(two.clone() + &client(""))), @r"
    failed to resolve link 'store' with type 'etcd' from job 'client' in instance group 'client'. Multiple link providers found: Details below:
        - Link provider 'etcd' from job 'etcd' in instance group 'etcd'
        - Link provider 'etcd' from job 'etcd' in instance group 'other'
    ");
    insta::assert_snapshot!(errors(&(two.clone() + &client(", consumes: {store: {from: main}, nothing: nil}"))), @r"
    job 'client' in instance group 'client' has no link 'nothing' to consume
    failed to resolve link 'main' with type 'etcd' from job 'client' in instance group 'client'. No link providers found. Details below:
        - Link provider 'etcd' from job 'etcd' in instance group 'etcd' with type 'etcd'
        - Link provider 'etcd' from job 'etcd' in instance group 'other' with type 'etcd'
    ");

    // An alias tells the providers apart, nil takes a provider away or leaves a link out, a network changes addresses.
    let aliased = two.replacen("release: db,", "release: db, provides: {etcd: {as: main}},", 1);
    let placed = |groups: &str| {
        World::new()
            .place(&manifest(1, 1, groups))
            .unwrap_or_else(|errors| panic!("{errors}"))
    };
    let link = |groups: &str| placed(groups).jobs("client")[0].links["store"].clone();
    assert_eq!(
        link(&(aliased + &client(", consumes: {store: {from: main}}"))).instance_group,
        "etcd"
    );
    let blocked = two.replacen("release: db,", "release: db, provides: {etcd: nil},", 1);
    assert_eq!(link(&(blocked + &client(""))).instance_group, "other");
    assert!(
        placed(&(two + &client(", consumes: {store: nil}"))).jobs("client")[0]
            .links
            .is_empty()
    );
    let manual = link(&client(
        ", consumes: {store: {instances: [{address: db.example}], properties: {quota: 1}}}",
    ));
    assert_eq!(
        (
            manual.instances[0].address.as_str(),
            manual.properties["quota"].clone()
        ),
        ("db.example", json!(1))
    );
    let wrong = etcd(1, "[z1]", PLAIN) + &client(", consumes: {store: {network: wide}}");
    insta::assert_snapshot!(errors(&wrong), @"failed to resolve link 'store' from job 'client' in instance group 'client': provider group 'etcd' is not on network 'wide'");
}

#[test]
fn what_releases_do_not_have_and_networks_have_no_longer() {
    let groups = "- {name: a, instances: 14, azs: [z1], stemcell: default, vm_type: small, networks: [{name: default}], jobs: [{name: ectd, release: db}]}\n";
    let errors = World::new().place(&manifest(1, 1, groups)).unwrap_err();
    assert_eq!(errors.list().len(), 7);
    insta::assert_snapshot!(errors.list()[0], @"failed to reserve IP for 'a/8' for manual network 'default': no more available in zone 'z1'");
    insta::assert_snapshot!(errors.list()[6], @"job 'ectd' of instance group 'a' does not exist in release 'db/1'");

    let mut world = World::new();
    world
        .inventory
        .foreign
        .insert("10.0.1.8".parse().unwrap(), "other/etcd/0".into());
    let fixed = etcd(
        1,
        "[z1]",
        "vm_type: small\nnetworks: [{name: default, static_ips: [10.0.1.8]}]",
    );
    insta::assert_snapshot!(world.place(&manifest(1, 1, &fixed)).unwrap_err(), @"failed to reserve IP '10.0.1.8' for instance group 'etcd': IP already reserved by 'other/etcd/0'");
}

#[test]
fn asking_for_new_machines() {
    let mut world = World::new();
    let deployment = manifest(1, 1, &etcd(3, "[z1]", PLAIN));
    world.deploy(&deployment);
    let chosen = world.find("etcd", 1).id;
    world.options.recreate_instances = vec![chosen];
    let plan = world.deploy(&deployment);
    let actions: Vec<bool> = plan
        .instances
        .iter()
        .map(|instance| instance.action.makes_machine())
        .collect();
    assert_eq!(actions, [false, true, false]);
    world.options = Options {
        recreate: true,
        ..Options::default()
    };
    let plan = world.deploy(&deployment);
    assert!(plan.instances.iter().all(|instance| instance.action
        == Action::Recreate {
            why: vec![Recreate::Asked],
            changed: vec![]
        }));
}

#[test]
fn a_thousand_instances_are_planned_without_quadratic_work() {
    let mut world = World::new();
    let group = "- {name: many, instances: 1000, azs: [z1, z2, z3], stemcell: default, vm_type: small, persistent_disk: 1, networks: [{name: huge}], jobs: [{name: etcd, release: db}]}\n";
    let deployment = manifest(1, 1, group);
    world.deploy(&deployment);
    assert!(world.deploy(&deployment).is_empty());
    let last = world
        .inventory
        .instances
        .iter()
        .map(|instance| instance.addresses["huge"])
        .max()
        .unwrap();
    assert_eq!(last.to_string(), "10.2.3.233");
}

/// A random change of a deployment.
#[derive(Clone, Debug)]
struct Shape {
    etcd: u32,
    other: u32,
    zones: Vec<&'static str>,
    disk: u32,
    stemcell: u32,
    release: u32,
    network: &'static str,
    statics: bool,
    lost: Vec<u32>,
}

fn shape() -> impl Strategy<Value = Shape> {
    let zones = prop::sample::subsequence(vec!["z1", "z2", "z3"], 1..=3).prop_shuffle();
    let network = prop::sample::select(vec!["default", "wide"]);
    (
        0_u32..4,
        0_u32..4,
        zones,
        0_u32..3,
        1_u32..3,
        1_u32..3,
        network,
        any::<bool>(),
        prop::collection::vec(0_u32..4, 0..2),
    )
        .prop_map(
            |(etcd, other, zones, disk, stemcell, release, network, statics, lost)| Shape {
                etcd,
                other,
                zones,
                disk,
                stemcell,
                release,
                network,
                statics,
                lost,
            },
        )
}

impl Shape {
    fn deployment(&self) -> ResolvedDeployment {
        let azs = format!("[{}]", self.zones.join(", "));
        let statics = if self.statics && self.etcd > 0 {
            format!(
                ", static_ips: [10.1.0.{}-10.1.0.{}]",
                100 + self.other,
                100 + self.other + self.etcd - 1
            )
        } else {
            String::new()
        };
        let network = if statics.is_empty() { self.network } else { "wide" };
        let mut groups = etcd(
            self.etcd,
            &azs,
            &format!("vm_type: small\nnetworks: [{{name: {network}{statics}}}]"),
        )
        .replace(
            "persistent_disk: 1024",
            &format!("persistent_disk: {}", self.disk),
        );
        if self.other > 0 {
            groups += &format!(
                "- {{name: other, instances: {}, azs: {azs}, stemcell: default, vm_type: small, networks: [{{name: {}}}], jobs: []}}\n",
                self.other, self.network
            );
        }
        manifest(self.release, self.stemcell, &groups)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever a deployment goes through: every plan can be carried out in its order and holds what plans must hold
    /// (see `check` and `carry_out`), and afterwards there is nothing left to do.
    #[test]
    fn any_history_can_be_carried_out(shapes in prop::collection::vec(shape(), 1..5)) {
        let mut world = World::new();
        for shape in shapes {
            let deployment = shape.deployment();
            let before: BTreeMap<InstanceId, BTreeMap<String, IpAddr>> =
                world.inventory.instances.iter().map(|instance| (instance.id, instance.addresses.clone())).collect();
            let plan = world.deploy(&deployment);
            // Dynamic addresses stay as long as instance, zone and network do.
            for instance in plan.instances.iter().filter(|instance| !shape.statics || instance.placed.group != "etcd") {
                for (name, network) in &instance.placed.networks {
                    if let Some(old) = before.get(&instance.placed.id).and_then(|old| old.get(name)) {
                        let was_static = old.to_string().starts_with("10.1.0.1") && old.to_string().len() == "10.1.0.100".len();
                        prop_assert!(was_static || *old == network.ip);
                    }
                }
            }
            let again = world.deploy(&deployment);
            prop_assert!(again.is_empty(), "{}", again.report());
            for index in shape.lost {
                if let Some(instance) = world.inventory.instances.iter_mut().find(|instance| instance.index == index) {
                    instance.machine = None;
                }
            }
        }
    }
}

#[test]
fn agents_are_new_with_each_machine() {
    let mut world = World::new();
    let agents = |world: &World| -> BTreeSet<AgentId> {
        world
            .inventory
            .instances
            .iter()
            .filter_map(|instance| Some(instance.machine.as_ref()?.agent_id))
            .collect()
    };
    world.deploy(&manifest(1, 1, &etcd(3, "[z1]", PLAIN)));
    let before = agents(&world);
    world.deploy(&manifest(1, 2, &etcd(3, "[z1]", PLAIN)));
    assert!(agents(&world).is_disjoint(&before));
}
