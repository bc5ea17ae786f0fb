//! The guard's schemas are right, and nothing a peer sends makes decoding panic or allocate much.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use chronik_net::protocol::support_of;
use chronik_net::{FrameError, Incoming, decode_request};
use common::requests::{random_frame, served};
use kafka_protocol::messages::ApiKey;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

/// Counts what this thread asks for; never what it gives back.
struct Counting;

#[allow(unsafe_code)]
// SAFETY: every call goes to the system's allocator unchanged; counting touches a plain cell.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.with(|allocated| allocated.set(allocated.get() + layout.size()));
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `System.alloc` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Beyond this and eight times the frame, a request is an attack.
const ALLOCATED_BASE: usize = 2 << 20;

fn decode_counted(body: Bytes) -> Result<Incoming, FrameError> {
    let before = ALLOCATED.with(Cell::get);
    let bytes = body.len();
    let decoded = decode_request(body);
    let allocated = ALLOCATED.with(Cell::get) - before;
    assert!(
        allocated <= ALLOCATED_BASE + 8 * bytes,
        "{allocated} bytes allocated for a frame of {bytes}: {decoded:?}"
    );
    decoded
}

fn body_of(frame: &Bytes) -> Bytes {
    frame.slice(4..)
}

#[test]
fn given_random_requests_of_every_version_when_decoded_then_the_guard_walks_to_their_end() {
    for (api_key, version) in served() {
        for seed in 0..60 {
            let frame = random_frame(api_key, version, seed);
            let decoded = decode_counted(body_of(&frame));
            assert!(decoded.is_ok(), "{api_key:?} v{version} seed {seed}: {decoded:?}");
        }
    }
}

#[test]
fn given_a_byte_less_when_decoded_then_it_is_refused() {
    // Whole they are accepted (above), so a walk that ended before the last byte would be accepted
    // here, too: this is the proof that it ends exactly at the end.
    for (api_key, version) in served() {
        for seed in 0..60 {
            let body = body_of(&random_frame(api_key, version, seed));
            let shorter = body.slice(..body.len() - 1);
            assert!(decode_request(shorter).is_err(), "{api_key:?} v{version} seed {seed}");
        }
    }
}

#[test]
fn given_bytes_behind_a_request_when_decoded_then_they_are_ignored_and_counted() {
    let meaning = |decoded: &Incoming| match decoded {
        Incoming::Request(request) => format!("{:?} {:?}", request.client_id, request.body),
        other => format!("{other:?}"),
    };
    for (api_key, version) in served() {
        for seed in 0..10 {
            let body = body_of(&random_frame(api_key, version, seed));
            let exact = meaning(&decode_request(body.clone()).unwrap());
            for tail in [&[0u8][..], &[0; 3], &[0xff; 9], b"\x01\x02\x03garbage"] {
                let longer = Bytes::from([&body[..], tail].concat());
                let bytes = longer.len();
                let decoded = decode_counted(longer).unwrap();
                assert_eq!(meaning(&decoded), exact, "{api_key:?} v{version} seed {seed}");
                if let Incoming::Request(request) = decoded {
                    assert_eq!(request.retained_bytes, bytes);
                }
            }
        }
    }
}

#[test]
fn given_versions_that_are_not_served_when_decoded_then_only_api_versions_is_answered() {
    for (api_key, version) in [(0, 2), (0, 14), (1, 3), (3, 14), (22, 6), (23, 1), (4, 0), (99, 0)]
    {
        let mut body = i16::to_be_bytes(api_key).to_vec();
        body.extend_from_slice(&i16::to_be_bytes(version));
        body.extend_from_slice(&[0; 20]);
        let decoded = decode_request(Bytes::from(body));
        match support_of(api_key) {
            Some(_) => {
                assert!(matches!(decoded, Err(FrameError::UnsupportedVersion { .. })))
            }
            None => assert!(matches!(decoded, Err(FrameError::UnknownApi { .. }))),
        }
    }
    let future = Bytes::from_static(&[0, 18, 0, 99, 0, 0, 0, 5, 0xff, 0xff, 0xff]);
    assert!(matches!(
        decode_request(future),
        Ok(Incoming::ApiVersions { correlation_id: 5, supported: false, .. })
    ));
}

/// Replaces each run of four bytes, and each single byte, by what a hostile count looks like.
#[test]
fn given_huge_counts_at_every_position_when_decoded_then_little_is_allocated() {
    let counts: [&[u8]; 6] = [
        &[0x7f, 0xff, 0xff, 0xff],
        &[0x80, 0, 0, 0],
        &[0xff, 0xff, 0xff, 0xff],
        &[0x00, 0x0f, 0xff, 0xff],
        &[0xff, 0xff, 0xff, 0xff, 0x0f],
        &[0xff, 0xff, 0xff, 0xff, 0xff],
    ];
    for (api_key, version) in served() {
        let body = body_of(&random_frame(api_key, version, 3));
        for position in 8..body.len().min(600) {
            for count in counts {
                let mut hostile = body.to_vec();
                let end = (position + count.len()).min(hostile.len());
                hostile[position..end].copy_from_slice(&count[..end - position]);
                // Only that it neither panics nor allocates: it may still be a valid request.
                decode_counted(Bytes::from(hostile)).ok();
            }
        }
    }
}

#[test]
fn given_a_frame_full_of_the_smallest_elements_when_decoded_then_memory_stays_in_bounds() {
    // Metadata v9: each topic is two bytes on the wire (empty name, no tags), over 70 in memory.
    let count = 900_000u32;
    let mut body = vec![0, 3, 0, 9, 0, 0, 0, 1, 0xff, 0xff, 0];
    let mut value = count + 1;
    while value >= 0x80 {
        body.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    body.push(u8::try_from(value).unwrap());
    body.extend(std::iter::repeat_n([1u8, 0], count as usize).flatten());
    body.extend_from_slice(&[0, 0, 0, 0]);
    assert!(decode_counted(Bytes::from(body)).is_err());
}

#[test]
fn given_many_tagged_fields_in_the_header_when_decoded_then_they_are_refused() {
    let mut body = vec![0, 3, 0, 9, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0x03];
    body.extend(std::iter::repeat_n([5u8, 0], 0xffff).flatten());
    let decoded = decode_counted(Bytes::from(body));
    assert!(matches!(decoded, Err(FrameError::TooManyTags { .. })), "{decoded:?}");
}

#[test]
fn given_repeated_tags_when_decoded_then_they_are_refused() {
    // Header of Metadata v9 with the same tag twice.
    let body = [0u8, 3, 0, 9, 0, 0, 0, 1, 0xff, 0xff, 2, 9, 0, 9, 0, 0, 0, 0, 0, 0];
    let decoded = decode_request(Bytes::copy_from_slice(&body));
    assert!(matches!(decoded, Err(FrameError::TagOrder { tag: 9, .. })), "{decoded:?}");
}

#[test]
fn given_a_known_tag_with_a_wrong_size_when_decoded_then_it_is_refused() {
    // Fetch v12 without topics; its tag 0 is the cluster id "abc": four bytes.
    let mut body = vec![0u8, 1, 0, 12, 0, 0, 0, 1, 0xff, 0xff, 0];
    body.extend_from_slice(&[0; 4 + 4 + 4 + 4 + 1 + 4 + 4]);
    body.extend_from_slice(&[1, 1, 1]); // no topics, none forgotten, empty rack
    let size_at = body.len() + 2;
    body.extend_from_slice(&[1, 0, 4, 4, b'a', b'b', b'c']);
    assert!(decode_request(Bytes::from(body.clone())).is_ok());
    body[size_at] = 3;
    let decoded = decode_request(Bytes::from(body));
    assert!(matches!(decoded, Err(FrameError::TagSize { tag: 0, .. })), "{decoded:?}");
}

#[test]
fn given_a_produce_request_when_decoded_then_its_records_are_slices_of_the_frame() {
    for seed in 0..40 {
        let body = body_of(&random_frame(ApiKey::Produce, 9, seed));
        let range = body.as_ptr_range();
        let Ok(Incoming::Request(request)) = decode_request(body.clone()) else {
            panic!("a request")
        };
        assert_eq!(request.retained_bytes, body.len());
        let chronik_net::RequestKind::Produce(produce) = request.body else { panic!("a produce") };
        for partition in produce.topic_data.iter().flat_map(|topic| &topic.partition_data) {
            if let Some(records) = partition.records.as_ref().filter(|records| !records.is_empty())
            {
                assert!(range.contains(&records.as_ptr()));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn given_random_mutations_when_decoded_then_nothing_panics_or_allocates_much(seed in any::<u64>()) {
        let mut rng = StdRng::seed_from_u64(seed);
        for (api_key, version) in served() {
            let mut body = body_of(&random_frame(api_key, version, seed)).to_vec();
            for _ in 0..rng.random_range(1..6) {
                let position = rng.random_range(8..body.len());
                match rng.random_range(0..4) {
                    0 => body[position] = rng.random(),
                    1 => body[position] ^= 1 << rng.random_range(0..8),
                    2 => { body.truncate(position); }
                    _ => body.insert(position, rng.random()),
                }
                if body.len() <= 9 {
                    break;
                }
            }
            decode_counted(Bytes::from(body)).ok();
        }
    }

    #[test]
    fn given_random_bytes_when_decoded_then_nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        decode_counted(Bytes::from(bytes)).ok();
    }
}
