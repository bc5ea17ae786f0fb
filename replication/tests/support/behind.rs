//! A follower behind the cut of its leader's log.

use chronik_engine::ids::RaftIndex;
use chronik_replication::{Message, MessageType};

use super::Cluster;

/// Three voters led by 1; 3 has stopped long ago, and the log of the others begins after its end.
pub fn behind() -> Cluster {
    let mut cluster = Cluster::new(3);
    cluster.elect(1);
    cluster.propose(1, 2).unwrap();
    cluster.settle_all();
    cluster.replica(3).crash(0);
    cut_after_ten(&mut cluster, &[1, 2]);
    cluster.replica(3).start();
    cluster
}

pub fn cut_after_ten(cluster: &mut Cluster, ids: &[u64]) {
    for _ in 0..10 {
        cluster.propose(1, 3).unwrap();
        for _ in 0..3 {
            ids.iter().for_each(|id| cluster.settle(*id));
            for message in std::mem::take(&mut cluster.network) {
                if ids.contains(&message.to) {
                    cluster.deliver(message);
                }
            }
        }
    }
    for id in ids {
        cluster.settle(*id);
        cluster.replica(*id).checkpoint();
        cluster.compact_all(*id);
    }
    cluster.network.clear();
    let reached = cluster.group(1).log_start().index;
    assert!(reached >= RaftIndex(11), "{reached}");
}

pub fn is_snapshot(message: &Message) -> bool {
    message.get_msg_type() == MessageType::MsgSnapshot
}

/// Moves everything until the snapshot for 3 is on the network, and takes it out.
pub fn until_snapshot(cluster: &mut Cluster) -> Message {
    for _ in 0..20 {
        cluster.tick_all(10);
        for id in 1..=3 {
            cluster.settle(id);
        }
        if let Some(at) = cluster.network.iter().position(is_snapshot) {
            return cluster.network.swap_remove(at);
        }
        for message in std::mem::take(&mut cluster.network) {
            cluster.deliver(message);
        }
    }
    panic!("no snapshot was sent");
}

/// The entries that follow a snapshot of all that there is, before it is answered.
pub fn append_after(cluster: &mut Cluster) -> Message {
    cluster.propose(1, 1).unwrap();
    cluster.drain(1);
    let to_2 = |m: &&Message| m.to == 2 && !m.get_entries().is_empty();
    let append = cluster.network.iter().find(to_2).cloned().unwrap();
    Message { to: 3, ..append }
}
