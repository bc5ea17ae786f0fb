//! What of the groups outlives a crash: generations, assignments, committed offsets.
//!
//! It is the state machine of a partition of `__consumer_offsets`: a [`GroupCommand`] is an entry of its log, applied in
//! log order. The whole of it lies in every checkpoint, so that the log before may be forgotten.
//!
//! - I1: applying the same commands in the same order gives the same store, byte for byte when encoded.
//! - I2: a group without members' state and without offsets is not in the store.
//! - I3: its size is known at any time and never less than that of its encoding.
//!
//! It checks nothing: whether a commit is allowed was decided by the coordinator before it was proposed.

use std::collections::BTreeMap;

use chronik_engine::framed::{self, FramedError};
use chronik_engine::ids::GroupId;

/// The version of commands and checkpoints.
const VERSION: u8 = 3;

/// Most memory that decoding one command may claim: more than the largest request.
const DECODED_BYTES_MAX: usize = 256 << 20;
/// Most memory that decoding a store may claim.
const STORE_BYTES_MAX: usize = 1 << 30;

/// A change of the store: the payload of an entry in the log of a partition of `__consumer_offsets`.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum GroupCommand {
    /// A group has a new generation, or its members have changed within it.
    Save {
        /// The group.
        group: String,
        /// Its state as a whole.
        saved: SavedGroup,
    },
    /// Offsets are committed.
    Commit {
        /// The group.
        group: String,
        /// The offsets.
        offsets: Vec<(String, i32, SavedOffset)>,
    },
    /// Offsets are deleted.
    DeleteOffsets {
        /// The group.
        group: String,
        /// The partitions.
        partitions: Vec<(String, i32)>,
    },
    /// A group is deleted with its offsets.
    DeleteGroup {
        /// The group.
        group: String,
    },
    /// Offsets have expired, or their partitions are gone. One that was committed meanwhile stays.
    Expire {
        /// The group.
        group: String,
        /// What goes.
        offsets: Vec<ExpiredOffset>,
        /// Whether the group goes, too, if nothing is left of it.
        with_group: bool,
    },
}

/// A committed offset that goes, as it was when that was decided: with a later commit it stays.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct ExpiredOffset {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// When it was committed, by the wall clock.
    pub committed_ms: i64,
    /// For which Raft group: a topic that was made again may have a commit of the same millisecond.
    pub raft_group: GroupId,
}

/// A generation of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct SavedGroup {
    /// Its number.
    pub generation: i32,
    /// What the members are: `consumer`, `connect`, …
    pub protocol_type: String,
    /// The protocol that they agreed upon.
    pub protocol: Option<String>,
    /// Who computes assignments.
    pub leader: Option<String>,
    /// When the group came into its state, by the wall clock.
    pub changed_ms: i64,
    /// The members, in the order of their ids; none of an empty group.
    pub members: Vec<SavedMember>,
}

/// A member of a generation.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct SavedMember {
    /// Its id.
    pub id: String,
    /// The instance that it stands for, if it is a static one.
    pub instance_id: Option<String>,
    /// What the client calls itself.
    pub client_id: String,
    /// Where it comes from.
    pub client_host: String,
    /// How long it may take to join again.
    pub rebalance_timeout_ms: i64,
    /// How long it may be silent.
    pub session_timeout_ms: i64,
    /// What it said of itself under the protocol agreed upon.
    pub subscription: Vec<u8>,
    /// What it was given.
    pub assignment: Vec<u8>,
}

/// A committed offset.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct SavedOffset {
    /// The offset.
    pub offset: i64,
    /// The Raft group of the partition that it was committed for: a topic made again under the name has others.
    pub raft_group: GroupId,
    /// The leader epoch of the record before it, -1 if the client did not say.
    pub leader_epoch: i32,
    /// What the client wants to find beside it.
    pub metadata: String,
    /// When it was committed, by the wall clock.
    pub committed_ms: i64,
    /// When it expires, if the client said so itself (up to version 4 of OffsetCommit).
    pub expires_ms: Option<i64>,
}

/// Offsets by topic and partition.
pub type Offsets = BTreeMap<String, BTreeMap<i32, SavedOffset>>;

/// What is known of one group.
#[derive(Debug, Clone, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct StoredGroup {
    /// Its last generation; none if nobody ever joined.
    pub saved: Option<SavedGroup>,
    /// Its offsets.
    pub offsets: Offsets,
}

/// The groups of one partition of `__consumer_offsets`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupStore {
    groups: BTreeMap<String, StoredGroup>,
    bytes: usize,
}

impl GroupCommand {
    /// The command as an entry's payload.
    ///
    /// # Errors
    /// [`FramedError::Encode`], never in practice: encoding to memory does not fail.
    pub fn encode(&self) -> Result<Vec<u8>, FramedError> {
        framed::encode(VERSION, self)
    }

    /// The command in an entry's payload.
    ///
    /// # Errors
    /// If the bytes are not a command of a version this program knows.
    pub fn decode(bytes: &[u8]) -> Result<GroupCommand, FramedError> {
        framed::decode::<_, DECODED_BYTES_MAX>(VERSION, bytes)
    }

    /// Whether it takes something from the store, and adds nothing.
    #[must_use]
    pub fn is_deletion(&self) -> bool {
        match self {
            GroupCommand::Save { .. } | GroupCommand::Commit { .. } => false,
            GroupCommand::DeleteOffsets { .. }
            | GroupCommand::DeleteGroup { .. }
            | GroupCommand::Expire { .. } => true,
        }
    }
}

impl GroupStore {
    /// The store in a checkpoint. No bytes at all are the store before any command.
    ///
    /// # Errors
    /// If the bytes are not a store of a version this program knows.
    pub fn decode(bytes: &[u8]) -> Result<GroupStore, FramedError> {
        if bytes.is_empty() {
            return Ok(GroupStore::default());
        }
        let groups: BTreeMap<String, StoredGroup> =
            framed::decode::<_, STORE_BYTES_MAX>(VERSION, bytes)?;
        let sizes = groups.iter().map(|(name, stored)| entry_bytes(name) + stored.bytes());
        let bytes = sizes.sum();
        Ok(GroupStore { groups, bytes })
    }

    /// The store as it lies in a checkpoint.
    ///
    /// # Errors
    /// [`FramedError::Encode`], never in practice: encoding to memory does not fail.
    pub fn encode(&self) -> Result<Vec<u8>, FramedError> {
        if self.groups.is_empty() {
            return Ok(Vec::new());
        }
        framed::encode(VERSION, &self.groups)
    }

    /// The groups in the order of their names.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = (&str, &StoredGroup)> {
        self.groups.iter().map(|(name, group)| (name.as_str(), group))
    }

    /// One group.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<&StoredGroup> {
        self.groups.get(name)
    }

    /// One offset.
    #[must_use]
    pub fn offset(&self, group: &str, topic: &str, partition: i32) -> Option<&SavedOffset> {
        self.groups.get(group)?.offsets.get(topic)?.get(&partition)
    }

    /// What it takes in memory and in a checkpoint at most, roughly (I3).
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// By how much a command makes [`GroupStore::bytes`] larger at most; none if it only replaces what is as large.
    #[must_use]
    pub fn growth_bytes(&self, command: &GroupCommand) -> usize {
        match command {
            GroupCommand::Save { group, saved } => {
                let stored = self.groups.get(group);
                let before = stored.and_then(|stored| stored.saved.as_ref()).map(SavedGroup::bytes);
                let entry = if stored.is_some() { 0 } else { entry_bytes(group) };
                (entry + saved.bytes()).saturating_sub(before.unwrap_or(0))
            }
            GroupCommand::Commit { group, offsets } => {
                let stored = self.groups.get(group);
                let entry = if stored.is_some() { 0 } else { entry_bytes(group) };
                let (mut more, mut less) = (entry, 0);
                for (topic, partition, offset) in offsets {
                    let partitions = stored.and_then(|stored| stored.offsets.get(topic));
                    let before = partitions.and_then(|partitions| partitions.get(partition));
                    more += offset.bytes();
                    more += if partitions.is_some() { 0 } else { entry_bytes(topic) };
                    less += before.map_or(0, SavedOffset::bytes);
                }
                more.saturating_sub(less)
            }
            GroupCommand::DeleteOffsets { .. }
            | GroupCommand::DeleteGroup { .. }
            | GroupCommand::Expire { .. } => 0,
        }
    }

    /// Applies one command.
    pub fn apply(&mut self, command: GroupCommand) {
        match command {
            GroupCommand::Save { group, saved } => {
                let bytes = saved.bytes();
                let before = self.entry(group).saved.replace(saved);
                self.bytes = self.bytes + bytes - before.map_or(0, |before| before.bytes());
            }
            GroupCommand::Commit { group, offsets } => {
                if offsets.is_empty() {
                    return;
                }
                let stored = self.entry(group);
                let (mut more, mut less) = (0, 0);
                for (topic, partition, offset) in offsets {
                    more += offset.bytes();
                    let partitions = stored.offsets.entry(topic).or_insert_with_key(|topic| {
                        more += entry_bytes(topic);
                        BTreeMap::new()
                    });
                    less += partitions.insert(partition, offset).map_or(0, |before| before.bytes());
                }
                self.bytes = self.bytes + more - less;
            }
            GroupCommand::DeleteOffsets { group, partitions } => {
                self.delete_offsets(&group, &partitions);
            }
            GroupCommand::DeleteGroup { group } => self.remove(&group),
            GroupCommand::Expire { group, offsets, with_group } => {
                self.expire(&group, offsets, with_group);
            }
        }
    }

    fn expire(&mut self, group: &str, offsets: Vec<ExpiredOffset>, with_group: bool) {
        let Some(stored) = self.groups.get(group) else { return };
        let is_same = |gone: &ExpiredOffset| {
            let partitions = stored.offsets.get(&gone.topic);
            let found = partitions.and_then(|partitions| partitions.get(&gone.partition));
            found.is_some_and(|saved| {
                saved.committed_ms == gone.committed_ms && saved.raft_group == gone.raft_group
            })
        };
        let expired = offsets.into_iter().filter(is_same);
        let partitions: Vec<(String, i32)> =
            expired.map(|gone| (gone.topic, gone.partition)).collect();
        self.delete_offsets(group, &partitions);
        let is_left = self.groups.get(group).is_some_and(|stored| {
            let has_members = stored.saved.as_ref().is_some_and(|saved| !saved.members.is_empty());
            has_members || !stored.offsets.is_empty()
        });
        if with_group && !is_left {
            self.remove(group);
        }
    }

    fn delete_offsets(&mut self, group: &str, partitions: &[(String, i32)]) {
        let Some(stored) = self.groups.get_mut(group) else { return };
        for (topic, partition) in partitions {
            let Some(offsets) = stored.offsets.get_mut(topic) else { continue };
            self.bytes -= offsets.remove(partition).map_or(0, |gone| gone.bytes());
            if offsets.is_empty() {
                stored.offsets.remove(topic);
                self.bytes -= entry_bytes(topic);
            }
        }
        if stored.is_void() {
            self.remove(group);
        }
    }

    fn entry(&mut self, group: String) -> &mut StoredGroup {
        self.groups.entry(group).or_insert_with_key(|group| {
            self.bytes += entry_bytes(group);
            StoredGroup::default()
        })
    }

    fn remove(&mut self, group: &str) {
        if let Some(gone) = self.groups.remove(group) {
            self.bytes -= entry_bytes(group) + gone.bytes();
        }
    }
}

/// An entry of a map with such a key, beside what it holds.
fn entry_bytes(key: &str) -> usize {
    64 + key.len()
}

impl StoredGroup {
    fn bytes(&self) -> usize {
        let saved = self.saved.as_ref().map_or(0, SavedGroup::bytes);
        let topics = self.offsets.iter().map(|(topic, partitions)| {
            entry_bytes(topic) + partitions.values().map(SavedOffset::bytes).sum::<usize>()
        });
        saved + topics.sum::<usize>()
    }

    fn is_void(&self) -> bool {
        self.saved.is_none() && self.offsets.is_empty()
    }
}

impl SavedGroup {
    fn bytes(&self) -> usize {
        let texts = [Some(&self.protocol_type), self.protocol.as_ref(), self.leader.as_ref()];
        let texts: usize = texts.into_iter().flatten().map(String::len).sum();
        64 + texts + self.members.iter().map(SavedMember::bytes).sum::<usize>()
    }
}

impl SavedMember {
    fn bytes(&self) -> usize {
        let instance_id = self.instance_id.as_ref().map_or(0, String::len);
        let texts = self.id.len() + self.client_id.len() + self.client_host.len() + instance_id;
        96 + texts + self.subscription.len() + self.assignment.len()
    }
}

impl SavedOffset {
    fn bytes(&self) -> usize {
        64 + self.metadata.len()
    }
}
