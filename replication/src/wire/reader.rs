//! Reads a body from its beginning to its end.
//!
//! Invariants: (I1) nothing is read that is not there: each read ends in a value or a [`WireError`]; (I2) a count is
//! believed only if what it counts fits into the bytes that are left, so that room for it may be made.

use super::WireError;

/// The bytes of a body that were not read yet.
#[derive(Debug, Clone)]
pub(super) struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { left: bytes }
    }

    /// How many bytes were not read yet.
    pub(super) fn left(&self) -> usize {
        self.left.len()
    }

    /// The next `count` bytes.
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let too_few = WireError::Truncated { needed: count, left: self.left.len() };
        let (taken, left) = self.left.split_at_checked(count).ok_or(too_few)?;
        self.left = left;
        Ok(taken)
    }

    /// All bytes that are left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.left)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let too_few = WireError::Truncated { needed: N, left: self.left.len() };
        let (taken, left) = self.left.split_first_chunk().ok_or(too_few)?;
        self.left = left;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, WireError> {
        self.array().map(i64::from_le_bytes)
    }

    /// Bytes that must be zero.
    pub(super) fn reserved(&mut self, count: usize) -> Result<(), WireError> {
        let all_zero = self.take(count)?.iter().all(|byte| *byte == 0);
        if all_zero { Ok(()) } else { Err(WireError::Reserved) }
    }

    /// Checks a count of things of at least `bytes_each` bytes against its bound and against what is left (I2).
    pub(super) fn check_count(
        &self,
        what: &'static str,
        count: usize,
        count_max: usize,
        bytes_each: usize,
    ) -> Result<(), WireError> {
        if count > count_max {
            return Err(WireError::Count { what, count, count_max });
        }
        let needed = count.saturating_mul(bytes_each);
        if needed > self.left() {
            return Err(WireError::Truncated { needed, left: self.left() });
        }
        Ok(())
    }

    /// Nothing may be left.
    pub(super) fn finish(self) -> Result<(), WireError> {
        match self.left.len() {
            0 => Ok(()),
            bytes => Err(WireError::Trailing { bytes }),
        }
    }
}
