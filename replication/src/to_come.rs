//! The configurations that the end of a log may bring: what it holds behind the applied entries may be committed already,
//! without this replica knowing, or may never be. Only what a leader has proposed itself nobody has applied before it.

use chronik_engine::ids::RaftIndex;
use chronik_engine::wal::record::EntryKind;
use raft::eraftpb::{ConfChangeV2, Entry, EntryType};

use crate::group::RaftGroup;
use crate::membership::{Members, change_of, changed};

impl RaftGroup {
    /// The members after each change of them that the log has behind what is applied and that others may have applied, in
    /// the log's order. `None` if one of them does not fit what is before it.
    #[must_use]
    pub fn members_to_come(&self) -> Option<Vec<Members>> {
        let mut tracker = self.node.raft.prs().clone();
        let mut to_come = Vec::new();
        for change in self.changes_to_come() {
            let (members, after) = changed(&tracker, &change?).ok()?;
            to_come.push(members);
            tracker = after;
        }
        Some(to_come)
    }

    /// All entries behind the applied ones are in memory, in the log or on their way to it.
    fn changes_to_come(&self) -> impl Iterator<Item = Option<ConfChangeV2>> {
        let log = &self.node.raft.raft_log;
        let own_term = self.is_leader().then_some(self.node.raft.term);
        let stored = (log.applied + 1..log.unstable.offset).filter_map(move |index| {
            let Some(slot) = log.store.slot(RaftIndex(index)) else { return Some(None) };
            let entry = &slot.entry;
            let is_change = entry.kind == EntryKind::ConfChange && own_term != Some(entry.term.0);
            is_change.then(|| change_of(&entry.payload).ok())
        });
        let is_change = move |entry: &&Entry| {
            let is_new = entry.index > log.applied && own_term != Some(entry.term);
            is_new && entry.get_entry_type() == EntryType::EntryConfChangeV2
        };
        stored.chain(log.unstable.entries.iter().filter(is_change).map(|e| change_of(&e.data).ok()))
    }
}
