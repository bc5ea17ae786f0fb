//! OffsetCommit, OffsetFetch, OffsetDelete.

use std::collections::BTreeMap;
use std::rc::Rc;

use chronik_engine::ids::GroupId;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse,
    OffsetFetchRequest, OffsetFetchResponse,
};

use super::{ask_each, code, offsets_topic, on_coordinator, refused, route_in, route_of, text};
use crate::catalog::Catalog;
use crate::groups::{CommitCheck, GroupCommand, GroupError, MemberRef, SavedOffset};
use crate::handlers::routing::Route;
use crate::handlers::{each_once, each_partition_once};
use crate::shell::shard::Shard;

/// From this version on a group that is not there is named as such.
const COMMIT_GROUP_NOT_FOUND_VERSION_MIN: i16 = 9;
/// From this version on several groups are asked for at once.
const FETCH_BATCH_VERSION_MIN: i16 = 8;
/// From this version on an answer has an error for the whole group.
const FETCH_ERROR_VERSION_MIN: i16 = 2;
/// From this version on an answer tells the leader epoch.
const FETCH_EPOCH_VERSION_MIN: i16 = 5;

/// What Kafka answers where nothing was committed.
const NO_OFFSET: i64 = -1;
const NO_EPOCH: i32 = -1;

/// The Raft group of a partition, if there is such a one.
fn raft_group(catalog: &Catalog, topic: &str, partition: i32) -> Option<GroupId> {
    Some(catalog.topic(topic)?.partition(partition)?.group)
}

/// What is said of each partition before the group is asked; `None` where nothing stands in the way.
type Checked = Vec<Vec<Option<GroupError>>>;

/// Takes OffsetCommit: what is to be written has its place in the group's log on return, and what is returned resolves to
/// the answer. Cancel-safe; what was proposed is committed.
pub async fn offset_commit(
    shard: Rc<Shard>,
    version: i16,
    request: OffsetCommitRequest,
) -> impl Future<Output = OffsetCommitResponse> {
    let topic = offsets_topic(&shard).await;
    let route = topic.and_then(|topic| route_in(&shard, &topic, &request.group_id));
    let mut request = request;
    // As in Kafka, whose answer has no topic without partitions, unless it does not know it.
    let catalog = shard.catalog();
    let is_told = |topic: &OffsetCommitRequestTopic| {
        !topic.partitions.is_empty() || catalog.topic(&topic.name).is_none()
    };
    request.topics.retain(is_told);
    let (checked, offsets) = check(&shard, &request);
    let begun = route.map(|route| commit(&shard, route, version, &request, offsets));
    async move {
        let committed = match begun {
            Ok(committed) => committed.await,
            Err(error) => Err(error),
        };
        let topics = request.topics.into_iter().zip(checked).map(|(topic, checked)| {
            let answer = |(partition, refused): (OffsetCommitRequestPartition, Option<_>)| {
                let error = refused.or(committed.err());
                OffsetCommitResponsePartition::default()
                    .with_partition_index(partition.partition_index)
                    .with_error_code(error.map_or(0, GroupError::code))
            };
            OffsetCommitResponseTopic::default()
                .with_name(topic.name)
                .with_partitions(topic.partitions.into_iter().zip(checked).map(answer).collect())
        });
        OffsetCommitResponse::default().with_topics(topics.collect())
    }
}

/// Looks at what is committed, and says what of it is to be written.
fn check(
    shard: &Shard,
    request: &OffsetCommitRequest,
) -> (Checked, Vec<(String, i32, SavedOffset)>) {
    let catalog = shard.catalog();
    let metadata_chars_max = shard.node.config.group.offset_metadata_max_bytes;
    let now_ms = shard.clock.wall_ms();
    let expires_ms =
        (request.retention_time_ms >= 0).then(|| now_ms.saturating_add(request.retention_time_ms));
    let mut offsets = Vec::new();
    let mut outcomes: Checked = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let mut checked = Vec::with_capacity(topic.partitions.len());
        for partition in &topic.partitions {
            let number = partition.partition_index;
            let metadata = partition.committed_metadata.as_deref().unwrap_or_default();
            let refused = match raft_group(&catalog, &topic.name, number) {
                None => Some(GroupError::UnknownPartition),
                // Java's characters are units of UTF-16.
                Some(_) if metadata.encode_utf16().count() > metadata_chars_max => {
                    Some(GroupError::MetadataTooLarge)
                }
                Some(raft_group) => {
                    let offset = SavedOffset {
                        offset: partition.committed_offset,
                        raft_group,
                        leader_epoch: partition.committed_leader_epoch,
                        metadata: metadata.to_owned(),
                        committed_ms: now_ms,
                        expires_ms,
                    };
                    offsets.push((topic.name.to_string(), number, offset));
                    None
                }
            };
            checked.push(refused);
        }
        outcomes.push(checked);
    }
    (outcomes, offsets)
}

/// Has the coordinator write the offsets, if the member may commit.
fn commit(
    shard: &Rc<Shard>,
    route: Route,
    version: i16,
    request: &OffsetCommitRequest,
    offsets: Vec<(String, i32, SavedOffset)>,
) -> impl Future<Output = Result<(), GroupError>> + use<> {
    let group = request.group_id.to_string();
    let member_id = request.member_id.clone();
    let instance_id = request.group_instance_id.clone();
    let generation = request.generation_id_or_member_epoch;
    let done = shard.on(route.shard, move |there| {
        let allowed = there.with_coordinator(route.group, |coordinator, now| {
            let member = MemberRef {
                group: &group,
                id: &member_id,
                instance_id: instance_id.as_deref(),
                generation,
            };
            let tells_group_not_found = version >= COMMIT_GROUP_NOT_FOUND_VERSION_MIN;
            coordinator.check_commit(CommitCheck { member, tells_group_not_found }, now)
        });
        let written = match allowed {
            Ok(Ok(())) if offsets.is_empty() => Err(Ok(())),
            Ok(Ok(())) => {
                there.metrics.borrow_mut().counters.group_commits += 1;
                let command = GroupCommand::Commit { group, offsets };
                // Proposed here and now: commits of one connection stay in their order.
                Ok(there.begin_group_command(route.group, &command))
            }
            Ok(Err(error)) | Err(error) => Err(Err(error)),
        };
        async move {
            match written {
                Ok(written) => written.await,
                Err(Ok(())) => Ok(()),
                Err(Err(error)) => refused(&there, route.group, error).await,
            }
        }
    });
    async move {
        match done.await.unwrap_or(Err(GroupError::NotAvailable)) {
            Err(GroupError::StateTooLarge) => Err(GroupError::CommitTooLarge),
            other => other,
        }
    }
}

/// One offset as it was committed, or that there is none.
#[derive(Debug, Clone)]
struct Found {
    partition: i32,
    offset: i64,
    leader_epoch: i32,
    metadata: String,
}

impl Found {
    fn of(partition: i32, saved: Option<&SavedOffset>) -> Found {
        Found {
            partition,
            offset: saved.map_or(NO_OFFSET, |saved| saved.offset),
            leader_epoch: saved.map_or(NO_EPOCH, |saved| saved.leader_epoch),
            metadata: saved.map_or_else(String::new, |saved| saved.metadata.clone()),
        }
    }
}

/// Topics, each with the partitions asked for; `None` for all that there are.
type Asked = Option<Vec<(String, Vec<i32>)>>;
type FoundTopics = Vec<(String, Vec<Found>)>;

/// What is committed of a group. What was committed for a topic that is gone is not taken for an offset of another one by
/// its name, though it may be in the store for a while.
async fn find(shard: &Rc<Shard>, group: String, asked: Asked) -> Result<FoundTopics, GroupError> {
    let name = group.clone();
    let catalog = shard.catalog();
    on_coordinator(shard, &group, move |_, store, _| {
        let is_valid = |topic: &str, number: i32, saved: &SavedOffset| {
            !catalog.is_gone(topic, number, saved.raft_group)
        };
        let Some(asked) = asked else {
            let Some(stored) = store.group(&name) else { return Vec::new() };
            let all = |(topic, partitions): (&String, &BTreeMap<i32, SavedOffset>)| {
                let valid = partitions.iter().filter(|(at, saved)| is_valid(topic, **at, saved));
                let found: Vec<Found> =
                    valid.map(|(number, saved)| Found::of(*number, Some(saved))).collect();
                (!found.is_empty()).then(|| (topic.clone(), found))
            };
            return stored.offsets.iter().filter_map(all).collect();
        };
        let look = |(topic, numbers): (String, Vec<i32>)| {
            let found = |number: i32| {
                let saved = store.offset(&name, &topic, number);
                Found::of(number, saved.filter(|saved| is_valid(&topic, number, saved)))
            };
            let found = numbers.into_iter().map(found).collect();
            (topic, found)
        };
        asked.into_iter().map(look).collect()
    })
    .await
}

/// Serves OffsetFetch. Cancel-safe. There are no transactions, so every offset is stable.
pub async fn offset_fetch(
    shard: Rc<Shard>,
    version: i16,
    request: OffsetFetchRequest,
) -> OffsetFetchResponse {
    if version >= FETCH_BATCH_VERSION_MIN {
        return fetch_groups(&shard, request).await;
    }
    let asked = request.topics.map(|topics| {
        let topics = topics.into_iter();
        asked_once(topics.map(|topic| (topic.name.to_string(), topic.partition_indexes)))
    });
    let found = find(&shard, request.group_id.to_string(), asked.clone()).await;
    let error_code = code(&found);
    // The oldest version has room for errors with the partitions only.
    let partition_error = if version < FETCH_ERROR_VERSION_MIN { error_code } else { 0 };
    let topics = found.unwrap_or_else(|_| nothing(asked));
    let topics = topics.into_iter().map(|(name, partitions)| {
        let partitions = partitions.into_iter().map(|found| {
            let answer = OffsetFetchResponsePartition::default()
                .with_partition_index(found.partition)
                .with_committed_offset(found.offset)
                .with_metadata(Some(text(found.metadata)))
                .with_error_code(partition_error);
            if version >= FETCH_EPOCH_VERSION_MIN {
                answer.with_committed_leader_epoch(found.leader_epoch)
            } else {
                answer
            }
        });
        OffsetFetchResponseTopic::default()
            .with_name(text(name).into())
            .with_partitions(partitions.collect())
    });
    let response = OffsetFetchResponse::default().with_topics(topics.collect());
    if version >= FETCH_ERROR_VERSION_MIN { response.with_error_code(error_code) } else { response }
}

fn nothing(asked: Asked) -> FoundTopics {
    let none = |(topic, numbers): (String, Vec<i32>)| {
        (topic, numbers.into_iter().map(|number| Found::of(number, None)).collect())
    };
    asked.unwrap_or_default().into_iter().map(none).collect()
}

/// The topics of a request, each of their partitions once.
fn asked_once(topics: impl Iterator<Item = (String, Vec<i32>)>) -> Vec<(String, Vec<i32>)> {
    let mut topics: Vec<_> = topics.collect();
    each_partition_once(&mut topics);
    topics
}

async fn fetch_groups(shard: &Rc<Shard>, request: OffsetFetchRequest) -> OffsetFetchResponse {
    let fetch = async |group: OffsetFetchRequestGroup| {
        let asked = group.topics.map(|topics| {
            let topics = topics.into_iter();
            asked_once(topics.map(|topic| (topic.name.to_string(), topic.partition_indexes)))
        });
        let found = find(shard, group.group_id.to_string(), asked).await;
        let error_code = code(&found);
        let topics = found.unwrap_or_default().into_iter().map(|(name, partitions)| {
            let partitions = partitions.into_iter().map(|found| {
                OffsetFetchResponsePartitions::default()
                    .with_partition_index(found.partition)
                    .with_committed_offset(found.offset)
                    .with_committed_leader_epoch(found.leader_epoch)
                    .with_metadata(Some(text(found.metadata)))
            });
            OffsetFetchResponseTopics::default()
                .with_name(text(name).into())
                .with_partitions(partitions.collect())
        });
        OffsetFetchResponseGroup::default()
            .with_group_id(group.group_id)
            .with_topics(topics.collect())
            .with_error_code(error_code)
    };
    let groups = each_once(request.groups, |group| group.group_id.clone());
    OffsetFetchResponse::default().with_groups(ask_each(groups, fetch).await)
}

/// Serves OffsetDelete. Cancel-safe; what was proposed is done.
pub async fn offset_delete(shard: Rc<Shard>, request: OffsetDeleteRequest) -> OffsetDeleteResponse {
    if request.group_id.is_empty() {
        let error = GroupError::InvalidGroupId;
        return OffsetDeleteResponse::default().with_error_code(error.code());
    }
    let catalog = shard.catalog();
    let asked: Vec<(String, i32)> = request
        .topics
        .iter()
        .flat_map(|topic| {
            let partitions = topic.partitions.iter();
            partitions.map(|partition| (topic.name.to_string(), partition.partition_index))
        })
        .collect();
    let exists = asked.iter().map(|(topic, at)| raft_group(&catalog, topic, *at).is_some());
    let exists: Vec<bool> = exists.collect();
    drop(catalog);
    let deleted = delete(&shard, request.group_id.to_string(), asked, exists).await;
    let mut results = match deleted {
        Ok(results) => results.into_iter(),
        Err(error) => return OffsetDeleteResponse::default().with_error_code(error.code()),
    };
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.into_iter().map(|partition| {
            let result = results.next().unwrap_or(Err(GroupError::UnknownPartition));
            OffsetDeleteResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(code(&result))
        });
        OffsetDeleteResponseTopic::default()
            .with_name(topic.name)
            .with_partitions(partitions.collect())
    });
    OffsetDeleteResponse::default().with_topics(topics.collect())
}

async fn delete(
    shard: &Rc<Shard>,
    group: String,
    asked: Vec<(String, i32)>,
    exists: Vec<bool>,
) -> Result<Vec<Result<(), GroupError>>, GroupError> {
    let route = route_of(shard, &group)?;
    let done = shard.on(route.shard, move |there| {
        let checked = there
            .with_coordinator(route.group, |coordinator, _| {
                coordinator.check_offset_delete(&group, &asked)
            })
            .and_then(|checked| checked);
        let begun = checked.map(|mut results| {
            for (result, exists) in results.iter_mut().zip(exists) {
                if !exists {
                    *result = Err(GroupError::UnknownPartition);
                }
            }
            let allowed = asked.into_iter().zip(&results).filter(|(_, result)| result.is_ok());
            let partitions: Vec<(String, i32)> = allowed.map(|(asked, _)| asked).collect();
            let command = GroupCommand::DeleteOffsets { group, partitions };
            (results, there.begin_group_command(route.group, &command))
        });
        async move {
            let (results, written) = match begun {
                Ok(begun) => begun,
                Err(error) => return refused(&there, route.group, error).await,
            };
            written.await?;
            Ok(results)
        }
    });
    done.await.unwrap_or(Err(GroupError::NotAvailable))
}
