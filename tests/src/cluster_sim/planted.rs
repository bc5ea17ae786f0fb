//! What planted bugs make of a start: of what it finds on its disks, and of what it is told.

use chronik_engine::ids::{GroupId, Offset, RaftIndex, ReplicaId};
use chronik_engine::wal::RecoveredGroup;
use chronik_engine::wal::record::LogPosition;
use chronik_replication::Members;
use chronik_shards::catalog::{PartitionKind, PartitionTag};
use chronik_shards::core::CoreConfig;

use super::Bug;
use super::run::Run;

impl Run {
    /// What planted bugs make of what was found.
    pub(super) fn damage(&mut self, recovered: &mut [RecoveredGroup]) {
        for group in recovered {
            match self.bug {
                Some(Bug::ForgetVote) => group.hard_state.vote = ReplicaId::NONE,
                Some(Bug::ForgetHardState) => {
                    group.hard_state.term = group.last.term;
                    group.hard_state.vote = ReplicaId::NONE;
                }
                Some(Bug::LoseTail) if group.entries.len() > 1 => {
                    group.entries.pop();
                    let last = group.entries.last();
                    group.last = last.map_or(group.last, |entry| LogPosition {
                        index: entry.index,
                        term: entry.term,
                    });
                    let RaftIndex(last) = group.last.index;
                    group.hard_state.commit.0 = group.hard_state.commit.0.min(last);
                }
                Some(Bug::LoseDedupState) if kind_of(group) == Some(PartitionKind::Records) => {
                    group.checkpoint.state.clear();
                }
                Some(Bug::LateEpochs) => {
                    group.checkpoint.epochs.iter_mut().for_each(|begun| begun.offset.0 += 1);
                }
                Some(Bug::ForgetLogStart) => group.log_start_offset = Offset(0),
                Some(Bug::ForgetMembers) if group.checkpoint.group == GroupId::META => {
                    let first = self.first_voters.iter().map(|first| first.replica);
                    let members = Members { voters: first.collect(), ..Members::default() };
                    members.put_into(&mut group.checkpoint.meta);
                }
                Some(Bug::LoseGroups) if kind_of(group) == Some(PartitionKind::Groups) => {
                    group.checkpoint.state.clear();
                }
                _ => {}
            }
        }
    }

    /// What planted bugs make of what a shard is told.
    pub(super) fn spoil_config(&self, config: &mut CoreConfig) {
        if self.bug == Some(Bug::HoldAll) {
            config.in_flight_bytes_max = usize::MAX;
        }
    }
}

fn kind_of(group: &RecoveredGroup) -> Option<PartitionKind> {
    PartitionTag::decode(&group.checkpoint.meta.tag).map(|tag| tag.kind)
}
