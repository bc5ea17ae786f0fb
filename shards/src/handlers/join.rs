//! What the admin port says to whoever wants to add a node: whether its id and its addresses are free, and how it is
//! started. Nothing is changed by that: a node enters the cluster by asking for it itself.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;

use chronik_engine::ids::NodeId;
use chronik_net::HttpResponse;
use serde::Deserialize;
use serde_json::json;

use crate::catalog::{Broker, Catalog};
use crate::shell::shard::Shard;

/// What is known of the new node.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Newcomer {
    node_id: Option<u32>,
    kafka_addr: Option<String>,
    raft_addr: Option<String>,
}

/// Answers with what the new node is to be started with, or with why it cannot be.
pub(super) fn judge(shard: &Rc<Shard>, body: &[u8]) -> HttpResponse {
    let newcomer: Newcomer = match body.is_empty() {
        true => Newcomer::default(),
        false => match serde_json::from_slice(body) {
            Ok(newcomer) => newcomer,
            Err(error) => {
                let usage = "write {\"node_id\": ID, \"kafka_addr\": \"HOST:PORT\", \"raft_addr\": \
                             \"HOST:PORT\"}, or leave out what is not known";
                return HttpResponse::text(400, format!("{error}; {usage}\n"));
            }
        },
    };
    let Some(links) = shard.links() else {
        let why = "this is a single node, which nobody can join; start it with --bootstrap first\n";
        return HttpResponse::text(409, why);
    };
    let catalog = shard.catalog();
    let own = shard.node.config.node_id;
    let Some(here) = catalog.broker(own) else {
        return HttpResponse::text(503, "this node is not in its cluster yet\n");
    };
    match conflict(&catalog, &newcomer, |node| node == own || links.is_up(node)) {
        Some(why) => HttpResponse::text(409, why),
        None => {
            let node_id = newcomer.node_id.unwrap_or_else(|| free_id(&catalog));
            let command = command_line(node_id, &newcomer, &here.raft_addr);
            let has_secret = shard.node.config.cluster.secret.is_some();
            let needs = needs(&newcomer, &here.raft_addr, has_secret);
            let json = json!({
                "join": here.raft_addr, "node_id": node_id, "command": command, "needs": needs,
            });
            HttpResponse {
                status: 200,
                content_type: "application/json",
                body: format!("{json}\n").into(),
            }
        }
    }
}

/// What of the new node is in use by one that is heard.
fn conflict(
    catalog: &Catalog,
    newcomer: &Newcomer,
    is_up: impl Fn(NodeId) -> bool,
) -> Option<String> {
    let is = |given: &Option<String>, found: String| given.as_ref() == Some(&found);
    let uses = |broker: &Broker| {
        if newcomer.node_id == Some(broker.node.0) {
            return Some("id");
        }
        let kafka_addr = format!("{}:{}", broker.host, broker.port);
        if is(&newcomer.kafka_addr, kafka_addr) {
            return Some("kafka_addr");
        }
        is(&newcomer.raft_addr, broker.raft_addr.clone()).then_some("raft_addr")
    };
    let heard = catalog.brokers().filter(|broker| is_up(broker.node));
    let mut found = heard.filter_map(|broker| Some((broker.node, uses(broker)?)));
    let (node, what) = found.next()?;
    Some(format!("node {node} is running with this {what}; give the new node another one\n"))
}

fn free_id(catalog: &Catalog) -> u32 {
    let highest = catalog.brokers().map(|broker| broker.node.0).max();
    highest.map_or(1, |id| id.saturating_add(1))
}

/// The command that starts the node. Where to listen cannot be a name: there it is every address of its machine.
fn command_line(node_id: u32, newcomer: &Newcomer, join: &str) -> String {
    let mut command = format!("chronik-server --node-id {node_id} --data-dir node-{node_id}");
    // Writing to a String cannot fail.
    if let Some(address) = &newcomer.kafka_addr {
        _ = write!(command, " --kafka-addr {}", listens_at(address));
        if address.parse::<SocketAddr>().is_err() {
            _ = write!(command, " --advertised-addr {address}");
        }
    }
    if let Some(address) = &newcomer.raft_addr {
        _ = write!(command, " --raft-addr {}", listens_at(address));
    }
    _ = write!(command, " --join {join}");
    command
}

fn listens_at(address: &str) -> String {
    match (address.parse::<SocketAddr>(), address.rsplit_once(':')) {
        (Err(_), Some((_, port))) => format!("0.0.0.0:{port}"),
        _ => address.to_owned(),
    }
}

fn is_loopback(address: &str) -> bool {
    address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback())
}

/// What a command line does not give the node, and without which it cannot join; sentences for people.
fn needs(newcomer: &Newcomer, join: &str, has_secret: bool) -> Vec<String> {
    let is_elsewhere = newcomer.raft_addr.as_deref().is_some_and(|address| !is_loopback(address));
    let mut needs = Vec::new();
    if has_secret {
        needs.push(
            "it needs this cluster's cluster.secret: in its settings file (--config), or as CHRONIK_CLUSTER_SECRET"
                .to_owned(),
        );
    } else if is_elsewhere {
        needs.push(
            "this cluster has no cluster.secret, and without one no Raft address may be other than loopback: give all \
             nodes the same one first, and the new one, too"
                .to_owned(),
        );
    }
    if is_elsewhere && is_loopback(join) {
        needs.push(format!(
            "{join} is reached on its own machine only: from another one the new node cannot join before the nodes of this \
             cluster have a raft_addr that it reaches"
        ));
    }
    if newcomer.raft_addr.is_none() || newcomer.kafka_addr.is_none() {
        needs.push(
            "what is not said stays at its default, which other machines do not reach: kafka_addr, and raft_addr beside \
             it"
                .to_owned(),
        );
    }
    needs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::samples::{broker, catalog_of};

    fn catalog() -> Catalog {
        catalog_of((1..=2).map(|node| broker(node, node.into())))
    }

    #[test]
    fn given_a_new_node_when_asked_about_then_what_is_in_use_is_named_and_else_how_to_start_it() {
        let catalog = catalog();
        let asked = |text: &str| serde_json::from_str::<Newcomer>(text).unwrap();
        let said = |text: &str| conflict(&catalog, &asked(text), |node| node == NodeId(1));
        assert!(said(r#"{"node_id":1}"#).unwrap().contains("node 1 is running with this id"));
        assert!(said(r#"{"kafka_addr":"host1:9092"}"#).unwrap().contains("kafka_addr"));
        assert!(said(r#"{"raft_addr":"host1:9192"}"#).unwrap().contains("raft_addr"));
        assert_eq!(said(r#"{"node_id":2,"raft_addr":"host2:9192"}"#), None, "node 2 is down");
        assert_eq!(said("{}"), None);
        assert_eq!(free_id(&catalog), 3);
    }

    #[test]
    fn given_addresses_of_a_new_node_when_asked_how_to_start_it_then_it_listens_there_and_needs_are_told()
     {
        let newcomer = |kafka_addr: &str, raft_addr: &str| Newcomer {
            node_id: None,
            kafka_addr: Some(kafka_addr.to_owned()),
            raft_addr: Some(raft_addr.to_owned()),
        };
        let elsewhere = newcomer("10.0.0.3:9092", "10.0.0.3:9192");
        assert_eq!(
            command_line(3, &elsewhere, "10.0.0.1:9192"),
            "chronik-server --node-id 3 --data-dir node-3 --kafka-addr 10.0.0.3:9092 --raft-addr 10.0.0.3:9192 --join \
             10.0.0.1:9192"
        );
        let by_name = newcomer("h:9093", "h:9193");
        assert_eq!(
            command_line(3, &by_name, "host1:9192"),
            "chronik-server --node-id 3 --data-dir node-3 --kafka-addr 0.0.0.0:9093 --advertised-addr h:9093 --raft-addr \
             0.0.0.0:9193 --join host1:9192"
        );
        let here = newcomer("127.0.0.1:9093", "127.0.0.1:9193");
        assert_eq!(needs(&here, "127.0.0.1:9192", false), Vec::<String>::new());
        assert!(needs(&here, "127.0.0.1:9192", true)[0].contains("CHRONIK_CLUSTER_SECRET"));
        let missing = needs(&elsewhere, "127.0.0.1:9192", false);
        let (secret, address) = (&missing[0], &missing[1]);
        assert!(secret.contains("has no cluster.secret"), "{secret}");
        assert!(address.contains("on its own machine only"), "{address}");
        assert_eq!(needs(&by_name, "10.0.0.1:9192", true).len(), 1);
        assert_eq!(needs(&Newcomer::default(), "10.0.0.1:9192", true).len(), 2);
    }
}
