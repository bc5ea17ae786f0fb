//! The client itself: one thread, one connection to the leader at a time.
//!
//! - I1: messages are sent in the order in which they were due; those of a lost connection come first again.
//! - I2: a leader gets one message until it has acknowledged it, then all that are due: who only seems to lead is not
//!   flooded with what it will refuse.

use std::collections::VecDeque;
use std::io::{ErrorKind, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::finder::{Finder, Leader};
use super::{Board, Plan};
use crate::clock::exact_sleeps;
use crate::pace::Schedule;
use crate::wire::{
    FrameReader, PRODUCE, Template, check_produced, correlation_of, open_stream_within,
    produce_request, random_batch,
};

/// Pause before the nodes are asked for a leader again.
const RETRY_PAUSE: Duration = Duration::from_millis(1);
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(250);
/// A leader that leaves a message unanswered for so long is doubted: the nodes are asked who leads.
const DOUBT_NS: u64 = 100_000_000;
/// The longest sleep without a look at the board.
const SLEEP_NS_MAX: u64 = 10_000_000;
/// Most messages under way.
const IN_FLIGHT_MAX: usize = 100_000;

/// Sends until the board says that it is over.
#[derive(Debug)]
pub(super) struct Client<'a> {
    board: &'a Board,
    schedule: Schedule,
    template: Template,
    finder: Finder,
    /// The next message that is not due yet.
    next: u64,
    /// Due and not on their way, by number in the schedule.
    waiting: VecDeque<u64>,
    /// On their way over the link.
    in_flight: VecDeque<u64>,
    /// Messages below were handed to a socket at least once.
    sent_before: u64,
    link: Option<Link>,
    lost: Option<Leader>,
}

/// A connection to a leader.
#[derive(Debug)]
struct Link {
    leader: Leader,
    stream: TcpStream,
    reader: FrameReader,
    unwritten: VecDeque<u8>,
    is_proven: bool,
    /// When it last answered, or was last doubted.
    heard_ns: u64,
}

impl<'a> Client<'a> {
    pub(super) fn new(plan: &Plan, board: &'a Board) -> Result<Client<'a>> {
        let start_ns = board.clock.now_ns();
        // How long it goes on the board says.
        let schedule = Schedule::new(start_ns, plan.rate, 1, Duration::ZERO, Duration::ZERO);
        let schedule = schedule.context("a rate of zero")?;
        let batch = random_batch(1, usize::try_from(plan.record_bytes)?)?;
        let template = Template::new(&produce_request(&plan.topic, 0, -1, batch), PRODUCE)?;
        Ok(Client {
            board,
            schedule,
            template,
            finder: Finder::new(&plan.topic, &plan.nodes),
            next: 0,
            waiting: VecDeque::new(),
            in_flight: VecDeque::new(),
            sent_before: 0,
            link: None,
            lost: None,
        })
    }

    /// Messages that were due and are not acknowledged at the end.
    pub(super) fn run(mut self) -> Result<u64> {
        exact_sleeps();
        while !self.board.is_over() {
            self.take_due()?;
            let Some(mut link) = self.link.take() else {
                self.find_leader();
                continue;
            };
            match self.exchange(&mut link) {
                Ok(()) => self.link = Some(link),
                Err(why) => self.give_up(link.leader, &why),
            }
        }
        Ok(u64::try_from(self.waiting.len() + self.in_flight.len())?)
    }

    fn take_due(&mut self) -> Result<()> {
        let now_ns = self.board.clock.now_ns();
        while self.schedule.due_ns(self.next) <= now_ns {
            ensure!(i32::try_from(self.next).is_ok(), "more messages than one run can count");
            self.waiting.push_back(self.next);
            self.next += 1;
        }
        Ok(())
    }

    fn find_leader(&mut self) {
        let lost = self.lost.map(|leader| leader.addr);
        let found = self.finder.ask(lost).and_then(|leader| self.connect(leader));
        match found {
            Ok(link) => self.link = Some(link),
            // That nobody leads, or that a node is gone, is what is being waited out.
            Err(_) => std::thread::sleep(RETRY_PAUSE),
        }
    }

    fn connect(&self, leader: Leader) -> Result<Link> {
        let stream = open_stream_within(leader.addr, CONNECT_TIMEOUT)?;
        let reader = FrameReader::new(stream.try_clone()?, CONNECT_TIMEOUT)?;
        // From here on reads return at once, and poll does the waiting.
        stream.set_nonblocking(true).context("a socket that does not wait")?;
        let heard_ns = self.board.clock.now_ns();
        let unwritten = VecDeque::new();
        Ok(Link { leader, stream, reader, unwritten, is_proven: false, heard_ns })
    }

    /// One turn: sends what is due, waits for answers until the next message is, hears them.
    fn exchange(&mut self, link: &mut Link) -> Result<()> {
        self.hand_over(link)?;
        link.write()?;
        let now_ns = self.board.clock.now_ns();
        let until_due_ns = self.schedule.due_ns(self.next).saturating_sub(now_ns);
        link.wait(until_due_ns.min(SLEEP_NS_MAX))?;
        self.hear(link)?;
        self.doubt(link)
    }

    fn hand_over(&mut self, link: &mut Link) -> Result<()> {
        let limit = if link.is_proven { IN_FLIGHT_MAX } else { 1 };
        while self.in_flight.len() < limit {
            let Some(message) = self.waiting.pop_front() else { break };
            if self.in_flight.is_empty() {
                link.heard_ns = self.board.clock.now_ns();
            }
            link.unwritten.extend(self.template.frame(i32::try_from(message)?));
            self.in_flight.push_back(message);
            if message >= self.sent_before {
                self.sent_before = message + 1;
                if link.is_proven {
                    let now_ns = self.board.clock.now_ns();
                    self.board.note_sent(now_ns.saturating_sub(self.schedule.due_ns(message)));
                }
            }
        }
        Ok(())
    }

    fn hear(&mut self, link: &mut Link) -> Result<()> {
        while let Some(frame) = link.reader.receive()? {
            let now_ns = self.board.clock.now_ns();
            link.heard_ns = now_ns;
            let expected = *self.in_flight.front().context("an answer nobody asked for")?;
            let correlation_id = correlation_of(&frame)?;
            ensure!(
                u64::try_from(correlation_id) == Ok(expected),
                "answer {correlation_id} where {expected} was due"
            );
            // A message that is refused stays at the front, to be sent again.
            let _offset = check_produced(frame, correlation_id)?;
            self.in_flight.pop_front();
            link.is_proven = true;
            self.board.note_ack(link.leader.node, self.schedule.due_ns(expected), now_ns);
        }
        Ok(())
    }

    /// An error where a leader is silent and a node names a newer one.
    fn doubt(&mut self, link: &mut Link) -> Result<()> {
        let now_ns = self.board.clock.now_ns();
        if self.in_flight.is_empty() || now_ns.saturating_sub(link.heard_ns) < DOUBT_NS {
            return Ok(());
        }
        link.heard_ns = now_ns;
        match self.finder.ask(Some(link.leader.addr)) {
            Ok(named) if named.addr != link.leader.addr && named.epoch > link.leader.epoch => {
                bail!("silent for {} ms while another leads", DOUBT_NS / 1_000_000)
            }
            _ => Ok(()),
        }
    }

    fn give_up(&mut self, leader: Leader, why: &anyhow::Error) {
        self.board.note_lost(why);
        self.lost = Some(leader);
        while let Some(message) = self.in_flight.pop_back() {
            self.waiting.push_front(message);
        }
    }
}

impl Link {
    /// Writes what the socket takes now.
    fn write(&mut self) -> Result<()> {
        while !self.unwritten.is_empty() {
            let (bytes, _) = self.unwritten.as_slices();
            match self.stream.write(bytes) {
                Ok(0) => bail!("the socket takes nothing"),
                Ok(count) => drop(self.unwritten.drain(..count)),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(()),
                    ErrorKind::Interrupted => {}
                    _ => return Err(error).context("writing to the leader"),
                },
            }
        }
        Ok(())
    }

    /// Returns when there is something to hear, room to write what waits for it, or `ns` are over.
    fn wait(&self, ns: u64) -> Result<()> {
        let mut wanted = PollFlags::IN;
        if !self.unwritten.is_empty() {
            wanted |= PollFlags::OUT;
        }
        let timeout = Timespec::try_from(Duration::from_nanos(ns))
            .map_err(|_| anyhow!("a sleep of {ns} ns"))?;
        match poll(&mut [PollFd::new(&self.stream, wanted)], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("waiting for the leader"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::net::{SocketAddr, TcpListener};

    fn leader(addr: SocketAddr) -> Leader {
        Leader { node: 7, addr, epoch: 1 }
    }

    fn client<'a>(board: &'a Board, addr: SocketAddr) -> Client<'a> {
        let plan = Plan { nodes: vec![addr], topic: "t".to_owned(), rate: 1, record_bytes: 10 };
        let mut client = Client::new(&plan, board).unwrap();
        client.waiting.extend([0, 1, 2]);
        client.next = 3;
        client
    }

    #[test]
    fn given_a_new_leader_when_messages_wait_then_it_gets_one_until_it_has_acknowledged() {
        let board = Board::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let mut client = client(&board, addr);
        let mut link = client.connect(leader(addr)).unwrap();
        client.hand_over(&mut link).unwrap();
        client.hand_over(&mut link).unwrap();
        assert_eq!((client.in_flight.len(), client.waiting.len()), (1, 2));
        link.is_proven = true;
        client.hand_over(&mut link).unwrap();
        assert_eq!((client.in_flight.len(), client.waiting.len()), (3, 0));
    }

    #[test]
    fn given_a_lost_leader_when_it_is_given_up_then_its_messages_come_first_again_in_order() {
        let board = Board::new().unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut client = client(&board, addr);
        client.in_flight.extend(client.waiting.drain(..2));
        client.give_up(leader(addr), &anyhow!("gone"));
        assert_eq!(client.waiting, [0, 1, 2]);
        assert!(client.in_flight.is_empty());
        assert_eq!(board.turn_over().unwrap().leaders_lost, 1);
    }

    #[test]
    fn given_a_refusal_when_it_is_heard_then_the_message_is_still_to_be_sent() {
        let board = Board::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let mut client = client(&board, addr);
        let mut link = client.connect(leader(addr)).unwrap();
        client.hand_over(&mut link).unwrap();
        link.write().unwrap();
        let (mut served, _) = listener.accept().unwrap();
        let mut request = vec![0; client.template.frame(0).len()];
        served.read_exact(&mut request).unwrap();
        assert_eq!(request, client.template.frame(0));
        // Correlation id 0; one topic `t`, partition 0, NOT_LEADER_OR_FOLLOWER, then offset, time, log start, throttle.
        let mut answer = vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1, 0, 0, 0, 0, 0, 6];
        answer.extend([0xff; 24]);
        answer.extend([0; 4]);
        let length = u32::try_from(answer.len()).unwrap().to_be_bytes();
        served.write_all(&[length.as_slice(), &answer].concat()).unwrap();
        link.wait(1_000_000_000).unwrap();
        let refused = client.hear(&mut link).unwrap_err();
        assert!(refused.to_string().contains("NotLeader"), "{refused}");
        assert_eq!(client.in_flight, [0]);
        assert!(!link.is_proven);
    }
}
