//! A Kafka connection that does exactly what it is told, wrong things included.
//!
//! No retries, no version negotiation, no background thread: what a test sends is what goes over the wire. Every wait has
//! a deadline, so a broker that hangs fails the test instead of hanging it.

#![expect(clippy::disallowed_methods, reason = "the harness waits for real processes on real time")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiKey, BrokerId, CreateTopicsRequest, FetchRequest, FetchResponse, GroupId,
    InitProducerIdRequest, ListOffsetsRequest, MetadataRequest, MetadataResponse,
    OffsetCommitRequest, OffsetFetchRequest, ProduceRequest, ProducerId, RequestHeader,
    ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use uuid::Uuid;

use crate::scratch::wait_for;

/// How long an answer may take.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// No answer is longer than this.
const ANSWER_BYTES_MAX: usize = 128 << 20;

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A whole frame, without its length.
    Frame(Bytes),
    /// The broker closed the connection.
    Closed,
    /// Neither, until the deadline.
    Silence,
}

/// One connection.
#[derive(Debug)]
pub struct RawConnection {
    stream: TcpStream,
    correlation: i32,
}

impl RawConnection {
    /// Connects.
    pub fn open(addr: SocketAddr) -> Result<RawConnection> {
        let stream = TcpStream::connect_timeout(&addr, ANSWER_DEADLINE)
            .with_context(|| format!("connecting to {addr}"))?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(ANSWER_DEADLINE))?;
        Ok(RawConnection { stream, correlation: 0 })
    }

    /// Connects to the same broker again.
    pub fn open_another(&self) -> Result<RawConnection> {
        RawConnection::open(self.stream.peer_addr()?)
    }

    /// Sends a request and waits for its answer.
    pub fn call<R: Request>(&mut self, version: i16, request: &R) -> Result<R::Response> {
        let correlation = self.send(version, request)?;
        self.receive::<R>(version, correlation)
    }

    /// Sends a request; the correlation id is for [`RawConnection::receive`].
    pub fn send<R: Request>(&mut self, version: i16, request: &R) -> Result<i32> {
        self.correlation += 1;
        let frame = encode_frame(version, self.correlation, request)?;
        self.write(&frame)?;
        Ok(self.correlation)
    }

    /// Waits for the next answer, which must be to the request with this correlation id.
    pub fn receive<R: Request>(&mut self, version: i16, correlation: i32) -> Result<R::Response> {
        let frame = match self.hear(ANSWER_DEADLINE)? {
            Heard::Frame(frame) => frame,
            other => bail!("{other:?} instead of an answer to api {} v{version}", R::KEY),
        };
        let (found, response) = decode_answer::<R>(version, frame)?;
        ensure!(found == correlation, "answer to request {found}, expected {correlation}");
        Ok(response)
    }

    /// Writes bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("writing to the broker")
    }

    /// Says that nothing more will be written.
    pub fn finish_writing(&self) -> Result<()> {
        match self.stream.shutdown(Shutdown::Write) {
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(()),
            other => other.context("closing for writing"),
        }
    }

    /// Waits for a frame or for the end of the connection.
    pub fn hear(&mut self, deadline: Duration) -> Result<Heard> {
        let until = Instant::now() + deadline;
        let mut length = [0; 4];
        match self.fill(&mut length, until)? {
            Filled::Whole => {}
            Filled::Nothing => return Ok(Heard::Closed),
            Filled::Part(got) => bail!("closed after {got} bytes of a frame's length"),
            Filled::Late => return Ok(Heard::Silence),
        }
        let length = usize::try_from(i32::from_be_bytes(length)).context("negative length")?;
        ensure!((4..=ANSWER_BYTES_MAX).contains(&length), "an answer of {length} bytes");
        let mut frame = vec![0; length];
        match self.fill(&mut frame, until)? {
            Filled::Whole => Ok(Heard::Frame(frame.into())),
            other => bail!("{other:?} inside an answer of {length} bytes"),
        }
    }

    /// Reads and forgets whatever comes until the broker closes; an error when it does not.
    pub fn wait_closed(&mut self, deadline: Duration) -> Result<()> {
        let until = Instant::now() + deadline;
        let mut sink = vec![0; 1 << 16];
        loop {
            match self.fill(&mut sink, until)? {
                Filled::Whole => {}
                Filled::Nothing | Filled::Part(_) => return Ok(()),
                Filled::Late => bail!("not closed within {deadline:?}"),
            }
        }
    }

    fn fill(&mut self, buf: &mut [u8], until: Instant) -> Result<Filled> {
        let mut got = 0;
        while got < buf.len() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Filled::Late);
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut buf[got..]) {
                Ok(0) if got == 0 => return Ok(Filled::Nothing),
                Ok(0) => return Ok(Filled::Part(got)),
                Ok(count) => got += count,
                // A reset says the same as a close to a client whose bytes were refused.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Ok(if got == 0 { Filled::Nothing } else { Filled::Part(got) });
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return Ok(Filled::Late);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("reading from the broker"),
            }
        }
        Ok(Filled::Whole)
    }
}

#[derive(Debug)]
enum Filled {
    Whole,
    Nothing,
    Part(usize),
    Late,
}

/// A request as it goes over the wire, length included.
pub fn encode_frame<R: Request>(version: i16, correlation: i32, request: &R) -> Result<Vec<u8>> {
    let mut body = BytesMut::new();
    let header = RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(correlation)
        .with_client_id(Some(StrBytes::from_static_str("chronik-tests")));
    header.encode(&mut body, R::header_version(version))?;
    request.encode(&mut body, version)?;
    Ok(with_length(&body))
}

/// `body` behind its length.
#[must_use]
pub fn with_length(body: &[u8]) -> Vec<u8> {
    let length = i32::try_from(body.len()).unwrap_or(i32::MAX);
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(body);
    frame
}

/// The correlation id and the body of an answer, which must have no bytes left over.
pub fn decode_answer<R: Request>(version: i16, frame: Bytes) -> Result<(i32, R::Response)> {
    let mut rest = frame;
    let header = ResponseHeader::decode(&mut rest, R::Response::header_version(version))?;
    let response = R::Response::decode(&mut rest, version)
        .with_context(|| format!("decoding the answer of api {} v{version}", R::KEY))?;
    ensure!(!rest.has_remaining(), "{} bytes after the answer", rest.remaining());
    Ok((header.correlation_id, response))
}

/// A topic's name as the codec wants it.
#[must_use]
pub fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

/// A produce of one batch to one partition (by name: version 12 at most).
#[must_use]
pub fn produce_request(topic: &str, partition: i32, acks: i16, batch: Bytes) -> ProduceRequest {
    let data = PartitionProduceData::default().with_index(partition).with_records(Some(batch));
    ProduceRequest::default()
        .with_transactional_id(None)
        .with_acks(acks)
        .with_timeout_ms(10_000)
        .with_topic_data(vec![
            TopicProduceData::default()
                .with_name(topic_name(topic))
                .with_partition_data(vec![data]),
        ])
}

/// A fetch of one partition without a session (by name: version 12 at most).
#[must_use]
pub fn fetch_request(topic: &str, partition: i32, offset: i64, max_wait_ms: i32) -> FetchRequest {
    let partition = FetchPartition::default()
        .with_partition(partition)
        .with_current_leader_epoch(-1)
        .with_fetch_offset(offset)
        .with_partition_max_bytes(1 << 20);
    FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(max_wait_ms)
        .with_min_bytes(1)
        .with_max_bytes(8 << 20)
        .with_session_id(0)
        .with_session_epoch(-1)
        .with_topics(vec![
            FetchTopic::default().with_topic(topic_name(topic)).with_partitions(vec![partition]),
        ])
}

/// Metadata of one topic by name.
#[must_use]
pub fn metadata_request(topic: &str, auto_create: bool) -> MetadataRequest {
    let topic = MetadataRequestTopic::default().with_name(Some(topic_name(topic)));
    MetadataRequest::default()
        .with_topics(Some(vec![topic]))
        .with_allow_auto_topic_creation(auto_create)
}

/// What a produce to one partition came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Produced {
    /// The Kafka error code, 0 for none.
    pub error_code: i16,
    /// The offset of the batch's first record.
    pub base_offset: i64,
}

impl RawConnection {
    /// Produces one batch with acks=all.
    pub fn produce(&mut self, topic: &str, partition: i32, batch: Bytes) -> Result<Produced> {
        let response = self.call(9, &produce_request(topic, partition, -1, batch))?;
        let topic = response.responses.first().context("no topic in the answer")?;
        let answer = topic.partition_responses.first().context("no partition in the answer")?;
        Ok(Produced { error_code: answer.error_code, base_offset: answer.base_offset })
    }

    /// Commits an offset for a topic's first partition, as a consumer that is in no group does; the error code.
    pub fn commit_offset(&mut self, group: &str, topic: &str, offset: i64) -> Result<i16> {
        let partition = OffsetCommitRequestPartition::default()
            .with_committed_offset(offset)
            .with_committed_metadata(None);
        let topic = OffsetCommitRequestTopic::default()
            .with_name(topic_name(topic))
            .with_partitions(vec![partition]);
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(StrBytes::from_string(group.to_owned())))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(vec![topic]);
        let answer = self.call(7, &request)?;
        let topic = answer.topics.first().context("no topic in the answer")?;
        Ok(topic.partitions.first().context("no partition in the answer")?.error_code)
    }

    /// What is committed for a topic's first partition, -1 for nothing; an error where the node does not coordinate the group.
    pub fn committed_offset(&mut self, group: &str, topic: &str) -> Result<i64> {
        let topic = OffsetFetchRequestTopic::default()
            .with_name(topic_name(topic))
            .with_partition_indexes(vec![0]);
        let request = OffsetFetchRequest::default()
            .with_group_id(GroupId(StrBytes::from_string(group.to_owned())))
            .with_topics(Some(vec![topic]));
        let answer = self.call(6, &request)?;
        ensure!(answer.error_code == 0, "{group}: error {}", answer.error_code);
        let topic = answer.topics.first().context("no topic in the answer")?;
        Ok(topic.partitions.first().context("no partition in the answer")?.committed_offset)
    }

    /// Fetches from one partition.
    pub fn fetch(&mut self, topic: &str, partition: i32, offset: i64) -> Result<FetchResponse> {
        self.call(11, &fetch_request(topic, partition, offset, 5_000))
    }

    /// Metadata of one topic, created by that where `auto_create` says so.
    pub fn metadata(&mut self, topic: &str, auto_create: bool) -> Result<MetadataResponse> {
        self.call(12, &metadata_request(topic, auto_create))
    }

    /// Makes a topic of one partition with these configurations.
    pub fn create_topic(&mut self, topic: &str, configs: &[(&str, &str)]) -> Result<()> {
        let text = |text: &str| StrBytes::from_string(text.to_owned());
        let configs = configs.iter().map(|(name, value)| {
            CreatableTopicConfig::default().with_name(text(name)).with_value(Some(text(value)))
        });
        let topic = CreatableTopic::default()
            .with_name(topic_name(topic))
            .with_num_partitions(1)
            .with_replication_factor(1)
            .with_configs(configs.collect());
        let request =
            CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000);
        let response = self.call(5, &request)?;
        let answer = response.topics.first().context("no topic in the answer")?;
        ensure!(answer.error_code == 0, "CreateTopics: {answer:?}");
        Ok(())
    }

    /// Where ListOffsets finds this time, or place, in a topic's first partition; -1 for nowhere.
    pub fn offset_of(&mut self, topic: &str, timestamp: i64) -> Result<i64> {
        let partition = ListOffsetsPartition::default()
            .with_partition_index(0)
            .with_current_leader_epoch(-1)
            .with_timestamp(timestamp);
        let topic = ListOffsetsTopic::default()
            .with_name(topic_name(topic))
            .with_partitions(vec![partition]);
        let request =
            ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
        let response = self.call(7, &request)?;
        let topic = response.topics.first().context("no topic in the answer")?;
        let answer = topic.partitions.first().context("no partition in the answer")?;
        ensure!(answer.error_code == 0, "ListOffsets: {answer:?}");
        Ok(answer.offset)
    }

    /// Makes a topic by asking for it, and waits until its first partition can be read, as any client does.
    pub fn ensure_topic(&mut self, topic: &str) -> Result<()> {
        wait_for(&format!("topic {topic} is ready"), ANSWER_DEADLINE, || {
            self.topic_is_ready(topic).transpose()
        })?
    }

    /// The same for a connection that is to fetch nothing.
    pub fn ensure_topic_without_fetching(&mut self, topic: &str) -> Result<()> {
        wait_for(&format!("topic {topic} is ready"), ANSWER_DEADLINE, || {
            let ready = self.metadata(topic, true).map(|metadata| {
                metadata.topics.first().is_some_and(|topic| topic.error_code == 0).then_some(())
            });
            ready.transpose()
        })?
    }

    fn topic_is_ready(&mut self, topic: &str) -> Result<Option<()>> {
        let metadata = self.metadata(topic, true)?;
        let found = metadata.topics.first().context("no topic in the answer")?;
        if found.error_code != 0 {
            return Ok(None);
        }
        let fetched = self.call(11, &fetch_request(topic, 0, 0, 0))?;
        let partition = fetched.responses.first().and_then(|topic| topic.partitions.first());
        Ok(partition.is_some_and(|partition| partition.error_code == 0).then_some(()))
    }

    /// The id and epoch of a new idempotent producer.
    pub fn init_producer(&mut self) -> Result<(i64, i16)> {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(None)
            .with_transaction_timeout_ms(60_000)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        let response = self.call(4, &request)?;
        ensure!(response.error_code == 0, "InitProducerId: error {}", response.error_code);
        Ok((response.producer_id.0, response.producer_epoch))
    }

    /// The id of a topic that is there.
    pub fn topic_id(&mut self, topic: &str) -> Result<Uuid> {
        let response = self.metadata(topic, false)?;
        let found = response.topics.first().context("no topic in the answer")?;
        ensure!(found.error_code == 0, "metadata of {topic}: error {}", found.error_code);
        Ok(found.topic_id)
    }

    /// What the broker says it serves: key, lowest and highest version.
    pub fn api_versions(&mut self) -> Result<Vec<(i16, i16, i16)>> {
        let request = kafka_protocol::messages::ApiVersionsRequest::default();
        let response = self.call(0, &request)?;
        ensure!(response.error_code == 0, "ApiVersions: error {}", response.error_code);
        Ok(response.api_keys.iter().map(|k| (k.api_key, k.min_version, k.max_version)).collect())
    }
}

/// The name of an API, for messages.
#[must_use]
pub fn api_name(key: i16) -> String {
    ApiKey::try_from(key).map_or_else(|()| format!("api {key}"), |key| format!("{key:?}"))
}
