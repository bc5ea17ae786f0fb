//! Who gets which partition: the two assignors every client knows, for members that all subscribe to the same topics.
//!
//! - I1: every partition is given to exactly one member.
//! - I2: the outcome follows from the set of members, not from the order in which they are named.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use clap::ValueEnum;
use kafka_protocol::messages::consumer_protocol_assignment::TopicPartition;
use kafka_protocol::messages::{ConsumerProtocolAssignment, ConsumerProtocolSubscription};
use kafka_protocol::protocol::{Decodable, Encodable};

use crate::wire::{text, topic_name};

/// Version of the embedded consumer protocol that is spoken.
const EMBEDDED_VERSION: i16 = 0;

/// How partitions are given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Assignor {
    /// Topic by topic, neighbours to the same member
    Range,
    /// One after the other to the next member
    Roundrobin,
}

/// Topics with their number of partitions.
pub type Topics = BTreeMap<String, i32>;
/// Partitions of one member.
pub type Assigned = Vec<(String, i32)>;

impl Assignor {
    /// The name under which it is negotiated.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Assignor::Range => "range",
            Assignor::Roundrobin => "roundrobin",
        }
    }

    /// What each of `members` gets, by member.
    #[must_use]
    pub fn assign(self, members: &[String], topics: &Topics) -> BTreeMap<String, Assigned> {
        let mut sorted = members.to_vec();
        sorted.sort();
        sorted.dedup();
        let mut given: BTreeMap<String, Assigned> =
            sorted.iter().map(|member| (member.clone(), Vec::new())).collect();
        if sorted.is_empty() {
            return given;
        }
        let mut turn = 0;
        for (topic, partitions) in topics {
            let count = usize::try_from(*partitions).unwrap_or(0);
            for (index, partition) in (0..*partitions).enumerate() {
                let member = match self {
                    Assignor::Range => range_owner(index, count, sorted.len()),
                    Assignor::Roundrobin => turn % sorted.len(),
                };
                turn += 1;
                given.entry(sorted[member].clone()).or_default().push((topic.clone(), partition));
            }
        }
        given
    }
}

/// Who owns partition `index` of `count`: everybody an even share, the first ones one more.
fn range_owner(index: usize, count: usize, members: usize) -> usize {
    let (share, more) = (count / members, count % members);
    let in_larger_shares = more * (share + 1);
    match index < in_larger_shares {
        true => index / (share + 1),
        false => more + (index - in_larger_shares) / share.max(1),
    }
}

/// What a member says it wants.
pub fn encode_subscription(topics: &Topics) -> Result<Bytes> {
    let subscription = ConsumerProtocolSubscription::default()
        .with_topics(topics.keys().map(|topic| text(topic)).collect());
    encode(&subscription)
}

/// A member's partitions as the leader sends them.
pub fn encode_assignment(assigned: &Assigned) -> Result<Bytes> {
    let mut by_topic: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for (topic, partition) in assigned {
        by_topic.entry(topic).or_default().push(*partition);
    }
    let partitions = by_topic.into_iter().map(|(topic, partitions)| {
        TopicPartition::default().with_topic(topic_name(topic)).with_partitions(partitions)
    });
    let assignment =
        ConsumerProtocolAssignment::default().with_assigned_partitions(partitions.collect());
    encode(&assignment)
}

/// A member's partitions as they arrive.
pub fn decode_assignment(bytes: Bytes) -> Result<Assigned> {
    let mut bytes = bytes;
    ensure!(bytes.remaining() >= 2, "an assignment of {} bytes", bytes.remaining());
    let version = bytes.get_i16();
    ensure!(version == EMBEDDED_VERSION, "an assignment of version {version}");
    let assignment = ConsumerProtocolAssignment::decode(&mut bytes, version)
        .context("decoding an assignment")?;
    let mut assigned = Vec::new();
    for topic in assignment.assigned_partitions {
        let name = topic.topic.to_string();
        assigned.extend(topic.partitions.into_iter().map(|partition| (name.clone(), partition)));
    }
    Ok(assigned)
}

fn encode<E: Encodable>(message: &E) -> Result<Bytes> {
    let mut bytes = BytesMut::new();
    bytes.put_i16(EMBEDDED_VERSION);
    message.encode(&mut bytes, EMBEDDED_VERSION).context("encoding the consumer protocol")?;
    Ok(bytes.freeze())
}

/// An error unless every partition of `topics` is in exactly one of `all`.
pub fn check_complete<'a>(
    all: impl IntoIterator<Item = &'a Assigned>,
    topics: &Topics,
) -> Result<()> {
    let mut owners: BTreeMap<(String, i32), usize> = BTreeMap::new();
    for assigned in all {
        for partition in assigned {
            *owners.entry(partition.clone()).or_default() += 1;
        }
    }
    let expected: i64 = topics.values().map(|partitions| i64::from(*partitions)).sum();
    ensure!(
        i64::try_from(owners.len())? == expected,
        "{} partitions are assigned, {expected} are there",
        owners.len()
    );
    for ((topic, partition), count) in owners {
        ensure!(count == 1, "{topic}-{partition} is assigned to {count} members");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics(of: &[(&str, i32)]) -> Topics {
        of.iter().map(|(name, partitions)| ((*name).to_owned(), *partitions)).collect()
    }

    fn members(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("m{index}")).collect()
    }

    fn sizes(given: &BTreeMap<String, Assigned>) -> Vec<usize> {
        given.values().map(Vec::len).collect()
    }

    #[test]
    fn given_any_numbers_when_assigned_then_every_partition_has_one_owner_and_shares_are_even() {
        for assignor in [Assignor::Range, Assignor::Roundrobin] {
            for count in 1..12 {
                for partitions in 0..25 {
                    let topics = topics(&[("t", partitions)]);
                    let given = assignor.assign(&members(count), &topics);
                    check_complete(given.values(), &topics).unwrap();
                    let sizes = sizes(&given);
                    let spread = sizes.iter().max().unwrap() - sizes.iter().min().unwrap();
                    assert!(spread <= 1, "{assignor:?} {count} {partitions}: {sizes:?}");
                }
            }
        }
    }

    #[test]
    fn given_two_topics_when_assigned_then_range_favours_the_first_and_round_robin_nobody() {
        let topics = topics(&[("a", 3), ("b", 3)]);
        let range = Assignor::Range.assign(&members(2), &topics);
        assert_eq!(sizes(&range), [4, 2]);
        assert_eq!(range["m0"][..2], [("a".to_owned(), 0), ("a".to_owned(), 1)]);
        let turns = Assignor::Roundrobin.assign(&members(2), &topics);
        assert_eq!(sizes(&turns), [3, 3]);
        assert_eq!(turns["m0"][0], ("a".to_owned(), 0));
        assert_eq!(turns["m1"][0], ("a".to_owned(), 1));
    }

    #[test]
    fn given_members_in_another_order_when_assigned_then_the_outcome_is_the_same() {
        let topics = topics(&[("a", 7)]);
        let mut backwards = members(3);
        backwards.reverse();
        assert_eq!(
            Assignor::Range.assign(&backwards, &topics),
            Assignor::Range.assign(&members(3), &topics)
        );
    }

    #[test]
    fn given_an_assignment_when_it_went_over_the_wire_then_it_is_the_same() {
        let assigned: Assigned =
            vec![("a".to_owned(), 1), ("a".to_owned(), 2), ("b".to_owned(), 0)];
        let bytes = encode_assignment(&assigned).unwrap();
        assert_eq!(decode_assignment(bytes).unwrap(), assigned);
        assert!(decode_assignment(Bytes::new()).is_err());
    }

    #[test]
    fn given_a_hole_or_two_owners_when_checked_then_it_is_an_error() {
        let topics = topics(&[("a", 2)]);
        let (zero, one) = (vec![("a".to_owned(), 0)], vec![("a".to_owned(), 1)]);
        assert!(check_complete([&zero, &one], &topics).is_ok());
        assert!(check_complete([&zero], &topics).is_err());
        assert!(check_complete([&zero, &one, &one], &topics).is_err());
    }
}
