//! Which replicas go where, so that a node has none any more, or all have the same number.
//!
//! Owns the choice alone: a function of where replicas are. Who carries it out looks again before it goes on, so a plan
//! is never kept.
//!
//! - I1: a partition never has two replicas on one node, and never fewer than before unless that is asked for.
//! - I2: only nodes that are open, up and not cordoned, are given a replica.
//! - I3: a partition is in fewer racks afterwards only where no open node could have kept it in as many.

use std::collections::{BTreeMap, BTreeSet};

/// A partition of a topic.
pub(super) type At = (String, i32);

/// Where the replicas of all partitions are to be as things are, the preferred leader first; and who may get more.
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    pub(super) partitions: BTreeMap<At, Vec<i32>>,
    pub(super) open: BTreeSet<i32>,
    /// Where the nodes stand that say so.
    pub(super) racks: BTreeMap<i32, String>,
}

impl Layout {
    /// How many others of these nodes stand in the rack of `node`; where it is not known where one stands, it stands alone.
    pub(super) fn beside(&self, node: i32, replicas: &[i32]) -> usize {
        let Some(rack) = self.racks.get(&node) else { return 0 };
        let is_there = |other: &&i32| **other != node && self.racks.get(*other) == Some(rack);
        replicas.iter().filter(is_there).count()
    }

    /// How many racks these nodes stand in.
    fn racks_of(&self, replicas: &[i32]) -> usize {
        let racks = replicas.iter().map(|node| self.racks.get(node).ok_or(*node));
        racks.collect::<BTreeSet<_>>().len()
    }
}

/// Another place for a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) at: At,
    pub(super) from: Vec<i32>,
    pub(super) to: Vec<i32>,
}

/// What each node has.
#[derive(Debug, Default)]
pub(super) struct Loads {
    replicas: BTreeMap<i32, i64>,
    leaders: BTreeMap<i32, i64>,
}

impl Loads {
    pub(super) fn of(layout: &Layout) -> Loads {
        let mut loads = Loads::default();
        for node in &layout.open {
            loads.replicas.insert(*node, 0);
            loads.leaders.insert(*node, 0);
        }
        for replicas in layout.partitions.values() {
            loads.count(replicas, 1);
        }
        loads
    }

    pub(super) fn count(&mut self, replicas: &[i32], by: i64) {
        for node in replicas {
            *self.replicas.entry(*node).or_default() += by;
        }
        if let Some(first) = replicas.first() {
            *self.leaders.entry(*first).or_default() += by;
        }
    }

    pub(super) fn replicas_on(&self, node: i32) -> i64 {
        self.replicas.get(&node).copied().unwrap_or(0)
    }

    fn led_by(&self, node: i32) -> i64 {
        self.leaders.get(&node).copied().unwrap_or(0)
    }
}

/// How many replicas of each topic a node has.
fn by_topic(layout: &Layout) -> BTreeMap<(&str, i32), i64> {
    let mut counts = BTreeMap::new();
    for ((topic, _), replicas) in &layout.partitions {
        for node in replicas {
            *counts.entry((topic.as_str(), *node)).or_default() += 1;
        }
    }
    counts
}

/// Takes every replica off `node`, each to the rack with the fewest of its partition, and there to the node with the fewest of
/// all. Where there is no other node for one, it goes if there may be `fewer`.
///
/// # Errors
/// A partition that no node is left for.
pub(super) fn evacuate(layout: &Layout, node: i32, fewer: bool) -> Result<Vec<Move>, At> {
    let mut loads = Loads::of(layout);
    let mut moves = Vec::new();
    for (at, from) in &layout.partitions {
        let Some(place) = from.iter().position(|replica| *replica == node) else { continue };
        let others = layout.open.iter().filter(|other| **other != node && !from.contains(other));
        let is_first = place == 0;
        let left: Vec<i32> = from.iter().copied().filter(|replica| *replica != node).collect();
        let next = others.min_by_key(|other| {
            let led = if is_first { loads.led_by(**other) } else { 0 };
            (layout.beside(**other, &left), loads.replicas_on(**other), led, **other)
        });
        let mut to = from.clone();
        match next {
            Some(next) => to[place] = *next,
            None if fewer && from.len() > 1 => _ = to.remove(place),
            None => return Err(at.clone()),
        }
        if is_first {
            // Whoever is first anyhow decides who leads: so that is one who leads little.
            let open = (0..to.len()).filter(|place| layout.open.contains(&to[*place]));
            let first = open.min_by_key(|place| loads.led_by(to[*place]));
            to.swap(0, first.unwrap_or(0));
        }
        loads.count(from, -1);
        loads.count(&to, 1);
        moves.push(Move { at: at.clone(), from: from.clone(), to });
    }
    Ok(moves)
}

/// Gives all open nodes the same number of replicas, as far as the racks of each partition allow, with at most `moves_max` of
/// them moved, and then of partitions that they are to lead. Replicas on other nodes stay.
pub(super) fn spread(layout: &Layout, moves_max: usize) -> Vec<Move> {
    let mut new = layout.clone();
    for _ in 0..moves_max {
        let Some((at, from, to)) = next_move(&new) else { break };
        if let Some(replicas) = new.partitions.get_mut(&at) {
            replicas.iter_mut().filter(|node| **node == from).for_each(|node| *node = to);
        }
    }
    spread_leaders(&mut new);
    let changed = layout.partitions.iter().filter_map(|(at, from)| {
        let to = new.partitions.get(at).filter(|to| *to != from)?.clone();
        Some(Move { at: at.clone(), from: from.clone(), to })
    });
    changed.collect()
}

/// One replica from a node to one that has fewer, of the two that are the furthest apart and have a partition for it.
fn next_move(layout: &Layout) -> Option<(At, i32, i32)> {
    let loads = Loads::of(layout);
    let pairs =
        layout.open.iter().flat_map(|full| layout.open.iter().map(move |empty| (*full, *empty)));
    let apart = |(full, empty): &(i32, i32)| loads.replicas_on(*full) - loads.replicas_on(*empty);
    let mut pairs: Vec<(i32, i32)> = pairs.filter(|pair| apart(pair) > 1).collect();
    pairs.sort_by_key(|pair| (-apart(pair), *pair));
    let counts = by_topic(layout);
    pairs.into_iter().find_map(|(full, empty)| {
        let of_topic = |topic: &str, node| counts.get(&(topic, node)).copied().unwrap_or(0);
        let movable = layout.partitions.iter().filter(|(_, replicas)| {
            replicas.contains(&full)
                && !replicas.contains(&empty)
                && keeps_racks(layout, replicas, full, empty)
        });
        let (at, _) = movable.max_by_key(|((topic, _), replicas)| {
            let skew = of_topic(topic, full) - of_topic(topic, empty);
            // A follower's move is felt less than a leader's.
            (skew, replicas.first() != Some(&full))
        })?;
        Some((at.clone(), full, empty))
    })
}

/// Whether a partition stands in as many racks as before when `to` takes the place of `from` (I3).
fn keeps_racks(layout: &Layout, replicas: &[i32], from: i32, to: i32) -> bool {
    let moved: Vec<i32> =
        replicas.iter().map(|node| if *node == from { to } else { *node }).collect();
    layout.racks_of(&moved) >= layout.racks_of(replicas)
}

/// Puts other replicas first where a node is first in more partitions than others. No record moves for that.
fn spread_leaders(layout: &mut Layout) {
    let mut loads = Loads::of(layout);
    // Each turn makes the difference between two nodes smaller, so there are at most as many as partitions.
    for _ in 0..layout.partitions.len() {
        let mut turned = false;
        for replicas in layout.partitions.values_mut() {
            let Some(first) = replicas.first().copied() else { continue };
            let open = replicas.iter().enumerate().filter(|(_, node)| layout.open.contains(node));
            let Some((place, next)) = open.min_by_key(|(_, node)| loads.led_by(**node)) else {
                continue;
            };
            let next = *next;
            if loads.led_by(first) - loads.led_by(next) > 1 || !layout.open.contains(&first) {
                loads.count(replicas, -1);
                replicas.swap(0, place);
                loads.count(replicas, 1);
                turned |= first != next;
            }
        }
        if !turned {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(open: &[i32], partitions: &[(&str, i32, &[i32])]) -> Layout {
        let partition = |(topic, number, nodes): &(&str, i32, &[i32])| {
            (((*topic).to_owned(), *number), nodes.to_vec())
        };
        Layout {
            partitions: partitions.iter().map(partition).collect(),
            open: open.iter().copied().collect(),
            racks: BTreeMap::new(),
        }
    }

    fn with_racks(mut layout: Layout, racks: &[(i32, &str)]) -> Layout {
        layout.racks = racks.iter().map(|(node, rack)| (*node, (*rack).to_owned())).collect();
        layout
    }

    fn fewest_racks(layout: &Layout) -> usize {
        layout.partitions.values().map(|replicas| layout.racks_of(replicas)).min().unwrap()
    }

    fn after(layout: &Layout, moves: &[Move]) -> Layout {
        let mut after = layout.clone();
        for one in moves {
            assert_eq!(after.partitions.get(&one.at), Some(&one.from));
            after.partitions.insert(one.at.clone(), one.to.clone());
        }
        for (at, replicas) in &after.partitions {
            let nodes: BTreeSet<i32> = replicas.iter().copied().collect();
            assert_eq!(nodes.len(), replicas.len(), "{at:?}: {replicas:?}");
        }
        after
    }

    fn counts(layout: &Layout) -> (Vec<i64>, Vec<i64>) {
        let loads = Loads::of(layout);
        let of = |count: &dyn Fn(i32) -> i64| layout.open.iter().map(|node| count(*node)).collect();
        (of(&|node| loads.replicas_on(node)), of(&|node| loads.led_by(node)))
    }

    #[test]
    fn given_a_node_of_four_when_evacuated_then_the_others_share_what_it_had() {
        let three: Vec<(&str, i32, &[i32])> = vec![
            ("a", 0, &[1, 2, 3]),
            ("a", 1, &[2, 3, 4]),
            ("a", 2, &[3, 4, 1]),
            ("a", 3, &[4, 1, 2]),
        ];
        let before = layout(&[1, 2, 3], &three);
        let moves = evacuate(&before, 4, false).unwrap();
        assert_eq!(moves.len(), 3);
        let after = after(&before, &moves);
        assert!(after.partitions.values().all(|replicas| !replicas.contains(&4)));
        assert!(after.partitions.values().all(|replicas| replicas.len() == 3));
        assert_eq!(counts(&after).0, [4, 4, 4]);
        assert!(counts(&after).1.iter().all(|led| (1..=2).contains(led)), "{after:?}");
        assert!(evacuate(&after, 4, false).unwrap().is_empty(), "there is nothing left to do");
    }

    #[test]
    fn given_too_few_nodes_when_evacuated_then_it_is_refused_unless_fewer_replicas_are_fine() {
        let before = layout(&[1, 2], &[("a", 0, &[3, 1, 2]), ("b", 0, &[3])]);
        assert_eq!(evacuate(&before, 3, false), Err(("a".to_owned(), 0)));
        let moves = evacuate(&before, 3, true).unwrap();
        assert_eq!(moves[0].to, [1, 2]);
        assert_eq!(moves[1].to.len(), 1, "the only replica moves, and is never dropped");
        assert!(layout(&[], &[("b", 0, &[3])]).open.is_empty());
        assert!(evacuate(&layout(&[], &[("b", 0, &[3])]), 3, true).is_err());
    }

    #[test]
    fn given_a_new_node_when_spread_then_all_have_the_same_and_lead_the_same() {
        let mut partitions = Vec::new();
        for number in 0..12 {
            partitions.push(("a", number, &[1, 2][..]));
        }
        let before = layout(&[1, 2, 3], &partitions);
        let moves = spread(&before, 100);
        let after = after(&before, &moves);
        assert_eq!(counts(&after), (vec![8, 8, 8], vec![4, 4, 4]));
        assert!(spread(&after, 100).is_empty(), "what is even stays as it is");
    }

    #[test]
    fn given_a_limit_when_spread_then_no_more_replicas_than_that_are_moved() {
        let partitions: Vec<(&str, i32, &[i32])> = (0..20).map(|n| ("a", n, &[1][..])).collect();
        let before = layout(&[1, 2], &partitions);
        let moves = spread(&before, 3);
        assert_eq!(counts(&after(&before, &moves)).0, [17, 3]);
        assert!(spread(&before, 0).is_empty(), "with one replica there is no other leader");
    }

    #[test]
    fn given_a_cordoned_node_when_spread_then_it_gets_nothing_and_is_first_nowhere() {
        let before = layout(&[1, 2], &[("a", 0, &[3, 1]), ("a", 1, &[3, 1]), ("a", 2, &[1, 2])]);
        let after = after(&before, &spread(&before, 100));
        let on_three = after.partitions.values().filter(|replicas| replicas.contains(&3)).count();
        assert_eq!(on_three, 2, "what it has is moved by a removal only");
        assert!(after.partitions.values().all(|replicas| replicas[0] != 3));
    }

    const TWO_RACKS: [(i32, &str); 4] = [(1, "a"), (2, "a"), (3, "b"), (4, "b")];

    #[test]
    fn given_racks_when_a_node_is_evacuated_then_each_partition_stays_in_both_though_one_is_fuller()
    {
        let partitions: Vec<(&str, i32, &[i32])> =
            vec![("a", 0, &[1, 4]), ("a", 1, &[1, 4]), ("a", 2, &[4, 1]), ("a", 3, &[1, 3])];
        let before = with_racks(layout(&[1, 2, 3], &partitions), &TWO_RACKS);
        let moves = evacuate(&before, 4, false).unwrap();
        assert_eq!(moves.len(), 3);
        let after = after(&before, &moves);
        assert_eq!(
            fewest_racks(&after),
            2,
            "node 2 has nothing, and is in the rack of node 1: {after:?}"
        );
        let alone = with_racks(layout(&[1, 2], &partitions[..1]), &TWO_RACKS);
        assert_eq!(evacuate(&alone, 4, false).unwrap()[0].to, [1, 2], "there is no other rack");
    }

    #[test]
    fn given_racks_when_spread_then_no_partition_leaves_one_for_an_emptier_node() {
        let partitions: Vec<(&str, i32, &[i32])> = (0..12).map(|n| ("a", n, &[1, 3][..])).collect();
        let before = with_racks(layout(&[1, 2, 3, 4], &partitions), &TWO_RACKS);
        let after_all = after(&before, &spread(&before, 100));
        assert_eq!(counts(&after_all), (vec![6; 4], vec![3; 4]));
        assert_eq!(fewest_racks(&after_all), 2);
        // Nodes 2 and 3 could share what node 3 has, but only within one rack.
        let before = with_racks(layout(&[2, 3], &partitions), &TWO_RACKS);
        let moves = spread(&before, 100);
        assert_eq!(fewest_racks(&after(&before, &moves)), 2, "{moves:?}");
    }

    #[test]
    fn given_the_fullest_and_the_emptiest_bound_by_racks_when_spread_then_others_are_evened_out() {
        let node_for = |number| if number < 9 { &[1, 3][..] } else { &[1, 4] };
        let partitions: Vec<(&str, i32, &[i32])> =
            (0..12).map(|number| ("a", number, node_for(number))).collect();
        let before = with_racks(layout(&[1, 3, 4], &partitions), &TWO_RACKS);
        let after = after(&before, &spread(&before, 100));
        assert_eq!(counts(&after).0, [12, 6, 6], "node 1 is the only one of its rack");
        assert_eq!(fewest_racks(&after), 2);
    }
}
