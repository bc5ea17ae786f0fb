//! Three cores with a replica each of one group, and a network between them that a test may cut.

use std::collections::{BTreeMap, BTreeSet};

use chronik_replication::MessageType;
use chronik_replication::wire::ReceivedMark;

use super::*;

/// The replicas' ids: 11, 12 and 13.
pub(super) fn replica(at: usize) -> ReplicaId {
    ReplicaId(11 + at as u64)
}

const TICK_MS: u64 = 50;
/// Ticks within which followers hear how old they are.
pub(super) const AGE_TICKS: usize = 80;

pub(super) struct Trio {
    pub(super) cores: Vec<ShardCore>,
    pub(super) replies: Vec<(usize, Token, Result<i64, ProduceError>)>,
    pub(super) reads: Vec<(usize, Token, Result<(), FetchError>)>,
    pub(super) wakes: Vec<(usize, WaiterId)>,
    network: Vec<PeerMessage>,
    received: Vec<ReceivedMark>,
    cut: BTreeSet<usize>,
    /// The one that gets no entries.
    pub(super) starved: Option<usize>,
    /// The clock of all of them.
    pub(super) clock_ms: u64,
    /// Those whose disk hangs, with the block that it has.
    hung: BTreeMap<usize, Option<PendingBlock>>,
}

impl Trio {
    /// The first one leads.
    pub(super) fn led() -> Trio {
        Trio::led_with(config())
    }

    pub(super) fn led_with(config: CoreConfig) -> Trio {
        let cores = (0..3_u32).map(|at| {
            let config = CoreConfig { seed: at.into(), node: NodeId(1 + at), ..config.clone() };
            ShardCore::new(config, Vec::new(), 0).unwrap()
        });
        let mut trio = Trio {
            cores: cores.collect(),
            replies: Vec::new(),
            reads: Vec::new(),
            wakes: Vec::new(),
            network: Vec::new(),
            received: Vec::new(),
            cut: BTreeSet::new(),
            starved: None,
            clock_ms: 0,
            hung: BTreeMap::new(),
        };
        let voters: Vec<ReplicaId> = (0..3).map(replica).collect();
        for at in 0..3 {
            let meta =
                GroupMeta { replica: voters[at], voters: voters.clone(), ..GroupMeta::default() };
            trio.cores[at].create_group(GROUP, meta);
        }
        for _ in 0..20 {
            trio.tick();
            trio.settle();
        }
        assert!(trio.is_ready(0), "the first one is preferred");
        trio
    }

    pub(super) fn is_ready(&self, at: usize) -> bool {
        self.cores[at].partition(GROUP).is_some_and(|view| view.is_ready)
    }

    /// Nothing reaches this one or comes from it. Nobody is told.
    pub(super) fn cut(&mut self, at: usize) {
        self.cut.insert(at);
    }

    pub(super) fn join(&mut self, at: usize) {
        self.cut.remove(&at);
    }

    /// Its disk takes one more block, and does not come back with it.
    pub(super) fn hang(&mut self, at: usize) {
        self.hung.insert(at, None);
    }

    pub(super) fn unhang(&mut self, at: usize) {
        if let Some(block) = self.hung.remove(&at).flatten() {
            self.cores[at].block_persisted(block);
        }
    }

    /// The same, for a test that says what becomes of the block.
    pub(super) fn unhang_with(&mut self, at: usize) -> PendingBlock {
        self.hung.remove(&at).flatten().expect("it took a block")
    }

    /// The links of `at` say that another is gone.
    pub(super) fn tell_lost(&mut self, at: usize, gone: usize) {
        self.cores[at].peers_lost(|_, lost| lost == replica(gone));
    }

    /// The links of `at` say that another is there.
    pub(super) fn tell_found(&mut self, at: usize, there: usize) {
        self.cores[at].peers_found(|_, found| found == replica(there));
    }

    pub(super) fn tick(&mut self) {
        self.clock_ms += TICK_MS;
        for core in &mut self.cores {
            core.set_clock(self.clock_ms);
            core.tick(0);
        }
    }

    /// So many ticks pass.
    pub(super) fn pass(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.tick();
            self.settle();
        }
    }

    /// What a consumer that reads from the beginning may see at one of them.
    pub(super) fn shown(&mut self, at: usize) -> Result<Offset, FetchError> {
        self.cores[at].set_clock(self.clock_ms);
        let plan = self.cores[at].plan_replica_read(GROUP, Offset(0), 1 << 20, -1);
        plan.map(|plan| plan.high_watermark)
    }

    /// Writes what there is to write and carries what there is to carry, once; says whether there was anything.
    pub(super) fn step(&mut self) -> bool {
        let mut has_done = false;
        for at in 0..3 {
            if let Some(held) = self.hung.get_mut(&at) {
                if held.is_none() {
                    *held = self.cores[at].take_block(BLOCK_BYTES);
                }
                self.take(at);
                continue;
            }
            while let Some(block) = self.cores[at].take_block(BLOCK_BYTES) {
                self.cores[at].block_persisted(block);
                has_done = true;
            }
            self.take(at);
        }
        has_done |= !self.network.is_empty() || !self.received.is_empty();
        for mark in std::mem::take(&mut self.received) {
            let place = |id: ReplicaId| usize::try_from(id.0 - 11).unwrap();
            let (from, to) = (place(mark.from), place(mark.to));
            if !self.cut.contains(&from) && !self.cut.contains(&to) {
                self.cores[to].take_received([mark]);
            }
        }
        for message in std::mem::take(&mut self.network) {
            let place = |id: u64| usize::try_from(id - 11).unwrap();
            let (from, to) = (place(message.message.from), place(message.message.to));
            let is_entry = message.message.get_msg_type() == MessageType::MsgAppend;
            let is_lost = is_entry && self.starved == Some(to);
            if !self.cut.contains(&from) && !self.cut.contains(&to) && !is_lost {
                self.cores[to].step([message]);
            }
        }
        has_done
    }

    fn take(&mut self, at: usize) {
        let effects = self.cores[at].take_effects();
        let offset = |ack| match ack {
            Ack::Appended(appended) => appended.base_offset.0,
            other => panic!("{other:?}"),
        };
        let replies = effects.replies.into_iter();
        self.replies.extend(replies.map(|(token, result)| (at, token, result.map(offset))));
        self.reads.extend(effects.reads.into_iter().map(|(token, result)| (at, token, result)));
        self.wakes.extend(effects.wakes.into_iter().map(|waiter| (at, waiter)));
        self.network.extend(effects.messages);
        self.received.extend(effects.received);
    }

    pub(super) fn settle(&mut self) {
        for _ in 0..100 {
            if self.step() {
                continue;
            }
            let Some(core) = self.cores.iter_mut().find(|core| core.has_commits_to_tell()) else {
                return;
            };
            core.tell_commits();
        }
        panic!("it does not come to rest");
    }

    pub(super) fn produce(
        &mut self,
        at: usize,
        batch: RecordBatch,
        token: u64,
    ) -> Result<(), ProduceError> {
        self.produce_for(at, batch, RequiredAcks::All, token)
    }

    pub(super) fn produce_for(
        &mut self,
        at: usize,
        batch: RecordBatch,
        acks: RequiredAcks,
        token: u64,
    ) -> Result<(), ProduceError> {
        let bytes = batch.size();
        self.cores[at].propose_batch(GROUP, batch, acks, bytes, Token(token))
    }

    /// One ends and begins again with what its disk has.
    pub(super) fn restart(&mut self, at: usize) {
        self.hung.remove(&at);
        let checkpoints = self.cores[at].checkpoints().into_iter();
        let recovered = checkpoints.map(|checkpoint| recover(checkpoint, &[])).collect();
        let seed = 100 + at as u64;
        let node = NodeId(1 + u32::try_from(at).unwrap());
        let config = CoreConfig { seed, node, ..config() };
        self.cores[at] = ShardCore::new(config, recovered, 0).unwrap();
        self.cores[at].start();
    }

    pub(super) fn produced(&mut self, at: usize, batch: RecordBatch, token: u64) -> i64 {
        self.produce(at, batch, token).unwrap();
        self.settle();
        let answer = self.replies.iter().find(|(_, answered, _)| *answered == Token(token));
        answer.map(|(_, _, result)| result.unwrap()).unwrap()
    }

    /// The first is cut off, and the others know.
    pub(super) fn lose_first(&mut self) {
        self.cut(0);
        self.tell_lost(1, 0);
        self.tell_lost(2, 0);
    }

    /// Time passes for the two others until something is so; says whether it ever was.
    pub(super) fn passes_until(&mut self, mut is_so: impl FnMut(&mut Trio) -> bool) -> bool {
        (0..200).any(|_| {
            self.cores[1].tick(0);
            self.cores[2].tick(0);
            self.step();
            is_so(self)
        })
    }

    /// The second leads from now on; the first, which is cut off, does not know.
    pub(super) fn depose_first(&mut self) {
        self.lose_first();
        for _ in 0..20 {
            for at in [1, 2] {
                self.cores[at].tick(0);
            }
            self.settle();
        }
        assert!(self.is_ready(1) && self.is_ready(0), "two of them think that they lead");
    }
}
