//! Commands of the catalog that this node wants and another one proposes, because that one leads the catalog.
//!
//! A command goes out under a random name and comes back in the log: the node that wanted it applies it like every other
//! node, and finds by the name that it is its own. So the outcome never travels, and who has it sees the change.
//!
//! - I1: whoever waits is answered once: by the log, by the refusal of the other node, or when the core gives up.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use chronik_engine::ids::{GroupId, NodeId};
use chronik_replication::peers::{CallError, Replier};
use chronik_replication::wire::{CallRefused, Seat};
use uuid::Uuid;

use super::META_SHARD;
use crate::catalog::{CatalogCommand, CommandId};
use crate::core::{Ack, ProduceError, ProduceResult};
use crate::shell::replies::ReplyTo;
use crate::shell::shard::Shard;

/// A call that asks for a command to be proposed.
pub(super) const CALL_PROPOSE: u8 = 1;

/// How long the other node may take to have a command committed.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The command was not proposed: to ask again does no harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no node is known to lead the catalog")]
pub struct NotProposed;

impl Shard {
    /// Has a command of the catalog proposed, here or on the node that leads it. To be called on the catalog's shard.
    ///
    /// # Errors
    /// [`NotProposed`] where nobody could be asked; else what became of it.
    pub async fn submit_command(
        self: &Rc<Self>,
        command: &CatalogCommand,
    ) -> Result<ProduceResult, NotProposed> {
        let leads =
            self.with_core(|core| core.partition(GroupId::META)).is_some_and(|v| v.is_leader);
        if leads || self.links().is_none() {
            let (done, answer) = ReplyTo::channel(self.id);
            self.propose_command(command, done);
            return Ok(answer.await.unwrap_or(Err(ProduceError::NotLeader)));
        }
        let node = self.meta_leader().ok_or(NotProposed)?;
        self.forward_command(node, command).await
    }

    /// The node that leads the catalog, another than this.
    pub(super) fn meta_leader(&self) -> Option<NodeId> {
        let replica = self.with_core(|core| core.partition(GroupId::META))?.leader?;
        self.links()?.seat_of(GroupId::META, replica).map(|seat| seat.node)
    }

    async fn forward_command(
        self: &Rc<Self>,
        node: NodeId,
        command: &CatalogCommand,
    ) -> Result<ProduceResult, NotProposed> {
        let Some(links) = self.links() else { return Err(NotProposed) };
        let id = CommandId(Uuid::new_v4());
        let Ok(payload) = command.encode_named(Some(id)) else { return Err(NotProposed) };
        let (done, answer) = ReplyTo::channel(self.id);
        self.propose(done, |core, token| core.await_command(id, token));
        let seat = Seat { node, shard: META_SHARD };
        let asked = links.peers().call(seat, CALL_PROPOSE, Bytes::from(payload), PROPOSE_TIMEOUT);
        match asked.await {
            // It is committed; the log brings it.
            Ok(_) => Ok(answer.await.unwrap_or(Err(ProduceError::NotLeader))),
            Err(
                CallError::NotConnected
                | CallError::Overloaded
                | CallError::Refused(CallRefused::NotLeader { .. }),
            ) => {
                self.change_core(|core| core.forget_command(id, ProduceError::NotLeader));
                Err(NotProposed)
            }
            // It may be proposed or not: only the log knows.
            Err(error) => {
                tracing::debug!("a command for node {}: {error}", node.0);
                self.change_core(|core| core.forget_command(id, ProduceError::NotLeader));
                Ok(answer.await.unwrap_or(Err(ProduceError::NotLeader)))
            }
        }
    }

    /// Proposes what another node asks for, and tells it once that is committed.
    pub(super) fn take_forwarded(self: &Rc<Self>, payload: &[u8], reply: Replier) {
        let (done, answer) = ReplyTo::channel(self.id);
        let mut refused = None;
        self.propose(done, |core, token| {
            core.propose_forwarded(payload, token).map_err(|error| {
                refused = Some(error);
                error.unwrap_or(ProduceError::NotLeader)
            })
        });
        if refused == Some(None) {
            reply.refuse(CallRefused::Invalid { text: "not a command of the catalog".to_owned() });
            return;
        }
        let shard = Rc::clone(self);
        let tell = async move {
            match answer.await {
                Ok(Ok(Ack::Command(_))) => reply.answer(Bytes::new()),
                // Only what was not proposed may be asked for again.
                _ if refused == Some(Some(ProduceError::NotLeader)) => {
                    reply.refuse(CallRefused::NotLeader { leader: shard.meta_leader() });
                }
                Ok(Err(ProduceError::Overloaded)) => reply.refuse(CallRefused::Overloaded),
                _ => {
                    let text = "what became of the command is not known here".to_owned();
                    reply.refuse(CallRefused::Invalid { text });
                }
            }
        };
        chronik_ring::spawn(tell).detach();
    }
}
