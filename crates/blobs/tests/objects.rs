//! One suite for every place that objects can be in.

use std::time::Duration;

use bytes::Bytes;
use stolos_base::{Class, Classify as _, Secret};
use stolos_blobs::objects::s3::{Credentials, S3, Settings};
use stolos_blobs::objects::testing::Store;
use stolos_blobs::objects::{Error, ObjectName, Objects};
use tokio::io::AsyncReadExt as _;

fn name(text: &str) -> ObjectName {
    text.parse().expect("a name")
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn store() -> Option<Store> {
    match Store::start() {
        Ok(store) => Some(store),
        Err(reason) => {
            eprintln!("skipped on S3: {reason}");
            None
        }
    }
}

/// Runs the test on each kind of place.
async fn each(test: impl AsyncFn(&Objects)) {
    let directory = camino_tempfile::tempdir().expect("a directory");
    test(&Objects::directory(directory.path().join("objects"))).await;
    if let Some(store) = store() {
        test(&store.objects("")).await;
        test(&store.objects("a/prefix")).await;
    }
}

async fn names(objects: &Objects, prefix: Option<&str>) -> Vec<String> {
    let prefix = prefix.map(name);
    let listed = objects.list(prefix.as_ref()).await.expect("a list");
    listed.into_iter().map(|one| one.name.to_string()).collect()
}

#[tokio::test]
async fn objects_are_put_got_listed_replaced_and_removed() {
    each(async |objects| {
        assert!(names(objects, None).await.is_empty());
        for (key, bytes) in [
            ("b/1/x", &b"one"[..]),
            ("b/2/x", b"two"),
            ("b/10", b""),
            ("c", b"three"),
        ] {
            objects.put(&name(key), bytes).await.expect("put");
        }
        assert_eq!(names(objects, None).await, ["b/1/x", "b/10", "b/2/x", "c"]);
        assert_eq!(names(objects, Some("b")).await, ["b/1/x", "b/10", "b/2/x"]);
        assert_eq!(
            names(objects, Some("b/1")).await,
            ["b/1/x"],
            "a component, not a text"
        );
        assert!(names(objects, Some("d")).await.is_empty());
        let listed = objects.list(Some(&name("b/2"))).await.expect("a list");
        assert_eq!(listed[0].size, 3);
        let now = stolos_base::Clock::system().now_millis();
        assert!((listed[0].written_at - now).abs() < 60_000, "{listed:?}");

        assert_eq!(objects.get(&name("b/10"), 10).await.expect("got"), b"");
        objects
            .put(&name("b/1/x"), &b"another one"[..])
            .await
            .expect("put");
        assert_eq!(
            objects.get(&name("b/1/x"), 11).await.expect("got"),
            b"another one"
        );
        let error = objects.get(&name("b/1/x"), 10).await.expect_err("too large");
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");

        objects.delete(&name("b/1/x")).await.expect("removed");
        objects
            .delete(&name("b/1/x"))
            .await
            .expect("it is fine to remove what is not there");
        let error = objects.get(&name("b/1/x"), 10).await.expect_err("it is gone");
        assert!(
            matches!(&error, Error::NotFound { name, .. } if name.as_str() == "b/1/x"),
            "{error:?}"
        );
        assert_eq!(names(objects, None).await, ["b/10", "b/2/x", "c"]);
    })
    .await;
}

/// Bytes that follow from a seed, so that a part in another's place is noticed.
fn piece(seed: u32, size: usize) -> Bytes {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    })
    .flatten()
    .take(size)
    .collect();
    bytes.into()
}

#[tokio::test]
async fn large_objects_pass_in_parts() {
    const PIECE: usize = 3_000_001;
    each(async |objects| {
        for pieces in [6_u32, 17] {
            let key = name("large");
            let mut writer = objects.writer(&key).await.expect("a writer");
            for seed in 0..pieces {
                writer.write(piece(seed, PIECE)).await.expect("written");
            }
            assert!(
                !names(objects, None).await.contains(&"large".to_owned()) || pieces == 17,
                "not there before it is whole"
            );
            let size = writer.finish().await.expect("finished");
            assert_eq!(size, u64::from(pieces) * PIECE as u64);
            let mut reader = objects.reader(&key).await.expect("a reader");
            for seed in 0..pieces {
                let mut bytes = vec![0; PIECE];
                reader.read_exact(&mut bytes).await.expect("bytes");
                assert!(bytes == piece(seed, PIECE), "piece {seed} of {pieces}");
            }
            assert_eq!(reader.read(&mut [0; 1]).await.expect("the end"), 0);
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_not_finished_is_not_there() {
    each(async |objects| {
        objects.put(&name("x"), &b"old"[..]).await.expect("put");
        for give_up in [true, false] {
            let mut writer = objects.writer(&name("x")).await.expect("a writer");
            writer.write(piece(1, 40_000_000)).await.expect("written");
            if give_up {
                writer.abort().await;
            } else {
                drop(writer);
            }
            assert_eq!(names(objects, None).await, ["x"]);
            assert_eq!(objects.get(&name("x"), 100).await.expect("got"), b"old");
        }
        objects.tidy(Duration::ZERO).await.expect("tidied");
        assert_eq!(names(objects, None).await, ["x"]);
    })
    .await;
}

#[tokio::test]
async fn a_directory_is_made_only_below_one_that_is_there() {
    let directory = camino_tempfile::tempdir().expect("a directory");
    let objects = Objects::directory(directory.path().join("not-mounted/objects"));
    assert!(names(&objects, None).await.is_empty());
    let error = objects.put(&name("x"), &b"x"[..]).await.expect_err("no parent");
    let text = stolos_base::chain(&error);
    assert!(
        text.contains("failed to make the directory") && text.contains("not-mounted"),
        "{text}"
    );

    // What a killed writer left goes with time, and is never listed.
    let objects = Objects::directory(directory.path().join("objects"));
    objects.put(&name("x"), &b"x"[..]).await.expect("put");
    let left = directory.path().join("objects/.partial/abcd");
    fs_err::write(&left, "half").expect("a leftover");
    assert_eq!(names(&objects, None).await, ["x"]);
    objects.tidy(Duration::from_secs(3600)).await.expect("tidied");
    assert!(left.exists(), "it may be somebody's who still writes");
    objects.tidy(Duration::ZERO).await.expect("tidied");
    assert!(!left.exists());
}

#[tokio::test]
async fn a_full_disk_is_named() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make a small file system");
        return;
    }
    let directory = camino_tempfile::tempdir().expect("a directory");
    let at = directory.path().to_owned();
    rustix::mount::mount(
        "tmpfs",
        at.as_str(),
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        Some(c"size=2m"),
    )
    .expect("a small file system");
    let objects = Objects::directory(at.join("objects"));
    let outcome = async {
        objects.put(&name("small"), &b"fits"[..]).await?;
        objects.put(&name("large"), piece(1, 4_000_000)).await
    }
    .await;
    let listed = objects.list(None).await;
    rustix::mount::unmount(at.as_str(), rustix::mount::UnmountFlags::DETACH).expect("unmounted");
    let error = outcome.expect_err("it does not fit");
    assert!(matches!(error, Error::Full { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("no space is left") && text.contains("`large`"),
        "{text}"
    );
    assert_eq!(listed.expect("a list").len(), 1, "nothing half valid");
}

fn s3(settings: &Settings, credentials: &Credentials) -> Objects {
    Objects::s3(S3::with_patience(settings, credentials, Duration::from_secs(2)).expect("settings"))
}

#[tokio::test]
async fn a_store_that_refuses_or_is_not_there_is_told_apart() {
    let Some(mut store) = store() else { return };
    let (settings, good) = (store.settings("p"), store.credentials().clone());
    let put = async |settings: &Settings, credentials: &Credentials| {
        let error = s3(settings, credentials).put(&name("x"), &b"x"[..]).await;
        error.expect_err("it cannot work")
    };
    let wrong_secret = Credentials {
        secret_access_key: Secret::from("hunter2hunter2hunter2"),
        ..good.clone()
    };
    let error = put(&settings, &wrong_secret).await;
    let text = stolos_base::chain(&error);
    assert_eq!(error.class(), Class::Denied, "{text}");
    assert!(
        text.contains("SignatureDoesNotMatch") && text.contains("put object `x`"),
        "{text}"
    );
    assert!(!text.contains("hunter2"), "{text}");
    assert!(
        error.hints()[0].contains("secret access key"),
        "{:?}",
        error.hints()
    );

    let wrong_id = Credentials {
        access_key_id: "nobody".to_owned(),
        ..good.clone()
    };
    let error = put(&settings, &wrong_id).await;
    assert_eq!(error.class(), Class::Denied, "{}", stolos_base::chain(&error));
    assert!(error.hints()[0].contains("access key id"), "{:?}", error.hints());
    let listed = s3(&settings, &wrong_id)
        .list(None)
        .await
        .expect_err("listing, too");
    assert_eq!(listed.class(), Class::Denied, "{listed}");

    let no_bucket = Settings {
        bucket: "elsewhere".to_owned(),
        ..settings.clone()
    };
    let error = put(&no_bucket, &good).await;
    assert!(
        matches!(&error, Error::NoBucket { bucket, .. } if bucket == "elsewhere"),
        "{error:?}"
    );
    let listed = s3(&no_bucket, &good).list(None).await.expect_err("listing, too");
    assert!(matches!(listed, Error::NoBucket { .. }), "{listed:?}");
    let got = s3(&no_bucket, &good)
        .get(&name("x"), 1)
        .await
        .expect_err("getting, too");
    assert!(matches!(got, Error::NoBucket { .. }), "{got:?}");

    store.pause();
    let error = put(&settings, &good).await;
    assert!(error.retryable(), "{error:?}");
    let text = stolos_base::chain(&error);
    assert!(
        text.contains("failed to put object `x` in s3://backups/p"),
        "{text}"
    );
}

#[tokio::test]
async fn a_store_that_is_away_for_a_moment_is_waited_for() {
    let Some(mut store) = store() else { return };
    let objects = store.objects("p");
    objects.put(&name("x"), &b"x"[..]).await.expect("put");
    store.pause();
    let late = name("y");
    let waiting = tokio::time::timeout(Duration::from_secs(50), objects.put(&late, &b"y"[..]));
    let (put, ()) = tokio::join!(waiting, async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(store.resume(), "it starts again");
    });
    put.expect("in time").expect("put");
    assert_eq!(names(&objects, None).await, ["x", "y"]);
}

#[test]
fn an_access_key_is_read_from_a_file_that_nobody_else_reads() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = camino_tempfile::tempdir().expect("a directory");
    let path = directory.path().join("credentials");
    let write = |text: &str, mode: u32| {
        fs_err::write(&path, text).expect("a file");
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
        Credentials::read(&path)
    };
    let text = "[other]\naws_access_key_id=no\n[default]\n# mine\naws_access_key_id = AK\naws_secret_access_key=S/+=\n";
    let read = write(text, 0o600).expect("credentials");
    assert_eq!(read.access_key_id, "AK");
    assert_eq!(read.secret_access_key.expose(), "S/+=");
    assert!(!format!("{read:?}").contains("S/+="));
    for (text, mode, expected) in [
        (text, 0o640, "others than its owner"),
        ("aws_access_key_id = AK\n", 0o600, "aws_secret_access_key"),
        ("", 0o600, "aws_access_key_id"),
    ] {
        let error = write(text, mode).expect_err("refused");
        assert!(error.to_string().contains(expected), "{error}");
    }
}
