//! Consumer groups: from requests to the coordinator of the group they name, and back.
//!
//! A group belongs to one partition of `__consumer_offsets`, so its coordinator is on that partition's shard. What has
//! to wait there is named by a ticket of this core, and taken back when the connection dies.

mod admin;
mod find;
mod members;
mod offsets;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use chronik_engine::ids::{GroupId as PartitionGroup, NodeId, ShardId};
use chronik_net::{ConnectionContext, Enqueued, RequestKind};
use futures_util::future::{Either, join_all, select};
use futures_util::stream::{self, StreamExt as _};
use kafka_protocol::messages::OffsetCommitRequest;
use kafka_protocol::protocol::StrBytes;

use super::change::change_catalog;
use super::routing::Route;
use super::{deferred, finished};
use crate::catalog::{Catalog, CatalogCommand, NewTopic, Topic, TopicId};
use crate::core::FetchError;
use crate::groups::{Coordinator, GroupError, GroupStore, Now, OFFSETS_TOPIC, partition_of};
use crate::shell::barrier::Leading;
use crate::shell::shard::Shard;

/// Groups of one request that are asked for at the same time.
const SIDE_BY_SIDE_MAX: usize = 64;

/// How long somebody is kept waiting for `__consumer_offsets` to be made.
const TOPIC_WAIT: Duration = Duration::from_secs(10);

/// Who asks.
#[derive(Debug)]
pub struct Client {
    /// What the client calls itself.
    id: String,
    /// Where it comes from, as Kafka writes it.
    host: String,
}

/// Begins to serve a request about groups.
///
/// # Errors
/// The request, if it is about something else.
#[expect(
    clippy::result_large_err,
    reason = "what is no request about groups is handed on, once per request"
)]
pub fn enqueue(
    shard: &Rc<Shard>,
    connection: &ConnectionContext,
    client_id: Option<&StrBytes>,
    version: i16,
    body: RequestKind,
) -> Result<Enqueued, RequestKind> {
    let here = Rc::clone(shard);
    let client = || Client {
        id: client_id.map(ToString::to_string).unwrap_or_default(),
        host: format!("/{}", connection.peer.ip()),
    };
    Ok(match body {
        RequestKind::FindCoordinator(body) => deferred(connection, async move {
            finished(find::find_coordinator(here, version, body).await)
        }),
        RequestKind::JoinGroup(body) => {
            let client = client();
            deferred(connection, async move {
                finished(members::join_group(here, version, client, body).await)
            })
        }
        RequestKind::SyncGroup(body) => {
            deferred(
                connection,
                async move { finished(members::sync_group(here, version, body).await) },
            )
        }
        RequestKind::Heartbeat(body) => {
            deferred(connection, async move { finished(members::heartbeat(here, body).await) })
        }
        RequestKind::LeaveGroup(body) => deferred(connection, async move {
            finished(members::leave_group(here, version, body).await)
        }),
        RequestKind::OffsetFetch(body) => deferred(connection, async move {
            finished(offsets::offset_fetch(here, version, body).await)
        }),
        RequestKind::OffsetDelete(body) => {
            deferred(connection, async move { finished(offsets::offset_delete(here, body).await) })
        }
        RequestKind::DescribeGroups(body) => deferred(connection, async move {
            finished(admin::describe_groups(here, version, body).await)
        }),
        RequestKind::ListGroups(body) => {
            deferred(
                connection,
                async move { finished(admin::list_groups(here, version, body).await) },
            )
        }
        RequestKind::DeleteGroups(body) => {
            deferred(connection, async move { finished(admin::delete_groups(here, body).await) })
        }
        other => return Err(other),
    })
}

/// Takes an OffsetCommit: its place in the group's log is fixed when this returns, so that commits of one connection are
/// written side by side. One that comes behind a request that is not served yet, as leaving the group would be, waits for
/// that. Cancel-safe; what was proposed is committed.
pub async fn enqueue_commit(
    shard: &Rc<Shard>,
    connection: &ConnectionContext,
    version: i16,
    body: OffsetCommitRequest,
) -> Enqueued {
    let begun = offsets::offset_commit(Rc::clone(shard), version, body);
    if connection.deferred.any() {
        return deferred(connection, async move { finished(begun.await.await) });
    }
    let answer = begun.await;
    Enqueued::finish_with(async move { finished(answer.await) })
}

/// Makes `__consumer_offsets` if it is not there, and waits for it. Not before there are as many nodes as it is to have
/// replicas: it would keep the few that it began with.
async fn offsets_topic(shard: &Rc<Shard>) -> Result<Arc<Topic>, GroupError> {
    if let Some(topic) = shard.catalog().topic(OFFSETS_TOPIC) {
        return Ok(Arc::clone(topic));
    }
    let avoid = super::topics::nodes_down(shard);
    let replicas = super::replicas::wanted_by_default(shard);
    let nodes = nodes_for_replicas(&shard.catalog(), &avoid);
    if nodes < replicas {
        shard.complain_of_topics(format!(
            "consumer groups wait: {OFFSETS_TOPIC} is to have {replicas} replicas, and {nodes} of the nodes that are up take one. \
             {}",
            super::replicas::MORE_NODES
        ));
        return Err(GroupError::NotAvailable);
    }
    let topic = NewTopic {
        name: OFFSETS_TOPIC.to_owned(),
        id: TopicId(uuid::Uuid::new_v4()),
        internal: true,
        partitions: super::topics::new_partitions(
            shard.node.config.group.offsets_topic_num_partitions,
            replicas,
        ),
        configs: BTreeMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]),
    };
    let command = CatalogCommand::CreateTopics { topics: vec![topic], avoid };
    let timeout = std::pin::pin!(chronik_ring::sleep(TOPIC_WAIT));
    // Whether it was made by this or by somebody else at the same time is the same.
    if let Either::Left((Err(error), _)) =
        select(std::pin::pin!(change_catalog(shard, command)), timeout).await
    {
        tracing::warn!("{OFFSETS_TOPIC} could not be made: {error}");
    }
    shard.catalog().topic(OFFSETS_TOPIC).cloned().ok_or(GroupError::NotAvailable)
}

/// How many nodes take new replicas, but for those that are down.
fn nodes_for_replicas(catalog: &Catalog, down: &[NodeId]) -> usize {
    catalog.open_brokers().filter(|broker| !down.contains(&broker.node)).count()
}

/// The partition of `__consumer_offsets` that a group belongs to.
fn route_in(shard: &Shard, topic: &Topic, group: &str) -> Result<Route, GroupError> {
    let number = partition_of(group, topic.partitions.len());
    let number = i32::try_from(number).map_err(|_| GroupError::NotCoordinator)?;
    Route::of(topic, number, shard.node.config.node_id).map_err(|_| GroupError::NotCoordinator)
}

/// Where a group is coordinated, if groups were ever formed here.
fn route_of(shard: &Shard, group: &str) -> Result<Route, GroupError> {
    let catalog = shard.catalog();
    let topic = catalog.topic(OFFSETS_TOPIC).ok_or(GroupError::NotCoordinator)?;
    route_in(shard, topic, group)
}

/// Why a replica that may no longer lead does not answer for its groups.
fn read_error(error: FetchError) -> GroupError {
    match error {
        FetchError::UnknownPartition | FetchError::NotLeader => GroupError::NotCoordinator,
        FetchError::OffsetOutOfRange { .. }
        | FetchError::FencedLeaderEpoch { .. }
        | FetchError::UnknownLeaderEpoch { .. }
        | FetchError::Storage => GroupError::NotAvailable,
    }
}

/// Waits, on the core of a coordinator, until it is known to be the one still.
async fn still_coordinates(shard: &Rc<Shard>, group: PartitionGroup) -> Result<(), GroupError> {
    shard.still_leads(group).known().await.map_err(read_error)
}

/// Refuses a change for what this replica remembers, once it is known that no other knows better.
async fn refused<T>(
    shard: &Rc<Shard>,
    group: PartitionGroup,
    error: GroupError,
) -> Result<T, GroupError> {
    still_coordinates(shard, group).await.and(Err(error))
}

/// Does something with the coordinator of a group, on its core, once it is known to be the one still: another may have
/// other members and newer offsets.
async fn on_coordinator<T: Send + 'static>(
    shard: &Rc<Shard>,
    group: &str,
    f: impl FnOnce(&mut Coordinator, &GroupStore, Now) -> T + Send + 'static,
) -> Result<T, GroupError> {
    let route = route_of(shard, group)?;
    let done = shard.on(route.shard, move |there| async move {
        still_coordinates(&there, route.group).await?;
        there.with_coordinator_and_store(route.group, f)
    });
    done.await.unwrap_or(Err(GroupError::NotAvailable))
}

/// Does something with every coordinator of this node that is known to be one still, the cores side by side. Part of an
/// answer would be taken for all of it: where one of them is not ready, there is none.
async fn on_all_coordinators<T: Send + 'static>(
    shard: &Rc<Shard>,
    f: impl Fn(&mut Coordinator) -> T + Copy + Send + 'static,
) -> Result<Vec<T>, GroupError> {
    let catalog = shard.catalog();
    let Some(topic) = catalog.topic(OFFSETS_TOPIC) else { return Ok(Vec::new()) };
    let node = shard.node.config.node_id;
    let mut by_shard: BTreeMap<ShardId, Vec<PartitionGroup>> = BTreeMap::new();
    for partition in &topic.partitions {
        if let Some(placement) = partition.placement_on(node) {
            by_shard.entry(placement.shard).or_default().push(partition.group);
        }
    }
    let asked = by_shard.into_iter().map(|(target, groups)| {
        shard.on(target, move |there| {
            let leading = groups.into_iter().map(|group| (group, there.still_leads(group)));
            let leading: Vec<(PartitionGroup, Leading)> = leading.collect();
            async move {
                let mut results = Vec::with_capacity(leading.len());
                for (group, leading) in leading {
                    let known = leading.known().await.map_err(read_error);
                    let done = known.and_then(|()| {
                        there.with_coordinator(group, |coordinator, _| f(coordinator))
                    });
                    // Its groups are those of another node, unless this one leads and is not as far yet.
                    results.push(match done {
                        Err(GroupError::NotCoordinator) if !there.leads_groups(group) => None,
                        done => Some(done.map_err(|error| match error {
                            GroupError::NotCoordinator => GroupError::Loading,
                            error => error,
                        })),
                    });
                }
                results
            }
        })
    });
    let mut all = Vec::new();
    for results in join_all(asked).await {
        for result in results.map_err(|_| GroupError::NotAvailable)?.into_iter().flatten() {
            all.push(result?);
        }
    }
    Ok(all)
}

/// Asks for each group of a request, some side by side: one whose coordinator has to ask others first keeps nobody
/// waiting. The answers come in the order of the groups.
async fn ask_each<G, A, Fut>(groups: Vec<G>, ask: impl FnMut(G) -> Fut) -> Vec<A>
where
    Fut: Future<Output = A>,
{
    stream::iter(groups).map(ask).buffered(SIDE_BY_SIDE_MAX).collect().await
}

fn text(value: impl Into<String>) -> StrBytes {
    StrBytes::from_string(value.into())
}

/// The code of an outcome on the wire.
fn code<T>(outcome: &Result<T, GroupError>) -> i16 {
    outcome.as_ref().err().map_or(0, |error| error.code())
}
