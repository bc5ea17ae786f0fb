//! Who used the processors during a run: the generator, everything else, and the hypervisor's other guests.
//!
//! Latencies of a machine that somebody else was using are those of that somebody: a figure is worth what stands here.

use serde::Serialize;

use crate::clock::{Clock, SECOND_NS};

/// Processors in use on average, warm-up included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cores {
    /// By this program.
    pub generator: f64,
    /// By everything else on this machine; the broker's share is in it where it runs here.
    pub others: f64,
    /// Kept back by the hypervisor.
    pub stolen: f64,
}

/// Counters at the beginning of a run.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    clock: Clock,
    ticks: Option<Ticks>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    stolen: u64,
    own: u64,
}

impl Usage {
    /// Reads the counters.
    #[must_use]
    pub fn begin() -> Usage {
        Usage { clock: Clock::start(), ticks: Ticks::read() }
    }

    /// The use since then; `None` where the kernel does not say.
    #[must_use]
    pub fn end(&self) -> Option<Cores> {
        let (before, now) = (self.ticks?, Ticks::read()?);
        let seconds = self.clock.now_ns() as f64 / SECOND_NS as f64;
        let ticks_per_s = rustix::param::clock_ticks_per_second() as f64;
        Some(between(before, now, seconds * ticks_per_s))
    }
}

fn between(before: Ticks, now: Ticks, ticks: f64) -> Cores {
    let cores = |before: u64, now: u64| now.saturating_sub(before) as f64 / ticks.max(1.0);
    let generator = cores(before.own, now.own);
    Cores {
        generator,
        // The counters are not read at the same instant.
        others: (cores(before.busy, now.busy) - generator).max(0.0),
        stolen: cores(before.stolen, now.stolen),
    }
}

impl Ticks {
    fn read() -> Option<Ticks> {
        let machine = std::fs::read_to_string("/proc/stat").ok()?;
        let own = std::fs::read_to_string("/proc/self/stat").ok()?;
        Ticks::parse(&machine, &own)
    }

    fn parse(machine: &str, own: &str) -> Option<Ticks> {
        let line = machine.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let fields = numbers(line);
        // user nice system idle iowait irq softirq steal
        let &[user, nice, system, _idle, _iowait, irq, softirq, stolen, ..] = fields.as_slice()
        else {
            return None;
        };
        // The program's name may hold anything, a blank or a bracket too; state is the first field behind it.
        let (_, own) = own.rsplit_once(") ")?;
        let own = numbers(own.split_once(' ')?.1);
        Some(Ticks {
            busy: user + nice + system + irq + softirq,
            stolen,
            own: own.get(10)? + own.get(11)?,
        })
    }
}

/// The numbers of a line; those below zero count as zero.
fn numbers(line: &str) -> Vec<u64> {
    line.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: &str = "cpu  10 1 5 100 7 2 3 9 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";

    #[test]
    fn given_the_kernels_counters_when_parsed_then_idle_and_waiting_are_not_use() {
        let own = "77 (a) b) S 1 -1 77 0 -1 0 0 0 0 0 40 2 0 0 20 0 1 0";
        let ticks = Ticks::parse(MACHINE, own).unwrap();
        assert_eq!(ticks, Ticks { busy: 21, stolen: 9, own: 42 });
        assert_eq!(Ticks::parse("cpu  1 2\n", own), None);
        assert_eq!(Ticks::parse(MACHINE, "77 (a"), None);
    }

    #[test]
    fn given_two_readings_when_compared_then_the_rest_is_what_others_used() {
        let before = Ticks { busy: 100, stolen: 0, own: 10 };
        let now = Ticks { busy: 300, stolen: 50, own: 60 };
        let cores = between(before, now, 100.0);
        assert_eq!(cores, Cores { generator: 0.5, others: 1.5, stolen: 0.5 });
    }

    #[test]
    fn given_this_machine_when_read_then_the_counters_are_there() {
        assert!(Usage::begin().end().is_some());
    }
}
