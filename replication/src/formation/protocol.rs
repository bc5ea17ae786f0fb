//! What nodes say to each other until they are a cluster: one request, one reply, as the bodies of Discovery and
//! DiscoveryReply frames.
//!
//! Every message says who sends it, from which disk, to whom, and with which list of nodes in its settings. So mistakes
//! in settings are found by the first exchange, and can be named: lists that differ, an address that leads to another
//! node, a node id that two use.
//!
//! - I1: decoding is total and bounded by [`MESSAGE_BYTES_MAX`], in bytes and in memory.
//! - I2: the version stands first, so that a message of a newer version is told from garbage.

use chronik_engine::framed::{self, FramedError};
use chronik_engine::ids::{NodeId, ReplicaId};

use super::decree::{Ballot, Formation, Participant};
use super::ids::NodeUuid;
use super::list::ListedNode;

/// The version of these messages.
pub const MESSAGE_VERSION: u8 = 2;

/// The largest message, and the most memory that one may claim: a list of as many nodes as there may be fits well.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// A message with who sends it to whom.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Envelope<T> {
    /// The sender.
    pub from: NodeId,
    /// The sender's disk.
    pub from_uuid: NodeUuid,
    /// Who it is meant for.
    pub to: NodeId,
    /// The fingerprint of the sender's list of nodes.
    pub list: u64,
    /// A random number that names the request; its reply repeats it.
    pub exchange: u64,
    /// What it says.
    pub message: T,
}

impl<T> Envelope<T> {
    /// The sender, as ballots name it.
    #[must_use]
    pub fn sender(&self) -> Participant {
        Participant { node: self.from, node_uuid: self.from_uuid }
    }
}

/// What a node asks a peer.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Request {
    /// Are you there, and are you part of a cluster?
    Probe,
    /// Promise to vote in no lower ballot, and tell what you have accepted.
    Prepare { ballot: Ballot, participants: Vec<Participant> },
    /// Accept this formation.
    Accept { ballot: Ballot, participants: Vec<Participant>, formation: Formation },
    /// This formation is chosen.
    Chosen { formation: Formation },
    /// Take me into the cluster that you are part of, with this replica of `__meta`. Of such a request neither the
    /// addressee nor the list counts: its sender knows an address and nothing else.
    Join { introduction: Introduction, replica: ReplicaId },
}

/// What a node that joins says of itself.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Introduction {
    /// Where Kafka clients reach it: the host.
    pub kafka_host: String,
    /// And the port.
    pub kafka_port: u16,
    /// Where other nodes reach it, as host and port.
    pub raft_addr: String,
    /// How many shards it has.
    pub shards: u16,
    /// Where it stands.
    pub rack: Option<String>,
    /// Whether its replicas are to be for readers alone, and to have no vote.
    pub is_read_only: bool,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Status {
    /// It knows of no cluster. With the highest ballot that it has voted in.
    Unformed { promised: Option<Ballot> },
    /// It is part of the cluster that began like this.
    Formed { formation: Formation },
}

/// What a peer answers.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Reply {
    /// What it is. Whatever was asked, a node that is part of a cluster says so.
    Status(Status),
    /// A promise.
    Promise { ballot: Ballot, accepted: Option<(Ballot, Formation)> },
    /// A formation is accepted.
    Accepted { ballot: Ballot },
    /// A higher ballot is promised.
    Outbid { promised: Ballot },
    /// The ballot counts on another disk of a node than the peer knows; it knows this one, or several.
    Replaced { node: NodeId, known: Option<NodeUuid> },
    /// Ask again soon: it is still looking around itself.
    NotYet,
    /// It will not talk.
    Refused(Refusal),
    /// The sender is part of the cluster that began like this; with the nodes that it has now.
    Joined { formation: Formation, peers: Vec<ListedNode> },
    /// The sender is not taken in yet, for this reason; it may ask again.
    Later { text: String },
}

/// Why a node will not talk.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum Refusal {
    /// Its list of nodes is another one: this.
    ListDiffers { list: Vec<ListedNode> },
    /// The message is for another node than the one at this address.
    WrongAddress,
    /// The sender's node id is in use by a node with this disk, which answers at the listed address.
    IdInUse { node_uuid: NodeUuid },
    /// The request makes no sense.
    Malformed,
    /// The request is not sealed with the secret of this cluster.
    Unsealed,
    /// One of the sender's addresses is in use by this node.
    AddressInUse { node: NodeId },
    /// The cluster does not take the sender in, for this reason.
    NotTaken { text: String },
}

/// The bytes of a message.
///
/// # Errors
/// It is larger than a message may be.
pub fn encode<T: bincode::Encode>(envelope: &Envelope<T>) -> Result<Vec<u8>, FramedError> {
    framed::encode(MESSAGE_VERSION, envelope)
}

/// The request in these bytes.
///
/// # Errors
/// There is none, or none of this version.
pub fn decode_request(bytes: &[u8]) -> Result<Envelope<Request>, FramedError> {
    framed::decode::<Envelope<Request>, MESSAGE_BYTES_MAX>(MESSAGE_VERSION, bytes)
}

/// The reply in these bytes.
///
/// # Errors
/// There is none, or none of this version.
pub fn decode_reply(bytes: &[u8]) -> Result<Envelope<Reply>, FramedError> {
    framed::decode::<Envelope<Reply>, MESSAGE_BYTES_MAX>(MESSAGE_VERSION, bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::formation::decree::Member;
    use crate::formation::ids::ClusterUuid;

    fn ballot() -> Ballot {
        Ballot { round: 3, node: NodeId(1), node_uuid: NodeUuid(7) }
    }

    fn formation() -> Formation {
        let member = |id: u32| Member {
            node: NodeId(id),
            node_uuid: NodeUuid(u128::from(id)),
            replica: ReplicaId(u64::from(id) + 10),
        };
        Formation { cluster: ClusterUuid(9), members: vec![member(1), member(2)] }
    }

    fn envelope<T>(message: T) -> Envelope<T> {
        Envelope {
            from: NodeId(1),
            from_uuid: NodeUuid(7),
            to: NodeId(2),
            list: 5,
            exchange: 6,
            message,
        }
    }

    fn requests() -> Vec<Request> {
        let participants = vec![Participant { node: NodeId(1), node_uuid: NodeUuid(7) }];
        vec![
            Request::Probe,
            Request::Prepare { ballot: ballot(), participants: participants.clone() },
            Request::Accept { ballot: ballot(), participants, formation: formation() },
            Request::Chosen { formation: formation() },
            Request::Join { introduction: introduction(), replica: ReplicaId(5) },
        ]
    }

    fn introduction() -> Introduction {
        Introduction {
            kafka_host: "a".to_owned(),
            kafka_port: 9092,
            raft_addr: "a:9192".to_owned(),
            shards: 2,
            rack: Some("r".to_owned()),
            is_read_only: true,
        }
    }

    #[test]
    fn given_each_request_when_encoded_and_decoded_then_it_is_the_same() {
        for request in requests() {
            let sent = envelope(request);
            assert_eq!(decode_request(&encode(&sent).unwrap()).unwrap(), sent);
        }
    }

    #[test]
    fn given_each_reply_when_encoded_and_decoded_then_it_is_the_same() {
        let listed = ListedNode { id: NodeId(1), raft_addr: "a:1".to_owned() };
        let replies = [
            Reply::Status(Status::Unformed { promised: Some(ballot()) }),
            Reply::Status(Status::Formed { formation: formation() }),
            Reply::Promise { ballot: ballot(), accepted: Some((ballot(), formation())) },
            Reply::Accepted { ballot: ballot() },
            Reply::Outbid { promised: ballot() },
            Reply::Replaced { node: NodeId(3), known: None },
            Reply::NotYet,
            Reply::Refused(Refusal::ListDiffers { list: vec![listed.clone()] }),
            Reply::Joined { formation: formation(), peers: vec![listed] },
            Reply::Later { text: "a while".to_owned() },
            Reply::Refused(Refusal::AddressInUse { node: NodeId(3) }),
            Reply::Refused(Refusal::NotTaken { text: "full".to_owned() }),
            Reply::Refused(Refusal::IdInUse { node_uuid: NodeUuid(1) }),
        ];
        for reply in replies {
            let sent = envelope(reply);
            assert_eq!(decode_reply(&encode(&sent).unwrap()).unwrap(), sent);
        }
    }

    #[test]
    fn given_a_probe_when_encoded_then_its_bytes_are_those_of_version_2() {
        let bytes = encode(&envelope(Request::Probe)).unwrap();
        assert_eq!(bytes, [2, 1, 7, 2, 5, 6, 0]);
    }

    #[test]
    fn given_any_cut_or_changed_byte_when_decoded_then_it_is_an_error_or_a_message() {
        for request in requests() {
            let bytes = encode(&envelope(request)).unwrap();
            for cut in 0..bytes.len() {
                decode_request(&bytes[..cut]).unwrap_err();
            }
            for at in 0..bytes.len() {
                for bit in 0..8 {
                    let mut damaged = bytes.clone();
                    damaged[at] ^= 1 << bit;
                    // Either is right; what matters is that it neither panics nor claims memory.
                    drop(decode_request(&damaged));
                }
            }
        }
    }

    #[test]
    fn given_a_count_beyond_the_message_when_decoded_then_it_is_refused_before_memory_is_claimed() {
        // A Chosen whose formation announces 2^64 - 1 members.
        let mut bytes = vec![MESSAGE_VERSION, 1, 7, 2, 5, 6, 3, 9, 253];
        bytes.extend([0xff; 8]);
        assert!(matches!(decode_request(&bytes), Err(FramedError::Malformed { .. })));
    }

    #[test]
    fn given_a_newer_version_when_decoded_then_it_is_told_from_garbage() {
        let mut bytes = encode(&envelope(Request::Probe)).unwrap();
        bytes[0] = MESSAGE_VERSION + 1;
        let newer = |version: u8| version == MESSAGE_VERSION + 1;
        let decoded = decode_request(&bytes);
        assert!(matches!(decoded, Err(FramedError::Version { version }) if newer(version)));
    }
}
