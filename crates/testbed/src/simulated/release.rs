//! A stemcell without a system, and the Kubernetes release with its real jobs and with packages that hold no program: what the director
//! needs to render every template of a cluster.

use std::collections::BTreeSet;

use anyhow::Context as _;
use camino::{Utf8Path, Utf8PathBuf};
use stolos_clusters::render::Artifacts;
use stolos_release::tarball::{Level, Packer};
use stolos_release::{JobArchive, ReleaseWriter, StemcellManifest, write_stemcell};

use super::KUBERNETES_VERSION;

/// Where the jobs are in the repository.
const JOBS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../releases/kubernetes/jobs");
const RELEASE: &str = "kubernetes";
const STEMCELL: &str = "stolos-trixie";
const STEMCELL_VERSION: &str = "13.0";

/// What was built.
pub(super) struct Built {
    pub(super) release: Utf8PathBuf,
    pub(super) stemcell: Utf8PathBuf,
}

/// What is built, as a cluster's manifest names it.
pub(super) fn artifacts() -> Artifacts {
    Artifacts {
        release: RELEASE.to_owned(),
        release_version: version(),
        stemcell_os: STEMCELL.to_owned(),
        stemcell_version: STEMCELL_VERSION.to_owned(),
        image_seed: String::new(),
    }
}

fn version() -> String {
    format!("{KUBERNETES_VERSION}+simulated")
}

/// Builds both in a directory, unless an earlier life did.
pub(super) fn build(directory: &Utf8Path) -> anyhow::Result<Built> {
    let built = Built {
        release: directory.join("release.tgz"),
        stemcell: directory.join("stemcell.tgz"),
    };
    if built.release.exists() && built.stemcell.exists() {
        return Ok(built);
    }
    let target = format!("{STEMCELL}/{STEMCELL_VERSION}");
    let mut writer = ReleaseWriter::new(RELEASE, version().parse()?, &target);
    let mut packages = BTreeSet::new();
    for entry in Utf8Path::new(JOBS)
        .read_dir_utf8()
        .context("failed to find the jobs of the Kubernetes release")?
    {
        let job = JobArchive::from_source(entry?.path())?;
        packages.extend(job.spec.packages.iter().cloned());
        writer.job(&job);
    }
    for name in packages {
        let path = directory.join(format!("{name}.tgz"));
        let mut packer = Packer::new(Vec::new(), Level::Fast);
        packer.directory("bin", 0o755)?;
        packer.bytes("bin/nothing", 0o755, name.as_bytes())?;
        let bytes = packer.finish()?;
        fs_err::write(&path, &bytes)?;
        let digest = stolos_blobs::BlobId::of(&bytes).to_string();
        writer.compiled_package(&name, &path, &digest, &[])?;
    }
    writer.write(&built.release)?;
    stemcell(directory, &built.stemcell)?;
    Ok(built)
}

fn stemcell(directory: &Utf8Path, path: &Utf8Path) -> anyhow::Result<()> {
    let image = directory.join("image");
    fs_err::write(&image, b"no system")?;
    let manifest = StemcellManifest {
        name: STEMCELL.to_owned(),
        version: STEMCELL_VERSION.parse()?,
        operating_system: Some(STEMCELL.to_owned()),
        sha1: format!("sha256:{}", stolos_blobs::BlobId::of(b"no system")).parse()?,
        api_version: 3,
        bosh_protocol: None,
        stemcell_formats: vec!["null".to_owned()],
        cloud_properties: serde_json::Map::new(),
    };
    write_stemcell(manifest, &image, "", path)?;
    Ok(())
}
