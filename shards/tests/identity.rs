//! The data directory: made once, read back, refused when it is not this node's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use chronik_engine::ids::NodeId;
use chronik_shards::identity::{DataDir, Identity, IdentityError, LockedDir};
use uuid::Uuid;

fn open(path: &Path, node_id: u32, shards: u16) -> Result<DataDir, IdentityError> {
    DataDir::open(path, NodeId(node_id), shards)
}

fn rewrite(path: &Path, change: impl Fn(String) -> String) {
    let file = path.join("identity.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, change(text)).unwrap();
}

/// The text with a checksum that fits it.
fn sealed(body: &str) -> String {
    format!("{body}checksum = \"crc32:{:08x}\"\n", crc32fast::hash(body.as_bytes()))
}

fn body_of(text: &str) -> &str {
    &text[..text.rfind("checksum = ").unwrap()]
}

#[test]
fn given_a_new_directory_when_opened_twice_then_the_identity_is_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("below/data");
    let first = open(&path, 3, 4).unwrap();
    assert!(first.created);
    assert_eq!(first.identity.shards(), 4);
    let identity = first.identity.clone();
    drop(first);
    let second = open(&path, 3, 4).unwrap();
    assert!(!second.created);
    assert_eq!(second.identity, identity);
    assert!(!path.join("identity.toml.tmp").exists());
}

#[test]
fn given_another_number_of_cores_when_opened_then_the_directory_keeps_its_shards() {
    let directory = tempfile::tempdir().unwrap();
    let made = open(directory.path(), 1, 2).unwrap().identity;
    assert_eq!(open(directory.path(), 1, 8).unwrap().identity, made);
}

#[test]
fn given_a_directory_in_use_when_opened_then_the_holder_is_named_and_nothing_changes() {
    let directory = tempfile::tempdir().unwrap();
    let held = open(directory.path(), 1, 1).unwrap();
    let before = fs::read_to_string(directory.path().join("identity.toml")).unwrap();
    let refused = open(directory.path(), 1, 1).unwrap_err();
    let own = std::process::id();
    assert!(matches!(refused, IdentityError::Locked { pid: Some(pid), .. } if pid == own));
    assert_eq!(fs::read_to_string(directory.path().join("identity.toml")).unwrap(), before);
    drop(held);
    open(directory.path(), 1, 1).unwrap();
}

#[test]
fn given_another_nodes_directory_when_opened_then_it_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path(), 1, 1).unwrap());
    let refused = open(directory.path(), 2, 1).unwrap_err();
    assert!(matches!(
        refused,
        IdentityError::OtherNode { found: NodeId(1), wanted: NodeId(2), .. }
    ));
    open(directory.path(), 1, 1).unwrap();
}

#[test]
fn given_any_flipped_bit_when_opened_then_the_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path(), 1, 2).unwrap());
    let file = directory.path().join("identity.toml");
    let intact = fs::read(&file).unwrap();
    for at in 0..intact.len() {
        let mut damaged = intact.clone();
        damaged[at] ^= 0x01;
        // White space around the checksum carries nothing.
        if at + 1 == intact.len() {
            continue;
        }
        fs::write(&file, &damaged).unwrap();
        let refused = open(directory.path(), 1, 2);
        assert!(refused.is_err(), "bit flip at byte {at} passed");
    }
    fs::write(&file, &intact).unwrap();
    open(directory.path(), 1, 2).unwrap();
}

#[test]
fn given_a_file_cut_short_when_opened_then_it_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path(), 1, 1).unwrap());
    rewrite(directory.path(), |text| body_of(&text).to_owned());
    let refused = open(directory.path(), 1, 1).unwrap_err();
    assert!(matches!(refused, IdentityError::ChecksumMissing { .. }), "{refused}");
}

#[test]
fn given_a_newer_format_when_opened_then_the_error_says_which_is_known() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path(), 1, 1).unwrap());
    rewrite(directory.path(), |text| {
        let newer = body_of(&text).replace("format_version = 1", "format_version = 2\nzones = 3");
        sealed(&newer)
    });
    let refused = open(directory.path(), 1, 1).unwrap_err();
    assert!(matches!(refused, IdentityError::NewerFormat { found: 2, .. }), "{refused}");
}

#[test]
fn given_sealed_nonsense_when_opened_then_it_is_malformed() {
    for body in [
        "format_version = 1\n",
        "format_version = 0\nnode_id = 1\nnode_uuid = \"\"\ncluster_uuid = \"\"\nshards = 0\nshard_uuids = []\n",
        "format_version = 1\nnode_id = 1\nnode_uuid = \"x\"\ncluster_uuid = \"x\"\nshards = 1\nshard_uuids = [\"x\"]\n",
        "format_version = 1\nnode_id = 1\nnode_uuid = \"x\"\ncluster_uuid = \"x\"\nshards = 2\nshard_uuids = [\"x\"]\n",
        "[",
    ] {
        let refused = Identity::from_text(&sealed(body), Path::new("identity.toml")).unwrap_err();
        assert!(matches!(refused, IdentityError::Malformed { .. }), "{body}: {refused}");
    }
}

#[test]
fn given_shards_without_an_identity_when_opened_then_none_is_made() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("shards")).unwrap();
    let refused = open(directory.path(), 1, 1).unwrap_err();
    assert!(matches!(refused, IdentityError::ShardsWithoutIdentity { .. }));
    assert!(!directory.path().join("identity.toml").exists());
}

#[test]
fn given_a_leftover_temporary_file_when_opened_then_the_directory_is_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("identity.toml.tmp"), "format_ver").unwrap();
    let made = open(directory.path(), 1, 1).unwrap();
    let text = fs::read_to_string(directory.path().join("identity.toml")).unwrap();
    assert_eq!(text, made.identity.to_text());
}

#[test]
fn given_a_file_in_place_of_the_directory_when_opened_then_it_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "").unwrap();
    assert!(matches!(open(&path, 1, 1).unwrap_err(), IdentityError::NotADirectory { .. }));
}

/// A data directory that a node of a cluster has made.
fn of_cluster(path: &Path, node_uuid: Uuid, cluster_uuid: Uuid) -> Result<DataDir, IdentityError> {
    fs::write(path.join("formation.bin"), "what formation keeps").unwrap();
    let locked = LockedDir::open(path, NodeId(1))?;
    locked.check_kind(true)?;
    let new = || Identity::of_cluster(NodeId(1), node_uuid, cluster_uuid, 2);
    locked.into_cluster_dir(node_uuid, cluster_uuid, new)
}

#[test]
fn given_a_node_of_a_cluster_when_opened_twice_then_its_identity_is_the_clusters() {
    let directory = tempfile::tempdir().unwrap();
    let (node_uuid, cluster_uuid) = (Uuid::from_u128(1), Uuid::from_u128(2));
    for created in [true, false] {
        let opened = of_cluster(directory.path(), node_uuid, cluster_uuid).unwrap();
        assert_eq!(opened.created, created);
        assert_eq!(opened.identity.node_uuid, node_uuid);
        assert_eq!(opened.identity.cluster_uuid, cluster_uuid);
    }
}

#[test]
fn given_a_directory_of_another_cluster_when_opened_then_the_error_names_both() {
    let directory = tempfile::tempdir().unwrap();
    let (node_uuid, cluster_uuid) = (Uuid::from_u128(1), Uuid::from_u128(2));
    drop(of_cluster(directory.path(), node_uuid, cluster_uuid).unwrap());
    let other = Uuid::from_u128(3);
    let refused = of_cluster(directory.path(), node_uuid, other).unwrap_err();
    assert!(matches!(refused, IdentityError::OtherCluster { .. }));
    let text = refused.to_string();
    assert!(
        text.contains(&cluster_uuid.to_string()) && text.contains(&other.to_string()),
        "{text}"
    );
    let refused = of_cluster(directory.path(), other, cluster_uuid).unwrap_err();
    assert!(matches!(refused, IdentityError::MixedFiles { .. }), "{refused}");
}

#[test]
fn given_directories_of_single_nodes_and_of_clusters_when_mixed_up_then_each_is_refused() {
    let single = tempfile::tempdir().unwrap();
    drop(open(single.path(), 1, 1).unwrap());
    let locked = LockedDir::open(single.path(), NodeId(1)).unwrap();
    assert!(matches!(locked.check_kind(true), Err(IdentityError::SingleNode { .. })));
    drop(locked);
    open(single.path(), 1, 1).unwrap();
    let cluster = tempfile::tempdir().unwrap();
    drop(of_cluster(cluster.path(), Uuid::from_u128(1), Uuid::from_u128(2)).unwrap());
    let refused = open(cluster.path(), 1, 1).unwrap_err();
    assert!(matches!(refused, IdentityError::ClusterNode { .. }), "{refused}");
}
