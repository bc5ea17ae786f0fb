//! One group: Raft, the state machine that its log drives, and what its leader has in flight.
//!
//! - I1: while this replica leads, `in_flight` holds its proposals that are not applied, in the order of their indices;
//!   else it is empty.
//! - I2: a leader proposes only once everything before its own term is applied, so that the producers' state and the
//!   entries in flight together are the whole log.
//! - I3: of a group that is being deleted nothing is applied any more but a snapshot that has become durable; it stays
//!   until the deletion is durable, because until then checkpoints must name it, as the log has it.
//! - I4: a catalog is shown to the shard only once it is known to be no older than the shard's start: by a leader that is
//!   ready, or when a command that this shard proposed since has come back to it. After a restart the commit index lags
//!   behind what was acknowledged, and a shard that took an old catalog for the new one would make groups again that
//!   were deleted since.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use chronik_engine::batch::{BatchHeader, TimestampType};
use chronik_engine::ids::{GroupId, Offset, RaftIndex, ReplicaId, Term};
use chronik_engine::segment::Manifest;
use chronik_engine::wal::RecoveredGroup;
use chronik_engine::wal::record::{EntryKind, GroupCheckpoint, GroupMeta};
use chronik_replication::{GroupConfig, RaftGroup, RecoveredLog};

use super::held::Held;
use super::in_sync::LagMarks;
use super::log_start::PartitionCommand;
use super::peers::{EarlyCampaign, GroupFetch};
use super::producers::{ProducerBatch, Producers};
use super::read_index::Reads;
use super::relaxed::Received;
use super::ticks::Tick;
use super::{
    Ack, Appended, CoreConfig, CoreError, FetchError, PRODUCERS_PER_PARTITION_MAX, ProduceError,
    ProduceResult, RequiredAcks, Shared, Token,
};
use crate::catalog::{Catalog, CatalogCommand, Durability, PartitionKind, PartitionTag};
use crate::groups::{GroupCommand, GroupStore};

/// What a group's log drives.
#[derive(Debug)]
pub(super) enum Machine {
    /// A partition: its records lie in the log, only its producers are state.
    Partition(Producers),
    /// The META group.
    Catalog(Arc<Catalog>),
    /// A partition of `__consumer_offsets`: its log has no records.
    Groups(Box<GroupStore>),
}

/// The term that this replica leads.
#[derive(Debug, Clone, Copy)]
struct Leadership {
    term: Term,
    /// The entry with which the term began.
    first_index: RaftIndex,
}

/// Whether a group is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// Its creation is on its way to the disk.
    Creating,
    Live,
    /// Its deletion is on its way to the disk; `created` tells whether its creation is durable.
    Deleting {
        created: bool,
    },
}

/// A proposal of this leader that is not applied.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) index: RaftIndex,
    pub(super) base_offset: Offset,
    /// Who waits for it; nobody any more once they are answered.
    pub(super) waiting: Option<(Token, RequiredAcks)>,
    /// Duplicates of it that came meanwhile.
    pub(super) duplicates: Vec<(Token, RequiredAcks)>,
    pub(super) bytes: usize,
    /// What its bytes keep alive.
    pub(super) retained_bytes: usize,
    pub(super) log_append_time_ms: i64,
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) id: GroupId,
    pub(super) raft: RaftGroup,
    pub(super) machine: Machine,
    pub(super) log_start_offset: Offset,
    pub(super) segments: Manifest,
    /// A record that cuts the log is on its way to the disk.
    pub(super) is_cutting: bool,
    pub(super) in_flight: VecDeque<InFlight>,
    /// Whether the group is in the list of dirty ones.
    pub(super) is_dirty: bool,
    /// Whether the group is in the list of those that have a commit to tell.
    pub(super) tells_commit: bool,
    /// What was proposed and not handed out by Raft.
    pub(super) unstaged_bytes: usize,
    pub(super) unstaged_entries: usize,
    /// Whether the shard has been shown the catalog as it is, but for what nobody sees of it.
    pub(super) is_announced: bool,
    /// Whether the state machine is no older than the shard's start (I4).
    pub(super) is_current: bool,
    /// Candidacies before the election timeout.
    pub(super) early: Option<EarlyCampaign>,
    /// Replicas that went with their disks.
    pub(super) lost: BTreeSet<ReplicaId>,
    /// As leader, what replicas in sync hold.
    pub(super) lag_marks: LagMarks,
    /// Those who wait for a quorum before they read; boxed, as most groups have none.
    pub(super) reads: Option<Box<Reads>>,
    /// Acknowledgements that wait for more than a quorum.
    pub(super) held: Option<Box<Held>>,
    /// What acknowledgements of its topic promise, where that is or once was memory only.
    pub(super) durability: Option<Durability>,
    /// As leader, what others have in memory.
    pub(super) received: Received,
    /// When what was in memory went, and with it what this replica may have promised; in this life of the process.
    pub(super) forgot_at: Option<Tick>,
    /// Up to where the group has had its ticks.
    pub(super) ticked: Tick,
    /// Whether the group is in the list of those that get each tick.
    pub(super) is_restless: bool,
    led: Option<Leadership>,
    life: Life,
}

impl Group {
    fn new(id: GroupId, raft: RaftGroup, machine: Machine, life: Life) -> Group {
        Group {
            id,
            raft,
            machine,
            log_start_offset: Offset(0),
            segments: Manifest::default(),
            is_cutting: false,
            in_flight: VecDeque::new(),
            is_dirty: false,
            tells_commit: false,
            unstaged_bytes: 0,
            unstaged_entries: 0,
            is_announced: false,
            is_current: false,
            early: None,
            lost: BTreeSet::new(),
            lag_marks: LagMarks::default(),
            reads: None,
            held: None,
            durability: None,
            received: Received::default(),
            forgot_at: None,
            ticked: Tick::default(),
            is_restless: false,
            led: None,
            life,
        }
    }

    /// A new group with an empty log.
    pub(super) fn create(
        shared: &Shared,
        id: GroupId,
        meta: GroupMeta,
    ) -> Result<Group, CoreError> {
        let config = raft_config(&shared.config, id);
        let raft = RaftGroup::new(config, RecoveredLog::created(meta))
            .map_err(|source| CoreError::Group { group: id, source })?;
        let machine = Machine::restore(id, raft.meta(), &[], 0)?;
        Ok(Group { ticked: shared.ticks.now, ..Group::new(id, raft, machine, Life::Creating) })
    }

    /// A group as the log has it.
    pub(super) fn recover(
        config: &CoreConfig,
        recovered: RecoveredGroup,
        now_ms: i64,
    ) -> Result<Group, CoreError> {
        let RecoveredGroup { checkpoint, hard_state, entries, last, log_start, log_start_offset } =
            recovered;
        let id = checkpoint.group;
        let machine = Machine::restore(id, &checkpoint.meta, &checkpoint.state, now_ms)?;
        // What cannot be read is found now, and not when it is committed and every replica stops on it.
        for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Command) {
            machine.check_command(id, &entry.payload)?;
        }
        let log = RecoveredLog::from_checkpoint(&checkpoint, hard_state, log_start, entries, last);
        let raft = RaftGroup::new(raft_config(config, id), log)
            .map_err(|source| CoreError::Group { group: id, source })?;
        let has_batches = matches!(machine, Machine::Partition(_));
        let forgot_at = has_batches.then(Tick::default);
        Ok(Group { log_start_offset, forgot_at, ..Group::new(id, raft, machine, Life::Live) })
    }

    pub(super) fn is_live(&self) -> bool {
        !matches!(self.life, Life::Deleting { .. })
    }

    /// Whether the log knows of it.
    pub(super) fn is_created(&self) -> bool {
        matches!(self.life, Life::Live | Life::Deleting { created: true })
    }

    pub(super) fn on_created(&mut self) {
        self.life = match self.life {
            Life::Creating => Life::Live,
            Life::Deleting { .. } => Life::Deleting { created: true },
            Life::Live => unreachable!("group {} is created once", self.id),
        };
    }

    /// Ends the group for everybody but the log (I3).
    pub(super) fn delete(&mut self, shared: &mut Shared) {
        self.drop_in_flight(shared, ProduceError::UnknownPartition);
        self.fail_reads(FetchError::UnknownPartition, shared);
        self.led = None;
        self.life = Life::Deleting { created: self.is_created() };
    }

    pub(super) fn catalog(&self) -> Option<&Arc<Catalog>> {
        match &self.machine {
            Machine::Catalog(catalog) => Some(catalog),
            Machine::Partition(_) | Machine::Groups(_) => None,
        }
    }

    /// Up to here readers may see. Only a leader that [`Group::is_ready`] knows where that really is.
    pub(super) fn high_watermark(&self) -> Offset {
        self.raft.applied_end_offset()
    }

    /// Whether this replica takes proposals (I2).
    pub(super) fn can_propose(&self) -> bool {
        self.led.is_some_and(|led| self.raft.applied().next() >= led.first_index)
    }

    /// Whether this replica leads and its high watermark is up to date.
    pub(super) fn is_ready(&self) -> bool {
        self.led.is_some_and(|led| self.raft.applied() >= led.first_index)
    }

    pub(super) fn campaign_if_alone(&mut self, shared: &mut Shared) {
        if self.is_live() && self.raft.meta().voters == [self.raft.replica()] {
            self.raft.campaign();
            self.observe_leadership(shared);
            self.pump(shared);
        }
    }

    /// To be called after everything that may change who leads, before anything is proposed.
    pub(super) fn observe_leadership(&mut self, shared: &mut Shared) {
        let leads = self.raft.is_leader().then(|| self.raft.term());
        if leads == self.led.map(|led| led.term) {
            return;
        }
        self.drop_in_flight(shared, ProduceError::NotLeader);
        self.fail_reads(FetchError::NotLeader, shared);
        shared.waiters.wake_all(self.id, &mut shared.effects.wakes);
        self.is_announced = false;
        self.lag_marks = LagMarks::default();
        self.received = Received::default();
        let first_index = self.raft.last_index();
        self.led = leads.map(|term| Leadership { term, first_index });
        if let Some(term) = leads {
            shared.elections_won += 1;
            shared.effects.elected.push((self.id, term, self.raft.replica()));
            assert!(self.raft.term_at(first_index) == Some(term), "a term begins with an entry");
        }
    }

    /// The leader knows all that there was before its term, though its first entry is not applied yet.
    pub(super) fn lead_from_applied(&mut self) {
        if let Some(led) = &mut self.led {
            led.first_index = led.first_index.min(self.raft.applied());
        }
    }

    /// Answers whoever waits for an entry, and forgets what the leader assumed ahead of the log.
    pub(super) fn drop_in_flight(&mut self, shared: &mut Shared, error: ProduceError) {
        for entry in self.in_flight.drain(..) {
            shared.in_flight_bytes -= entry.bytes;
            let tokens = entry.waiting.into_iter().chain(entry.duplicates);
            shared.effects.replies.extend(tokens.map(|(token, _)| (token, Err(error))));
        }
        self.drop_held(shared, error);
        if let Machine::Partition(producers) = &mut self.machine {
            producers.roll_back();
        }
    }

    /// Does what Raft wants done, until it wants nothing more.
    pub(super) fn pump(&mut self, shared: &mut Shared) {
        if !self.is_live() {
            self.raft.finish_install(&mut shared.out);
            if let Some(snapshot) = shared.out.snapshot.take() {
                self.install_snapshot(&snapshot, shared);
            }
            return;
        }
        while self.raft.has_ready()
            || self.give_snapshot(shared)
            || self.begin_read_round()
            || self.tell_commit_at_once()
        {
            let first = shared.out.records.len();
            let number = self.raft.ready(&mut shared.out);
            self.unstaged_bytes = 0;
            self.unstaged_entries = 0;
            match number {
                Some(number) => shared.stage_ready(self.id, number, first),
                None => assert!(shared.out.records.len() == first, "records without a number"),
            }
            shared.out.role = None;
            shared.effects.messages.append(&mut shared.out.messages);
            self.observe_leadership(shared);
            if let Some(snapshot) = shared.out.snapshot.take() {
                let begun_ns = (shared.config.stopwatch_ns)();
                self.install_snapshot(&snapshot, shared);
                let ns = (shared.config.stopwatch_ns)().saturating_sub(begun_ns);
                let (index, bytes) = (snapshot.position.index, snapshot.state.len());
                shared.counted.installed(self.id, index, bytes, ns);
            }
            while let Some(confirmed) = shared.out.reads.pop() {
                self.on_read_confirmed(confirmed);
            }
            self.apply_committed(shared);
            self.pass_reads(shared);
        }
        self.release_held(shared);
        self.release_received(shared);
        self.tell_received(shared);
        self.note_commit_to_tell(shared);
        if self.raft.has_fetches() {
            self.raft.take_fetches(&mut shared.wanted);
            let group = self.id;
            let wanted = shared.wanted.drain(..).map(|fetch| GroupFetch { group, fetch });
            shared.effects.fetches.extend(wanted);
        }
    }

    pub(super) fn producers(&self) -> usize {
        match &self.machine {
            Machine::Partition(producers) => producers.len(),
            Machine::Catalog(_) | Machine::Groups(_) => 0,
        }
    }

    pub(super) fn expire_producers(&mut self, before_ms: i64, count_max: usize) {
        if let Machine::Partition(producers) = &mut self.machine {
            producers.expire(before_ms, count_max);
        }
    }

    pub(super) fn checkpoint(&self) -> GroupCheckpoint {
        let state = self.machine.encode();
        self.raft.checkpoint_parts().into_checkpoint(self.log_start_offset, state)
    }

    /// What the log has, its readers and the group's followers may want: it is cut before it may go.
    pub(super) fn first_index_needed(&self) -> RaftIndex {
        self.raft.log_start().index.next()
    }
}

impl Machine {
    pub(super) fn restore(
        group: GroupId,
        meta: &GroupMeta,
        state: &[u8],
        now_ms: i64,
    ) -> Result<Machine, CoreError> {
        if group == GroupId::META {
            let catalog =
                Catalog::decode(state).map_err(|source| CoreError::Catalog { group, source })?;
            return Ok(Machine::Catalog(Arc::new(catalog)));
        }
        if PartitionTag::decode(&meta.tag).is_some_and(|tag| tag.kind == PartitionKind::Groups) {
            let store =
                GroupStore::decode(state).map_err(|source| CoreError::Groups { group, source })?;
            return Ok(Machine::Groups(Box::new(store)));
        }
        Producers::decode(state, PRODUCERS_PER_PARTITION_MAX, now_ms)
            .map(Machine::Partition)
            .map_err(|source| CoreError::Producers { group, source })
    }

    /// Whether the state machine can apply this command.
    fn check_command(&self, group: GroupId, payload: &[u8]) -> Result<(), CoreError> {
        match self {
            Machine::Partition(_) => PartitionCommand::decode(payload)
                .map(drop)
                .map_err(|source| CoreError::PartitionCommand { group, source }),
            Machine::Catalog(_) => CatalogCommand::decode_named(payload)
                .map(drop)
                .map_err(|source| CoreError::Catalog { group, source }),
            Machine::Groups(_) => GroupCommand::decode(payload)
                .map(drop)
                .map_err(|source| CoreError::Groups { group, source }),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Machine::Partition(producers) => producers.encode(),
            Machine::Catalog(catalog) => match catalog.encode() {
                Ok(state) => state,
                Err(error) => unreachable!("encoding into memory does not fail: {error}"),
            },
            Machine::Groups(store) => match store.encode() {
                Ok(state) => state,
                Err(error) => unreachable!("encoding into memory does not fail: {error}"),
            },
        }
    }
}

/// Replicas of a group must draw different timeouts, and one that starts again others than before: the node's seed and
/// the group's number make them.
fn raft_config(config: &CoreConfig, group: GroupId) -> GroupConfig {
    GroupConfig::new(group, config.seed ^ group.0.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// What the state machine needs of a batch: nothing if no producer stands behind its sequence numbers.
pub(super) fn producer_batch(header: &BatchHeader) -> Option<ProducerBatch> {
    let named = header.producer_id >= 0 && header.base_sequence >= 0 && !header.is_control();
    named.then(|| ProducerBatch {
        producer_id: header.producer_id,
        epoch: header.producer_epoch,
        first_sequence: header.base_sequence,
        record_count: header.record_count.unsigned_abs(),
    })
}

/// The broker's time in a batch that bears it, else -1.
pub(super) fn log_append_time_ms(header: &BatchHeader) -> i64 {
    match header.timestamp_type() {
        TimestampType::LogAppendTime => header.max_timestamp_ms,
        TimestampType::CreateTime => -1,
    }
}

/// The result that a token of a batch gets.
pub(super) fn acked(appended: Appended) -> ProduceResult {
    Ok(Ack::Appended(appended))
}
