//! Giving images to the nodes of a cluster, without a registry.
//!
//! A pod on each node takes the archive from its standard input and hands it to the node's own containerd: that needs nothing but the
//! cluster's API, so it works wherever machines are made. `docs/design/0005-load-image.md` says what else was weighed.

use std::collections::BTreeSet;
use std::io::Read;
use std::time::Duration;

use camino::Utf8Path;
use flate2::read::MultiGzDecoder;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{AttachParams, PostParams};
use serde_json::{Value, json};
use stolos_base::poll;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::client::Cluster;
use crate::error::Error;
use crate::pods;

const NAMESPACE: &str = "kube-system";
/// The image that the pods run, which every node begins with.
const IMAGE: &str = "stolos.local/busybox:1";
/// Where the node's root directory lies in the pod.
const HOST: &str = "/host";
/// containerd's own client, from the package of the release.
const CTR: &str = "/var/vcap/packages/containerd/bin/ctr";
/// Nodes that load at the same time: each gets its own copy of the archive through the API server.
const AT_ONCE: usize = 4;
const CHUNK: usize = 256 * 1024;
/// Manifests of an archive are small; what is larger is none.
const MANIFEST_LIMIT: u64 = 4 << 20;
/// The pod starts from an image that the node has.
const POD_LIMIT: Duration = Duration::from_secs(60);

/// An archive of images, looked into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// The names of its images, as the archive has them.
    pub names: Vec<String>,
    /// Its size in bytes.
    pub size: u64,
}

impl Archive {
    /// Reads an archive as `docker save`, `podman save` and OCI tools write it, compressed by gzip or not.
    ///
    /// # Errors
    /// [`Error::Archive`] when it is none, when it is cut off, or when an image in it has no name.
    pub fn read(path: &Utf8Path) -> Result<Self, Error> {
        let bad = |problem: String| Error::Archive {
            path: path.to_string(),
            problem,
        };
        let open = || fs_err::File::open(path).map_err(|error| bad(error.to_string()));
        let size = open()?.metadata().map_err(|error| bad(error.to_string()))?.len();
        let mut start = Vec::new();
        open()?
            .take(2)
            .read_to_end(&mut start)
            .map_err(|error| bad(error.to_string()))?;
        let buffered = std::io::BufReader::with_capacity(CHUNK, open()?);
        let names = if start == [0x1f, 0x8b] {
            names(MultiGzDecoder::new(buffered))
        } else {
            names(buffered)
        };
        let names = names.map_err(bad)?;
        Ok(Self { names, size })
    }
}

/// The names in an archive. `manifest.json` is Docker's (image-spec of moby, version 1.2), `index.json` that of OCI's image layout;
/// an archive may have both, and containerd reads the latter then.
fn names(reader: impl Read) -> Result<Vec<String>, String> {
    // The reader quotes what it does not understand, and that may be anything: the file is somebody's.
    let no_archive = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::Other | std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput => {
            "it is no archive of images".to_owned()
        }
        std::io::ErrorKind::UnexpectedEof => "it is cut off".to_owned(),
        _ => error.to_string(),
    };
    let mut found: [Option<Vec<u8>>; 2] = [None, None];
    let mut archive = tar::Archive::new(reader);
    // All of it is read: an archive that is cut off is noticed here and not on the nodes.
    for entry in archive.entries().map_err(no_archive)? {
        let mut entry = entry.map_err(no_archive)?;
        let path = entry.path().map_err(no_archive)?;
        let slot = match path.to_str().map(|path| path.trim_start_matches("./")) {
            Some("index.json") => 0,
            Some("manifest.json") => 1,
            _ => continue,
        };
        let mut text = Vec::new();
        (&mut entry)
            .take(MANIFEST_LIMIT)
            .read_to_end(&mut text)
            .map_err(no_archive)?;
        found[slot] = Some(text);
    }
    let parse = |text: &Vec<u8>, name: &str| {
        stolos_document::from_json::<Value>(text)
            .map_err(|error| format!("its `{name}` is not valid: {error}"))
    };
    let mut names = BTreeSet::new();
    let mut unnamed = false;
    match &found {
        [Some(index), _] => {
            let index = parse(index, "index.json")?;
            for image in index["manifests"].as_array().into_iter().flatten() {
                let full = image["annotations"]["io.containerd.image.name"].as_str();
                let short = image["annotations"]["org.opencontainers.image.ref.name"].as_str();
                match full.or(short) {
                    // containerd would take it as `import-DATE:v1`, which no pod asks for.
                    Some(tag) if !tag.contains(['/', ':', '@']) => {
                        return Err(format!(
                            "its image has only the tag `{}` and no name; save it as NAME:TAG, with \
                             `skopeo copy SOURCE oci-archive:FILE:registry.example.com/app:{0}` for instance",
                            tag.escape_default()
                        ));
                    }
                    Some(name) => drop(names.insert(name.to_owned())),
                    None => unnamed = true,
                }
            }
        }
        [None, Some(manifest)] => {
            let manifest = parse(manifest, "manifest.json")?;
            for image in manifest.as_array().into_iter().flatten() {
                let tags: Vec<&str> = image["RepoTags"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .collect();
                unnamed |= tags.is_empty();
                names.extend(tags.into_iter().map(str::to_owned));
            }
        }
        [None, None] => return Err("it has neither `index.json` nor `manifest.json`".to_owned()),
    }
    if names.is_empty() {
        return Err(if unnamed {
            "its images have no names; save them by name and not by id".to_owned()
        } else {
            "it holds no image".to_owned()
        });
    }
    Ok(names.into_iter().collect())
}

/// How far a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loading {
    /// So many bytes of the archive have reached the node.
    Sent(u64),
    /// The node has the images.
    Done,
}

impl Cluster {
    /// Gives the images of the archive `path` to `nodes`, each within `limit`. Repeating it does no harm.
    ///
    /// # Errors
    /// [`Error::Load`] for the first node that did not take them; others may have.
    pub async fn load_images(
        &self,
        path: &Utf8Path,
        nodes: &[String],
        limit: Duration,
        progress: &(dyn Fn(&str, Loading) + Sync),
    ) -> Result<(), Error> {
        // A node that unpacks is silent for as long as that takes.
        let patient = self.patient()?;
        futures::stream::iter(nodes)
            .map(|node| {
                let patient = &patient;
                async move {
                    let loading = patient.load_on(path, node, limit, progress);
                    match tokio::time::timeout(limit, loading).await {
                        Ok(result) => result,
                        Err(_) => Err(Error::Load {
                            node: node.clone(),
                            problem: format!("not done after {} s", limit.as_secs()),
                        }),
                    }
                }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await
    }

    async fn load_on(
        &self,
        path: &Utf8Path,
        node: &str,
        limit: Duration,
        progress: &(dyn Fn(&str, Loading) + Sync),
    ) -> Result<(), Error> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let name = pod_name(node);
        pods::remove(&pods, &name, POD_LIMIT).await?;
        pods.create(&PostParams::default(), &pod(&name, node, limit))
            .await
            .map_err(Error::request(format!("create pod `{name}`")))?;
        let result = async {
            wait_running(&pods, &name).await?;
            send(&pods, &name, path, node, progress).await
        }
        .await;
        // Also after a failure; what the failure was says more than that the pod could not be removed.
        let removed = pods::remove(&pods, &name, POD_LIMIT).await;
        result?;
        removed?;
        progress(node, Loading::Done);
        Ok(())
    }
}

/// A node's name is a DNS name of up to 253 characters, and so may a pod's be.
fn pod_name(node: &str) -> String {
    let name = format!("stolos-load-image-{node}");
    let end = name.char_indices().nth(253).map_or(name.len(), |(at, _)| at);
    name[..end].trim_end_matches(['-', '.']).to_owned()
}

async fn wait_running(pods: &Api<Pod>, name: &str) -> Result<(), Error> {
    let what = format!("pod `{name}` to run");
    poll::until(&what, Duration::from_millis(50), POD_LIMIT, || async {
        let pod = pods.get(name).await.map_err(|error| error.to_string())?;
        let ready = pod
            .status
            .as_ref()
            .and_then(|status| status.container_statuses.as_ref())
            .is_some_and(|all| all.iter().all(|one| one.ready));
        if ready { Ok(()) } else { Err(pods::words(&pod)) }
    })
    .await?;
    Ok(())
}

async fn send(
    pods: &Api<Pod>,
    name: &str,
    path: &Utf8Path,
    node: &str,
    progress: &(dyn Fn(&str, Loading) + Sync),
) -> Result<(), Error> {
    let failed = |problem: String| Error::Load {
        node: node.to_owned(),
        problem,
    };
    let import = [
        "chroot",
        HOST,
        CTR,
        "--namespace",
        "k8s.io",
        "images",
        "import",
        "-",
    ];
    let params = AttachParams::default()
        .stdin(true)
        .stdout(true)
        .stderr(true)
        .max_stdin_buf_size(CHUNK);
    let mut process = pods
        .exec(name, import, &params)
        .await
        .map_err(Error::request(format!("start the import on node `{node}`")))?;
    let streams = (
        process.stdin(),
        process.stdout(),
        process.stderr(),
        process.take_status(),
    );
    let (Some(mut input), Some(mut out), Some(mut err), Some(status)) = streams else {
        return Err(failed("the connection has no streams".to_owned()));
    };
    let mut file = tokio::fs::File::open(path)
        .await
        .map_err(|error| failed(error.to_string()))?;
    let upload = async {
        let mut buffer = vec![0_u8; CHUNK];
        let mut sent = 0_u64;
        loop {
            let n = file.read(&mut buffer).await?;
            if n == 0 {
                break;
            }
            input.write_all(&buffer[..n]).await?;
            sent += n as u64;
            progress(node, Loading::Sent(sent));
        }
        input.shutdown().await
    };
    // What it prints has to be taken, or it stops printing and importing; only its complaints are of interest.
    let chatter = async {
        let mut scratch = vec![0_u8; 8192];
        while out.read(&mut scratch).await.is_ok_and(|n| n > 0) {}
    };
    let complaints = async {
        let mut text = Vec::new();
        let _ = (&mut err).take(4096).read_to_end(&mut text).await;
        let _ = tokio::io::copy(&mut err, &mut tokio::io::sink()).await;
        String::from_utf8_lossy(&text).trim().to_owned()
    };
    let (uploaded, (), said, status) = tokio::join!(upload, chatter, complaints, status);
    match status {
        Some(status) if status.status.as_deref() == Some("Success") => {
            uploaded.map_err(|error| failed(error.to_string()))
        }
        Some(status) => {
            let message = status.message.unwrap_or_default();
            Err(failed(if said.is_empty() { message } else { said }))
        }
        None => Err(failed("the connection broke before it ended".to_owned())),
    }
}

fn pod(name: &str, node: &str, limit: Duration) -> Pod {
    serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/managed-by": "stolos"}},
        "spec": {
            // Named and tolerating everything: a full or cordoned node needs its images too.
            "nodeName": node,
            "tolerations": [{"operator": "Exists"}],
            "priorityClassName": "system-node-critical",
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 0,
            // It ends by itself when nobody is left to remove it.
            "activeDeadlineSeconds": limit.as_secs().saturating_add(POD_LIMIT.as_secs()),
            "containers": [{
                "name": "import",
                "image": IMAGE,
                "imagePullPolicy": "Never",
                "command": ["sleep", "86400"],
                "volumeMounts": [{"name": "host", "mountPath": HOST}],
            }],
            "volumes": [{"name": "host", "hostPath": {"path": "/", "type": "Directory"}}],
        },
    }))
    .expect("the pod above is one")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            builder
                .append_data(&mut header, name, text.as_bytes())
                .expect("an entry");
        }
        builder.into_inner().expect("an archive")
    }

    #[test]
    fn names_are_read_from_both_kinds_of_archives() {
        let docker = archive(&[(
            "manifest.json",
            r#"[{"Config":"c.json","RepoTags":["b:2","a:1"]},{"RepoTags":["c:3"]}]"#,
        )]);
        assert_eq!(
            names(docker.as_slice()),
            Ok(vec!["a:1".into(), "b:2".into(), "c:3".into()])
        );
        let oci = archive(&[
            (
                "./index.json",
                r#"{"manifests":[{"annotations":{"org.opencontainers.image.ref.name":"1","io.containerd.image.name":"x/y:1"}}]}"#,
            ),
            ("manifest.json", r#"[{"RepoTags":["other:1"]}]"#),
        ]);
        assert_eq!(names(oci.as_slice()), Ok(vec!["x/y:1".into()]));
    }

    #[test]
    fn what_is_no_archive_of_named_images_is_refused() {
        for (bytes, words) in [
            (archive(&[("readme", "hello")]), "neither"),
            (archive(&[("manifest.json", "[]")]), "holds no image"),
            (
                archive(&[("manifest.json", r#"[{"RepoTags":null}]"#)]),
                "have no names",
            ),
            (archive(&[("manifest.json", "{")]), "`manifest.json` is not valid"),
            // It was loaded as `import-DATE:v1` while `v1` was printed.
            (
                archive(&[(
                    "index.json",
                    r#"{"manifests":[{"annotations":{"org.opencontainers.image.ref.name":"v1"}}]}"#,
                )]),
                "only the tag `v1`",
            ),
            (
                b"hello, this is no tar file at all".repeat(40),
                "no archive of images",
            ),
        ] {
            let error = names(bytes.as_slice()).expect_err(words);
            assert!(error.contains(words), "{words}: {error}");
        }
        let mut cut = archive(&[
            ("manifest.json", r#"[{"RepoTags":["a:1"]}]"#),
            ("layer", &"x".repeat(5000)),
        ]);
        cut.truncate(3000);
        assert!(names(cut.as_slice()).is_err(), "an archive that is cut off");
    }

    #[test]
    fn an_archive_may_be_compressed_and_has_a_size() {
        use std::io::Write as _;
        let dir = camino_tempfile::tempdir().expect("a directory");
        let path = dir.path().join("images.tgz");
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&archive(&[("manifest.json", r#"[{"RepoTags":["a:1"]}]"#)]))
            .expect("compressed");
        let bytes = gz.finish().expect("compressed");
        fs_err::write(&path, &bytes).expect("a file");
        let read = Archive::read(&path).expect("an archive");
        assert_eq!(
            (read.names, read.size),
            (vec!["a:1".to_owned()], bytes.len() as u64)
        );
        let error = Archive::read(&dir.path().join("nothing")).expect_err("no file");
        assert!(error.to_string().contains("nothing"), "{error}");
    }

    #[test]
    fn names_of_pods_fit() {
        assert_eq!(pod_name("worker-0"), "stolos-load-image-worker-0");
        assert!(pod_name(&"x".repeat(253)).len() <= 253);
    }
}
