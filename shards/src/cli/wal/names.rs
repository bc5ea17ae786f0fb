//! Which partition a group is: from the tags in the logs, and the topics' names from the catalog's log.
//!
//! It takes what a walk over the logs meets anyway. The catalog's log is in the first shard, so where a whole data
//! directory is looked at the names are known before the other shards come; where only one shard's log is, a partition
//! has its topic's id for a name. Topics that are deleted keep their names here as long as the log tells of them.
//!
//! What cannot be decoded is passed over: a name is a help, and damage is told elsewhere.

use std::collections::BTreeMap;

use chronik_engine::ids::GroupId;
use chronik_engine::wal::block::{Row, SlotKind};
use chronik_engine::wal::record::{GroupMeta, WalRecord};
use serde_json::{Value, json};

use crate::catalog::{Catalog, CatalogCommand, PartitionTag, TopicId};

/// What is known of the groups so far.
#[derive(Debug, Default)]
pub(super) struct Names {
    partitions: BTreeMap<GroupId, PartitionTag>,
    topics: BTreeMap<TopicId, String>,
}

impl Names {
    /// Takes in one row of a log.
    pub fn note(&mut self, row: &Row) {
        let group = row.descriptor.group;
        let is_command = row.descriptor.kind == SlotKind::Command && group == GroupId::META;
        let has_meta = matches!(row.descriptor.kind, SlotKind::GroupCreated | SlotKind::Checkpoint);
        if !is_command && !has_meta {
            return; // batches above all, which are not to be decoded
        }
        match row.descriptor.record(&row.payload) {
            Some(WalRecord::GroupCreated { group, meta }) => self.note_meta(group, &meta),
            Some(WalRecord::Checkpoint(checkpoint)) if group == GroupId::META => {
                let catalog = Catalog::decode(&checkpoint.state).unwrap_or_default();
                let topics = catalog.topics().map(|topic| (topic.id, topic.name.to_string()));
                self.topics.extend(topics);
            }
            Some(WalRecord::Checkpoint(checkpoint)) => self.note_meta(group, &checkpoint.meta),
            Some(WalRecord::Entry { entry, .. }) => {
                if let Ok((_, CatalogCommand::CreateTopics { topics, .. })) =
                    CatalogCommand::decode_named(&entry.payload)
                {
                    self.topics.extend(topics.into_iter().map(|topic| (topic.id, topic.name)));
                }
            }
            _ => {}
        }
    }

    fn note_meta(&mut self, group: GroupId, meta: &GroupMeta) {
        self.partitions.extend(PartitionTag::decode(&meta.tag).map(|tag| (group, tag)));
    }

    /// The group's number, and what it is as far as that is known.
    pub fn text(&self, group: GroupId) -> String {
        let Some(tag) = self.partitions.get(&group) else {
            let what = if group == GroupId::META { " (the catalog)" } else { "" };
            return format!("group {group}{what}");
        };
        let partition = tag.partition;
        match self.topics.get(&tag.topic) {
            Some(name) => format!("group {group} ({name}, partition {partition})"),
            None => format!("group {group} (topic id {}, partition {partition})", tag.topic),
        }
    }

    /// The same as fields; those that are not known are null.
    pub fn json(&self, group: GroupId) -> Value {
        let tag = self.partitions.get(&group);
        json!({
            "group": group.0,
            "topic": tag.and_then(|tag| self.topics.get(&tag.topic)),
            "topic_id": tag.map(|tag| tag.topic.to_string()),
            "partition": tag.map(|tag| tag.partition),
        })
    }
}
