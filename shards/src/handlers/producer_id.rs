//! InitProducerId for idempotent producers: ids come from ranges that `__meta` gives out, each once.

use std::rc::Rc;
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{InitProducerIdRequest, InitProducerIdResponse, ProducerId};

use super::change::{change_catalog, within};
use super::error_code::catalog_error;
use crate::catalog::{CatalogCommand, CommandOutcome};
use crate::shell::shard::Shard;

/// Producer ids that a shard takes at a time. Those left at a restart are lost; there are 2^63.
const PRODUCER_ID_RANGE: u32 = 1000;

/// How long a producer is kept waiting for a range that is not there yet: it asks again, and gives up requests that take
/// longer than its request timeout.
const RANGE_WAIT: Duration = Duration::from_secs(5);

/// Serves InitProducerId. Cancel-safe; an id that nobody hears of is lost.
pub async fn init_producer_id(
    shard: Rc<Shard>,
    request: InitProducerIdRequest,
) -> InitProducerIdResponse {
    if request.transactional_id.is_some() {
        // No version of this answer has room for a message; this error is final for every client.
        return failed(ResponseError::InvalidRequest);
    }
    match next_producer_id(&shard).await {
        Ok(id) => InitProducerIdResponse::default()
            .with_producer_id(ProducerId(id))
            .with_producer_epoch(0),
        Err(error) => failed(error),
    }
}

fn failed(error: ResponseError) -> InitProducerIdResponse {
    InitProducerIdResponse::default()
        .with_error_code(error.code())
        .with_producer_id(ProducerId(-1))
        .with_producer_epoch(-1)
}

async fn next_producer_id(shard: &Rc<Shard>) -> Result<i64, ResponseError> {
    if let Some(id) = shard.producer_ids.borrow_mut().next() {
        return Ok(id);
    }
    let command = CatalogCommand::AllocateProducerIds { count: PRODUCER_ID_RANGE };
    match within(RANGE_WAIT, change_catalog(shard, command)).await {
        Some(Ok(CommandOutcome::ProducerIds(range))) => {
            let mut ids = range.first..range.first + i64::from(range.count);
            let id = ids.next().ok_or(ResponseError::UnknownServerError)?;
            // Another request may have brought a range meanwhile; then the rest of this one is lost.
            let mut kept = shard.producer_ids.borrow_mut();
            if kept.is_empty() {
                *kept = ids;
            }
            Ok(id)
        }
        Some(Ok(CommandOutcome::Refused(error))) => Err(catalog_error(&error)),
        Some(Ok(_)) => Err(ResponseError::UnknownServerError),
        // What Kafka says while it has no range: every producer asks again, and none looks for another coordinator.
        Some(Err(_)) | None => Err(ResponseError::CoordinatorLoadInProgress),
    }
}
