//! Tests of the whole program: the harness that starts real brokers, the clients that talk to them and the checkers
//! that judge what came back.
//!
//! The tests themselves are in `tests/tests`. What a test needs twice is here:
//!
//! - [`scratch`], [`binary`], [`process`], [`cluster`]: directories on a real disk, the program, a running broker, several.
//! - [`netns`], [`link_proxy`], [`small_disk`]: bad networks between its nodes, and a disk that is soon full.
//! - [`raw`], [`batch`], [`requests`], [`mutate`], [`poke`], [`flood`]: a Kafka connection that can also do wrong things.
//! - [`workload`], [`checker`]: a real client's load, and what must be true of it afterwards.
//! - [`clients`], [`encoder`], [`compatibility`]: the client libraries of `tests/clients`, what Kafka's own encoder says, and
//!   the page that tells of it.
//! - [`http`]: the admin port.
//! - [`seeds`]: a simulator over many seeds.
//! - [`sim`]: no broker at all: the core and the log of a shard on a simulated disk, driven from a seed.
//! - [`cluster_sim`]: the same of whole clusters, joined by a simulated network.
//!
//! Nothing here is linked into the broker.

pub mod batch;
pub mod binary;
pub mod checker;
pub mod clients;
pub mod cluster;
pub mod cluster_sim;
pub mod compatibility;
pub mod encoder;
pub mod flood;
pub mod http;
pub mod link_proxy;
pub mod mutate;
pub mod netns;
pub mod poke;
pub mod process;
pub mod raw;
pub mod replicas;
pub mod requests;
pub mod scratch;
pub mod seeds;
pub mod sim;
pub mod small_disk;
pub mod workload;
