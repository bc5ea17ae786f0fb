//! What the log of the process says of one partition's trouble: by the partition's name, once, then less and less often and
//! with how often it came meanwhile. A client that gets no records asks again twice a second, for days.
//!
//! - I1: memory is bounded: of more than [`KNOWN_MAX`] kinds of trouble only the partition tells them apart.

use std::cell::RefCell;
use std::rc::Rc;

use chronik_engine::ids::GroupId;
use chronik_tiering::failures::Failures;

use super::cluster::META_SHARD;
use super::shard::Shard;
use crate::catalog::Catalog;

/// A trouble is a partition and what is said of it.
const KNOWN_MAX: usize = 256;

/// What was said of partitions of a shard.
#[derive(Debug, Default)]
pub(super) struct Complaints(RefCell<Failures<(GroupId, String)>>);

impl Complaints {
    /// How often this has come since it was last said; `None` if it is not to be said now.
    fn due(&self, group: GroupId, what: &str, now_ns: u64) -> Option<u64> {
        let mut known = self.0.borrow_mut();
        let what = if known.len() < KNOWN_MAX { what.to_owned() } else { String::new() }; // I1
        known.note_often((group, what), now_ns)
    }

    /// A group is no more.
    pub fn forget(&self, is_here: impl Fn(GroupId) -> bool) {
        self.0.borrow_mut().retain(|(group, _)| is_here(*group));
    }
}

/// What is to be said.
#[derive(Debug)]
pub(super) struct Said {
    /// Topic and partition.
    pub partition: String,
    /// How often it came since it was last said, this time included.
    pub times: u64,
}

impl Shard {
    /// Whether a partition's trouble is to be said now, and what with. `what` tells it from others.
    pub(super) fn complain(&self, group: GroupId, what: &str) -> Option<Said> {
        let times = self.complaints.due(group, what, self.clock.now_ns())?;
        Some(Said { partition: self.name_of(group), times })
    }

    /// Says why topics cannot be made that somebody waits for, whichever core he asked.
    pub fn complain_of_topics(self: &Rc<Self>, why: String) {
        let say = move |meta: &Rc<Shard>| {
            if let Some(Said { times, .. }) = meta.complain(GroupId::META, &why) {
                tracing::warn!(times, "{why}");
            }
        };
        // Where there is no way to that core just now, the next one who asks has it said.
        _ = self.post(META_SHARD, say);
    }

    /// The topic and the partition that a group is.
    pub(super) fn name_of(&self, group: GroupId) -> String {
        self.name_in(&self.catalog(), group)
    }

    /// The same by another catalog than clients see.
    pub(super) fn name_in(&self, catalog: &Catalog, group: GroupId) -> String {
        if group == GroupId::META {
            return "the catalog".to_owned();
        }
        let Some(tag) = self.with_core(|core| core.tag(group)) else {
            return format!("group {group}");
        };
        match catalog.topic_by_id(tag.topic) {
            Some(topic) => format!("{}-{}", topic.name, tag.partition),
            None => format!("{}-{}", tag.topic.0, tag.partition),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_more_kinds_of_trouble_than_are_known_when_they_come_then_memory_is_bounded() {
        let complaints = Complaints::default();
        for at in 0..10 * KNOWN_MAX {
            complaints.due(GroupId(1), &at.to_string(), 0);
        }
        assert!(complaints.0.borrow().len() <= KNOWN_MAX + 1);
        assert_eq!(complaints.due(GroupId(1), "a new one", 1), None, "it is one of too many");
        assert_eq!(complaints.due(GroupId(2), "a new one", 1), Some(1), "another partition's");
        complaints.forget(|group| group == GroupId(2));
        assert_eq!(complaints.due(GroupId(1), "a new one", 2), Some(1));
    }
}
