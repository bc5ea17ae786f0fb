//! What a topic or a broker may be given: values that are valid, and that this version acts on.

use kafka_protocol::ResponseError;

use super::Refusal;
use crate::catalog::{ConfigDefinition, ConfigProblem, ConfigType, config_definition};

/// Checks one configuration of a topic by its name and value.
///
/// # Errors
/// Why it is refused.
pub fn check_topic_config(name: &str, value: &str) -> Result<(), Refusal> {
    let Some(definition) = config_definition(name) else {
        return Err((ResponseError::InvalidConfig, format!("Unknown topic config name: {name}")));
    };
    check(definition, name, value)
}

/// Checks a value for what `definition` says; `name` is what the client calls it.
///
/// # Errors
/// Why it is refused.
pub fn check(definition: &ConfigDefinition, name: &str, value: &str) -> Result<(), Refusal> {
    let refuse = |why| Err((ResponseError::InvalidConfig, why));
    if let Err(problem) = definition.check(value) {
        return refuse(problem_message(definition.kind, name, value, &problem));
    }
    match unavailable(definition.name, value) {
        Some(why) => refuse(format!("Invalid value {value} for configuration {name}: {why}")),
        None => Ok(()),
    }
}

/// Why the broker cannot do what this value says. What only tunes Kafka's own files, and so is without effect here, is
/// taken: it changes nothing that a client could rely on, and tools set it.
fn unavailable(name: &str, value: &str) -> Option<&'static str> {
    let value = value.trim();
    let is_true = value.eq_ignore_ascii_case("true");
    match name {
        "remote.storage.enable" | "searchable.enabled" if is_true => Some(LATER),
        "compression.type" if value != "producer" => Some(
            "it is not available, as the broker stores records in the compression they came in; set producer",
        ),
        "unclean.leader.election.enable" if is_true => Some(
            "it is not available, as a replica that lacks acknowledged records never becomes leader; set false",
        ),
        _ => None,
    }
}

const LATER: &str = "it is not available in this version";

/// What Kafka would say.
fn problem_message(kind: ConfigType, name: &str, value: &str, problem: &ConfigProblem) -> String {
    if matches!(problem, ConfigProblem::TooLong { .. }) {
        return format!("Invalid value for configuration {name}: {problem}");
    }
    let trimmed = value.trim();
    let out_of_range = |min: i64, max: i64, parsed: i64| {
        if parsed < min {
            format!("Value must be at least {min}")
        } else {
            format!("Value must be no more than {max}")
        }
    };
    let why = match kind {
        ConfigType::Boolean => "Expected value to be either true or false".to_owned(),
        ConfigType::Int { min, max } => match trimmed.parse::<i32>() {
            Ok(parsed) => out_of_range(min.into(), max.into(), parsed.into()),
            Err(_) => "Not a number of type INT".to_owned(),
        },
        ConfigType::Long { min } => match trimmed.parse::<i64>() {
            Ok(parsed) => out_of_range(min, i64::MAX, parsed),
            Err(_) => "Not a number of type LONG".to_owned(),
        },
        ConfigType::Ratio => match trimmed.parse::<f64>() {
            Ok(parsed) if parsed > 1.0 => "Value must be no more than 1".to_owned(),
            Ok(_) => "Value must be at least 0".to_owned(),
            Err(_) => "Not a number of type DOUBLE".to_owned(),
        },
        ConfigType::OneOf(words) | ConfigType::ListOf(words) => {
            format!("String must be one of: {}", words.join(", "))
        }
        ConfigType::FreeList => "Not a list".to_owned(),
    };
    format!("Invalid value {value} for configuration {name}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_wrong_values_when_checked_then_the_message_is_kafkas() {
        let cases = [
            ("retention.ms", "soon", "Not a number of type LONG"),
            ("retention.ms", "-2", "Value must be at least -1"),
            ("max.message.bytes", "1.5", "Not a number of type INT"),
            ("compression.gzip.level", "10", "Value must be no more than 9"),
            ("preallocate", "1", "Expected value to be either true or false"),
            ("message.timestamp.type", "now", "String must be one of: CreateTime, LogAppendTime"),
        ];
        for (name, value, why) in cases {
            let expected = format!("Invalid value {value} for configuration {name}: {why}");
            assert_eq!(
                check_topic_config(name, value),
                Err((ResponseError::InvalidConfig, expected))
            );
        }
        let unknown = check_topic_config("retention.msec", "1").unwrap_err();
        assert_eq!(unknown.1, "Unknown topic config name: retention.msec");
    }

    #[test]
    fn given_valid_values_that_nothing_acts_on_when_checked_then_they_are_refused() {
        for (name, value) in
            [("compression.type", "zstd"), ("unclean.leader.election.enable", "TRUE")]
        {
            let refused = check_topic_config(name, value).unwrap_err();
            assert_eq!(refused.0, ResponseError::InvalidConfig);
            assert!(refused.1.contains("not available"), "{}", refused.1);
        }
        assert_eq!(check_topic_config("durability", "relaxed"), Ok(()));
        assert_eq!(check_topic_config("compression.type", "producer"), Ok(()));
        assert_eq!(check_topic_config("unclean.leader.election.enable", "false"), Ok(()));
    }
}
