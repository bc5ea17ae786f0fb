//! The Kafka wire: listeners, frames, decoding behind a guard, ordered answers, HTTP sniffing.
//!
//! Knows the wire only. It calls [`RequestHandler`], which `shards` implements, and holds no broker
//! state. A connection lives on the core that accepted it; nothing here is `Send`.
//!
//! | module | owns |
//! |---|---|
//! | [`protocol`] | the table of versions, decoding of requests |
//! | `guard` | the walk over a request's bytes before they are decoded |
//! | [`response`], [`fetch_response`], [`output`] | encoding, zero-copy for records |
//! | [`handler`] | the seam to the broker |
//! | [`settings`], [`error`] | limits, and what went wrong |

pub mod error;
pub mod fetch_response;
mod guard;
pub mod handler;
pub mod output;
pub mod protocol;
pub mod response;
pub mod settings;

pub use error::{CloseReason, FrameError, NetError};
pub use fetch_response::{
    FetchNodeEndpoint, FetchPartitionParts, FetchResponseParts, FetchTopicParts, RecordChunk,
};
pub use handler::{
    ConnectionContext, Enqueued, Finished, FinishedFuture, HttpMethod, HttpRequest, HttpResponse,
    ListenerKind, RequestHandler,
};
pub use protocol::{Incoming, Request, RequestKind, SUPPORTED, decode_request};
pub use response::{ResponseBody, encode_response};
pub use settings::NetSettings;
