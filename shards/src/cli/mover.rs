//! Carries out a plan: has partitions moved, a few at a time, and watches until each has the replicas that it is to have.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, BrokerId, ElectLeadersRequest,
    ListPartitionReassignmentsRequest,
};

use super::kafka::{
    CHANGE_TIMEOUT_MS, Kafka, KafkaError, Refusal, in_versions, known_topics, name_of, topic_name,
};
use super::plan::{At, Move};
use super::readers::take_readers;

const POLL: Duration = Duration::from_millis(500);
/// How often it is looked in vain whether another partition has come to where it is to be: an hour.
const POLLS_WITHOUT_PROGRESS_MAX: u32 = 7_200;
/// How often a move is asked for again whose outcome was not clear.
const ASKS_MAX: u32 = 20;
/// Partitions that are named while they are waited for.
const NAMED_MAX: usize = 5;

/// A partition's move and what became of it.
#[derive(Debug, Clone)]
pub(super) struct Moved {
    pub(super) step: Move,
    pub(super) outcome: Result<(), Refusal>,
}

/// Nodes whose replicas come and nodes whose replicas go, for each partition that moves.
pub(super) type UnderWay = BTreeMap<At, (BTreeSet<i32>, BTreeSet<i32>)>;

/// Has partitions moved.
pub(super) struct Mover {
    kafka: Kafka,
    at_a_time: usize,
}

impl Mover {
    pub(super) fn new(kafka: Kafka, at_a_time: usize) -> Mover {
        Mover { kafka, at_a_time: at_a_time.max(1) }
    }

    /// Where the replicas of all partitions are to be; of those that move, where they go.
    pub(super) fn partitions(&mut self) -> Result<BTreeMap<At, Vec<i32>>, KafkaError> {
        let answer = self.kafka.metadata(None)?;
        let mut partitions = BTreeMap::new();
        let (mut topics, _) = known_topics(answer.topics);
        take_readers(&mut self.kafka, &mut topics)?;
        for topic in topics {
            for partition in &topic.partitions {
                let nodes = partition.replica_nodes.iter().map(|node| node.0).collect();
                partitions.insert((name_of(&topic), partition.partition_index), nodes);
            }
        }
        for (at, (_, removing)) in self.under_way()? {
            if let Some(nodes) = partitions.get_mut(&at) {
                let nodes: &mut Vec<i32> = nodes;
                nodes.retain(|node| !removing.contains(node));
            }
        }
        Ok(partitions)
    }

    /// Where the nodes stand that say so.
    pub(super) fn racks(&mut self) -> Result<BTreeMap<i32, String>, KafkaError> {
        self.kafka.racks()
    }

    /// The partitions that move.
    pub(super) fn under_way(&mut self) -> Result<UnderWay, KafkaError> {
        let request = ListPartitionReassignmentsRequest::default()
            .with_timeout_ms(CHANGE_TIMEOUT_MS)
            .with_topics(None);
        let answer = self.kafka.any(&in_versions(0, 0, request))?;
        Refusal::check(answer.error_code, answer.error_message.as_ref())
            .map_err(|refusal| refusal.of("the list of partitions that move"))?;
        let mut found = BTreeMap::new();
        for topic in &answer.topics {
            for partition in &topic.partitions {
                let set = |nodes: &[BrokerId]| nodes.iter().map(|node| node.0).collect();
                let both = (set(&partition.adding_replicas), set(&partition.removing_replicas));
                found.insert((topic.name.to_string(), partition.partition_index), both);
            }
        }
        Ok(found)
    }

    /// Moves partitions and waits for all of them; says on standard error how far it is.
    pub(super) fn carry_out(&mut self, moves: Vec<Move>) -> Result<Vec<Moved>, KafkaError> {
        let total = moves.len();
        let mut waiting: VecDeque<Move> = moves.into();
        let (mut begun, mut done): (Vec<Move>, Vec<Moved>) = (Vec::new(), Vec::new());
        let mut polls_left = POLLS_WITHOUT_PROGRESS_MAX;
        loop {
            let under_way = self.under_way()?;
            let (moving, arrived) =
                begun.into_iter().partition(|step: &Move| under_way.contains_key(&step.at));
            begun = moving;
            let before = done.len();
            done.extend(arrived.into_iter().map(|step| Moved { step, outcome: Ok(()) }));
            let room = self.at_a_time.saturating_sub(begun.len()).min(waiting.len());
            for moved in self.begin(waiting.drain(..room).collect())? {
                match &moved.outcome {
                    Ok(()) => begun.push(moved.step),
                    Err(_) => done.push(moved),
                }
            }
            if begun.is_empty() && waiting.is_empty() {
                return Ok(done);
            }
            if done.len() > before || polls_left == POLLS_WITHOUT_PROGRESS_MAX {
                polls_left = POLLS_WITHOUT_PROGRESS_MAX;
                eprintln!("{} of {total} partitions moved; now {}", done.len(), names(&begun));
            }
            polls_left = polls_left.saturating_sub(1);
            if polls_left == 0 {
                let what = format!(
                    "no partition has arrived for an hour, {} are on their way: look at `chronik-server cluster status`",
                    begun.len()
                );
                return Err(KafkaError::Usage(what));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Asks for moves, all at once.
    fn begin(&mut self, moves: Vec<Move>) -> Result<Vec<Moved>, KafkaError> {
        if moves.is_empty() {
            return Ok(Vec::new());
        }
        let asked = moves.iter().map(|step| (step.at.clone(), Some(step.to.clone())));
        let mut outcomes = self.alter(asked.collect())?;
        let moved = moves.into_iter().map(|step| {
            let outcome = outcomes.remove(&step.at).unwrap_or(Ok(()));
            Moved { step, outcome }
        });
        Ok(moved.collect())
    }

    /// Lets a partition go back to where it was.
    pub(super) fn cancel(&mut self, at: &At) -> Result<(), KafkaError> {
        let mut outcomes = self.alter(BTreeMap::from([(at.clone(), None)]))?;
        let outcome = outcomes.remove(at).unwrap_or(Ok(()));
        outcome.map_err(|refusal| refusal.of(format!("{}-{}", at.0, at.1)))
    }

    fn alter(
        &mut self,
        asked: BTreeMap<At, Option<Vec<i32>>>,
    ) -> Result<BTreeMap<At, Result<(), Refusal>>, KafkaError> {
        let mut outcomes = BTreeMap::new();
        let mut left = asked;
        // To ask twice for the same place does no harm.
        for _ in 0..ASKS_MAX {
            let answer = self.alter_once(&left)?;
            left.retain(|at, _| answer.get(at).is_some_and(is_unclear));
            outcomes.extend(answer);
            if left.is_empty() {
                break;
            }
            std::thread::sleep(POLL);
        }
        Ok(outcomes)
    }

    fn alter_once(
        &mut self,
        asked: &BTreeMap<At, Option<Vec<i32>>>,
    ) -> Result<BTreeMap<At, Result<(), Refusal>>, KafkaError> {
        let mut by_topic: BTreeMap<&str, Vec<ReassignablePartition>> = BTreeMap::new();
        for ((topic, number), to) in asked {
            let to = to.as_ref().map(|nodes| nodes.iter().map(|node| BrokerId(*node)).collect());
            let partition =
                ReassignablePartition::default().with_partition_index(*number).with_replicas(to);
            by_topic.entry(topic).or_default().push(partition);
        }
        let topics = by_topic.into_iter().map(|(topic, partitions)| {
            ReassignableTopic::default().with_name(topic_name(topic)).with_partitions(partitions)
        });
        let request = AlterPartitionReassignmentsRequest::default()
            .with_timeout_ms(CHANGE_TIMEOUT_MS)
            .with_topics(topics.collect());
        let answer = self.kafka.any(&in_versions(0, 1, request))?;
        Refusal::check(answer.error_code, answer.error_message.as_ref())
            .map_err(|refusal| refusal.of("moving partitions"))?;
        let mut outcomes = BTreeMap::new();
        for topic in answer.responses {
            for partition in topic.partitions {
                let outcome =
                    Refusal::check(partition.error_code, partition.error_message.as_ref());
                outcomes.insert((topic.name.to_string(), partition.partition_index), outcome);
            }
        }
        Ok(outcomes)
    }

    /// Waits until no replica is about to leave `node`. False if others are to come to it first.
    pub(super) fn wait_until_left(&mut self, node: i32) -> Result<bool, KafkaError> {
        for _ in 0..POLLS_WITHOUT_PROGRESS_MAX {
            let under_way = self.under_way()?;
            if under_way.values().any(|(adding, _)| adding.contains(&node)) {
                return Ok(false);
            }
            if !under_way.values().any(|(_, removing)| removing.contains(&node)) {
                return Ok(true);
            }
            std::thread::sleep(POLL);
        }
        let what = format!("replicas have been leaving node {node} for an hour");
        Err(KafkaError::Usage(what))
    }

    /// Lets the first replica of each partition lead it, where it can. What cannot be now the brokers see to later.
    pub(super) fn elect_preferred(&mut self) -> Result<(), KafkaError> {
        let request = ElectLeadersRequest::default()
            .with_topic_partitions(None)
            .with_timeout_ms(CHANGE_TIMEOUT_MS);
        let answer = self.kafka.any(&in_versions(0, 2, request))?;
        Refusal::check(answer.error_code, None).map_err(|refusal| refusal.of("electing leaders"))
    }
}

fn is_unclear(outcome: &Result<(), Refusal>) -> bool {
    let unclear = [
        ResponseError::RequestTimedOut,
        ResponseError::NotLeaderOrFollower,
        ResponseError::NotController,
    ];
    outcome.as_ref().err().is_some_and(|refusal| unclear.contains(&refusal.error))
}

fn names(moves: &[Move]) -> String {
    let name = |step: &Move| format!("{}-{}", step.at.0, step.at.1);
    let mut text = moves.iter().take(NAMED_MAX).map(name).collect::<Vec<_>>().join(", ");
    if moves.len() > NAMED_MAX {
        text.push_str(&format!(" and {} more", moves.len() - NAMED_MAX));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_many_partitions_on_their_way_when_named_then_the_line_stays_short() {
        let step = |number| Move { at: ("t".to_owned(), number), from: vec![], to: vec![] };
        let moves: Vec<Move> = (0..7).map(step).collect();
        assert_eq!(names(&moves), "t-0, t-1, t-2, t-3, t-4 and 2 more");
        assert_eq!(names(&moves[..1]), "t-0");
    }

    #[test]
    fn given_outcomes_when_judged_then_only_unclear_ones_are_asked_for_again() {
        let refused = |error| Err(Refusal { error, message: None });
        assert!(is_unclear(&refused(ResponseError::RequestTimedOut)));
        assert!(!is_unclear(&refused(ResponseError::InvalidReplicaAssignment)));
        assert!(!is_unclear(&Ok(())));
    }
}
