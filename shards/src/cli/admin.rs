//! Commands that ask a running broker's admin port and print what it answers.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use thiserror::Error;

const TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than a change of the catalog may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(150);
/// Far above any table; a port that answers with something else must not fill the memory.
const RESPONSE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Why there is nothing to show.
#[derive(Debug, Error)]
pub enum AdminError {
    #[error(
        "no answer on the admin port {address}: {source}; is the broker running, and is this its admin_addr?"
    )]
    Unreachable {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("{address} does not answer as a broker's admin port does; is this its admin_addr?")]
    NotHttp { address: SocketAddr },
    #[error("{address} answered {status}: {text}")]
    Refused { address: SocketAddr, status: u16, text: String },
}

/// What to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Json,
    Hgrm { stage: String },
}

impl Format {
    pub(super) fn of(json: bool, hgrm: Option<String>) -> Format {
        match hgrm {
            Some(stage) => Format::Hgrm { stage },
            None if json => Format::Json,
            None => Format::Text,
        }
    }

    /// What to ask the admin port for.
    pub(super) fn path(&self) -> String {
        match self {
            Format::Text => "/debug/latency".to_owned(),
            Format::Json => "/debug/latency?format=json".to_owned(),
            // A stage's name is letters and underscores; anything else is unknown to the broker in any case.
            Format::Hgrm { stage } => {
                let plain = stage.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_');
                format!("/debug/latency.hgrm?stage={}", plain.collect::<String>())
            }
        }
    }
}

/// Fetches a page.
pub(super) fn fetch(address: SocketAddr, path: &str) -> Result<String, AdminError> {
    ask("GET", address, path, "", TIMEOUT)
}

/// Asks for something to be done.
pub(super) fn post(address: SocketAddr, path: &str) -> Result<String, AdminError> {
    ask("POST", address, path, "", CHANGE_TIMEOUT)
}

/// Asks for something to be done with what is said in `json`.
pub(super) fn post_json(address: SocketAddr, path: &str, json: &str) -> Result<String, AdminError> {
    ask("POST", address, path, json, CHANGE_TIMEOUT)
}

fn ask(
    method: &str,
    address: SocketAddr,
    path: &str,
    body: &str,
    timeout: Duration,
) -> Result<String, AdminError> {
    let address = reachable(address);
    let response = exchange(method, address, path, body, timeout)
        .map_err(|source| AdminError::Unreachable { address, source })?;
    let (status, body) = parse(&response).ok_or(AdminError::NotHttp { address })?;
    if status == 200 {
        Ok(body)
    } else {
        Err(AdminError::Refused { address, status, text: body.trim().to_owned() })
    }
}

/// An address to listen on every interface is reached through this machine's own.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn exchange(
    method: &str,
    address: SocketAddr,
    path: &str,
    body: &str,
    timeout: Duration,
) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let length = match body.len() {
        0 => String::new(),
        bytes => format!("Content-Length: {bytes}\r\n"),
    };
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    write!(stream, "{head}{length}\r\n{body}")?;
    let mut response = Vec::new();
    stream.take(RESPONSE_BYTES_MAX).read_to_end(&mut response)?;
    Ok(response)
}

/// The status and the body of an answer that was read to its end.
fn parse(response: &[u8]) -> Option<(u16, String)> {
    let end = response.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&response[..end]).ok()?;
    let mut words = head.lines().next()?.split_whitespace();
    if !words.next()?.starts_with("HTTP/1.") {
        return None;
    }
    let status = words.next()?.parse().ok()?;
    Some((status, String::from_utf8_lossy(&response[end + 4..]).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers one request with `answer` and returns the request's first line.
    #[expect(clippy::disallowed_methods, reason = "the test plays the broker")]
    fn broker(answer: &'static str) -> (SocketAddr, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request).unwrap().lines().next().unwrap().to_owned()
        });
        (address, asked)
    }

    #[test]
    fn given_a_running_broker_when_asked_then_its_table_is_returned() {
        let (address, asked) = broker("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ntable\n");
        assert_eq!(fetch(address, &Format::Json.path()).unwrap(), "table\n");
        assert_eq!(asked.join().unwrap(), "GET /debug/latency?format=json HTTP/1.1");
    }

    #[test]
    fn given_an_unknown_stage_when_asked_then_the_brokers_words_are_the_error() {
        let (address, asked) = broker("HTTP/1.1 400 Bad Request\r\n\r\nask for …\n");
        let format = Format::of(false, Some("que ue".to_owned()));
        let refused = fetch(address, &format.path()).unwrap_err();
        assert!(refused.to_string().ends_with("answered 400: ask for …"), "{refused}");
        assert_eq!(asked.join().unwrap(), "GET /debug/latency.hgrm?stage=queue HTTP/1.1");
    }

    #[test]
    fn given_something_else_on_the_port_when_asked_then_the_error_says_so() {
        let (address, _) = broker("SSH-2.0-OpenSSH\r\n\r\n");
        assert!(matches!(fetch(address, &Format::Text.path()), Err(AdminError::NotHttp { .. })));
    }
}
