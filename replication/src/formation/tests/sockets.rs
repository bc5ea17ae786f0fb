//! Formation over real sockets and files: nodes as threads, on free ports of the loopback interface.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use chronik_engine::ids::NodeId;
use uuid::Uuid;

use crate::formation::decree::{Ballot, Participant};
use crate::formation::durable::Durable;
use crate::formation::forming::{Forming, Timing};
use crate::formation::net::{Ask, Event, ask_peer, now};
use crate::formation::peer::PeerProblem;
use crate::formation::protocol::{Envelope, MESSAGE_VERSION, Reply, Request};
use crate::formation::report::Reporter;
use crate::formation::store::FormationStore;
use crate::formation::{
    Answer, ClusterUuid, FormConfig, FormError, FormedAnswerer, FormedCluster, Impossible,
    ListedNode, Membership, NodeList, NodeUuid, Seal, form,
};
use crate::wire::{FRAME_HEADER_BYTES, FRAME_VERSION, Frame, FrameHeader, FrameKind};

/// What the settings promise, with room for a machine that does other things, too.
const SOON: Duration = Duration::from_secs(3);

type Outcome = Result<FormedCluster, FormError>;

/// A node that runs.
struct Running {
    cancel: Arc<AtomicBool>,
    thread: JoinHandle<Outcome>,
}

impl Running {
    fn outcome(self) -> Outcome {
        self.thread.join().unwrap()
    }

    fn formed(self) -> FormedCluster {
        self.outcome().unwrap()
    }

    fn cancel(self) {
        self.cancel.store(true, Ordering::Release);
        assert!(matches!(self.outcome(), Err(FormError::Cancelled)));
    }
}

/// Data directories and ports of nodes.
struct Nodes {
    directory: tempfile::TempDir,
    listed: Vec<ListedNode>,
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn random() -> u64 {
    Uuid::new_v4().as_u64_pair().0
}

impl Nodes {
    fn new(count: u32) -> Nodes {
        // All at once, so that no port is given out twice.
        let sockets: Vec<TcpListener> =
            (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let listed = (1..).zip(&sockets).map(|(id, socket)| ListedNode {
            id: NodeId(id),
            raft_addr: socket.local_addr().unwrap().to_string(),
        });
        Nodes { directory: tempfile::tempdir().unwrap(), listed: listed.collect() }
    }

    fn address(&self, id: u32) -> SocketAddr {
        let listed = self.listed.iter().find(|node| node.id == NodeId(id)).unwrap();
        listed.raft_addr.parse().unwrap()
    }

    fn data_dir(&self, id: u32) -> PathBuf {
        let path = self.directory.path().join(id.to_string());
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn config(&self, id: u32) -> FormConfig {
        FormConfig {
            own: NodeId(id),
            node_uuid: NodeUuid(Uuid::new_v4().as_u128()),
            nodes: self.listed.clone(),
            listen: self.address(id),
            data_dir: self.data_dir(id),
            seal: Seal::default(),
            probe_interval: Duration::from_secs(2),
            draw: Box::new(random),
        }
    }

    fn start(&self, id: u32) -> Running {
        start(self.config(id))
    }
}

fn start(config: FormConfig) -> Running {
    let cancel = Arc::new(AtomicBool::new(false));
    let cancelled = Arc::clone(&cancel);
    let run = move || form(config, &cancelled);
    let thread = std::thread::Builder::new().spawn(run).unwrap();
    Running { cancel, thread }
}

fn cluster(node: &FormedCluster) -> ClusterUuid {
    node.formed.formation.cluster
}

/// Answers at an address as the broker of a formed node does, until the test ends.
fn serve(address: SocketAddr, answerer: FormedAnswerer) {
    let listener = TcpListener::bind(address).unwrap();
    let run = move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            // Who opens a connection and says nothing gets nothing.
            let Some(body) = read_frame(&mut stream) else { continue };
            let Answer::Reply(reply) = answerer.answer(&body) else { continue };
            write_frame(&mut stream, FrameKind::DiscoveryReply, reply);
        }
    };
    std::thread::Builder::new().spawn(run).unwrap();
}

pub(super) fn read_frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut header = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut header).ok()?;
    let header = FrameHeader::decode(&header, 1 << 16).ok()?;
    let mut body = vec![0; header.body_bytes as usize];
    stream.read_exact(&mut body).ok()?;
    Some(body)
}

pub(super) fn write_frame(stream: &mut TcpStream, kind: FrameKind, body: Vec<u8>) {
    for part in Frame::new(kind, vec![Bytes::from(body)]).parts() {
        // The other end may have gone.
        drop(stream.write_all(part));
    }
}

#[test]
fn given_three_nodes_when_started_in_any_order_then_all_are_members_of_one_cluster() {
    for order in [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]] {
        let nodes = Nodes::new(3);
        let begun = now();
        let running: Vec<Running> = order.iter().map(|id| nodes.start(*id)).collect();
        let formed: Vec<FormedCluster> = running.into_iter().map(Running::formed).collect();
        assert!(begun.elapsed() < SOON, "{order:?}: {:?}", begun.elapsed());
        for (id, node) in order.iter().zip(&formed) {
            assert_eq!(node.formed.formation, formed[0].formed.formation);
            let member = node.formed.formation.member(NodeId(*id), node.node_uuid).unwrap();
            assert_eq!(node.formed.own, Membership::Member { replica: member.replica });
            // The address is free for the broker.
            TcpListener::bind(nodes.address(*id)).unwrap();
        }
        assert_eq!(formed[0].formed.formation.members.len(), 3);
    }
}

#[test]
fn given_a_formed_cluster_when_the_third_node_comes_late_then_it_joins_under_a_replica_id_of_its_own()
 {
    let nodes = Nodes::new(3);
    let (one, two) = (nodes.start(1), nodes.start(2));
    let (one, two) = (one.formed(), two.formed());
    assert_eq!(one.formed.formation.members.len(), 2);
    serve(nodes.address(1), one.answerer.clone());
    let three = nodes.start(3).formed();
    assert_eq!(cluster(&three), cluster(&one));
    let Membership::Joins { replica } = three.formed.own else { panic!("{three:?}") };
    assert!(two.formed.formation.members.iter().all(|member| member.replica != replica));
    // After a restart it is the same, without asking anybody.
    let again = nodes.start(3).formed();
    assert_eq!((again.node_uuid, again.formed), (three.node_uuid, three.formed));
}

#[test]
fn given_a_member_when_its_disk_is_wiped_then_it_joins_as_somebody_new() {
    let nodes = Nodes::new(3);
    let running: Vec<Running> = (1..=3).map(|id| nodes.start(id)).collect();
    let formed: Vec<FormedCluster> = running.into_iter().map(Running::formed).collect();
    serve(nodes.address(1), formed[0].answerer.clone());
    std::fs::remove_dir_all(nodes.data_dir(3)).unwrap();
    let wiped = nodes.start(3).formed();
    assert_eq!(cluster(&wiped), cluster(&formed[0]));
    assert_ne!(wiped.node_uuid, formed[2].node_uuid);
    let Membership::Joins { replica } = wiped.formed.own else { panic!("{wiped:?}") };
    assert_ne!(Membership::Member { replica }, formed[2].formed.own);
}

#[test]
fn given_a_node_that_promised_when_it_is_restarted_then_it_keeps_its_promise_and_its_disk() {
    let nodes = Nodes::new(3);
    let list = NodeList::new(nodes.listed.clone(), NodeId(3)).unwrap();
    // Node 3 speaks by hand, to node 2.
    let (from, from_uuid) = (NodeId(3), NodeUuid(33));
    let mut two = nodes.config(2);
    two.node_uuid = NodeUuid(22);
    let two = start(two);
    let ballot = Ballot { round: 7, node: from, node_uuid: from_uuid };
    let participants = vec![
        Participant { node: NodeId(2), node_uuid: NodeUuid(22) },
        Participant { node: from, node_uuid: from_uuid },
    ];
    let prepare = Request::Prepare { ballot, participants };
    let envelope = Envelope {
        from,
        from_uuid,
        to: NodeId(2),
        list: list.fingerprint(),
        exchange: 1,
        message: prepare,
    };
    let promise = loop {
        let reply = exchange(nodes.address(2), &Seal::default().request(&envelope).unwrap());
        match reply.map(|body| Seal::default().open_reply(&body).unwrap().message) {
            Some(Reply::NotYet) | None => std::thread::yield_now(),
            Some(reply) => break reply,
        }
    };
    assert_eq!(promise, Reply::Promise { ballot, accepted: None });
    two.cancel();
    let kept = FormationStore::new(&nodes.data_dir(2)).load(NodeId(2)).unwrap().unwrap();
    assert_eq!(kept.acceptor.promised(), Some(ballot));
    // The node 3 that now starts has another disk than the one that node 2 voted with, and is not counted.
    let running: Vec<Running> = (1..=2).map(|id| nodes.start(id)).collect();
    let formed: Vec<FormedCluster> = running.into_iter().map(Running::formed).collect();
    assert_eq!(formed[1].node_uuid, NodeUuid(22));
    assert_eq!(cluster(&formed[0]), cluster(&formed[1]));
}

/// One exchange by hand.
fn exchange(address: SocketAddr, body: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(SOON)).unwrap();
    write_frame(&mut stream, FrameKind::Discovery, body.to_vec());
    read_frame(&mut stream)
}

#[test]
fn given_a_list_that_differs_when_started_then_it_is_named_and_the_others_form_without_it() {
    let nodes = Nodes::new(3);
    let mut three = nodes.config(3);
    let other = free_address().to_string();
    three.nodes[1].raft_addr.clone_from(&other);
    three.nodes.push(ListedNode { id: NodeId(9), raft_addr: nodes.listed[1].raft_addr.clone() });
    let three = start(three);
    let (one, two) = (nodes.start(1), nodes.start(2));
    let (one, two) = (one.formed(), two.formed());
    assert_eq!(one.formed.formation.members.len(), 2);
    serve(nodes.address(1), one.answerer);
    serve(nodes.address(2), two.answerer);
    let refused = three.outcome().unwrap_err();
    assert!(matches!(&refused, FormError::Impossible(Impossible::ListsDiffer { .. })), "{refused}");
    let text = refused.to_string();
    let address = &nodes.listed[1].raft_addr;
    assert!(text.contains("node 1: its cluster.nodes differs"), "{text}");
    assert!(
        text.contains(&format!("node 2 has raft_addr {other} here and {address} there")),
        "{text}"
    );
    assert!(text.contains("node 9 is listed only here"), "{text}");
}

#[test]
fn given_a_node_id_that_is_used_twice_when_the_second_starts_then_it_ends_and_says_so() {
    // Two of five, so that they wait.
    let nodes = Nodes::new(5);
    let (one, two) = (nodes.start(1), nodes.start(2));
    let mut second = nodes.config(2);
    second.listen = free_address();
    second.data_dir = nodes.data_dir(77);
    let refused = start(second).outcome().unwrap_err();
    let kept = FormationStore::new(&nodes.data_dir(2)).load(NodeId(2)).unwrap().unwrap();
    // Either of them may say so first.
    let FormError::Impossible(Impossible::IdInUse { node_uuid, .. }) = &refused else {
        panic!("{refused}")
    };
    assert_eq!(*node_uuid, kept.node_uuid);
    one.cancel();
    two.cancel();
}

#[test]
fn given_a_node_id_that_is_used_twice_when_the_cluster_is_there_already_then_the_second_ends() {
    let nodes = Nodes::new(3);
    let running: Vec<Running> = (1..=3).map(|id| nodes.start(id)).collect();
    let mut formed: Vec<FormedCluster> = running.into_iter().map(Running::formed).collect();
    let node_uuid = formed[2].node_uuid;
    for id in (1..=3).rev() {
        serve(nodes.address(id), formed.remove(formed.len() - 1).answerer);
    }
    let mut second = nodes.config(3);
    second.listen = free_address();
    second.data_dir = nodes.data_dir(77);
    let refused = start(second).outcome().unwrap_err();
    let expected = Impossible::IdInUse { peer: NodeId(3), node_uuid };
    assert!(matches!(&refused, FormError::Impossible(found) if *found == expected), "{refused}");
}

#[test]
fn given_a_peer_that_takes_connections_and_never_answers_when_started_then_the_others_form() {
    let nodes = Nodes::new(3);
    // The kernel takes them; nobody looks.
    let _silent = TcpListener::bind(nodes.address(3)).unwrap();
    let begun = now();
    let (one, two) = (nodes.start(1), nodes.start(2));
    assert_eq!(cluster(&one.formed()), cluster(&two.formed()));
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

#[test]
fn given_garbage_on_the_port_when_started_then_the_cluster_forms_all_the_same() {
    let nodes = Nodes::new(3);
    let running: Vec<Running> = (1..=2).map(|id| nodes.start(id)).collect();
    let mut held = Vec::new();
    for id in 1..=2 {
        let huge = [&b"CHRF\x01\x0a\0\0\xff\xff\xff\xff"[..], &[0; 40]].concat();
        for garbage in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 4096], &huge] {
            let Ok(mut stream) = TcpStream::connect(nodes.address(id)) else { continue };
            drop(stream.write_all(garbage));
            held.push(stream);
        }
        for body in [&b""[..], &[1; 100], &[1; 33]] {
            if let Ok(mut stream) = TcpStream::connect(nodes.address(id)) {
                write_frame(&mut stream, FrameKind::Discovery, body.to_vec());
                write_frame(&mut stream, FrameKind::Raft, body.to_vec());
                held.push(stream);
            }
        }
    }
    let formed: Vec<FormedCluster> = running.into_iter().map(Running::formed).collect();
    assert_eq!(cluster(&formed[0]), cluster(&formed[1]));
}

#[test]
fn given_another_secret_when_started_then_that_node_is_left_out() {
    let nodes = Nodes::new(3);
    let with = |id: u32, secret: &str| {
        let mut config = nodes.config(id);
        config.seal = Seal::new(Some(secret.as_bytes().to_vec()));
        start(config)
    };
    let three = with(3, "other");
    let (one, two) = (with(1, "secret"), with(2, "secret"));
    let (one, two) = (one.formed(), two.formed());
    assert_eq!(cluster(&one), cluster(&two));
    assert_eq!(one.formed.formation.members.len(), 2);
    three.cancel();
}

#[test]
fn given_a_taken_port_when_started_then_the_error_names_the_address() {
    let nodes = Nodes::new(3);
    let _taken = TcpListener::bind(nodes.address(1)).unwrap();
    let refused = nodes.start(1).outcome().unwrap_err();
    assert!(matches!(refused, FormError::Listen { .. }));
    assert!(refused.to_string().starts_with(&format!("raft_addr {}", nodes.address(1))));
}

/// What one exchange with an address says of the peer.
fn problem_at(address: &str) -> PeerProblem {
    let ((asks, asked), (events, heard)) = (mpsc::sync_channel(1), mpsc::sync_channel(1));
    asks.send(Ask { exchange: 1, body: vec![1] }).unwrap();
    drop(asks);
    ask_peer(NodeId(2), address, &asked, &events);
    match heard.recv().unwrap() {
        Event::Ended { outcome: Err(problem), .. } => problem,
        Event::Ended { outcome: Ok(body), .. } => {
            Seal::default().open_reply(&body).unwrap_err().problem()
        }
        Event::Request { .. } => panic!("nobody asked"),
    }
}

#[test]
fn given_peers_of_all_kinds_when_asked_then_each_problem_has_its_name() {
    let refused = problem_at(&free_address().to_string());
    assert_eq!(refused.to_string(), "connection refused");
    assert_eq!(problem_at("no port"), PeerProblem::Unresolved);
    let talks = |bytes: Vec<u8>| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let run = move || {
            let (mut stream, _) = listener.accept().unwrap();
            read_frame(&mut stream).unwrap();
            stream.write_all(&bytes).unwrap();
        };
        std::thread::Builder::new().spawn(run).unwrap();
        problem_at(&address.to_string())
    };
    let framed = |body: Vec<u8>| {
        let frame = Frame::new(FrameKind::DiscoveryReply, vec![Bytes::from(body)]);
        frame.parts().concat()
    };
    assert_eq!(talks(vec![]), PeerProblem::NoAnswer);
    assert_eq!(talks(b"HTTP/1.1 400 Bad Request\r\n\r\n......".to_vec()), PeerProblem::Garbled);
    let own = MESSAGE_VERSION;
    assert_eq!(talks(framed(vec![own - 1; 64])), PeerProblem::Version { found: own - 1, own });
    assert_eq!(talks(framed(vec![own; 64])), PeerProblem::SecretDiffers);
    let mut newer = framed(vec![own; 64]);
    newer[4] = 9;
    assert_eq!(talks(newer), PeerProblem::FrameVersion { found: 9, own: FRAME_VERSION });
}

#[test]
fn given_missing_peers_when_time_passes_then_one_sentence_says_who_for_how_long_and_why() {
    let nodes: Vec<ListedNode> = [(1, "a:1"), (2, "b:2"), (3, "c:3")]
        .map(|(id, address)| ListedNode { id: NodeId(id), raft_addr: address.to_owned() })
        .into();
    let list = NodeList::new(nodes, NodeId(1)).unwrap();
    let durable = Durable::empty(NodeId(1), NodeUuid(1));
    let mut forming = Forming::new(list, durable, Timing::new(2000), Box::new(random), 0);
    let mut reporter = Reporter::new(0);
    assert_eq!(reporter.next(&forming, 1), None, "nobody was tried yet");
    let two = forming.next_request(NodeId(2), 1).unwrap().exchange;
    let three = forming.next_request(NodeId(3), 1).unwrap().exchange;
    let kind = std::io::ErrorKind::ConnectionRefused;
    forming.on_silence(NodeId(2), two, PeerProblem::Unreachable { kind }, 2);
    forming.on_silence(NodeId(3), three, PeerProblem::NoAnswer, 2);
    let said: Vec<u64> =
        (2..35_000).filter(|at_ms| reporter.next(&forming, *at_ms).is_some()).collect();
    assert_eq!(said, [2, 2_000, 10_000, 20_000, 30_000]);
    let sentence = reporter.next(&forming, 40_000).unwrap();
    assert_eq!(
        sentence,
        "waiting for a cluster: 1 of 3 nodes are here, 2 are needed to form one; node 2 (b:2) has been missing for \
         40.0 s: connection refused; node 3 (c:3) has been missing for 40.0 s: it takes connections, but does not answer"
    );
}

#[test]
fn given_a_node_of_one_cluster_when_it_restarts_among_nodes_of_another_then_the_error_names_both() {
    let nodes = Nodes::new(3);
    let running: Vec<Running> = (1..=2).map(|id| nodes.start(id)).collect();
    let first: Vec<FormedCluster> = running.into_iter().map(Running::formed).collect();
    // Node 1 keeps its data; the others begin anew.
    let kept = nodes.directory.path().join("kept");
    std::fs::rename(nodes.data_dir(1), &kept).unwrap();
    std::fs::remove_dir_all(nodes.data_dir(2)).unwrap();
    let running: Vec<Running> = [2, 3].map(|id| nodes.start(id)).into();
    let mut second: Vec<FormedCluster> = running.into_iter().map(Running::formed).collect();
    let (one, other) = (cluster(&first[0]), cluster(&second[0]));
    serve(nodes.address(2), second.remove(0).answerer);
    let mut config = nodes.config(1);
    config.data_dir = kept;
    let refused = start(config).outcome().unwrap_err();
    let expected = Impossible::TwoClusters { own: one, other };
    assert!(matches!(&refused, FormError::Impossible(found) if *found == expected), "{refused}");
}
