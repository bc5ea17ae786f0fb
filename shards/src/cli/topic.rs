//! `chronik-server topic`: what is asked of the brokers, and how their answers are shown.

use std::collections::BTreeMap;

use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{
    BrokerId, CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest,
    DescribeConfigsRequest, IncrementalAlterConfigsRequest,
};
use kafka_protocol::protocol::StrBytes;
use serde_json::{Value, json};

use super::assignment::parse_replicas;
use super::grammar::{KafkaArgs, TopicCommand, TopicCreateArgs};
use super::kafka::{
    CHANGE_TIMEOUT_MS, EARLIEST, Kafka, KafkaError, LATEST, Refusal, in_versions, known_topics,
    name_of, topic_name,
};
use super::readers::take_readers;
use super::table::{Report, Table, join, known};

/// Kafka's number for a topic as a resource, for "set on the topic", and for setting and resetting.
const RESOURCE_TOPIC: i8 = 2;
const SOURCE_TOPIC: i8 = 1;
const OPERATION_SET: i8 = 0;
const OPERATION_DELETE: i8 = 1;

/// What came of something that was asked for by name.
pub(super) type Outcome = (String, Result<(), Refusal>);

impl TopicCommand {
    pub(super) fn kafka(&self) -> &KafkaArgs {
        match self {
            TopicCommand::List { kafka, .. }
            | TopicCommand::Describe { kafka, .. }
            | TopicCommand::Delete { kafka, .. }
            | TopicCommand::AlterPartitions { kafka, .. }
            | TopicCommand::AlterConfig { kafka, .. } => kafka,
            TopicCommand::Create(args) => &args.kafka,
        }
    }
}

/// Carries out a command.
pub(super) fn run(kafka: &mut Kafka, command: &TopicCommand) -> Result<Report, KafkaError> {
    match command {
        TopicCommand::List { names, internal, .. } => list(kafka, names, *internal),
        TopicCommand::Describe { names, .. } => describe(kafka, names),
        TopicCommand::Create(args) => create(kafka, args),
        TopicCommand::Delete { names, .. } => delete(kafka, names),
        TopicCommand::AlterPartitions { names, partitions, .. } => grow(kafka, names, *partitions),
        TopicCommand::AlterConfig { names, set, delete, .. } => {
            alter_config(kafka, names, set, delete)
        }
    }
}

/// What came of each, as a table or as JSON.
pub(super) fn outcomes(what: &str, done: &str, outcomes: &[Outcome]) -> Report {
    let mut table = Table::new(&[&what.to_ascii_uppercase(), "STATUS"]);
    let mut found = Vec::new();
    for (name, outcome) in outcomes {
        let status = match outcome {
            Ok(()) => done.to_owned(),
            Err(refusal) => refusal.to_string(),
        };
        let error = outcome.as_ref().err().map(|refusal| super::kafka::kafka_name(refusal.error));
        found.push(json!({ "name": name, "error": error, "message": status }));
        table.row([name.clone(), status]);
    }
    let refused = outcomes.iter().filter(|(_, outcome)| outcome.is_err()).count();
    let mut report = Report::new(table.to_text(), json!({ format!("{what}s"): found }));
    report.refused = (refused, outcomes.len());
    report
}

fn replicas_of(topic: &MetadataResponseTopic) -> usize {
    topic.partitions.iter().map(|partition| partition.replica_nodes.len()).max().unwrap_or(0)
}

fn list(kafka: &mut Kafka, names: &[String], internal: bool) -> Result<Report, KafkaError> {
    let answer = kafka.metadata((!names.is_empty()).then_some(names))?;
    let (mut topics, unknown) = known_topics(answer.topics);
    take_readers(kafka, &mut topics)?;
    let mut table = Table::new(&["NAME", "PARTITIONS", "REPLICAS"]);
    let mut found = Vec::new();
    for topic in &topics {
        if topic.is_internal && !internal && names.is_empty() {
            continue;
        }
        let (name, partitions, replicas) =
            (name_of(topic), topic.partitions.len(), replicas_of(topic));
        found.push(json!({
            "name": name,
            "id": topic.topic_id.to_string(),
            "partitions": partitions,
            "replicas": replicas,
            "internal": topic.is_internal,
        }));
        table.row([name, partitions.to_string(), replicas.to_string()]);
    }
    Ok(with_unknown(table.to_text(), json!({ "topics": found }), &unknown, names.len()))
}

/// Names that lead to nothing are told beside what there is.
pub(super) fn with_unknown(
    mut text: String,
    json: Value,
    unknown: &[(String, Refusal)],
    asked: usize,
) -> Report {
    for (name, refusal) in unknown {
        text.push_str(&format!("{name}: {refusal}\n"));
    }
    let mut report = Report::new(text, json);
    report.refused = (unknown.len(), asked);
    report
}

fn describe(kafka: &mut Kafka, names: &[String]) -> Result<Report, KafkaError> {
    let answer = kafka.metadata(Some(names))?;
    let (mut topics, unknown) = known_topics(answer.topics);
    let readers = take_readers(kafka, &mut topics)?;
    let begins = kafka.offsets(&topics, EARLIEST)?;
    let ends = kafka.offsets(&topics, LATEST)?;
    let configs = configs(kafka, &topics)?;
    let (mut text, mut found) = (String::new(), Vec::new());
    for topic in &topics {
        let name = name_of(topic);
        let set = configs.get(&name).cloned().unwrap_or_default();
        text.push_str(&format!(
            "{name}  id {}, {} partitions, {} replicas\n",
            topic.topic_id,
            topic.partitions.len(),
            replicas_of(topic)
        ));
        for (key, value) in &set {
            text.push_str(&format!("  {key} = {value}\n"));
        }
        let mut head = vec!["PARTITION", "LEADER", "EPOCH", "REPLICAS", "ISR", "START", "END"];
        if !readers.is_empty() {
            head.push("READ-ONLY");
        }
        let mut table = Table::new(&head);
        let mut partitions = Vec::new();
        for partition in &topic.partitions {
            let at = (name.clone(), partition.partition_index);
            let (begin, end) = (begins.get(&at).copied(), ends.get(&at).copied());
            let nodes = |ids: &[kafka_protocol::messages::BrokerId]| -> Vec<i32> {
                ids.iter().map(|id| id.0).collect()
            };
            let (replicas, isr) = (nodes(&partition.replica_nodes), nodes(&partition.isr_nodes));
            let leader = (partition.leader_id.0 >= 0).then_some(partition.leader_id.0);
            let read_only: Vec<i32> = readers.get(&at).into_iter().flatten().copied().collect();
            partitions.push(json!({
                "partition": partition.partition_index,
                "leader": leader,
                "leader_epoch": partition.leader_epoch,
                "replicas": replicas,
                "isr": isr,
                "read_only_replicas": read_only,
                "start_offset": begin,
                "end_offset": end,
            }));
            let mut row = vec![
                partition.partition_index.to_string(),
                known(leader.map(i64::from)),
                partition.leader_epoch.to_string(),
                join(replicas),
                join(isr),
                known(begin),
                known(end),
            ];
            if !readers.is_empty() {
                row.push(join(read_only));
            }
            table.row(row);
        }
        text.push_str(&table.to_text());
        text.push('\n');
        found.push(json!({
            "name": name,
            "id": topic.topic_id.to_string(),
            "internal": topic.is_internal,
            "configs": set,
            "partitions": partitions,
        }));
    }
    Ok(with_unknown(text, json!({ "topics": found }), &unknown, names.len()))
}

/// What is set on each of these topics.
fn configs(
    kafka: &mut Kafka,
    topics: &[MetadataResponseTopic],
) -> Result<BTreeMap<String, BTreeMap<String, String>>, KafkaError> {
    let resource = |topic: &MetadataResponseTopic| {
        DescribeConfigsResource::default()
            .with_resource_type(RESOURCE_TOPIC)
            .with_resource_name(StrBytes::from_string(name_of(topic)))
            .with_configuration_keys(None)
    };
    let request =
        DescribeConfigsRequest::default().with_resources(topics.iter().map(resource).collect());
    let answer = kafka.any(&in_versions(1, 4, request))?;
    let of_topic = answer.results.into_iter().map(|result| {
        let set = result.configs.into_iter().filter(|config| config.config_source == SOURCE_TOPIC);
        let set = set.map(|config| {
            (config.name.to_string(), config.value.map(|v| v.to_string()).unwrap_or_default())
        });
        (result.resource_name.to_string(), set.collect())
    });
    Ok(of_topic.collect())
}

/// `KEY=VALUE`.
fn key_value(text: &str) -> Result<(StrBytes, StrBytes), KafkaError> {
    let (key, value) = text
        .split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or_else(|| KafkaError::Usage(format!("{text:?} is not KEY=VALUE")))?;
    Ok((StrBytes::from_string(key.to_owned()), StrBytes::from_string(value.to_owned())))
}

fn create(kafka: &mut Kafka, args: &TopicCreateArgs) -> Result<Report, KafkaError> {
    let mut configs = Vec::new();
    for config in &args.configs {
        let (key, value) = key_value(config)?;
        configs.push(CreatableTopicConfig::default().with_name(key).with_value(Some(value)));
    }
    let assignments = assignments(args.replica_assignment.as_deref())?;
    let topic = |name: &String| {
        CreatableTopic::default()
            .with_name(topic_name(name))
            .with_num_partitions(args.partitions)
            .with_replication_factor(args.replication_factor)
            .with_assignments(assignments.clone())
            .with_configs(configs.clone())
    };
    let request = CreateTopicsRequest::default()
        .with_topics(args.names.iter().map(topic).collect())
        .with_timeout_ms(CHANGE_TIMEOUT_MS)
        .with_validate_only(args.validate_only);
    let answer = kafka.any(&in_versions(4, 7, request))?;
    let done = answer.topics.iter().map(|topic| {
        let outcome = Refusal::check(topic.error_code, topic.error_message.as_ref());
        (topic.name.to_string(), outcome)
    });
    let what = if args.validate_only { "could be created" } else { "created" };
    Ok(outcomes("topic", what, &done.collect::<Vec<_>>()))
}

/// Where the partitions of a new topic are to be, if somebody says so.
fn assignments(text: Option<&str>) -> Result<Vec<CreatableReplicaAssignment>, KafkaError> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let partitions = parse_replicas(text).ok_or_else(|| {
        KafkaError::Usage(format!("{text:?} is not brokers of partitions, as in 1:2,2:3"))
    })?;
    let assignment = |(number, brokers): (i32, Vec<i32>)| {
        CreatableReplicaAssignment::default()
            .with_partition_index(number)
            .with_broker_ids(brokers.into_iter().map(BrokerId).collect())
    };
    Ok((0..).zip(partitions).map(assignment).collect())
}

fn delete(kafka: &mut Kafka, names: &[String]) -> Result<Report, KafkaError> {
    let request = DeleteTopicsRequest::default()
        .with_topic_names(names.iter().map(|name| topic_name(name)).collect())
        .with_timeout_ms(CHANGE_TIMEOUT_MS);
    let answer = kafka.any(&in_versions(1, 5, request))?;
    let done = answer.responses.iter().map(|topic| {
        let name = topic.name.as_ref().map(|name| name.to_string()).unwrap_or_default();
        (name, Refusal::check(topic.error_code, topic.error_message.as_ref()))
    });
    Ok(outcomes("topic", "deleted", &done.collect::<Vec<_>>()))
}

fn grow(kafka: &mut Kafka, names: &[String], count: i32) -> Result<Report, KafkaError> {
    let topic = |name: &String| {
        CreatePartitionsTopic::default()
            .with_name(topic_name(name))
            .with_count(count)
            .with_assignments(None)
    };
    let request = CreatePartitionsRequest::default()
        .with_topics(names.iter().map(topic).collect())
        .with_timeout_ms(CHANGE_TIMEOUT_MS);
    let answer = kafka.any(&in_versions(0, 3, request))?;
    let done = answer.results.iter().map(|topic| {
        let outcome = Refusal::check(topic.error_code, topic.error_message.as_ref());
        (topic.name.to_string(), outcome)
    });
    Ok(outcomes("topic", &format!("has {count} partitions"), &done.collect::<Vec<_>>()))
}

fn alter_config(
    kafka: &mut Kafka,
    names: &[String],
    set: &[String],
    delete: &[String],
) -> Result<Report, KafkaError> {
    let mut changes = Vec::new();
    for config in set {
        let (key, value) = key_value(config)?;
        let change = AlterableConfig::default().with_name(key).with_value(Some(value));
        changes.push(change.with_config_operation(OPERATION_SET));
    }
    for key in delete {
        let change = AlterableConfig::default().with_name(StrBytes::from_string(key.clone()));
        changes.push(change.with_value(None).with_config_operation(OPERATION_DELETE));
    }
    if changes.is_empty() {
        let what = "nothing to change: give --set KEY=VALUE or --delete KEY";
        return Err(KafkaError::Usage(what.to_owned()));
    }
    let resource = |name: &String| {
        AlterConfigsResource::default()
            .with_resource_type(RESOURCE_TOPIC)
            .with_resource_name(StrBytes::from_string(name.clone()))
            .with_configs(changes.clone())
    };
    let request = IncrementalAlterConfigsRequest::default()
        .with_resources(names.iter().map(resource).collect());
    let answer = kafka.any(&in_versions(0, 1, request))?;
    let done = answer.responses.iter().map(|resource| {
        let outcome = Refusal::check(resource.error_code, resource.error_message.as_ref());
        (resource.resource_name.to_string(), outcome)
    });
    Ok(outcomes("topic", "changed", &done.collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use kafka_protocol::ResponseError;

    use super::*;

    #[test]
    fn given_configurations_when_parsed_then_only_the_first_equals_sign_parts_them() {
        let (key, value) = key_value("cleanup.policy=a=b").unwrap();
        assert_eq!((key.as_str(), value.as_str()), ("cleanup.policy", "a=b"));
        for wrong in ["retention.ms", "=1", ""] {
            assert!(matches!(key_value(wrong), Err(KafkaError::Usage(_))), "{wrong}");
        }
    }

    #[test]
    fn given_brokers_of_partitions_when_asked_for_then_each_partition_has_them_in_their_order() {
        let wanted = assignments(Some("2:1,3:2")).unwrap();
        let ids = |a: &CreatableReplicaAssignment| {
            (a.partition_index, a.broker_ids.iter().map(|id| id.0).collect::<Vec<_>>())
        };
        let told: Vec<_> = wanted.iter().map(ids).collect();
        assert_eq!(told, [(0, vec![2, 1]), (1, vec![3, 2])]);
        assert!(assignments(None).unwrap().is_empty());
        assert!(matches!(assignments(Some("2:")), Err(KafkaError::Usage(_))));
    }

    #[test]
    fn given_outcomes_when_reported_then_each_is_named_and_one_refusal_fails_the_command() {
        let refusal = Refusal { error: ResponseError::TopicAlreadyExists, message: None };
        let done = [("a".to_owned(), Ok(())), ("b".to_owned(), Err(refusal))];
        let report = outcomes("topic", "created", &done);
        assert_eq!(report.text, "TOPIC  STATUS\na      created\nb      TOPIC_ALREADY_EXISTS\n");
        assert_eq!(report.json["topics"][1]["error"], "TOPIC_ALREADY_EXISTS");
        assert_eq!(report.json["topics"][0]["error"], Value::Null);
        assert!(report.verdict().is_err());
    }
}
