//! Names that runtimes write down for the code they generate: `/tmp/perf-PID.map`, a line
//! `START SIZE NAME` each, in hexadecimal (tools/perf/Documentation/jit-interface.txt of Linux).

use std::{fs::File, io::Read as _, time::SystemTime};

/// More is not read; a JVM's map takes some MiB.
const LIMIT: u64 = 64 << 20;

/// The map of one process.
#[derive(Debug, Default)]
pub(super) struct PerfMap {
    /// First address, length and name; lowest first, the later line of the same address last.
    entries: Vec<(u64, u64, Box<str>)>,
}

impl PerfMap {
    /// The map that a process wrote since `since`: a pid may have been another's before.
    pub(super) fn of(pid: u32, since: SystemTime) -> Self {
        let mut text = Vec::new();
        if let Some(file) = open(pid, since)
            && let Err(error) = file.take(LIMIT).read_to_end(&mut text)
        {
            log::debug!("names of generated code of pid {pid}: {error}");
        }
        Self::parse(&String::from_utf8_lossy(&text))
    }

    fn parse(text: &str) -> Self {
        let entry = |line: &str| {
            let (start, rest) = line.trim_start().split_once(' ')?;
            let (size, name) = rest.split_once(' ')?;
            let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
            Some((number(start)?, number(size)?, name.trim().into()))
        };
        let mut entries: Vec<(u64, u64, Box<str>)> = text.lines().filter_map(entry).collect();
        entries.sort_by_key(|(start, ..)| *start);
        Self { entries }
    }

    /// The name of the code at `address`.
    pub(super) fn find(&self, address: u64) -> Option<&str> {
        let end = self
            .entries
            .partition_point(|(start, ..)| *start <= address);
        let (start, size, name) = self.entries.get(end.checked_sub(1)?)?;
        (address - start < *size).then_some(name)
    }
}

/// In the process's own /tmp while it lives, under the pid it knows itself by; in ours afterwards.
fn open(pid: u32, since: SystemTime) -> Option<File> {
    let own = |status: String| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))?;
        line.split_whitespace().last()?.parse::<u32>().ok()
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok();
    if let Some(known) = status.and_then(own)
        && let Ok(file) = File::open(format!("/proc/{pid}/root/tmp/perf-{known}.map"))
    {
        return regular(file);
    }
    let file = regular(File::open(format!("/tmp/perf-{pid}.map")).ok()?)?;
    let changed = file.metadata().ok()?.modified().ok()?;
    (changed >= since).then_some(file)
}

fn regular(file: File) -> Option<File> {
    file.metadata().ok()?.is_file().then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn lines_are_read_and_others_are_not() {
        let map =
            PerfMap::parse("10 8 JS:*hot file.js:1\nx\n30 zz bad\n0x20 0x10 later\n20 4 newer\n");
        assert_eq!(map.find(0x10), Some("JS:*hot file.js:1"));
        assert_eq!(map.find(0x17), Some("JS:*hot file.js:1"));
        assert_eq!(map.find(0x18), None);
        assert_eq!(map.find(0x23), Some("newer"));
        assert_eq!(map.find(0), None);
        assert_eq!(map.find(u64::MAX), None);
    }

    #[test]
    fn the_map_of_a_process_is_found_and_an_old_one_of_its_pid_is_not() {
        struct Map(String);
        impl Drop for Map {
            fn drop(&mut self) {
                let _ = std::fs::remove_file(&self.0);
            }
        }
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let map = Map(format!("/tmp/perf-{pid}.map"));
        let before = SystemTime::now() - Duration::from_secs(5);
        std::fs::write(&map.0, "1000 100 compiled\n").unwrap();
        let later = SystemTime::now() + Duration::from_secs(60);
        assert_eq!(PerfMap::of(pid, later).find(0x1001), Some("compiled"));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(PerfMap::of(pid, before).find(0x1001), Some("compiled"));
        assert_eq!(PerfMap::of(pid, later).find(0x1001), None);
    }
}
