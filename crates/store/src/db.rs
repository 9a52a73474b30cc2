//! Opening a database, reading from it, and named transactions.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use camino::{Utf8Path, Utf8PathBuf};
use fs_err::os::unix::fs::OpenOptionsExt as _;
use sqlx::any::AnyPoolOptions;
use sqlx::{AnyConnection, AnyPool, Connection as _};
use stolos_base::{Class, Classify, Clock, Secret};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::dump;
use crate::error::{Error, Result};
use crate::schema::{self, Need, Schema};
use crate::signal::{Ears, Signals};

/// How long a transaction waits for the one before it. Transactions are short; this is for a stuck one.
const WRITER_WAIT: Duration = Duration::from_secs(30);
/// A PostgreSQL transaction whose process says nothing for so long is ended by the server. Transactions wait for nothing but the
/// database, so such a process is frozen or cut off, and it would hold up all others, which share one writer with it. Less than half of the
/// time that leases last, so that nobody takes the wait for an outage of the database (`flow`).
const SILENCE_MILLIS: u32 = 2_500;
/// How long a statement waits for a lock that another process holds on the database.
const LOCK_WAIT_MILLIS: u32 = 30_000;
/// Readers of one service; more wait.
const READERS: u32 = 4;
/// How often [`Db::transaction`] tries.
const ATTEMPTS: u32 = 5;
/// The pause between two tries, multiplied by the number of the try.
const PAUSE: Duration = Duration::from_millis(20);
/// Copies that are kept beside a SQLite database.
const BACKUPS_KEPT: usize = 3;
/// A transaction that holds the writer longer is named in the log.
const SLOW: Duration = Duration::from_secs(1);

/// The two engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// SQLite, bundled.
    Sqlite,
    /// PostgreSQL.
    Postgres,
}

/// Where the databases of an installation are.
///
/// As text: `sqlite:/directory` (one file per service in it) or `postgres://user:password@host/database` (one schema
/// per service in it).
#[derive(Clone)]
pub enum DatabaseUrl {
    /// A directory of SQLite files.
    Sqlite {
        /// Made (mode 0700) where it is missing; must not lie on a network file system.
        directory: Utf8PathBuf,
    },
    /// A PostgreSQL database.
    Postgres {
        /// The URL in libpq's form; it may hold a password.
        url: Secret<String>,
    },
}

/// The text names no database.
#[derive(Debug, thiserror::Error)]
#[error("a database is `sqlite:/directory` or `postgres://user:password@host/database`")]
pub struct InvalidDatabaseUrl;

impl FromStr for DatabaseUrl {
    type Err = InvalidDatabaseUrl;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(directory) = text.strip_prefix("sqlite:") {
            let directory = Utf8PathBuf::from(directory.strip_prefix("//").unwrap_or(directory));
            if directory.is_absolute() {
                return Ok(Self::Sqlite { directory });
            }
        } else if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Ok(Self::Postgres { url: text.into() });
        }
        Err(InvalidDatabaseUrl)
    }
}

/// Without user and password.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite { directory } => write!(f, "sqlite:{directory}"),
            Self::Postgres { url } => {
                let rest = url.expose().split_once("://").map_or("", |(_, rest)| rest);
                let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
                write!(f, "postgres://{}", rest.split('?').next().unwrap_or_default())
            }
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One service's database. Cheap to clone.
#[derive(Clone)]
pub struct Db(Arc<Inner>);

struct Inner {
    name: &'static str,
    engine: Engine,
    writer: AnyPool,
    reader: AnyPool,
    clock: Clock,
    /// The key of the advisory lock that makes write transactions serial on PostgreSQL.
    lock: i64,
    /// The open transaction, for those who wait for it.
    open: Mutex<Option<Open>>,
    begun: AtomicU64,
    /// One place in the line for the writer.
    background: Arc<Semaphore>,
    /// Absent on SQLite, where there is nobody else.
    ears: Option<Arc<Ears>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(ears) = &self.ears {
            ears.stop.cancel();
        }
    }
}

#[derive(Clone, Copy)]
struct Open {
    number: u64,
    name: &'static str,
    since: Instant,
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Db")
            .field("name", &self.0.name)
            .field("engine", &self.0.engine)
            .finish_non_exhaustive()
    }
}

impl Db {
    /// Opens the database of the schema's service, makes it where it is missing, and migrates it. Before an existing
    /// SQLite database is migrated, a copy is put into `backups/` beside it (the last three are kept); PostgreSQL is
    /// backed up by its own means, so the log only says that a migration is coming.
    ///
    /// # Errors
    /// When the database cannot be opened, backed up or migrated, or when it is newer than the program.
    pub async fn open(url: &DatabaseUrl, schema: &'static Schema, clock: Clock) -> Result<Self> {
        let db = Self::connect(url, schema, clock).await?;
        match schema::look(db.begin("look at migrations").await?, schema).await? {
            Need::Nothing => return Ok(db),
            Need::Everything => {}
            Need::Some => match url {
                DatabaseUrl::Sqlite { directory } => db.back_up(directory).await?,
                DatabaseUrl::Postgres { .. } => {
                    tracing::warn!(
                        database = schema.name,
                        "migrating a PostgreSQL schema without a backup of ours"
                    );
                }
            },
        }
        schema::apply(db.begin("migrate").await?, schema).await?;
        Ok(db)
    }

    /// Opens the database of the schema's service, and makes it where it is missing, without any table.
    pub(crate) async fn connect(url: &DatabaseUrl, schema: &'static Schema, clock: Clock) -> Result<Self> {
        schema.check()?;
        sqlx::any::install_default_drivers();
        match url {
            DatabaseUrl::Sqlite { directory } => open_sqlite(directory, schema.name, clock).await,
            DatabaseUrl::Postgres { url } => open_postgres(url, schema.name, clock).await,
        }
    }

    /// Opens the database of the schema's service as it is: nothing is made, nothing is migrated, so an older one stays
    /// older. `None` where the service has none yet.
    ///
    /// # Errors
    /// When the database cannot be opened, or when it is newer than the program.
    pub async fn open_as_is(
        url: &DatabaseUrl,
        schema: &'static Schema,
        clock: Clock,
    ) -> Result<Option<Self>> {
        schema.check()?;
        sqlx::any::install_default_drivers();
        let db = match url {
            DatabaseUrl::Sqlite { directory } => {
                if !sqlite_file(directory, schema.name).exists() {
                    return Ok(None);
                }
                open_sqlite(directory, schema.name, clock).await?
            }
            DatabaseUrl::Postgres { url } => connect_postgres(url, schema.name, clock).await?,
        };
        let mut connection = db.read().acquire().await?;
        let tables = dump::catalogue::tables(&mut connection, db.engine(), schema.name).await?;
        if !tables.iter().any(|name| name == schema::RECORD_TABLE) {
            drop(connection);
            db.close().await;
            return Ok(None);
        }
        schema.pending(&schema::applied(&mut connection).await?)?;
        drop(connection);
        Ok(Some(db))
    }

    /// The service's schema name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// By how many milliseconds the database's clock is ahead of this machine's; `None` where the two are one, or where [`Db::clock`] cannot be corrected.
    ///
    /// # Errors
    /// When the database does not say.
    pub async fn ahead_of_us(&self) -> Result<Option<i64>> {
        let clock = self.clock();
        let (Engine::Postgres, Some(before)) = (self.engine(), clock.uncorrected_millis()) else {
            return Ok(None);
        };
        let row =
            sqlx::query("SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT) AS now_millis")
                .fetch_one(self.read())
                .await?;
        let theirs: i64 = sqlx::Row::try_get(&row, "now_millis")?;
        let after = clock.uncorrected_millis().unwrap_or(before);
        // Asked somewhere between the two.
        Ok(Some(theirs - before.midpoint(after)))
    }

    /// Which engine it is. Services do not need to know; tests may.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.0.engine
    }

    /// The clock that leases and migrations use.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// For single queries outside a transaction. Its connections refuse to write.
    #[must_use]
    pub fn read(&self) -> &AnyPool {
        &self.0.reader
    }

    /// Begins a write transaction, after the one before it has ended. Dropping it rolls it back.
    ///
    /// Keep it short and never wait for anything but the database in it: no other transaction of this service begins
    /// meanwhile, and beginning a second one in the same task waits for itself until [`Error::Busy`].
    ///
    /// # Errors
    /// [`Error::Busy`] when the writer stays held, and those of the database.
    pub async fn begin(&self, name: &'static str) -> Result<Tx> {
        let inner = match self.0.engine {
            Engine::Sqlite => self.0.writer.begin_with("BEGIN IMMEDIATE").await,
            Engine::Postgres => self.0.writer.begin().await,
        };
        let inner = inner.map_err(|source| match Error::from(source) {
            Error::Busy { source, .. } => Error::Busy {
                held_by: self.current().map(|open| open.name),
                source,
            },
            other => other,
        })?;
        let mut tx = Tx {
            inner: Some(inner),
            db: self.clone(),
            name,
            _turn: None,
            number: self.0.begun.fetch_add(1, Ordering::Relaxed),
        };
        self.set_current(Some(Open {
            number: tx.number,
            name,
            since: Instant::now(),
        }));
        if self.0.engine == Engine::Postgres {
            sqlx::query("SELECT pg_advisory_xact_lock($1)")
                .bind(self.0.lock)
                .execute(tx.conn())
                .await?;
        }
        Ok(tx)
    }

    /// The same for what nobody waits for at the moment: the journal of flows, what their steps note. One such transaction at a time stands in
    /// line for the writer, so that whoever asks for something waits for that one at the most, however many flows are running; among
    /// themselves they go in the order in which they came.
    ///
    /// # Errors
    /// As [`Db::begin`].
    pub async fn begin_background(&self, name: &'static str) -> Result<Tx> {
        let waited = tokio::time::timeout(WRITER_WAIT, self.0.background.clone().acquire_owned()).await;
        let turn = waited.map_err(|_| Error::Busy {
            held_by: self.current().map(|open| open.name),
            source: sqlx::Error::PoolTimedOut,
        })?;
        let mut tx = self.begin(name).await?;
        // Nobody closes the semaphore.
        tx._turn = turn.ok();
        Ok(tx)
    }

    /// Runs `body` in a transaction and commits; repeats the whole when the database was busy or lost. `body` must have
    /// no effect but on the transaction.
    ///
    /// # Errors
    /// `body`'s, or those of the database.
    pub async fn transaction<T, E>(
        &self,
        name: &'static str,
        mut body: impl AsyncFnMut(&mut Tx) -> Result<T, E>,
    ) -> Result<T, E>
    where
        E: From<Error> + Classify,
    {
        let mut attempt = 1;
        loop {
            let result = async {
                let mut tx = self.begin(name).await?;
                let value = body(&mut tx).await?;
                tx.commit().await?;
                Ok::<T, E>(value)
            }
            .await;
            match result {
                Err(error)
                    if attempt < ATTEMPTS && error.class() == Class::Unavailable && error.retryable() =>
                {
                    tracing::debug!(transaction = name, attempt, error = %stolos_base::chain(&error), "repeating a transaction");
                    tokio::time::sleep(PAUSE * attempt).await;
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    /// What other processes of the same database say from now on; see [`crate::signal`]. Needs a Tokio runtime.
    #[must_use]
    pub fn signals(&self) -> Signals {
        Signals(self.0.ears.as_ref().map(Ears::listen))
    }

    /// Ends all connections; open transactions are waited for.
    pub async fn close(&self) {
        if let Some(ears) = &self.0.ears {
            ears.stop.cancel();
        }
        self.0.reader.close().await;
        self.0.writer.close().await;
    }

    fn current(&self) -> Option<Open> {
        *self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_current(&self, open: Option<Open>) {
        *self.0.open.lock().unwrap_or_else(PoisonError::into_inner) = open;
    }

    /// Copies the SQLite file, first under a temporary name, so that a backup is whole or not there.
    async fn back_up(&self, directory: &Utf8Path) -> Result<()> {
        let backups = directory.join("backups");
        let prefix = format!("{}-", self.0.name);
        let stamp = self.0.clock.now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let path = backups.join(format!("{prefix}{stamp}.sqlite"));
        let temporary = backups.join(format!(".{prefix}{stamp}.partial"));
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Backup {
            database: self.0.name,
            path: path.clone(),
            source,
        };
        make_directory(&backups)?;
        stolos_base::files::remove_if_there(&temporary).map_err(|error| failed(error.into()))?;
        let copied = sqlx::query("VACUUM INTO $1")
            .bind(temporary.as_str())
            .execute(&self.0.writer)
            .await;
        if let Err(error) = copied {
            let _ = stolos_base::files::remove_if_there(&temporary);
            return Err(failed(error.into()));
        }
        let finish = || -> std::io::Result<()> {
            fs_err::File::open(&temporary)?.sync_all()?;
            fs_err::rename(&temporary, &path)?;
            fs_err::File::open(&backups)?.sync_all()?;
            let mut old: Vec<Utf8PathBuf> = backups
                .read_dir_utf8()?
                .filter_map(|entry| entry.ok().map(|entry| entry.path().to_owned()))
                .filter(|path| path.file_name().is_some_and(|name| name.starts_with(&prefix)))
                .collect();
            old.sort();
            for path in old.iter().rev().skip(BACKUPS_KEPT) {
                fs_err::remove_file(path)?;
            }
            Ok(())
        };
        finish().map_err(|error| failed(error.into()))?;
        tracing::info!(database = self.0.name, backup = %path, "backed up before a migration");
        Ok(())
    }
}

pub(crate) fn make_directory(path: &Utf8Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| Error::Prepare {
            path: path.to_owned(),
            source,
        })
}

/// The file of a service's database.
pub(crate) fn sqlite_file(directory: &Utf8Path, name: &str) -> Utf8PathBuf {
    directory.join(format!("{name}.sqlite"))
}

async fn open_sqlite(directory: &Utf8Path, name: &'static str, clock: Clock) -> Result<Db> {
    make_directory(directory)?;
    let path = sqlite_file(directory, name);
    // SQLite would make the file with the umask's mode; its -wal and -shm files follow the mode of the main one.
    fs_err::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| Error::Prepare {
            path: path.clone(),
            source,
        })?;
    let opened = |source| Error::Open {
        database: name,
        source,
    };
    let url = format!("sqlite://{}?mode=rw", escaped(path.as_str()));
    let pragmas = format!(
        "PRAGMA busy_timeout = {LOCK_WAIT_MILLIS}; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
         PRAGMA foreign_keys = ON; PRAGMA journal_size_limit = 67108864; PRAGMA trusted_schema = OFF;"
    );
    let writer = pool(1, pragmas.clone())
        .max_lifetime(None)
        .idle_timeout(None)
        .test_before_acquire(false)
        .connect(&url)
        .await
        .map_err(opened)?;
    let reader = pool(READERS, format!("{pragmas} PRAGMA query_only = ON;"))
        .max_lifetime(None)
        .test_before_acquire(false)
        .connect(&url)
        .await
        .map_err(opened)?;
    Ok(Db::new(name, Engine::Sqlite, writer, reader, clock, None))
}

async fn open_postgres(url: &Secret<String>, name: &'static str, clock: Clock) -> Result<Db> {
    let db = connect_postgres(url, name, clock).await?;
    // Two processes that make the same schema at once collide in PostgreSQL's catalogue, so this needs the lock too.
    let mut tx = db.begin("make the schema").await?;
    sqlx::query(sqlx::AssertSqlSafe(format!("CREATE SCHEMA IF NOT EXISTS {name}")))
        .execute(tx.conn())
        .await
        .map_err(|source| Error::Open {
            database: name,
            source,
        })?;
    tx.commit().await?;
    Ok(db)
}

async fn connect_postgres(url: &Secret<String>, name: &'static str, clock: Clock) -> Result<Db> {
    let opened = |source| Error::Open {
        database: name,
        source,
    };
    // The names are plain (checked in the schema), so they need no quoting.
    let session = format!(
        "SET search_path = {name}; SET lock_timeout = {LOCK_WAIT_MILLIS}; SET client_min_messages = warning;"
    );
    let patience = format!("{session} SET idle_in_transaction_session_timeout = {SILENCE_MILLIS};");
    let writer = pool(1, patience).connect(url.expose()).await.map_err(opened)?;
    let reader = pool(
        READERS,
        format!("{session} SET default_transaction_read_only = on;"),
    )
    .connect(url.expose())
    .await
    .map_err(opened)?;
    let ears = Arc::new(Ears::new(url.clone(), name));
    Ok(Db::new(name, Engine::Postgres, writer, reader, clock, Some(ears)))
}

fn pool(size: u32, session: String) -> AnyPoolOptions {
    let session: Arc<str> = session.into();
    AnyPoolOptions::new()
        .max_connections(size)
        .acquire_timeout(WRITER_WAIT)
        // SQLite ends a transaction itself when its disk is full or fails. The rollback that follows is refused then, and the library goes on believing that
        // the connection is in a transaction: it could begin none any more, for ever.
        .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
        .after_connect(move |connection, _| {
            let session = session.clone();
            Box::pin(async move {
                sqlx::raw_sql(sqlx::AssertSqlSafe(session))
                    .execute(connection)
                    .await
                    .map(drop)
            })
        })
}

/// The path inside a URL.
fn escaped(path: &str) -> String {
    use fmt::Write as _;
    path.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => {
                text.push(char::from(byte))
            }
            _ => {
                let _ = write!(text, "%{byte:02X}");
            }
        }
        text
    })
}

impl Db {
    fn new(
        name: &'static str,
        engine: Engine,
        writer: AnyPool,
        reader: AnyPool,
        clock: Clock,
        ears: Option<Arc<Ears>>,
    ) -> Self {
        let hash = digest::digest(&digest::SHA256, format!("stolos store {name}").as_bytes());
        let lock = i64::from_be_bytes(hash.as_ref()[..8].try_into().expect("a SHA-256 has 32 bytes"));
        Self(Arc::new(Inner {
            name,
            engine,
            writer,
            reader,
            clock,
            lock,
            open: Mutex::new(None),
            begun: AtomicU64::new(0),
            background: Arc::new(Semaphore::new(1)),
            ears,
        }))
    }
}

/// An open write transaction. Dropped without [`Tx::commit`], it is rolled back.
#[must_use = "a transaction that is not committed is rolled back"]
pub struct Tx {
    /// Absent only while committing.
    inner: Option<sqlx::Transaction<'static, sqlx::Any>>,
    db: Db,
    name: &'static str,
    number: u64,
    /// Given back last, when it is of those that stand in line one at a time.
    _turn: Option<OwnedSemaphorePermit>,
}

impl Tx {
    /// What queries of this transaction run on: `query(…).execute(tx.conn())`.
    pub fn conn(&mut self) -> &mut AnyConnection {
        self.inner.as_mut().expect("only `commit` takes the transaction")
    }

    /// Makes everything done so far durable and visible.
    ///
    /// # Errors
    /// Those of the database. After [`Error::Lost`] on PostgreSQL it is unknown whether it happened.
    pub async fn commit(mut self) -> Result<()> {
        let inner = self.inner.take().expect("only `commit` takes the transaction");
        inner.commit().await.map_err(Error::from)
    }

    /// Undoes everything; the same as dropping, but waits for it.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn rollback(mut self) -> Result<()> {
        let inner = self
            .inner
            .take()
            .expect("only `commit` and `rollback` take the transaction");
        inner.rollback().await.map_err(Error::from)
    }

    /// The time now in milliseconds since the Unix epoch, by the database's clock.
    #[must_use]
    pub fn now_millis(&self) -> i64 {
        self.db.0.clock.now_millis()
    }

    /// Which engine it runs on.
    #[must_use]
    pub fn engine(&self) -> Engine {
        self.db.0.engine
    }

    /// Has other processes of the database hear a word once this is committed; see [`crate::signal`]. The same word twice is said
    /// once.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn signal(&mut self, word: &str) -> Result<()> {
        let Some(ears) = self.db.0.ears.clone() else {
            return Ok(());
        };
        sqlx::query("SELECT pg_notify($1, $2)")
            .bind(&ears.channel)
            .bind(format!("{} {word}", ears.own))
            .execute(self.conn())
            .await?;
        Ok(())
    }
}

impl fmt::Debug for Tx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tx")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        // After a commit the connection is free already and the entry may be the next transaction's.
        if let Some(open) = self.db.current()
            && open.number == self.number
        {
            let held = open.since.elapsed();
            if held > SLOW {
                tracing::warn!(
                    database = self.db.0.name,
                    transaction = open.name,
                    ?held,
                    "slow transaction"
                );
            }
            self.db.set_current(None);
        }
    }
}
