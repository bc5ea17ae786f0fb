//! What was given where: reads the TOML file, the environment and the flags into one map from key to value and place.
//!
//! Values are not interpreted here, except that TOML knows numbers from text. Later sources replace earlier ones.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, ConfigWarning};
use super::hint;
use super::settings::{SECTIONS, SETTINGS};

/// Where a value comes from. The order is the precedence: a later one wins.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Default,
    File { path: Arc<Path>, line: usize },
    Environment { name: String },
    Flag { name: &'static str },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            Source::File { path, line } => write!(f, "{}:{line}", path.display()),
            Source::Environment { name } => write!(f, "environment variable {name}"),
            Source::Flag { name } => write!(f, "flag --{name}"),
        }
    }
}

impl Source {
    /// How far a source reaches over others; the line within a file does not count.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Source::Default => 0,
            Source::File { .. } => 1,
            Source::Environment { .. } => 2,
            Source::Flag { .. } => 3,
        }
    }
}

/// A flag of the command line that sets a setting.
#[derive(Debug, Clone)]
pub struct FlagValue {
    /// The setting, as in the TOML file.
    pub key: &'static str,
    /// The flag without its dashes.
    pub flag: &'static str,
    pub value: String,
}

/// Everything that settings are made of.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    pub file: Option<PathBuf>,
    /// All variables of the process; those that do not concern Chronik are passed over.
    pub environment: Vec<(String, String)>,
    pub flags: Vec<FlagValue>,
}

/// A value as it was written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Raw {
    /// From a flag or a variable: not yet known to be a number or anything else.
    Untyped(String),
    Text(String),
    Integer(i128),
    Boolean(bool),
    List(Vec<Raw>),
    Table(BTreeMap<String, Raw>),
    Other(&'static str),
}

#[derive(Debug)]
pub(super) struct Given {
    pub raw: Raw,
    pub source: Source,
}

#[derive(Debug, Default)]
pub(super) struct Collected {
    pub given: BTreeMap<&'static str, Given>,
    pub errors: Vec<ConfigError>,
    pub warnings: Vec<ConfigWarning>,
}

/// The variable that sets `key`: `wal.file_bytes` is CHRONIK_WAL_FILE_BYTES.
#[must_use]
pub fn environment_name(key: &str) -> String {
    format!("CHRONIK_{}", key.replace('.', "_").to_uppercase())
}

pub(super) fn collect(inputs: &Inputs) -> Collected {
    let mut collected = Collected::default();
    if let Some(path) = &inputs.file {
        match std::fs::read_to_string(path) {
            Ok(text) => collected.add_file(path, &text),
            Err(source) => {
                collected.errors.push(ConfigError::FileUnreadable { path: path.clone(), source })
            }
        }
    }
    for (name, value) in &inputs.environment {
        collected.add_variable(name, value);
    }
    for flag in &inputs.flags {
        let source = Source::Flag { name: flag.flag };
        assert!(known_key(flag.key).is_some(), "flag --{} sets no setting", flag.flag);
        collected.given.insert(flag.key, Given { raw: Raw::Untyped(flag.value.clone()), source });
    }
    collected
}

fn known_key(key: &str) -> Option<&'static str> {
    SETTINGS.iter().map(|setting| setting.key).find(|known| *known == key)
}

impl Collected {
    fn add_file(&mut self, path: &Path, text: &str) {
        let shared: Arc<Path> = Arc::from(path);
        let at = |span: std::ops::Range<usize>| Source::File {
            path: Arc::clone(&shared),
            line: line_of(text, span.start),
        };
        let root = match DeTable::parse(text) {
            Ok(root) => root,
            Err(error) => {
                self.errors.push(ConfigError::FileSyntax {
                    path: path.to_path_buf(),
                    line: line_of(text, error.span().map_or(0, |span| span.start)),
                    problem: error.message().to_owned(),
                });
                return;
            }
        };
        for (name, value) in root.get_ref() {
            let section = SECTIONS.iter().copied().find(|section| *section == name.get_ref());
            match (section, value.get_ref()) {
                (Some(section), DeValue::Table(table)) => {
                    for (inner, value) in table {
                        let key = format!("{section}.{}", inner.get_ref());
                        self.add_value(key, raw_of(value), at(inner.span()));
                    }
                }
                (Some(section), _) => {
                    let place = at(name.span());
                    self.errors.push(ConfigError::SectionIsNotATable { place, section });
                }
                (None, _) => {
                    self.add_value(name.get_ref().to_string(), raw_of(value), at(name.span()));
                }
            }
        }
    }

    fn add_value(&mut self, key: String, raw: Raw, place: Source) {
        if let Some(known) = known_key(&key) {
            self.given.insert(known, Given { raw, source: place });
        } else if let Some(feature) = hint::planned_feature(&key) {
            self.errors.push(ConfigError::NotAvailable { place, key, feature });
        } else {
            let known = SETTINGS.iter().map(|setting| setting.key).chain(SECTIONS.iter().copied());
            let hint = hint::nearest(&key, known).map(str::to_owned);
            self.errors.push(ConfigError::UnknownKey { place, key, hint });
        }
    }

    fn add_variable(&mut self, name: &str, value: &str) {
        let place = || Source::Environment { name: name.to_owned() };
        if name == "OBJECT_STORE_BACKEND" {
            if value == "local" {
                self.warnings.push(ConfigWarning::ObjectStoreIgnored);
            } else {
                self.errors.push(ConfigError::NotAvailable {
                    place: place(),
                    key: name.to_owned(),
                    feature: "an object store",
                });
            }
            return;
        }
        let Some(rest) = name.strip_prefix("CHRONIK_") else { return };
        // The path of the configuration file: read before this, together with --config.
        if name == "CHRONIK_CONFIG" {
            return;
        }
        let known = SETTINGS.iter().find(|setting| environment_name(setting.key) == name);
        if let Some(setting) = known {
            let raw = Raw::Untyped(value.to_owned());
            self.given.insert(setting.key, Given { raw, source: place() });
            return;
        }
        if hint::is_service_variable(name, value) {
            self.warnings.push(ConfigWarning::ServiceVariableIgnored { name: name.to_owned() });
            return;
        }
        let key = name.to_owned();
        if let Some(feature) = hint::planned_feature(&rest.to_lowercase()) {
            self.errors.push(ConfigError::NotAvailable { place: place(), key, feature });
            return;
        }
        let names: Vec<String> =
            SETTINGS.iter().map(|setting| environment_name(setting.key)).collect();
        match hint::nearest(name, names.iter().map(String::as_str)) {
            Some(meant) => {
                let hint = Some(meant.to_owned());
                self.errors.push(ConfigError::UnknownKey { place: place(), key, hint });
            }
            // The environment is shared: scripts and tools around the broker use the prefix, too. What resembles no
            // setting was hardly meant as one.
            None => self.warnings.push(ConfigWarning::UnknownVariableIgnored { name: key }),
        }
    }
}

fn line_of(text: &str, position: usize) -> usize {
    text.bytes().take(position).filter(|byte| *byte == b'\n').count() + 1
}

fn raw_of(value: &Spanned<DeValue<'_>>) -> Raw {
    match value.get_ref() {
        DeValue::String(text) => Raw::Text(text.to_string()),
        // TOML integers are at most 64 bits, so that a value which does not parse is out of every range.
        DeValue::Integer(integer) => i128::from_str_radix(integer.as_str(), integer.radix())
            .map_or(Raw::Other("a number out of range"), Raw::Integer),
        DeValue::Float(_) => Raw::Other("a number with a fraction"),
        DeValue::Boolean(value) => Raw::Boolean(*value),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Array(items) => Raw::List(items.iter().map(raw_of).collect()),
        DeValue::Table(table) => Raw::Table(
            table.iter().map(|(key, value)| (key.get_ref().to_string(), raw_of(value))).collect(),
        ),
    }
}

/// A value in a variable or flag that must be structured (a list of nodes) is written as in TOML.
pub(super) fn raw_of_toml_text(text: &str) -> Option<Raw> {
    DeValue::parse(text).ok().map(|value| raw_of(&value))
}
