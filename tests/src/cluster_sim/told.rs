//! Commits that followers are told of: a few milliseconds after there is something to tell, as the shell has it, or with a
//! tick that comes before that.
//!
//! - I1: what a leader has applied, a follower that has it on its disk applies, too, within a few ticks and the way of a
//!   message, unless something goes wrong between the two meanwhile, or went wrong shortly before. Consumers at the follower
//!   wait for it. Where messages are lost by chance or overtake
//!   each other, which those on one connection do not, nothing is asked.

use std::collections::{BTreeMap, VecDeque};

use chronik_engine::ids::{GroupId, RaftIndex, Term};
use chronik_shards::core::ShardCore;
use rand::Rng;

use super::Check;
use super::event::Step;
use super::host::HostState;
use super::run::Run;
use super::swarm::{MS, SECOND};
use crate::must;

/// How long after there is something to tell the shell tells it.
const TOLD_AFTER_US: u64 = 5 * MS;
/// How long nothing has gone wrong where a follower counts as in reach: longer than from one heartbeat to the next, with which
/// a leader begins again to send entries.
const REST_US: u64 = 3 * SECOND;
/// A few ticks, the longest of them.
const TICKS_US: u64 = 4 * 55 * MS;

/// A replica in this life of its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    host: usize,
    shard: usize,
    life: u64,
}

/// A follower that has yet to apply what its leader has.
#[derive(Debug)]
struct Awaited {
    group: GroupId,
    term: Term,
    index: RaftIndex,
    leader: Place,
    follower: Place,
    since_us: u64,
}

/// What followers have yet to hear.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The oldest first.
    awaited: VecDeque<Awaited>,
    /// Since when a group is seen to be led in a term.
    led: BTreeMap<GroupId, (Term, u64)>,
}

impl Run {
    /// A shard that has something to tell tells it soon.
    pub(super) fn plan_telling(&mut self, host: usize, shard: usize) {
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return };
        if running.node.core.borrow().has_commits_to_tell() && !running.tells_commits {
            running.tells_commits = true;
            let late_us = self.rng.random_range(0..MS);
            self.plan(TOLD_AFTER_US + late_us, host, shard, Step::TellCommits);
        }
    }

    /// A shard tells what was committed.
    pub(super) fn tell_commits(&mut self, host: usize, shard: usize) -> Check {
        let Some(running) = &mut self.hosts[host].shards[shard].running else { return Ok(()) };
        running.tells_commits = false;
        let tell = |core: &mut ShardCore| {
            let has_some = core.has_commits_to_tell();
            core.tell_commits();
            has_some
        };
        self.report.commits_told += u64::from(tell(&mut running.node.core.borrow_mut()));
        self.absorb(host, shard)
    }

    /// Something goes wrong with a node or its links, or does so no more.
    pub(super) fn trouble(&mut self, host: usize) {
        self.hosts[host].troubled_us = self.now_us;
    }

    /// Whether nothing has gone wrong for a while with either of two nodes and what lies between them.
    fn are_at_rest(&self, a: usize, b: usize) -> bool {
        let is_fine = |host: usize| {
            let here = &self.hosts[host];
            let is_slow = here.hangs || here.slowness > 1;
            let rested_us = self.now_us.saturating_sub(here.troubled_us);
            here.state == HostState::Up && !is_slow && rested_us >= REST_US
        };
        is_fine(a) && is_fine(b) && self.is_link_whole(a, b)
    }

    /// Looks what followers have not applied yet, and whether they have what they lacked a while ago (I1).
    pub(super) fn look_at_followers(&mut self) -> Check {
        if self.swarm.lost > 0 || !self.swarm.is_ordered {
            return Ok(());
        }
        let within_us = TICKS_US + self.swarm.delay_us_max + self.swarm.disk_us_max;
        while let Some(first) = self.told.awaited.front()
            && first.since_us + within_us <= self.now_us
            && let Some(awaited) = self.told.awaited.pop_front()
        {
            self.must_have_heard(&awaited)?;
        }
        for group in self.groups() {
            self.note_lagging(group);
        }
        Ok(())
    }

    /// The leader of a group, with its term.
    fn led_at(&self, group: GroupId) -> Option<(Term, Place)> {
        let led = self.places(group).into_iter().filter_map(|(host, shard)| {
            let view = self.hosts[host].node(shard)?.core.borrow().partition(group)?;
            let place = Place { host, shard, life: self.hosts[host].life };
            view.is_ready.then_some((view.leader_epoch, place))
        });
        led.max_by_key(|(term, _)| *term)
    }

    fn note_lagging(&mut self, group: GroupId) {
        let Some((term, leader)) = self.led_at(group) else { return };
        let led = self.told.led.entry(group).or_insert((term, self.now_us));
        if led.0 != term {
            *led = (term, self.now_us);
        }
        if self.now_us - led.1 < REST_US {
            return;
        }
        let Some(index) = self.applied_at(group, leader) else { return };
        for (host, shard) in self.places(group) {
            let follower = Place { host, shard, life: self.hosts[host].life };
            let lags = self.applied_at(group, follower).is_some_and(|applied| applied < index);
            if host != leader.host && lags && self.may_hear(group, index, leader, follower) {
                let since_us = self.now_us;
                let awaited = Awaited { group, term, index, leader, follower, since_us };
                self.told.awaited.push_back(awaited);
            }
        }
    }

    fn applied_at(&self, group: GroupId, place: Place) -> Option<RaftIndex> {
        let here = &self.hosts[place.host];
        let node = here.node(place.shard).filter(|_| here.life == place.life)?;
        node.core.borrow().applied_index(group)
    }

    /// Whether a follower has an entry on its disk, and hears its leader. Who copies records hears of what is committed by the
    /// snapshot that waits for them.
    fn may_hear(&self, group: GroupId, index: RaftIndex, leader: Place, follower: Place) -> bool {
        let seat = self.seat(follower.host, follower.shard);
        let is_held = self.oracle.replica_at(seat, group).is_some_and(|disk| index <= disk.last());
        if !is_held || !self.are_at_rest(leader.host, follower.host) {
            return false;
        }
        let core_of = |at: Place| self.hosts[at.host].node(at.shard);
        let copying = core_of(follower)
            .is_some_and(|node| node.core.borrow().fills().any(|(id, ..)| id == group));
        if copying {
            return false;
        }
        let replica = core_of(follower).and_then(|node| node.core.borrow().replica(group));
        let members = core_of(leader).and_then(|node| node.core.borrow().members(group));
        let known = replica.zip(members);
        known.is_some_and(|(replica, (members, _))| {
            members.voters.contains(&replica) || self.oracle.is_reader(group, replica)
        })
    }

    fn must_have_heard(&mut self, awaited: &Awaited) -> Check {
        let Awaited { group, term, index, leader, follower, since_us } = *awaited;
        let is_led = self.led_at(group) == Some((term, leader));
        let is_there = self.applied_at(group, leader).is_some_and(|applied| applied >= index);
        let (Some(applied), true) = (self.applied_at(group, follower), is_led && is_there) else {
            return Ok(());
        };
        let was_troubled =
            [leader, follower].iter().any(|at| self.hosts[at.host].troubled_us >= since_us);
        if was_troubled || !self.may_hear(group, index, leader, follower) {
            return Ok(());
        }
        let (seat, ms) = (self.seat(follower.host, follower.shard), (self.now_us - since_us) / MS);
        must!(
            applied >= index,
            "P6: {seat} has entry {index} of {group}, which {term}'s leader applied {ms} ms ago, and knows of {applied}"
        );
        self.report.commits_heard += 1;
        Ok(())
    }
}
