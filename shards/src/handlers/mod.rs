//! The Kafka APIs: each request from its decoded form to its answer.
//!
//! A handler runs on the core of the connection and goes to the shard of a partition over the mesh. Produce does its work
//! when it is enqueued, and OffsetCommit where it overtakes nothing; all others do it when their turn to be answered comes.

pub mod admin;
pub mod change;
pub mod configs;
pub mod delete_records;
pub mod delete_topics;
pub mod describe;
pub mod elections;
pub mod error_code;
pub mod fetch;
pub mod fetch_session;
pub mod groups;
pub mod http;
mod join;
pub mod log_dirs;
pub mod metadata;
pub mod nodes;
pub mod offsets;
pub mod operations;
pub mod partitions;
pub mod produce;
pub mod producer_id;
pub mod quorum;
pub mod reassignments;
pub(crate) mod replicas;
pub mod routing;
pub mod topics;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use chronik_engine::ids::ShardId;
use chronik_net::{
    ConnectionContext, Enqueued, Finished, HttpRequest, HttpResponse, MovedConnection, Request,
    RequestHandler, RequestKind, ResponseBody, WireStage,
};

use crate::metrics::Stage;
use crate::shell::shard::Shard;

/// Serves the connections of one core.
#[derive(Debug, Clone)]
pub struct Handlers {
    shard: Rc<Shard>,
}

impl Handlers {
    /// For the connections of this shard's core.
    #[must_use]
    pub fn new(shard: Rc<Shard>) -> Handlers {
        Handlers { shard }
    }
}

/// The answer is what `answer` resolves to; how long it took from here is recorded.
fn timed<F>(shard: &Rc<Shard>, stage: Stage, answer: F) -> Enqueued
where
    F: Future<Output = Finished> + 'static,
{
    let shard = Rc::clone(shard);
    let begun_ns = shard.clock.now_ns();
    Enqueued::finish_with(async move {
        let finished = answer.await;
        let took_ns = shard.clock.now_ns().saturating_sub(begun_ns);
        shard.metrics.borrow_mut().record(stage, took_ns);
        finished
    })
}

/// The work is done when the request's turn to be answered comes.
fn deferred<F>(connection: &ConnectionContext, answer: F) -> Enqueued
where
    F: Future<Output = Finished> + 'static,
{
    let one = connection.deferred.one_more();
    Enqueued::finish_with(async move {
        let finished = answer.await;
        drop(one);
        finished
    })
}

fn finished(body: impl Into<ResponseBody>) -> Finished {
    Finished::Response(body.into())
}

/// The first of those that have the same name. What is named again is answered once: else a few bytes more of a request
/// would be a whole topic or group more of the answer.
fn each_once<T, N: Ord>(named: Vec<T>, name_of: impl Fn(&T) -> N) -> Vec<T> {
    let mut seen = BTreeSet::new();
    named.into_iter().filter(|one| seen.insert(name_of(one))).collect()
}

/// The same for the partitions of topics: each number counts where its topic has it first.
fn each_partition_once<N: Ord + Clone>(topics: &mut [(N, Vec<i32>)]) {
    let mut seen: BTreeMap<N, BTreeSet<i32>> = BTreeMap::new();
    for (name, numbers) in topics {
        let seen = seen.entry(name.clone()).or_default();
        numbers.retain(|number| seen.insert(*number));
    }
}

impl RequestHandler for Handlers {
    async fn enqueue(&self, connection: &ConnectionContext, request: Request) -> Enqueued {
        let shard = &self.shard;
        let version = request.api_version;
        let here = Rc::clone(shard);
        match request.body {
            RequestKind::Produce(body) => {
                let answer =
                    produce::enqueue(shard, connection, version, body, request.retained_bytes);
                timed(shard, Stage::ProduceTotal, answer)
            }
            RequestKind::Fetch(body) => {
                // Its session lives on this core.
                connection.affinity.pin();
                timed(shard, Stage::FetchTotal, async move {
                    finished(fetch::fetch(here, version, body).await)
                })
            }
            RequestKind::ListOffsets(body) => deferred(connection, async move {
                finished(offsets::list_offsets(here, version, body).await)
            }),
            RequestKind::OffsetForLeaderEpoch(body) => deferred(connection, async move {
                finished(offsets::offset_for_leader_epoch(here, body).await)
            }),
            RequestKind::Metadata(body) => deferred(connection, async move {
                finished(metadata::metadata(here, version, body).await)
            }),
            RequestKind::CreateTopics(body) => deferred(connection, async move {
                finished(topics::create_topics(here, version, body).await)
            }),
            RequestKind::DeleteTopics(body) => deferred(connection, async move {
                finished(delete_topics::delete_topics(here, version, body).await)
            }),
            RequestKind::DeleteRecords(body) => deferred(connection, async move {
                finished(delete_records::delete_records(here, body).await)
            }),
            RequestKind::InitProducerId(body) => deferred(connection, async move {
                finished(producer_id::init_producer_id(here, body).await)
            }),
            RequestKind::OffsetCommit(body) => {
                groups::enqueue_commit(shard, connection, version, body).await
            }
            other => {
                let client_id = request.client_id.as_ref();
                match groups::enqueue(shard, connection, client_id, version, other) {
                    Ok(enqueued) => enqueued,
                    Err(other) => deferred(connection, admin::answer(here, version, other)),
                }
            }
        }
    }

    fn wire_time(&self, stage: WireStage, took: Duration) {
        let stage = match stage {
            WireStage::Receive => Stage::Receive,
            WireStage::Respond => Stage::Respond,
        };
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.shard.metrics.borrow_mut().record(stage, took_ns);
    }

    fn hand_over(&self, target: u16, connection: MovedConnection) {
        // Refused, the connection closes and its client comes again.
        _ = self.shard.post(ShardId(target), move |there| there.adopt(connection));
    }

    async fn http(&self, connection: &ConnectionContext, request: HttpRequest) -> HttpResponse {
        http::http(Rc::clone(&self.shard), connection.listener, request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_names_and_partitions_that_come_again_when_counted_then_each_counts_where_it_is_first()
    {
        assert_eq!(each_once(vec!["b", "a", "b", "c", "a"], |name| *name), ["b", "a", "c"]);
        let mut topics = [("b", vec![1, 0, 1]), ("a", vec![0]), ("b", vec![2, 0])];
        each_partition_once(&mut topics);
        assert_eq!(topics, [("b", vec![1, 0]), ("a", vec![0]), ("b", vec![2])]);
    }
}
