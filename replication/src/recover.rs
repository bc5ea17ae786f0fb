//! From what the write-ahead log holds to what a group starts with.
//!
//! All of it was read from disk, so what does not fit together is an error and the replica stays silent: a log that
//! lost durable entries must not vote.

use chronik_engine::ids::{RaftIndex, ReplicaId};
use chronik_engine::wal::record::{
    EntryKind, EpochStart, GroupMeta, HardState, LogEntry, LogPosition,
};
use raft::RaftState;

use crate::config::RecoveredLog;
use crate::error::RecoverError;
use crate::log_store::LogStore;
use crate::log_view::LogView;
use crate::membership::Members;

/// The hard state to start with, see [`crate::RaftGroup::new`].
pub(crate) fn repaired_hard_state(recovered: &RecoveredLog) -> Result<HardState, RecoverError> {
    let RecoveredLog { mut hard_state, last, applied, .. } = *recovered;
    if recovered.meta.replica == ReplicaId::NONE {
        return Err(RecoverError::NoReplica);
    }
    let members = Members::of(&recovered.meta);
    members.check().map_err(|source| RecoverError::Members { source })?;
    let log_start = recovered.log_start.index;
    if applied < log_start || applied > last.index {
        return Err(RecoverError::AppliedOutOfRange { applied, log_start, last: last.index });
    }
    if hard_state.commit > last.index {
        let commit = hard_state.commit;
        return Err(RecoverError::CommitBeyondLog { commit, last: last.index });
    }
    hard_state.commit = hard_state.commit.max(applied);
    if hard_state.term < last.term {
        hard_state.term = last.term;
        hard_state.vote = ReplicaId::NONE;
    }
    Ok(hard_state)
}

/// The outline of the log up to `applied`.
pub(crate) fn applied_view(
    log_start: LogPosition,
    mut epochs: Vec<EpochStart>,
    applied: RaftIndex,
) -> Result<LogView, RecoverError> {
    epochs.retain(|run| run.index <= applied);
    let rising = epochs.windows(2).all(|p| p[0].epoch < p[1].epoch && p[0].index < p[1].index);
    let partial = epochs.first().is_none_or(|run| run.index > log_start.index.next());
    if !rising || (partial && applied > log_start.index) {
        return Err(RecoverError::EpochsPartial { log_start: log_start.index });
    }
    let term = match epochs.last() {
        Some(run) if applied > log_start.index => run.epoch,
        _ => log_start.term,
    };
    let mut view = LogView::new(log_start, LogPosition { index: applied, term }, epochs);
    // The checkpoint may be older than the log start.
    view.start_after(log_start.index);
    Ok(view)
}

/// Puts the entries after `applied` into the store.
pub(crate) fn recover_entries(
    store: &mut LogStore,
    entries: Vec<LogEntry>,
    last: LogPosition,
) -> Result<(), RecoverError> {
    for entry in entries {
        let end = store.view().last();
        let (index, term) = (entry.index, entry.term);
        if index != end.index.next() {
            return Err(RecoverError::EntryGap { expected: end.index.next(), found: index });
        }
        if term < end.term {
            return Err(RecoverError::TermRegressed { index, term, previous: end.term });
        }
        let expected = store.end_offset_at(end.index).unwrap_or_default();
        // A repair that accepted a loss leaves no-ops in the place of what is lost, and they move the offset on to where
        // the surviving records begin.
        let is_filler = entry.kind == EntryKind::Noop && entry.base_offset > expected;
        if entry.base_offset != expected && !is_filler {
            return Err(RecoverError::OffsetGap { index, expected, found: entry.base_offset });
        }
        store.recover(entry);
    }
    let found = store.view().last();
    if found != last {
        return Err(RecoverError::LastMismatch { expected: last.index, found: found.index });
    }
    Ok(())
}

pub(crate) fn raft_state(meta: &GroupMeta, hard_state: HardState) -> RaftState {
    let state = raft::eraftpb::HardState {
        term: hard_state.term.0,
        vote: hard_state.vote.0,
        commit: hard_state.commit.0,
        ..raft::eraftpb::HardState::default()
    };
    RaftState::new(state, Members::of(meta).to_raft())
}
