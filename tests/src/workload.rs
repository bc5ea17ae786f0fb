//! A real client's load: an idempotent librdkafka producer of numbered records, and a consumer that reads all of it.
//!
//! Every record's bytes follow from its [`RecordId`], so that whoever reads one can tell whether it is whole and where it
//! belongs. What the producer was told goes into a [`Ledger`]; nothing here judges it.

#![expect(clippy::disallowed_methods, reason = "the load runs against real brokers on real time")]

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;

use crate::checker::{Ledger, PartitionLog, ReadRecord};
use crate::scratch::wait_for;

/// Run, partition and sequence in front of a value.
const HEADER_BYTES: usize = 8 + 4 + 8;
/// The checksum behind it.
const CRC_BYTES: usize = 4;
/// Filler of most records is shorter than this …
const FILLER_SMALL_MAX: usize = 1_500;
/// … and of one record in [`LARGE_ONE_IN`] shorter than this.
const FILLER_LARGE_MAX: usize = 150_000;
const LARGE_ONE_IN: u32 = 100;
/// Records handed to the producer and not yet acknowledged.
const IN_FLIGHT_MAX: i32 = 400;

/// Which record this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecordId {
    /// The producer's run.
    pub run: u64,
    /// The partition it was sent to.
    pub partition: i32,
    /// Its number among the records sent there, from 0.
    pub sequence: u64,
}

impl RecordId {
    /// The value of the record, which follows from its id alone.
    #[must_use]
    pub fn value(&self) -> Vec<u8> {
        let mut value = Vec::new();
        value.extend_from_slice(&self.run.to_be_bytes());
        value.extend_from_slice(&self.partition.to_be_bytes());
        value.extend_from_slice(&self.sequence.to_be_bytes());
        let mut rng = StdRng::seed_from_u64(u64::from(crc32fast::hash(&value)));
        let max =
            if rng.random_ratio(1, LARGE_ONE_IN) { FILLER_LARGE_MAX } else { FILLER_SMALL_MAX };
        let mut filler = vec![0; rng.random_range(0..max)];
        rng.fill_bytes(&mut filler);
        value.extend_from_slice(&filler);
        let crc = crc32fast::hash(&value);
        value.extend_from_slice(&crc.to_be_bytes());
        value
    }

    /// The id in a value whose checksum is right.
    #[must_use]
    pub fn decode(value: &[u8]) -> Option<RecordId> {
        if value.len() < HEADER_BYTES + CRC_BYTES {
            return None;
        }
        let (body, crc) = value.split_at(value.len() - CRC_BYTES);
        if crc32fast::hash(body).to_be_bytes() != crc {
            return None;
        }
        let (run, rest) = body.split_first_chunk()?;
        let (partition, rest) = rest.split_first_chunk()?;
        let (sequence, _) = rest.split_first_chunk()?;
        Some(RecordId {
            run: u64::from_be_bytes(*run),
            partition: i32::from_be_bytes(*partition),
            sequence: u64::from_be_bytes(*sequence),
        })
    }
}

/// What the producer says of one record.
#[derive(Debug)]
struct Report {
    id: RecordId,
    result: Result<i64, KafkaError>,
}

struct ReportContext {
    reports: Sender<Report>,
}

impl ClientContext for ReportContext {}

impl ProducerContext for ReportContext {
    type DeliveryOpaque = Box<RecordId>;

    fn delivery(&self, delivery: &DeliveryResult<'_>, id: Box<RecordId>) {
        let result = match delivery {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error.clone()),
        };
        // The other end is gone only while the load is being dropped.
        let _sent = self.reports.send(Report { id: *id, result });
    }
}

/// A producer that outlives restarts of its broker, and what it was told.
pub struct Load {
    producer: BaseProducer<ReportContext>,
    reports: Receiver<Report>,
    topic: String,
    run: u64,
    next: Vec<u64>,
    rng: StdRng,
    /// What is known so far.
    pub ledger: Ledger,
}

impl std::fmt::Debug for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Load").field("topic", &self.topic).field("run", &self.run).finish()
    }
}

/// Settings of a client that soon looks elsewhere when a node is silent but not gone.
pub const IMPATIENT: [(&str, &str); 3] = [
    ("socket.timeout.ms", "2000"),
    ("request.timeout.ms", "2000"),
    ("socket.connection.setup.timeout.ms", "1000"),
];

/// The codecs a load picks from.
pub const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];

impl Load {
    /// An idempotent producer with acks=all on a topic that has `partitions` partitions and no other writer.
    pub fn connect(bootstrap: &str, topic: &str, partitions: usize, seed: u64) -> Result<Load> {
        Load::connect_with(bootstrap, topic, partitions, seed, &[])
    }

    /// The same with more settings of librdkafka.
    pub fn connect_with(
        bootstrap: &str,
        topic: &str,
        partitions: usize,
        seed: u64,
        settings: &[(&str, &str)],
    ) -> Result<Load> {
        let mut rng = StdRng::seed_from_u64(seed);
        let codec = CODECS[rng.random_range(0..CODECS.len())];
        let (sender, reports) = channel();
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", bootstrap)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("compression.codec", codec)
            .set("linger.ms", "1")
            // Nothing may be given up on while the broker is down.
            .set("message.timeout.ms", "300000")
            .set("reconnect.backoff.ms", "10")
            .set("reconnect.backoff.max.ms", "100")
            .set("retry.backoff.ms", "20");
        for (name, value) in settings {
            config.set(*name, *value);
        }
        let producer = config.create_with_context(ReportContext { reports: sender })?;
        Ok(Load {
            producer,
            reports,
            topic: topic.to_owned(),
            run: seed,
            next: vec![0; partitions],
            rng,
            ledger: Ledger::new(seed, partitions),
        })
    }

    /// Sends until `acks` more records are acknowledged, and returns at once then, with others still in flight.
    pub fn run_until_acked(&mut self, acks: usize, deadline: Duration) -> Result<()> {
        let goal = self.ledger.acked() + acks;
        let is_there = |ledger: &Ledger| (ledger.acked() >= goal).then_some(());
        self.run_until(&format!("{goal} records are acknowledged"), deadline, is_there)
    }

    /// The same until each partition has so many more.
    pub fn run_until_each_acked(&mut self, acks: usize, deadline: Duration) -> Result<()> {
        let before = self.ledger.acked_of_each();
        let is_there = |ledger: &Ledger| {
            let now = ledger.acked_of_each();
            now.iter().zip(&before).all(|(now, before)| *now >= before + acks).then_some(())
        };
        self.run_until(
            &format!("{acks} more are acknowledged of each partition"),
            deadline,
            is_there,
        )
    }

    /// Sends all the time until `probe` finds something.
    pub fn run_until<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut probe: impl FnMut(&Ledger) -> Option<T>,
    ) -> Result<T> {
        let until = Instant::now() + deadline;
        loop {
            if let Some(found) = probe(&self.ledger) {
                return Ok(found);
            }
            while self.producer.in_flight_count() < IN_FLIGHT_MAX {
                self.send_next()?;
            }
            self.take_reports()?;
            ensure!(
                Instant::now() < until,
                "{what}: did not happen within {deadline:?}; acknowledged: {:?}",
                self.ledger.acked_of_each()
            );
        }
    }

    /// Sends for so long, whether or not anything is acknowledged.
    pub fn run_for(&mut self, duration: Duration) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < duration {
            if self.producer.in_flight_count() < IN_FLIGHT_MAX {
                self.send_next()?;
            }
            self.take_reports()?;
        }
        Ok(())
    }

    /// Sends nothing more and waits until everything sent is acknowledged.
    pub fn drain(&mut self, deadline: Duration) -> Result<()> {
        let until = Instant::now() + deadline;
        while self.acked_u64()? < self.ledger.sent() {
            self.take_reports()?;
            let (acked, sent) = (self.ledger.acked(), self.ledger.sent());
            ensure!(Instant::now() < until, "{acked} of {sent} acknowledged within {deadline:?}");
        }
        Ok(())
    }

    fn acked_u64(&self) -> Result<u64> {
        Ok(u64::try_from(self.ledger.acked())?)
    }

    fn send_next(&mut self) -> Result<()> {
        let partition = self.rng.random_range(0..self.next.len());
        let id = RecordId {
            run: self.run,
            partition: i32::try_from(partition)?,
            sequence: self.next[partition],
        };
        let value = id.value();
        let key = id.sequence.to_be_bytes();
        let record = BaseRecord::with_opaque_to(&self.topic, Box::new(id))
            .partition(id.partition)
            .key(&key)
            .payload(&value);
        match self.producer.send(record) {
            Ok(()) => {
                self.ledger.on_sent(id);
                self.next[partition] += 1;
                Ok(())
            }
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                self.take_reports()
            }
            Err((error, _)) => Err(error).context("handing a record to the producer"),
        }
    }

    fn take_reports(&mut self) -> Result<()> {
        self.producer.poll(Duration::from_millis(2));
        while let Ok(report) = self.reports.try_recv() {
            match report.result {
                Ok(offset) => self.ledger.on_acked(report.id, offset)?,
                Err(error) => bail!("{:?} was not acknowledged: {error}", report.id),
            }
        }
        if let Some((code, reason)) = self.producer.client().fatal_error() {
            bail!("the producer gave up: {code}: {reason}");
        }
        Ok(())
    }

    /// The topic that is written to.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// How many partitions of it.
    #[must_use]
    pub fn partitions(&self) -> usize {
        self.next.len()
    }
}

/// A consumer that is told what to read and commits nothing.
pub fn consumer(bootstrap: &str) -> Result<BaseConsumer> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "unused")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        .set("reconnect.backoff.ms", "10")
        .set("reconnect.backoff.max.ms", "100")
        .set("fetch.error.backoff.ms", "20")
        .create()?)
}

/// Reads every partition of a topic from offset 0 up to the high watermark it has now.
pub fn read_topic(
    bootstrap: &str,
    topic: &str,
    partitions: usize,
    deadline: Duration,
) -> Result<Vec<PartitionLog>> {
    let until = Instant::now() + deadline;
    let consumer = consumer(bootstrap)?;
    let mut logs = vec![PartitionLog::default(); partitions];
    let mut assignment = TopicPartitionList::new();
    let mut open = 0;
    for (index, log) in logs.iter_mut().enumerate() {
        let partition = i32::try_from(index)?;
        let (low, high) = watermarks(&consumer, topic, partition, deadline)?;
        ensure!(low == 0, "{topic}-{partition} starts at {low}");
        log.high_watermark = high;
        if high > 0 {
            assignment.add_partition_offset(topic, partition, Offset::Offset(0))?;
            open += 1;
        }
    }
    consumer.assign(&assignment)?;
    while open > 0 {
        ensure!(
            Instant::now() < until,
            "{topic} was not read within {deadline:?}: {}",
            progress(&logs)
        );
        let Some(polled) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = match polled {
            Ok(message) => message,
            Err(error) if is_transient(&error) => continue,
            Err(error) => return Err(error).context(format!("reading {topic}")),
        };
        let log = &mut logs[usize::try_from(message.partition())?];
        if message.offset() >= log.high_watermark {
            continue;
        }
        let value = message.payload().unwrap_or_default().to_vec();
        log.records.push(ReadRecord { offset: message.offset(), value });
        if message.offset() + 1 == log.high_watermark {
            open -= 1;
        }
    }
    Ok(logs)
}

/// Lowest offset and high watermark; asked again while the broker says that it is not (yet) the leader, as any client does.
fn watermarks(
    consumer: &BaseConsumer,
    topic: &str,
    partition: i32,
    deadline: Duration,
) -> Result<(i64, i64)> {
    let found =
        wait_for(&format!("{topic}-{partition} has a leader"), deadline, || {
            match consumer.fetch_watermarks(topic, partition, deadline) {
                Err(error) if is_retriable(&error) => None,
                other => Some(other),
            }
        })?;
    found.with_context(|| format!("watermarks of {topic}-{partition}"))
}

/// Where a partition has no leader for a moment; librdkafka calls one without a leader unknown, too.
fn is_retriable(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::BrokerTransportFailure
        )
    )
}

fn progress(logs: &[PartitionLog]) -> String {
    let parts: Vec<String> =
        logs.iter().map(|log| format!("{}/{}", log.records.len(), log.high_watermark)).collect();
    parts.join(" ")
}

/// Whether librdkafka goes on by itself after this (a broker that is down for a moment).
fn is_transient(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::UnsupportedFeature
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::OperationTimedOut
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_record_when_its_value_is_decoded_then_its_id_is_found_and_the_value_is_always_the_same()
     {
        let id = RecordId { run: 3, partition: 5, sequence: 900 };
        assert_eq!(RecordId::decode(&id.value()), Some(id));
        assert_eq!(id.value(), id.value());
        assert_ne!(id.value(), RecordId { sequence: 901, ..id }.value());
    }

    #[test]
    fn given_a_damaged_value_when_decoded_then_it_is_refused() {
        let mut value = RecordId { run: 3, partition: 5, sequence: 900 }.value();
        value[HEADER_BYTES - 1] ^= 1;
        assert_eq!(RecordId::decode(&value), None);
        assert_eq!(RecordId::decode(&[]), None);
    }
}
