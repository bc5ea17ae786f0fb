//! ElectLeaders: partitions go to their preferred leaders. Kafka's other election, of a replica that is not in sync, does
//! not exist here: only who a majority votes for leads, and no majority votes for a replica that lacks what it has.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use chronik_engine::ids::{GroupId, NodeId, ReplicaId};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use kafka_protocol::messages::{ElectLeadersRequest, ElectLeadersResponse, TopicName};
use kafka_protocol::protocol::StrBytes;

use super::change::{wait_of, within};
use super::partitions::Refusal;
use crate::catalog::{Partition, Topic, TopicId};
use crate::core::TransferRefused;
use crate::shell::cluster::leaders::{Leader, leaders_of};
use crate::shell::cluster::transfer::Transfer;
use crate::shell::shard::Shard;

/// Kafka's numbers for the kinds of election.
const PREFERRED: i8 = 0;
const UNCLEAN: i8 = 1;

/// Between two looks at who leads; and after how many of them a leader is asked again.
const POLL: Duration = Duration::from_millis(25);
const POLLS_UNTIL_ASKED_AGAIN: u32 = 40;

/// A partition that is to get another leader.
#[derive(Debug, Clone, Copy)]
struct Election {
    group: GroupId,
    node: NodeId,
    replica: ReplicaId,
    leader: NodeId,
}

/// What is to be done for a partition.
enum Judged {
    Done(Result<(), Refusal>),
    Wanted(Election),
}

/// Serves ElectLeaders. Cancel-safe; what was begun goes on.
pub async fn elect_leaders(
    shard: Rc<Shard>,
    version: i16,
    request: ElectLeadersRequest,
) -> ElectLeadersResponse {
    // Before version 1 there was one kind only.
    let kind = if version >= 1 { request.election_type } else { PREFERRED };
    if !matches!(kind, PREFERRED | UNCLEAN) {
        return ElectLeadersResponse::default()
            .with_error_code(ResponseError::InvalidRequest.code());
    }
    let wait = wait_of(request.timeout_ms);
    let asked = asked(&shard, request);
    let topics: BTreeMap<TopicId, &Topic> = asked
        .partitions
        .iter()
        .filter_map(|(_, topic, _)| topic.as_deref())
        .map(|topic| (topic.id, topic))
        .collect();
    let leaders = leaders_of(&shard, topics.into_values()).await;
    let up = shard.nodes_up();
    let mut judged: Vec<(TopicName, i32, Judged)> = Vec::with_capacity(asked.partitions.len());
    for (name, topic, number) in asked.partitions {
        let found = topic.as_ref().and_then(|topic| topic.partition(number));
        let judgement = match found {
            None => Judged::Done(Err(unknown_partition())),
            Some(partition) if kind == UNCLEAN => {
                Judged::Done(Err(unclean(leaders.contains_key(&partition.group))))
            }
            Some(partition) => judge(partition, leaders.get(&partition.group), &up),
        };
        judged.push((name, number, judgement));
    }
    let wanted = judged.iter().filter_map(|(_, _, judged)| match judged {
        Judged::Wanted(election) => Some(*election),
        Judged::Done(_) => None,
    });
    let mut elected = elect(&shard, wanted.collect(), wait).await;
    let mut results: BTreeMap<TopicName, Vec<PartitionResult>> = BTreeMap::new();
    for (name, number, judged) in judged {
        let outcome = match judged {
            Judged::Done(outcome) => outcome,
            Judged::Wanted(election) => elected.remove(&election.group).unwrap_or(Ok(())),
        };
        let is_told = |(error, _): &Refusal| *error != ResponseError::ElectionNotNeeded;
        // Asked for all partitions, Kafka leaves out those that have the right leader.
        if !asked.all || outcome.as_ref().err().is_none_or(is_told) {
            results.entry(name).or_default().push(result(number, outcome));
        }
    }
    let results = results.into_iter().map(|(name, partitions)| {
        ReplicaElectionResult::default().with_topic(name).with_partition_result(partitions)
    });
    ElectLeadersResponse::default().with_replica_election_results(results.collect())
}

/// The partitions that a request is about.
struct Asked {
    all: bool,
    partitions: Vec<(TopicName, Option<Arc<Topic>>, i32)>,
}

fn asked(shard: &Shard, request: ElectLeadersRequest) -> Asked {
    let catalog = shard.catalog();
    let mut partitions = Vec::new();
    let Some(topics) = request.topic_partitions else {
        for topic in catalog.topics() {
            let name = TopicName::from(StrBytes::from_string(topic.name.to_string()));
            for (number, _) in (0..).zip(&topic.partitions) {
                partitions.push((name.clone(), Some(Arc::clone(topic)), number));
            }
        }
        return Asked { all: true, partitions };
    };
    let mut told = BTreeSet::new();
    for topic in topics {
        let found = catalog.topic(&topic.topic).cloned();
        for number in topic.partitions {
            // A partition that is named again is answered once.
            if told.insert((topic.topic.clone(), number)) {
                partitions.push((topic.topic.clone(), found.clone(), number));
            }
        }
    }
    Asked { all: false, partitions }
}

fn judge(partition: &Partition, leader: Option<&Leader>, up: &BTreeSet<NodeId>) -> Judged {
    let refuse = |error, why: &str| Judged::Done(Err((error, why.to_owned())));
    let Some(preferred) = partition.replicas.first() else {
        return refuse(ResponseError::PreferredLeaderNotAvailable, "The partition has no replica.");
    };
    match leader {
        None => refuse(ResponseError::LeaderNotAvailable, "The partition has no leader now."),
        Some(leader) if leader.node == preferred.node => {
            refuse(ResponseError::ElectionNotNeeded, "The preferred replica leads already.")
        }
        // A leader takes no batch while it waits for an heir that does not answer.
        Some(_) if !up.contains(&preferred.node) => {
            refuse(ResponseError::PreferredLeaderNotAvailable, "The preferred replica is down.")
        }
        Some(leader) => Judged::Wanted(Election {
            group: partition.group,
            node: preferred.node,
            replica: preferred.replica,
            leader: leader.node,
        }),
    }
}

fn unknown_partition() -> Refusal {
    let why = "This server does not host this topic-partition.";
    (ResponseError::UnknownTopicOrPartition, why.to_owned())
}

fn unclean(has_leader: bool) -> Refusal {
    if has_leader {
        return (ResponseError::ElectionNotNeeded, "The partition has a leader.".to_owned());
    }
    let why = "Unclean elections do not exist here: a replica leads only if a majority of the partition's replicas \
               votes for it. Start the nodes that have them.";
    (ResponseError::EligibleLeadersNotAvailable, why.to_owned())
}

fn transfer_error(refused: TransferRefused) -> Refusal {
    let error = match refused {
        TransferRefused::NotLeader | TransferRefused::MembersChanging => {
            ResponseError::LeaderNotAvailable
        }
        TransferRefused::NotAVoter | TransferRefused::NotInSync => {
            ResponseError::PreferredLeaderNotAvailable
        }
    };
    (error, refused.to_string())
}

/// Has the leaders hand over, and waits until others lead. What is missing in the answer is led as wanted.
async fn elect(
    shard: &Rc<Shard>,
    wanted: Vec<Election>,
    wait: Duration,
) -> BTreeMap<GroupId, Result<(), Refusal>> {
    if wanted.is_empty() {
        return BTreeMap::new();
    }
    let mut open: BTreeMap<GroupId, Election> =
        wanted.into_iter().map(|election| (election.group, election)).collect();
    let mut done = BTreeMap::new();
    let in_time = within(wait, async {
        while !open.is_empty() {
            ask(shard, &mut open, &mut done).await;
            for _ in 0..POLLS_UNTIL_ASKED_AGAIN {
                settle(shard, &mut open).await;
                if open.is_empty() {
                    return;
                }
                chronik_ring::sleep(POLL).await;
            }
        }
    });
    if in_time.await.is_none() {
        let late = || (ResponseError::RequestTimedOut, "it may lead yet".to_owned());
        done.extend(open.keys().map(|group| (*group, Err(late()))));
    }
    done
}

async fn ask(
    shard: &Rc<Shard>,
    open: &mut BTreeMap<GroupId, Election>,
    done: &mut BTreeMap<GroupId, Result<(), Refusal>>,
) {
    let mut by_leader: BTreeMap<NodeId, Vec<Transfer>> = BTreeMap::new();
    for election in open.values() {
        let transfer = Transfer { group: election.group, to: election.replica };
        by_leader.entry(election.leader).or_default().push(transfer);
    }
    for (group, begun) in shard.transfer_on(by_leader).await {
        // Who led a moment ago may have handed over already.
        let is_final = matches!(begun, Err(refused) if refused != TransferRefused::NotLeader);
        if let (true, Err(refused)) = (is_final, begun) {
            open.remove(&group);
            done.insert(group, Err(transfer_error(refused)));
        }
    }
}

/// Takes out those that are led as wanted, and learns who leads the others.
async fn settle(shard: &Rc<Shard>, open: &mut BTreeMap<GroupId, Election>) {
    let catalog = shard.catalog();
    let is_open =
        |topic: &&Arc<Topic>| topic.partitions.iter().any(|p| open.contains_key(&p.group));
    let topics: Vec<Arc<Topic>> = catalog.topics().filter(is_open).cloned().collect();
    let leaders = leaders_of(shard, topics.iter().map(|topic| &**topic)).await;
    open.retain(|group, election| match leaders.get(group) {
        Some(leader) if leader.node == election.node => false,
        Some(leader) => {
            election.leader = leader.node;
            true
        }
        None => true,
    });
}

fn result(number: i32, outcome: Result<(), Refusal>) -> PartitionResult {
    let result = PartitionResult::default().with_partition_id(number);
    match outcome {
        Ok(()) => result.with_error_message(None),
        Err((error, why)) => result
            .with_error_code(error.code())
            .with_error_message(Some(StrBytes::from_string(why))),
    }
}
