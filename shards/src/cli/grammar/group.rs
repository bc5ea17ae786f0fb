//! What can be written after `chronik-server group`.

use clap::{Args, Subcommand};

use super::topic::KafkaArgs;

/// What to do with consumer groups.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Print the groups of all brokers
    List {
        #[command(flatten)]
        kafka: KafkaArgs,
    },
    /// Print the members of groups, what they have committed, and how far behind that is
    Describe {
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        kafka: KafkaArgs,
    },
    /// Delete groups without members, with what they have committed
    Delete {
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        kafka: KafkaArgs,
    },
    /// Show what a group without members would go on from; with --execute, let it
    ResetOffsets(ResetArgs),
}

/// From where a group is to go on.
#[derive(Debug, Args)]
pub struct ResetArgs {
    /// The group
    pub name: String,
    /// A topic, or some of its partitions: orders or orders:0,3
    #[arg(long, value_name = "TOPIC[:PARTITIONS]", required_unless_present = "all_topics")]
    pub topic: Vec<String>,
    /// All topics that the group has committed offsets of
    #[arg(long, conflicts_with = "topic")]
    pub all_topics: bool,
    #[command(flatten)]
    pub to: ResetTo,
    /// Do it
    #[arg(long)]
    pub execute: bool,
    #[command(flatten)]
    pub kafka: KafkaArgs,
}

/// The place, in one of these ways.
#[derive(Debug, Clone, Default, Args)]
#[group(required = true, multiple = false)]
pub struct ResetTo {
    /// To the first record
    #[arg(long)]
    pub to_earliest: bool,
    /// To behind the last record
    #[arg(long)]
    pub to_latest: bool,
    /// To this offset
    #[arg(long, value_name = "OFFSET")]
    pub to_offset: Option<i64>,
    /// To the first record of this time or later, in milliseconds since 1970
    #[arg(long, value_name = "MS")]
    pub to_timestamp: Option<i64>,
    /// By so many records forward, or with a minus back
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    pub shift_by: Option<i64>,
}
