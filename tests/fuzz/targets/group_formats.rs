//! The formats in which consumer groups outlive a crash: commands in a log and the state in a checkpoint. Decoding ends
//! in a value or an error and claims no more memory than its limit; what is read is written and read again the same, and
//! a state takes any command.
//!
//! The first input byte says what follows: a command, a state, or edits of a whole state of two bytes each.
#![no_main]

#[path = "../support/alloc.rs"]
mod alloc;
// The module alone: the crate that it belongs to has a runtime, which takes minutes to build with instrumentation.
#[allow(dead_code, unused_imports)]
#[path = "../../../shards/src/groups/mod.rs"]
mod groups;

use std::sync::OnceLock;

use chronik_engine::ids::GroupId;
use groups::store::{SavedGroup, SavedMember};
use groups::{GroupCommand, GroupStore, SavedOffset};
use libfuzzer_sys::fuzz_target;

/// What decoding a command, or a state, may claim by its length fields, as `store.rs` bounds it.
const COMMAND_BYTES_MAX: usize = 256 << 20;
const STORE_BYTES_MAX: usize = 1 << 30;
/// What a byte of input may cost beside that: each map, however small, has a node.
const BYTES_PER_INPUT_BYTE: usize = 1024;

fn offset(offset: i64) -> SavedOffset {
    SavedOffset {
        offset,
        raft_group: GroupId(300),
        leader_epoch: 3,
        metadata: "note".to_owned(),
        committed_ms: 1_700_000_000_000,
        expires_ms: Some(7),
    }
}

/// A state with everything that there can be in one.
fn whole() -> &'static [u8] {
    static STATE: OnceLock<Vec<u8>> = OnceLock::new();
    STATE.get_or_init(|| {
        let member = SavedMember {
            id: "member".to_owned(),
            instance_id: Some("instance".to_owned()),
            client_id: "client".to_owned(),
            client_host: "/127.0.0.1".to_owned(),
            rebalance_timeout_ms: 60_000,
            session_timeout_ms: 10_000,
            subscription: vec![0, 1],
            assignment: vec![2; 5],
        };
        let saved = SavedGroup {
            generation: 4,
            protocol_type: "consumer".to_owned(),
            protocol: Some("range".to_owned()),
            leader: Some("member".to_owned()),
            changed_ms: 1_700_000_000_000,
            members: vec![member],
        };
        let mut store = GroupStore::default();
        let offsets = vec![("t".to_owned(), 0, offset(5)), ("u".to_owned(), 7, offset(1 << 40))];
        store.apply(GroupCommand::Save { group: "g".to_owned(), saved });
        store.apply(GroupCommand::Commit { group: "g".to_owned(), offsets: offsets.clone() });
        store.apply(GroupCommand::Commit { group: "h".to_owned(), offsets });
        store.encode().expect("plain data")
    })
}

fn read_command(bytes: &[u8]) -> Option<GroupCommand> {
    let claimed = alloc::peak_of(|| drop(GroupCommand::decode(bytes)));
    assert!(claimed <= COMMAND_BYTES_MAX + bytes.len() * BYTES_PER_INPUT_BYTE, "{claimed} bytes");
    let command = GroupCommand::decode(bytes).ok()?;
    let again = command.encode().expect("plain data");
    assert!(again.len() <= bytes.len(), "what is written is the shortest there is");
    assert_eq!(GroupCommand::decode(&again).expect("what was written"), command);
    Some(command)
}

fn read_store(bytes: &[u8]) -> Option<GroupStore> {
    let claimed = alloc::peak_of(|| drop(GroupStore::decode(bytes)));
    assert!(claimed <= STORE_BYTES_MAX + bytes.len() * BYTES_PER_INPUT_BYTE, "{claimed} bytes");
    let store = GroupStore::decode(bytes).ok()?;
    let again = store.encode().expect("plain data");
    assert!(again.len() <= bytes.len(), "what is written is the shortest there is");
    assert_eq!(GroupStore::decode(&again).expect("what was written"), store);
    Some(store)
}

fuzz_target!(|input: &[u8]| {
    let Some((mode, rest)) = input.split_first() else { return };
    let whole = GroupStore::decode(whole()).expect("it is whole");
    match mode % 3 {
        0 => {
            let Some(command) = read_command(rest) else { return };
            let mut store = whole;
            store.apply(command);
            let bytes = store.encode().expect("plain data");
            assert_eq!(GroupStore::decode(&bytes).expect("what was written"), store);
        }
        1 => drop(read_store(rest)),
        _ => {
            let mut bytes = self::whole().to_vec();
            for edit in rest.chunks_exact(2).take(16) {
                let at = usize::from(edit[0]) % bytes.len();
                bytes[at] = edit[1];
            }
            let Some(mut store) = read_store(&bytes) else { return };
            let names: Vec<String> = store.groups().map(|(name, _)| name.to_owned()).collect();
            for group in names {
                store.apply(GroupCommand::DeleteGroup { group });
            }
            assert_eq!(store, GroupStore::default());
        }
    }
});
