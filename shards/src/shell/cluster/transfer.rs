//! Groups whose leadership is to go to a certain replica: asked of the nodes that lead them.
//!
//! - I1: an answer says only whether a handover was begun. Who leads is seen where it is always seen.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use chronik_engine::framed;
use chronik_engine::ids::{GroupId, NodeId, ReplicaId, ShardId};
use chronik_replication::peers::Replier;
use chronik_replication::wire::{CallRefused, Seat};
use futures_util::future::join_all;

use super::META_SHARD;
use crate::catalog::CATALOG_PARTITIONS_MAX;
use crate::core::TransferRefused;
use crate::shell::shard::Shard;

/// A call that asks for groups to be handed over.
pub(super) const CALL_TRANSFER: u8 = 20;

const VERSION: u8 = 1;
/// Most memory that a request or an answer may claim.
const BYTES_MAX: usize = 16 << 20;
const TIMEOUT: Duration = Duration::from_secs(5);

/// A group, and the replica that is to lead it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Transfer {
    /// The group.
    pub group: GroupId,
    /// The replica.
    pub to: ReplicaId,
}

/// What a leader makes of a transfer.
pub type Transferred = (GroupId, Result<(), TransferRefused>);

impl Shard {
    /// Has groups handed over by the nodes that lead them. What is missing in the answer could not be asked for.
    /// Cancel-safe.
    pub async fn transfer_on(
        self: &Rc<Self>,
        by_leader: BTreeMap<NodeId, Vec<Transfer>>,
    ) -> Vec<Transferred> {
        let asked = self.on(META_SHARD, move |meta| async move {
            let here = by_leader.into_iter().map(|(node, transfers)| {
                let meta = Rc::clone(&meta);
                async move { meta.transfer_on_node(node, transfers).await }
            });
            join_all(here).await.concat()
        });
        asked.await.unwrap_or_default()
    }

    async fn transfer_on_node(
        self: &Rc<Self>,
        node: NodeId,
        transfers: Vec<Transfer>,
    ) -> Vec<Transferred> {
        if node == self.node.config.node_id {
            return self.transfer_here(transfers).await;
        }
        let Some(links) = self.links() else { return Vec::new() };
        let Ok(body) = framed::encode(VERSION, &transfers) else { return Vec::new() };
        let seat = Seat { node, shard: META_SHARD };
        match links.peers().call(seat, CALL_TRANSFER, Bytes::from(body), TIMEOUT).await {
            Ok(answer) => {
                framed::decode::<Vec<Transferred>, BYTES_MAX>(VERSION, &answer).unwrap_or_default()
            }
            Err(error) => {
                tracing::debug!("node {} is to hand groups over: {error}", node.0);
                Vec::new()
            }
        }
    }

    /// Hands over groups that are led on whatever shard of this node.
    async fn transfer_here(self: &Rc<Self>, transfers: Vec<Transfer>) -> Vec<Transferred> {
        let node = self.node.config.node_id;
        let catalog = self.catalog();
        let mut shards: BTreeMap<GroupId, ShardId> = BTreeMap::new();
        for partition in catalog.topics().flat_map(|topic| &topic.partitions) {
            if let Some(placement) = partition.placement_on(node) {
                shards.insert(partition.group, placement.shard);
            }
        }
        let (mut by_shard, mut done) = (BTreeMap::<ShardId, Vec<Transfer>>::new(), Vec::new());
        for transfer in transfers {
            let shard = match transfer.group {
                GroupId::META => Some(&META_SHARD),
                group => shards.get(&group),
            };
            match shard {
                Some(shard) => by_shard.entry(*shard).or_default().push(transfer),
                None => done.push((transfer.group, Err(TransferRefused::NotLeader))),
            }
        }
        let asked = by_shard.into_iter().map(|(shard, transfers)| {
            self.on(shard, move |there| {
                let begun = there.begin_transfers(&transfers);
                async move { begun }
            })
        });
        done.extend(join_all(asked).await.into_iter().flatten().flatten());
        done
    }

    /// Begins to hand over groups that are led on this shard.
    pub(super) fn begin_transfers(self: &Rc<Self>, transfers: &[Transfer]) -> Vec<Transferred> {
        self.change_core(|core| {
            let begin =
                |transfer: &Transfer| (transfer.group, core.transfer(transfer.group, transfer.to));
            transfers.iter().map(begin).collect()
        })
    }

    /// Does what another node asks for.
    pub(super) fn take_transfers(self: &Rc<Self>, body: &[u8], reply: Replier) {
        let transfers = match framed::decode::<Vec<Transfer>, BYTES_MAX>(VERSION, body) {
            Ok(transfers) if transfers.len() <= CATALOG_PARTITIONS_MAX => transfers,
            _ => {
                let text = "not a list of groups to hand over".to_owned();
                return reply.refuse(CallRefused::Invalid { text });
            }
        };
        let shard = Rc::clone(self);
        let tell = async move {
            match framed::encode(VERSION, shard.transfer_here(transfers).await) {
                Ok(answer) => reply.answer(Bytes::from(answer)),
                Err(_) => reply.refuse(CallRefused::Overloaded),
            }
        };
        chronik_ring::spawn(tell).detach();
    }
}
