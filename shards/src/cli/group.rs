//! `chronik-server group`: what is asked of the groups' coordinators, and how their answers are shown.

use std::collections::{BTreeMap, BTreeSet};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_groups_response::DescribedGroup;
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    DeleteGroupsRequest, DescribeGroupsRequest, GroupId, ListGroupsRequest, OffsetCommitRequest,
    OffsetFetchRequest,
};
use kafka_protocol::protocol::StrBytes;
use serde_json::json;

use super::assignment::{assigned, parse_topic};
use super::grammar::{GroupCommand, KafkaArgs, ResetArgs, ResetTo};
use super::kafka::{
    EARLIEST, Kafka, KafkaError, LATEST, Refusal, in_versions, known_topics, name_of, topic_name,
};
use super::table::{Report, Table, known};
use super::topic::{Outcome, outcomes, with_unknown};

/// A partition of a topic.
type At = (String, i32);

/// A group in these states has no members, so that its offsets may be set from outside.
const STATES_WITHOUT_MEMBERS: [&str; 2] = ["Empty", "Dead"];

impl GroupCommand {
    pub(super) fn kafka(&self) -> &KafkaArgs {
        match self {
            GroupCommand::List { kafka }
            | GroupCommand::Describe { kafka, .. }
            | GroupCommand::Delete { kafka, .. } => kafka,
            GroupCommand::ResetOffsets(args) => &args.kafka,
        }
    }
}

/// Carries out a command.
pub(super) fn run(kafka: &mut Kafka, command: &GroupCommand) -> Result<Report, KafkaError> {
    match command {
        GroupCommand::List { .. } => list(kafka),
        GroupCommand::Describe { names, .. } => describe(kafka, names),
        GroupCommand::Delete { names, .. } => delete(kafka, names),
        GroupCommand::ResetOffsets(args) => reset(kafka, args),
    }
}

fn group_id(name: &str) -> GroupId {
    GroupId(StrBytes::from_string(name.to_owned()))
}

fn list(kafka: &mut Kafka) -> Result<Report, KafkaError> {
    let (mut rows, mut silent) = (BTreeMap::new(), Vec::new());
    for node in kafka.nodes()? {
        let request = in_versions(3, 5, ListGroupsRequest::default());
        // The groups of a broker that is down are others' by now.
        let answer = match kafka.broker(node, &request) {
            Ok(answer) => answer,
            Err(error) => {
                silent.push((node, error));
                continue;
            }
        };
        Refusal::check(answer.error_code, None).map_err(|r| r.of(format!("broker {node}")))?;
        for group in answer.groups {
            rows.insert(group.group_id.to_string(), (group, node));
        }
    }
    let mut table = Table::new(&["GROUP", "STATE", "PROTOCOL", "COORDINATOR"]);
    let mut found = Vec::new();
    for (name, (group, node)) in rows {
        let (state, protocol) = (group.group_state.to_string(), group.protocol_type.to_string());
        found.push(json!({
            "name": name, "state": state, "protocol": protocol, "coordinator": node,
        }));
        table.row([name, state, protocol, node.to_string()]);
    }
    let mut text = match found.is_empty() {
        true => "there are no consumer groups\n".to_owned(),
        false => table.to_text(),
    };
    for (node, error) in &silent {
        text.push_str(&format!("not asked: broker {node}: {error}\n"));
    }
    let not_asked: Vec<i32> = silent.iter().map(|(node, _)| *node).collect();
    Ok(Report::new(text, json!({ "groups": found, "not_asked": not_asked })))
}

/// A group as its coordinator tells of it.
fn described(kafka: &mut Kafka, name: &str) -> Result<(DescribedGroup, i32), KafkaError> {
    let request = DescribeGroupsRequest::default().with_groups(vec![group_id(name)]);
    let request = in_versions(0, 5, request);
    kafka.patiently(|kafka| {
        let node = kafka.coordinator(name)?;
        let answer = kafka.broker(node, &request)?;
        let group = answer.groups.into_iter().next().unwrap_or_default();
        let checked = Refusal::check(group.error_code, group.error_message.as_ref());
        Ok(checked.map(|()| (group, node)).map_err(|refusal| refusal.of(format!("group {name}"))))
    })
}

/// What a group has committed.
fn committed(kafka: &mut Kafka, name: &str) -> Result<BTreeMap<At, i64>, KafkaError> {
    let request = OffsetFetchRequest::default().with_group_id(group_id(name)).with_topics(None);
    let request = in_versions(2, 7, request);
    kafka.patiently(|kafka| {
        let node = kafka.coordinator(name)?;
        let answer = kafka.broker(node, &request)?;
        if let Err(refusal) = Refusal::check(answer.error_code, None) {
            return Ok(Err(refusal.of(format!("group {name}"))));
        }
        let offsets = answer.topics.iter().flat_map(|topic| {
            let found = topic.partitions.iter().filter(|p| p.committed_offset >= 0);
            found.map(|p| ((topic.name.to_string(), p.partition_index), p.committed_offset))
        });
        Ok(Ok(offsets.collect()))
    })
}

fn topics_of(
    kafka: &mut Kafka,
    names: &[String],
) -> Result<Vec<MetadataResponseTopic>, KafkaError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let answer = kafka.metadata(Some(names))?;
    Ok(known_topics(answer.topics).0)
}

/// One line of what a group reads.
struct Reads {
    at: At,
    committed: Option<i64>,
    end: Option<i64>,
    /// The member that has the partition: its id and the host it is on.
    member: Option<(String, String)>,
}

impl Reads {
    fn lag(&self) -> Option<i64> {
        Some(self.end?.saturating_sub(self.committed?).max(0))
    }
}

fn describe(kafka: &mut Kafka, names: &[String]) -> Result<Report, KafkaError> {
    let (mut text, mut found, mut unknown) = (String::new(), Vec::new(), Vec::new());
    for name in names {
        let (group, node) = described(kafka, name)?;
        // How a broker describes a group that it does not know, up to the version that is asked in here.
        if group.group_state.as_str() == "Dead" && group.members.is_empty() {
            let message = Some("there is no such group".to_owned());
            let refusal = Refusal { error: ResponseError::GroupIdNotFound, message };
            unknown.push((name.clone(), refusal));
            continue;
        }
        let committed = committed(kafka, name)?;
        let reads = reads(kafka, &group, committed)?;
        let lag: i64 = reads.iter().filter_map(Reads::lag).fold(0, i64::saturating_add);
        text.push_str(&format!(
            "{name}  {}, {} members, coordinator {node}, lag {lag}\n",
            group.group_state,
            group.members.len()
        ));
        let mut table =
            Table::new(&["TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "MEMBER", "HOST"]);
        let mut partitions = Vec::new();
        for read in &reads {
            let (topic, partition) = &read.at;
            let (member, host) = read.member.clone().unzip();
            partitions.push(json!({
                "topic": topic,
                "partition": partition,
                "committed_offset": read.committed,
                "end_offset": read.end,
                "lag": read.lag(),
                "member": member,
                "host": host,
            }));
            table.row([
                topic.clone(),
                partition.to_string(),
                known(read.committed),
                known(read.end),
                known(read.lag()),
                member.unwrap_or_else(|| "-".to_owned()),
                host.unwrap_or_else(|| "-".to_owned()),
            ]);
        }
        text.push_str(&table.to_text());
        text.push('\n');
        let members = group.members.iter().map(|member| {
            json!({
                "id": member.member_id.to_string(),
                "instance": member.group_instance_id.as_ref().map(ToString::to_string),
                "client": member.client_id.to_string(),
                "host": member.client_host.to_string(),
            })
        });
        found.push(json!({
            "name": name,
            "state": group.group_state.to_string(),
            "protocol": group.protocol_data.to_string(),
            "coordinator": node,
            "lag": lag,
            "members": members.collect::<Vec<_>>(),
            "partitions": partitions,
        }));
    }
    Ok(with_unknown(text, json!({ "groups": found }), &unknown, names.len()))
}

/// What a group has committed and what its members have been given, with the ends of those partitions.
fn reads(
    kafka: &mut Kafka,
    group: &DescribedGroup,
    committed: BTreeMap<At, i64>,
) -> Result<Vec<Reads>, KafkaError> {
    let mut members: BTreeMap<At, (String, String)> = BTreeMap::new();
    for member in &group.members {
        let who = (member.member_id.to_string(), member.client_host.to_string());
        for at in assigned(&member.member_assignment) {
            members.insert(at, who.clone());
        }
    }
    let at: BTreeSet<At> = committed.keys().chain(members.keys()).cloned().collect();
    let names: BTreeSet<String> = at.iter().map(|(topic, _)| topic.clone()).collect();
    let topics = topics_of(kafka, &names.into_iter().collect::<Vec<_>>())?;
    let ends = kafka.offsets(&topics, LATEST)?;
    let reads = at.into_iter().map(|at| Reads {
        committed: committed.get(&at).copied(),
        end: ends.get(&at).copied(),
        member: members.get(&at).cloned(),
        at,
    });
    Ok(reads.collect())
}

fn delete(kafka: &mut Kafka, names: &[String]) -> Result<Report, KafkaError> {
    let mut done: Vec<Outcome> = Vec::new();
    for name in names {
        let request = DeleteGroupsRequest::default().with_groups_names(vec![group_id(name)]);
        let request = in_versions(0, 2, request);
        let deleted = kafka.patiently(|kafka| {
            let node = kafka.coordinator(name)?;
            let answer = kafka.broker(node, &request)?;
            let code = answer.results.first().map_or(0, |result| result.error_code);
            Ok(Refusal::check(code, None).map_err(|refusal| refusal.of(name.clone())))
        });
        done.push(match deleted {
            Ok(()) => (name.clone(), Ok(())),
            Err(KafkaError::Refused { what, refusal }) => (what, Err(refusal)),
            Err(error) => return Err(error),
        });
    }
    Ok(outcomes("group", "deleted", &done))
}

fn reset(kafka: &mut Kafka, args: &ResetArgs) -> Result<Report, KafkaError> {
    let name = &args.name;
    let (group, _) = described(kafka, name)?;
    if !STATES_WITHOUT_MEMBERS.contains(&group.group_state.as_str()) {
        let members = group.members.len();
        let what = format!(
            "group {name} has {members} members ({}): stop them first, for they would commit over this",
            group.group_state
        );
        return Err(KafkaError::Usage(what));
    }
    let committed = committed(kafka, name)?;
    let topics = wanted_topics(kafka, args, &committed)?;
    let targets = targets(kafka, &topics, &args.to, &committed)?;
    if args.execute && !targets.is_empty() {
        commit(kafka, name, &targets)?;
    }
    let mut table = Table::new(&["TOPIC", "PARTITION", "COMMITTED", "NEW"]);
    let mut found = Vec::new();
    for (at, new) in &targets {
        let (old, (topic, partition)) = (committed.get(at).copied(), at);
        found.push(json!({
            "topic": topic, "partition": partition, "committed_offset": old, "new_offset": new,
        }));
        table.row([topic.clone(), partition.to_string(), known(old), new.to_string()]);
    }
    let mut text = table.to_text();
    if !args.execute {
        text.push_str("nothing is changed yet: --execute does it\n");
    }
    let json = json!({ "group": name, "executed": args.execute, "partitions": found });
    Ok(Report::new(text, json))
}

/// The topics to go on in, each with the partitions that were asked for.
fn wanted_topics(
    kafka: &mut Kafka,
    args: &ResetArgs,
    committed: &BTreeMap<At, i64>,
) -> Result<Vec<MetadataResponseTopic>, KafkaError> {
    let mut wanted: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
    let mut whole: BTreeSet<String> = BTreeSet::new();
    for (topic, partition) in committed.keys().filter(|_| args.all_topics) {
        wanted.entry(topic.clone()).or_default().insert(*partition);
    }
    for text in &args.topic {
        let (topic, partitions) = parse_topic(text)
            .ok_or_else(|| KafkaError::Usage(format!("{text:?} is not TOPIC[:PARTITION,…]")))?;
        if partitions.is_empty() {
            whole.insert(topic.clone());
        }
        wanted.entry(topic).or_default().extend(partitions);
    }
    let names: Vec<String> = wanted.keys().cloned().collect();
    let mut topics = topics_of(kafka, &names)?;
    for topic in &mut topics {
        let name = name_of(topic);
        if let Some(numbers) = wanted.remove(&name)
            && !whole.contains(&name)
        {
            topic.partitions.retain(|partition| numbers.contains(&partition.partition_index));
            if topic.partitions.len() != numbers.len() && !args.all_topics {
                let what = format!("topic {name} does not have all of these partitions");
                return Err(KafkaError::Usage(what));
            }
        }
    }
    match wanted.keys().next() {
        Some(unknown) if !args.all_topics => {
            Err(KafkaError::Usage(format!("there is no topic {unknown}")))
        }
        _ => Ok(topics),
    }
}

/// Where each partition goes on: within what there is.
fn targets(
    kafka: &mut Kafka,
    topics: &[MetadataResponseTopic],
    to: &ResetTo,
    committed: &BTreeMap<At, i64>,
) -> Result<BTreeMap<At, i64>, KafkaError> {
    let begins = kafka.offsets(topics, EARLIEST)?;
    let ends = kafka.offsets(topics, LATEST)?;
    let at_time = match to.to_timestamp {
        Some(timestamp) if timestamp >= 0 => kafka.offsets(topics, timestamp)?,
        Some(timestamp) => return Err(KafkaError::Usage(format!("{timestamp} is no time"))),
        None => BTreeMap::new(),
    };
    let mut targets = BTreeMap::new();
    for topic in topics {
        let name = name_of(topic);
        for partition in &topic.partitions {
            let at = (name.clone(), partition.partition_index);
            let (Some(begin), Some(end)) = (begins.get(&at), ends.get(&at)) else {
                let what = format!("{name}-{}", partition.partition_index);
                return Err(KafkaError::NoLeader { what });
            };
            let new = target(to, *begin, *end, committed.get(&at).copied(), at_time.get(&at));
            targets.extend(new.map(|new| (at, new)));
        }
    }
    Ok(targets)
}

/// `None` where there is nothing to shift.
fn target(
    to: &ResetTo,
    begin: i64,
    end: i64,
    committed: Option<i64>,
    at_time: Option<&i64>,
) -> Option<i64> {
    let wanted = match to {
        ResetTo { to_earliest: true, .. } => begin,
        ResetTo { to_offset: Some(offset), .. } => *offset,
        ResetTo { shift_by: Some(by), .. } => committed?.saturating_add(*by),
        ResetTo { to_timestamp: Some(_), .. } => at_time.copied().unwrap_or(end),
        _ => end,
    };
    Some(wanted.clamp(begin, end.max(begin)))
}

fn commit(kafka: &mut Kafka, name: &str, targets: &BTreeMap<At, i64>) -> Result<(), KafkaError> {
    let mut topics: BTreeMap<&String, Vec<OffsetCommitRequestPartition>> = BTreeMap::new();
    for ((topic, partition), offset) in targets {
        let partition = OffsetCommitRequestPartition::default()
            .with_partition_index(*partition)
            .with_committed_offset(*offset)
            .with_committed_metadata(None);
        topics.entry(topic).or_default().push(partition);
    }
    let topics = topics.into_iter().map(|(topic, partitions)| {
        OffsetCommitRequestTopic::default().with_name(topic_name(topic)).with_partitions(partitions)
    });
    let request = OffsetCommitRequest::default()
        .with_group_id(group_id(name))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(topics.collect());
    let request = in_versions(5, 8, request);
    kafka.patiently(|kafka| {
        let node = kafka.coordinator(name)?;
        let answer = kafka.broker(node, &request)?;
        let codes = answer.topics.iter().flat_map(|topic| &topic.partitions);
        let refused = codes.map(|partition| Refusal::check(partition.error_code, None));
        Ok(refused.collect::<Result<(), Refusal>>().map_err(|r| r.of(format!("group {name}"))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_each_way_to_reset_when_asked_then_the_place_is_within_what_there_is() {
        let to = |to: ResetTo| target(&to, 10, 90, Some(50), Some(&70));
        assert_eq!(to(ResetTo { to_earliest: true, ..ResetTo::default() }), Some(10));
        assert_eq!(to(ResetTo { to_latest: true, ..ResetTo::default() }), Some(90));
        assert_eq!(to(ResetTo { to_offset: Some(40), ..ResetTo::default() }), Some(40));
        assert_eq!(to(ResetTo { to_offset: Some(400), ..ResetTo::default() }), Some(90));
        assert_eq!(to(ResetTo { to_timestamp: Some(1), ..ResetTo::default() }), Some(70));
        assert_eq!(to(ResetTo { shift_by: Some(-5), ..ResetTo::default() }), Some(45));
        assert_eq!(to(ResetTo { shift_by: Some(i64::MIN), ..ResetTo::default() }), Some(10));
        let shift = ResetTo { shift_by: Some(1), ..ResetTo::default() };
        assert_eq!(target(&shift, 0, 9, None, None), None);
        let late = ResetTo { to_timestamp: Some(1), ..ResetTo::default() };
        assert_eq!(target(&late, 0, 9, None, None), Some(9), "no record is that late");
    }

    #[test]
    fn given_what_a_group_reads_when_its_lag_is_asked_then_it_is_never_negative_nor_invented() {
        let read = |committed, end| Reads { at: ("t".into(), 0), committed, end, member: None };
        assert_eq!(read(Some(3), Some(10)).lag(), Some(7));
        assert_eq!(read(Some(12), Some(10)).lag(), Some(0));
        assert_eq!(read(None, Some(10)).lag(), None);
    }
}
