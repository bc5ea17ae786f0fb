//! What formation keeps on disk: `formation.bin` in the data directory.
//!
//! ```text
//! magic "CHRKFORM" | CRC-32 of the rest u32 | format version u8 | the state, as bincode
//! ```
//!
//! It is made before the node first speaks to another, and stays for good: it says by which cluster, under which
//! replica id and on which disk this node came into being.
//!
//! - I1: the file changes whole or not at all: temporary file, sync, rename, sync of the directory.
//! - I2: what cannot be read is an error, never an empty state: a node that has forgotten its votes must not vote.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use chronik_engine::framed::{self, FramedError};
use chronik_engine::ids::NodeId;

use super::durable::Durable;
use super::error::{StoreError, StoreFault};

const FILE: &str = "formation.bin";
const TEMPORARY_FILE: &str = "formation.bin.tmp";
const MAGIC: &[u8; 8] = b"CHRKFORM";
const FORMAT_VERSION: u8 = 2;
const HEAD_BYTES: usize = MAGIC.len() + 4;
/// Far beyond what a list of as many nodes as there may be comes to.
const FILE_BYTES_MAX: usize = 64 << 10;

const _: () = assert!(HEAD_BYTES == 12);

/// The file of one data directory, which this process alone may use.
#[derive(Debug)]
pub struct FormationStore {
    directory: PathBuf,
    path: PathBuf,
}

impl FormationStore {
    /// The file in this data directory, which exists.
    #[must_use]
    pub fn new(data_dir: &Path) -> FormationStore {
        FormationStore { directory: data_dir.to_path_buf(), path: data_dir.join(FILE) }
    }

    /// What it holds, if it is there.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or is not this node's.
    pub fn load(&self, node: NodeId) -> Result<Option<Durable>, StoreError> {
        let Some(bytes) = self.read()? else { return Ok(None) };
        let durable = self.decode(&bytes)?;
        if durable.node != node {
            let (path, found) = (self.path.clone(), durable.node);
            return Err(StoreError::OtherNode { path, found, wanted: node });
        }
        Ok(Some(durable))
    }

    fn read(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.failed(source)),
        };
        let mut bytes = Vec::new();
        let bound = FILE_BYTES_MAX as u64 + 1;
        file.take(bound).read_to_end(&mut bytes).map_err(|source| self.failed(source))?;
        Ok(Some(bytes))
    }

    fn decode(&self, bytes: &[u8]) -> Result<Durable, StoreError> {
        let damaged = |fault| StoreError::Damaged { path: self.path.clone(), fault };
        if bytes.len() > FILE_BYTES_MAX {
            return Err(damaged(StoreFault::Length));
        }
        let (magic, rest) =
            bytes.split_first_chunk::<8>().ok_or_else(|| damaged(StoreFault::Length))?;
        if magic != MAGIC {
            return Err(damaged(StoreFault::Magic));
        }
        let (crc, body) =
            rest.split_first_chunk::<4>().ok_or_else(|| damaged(StoreFault::Length))?;
        let (found, computed) = (u32::from_le_bytes(*crc), crc32fast::hash(body));
        if found != computed {
            return Err(damaged(StoreFault::Checksum { found, computed }));
        }
        framed::decode::<Durable, FILE_BYTES_MAX>(FORMAT_VERSION, body).map_err(|source| {
            match source {
                FramedError::Version { version } if version > FORMAT_VERSION => {
                    StoreError::NewerVersion { path: self.path.clone(), found: version }
                }
                source => damaged(StoreFault::Content { source }),
            }
        })
    }

    /// Makes a state durable.
    ///
    /// # Errors
    /// It is not durable: nothing that follows from it may leave the node.
    pub fn save(&self, durable: &Durable) -> Result<(), StoreError> {
        let body = framed::encode(FORMAT_VERSION, durable)
            .map_err(|source| StoreError::Encode { path: self.path.clone(), source })?;
        let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
        bytes.extend(MAGIC);
        bytes.extend(crc32fast::hash(&body).to_le_bytes());
        bytes.extend(body);
        assert!(bytes.len() <= FILE_BYTES_MAX, "what is written can be read");
        self.replace(&bytes).map_err(|source| self.failed(source))
    }

    /// Makes durable that there is none; there may be none already.
    ///
    /// # Errors
    /// It may be there again after a crash.
    pub fn remove(&self) -> Result<(), StoreError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(self.failed(error)),
            _ => {}
        }
        let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
        synced.map_err(|source| self.failed(source))
    }

    /// I1.
    fn replace(&self, bytes: &[u8]) -> std::io::Result<()> {
        let temporary = self.directory.join(TEMPORARY_FILE);
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        File::open(&self.directory)?.sync_all()
    }

    fn failed(&self, source: std::io::Error) -> StoreError {
        StoreError::Io { path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use chronik_engine::ids::ReplicaId;

    use super::*;
    use crate::formation::decree::{Ballot, Formation, Member, Participant};
    use crate::formation::durable::{Formed, Membership};
    use crate::formation::ids::{ClusterUuid, NodeUuid};

    fn durable() -> Durable {
        let (node, node_uuid) = (NodeId(2), NodeUuid(7));
        let ballot = Ballot { round: 3, node, node_uuid };
        let participants = [Participant { node, node_uuid }];
        let member = Member { node, node_uuid, replica: ReplicaId(5) };
        let formation = Formation { cluster: ClusterUuid(9), members: vec![member] };
        let mut durable = Durable::empty(node, node_uuid);
        durable.acceptor.on_accept(ballot, &participants, &formation);
        let own = Membership::Member { replica: ReplicaId(5) };
        durable.formed = Some(Formed { formation, own });
        durable
    }

    fn saved() -> (tempfile::TempDir, FormationStore, Vec<u8>) {
        let directory = tempfile::tempdir().unwrap();
        let store = FormationStore::new(directory.path());
        store.save(&durable()).unwrap();
        let bytes = fs::read(directory.path().join(FILE)).unwrap();
        (directory, store, bytes)
    }

    #[test]
    fn given_a_saved_state_when_loaded_then_it_is_the_same_and_nothing_else_is_left() {
        let (directory, store, _) = saved();
        assert_eq!(store.load(NodeId(2)).unwrap(), Some(durable()));
        assert!(!directory.path().join(TEMPORARY_FILE).exists());
        let empty = Durable::empty(NodeId(2), NodeUuid(8));
        store.save(&empty).unwrap();
        assert_eq!(store.load(NodeId(2)).unwrap(), Some(empty));
    }

    #[test]
    fn given_no_file_when_loaded_then_there_is_no_state() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(FormationStore::new(directory.path()).load(NodeId(1)).unwrap(), None);
    }

    #[test]
    fn given_any_damage_when_loaded_then_it_is_refused_and_says_what_to_do() {
        let (directory, store, bytes) = saved();
        let path = directory.path().join(FILE);
        let mut damaged: Vec<Vec<u8>> = (0..bytes.len()).map(|cut| bytes[..cut].to_vec()).collect();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            damaged.push(flipped);
        }
        damaged.push([bytes, vec![0]].concat());
        damaged.push(vec![0; FILE_BYTES_MAX + 1]);
        for bytes in damaged {
            fs::write(&path, &bytes).unwrap();
            let refused = store.load(NodeId(2)).unwrap_err();
            assert!(matches!(refused, StoreError::Damaged { .. }), "{bytes:?}: {refused}");
            assert!(refused.to_string().contains("empty data directory"), "{refused}");
        }
    }

    #[test]
    fn given_a_newer_format_when_loaded_then_the_error_says_so() {
        let (directory, store, mut bytes) = saved();
        bytes[HEAD_BYTES] = 3;
        let crc = crc32fast::hash(&bytes[HEAD_BYTES..]).to_le_bytes();
        bytes[8..HEAD_BYTES].copy_from_slice(&crc);
        fs::write(directory.path().join(FILE), &bytes).unwrap();
        let refused = store.load(NodeId(2)).unwrap_err();
        assert!(matches!(refused, StoreError::NewerVersion { found: 3, .. }), "{refused}");
    }

    #[test]
    fn given_the_file_of_another_node_when_loaded_then_it_is_refused() {
        let (_directory, store, _) = saved();
        let refused = store.load(NodeId(3)).unwrap_err();
        let (found, wanted) = (NodeId(2), NodeId(3));
        assert!(
            matches!(refused, StoreError::OtherNode { found: f, wanted: w, .. } if f == found && w == wanted)
        );
    }

    #[test]
    fn given_the_golden_bytes_when_read_and_written_then_they_are_format_2() {
        let (_directory, _store, bytes) = saved();
        let head = [&b"CHRKFORM"[..], &[58, 34, 133, 162], &[2]].concat();
        // Node and disk; promised; accepted: ballot, cluster, members; disks; formed: cluster, members, own; the way.
        let body = [
            [2, 7].as_slice(),
            &[1, 3, 2, 7],
            &[1, 3, 2, 7, 9, 1, 2, 7, 5],
            &[1, 2, 0, 7],
            &[1, 9, 1, 2, 7, 5, 0, 5],
            &[0],
        ];
        assert_eq!(bytes, [head, body.concat()].concat());
    }
}
