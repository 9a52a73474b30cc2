//! The stemcell: Debian packages, trimmed, with our init and agent.
//!
//! What the distribution brings (the base) takes most of a minute and changes rarely; what we bring changes with each
//! build. So the base is kept as the first part of the image's gzip file, and a stemcell is that part with a second one
//! behind it.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use stolos_base::files::remove_tree_if_there;
use stolos_release::digest::MultiDigest;
use stolos_release::tarball::{Level, Owners, Packer};
use stolos_release::{StemcellManifest, write_stemcell};

use crate::builder::{Stemcell, with_digest};
use crate::cache::{Artefact, Cache, Inputs};
use crate::definition::{StemcellDefinition, User};
use crate::error::{Error, Result, file};
use crate::programs::Program;
use crate::progress::{Event, Progress};
use crate::run;

/// The first part of the image: everything but our programs. No archive of its own, it has no end.
const ROOT: &str = "root.tgz.part";
/// `NAME VERSION` of all Debian packages in it.
const PACKAGES: &str = "packages.txt";

const HINT: &str = "Install the distribution's package `mmdebstrap`.";
const UNSHARE_HINT: &str = "Install the distribution's package `util-linux`.";

/// The root file system without our programs.
pub(crate) fn base(
    cache: &Cache,
    progress: &dyn Progress,
    definition: &StemcellDefinition,
) -> Result<Artefact> {
    let architecture = std::env::consts::ARCH;
    let inputs = Inputs::new()
        .text("making", "1")
        .text("architecture", architecture)
        .text("definition", format!("{definition:?}"));
    cache.get(
        "stemcell-base",
        &definition.name,
        &inputs,
        progress,
        |directory| {
            if !rustix::process::geteuid().is_root() {
                return Err(Error::NotRoot("a stemcell"));
            }
            let root = directory.with_file_name("rootfs");
            bootstrap(progress, definition, &root)?;
            let packages = trim(definition, &root)?;
            let path = directory.join(PACKAGES);
            fs_err::write(&path, packages).map_err(file("write", &path))?;
            let path = directory.join(ROOT);
            let pack = || -> io::Result<()> {
                let mut packer = Packer::new(fs_err::File::create_new(&path)?, Level::Fast);
                packer.tree("", &root, Owners::Archive)?;
                packer.finish_part()?.flush()
            };
            pack().map_err(file("write", &path))?;
            remove_tree_if_there(&root).map_err(file("remove", &root))
        },
    )
}

/// Where the base's files are: a gzip-compressed tar archive as far as readers are concerned.
pub(crate) fn root_archive(base: &Artefact) -> Utf8PathBuf {
    base.content.join(ROOT)
}

fn bootstrap(progress: &dyn Progress, definition: &StemcellDefinition, root: &Utf8Path) -> Result<()> {
    let what = format!("stemcell-base {}", definition.name);
    // Its own mount namespace: whatever is mounted into the new tree is gone when the program is, however it ends,
    // so that removing the tree can never reach the host's own files.
    run::which("mmdebstrap", HINT)?;
    let mut command = run::bound("unshare", UNSHARE_HINT)?;
    command.args([
        "--mount",
        "--propagation",
        "private",
        "mmdebstrap",
        "--variant=essential",
    ]);
    command.arg(format!("--include={}", definition.packages.join(",")));
    for option in ["APT::Install-Recommends \"false\"", "Acquire::Languages \"none\""] {
        command.arg(format!("--aptopt={option}"));
    }
    for setting in proxy_settings()? {
        command.arg(format!("--aptopt={setting}"));
    }
    for option in [
        "path-exclude=/usr/share/man/*",
        "path-exclude=/usr/share/locale/*",
        "path-exclude=/usr/share/doc/*",
        "path-include=/usr/share/doc/*/copyright",
    ] {
        command.arg(format!("--dpkgopt={option}"));
    }
    command.arg(&definition.suite).arg(root);
    if let Some(mirror) = mirror()? {
        command.arg(mirror);
    }
    run::run(&mut command, UNSHARE_HINT, |line| {
        if let Some(text) = line.strip_prefix("I: ") {
            progress.event(&Event::Step { what: &what, text });
        }
    })
}

/// The mirror to take Debian packages from: `STOLOS_DEBIAN_MIRROR`, else the one that this machine's own apt uses for Debian,
/// else none, which leaves the choice to mmdebstrap.
fn mirror() -> Result<Option<String>> {
    if let Some(mirror) = std::env::var("STOLOS_DEBIAN_MIRROR")
        .ok()
        .filter(|mirror| !mirror.is_empty())
    {
        return Ok(Some(mirror));
    }
    let format = "$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)";
    let targets = run::output(
        run::command("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]),
        "The stemcell is made of Debian packages, with the distribution's `apt`.",
    )?;
    Ok(choose_mirror(&targets))
}

/// Picks Debian's main archive out of apt's list: not security, not updates, not somebody else's packages.
fn choose_mirror(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let mut fields = line.split('|');
        let (origin, codename, component, uri) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        (origin == "Debian" && component == "main" && !codename.contains('-')).then(|| uri.to_owned())
    })
}

/// How this machine's apt reaches its sources: proxies and certificates, as settings for another apt.
fn proxy_settings() -> Result<Vec<String>> {
    let dump = run::output(
        run::command("apt-config").args(["dump", "--format", "%F \"%v\";%n", "Acquire"]),
        "The stemcell is made of Debian packages, with the distribution's `apt`.",
    )?;
    Ok(dump
        .lines()
        .filter(|line| {
            ["Acquire::http::", "Acquire::https::"].iter().any(|prefix| {
                line.strip_prefix(prefix).is_some_and(|rest| {
                    ["proxy", "cainfo", "cacert", "verify-"]
                        .iter()
                        .any(|name| rest.to_ascii_lowercase().starts_with(name))
                        && !rest.ends_with("\"\";")
                })
            })
        })
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect())
}

/// Removes what a machine does not need, adds users and directories. Returns the list of packages.
fn trim(definition: &StemcellDefinition, root: &Utf8Path) -> Result<String> {
    let status = root.join("var/lib/dpkg/status");
    let status = fs_err::read_to_string(&status).map_err(file("read", &status))?;
    let packages = package_list(&status);
    for path in &definition.remove {
        let path = root.join(path);
        match fs_err::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => remove_tree_if_there(&path).map_err(file("remove", &path))?,
            Ok(_) => fs_err::remove_file(&path).map_err(file("remove", &path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(file("read", &path)(error)),
        }
    }
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry.map_err(|error| file("read", root)(error.into()))?;
        let name = entry.file_name().to_string_lossy();
        if entry.file_type().is_file()
            && definition
                .remove_endings
                .iter()
                .any(|ending| name.ends_with(ending))
        {
            fs_err::remove_file(entry.path()).map_err(file("remove", root))?;
        }
    }
    // Who looks for known weaknesses in a machine needs the list of its packages, whose database is not kept.
    let share = root.join("usr/share/stolos");
    fs_err::create_dir_all(&share).map_err(file("create", &share))?;
    let list = share.join("dpkg-status");
    fs_err::write(&list, &status).map_err(file("write", &list))?;
    add_users(&definition.users, root)?;
    for directory in &definition.directories {
        let path = root.join(&directory.path);
        let make = || -> io::Result<()> {
            fs_err::create_dir_all(&path)?;
            fs_err::os::unix::fs::chown(&path, Some(directory.owner), Some(directory.group))?;
            fs_err::set_permissions(&path, std::fs::Permissions::from_mode(directory.mode()))
        };
        make().map_err(file("create", &path))?;
    }
    Ok(packages)
}

fn add_users(users: &[User], root: &Utf8Path) -> Result<()> {
    let append = |name: &str, line: String| {
        let path = root.join("etc").join(name);
        fs_err::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut open| open.write_all(line.as_bytes()))
            .map_err(file("write", path))
    };
    for User {
        name,
        id,
        home,
        shell,
    } in users
    {
        // No password fits `*`.
        append("passwd", format!("{name}:*:{id}:{id}::{home}:{shell}\n"))?;
        append("group", format!("{name}:*:{id}:\n"))?;
    }
    Ok(())
}

/// `NAME VERSION` a line, from dpkg's status file.
fn package_list(status: &str) -> String {
    let mut packages = BTreeMap::new();
    for paragraph in status.split("\n\n") {
        let field = |name: &str| {
            paragraph
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        if let (Some(name), Some(version)) = (field("Package"), field("Version")) {
            packages.insert(name, version);
        }
    }
    packages
        .iter()
        .map(|(name, version)| format!("{name} {version}\n"))
        .collect()
}

/// Puts our programs behind the base and wraps both as a stemcell.
pub(crate) fn assemble(
    cache: &Cache,
    progress: &dyn Progress,
    definition: &StemcellDefinition,
    base: &Artefact,
    init: &Program,
    agent: &Program,
) -> Result<Stemcell> {
    let inputs = Inputs::new()
        .text("making", "1")
        .text("base", format!("{:?}", base.files))
        .text("stolos-init", &init.sha256)
        .text("stolos-agent", &agent.sha256);
    let version = with_digest(&definition.version, &inputs)?;
    let tarball = format!("{}-{version}.tgz", definition.name);
    let artefact = cache.get("stemcell", &definition.name, &inputs, progress, |directory| {
        let image = directory.with_file_name("image");
        write_image(base, init, agent, &image).map_err(file("write", &image))?;
        let manifest = StemcellManifest {
            name: definition.name.clone(),
            version: version.clone(),
            operating_system: Some(definition.name.clone()),
            sha1: MultiDigest::sha256(b""),
            api_version: 3,
            bosh_protocol: Some("1".to_owned()),
            stemcell_formats: vec!["stolos-rootfs".to_owned()],
            cloud_properties: serde_json::Map::new(),
        };
        let packages = base.content.join(PACKAGES);
        let packages = fs_err::read_to_string(&packages).map_err(file("read", &packages))?;
        write_stemcell(manifest, &image, &packages, &directory.join(&tarball))?;
        fs_err::remove_file(&image).map_err(file("remove", &image))
    })?;
    Ok(Stemcell {
        name: definition.name.clone(),
        version: version.to_string(),
        path: artefact.content.join(tarball),
    })
}

fn write_image(base: &Artefact, init: &Program, agent: &Program, image: &Utf8Path) -> io::Result<()> {
    let mut out = fs_err::File::create_new(image)?;
    io::copy(&mut fs_err::File::open(root_archive(base))?, &mut out)?;
    let mut packer = Packer::new(out, Level::Fast);
    packer.directory("usr/lib/stolos", 0o755)?;
    let mut add = |path: &str, program: &Program| {
        let source = fs_err::File::open(&program.path)?;
        let size = source.metadata()?.len();
        packer.file(path, 0o755, size, source)
    };
    add("usr/sbin/init", init)?;
    // A machine's /var is its own copy of the stemcell's; the program itself lies where all machines share it.
    add("usr/lib/stolos/stolos-agent", agent)?;
    packer.symlink("var/vcap/bosh/bin/stolos-agent", "/usr/lib/stolos/stolos-agent")?;
    packer.finish()?.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_debian_s_main_archive() {
        let targets = "Elsewhere|bookworm|main|http://packages.example/\nDebian|bookworm-security|main|http://mirror.example/security/\n\
                       Debian|bookworm|contrib|http://mirror.example/contrib/\nDebian|bookworm|main|http://mirror.example/debian/\n";
        assert_eq!(
            choose_mirror(targets).as_deref(),
            Some("http://mirror.example/debian/")
        );
        assert_eq!(
            choose_mirror("Ubuntu|noble|main|http://mirror.example/ubuntu/\n"),
            None
        );
    }

    #[test]
    fn packages_are_listed_with_versions() {
        let status = "Package: b\nStatus: install ok installed\nVersion: 2\n\nPackage: a\nVersion: 1:1.0-1\nDescription: x\n Version: no\n";
        assert_eq!(package_list(status), "a 1:1.0-1\nb 2\n");
    }

    #[test]
    fn our_programs_follow_the_base_in_one_image() {
        use stolos_release::StemcellArchive;
        use stolos_release::tarball::{Limits, unpack};
        let dir = camino_tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs_err::write(&path, text).expect("a file");
            Program::at(&path).expect("its digest")
        };
        let mut packer = Packer::new(Vec::new(), Level::Fast);
        for directory in [
            "usr",
            "usr/sbin",
            "var",
            "var/vcap",
            "var/vcap/bosh",
            "var/vcap/bosh/bin",
        ] {
            packer.directory(directory, 0o755).expect("packing");
        }
        packer.symlink("sbin", "usr/sbin").expect("packing");
        write(PACKAGES, "crun 1\n");
        fs_err::write(dir.path().join(ROOT), packer.finish_part().expect("packing")).expect("the base");
        let base = Artefact {
            content: dir.path().to_owned(),
            key: "0".repeat(64),
            files: BTreeMap::new(),
        };
        let repository =
            crate::find_repository(Utf8Path::new(env!("CARGO_MANIFEST_DIR"))).expect("the repository");
        let definition = StemcellDefinition::read(&repository.join("stemcell")).expect("the definition");
        let build = |cache: &str, agent: &str| {
            let cache = Cache::at(dir.path().join(cache), stolos_base::Clock::system());
            let (init, agent) = (write("init", "INIT"), write("agent", agent));
            assemble(&cache, &crate::NoProgress, &definition, &base, &init, &agent).expect("a stemcell")
        };
        let one = build("one", "AGENT");
        let read = |stemcell: &Stemcell| fs_err::read(&stemcell.path).expect("the tarball");
        assert_eq!(read(&one), read(&build("two", "AGENT")), "the same bytes");
        assert_ne!(one.version, build("one", "ANOTHER").version);

        let stemcell = StemcellArchive::open(&one.path).expect("a stemcell");
        assert_eq!(stemcell.manifest().stemcell_formats, ["stolos-rootfs"]);
        let image = dir.path().join("image");
        stemcell.extract_image(&image).expect("its image");
        let root = dir.path().join("root");
        let open = fs_err::File::open(&image).expect("the image");
        unpack("image", open, &root, Limits::ROOT_FILE_SYSTEM, Owners::Caller).expect("it unpacks");
        assert_eq!(
            fs_err::read(root.join("sbin/init")).expect("init, by way of the base's link"),
            b"INIT"
        );
        let agent = root
            .join("var/vcap/bosh/bin/stolos-agent")
            .read_link_utf8()
            .expect("a link");
        let agent = agent.strip_prefix("/").expect("an absolute link");
        assert_eq!(fs_err::read(root.join(agent)).expect("the agent"), b"AGENT");
    }
}
