//! One configuration as DescribeConfigs tells it.

use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsSynonym,
};
use kafka_protocol::protocol::StrBytes;

use super::docs;
use crate::catalog::{ConfigDefinition, ConfigType};

/// From this version on types and documentation are told (KIP-569).
const TYPE_VERSION_MIN: i16 = 3;

/// Where a value comes from, by Kafka's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i8)]
pub(in super::super) enum Source {
    DynamicTopic = 1,
    DynamicBroker = 2,
    DynamicDefaultBroker = 3,
    StaticBroker = 4,
    Default = 5,
}

impl Source {
    pub(in super::super) fn wire(self) -> i8 {
        match self {
            Source::DynamicTopic => 1,
            Source::DynamicBroker => 2,
            Source::DynamicDefaultBroker => 3,
            Source::StaticBroker => 4,
            Source::Default => 5,
        }
    }
}

/// What type of value a configuration has, by Kafka's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueType {
    Boolean,
    String,
    Int,
    Long,
    Double,
    List,
}

impl ValueType {
    pub(super) fn of(definition: &ConfigDefinition) -> ValueType {
        match definition.kind {
            ConfigType::Boolean => ValueType::Boolean,
            ConfigType::Int { .. } => ValueType::Int,
            ConfigType::Long { .. } => ValueType::Long,
            ConfigType::Ratio => ValueType::Double,
            ConfigType::OneOf(_) => ValueType::String,
            ConfigType::ListOf(_) | ConfigType::FreeList => ValueType::List,
        }
    }

    fn wire(self) -> i8 {
        match self {
            ValueType::Boolean => 1,
            ValueType::String => 2,
            ValueType::Int => 3,
            ValueType::Long => 5,
            ValueType::Double => 6,
            ValueType::List => 7,
        }
    }
}

/// A place where a value is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Synonym {
    pub(super) source: Source,
    pub(super) name: &'static str,
    pub(super) value: String,
}

/// A configuration with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: &'static str,
    pub(super) kind: ValueType,
    pub(super) value: Option<String>,
    pub(super) source: Source,
    pub(super) is_read_only: bool,
    /// Where it is set, what counts first.
    pub(super) synonyms: Vec<Synonym>,
}

impl Entry {
    /// For an answer of this version.
    pub(super) fn into_result(
        self,
        version: i16,
        synonyms: bool,
        documentation: bool,
    ) -> DescribeConfigsResourceResult {
        let mut result = DescribeConfigsResourceResult::default()
            .with_name(StrBytes::from_static_str(self.name))
            .with_value(self.value.map(StrBytes::from_string))
            .with_read_only(self.is_read_only)
            .with_config_source(self.source.wire());
        if synonyms {
            let synonyms = self.synonyms.into_iter().map(|synonym| {
                DescribeConfigsSynonym::default()
                    .with_name(StrBytes::from_static_str(synonym.name))
                    .with_value(Some(StrBytes::from_string(synonym.value)))
                    .with_source(synonym.source.wire())
            });
            result = result.with_synonyms(synonyms.collect());
        }
        if version >= TYPE_VERSION_MIN {
            let text = if documentation { docs::of(self.name) } else { None };
            result = result
                .with_config_type(self.kind.wire())
                .with_documentation(text.map(StrBytes::from_static_str));
        }
        result
    }
}
