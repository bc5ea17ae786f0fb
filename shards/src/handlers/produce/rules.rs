//! What a topic demands of the records of a batch: their timestamps, and keys where it is compacted.
//!
//! - I1: records are decoded only where a topic's own settings ask for what the header does not tell, or the header tells
//!   what cannot be. By Kafka's defaults and with today's clients the header is enough.
//! - I2: what is decoded is bounded, as it happens on the core: a batch that unpacks to more is refused.

use chronik_engine::batch::{BatchError, NO_TIMESTAMP, RecordBatch};
use kafka_protocol::ResponseError;

use crate::catalog::{TimestampType, TopicSettings};

/// What a batch may unpack to where its records are looked at.
const UNPACKED_BYTES_MAX: usize = 16 << 20;

/// Records that an answer names at most.
const NAMED_RECORDS_MAX: usize = 100;

/// Why a batch is refused, and for which of its records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) error: ResponseError,
    pub(super) why: String,
    /// Their places in the batch, and what is wrong with each.
    pub(super) records: Vec<(i32, String)>,
}

impl From<(ResponseError, String)> for Refusal {
    fn from((error, why): (ResponseError, String)) -> Refusal {
        Refusal { error, why, records: Vec::new() }
    }
}

/// The batch as the topic takes it.
///
/// # Errors
/// Why it does not.
pub(super) fn settle(
    batch: RecordBatch,
    settings: &TopicSettings,
    now_ms: i64,
) -> Result<RecordBatch, Refusal> {
    let stamps = settings.timestamp_type == TimestampType::LogAppendTime;
    let batch = if stamps { batch } else { with_greatest_timestamp(batch)? };
    let range = Range::of(settings, now_ms);
    let decodes = settings.cleanup.compact || (!stamps && range.needs_records());
    if decodes {
        check_records(&batch, settings.cleanup.compact, (!stamps).then_some(range))?;
    } else if !stamps && batch.max_timestamp_ms() > range.latest {
        return Err(Refusal {
            error: ResponseError::InvalidTimestamp,
            why: ONE_OR_MORE_TIMESTAMPS.to_owned(),
            records: vec![(0, range.message(batch.max_timestamp_ms(), 0))],
        });
    }
    Ok(if stamps { batch.with_log_append_time(now_ms) } else { batch })
}

/// Some clients leave the greatest timestamp out of the header (Sarama before March 2025): retention and searches by time would
/// never find such records. It is taken from the records then, as Kafka does with all of them.
fn with_greatest_timestamp(batch: RecordBatch) -> Result<RecordBatch, Refusal> {
    if batch.max_timestamp_ms() >= batch.base_timestamp_ms() {
        return Ok(batch);
    }
    let mut greatest_ms = NO_TIMESTAMP;
    for record in batch.records(UNPACKED_BYTES_MAX).map_err(unreadable)? {
        let delta = record.map_err(unreadable)?.timestamp_delta;
        greatest_ms = greatest_ms.max(batch.base_timestamp_ms().saturating_add(delta));
    }
    Ok(batch.with_max_timestamp(greatest_ms))
}

fn unreadable(error: BatchError) -> Refusal {
    Refusal::from((ResponseError::InvalidRecord, error.to_string()))
}

const ONE_OR_MORE_TIMESTAMPS: &str =
    "One or more records have been rejected due to invalid timestamp";
const ONE_OR_MORE: &str = "One or more records have been rejected";

/// The timestamps that a topic takes now.
#[derive(Debug, Clone, Copy)]
struct Range {
    earliest: i64,
    latest: i64,
}

impl Range {
    fn of(settings: &TopicSettings, now_ms: i64) -> Range {
        Range {
            earliest: now_ms.saturating_sub(settings.timestamp_before_ms_max),
            latest: now_ms.saturating_add(settings.timestamp_after_ms_max),
        }
    }

    /// The header tells the greatest timestamp, not the least.
    fn needs_records(self) -> bool {
        self.earliest > 0
    }

    fn message(self, timestamp: i64, record: i32) -> String {
        format!(
            "Timestamp {timestamp} of message with offset {record} is out of range. The timestamp should be within \
             [{}, {}]",
            self.earliest, self.latest
        )
    }
}

fn check_records(
    batch: &RecordBatch,
    needs_key: bool,
    range: Option<Range>,
) -> Result<(), Refusal> {
    let mut early_or_late = Vec::new();
    let mut keyless = Vec::new();
    for (index, record) in (0..).zip(batch.records(UNPACKED_BYTES_MAX).map_err(unreadable)?) {
        let record = record.map_err(unreadable)?;
        let timestamp = batch.base_timestamp_ms().saturating_add(record.timestamp_delta);
        if let Some(range) = range
            && timestamp != NO_TIMESTAMP
            && (timestamp < range.earliest || timestamp > range.latest)
            && early_or_late.len() < NAMED_RECORDS_MAX
        {
            early_or_late.push((index, range.message(timestamp, record.offset_delta)));
        }
        if needs_key && record.key.is_none() && keyless.len() < NAMED_RECORDS_MAX {
            keyless.push((index, "Compacted topic cannot accept message without key".to_owned()));
        }
    }
    if !keyless.is_empty() {
        let error = ResponseError::InvalidRecord;
        return Err(Refusal { error, why: ONE_OR_MORE.to_owned(), records: keyless });
    }
    if !early_or_late.is_empty() {
        let error = ResponseError::InvalidTimestamp;
        let why = ONE_OR_MORE_TIMESTAMPS.to_owned();
        return Err(Refusal { error, why, records: early_or_late });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeMap;

    use chronik_engine::batch::{BatchBuilder, TimestampType as BatchTime};

    use super::*;

    const NOW_MS: i64 = 1_000_000_000;

    fn settings(pairs: &[(&str, &str)]) -> TopicSettings {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        TopicSettings::from_configs(&pairs.collect::<BTreeMap<_, _>>())
    }

    fn batch(timestamps: &[i64]) -> RecordBatch {
        let mut builder = BatchBuilder::new();
        for timestamp in timestamps {
            builder = builder.record(*timestamp, None, Some(b"v"));
        }
        builder.build().unwrap()
    }

    #[test]
    fn given_defaults_when_settled_then_only_what_is_an_hour_ahead_is_refused() {
        let settings = settings(&[]);
        let kept = settle(batch(&[0, NOW_MS + 3_600_000]), &settings, NOW_MS).unwrap();
        assert_eq!(kept.timestamp_type(), BatchTime::CreateTime);
        let refused = settle(batch(&[NOW_MS + 3_600_001]), &settings, NOW_MS).unwrap_err();
        assert_eq!(refused.error, ResponseError::InvalidTimestamp);
        assert_eq!(refused.records[0].0, 0);
    }

    #[test]
    fn given_a_header_without_its_greatest_timestamp_when_settled_then_the_records_tell_it() {
        let as_old_sarama = batch(&[NOW_MS - 7, NOW_MS, NOW_MS - 3]).with_max_timestamp(-1);
        let settled = settle(as_old_sarama, &settings(&[]), NOW_MS).unwrap();
        assert_eq!(settled.max_timestamp_ms(), NOW_MS);
        let settled = RecordBatch::parse(settled.into_bytes()).unwrap();
        assert_eq!(settled.timestamp_type(), BatchTime::CreateTime);
        assert_eq!(settled.base_timestamp_ms(), NOW_MS - 7);

        let ahead = batch(&[NOW_MS + 3_600_001]).with_max_timestamp(-1);
        let refused = settle(ahead, &settings(&[]), NOW_MS).unwrap_err();
        assert_eq!(refused.error, ResponseError::InvalidTimestamp);

        let timeless = settle(batch(&[-1]), &settings(&[]), NOW_MS).unwrap();
        assert_eq!(timeless.max_timestamp_ms(), -1);
    }

    #[test]
    fn given_a_limit_behind_when_settled_then_each_record_before_it_is_named() {
        let settings = settings(&[("message.timestamp.before.max.ms", "1000")]);
        let times = [NOW_MS, NOW_MS - 1_001, NOW_MS - 1_000, NOW_MS - 2_000];
        let refused = settle(batch(&times), &settings, NOW_MS).unwrap_err();
        assert_eq!(refused.error, ResponseError::InvalidTimestamp);
        let named: Vec<i32> = refused.records.iter().map(|(index, _)| *index).collect();
        assert_eq!(named, [1, 3]);
        assert!(settle(batch(&[NOW_MS - 1_000]), &settings, NOW_MS).is_ok());
    }

    #[test]
    fn given_log_append_time_when_settled_then_the_broker_stamps_and_the_producers_time_is_free() {
        let settings = settings(&[("message.timestamp.type", "LogAppendTime")]);
        let stamped = settle(batch(&[NOW_MS * 10]), &settings, NOW_MS).unwrap();
        assert_eq!(stamped.timestamp_type(), BatchTime::LogAppendTime);
        assert_eq!(stamped.max_timestamp_ms(), NOW_MS);
        assert!(RecordBatch::parse(stamped.into_bytes()).is_ok());
    }

    #[test]
    fn given_a_compacted_topic_when_a_record_has_no_key_then_it_is_refused_and_named() {
        let settings = settings(&[("cleanup.policy", "compact")]);
        let mixed = BatchBuilder::new().record(NOW_MS, Some(b"k"), Some(b"v"));
        let mixed = mixed.record(NOW_MS, None, Some(b"v")).build().unwrap();
        let refused = settle(mixed, &settings, NOW_MS).unwrap_err();
        assert_eq!(refused.error, ResponseError::InvalidRecord);
        assert_eq!(refused.records[0].0, 1);
    }
}
