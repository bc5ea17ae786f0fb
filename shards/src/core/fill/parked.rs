//! The snapshots that wait for their records: kept within a bound, in the order in which they came.
//!
//! - I1: `parked_bytes` is what the snapshots in `by_group` come to: at most `parked_bytes_max`, or one of any size.
//! - I2: a group waits in line or copies, and not both.

use std::collections::{BTreeMap, VecDeque};

use chronik_engine::ids::{GroupId, Offset};
use chronik_replication::{Message, SnapshotHead};

use super::copying::Copying;
use super::{FillId, Group};

/// Bytes of snapshots that wait for their records.
const PARKED_BYTES_MAX: usize = 64 << 20;

/// The fills of a shard.
#[derive(Debug)]
pub(in crate::core) struct Fills {
    pub(super) by_group: BTreeMap<GroupId, Fill>,
    /// Bytes of the snapshots in `by_group`, and the most that they may come to (I1).
    parked_bytes: usize,
    pub(in crate::core) parked_bytes_max: usize,
    /// Those that do not copy yet, each once.
    pub(super) waiting: VecDeque<GroupId>,
    pub(super) last_id: FillId,
}

/// A snapshot that waits for its records.
#[derive(Debug)]
pub(super) struct Fill {
    pub(super) snapshot: Message,
    pub(super) head: SnapshotHead,
    /// Nothing before is wanted: the leader's log starts there.
    pub(super) start: Offset,
    pub(super) copying: Option<Copying>,
}

impl Default for Fills {
    fn default() -> Fills {
        Fills {
            by_group: BTreeMap::new(),
            parked_bytes: 0,
            parked_bytes_max: PARKED_BYTES_MAX,
            waiting: VecDeque::new(),
            last_id: FillId::default(),
        }
    }
}

impl Fills {
    /// Keeps a snapshot, in the place of the one before it of its group; false if there is no room for it (I1).
    pub(super) fn park(
        &mut self,
        group: GroupId,
        message: Message,
        head: SnapshotHead,
        start: Offset,
    ) -> bool {
        let before = self.by_group.get(&group).map_or(0, Fill::parked_bytes);
        let others = self.parked_bytes - before;
        let fill = Fill { snapshot: message, head, start, copying: None };
        let parked_bytes = others.saturating_add(fill.parked_bytes());
        if others > 0 && parked_bytes > self.parked_bytes_max {
            return false;
        }
        self.parked_bytes = parked_bytes;
        match self.by_group.get_mut(&group) {
            Some(known) => {
                let (start, copying) = (known.start.max(start), known.copying.take());
                *known = Fill { start, copying, ..fill };
            }
            None => {
                self.by_group.insert(group, fill);
                self.waiting.push_back(group);
            }
        }
        true
    }

    /// Whether records of this group are to be copied.
    pub(in crate::core) fn has(&self, group: GroupId) -> bool {
        self.by_group.contains_key(&group)
    }

    pub(super) fn next_id(&mut self) -> FillId {
        self.last_id = FillId(self.last_id.0 + 1);
        self.last_id
    }

    pub(super) fn remove(&mut self, group: GroupId) -> Option<Fill> {
        let removed = self.by_group.remove(&group)?;
        self.parked_bytes -= removed.parked_bytes();
        if removed.copying.is_none() {
            self.waiting.retain(|waiting| *waiting != group);
        }
        Some(removed)
    }

    pub(super) fn clear(&mut self) {
        self.by_group.clear();
        self.waiting.clear();
        self.parked_bytes = 0;
    }

    /// The fill of this beginning.
    pub(super) fn copying(&mut self, group: GroupId, id: FillId) -> Option<&mut Fill> {
        let fill = self.by_group.get_mut(&group)?;
        fill.copying.as_ref().is_some_and(|copying| copying.id == id).then_some(fill)
    }

    pub(super) fn copying_count(&self) -> usize {
        self.by_group.len() - self.waiting.len()
    }
}

impl Fill {
    fn parked_bytes(&self) -> usize {
        self.snapshot.get_snapshot().data.len()
    }

    /// Whether Raft would not take the snapshot any more, or not for what it is.
    pub(super) fn is_void(&self, group: &Group) -> bool {
        self.snapshot.term != group.raft.term().0
            || self.head.position.index <= group.raft.commit_index()
    }
}
