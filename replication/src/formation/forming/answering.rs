//! What a node answers to peers that ask, before and after it is part of a cluster.

use super::Forming;
use crate::formation::decree::{Ballot, Participant, Vote};
use crate::formation::peer::Contact;
use crate::formation::protocol::{Envelope, Refusal, Reply, Request, Status};

impl Forming {
    /// A peer asks.
    pub fn on_request(&mut self, request: Envelope<Request>, now_ms: u64) -> Envelope<Reply> {
        let (sender, exchange) = (request.sender(), request.exchange);
        if matches!(request.message, Request::Join { .. }) {
            // There is no cluster yet that it could be taken into.
            return self.envelope(sender.node, exchange, Reply::NotYet);
        }
        let reply = match self.refusal(&request, now_ms) {
            Some(reply) => reply,
            None => self.answer(sender, request.message, now_ms),
        };
        self.envelope(sender.node, exchange, reply)
    }

    fn refusal(&mut self, request: &Envelope<Request>, now_ms: u64) -> Option<Reply> {
        if request.list != self.list.fingerprint() {
            let list = self.list.nodes().to_vec();
            return Some(Reply::Refused(Refusal::ListDiffers { list }));
        }
        if request.to != self.durable.node {
            return Some(Reply::Refused(Refusal::WrongAddress));
        }
        let Some(peer) = self.peers.get_mut(&request.from) else {
            // The lists are the same, so the sender has our own id.
            let node_uuid = self.durable.node_uuid;
            return Some(Reply::Refused(Refusal::IdInUse { node_uuid }));
        };
        if self.durable.formed.is_some() {
            // Whoever it is: that there is a cluster is true for both.
            return None;
        }
        match peer.on_contact(request.from_uuid, now_ms) {
            Contact::Peer => None,
            Contact::Unclear => Some(Reply::NotYet),
            Contact::Impostor { listed } => {
                Some(Reply::Refused(Refusal::IdInUse { node_uuid: listed }))
            }
        }
    }

    fn answer(&mut self, sender: Participant, request: Request, now_ms: u64) -> Reply {
        if let Request::Chosen { formation } = &request {
            if !formation.is_plausible(&self.list) {
                return Reply::Refused(Refusal::Malformed);
            }
            // Not on the word of a message that may be of long ago: who says so must answer at its address.
            let peer = self.peers.get(&sender.node);
            let is_heard = peer.is_some_and(|peer| peer.is_heard(sender.node_uuid));
            if !is_heard && self.durable.formed.is_none() {
                return Reply::NotYet;
            }
            self.adopt(formation.clone());
        }
        if let Some(formed) = &self.durable.formed {
            return Reply::Status(Status::Formed { formation: formed.formation.clone() });
        }
        match request {
            Request::Probe | Request::Chosen { .. } => self.unformed(),
            Request::Join { .. } => Reply::NotYet,
            Request::Prepare { ballot, participants } => {
                if let Some(reply) = self.before_vote(sender, ballot, &participants) {
                    return reply;
                }
                let vote = self.durable.acceptor.on_prepare(ballot, &participants);
                self.after_vote(vote, now_ms, |accepted| Reply::Promise { ballot, accepted })
            }
            Request::Accept { ballot, participants, formation } => {
                if !formation.is_plausible(&self.list) {
                    return Reply::Refused(Refusal::Malformed);
                }
                if let Some(reply) = self.before_vote(sender, ballot, &participants) {
                    return reply;
                }
                let vote = self.durable.acceptor.on_accept(ballot, &participants, &formation);
                self.after_vote(vote, now_ms, |()| Reply::Accepted { ballot })
            }
        }
    }

    fn unformed(&self) -> Reply {
        Reply::Status(Status::Unformed { promised: self.durable.acceptor.promised() })
    }

    /// Why it does not vote in this ballot, if it does not.
    fn before_vote(
        &self,
        sender: Participant,
        ballot: Ballot,
        participants: &[Participant],
    ) -> Option<Reply> {
        let is_of_sender = ballot.node == sender.node && ballot.node_uuid == sender.node_uuid;
        if !is_of_sender || participants.iter().any(|one| !self.list.contains(one.node)) {
            return Some(Reply::Refused(Refusal::Malformed));
        }
        if !participants.contains(&self.myself()) {
            // It counts on a disk that is gone; the reply's envelope says which one there is.
            return Some(self.unformed());
        }
        self.looks_around.then_some(Reply::NotYet)
    }

    /// Leaves the field to who asked, for a while, and puts the vote into words.
    fn after_vote<T>(
        &mut self,
        vote: Vote<T>,
        now_ms: u64,
        granted: impl FnOnce(T) -> Reply,
    ) -> Reply {
        match vote {
            Vote::Granted(vote) => {
                self.is_unsaved = true;
                self.next_round_at_ms =
                    self.next_round_at_ms.max(now_ms + self.timing.take_over_ms);
                granted(vote)
            }
            Vote::Outbid { promised } => Reply::Outbid { promised },
            Vote::Replaced { node, known } => Reply::Replaced { node, known },
        }
    }
}
