//! What a node says of its cluster, on its admin port.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// How long one answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Larger answers than this are cut, and then no JSON.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// How the cluster is, as far as it is asked for here.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    nodes: Vec<Node>,
    under_replicated: Vec<Partition>,
    leaderless: Vec<Partition>,
    moving: usize,
}

#[derive(Debug, Clone, Deserialize)]
struct Node {
    id: u32,
    up: bool,
}

#[derive(Debug, Clone, Deserialize)]
struct Partition {
    topic: String,
    partition: usize,
    behind: BTreeMap<u32, u64>,
}

impl Status {
    /// Asks a node.
    pub fn read(admin: SocketAddr) -> Result<Status> {
        let body = get(admin, "/cluster/status?format=json").context("asking for the status")?;
        serde_json::from_str(&body).context("reading the status")
    }

    /// Whether so many nodes are known and all of them can be heard.
    #[must_use]
    pub fn are_up(&self, nodes: usize) -> bool {
        self.nodes.len() == nodes && self.nodes.iter().all(|node| node.up)
    }

    /// What keeps a cluster of so many nodes from being in order; `None` where nothing does.
    #[must_use]
    pub fn trouble(&self, nodes: usize) -> Option<String> {
        if self.nodes.len() != nodes {
            return Some(format!("{} of {nodes} nodes are known", self.nodes.len()));
        }
        if let Some(node) = self.nodes.iter().find(|node| !node.up) {
            return Some(format!("node {} is down", node.id));
        }
        if let Some(first) = self.leaderless.first() {
            let others = self.leaderless.len() - 1;
            let Partition { topic, partition, .. } = first;
            return Some(format!("{topic}-{partition} and {others} others have no leader"));
        }
        if self.moving > 0 {
            return Some(format!("the replicas of {} partitions move", self.moving));
        }
        let first = self.under_replicated.first()?;
        let others = self.under_replicated.len() - 1;
        let late = first.behind.iter().map(|(node, entries)| format!("node {node} by {entries}"));
        let late = late.collect::<Vec<_>>().join(", ");
        let Partition { topic, partition, .. } = first;
        Some(format!("{topic}-{partition} ({late} entries) and {others} others are behind"))
    }
}

/// The body of a page.
fn get(addr: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&addr, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    body_of(&answer).map(str::to_owned)
}

fn body_of(answer: &str) -> Result<&str> {
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end of head")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "the answer is {status:?}: {}", body.trim());
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(nodes: &str, late: &str, unled: &str, moving: usize) -> Status {
        let text = format!(
            "{{\"cluster_id\":\"x\",\"controller\":1,\"nodes\":[{nodes}],\
             \"under_replicated\":[{late}],\"leaderless\":[{unled}],\"moving\":{moving}}}"
        );
        serde_json::from_str(&text).unwrap()
    }

    const UP: &str = r#"{"id":1,"kafka_addr":"h:1","up":true,"leaders":1,"replicas":2}"#;
    const DOWN: &str = r#"{"id":2,"kafka_addr":"h:2","up":false,"leaders":0,"replicas":0}"#;
    const LATE: &str = r#"{"topic":"t","partition":4,"behind":{"2":77}}"#;

    #[test]
    fn given_a_status_when_it_is_judged_then_what_is_wrong_is_named() {
        assert_eq!(status(UP, "", "", 0).trouble(1), None);
        assert!(status(UP, LATE, "", 0).are_up(1) && !status(UP, "", "", 0).are_up(2));
        assert!(!status(&format!("{UP},{DOWN}"), "", "", 0).are_up(2));
        let cases = [
            (status(UP, "", "", 0), 2, "1 of 2"),
            (status(&format!("{UP},{DOWN}"), "", "", 0), 2, "node 2 is down"),
            (status(UP, LATE, "", 0), 1, "t-4 (node 2 by 77 entries)"),
            (status(UP, "", LATE, 0), 1, "t-4 and 0 others have no leader"),
            (status(UP, "", "", 5), 1, "the replicas of 5 partitions move"),
        ];
        for (status, nodes, why) in cases {
            let trouble = status.trouble(nodes).unwrap();
            assert!(trouble.contains(why), "{trouble}");
        }
    }

    #[test]
    fn given_an_answer_when_it_is_no_page_then_that_is_an_error() {
        assert_eq!(body_of("HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody").unwrap(), "body");
        let refused = body_of("HTTP/1.1 503 No\r\n\r\nnot ready\n").unwrap_err().to_string();
        assert!(refused.contains("503") && refused.contains("not ready"), "{refused}");
        assert!(body_of("SSH-2.0").is_err());
    }
}
