//! The ports of one core: Kafka on every core, the admin port on shard 0.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use chronik_engine::ids::ShardId;
use chronik_net::{ListenerKind, MovedConnection, NetError, NetSettings, NetStats, Server};

use rustix::process::{Resource, getrlimit};

use super::shard::{NodeInfo, Shard};
use crate::handlers::Handlers;

/// The listeners of one core, open until they are drained.
#[derive(Debug)]
pub struct Listeners {
    server: Rc<Server<Handlers>>,
}

impl Listeners {
    /// Opens the ports of this shard's core.
    ///
    /// # Errors
    /// [`NetError::Bind`] if a port cannot be listened on.
    pub fn open(shard: &Rc<Shard>) -> Result<Listeners, NetError> {
        let handlers = Rc::new(Handlers::new(Rc::clone(shard)));
        let server = Rc::new(Server::new(handlers, net_settings(&shard.node)));
        let config = &shard.node.config;
        listen(&server, config.kafka_addr, ListenerKind::Kafka, shard.id)?;
        if shard.id == ShardId(0) {
            listen(&server, config.admin_addr, ListenerKind::Http, shard.id)?;
        }
        let stats = Rc::clone(&server);
        shard.set_net_stats(Box::new(move || stats.stats()));
        let adopting = Rc::clone(&server);
        shard.set_adopt(Box::new(move |connection| adopting.adopt(connection)));
        Ok(Listeners { server })
    }

    /// Takes no more requests, answers those that were taken, and cuts what is left after `deadline`. Not cancel-safe.
    pub async fn drain(&self, deadline: Duration) {
        let report = self.server.shutdown(deadline).await;
        if report.aborted > 0 {
            tracing::warn!(
                connections = report.aborted,
                "cut connections that did not finish in time"
            );
        }
    }
}

/// Reads the network counters of a core.
pub type ReadNetStats = Box<dyn Fn() -> NetStats>;

/// Takes a connection that another core hands over.
pub type Adopt = Box<dyn Fn(MovedConnection)>;

fn listen(
    server: &Server<Handlers>,
    address: SocketAddr,
    kind: ListenerKind,
    shard: ShardId,
) -> Result<(), NetError> {
    let bound = server.listen(address, kind)?;
    tracing::info!(shard = shard.0, "{kind:?} on {bound}");
    Ok(())
}

/// Of the open files that the process may have, how many are left for the log and the like.
const FILES_KEPT_MIN: u64 = 64;
const FILES_KEPT_MAX: u64 = 1024;

/// The descriptor numbers that sockets may have.
fn descriptors_max() -> i32 {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let kept = (limit / 4).clamp(FILES_KEPT_MIN, FILES_KEPT_MAX);
    i32::try_from(limit.saturating_sub(kept)).unwrap_or(i32::MAX)
}

/// Limits that the settings give for the node are divided among its cores.
fn net_settings(node: &NodeInfo) -> NetSettings {
    let config = &node.config;
    let cores = u32::from(node.shards).max(1);
    let connections_max = config.kafka.connections_max.div_ceil(cores);
    NetSettings {
        frame_bytes_max: config.kafka.socket_request_max_bytes,
        admission_bytes_max: config.shard.in_flight_bytes,
        connections_max: usize::try_from(connections_max).unwrap_or(usize::MAX),
        http_connections_max: config.admin.connections_max,
        descriptors_max: descriptors_max(),
        idle_timeout: Duration::from_millis(config.kafka.connections_idle_ms),
        half_frame_timeout: Duration::from_millis(config.kafka.request_receive_timeout_ms),
        ..NetSettings::default()
    }
}
