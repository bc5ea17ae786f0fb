//! The static list: the nodes that the settings name, the same on every node.
//!
//! A majority is one of this list, whoever happens to be up. So nodes that disagree about the list must not decide
//! anything together: every message carries the list's fingerprint, and where two differ, the lists are compared and
//! the difference is named.

use std::collections::BTreeMap;
use std::fmt;

use chronik_engine::ids::NodeId;

/// The most nodes that a list may have.
pub const NODES_MAX: usize = 64;

/// The longest address: a host name of 253 characters, a colon and a port.
const ADDRESS_BYTES_MAX: usize = 260;

/// A node of the static list.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct ListedNode {
    /// Its id.
    pub id: NodeId,
    /// Where other nodes reach it, as host and port.
    pub raft_addr: String,
}

/// Why a list cannot be used. The settings are checked before, in the words of the file; this is the last line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    #[error("the list of nodes is empty or has more than {NODES_MAX} nodes")]
    Size,
    #[error("node {node} is listed twice")]
    Twice { node: NodeId },
    #[error("node {node} is not in the list of nodes")]
    NotListed { node: NodeId },
    #[error("the address of node {node} is empty or longer than {ADDRESS_BYTES_MAX} bytes")]
    Address { node: NodeId },
}

/// One thing in which the list of a peer differs from the own one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListDifference {
    /// Only the own list has the node.
    OnlyHere { node: NodeId },
    /// Only the peer's list has the node.
    OnlyThere { node: NodeId },
    /// Both have it, at different addresses.
    Address { node: NodeId, here: String, there: String },
}

impl fmt::Display for ListDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListDifference::OnlyHere { node } => write!(f, "node {node} is listed only here"),
            ListDifference::OnlyThere { node } => write!(f, "node {node} is listed only there"),
            ListDifference::Address { node, here, there } => {
                write!(f, "node {node} has raft_addr {here} here and {there} there")
            }
        }
    }
}

/// The static list, in order of ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeList {
    nodes: Vec<ListedNode>,
    fingerprint: u64,
}

impl NodeList {
    /// Checks a list that must name `own`.
    ///
    /// # Errors
    /// It is of no use.
    pub fn new(mut nodes: Vec<ListedNode>, own: NodeId) -> Result<NodeList, ListError> {
        if nodes.is_empty() || nodes.len() > NODES_MAX {
            return Err(ListError::Size);
        }
        nodes.sort_by_key(|node| node.id);
        if let Some(pair) = nodes.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(ListError::Twice { node: pair[0].id });
        }
        let odd = |node: &&ListedNode| {
            node.raft_addr.is_empty() || node.raft_addr.len() > ADDRESS_BYTES_MAX
        };
        if let Some(node) = nodes.iter().find(odd) {
            return Err(ListError::Address { node: node.id });
        }
        if !nodes.iter().any(|node| node.id == own) {
            return Err(ListError::NotListed { node: own });
        }
        let fingerprint = fingerprint_of(&nodes);
        Ok(NodeList { nodes, fingerprint })
    }

    /// All nodes, in order of ids.
    #[must_use]
    pub fn nodes(&self) -> &[ListedNode] {
        &self.nodes
    }

    /// How many nodes decide: more than half of the list.
    #[must_use]
    pub fn majority(&self) -> usize {
        self.nodes.len() / 2 + 1
    }

    /// Whether a node is in it.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.nodes.iter().any(|listed| listed.id == node)
    }

    /// What stands for the list in messages. Against mistakes, not against malice.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// In what a peer's list differs.
    #[must_use]
    pub fn differences(&self, theirs: &[ListedNode]) -> Vec<ListDifference> {
        let by_id = |nodes: &[ListedNode]| -> BTreeMap<NodeId, String> {
            nodes.iter().map(|node| (node.id, node.raft_addr.clone())).collect()
        };
        let (here, there) = (by_id(&self.nodes), by_id(theirs));
        let mut found = Vec::new();
        for (&node, address) in &here {
            match there.get(&node) {
                None => found.push(ListDifference::OnlyHere { node }),
                Some(other) if other != address => found.push(ListDifference::Address {
                    node,
                    here: address.clone(),
                    there: other.clone(),
                }),
                Some(_) => {}
            }
        }
        let strangers = there.keys().filter(|node| !here.contains_key(node));
        found.extend(strangers.map(|&node| ListDifference::OnlyThere { node }));
        found
    }
}

/// FNV-1a with 64 bits over ids and addresses.
fn fingerprint_of(nodes: &[ListedNode]) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hash = OFFSET_BASIS;
    for node in nodes {
        // An address has no zero byte, so that no two lists run into the same bytes.
        let bytes = node.id.0.to_le_bytes().into_iter().chain(node.raft_addr.bytes()).chain([0]);
        for byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
    }
    hash
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn nodes(list: &[(u32, &str)]) -> Vec<ListedNode> {
        let node = |&(id, address): &(u32, &str)| ListedNode {
            id: NodeId(id),
            raft_addr: address.to_owned(),
        };
        list.iter().map(node).collect()
    }

    fn list(nodes_listed: &[(u32, &str)]) -> NodeList {
        NodeList::new(nodes(nodes_listed), NodeId(nodes_listed[0].0)).unwrap()
    }

    #[test]
    fn given_one_list_in_two_orders_when_compared_then_it_is_the_same() {
        let (one, other) = (list(&[(1, "a:1"), (2, "b:2")]), list(&[(2, "b:2"), (1, "a:1")]));
        assert_eq!(one, other);
        assert_eq!(one.differences(other.nodes()), []);
    }

    #[test]
    fn given_lists_that_differ_when_compared_then_each_difference_is_named() {
        let here = list(&[(1, "a:1"), (2, "b:2"), (3, "c:3")]);
        let there = list(&[(1, "a:1"), (3, "c:4"), (5, "e:5")]);
        assert_ne!(here.fingerprint(), there.fingerprint());
        let found: Vec<String> =
            here.differences(there.nodes()).iter().map(ToString::to_string).collect();
        let expected = [
            "node 2 is listed only here",
            "node 3 has raft_addr c:3 here and c:4 there",
            "node 5 is listed only there",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn given_lists_of_no_use_when_made_then_each_fault_is_told_apart() {
        let refused = |listed: &[(u32, &str)]| NodeList::new(nodes(listed), NodeId(1)).unwrap_err();
        assert_eq!(refused(&[]), ListError::Size);
        assert_eq!(refused(&[(1, "a:1"), (1, "b:1")]), ListError::Twice { node: NodeId(1) });
        assert_eq!(refused(&[(2, "a:1")]), ListError::NotListed { node: NodeId(1) });
        assert_eq!(refused(&[(1, "")]), ListError::Address { node: NodeId(1) });
        let many: Vec<(u32, &str)> = (0..65).map(|id| (id, "a:1")).collect();
        assert_eq!(refused(&many), ListError::Size);
    }

    #[test]
    fn given_lists_of_each_size_when_asked_then_two_majorities_always_meet() {
        for size in 1..=7_u32 {
            let listed: Vec<(u32, &str)> = (0..size).map(|id| (id, "a:1")).collect();
            let list = list(&listed);
            assert!(2 * list.majority() > list.nodes().len());
            assert!(list.majority() <= list.nodes().len());
        }
    }
}
