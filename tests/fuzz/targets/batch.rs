//! The records of a produce request: parsing refuses them or gives a batch whose records can be read and whose header is
//! true to its bytes. The first input byte says whether the checksum is made right, without which little is reached.
#![no_main]

use bytes::Bytes;
use chronik_engine::batch::{HEADER_BYTES, RecordBatch, batches_in};
use chronik_engine::ids::{Offset, Term};
use libfuzzer_sys::fuzz_target;

/// What a topic's largest batch may unpack to.
const OUTPUT_MAX: usize = 1 << 20;

/// Puts the right CRC-32C where a batch has it.
fn seal(batch: &mut [u8]) {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &batch[21..]);
    let crc = u32::try_from(crc).expect("32 bits");
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
}

fuzz_target!(|input: &[u8]| {
    let Some((mode, batch)) = input.split_first() else { return };
    let mut batch = batch.to_vec();
    if mode & 1 == 1 && batch.len() >= HEADER_BYTES {
        seal(&mut batch);
    }
    let bytes = Bytes::from(batch);
    for found in batches_in(bytes.clone()) {
        let Ok(found) = found else { break };
        assert!(found.size() <= bytes.len());
    }
    let Ok(batch) = RecordBatch::parse(bytes.clone()) else { return };
    assert_eq!(batch.size(), bytes.len(), "a batch is the whole of its bytes");
    if let Ok(records) = batch.records(OUTPUT_MAX) {
        let read = records.take_while(Result::is_ok).count();
        assert!(read <= usize::try_from(batch.record_count()).unwrap_or(0));
    }
    if let Ok(summary) = batch.validate_records(OUTPUT_MAX) {
        let _: chronik_engine::batch::RecordSummary = summary;
    }
    let patched = batch.patched(Offset(7), Term(3));
    assert_eq!(patched.size(), batch.size());
});
