//! One Kafka connection: requests in, answers out in request order, in one task.
//!
//! Owns the pipeline between socket and handler. A reading and a writing half share the task, so
//! that a request which is answered at once costs one wake-up, and one that is answered later two.
//! With one request in flight that makes one receive, one poll and one send.
//!
//! I1 Requests are handed to the handler in order, each after the one before is enqueued.
//! I2 Answers leave in request order; those ready together leave in one vectored send.
//! I3 A Produce holds its bytes of the core's budget until its answer is produced; any other request
//!    gives them back once it is enqueued. A parked fetch would stop every large frame of the core
//!    for as long as it waits, and what it decoded into is bounded by [`crate::guard`] and, per
//!    connection, by the pipeline's limits.
//! I4 What was taken is answered before an orderly end (peer's end, malformed frame, drain); only a
//!    socket error or an abort drops it.

mod budget;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use chronik_ring::socket::Socket;
use kafka_protocol::messages::ApiKey;

use crate::admission::{ARRIVAL_BYTES_FREE, Arrival, Permit};
use crate::clock;
use crate::control::Control;
use crate::error::CloseReason;
use crate::frame::{FrameAssembler, FrameLimits};
use crate::handler::{Enqueued, Finished, ListenerKind, RequestHandler, WireStage};
use crate::http;
use crate::listener::Core;
use crate::output::{Output, SLICES_MAX};
use crate::protocol::{Incoming, api_versions_response, decode_request};
use crate::response::encode_response;

/// Answers are gathered up to this before they are sent.
const SEND_BATCH_BYTES: usize = 1 << 20;

/// What a receive brought.
pub(crate) enum Received {
    Bytes,
    EndOfStream,
    /// The connection is draining: nothing more is read.
    Draining,
}

/// Serves a connection to its end and says why it ended.
pub(crate) async fn serve<H: RequestHandler>(
    core: &Rc<Core<H>>,
    socket: &Socket,
    control: &Control,
) -> CloseReason {
    let opening = match receive_opening(core, socket, control).await {
        Ok(opening) => opening,
        Err(reason) => return reason,
    };
    let is_http = control.context.listener == ListenerKind::Http || http::is_http(&opening);
    if is_http {
        return match http::serve(core, socket, control, opening).await {
            Ok(()) => CloseReason::PeerClosed,
            Err(reason) => reason,
        };
    }
    serve_kafka(core, socket, control, opening).await
}

/// Serves a Kafka connection, of which `opening` was received already, to its end.
pub(crate) async fn serve_kafka<H: RequestHandler>(
    core: &Rc<Core<H>>,
    socket: &Socket,
    control: &Control,
    opening: Vec<u8>,
) -> CloseReason {
    Connection::new(core, socket, control).run(opening).await
}

/// The first bytes, at least four: enough to tell HTTP from a frame's length.
async fn receive_opening<H: RequestHandler>(
    core: &Rc<Core<H>>,
    socket: &Socket,
    control: &Control,
) -> Result<Vec<u8>, CloseReason> {
    let mut opening = Vec::new();
    while opening.len() < 4 {
        if !opening.is_empty() {
            control.frame_owed(core.clock.now());
        }
        match receive(core, socket, control, |bytes| {
            opening.extend_from_slice(bytes);
            Ok(())
        })
        .await?
        {
            Received::Bytes => {}
            Received::EndOfStream if opening.is_empty() => return Err(CloseReason::PeerClosed),
            Received::EndOfStream => {
                return Err(CloseReason::PeerClosedInFrame { received: opening.len() });
            }
            Received::Draining => return Err(CloseReason::Shutdown),
        }
    }
    control.frame_settled();
    Ok(opening)
}

/// Waits for bytes and gives them to `take` out of the core's shared read buffer.
pub(crate) async fn receive<H: RequestHandler>(
    core: &Rc<Core<H>>,
    socket: &Socket,
    control: &Control,
    mut take: impl FnMut(&[u8]) -> Result<(), CloseReason>,
) -> Result<Received, CloseReason> {
    poll_fn(|cx| {
        if control.is_draining() {
            return Poll::Ready(Ok(Received::Draining));
        }
        let mut buffer = core.read_buffer.borrow_mut();
        match socket.poll_read(cx, &mut buffer) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Ready(Ok(0)) => Poll::Ready(Ok(Received::EndOfStream)),
            Poll::Ready(Ok(received)) => {
                control.touch(core.clock.now());
                Poll::Ready(take(&buffer[..received]).map(|()| Received::Bytes))
            }
        }
    })
    .await
}

/// Sends all of `output`. Tries first, waits only when the socket is full.
pub(crate) async fn send_all<H: RequestHandler>(
    core: &Rc<Core<H>>,
    socket: &Socket,
    control: &Control,
    output: &RefCell<Output>,
) -> Result<(), CloseReason> {
    while output.borrow().pending_bytes() > 0 {
        let sent = {
            let output = output.borrow();
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = output.fill_slices(&mut slices);
            socket.send_now(&slices[..count])
        };
        let sent = match sent {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                control.set_write_wait(Some(core.clock.now()));
                poll_fn(|cx| socket.poll_writable(cx)).await?;
                control.set_write_wait(None);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        control.touch(core.clock.now());
        output.borrow_mut().advance(sent);
        chronik_ring::yield_if_needed().await;
    }
    Ok(())
}

/// A request that was taken and whose answer has not been encoded.
struct Slot {
    api_key: i16,
    api_version: i16,
    correlation_id: i32,
    bytes: usize,
    /// Held for its drop alone, and by a Produce only (I3).
    permit: Option<Permit>,
    answer: Enqueued,
}

struct Connection<'a, H> {
    core: &'a Rc<Core<H>>,
    socket: &'a Socket,
    control: &'a Control,
    slots: RefCell<VecDeque<Slot>>,
    slots_bytes: Cell<usize>,
    output: RefCell<Output>,
    reading_ended: Cell<bool>,
    /// The reading half waits for the writing half to take a slot out.
    reader_waits: Cell<bool>,
    /// A slot was taken out since the reading half last looked.
    slot_taken_out: Cell<bool>,
}

impl<'a, H: RequestHandler> Connection<'a, H> {
    fn new(core: &'a Rc<Core<H>>, socket: &'a Socket, control: &'a Control) -> Self {
        Self {
            core,
            socket,
            control,
            slots: RefCell::new(VecDeque::new()),
            slots_bytes: Cell::new(0),
            output: RefCell::new(Output::default()),
            reading_ended: Cell::new(false),
            reader_waits: Cell::new(false),
            slot_taken_out: Cell::new(false),
        }
    }

    /// Polls both halves in one task: reading first, so that what it takes and is answered at once
    /// is sent in the same turn.
    async fn run(&self, opening: Vec<u8>) -> CloseReason {
        let mut reading = pin!(self.read_requests(opening));
        let mut writing = pin!(self.write_answers());
        let mut reading_end = None;
        poll_fn(|cx| {
            loop {
                if reading_end.is_none()
                    && let Poll::Ready(reason) = reading.as_mut().poll(cx)
                {
                    if matches!(reason, CloseReason::Socket { .. }) {
                        return Poll::Ready(reason);
                    }
                    reading_end = Some(reason);
                    self.reading_ended.set(true);
                }
                match writing.as_mut().poll(cx) {
                    Poll::Ready(Err(reason)) => return Poll::Ready(reason),
                    Poll::Ready(Ok(())) => {
                        return Poll::Ready(reading_end.take().unwrap_or(CloseReason::PeerClosed));
                    }
                    Poll::Pending if reading_end.is_none() && self.reader_may_go_on() => {}
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    /// Takes requests until there is a reason to stop.
    async fn read_requests(&self, opening: Vec<u8>) -> CloseReason {
        let mut frames = FrameAssembler::new(FrameLimits {
            produce_bytes_max: self.core.settings.frame_bytes_max,
            control_bytes_max: self.core.settings.frame_bytes_max_control,
        });
        // Whole frames before a malformed one are served: the error is the next thing to happen.
        let mut end = frames.feed(&opening).err().map(CloseReason::from);
        drop(opening);
        let mut arrival: Option<Arrival> = None;
        // Since when the first frame that is not whole has been under way.
        let mut begun_at = clock::now();
        loop {
            while let Some(frame) = frames.next_frame() {
                self.core.handler.wire_time(WireStage::Receive, begun_at.elapsed());
                let permit = arrival.take().and_then(Arrival::into_permit);
                if let Err(reason) = self.take_frame(frame, permit).await {
                    return reason;
                }
                // One receive may have brought thousands of small requests.
                chronik_ring::yield_if_needed().await;
            }
            if let Some(reason) = end.take() {
                return reason;
            }
            if let Some(target) = self.control.context.affinity.target()
                && arrival.is_none()
                && frames.received_in_frame() <= ARRIVAL_BYTES_FREE
            {
                return CloseReason::Moved { target, unread: frames.into_unread() };
            }
            if let Some(length) = frames.body_length()
                && length > ARRIVAL_BYTES_FREE
            {
                let arrival =
                    arrival.get_or_insert_with(|| Arrival::new(&self.core.admission, clock::now()));
                end = self.receive_large(&mut frames, arrival, length).await.err();
            } else {
                let fresh = frames.received_in_frame() == 0;
                end = self.receive_frames(&mut frames).await.err();
                if fresh {
                    begun_at = clock::now();
                }
            }
            chronik_ring::yield_if_needed().await;
        }
    }

    /// Receives once. An error may come after whole frames.
    async fn receive_frames(&self, frames: &mut FrameAssembler) -> Result<(), CloseReason> {
        if frames.received_in_frame() > 0 {
            self.control.frame_owed(self.core.clock.now());
        } else {
            self.control.frame_settled();
        }
        let received = receive(self.core, self.socket, self.control, |bytes| {
            frames.feed(bytes).map_err(CloseReason::from)
        });
        match received.await? {
            Received::Draining => Err(CloseReason::Shutdown),
            Received::EndOfStream => Err(match frames.received_in_frame() {
                0 => CloseReason::PeerClosed,
                received => CloseReason::PeerClosedInFrame { received },
            }),
            Received::Bytes => Ok(()),
        }
    }

    /// Decodes one frame and hands it over. Ready once its place in the order is fixed.
    async fn take_frame(&self, frame: Bytes, permit: Option<Permit>) -> Result<(), CloseReason> {
        // We are busy, not the peer: the rest of the next frame is owed from the next receive on.
        self.control.frame_settled();
        let bytes = frame.len();
        self.wait_for_room(bytes).await;
        if self.control.is_draining() {
            return Err(CloseReason::Shutdown);
        }
        let permit = match permit {
            Some(permit) => permit,
            None => match self.core.admission.try_acquire(bytes) {
                Some(permit) => permit,
                None => self.wait_for_budget(bytes, None).await?,
            },
        };
        let slot = match decode_request(frame)? {
            Incoming::ApiVersions { correlation_id, api_version, supported } => {
                let answer = Enqueued::respond(api_versions_response(supported));
                let api_version = if supported { api_version } else { 0 };
                let api_key = ApiKey::ApiVersions as i16;
                Slot { api_key, api_version, correlation_id, bytes, permit: None, answer }
            }
            Incoming::Request(request) => {
                let is_produce = request.api_key == ApiKey::Produce;
                let api_key = request.api_key as i16;
                let api_version = request.api_version;
                let correlation_id = request.correlation_id;
                self.control.last_api_key.set(Some(api_key));
                let answer = self.core.handler.enqueue(&self.control.context, request).await;
                let permit = is_produce.then_some(permit);
                Slot { api_key, api_version, correlation_id, bytes, permit, answer }
            }
        };
        let requests = &self.control.context.requests;
        requests.set(requests.get() + 1);
        self.core.counters.add_request(bytes);
        self.slots_bytes.set(self.slots_bytes.get() + bytes);
        self.slots.borrow_mut().push_back(slot);
        self.control.in_flight.set(self.control.in_flight.get() + 1);
        Ok(())
    }

    async fn wait_for_room(&self, bytes: usize) {
        poll_fn(|_| {
            let room = self.has_room(bytes);
            self.reader_waits.set(!room);
            // No waker: the writing half makes room, and `run` polls this half after it.
            if room { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn has_room(&self, bytes: usize) -> bool {
        let settings = &self.core.settings;
        let slots = self.slots.borrow().len();
        slots == 0
            || (slots < settings.pipeline_requests_max
                && self.slots_bytes.get() + bytes <= settings.pipeline_bytes_max)
    }

    /// The reading half waits for room and there may be some now. It is not woken for that: `run`
    /// polls it again in the same turn.
    fn reader_may_go_on(&self) -> bool {
        self.slot_taken_out.replace(false) && self.reader_waits.get()
    }

    /// Sends answers until reading has ended and everything taken is answered.
    async fn write_answers(&self) -> Result<(), CloseReason> {
        loop {
            let close = poll_fn(|cx| self.poll_gather(cx)).await;
            let ready_at = clock::now();
            send_all(self.core, self.socket, self.control, &self.output).await?;
            self.core.handler.wire_time(WireStage::Respond, ready_at.elapsed());
            match close {
                Gathered::More => {}
                Gathered::End => return Ok(()),
                Gathered::Close(reason) => return Err(reason),
            }
        }
    }

    /// Encodes the answers that are ready, in order.
    fn poll_gather(&self, cx: &mut Context<'_>) -> Poll<Gathered> {
        let mut output = self.output.borrow_mut();
        while output.pending_bytes() < SEND_BATCH_BYTES {
            // Taken out while it is polled: the handler's future must not find the slots borrowed.
            let Some(mut slot) = self.slots.borrow_mut().pop_front() else { break };
            let finished = match poll_answer(&mut slot.answer, cx) {
                Poll::Ready(finished) => finished,
                Poll::Pending => {
                    self.slots.borrow_mut().push_front(slot);
                    break;
                }
            };
            drop(slot.permit);
            self.slot_taken_out.set(true);
            self.slots_bytes.set(self.slots_bytes.get() - slot.bytes);
            self.control.in_flight.set(self.control.in_flight.get() - 1);
            match finished {
                Finished::NoResponse => {}
                Finished::Close(reason) => return Poll::Ready(Gathered::Close(reason)),
                Finished::Response(body) => {
                    assert!(body.api_key() as i16 == slot.api_key, "an answer of another API");
                    let (correlation_id, version) = (slot.correlation_id, slot.api_version);
                    if let Err(reason) = encode_response(&mut output, correlation_id, version, body)
                    {
                        return Poll::Ready(Gathered::Close(reason));
                    }
                }
            }
        }
        if output.pending_bytes() > 0 {
            return Poll::Ready(Gathered::More);
        }
        if self.reading_ended.get() && self.slots.borrow().is_empty() {
            return Poll::Ready(Gathered::End);
        }
        Poll::Pending
    }
}

enum Gathered {
    More,
    End,
    Close(CloseReason),
}

fn poll_answer(answer: &mut Enqueued, cx: &mut Context<'_>) -> Poll<Finished> {
    match answer {
        Enqueued::Ready(finished) => Poll::Ready(std::mem::replace(finished, Finished::NoResponse)),
        Enqueued::Pending(future) => future.as_mut().poll(cx),
    }
}
