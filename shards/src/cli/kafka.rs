//! What the commands that look after topics, groups and replicas say to brokers: the Kafka protocol, as any client
//! speaks it, so that they work from another machine and through any node.
//!
//! Owns connections, versions, and whom a request is for. Never a command's output.
//!
//! - I1: every wait is bounded: of a connection by its timeouts, of a state of the cluster by [`TRIES`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use chronik_net::client::{Client, ClientError};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, BrokerId, FindCoordinatorRequest, ListOffsetsRequest,
    MetadataRequest, MetadataResponse, TopicName,
};
use kafka_protocol::protocol::{Request, StrBytes};
use thiserror::Error;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than the longest time that a request here lets a broker take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(40);
/// How long a broker may take to bring a change about.
pub(super) const CHANGE_TIMEOUT_MS: i32 = 30_000;

/// How often a state that passes, an election or a group that is loading, is waited for, and how long in between.
const TRIES: u32 = 60;
const RETRY: Duration = Duration::from_millis(250);

/// ListOffsets' names for the ends of a partition.
pub(super) const EARLIEST: i64 = -2;
pub(super) const LATEST: i64 = -1;

/// Why the brokers could not be asked, or refused.
#[derive(Debug, Error)]
pub enum KafkaError {
    #[error(
        "no broker answers at {addresses}: {source}; is it running, and is this its kafka_addr (--bootstrap)?"
    )]
    Unreachable {
        addresses: String,
        #[source]
        source: ClientError,
    },
    #[error("{address} is not HOST:PORT, or its host is not known here")]
    Address { address: String },
    #[error("broker {address}: {source}")]
    Broken {
        address: String,
        #[source]
        source: ClientError,
    },
    #[error("broker {address} does not serve {api:?} in a version that is known here")]
    NotServed { address: String, api: ApiKey },
    #[error("{what}: {refusal}")]
    Refused { what: String, refusal: Refusal },
    #[error("{what} has no leader")]
    NoLeader { what: String },
    #[error("the brokers do not know of a broker {node}")]
    UnknownBroker { node: i32 },
    #[error("{failed} of {asked} refused")]
    Partly { failed: usize, asked: usize },
    #[error("{0}")]
    Usage(String),
}

/// An error code, and what the broker says to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Kafka's name for it.
    pub error: ResponseError,
    /// What the broker says, if anything.
    pub message: Option<String>,
}

impl Refusal {
    /// The refusal in an answer; `Ok` where there is none.
    pub(super) fn check(code: i16, message: Option<&StrBytes>) -> Result<(), Refusal> {
        let message = message.map(ToString::to_string).filter(|text| !text.is_empty());
        match ResponseError::try_from_code(code) {
            None => Ok(()),
            Some(error) => Err(Refusal { error, message }),
        }
    }

    pub(super) fn of(self, what: impl Into<String>) -> KafkaError {
        KafkaError::Refused { what: what.into(), refusal: self }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = kafka_name(self.error);
        match &self.message {
            Some(message) => write!(f, "{message} ({name})"),
            None => f.write_str(&name),
        }
    }
}

/// UNKNOWN_TOPIC_OR_PARTITION and the like.
pub(super) fn kafka_name(error: ResponseError) -> String {
    if let ResponseError::Unknown(code) = error {
        return format!("error {code}");
    }
    let mut name = String::new();
    for (at, letter) in error.to_string().chars().enumerate() {
        if at > 0 && letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// A connection to one broker, and what that serves.
#[derive(Debug)]
struct Connection {
    client: Client,
    versions: BTreeMap<i16, (i16, i16)>,
}

/// The brokers of a cluster.
#[derive(Debug)]
pub(super) struct Kafka {
    bootstrap: Vec<String>,
    /// Where the brokers are, by id, as far as they were told of.
    brokers: BTreeMap<i32, String>,
    connections: BTreeMap<String, Connection>,
}

/// A request in the versions that it can be sent in as it is.
pub(super) struct Versioned<R> {
    pub(super) request: R,
    pub(super) min: i16,
    pub(super) max: i16,
}

/// `request` may be sent in these versions.
pub(super) fn in_versions<R: Request>(min: i16, max: i16, request: R) -> Versioned<R> {
    Versioned { request, min, max }
}

impl Connection {
    fn open(address: &str) -> Result<Connection, KafkaError> {
        let resolved = address.to_socket_addrs().ok().and_then(|mut found| found.next());
        let resolved: SocketAddr =
            resolved.ok_or_else(|| KafkaError::Address { address: address.to_owned() })?;
        let broken = |source| KafkaError::Broken { address: address.to_owned(), source };
        let mut client =
            Client::connect_with(resolved, CONNECT_TIMEOUT, ANSWER_TIMEOUT).map_err(broken)?;
        let served = client.call(&ApiVersionsRequest::default(), 0).map_err(broken)?;
        let versions = served.api_keys.iter();
        let versions = versions.map(|api| (api.api_key, (api.min_version, api.max_version)));
        Ok(Connection { client, versions: versions.collect() })
    }

    fn call<R: Request>(
        &mut self,
        address: &str,
        asked: &Versioned<R>,
    ) -> Result<R::Response, KafkaError> {
        let not_served = || KafkaError::NotServed {
            address: address.to_owned(),
            api: ApiKey::try_from(R::KEY).unwrap_or(ApiKey::ApiVersions),
        };
        let (min, max) = self.versions.get(&R::KEY).copied().ok_or_else(not_served)?;
        let version = max.min(asked.max);
        if version < min.max(asked.min) {
            return Err(not_served());
        }
        let answer = self.client.call(&asked.request, version);
        answer.map_err(|source| KafkaError::Broken { address: address.to_owned(), source })
    }
}

impl Kafka {
    /// The brokers that one of these addresses, with commas between them, leads to. Connects when asked for something.
    pub(super) fn new(bootstrap: &str) -> Kafka {
        let bootstrap = bootstrap.split(',').map(str::trim).filter(|address| !address.is_empty());
        Kafka {
            bootstrap: bootstrap.map(str::to_owned).collect(),
            brokers: BTreeMap::new(),
            connections: BTreeMap::new(),
        }
    }

    /// Asks whichever broker answers first.
    pub(super) fn any<R: Request>(
        &mut self,
        asked: &Versioned<R>,
    ) -> Result<R::Response, KafkaError> {
        let mut addresses = self.bootstrap.clone();
        addresses.extend(self.brokers.values().cloned());
        let mut last = KafkaError::Address { address: self.bootstrap.join(",") };
        for address in addresses {
            match self.at(&address, asked) {
                // What a broker does not serve no other one serves either; else the next one may answer.
                Err(KafkaError::Broken { address: _, source }) => {
                    let addresses = self.bootstrap.join(",");
                    last = KafkaError::Unreachable { addresses, source };
                }
                Err(error @ KafkaError::Address { .. }) => last = error,
                other => return other,
            }
        }
        Err(last)
    }

    fn at<R: Request>(
        &mut self,
        address: &str,
        asked: &Versioned<R>,
    ) -> Result<R::Response, KafkaError> {
        if !self.connections.contains_key(address) {
            self.connections.insert(address.to_owned(), Connection::open(address)?);
        }
        let Some(connection) = self.connections.get_mut(address) else {
            return Err(KafkaError::Address { address: address.to_owned() });
        };
        let answer = connection.call(address, asked);
        if matches!(answer, Err(KafkaError::Broken { .. })) {
            self.connections.remove(address);
        }
        answer
    }

    /// Asks one broker.
    pub(super) fn broker<R: Request>(
        &mut self,
        node: i32,
        asked: &Versioned<R>,
    ) -> Result<R::Response, KafkaError> {
        let address = self.brokers.get(&node).cloned();
        self.at(&address.ok_or(KafkaError::UnknownBroker { node })?, asked)
    }

    /// The topics of these names, or all of them; and which brokers there are.
    pub(super) fn metadata(
        &mut self,
        names: Option<&[String]>,
    ) -> Result<MetadataResponse, KafkaError> {
        let topic =
            |name: &String| MetadataRequestTopic::default().with_name(Some(topic_name(name)));
        let topics = names.map(|names| names.iter().map(topic).collect());
        let request =
            MetadataRequest::default().with_topics(topics).with_allow_auto_topic_creation(false);
        let answer = self.any(&in_versions(4, 12, request))?;
        for broker in &answer.brokers {
            self.brokers.insert(broker.node_id.0, format!("{}:{}", broker.host, broker.port));
        }
        Ok(answer)
    }

    /// The brokers that there are.
    pub(super) fn nodes(&mut self) -> Result<BTreeSet<i32>, KafkaError> {
        let answer = self.metadata(Some(&[]))?;
        Ok(answer.brokers.iter().map(|broker| broker.node_id.0).collect())
    }

    /// Where the brokers stand that say so.
    pub(super) fn racks(&mut self) -> Result<BTreeMap<i32, String>, KafkaError> {
        let answer = self.metadata(Some(&[]))?;
        let racks = answer.brokers.iter().filter_map(|broker| {
            let rack = broker.rack.as_ref().filter(|rack| !rack.is_empty())?;
            Some((broker.node_id.0, rack.to_string()))
        });
        Ok(racks.collect())
    }

    /// The broker that coordinates a group.
    pub(super) fn coordinator(&mut self, group: &str) -> Result<i32, KafkaError> {
        let request =
            FindCoordinatorRequest::default().with_key(StrBytes::from_string(group.to_owned()));
        let request = in_versions(1, 3, request);
        self.patiently(|kafka| {
            let answer = kafka.any(&request)?;
            match Refusal::check(answer.error_code, answer.error_message.as_ref()) {
                Ok(()) => {
                    let address = format!("{}:{}", answer.host, answer.port);
                    kafka.brokers.insert(answer.node_id.0, address);
                    Ok(Ok(answer.node_id.0))
                }
                Err(refusal) => Ok(Err(refusal.of(format!("the coordinator of group {group}")))),
            }
        })
    }

    /// Asks again while the answer says that the state of the cluster is passing (I1).
    pub(super) fn patiently<T>(
        &mut self,
        mut ask: impl FnMut(&mut Kafka) -> Result<Result<T, KafkaError>, KafkaError>,
    ) -> Result<T, KafkaError> {
        let mut tries_left = TRIES;
        loop {
            match ask(self)? {
                Ok(answer) => return Ok(answer),
                Err(error) if tries_left == 0 || !is_passing(&error) => return Err(error),
                Err(_) => std::thread::sleep(RETRY),
            }
            tries_left -= 1;
        }
    }

    /// The offset of each of these partitions at `timestamp`, asked of their leaders. A partition without one, or
    /// without a record of that time, is left out.
    pub(super) fn offsets(
        &mut self,
        topics: &[MetadataResponseTopic],
        timestamp: i64,
    ) -> Result<BTreeMap<(String, i32), i64>, KafkaError> {
        let mut by_leader: BTreeMap<i32, BTreeMap<String, Vec<ListOffsetsPartition>>> =
            BTreeMap::new();
        for topic in topics {
            let Some(name) = &topic.name else { continue };
            for partition in topic.partitions.iter().filter(|partition| partition.leader_id.0 >= 0)
            {
                let asked = ListOffsetsPartition::default()
                    .with_partition_index(partition.partition_index)
                    .with_timestamp(timestamp);
                let of_leader = by_leader.entry(partition.leader_id.0).or_default();
                of_leader.entry(name.to_string()).or_default().push(asked);
            }
        }
        let mut offsets = BTreeMap::new();
        for (leader, topics) in by_leader {
            let topics = topics.into_iter().map(|(name, partitions)| {
                ListOffsetsTopic::default().with_name(topic_name(&name)).with_partitions(partitions)
            });
            let request = ListOffsetsRequest::default()
                .with_replica_id(BrokerId(-1))
                .with_topics(topics.collect());
            // A leader that went away just now is shown as a partition without offsets.
            let Ok(answer) = self.broker(leader, &in_versions(1, 7, request)) else { continue };
            for topic in answer.topics {
                for found in topic.partitions.iter().filter(|p| p.error_code == 0 && p.offset >= 0)
                {
                    offsets.insert((topic.name.to_string(), found.partition_index), found.offset);
                }
            }
        }
        Ok(offsets)
    }
}

/// Whether the same question may be answered soon.
fn is_passing(error: &KafkaError) -> bool {
    let KafkaError::Refused { refusal, .. } = error else {
        return matches!(error, KafkaError::NoLeader { .. });
    };
    matches!(
        refusal.error,
        ResponseError::CoordinatorNotAvailable
            | ResponseError::CoordinatorLoadInProgress
            | ResponseError::NotCoordinator
            | ResponseError::NotLeaderOrFollower
            | ResponseError::LeaderNotAvailable
            | ResponseError::NotController
    )
}

pub(super) fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

/// The name of a topic in an answer.
pub(super) fn name_of(topic: &MetadataResponseTopic) -> String {
    topic.name.as_ref().map(|name| name.to_string()).unwrap_or_default()
}

/// The topics of an answer that are there; the others as refusals by name.
pub(super) fn known_topics(
    topics: Vec<MetadataResponseTopic>,
) -> (Vec<MetadataResponseTopic>, Vec<(String, Refusal)>) {
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for topic in topics {
        let name = name_of(&topic);
        match Refusal::check(topic.error_code, None) {
            Ok(()) => known.push(topic),
            Err(refusal) => unknown.push((name, refusal)),
        }
    }
    known.sort_by(|a, b| a.name.cmp(&b.name));
    for topic in &mut known {
        topic.partitions.sort_by_key(|partition| partition.partition_index);
    }
    (known, unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_an_error_when_named_then_it_is_as_kafkas_documentation_writes_it() {
        let name = kafka_name(ResponseError::UnknownTopicOrPartition);
        assert_eq!(name, "UNKNOWN_TOPIC_OR_PARTITION");
        assert_eq!(kafka_name(ResponseError::Unknown(999)), "error 999");
        let refusal =
            Refusal::check(36, Some(&StrBytes::from_static_str("it is there"))).unwrap_err();
        assert_eq!(refusal.to_string(), "it is there (TOPIC_ALREADY_EXISTS)");
        assert_eq!(Refusal::check(0, None), Ok(()));
    }

    #[test]
    fn given_nobody_at_the_address_when_asked_then_the_error_names_it_and_what_to_look_at() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let mut kafka = Kafka::new(&format!("{address} , {address}"));
        let error = kafka.nodes().unwrap_err();
        assert!(matches!(error, KafkaError::Unreachable { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&address) && text.contains("--bootstrap"), "{text}");
        assert!(matches!(Kafka::new("nowhere").nodes(), Err(KafkaError::Address { .. })));
    }

    #[test]
    fn given_errors_when_judged_then_only_passing_ones_are_worth_another_try() {
        let refused = |error| Refusal { error, message: None }.of("x");
        assert!(is_passing(&refused(ResponseError::NotCoordinator)));
        assert!(!is_passing(&refused(ResponseError::UnknownTopicOrPartition)));
        assert!(!is_passing(&KafkaError::UnknownBroker { node: 1 }));
    }
}
