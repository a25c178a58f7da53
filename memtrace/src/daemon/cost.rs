//! What the daemon costs: its own processor time and memory, and those of its programs in the kernel.

use std::fs;

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};
use procfs::process::Process;

/// Readings between two of the kernel side's memory: its maps hardly change.
const MAPS_TURNS: u32 = 10;

/// One reading.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Share of all CPUs' time since the reading before, in percent.
    pub cpu_percent: f64,
    /// Resident bytes, and those of maps and programs.
    pub memory: u64,
}

/// Measures between readings.
#[derive(Default)]
pub struct Meter {
    /// When, and what had been spent by then, in nanoseconds.
    before: Option<(u64, u64)>,
    kernel_bytes: u64,
    turn: u32,
}

impl Meter {
    /// `kernel_ns` is what the programs have run so far.
    pub fn read(&mut self, now_ns: u64, kernel_ns: u64) -> Cost {
        let spent_ns = own_ns().saturating_add(kernel_ns);
        let before = self.before.replace((now_ns, spent_ns));
        if self.turn.is_multiple_of(MAPS_TURNS) {
            self.kernel_bytes = kernel_bytes();
        }
        self.turn = self.turn.wrapping_add(1);
        let cpu_percent = match before {
            Some((then_ns, spent)) if now_ns > then_ns => {
                let available = (now_ns - then_ns) as f64 * cpus() as f64;
                spent_ns.saturating_sub(spent) as f64 * 100.0 / available
            }
            _ => 0.0,
        };
        Cost {
            cpu_percent,
            memory: resident().saturating_add(self.kernel_bytes),
        }
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Processor time of all threads.
fn own_ns() -> u64 {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else {
        return 0;
    };
    let spent = usage.user_time() + usage.system_time();
    u64::try_from(spent.num_nanoseconds()).unwrap_or(0)
}

fn resident() -> u64 {
    let status = Process::myself().and_then(|process| process.status()).ok();
    let kib = status.and_then(|status| status.vmrss).unwrap_or(0);
    kib.saturating_mul(1024)
}

/// Bytes of maps and programs, as /proc/self/fdinfo tells them.
fn kernel_bytes() -> u64 {
    let Ok(descriptors) = fs::read_dir("/proc/self/fdinfo") else {
        return 0;
    };
    let of_one = |text: String| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("memlock:"))?;
        line.trim().parse::<u64>().ok()
    };
    let texts = descriptors
        .flatten()
        .map(|entry| fs::read_to_string(entry.path()));
    texts.flatten().filter_map(of_one).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_costs_and_rest_does_not() {
        let mut meter = Meter::default();
        assert_eq!(meter.read(0, 0).cpu_percent, 0.0);
        // A second of programs on each CPU within a second: everything, and what the test itself spent.
        let second = 1_000_000_000;
        let all = meter.read(second, second * cpus() as u64);
        assert!(all.cpu_percent >= 100.0, "{all:?}");
        assert!(all.memory > 1 << 20);
    }
}
