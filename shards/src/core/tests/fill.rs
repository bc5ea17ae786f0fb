//! Replicas that are behind the cut of their leader's log, or blank: they copy records, and take the snapshot then.

use chronik_replication::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Message, MessageType};

use super::nodes::{Nodes, member, stored};
use super::*;

/// What is larger than what a fill gathers before it writes.
const LARGE_BYTES: usize = 33 << 20;

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

fn second_learns() -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    let mut single = ConfChangeSingle { node_id: 2, ..ConfChangeSingle::default() };
    single.change_type = ConfChangeType::AddLearnerNode;
    change.set_changes(vec![single].into());
    change
}

#[test]
fn given_a_leader_that_spoke_to_a_replica_too_early_when_it_is_made_then_it_answers_without_a_tick()
{
    let mut nodes = Nodes::new(2);
    nodes.core(1).create_group(GROUP, member(GROUP, 1, &[1], &[]));
    nodes.settle();
    nodes.produce(1, GROUP, 5);
    nodes.core(1).propose_members(GROUP, &second_learns()).unwrap();
    nodes.settle();
    nodes.core(2).create_group(GROUP, member(GROUP, 2, &[1], &[2]));
    nodes.settle();
    assert_eq!(nodes.asked(2).up_to, Offset(5));
}

#[test]
fn given_a_leader_that_spoke_to_another_replica_when_one_is_made_then_it_says_nothing() {
    let mut nodes = Nodes::new(2);
    nodes.core(1).create_group(GROUP, member(GROUP, 1, &[1], &[]));
    nodes.settle();
    nodes.core(1).propose_members(GROUP, &second_learns()).unwrap();
    nodes.settle();
    nodes.core(2).create_group(GROUP, member(GROUP, 9, &[1], &[9]));
    assert!(nodes.core(2).take_effects().messages.is_empty());
    assert_eq!(nodes.core(2).partition(GROUP).unwrap().high_watermark, Offset(0));
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
    nodes.core(1).propose_members(GROUP, &second_learns()).unwrap();
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
    let taken = (Offset(17), Offset(20));
    assert_eq!((view.log_start_offset, view.high_watermark), taken, "nothing before is here");
    assert_eq!(nodes.core(3).gaps(GROUP, Offset(20)), []);
    nodes.restart(3);
    let view = nodes.core(3).partition(GROUP).unwrap();
    assert_eq!((view.log_start_offset, view.high_watermark), taken, "nor is it after a start");
    nodes.tick(25);
    nodes.check_same(GROUP);
}

#[test]
fn given_a_leader_whose_log_starts_behind_its_snapshot_when_a_replica_fills_then_it_takes_it_without_records()
 {
    let mut nodes = Nodes::left_behind(1);
    let ask = nodes.asked(3);
    let start = FillAnswer::LogStart(Offset(23));
    nodes.core(3).fill_answered(GROUP, ask.fill, ask.from, start);
    nodes.settle();
    let view = nodes.core(3).partition(GROUP).unwrap();
    assert_eq!((view.log_start_offset, view.high_watermark), (Offset(20), Offset(20)));
    assert_eq!(nodes.core(3).segments(GROUP).unwrap().len(), 0);
    assert_eq!(nodes.core(3).fills().count(), 0);
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
    // The replica takes long, and gets further.
    for from in (0..30).map(Offset) {
        nodes.tick(50);
        nodes.core(1).fill_heard(GROUP, ReplicaId(3), from);
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
fn given_a_replica_that_copies_and_gets_nowhere_when_time_passes_then_its_leaders_log_goes_on() {
    let mut nodes = Nodes::left_behind(1);
    let ask = nodes.asked(3);
    let place = nodes.core(1).commit_index(GROUP).unwrap();
    nodes.produce(1, GROUP, 5);
    nodes.core(1).add_segment(GROUP, stored(GROUP, 20, 25));
    // It asks for the same again and again.
    for _ in 0..20 {
        nodes.tick(50);
        nodes.core(1).fill_heard(GROUP, ReplicaId(3), ask.from);
    }
    let ends: Vec<Offset> = nodes.core(3).fills().map(|(_, _, end)| end).collect();
    assert_eq!(ends, [Offset(25)], "it got another snapshot");
    nodes.core(1).cut_log(GROUP, place.next());
    nodes.settle();
    assert_eq!(nodes.core(1).first_index_needed(GROUP), Some(place.next().next()));
    nodes.answer(1, 3, ask);
    nodes.fill_up(1, 3);
    assert_eq!(nodes.watermark(3, GROUP), Offset(25));
    nodes.check_same(GROUP);
}

#[test]
fn given_a_leader_with_a_full_disk_when_a_replica_copies_then_its_log_is_cut_and_the_replica_comes_to_it()
 {
    let mut nodes = Nodes::left_behind(1);
    let ask = nodes.asked(3);
    nodes.produce(1, GROUP, 5);
    nodes.store_and_cut(&[1, 2], GROUP);
    nodes.answer(1, 3, ask);
    let write = nodes.written(3);
    nodes.write(3, &write, 20, true);
    assert_eq!(nodes.watermark(3, GROUP), Offset(20), "as of the first snapshot");
    for _ in 0..3 {
        nodes.tick(25);
        nodes.fill_up(1, 3);
    }
    assert_eq!(nodes.watermark(3, GROUP), Offset(25));
    nodes.check_same(GROUP);
}

#[test]
fn given_more_snapshots_than_there_is_room_for_when_they_come_then_one_is_kept_and_all_come_to_it()
{
    let groups = 4;
    let mut nodes = Nodes::voters(groups);
    nodes.core(3).fills.parked_bytes_max = 1;
    nodes.leave_behind(groups);
    assert_eq!(nodes.core(3).fills().count(), 1);
    for _ in 0..groups {
        nodes.fill_up(1, 3);
        // The others are sent again.
        nodes.tick(650);
    }
    nodes.fill_up(1, 3);
    let sum = |core: &ShardCore, of: fn(SnapshotFigures) -> u64| -> u64 {
        core.snapshot_figures().map(|(_, _, figures)| of(figures)).sum()
    };
    let (arrived, lost) =
        (sum(nodes.core(1), |f| f.ends.arrived), sum(nodes.core(1), |f| f.ends.lost));
    let (taken, dropped) = (sum(nodes.core(3), |f| f.installed), sum(nodes.core(3), |f| f.dropped));
    assert_eq!((arrived, taken), (groups, groups));
    assert!(lost >= groups - 1 && dropped >= lost, "{lost} {dropped}");
    for group in (1..=groups).map(GroupId) {
        assert_eq!(nodes.watermark(3, group), Offset(20));
        nodes.check_same(group);
    }
}

#[test]
fn given_a_snapshot_on_its_way_to_the_disk_when_the_group_is_deleted_then_checkpoints_name_it_with_that()
 {
    let mut nodes = Nodes::left_behind(1);
    let ask = nodes.asked(3);
    nodes.answer(1, 3, ask);
    let write = nodes.written(3);
    let core = nodes.core(3);
    core.fill_written(GROUP, write.fill, vec![stored(GROUP, write.from.0, 20)], true);
    let block = core.take_block(BLOCK_BYTES).unwrap();
    core.delete_group(GROUP);
    core.block_persisted(block);
    // The log begins another file before it has the deletion, and that is lost.
    let checkpoint = core.checkpoint(GROUP).unwrap();
    assert_eq!(checkpoint.applied_end_offset, Offset(20));
    let again = ShardCore::new(config(), vec![recover(checkpoint, &[])], 0).unwrap();
    assert_eq!(again.partition(GROUP).unwrap().high_watermark, Offset(20));
    nodes.settle();
    assert_eq!(nodes.core(3).groups_to_checkpoint(), []);
    assert_eq!(nodes.core(3).snapshot_figures().count(), 0, "nothing is left of it");
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
