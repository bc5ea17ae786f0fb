//! Damage to a request, from a seed.
//!
//! Knows the frame's outer shape only: a length, then bytes. Most mutations keep the length true, so that the damage
//! reaches the decoder behind the framing.

use rand::Rng;
use rand::rngs::StdRng;

/// Numbers that break decoders, in the widths they are read in.
const I16S: [i16; 5] = [-1, 0, 1, i16::MAX, i16::MIN];
const I32S: [i32; 7] = [-1, -2, 0, 1, 0x00FF_FFFF, i32::MAX, i32::MIN];
const I64S: [i64; 5] = [-1, 0, i64::MAX, i64::MIN, 1 << 40];
/// Varints of 2^32-1, of 2^31-1, of more than 64 bits, and one that never ends.
const VARINTS: [&[u8]; 4] = [
    &[0xFF, 0xFF, 0xFF, 0xFF, 0x0F],
    &[0xFF, 0xFF, 0xFF, 0xFF, 0x07],
    &[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F],
    &[0xFF; 12],
];

/// One to three mutations of `frame` (length in front).
#[must_use]
pub fn mutate(frame: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut body = frame[4..].to_vec();
    for _ in 0..rng.random_range(1..=3) {
        mutate_once(&mut body, rng);
    }
    let mut length = i32::try_from(body.len()).unwrap_or(i32::MAX);
    if rng.random_ratio(1, 20) {
        // A length that is not true: the rest never comes, or what follows is read as a frame of its own.
        length = length.saturating_add(rng.random_range(-8..64));
    }
    let mut mutated = length.to_be_bytes().to_vec();
    mutated.extend_from_slice(&body);
    mutated
}

fn mutate_once(body: &mut Vec<u8>, rng: &mut StdRng) {
    if body.is_empty() {
        body.push(rng.random());
        return;
    }
    let at = rng.random_range(0..body.len());
    match rng.random_range(0..9) {
        0 => body[at] ^= 1 << rng.random_range(0..8),
        1 => body[at] = rng.random(),
        2 => overwrite(body, at, &I16S[rng.random_range(0..I16S.len())].to_be_bytes()),
        3 => overwrite(body, at, &I32S[rng.random_range(0..I32S.len())].to_be_bytes()),
        4 => overwrite(body, at, &I64S[rng.random_range(0..I64S.len())].to_be_bytes()),
        5 => overwrite(body, at, VARINTS[rng.random_range(0..VARINTS.len())]),
        6 => body.truncate(at),
        7 => {
            let end = rng.random_range(at..=body.len());
            let again = body[at..end].to_vec();
            body.splice(at..at, again);
        }
        _ => {
            let noise: Vec<u8> = (0..rng.random_range(1..40)).map(|_| rng.random()).collect();
            body.splice(at..at, noise);
        }
    }
}

/// Writes `bytes` over what is at `at`, as far as there is something.
pub fn overwrite(body: &mut [u8], at: usize, bytes: &[u8]) {
    let count = bytes.len().min(body.len() - at);
    body[at..at + count].copy_from_slice(&bytes[..count]);
}

/// How long a frame that is a Fetch may make a broker wait, in milliseconds; 0 for anything else. The client decides
/// that, so a request that was mutated to wait for a month is no fault of the broker that waits.
#[must_use]
pub fn fetch_wait_ms(frame: &[u8]) -> i32 {
    read_fetch_wait(frame).unwrap_or(0)
}

fn read_fetch_wait(frame: &[u8]) -> Option<i32> {
    let body = frame.get(4..)?;
    let i16_at = |at: usize| Some(i16::from_be_bytes(*body.get(at..)?.first_chunk()?));
    let (key, version) = (i16_at(0)?, i16_at(2)?);
    if key != 1 {
        return None;
    }
    // Key, version, correlation id, client id; from version 12 on tagged fields.
    let client_id = usize::try_from(i16_at(8)?).unwrap_or(0);
    let mut at = 10 + client_id;
    if version >= 12 {
        if *body.get(at)? != 0 {
            // Tagged fields in the header: rare enough to be passed over.
            return Some(i32::MAX);
        }
        at += 1;
    }
    if version < 15 {
        at += 4; // replica id
    }
    Some(i32::from_be_bytes(*body.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::raw::{encode_frame, fetch_request};

    #[test]
    fn given_a_seed_when_mutating_then_the_damage_is_always_the_same_and_nearly_always_there() {
        let frame = encode_frame(11, 1, &fetch_request("topic", 0, 0, 5)).unwrap();
        let run = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            (0..500).map(|_| mutate(&frame, &mut rng)).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
        let same = run(1).iter().filter(|mutated| **mutated == frame).count();
        assert!(same < 25, "{same} of 500 are unharmed");
    }

    #[test]
    fn given_a_fetch_of_each_kind_when_its_wait_is_read_then_it_is_what_was_asked() {
        for version in [4, 11, 12] {
            let frame = encode_frame(version, 1, &fetch_request("topic", 0, 0, 4_321)).unwrap();
            assert_eq!(fetch_wait_ms(&frame), 4_321, "version {version}");
        }
        let by_id = kafka_protocol::messages::FetchRequest::default().with_max_wait_ms(77);
        assert_eq!(fetch_wait_ms(&encode_frame(17, 1, &by_id).unwrap()), 77);
    }
}
