//! Which offset has the newest record of a key: a table of fixed size with hashes in it, not keys.
//!
//! - I1: the table never grows.
//! - I2: at most three quarters of it are taken, so a look-up ends.

use std::hash::Hasher;

use chronik_engine::ids::Offset;
use siphasher::sip128::{Hasher128, SipHasher24};

/// The fewest slots: less than this is no map.
const SLOTS_MIN: usize = 64;

/// The smallest part of the keys is one of `2^PART_BITS_MAX`.
const PART_BITS_MAX: u32 = 32;

/// What a slot holds whose key has no record: no offset.
const FREE: i64 = -1;

/// A key's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyHash {
    high: u64,
    low: u64,
}

/// A part of all keys, by the first bits of their hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyPart {
    bits: u32,
    index: u64,
}

impl KeyPart {
    /// Every key.
    pub(super) const ALL: KeyPart = KeyPart { bits: 0, index: 0 };

    /// The first half of it. What was before it is before it still.
    pub(super) fn half(self) -> Option<KeyPart> {
        let half = KeyPart { bits: self.bits + 1, index: self.index * 2 };
        (half.bits <= PART_BITS_MAX).then_some(half)
    }

    /// The part after it, of the same size. There is one.
    pub(super) fn next(self) -> KeyPart {
        assert!(!self.is_last(), "{self:?} ends with the last key");
        KeyPart { index: self.index + 1, ..self }
    }

    /// Whether there is none after it.
    pub(super) fn is_last(self) -> bool {
        self.index + 1 == 1 << self.bits
    }

    fn contains(self, hash: KeyHash) -> bool {
        self.bits == 0 || hash.high >> (u64::BITS - self.bits) == self.index
    }
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    high: u64,
    low: u64,
    newest: i64,
}

const EMPTY: Slot = Slot { high: 0, low: 0, newest: FREE };

/// See the module's page.
#[derive(Debug)]
pub(super) struct KeyMap {
    hash_key: [u8; 16],
    slots: Vec<Slot>,
    taken: usize,
    part: KeyPart,
}

impl KeyMap {
    /// In so much memory, and no more than so many keys need.
    pub(super) fn new(bytes_max: usize, keys_max: u64, hash_key: [u8; 16]) -> KeyMap {
        let needed = (keys_max / 3 + 1).saturating_mul(4);
        let needed = usize::try_from(needed).unwrap_or(usize::MAX);
        let count = (bytes_max / size_of::<Slot>()).min(needed).max(SLOTS_MIN);
        KeyMap { hash_key, slots: vec![EMPTY; count], taken: 0, part: KeyPart::ALL }
    }

    /// Forgets all keys, to take those of this part.
    pub(super) fn reset(&mut self, part: KeyPart) {
        self.slots.fill(EMPTY);
        self.taken = 0;
        self.part = part;
    }

    /// Whether it knows no key.
    pub(super) fn is_empty(&self) -> bool {
        self.taken == 0
    }

    /// Whether it is about the last part of the keys.
    pub(super) fn is_last_part(&self) -> bool {
        self.part.is_last()
    }

    /// Notes a record; false if there is no room for another key.
    pub(super) fn note(&mut self, key: &[u8], offset: Offset) -> bool {
        assert!(offset.0 > FREE, "no record has offset {offset}");
        let hash = self.hash(key);
        if !self.part.contains(hash) {
            return true;
        }
        let room = self.taken < self.slots.len() / 4 * 3;
        let at = self.position(hash);
        let slot = &mut self.slots[at];
        if slot.newest == FREE {
            if !room {
                return false;
            }
            self.taken += 1;
        }
        *slot = Slot { high: hash.high, low: hash.low, newest: slot.newest.max(offset.0) };
        true
    }

    /// Whether it knows a newer record of the key than that at `offset`.
    pub(super) fn has_newer(&self, key: &[u8], offset: Offset) -> bool {
        if self.is_empty() {
            return false;
        }
        let hash = self.hash(key);
        self.part.contains(hash) && self.slots[self.position(hash)].newest > offset.0
    }

    fn hash(&self, key: &[u8]) -> KeyHash {
        let mut hasher = SipHasher24::new_with_key(&self.hash_key);
        hasher.write(key);
        let hash = hasher.finish128();
        KeyHash { high: hash.h1, low: hash.h2 }
    }

    /// The hash's slot, or the free one that would be it.
    fn position(&self, hash: KeyHash) -> usize {
        let count = self.slots.len();
        let scaled = (u128::from(hash.low) * count as u128) >> u64::BITS;
        let mut at = usize::try_from(scaled).unwrap_or(0);
        loop {
            let slot = &self.slots[at];
            if slot.newest == FREE || (slot.high == hash.high && slot.low == hash.low) {
                return at;
            }
            at = if at + 1 == count { 0 } else { at + 1 };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn given_records_when_noted_then_the_newest_counts_whatever_their_order() {
        let mut map = KeyMap::new(1 << 20, 10_000, [7; 16]);
        let mut known: HashMap<Vec<u8>, i64> = HashMap::new();
        for at in 0..10_000_i64 {
            let (key, offset) = ((at % 3001).to_string().into_bytes(), at * 7919 % 10_007);
            assert!(map.note(&key, Offset(offset)));
            let newest = known.entry(key).or_insert(offset);
            *newest = offset.max(*newest);
        }
        assert_eq!(map.taken, known.len());
        for (key, newest) in known {
            assert!(!map.has_newer(&key, Offset(newest)));
            assert!(map.has_newer(&key, Offset(newest - 1)));
        }
        assert!(!map.has_newer(b"unknown", Offset(0)));
    }

    #[test]
    fn given_little_memory_when_full_then_known_keys_are_noted_still() {
        let mut map = KeyMap::new(100 * size_of::<Slot>(), u64::MAX, [7; 16]);
        let taken = (0..).take_while(|at: &i64| map.note(&at.to_be_bytes(), Offset(*at))).count();
        assert_eq!(taken, 75);
        assert!(map.note(&3_i64.to_be_bytes(), Offset(1000)));
        assert!(map.has_newer(&3_i64.to_be_bytes(), Offset(999)));
        assert!(!map.has_newer(&75_i64.to_be_bytes(), Offset(0)), "it was not taken");
    }

    #[test]
    fn given_memory_for_all_keys_when_noted_then_each_has_room() {
        for keys in 1..500_u64 {
            let mut map = KeyMap::new(1 << 20, keys, [7; 16]);
            assert!((0..keys).all(|key| map.note(&key.to_be_bytes(), Offset(1))), "{keys}");
            assert!(keys < 64 || map.slots.len() as u64 <= keys * 4 / 3 + 5, "{keys}");
        }
    }

    #[test]
    fn given_parts_when_gone_through_then_each_key_is_in_one() {
        let mut map = KeyMap::new(1 << 20, 1000, [9; 16]);
        let mut seen = HashMap::new();
        let mut part = KeyPart::ALL.half().and_then(KeyPart::half).unwrap();
        loop {
            map.reset(part);
            for key in 0..1000_u32 {
                assert!(map.note(&key.to_be_bytes(), Offset(1)));
                if map.has_newer(&key.to_be_bytes(), Offset(0)) {
                    *seen.entry(key).or_insert(0) += 1;
                }
            }
            if part.is_last() {
                break;
            }
            // The second quarter is gone through as two eighths.
            part = part.next();
            part =
                if part == (KeyPart { bits: 2, index: 1 }) { part.half().unwrap() } else { part };
        }
        assert_eq!(seen.len(), 1000);
        assert!(seen.values().all(|times| *times == 1));
        assert_eq!((0..=PART_BITS_MAX).try_fold(KeyPart::ALL, |part, _| part.half()), None);
    }
}
