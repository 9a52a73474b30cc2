//! Packages: programs packed for a stemcell.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};
use stolos_release::digest::sha256_of;
use stolos_release::tarball::{Level, Packer};

use crate::cache::{Artefact, Cache, Inputs};
use crate::error::{Error, Result, file};
use crate::progress::Progress;

/// Changes whenever the way of packing does, so that old artefacts are not taken for new ones.
const PACKING: &str = "1";

/// A program on disk.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) path: Utf8PathBuf,
    pub(crate) sha256: String,
}

impl Program {
    pub(crate) fn at(path: &Utf8Path) -> Result<Self> {
        let sha256 = fs_err::File::open(path)
            .and_then(sha256_of)
            .map_err(file("read", path))?;
        Ok(Self {
            path: path.to_owned(),
            sha256,
        })
    }

    /// A program of an artefact, whose digest is known.
    pub(crate) fn of(artefact: &Artefact, name: &str) -> Option<Self> {
        let path = format!("bin/{name}");
        let sha256 = artefact.files.get(&path)?.clone();
        Some(Self {
            path: artefact.content.join(path),
            sha256,
        })
    }
}

/// A packed package.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    pub(crate) archive: Utf8PathBuf,
    pub(crate) sha256: String,
}

/// Packs programs at their places inside of the package.
pub(crate) fn pack(
    cache: &Cache,
    progress: &dyn Progress,
    name: &str,
    programs: &BTreeMap<Utf8PathBuf, Program>,
) -> Result<Package> {
    let mut inputs = Inputs::new().text("packing", PACKING);
    for (place, program) in programs {
        inputs = inputs.text(place.as_str(), &program.sha256);
    }
    let artefact = cache.get("package", name, &inputs, progress, |directory| {
        let path = directory.join(ARCHIVE);
        let write = || -> std::io::Result<()> {
            let mut packer = Packer::new(fs_err::File::create_new(&path)?, Level::Fast);
            let mut parents: Vec<&Utf8Path> = programs.keys().filter_map(|place| place.parent()).collect();
            parents.dedup();
            for parent in parents.into_iter().filter(|parent| !parent.as_str().is_empty()) {
                packer.directory(parent.as_str(), 0o755)?;
            }
            for (place, program) in programs {
                let source = fs_err::File::open(&program.path)?;
                let size = source.metadata()?.len();
                let mode = if place.starts_with("bin") { 0o755 } else { 0o644 };
                packer.file(place.as_str(), mode, size, source)?;
            }
            packer.finish()?.sync_all()
        };
        write().map_err(file("write", &path))
    })?;
    let sha256 = artefact
        .files
        .get(ARCHIVE)
        .cloned()
        .ok_or_else(|| Error::Definition {
            path: artefact.content.clone(),
            reason: "it holds no package".to_owned(),
        })?;
    Ok(Package {
        archive: artefact.content.join(ARCHIVE),
        sha256,
    })
}

const ARCHIVE: &str = "package.tgz";
