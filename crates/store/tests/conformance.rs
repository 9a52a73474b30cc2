//! What every service relies on, on both engines.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use stolos_base::{Clock, poll, task};
use stolos_store::lease::{self, Acquired};
use stolos_store::testing::{Place, each};
use stolos_store::{Db, Error, Migration, Part, Row as _, Schema, Signal, Tx, duty, query, sequence};
use tokio_util::sync::CancellationToken;

/// How long a test waits for what must happen.
const LIMIT: Duration = Duration::from_secs(30);
/// How often it looks.
const TICK: Duration = Duration::from_millis(10);

const PARENT: Migration = Migration {
    number: 1,
    name: "parents and children",
    statements: &[
        "CREATE TABLE parents (id TEXT PRIMARY KEY, n BIGINT, body {blob})",
        "CREATE TABLE children (id TEXT PRIMARY KEY, parent TEXT NOT NULL REFERENCES parents (id))",
    ],
};
static FIRST: Schema = Schema {
    name: "family",
    parts: &[&Part {
        name: "family",
        migrations: &[PARENT],
    }],
};
static SECOND: Schema = Schema {
    name: "family",
    parts: &[&Part {
        name: "family",
        migrations: &[
            PARENT,
            Migration {
                number: 2,
                name: "nicknames",
                statements: &["ALTER TABLE parents ADD COLUMN nickname TEXT NOT NULL DEFAULT 'none'"],
            },
        ],
    }],
};
static CHANGED: Schema = Schema {
    name: "family",
    parts: &[&Part {
        name: "family",
        migrations: &[Migration {
            number: 1,
            name: "parents and children",
            statements: &["CREATE TABLE parents (id TEXT PRIMARY KEY)"],
        }],
    }],
};
static BROKEN: Schema = Schema {
    name: "family",
    parts: &[&Part {
        name: "family",
        migrations: &[
            PARENT,
            Migration {
                number: 2,
                name: "half",
                statements: &["CREATE TABLE half (id TEXT PRIMARY KEY)", "CREATE NONSENSE"],
            },
        ],
    }],
};

async fn add(tx: &mut Tx, id: &str, n: Option<i64>) -> Result<(), Error> {
    query("INSERT INTO parents (id, n, body) VALUES ($1, $2, $3)")
        .bind(id)
        .bind(n)
        .bind(&[0_u8, 255][..])
        .execute(tx.conn())
        .await?;
    Ok(())
}

async fn count(db: &Db) -> i64 {
    query("SELECT COUNT(*) AS n FROM parents")
        .fetch_one(db.read())
        .await
        .unwrap()
        .try_get("n")
        .unwrap()
}

#[tokio::test]
async fn values_come_back_as_they_were() {
    each(async |place| {
        let db = place.open(&FIRST).await;
        let mut tx = db.begin("add").await.unwrap();
        add(&mut tx, "a", Some(i64::MAX)).await.unwrap();
        add(&mut tx, "b", None).await.unwrap();
        tx.commit().await.unwrap();
        let rows = query("SELECT id, n, body FROM parents ORDER BY id")
            .fetch_all(db.read())
            .await
            .unwrap();
        assert_eq!(rows[0].try_get::<Option<i64>, _>("n").unwrap(), Some(i64::MAX));
        assert_eq!(rows[1].try_get::<Option<i64>, _>("n").unwrap(), None);
        assert_eq!(rows[1].try_get::<Vec<u8>, _>("body").unwrap(), [0, 255]);
    })
    .await;
}

/// With hundreds of flows that write their journals, a person's request once stood behind all of them.
#[tokio::test]
async fn who_asks_does_not_stand_behind_what_nobody_waits_for() {
    each(async |place| {
        let db = place.open(&FIRST).await;
        let first = db.begin_background("first").await.unwrap();
        let mut later: Vec<_> = (0..5).map(|_| Box::pin(db.begin_background("later"))).collect();
        for waiting in &mut later {
            assert!(futures::poll!(waiting).is_pending());
        }
        let mut now = Box::pin(db.begin("now"));
        assert!(futures::poll!(&mut now).is_pending());
        first.rollback().await.unwrap();
        // None of the others is polled meanwhile, so whoever stands before this one stays there.
        let mut tx = tokio::time::timeout(Duration::from_secs(10), now)
            .await
            .unwrap()
            .unwrap();
        add(&mut tx, "a", None).await.unwrap();
        tx.commit().await.unwrap();
        for waiting in later {
            waiting.await.unwrap().commit().await.unwrap();
        }
        assert_eq!(count(&db).await, 1);
    })
    .await;
}

#[tokio::test]
async fn a_dropped_transaction_leaves_nothing_and_a_reader_cannot_write() {
    each(async |place| {
        let db = place.open(&FIRST).await;
        let mut tx = db.begin("forgotten").await.unwrap();
        add(&mut tx, "a", None).await.unwrap();
        drop(tx);
        assert_eq!(count(&db).await, 0);
        let mut tx = db.begin("afterwards").await.unwrap();
        add(&mut tx, "a", None).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(count(&db).await, 1);
        query("DELETE FROM parents")
            .execute(db.read())
            .await
            .expect_err("readers do not write");
        assert_eq!(count(&db).await, 1);
    })
    .await;
}

#[tokio::test]
async fn constraints_are_told_apart() {
    each(async |place| {
        let db = place.open(&FIRST).await;
        let mut tx = db.begin("twice").await.unwrap();
        add(&mut tx, "a", None).await.unwrap();
        let error = add(&mut tx, "a", None).await.unwrap_err();
        assert!(matches!(error, Error::Unique { .. }), "{error:?}");
        drop(tx);
        let mut tx = db.begin("orphan").await.unwrap();
        let error = query("INSERT INTO children (id, parent) VALUES ('c', 'nobody')")
            .execute(tx.conn())
            .await
            .unwrap_err();
        assert!(matches!(Error::from(error), Error::ForeignKey { .. }));
    })
    .await;
}

/// Two writers that read, decide and write: neither may decide on what the other has changed meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_transactions_are_serial_across_processes() {
    each(async |place| {
        // Two `Db`s are two processes as far as the engine can tell.
        let dbs = [place.open(&FIRST).await, place.open(&FIRST).await];
        let mut tx = dbs[0].begin("counter").await.unwrap();
        add(&mut tx, "counter", Some(0)).await.unwrap();
        tx.commit().await.unwrap();
        let writers: Vec<_> = dbs
            .iter()
            .cycle()
            .take(4)
            .cloned()
            .map(|db| {
                task::spawn(task::Kind::Job, "increment", async move {
                    for _ in 0..10 {
                        db.transaction("increment", async |tx| {
                            let n: i64 = query("SELECT n FROM parents")
                                .fetch_one(tx.conn())
                                .await?
                                .try_get("n")?;
                            tokio::task::yield_now().await;
                            query("UPDATE parents SET n = $1")
                                .bind(n + 1)
                                .execute(tx.conn())
                                .await?;
                            Ok::<_, Error>(())
                        })
                        .await?;
                    }
                    Ok::<_, Error>(())
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
        let n: i64 = query("SELECT n FROM parents")
            .fetch_one(dbs[0].read())
            .await
            .unwrap()
            .try_get("n")
            .unwrap();
        assert_eq!(n, 40);
    })
    .await;
}

#[tokio::test]
async fn migrations_are_applied_once_and_a_newer_database_is_refused() {
    each(async |place| {
        let clock = Clock::system();
        let db = place.open(&FIRST).await;
        let mut tx = db.begin("add").await.unwrap();
        add(&mut tx, "a", None).await.unwrap();
        tx.commit().await.unwrap();
        db.close().await;

        let error = Db::open(place.url(), &BROKEN, clock.clone()).await.unwrap_err();
        assert!(matches!(error, Error::Migrate { number: 2, .. }), "{error:?}");
        let db = place.open(&SECOND).await;
        let row = query("SELECT nickname FROM parents")
            .fetch_one(db.read())
            .await
            .unwrap();
        assert_eq!(
            row.try_get::<String, _>("nickname").unwrap(),
            "none",
            "the old rows are there"
        );
        db.close().await;
        place.open(&SECOND).await.close().await;

        let error = Db::open(place.url(), &FIRST, clock.clone()).await.unwrap_err();
        assert!(matches!(error, Error::Newer { number: 2, .. }), "{error:?}");
        let error = Db::open(place.url(), &CHANGED, clock).await.unwrap_err();
        assert!(
            matches!(error, Error::MigrationChanged { number: 1, .. }),
            "{error:?}"
        );
    })
    .await;
}

#[tokio::test]
async fn sqlite_is_copied_before_a_migration() {
    let place = Place::sqlite();
    let db = place.open(&FIRST).await;
    let mut tx = db.begin("add").await.unwrap();
    add(&mut tx, "a", None).await.unwrap();
    tx.commit().await.unwrap();
    db.close().await;
    place.open(&SECOND).await.close().await;
    let stolos_store::DatabaseUrl::Sqlite { directory } = place.url() else {
        panic!("a SQLite place has a directory")
    };
    let copies: Vec<_> = directory
        .join("backups")
        .read_dir_utf8()
        .unwrap()
        .map(|e| e.unwrap().path().to_owned())
        .collect();
    assert_eq!(copies.len(), 1, "{copies:?}");
    // The copy is a database of the old schema with the row in it.
    let restored = camino_tempfile::tempdir().unwrap();
    std::fs::copy(&copies[0], restored.path().join("family.sqlite")).unwrap();
    let url = format!("sqlite:{}", restored.path()).parse().unwrap();
    let db = Db::open(&url, &FIRST, Clock::system()).await.unwrap();
    assert_eq!(count(&db).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_may_open_a_new_database_at_once() {
    each(async |place| {
        let opens = (0..4).map(|_| Db::open(place.url(), &SECOND, Clock::system()));
        for db in futures::future::join_all(opens).await {
            assert_eq!(count(&db.unwrap()).await, 0);
        }
    })
    .await;
}

#[tokio::test]
async fn sequences_never_repeat() {
    each(async |place| {
        let db = place.open(&FIRST).await;
        for expected in 1..=3 {
            let mut tx = db.begin("next").await.unwrap();
            assert_eq!(sequence::next(&mut tx, "tasks").await.unwrap(), expected);
            tx.commit().await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_lease_has_one_holder_and_a_growing_number() {
    const TTL: Duration = Duration::from_secs(30);
    each(async |place| {
        let clock = Clock::manual("2026-11-21T00:00:00Z".parse().unwrap());
        let db = place.open_at(&FIRST, clock.clone()).await;
        let acquire = async |holder: &str| {
            let mut tx = db.begin("acquire").await.unwrap();
            let acquired = lease::acquire(&mut tx, "flow", holder, TTL).await.unwrap();
            tx.commit().await.unwrap();
            match acquired {
                Acquired::Yes(lease) => Ok(lease.fence),
                Acquired::No { holder, .. } => Err(holder),
            }
        };
        let verify = async |fence: &lease::Fence| {
            let mut tx = db.begin("verify").await.unwrap();
            lease::verify(&mut tx, fence).await
        };
        let renew = async |fence: &lease::Fence| {
            let mut tx = db.begin("renew").await.unwrap();
            let renewed = lease::renew(&mut tx, fence, TTL).await;
            tx.commit().await.unwrap();
            renewed
        };

        let a1 = acquire("a").await.unwrap();
        assert_eq!(acquire("b").await, Err("a".to_owned()));
        clock.advance(Duration::from_secs(20));
        renew(&a1).await.unwrap();
        clock.advance(Duration::from_secs(20));
        assert_eq!(acquire("b").await, Err("a".to_owned()), "it was renewed");

        clock.advance(Duration::from_secs(11));
        verify(&a1).await.expect("run out, but taken by nobody");
        let b = acquire("b").await.unwrap();
        assert_eq!(b.number, a1.number + 1);
        assert!(matches!(verify(&a1).await, Err(Error::LeaseLost { .. })));
        assert!(matches!(renew(&a1).await, Err(Error::LeaseLost { .. })));

        let b2 = acquire("b")
            .await
            .expect("a holder takes over from its earlier life at once");
        assert!(matches!(verify(&b).await, Err(Error::LeaseLost { .. })));
        verify(&b2).await.unwrap();

        let mut tx = db.begin("release").await.unwrap();
        lease::release(&mut tx, &b).await.unwrap();
        tx.commit().await.unwrap();
        verify(&b2).await.expect("an overtaken holder releases nothing");
        let mut tx = db.begin("release").await.unwrap();
        lease::release(&mut tx, &b2).await.unwrap();
        tx.commit().await.unwrap();
        assert!(matches!(verify(&b2).await, Err(Error::LeaseLost { .. })));
        assert_eq!(
            acquire("a").await.unwrap().number,
            b2.number + 1,
            "the number survives a release"
        );
    })
    .await;
}

#[tokio::test]
async fn many_leases_are_renewed_at_once_and_lost_ones_are_named() {
    each(async |place| {
        let clock = Clock::manual("2026-11-21T00:00:00Z".parse().unwrap());
        let db = place.open_at(&FIRST, clock.clone()).await;
        let ttl = Duration::from_secs(6);
        let mut fences = Vec::new();
        for name in ["a", "b", "c"] {
            let mut tx = db.begin("take").await.unwrap();
            let Acquired::Yes(lease) = lease::acquire(&mut tx, name, "one", ttl).await.unwrap() else {
                panic!("nobody has it");
            };
            tx.commit().await.unwrap();
            fences.push(lease.fence);
        }
        clock.advance(Duration::from_secs(7));
        let mut tx = db.begin("overtake").await.unwrap();
        assert!(
            !lease::is_held_by_other(&db, "b", "two").await.unwrap(),
            "it has run out"
        );
        assert!(matches!(
            lease::acquire(&mut tx, "b", "two", ttl).await.unwrap(),
            Acquired::Yes(_)
        ));
        tx.commit().await.unwrap();
        assert!(lease::is_held_by_other(&db, "b", "one").await.unwrap());
        let mut tx = db.begin("renew").await.unwrap();
        let lost = lease::renew_all(&mut tx, &fences, ttl).await.unwrap();
        assert_eq!(lost, [fences[1].clone()]);
        assert_eq!(lease::lost_of(&mut tx, &fences).await.unwrap(), lost);
        assert!(lease::renew_all(&mut tx, &[], ttl).await.unwrap().is_empty());
        tx.commit().await.unwrap();
        assert!(lease::is_held_by_other(&db, "a", "two").await.unwrap(), "renewed");
        assert_eq!(lease::holder(&db, "b").await.unwrap().unwrap().holder, "two");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duty_is_one_process_s_at_a_time_and_goes_on_after_its_death() {
    each(async |place| {
        let clock = Clock::manual("2026-11-21T00:00:00Z".parse().unwrap());
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), CancellationToken::new());
        let begin = |db: Db, holder: &'static str| {
            let (seen, stop) = (seen.clone(), stop.clone());
            task::spawn(task::Kind::Service, holder, async move {
                duty::hold(db, "meter", holder.to_owned(), stop, |fence| {
                    seen.lock().unwrap().push((holder, fence.number));
                    std::future::pending::<()>()
                })
                .await;
                Ok::<(), std::convert::Infallible>(())
            })
        };
        let open = async || place.open_at(&FIRST, clock.clone()).await;
        let until = async |n: usize| {
            poll::until("somebody at work", TICK, LIMIT, async || {
                let seen = seen.lock().unwrap().clone();
                if seen.len() >= n {
                    Ok(seen)
                } else {
                    Err(format!("{seen:?}"))
                }
            })
            .await
            .unwrap()
        };
        let first = begin(open().await, "one");
        assert_eq!(until(1).await, [("one", 1)]);
        let second = begin(open().await, "two");
        // As if killed: nothing is given back.
        first.abort();
        assert!(first.await.is_err());
        clock.advance(duty::LEASE + Duration::from_secs(1));
        assert_eq!(until(2).await, [("one", 1), ("two", 2)]);
        // The first one again, under its own name, finds it taken; an orderly end gives it back at once.
        let third = begin(open().await, "one");
        stop.cancel();
        second.await.unwrap();
        third.await.unwrap();
        let db = place.open_at(&FIRST, clock.clone()).await;
        assert_eq!(lease::holder(&db, "meter").await.unwrap(), None);
        assert_eq!(seen.lock().unwrap().len(), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_processes_hear_of_what_was_committed() {
    let place = match Place::postgres().await {
        Ok(place) => place,
        Err(reason) => return skipped(&reason),
    };
    let (one, two) = (place.open(&FIRST).await, place.open(&FIRST).await);
    let (mut own, mut others) = (one.signals(), two.signals());
    // Both hear that they hear now.
    assert_eq!(own.next().await, Signal::Missed);
    assert_eq!(others.next().await, Signal::Missed);
    let mut tx = one.begin("undone").await.unwrap();
    tx.signal("never").await.unwrap();
    tx.rollback().await.unwrap();
    let mut tx = one.begin("said").await.unwrap();
    tx.signal("flow 17").await.unwrap();
    tx.signal("flow 17").await.unwrap();
    tx.signal("flow 18").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(others.next().await, Signal::Word("flow 17".into()));
    assert_eq!(others.next().await, Signal::Word("flow 18".into()));
    let mut tx = two.begin("answer").await.unwrap();
    tx.signal("heard").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(
        own.next().await,
        Signal::Word("heard".into()),
        "not its own words"
    );
}

/// A process that is frozen in the middle of a transaction holds the writer of all processes.
#[tokio::test]
async fn a_frozen_transaction_does_not_hold_up_others_for_ever() {
    let place = match Place::postgres().await {
        Ok(place) => place,
        Err(reason) => return skipped(&reason),
    };
    let (frozen, other) = (place.open(&FIRST).await, place.open(&FIRST).await);
    let mut tx = frozen.begin("frozen").await.unwrap();
    add(&mut tx, "half", None).await.unwrap();
    let mut next = other.begin("next").await.expect("the server ends the frozen one");
    add(&mut next, "whole", None).await.unwrap();
    next.commit().await.unwrap();
    assert!(tx.commit().await.is_err(), "it was undone");
    assert_eq!(count(&other).await, 1);
    // The process goes on with a new connection.
    let mut tx = frozen.begin("again").await.unwrap();
    add(&mut tx, "again", None).await.unwrap();
    tx.commit().await.unwrap();
}

#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn skipped(reason: &str) {
    eprintln!("skipped on PostgreSQL: {reason}");
}

/// As SQLite does when its disk is full, and PostgreSQL when somebody ends the session's transaction: it is over before anybody here knows.
#[tokio::test]
async fn a_transaction_that_the_database_ended_spoils_nothing() {
    each(async |place| {
        let db = place.open(&FIRST).await;
        for round in 0..3 {
            let mut tx = db.begin("ended from below").await.unwrap();
            add(&mut tx, "lost", None).await.unwrap();
            query("ROLLBACK").execute(tx.conn()).await.unwrap();
            // What becomes of the library's own rollback or commit is nobody's concern; that others go on is.
            if round == 0 {
                drop(tx);
            } else if round == 1 {
                let _ = tx.rollback().await;
            } else {
                let _ = tx.commit().await;
            }
            let mut tx = db.begin("afterwards").await.unwrap();
            add(&mut tx, &format!("kept {round}"), None).await.unwrap();
            tx.commit().await.unwrap();
        }
        assert_eq!(count(&db).await, 3);
    })
    .await;
}
