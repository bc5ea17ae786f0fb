//! What two ends of a connection show each other, so that none but those who know the cluster's secret get a link.
//!
//! A proof is HMAC-SHA256, with the secret as key, over everything that both ends have said of themselves, the random
//! number of each included, and over the side that proves: so no proof can be used a second time, nor be thrown back
//! at whoever made it. It says who is at the other end when the link begins; what comes later is not signed.
//!
//! - I1: proofs are compared in constant time.
//! - I2: without a secret a proof is zeros, and nothing but zeros is taken: two ends that differ in that do not meet.

use hmac::{Hmac, Mac};
use sha2::Sha256;
use uuid::Uuid;

use crate::wire::{Hello, Welcome};

pub(super) const PROOF_BYTES: usize = 32;

const CONTEXT: &[u8] = b"chronik raft link 1";
const NO_PROOF: [u8; PROOF_BYTES] = [0; PROOF_BYTES];

/// Who proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Who opened the connection.
    Opener = 1,
    /// Who accepted it.
    Acceptor = 2,
}

/// A random number that nobody can foresee: the randomness of two random UUIDs, which is the operating system's.
pub(super) fn nonce() -> [u8; 32] {
    let mut nonce = [0; 32];
    for half in nonce.chunks_exact_mut(16) {
        half.copy_from_slice(Uuid::new_v4().as_bytes());
    }
    nonce
}

/// The proof of one side. `answer` is the acceptor's welcome and `shards` how many the prover has; proofs that are in
/// them already do not count.
pub(super) fn prove(
    secret: Option<&[u8]>,
    side: Side,
    hello: &Hello,
    answer: &Welcome,
    shards: u16,
) -> [u8; PROOF_BYTES] {
    match mac(secret, side, hello, answer, shards) {
        Some(mac) => mac.finalize().into_bytes().into(),
        None => NO_PROOF,
    }
}

/// Whether `proof` is that of `side`.
pub(super) fn is_proven(
    secret: Option<&[u8]>,
    side: Side,
    hello: &Hello,
    answer: &Welcome,
    shards: u16,
    proof: &[u8; PROOF_BYTES],
) -> bool {
    match mac(secret, side, hello, answer, shards) {
        Some(mac) => mac.verify_slice(proof).is_ok(),
        None => secret.is_none() && *proof == NO_PROOF,
    }
}

/// `None` without a secret. Every field has one size, so no two conversations look the same.
fn mac(
    secret: Option<&[u8]>,
    side: Side,
    hello: &Hello,
    answer: &Welcome,
    shards: u16,
) -> Option<Hmac<Sha256>> {
    // A key of any length will do, so this never fails.
    let mut mac = Hmac::<Sha256>::new_from_slice(secret?).ok()?;
    mac.update(CONTEXT);
    mac.update(&[side as u8]);
    mac.update(&hello.versions.oldest.to_le_bytes());
    mac.update(&hello.versions.newest.to_le_bytes());
    mac.update(hello.cluster.as_bytes());
    mac.update(&hello.node.0.to_le_bytes());
    mac.update(&hello.from.0.to_le_bytes());
    mac.update(hello.node_uuid.as_bytes());
    mac.update(&hello.to_node.0.to_le_bytes());
    mac.update(&hello.to.0.to_le_bytes());
    mac.update(&hello.nonce);
    mac.update(&answer.node.0.to_le_bytes());
    mac.update(answer.node_uuid.as_bytes());
    mac.update(&answer.version.to_le_bytes());
    mac.update(&answer.nonce);
    mac.update(&shards.to_le_bytes());
    Some(mac)
}

#[cfg(test)]
mod tests {
    use chronik_engine::ids::{NodeId, ShardId};

    use super::*;
    use crate::wire::Versions;

    fn hello() -> Hello {
        Hello {
            versions: Versions::OWN,
            cluster: Uuid::from_u128(1),
            node: NodeId(1),
            node_uuid: Uuid::from_u128(2),
            from: ShardId(3),
            to_node: NodeId(2),
            to: ShardId(4),
            nonce: [5; 32],
        }
    }

    fn welcome() -> Welcome {
        Welcome {
            node: NodeId(2),
            node_uuid: Uuid::from_u128(6),
            shards: 8,
            version: 1,
            nonce: [7; 32],
            proof: NO_PROOF,
        }
    }

    #[test]
    fn given_a_proof_when_anything_that_was_said_differs_then_it_is_none() {
        let secret = Some(&b"secret"[..]);
        let proof = prove(secret, Side::Opener, &hello(), &welcome(), 8);
        let holds = |secret, side, hello: &Hello, welcome: &Welcome, shards| {
            is_proven(secret, side, hello, welcome, shards, &proof)
        };
        assert!(holds(secret, Side::Opener, &hello(), &welcome(), 8));
        assert!(!holds(Some(b"other"), Side::Opener, &hello(), &welcome(), 8));
        assert!(!holds(None, Side::Opener, &hello(), &welcome(), 8));
        assert!(!holds(secret, Side::Acceptor, &hello(), &welcome(), 8));
        assert!(!holds(secret, Side::Opener, &hello(), &welcome(), 9));
        let other_hellos = [
            Hello { cluster: Uuid::from_u128(9), ..hello() },
            Hello { node: NodeId(9), ..hello() },
            Hello { node_uuid: Uuid::from_u128(9), ..hello() },
            Hello { from: ShardId(9), ..hello() },
            Hello { to_node: NodeId(9), ..hello() },
            Hello { to: ShardId(9), ..hello() },
            Hello { nonce: [9; 32], ..hello() },
        ];
        for other in other_hellos {
            assert!(!holds(secret, Side::Opener, &other, &welcome(), 8), "{other:?}");
        }
        let other_welcomes = [
            Welcome { node: NodeId(9), ..welcome() },
            Welcome { node_uuid: Uuid::from_u128(9), ..welcome() },
            Welcome { nonce: [9; 32], ..welcome() },
        ];
        for other in other_welcomes {
            assert!(!holds(secret, Side::Opener, &hello(), &other, 8), "{other:?}");
        }
    }

    #[test]
    fn given_no_secret_when_a_proof_comes_then_it_is_not_taken() {
        let none = prove(None, Side::Opener, &hello(), &welcome(), 8);
        assert!(is_proven(None, Side::Opener, &hello(), &welcome(), 8, &none));
        assert!(!is_proven(Some(b"x"), Side::Opener, &hello(), &welcome(), 8, &none));
        let some = prove(Some(b"x"), Side::Opener, &hello(), &welcome(), 8);
        assert!(!is_proven(None, Side::Opener, &hello(), &welcome(), 8, &some));
    }

    #[test]
    fn given_two_nonces_when_compared_then_they_differ() {
        assert_ne!(nonce(), nonce());
    }
}
