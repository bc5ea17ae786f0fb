//! Offset commits as fast as they go: a closed loop, every connection with a group of its own.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use chronik_net::client::{decode_response, encode_request};
use kafka_protocol::messages::OffsetCommitRequest;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};

use crate::closed_loop::Work;
use crate::wire::{OFFSET_COMMIT, Template, check_code, text, topic_name};

/// What stands for the offset in the encoded request until it is replaced.
const OFFSET_MARK: i64 = 0x5EED_CAFE_0BAD_F00D;

/// Commits one partition's offset, one higher each time.
#[derive(Debug)]
pub struct CommitWork {
    frame: Vec<u8>,
    offset_at: usize,
    offset: i64,
}

impl CommitWork {
    /// Commits of `group`, which has no members.
    pub fn new(group: &str, topic: &str, partition: i32) -> Result<CommitWork> {
        let partition = OffsetCommitRequestPartition::default()
            .with_partition_index(partition)
            .with_committed_offset(OFFSET_MARK)
            .with_committed_leader_epoch(-1)
            .with_committed_metadata(Some(text("")));
        let topic = OffsetCommitRequestTopic::default()
            .with_name(topic_name(topic))
            .with_partitions(vec![partition]);
        let request = OffsetCommitRequest::default()
            .with_group_id(text(group).into())
            .with_generation_id_or_member_epoch(-1)
            .with_topics(vec![topic]);
        let frame = encode_request(&request, OFFSET_COMMIT, 0, Some(&text("chronik-bench")))?;
        let mark = OFFSET_MARK.to_be_bytes();
        let offset_at = frame.windows(mark.len()).position(|window| window == mark);
        let offset_at = offset_at.context("the offset is not in the encoded request")?;
        Ok(CommitWork { frame: frame.to_vec(), offset_at, offset: 0 })
    }
}

impl Work for CommitWork {
    fn next_frame(&mut self, correlation_id: i32) -> &[u8] {
        self.offset += 1;
        Template::patch(&mut self.frame, correlation_id);
        self.frame[self.offset_at..][..8].copy_from_slice(&self.offset.to_be_bytes());
        &self.frame
    }

    fn check(&mut self, answer: Bytes, correlation_id: i32) -> Result<()> {
        let mut answer = answer;
        let answer =
            decode_response::<OffsetCommitRequest>(&mut answer, correlation_id, OFFSET_COMMIT)?;
        ensure!(!answer.topics.is_empty(), "offset commit: an answer without a topic");
        for topic in &answer.topics {
            ensure!(!topic.partitions.is_empty(), "offset commit: an answer without a partition");
            for partition in &topic.partitions {
                check_code("offset commit", partition.error_code)?;
            }
        }
        Ok(())
    }
}

/// `connections` groups, each with its coordinator.
pub fn work(
    bootstrap: &str,
    topic: &str,
    partitions: i32,
    connections: u16,
) -> Result<Vec<(SocketAddr, CommitWork)>> {
    let group = crate::topics::fresh_name("chronik-bench-commits");
    let mut work = Vec::new();
    for connection in 0..connections {
        let group = format!("{group}-{connection}");
        let coordinator = super::member::find_coordinator(bootstrap, &group)?;
        let partition = i32::from(connection) % partitions.max(1);
        work.push((coordinator, CommitWork::new(&group, topic, partition)?));
    }
    Ok(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_two_commits_when_encoded_then_the_second_has_its_own_id_and_the_next_offset() {
        let mut work = CommitWork::new("g", "t", 0).unwrap();
        let first = work.next_frame(1).to_vec();
        let second = work.next_frame(2).to_vec();
        assert_eq!(first.len(), second.len());
        assert_eq!(second[8..12], 2_i32.to_be_bytes());
        let at = work.offset_at;
        assert_eq!(first[at..at + 8], 1_i64.to_be_bytes());
        assert_eq!(second[at..at + 8], 2_i64.to_be_bytes());
        assert_eq!((&first[12..at], &first[at + 8..]), (&second[12..at], &second[at + 8..]));
    }
}
