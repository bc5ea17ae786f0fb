//! Every limit of the engine in one place, with the relations between them checked when it is compiled.
//!
//! A limit that an operator may set stands here as its default and the range it must lie in; a limit that a format or
//! an invariant depends on stands here and nowhere else. Nothing here depends on anything at run time.

use crate::disk::DISK_ALIGN;

/// The largest single write or read that is handed to a disk. Larger ones were seen to hang a kernel, and a block is
/// written faster as parallel parts.
pub const DISK_IO_BYTES_MAX: usize = MIB;

/// The largest payload of one Raft entry, which is the largest record batch: above Kafka's `message.max.bytes` in any
/// sane cluster, and what `socket.request.max.bytes` lets through at all.
pub const ENTRY_BYTES_MAX: usize = 100 * MIB;

/// The payload at which the log closes a block. One entry is always taken, whatever its size.
pub const WAL_BLOCK_BYTES_MAX: usize = 8 * MIB;

/// The most records of the log in one block.
pub const WAL_BLOCK_RECORDS_MAX: usize = 1 << 16;

/// The largest state of one group: what a checkpoint says of it beside its log, and what a snapshot carries. It is one
/// record of one block, and one message between two nodes.
pub const GROUP_STATE_BYTES_MAX: usize = 64 * MIB;

/// The size of a log file unless set otherwise.
pub const WAL_FILE_BYTES_DEFAULT: u64 = 256 << 20;

/// The smallest size of a log file that may be set; tests make use of it.
pub const WAL_FILE_BYTES_MIN: u64 = 64 << 10;

/// The largest size of a log file: positions within it fit 32 bits with room to spare.
pub const WAL_FILE_BYTES_MAX: u64 = 2 << 30;

/// The size of the first log file of a shard: a broker with little to do should not take 256 MiB per core.
pub const WAL_FIRST_FILE_BYTES_DEFAULT: u64 = 16 << 20;

/// The unit in which cold reads fetch from a log file.
pub const WAL_READ_EXTENT_BYTES: usize = 256 << 10;

/// Frame bytes that the tail cache of one core may keep alive unless set otherwise.
pub const TAIL_CACHE_BYTES_DEFAULT: usize = 64 * MIB;

/// Proposed and not yet answered bytes per core, beyond which connections are no longer read, unless set otherwise.
pub const IN_FLIGHT_BYTES_DEFAULT: usize = 64 * MIB;

/// The smallest record batch: its header and one empty record.
pub const BATCH_BYTES_MIN: usize = crate::batch::HEADER_BYTES + RECORD_BYTES_MIN;

/// The smallest record: its length, attributes, two deltas, two absent fields and a count of no headers.
pub const RECORD_BYTES_MIN: usize = 7;

/// The most that the records of one batch may come to when their compression is undone. A batch of zeroes shrinks by a
/// factor of a thousand, so this and not the request's size bounds what a client can make the broker hold.
pub const BATCH_DECOMPRESSED_BYTES_MAX: usize = 256 * MIB;

/// The most records in one batch that says so truthfully: each takes at least [`RECORD_BYTES_MIN`].
pub const BATCH_RECORDS_MAX: usize = BATCH_DECOMPRESSED_BYTES_MAX / RECORD_BYTES_MIN;

const MIB: usize = 1 << 20;

const _: () = assert!(DISK_IO_BYTES_MAX.is_multiple_of(DISK_ALIGN));
const _: () = assert!(WAL_READ_EXTENT_BYTES.is_multiple_of(DISK_ALIGN));
const _: () = assert!(WAL_READ_EXTENT_BYTES <= DISK_IO_BYTES_MAX);
const _: () = assert!(WAL_BLOCK_BYTES_MAX >= DISK_IO_BYTES_MAX);
const _: () = assert!(WAL_BLOCK_BYTES_MAX <= ENTRY_BYTES_MAX);
const _: () = assert!((ENTRY_BYTES_MAX as u64) < WAL_FILE_BYTES_DEFAULT / 2);
const _: () = assert!((GROUP_STATE_BYTES_MAX as u64) < WAL_FILE_BYTES_DEFAULT / 2);
const _: () = assert!(WAL_FILE_BYTES_MIN.is_multiple_of(DISK_ALIGN as u64));
const _: () = assert!(WAL_FILE_BYTES_MIN >= 2 * DISK_ALIGN as u64);
const _: () = assert!(WAL_FILE_BYTES_DEFAULT.is_multiple_of(DISK_ALIGN as u64));
const _: () = assert!(WAL_FIRST_FILE_BYTES_DEFAULT.is_multiple_of(DISK_ALIGN as u64));
const _: () = assert!(WAL_FILE_BYTES_MIN <= WAL_FIRST_FILE_BYTES_DEFAULT);
const _: () = assert!(WAL_FIRST_FILE_BYTES_DEFAULT <= WAL_FILE_BYTES_DEFAULT);
const _: () = assert!(WAL_FILE_BYTES_DEFAULT <= WAL_FILE_BYTES_MAX);
const _: () = assert!(WAL_FILE_BYTES_MAX <= u32::MAX as u64);
const _: () = assert!(ENTRY_BYTES_MAX <= BATCH_DECOMPRESSED_BYTES_MAX);
const _: () = assert!(BATCH_RECORDS_MAX <= i32::MAX as usize);
const _: () = assert!(BATCH_BYTES_MIN < DISK_ALIGN);
