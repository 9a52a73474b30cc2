//! A logical copy of a service's database, which either engine takes.
//!
//! Expected flow: [`dump`] reads everything in one snapshot while the service goes on writing; [`restore`] makes the
//! same tables in an empty database of whichever engine, fills them, reads them back and compares, and migrates what an
//! older program left, all in one transaction: after a crash the database is empty or whole.
//!
//! The dump is text, a JSON value a line: a head, for each table a line with its columns, a line for each row and one
//! with the number of rows and their digest, and an end. Rows are in an order that depends on their values alone, so two
//! databases with the same content give the same dump, whatever their engines; [`Contents`] of equal digest are equal.
//! At no time is more in memory than a few hundred rows.
//!
//! Cells: `TEXT` is a string, `BIGINT` a number, bytes are base64, and `null` is NULL. PostgreSQL's texts cannot hold
//! the character NUL, SQLite's can; a service that keeps one is refused by PostgreSQL with the table's name.

pub(crate) mod catalogue;

use std::io;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use camino::Utf8PathBuf;
use futures::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{AnyConnection, Connection as _, Row as _};
use stolos_base::{Clock, files};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWrite, AsyncWriteExt as _};

use self::catalogue::{Kind, Table};
use crate::db::{self, DatabaseUrl, Db, Engine, Tx};
use crate::error::{Error, Result};
use crate::restored::{self, Restored};
use crate::schema::{self, Schema};

/// The format's number.
const FORMAT: u32 = 1;
/// Placeholders of one statement, at most. Both engines take more (32766 and 65535); a few hundred are as fast.
const PLACES: usize = 2_000;
/// Bytes of rows that are inserted together, at most, but for one row that is larger.
const BATCH: usize = 1024 * 1024;
/// The longest line that is read: no row is nearly as large, and a stream that is no dump must not fill the memory.
const LONGEST_LINE: usize = 256 * 1024 * 1024;
/// Bytes that are written at once.
const BUFFER: usize = 64 * 1024;

/// What a dump holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// The service's schema name.
    pub schema: String,
    /// The migrations that the database had, by part and number.
    pub migrations: Vec<Applied>,
    /// Each table, those first that others refer to.
    pub tables: Vec<TableContents>,
    /// SHA-256 over the tables' digests, in hex.
    pub digest: String,
}

/// A migration that a database has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The part it belongs to.
    pub part: String,
    /// Its number in the part, from 1.
    pub number: i64,
    /// Its name.
    pub name: String,
    /// The digest of its statements.
    pub digest: String,
}

/// What a table holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableContents {
    /// Its name.
    pub name: String,
    /// How many rows it has.
    pub rows: u64,
    /// SHA-256 of its lines in the dump, in hex.
    pub digest: String,
}

impl Contents {
    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.tables.iter().map(|table| table.rows).sum()
    }
}

#[derive(Serialize, Deserialize)]
struct Head {
    stolos_dump: u32,
    schema: String,
    migrations: Vec<Applied>,
}

#[derive(Serialize, Deserialize)]
struct TableHead {
    table: String,
    columns: Vec<(String, Kind)>,
}

#[derive(Serialize, Deserialize)]
struct TableEnd {
    end: String,
    rows: u64,
    sha256: String,
}

#[derive(Serialize, Deserialize)]
struct End {
    tables: u64,
    rows: u64,
    sha256: String,
}

/// Writes everything that the database holds, as it is at one instant.
///
/// # Errors
/// Those of the database and of `out`; a value or a type of column that the dialect does not have.
pub async fn dump(db: &Db, out: &mut (impl AsyncWrite + Unpin + Send)) -> Result<Contents> {
    // SQLite's snapshot is taken by the first statement, PostgreSQL's too.
    let begin = match db.engine() {
        Engine::Sqlite => "BEGIN",
        Engine::Postgres => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    };
    let mut snapshot = db.read().begin_with(begin).await?;
    let contents = write(&mut snapshot, db.engine(), db.name(), out).await?;
    snapshot.rollback().await?;
    Ok(contents)
}

async fn write(
    connection: &mut AnyConnection,
    engine: Engine,
    schema: &'static str,
    out: &mut (impl AsyncWrite + Unpin + Send),
) -> Result<Contents> {
    let migrations: Vec<Applied> = schema::applied(connection)
        .await?
        .into_iter()
        .map(|((part, number), (name, digest))| Applied {
            part,
            number,
            name,
            digest,
        })
        .collect();
    let mut writer = Writer {
        schema,
        out: tokio::io::BufWriter::with_capacity(BUFFER, out),
        line: Vec::new(),
    };
    let head = Head {
        stolos_dump: FORMAT,
        schema: schema.to_owned(),
        migrations,
    };
    writer.write(&head).await?;
    let mut tables = Vec::new();
    for table in catalogue::read(connection, engine, schema).await? {
        tables.push(write_table(connection, engine, &table, &mut writer).await?);
    }
    let contents = contents(head, tables);
    writer
        .write(&End {
            tables: contents.tables.len() as u64,
            rows: contents.rows(),
            sha256: contents.digest.clone(),
        })
        .await?;
    writer.out.flush().await.map_err(stream("write", schema))?;
    Ok(contents)
}

async fn write_table(
    connection: &mut AnyConnection,
    engine: Engine,
    table: &Table,
    writer: &mut Writer<'_, impl AsyncWrite + Unpin + Send>,
) -> Result<TableContents> {
    let mut digest = digest::Context::new(&digest::SHA256);
    writer.write(&head_of(table)).await?;
    digest.update(&writer.line);
    let mut rows = 0;
    {
        // Names of the catalogue, quoted.
        let sql = sqlx::AssertSqlSafe(table.select(engine));
        let mut stream = sqlx::query(sql).fetch(connection);
        while let Some(row) = stream.try_next().await? {
            rows += 1;
            let mut cells = Vec::with_capacity(table.columns.len());
            for (at, column) in table.columns.iter().enumerate() {
                let value = |source| Error::Value {
                    place: format!("column `{}` of row {rows} of table `{}`", column.name, table.name),
                    expected: match column.kind {
                        Kind::Text => "text",
                        Kind::Bigint => "number",
                        Kind::Blob => "bytes",
                    },
                    source,
                };
                cells.push(match column.kind {
                    Kind::Text => row.try_get::<Option<String>, _>(at).map_err(value)?.into(),
                    Kind::Bigint => row.try_get::<Option<i64>, _>(at).map_err(value)?.into(),
                    Kind::Blob => row
                        .try_get::<Option<Vec<u8>>, _>(at)
                        .map_err(value)?
                        .map(|bytes| STANDARD_NO_PAD.encode(bytes))
                        .into(),
                });
            }
            let cells: Vec<Value> = cells;
            writer.write(&cells).await?;
            digest.update(&writer.line);
        }
    }
    let end = TableEnd {
        end: table.name.clone(),
        rows,
        sha256: hex::encode(digest.finish()),
    };
    writer.write(&end).await?;
    Ok(TableContents {
        name: end.end,
        rows,
        digest: end.sha256,
    })
}

/// Writes lines, and keeps the last one for its digest.
struct Writer<'a, W> {
    schema: &'static str,
    out: tokio::io::BufWriter<&'a mut W>,
    line: Vec<u8>,
}

impl<W: AsyncWrite + Unpin + Send> Writer<'_, W> {
    async fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let failed = stream("write", self.schema);
        self.line.clear();
        if let Err(error) = serde_json::to_writer(&mut self.line, line) {
            return Err(failed(error.into()));
        }
        self.line.push(b'\n');
        self.out.write_all(&self.line).await.map_err(failed)
    }
}

fn head_of(table: &Table) -> TableHead {
    TableHead {
        table: table.name.clone(),
        columns: table
            .columns
            .iter()
            .map(|column| (column.name.clone(), column.kind))
            .collect(),
    }
}

fn contents(head: Head, tables: Vec<TableContents>) -> Contents {
    let mut digest = digest::Context::new(&digest::SHA256);
    for table in &tables {
        digest.update(table.digest.as_bytes());
    }
    Contents {
        schema: head.schema,
        migrations: head.migrations,
        tables,
        digest: hex::encode(digest.finish()),
    }
}

fn stream(action: &'static str, database: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let database = database.into();
    move |source| Error::Stream {
        action,
        database,
        source,
    }
}

/// Reads a dump to its end and checks that it is whole: every line, every count, every digest.
///
/// # Errors
/// [`Error::Dump`] with the line, and those of `input`.
pub async fn check(input: &mut (impl AsyncBufRead + Unpin + Send)) -> Result<Contents> {
    let (mut lines, head) = Lines::begin(input).await?;
    let mut tables = Vec::new();
    while let Some(head) = lines.table()? {
        let mut rows = lines.rows(head);
        while rows.next(&mut lines).await?.is_some() {}
        tables.push(rows.done());
    }
    lines.end(head, tables).await
}

/// Who the restored database belongs to.
#[derive(Clone, Debug)]
pub enum Life {
    /// The same installation goes on where the dump was made: nothing happened in between.
    Same,
    /// It is older than the world. Leases of the old life are given back, and [`restored::last`] says what happened.
    New(Restored),
}

/// Makes the database of the schema's service from a dump; gives what the dump held.
///
/// Guarantees: what was loaded is read back and compared with the dump before it counts. The database of a program that
/// was older is migrated as far as this one. After an error or a crash the database has no table, or is whole.
/// `about_to` is told the digest ([`Contents::digest`]) of what the database will hold right before that is committed: with
/// it, [`occupied`] tells what this call has left when the process died before it could say so.
///
/// # Errors
/// [`Error::NotEmpty`], [`Error::Newer`], [`Error::MigrationChanged`], [`Error::Dump`], [`Error::Differs`], and those of
/// the database.
pub async fn restore(
    url: &DatabaseUrl,
    schema: &'static Schema,
    clock: Clock,
    life: &Life,
    about_to: impl FnOnce(&str) -> io::Result<()> + Send,
    input: &mut (impl AsyncBufRead + Unpin + Send),
) -> Result<Contents> {
    let (lines, head) = Lines::begin(input).await?;
    if head.schema != schema.name {
        return Err(Error::Dump {
            line: 1,
            problem: format!(
                "says that it is of database `{}`, not `{}`",
                head.schema, schema.name
            ),
        });
    }
    // Before anything is made: what this program does not know is refused.
    let applied: schema::Applied = head
        .migrations
        .iter()
        .map(|one| {
            (
                (one.part.clone(), one.number),
                (one.name.clone(), one.digest.clone()),
            )
        })
        .collect();
    schema.pending(&applied)?;
    let db = Db::connect(url, schema, clock).await?;
    let result = async {
        let mut tx = db.begin("restore a dump").await?;
        if db.engine() == Engine::Postgres {
            // Others do not wait for this one, and the dump may come over a slow line.
            sqlx::query("SET LOCAL idle_in_transaction_session_timeout = 0")
                .execute(tx.conn())
                .await?;
        }
        let contents = load(&mut tx, url, schema, &applied, life, lines, head).await?;
        let held = write(tx.conn(), db.engine(), schema.name, &mut tokio::io::sink()).await?;
        about_to(&held.digest).map_err(stream("note", schema.name))?;
        tx.commit().await?;
        Ok(contents)
    };
    let result = result.await;
    db.close().await;
    result
}

async fn load(
    tx: &mut Tx,
    url: &DatabaseUrl,
    schema: &'static Schema,
    applied: &schema::Applied,
    life: &Life,
    mut lines: Lines<'_, impl AsyncBufRead + Unpin + Send>,
    head: Head,
) -> Result<Contents> {
    let engine = tx.engine();
    if let Some(table) = catalogue::tables(tx.conn(), engine, schema.name).await?.pop() {
        return Err(Error::NotEmpty {
            database: schema.name,
            place: url.to_string(),
            table,
        });
    }
    sqlx::query(schema::RECORD).execute(tx.conn()).await?;
    for part in schema.parts() {
        for migration in part.migrations {
            if applied.contains_key(&(part.name.to_owned(), migration.number)) {
                schema::run(tx, part, migration).await?;
            }
        }
    }
    let made = catalogue::read(tx.conn(), engine, schema.name).await?;
    // Migrations may have put rows into tables; the dump has those that count.
    for table in made.iter().rev() {
        let sql = format!("DELETE FROM {}", catalogue::quoted(&table.name));
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(tx.conn()).await?;
    }
    if engine == Engine::Sqlite {
        // A row may refer to a later one of its own table.
        sqlx::query("PRAGMA defer_foreign_keys = ON")
            .execute(tx.conn())
            .await?;
    }
    let mut tables = Vec::new();
    while let Some(head) = lines.table()? {
        let table = made.iter().find(|table| table.name == head.table);
        let Some(table) = table.filter(|table| head_of(table).columns == head.columns) else {
            return Err(lines.problem(format!(
                "describes table `{}` otherwise than its migrations make it",
                head.table
            )));
        };
        tables.push(load_table(tx, table, &mut lines, head).await?);
    }
    let contents = lines.end(head, tables).await?;
    let again = write(tx.conn(), engine, schema.name, &mut tokio::io::sink()).await?;
    compare(schema.name, &contents, &again)?;
    schema::apply_in(tx, schema).await?;
    if let Life::New(restored) = life {
        // Nobody of the old life works on this database; the numbers stay, since they only grow.
        sqlx::query("UPDATE store_leases SET holder = '', expires_at = 0")
            .execute(tx.conn())
            .await?;
        restored::note(tx, restored).await?;
    }
    Ok(contents)
}

async fn load_table(
    tx: &mut Tx,
    table: &Table,
    lines: &mut Lines<'_, impl AsyncBufRead + Unpin + Send>,
    head: TableHead,
) -> Result<TableContents> {
    let most = (PLACES / table.columns.len().max(1)).max(1);
    let mut rows = lines.rows(head);
    let mut batch: Vec<Vec<Value>> = Vec::with_capacity(most);
    let mut bytes = 0;
    while let Some(cells) = rows.next(lines).await? {
        bytes += lines.line.len();
        batch.push(cells);
        if batch.len() == most || bytes >= BATCH {
            insert(tx, table, std::mem::take(&mut batch), lines.number).await?;
            bytes = 0;
        }
    }
    if !batch.is_empty() {
        insert(tx, table, batch, lines.number).await?;
    }
    Ok(rows.done())
}

async fn insert(tx: &mut Tx, table: &Table, rows: Vec<Vec<Value>>, line: u64) -> Result<()> {
    let mut query = sqlx::query(sqlx::AssertSqlSafe(table.insert(rows.len())));
    for cell in rows.into_iter().flatten().zip(table.columns.iter().cycle()) {
        query = match cell {
            (Value::String(text), column) if column.kind == Kind::Text => query.bind(text),
            (Value::Number(number), column) if column.kind == Kind::Bigint => query.bind(number.as_i64()),
            (Value::String(text), column) if column.kind == Kind::Blob => {
                let bytes = STANDARD_NO_PAD.decode(text).map_err(|_| Error::Dump {
                    line,
                    problem: format!(
                        "or one shortly before it has no base64 in column `{}`",
                        column.name
                    ),
                })?;
                query.bind(bytes)
            }
            (_, column) => match column.kind {
                Kind::Text => query.bind(None::<String>),
                Kind::Bigint => query.bind(None::<i64>),
                Kind::Blob => query.bind(None::<Vec<u8>>),
            },
        };
    }
    // Of the last, shorter batch there is one; no need to keep statements.
    let done = query.persistent(false).execute(tx.conn()).await;
    done.map(drop).map_err(|source| match Error::from(source) {
        Error::Statement { source } => Error::Load {
            table: table.name.clone(),
            line,
            source,
        },
        other => other,
    })
}

fn compare(database: &'static str, dumped: &Contents, loaded: &Contents) -> Result<()> {
    let differs = |table: &str, problem: String| Error::Differs {
        database,
        table: table.to_owned(),
        problem,
    };
    for table in &loaded.tables {
        let Some(dumped) = dumped.tables.iter().find(|one| one.name == table.name) else {
            return Err(differs(&table.name, "the dump does not have it".to_owned()));
        };
        if dumped.rows != table.rows {
            let problem = format!("{} rows in place of {}", table.rows, dumped.rows);
            return Err(differs(&table.name, problem));
        }
        if dumped.digest != table.digest {
            return Err(differs(&table.name, "the rows have another digest".to_owned()));
        }
    }
    Ok(())
}

/// The lines of a dump.
struct Lines<'a, R> {
    input: &'a mut R,
    schema: String,
    line: Vec<u8>,
    number: u64,
}

impl<'a, R: AsyncBufRead + Unpin + Send> Lines<'a, R> {
    async fn begin(input: &'a mut R) -> Result<(Self, Head)> {
        let mut lines = Self {
            input,
            schema: "?".to_owned(),
            line: Vec::new(),
            number: 0,
        };
        lines.advance().await?;
        let head: Head = lines.parse("is no head of a dump")?;
        if head.stolos_dump != FORMAT {
            let format = head.stolos_dump;
            return Err(lines.problem(format!("has format {format}; this program reads {FORMAT}")));
        }
        lines.schema.clone_from(&head.schema);
        lines.advance().await?;
        Ok((lines, head))
    }

    /// The head of the next table, if another one comes.
    fn table(&self) -> Result<Option<TableHead>> {
        if !self.line.starts_with(b"{\"table\"") {
            return Ok(None);
        }
        Ok(Some(self.parse("is no head of a table")?))
    }

    /// The rows of the table whose head is the present line.
    fn rows(&self, head: TableHead) -> Rows {
        let mut digest = digest::Context::new(&digest::SHA256);
        digest.update(&self.line);
        Rows {
            head,
            digest,
            rows: 0,
            hex: String::new(),
        }
    }

    /// The end; nothing comes after it.
    async fn end(&mut self, head: Head, tables: Vec<TableContents>) -> Result<Contents> {
        let contents = contents(head, tables);
        let end: End = self.parse("is no end of a dump")?;
        let whole = end.tables == contents.tables.len() as u64
            && end.rows == contents.rows()
            && end.sha256 == contents.digest;
        if !whole {
            return Err(self.problem("says that the dump has other tables than were read".to_owned()));
        }
        self.read().await?;
        if !self.line.is_empty() {
            return Err(self.problem("comes after the end".to_owned()));
        }
        Ok(contents)
    }

    /// The next line, which has to be there.
    async fn advance(&mut self) -> Result<()> {
        self.read().await?;
        if self.line.ends_with(b"\n") {
            return Ok(());
        }
        Err(self.problem("is cut off: the dump is not whole".to_owned()))
    }

    async fn read(&mut self) -> Result<()> {
        self.line.clear();
        self.number += 1;
        loop {
            let bytes = self
                .input
                .fill_buf()
                .await
                .map_err(stream("read", &self.schema))?;
            if bytes.is_empty() {
                return Ok(());
            }
            let (n, ends) = match bytes.iter().position(|byte| *byte == b'\n') {
                Some(at) => (at + 1, true),
                None => (bytes.len(), false),
            };
            self.line.extend_from_slice(&bytes[..n]);
            self.input.consume(n);
            if ends {
                return Ok(());
            }
            if self.line.len() > LONGEST_LINE {
                return Err(self.problem("is too long for a row".to_owned()));
            }
        }
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, problem: &str) -> Result<T> {
        serde_json::from_slice(&self.line).map_err(|error| self.problem(format!("{problem}: {error}")))
    }

    fn problem(&self, problem: String) -> Error {
        Error::Dump {
            line: self.number,
            problem,
        }
    }
}

/// The rows of one table.
struct Rows {
    head: TableHead,
    digest: digest::Context,
    rows: u64,
    hex: String,
}

impl Rows {
    /// The next row's cells, which fit the columns. After the last one, the lines are at what follows the table.
    async fn next(
        &mut self,
        lines: &mut Lines<'_, impl AsyncBufRead + Unpin + Send>,
    ) -> Result<Option<Vec<Value>>> {
        lines.advance().await?;
        if lines.line.starts_with(b"[") {
            let cells: Vec<Value> = lines.parse("is no row")?;
            let fits = |(cell, (_, kind)): (&Value, &(String, Kind))| match cell {
                Value::Null => true,
                Value::Number(number) => *kind == Kind::Bigint && number.is_i64(),
                Value::String(_) => *kind != Kind::Bigint,
                _ => false,
            };
            if cells.len() != self.head.columns.len() || !cells.iter().zip(&self.head.columns).all(fits) {
                return Err(lines.problem(format!("does not fit the columns of table `{}`", self.head.table)));
            }
            self.rows += 1;
            self.digest.update(&lines.line);
            return Ok(Some(cells));
        }
        let end: TableEnd = lines.parse("is neither a row nor the end of a table")?;
        self.hex = hex::encode(self.digest.clone().finish());
        if end.end != self.head.table || end.rows != self.rows || end.sha256 != self.hex {
            return Err(lines.problem(format!("says that table `{}` has other rows", self.head.table)));
        }
        lines.advance().await?;
        Ok(None)
    }

    /// What there was; after the last row.
    fn done(self) -> TableContents {
        TableContents {
            name: self.head.table,
            rows: self.rows,
            digest: self.hex,
        }
    }
}

/// The proof that a database holds exactly what an interrupted copy has put there, and nobody has used it since.
#[derive(Debug)]
pub struct Leftover {
    url: DatabaseUrl,
    schema: &'static Schema,
}

/// What is in the way of a restore.
#[derive(Debug)]
pub enum Occupied {
    /// Nothing: the database is not there, or has no table.
    No,
    /// What a copy with this digest left.
    Leftover(Leftover),
    /// Something else, of which one table is named.
    Yes(String),
}

/// Looks whether the database of the schema's service is free to be restored into. `left` is the digest
/// ([`Contents::digest`]) of a copy that may have been interrupted after it was complete.
///
/// # Errors
/// Those of the database.
pub async fn occupied(
    url: &DatabaseUrl,
    schema: &'static Schema,
    clock: Clock,
    left: Option<&str>,
) -> Result<Occupied> {
    let table = match url {
        DatabaseUrl::Sqlite { directory } if !db::sqlite_file(directory, schema.name).exists() => None,
        DatabaseUrl::Sqlite { .. } => {
            let db = Db::connect(url, schema, clock.clone()).await?;
            let found = catalogue::tables(&mut *db.read().acquire().await?, db.engine(), schema.name).await;
            db.close().await;
            found?.pop()
        }
        DatabaseUrl::Postgres { url } => {
            sqlx::any::install_default_drivers();
            let opened = |source| Error::Open {
                database: schema.name,
                source,
            };
            let mut connection = AnyConnection::connect(url.expose()).await.map_err(opened)?;
            let found = catalogue::tables(&mut connection, Engine::Postgres, schema.name).await;
            connection.close().await?;
            found?.pop()
        }
    };
    let Some(table) = table else {
        return Ok(Occupied::No);
    };
    let Some(left) = left else {
        return Ok(Occupied::Yes(table));
    };
    let Some(db) = Db::open_as_is(url, schema, clock).await? else {
        return Ok(Occupied::Yes(table));
    };
    let held = dump(&db, &mut tokio::io::sink()).await;
    db.close().await;
    if held?.digest != left {
        return Ok(Occupied::Yes(table));
    }
    Ok(Occupied::Leftover(Leftover {
        url: url.clone(),
        schema,
    }))
}

impl Leftover {
    /// Removes it.
    ///
    /// # Errors
    /// Those of the database and of the file system.
    pub async fn erase(self) -> Result<()> {
        match &self.url {
            DatabaseUrl::Sqlite { directory } => {
                let file = db::sqlite_file(directory, self.schema.name);
                // The log first: a database without its log is older, a log without its database is nothing.
                for suffix in ["-wal", "-shm", ""] {
                    let path = Utf8PathBuf::from(format!("{file}{suffix}"));
                    files::remove_if_there(&path).map_err(|source| Error::Prepare { path, source })?;
                }
                Ok(())
            }
            DatabaseUrl::Postgres { url } => {
                let mut connection = AnyConnection::connect(url.expose()).await?;
                // The name is plain: the schema was checked when it was opened.
                let sql = format!("DROP SCHEMA {} CASCADE", self.schema.name);
                sqlx::query(sqlx::AssertSqlSafe(sql))
                    .execute(&mut connection)
                    .await?;
                Ok(connection.close().await?)
            }
        }
    }
}
