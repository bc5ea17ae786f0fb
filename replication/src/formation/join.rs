//! How a node gets into a cluster that is there already: it knows the Raft address of one of its nodes, asks there, and
//! is told of the others.
//!
//! The node that is asked has the catalog take the new one in, so the answer means that all nodes will know it. From
//! then on it is as any node that comes later: a learner of `__meta`, under a replica id of its own.
//!
//! - I1: the replica id is durable before it is named to anybody: asked again after a crash, the node is the same.
//! - I2: nobody is asked on behalf of a data directory that is part of a cluster.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use chronik_engine::ids::{NodeId, ReplicaId};

use super::alone::entered;
use super::decree::{Formation, draw_replica};
use super::durable::{Durable, Formed, Membership, Way};
use super::error::{FormError, Impossible, JoinProblem};
use super::forming::Draw;
use super::ids::NodeUuid;
use super::list::{ListedNode, NODES_MAX};
use super::net::{exchange_with, is_kafka_port, now};
use super::peer::PeerProblem;
use super::protocol::{Envelope, Introduction, Refusal, Reply, Request};
use super::run::{FormedCluster, spawn};
use super::seal::Seal;
use super::store::FormationStore;

/// How long the answer may take, which includes a change of the catalog.
const ANSWER: Duration = Duration::from_secs(4);
/// Between two questions, and between two looks whether to stop.
const RETRY: Duration = Duration::from_millis(300);
const LOOK: Duration = Duration::from_millis(20);
/// How often it is said what is waited for.
const SAY: Duration = Duration::from_secs(5);

/// What a node needs to join a cluster.
pub struct JoinConfig {
    /// This node.
    pub own: NodeId,
    /// The name of its disk, for a data directory in which there is no `formation.bin` yet.
    pub node_uuid: NodeUuid,
    /// The Raft address of any node of the cluster.
    pub address: String,
    /// What this node says of itself.
    pub introduction: Introduction,
    /// Where `formation.bin` lies. Exists, and is locked by this process.
    pub data_dir: PathBuf,
    /// The secret of the cluster.
    pub seal: Seal,
    /// Where random numbers come from.
    pub draw: Draw,
}

impl std::fmt::Debug for JoinConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinConfig")
            .field("own", &self.own)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// Has this node taken into a cluster; also gives the nodes that it was told of. Blocks until then, or until `cancel` is
/// set. A node that is part of a cluster goes on there.
///
/// # Errors
/// What must be corrected first; or it was cancelled.
pub fn join(
    mut config: JoinConfig,
    cancel: &AtomicBool,
) -> Result<(FormedCluster, Vec<ListedNode>), FormError> {
    let store = FormationStore::new(&config.data_dir);
    let found = store.load(config.own)?;
    let mut durable = found.unwrap_or_else(|| Durable::empty(config.own, config.node_uuid));
    if let Some(formed) = &durable.formed {
        // I2
        let cluster = formed.formation.cluster;
        tracing::info!(%cluster, "cluster.join has no effect: this node is part of a cluster already");
    } else {
        let replica = match durable.way {
            Way::Joins { replica, .. } => replica,
            Way::List | Way::Alone => draw_replica(&mut *config.draw),
        };
        durable.way = Way::Joins { replica, peers: Vec::new() };
        store.save(&durable)?; // I1
        let (formation, peers) = ask_until_taken(&mut config, &durable, replica, cancel)?;
        tracing::info!(cluster = %formation.cluster, nodes = peers.len(), "taken into a cluster");
        durable.formed = Some(Formed { formation, own: Membership::Joins { replica } });
        durable.way = Way::Joins { replica, peers };
        store.save(&durable)?;
    }
    let own = ListedNode { id: config.own, raft_addr: config.introduction.raft_addr };
    entered(durable, own, &config.data_dir, config.seal)
}

/// What came of one question.
#[derive(Debug)]
enum Asked {
    Taken(Formation, Vec<ListedNode>),
    /// To be asked again, for this reason.
    Again(String),
    Never(JoinProblem),
}

fn ask_until_taken(
    config: &mut JoinConfig,
    durable: &Durable,
    replica: ReplicaId,
    cancel: &AtomicBool,
) -> Result<(Formation, Vec<ListedNode>), FormError> {
    let mut said_at: Option<Instant> = None;
    loop {
        let address = config.address.clone();
        match ask(config, durable, replica, cancel)? {
            Asked::Taken(formation, peers) => return Ok((formation, peers)),
            Asked::Never(why) => return Err(Impossible::NotTaken { address, why }.into()),
            Asked::Again(why) => {
                if said_at.is_none_or(|at| now().saturating_duration_since(at) >= SAY) {
                    said_at = Some(now());
                    tracing::warn!("waiting to be taken into the cluster of {address}: {why}");
                }
            }
        }
        let again_at = now() + RETRY;
        while now() < again_at && !cancel.load(Ordering::Acquire) {
            std::thread::sleep(LOOK);
        }
    }
}

/// Asks once, on a thread that ends by itself: a name server may take longer than a signal may wait.
fn ask(
    config: &mut JoinConfig,
    durable: &Durable,
    replica: ReplicaId,
    cancel: &AtomicBool,
) -> Result<Asked, FormError> {
    let exchange = (config.draw)();
    let request = Envelope {
        from: durable.node,
        from_uuid: durable.node_uuid,
        to: durable.node,
        list: 0,
        exchange,
        message: Request::Join { introduction: config.introduction.clone(), replica },
    };
    let body = config.seal.request(&request).unwrap_or_default();
    let address = config.address.clone();
    let (sender, answers) = sync_channel(1);
    let exchanged = move || {
        let outcome = exchange_with(&address, body, ANSWER);
        let is_odd = matches!(
            outcome,
            Err(PeerProblem::Garbled
                | PeerProblem::NoAnswer
                | PeerProblem::Unreachable { kind: ErrorKind::ConnectionReset })
        );
        let is_kafka = is_odd && is_kafka_port(&address);
        // Whoever asked may have been cancelled.
        _ = sender.try_send((outcome, is_kafka));
    };
    drop(spawn(exchanged)?);
    loop {
        match answers.recv_timeout(LOOK) {
            Ok((_, true)) => return Ok(Asked::Never(JoinProblem::KafkaPort)),
            Ok((Ok(body), false)) => {
                return Ok(judge(&config.seal, &body, durable.node, exchange, replica));
            }
            Ok((Err(problem), false)) => return Ok(Asked::Again(problem.to_string())),
            Err(RecvTimeoutError::Timeout) if cancel.load(Ordering::Acquire) => {
                return Err(FormError::Cancelled);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Ok(Asked::Again("the question was lost".to_owned()));
            }
        }
    }
}

/// What an answer means.
fn judge(seal: &Seal, body: &[u8], own: NodeId, exchange: u64, replica: ReplicaId) -> Asked {
    let reply = match seal.open_reply(body).map_err(|error| error.problem()) {
        Ok(reply) => reply,
        Err(PeerProblem::SecretDiffers) => return Asked::Never(JoinProblem::SecretDiffers),
        Err(problem) => return Asked::Again(problem.to_string()),
    };
    match reply.message {
        Reply::Refused(Refusal::Unsealed) => Asked::Never(JoinProblem::SecretDiffers),
        // It could not read which exchange this is.
        Reply::Refused(Refusal::Malformed) => Asked::Never(JoinProblem::Nonsense),
        _ if reply.exchange != exchange || reply.to != own => {
            Asked::Again(PeerProblem::Garbled.to_string())
        }
        Reply::Joined { formation, peers } => {
            let is_plausible = !formation.members.is_empty()
                && peers.len() <= NODES_MAX
                && formation.members.iter().all(|member| member.replica != replica);
            match is_plausible {
                true => Asked::Taken(formation, peers),
                false => Asked::Never(JoinProblem::Nonsense),
            }
        }
        Reply::NotYet => Asked::Again(
            "it answers, but there is nobody yet who could take this node in: the nodes of that cluster have no leader"
                .to_owned(),
        ),
        Reply::Later { text } => Asked::Again(text),
        Reply::Refused(Refusal::IdInUse { node_uuid }) => {
            Asked::Never(JoinProblem::IdInUse { node_uuid })
        }
        Reply::Refused(Refusal::AddressInUse { node }) => {
            Asked::Never(JoinProblem::AddressInUse { node })
        }
        Reply::Refused(Refusal::NotTaken { text }) => Asked::Never(JoinProblem::Refused { text }),
        _ => Asked::Never(JoinProblem::Nonsense),
    }
}
