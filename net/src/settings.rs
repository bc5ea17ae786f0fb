//! Every limit and time limit of the wire, with its default.
//!
//! Plain data; `shards::config` fills it, nothing here reads an environment.

use std::time::Duration;

use chronik_ring::socket::SocketOptions;

/// Limits of one core's listeners. Byte limits bound what a peer can make this core hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetSettings {
    /// Largest frame at all (Kafka's `socket.request.max.bytes`). Only Produce may be that large.
    pub frame_bytes_max: usize,
    /// Largest frame of any other request: nothing but records is legitimately bigger.
    pub frame_bytes_max_control: usize,
    /// Bytes of requests this core may hold: of a Produce until its answer, of any other request until
    /// it is enqueued. A frame larger than this is served when it has the whole budget for itself. Half as much again
    /// may be held of frames that stand still halfway, and of every connection what comes before a frame counts as
    /// large.
    pub admission_bytes_max: usize,
    /// Unanswered requests of one connection; beyond it the connection is not read.
    pub pipeline_requests_max: usize,
    /// Unanswered request bytes of one connection; at least one request is always taken.
    pub pipeline_bytes_max: usize,
    /// Connections of this core over all its Kafka listeners.
    pub connections_max: usize,
    /// Connections of this core over all its HTTP listeners, counted apart: health and metrics are
    /// wanted most when Kafka's connections are at their limit.
    pub http_connections_max: usize,
    /// A connection whose descriptor has this number or a higher one is refused. The kernel gives the lowest that is
    /// free, so what is above stays free for files.
    pub descriptors_max: i32,
    /// A connection without a request in flight and without traffic is closed after this.
    pub idle_timeout: Duration,
    /// From the first byte of a frame (or HTTP head) to its last.
    pub half_frame_timeout: Duration,
    /// Longest time without progress while response bytes wait for the peer to take them.
    pub write_stall_timeout: Duration,
    /// TCP keepalive: silence before the first probe.
    pub keepalive_idle: Duration,
    /// TCP keepalive: time between probes (three are sent).
    pub keepalive_interval: Duration,
    /// Unacknowledged sent data gives the connection up after this.
    pub tcp_user_timeout: Duration,
}

impl NetSettings {
    /// What of it concerns a single socket.
    pub(crate) fn socket_options(&self) -> SocketOptions {
        SocketOptions {
            keepalive_idle: self.keepalive_idle,
            keepalive_interval: self.keepalive_interval,
            user_timeout: self.tcp_user_timeout,
            descriptors_max: self.descriptors_max,
        }
    }
}

impl Default for NetSettings {
    fn default() -> Self {
        Self {
            frame_bytes_max: 100 << 20,
            frame_bytes_max_control: 8 << 20,
            admission_bytes_max: 64 << 20,
            pipeline_requests_max: 128,
            pipeline_bytes_max: 32 << 20,
            connections_max: 16_384,
            http_connections_max: 64,
            descriptors_max: i32::MAX,
            idle_timeout: Duration::from_secs(600),
            half_frame_timeout: Duration::from_secs(30),
            write_stall_timeout: Duration::from_secs(120),
            keepalive_idle: Duration::from_secs(60),
            keepalive_interval: Duration::from_secs(10),
            tcp_user_timeout: Duration::from_secs(60),
        }
    }
}
