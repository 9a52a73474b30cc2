//! The program, from outside: as the agent and the container runtime see it.

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use common::{Init, is_gone, process_state, send, shell, wait};
use stolos_init::wire::{KillMode, What};
use stolos_init::{Exit, State};

#[test]
fn a_process_that_ends_is_started_again_after_growing_pauses() {
    let init = Init::start("");
    let (_, mut events) = init.client().subscribe(None).expect("a subscription");
    init.run("job/dies", "exit 7");
    let mut pauses = Vec::new();
    while pauses.len() < 4 {
        match events.next_event().expect("an event").what {
            What::Failed {
                exit,
                failures,
                retry_ms,
                ..
            } => {
                assert_eq!(exit, Exit::Code(7));
                pauses.push((failures, retry_ms));
            }
            What::Started { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(pauses, [(1, 100), (2, 200), (3, 400), (4, 800)]);
    let status = init.status("job/dies");
    assert_eq!(status.last_exit, Some(Exit::Code(7)));
    assert!(status.failures >= 4, "{status:?}");
    init.client()
        .stop("job/dies", Duration::ZERO)
        .expect("stopped while it waits");
    assert_eq!(init.status("job/dies").state, State::Stopped);
}

#[test]
fn events_that_a_client_missed_are_told_when_it_comes_back() {
    let init = Init::start("");
    init.run("job/a", "exec sleep 600");
    init.running("job/a");
    init.client().stop("job/a", Duration::ZERO).expect("stopped");
    let (last, mut events) = init.client().subscribe(Some(1)).expect("a subscription");
    assert_eq!(last, 2);
    let event = events.next_event().expect("an event");
    assert_eq!((event.number, event.name.as_str()), (2, "job/a"));
    assert_eq!(
        event.what,
        What::Stopped {
            exit: Some(Exit::Signal(15))
        }
    );
}

#[test]
fn what_does_not_end_politely_is_killed_with_all_that_it_started() {
    let init = Init::start("");
    let mut spec = shell(
        "job/stubborn",
        &format!(
            "trap '' TERM; sh -c 'trap \"\" TERM; echo $$ > {0}/child.new; mv {0}/child.new {0}/child; while :; do sleep 1; done' & wait; wait; while :; do sleep 1; done",
            init.path()
        ),
    );
    spec.stop.timeout_s = 0;
    init.run_with(spec);
    let (main, child) = (init.running("job/stubborn"), init.number("child"));
    init.client()
        .stop("job/stubborn", Duration::ZERO)
        .expect("stopped");
    assert!(is_gone(main) && is_gone(child));
    assert_eq!(init.status("job/stubborn").last_exit, Some(Exit::Signal(9)));
}

#[test]
fn a_stop_waits_for_children_that_still_end_politely() {
    let init = Init::start("");
    // The shell ends at once; what it started needs a moment and writes that it got to its end.
    let script = format!(
        "sh -c 'trap \"sleep 0.3; echo done > {0}/end; exit\" TERM; echo $$ > {0}/child; while :; do sleep 0.05; done' & echo; exec sleep 600",
        init.path()
    );
    let mut spec = shell("job/parent", &script);
    // It once went unnoticed, until patience ended, that all was gone.
    spec.stop.timeout_s = 3600;
    init.run_with(spec);
    init.number("child");
    init.client()
        .stop("job/parent", Duration::from_secs(20))
        .expect("stopped");
    assert_eq!(
        std::fs::read_to_string(init.path().join("end")).expect("the child's last word"),
        "done\n"
    );
}

#[test]
fn children_that_are_to_outlive_their_parent_do() {
    let init = Init::start("");
    let mut spec = shell(
        "job/runtime",
        &format!(
            "sleep 600 & echo $! > {0}/child.new; mv {0}/child.new {0}/child; exec sleep 600",
            init.path()
        ),
    );
    spec.stop.kill = KillMode::Process;
    init.run_with(spec);
    let (main, child) = (init.running("job/runtime"), init.number("child"));
    send("KILL", main);
    wait("a second life", || {
        (init.running("job/runtime") != main).then_some(())
    });
    assert_eq!(process_state(child), Some('S'), "a crash leaves children alone");
    init.client()
        .stop("job/runtime", Duration::from_secs(20))
        .expect("stopped");
    assert_eq!(process_state(child), Some('S'), "a stop leaves children alone");
    send("KILL", child);
}

#[test]
fn what_a_crashed_process_leaves_behind_is_gone_before_it_runs_again() {
    let init = Init::start("");
    init.run(
        "job/a",
        &format!(
            "sleep 600 & echo $! > {0}/$$; echo $$ > {0}/main; exec sleep 600",
            init.path()
        ),
    );
    let main = init.running("job/a");
    let child = init.number(&main.to_string());
    send("SEGV", main);
    wait("a second life", || (init.running("job/a") != main).then_some(()));
    assert!(is_gone(child));
    assert_eq!(init.status("job/a").last_exit, Some(Exit::Signal(11)));
}

#[test]
fn orphans_are_reaped() {
    let init = Init::start("");
    // The inner shell ends first, so that what it started has no parent but init.
    init.run(
        "job/a",
        &format!(
            "sh -c '(sleep 0.05; exit 3) & echo $! > {}/orphan'; exec sleep 600",
            init.path()
        ),
    );
    let orphan = init.number("orphan");
    wait("the orphan to be reaped", || {
        process_state(orphan).is_none().then_some(())
    });
    assert!(matches!(init.status("job/a").state, State::Running { .. }));
}

#[test]
fn logs_are_capped_and_lose_nothing_but_the_oldest() {
    let init = Init::start(r#""log_max_bytes":10000,"log_files":3"#);
    init.run(
        "job/talks",
        "i=0; while [ $i -lt 9000 ]; do echo line $i; i=$((i+1)); done; echo end >&2; exec sleep 600",
    );
    let file = |n: &str| init.path().join(format!("log/job/talks.stdout.log{n}"));
    let read = |n: &str| std::fs::read_to_string(file(n)).unwrap_or_default();
    wait("the last line", || {
        read("").ends_with("line 8999\n").then_some(())
    });
    // Lines are written in chunks, which stay whole: a file may pass the cap by its first chunk only.
    let all = format!("{}{}{}", read(".2"), read(".1"), read(""));
    assert!(!file(".3").exists());
    assert!(all.len() < 9000 * 9, "old lines are gone");
    let numbers: Vec<u32> = all
        .lines()
        .skip(1)
        .map(|line| line.trim_start_matches("line ").parse().expect("whole lines"))
        .collect();
    assert!(
        numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]),
        "no line is missing in between"
    );
    let errors = std::fs::read_to_string(init.path().join("log/job/talks.stderr.log"));
    assert_eq!(errors.expect("the other stream"), "end\n");
}

#[test]
fn a_full_disk_holds_up_nobody_and_is_told_afterwards() {
    let init = Init::start("");
    let log = init.path().join("log/job/talks.stdout.log");
    std::fs::create_dir_all(log.parent().expect("a parent")).expect("a directory");
    std::os::unix::fs::symlink("/dev/full", &log).expect("a full disk");
    let script = format!(
        "i=0; while [ $i -lt 3000 ]; do echo a line that is too long for the pipe when there are many; i=$((i+1)); done; \
         echo 1 > {}/through; while :; do echo again; sleep 0.05; done",
        init.path()
    );
    init.run("job/talks", &script);
    init.number("through");
    assert!(matches!(init.status("job/talks").state, State::Running { .. }));
    std::fs::remove_file(&log).expect("room again");
    let text = wait("output after the gap", || {
        let text = std::fs::read_to_string(&log).ok()?;
        text.contains("again").then_some(text)
    });
    assert!(text.starts_with("[stolos-init: "), "{text}");
    assert!(
        text.contains("bytes are missing here: No space left on device"),
        "{text}"
    );
}

#[test]
fn the_agent_is_kept_running_and_jobs_do_not_notice_its_end() {
    let init = Init::start(r#""agent":{"argv":["/bin/sh","-c","echo $$ > DIR/agent; exec sleep 600"]}"#);
    init.run("job/a", "exec sleep 600");
    let (job, agent) = (init.running("job/a"), init.number("agent"));
    send("KILL", agent);
    wait("a new agent", || (init.number("agent") != agent).then_some(()));
    assert_eq!(init.running("job/a"), job);
    let names: Vec<_> = init
        .client()
        .list()
        .expect("a list")
        .into_iter()
        .map(|one| one.name)
        .collect();
    assert_eq!(names, ["job/a"], "the agent is no job");
    assert!(init.client().stop("agent", Duration::ZERO).is_err());
}

#[test]
fn a_change_counts_from_the_next_start_on() {
    let init = Init::start("");
    let first = shell("job/a", "echo one; exec sleep 600");
    init.run_with(first.clone());
    let pid = init.running("job/a");
    let log = init.path().join("log/job/a.stdout.log");
    let says = |text: &str| {
        wait(text, || {
            (std::fs::read_to_string(&log).ok()? == text).then_some(())
        })
    };
    says("one\n");
    let second = shell("job/a", "echo two; exec sleep 600");
    init.run_with(second);
    assert_eq!(init.running("job/a"), pid, "it goes on as it was");
    assert!(init.status("job/a").changed);
    init.client()
        .stop("job/a", Duration::from_secs(20))
        .expect("stopped");
    init.client().start("job/a").expect("started");
    says("one\ntwo\n");
    assert!(!init.status("job/a").changed);
    assert!(
        init.client().remove("job/a").is_err(),
        "what runs is not forgotten"
    );
    init.client()
        .stop("job/a", Duration::from_secs(20))
        .expect("stopped");
    init.client().remove("job/a").expect("forgotten");
    init.client().remove("job/a").expect("forgotten already");
    assert!(init.client().list().expect("a list").is_empty());
    assert!(init.client().start("job/a").is_err());
}

#[test]
fn what_cannot_be_started_is_tried_again_until_it_can() {
    let init = Init::start("");
    let program = init.path().join("program");
    let mut spec = shell("job/a", "");
    spec.argv = vec![program.to_string()];
    spec.restart.max_ms = 100;
    init.run_with(spec);
    let status = wait("two attempts", || {
        Some(init.status("job/a")).filter(|status| status.failures >= 2)
    });
    let Some(Exit::NotStarted(why)) = status.last_exit else {
        panic!("{status:?}");
    };
    assert!(why.contains("No such file"), "{why}");
    std::fs::write(&program, "#!/bin/sh\nexec sleep 600\n").expect("the program");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("executable");
    init.running("job/a");
}

#[test]
fn a_process_gets_what_its_definition_says_and_nothing_else() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can change users");
        return;
    }
    let init = Init::start("");
    std::fs::set_permissions(init.path(), std::fs::Permissions::from_mode(0o755)).expect("open");
    let mut spec = shell(
        "job/a",
        "id -un; id -gn; pwd; ulimit -n; cat /proc/self/oom_score_adj; env | sort; ps -o sid= -p $$ | tr -d ' '; echo $$; grep SigBlk /proc/self/status; exec sleep 600",
    );
    spec.user = "nobody".into();
    spec.cwd = "/tmp".into();
    spec.limits.nofile = Some(777);
    spec.oom_score_adj = Some(500);
    spec.env.insert("ONE".into(), "1".into());
    init.run_with(spec);
    let pid = init.running("job/a");
    let log = init.path().join("log/job/a.stdout.log");
    let text = wait("the output", || {
        std::fs::read_to_string(&log)
            .ok()
            .filter(|text| text.contains("SigBlk"))
    });
    let group = Command::new("id")
        .args(["-gn", "nobody"])
        .output()
        .expect("id")
        .stdout;
    let group = String::from_utf8_lossy(&group).trim().to_owned();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(&lines[..5], ["nobody", &group, "/tmp", "777", "500"], "{text}");
    let names: Vec<_> = lines[5..]
        .iter()
        .filter_map(|line| line.split_once('='))
        .map(|(name, _)| name)
        .collect();
    // `PWD` is the shell's own.
    assert_eq!(names, ["HOME", "LOGNAME", "ONE", "PATH", "PWD", "USER"], "{text}");
    assert!(
        text.contains(&format!("\n{pid}\n{pid}\n")),
        "a session of its own: {text}"
    );
    assert!(
        text.contains("SigBlk:\t0000000000000000"),
        "no signal is blocked: {text}"
    );
}

#[test]
fn the_socket_is_roots_and_survives_garbage() {
    let init = Init::start("");
    let mode = std::fs::metadata(init.socket())
        .expect("the socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    init.run("job/a", "exec sleep 600");

    let mut stream = UnixStream::connect(init.socket()).expect("a connection");
    let mut answers = BufReader::new(stream.try_clone().expect("a second handle"));
    let mut answer = || {
        let mut line = String::new();
        answers.read_line(&mut line).expect("an answer");
        line
    };
    for garbage in [
        "hello",
        "{\"request\":\"explode\"}",
        "[]",
        "{\"request\":\"start\"}",
        "\u{0}\u{1}",
    ] {
        writeln!(stream, "{garbage}").expect("written");
        assert!(answer().starts_with(r#"{"reply":"error""#), "{garbage}");
    }
    // Two requests and a half in one piece, then the rest.
    stream
        .write_all(b"{\"request\":\"hello\"}\n\n{\"request\":\"hello\"}\n{\"requ")
        .expect("written");
    assert!(answer().starts_with(r#"{"reply":"hello""#));
    assert!(answer().starts_with(r#"{"reply":"hello""#));
    stream.write_all(b"est\":\"list\"}\n").expect("written");
    assert!(answer().contains("job/a"));

    // A line without end is refused and the connection closed; others do not notice.
    let mut endless = UnixStream::connect(init.socket()).expect("a connection");
    let _ = endless.write_all(&vec![b'x'; 2 * stolos_init::wire::LINE_LIMIT]);
    let mut all = String::new();
    let _ = endless.read_to_string(&mut all);
    assert!(all.is_empty() || all.starts_with(r#"{"reply":"error""#), "{all}");

    // Bad definitions are refused in words.
    for (field, value) in [
        ("name", "../etc"),
        ("name", "plain"),
        ("argv", ""),
        ("cwd", "a\u{0}b"),
    ] {
        let mut spec = shell("job/b", "true");
        match field {
            "name" => spec.name = value.into(),
            "argv" => spec.argv = vec![],
            _ => spec.cwd = value.into(),
        }
        assert!(init.client().define(&spec).is_err(), "{field} {value:?}");
    }

    // Many who connect and say nothing do not keep others out for ever.
    let silent: Vec<_> = (0..200)
        .filter_map(|_| UnixStream::connect(init.socket()).ok())
        .collect();
    drop(silent);
    wait("an answer", || {
        stolos_init::Client::connect(init.socket()).ok()?.hello().ok()
    });
    assert!(matches!(init.status("job/a").state, State::Running { .. }));
}

#[test]
fn stops_go_on_side_by_side_and_requests_behind_a_stop_wait() {
    let init = Init::start("");
    for name in ["job/a", "job/b"] {
        // Each ends only when the other one has been told to.
        let own = name.replace('/', "-");
        let other = if own == "job-a" { "job-b" } else { "job-a" };
        let script = format!(
            "trap 'touch {0}/{own}; while [ ! -e {0}/{other} ]; do sleep 0.02; done; exit 0' TERM; echo $$ > {0}/{own}.up; while :; do sleep 0.02; done",
            init.path()
        );
        init.run(name, &script);
        init.number(&format!("{own}.up"));
    }
    let mut first = UnixStream::connect(init.socket()).expect("a connection");
    first
        .write_all(b"{\"request\":\"stop\",\"name\":\"job/a\"}\n{\"request\":\"list\"}\n")
        .expect("written");
    init.client()
        .stop("job/b", Duration::from_secs(20))
        .expect("stopped");
    let mut lines = BufReader::new(first).lines();
    let mut next = || lines.next().expect("a line").expect("text");
    assert_eq!(next(), r#"{"reply":"done"}"#);
    let list = next();
    assert!(list.contains(r#""name":"job/a","state":"stopped""#), "{list}");
}

#[test]
fn a_terminated_init_ends_everything_in_order_and_says_whether_to_come_back() {
    let script = |path: &str| {
        format!(
            "trap 'echo bye > {path}/bye; exit 0' TERM; echo $$ > {path}/up; while :; do sleep 0.02; done"
        )
    };
    let mut init = Init::start("");
    init.run("job/a", &script(init.path().as_str()));
    let pid = init.number("up");
    init.signal("TERM");
    assert_eq!(init.wait_end().code(), Some(i32::from(stolos_init::POWERED_OFF)));
    assert!(is_gone(pid));
    assert!(init.path().join("bye").exists(), "it was asked politely");
    assert!(!init.socket().exists());

    let mut init = Init::start(r#""power_off_timeout_s":0"#);
    init.run(
        "job/a",
        &format!(
            "trap '' TERM; setsid sleep 600 & echo $! > {}/child; while :; do sleep 1; done",
            init.path()
        ),
    );
    let (pid, child) = (init.running("job/a"), init.number("child"));
    init.client().reboot().expect("told");
    assert_eq!(init.wait_end().code(), Some(i32::from(stolos_init::REBOOT)));
    assert!(is_gone(pid) && is_gone(child), "what left its group is ended too");
    let log = std::fs::read_to_string(init.path().join("own/init.log")).expect("the log");
    assert!(log.ends_with("rebooting\n"), "{log}");
}

/// The one says goodbye to the other, which waits for that, but not for ever.
#[test]
fn who_comes_after_others_ends_after_them() {
    for (goodbye, order) in [("echo server", "server\nstore\n"), ("exec sleep 600", "store\n")] {
        let mut init = Init::start(r#""power_off_timeout_s":2"#);
        let path = init.path().to_owned();
        let script = |name: &str, goodbye: &str| {
            format!(
                "trap 'exec >> {path}/order; sleep 0.3; {goodbye}; exit 0' TERM; echo $$ > {path}/{name}; \
                 while :; do sleep 0.02; done"
            )
        };
        init.run("b/server", &script("server", goodbye));
        let mut store = shell("a/store", &script("store", "echo store"));
        store.stop.after = vec!["b/server".to_owned(), "c/not-here".to_owned()];
        init.run_with(store);
        let pids = [init.number("server"), init.number("store")];
        init.signal("TERM");
        assert_eq!(init.wait_end().code(), Some(i32::from(stolos_init::POWERED_OFF)));
        assert!(pids.into_iter().all(is_gone));
        let said = std::fs::read_to_string(path.join("order")).expect("an order");
        assert_eq!(said, order);
    }
}

#[test]
fn nothing_is_started_while_the_machine_ends() {
    let mut init = Init::start("");
    init.run(
        "job/slow",
        &format!(
            "trap 'touch {0}/told; sleep 0.5; exit 0' TERM; echo $$ > {0}/up; while :; do sleep 0.02; done",
            init.path()
        ),
    );
    init.number("up");
    let mut client = init.client();
    client
        .define(&shell("job/late", "exec sleep 600"))
        .expect("defined");
    init.signal("TERM");
    wait("the end to begin", || {
        init.path().join("told").exists().then_some(())
    });
    let error = client.start("job/late").expect_err("refused");
    assert!(error.to_string().contains("powered off"), "{error}");
    init.wait_end();
}

#[test]
fn as_pid_1_it_ends_strangers_too() {
    let unshare = ["--pid", "--mount-proc", "--fork", "--kill-child"];
    let works = Command::new("unshare").args(unshare).arg("true").output();
    if !works.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no process id namespace can be made here");
        return;
    }
    let mut init = Init::start_by("", |program| {
        let mut command = Command::new("unshare");
        command.args(unshare).arg(program);
        command
    });
    let (_, pid, _) = init.client().hello().expect("an answer");
    assert_eq!(pid, 1);
    // A pod: a session of its own, and its parent, which is to be left alone, is gone.
    let mut spec = shell(
        "job/runtime",
        &format!(
            "setsid sh -c 'trap \"echo 1 > {0}/polite; exit\" TERM; touch {0}/pod; while :; do sleep 0.02; done' & exec sleep 600",
            init.path()
        ),
    );
    spec.stop.kill = KillMode::Process;
    init.run_with(spec);
    wait("the pod", || init.path().join("pod").exists().then_some(()));
    init.client()
        .stop("job/runtime", Duration::from_secs(20))
        .expect("stopped");
    assert!(!init.path().join("polite").exists());
    init.client().power_off().expect("told");
    assert!(init.wait_end().success());
    assert!(init.path().join("polite").exists(), "the pod was ended in order");
}

#[test]
fn each_process_has_a_control_group_of_its_own_which_ends_with_it() {
    let name = format!("stolos-test-{}", std::process::id());
    let init = Init::start(&format!(r#""cgroup":"/{name}""#));
    let mut spec = shell(
        "job/a",
        // Out of the process group and of the session: only the control group still knows it.
        &format!(
            "setsid sh -c 'trap \"\" TERM; echo $$ > {0}/child.new; mv {0}/child.new {0}/child; while :; do sleep 1; done' & exec sleep 600",
            init.path()
        ),
    );
    spec.stop.timeout_s = 0;
    init.run_with(spec);
    let (pid, child) = (init.running("job/a"), init.number("child"));
    let groups = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its groups");
    let own: Vec<String> = groups(pid)
        .lines()
        .filter(|line| line.contains(&name))
        .map(str::to_owned)
        .collect();
    if own.is_empty() {
        eprintln!("skipped: no control group can be made here");
        return;
    }
    assert!(
        own.iter()
            .all(|line| line.ends_with(&format!("/{name}/jobs/job@a"))),
        "{own:?}"
    );
    assert_eq!(
        groups(init.pid())
            .lines()
            .filter(|line| line.ends_with(&format!("/{name}/init")))
            .count(),
        own.len()
    );
    assert_eq!(groups(pid), groups(child));
    init.client().stop("job/a", Duration::ZERO).expect("stopped");
    assert!(is_gone(child), "what left the process group is ended with it");
    drop(init);
    // The test's own groups are its to remove.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    for point in mounts
        .lines()
        .filter(|line| line.contains(" - cgroup"))
        .filter_map(|line| line.split(' ').nth(4))
    {
        let find = Command::new("find")
            .args([
                point,
                "-depth",
                "-type",
                "d",
                "-path",
                &format!("*/{name}*"),
                "-delete",
            ])
            .output();
        assert!(find.is_ok());
    }
}
