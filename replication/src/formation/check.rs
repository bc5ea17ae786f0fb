//! What a node asks before it takes part in anything.
//!
//! Whether the peers of a node that restarts belong to its cluster: a data directory that was carried to other nodes
//! must not start among them. And whether another node is running at the address that the list has for this one: with
//! a configuration that was copied it would be taken for that node with an empty disk, and put in its place.
//!
//! It waits no longer than a peer that is up takes to answer. Those that are down or slow are found out later: every
//! connection names its cluster.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use super::durable::Durable;
use super::error::{FormError, Impossible};
use super::forming::Draw;
use super::list::{ListedNode, NodeList};
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
        ask_once(node, list, seal, durable, draw(), sender.clone())?;
    }
    drop(sender);
    judge(list, seal, durable, &events)
}

/// Asks who is at the own address of the list, where this node does not listen yet.
pub(super) fn check_own_address(
    list: &NodeList,
    seal: &Seal,
    durable: &Durable,
    draw: &mut Draw,
) -> Result<(), FormError> {
    let (sender, events) = sync_channel(1);
    let asked = draw();
    for node in list.nodes().iter().filter(|node| node.id == durable.node) {
        ask_once(node, list, seal, durable, asked, sender.clone())?;
    }
    drop(sender);
    let Ok(Event::Ended { peer, outcome: Ok(body), .. }) = events.recv_timeout(CHECK) else {
        return Ok(());
    };
    match seal.open_reply(&body) {
        Ok(Envelope {
            exchange, message: Reply::Refused(Refusal::IdInUse { node_uuid }), ..
        }) if exchange == asked && node_uuid != durable.node_uuid => {
            Err(Impossible::IdInUse { peer, node_uuid }.into())
        }
        _ => Ok(()),
    }
}

/// Asks one node, on a thread that ends with its answer.
fn ask_once(
    node: &ListedNode,
    list: &NodeList,
    seal: &Seal,
    durable: &Durable,
    exchange: u64,
    events: SyncSender<Event>,
) -> Result<(), FormError> {
    let request = Envelope {
        from: durable.node,
        from_uuid: durable.node_uuid,
        to: node.id,
        list: list.fingerprint(),
        exchange,
        message: Request::Probe,
    };
    let body = seal.request(&request).unwrap_or_default();
    let (peer, address) = (node.id, node.raft_addr.clone());
    let (asks, asked) = sync_channel(1);
    // There is room for one; with the sender dropped the thread ends after it.
    _ = asks.try_send(Ask { exchange, body });
    drop(spawn(move || ask_peer(peer, &address, &asked, &events))?);
    Ok(())
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
