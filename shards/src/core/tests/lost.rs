//! A group of two that goes on with one.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const OWN: ReplicaId = ReplicaId(5);
const OTHER: ReplicaId = ReplicaId(6);

fn of(voters: &[ReplicaId]) -> Bench {
    let mut bench = Bench::new();
    let meta = GroupMeta { replica: OWN, voters: voters.to_vec(), ..GroupMeta::default() };
    bench.core.create_group(GROUP, meta);
    bench.write_all();
    bench
}

/// Lets time pass; what was answered meanwhile.
fn pass(bench: &mut Bench) -> Vec<(Token, ProduceResult)> {
    let mut replies = Vec::new();
    for now_ms in 0..200 {
        bench.core.tick(now_ms);
        replies.extend(bench.core.take_effects().replies);
        bench.write_all();
        replies.extend(bench.core.take_effects().replies);
    }
    replies
}

#[test]
fn given_a_group_of_two_when_the_other_is_lost_then_this_one_leads_and_commits_until_it_is_not() {
    let mut bench = of(&[OWN, OTHER]);
    pass(&mut bench);
    assert!(!bench.core.leads(GROUP), "one of two is no quorum");
    let alone = bench.core.set_lost(&BTreeMap::from([(GROUP, BTreeSet::from([OTHER]))]));
    assert_eq!(alone, [GROUP]);
    let again = bench.core.set_lost(&BTreeMap::from([(GROUP, BTreeSet::from([OTHER]))]));
    assert!(again.is_empty(), "it is said once");
    pass(&mut bench);
    assert!(bench.core.leads(GROUP));
    let token = bench.produce(batch(1), RequiredAcks::All).unwrap();
    let replies = pass(&mut bench);
    assert!(replies.iter().any(|(of, reply)| *of == token && reply.is_ok()), "{replies:?}");
    assert_eq!(bench.core.in_sync(GROUP), Some(vec![OWN]), "I4");
    bench.core.set_lost(&BTreeMap::new());
    pass(&mut bench);
    assert!(!bench.core.leads(GROUP));
}

#[test]
fn given_a_group_of_three_when_one_is_lost_then_nobody_answers_for_it() {
    let mut bench = of(&[OWN, OTHER, ReplicaId(7)]);
    bench.core.set_lost(&BTreeMap::from([(GROUP, BTreeSet::from([OTHER]))]));
    pass(&mut bench);
    assert!(!bench.core.leads(GROUP), "I2");
}
