//! `chronik-server cluster add|remove|rebalance|reassign`: nodes come and go, replicas are spread. (`drain` is next door.)
//!
//! - I1: nothing is kept between two calls: what is to be done is seen in the cluster, so a command that was broken off
//!   goes on when it is given again.
//! - I2: at most so many partitions move at a time as the user allows.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{BrokerId, UnregisterBrokerRequest};
use serde::Deserialize;
use serde_json::{Value, json};

use super::admin::{self, AdminError};
use super::assignment::parse_numbers;
use super::drain::HeldSeen;
use super::factor::with_factor;
use super::failure::Failure;
use super::grammar::{
    AddArgs, ClusterArgs, ClusterCommand, MovingArgs, ReassignArgs, RebalanceArgs, RemoveArgs,
};
use super::kafka::{Kafka, KafkaError, Refusal, in_versions};
use super::mover::{Moved, Mover, UnderWay};
use super::plan::{Layout, Move, evacuate, spread};
use super::table::{Report, Table, join};

/// Rounds of moves until a node is empty: topics may be made meanwhile.
const REMOVE_ROUNDS: u32 = 100;
const UNREGISTER_TRIES: u32 = 60;
const UNREGISTER_RETRY: Duration = Duration::from_millis(500);

/// What of a cluster's status counts here.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    nodes: Vec<NodeSeen>,
    pub(super) held_by_drained: Vec<HeldSeen>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct NodeSeen {
    id: u32,
    kafka_addr: String,
    pub(super) up: bool,
    cordoned: bool,
    pub(super) read_only: bool,
    pub(super) leaders: usize,
}

impl Status {
    pub(super) fn node(&self, id: u32) -> Result<&NodeSeen, Failure> {
        self.nodes.iter().find(|node| node.id == id).ok_or_else(|| {
            let ids = join(self.nodes.iter().map(|node| broker_id(node.id)));
            usage(format!("there is no node {id} in this cluster; there are {ids}"))
        })
    }
}

/// A cluster: its admin port, and its brokers.
pub(super) struct Cluster {
    admin: SocketAddr,
    bootstrap: Option<String>,
}

impl ClusterCommand {
    pub(super) fn args(&self) -> &ClusterArgs {
        match self {
            ClusterCommand::Status(args) => args,
            ClusterCommand::Add(args) => &args.cluster,
            ClusterCommand::Drain(args) | ClusterCommand::Undrain(args) => &args.cluster,
            ClusterCommand::Remove(RemoveArgs { moving, .. })
            | ClusterCommand::Rebalance(RebalanceArgs { moving, .. })
            | ClusterCommand::Reassign(ReassignArgs { moving, .. }) => &moving.cluster,
        }
    }

    /// Where the brokers are, as far as somebody has said so.
    pub(super) fn bootstrap(&self) -> Option<String> {
        match self {
            ClusterCommand::Remove(RemoveArgs { moving, .. })
            | ClusterCommand::Rebalance(RebalanceArgs { moving, .. })
            | ClusterCommand::Reassign(ReassignArgs { moving, .. }) => moving.bootstrap.clone(),
            ClusterCommand::Status(_)
            | ClusterCommand::Add(_)
            | ClusterCommand::Drain(_)
            | ClusterCommand::Undrain(_) => None,
        }
    }
}

impl Cluster {
    pub(super) fn new(admin: SocketAddr, bootstrap: Option<String>) -> Cluster {
        Cluster { admin, bootstrap }
    }

    /// Carries out a command; the status is another's.
    pub(super) fn run(&self, command: &ClusterCommand) -> Result<Report, Failure> {
        match command {
            ClusterCommand::Status(_) => Ok(Report::new(String::new(), Value::Null)),
            ClusterCommand::Add(args) => self.add(args),
            ClusterCommand::Drain(args) => self.drain(args),
            ClusterCommand::Undrain(args) => self.undrain(args),
            ClusterCommand::Remove(args) => self.remove(args),
            ClusterCommand::Rebalance(args) => self.rebalance(args),
            ClusterCommand::Reassign(args) => self.reassign(args),
        }
    }

    pub(super) fn status(&self) -> Result<Status, Failure> {
        let text = admin::fetch(self.admin, "/cluster/status?format=json")?;
        let status: Result<Status, _> = serde_json::from_str(&text);
        Ok(status.map_err(|_| AdminError::NotHttp { address: self.admin })?)
    }

    fn kafka(&self) -> Result<Kafka, Failure> {
        if let Some(bootstrap) = &self.bootstrap {
            return Ok(Kafka::new(bootstrap));
        }
        let nodes = self.status()?.nodes;
        let up = nodes.iter().filter(|node| node.up).map(|node| node.kafka_addr.as_str());
        Ok(Kafka::new(&up.collect::<Vec<_>>().join(",")))
    }

    /// Where replicas are to be, and who may get more.
    fn layout(&self, mover: &mut Mover) -> Result<Layout, Failure> {
        let nodes = self.status()?.nodes;
        let open = nodes.iter().filter(|node| node.up && !node.cordoned && !node.read_only);
        let open = open.map(|node| broker_id(node.id)).collect();
        Ok(Layout { partitions: mover.partitions()?, open, racks: mover.racks()? })
    }

    fn add(&self, args: &AddArgs) -> Result<Report, Failure> {
        let AddArgs { raft_addr, id, kafka_addr, .. } = args;
        let newcomer = json!({ "node_id": id, "kafka_addr": kafka_addr, "raft_addr": raft_addr });
        let answer = admin::post_json(self.admin, "/cluster/join", &newcomer.to_string())?;
        let answer: Value = serde_json::from_str(&answer)
            .map_err(|_| AdminError::NotHttp { address: self.admin })?;
        let command = answer["command"].as_str().unwrap_or_default();
        let needs = answer["needs"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let needs: String = needs.map(|need| format!("- {need}\n")).collect();
        let needs = if needs.is_empty() { needs } else { format!("{needs}\n") };
        let text = format!(
            "start the new node, with an empty data directory:\n\n    {command}\n\n{needs}\
             It gets partitions that are made from then on; `chronik-server cluster rebalance` moves others to it.\n"
        );
        Ok(Report::new(text, answer))
    }

    pub(super) fn set_cordon(&self, node: u32, verb: &str) -> Result<(), Failure> {
        admin::post(self.admin, &format!("/cluster/{verb}?node={node}"))?;
        Ok(())
    }

    fn remove(&self, args: &RemoveArgs) -> Result<Report, Failure> {
        let (id, moving) = (broker_id(args.node), &args.moving);
        self.status()?.node(args.node)?;
        let mut mover = Mover::new(self.kafka()?, moving.at_a_time);
        if moving.dry_run {
            let mut layout = self.layout(&mut mover)?;
            layout.open.remove(&id);
            let moves = self.evacuation(&layout, id, args.fewer_replicas)?;
            return Ok(planned(&moves));
        }
        let mut layout = self.layout(&mut mover)?;
        layout.open.remove(&id);
        // Refused before anything is begun, if it cannot be done.
        self.evacuation(&layout, id, args.fewer_replicas)?;
        self.set_cordon(args.node, "drain")?;
        eprintln!(
            "what was begun goes on if this is broken off; the same command again sees to the rest"
        );
        let mut all = Vec::new();
        for _ in 0..REMOVE_ROUNDS {
            let layout = self.layout(&mut mover)?;
            let moves = self.evacuation(&layout, id, args.fewer_replicas)?;
            if moves.is_empty() && mover.wait_until_left(id)? {
                break;
            }
            let moved = mover.carry_out(moves)?;
            if let Some(Moved { step, outcome: Err(refusal) }) =
                moved.iter().find(|moved| moved.outcome.is_err())
            {
                let what = format!("{}-{}", step.at.0, step.at.1);
                return Err(refusal.clone().of(what).into());
            }
            all.extend(moved);
        }
        let mut kafka = self.kafka()?;
        unregister(&mut kafka, id)?;
        let text = format!(
            "node {id} is out of the cluster, {} partitions went elsewhere. Its process ends by itself; where nodes \
             have a list (cluster.nodes), take it out of that. With an empty data_dir it may join again\n",
            all.len()
        );
        let json = json!({ "node": id, "removed": true, "moves": moves_json(&all) });
        Ok(Report::new(text, json))
    }

    fn evacuation(&self, layout: &Layout, node: i32, fewer: bool) -> Result<Vec<Move>, Failure> {
        evacuate(layout, node, fewer).map_err(|(topic, partition)| {
            let replicas = layout.partitions.get(&(topic.clone(), partition)).map_or(0, Vec::len);
            usage(format!(
                "{topic}-{partition} has {replicas} replicas, and without node {node} there is no node for one of them; \
                 add a node, or let there be fewer with --fewer-replicas, or before with \
                 `chronik-server cluster reassign --all --replication-factor COUNT`"
            ))
        })
    }

    fn rebalance(&self, args: &RebalanceArgs) -> Result<Report, Failure> {
        let moving = &args.moving;
        let mut mover = Mover::new(self.kafka()?, moving.at_a_time);
        let moves = spread(&self.layout(&mut mover)?, args.moves_max);
        if moving.dry_run {
            return Ok(planned(&moves));
        }
        eprint!("{}", planned(&moves).text);
        let moved = mover.carry_out(moves)?;
        mover.elect_preferred()?;
        Ok(done(&moved))
    }

    fn reassign(&self, args: &ReassignArgs) -> Result<Report, Failure> {
        let MovingArgs { at_a_time, dry_run, .. } = &args.moving;
        let mut mover = Mover::new(self.kafka()?, *at_a_time);
        if let Some(factor) = args.replication_factor {
            return self.set_factor(&mut mover, usize::from(factor), args);
        }
        let (Some(topic), Some(partition)) = (&args.topic, args.partition) else {
            return Ok(under_way(&mover.under_way()?));
        };
        let at = (topic.clone(), partition);
        let from = mover.partitions()?.remove(&at);
        let from =
            from.ok_or_else(|| usage(format!("there is no partition {topic}-{partition}")))?;
        if args.cancel {
            mover.cancel(&at)?;
            let text = format!("{topic}-{partition} goes back to where it was\n");
            return Ok(Report::new(text, json!({ "topic": topic, "partition": partition })));
        }
        let to = args.to.as_deref().and_then(parse_numbers);
        let to = to.ok_or_else(|| usage("--to is not a list of nodes like 1,2,3".to_owned()))?;
        let moves = vec![Move { at, from, to }];
        if *dry_run {
            return Ok(planned(&moves));
        }
        Ok(done(&mover.carry_out(moves)?))
    }
}

impl Cluster {
    fn set_factor(
        &self,
        mover: &mut Mover,
        factor: usize,
        args: &ReassignArgs,
    ) -> Result<Report, Failure> {
        let layout = self.layout(mover)?;
        let topic = args.topic.as_deref();
        if let Some(topic) = topic
            && !layout.partitions.keys().any(|(name, _)| name == topic)
        {
            return Err(usage(format!("there is no topic {topic}")));
        }
        let is_meant = |(name, _): &(String, i32)| topic.is_none_or(|topic| name == topic);
        let moves = with_factor(&layout, factor, is_meant).map_err(|(name, partition)| {
            let open = join(layout.open.iter().copied());
            usage(format!(
                "there are not {factor} nodes for replicas of {name}-{partition}; up and not drained: {open}"
            ))
        })?;
        if args.moving.dry_run {
            return Ok(planned(&moves));
        }
        let moved = mover.carry_out(moves)?;
        mover.elect_preferred()?;
        Ok(done(&moved))
    }
}

fn broker_id(node: u32) -> i32 {
    i32::try_from(node).unwrap_or(i32::MAX)
}

pub(super) fn usage(text: String) -> Failure {
    KafkaError::Usage(text).into()
}

fn unregister(kafka: &mut Kafka, node: i32) -> Result<(), Failure> {
    let request = UnregisterBrokerRequest::default().with_broker_id(BrokerId(node));
    let request = in_versions(0, 0, request);
    let mut last = Ok(());
    for _ in 0..UNREGISTER_TRIES {
        let answer = kafka.any(&request)?;
        // It was registered before. If the node itself was asked, it ended with its removal, and another was asked again.
        if answer.error_code == ResponseError::BrokerIdNotRegistered.code() {
            return Ok(());
        }
        last = Refusal::check(answer.error_code, answer.error_message.as_ref());
        if last.is_ok() {
            return Ok(());
        }
        // The broker that is asked may not show yet that the last replica has gone.
        std::thread::sleep(UNREGISTER_RETRY);
    }
    last.map_err(|refusal| refusal.of(format!("node {node}")).into())
}

fn moves_json(moves: &[Moved]) -> Vec<Value> {
    let json = |moved: &Moved| {
        let Moved { step: Move { at: (topic, partition), from, to }, outcome } = moved;
        let error = outcome.as_ref().err().map(ToString::to_string);
        json!({ "topic": topic, "partition": partition, "from": from, "to": to, "error": error })
    };
    moves.iter().map(json).collect()
}

fn table_of<'a>(moves: impl Iterator<Item = (&'a Move, Option<String>)>) -> String {
    let mut table = Table::new(&["TOPIC", "PARTITION", "FROM", "TO", "STATUS"]);
    for (Move { at: (topic, partition), from, to }, status) in moves {
        table.row([
            topic.clone(),
            partition.to_string(),
            join(from.iter().copied()),
            join(to.iter().copied()),
            status.unwrap_or_default(),
        ]);
    }
    table.to_text()
}

/// What would be done.
fn planned(moves: &[Move]) -> Report {
    if moves.is_empty() {
        return Report::new("there is nothing to move\n".to_owned(), json!({ "moves": [] }));
    }
    let text = table_of(moves.iter().map(|one| (one, None)));
    let json = |Move { at: (topic, partition), from, to }: &Move| json!({ "topic": topic, "partition": partition, "from": from, "to": to });
    let moves: Vec<Value> = moves.iter().map(json).collect();
    Report::new(text, json!({ "moves": moves, "dry_run": true }))
}

/// What was done.
fn done(moves: &[Moved]) -> Report {
    let status = |moved: &Moved| match &moved.outcome {
        Ok(()) => "moved".to_owned(),
        Err(refusal) => refusal.to_string(),
    };
    let mut text = table_of(moves.iter().map(|moved| (&moved.step, Some(status(moved)))));
    if moves.is_empty() {
        text = "there is nothing to move\n".to_owned();
    }
    let mut report = Report::new(text, json!({ "moves": moves_json(moves) }));
    let refused = moves.iter().filter(|moved| moved.outcome.is_err()).count();
    report.refused = (refused, moves.len());
    report
}

fn under_way(moves: &UnderWay) -> Report {
    let mut table = Table::new(&["TOPIC", "PARTITION", "ADDING", "REMOVING"]);
    let mut found = Vec::new();
    for ((topic, partition), (adding, removing)) in moves {
        found.push(json!({
            "topic": topic, "partition": partition, "adding": adding, "removing": removing,
        }));
        let list = |nodes: &BTreeSet<i32>| join(nodes.iter().copied());
        table.row([topic.clone(), partition.to_string(), list(adding), list(removing)]);
    }
    let text =
        if moves.is_empty() { "no partition is moving\n".to_owned() } else { table.to_text() };
    Report::new(text, json!({ "moving": found }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_moves_when_reported_then_each_stands_in_the_table_and_a_refusal_fails_the_command() {
        let step = Move { at: ("orders".to_owned(), 3), from: vec![1, 2], to: vec![3, 2] };
        let plan = planned(std::slice::from_ref(&step));
        assert_eq!(
            plan.text,
            "TOPIC   PARTITION  FROM  TO   STATUS\norders  3          1,2   3,2\n"
        );
        assert_eq!(plan.json["moves"][0]["to"], json!([3, 2]));
        let error = ResponseError::InvalidReplicaAssignment;
        let refusal = Refusal { error, message: Some("broker 3 is down".to_owned()) };
        let report = done(&[Moved { step, outcome: Err(refusal) }]);
        assert!(report.text.contains("broker 3 is down (INVALID_REPLICA_ASSIGNMENT)"));
        assert!(report.verdict().is_err());
        assert_eq!(done(&[]).text, "there is nothing to move\n");
    }
}
