//! The formats of commands and checkpoints: golden files, written anew with `CHRONIK_GOLDEN_WRITE=1`, which is right
//! only together with a new version byte.

use super::store::{ExpiredOffset, SavedGroup, SavedMember};
use super::*;

fn text(value: &str) -> String {
    value.to_owned()
}

fn offset(offset: i64, expires_ms: Option<i64>) -> SavedOffset {
    SavedOffset {
        offset,
        raft_group: GroupId(300),
        leader_epoch: 3,
        metadata: text("note"),
        committed_ms: 1_700_000_000_000,
        expires_ms,
    }
}

fn member(id: &str, instance_id: Option<&str>) -> SavedMember {
    SavedMember {
        id: text(id),
        instance_id: instance_id.map(text),
        client_id: text("client"),
        client_host: text("/127.0.0.1"),
        rebalance_timeout_ms: 60_000,
        session_timeout_ms: 10_000,
        subscription: vec![0, 1, 2],
        assignment: vec![3; 5],
    }
}

/// Each kind, in an order after which something of everything is left.
fn commands() -> Vec<GroupCommand> {
    let (group, other) = (text("group"), text("other"));
    let members = vec![member("a", None), member("b", Some("instance"))];
    let saved = SavedGroup {
        generation: 300,
        protocol_type: text("consumer"),
        protocol: Some(text("range")),
        leader: Some(text("a")),
        changed_ms: 1_700_000_000_001,
        members,
    };
    let offsets = vec![
        (text("orders"), 0, offset(5, None)),
        (text("orders"), 70_000, offset(1 << 40, Some(7))),
        (text("gone"), 1, offset(0, None)),
        (text("old"), 2, offset(-1, None)),
    ];
    let expired = vec![ExpiredOffset {
        topic: text("old"),
        partition: 2,
        committed_ms: 1_700_000_000_000,
        raft_group: GroupId(300),
    }];
    vec![
        GroupCommand::Save { group: group.clone(), saved },
        GroupCommand::Save { group: text("empty"), saved: SavedGroup::default() },
        GroupCommand::Commit { group: group.clone(), offsets: offsets.clone() },
        GroupCommand::Commit { group: other.clone(), offsets },
        GroupCommand::DeleteOffsets { group: other, partitions: vec![(text("orders"), 0)] },
        GroupCommand::DeleteGroup { group: text("nobody") },
        GroupCommand::Expire { group, offsets: expired, with_group: true },
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(line: &str) -> Vec<u8> {
    let digits = line.as_bytes().chunks_exact(2);
    digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

/// The file: one line of hex per command, then the state that they come to.
#[test]
fn given_the_golden_file_when_read_then_it_is_what_this_version_writes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/groups/golden/v3.hex");
    let mut store = GroupStore::default();
    let mut lines: Vec<String> = Vec::new();
    for command in commands() {
        lines.push(hex(&command.encode().unwrap()));
        store.apply(command);
    }
    lines.push(hex(&store.encode().unwrap()));
    if std::env::var_os("CHRONIK_GOLDEN_WRITE").is_some() {
        std::fs::write(path, lines.join("\n") + "\n").unwrap();
    }
    let file = std::fs::read_to_string(path).unwrap();
    let found: Vec<&str> = file.lines().collect();
    assert_eq!(found, lines);
    let (state, found) = found.split_last().unwrap();
    let mut read = GroupStore::default();
    for (line, command) in found.iter().zip(commands()) {
        let bytes = unhex(line);
        let decoded = GroupCommand::decode(&bytes).unwrap();
        assert_eq!(decoded, command);
        assert_eq!(decoded.encode().unwrap(), bytes);
        read.apply(decoded);
    }
    let bytes = unhex(state);
    let decoded = GroupStore::decode(&bytes).unwrap();
    assert_eq!(decoded, read);
    assert_eq!(decoded.encode().unwrap(), bytes);
    // What is in the state: nothing of it is there by chance.
    assert_eq!(decoded.group("group").unwrap().saved.as_ref().unwrap().generation, 300);
    assert_eq!(decoded.offset("group", "orders", 70_000).unwrap().offset, 1 << 40);
    assert!(decoded.offset("group", "old", 2).is_none());
    assert_eq!(decoded.offset("other", "old", 2).unwrap().offset, -1);
}
