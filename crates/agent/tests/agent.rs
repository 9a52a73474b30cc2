//! The agent with real scripts and a real init, as a director sees it.

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use common::{Machine, eventually, job, until};
use futures::StreamExt as _;
use indexmap::IndexMap;
use serde_json::{Value, json};
use stolos_agent::platform::Memory;
use stolos_mbus::call::Drain;
use stolos_mbus::client::{Event, events};
use stolos_mbus::message::AgentTask;
use stolos_mbus::rights::Peer;
use stolos_mbus::settings::UpdateSettings;
use stolos_mbus::state::JobState;
use stolos_mbus::{Call, Reply};

/// Not a test: other tests start this program again to have an init.
#[test]
fn init_program() {
    common::be_init_if_asked();
}

fn script(name: &str) -> Call {
    Call::RunScript {
        script: name.into(),
        env: IndexMap::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spec_becomes_running_jobs() {
    let machine = Machine::boot().await;
    let root = machine.dir.path();
    let state = machine.agent().get_state().await.expect("a state");
    assert_eq!(
        state.job_state,
        JobState::Running,
        "a machine without jobs, in BOSH's words"
    );

    let web = || {
        job("web")
            .script(
                "pre-start",
                format!("echo \"$PATH $EXTRA\" > {root}/pre-start; env | wc -l >> {root}/pre-start"),
            )
            .script("post-start", format!("touch {root}/post-start"))
            .file("config/secret.txt", "TOPSECRET")
            .process(
                "server",
                format!("echo up; echo $$ > {root}/server; exec sleep 600"),
            )
    };
    let spec = machine
        .spec(7, &[web(), job("plain").file("config/x", "y")])
        .await;
    machine.agent().prepare(spec.clone()).await.expect("prepared");
    assert!(
        !machine.paths.jobs().join("web").exists(),
        "nothing is switched yet"
    );
    machine.agent().apply(spec.clone()).await.expect("applied");
    let state = machine.agent().get_state().await.expect("a state");
    assert_eq!(state.job_state, JobState::Stopped);

    let env = IndexMap::from([("EXTRA".to_owned(), "extra".to_owned())]);
    let started = machine.agent().run_script("pre-start", env).await;
    started.expect("pre-start ran");
    let seen = machine.read("pre-start");
    assert!(
        seen.starts_with("/usr/sbin:/usr/bin:/sbin:/bin extra\n"),
        "{seen}"
    );
    machine.agent().start_jobs().await.expect("started");
    machine.until_state("running").await;
    machine.call(script("post-start")).await.expect("post-start ran");
    assert!(root.join("post-start").exists());

    let mode = |path: &str| {
        fs_err::metadata(machine.paths.jobs().join(path))
            .expect("a file")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(
        (
            mode("web/bin/pre-start"),
            mode("web/config/secret.txt"),
            mode("web")
        ),
        (0o750, 0o640, 0o750)
    );
    assert_eq!(machine.read("vcap/instance/az"), "z1");
    let log = machine.paths.log().join("web/server.stdout.log");
    eventually("the log", || {
        fs_err::read_to_string(&log).is_ok_and(|text| text == "up\n")
    })
    .await;
    let spec_mode = fs_err::metadata(machine.paths.spec())
        .expect("the spec")
        .permissions()
        .mode();
    assert_eq!(spec_mode & 0o777, 0o600);
    let blobs = fs_err::read_dir(machine.paths.sensitive_blobs())
        .expect("blobs")
        .count();
    assert_eq!(blobs, 0, "what came over the bus is gone once it was used");

    // The same again changes nothing; what the process is stays.
    let pid = machine.pid("web/server");
    machine
        .deploy(7, &[web(), job("plain").file("config/x", "y")])
        .await;
    assert_eq!(machine.pid("web/server"), pid);

    // A job that is gone takes its processes and links with it.
    machine.agent().stop_jobs().await.expect("stopped");
    assert_eq!(
        machine.agent().get_state().await.expect("a state").job_state,
        JobState::Stopped
    );
    machine.deploy(8, &[job("plain").file("config/x", "z")]).await;
    machine.until_state("running").await;
    assert!(!machine.paths.jobs().join("web").exists());
    assert!(
        machine
            .agent()
            .get_state()
            .await
            .expect("a state")
            .processes
            .is_empty()
    );
    assert_eq!(
        fs_err::read_dir(machine.paths.data_jobs())
            .expect("a directory")
            .count(),
        1,
        "old content is gone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_have_the_shapes_of_bosh() {
    let machine = Machine::boot().await;
    let core = machine.core();
    let ask = async |call: Call| serde_json::to_value(core.handle(call).await).expect("JSON");
    assert_eq!(ask(Call::Ping).await, json!({"value": "pong"}));
    assert_eq!(ask(Call::Info).await, json!({"value": {"api_version": 1}}));
    assert_eq!(
        ask(Call::GetTask("x".into())).await,
        json!({"exception": {"message": "Task with id x could not be found"}})
    );
    assert_eq!(
        ask(Call::SyncDns {
            blob_id: "b".into(),
            digest: "d".into(),
            version: 1
        })
        .await,
        json!({"exception": {"message": "unknown message sync_dns"}})
    );
    let running = ask(Call::ListDisk).await;
    assert_eq!(running["value"]["state"], "running");
    assert!(running["value"]["agent_task_id"].is_string());
    assert_eq!(machine.call(Call::ListDisk).await, Ok(json!([])));
    assert_eq!(
        machine
            .call(Call::MountDisk("disk-9".into()))
            .await
            .expect_err("no such disk")
            .split(": ")
            .last(),
        Some("Persistent disk with volume id 'disk-9' could not be found")
    );

    let spec = machine.spec(3, &[job("a").process("p", "exec sleep 600")]).await;
    assert_eq!(
        machine.call(Call::Prepare(Box::new(spec.clone()))).await,
        Ok(json!("prepared"))
    );
    assert_eq!(
        machine.call(Call::Apply(Box::new(spec.clone()))).await,
        Ok(json!("applied"))
    );
    assert_eq!(ask(Call::Start).await, json!({"value": "started"}));
    assert_eq!(
        machine.call(script("pre-start")).await,
        Ok(json!({})),
        "no job has it"
    );
    assert_eq!(
        machine.call(Call::Drain(Drain::Shutdown(None))).await,
        Ok(json!(0))
    );
    machine.until_state("running").await;
    let state = ask(Call::GetState { full: true }).await;
    let state = &state["value"];
    // What the director compares comes back as it was sent.
    let sent = serde_json::to_value(&spec).expect("JSON");
    for field in [
        "networks",
        "deployment",
        "index",
        "id",
        "az",
        "job",
        "configuration_hash",
        "persistent_disk",
        "generation",
    ] {
        assert_eq!(state[field], sent[field], "{field}");
    }
    assert_eq!(state["agent_id"], json!(machine.id));
    assert_eq!(state["vm"], json!({"name": "vm-1"}));
    let process = &state["processes"][0];
    assert_eq!(
        (&process["name"], &process["state"]),
        (&json!("a/p"), &json!("running"))
    );
    assert!(
        process["uptime"]["secs"].is_u64() && process["mem"]["kb"].as_u64() > Some(0),
        "{process}"
    );
    assert!(
        process["mem"]["percent"].is_f64() && process["cpu"]["total"].is_f64(),
        "{process}"
    );
    let vitals = &state["vitals"];
    for field in [
        &vitals["mem"]["kb"],
        &vitals["mem"]["percent"],
        &vitals["disk"]["system"]["percent"],
        &vitals["load"][2],
    ] {
        assert!(
            field.as_str().is_some_and(|text| text.parse::<f64>().is_ok()),
            "{vitals}"
        );
    }
    assert!(
        ask(Call::GetState { full: false }).await["value"]
            .get("vitals")
            .is_none()
    );
    assert_eq!(machine.call(Call::Stop).await, Ok(json!("stopped")));
    assert_eq!(
        ask(Call::DeleteArpEntries(stolos_mbus::call::ArpEntries {
            ips: vec!["192.0.2.1".into()]
        }))
        .await,
        json!({"value": {}})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_that_fail_are_told_in_the_words_of_bosh() {
    let machine = Machine::boot().await;
    let jobs = [
        job("a")
            .script("pre-start", "echo why >&2; exit 3")
            .script("post-start", "exit 1"),
        job("b").script("pre-start", "exit 0"),
        job("c"),
    ];
    machine.deploy(1, &jobs).await;
    let error = machine.call(script("pre-start")).await.expect_err("it fails");
    assert!(
        error.ends_with("1 of 2 pre-start scripts failed. Failed Jobs: a. Successful Jobs: b."),
        "{error}"
    );
    let error = machine.call(script("post-start")).await.expect_err("it fails");
    assert!(
        error.ends_with("1 of 1 post-start scripts failed. Failed Jobs: a."),
        "{error}"
    );
    assert_eq!(machine.read("vcap/sys/log/a/pre-start.stderr.log"), "why\n");
    assert!(machine.call(script("../../x")).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_spec_is_refused_for_ever() {
    let mut machine = Machine::boot().await;
    machine.deploy(5, &[job("a")]).await;
    let old = machine.spec(4, &[job("b")]).await;
    let expected = "the spec has generation 4, but generation 5 was applied already";
    for _ in 0..2 {
        for call in [
            Call::Apply(Box::new(old.clone())),
            Call::Prepare(Box::new(old.clone())),
        ] {
            let error = machine.call(call).await.expect_err("refused");
            assert!(error.ends_with(expected), "{error}");
        }
        machine.start_agent().await;
    }
    // Also when the newer one was cut off before it was applied whole.
    let mut broken = machine.spec(6, &[job("c")]).await;
    broken
        .rendered_templates_archive
        .as_mut()
        .expect("an archive")
        .blobstore_id = "nowhere".into();
    machine
        .call(Call::Apply(Box::new(broken)))
        .await
        .expect_err("there is no such blob");
    let again = machine.spec(5, &[job("d")]).await;
    let error = machine
        .call(Call::Apply(Box::new(again)))
        .await
        .expect_err("refused");
    assert!(
        error.ends_with("the spec has generation 5, but generation 6 was applied already"),
        "{error}"
    );
    assert_eq!(
        machine
            .agent()
            .get_state()
            .await
            .expect("a state")
            .spec
            .generation,
        Some(5)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_does_not_stay_up_is_seen_and_told() {
    let machine = Machine::boot().await;
    let monitor = machine.bus.connect(Peer::HealthMonitor);
    let mut seen = events(&monitor).await.expect("events");
    machine.deploy(1, &[job("a").process("flaps", "exit 9")]).await;
    machine.until_state("failing").await;
    let (mut alert, mut heartbeat) = (None, None);
    while alert.is_none() || heartbeat.is_none() {
        match seen.next().await.expect("an event") {
            Event::Alert(_, one) => alert = Some(one),
            Event::Heartbeat(_, one) if one.job_state == JobState::Failing => heartbeat = Some(one),
            Event::Heartbeat(..) => {}
            Event::Shutdown(_) => panic!("the machine goes on"),
        }
    }
    let alert = alert.expect("an alert");
    assert_eq!(alert.title, "a/flaps - exited with code 9 - restart");
    assert!((1..=4).contains(&alert.severity));
    let heartbeat = heartbeat.expect("a heartbeat");
    assert_eq!(
        (
            heartbeat.deployment.as_str(),
            heartbeat.job.as_deref(),
            heartbeat.node_id.as_str()
        ),
        ("dep", Some("group"), "i-1")
    );
    assert_eq!(heartbeat.number_of_processes, Some(1));
    machine
        .agent()
        .stop_jobs()
        .await
        .expect("stopped while it waits to be started again");
    machine.until_state("stopped").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_do_not_notice_the_end_of_the_agent() {
    let mut machine = Machine::boot().await;
    let root = machine.dir.path().to_owned();
    let web = job("web")
        .script("pre-start", format!("echo x >> {root}/pre-starts"))
        .process("server", "exec sleep 600");
    machine.deploy(1, &[web]).await;
    machine.until_state("running").await;
    let pid = machine.pid("web/server");
    machine.kill_agent();
    assert_eq!(machine.pid("web/server"), pid);
    machine.start_agent().await;
    let state = machine.agent().get_state().await.expect("a state");
    assert_eq!(
        (state.job_state, state.spec.deployment.as_str()),
        (JobState::Running, "dep")
    );
    assert_eq!(machine.pid("web/server"), pid);
    assert!(!root.join("pre-starts").exists(), "only a boot runs it");
    machine.agent().stop_jobs().await.expect("stopped");
    assert_eq!(machine.pid("web/server"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_boot_the_jobs_are_as_they_were() {
    let mut machine = Machine::boot().await;
    let root = machine.dir.path().to_owned();
    // The second and third time it fails at first: the world around a machine may still be booting.
    let body = format!("echo x >> {root}/pre-starts; n=$(wc -l < {root}/pre-starts); [ $n -ne 2 ]");
    machine
        .deploy(
            1,
            &[job("web")
                .script("pre-start", body)
                .process("server", "exec sleep 600")],
        )
        .await;
    machine
        .call(script("pre-start"))
        .await
        .expect("the director's own");
    machine.until_state("running").await;
    machine.power_off();
    machine.power_on();
    machine.start_agent().await;
    assert_ne!(
        machine.agent().get_state().await.expect("a state").job_state,
        JobState::Running
    );
    machine.until_state("running").await;
    assert_eq!(
        machine.read("pre-starts").lines().count(),
        3,
        "the director's, one that failed, one that did not"
    );
    assert!(machine.paths.sys_run().join("web").is_dir());

    machine.agent().stop_jobs().await.expect("stopped");
    machine.power_off();
    machine.power_on();
    machine.start_agent().await;
    eventually("the boot", || machine.paths.booted().exists()).await;
    machine.until_state("stopped").await;
    assert_eq!(machine.pid("web/server"), None, "what was stopped stays so");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_wait_for_the_disk_that_they_had() {
    let mut machine = Machine::boot().await;
    let mut spec = machine
        .spec(1, &[job("db").process("server", "exec sleep 600")])
        .await;
    spec.persistent_disk = 1024;
    machine.agent().apply(spec).await.expect("applied");
    machine.agent().start_jobs().await.expect("started");
    machine.until_state("running").await;
    machine.power_off();
    machine.power_on();
    // Nothing says which disk it was; an empty directory in its place would look like lost data.
    machine.start_agent().await;
    machine.until_state("starting").await;
    assert!(!machine.paths.booted().exists());
    assert_eq!(machine.pid("db/server"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn updated_settings_outlive_the_agent_and_the_answer_too() {
    let mut machine = Machine::boot().await;
    let mbus = |key: &str| {
        let update = json!({"mbus": {"cert": {"ca": "C", "certificate": "D", "private_key": key}, "urls": ["nats://h:1"]}});
        serde_json::from_value::<UpdateSettings>(update).expect("an update")
    };
    let begin = async |machine: &Machine, update: UpdateSettings| match machine
        .core()
        .handle(Call::UpdateSettings(Box::new(update)))
        .await
    {
        Reply::Value(value) => AgentTask::from_value(&value).expect("a task").agent_task_id,
        Reply::Exception(exception) => panic!("{}", exception.message),
    };
    let task = begin(&machine, mbus("one")).await;
    machine.core().restart().cancelled().await;
    machine.start_agent().await;
    assert_eq!(machine.call(Call::GetTask(task.clone())).await, Ok(json!("ok")));
    assert_eq!(machine.core().settings().bus_urls(), ["nats://h:1"]);

    // What an update does not name stays, and the same again restarts nothing.
    let certs: UpdateSettings = serde_json::from_value(json!({"trusted_certs": "T"})).expect("an update");
    assert_eq!(
        machine.call(Call::UpdateSettings(Box::new(certs))).await,
        Ok(json!("ok"))
    );
    assert_eq!(
        machine.call(Call::UpdateSettings(Box::new(mbus("one")))).await,
        Ok(json!("ok"))
    );
    assert!(!machine.core().restart().is_cancelled());
    machine.start_agent().await;
    assert_eq!(machine.core().settings().bus_urls(), ["nats://h:1"]);
    assert_eq!(
        machine.call(Call::GetTask(task)).await,
        Ok(json!("ok")),
        "still known"
    );
    let file = machine.read("vcap/bosh/tasks.json");
    assert!(
        !file.contains("private_key"),
        "nothing of a finished update stays: {file}"
    );

    // Cut off between the note and the deed: the next life does it.
    machine.kill_agent();
    let noted = json!([{"id": "half", "update": mbus("two")}]);
    fs_err::write(machine.paths.tasks(), noted.to_string()).expect("the note");
    machine.start_agent().await;
    until("the task", async || {
        match machine.call(Call::GetTask("half".into())).await {
            Ok(value) if value == json!("ok") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    machine.core().restart().cancelled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_wait_for_each_other_and_questions_for_none() {
    let machine = Machine::boot().await;
    let root = machine.dir.path().to_owned();
    let slow = format!("sh -c 'echo $$ > {root}/child; exec sleep 600' & echo one >> {root}/order; wait");
    machine
        .deploy(
            1,
            &[job("a")
                .script("pre-start", slow)
                .script("post-start", format!("echo two >> {root}/order"))],
        )
        .await;
    let begin = async |call: Call| match machine.core().handle(call).await {
        Reply::Value(value) => AgentTask::from_value(&value).expect("a task").agent_task_id,
        Reply::Exception(exception) => panic!("{}", exception.message),
    };
    let first = begin(script("pre-start")).await;
    let second = begin(script("post-start")).await;
    let third = begin(script("post-start")).await;
    eventually("the first script", || !machine.read("child").is_empty()).await;
    let running = machine.call(Call::Ping).await;
    assert_eq!(running, Ok(json!("pong")), "questions are answered meanwhile");
    for task in [&first, &second] {
        let Reply::Value(value) = machine.core().handle(Call::GetTask(task.clone())).await else {
            panic!("it runs or waits");
        };
        assert_eq!(
            AgentTask::from_value(&value),
            Some(AgentTask::running(task.as_str()))
        );
    }
    assert_eq!(
        machine.call(Call::CancelTask(third.clone())).await,
        Ok(json!("canceled"))
    );
    assert_eq!(
        machine.call(Call::CancelTask(first.clone())).await,
        Ok(json!("canceled"))
    );
    let ended = async |task: &str| {
        until("the end of a task", async || {
            match machine.core().handle(Call::GetTask(task.to_owned())).await {
                Reply::Value(value) if AgentTask::from_value(&value).is_some() => Err("it runs".to_owned()),
                Reply::Value(value) => Ok(Ok::<Value, String>(value)),
                Reply::Exception(exception) => Ok(Err(exception.message)),
            }
        })
        .await
    };
    assert_eq!(ended(&first).await, Err("the task was canceled".to_owned()));
    assert_eq!(ended(&second).await, Ok(json!({})));
    assert_eq!(ended(&third).await, Err("the task was canceled".to_owned()));
    assert_eq!(
        machine.read("order"),
        "one\ntwo\n",
        "in order, and what was cancelled did not run"
    );
    let child = machine.read("child").trim().to_owned();
    eventually("the script's child to be gone", || {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_come_after_others_are_stopped_after_them() {
    let machine = Machine::boot().await;
    let root = machine.dir.path().to_owned();
    let process = |name: &str, after: &[&str]| {
        let says =
            format!("trap 'sleep 0.2; echo {name} >> {root}/order; exit 0' TERM; echo $$ > {root}/{name}");
        let body = format!("{says}; while :; do sleep 0.02; done");
        let process = json!({"name": name, "argv": ["/bin/sh", "-c", body], "stop": {"after": after}});
        json!({"processes": [process]}).to_string()
    };
    let file = "config/processes.yml";
    let jobs = [
        job("a").file(file, process("store", &["b/server", "x/not-here"])),
        job("b").file(file, process("server", &["c/client"])),
        job("c").file(file, process("client", &[])),
        // Two that wait for each other are stopped all the same.
        job("d").file(file, process("egg", &["e/hen"])),
        job("e").file(file, process("hen", &["d/egg"])),
    ];
    machine.deploy(1, &jobs).await;
    let names = ["store", "server", "client", "egg", "hen"];
    eventually("all to run", || {
        names.iter().all(|name| !machine.read(name).is_empty())
    })
    .await;
    assert_eq!(machine.call(Call::Stop).await, Ok(json!("stopped")));
    let order = machine.read("order");
    let place = |name: &str| order.lines().position(|line| line == name);
    assert!(order.lines().count() == 5, "{order}");
    assert!(
        place("client") < place("server") && place("server") < place("store"),
        "{order}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_scripts_are_asked_until_they_have_drained() {
    let machine = Machine::boot().await;
    let root = machine.dir.path().to_owned();
    let body = format!(
        "echo \"$@\" >> {root}/drains; echo \"$BOSH_JOB_STATE $BOSH_JOB_NEXT_STATE\" >> {root}/env; \
         echo \"${{STOLOS_CHANGED_JOBS-none}}\" >> {root}/changed; \
         if [ \"$1\" = job_check_status ]; then echo 0; else echo -1; fi"
    );
    let jobs = || [job("a").script("drain", &body), job("b")];
    machine.deploy(1, &jobs()).await;
    // Without hashes all jobs may have changed.
    machine
        .call(Call::Drain(Drain::Update(Box::new(
            machine.spec(2, &jobs()).await,
        ))))
        .await
        .expect("drained");
    assert!(machine.read("changed").starts_with("a b\n"));
    for file in ["drains", "env", "changed"] {
        std::fs::remove_file(machine.dir.path().join(file)).expect("a file");
    }
    let with = |hash: &str| json!({"a": "1", "b": hash});
    let mut now = machine.spec(2, &jobs()).await;
    now.other.insert("template_hashes".to_owned(), with("1"));
    machine.call(Call::Apply(Box::new(now))).await.expect("applied");
    let mut next = machine.spec(3, &jobs()).await;
    next.other.insert("template_hashes".to_owned(), with("2"));
    next.configuration_hash = Some("other".into());
    next.persistent_disk = 7;
    next.packages.insert(
        "etcd".into(),
        serde_json::from_value(json!({"name": "etcd", "version": "1", "sha1": "x", "blobstore_id": "y"}))
            .expect("a package"),
    );
    let result = machine.call(Call::Drain(Drain::Update(Box::new(next)))).await;
    assert_eq!(result, Ok(json!(0)));
    assert_eq!(
        machine.read("drains"),
        "job_unchanged hash_changed etcd\njob_check_status hash_unchanged\n"
    );
    assert!(
        machine
            .read("env")
            .starts_with("{\"persistent_disk\":0} {\"persistent_disk\":7}\n")
    );
    assert!(machine.read("changed").starts_with("b\n"));
    machine
        .call(Call::Drain(Drain::Shutdown(None)))
        .await
        .expect("drained");
    assert!(machine.read("changed").ends_with("none\n"));
    assert!(machine.read("drains").contains("\njob_shutdown hash_unchanged\n"));

    machine
        .deploy(
            4,
            &[
                job("a").script("drain", "echo soon"),
                job("b").script("drain", "echo 0"),
            ],
        )
        .await;
    let error = machine
        .call(Call::Drain(Drain::Shutdown(None)))
        .await
        .expect_err("no number");
    assert!(
        error.ends_with("1 of 2 drain scripts failed. Failed Jobs: a. Successful Jobs: b."),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn errands_give_what_they_print_as_far_as_it_fits() {
    let machine = Machine::boot().await;
    machine
        .deploy(1, &[job("small").script("run", "echo out; echo err >&2; exit 4")])
        .await;
    assert_eq!(
        machine.call(Call::RunErrand { job: None }).await,
        Ok(json!({"stdout": "out\n", "stderr": "err\n", "exit_code": 4}))
    );
    let loud = "echo begin; head -c 3000000 /dev/zero | tr '\\0' '\\001'; echo end";
    machine
        .deploy(2, &[job("small"), job("loud").script("run", loud)])
        .await;
    let result = machine
        .call(Call::RunErrand {
            job: Some("loud".into()),
        })
        .await;
    let result = result.expect("it fits");
    let stdout = result["stdout"].as_str().expect("text");
    assert!(stdout.starts_with("begin\n") && stdout.ends_with("end\n") && stdout.contains("[truncated]"));
    assert!(
        machine.call(Call::RunErrand { job: None }).await.is_err(),
        "which one?"
    );
    assert!(
        machine
            .call(Call::RunErrand {
                job: Some("small".into())
            })
            .await
            .is_err(),
        "it has none"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_is_answered_and_announced_before_the_machine_ends() {
    let mut machine = Machine::boot().await;
    let monitor = machine.bus.connect(Peer::HealthMonitor);
    let mut seen = events(&monitor).await.expect("events");
    machine
        .deploy(1, &[job("a").process("p", "exec sleep 600")])
        .await;
    assert_eq!(machine.call(Call::Shutdown).await, Ok(json!("")));
    while !matches!(seen.next().await.expect("an event"), Event::Shutdown(id) if id == machine.id) {}
    let socket = machine.dir.path().join("init.sock");
    eventually("the end of the machine", || !socket.exists()).await;
    machine.kill_agent();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_agents_live_in_one_process_on_imagined_machines() {
    let mut machines = Vec::new();
    for _ in 0..50 {
        let mut machine = Machine::off(json!({})).await;
        machine.start_agent_on(Arc::new(Memory::default())).await;
        machines.push(machine);
    }
    let work = machines.iter().map(|machine| async move {
        let jobs = [job("a").script("pre-start", "exit 1").process("p", "never run")];
        let spec = machine.spec(1, &jobs).await;
        machine.agent().apply(spec).await.expect("applied");
        machine
            .call(script("pre-start"))
            .await
            .expect("imagined scripts succeed");
        machine.agent().start_jobs().await.expect("started");
        machine.until_state("running").await;
    });
    futures::future::join_all(work).await;
    let memory = Arc::new(Memory::default());
    let machine = &mut machines[0];
    machine.start_agent_on(memory.clone()).await;
    machine.agent().start_jobs().await.expect("started");
    memory.set_failing("a/p", true);
    machine.until_state("failing").await;
    machine.call(Call::Shutdown).await.expect("told");
    eventually("the end", || memory.is_off()).await;
}
