//! Changes of the catalog: what a request wants is proposed, and answered once every core shows it.
//!
//! Any node takes such a request; which one leads the catalog is nothing that clients know. Where nobody is found in time
//! the answer is NOT_CONTROLLER, on which Kafka's clients look around and ask again; what says that a partition has no
//! leader is final for them here.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use kafka_protocol::ResponseError;

use super::error_code::catalog_error;
use super::partitions::Refusal;
use crate::catalog::{CatalogCommand, CommandOutcome};
use crate::core::{Ack, ProduceError};
use crate::shell::cluster::{META_SHARD, NotProposed};
use crate::shell::shard::Shard;

/// The shortest and the longest that a request waits for a change of the catalog, whatever it says. A change takes
/// milliseconds: a client that says 0 is better served by its outcome than by REQUEST_TIMED_OUT.
const CHANGE_WAIT_MIN: Duration = Duration::from_secs(1);
const CHANGE_WAIT_MAX: Duration = Duration::from_secs(120);
/// How long a request waits that says nothing of it: less than the 30 s after which most clients give it up.
pub(super) const CHANGE_WAIT_DEFAULT: Duration = Duration::from_secs(25);

/// How often a node looks for the leader of the catalog, and how long it waits in between: longer than an election.
const SUBMIT_TRIES: u32 = 240;
const SUBMIT_RETRY: Duration = Duration::from_millis(50);

/// How long a request may wait for a change of the catalog, by what it says itself.
pub(super) fn wait_of(timeout_ms: i32) -> Duration {
    Duration::from_millis(u64::try_from(timeout_ms).unwrap_or(0))
        .clamp(CHANGE_WAIT_MIN, CHANGE_WAIT_MAX)
}

/// Waits for a change at most so long. What was proposed is done all the same.
pub(super) async fn within<T>(at_most: Duration, change: impl Future<Output = T>) -> Option<T> {
    let timeout = std::pin::pin!(chronik_ring::sleep(at_most));
    match select(std::pin::pin!(change), timeout).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(((), _)) => None,
    }
}

/// Proposes a change of the catalog and waits until it is committed and every core shows it. Cancel-safe; the change is
/// made all the same.
pub async fn change_catalog(
    shard: &Rc<Shard>,
    command: CatalogCommand,
) -> Result<CommandOutcome, ProduceError> {
    let changed = shard.on(META_SHARD, move |meta| async move {
        let mut tries_left = SUBMIT_TRIES;
        let result = loop {
            match meta.submit_command(&command).await {
                Ok(result) => break result,
                Err(NotProposed) if tries_left == 0 => break Err(ProduceError::NotLeader),
                Err(NotProposed) => chronik_ring::sleep(SUBMIT_RETRY).await,
            }
            tries_left -= 1;
        };
        let ack = result?;
        _ = meta.catalog_shown().await;
        match ack {
            Ack::Command(outcome) => Ok(outcome),
            Ack::Appended(_) | Ack::LogStart(_) | Ack::Groups => Err(ProduceError::NotLeader),
        }
    });
    changed.await.unwrap_or(Err(ProduceError::Overloaded))
}

/// The same for a request, which waits at most so long. `late` says what is to be thought of a change that is not made by
/// then: it may be yet.
///
/// # Errors
/// What the client is told.
pub(super) async fn change_within(
    shard: &Rc<Shard>,
    command: CatalogCommand,
    at_most: Duration,
    late: &str,
) -> Result<CommandOutcome, Refusal> {
    match within(at_most, change_catalog(shard, command)).await {
        Some(Ok(CommandOutcome::Refused(error))) => Err((catalog_error(&error), error.to_string())),
        Some(Ok(outcome)) => Ok(outcome),
        Some(Err(error)) => Err((change_error(&error), why_not(&error))),
        None => Err((ResponseError::RequestTimedOut, late.to_owned())),
    }
}

/// Why a change could not be proposed, or is not known to be made.
pub(super) fn change_error(error: &ProduceError) -> ResponseError {
    match error {
        ProduceError::StorageFull => ResponseError::KafkaStorageError,
        ProduceError::CommandTooLarge => ResponseError::PolicyViolation,
        // Of another node, or later, the same may be asked again.
        ProduceError::NotLeader
        | ProduceError::ShuttingDown
        | ProduceError::UnknownPartition
        | ProduceError::Overloaded
        | ProduceError::NotEnoughReplicas { .. } => ResponseError::NotController,
        ProduceError::ControlBatch
        | ProduceError::TransactionalBatch
        | ProduceError::NoSequence { .. }
        | ProduceError::Sequence(_) => ResponseError::UnknownServerError,
    }
}

/// The same in words.
pub(super) fn why_not(error: &ProduceError) -> String {
    match (error, change_error(error)) {
        // Whoever asks has no partition in mind.
        (ProduceError::NotLeader, _) => {
            "no node that leads the catalog has made the change: that takes a majority of the nodes that vote on it"
                .to_owned()
        }
        (_, ResponseError::NotController) => {
            format!("no node that leads the catalog has made the change: {error}")
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_catalog_that_nobody_leads_when_a_change_fails_then_clients_are_told_to_ask_again() {
        for error in [ProduceError::NotLeader, ProduceError::ShuttingDown, ProduceError::Overloaded]
        {
            assert_eq!(change_error(&error), ResponseError::NotController);
            assert!(why_not(&error).contains("leads the catalog"));
        }
        assert!(why_not(&ProduceError::NotLeader).contains("a majority"));
        assert_eq!(change_error(&ProduceError::StorageFull), ResponseError::KafkaStorageError);
    }
}
