//! chronik-bench: reads the command line and runs one measurement.

use std::process::ExitCode;

use chronik_benches::cli::{self, Cli};
use clap::Parser;

fn main() -> ExitCode {
    match cli::run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
