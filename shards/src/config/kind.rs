//! The types a setting can have: how each is read from what was written, and how it is shown.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use chronik_engine::ids::NodeId;

use super::error::ValueProblem;
use super::given::{Raw, raw_of_toml_text};
use super::hint::is_service_link;

/// A type that settings have.
pub(super) trait SettingType: Sized {
    /// The type in the words of the reference.
    const NAME: &'static str;

    fn from_raw(raw: &Raw) -> Result<Self, ValueProblem>;

    /// The value as TOML.
    fn to_toml(&self) -> String;

    /// The value as a number, for the range check.
    fn number(&self) -> Option<i128> {
        None
    }

    /// What was written, for an error message.
    fn written(raw: &Raw) -> String {
        written(raw)
    }
}

macro_rules! integer {
    ($($type:ty),*) => {$(
        impl SettingType for $type {
            const NAME: &'static str = "integer";

            fn from_raw(raw: &Raw) -> Result<Self, ValueProblem> {
                let value = integer_of(raw)?;
                let max = u64::try_from(<$type>::MAX).unwrap_or(u64::MAX);
                <$type>::try_from(value)
                    .map_err(|_| ValueProblem::OutOfRange { min: 0, max, unit: None })
            }

            fn to_toml(&self) -> String {
                self.to_string()
            }

            fn number(&self) -> Option<i128> {
                Some(*self as i128)
            }
        }
    )*};
}

integer!(u16, u32, u64, usize, i64);

impl SettingType for NodeId {
    const NAME: &'static str = "integer";

    fn from_raw(raw: &Raw) -> Result<Self, ValueProblem> {
        u32::from_raw(raw).map(NodeId)
    }

    fn to_toml(&self) -> String {
        self.0.to_string()
    }

    fn number(&self) -> Option<i128> {
        Some(i128::from(self.0))
    }
}

fn integer_of(raw: &Raw) -> Result<i128, ValueProblem> {
    match raw {
        Raw::Integer(value) => Ok(*value),
        Raw::Untyped(text) if is_service_link(text) => Err(ValueProblem::ServiceLink),
        Raw::Untyped(text) => {
            text.trim().parse().map_err(|_| ValueProblem::NotAnInteger { unit: None })
        }
        other => Err(ValueProblem::WrongType { expected: "an integer", found: describe(other) }),
    }
}

impl SettingType for bool {
    const NAME: &'static str = "true or false";

    fn from_raw(raw: &Raw) -> Result<Self, ValueProblem> {
        match raw {
            Raw::Boolean(value) => Ok(*value),
            Raw::Untyped(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Ok(true),
                "false" | "0" | "no" | "off" => Ok(false),
                _ => Err(ValueProblem::NotABoolean),
            },
            _ => Err(ValueProblem::NotABoolean),
        }
    }

    fn to_toml(&self) -> String {
        self.to_string()
    }
}

impl SettingType for PathBuf {
    const NAME: &'static str = "path";

    fn from_raw(raw: &Raw) -> Result<Self, ValueProblem> {
        text_of(raw, "a path").map(PathBuf::from)
    }

    fn to_toml(&self) -> String {
        quoted(&self.to_string_lossy())
    }
}

impl SettingType for SocketAddr {
    const NAME: &'static str = "IP address and port";

    fn from_raw(raw: &Raw) -> Result<Self, ValueProblem> {
        let text = text_of(raw, "an address")?;
        // The one name that means the same on every machine; others need DNS and may mean several addresses.
        let address = match text.strip_prefix("localhost:") {
            Some(port) => {
                port.parse().map(|port| (IpAddr::V4(Ipv4Addr::LOCALHOST), port).into()).ok()
            }
            None => text.parse().ok(),
        };
        let address: SocketAddr = address.ok_or(ValueProblem::NotAListenAddress)?;
        if address.port() == 0 { Err(ValueProblem::PortZero) } else { Ok(address) }
    }

    fn to_toml(&self) -> String {
        quoted(&self.to_string())
    }
}

/// A host as clients or peers name it, with a port. The port is 0 only between reading and completing a setting
/// that may leave it out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// A name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    pub port: u16,
}

impl HostPort {
    /// Whether the host is an address that means "every interface".
    #[must_use]
    pub fn is_unspecified(&self) -> bool {
        self.address().is_some_and(|address| address.ip().is_unspecified())
    }

    /// The same as an address, if the host is one. Names are for DNS, but for the one that means the same everywhere.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        let host = match self.host.as_str() {
            "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            host => host.parse(),
        };
        host.ok().map(|host| SocketAddr::new(host, self.port))
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        HostPort { host: address.ip().to_string(), port: address.port() }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl SettingType for HostPort {
    const NAME: &'static str = "host and port";

    fn from_raw(raw: &Raw) -> Result<Self, ValueProblem> {
        let text = text_of(raw, "a host and a port")?;
        if let Ok(address) = text.parse::<SocketAddr>() {
            return if address.port() == 0 {
                Err(ValueProblem::PortZero)
            } else {
                Ok(HostPort::from(address))
            };
        }
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(HostPort { host: address.to_string(), port: 0 });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => {
                (host, port.parse::<u16>().map_err(|_| ValueProblem::NotAHostPort)?)
            }
            None => return host_name(&text).map(|host| HostPort { host, port: 0 }),
        };
        if port == 0 {
            return Err(ValueProblem::PortZero);
        }
        host_name(host).map(|host| HostPort { host, port })
    }

    fn to_toml(&self) -> String {
        quoted(&self.to_string())
    }
}

impl SettingType for Option<HostPort> {
    const NAME: &'static str = "host and port";

    /// Empty text is none, so that the reference can be a file.
    fn from_raw(raw: &Raw) -> Result<Self, ValueProblem> {
        if matches!(raw, Raw::Untyped(text) | Raw::Text(text) if text.trim().is_empty()) {
            return Ok(None);
        }
        match HostPort::from_raw(raw)? {
            HostPort { host, port: 0 } => Err(ValueProblem::PortMissing { host }),
            address => Ok(Some(address)),
        }
    }

    fn to_toml(&self) -> String {
        quoted(&self.as_ref().map(HostPort::to_string).unwrap_or_default())
    }
}

fn host_name(text: &str) -> Result<String, ValueProblem> {
    let plausible = !text.is_empty()
        && text.len() <= 253
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
    if plausible { Ok(text.to_owned()) } else { Err(ValueProblem::NotAHostPort) }
}

/// Something that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

/// What is shown in the place of a secret.
const HIDDEN: &str = "***";

impl Secret {
    /// The secret itself.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl SettingType for Option<Secret> {
    const NAME: &'static str = "text";

    /// Empty text is none, so that the reference can be a file.
    fn from_raw(raw: &Raw) -> Result<Self, ValueProblem> {
        if matches!(raw, Raw::Untyped(text) | Raw::Text(text) if text.trim().is_empty()) {
            return Ok(None);
        }
        let text = text_of(raw, "text")?;
        if text == HIDDEN {
            return Err(ValueProblem::SecretHidden);
        }
        Ok(Some(Secret(text.into_bytes())))
    }

    fn to_toml(&self) -> String {
        quoted(if self.is_some() { HIDDEN } else { "" })
    }

    fn written(_raw: &Raw) -> String {
        HIDDEN.to_owned()
    }
}

/// Where a node stands: a name that its operator gives to a rack, a room, a zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rack(pub String);

/// Longest name of a rack, in bytes: every answer to Metadata has one per node.
const RACK_BYTES_MAX: usize = 255;

impl SettingType for Option<Rack> {
    const NAME: &'static str = "text";

    /// Empty text is none, so that the reference can be a file.
    fn from_raw(raw: &Raw) -> Result<Self, ValueProblem> {
        if matches!(raw, Raw::Untyped(text) | Raw::Text(text) if text.trim().is_empty()) {
            return Ok(None);
        }
        let text = text_of(raw, "text")?;
        if text.len() > RACK_BYTES_MAX {
            return Err(ValueProblem::TooLong { bytes_max: RACK_BYTES_MAX });
        }
        Ok(Some(Rack(text)))
    }

    fn to_toml(&self) -> String {
        quoted(self.as_ref().map_or("", |rack| &rack.0))
    }
}

/// Which replica of a partition consumers are sent to, by the names of Kafka's classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaSelector {
    Leader,
    /// One in the consumer's rack.
    RackAware,
}

impl ReplicaSelector {
    /// Kafka's name.
    #[must_use]
    pub fn class(self) -> &'static str {
        match self {
            ReplicaSelector::Leader => "org.apache.kafka.common.replica.LeaderSelector",
            ReplicaSelector::RackAware => {
                "org.apache.kafka.common.replica.RackAwareReplicaSelector"
            }
        }
    }
}

impl SettingType for ReplicaSelector {
    const NAME: &'static str = "class name";

    fn from_raw(raw: &Raw) -> Result<Self, ValueProblem> {
        let text = text_of(raw, "a class name")?;
        let known = [ReplicaSelector::Leader, ReplicaSelector::RackAware];
        known.into_iter().find(|one| one.class() == text).ok_or(ValueProblem::NotASelector)
    }

    fn to_toml(&self) -> String {
        quoted(self.class())
    }
}

/// A node in the list that forms a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterNode {
    pub id: NodeId,
    pub kafka_addr: HostPort,
    pub raft_addr: HostPort,
}

impl SettingType for Vec<ClusterNode> {
    const NAME: &'static str = "list of { id, kafka_addr, raft_addr }";

    fn from_raw(raw: &Raw) -> Result<Self, ValueProblem> {
        let parsed;
        let items = match raw {
            Raw::List(items) => items,
            Raw::Untyped(text) => {
                parsed = raw_of_toml_text(text).ok_or(ValueProblem::NotANodeList)?;
                match &parsed {
                    Raw::List(items) => items,
                    _ => return Err(ValueProblem::NotANodeList),
                }
            }
            _ => return Err(ValueProblem::NotANodeList),
        };
        items.iter().enumerate().map(|(at, item)| node_of(at + 1, item)).collect()
    }

    fn to_toml(&self) -> String {
        let nodes: Vec<String> = self
            .iter()
            .map(|node| {
                format!(
                    "{{ id = {}, kafka_addr = {}, raft_addr = {} }}",
                    node.id.0,
                    node.kafka_addr.to_toml(),
                    node.raft_addr.to_toml()
                )
            })
            .collect();
        format!("[{}]", nodes.join(", "))
    }
}

fn node_of(entry: usize, raw: &Raw) -> Result<ClusterNode, ValueProblem> {
    const FIELDS: [&str; 3] = ["id", "kafka_addr", "raft_addr"];
    let Raw::Table(table) = raw else { return Err(ValueProblem::NotANodeList) };
    if let Some(field) = table.keys().find(|key| !FIELDS.contains(&key.as_str())) {
        return Err(ValueProblem::NodeFieldUnknown { entry, field: field.clone() });
    }
    let field = |name: &'static str| {
        table.get(name).ok_or(ValueProblem::NodeFieldMissing { entry, field: name })
    };
    let address = |name: &'static str| {
        let address = HostPort::from_raw(field(name)?)?;
        if address.port == 0 {
            return Err(ValueProblem::PortMissing { host: address.host });
        }
        Ok(address)
    };
    Ok(ClusterNode {
        id: NodeId::from_raw(field("id")?)?,
        kafka_addr: address("kafka_addr")?,
        raft_addr: address("raft_addr")?,
    })
}

fn text_of(raw: &Raw, expected: &'static str) -> Result<String, ValueProblem> {
    let text = match raw {
        Raw::Untyped(text) | Raw::Text(text) => text.trim(),
        other => return Err(ValueProblem::WrongType { expected, found: describe(other) }),
    };
    if text.is_empty() { Err(ValueProblem::Empty) } else { Ok(text.to_owned()) }
}

fn describe(raw: &Raw) -> &'static str {
    match raw {
        Raw::Untyped(_) | Raw::Text(_) => "text",
        Raw::Integer(_) => "an integer",
        Raw::Boolean(_) => "true or false",
        Raw::List(_) => "a list",
        Raw::Table(_) => "a table",
        Raw::Other(name) => name,
    }
}

/// `text` as a basic TOML string.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// What was written, for an error message.
pub(super) fn written(raw: &Raw) -> String {
    match raw {
        Raw::Untyped(text) | Raw::Text(text) => quoted(text),
        Raw::Integer(value) => value.to_string(),
        Raw::Boolean(value) => value.to_string(),
        Raw::List(_) => "[…]".to_owned(),
        Raw::Table(_) => "{…}".to_owned(),
        Raw::Other(name) => format!("({name})"),
    }
}
