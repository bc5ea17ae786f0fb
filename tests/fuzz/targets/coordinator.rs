//! The coordinator of consumer groups under calls that the input makes up, with a log whose entries become durable late,
//! are refused or are lost with the leadership, and checkpoints in between. Each call is a few bytes of the input.
//!
//! - I1: a ticket is answered once at most, and none is left when the coordinator resigns.
//! - I2: offsets are what was committed last; expiry takes none away that is younger than the retention, unless its topic is
//!   gone.
//! - I3: no generation that is written or told is below one that was written before, unless the group was deleted.
//! - I4: of a group's dynamic members no more than allowed come into a generation.
//! - I5: a checkpoint, and the log after it, come to the state that is there; a coordinator that goes on from it
//!   describes each group as the one before, where nothing was on its way to the log.
#![no_main]

#[allow(dead_code, unused_imports)]
#[path = "../../../shards/src/groups/mod.rs"]
mod groups;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use chronik_engine::ids::GroupId;
use groups::*;
use libfuzzer_sys::fuzz_target;

const GROUPS: [&str; 3] = ["a", "b", ""];
const TOPICS: [&str; 2] = ["t", "u"];
const MEMBERS_MAX: usize = 3;
const RETENTION_MS: i64 = 60_000;
const STEPS_MAX: usize = 300;

/// The input, byte by byte; zeros after its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()]
    }
}

/// Something on its way to the log.
struct Proposed {
    job: Option<JobId>,
    command: GroupCommand,
    /// Of an expiry: when it was found.
    expired_at_ms: Option<i64>,
}

type Committed = BTreeMap<(String, String, i32), SavedOffset>;

struct World {
    coordinator: Coordinator,
    store: GroupStore,
    now: Now,
    proposed: VecDeque<Proposed>,
    /// What was applied since the checkpoint, and the checkpoint.
    log: Vec<Vec<u8>>,
    checkpoint: Vec<u8>,
    /// Whether the log takes nothing now.
    is_refusing: bool,
    tickets: u64,
    waiting: BTreeMap<Ticket, (String, bool)>,
    ids: u64,
    /// Everybody who ever got an id, with the group and generation that they heard of last.
    members: Vec<(String, String, i32)>,
    generations: BTreeMap<String, i32>,
    /// Groups whose last generation could not be written down, which an older one may have been, or may yet be: also where the
    /// group has gone since, or another has its name.
    unsaved: BTreeSet<String>,
    committed: Committed,
    /// How often each topic was deleted and made again.
    made_again: BTreeMap<&'static str, u64>,
}

fn config() -> CoordinatorConfig {
    CoordinatorConfig {
        initial_rebalance_delay_ms: 0,
        session_timeout_min_ms: 100,
        session_timeout_max_ms: 60_000,
        members_max: MEMBERS_MAX,
        offsets_retention_ms: RETENTION_MS,
        offsets_check_interval_ms: 1_000,
        offset_metadata_bytes_max: 100,
    }
}

impl World {
    fn new(delay_ms: i64) -> World {
        let now = Now { mono_ms: 1_000, wall_ms: 5_000_000 };
        let config = CoordinatorConfig { initial_rebalance_delay_ms: delay_ms, ..config() };
        let store = GroupStore::default();
        World {
            coordinator: Coordinator::load(config, &store, now),
            store,
            now,
            proposed: VecDeque::new(),
            log: Vec::new(),
            checkpoint: Vec::new(),
            is_refusing: false,
            tickets: 0,
            waiting: BTreeMap::new(),
            ids: 0,
            members: Vec::new(),
            generations: BTreeMap::new(),
            unsaved: BTreeSet::new(),
            committed: Committed::new(),
            made_again: BTreeMap::new(),
        }
    }

    fn ticket(&mut self, group: &str, is_static: bool) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.waiting.insert(ticket, (group.to_owned(), is_static));
        ticket
    }

    /// Somebody known, or a stranger.
    fn member(&mut self, input: &mut Input<'_>) -> (String, String, i32) {
        let at = usize::from(input.byte());
        let stranger = || (input.pick(&GROUPS).to_owned(), "stranger".to_owned(), 1);
        self.members.iter().rev().nth(at).cloned().unwrap_or_else(stranger)
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 16 {
            0..3 => self.join(input),
            3..5 => self.sync(input),
            5 => {
                let (group, id, generation) = self.member(input);
                let member = MemberRef { group: &group, id: &id, instance_id: None, generation };
                _ = self.coordinator.heartbeat(member, self.now);
            }
            6 | 7 => self.commit(input),
            8 => {
                let (group, member_id, _) = self.member(input);
                let instance_id = input.flag().then(|| "i0".to_owned());
                let leaving = [Leaving { member_id, instance_id }];
                _ = self.coordinator.leave(&group, &leaving, self.now);
            }
            9 => {
                let ms = input.pick(&[1, 200, 3_000, 61_000]);
                self.now.mono_ms += ms;
                self.now.wall_ms += ms;
                self.coordinator.tick(self.now);
                if self.coordinator.is_expiry_due(self.now) {
                    self.expire();
                }
            }
            10 | 11 => self.apply_one(),
            12 => self.delete(input),
            13 => self.make_again(input),
            14 => self.is_refusing = input.flag(),
            _ => self.lose_leadership(input.flag()),
        }
        self.look();
    }

    fn join(&mut self, input: &mut Input<'_>) {
        let (group, member_id) = match input.flag() {
            true => (input.pick(&GROUPS).to_owned(), String::new()),
            false => {
                let (group, id, _) = self.member(input);
                (group, id)
            }
        };
        self.ids += 1;
        let how = input.byte();
        let instance_id = (how & 3 == 3).then(|| format!("i{}", how >> 6));
        let mut protocols =
            vec![("range".to_owned(), Bytes::from_static(b"\0\0\0\0\0\x01\0\x01t"))];
        if how & 4 != 0 {
            protocols.insert(0, ("sticky".to_owned(), Bytes::from_static(b"x")));
        }
        let ticket = self.ticket(&group, instance_id.is_some());
        let request = JoinRequest {
            group,
            member_id,
            new_member_id: format!("m{}", self.ids),
            instance_id,
            client_id: "client".to_owned(),
            client_host: "/127.0.0.1".to_owned(),
            session_timeout_ms: input.pick(&[100, 10_000, 60_000, 99]),
            rebalance_timeout_ms: input.pick(&[0, 1_000, i64::MAX, -1]),
            protocol_type: if how & 8 != 0 { "other" } else { "consumer" }.to_owned(),
            protocols,
            requires_member_id: how & 16 != 0,
            can_skip_assignment: how & 32 != 0,
        };
        self.coordinator.join(request, ticket, self.now);
    }

    fn sync(&mut self, input: &mut Input<'_>) {
        let (group, member_id, generation) = self.member(input);
        let of_group = self.members.iter().filter(|(found, ..)| *found == group);
        let assignments = of_group
            .map(|(_, id, _)| (id.clone(), Bytes::from(format!("{generation}:{id}"))))
            .collect();
        let ticket = self.ticket(&group, false);
        let request = SyncRequest {
            group,
            member_id,
            instance_id: input.flag().then(|| "i0".to_owned()),
            generation,
            protocol_type: None,
            protocol: None,
            assignments,
        };
        self.coordinator.sync(request, ticket, self.now);
    }

    fn commit(&mut self, input: &mut Input<'_>) {
        let (group, id, generation) = match input.flag() {
            true => (input.pick(&GROUPS).to_owned(), String::new(), -1),
            false => self.member(input),
        };
        let member = MemberRef { group: &group, id: &id, instance_id: None, generation };
        let check = CommitCheck { member, tells_group_not_found: input.flag() };
        if group.is_empty() || self.coordinator.check_commit(check, self.now).is_err() {
            return;
        }
        let saved = SavedOffset {
            offset: i64::from(input.byte()),
            raft_group: GroupId::default(),
            leader_epoch: -1,
            metadata: String::new(),
            committed_ms: self.now.wall_ms,
            expires_ms: None,
        };
        let topic = input.pick(&TOPICS).to_owned();
        let raft_group = self.raft_group_of(&topic);
        let saved = SavedOffset { raft_group, ..saved };
        let mut offsets = vec![(topic, i32::from(input.byte() & 1), saved)];
        if input.byte() == 7 {
            offsets.clear();
        }
        self.propose(None, GroupCommand::Commit { group, offsets }, None);
    }

    fn delete(&mut self, input: &mut Input<'_>) {
        let group = input.pick(&GROUPS).to_owned();
        if input.flag() {
            let asked = [(input.pick(&TOPICS).to_owned(), 0)];
            let checked = self.coordinator.check_offset_delete(&group, &asked);
            if checked.is_ok_and(|results| results.iter().all(Result::is_ok)) {
                let partitions = asked.to_vec();
                self.propose(None, GroupCommand::DeleteOffsets { group, partitions }, None);
            }
            return;
        }
        let members = self.coordinator.describe(&group).map_or(0, |found| found.members.len());
        let Ok(command) = self.coordinator.check_delete(&group) else { return };
        assert_eq!(members, 0, "nobody is in a group that goes");
        self.propose(None, command, None);
    }

    /// A topic is deleted and made again.
    fn make_again(&mut self, input: &mut Input<'_>) {
        let topic = input.pick(&TOPICS);
        *self.made_again.entry(topic).or_default() += 1;
        self.expire();
    }

    fn raft_group_of(&self, topic: &str) -> GroupId {
        GroupId(self.made_again.get(topic).copied().unwrap_or_default())
    }

    fn expire(&mut self) {
        let made_again = &self.made_again;
        let is_gone = |topic: &str, _: i32, raft_group: GroupId| {
            raft_group.0 < made_again.get(topic).copied().unwrap_or_default()
        };
        for command in self.coordinator.expire_offsets(&self.store, self.now, is_gone) {
            self.propose(None, command, Some(self.now.wall_ms));
        }
    }

    /// Whether the log takes it.
    fn propose(
        &mut self,
        job: Option<JobId>,
        command: GroupCommand,
        expired_at_ms: Option<i64>,
    ) -> bool {
        if self.is_refusing {
            if let Some(job) = job {
                self.coordinator.written(job, Err(GroupError::NotAvailable), self.now);
            }
            return false;
        }
        self.proposed.push_back(Proposed { job, command, expired_at_ms });
        true
    }

    /// The oldest entry is durable.
    fn apply_one(&mut self) {
        let Some(Proposed { job, command, expired_at_ms }) = self.proposed.pop_front() else {
            return;
        };
        let bytes = command.encode().expect("plain data");
        let read = GroupCommand::decode(&bytes).expect("what was written");
        assert_eq!(read, command);
        self.log.push(bytes);
        self.store.apply(read);
        let deleted = match &command {
            GroupCommand::DeleteGroup { group } => Some(group.clone()),
            _ => None,
        };
        self.apply_to_model(command);
        self.check_offsets(expired_at_ms);
        if let Some(group) = deleted {
            self.coordinator.deleted(&group, &self.store);
        }
        if let Some(job) = job {
            self.coordinator.written(job, Ok(()), self.now);
        }
    }

    fn apply_to_model(&mut self, command: GroupCommand) {
        match command {
            GroupCommand::Commit { group, offsets } => {
                for (topic, partition, saved) in offsets {
                    self.committed.insert((group.clone(), topic, partition), saved);
                }
            }
            GroupCommand::DeleteOffsets { group, partitions } => {
                for (topic, partition) in partitions {
                    self.committed.remove(&(group.clone(), topic, partition));
                }
            }
            GroupCommand::DeleteGroup { group } => {
                self.committed.retain(|(found, ..), _| *found != group);
            }
            GroupCommand::Save { .. } | GroupCommand::Expire { .. } => {}
        }
    }

    /// I2: the store has what was committed, but for what has expired.
    fn check_offsets(&mut self, expired_at_ms: Option<i64>) {
        let mut found = Committed::new();
        for (group, stored) in self.store.groups() {
            assert!(stored.saved.is_some() || !stored.offsets.is_empty(), "nothing is not stored");
            for (topic, partitions) in &stored.offsets {
                assert!(!partitions.is_empty(), "a topic without offsets is not stored");
                for (partition, saved) in partitions {
                    let at = (group.to_owned(), topic.clone(), *partition);
                    found.insert(at, saved.clone());
                }
            }
        }
        if let Some(at_ms) = expired_at_ms {
            let may_go = |topic: &str, saved: &SavedOffset| {
                at_ms - saved.committed_ms >= RETENTION_MS
                    || saved.raft_group < self.raft_group_of(topic)
            };
            let mut gone = self.committed.iter().filter(|(at, _)| !found.contains_key(*at));
            assert!(
                gone.all(|((_, topic, _), saved)| may_go(topic, saved)),
                "a young offset of a topic that is there has expired"
            );
            self.committed.retain(|at, _| found.contains_key(at));
        }
        assert_eq!(found, self.committed, "offsets are what was committed last");
    }

    /// Another term begins here: what is on its way to the log is lost, or durable after all.
    fn lose_leadership(&mut self, is_durable: bool) {
        self.is_refusing = false;
        while is_durable && !self.proposed.is_empty() {
            self.apply_one();
            self.look();
        }
        let was_idle = self.proposed.is_empty();
        self.proposed.clear();
        let before = std::mem::replace(
            &mut self.coordinator,
            Coordinator::load(config(), &GroupStore::default(), self.now),
        );
        let mut store = GroupStore::decode(&self.checkpoint).expect("a checkpoint");
        for command in &self.log {
            store.apply(GroupCommand::decode(command).expect("a command"));
        }
        assert_eq!(store, self.store, "the log comes to the same");
        self.checkpoint = store.encode().expect("plain data");
        self.log.clear();
        store = GroupStore::decode(&self.checkpoint).expect("a checkpoint");
        assert_eq!(store, self.store, "and so does a checkpoint of it");
        let after = Coordinator::load(config(), &store, self.now);
        for (group, stored) in store.groups() {
            let Some(there) = before.describe(group) else { continue };
            let is_settled = matches!(there.state, GroupState::Stable | GroupState::Empty);
            // Of a group that was deleted, more may be remembered than is written.
            let is_written = stored.saved.is_some() && !self.unsaved.contains(group);
            if was_idle && is_settled && is_written {
                assert_eq!(after.describe(group), Some(there), "I5: {group}");
            }
        }
        self.coordinator = before;
        self.coordinator.resign();
        self.look();
        assert!(self.waiting.is_empty(), "nobody is left waiting: {:?}", self.waiting);
        self.proposed.clear();
        self.coordinator = after;
        self.unsaved.clear();
        // What was not written may be given out again: nobody may act upon it.
        let saved = |(name, stored): (&str, &groups::store::StoredGroup)| {
            Some((name.to_owned(), stored.saved.as_ref()?.generation))
        };
        self.generations = store.groups().filter_map(saved).collect();
    }

    /// Takes in what came of it all, in its order.
    fn look(&mut self) {
        let mut effects = VecDeque::from(self.coordinator.take_effects());
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Joined(ticket, answer) => self.on_joined(ticket, *answer),
                Effect::Synced(ticket, answer) => {
                    let waited = self.waiting.remove(&ticket);
                    assert!(waited.is_some(), "{ticket:?} is answered once");
                    assert!(answer.error.is_none() || answer.assignment.is_empty());
                }
                Effect::Write(job, command) => {
                    self.on_write(&command);
                    let saved = match &command {
                        GroupCommand::Save { group, .. } => Some(group.clone()),
                        _ => None,
                    };
                    let is_taken = self.propose(Some(job), command, None);
                    match saved {
                        Some(group) if is_taken => drop(self.unsaved.remove(&group)),
                        Some(group) => drop(self.unsaved.insert(group)),
                        None => {}
                    }
                    effects.extend(self.coordinator.take_effects());
                }
            }
        }
        for group in GROUPS {
            let Some(found) = self.coordinator.describe(group) else {
                self.generations.remove(group);
                continue;
            };
            let dynamic = found.members.iter().filter(|member| member.instance_id.is_none());
            let rebalances = found.state == GroupState::PreparingRebalance;
            let most = if rebalances { 2 * MEMBERS_MAX } else { MEMBERS_MAX };
            assert!(dynamic.count() <= most, "I4: {found:?}");
        }
    }

    fn on_write(&mut self, command: &GroupCommand) {
        if let GroupCommand::Save { group, saved } = command {
            let known = self.generations.entry(group.clone()).or_insert(0);
            assert!(saved.generation >= *known, "I3: {} after {known}", saved.generation);
            *known = saved.generation;
        }
    }

    fn on_joined(&mut self, ticket: Ticket, answer: JoinAnswer) {
        let waited = self.waiting.remove(&ticket);
        let (group, is_static) = waited.expect("a ticket is answered once");
        let is_id_given = answer.error == Some(GroupError::MemberIdRequired);
        if answer.error.is_some() && !is_id_given {
            return;
        }
        let known = self.generations.get(&group).copied().unwrap_or(0);
        // A static member may hear late of the generation that it came to.
        assert!(is_id_given || is_static || answer.generation >= known, "I3: {answer:?}");
        self.members.retain(|(found, id, _)| (found, id) != (&group, &answer.member_id));
        self.members.push((group, answer.member_id, answer.generation));
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut world = World::new(if input.flag() { 3_000 } else { 0 });
    for _ in 0..STEPS_MAX {
        if input.0.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    world.lose_leadership(true);
});
