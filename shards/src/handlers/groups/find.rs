//! FindCoordinator: a group is coordinated where its partition of `__consumer_offsets` is led.

use std::rc::Rc;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::{BrokerId, FindCoordinatorRequest, FindCoordinatorResponse};
use kafka_protocol::protocol::StrBytes;

use super::{offsets_topic, text};
use crate::catalog::Broker;
use crate::groups::partition_of;
use crate::handlers::each_once;
use crate::handlers::metadata::broker_id;
use crate::shell::cluster::leaders::leaders_of;
use crate::shell::shard::Shard;

/// From this version on several keys are asked for at once (KIP-699).
const BATCH_VERSION_MIN: i16 = 4;

const KEY_GROUP: i8 = 0;
const KEY_TRANSACTION: i8 = 1;

/// Where a coordinator is, or why that is not known.
type Place = Result<Arc<Broker>, (ResponseError, &'static str)>;

/// Serves FindCoordinator. Cancel-safe; `__consumer_offsets` is made once that has begun.
pub async fn find_coordinator(
    shard: Rc<Shard>,
    version: i16,
    request: FindCoordinatorRequest,
) -> FindCoordinatorResponse {
    if version < BATCH_VERSION_MIN {
        let key = std::slice::from_ref(&request.key);
        let place = places(&shard, request.key_type, key).await.pop();
        let place = place.unwrap_or(Err((ResponseError::InvalidRequest, "no key")));
        let (error_code, error_message) = error_of(&place);
        let (node, host, port) = address_of(&place);
        let response = FindCoordinatorResponse::default()
            .with_error_code(error_code)
            .with_node_id(node)
            .with_host(host)
            .with_port(port);
        return if version >= 1 { response.with_error_message(error_message) } else { response };
    }
    let keys = each_once(request.coordinator_keys, StrBytes::clone);
    let places = places(&shard, request.key_type, &keys).await;
    let coordinators = keys.into_iter().zip(places).map(|(key, place)| {
        let (error_code, error_message) = error_of(&place);
        let (node, host, port) = address_of(&place);
        Coordinator::default()
            .with_key(key)
            .with_node_id(node)
            .with_host(host)
            .with_port(port)
            .with_error_code(error_code)
            .with_error_message(error_message)
    });
    FindCoordinatorResponse::default().with_coordinators(coordinators.collect())
}

fn address_of(place: &Place) -> (BrokerId, StrBytes, i32) {
    match place {
        Ok(broker) => (broker_id(broker.node.0), text(broker.host.clone()), i32::from(broker.port)),
        Err(_) => (BrokerId(-1), StrBytes::default(), -1),
    }
}

fn error_of(place: &Place) -> (i16, Option<StrBytes>) {
    match place {
        Ok(_) => (0, None),
        Err((error, why)) => (error.code(), Some(StrBytes::from_static_str(why))),
    }
}

/// The brokers that coordinate these groups, one for each.
async fn places(shard: &Rc<Shard>, key_type: i8, keys: &[StrBytes]) -> Vec<Place> {
    let all = |error, why| vec![Err((error, why)); keys.len()];
    match key_type {
        KEY_GROUP => {}
        // Final for every client: one that is told to try again would do so until its own patience ends.
        KEY_TRANSACTION => {
            let why = "transactions are not available in this version";
            return all(ResponseError::InvalidRequest, why);
        }
        _ => return all(ResponseError::InvalidRequest, "unknown kind of coordinator"),
    }
    let topic = match offsets_topic(shard).await {
        Ok(topic) => topic,
        Err(error) => {
            return all(error.response_error(), "the topic of the groups is not there yet");
        }
    };
    let leaders = leaders_of(shard, std::iter::once(&*topic)).await;
    let catalog = shard.catalog();
    let place = |key: &StrBytes| {
        let partition = topic.partitions.get(partition_of(key, topic.partitions.len()));
        let leader = partition.and_then(|partition| leaders.get(&partition.group));
        let broker = leader.and_then(|leader| catalog.broker(leader.node));
        let why = "the group's partition has no leader now";
        broker.map(Arc::clone).ok_or((ResponseError::CoordinatorNotAvailable, why))
    };
    keys.iter().map(place).collect()
}
