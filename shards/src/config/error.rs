//! What can be wrong with settings. Every message says where, what, and what to write instead.

use std::fmt;
use std::path::PathBuf;

use chronik_engine::ids::NodeId;
use thiserror::Error;

use super::given::Source;
use super::kind::HostPort;

/// One problem with the settings.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("{}: cannot read the configuration file: {source}; check --config", path.display())]
    FileUnreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{}:{line}: not valid TOML: {problem}", path.display())]
    FileSyntax { path: PathBuf, line: usize, problem: String },
    #[error("{place}: unknown setting `{key}`{}", DidYouMean(hint))]
    UnknownKey { place: Source, key: String, hint: Option<String> },
    #[error("{place}: `{key}` ({feature}) is not available in this version; remove the setting")]
    NotAvailable { place: Source, key: String, feature: &'static str },
    #[error("{place}: `{section}` is a table of settings; write [{section}] and keys below it")]
    SectionIsNotATable { place: Source, section: &'static str },
    #[error("{place}: `{key}` = {value}: {problem}")]
    BadValue { place: Source, key: &'static str, value: String, problem: ValueProblem },
    #[error(
        "kafka_addr listens on every interface ({kafka_addr}), which is no address that clients can connect to; \
         set advertised_addr to the host name or address they use (--advertised-addr HOST:PORT or \
         CHRONIK_ADVERTISED_ADDR)"
    )]
    AdvertisedAddressMissing { kafka_addr: std::net::SocketAddr },
    #[error(
        "kafka_port {kafka_port} + {distance} is beyond 65535, so `{key}` has no default; set `{key}`"
    )]
    DefaultPortBeyondRange { key: &'static str, kafka_port: u16, distance: u16 },
    #[error("`{first}` and `{second}` are both port {port}; give each its own")]
    PortUsedTwice { first: &'static str, second: &'static str, port: u16 },
    #[error("cluster.nodes lists {nodes} nodes; at most {nodes_max} can be one cluster")]
    TooManyNodes { nodes: usize, nodes_max: usize },
    #[error(
        "cluster.nodes gives node {node_id} the name {listed} for `{key}`, so it is not known where to listen; set \
         `{key}`, for instance to 0.0.0.0:{}",
        listed.port
    )]
    ListenAddressMissing { key: &'static str, node_id: NodeId, listed: HostPort },
    #[error(
        "node {node_id} talks to other nodes at {address}, which other machines may reach, but there is no \
         cluster.secret; set the same on every node (CHRONIK_CLUSTER_SECRET), or use loopback addresses"
    )]
    SecretMissing { node_id: NodeId, address: HostPort },
    #[error(
        "`{key}` and `cluster.nodes` are two ways into a cluster; take one: a list that all nodes have, or one node with \
         cluster.bootstrap that the others join"
    )]
    WayAndList { key: &'static str },
    #[error(
        "`cluster.bootstrap` begins a cluster and `cluster.join` joins one; take one of the two on each node"
    )]
    BootstrapAndJoin,
    #[error(
        "`cluster.read_only` is for a node that joins by cluster.join: `{key}` would give it a vote; leave that out, here and \
         for this node on the others"
    )]
    ReadOnlyVotes { key: &'static str },
    #[error(
        "`cluster.read_only` is for a node of a cluster: set `cluster.join` to the Raft address of any node that runs"
    )]
    ReadOnlyAlone,
    #[error("flag --{flag}: not available in this version; leave it out")]
    ClusterFlagNotAvailable { flag: &'static str },
    #[error(
        "cluster.nodes does not list this node (node_id = {node_id}); add it or correct node_id"
    )]
    NodeNotListed { node_id: NodeId },
    #[error("cluster.nodes lists node {node_id} twice; ids are unique")]
    NodeListedTwice { node_id: NodeId },
    #[error("cluster.nodes uses the address {address} twice; every address is unique")]
    NodeAddressTwice { address: HostPort },
    #[error(
        "cluster.nodes says clients reach node {node_id} at {listed}, but advertised_addr is {advertised}; \
         make them the same"
    )]
    NodeAddressDiffers { node_id: NodeId, listed: HostPort, advertised: HostPort },
    #[error(
        "kafka.default_replication_factor = {factor}, but the number of nodes is {nodes}; it can be at most that"
    )]
    ReplicationFactorTooHigh { factor: u16, nodes: usize },
    #[error(
        "kafka.message_max_bytes = {message_max_bytes} does not fit a request of \
         kafka.socket_request_max_bytes = {request_max_bytes}; lower the first or raise the second"
    )]
    MessageLargerThanRequest { message_max_bytes: usize, request_max_bytes: usize },
}

/// All problems of one load, in the order found.
#[derive(Debug)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, error) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Something odd that does not keep the broker from starting.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigWarning {
    #[error(
        "OBJECT_STORE_BACKEND=local has no effect in this version: records stay in the write-ahead log"
    )]
    ObjectStoreIgnored,
    #[error(
        "environment variable {name} looks like one that Kubernetes makes for a service; ignored"
    )]
    ServiceVariableIgnored { name: String },
    #[error(
        "environment variable {name} is no setting; ignored (`chronik-server config reference` lists all settings)"
    )]
    UnknownVariableIgnored { name: String },
}

/// Why a value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ValueProblem {
    #[error("must be {expected}, not {found}")]
    WrongType { expected: &'static str, found: &'static str },
    #[error("must be a whole number{}, written without a unit", InUnit(*unit))]
    NotAnInteger { unit: Option<&'static str> },
    #[error("must be between {min} and {max}{}", InUnit(*unit))]
    OutOfRange { min: u64, max: u64, unit: Option<&'static str> },
    #[error("must be true or false")]
    NotABoolean,
    #[error("must not be empty")]
    Empty,
    #[error("this is what is shown in the place of the secret; give the secret itself")]
    SecretHidden,
    #[error("must have at most {bytes_max} bytes")]
    TooLong { bytes_max: usize },
    #[error(
        "must be org.apache.kafka.common.replica.LeaderSelector or \
         org.apache.kafka.common.replica.RackAwareReplicaSelector"
    )]
    NotASelector,
    #[error(
        "must be an IP address and a port, such as 127.0.0.1:9092, 0.0.0.0:9092 or [::1]:9092; \
         the name that clients use belongs into advertised_addr"
    )]
    NotAListenAddress,
    #[error("must be a host and a port, such as broker1.example.net:9092")]
    NotAHostPort,
    #[error(
        "must name its port, as in {host}:PORT; by default that is 9092 for Kafka clients and 9192 for other nodes"
    )]
    PortMissing { host: String },
    #[error("port 0 is not possible here; give a port between 1 and 65535")]
    PortZero,
    #[error(
        "is an address to listen on, not one that clients can connect to; give a host name or address"
    )]
    AdvertisedUnspecified,
    #[error("must be a list of tables {{ id, kafka_addr, raft_addr }}")]
    NotANodeList,
    #[error("node entry {entry} has no `{field}`")]
    NodeFieldMissing { entry: usize, field: &'static str },
    #[error(
        "node entry {entry} has an unknown field `{field}`; known are id, kafka_addr, raft_addr"
    )]
    NodeFieldUnknown { entry: usize, field: String },
    #[error(
        "looks like the variable that Kubernetes makes for a service; set enableServiceLinks: false in the pod, \
         or give the port as a number"
    )]
    ServiceLink,
}

struct DidYouMean<'a>(&'a Option<String>);

impl fmt::Display for DidYouMean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(hint) => write!(f, "; did you mean `{hint}`?"),
            None => f.write_str("; `chronik-server config reference` lists all settings"),
        }
    }
}

struct InUnit(Option<&'static str>);

impl fmt::Display for InUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(unit) => write!(f, " ({unit})"),
            None => Ok(()),
        }
    }
}
