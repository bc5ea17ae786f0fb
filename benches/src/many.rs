//! `many`: what a partition costs in memory, and how long it takes until all of many take writes.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use chronik_net::client::Client;
use clap::Args;
use kafka_protocol::messages::ProduceRequest;
use serde::Serialize;

use crate::broker::Broker;
use crate::clock::{Clock, SECOND_NS, ns_to_ms};
use crate::cluster::{Cluster, Launch};
use crate::report::{Progress, Table, ms, publish};
use crate::wire::{self, CREATE_TOPICS, PRODUCE, check_code, error_name};
use crate::{flags, topics};

/// How long the broker may take for all of it.
const DEADLINE: Duration = Duration::from_secs(600);
/// Partitions of one produce request.
const REQUEST_PARTITIONS_MAX: usize = 500;
/// Pause before partitions that refused are asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(2);

/// Arguments of `many`.
#[derive(Debug, Clone, Args)]
pub struct ManyArgs {
    #[command(flatten)]
    launch: Launch,
    /// Partitions
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(i32).range(1..=1_000_000))]
    partitions: i32,
    /// Bytes of the record that is written to each
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    record_bytes: u32,
    /// Pause before each look at the memory
    #[arg(long, value_parser = flags::seconds, default_value = "2")]
    settle_seconds: Duration,
    /// One JSON line on standard output, the table on standard error
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    partitions: i32,
    /// From sending CreateTopics to its answer.
    created_ms: f64,
    /// From sending CreateTopics until every partition had acknowledged a produce.
    writable_ms: f64,
    memory_before_bytes: u64,
    memory_after_bytes: u64,
    bytes_per_partition: i64,
    /// Produces that were refused and sent again.
    refused: u64,
}

/// Runs `many`.
pub fn run(args: &ManyArgs) -> Result<()> {
    let mut cluster = Cluster::launch(&args.launch, 1)?;
    let broker = cluster.broker(1)?;
    let report = measure(broker, args).with_context(|| broker.log_tail())?;
    drop(cluster);
    publish(args.json, "many", &table(&report), &report)
}

fn measure(broker: &Broker, args: &ManyArgs) -> Result<Report> {
    let progress = Progress::new();
    let batch = wire::random_batch(1, usize::try_from(args.record_bytes)?)?;
    let names = [topics::fresh_name("many")];
    let mut client = Client::connect(broker.kafka(), DEADLINE)?;
    std::thread::sleep(args.settle_seconds);
    let memory_before_bytes = broker.memory_bytes()?;
    let clock = Clock::start();
    progress.say("creating");
    let request = topics::create_request(&names, args.partitions, -1);
    let answer = client.call(&request, CREATE_TOPICS).context("creating the topic")?;
    let created = answer.topics.first().context("an answer without the topic")?;
    check_code("creating the topic", created.error_code)?;
    let created_ms = ns_to_ms(clock.now_ns());
    let refused = write_all(&mut client, &names[0], args.partitions, &batch, clock, &progress)?;
    let writable_ms = ns_to_ms(clock.now_ns());
    std::thread::sleep(args.settle_seconds);
    let memory_after_bytes = broker.memory_bytes()?;
    Ok(Report {
        partitions: args.partitions,
        created_ms,
        writable_ms,
        memory_before_bytes,
        memory_after_bytes,
        bytes_per_partition: per_partition(
            memory_before_bytes,
            memory_after_bytes,
            args.partitions,
        )?,
        refused,
    })
}

/// Produces to every partition until it has acknowledged once; how many produces were refused meanwhile.
fn write_all(
    client: &mut Client,
    topic: &str,
    partitions: i32,
    batch: &Bytes,
    clock: Clock,
    progress: &Progress,
) -> Result<u64> {
    let deadline_ns = DEADLINE.as_secs() * SECOND_NS;
    let mut open: BTreeSet<i32> = (0..partitions).collect();
    let mut refused = 0;
    while !open.is_empty() {
        progress.say(&format!("{} of {partitions} partitions to go", open.len()));
        let mut refusal = None;
        let asked: Vec<i32> = open.iter().copied().collect();
        for chunk in asked.chunks(REQUEST_PARTITIONS_MAX) {
            let request = wire::produce_all_request(topic, chunk.iter().copied(), -1, batch);
            let answer = client.call::<ProduceRequest>(&request, PRODUCE).context("producing")?;
            let answered = answer.responses.first().context("an answer without the topic")?;
            for partition in &answered.partition_responses {
                if partition.error_code == 0 && partition.base_offset >= 0 {
                    open.remove(&partition.index);
                } else {
                    refused += 1;
                    refusal = Some((partition.index, partition.error_code));
                }
            }
        }
        if let Some((partition, code)) = refusal {
            if clock.now_ns() > deadline_ns {
                bail!("partition {partition} still answers {}", error_name(code));
            }
            std::thread::sleep(RETRY_PAUSE);
        }
    }
    Ok(refused)
}

fn per_partition(before: u64, after: u64, partitions: i32) -> Result<i64> {
    let grown = i64::try_from(after)? - i64::try_from(before)?;
    Ok(grown / i64::from(partitions))
}

fn table(report: &Report) -> String {
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let mut table = Table::default();
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("partitions", report.partitions.to_string());
    row("CreateTopics answered, ms", ms(report.created_ms));
    row("every partition has acknowledged, ms", ms(report.writable_ms));
    row("produces refused meanwhile", report.refused.to_string());
    row("resident memory before, MiB", mib(report.memory_before_bytes));
    row("resident memory after, MiB", mib(report.memory_after_bytes));
    row("bytes per partition", report.bytes_per_partition.to_string());
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_memory_that_grew_or_shrank_when_divided_then_the_sign_stays() {
        assert_eq!(per_partition(1_000, 3_000, 10).unwrap(), 200);
        assert_eq!(per_partition(3_000, 1_000, 10).unwrap(), -200);
    }
}
