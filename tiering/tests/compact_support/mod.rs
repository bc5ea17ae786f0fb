//! A partition of segments on a simulated disk, written, compacted and read as its owner would.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};

use chronik_engine::batch::{BatchBuilder, RecordBatch, patch_header};
use chronik_engine::compression::Codec;
use chronik_engine::disk::Disk;
use chronik_engine::disk_sim::{SimDisk, block_on};
use chronik_engine::ids::{Offset, Term};
use chronik_engine::segment::{Manifest, Segment, SegmentBatch, SegmentId, SegmentReader};
use chronik_tiering::compact::{
    CompactError, Compacted, CompactionJob, CompactionReason, CompactionSettings, compact,
    delete_horizon, wants_compaction,
};
use chronik_tiering::gather::{Cut, Gathered};
use chronik_tiering::pace::Unpaced;
use uuid::Uuid;

pub const DIR: &str = "/segments";
pub const DAY_MS: i64 = 86_400_000;
pub const OUTPUT_MAX: usize = 64 << 20;

pub const SETTINGS: CompactionSettings = CompactionSettings {
    min_cleanable_dirty_ratio: 0.5,
    min_compaction_lag_ms: 0,
    max_compaction_lag_ms: i64::MAX,
    delete_retention_ms: DAY_MS,
    segment_bytes_max: 1 << 20,
    map_bytes_max: 1 << 20,
};

/// What a producer sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    pub timestamp_ms: i64,
}

pub fn put(key: &str, value: &str) -> Input {
    let (key, value) = (Some(key.into()), Some(value.into()));
    Input { key, value, headers: Vec::new(), timestamp_ms: 1000 }
}

pub fn tombstone(key: &str) -> Input {
    Input { value: None, ..put(key, "") }
}

/// What a consumer gets.
pub type Output = (i64, Input);

pub struct Partition {
    pub disk: SimDisk,
    pub manifest: Manifest,
    pub settings: CompactionSettings,
    pub now_ms: i64,
    pub end: i64,
    pub horizon_ms: Option<i64>,
}

pub fn id() -> SegmentId {
    SegmentId {
        cluster: Uuid::from_u128(1),
        topic: Uuid::from_u128(2),
        partition: 3,
        term: Term(4),
    }
}

pub fn path_of(segment: &Segment) -> PathBuf {
    Path::new(DIR).join(segment.file_name(id().topic, id().partition))
}

pub fn build(codec: Codec, inputs: &[Input]) -> RecordBatch {
    let builder = inputs.iter().fold(BatchBuilder::new().codec(codec), |builder, input| {
        let headers: Vec<(&[u8], Option<&[u8]>)> =
            input.headers.iter().map(|(key, value)| (&key[..], value.as_deref())).collect();
        let (key, value) = (input.key.as_deref(), input.value.as_deref());
        builder.record_with_headers(input.timestamp_ms, key, value, &headers)
    });
    builder.build().unwrap()
}

impl Partition {
    pub fn new(settings: CompactionSettings) -> Partition {
        let disk = SimDisk::new(1);
        block_on(disk.create_dir_all(Path::new(DIR))).unwrap();
        let manifest = Manifest::default();
        Partition { disk, manifest, settings, now_ms: 1_000_000, end: 0, horizon_ms: None }
    }

    /// Adds a segment of these batches.
    pub fn append(&mut self, batches: &[RecordBatch]) -> Segment {
        let (base, mut gathered) = (self.end, Gathered::new());
        for batch in batches {
            let mut bytes = batch.bytes().to_vec();
            patch_header(&mut bytes, Offset(self.end), Term(4));
            gathered.push(&bytes, Offset(self.end), batch.max_timestamp_ms());
            self.end += i64::from(batch.offset_count());
        }
        let cut = Cut {
            base_offset: Offset(base),
            end_offset: Offset(self.end),
            generation: 0,
            is_compacted: false,
        };
        let dir = Path::new(DIR);
        let mut pace = Unpaced;
        let written = gathered.write(&self.disk, dir, id(), cut, &mut pace);
        let segment = block_on(written).unwrap();
        self.manifest.push(segment);
        segment
    }

    /// Adds a segment of one batch.
    pub fn append_inputs(&mut self, inputs: &[Input]) -> Segment {
        self.append(&[build(Codec::None, inputs)])
    }

    pub fn segments(&self) -> Vec<Segment> {
        self.manifest.iter().copied().collect()
    }

    pub fn job(&self) -> CompactionJob {
        CompactionJob {
            dir: DIR.into(),
            id: id(),
            segments: self.segments(),
            up_to: Offset(self.end),
            settings: self.settings,
            hash_key: [9; 16],
            now_ms: self.now_ms,
        }
    }

    pub fn try_compact(&mut self, job: &CompactionJob) -> Result<Compacted, CompactError> {
        let (disk, manifest) = (self.disk.clone(), &mut self.manifest);
        let mut done = |new: Segment| {
            for old in manifest.replace(new) {
                // A crash may be in the way.
                let removed = block_on(disk.remove(&path_of(&old)));
                drop(removed);
            }
        };
        let compacted = block_on(compact(&self.disk, job, &mut Unpaced, &mut done))?;
        self.horizon_ms = compacted.delete_horizon_ms;
        Ok(compacted)
    }

    /// A round, after which the directory and the manifest agree, and what a restart would find out about tombstones
    /// is what the round said.
    pub fn compact(&mut self) -> Compacted {
        let compacted = self.try_compact(&self.job()).unwrap();
        let (found, left_over) = load(&self.disk);
        assert_eq!(found, self.manifest);
        assert_eq!(left_over, []);
        let segments = self.segments();
        let mut pace = Unpaced;
        let horizon = delete_horizon(&self.disk, Path::new(DIR), id(), &segments, &mut pace);
        assert_eq!(block_on(horizon).unwrap(), compacted.delete_horizon_ms);
        assert!(compacted.delete_horizon_ms.is_none_or(|at| at > self.now_ms - 1000), "I4");
        compacted
    }

    pub fn wants(&self) -> Option<CompactionReason> {
        let up_to = Offset(self.end);
        let (segments, horizon) = (self.segments(), self.horizon_ms);
        wants_compaction(&segments, up_to, &self.settings, horizon, self.now_ms)
    }

    pub fn batches(&self) -> Vec<RecordBatch> {
        batches(&self.disk, &self.manifest)
    }

    pub fn outputs(&self) -> Vec<Output> {
        outputs(&self.batches())
    }

    pub fn offsets(&self) -> Vec<i64> {
        self.outputs().iter().map(|(offset, _)| *offset).collect()
    }
}

/// The manifest of what the directory holds, and what is left over there.
pub fn load(disk: &SimDisk) -> (Manifest, Vec<Segment>) {
    let entries = block_on(disk.list(Path::new(DIR))).unwrap();
    let found = entries.iter().filter_map(|entry| Segment::parse(&entry.name, entry.len));
    let loaded = Manifest::load(found.map(|(_, _, segment)| segment).collect(), Offset(0));
    assert_eq!(loaded.unclear, []);
    (loaded.manifest, loaded.left_over)
}

/// All batches in order, of segments that are whole and stand for what their names say.
pub fn batches(disk: &SimDisk, manifest: &Manifest) -> Vec<RecordBatch> {
    let mut all: Vec<RecordBatch> = Vec::new();
    for segment in manifest.iter() {
        let found = block_on(async {
            let reader = SegmentReader::open(disk, &path_of(segment)).await.unwrap();
            reader.verify().await.unwrap();
            let (from, up_to) = (segment.base_offset, segment.end_offset);
            reader.read_batches(from, up_to, OUTPUT_MAX).await.unwrap()
        });
        assert!(!found.is_empty(), "{segment:?} has no batch");
        // A batch without records has a timestamp that no record has.
        let holds_records = |batch: &&SegmentBatch| {
            RecordBatch::parse_stored(batch.bytes.clone()).unwrap().record_count() > 0
        };
        let of_records = found.iter().filter(holds_records).map(|batch| batch.max_timestamp_ms);
        assert_eq!(of_records.max().unwrap_or(-1), segment.max_timestamp_ms, "{segment:?}");
        assert!(found.last().is_some_and(|last| last.end_offset <= segment.end_offset));
        all.extend(found.into_iter().map(|b| RecordBatch::parse_stored(b.bytes).unwrap()));
    }
    all
}

/// All records in order, as a consumer would decode them.
pub fn outputs(batches: &[RecordBatch]) -> Vec<Output> {
    let mut all: Vec<Output> = Vec::new();
    for batch in batches {
        let mut max_timestamp_ms = -1;
        for record in batch.records(OUTPUT_MAX).unwrap() {
            let record = record.unwrap();
            let offset = batch.base_offset().0 + i64::from(record.offset_delta);
            assert!(all.last().is_none_or(|(last, _)| *last < offset), "offsets rise");
            assert!(record.offset_delta <= batch.last_offset_delta());
            let headers = record.headers.iter();
            let input = Input {
                key: record.key.as_deref().map(<[u8]>::to_vec),
                value: record.value.as_deref().map(<[u8]>::to_vec),
                headers: headers
                    .map(|h| (h.key.to_vec(), h.value.as_deref().map(<[u8]>::to_vec)))
                    .collect(),
                timestamp_ms: batch.base_timestamp_ms() + record.timestamp_delta,
            };
            max_timestamp_ms = input.timestamp_ms.max(max_timestamp_ms);
            all.push((offset, input));
        }
        assert!(batch.record_count() == 0 || batch.max_timestamp_ms() == max_timestamp_ms);
    }
    all
}
