//! The zero-copy Fetch encoder writes what kafka-protocol writes.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests

use bytes::Bytes;
use chronik_net::client::decode_response;
use chronik_net::{
    FetchNodeEndpoint, FetchPartitionParts, FetchResponseParts, FetchTopicParts, Output,
    RecordChunk, ResponseBody, encode_response,
};
use kafka_protocol::messages::fetch_response::{
    AbortedTransaction, EpochEndOffset, FetchableTopicResponse, LeaderIdAndEpoch, NodeEndpoint,
    PartitionData,
};
use kafka_protocol::messages::{
    BrokerId, FetchRequest, FetchResponse, ProducerId, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Encodable, HeaderVersion, StrBytes};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

/// The same random response in both forms.
struct Pair {
    rng: StdRng,
    version: i16,
}

impl Pair {
    fn count(&mut self) -> usize {
        self.rng.random_range(0..4)
    }

    fn name(&mut self) -> StrBytes {
        let length = self.rng.random_range(0..130);
        StrBytes::from_string("n".repeat(length))
    }

    fn response(&mut self) -> (FetchResponseParts, FetchResponse) {
        let (throttle, error_code) = (self.rng.random(), self.rng.random());
        let session_id = if self.version >= 7 { self.rng.random() } else { 0 };
        let topics: Vec<_> = (0..self.count()).map(|_| self.topic()).collect();
        let (our_topics, their_topics): (Vec<_>, Vec<_>) = topics.into_iter().unzip();
        let endpoints = if self.version >= 16 { self.count() } else { 0 };
        let endpoints: Vec<_> = (0..endpoints).map(|_| self.endpoint()).collect();
        let (our_endpoints, their_endpoints): (Vec<_>, Vec<_>) = endpoints.into_iter().unzip();
        let ours = FetchResponseParts {
            throttle_time_ms: throttle,
            error_code,
            session_id,
            topics: our_topics,
            node_endpoints: our_endpoints,
        };
        let theirs = FetchResponse::default()
            .with_throttle_time_ms(throttle)
            .with_error_code(error_code)
            .with_session_id(session_id)
            .with_responses(their_topics)
            .with_node_endpoints(their_endpoints);
        (ours, theirs)
    }

    fn topic(&mut self) -> (FetchTopicParts, FetchableTopicResponse) {
        let partitions: Vec<_> = (0..self.count()).map(|_| self.partition()).collect();
        let (ours, theirs): (Vec<_>, Vec<_>) = partitions.into_iter().unzip();
        let topic = TopicName(self.name());
        let topic_id = Uuid::from_u128(self.rng.random());
        let named = FetchableTopicResponse::default().with_partitions(theirs);
        let theirs = if self.version >= 13 {
            named.with_topic_id(topic_id)
        } else {
            named.with_topic(topic.clone())
        };
        (FetchTopicParts { topic, topic_id, partitions: ours }, theirs)
    }

    fn partition(&mut self) -> (FetchPartitionParts, PartitionData) {
        let mut ours = FetchPartitionParts {
            partition_index: self.rng.random(),
            error_code: self.rng.random(),
            high_watermark: self.rng.random(),
            last_stable_offset: self.rng.random(),
            log_start_offset: self.rng.random(),
            ..Default::default()
        };
        if self.version >= 11 {
            ours.preferred_read_replica = self.rng.random();
        }
        if self.version >= 12 {
            ours.diverging_epoch = self.rng.random_bool(0.5).then(|| self.rng.random());
            ours.current_leader = self.rng.random_bool(0.5).then(|| self.rng.random());
        }
        if self.rng.random_bool(0.6) {
            ours.aborted_transactions =
                Some((0..self.count()).map(|_| self.rng.random()).collect());
        }
        let (chunks, flat) = self.records();
        ours.records = chunks;
        let mut theirs = PartitionData::default()
            .with_partition_index(ours.partition_index)
            .with_error_code(ours.error_code)
            .with_high_watermark(ours.high_watermark)
            .with_last_stable_offset(ours.last_stable_offset)
            .with_log_start_offset(ours.log_start_offset)
            .with_preferred_read_replica(BrokerId(ours.preferred_read_replica))
            .with_records(Some(flat))
            .with_aborted_transactions(ours.aborted_transactions.as_ref().map(|aborted| {
                aborted
                    .iter()
                    .map(|(producer_id, first_offset)| {
                        AbortedTransaction::default()
                            .with_producer_id(ProducerId(*producer_id))
                            .with_first_offset(*first_offset)
                    })
                    .collect()
            }));
        if let Some((epoch, end_offset)) = ours.diverging_epoch {
            theirs.diverging_epoch =
                EpochEndOffset::default().with_epoch(epoch).with_end_offset(end_offset);
        }
        if let Some((leader_id, leader_epoch)) = ours.current_leader {
            theirs.current_leader = LeaderIdAndEpoch::default()
                .with_leader_id(BrokerId(leader_id))
                .with_leader_epoch(leader_epoch);
        }
        (ours, theirs)
    }

    fn records(&mut self) -> (Vec<RecordChunk>, Bytes) {
        let mut flat = Vec::new();
        let mut chunks = Vec::new();
        for _ in 0..self.count() {
            let length = self.rng.random_range(16..2000);
            let bytes: Vec<u8> = (0..length).map(|_| self.rng.random()).collect();
            if self.rng.random_bool(0.5) {
                flat.extend_from_slice(&bytes);
                chunks.push(RecordChunk::Raw(Bytes::from(bytes)));
                continue;
            }
            let (base_offset, leader_epoch) = (self.rng.random::<i64>(), self.rng.random::<i32>());
            flat.extend_from_slice(&base_offset.to_be_bytes());
            flat.extend_from_slice(&bytes[8..12]);
            flat.extend_from_slice(&leader_epoch.to_be_bytes());
            flat.extend_from_slice(&bytes[16..]);
            let bytes = Bytes::from(bytes);
            chunks.push(RecordChunk::Batch { base_offset, leader_epoch, bytes });
        }
        (chunks, Bytes::from(flat))
    }

    fn endpoint(&mut self) -> (FetchNodeEndpoint, NodeEndpoint) {
        let ours = FetchNodeEndpoint {
            node_id: self.rng.random(),
            host: self.name(),
            port: self.rng.random(),
            rack: self.rng.random_bool(0.5).then(|| self.name()),
        };
        let theirs = NodeEndpoint::default()
            .with_node_id(BrokerId(ours.node_id))
            .with_host(ours.host.clone())
            .with_port(ours.port)
            .with_rack(ours.rack.clone());
        (ours, theirs)
    }
}

fn encode_with_kafka_protocol(response: &FetchResponse, id: i32, version: i16) -> Vec<u8> {
    let mut frame = vec![0; 4];
    ResponseHeader::default()
        .with_correlation_id(id)
        .encode(&mut frame, FetchResponse::header_version(version))
        .unwrap();
    response.encode(&mut frame, version).unwrap();
    let length = i32::try_from(frame.len() - 4).unwrap();
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn given_any_response_when_encoded_then_the_bytes_are_kafka_protocols(seed in any::<u64>()) {
        for version in 4..=18 {
            let mut pair = Pair { rng: StdRng::seed_from_u64(seed), version };
            let (ours, theirs) = pair.response();
            let mut output = Output::default();
            encode_response(&mut output, 42, version, ResponseBody::Fetch(ours)).unwrap();
            let encoded = output.to_bytes();
            prop_assert_eq!(&encoded[..], &encode_with_kafka_protocol(&theirs, 42, version)[..]);
            let decoded = decode_response::<FetchRequest>(&mut encoded.slice(4..), 42, version);
            prop_assert!(decoded.is_ok());
        }
    }
}

#[test]
fn given_a_field_that_a_version_lacks_when_encoding_fails_then_the_output_is_untouched() {
    let mut output = Output::default();
    let body = kafka_protocol::messages::ApiVersionsResponse::default();
    encode_response(&mut output, 1, 3, body.into()).unwrap();
    let before = output.to_bytes();
    let body = kafka_protocol::messages::MetadataResponse::default();
    assert!(encode_response(&mut output, 2, 99, body.into()).is_err());
    assert_eq!(output.to_bytes(), before);
}
