//! The command line of chronik-server: its grammar, and what the commands that need no running shards do.
//!
//! Never done here: reading variables other than through [`Environment`], starting shards.

mod admin;
mod assignment;
mod cluster;
mod drain;
mod factor;
mod failure;
mod grammar;
mod group;
mod kafka;
mod mover;
mod plan;
mod readers;
mod table;
mod topic;
mod wal;

use std::io::Write as _;
use std::path::PathBuf;

pub use failure::Failure;
pub use grammar::{
    AddArgs, Cli, ClusterArgs, ClusterCommand, Command, ConfigCommand, GroupCommand, KafkaArgs,
    LatencyArgs, MovingArgs, NodeArgs, ReassignArgs, RebalanceArgs, RemoveArgs, ResetArgs, ResetTo,
    ServerArgs, TopicCommand, TopicCreateArgs, WalArgs, WalCommand,
};
pub use kafka::{KafkaError, Refusal};

use self::cluster::Cluster;
use self::kafka::Kafka;
use self::table::Report;
use crate::config::{self, ConfigError, ConfigErrors, FlagValue, Inputs, Loaded};

/// The variables of the process, as text.
#[derive(Debug, Clone, Default)]
pub struct Environment(Vec<(String, String)>);

impl Environment {
    /// What the process was started with. Bytes that are no text are replaced, which no known setting survives.
    #[must_use]
    pub fn of_process() -> Self {
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        Environment(std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect())
    }

    /// The value of a variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What to do after the command line is understood.
#[derive(Debug)]
pub enum Outcome {
    /// The command was carried out.
    Done,
    /// Run the broker with these settings.
    Serve(Box<Loaded>),
}

/// Carries out the command, or loads the settings to serve with.
///
/// # Errors
/// What went wrong, with its exit code.
pub fn dispatch(cli: Cli, environment: &Environment) -> Result<Outcome, Failure> {
    let server = cli.server;
    let load = |args: ServerArgs| load_settings(server.clone().overridden_by(args), environment);
    match cli.command {
        None => Ok(Outcome::Serve(Box::new(load(ServerArgs::default())?))),
        Some(Command::Standalone(args)) => Ok(Outcome::Serve(Box::new(load(args)?))),
        Some(Command::Config { command: ConfigCommand::Check(args) }) => {
            let loaded = load(*args)?;
            for warning in &loaded.warnings {
                eprintln!("warning: {warning}");
            }
            print(&config::render_effective(&loaded.effective))
        }
        Some(Command::Config { command: ConfigCommand::Reference }) => {
            let defaults = config::load(&Inputs::default())?;
            print(&config::render_reference(&defaults.effective))
        }
        Some(Command::Wal { command }) => {
            let findings = wal::run(&command)?;
            print(&findings.text)?;
            findings.verdict.map_err(Failure::from)?;
            Ok(Outcome::Done)
        }
        Some(Command::Latency(args)) => {
            let address = match args.admin {
                Some(address) => address,
                None => load(settings_of(&args.config, &args.node_id))?.config.admin_addr,
            };
            let format = admin::Format::of(args.json, args.hgrm);
            print_page(admin::fetch(address, &format.path())?)
        }
        Some(Command::Topic { command }) => {
            let mut kafka = brokers(command.kafka(), load)?;
            tell(topic::run(&mut kafka, &command)?, command.kafka().json)
        }
        Some(Command::Group { command }) => {
            let mut kafka = brokers(command.kafka(), load)?;
            tell(group::run(&mut kafka, &command)?, command.kafka().json)
        }
        Some(Command::Cluster { command }) => {
            let args = command.args();
            let admin = match args.admin {
                Some(address) => address,
                None => load(settings_of(&args.config, &args.node_id))?.config.admin_addr,
            };
            if matches!(command, ClusterCommand::Status(_)) {
                let query = if args.json { "?format=json" } else { "" };
                return print_page(admin::fetch(admin, &format!("/cluster/status{query}"))?);
            }
            tell(Cluster::new(admin, command.bootstrap()).run(&command)?, args.json)
        }
        Some(Command::Version) => print(&format!("chronik-server {}\n", *grammar::VERSION)),
    }
}

fn settings_of(config: &Option<PathBuf>, node_id: &Option<String>) -> ServerArgs {
    ServerArgs { config: config.clone(), node_id: node_id.clone(), ..ServerArgs::default() }
}

/// The brokers that a command is for: those that it names, or the one on this machine.
fn brokers(
    args: &KafkaArgs,
    load: impl Fn(ServerArgs) -> Result<Loaded, ConfigErrors>,
) -> Result<Kafka, Failure> {
    if let Some(bootstrap) = &args.bootstrap {
        return Ok(Kafka::new(bootstrap));
    }
    let loaded = load(settings_of(&args.config, &args.node_id))?;
    Ok(Kafka::new(&admin::reachable(loaded.config.kafka_addr).to_string()))
}

/// Prints what a command found; what was refused makes it fail.
fn tell(report: Report, json: bool) -> Result<Outcome, Failure> {
    print(&report.to_print(json))?;
    report.verdict()?;
    Ok(Outcome::Done)
}

/// Loads the settings from the file, the variables and these flags.
///
/// # Errors
/// Everything that is wrong with them.
pub fn load_settings(args: ServerArgs, environment: &Environment) -> Result<Loaded, ConfigErrors> {
    if args.take_over {
        return Err(ConfigErrors(vec![ConfigError::ClusterFlagNotAvailable { flag: "take-over" }]));
    }
    let variable = environment.get("CHRONIK_CONFIG").filter(|value| !value.is_empty());
    let file = args.config.clone().or_else(|| variable.map(PathBuf::from));
    let flags = [
        ("data_dir", "data-dir", args.data_dir),
        ("node_id", "node-id", args.node_id),
        ("kafka_addr", "kafka-addr", args.kafka_addr),
        ("kafka_port", "kafka-port", args.kafka_port),
        ("advertised_addr", "advertised-addr", args.advertised_addr),
        ("raft_addr", "raft-addr", args.raft_addr),
        ("admin_addr", "admin-addr", args.admin_addr),
        ("cluster.bootstrap", "bootstrap", args.bootstrap.then(|| "true".to_owned())),
        ("cluster.join", "join", args.join),
    ];
    let flags = flags
        .into_iter()
        .filter_map(|(key, flag, value)| Some(FlagValue { key, flag, value: value? }))
        .collect();
    config::load(&Inputs { file, environment: environment.0.clone(), flags })
}

/// Prints what a broker's admin port has answered, of which the last line may have no end.
fn print_page(mut page: String) -> Result<Outcome, Failure> {
    if !page.ends_with('\n') {
        page.push('\n');
    }
    print(&page)
}

/// Prints to standard output. A reader that has gone away (`| head`) is no failure.
fn print(text: &str) -> Result<Outcome, Failure> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(source) if source.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::Output { source })
        }
        _ => Ok(Outcome::Done),
    }
}
