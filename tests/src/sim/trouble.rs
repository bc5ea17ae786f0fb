//! What goes wrong, what a restart must find, and what is read when everything is at rest.

use std::collections::BTreeMap;

use chronik_engine::disk::{DirEntry, Disk};
use chronik_engine::disk_sim::{Fault, block_on};
use chronik_engine::ids::{GroupId, Offset, ReplicaId};
use chronik_engine::wal::record::GroupMeta;
use chronik_engine::wal::{RecoveredGroup, Wal};
use chronik_shards::core::ShardCore;
use chronik_shards::core::producers::ProducersImage;
use chronik_shards::stored::Segments;
use rand::Rng;

use super::disk::{HookedDisk, io_failed, random_crash, stored_io_failed};
use super::node::{Node, SEGMENTS_DIR, random_config};
use super::oracle::check_producers;
use super::run::{NODE, Run, SHARD};
use super::{Bug, Check, Violation};
use crate::must;
impl Run {
    pub(super) fn disturb(&mut self) {
        match self.rng.random_range(0..6) {
            0 => {
                let now = self.disk.counts().changes();
                self.disk.crash_at_op(now + self.rng.random_range(1..40));
                self.is_armed = true;
            }
            1 => self.arm(Fault::SyncError),
            2 => {
                let fault = [Fault::WriteError, Fault::WriteShort][self.rng.random_range(0..2)];
                self.arm(fault);
            }
            3 => self.arm(Fault::ReadError),
            4 => {
                let files = block_on(self.disk.list(&self.options.dir));
                let used: u64 = files.unwrap_or_default().iter().map(|file| file.len).sum();
                self.disk.set_capacity(Some(used + self.rng.random_range(0..2) * (64 << 10)));
            }
            _ => self.disk.set_capacity(None),
        }
    }

    pub(super) fn arm(&mut self, fault: Fault) {
        self.disk.fail_after(self.rng.random_range(0..20), fault);
        self.is_armed = true;
    }

    /// The process dies, or the power goes. Then it starts again.
    pub(super) fn crash(&mut self) -> Check {
        self.report.crashes += 1;
        let mode = random_crash(&mut self.rng);
        self.disk.crash(mode);
        self.disk.set_capacity(None);
        self.restart()
    }

    /// A stop in good order: everybody is answered, the log is closed.
    pub(super) fn clean_restart(&mut self) -> Check {
        self.report.clean_stops += 1;
        let before = self.report.crashes;
        self.node.core.borrow_mut().abort_all();
        self.absorb()?;
        must!(self.tokens.is_empty(), "tokens are open after the stop: {:?}", self.tokens);
        must!(self.waiters.is_empty(), "waiters are left after the stop: {:?}", self.waiters);
        self.settle()?;
        if self.report.crashes > before {
            return Ok(());
        }
        let states = self.states();
        match block_on(self.node.wal.close_clean()) {
            // Where the file is full nothing is written at the end: work in the background may have found the disk gone.
            Ok(_) if self.disk.has_stopped() => return self.crash(),
            Ok(_) => self.restart()?,
            Err(error) if self.is_armed && io_failed(&error) => return self.crash(),
            Err(error) => {
                return Err(Violation { what: format!("the log does not close: {error:?}") });
            }
        }
        if self.report.crashes > before {
            return Ok(());
        }
        self.settle()?;
        let replayed = self.states();
        must!(states == replayed, "replayed {replayed:?}, it was {states:?}");
        Ok(())
    }

    /// What the state machines are, without what is local to a life of the shard.
    pub(super) fn states(&self) -> BTreeMap<GroupId, Vec<u8>> {
        let plain = |group: GroupId, state: Vec<u8>| match ProducersImage::decode(&state) {
            Ok(mut image) if group != GroupId::META => {
                image.producers.iter_mut().for_each(|producer| producer.active_ms = 0);
                image.encode()
            }
            _ => state,
        };
        let core = self.node.core.borrow();
        core.checkpoints().into_iter().map(|c| (c.group, plain(c.group, c.state))).collect()
    }

    pub(super) fn restart(&mut self) -> Check {
        self.writer = None;
        self.upkeep = None;
        self.tiering = None;
        self.reads.clear();
        self.tokens.clear();
        self.waiters.clear();
        for partition in self.partitions.values_mut() {
            partition.oracle.forget_order();
            partition.producers.iter_mut().for_each(|(producer, _)| producer.on_crash());
        }
        self.count_node();
        let (wal, mut recovered, segments, listed) = self.reopen()?;
        self.log.recovered(&recovered)?;
        if self.bug == Some(Bug::LoseDedupState) {
            for group in &mut recovered {
                if group.checkpoint.group != GroupId::META {
                    group.checkpoint.state.clear();
                }
            }
        }
        if self.bug == Some(Bug::ForgetLogStart) {
            for group in &mut recovered {
                group.log_start_offset = Offset(0);
            }
        }
        let config = random_config(&mut self.rng, NODE, SHARD);
        let mut core = ShardCore::new(config, recovered, self.now_ms)
            .map_err(|error| Violation { what: format!("the core does not start: {error:?}") })?;
        let strangers = block_on(segments.restore(&mut core, &wal, listed));
        let strangers = strangers.map_err(|error| Violation { what: error.to_string() })?;
        segments.note_gone(strangers);
        let hooked = HookedDisk::new(self.disk.clone(), self.bug);
        self.node = Node::new(core, wal, segments, hooked, self.bug);
        self.start_core()?;
        if self.rng.random_range(0..10) < 7 {
            self.settle()?;
            self.verify()?;
        }
        Ok(())
    }

    /// Takes in what a life of the shard came to.
    fn count_node(&mut self) {
        self.report.rolls += self.node.rolls.get();
        self.report.reclaimed += self.node.reclaimed.get();
        self.report.taken_back += self.node.refused.get();
        self.report.segments += self.node.written.get();
        self.report.merges += self.node.merged.get();
    }

    pub(super) fn reopen(&mut self) -> Check<Reopened> {
        loop {
            self.disk.clear_faults();
            self.is_armed = self.rng.random_range(0..5) == 0;
            let now = self.disk.counts().changes();
            let crash_at = if self.is_armed { self.rng.random_range(1..8) } else { u64::MAX / 2 };
            self.disk.crash_at_op(now + crash_at);
            let hooked = HookedDisk::new(self.disk.clone(), self.bug);
            let opened = block_on(Wal::open(hooked.clone(), self.options.clone()));
            let segments = block_on(async {
                let segments = Segments::open(hooked, SEGMENTS_DIR.into()).await?;
                let listed = segments.list().await?;
                Ok::<_, std::io::Error>((segments, listed))
            });
            match (opened, segments) {
                (Ok((wal, recovered, _)), Ok((segments, listed))) => {
                    return Ok((wal, recovered, segments, listed));
                }
                (Ok(_), Err(_)) if self.is_armed => {
                    self.report.recovery_crashes += 1;
                    let mode = random_crash(&mut self.rng);
                    self.disk.crash(mode);
                }
                (Ok(_), Err(error)) => {
                    let what = format!("P1: the segments cannot be listed: {error:?}");
                    return Err(Violation { what });
                }
                (Err(error), _) if self.is_armed && io_failed(&error) => {
                    self.report.recovery_crashes += 1;
                    let mode = random_crash(&mut self.rng);
                    self.disk.crash(mode);
                }
                (Err(error), _) => {
                    return Err(Violation {
                        what: format!("P1: the log does not open: {error:?}"),
                    });
                }
            }
        }
    }

    pub(super) fn start_core(&mut self) -> Check {
        {
            let mut core = self.node.core.borrow_mut();
            if core.partition(GroupId::META).is_none() {
                let replica = ReplicaId(self.rng.random_range(1..u64::MAX));
                let meta = GroupMeta { replica, voters: vec![replica], ..GroupMeta::default() };
                core.create_group(GroupId::META, meta);
            }
        }
        let old_catalog = self.node.core.borrow().catalog();
        if let Some(catalog) = old_catalog.filter(|_| self.bug == Some(Bug::PublishOldCatalog)) {
            self.publish(&catalog)?;
        }
        self.node.core.borrow_mut().start();
        self.absorb()
    }

    /// Ends all trouble and lets everything that is under way come to its end.
    pub(super) fn settle(&mut self) -> Check {
        self.disk.set_capacity(None);
        for _ in 0..20_000 {
            let busy = self.writer.is_some() || self.node.core.borrow().has_work();
            if busy {
                self.poll_writer()?;
            } else if self.upkeep.is_some() {
                self.poll_upkeep()?;
            } else if self.tiering.is_some() {
                self.poll_tiering()?;
            } else if !self.reads.is_empty() {
                self.poll_read()?;
            } else {
                return self.absorb();
            }
            self.absorb()?;
        }
        Err(Violation { what: "the shard does not come to rest".into() })
    }

    /// Reads every log from its beginning, and compares it with all that is known. To be called at rest.
    pub(super) fn verify(&mut self) -> Check {
        self.report.verified += 1;
        self.disk.clear_faults();
        let checkpoints = self.node.core.borrow().checkpoints();
        for (group, partition) in &mut self.partitions {
            let view = self.node.core.borrow().partition(*group);
            let Some(view) = view.filter(|view| view.is_ready) else {
                return Err(Violation { what: format!("group {group} has no leader at rest") });
            };
            let log_start = view.log_start_offset;
            let batches = self.node.read_all(*group, log_start..view.high_watermark);
            let batches = match batches {
                Ok(batches) => batches,
                Err(error) if self.is_armed && stored_io_failed(&error) => return Ok(()),
                Err(error) => {
                    return Err(Violation { what: format!("P1: group {group}: {error:?}") });
                }
            };
            partition.oracle.read_whole(log_start, view.high_watermark, &batches)?;
            let state = checkpoints.iter().find(|checkpoint| checkpoint.group == *group);
            let state = state.map_or(&[][..], |checkpoint| &checkpoint.state);
            check_producers(*group, state, &batches)?;
        }
        Ok(())
    }

    /// The end of a run: everything heals, and every producer comes through.
    pub(super) fn finish(&mut self) -> Check {
        for _ in 0..200 {
            self.disk.clear_faults();
            self.disk.crash_at_op(u64::MAX);
            self.settle()?;
            // A roll may have waited for room until now; with room, produce goes on.
            self.poll_upkeep()?;
            self.settle()?;
            let groups: Vec<GroupId> = self.partitions.keys().copied().collect();
            let mut is_open = false;
            for group in groups {
                let count = self.partitions.get(&group).map_or(0, |p| p.producers.len());
                for at in 0..count {
                    self.send_open(group, at)?;
                    let partition = self.partitions.get(&group);
                    is_open |= partition.is_some_and(|p| !p.producers[at].0.pending.is_empty());
                }
            }
            self.absorb()?;
            if !is_open {
                self.settle()?;
                must!(self.tokens.is_empty(), "tokens are open at rest: {:?}", self.tokens);
                self.verify()?;
                self.count_node();
                return Ok(());
            }
        }
        Err(Violation { what: "a producer does not come through".into() })
    }
}

/// A log and a directory of segments as a restart finds them.
pub(super) type Reopened =
    (Wal<HookedDisk>, Vec<RecoveredGroup>, Segments<HookedDisk>, Vec<DirEntry>);
