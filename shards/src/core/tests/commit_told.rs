//! When followers learn what is committed.

use super::nodes::Nodes;
use super::*;

const PARTITION: GroupId = GroupId(1);

#[test]
fn given_records_that_come_singly_when_committed_then_followers_learn_it_with_the_next_or_when_told()
 {
    let mut nodes = Nodes::voters(1);
    nodes.propose(1, PARTITION, 1);
    nodes.deliver();
    assert_eq!(nodes.watermark(1, PARTITION), Offset(1));
    assert_eq!(nodes.watermark(2, PARTITION), Offset(0), "nothing was sent since");
    nodes.propose(1, PARTITION, 1);
    nodes.deliver();
    assert_eq!(nodes.watermark(2, PARTITION), Offset(1), "the next one says it");
    assert!(nodes.core(1).has_commits_to_tell());
    nodes.core(1).tell_commits();
    nodes.deliver();
    for node in 1..=3 {
        assert_eq!(nodes.watermark(node, PARTITION), Offset(2), "{node}");
        assert!(!nodes.core(node).has_commits_to_tell(), "{node}");
    }
}

#[test]
fn given_a_record_that_nothing_follows_when_a_tick_has_passed_then_followers_know_that_it_is_committed()
 {
    let mut nodes = Nodes::voters(1);
    nodes.propose(1, PARTITION, 1);
    nodes.deliver();
    nodes.core(1).tick(0);
    nodes.deliver();
    for node in 1..=3 {
        assert_eq!(nodes.watermark(node, PARTITION), Offset(1), "{node}");
    }
}
