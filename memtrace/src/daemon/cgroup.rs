//! What the memory controller says of a cgroup: use, limits, and how far away the nearest limit is.
//!
//! Version 2 and version 1 (of hybrid systems) are read alike. A limit holds for everything below it, so the nearest
//! one may be an ancestor's.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use procfs::process::Process;

use crate::probe::area;

/// Where the memory controller is.
pub struct Controller {
    root: PathBuf,
    files: &'static Files,
}

/// Names of a version's files.
struct Files {
    current: &'static str,
    max: &'static str,
    high: Option<&'static str>,
}

const V2: Files = Files {
    current: "memory.current",
    max: "memory.max",
    high: Some("memory.high"),
};

const V1: Files = Files {
    current: "memory.usage_in_bytes",
    max: "memory.limit_in_bytes",
    high: None,
};

/// A v1 limit above this is none: PAGE_COUNTER_MAX in bytes (include/linux/page_counter.h), rounded down.
const UNLIMITED: u64 = 1 << 62;

/// One reading of a cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes charged.
    pub current: u64,
    /// Its own hard limit.
    pub max: Option<u64>,
    /// Its own throttling limit.
    pub high: Option<u64>,
    /// Bytes left to the nearest limit, its own or an ancestor's.
    pub headroom: Option<u64>,
}

impl Controller {
    /// The memory controller of this machine; `None` where there is none.
    pub fn find() -> Option<Self> {
        let unified = area::hierarchy();
        if let Some(root) = unified.filter(|root| has_memory(root)) {
            return Some(Self { root, files: &V2 });
        }
        let mounts = Process::myself().ok()?.mountinfo().ok()?;
        let v1 = mounts.into_iter().find(|mount| {
            mount.fs_type == "cgroup" && mount.super_options.contains_key("memory")
        })?;
        Some(Self {
            root: v1.mount_point,
            files: &V1,
        })
    }

    /// Reads a cgroup, by its path as [`crate::seed::cgroup`] tells it. `None` where it is gone, or is the root, which
    /// is not charged.
    pub fn read(&self, path: &str) -> Option<Usage> {
        let own = self.root.join(path.trim_start_matches('/'));
        let current = number(&own.join(self.files.current))?;
        let mut usage = Usage {
            current,
            max: self.limit(&own, self.files.max),
            high: self.files.high.and_then(|high| self.limit(&own, high)),
            headroom: None,
        };
        let below_root = |at: &&Path| at.starts_with(&self.root) && **at != *self.root;
        for at in own.ancestors().take_while(below_root) {
            let names = [Some(self.files.max), self.files.high]
                .into_iter()
                .flatten();
            let nearest = names.filter_map(|name| self.limit(at, name)).min();
            if let Some(limit) = nearest
                && let Some(current) = number(&at.join(self.files.current))
            {
                let left = limit.saturating_sub(current);
                usage.headroom = Some(usage.headroom.map_or(left, |other| other.min(left)));
            }
        }
        Some(usage)
    }

    fn limit(&self, directory: &Path, name: &str) -> Option<u64> {
        number(&directory.join(name)).filter(|&limit| limit < UNLIMITED)
    }
}

fn has_memory(root: &Path) -> bool {
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    controllers.split_whitespace().any(|name| name == "memory")
}

/// The number in a file; `max` is none.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// How the use of cgroups grew.
#[derive(Default)]
pub struct Growth {
    points: BTreeMap<String, Vec<(u64, u64)>>,
}

/// Over how long growth is measured.
pub const GROWTH_NS: u64 = 60_000_000_000;

impl Growth {
    /// Notes the use of cgroups now, and forgets those that are not told.
    pub fn note(&mut self, time_ns: u64, current: &BTreeMap<String, u64>) {
        self.points.retain(|path, _| current.contains_key(path));
        for (path, &bytes) in current {
            let points = self.points.entry(path.clone()).or_default();
            note(points, time_ns, bytes);
        }
    }

    /// Bytes a second.
    pub fn of(&self, path: &str) -> f64 {
        self.points.get(path).map_or(0.0, |points| rate(points))
    }
}

/// Adds a point and drops what lies further back than growth is measured, but for one.
pub fn note(points: &mut Vec<(u64, u64)>, time_ns: u64, bytes: u64) {
    points.push((time_ns, bytes));
    let from = time_ns.saturating_sub(GROWTH_NS);
    let old = points.iter().take_while(|point| point.0 < from).count();
    points.drain(..old.min(points.len() - 1));
}

/// The slope between the first and the last point, in bytes a second.
pub fn rate(points: &[(u64, u64)]) -> f64 {
    match points {
        [first, .., last] if last.0 > first.0 => {
            (last.1 as f64 - first.1 as f64) * 1e9 / (last.0 - first.0) as f64
        }
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_nearest_limit_may_be_an_ancestors() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (path, current, max, high) in [
            ("a", 3 * GIB, "4294967296", "max"),
            ("a/b", GIB, "8589934592", "6442450944"),
        ] {
            write(&format!("{path}/memory.current"), &format!("{current}\n"));
            write(&format!("{path}/memory.max"), &format!("{max}\n"));
            write(&format!("{path}/memory.high"), &format!("{high}\n"));
        }
        let controller = Controller {
            root: root.path().to_owned(),
            files: &V2,
        };
        let usage = Usage {
            current: GIB,
            max: Some(8 * GIB),
            high: Some(6 * GIB),
            headroom: Some(GIB),
        };
        assert_eq!(controller.read("/a/b"), Some(usage));
        write("a/memory.max", "max");
        assert_eq!(controller.read("/a/b").unwrap().headroom, Some(5 * GIB));
        assert_eq!(controller.read("/a").unwrap().headroom, None);
        assert_eq!(controller.read("/gone"), None);
    }

    #[test]
    fn growth_is_of_the_last_minute() {
        let mut points = Vec::new();
        for second in 0..200u64 {
            let bytes = if second < 100 { 0 } else { (second - 100) * 10 };
            note(&mut points, second * 1_000_000_000, bytes);
        }
        assert_eq!(points.len(), 61);
        assert_eq!(rate(&points), 10.0);
        assert_eq!(rate(&points[..1]), 0.0);
    }
}
