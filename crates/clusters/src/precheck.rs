//! Whether a cluster is well enough to be upgraded (pks.md, section 1.6): its certificates, its processes, its disks. Pure.

use jiff::Timestamp;
use stolos_api::pks::{CheckKind, CheckResult, PreCheck};

use crate::deps::{Certificate, MachineHealth};
use crate::show;

/// Certificates that end within so many days are named; they stop nothing.
const ENDS_SOON: i64 = 180;
/// A disk that is so full, in percent, stops an upgrade half-way.
const FULL: u32 = 100;
/// The word of a machine all of whose processes run.
const RUNNING: &str = "running";

/// Judges a cluster by what is known of it at `now`.
pub(crate) fn check(certificates: Vec<Certificate>, machines: &[MachineHealth], now: Timestamp) -> PreCheck {
    let shown = certificates
        .into_iter()
        .map(|certificate| show::certificate(certificate, now));
    let (ended, rest): (Vec<_>, Vec<_>) = shown.partition(|certificate| certificate.days_left < 0);
    let ends_soon = rest
        .into_iter()
        .filter(|certificate| certificate.days_left <= ENDS_SOON)
        .collect();
    let ended = ended
        .into_iter()
        .map(|certificate| format!("{} ended on {}", certificate.name, certificate.valid_until))
        .collect();
    let processes = machines.iter().filter_map(not_running).collect();
    let storage = machines.iter().flat_map(full_disks).collect();
    let result = |kind, problems: Vec<String>| CheckResult {
        kind,
        passed: problems.is_empty(),
        problems,
    };
    PreCheck {
        checks: vec![
            result(CheckKind::Certificates, ended),
            result(CheckKind::Processes, processes),
            result(CheckKind::Storage, storage),
        ],
        ends_soon,
    }
}

fn not_running(machine: &MachineHealth) -> Option<String> {
    let name = &machine.name;
    if machine.state != RUNNING {
        let which: Vec<&str> = machine.not_running.iter().map(String::as_str).collect();
        return Some(if which.is_empty() {
            format!("{name}: {}", machine.state)
        } else {
            format!("{name}: {} ({})", machine.state, which.join(", "))
        });
    }
    None
}

fn full_disks(machine: &MachineHealth) -> impl Iterator<Item = String> {
    machine
        .disks
        .iter()
        .filter(|(_, percent)| *percent >= FULL)
        .map(|(disk, percent)| format!("{}: the {disk} disk is {percent} % full", machine.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stops_an_upgrade_is_named() {
        let now: Timestamp = "2026-11-01T00:00:00Z".parse().expect("a time");
        let certificate = |name: &str, until: &str| Certificate {
            name: name.to_owned(),
            is_root: false,
            valid_until: until.parse().expect("a time"),
        };
        let machine = |name: &str, state: &str, fill| MachineHealth {
            name: name.to_owned(),
            state: state.to_owned(),
            not_running: if state == "failing" {
                vec!["kubelet/kubelet".to_owned()]
            } else {
                Vec::new()
            },
            disks: vec![("system".to_owned(), 10), ("persistent".to_owned(), fill)],
        };
        let certificates = vec![
            certificate("old", "2026-10-01T00:00:00Z"),
            certificate("soon", "2027-01-01T00:00:00Z"),
            certificate("fine", "2030-01-01T00:00:00Z"),
        ];
        let machines = [
            machine("master/0", "running", 99),
            machine("worker/0", "failing", 100),
            machine("worker/1", "unresponsive agent", 0),
        ];
        let found = check(certificates, &machines, now);
        let problems: Vec<_> = found
            .checks
            .iter()
            .map(|check| (check.passed, check.problems.clone()))
            .collect();
        assert_eq!(
            problems,
            [
                (false, vec!["old ended on 2026-10-01T00:00:00Z".to_owned()]),
                (
                    false,
                    vec![
                        "worker/0: failing (kubelet/kubelet)".to_owned(),
                        "worker/1: unresponsive agent".to_owned()
                    ]
                ),
                (
                    false,
                    vec!["worker/0: the persistent disk is 100 % full".to_owned()]
                ),
            ]
        );
        assert_eq!(found.ends_soon.len(), 1);
        let well = check(Vec::new(), &machines[..1], now);
        assert!(well.checks.iter().all(|check| check.passed));
    }
}
