//! Settings: the only reader of the configuration file and of `CHRONIK_*` variables.
//!
//! Sources, each overriding the one before: defaults, the TOML file (`--config`), the environment, flags. A setting
//! is declared once, in `settings.rs`; its struct field, TOML key, variable name, range check, the output of
//! `config check` and the reference all come from that declaration.
//!
//! Never done here: opening ports, touching the data directory, logging. Loading is a function of its [`Inputs`], so
//! tests need no process environment.
//!
//! Invariants
//! - I1 Nothing given is ignored: a key that is not a setting is an error with its place. A variable that resembles no
//!   setting is a warning only, since the environment is shared.
//! - I2 All problems are reported at once, not one per attempt.
//! - I3 The name of a value carries its unit (`_ms`, `_bytes`); values never do.

mod error;
mod given;
mod hint;
mod kind;
mod loader;
mod settings;
mod show;

pub use error::{ConfigError, ConfigErrors, ConfigWarning, ValueProblem};
pub use given::{FlagValue, Inputs, Source, environment_name};
pub use kind::{ClusterNode, HostPort, Rack, ReplicaSelector, Secret};
pub use loader::{Effective, Loaded, Range, SettingInfo, load, secret_missing};
pub use settings::{
    ClusterConfig, Config, GroupConfig, KafkaConfig, SETTINGS, ShardConfig, WalConfig, section_doc,
};
pub use show::{render_effective, render_reference};
