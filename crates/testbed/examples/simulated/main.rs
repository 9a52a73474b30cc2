//! An installation with simulated machines as a process of its own (`serve`), and how its API answers while a fleet is worked on (`bench`),
//! and what it takes after an hour of everything (`soak`).
//!
//! `cargo xtask bench api` runs `bench`, `cargo xtask bench soak` runs `soak`; both make a table of what is printed. `serve` alone is for whoever wants to look at many clusters.

mod bench;
mod soak;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use camino::Utf8PathBuf;
use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};
use stolos_base::task::{self, Kind};
use stolos_store::DatabaseUrl;
use stolos_store::testing::Place;
use stolos_testbed::simulated::{Access, Simulation};
use tokio::io::AsyncReadExt as _;

#[derive(Parser)]
enum Verb {
    /// Runs an installation until standard input ends; prints how to reach it as a line of JSON
    Serve {
        /// The database's engine
        #[arg(long, value_enum, default_value_t = Engine::Sqlite)]
        database: Engine,
    },
    /// Measures how the API answers; prints JSON
    Bench(bench::Arguments),
    /// Everything that people and attackers do, for long; prints JSON about memory
    Soak(soak::Arguments),
}

/// An environment variable: the allocator is left as it is.
const UNSETTLED: &str = "STOLOS_SIMULATED_UNSETTLED";

/// Where the databases are, both new and gone afterwards.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Engine {
    /// Files that are synced at each commit
    Sqlite,
    /// A server of the host's newest version that syncs nothing
    Postgres,
}

impl Engine {
    fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// The line that `serve` prints.
#[derive(Serialize, Deserialize)]
struct Served {
    access: Access,
    /// As `stolos_store` reads it.
    database: String,
    /// The release that its clusters are made of, a tarball.
    release: Utf8PathBuf,
}

fn main() -> ExitCode {
    // As `stolosd` does; what it does against, `soak` shows without.
    if std::env::var_os(UNSETTLED).is_none() {
        stolos_base::memory::settle();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(run()),
        Err(error) => {
            stolos_testbed::note(format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> ExitCode {
    stolos_base::logging::start(stolos_base::logging::Format::Text, "warn");
    let result = match Verb::parse() {
        Verb::Serve { database } => serve(database).await,
        Verb::Bench(arguments) => arguments.run().await,
        Verb::Soak(arguments) => arguments.run().await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            stolos_testbed::note(format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn serve(engine: Engine) -> anyhow::Result<()> {
    let place = match engine {
        Engine::Sqlite => Place::sqlite(),
        Engine::Postgres => Place::postgres().await.map_err(anyhow::Error::msg)?,
    };
    let directory = camino_tempfile::tempdir()?;
    let simulation = Simulation::start(directory.path(), place.url().clone()).await?;
    if std::env::var_os(UNSETTLED).is_none() {
        task::spawn(Kind::Service, "memory", stolos_base::memory::keep_settled());
    }
    let served = Served {
        release: directory.path().join("release.tgz"),
        access: simulation.access().clone(),
        database: match place.url() {
            DatabaseUrl::Sqlite { directory } => format!("sqlite:{directory}"),
            DatabaseUrl::Postgres { url } => url.expose().clone(),
        },
    };
    print(&serde_json::to_string(&served)?)?;
    let mut ended = [0; 1];
    while tokio::io::stdin().read(&mut ended).await? > 0 {}
    simulation.stop().await;
    Ok(())
}

fn print(line: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .context("nobody reads what this prints")
}
