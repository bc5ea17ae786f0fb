//! What a run came to: figures that show that what should have happened did.

use crate::sim::node::Node;

macro_rules! report {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// What a run came to.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Report {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl Report {
            /// The sum of two.
            #[must_use]
            pub fn plus(self, other: Report) -> Report {
                Report { $($name: self.$name + other.$name,)+ }
            }

            /// Each figure with its name.
            #[must_use]
            pub fn figures(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)+]
            }
        }
    };
}

report! {
    /// Simulated milliseconds.
    simulated_ms,
    /// Events.
    events,
    /// Batches acknowledged that all replicas were asked for.
    acked_all,
    /// Those of them that more than a quorum had to hold.
    acked_by_more,
    /// Batches acknowledged that were to be in the memory of a quorum.
    acked_relaxed,
    /// Those of them that were committed.
    promises_kept,
    /// Those of them that are lost, as may be.
    promises_lost,
    /// Those of them of which it is known who failed.
    promises_judged,
    /// Times that a topic was made relaxed, or durable.
    durability_changes,
    /// Votes of replicas that said that they may have forgotten what they had promised.
    forgetful_votes,
    /// Batches refused since too few replicas were in sync.
    not_enough_in_sync,
    /// Batches refused since too much was in flight.
    overloaded,
    /// Batches acknowledged that the leader was asked for.
    acked_leader,
    /// Those of them that are not in the log in the end, as may be.
    lost_leader_acks,
    /// Batches sent again.
    resent,
    /// Requests that their client gave up.
    given_up,
    /// Fetches answered from memory.
    tail_reads,
    /// Fetches answered from the disk.
    disk_reads,
    /// Fetches refused, since their client or the broker knows another leader.
    refused_reads,
    /// Fetches with records from replicas that follow.
    replica_reads,
    /// Fetches with records from read-only nodes.
    read_only_reads,
    /// Fetches from replicas that do not know yet what their reader has seen elsewhere.
    reads_ahead,
    /// Fetches that replicas refused since what they show may be too old.
    reads_too_old,
    /// Elections won.
    elections,
    /// Entries that took the place of others on some disk.
    truncations,
    /// Messages of Raft that were sent.
    messages,
    /// Packets lost by chance.
    packets_lost,
    /// Packets lost because a link was cut, down, or went to nobody.
    packets_cut,
    /// Packets that arrived twice.
    packets_doubled,
    /// Packets that overtook others.
    packets_reordered,
    /// Times that a shard told its followers what was committed.
    commits_told,
    /// Commits of which a follower was seen to hear in time.
    commits_heard,
    /// Times that entries were read from the log for a follower.
    catch_ups,
    /// Crashes of nodes, those that a disk has made included.
    crashes,
    /// Nodes that lost their disks.
    wipes,
    /// Replicas of partitions of two whose other one went with its disk.
    left_alone,
    /// Moves of partitions.
    moves,
    /// Groups that were handed to another replica.
    transfers,
    /// Log starts moved on request.
    log_starts,
    /// Changes of a group's members that were proposed.
    conf_changes,
    /// Answers with records for replicas that copy them.
    fill_answers,
    /// Segments written of those.
    fill_segments,
    /// Segments that were damaged or removed.
    damages,
    /// Batches in full files of logs that were damaged.
    log_damages,
    /// Times that no segments could be made of a partition in a file for that.
    log_damages_found,
    /// Times that records could not be read for that.
    unreadable,
    /// Repairs from other replicas.
    repairs,
    /// Crashes while a node starts.
    recovery_crashes,
    /// Crashes of all nodes at once.
    blackouts,
    /// Nodes that ended because a sync, a write or the whole disk failed.
    disk_failures,
    /// Times that a disk was to refuse a new file, a name, or room that there is.
    rare_disk_faults,
    /// Links cut in both directions.
    cuts,
    /// Links cut in one direction.
    one_way_cuts,
    /// Nodes cut off from all others.
    isolations,
    /// Links that kept back what was sent on them.
    clogs,
    /// Times that a node noticed that another one is gone.
    peers_lost,
    /// Nodes that stood still.
    pauses,
    /// Wall clocks that jumped.
    clock_jumps,
    /// Disks that had no room.
    disks_full,
    /// Batches refused for want of room.
    storage_full,
    /// Disks that were slow.
    slow_disks,
    /// Disks that took nothing for their logs for a while.
    disk_hangs,
    /// Times that a log went on in a new file.
    rolls,
    /// Times that what a group had not applied was written once more.
    carried,
    /// Files that logs gave back.
    reclaimed,
    /// Segments written from full files of the log.
    segments,
    /// Times that small segments were merged.
    merges,
    /// Snapshots that were sent to followers.
    snapshots,
    /// Topics created.
    topics_created,
    /// Topics deleted.
    topics_deleted,
    /// Offsets committed.
    commits,
    /// Commits that were refused.
    commits_refused,
    /// Committed offsets that were read.
    offsets_read,
    /// Times that somebody was told where a log ends.
    latest_read,
    /// Old epochs of which leaders were asked where they end.
    epochs_asked,
    /// Assignments that members of consumer groups got.
    assignments,
    /// Commands of the catalog that another node proposed.
    forwarded,
    /// Commands of which nobody knows what became of them.
    commands_unknown,
    /// Disks that were looked at as a message left.
    probes,
    /// Groups that went on without a minority of the nodes.
    groups_without_minority,
    /// Nodes that were taken out of their cluster.
    removals,
    /// State machines compared with their logs.
    states_compared,
}

impl Report {
    /// Takes in what a life of a shard came to.
    pub(super) fn count(&mut self, node: &Node) {
        self.rolls += node.rolls.get();
        self.carried += node.carried.get() as u64;
        self.reclaimed += node.reclaimed.get() as u64;
        self.segments += node.written.get() as u64;
        self.merges += node.merged.get() as u64;
    }
}
