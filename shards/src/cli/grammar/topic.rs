//! What can be written after `chronik-server topic`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Which cluster to ask, and how to print.
#[derive(Debug, Clone, Default, Args)]
pub struct KafkaArgs {
    /// The Kafka address of any running broker, or of several with commas; otherwise it is taken from the settings
    #[arg(long, short = 'b', value_name = "HOST:PORT")]
    pub bootstrap: Option<String>,
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

/// What to do with topics.
#[derive(Debug, Subcommand)]
pub enum TopicCommand {
    /// Print the topics, or those whose names are given
    List {
        /// Names
        names: Vec<String>,
        /// Those that the cluster made for itself, too
        #[arg(long)]
        internal: bool,
        #[command(flatten)]
        kafka: KafkaArgs,
    },
    /// Print the partitions of topics, with leaders, replicas and offsets, and what is set on the topics
    Describe {
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        kafka: KafkaArgs,
    },
    /// Make topics
    Create(TopicCreateArgs),
    /// Delete topics, with all that is in them
    Delete {
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        kafka: KafkaArgs,
    },
    /// Give topics more partitions
    AlterPartitions {
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
        /// How many partitions each is to have
        #[arg(long, short = 'p', value_name = "COUNT")]
        partitions: i32,
        #[command(flatten)]
        kafka: KafkaArgs,
    },
    /// Set or reset configurations of topics
    AlterConfig {
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
        /// Set a configuration
        #[arg(long, short = 's', value_name = "KEY=VALUE")]
        set: Vec<String>,
        /// Go back to the default
        #[arg(long, short = 'd', value_name = "KEY")]
        delete: Vec<String>,
        #[command(flatten)]
        kafka: KafkaArgs,
    },
}

/// Topics to make.
#[derive(Debug, Args)]
pub struct TopicCreateArgs {
    /// Names
    #[arg(required = true)]
    pub names: Vec<String>,
    /// How many partitions; otherwise what the broker is set to
    #[arg(long, short = 'p', value_name = "COUNT", default_value_t = -1, hide_default_value = true)]
    pub partitions: i32,
    /// How many replicas; otherwise what the broker is set to
    #[arg(long, short = 'r', value_name = "COUNT", default_value_t = -1, hide_default_value = true)]
    pub replication_factor: i16,
    /// The brokers of each partition from 0 on, the preferred leader first, as in 1:2,2:3 for two partitions
    #[arg(long, value_name = "ID:ID,…", conflicts_with_all = ["partitions", "replication_factor"])]
    pub replica_assignment: Option<String>,
    /// Set a configuration
    #[arg(long = "topic-config", short = 't', value_name = "KEY=VALUE")]
    pub configs: Vec<String>,
    /// Only say whether they could be made
    #[arg(long)]
    pub validate_only: bool,
    #[command(flatten)]
    pub kafka: KafkaArgs,
}
