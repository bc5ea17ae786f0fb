//! What of the log is planned to become segments, and which of those that were written count.

use chronik_engine::ids::{FileSeq, RaftIndex};
use chronik_engine::log_index::FileRange;
use chronik_engine::segment::Segment;
use chronik_tiering::backlog::FilePlan;
use chronik_tiering::write::WritePart;

use super::nodes::{Nodes, member, stored};
use super::*;

/// The only replica of another partition on the same core.
const OTHER: GroupId = GroupId(9);

fn range(file: u64, indexes: (u64, u64), offsets: (i64, i64)) -> FileRange {
    FileRange {
        file: FileSeq(file),
        first: RaftIndex(indexes.0),
        last: RaftIndex(indexes.1),
        base_offset: Offset(offsets.0),
        end_offset: Offset(offsets.1),
        max_timestamp_ms: 1000,
        payload_bytes: 100,
    }
}

fn plan(
    nodes: &mut Nodes,
    ranges: &[(GroupId, FileRange)],
    first_in_log: Option<Offset>,
) -> FilePlan {
    nodes.core(1).plan_segments(ranges, Uuid::nil(), |_| 1 << 20, |_| first_in_log)
}

fn groups(plan: &FilePlan) -> Vec<(GroupId, RaftIndex)> {
    plan.parts.iter().map(|part| (part.group, part.last)).collect()
}

fn alone_too(nodes: &mut Nodes) {
    nodes.core(1).create_group(OTHER, member(OTHER, 21, &[21], &[]));
    nodes.settle();
}

#[test]
fn given_a_partition_without_a_quorum_when_planned_then_it_ends_there_and_others_do_not_wait() {
    let mut nodes = Nodes::voters(1);
    alone_too(&mut nodes);
    nodes.produce(1, GROUP, 5);
    nodes.tick(25);
    let committed = nodes.core(1).commit_index(GROUP).unwrap();
    nodes.node(2).is_up = false;
    nodes.node(3).is_up = false;
    nodes.produce(1, GROUP, 3);
    nodes.produce(1, OTHER, 4);
    assert_eq!(nodes.watermark(1, GROUP), Offset(5), "nobody confirms the second batch");
    let of_other = nodes.core(1).commit_index(OTHER).unwrap();
    let ranges = [
        (GROUP, range(1, (1, committed.0 + 1), (0, 8))),
        (OTHER, range(1, (1, of_other.0), (0, 4))),
    ];
    let first = plan(&mut nodes, &ranges, None);
    assert_eq!(groups(&first), [(GROUP, committed), (OTHER, of_other)]);
    assert_eq!(first.waiting, [GROUP]);
    // The same once that much is in segments, and a file with nothing that is committed.
    for part in first.parts {
        let end = if part.group == GROUP { 5 } else { 4 };
        assert!(nodes.core(1).add_written(&part, stored(part.group, 0, end).segment));
    }
    let again = plan(&mut nodes, &ranges, None);
    assert_eq!((groups(&again), again.waiting), (vec![], vec![GROUP]));
    let later = [(GROUP, range(2, (committed.0 + 1, committed.0 + 1), (5, 8)))];
    let later = plan(&mut nodes, &later, None);
    assert_eq!((groups(&later), later.waiting), (vec![], vec![GROUP]));
}

/// A plan of all that the log has from `first_in_log` on, up to 20.
fn planned(nodes: &mut Nodes, first_in_log: i64) -> WritePart {
    let last = nodes.core(1).commit_index(OTHER).unwrap();
    let ranges = [(OTHER, range(1, (last.0 - 1, last.0), (first_in_log, 20)))];
    let plan = plan(nodes, &ranges, Some(Offset(first_in_log)));
    assert_eq!(plan.waiting, []);
    plan.parts[0]
}

fn segment(base: i64, end: i64) -> Segment {
    stored(OTHER, base, end).segment
}

#[test]
fn given_a_segment_that_was_lost_when_the_next_is_planned_then_it_begins_where_the_log_does() {
    let mut nodes = Nodes::new(1);
    alone_too(&mut nodes);
    for _ in 0..4 {
        nodes.produce(1, OTHER, 5);
    }
    // All segments were lost, and the log begins with the third batch.
    let part = planned(&mut nodes, 10);
    assert_eq!((part.from, part.follows), (Offset(10), None));
    nodes.core(1).add_segment(OTHER, stored(OTHER, 0, 5));
    let part = planned(&mut nodes, 10);
    assert_eq!((part.from, part.follows), (Offset(10), Some(Offset(5))));
    // A gap is left by what was planned so, and by nothing else.
    nodes.core(1).add_segment(OTHER, stored(OTHER, 10, 15));
    assert!(!nodes.core(1).add_written(&part, segment(15, 20)), "what is before it is missing");
    assert_eq!(nodes.core(1).stored_to(OTHER), Some(Offset(5)));
    assert!(nodes.core(1).add_written(&part, segment(10, 15)));
    assert!(nodes.core(1).add_written(&part, segment(15, 20)));
    assert!(nodes.core(1).add_written(&part, segment(15, 20)), "it is there");
    let manifest = nodes.core(1).segments(OTHER).unwrap();
    let ranges: Vec<(i64, i64)> =
        manifest.iter().map(|s| (s.base_offset.0, s.end_offset.0)).collect();
    assert_eq!(ranges, [(0, 5), (10, 15), (15, 20)]);
    assert_eq!(nodes.core(1).covered_to(OTHER), Some(Offset(5)));
}

#[test]
fn given_a_log_that_begins_before_when_planned_then_it_goes_on_where_the_segments_end() {
    let mut nodes = Nodes::new(1);
    alone_too(&mut nodes);
    for _ in 0..4 {
        nodes.produce(1, OTHER, 5);
    }
    nodes.core(1).add_segment(OTHER, stored(OTHER, 0, 15));
    let part = planned(&mut nodes, 10);
    assert_eq!((part.from, part.follows), (Offset(15), Some(Offset(15))));
    // A leader's segment came first.
    nodes.core(1).add_segment(OTHER, stored(OTHER, 15, 18));
    assert!(!nodes.core(1).add_written(&part, segment(15, 20)));
}

#[test]
fn given_a_gap_that_the_log_can_close_when_started_then_segments_are_written_from_there_once_more()
{
    let lost = |first_in_log: i64, there: &[(i64, i64)]| {
        let mut nodes = Nodes::new(1);
        alone_too(&mut nodes);
        for _ in 0..4 {
            nodes.produce(1, OTHER, 5);
        }
        let found = there.iter().map(|(base, end)| segment(*base, *end)).collect();
        assert_eq!(nodes.core(1).restore_segments(OTHER, found), []);
        let from = nodes.core(1).take_segments_back(OTHER, Offset(first_in_log));
        nodes.settle();
        let gone = nodes.node(1).gone.iter().map(|gone| gone.segment.base_offset.0).collect();
        (from.map(|from| from.0), gone, nodes.core(1).stored_to(OTHER).unwrap().0)
    };
    let none: Vec<i64> = Vec::new();
    assert_eq!(lost(0, &[(0, 5), (5, 10)]), (None, none.clone(), 10));
    assert_eq!(lost(0, &[(0, 5), (10, 15), (15, 20)]), (Some(5), vec![10, 15], 5));
    assert_eq!(lost(7, &[(0, 5), (10, 15)]), (Some(5), vec![10], 5), "it has a part of it");
    assert_eq!(lost(10, &[(0, 5), (10, 15)]), (None, none.clone(), 15), "it has nothing of it");
    assert_eq!(lost(10, &[(5, 10), (15, 20)]), (Some(10), vec![15], 10), "of the second one");
    assert_eq!(lost(20, &[]), (None, none, 0));
}
