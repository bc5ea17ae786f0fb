//! Connections that come to no link: wrong cluster, wrong secret, wrong node, or no peer at all.

use std::io::Write;
use std::net::TcpListener;
use std::time::Duration;

use bytes::Bytes;
use chronik_engine::ids::ShardId;
use chronik_replication::peers::PeersConfig;
use chronik_replication::wire::{Frame, FrameKind, Hello, Refused, RefusedReason, Versions};
use uuid::Uuid;

use crate::support::*;

const BACKOFF_MAX: Duration = Duration::from_millis(200);

/// Node 1 dials node 2, which are told different things: nothing comes of it, both say why, and not too often.
fn refuse_each_other(
    adapt_two: impl Fn(&mut PeersConfig) + Send + 'static,
    meant: u32,
    reasons: [&'static str; 2],
) {
    on_a_core(move |log| async move {
        let (one, two) = (TestNode::start(1), TestNode::start(2));
        let quick = |config: &mut PeersConfig| {
            config.backoff_min = Duration::from_millis(1);
            config.backoff_max = BACKOFF_MAX;
        };
        one.open(1, &[(meant, two.address)], quick);
        two.open(1, &[(1, one.address)], |config| {
            quick(config);
            adapt_two(config);
        });
        eventually("three attempts", || two.port.hellos.borrow().len() >= 3).await;
        let hellos = two.port.hellos.borrow().clone();
        let pauses = hellos[2].saturating_duration_since(hellos[0]);
        assert!(pauses >= BACKOFF_MAX, "two pauses of the longest kind: {pauses:?}");
        for reason in reasons {
            eventually(reason, || log.count(reason) >= 1).await;
        }
        // One line per second of each side.
        assert!(log.count("WARN") <= 6, "{} lines", log.count("WARN"));
        for node in [&one, &two] {
            assert!(node.seat(0).seen.changes.borrow().is_empty());
        }
    });
}

#[test]
fn given_another_cluster_when_dialled_then_it_refuses() {
    refuse_each_other(
        |config| config.cluster = Uuid::from_u128(1),
        2,
        ["the peer refuses: this node belongs to another cluster", "belongs to another cluster"],
    );
}

#[test]
fn given_another_secret_when_dialled_then_the_dialler_refuses() {
    refuse_each_other(
        |config| config.secret = Some(std::rc::Rc::from(&b"another secret"[..])),
        2,
        ["no link: the peer does not know the cluster's secret", "check that the secrets"],
    );
}

#[test]
fn given_no_secret_when_dialled_then_the_dialler_refuses() {
    refuse_each_other(
        |config| config.secret = None,
        2,
        ["no link: the peer does not know the cluster's secret", "check that the secrets"],
    );
}

#[test]
fn given_the_address_of_another_node_when_dialled_then_it_refuses() {
    refuse_each_other(|_| {}, 3, ["check its address and node id", "the peer means another node"]);
}

#[test]
fn given_a_copy_of_a_data_directory_when_dialled_then_it_refuses() {
    refuse_each_other(
        |config| config.node_uuid = Uuid::from_u128(1001),
        2,
        ["check its address and node id", "a copy of this node's data directory"],
    );
}

#[test]
fn given_a_data_directory_that_counts_no_more_when_either_side_dials_then_it_is_told_and_gets_no_link()
 {
    for retired in [1, 2] {
        on_a_core(move |_| async move {
            let (one, two) = (TestNode::start(1), TestNode::start(2));
            let nodes = [(1, one.address), (2, two.address)];
            one.open(1, &nodes, |_| {});
            two.open(1, &nodes, |_| {});
            let (knows, told) = if retired == 1 { (&two, &one) } else { (&one, &two) };
            let (knows, by) = (knows.seat(0).seen, seat(knows.id, 0));
            knows.retired.borrow_mut().push(Uuid::from_u128(u128::from(told.id) + 1000));
            let told = told.seat(0).seen;
            eventually("it is told", || told.retired_by.borrow().contains(&by)).await;
            assert!(knows.changes.borrow().is_empty(), "the one in its place keeps its link");
        });
    }
}

/// A node that knows another one, which knows nobody.
fn open_unknown(unknown: &TestNode, other: &TestNode) {
    other.open(1, &[], |_| {});
    unknown.open(1, &[(other.id, other.address)], |_| {});
}

#[test]
fn given_a_data_directory_that_counts_no_more_of_a_node_that_nobody_names_when_it_dials_or_knocks_then_it_is_told()
 {
    for retired in [1, 2] {
        on_a_core(move |_| async move {
            let (one, two) = (TestNode::start(1), TestNode::start(2));
            let (told, knows) = if retired == 1 { (&one, &two) } else { (&two, &one) };
            open_unknown(told, knows);
            let (seen, by) = (knows.seat(0).seen, seat(knows.id, 0));
            seen.retired.borrow_mut().push(Uuid::from_u128(u128::from(told.id) + 1000));
            // The node of the lower id dials by itself.
            told.seat(0).peers.knock(0);
            let told = told.seat(0).seen;
            eventually("it is told", || told.retired_by.borrow().contains(&by)).await;
            assert!(seen.changes.borrow().is_empty() && told.changes.borrow().is_empty());
        });
    }
}

#[test]
fn given_a_node_that_counts_when_it_knocks_then_it_hears_nothing_and_is_linked_by_who_is_to_do_it()
{
    on_a_core(|_| async {
        let (one, two) = (TestNode::start(1), TestNode::start(2));
        open_unknown(&two, &one);
        two.seat(0).peers.knock(0);
        let is_refused = || {
            let refusals = one.seat(0).peers.refusals();
            refusals.iter().any(|one| one.reason == RefusedReason::WrongNode && !one.by_peer)
        };
        eventually("it is refused", is_refused).await;
        one.seat(0).peers.set_nodes(peer_nodes(&[(2, two.address)]));
        linked(&one, &two, 1).await;
        two.seat(0).peers.knock(1);
        let echo = Bytes::from_static(b"echo");
        let answer = two.seat(0).peers.call(seat(1, 0), CALL_ECHO, echo.clone(), PATIENCE);
        assert_eq!(answer.await, Ok(echo), "whatever was sent before is there");
        assert!(two.seat(0).seen.retired_by.borrow().is_empty());
        assert_eq!(one.port.hellos.borrow().len(), 1, "who has a link does not knock");
    });
}

#[test]
fn given_a_peer_that_has_proven_nothing_when_it_says_that_a_data_directory_counts_no_more_then_it_does()
 {
    on_a_core(|log| async move {
        let liar = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TestNode::start(1);
        one.open(1, &[(2, liar.local_addr().unwrap())], |_| {});
        let lie = Refused { reason: RefusedReason::Retired }.to_frame().parts().concat();
        let _link = beside(move || {
            let (mut connection, _) = liar.accept().unwrap();
            connection.write_all(&lie).unwrap();
            connection
        })
        .await;
        eventually("it is heard", || log.count("does not count any more") > 0).await;
        assert!(one.seat(0).seen.retired_by.borrow().is_empty());
    });
}

/// A node 2 that knows node 1 and 3, and takes its time.
fn patient_node() -> TestNode {
    let two = TestNode::start(2);
    let nowhere = "127.0.0.1:9".parse().unwrap();
    two.open(1, &[(1, nowhere), (3, nowhere)], |config| {
        config.secret = None;
        config.lost_after = PATIENCE;
        config.connect_timeout = Duration::from_millis(300);
    });
    two
}

#[test]
fn given_hellos_that_are_not_for_this_seat_when_they_come_then_each_is_told_why() {
    on_a_core(|_| async {
        let two = patient_node();
        let good = hello(1, 2);
        let cases = [
            (
                Hello { versions: Versions { oldest: 3, newest: 4 }, ..good },
                RefusedReason::NewerVersion,
            ),
            (Hello { cluster: Uuid::from_u128(9), ..good }, RefusedReason::WrongCluster),
            (hello(1, 4), RefusedReason::WrongNode),
            (Hello { to: ShardId(5), ..good }, RefusedReason::UnknownShard),
            // The node of the higher id does not open links, and nobody knows node 0.
            (hello(3, 2), RefusedReason::WrongNode),
            (hello(0, 2), RefusedReason::WrongNode),
            // Its welcome says that it has one shard.
            (Hello { from: ShardId(1), ..good }, RefusedReason::BadProof),
        ];
        for (hello, reason) in cases {
            let address = two.address;
            let refused = beside(move || ByHand::connect(address).open_as(&hello)).await;
            assert_eq!(refused, Err(reason), "{hello:?}");
        }
        assert!(two.seat(0).seen.changes.borrow().is_empty());
        let refusals = two.seat(0).peers.refusals();
        let counted = |reason| {
            let of = refusals.iter().find(|refusals| refusals.reason == reason);
            of.map(|refusals| (refusals.by_peer, refusals.count))
        };
        assert_eq!(counted(RefusedReason::NewerVersion), Some((false, 1)));
        assert_eq!(counted(RefusedReason::BadProof), Some((false, 1)));
        let address = two.address;
        let _link = beside(move || {
            let mut peer = ByHand::connect(address);
            peer.open_as(&good).map(|()| peer).map_err(drop)
        })
        .await
        .unwrap();
        eventually("up", || two.seat(0).seen.ups(seat(1, 0)) == 1).await;
    });
}

#[test]
fn given_a_proof_without_a_secret_when_it_comes_then_it_is_refused() {
    on_a_core(|log| async move {
        let two = TestNode::start(2);
        two.open(1, &[(1, "127.0.0.1:9".parse().unwrap())], |_| {});
        let address = two.address;
        let refused = beside(move || ByHand::connect(address).open_as(&hello(1, 2))).await;
        assert_eq!(refused, Err(RefusedReason::BadProof));
        assert!(two.seat(0).seen.changes.borrow().is_empty());
        eventually("the reason", || log.count("does not know the cluster's secret") == 1).await;
    });
}

#[test]
fn given_garbage_when_it_comes_first_or_later_then_the_connection_is_closed() {
    on_a_core(|log| async move {
        let two = patient_node();
        let address = two.address;
        for garbage in ["GET / HTTP/1.1\r\nHost: a node of the cluster\r\n\r\n", "CHRF"] {
            let closed = beside(move || {
                let mut peer = ByHand::connect(address);
                peer.0.write_all(garbage.as_bytes()).unwrap();
                peer.is_closed()
            });
            assert!(closed.await, "{garbage}");
        }
        assert_eq!(log.count("not a frame"), 1);
        // Of the right form, and out of place.
        let closed = beside(move || {
            let mut peer = ByHand::connect(address);
            peer.send(&Frame::new(FrameKind::Raft, vec![Bytes::from_static(b"x")]));
            peer.is_closed()
        });
        assert!(closed.await);
        let closed = beside(move || {
            let mut peer = ByHand::connect(address);
            peer.open_as(&hello(1, 2)).unwrap();
            peer.send(&Frame::new(FrameKind::Raft, vec![Bytes::from_static(b"no message")]));
            peer.is_closed()
        });
        assert!(closed.await);
        let seen = two.seat(0).seen;
        eventually("down", || seen.downs(seat(1, 0)) == 1).await;
        assert_eq!(log.count("what no peer sends"), 1 + log.count("not a frame"));
    });
}

#[test]
fn given_peers_that_say_nothing_when_time_is_over_then_they_are_closed_and_make_room() {
    on_a_core(|_| async {
        let two = patient_node();
        let address = two.address;
        // As many as there is room for; one more is refused at once.
        let silent: Vec<_> = (0..4).map(|_| ByHand::connect(address)).collect();
        let refused = beside(move || ByHand::connect(address).open_as(&hello(1, 2))).await;
        assert_eq!(refused, Err(RefusedReason::Busy));
        for mut peer in silent {
            assert!(beside(move || peer.is_closed()).await);
        }
        // One that stops after its hello.
        let mut peer = ByHand::connect(address);
        peer.send(&hello(1, 2).to_frame());
        assert!(beside(move || peer.is_closed()).await);
        assert!(two.seat(0).seen.changes.borrow().is_empty());
        let refused = beside(move || ByHand::connect(address).open_as(&hello(1, 2))).await;
        assert_eq!(refused, Ok(()));
    });
}

#[test]
fn given_a_node_without_cluster_when_it_asks_then_it_is_answered_as_often_as_it_asks() {
    on_a_core(|_| async {
        let two = patient_node();
        let address = two.address;
        let answers = beside(move || {
            let mut peer = ByHand::connect(address);
            let mut ask = |body| {
                peer.send(&Frame::new(FrameKind::Discovery, vec![Bytes::from_static(body)]));
                peer.receive()
            };
            [ask(b"abc"), ask(b""), ask(b"nothing")]
        })
        .await;
        let reply = |body| Some((FrameKind::DiscoveryReply, Bytes::from_static(body)));
        assert_eq!(answers, [reply(b"cba"), reply(b""), None]);
    });
}
