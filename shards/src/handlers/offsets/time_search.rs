//! Which record of a batch is the first that is not older than a time.
//!
//! The batch may be compressed, and it comes from a client: a few kilobytes may unpack to many megabytes. So:
//!
//! - I1: on the core no more than [`ON_CORE_BYTES_MAX`] of a batch are looked at. What is larger goes to the thread that
//!   the core keeps for what blocks.
//! - I2: that is done [`OFF_CORE_SEARCHES_MAX`] times for one request on one shard, each time for at most
//!   [`UNPACKED_BYTES_MAX`] bytes. Beyond that the batch counts as a whole, as it does where its records make no sense:
//!   whoever begins to read there reads a part of a batch too much.
//! - I3: one batch is searched there at a time: the log makes its files on the same thread and must not wait long.

use std::rc::Rc;

use bytes::Bytes;
use chronik_engine::batch::{BatchError, BatchHeader, RecordBatch, TimestampType};
use chronik_engine::compression::CompressionError;
use chronik_ring::guest;
use futures_util::lock::Mutex;

/// What is unpacked or walked through on the core itself: a tenth of a millisecond or two.
const ON_CORE_BYTES_MAX: usize = 64 << 10;

/// What one batch may unpack to.
const UNPACKED_BYTES_MAX: usize = 16 << 20;

/// How many large batches are searched for one request on one shard: a second or two of the other thread at most.
const OFF_CORE_SEARCHES_MAX: usize = 64;

/// Where in its batch a record was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its offset from the batch's base offset.
    pub offset_delta: i64,
    /// Its timestamp.
    pub timestamp: i64,
}

/// What is looked for in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Records before it do not count: the log starts there.
    pub delta_min: i64,
    /// The least timestamp.
    pub timestamp: i64,
}

/// What of a batch is the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InBatch {
    /// This record.
    Record(Place),
    /// No record is known to be the one: the batch counts as a whole.
    Whole,
    /// Nothing: what would be lies before the log's start.
    Before,
}

/// What a search in one batch came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Searched {
    Found(InBatch),
    /// More bytes than allowed.
    TooLarge,
}

/// The bytes are no batch, though they were one when they were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what the log holds is not a batch")]
pub struct NoBatch;

/// The searches for one request on one shard (I2).
#[derive(Debug)]
pub struct TimeSearch {
    off_core_left: usize,
}

impl TimeSearch {
    /// None made so far.
    pub fn new() -> TimeSearch {
        TimeSearch { off_core_left: OFF_CORE_SEARCHES_MAX }
    }

    /// The first record of this batch that is wanted. Cancel-safe.
    ///
    /// # Errors
    /// [`NoBatch`] if the bytes are not a batch.
    pub async fn search(&mut self, batch: Bytes, wanted: Wanted) -> Result<InBatch, NoBatch> {
        let header = BatchHeader::read(&batch).ok_or(NoBatch)?;
        if header.timestamp_type() == TimestampType::LogAppendTime {
            return Ok(InBatch::Whole); // all its records have the batch's time, whatever their own fields say
        }
        let mut searched = Searched::TooLarge;
        if batch.len() <= ON_CORE_BYTES_MAX {
            searched = search(&batch, wanted, ON_CORE_BYTES_MAX)?;
        }
        if searched == Searched::TooLarge && self.take_off_core() {
            searched = off_core(move || search(&batch, wanted, UNPACKED_BYTES_MAX)).await?;
        }
        match searched {
            Searched::Found(found) => Ok(found),
            Searched::TooLarge => Ok(InBatch::Whole),
        }
    }

    /// Whether one more batch may be searched off the core.
    fn take_off_core(&mut self) -> bool {
        let left = self.off_core_left.checked_sub(1);
        self.off_core_left = left.unwrap_or(0);
        left.is_some()
    }
}

thread_local! {
    /// Held by whoever uses the other thread (I3). It belongs to the executor as that thread does.
    static TURN: Rc<Mutex<()>> = Rc::default();
}

/// Runs what would hold up the core on the thread that its executor keeps for that.
async fn off_core<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let turn = TURN.with(Rc::clone);
    let _turn = turn.lock().await;
    guest(glommio::executor().spawn_blocking(work)).await
}

fn search(batch: &Bytes, wanted: Wanted, bytes_max: usize) -> Result<Searched, NoBatch> {
    const WHOLE: Searched = Searched::Found(InBatch::Whole);
    let batch = RecordBatch::parse_stored(batch.clone()).map_err(|_| NoBatch)?;
    let records = match batch.records(bytes_max) {
        Ok(records) => records,
        Err(BatchError::Compression { source: CompressionError::TooLarge { .. } }) => {
            return Ok(Searched::TooLarge);
        }
        // It was taken as its producer sent it; its first offset is the best there is.
        Err(_) => return Ok(WHOLE),
    };
    let mut any_before = false;
    for record in records {
        let Ok(record) = record else { return Ok(WHOLE) };
        let offset_delta = i64::from(record.offset_delta);
        let timestamp = batch.base_timestamp_ms().saturating_add(record.timestamp_delta);
        if timestamp < wanted.timestamp {
            continue;
        }
        if !(0..=i64::from(batch.last_offset_delta())).contains(&offset_delta) {
            return Ok(WHOLE);
        }
        if offset_delta < wanted.delta_min {
            any_before = true;
            continue;
        }
        return Ok(Searched::Found(InBatch::Record(Place { offset_delta, timestamp })));
    }
    Ok(Searched::Found(if any_before { InBatch::Before } else { InBatch::Whole }))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use chronik_engine::batch::BatchBuilder;
    use chronik_engine::compression::Codec;
    use futures_util::future::join_all;

    use super::*;

    /// Records of 1000 bytes at the times 0, 10, 20 and so on.
    fn batch(codec: Codec, records: i64) -> Bytes {
        let mut builder = BatchBuilder::new().codec(codec);
        for record in 0..records {
            builder = builder.record(record * 10, None, Some(&[0; 1000]));
        }
        builder.build().unwrap().into_bytes()
    }

    const WHOLE: Searched = Searched::Found(InBatch::Whole);

    fn record(offset_delta: i64, timestamp: i64) -> InBatch {
        InBatch::Record(Place { offset_delta, timestamp })
    }

    fn found(offset_delta: i64, timestamp: i64) -> Searched {
        Searched::Found(record(offset_delta, timestamp))
    }

    /// Wanted of a batch that lies behind the log's start.
    fn at(timestamp: i64) -> Wanted {
        Wanted { delta_min: 0, timestamp }
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        glommio::LocalExecutor::default().run(future)
    }

    #[test]
    fn given_records_when_searched_for_a_time_then_the_first_that_is_not_older_is_found() {
        for codec in Codec::ALL {
            let batch = batch(codec, 5);
            let search = |timestamp| search(&batch, at(timestamp), ON_CORE_BYTES_MAX).unwrap();
            assert_eq!(search(0), found(0, 0));
            assert_eq!(search(11), found(2, 20));
            assert_eq!(search(40), found(4, 40));
            assert_eq!(search(41), WHOLE);
        }
    }

    #[test]
    fn given_a_log_that_starts_within_a_batch_when_searched_then_records_before_it_do_not_count() {
        let mut builder = BatchBuilder::new();
        for timestamp in [50, 10, 30, 20] {
            builder = builder.record(timestamp, None, None);
        }
        let batch = builder.build().unwrap().into_bytes();
        let search = |delta_min, timestamp| {
            search(&batch, Wanted { delta_min, timestamp }, ON_CORE_BYTES_MAX).unwrap()
        };
        assert_eq!(search(0, 20), found(0, 50));
        assert_eq!(search(1, 20), found(2, 30));
        assert_eq!(search(3, 20), found(3, 20));
        assert_eq!(search(1, 40), Searched::Found(InBatch::Before));
    }

    #[test]
    fn given_bytes_that_are_no_batch_when_searched_then_it_is_an_error() {
        let cut = batch(Codec::None, 5).slice(..200);
        assert_eq!(run(TimeSearch::new().search(cut, at(0))), Err(NoBatch));
        let short = Bytes::from_static(b"x");
        assert_eq!(run(TimeSearch::new().search(short, at(0))), Err(NoBatch));
    }

    #[test]
    fn given_the_brokers_time_in_a_batch_when_searched_then_its_records_own_do_not_count() {
        let sent = RecordBatch::parse(batch(Codec::None, 5)).unwrap();
        let stamped = sent.with_log_append_time(1000).into_bytes();
        // By the clients' times the third record would be the first at or after 20.
        assert_eq!(run(TimeSearch::new().search(stamped, at(20))), Ok(InBatch::Whole));
    }

    /// The checksum of a batch, over what follows it in the header.
    fn crc32c(bytes: &[u8]) -> u32 {
        let step = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
    }

    #[test]
    fn given_an_offset_outside_its_batch_when_the_record_is_found_then_the_batch_counts_as_a_whole()
    {
        let mut bytes = batch(Codec::None, 1).to_vec();
        // After the header: the record's length (two bytes), attributes, timestamp delta, offset delta in zigzag.
        let offset_delta_at = chronik_engine::batch::HEADER_BYTES + 4;
        assert_eq!(bytes[offset_delta_at], 0);
        bytes[offset_delta_at] = 3; // -2
        let crc = crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(search(&Bytes::from(bytes), at(0), ON_CORE_BYTES_MAX), Ok(WHOLE));
    }

    #[test]
    fn given_large_batches_when_searched_then_off_the_core_and_so_many_times_only() {
        let packed = batch(Codec::Zstd, 500);
        assert!(packed.len() < ON_CORE_BYTES_MAX, "only what it unpacks to is large");
        let plain = batch(Codec::None, 500);
        assert_eq!(search(&packed, at(4000), ON_CORE_BYTES_MAX), Ok(Searched::TooLarge));
        run(async {
            let mut searches = TimeSearch::new();
            for count in 0..OFF_CORE_SEARCHES_MAX {
                let large = if count % 2 == 0 { &packed } else { &plain };
                let place = searches.search(large.clone(), at(4000)).await.unwrap();
                assert_eq!(place, record(400, 4000));
            }
            assert_eq!(searches.search(packed, at(4000)).await, Ok(InBatch::Whole));
            assert_eq!(searches.search(plain, at(4000)).await, Ok(InBatch::Whole));
            let small = searches.search(batch(Codec::Zstd, 5), at(20)).await.unwrap();
            assert_eq!(small, record(2, 20));
        });
    }

    #[test]
    fn given_several_searches_when_there_are_threads_enough_then_they_take_turns() {
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        let work = || {
            RUNNING.fetch_add(1, Ordering::SeqCst);
            // Time for the others to begin, if they may.
            let running = (0..10_000).map(|_| {
                std::thread::yield_now();
                RUNNING.load(Ordering::SeqCst)
            });
            let most = running.max();
            RUNNING.fetch_sub(1, Ordering::SeqCst);
            most
        };
        let most = glommio::LocalExecutorBuilder::default()
            .blocking_thread_pool_placement(glommio::PoolPlacement::Unbound(3))
            .make()
            .unwrap()
            .run(join_all((0..6).map(|_| off_core(work))));
        assert_eq!(most, [Some(1); 6]);
    }

    #[test]
    fn given_a_batch_that_unpacks_to_more_than_is_allowed_when_searched_then_it_counts_as_a_whole()
    {
        let huge = vec![0; UNPACKED_BYTES_MAX];
        let builder = BatchBuilder::new().codec(Codec::Zstd).record(5, None, Some(&huge));
        let bomb = builder.build().unwrap().into_bytes();
        assert_eq!(run(TimeSearch::new().search(bomb, at(0))), Ok(InBatch::Whole));
    }
}
