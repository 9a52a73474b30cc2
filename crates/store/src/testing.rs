//! For tests only: one suite, both engines.
//!
//! ```no_run
//! # static SCHEMA: stolos_store::Schema = stolos_store::Schema { name: "shop", parts: &[] };
//! # async fn example() {
//! stolos_store::testing::each(async |place| {
//!     let db = place.open(&SCHEMA).await;
//!     // … the test
//! })
//! .await;
//! # }
//! ```
//!
//! PostgreSQL is the distribution's, found below `/usr/lib/postgresql` or in `PATH`. It is started once per test
//! process, on a Unix socket in a temporary directory, as an ordinary user (it refuses root), and ended when the
//! process ends, even when that is killed. Where there is none, the reason is printed and SQLite alone is tested.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use camino_tempfile::Utf8TempDir;
use sqlx::Connection as _;
use stolos_base::Clock;
use stolos_base::ids::random_hex;

use crate::db::{DatabaseUrl, Db};
use crate::schema::Schema;

/// How long the server may take to accept connections; the machine may be busy with other tests.
const START_LIMIT: Duration = Duration::from_secs(60);

/// An empty place for databases of one engine, gone when dropped. It outlives the [`Db`]s opened in it, so that a test
/// can reopen what a "crashed" one left behind.
#[derive(Debug)]
pub struct Place {
    url: DatabaseUrl,
    engine: &'static str,
    _directory: Option<Utf8TempDir>,
}

impl Place {
    /// A new SQLite directory.
    ///
    /// # Panics
    /// When there is no temporary directory to be had.
    #[must_use]
    pub fn sqlite() -> Self {
        let directory = camino_tempfile::tempdir().expect("a temporary directory");
        Self {
            url: DatabaseUrl::Sqlite {
                directory: directory.path().join("db"),
            },
            engine: "SQLite",
            _directory: Some(directory),
        }
    }

    /// A new database on this process's PostgreSQL server, or why there is none.
    ///
    /// # Errors
    /// The reason for which tests on PostgreSQL are skipped.
    ///
    /// # Panics
    /// When the server was started but gives no database.
    pub async fn postgres() -> Result<Self, String> {
        // Starting takes seconds and happens once; the other tests wait for it anyway.
        let server = tokio::task::spawn_blocking(server)
            .await
            .expect("the start does not panic")?;
        sqlx::any::install_default_drivers();
        let name = format!("t_{}", random_hex(6));
        let mut connection = sqlx::AnyConnection::connect(&server_url(server, "postgres"))
            .await
            .expect("the test server accepts connections");
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&mut connection)
            .await
            .expect("the test server makes a database");
        connection
            .close()
            .await
            .expect("the test server ends a connection");
        Ok(Self {
            url: DatabaseUrl::Postgres {
                url: server_url(server, &name).into(),
            },
            engine: "PostgreSQL",
            _directory: None,
        })
    }

    /// What to give to [`Db::open`].
    #[must_use]
    pub fn url(&self) -> &DatabaseUrl {
        &self.url
    }

    /// The engine's name, for messages.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        self.engine
    }

    /// Opens (and migrates) a database here with the system's clock.
    ///
    /// # Panics
    /// When that fails.
    pub async fn open(&self, schema: &'static Schema) -> Db {
        self.open_at(schema, Clock::system()).await
    }

    /// Opens (and migrates) a database here with a clock of the test's.
    ///
    /// # Panics
    /// When that fails.
    pub async fn open_at(&self, schema: &'static Schema, clock: Clock) -> Db {
        match Db::open(&self.url, schema, clock).await {
            Ok(db) => db,
            Err(error) => panic!("{}: {}", self.engine, stolos_base::chain(&error)),
        }
    }
}

/// Runs the test in an empty place of each engine, one after the other.
///
/// # Panics
/// When the test does.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub async fn each(test: impl AsyncFn(&Place)) {
    test(&Place::sqlite()).await;
    match Place::postgres().await {
        Ok(place) => test(&place).await,
        Err(reason) => eprintln!("skipped on PostgreSQL: {reason}"),
    }
}

fn server_url(directory: &Utf8Path, database: &str) -> String {
    format!("postgres://stolos@localhost/{database}?host={directory}")
}

/// The directory (data, socket) of the running server.
fn server() -> Result<&'static Utf8Path, String> {
    static SERVER: OnceLock<Result<Utf8PathBuf, String>> = OnceLock::new();
    SERVER
        .get_or_init(|| {
            let binaries = binaries()?;
            start(&binaries).map_err(|error| format!("PostgreSQL does not start: {error}"))
        })
        .as_deref()
        .map_err(Clone::clone)
}

/// The newest installed version's programs.
fn binaries() -> Result<Utf8PathBuf, String> {
    let has_both = |path: &Utf8PathBuf| path.join("initdb").exists() && path.join("postgres").exists();
    let mut versions: Vec<(u32, Utf8PathBuf)> = Utf8Path::new("/usr/lib/postgresql")
        .read_dir_utf8()
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, path)| has_both(path))
        .collect();
    versions.sort();
    versions
        .pop()
        .map(|(_, path)| path)
        .or_else(|| {
            let path = std::env::var("PATH").unwrap_or_default();
            path.split(':').map(Utf8PathBuf::from).find(has_both)
        })
        .ok_or_else(|| "no `initdb` and `postgres` in /usr/lib/postgresql/*/bin or PATH".to_owned())
}

/// Whom the server runs as.
struct User {
    /// `setpriv` and its arguments, before the program.
    setpriv: Vec<String>,
    /// Who must own the directory, when that is not the present user.
    ids: Option<(u32, u32)>,
}

/// The present user, or an ordinary one where that is root.
fn ordinary_user() -> io::Result<User> {
    let mut setpriv = vec!["setpriv".to_owned()];
    if !rustix::process::geteuid().is_root() {
        return Ok(User { setpriv, ids: None });
    }
    let users = fs_err::read_to_string("/etc/passwd")?;
    let (uid, gid): (u32, u32) = ["postgres", "nobody"]
        .iter()
        .find_map(|name| {
            let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
            let mut fields = line.split(':').skip(2);
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        })
        .ok_or_else(|| io::Error::other("there is no user `postgres` or `nobody` to run it as"))?;
    setpriv.extend([
        format!("--reuid={uid}"),
        format!("--regid={gid}"),
        "--clear-groups".to_owned(),
    ]);
    Ok(User {
        setpriv,
        ids: Some((uid, gid)),
    })
}

fn start(binaries: &Utf8Path) -> io::Result<Utf8PathBuf> {
    let User { setpriv: user, ids } = ordinary_user()?;
    // Kept, not a guard: the statics of a process are never dropped. The shell below removes it.
    let directory = camino_tempfile::Builder::new()
        .prefix("stolos-pg-")
        .tempdir()?
        .keep();
    fs_err::set_permissions(&directory, std::fs::Permissions::from_mode(0o700))?;
    if let Some((uid, gid)) = ids {
        std::os::unix::fs::chown(&directory, Some(uid), Some(gid))?;
    }
    let data = directory.join("data");
    let made = Command::new(&user[0])
        .args(&user[1..])
        .arg(binaries.join("initdb"))
        .args([
            "--no-sync",
            "--auth=trust",
            "--username=stolos",
            "--encoding=UTF8",
            "--locale=C",
            "-D",
        ])
        .arg(&data)
        .current_dir(&directory)
        .stdin(Stdio::null())
        .output();
    match made {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            stolos_base::files::remove_tree_if_there(&directory)?;
            return Err(io::Error::other(
                String::from_utf8_lossy(&output.stderr).into_owned(),
            ));
        }
        Err(error) => {
            stolos_base::files::remove_tree_if_there(&directory)?;
            return Err(error);
        }
    }
    let (sender, receiver) = mpsc::channel();
    let shell = supervised(&user, binaries, &directory);
    // The parent-death signal follows the thread that forks, so that thread must live as long as the process.
    std::thread::spawn(move || {
        let mut shell = shell;
        match shell.spawn() {
            Ok(mut child) => {
                let _ = sender.send(Ok(()));
                let _ = child.wait();
            }
            Err(error) => {
                let _ = sender.send(Err(error));
            }
        }
    });
    receiver.recv().map_err(io::Error::other)??;
    // The eighth line of this file says how the server is (`PM_STATUS_READY` in its sources).
    let status = data.join("postmaster.pid");
    let is_ready = || {
        let text = fs_err::read_to_string(&status).unwrap_or_default();
        text.lines().nth(7).is_some_and(|line| line.trim() == "ready")
    };
    let began = Instant::now();
    while !is_ready() {
        if began.elapsed() > START_LIMIT {
            let log = fs_err::read_to_string(directory.join("log")).unwrap_or_default();
            return Err(io::Error::other(format!("no answer in {START_LIMIT:?}: {log}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(directory)
}

/// The server below a shell that gets SIGTERM when this process dies, ends the server and removes the directory.
/// Nothing needs to survive, so nothing is synced.
fn supervised(user: &[String], binaries: &Utf8Path, directory: &Utf8Path) -> Command {
    const SCRIPT: &str = r#"
        trap 'kill -INT $server; wait $server; rm -rf "$2"; exit 0' TERM INT HUP
        "$1/postgres" -D "$2/data" -k "$2" -c listen_addresses= -c fsync=off -c synchronous_commit=off \
            -c full_page_writes=off -c max_connections=300 -c shared_buffers=16MB >"$2/log" 2>&1 &
        server=$!
        wait $server
    "#;
    let mut command = Command::new(&user[0]);
    command
        .args(&user[1..])
        .args(["--pdeathsig=TERM", "/bin/sh", "-c", SCRIPT, "sh"])
        .arg(binaries)
        .arg(directory)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // Not in the terminal's group: Ctrl-C ends the tests, and their end ends the server.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command
}
