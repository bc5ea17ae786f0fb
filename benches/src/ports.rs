//! Ports for brokers that are started here.
//!
//! - I1: they lie below the range of ephemeral ports: a client that calls a broker that is down could otherwise be given
//!   that very port, and keep the broker from it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Rows of ports tried before giving up.
const ATTEMPTS_MAX: usize = 200;
/// The lowest port given out.
const PORT_MIN: u16 = 10_000;
/// Ports of one broker.
const PORTS_EACH: u16 = 3;

/// Where one broker listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// For Kafka clients.
    pub kafka: SocketAddr,
    /// For the other brokers of a cluster.
    pub raft: SocketAddr,
    /// HTTP.
    pub admin: SocketAddr,
}

/// Ports for so many brokers that were all free a moment ago. Somebody may still take one.
pub fn free_ports(brokers: u16) -> Result<Vec<Ports>> {
    let below = ephemeral_ports_start();
    let needed = brokers.checked_mul(PORTS_EACH).context("too many brokers")?;
    let last = below.checked_sub(needed).filter(|last| *last > PORT_MIN);
    let last = last.context("too many brokers")?;
    let mut random = StdRng::from_os_rng();
    let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    for _ in 0..ATTEMPTS_MAX {
        let first = random.random_range(PORT_MIN..last);
        // All are held at once, so that none is given out twice.
        let held: Option<Vec<TcpListener>> =
            (first..first + needed).map(|port| TcpListener::bind(at(port)).ok()).collect();
        if held.is_some() {
            let of =
                |first: u16| Ports { kafka: at(first), raft: at(first + 1), admin: at(first + 2) };
            return Ok((0..brokers).map(|broker| of(first + PORTS_EACH * broker)).collect());
        }
    }
    bail!("no {needed} free ports in a row between {PORT_MIN} and {below}")
}

fn ephemeral_ports_start() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .filter(|start| *start > PORT_MIN + 1_000)
        .unwrap_or(32_768)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn given_three_brokers_when_ports_are_taken_then_nine_differ_and_none_is_ephemeral() {
        let given = free_ports(3).unwrap();
        let all: BTreeSet<u16> = given
            .iter()
            .flat_map(|one| [one.kafka.port(), one.raft.port(), one.admin.port()])
            .collect();
        assert_eq!((given.len(), all.len()), (3, 9));
        assert!(all.iter().all(|port| (PORT_MIN..ephemeral_ports_start()).contains(port)));
    }

    #[test]
    fn given_more_brokers_than_ports_when_asked_then_it_is_an_error() {
        assert!(free_ports(u16::MAX).is_err());
        assert!(free_ports(20_000).is_err());
    }
}
