//! What a core says of itself for the metrics.

use super::ShardCore;

/// The figures of a core at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Groups placed here.
    pub groups: u64,
    /// Entries that the logs of all groups hold.
    pub log_entries: u64,
    /// The highest term of any group.
    pub term_max: u64,
    /// The highest commit index of any group.
    pub commit_index_max: u64,
    /// Elections that this shard's replicas have won since the start.
    pub elections_won: u64,
    /// Messages of other replicas that were refused.
    pub messages_refused: u64,
}

impl ShardCore {
    /// The figures as of now. Looks at every group: for a scrape, not for a request.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let mut figures = Figures {
            elections_won: self.shared.elections_won,
            messages_refused: self.shared.messages_refused,
            ..Figures::default()
        };
        for group in self.groups.values().filter(|group| group.is_live()) {
            let raft = &group.raft;
            figures.groups += 1;
            figures.log_entries += raft.last_index().0.saturating_sub(raft.log_start().index.0);
            figures.term_max = figures.term_max.max(raft.term().0);
            figures.commit_index_max = figures.commit_index_max.max(raft.commit_index().0);
        }
        figures
    }
}
