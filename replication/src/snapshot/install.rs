//! Taking a snapshot: the whole of a group is replaced, on the disk by one record, in memory once that is durable.
//!
//! 1. Raft-rs has accepted it: its log begins after it at once, and it speaks of nothing before.
//! 2. [`RaftGroup::ready`] makes the record that replaces the group, followed by the entries and the hard state of the
//!    same ready, as one output. From then on the log in memory begins after the snapshot; what is durable, applied and
//!    checkpointed is still what was before it.
//! 3. [`RaftGroup::on_persisted`]: the disk holds it, so what is durable is the snapshot, and messages that say so leave.
//! 4. The next [`RaftGroup::ready`] hands it to the state machine, before any entry that follows it.
//!
//! A crash before 3 finds the group as it was before; a crash after it finds the snapshot, with term, vote, members and
//! place in the same record. A second snapshot may come at any point of this.
//!
//! Invariants: (I1) between 1 and 4 no election is started: raft-rs would look for entries that are gone, and end the
//! process; (I2) 2 waits until everything that was handed out before is applied, for its entries are gone with it;
//! (I3) between 1 and 3 nothing is said to be committed that was not before 1: raft-rs's persisted index may then cover
//! entries that the snapshot makes void; (I4) between 3 and 4 no checkpoint is taken.

use chronik_engine::ids::{Offset, RaftIndex, ReplicaId, Term};
use chronik_engine::wal::record::{GroupCheckpoint, HardState, LogPosition, WalRecord};
use raft::eraftpb::Snapshot;

use super::SnapshotParts;
use crate::group::RaftGroup;
use crate::log_view::LogView;
use crate::membership::Members;
use crate::ready::{PendingWrite, ReadyOutput};
use bytes::Bytes;

/// A snapshot that is durable and takes the place of the state machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInstall {
    /// The last entry that is in it; entries that are handed out go on after it.
    pub position: LogPosition,
    /// The offset after the last batch that is in it.
    pub applied_end_offset: Offset,
    /// The first offset that may be read.
    pub log_start_offset: Offset,
    /// The state machine.
    pub state: Bytes,
}

/// A snapshot on its way to the disk, and then to the state machine.
#[derive(Debug)]
pub(crate) struct Install {
    pub(crate) view: LogView,
    members: Members,
    pub(crate) handed_over: SnapshotInstall,
}

impl RaftGroup {
    /// Whether a snapshot was accepted that the state machine does not have yet (I1).
    pub(crate) fn awaits_install(&self) -> bool {
        let log = &self.node.raft.raft_log;
        log.unstable_snapshot().is_some() || self.log_start().index > self.applied()
    }

    /// Whether a snapshot has to wait for the state machine (I2).
    pub(crate) fn awaits_apply(&self) -> bool {
        self.node.raft.raft_log.unstable_snapshot().is_some() && self.given > self.applied()
    }

    /// Step 2. The gate has read and checked the snapshot.
    pub(crate) fn begin_install(
        &mut self,
        snapshot: &Snapshot,
        write: &mut PendingWrite,
        out: &mut ReadyOutput,
    ) {
        let group = self.config.group;
        let parts = match SnapshotParts::from_raft(snapshot) {
            Ok(parts) => parts,
            Err(error) => unreachable!("group {group}: the gate lets no such snapshot in: {error}"),
        };
        let SnapshotParts { position, members, epochs, applied_end_offset, .. } = parts;
        let mut view = LogView::new(position, position, epochs);
        // Of the terms only the last matters for a log that begins here.
        view.start_after(position.index);
        let raft = &self.node.raft;
        let hard_state =
            HardState { term: Term(raft.term), vote: ReplicaId(raft.vote), commit: position.index };
        let written = self.written_hard_state;
        assert!(hard_state.term >= written.term, "{hard_state:?} after {written:?}");
        assert!(hard_state.commit >= written.commit, "{hard_state:?} after {written:?}");
        let mut meta = self.meta.clone();
        members.clone().put_into(&mut meta);
        out.records.push(WalRecord::Checkpoint(GroupCheckpoint {
            group,
            meta,
            hard_state,
            log_start: position,
            log_start_offset: parts.log_start_offset,
            last: position,
            epochs: view.epochs().to_vec(),
            applied: position.index,
            applied_end_offset,
            state: parts.state.to_vec(),
        }));
        self.node.mut_store().install(view.clone(), applied_end_offset);
        self.written_hard_state = hard_state;
        write.hard_state = Some(hard_state);
        let handed_over = SnapshotInstall {
            position,
            applied_end_offset,
            log_start_offset: parts.log_start_offset,
            state: parts.state,
        };
        write.install = Some(Install { view, members, handed_over });
    }

    /// Step 4: the snapshot is what is applied. [`RaftGroup::ready`] does this; by itself it is for a group of which nothing
    /// else is wanted any more, and checkpoints still (I4).
    pub fn finish_install(&mut self, out: &mut ReadyOutput) {
        let Some(Install { members, handed_over, .. }) = self.installed.take() else { return };
        let index: RaftIndex = handed_over.position.index;
        members.put_into(&mut self.meta);
        self.applied_end_offset = handed_over.applied_end_offset;
        self.given = index;
        self.node.advance_apply_to(index.0);
        assert!(out.committed.is_empty(), "a snapshot goes before the entries that follow it");
        out.snapshot = Some(handed_over);
    }
}
