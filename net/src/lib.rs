//! The Kafka wire: listeners, frames, decoding behind a guard, ordered answers, HTTP sniffing.
//!
//! Knows the wire only. It calls [`RequestHandler`], which `shards` implements, and holds no broker
//! state. A connection lives on the core that accepted it, or is moved once to the one that its requests belong to.
//!
//! | module | owns |
//! |---|---|
//! | [`protocol`] | the table of versions, decoding of requests |
//! | `guard` | the walk over a request's bytes before they are decoded |
//! | [`response`], [`fetch_response`], [`output`] | encoding, zero-copy for records |
//! | `frame` | cutting the stream into frames |
//! | [`handler`] | the seam to the broker |
//! | [`listener`] | [`Server`]: binding, accepting, deadlines, drain |
//! | `connection`, `control` | one connection: pipelining, its deadlines |
//! | [`admission`] | the byte budget of a core |
//! | `affinity` | which core a connection's requests belong to |
//! | `http` | HTTP on the Kafka port and the admin port |
//! | [`client`] | a blocking client for tests and tools |
//! | [`settings`], [`error`] | limits, and what went wrong |

pub mod admission;
mod affinity;
pub mod client;
mod clock;
mod connection;
mod control;
pub mod error;
pub mod fetch_response;
mod frame;
mod guard;
pub mod handler;
mod http;
pub mod listener;
mod log_limit;
pub mod output;
mod place;
pub mod protocol;
pub mod response;
pub mod settings;

pub use affinity::Affinity;
pub use error::{CloseReason, FrameError, NetError};
pub use fetch_response::{
    FetchNodeEndpoint, FetchPartitionParts, FetchResponseParts, FetchTopicParts, RecordChunk,
};
pub use handler::{
    ConnectionContext, Deferred, DeferredOne, Enqueued, Finished, FinishedFuture, HttpMethod,
    HttpRequest, HttpResponse, ListenerKind, MovedConnection, RequestHandler, WireStage,
};
pub use listener::{DrainReport, NetStats, Server};
pub use output::Output;
pub use protocol::{Incoming, Request, RequestKind, SUPPORTED, decode_request};
pub use response::{ResponseBody, encode_response};
pub use settings::NetSettings;
