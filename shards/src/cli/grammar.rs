//! What can be written after `chronik-server`.

mod cluster;
mod group;
mod topic;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{Args, Parser, Subcommand};

pub use cluster::{
    AddArgs, ClusterArgs, MovingArgs, NodeArgs, ReassignArgs, RebalanceArgs, RemoveArgs,
};
pub use group::{GroupCommand, ResetArgs, ResetTo};
pub use topic::{KafkaArgs, TopicCommand, TopicCreateArgs};

/// The version, with the commit where the build was given one (CHRONIK_GIT_COMMIT; a build needs no git).
pub(super) static VERSION: LazyLock<String> =
    LazyLock::new(|| version_text(option_env!("CHRONIK_GIT_COMMIT")));

fn version_text(commit: Option<&str>) -> String {
    let version = env!("CARGO_PKG_VERSION");
    match commit.filter(|commit| !commit.is_empty()) {
        Some(commit) => format!("{version} ({commit})"),
        None => version.to_owned(),
    }
}

const EXAMPLES: &str = "\
Examples:
  chronik-server
      Start a broker on 127.0.0.1:9092 that keeps its data in ./data
  chronik-server --data-dir /var/lib/chronik --advertised-addr broker1.example.net:9092
      Start a broker that other machines are to reach (with kafka_addr = \"0.0.0.0:9092\" set)
  chronik-server config check --config /etc/chronik.toml
      Check the settings and show where each comes from
  chronik-server wal verify /var/lib/chronik
      Check every byte of the write-ahead logs of a stopped broker
  chronik-server latency
      Show how long each stage of a request takes in the running broker
  chronik-server topic create orders --partitions 6
      Make a topic; any broker can be asked, also from elsewhere with --bootstrap HOST:PORT
  chronik-server group describe billing
      Show what a consumer group has committed and how far behind it is
  chronik-server cluster status
      Show the nodes of a cluster, who leads how much, and replicas that are behind

Settings come from defaults, the TOML file, CHRONIK_* variables and flags, the later ones winning.
`chronik-server config reference` explains each. RUST_LOG sets what is logged (default: info).
Exit codes: 0 stopped as asked, 2 settings, 3 kernel or limits, 4 data directory, 5 damaged log,
6 port in use, 7 log failed while running, 1 anything else.";

/// A Kafka-compatible broker: one shard per core, each with its own io_uring write-ahead log.
///
/// Without a command it runs the broker: alone, or as a node of a cluster if its settings say so.
#[derive(Debug, Parser)]
#[command(
    name = "chronik-server",
    version = VERSION.as_str(),
    after_help = EXAMPLES,
    max_term_width = 100,
    subcommand_help_heading = "Commands"
)]
pub struct Cli {
    #[command(flatten)]
    pub server: ServerArgs,
    /// Accepted for older command lines; every node runs Raft.
    #[arg(long, hide = true)]
    pub raft: bool,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the broker (the same as without a command)
    Standalone(ServerArgs),
    /// Check or explain the settings
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Look into the write-ahead logs of a broker that does not run
    Wal {
        #[command(subcommand)]
        command: WalCommand,
    },
    /// Show the latencies of a running broker, stage by stage
    Latency(LatencyArgs),
    /// List, make, change and delete topics
    Topic {
        #[command(subcommand)]
        command: TopicCommand,
    },
    /// List, look at, delete and reset consumer groups
    Group {
        #[command(subcommand)]
        command: GroupCommand,
    },
    /// Look after a running cluster
    Cluster {
        #[command(subcommand)]
        command: ClusterCommand,
    },
    /// Show the version
    Version,
}

/// What to do with a cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show the nodes, who leads how much, and replicas that are behind
    Status(ClusterArgs),
    /// Show how a new node is to be started, if its id and addresses are free
    Add(AddArgs),
    /// Take a node out of service: it hands over what it leads and gets no new replicas
    Drain(NodeArgs),
    /// Let a drained node serve again
    Undrain(NodeArgs),
    /// Move all that a node has to others, and take it out of the cluster
    Remove(RemoveArgs),
    /// Spread replicas and leaderships evenly over the nodes
    Rebalance(RebalanceArgs),
    /// Move the replicas of a partition to certain nodes, or give topics more or fewer replicas
    #[command(override_usage = cluster::REASSIGN_USAGE)]
    Reassign(ReassignArgs),
}

/// What to do with settings.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the settings and print those in effect, as TOML, with the source of each
    Check(Box<ServerArgs>),
    /// Print every setting with its meaning, range, variable and default, as a TOML file
    Reference,
}

/// What to do with write-ahead logs.
#[derive(Debug, Subcommand)]
pub enum WalCommand {
    /// Print what is in every file, block by block
    Inspect(WalArgs),
    /// Check every block and payload; exit code 5 if something is damaged
    Verify(WalArgs),
    /// Show what a repair of damaged files would lose; with --accept-loss, do it
    Repair {
        #[command(flatten)]
        args: WalArgs,
        /// Give up the damaged records, so that the rest can be used
        #[arg(long)]
        accept_loss: bool,
    },
}

impl WalCommand {
    pub(super) fn args(&self) -> &WalArgs {
        match self {
            WalCommand::Inspect(args)
            | WalCommand::Verify(args)
            | WalCommand::Repair { args, .. } => args,
        }
    }
}

/// Which logs, and how to print.
#[derive(Debug, Args)]
pub struct WalArgs {
    /// A data directory, or one shard's log directory
    pub dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags that set settings.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Settings")]
pub struct ServerArgs {
    /// Read settings from this TOML file [env: CHRONIK_CONFIG]
    #[arg(long, short = 'c', value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Keep all data below this directory [env: CHRONIK_DATA_DIR]
    #[arg(long, short = 'd', value_name = "DIR")]
    pub data_dir: Option<String>,
    /// This node's id, which clients see as broker id [env: CHRONIK_NODE_ID]
    #[arg(long, value_name = "ID")]
    pub node_id: Option<String>,
    /// Listen for Kafka clients on this address [env: CHRONIK_KAFKA_ADDR]
    #[arg(long, value_name = "IP:PORT")]
    pub kafka_addr: Option<String>,
    /// Listen for Kafka clients on this port [env: CHRONIK_KAFKA_PORT]
    #[arg(long, value_name = "PORT")]
    pub kafka_port: Option<String>,
    /// Tell clients to connect to this address [env: CHRONIK_ADVERTISED_ADDR]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertised_addr: Option<String>,
    /// Listen for other nodes on this address [env: CHRONIK_RAFT_ADDR]
    #[arg(long, value_name = "IP:PORT")]
    pub raft_addr: Option<String>,
    /// Serve metrics, readiness and `chronik-server cluster` on this address [env: CHRONIK_ADMIN_ADDR]
    #[arg(long, value_name = "IP:PORT")]
    pub admin_addr: Option<String>,
    /// Begin a cluster with this node, for others to join [env: CHRONIK_CLUSTER_BOOTSTRAP]
    #[arg(long)]
    pub bootstrap: bool,
    /// Join a running cluster by the Raft address of any of its nodes [env: CHRONIK_CLUSTER_JOIN]
    #[arg(long, value_name = "HOST:PORT")]
    pub join: Option<String>,
    #[arg(long, hide = true)]
    pub take_over: bool,
}

impl ServerArgs {
    /// Flags may stand before and after the command; those after it count more.
    #[must_use]
    pub fn overridden_by(self, later: ServerArgs) -> ServerArgs {
        ServerArgs {
            config: later.config.or(self.config),
            data_dir: later.data_dir.or(self.data_dir),
            node_id: later.node_id.or(self.node_id),
            kafka_addr: later.kafka_addr.or(self.kafka_addr),
            kafka_port: later.kafka_port.or(self.kafka_port),
            advertised_addr: later.advertised_addr.or(self.advertised_addr),
            raft_addr: later.raft_addr.or(self.raft_addr),
            admin_addr: later.admin_addr.or(self.admin_addr),
            bootstrap: later.bootstrap || self.bootstrap,
            join: later.join.or(self.join),
            take_over: later.take_over || self.take_over,
        }
    }
}

/// How to show latencies.
#[derive(Debug, Args)]
pub struct LatencyArgs {
    /// The running broker's admin address; otherwise it is taken from the settings
    #[arg(long, value_name = "IP:PORT")]
    pub admin: Option<SocketAddr>,
    /// Print JSON
    #[arg(long, conflicts_with = "hgrm")]
    pub json: bool,
    /// Print one stage's percentile distribution as an .hgrm file, for HdrHistogram's plotters
    #[arg(long, value_name = "STAGE")]
    pub hgrm: Option<String>,
    /// Read settings from this TOML file [env: CHRONIK_CONFIG]
    #[arg(long, short = 'c', value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Take the settings of this node [env: CHRONIK_NODE_ID]
    #[arg(long, value_name = "ID")]
    pub node_id: Option<String>,
}
