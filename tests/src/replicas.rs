//! What each replica of a partition holds, asked from its own node, whoever leads.
//!
//! The checker judges what a consumer reads, which is what leaders give. Replicas hold the same batches byte for byte, so
//! the others need no judgement of their own: they are compared.

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};

use crate::cluster::DEADLINE;
use crate::process::Broker;
use crate::raw::{RawConnection, fetch_request};
use crate::scratch::wait_for;

/// From this version on any replica answers a fetch.
const FETCH_ANY: i16 = 11;
/// Base offset, length, leader epoch, magic, checksum, attributes, last offset delta.
const HEADER_BYTES: usize = 8 + 4 + 4 + 1 + 4 + 2 + 4;

/// The batches that a node holds of a partition from offset 0 up to `end`, which must not lie within one.
pub fn stored_on(node: &Broker, topic: &str, partition: i32, end: i64) -> Result<Bytes> {
    let mut connection = RawConnection::open(node.ports().kafka_addr())?;
    let mut stored = BytesMut::new();
    let mut next = 0;
    while next < end {
        // A follower hears a moment later than its leader that something is committed.
        let found = wait_for(&format!("{topic}-{partition}, offset {next}"), DEADLINE, || {
            let request = fetch_request(topic, partition, next, 500);
            let answer = connection.call(FETCH_ANY, &request).ok()?;
            let partition = answer.responses.first()?.partitions.first()?;
            let records = partition.records.clone().filter(|_| partition.error_code == 0)?;
            (!records.is_empty()).then_some(records)
        })?;
        let (whole, after) = whole_batches(&found, next, end)?;
        stored.extend_from_slice(&found[..whole]);
        next = after;
    }
    Ok(stored.freeze())
}

/// How many bytes of an answer are batches up to `end`, and which offset follows them.
fn whole_batches(answer: &[u8], mut next: i64, end: i64) -> Result<(usize, i64)> {
    let mut at = 0;
    while next < end {
        let Some(header) = answer.get(at..at + HEADER_BYTES) else { break };
        let base = i64::from_be_bytes(header[..8].try_into()?);
        let length = usize::try_from(i32::from_be_bytes(header[8..12].try_into()?))?;
        let last_delta = i32::from_be_bytes(header[23..27].try_into()?);
        if at + 12 + length > answer.len() {
            break;
        }
        ensure!(base == next, "a batch begins at {base}, not at {next}");
        at += 12 + length;
        next = base + i64::from(last_delta) + 1;
    }
    ensure!(at > 0, "no whole batch at {next} in {} bytes", answer.len());
    ensure!(next <= end, "a batch goes on to {next}, beyond {end}");
    Ok((at, next))
}

/// An error where these nodes do not hold the same bytes of a partition up to `end`.
pub fn check_same(nodes: &[Broker], topic: &str, partition: i32, end: i64) -> Result<()> {
    let mut first: Option<Bytes> = None;
    for (at, node) in nodes.iter().enumerate() {
        let id = at + 1;
        let stored =
            stored_on(node, topic, partition, end).with_context(|| format!("node {id}"))?;
        let expected = first.get_or_insert_with(|| stored.clone());
        if *expected != stored {
            let differs = expected.iter().zip(&stored).position(|(one, other)| one != other);
            bail!(
                "{topic}-{partition}: node {id} holds {} bytes, the first one {}; the first that differs is {differs:?}",
                stored.len(),
                expected.len()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BASE_OFFSET_AT, BatchBuilder};

    fn batch_at(base: i64) -> Vec<u8> {
        let mut batch = BatchBuilder::of_value("a record").build().to_vec();
        batch[BASE_OFFSET_AT..BASE_OFFSET_AT + 8].copy_from_slice(&base.to_be_bytes());
        batch
    }

    #[test]
    fn given_batches_when_cut_then_only_whole_ones_that_follow_each_other_count() {
        let (first, second) = (batch_at(4), batch_at(5));
        let answer = [&first[..], &second[..]].concat();
        assert_eq!(whole_batches(&answer, 4, 9).unwrap(), (answer.len(), 6));
        assert_eq!(whole_batches(&answer, 4, 5).unwrap(), (first.len(), 5));
        let cut = &answer[..answer.len() - 1];
        assert_eq!(whole_batches(cut, 4, 9).unwrap(), (first.len(), 5));
        assert!(whole_batches(&answer, 3, 9).is_err(), "an offset is left out");
        assert!(whole_batches(&first[..20], 4, 9).is_err(), "nothing whole");
    }
}
