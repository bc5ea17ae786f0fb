//! What is copied in the place of records that cannot be read, and what of it counts.

use chronik_engine::segment::Segment;

use super::nodes::{Nodes, member, stored};
use super::*;

/// A partition of three with thirty records, the first twenty of them in segments of five on the first node.
fn with_segments() -> Nodes {
    let mut nodes = Nodes::voters(1);
    for _ in 0..6 {
        nodes.produce(1, GROUP, 5);
    }
    nodes.settle();
    for at in 0..4 {
        nodes.core(1).add_segment(GROUP, stored(GROUP, at * 5, at * 5 + 5));
    }
    nodes
}

fn segments(nodes: &mut Nodes) -> Vec<Segment> {
    nodes.core(1).segments(GROUP).unwrap().iter().copied().collect()
}

fn plan_with(nodes: &mut Nodes, what: Unreadable, is_compacted: bool) -> RepairStep {
    nodes.core(1).plan_repair(GROUP, what, is_compacted, Some(Offset(20)))
}

fn plan(nodes: &mut Nodes, what: Unreadable) -> RepairPlan {
    match plan_with(nodes, what, false) {
        RepairStep::Copy(plan) => plan,
        other => panic!("{other:?}"),
    }
}

/// Loses the segments that begin at these offsets.
fn lose(nodes: &mut Nodes, lost: &[i64]) {
    for segment in segments(nodes) {
        if lost.contains(&segment.base_offset.0) {
            assert!(nodes.core(1).put_repaired(GROUP, &[segment], &[]));
        }
    }
}

fn copied(plan: &RepairPlan, base: i64, end: i64) -> NamedSegment {
    let mut named = stored(GROUP, base, end);
    named.segment.generation = plan.generation;
    named
}

#[test]
fn given_a_damaged_segment_when_planned_then_it_alone_is_copied_and_gives_way_when_that_is_there() {
    let mut nodes = with_segments();
    let before = segments(&mut nodes);
    let plan = plan(&mut nodes, Unreadable::Stored(Offset(7)));
    assert_eq!((plan.base_offset, plan.from, plan.up_to), (Offset(5), Offset(5), Offset(10)));
    assert_eq!((&plan.old[..], plan.generation), (&before[1..2], before[1].generation + 1));
    assert_eq!((plan.replica, &plan.others[..]), (ReplicaId(1), &[ReplicaId(2), ReplicaId(3)][..]));
    let new = [copied(&plan, 5, 8), copied(&plan, 8, 10)];
    assert!(nodes.core(1).put_repaired(GROUP, &plan.old, &new));
    nodes.settle();
    assert_eq!(nodes.node(1).gone, [stored(GROUP, 5, 10)]);
    let expected = [before[0], new[0].segment, new[1].segment, before[2], before[3]];
    assert_eq!(segments(&mut nodes), expected);
    // The same once more: what it stands for has gone already.
    assert!(!nodes.core(1).put_repaired(GROUP, &plan.old, &[copied(&plan, 5, 10)]));
    nodes.settle();
    assert_eq!(nodes.node(1).gone[1..], [copied(&plan, 5, 10)]);
}

#[test]
fn given_lost_segments_when_planned_then_all_of_the_gap_is_copied_up_to_what_is_there() {
    for (lost, at, expected) in [
        (&[5, 10][..], 12, (5, 15)),
        (&[0][..], 3, (0, 5)),
        (&[15][..], 17, (15, 20)), // the log goes on there
        (&[0, 5, 10, 15][..], 0, (0, 20)),
    ] {
        let mut nodes = with_segments();
        lose(&mut nodes, lost);
        let plan = plan(&mut nodes, Unreadable::Stored(Offset(at)));
        assert_eq!((plan.from.0, plan.up_to.0), expected, "{lost:?}");
        assert_eq!(plan.old, [], "{lost:?}");
        assert!(nodes.core(1).put_repaired(GROUP, &[], &[copied(&plan, expected.0, expected.1)]));
        assert_eq!(nodes.core(1).covered_to(GROUP), Some(Offset(20)));
    }
}

#[test]
fn given_several_gaps_when_one_is_done_with_then_the_next_one_is_told() {
    let mut nodes = with_segments();
    let first_in_log = Some(Offset(20));
    assert_eq!(nodes.core(1).missing(GROUP, first_in_log, None), None);
    lose(&mut nodes, &[0, 10]);
    let mut told = Vec::new();
    let mut what = nodes.core(1).missing(GROUP, first_in_log, None);
    while let Some(Unreadable::Stored(at)) = what {
        told.push(at.0);
        if at.0 == 0 {
            let plan = plan(&mut nodes, Unreadable::Stored(at));
            assert!(nodes.core(1).put_repaired(GROUP, &[], &[copied(&plan, 0, 5)]));
        }
        what = nodes.core(1).missing(GROUP, first_in_log, what);
    }
    assert_eq!(told, [0, 10], "each once, mended or not");
    let logged = Some(Unreadable::Logged(Offset(30)));
    let left = Some(Unreadable::Stored(Offset(10)));
    assert_eq!(nodes.core(1).missing(GROUP, first_in_log, logged), left);
    let all_gone = nodes.core(1).missing(GROUP, None, left);
    assert_eq!(all_gone, Some(Unreadable::Stored(Offset(20))), "nothing is in the log");
    assert_eq!(nodes.core(1).missing(GroupId(77), first_in_log, None), None);
}

#[test]
fn given_damage_in_the_log_when_planned_then_what_it_held_is_copied_behind_the_segments() {
    let mut nodes = with_segments();
    let plan = plan(&mut nodes, Unreadable::Logged(Offset(28)));
    assert_eq!((plan.from, plan.up_to, plan.old.len()), (Offset(20), Offset(28), 0));
    assert!(nodes.core(1).put_repaired(GROUP, &[], &[copied(&plan, 20, 28)]));
    assert_eq!(nodes.core(1).stored_to(GROUP), Some(Offset(28)));
    let again = plan_with(&mut nodes, Unreadable::Logged(Offset(28)), false);
    assert_eq!(again, RepairStep::None, "it is in segments now");
    // Nobody has confirmed what is beyond, or there is nothing.
    let beyond = self::plan(&mut nodes, Unreadable::Logged(Offset(40)));
    assert_eq!(beyond.up_to, Offset(30));
}

#[test]
fn given_a_compacted_partition_when_planned_then_all_is_copied_up_to_what_was_compacted() {
    let mut nodes = with_segments();
    let [_, second, third, _] = segments(&mut nodes)[..] else { panic!("there are four") };
    let compacted = Segment { generation: 1, is_compacted: true, ..third };
    let named = NamedSegment { segment: compacted, ..stored(GROUP, 10, 15) };
    nodes.core(1).replace_segments(GROUP, named);
    let plan = plan(&mut nodes, Unreadable::Stored(second.base_offset));
    assert_eq!((plan.from, plan.up_to, plan.old.len()), (Offset(0), Offset(15), 3));
    assert_eq!(plan.generation, 2);
    // The topic is to be compacted, and nothing of it has been yet.
    let mut nodes = with_segments();
    let RepairStep::Copy(plan) = plan_with(&mut nodes, Unreadable::Stored(Offset(7)), true) else {
        panic!("there are others");
    };
    assert_eq!((plan.from, plan.up_to, plan.old.len()), (Offset(0), Offset(10), 2));
}

#[test]
fn given_nobody_who_has_it_when_planned_then_there_is_nothing_to_do() {
    let mut nodes = with_segments();
    let deleted =
        nodes.core(1).plan_repair(GroupId(77), Unreadable::Stored(Offset(0)), false, None);
    assert_eq!(deleted, RepairStep::None);
    nodes.core(1).create_group(GroupId(9), member(GroupId(9), 21, &[21], &[]));
    nodes.settle();
    nodes.produce(1, GroupId(9), 5);
    let alone = nodes.core(1).plan_repair(GroupId(9), Unreadable::Logged(Offset(5)), false, None);
    assert_eq!(alone, RepairStep::None);
    // What lies before the log start is of no interest.
    nodes.core(1).propose_log_start(GROUP, Offset(8), None).unwrap();
    nodes.settle();
    let plan = plan(&mut nodes, Unreadable::Stored(Offset(6)));
    assert_eq!((plan.base_offset, plan.from, plan.up_to), (Offset(5), Offset(8), Offset(10)));
}
