//! Checkpoints, taken one after the other.

use super::*;

#[test]
fn given_checkpoints_taken_one_by_one_when_the_core_goes_on_between_then_they_say_what_is_durable()
{
    let mut bench = Bench::with_partition();
    let other = GroupId(2);
    bench.core.create_group(other, alone(6));
    bench.produce(sequenced(0, 1), RequiredAcks::All).unwrap();
    bench.write_all();
    let groups = bench.core.groups_to_checkpoint();
    let expected = bench.core.checkpoints();
    let mut taken = Vec::new();
    for (at, group) in groups.into_iter().enumerate() {
        // Whatever is asked for meanwhile waits for the block after the roll.
        bench.produce(sequenced(1 + i32::try_from(at).unwrap(), 1), RequiredAcks::All).unwrap();
        bench.core.create_group(GroupId(10 + at as u64), alone(9));
        bench.core.delete_group(other);
        bench.core.tick(1);
        taken.extend(bench.core.checkpoint(group));
    }
    assert_eq!(taken, expected);
}
