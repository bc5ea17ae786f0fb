//! A hasher for ids: the same in every run, so that a simulation repeats itself, and cheap.
//!
//! Not safe against keys chosen to collide, so it is only for ids that the cluster gave out itself, or whose number is
//! bounded.

use std::hash::{BuildHasherDefault, Hasher};

/// Builds [`IdHasher`]s.
pub type IdHashBuilder = BuildHasherDefault<IdHasher>;

/// Multiplies and folds; see the module's page.
#[derive(Debug, Default, Clone, Copy)]
pub struct IdHasher(u64);

impl IdHasher {
    fn mix(&mut self, value: u64) {
        // The odd number nearest to 2^64 divided by the golden ratio: spreads runs of numbers over the upper bits.
        let product = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }
}

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.mix(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }

    fn write_i64(&mut self, value: i64) {
        self.mix(value.cast_unsigned());
    }
}
