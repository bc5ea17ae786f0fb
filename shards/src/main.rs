//! chronik-server: reads the command line and either does an offline command or runs the broker.

use std::process::ExitCode;

use chronik_shards::cli::{self, Cli, Environment, Failure, Outcome};
use chronik_shards::config::Loaded;
use chronik_shards::startup::Prepared;
use chronik_shards::{logging, startup};
use clap::Parser;

/// Small blocks are allocated on every request; mimalloc keeps them on the core that frees them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(u8::try_from(failure.exit_code()).unwrap_or(1))
        }
    }
}

fn run() -> Result<(), Failure> {
    let environment = Environment::of_process();
    match cli::dispatch(Cli::parse(), &environment)? {
        Outcome::Done => Ok(()),
        Outcome::Serve(loaded) => {
            logging::start(environment.get("RUST_LOG"))?;
            for warning in &loaded.warnings {
                tracing::warn!("{warning}");
            }
            let prepared = startup::prepare(&loaded.config)?;
            serve(*loaded, prepared)
        }
    }
}

/// Runs the shards until the process is told to stop.
fn serve(loaded: Loaded, prepared: Prepared) -> Result<(), Failure> {
    drop((loaded, prepared));
    Err(Failure::ShardsNotLinked)
}
