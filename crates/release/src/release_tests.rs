use std::collections::BTreeMap;

use stolos_base::{Class, Classify as _};

use super::*;
use crate::archive::ReleaseArchive;
use crate::digest::Algorithm;

fn job(name: &str, package: &str) -> JobArchive {
    let spec = format!("name: {name}\ntemplates: {{a.j2: bin/a}}\npackages: [{package}]\n");
    let templates = BTreeMap::from([("a.j2".to_owned(), b"{{ name }}".to_vec())]);
    JobArchive::from_parts(name, spec.into_bytes(), templates, None).expect("a job")
}

fn write(dir: &Utf8Path, file: &str, sha256: Option<&str>) -> Result<Utf8PathBuf> {
    let package = dir.join(format!("{file}-package.tgz"));
    fs_err::write(&package, "the package").expect("a package");
    let real = Algorithm::Sha256.hex(b"the package");
    let mut writer = ReleaseWriter::new("kubernetes", "1.0+a".parse()?, "stolos-trixie/1");
    writer.job(&job("web", "tool"));
    writer.job(&job("api", "tool"));
    writer.compiled_package("tool", &package, sha256.unwrap_or(&real), &[])?;
    let path = dir.join(file);
    writer.write(&path)?;
    Ok(path)
}

#[test]
fn a_release_is_written_the_same_way_and_reads_back() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let one = write(dir.path(), "one.tgz", None).expect("a release");
    let two = write(dir.path(), "two.tgz", None).expect("a release");
    assert_eq!(fs_err::read(&one).expect("one"), fs_err::read(&two).expect("two"));

    let archive = ReleaseArchive::open(&one).expect("it opens");
    assert_eq!(archive.manifest().version.as_str(), "1.0+a");
    assert_eq!(
        archive.manifest().compiled_packages[0].stemcell,
        "stolos-trixie/1"
    );
    let release = archive.extract(&dir.path().join("out")).expect("it extracts");
    let jobs: Vec<&str> = release
        .jobs
        .iter()
        .map(|job| job.job.spec.name.as_str())
        .collect();
    assert_eq!(jobs, ["api", "web"]);
    assert!(release.absent.is_empty());
    let package = &release.packages[0];
    assert_eq!(fs_err::read(&package.path).expect("the package"), b"the package");
    assert_eq!(package.sha256, Algorithm::Sha256.hex(b"the package"));
}

#[test]
fn a_wrong_digest_is_noticed() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let path = write(dir.path(), "bad.tgz", Some(&Algorithm::Sha256.hex(b"another"))).expect("a release");
    let error = ReleaseArchive::open(&path)
        .expect("its manifest is fine")
        .extract(&dir.path().join("out"))
        .expect_err("the digest is wrong");
    assert!(
        matches!(&error, Error::DigestMismatch { what, .. } if what == "compiled_packages/tool.tgz"),
        "{error}"
    );
    assert_eq!(error.class(), Class::User);
}

#[test]
fn broken_releases_are_refused_with_a_reason() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let release = |manifest: &str| {
        let path = dir.path().join("release.tgz");
        let mut packer = Packer::new(Vec::new(), Level::Fast);
        packer
            .bytes("./release.MF", 0o644, manifest.as_bytes())
            .expect("packing");
        fs_err::write(&path, packer.finish().expect("packing")).expect("writing");
        ReleaseArchive::open(&path).and_then(|archive| archive.extract(&dir.path().join("out")).map(drop))
    };
    let digest = "a9993e364706816aba3e25717850c26c9cd0d89d";
    for (manifest, expected) in [
        ("name: [".to_owned(), "`release.MF` is not valid"),
        (
            "name: a/b\nversion: 1\n".to_owned(),
            "`a/b` cannot name a release",
        ),
        (
            format!("name: a\nversion: 1\njobs: [{{name: j, version: f, sha1: {digest}}}]\npackages:\n"),
            "`jobs/j.tgz` is missing in",
        ),
        (
            format!("name: a\nversion: 1\njobs: [{{name: j, version: f, sha1: {digest}, packages: [p]}}]\n"),
            "job `j` needs package `p`, which is not listed",
        ),
        (
            format!(
                "name: a\nversion: 1\npackages: [{{name: p, version: f, sha1: {digest}, dependencies: [p]}}]\n"
            ),
            "packages depend on each other in a circle: p -> p",
        ),
        (
            format!(
                "name: a\nversion: 1\ncompiled_packages: [{{name: p, version: f, sha1: {digest}, stemcell: ubuntu}}]\n"
            ),
            "the stemcell `ubuntu` of package `p` is not of the form OS/VERSION",
        ),
    ] {
        let error = release(&manifest).expect_err(&manifest);
        assert!(error.to_string().contains(expected), "{error}");
    }
    // Numbers of YAML where texts are meant, as other tools write them; a package that the director has already.
    release(&format!(
        "name: a\nversion: 1.10\njobs:\npackages: [{{name: p, version: 123e5, fingerprint: 123e5, sha1: {digest}}}]\n"
    ))
    .expect("absent packages are allowed");
    let error = ReleaseArchive::open(&dir.path().join("nowhere")).expect_err("no such file");
    assert_eq!(error.class(), Class::NotFound);
    fs_err::write(dir.path().join("text"), "no archive").expect("writing");
    let error = ReleaseArchive::open(&dir.path().join("text")).expect_err("no archive");
    assert_eq!(error.class(), Class::User);
}

#[test]
fn a_stemcell_round_trips_and_its_image_is_checked() {
    use crate::stemcell::{StemcellArchive, StemcellManifest, write_stemcell};
    let dir = camino_tempfile::tempdir().expect("a directory");
    let image = dir.path().join("image");
    fs_err::write(&image, "a root file system").expect("an image");
    let manifest: StemcellManifest = serde_json::from_value(serde_json::json!({
        "name": "stolos-trixie", "version": "13.1", "sha1": "a9993e364706816aba3e25717850c26c9cd0d89d",
        "api_version": 3, "bosh_protocol": "1", "stemcell_formats": ["stolos-rootfs"],
    }))
    .expect("a manifest");
    let path = dir.path().join("stemcell.tgz");
    write_stemcell(manifest, &image, "bash 5\n", &path).expect("a stemcell");
    let stemcell = StemcellArchive::open(&path).expect("it opens");
    assert_eq!(
        (stemcell.manifest().os(), stemcell.manifest().api_version),
        ("stolos-trixie", 3)
    );
    let out = dir.path().join("out");
    let received = stemcell.extract_image(&out).expect("the image");
    assert_eq!(received.sha256, Algorithm::Sha256.hex(b"a root file system"));

    let mut packer = Packer::new(Vec::new(), Level::Store);
    let text = "name: s\nversion: 1\nsha1: a9993e364706816aba3e25717850c26c9cd0d89d\n";
    packer.bytes("image", 0o644, b"not abc").expect("packing");
    packer
        .bytes("stemcell.MF", 0o644, text.as_bytes())
        .expect("packing");
    fs_err::write(&path, packer.finish().expect("packing")).expect("writing");
    let stemcell = StemcellArchive::open(&path).expect("it opens");
    assert_eq!(stemcell.manifest().api_version, 1);
    let error = stemcell.extract_image(&out).expect_err("the image is wrong");
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    assert!(!out.exists(), "no wrong image stays");
}
