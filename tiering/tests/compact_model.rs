//! Compaction of any records in any segments against the list of all records that there ever were.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod compact_support;

use std::collections::{BTreeMap, HashMap};

use chronik_engine::compression::Codec;
use chronik_tiering::compact::{Compacted, CompactionSettings};
use compact_support::{Input, Output, Partition, SETTINGS, build};
use proptest::prelude::*;

const RETENTION_MS: i64 = 60_000;

/// Segments of batches, and how many seconds pass before the round.
#[derive(Debug, Clone)]
struct Step {
    segments: Vec<Vec<(Codec, Vec<Input>)>>,
    seconds: i64,
}

fn input(keys: u16) -> impl Strategy<Value = Input> {
    let key = prop_oneof![9 => (0..keys).prop_map(Some), 1 => Just(None)];
    let value = prop_oneof![3 => (0..60_usize).prop_map(Some), 1 => Just(None)];
    let header = proptest::option::of(proptest::option::of(0..9_u8));
    (key, value, header, -1_i64..2_000_000).prop_map(|(key, value, header, timestamp_ms)| Input {
        key: key.map(|key| key.to_string().into_bytes()),
        value: value.map(|len| vec![b'v'; len]),
        headers: header.map(|value| (b"h".to_vec(), value.map(|v| vec![v]))).into_iter().collect(),
        timestamp_ms,
    })
}

fn step(keys: u16) -> impl Strategy<Value = Step> {
    let codec = proptest::sample::select(&Codec::ALL[..]);
    let batch = (codec, proptest::collection::vec(input(keys), 1..30));
    let segment = proptest::collection::vec(batch, 1..5);
    let segments = proptest::collection::vec(segment, 0..4);
    (segments, 0..90_i64).prop_map(|(segments, seconds)| Step { segments, seconds })
}

fn case() -> impl Strategy<Value = (CompactionSettings, Vec<Step>)> {
    let keys = prop_oneof![1..5_u16, 50..60_u16, 150..200_u16];
    let segment_bytes_max = prop_oneof![Just(0), Just(20_000), Just(1 << 20)];
    let map_bytes_max = prop_oneof![Just(0), Just(200 * 24), Just(1 << 20)];
    (keys, segment_bytes_max, map_bytes_max).prop_flat_map(|(keys, segment_bytes, map_bytes)| {
        let settings = CompactionSettings {
            delete_retention_ms: RETENTION_MS,
            segment_bytes_max: segment_bytes,
            map_bytes_max: map_bytes,
            ..SETTINGS
        };
        (Just(settings), proptest::collection::vec(step(keys), 1..7))
    })
}

/// All records there ever were, and when a round first had them in the clean part.
#[derive(Default)]
struct Model {
    all: Vec<Input>,
    clean_from_ms: Vec<i64>,
}

impl Model {
    fn newest(&self) -> HashMap<&[u8], usize> {
        let keyed = self.all.iter().enumerate();
        keyed.filter_map(|(at, input)| Some((input.key.as_deref()?, at))).collect()
    }

    /// What is left after a round: exactly this.
    fn check(&mut self, outputs: &[Output], compacted: &Compacted, now_ms: i64) {
        let clean = usize::try_from(compacted.clean_to.map_or(0, |to| to.0)).unwrap();
        let first_round = self.clean_from_ms.len();
        self.clean_from_ms.resize(clean.max(first_round), now_ms);
        let found: BTreeMap<usize, &Input> =
            outputs.iter().map(|(at, input)| (usize::try_from(*at).unwrap(), input)).collect();
        assert_eq!(found.len(), outputs.len());
        let newest = self.newest();
        let mut newest_clean: HashMap<&[u8], usize> = HashMap::new();
        for (at, input) in self.all[..clean].iter().enumerate() {
            if let Some(key) = input.key.as_deref() {
                newest_clean.insert(key, at);
            }
        }
        for (at, input) in self.all.iter().enumerate() {
            let is_newest = |key| newest.get(key) == Some(&at);
            let since_ms = self.clean_from_ms.get(at);
            // A round that first sees a tombstone keeps it, whatever the time.
            let has_passed = at < first_round
                && since_ms.is_some_and(|since_ms| now_ms >= since_ms + RETENTION_MS);
            match found.get(&at) {
                Some(found) => {
                    assert_eq!(*found, input, "offset {at}");
                    let key = input.key.as_deref();
                    let may = at >= clean || key.is_some_and(|key| newest_clean[key] == at);
                    assert!(may, "offset {at} has a newer record, or no key");
                    assert!(input.value.is_some() || !has_passed, "offset {at} is past its time");
                }
                None => {
                    assert!(at < clean, "offset {at} was not compacted");
                    let is_newest = input.key.as_deref().is_some_and(is_newest);
                    let may = !is_newest || (input.value.is_none() && has_passed);
                    assert!(may, "offset {at} is the newest of its key");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn given_any_records_when_compacted_in_rounds_then_the_newest_of_each_key_is_left(
        (settings, steps) in case()
    ) {
        let (mut partition, mut model) = (Partition::new(settings), Model::default());
        for step in steps {
            for segment in step.segments {
                let batches: Vec<_> =
                    segment.iter().map(|(codec, inputs)| build(*codec, inputs)).collect();
                partition.append(&batches);
                model.all.extend(segment.into_iter().flat_map(|(_, inputs)| inputs));
            }
            partition.now_ms += step.seconds * 1000;
            let mut rounds = 0;
            loop {
                let compacted = partition.compact();
                model.check(&partition.outputs(), &compacted, partition.now_ms);
                rounds += 1;
                prop_assert!(rounds < 20, "each round gets further");
                if !compacted.is_partial {
                    break;
                }
            }
            let (segments, changes) = (partition.segments(), partition.disk.counts().changes());
            partition.compact();
            prop_assert_eq!(partition.segments(), segments);
            prop_assert_eq!(partition.disk.counts().changes(), changes);
            prop_assert_eq!(partition.wants(), None);
        }
        let end = partition.end;
        prop_assert_eq!(partition.manifest.covered_to(chronik_engine::ids::Offset(0)).0, end);
    }
}
