//! Whether a node that comes with another data directory than the catalog knows it by takes that one's place.
//!
//! A disk that another one took the place of never counts again, so a wrong node id, given while the node that has it is
//! down for a moment, would throw that one out for good. A disk that is really gone, though, nobody should have to report.
//! So whoever comes has to ask for as long as it takes to notice.
//!
//! - I1: nobody takes the place of a disk whose replica of the catalog the catalog's leader hears.
//! - I2: nor before it has asked for `cluster.replace_after_ms` on end, during which that was so. At the old one's own
//!   Raft address [`SAME_ADDRESS_WAIT`] is enough: nobody else can be there, so it is that node with another disk.

use std::collections::BTreeMap;
use std::time::Duration;

use chronik_engine::ids::NodeId;

use super::quorum::Quorum;
use crate::catalog::{Broker, Incarnation};
use crate::shell::shard::Shard;

/// Who does not ask again for so long has given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is asked of a node that comes at the address of the one whose place it takes, at most.
const SAME_ADDRESS_WAIT: Duration = Duration::from_secs(5);

/// Why the place of a disk is not taken, at least not yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotReplaced {
    #[error(
        "node {node} of the cluster has data directory {incarnation}, which was heard just now; give this node a node_id of \
         its own"
    )]
    Heard { node: NodeId, incarnation: Incarnation },
    #[error(
        "node {node} of the cluster has data directory {incarnation}, which is not heard now. If that one is gone for \
         good, let this node wait: it takes the place once nothing was heard of the other for {seconds} s ({rule}). If not, \
         stop this node and give it a node_id of its own"
    )]
    TooSoon { node: NodeId, incarnation: Incarnation, seconds: u64, rule: &'static str },
    #[error("nobody knows who leads the cluster's catalog")]
    NoLeader,
}

/// A node that asks.
#[derive(Debug)]
struct Waiting {
    newcomer: Incarnation,
    since_ns: u64,
    last_ns: u64,
}

/// The nodes that ask, by their ids.
#[derive(Debug, Default)]
pub(super) struct Replacing {
    waiting: BTreeMap<NodeId, Waiting>,
}

impl Replacing {
    /// Notes that a node asks; whether it has for long enough.
    fn has_waited(
        &mut self,
        node: NodeId,
        newcomer: Incarnation,
        now_ns: u64,
        wait: Duration,
    ) -> bool {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.waiting
            .retain(|_, other| now_ns.saturating_sub(other.last_ns) <= nanoseconds(PATIENCE));
        let begin = Waiting { newcomer, since_ns: now_ns, last_ns: now_ns };
        let waiting = self.waiting.entry(node).or_insert(begin);
        if waiting.newcomer != newcomer {
            *waiting = Waiting { newcomer, since_ns: now_ns, last_ns: now_ns };
        }
        waiting.last_ns = now_ns;
        now_ns.saturating_sub(waiting.since_ns) >= nanoseconds(wait)
    }

    fn forget(&mut self, node: NodeId) {
        self.waiting.remove(&node);
    }
}

impl Shard {
    /// Whether `newcomer` may take the place of the disk that the catalog knows its node by. To be called on the catalog's
    /// shard, with what its leader says.
    pub(super) fn may_replace(
        &self,
        known: &Broker,
        newcomer: &Broker,
        quorum: Option<&Quorum>,
    ) -> Result<(), NotReplaced> {
        let (node, incarnation) = (known.node, known.incarnation);
        let (Some(links), Some(quorum)) = (self.links(), quorum) else {
            return Err(NotReplaced::NoLeader);
        };
        let mut replacing = links.replacing.borrow_mut();
        if quorum.replicas.iter().any(|one| one.replica == known.meta_replica && one.is_heard) {
            replacing.forget(node);
            return Err(NotReplaced::Heard { node, incarnation });
        }
        let wait = Duration::from_millis(self.node.config.cluster.replace_after_ms);
        let is_same_address = known.raft_addr == newcomer.raft_addr;
        let (wait, rule) = match is_same_address && wait > SAME_ADDRESS_WAIT {
            true => (SAME_ADDRESS_WAIT, "it has the same Raft address"),
            false => (wait, "cluster.replace_after_ms of the nodes that run"),
        };
        match replacing.has_waited(node, newcomer.incarnation, self.clock.now_ns(), wait) {
            true => Ok(()),
            false => Err(NotReplaced::TooSoon { node, incarnation, seconds: wait.as_secs(), rule }),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const WAIT: Duration = Duration::from_secs(60);

    #[test]
    fn given_a_node_that_asks_when_it_goes_on_long_enough_then_it_has_waited_and_others_begin_anew()
    {
        let mut replacing = Replacing::default();
        let disk = |id| Incarnation(Uuid::from_u128(id));
        let mut asks = |newcomer, second: u64| {
            replacing.has_waited(NodeId(2), disk(newcomer), second * 1_000_000_000, WAIT)
        };
        assert!(![100, 120, 140, 159].into_iter().any(|second| asks(5, second)));
        assert!(asks(5, 160));
        assert!(!asks(6, 161), "another one has not waited");
        assert!(![180, 200, 210].into_iter().any(|second| asks(6, second)));
        assert!(!asks(6, 250), "it had given up");
        assert!(![270, 290, 309].into_iter().any(|second| asks(6, second)));
        assert!(asks(6, 310));
        replacing.forget(NodeId(2));
        assert!(!replacing.has_waited(NodeId(2), disk(6), 311_000_000_000, WAIT));
        assert!(replacing.has_waited(NodeId(3), disk(6), 0, Duration::ZERO));
    }
}
