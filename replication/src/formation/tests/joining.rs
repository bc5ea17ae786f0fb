//! A node that asks to be taken in, and what a node of the cluster answers it, over real sockets.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use chronik_engine::ids::NodeId;

use super::sockets::{read_frame, write_frame};
use crate::formation::{
    Answer, ClusterUuid, FormError, FormedCluster, Impossible, Introduction, JoinConfig,
    JoinOutcome, JoinProblem, JoinRequest, ListedNode, Membership, NodeUuid, Seal, begin_alone,
    join,
};
use crate::wire::FrameKind;

type Joined = Result<(FormedCluster, Vec<ListedNode>), FormError>;

fn listed(id: u32) -> ListedNode {
    ListedNode { id: NodeId(id), raft_addr: format!("host{id}:9192") }
}

fn secret() -> Seal {
    Seal::new(Some(b"secret".to_vec()))
}

/// A node of a cluster whose catalog says these things one after the other.
fn serve(outcomes: Vec<JoinOutcome>) -> (SocketAddr, Receiver<JoinRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, requests) = channel();
    let run = move || {
        let directory = tempfile::tempdir().unwrap();
        let (uuid, cluster) = (NodeUuid(7), ClusterUuid(9));
        let begun = begin_alone(listed(1), uuid, cluster, directory.path(), secret()).unwrap();
        let answerer = begun.0.answerer;
        let mut outcomes = outcomes.into_iter();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let Some(body) = read_frame(&mut stream) else { continue };
            let reply = match answerer.answer(&body) {
                Answer::Reply(reply) => reply,
                Answer::Join(request) => {
                    let Some(outcome) = outcomes.next() else { return };
                    let reply = answerer.answer_join(&request, outcome);
                    asked.send(request).unwrap();
                    reply
                }
            };
            write_frame(&mut stream, FrameKind::DiscoveryReply, reply);
        }
    };
    std::thread::Builder::new().spawn(run).unwrap();
    (address, requests)
}

fn introduction() -> Introduction {
    Introduction {
        kafka_host: "host4".to_owned(),
        kafka_port: 9092,
        raft_addr: "host4:9192".to_owned(),
        shards: 2,
        rack: None,
        is_read_only: false,
    }
}

fn ask(address: SocketAddr, data_dir: &Path, seal: Seal) -> Joined {
    let mut drawn = 100;
    let config = JoinConfig {
        own: NodeId(4),
        node_uuid: NodeUuid(44),
        address: address.to_string(),
        introduction: introduction(),
        data_dir: data_dir.to_path_buf(),
        seal,
        draw: Box::new(move || {
            drawn += 1;
            drawn
        }),
    };
    join(config, &AtomicBool::new(false))
}

#[test]
fn given_a_cluster_without_a_leader_for_a_while_when_a_node_asks_then_it_is_taken_in_once() {
    let taken = JoinOutcome::Taken { peers: vec![listed(1), listed(3)] };
    let later = JoinOutcome::Later { text: "node 4 was heard just now".to_owned() };
    let (address, requests) = serve(vec![JoinOutcome::NotYet, later, taken]);
    let directory = tempfile::tempdir().unwrap();
    let (joined, peers) = ask(address, directory.path(), secret()).unwrap();
    assert_eq!(peers, [listed(1), listed(3)]);
    assert_eq!(joined.formed.formation.cluster, ClusterUuid(9));
    let asked: Vec<JoinRequest> = requests.try_iter().collect();
    assert_eq!(asked.len(), 3);
    assert_eq!((asked[0].node, asked[0].node_uuid), (NodeId(4), NodeUuid(44)));
    assert_eq!(asked[0].introduction, introduction());
    assert_eq!(asked[0].replica, asked[1].replica, "I1");
    assert_eq!(joined.formed.own, Membership::Joins { replica: asked[0].replica });
    // Nobody answers any more, and nobody is asked.
    let (again, peers) = ask(address, directory.path(), secret()).unwrap();
    assert_eq!((again.formed, peers.len()), (joined.formed, 2));
}

#[test]
fn given_a_node_that_was_refused_when_it_asks_again_then_it_is_under_the_same_replica_id() {
    let refused = JoinOutcome::Refused { text: "full".to_owned() };
    let taken = JoinOutcome::Taken { peers: vec![listed(1)] };
    let (address, requests) = serve(vec![refused, taken]);
    let directory = tempfile::tempdir().unwrap();
    let error = ask(address, directory.path(), secret()).unwrap_err();
    assert!(error.to_string().contains("full"), "{error}");
    ask(address, directory.path(), secret()).unwrap();
    let asked: Vec<JoinRequest> = requests.try_iter().collect();
    assert_eq!(asked[0].replica, asked[1].replica, "I1");
}

#[test]
fn given_mistakes_when_a_node_asks_then_each_is_named_with_the_address() {
    let node_uuid = NodeUuid(5);
    let mistakes = [
        (JoinOutcome::IdInUse { node_uuid }, JoinProblem::IdInUse { node_uuid }),
        (
            JoinOutcome::AddressInUse { node: NodeId(3) },
            JoinProblem::AddressInUse { node: NodeId(3) },
        ),
    ];
    for (outcome, expected) in mistakes {
        let (address, _requests) = serve(vec![outcome]);
        assert_eq!(problem(address, secret()), expected);
    }
    let (address, _requests) = serve(Vec::new());
    assert_eq!(problem(address, Seal::new(Some(b"other".to_vec()))), JoinProblem::SecretDiffers);
    assert_eq!(problem(kafka_port(), secret()), JoinProblem::KafkaPort);
}

fn problem(address: SocketAddr, seal: Seal) -> JoinProblem {
    let directory = tempfile::tempdir().unwrap();
    match ask(address, directory.path(), seal).unwrap_err() {
        FormError::Impossible(Impossible::NotTaken { address: named, why }) => {
            assert_eq!(named, address.to_string());
            why
        }
        other => panic!("{other}"),
    }
}

/// Closes what is no Kafka request, and answers what is one.
fn kafka_port() -> SocketAddr {
    use std::io::{Read as _, Write as _};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let run = move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 14];
            stream.read_exact(&mut request).unwrap();
            if request[..4] == [0, 0, 0, 10] {
                stream.write_all(&[&[0, 0, 0, 10], &request[8..12], &[0; 6]].concat()).unwrap();
            }
        }
    };
    std::thread::Builder::new().spawn(run).unwrap();
    address
}
