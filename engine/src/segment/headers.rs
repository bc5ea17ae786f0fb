//! The checksum of the batch headers of one interval of the index.
//!
//! A batch's own checksum leaves out its base offset and its leader epoch, which the broker sets. With the whole headers under
//! another one, what both cover is all of the batch; and a batch that is only passed over need not be read beyond its header.

use crate::batch::{BatchHeader, HEADER_BYTES};

/// Headers are gathered up to this: a checksum of many bytes costs less than one of as many in small pieces.
const GATHERED_BYTES_MAX: usize = 16 * HEADER_BYTES;

/// The checksum of headers that come one by one.
#[derive(Debug, Default)]
pub(super) struct HeadersCrc {
    hasher: crc32fast::Hasher,
    gathered: Vec<u8>,
}

impl HeadersCrc {
    /// Adds the header that `batch` begins with.
    pub(super) fn push(&mut self, batch: &[u8]) {
        self.gathered.extend_from_slice(&batch[..HEADER_BYTES]);
        if self.gathered.len() >= GATHERED_BYTES_MAX {
            self.flush();
        }
    }

    /// The checksum of those that came since this was last asked.
    pub(super) fn take(&mut self) -> u32 {
        self.flush();
        std::mem::take(&mut self.hasher).finalize()
    }

    /// The checksum of the headers of batches that take `len` bytes together, as far as they are in `bytes`; `None` where the
    /// batches there end elsewhere.
    pub(super) fn of(&mut self, bytes: &[u8], len: usize) -> Option<u32> {
        let mut at = 0_usize;
        while at < len {
            let batch = bytes.get(at..)?;
            at = at.checked_add(BatchHeader::read(batch)?.size().ok()?)?;
            self.push(batch);
        }
        let crc = self.take();
        (at == len).then_some(crc)
    }

    fn flush(&mut self) {
        self.hasher.update(&self.gathered);
        self.gathered.clear();
    }
}
