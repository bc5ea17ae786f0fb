//! What goes over links that work.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use chronik_engine::ids::{GroupId, NodeId, RaftIndex, ReplicaId, Term};
use chronik_replication::peers::{Accepted, CallError, PeerNode, Peers, PeersConfig};
use chronik_replication::wire::{CallRefused, LeaderNotice, ReceivedMark};
use chronik_ring::Notifier;
use glommio::{LocalExecutorBuilder, Placement};
use uuid::Uuid;

use crate::support::*;

#[test]
fn given_two_seats_when_messages_are_sent_both_ways_then_they_arrive_in_order() {
    on_a_core(|_| async {
        let (one, two) = two_linked(|_| {}).await;
        for number in 1..=5000 {
            one.seat(0).peers.send(seat(2, 0), numbered(number));
            two.seat(0).peers.send(seat(1, 0), numbered(number + 10_000));
        }
        let (here, there) = (one.seat(0).seen, two.seat(0).seen);
        eventually("all messages", || {
            here.messages.borrow().len() == 5000 && there.messages.borrow().len() == 5000
        })
        .await;
        assert_eq!(there.numbers(seat(1, 0)), (1..=5000).collect::<Vec<u64>>());
        assert_eq!(here.numbers(seat(2, 0)), (10_001..=15_000).collect::<Vec<u64>>());
        let stats = one.seat(0).peers.stats();
        assert_eq!((stats[0].messages_out, stats[0].messages_in), (5000, 5000));
        assert!(stats[0].frames_out < 200, "messages travel together: {stats:?}");
        assert_eq!((stats[0].messages_dropped, stats[0].queue_bytes, stats[0].connects), (0, 0, 1));
    });
}

#[test]
fn given_three_nodes_of_two_shards_when_they_start_then_every_pair_of_seats_is_linked() {
    on_a_core(|_| async {
        let nodes = [1, 2, 3].map(TestNode::start);
        let addresses: Vec<_> = nodes.iter().map(|node| (node.id, node.address)).collect();
        for node in &nodes {
            node.open(2, &addresses, |_| {});
        }
        for node in &nodes {
            for shard in 0..2 {
                let peers = node.seat(shard).peers;
                let others = [1, 2, 3].into_iter().filter(|id| *id != node.id);
                let expected: Vec<_> = others.flat_map(|id| [seat(id, 0), seat(id, 1)]).collect();
                eventually("all links", || peers.up_seats() == expected).await;
                for to in expected {
                    assert!(peers.is_up(to));
                    let number = u64::from(node.id) * 10 + u64::from(shard) + 1;
                    peers.send(to, numbered(number));
                }
            }
        }
        for (at, shard) in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)] {
            let seen = nodes[at].seat(shard).seen;
            eventually("four messages", || seen.messages.borrow().len() == 4).await;
            for (from, message) in seen.messages.borrow().iter() {
                let number = u64::from(from.node.0) * 10 + u64::from(from.shard.0) + 1;
                assert_eq!(message.message.commit, number);
            }
        }
    });
}

#[test]
fn given_64_mib_when_sent_through_a_link_then_they_arrive_whole_and_in_order() {
    const MESSAGES: u64 = 256;
    const PAYLOAD: usize = 256 << 10;
    on_a_core(|_| async {
        let (one, two) = two_linked(|_| {}).await;
        let payload = |number: u64| {
            let fill = u8::try_from(number % 251).unwrap();
            // Of every size, so that headers lie everywhere in what is received.
            Bytes::from(vec![fill; PAYLOAD + usize::try_from(number).unwrap() * 7])
        };
        let peers = one.seat(0).peers;
        for number in 1..=MESSAGES {
            eventually("room", || peers.queue_bytes(seat(2, 0)) < 8 << 20).await;
            peers.send(seat(2, 0), append(number, payload(number)));
        }
        let there = two.seat(0).seen;
        let all = usize::try_from(MESSAGES).unwrap();
        eventually("all messages", || there.messages.borrow().len() == all).await;
        for (expected, (_, message)) in (1..).zip(there.messages.borrow().iter()) {
            assert_eq!(message.message.index, expected);
            assert!(message.message.entries[0].data == payload(expected), "payload {expected}");
        }
        assert_eq!((one.seat(0).seen.downs(seat(2, 0)), there.downs(seat(1, 0))), (0, 0));
        let frames = peers.stats()[0].frames_out;
        assert!(frames < 150, "{frames} frames for 64 MiB of about 1 MiB each");
    });
}

#[test]
fn given_a_message_larger_than_the_queue_when_sent_then_it_is_sent_alone() {
    on_a_core(|_| async {
        let (one, two) = two_linked(|config| config.queue_bytes_max = 1 << 20).await;
        let large = Bytes::from(vec![3; 40 << 20]);
        one.seat(0).peers.send(seat(2, 0), append(1, large.clone()));
        let there = two.seat(0).seen;
        eventually("the message", || there.messages.borrow().len() == 1).await;
        assert!(there.messages.borrow()[0].1.message.entries[0].data == large);
    });
}

#[test]
fn given_notices_when_told_then_they_arrive() {
    on_a_core(|_| async {
        let (one, two) = two_linked(|_| {}).await;
        let notice = |group| LeaderNotice {
            group: GroupId(group),
            term: Term(3),
            replica: ReplicaId(4),
            node: NodeId(1),
        };
        let notices: Vec<_> = (0..20_000).map(notice).collect();
        one.seat(0).peers.notify(seat(2, 0), notices.clone());
        let there = two.seat(0).seen;
        eventually("all notices", || there.notices.borrow().len() == notices.len()).await;
        assert_eq!(*there.notices.borrow(), notices);
    });
}

#[test]
fn given_marks_of_what_was_received_when_told_then_they_arrive() {
    on_a_core(|_| async {
        let (one, two) = two_linked(|_| {}).await;
        let mark = |group| ReceivedMark {
            group: GroupId(group),
            from: ReplicaId(4),
            to: ReplicaId(5),
            term: Term(3),
            index: RaftIndex(group),
        };
        let marks: Vec<_> = (0..20_000).map(mark).collect();
        one.seat(0).peers.tell_received(seat(2, 0), &marks);
        let there = two.seat(0).seen;
        eventually("all marks", || there.received.borrow().len() == marks.len()).await;
        let told = marks.into_iter().map(|mark| (seat(1, 0), mark)).collect::<Vec<_>>();
        assert_eq!(*there.received.borrow(), told);
    });
}

#[test]
fn given_calls_when_answered_refused_or_dropped_then_the_caller_hears_it() {
    const TIMEOUT: Duration = Duration::from_secs(10);
    on_a_core(|_| async {
        let (one, two) = two_linked(|_| {}).await;
        let body = Bytes::from_static(b"what is asked");
        let here = one.seat(0).peers;
        let ask = |kind| here.call(seat(2, 0), kind, body.clone(), TIMEOUT);
        assert_eq!(ask(CALL_ECHO).await, Ok(body.clone()));
        let refused = CallRefused::NotLeader { leader: Some(NodeId(9)) };
        assert_eq!(ask(CALL_REFUSE).await, Err(CallError::Refused(refused)));
        assert_eq!(ask(CALL_DROP).await, Err(CallError::Refused(CallRefused::Overloaded)));
        // The other way, over the same connection.
        let back = two.seat(0).peers.call(seat(1, 0), CALL_ECHO, body.clone(), TIMEOUT).await;
        assert_eq!(back, Ok(body.clone()));
        let nobody = here.call(seat(3, 0), CALL_ECHO, body.clone(), TIMEOUT).await;
        assert_eq!(nobody, Err(CallError::NotConnected));
    });
}

#[test]
fn given_a_call_without_answer_when_time_is_over_or_the_link_is_lost_then_the_caller_hears_it() {
    on_a_core(|_| async {
        let (one, two) = two_linked(|_| {}).await;
        let (here, there) = (one.seat(0).peers, two.seat(0).seen);
        let ask = |timeout| here.call(seat(2, 0), CALL_KEEP, Bytes::new(), timeout);
        assert_eq!(ask(Duration::from_millis(20)).await, Err(CallError::Timeout));
        let waiting = chronik_ring::spawn(ask(PATIENCE));
        eventually("both calls there", || there.kept.borrow().len() == 2).await;
        two.close().await;
        assert_eq!(waiting.await, Err(CallError::Lost));
        // An answer for a link that is gone goes nowhere.
        for kept in there.kept.take() {
            kept.answer(Bytes::new());
        }
    });
}

#[test]
fn given_an_address_by_name_when_dialled_then_each_of_its_addresses_is_tried() {
    on_a_core(|_| async {
        let (one, two) = (TestNode::start(1), TestNode::start(2));
        one.open(1, &[], |_| {});
        two.open(1, &[(1, one.address)], |_| {});
        // Where the name also stands for ::1, nobody listens there.
        let raft_addr = format!("localhost:{}", two.address.port());
        let by_name = PeerNode { node: NodeId(2), raft_addr };
        one.seat(0).peers.set_nodes(vec![by_name]);
        linked(&one, &two, 1).await;
    });
}

/// A shard on another core than its node's Raft port.
struct OtherCore {
    moving: mpsc::Sender<Accepted>,
    notifier: Notifier,
    may_end: Arc<AtomicBool>,
    ended: JoinHandle<Vec<u64>>,
}

impl OtherCore {
    /// Node 2's shard 1, until it has heard so many messages and answered each.
    fn start(messages: usize) -> OtherCore {
        let notifier = Notifier::new().unwrap();
        let (moving, moved) = mpsc::channel::<Accepted>();
        let waking = notifier.clone();
        let may_end = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&may_end);
        let ended = std::thread::spawn(move || {
            let executor =
                LocalExecutorBuilder::new(Placement::Unbound).io_memory(1 << 20).make().unwrap();
            executor.run(async move {
                chronik_ring::run(waking, serve_other_core(moved, messages, ending)).await.unwrap()
            })
        });
        OtherCore { moving, notifier, may_end, ended }
    }
}

async fn serve_other_core(
    moved: mpsc::Receiver<Accepted>,
    messages: usize,
    may_end: Arc<AtomicBool>,
) -> Vec<u64> {
    let config = PeersConfig::new(seat(2, 1), Uuid::from_u128(1002), CLUSTER, 2);
    let seen = Rc::new(Recorder::default());
    let peers = Peers::new(config, Rc::clone(&seen));
    peers.set_nodes(peer_nodes(&[(1, "127.0.0.1:9".parse().unwrap())]));
    let accepted = loop {
        match moved.try_recv() {
            Ok(accepted) => break accepted,
            Err(_) => chronik_ring::notified().await,
        }
    };
    peers.adopt(accepted);
    eventually("all messages", || seen.messages.borrow().len() == messages).await;
    let numbers = seen.numbers(seat(1, 0));
    for number in &numbers {
        peers.send(seat(1, 0), numbered(*number));
    }
    eventually("the end", || may_end.load(Ordering::SeqCst)).await;
    numbers
}

#[test]
fn given_a_shard_on_another_core_when_its_node_is_dialled_then_the_connection_moves_there() {
    const MESSAGES: usize = 2000;
    on_a_core(|_| async {
        let (one, two) = (TestNode::start(1), TestNode::start(2));
        let other = OtherCore::start(MESSAGES);
        let (moving, notifier) = (other.moving, other.notifier);
        *two.port.elsewhere.borrow_mut() = Some(Box::new(move |accepted| {
            // Once it has ended, nobody takes what comes.
            moving.send(accepted).ok();
            notifier.notify();
        }));
        let nodes = [(1, one.address), (2, two.address)];
        one.open(1, &nodes, |config| config.secret = None);
        two.open(1, &nodes, |config| {
            config.secret = None;
            config.shards = 2;
        });
        let TestSeat { peers, seen } = one.seat(0);
        eventually("up", || seen.ups(seat(2, 1)) == 1).await;
        for number in 1..=MESSAGES as u64 {
            peers.send(seat(2, 1), numbered(number));
        }
        let numbers: Vec<u64> = (1..=MESSAGES as u64).collect();
        eventually("all answers", || seen.numbers(seat(2, 1)).len() == MESSAGES).await;
        assert_eq!(seen.numbers(seat(2, 1)), numbers);
        assert_eq!(seen.downs(seat(2, 1)), 0);
        other.may_end.store(true, Ordering::SeqCst);
        assert_eq!(finished(other.ended).await, numbers);
        eventually("down with its core", || seen.downs(seat(2, 1)) >= 1).await;
        assert_eq!(seen.downs(seat(2, 0)), 0);
    });
}
