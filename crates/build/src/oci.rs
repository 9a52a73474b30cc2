//! Container images of one layer, as an archive in OCI's image layout (image-spec 1.1, `image-layout.md`) that
//! `ctr images import` reads.

use std::io;

use camino::Utf8Path;
use flate2::read::MultiGzDecoder;
use serde_json::{Value, json};
use stolos_release::digest::{Algorithm, sha256_of};
use stolos_release::tarball::{Level, Owners, Packer};

/// What an image runs.
pub(crate) struct Config<'a> {
    pub(crate) entrypoint: &'a [&'a str],
    pub(crate) command: &'a [&'a str],
}

/// Writes the image `name` (with tag) whose root is the tree `root` to `archive`. The same tree gives the same bytes.
pub(crate) fn write(name: &str, root: &Utf8Path, config: &Config<'_>, archive: &Utf8Path) -> io::Result<()> {
    let layer = archive.with_extension("layer");
    let mut packer = Packer::new(fs_err::File::create_new(&layer)?, Level::Fast);
    packer.tree("", root, Owners::Archive)?;
    packer.finish()?;
    let layer_digest = sha256_of(fs_err::File::open(&layer)?)?;
    let layer_size = fs_err::metadata(&layer)?.len();
    // The runtime names an unpacked layer by the digest of its uncompressed bytes.
    let diff_id = sha256_of(MultiGzDecoder::new(io::BufReader::new(fs_err::File::open(
        &layer,
    )?)))?;

    let image = json_bytes(&json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": config.entrypoint,
            "Cmd": config.command,
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
    }))?;
    let manifest = json_bytes(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &image),
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": format!("sha256:{layer_digest}"),
            "size": layer_size,
        }],
    }))?;
    let mut listed = descriptor(MANIFEST, &manifest);
    listed["annotations"] = json!({
        // The first is how containerd names it, the second is the specification's.
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rsplit(':').next().unwrap_or_default(),
    });
    let index = json_bytes(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [listed],
    }))?;

    let mut packer = Packer::new(fs_err::File::create_new(archive)?, Level::Plain);
    packer.bytes("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    packer.bytes("index.json", 0o644, &index)?;
    for blob in [&image, &manifest] {
        packer.bytes(
            &format!("blobs/sha256/{}", Algorithm::Sha256.hex(blob)),
            0o644,
            blob,
        )?;
    }
    let file = fs_err::File::open(&layer)?;
    packer.file(&format!("blobs/sha256/{layer_digest}"), 0o644, layer_size, file)?;
    packer.finish()?;
    fs_err::remove_file(&layer)
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn json_bytes(value: &Value) -> io::Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(io::Error::other)
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({
        "mediaType": media_type,
        "digest": format!("sha256:{}", Algorithm::Sha256.hex(bytes)),
        "size": bytes.len(),
    })
}

/// The processor as OCI (and Go) call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    #[test]
    fn an_image_is_repeatable_and_its_digests_fit() {
        let dir = camino_tempfile::tempdir().expect("a directory");
        let root = dir.path().join("root");
        fs_err::create_dir(&root).expect("a root");
        fs_err::write(root.join("hello"), "world").expect("a file");
        let config = Config {
            entrypoint: &["/hello"],
            command: &[],
        };
        let build = |name: &str| {
            let path = dir.path().join(name);
            write("stolos.local/hello:1.2", &root, &config, &path).expect("an image");
            fs_err::read(path).expect("the archive")
        };
        let archive = build("one.tar");
        assert_eq!(archive, build("two.tar"));

        // Follow the digests from the index down to the layer's content, as a runtime does.
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for entry in tar::Archive::new(archive.as_slice())
            .entries()
            .expect("an archive")
        {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").to_str().expect("UTF-8").to_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("content");
            if let Some(digest) = path.strip_prefix("blobs/sha256/") {
                assert_eq!(Algorithm::Sha256.hex(&bytes), digest);
            }
            files.insert(path, bytes);
        }
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"]
                .as_str()
                .expect("a digest")
                .strip_prefix("sha256:")
                .expect("sha256");
            let bytes = &files[&format!("blobs/sha256/{digest}")];
            assert_eq!(descriptor["size"], bytes.len());
            bytes
        };
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("JSON");
        let index = parse(&files["index.json"]);
        assert_eq!(
            index["manifests"][0]["annotations"]["io.containerd.image.name"],
            "stolos.local/hello:1.2"
        );
        let manifest = parse(blob(&index["manifests"][0]));
        let image = parse(blob(&manifest["config"]));
        assert_eq!(image["config"]["Entrypoint"], json!(["/hello"]));
        let layer = MultiGzDecoder::new(blob(&manifest["layers"][0]).as_slice());
        let diff_id = sha256_of(layer).expect("the layer");
        assert_eq!(image["rootfs"]["diff_ids"][0], format!("sha256:{diff_id}"));
    }
}
