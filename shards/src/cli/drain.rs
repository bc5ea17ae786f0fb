//! `chronik-server cluster drain|undrain`: a node hands over what it leads, or leads again.
//!
//! Who hands over is the node itself, for as long as it is drained. So nothing is lost where this does not wait to the end.

use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::cluster::{Cluster, usage};
use super::failure::Failure;
use super::grammar::NodeArgs;
use super::table::Report;

/// How often it is looked whether a node leads nothing any more, and how far apart.
const POLLS: u32 = 240;
const POLL: Duration = Duration::from_millis(500);
/// Partitions that are named one by one.
const NAMED_MAX: usize = 20;

/// A partition that a drained node goes on leading, as nobody else can.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct HeldSeen {
    topic: String,
    partition: usize,
    node: u32,
    /// The nodes that could take over if they were up.
    down: Vec<u32>,
}

impl Cluster {
    pub(super) fn drain(&self, args: &NodeArgs) -> Result<Report, Failure> {
        let id = args.node;
        self.status()?.node(id)?;
        self.set_cordon(id, "drain")?;
        let (mut said, mut held_before) = (usize::MAX, Vec::new());
        for _ in 0..POLLS {
            let status = self.status()?;
            let node = status.node(id)?;
            if !node.up {
                return Ok(unheard(id));
            }
            if node.leaders == 0 {
                return Ok(drained(id, node.read_only));
            }
            if node.leaders != said {
                eprintln!("node {id} leads {} partitions", node.leaders);
                said = node.leaders;
            }
            let held = status.held_by_drained.iter().filter(|held| held.node == id);
            let held: Vec<HeldSeen> = held.cloned().collect();
            // Twice: a node may not be heard for a moment.
            if held.len() == node.leaders && held == held_before {
                return Ok(stuck(id, &held));
            }
            held_before = held;
            std::thread::sleep(POLL);
        }
        let held = match held_before.is_empty() {
            true => String::new(),
            false => format!(". These nobody can take over:\n{}", list(id, &held_before)),
        };
        Err(usage(format!(
            "node {id} still leads {said} partitions: no other replica of them is in sync on a node that is not \
             drained; it gets no new ones, and hands them over when one is{held}"
        )))
    }

    pub(super) fn undrain(&self, args: &NodeArgs) -> Result<Report, Failure> {
        let id = args.node;
        let is_read_only = self.status()?.node(id)?.read_only;
        self.set_cordon(id, "undrain")?;
        let text = match is_read_only {
            true => format!("consumers are sent to node {id} again\n"),
            false => format!("node {id} gets new replicas again, and soon what it is to lead\n"),
        };
        Ok(Report::new(text, json!({ "node": id, "cordoned": false })))
    }
}

fn drained(id: u32, is_read_only: bool) -> Report {
    let what = match is_read_only {
        true => "no more consumers are sent to it",
        false => "it leads nothing and gets no new replicas",
    };
    let text = format!(
        "node {id} is drained: {what}; `chronik-server cluster undrain {id}` undoes that\n"
    );
    Report::new(text, json!({ "node": id, "cordoned": true, "leaders": 0 }))
}

/// What a node leads that cannot be heard, nobody knows but itself.
fn unheard(id: u32) -> Report {
    let text = format!(
        "node {id} cannot be heard: it gets no new replicas, and hands over what it leads once it is back; \
         `chronik-server cluster undrain {id}` undoes that\n"
    );
    Report::new(text, json!({ "node": id, "cordoned": true, "up": false }))
}

/// Nothing more happens by itself.
fn stuck(id: u32, held: &[HeldSeen]) -> Report {
    let count = held.len();
    let text = format!(
        "node {id} is drained, and goes on leading {count} partitions, which nobody can take over:\n{}",
        list(id, held)
    );
    let json = json!({ "node": id, "cordoned": true, "leaders": count, "held": held });
    Report { text, json, refused: (count, count) }
}

/// Why nobody takes over each of these, and what there is to do.
fn list(id: u32, held: &[HeldSeen]) -> String {
    let mut text = String::new();
    for HeldSeen { topic, partition, down, .. } in held.iter().take(NAMED_MAX) {
        // Writing to a String cannot fail.
        _ = match &down[..] {
            [] => writeln!(text, "  {topic}-{partition}: no replica on a node that is not drained"),
            down => writeln!(text, "  {topic}-{partition}: down is {}", named(down)),
        };
    }
    if held.len() > NAMED_MAX {
        _ = writeln!(text, "  and {} more", held.len() - NAMED_MAX);
    }
    if held.iter().any(|held| !held.down.is_empty()) {
        text.push_str("Once one of the nodes that are down is back, it takes over what it can.\n");
    }
    if held.iter().any(|held| held.down.is_empty()) {
        _ = write!(
            text,
            "To give a partition a replica elsewhere, which takes over: `chronik-server cluster reassign --topic TOPIC \
             --partition NUMBER --to NODES`;\nof all topics: `chronik-server cluster reassign --all --replication-factor \
             COUNT`. To have node {id} itself, or another drained one that has them, lead them as before: \
             `chronik-server cluster undrain ID`.\n"
        );
    }
    text
}

fn named(nodes: &[u32]) -> String {
    let nodes: Vec<String> = nodes.iter().map(|node| format!("node {node}")).collect();
    nodes.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_node_that_is_not_heard_when_drained_then_it_is_not_called_drained() {
        let report = unheard(3);
        assert!(report.text.contains("cannot be heard") && !report.text.contains("is drained"));
        assert_eq!(report.json, json!({ "node": 3, "cordoned": true, "up": false }));
    }

    #[test]
    fn given_partitions_that_nobody_can_take_over_when_told_then_each_is_named_with_what_helps() {
        let held = |partition, down: &[u32]| HeldSeen {
            topic: "t".to_owned(),
            partition,
            node: 2,
            down: down.to_vec(),
        };
        let both = stuck(2, &[held(0, &[]), held(1, &[1, 3])]);
        for line in [
            "node 2 is drained, and goes on leading 2 partitions, which nobody can take over:",
            "  t-0: no replica on a node that is not drained",
            "  t-1: down is node 1, node 3",
        ] {
            assert!(both.text.lines().any(|found| found == line), "{line}\n{}", both.text);
        }
        assert!(both.text.contains("reassign --topic") && both.text.contains("is back"));
        assert!(both.verdict().is_err());
        assert_eq!(both.json["held"][1]["down"], json!([1, 3]));
        let down = stuck(2, &[held(1, &[3])]);
        assert!(!down.text.contains("reassign"), "a replica elsewhere is not what is missing");
        let many: Vec<HeldSeen> = (0..25).map(|number| held(number, &[])).collect();
        assert!(stuck(2, &many).text.contains("  and 5 more\n"));
    }
}
