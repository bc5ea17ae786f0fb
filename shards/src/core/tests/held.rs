//! Acknowledgements that wait for more replicas than a quorum.

use super::trio::Trio;
use super::*;

fn answered(trio: &Trio) -> Vec<(u64, Result<i64, ProduceError>)> {
    trio.replies.iter().map(|(_, token, result)| (token.0, *result)).collect()
}

/// The third hangs, and a batch waits for it.
fn trio_that_waits() -> Trio {
    let mut trio = Trio::led();
    assert_eq!(trio.cores[0].check_in_sync(GROUP, 3), Ok(()));
    trio.cut(2);
    trio.produce(0, sequenced(0, 2), 1).unwrap();
    trio.settle();
    assert_eq!(answered(&trio), []);
    trio
}

#[test]
fn given_batches_that_wait_when_a_quorum_is_enough_from_now_on_then_they_are_acknowledged() {
    let mut trio = trio_that_waits();
    assert_eq!(trio.cores[0].check_in_sync(GROUP, 1), Ok(()));
    trio.settle();
    assert_eq!(answered(&trio), [(1, Ok(0))], "and not with the next batch only");
    assert_eq!(trio.produced(0, sequenced(2, 1), 2), 2);
}

#[test]
fn given_a_batch_that_waited_at_the_last_leader_when_it_comes_again_then_it_waits_at_the_next() {
    let mut trio = trio_that_waits();
    trio.replies.clear();
    trio.join(2);
    trio.lose_first();
    // As soon as the next leader takes batches, before it knows who is in sync.
    let is_taken = trio.passes_until(|trio| {
        trio.cores[1].check_in_sync(GROUP, 3) == Ok(())
            && trio.produce(1, sequenced(0, 2), 2).is_ok()
    });
    assert!(is_taken, "the second leads");
    trio.settle();
    assert_eq!(answered(&trio), [], "two of three have it, three are asked for");
    trio.join(0);
    for _ in 0..25 {
        trio.tick();
        trio.settle();
    }
    assert!(answered(&trio).contains(&(2, Ok(0))), "{:?}", trio.replies);
}

#[test]
fn given_a_replica_that_hangs_when_batches_go_on_then_no_more_wait_than_may() {
    let mut trio = trio_that_waits();
    let mut taken = 1;
    let refused = loop {
        match trio.produce(0, batch(1), 10 + taken) {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
        trio.settle();
        assert!(taken <= 4_096, "they would be without end");
    };
    assert_eq!((refused, taken), (ProduceError::Overloaded, 4_096));
    let bytes = batch(1).size();
    let for_leader = RequiredAcks::Leader;
    assert_eq!(trio.cores[0].propose_batch(GROUP, batch(1), for_leader, bytes, Token(9)), Ok(()));
    assert_eq!(trio.cores[0].check_in_sync(GROUP, 2), Ok(()));
    assert_eq!(trio.produced(0, batch(1), 5), 2 + 4_095 + 1, "there is room again");
}
