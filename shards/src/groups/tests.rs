//! The coordinator, call by call; random calls stand in `random`.

use chronik_engine::ids::GroupId;

use super::*;
use bytes::Bytes;

mod golden;
mod random;

const SESSION_MS: i64 = 10_000;
const REBALANCE_MS: i64 = 60_000;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

fn config() -> CoordinatorConfig {
    CoordinatorConfig {
        initial_rebalance_delay_ms: 0,
        session_timeout_min_ms: 6_000,
        session_timeout_max_ms: 1_800_000,
        members_max: 100,
        offsets_retention_ms: 7 * DAY_MS,
        offsets_check_interval_ms: 600_000,
        offset_metadata_bytes_max: 4096,
    }
}

/// A coordinator with its log: what it wants written is applied when the test says so.
struct Rig {
    coordinator: Coordinator,
    store: GroupStore,
    now: Now,
    tickets: u64,
    ids: u64,
    joined: Vec<(Ticket, JoinAnswer)>,
    synced: Vec<(Ticket, SyncAnswer)>,
    unwritten: Vec<(JobId, GroupCommand)>,
}

impl Rig {
    fn with(config: CoordinatorConfig) -> Rig {
        let (store, now) = (GroupStore::default(), Now { mono_ms: 1_000, wall_ms: 5_000_000 });
        Rig {
            coordinator: Coordinator::load(config, &store, now),
            store,
            now,
            tickets: 0,
            ids: 0,
            joined: Vec::new(),
            synced: Vec::new(),
            unwritten: Vec::new(),
        }
    }

    fn new() -> Rig {
        Rig::with(config())
    }

    fn restart(&mut self) {
        self.coordinator = Coordinator::load(config(), &self.store, self.now);
        self.unwritten.clear();
    }

    fn pass(&mut self, ms: i64) {
        self.now.mono_ms += ms;
        self.now.wall_ms += ms;
        self.coordinator.tick(self.now);
        self.collect();
    }

    /// Takes what there is to do, and writes what is to be written.
    fn settle(&mut self) {
        self.collect();
        while !self.unwritten.is_empty() {
            let (job, command) = self.unwritten.remove(0);
            self.store.apply(GroupCommand::decode(&command.encode().unwrap()).unwrap());
            self.coordinator.written(job, Ok(()), self.now);
            self.collect();
        }
    }

    fn collect(&mut self) {
        for effect in self.coordinator.take_effects() {
            match effect {
                Effect::Joined(ticket, answer) => self.joined.push((ticket, *answer)),
                Effect::Synced(ticket, answer) => self.synced.push((ticket, answer)),
                Effect::Write(job, command) => self.unwritten.push((job, command)),
            }
        }
    }

    fn request(&mut self, group: &str, member: &str) -> JoinRequest {
        self.ids += 1;
        JoinRequest {
            group: group.to_owned(),
            member_id: member.to_owned(),
            new_member_id: format!("m{}", self.ids),
            instance_id: None,
            client_id: "client".to_owned(),
            client_host: "/127.0.0.1".to_owned(),
            session_timeout_ms: SESSION_MS,
            rebalance_timeout_ms: REBALANCE_MS,
            protocol_type: "consumer".to_owned(),
            protocols: vec![("range".to_owned(), Bytes::from_static(b"topics"))],
            requires_member_id: false,
            can_skip_assignment: false,
        }
    }

    fn join_with(&mut self, request: JoinRequest) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.coordinator.join(request, ticket, self.now);
        self.settle();
        ticket
    }

    fn join(&mut self, group: &str, member: &str) -> Ticket {
        let request = self.request(group, member);
        self.join_with(request)
    }

    fn answer(&self, ticket: Ticket) -> Option<&JoinAnswer> {
        self.joined.iter().find(|(found, _)| *found == ticket).map(|(_, answer)| answer)
    }

    fn sync(
        &mut self,
        group: &str,
        member: &str,
        generation: i32,
        given: &[(&str, &str)],
    ) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let assignments = given
            .iter()
            .map(|(id, bytes)| ((*id).to_owned(), Bytes::copy_from_slice(bytes.as_bytes())))
            .collect();
        let request = SyncRequest {
            group: group.to_owned(),
            member_id: member.to_owned(),
            instance_id: None,
            generation,
            protocol_type: None,
            protocol: None,
            assignments,
        };
        self.coordinator.sync(request, ticket, self.now);
        self.collect();
        ticket
    }

    fn assignment(&self, ticket: Ticket) -> Option<Result<&[u8], GroupError>> {
        let (_, answer) = self.synced.iter().find(|(found, _)| *found == ticket)?;
        Some(answer.error.map_or(Ok(&answer.assignment[..]), Err))
    }

    fn beat(&mut self, group: &str, id: &str, generation: i32) -> Result<(), GroupError> {
        let member = MemberRef { group, id, instance_id: None, generation };
        let beaten = self.coordinator.heartbeat(member, self.now);
        self.settle();
        beaten
    }

    fn check_commit(&mut self, group: &str, id: &str, generation: i32) -> Result<(), GroupError> {
        let member = MemberRef { group, id, instance_id: None, generation };
        let check = CommitCheck { member, tells_group_not_found: false };
        self.coordinator.check_commit(check, self.now)
    }

    fn commit(&mut self, group: &str, topic: &str, offset: i64) {
        let saved = SavedOffset {
            offset,
            raft_group: GroupId(1),
            leader_epoch: -1,
            metadata: String::new(),
            committed_ms: self.now.wall_ms,
            expires_ms: None,
        };
        let offsets = vec![(topic.to_owned(), 0, saved)];
        self.store.apply(GroupCommand::Commit { group: group.to_owned(), offsets });
    }

    /// Looks for what has expired, and forgets it.
    fn expire(&mut self) {
        for command in self.coordinator.expire_offsets(&self.store, self.now, |_, _, _| false) {
            self.store.apply(command);
        }
    }

    /// A group of one member in generation 1.
    fn stable(&mut self, group: &str) -> String {
        let ticket = self.join(group, "");
        let id = self.answer(ticket).unwrap().member_id.clone();
        let ticket = self.sync(group, &id, 1, &[(&id, "all")]);
        self.settle();
        assert_eq!(self.assignment(ticket), Some(Ok(&b"all"[..])));
        id
    }

    fn state(&self, group: &str) -> Option<GroupState> {
        self.coordinator.state_of(group)
    }
}

#[test]
fn given_names_of_groups_when_placed_then_they_are_where_java_puts_them() {
    // "polygenelubricants".hashCode() is the smallest integer.
    assert_eq!(partition_of("polygenelubricants", 50), 0);
    assert_eq!(partition_of("", 50), 0);
    assert_eq!(partition_of("a", 50), 97 % 50);
    assert_eq!(partition_of("ab", 50), (97 * 31 + 98) % 50);
    // Two UTF-16 units.
    assert_eq!(partition_of("\u{1f600}", 1000), (0xd83d_usize * 31 + 0xde00) % 1000);
}

#[test]
fn given_one_member_when_it_joins_and_assigns_then_it_gets_its_assignment_after_the_write() {
    let mut rig = Rig::new();
    let ticket = rig.join("g", "");
    let answer = rig.answer(ticket).unwrap().clone();
    assert_eq!((answer.error, answer.generation, answer.leader.as_str()), (None, 1, "m1"));
    assert_eq!(answer.members.len(), 1);
    let ticket = rig.sync("g", "m1", 1, &[("m1", "p0")]);
    assert_eq!(rig.assignment(ticket), None, "it is not written yet");
    assert_eq!(rig.state("g"), Some(GroupState::CompletingRebalance));
    rig.settle();
    assert_eq!(rig.assignment(ticket), Some(Ok(&b"p0"[..])));
    assert_eq!(rig.state("g"), Some(GroupState::Stable));
    assert_eq!(rig.beat("g", "m1", 1), Ok(()));
    assert_eq!(rig.beat("g", "m1", 0), Err(GroupError::IllegalGeneration));
    assert_eq!(rig.beat("g", "x", 1), Err(GroupError::UnknownMember));
}

#[test]
fn given_a_new_client_when_it_joins_then_it_is_asked_to_come_back_with_its_id() {
    let mut rig = Rig::new();
    let mut request = rig.request("g", "");
    request.requires_member_id = true;
    let ticket = rig.join_with(request);
    let answer = rig.answer(ticket).unwrap().clone();
    assert_eq!(answer.error, Some(GroupError::MemberIdRequired));
    let ticket = rig.join("g", &answer.member_id);
    assert_eq!(rig.answer(ticket).unwrap().generation, 1);
    // One that does not come back is forgotten.
    let mut request = rig.request("h", "");
    request.requires_member_id = true;
    rig.join_with(request);
    rig.pass(SESSION_MS);
    assert_eq!(rig.state("h"), None);
}

#[test]
fn given_a_stable_group_when_another_joins_then_both_are_in_the_next_generation() {
    let mut rig = Rig::new();
    rig.stable("g");
    let second = rig.join("g", "");
    assert_eq!(rig.answer(second), None, "it waits for the first");
    assert_eq!(rig.beat("g", "m1", 1), Err(GroupError::RebalanceInProgress));
    let first = rig.join("g", "m1");
    let (first, second) = (rig.answer(first).unwrap().clone(), rig.answer(second).unwrap().clone());
    assert_eq!((first.generation, second.generation), (2, 2));
    assert_eq!((first.members.len(), second.members.len()), (2, 0), "only the leader sees all");
    let waits = rig.sync("g", "m2", 2, &[]);
    rig.settle();
    assert_eq!(rig.assignment(waits), None, "the leader has not assigned");
    rig.sync("g", "m1", 2, &[("m1", "a"), ("m2", "b")]);
    rig.settle();
    assert_eq!(rig.assignment(waits), Some(Ok(&b"b"[..])));
    assert_eq!(rig.check_commit("g", "m1", 1), Err(GroupError::IllegalGeneration));
    assert_eq!(rig.check_commit("g", "m1", 2), Ok(()));
}

#[test]
fn given_members_when_the_first_delay_is_set_then_they_gather_in_one_generation() {
    let mut rig = Rig::with(CoordinatorConfig { initial_rebalance_delay_ms: 3000, ..config() });
    let first = rig.join("g", "");
    rig.pass(2_000);
    let second = rig.join("g", "");
    rig.pass(1_500);
    assert_eq!(rig.answer(first), None, "a second member extends the wait");
    rig.pass(3_000);
    assert_eq!(rig.answer(first).unwrap().generation, 1);
    assert_eq!(rig.answer(second).unwrap().generation, 1);
}

#[test]
fn given_a_silent_member_when_its_session_is_over_then_the_rest_rebalance() {
    let mut rig = Rig::new();
    rig.stable("g");
    rig.join("g", "");
    rig.join("g", "m1");
    rig.sync("g", "m1", 2, &[]);
    rig.sync("g", "m2", 2, &[]);
    rig.settle();
    assert_eq!(rig.state("g"), Some(GroupState::Stable));
    rig.pass(SESSION_MS - 1);
    assert_eq!(rig.beat("g", "m1", 2), Ok(()));
    rig.pass(1);
    assert_eq!(rig.beat("g", "m2", 2), Err(GroupError::UnknownMember));
    assert_eq!(rig.beat("g", "m1", 2), Err(GroupError::RebalanceInProgress));
    let ticket = rig.join("g", "m1");
    assert_eq!(rig.answer(ticket).unwrap().generation, 3);
    assert_eq!(rig.coordinator.stats().expired_members, 1);
}

#[test]
fn given_a_member_that_does_not_come_when_the_rebalance_times_out_then_it_is_out() {
    let mut rig = Rig::new();
    rig.stable("g");
    let second = rig.join("g", "");
    for _ in 0..(REBALANCE_MS / 5_000) {
        rig.pass(5_000);
        _ = rig.beat("g", "m1", 1);
    }
    assert_eq!(rig.answer(second).unwrap().leader, "m2");
    assert_eq!(rig.beat("g", "m1", 1), Err(GroupError::UnknownMember));
}

#[test]
fn given_a_static_member_when_it_comes_back_then_nobody_rebalances_and_the_old_one_is_fenced() {
    let mut rig = Rig::new();
    let mut request = rig.request("g", "");
    request.instance_id = Some("i".to_owned());
    let again = JoinRequest { new_member_id: "new".to_owned(), ..request.clone() };
    let first = rig.join_with(request);
    let old = rig.answer(first).unwrap().member_id.clone();
    rig.sync("g", &old, 1, &[(&old, "all")]);
    rig.settle();
    let ticket = rig.join_with(again);
    let answer = rig.answer(ticket).unwrap().clone();
    assert_eq!((answer.error, answer.generation), (None, 1));
    assert_eq!((answer.member_id.as_str(), answer.leader.as_str()), ("new", old.as_str()));
    assert_eq!(rig.state("g"), Some(GroupState::Stable));
    let ticket = rig.sync("g", "new", 1, &[]);
    assert_eq!(rig.assignment(ticket), Some(Ok(&b"all"[..])));
    let fenced = MemberRef { group: "g", id: &old, instance_id: Some("i"), generation: 1 };
    assert_eq!(rig.coordinator.heartbeat(fenced, rig.now), Err(GroupError::FencedInstance));
    let leaving = Leaving { member_id: String::new(), instance_id: Some("i".to_owned()) };
    let left = rig.coordinator.leave("g", &[leaving], rig.now).unwrap();
    assert_eq!(left, [Ok(())]);
    assert_eq!(rig.state("g"), Some(GroupState::Empty));
}

#[test]
fn given_a_restart_when_members_speak_within_a_session_then_the_generation_goes_on() {
    let mut rig = Rig::new();
    rig.stable("g");
    rig.restart();
    rig.pass(SESSION_MS - 1);
    assert_eq!(rig.beat("g", "m1", 1), Ok(()));
    assert_eq!(rig.coordinator.describe("g").unwrap().members[0].assignment, "all");
    rig.restart();
    rig.pass(SESSION_MS);
    rig.settle();
    assert_eq!(rig.state("g"), Some(GroupState::Empty));
    assert_eq!(rig.store.group("g").unwrap().saved.as_ref().unwrap().generation, 2);
}

#[test]
fn given_a_write_that_fails_when_a_leader_assigns_then_all_are_told_and_rebalance() {
    let mut rig = Rig::new();
    rig.join("g", "");
    let ticket = rig.sync("g", "m1", 1, &[("m1", "a")]);
    let (job, _) = rig.unwritten.remove(0);
    rig.coordinator.written(job, Err(GroupError::NotCoordinator), rig.now);
    rig.collect();
    assert_eq!(rig.assignment(ticket), Some(Err(GroupError::NotCoordinator)));
    assert_eq!(rig.state("g"), Some(GroupState::PreparingRebalance));
}

#[test]
fn given_bad_requests_when_they_join_then_each_is_refused_as_kafka_does() {
    let mut rig = Rig::new();
    rig.stable("g");
    let mut refuse = |change: fn(&mut JoinRequest), error: GroupError| {
        let mut request = rig.request("g", "");
        change(&mut request);
        let ticket = rig.join_with(request);
        assert_eq!(rig.answer(ticket).unwrap().error, Some(error));
    };
    refuse(|r| r.group.clear(), GroupError::InvalidGroupId);
    refuse(|r| r.session_timeout_ms = 1, GroupError::InvalidSessionTimeout);
    refuse(|r| r.session_timeout_ms = DAY_MS, GroupError::InvalidSessionTimeout);
    refuse(|r| r.protocol_type = "connect".to_owned(), GroupError::InconsistentProtocol);
    refuse(|r| r.protocols[0].0 = "sticky".to_owned(), GroupError::InconsistentProtocol);
    refuse(|r| r.protocols.clear(), GroupError::InconsistentProtocol);
    refuse(|r| r.member_id = "nobody".to_owned(), GroupError::UnknownMember);
    assert_eq!(rig.state("g"), Some(GroupState::Stable), "nobody was disturbed");
}

#[test]
fn given_a_full_group_when_another_joins_then_it_is_refused() {
    let mut rig = Rig::with(CoordinatorConfig { members_max: 1, ..config() });
    rig.stable("g");
    let ticket = rig.join("g", "");
    assert_eq!(rig.answer(ticket).unwrap().error, Some(GroupError::GroupFull));
}

#[test]
fn given_members_of_different_taste_when_they_join_then_most_votes_win_among_what_all_speak() {
    let mut rig = Rig::new();
    let protocols = |names: &[&str]| -> Vec<(String, Bytes)> {
        names.iter().map(|name| ((*name).to_owned(), Bytes::new())).collect()
    };
    rig.stable("g");
    let mut tickets = Vec::new();
    for _ in 0..2 {
        let mut request = rig.request("g", "");
        request.protocols = protocols(&["sticky", "range"]);
        tickets.push(rig.join_with(request));
    }
    let mut request = rig.request("g", "m1");
    request.protocols = protocols(&["range", "sticky"]);
    rig.join_with(request);
    assert_eq!(rig.answer(tickets[0]).unwrap().protocol.as_deref(), Some("sticky"));
}

#[test]
fn given_commits_from_outside_when_checked_then_only_an_empty_group_takes_them() {
    let mut rig = Rig::new();
    assert_eq!(rig.check_commit("simple", "", -1), Ok(()));
    assert_eq!(rig.check_commit("none", "m", 3), Err(GroupError::IllegalGeneration));
    let member = MemberRef { group: "none", id: "m", instance_id: None, generation: 3 };
    let check = CommitCheck { member, tells_group_not_found: true };
    let checked = rig.coordinator.check_commit(check, rig.now);
    assert_eq!(checked, Err(GroupError::GroupNotFound));
    rig.stable("g");
    assert_eq!(rig.check_commit("g", "", -1), Err(GroupError::UnknownMember));
    rig.join("g", "");
    assert_eq!(rig.check_commit("g", "m1", 1), Ok(()), "while others are waited for");
    rig.join("g", "m1");
    assert_eq!(rig.check_commit("g", "m1", 2), Err(GroupError::RebalanceInProgress));
}

#[test]
fn given_offsets_when_time_passes_then_they_expire_only_where_nobody_uses_them() {
    let mut rig = Rig::new();
    rig.stable("used");
    rig.commit("used", "t", 1);
    assert_eq!(rig.check_commit("simple", "", -1), Ok(()));
    rig.commit("simple", "t", 2);
    rig.stable("left");
    rig.commit("left", "t", 3);
    rig.pass(6 * DAY_MS);
    let ticket = rig.join("used", "");
    let id = rig.answer(ticket).unwrap().member_id.clone();
    let generation = rig.answer(ticket).unwrap().generation;
    rig.sync("used", &id, generation, &[]);
    rig.settle();
    // Its only member was silent: it is empty since now.
    assert_eq!(rig.state("left"), Some(GroupState::Empty));
    rig.now.wall_ms += DAY_MS;
    rig.expire();
    assert!(rig.store.group("simple").is_none());
    assert!(rig.store.group("left").is_some());
    rig.now.wall_ms += 6 * DAY_MS;
    rig.expire();
    assert!(rig.store.group("left").is_none());
    rig.expire();
    assert_eq!(rig.state("left"), None, "it goes from memory, too");
    assert_eq!(rig.store.offset("used", "t", 0).unwrap().offset, 1);
}

#[test]
fn given_a_commit_on_its_way_when_the_offset_before_it_expires_then_the_commit_stays() {
    let mut rig = Rig::new();
    assert_eq!(rig.check_commit("g", "", -1), Ok(()));
    rig.commit("g", "t", 1);
    rig.now.wall_ms += 7 * DAY_MS;
    let found_before = rig.coordinator.expire_offsets(&rig.store, rig.now, |_, _, _| false);
    assert_eq!(found_before.len(), 1);
    rig.commit("g", "t", 2);
    found_before.into_iter().for_each(|command| rig.store.apply(command));
    assert_eq!(rig.store.offset("g", "t", 0).unwrap().offset, 2);
}

#[test]
fn given_deletions_that_fail_when_looked_at_again_then_the_group_is_known_until_they_succeed() {
    let mut rig = Rig::new();
    assert_eq!(rig.check_commit("g", "", -1), Ok(()));
    rig.commit("g", "t", 1);
    assert!(rig.coordinator.check_delete("g").is_ok());
    assert_eq!(rig.state("g"), Some(GroupState::Empty));
    rig.now.wall_ms += 7 * DAY_MS;
    drop(rig.coordinator.expire_offsets(&rig.store, rig.now, |_, _, _| false));
    rig.expire();
    assert!(rig.store.group("g").is_none());
}

#[test]
fn given_names_of_whoever_commits_nothing_when_time_passes_then_they_are_forgotten() {
    let mut rig = Rig::new();
    assert_eq!(rig.check_commit("nothing", "", -1), Ok(()));
    rig.expire();
    assert_eq!(rig.state("nothing"), Some(GroupState::Empty), "its commit may be on its way");
    rig.now.wall_ms += config().offsets_check_interval_ms;
    rig.expire();
    assert_eq!(rig.state("nothing"), None);
}

#[test]
fn given_a_group_when_it_is_deleted_then_only_an_empty_one_goes() {
    let mut rig = Rig::new();
    let id = rig.stable("g");
    assert_eq!(rig.coordinator.check_delete("g"), Err(GroupError::NonEmptyGroup));
    assert_eq!(rig.coordinator.check_delete("x"), Err(GroupError::GroupNotFound));
    let leaving = Leaving { member_id: id, instance_id: None };
    rig.coordinator.leave("g", &[leaving], rig.now).unwrap();
    rig.settle();
    let command = rig.coordinator.check_delete("g").unwrap();
    rig.store.apply(command);
    rig.coordinator.deleted("g", &rig.store);
    assert_eq!(rig.state("g"), None);
}

#[test]
fn given_a_coordinator_that_resigns_when_some_wait_then_all_of_them_are_sent_away() {
    let mut rig = Rig::new();
    rig.stable("g");
    let joins = rig.join("g", "");
    rig.join("h", "");
    let syncs = rig.sync("h", &rig.answer(Ticket(rig.tickets)).unwrap().member_id.clone(), 1, &[]);
    rig.coordinator.resign();
    rig.collect();
    assert_eq!(rig.answer(joins).unwrap().error, Some(GroupError::NotCoordinator));
    assert_eq!(rig.assignment(syncs), Some(Err(GroupError::NotCoordinator)));
}

#[test]
fn given_fifty_members_when_they_rebalance_then_all_are_in_one_generation() {
    let mut rig = Rig::with(CoordinatorConfig { initial_rebalance_delay_ms: 100, ..config() });
    let tickets: Vec<Ticket> = (0..50).map(|_| rig.join("g", "")).collect();
    rig.pass(100);
    rig.pass(100);
    let generations: Vec<i32> =
        tickets.iter().map(|ticket| rig.answer(*ticket).unwrap().generation).collect();
    assert_eq!(generations, [1; 50]);
}

#[test]
fn given_a_store_when_encoded_then_it_is_read_back_and_damage_is_an_error() {
    let mut rig = Rig::new();
    rig.stable("g");
    rig.commit("g", "t", 7);
    let bytes = rig.store.encode().unwrap();
    assert_eq!(GroupStore::decode(&bytes).unwrap(), rig.store);
    assert!(bytes.len() <= rig.store.bytes());
    assert!(GroupStore::decode(&bytes[..bytes.len() - 1]).is_err());
    assert_eq!(GroupStore::decode(&[]).unwrap(), GroupStore::default());
}

#[test]
fn given_offsets_of_a_partition_that_is_gone_when_looked_at_then_they_go_though_their_group_reads_it()
 {
    let mut rig = Rig::new();
    rig.stable("g");
    rig.commit("g", "t", 7);
    rig.commit("g", "kept", 8);
    let gone = |topic: &str, _: i32, of: GroupId| topic == "t" && of == GroupId(1);
    for command in rig.coordinator.expire_offsets(&rig.store, rig.now, gone) {
        rig.store.apply(command);
    }
    assert!(rig.store.offset("g", "t", 0).is_none());
    assert_eq!(rig.store.offset("g", "kept", 0).map(|saved| saved.offset), Some(8));
    assert_eq!(rig.state("g"), Some(GroupState::Stable));
}

#[test]
fn given_a_topic_made_again_when_committed_in_the_same_millisecond_then_the_expiry_of_the_old_one_leaves_it()
 {
    let mut rig = Rig::new();
    rig.stable("g");
    rig.commit("g", "t", 7);
    let gone = |_: &str, _: i32, of: GroupId| of == GroupId(1);
    let expiry = rig.coordinator.expire_offsets(&rig.store, rig.now, gone);
    assert_eq!(expiry.len(), 1);
    let old = rig.store.offset("g", "t", 0).unwrap().clone();
    let again = SavedOffset { offset: 9, raft_group: GroupId(2), ..old };
    let offsets = vec![("t".to_owned(), 0, again)];
    rig.store.apply(GroupCommand::Commit { group: "g".to_owned(), offsets });
    for command in expiry {
        rig.store.apply(command);
    }
    assert_eq!(rig.store.offset("g", "t", 0).map(|saved| saved.offset), Some(9));
}
