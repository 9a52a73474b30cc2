//! SIGKILL of the CPI at chosen moments of making and removing a machine: repeated, there is exactly one machine, or none, and
//! nothing is left over.

mod support;

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use stolos_cpi::{CreateVm, VmCid};
use support::Bench;

/// Moments in milliseconds after the start, spread over the length of a call by a fixed sequence.
struct Moments(u64);

impl Moments {
    fn next(&mut self, most: u64) -> u64 {
        // The multiplier of Knuth's MMIX generator.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

fn start(bench: &Bench, method: &str, arguments: &Value) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_stolos-cpi-host"))
        .args(["--config", bench.config().as_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the CPI");
    let request = json!({"method": method, "arguments": arguments, "context": {}, "api_version": 2});
    let mut stdin = child.stdin.take().expect("its input");
    stdin.write_all(request.to_string().as_bytes()).expect("written");
    child
}

fn finish(child: Child) -> Value {
    let output = child.wait_with_output().expect("its output");
    let reply: Value = serde_json::from_slice(&output.stdout).expect("a reply");
    assert_eq!(reply["error"], Value::Null, "{reply}");
    reply["result"].clone()
}

fn kill_after(mut child: Child, moment: u64) {
    std::thread::sleep(Duration::from_millis(moment));
    child.kill().expect("killed");
    child.wait().expect("its end");
}

fn arguments(vm: &CreateVm) -> Value {
    json!([
        vm.agent_id,
        vm.stemcell,
        vm.cloud_properties,
        vm.networks,
        [],
        vm.env
    ])
}

#[test]
fn a_killed_call_is_finished_by_the_next_one() {
    let Some(bench) = Bench::new() else { return };
    let stemcell = bench.stemcell();
    // How long a call takes here decides where it can be cut.
    let begun = std::time::Instant::now();
    let probe = bench.request(&stemcell, 2);
    finish(start(&bench, "create_vm", &arguments(&probe)));
    let length = u64::try_from(begun.elapsed().as_millis())
        .expect("a short time")
        .max(20);
    finish(start(
        &bench,
        "delete_vm",
        &json!([format!("vm-{}", probe.agent_id)]),
    ));

    let mut moments = Moments(20_261_121);
    for round in 0..20 {
        let vm = bench.request(&stemcell, 2);
        let cid = VmCid(format!("vm-{}", vm.agent_id));
        kill_after(start(&bench, "create_vm", &arguments(&vm)), moments.next(length));
        if round % 2 == 0 {
            finish(start(&bench, "create_vm", &arguments(&vm)));
            bench.until_up(2);
            let machines = bench.host.machines().expect("machines");
            assert_eq!(machines.len(), 1, "round {round}: {machines:?}");
            kill_after(start(&bench, "delete_vm", &json!([cid])), moments.next(length));
        }
        finish(start(&bench, "delete_vm", &json!([cid])));
        assert_eq!(
            bench.host.left().expect("asked"),
            ["table `stolos_".to_owned() + bench.host.instance().name.as_str() + "`"],
            "round {round}"
        );
        let machines = bench.host.instance().machines();
        let names: Vec<_> = fs_err::read_dir(machines)
            .expect("machines")
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert_eq!(names, [".changed"], "round {round}");
    }
    assert!(bench.host.machines().expect("machines").is_empty());
}
