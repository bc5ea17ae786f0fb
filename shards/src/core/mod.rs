//! The sans-I/O core of a shard: all that must be right, and nothing that is fast or slow.
//!
//! It holds the Raft groups of the shard's partitions, and on shard 0 the META group with the catalog; it gives out
//! offsets, checks producers, knows what is committed and who waits for what. The shell feeds it with proposals, ticks
//! and "this block is durable", and does what [`Effects`] says. It owns no clock, file, socket, lock or randomness: the
//! same calls give the same answers, so a simulator can run it from a seed.
//!
//! | module | owns |
//! |---|---|
//! | `full` | a disk without room, and leaderships that go elsewhere |
//! | `group` | one group: Raft, its state machine, the leader's entries in flight |
//! | `alone` | groups that nobody else is a member of |
//! | `apply` | what becomes of committed entries |
//! | `produce` | checks and proposals |
//! | `commit` | blocks out, durability in, application of what is committed |
//! | `refusal` | batches for which the disk has no room |
//! | `lost` | groups of two whose other replica went with its disk |
//! | `log_start` | where a partition's log starts, and what may go before it |
//! | `segments` | what of a partition's log is in files of its own |
//! | `fill` | records that are copied from a leader before its snapshot is taken |
//! | `peers` | what is heard from replicas on other nodes, and groups whose leader is gone |
//! | `held` | acknowledgements that wait for more replicas than a quorum |
//! | `in_sync` | which replicas are in sync with their leader |
//! | `group_log` | the logs that hold the state of consumer groups |
//! | `read` | what may be read, and from where |
//! | [`reconcile`] | how a group gets the members that the catalog wants |
//! | `repair` | what other replicas have and this one cannot read any more |
//! | `read_index` | who waits for a quorum before they read |
//! | [`producers`] | sequence numbers of idempotent producers |
//! | `relaxed` | acknowledgements that promise memory, and who remembers |
//! | `stall` | a disk that hangs, and leaderships that go elsewhere |
//! | `ticks` | when a group gets its ticks |
//! | `transfer` | leadership that goes to a replica which is named |
//! | `waiters` | fetches that wait for data |
//!
//! Invariants:
//! - I1: every token is answered exactly once, whatever becomes of its entry.
//! - I2: an acknowledged entry is durable, and for acks=all committed; in memory where its topic asks for no more.
//! - I3: readers see only what is applied, which is committed and durable; never beyond.
//! - I4: a leader answers readers and names a high watermark only once an entry of its own term is applied: before
//!   that its commit index may lag behind what was acknowledged.
//! - I5: checkpoints say only what is durable, of every group whose creation is durable and whose deletion is not.
//! - I6: records leave for the log in the order in which they arose.
//! - I7: a replica that follows shows consumers all that was committed, and that they could have read elsewhere, longer ago
//!   than [`CoreConfig::follower_read_staleness_max_ms`] by the clock of its node.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use chronik_engine::ids::{GroupId, NodeId, Offset, RaftIndex, ReplicaId, ShardId, Term};
use chronik_engine::tail_cache::TailCache;
use chronik_engine::wal::RecoveredGroup;
use chronik_engine::wal::record::{GroupCheckpoint, GroupMeta, WalRecord};
use chronik_replication::wire::ReceivedMark;
use chronik_replication::{EntryFetch, PeerMessage, ReadyOutput};

mod alone;
mod apply;
mod commit;
mod commit_told;
mod error;
mod figures;
mod fill;
mod full;
mod group;
mod group_log;
mod hash;
mod held;
mod in_sync;
mod log_start;
mod lost;
mod peers;
mod produce;
pub mod producers;
mod read;
mod read_index;
pub mod reconcile;
mod refusal;
mod relaxed;
mod repair;
mod segments;
mod stall;
mod ticks;
mod transfer;
mod waiters;

pub use commit::PendingBlock;
pub use error::{CoreError, FetchError, ProduceError};
pub use figures::{Figures, Sent, SnapshotFigures};
pub use fill::{FILLS_MAX, FillAnswer, FillAsk, FillChunk, FillId, FillStep, FillWrite};
pub use log_start::{PartitionCommand, PartitionCommandError};
pub use peers::GroupFetch;
pub use read::{PartitionView, ReadPlan};
pub use read_index::ReadBarrier;
pub use repair::{RepairPlan, RepairStep, Unreadable};
pub use segments::NamedSegment;
pub use transfer::TransferRefused;

use self::commit::Unit;
use self::figures::Counted;
use self::fill::Fills;
use self::full::FullDisk;
use self::group::Group;
use self::peers::{Awaited, EarlySign};
use self::relaxed::Promises;
use self::stall::Stall;
use self::ticks::Ticks;
use self::waiters::Waiters;
use crate::catalog::{Catalog, CommandId, CommandOutcome};

/// Producers that one partition remembers; beyond that the one that was silent longest is forgotten. A client with
/// a forgotten producer goes on as an unknown one.
pub const PRODUCERS_PER_PARTITION_MAX: usize = 5_000;

/// Groups that one tick looks at for expired producers.
const EXPIRY_GROUPS_PER_TICK: usize = 16;

/// Producers of one group that one tick forgets.
const EXPIRY_PRODUCERS_PER_GROUP: usize = 64;

/// What a core is made for.
#[derive(Debug, Clone)]
pub struct CoreConfig {
    /// The shard.
    pub shard: ShardId,
    /// The node it belongs to.
    pub node: NodeId,
    /// Where election timeouts come from.
    pub seed: u64,
    /// Bytes of produce requests that the tail cache may keep alive.
    pub tail_cache_bytes: usize,
    /// Bytes of batches that may be proposed and not applied. One batch is always let through.
    pub in_flight_bytes_max: usize,
    /// How long a producer is remembered after its last batch.
    pub producer_expiration_ms: i64,
    /// What figures about durations are taken with. Nothing else looks at it; in a simulator it stands still.
    pub stopwatch_ns: fn() -> u64,
    /// Ticks for which a voter may lack what is committed and still count as in sync.
    pub lag_ticks_max: u32,
    /// How old what consumers read at a replica that follows may be, see [`ShardCore::set_clock`].
    pub follower_read_staleness_max_ms: u64,
}

/// Names a produce or a command that waits for its fate. Given by the shell; comes back once in [`Effects::replies`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Names a fetch that waits for data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaiterId(pub u64);

/// What a producer waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequiredAcks {
    /// Nothing; its token comes back when the leader has the batch on disk.
    None,
    /// The leader has it on disk.
    Leader,
    /// A quorum has it on disk.
    All,
    /// The leader has it in memory: [`RequiredAcks::Leader`] of a relaxed topic.
    LeaderReceived,
    /// A quorum has it in memory: [`RequiredAcks::All`] of a relaxed topic.
    AllReceived,
}

impl RequiredAcks {
    /// As a produce request has it.
    #[must_use]
    pub fn from_wire(acks: i16) -> Option<RequiredAcks> {
        match acks {
            0 => Some(RequiredAcks::None),
            1 => Some(RequiredAcks::Leader),
            -1 => Some(RequiredAcks::All),
            _ => None,
        }
    }

    /// What the same request waits for in a topic that wants no more than memory.
    #[must_use]
    pub fn relaxed(self) -> RequiredAcks {
        match self {
            RequiredAcks::Leader => RequiredAcks::LeaderReceived,
            RequiredAcks::All => RequiredAcks::AllReceived,
            other => other,
        }
    }

    /// Whether memory is enough.
    #[must_use]
    pub fn is_relaxed(self) -> bool {
        matches!(self, RequiredAcks::LeaderReceived | RequiredAcks::AllReceived)
    }

    /// Whether more than the leader must have it.
    #[must_use]
    pub fn is_for_all(self) -> bool {
        matches!(self, RequiredAcks::All | RequiredAcks::AllReceived)
    }
}

/// Where a batch went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The offset of its first record; of a duplicate, the one that it got the first time.
    pub base_offset: Offset,
    /// The broker's time if the batch bears it, else -1.
    pub log_append_time_ms: i64,
    /// The first offset of the partition.
    pub log_start_offset: Offset,
    /// The epoch of the leader that took it.
    pub leader_epoch: Term,
}

/// The good end of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ack {
    /// Of a batch.
    Appended(Appended),
    /// Of a command.
    Command(CommandOutcome),
    /// Of a log start: where the log starts now.
    LogStart(Offset),
    /// Of a command about consumer groups.
    Groups,
}

/// The end of a token.
pub type ProduceResult = Result<Ack, ProduceError>;

/// What the shell must do.
#[derive(Debug, Default)]
pub struct Effects {
    /// Tokens that have found their end. Those of one group that ask for the same acks are in the order of its log.
    pub replies: Vec<(Token, ProduceResult)>,
    /// Those who asked for a [`ShardCore::read_barrier`] and may read now, or not.
    pub reads: Vec<(Token, Result<(), FetchError>)>,
    /// Fetches that should look again.
    pub wakes: Vec<WaiterId>,
    /// The catalog, once this replica is known to have it as it was when the shard started or later, and whenever
    /// something that readers see of it has changed since.
    pub catalog: Option<Arc<Catalog>>,
    /// Segments that nobody needs any more: their files may go.
    pub segments_gone: Vec<NamedSegment>,
    /// Messages for other replicas.
    pub messages: Vec<PeerMessage>,
    /// What replicas here have received of their leaders, for those.
    pub received: Vec<ReceivedMark>,
    /// Entries to be read from the log for followers; each asks for one [`ShardCore::entries_fetched`].
    pub fetches: Vec<GroupFetch>,
    /// Groups that this shard's replicas have begun to lead.
    pub elected: Vec<(GroupId, Term, ReplicaId)>,
    /// Records to be copied from leaders.
    pub fills: Vec<FillStep>,
}

/// What groups share.
#[derive(Debug)]
struct Shared {
    config: CoreConfig,
    now_ms: i64,
    /// Since the machine was started, its sleep included.
    clock_ms: u64,
    ticks: Ticks,
    tail: TailCache,
    waiters: Waiters,
    effects: Effects,
    in_flight_bytes: usize,
    /// Those who wait for a quorum, on all groups.
    reads_waiting: usize,
    elections_won: u64,
    messages_refused: u64,
    /// See [`ShardCore::segments_taken_back`].
    segments_taken_back: u64,
    counted: Counted,
    promises: Promises,
    /// Groups that have committed what their peers were not told of, each once.
    commits_to_tell: Vec<GroupId>,
    /// Commands that other nodes propose for this one.
    awaited: BTreeMap<CommandId, Awaited>,
    /// Records that wait for a block, and where they come from.
    out: ReadyOutput,
    units: VecDeque<Unit>,
    unit_bytes: usize,
    /// Empty but while a group is asked what its followers want.
    wanted: Vec<EntryFetch>,
    /// An empty vector with capacity, for the next block.
    spare_records: Vec<WalRecord>,
}

/// See the module's page.
#[derive(Debug)]
pub struct ShardCore {
    shared: Shared,
    groups: BTreeMap<GroupId, Group>,
    /// Groups with proposals that Raft has not handed out, each once.
    dirty: VecDeque<GroupId>,
    fills: Fills,
    /// What leaders of groups have said that are not here.
    early_signs: BTreeMap<GroupId, EarlySign>,
    /// Groups that may have lost their only other replica.
    lost_count: usize,
    full: FullDisk,
    /// Groups that acknowledge what is in memory, or once did; none until the shard was told which.
    relaxed_count: Option<usize>,
    stall: Stall,
    is_stopped: bool,
    expiry_cursor: GroupId,
}

impl ShardCore {
    /// Goes on where the log says the shard stopped. What is known to be committed is applied; nothing is led before
    /// [`ShardCore::start`].
    ///
    /// # Errors
    /// If what was recovered is not coherent.
    pub fn new(
        config: CoreConfig,
        recovered: Vec<RecoveredGroup>,
        now_ms: i64,
    ) -> Result<ShardCore, CoreError> {
        let tail = TailCache::new(config.tail_cache_bytes);
        let mut core = ShardCore {
            shared: Shared {
                config,
                now_ms,
                clock_ms: 0,
                ticks: Ticks::default(),
                tail,
                waiters: Waiters::default(),
                effects: Effects::default(),
                in_flight_bytes: 0,
                reads_waiting: 0,
                elections_won: 0,
                messages_refused: 0,
                segments_taken_back: 0,
                counted: Counted::default(),
                promises: Promises::default(),
                commits_to_tell: Vec::new(),
                awaited: BTreeMap::new(),
                out: ReadyOutput::default(),
                units: VecDeque::new(),
                unit_bytes: 0,
                wanted: Vec::new(),
                spare_records: Vec::new(),
            },
            groups: BTreeMap::new(),
            dirty: VecDeque::new(),
            fills: Fills::default(),
            early_signs: BTreeMap::new(),
            lost_count: 0,
            full: FullDisk::default(),
            relaxed_count: None,
            stall: Stall::default(),
            is_stopped: false,
            expiry_cursor: GroupId::META,
        };
        for recovered in recovered {
            let id = recovered.checkpoint.group;
            let group = Group::recover(&core.shared.config, recovered, now_ms)?;
            if core.groups.insert(id, group).is_some() {
                return Err(CoreError::DuplicateGroup { group: id });
            }
        }
        for group in core.groups.values_mut() {
            group.pump(&mut core.shared);
        }
        Ok(core)
    }

    /// Lets groups that have no other voter elect themselves, now and not after an election timeout; the others look for
    /// a leader soon.
    pub fn start(&mut self) {
        for group in self.groups.values_mut() {
            group.campaign_if_alone(&mut self.shared);
            group.campaign_in_turn(&mut self.shared);
        }
    }

    /// Places a group here. If it is its only voter, this replica leads it at once; if it is the first of several, it
    /// asks them for their votes at once.
    ///
    /// # Errors
    /// If the placement makes no sense.
    pub fn try_create_group(&mut self, id: GroupId, meta: GroupMeta) -> Result<(), CoreError> {
        if self.groups.contains_key(&id) {
            return Err(CoreError::DuplicateGroup { group: id });
        }
        let record = WalRecord::GroupCreated { group: id, meta: meta.clone() };
        let mut group = Group::create(&self.shared, id, meta)?;
        self.shared.stage(Unit::created(id), record);
        group.campaign_if_alone(&mut self.shared);
        group.campaign_as_preferred(&mut self.shared);
        self.groups.insert(id, group);
        self.hear_early_sign(id);
        Ok(())
    }

    /// As [`ShardCore::try_create_group`], for a placement that the catalog names: it is coherent.
    pub fn create_group(&mut self, id: GroupId, meta: GroupMeta) {
        let created = self.try_create_group(id, meta);
        assert!(created.is_ok(), "{created:?}");
    }

    /// Removes a group with its log. Whoever waits for one of its entries or for its data is told now.
    pub fn delete_group(&mut self, id: GroupId) {
        let Some(group) = live_mut(&mut self.groups, id) else { return };
        group.delete(&mut self.shared);
        self.drop_fill(id);
        self.shared.stage(Unit::deleted(id), WalRecord::GroupDeleted { group: id });
        self.shared.tail.remove_group(id);
        self.shared.counted.forget(id);
        self.shared.waiters.wake_all(id, &mut self.shared.effects.wakes);
    }

    /// The groups that are placed here.
    pub fn group_ids(&self) -> impl Iterator<Item = GroupId> {
        self.groups.iter().filter(|(_, group)| group.is_live()).map(|(id, _)| *id)
    }

    /// The node's clock, which neither goes back nor stands still, not even while the machine is suspended. To be called before
    /// ticks and before reads at replicas that follow: ticks are missing where a node stood still, and the wall clock may be set.
    pub fn set_clock(&mut self, clock_ms: u64) {
        self.shared.clock_ms = self.shared.clock_ms.max(clock_ms);
    }

    /// Time has passed; `now_ms` is the wall clock.
    pub fn tick(&mut self, now_ms: i64) {
        self.shared.now_ms = now_ms;
        self.tick_groups();
        self.tell_commits();
        self.tick_stall();
        self.tick_full();
        self.tick_fills();
        self.expire_awaited();
        self.forget_early_signs();
        self.expire_producers();
    }

    /// Looks at a few groups each time, so that a tick costs the same however many there are.
    fn expire_producers(&mut self) {
        let before_ms =
            self.shared.now_ms.saturating_sub(self.shared.config.producer_expiration_ms);
        let from = (Bound::Excluded(self.expiry_cursor), Bound::Unbounded);
        let mut last = GroupId::META;
        for (looked, (id, group)) in self.groups.range_mut(from).enumerate() {
            if looked == EXPIRY_GROUPS_PER_TICK {
                break;
            }
            group.expire_producers(before_ms, EXPIRY_PRODUCERS_PER_GROUP);
            last = *id;
        }
        let at_end = self.groups.last_key_value().is_none_or(|(id, _)| *id == last);
        self.expiry_cursor = if at_end { GroupId::META } else { last };
    }

    /// The groups that the log knows: each needs a checkpoint before the log up to here may be forgotten (I5). It stays
    /// the same until another block is durable, and so does what their checkpoints say of the log.
    #[must_use]
    pub fn groups_to_checkpoint(&self) -> Vec<GroupId> {
        self.groups.iter().filter(|(_, group)| group.is_created()).map(|(id, _)| *id).collect()
    }

    /// What the log must say of a group so that what it said before may be forgotten.
    #[must_use]
    pub fn checkpoint(&self, group: GroupId) -> Option<GroupCheckpoint> {
        self.groups.get(&group).filter(|group| group.is_created()).map(Group::checkpoint)
    }

    /// All checkpoints at once, for tests and tools. A shard takes one after the other, since each may have thousands
    /// of producers.
    #[must_use]
    pub fn checkpoints(&self) -> Vec<GroupCheckpoint> {
        self.groups_to_checkpoint().into_iter().filter_map(|id| self.checkpoint(id)).collect()
    }

    /// The first entry that a group's log has; `None` if the group is not here.
    #[must_use]
    pub fn first_index_needed(&self, group: GroupId) -> Option<RaftIndex> {
        self.live(group).map(Group::first_index_needed)
    }

    /// The last entry of a group that is applied; `None` if it is not here.
    #[must_use]
    pub fn applied_index(&self, group: GroupId) -> Option<RaftIndex> {
        self.live(group).map(|group| group.raft.applied())
    }

    /// The catalog, on the shard that has the META group.
    #[must_use]
    pub fn catalog(&self) -> Option<Arc<Catalog>> {
        self.live(GroupId::META).and_then(Group::catalog).map(Arc::clone)
    }

    /// Answers every token and wakes every waiter; nothing is proposed any more. What is in flight may still become
    /// durable.
    pub fn abort_all(&mut self) {
        self.is_stopped = true;
        self.end_promises();
        for group in self.groups.values_mut() {
            group.drop_in_flight(&mut self.shared, ProduceError::ShuttingDown);
            group.fail_reads(FetchError::NotLeader, &mut self.shared);
        }
        self.abort_awaited();
        self.drop_fills();
        self.shared.waiters.drain(&mut self.shared.effects.wakes);
    }

    /// What there is to do. To be called after every other call.
    pub fn take_effects(&mut self) -> Effects {
        self.answer_for_lost();
        self.mark_forgetful();
        self.shared.counted.messages(&self.shared.effects.messages);
        self.shared.counted.acks(&self.shared.effects.replies);
        std::mem::take(&mut self.shared.effects)
    }

    /// Bytes of batches that are proposed and not applied.
    #[must_use]
    pub fn in_flight_bytes(&self) -> usize {
        self.shared.in_flight_bytes
    }

    /// Bytes of produce requests that the tail cache keeps alive.
    #[must_use]
    pub fn tail_cache_bytes(&self) -> usize {
        self.shared.tail.bytes_retained()
    }

    /// Fetches that wait for data.
    #[must_use]
    pub fn waiting_fetches(&self) -> usize {
        self.shared.waiters.len()
    }

    /// A group that is placed here.
    fn live(&self, group: GroupId) -> Option<&Group> {
        self.groups.get(&group).filter(|group| group.is_live())
    }
}

/// The same to change it, which leaves the rest of the core to who does so.
fn live_mut(groups: &mut BTreeMap<GroupId, Group>, group: GroupId) -> Option<&mut Group> {
    groups.get_mut(&group).filter(|group| group.is_live())
}

#[cfg(test)]
mod tests;
