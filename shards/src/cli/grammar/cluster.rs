//! What can be written after `chronik-server cluster`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

/// Which cluster to look after, and how to print.
#[derive(Debug, Clone, Default, Args)]
pub struct ClusterArgs {
    /// The admin address of any running broker of it; otherwise it is taken from the settings
    #[arg(long, value_name = "IP:PORT")]
    pub admin: Option<SocketAddr>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Read settings from this TOML file [env: CHRONIK_CONFIG]
    #[arg(long, short = 'c', value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Take the settings of this node [env: CHRONIK_NODE_ID]
    #[arg(long, value_name = "ID")]
    pub node_id: Option<String>,
}

/// Which node to add.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// The Raft address of the new node
    #[arg(value_name = "HOST:PORT")]
    pub raft_addr: String,
    /// Its id; otherwise one that is free
    #[arg(long, value_name = "ID")]
    pub id: Option<u32>,
    /// Where its clients are to reach it
    #[arg(long, value_name = "HOST:PORT")]
    pub kafka_addr: Option<String>,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Which node to drain, or to let in again.
#[derive(Debug, Args)]
pub struct NodeArgs {
    /// The node's id
    pub node: u32,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// Which node to remove.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The node's id
    pub node: u32,
    /// Where too few nodes are left, let partitions have fewer replicas; the last node may run without a cluster then
    #[arg(long)]
    pub fewer_replicas: bool,
    #[command(flatten)]
    pub moving: MovingArgs,
}

/// How to spread replicas.
#[derive(Debug, Args)]
pub struct RebalanceArgs {
    /// Move at most so many replicas
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    pub moves_max: usize,
    #[command(flatten)]
    pub moving: MovingArgs,
}

/// Every form of it: what clap makes of the arguments is the first one alone.
pub(super) const REASSIGN_USAGE: &str = "\
chronik-server cluster reassign --topic TOPIC --partition NUMBER --to NODES [OPTIONS]
       chronik-server cluster reassign --topic TOPIC --partition NUMBER --cancel [OPTIONS]
       chronik-server cluster reassign --topic TOPIC --replication-factor COUNT [OPTIONS]
       chronik-server cluster reassign --all --replication-factor COUNT [OPTIONS]
       chronik-server cluster reassign --list [OPTIONS]";

/// Where a partition is to have its replicas, or how many topics are to have.
#[derive(Debug, Args)]
pub struct ReassignArgs {
    /// The topic
    #[arg(long, required_unless_present_any = ["list", "all"])]
    pub topic: Option<String>,
    /// The partition
    #[arg(long, required_unless_present_any = ["list", "replication_factor"])]
    pub partition: Option<i32>,
    /// The nodes, the one that is to lead first
    #[arg(long, value_name = "NODES", conflicts_with = "cancel", required_unless_present_any = ["cancel", "list", "replication_factor"])]
    pub to: Option<String>,
    /// Go back to where the replicas were
    #[arg(long)]
    pub cancel: bool,
    /// Give all partitions of a topic, or of all, so many replicas: more on the nodes that have the fewest, or fewer, those on
    /// drained nodes first
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..), conflicts_with_all = ["partition", "to", "cancel"])]
    pub replication_factor: Option<u16>,
    /// All topics, internal ones too
    #[arg(long, requires = "replication_factor", conflicts_with = "topic")]
    pub all: bool,
    /// Print the partitions that are moving
    #[arg(long, conflicts_with_all = ["topic", "partition", "to", "cancel", "replication_factor", "all"])]
    pub list: bool,
    #[command(flatten)]
    pub moving: MovingArgs,
}

/// How partitions are moved.
#[derive(Debug, Clone, Default, Args)]
pub struct MovingArgs {
    /// Only show what would be moved
    #[arg(long)]
    pub dry_run: bool,
    /// Move so many partitions at a time
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    pub at_a_time: usize,
    /// The Kafka addresses of brokers; otherwise the cluster says where they are
    #[arg(long, short = 'b', value_name = "HOST:PORT")]
    pub bootstrap: Option<String>,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}
