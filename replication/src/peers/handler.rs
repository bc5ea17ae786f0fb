//! What whoever has links must do with what comes over them, and the answers to calls.

use std::rc::Weak;

use bytes::Bytes;
use chronik_engine::ids::{GroupId, ReplicaId};
use uuid::Uuid;

use super::link::Link;
use crate::ready::PeerMessage;
use crate::wire::{Call, CallRefused, LeaderNotice, ReceivedMark, Seat};

/// Hears what comes over the links of a shard. Nothing here may block. All of it is called by the tasks of the links,
/// never from within a call of [`super::Peers`], so a handler may be asked while its owner is borrowed by nobody.
pub trait PeerHandler: 'static {
    /// Raft messages, in the order in which the peer sent them.
    fn on_messages(&self, from: Seat, messages: Vec<PeerMessage>);

    /// Who leads on other nodes, as the peer tells it.
    fn on_notices(&self, from: Seat, notices: Vec<LeaderNotice>);

    /// What replicas of the peer have received.
    fn on_received(&self, _from: Seat, _marks: Vec<ReceivedMark>) {}

    /// A request of the peer. Whoever drops `reply` refuses it.
    fn on_call(&self, from: Seat, call: Call, reply: Replier);

    /// The link to a seat is there.
    fn on_up(&self, seat: Seat);

    /// It is there no more; what was sent last may have arrived or not. A link that is replaced by a newer connection
    /// of the same peer goes down before the new one comes up.
    fn on_down(&self, seat: Seat);

    /// At least one message to a replica was lost for certain: no link, a queue that was full, or a snapshot that the peer
    /// did not take.
    fn on_dropped(&self, to: Seat, group: GroupId, replica: ReplicaId);

    /// A replica has taken another part of the snapshot that is on its way to it.
    fn on_part_taken(&self, _to: Seat, _group: GroupId, _replica: ReplicaId) {}

    /// Whether this data directory of a node counts no more, for good: no link is made with it.
    fn is_retired(&self, _node_uuid: Uuid) -> bool {
        false
    }

    /// A peer that has proven itself says so of the data directory here.
    fn on_retired(&self, _by: Seat) {}
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Nothing was sent.
    #[error("there is no link to that shard of the node")]
    NotConnected,
    /// Nothing was sent: too many calls wait for their answers, or too many bytes to be sent.
    #[error("too much waits for that shard of the node already")]
    Overloaded,
    /// Nothing was sent.
    #[error("a call of {bytes} bytes is too large")]
    TooLarge { bytes: usize },
    /// It may have been done or not.
    #[error("the link was lost before the answer came")]
    Lost,
    /// It may have been done or not.
    #[error("no answer came in time")]
    Timeout,
    /// The peer says why.
    #[error("{0}")]
    Refused(#[source] CallRefused),
}

/// Answers one call, once. Dropped, it refuses the call. A reply to a peer whose link is lost goes nowhere.
#[derive(Debug)]
pub struct Replier {
    link: Weak<Link>,
    id: u64,
    is_answered: bool,
}

impl Replier {
    pub(super) fn new(link: Weak<Link>, id: u64) -> Replier {
        Replier { link, id, is_answered: false }
    }

    /// It is done; this came of it.
    pub fn answer(self, body: Bytes) {
        self.answer_parts(&[body]);
    }

    /// The same, with a body in parts that are sent one after the other; the large ones are not copied.
    pub fn answer_parts(mut self, body: &[Bytes]) {
        self.send(Ok(body));
    }

    /// It is not done.
    pub fn refuse(mut self, refused: CallRefused) {
        self.send(Err(refused));
    }

    fn send(&mut self, result: Result<&[Bytes], CallRefused>) {
        self.is_answered = true;
        if let Some(link) = self.link.upgrade() {
            link.reply(self.id, result);
        }
    }
}

impl Drop for Replier {
    fn drop(&mut self) {
        if !self.is_answered {
            self.send(Err(CallRefused::Overloaded));
        }
    }
}
