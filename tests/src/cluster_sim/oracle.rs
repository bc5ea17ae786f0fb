//! What must be true of a cluster, looked at from outside: messages as they leave, blocks as they become durable, answers
//! as they are given.
//!
//! - P1, P6: what is acknowledged, applied, read, or named as committed lies on the disks of a majority, once and for
//!   all. The first time that something counts as committed it becomes *chosen*, if a majority's disks hold it.
//! - P2, P5: no disk holds something else in the place of what is chosen, once its replica has applied it; nothing that
//!   is chosen is removed. Term, vote and commit never go back, and a restart finds what was durable.
//! - P5: a term has one leader; a replica votes once in a term.
//! - P16: no message leaves that says more than the disk of its sender holds.
//! - Catalogs are the same at the same index, and what their log says, read from the beginning; so are producers.

use std::collections::{BTreeMap, BTreeSet};

use chronik_engine::batch::BatchHeader;
use chronik_engine::ids::{GroupId, Offset, RaftIndex, ReplicaId, Term};
use chronik_engine::wal::RecoveredGroup;
use chronik_engine::wal::record::{EntryKind, GroupCheckpoint, WalRecord};
use chronik_replication::wire::Seat;
use chronik_replication::{Members, Message, MessageType, PeerMessage};
use chronik_shards::catalog::{Catalog, CatalogCommand, PartitionKind, PartitionTag};

use super::configs::{Config, Configs};
use super::offsets::OffsetsOracle;
use super::replica::{Known, Replica};
use super::{Check, Violation};
use crate::must;
use crate::sim::oracle::{ReadBatch, check_producers};

/// One group.
#[derive(Debug, Default)]
pub(super) struct GroupOracle {
    is_of_groups: bool,
    pub(super) replicas: BTreeMap<ReplicaId, Replica>,
    pub(super) configs: Configs,
    /// The entry with index 1 first.
    chosen: Vec<Known>,
    leaders: BTreeMap<Term, ReplicaId>,
    votes: BTreeMap<(Term, ReplicaId), ReplicaId>,
    /// What each replica is known to have applied.
    applied: BTreeMap<ReplicaId, usize>,
    /// Replicas on read-only nodes.
    pub(super) readers: BTreeSet<ReplicaId>,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Oracle {
    pub(super) groups: BTreeMap<GroupId, GroupOracle>,
    pub(super) offsets: OffsetsOracle,
    /// Which replica of a group a seat has.
    pub(super) seats: BTreeMap<(Seat, GroupId), ReplicaId>,
    /// The catalog after each entry of its log, and its checksum.
    catalogs: Vec<(Catalog, u32)>,
    /// Entries that were replaced on some disk.
    pub truncations: u64,
}

fn place(index: RaftIndex) -> usize {
    usize::try_from(index.0).unwrap_or(usize::MAX)
}

impl GroupOracle {
    pub(super) fn chosen(&self) -> &[Known] {
        &self.chosen
    }

    /// The configuration that the committed log says, and those that entries behind it would bring.
    pub(super) fn configs_in_force(&self) -> Vec<Config> {
        let newest = self.configs.newest().unwrap_or_default();
        let mut all = vec![newest.clone()];
        for disk in self.replicas.values().filter(|disk| !disk.is_lost) {
            let mut config = newest.clone();
            let behind = disk.entries.iter().skip(self.chosen.len());
            for known in behind.filter(|known| known.kind == EntryKind::ConfChange) {
                config = config.after(&known.payload).unwrap_or_default();
                all.push(config.clone());
            }
        }
        all
    }

    /// Everything up to here counts as committed: then the disks of a majority hold it (P1).
    fn choose(&mut self, id: GroupId, up_to: usize, who: &str) -> Check {
        while self.chosen.len() < up_to {
            let at = self.chosen.len();
            let entries = || self.replicas.values().filter_map(|replica| replica.entries.get(at));
            let is_held = |entry: &&Known| {
                let holds = |replica: &Replica| {
                    replica.entries.get(at).is_some_and(|other| other.is_same(entry))
                };
                let holds = |replica| self.replicas.get(&replica).is_some_and(holds);
                // One of two that went with its disk is answered for by the other.
                let is_lost = |replica| {
                    self.replicas.get(&replica).is_some_and(|disk: &Replica| disk.is_lost)
                };
                let stands_in = |replica| self.configs.other_of_two(replica).is_some_and(holds);
                self.configs.may_commit(|replica| {
                    holds(replica) || (is_lost(replica) && stands_in(replica))
                })
            };
            let Some(chosen) = entries().find(is_held).cloned() else {
                let what = format!(
                    "P1: group {id}: entry {} counts as committed ({who}), the disks of no quorum of {:?} hold it",
                    at + 1,
                    self.configs.newest()
                );
                return Err(Violation { what });
            };
            self.configs.committed(at + 1, &chosen)?;
            if chosen.kind == EntryKind::ConfChange
                && let Some(config) = self.configs.newest()
            {
                self.check_readers(id, &config)?;
            }
            self.chosen.push(chosen);
        }
        Ok(())
    }

    /// How many entries make the log end at `offset` or after it.
    fn choose_to_offset(&mut self, id: GroupId, offset: Offset, who: &str) -> Check<usize> {
        if offset.0 == 0 {
            return Ok(0);
        }
        while self.chosen.last().is_none_or(|last| last.end_offset < offset) {
            self.choose(id, self.chosen.len() + 1, who)?;
        }
        Ok(self.chosen.partition_point(|known| known.end_offset < offset) + 1)
    }
}

impl Oracle {
    fn group(&mut self, id: GroupId) -> &mut GroupOracle {
        self.groups.entry(id).or_default()
    }

    /// So many entries count as committed.
    pub(super) fn choose(&mut self, id: GroupId, up_to: usize, who: &str) -> Check {
        self.group(id).choose(id, up_to, who)
    }

    /// These records are durable on a seat.
    pub fn persisted(&mut self, seat: Seat, records: &[WalRecord]) -> Check {
        for record in records {
            let id = record.group();
            let group = self.groups.entry(id).or_default();
            if let WalRecord::GroupCreated { meta, .. } = record {
                let kind = PartitionTag::decode(&meta.tag).map(|tag| tag.kind);
                group.is_of_groups = kind == Some(PartitionKind::Groups);
                group.configs.begin(meta.replica, &meta.voters);
                let before = group.replicas.insert(meta.replica, Replica::created());
                must!(before.is_none(), "P26: replica {} of {id} is made twice", meta.replica);
                self.seats.insert((seat, id), meta.replica);
                continue;
            }
            self.truncations += u64::from(matches!(record, WalRecord::TruncateAfter { .. }));
            let replica = self.seats.get(&(seat, id));
            let replica = replica.and_then(|replica| group.replicas.get_mut(replica));
            let Some(replica) = replica else {
                return Err(Violation { what: format!("{seat}: {id} is not there: {record:?}") });
            };
            replica.take(record, &group.chosen).map_err(|v| at_place(seat, id, v))?;
        }
        Ok(())
    }

    /// A restart of a seat has found these groups, when its log had `in_flight` to write (P5, P13).
    pub fn recovered(
        &mut self,
        seat: Seat,
        found: &[RecoveredGroup],
        in_flight: &[WalRecord],
    ) -> Check {
        let without = self.holds(seat, found);
        let Err(first) = without else { return Ok(()) };
        if in_flight.is_empty() {
            return Err(first);
        }
        self.persisted(seat, in_flight)?;
        self.holds(seat, found).map_err(|second| Violation {
            what: format!("{}; and with what was in flight: {}", first.what, second.what),
        })
    }

    /// Whether the log of a seat, as a start finds it, is what it has said is durable.
    pub fn holds(&self, seat: Seat, found: &[RecoveredGroup]) -> Check {
        let mut found: BTreeMap<GroupId, &RecoveredGroup> =
            found.iter().map(|group| (group.checkpoint.group, group)).collect();
        for (id, replica) in self.replicas_of(seat) {
            let now = found.remove(&id);
            must!(now.is_some() != replica.is_deleted, "P5: {seat}: {id} is {now:?}");
            if let Some(now) = now {
                replica.compare(now).map_err(|v| at_place(seat, id, v))?;
            }
        }
        must!(found.is_empty(), "P5: {seat} has groups that nobody made: {:?}", found.keys());
        Ok(())
    }

    fn replicas_of(&self, seat: Seat) -> impl Iterator<Item = (GroupId, &Replica)> {
        let here = self.seats.iter().filter(move |((of, _), _)| *of == seat);
        here.filter_map(|((_, id), replica)| {
            Some((*id, self.groups.get(id)?.replicas.get(replica)?))
        })
    }

    /// A core goes on from these checkpoints after a restart, before anybody has said anything to it.
    pub fn started(&self, seat: Seat, checkpoints: &[GroupCheckpoint]) -> Check {
        for checkpoint in checkpoints {
            let id = checkpoint.group;
            let found = self.replicas_of(seat).find(|(group, _)| *group == id);
            let Some((_, replica)) = found else { continue };
            replica.compare_hard_state(checkpoint.hard_state).map_err(|v| at_place(seat, id, v))?;
            let (last, ours) = (checkpoint.last.index, replica.last());
            must!(last == ours, "P5: {seat} {id}: the log ended at {ours}, goes on at {last}");
        }
        Ok(())
    }

    /// A replica leads.
    pub fn elected(&mut self, id: GroupId, term: Term, replica: ReplicaId) -> Check {
        let first = *self.group(id).leaders.entry(term).or_insert(replica);
        must!(first == replica, "P5: {id}: {first} and {replica} lead in {term}");
        must!(
            !self.is_reader(id, replica),
            "readers: {id}: {replica}, for readers alone, leads in {term}"
        );
        Ok(())
    }

    /// A message leaves (P16).
    pub fn leaves(&mut self, PeerMessage { group: id, message }: &PeerMessage) -> Check {
        let kind = message.get_msg_type();
        if matches!(kind, MessageType::MsgRequestPreVote | MessageType::MsgRequestPreVoteResponse) {
            return Ok(()); // they promise nothing
        }
        let from = ReplicaId(message.from);
        let group = self.group(*id);
        let Some(replica) = group.replicas.get(&from) else {
            return Err(Violation {
                what: format!("P16: {id}: {from} is on no disk: {message:?}"),
            });
        };
        check_durable(replica, message)
            .map_err(|v| Violation { what: format!("P16: {id}, {from}: {}", v.what) })?;
        match kind {
            MessageType::MsgRequestVote => self.votes_for(*id, message, from),
            MessageType::MsgRequestVoteResponse if !message.reject => {
                self.votes_for(*id, message, ReplicaId(message.to))
            }
            MessageType::MsgAppend | MessageType::MsgHeartbeat => {
                self.elected(*id, Term(message.term), from)?;
                let up_to = place(RaftIndex(message.commit));
                self.group(*id).choose(*id, up_to, "a leader says so")
            }
            MessageType::MsgSnapshot => {
                self.elected(*id, Term(message.term), from)?;
                let index = RaftIndex(message.get_snapshot().get_metadata().index);
                self.group(*id).choose(*id, place(index), "it is in a snapshot")
            }
            _ => Ok(()),
        }
    }

    fn votes_for(&mut self, id: GroupId, message: &Message, candidate: ReplicaId) -> Check {
        let (term, voter) = (Term(message.term), ReplicaId(message.from));
        let first = *self.group(id).votes.entry((term, voter)).or_insert(candidate);
        must!(first == candidate, "P16: {id}: {voter} votes for {first} and {candidate} in {term}");
        Ok(())
    }

    /// A batch is acknowledged to somebody who wants it on all replicas (P1).
    pub fn acked(&mut self, id: GroupId, base_offset: Offset, batch: &[u8]) -> Check {
        let group = self.group(id);
        let after = base_offset.plus(1);
        let index = group.choose_to_offset(id, after, "a producer was told so")?;
        let chosen = &group.chosen[index - 1];
        let sent = BatchHeader::read(batch).map(|header| header.crc);
        let held = BatchHeader::read(&chosen.payload).map(|header| header.crc);
        let same = chosen.base_offset == base_offset && sent == held;
        must!(same, "P1: {id}: acknowledged at {base_offset}, where {chosen:?} is committed");
        Ok(())
    }

    /// A replica shows its records up to here, to readers or to its state machine (P2, P6).
    pub fn applied(&mut self, seat: Seat, id: GroupId, high_watermark: Offset) -> Check {
        let Some(replica) = self.seats.get(&(seat, id)).copied() else { return Ok(()) };
        let group = self.group(id);
        let up_to = group.choose_to_offset(id, high_watermark, "a replica has applied it")?;
        let from = group.applied.insert(replica, up_to).unwrap_or(0).min(up_to);
        let Some(disk) = group.replicas.get(&replica) else { return Ok(()) };
        for at in from..up_to {
            let (held, chosen) = (disk.entries.get(at), &group.chosen[at]);
            let same = held.is_some_and(|held| held.is_same(chosen));
            let index = at + 1;
            must!(same, "P2: {seat} {id}: entry {index} is {held:?}, committed is {chosen:?}");
        }
        Ok(())
    }

    /// Whether nobody else than this seat serves reads in this term.
    pub fn serves(&self, seat: Seat, id: GroupId, term: Term) -> Check {
        let replica = self.seats.get(&(seat, id)).copied();
        let leader = self.groups.get(&id).and_then(|group| group.leaders.get(&term)).copied();
        must!(replica == leader, "P7: {seat} serves {id} in {term}, its leader is {leader:?}");
        Ok(())
    }

    /// The state machine of a replica is what its log says.
    pub fn check_state(&mut self, seat: Seat, checkpoint: &GroupCheckpoint) -> Check {
        let id = checkpoint.group;
        let applied = place(checkpoint.applied);
        let group = self.group(id);
        group.choose(id, applied, "a state machine has it")?;
        let members = Members::of(&checkpoint.meta);
        // Who is about to come begins with members of another time.
        let config = group.configs.at(applied).filter(|c| c.has(checkpoint.meta.replica));
        let agrees = config.is_none_or(|config| config.is(&members));
        must!(agrees, "P25: {seat} {id}: at {applied} it has {members:?}, is {config:?}");
        if id == GroupId::META {
            return self.check_catalog(seat, applied, &checkpoint.state);
        }
        if group.is_of_groups {
            let checked = self.check_groups(id, applied, &checkpoint.state);
            return checked.map_err(|v| at_place(seat, id, v));
        }
        let batches: Vec<ReadBatch> = group.chosen[..applied]
            .iter()
            .filter(|known| known.kind == EntryKind::Batch)
            .map(|known| ReadBatch {
                base_offset: known.base_offset,
                epoch: known.term,
                bytes: known.payload.clone(),
                is_patched: false,
            })
            .collect();
        check_producers(id, &checkpoint.state, &batches).map_err(|v| at_place(seat, id, v))
    }

    fn check_catalog(&mut self, seat: Seat, applied: usize, state: &[u8]) -> Check {
        let log = self.groups.get(&GroupId::META).map_or(&[][..], |group| &group.chosen);
        if self.catalogs.is_empty() {
            self.catalogs.push((Catalog::new(), checksum(&Catalog::new())?));
        }
        while self.catalogs.len() <= applied {
            let at = self.catalogs.len() - 1;
            let (mut catalog, mut sum) = self.catalogs[at].clone();
            if log[at].kind == EntryKind::Command {
                let (_, command) = CatalogCommand::decode_named(&log[at].payload)
                    .map_err(|error| Violation { what: format!("entry {at} of META: {error}") })?;
                catalog.apply(&command);
                sum = checksum(&catalog)?;
            }
            self.catalogs.push((catalog, sum));
        }
        let (catalog, sum) = &self.catalogs[applied];
        // Before its first command a catalog may have no state at all.
        let found =
            if state.is_empty() { checksum(&Catalog::new())? } else { crc32fast::hash(state) };
        must!(found == *sum, "{seat}: its catalog at {applied} is not {catalog:?}");
        Ok(())
    }

    /// The catalog as its committed log says.
    pub fn catalog(&self) -> Option<&Catalog> {
        self.catalogs.last().map(|(catalog, _)| catalog)
    }

    /// Who belongs to a group, as its committed log says.
    pub(super) fn config(&self, id: GroupId) -> Option<Config> {
        self.groups.get(&id)?.configs.newest()
    }

    /// At the end: the disks of all replicas hold what is chosen, and nothing else.
    pub fn converged(&mut self, id: GroupId) -> Check {
        let group = self.group(id);
        group.replicas.retain(|_, disk| !disk.is_lost && !disk.is_deleted);
        let ends: BTreeSet<usize> = group.replicas.values().map(|r| r.entries.len()).collect();
        must!(ends.len() == 1, "{id}: the replicas' logs end at {ends:?}");
        let end = ends.first().copied().unwrap_or(0);
        group.choose(id, end, "all replicas have it")?;
        for (replica, disk) in &group.replicas {
            let same = disk.entries.iter().zip(&group.chosen).all(|(a, b)| a.is_same(b));
            must!(same, "P2: {id}: the log of {replica} is not the others'");
        }
        Ok(())
    }

    /// The offset after the last record that is chosen.
    pub fn committed_to(&self, id: GroupId) -> Offset {
        let chosen = self.groups.get(&id).and_then(|group| group.chosen.last());
        chosen.map_or(Offset(0), |known| known.end_offset)
    }

    /// The checksums of the batches that are committed.
    pub fn committed_batches(&self, id: GroupId) -> BTreeSet<u32> {
        let chosen = self.groups.get(&id).map_or(&[][..], |group| &group.chosen);
        let headers = chosen.iter().filter_map(|known| BatchHeader::read(&known.payload));
        headers.map(|header| header.crc).collect()
    }

    /// What the disk of a seat holds of a group.
    pub fn replica_at(&self, seat: Seat, id: GroupId) -> Option<&Replica> {
        let replica = self.seats.get(&(seat, id))?;
        self.groups.get(&id)?.replicas.get(replica)
    }
}

fn checksum(catalog: &Catalog) -> Check<u32> {
    let state = catalog.encode();
    let state = state.map_err(|error| Violation { what: format!("a catalog: {error}") })?;
    Ok(crc32fast::hash(&state))
}

fn at_place(seat: Seat, id: GroupId, violation: Violation) -> Violation {
    Violation { what: format!("{seat} {id}: {}", violation.what) }
}

/// What a message says must be on its sender's disk. What is of an older term than the disk is said of a past that the
/// disk has moved on from.
fn check_durable(replica: &Replica, message: &Message) -> Check {
    let (durable, term) = (replica.hard_state, Term(message.term));
    must!(durable.term >= term, "{message:?} leaves, its disk has {durable:?}");
    if durable.term > term {
        return Ok(());
    }
    let voted_for = |candidate: u64| durable.vote == ReplicaId(candidate);
    let holds = match message.get_msg_type() {
        MessageType::MsgRequestVote => voted_for(message.from),
        MessageType::MsgRequestVoteResponse => message.reject || voted_for(message.to),
        MessageType::MsgAppendResponse => {
            message.reject || RaftIndex(message.index) <= replica.last()
        }
        _ => true,
    };
    must!(holds, "{message:?} leaves, its disk has {durable:?} and ends at {}", replica.last());
    Ok(())
}
