//! Whose data directory this is: the identity file, and the lock that keeps a second process out.
//!
//! The identity is written once, when the directory is first used, and read ever after. It says which node wrote the
//! directory, which cluster it belongs to and how many shards it has, since all three are woven into what lies beside
//! it.
//!
//! Invariants
//! - I1 An identity file is never overwritten, and none is made where shards exist already.
//! - I2 The file appears whole or not at all: temporary file, sync, rename, sync of the directory.
//! - I3 Nothing in the directory is read or written without the lock; it is held until the process ends.
//! - I4 The identity of a node of a cluster is made after the cluster, whose formation lies beside it: a directory with
//!   the one and not the other belongs to a single node, or to none yet. A single node that begins a cluster keeps its
//!   identity.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use chronik_engine::disk::is_full;
use chronik_engine::ids::NodeId;
use rustix::fs::{FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use serde::Deserialize;
use thiserror::Error;
use uuid::Uuid;

/// The version of the directory's layout that this program writes.
pub const FORMAT_VERSION: u32 = 1;

const IDENTITY_FILE: &str = "identity.toml";
const IDENTITY_TEMPORARY_FILE: &str = "identity.toml.tmp";
const LOCK_FILE: &str = "lock";
pub(crate) const FORMATION_FILE: &str = "formation.bin";
const SHARDS_DIR: &str = "shards";
const CHECKSUM_KEY: &str = "checksum = ";

/// What keeps a data directory from being used.
#[derive(Debug, Error)]
pub enum IdentityError {
    #[error("data directory {}: {source}; check data_dir (--data-dir or CHRONIK_DATA_DIR) and its owner", path.display())]
    Unusable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("data directory {}: is not a directory; check data_dir (--data-dir or CHRONIK_DATA_DIR)", path.display())]
    NotADirectory { path: PathBuf },
    #[error("data directory {}: cannot be written ({source}); mount it writable or correct its owner and mode", path.display())]
    ReadOnly {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "data directory {}: in use by {}; stop it, or give this broker a data_dir of its own",
        path.display(), Holder(*pid)
    )]
    Locked { path: PathBuf, pid: Option<u32> },
    #[error("{}: {source}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "{}: damaged (checksum {found}, {computed} expected); restore the file from a backup of this node", path.display()
    )]
    ChecksumWrong { path: PathBuf, found: String, computed: String },
    #[error("{}: damaged (no checksum line); restore the file from a backup of this node", path.display())]
    ChecksumMissing { path: PathBuf },
    #[error("{}: not understood: {problem}; restore the file from a backup of this node", path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error(
        "{}: the directory has format {found}, this version knows {FORMAT_VERSION} and older; start the newer \
         chronik-server that wrote it", path.display()
    )]
    NewerFormat { path: PathBuf, found: u32 },
    #[error(
        "data directory {}: belongs to node {found}, this is node {wanted}; correct node_id, or give this node a data_dir \
         of its own", path.display()
    )]
    OtherNode { path: PathBuf, found: NodeId, wanted: NodeId },
    #[error(
        "data directory {}: holds shards but no identity file; restore {} from a backup, or use an empty directory",
        path.display(), path.join(IDENTITY_FILE).display()
    )]
    ShardsWithoutIdentity { path: PathBuf },
    #[error(
        "data directory {}: was made by a single node (cluster {cluster_uuid}); leave cluster.nodes out to run that node, or \
         give this node of a cluster an empty data_dir", path.display()
    )]
    SingleNode { path: PathBuf, cluster_uuid: Uuid },
    #[error(
        "data directory {}: was made by a single node (cluster {cluster_uuid}), so it cannot join another cluster; start \
         it with --bootstrap for others to join it, or give this node an empty data_dir", path.display()
    )]
    SingleNodeJoins { path: PathBuf, cluster_uuid: Uuid },
    #[error(
        "data directory {}: belongs to a node of a cluster, or of one on its way there; give its cluster.nodes or cluster.join as before, or \
         give this single node an empty data_dir", path.display()
    )]
    ClusterNode { path: PathBuf },
    #[error(
        "data directory {}: belongs to cluster {found}, but the nodes of cluster.nodes are cluster {wanted}; correct \
         data_dir or cluster.nodes", path.display()
    )]
    OtherCluster { path: PathBuf, found: Uuid, wanted: Uuid },
    #[error(
        "data directory {}: {} says that it is {found}, {} that it is {wanted}; they are of different directories: \
         restore both from one backup, or use an empty directory", path.display(), IDENTITY_FILE, FORMATION_FILE
    )]
    MixedFiles { path: PathBuf, found: Uuid, wanted: Uuid },
}

struct Holder(Option<u32>);

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("another process"),
        }
    }
}

/// Who a data directory belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub node_id: NodeId,
    /// This incarnation of the node: another one after its disk was replaced.
    pub node_uuid: Uuid,
    pub cluster_uuid: Uuid,
    /// One per shard; blocks of its log carry it.
    pub shard_uuids: Vec<Uuid>,
}

/// What is in the file before the checksum line.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityText {
    format_version: u32,
    node_id: u32,
    node_uuid: String,
    cluster_uuid: String,
    shards: u16,
    shard_uuids: Vec<String>,
}

#[derive(Deserialize)]
struct VersionText {
    format_version: u32,
}

impl Identity {
    /// A new node of a new cluster.
    #[must_use]
    pub fn generate(node_id: NodeId, shards: u16) -> Self {
        Identity::of_cluster(node_id, Uuid::new_v4(), Uuid::new_v4(), shards)
    }

    /// A new node of this cluster.
    #[must_use]
    pub fn of_cluster(node_id: NodeId, node_uuid: Uuid, cluster_uuid: Uuid, shards: u16) -> Self {
        assert!(shards > 0, "a node has at least one shard");
        Identity {
            node_id,
            node_uuid,
            cluster_uuid,
            shard_uuids: (0..shards).map(|_| Uuid::new_v4()).collect(),
        }
    }

    /// How many shards the directory has, for ever.
    #[must_use]
    pub fn shards(&self) -> u16 {
        u16::try_from(self.shard_uuids.len()).unwrap_or(u16::MAX)
    }

    /// The file's text, checksum included.
    #[must_use]
    pub fn to_text(&self) -> String {
        let shard_uuids: Vec<String> =
            self.shard_uuids.iter().map(|uuid| format!("    \"{uuid}\",\n")).collect();
        let body = format!(
            "# Whose data this is. Written once by chronik-server; do not edit, do not copy to another node.\n\
             format_version = {FORMAT_VERSION}\n\
             node_id = {}\n\
             node_uuid = \"{}\"\n\
             cluster_uuid = \"{}\"\n\
             shards = {}\n\
             shard_uuids = [\n{}]\n",
            self.node_id.0,
            self.node_uuid,
            self.cluster_uuid,
            self.shards(),
            shard_uuids.concat(),
        );
        let checksum = checksum_of(&body);
        format!("{body}{CHECKSUM_KEY}\"{checksum}\"\n")
    }

    /// Reads what [`Identity::to_text`] wrote; `path` is for messages.
    ///
    /// # Errors
    /// The text is damaged, or newer than this program.
    pub fn from_text(text: &str, path: &Path) -> Result<Self, IdentityError> {
        let path = || path.to_path_buf();
        let malformed = |problem: String| IdentityError::Malformed { path: path(), problem };
        // The checksum comes first: a flipped bit must not pass for another version or another node.
        let at = text
            .rfind(CHECKSUM_KEY)
            .ok_or_else(|| IdentityError::ChecksumMissing { path: path() })?;
        let (body, last) = text.split_at(at);
        let found = last[CHECKSUM_KEY.len()..].trim().trim_matches('"').to_owned();
        let computed = checksum_of(body);
        if found != computed {
            return Err(IdentityError::ChecksumWrong { path: path(), found, computed });
        }
        let version: VersionText =
            toml::from_str(body).map_err(|error| malformed(error.message().to_owned()))?;
        if version.format_version > FORMAT_VERSION {
            return Err(IdentityError::NewerFormat { path: path(), found: version.format_version });
        }
        let read: IdentityText =
            toml::from_str(body).map_err(|error| malformed(error.message().to_owned()))?;
        if read.format_version == 0 || read.shards == 0 {
            return Err(malformed("format_version and shards begin at 1".to_owned()));
        }
        if usize::from(read.shards) != read.shard_uuids.len() {
            return Err(malformed(format!(
                "{} shards, but {} shard uuids",
                read.shards,
                read.shard_uuids.len()
            )));
        }
        let uuid = |text: &str| {
            Uuid::parse_str(text).map_err(|_| malformed(format!("\"{text}\" is not a uuid")))
        };
        Ok(Identity {
            node_id: NodeId(read.node_id),
            node_uuid: uuid(&read.node_uuid)?,
            cluster_uuid: uuid(&read.cluster_uuid)?,
            shard_uuids: read
                .shard_uuids
                .iter()
                .map(|text| uuid(text))
                .collect::<Result<_, _>>()?,
        })
    }
}

fn checksum_of(body: &str) -> String {
    format!("crc32:{:08x}", crc32fast::hash(body.as_bytes()))
}

/// A data directory that this process alone may use, for as long as this value lives (I3).
#[derive(Debug)]
pub struct DataDir {
    pub path: PathBuf,
    pub identity: Identity,
    /// Whether the identity was made just now.
    pub created: bool,
    /// The kernel drops the lock with the descriptor, also when the process is killed.
    _lock: File,
}

/// A data directory that is locked, and whose identity is read, but not made yet if there is none.
#[derive(Debug)]
pub struct LockedDir {
    pub path: PathBuf,
    /// None as long as the directory is new.
    pub identity: Option<Identity>,
    lock: File,
}

impl LockedDir {
    /// Makes the directory if need be, locks it, and reads its identity.
    ///
    /// # Errors
    /// The directory cannot be used, or is not this node's.
    pub fn open(path: &Path, node_id: NodeId) -> Result<Self, IdentityError> {
        make_directory(path)?;
        let lock = lock_directory(path)?;
        let file = path.join(IDENTITY_FILE);
        let identity = match fs::read_to_string(&file) {
            Ok(text) => Some(Identity::from_text(&text, &file)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(source) => return Err(IdentityError::File { path: file, source }),
        };
        if let Some(found) = identity.as_ref().map(|identity| identity.node_id)
            && found != node_id
        {
            let path = path.to_path_buf();
            return Err(IdentityError::OtherNode { path, found, wanted: node_id });
        }
        if identity.is_none() && path.join(SHARDS_DIR).exists() {
            return Err(IdentityError::ShardsWithoutIdentity { path: path.to_path_buf() });
        }
        Ok(LockedDir { path: path.to_path_buf(), identity, lock })
    }

    /// Whether the directory is that of a node of a cluster, or of one on its way there.
    #[must_use]
    pub fn has_formation(&self) -> bool {
        self.path.join(FORMATION_FILE).exists()
    }

    /// Whether an empty directory, or that of a node of a cluster, is to join one.
    ///
    /// # Errors
    /// It is that of a single node.
    pub fn check_joins(&self) -> Result<(), IdentityError> {
        match &self.identity {
            Some(Identity { cluster_uuid, .. }) if !self.has_formation() => {
                let (path, cluster_uuid) = (self.path.clone(), *cluster_uuid);
                Err(IdentityError::SingleNodeJoins { path, cluster_uuid })
            }
            _ => Ok(()),
        }
    }

    /// Whether the directory fits a node of a cluster, or a single node (I4).
    ///
    /// # Errors
    /// It is of the other kind.
    pub fn check_kind(&self, is_cluster: bool) -> Result<(), IdentityError> {
        let path = || self.path.clone();
        let has_formation = self.has_formation();
        match &self.identity {
            Some(identity) if is_cluster && !has_formation => {
                let cluster_uuid = identity.cluster_uuid;
                Err(IdentityError::SingleNode { path: path(), cluster_uuid })
            }
            _ if !is_cluster && has_formation => Err(IdentityError::ClusterNode { path: path() }),
            _ => Ok(()),
        }
    }

    /// Goes on with the identity that there is, or makes this one.
    ///
    /// # Errors
    /// The identity cannot be written.
    pub fn into_data_dir(self, new: impl FnOnce() -> Identity) -> Result<DataDir, IdentityError> {
        let LockedDir { path, identity, lock } = self;
        let created = identity.is_none();
        let identity = match identity {
            Some(identity) => identity,
            None => {
                let identity = new();
                write_new(&path, &identity.to_text()).map_err(|source| IdentityError::File {
                    path: path.join(IDENTITY_FILE),
                    source,
                })?;
                identity
            }
        };
        Ok(DataDir { path, identity, created, _lock: lock })
    }

    /// The same for a node of a cluster, which both the identity and the formation must name.
    ///
    /// # Errors
    /// They name different ones, or the identity cannot be written.
    pub fn into_cluster_dir(
        self,
        node_uuid: Uuid,
        cluster_uuid: Uuid,
        new: impl FnOnce() -> Identity,
    ) -> Result<DataDir, IdentityError> {
        if let Some(identity) = &self.identity {
            let path = self.path.clone();
            if identity.cluster_uuid != cluster_uuid {
                let (found, wanted) = (identity.cluster_uuid, cluster_uuid);
                return Err(IdentityError::OtherCluster { path, found, wanted });
            }
            if identity.node_uuid != node_uuid {
                let (found, wanted) = (identity.node_uuid, node_uuid);
                return Err(IdentityError::MixedFiles { path, found, wanted });
            }
        }
        self.into_data_dir(new)
    }
}

impl DataDir {
    /// Opens the directory of a single node, makes it if need be, locks it, and reads its identity or gives it one.
    ///
    /// `shards` is the number to make it with. A directory that exists keeps its own number.
    ///
    /// # Errors
    /// The directory cannot be used, or is not this node's.
    pub fn open(path: &Path, node_id: NodeId, shards: u16) -> Result<Self, IdentityError> {
        let locked = LockedDir::open(path, node_id)?;
        locked.check_kind(false)?;
        let opened = locked.into_data_dir(|| Identity::generate(node_id, shards))?;
        opened.note_shards(shards);
        Ok(opened)
    }

    /// Says so where the directory has another number of shards than a new one would get.
    pub fn note_shards(&self, wanted: u16) {
        if self.identity.shards() != wanted {
            tracing::info!(
                "the data directory {} was made with {} shards and keeps them ({wanted} wanted)",
                self.path.display(),
                self.identity.shards()
            );
        }
    }
}

fn make_directory(path: &Path) -> Result<(), IdentityError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(IdentityError::NotADirectory { path: path.to_path_buf() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => fs::create_dir_all(path)
            .map_err(|source| IdentityError::Unusable { path: path.to_path_buf(), source }),
        Err(source) => Err(IdentityError::Unusable { path: path.to_path_buf(), source }),
    }
}

/// Takes the lock of a data directory; it is held while the file is open. The offline tools take it too, before they
/// change anything.
///
/// # Errors
/// Another process holds it, or the directory cannot be written.
pub fn lock_directory(path: &Path) -> Result<File, IdentityError> {
    let file_path = path.join(LOCK_FILE);
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&file_path);
    let mut file = file.map_err(|source| match source.kind() {
        std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::PermissionDenied => {
            IdentityError::ReadOnly { path: path.to_path_buf(), source }
        }
        _ => IdentityError::File { path: file_path.clone(), source },
    })?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut text = String::new();
            // Only for the message: the holder may be about to write it.
            let pid = file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(IdentityError::Locked { path: path.to_path_buf(), pid });
        }
        Err(errno) => return Err(IdentityError::File { path: file_path, source: errno.into() }),
    }
    let write_pid = |file: &mut File| {
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())
    };
    match write_pid(&mut file) {
        Ok(()) => Ok(file),
        // A full disk still lets the broker start and clean up: the lock holds without the process id in it.
        Err(error) if is_full(&error) => Ok(file),
        Err(source) => Err(IdentityError::File { path: file_path, source }),
    }
}

/// Writes the identity file (I1, I2).
fn write_new(directory: &Path, text: &str) -> std::io::Result<()> {
    let temporary = directory.join(IDENTITY_TEMPORARY_FILE);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    let handle = File::open(directory)?;
    let renamed = renameat_with(
        &handle,
        IDENTITY_TEMPORARY_FILE,
        &handle,
        IDENTITY_FILE,
        RenameFlags::NOREPLACE,
    );
    match renamed {
        // Some filesystems cannot refuse to replace; the lock is held and the file was not there a moment ago.
        Err(Errno::INVAL | Errno::NOSYS) => fs::rename(&temporary, directory.join(IDENTITY_FILE))?,
        other => other?,
    }
    handle.sync_all()
}
