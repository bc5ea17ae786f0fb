//! Replicas with a model of the write-ahead log under them and a network between them that only a test moves.
//!
//! What must always hold is checked where it happens, so each test and each random schedule checks it: a disk takes
//! only what continues it, hard states do not regress, an entry commits only when a majority's disks hold it, an index
//! commits one entry for ever, a term has one leader, a configuration is the same for all who apply it, and a snapshot
//! is what the log before it makes.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

pub mod behind;
mod cluster;
mod disk;
mod replica;

use bytes::Bytes;
use chronik_engine::ids::{GroupId, ReplicaId};
use chronik_engine::wal::record::{EntryKind, GroupMeta};
use chronik_replication::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ProposedEntry,
};

pub use cluster::Cluster;
pub use disk::Disk;
pub use replica::Replica;

pub const GROUP: GroupId = GroupId(7);
/// The part of a batch that recovery keeps.
const HEAD_BYTES: usize = 61;
const BATCH_BYTES: usize = 69;

pub fn replica(id: u64) -> ReplicaId {
    ReplicaId(id)
}

pub fn replicas(ids: &[u64]) -> Vec<ReplicaId> {
    ids.iter().copied().map(ReplicaId).collect()
}

pub fn meta(id: u64, voters: &[u64], learners: &[u64]) -> GroupMeta {
    GroupMeta {
        replica: ReplicaId(id),
        voters: replicas(voters),
        learners: replicas(learners),
        tag: Vec::new(),
        ..GroupMeta::default()
    }
}

/// A batch that names itself at its start, where recovery keeps it.
pub fn batch(name: u64, offset_count: u32) -> ProposedEntry {
    let mut payload = vec![0; BATCH_BYTES];
    payload[..8].copy_from_slice(&name.to_le_bytes());
    ProposedEntry {
        kind: EntryKind::Batch,
        offset_count,
        max_timestamp_ms: 1_000,
        payload: Bytes::from(payload),
    }
}

pub fn change(kind: ConfChangeType, id: u64) -> ConfChangeV2 {
    changes(&[(kind, id)])
}

/// Several changes lead through a joint configuration that is left by itself.
pub fn changes(changes: &[(ConfChangeType, u64)]) -> ConfChangeV2 {
    let single = |(change_type, node_id): &(ConfChangeType, u64)| ConfChangeSingle {
        change_type: *change_type,
        node_id: *node_id,
        ..Default::default()
    };
    let changes: Vec<_> = changes.iter().map(single).collect();
    ConfChangeV2 { changes: changes.into(), ..Default::default() }
}

/// One that stays in the joint configuration until it is told to leave it.
pub fn explicit(list: &[(ConfChangeType, u64)]) -> ConfChangeV2 {
    ConfChangeV2 { transition: ConfChangeTransition::Explicit, ..changes(list) }
}
