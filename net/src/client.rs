//! A small blocking client for tests and tools.
//!
//! Owns [`Client`]: one `std` socket, requests encoded and responses decoded with kafka-protocol.
//! Never used by the broker itself.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use thiserror::Error;

/// Responses larger than this are refused.
const RESPONSE_BYTES_MAX: usize = 256 << 20;

#[derive(Debug, Error)]
pub enum ClientError {
    #[error("socket: {source}")]
    Socket {
        #[from]
        source: io::Error,
    },
    #[error("api key {api_key} version {version} does not encode: {cause}")]
    Encode { api_key: i16, version: i16, cause: anyhow::Error },
    #[error("the response of api key {api_key} version {version} does not decode: {cause}")]
    Decode { api_key: i16, version: i16, cause: anyhow::Error },
    #[error("correlation id {received} where {expected} was expected")]
    CorrelationId { expected: i32, received: i32 },
    #[error("a response of {length} bytes")]
    ResponseLength { length: i32 },
    #[error("{left} bytes follow the response of api key {api_key} version {version}")]
    TrailingBytes { api_key: i16, version: i16, left: usize },
}

/// A connection that sends requests one after the other.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    client_id: StrBytes,
    next_correlation_id: i32,
}

impl Client {
    pub fn connect(address: SocketAddr, timeout: Duration) -> Result<Self, ClientError> {
        Self::connect_with(address, timeout, timeout)
    }

    /// With one time for connecting, and another for each read and write.
    pub fn connect_with(
        address: SocketAddr,
        connect: Duration,
        answer: Duration,
    ) -> Result<Self, ClientError> {
        let stream = TcpStream::connect_timeout(&address, connect)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(answer))?;
        stream.set_write_timeout(Some(answer))?;
        let client_id = StrBytes::from_static_str("chronik-client");
        Ok(Self { stream, client_id, next_correlation_id: 1 })
    }

    /// Sends a request and waits for its response.
    pub fn call<R: Request>(
        &mut self,
        request: &R,
        version: i16,
    ) -> Result<R::Response, ClientError> {
        let correlation_id = self.send(request, version)?;
        self.receive::<R>(correlation_id, version)
    }

    /// Sends without waiting; the returned correlation id goes to [`Self::receive`].
    pub fn send<R: Request>(&mut self, request: &R, version: i16) -> Result<i32, ClientError> {
        let correlation_id = self.next_correlation_id;
        self.next_correlation_id = self.next_correlation_id.wrapping_add(1);
        let frame = encode_request(request, version, correlation_id, Some(&self.client_id))?;
        self.stream.write_all(&frame)?;
        Ok(correlation_id)
    }

    /// Receives the response of the request sent with `correlation_id`.
    pub fn receive<R: Request>(
        &mut self,
        correlation_id: i32,
        version: i16,
    ) -> Result<R::Response, ClientError> {
        let mut frame = self.receive_frame()?;
        decode_response::<R>(&mut frame, correlation_id, version)
    }

    /// One response frame as it came, without its length prefix.
    pub fn receive_frame(&mut self) -> Result<Bytes, ClientError> {
        let mut prefix = [0; 4];
        self.stream.read_exact(&mut prefix)?;
        let length = i32::from_be_bytes(prefix);
        let bytes = usize::try_from(length)
            .ok()
            .filter(|bytes| *bytes <= RESPONSE_BYTES_MAX)
            .ok_or(ClientError::ResponseLength { length })?;
        // Memory grows with what comes, not with what a length announces.
        let mut frame = Vec::new();
        (&mut self.stream).take(u64::try_from(bytes).unwrap_or(0)).read_to_end(&mut frame)?;
        if frame.len() < bytes {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(Bytes::from(frame))
    }

    /// The socket, for what is not a request.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }
}

/// A whole request frame, length prefix included.
pub fn encode_request<R: Request>(
    request: &R,
    version: i16,
    correlation_id: i32,
    client_id: Option<&StrBytes>,
) -> Result<Bytes, ClientError> {
    let header = RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(correlation_id)
        .with_client_id(client_id.cloned());
    let mut frame = BytesMut::zeroed(4);
    header
        .encode(&mut frame, R::header_version(version))
        .and_then(|()| request.encode(&mut frame, version))
        .map_err(|cause| ClientError::Encode { api_key: R::KEY, version, cause })?;
    let length = i32::try_from(frame.len() - 4)
        .map_err(|_| ClientError::ResponseLength { length: i32::MAX })?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    Ok(frame.freeze())
}

/// Decodes a response frame (without its length prefix) to its end.
pub fn decode_response<R: Request>(
    frame: &mut Bytes,
    correlation_id: i32,
    version: i16,
) -> Result<R::Response, ClientError> {
    let api_key = R::KEY;
    let decode_error = |cause| ClientError::Decode { api_key, version, cause };
    let header_version = match ApiKey::try_from(api_key) {
        Ok(ApiKey::ApiVersions) => 0,
        _ => <R::Response as HeaderVersion>::header_version(version),
    };
    let header = ResponseHeader::decode(frame, header_version).map_err(decode_error)?;
    if header.correlation_id != correlation_id {
        let received = header.correlation_id;
        return Err(ClientError::CorrelationId { expected: correlation_id, received });
    }
    let body = R::Response::decode(frame, version).map_err(decode_error)?;
    match frame.remaining() {
        0 => Ok(body),
        left => Err(ClientError::TrailingBytes { api_key, version, left }),
    }
}
