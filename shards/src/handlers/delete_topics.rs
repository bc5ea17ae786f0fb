//! DeleteTopics: a change of the catalog, and what groups have committed of the topics is forgotten.

use std::rc::Rc;
use std::sync::Arc;

use chronik_engine::ids::ShardId;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{DeleteTopicsRequest, DeleteTopicsResponse, TopicName};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::change::{change_within, wait_of};
use super::error_code::catalog_error;
use crate::catalog::{CatalogCommand, CommandOutcome, TopicId, TopicRef};
use crate::shell::shard::Shard;

/// Serves DeleteTopics. Cancel-safe; what was proposed is done.
pub async fn delete_topics(
    shard: Rc<Shard>,
    version: i16,
    request: DeleteTopicsRequest,
) -> DeleteTopicsResponse {
    // Up to version 5 topics are named; from 6 on each is a name or an id.
    let asked: Vec<(Option<TopicName>, Uuid)> = if version >= 6 {
        request.topics.into_iter().map(|topic| (topic.name, topic.topic_id)).collect()
    } else {
        request.topic_names.into_iter().map(|name| (Some(name), Uuid::nil())).collect()
    };
    let topics = asked
        .iter()
        .map(|(name, id)| match name {
            Some(name) => TopicRef::Name(name.to_string()),
            None => TopicRef::Id(TopicId(*id)),
        })
        .collect();
    let command = CatalogCommand::DeleteTopics { topics };
    let late = "the topic was not gone in time; it may be deleted yet";
    let results = match change_within(&shard, command, wait_of(request.timeout_ms), late).await {
        Ok(CommandOutcome::TopicsDeleted(results)) => {
            forget_offsets(&shard, results.iter().flatten().map(|gone| gone.name.to_string()));
            let of_each = asked.into_iter().zip(results).map(|((name, id), result)| match result {
                Ok(deleted) => DeletableTopicResult::default()
                    .with_name(Some(StrBytes::from_string(deleted.name.to_string()).into()))
                    .with_topic_id(deleted.id.0),
                Err(error) => not_deleted(name, id, catalog_error(&error), error.to_string()),
            });
            of_each.collect()
        }
        Ok(_) => Vec::new(),
        Err((error, why)) => {
            let of_each = asked.into_iter();
            of_each.map(|(name, id)| not_deleted(name, id, error, why.clone())).collect()
        }
    };
    DeleteTopicsResponse::default().with_responses(results)
}

/// What groups have committed of topics that are gone must not be taken for offsets of others by these names.
fn forget_offsets(shard: &Rc<Shard>, names: impl Iterator<Item = String>) {
    let names: Arc<[String]> = names.collect();
    if names.is_empty() {
        return;
    }
    for target in 0..shard.node.shards {
        let names = Arc::clone(&names);
        // Refused, the offsets stay until they expire.
        _ = shard.post(ShardId(target), move |there| there.forget_topics(&names));
    }
}

fn not_deleted(
    name: Option<TopicName>,
    id: Uuid,
    error: ResponseError,
    why: String,
) -> DeletableTopicResult {
    DeletableTopicResult::default()
        .with_name(name)
        .with_topic_id(id)
        .with_error_code(error.code())
        .with_error_message(Some(StrBytes::from_string(why)))
}
