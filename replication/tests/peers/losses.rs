//! Links that are lost, and what becomes of what was to go over them.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chronik_engine::ids::{GroupId, NodeId, RaftIndex, ReplicaId, Term};
use chronik_replication::peers::TransferDrop;
use chronik_replication::wire::{Frame, FrameKind, PART_BYTES_MAX, Part, Transfer, Want};
use uuid::Uuid;

use crate::proxy::Proxy;
use crate::support::*;

/// A peer that is silent is noticed within half a second, and a little more where the machine is busy.
const DOWN_MAX: Duration = Duration::from_secs(1);

#[test]
fn given_a_link_when_one_side_ends_then_the_other_hears_it_at_once_and_comes_back() {
    on_a_core(|_| async {
        let (one, two) = two_linked(|_| {}).await;
        let here = one.seat(0).seen;
        let nodes = [(1, one.address), (2, two.address)];
        for times in 1..=2 {
            let ended_at = Instant::now();
            two.close().await;
            eventually("down", || here.downs(seat(2, 0)) == times).await;
            assert!(ended_at.elapsed() < DOWN_MAX, "after {:?}", ended_at.elapsed());
            let peers = one.seat(0).peers;
            assert!(!peers.is_up(seat(2, 0)) && peers.is_missing(NodeId(2)));
            two.open(1, &nodes, |_| {});
            eventually("up", || here.ups(seat(2, 0)) == times + 1).await;
        }
        one.seat(0).peers.send(seat(2, 0), numbered(7));
        let there = two.seat(0).seen;
        eventually("a message", || there.numbers(seat(1, 0)) == [7]).await;
    });
}

#[test]
fn given_a_link_when_both_sides_are_restarted_then_they_find_each_other() {
    on_a_core(|_| async {
        let (one, two) = two_linked(|_| {}).await;
        let nodes = [(1, one.address), (2, two.address)];
        one.close().await;
        two.close().await;
        two.open(1, &nodes, |_| {});
        one.open(1, &nodes, |_| {});
        linked(&one, &two, 1).await;
        two.seat(0).peers.send(seat(1, 0), numbered(3));
        let here = one.seat(0).seen;
        eventually("a message", || here.numbers(seat(2, 0)) == [3]).await;
    });
}

#[test]
fn given_a_node_that_never_comes_when_asked_then_it_is_missing_only_after_a_while() {
    on_a_core(|_| async {
        let (one, two) = (TestNode::start(1), TestNode::start(2));
        let begun_at = Instant::now();
        one.open(1, &[(1, one.address), (2, two.address)], |_| {});
        let peers = one.seat(0).peers;
        assert!(!peers.is_missing(NodeId(2)), "it may come in a moment");
        assert!(!peers.is_missing(NodeId(9)), "nobody has named it yet");
        eventually("missing", || peers.is_missing(NodeId(2))).await;
        assert!(begun_at.elapsed() > Duration::from_secs(1), "after {:?}", begun_at.elapsed());
    });
}

#[test]
fn given_a_half_open_connection_when_nothing_comes_through_then_both_sides_notice() {
    on_a_core(|_| async {
        let (one, two) = (TestNode::start(1), TestNode::start(2));
        let proxy = Proxy::start(two.address);
        let nodes = [(1, one.address), (2, proxy.address)];
        one.open(1, &nodes, |_| {});
        two.open(1, &nodes, |_| {});
        linked(&one, &two, 1).await;
        let (here, there) = (one.seat(0).seen, two.seat(0).seen);
        let stuck_at = Instant::now();
        proxy.get_stuck();
        eventually("down on both sides", || {
            here.downs(seat(2, 0)) == 1 && there.downs(seat(1, 0)) == 1
        })
        .await;
        let noticed_after = stuck_at.elapsed();
        assert!(noticed_after < DOWN_MAX, "after {noticed_after:?}");
        // A ping may have come just before it got stuck, the last sign of life.
        assert!(noticed_after > Duration::from_millis(300), "after {noticed_after:?}");
        proxy.recover();
        linked(&one, &two, 2).await;
    });
}

#[test]
fn given_an_idle_link_when_time_passes_then_it_stays() {
    on_a_core(|_| async {
        let (one, two) = two_linked(|config| {
            config.ping_interval = Duration::from_millis(20);
            config.lost_after = Duration::from_millis(200);
        })
        .await;
        let pinged = || one.seat(0).peers.stats()[0].frames_in > 40;
        eventually("many signs of life", pinged).await;
        assert_eq!(one.seat(0).seen.downs(seat(2, 0)) + two.seat(0).seen.downs(seat(1, 0)), 0);
    });
}

#[test]
fn given_a_core_that_was_busy_for_long_when_it_looks_again_then_its_peers_are_not_lost() {
    on_a_core(|_| async {
        let (one, two) = (TestNode::start(1), TestNode::start(2));
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let by_hand = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let playing = std::thread::spawn(move || {
            let mut peer = ByHand::from(listener.accept().unwrap().0);
            peer.answer();
            while !stopped.load(Ordering::SeqCst) {
                peer.send(&Frame::new(FrameKind::Ping, Vec::new()));
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        one.open(1, &[(2, by_hand)], |config| config.secret = None);
        let here = one.seat(0).seen;
        eventually("up", || here.ups(seat(2, 0)) == 1).await;
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(700));
            for _ in 0..100 {
                chronik_ring::sleep(Duration::from_millis(1)).await;
            }
        }
        assert_eq!(here.downs(seat(2, 0)), 0);
        stop.store(true, Ordering::SeqCst);
        finished(playing).await;
        drop(two);
    });
}

#[test]
fn given_a_peer_that_stops_reading_when_messages_go_on_then_they_are_dropped_and_others_are_served()
{
    const QUEUE_BYTES_MAX: usize = 4 << 20;
    on_a_core(|_| async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let by_hand = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let playing = std::thread::spawn(move || {
            let mut peer = ByHand::from(listener.accept().unwrap().0);
            peer.answer();
            while !stopped.load(Ordering::SeqCst) {
                peer.send(&Frame::new(FrameKind::Ping, Vec::new()));
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let (one, three) = (TestNode::start(1), TestNode::start(3));
        let nodes = [(1, one.address), (2, by_hand), (3, three.address)];
        for node in [&one, &three] {
            node.open(1, &nodes, |config| {
                config.secret = None;
                config.queue_bytes_max = QUEUE_BYTES_MAX;
                config.stall_after = Duration::from_secs(2);
            });
        }
        let (here, there) = (one.seat(0).seen, three.seat(0).seen);
        eventually("both up", || one.seat(0).peers.up_seats() == [seat(2, 0), seat(3, 0)]).await;
        let peers = one.seat(0).peers;
        let payload = Bytes::from(vec![1; 64 << 10]);
        let mut number = 0;
        eventually("a message that is dropped", || {
            for _ in 0..16 {
                number += 1;
                peers.send(seat(2, 0), append(number, payload.clone()));
            }
            peers.send(seat(3, 0), numbered(number));
            assert!(peers.queue_bytes(seat(2, 0)) <= QUEUE_BYTES_MAX);
            !here.dropped.borrow().is_empty()
        })
        .await;
        assert_eq!(here.dropped.borrow()[0], (seat(2, 0), GroupId(1), ReplicaId(2)));
        assert!(number * (64 << 10) > QUEUE_BYTES_MAX as u64, "after {number} messages");
        eventually("what goes to the other", || there.numbers(seat(1, 0)).last() == Some(&number))
            .await;
        assert!(there.numbers(seat(1, 0)).is_sorted());
        // It sends signs of life and takes nothing: that is no link either.
        eventually("down", || here.downs(seat(2, 0)) == 1).await;
        assert_eq!(here.downs(seat(3, 0)), 0);
        stop.store(true, Ordering::SeqCst);
        finished(playing).await;
    });
}

#[test]
fn given_no_link_when_messages_are_sent_then_each_replica_is_told_once_from_a_task() {
    on_a_core(|_| async {
        let one = TestNode::start(1);
        one.open(1, &[(2, "127.0.0.1:9".parse().unwrap())], |_| {});
        let TestSeat { peers, seen } = one.seat(0);
        for _ in 0..1000 {
            peers.send(seat(2, 0), numbered(7));
            peers.send(seat(2, 0), numbered(8));
        }
        assert!(seen.dropped.borrow().is_empty(), "never from within a call");
        eventually("told", || !seen.dropped.borrow().is_empty()).await;
        let told = seen.dropped.borrow().clone();
        let expected = [0, 1].map(|group| (seat(2, 0), GroupId(group), ReplicaId(2)));
        assert_eq!(told, expected);
    });
}

#[test]
fn given_a_link_when_its_node_is_taken_away_then_it_ends_and_does_not_come_back() {
    on_a_core(|_| async {
        let (one, two) = two_linked(|_| {}).await;
        let (here, there) = (one.seat(0).seen, two.seat(0).seen);
        two.seat(0).peers.set_nodes(Vec::new());
        eventually("down", || here.downs(seat(2, 0)) == 1 && there.downs(seat(1, 0)) == 1).await;
        let hellos = two.port.hellos.borrow().len();
        eventually("attempts", || two.port.hellos.borrow().len() >= hellos + 2).await;
        assert_eq!((here.ups(seat(2, 0)), there.ups(seat(1, 0))), (1, 1));
        two.seat(0).peers.set_nodes(peer_nodes(&[(1, one.address)]));
        linked(&one, &two, 2).await;
        one.seat(0).peers.set_nodes(Vec::new());
        eventually("down again", || there.downs(seat(1, 0)) == 2).await;
        assert!(one.seat(0).peers.stats().is_empty());
    });
}

#[test]
fn given_a_link_when_the_same_seat_connects_again_then_the_older_one_ends() {
    on_a_core(|log| async move {
        let two = TestNode::start(2);
        two.open(1, &[(1, "127.0.0.1:9".parse().unwrap())], |config| {
            config.secret = None;
            config.lost_after = PATIENCE;
        });
        let address = two.address;
        let open = move |node_uuid| {
            let mut peer = ByHand::connect(address);
            let hello = chronik_replication::wire::Hello { node_uuid, ..hello(1, 2) };
            peer.open_as(&hello).unwrap();
            peer
        };
        let first = Uuid::from_u128(31);
        let mut older = beside(move || open(first)).await;
        let seen = two.seat(0).seen;
        eventually("up", || seen.ups(seat(1, 0)) == 1).await;
        let _newer = beside(move || open(Uuid::from_u128(32))).await;
        eventually("up again", || seen.ups(seat(1, 0)) == 2).await;
        let changes = [Change::Up(seat(1, 0)), Change::Down(seat(1, 0)), Change::Up(seat(1, 0))];
        assert_eq!(*seen.changes.borrow(), changes);
        assert!(beside(move || older.is_closed()).await);
        assert_eq!(log.count("another data directory"), 1);
        assert_eq!(two.seat(0).peers.up_seats(), [seat(1, 0)]);
    });
}

#[test]
fn given_a_large_snapshot_when_its_link_is_lost_then_it_goes_on_where_it_stopped() {
    const STATE_BYTES: usize = 32 << 20;
    on_a_core(|_| async {
        let (one, two) = (TestNode::start(1), TestNode::start(2));
        let proxy = Proxy::start(two.address);
        let nodes = [(1, one.address), (2, proxy.address)];
        one.open(1, &nodes, |_| {});
        two.open(1, &nodes, |_| {});
        linked(&one, &two, 1).await;
        let (here, there) = (one.seat(0).seen, two.seat(0).seen);
        *here.sticks.borrow_mut() = Some((STATE_BYTES * 3 / 4 / PART_BYTES_MAX, proxy.switch()));
        let (peers, snapshot) = (one.seat(0).peers, snapshot(STATE_BYTES));
        peers.send(seat(2, 0), snapshot.clone());
        eventually("down", || here.downs(seat(2, 0)) == 1 && there.downs(seat(1, 0)) == 1).await;
        assert_eq!(*here.dropped.borrow(), [(seat(2, 0), GroupId(1), ReplicaId(2))]);
        assert!(there.messages.borrow().is_empty());
        proxy.recover();
        linked(&one, &two, 2).await;
        peers.send(seat(2, 0), snapshot.clone());
        eventually("the snapshot", || !there.messages.borrow().is_empty()).await;
        assert_eq!(*there.messages.borrow(), [(seat(1, 0), snapshot)]);
        let bytes_out = peers.stats()[0].bytes_out;
        let once = STATE_BYTES as u64;
        assert!((once..once * 9 / 8).contains(&bytes_out), "{bytes_out} bytes");
        eventually("the count", || peers.stats()[0].messages_out == 1).await;
    });
}

#[test]
fn given_a_peer_that_sends_parts_of_what_it_never_offered_when_they_come_then_they_are_counted() {
    on_a_core(|_| async {
        let two = TestNode::start(2);
        two.open(1, &[(1, "127.0.0.1:9".parse().unwrap())], |config| config.secret = None);
        let address = two.address;
        let transfer = Transfer {
            group: GroupId(1),
            to: ReplicaId(2),
            index: RaftIndex(3),
            term: Term(1),
            message_bytes: 1 << 20,
            message_crc: 4,
        };
        let playing = beside(move || {
            let mut peer = ByHand::connect(address);
            peer.open_as(&hello(1, 2)).unwrap();
            let bytes = Bytes::from_static(b"whatever");
            peer.send(&Part::frame(&transfer, 0, &[bytes]).unwrap());
            loop {
                let (kind, body) = peer.receive().expect("an answer");
                if kind == FrameKind::Want {
                    return (peer, Want::decode(&body).unwrap());
                }
            }
        });
        let (_peer, want) = playing.await;
        assert_eq!(want, Want { transfer, offset: 0, is_given_up: true });
        let stats = two.seat(0).peers.stats();
        for (reason, count) in TransferDrop::ALL.into_iter().zip(stats[0].transfers_dropped) {
            assert_eq!(count, u64::from(reason == TransferDrop::Foreign), "{reason:?}");
        }
        assert!(two.seat(0).peers.is_up(seat(1, 0)), "the link goes on");
    });
}
