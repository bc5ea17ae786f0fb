//! `chronik-server wal inspect|verify|repair`: looks into the logs of a broker that does not run.
//!
//! Invariants
//! - I1 The data directory is locked meanwhile, so that no broker writes what is read here.
//! - I2 Only `repair --accept-loss` changes anything, and it says what is lost.

use std::fs::File;
use std::path::{Path, PathBuf};

use chronik_engine::disk_std::StdDisk;
use chronik_engine::wal::block::BlockKind;
use chronik_engine::wal::inspect::{FileEnd, FileSummary, Inspection, Region, Verification};
use chronik_engine::wal::inspect::{inspect, verify};
use chronik_engine::wal::repair::{RepairReport, repair};
use chronik_engine::wal::{TornTail, WalError};
use futures_lite::future::block_on;
use serde_json::{Value, json};
use thiserror::Error;

mod names;

use self::names::Names;
use super::grammar::WalCommand;
use crate::identity::{FORMATION_FILE, IdentityError, lock_directory};
use crate::startup::exit_code;

/// What there is to do about a damaged log of a node of a cluster.
pub(super) const JOINS_ANEW: &str = "What other nodes of the cluster have, too, comes back when this node joins them anew with an \
    empty data_dir; keep the old one: partitions whose only replica was here are nowhere else";

/// Why the logs are not shown, or not whole.
#[derive(Debug, Error)]
pub enum WalToolError {
    #[error(
        "{}: neither a data directory nor a directory with a write-ahead log (*.wal)", dir.display()
    )]
    NoLog { dir: PathBuf },
    #[error("{}: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Locked(#[from] IdentityError),
    #[error("{}: {source}", dir.display())]
    Wal {
        dir: PathBuf,
        #[source]
        source: WalError,
    },
    #[error(
        "{regions} damaged regions; if there is no other copy, `chronik-server wal repair --accept-loss` gives them up"
    )]
    Damaged { regions: usize },
    #[error(
        "{regions} damaged regions; nothing was changed: repeat with --accept-loss to give them up"
    )]
    LossNotAccepted { regions: usize },
    #[error("{regions} damaged regions. {}", JOINS_ANEW)]
    DamagedOfCluster { regions: usize },
    #[error("{regions} damaged regions cannot be repaired; restore the directory from a backup")]
    NotRepairable { regions: usize },
    #[error(
        "{}: belongs to a node of a cluster, whose log would contradict those of the others. {}", dir.display(), JOINS_ANEW
    )]
    OfCluster { dir: PathBuf },
}

impl WalToolError {
    pub(super) fn exit_code(&self) -> i32 {
        match self {
            WalToolError::Damaged { .. }
            | WalToolError::DamagedOfCluster { .. }
            | WalToolError::LossNotAccepted { .. }
            | WalToolError::NotRepairable { .. } => exit_code::WAL_DAMAGED,
            WalToolError::NoLog { .. }
            | WalToolError::Unreadable { .. }
            | WalToolError::Locked(_)
            | WalToolError::OfCluster { .. }
            | WalToolError::Wal { .. } => exit_code::DATA_DIR,
        }
    }
}

/// What a command found: text for standard output, and how it ends after that.
#[derive(Debug)]
pub(super) struct Findings {
    pub text: String,
    pub verdict: Result<(), WalToolError>,
}

/// Carries out a command on every log that the directory holds.
pub(super) fn run(command: &WalCommand) -> Result<Findings, WalToolError> {
    let args = command.args();
    let logs = Logs::open(&args.dir)?;
    let of_cluster = is_of_cluster(&args.dir);
    if matches!(command, WalCommand::Repair { accept_loss: true, .. }) && of_cluster {
        // Its log would contradict those of the other replicas, entry by entry, and nothing would ever tell.
        return Err(WalToolError::OfCluster { dir: args.dir.clone() });
    }
    let mut text = String::new();
    let mut rows: Vec<Value> = Vec::new();
    let (mut damaged, mut unrepairable) = (0, 0);
    let mut repaired = true;
    let mut names = Names::default();
    for dir in &logs.dirs {
        let failed = |source| WalToolError::Wal { dir: dir.clone(), source };
        match command {
            WalCommand::Inspect(_) => {
                let walk = inspect(&StdDisk, dir, |row| names.note(row));
                let found = block_on(walk).map_err(failed)?;
                text.push_str(&inspection_text(dir, &found, &names));
                rows.push(inspection_json(dir, &found, &names));
            }
            WalCommand::Verify(_) => {
                let found = block_on(verify(&StdDisk, dir)).map_err(failed)?;
                damaged += found.damage.len();
                text.push_str(&verification_text(dir, &found));
                rows.push(verification_json(dir, &found));
            }
            WalCommand::Repair { accept_loss, .. } => {
                let walk = repair(&StdDisk, dir, *accept_loss, |row| names.note(row));
                let found = block_on(walk).map_err(failed)?;
                damaged += found.regions.len();
                unrepairable +=
                    found.regions.iter().filter(|region| region.obstacle.is_some()).count();
                repaired &= found.repaired || found.regions.is_empty();
                text.push_str(&repair_text(dir, &found, &names));
                rows.push(repair_json(dir, &found, &names));
            }
        }
    }
    let verdict = match command {
        WalCommand::Verify(_) | WalCommand::Repair { .. } if damaged > 0 && of_cluster => {
            Err(WalToolError::DamagedOfCluster { regions: damaged })
        }
        WalCommand::Verify(_) if damaged > 0 => Err(WalToolError::Damaged { regions: damaged }),
        WalCommand::Repair { .. } if unrepairable > 0 => {
            Err(WalToolError::NotRepairable { regions: unrepairable })
        }
        WalCommand::Repair { .. } if !repaired => {
            Err(WalToolError::LossNotAccepted { regions: damaged })
        }
        _ => Ok(()),
    };
    let text = if args.json { format!("{}\n", json!({ "logs": rows })) } else { text };
    Ok(Findings { text, verdict })
}

/// Whether a data directory, or the one that a shard's log lies in, is of a node of a cluster.
fn is_of_cluster(dir: &Path) -> bool {
    let absolute = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_path_buf());
    absolute.ancestors().take(4).any(|dir| dir.join(FORMATION_FILE).exists())
}

/// The log directories below what the user named, locked as long as this lives (I1).
#[derive(Debug)]
struct Logs {
    dirs: Vec<PathBuf>,
    _lock: Option<File>,
}

impl Logs {
    fn open(dir: &Path) -> Result<Logs, WalToolError> {
        let absolute = std::fs::canonicalize(dir)
            .map_err(|source| WalToolError::Unreadable { path: dir.to_path_buf(), source })?;
        let shards = absolute.join("shards");
        if shards.is_dir() {
            let mut dirs: Vec<PathBuf> =
                entries(&shards)?.into_iter().map(|shard| shard.join("wal")).collect();
            dirs.retain(|dir| dir.is_dir());
            dirs.sort();
            return Ok(Logs { dirs, _lock: Some(lock_directory(&absolute)?) });
        }
        let log = if absolute.join("wal").is_dir() { absolute.join("wal") } else { absolute };
        let is_log = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "wal");
        if !entries(&log)?.iter().any(is_log) {
            return Err(WalToolError::NoLog { dir: dir.to_path_buf() });
        }
        // <data>/shards/<nnn>/wal; a log that was copied elsewhere has no data directory and needs no lock.
        let data_dir = log.ancestors().nth(3).filter(|data| data.join("identity.toml").exists());
        let lock = data_dir.map(lock_directory).transpose()?;
        Ok(Logs { dirs: vec![log], _lock: lock })
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, WalToolError> {
    let unreadable = |source| WalToolError::Unreadable { path: dir.to_path_buf(), source };
    let listed = std::fs::read_dir(dir).map_err(unreadable)?;
    listed.map(|entry| entry.map(|entry| entry.path()).map_err(unreadable)).collect()
}

fn shard_text(shard: Option<uuid::Uuid>) -> String {
    shard.map_or_else(|| "no blocks".to_owned(), |shard| format!("shard {shard}"))
}

fn inspection_text(dir: &Path, found: &Inspection, names: &Names) -> String {
    let files: String = found.files.iter().map(FileSummary::to_string).collect();
    let groups: String = found.groups().into_iter().map(|group| names.text(group) + "\n").collect();
    format!("{} ({})\n{files}{groups}\n", dir.display(), shard_text(found.shard))
}

fn verification_text(dir: &Path, found: &Verification) -> String {
    let damage: String = found.damage.iter().map(region_text).collect();
    let verdict = match (&found.damage[..], &found.torn) {
        ([], None) => "all whole",
        ([], Some(_)) => "all whole but for a torn tail",
        _ => "DAMAGED",
    };
    let torn = found.torn.as_ref().map(|(path, torn)| {
        let TornTail { position, bytes, fault } = torn;
        let path = path.display();
        format!(
            "  {path} at byte {position}: a torn tail of {bytes} bytes, cut at the next start: {fault}\n"
        )
    });
    format!(
        "{} ({}): {} files, {} blocks, {} bytes: {verdict}\n{damage}{}",
        dir.display(),
        shard_text(found.shard),
        found.files,
        found.blocks,
        found.bytes,
        torn.unwrap_or_default(),
    )
}

fn region_text(region: &Region) -> String {
    format!(
        "  {} at byte {}: {} bytes damaged: {}\n",
        region.path.display(),
        region.position,
        region.bytes,
        region.fault
    )
}

fn repair_text(dir: &Path, found: &RepairReport, names: &Names) -> String {
    let mut text = match (found.regions.is_empty(), found.repaired) {
        (true, _) => format!("{}: nothing to repair\n", dir.display()),
        (false, true) => format!("{}: repaired\n", dir.display()),
        (false, false) => format!("{}: damaged\n", dir.display()),
    };
    let lost = if found.repaired { "lost" } else { "would be lost" };
    for report in &found.regions {
        text.push_str(&region_text(&report.region));
        for run in &report.lost {
            let records = run.offsets.end.0 - run.offsets.start.0;
            text.push_str(&format!(
                "    {lost}: {}, {} entries from {}, {records} offsets from {}\n",
                names.text(run.group),
                run.count,
                run.first,
                run.offsets.start
            ));
        }
        if let Some(obstacle) = &report.obstacle {
            text.push_str(&format!("    cannot be repaired: {obstacle}\n"));
        }
    }
    for group in &found.groups_lost {
        text.push_str(&format!("  {lost}: {} as a whole\n", names.text(*group)));
    }
    text
}

fn region_json(region: &Region) -> Value {
    json!({
        "path": region.path,
        "position": region.position,
        "bytes": region.bytes,
        "checkpoint": region.checkpoint,
        "fault": region.fault.to_string(),
    })
}

fn torn_json(path: &Path, torn: &TornTail) -> Value {
    json!({
        "path": path,
        "position": torn.position,
        "bytes": torn.bytes,
        "fault": torn.fault.to_string(),
    })
}

fn inspection_json(dir: &Path, found: &Inspection, names: &Names) -> Value {
    let files = found.files.iter().map(|file| {
        let blocks = file.blocks.iter().map(|block| {
            json!({
                "position": block.position,
                "sequence": block.sequence.0,
                "kind": kind_name(block.kind),
                "bytes": block.bytes,
                "records": block.records,
                "entries": block.entries,
                "batches": block.batches,
                "offsets": block.offsets,
                "groups": block.groups.iter().map(|group| group.0).collect::<Vec<_>>(),
            })
        });
        let torn = match &file.end {
            FileEnd::Open { torn: Some(torn) } => torn_json(&file.path, torn),
            _ => Value::Null,
        };
        json!({
            "path": file.path,
            "bytes": file.len,
            "torn": torn,
            "end_position": file.end_position,
            "end": end_name(file.end),
            "blocks": blocks.collect::<Vec<_>>(),
            "damage": file.damage.iter().map(region_json).collect::<Vec<_>>(),
        })
    });
    let groups = found.groups().into_iter().map(|group| names.json(group));
    json!({
        "dir": dir,
        "shard": shard_json(found.shard),
        "files": files.collect::<Vec<_>>(),
        "groups": groups.collect::<Vec<_>>(),
    })
}

fn verification_json(dir: &Path, found: &Verification) -> Value {
    json!({
        "dir": dir,
        "shard": shard_json(found.shard),
        "files": found.files,
        "blocks": found.blocks,
        "bytes": found.bytes,
        "damage": found.damage.iter().map(region_json).collect::<Vec<_>>(),
        "torn": found.torn.as_ref().map(|(path, torn)| torn_json(path, torn)),
        "without_footer": found.without_footer,
    })
}

fn repair_json(dir: &Path, found: &RepairReport, names: &Names) -> Value {
    let regions = found.regions.iter().map(|report| {
        let lost = report.lost.iter().map(|run| {
            let mut lost = names.json(run.group);
            lost["first_index"] = run.first.0.into();
            lost["entries"] = run.count.into();
            lost["first_offset"] = run.offsets.start.0.into();
            lost["end_offset"] = run.offsets.end.0.into();
            lost
        });
        let mut region = region_json(&report.region);
        region["lost"] = lost.collect::<Vec<_>>().into();
        region["obstacle"] = report.obstacle.map(|obstacle| obstacle.to_string()).into();
        region
    });
    json!({
        "dir": dir,
        "repaired": found.repaired,
        "regions": regions.collect::<Vec<_>>(),
        "groups_lost": found.groups_lost.iter().map(|group| names.json(*group)).collect::<Vec<_>>(),
    })
}

fn shard_json(shard: Option<uuid::Uuid>) -> Value {
    shard.map(|shard| shard.to_string()).into()
}

fn kind_name(kind: BlockKind) -> &'static str {
    match kind {
        BlockKind::Checkpoint => "checkpoint",
        BlockKind::Data => "data",
        BlockKind::Mark => "mark",
        BlockKind::CleanClose => "clean_close",
        BlockKind::Footer => "footer",
        BlockKind::Repair => "repair",
    }
}

fn end_name(end: FileEnd) -> &'static str {
    match end {
        FileEnd::Footer => "footer",
        FileEnd::NoFooter => "no_footer",
        FileEnd::Open { .. } => "open",
        FileEnd::Unstarted => "unstarted",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use chronik_engine::ids::{GroupId, Offset, RaftIndex, ReplicaId, Term};
    use chronik_engine::wal::record::{EntryKind, GroupMeta, HardState, LogEntry, WalRecord};
    use chronik_engine::wal::{Wal, WalOptions};
    use uuid::Uuid;

    use super::super::grammar::WalArgs;
    use super::*;
    use crate::catalog::{CatalogCommand, NewTopic, PartitionKind, PartitionTag, TopicId};

    /// A log with blocks of one record each. Gives back where each begins.
    fn log(dir: &Path, blocks: &[WalRecord]) -> Vec<u64> {
        let options = WalOptions {
            file_bytes: 64 << 10,
            first_file_bytes: 64 << 10,
            ballast_bytes: 0,
            ..WalOptions::new(dir, Uuid::from_u128(1))
        };
        block_on(async {
            let (wal, _, _) = Wal::open(StdDisk, options).await.unwrap();
            let mut positions = Vec::new();
            for record in blocks {
                positions.push(wal.append(std::slice::from_ref(record)).await.unwrap().position);
            }
            positions
        })
    }

    fn flip(dir: &Path, at: u64) {
        let path = dir.join("00000000000000000001.wal");
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&[0xff], at).unwrap();
    }

    fn args(dir: &Path, json: bool) -> WalArgs {
        WalArgs { dir: dir.to_owned(), json }
    }

    #[test]
    fn given_a_torn_tail_when_verified_then_it_is_named_and_is_no_damage_but_what_is_before_it_is()
    {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path();
        let group = GroupId(3);
        let created = WalRecord::GroupCreated { group, meta: GroupMeta::default() };
        let state = HardState { term: Term(1), vote: ReplicaId(1), ..HardState::default() };
        let vote = WalRecord::HardState { group, state };
        let positions = log(dir, &[created, vote.clone(), vote]);
        let verify = |json| run(&WalCommand::Verify(args(dir, json))).unwrap();
        let whole = verify(false);
        assert!(whole.text.ends_with(": all whole\n"), "{}", whole.text);

        flip(dir, positions[2] + 70);
        let torn = verify(false);
        assert!(torn.verdict.is_ok());
        assert!(torn.text.contains("all whole but for a torn tail"), "{}", torn.text);
        let place = format!("at byte {}: a torn tail of 4096 bytes, cut", positions[2]);
        assert!(torn.text.contains(&place), "{}", torn.text);
        let json: Value = serde_json::from_str(&verify(true).text).unwrap();
        assert_eq!(json["logs"][0]["torn"]["position"], positions[2]);
        assert_eq!(json["logs"][0]["damage"], json!([]));

        flip(dir, positions[0] + 70);
        let damaged = verify(false);
        assert!(matches!(damaged.verdict, Err(WalToolError::Damaged { regions: 1 })));
        assert!(damaged.text.contains(": DAMAGED\n"), "{}", damaged.text);
    }
    fn entry(group: GroupId, index: u64, kind: EntryKind, payload: Vec<u8>) -> WalRecord {
        let is_batch = kind == EntryKind::Batch;
        let entry = LogEntry {
            index: RaftIndex(index),
            term: Term(1),
            kind,
            base_offset: Offset(if is_batch {
                10 * (i64::try_from(index).unwrap() - 1)
            } else {
                0
            }),
            offset_count: if is_batch { 10 } else { 0 },
            max_timestamp_ms: -1,
            payload: payload.into(),
        };
        WalRecord::Entry { group, entry }
    }

    /// The log of a shard with one partition, and if it is the first, of the catalog.
    fn shard(data: &Path, shard: &str, group: GroupId, partition: u32) -> (PathBuf, Vec<u64>) {
        let dir = data.join("shards").join(shard).join("wal");
        let id = TopicId(Uuid::from_u128(7));
        let topic = NewTopic {
            name: "orders".to_owned(),
            id,
            internal: false,
            partitions: Vec::new(),
            configs: std::collections::BTreeMap::new(),
        };
        let command = CatalogCommand::CreateTopics { topics: vec![topic], avoid: Vec::new() };
        let command = command.encode().unwrap();
        let kind = PartitionKind::Records;
        let tag = PartitionTag { topic: id, partition, kind }.encode();
        let mut blocks = Vec::new();
        if shard == "000" {
            let meta = GroupMeta::default();
            blocks.push(WalRecord::GroupCreated { group: GroupId::META, meta });
            blocks.push(entry(GroupId::META, 1, EntryKind::Command, command));
        }
        let meta = GroupMeta { tag, ..GroupMeta::default() };
        blocks.push(WalRecord::GroupCreated { group, meta });
        blocks.extend((1..4).map(|index| entry(group, index, EntryKind::Batch, vec![1; 80])));
        let positions = log(&dir, &blocks);
        (dir, positions)
    }

    #[test]
    fn given_the_catalog_at_hand_when_groups_are_named_then_topic_and_partition_stand_beside_them()
    {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path();
        shard(data, "000", GroupId(1), 0);
        let (second, positions) = shard(data, "001", GroupId(2), 1);
        flip(&second, positions[2] + 140);
        let repair = |dir, json| {
            let args = args(dir, json);
            run(&WalCommand::Repair { args, accept_loss: false }).unwrap().text
        };
        let inspected = run(&WalCommand::Inspect(args(data, false))).unwrap().text;
        for line in ["group 0 (the catalog)", "group 1 (orders, partition 0)"] {
            assert!(inspected.lines().any(|found| found == line), "{inspected}");
        }
        let text = repair(data, false);
        let lost =
            "would be lost: group 2 (orders, partition 1), 1 entries from 2, 10 offsets from 10";
        assert!(text.contains(lost), "{text}");
        let json: Value = serde_json::from_str(&repair(data, true)).unwrap();
        let lost = &json["logs"][1]["regions"][0]["lost"][0];
        assert_eq!((&lost["topic"], &lost["partition"]), (&json!("orders"), &json!(1)));

        // One shard's log alone knows the topic by its id.
        let text = repair(&second, false);
        let named = format!("group 2 (topic id {}, partition 1)", Uuid::from_u128(7));
        assert!(text.contains(&named), "{text}");
    }
}
