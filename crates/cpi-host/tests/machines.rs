//! Real machines on this host: needs root and the host's programs, else it says why it skips.

mod support;

use std::time::Duration;

use camino::Utf8PathBuf;
use serde_json::{Map, Value};
use stolos_base::IdSource;
use stolos_cpi::conformance::{self, Env};
use stolos_cpi::{Cpi, Kind, Metadata, Runner, RunnerConfig, VmResources};
use stolos_cpi_host::HostCpi;
use support::{Bench, block_on};

fn env(bench: &Bench) -> Env {
    Env {
        image: bench.image().into_string(),
        networks: [bench.networks(2), bench.networks(3)],
        resources: VmResources {
            ram: 128,
            cpu: 1,
            ephemeral_disk_size: 256,
        },
        disk: 16,
        ids: IdSource::random(),
    }
}

#[test]
fn the_host_conforms() {
    let Some(bench) = Bench::new() else { return };
    let cpi = HostCpi::new(bench.host.clone());
    block_on(conformance::run(&cpi, &env(&bench))).expect("conformance");
    bench.host.destroy_all().expect("destroyed");
}

#[test]
fn the_executable_conforms() {
    let Some(bench) = Bench::new() else { return };
    let runner = Runner::new(
        RunnerConfig {
            program: Utf8PathBuf::from(env!("CARGO_BIN_EXE_stolos-cpi-host")),
            arguments: vec!["--config".to_owned(), bench.config().into_string()],
            calls: bench.dir.path().join("calls"),
            director: "d".to_owned(),
            context: Map::new(),
            limit: Duration::from_secs(120),
        },
        IdSource::random(),
    );
    block_on(conformance::run(&runner, &env(&bench))).expect("conformance");
    // A call whose journal is lost with its process is made again under the same id, and makes nothing new.
    let none = Map::new();
    let disk = block_on(runner.call("step").create_disk(8, &none, None)).expect("a disk");
    fs_err::remove_dir_all(bench.dir.path().join("calls/step")).expect("the journal is lost");
    assert_eq!(
        block_on(runner.call("step").create_disk(8, &none, None)).expect("a disk"),
        disk
    );
}

#[test]
fn a_machine_is_what_the_contract_says() {
    let Some(bench) = Bench::new() else { return };
    let stemcell = bench.stemcell();
    let request = bench.request(&stemcell, 2);
    let (cid, _) = bench.host.create_vm(&request).expect("a machine");
    bench.until_up(2);
    let report: Value = serde_json::from_str(&bench.ask(2, "report")).expect("a report");
    assert_eq!(report["pid"], 1);
    assert_eq!(report["hostname"], cid.as_str());
    assert_eq!(
        report["machine_id"],
        request.agent_id.as_uuid().simple().to_string()
    );
    assert_eq!(report["resolver"], format!("nameserver {}", bench.address(1)));
    assert_eq!(report["memory"], (128 << 20).to_string());
    assert_eq!(report["pids"], "200");
    assert!(
        report["cpu"].as_str().expect("a quota").starts_with("100000"),
        "{report}"
    );
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    assert_eq!(report["files"][1].as_u64(), files);
    let mounts = report["mounts"].as_str().expect("mounts");
    let mount = |point: &str| {
        let found = mounts.lines().find(|line| line.split(' ').nth(4) == Some(point));
        found.unwrap_or_else(|| panic!("{point} is no mount: {mounts}"))
    };
    // Runtimes make the root's own mount private again before they enter it, so that init has to share it for pods.
    assert_eq!(bench.ask(2, "share"), "ok");
    assert!(
        !mount("/var").contains("- overlay"),
        "containers cannot lie on an overlay"
    );
    assert!(mount("/var").contains(" rw,"));
    for point in ["/var/vcap/shared/packages", "/var/vcap/shared/images"] {
        assert!(mount(point).contains(" ro,"), "{point} is read-only");
    }
    assert_eq!(bench.ask(2, "cat /var/vcap/bosh/from-stemcell"), "yes");
    fs_err::write(bench.host.instance().packages().join("later"), "seen").expect("a package");
    assert_eq!(bench.ask(2, "cat /var/vcap/shared/packages/later"), "seen");
    for device in ["/dev/kmsg", "/dev/fuse", "/dev/net/tun"] {
        assert_eq!(bench.ask(2, &format!("exists {device}")), "true", "{device}");
    }
    let settings: Value =
        serde_json::from_str(&bench.ask(2, "cat /var/vcap/bosh/settings.json")).expect("settings");
    assert_eq!(settings["agent_id"], request.agent_id.to_string());
    assert_eq!(settings["networks"]["default"]["preconfigured"], true);
    assert_eq!(settings["env"]["bosh"]["mbus"]["cert"]["private_key"], "a key");

    // A neighbour reaches it; nobody else gets its address; nothing of it is mounted on the host.
    bench
        .host
        .create_vm(&bench.request(&stemcell, 3))
        .expect("a neighbour");
    bench.until_up(3);
    assert_eq!(bench.ask(3, &format!("connect {}:7", bench.address(2))), "ok");
    assert_eq!(bench.ask(3, &format!("connect {}:7", bench.address(3))), "ok");
    let error = bench
        .host
        .create_vm(&bench.request(&stemcell, 2))
        .expect_err("a taken address");
    assert!(error.to_string().contains(cid.as_str()), "{error}");
    let host_mounts = fs_err::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!host_mounts.contains(cid.as_str()), "{host_mounts}");
}

#[test]
fn what_does_not_fit_is_refused_with_the_numbers() {
    let Some(bench) = Bench::new() else { return };
    let stemcell = bench.stemcell();
    let check = |key: &str, value: u64| {
        let mut request = bench.request(&stemcell, 2);
        request.cloud_properties.insert(key.to_owned(), value.into());
        let error = bench
            .host
            .create_vm(&request)
            .expect_err("it does not fit")
            .into_cpi(Kind::CpiError);
        assert!(error.to_string().contains(&value.to_string()), "{error}");
        assert!(
            bench.host.machines().expect("machines").is_empty(),
            "nothing is made"
        );
        error
    };
    assert_eq!(check("ram", 1 << 30).kind(), Some(Kind::VmCreationFailed));
    assert_eq!(check("cpu", 100_000).kind(), Some(Kind::VmCreationFailed));
    assert_eq!(
        check("ephemeral_disk_size", 1 << 40).kind(),
        Some(Kind::NoDiskSpace)
    );
    let error = bench
        .host
        .create_disk(15 << 20, &Map::new(), None)
        .expect_err("a disk that does not fit");
    assert_eq!(error.into_cpi(Kind::CpiError).kind(), Some(Kind::NoDiskSpace));
    assert_eq!(bench.host.left().expect("asked"), Vec::<String>::new());
}

#[test]
fn disks_come_and_go_live_and_outlive_machines() {
    let Some(bench) = Bench::new() else { return };
    let stemcell = bench.stemcell();
    let none = Metadata::new();
    let (cid, _) = bench
        .host
        .create_vm(&bench.request(&stemcell, 2))
        .expect("a machine");
    bench.until_up(2);
    let disk = bench.host.create_disk(64, &none, None).expect("a disk");
    let image = bench.host.instance().disks().join(format!("{disk}.img"));
    let made = std::process::Command::new("mkfs.ext4")
        .args(["-q", image.as_str()])
        .status()
        .expect("mkfs.ext4");
    assert!(made.success());
    let hint = bench.host.attach_disk(&cid, &disk).expect("attached");
    let path = hint["path"].as_str().expect("a path").to_owned();
    assert_eq!(path, format!("/dev/stolos/{disk}"));
    assert_eq!(bench.ask(2, &format!("mount {path} /var/store")), "ok");
    assert_eq!(bench.ask(2, "put /var/store/file kept"), "ok");

    // A snapshot of a mounted disk is whole, and the machine goes on writing.
    let snapshot = bench.host.snapshot_disk(&disk, &none, None).expect("a snapshot");
    assert_eq!(bench.ask(2, "put /var/store/after frozen-no-more"), "ok");
    let copy = bench.host.instance().snapshots().join(format!("{snapshot}.img"));
    let checked = std::process::Command::new("e2fsck")
        .args(["-fn", copy.as_str()])
        .output()
        .expect("e2fsck");
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stdout)
    );

    // Every machine is gone at once, as after a reboot of the host; the disk is there again when it is back.
    let pid = bench
        .pid(&cid)
        .and_then(rustix::process::Pid::from_raw)
        .expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
    block_on(stolos_base::poll::until(
        "its end",
        Duration::from_millis(5),
        Duration::from_secs(20),
        || async { bench.pid(&cid).map_or(Ok(()), |pid| Err(format!("{pid} lives"))) },
    ))
    .expect("it ended");
    assert!(bench.host.restore(&cid).expect("restored"));
    bench.until_up(2);
    assert_eq!(bench.ask(2, &format!("mount {path} /var/store")), "ok");
    assert_eq!(bench.ask(2, "cat /var/store/file"), "kept");
    assert_eq!(bench.ask(2, "umount /var/store"), "ok");
    bench.host.detach_disk(&cid, &disk).expect("detached");
    assert_eq!(bench.ask(2, &format!("exists {path}")), "false");

    // Deleting a machine that has the disk mounted frees the disk.
    bench.host.attach_disk(&cid, &disk).expect("attached");
    assert_eq!(bench.ask(2, &format!("mount {path} /var/store")), "ok");
    bench.host.delete_vm(&cid).expect("deleted");
    let (other, _) = bench
        .host
        .create_vm(&bench.request(&stemcell, 3))
        .expect("another machine");
    bench.host.attach_disk(&other, &disk).expect("attached");
    bench.until_up(3);
    assert_eq!(bench.ask(3, &format!("mount {path} /var/store")), "ok");
    assert_eq!(bench.ask(3, "cat /var/store/after"), "frozen-no-more");
}

#[test]
fn nothing_is_left_and_the_other_instance_stays() {
    let (Some(bench), Some(other)) = (Bench::new(), Bench::new()) else {
        return;
    };
    let (theirs, _) = other
        .host
        .create_vm(&other.request(&other.stemcell(), 2))
        .expect("the other's machine");
    other.until_up(2);
    let before = other.host.left().expect("asked");

    let stemcell = bench.stemcell();
    // Machines are made at once.
    std::thread::scope(|scope| {
        for last in 2..=5 {
            let (bench, stemcell) = (&bench, &stemcell);
            scope.spawn(move || {
                bench
                    .host
                    .create_vm(&bench.request(stemcell, last))
                    .expect("a machine")
            });
        }
    });
    let machines = bench.host.machines().expect("machines");
    assert_eq!(machines.len(), 4);
    let disk = bench.host.create_disk(16, &Map::new(), None).expect("a disk");
    bench.host.attach_disk(&machines[0].cid, &disk).expect("attached");
    assert_ne!(bench.host.left().expect("asked"), Vec::<String>::new());
    let pids: Vec<i32> = machines
        .iter()
        .filter_map(|machine| bench.pid(&machine.cid))
        .collect();
    assert_eq!(pids.len(), 4);

    bench.host.destroy_all().expect("destroyed");
    bench.host.destroy_all().expect("destroyed again");
    assert_eq!(bench.host.left().expect("asked"), Vec::<String>::new());
    for pid in pids {
        assert_eq!(stolos_base::process::Process::of(pid), None, "process {pid}");
    }
    assert!(bench.host.has_disk(&disk), "disks are data");
    assert_eq!(other.host.left().expect("asked"), before);
    assert!(other.pid(&theirs).is_some());
    assert_eq!(other.ask(2, "exists /sbin/init"), "true");
}
