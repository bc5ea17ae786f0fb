//! Tests of the batch view, against a batch made by other means and against damage of every kind.

use proptest::prelude::*;

use super::*;

/// Made by a script of its own from Kafka's documentation of the format, with a bitwise CRC-32C.
const GOLDEN: &[u8] = include_bytes!("golden/three_records.bin");
const OUTPUT_MAX: usize = 1 << 20;

fn golden() -> BatchBuilder {
    let headers: [(&[u8], Option<&[u8]>); 2] = [(b"h", Some(b"1")), (b"n", None)];
    BatchBuilder::new()
        .base_offset(Offset(42))
        .leader_epoch(7)
        .producer(4711, 3, i32::MAX)
        .record(1_700_000_000_000, Some(b"key"), Some(b"value"))
        .record_with_headers(1_699_999_999_995, None, Some(&[b'x'; 200]), &headers)
        .record(1_700_000_001_000, Some(b"gone"), None)
}

fn small() -> BatchBuilder {
    BatchBuilder::new().record(1000, Some(b"k"), Some(b"v"))
}

/// Changes header fields and makes the checksum fit again.
fn altered(batch: &RecordBatch, alter: impl FnOnce(&mut BatchHeader)) -> Bytes {
    let mut header = *batch.header();
    alter(&mut header);
    let mut bytes = batch.bytes().to_vec();
    bytes[..HEADER_BYTES].copy_from_slice(&header.to_bytes());
    with_checksum(bytes)
}

fn with_checksum(mut bytes: Vec<u8>) -> Bytes {
    let crc = header::checksum(&bytes);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    Bytes::from(bytes)
}

/// A batch of one record whose bytes are given.
fn of_records(content: &[u8], record_count: i32) -> RecordBatch {
    let mut header = *small().build().unwrap().header();
    header.batch_length =
        i32::try_from(HEADER_BYTES - BATCH_OVERHEAD_BYTES + content.len()).unwrap();
    header.record_count = record_count;
    header.last_offset_delta = record_count - 1;
    let bytes = [&header.to_bytes()[..], content].concat();
    RecordBatch::parse(with_checksum(bytes)).unwrap()
}

fn fault(content: &[u8]) -> RecordFault {
    let mut records = of_records(content, 1).records(OUTPUT_MAX).unwrap();
    let error = records.next().unwrap().unwrap_err();
    assert!(records.next().is_none(), "nothing after an error");
    match error {
        BatchError::InvalidRecord { index: 0, fault } => fault,
        other => panic!("{other}"),
    }
}

#[test]
fn given_golden_batch_when_built_then_same_bytes() {
    assert_eq!(golden().build().unwrap().bytes()[..], *GOLDEN);
}

#[test]
fn given_golden_batch_when_parsed_then_all_fields() {
    let batch = RecordBatch::parse(Bytes::from_static(GOLDEN)).unwrap();
    assert_eq!(batch.base_offset(), Offset(42));
    assert_eq!(batch.leader_epoch(), 7);
    assert_eq!(batch.codec(), Codec::None);
    assert_eq!(batch.timestamp_type(), TimestampType::CreateTime);
    assert!(!batch.is_transactional() && !batch.is_control());
    assert_eq!((batch.record_count(), batch.last_offset_delta(), batch.offset_count()), (3, 2, 3));
    assert_eq!(batch.base_timestamp_ms(), 1_700_000_000_000);
    assert_eq!(batch.max_timestamp_ms(), 1_700_000_001_000);
    assert_eq!((batch.producer_id(), batch.producer_epoch()), (4711, 3));
    assert_eq!((batch.base_sequence(), batch.last_sequence()), (i32::MAX, 1));
    assert_eq!(batch.header().to_bytes(), GOLDEN[..HEADER_BYTES]);
    let records: Vec<Record> = batch.records(OUTPUT_MAX).unwrap().map(Result::unwrap).collect();
    assert_eq!(records.len(), 3);
    assert_eq!(records[0].key.as_deref(), Some(&b"key"[..]));
    assert_eq!((records[1].timestamp_delta, records[1].offset_delta), (-5, 1));
    assert_eq!(records[1].headers[0].value.as_deref(), Some(&b"1"[..]));
    assert_eq!(records[1].headers[1].value, None);
    assert_eq!(records[2].value, None);
    let summary = batch.validate_records(OUTPUT_MAX).unwrap();
    assert_eq!(summary.records_without_key, 1);
    assert_eq!(summary.min_timestamp_ms, 1_699_999_999_995);
    assert_eq!(summary.max_timestamp_ms, 1_700_000_001_000);
}

#[test]
fn given_place_in_log_when_patched_then_still_valid_and_idempotent() {
    let batch = small().build().unwrap();
    let patched = batch.patched(Offset(1 << 40), Term(9));
    assert_eq!(patched.size(), batch.size());
    assert!(patched.rest.as_ptr() == batch.bytes()[HEADER_BYTES..].as_ptr(), "not copied");
    let joined = Bytes::from([&patched.header[..], &patched.rest[..]].concat());
    let again = RecordBatch::parse(joined.clone()).unwrap();
    assert_eq!((again.base_offset(), again.leader_epoch()), (Offset(1 << 40), 9));
    assert_eq!(PatchedBatch::new(&joined, Offset(1 << 40), Term(9)), patched);
    assert_eq!(batch.base_offset(), Offset(0), "the shared bytes are as they were");
    assert_eq!(leader_epoch(Term(u64::MAX)), i32::MAX);
}

#[test]
fn given_old_or_unknown_versions_when_parsed_then_named_as_such() {
    for (magic, old) in [(0, true), (1, true), (3, false), (0xFF, false)] {
        let mut bytes = GOLDEN.to_vec();
        bytes[16] = magic;
        bytes.truncate(30); // an old message may be smaller than a batch's header
        let error = RecordBatch::parse(Bytes::from(bytes)).unwrap_err();
        assert_eq!(matches!(error, BatchError::OldMagic { .. }), old, "{error}");
        assert_eq!(matches!(error, BatchError::UnknownMagic { .. }), !old, "{error}");
    }
}

#[test]
fn given_wrong_lengths_when_parsed_then_refused() {
    let parse = |bytes: &[u8]| RecordBatch::parse(Bytes::copy_from_slice(bytes)).unwrap_err();
    for cut in [0, 1, 16, 17, 60, 61, GOLDEN.len() - 1] {
        assert!(matches!(parse(&GOLDEN[..cut]), BatchError::Truncated { .. }), "{cut}");
    }
    let long = [GOLDEN, &[0]].concat();
    assert!(matches!(parse(&long), BatchError::TrailingBytes { trailing: 1, .. }));
    for length in [i32::MIN, -1, 0, 48] {
        let mut bytes = GOLDEN.to_vec();
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        assert!(matches!(parse(&bytes), BatchError::InvalidLength { .. }), "{length}");
    }
    let mut bytes = GOLDEN.to_vec();
    bytes[8..12].copy_from_slice(&i32::MAX.to_be_bytes());
    assert!(matches!(parse(&bytes), BatchError::Truncated { .. }));
}

#[test]
fn given_records_that_do_not_decode_or_repeat_an_offset_when_sliced_then_refused() {
    let record = |delta: u8| [12, 0, 0, delta * 2, 1, 1, 0];
    let sliced = |records: &[&[u8]], count| {
        of_records(&records.concat(), count).record_slices(OUTPUT_MAX).map(|s| s.iter().count())
    };
    assert_eq!(sliced(&[&record(0), &record(1)], 2).unwrap(), 2);
    for (first, second) in [(0, 0), (1, 0), (0, 2)] {
        let error = sliced(&[&record(first), &record(second)], 2).unwrap_err();
        let fault = RecordFault::OffsetOutOfOrder;
        assert!(
            matches!(error, BatchError::InvalidRecord { fault: f, .. } if f == fault),
            "{error}"
        );
    }
    let trailing = sliced(&[&record(0), &[0]], 1).unwrap_err();
    assert!(matches!(trailing, BatchError::TrailingRecordBytes { trailing: 1 }), "{trailing}");
    let header_without_key = sliced(&[&[16, 0, 0, 0, 1, 1, 2, 1, 1]], 1).unwrap_err();
    assert!(matches!(header_without_key, BatchError::InvalidRecord { .. }));
}

#[test]
fn given_counts_that_do_not_fit_when_parsed_then_refused() {
    let batch = golden().build().unwrap();
    let cases = [(0, -1), (-1, -2), (3, 3), (2, 2), (i32::MIN, i32::MAX), (i32::MAX, i32::MAX - 1)];
    for (count, delta) in cases {
        let bytes = altered(&batch, |header| {
            header.record_count = count;
            header.last_offset_delta = delta;
        });
        let error = RecordBatch::parse(bytes).unwrap_err();
        assert!(matches!(error, BatchError::InvalidRecordCount { .. }), "{count} {delta}: {error}");
    }
    let empty = BatchBuilder::new().build().unwrap_err();
    assert!(matches!(empty, BatchError::InvalidRecordCount { record_count: 0, .. }));
}

#[test]
fn given_producer_fields_when_parsed_then_only_coherent_ones_pass() {
    let refused =
        |builder: BatchBuilder| matches!(builder.build(), Err(BatchError::InvalidProducer { .. }));
    assert!(refused(small().producer(1, -1, 0)));
    assert!(refused(small().producer(1, 0, -1)));
    assert!(refused(small().producer(-2, 0, 0)));
    assert!(refused(small().transactional()));
    assert!(!refused(small().producer(1, 0, 0).transactional()));
    assert!(!refused(small().producer(-1, -1, 0)), "some clients count without a producer");
    assert!(!refused(small().producer(1, 0, -1).transactional().control()), "a marker");
}

#[test]
fn given_unknown_codec_when_parsed_then_refused() {
    let bytes = altered(&small().build().unwrap(), |header| header.attributes |= 5);
    let error = RecordBatch::parse(bytes).unwrap_err();
    assert!(matches!(error, BatchError::UnknownCodec { id: 5 }), "{error}");
}

#[test]
fn given_log_append_time_when_set_then_valid_and_only_that_changed() {
    let batch = golden().codec(Codec::Zstd).build().unwrap();
    let stamped = batch.with_log_append_time(5);
    let stamped = RecordBatch::parse(stamped.into_bytes()).unwrap();
    assert_eq!(stamped.timestamp_type(), TimestampType::LogAppendTime);
    assert_eq!((stamped.max_timestamp_ms(), stamped.codec()), (5, Codec::Zstd));
    assert_eq!(stamped.bytes()[HEADER_BYTES..], batch.bytes()[HEADER_BYTES..]);
    assert_eq!(stamped.base_sequence(), batch.base_sequence());
}

#[test]
fn given_damaged_records_when_decoded_then_the_fault_is_named() {
    let good = [14, 0, 0, 0, 1, 1, 0]; // 7 bytes are stated, one is missing
    assert_eq!(fault(&good), RecordFault::Truncated);
    assert_eq!(fault(&[12, 0, 0, 0, 2, 0, 0]), RecordFault::Truncated, "no header count");
    assert_eq!(fault(&[1, 0, 0, 0, 1, 1, 0]), RecordFault::NegativeLength, "record of -1");
    assert_eq!(fault(&[12, 0, 0, 0, 3, 1, 0]), RecordFault::NegativeLength, "key of -2");
    assert_eq!(fault(&[12, 0, 0, 0, 1, 1, 1]), RecordFault::NegativeLength, "headers -1");
    assert_eq!(fault(&[14, 0, 0, 0, 1, 1, 0, 0]), RecordFault::TrailingBytes);
    assert_eq!(fault(&[0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 0, 0]), RecordFault::InvalidVarint);
    assert_eq!(fault(&[0x80, 0x80, 0x80, 0x80, 0x80, 0, 0]), RecordFault::InvalidVarint);
    // Two thousand million headers in no bytes.
    let many = [20, 0, 0, 0, 1, 1, 0xFE, 0xFF, 0xFF, 0xFF, 0x0F];
    assert_eq!(fault(&many), RecordFault::Truncated);
}

#[test]
fn given_more_bytes_than_records_when_decoded_then_error_after_the_last() {
    let batch = of_records(&[12, 0, 0, 0, 1, 1, 0, 9, 9], 1);
    let mut records = batch.records(OUTPUT_MAX).unwrap();
    assert!(records.next().unwrap().is_ok());
    let error = records.next().unwrap().unwrap_err();
    assert!(matches!(error, BatchError::TrailingRecordBytes { trailing: 2 }), "{error}");
    assert!(records.next().is_none());
    assert!(batch.validate_records(OUTPUT_MAX).is_err());
}

#[test]
fn given_offsets_out_of_order_when_validated_then_refused_though_decodable() {
    let twice = [12, 0, 0, 0, 1, 1, 0].repeat(2);
    let batch = of_records(&twice, 2);
    assert_eq!(batch.records(OUTPUT_MAX).unwrap().filter(Result::is_ok).count(), 2);
    let error = batch.validate_records(OUTPUT_MAX).unwrap_err();
    let fault = RecordFault::OffsetOutOfOrder;
    assert!(matches!(error, BatchError::InvalidRecord { index: 1, fault: f } if f == fault));
}

#[test]
fn given_bomb_when_records_are_asked_for_then_bounded() {
    let zeroes = vec![0; 1 << 20];
    for codec in Codec::ALL {
        let batch =
            BatchBuilder::new().codec(codec).record(0, None, Some(&zeroes)).build().unwrap();
        let error = batch.records(1 << 16).unwrap_err();
        let source = CompressionError::TooLarge { codec, output_max: 1 << 16 };
        assert_eq!(error.to_string(), BatchError::Compression { source }.to_string());
        assert!(batch.records(1 << 21).is_ok());
    }
}

#[test]
fn given_joined_batches_when_iterated_then_whole_ones_and_the_cut_one_is_left() {
    let first = small().build().unwrap();
    let second = golden().codec(Codec::Gzip).build().unwrap();
    let joined = [&first.bytes()[..], second.bytes(), &first.bytes()[..40]].concat();
    let mut batches = batches_in(Bytes::from(joined));
    assert_eq!(batches.next().unwrap().unwrap(), first);
    assert_eq!(batches.next().unwrap().unwrap(), second);
    assert!(batches.next().is_none());
    assert_eq!(batches.rest().len(), 40);
    let mut bytes = [&first.bytes()[..], first.bytes()].concat();
    bytes[62] ^= 1;
    let mut batches = batches_in(Bytes::from(bytes));
    assert!(batches.next().unwrap().is_err());
    assert!(batches.next().is_none(), "nothing after an error");
}

type Fields = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(Vec<u8>, Option<Vec<u8>>)>);

fn bytes_max(max: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..max)
}

fn records() -> impl Strategy<Value = Vec<Fields>> {
    let option = |max| proptest::option::of(bytes_max(max));
    let headers = proptest::collection::vec((bytes_max(10), option(10)), 0..4);
    let record = (0..i64::MAX / 2, option(20), option(300), headers);
    proptest::collection::vec(record, 1..30)
}

fn build(codec: Codec, records: &[Fields]) -> RecordBatch {
    let mut builder = BatchBuilder::new().codec(codec).producer(1, 2, 3);
    for (timestamp_ms, key, value, headers) in records {
        let headers: Vec<(&[u8], Option<&[u8]>)> =
            headers.iter().map(|(key, value)| (&key[..], value.as_deref())).collect();
        builder =
            builder.record_with_headers(*timestamp_ms, key.as_deref(), value.as_deref(), &headers);
    }
    builder.build().unwrap()
}

fn codec() -> impl Strategy<Value = Codec> {
    proptest::sample::select(&Codec::ALL[..])
}

proptest! {
    #[test]
    fn given_any_records_when_built_then_they_are_read_back(codec in codec(), given in records()) {
        let batch = build(codec, &given);
        let found: Vec<Record> =
            batch.records(OUTPUT_MAX).unwrap().collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(found.len(), given.len());
        for (index, (found, given)) in found.iter().zip(&given).enumerate() {
            prop_assert_eq!(found.offset_delta, i32::try_from(index).unwrap());
            prop_assert_eq!(batch.base_timestamp_ms() + found.timestamp_delta, given.0);
            prop_assert_eq!(found.key.as_deref(), given.1.as_deref());
            prop_assert_eq!(found.value.as_deref(), given.2.as_deref());
            let headers: Vec<_> = found
                .headers
                .iter()
                .map(|header| (header.key.to_vec(), header.value.as_ref().map(|v| v.to_vec())))
                .collect();
            prop_assert_eq!(&headers, &given.3);
        }
        let summary = batch.validate_records(OUTPUT_MAX).unwrap();
        prop_assert_eq!(summary.max_timestamp_ms, batch.max_timestamp_ms());
    }

    #[test]
    fn given_any_change_of_covered_bytes_when_parsed_then_never_accepted(
        codec in codec(), records in records(), at: prop::sample::Index, xor in 1u8..,
    ) {
        let mut bytes = build(codec, &records).bytes().to_vec();
        let at = 16 + at.index(bytes.len() - 16);
        bytes[at] ^= xor;
        prop_assert!(RecordBatch::parse(Bytes::from(bytes)).is_err());
    }

    #[test]
    fn given_any_cut_when_parsed_then_never_accepted(
        codec in codec(), records in records(), keep: prop::sample::Index,
    ) {
        let bytes = build(codec, &records).into_bytes();
        let cut = bytes.slice(..keep.index(bytes.len()));
        prop_assert!(RecordBatch::parse(cut.clone()).is_err());
        prop_assert!(batches_in(cut).next().is_none());
    }

    #[test]
    fn given_damage_under_a_right_checksum_when_decoded_then_no_panic(
        codec in codec(), records in records(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = build(codec, &records).bytes().to_vec();
        for (at, byte) in damage {
            let at = 21 + at.index(bytes.len() - 21);
            bytes[at] = byte;
        }
        if let Ok(batch) = RecordBatch::parse(with_checksum(bytes)) {
            let _validated = batch.validate_records(OUTPUT_MAX);
        }
    }

    #[test]
    fn given_noise_when_parsed_then_no_panic(noise in bytes_max(200)) {
        let _parsed = RecordBatch::parse(Bytes::from(noise.clone()));
        let batches = batches_in(Bytes::from(noise));
        prop_assert!(batches.count() <= 3);
    }
}
