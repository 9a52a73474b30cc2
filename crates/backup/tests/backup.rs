//! Backups of a small installation in every kind of place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use camino::{Utf8Path, Utf8PathBuf};
use camino_tempfile::Utf8TempDir;
use stolos_backup::{
    BackupKey, Blobs, Entry, Error, Manifest, Restore, Source, list, restore, retain, take, verify,
};
use stolos_base::Clock;
use stolos_blobs::objects::testing::Store;
use stolos_blobs::objects::{ObjectName, Objects};
use stolos_store::testing::Place;
use stolos_store::{DatabaseUrl, Db, Migration, Part, Row as _, Schema, query, restored};

static SHOP: Schema = Schema {
    name: "shop",
    parts: &[&Part {
        name: "shop",
        migrations: &[Migration {
            number: 1,
            name: "orders",
            statements: &["CREATE TABLE orders (id BIGINT PRIMARY KEY, body TEXT NOT NULL)"],
        }],
    }],
};
static STOCK: Schema = Schema {
    name: "stock",
    parts: &[&Part {
        name: "stock",
        migrations: &[Migration {
            number: 1,
            name: "parts",
            statements: &["CREATE TABLE parts (id BIGINT PRIMARY KEY, body {blob} NOT NULL)"],
        }],
    }],
};
const SCHEMAS: &[&Schema] = &[&SHOP, &STOCK];
const FILES: &[Entry] = &[
    Entry::File("config.yml"),
    Entry::File("root.key"),
    Entry::File("not-there"),
    Entry::Tree("calls"),
];

struct World {
    _directory: Utf8TempDir,
    root: Utf8PathBuf,
    key: BackupKey,
    database: DatabaseUrl,
    clock: Clock,
}

impl World {
    async fn new() -> Self {
        let directory = camino_tempfile::tempdir().expect("a directory");
        let root = directory.path().join("root");
        fs_err::create_dir_all(root.join("calls/a")).expect("a directory");
        stolos_base::files::write_atomic(&root.join("config.yml"), b"database: sqlite\n", 0o640)
            .expect("a file");
        stolos_base::files::write_atomic(&root.join("root.key"), b"the root key", 0o600).expect("a file");
        fs_err::write(root.join("calls/a/reply.json"), "{}").expect("a file");
        let database = DatabaseUrl::Sqlite {
            directory: root.join("db"),
        };
        let world = Self {
            _directory: directory,
            key: BackupKey::new([3; 32]),
            database,
            root,
            clock: Clock::manual("2026-11-21T10:00:00Z".parse().expect("a time")),
        };
        world.order(0..2000).await;
        let stock = world.open(&STOCK).await;
        let mut tx = stock.begin("fill").await.expect("a transaction");
        query("INSERT INTO parts (id, body) VALUES (1, $1)")
            .bind(vec![0_u8, 255, 7])
            .execute(tx.conn())
            .await
            .expect("a row");
        tx.commit().await.expect("committed");
        world.blob(b"the first blob").await;
        world
    }

    async fn open(&self, schema: &'static Schema) -> Db {
        Db::open(&self.database, schema, self.clock.clone())
            .await
            .expect("a database")
    }

    async fn order(&self, ids: std::ops::Range<i64>) {
        let db = self.open(&SHOP).await;
        let mut tx = db.begin("order").await.expect("a transaction");
        for id in ids {
            query("INSERT INTO orders (id, body) VALUES ($1, $2)")
                .bind(id)
                .bind(format!("order {id} SECRET-WORD {}", "x".repeat(300)))
                .execute(tx.conn())
                .await
                .expect("a row");
        }
        tx.commit().await.expect("committed");
        db.close().await;
    }

    async fn blob(&self, bytes: &[u8]) -> String {
        let blobs = stolos_blobs::Blobs::open(self.root.join("blobs"), stolos_blobs::Options { reserve: 0 });
        let stored = blobs.expect("a store").put_bytes(bytes).await.expect("a blob");
        stored.id.to_string()
    }

    fn unblob(&self, id: &str) {
        let blobs = stolos_blobs::Blobs::look(self.root.join("blobs"));
        blobs.delete(&id.parse().expect("an id")).expect("removed");
    }

    fn source(&self) -> Source<'_> {
        Source {
            installation: "ours".to_owned(),
            version: "1",
            root: &self.root,
            database: self.database.clone(),
            schemas: SCHEMAS,
            files: FILES,
            blobs: Blobs::In(self.root.join("blobs")),
            clock: self.clock.clone(),
        }
    }

    async fn take(&self, objects: &Objects) -> Manifest {
        self.clock.advance(std::time::Duration::from_secs(1));
        take(&self.source(), objects, &self.key, &|_| {})
            .await
            .expect("a backup")
    }

    /// Restores into `root`; what the shop holds then.
    async fn restore(
        &self,
        objects: &Objects,
        root: &Utf8Path,
        database: &DatabaseUrl,
    ) -> Result<i64, Error> {
        let chosen = |text: &str| {
            assert_eq!(text, "database: sqlite\n", "as it was");
            Ok((database.clone(), "database: elsewhere\n".to_owned()))
        };
        let wish = Restore {
            root,
            database: &chosen,
            schemas: SCHEMAS,
            configuration: "config.yml",
            must_not_exist: &["config.yml", "root.key", "db", "blobs", "calls"],
            blobs: root.join("blobs"),
            backup: None,
            clock: self.clock.clone(),
        };
        restore(&wish, objects, &self.key, &|_| {}).await?;
        let shop = Db::open(database, &SHOP, self.clock.clone())
            .await
            .expect("a database");
        assert!(restored::last(&shop).await.expect("a mark").is_some());
        let row = query("SELECT COUNT(*) AS n FROM orders")
            .fetch_one(shop.read())
            .await
            .expect("a count");
        let n = row.try_get("n").expect("a number");
        shop.close().await;
        Ok(n)
    }
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
async fn each(test: impl AsyncFn(&World, &Objects)) {
    let world = World::new().await;
    let place = world.root.parent().expect("a parent").join("place");
    test(&world, &Objects::directory(place)).await;
    match Store::start() {
        Ok(store) => test(&World::new().await, &store.objects("a/b")).await,
        Err(reason) => eprintln!("skipped on S3: {reason}"),
    }
}

async fn names(objects: &Objects) -> Vec<String> {
    let all = objects.list(None).await.expect("a list");
    all.into_iter().map(|one| one.name.to_string()).collect()
}

#[tokio::test]
async fn what_was_taken_is_verified_and_restored_on_either_engine() {
    each(async |world, objects| {
        let manifest = world.take(objects).await;
        assert_eq!(manifest.databases.len(), 2);
        let paths: Vec<&str> = manifest
            .files
            .entries
            .iter()
            .map(|one| one.path.as_str())
            .collect();
        assert_eq!(paths, ["config.yml", "root.key", "calls/a/reply.json"]);
        let verified = verify(objects, &world.key, None, true, &|_| {})
            .await
            .expect("whole");
        assert_eq!(
            (verified.rows, verified.files, verified.blobs),
            (
                manifest.databases.iter().map(|d| d.contents.rows()).sum(),
                3,
                Some(1)
            )
        );
        for name in names(objects).await {
            let bytes = objects
                .get(&name.parse().expect("a name"), 1 << 30)
                .await
                .expect("bytes");
            for secret in ["SECRET-WORD", "the root key", "the first blob"] {
                let found = bytes
                    .windows(secret.len())
                    .any(|window| window == secret.as_bytes());
                assert!(!found, "`{secret}` is in `{name}`");
            }
        }

        let directory = camino_tempfile::tempdir().expect("a directory");
        let root = directory.path().join("new");
        let sqlite = DatabaseUrl::Sqlite {
            directory: root.join("db"),
        };
        assert_eq!(
            world.restore(objects, &root, &sqlite).await.expect("restored"),
            2000
        );
        assert_eq!(
            fs_err::read_to_string(root.join("config.yml")).expect("a file"),
            "database: elsewhere\n"
        );
        assert_eq!(
            fs_err::read_to_string(root.join("root.key")).expect("a file"),
            "the root key"
        );
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs_err::metadata(root.join("root.key"))
                .expect("a file")
                .permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        let blobs = stolos_blobs::Blobs::look(root.join("blobs"));
        assert_eq!(blobs.list_plain().expect("blobs").len(), 1);
        assert!(!root.join("restoring.json").exists());
        let error = world
            .restore(objects, &root, &sqlite)
            .await
            .expect_err("it is not empty");
        assert!(matches!(error, Error::NotEmpty { .. }), "{error}");

        if let Ok(place) = Place::postgres().await {
            let root = directory.path().join("another");
            assert_eq!(
                world
                    .restore(objects, &root, place.url())
                    .await
                    .expect("restored"),
                2000
            );
            assert!(!root.join("db").exists());
            let third = directory.path().join("third");
            let error = world
                .restore(objects, &third, place.url())
                .await
                .expect_err("somebody's database");
            assert!(error.to_string().contains("is there already"), "{error}");
            assert!(!third.exists(), "nothing was begun");
        }
    })
    .await;
}

#[tokio::test]
async fn blobs_are_written_once_and_kept_as_long_as_a_backup_names_them() {
    each(async |world, objects| {
        let blobs = async || {
            names(objects)
                .await
                .iter()
                .filter(|name| name.starts_with("blobs/"))
                .count()
        };
        world.take(objects).await;
        let first = world.blob(b"the first blob").await;
        let written = objects.list(None).await.expect("a list");
        let before = written
            .iter()
            .find(|one| one.name.as_str().starts_with("blobs/"))
            .expect("a blob")
            .clone();
        world.blob(b"the second blob").await;
        world.take(objects).await;
        let again = objects.list(None).await.expect("a list");
        assert!(again.contains(&before), "not written again");
        assert_eq!(blobs().await, 2);
        world.unblob(&first);
        world.take(objects).await;
        assert_eq!(blobs().await, 2, "the older ones still name it");
        let removed = retain(objects, &world.key, 1, &|_| {}).await.expect("retained");
        assert_eq!((removed.backups.len(), removed.blobs), (2, 1));
        assert_eq!(blobs().await, 1);
        verify(objects, &world.key, None, true, &|_| {})
            .await
            .expect("whole");

        // Without blobs, none is named; those of others stay.
        let source = Source {
            blobs: Blobs::Without,
            ..world.source()
        };
        world.clock.advance(std::time::Duration::from_secs(1));
        let without = take(&source, objects, &world.key, &|_| {})
            .await
            .expect("a backup");
        assert!(without.blobs.is_none());
        retain(objects, &world.key, 2, &|_| {}).await.expect("retained");
        assert_eq!(blobs().await, 1);
    })
    .await;
}

#[tokio::test]
async fn retention_never_takes_the_last_whole_one_nor_what_it_cannot_read() {
    each(async |world, objects| {
        let first = world.take(objects).await;
        let second = world.take(objects).await;
        let third = world.take(objects).await;
        // The newest one has lost an object, the one before is whole.
        let lost: ObjectName = format!("backups/{}/db.shop", third.id).parse().expect("a name");
        objects.delete(&lost).await.expect("removed");
        let listed = list(objects, Some(&world.key)).await.expect("a list");
        assert_eq!(
            listed.iter().map(|one| one.problem.is_some()).collect::<Vec<_>>(),
            [false, false, true]
        );
        let removed = retain(objects, &world.key, 0, &|_| {}).await.expect("retained");
        assert_eq!(removed.backups, std::slice::from_ref(&first.id));
        let error = verify(objects, &world.key, None, true, &|_| {})
            .await
            .expect_err("the newest is not whole");
        assert!(error.to_string().contains("db.shop"), "{error}");
        let directory = camino_tempfile::tempdir().expect("a directory");
        let root = directory.path().join("new");
        let sqlite = DatabaseUrl::Sqlite {
            directory: root.join("db"),
        };
        world
            .restore(objects, &root, &sqlite)
            .await
            .expect("the whole one is taken");

        // Backups under another key are nobody's to remove, nor are their blobs.
        let other = BackupKey::new([4; 32]);
        world.clock.advance(std::time::Duration::from_secs(1));
        take(&world.source(), objects, &other, &|_| {})
            .await
            .expect("a backup");
        let removed = retain(objects, &other, 1, &|_| {}).await.expect("retained");
        assert!(removed.backups.is_empty(), "{removed:?}");
        verify(objects, &world.key, Some(&second.id), true, &|_| {})
            .await
            .expect("whole as before");
        let listed = list(objects, None)
            .await
            .expect("heads are readable without a key");
        assert_eq!(listed.len(), 3);
        assert_eq!(listed[2].key.as_deref(), Some(other.id().as_str()));

        // A damaged manifest: nothing of it is known, so no blob goes.
        objects
            .put(
                &format!("backups/{}/manifest", second.id).parse().expect("a name"),
                &b"stolos-backup-1\n"[..],
            )
            .await
            .expect("put");
        let blobs = async || {
            names(objects)
                .await
                .iter()
                .filter(|name| name.starts_with("blobs/"))
                .count()
        };
        let before = blobs().await;
        world.take(objects).await;
        retain(objects, &world.key, 1, &|_| {}).await.expect("retained");
        assert_eq!(blobs().await, before);
    })
    .await;
}

#[tokio::test]
async fn exchanged_and_damaged_objects_are_found() {
    each(async |world, objects| {
        let first = world.take(objects).await;
        world.order(2000..2001).await;
        let second = world.take(objects).await;
        let name = |id: &stolos_backup::BackupId, what: &str| -> ObjectName {
            format!("backups/{id}/{what}").parse().expect("a name")
        };
        let get = async |name: &ObjectName| objects.get(name, 1 << 30).await.expect("bytes");
        let check = async |id, expected: &str| {
            let error = verify(objects, &world.key, Some(id), true, &|_| {})
                .await
                .expect_err("it is damaged");
            let text = stolos_base::chain(&error);
            assert!(text.contains(expected), "{text}");
        };
        // A dump of yesterday in the place of today's.
        for what in ["db.shop", "files", "manifest"] {
            let (old, new) = (name(&first.id, what), name(&second.id, what));
            let good = get(&new).await;
            objects.put(&new, get(&old).await).await.expect("put");
            check(&second.id, what).await;
            objects.put(&new, good.clone()).await.expect("put");
            let mut flipped = good.clone();
            let middle = flipped.len() / 2;
            flipped[middle] ^= 4;
            objects.put(&new, flipped).await.expect("put");
            check(&second.id, "does not open").await;
            objects
                .put(&new, good[..good.len() - 1].to_vec())
                .await
                .expect("put");
            check(&second.id, what).await;
            objects.put(&new, good).await.expect("put");
        }
        // One dump in the place of another of the same backup.
        let good = get(&name(&second.id, "db.stock")).await;
        objects
            .put(
                &name(&second.id, "db.stock"),
                get(&name(&second.id, "db.shop")).await,
            )
            .await
            .expect("put");
        check(&second.id, "db.stock").await;
        objects
            .put(&name(&second.id, "db.stock"), good)
            .await
            .expect("put");
        let blob = names(objects)
            .await
            .into_iter()
            .find(|name| name.starts_with("blobs/"))
            .expect("a blob");
        objects
            .delete(&blob.parse().expect("a name"))
            .await
            .expect("removed");
        check(&second.id, "there is no object `blobs/").await;

        // A damaged blob of the installation itself is never taken for good.
        let id = world.blob(b"the first blob").await;
        let path = stolos_blobs::Blobs::look(world.root.join("blobs"))
            .path(&id.parse().expect("an id"))
            .expect("a path");
        fs_err::write(path, "another content").expect("written");
        let error = take(&world.source(), objects, &world.key, &|_| {})
            .await
            .expect_err("a damaged blob");
        assert!(matches!(error, Error::Blob(_)), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_place_belongs_to_one_installation() {
    each(async |world, objects| {
        world.take(objects).await;
        let theirs = Source {
            installation: "theirs".to_owned(),
            ..world.source()
        };
        let error = take(&theirs, objects, &world.key, &|_| {})
            .await
            .expect_err("it is ours");
        assert!(
            matches!(&error, Error::OtherInstallation { theirs, .. } if theirs == "ours"),
            "{error}"
        );
    })
    .await;
}

/// Whoever is killed leaves a future that was dropped, and files: nothing else ends differently.
#[tokio::test]
async fn killed_at_any_moment_there_is_the_old_or_the_new() {
    each(async |world, objects| {
        let first = world.take(objects).await;
        world.blob(b"one more blob").await;
        let stop = Arc::new(AtomicBool::new(false));
        let mut taken = 0;
        // Every await is a moment; a counted number of polls is where it "dies".
        for polls in (1..).step_by(3) {
            world.clock.advance(std::time::Duration::from_secs(1));
            let finished = {
                let source = world.source();
                let mut work = Box::pin(take(&source, objects, &world.key, &|_| {}));
                let mut left = polls;
                std::future::poll_fn(|cx| {
                    if left == 0 {
                        return std::task::Poll::Ready(None);
                    }
                    left -= 1;
                    work.as_mut().poll(cx).map(Some)
                })
                .await
            };
            match finished {
                None => {
                    verify(objects, &world.key, None, true, &|_| {})
                        .await
                        .expect("the newest is whole");
                }
                Some(manifest) => {
                    taken += 1;
                    let manifest = manifest.expect("a backup");
                    let removed = retain(objects, &world.key, 1, &|_| {}).await.expect("retained");
                    assert!(removed.backups.contains(&first.id), "{removed:?}");
                    assert!(!removed.leftovers.is_empty(), "killed ones left something");
                    verify(objects, &world.key, Some(&manifest.id), true, &|_| {})
                        .await
                        .expect("whole");
                    let left = names(objects).await;
                    let foreign = left
                        .iter()
                        .filter(|name| name.starts_with("backups/") && !name.contains(manifest.id.as_str()));
                    assert_eq!(foreign.count(), 0, "{left:?}");
                    stop.store(true, Ordering::Relaxed);
                }
            }
            if stop.load(Ordering::Relaxed) {
                break;
            }
        }
        assert_eq!(taken, 1);
    })
    .await;
}

#[tokio::test]
async fn a_restore_that_was_killed_is_no_installation_and_begins_anew() {
    let world = World::new().await;
    let objects = Objects::directory(world.root.parent().expect("a parent").join("place"));
    world.take(&objects).await;
    let mut urls = vec![None];
    if let Ok(place) = Place::postgres().await {
        urls.push(Some(place));
    }
    for place in urls {
        let directory = camino_tempfile::tempdir().expect("a directory");
        let root = directory.path().join("new");
        let url = match &place {
            Some(place) => place.url().clone(),
            None => DatabaseUrl::Sqlite {
                directory: root.join("db"),
            },
        };
        let mut died = 0;
        for polls in (1..).step_by(7) {
            let mut work = Box::pin(world.restore(&objects, &root, &url));
            let mut left = polls;
            let end = std::future::poll_fn(|cx| {
                if left == 0 {
                    return std::task::Poll::Ready(None);
                }
                left -= 1;
                work.as_mut().poll(cx).map(Some)
            })
            .await;
            drop(work);
            match end {
                Some(rows) => {
                    assert_eq!(rows.expect("restored"), 2000);
                    break;
                }
                // The last steps are after the configuration is there: then it is whole.
                None if root.join("config.yml").exists() => break,
                None => died += 1,
            }
        }
        assert!(died > 5, "it was killed at several moments: {died}");
        assert!(root.join("config.yml").exists());
    }
}

#[tokio::test]
async fn a_full_place_is_named_and_holds_nothing_half_valid() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make a small file system");
        return;
    }
    let world = World::new().await;
    let directory = camino_tempfile::tempdir().expect("a directory");
    let at = directory.path().to_owned();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", at.as_str(), "tmpfs", flags, Some(c"size=1m"))
        .expect("a small file system");
    let objects = Objects::directory(at.join("place"));
    let first = world.take(&objects).await;
    // What does not shrink: more than the place has.
    let large: Vec<u8> = (0..3_000_000_u32)
        .flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    world.blob(&large).await;
    world.clock.advance(std::time::Duration::from_secs(1));
    let error = take(&world.source(), &objects, &world.key, &|_| {}).await;
    let whole = verify(&objects, &world.key, None, true, &|_| {}).await;
    let listed = list(&objects, Some(&world.key)).await;
    rustix::mount::unmount(at.as_str(), rustix::mount::UnmountFlags::DETACH).expect("unmounted");
    let text = stolos_base::chain(&error.expect_err("it does not fit"));
    assert!(text.contains("no space is left"), "{text}");
    assert_eq!(whole.expect("the older one is whole").id, first.id);
    assert_eq!(listed.expect("a list").len(), 1);
}
