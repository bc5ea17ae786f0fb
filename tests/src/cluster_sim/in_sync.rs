//! `min.insync.replicas`: of how many replicas it is asked that they have what is acknowledged, and what must come of that.
//!
//! - I1: a batch that all are to have is acknowledged when as many disks hold it as were asked for, or as many as the group
//!   has voters; those of read-only nodes do not count. One of two that went with its disk is answered for by the other,
//!   here, too.
//! - I2: none is taken by a leader that knows that it is out of reach of too many.

use chronik_engine::ids::{GroupId, Offset, ReplicaId};
use chronik_shards::core::{ProduceError, RequiredAcks, ShardCore};

use super::configs::Config;
use super::oracle::Oracle;
use super::run::Run;
use super::{Bug, Check};
use crate::must;

impl Run {
    /// How many replicas are to have what is acknowledged.
    fn in_sync_min(&self, group: GroupId) -> u32 {
        self.partitions.get(&group).map_or(1, |partition| partition.in_sync_min)
    }

    /// Asks a leader whether enough replicas are in sync for a batch, as the shell does before each.
    pub(super) fn check_in_sync(
        &self,
        group: GroupId,
        acks: RequiredAcks,
        core: &mut ShardCore,
    ) -> Result<(), ProduceError> {
        let wanted = match self.bug {
            Some(Bug::SkipInSync) => 1,
            _ => self.in_sync_min(group),
        };
        if acks.is_for_all() { core.check_in_sync(group, wanted) } else { Ok(()) }
    }

    /// A leader has taken a batch that all are to have (I2).
    pub(super) fn taken(&mut self, group: GroupId, host: usize, shard: usize) -> Check {
        let wanted = usize::try_from(self.in_sync_min(group)).unwrap_or(usize::MAX);
        // One that asks for itself only may be about to go, and no voter any more.
        let Some(node) = self.hosts[host].node(shard).filter(|_| wanted > 1) else { return Ok(()) };
        let core = node.core.borrow();
        let is_ready = core.partition(group).is_some_and(|view| view.is_ready);
        let Some((members, _)) = core.members(group).filter(|_| is_ready) else { return Ok(()) };
        let in_reach = |replica| {
            let seat = self.seat_of(group, replica);
            seat.is_some_and(|seat| !self.is_link_down(host, self.place(seat).0))
        };
        let voters = members.voters.len();
        let count = members.voters.into_iter().filter(|replica| in_reach(*replica)).count();
        let seat = self.seat(host, shard);
        must!(
            count >= wanted.min(voters),
            "{seat} takes a batch of {group} for {wanted} replicas, {count} of {voters} are in reach"
        );
        Ok(())
    }

    /// A batch that all are to have is acknowledged (I1).
    pub(super) fn check_copies(&mut self, group: GroupId, offset: Offset) -> Check {
        let wanted = usize::try_from(self.in_sync_min(group)).unwrap_or(usize::MAX);
        let (copies, voters) = self.oracle.copies(group, offset);
        must!(
            copies >= wanted.min(voters),
            "P1: {group}: {offset} is acknowledged with {copies} copies, asked for were {wanted} of {voters}"
        );
        self.report.acked_by_more += u64::from(wanted.min(voters) > voters / 2 + 1);
        Ok(())
    }
}

impl Oracle {
    /// How many disks hold the committed batch at an offset, and how many voters its group has, or will have.
    fn copies(&self, id: GroupId, offset: Offset) -> (usize, usize) {
        let Some(group) = self.groups.get(&id) else { return (0, 0) };
        let at = group.chosen().partition_point(|known| known.end_offset <= offset);
        let Some(chosen) = group.chosen().get(at) else { return (0, 0) };
        let counts = |replica: &ReplicaId| !group.readers.contains(replica);
        let disks = group.replicas.iter().filter(|(replica, _)| counts(replica));
        let entries = disks.filter_map(|(_, disk)| disk.entries.get(at));
        let voters = group.configs_in_force().into_iter().map(|config| config.voters.len()).min();
        let is_answered_for = |replica: &ReplicaId| {
            let disk = group.replicas.get(replica).filter(|disk| disk.is_lost);
            disk.is_some_and(|disk| disk.entries.get(at).is_none_or(|e| !e.is_same(chosen)))
        };
        let pairs = group.configs_in_force().into_iter().filter(Config::is_pair);
        let lost = pairs.map(|pair| pair.voters.iter().filter(|r| is_answered_for(r)).count());
        let held = entries.filter(|entry| entry.is_same(chosen)).count();
        (held + lost.max().unwrap_or(0), voters.unwrap_or(0))
    }
}
