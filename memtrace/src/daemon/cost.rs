//! What the daemon costs: its own processor time and memory, and those of its programs in the kernel.

use std::{collections::HashSet, fs};

use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};
use procfs::process::{MMapPath, MemoryMap, MemoryMaps, Process};

/// Readings between two of the kernel side's memory: its maps hardly change.
const MAPS_TURNS: u32 = 10;

/// One reading.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Share of all CPUs' time since the reading before, in percent.
    pub cpu_percent: f64,
    /// Resident bytes, and those of maps and programs; maps that are mapped count once.
    pub memory: u64,
}

/// Measures between readings.
#[derive(Default)]
pub struct Meter {
    /// When, and what had been spent by then, in nanoseconds.
    before: Option<(u64, u64)>,
    kernel_bytes: u64,
    mapped_bytes: u64,
    turn: u32,
}

impl Meter {
    /// `kernel_ns` is what the programs have run so far.
    pub fn read(&mut self, now_ns: u64, kernel_ns: u64) -> Cost {
        let spent_ns = own_ns().saturating_add(kernel_ns);
        let before = self.before.replace((now_ns, spent_ns));
        if self.turn.is_multiple_of(MAPS_TURNS) {
            self.kernel_bytes = kernel_bytes();
            self.mapped_bytes = mapped_bytes();
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
            memory: resident()
                .saturating_sub(self.mapped_bytes)
                .saturating_add(self.kernel_bytes),
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

/// Resident bytes that are maps' own: the ring buffers' data twice, and the unwind rules.
fn mapped_bytes() -> u64 {
    let mappings = Process::myself().and_then(|process| process.smaps());
    mappings.map_or(0, |mappings| of_maps(&mappings))
}

/// The resident bytes of BPF maps.
fn of_maps(mappings: &MemoryMaps) -> u64 {
    let is_map = |mapping: &&MemoryMap| matches!(&mapping.pathname, MMapPath::Path(path) if path.as_os_str() == "anon_inode:bpf-map");
    let resident = |mapping: &MemoryMap| mapping.extension.map.get("Rss").copied();
    mappings.iter().filter(is_map).filter_map(resident).sum()
}

/// Bytes of maps and programs, as /proc/self/fdinfo tells them. One may have several descriptors.
fn kernel_bytes() -> u64 {
    let Ok(descriptors) = fs::read_dir("/proc/self/fdinfo") else {
        return 0;
    };
    let texts = descriptors
        .flatten()
        .map(|entry| fs::read_to_string(entry.path()));
    held_by(texts.flatten())
}

/// Bytes that the maps and programs of descriptors hold.
fn held_by(descriptors: impl Iterator<Item = String>) -> u64 {
    let mut seen = HashSet::new();
    let once = descriptors.filter(|text| {
        let id = text
            .lines()
            .find(|line| line.starts_with("map_id:") || line.starts_with("prog_id:"));
        id.is_none_or(|id| seen.insert(id.to_owned()))
    });
    once.filter_map(|text| held(&text)).sum()
}

/// Bytes that one descriptor's map or program holds. Before 6.4 a map is told as if it were full; one whose entries
/// are allocated as they come is then not counted at all.
fn held(fdinfo: &str) -> Option<u64> {
    const NO_PREALLOC: u64 = 1;
    let field = |name: &str| {
        let text = fdinfo
            .lines()
            .find_map(|line| line.strip_prefix(name))?
            .trim();
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        }
    };
    let bytes = field("memlock:")?;
    let full = || Some((field("key_size:")? + field("value_size:")?) * field("max_entries:")?);
    let grows = field("map_flags:").is_some_and(|flags| flags & NO_PREALLOC != 0);
    (!grows || full().is_none_or(|full| bytes < full)).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use procfs::FromRead as _;

    use super::*;

    #[test]
    fn a_map_that_grows_is_not_counted_as_if_it_were_full() {
        let map = |flags: &str, memlock: u64| {
            let text = format!(
                "pos:\t0\nmap_type:\t1\nkey_size:\t4\nvalue_size:\t24\nmax_entries:\t1000\n\
                 map_flags:\t{flags}\nmemlock:\t{memlock}\n"
            );
            held(&text)
        };
        assert_eq!(map("0x0", 28_672), Some(28_672));
        assert_eq!(map("0x1", 28_672), None);
        assert_eq!(map("0x1", 4096), Some(4096));
        assert_eq!(held("pos:\t0\nflags:\t02\n"), None);
    }

    #[test]
    fn mappings_of_maps_are_told_from_others() {
        let mapping = |name: &str, kib: u64| {
            format!(
                "7f0000000000-7f0000004000 rw-s 00000000 00:0e 1062 {name}\nSize: 16 kB\nRss: {kib} kB\nPss: 1 kB\n"
            )
        };
        let text = mapping("anon_inode:bpf-map", 16)
            + &mapping("/usr/bin/memtrace", 8)
            + &mapping("anon_inode:bpf-map", 32);
        let mappings = MemoryMaps::from_read(text.as_bytes()).unwrap();
        assert_eq!(of_maps(&mappings), 48 << 10);
    }

    #[test]
    fn a_map_with_two_descriptors_is_counted_once() {
        let of = |id: &str| format!("pos:\t0\nmap_flags:\t0x0\nmemlock:\t4096\n{id}\n");
        let all = ["map_id:\t7", "map_id:\t7", "map_id:\t8", "prog_id:\t7"].map(of);
        assert_eq!(held_by(all.into_iter()), 3 * 4096);
    }

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
