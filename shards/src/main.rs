//! chronik-server: reads the command line and either does an offline command or runs the broker.

use std::process::ExitCode;
use std::sync::Arc;

use chronik_shards::cli::{self, Cli, Environment, Failure, Outcome};
use chronik_shards::config::Loaded;
use chronik_shards::shell::cluster::ClusterPlace;
use chronik_shards::shell::shard::NodeInfo;
use chronik_shards::startup::Prepared;
use chronik_shards::{logging, shell, startup};
use clap::Parser;

/// Small blocks are allocated on every request; mimalloc keeps them on the core that frees them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}", failure.story());
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

/// Runs the shards until the process is told to stop. The data directory stays locked until then.
fn serve(loaded: Loaded, prepared: Prepared) -> Result<(), Failure> {
    let Prepared { data_dir, environment, cluster, leaves_cluster } = prepared;
    let identity = &data_dir.identity;
    let cluster = cluster.map(|start| ClusterPlace::new(start, data_dir.created));
    let node = NodeInfo { leaves_cluster, ..NodeInfo::new(loaded.config, identity, cluster) };
    tracing::info!(
        node_id = node.config.node_id.0,
        shards = node.shards,
        kafka_addr = %node.config.kafka_addr,
        advertised_addr = %node.config.advertised_addr,
        admin_addr = %node.config.admin_addr,
        data_dir = %data_dir.path.display(),
        "starting"
    );
    shell::run::run(&Arc::new(node), identity, &environment)?;
    Ok(())
}
