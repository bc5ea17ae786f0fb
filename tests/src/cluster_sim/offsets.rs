//! What the log of a partition of `__consumer_offsets` must be like.
//!
//! - P10: every replica's groups are what the log says, read from the beginning; an acknowledged commit is in the log.
//! - P11: once a generation is in the log, no commit of an older one follows.

use std::collections::BTreeMap;

use chronik_engine::ids::GroupId;
use chronik_engine::wal::record::EntryKind;
use chronik_shards::groups::{GroupCommand, GroupStore};

use super::oracle::Oracle;
use super::replica::Known;
use super::{Check, Violation};
use crate::must;

/// A commit that somebody has asked for. Each is of another offset, which is its name.
#[derive(Debug, Clone)]
struct Asked {
    group: String,
    generation: i32,
}

/// One log, read from the beginning.
#[derive(Debug, Default)]
pub(super) struct OffsetsLog {
    store: GroupStore,
    /// The checksum of what the first so many entries come to.
    sums: Vec<u32>,
    /// The place of each commit in the log.
    places: BTreeMap<i64, usize>,
}

/// The logs of all partitions, and what was asked for.
#[derive(Debug, Default)]
pub(super) struct OffsetsOracle {
    logs: BTreeMap<GroupId, OffsetsLog>,
    asked: BTreeMap<i64, Asked>,
    /// The place of the newest commit of each group that anybody was told of.
    newest: BTreeMap<String, usize>,
}

impl OffsetsLog {
    fn read_on(&mut self, asked: &BTreeMap<i64, Asked>, chosen: &[Known]) -> Check {
        if self.sums.is_empty() {
            self.sums.push(checksum(&self.store)?);
        }
        while let Some(known) = chosen.get(self.sums.len() - 1) {
            let index = self.sums.len();
            let mut sum = self.sums.last().copied().unwrap_or(0);
            if known.kind == EntryKind::Command {
                let command = GroupCommand::decode(&known.payload)
                    .map_err(|error| Violation { what: format!("entry {index}: {error}") })?;
                self.check_generation(asked, &command, index)?;
                self.store.apply(command);
                sum = checksum(&self.store)?;
            }
            self.sums.push(sum);
        }
        Ok(())
    }

    /// P11.
    fn check_generation(
        &mut self,
        asked: &BTreeMap<i64, Asked>,
        command: &GroupCommand,
        index: usize,
    ) -> Check {
        let GroupCommand::Commit { group, offsets } = command else { return Ok(()) };
        for (_, _, saved) in offsets {
            self.places.insert(saved.offset, index);
            let known = asked.get(&saved.offset).filter(|asked| asked.group == *group);
            let Some(asked) = known else {
                return Err(Violation { what: format!("P10: nobody asked for {command:?}") });
            };
            let stored = self.store.group(group).and_then(|stored| stored.saved.as_ref());
            let current = stored.map_or(0, |saved| saved.generation);
            must!(
                asked.generation >= current,
                "P11: a commit of generation {} of {group} follows generation {current}",
                asked.generation
            );
        }
        Ok(())
    }
}

fn checksum(store: &GroupStore) -> Check<u32> {
    let state = store.encode();
    let state = state.map_err(|error| Violation { what: format!("groups: {error}") })?;
    Ok(crc32fast::hash(&state))
}

impl Oracle {
    /// Somebody is about to commit an offset.
    pub(super) fn commit_asked(&mut self, offset: i64, group: &str, generation: i32) {
        self.offsets.asked.insert(offset, Asked { group: group.to_owned(), generation });
    }

    /// The place of the newest commit of a group that anybody was told of.
    pub(super) fn newest_commit(&self, group: &str) -> usize {
        self.offsets.newest.get(group).copied().unwrap_or(0)
    }

    /// The log up to what is known to be committed.
    fn offsets_log(&mut self, id: GroupId) -> Check<&OffsetsLog> {
        let log = self.offsets.logs.entry(id).or_default();
        let chosen = self.groups.get(&id).map_or(&[][..], |group| group.chosen());
        log.read_on(&self.offsets.asked, chosen)
            .map_err(|v| Violation { what: format!("{id}: {}", v.what) })?;
        Ok(log)
    }

    /// Where a commit is in the log, which somebody was told or has read: then it is committed (P1, P10).
    pub(super) fn commit_seen(&mut self, id: GroupId, offset: i64, who: &str) -> Check<usize> {
        loop {
            let log = self.offsets_log(id)?;
            if let Some(place) = log.places.get(&offset).copied() {
                if let Some(asked) = self.offsets.asked.get(&offset) {
                    let newest = self.offsets.newest.entry(asked.group.clone()).or_default();
                    *newest = place.max(*newest);
                }
                return Ok(place);
            }
            let next = log.sums.len();
            self.choose(id, next, who)?;
        }
    }

    /// The state of a replica that has applied so many entries is what they come to.
    pub(super) fn check_groups(&mut self, id: GroupId, applied: usize, state: &[u8]) -> Check {
        let log = self.offsets_log(id)?;
        let (found, sum) = (crc32fast::hash(state), log.sums.get(applied).copied());
        must!(sum == Some(found), "P10: its groups at {applied} are not those of its log");
        Ok(())
    }
}
