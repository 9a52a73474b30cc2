//! The system's container images: made here, from no registry.

use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;
use stolos_release::tarball::{self, Kind, Limits, Next};

use crate::cache::{Artefact, Cache, Inputs};
use crate::error::{Result, file};
use crate::oci::{self, Config};
use crate::programs::Program;
use crate::progress::Progress;
use crate::{run, stemcell};

/// An image as an archive in OCI's layout.
#[derive(Clone, Debug, Serialize)]
pub struct ImageArchive {
    /// Its name with tag, for instance `stolos.local/pause:3.10`.
    pub name: String,
    /// The archive.
    pub path: Utf8PathBuf,
    /// SHA-256 of the archive.
    pub sha256: String,
}

/// The registry that the images claim to come from. Nothing answers there; nodes have the images already.
const REGISTRY: &str = "stolos.local";
/// The tag of the pause image: the version of upstream's whose behaviour ours has.
const PAUSE_TAG: &str = "3.10";
/// The tag of the test image.
const BUSYBOX_TAG: &str = "1";

/// All images: pause, those of the upstream programs (name and version before each), and one with a shell for smoke tests.
pub(crate) fn all(
    cache: &Cache,
    progress: &dyn Progress,
    repository: &Utf8Path,
    base: &Artefact,
    programs: &[(&str, String, Program)],
) -> Result<Vec<ImageArchive>> {
    let mut images = vec![pause(cache, progress, repository)?];
    for (name, version, program) in programs {
        images.push(of_program(cache, progress, name, version, program)?);
    }
    images.push(busybox(cache, progress, base)?);
    Ok(images)
}

/// Packs what `fill` puts into a directory as the image's only layer.
fn image(
    cache: &Cache,
    progress: &dyn Progress,
    (name, tag): (&str, &str),
    inputs: &Inputs,
    config: &Config<'_>,
    fill: impl FnOnce(&Utf8Path) -> Result<()>,
) -> Result<ImageArchive> {
    let full = format!("{REGISTRY}/{name}:{tag}");
    let inputs = inputs
        .clone()
        .text("making", "1")
        .text("name", &full)
        .text("architecture", std::env::consts::ARCH);
    let artefact = cache.get("image", name, &inputs, progress, |directory| {
        let root = directory.with_file_name("root");
        fs_err::create_dir(&root).map_err(file("create", &root))?;
        fill(&root)?;
        let archive = directory.join(ARCHIVE);
        oci::write(&full, &root, config, &archive).map_err(file("write", &archive))?;
        fs_err::remove_dir_all(&root).map_err(file("remove", &root))
    })?;
    Ok(ImageArchive {
        name: full,
        path: artefact.content.join(ARCHIVE),
        sha256: artefact.files.get(ARCHIVE).cloned().unwrap_or_default(),
    })
}

const ARCHIVE: &str = "image.tar";

fn pause(cache: &Cache, progress: &dyn Progress, repository: &Utf8Path) -> Result<ImageArchive> {
    const HINT: &str = "Install the distribution's packages `gcc` and `libc6-dev`.";
    let source = repository.join("crates/build/images/pause.c");
    let compiler = run::output(run::command("cc").arg("--version"), HINT)?;
    let inputs = Inputs::new()
        .file("pause.c", &source)?
        .text("compiler", compiler.lines().next().unwrap_or_default());
    let config = Config {
        entrypoint: &["/pause"],
        command: &[],
    };
    image(cache, progress, ("pause", PAUSE_TAG), &inputs, &config, |root| {
        let mut cc = run::command("cc");
        cc.args(["-Os", "-Wall", "-static", "-s", "-o"])
            .arg(root.join("pause"))
            .arg(&source);
        run::run(&mut cc, HINT, |_| {})
    })
}

/// A program that needs nothing beside it, under its own name.
fn of_program(
    cache: &Cache,
    progress: &dyn Progress,
    name: &str,
    version: &str,
    program: &Program,
) -> Result<ImageArchive> {
    let inputs = Inputs::new().text(name, &program.sha256);
    let entrypoint = format!("/{name}");
    let config = Config {
        entrypoint: &[&entrypoint],
        command: &[],
    };
    let tag = version.trim_start_matches('v');
    image(cache, progress, (name, tag), &inputs, &config, |root| {
        let path = root.join(name);
        fs_err::copy(&program.path, &path).map_err(file("write", &path))?;
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).map_err(file("write", path))
    })
}

/// Debian's busybox with the C library: a static one cannot look up names.
fn busybox(cache: &Cache, progress: &dyn Progress, base: &Artefact) -> Result<ImageArchive> {
    let inputs = Inputs::new().text("base", format!("{:?}", base.files));
    let config = Config {
        entrypoint: &[],
        command: &["sh"],
    };
    image(
        cache,
        progress,
        ("busybox", BUSYBOX_TAG),
        &inputs,
        &config,
        |root| {
            let archive = stemcell::root_archive(base);
            let open = fs_err::File::open(&archive).map_err(file("read", &archive))?;
            tarball::walk(archive.as_str(), open, Limits::ROOT_FILE_SYSTEM, |entry| {
                if is_in_busybox_image(&entry.path, &entry.kind) {
                    let path = root.join(&entry.path);
                    place(&path, &entry.kind, entry.mode, entry.data).map_err(file("write", path))?;
                }
                Ok::<_, crate::Error>(Next::Continue)
            })?;
            let applets = run::output(
                run::command("chroot")
                    .arg(root)
                    .args(["/usr/bin/busybox", "--list"]),
                "Install the distribution's package `coreutils`.",
            )?;
            let finish = || -> io::Result<()> {
                for applet in applets.lines() {
                    let path = root.join("usr/bin").join(applet);
                    if fs_err::symlink_metadata(&path).is_err() {
                        symlink("busybox", path)?;
                    }
                }
                for (directory, mode) in [("tmp", 0o1777), ("root", 0o700), ("var", 0o755), ("home", 0o755)] {
                    let path = root.join(directory);
                    fs_err::create_dir_all(&path)?;
                    fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
                }
                Ok(())
            };
            finish().map_err(file("write", root))
        },
    )
}

/// Which of the stemcell's files make the test image: busybox, `getent`, what they are linked with, who is who.
fn is_in_busybox_image(path: &Utf8Path, kind: &Kind) -> bool {
    const FILES: &[&str] = &[
        "usr/bin/busybox",
        "usr/bin/getent",
        "etc/group",
        "etc/nsswitch.conf",
        "etc/passwd",
        "etc/protocols",
        "etc/services",
    ];
    const LIBRARIES: &[&str] = &[
        "libc.so.6",
        "libm.so.6",
        "libresolv.so.2",
        "libnss_dns.so.2",
        "libnss_files.so.2",
    ];
    // `bin`, `lib` and so on are links into `usr`.
    let is_top_link = matches!(kind, Kind::Symlink(_)) && path.components().count() == 1;
    let name = path.file_name().unwrap_or_default();
    let is_library = path.starts_with("usr/lib") || path.starts_with("usr/lib64");
    is_top_link
        || FILES.contains(&path.as_str())
        || (is_library
            && *kind != Kind::Directory
            && (name.starts_with("ld-linux") || LIBRARIES.contains(&name)))
}

fn place(path: &Utf8Path, kind: &Kind, mode: u32, data: &mut dyn io::Read) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent)?;
    }
    match kind {
        Kind::Symlink(target) => symlink(target, path),
        _ => {
            let mut out = fs_err::File::create_new(path)?;
            io::copy(data, &mut out)?;
            fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode & 0o755))
        }
    }
}
