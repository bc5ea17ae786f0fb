//! Who used the processors during a run: the generator, everything else, the hypervisor's other guests, and single
//! processes that are named.
//!
//! Latencies of a machine that somebody else was using are those of that somebody: a figure is worth what stands here.

use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result};
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
    /// Tasks that ran or wanted to, over the minute before the end.
    pub load_average: f64,
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cores { generator, others, stolen, load_average } = self;
        write!(
            f,
            "cores in use: generator {generator:.2}, all others {others:.2}, stolen {stolen:.2}; \
             load average {load_average:.1}"
        )
    }
}

/// What processes used while messages were acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MessageCpu {
    /// How many processes.
    pub processes: usize,
    /// Processor time of all of them, user and system.
    pub cpu_s: f64,
    /// The same by message.
    pub us_per_message: Option<f64>,
}

impl MessageCpu {
    /// The time of so many processes by so many messages.
    #[must_use]
    pub fn new(processes: usize, cpu: Duration, messages: u64) -> MessageCpu {
        let cpu_s = cpu.as_secs_f64();
        // Exact below 2^53 messages.
        let us_per_message = (messages > 0).then(|| cpu_s * 1e6 / messages as f64);
        MessageCpu { processes, cpu_s, us_per_message }
    }
}

/// Processor time that a process has used, user and system, in the kernel's ticks.
pub fn process_cpu(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let ticks = process_ticks(&stat).with_context(|| format!("no times in {path}"))?;
    let nanos = u128::from(ticks) * u128::from(SECOND_NS)
        / u128::from(rustix::param::clock_ticks_per_second().max(1));
    Ok(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
}

/// Processor time that the processes use in a window: it begins `warmup` from now and ends `measured` later, or when the
/// other end of `over` is dropped. `None` where that was before the window.
pub fn cpu_within(
    pids: &[u32],
    warmup: Duration,
    measured: Duration,
    over: &Receiver<()>,
) -> Result<Option<Duration>> {
    let all = || pids.iter().map(|pid| process_cpu(*pid)).sum::<Result<Duration>>();
    if over.recv_timeout(warmup) != Err(RecvTimeoutError::Timeout) {
        return Ok(None);
    }
    let before = all()?;
    // Whichever it was, the window is over.
    let _over = over.recv_timeout(measured);
    Ok(Some(all()?.saturating_sub(before)))
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
        Some(between(before, now, seconds * ticks_per_s, load_average()?))
    }
}

fn load_average() -> Option<f64> {
    let line = std::fs::read_to_string("/proc/loadavg").ok()?;
    line.split_whitespace().next()?.parse().ok()
}

fn between(before: Ticks, now: Ticks, ticks: f64, load_average: f64) -> Cores {
    let cores = |before: u64, now: u64| now.saturating_sub(before) as f64 / ticks.max(1.0);
    let generator = cores(before.own, now.own);
    Cores {
        generator,
        // The counters are not read at the same instant.
        others: (cores(before.busy, now.busy) - generator).max(0.0),
        stolen: cores(before.stolen, now.stolen),
        load_average,
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
        let busy = user + nice + system + irq + softirq;
        Some(Ticks { busy, stolen, own: process_ticks(own)? })
    }
}

/// User and system time of a process, from its `stat`.
fn process_ticks(stat: &str) -> Option<u64> {
    // The program's name may hold anything, a blank or a bracket too; state is the first field behind it.
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields = numbers(fields.split_once(' ')?.1);
    fields.get(10)?.checked_add(*fields.get(11)?)
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
        let cores = between(before, now, 100.0, 3.25);
        let expected = Cores { generator: 0.5, others: 1.5, stolen: 0.5, load_average: 3.25 };
        assert_eq!(cores, expected);
        assert!(cores.to_string().ends_with("stolen 0.50; load average 3.2"), "{cores}");
    }

    #[test]
    fn given_processor_time_when_divided_by_messages_then_none_are_no_ratio() {
        let some = MessageCpu::new(3, Duration::from_millis(20), 100);
        assert_eq!(some.us_per_message, Some(200.0));
        assert_eq!(MessageCpu::new(3, Duration::from_millis(20), 0).us_per_message, None);
    }

    #[test]
    fn given_a_window_that_never_began_when_it_is_over_then_no_time_is_claimed() {
        let own = [std::process::id()];
        let (over, is_over) = std::sync::mpsc::channel();
        drop(over);
        let long = Duration::from_secs(3_600);
        assert_eq!(cpu_within(&own, long, long, &is_over).unwrap(), None);
        let (_over, is_over) = std::sync::mpsc::channel();
        let whole = cpu_within(&own, Duration::ZERO, Duration::ZERO, &is_over).unwrap();
        assert!(whole.is_some());
        assert!(cpu_within(&[u32::MAX], Duration::ZERO, Duration::ZERO, &is_over).is_err());
    }

    #[test]
    fn given_this_machine_when_read_then_the_counters_are_there() {
        assert!(Usage::begin().end().is_some());
    }
}
