//! FindCoordinator: on one node every group's coordinator is this node.

use std::rc::Rc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::{BrokerId, FindCoordinatorRequest, FindCoordinatorResponse};
use kafka_protocol::protocol::StrBytes;

use super::{offsets_topic, text};
use crate::shell::shard::Shard;

/// From this version on several keys are asked for at once (KIP-699).
const BATCH_VERSION_MIN: i16 = 4;

const KEY_GROUP: i8 = 0;
const KEY_TRANSACTION: i8 = 1;

/// Serves FindCoordinator. Cancel-safe; `__consumer_offsets` is made once that has begun.
pub async fn find_coordinator(
    shard: Rc<Shard>,
    version: i16,
    request: FindCoordinatorRequest,
) -> FindCoordinatorResponse {
    let outcome = coordinates(&shard, request.key_type).await;
    let (node, host, port) = match outcome {
        Ok(()) => {
            let info = &shard.node;
            let node = i32::try_from(info.config.node_id.0).unwrap_or(-1);
            (node, text(info.advertised_host.clone()), i32::from(info.advertised_port))
        }
        Err(_) => (-1, StrBytes::default(), -1),
    };
    let (error_code, error_message) = match outcome {
        Ok(()) => (0, None),
        Err((error, why)) => (error.code(), Some(StrBytes::from_static_str(why))),
    };
    if version < BATCH_VERSION_MIN {
        let response = FindCoordinatorResponse::default()
            .with_error_code(error_code)
            .with_node_id(BrokerId(node))
            .with_host(host)
            .with_port(port);
        return if version >= 1 { response.with_error_message(error_message) } else { response };
    }
    let found = |key: StrBytes| {
        Coordinator::default()
            .with_key(key)
            .with_node_id(BrokerId(node))
            .with_host(host.clone())
            .with_port(port)
            .with_error_code(error_code)
            .with_error_message(error_message.clone())
    };
    FindCoordinatorResponse::default()
        .with_coordinators(request.coordinator_keys.into_iter().map(found).collect())
}

async fn coordinates(shard: &Rc<Shard>, key_type: i8) -> Result<(), (ResponseError, &'static str)> {
    match key_type {
        KEY_GROUP => match offsets_topic(shard).await {
            Ok(_) => Ok(()),
            Err(error) => Err((error.response_error(), "the topic of the groups is not there yet")),
        },
        // Final for every client: one that is told to try again would do so until its own patience ends.
        KEY_TRANSACTION => {
            Err((ResponseError::InvalidRequest, "transactions are not available in this version"))
        }
        _ => Err((ResponseError::InvalidRequest, "unknown kind of coordinator")),
    }
}
