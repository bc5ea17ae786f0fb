//! The command line of chronik-bench.

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::failover::{self, FailoverArgs};
use crate::floor::{self, FloorArgs};
use crate::formation::{self, FormationArgs};
use crate::groups::{self, GroupsArgs};
use crate::idle::{self, IdleArgs};
use crate::many::{self, ManyArgs};
use crate::pairs::{self, PairsArgs};
use crate::produce::{self, ProduceArgs};
use crate::refill::{self, RefillArgs};
use crate::restart::{self, RestartArgs};

/// Loads any broker that speaks Kafka's protocol, and measures without coordinated omission.
#[derive(Debug, Parser)]
#[command(name = "chronik-bench", version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Acknowledged writes at a fixed rate: latency from the time each was due
    Produce(ProduceArgs),
    /// The same on two or more brokers in turn, percentiles pooled over all rounds, and their ratio
    Pairs(PairsArgs),
    /// Consumer groups: time of a rebalance, rate of offset commits
    Groups(GroupsArgs),
    /// Starts a broker, fills its log, kills it, and measures the time to the first record after a start
    Restart(RestartArgs),
    /// Starts a broker, makes many partitions: their memory, and the time until all take writes
    Many(ManyArgs),
    /// Starts three nodes, kills or stops them under load: how long clients wait for acknowledgements
    Failover(FailoverArgs),
    /// Starts processes without data: the time until they are a cluster that takes writes
    Formation(FormationArgs),
    /// Starts three nodes, makes many partitions: processor time and memory while nobody uses them
    Idle(IdleArgs),
    /// Starts three nodes, fills them, wipes one: the time until it has everything again, beside a plain copy
    Refill(RefillArgs),
    /// No broker: what the machine asks for records that three nodes make durable one by one
    Floor(FloorArgs),
}

/// Runs one measurement.
pub fn run(cli: &Cli) -> Result<()> {
    match &cli.command {
        Command::Produce(args) => produce::run(args),
        Command::Pairs(args) => pairs::run(args),
        Command::Groups(args) => groups::run(args),
        Command::Restart(args) => restart::run(args),
        Command::Many(args) => many::run(args),
        Command::Failover(args) => failover::run(args),
        Command::Formation(args) => formation::run(args),
        Command::Idle(args) => idle::run(args),
        Command::Refill(args) => refill::run(args),
        Command::Floor(args) => floor::run(args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn error_of(line: &str) -> String {
        Cli::try_parse_from(line.split(' ')).unwrap_err().to_string()
    }

    #[test]
    fn given_the_grammar_when_checked_then_it_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn given_bad_flags_when_parsed_then_the_error_names_flag_and_value() {
        let cases = [
            ("chronik-bench produce", "--bootstrap"),
            ("chronik-bench produce --bootstrap here", "HOST:PORT"),
            ("chronik-bench produce --bootstrap h:1 --rate fast", "--rate"),
            ("chronik-bench produce --bootstrap h:1 --seconds 0", "above 0"),
            ("chronik-bench produce --bootstrap h:1 --acks 2", "0, 1, all"),
            ("chronik-bench produce --bootstrap h:1 --partitions 0", "--partitions"),
            ("chronik-bench groups --bootstrap h:1 --heartbeat-ms 0", "--heartbeat-ms"),
            ("chronik-bench restart --server s --log-bytes 1GB", "GiB"),
            ("chronik-bench many --server s --set nonsense", "KEY=VALUE"),
            ("chronik-bench produce --bootstrap h:1 --pids me", "PID,PID"),
            ("chronik-bench failover --server s --by magic", "kill, hang, stop, roll, move"),
            ("chronik-bench failover", "--server"),
            ("chronik-bench formation --server s --start never", "together, last"),
            ("chronik-bench idle --server s --seconds 0", "above 0"),
            ("chronik-bench refill --server s --log-bytes 1GB", "GiB"),
            ("chronik-bench profit", "profit"),
        ];
        for (line, named) in cases {
            let error = error_of(line);
            assert!(error.contains(named), "{line}: {error}");
        }
    }

    #[test]
    fn given_full_lines_when_parsed_then_they_are_understood() {
        let lines = [
            "chronik-bench produce --bootstrap h:1 --rate 0 --inflight 8 --acks -1 --json",
            "chronik-bench pairs --bootstrap h:1 --bootstrap h:2 --rounds 10 --seconds 60",
            "chronik-bench groups --bootstrap h:1 --members 50 --heartbeat-ms 3000,100",
            "chronik-bench groups --bootstrap h:1 --commits --connections 4 --inflight 8",
            "chronik-bench restart --server s --data-dir d --log-bytes 1GiB,4GiB --rounds 3",
            "chronik-bench many --server s --partitions 1000 --set shards=2",
            "chronik-bench pairs --bootstrap h:1 --bootstrap h:2 --pids 1,2,3 --pids 4,5,6",
            "chronik-bench failover --server s --by roll --rounds 3 --rate 1000",
            "chronik-bench formation --server s --rounds 20 --start together,last",
            "chronik-bench idle --server s --partitions 10000 --seconds 30",
            "chronik-bench refill --server s --log-bytes 1GiB --behind --beside-rate 200",
        ];
        for line in lines {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }
}
