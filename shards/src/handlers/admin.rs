//! Which handler answers which of the administrators' requests.

use std::rc::Rc;

use chronik_net::{CloseReason, Finished, RequestKind};

use super::{configs, describe, elections, finished, log_dirs, partitions, quorum, reassignments};
use crate::shell::shard::Shard;

/// Hands a request to its handler.
pub(super) async fn answer(shard: Rc<Shard>, version: i16, request: RequestKind) -> Finished {
    match request {
        RequestKind::DescribeConfigs(body) => finished(configs::describe(&shard, version, body)),
        RequestKind::AlterConfigs(body) => finished(configs::alter(shard, body).await),
        RequestKind::IncrementalAlterConfigs(body) => {
            finished(configs::alter_incrementally(shard, body).await)
        }
        RequestKind::ListConfigResources(body) => {
            finished(configs::list_resources(&shard, version, body))
        }
        RequestKind::CreatePartitions(body) => {
            finished(partitions::create_partitions(shard, body).await)
        }
        RequestKind::DescribeCluster(body) => {
            finished(describe::describe_cluster(&shard, version, body))
        }
        RequestKind::DescribeTopicPartitions(body) => {
            finished(describe::describe_topic_partitions(shard, body).await)
        }
        RequestKind::DescribeLogDirs(body) => {
            finished(log_dirs::describe_log_dirs(shard, version, body).await)
        }
        RequestKind::DescribeProducers(body) => {
            finished(describe::describe_producers(shard, body).await)
        }
        RequestKind::ElectLeaders(body) => {
            finished(elections::elect_leaders(shard, version, body).await)
        }
        RequestKind::AlterPartitionReassignments(body) => {
            finished(reassignments::alter_reassignments(shard, body).await)
        }
        RequestKind::ListPartitionReassignments(body) => {
            finished(reassignments::list_reassignments(&shard, body))
        }
        RequestKind::DescribeQuorum(body) => {
            finished(quorum::describe_quorum(shard, version, body).await)
        }
        RequestKind::UnregisterBroker(body) => {
            finished(quorum::unregister_broker(shard, body).await)
        }
        // What the dispatcher forgot: no answer is better than a wrong one.
        _ => Finished::Close(CloseReason::Handler { what: "a request that no handler answers" }),
    }
}
