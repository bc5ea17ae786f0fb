//! How likely what is in a run: each run draws its own, and leaves some faults out altogether, so that what only shows
//! with one kind of trouble is not hidden by all the others.

use rand::Rng;
use rand::rngs::StdRng;

/// A millisecond.
pub(super) const MS: u64 = 1_000;
/// A second.
pub(super) const SECOND: u64 = 1_000 * MS;

/// What may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Crash,
    Blackout,
    Wipe,
    DiskStops,
    DiskError,
    DiskFull,
    SlowDisk,
    Pause,
    ClockJump,
    Cut,
    OneWayCut,
    Isolation,
    Split,
    Clog,
    Damage,
}

impl Fault {
    const ALL: [Fault; 15] = [
        Fault::Crash,
        Fault::Blackout,
        Fault::Wipe,
        Fault::DiskStops,
        Fault::DiskError,
        Fault::DiskFull,
        Fault::SlowDisk,
        Fault::Pause,
        Fault::ClockJump,
        Fault::Cut,
        Fault::OneWayCut,
        Fault::Isolation,
        Fault::Split,
        Fault::Clog,
        Fault::Damage,
    ];
}

/// How likely damage is where there is some.
const DAMAGE_WEIGHT: u32 = 150;

/// The probabilities of a run, in parts of a thousand where nothing else is said.
#[derive(Debug, Clone)]
pub(super) struct Swarm {
    pub nodes: usize,
    pub shards: u16,
    /// Between two actions of clients or of fate, on average.
    pub action_us: u64,
    /// Actions that are faults.
    pub faults: u32,
    /// How likely which fault is among them.
    weights: Vec<(Fault, u32)>,
    pub lost: u32,
    pub doubled: u32,
    pub delay_us_min: u64,
    pub delay_us_max: u64,
    /// Whether what is sent on a link arrives in its order.
    pub is_ordered: bool,
    pub disk_us_max: u64,
    /// After this without a sign of life a peer counts as gone.
    pub silence_us: u64,
    /// How long a client waits.
    pub patience_us: u64,
    /// Actions that are commands of the catalog.
    pub commands: u32,
    /// Whether logs give back files that nobody on their node needs.
    pub reclaims: bool,
    /// Whether partitions move, and brokers are cordoned.
    pub moves: bool,
    /// Whether full files of the log become segments.
    pub has_segments: bool,
    /// The node whose segments are damaged.
    pub victim: Option<usize>,
    /// The node that is read-only, the last one.
    pub read_only: Option<usize>,
    /// Whether a minority is away when all other trouble ends.
    pub has_minority: bool,
    /// Whether disks refuse new files, names and room, too, though there is some.
    pub has_rare_disk_faults: bool,
    /// Whether damage hits logs, too: where they give back files of which there are segments.
    pub damages_logs: bool,
    /// Whether a node is removed at the end.
    pub has_removal: bool,
}

impl Swarm {
    pub(super) fn draw(seed: u64, rng: &mut StdRng) -> Swarm {
        let mut perhaps = |max: u32| match rng.random_range(0..3) {
            0 => 0,
            1 => rng.random_range(0..=max / 8),
            _ => rng.random_range(0..=max),
        };
        let (lost, doubled) = (perhaps(300), perhaps(500));
        let mut weights = Fault::ALL.map(|fault| (fault, perhaps(100)));
        let delay_us_min = rng.random_range(50..2_000);
        let spread_us = [200, 2 * MS, 20 * MS, 150 * MS][rng.random_range(0..4)];
        let nodes = [3, 4, 5][rng.random_range(0..3)];
        let victim = (rng.random_range(0..3) == 0).then(|| rng.random_range(0..nodes));
        let damage = if victim.is_some() { DAMAGE_WEIGHT } else { 0 };
        weights.iter_mut().filter(|(fault, _)| *fault == Fault::Damage).for_each(|w| w.1 = damage);
        // Not drawn, so that the other seeds stay what they were.
        let read_only = (seed % 4 == 3).then_some(nodes);
        let swarm = Swarm {
            nodes: nodes + usize::from(read_only.is_some()),
            shards: rng.random_range(1..=2),
            action_us: rng.random_range(4..16) * MS,
            faults: rng.random_range(2..16),
            weights: weights.into(),
            lost,
            doubled,
            delay_us_min,
            delay_us_max: delay_us_min + spread_us,
            is_ordered: rng.random(),
            disk_us_max: [200, 2 * MS, 20 * MS][rng.random_range(0..3)],
            silence_us: rng.random_range(400..3_000) * MS,
            patience_us: rng.random_range(500..4_000) * MS,
            commands: rng.random_range(2..20),
            reclaims: rng.random(),
            moves: rng.random(),
            has_segments: rng.random_range(0..4) > 0,
            victim,
            read_only,
            has_minority: !matches!(seed % 7, 0 | 5), // not drawn either
            has_rare_disk_faults: matches!(seed % 5, 1 | 2),
            damages_logs: false,
            has_removal: seed.is_multiple_of(3),
        };
        let damages_logs = swarm.has_segments && swarm.reclaims && !matches!(seed % 7, 0 | 5);
        Swarm { damages_logs, ..swarm }
    }

    /// Nothing is lost, late or broken any more.
    pub(super) fn calm(&mut self) {
        self.lost = 0;
        self.doubled = 0;
        self.delay_us_max = self.delay_us_max.min(self.delay_us_min + 20 * MS);
        self.disk_us_max = self.disk_us_max.min(2 * MS);
    }

    pub(super) fn draw_fault(&self, rng: &mut StdRng) -> Fault {
        let sum: u32 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut at = rng.random_range(0..sum.max(1));
        for (fault, weight) in &self.weights {
            match at.checked_sub(*weight) {
                Some(left) => at = left,
                None => return *fault,
            }
        }
        Fault::Crash
    }
}
