//! The declaration of every setting: name, type, range, default, and what it is for.
//!
//! This is the only place a setting is named. A default may use the settings declared above it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use chronik_engine::ids::NodeId;

use super::kind::{ClusterNode, HostPort, Rack, ReplicaSelector, Secret, SettingType};
use super::loader::{Loader, Range, SettingInfo};

/// The Raft port's distance from the Kafka port, unless `raft_addr` is given.
pub(super) const RAFT_PORT_DISTANCE: u16 = 100;
/// The admin port's distance from the Kafka port, unless `admin_addr` is given.
pub(super) const ADMIN_PORT_DISTANCE: u16 = 200;

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

macro_rules! settings {
    (@range) => { None };
    (@range $min:expr, $max:expr) => { Some(Range { min: $min, max: $max }) };

    (@info $key:expr, $type:ty, [$($range:tt)*], [$($doc:literal),+]) => {
        SettingInfo {
            key: $key,
            type_name: <$type as SettingType>::NAME,
            range: settings!(@range $($range)*),
            doc: &[$($doc),+],
        }
    };

    (
        $(#[doc = $root_doc:literal])+
        $Root:ident {
            $($(#[doc = $doc:literal])+ $field:ident: $type:ty $([$($range:tt)*])? = $default:expr;)*
        }
        $(
            $(#[doc = $section_doc:literal])+
            $section:ident: $Section:ident {
                $($(#[doc = $inner_doc:literal])+
                $inner:ident: $inner_type:ty $([$($inner_range:tt)*])? = $inner_default:expr;)*
            }
        )*
    ) => {
        $(#[doc = $root_doc])+
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $Root {
            $($(#[doc = $doc])+ pub $field: $type,)*
            $($(#[doc = $section_doc])+ pub $section: $Section,)*
        }

        $(
            $(#[doc = $section_doc])+
            #[derive(Debug, Clone, PartialEq, Eq)]
            pub struct $Section {
                $($(#[doc = $inner_doc])+ pub $inner: $inner_type,)*
            }
        )*

        /// Every setting, in the order of the reference.
        pub static SETTINGS: &[SettingInfo] = &[
            $(settings!(@info stringify!($field), $type, [$($($range)*)?], [$($doc),+]),)*
            $($(settings!(
                @info concat!(stringify!($section), ".", stringify!($inner)),
                $inner_type, [$($($inner_range)*)?], [$($inner_doc),+]
            ),)*)*
        ];

        /// The tables of the TOML file.
        pub(super) static SECTIONS: &[&str] = &[$(stringify!($section)),*];

        /// What a table of the TOML file is about.
        #[must_use]
        pub fn section_doc(section: &str) -> &'static [&'static str] {
            match section {
                $(stringify!($section) => &[$($section_doc),+],)*
                _ => &[$($root_doc),+],
            }
        }

        impl $Root {
            /// Takes every setting from the loader, in order.
            pub(super) fn take(loader: &mut Loader) -> $Root {
                $(let $field: $type = loader.setting(
                    settings!(@info stringify!($field), $type, [$($($range)*)?], [$($doc),+]),
                    $default,
                );)*
                $(let $section = {
                    $(let $inner: $inner_type = loader.setting(
                        settings!(
                            @info concat!(stringify!($section), ".", stringify!($inner)),
                            $inner_type, [$($($inner_range)*)?], [$($inner_doc),+]
                        ),
                        $inner_default,
                    );)*
                    $Section { $($inner),* }
                };)*
                $Root { $($field,)* $($section),* }
            }
        }
    };
}

settings! {
    /// Settings of this node.
    Config {
        /// This node's id: the broker id that Kafka clients see. Written into the data directory at first start.
        node_id: NodeId [0, 2_147_483_647] = NodeId(1);
        /// The directory that holds everything this node stores. One broker uses it at a time.
        data_dir: PathBuf = PathBuf::from("./data");
        /// Where Kafka clients connect. Without authentication, so the default is this machine only, or in a cluster the
        /// kafka_addr that cluster.nodes has for this node.
        kafka_addr: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 9092));
        /// The port within kafka_addr, for when only the port is to change.
        kafka_port: u16 [1, 65_535] = kafka_addr.port();
        /// The address that clients are told to connect to; without a port, the Kafka port. Default: kafka_addr.
        advertised_addr: HostPort = HostPort::from(kafka_addr);
        /// Where other nodes connect; nothing listens there as long as there is one node. Default: the raft_addr that
        /// cluster.nodes has for this node, else the Kafka port + 100 on the address of kafka_addr.
        raft_addr: SocketAddr = beside(kafka_addr.ip(), kafka_port, RAFT_PORT_DISTANCE);
        /// Where /metrics, /health and /debug are served, without authentication. Default: the Kafka port + 200 on
        /// this machine only.
        admin_addr: SocketAddr = beside(LOOPBACK, kafka_port, ADMIN_PORT_DISTANCE);
        /// The number of shards, each with a thread, a log and its partitions; 0 takes the number of cores. Fixed
        /// when the data directory is made.
        shards: u16 [0, 1024] = 0;
    }

    /// The write-ahead log, one per shard.
    wal: WalConfig {
        /// The size of a log file.
        file_bytes: u64 [MIB, 16 * GIB] = 256 * MIB;
        /// Space kept aside on the disk for when it is full, so that the broker can still clean up.
        ballast_bytes: u64 [0, 16 * GIB] = 64 * MIB;
        /// A log file is sealed this long after its first record although it is not full; a topic's segment.ms may make
        /// it shorter.
        roll_ms: u64 [1000, 30 * DAY_MS] = 1_800_000;
        /// The least that a topic's segment.ms may come to: sealing a log file costs every partition of its shard a
        /// checkpoint.
        roll_ms_min: u64 [1000, 30 * DAY_MS] = 60_000;
        /// Whether what full log files hold is written as segments, one or more per partition, so that the files can go.
        /// Without it a log file stays as long as one partition keeps a record of it. The log leaves room on the disk for
        /// the segments of a file: 5/4 of wal.file_bytes, or of wal.ballast_bytes if that is more.
        indexing_enabled: bool = true;
        /// How often it is looked for log files that are full, in seconds.
        indexing_interval: u64 [1, 86_400] = 30;
    }

    /// Memory and limits of each shard.
    shard: ShardConfig {
        /// Memory for the newest records of each shard, from which consumers that keep up are served.
        tail_cache_bytes: usize [MIB, 256 * GIB] = 64 * 1024 * 1024;
        /// Requests in flight per shard; beyond it connections are not read until earlier ones are answered.
        in_flight_bytes: usize [MIB, 256 * GIB] = 64 * 1024 * 1024;
    }

    /// The nodes that form a cluster; the same list on every node.
    cluster: ClusterConfig {
        /// Each node's id, the address its clients use and the address other nodes use.
        nodes: Vec<ClusterNode> = Vec::new();
        /// What the nodes of a cluster know and nobody else, the same on every node. Without it nodes talk to each other on
        /// this machine only.
        secret: Option<Secret> = None;
        /// Whether this node begins a cluster by itself, without cluster.nodes; others join it. A node that was alone goes on
        /// with its data as the first of the cluster. Once a node is part of a cluster, this has no effect any more.
        bootstrap: bool = false;
        /// The Raft address of any node of a running cluster, which this node joins, without cluster.nodes. Once it is part
        /// of it, this has no effect any more.
        join: Option<HostPort> = None;
        /// Whether this node, which joins a cluster by cluster.join, has a replica for readers of every partition, and nothing
        /// else: it never votes, leads or counts as in sync, and nobody waits for it. A node stays read-only, or not, until it
        /// is removed from its cluster.
        read_only: bool = false;
        /// Whether this node leaves the cluster that its data directory belongs to, once no other node is in it, and is alone
        /// from then on. A node of cluster.nodes does so where that list is gone. cluster.bootstrap and cluster.join have no
        /// effect beside this.
        leave: bool = false;
        /// How often a node that waits for its cluster looks whether the others are there.
        probe_interval_ms: u64 [100, 60_000] = 2000;
        /// How long a node with another data directory than the cluster knows it by must ask, unheard the other, until it
        /// takes that one's place for good: what a wiped disk costs, and what saves a node that is down from one that was
        /// given its id.
        replace_after_ms: u64 [0, DAY_MS] = 300_000;
        /// How fast this node copies records that its replicas lack from other nodes, in bytes per second, shared evenly
        /// among its shards; 0 is as fast as it goes.
        recovery_bytes_per_second: u64 [0, 1024 * GIB] = 0;
        /// How old what consumers read from a replica that follows may be: one that cannot tell that it has all that was
        /// committed so long ago sends them to the leader.
        follower_read_max_staleness_ms: u64 [5_000, DAY_MS] = 10_000;
    }

    /// What Kafka clients see; named as in Kafka, with underscores for dots.
    kafka: KafkaConfig {
        /// The largest request. A client that announces more is disconnected.
        socket_request_max_bytes: usize [1024, 2_147_483_647] = 104_857_600;
        /// How many connections this node takes.
        connections_max: u32 [1, 1_000_000] = 10_000;
        /// A connection without a request for this long is closed.
        connections_idle_ms: u64 [1000, 30 * DAY_MS] = 600_000;
        /// A request must have arrived completely this long after its first byte.
        request_receive_timeout_ms: u64 [100, DAY_MS] = 30_000;
        /// Whether a topic is created when a client asks for one that does not exist.
        auto_create_topics_enable: bool = true;
        /// Partitions of a topic whose creator does not say.
        num_partitions: u32 [1, 10_000] = 1;
        /// Replicas of a partition whose creator does not say; 0 takes 3, or as many as there are nodes that take replicas if
        /// those are fewer.
        default_replication_factor: u16 [0, 32_767] = 0;
        /// The largest record batch, unless the topic says otherwise.
        message_max_bytes: usize [64, 104_857_600] = 1_048_588;
        /// An idempotent producer that is silent for this long is forgotten.
        producer_id_expiration_ms: i64 [1000, 365 * DAY_MS] = 86_400_000;
        /// How many topics there may be.
        topics_max: u32 [1, 1_000_000] = 10_000;
        /// How many partitions this node takes in all.
        partitions_max: u32 [1, 1_000_000] = 20_000;
        /// The largest answer to a fetch, whatever the client asks for.
        fetch_max_bytes: usize [1024, 2_147_483_647] = 57_671_680;
        /// How long records are kept, unless the topic says otherwise; -1 is for ever.
        log_retention_ms: i64 = 604_800_000;
        /// How many bytes of each partition are kept, unless the topic says otherwise; -1 is all of them.
        log_retention_bytes: i64 = -1;
        /// How often the broker looks for records that are beyond their topic's retention.
        log_retention_check_interval_ms: u64 [10, 365 * DAY_MS] = 300_000;
        /// How often the broker looks for segments to compact or to merge.
        log_cleaner_backoff_ms: u64 [10, DAY_MS] = 15_000;
        /// Memory for the keys of one round of compaction. One thread compacts for all shards.
        log_cleaner_dedupe_buffer_size: usize [65_536, 16 * GIB] = 32 * 1024 * 1024;
        /// How much compaction and merging may read and write, in bytes per second together.
        log_cleaner_io_max_bytes_per_second: u64 [4096, 1024 * GIB] = 64 * MIB;
        /// Where this node stands. Consumers that name their rack may read from a replica there, and new partitions have
        /// their replicas in different ones.
        broker_rack: Option<Rack> = None;
        /// Which replica consumers are sent to: Kafka's org.apache.kafka.common.replica.RackAwareReplicaSelector sends
        /// those that name their rack to a replica there.
        replica_selector_class: ReplicaSelector = ReplicaSelector::Leader;
        /// Whether leaderships go back to each partition's preferred replica, its first, when that is in sync again.
        auto_leader_rebalance_enable: bool = true;
        /// How often it is looked for partitions that another replica leads; a node that came back is looked at sooner.
        leader_imbalance_check_interval_seconds: u64 [1, 86_400] = 300;
        /// A replica that lacks for so long what the others have does not count as in sync. One whose node cannot be heard
        /// does not either, after half a second.
        replica_lag_time_max_ms: u64 [100, DAY_MS] = 30_000;
        /// How many fetch sessions are remembered.
        fetch_session_slots: usize [0, 1_000_000] = 1000;
    }

    /// Consumer groups.
    group: GroupConfig {
        /// How long the first consumer of a group waits for others before partitions are handed out.
        initial_rebalance_delay_ms: i64 [0, 600_000] = 3000;
        /// The shortest session timeout that a consumer may ask for.
        min_session_timeout_ms: i64 [1, 3_600_000] = 6000;
        /// The longest session timeout that a consumer may ask for.
        max_session_timeout_ms: i64 [1, 86_400_000] = 1_800_000;
        /// How many members a group may have.
        max_size: usize [1, 2_147_483_647] = 2_147_483_647;
        /// Partitions of __consumer_offsets. Fixed when the first group is formed.
        offsets_topic_num_partitions: u32 [1, 1000] = 50;
        /// Committed offsets are kept this long after the last consumer of their group has left.
        offsets_retention_minutes: i64 [1, 5_256_000] = 10_080;
        /// How often it is looked for offsets that are to be forgotten.
        offsets_retention_check_interval_ms: i64 [100, DAY_MS] = 600_000;
        /// The longest metadata that may be committed with an offset, in bytes.
        offset_metadata_max_bytes: usize [0, 1_048_576] = 4096;
    }

    /// The admin port.
    admin: AdminConfig {
        /// How many connections the admin port takes. They are counted apart from those of Kafka clients, so that
        /// neither keeps the other out.
        connections_max: usize [1, 10_000] = 64;
    }
}

pub(super) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The address `distance` ports above the Kafka port; port 0 where there is none, which the check refuses.
pub(super) fn beside(address: IpAddr, kafka_port: u16, distance: u16) -> SocketAddr {
    SocketAddr::new(address, kafka_port.checked_add(distance).unwrap_or(0))
}
