//! How followers learn what is committed. What is appended next says so, too; so nobody is told at once, and a leader that
//! appends often says nothing beside it.
//!
//! - I1: what is committed is told with the next [`ShardCore::tell_commits`], which each tick is, too: consumers at a follower
//!   wait for it.
//! - I2: the catalog's commits are told at once: every node waits for them.

use chronik_engine::ids::GroupId;

use super::group::Group;
use super::{ShardCore, Shared};

impl ShardCore {
    /// Whether [`ShardCore::tell_commits`] may have something to tell.
    #[must_use]
    pub fn has_commits_to_tell(&self) -> bool {
        !self.shared.commits_to_tell.is_empty()
    }

    /// Tells followers what was committed since they were last sent something. To be called a few milliseconds after there is
    /// something to tell.
    pub fn tell_commits(&mut self) {
        for id in std::mem::take(&mut self.shared.commits_to_tell) {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            group.tells_commit = false;
            if group.is_live() && group.raft.tell_commit() {
                group.pump(&mut self.shared);
            }
        }
    }
}

impl Group {
    /// I2.
    pub(super) fn tell_commit_at_once(&mut self) -> bool {
        self.id == GroupId::META && self.raft.tell_commit()
    }

    pub(super) fn note_commit_to_tell(&mut self, shared: &mut Shared) {
        if self.raft.has_commit_to_tell() && !std::mem::replace(&mut self.tells_commit, true) {
            shared.commits_to_tell.push(self.id);
        }
    }
}
