//! DeleteTopics: a change of the catalog.

use std::collections::BTreeMap;
use std::rc::Rc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{DeleteTopicsRequest, DeleteTopicsResponse, TopicName};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::change::{change_within, wait_of};
use super::each_once;
use super::error_code::catalog_error;
use crate::catalog::{Catalog, CatalogCommand, CommandOutcome, Topic, TopicId, TopicRef};
use crate::shell::shard::Shard;

/// A topic that is to go: up to version 5 it is named, from 6 on it has a name or an id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Asked {
    name: Option<TopicName>,
    id: Uuid,
}

/// How often topics are asked for by each name and by each id.
#[derive(Debug, Default)]
struct Counted {
    names: BTreeMap<TopicName, u32>,
    ids: BTreeMap<Uuid, u32>,
}

impl Counted {
    fn of(asked: &[Asked]) -> Counted {
        let mut counted = Counted::default();
        for Asked { name, id } in asked {
            match name {
                Some(_) if !id.is_nil() => {} // refused, whatever else there is
                Some(name) => *counted.names.entry(name.clone()).or_default() += 1,
                None => *counted.ids.entry(*id).or_default() += 1,
            }
        }
        counted
    }

    fn by_name(&self, name: &TopicName) -> u32 {
        self.names.get(name).copied().unwrap_or(0)
    }

    fn by_id(&self, id: Uuid) -> u32 {
        self.ids.get(&id).copied().unwrap_or(0)
    }
}

/// What becomes of a topic that is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Delete,
    /// It cannot be meant, so that nothing is deleted for it. The answer names this id.
    Refuse(Uuid, &'static str),
    /// What is asked for by its name, too, is answered there.
    Silent,
}

/// As Kafka judges: a topic that is named twice, or by its name and by its id, is not deleted and answered once.
fn judge(Asked { name, id }: &Asked, counted: &Counted, catalog: &Catalog) -> Verdict {
    let by_name = |topic: &Topic| counted.by_name(&text(topic.name.to_string()).into()) == 1;
    match name {
        Some(_) if !id.is_nil() => {
            Verdict::Refuse(*id, "a topic is named by its name or by its id, not by both")
        }
        None if id.is_nil() => Verdict::Refuse(*id, "neither a name nor an id of a topic is given"),
        Some(name) if counted.by_name(name) > 1 => Verdict::Refuse(*id, "the topic is named twice"),
        Some(name) => match catalog.topic(name).map(|topic| topic.id.0) {
            Some(id) if counted.by_id(id) > 0 => {
                Verdict::Refuse(id, "the topic is named by its id, too")
            }
            _ => Verdict::Delete,
        },
        None if counted.by_id(*id) > 1 => Verdict::Refuse(*id, "the topic is named twice"),
        None if catalog.topic_by_id(TopicId(*id)).is_some_and(|topic| by_name(topic)) => {
            Verdict::Silent
        }
        None => Verdict::Delete,
    }
}

/// Serves DeleteTopics. Cancel-safe; what was proposed is done.
pub async fn delete_topics(
    shard: Rc<Shard>,
    version: i16,
    request: DeleteTopicsRequest,
) -> DeleteTopicsResponse {
    let asked: Vec<Asked> = if version >= 6 {
        let topics = request.topics.into_iter();
        topics.map(|topic| Asked { name: topic.name, id: topic.topic_id }).collect()
    } else {
        let names = request.topic_names.into_iter();
        names.map(|name| Asked { name: Some(name), id: Uuid::nil() }).collect()
    };
    let catalog = shard.catalog();
    let counted = Counted::of(&asked);
    let mut refused = Vec::new();
    let mut wanted = Vec::new();
    for asked in each_once(asked, Asked::clone) {
        match judge(&asked, &counted, &catalog) {
            Verdict::Delete => wanted.push(asked),
            Verdict::Refuse(id, why) => {
                let (error, why) = (ResponseError::InvalidRequest, why.to_owned());
                refused.push(not_deleted(Asked { id, ..asked }, error, why));
            }
            Verdict::Silent => {}
        }
    }
    if !wanted.is_empty() {
        refused.extend(delete(&shard, wanted, request.timeout_ms).await);
    }
    DeleteTopicsResponse::default().with_responses(refused)
}

/// Deletes topics; one result for each.
async fn delete(
    shard: &Rc<Shard>,
    wanted: Vec<Asked>,
    timeout_ms: i32,
) -> Vec<DeletableTopicResult> {
    let topics = wanted
        .iter()
        .map(|asked| match &asked.name {
            Some(name) => TopicRef::Name(name.to_string()),
            None => TopicRef::Id(TopicId(asked.id)),
        })
        .collect();
    let command = CatalogCommand::DeleteTopics { topics };
    let late = "the topic was not gone in time; it may be deleted yet";
    match change_within(shard, command, wait_of(timeout_ms), late).await {
        Ok(CommandOutcome::TopicsDeleted(results)) => {
            let of_each = wanted.into_iter().zip(results).map(|(asked, result)| match result {
                Ok(deleted) => DeletableTopicResult::default()
                    .with_name(Some(text(deleted.name.to_string()).into()))
                    .with_topic_id(deleted.id.0),
                Err(error) => not_deleted(asked, catalog_error(&error), error.to_string()),
            });
            of_each.collect()
        }
        Ok(_) => Vec::new(),
        Err((error, why)) => {
            let of_each = wanted.into_iter();
            of_each.map(|asked| not_deleted(asked, error, why.clone())).collect()
        }
    }
}

fn not_deleted(asked: Asked, error: ResponseError, why: String) -> DeletableTopicResult {
    DeletableTopicResult::default()
        .with_name(asked.name)
        .with_topic_id(asked.id)
        .with_error_code(error.code())
        .with_error_message(Some(text(why)))
}

fn text(text: String) -> StrBytes {
    StrBytes::from_string(text)
}
