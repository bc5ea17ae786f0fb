//! Snapshots of a group: what they are, and what they look like on their way.
//!
//! A snapshot takes the place of a log that the leader does not have any more. Its metadata (place, members) travel as
//! raft-rs knows them; its data are
//!
//! ```text
//! version u8 = 1 | reserved [3] = 0 | runs u32 | applied_end_offset i64 | log_start_offset i64
//! | runs * (epoch u64 | index u64 | offset i64) | state
//! ```
//!
//! in little-endian. How one is made and sent stands in [`send`], how one is taken in [`install`].
//!
//! Invariants: (I1) whatever bytes come in, decoding ends in a value or a [`SnapshotError`], reserves no more memory
//! than there are bytes, and copies no state; (I2) what passes [`SnapshotParts::check`] can be the beginning of a log.

pub(crate) mod install;
pub(crate) mod send;

use bytes::{Bytes, BytesMut};
use chronik_engine::ids::{Offset, RaftIndex, Term};
use chronik_engine::limits::GROUP_STATE_BYTES_MAX;
use chronik_engine::wal::record::{EpochStart, LogPosition};
use raft::eraftpb::{Message, Snapshot, SnapshotMetadata};

use crate::error::SnapshotError;
use crate::membership::Members;

const VERSION: u8 = 1;
/// What stands before the runs.
const HEADER_BYTES: usize = 24;
/// Where the log start offset lies in it.
const LOG_START_AT: usize = 16;
/// One run of a term.
const RUN_BYTES: usize = 24;
/// The most data of a snapshot. The runs are a term each: those of the log, and the last of those before it.
const DATA_BYTES_MAX: usize = GROUP_STATE_BYTES_MAX + (1 << 20);

/// A group as of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotParts {
    /// The last entry that is in it.
    pub position: LogPosition,
    /// The members as of that entry.
    pub members: Members,
    /// Where the terms of the log up to there begin, as far as the sender knows.
    pub epochs: Vec<EpochStart>,
    /// The offset after the last batch that is in it.
    pub applied_end_offset: Offset,
    /// The first offset that may be read: only the state machine knows.
    pub log_start_offset: Offset,
    /// The state machine; opaque here.
    pub state: Bytes,
}

impl SnapshotParts {
    /// As raft-rs wants it. The state is copied once, behind the header.
    pub(crate) fn to_raft(&self) -> Result<Snapshot, SnapshotError> {
        let bytes = self.state.len();
        if bytes > GROUP_STATE_BYTES_MAX {
            return Err(SnapshotError::TooLarge { bytes, bytes_max: GROUP_STATE_BYTES_MAX });
        }
        let runs = u32::try_from(self.epochs.len()).map_err(|_| SnapshotError::Epochs)?;
        let mut data = BytesMut::with_capacity(
            HEADER_BYTES + self.epochs.len() * RUN_BYTES + self.state.len(),
        );
        data.extend_from_slice(&[VERSION, 0, 0, 0]);
        data.extend_from_slice(&runs.to_le_bytes());
        data.extend_from_slice(&self.applied_end_offset.0.to_le_bytes());
        data.extend_from_slice(&self.log_start_offset.0.to_le_bytes());
        for run in &self.epochs {
            data.extend_from_slice(&run.epoch.0.to_le_bytes());
            data.extend_from_slice(&run.index.0.to_le_bytes());
            data.extend_from_slice(&run.offset.0.to_le_bytes());
        }
        data.extend_from_slice(&self.state);
        if data.len() > DATA_BYTES_MAX {
            let bytes = data.len();
            return Err(SnapshotError::TooLarge { bytes, bytes_max: DATA_BYTES_MAX });
        }
        let LogPosition { index, term } = self.position;
        let mut metadata =
            SnapshotMetadata { index: index.0, term: term.0, ..SnapshotMetadata::default() };
        metadata.set_conf_state(self.members.to_raft());
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(metadata);
        snapshot.set_data(data.freeze());
        Ok(snapshot)
    }

    /// Reads a snapshot of raft-rs; the state is a part of its bytes (I1).
    pub(crate) fn from_raft(snapshot: &Snapshot) -> Result<SnapshotParts, SnapshotError> {
        let bytes = snapshot.data.len();
        if bytes > DATA_BYTES_MAX {
            return Err(SnapshotError::TooLarge { bytes, bytes_max: DATA_BYTES_MAX });
        }
        let data = &snapshot.data;
        let header = data.first_chunk::<HEADER_BYTES>().ok_or(SnapshotError::Header)?;
        let [version, r0, r1, r2, n0, n1, n2, n3, offsets @ ..] = *header;
        if version != VERSION {
            return Err(SnapshotError::Version { version });
        }
        if [r0, r1, r2] != [0; 3] {
            return Err(SnapshotError::Header);
        }
        let runs = usize::try_from(u32::from_le_bytes([n0, n1, n2, n3]));
        let runs_bytes = runs.ok().and_then(|runs| runs.checked_mul(RUN_BYTES));
        let state_at = runs_bytes.and_then(|bytes| bytes.checked_add(HEADER_BYTES));
        let state_at = state_at.filter(|at| *at <= bytes).ok_or(SnapshotError::Header)?;
        let epochs = data[HEADER_BYTES..state_at].chunks_exact(RUN_BYTES).map(|run| EpochStart {
            epoch: Term(u64_at(run, 0)),
            index: RaftIndex(u64_at(run, 8)),
            offset: Offset(i64_of(u64_at(run, 16))),
        });
        let metadata = snapshot.get_metadata();
        Ok(SnapshotParts {
            position: LogPosition { index: RaftIndex(metadata.index), term: Term(metadata.term) },
            members: Members::from_raft(metadata.get_conf_state()),
            epochs: epochs.collect(),
            applied_end_offset: Offset(i64_of(u64_at(&offsets, 0))),
            log_start_offset: Offset(i64_of(u64_at(&offsets, 8))),
            state: data.slice(state_at..),
        })
    }

    /// Refuses what cannot be the beginning of a log (I2).
    pub(crate) fn check(&self) -> Result<(), SnapshotError> {
        self.members.check().map_err(|source| SnapshotError::Members { source })?;
        let (start, end) = (self.log_start_offset, self.applied_end_offset);
        if start < Offset(0) || start > end {
            return Err(SnapshotError::Offsets { start, end });
        }
        let rises = |pair: &[EpochStart]| {
            let (a, b) = (pair[0], pair[1]);
            a.epoch < b.epoch && a.index < b.index && a.offset <= b.offset
        };
        let (Some(first), Some(last)) = (self.epochs.first(), self.epochs.last()) else {
            return Err(SnapshotError::Epochs);
        };
        let begins =
            first.epoch > Term(0) && first.index > RaftIndex(0) && first.offset >= Offset(0);
        let ends = last.epoch == self.position.term
            && last.index <= self.position.index
            && last.offset <= end;
        if begins && ends && self.epochs.windows(2).all(rises) {
            Ok(())
        } else {
            Err(SnapshotError::Epochs)
        }
    }
}

/// What a snapshot says of its place, read without the rest of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotHead {
    /// The last entry that is in it.
    pub position: LogPosition,
    /// The offset after the last batch that is in it.
    pub applied_end_offset: Offset,
    /// The first offset that may be read.
    pub log_start_offset: Offset,
}

impl SnapshotHead {
    /// Of a message with a snapshot; `None` of any other.
    #[must_use]
    pub fn of(message: &Message) -> Option<SnapshotHead> {
        SnapshotHead::of_snapshot(message.get_snapshot())
    }

    pub(crate) fn of_snapshot(snapshot: &Snapshot) -> Option<SnapshotHead> {
        let header = snapshot.data.first_chunk::<HEADER_BYTES>()?;
        let metadata = snapshot.get_metadata();
        Some(SnapshotHead {
            position: LogPosition { index: RaftIndex(metadata.index), term: Term(metadata.term) },
            applied_end_offset: Offset(i64_of(u64_at(header, 8))),
            log_start_offset: Offset(i64_of(u64_at(header, LOG_START_AT))),
        })
    }

    /// Makes what a snapshot stands for begin at `start`, or where it ends, unless it begins later as it is: for a replica that
    /// knows what has gone since. The state machine is the same; the command that moved the start changes nothing any more.
    pub fn raise_log_start(message: &mut Message, start: Offset) {
        let Some(head) = SnapshotHead::of(message) else { return };
        let start = start.min(head.applied_end_offset);
        if start <= head.log_start_offset {
            return;
        }
        let data = &mut message.mut_snapshot().data;
        let mut changed = BytesMut::from(std::mem::take(data));
        changed[LOG_START_AT..HEADER_BYTES].copy_from_slice(&start.0.to_le_bytes());
        *data = changed.freeze();
    }
}

/// Eight bytes from `at` on, of which the caller knows that they are there.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

fn i64_of(value: u64) -> i64 {
    i64::from_le_bytes(value.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use chronik_engine::ids::ReplicaId;
    use proptest::prelude::*;

    fn parts() -> SnapshotParts {
        let run = |epoch, index, offset| EpochStart {
            epoch: Term(epoch),
            index: RaftIndex(index),
            offset: Offset(offset),
        };
        SnapshotParts {
            position: LogPosition { index: RaftIndex(9), term: Term(4) },
            members: Members { voters: vec![ReplicaId(1), ReplicaId(2)], ..Members::default() },
            epochs: vec![run(2, 3, 10), run(4, 8, 30)],
            applied_end_offset: Offset(40),
            log_start_offset: Offset(7),
            state: Bytes::from_static(b"state"),
        }
    }

    #[test]
    fn given_a_snapshot_when_encoded_then_the_bytes_are_those_of_version_one() {
        let golden = [
            1, 0, 0, 0, 2, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, //
            2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, //
            4, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 30, 0, 0, 0, 0, 0, 0, 0, //
            b's', b't', b'a', b't', b'e',
        ];
        let snapshot = parts().to_raft();
        assert_eq!(snapshot.as_ref().map(|s| s.data.as_ref()), Ok(golden.as_slice()));
        let decoded = snapshot.clone().and_then(|snapshot| SnapshotParts::from_raft(&snapshot));
        assert_eq!(decoded, Ok(parts()));
        assert_eq!(parts().check(), Ok(()));
        let head = snapshot.ok().as_ref().and_then(SnapshotHead::of_snapshot);
        let expected = SnapshotHead {
            position: parts().position,
            applied_end_offset: Offset(40),
            log_start_offset: Offset(7),
        };
        assert_eq!(head, Some(expected));
    }

    #[test]
    fn given_a_snapshot_when_its_start_is_known_to_be_later_then_that_alone_is_changed() {
        let raised = |start| {
            let mut message = Message::default();
            if let Ok(snapshot) = parts().to_raft() {
                message.set_snapshot(snapshot);
            }
            SnapshotHead::raise_log_start(&mut message, Offset(start));
            SnapshotParts::from_raft(message.get_snapshot())
        };
        for (start, expected) in [(0, 7), (7, 7), (8, 8), (40, 40), (41, 40)] {
            let log_start_offset = Offset(expected);
            assert_eq!(raised(start), Ok(SnapshotParts { log_start_offset, ..parts() }), "{start}");
        }
        let mut other = Message::default();
        SnapshotHead::raise_log_start(&mut other, Offset(9));
        assert_eq!(other, Message::default());
    }

    #[test]
    fn given_a_snapshot_when_one_part_cannot_be_then_it_is_refused_for_that() {
        let with = |change: &dyn Fn(&mut SnapshotParts)| {
            let mut parts = parts();
            change(&mut parts);
            parts.check()
        };
        assert_eq!(with(&|p| p.epochs.clear()), Err(SnapshotError::Epochs));
        assert_eq!(with(&|p| p.epochs.reverse()), Err(SnapshotError::Epochs));
        assert_eq!(with(&|p| p.position.term = Term(5)), Err(SnapshotError::Epochs));
        assert_eq!(with(&|p| p.position.index = RaftIndex(7)), Err(SnapshotError::Epochs));
        assert_eq!(with(&|p| p.epochs[0].offset = Offset(-1)), Err(SnapshotError::Epochs));
        assert!(matches!(
            with(&|p| p.log_start_offset = Offset(41)),
            Err(SnapshotError::Offsets { .. })
        ));
        assert!(matches!(
            with(&|p| p.members.learners = vec![ReplicaId(2)]),
            Err(SnapshotError::Members { .. })
        ));
    }

    #[test]
    fn given_a_state_beyond_the_limit_when_encoded_then_it_is_refused() {
        let state = Bytes::from(vec![0; GROUP_STATE_BYTES_MAX + 1]);
        let refused = SnapshotParts { state, ..parts() }.to_raft();
        assert!(matches!(refused, Err(SnapshotError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn given_any_bytes_when_decoded_then_what_is_accepted_encodes_to_the_same_bytes(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..100),
                (0_u8..4, proptest::collection::vec(any::<u8>(), 16..100)).prop_map(|(n, rest)| {
                    let mut bytes = vec![VERSION, 0, 0, 0, n, 0, 0, 0];
                    bytes.extend(rest);
                    bytes
                }),
            ]
        ) {
            let mut snapshot = Snapshot::default();
            snapshot.set_data(bytes.clone().into());
            if let Ok(parts) = SnapshotParts::from_raft(&snapshot) {
                let again = parts.to_raft().map(|snapshot| snapshot.data);
                prop_assert_eq!(again, Ok(Bytes::from(bytes)));
            }
        }
    }
}
