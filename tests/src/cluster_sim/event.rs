//! What happens, each at its time, and what those who wait are waiting for.
//!
//! - I1: what is meant for a node that has started again is void.
//! - I2: what comes to a node that stands still waits; its own timers that are of its machine, not its process, go on.

use chronik_engine::ids::{GroupId, Offset, Term};
use chronik_replication::wire::Seat;
use chronik_shards::catalog::{CatalogCommand, CommandId};
use chronik_shards::core::{FillAnswer, FillAsk, GroupFetch};
use chronik_shards::groups::JobId;

use super::clients::{Answer, Request};
use super::coordinators::GroupRequest;
use super::faults::Healing;
use super::members::GroupAnswer;
use super::net::Packet;

/// Something that happens at its time.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// Time passes on a node.
    Tick {
        host: usize,
    },
    /// A shard goes on with something.
    Shard {
        host: usize,
        life: u64,
        shard: usize,
        step: Step,
    },
    /// A node goes on with something.
    Host {
        host: usize,
        life: u64,
        step: HostStep,
    },
    Packet(Packet),
    Request(Request),
    Answer(Answer),
    GroupRequest(Box<GroupRequest>),
    GroupAnswer(Box<GroupAnswer>),
    Restart {
        host: usize,
        life: u64,
    },
    Resume {
        host: usize,
        life: u64,
    },
    Heal(Healing),
    /// Nodes end at the worst moment.
    Strike {
        hosts: Vec<usize>,
    },
    /// All links are looked at.
    Links,
    /// A client or fate does something.
    Action,
}

/// What a shard goes on with.
#[derive(Debug, Clone)]
pub(super) enum Step {
    /// Its disk goes on with a block.
    Write,
    /// Its disk goes on with the next file.
    Upkeep,
    /// Its disk goes on with segments.
    Tier,
    /// It tells its followers what was committed.
    TellCommits,
    /// Entries for a follower were read.
    Fetched(GroupFetch),
    /// Its disk goes on with records that were copied.
    FillWrite,
    /// Records that another replica wants are read.
    FillServe { asked_by: Seat, id: u64, ask: FillAsk },
    /// Its disk goes on with records that were copied for a repair.
    RepairWrite,
    /// Nobody has answered a repair.
    RepairLate(u64),
    /// Records that were asked for have come, or have not.
    FillAnswered(u64, FillAnswer),
}

/// What a node goes on with.
#[derive(Debug, Clone)]
pub(super) enum HostStep {
    /// The next step of a publication.
    Publish(usize),
    /// It wants to be in the catalog.
    Register,
    /// Nobody has answered a call.
    CallTimeout(CommandId),
}

/// What a token stands for.
#[derive(Debug, Clone)]
pub(super) enum Pending {
    /// A batch that somebody wants to hear of.
    Batch(Request),
    Command(CatalogCommand),
    /// A command that another node waits for.
    Forwarded {
        id: CommandId,
        asked_by: Seat,
    },
    /// Something that a coordinator of this term wants written.
    GroupJob {
        group: GroupId,
        term: Term,
        job: JobId,
    },
    /// Offsets that a member commits.
    GroupCommit(Box<GroupRequest>),
    /// Committed offsets that somebody reads.
    GroupFetch(Box<GroupRequest>),
    /// Somebody wants to know where a log ends; all before this was acknowledged when they asked.
    Latest {
        group: GroupId,
        floor: Offset,
    },
    /// Something that nobody waits for.
    Nobody,
}
