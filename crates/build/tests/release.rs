//! The release from a small repository, with programs that need no compiler.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use camino::{Utf8Path, Utf8PathBuf};
use stolos_base::Clock;
use stolos_build::source::{Component, Source};
use stolos_build::{Builder, Cache, Error, Inputs, Progress};
use stolos_release::ReleaseArchive;

/// Writes each program's package path into a file: another origin than a compiler, with the same contract.
struct Text(AtomicUsize);

impl Source for Text {
    fn inputs(&self, component: &Component) -> stolos_build::Result<Inputs> {
        Ok(Inputs::new().text("programs", format!("{:?}", component.programs)))
    }

    fn make(
        &self,
        component: &Component,
        directory: &Utf8Path,
        _: &dyn Progress,
    ) -> stolos_build::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        for (name, package) in &component.programs {
            fs_err::write(directory.join(name), package).expect("a program");
        }
        Ok(())
    }
}

struct Repository {
    dir: camino_tempfile::Utf8TempDir,
    source: Arc<Text>,
}

impl Repository {
    fn new() -> Self {
        let repository = Self {
            dir: camino_tempfile::tempdir().expect("a directory"),
            source: Arc::new(Text(AtomicUsize::new(0))),
        };
        repository.write(
            "upstream/kubernetes-1.9/go.mod",
            "tool k8s.io/kubernetes/cmd/kubelet\nrequire k8s.io/kubernetes v1.9.2\n",
        );
        repository.write(
            "upstream/kubernetes-1.8/go.mod",
            "tool k8s.io/kubernetes/cmd/kubelet\nrequire k8s.io/kubernetes v1.8.7\n",
        );
        repository.write(
            "upstream/etcd/go.mod",
            "tool go.etcd.io/etcd/server/v3\nrequire go.etcd.io/etcd/server/v3 v3.6.1\n",
        );
        repository.write(
            "releases/kubernetes/release.yml",
            "name: kubernetes\nversions: [1.9.2, 1.8.7]\njobs: [node]\npackages:\n- {name: kubelet, files: [bin/kubelet]}\n\
             - {name: etcd, files: [bin/etcd]}\n- {name: stolos-job, files: [bin/stolos-job]}\n",
        );
        repository.write(
            "releases/kubernetes/jobs/node/spec",
            "name: node\ntemplates: {a.j2: bin/a}\npackages: [kubelet]\n",
        );
        repository.write("releases/kubernetes/jobs/node/templates/a.j2", "{{ name }}\n");
        let own = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../../stemcell/stemcell.yml");
        let stemcell = fs_err::read_to_string(own).expect("the definition of our stemcell");
        repository.write("stemcell/stemcell.yml", &stemcell);
        repository.write("stemcell/packages.txt", "crun # for pods\n");
        repository.write("stolos-job", "JOB");
        repository
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.path().join(path);
        fs_err::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs_err::write(path, text).expect("a file");
    }

    fn builder(&self, cache: &str) -> stolos_build::Result<Builder> {
        let cache = Cache::at(self.dir.path().join(cache), Clock::system());
        let source: Arc<dyn Source> = Arc::clone(&self.source) as _;
        Ok(Builder::new(cache, self.dir.path())?.with_source(source))
    }

    fn build_version(&self, cache: &str, version: &str) -> stolos_build::Result<(String, Utf8PathBuf)> {
        let release = self
            .builder(cache)?
            .release(version, &self.dir.path().join("stolos-job"))?;
        Ok((release.version, release.path))
    }

    fn build(&self, cache: &str) -> stolos_build::Result<(String, Utf8PathBuf)> {
        self.build_version(cache, "1.9.2")
    }
}

#[test]
fn a_release_depends_on_its_content_alone() {
    let repository = Repository::new();
    let (version, path) = repository.build("one").expect("a release");
    assert!(version.starts_with("1.9.2+"), "{version}");
    let again = repository.build("one").expect("the same release");
    assert_eq!(again, (version.clone(), path.clone()));
    assert_eq!(
        repository.source.0.load(Ordering::SeqCst),
        2,
        "etcd and one kubernetes, once each"
    );
    let (_, other) = repository.build("two").expect("from another cache");
    assert_eq!(
        fs_err::read(&path).expect("one"),
        fs_err::read(&other).expect("two")
    );

    let release = ReleaseArchive::open(&path).expect("it opens");
    assert_eq!(
        release.manifest().compiled_packages[0].stemcell,
        "stolos-trixie/13.0"
    );
    let release = release
        .extract(&repository.dir.path().join("out"))
        .expect("it extracts");
    let unpacked = repository.dir.path().join("kubelet");
    let kubelet = release
        .packages
        .iter()
        .find(|package| package.entry.name == "kubelet")
        .expect("the package");
    let open = fs_err::File::open(&kubelet.path).expect("the package");
    use stolos_release::tarball::{Limits, Owners, unpack};
    unpack("kubelet", open, &unpacked, Limits::PACKAGE, Owners::Caller).expect("it unpacks");
    let program = unpacked.join("bin/kubelet");
    assert_eq!(
        fs_err::read_to_string(&program).expect("the program"),
        "k8s.io/kubernetes/cmd/kubelet"
    );
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(
        fs_err::metadata(&program)
            .expect("the program")
            .permissions()
            .mode()
            & 0o777,
        0o755
    );

    // Each part counts: a template, a program of ours, the line of the stemcell.
    let mut versions = vec![version];
    for (file, text) in [
        ("releases/kubernetes/jobs/node/templates/a.j2", "changed"),
        ("stolos-job", "CHANGED"),
    ] {
        repository.write(file, text);
        let (version, _) = repository.build("one").expect("another release");
        assert!(!versions.contains(&version), "{file}");
        versions.push(version);
    }
}

#[test]
fn each_version_has_its_release() {
    let repository = Repository::new();
    let builder = repository.builder("cache").expect("a builder");
    assert_eq!(
        builder.kubernetes_versions().expect("the versions"),
        ["1.9.2", "1.8.7"]
    );
    let (version, path) = repository.build_version("cache", "1.8.7").expect("a release");
    assert!(version.starts_with("1.8.7+"), "{version}");
    let manifest = ReleaseArchive::open(&path).expect("it opens").manifest().clone();
    assert_eq!(manifest.name, "kubernetes");
    assert_eq!(
        repository.source.0.load(Ordering::SeqCst),
        2,
        "etcd and the one kubernetes that was asked for"
    );
    assert_eq!(
        builder.kubernetes("1.8.7").expect("its programs").name,
        "kubernetes-1.8"
    );
    for error in [
        repository
            .build_version("cache", "1.7.0")
            .expect_err("not pinned"),
        builder
            .prepare(&["1.7.0".to_owned()])
            .expect_err("not pinned, before anything is built"),
    ] {
        assert_eq!(
            error.to_string(),
            "Kubernetes 1.7.0 is not pinned; there are 1.9.2, 1.8.7"
        );
    }
}

#[test]
fn definitions_that_do_not_fit_are_refused() {
    let check_version = |version: &str, file: &str, text: &str, expected: &str| {
        let repository = Repository::new();
        repository.write(file, text);
        let error = repository.build_version("cache", version).expect_err(expected);
        let text = stolos_base::chain(&error);
        assert!(text.contains(expected), "{text}");
    };
    let check = |file: &str, text: &str, expected: &str| check_version("1.9.2", file, text, expected);
    let release = "releases/kubernetes/release.yml";
    check_version(
        "1.9.3",
        release,
        "name: kubernetes\nversions: [1.9.3, 1.9.2]\njobs: [node]\npackages: [{name: kubelet, files: [bin/kubelet]}]\n",
        "it has version 1.9.3, but `kubelet` is pinned at v1.8.7 and v1.9.2",
    );
    check(
        release,
        "name: kubernetes\nversions: [1.8.7, 1.9.2]\njobs: []\npackages: []\n",
        "`versions` is empty, or not sorted with the newest first",
    );
    check(
        release,
        "name: kubernetes\nversions: [1.9.2]\njobs: [node]\npackages: [{name: kubelet, files: [bin/kubeadm]}]\n",
        "no upstream component builds `kubeadm`, which package `kubelet` holds",
    );
    check(
        release,
        "name: kubernetes\nversions: [1.9.2]\njobs: [node]\npackages: []\n",
        "job `node` needs package `kubelet`, which is not listed",
    );
    check(
        release,
        "name: kubernetes\nversions: [1.9.2]\njobs: []\npackages: []\n",
        "the directory of job `node` is there, but it is not listed",
    );
    check(
        "releases/kubernetes/jobs/node/templates/a.j2",
        "{{ name",
        "template `a.j2` of job `node` is not valid (line 1: syntax error",
    );
    let outside = camino_tempfile::tempdir().expect("a directory");
    let cache = Cache::at(outside.path(), Clock::system());
    assert!(matches!(
        Builder::new(cache, outside.path()),
        Err(Error::NoRepository(_))
    ));
}
