//! Partitions of topics with `durability=relaxed`: their acknowledgements wait for the memory of a quorum, not for its disks.
//!
//! Raft hears nothing of it. Its answers stay behind the sync; what is committed, applied and read is durable as ever, so no
//! reader sees a record that could still go. Beside that, a follower says at once what it has received
//! ([`ReceivedMark`]), and the leader acknowledges what a quorum has received in its own term; its own memory is one. A mark
//! says no more than the answer of Raft that waits for the disk ([`RaftGroup::take_received`]); one that is lost or comes late
//! costs nothing but time.
//!
//! Records so acknowledged are on their way to the disk: the log writes what there is as soon as the write before it ends.
//! Where it has not come to the end of one for [`LATE_TICKS`], where the disk is full and where the shard stops nothing is
//! promised, and acknowledgements wait for the disks again.
//!
//! Why such a record outlives the leader. Let it be received by a quorum Q, in the term of its leader. Who is elected in a
//! later term has the votes of another quorum, and some member of Q is in both.
//! - That member voted by the end of the log in its memory, which the record is in: it had received it before, since after
//!   its vote it takes nothing more from the older term. So the elected log is at least as new as one with the record, and
//!   as nothing of a later term lies between, it has the record, by Raft's log matching.
//! - Its vote left once all that it held then was durable (I1 and I2 of `replication::ready`), and so did the candidacy. So a
//!   later crash takes the record from neither: it is on two disks before the election is decided.
//! - What is left is that it had received the record and forgotten it since: it ended and began again before its sync. In
//!   Raft no replica forgets what it has answered for. So a replica that may have forgotten what it promised says so for
//!   [`FORGETFUL_TICKS`] with whatever it says in elections ([`FORGETFUL`]), and those who do not say the like do not listen:
//!   who is elected meanwhile has the votes of a quorum that remembers, or of one that has forgotten as a whole. Two
//!   exceptions cost nothing: a refusal, and who stands because its leader asked it to, as that one has handed it all.
//!
//! Which topics are relaxed nodes learn one after the other, from their catalogs. That matters at one place alone, where a
//! replica says that it may have forgotten: those who listen need not know what topic it is about, and the leader need not
//! know who knows. So it is enough that who has promised memory, as leader or by a mark, says so in its next life:
//! - It promised as its catalog told it, in its last life or before. A catalog never forgets that a topic was relaxed
//!   (`Topic::was_relaxed`), and after a start none is shown that is older than the start (I4 of `group`). So the first one
//!   that is shown then says of the topic that it is relaxed, or was, whatever became of it meanwhile, unless it is deleted.
//! - It promised once its creation was durable, so that it is found in its log at the start.
//! - Until that is shown every replica with records is taken for one that may have forgotten (I4), and after it those
//!   whose topics are, or were, relaxed. The others have promised nothing, and never say again that they forgot:
//!   while an election is decided no candidate begins to listen to those who have. (One that forgets when its disk is
//!   full is no candidate any more.)
//!
//! So a record is lost only if a majority of the voters fails at the same time, before it is on the disks of one: each of
//! them crashes, or cannot be reached by the others for [`FORGETFUL_TICKS`], and one at least crashes; who has crashed counts
//! for [`FORGETFUL_TICKS`] after its start. Without a crash none is lost, and one that crashes alone takes none with it, the
//! leader or another.
//!
//! - I1: a mark counts in the term in which it was given, at the leader of that, for voters; with the term, and with the
//!   link to its node, it is forgotten.
//! - I2: what is asked of more than a quorum (`min.insync.replicas`) is asked here, too, of memories.
//! - I3: what a batch waits for is settled when it is proposed: who changes the topic changes what comes after.
//! - I4: after a start a replica may have forgotten what it promised until [`ShardCore::set_relaxed`] says otherwise.

use std::collections::BTreeMap;

use chronik_engine::ids::{GroupId, RaftIndex, ReplicaId};
use chronik_replication::wire::ReceivedMark;
use chronik_replication::{Message, MessageType};

use super::group::{Group, acked};
use super::ticks::Tick;
use super::{RequiredAcks, ShardCore, Shared, Token, live_mut};
use crate::catalog::Durability;

/// A log that has been waiting for its disk for so many ticks is late: 100 ms at most.
pub(super) const LATE_TICKS: u64 = 2;
/// For so long after its start a replica may have forgotten what others believe it has received: 3 s. Far more than those
/// who remember need to find each other and elect one of them.
const FORGETFUL_TICKS: u64 = 60;
/// What a replica that may have forgotten says of itself, in a field of votes that Raft does not use without priorities.
const FORGETFUL: i64 = 1;

/// What a shard goes by when it promises its memory.
#[derive(Debug, Default)]
pub(super) struct Promises {
    /// The disk has left the log without an answer for a while.
    pub(super) is_log_late: bool,
    pub(super) is_disk_full: bool,
    pub(super) is_ending: bool,
    /// Acknowledgements that were given for memory.
    pub(super) acks: u64,
}

impl Promises {
    fn may_be_given(&self) -> bool {
        !self.is_log_late && !self.is_disk_full && !self.is_ending
    }
}

/// What a leader knows of the memory of others, in its term (I1).
#[derive(Debug, Default)]
pub(super) struct Received {
    marks: Vec<(ReplicaId, RaftIndex)>,
    /// Who waits for this leader's memory is answered up to here, and who waits for that of a quorum.
    released: RaftIndex,
    released_to_all: RaftIndex,
    /// Somebody may wait beyond that.
    is_awaited: bool,
}

impl Received {
    /// Up to where a replica has received the log, as far as it has said so.
    pub(super) fn of(&self, replica: ReplicaId) -> RaftIndex {
        let mark = self.marks.iter().find(|(of, _)| *of == replica);
        mark.map_or(RaftIndex(0), |(_, index)| *index)
    }

    fn note(&mut self, replica: ReplicaId, index: RaftIndex) {
        match self.marks.iter_mut().find(|(of, _)| *of == replica) {
            Some((_, known)) => *known = index.max(*known),
            None => self.marks.push((replica, index)),
        }
    }

    /// The link to it is gone.
    pub(super) fn forget(&mut self, replica: ReplicaId) {
        self.marks.retain(|(of, _)| *of != replica);
    }
}

impl ShardCore {
    /// Says which groups acknowledge what a quorum has in memory, or once did, and what they promise now: all of them each
    /// time, as one catalog after the other has them. The first of those must be no older than this core (I4).
    pub fn set_relaxed(&mut self, relaxed: &BTreeMap<GroupId, Durability>) {
        if relaxed.is_empty() && self.relaxed_count == Some(0) {
            return;
        }
        self.relaxed_count = Some(relaxed.len());
        for (id, group) in &mut self.groups {
            group.durability = relaxed.get(id).copied();
            if group.durability.is_none() {
                group.forgot_at = None;
            }
        }
    }

    /// Takes what replicas on other nodes have received.
    pub fn take_received(&mut self, marks: impl IntoIterator<Item = ReceivedMark>) {
        for mark in marks {
            if let Some(group) = live_mut(&mut self.groups, mark.group) {
                group.take_received(&mark, &mut self.shared);
            }
        }
    }

    /// The shard is about to stop: what comes from now on may never be written.
    pub fn end_promises(&mut self) {
        self.shared.promises.is_ending = true;
    }

    /// Lets replicas that may have forgotten say so.
    pub(super) fn mark_forgetful(&mut self) {
        let now = self.shared.ticks.now;
        for sent in &mut self.shared.effects.messages {
            let is_forgetful =
                || self.groups.get(&sent.group).is_some_and(|group| group.is_forgetful(now));
            if counts_in_elections(&sent.message) && is_forgetful() {
                sent.message.priority = FORGETFUL;
            }
        }
    }
}

/// Whether it asks for a vote or gives one.
fn counts_in_elections(message: &Message) -> bool {
    match message.get_msg_type() {
        MessageType::MsgRequestPreVoteResponse | MessageType::MsgRequestVoteResponse => {
            !message.reject
        }
        // Only of a candidate that its leader asked to stand it says why.
        MessageType::MsgRequestPreVote | MessageType::MsgRequestVote => message.context.is_empty(),
        _ => false,
    }
}

impl Group {
    /// Whether it may have forgotten what others believe that it remembers.
    fn is_forgetful(&self, now: Tick) -> bool {
        self.forgot_at.is_some_and(|at| now.since(at) < FORGETFUL_TICKS)
    }

    /// What it had in memory alone is gone.
    pub(super) fn note_forgotten(&mut self, now: Tick) {
        // Else it has promised nothing in this life.
        if self.durability.is_some() {
            self.forgot_at = Some(now);
        }
    }

    /// Whether this replica, which remembers, does not listen to one that may have forgotten what it is asked for.
    pub(super) fn ignores(&self, message: &Message, now: Tick) -> bool {
        message.priority == FORGETFUL && counts_in_elections(message) && !self.is_forgetful(now)
    }

    /// As follower, tells the leader what has come of it and is not on the disk.
    pub(super) fn tell_received(&mut self, shared: &mut Shared) {
        let is_relaxed = self.durability == Some(Durability::Relaxed);
        // One that begins anew because its creation was lost would not know that it had promised anything.
        if !is_relaxed || !self.is_created() || !shared.promises.may_be_given() {
            return;
        }
        if let Some(received) = self.raft.take_received() {
            shared.effects.received.push(ReceivedMark {
                group: self.id,
                from: self.raft.replica(),
                to: received.leader,
                term: received.term,
                index: received.index,
            });
        }
    }

    fn take_received(&mut self, mark: &ReceivedMark, shared: &mut Shared) {
        let meta = self.raft.meta();
        let votes = meta.voters.contains(&mark.from) || meta.voters_outgoing.contains(&mark.from);
        let is_ours = self.raft.is_leader()
            && mark.term == self.raft.term()
            && mark.to == self.raft.replica()
            && mark.index <= self.raft.last_index();
        if votes && is_ours {
            self.received.note(mark.from, mark.index);
            self.release_received(shared);
        }
    }

    /// The last entry that enough replicas have in memory (I2).
    fn received_by_quorum(&self) -> RaftIndex {
        let wanted = self.held.as_ref().map_or(0, |held| held.holders_min());
        self.raft.received_by_quorum(wanted, |replica| self.received.of(replica))
    }

    /// Whether what somebody waits for has come about, for an entry that is not applied.
    pub(super) fn is_met(&self, acks: RequiredAcks, index: RaftIndex, shared: &Shared) -> bool {
        let is_durable = index <= self.raft.last_durable().index;
        let promises = shared.promises.may_be_given();
        match acks {
            RequiredAcks::None | RequiredAcks::Leader => is_durable,
            RequiredAcks::LeaderReceived => is_durable || promises,
            RequiredAcks::AllReceived => promises && index <= self.received_by_quorum(),
            RequiredAcks::All => false,
        }
    }

    /// Somebody waits for memory; or not.
    pub(super) fn await_received(&mut self, acks: RequiredAcks) {
        self.received.is_awaited |= acks.is_relaxed();
    }

    /// To be called when a batch has got its place: this leader's memory has it, which may be all that is waited for.
    pub(super) fn release_proposed(&mut self, acks: RequiredAcks, shared: &mut Shared) {
        self.await_received(acks);
        if acks == RequiredAcks::LeaderReceived || self.raft.leads_alone() {
            self.release_received(shared);
        }
    }

    /// Acknowledges what enough replicas have received by now, in the order of the log. To be called after everything that
    /// may have told of that.
    pub(super) fn release_received(&mut self, shared: &mut Shared) {
        if !self.received.is_awaited || !shared.promises.may_be_given() {
            return;
        }
        let (own, all) = (self.raft.last_index(), self.received_by_quorum());
        self.release_held_received(all, shared);
        self.release_between(RequiredAcks::LeaderReceived, self.received.released, own, shared);
        self.release_between(RequiredAcks::AllReceived, self.received.released_to_all, all, shared);
        let received = &mut self.received;
        received.released = own;
        received.released_to_all = all.max(received.released_to_all);
        received.is_awaited =
            self.held.is_some() || self.in_flight.back().is_some_and(|last| last.index > all);
    }

    /// Answers those who wait for this of an entry after `from`, up to `up_to`.
    fn release_between(
        &mut self,
        acks: RequiredAcks,
        from: RaftIndex,
        up_to: RaftIndex,
        shared: &mut Shared,
    ) {
        let first = self.in_flight.partition_point(|own| own.index <= from);
        let end = self.in_flight.partition_point(|own| own.index <= up_to);
        for at in first..end {
            let appended = self.appended(&self.in_flight[at]);
            let own = &mut self.in_flight[at];
            let is_met = |waiting: &(Token, RequiredAcks)| waiting.1 == acks;
            let waiting = own.waiting.take_if(|waiting| is_met(waiting));
            let duplicates = own.duplicates.extract_if(.., |waiting| is_met(waiting));
            for (token, _) in waiting.into_iter().chain(duplicates) {
                shared.promises.acks += 1;
                shared.effects.replies.push((token, acked(appended)));
            }
        }
    }
}
