//! Whether the peers of a node that restarts belong to its cluster: a data directory that was carried to other nodes
//! must not start among them.
//!
//! It waits no longer than a peer that is up takes to answer. Those that are down or slow are found out later: every
//! connection names its cluster.

use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use super::durable::Durable;
use super::error::{FormError, Impossible};
use super::forming::Draw;
use super::list::NodeList;
use super::net::{Ask, Event, ask_peer, now};
use super::protocol::{Envelope, Refusal, Reply, Request, Status};
use super::run::spawn;
use super::seal::Seal;

/// How long a start is held up at most.
const CHECK: Duration = Duration::from_millis(200);

/// Asks all peers once.
pub(super) fn check_peers(
    list: &NodeList,
    seal: &Seal,
    durable: &Durable,
    draw: &mut Draw,
) -> Result<(), FormError> {
    let (sender, events) = sync_channel(list.nodes().len());
    for node in list.nodes().iter().filter(|node| node.id != durable.node) {
        let request = Envelope {
            from: durable.node,
            from_uuid: durable.node_uuid,
            to: node.id,
            list: list.fingerprint(),
            exchange: draw(),
            message: Request::Probe,
        };
        let body = seal.request(&request).unwrap_or_default();
        let (peer, address, events) = (node.id, node.raft_addr.clone(), sender.clone());
        let (asks, asked) = sync_channel(1);
        // There is room for one; with the sender dropped the thread ends after it.
        _ = asks.try_send(Ask { exchange: request.exchange, body });
        drop(spawn(move || ask_peer(peer, &address, &asked, &events))?);
    }
    drop(sender);
    judge(list, seal, durable, &events)
}

fn judge(
    list: &NodeList,
    seal: &Seal,
    durable: &Durable,
    events: &Receiver<Event>,
) -> Result<(), FormError> {
    let deadline = now() + CHECK;
    // It ends when the time is over, or all threads are.
    while let Ok(event) = events.recv_timeout(deadline.saturating_duration_since(now())) {
        let Event::Ended { peer, exchange, outcome: Ok(body) } = event else { continue };
        let Ok(reply) = seal.open_reply(&body) else { continue };
        if reply.from != peer || reply.exchange != exchange {
            continue;
        }
        match (reply.message, &durable.formed) {
            (Reply::Status(Status::Formed { formation }), Some(formed))
                if formation.cluster != formed.formation.cluster =>
            {
                let (own, other) = (formed.formation.cluster, formation.cluster);
                return Err(Impossible::TwoClusters { own, other }.into());
            }
            (Reply::Refused(Refusal::ListDiffers { list: theirs }), _) => {
                for difference in list.differences(&theirs) {
                    tracing::warn!("cluster.nodes of node {peer} differs: {difference}");
                }
            }
            _ => {}
        }
    }
    Ok(())
}
