//! How a cluster comes to be: nodes that know each other from their settings only agree on one formation, once.
//!
//! A [`Formation`] is the cluster's name and the first voters of `__meta`, each with a random replica id. What must
//! never happen is two of them: halves of a cold start that each go their way, or a node that votes twice under one
//! replica id. So a formation is a decree of Paxos over the *static list* of nodes, decided before the first Raft group
//! exists. Each node's vote is durable before it is heard, and a majority of the list must give it, not a majority of
//! whoever is up.
//!
//! One durable promise for each node, given once and for all, would do for safety, but not for progress: three nodes
//! that each promised themselves would be stuck for ever. Ballots are that rule made live: a promise may be outbid, and
//! who outbids it takes over what may have been chosen before.
//!
//! All of it is over before the cores start. The nodes find each other by probes on the Raft address; the lowest id of
//! a healthy majority proposes; a formation counts as members those that answered. Nodes that come later are told of
//! it, by a [`FormedAnswerer`] on the nodes that serve already, and join.
//!
//! Without a list a cluster can begin with one node, which nobody has to agree with, and grow by nodes that ask to be
//! taken in: what their cluster is, they are told.
//!
//! What a wiped disk can do. Its node comes back with another [`NodeUuid`], so it is never taken for the member that
//! it was (its replica id stays unused), and it asks all peers before it votes. Nodes that took part in a ballot with
//! the old disk do not count the new one. What remains is a node that is wiped while the nodes that voted with it are
//! all unreachable: it and nodes that never took part cannot know, and form a cluster of their own. The old one shows
//! when its nodes return: links name both clusters and do not come about.
//!
//! | module | owns |
//! |---|---|
//! | `decree` | the vote: acceptor and round of one decree |
//! | `forming` | a node on its way, sans I/O: whom it asks, what it answers, when it proposes |
//! | `durable` | what a node must not forget |
//! | `peer` | what a node knows of one peer |
//! | `list` | the static list, its majority, and how lists differ |
//! | `protocol` | messages |
//! | `seal` | the secret on messages |
//! | `store` | the file |
//! | `net`, `run` | sockets and threads around it |
//! | `alone` | a cluster that begins with one node; nodes without a list that start again |
//! | `join` | how a node asks to be taken into a cluster that is there |
//! | `check` | whether the peers of a node that restarts are of its cluster |
//! | `report` | what a waiting node says |
//! | `answer` | what a node of a formed cluster says |
//! | `error` | why there is no cluster |

mod alone;
mod answer;
mod check;
mod decree;
mod durable;
mod error;
mod forming;
mod ids;
mod join;
mod list;
mod net;
mod peer;
mod protocol;
mod report;
mod run;
mod seal;
mod store;
#[cfg(test)]
mod tests;

pub use alone::{begin_alone, came_by_list, go_on, has_formed, leave, sole_replica};
pub use answer::{Answer, FormedAnswerer, JoinOutcome, JoinRequest};
pub use decree::{Ballot, Formation, Member};
pub use durable::{Formed, Membership, Way};
pub use error::{FormError, Impossible, JoinProblem, StoreError, StoreFault};
pub use forming::Draw;
pub use ids::{ClusterUuid, NodeUuid};
pub use join::{JoinConfig, join};
pub use list::{ListDifference, ListError, ListedNode, NODES_MAX, NodeList};
pub use peer::PeerProblem;
pub use protocol::Introduction;
pub use run::{FormConfig, FormedCluster, form};
pub use seal::Seal;
