//! Turns what was given into a [`Config`]: takes each setting's value or default, checks ranges, then checks what
//! settings must satisfy together.

use std::collections::BTreeMap;

use chronik_replication::formation::NODES_MAX;

use super::error::{ConfigError, ConfigErrors, ConfigWarning, ValueProblem};
use super::given::{Given, Inputs, Source, collect};
use super::kind::{ClusterNode, HostPort, SettingType};
use super::settings::{ADMIN_PORT_DISTANCE, Config, LOOPBACK, RAFT_PORT_DISTANCE, beside};

/// The values a numeric setting may have, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub min: u64,
    pub max: u64,
}

/// One declared setting.
#[derive(Debug, Clone, Copy)]
pub struct SettingInfo {
    /// The TOML key with its table: `wal.file_bytes`.
    pub key: &'static str,
    pub type_name: &'static str,
    pub range: Option<Range>,
    pub doc: &'static [&'static str],
}

impl SettingInfo {
    /// The unit, which the name says.
    #[must_use]
    pub fn unit(&self) -> Option<&'static str> {
        if self.key.ends_with("_ms") {
            Some("milliseconds")
        } else if self.key.ends_with("_bytes") {
            Some("bytes")
        } else {
            None
        }
    }
}

/// A setting's value as it holds, in TOML, and where it comes from.
#[derive(Debug, Clone)]
pub struct Effective {
    pub info: SettingInfo,
    pub value: String,
    pub source: Source,
}

/// The result of loading.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    pub effective: Vec<Effective>,
    pub warnings: Vec<ConfigWarning>,
}

pub(super) struct Loader {
    given: BTreeMap<&'static str, Given>,
    effective: Vec<Effective>,
    errors: Vec<ConfigError>,
}

/// Loads the settings from all sources.
///
/// # Errors
/// All problems found, never only the first.
pub fn load(inputs: &Inputs) -> Result<Loaded, ConfigErrors> {
    let mut collected = collect(inputs);
    settle_kafka_port(&mut collected.given);
    let mut loader =
        Loader { given: collected.given, effective: Vec::new(), errors: collected.errors };
    let mut config = Config::take(&mut loader);
    loader.complete_addresses(&mut config);
    loader.check_together(&config);
    if !loader.errors.is_empty() {
        return Err(ConfigErrors(loader.errors));
    }
    Ok(Loaded { config, effective: loader.effective, warnings: collected.warnings })
}

/// `kafka_port` stands for the port within `kafka_addr`: of the two the later source counts, and within one source
/// the port, since it is the more particular of the two.
fn settle_kafka_port(given: &mut BTreeMap<&'static str, Given>) {
    let rank = |key: &str| given.get(key).map(|given| given.source.rank());
    if rank("kafka_addr") > rank("kafka_port") {
        given.remove("kafka_port");
    }
}

impl Loader {
    pub(super) fn setting<T: SettingType>(&mut self, info: SettingInfo, default: T) -> T {
        let (value, source) = match self.given.remove(info.key) {
            None => (default, Source::Default),
            Some(Given { raw, source }) => match checked::<T>(&info, T::from_raw(&raw)) {
                Ok(value) => (value, source),
                Err(problem) => {
                    let value = T::written(&raw);
                    let place = source.clone();
                    self.errors.push(ConfigError::BadValue {
                        place,
                        key: info.key,
                        value,
                        problem,
                    });
                    (default, source)
                }
            },
        };
        self.effective.push(Effective { info, value: value.to_toml(), source });
        value
    }

    fn source(&self, key: &str) -> Source {
        self.effective
            .iter()
            .find(|effective| effective.info.key == key)
            .map_or(Source::Default, |effective| effective.source.clone())
    }

    fn replace<T: SettingType>(&mut self, key: &str, value: &T) {
        let found = self.effective.iter_mut().find(|effective| effective.info.key == key);
        if let Some(effective) = found {
            effective.value = value.to_toml();
        }
    }

    /// What the list of nodes says of this node holds where nothing else is given, so that all nodes can have one file.
    fn take_addresses_from_list(&mut self, config: &mut Config) {
        let own = config.cluster.nodes.iter().find(|node| node.id == config.node_id);
        let Some(ClusterNode { id, kafka_addr, raft_addr }) = own.cloned() else { return };
        let is_cluster = config.cluster.nodes.len() > 1;
        let listen = |loader: &mut Loader, key: &'static str, listed: &HostPort| {
            if loader.source(key) != Source::Default {
                return None;
            }
            let address = listed.address();
            let is_needed = key == "kafka_addr" || is_cluster;
            if address.is_none() && is_needed {
                let listed = listed.clone();
                let missing = ConfigError::ListenAddressMissing { key, node_id: id, listed };
                loader.errors.push(missing);
            }
            address
        };
        if let Some(address) = listen(self, "kafka_addr", &kafka_addr) {
            config.kafka_addr = address;
            if self.source("kafka_port") == Source::Default {
                config.kafka_port = address.port();
                self.replace("kafka_port", &config.kafka_port);
            }
        }
        if let Some(address) = listen(self, "raft_addr", &raft_addr) {
            config.raft_addr = address;
            self.replace("raft_addr", &config.raft_addr);
        }
        if self.source("admin_addr") == Source::Default {
            config.admin_addr = beside(LOOPBACK, config.kafka_port, ADMIN_PORT_DISTANCE);
            self.replace("admin_addr", &config.admin_addr);
        }
    }

    fn complete_addresses(&mut self, config: &mut Config) {
        self.take_addresses_from_list(config);
        config.kafka_addr.set_port(config.kafka_port);
        self.replace("kafka_addr", &config.kafka_addr);
        if config.advertised_addr.port == 0 {
            config.advertised_addr.port = config.kafka_port;
            self.replace("advertised_addr", &config.advertised_addr);
        }
        if self.source("advertised_addr") == Source::Default {
            let own = config.cluster.nodes.iter().find(|node| node.id == config.node_id);
            config.advertised_addr = match own {
                Some(own) => own.kafka_addr.clone(),
                None => HostPort::from(config.kafka_addr),
            };
            self.replace("advertised_addr", &config.advertised_addr);
        }
    }

    fn check_together(&mut self, config: &Config) {
        // A value that was refused stands at its default here; what follows from it would only confuse.
        if self.errors.iter().any(|error| matches!(error, ConfigError::BadValue { .. })) {
            return;
        }
        self.check_addresses(config);
        self.check_cluster(config);
        let nodes = config.cluster.nodes.len();
        let factor = config.kafka.default_replication_factor;
        // Without a list nobody knows how many nodes join; whether a node is alone its data directory says.
        if usize::from(factor) > nodes && nodes > 1 {
            self.errors.push(ConfigError::ReplicationFactorTooHigh { factor, nodes });
        }
        let message_max_bytes = config.kafka.message_max_bytes;
        let request_max_bytes = config.kafka.socket_request_max_bytes;
        if message_max_bytes > request_max_bytes {
            self.errors.push(ConfigError::MessageLargerThanRequest {
                message_max_bytes,
                request_max_bytes,
            });
        }
    }

    fn check_addresses(&mut self, config: &Config) {
        let advertised_source = self.source("advertised_addr");
        if config.advertised_addr.is_unspecified() {
            self.errors.push(match advertised_source {
                Source::Default => {
                    ConfigError::AdvertisedAddressMissing { kafka_addr: config.kafka_addr }
                }
                place => ConfigError::BadValue {
                    place,
                    key: "advertised_addr",
                    value: config.advertised_addr.to_toml(),
                    problem: ValueProblem::AdvertisedUnspecified,
                },
            });
        }
        let kafka_port = config.kafka_port;
        let defaulted = [
            ("raft_addr", config.raft_addr, RAFT_PORT_DISTANCE),
            ("admin_addr", config.admin_addr, ADMIN_PORT_DISTANCE),
        ];
        for (key, _, distance) in defaulted.iter().filter(|(_, address, _)| address.port() == 0) {
            let distance = *distance;
            self.errors.push(ConfigError::DefaultPortBeyondRange { key, kafka_port, distance });
        }
        let pairs = [
            (("kafka_addr", config.kafka_addr), ("raft_addr", config.raft_addr)),
            (("kafka_addr", config.kafka_addr), ("admin_addr", config.admin_addr)),
            (("raft_addr", config.raft_addr), ("admin_addr", config.admin_addr)),
        ];
        for ((first, one), (second, other)) in pairs {
            let same_interface =
                one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
            if one.port() == other.port() && one.port() != 0 && same_interface {
                self.errors.push(ConfigError::PortUsedTwice { first, second, port: one.port() });
            }
        }
    }

    fn check_cluster(&mut self, config: &Config) {
        let nodes = &config.cluster.nodes;
        self.check_way(config);
        if nodes.len() > NODES_MAX {
            let (nodes, nodes_max) = (nodes.len(), NODES_MAX);
            self.errors.push(ConfigError::TooManyNodes { nodes, nodes_max });
        }
        for (at, node) in nodes.iter().enumerate() {
            let before = &nodes[..at];
            if before.iter().any(|other| other.id == node.id) {
                self.errors.push(ConfigError::NodeListedTwice { node_id: node.id });
            }
            let taken = |address: &HostPort| {
                before
                    .iter()
                    .any(|other| other.kafka_addr == *address || other.raft_addr == *address)
            };
            for address in [&node.kafka_addr, &node.raft_addr] {
                if taken(address) || (node.kafka_addr == node.raft_addr) {
                    self.errors.push(ConfigError::NodeAddressTwice { address: address.clone() });
                    break;
                }
            }
        }
        let Some(own) = nodes.iter().find(|node| node.id == config.node_id) else {
            if !nodes.is_empty() {
                self.errors.push(ConfigError::NodeNotListed { node_id: config.node_id });
            }
            return;
        };
        if own.kafka_addr != config.advertised_addr {
            self.errors.push(ConfigError::NodeAddressDiffers {
                node_id: own.id,
                listed: own.kafka_addr.clone(),
                advertised: config.advertised_addr.clone(),
            });
        }
        self.check_secret(config);
    }

    /// A node has one way into its cluster.
    fn check_way(&mut self, config: &Config) {
        let cluster = &config.cluster;
        let ways =
            [("cluster.bootstrap", cluster.bootstrap), ("cluster.join", cluster.join.is_some())];
        for (key, _) in ways.into_iter().filter(|(_, given)| *given && !cluster.nodes.is_empty()) {
            self.errors.push(ConfigError::WayAndList { key });
        }
        let votes = [
            ("cluster.bootstrap", cluster.bootstrap),
            ("cluster.nodes", !cluster.nodes.is_empty()),
        ];
        for (key, _) in votes.into_iter().filter(|(_, given)| *given && cluster.read_only) {
            self.errors.push(ConfigError::ReadOnlyVotes { key });
        }
        if cluster.bootstrap && cluster.join.is_some() {
            self.errors.push(ConfigError::BootstrapAndJoin);
        }
        if cluster.nodes.is_empty() && (cluster.bootstrap || cluster.join.is_some()) {
            self.errors.extend(secret_missing(config));
        }
    }

    fn check_secret(&mut self, config: &Config) {
        if config.cluster.nodes.len() > 1 {
            self.errors.extend(secret_missing(config));
        }
    }
}

/// What is wrong with a node of a cluster that has no secret: whoever reaches its Raft port can write its log, so
/// without a secret nobody on another machine may.
#[must_use]
pub fn secret_missing(config: &Config) -> Option<ConfigError> {
    if config.cluster.secret.is_some() {
        return None;
    }
    let own = HostPort::from(config.raft_addr);
    let listed = config.cluster.nodes.iter().map(|node| (node.id, node.raft_addr.clone()));
    let joined = config.cluster.join.clone();
    let all = listed.chain(joined.into_iter().chain([own]).map(|addr| (config.node_id, addr)));
    let is_open =
        |address: &HostPort| !address.address().is_some_and(|address| address.ip().is_loopback());
    let (node_id, address) = all.into_iter().find(|(_, address)| is_open(address))?;
    Some(ConfigError::SecretMissing { node_id, address })
}

/// Puts the setting's own range and unit into what the type alone could say.
fn checked<T: SettingType>(
    info: &SettingInfo,
    value: Result<T, ValueProblem>,
) -> Result<T, ValueProblem> {
    let unit = info.unit();
    let out_of_range =
        |range: Range| ValueProblem::OutOfRange { min: range.min, max: range.max, unit };
    match value {
        Ok(value) => match (value.number(), info.range) {
            (Some(number), Some(range))
                if number < i128::from(range.min) || number > i128::from(range.max) =>
            {
                Err(out_of_range(range))
            }
            _ => Ok(value),
        },
        Err(ValueProblem::NotAnInteger { .. }) => Err(ValueProblem::NotAnInteger { unit }),
        Err(ValueProblem::OutOfRange { min, max, .. }) => {
            Err(out_of_range(info.range.unwrap_or(Range { min, max })))
        }
        Err(problem) => Err(problem),
    }
}
