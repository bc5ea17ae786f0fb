//! Replicas that are behind the cut of their leader's log, or blank: they copy records, and take the snapshot then.

use std::collections::BTreeSet;

use chronik_engine::batch::patch_header;
use chronik_engine::segment::Segment;
use chronik_replication::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Message, MessageType};

use super::*;
use crate::catalog::{PartitionKind, PartitionTag, TopicId};

/// What is larger than what a fill gathers before it writes.
const LARGE_BYTES: usize = 33 << 20;

fn tag(group: GroupId) -> PartitionTag {
    let topic = TopicId(Uuid::from_u128(u128::from(group.0)));
    PartitionTag { topic, partition: 0, kind: PartitionKind::Records }
}

fn member(group: GroupId, replica: u64, voters: &[u64], learners: &[u64]) -> GroupMeta {
    let ids = |ids: &[u64]| ids.iter().copied().map(ReplicaId).collect();
    GroupMeta {
        replica: ReplicaId(replica),
        voters: ids(voters),
        learners: ids(learners),
        tag: tag(group).encode(),
        ..GroupMeta::default()
    }
}

fn stored(group: GroupId, base: i64, end: i64) -> NamedSegment {
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
struct Node {
    core: ShardCore,
    is_up: bool,
    fills: Vec<FillStep>,
    gone: Vec<NamedSegment>,
    /// Segments that its directory holds.
    files: Vec<(GroupId, NamedSegment)>,
}

/// Three nodes with a replica each, by their ids from 1 on. Messages arrive at once, in order.
struct Nodes {
    nodes: Vec<Node>,
    next_token: u64,
}

impl Nodes {
    fn new(count: u64) -> Nodes {
        let node = |at| {
            let config = CoreConfig { node: NodeId(at), seed: u64::from(at), ..config() };
            let core = ShardCore::new(config, Vec::new(), 0).unwrap();
            Node { core, is_up: true, fills: Vec::new(), gone: Vec::new(), files: Vec::new() }
        };
        let nodes = (1..=u32::try_from(count).unwrap()).map(node).collect();
        Nodes { nodes, next_token: 0 }
    }

    /// Three voters, led by the first.
    fn voters(groups: u64) -> Nodes {
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

    fn node(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[usize::try_from(id).unwrap() - 1]
    }

    fn core(&mut self, id: u64) -> &mut ShardCore {
        &mut self.node(id).core
    }

    /// Everything is written, and arrives where a node is up, until nobody has anything to say.
    fn settle(&mut self) {
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

    fn tick(&mut self, ticks: usize) {
        for _ in 0..ticks {
            for node in self.nodes.iter_mut().filter(|node| node.is_up) {
                node.core.tick(0);
            }
            self.settle();
        }
    }

    /// A batch of so many records on the leader `id`.
    fn produce(&mut self, id: u64, group: GroupId, records: usize) {
        self.next_token += 1;
        let (token, batch) = (Token(self.next_token), batch(records));
        let bytes = batch.size();
        self.core(id).propose_batch(group, batch, RequiredAcks::All, bytes, token).unwrap();
        self.settle();
    }

    /// All that a leader has goes into a segment, and its log is cut behind it.
    fn store_and_cut(&mut self, ids: &[u64], group: GroupId) {
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
    fn left_behind(groups: u64) -> Nodes {
        let mut nodes = Nodes::voters(groups);
        for group in (1..=groups).map(GroupId) {
            nodes.produce(1, group, 5);
        }
        nodes.node(3).is_up = false;
        for group in (1..=groups).map(GroupId) {
            for _ in 0..3 {
                nodes.produce(1, group, 5);
            }
            nodes.store_and_cut(&[1, 2], group);
        }
        nodes.node(3).is_up = true;
        nodes.tick(45);
        nodes
    }

    /// What a node is to ask for, and nothing else is under way there.
    fn asked(&mut self, id: u64) -> FillAsk {
        let fills = std::mem::take(&mut self.node(id).fills);
        match &fills[..] {
            [FillStep::Ask(ask)] => *ask,
            other => panic!("{other:?}"),
        }
    }

    fn written(&mut self, id: u64) -> FillWrite {
        let fills = std::mem::take(&mut self.node(id).fills);
        match &fills[..] {
            [FillStep::Write(write)] => write.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// Answers as a leader's shell does, with batches from memory.
    fn answer(&mut self, from: u64, to: u64, ask: FillAsk) {
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

    fn give(&mut self, to: u64, ask: FillAsk, end: i64, bytes: Bytes) {
        let chunk = FillChunk { end_offset: Offset(end), bytes };
        self.core(to).fill_answered(ask.group, ask.fill, ask.from, FillAnswer::Records(chunk));
        self.settle();
    }

    /// A segment of what is to be written is there.
    fn write(&mut self, id: u64, write: &FillWrite, end: i64, is_all: bool) {
        let segment = stored(write.group, write.from.0, end);
        self.node(id).files.push((write.group, segment));
        self.core(id).fill_written(write.group, write.fill, vec![segment], is_all);
        self.settle();
    }

    /// A node ends, and starts from its checkpoints and the segments that it has.
    fn restart(&mut self, id: u64) {
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

    fn watermark(&mut self, id: u64, group: GroupId) -> Offset {
        self.core(id).partition(group).unwrap().high_watermark
    }

    /// Copies whatever is to be copied, from the leader `from`.
    fn fill_up(&mut self, from: u64, to: u64) {
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
    fn check_same(&mut self, group: GroupId) {
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

#[test]
fn given_a_follower_behind_the_cut_when_it_comes_back_then_it_copies_first_and_takes_the_snapshot_then()
 {
    let mut nodes = Nodes::left_behind(1);
    let ask = nodes.asked(3);
    assert_eq!((ask.from, ask.up_to), (Offset(0), Offset(20)), "nothing is in segments here");
    assert_eq!((ask.leader, ask.replica), (ReplicaId(1), ReplicaId(3)));
    assert_eq!(nodes.core(3).fills().collect::<Vec<_>>(), [(GROUP, Offset(0), Offset(20))]);
    nodes.answer(1, 3, ask);
    let write = nodes.written(3);
    assert_eq!((write.from, write.chunks[0].end_offset), (Offset(0), Offset(20)));
    assert_eq!(nodes.watermark(3, GROUP), Offset(5), "the snapshot waits");
    nodes.write(3, &write, 20, true);
    assert_eq!(nodes.watermark(3, GROUP), Offset(20));
    assert_eq!(nodes.core(3).stored_to(GROUP), Some(Offset(20)));
    assert_eq!(nodes.core(3).fills().count(), 0);
    nodes.check_same(GROUP);
    // It may lead now, and knows what producers have sent.
    nodes.restart(3);
    nodes.tick(25);
    nodes.check_same(GROUP);
}

#[test]
fn given_a_blank_learner_when_it_is_added_then_it_copies_the_records_though_the_log_has_them_all() {
    let mut nodes = Nodes::new(2);
    nodes.core(1).create_group(GROUP, member(GROUP, 1, &[1], &[]));
    nodes.settle();
    for _ in 0..3 {
        nodes.produce(1, GROUP, 5);
    }
    nodes.core(2).create_group(GROUP, member(GROUP, 2, &[1], &[2]));
    let mut change = ConfChangeV2::default();
    let mut single = ConfChangeSingle { node_id: 2, ..ConfChangeSingle::default() };
    single.change_type = ConfChangeType::AddLearnerNode;
    change.set_changes(vec![single].into());
    nodes.core(1).propose_members(GROUP, &change).unwrap();
    nodes.tick(25);
    let ask = nodes.asked(2);
    assert_eq!((ask.from, ask.up_to), (Offset(0), Offset(15)));
    nodes.answer(1, 2, ask);
    let write = nodes.written(2);
    nodes.write(2, &write, 15, true);
    nodes.check_same(GROUP);
}

#[test]
fn given_a_fill_when_it_is_cut_short_then_it_goes_on_behind_the_segments_that_were_written() {
    let mut nodes = Nodes::left_behind(1);
    let ask = nodes.asked(3);
    nodes.answer(1, 3, ask);
    let write = nodes.written(3);
    nodes.write(3, &write, 10, false);
    nodes.tick(5);
    assert_eq!(nodes.asked(3).from, Offset(10), "a write that failed in its middle");
    assert_eq!(nodes.watermark(3, GROUP), Offset(5), "more is stored than is applied");
    nodes.restart(3);
    assert_eq!(nodes.core(3).stored_to(GROUP), Some(Offset(10)));
    // The leader hears of the end of the link.
    nodes.core(1).peers_lost(|_, replica| replica == ReplicaId(3));
    nodes.tick(45);
    let again = nodes.asked(3);
    assert_eq!(again.from, Offset(10));
    nodes.answer(1, 3, again);
    let write = nodes.written(3);
    nodes.write(3, &write, 20, true);
    assert_eq!(nodes.watermark(3, GROUP), Offset(20));
    nodes.check_same(GROUP);
}

#[test]
fn given_a_fill_when_a_newer_snapshot_comes_then_it_goes_on_to_the_end_of_that_one() {
    let mut nodes = Nodes::left_behind(1);
    let ask = nodes.asked(3);
    nodes.produce(1, GROUP, 5);
    nodes.store_and_cut(&[2], GROUP);
    nodes.core(1).peers_lost(|_, replica| replica == ReplicaId(3));
    nodes.tick(45);
    assert!(nodes.node(3).fills.is_empty(), "the call is under way");
    nodes.answer(1, 3, ask);
    let write = nodes.written(3);
    let end = write.chunks.last().unwrap().end_offset;
    assert_eq!(end, Offset(25), "it is one fill all along");
    nodes.write(3, &write, 25, true);
    assert_eq!(nodes.watermark(3, GROUP), Offset(25));
    nodes.check_same(GROUP);
}

#[test]
fn given_a_fill_when_another_leads_then_what_is_written_stays_and_the_new_leader_is_asked_for_the_rest()
 {
    let mut nodes = Nodes::left_behind(1);
    let ask = nodes.asked(3);
    nodes.give(3, ask, 10, vec![0; LARGE_BYTES].into());
    let fills = std::mem::take(&mut nodes.node(3).fills);
    let [FillStep::Write(write), FillStep::Ask(lost)] = &fills[..] else { panic!("{fills:?}") };
    nodes.write(3, write, 10, true);
    nodes.node(1).is_up = false;
    for id in [2, 3] {
        nodes.core(id).peers_lost(|_, replica| replica == ReplicaId(1));
    }
    nodes.tick(120);
    let view = nodes.core(2).partition(GROUP).unwrap();
    assert!(view.is_leader && !view.is_ready, "it has all that is committed, and no quorum yet");
    nodes.core(3).fill_answered(GROUP, lost.fill, lost.from, FillAnswer::Failed);
    nodes.tick(10);
    let ask = nodes.asked(3);
    assert_eq!((ask.leader, ask.from), (ReplicaId(2), Offset(10)));
    nodes.answer(2, 3, ask);
    let write = nodes.written(3);
    nodes.write(3, &write, 20, true);
    assert_eq!(nodes.watermark(3, GROUP), Offset(20));
    nodes.tick(25);
    assert!(nodes.core(2).partition(GROUP).unwrap().is_ready, "two of three are enough again");
}

#[test]
fn given_a_leader_whose_log_starts_late_when_a_replica_fills_then_it_begins_there_and_older_segments_go()
 {
    let mut nodes = Nodes::voters(1);
    nodes.produce(1, GROUP, 5);
    nodes.store_and_cut(&[3], GROUP);
    nodes.node(3).is_up = false;
    for _ in 0..3 {
        nodes.produce(1, GROUP, 5);
    }
    nodes.core(1).propose_log_start(GROUP, Offset(12), None).unwrap();
    nodes.settle();
    nodes.store_and_cut(&[1, 2], GROUP);
    nodes.node(3).is_up = true;
    nodes.tick(45);
    let ask = nodes.asked(3);
    assert_eq!(ask.from, Offset(12));
    assert_eq!(nodes.node(3).gone, [stored(GROUP, 0, 5)]);
    let view = nodes.core(3).partition(GROUP).unwrap();
    assert_eq!((view.log_start_offset, view.high_watermark), (Offset(5), Offset(5)));
    // Meanwhile it starts later still.
    let start = FillAnswer::LogStart(Offset(17));
    nodes.core(3).fill_answered(GROUP, ask.fill, ask.from, start);
    nodes.settle();
    let ask = nodes.asked(3);
    assert_eq!(ask.from, Offset(17));
    nodes.answer(1, 3, ask);
    let write = nodes.written(3);
    nodes.write(3, &write, 20, true);
    let view = nodes.core(3).partition(GROUP).unwrap();
    assert_eq!((view.log_start_offset, view.high_watermark), (Offset(12), Offset(20)));
    nodes.check_same(GROUP);
}

#[test]
fn given_a_fill_when_the_own_log_becomes_a_segment_meanwhile_then_nothing_is_stored_twice() {
    let mut nodes = Nodes::left_behind(1);
    let ask = nodes.asked(3);
    nodes.answer(1, 3, ask);
    let write = nodes.written(3);
    let own = stored(GROUP, 0, 5);
    nodes.core(3).add_segment(GROUP, own);
    nodes.write(3, &write, 20, true);
    assert_eq!(nodes.node(3).gone, [stored(GROUP, 0, 20)], "the first one counts");
    let ask = nodes.asked(3);
    assert_eq!(ask.from, Offset(5));
    // And the other way round, under a name that counts already.
    nodes.core(3).add_segment(GROUP, own);
    nodes.settle();
    assert_eq!(nodes.node(3).gone.len(), 1);
    // What is gathered beyond it is not asked for again.
    nodes.give(3, ask, 10, vec![0; 100].into());
    let rest = nodes.asked(3);
    nodes.give(3, rest, 15, vec![0; 100].into());
    let rest = nodes.asked(3);
    nodes.core(3).add_segment(GROUP, stored(GROUP, 5, 12));
    nodes.give(3, rest, 20, vec![0; 100].into());
    let write = nodes.written(3);
    let ends: Vec<i64> = write.chunks.iter().map(|chunk| chunk.end_offset.0).collect();
    assert_eq!((write.from, &ends[..]), (Offset(12), &[15, 20][..]));
    nodes.write(3, &write, 20, true);
    assert_eq!(nodes.watermark(3, GROUP), Offset(20));
}

#[test]
fn given_many_groups_when_all_need_records_then_few_copy_at_a_time_and_all_come_to_it() {
    let groups = 5;
    let mut nodes = Nodes::left_behind(groups);
    assert_eq!(nodes.node(3).fills.len(), FILLS_MAX);
    assert_eq!(nodes.core(3).fills().count(), 5);
    // One that waits, and one that copies, are deleted.
    let copying: Vec<GroupId> = nodes
        .node(3)
        .fills
        .iter()
        .map(|step| match step {
            FillStep::Ask(ask) => ask.group,
            FillStep::Write(write) => write.group,
        })
        .collect();
    let waiting = (1..=groups).map(GroupId).find(|group| !copying.contains(group)).unwrap();
    nodes.core(3).delete_group(copying[0]);
    nodes.core(3).delete_group(waiting);
    nodes.settle();
    let late = stored(copying[0], 0, 20);
    nodes.core(3).fill_written(copying[0], FillId::default(), vec![late], true);
    nodes.settle();
    assert_eq!(nodes.node(3).gone, [late], "nobody needs it any more");
    let left: Vec<GroupId> = nodes.core(3).group_ids().collect();
    assert_eq!(left.len(), 3);
    let fills: Vec<FillStep> = std::mem::take(&mut nodes.node(3).fills);
    nodes.node(3).fills = fills
        .into_iter()
        .filter(|step| match step {
            FillStep::Ask(ask) => ask.group != copying[0],
            FillStep::Write(_) => true,
        })
        .collect();
    nodes.fill_up(1, 3);
    for group in left {
        assert_eq!(nodes.watermark(3, group), Offset(20));
    }
}

#[test]
fn given_answers_that_are_none_when_they_come_then_it_is_asked_again_after_a_pause_each_time_longer()
 {
    let mut nodes = Nodes::left_behind(1);
    let mut ask = nodes.asked(3);
    let backwards = FillChunk { end_offset: Offset(0), bytes: Bytes::from_static(b"x") };
    let empty = FillChunk { end_offset: Offset(20), bytes: Bytes::new() };
    let mut pauses = Vec::new();
    for answer in [
        FillAnswer::Failed,
        FillAnswer::Records(backwards),
        FillAnswer::Records(empty),
        FillAnswer::LogStart(Offset(0)),
    ] {
        nodes.core(3).fill_answered(GROUP, ask.fill, ask.from, answer);
        let mut ticks = 0;
        while nodes.node(3).fills.is_empty() {
            nodes.tick(1);
            ticks += 1;
            assert!(ticks < 100, "it is never asked again");
        }
        pauses.push(ticks);
        ask = nodes.asked(3);
        assert_eq!(ask.from, Offset(0));
    }
    assert!(pauses.windows(2).all(|pair| pair[0] < pair[1]), "{pauses:?}");
    nodes.answer(1, 3, ask);
    let write = nodes.written(3);
    nodes.write(3, &write, 20, true);
    assert_eq!(nodes.watermark(3, GROUP), Offset(20));
}

#[test]
fn given_a_leader_when_a_replica_copies_then_its_log_stays_behind_the_snapshot_until_that_is_installed()
 {
    let mut nodes = Nodes::left_behind(1);
    let ask = nodes.asked(3);
    let place = nodes.core(1).commit_index(GROUP).unwrap();
    nodes.produce(1, GROUP, 5);
    nodes.core(1).add_segment(GROUP, stored(GROUP, 20, 25));
    let first = nodes.core(1).first_index_needed(GROUP).unwrap();
    nodes.core(1).cut_log(GROUP, place.next());
    nodes.settle();
    assert_eq!(nodes.core(1).first_index_needed(GROUP), Some(first), "it is behind the snapshot");
    // The replica takes long, and is heard of.
    for _ in 0..30 {
        nodes.tick(50);
        nodes.core(1).fill_heard(GROUP, ReplicaId(3));
    }
    assert!(nodes.node(3).fills.is_empty(), "it is one snapshot all along");
    nodes.answer(1, 3, ask);
    let write = nodes.written(3);
    nodes.write(3, &write, 25, true);
    nodes.tick(25);
    assert_eq!(nodes.watermark(3, GROUP), Offset(25));
    nodes.core(1).cut_log(GROUP, place.next());
    nodes.settle();
    assert_eq!(nodes.core(1).first_index_needed(GROUP), Some(place.next().next()));
}

#[test]
fn given_a_snapshot_of_an_older_term_when_it_comes_then_it_is_not_kept() {
    let mut nodes = Nodes::left_behind(1);
    let ask = nodes.asked(3);
    let mut old = Message { from: 1, to: 3, term: 0, ..Message::default() };
    old.set_msg_type(MessageType::MsgSnapshot);
    nodes.core(3).step([PeerMessage { group: GROUP, message: old }]);
    nodes.settle();
    assert_eq!(nodes.core(3).fills().count(), 1, "the one before goes on");
    nodes.core(3).abort_all();
    assert_eq!(nodes.core(3).fills().count(), 0);
    nodes.answer(1, 3, ask);
    assert!(nodes.node(3).fills.is_empty(), "nobody waits for it any more");
}
