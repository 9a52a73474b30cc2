//! What people run on a cluster, with their own tools.

use camino::{Utf8Path, Utf8PathBuf};

use crate::installation::{Installation, eventually, said};

const STATEFUL_SET: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  serviceName: web
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: stolos.local/busybox:1
        imagePullPolicy: Never
        command: [sh, -c, "trap 'exit 0' TERM; while true; do sleep 1; done"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 16Mi}}}
"#;

const READY: [&str; 5] = [
    "get",
    "statefulset",
    "web",
    "-o",
    "jsonpath={.status.readyReplicas}",
];

/// It runs with what its first pod wrote.
pub(crate) fn stateful_set_is_ready(installation: &Installation) {
    installation.eventually("the stateful set", &READY, |text| text == "2");
    // After a boot a pod is called ready for a while before it is.
    let read = ["exec", "web-0", "--", "cat", "/data/kept"];
    installation.eventually("what the pod wrote", &read, |text| text == "yes\n");
}

pub(crate) fn kubectl(installation: &Installation) {
    let file = installation.home.path().join("web.yml");
    fs_err::write(&file, STATEFUL_SET).expect("a manifest");
    installation
        .kubectl(&["apply", "-f", file.as_str()])
        .expect("applied");
    installation.eventually("the stateful set", &READY, |text| text == "2");
    assert_eq!(
        installation
            .kubectl(&[
                "exec",
                "web-0",
                "--",
                "sh",
                "-c",
                "echo yes > /data/kept; echo hello"
            ])
            .expect("exec"),
        "hello\n"
    );
    volumes(installation);
    installation
        .kubectl(&["create", "configmap", "memory", "--from-literal=kept=yes"])
        .expect("a config map");
}

/// Uses as much processor as it may, twice what it asks for.
const BUSY: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: busy}
spec:
  selector: {matchLabels: {app: busy}}
  template:
    metadata: {labels: {app: busy}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: busy
        image: stolos.local/busybox:1
        imagePullPolicy: Never
        command: [sh, -c, "while true; do :; done"]
        resources: {requests: {cpu: 50m}, limits: {cpu: 100m}}
"#;

/// Usage of nodes and pods is known, and what is busy is scaled out.
pub(crate) fn autoscaling(installation: &Installation) {
    let file = installation.home.path().join("busy.yml");
    fs_err::write(&file, BUSY).expect("a manifest");
    let kubectl = |arguments: &[&str]| installation.kubectl(arguments).expect("kubectl");
    kubectl(&["apply", "-f", file.as_str()]);
    kubectl(&[
        "autoscale",
        "deployment",
        "busy",
        "--cpu=50%",
        "--min=1",
        "--max=2",
    ]);
    let top = ["top", "nodes", "--no-headers"];
    installation.eventually("the usage of both nodes", &top, |text| text.lines().count() == 2);
    let top = ["top", "pods", "-A", "--no-headers"];
    installation.eventually("the usage of the busy pod", &top, |text| text.contains("busy-"));
    let replicas = [
        "get",
        "deployment",
        "busy",
        "-o",
        "jsonpath={.status.readyReplicas}",
    ];
    installation.eventually("a second busy pod", &replicas, |text| text == "2");
    kubectl(&["delete", "hpa,deployment", "busy"]);
}

/// A volume of the default class outlives its pod, and leaves with its claim.
fn volumes(installation: &Installation) {
    let run = |arguments: &[&str]| {
        installation
            .kubectl(arguments)
            .unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))
    };
    run(&["delete", "pod", "web-0"]);
    stateful_set_is_ready(installation);
    assert_eq!(directories(installation), 2);
    run(&["scale", "statefulset", "web", "--replicas=1"]);
    run(&["wait", "pod", "web-1", "--for=delete", "--timeout=60s"]);
    run(&["delete", "pvc", "data-web-1"]);
    let list = ["get", "persistentvolumes", "-o", "name"];
    installation.eventually("the volume to leave", &list, |text| text.lines().count() == 1);
    assert_eq!(directories(installation), 1, "the directory went first");
    run(&["scale", "statefulset", "web", "--replicas=2"]);
    stateful_set_is_ready(installation);
}

/// How many local volumes lie on the disks of all machines.
fn directories(installation: &Installation) -> usize {
    let machines = fs_err::read_dir(installation.root.join("machines")).expect("the machines");
    machines
        .map(|machine| {
            machine
                .expect("a machine")
                .path()
                .join("var/vcap/data/local-volumes")
        })
        .filter(|volumes| volumes.exists())
        .map(|volumes| fs_err::read_dir(volumes).expect("the volumes").count())
        .sum()
}

/// A chart is installed, upgraded, rolled back and removed.
pub(crate) fn helm(installation: &Installation) {
    let chart = installation.home.path().join("chart");
    fs_err::create_dir_all(chart.join("templates")).expect("a chart");
    fs_err::write(
        chart.join("Chart.yaml"),
        "apiVersion: v2\nname: app\nversion: 0.1.0\n",
    )
    .expect("a chart");
    fs_err::write(chart.join("values.yaml"), "replicas: 1\n").expect("values");
    let deployment = r#"apiVersion: apps/v1
kind: Deployment
metadata: {name: "{{ .Release.Name }}"}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: "{{ .Release.Name }}"}}
  template:
    metadata: {labels: {app: "{{ .Release.Name }}"}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: app, image: "stolos.local/busybox:1", imagePullPolicy: Never, command: [sleep, "86400"]}]
"#;
    fs_err::write(chart.join("templates/app.yaml"), deployment).expect("a template");
    let helm = installation.upstream("helm", "helm");
    let run = |arguments: &[&str]| said(installation.command(&helm).args(arguments)).expect("helm");
    let replicas = |wanted: &'static str| {
        installation.eventually(
            "the release's deployment",
            &[
                "get",
                "deployment",
                "app",
                "-o",
                "jsonpath={.status.readyReplicas}",
            ],
            move |text| text == wanted,
        );
    };
    run(&["install", "app", chart.as_str(), "--wait"]);
    replicas("1");
    run(&["upgrade", "app", chart.as_str(), "--set", "replicas=2", "--wait"]);
    replicas("2");
    run(&["rollback", "app", "1", "--wait"]);
    replicas("1");
    assert!(run(&["list", "-o", "json"]).contains("\"revision\":\"3\""));
    run(&["uninstall", "app", "--wait"]);
}

/// The archive of the image that pods of these tests run.
pub(crate) fn image_archive(installation: &Installation) -> Utf8PathBuf {
    let output = installation
        .command(&stolos_testbed::programs::ours("stolos-build"))
        .args(["--json", "images"])
        .output()
        .expect("stolos-build runs");
    let built: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let archive = built["images"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|image| image["name"] == "stolos.local/busybox:1")
        .and_then(|image| image["path"].as_str())
        .expect("an archive");
    archive.into()
}

/// An archive's directory, unpacked for whoever calls.
pub(crate) fn unpacked(installation: &Installation, archive: &Utf8Path) -> Utf8PathBuf {
    let directory = installation
        .home
        .path()
        .join(format!("image-{}", stolos_base::ids::random_hex(4)));
    fs_err::create_dir_all(&directory).expect("a directory");
    said(
        installation
            .command("tar".into())
            .args(["-xf", archive.as_str(), "-C", directory.as_str()]),
    )
    .expect("unpacked");
    directory
}

/// A file of that content; gives its path.
pub(crate) fn file(installation: &Installation, name: &str, content: &str) -> String {
    let path = installation.home.path().join(name);
    fs_err::write(&path, content).expect("a file");
    path.into_string()
}

/// An image that no registry has runs after `load-image`, and not before.
pub(crate) fn load_image(installation: &Installation) {
    const NAME: &str = "example.com/team/app:1";
    // The same image under another name: only the index says what it is called.
    let directory = unpacked(installation, &image_archive(installation));
    let index = directory.join("index.json");
    let text = fs_err::read_to_string(&index)
        .expect("the index")
        .replace("stolos.local/busybox:1", NAME);
    fs_err::write(&index, text).expect("the index");
    let file = installation.home.path().join("app.tar");
    said(
        installation
            .command("tar".into())
            .args(["-cf", file.as_str(), "-C", directory.as_str(), "."]),
    )
    .expect("packed");

    let loaded = installation.json(&["load-image", "live", file.as_str(), "--json"]);
    assert_eq!(loaded["images"][0], NAME);
    assert_eq!(loaded["nodes"].as_array().map(Vec::len), Some(2));
    let pod = [
        "run",
        "loaded",
        "--image",
        NAME,
        "--image-pull-policy=Never",
        "--restart=Never",
        "--",
        "echo",
        "it runs",
    ];
    installation.kubectl(&pod).expect("a pod");
    installation.eventually("the pod with the loaded image", &["logs", "loaded"], |text| {
        text == "it runs\n"
    });
    installation
        .kubectl(&["delete", "pod", "loaded", "--now"])
        .expect("deleted");
    let left = installation
        .kubectl(&[
            "get",
            "pods",
            "-n",
            "kube-system",
            "-l",
            "app.kubernetes.io/managed-by=stolos",
            "-o",
            "name",
        ])
        .expect("pods");
    assert_eq!(left, "", "no pod of the loader is left");
}

/// The pods of the tests have run for minutes, and that is in the metering by now.
pub(crate) fn pods_are_metered(installation: &Installation) {
    eventually("metered pods", || {
        let metered = installation.json(&["metering", "--json"]);
        let live = metered
            .as_array()
            .and_then(|all| all.iter().find(|one| one["cluster"] == "live"));
        match live.and_then(|one| one["pod_seconds"].as_i64()) {
            Some(seconds) if seconds > 0 => Ok(()),
            _ => Err(metered.to_string()),
        }
    });
}
