use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::progress::NoProgress;

fn cache(dir: &Utf8Path) -> Cache {
    Cache::at(dir, Clock::system())
}

fn inputs(text: &str) -> Inputs {
    Inputs::new().text("text", text)
}

fn put(directory: &Utf8Path, text: &str) -> Result<()> {
    fs_err::create_dir(directory.join("bin")).map_err(file("create", directory))?;
    fs_err::write(directory.join("bin/a"), text).map_err(file("write", directory))?;
    fs_err::write(directory.join("b"), "B").map_err(file("write", directory))?;
    fs_err::os::unix::fs::symlink("b", directory.join("link")).map_err(file("write", directory))
}

fn never(_: &Utf8Path) -> Result<()> {
    panic!("it must not be made again")
}

#[test]
fn the_same_inputs_are_made_once_and_others_apart() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let cache = cache(dir.path());
    let get = |text: &str| cache.get("kind", "name", &inputs(text), &NoProgress, |at| put(at, text));
    let one = get("one").expect("it is made");
    let two = get("two").expect("it is made");
    assert_ne!(one.content, two.content);
    assert_eq!(one.files["bin/a"], Algorithm::Sha256.hex(b"one"));
    let again = cache
        .get("kind", "name", &inputs("one"), &NoProgress, never)
        .expect("it is there");
    assert_eq!((again.content, again.files), (one.content, one.files));
    assert_eq!(cache.list().expect("a list").len(), 2);
}

#[test]
fn a_failure_leaves_nothing() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let cache = cache(dir.path());
    let result = cache.get("kind", "name", &inputs("x"), &NoProgress, |at| {
        put(at, "half")?;
        Err(Error::NotRoot("it"))
    });
    assert!(matches!(result, Err(Error::NotRoot(_))));
    assert!(cache.list().expect("a list").is_empty());
    assert!(
        directories(&dir.path().join("making"))
            .expect("a directory")
            .is_empty()
    );
}

#[test]
fn what_a_killed_maker_left_is_removed_and_not_used() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let cache = cache(dir.path());
    let get = || cache.get("kind", "name", &inputs("x"), &NoProgress, |at| put(at, "x"));
    let home = get()
        .expect("it is made")
        .content
        .parent()
        .expect("a parent")
        .to_owned();
    fs_err::remove_dir_all(&home).expect("it is removed");
    let key = home.file_name().expect("its key");
    let left_over = dir.path().join(format!("making/kind-name-{key}.0123"));
    fs_err::create_dir_all(left_over.join("content/half")).expect("what was left");
    let other = dir.path().join("making/kind-other-0000.0123");
    fs_err::create_dir_all(&other).expect("somebody else's");
    let artefact = get().expect("it is made again");
    assert!(!artefact.content.join("half").exists() && !left_over.exists() && other.exists());
}

#[test]
fn two_builders_make_one_thing() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let n_made = AtomicUsize::new(0);
    let n_waiting = Mutex::new(0);
    struct Waits<'a>(&'a Mutex<usize>);
    impl Progress for Waits<'_> {
        fn event(&self, event: &Event<'_>) {
            if matches!(event, Event::Waiting { .. }) {
                *self.0.lock().expect("no panic") += 1;
            }
        }
    }
    let begin = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let progress = Waits(&n_waiting);
                begin.wait();
                let artefact = cache(dir.path())
                    .get("kind", "name", &inputs("x"), &progress, |at| {
                        n_made.fetch_add(1, Ordering::SeqCst);
                        // It is being made until all the others are seen to wait for it.
                        while *n_waiting.lock().expect("no panic") < 3 {
                            std::thread::yield_now();
                        }
                        put(at, "x")
                    })
                    .expect("all get it");
                assert_eq!(
                    fs_err::read(artefact.content.join("bin/a")).expect("its content"),
                    b"x"
                );
            });
        }
    });
    assert_eq!(n_made.load(Ordering::SeqCst), 1);
}

#[test]
fn damage_is_noticed_and_repaired() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let cache = cache(dir.path());
    let get = |make: &dyn Fn(&Utf8Path) -> Result<()>| {
        cache
            .get("kind", "name", &inputs("x"), &NoProgress, make)
            .expect("it is usable")
    };
    let artefact = get(&|at| put(at, "good"));
    let home = artefact.content.parent().expect("a parent").to_owned();
    let a = artefact.content.join("bin/a");
    let damages: &[&dyn Fn()] = &[
        &|| fs_err::write(&a, "evil").expect("the same size"),
        &|| fs_err::write(&a, "longer than before").expect("another size"),
        &|| fs_err::remove_file(&a).expect("a part removed"),
        &|| fs_err::write(artefact.content.join("more"), "").expect("a part added"),
        &|| fs_err::remove_file(artefact.content.join("link")).expect("a link removed"),
        &|| {
            fs_err::remove_file(artefact.content.join("link")).expect("a link removed");
            fs_err::os::unix::fs::symlink("elsewhere", artefact.content.join("link")).expect("another link");
        },
        &|| fs_err::write(home.join("artefact.json"), "{").expect("a broken description"),
        &|| fs_err::remove_file(home.join("artefact.json")).expect("no description"),
    ];
    for (i, damage) in damages.iter().enumerate() {
        damage();
        let made = AtomicUsize::new(0);
        let again = get(&|at| {
            made.fetch_add(1, Ordering::SeqCst);
            put(at, "good")
        });
        assert_eq!(made.load(Ordering::SeqCst), 1, "damage {i} was noticed");
        assert_eq!(
            fs_err::read(again.content.join("bin/a")).expect("its content"),
            b"good"
        );
    }
    // Copied back from a backup: other times, the same content.
    fs_err::write(&a, "good").expect("the same content");
    get(&never);
}

#[test]
fn garbage_is_what_nobody_asked_for() {
    let dir = camino_tempfile::tempdir().expect("a directory");
    let start = "2026-11-01T00:00:00Z".parse().expect("a time");
    let clock = Clock::manual(start);
    let cache = Cache::at(dir.path(), clock.clone());
    let day = Duration::from_secs(86_400);
    let get = |text: &str| {
        cache
            .get("kind", text, &inputs(text), &NoProgress, |at| put(at, text))
            .expect("an artefact")
    };
    get("old");
    let kept = get("kept");
    fs_err::create_dir_all(dir.path().join("making/kind-crashed-0.abcd")).expect("what a crash left");
    clock.advance(10 * day);
    get("kept");
    clock.advance(5 * day);
    let removed = cache.collect_garbage(7 * day).expect("it is collected");
    assert_eq!(removed.len(), 2, "{removed:?}");
    let left = cache.list().expect("a list");
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].path, kept.content);
}
