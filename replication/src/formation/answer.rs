//! What a node of a formed cluster answers to those that are still looking for theirs: a function of bytes, for
//! whoever listens on the Raft port once formation is over.
//!
//! It tells every node of the same list which cluster there is, and changes nothing. Whether a node is taken in that asks
//! for it is the catalog's affair: [`Answer::Join`] is answered by whoever knows it.

use chronik_engine::ids::{NodeId, ReplicaId};

use super::decree::Formation;
use super::durable::Durable;
use super::ids::NodeUuid;
use super::list::{ListedNode, NodeList};
use super::protocol::{Envelope, Introduction, Refusal, Reply, Request, Status};
use super::seal::{Seal, SealError};

/// A node of a formed cluster.
#[derive(Debug, Clone)]
pub struct FormedAnswerer {
    node: NodeId,
    node_uuid: NodeUuid,
    list: NodeList,
    seal: Seal,
    formation: Formation,
}

/// What comes of the body of a Discovery frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The body of the reply.
    Reply(Vec<u8>),
    /// A node asks to be taken in; the reply is made by [`FormedAnswerer::answer_join`].
    Join(JoinRequest),
}

/// A node that asks to be taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// Its id.
    pub node: NodeId,
    /// Its disk.
    pub node_uuid: NodeUuid,
    /// What it says of itself.
    pub introduction: Introduction,
    /// Its replica of `__meta`.
    pub replica: ReplicaId,
    exchange: u64,
}

/// What the catalog says to a node that asks to be taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinOutcome {
    /// It is part of the cluster, as these are.
    Taken {
        /// The other nodes.
        peers: Vec<ListedNode>,
    },
    /// Nothing yet: it may ask again.
    NotYet,
    /// It is to ask again, for this reason.
    Later {
        /// The reason.
        text: String,
    },
    /// A node with its id is running, on this disk.
    IdInUse {
        /// That one.
        node_uuid: NodeUuid,
    },
    /// A node with one of its addresses is running.
    AddressInUse {
        /// That one.
        node: NodeId,
    },
    /// It is refused.
    Refused {
        /// Why.
        text: String,
    },
}

impl FormedAnswerer {
    /// An answerer for this node.
    #[must_use]
    pub fn new(
        node: NodeId,
        node_uuid: NodeUuid,
        list: NodeList,
        seal: Seal,
        formation: Formation,
    ) -> FormedAnswerer {
        FormedAnswerer { node, node_uuid, list, seal, formation }
    }

    /// What comes of the body of a Discovery frame. Any bytes get a reply.
    #[must_use]
    pub fn answer(&self, body: &[u8]) -> Answer {
        let reply = match self.seal.open_request(body) {
            Ok(Envelope {
                from: node,
                from_uuid: node_uuid,
                exchange,
                message: Request::Join { introduction, replica },
                ..
            }) => {
                let asked = JoinRequest { node, node_uuid, introduction, replica, exchange };
                return Answer::Join(asked);
            }
            Ok(request) => {
                let reply = self.reply(&request);
                self.envelope(request.from, request.exchange, reply)
            }
            Err(error) => unreadable(&error, self.node, self.node_uuid, &self.list),
        };
        Answer::Reply(self.sealed(&reply))
    }

    /// The body of the reply to a node that asks to be taken in.
    #[must_use]
    pub fn answer_join(&self, asked: &JoinRequest, outcome: JoinOutcome) -> Vec<u8> {
        let reply = match outcome {
            JoinOutcome::Taken { peers } => {
                Reply::Joined { formation: self.formation.clone(), peers }
            }
            JoinOutcome::NotYet => Reply::NotYet,
            JoinOutcome::Later { text } => Reply::Later { text },
            JoinOutcome::IdInUse { node_uuid } => Reply::Refused(Refusal::IdInUse { node_uuid }),
            JoinOutcome::AddressInUse { node } => Reply::Refused(Refusal::AddressInUse { node }),
            JoinOutcome::Refused { text } => Reply::Refused(Refusal::NotTaken { text }),
        };
        self.sealed(&self.envelope(asked.node, asked.exchange, reply))
    }

    fn sealed(&self, reply: &Envelope<Reply>) -> Vec<u8> {
        // Encoding to memory does not fail; an empty body is refused by whoever gets it.
        self.seal.reply(reply).unwrap_or_default()
    }

    fn reply(&self, request: &Envelope<Request>) -> Reply {
        if request.list != self.list.fingerprint() {
            let list = self.list.nodes().to_vec();
            return Reply::Refused(Refusal::ListDiffers { list });
        }
        if request.to != self.node {
            return Reply::Refused(Refusal::WrongAddress);
        }
        if request.from == self.node {
            return Reply::Refused(Refusal::IdInUse { node_uuid: self.node_uuid });
        }
        Reply::Status(Status::Formed { formation: self.formation.clone() })
    }

    fn envelope(&self, to: NodeId, exchange: u64, message: Reply) -> Envelope<Reply> {
        let list = self.list.fingerprint();
        Envelope { from: self.node, from_uuid: self.node_uuid, to, list, exchange, message }
    }
}

/// The reply to something that is no request, to nobody in particular.
pub(super) fn unreadable(
    error: &SealError,
    node: NodeId,
    node_uuid: NodeUuid,
    list: &NodeList,
) -> Envelope<Reply> {
    let refusal = match error {
        SealError::Seal => Refusal::Unsealed,
        SealError::Version { .. } | SealError::Message { .. } => Refusal::Malformed,
    };
    Envelope {
        from: node,
        from_uuid: node_uuid,
        to: node,
        list: list.fingerprint(),
        exchange: 0,
        message: Reply::Refused(refusal),
    }
}

impl Durable {
    /// The answerer of this node, once it is part of a cluster.
    #[must_use]
    pub fn answerer(&self, list: NodeList, seal: Seal) -> Option<FormedAnswerer> {
        let formation = self.formed.as_ref()?.formation.clone();
        Some(FormedAnswerer::new(self.node, self.node_uuid, list, seal, formation))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

    use chronik_engine::ids::ReplicaId;

    use super::*;
    use crate::formation::decree::Member;
    use crate::formation::ids::ClusterUuid;
    use crate::formation::list::ListedNode;

    fn list(addresses: &[&str]) -> NodeList {
        let nodes = (1..)
            .zip(addresses)
            .map(|(id, address)| ListedNode { id: NodeId(id), raft_addr: (*address).to_owned() });
        NodeList::new(nodes.collect(), NodeId(1)).unwrap()
    }

    fn answerer() -> FormedAnswerer {
        let node_uuid = NodeUuid(1);
        let member = Member { node: NodeId(1), node_uuid, replica: ReplicaId(5) };
        let formation = Formation { cluster: ClusterUuid(9), members: vec![member] };
        FormedAnswerer::new(NodeId(1), node_uuid, list(&["a:1", "b:2"]), Seal::default(), formation)
    }

    fn asked(from: u32, to: u32, list: &NodeList) -> Reply {
        let (from, to, list) = (NodeId(from), NodeId(to), list.fingerprint());
        let message = Request::Probe;
        let request = Envelope { from, from_uuid: NodeUuid(2), to, list, exchange: 3, message };
        let answer = answerer().answer(&Seal::default().request(&request).unwrap());
        let Answer::Reply(body) = answer else { panic!("{answer:?}") };
        let reply = Seal::default().open_reply(&body).unwrap();
        assert_eq!((reply.from, reply.exchange), (NodeId(1), 3));
        reply.message
    }

    #[test]
    fn given_a_node_of_the_list_when_it_asks_then_it_is_told_of_the_cluster() {
        let formation = answerer().formation;
        let told = Reply::Status(Status::Formed { formation });
        assert_eq!(asked(2, 1, &list(&["a:1", "b:2"])), told);
    }

    #[test]
    fn given_a_mistake_in_the_settings_when_asked_then_it_is_named() {
        let same = list(&["a:1", "b:2"]);
        let other = list(&["a:1", "b:3"]);
        let expected = Refusal::ListDiffers { list: same.nodes().to_vec() };
        assert_eq!(asked(2, 1, &other), Reply::Refused(expected));
        assert_eq!(asked(2, 7, &same), Reply::Refused(Refusal::WrongAddress));
        let in_use = Refusal::IdInUse { node_uuid: NodeUuid(1) };
        assert_eq!(asked(1, 1, &same), Reply::Refused(in_use));
    }

    #[test]
    fn given_garbage_when_answered_then_it_is_refused() {
        for body in [&b""[..], b"x", b"GET / HTTP/1.1\r\n", &[1; 200], &[2; 200]] {
            let Answer::Reply(reply) = answerer().answer(body) else { panic!("{body:?}") };
            let reply = Seal::default().open_reply(&reply).unwrap();
            assert!(matches!(reply.message, Reply::Refused(_)), "{body:?}");
        }
    }
}
