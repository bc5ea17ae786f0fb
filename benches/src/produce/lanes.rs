//! Which request goes to which partition over which connection.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use bytes::Bytes;

use crate::closed_loop::Work;
use crate::topics::Target;
use crate::wire::{PRODUCE, Template, check_produced, produce_request};

/// Connections to every leader, and the request of every partition ready to be sent.
#[derive(Debug)]
pub struct Lanes {
    addresses: Vec<SocketAddr>,
    partitions: Vec<Partition>,
    connections: usize,
}

#[derive(Debug)]
struct Partition {
    template: Template,
    /// The first of its leader's connections.
    lane_first: usize,
}

impl Lanes {
    /// `connections` to each leader of `targets`.
    pub fn new(targets: &[Target], connections: usize, acks: i16, batch: &Bytes) -> Result<Lanes> {
        ensure!(!targets.is_empty() && connections > 0, "neither partitions nor connections");
        let mut leaders: Vec<SocketAddr> = Vec::new();
        let mut partitions = Vec::new();
        for target in targets {
            let leader = match leaders.iter().position(|known| *known == target.leader) {
                Some(leader) => leader,
                None => {
                    leaders.push(target.leader);
                    leaders.len() - 1
                }
            };
            let request = produce_request(&target.topic, target.partition, acks, batch.clone());
            let template = Template::new(&request, PRODUCE)?;
            partitions.push(Partition { template, lane_first: leader * connections });
        }
        let addresses =
            leaders.iter().flat_map(|leader| std::iter::repeat_n(*leader, connections)).collect();
        Ok(Lanes { addresses, partitions, connections })
    }

    /// Where each connection goes.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Request `index` of a row: partitions take turns, and each partition's connections do.
    pub fn request(&mut self, index: u64, correlation_id: i32) -> (usize, &[u8]) {
        let (partition, connection) = place(index, self.partitions.len(), self.connections);
        let partition = &mut self.partitions[partition];
        (partition.lane_first + connection, partition.template.frame(correlation_id))
    }

    /// The same load as work for a closed loop: each connection goes round its leader's partitions.
    #[must_use]
    pub fn into_work(self) -> Vec<(SocketAddr, ProduceWork)> {
        let connections = self.connections;
        let mut work = Vec::new();
        for (lane, addr) in self.addresses.iter().enumerate() {
            let lane_first = lane - lane % connections;
            let own = self.partitions.iter().filter(|p| p.lane_first == lane_first);
            let mut templates: Vec<Template> = own.map(|p| p.template.clone()).collect();
            // Not all connections begin at the same partition.
            let turn = (lane % connections) % templates.len().max(1);
            templates.rotate_left(turn);
            work.push((*addr, ProduceWork { templates, next: 0 }));
        }
        work
    }
}

/// Partition and connection of request `index`.
fn place(index: u64, partitions: usize, connections: usize) -> (usize, usize) {
    let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let narrow = |turn: u64| usize::try_from(turn).unwrap_or(0);
    let partition = index % wide(partitions);
    let connection = (index / wide(partitions)) % wide(connections);
    (narrow(partition), narrow(connection))
}

/// Produces to one partition after the other.
#[derive(Debug)]
pub struct ProduceWork {
    templates: Vec<Template>,
    next: usize,
}

impl Work for ProduceWork {
    fn next_frame(&mut self, correlation_id: i32) -> &[u8] {
        self.next = (self.next + 1) % self.templates.len();
        self.templates[self.next].frame(correlation_id)
    }

    fn check(&mut self, answer: Bytes, correlation_id: i32) -> Result<()> {
        check_produced(answer, correlation_id).map(|_offset| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::random_batch;
    use std::collections::HashSet;

    fn target(partition: i32, leader: u16) -> Target {
        let leader = SocketAddr::from(([127, 0, 0, 1], leader));
        Target { topic: "t".to_owned(), partition, leader }
    }

    #[test]
    fn given_partitions_and_connections_when_a_row_is_placed_then_every_pair_has_its_turn() {
        let places: HashSet<_> = (0..12).map(|index| place(index, 3, 4)).collect();
        assert_eq!(places.len(), 12);
        assert_eq!(place(0, 3, 4), (0, 0));
        assert_eq!(place(1, 3, 4), (1, 0));
        assert_eq!(place(3, 3, 4), (0, 1));
        assert_eq!(place(12, 3, 4), (0, 0));
    }

    #[test]
    fn given_two_leaders_when_requests_are_placed_then_each_goes_to_its_partitions_leader() {
        let targets = [target(0, 1), target(1, 2), target(2, 1)];
        let batch = random_batch(1, 1).unwrap();
        let mut lanes = Lanes::new(&targets, 2, -1, &batch).unwrap();
        assert_eq!(lanes.addresses().len(), 4);
        for index in 0..24 {
            let (lane, _) = lanes.request(index, 0);
            let expected = targets[usize::try_from(index % 3).unwrap()].leader;
            assert_eq!(lanes.addresses()[lane], expected);
        }
        let work = lanes.into_work();
        let sizes: Vec<usize> = work.iter().map(|(_, work)| work.templates.len()).collect();
        assert_eq!(sizes, [2, 2, 1, 1]);
    }
}
