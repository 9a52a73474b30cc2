//! Requests that have to be refused: with a clear message, exit code 1, and nothing left of them.

use std::process::Command;

use camino::Utf8Path;
use rustix::process::Signal;
use stolos_testbed::programs;

use crate::installation::{Installation, said};

impl Installation {
    /// A command that has to be refused with exit code 1 and these words.
    #[track_caller]
    pub(crate) fn refused(&self, arguments: &[&str], words: &str) {
        refused(self.command(&programs::ours("stolos")).args(arguments), words);
    }
}

#[track_caller]
fn refused(command: &mut Command, words: &str) {
    let output = command.output().expect("stolos runs");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{command:?}: {text}");
    assert!(text.contains(words), "{command:?} says: {text}");
}

/// Before anything runs: a host that cannot carry an installation.
pub(crate) fn of_hosts(installation: &Installation) {
    let stolos = programs::ours("stolos");
    // The program is copied, because somebody who is not root may not be able to reach it.
    let open = camino_tempfile::tempdir().expect("a directory");
    let copy = open.path().join("stolos");
    fs_err::copy(&stolos, &copy).expect("a copy");
    let reach = Command::new("chmod")
        .args(["-R", "a+rx", open.path().as_str()])
        .status();
    assert!(reach.expect("chmod").success());
    let mut nobody = installation.command(Utf8Path::new("setpriv"));
    nobody
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            copy.as_str(),
            "up",
        ])
        .current_dir(open.path());
    refused(&mut nobody, "root");

    let empty = camino_tempfile::tempdir().expect("a directory");
    let mut without = installation.command(&stolos);
    without.arg("up").env("PATH", empty.path());
    refused(&mut without, "runc");

    let small = camino_tempfile::tempdir().expect("a directory");
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs", small.path().as_str()])
        .status();
    assert!(mount.expect("mount").success());
    let mut full = installation.command(&stolos);
    full.arg("up").env("STOLOS_ROOT", small.path().join("root"));
    let check = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| refused(&mut full, "disk")));
    let unmount = Command::new("umount").arg(small.path()).status();
    assert!(unmount.expect("umount").success());
    assert!(check.is_ok(), "a full disk is not refused");
    assert!(!installation.root.exists(), "a refused host is left as it was");
}

/// With a cluster named `live`.
pub(crate) fn of_requests(installation: &Installation) {
    let create = |name, host, plan, nodes| {
        [
            "create-cluster",
            name,
            "-e",
            host,
            "-p",
            plan,
            "-n",
            nodes,
            "--non-interactive",
        ]
    };
    installation.refused(&create("x", "x.test", "huge", "1"), "Plan Not Found");
    installation.refused(&create("live", "y.test", "small", "1"), "already in use");
    installation.refused(&create("x", "live.test", "small", "1"), "already in use");
    installation.refused(&create("x", "a_b", "small", "1"), "not valid");
    installation.refused(&create("x", "x.test", "small", "0"), "not between 1 and");
    installation.refused(&create("x", "x.test", "small", "51"), "not between 1 and");
    installation.refused(&create("a/../b", "x.test", "small", "1"), "not valid");
    installation.refused(&create("x", "x.test", "small", "50"), "MiB of memory");
    installation.refused(&["get-credentials", "nobody"], "not found");
    let clusters = installation.json(&["clusters", "--json"]);
    assert_eq!(
        clusters.as_array().map(Vec::len),
        Some(1),
        "refused requests leave nothing: {clusters}"
    );

    let bad = installation.home.path().join("bad.yml");
    fs_err::write(
        &bad,
        "name: bad\nreleases:\n- {name: kubernetes, version: latest}\ninstance_groups: {a: b}\n",
    )
    .expect("a manifest");
    installation.refused(&["deploy", bad.as_str(), "--non-interactive"], "line 4, column");
    assert_eq!(
        installation
            .json(&["deployments", "--json"])
            .as_array()
            .map(Vec::len),
        Some(1),
        "a refused manifest leaves no deployment"
    );
    installation.refused(&["load-image", "live", bad.as_str()], "no archive of images");

    // Somebody's token, changed by a letter in its payload, is nobody's.
    let session = installation.home.path().join(".pks/creds.yml");
    let kept = fs_err::read_to_string(&session).expect("a session");
    let forged: String = kept
        .lines()
        .filter(|line| !line.starts_with("refresh_token"))
        .map(|line| match line.strip_prefix("access_token:") {
            Some(token) => format!("access_token:{}\n", token.replacen('.', ".x", 1)),
            None => format!("{line}\n"),
        })
        .collect();
    fs_err::write(&session, forged).expect("a forged session");
    installation.refused(&["clusters"], "not currently authenticated");
    fs_err::write(&session, kept).expect("the session");
}

/// A port that somebody else has: `up` names it, and works once it is free.
pub(crate) fn of_ports(installation: &Installation) {
    let api = installation.root.join("network.json");
    let network: serde_json::Value =
        serde_json::from_str(&fs_err::read_to_string(api).expect("the network")).expect("JSON");
    let range = network["range"].as_str().expect("a range");
    let host = range.replace(".0.0/16", ".0.1");
    let stolosd = installation.recorded("run/stolosd.pid");
    stolosd.signal(Signal::KILL).expect("killed");
    let taken = crate::installation::eventually("the port to be free", || {
        std::net::TcpListener::bind(format!("{host}:9021")).map_err(|error| error.to_string())
    });
    let output = installation.run(&["up"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("9021"), "{text}");
    drop(taken);
    installation.stolos(&["up"]);
}

/// A disk that has room for the manager and not for a cluster, and then for nothing: creating fails with the numbers, deleting works all the same.
pub(crate) fn of_full_disks() {
    let place = camino_tempfile::tempdir_in("/var/tmp").expect("a directory");
    let (image, mounted) = (place.path().join("disk"), place.path().join("mounted"));
    fs_err::create_dir(&mounted).expect("a directory");
    let run = |program: &str, arguments: &[&str]| {
        said(Command::new(program).args(arguments)).unwrap_or_else(|error| panic!("{program}: {error}"))
    };
    run("truncate", &["-s", "2600M", image.as_str()]);
    run("mkfs.ext4", &["-q", "-F", image.as_str()]);
    run("mount", &["-o", "loop", image.as_str(), mounted.as_str()]);
    let check = std::panic::catch_unwind(|| {
        let installation = Installation::below(&mounted);
        installation.stolos(&["up"]);
        let fails_and_goes = |name: &str| {
            let host = format!("{name}.test");
            let create = [
                "create-cluster",
                name,
                "-e",
                &host,
                "-p",
                "small",
                "--non-interactive",
                "--wait",
            ];
            installation.refused(&create, "MiB free");
            assert_eq!(
                installation.json(&["cluster", name, "--json"])["last_action_state"],
                "failed"
            );
            installation.stolos(&["delete-cluster", name, "--non-interactive", "--wait"]);
            assert_eq!(installation.machines().len(), 0);
        };
        fails_and_goes("large");
        let fill = mounted.join("fill");
        let stat = rustix::fs::statvfs(mounted.as_std_path()).expect("the file system");
        let bytes = (stat.f_bavail * stat.f_frsize).saturating_sub(4 << 20);
        run("fallocate", &["-l", &bytes.to_string(), fill.as_str()]);
        fails_and_goes("full");
        // To the last byte: what is asked for is refused, what is there can be seen, and everything goes on when there is room again.
        let rest = mounted.join("rest");
        let mut file = fs_err::File::create(&rest).expect("a file");
        while std::io::Write::write_all(&mut file, &[0; 512]).is_ok() {}
        let limit = |name: &str| {
            let words = [
                "create-quota",
                name,
                "--cpu",
                "1",
                "--memory",
                "1",
                "--clusters",
                "1",
            ];
            installation.run(&words)
        };
        // The database has some room of its own.
        let refused = (0..200)
            .map(|n| limit(&format!("owner{n}")))
            .find(|made| !made.status.success());
        let why = refused.map(|made| String::from_utf8_lossy(&made.stderr).into_owned());
        let why = why.expect("nothing fits on a full disk");
        assert!(why.contains("no space is left"), "{why}");
        installation.stolos(&["clusters"]);
        fs_err::remove_file(&rest).expect("removed");
        fs_err::remove_file(&fill).expect("removed");
        let made = limit("later");
        assert!(made.status.success(), "{made:?}");
    });
    run("umount", &[mounted.as_str()]);
    if let Err(panic) = check {
        std::panic::resume_unwind(panic);
    }
}
