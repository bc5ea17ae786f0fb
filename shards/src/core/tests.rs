use bytes::Bytes;
use chronik_engine::batch::{BatchBuilder, RecordBatch};
use chronik_engine::ids::ReplicaId;
use uuid::Uuid;

use super::*;
use crate::catalog::{Broker, CatalogCommand, ClusterId};

const GROUP: GroupId = GroupId(1);
const BLOCK_BYTES: usize = 8 << 20;

fn config() -> CoreConfig {
    CoreConfig {
        shard: ShardId(0),
        node: NodeId(1),
        seed: 1,
        tail_cache_bytes: 1 << 20,
        in_flight_bytes_max: 1 << 20,
        producer_expiration_ms: 1000,
    }
}

fn alone(replica: u64) -> GroupMeta {
    let replica = ReplicaId(replica);
    GroupMeta { replica, voters: vec![replica], ..GroupMeta::default() }
}
