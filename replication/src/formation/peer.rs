//! What a node that looks for its cluster knows of one peer: whether it answers, since when it does not, when to ask
//! it next, and whether two nodes claim to be it.
//!
//! A peer is who answers at the listed address. What arrives from elsewhere under its id, but from another disk, makes
//! the node ask at that address anew: a node whose disk was replaced answers there with its new one; if it is still
//! the old one, two nodes have one id.
//!
//! - I1: one exchange with a peer is under way at a time; only its own reply counts.

use std::io;

use chronik_engine::ids::NodeId;

use super::ids::NodeUuid;
use super::list::ListDifference;

/// The first pause after a peer did not answer; each further one is twice as long.
const RETRY_MS: u64 = 100;

/// The pause before a peer that asked for it is asked again.
const NOT_YET_MS: u64 = 50;

/// Why a peer is of no help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerProblem {
    /// No connection.
    #[error("{kind}")]
    Unreachable { kind: io::ErrorKind },
    /// The name in its address leads nowhere.
    #[error("its address cannot be resolved")]
    Unresolved,
    /// It takes a connection, but does not answer in time.
    #[error("it takes connections, but does not answer")]
    NoAnswer,
    /// Something else listens there, or a program of another version.
    #[error("what answers there does not speak this protocol")]
    Garbled,
    /// It does not know the secret, or another one.
    #[error("its cluster.secret differs; make the secrets the same")]
    SecretDiffers,
    /// It speaks another version.
    #[error(
        "it runs another version of chronik-server (formation messages of version {found}, here {own})"
    )]
    Version { found: u8, own: u8 },
    /// It speaks in frames of another version.
    #[error("it runs another version of chronik-server (frames of version {found}, here {own})")]
    FrameVersion { found: u8, own: u8 },
    /// Another node is there.
    #[error("node {found} answers at its address; correct raft_addr in cluster.nodes")]
    OtherNode { found: NodeId },
    /// Its settings list other nodes.
    #[error("its cluster.nodes differs: {}; make the lists the same", Joined(differences))]
    ListDiffers { differences: Vec<ListDifference> },
    /// Two nodes claim to be it.
    #[error(
        "two nodes say that they are it, one with disk {listed} at the listed address and one with disk {other}; give each a node_id of its own"
    )]
    IdTwice { listed: NodeUuid, other: NodeUuid },
    /// Its disk took part in the formation and is gone.
    #[error(
        "it has another disk than when it took part in forming the cluster; it joins once the other nodes are there"
    )]
    DiskReplaced,
}

struct Joined<'a>(&'a [ListDifference]);

impl std::fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (position, difference) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{difference}")?;
        }
        Ok(())
    }
}

/// Who a message under a peer's id is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contact {
    /// As far as is known, the peer.
    Peer,
    /// Not clear yet: the listed address is asked.
    Unclear,
    /// Another node: the peer with this disk has answered at the listed address since.
    Impostor { listed: NodeUuid },
}

/// Another disk under the peer's id.
#[derive(Debug, Clone, Copy)]
struct Claim {
    node_uuid: NodeUuid,
    /// The exchange under way was begun after the claim.
    is_checked: bool,
    is_refuted: bool,
}

/// A peer.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// Its disk, and when it answered last; none while it does not answer.
    heard: Option<(NodeUuid, u64)>,
    /// Whether the first attempt has come to an end.
    is_tried: bool,
    under_way: Option<u64>,
    probe_at_ms: u64,
    vote_at_ms: u64,
    retry_ms: u64,
    missing_since_ms: Option<u64>,
    problem: Option<PeerProblem>,
    claim: Option<Claim>,
}

impl Peer {
    pub(super) fn new(now_ms: u64) -> Peer {
        Peer {
            heard: None,
            is_tried: false,
            under_way: None,
            probe_at_ms: now_ms,
            vote_at_ms: now_ms,
            retry_ms: RETRY_MS,
            missing_since_ms: Some(now_ms),
            problem: None,
            claim: None,
        }
    }

    /// Whether this is the disk that answered last at its address.
    pub(super) fn is_heard(&self, node_uuid: NodeUuid) -> bool {
        self.heard.is_some_and(|(heard, _)| heard == node_uuid)
    }

    /// Its disk, if it answered within `health_ms`.
    pub(super) fn healthy(&self, now_ms: u64, health_ms: u64) -> Option<NodeUuid> {
        self.heard
            .filter(|(_, at_ms)| now_ms.saturating_sub(*at_ms) <= health_ms)
            .map(|(node_uuid, _)| node_uuid)
    }

    pub(super) fn is_tried(&self) -> bool {
        self.is_tried
    }

    /// Since when it does not answer.
    pub(super) fn missing_since_ms(&self) -> Option<u64> {
        self.missing_since_ms
    }

    pub(super) fn problem(&self) -> Option<&PeerProblem> {
        self.problem.as_ref()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.under_way.is_none()
    }

    pub(super) fn is_probe_due(&self, now_ms: u64) -> bool {
        now_ms >= self.probe_at_ms
    }

    pub(super) fn is_vote_due(&self, now_ms: u64) -> bool {
        now_ms >= self.vote_at_ms
    }

    pub(super) fn begin(&mut self, exchange: u64) {
        assert!(self.under_way.is_none(), "I1");
        self.under_way = Some(exchange);
        if let Some(claim) = &mut self.claim {
            claim.is_checked = true;
        }
    }

    /// Whether this exchange is under way.
    pub(super) fn is_under_way(&self, exchange: u64) -> bool {
        self.under_way == Some(exchange)
    }

    /// Whether this is the end of the exchange under way, which it then is.
    pub(super) fn end(&mut self, exchange: u64) -> bool {
        let is_own = self.under_way == Some(exchange);
        if is_own {
            self.under_way = None;
            self.is_tried = true;
        }
        is_own
    }

    /// It has answered at its address, from this disk.
    pub(super) fn on_answer(&mut self, node_uuid: NodeUuid, now_ms: u64, interval_ms: u64) {
        self.problem = None;
        if let Some(claim) = &mut self.claim {
            if claim.node_uuid == node_uuid {
                self.claim = None;
            } else if claim.is_checked {
                claim.is_refuted = true;
                let other = claim.node_uuid;
                self.problem = Some(PeerProblem::IdTwice { listed: node_uuid, other });
            }
        }
        self.heard = Some((node_uuid, now_ms));
        self.missing_since_ms = None;
        self.retry_ms = RETRY_MS;
        self.probe_at_ms = now_ms + interval_ms;
    }

    /// It has not answered, or not in a way that helps.
    pub(super) fn on_problem(&mut self, problem: PeerProblem, now_ms: u64, interval_ms: u64) {
        self.problem = Some(problem);
        self.heard = None;
        self.missing_since_ms.get_or_insert(now_ms);
        self.probe_at_ms = now_ms + self.retry_ms;
        self.vote_at_ms = self.probe_at_ms;
        self.retry_ms = (self.retry_ms * 2).min(interval_ms);
    }

    /// It answers, but its vote does not count.
    pub(super) fn note(&mut self, problem: PeerProblem) {
        self.problem = Some(problem);
    }

    /// It wants to be asked again soon.
    pub(super) fn ask_again(&mut self, now_ms: u64) {
        self.vote_at_ms = now_ms + NOT_YET_MS;
        self.probe_at_ms = self.probe_at_ms.min(self.vote_at_ms);
    }

    /// A new round asks for its vote.
    pub(super) fn ask_now(&mut self, now_ms: u64) {
        self.vote_at_ms = now_ms;
    }

    /// It sends something: it is up, so it is asked at once if it did not answer before.
    pub(super) fn on_contact(&mut self, node_uuid: NodeUuid, now_ms: u64) -> Contact {
        let Some((listed, _)) = self.heard else {
            self.probe_at_ms = now_ms;
            return Contact::Peer;
        };
        if listed == node_uuid {
            return Contact::Peer;
        }
        match self.claim {
            Some(claim) if claim.node_uuid == node_uuid && claim.is_refuted => {
                Contact::Impostor { listed }
            }
            Some(claim) if claim.node_uuid == node_uuid => Contact::Unclear,
            _ => {
                self.claim = Some(Claim { node_uuid, is_checked: false, is_refuted: false });
                self.probe_at_ms = now_ms;
                Contact::Unclear
            }
        }
    }
}
