//! What a power cut makes of pending writes and names.
//!
//! - I1: only sectors of pending writes change, and those that an ending with a `to` position names.
//! - I2: a sector is old, new, or what the ending says, never a mixture that the ending does not say.

use std::rc::Rc;

use super::SECTOR_BYTES;
use super::world::{Inode, NameOp, PendingWrite, World};

/// What becomes of the pending writes of a file, taken sector by sector in the order they were submitted. Sector and
/// bit numbers count through all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashEnding {
    /// All are durable.
    KeepAll,
    /// None is: the old content is there.
    LoseAll,
    /// Only the first so many sectors are durable.
    Prefix {
        /// How many.
        sectors: usize,
    },
    /// Only the last so many sectors are durable: the device wrote them out of order.
    Suffix {
        /// How many.
        sectors: usize,
    },
    /// Each sector is durable or lost by the toss of a coin.
    Subset {
        /// Of the coin.
        seed: u64,
    },
    /// All are durable but one, which has its old content.
    Stale {
        /// Which.
        sector: usize,
    },
    /// All are durable but one, which is zeroes.
    ZeroedSector {
        /// Which.
        sector: usize,
    },
    /// All became zeroes.
    Zeroed,
    /// All became noise.
    Garbage {
        /// Of the noise.
        seed: u64,
    },
    /// All are durable, with one bit inverted.
    BitFlip {
        /// Which, modulo the number there are.
        bit: usize,
    },
    /// All are durable, and once more from position `to` of the file on.
    Duplicated {
        /// A multiple of the sector size.
        to: u64,
    },
    /// All landed from position `to` of the file on, not where they belong.
    Misdirected {
        /// A multiple of the sector size.
        to: u64,
    },
    /// One of the endings without a `to`, drawn for each write on its own from the disk's seed.
    Random,
}

impl CrashEnding {
    /// Every ending without a `to` for pending writes of so many sectors: what an exhaustive test goes through.
    #[must_use]
    pub fn matrix(sectors: usize) -> Vec<CrashEnding> {
        let mut endings = vec![CrashEnding::KeepAll, CrashEnding::LoseAll, CrashEnding::Zeroed];
        for sectors in 1..sectors {
            endings.push(CrashEnding::Prefix { sectors });
            endings.push(CrashEnding::Suffix { sectors });
        }
        for sector in 0..sectors {
            endings.push(CrashEnding::Stale { sector });
            endings.push(CrashEnding::ZeroedSector { sector });
            let bit = (sector * SECTOR_BYTES + sector * 131 % SECTOR_BYTES) * 8 + sector % 8;
            endings.push(CrashEnding::BitFlip { bit });
        }
        for seed in 0..8 {
            endings.push(CrashEnding::Subset { seed });
        }
        endings.push(CrashEnding::Garbage { seed: 1 });
        endings
    }
}

/// What becomes of the pending changes of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameEnding {
    /// All are durable.
    KeepAll,
    /// None is.
    LoseAll,
    /// Only the first so many are: what a journaling file system does.
    Prefix {
        /// How many.
        changes: usize,
    },
    /// Any prefix or any subset, drawn from the disk's seed.
    Random,
}

/// How the power is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashMode {
    /// What becomes of the pending writes of every file.
    pub writes: CrashEnding,
    /// What becomes of the pending changes of names.
    pub names: NameEnding,
}

impl CrashMode {
    /// Everything pending is durable, as after a mere death of the process.
    pub const KEEP_ALL: CrashMode =
        CrashMode { writes: CrashEnding::KeepAll, names: NameEnding::KeepAll };
    /// Everything pending is lost.
    pub const LOSE_ALL: CrashMode =
        CrashMode { writes: CrashEnding::LoseAll, names: NameEnding::LoseAll };
    /// The seed decides about each write and each name.
    pub const RANDOM: CrashMode =
        CrashMode { writes: CrashEnding::Random, names: NameEnding::Random };

    /// The given ending for writes; names are kept.
    #[must_use]
    pub fn writes(writes: CrashEnding) -> CrashMode {
        CrashMode { writes, names: NameEnding::KeepAll }
    }
}

/// SplitMix64: small, seeded, and the same on every machine.
#[derive(Debug, Clone)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 where that is 0. The bias of the modulo is far below what a test could see.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        let drawn = self.next() % (bound.max(1) as u64);
        usize::try_from(drawn).unwrap_or(0)
    }

    pub(super) fn below_u32(&mut self, bound: u32) -> u32 {
        u32::try_from(self.next() % u64::from(bound.max(1))).unwrap_or(0)
    }

    fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }

    pub(super) fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

impl World {
    pub(super) fn crash(&mut self, mode: CrashMode) {
        self.generation += 1;
        self.powered_off = false;
        self.set_crash_at(None);
        self.clear_faults();
        self.stop_recording();
        self.crash_names(mode.names);
        for file in self.inodes.values_mut() {
            let writes = std::mem::take(&mut file.pending);
            if mode.writes == CrashEnding::Random {
                for write in &writes {
                    let ending = random_ending(&mut self.rng, sectors_of(write).count());
                    end_writes(file, std::slice::from_ref(write), ending);
                }
            } else {
                end_writes(file, &writes, mode.writes);
            }
            file.live = Rc::clone(&file.durable);
        }
        let names = &self.names;
        self.inodes.retain(|id, _| names.values().any(|named| named == id));
    }

    fn crash_names(&mut self, ending: NameEnding) {
        let changes = std::mem::take(&mut self.names_pending);
        let rng = &mut self.rng;
        let kept: Vec<NameOp> = match ending {
            NameEnding::KeepAll => changes,
            NameEnding::LoseAll => Vec::new(),
            NameEnding::Prefix { changes: count } => changes.into_iter().take(count).collect(),
            NameEnding::Random if changes.is_empty() => changes,
            NameEnding::Random if rng.coin() => {
                let count = rng.below(changes.len() + 1);
                changes.into_iter().take(count).collect()
            }
            NameEnding::Random => changes.into_iter().filter(|_| rng.coin()).collect(),
        };
        for change in kept {
            change.apply(&mut self.names_durable);
        }
        self.names.clone_from(&self.names_durable);
    }
}

/// After a failed sync: each pending sector is durable or gone, for the running program too.
pub(super) fn settle_unknown(file: &mut Inode, rng: &mut Rng) {
    let writes = std::mem::take(&mut file.pending);
    for write in &writes {
        end_writes(file, std::slice::from_ref(write), CrashEnding::Subset { seed: rng.next() });
    }
    file.live = Rc::clone(&file.durable);
}

fn random_ending(rng: &mut Rng, sectors: usize) -> CrashEnding {
    match rng.below(12) {
        0..=2 => CrashEnding::KeepAll,
        3..=4 => CrashEnding::LoseAll,
        5 => CrashEnding::Prefix { sectors: rng.below(sectors + 1) },
        6 => CrashEnding::Suffix { sectors: rng.below(sectors + 1) },
        7 => CrashEnding::Subset { seed: rng.next() },
        8 => CrashEnding::Stale { sector: rng.below(sectors) },
        9 => CrashEnding::ZeroedSector { sector: rng.below(sectors) },
        10 => CrashEnding::BitFlip { bit: rng.below(sectors * SECTOR_BYTES * 8) },
        _ => CrashEnding::Zeroed,
    }
}

/// The sectors of a write with their positions in the file.
fn sectors_of(write: &PendingWrite) -> impl Iterator<Item = (usize, &[u8])> {
    let sectors = write.content.chunks(SECTOR_BYTES).enumerate();
    sectors.map(|(at, content)| (write.position + at * SECTOR_BYTES, content))
}

fn end_writes(file: &mut Inode, writes: &[PendingWrite], ending: CrashEnding) {
    let sectors: Vec<(usize, &[u8])> = writes.iter().flat_map(sectors_of).collect();
    if sectors.is_empty() {
        return;
    }
    let count = sectors.len();
    let durable = Rc::make_mut(&mut file.durable);
    let mut coin = Rng::new(if let CrashEnding::Subset { seed } = ending { seed } else { 0 });
    for (at, (position, content)) in sectors.iter().enumerate() {
        let target = &mut durable[*position..*position + content.len()];
        match ending {
            CrashEnding::LoseAll | CrashEnding::Misdirected { .. } => {}
            CrashEnding::Prefix { sectors } if at >= sectors => {}
            CrashEnding::Suffix { sectors } if at < count.saturating_sub(sectors) => {}
            CrashEnding::Subset { .. } if coin.coin() => {}
            CrashEnding::Stale { sector } if sector == at => {}
            CrashEnding::ZeroedSector { sector } if sector == at => target.fill(0),
            CrashEnding::Zeroed => target.fill(0),
            CrashEnding::Garbage { seed } => Rng::new(seed ^ at as u64).fill(target),
            _ => target.copy_from_slice(content),
        }
    }
    match ending {
        CrashEnding::BitFlip { bit } => {
            let bit = bit % (count * SECTOR_BYTES * 8);
            let (position, content) = sectors[bit / (SECTOR_BYTES * 8)];
            let byte = bit / 8 % SECTOR_BYTES % content.len();
            durable[position + byte] ^= 1 << (bit % 8);
        }
        CrashEnding::Duplicated { to } | CrashEnding::Misdirected { to } => {
            let mut at = usize::try_from(to).unwrap_or(usize::MAX);
            for (_, content) in &sectors {
                let Some(target) = durable.get_mut(at..at.saturating_add(content.len())) else {
                    break;
                };
                target.copy_from_slice(content);
                at += content.len();
            }
        }
        _ => {}
    }
}
