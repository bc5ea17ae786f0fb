//! A minority of the nodes that vote is down or cut off when all other trouble ends: the rest goes on without it.
//!
//! - I1: of each group a quorum that holds what is committed, and that nobody lacks, has a leader within [`BOUND_S`] (R2); and
//!   it acknowledges, where enough of its voters are among them for as many as are asked for.
//! - I2: connections on which messages were lost are closed first, as TCP has it. A snapshot that is lost without that would be
//!   missed after half a minute only.
//! - I3: nothing is asked of groups of which too many are away or lost: whoever is away is drawn, not chosen.

use std::collections::BTreeSet;

use chronik_engine::ids::{GroupId, ReplicaId};
use chronik_shards::catalog::PartitionKind;
use rand::Rng;
use rand::seq::SliceRandom;

use super::Check;
use super::host::HostState;
use super::oracle::Oracle;
use super::run::Run;
use super::swarm::{MS, SECOND};
use crate::must;

/// What the product promises.
const BOUND_S: u64 = 10;
/// How often a client tries.
const TRY_US: u64 = 100 * MS;

impl Run {
    /// To be called when all is calm, with those that are away; see the module's page. They are back in the end.
    pub(super) fn go_on_without(&mut self, away: &[usize]) -> Check {
        let are_cut_off = self.rng.random();
        for host in away.iter().copied() {
            self.send_away(host, are_cut_off)?;
        }
        for host in 0..self.hosts.len() {
            if !away.contains(&host) && self.hosts[host].state == HostState::Down {
                self.start_host(host)?;
            }
        }
        self.close_leaky_links()?;
        let since_us = self.now_us;
        let mut wanted: BTreeSet<GroupId> = self.groups().into_iter().collect();
        wanted.retain(|group| self.able_without(away, *group).is_some());
        let count = wanted.len() as u64;
        trace!(self, "without {away:?}, cut off {are_cut_off}: {wanted:?}");
        loop {
            let groups = self.groups();
            wanted.retain(|group| groups.contains(group) && !self.goes_on(*group, away, since_us));
            if wanted.is_empty() {
                break;
            }
            let is_late = self.now_us >= since_us + BOUND_S * SECOND;
            must!(
                !is_late,
                "R2: without nodes {away:?} (counted from 0) these do not go on within {BOUND_S} s: {wanted:?}{}",
                self.outlook()
            );
            for group in wanted.iter().copied() {
                self.try_once(group);
            }
            self.go_on(TRY_US)?;
        }
        self.report.groups_without_minority += count;
        trace!(self, "they went on after {} ms", (self.now_us - since_us) / MS);
        for host in away.iter().copied() {
            self.bring_back(host)?;
        }
        Ok(())
    }

    /// Fewer than half of the nodes that vote, of those groups that can bear it; nobody where none does.
    pub(super) fn draw_minority(&mut self) -> Vec<usize> {
        let voting = (0..self.hosts.len()).filter(|host| !self.hosts[*host].is_read_only);
        let mut away: Vec<usize> = voting.collect();
        let count = self.rng.random_range(1..=(away.len() - 1) / 2);
        away.shuffle(&mut self.rng);
        away.truncate(count);
        let groups = self.groups();
        let is_borne = groups.into_iter().any(|group| self.able_without(&away, group).is_some());
        if is_borne { away } else { Vec::new() }
    }

    /// How many voters of a group hold all that is committed and are not away; `None` if they are no quorum.
    pub(super) fn able_without(&self, away: &[usize], group: GroupId) -> Option<usize> {
        let is_there = |replica| {
            let seat = self.seat_of(group, replica);
            seat.is_some_and(|seat| !away.contains(&self.place(seat).0))
        };
        self.oracle.able(group, is_there)
    }

    fn send_away(&mut self, host: usize, is_cut_off: bool) -> Check {
        self.trouble(host);
        self.fails(host);
        let others: Vec<usize> = (0..self.hosts.len()).filter(|other| *other != host).collect();
        if is_cut_off && self.hosts[host].state == HostState::Up {
            let ways = others.iter().flat_map(|other| [(host, *other), (*other, host)]);
            ways.for_each(|(from, to)| self.net.cut(from, to));
            self.net.trouble(self.now_us);
            return Ok(());
        }
        if self.hosts[host].state == HostState::Down {
            self.hosts[host].life += 1; // it was to come back
            return Ok(());
        }
        self.end_host(host);
        // The end of a process is noticed at once, the end of a machine is not.
        if self.rng.random() {
            for other in others {
                self.link_down(host, other)?;
            }
        }
        Ok(())
    }

    fn bring_back(&mut self, host: usize) -> Check {
        self.trouble(host);
        self.fails(host);
        self.net.heal();
        self.net.trouble(self.now_us);
        if self.hosts[host].state == HostState::Down { self.start_host(host) } else { Ok(()) }
    }

    /// Whether somebody who is not away leads a group, and has acknowledged something since.
    fn goes_on(&self, group: GroupId, away: &[usize], since_us: u64) -> bool {
        let leads = |(host, shard): (usize, usize)| {
            let node = self.hosts[host].node(shard).filter(|_| !away.contains(&host));
            let view = node.and_then(|node| node.core.borrow().partition(group));
            view.is_some_and(|view| view.is_ready)
        };
        if !self.places(group).into_iter().any(leads) {
            return false;
        }
        let Some(partition) = self.partitions.get(&group) else { return true };
        if partition.kind != PartitionKind::Records {
            return true;
        }
        let able = self.able_without(away, group).unwrap_or(0);
        let are_asked_for = usize::try_from(partition.in_sync_min).unwrap_or(usize::MAX);
        partition.acked_us > since_us || able < are_asked_for
    }

    /// Somebody wants a batch of a partition acknowledged.
    fn try_once(&mut self, group: GroupId) {
        let has_records =
            self.partitions.get(&group).is_some_and(|p| p.kind == PartitionKind::Records);
        if has_records {
            self.produce_for_all(group);
        }
    }
}

impl Oracle {
    /// How many of a group's voters are there and hold all that is known to be committed, in the configuration that has the
    /// fewest of them; `None` if they are no quorum of one that may be in force.
    fn able(&self, id: GroupId, is_there: impl Fn(ReplicaId) -> bool) -> Option<usize> {
        let group = self.groups.get(&id)?;
        let chosen = group.chosen();
        let is_able = |replica: ReplicaId| {
            let disk =
                group.replicas.get(&replica).filter(|disk| !disk.is_lost && !disk.is_deleted);
            let held = disk.map(|disk| chosen.len().checked_sub(1).map(|at| disk.entries.get(at)));
            let holds_all = held.is_some_and(|last| {
                last.is_none_or(|last| last.zip(chosen.last()).is_some_and(|(a, b)| a.is_same(b)))
            });
            holds_all && is_there(replica)
        };
        let configs = group.configs_in_force();
        let are_quorums = configs.iter().all(|config| config.has_quorum(is_able));
        let count = |voters: &BTreeSet<ReplicaId>| voters.iter().filter(|v| is_able(**v)).count();
        let fewest = configs.iter().map(|config| count(&config.voters)).min();
        fewest.filter(|_| are_quorums)
    }
}
