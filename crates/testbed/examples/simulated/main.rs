//! An installation with simulated machines as a process of its own (`serve`), and how its API answers while a fleet is worked on (`bench`).
//!
//! `cargo xtask bench api` runs `bench` and makes a table of what it prints; `serve` alone is for whoever wants to look at many clusters.

mod bench;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};
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
}

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
}

#[tokio::main]
async fn main() -> ExitCode {
    stolos_base::logging::start(stolos_base::logging::Format::Text, "warn");
    let result = match Verb::parse() {
        Verb::Serve { database } => serve(database).await,
        Verb::Bench(arguments) => arguments.run().await,
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
    let served = Served {
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
