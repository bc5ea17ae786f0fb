//! Nodes with a replica each of some partitions, where the third may be left behind the cut of the others' logs.

use std::collections::BTreeSet;

use chronik_engine::batch::patch_header;
use chronik_engine::segment::Segment;

use super::*;
use crate::catalog::{PartitionKind, PartitionTag, TopicId};

pub(super) fn tag(group: GroupId) -> PartitionTag {
    let topic = TopicId(Uuid::from_u128(u128::from(group.0)));
    PartitionTag { topic, partition: 0, kind: PartitionKind::Records }
}

pub(super) fn member(group: GroupId, replica: u64, voters: &[u64], learners: &[u64]) -> GroupMeta {
    let ids = |ids: &[u64]| ids.iter().copied().map(ReplicaId).collect();
    GroupMeta {
        replica: ReplicaId(replica),
        voters: ids(voters),
        learners: ids(learners),
        tag: tag(group).encode(),
        ..GroupMeta::default()
    }
}

pub(super) fn stored(group: GroupId, base: i64, end: i64) -> NamedSegment {
    let segment = Segment {
        base_offset: Offset(base),
        end_offset: Offset(end),
        file_bytes: 10_000,
        max_timestamp_ms: -1,
        term: Term(1),
        generation: 0,
        is_compacted: false,
    };
    NamedSegment { topic: tag(group).topic, partition: 0, segment }
}

/// One node of several: nothing of it is slow, and what it has to say lies here.
pub(super) struct Node {
    pub(super) core: ShardCore,
    pub(super) is_up: bool,
    pub(super) fills: Vec<FillStep>,
    pub(super) gone: Vec<NamedSegment>,
    /// Segments that its directory holds.
    pub(super) files: Vec<(GroupId, NamedSegment)>,
}

/// Three nodes with a replica each, by their ids from 1 on. Messages arrive at once, in order.
pub(super) struct Nodes {
    pub(super) nodes: Vec<Node>,
    pub(super) next_token: u64,
}

impl Nodes {
    pub(super) fn new(count: u64) -> Nodes {
        let node = |at| {
            let config = CoreConfig { node: NodeId(at), seed: u64::from(at), ..config() };
            let core = ShardCore::new(config, Vec::new(), 0).unwrap();
            Node { core, is_up: true, fills: Vec::new(), gone: Vec::new(), files: Vec::new() }
        };
        let nodes = (1..=u32::try_from(count).unwrap()).map(node).collect();
        Nodes { nodes, next_token: 0 }
    }

    /// Three voters, led by the first.
    pub(super) fn voters(groups: u64) -> Nodes {
        let mut nodes = Nodes::new(3);
        for group in (1..=groups).map(GroupId) {
            for replica in [3, 2, 1] {
                nodes.core(replica).create_group(group, member(group, replica, &[1, 2, 3], &[]));
            }
            nodes.settle();
            assert!(nodes.core(1).partition(group).unwrap().is_ready, "{group}");
        }
        nodes
    }

    pub(super) fn node(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[usize::try_from(id).unwrap() - 1]
    }

    pub(super) fn core(&mut self, id: u64) -> &mut ShardCore {
        &mut self.node(id).core
    }

    /// Everything is written, and arrives where a node is up, until nobody has anything to say.
    pub(super) fn settle(&mut self) {
        loop {
            self.deliver();
            let mut up = self.nodes.iter_mut().filter(|node| node.is_up);
            let Some(node) = up.find(|node| node.core.has_commits_to_tell()) else { return };
            node.core.tell_commits();
        }
    }

    /// As [`Nodes::settle`], but nobody says what is committed who is not asked.
    pub(super) fn deliver(&mut self) {
        loop {
            let mut messages = Vec::new();
            for node in self.nodes.iter_mut().filter(|node| node.is_up) {
                while let Some(block) = node.core.take_block(BLOCK_BYTES) {
                    node.core.block_persisted(block);
                }
                let effects = node.core.take_effects();
                messages.extend(effects.messages);
                node.fills.extend(effects.fills);
                for gone in effects.segments_gone {
                    node.files.retain(|(_, file)| *file != gone);
                    node.gone.push(gone);
                }
            }
            if messages.is_empty() {
                return;
            }
            for message in messages {
                let to = self.node(message.message.to);
                if to.is_up {
                    to.core.step([message]);
                }
            }
        }
    }

    pub(super) fn tick(&mut self, ticks: usize) {
        for _ in 0..ticks {
            for node in self.nodes.iter_mut().filter(|node| node.is_up) {
                node.core.tick(0);
            }
            self.settle();
        }
    }

    /// A batch of so many records on the leader `id`.
    pub(super) fn produce(&mut self, id: u64, group: GroupId, records: usize) {
        self.propose(id, group, records);
        self.settle();
    }

    pub(super) fn propose(&mut self, id: u64, group: GroupId, records: usize) {
        self.next_token += 1;
        let (token, batch) = (Token(self.next_token), batch(records));
        let bytes = batch.size();
        self.core(id).propose_batch(group, batch, RequiredAcks::All, bytes, token).unwrap();
    }

    /// All that a leader has goes into a segment, and its log is cut behind it.
    pub(super) fn store_and_cut(&mut self, ids: &[u64], group: GroupId) {
        for id in ids {
            let core = self.core(*id);
            let (from, view) = (core.stored_to(group).unwrap(), core.partition(group).unwrap());
            if from < view.high_watermark {
                core.add_segment(group, stored(group, from.0, view.high_watermark.0));
            }
            let applied = core.commit_index(group).unwrap();
            core.set_storage_full(true); // nobody is waited for
            core.cut_log(group, applied);
            core.set_storage_full(false);
            self.settle();
            let first = self.core(*id).first_index_needed(group).unwrap();
            assert_eq!(first, applied.next(), "the log of {id} is cut");
        }
    }

    /// The third is away while records come and the others' logs are cut; then it is back.
    pub(super) fn left_behind(groups: u64) -> Nodes {
        let mut nodes = Nodes::voters(groups);
        nodes.leave_behind(groups);
        nodes
    }

    pub(super) fn leave_behind(&mut self, groups: u64) {
        for group in (1..=groups).map(GroupId) {
            self.produce(1, group, 5);
        }
        self.node(3).is_up = false;
        for group in (1..=groups).map(GroupId) {
            for _ in 0..3 {
                self.produce(1, group, 5);
            }
            self.store_and_cut(&[1, 2], group);
        }
        self.node(3).is_up = true;
        self.tick(45);
    }

    /// What a node is to ask for, and nothing else is under way there.
    pub(super) fn asked(&mut self, id: u64) -> FillAsk {
        let fills = std::mem::take(&mut self.node(id).fills);
        match &fills[..] {
            [FillStep::Ask(ask)] => *ask,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn written(&mut self, id: u64) -> FillWrite {
        let fills = std::mem::take(&mut self.node(id).fills);
        match &fills[..] {
            [FillStep::Write(write)] => write.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// Answers as a leader's shell does, with batches from memory.
    pub(super) fn answer(&mut self, from: u64, to: u64, ask: FillAsk) {
        let plan = self.core(from).plan_fill(ask.group, ask.from, ask.bytes_max).unwrap();
        let (mut bytes, mut end_offset) = (Vec::new(), ask.from);
        for cached in plan.batches {
            let at = bytes.len();
            bytes.extend_from_slice(&cached.bytes);
            patch_header(&mut bytes[at..], cached.base_offset, cached.epoch);
            end_offset = cached.end_offset();
        }
        assert!(!bytes.is_empty(), "the leader has it in memory");
        self.give(to, ask, end_offset.0, bytes.into());
    }

    pub(super) fn give(&mut self, to: u64, ask: FillAsk, end: i64, bytes: Bytes) {
        let chunk = FillChunk { end_offset: Offset(end), bytes };
        self.core(to).fill_answered(ask.group, ask.fill, ask.from, FillAnswer::Records(chunk));
        self.settle();
    }

    /// A segment of what is to be written is there.
    pub(super) fn write(&mut self, id: u64, write: &FillWrite, end: i64, is_all: bool) {
        let segment = stored(write.group, write.from.0, end);
        self.node(id).files.push((write.group, segment));
        self.core(id).fill_written(write.group, write.fill, vec![segment], is_all);
        self.settle();
    }

    /// A node ends, and starts from its checkpoints and the segments that it has.
    pub(super) fn restart(&mut self, id: u64) {
        let node = self.node(id);
        let recovered = node.core.checkpoints().into_iter().map(|c| recover(c, &[])).collect();
        let config = CoreConfig { seed: id + 100, ..config() };
        node.core = ShardCore::new(config, recovered, 0).unwrap();
        node.fills.clear();
        let groups: BTreeSet<GroupId> = node.core.group_ids().collect();
        for group in groups {
            let files = node.files.iter().filter(|(of, _)| *of == group);
            let found = files.map(|(_, named)| named.segment).collect();
            assert_eq!(node.core.restore_segments(group, found), []);
        }
        node.core.start();
        self.settle();
    }

    pub(super) fn watermark(&mut self, id: u64, group: GroupId) -> Offset {
        self.core(id).partition(group).unwrap().high_watermark
    }

    /// Copies whatever is to be copied, from the leader `from`.
    pub(super) fn fill_up(&mut self, from: u64, to: u64) {
        for _ in 0..20 {
            self.tick(1);
            for step in std::mem::take(&mut self.node(to).fills) {
                match step {
                    FillStep::Ask(ask) => self.answer(from, to, ask),
                    FillStep::Write(write) => {
                        let end = write.chunks.last().unwrap().end_offset.0;
                        self.write(to, &write, end, true);
                    }
                }
            }
        }
        assert_eq!(self.core(to).fills().count(), 0, "nothing is left to copy");
    }

    /// All have the same records, readable without a gap.
    pub(super) fn check_same(&mut self, group: GroupId) {
        self.produce(1, group, 1);
        self.tick(25);
        let end = self.watermark(1, group);
        for id in 1..=u64::try_from(self.nodes.len()).unwrap() {
            assert_eq!(self.watermark(id, group), end, "node {id}");
            let core = self.core(id);
            let log_start = core.partition(group).unwrap().log_start_offset;
            let epochs = core.checkpoint(group).unwrap().epochs;
            let first_in_log = core.first_index_needed(group).unwrap();
            let is_whole = first_in_log == RaftIndex(1);
            let begun = epochs.last().map_or(Offset(0), |run| run.offset);
            let covered_to = core.covered_to(group).unwrap();
            assert!(
                is_whole || covered_to >= begun.min(end),
                "node {id}: {covered_to} {log_start}"
            );
        }
    }
}
