//! A world of nodes on their way into a cluster: one queue of events, one seed, and an oracle that looks at every
//! state that becomes durable.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use chronik_engine::ids::{NodeId, ReplicaId};

use crate::formation::decree::{Ballot, Formation, Participant};
use crate::formation::durable::{Durable, Membership};
use crate::formation::forming::{Draw, Forming, Timing};
use crate::formation::ids::NodeUuid;
use crate::formation::list::{ListedNode, NodeList};
use crate::formation::peer::PeerProblem;
use crate::formation::protocol::{Envelope, Reply, Request};

const TICK_MS: u64 = 20;
const EXCHANGE_MS: u64 = 1_000;

/// What is wrong with the nodes of a world, on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    None,
    /// A promise does not survive a crash.
    PromiseLost,
    /// Neither does what was accepted.
    VotesLost,
    /// Nodes do not remember the disks that they voted with.
    DisksForgotten,
}

/// What must not be.
#[derive(Debug)]
#[expect(dead_code, reason = "read by whoever reads the failure")]
pub enum Violation {
    TwoFormations { first: Box<Formation>, second: Box<Formation> },
    ReplicaTwice { replica: ReplicaId },
    NotFormed { nodes: Vec<u32> },
    Impossible { node: NodeId, why: String },
}

/// What happened, to see that enough did.
#[derive(Debug, Default)]
pub struct Counts {
    pub crashes: u64,
    pub wipes_of_voters: u64,
    pub lost: u64,
    pub rounds_outbid: u64,
    pub joined: u64,
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// How bad the network is.
#[derive(Clone, Copy)]
struct Weather {
    loss_percent: u64,
    double_percent: u64,
    delay_max_ms: u64,
}

const CALM: Weather = Weather { loss_percent: 0, double_percent: 0, delay_max_ms: 3 };

enum What {
    Tick { node: NodeId },
    Request { body: Envelope<Request> },
    Reply { body: Envelope<Reply>, life: u64 },
    Silence { from: NodeId, to: NodeId, exchange: u64, life: u64 },
    Crash { node: NodeId, life: u64 },
    Trouble,
}

struct Node {
    id: NodeId,
    disk: Durable,
    live: Option<Forming>,
    /// One more with every start.
    life: u64,
    was_wiped: bool,
    /// The disks of others that it took part with in a ballot.
    voted_with: BTreeSet<Participant>,
}

impl Node {
    fn disk(&self) -> Participant {
        Participant { node: self.id, node_uuid: self.disk.node_uuid }
    }
}

pub struct World {
    random: Random,
    bug: Bug,
    now_ms: u64,
    weather: Weather,
    /// The longest pause between two troubles.
    trouble_max_ms: u64,
    /// How often a node crashes just after something became durable.
    crash_percent: u64,
    list: NodeList,
    nodes: BTreeMap<NodeId, Node>,
    cut: BTreeSet<(NodeId, NodeId)>,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, What>,
    next_event: u64,
    /// Disks that are gone, and had voted.
    lost_disks: Vec<Participant>,
    accepted: BTreeMap<Ballot, BTreeSet<NodeId>>,
    chosen: Option<Formation>,
    replicas: BTreeMap<ReplicaId, Participant>,
    pub counts: Counts,
}

impl World {
    pub fn new(seed: u64, count: u32, bug: Bug) -> World {
        let mut random = Random(seed);
        let listed = |id| ListedNode { id: NodeId(id), raft_addr: format!("node{id}:1") };
        let list = NodeList::new((1..=count).map(listed).collect(), NodeId(1)).unwrap();
        let node = |id: u32| Node {
            id: NodeId(id),
            disk: Durable::empty(NodeId(id), NodeUuid(u128::from(random.next()))),
            live: None,
            life: 0,
            was_wiped: false,
            voted_with: BTreeSet::new(),
        };
        let nodes = (1..=count).map(node).map(|node| (node.id, node)).collect();
        World {
            random,
            bug,
            now_ms: 0,
            weather: CALM,
            trouble_max_ms: 1,
            crash_percent: 0,
            list,
            nodes,
            cut: BTreeSet::new(),
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            next_event: 0,
            lost_disks: Vec::new(),
            accepted: BTreeMap::new(),
            chosen: None,
            replicas: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    pub fn members(&self) -> usize {
        self.chosen.as_ref().map_or(0, |formation| formation.members.len())
    }

    pub fn formed_nodes(&self) -> Vec<u32> {
        let formed = self.nodes.values().filter(|node| node.disk.formed.is_some());
        formed.map(|node| node.id.0).collect()
    }

    pub fn start(&mut self, id: u32) {
        let (id, now_ms) = (NodeId(id), self.now_ms);
        let mut draws = Random(self.random.next());
        let draw: Draw = Box::new(move || draws.next());
        let list = self.list.clone();
        let timing = Timing {
            grace_ms: 20 + self.random.below(400),
            take_over_ms: 10 + self.random.below(300),
            ..Timing::new(500)
        };
        let node = self.nodes.get_mut(&id).unwrap();
        node.live = Some(Forming::new(list, node.disk.clone(), timing, draw, now_ms));
        node.life += 1;
        self.schedule(0, What::Tick { node: id });
    }

    pub fn start_all(&mut self) {
        for id in 1..=u32::try_from(self.nodes.len()).unwrap() {
            if self.nodes[&NodeId(id)].live.is_none() {
                self.start(id);
            }
        }
    }

    pub fn cut(&mut self, here: &[u32], there: &[u32]) {
        for &one in here {
            for &other in there {
                self.cut_one_way(one, other);
                self.cut_one_way(other, one);
            }
        }
    }

    pub fn cut_one_way(&mut self, from: u32, to: u32) {
        self.cut.insert((NodeId(from), NodeId(to)));
    }

    /// Everything goes wrong for a while. Not all nodes start.
    pub fn run_chaos(&mut self, ms: u64) -> Result<(), Violation> {
        self.weather = Weather {
            loss_percent: self.random.below(50),
            double_percent: self.random.below(30),
            delay_max_ms: 1 + self.random.below(300),
        };
        self.trouble_max_ms = 10 + self.random.below(400);
        self.crash_percent = self.random.below(50);
        for id in 1..=u32::try_from(self.nodes.len()).unwrap() {
            if self.random.percent(70) {
                self.start(id);
            }
        }
        self.schedule(0, What::Trouble);
        let end_ms = self.now_ms + ms;
        while self.step(end_ms)? {}
        Ok(())
    }

    /// All is well: everybody must come to know the one formation.
    pub fn run_calm(&mut self, ms: u64) -> Result<(), Violation> {
        self.weather = CALM;
        self.crash_percent = 0;
        self.cut.clear();
        self.events.retain(|_, what| !matches!(what, What::Trouble));
        self.start_all();
        let all: Vec<u32> = self.nodes.keys().map(|id| id.0).collect();
        self.run_until_formed(ms, &all)
    }

    pub fn run_until_formed(&mut self, ms: u64, ids: &[u32]) -> Result<(), Violation> {
        let end_ms = self.now_ms + ms;
        loop {
            let formed = self.formed_nodes();
            if ids.iter().all(|id| formed.contains(id)) {
                return Ok(());
            }
            if !self.step(end_ms)? {
                return Err(Violation::NotFormed { nodes: formed });
            }
        }
    }

    fn schedule(&mut self, delay_ms: u64, what: What) {
        self.next_event += 1;
        self.queue.push(Reverse((self.now_ms + delay_ms, self.next_event)));
        self.events.insert(self.next_event, what);
    }

    /// One event; false if there is none before the end.
    fn step(&mut self, end_ms: u64) -> Result<bool, Violation> {
        let Some(&Reverse((at_ms, number))) = self.queue.peek() else { return Ok(false) };
        if at_ms > end_ms {
            self.now_ms = end_ms;
            return Ok(false);
        }
        self.queue.pop();
        self.now_ms = at_ms;
        let Some(what) = self.events.remove(&number) else { return Ok(true) };
        match what {
            What::Tick { node } => self.on_tick(node)?,
            What::Request { body } => self.on_request(body)?,
            What::Reply { body, life } => {
                let (to, from) = (body.to, body.from);
                let now_ms = self.now_ms;
                let is_outbid = matches!(body.message, Reply::Outbid { .. });
                self.with(to, Some(life), |forming| forming.on_reply(from, body, now_ms))?;
                self.counts.rounds_outbid += u64::from(is_outbid);
            }
            What::Silence { from, to, exchange, life } => {
                let now_ms = self.now_ms;
                self.with(from, Some(life), |forming| {
                    forming.on_silence(to, exchange, PeerProblem::NoAnswer, now_ms);
                })?;
            }
            What::Crash { node, life } => {
                if self.nodes[&node].life == life && self.crash_percent > 0 {
                    self.crash(node);
                }
            }
            What::Trouble => self.make_trouble()?,
        }
        Ok(true)
    }

    fn on_tick(&mut self, id: NodeId) -> Result<(), Violation> {
        let now_ms = self.now_ms;
        if self.nodes[&id].live.is_none() {
            return Ok(());
        }
        self.with(id, None, |forming| forming.tick(now_ms))?;
        self.schedule(TICK_MS, What::Tick { node: id });
        Ok(())
    }

    fn on_request(&mut self, body: Envelope<Request>) -> Result<(), Violation> {
        let (from, to, exchange) = (body.from, body.to, body.exchange);
        let life = self.nodes[&from].life;
        let now_ms = self.now_ms;
        let mut reply = None;
        self.with(to, None, |forming| reply = Some(forming.on_request(body, now_ms)))?;
        let what = match reply {
            Some(body) => What::Reply { body, life },
            // Nobody listens: that is told at once.
            None => What::Silence { from, to, exchange, life },
        };
        if !self.is_lost(to, from) {
            let delay_ms = self.random.below(self.weather.delay_max_ms) + 1;
            self.schedule(delay_ms, what);
        }
        Ok(())
    }

    /// Lets a node do something; what changed is durable before anything leaves.
    fn with(
        &mut self,
        id: NodeId,
        life: Option<u64>,
        act: impl FnOnce(&mut Forming),
    ) -> Result<(), Violation> {
        let disks: Vec<Participant> = self.nodes.values().map(Node::disk).collect();
        let node = self.nodes.get_mut(&id).unwrap();
        if life.is_some_and(|life| life != node.life) {
            return Ok(());
        }
        let Some(forming) = &mut node.live else { return Ok(()) };
        act(forming);
        let acceptor = &forming.durable().acceptor;
        node.voted_with.extend(disks.into_iter().filter(|disk| acceptor.knows(*disk)));
        if self.bug == Bug::DisksForgotten {
            forming.durable_mut().acceptor.forget_disks();
        }
        if let Some(impossible) = forming.impossible() {
            return Err(Violation::Impossible { node: id, why: impossible.to_string() });
        }
        self.save(id)?;
        self.send_requests(id)
    }

    fn send_requests(&mut self, id: NodeId) -> Result<(), Violation> {
        let peers: Vec<NodeId> = self.nodes.keys().copied().filter(|peer| *peer != id).collect();
        for to in peers {
            let now_ms = self.now_ms;
            let node = self.nodes.get_mut(&id).unwrap();
            let life = node.life;
            let Some(forming) = &mut node.live else { return Ok(()) };
            let Some(body) = forming.next_request(to, now_ms) else { continue };
            self.save(id)?;
            let exchange = body.exchange;
            self.schedule(EXCHANGE_MS, What::Silence { from: id, to, exchange, life });
            let copies = 1 + u64::from(self.random.percent(self.weather.double_percent));
            for _ in 0..copies {
                if !self.is_lost(id, to) {
                    let delay_ms = self.random.below(self.weather.delay_max_ms) + 1;
                    self.schedule(delay_ms, What::Request { body: body.clone() });
                }
            }
        }
        Ok(())
    }

    fn is_lost(&mut self, from: NodeId, to: NodeId) -> bool {
        let is_lost =
            self.cut.contains(&(from, to)) || self.random.percent(self.weather.loss_percent);
        self.counts.lost += u64::from(is_lost);
        is_lost
    }

    /// Makes a node's state durable, and looks at it.
    fn save(&mut self, id: NodeId) -> Result<(), Violation> {
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(forming) = &mut node.live else { return Ok(()) };
        if !forming.is_unsaved() {
            return Ok(());
        }
        forming.on_saved();
        let life = node.life;
        let was_formed = node.disk.formed.is_some();
        node.disk = forming.durable().clone();
        let (disk, node_disk) = (node.disk.clone(), node.disk());
        if self.random.percent(self.crash_percent) {
            let delay_ms = self.random.below(20);
            self.schedule(delay_ms, What::Crash { node: id, life });
        }
        if let Some((ballot, formation)) = disk.acceptor.accepted() {
            let voters = self.accepted.entry(*ballot).or_default();
            voters.insert(id);
            if voters.len() >= self.list.majority() {
                self.check_chosen(formation)?;
            }
        }
        let Some(formed) = &disk.formed else { return Ok(()) };
        self.check_chosen(&formed.formation)?;
        if was_formed {
            return Ok(());
        }
        let own = node_disk;
        let replica = match formed.own {
            Membership::Member { replica } => replica,
            Membership::Joins { replica } => {
                self.counts.joined += 1;
                replica
            }
        };
        if self.replicas.insert(replica, own).is_some_and(|other| other != own) {
            return Err(Violation::ReplicaTwice { replica });
        }
        Ok(())
    }

    fn check_chosen(&mut self, formation: &Formation) -> Result<(), Violation> {
        match &self.chosen {
            Some(first) if first != formation => Err(Violation::TwoFormations {
                first: Box::new(first.clone()),
                second: Box::new(formation.clone()),
            }),
            Some(_) => Ok(()),
            None => {
                self.chosen = Some(formation.clone());
                Ok(())
            }
        }
    }

    fn make_trouble(&mut self) -> Result<(), Violation> {
        let count = self.nodes.len() as u64;
        let pick = |random: &mut Random| NodeId(u32::try_from(random.below(count)).unwrap() + 1);
        let (one, other) = (pick(&mut self.random), pick(&mut self.random));
        match self.random.below(12) {
            0..=3 => self.crash(one),
            4..=6 => {
                if self.nodes[&one].live.is_none() {
                    self.start(one.0);
                }
            }
            7 => self.wipe(one),
            8 => {
                self.cut.insert((one, other));
            }
            9 => {
                let (here, there): (Vec<u32>, Vec<u32>) =
                    self.nodes.keys().map(|id| id.0).partition(|id| id % 2 == one.0 % 2);
                self.cut(&here, &there);
            }
            _ => self.cut.clear(),
        }
        let delay_ms = self.random.below(self.trouble_max_ms);
        self.schedule(delay_ms, What::Trouble);
        Ok(())
    }

    fn crash(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        if node.live.take().is_none() {
            return;
        }
        self.counts.crashes += 1;
        match self.bug {
            Bug::PromiseLost => node.disk.acceptor.forget_promise(),
            Bug::VotesLost => node.disk.acceptor = Default::default(),
            Bug::None | Bug::DisksForgotten => {}
        }
        // Most come back soon.
        if self.random.percent(60) {
            self.start(id.0);
        }
    }

    /// Empties a disk, if what formation promises about wiped disks still holds after it: of those that know a lost
    /// disk, or the formation, there is one in every majority; and those that were never wiped are a majority.
    fn wipe(&mut self, id: NodeId) {
        let (count, majority) = (self.nodes.len(), self.list.majority());
        let wiped = self.nodes.values().filter(|node| node.was_wiped && node.id != id).count();
        if wiped + 1 > count - majority {
            return;
        }
        let node = &self.nodes[&id];
        let has_voted = !node.disk.acceptor.is_empty() || node.disk.formed.is_some();
        let disk = node.disk();
        let lost = self.lost_disks.iter().copied().chain(has_voted.then_some(disk));
        let others = || self.nodes.values().filter(|other| other.id != id);
        let is_known = |lost: Participant| {
            let knowing = others()
                .filter(|other| other.disk.formed.is_some() || other.voted_with.contains(&lost));
            knowing.count() > count - majority
        };
        let lost: Vec<Participant> = lost.collect();
        if !lost.iter().all(|lost| is_known(*lost)) {
            return;
        }
        self.lost_disks = lost;
        self.counts.wipes_of_voters += u64::from(has_voted);
        let node_uuid = NodeUuid(u128::from(self.random.next()));
        let node = self.nodes.get_mut(&id).unwrap();
        node.live = None;
        node.was_wiped = true;
        node.voted_with.clear();
        node.disk = Durable::empty(id, node_uuid);
        if self.random.percent(70) {
            self.start(id.0);
        }
    }
}
