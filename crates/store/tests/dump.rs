//! Dumps survive the way from either engine to the other.
#![expect(clippy::unwrap_used, reason = "tests panic")]

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use stolos_base::Clock;
use stolos_store::dump::{self, Contents, Life, Occupied};
use stolos_store::restored::{self, Restored};
use stolos_store::testing::{Place, each};
use stolos_store::{Db, Error, Migration, Part, Row as _, Schema, lease, query};

const SHELVES: Migration = Migration {
    number: 1,
    name: "shelves and books",
    statements: &[
        // Named so that the alphabet is not the order in which rows can be inserted.
        "CREATE TABLE shelves (id TEXT PRIMARY KEY, note TEXT, number BIGINT, body {blob})",
        "CREATE TABLE books (
            shelf TEXT NOT NULL REFERENCES shelves (id) ON DELETE CASCADE,
            place BIGINT NOT NULL,
            title TEXT,
            PRIMARY KEY (shelf, place)
        )",
        "CREATE INDEX books_title ON books (title)",
        "CREATE TABLE remarks (text TEXT, at BIGINT)",
        // A migration that fills a table.
        "INSERT INTO remarks (text, at) VALUES ('made by a migration', 1)",
    ],
};
static OLD: Schema = Schema {
    name: "library",
    parts: &[&Part {
        name: "library",
        migrations: &[SHELVES],
    }],
};
static NEW: Schema = Schema {
    name: "library",
    parts: &[&Part {
        name: "library",
        migrations: &[
            SHELVES,
            Migration {
                number: 2,
                name: "colors",
                statements: &["ALTER TABLE shelves ADD COLUMN color TEXT NOT NULL DEFAULT 'brown'"],
            },
        ],
    }],
};

#[derive(Clone, Debug)]
struct Shelf {
    id: String,
    note: Option<String>,
    number: Option<i64>,
    body: Option<Vec<u8>>,
    books: Vec<Option<String>>,
}

/// Any text that both engines hold: all of Unicode but NUL.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        proptest::collection::vec(any::<char>().prop_filter("no NUL", |c| *c != '\0'), 0..40)
            .prop_map(|chars| chars.into_iter().collect()),
        Just("\"\\\n\r\t{}[],:null ünïcödé 🦀 \u{7f}\u{1}\u{fffd}".to_owned()),
        Just("null".to_owned()),
        Just(String::new()),
    ]
}

fn shelf() -> impl Strategy<Value = Shelf> {
    let number = prop_oneof![any::<i64>(), Just(i64::MIN), Just(i64::MAX), Just(0)];
    (
        text(),
        proptest::option::of(text()),
        proptest::option::of(number),
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
        proptest::collection::vec(proptest::option::of(text()), 0..5),
    )
        .prop_map(|(id, note, number, body, books)| Shelf {
            id,
            note,
            number,
            body,
            books,
        })
}

async fn fill(db: &Db, shelves: &[Shelf]) {
    let mut tx = db.begin("fill").await.unwrap();
    for shelf in shelves {
        query("INSERT INTO shelves (id, note, number, body) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING")
            .bind(&shelf.id)
            .bind(&shelf.note)
            .bind(shelf.number)
            .bind(&shelf.body)
            .execute(tx.conn())
            .await
            .unwrap();
        for (place, title) in (0_i64..).zip(&shelf.books) {
            query("INSERT INTO books (shelf, place, title) VALUES ($1, $2, $3) ON CONFLICT (shelf, place) DO NOTHING")
                .bind(&shelf.id)
                .bind(place)
                .bind(title)
                .execute(tx.conn())
                .await
                .unwrap();
            // The same line more than once, in a table without a key.
            query("INSERT INTO remarks (text, at) VALUES ($1, $2)")
                .bind(title)
                .bind(shelf.number)
                .execute(tx.conn())
                .await
                .unwrap();
        }
    }
    tx.commit().await.unwrap();
}

async fn dumped(db: &Db) -> (Vec<u8>, Contents) {
    let mut bytes = Vec::new();
    let contents = dump::dump(db, &mut bytes).await.unwrap();
    (bytes, contents)
}

async fn restored_into(place: &Place, bytes: &[u8]) -> Result<Contents, Error> {
    dump::restore(
        place.url(),
        &OLD,
        Clock::system(),
        &Life::Same,
        |_| Ok(()),
        &mut &*bytes,
    )
    .await
}

async fn postgres() -> Option<Place> {
    match Place::postgres().await {
        Ok(place) => Some(place),
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        Err(reason) => {
            eprintln!("skipped on PostgreSQL: {reason}");
            None
        }
    }
}

#[tokio::test]
async fn random_rows_survive_the_way_there_and_back() {
    if postgres().await.is_none() {
        return;
    }
    let mut runner = TestRunner::deterministic();
    let strategy = proptest::collection::vec(shelf(), 0..60);
    for _ in 0..12 {
        let shelves = strategy.new_tree(&mut runner).unwrap().current();
        let first = Place::sqlite();
        let db = first.open(&OLD).await;
        fill(&db, &shelves).await;
        let (bytes, contents) = dumped(&db).await;
        assert_eq!(dump::check(&mut &*bytes).await.unwrap(), contents);

        let there = Place::postgres().await.unwrap();
        assert_eq!(restored_into(&there, &bytes).await.unwrap(), contents);
        let (middle, _) = dumped(&there.open(&OLD).await).await;
        assert!(middle == bytes, "PostgreSQL dumps what SQLite dumped");

        let back = Place::sqlite();
        restored_into(&back, &middle).await.unwrap();
        let (last, _) = dumped(&back.open(&OLD).await).await;
        assert!(last == bytes, "and SQLite again");
    }
}

fn shelves(n: usize) -> Vec<Shelf> {
    (0..n)
        .map(|i| Shelf {
            id: format!("shelf {i}"),
            note: Some("x".repeat(i % 1000)),
            number: Some(i as i64),
            body: Some(vec![7; i % 500]),
            books: vec![Some("a book".to_owned()); i % 4],
        })
        .collect()
}

#[tokio::test]
async fn a_dump_is_one_instant_while_the_service_writes() {
    each(async |place| {
        let db = place.open(&OLD).await;
        fill(&db, &shelves(3000)).await;
        let writer = {
            let db = db.clone();
            async move {
                for i in 0..200_i64 {
                    // Shelf and book go together: a dump with one of them only is of no instant.
                    let mut tx = db.begin("write beside a dump").await.unwrap();
                    let id = format!("beside {i}");
                    query("INSERT INTO shelves (id) VALUES ($1)")
                        .bind(&id)
                        .execute(tx.conn())
                        .await
                        .unwrap();
                    query("INSERT INTO books (shelf, place) VALUES ($1, 0)")
                        .bind(&id)
                        .execute(tx.conn())
                        .await
                        .unwrap();
                    tx.commit().await.unwrap();
                }
            }
        };
        let reader = async {
            let mut seen = Vec::new();
            for _ in 0..5 {
                let (bytes, _) = dumped(&db).await;
                let text = String::from_utf8(bytes).unwrap();
                let shelves = text
                    .lines()
                    .filter(|line| line.starts_with("[\"beside ") && line.contains("null,null"))
                    .count();
                let books = text
                    .lines()
                    .filter(|line| line.starts_with("[\"beside ") && line.contains(",0,null"))
                    .count();
                assert_eq!(shelves, books);
                seen.push(shelves);
            }
            seen
        };
        let (seen, ()) = tokio::join!(reader, writer);
        assert!(seen.windows(2).all(|pair| pair[0] <= pair[1]), "{seen:?}");
        assert!(seen.last() > Some(&0), "the writer was not held up: {seen:?}");
    })
    .await;
}

#[tokio::test]
async fn an_older_dump_is_migrated_and_a_newer_one_refused() {
    each(async |place| {
        let source = Place::sqlite();
        fill(&source.open(&OLD).await, &shelves(10)).await;
        let (bytes, _) = dumped(&source.open(&OLD).await).await;
        let contents = dump::restore(
            place.url(),
            &NEW,
            Clock::system(),
            &Life::Same,
            |_| Ok(()),
            &mut &*bytes,
        )
        .await
        .unwrap();
        assert_eq!(
            contents
                .tables
                .iter()
                .find(|table| table.name == "shelves")
                .unwrap()
                .rows,
            10
        );
        let db = place.open(&NEW).await;
        let row = query("SELECT COUNT(*) AS n FROM shelves WHERE color = 'brown'")
            .fetch_one(db.read())
            .await
            .unwrap();
        assert_eq!(row.try_get::<i64, _>("n").unwrap(), 10);
        let remarks = query("SELECT COUNT(*) AS n FROM remarks WHERE text = 'made by a migration'")
            .fetch_one(db.read())
            .await
            .unwrap();
        assert_eq!(
            remarks.try_get::<i64, _>("n").unwrap(),
            1,
            "what a migration put there is not there twice"
        );

        let (newer, _) = dumped(&db).await;
        let empty = Place::sqlite();
        let error = restored_into(&empty, &newer).await.unwrap_err();
        assert!(matches!(error, Error::Newer { number: 2, .. }), "{error}");
        let free = dump::occupied(empty.url(), &OLD, Clock::system(), None)
            .await
            .unwrap();
        assert!(matches!(free, Occupied::No), "nothing was made");
    })
    .await;
}

#[tokio::test]
async fn what_is_not_empty_not_whole_or_not_a_dump_is_refused_and_leaves_nothing() {
    each(async |place| {
        let source = Place::sqlite();
        let db = source.open(&OLD).await;
        fill(&db, &shelves(200)).await;
        let (bytes, contents) = dumped(&db).await;

        let refused = async |bytes: &[u8], expected: &str| {
            let error = restored_into(place, bytes).await.unwrap_err();
            assert!(error.to_string().contains(expected), "{error} ({expected})");
            let same = dump::check(&mut &*bytes).await.unwrap_err();
            assert!(same.to_string().contains(expected), "{same} ({expected})");
            let free = dump::occupied(place.url(), &OLD, Clock::system(), None)
                .await
                .unwrap();
            assert!(matches!(free, Occupied::No), "{expected}");
        };
        refused(b"", "cut off").await;
        refused(b"{\"hello\": 1}\n", "no head of a dump").await;
        refused(&bytes[..bytes.len() / 2], "cut off").await;
        let line_end = bytes[..bytes.len() - 10]
            .iter()
            .rposition(|b| *b == b'\n')
            .unwrap()
            + 1;
        refused(&bytes[..line_end], "cut off").await;
        let text = String::from_utf8(bytes.clone()).unwrap();
        refused(
            text.replace("\"shelf 7\"", "\"shelf 8\"").as_bytes(),
            "other rows",
        )
        .await;
        refused(
            text.replacen("[\"shelf 7\",0,\"a book\"]\n", "", 1).as_bytes(),
            "other rows",
        )
        .await;
        refused(
            text.replacen("[\"shelf 7\",0,", "[\"shelf 7\",\"0\",", 1)
                .as_bytes(),
            "does not fit",
        )
        .await;
        refused(format!("{text}more\n").as_bytes(), "comes after the end").await;

        restored_into(place, &bytes).await.unwrap();
        let error = restored_into(place, &bytes).await.unwrap_err();
        assert!(matches!(error, Error::NotEmpty { .. }), "{error}");

        // What an interrupted copy left is told from what somebody uses.
        let look = async |digest: &str| {
            dump::occupied(place.url(), &OLD, Clock::system(), Some(digest))
                .await
                .unwrap()
        };
        assert!(matches!(look("other").await, Occupied::Yes(_)));
        let Occupied::Leftover(leftover) = look(&contents.digest).await else {
            panic!("it is what was copied");
        };
        leftover.erase().await.unwrap();
        assert!(matches!(look(&contents.digest).await, Occupied::No));
        restored_into(place, &bytes).await.unwrap();
        let db = place.open(&OLD).await;
        fill(
            &db,
            &[Shelf {
                id: "new".to_owned(),
                note: None,
                number: None,
                body: None,
                books: vec![],
            }],
        )
        .await;
        assert!(
            matches!(look(&contents.digest).await, Occupied::Yes(_)),
            "somebody has used it"
        );
    })
    .await;
}

#[tokio::test]
async fn a_new_life_holds_no_lease_and_knows_what_happened() {
    each(async |place| {
        let source = Place::sqlite();
        let db = source.open(&OLD).await;
        let mut tx = db.begin("take").await.unwrap();
        let day = std::time::Duration::from_secs(86_400);
        let taken = lease::acquire(&mut tx, "work", "old life", day).await.unwrap();
        let lease::Acquired::Yes(taken) = taken else {
            panic!()
        };
        tx.commit().await.unwrap();
        let (bytes, _) = dumped(&db).await;
        let mark = Restored {
            at: 20,
            backup: "b".to_owned(),
            taken_at: 10,
        };
        let mut noted = String::new();
        dump::restore(
            place.url(),
            &OLD,
            Clock::system(),
            &Life::New(mark.clone()),
            |digest| {
                noted = digest.to_owned();
                Ok(())
            },
            &mut &*bytes,
        )
        .await
        .unwrap();
        let left = dump::occupied(place.url(), &OLD, Clock::system(), Some(&noted)).await;
        assert!(
            matches!(left.unwrap(), Occupied::Leftover(_)),
            "nobody has used it yet"
        );
        let db = place.open(&OLD).await;
        assert_eq!(restored::last(&db).await.unwrap(), Some(mark));
        let mut tx = db.begin("take").await.unwrap();
        let again = lease::acquire(&mut tx, "work", "new life", day).await.unwrap();
        let lease::Acquired::Yes(again) = again else {
            panic!("the old life still holds it")
        };
        assert_eq!(again.fence.number, taken.fence.number + 1);
        assert_eq!(restored::last(&source.open(&OLD).await).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn a_text_that_postgresql_does_not_take_is_named() {
    let Some(place) = postgres().await else { return };
    let source = Place::sqlite();
    let db = source.open(&OLD).await;
    fill(
        &db,
        &[Shelf {
            id: "a\0b".to_owned(),
            note: None,
            number: None,
            body: None,
            books: vec![],
        }],
    )
    .await;
    let (bytes, _) = dumped(&db).await;
    let error = restored_into(&place, &bytes).await.unwrap_err();
    assert!(error.to_string().contains("table `shelves`"), "{error}");
    let free = dump::occupied(place.url(), &OLD, Clock::system(), None)
        .await
        .unwrap();
    assert!(matches!(free, Occupied::No));
}

#[tokio::test]
async fn opening_as_it_is_makes_and_migrates_nothing() {
    each(async |place| {
        let as_is = async || Db::open_as_is(place.url(), &NEW, Clock::system()).await.unwrap();
        assert!(as_is().await.is_none());
        fill(&place.open(&OLD).await, &shelves(3)).await;
        let db = as_is().await.unwrap();
        let (_, contents) = dumped(&db).await;
        assert!(!contents.migrations.iter().any(|one| one.name == "colors"));
    })
    .await;
}
