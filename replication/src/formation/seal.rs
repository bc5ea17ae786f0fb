//! The seal on messages: only who knows the cluster's secret takes part in forming it.
//!
//! A body is the message and after it HMAC-SHA256, with the secret as key, over the direction and the message. A reply
//! repeats the random number of its request, so an old reply is of no use. An old request is, but can do no harm: votes
//! may be asked for twice, a ballot names the disks that it counts on, that a formation is chosen is taken only from a
//! peer that answers at its address, and a node that asks to be taken in with a disk that is known changes nothing.
//!
//! - I1: seals are compared in constant time.
//! - I2: without a secret a seal is zeros, and nothing but zeros is taken. That is for loopback alone.
//! - I3: the version of the message is judged first: another version may be sealed in another way.

use chronik_engine::framed::FramedError;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::peer::PeerProblem;
use super::protocol::{self, Envelope, MESSAGE_VERSION, Reply, Request};

const SEAL_BYTES: usize = 32;
const NO_SEAL: [u8; SEAL_BYTES] = [0; SEAL_BYTES];
const CONTEXT: &[u8] = b"chronik formation 1";

/// Which way a message goes, so that none can be sent back.
#[derive(Clone, Copy)]
enum Direction {
    Request = 1,
    Reply = 2,
}

/// The secret of the cluster, if it has one.
#[derive(Clone, Default)]
pub struct Seal(Option<Vec<u8>>);

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal(***)")
    }
}

/// Why a body is no message.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// It is of another version.
    #[error("formation messages of version {found} are not known")]
    Version { found: u8 },
    /// It is sealed with another secret, or changed on its way.
    #[error("a message is not sealed with the secret of this cluster")]
    Seal,
    /// It is no message.
    #[error("a message cannot be read")]
    Message {
        #[source]
        source: FramedError,
    },
}

impl SealError {
    /// What it says about the peer who sent it.
    pub(super) fn problem(&self) -> PeerProblem {
        match self {
            SealError::Version { found } => {
                PeerProblem::Version { found: *found, own: MESSAGE_VERSION }
            }
            SealError::Seal => PeerProblem::SecretDiffers,
            SealError::Message { .. } => PeerProblem::Garbled,
        }
    }
}

impl Seal {
    /// Seals with this secret; with none, not at all.
    #[must_use]
    pub fn new(secret: Option<Vec<u8>>) -> Seal {
        Seal(secret)
    }

    /// The body of a request.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn request(&self, request: &Envelope<Request>) -> Result<Vec<u8>, FramedError> {
        Ok(self.seal(Direction::Request, protocol::encode(request)?))
    }

    /// The body of a reply.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn reply(&self, reply: &Envelope<Reply>) -> Result<Vec<u8>, FramedError> {
        Ok(self.seal(Direction::Reply, protocol::encode(reply)?))
    }

    /// The request in a body.
    ///
    /// # Errors
    /// There is none that may be believed.
    pub fn open_request(&self, body: &[u8]) -> Result<Envelope<Request>, SealError> {
        let message = self.open(Direction::Request, body)?;
        protocol::decode_request(message).map_err(|source| SealError::Message { source })
    }

    /// The reply in a body.
    ///
    /// # Errors
    /// There is none that may be believed.
    pub fn open_reply(&self, body: &[u8]) -> Result<Envelope<Reply>, SealError> {
        let message = self.open(Direction::Reply, body)?;
        protocol::decode_reply(message).map_err(|source| SealError::Message { source })
    }

    fn seal(&self, direction: Direction, mut message: Vec<u8>) -> Vec<u8> {
        let seal: [u8; SEAL_BYTES] = match self.mac(direction, &message) {
            Some(mac) => mac.finalize().into_bytes().into(),
            None => NO_SEAL,
        };
        message.extend(seal);
        message
    }

    fn open<'a>(&self, direction: Direction, body: &'a [u8]) -> Result<&'a [u8], SealError> {
        match body.first() {
            Some(&MESSAGE_VERSION) => {}
            Some(&found) => return Err(SealError::Version { found }),
            None => return Err(SealError::Message { source: FramedError::Empty }),
        }
        let (message, seal) = body.split_last_chunk::<SEAL_BYTES>().ok_or(SealError::Seal)?;
        let is_intact = match self.mac(direction, message) {
            Some(mac) => mac.verify_slice(seal).is_ok(),
            None => self.0.is_none() && *seal == NO_SEAL,
        };
        if is_intact { Ok(message) } else { Err(SealError::Seal) }
    }

    /// `None` without a secret.
    fn mac(&self, direction: Direction, message: &[u8]) -> Option<Hmac<Sha256>> {
        // A key of any length will do, so this never fails.
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_ref()?).ok()?;
        mac.update(CONTEXT);
        mac.update(&[direction as u8]);
        mac.update(message);
        Some(mac)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use chronik_engine::ids::NodeId;

    use super::*;
    use crate::formation::ids::NodeUuid;

    fn probe() -> Envelope<Request> {
        let (from, to) = (NodeId(1), NodeId(2));
        let (list, exchange) = (5, 6);
        Envelope { from, from_uuid: NodeUuid(7), to, list, exchange, message: Request::Probe }
    }

    fn with(secret: &str) -> Seal {
        Seal::new(Some(secret.as_bytes().to_vec()))
    }

    #[test]
    fn given_one_secret_when_sealed_and_opened_then_the_message_is_the_same() {
        for seal in [with("secret"), with(""), Seal::new(None)] {
            let body = seal.request(&probe()).unwrap();
            assert_eq!(seal.open_request(&body).unwrap(), probe());
        }
    }

    #[test]
    fn given_another_secret_or_none_when_opened_then_it_is_refused() {
        let seals = [with("secret"), with("other"), Seal::new(None)];
        for (i, sealed) in seals.iter().enumerate() {
            let body = sealed.request(&probe()).unwrap();
            for (j, opened) in seals.iter().enumerate().filter(|(j, _)| *j != i) {
                let refused = opened.open_request(&body).unwrap_err();
                assert!(matches!(refused, SealError::Seal), "{i} {j}");
            }
        }
    }

    #[test]
    fn given_a_changed_or_missing_byte_when_opened_then_it_is_refused() {
        let seal = with("secret");
        let body = seal.request(&probe()).unwrap();
        for at in 0..body.len() {
            let mut changed = body.clone();
            changed[at] ^= 1;
            seal.open_request(&changed).unwrap_err();
            seal.open_request(&body[..at]).unwrap_err();
        }
    }

    #[test]
    fn given_a_request_when_taken_for_a_reply_then_it_is_refused() {
        let seal = with("secret");
        let body = seal.request(&probe()).unwrap();
        assert!(matches!(seal.open_reply(&body), Err(SealError::Seal)));
    }

    #[test]
    fn given_a_newer_version_when_opened_then_that_is_what_is_said() {
        let seal = with("secret");
        let mut body = seal.request(&probe()).unwrap();
        let newer = MESSAGE_VERSION + 1;
        body[0] = newer;
        let opened = seal.open_request(&body);
        assert!(matches!(opened, Err(SealError::Version { found }) if found == newer));
    }

    #[test]
    fn given_a_secret_when_printed_for_debugging_then_it_is_not_shown() {
        assert_eq!(format!("{:?}", with("hunter2")), "Seal(***)");
    }
}
