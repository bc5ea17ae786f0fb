//! The groups of one partition of `__consumer_offsets`, while this node leads it.
//!
//! - I1: every ticket is answered exactly once, in [`Coordinator::take_effects`], whatever becomes of its group.
//! - I2: a member is looked at when its deadline may have come, never by walking over all of them. A heartbeat moves the
//!   deadline only; its entry among the timers stays, and is put off when it comes up.
//! - I3: what is to be written down is an effect with a job's number; the group goes on when the fate of that is told.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::error::GroupError;
use super::group::{Group, GroupState};
use super::store::{GroupCommand, GroupStore};

/// Names a request that waits; given by the caller, who answers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Names something to be written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

/// What time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// A clock that never jumps: for sessions and deadlines.
    pub mono_ms: i64,
    /// The wall clock: for what is written down.
    pub wall_ms: i64,
}

/// The bounds that an operator sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoordinatorConfig {
    /// How long the first member of an empty group waits for others.
    pub initial_rebalance_delay_ms: i64,
    /// The shortest session.
    pub session_timeout_min_ms: i64,
    /// The longest session.
    pub session_timeout_max_ms: i64,
    /// Members that a group may have.
    pub members_max: usize,
    /// How long offsets are kept once nobody uses them.
    pub offsets_retention_ms: i64,
    /// How often it is looked for those.
    pub offsets_check_interval_ms: i64,
    /// The longest metadata of an offset, in bytes.
    pub offset_metadata_bytes_max: usize,
}

/// JoinGroup.
#[derive(Debug, Clone)]
pub struct JoinRequest {
    /// The group.
    pub group: String,
    /// The member's id, empty if it has none.
    pub member_id: String,
    /// The id that a new member gets; never given out before.
    pub new_member_id: String,
    /// The instance it stands for, if it is a static member.
    pub instance_id: Option<String>,
    /// What the client calls itself.
    pub client_id: String,
    /// Where it comes from.
    pub client_host: String,
    /// How long it may be silent.
    pub session_timeout_ms: i64,
    /// How long it may take to join again.
    pub rebalance_timeout_ms: i64,
    /// What the members are.
    pub protocol_type: String,
    /// The protocols it speaks, best first, and what it says of itself under each.
    pub protocols: Vec<(String, Bytes)>,
    /// Whether a member without an id must come again with the one it is given.
    pub requires_member_id: bool,
    /// Whether it understands that it leads and need not assign (KIP-814).
    pub can_skip_assignment: bool,
}

/// The answer to a join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinAnswer {
    /// Why it is refused.
    pub error: Option<GroupError>,
    /// The generation, -1 if refused.
    pub generation: i32,
    /// What the members are.
    pub protocol_type: Option<String>,
    /// The protocol agreed upon.
    pub protocol: Option<String>,
    /// Who assigns.
    pub leader: String,
    /// Whether the leader need not.
    pub skip_assignment: bool,
    /// The member that joined.
    pub member_id: String,
    /// For the leader: all members.
    pub members: Vec<JoinedMember>,
}

/// A member as the leader of its group sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedMember {
    /// Its id.
    pub id: String,
    /// Its instance, if it is static.
    pub instance_id: Option<String>,
    /// What it says of itself.
    pub metadata: Bytes,
}

impl JoinAnswer {
    /// A refusal.
    #[must_use]
    pub fn refused(member_id: String, error: GroupError) -> JoinAnswer {
        JoinAnswer {
            error: Some(error),
            generation: -1,
            protocol_type: None,
            protocol: None,
            leader: String::new(),
            skip_assignment: false,
            member_id,
            members: Vec::new(),
        }
    }
}

/// SyncGroup.
#[derive(Debug, Clone)]
pub struct SyncRequest {
    /// The group.
    pub group: String,
    /// The member.
    pub member_id: String,
    /// Its instance, if it is static.
    pub instance_id: Option<String>,
    /// The generation it means.
    pub generation: i32,
    /// What it takes the members for, if it says so.
    pub protocol_type: Option<String>,
    /// The protocol it takes for agreed upon, if it says so.
    pub protocol: Option<String>,
    /// From the leader: who gets what.
    pub assignments: Vec<(String, Bytes)>,
}

/// The answer to a sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncAnswer {
    /// Why it is refused.
    pub error: Option<GroupError>,
    /// What the members are.
    pub protocol_type: Option<String>,
    /// The protocol agreed upon.
    pub protocol: Option<String>,
    /// What the member gets.
    pub assignment: Bytes,
}

impl SyncAnswer {
    /// A refusal.
    #[must_use]
    pub fn refused(error: GroupError) -> SyncAnswer {
        let assignment = Bytes::new();
        SyncAnswer { error: Some(error), protocol_type: None, protocol: None, assignment }
    }
}

/// What the owner of the coordinator must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Answer a join.
    Joined(Ticket, Box<JoinAnswer>),
    /// Answer a sync.
    Synced(Ticket, SyncAnswer),
    /// Write this down, then call [`Coordinator::written`].
    Write(JobId, GroupCommand),
}

/// What is to be done when something is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Job {
    /// The generation's assignments are handed out.
    Assign { group: String, generation: i32 },
    /// A static member that came back hears so.
    Replace { ticket: Ticket, answer: Box<JoinAnswer> },
    /// Nobody waits.
    Note { group: String },
}

/// What is to be looked at when its time comes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A rebalance is over for those who did not come.
    Join,
    /// An assignment has waited long enough for those who did not ask for it.
    Sync,
    /// The session of a member.
    Session(String),
    /// An id that was given out and not used.
    Pending(String),
}

/// Figures for operators; all but `groups` and `members` count from the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CoordinatorStats {
    /// Groups there are.
    pub groups: u64,
    /// Members of all groups.
    pub members: u64,
    /// Rebalances begun.
    pub rebalances: u64,
    /// Members that were silent for too long.
    pub expired_members: u64,
}

/// What the groups of a coordinator share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: CoordinatorConfig,
    pub(super) rebalances: u64,
    pub(super) expired_members: u64,
    timers: BTreeSet<(i64, String, Timer)>,
    effects: Vec<Effect>,
    pub(super) jobs: BTreeMap<JobId, Job>,
    next_job: u64,
}

impl Shared {
    pub(super) fn joined(&mut self, ticket: Ticket, answer: JoinAnswer) {
        self.effects.push(Effect::Joined(ticket, Box::new(answer)));
    }

    pub(super) fn synced(&mut self, ticket: Ticket, answer: SyncAnswer) {
        self.effects.push(Effect::Synced(ticket, answer));
    }

    pub(super) fn write(&mut self, command: GroupCommand, job: Job) {
        self.next_job += 1;
        let id = JobId(self.next_job);
        self.jobs.insert(id, job);
        self.effects.push(Effect::Write(id, command));
    }

    /// Whether an empty generation of a group is on its way to the log.
    pub(super) fn is_noting(&self, name: &str) -> bool {
        let is_of = |job: &Job| matches!(job, Job::Note { group } if group == name);
        self.jobs.values().any(is_of)
    }

    pub(super) fn at(&mut self, due_ms: i64, group: &str, timer: Timer) {
        self.timers.insert((due_ms, group.to_owned(), timer));
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Coordinator {
    pub(super) shared: Shared,
    pub(super) groups: BTreeMap<String, Group>,
    pub(super) next_check_ms: i64,
}

impl Coordinator {
    /// Goes on with what the log says. Members of the last generation have one session's time to be heard of.
    #[must_use]
    pub fn load(config: CoordinatorConfig, store: &GroupStore, now: Now) -> Coordinator {
        let next_check_ms = now.mono_ms.saturating_add(config.offsets_check_interval_ms);
        let mut shared = Shared {
            config,
            rebalances: 0,
            expired_members: 0,
            timers: BTreeSet::new(),
            effects: Vec::new(),
            jobs: BTreeMap::new(),
            next_job: 0,
        };
        let restore = |(name, stored): (&str, &super::store::StoredGroup)| {
            let group = Group::restore(name, stored.saved.as_ref(), now, &mut shared);
            (name.to_owned(), group)
        };
        let groups = store.groups().map(restore).collect();
        Coordinator { shared, groups, next_check_ms }
    }

    /// What there is to do. To be called after every other call.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.shared.effects)
    }

    /// Figures for operators.
    #[must_use]
    pub fn stats(&self) -> CoordinatorStats {
        CoordinatorStats {
            groups: self.groups.len() as u64,
            members: self.groups.values().map(|group| group.members.len() as u64).sum(),
            rebalances: self.shared.rebalances,
            expired_members: self.shared.expired_members,
        }
    }

    /// When [`Coordinator::tick`] has something to do at the earliest.
    #[must_use]
    pub fn next_due_ms(&self) -> Option<i64> {
        self.shared.timers.first().map(|(due_ms, ..)| *due_ms)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now) {
        while self.shared.timers.first().is_some_and(|(due_ms, ..)| *due_ms <= now.mono_ms) {
            let Some((due_ms, name, timer)) = self.shared.timers.pop_first() else { return };
            let Some(group) = self.groups.get_mut(&name) else { continue };
            group.on_timer(due_ms, timer, now, &mut self.shared);
            self.forget_if_void(&name);
        }
    }

    /// What a job asked for is durable, or never will be.
    pub fn written(&mut self, job: JobId, outcome: Result<(), GroupError>, now: Now) {
        match self.shared.jobs.remove(&job) {
            None | Some(Job::Note { .. }) => {}
            Some(Job::Assign { group, generation }) => {
                if let Some(group) = self.groups.get_mut(&group) {
                    group.on_assignments_written(generation, outcome, now, &mut self.shared);
                }
            }
            Some(Job::Replace { ticket, answer }) => {
                let answer = match outcome {
                    Ok(()) => *answer,
                    Err(error) => JoinAnswer::refused(answer.member_id, error),
                };
                self.shared.joined(ticket, answer);
            }
        }
    }

    /// Refuses everybody who waits: this node does not coordinate these groups any longer.
    pub fn resign(&mut self) {
        let error = GroupError::NotCoordinator;
        for group in self.groups.values_mut() {
            group.refuse_all(error, &mut self.shared);
        }
        for (_, job) in std::mem::take(&mut self.shared.jobs) {
            if let Job::Replace { ticket, answer } = job {
                self.shared.joined(ticket, JoinAnswer::refused(answer.member_id, error));
            }
        }
        self.groups.clear();
        self.shared.timers.clear();
    }

    /// A group that never was more than a name is not kept.
    pub(super) fn forget_if_void(&mut self, name: &str) {
        if self.groups.get(name).is_some_and(Group::is_void) {
            self.groups.remove(name);
        }
    }

    /// The state of a group, for tests and for whoever describes it.
    #[must_use]
    pub fn state_of(&self, name: &str) -> Option<GroupState> {
        self.groups.get(name).map(|group| group.state)
    }
}
