//! Batches that were proposed and for which the disk has no room.
//!
//! A block that waits for room would stop everything behind it, and with it what makes room: the deletion of topics and
//! of records. So such batches are refused, though they have their place in the log already: none of them is durable here,
//! and no client was told anything of them. Their group forgets what never reached the disk (`replication::RaftGroup::restart`);
//! a replica that led calls another to lead, where others decide without it, and one that is alone leads on in another term. What
//! other groups have to write stays and goes first. Followers may have got the batches and may still commit them: as with any
//! error that a client may try again at, it does not know.
//!
//! - I1: of a group either everything that Raft gave out since its last durable block is taken back, or nothing.
//! - I2: units that do not come from Raft stay: a creation, a deletion, and the cut of a log, which is about durable
//!   entries.

use std::collections::BTreeSet;

use chronik_engine::ids::GroupId;
use chronik_engine::wal::record::{EntryKind, WalRecord};

use super::commit::{Cause, PendingBlock, Unit};
use super::group::Group;
use super::{ProduceError, ShardCore, Shared};

impl ShardCore {
    /// Takes back a block that the disk has no room for. Whatever of it has no batch comes again with the next one; the
    /// batches, and all others that wait to be written, are refused with [`ProduceError::StorageFull`]. Says of how many
    /// groups; if of none, there is nothing to do but to wait for room.
    pub fn refuse_batches(&mut self, block: PendingBlock) -> usize {
        self.on_block_ended();
        let (units, mut records) = self.shared.take_back(block);
        let refused = self.groups_with_batches(&units, &records);
        let mut rest = records.drain(..);
        for unit in units {
            let of_unit = rest.by_ref().take(unit.record_count);
            if matches!(unit.cause, Cause::Ready(_)) && refused.contains(&unit.group) {
                of_unit.for_each(drop);
                continue;
            }
            self.shared.out.records.extend(of_unit);
            self.shared.unit_bytes += unit.bytes;
            self.shared.units.push_back(unit);
        }
        for id in &refused {
            if let Some(group) = self.groups.get_mut(id) {
                group.restart(&mut self.shared);
            }
        }
        refused.len()
    }

    /// The groups that wait to write batches and can do without.
    fn groups_with_batches(&self, units: &[Unit], records: &[WalRecord]) -> BTreeSet<GroupId> {
        let is_batch = |record: &WalRecord| matches!(record, WalRecord::Entry { entry, .. } if entry.kind == EntryKind::Batch);
        assert!(units.iter().map(|unit| unit.record_count).sum::<usize>() == records.len());
        let mut from = 0;
        let mut found = BTreeSet::new();
        for unit in units {
            let up_to = from + unit.record_count;
            if records[from..up_to].iter().any(is_batch) {
                found.insert(unit.group);
            }
            from = up_to;
        }
        found.retain(|id| self.groups.get(id).is_some_and(|group| group.raft.can_restart()));
        found
    }
}

impl Shared {
    /// Everything that waits to be written, as it arose.
    fn take_back(&mut self, block: PendingBlock) -> (Vec<Unit>, Vec<WalRecord>) {
        let PendingBlock { mut records, mut units } = block;
        units.extend(self.units.drain(..));
        records.append(&mut self.out.records);
        self.unit_bytes = 0;
        (units, records)
    }
}

impl Group {
    /// Begins again with what is durable. Who led leads again if it has no other voter, and has another lead if those decide.
    fn restart(&mut self, shared: &mut Shared) {
        self.drop_in_flight(shared, ProduceError::StorageFull);
        self.note_forgotten(shared.ticks.now);
        self.unstaged_bytes = 0;
        self.unstaged_entries = 0;
        if !self.is_live() {
            return; // only its deletion is still to be written
        }
        let heir = if self.others_decide() { self.furthest_heir() } else { None };
        // Alone, it has acknowledged no more than what is durable; once that is applied it knows all there is to know.
        let is_up_to_date = self.is_ready()
            && self.raft.meta().voters == [self.raft.replica()]
            && self.raft.applied() == self.raft.last_durable().index;
        let restarted = self.raft.restart();
        assert!(restarted.is_ok(), "group {}: {restarted:?}", self.id);
        if let Some(heir) = heir {
            self.raft.call_to_lead(heir);
        }
        self.observe_leadership(shared);
        self.pump(shared);
        self.campaign_if_alone(shared);
        if is_up_to_date {
            // Readers need not wait until the disk has room for the beginning of the term.
            self.lead_from_applied();
        }
    }
}
