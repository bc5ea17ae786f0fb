//! As much HTTP/1.1 as metrics, health and the admin calls need: one request per connection.
//!
//! Owns the reading of a request and the writing of its response. Never interprets a path; the
//! handler does.
//!
//! I1 At most [`HEAD_BYTES_MAX`] of head and [`BODY_BYTES_MAX`] of body are kept, in the time one
//!    frame may take.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use chronik_ring::socket::Socket;

use crate::connection::{Received, receive, send_all};
use crate::control::Control;
use crate::error::CloseReason;
use crate::handler::{HttpMethod, HttpRequest, HttpResponse, RequestHandler};
use crate::listener::Core;
use crate::output::Output;

const HEAD_BYTES_MAX: usize = 8 << 10;
const BODY_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 64;

/// As a Kafka frame's length each of these would be over a gigabyte.
pub(crate) fn is_http(opening: &[u8]) -> bool {
    matches!(opening.first_chunk::<4>(), Some(b"GET " | b"HEAD" | b"POST"))
}

struct Head {
    method: HttpMethod,
    target: String,
    head_bytes: usize,
    body_bytes: usize,
}

/// What a request that is not served is told.
struct Refusal {
    status: u16,
    what: &'static str,
}

/// Serves the one request of a connection.
pub(crate) async fn serve<H: RequestHandler>(
    core: &Rc<Core<H>>,
    socket: &Socket,
    control: &Control,
    mut received: Vec<u8>,
) -> Result<(), CloseReason> {
    control.frame_owed(core.clock.now());
    let head = loop {
        match parse_head(&received) {
            Ok(Some(head)) => break head,
            Ok(None) => receive_more(core, socket, control, &mut received).await?,
            Err(refusal) => {
                let response = HttpResponse::text(refusal.status, refusal.what);
                respond(core, socket, control, response, true).await?;
                return Err(CloseReason::MalformedHttp { what: refusal.what });
            }
        }
    };
    while received.len() < head.head_bytes + head.body_bytes {
        receive_more(core, socket, control, &mut received).await?;
    }
    control.frame_settled();
    let body = &received[head.head_bytes..head.head_bytes + head.body_bytes];
    let (path, query) = match head.target.split_once('?') {
        Some((path, query)) => (path.to_owned(), Some(query.to_owned())),
        None => (head.target, None),
    };
    let request =
        HttpRequest { method: head.method, path, query, body: Bytes::copy_from_slice(body) };
    control.in_flight.set(1);
    let response = core.handler.http(&control.context, request).await;
    control.in_flight.set(0);
    respond(core, socket, control, response, head.method != HttpMethod::Head).await
}

async fn receive_more<H: RequestHandler>(
    core: &Rc<Core<H>>,
    socket: &Socket,
    control: &Control,
    received: &mut Vec<u8>,
) -> Result<(), CloseReason> {
    let outcome = receive(core, socket, control, |bytes| {
        received.extend_from_slice(bytes);
        Ok(())
    });
    match outcome.await? {
        Received::Bytes => Ok(()),
        Received::EndOfStream => Err(CloseReason::PeerClosedInFrame { received: received.len() }),
        Received::Draining => Err(CloseReason::Shutdown),
    }
}

/// `None` while the head is incomplete.
fn parse_head(received: &[u8]) -> Result<Option<Head>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request
        .parse(received)
        .map_err(|_| Refusal { status: 400, what: "malformed request head" })?;
    let head_bytes = match parsed {
        httparse::Status::Complete(head_bytes) if head_bytes <= HEAD_BYTES_MAX => head_bytes,
        httparse::Status::Partial if received.len() < HEAD_BYTES_MAX => return Ok(None),
        _ => return Err(Refusal { status: 431, what: "request head too large" }),
    };
    let method = match request.method {
        Some("GET") => HttpMethod::Get,
        Some("HEAD") => HttpMethod::Head,
        Some("POST") => HttpMethod::Post,
        _ => return Err(Refusal { status: 405, what: "method not allowed" }),
    };
    let mut body_bytes = None;
    for header in request.headers.iter() {
        // Only browsers send it: a page that somebody looks at on this machine must not change anything here.
        if method == HttpMethod::Post && header.name.eq_ignore_ascii_case("origin") {
            return Err(Refusal { status: 403, what: "not for web pages" });
        }
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(Refusal { status: 501, what: "transfer encodings are not served" });
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let length = std::str::from_utf8(header.value)
                .ok()
                .filter(|value| value.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|value| value.parse::<usize>().ok())
                .ok_or(Refusal { status: 400, what: "malformed content length" })?;
            if body_bytes.replace(length).is_some_and(|earlier| earlier != length) {
                return Err(Refusal { status: 400, what: "two content lengths" });
            }
        }
    }
    let body_bytes = body_bytes.unwrap_or(0);
    if body_bytes > BODY_BYTES_MAX {
        return Err(Refusal { status: 413, what: "request body too large" });
    }
    let target = request.path.unwrap_or("/").to_owned();
    Ok(Some(Head { method, target, head_bytes, body_bytes }))
}

async fn respond<H: RequestHandler>(
    core: &Rc<Core<H>>,
    socket: &Socket,
    control: &Control,
    response: HttpResponse,
    with_body: bool,
) -> Result<(), CloseReason> {
    let mut output = Output::default();
    let head = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        response.status,
        reason_phrase(response.status),
        response.content_type,
        response.body.len(),
    );
    output.inline().extend_from_slice(head.as_bytes());
    if with_body {
        output.push_shared(response.body);
    }
    let output = RefCell::new(output);
    send_all(core, socket, control, &output).await
}

fn reason_phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ if status < 400 => "OK",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_head_in_pieces_when_parsed_then_it_is_incomplete_until_the_blank_line() {
        let head = b"POST /cluster/join?node=3 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n";
        for end in 5..head.len() {
            assert!(matches!(parse_head(&head[..end]), Ok(None)), "at {end}");
        }
        let Ok(Some(parsed)) = parse_head(head) else { panic!("complete") };
        assert_eq!(parsed.method, HttpMethod::Post);
        assert_eq!((parsed.head_bytes, parsed.body_bytes), (head.len(), 2));
        assert_eq!(parsed.target, "/cluster/join?node=3");
    }

    #[test]
    fn given_heads_that_are_not_served_when_parsed_then_each_gets_its_status() {
        let cases: [(&str, u16); 7] = [
            ("POST / HTTP/1.1\r\nOrigin: http://example.net\r\n\r\n", 403),
            ("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: 65537\r\n\r\n", 413),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
            ("PUT / HTTP/1.1\r\n\r\n", 405),
            ("GET \0 HTTP/1.1\r\n\r\n", 400),
        ];
        for (head, status) in cases {
            assert_eq!(
                parse_head(head.as_bytes()).err().map(|refusal| refusal.status),
                Some(status)
            );
        }
        let endless = format!("GET /{} HTTP/1.1\r\n", "x".repeat(HEAD_BYTES_MAX));
        assert_eq!(parse_head(endless.as_bytes()).err().map(|refusal| refusal.status), Some(431));
    }
}
