//! Sockets and frames of a load generator: requests encoded once and sent again and again, answers cut out of a stream.
//!
//! The versions used are fixed: every broker since Apache Kafka 2.4 serves them, and so do others that speak its protocol.
//!
//! - I1: a read that times out loses nothing of a frame that came in part.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf, Bytes, BytesMut};
use chronik_engine::batch::BatchBuilder;
use chronik_net::client::{Client, decode_response, encode_request};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, ProduceRequest, TopicName};
use kafka_protocol::protocol::{Request, StrBytes};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use crate::clock::unix_ms;

/// Versions sent, by API.
pub const PRODUCE: i16 = 7;
pub const FETCH: i16 = 11;
pub const METADATA: i16 = 7;
pub const CREATE_TOPICS: i16 = 4;
pub const DELETE_TOPICS: i16 = 3;
pub const FIND_COORDINATOR: i16 = 2;
pub const JOIN_GROUP: i16 = 5;
pub const SYNC_GROUP: i16 = 3;
pub const HEARTBEAT: i16 = 3;
pub const LEAVE_GROUP: i16 = 3;
pub const OFFSET_COMMIT: i16 = 7;
pub const ELECT_LEADERS: i16 = 1;
pub const ALTER_PARTITION_REASSIGNMENTS: i16 = 0;

/// What producing to new topics takes.
pub const FOR_PRODUCE: &[(ApiKey, i16)] = &[
    (ApiKey::Produce, PRODUCE),
    (ApiKey::Metadata, METADATA),
    (ApiKey::CreateTopics, CREATE_TOPICS),
];
/// What a group takes besides.
pub const FOR_GROUPS: &[(ApiKey, i16)] = &[
    (ApiKey::FindCoordinator, FIND_COORDINATOR),
    (ApiKey::JoinGroup, JOIN_GROUP),
    (ApiKey::SyncGroup, SYNC_GROUP),
    (ApiKey::Heartbeat, HEARTBEAT),
    (ApiKey::LeaveGroup, LEAVE_GROUP),
    (ApiKey::OffsetCommit, OFFSET_COMMIT),
];

/// How long a single request may take before the run is given up.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Larger answers than this are refused.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Bytes asked of the socket at once.
const READ_BYTES: usize = 64 << 10;
/// Where a request's correlation id lies: behind its length, key and version.
const CORRELATION_AT: std::ops::Range<usize> = 8..12;

/// The address that `host:port` means; IPv4 where there is a choice.
pub fn resolve(text: &str) -> Result<SocketAddr> {
    let found: Vec<SocketAddr> =
        text.to_socket_addrs().with_context(|| format!("resolving {text}"))?.collect();
    let chosen = found.iter().find(|addr| addr.is_ipv4()).or(found.first());
    chosen.copied().with_context(|| format!("{text} has no address"))
}

/// A connection that sends one request after the other.
pub fn connect(addr: SocketAddr) -> Result<Client> {
    connect_within(addr, CALL_TIMEOUT)
}

/// [`connect`], where connecting and each answer may take so long.
pub fn connect_within(addr: SocketAddr, timeout: Duration) -> Result<Client> {
    Client::connect(addr, timeout).with_context(|| format!("connecting to {addr}"))
}

/// Refuses a broker that does not serve these versions, with a sentence instead of a closed socket later.
pub fn require(client: &mut Client, versions: &[(ApiKey, i16)]) -> Result<()> {
    let served = client.call(&ApiVersionsRequest::default(), 0).context("asking for versions")?;
    for (api, version) in versions {
        let row = served.api_keys.iter().find(|row| row.api_key == *api as i16);
        let row = row.with_context(|| format!("the broker does not serve {api:?}"))?;
        ensure!(
            (row.min_version..=row.max_version).contains(version),
            "the broker serves {api:?} {} to {}, this program speaks version {version}",
            row.min_version,
            row.max_version
        );
    }
    Ok(())
}

/// Kafka's name of an error code.
#[must_use]
pub fn error_name(code: i16) -> String {
    ResponseError::try_from_code(code)
        .map_or_else(|| format!("error {code}"), |error| format!("{error:?}"))
}

/// An error where the code is one.
pub fn check_code(what: &str, code: i16) -> Result<()> {
    ensure!(code == 0, "{what}: {}", error_name(code));
    Ok(())
}

/// Text as the codec wants it.
#[must_use]
pub fn text(value: &str) -> StrBytes {
    StrBytes::from_string(value.to_owned())
}

/// A topic's name as the codec wants it.
#[must_use]
pub fn topic_name(name: &str) -> TopicName {
    TopicName(text(name))
}

/// A batch of `records` records of `record_bytes` random bytes each: what does not compress costs the disk in full.
pub fn random_batch(records: u32, record_bytes: usize) -> Result<Bytes> {
    let mut random = StdRng::from_os_rng();
    let mut value = vec![0; record_bytes];
    let now_ms = unix_ms();
    let mut builder = BatchBuilder::new();
    for _ in 0..records {
        random.fill_bytes(&mut value);
        builder = builder.record(now_ms, None, Some(&value));
    }
    Ok(builder.build().context("making a batch")?.into_bytes())
}

/// A produce of one batch.
#[must_use]
pub fn produce_request(topic: &str, partition: i32, acks: i16, batch: Bytes) -> ProduceRequest {
    produce_all_request(topic, [partition], acks, &batch)
}

/// A produce of the same batch to several partitions.
#[must_use]
pub fn produce_all_request(
    topic: &str,
    partitions: impl IntoIterator<Item = i32>,
    acks: i16,
    batch: &Bytes,
) -> ProduceRequest {
    let data = partitions.into_iter().map(|partition| {
        PartitionProduceData::default().with_index(partition).with_records(Some(batch.clone()))
    });
    let topic = TopicProduceData::default()
        .with_name(topic_name(topic))
        .with_partition_data(data.collect());
    ProduceRequest::default().with_acks(acks).with_timeout_ms(30_000).with_topic_data(vec![topic])
}

/// What is wrong with the answer to a produce of one batch; its base offset where nothing is.
pub fn check_produced(frame: Bytes, correlation_id: i32) -> Result<i64> {
    let mut frame = frame;
    let answer = decode_response::<ProduceRequest>(&mut frame, correlation_id, PRODUCE)?;
    let topic = answer.responses.first().context("an answer without a topic")?;
    let partition = topic.partition_responses.first().context("an answer without a partition")?;
    check_code("produce", partition.error_code)?;
    ensure!(partition.base_offset >= 0, "produce: base offset {}", partition.base_offset);
    Ok(partition.base_offset)
}

/// The correlation id that an answer begins with.
pub fn correlation_of(frame: &[u8]) -> Result<i32> {
    let first = frame.first_chunk().context("an answer shorter than its header")?;
    Ok(i32::from_be_bytes(*first))
}

/// An encoded request that is sent many times.
#[derive(Debug, Clone)]
pub struct Template {
    frame: Vec<u8>,
}

impl Template {
    /// Encodes `request`.
    pub fn new<R: Request>(request: &R, version: i16) -> Result<Template> {
        let client_id = StrBytes::from_static_str("chronik-bench");
        let frame = encode_request(request, version, 0, Some(&client_id))?;
        Ok(Template { frame: frame.to_vec() })
    }

    /// The frame under this correlation id.
    pub fn frame(&mut self, correlation_id: i32) -> &[u8] {
        Template::patch(&mut self.frame, correlation_id);
        &self.frame
    }

    /// Gives an encoded request another correlation id.
    pub fn patch(frame: &mut [u8], correlation_id: i32) {
        frame[CORRELATION_AT].copy_from_slice(&correlation_id.to_be_bytes());
    }
}

/// A socket for requests that do not wait for each other's answers.
pub fn open_stream(addr: SocketAddr) -> Result<TcpStream> {
    open_stream_within(addr, CALL_TIMEOUT)
}

/// [`open_stream`], where connecting may take so long.
pub fn open_stream_within(addr: SocketAddr, timeout: Duration) -> Result<TcpStream> {
    let opened = TcpStream::connect_timeout(&addr, timeout).and_then(|stream| {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(CALL_TIMEOUT))?;
        Ok(stream)
    });
    opened.with_context(|| format!("connecting to {addr}"))
}

/// The frames that come in on a socket.
#[derive(Debug)]
pub struct FrameReader {
    stream: TcpStream,
    unread: BytesMut,
    chunk: Vec<u8>,
}

impl FrameReader {
    /// Reads from `stream`; [`FrameReader::receive`] gives up after `timeout` without a byte.
    pub fn new(stream: TcpStream, timeout: Duration) -> Result<FrameReader> {
        stream.set_read_timeout(Some(timeout)).context("setting a read timeout")?;
        Ok(FrameReader { stream, unread: BytesMut::new(), chunk: vec![0; READ_BYTES] })
    }

    /// The next frame without its length; `None` when time was up first.
    pub fn receive(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(frame) = self.cut()? {
                return Ok(Some(frame));
            }
            match self.stream.read(&mut self.chunk) {
                Ok(0) => bail!("the broker closed the connection"),
                Ok(count) => self.unread.extend_from_slice(&self.chunk[..count]),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => return Ok(None),
                    ErrorKind::Interrupted => {}
                    _ => return Err(error).context("reading from the broker"),
                },
            }
        }
    }

    fn cut(&mut self) -> Result<Option<Bytes>> {
        let Some(prefix) = self.unread.first_chunk::<4>() else { return Ok(None) };
        let length = i32::from_be_bytes(*prefix);
        let bytes = usize::try_from(length).ok().filter(|bytes| *bytes <= ANSWER_BYTES_MAX);
        let bytes = bytes.with_context(|| format!("an answer of {length} bytes"))?;
        if self.unread.len() < 4 + bytes {
            return Ok(None);
        }
        self.unread.advance(4);
        Ok(Some(self.unread.split_to(bytes).freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    fn pair() -> (TcpStream, FrameReader) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (reader, _) = listener.accept().unwrap();
        (writer, FrameReader::new(reader, Duration::from_millis(20)).unwrap())
    }

    #[test]
    fn given_half_a_frame_when_time_is_up_then_its_rest_completes_it_later() {
        let (mut writer, mut reader) = pair();
        writer.write_all(&[0, 0, 0, 4, 1, 2]).unwrap();
        assert_eq!(reader.receive().unwrap(), None);
        writer.write_all(&[3, 4, 0, 0, 0, 1, 9]).unwrap();
        assert_eq!(reader.receive().unwrap().unwrap().as_ref(), [1, 2, 3, 4]);
        assert_eq!(reader.receive().unwrap().unwrap().as_ref(), [9]);
    }

    #[test]
    fn given_a_closed_socket_or_an_absurd_length_when_read_then_it_is_an_error() {
        let (writer, mut reader) = pair();
        drop(writer);
        assert!(reader.receive().unwrap_err().to_string().contains("closed"));
        let (mut writer, mut reader) = pair();
        writer.write_all(&(-1_i32).to_be_bytes()).unwrap();
        assert!(reader.receive().unwrap_err().to_string().contains("-1 bytes"));
    }

    #[test]
    fn given_a_template_when_sent_twice_then_only_the_correlation_id_differs() {
        let request = produce_request("t", 0, -1, random_batch(1, 10).unwrap());
        let mut template = Template::new(&request, PRODUCE).unwrap();
        let first = template.frame(1).to_vec();
        let second = template.frame(2).to_vec();
        assert_eq!(first[8..12], 1_i32.to_be_bytes());
        assert_eq!(second[8..12], 2_i32.to_be_bytes());
        assert_eq!((&first[..8], &first[12..]), (&second[..8], &second[12..]));
        let whole = encode_request(&request, PRODUCE, 2, Some(&text("chronik-bench"))).unwrap();
        assert_eq!(second, whole);
    }
}
