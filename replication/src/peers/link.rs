//! One connection between two seats that know each other, and the task that serves it in both directions.
//!
//! - I1: any byte that the peer sends is a sign of life, and so is a byte that the kernel holds for us: a core that
//!   was busy for long does not take its peers for dead.
//! - I2: frames are sent in as few system calls as there is room for, none while another is under way.
//! - I3: a link that was told to end hands nothing more to the handler.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chronik_ring::socket::Socket;

use super::calls::{CALLS_MAX, Calls, PendingCall};
use super::clock::now;
use super::core::{Core, Peer};
use super::handler::{CallError, PeerHandler, Replier};
use super::outbox::{Addressee, Outbox};
use super::outgoing::Heard;
use super::receive::{FrameReader, Received};
use super::stats::add;
use crate::ready::PeerMessage;
use crate::wire::{
    Call, CallRefused, Frame, FrameKind, Part, Refused, RefusedReason, Reply, Want, WireError,
    decode_notices, decode_raft, decode_received,
};

/// Vector entries per send.
const SLICES_MAX: usize = 256;
/// Received into a large body before other tasks of the core get a chance.
const RECEIVE_STEP_BYTES: usize = 1 << 20;

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkEnd {
    #[error("the peer closed the connection")]
    PeerClosed,
    #[error("{0}")]
    Socket(#[from] io::Error),
    #[error("nothing was heard for {} ms", silent.as_millis())]
    Silent { silent: Duration },
    #[error("the peer has taken nothing for {} ms", stalled.as_millis())]
    Stalled { stalled: Duration },
    #[error("the peer made a new connection")]
    Replaced,
    #[error("the node does not belong to the cluster any more")]
    Removed,
    #[error("the peer sent what no peer sends: {0}")]
    Wire(#[from] WireError),
    #[error("the peer sent a {kind:?} frame in the middle of a link")]
    Unexpected { kind: FrameKind },
    #[error("the peer refused: {0}")]
    Refused(RefusedReason),
}

impl LinkEnd {
    /// Whether it says something of this link, and not of the peer's whole node.
    pub(super) fn is_peculiar(&self) -> bool {
        match self {
            LinkEnd::PeerClosed
            | LinkEnd::Socket(_)
            | LinkEnd::Silent { .. }
            | LinkEnd::Replaced
            | LinkEnd::Removed => false,
            LinkEnd::Stalled { .. }
            | LinkEnd::Wire(_)
            | LinkEnd::Unexpected { .. }
            | LinkEnd::Refused(_) => true,
        }
    }
}

/// A connection in use.
pub(super) struct Link {
    socket: Socket,
    outbox: RefCell<Outbox>,
    calls: Calls,
    /// Calls of the peer that have no answer yet.
    unanswered: Cell<usize>,
    /// Wakes the task.
    waker: RefCell<Option<Waker>>,
    /// The task is to end for this.
    told_to_end: RefCell<Option<LinkEnd>>,
    heard_at: Cell<Instant>,
    sent_at: Cell<Instant>,
    /// A ping that has no answer yet.
    pinged_at: Cell<Option<Instant>>,
    /// Nothing is taken any more.
    is_down: Cell<bool>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("is_down", &self.is_down.get()).finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn new(socket: Socket, outbox: Outbox) -> Rc<Link> {
        let now = now();
        Rc::new(Link {
            socket,
            outbox: RefCell::new(outbox),
            calls: Calls::default(),
            unanswered: Cell::new(0),
            waker: RefCell::new(None),
            told_to_end: RefCell::new(None),
            heard_at: Cell::new(now),
            sent_at: Cell::new(now),
            pinged_at: Cell::new(None),
            is_down: Cell::new(false),
        })
    }

    pub(super) fn calls(&self) -> &Calls {
        &self.calls
    }

    pub(super) fn queue_bytes(&self) -> usize {
        self.outbox.borrow().bytes()
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    /// Queues a message, or drops it and says whose it was.
    pub(super) fn send(&self, message: PeerMessage) -> Result<(), Addressee> {
        self.outbox.borrow_mut().push_message(message)?;
        self.wake();
        Ok(())
    }

    /// Queues a frame that goes ahead of the messages; `false` if there is no room.
    pub(super) fn send_urgent(&self, frame: Frame) -> bool {
        let is_queued = !self.is_down.get() && self.outbox.borrow_mut().push_urgent(frame);
        if is_queued {
            self.wake();
        }
        is_queued
    }

    /// Queues a sign of life, unless so much waits that it would be none.
    pub(super) fn send_sign(&self, kind: FrameKind) {
        self.send_urgent(Frame::new(kind, Vec::new()));
    }

    pub(super) fn call(self: Rc<Self>, kind: u8, body: Bytes) -> Result<PendingCall, CallError> {
        let id = self.calls.begin().ok_or(CallError::Overloaded)?;
        let pending = PendingCall::new(Rc::clone(&self), id);
        let bytes = body.len();
        let call = Call { id, kind, body };
        let frame = call.to_frame().map_err(|_| CallError::TooLarge { bytes })?;
        if self.send_urgent(frame) { Ok(pending) } else { Err(CallError::Overloaded) }
    }

    /// Answers a call of the peer. If there is no room for that the peer waits in vain.
    pub(super) fn reply(&self, id: u64, result: Result<&[Bytes], CallRefused>) {
        self.unanswered.set(self.unanswered.get().saturating_sub(1));
        let frame = Reply::frame(id, result).or_else(|error| {
            let text = format!("the answer: {error}");
            Reply::frame(id, Err(CallRefused::Invalid { text }))
        });
        if let Ok(frame) = frame
            && !self.send_urgent(frame)
        {
            tracing::debug!("no room for a reply");
        }
    }

    /// Has the task end.
    pub(super) fn finish(&self, end: LinkEnd) {
        self.told_to_end.borrow_mut().get_or_insert(end);
        self.wake();
    }

    /// Nothing goes out any more: tells the peer and whoever waits for an answer, and returns whose messages are lost.
    pub(super) fn shut(&self) -> Vec<Addressee> {
        self.is_down.set(true);
        self.socket.end_writes();
        self.calls.fail_all();
        self.outbox.borrow_mut().take_lost()
    }

    /// Ends the link if the peer shows no life (I1), and shows life itself.
    pub(super) fn tick(&self, now: Instant, bounds: &Liveness) {
        let silent = now.saturating_duration_since(self.heard_at.get());
        if silent >= bounds.lost_after {
            if self.socket.bytes_waiting().is_ok_and(|bytes| bytes > 0) {
                self.heard_at.set(now);
            } else {
                self.finish(LinkEnd::Silent { silent });
                return;
            }
        }
        let quiet = now.saturating_duration_since(self.sent_at.get());
        let is_empty = self.outbox.borrow().is_empty();
        if !is_empty && quiet >= bounds.stall_after {
            self.finish(LinkEnd::Stalled { stalled: quiet });
        } else if is_empty && quiet >= bounds.ping_interval {
            self.pinged_at.set(self.pinged_at.get().or(Some(now)));
            self.send_sign(FrameKind::Ping);
        }
    }

    /// Snapshots in parts of which the peer says nothing any more: they are lost.
    pub(super) fn tick_transfers(&self) -> Vec<Addressee> {
        self.outbox.borrow_mut().tick()
    }

    /// Receives what there is, once there is something.
    async fn receive<H>(&self, core: &Core<H>, reader: &mut FrameReader) -> Result<u64, LinkEnd> {
        let received = if reader.is_within_body() {
            poll_fn(|cx| self.socket.poll_readable(cx)).await?;
            receive_body(&self.socket, reader)?
        } else {
            receive_any(&self.socket, &core.read_buffer, reader).await?
        };
        self.heard_at.set(now());
        Ok(received as u64)
    }
}

/// What a link goes by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Liveness {
    pub(super) ping_interval: Duration,
    pub(super) lost_after: Duration,
    pub(super) stall_after: Duration,
}

/// Receives into the shared buffer and cuts it into frames.
pub(super) async fn receive_any(
    socket: &Socket,
    buffer: &RefCell<Box<[u8]>>,
    reader: &mut FrameReader,
) -> Result<usize, LinkEnd> {
    poll_fn(|cx| {
        let mut buffer = buffer.borrow_mut();
        match socket.poll_read(cx, &mut buffer) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Ready(Ok(0)) => Poll::Ready(Err(LinkEnd::PeerClosed)),
            Poll::Ready(Ok(received)) => {
                let fed = reader.feed(&buffer[..received]);
                Poll::Ready(fed.map(|()| received).map_err(LinkEnd::from))
            }
        }
    })
    .await
}

/// Receives what is there into the body under way.
fn receive_body(socket: &Socket, reader: &mut FrameReader) -> Result<usize, LinkEnd> {
    let mut received_bytes = 0;
    while received_bytes < RECEIVE_STEP_BYTES {
        match reader.receive_body(|buffer| socket.receive_now(buffer)) {
            None => break,
            Some(Ok(Ok(0))) => return Err(LinkEnd::PeerClosed),
            Some(Ok(Ok(received))) => received_bytes += received,
            Some(Ok(Err(error))) if error.kind() == io::ErrorKind::Interrupted => {}
            Some(Ok(Err(error))) if error.kind() == io::ErrorKind::WouldBlock => break,
            Some(Ok(Err(error))) => return Err(error.into()),
            Some(Err(error)) => return Err(error.into()),
        }
        if socket.is_drained() {
            break;
        }
    }
    Ok(received_bytes)
}

/// Serves a link until it ends. `reader` may hold frames that came with the handshake.
pub(super) async fn serve<H: PeerHandler>(
    core: &Rc<Core<H>>,
    peer: &Rc<Peer>,
    link: &Rc<Link>,
    reader: FrameReader,
) -> LinkEnd {
    let mut reading = pin!(read_frames(core, peer, link, reader));
    let mut writing = pin!(write_frames(core, peer, link));
    poll_fn(|cx| {
        note_waker(link, cx);
        if let Some(end) = link.told_to_end.take() {
            return Poll::Ready(end); // I3
        }
        // Reading first, so that what is answered at once leaves in the same turn.
        if let Poll::Ready(end) = reading.as_mut().poll(cx) {
            return Poll::Ready(end);
        }
        writing.as_mut().poll(cx)
    })
    .await
}

fn note_waker(link: &Link, cx: &Context<'_>) {
    let mut waker = link.waker.borrow_mut();
    match waker.as_mut() {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *waker = Some(cx.waker().clone()),
    }
}

async fn read_frames<H: PeerHandler>(
    core: &Rc<Core<H>>,
    peer: &Rc<Peer>,
    link: &Rc<Link>,
    mut reader: FrameReader,
) -> LinkEnd {
    loop {
        while let Some(frame) = reader.next_frame() {
            if let Err(end) = handle_frame(core, peer, link, frame) {
                return end;
            }
            chronik_ring::yield_if_needed().await;
            if let Some(end) = link.told_to_end.take() {
                return end; // I3
            }
        }
        match link.receive(core, &mut reader).await {
            Ok(received) => add(&peer.counters.bytes_in, received),
            Err(end) => return end,
        }
        chronik_ring::yield_if_needed().await;
    }
}

fn handle_frame<H: PeerHandler>(
    core: &Core<H>,
    peer: &Peer,
    link: &Rc<Link>,
    Received { kind, body }: Received,
) -> Result<(), LinkEnd> {
    add(&peer.counters.frames_in, 1);
    match kind {
        FrameKind::Raft => {
            let messages = decode_raft(&body)?;
            add(&peer.counters.messages_in, messages.len() as u64);
            core.handler.on_messages(peer.seat, messages);
        }
        FrameKind::Notices => core.handler.on_notices(peer.seat, decode_notices(&body)?),
        FrameKind::Received => core.handler.on_received(peer.seat, decode_received(&body)?),
        FrameKind::Call => {
            let call = Call::decode(&body)?;
            let waiting = link.unanswered.replace(link.unanswered.get() + 1);
            let replier = Replier::new(Rc::downgrade(link), call.id);
            if waiting < CALLS_MAX {
                core.handler.on_call(peer.seat, call, replier);
            } else {
                replier.refuse(CallRefused::Overloaded);
            }
        }
        FrameKind::Reply => link.calls.on_reply(Reply::decode(&body)?),
        FrameKind::Ping => link.send_sign(FrameKind::Pong),
        FrameKind::Pong => {
            let took = link.pinged_at.take().map(|at| now().saturating_duration_since(at));
            peer.counters.rtt.set(took.or(peer.counters.rtt.get()));
        }
        FrameKind::Part => take_part(core, peer, link, &Part::decode(&body)?),
        FrameKind::Want => take_want(core, peer, link, &Want::decode(&body)?),
        FrameKind::Refused => return Err(LinkEnd::Refused(Refused::decode(&body)?.reason)),
        FrameKind::Hello
        | FrameKind::Welcome
        | FrameKind::Discovery
        | FrameKind::DiscoveryReply => return Err(LinkEnd::Unexpected { kind }),
    }
    Ok(())
}

fn take_part<H: PeerHandler>(core: &Core<H>, peer: &Peer, link: &Link, part: &Part) {
    let taken = core.incoming.borrow_mut().take(peer.seat, part);
    link.send_urgent(taken.want.to_frame());
    if let Some(reason) = taken.dropped {
        peer.counters.add_transfer_dropped(reason);
        let (peer, group) = (peer.seat, part.transfer.group);
        tracing::debug!(%peer, %group, reason = reason.name(), "a snapshot was dropped on its way");
    }
    if let Some(message) = taken.message {
        add(&peer.counters.messages_in, 1);
        core.handler.on_messages(peer.seat, vec![message]);
    }
}

fn take_want<H: PeerHandler>(core: &Core<H>, peer: &Peer, link: &Link, want: &Want) {
    let heard = link.outbox.borrow_mut().on_want(want);
    match heard {
        Heard::Nothing => {}
        Heard::Progress((group, replica)) => core.handler.on_part_taken(peer.seat, group, replica),
        Heard::Arrived => add(&peer.counters.messages_out, 1),
        Heard::GivenUp(addressee) => core.note_lost(peer.seat, addressee),
    }
    link.wake();
}

async fn write_frames<H: PeerHandler>(core: &Core<H>, peer: &Peer, link: &Link) -> LinkEnd {
    loop {
        // No waker is left here: whoever queues something wakes the task.
        poll_fn(|_| if link.outbox.borrow().is_empty() { Poll::Pending } else { Poll::Ready(()) })
            .await;
        let refused = link.outbox.borrow_mut().make_frames();
        for (group, replica) in refused {
            tracing::error!(peer = %peer.seat, %group, %replica, "a message that no peer takes");
            core.note_lost(peer.seat, (group, replica));
        }
        if let Err(error) = send_frames(peer, link).await {
            return error.into();
        }
    }
}

/// Sends the frames that are made. Tries first, waits only when the socket is full.
async fn send_frames(peer: &Peer, link: &Link) -> io::Result<()> {
    while link.outbox.borrow().is_sending() {
        let sent = {
            let outbox = link.outbox.borrow();
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let filled = outbox.fill_slices(&mut slices);
            link.socket.send_now(&slices[..filled])
        };
        match sent {
            Ok(bytes) => {
                let sent = link.outbox.borrow_mut().advance(bytes);
                link.sent_at.set(now());
                add(&peer.counters.bytes_out, bytes as u64);
                add(&peer.counters.frames_out, sent.frames);
                add(&peer.counters.messages_out, sent.messages);
                chronik_ring::yield_if_needed().await;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll_fn(|cx| link.socket.poll_writable(cx)).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
