//! The whole product on this host, as a person uses it: up, a cluster, faults, down. One test, because there is one host.

mod etcd;
mod faults;
mod installation;
mod refusals;
mod surroundings;
mod upgrade;
mod workload;

use stolos_testbed::host::Picture;
use stolos_testbed::{cannot_run_machines, skip};

use installation::Installation;

fn ready_nodes(text: &str) -> usize {
    text.lines()
        .filter(|line| line.split_whitespace().nth(1) == Some("Ready"))
        .count()
}

#[test]
fn a_cluster_lives_through_faults_and_leaves_nothing() {
    if let Some(why) = cannot_run_machines() {
        return skip("a_cluster_lives_through_faults_and_leaves_nothing", why);
    }
    let (installation, other) = (Installation::new(), Installation::new());
    let names = [installation.name.clone(), other.name.clone()];
    // What carries our names, and sysctls; others may work on this host at the same time.
    let not_ours = |line: &str| !names.iter().any(|name| line.contains(name)) && !line.starts_with("sysctl ");
    let empty = Picture::take(not_ours);
    refusals::of_hosts(&installation);
    refusals::of_full_disks();
    // A second installation runs beside the first all the while: what is changed of the host is needed until both are gone.
    other.stolos(&["up"]);
    let beside = Picture::take(not_ours);

    upgrade::configure(&installation);
    installation.stolos(&["up"]);
    installation.create_cluster("live", true);
    refusals::of_requests(&installation);
    installation.stolos(&["get-credentials", "live"]);
    installation.eventually("two nodes Ready", &["get", "nodes", "--no-headers"], |text| {
        ready_nodes(text) == 2
    });
    etcd::three_members_keep_their_data(&installation);
    workload::kubectl(&installation);
    workload::autoscaling(&installation);
    workload::helm(&installation);
    workload::load_image(&installation);
    upgrade::a_cluster_with_profiles_is_upgraded(&installation);
    surroundings::a_cluster_in_a_company(&installation);
    refusals::of_ports(&installation);
    faults::processes_are_killed(&installation);
    faults::jobs_are_killed(&installation);
    faults::operations_survive(&installation);
    faults::pods_come_back(&installation);
    faults::every_machine_is_killed(&installation);
    faults::planned_shutdown(&installation);
    faults::host_reboots(&installation);

    workload::pods_are_metered(&installation);
    installation.stolos(&["delete-cluster", "live", "--non-interactive", "--wait"]);
    assert_eq!(
        installation.machines().len(),
        0,
        "a deleted cluster has no machines"
    );
    installation.refused(&["cluster", "live"], "Cluster live not found");
    installation.stolos(&["down", "--purge"]);
    let left = Picture::take(not_ours).difference(&beside);
    assert!(left.is_empty(), "left behind: {left:#?}");
    assert!(!installation.root.exists(), "the state is gone");

    other.stolos(&["clusters"]);
    other.stolos(&["down", "--purge"]);
    let left = Picture::take(not_ours).difference(&empty);
    assert!(left.is_empty(), "left behind by the second: {left:#?}");
}
