//! What the oracle knows of disks that are gone: which replicas went with them, and which may still go.

use chronik_engine::ids::{GroupId, ReplicaId};
use chronik_replication::wire::Seat;

use super::configs::Config;
use super::oracle::{GroupOracle, Oracle};

impl Oracle {
    /// The disks of a seat are gone, with all replicas on them.
    pub(super) fn lost(&mut self, seat: Seat) {
        let groups = &mut self.groups;
        self.seats.retain(|(of, id), replica| {
            let group = groups.get_mut(id).filter(|_| *of == seat);
            if let Some(disk) = group.and_then(|group| group.replicas.get_mut(replica)) {
                disk.is_lost = true;
            }
            *of != seat
        });
    }

    /// Whether nothing that is committed would be gone with these replicas: of each configuration that may be in force a
    /// majority keeps its disks; or one of two, where that is enough.
    pub(super) fn may_lose(
        &self,
        is_open: impl Fn(GroupId) -> bool,
        may_be_alone: impl Fn(GroupId) -> bool,
        goes: impl Fn(GroupId, ReplicaId) -> bool,
    ) -> bool {
        self.groups.iter().filter(|(id, _)| is_open(**id)).all(|(id, group)| {
            let keeps = |replica| {
                let is_lost = group.replicas.get(&replica).is_none_or(|disk| disk.is_lost);
                !is_lost && !goes(*id, replica)
            };
            let in_force = group.configs_in_force();
            let is_left =
                |config: &Config| config.is_pair() && config.voters.iter().any(|v| keeps(*v));
            in_force.iter().all(|config| config.has_quorum(keeps))
                || (in_force.iter().all(is_left) && may_be_alone(*id))
        })
    }

    /// How many groups have two voters of which one is lost.
    pub(super) fn left_alone(&self) -> u64 {
        let is_alone = |group: &&GroupOracle| {
            let is_lost = |replica| group.replicas.get(replica).is_some_and(|disk| disk.is_lost);
            let config = group.configs.newest().unwrap_or_default();
            config.is_pair()
                && config.voters.iter().filter(|replica| is_lost(*replica)).count() == 1
        };
        self.groups.values().filter(is_alone).count() as u64
    }
}
