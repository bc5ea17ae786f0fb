//! Random calls, crashes and writes that fail, against what must hold whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// What the world outside knows.
#[derive(Default)]
struct Oracle {
    /// Tickets that wait for an answer.
    waiting: BTreeSet<Ticket>,
    /// The greatest generation that anybody was told, by group.
    generations: BTreeMap<String, i32>,
    /// Commits that were acknowledged.
    committed: BTreeMap<String, i64>,
    /// Members by group, with the generation that they were told.
    members: BTreeMap<String, BTreeMap<String, i32>>,
}

struct World {
    rng: StdRng,
    rig: Rig,
    oracle: Oracle,
    /// Commands in the order of the log, and how much of them is in the checkpoint.
    log: Vec<Vec<u8>>,
    checkpoint: (usize, Vec<u8>),
    answered: (usize, usize),
    groups_of: BTreeMap<Ticket, String>,
    /// Joins of static members: one that came back while others rebalance hears of the generation that it came to.
    of_instances: BTreeSet<Ticket>,
    offset: i64,
}

const GROUPS: [&str; 3] = ["a", "b", "c"];

impl World {
    fn new(seed: u64) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let initial_rebalance_delay_ms = if rng.random_bool(0.5) { 0 } else { 3_000 };
        World {
            rng,
            rig: Rig::with(CoordinatorConfig { initial_rebalance_delay_ms, ..config() }),
            oracle: Oracle::default(),
            log: Vec::new(),
            checkpoint: (0, Vec::new()),
            answered: (0, 0),
            groups_of: BTreeMap::new(),
            of_instances: BTreeSet::new(),
            offset: 0,
        }
    }

    fn append(&mut self, command: GroupCommand) {
        self.log.push(command.encode().unwrap());
        self.rig.store.apply(command);
    }

    fn group(&mut self) -> String {
        GROUPS[self.rng.random_range(0..GROUPS.len())].to_owned()
    }

    /// Somebody who is or was a member, and the generation that they believe in.
    fn member(&mut self, group: &str) -> (String, i32) {
        let known = self.oracle.members.get(group);
        let count = known.map_or(0, BTreeMap::len);
        if count == 0 || self.rng.random_bool(0.1) {
            return ("stranger".to_owned(), self.rng.random_range(-1..5));
        }
        let at = self.rng.random_range(0..count);
        known.and_then(|known| known.iter().nth(at)).map(|(id, g)| (id.clone(), *g)).unwrap()
    }

    fn ticket(&mut self, group: &str) -> Ticket {
        self.rig.tickets += 1;
        let ticket = Ticket(self.rig.tickets);
        self.oracle.waiting.insert(ticket);
        self.groups_of.insert(ticket, group.to_owned());
        ticket
    }

    fn step(&mut self) {
        let group = self.group();
        match self.rng.random_range(0..100) {
            0..25 => self.join(&group),
            25..45 => self.sync(&group),
            45..55 => {
                let (id, generation) = self.member(&group);
                let member = MemberRef { group: &group, id: &id, instance_id: None, generation };
                _ = self.rig.coordinator.heartbeat(member, self.rig.now);
            }
            55..70 => self.commit(&group),
            70..75 => {
                let (id, _) = self.member(&group);
                let leaving = Leaving { member_id: id, instance_id: None };
                _ = self.rig.coordinator.leave(&group, &[leaving], self.rig.now);
            }
            75..85 => {
                let ms = [10, 1_000, 5_000, 20_000][self.rng.random_range(0..4)];
                self.rig.now.mono_ms += ms;
                self.rig.now.wall_ms += ms;
                self.rig.coordinator.tick(self.rig.now);
            }
            85..95 => self.write(),
            95..97 => self.checkpoint = (self.log.len(), self.rig.store.encode().unwrap()),
            97..99 => self.crash(),
            _ => self.delete(&group),
        }
        self.look();
    }

    fn join(&mut self, group: &str) {
        let is_new = self.rng.random_bool(0.5);
        let member = if is_new { String::new() } else { self.member(group).0 };
        let mut request = self.rig.request(group, &member);
        request.requires_member_id = self.rng.random_bool(0.3);
        request.can_skip_assignment = self.rng.random_bool(0.5);
        if self.rng.random_bool(0.2) {
            request.instance_id = Some(format!("i{}", self.rng.random_range(0..2)));
        }
        if self.rng.random_bool(0.1) {
            request.protocols.insert(0, ("sticky".to_owned(), Bytes::new()));
        }
        let ticket = self.ticket(group);
        if request.instance_id.is_some() {
            self.of_instances.insert(ticket);
        }
        self.rig.coordinator.join(request, ticket, self.rig.now);
    }

    fn sync(&mut self, group: &str) {
        let (member_id, generation) = self.member(group);
        let everybody = self.oracle.members.get(group).cloned().unwrap_or_default();
        let given = |id: String| {
            let what = Bytes::from(format!("{generation}:{id}"));
            (id, what)
        };
        let request = SyncRequest {
            group: group.to_owned(),
            member_id,
            instance_id: None,
            generation,
            protocol_type: None,
            protocol: None,
            assignments: everybody.into_keys().map(given).collect(),
        };
        let ticket = self.ticket(group);
        self.rig.coordinator.sync(request, ticket, self.rig.now);
    }

    fn commit(&mut self, group: &str) {
        let (id, generation) = self.member(group);
        let state = self.rig.coordinator.state_of(group);
        if self.rig.check_commit(group, &id, generation).is_err() {
            return;
        }
        if generation >= 0 {
            let current = self.oracle.generations.get(group).copied();
            assert_eq!(Some(generation), current, "only the current generation commits");
            assert_ne!(state, Some(GroupState::CompletingRebalance));
        }
        self.offset += 1;
        let saved = SavedOffset {
            offset: self.offset,
            raft_group: GroupId(1),
            leader_epoch: -1,
            metadata: String::new(),
            committed_ms: self.rig.now.wall_ms,
            expires_ms: None,
        };
        let offsets = vec![("t".to_owned(), 0, saved)];
        self.append(GroupCommand::Commit { group: group.to_owned(), offsets });
        self.oracle.committed.insert(group.to_owned(), self.offset);
    }

    fn delete(&mut self, group: &str) {
        let members = self.rig.coordinator.describe(group).map_or(0, |found| found.members.len());
        if let Ok(command) = self.rig.coordinator.check_delete(group) {
            assert_eq!(members, 0, "nobody is in a group that goes");
            self.append(command);
            self.rig.coordinator.deleted(group, &self.rig.store);
            self.oracle.committed.remove(group);
            self.oracle.generations.remove(group);
            self.oracle.members.remove(group);
        }
    }

    /// The oldest write becomes durable, or fails.
    fn write(&mut self) {
        if self.rig.unwritten.is_empty() {
            return;
        }
        let (job, command) = self.rig.unwritten.remove(0);
        let outcome = if self.rng.random_bool(0.9) {
            self.append(command);
            Ok(())
        } else {
            Err(GroupError::NotCoordinator)
        };
        self.rig.coordinator.written(job, outcome, self.rig.now);
    }

    /// The coordinator is gone; another goes on from the checkpoint and the log after it.
    fn crash(&mut self) {
        self.rig.coordinator.resign();
        self.look();
        assert!(
            self.oracle.waiting.is_empty(),
            "nobody is left waiting: {:?}",
            self.oracle.waiting
        );
        let (from, state) = &self.checkpoint;
        let mut store = GroupStore::decode(state).unwrap();
        for command in &self.log[*from..] {
            store.apply(GroupCommand::decode(command).unwrap());
        }
        assert_eq!(store, self.rig.store, "the log comes to the same");
        self.rig.store = store;
        self.rig.unwritten.clear();
        self.rig.restart();
        for group in GROUPS {
            let found = self.rig.store.offset(group, "t", 0).map(|saved| saved.offset);
            assert_eq!(found, self.oracle.committed.get(group).copied(), "no commit is lost");
            // What was not written may be given out again: nobody may act upon it.
            let generation = self.rig.store.group(group).and_then(|g| g.saved.as_ref());
            let generation = generation.map_or(0, |saved| saved.generation);
            self.oracle.generations.insert(group.to_owned(), generation);
        }
    }

    /// Takes in what came of it all.
    fn look(&mut self) {
        self.rig.collect();
        let joined = self.rig.joined.split_off(self.answered.0);
        for (ticket, answer) in &joined {
            assert!(self.oracle.waiting.remove(ticket), "{ticket:?} is answered once");
            let group = self.groups_of[ticket].clone();
            let may_come_back = answer.error == Some(GroupError::MemberIdRequired);
            if answer.error.is_none() || may_come_back {
                let members = self.oracle.members.entry(group.clone()).or_default();
                members.insert(answer.member_id.clone(), answer.generation);
            }
            if answer.error.is_none() {
                let known = self.oracle.generations.entry(group).or_default();
                let is_late = self.of_instances.contains(ticket) && answer.generation < *known;
                assert!(is_late || answer.generation >= *known, "{ticket:?}: {answer:?} < {known}");
                *known = answer.generation.max(*known);
            }
        }
        self.rig.joined.extend(joined);
        self.answered.0 = self.rig.joined.len();
        let synced = self.rig.synced.split_off(self.answered.1);
        for (ticket, answer) in &synced {
            assert!(self.oracle.waiting.remove(ticket), "{ticket:?} is answered once");
            let given = std::str::from_utf8(&answer.assignment).unwrap();
            if let (None, Some((generation, _))) = (answer.error, given.split_once(':')) {
                let group = &self.groups_of[ticket];
                let current = self.oracle.generations[group];
                let saved = self.rig.store.group(group).and_then(|stored| stored.saved.as_ref());
                let saved = saved.map(|saved| saved.generation);
                assert_eq!(saved, Some(current), "an assignment is durable before it goes out");
                assert_eq!(generation.parse(), Ok(current), "assignments are of this generation");
            }
        }
        self.rig.synced.extend(synced);
        self.answered.1 = self.rig.synced.len();
        // A group that became empty has begun a generation that nobody was told.
        for group in GROUPS {
            if self.rig.coordinator.state_of(group) == Some(GroupState::Empty) {
                self.oracle.generations.insert(group.to_owned(), i32::MIN);
            }
        }
    }
}

#[test]
fn given_random_calls_crashes_and_failures_when_they_go_on_then_what_must_hold_does() {
    for seed in 0..300 {
        let mut world = World::new(seed);
        for _ in 0..400 {
            world.step();
        }
        world.crash();
    }
}
