//! Which replicas of partitions go, or where new ones come, so that each partition has the same number of them.
//!
//! - I1: a replica that stays is where it was, and replicas stay in their order: who leads goes on leading, unless it is the one
//!   that has to go. Nothing is copied where there are to be fewer.
//! - I2: of too many replicas those go first whose nodes are not open, and then the last ones.
//! - I3: only open nodes are given a replica.

use std::collections::BTreeMap;

use super::plan::{At, Layout, Loads, Move};

/// Gives the partitions that `is_meant` names `factor` replicas each.
///
/// # Errors
/// A partition for which there are too few open nodes.
pub(super) fn with_factor(
    layout: &Layout,
    factor: usize,
    is_meant: impl Fn(&At) -> bool,
) -> Result<Vec<Move>, At> {
    let mut loads = Loads::of(layout);
    let mut moves = Vec::new();
    let meant: BTreeMap<&At, &Vec<i32>> =
        layout.partitions.iter().filter(|(at, _)| is_meant(at)).collect();
    for (at, from) in meant {
        let mut to = from.clone();
        // Stable: in the order in which they are to lead.
        to.sort_by_key(|node| !layout.open.contains(node));
        to.truncate(factor);
        to.sort_by_key(|node| from.iter().position(|other| other == node));
        while to.len() < factor {
            let others = layout.open.iter().filter(|node| !to.contains(node));
            let next = others
                .min_by_key(|node| (layout.beside(**node, &to), loads.replicas_on(**node), **node));
            to.push(*next.ok_or_else(|| at.clone())?);
        }
        if to != *from {
            loads.count(from, -1);
            loads.count(&to, 1);
            moves.push(Move { at: at.clone(), from: from.clone(), to });
        }
    }
    Ok(moves)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(open: &[i32], partitions: &[&[i32]]) -> Layout {
        let at = |number| ("t".to_owned(), number);
        Layout {
            partitions: (0..).map(at).zip(partitions.iter().map(|nodes| nodes.to_vec())).collect(),
            open: open.iter().copied().collect(),
            racks: BTreeMap::new(),
        }
    }

    fn planned(layout: &Layout, factor: usize) -> Vec<Vec<i32>> {
        let moves = with_factor(layout, factor, |_| true).unwrap();
        moves.into_iter().map(|one| one.to).collect()
    }

    #[test]
    fn given_too_many_replicas_when_there_are_to_be_fewer_then_the_leaders_stay_and_closed_nodes_go()
     {
        let all: [&[i32]; 4] = [&[1, 2, 3], &[2, 3, 1], &[3, 1, 2], &[2]];
        assert_eq!(
            planned(&layout(&[1, 2, 3], &all), 2),
            [vec![1, 2], vec![2, 3], vec![3, 1], vec![2, 1]]
        );
        assert_eq!(planned(&layout(&[1, 2, 3], &all), 1), [vec![1], vec![2], vec![3]]);
        let drained = layout(&[1], &all[..3]);
        assert_eq!(planned(&drained, 1), [vec![1], vec![1], vec![1]]);
        assert_eq!(planned(&drained, 2), [vec![1, 2], vec![2, 1], vec![3, 1]]);
        assert!(planned(&drained, 3).is_empty());
        assert_eq!(planned(&layout(&[], &all), 1).len(), 3, "one stays, whatever it is on");
    }

    #[test]
    fn given_too_few_replicas_when_there_are_to_be_more_then_empty_nodes_and_other_racks_get_them()
    {
        let mut before = layout(&[1, 2, 3, 4], &[&[1], &[1], &[1]]);
        assert_eq!(planned(&before, 2), [vec![1, 2], vec![1, 3], vec![1, 4]]);
        before.racks =
            [(1, "a"), (2, "a"), (3, "b"), (4, "b")].map(|(n, r)| (n, r.to_owned())).into();
        assert_eq!(planned(&before, 2), [vec![1, 3], vec![1, 4], vec![1, 3]]);
        let two = layout(&[1, 2], &[&[1], &[1]]);
        assert_eq!(with_factor(&two, 3, |_| true), Err(("t".to_owned(), 0)));
        assert_eq!(
            with_factor(&two, 2, |at| at.1 == 1).unwrap().len(),
            1,
            "the other is not meant"
        );
    }
}
