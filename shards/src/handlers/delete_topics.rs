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
use crate::catalog::{Catalog, CatalogCommand, CommandOutcome, TopicId, TopicRef};
use crate::shell::shard::Shard;

/// A topic that is to go: up to version 5 it is named, from 6 on it has a name or an id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Asked {
    name: Option<TopicName>,
    id: Uuid,
}

impl Asked {
    /// How often topics are asked for by this name, and by this id.
    fn counted(asked: &[Asked], catalog: &Catalog) -> (Counts<String>, Counts<Uuid>) {
        let (mut names, mut ids) = (Counts::new(), Counts::new());
        for Asked { name, id } in asked {
            match name {
                Some(name) => {
                    *names.entry(name.to_string()).or_default() += 1;
                    let topic = catalog.topic(name);
                    _ = topic.map(|topic| *ids.entry(topic.id.0).or_default() += 1);
                }
                None => *ids.entry(*id).or_default() += 1,
            }
        }
        (names, ids)
    }
}

type Counts<T> = BTreeMap<T, u32>;

/// What cannot be meant, so that nothing is deleted for it. `None` where all is well.
fn refusal(
    Asked { name, id }: &Asked,
    (names, ids): &(Counts<String>, Counts<Uuid>),
    catalog: &Catalog,
) -> Option<&'static str> {
    let is_once = |counted: Option<&u32>| counted.is_none_or(|count| *count == 1);
    match name {
        Some(_) if !id.is_nil() => Some("a topic is named by its name or by its id, not by both"),
        None if id.is_nil() => Some("neither a name nor an id of a topic is given"),
        Some(name) if !is_once(names.get(name.as_str())) => Some("the topic is named twice"),
        Some(name) => {
            let by_id = catalog.topic(name).map(|topic| topic.id.0);
            let is_once = by_id.is_none_or(|id| is_once(ids.get(&id)));
            (!is_once).then_some("the topic is named by its id, too")
        }
        None => (!is_once(ids.get(id))).then_some("the topic is named twice"),
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
    let counts = Asked::counted(&asked, &catalog);
    let mut refused = Vec::new();
    let mut wanted = Vec::new();
    for asked in each_once(asked, Asked::clone) {
        match refusal(&asked, &counts, &catalog) {
            Some(why) => {
                let (error, why) = (ResponseError::InvalidRequest, why.to_owned());
                refused.push(not_deleted(asked, error, why));
            }
            None => wanted.push(asked),
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
                    .with_name(Some(StrBytes::from_string(deleted.name.to_string()).into()))
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
        .with_error_message(Some(StrBytes::from_string(why)))
}
