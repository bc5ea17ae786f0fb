//! What must be true of a read-only node, which every fourth run has beside the others.
//!
//! - I1: none of its replicas, the catalog's included, ever votes or leads.
//! - I2: none is counted where it is asked how many replicas hold what is acknowledged (`in_sync`).

use chronik_engine::ids::{GroupId, ReplicaId};

use super::Check;
use super::configs::Config;
use super::oracle::{GroupOracle, Oracle};
use crate::must;

impl GroupOracle {
    /// The members of a group are these now (I1).
    pub(super) fn check_readers(&self, id: GroupId, config: &Config) -> Check {
        let votes = |reader: &&ReplicaId| {
            config.voters.contains(*reader) || config.outgoing.contains(*reader)
        };
        let voter = self.readers.iter().find(votes);
        must!(
            voter.is_none(),
            "readers: {id}: {voter:?} is on a read-only node, and votes: {config:?}"
        );
        Ok(())
    }
}

impl Oracle {
    /// A replica is on a read-only node.
    pub(super) fn note_reader(&mut self, id: GroupId, replica: ReplicaId) {
        self.groups.entry(id).or_default().readers.insert(replica);
    }

    pub(super) fn is_reader(&self, id: GroupId, replica: ReplicaId) -> bool {
        self.groups.get(&id).is_some_and(|group| group.readers.contains(&replica))
    }
}
