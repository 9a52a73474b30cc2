use proptest::prelude::*;

use super::*;

/// An archive with arbitrary, also evil, entries: `(kind, path, link target)`.
fn evil(entries: &[(u8, String, String)]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    for (kind, path, target) in entries {
        let mut header = Header::new_gnu();
        let content: &[u8] = if *kind == b'0' { b"content" } else { b"" };
        let gnu = header.as_gnu_mut().expect("a GNU header");
        let n = path.len().min(100);
        gnu.name[..n].copy_from_slice(&path.as_bytes()[..n]);
        let n = target.len().min(100);
        gnu.linkname[..n].copy_from_slice(&target.as_bytes()[..n]);
        header.set_entry_type(EntryType::new(*kind));
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        gzip.write_all(header.as_bytes()).expect("writing to memory");
        if !content.is_empty() {
            let mut block = [0_u8; 512];
            block[..content.len()].copy_from_slice(content);
            gzip.write_all(&block).expect("writing to memory");
        }
    }
    gzip.write_all(&[0; 1024]).expect("writing to memory");
    gzip.finish().expect("writing to memory")
}

fn unpack_into(directory: &Utf8Path, archive: &[u8]) -> Result<()> {
    unpack("test", archive, directory, Limits::PACKAGE, Owners::Caller)
}

fn entry(kind: char, path: &str, target: &str) -> (u8, String, String) {
    (kind as u8, path.to_owned(), target.to_owned())
}

#[test]
fn what_leaves_the_directory_is_refused() {
    for entries in [
        vec![entry('0', "../a", "")],
        vec![entry('0', "a/../../b", "")],
        vec![entry('0', "/etc/passwd", "")],
        vec![entry('1', "a", "../outside/file")],
        vec![entry('1', "a", "/etc/passwd")],
        vec![entry('2', "a", "../outside"), entry('0', "a/b", "")],
        vec![
            entry('2', "a", "../outside"),
            entry('5', "a", ""),
            entry('0', "a/b", ""),
        ],
        vec![entry('2', "a", "../outside/file"), entry('1', "b", "a")],
        vec![
            entry('5', "d", ""),
            entry('2', "d/l", "../../outside"),
            entry('1', "h", "d/l/file"),
        ],
        vec![entry('3', "null", "")],
        vec![entry('4', "disk", "")],
        vec![entry('6', "pipe", "")],
    ] {
        let dir = camino_tempfile::tempdir().expect("a directory");
        fs_err::create_dir(dir.path().join("outside")).expect("a neighbour");
        fs_err::write(dir.path().join("outside/file"), "mine").expect("a file");
        let error = unpack_into(&dir.path().join("in"), &evil(&entries)).expect_err("it is refused");
        assert!(matches!(error, Error::Entry { .. }), "{entries:?}: {error}");
        assert_eq!(
            fs_err::read(dir.path().join("outside/file")).expect("the file"),
            b"mine"
        );
        assert_eq!(
            fs_err::read_dir(dir.path().join("outside"))
                .expect("the neighbour")
                .count(),
            1
        );
    }
}

#[test]
fn a_link_is_replaced_and_not_followed() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    fs_err::write(dir.path().join("victim"), "mine").expect("a file");
    let archive = evil(&[entry('2', "a", "../victim"), entry('0', "a", "")]);
    unpack_into(&dir.path().join("in"), &archive).expect("it unpacks");
    assert_eq!(
        fs_err::read(dir.path().join("victim")).expect("the victim"),
        b"mine"
    );
    assert_eq!(
        fs_err::read(dir.path().join("in/a")).expect("the file"),
        b"content"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever an archive holds: nothing outside of the directory changes, and no device or pipe appears in it.
    #[test]
    fn nothing_outside_is_touched(
        entries in prop::collection::vec(
            (
                prop::sample::select(b"012345670LKSxgV".to_vec()),
                prop::collection::vec(prop::sample::select(vec!["a", "b", "..", ".", "", "outside", "file", "in"]), 1..5),
                prop::collection::vec(prop::sample::select(vec!["a", "b", "..", ".", "", "outside", "file", "in"]), 1..5),
            ),
            1..8,
        )
    ) {
        let dir = camino_tempfile::tempdir().expect("a directory");
        fs_err::create_dir(dir.path().join("outside")).expect("a neighbour");
        fs_err::write(dir.path().join("outside/file"), "mine").expect("a file");
        let entries: Vec<_> = entries.into_iter().map(|(k, p, t)| (k, p.join("/"), t.join("/"))).collect();
        let _ = unpack_into(&dir.path().join("in"), &evil(&entries));
        prop_assert_eq!(fs_err::read(dir.path().join("outside/file")).expect("the file"), b"mine");
        let mut found: Vec<String> = Vec::new();
        for entry in fs_err::read_dir(dir.path()).expect("the directory") {
            found.push(entry.expect("an entry").file_name().into_string().expect("UTF-8"));
        }
        found.sort();
        prop_assert_eq!(found, ["in", "outside"]);
        prop_assert_eq!(fs_err::read_dir(dir.path().join("outside")).expect("the neighbour").count(), 1);
        let outside = fs_err::metadata(dir.path().join("outside/file")).expect("the file");
        prop_assert_eq!(outside.nlink(), 1, "no second name of a file outside");
    }

    /// Damaged archives are errors, never panics.
    #[test]
    fn damage_is_an_error(at in 0..2000_usize, byte: u8, cut in 0..2000_usize) {
        let mut archive = evil(&[entry('5', "d", ""), entry('0', "d/a", ""), entry('2', "l", "d")]);
        let n = archive.len();
        archive[at % n] = byte;
        archive.truncate(n - cut % n);
        let dir = camino_tempfile::tempdir().expect("a directory");
        let _ = unpack_into(&dir.path().join("in"), &archive);
    }
}

#[test]
fn limits_hold() {
    let mut packer = Packer::new(Vec::new(), Level::Fast);
    for i in 0..10 {
        packer
            .bytes(&format!("f{i}"), 0o644, &[0; 100_000])
            .expect("packing");
    }
    let archive = packer.finish().expect("packing");
    let run = |limits| {
        let dir = camino_tempfile::tempdir().expect("a directory");
        unpack("test", archive.as_slice(), dir.path(), limits, Owners::Caller)
    };
    run(Limits {
        entries: 10,
        bytes: 1_100_000,
    })
    .expect("it fits");
    assert_eq!(
        run(Limits {
            entries: 9,
            bytes: 1_100_000
        })
        .expect_err("too many")
        .to_string(),
        "the archive is too large: more than 9 entries"
    );
    assert_eq!(
        run(Limits {
            entries: 10,
            bytes: 500_000
        })
        .expect_err("too large")
        .to_string(),
        "the archive is too large: more than 500000 bytes"
    );
}

#[test]
fn a_tree_packs_to_the_same_bytes_and_comes_back() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let long = format!("{}/{}", "d".repeat(90), "ü".repeat(60));
    let make = |root: &Utf8Path, names: &[&str]| {
        for name in names {
            let path = root.join(name);
            fs_err::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs_err::write(&path, name).expect("a file");
        }
        fs_err::os::unix::fs::symlink("/elsewhere", root.join("link")).expect("a link");
        fs_err::hard_link(root.join("bin/run"), root.join("second")).expect("a hard link");
        fs_err::set_permissions(root.join("bin/run"), std::fs::Permissions::from_mode(0o4755))
            .expect("a mode");
    };
    let names = ["bin/run", "z", long.as_str()];
    make(&dir.path().join("one"), &names);
    make(&dir.path().join("two"), &[names[2], names[1], names[0]]);
    let pack = |name: &str, owners| {
        let mut packer = Packer::new(Vec::new(), Level::Fast);
        packer.tree("", &dir.path().join(name), owners).expect("packing");
        packer.finish().expect("packing")
    };
    assert_eq!(pack("one", Owners::Caller), pack("two", Owners::Caller));

    let again = dir.path().join("again");
    unpack_into(&again, &pack("one", Owners::Caller)).expect("it unpacks");
    assert_eq!(
        fs_err::read_to_string(again.join(&long)).expect("the long name"),
        long
    );
    assert_eq!(
        fs_err::read_link(again.join("link")).expect("the link").to_str(),
        Some("/elsewhere")
    );
    let run = fs_err::metadata(again.join("bin/run")).expect("the file");
    assert_eq!((run.mode() & 0o7777, run.nlink()), (0o755, 2));
    assert_eq!(pack("again", Owners::Caller), pack("one", Owners::Caller));

    if rustix::process::geteuid().is_root() {
        let kept = dir.path().join("kept");
        let archive = pack("one", Owners::Archive);
        unpack(
            "test",
            archive.as_slice(),
            &kept,
            Limits::PACKAGE,
            Owners::Archive,
        )
        .expect("it unpacks");
        let run = fs_err::metadata(kept.join("bin/run")).expect("the file");
        assert_eq!(
            run.mode() & 0o7777,
            0o4755,
            "special bits are kept with the owners"
        );
    }
}
