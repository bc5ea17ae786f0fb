//! Leadership that is handed to a replica which is named.

use super::trio::Trio;
use super::*;
use crate::core::TransferRefused;

const SECOND: ReplicaId = ReplicaId(12);
const THIRD: ReplicaId = ReplicaId(13);

#[test]
fn given_a_replica_in_sync_when_it_is_handed_the_group_then_it_leads_and_has_all() {
    let mut trio = Trio::led();
    trio.produced(0, batch(1), 1);
    assert_eq!(trio.cores[0].heirs(GROUP).len(), 2);
    assert_eq!(trio.cores[0].transfer(GROUP, THIRD), Ok(()));
    trio.settle();
    assert!(trio.cores[2].leads(GROUP) && !trio.cores[0].leads(GROUP));
    assert!(trio.cores[0].heirs(GROUP).is_empty(), "who does not lead has nothing to give");
    let offset = trio.produced(2, batch(1), 2);
    assert_eq!(offset, 1, "what was acknowledged before is there");
    assert_eq!(trio.cores[2].transfer(GROUP, ReplicaId(11)), Ok(()));
    trio.settle();
    assert!(trio.cores[0].leads(GROUP), "and back");
}

#[test]
fn given_who_cannot_lead_when_it_is_to_be_handed_the_group_then_it_is_refused_and_the_leader_goes_on()
 {
    let mut trio = Trio::led();
    let transfer = |trio: &mut Trio, at: usize, to| trio.cores[at].transfer(GROUP, to);
    assert_eq!(transfer(&mut trio, 1, THIRD), Err(TransferRefused::NotLeader));
    assert_eq!(transfer(&mut trio, 0, ReplicaId(99)), Err(TransferRefused::NotAVoter));
    let unknown = trio.cores[0].transfer(GroupId(9), THIRD);
    assert_eq!(unknown, Err(TransferRefused::NotLeader));

    // The links say that the third one is gone; it is probed from then on.
    trio.cut(2);
    trio.tell_lost(0, 2);
    assert_eq!(transfer(&mut trio, 0, THIRD), Err(TransferRefused::NotInSync));
    assert_eq!(trio.cores[0].heirs(GROUP), [SECOND]);
    assert_eq!(trio.produced(0, batch(1), 1), 0);
    assert!(trio.cores[0].leads(GROUP));
}
