//! `memtrace ps`: what the daemon tracks, a line each.

use std::io::{self, BufWriter, Write};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use super::{
    socket::{Socket, strange},
    status,
};
use crate::{
    daemon::{
        protocol::{CgroupLine, Listing, ProcessLine, Reply, Request},
        within::Within,
    },
    report::text::clean,
    units,
};

/// Arguments of `ps`.
#[derive(Args)]
pub struct Ps {
    /// Most of this first.
    #[arg(long, value_enum, default_value = "committed")]
    sort: Sort,
    /// A line for each cgroup instead: what is charged, and what is left to the nearest limit.
    #[arg(long)]
    cgroups: bool,
    /// text or json.
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    #[command(flatten)]
    within: Within,
    #[command(flatten)]
    socket: Socket,
}

/// What processes are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// Resident bytes.
    Committed,
    /// Reserved and not resident.
    Lazy,
    /// Growth of resident bytes.
    Growth,
    /// Faults a second.
    Faults,
    /// 99th percentile of the latency of faults.
    P99,
    /// Bytes in live blocks.
    Heap,
    /// Pid, rising.
    Pid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

impl Ps {
    /// Asks and prints.
    pub fn execute(self) -> Result<u8> {
        let Reply::Ps(mut listing) = self.socket.ask(Request::Ps {})? else {
            return Err(strange().into());
        };
        self.within.narrow(&mut listing);
        sort(&mut listing.processes, self.sort);
        let mut out = BufWriter::new(io::stdout().lock());
        let printed = match self.format {
            Format::Json => serde_json::to_writer(&mut out, &listing)
                .map_err(io::Error::from)
                .and_then(|()| writeln!(out)),
            Format::Text if self.cgroups => cgroups(&listing, &mut out),
            Format::Text => processes(&listing, &mut out),
        };
        match printed.and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(status::DONE),
            other => other
                .map(|()| status::DONE)
                .context("cannot write the list"),
        }
    }
}

/// Sorts, most first; what is not measured comes last.
pub fn sort(processes: &mut [ProcessLine], by: Sort) {
    processes.sort_by(|a, b| {
        let order = match by {
            Sort::Committed => b.committed_bytes.cmp(&a.committed_bytes),
            Sort::Lazy => b.lazy_bytes.cmp(&a.lazy_bytes),
            Sort::Growth => b.growth_per_second.total_cmp(&a.growth_per_second),
            Sort::Faults => b.faults_per_second.total_cmp(&a.faults_per_second),
            Sort::P99 => b.fault_p99_ns.cmp(&a.fault_p99_ns),
            Sort::Heap => b.heap_live_bytes.cmp(&a.heap_live_bytes),
            Sort::Pid => std::cmp::Ordering::Equal,
        };
        order.then(a.pid.cmp(&b.pid))
    });
}

const HEADINGS: [&str; 9] = [
    "PID",
    "CPID",
    "COMMITTED",
    "LAZY",
    "GROWTH/S",
    "FAULTS/S",
    "P99",
    "HEAP",
    "NAME",
];

fn processes(listing: &Listing, out: &mut dyn Write) -> io::Result<()> {
    let rows: Vec<[String; 9]> = listing.processes.iter().map(cells).collect();
    table(&HEADINGS, &rows, out)?;
    lost(listing, out)
}

/// One process; the name is followed by the container, where it is in one.
pub fn cells(line: &ProcessLine) -> [String; 9] {
    let name = match &line.container {
        Some(container) => format!("{} ({})", clean(&line.comm), clean(container)),
        None => clean(&line.comm),
    };
    [
        line.pid.to_string(),
        line.container_pid
            .map_or("-".to_owned(), |pid| pid.to_string()),
        units::bytes(line.committed_bytes),
        units::bytes(line.lazy_bytes),
        growth(line.growth_per_second),
        format!("{:.0}", line.faults_per_second),
        line.fault_p99_ns.map_or("-".to_owned(), units::latency),
        line.heap_live_bytes.map_or("-".to_owned(), units::bytes),
        name,
    ]
}

fn cgroups(listing: &Listing, out: &mut dyn Write) -> io::Result<()> {
    let headings = [
        "CHARGED",
        "LIMIT",
        "LEFT",
        "GROWTH/S",
        "TIME LEFT",
        "PROCESSES",
        "CGROUP",
    ];
    let cells = |line: &CgroupLine| {
        let bytes = |value: Option<u64>| value.map_or("-".to_owned(), units::bytes);
        [
            bytes(line.current_bytes),
            bytes(
                [line.max_bytes, line.high_bytes]
                    .into_iter()
                    .flatten()
                    .min(),
            ),
            bytes(line.headroom_bytes),
            growth(line.growth_per_second),
            line.seconds_left.map_or("-".to_owned(), |seconds| {
                units::duration((seconds * 1e9) as u64)
            }),
            line.processes.to_string(),
            clean(&line.path),
        ]
    };
    let rows: Vec<[String; 7]> = listing.cgroups.iter().map(cells).collect();
    table(&headings, &rows, out)?;
    lost(listing, out)
}

/// Bytes a second, with a sign.
fn growth(per_second: f64) -> String {
    let bytes = units::bytes(per_second.abs() as u64);
    if per_second.abs() < 1.0 {
        "0".to_owned()
    } else if per_second < 0.0 {
        format!("-{bytes}")
    } else {
        format!("+{bytes}")
    }
}

fn lost(listing: &Listing, out: &mut dyn Write) -> io::Result<()> {
    if listing.lost > 0 {
        let events = units::counted(listing.lost, "event was", "events were");
        writeln!(out, "\n{events} lost: memtrace report says which")?;
    }
    Ok(())
}

/// Columns as wide as they must be, numbers to the right, the last one to the left.
fn table<const N: usize>(
    headings: &[&str; N],
    rows: &[[String; N]],
    out: &mut dyn Write,
) -> io::Result<()> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).max(headings[column].len())
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let headings = std::array::from_fn(|column| headings[column].to_owned());
    for row in std::iter::once(&headings).chain(rows) {
        for (column, cell) in row.iter().enumerate() {
            if column + 1 == N {
                writeln!(out, "{cell}")?;
            } else {
                write!(out, "{cell:>width$}  ", width = widths[column])?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(pid: u32, committed_bytes: u64, p99: Option<u64>) -> ProcessLine {
        ProcessLine {
            pid,
            container_pid: (pid == 12).then_some(1),
            comm: "re\u{1b}dis".into(),
            reserved_bytes: 2 * committed_bytes,
            committed_bytes,
            lazy_bytes: committed_bytes,
            growth_per_second: if pid == 12 { 1536.0 } else { -0.2 },
            minor: 5,
            major: 0,
            faults_per_second: 2.4,
            fault_p99_ns: p99,
            heap_live_bytes: None,
            cgroup: "/a".into(),
            container: (pid == 12).then(|| "docker:0123".into()),
        }
    }

    #[test]
    fn a_line_each_most_first() {
        let mut listing = Listing {
            processes: vec![line(3, 4096, None), line(12, 3 << 20, Some(1200))],
            lost: 1,
            ..Listing::default()
        };
        sort(&mut listing.processes, Sort::Committed);
        let mut out = Vec::new();
        processes(&listing, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "PID  CPID  COMMITTED     LAZY  GROWTH/S  FAULTS/S     P99  HEAP  NAME\n \
             12     1    3.0 MiB  3.0 MiB  +1.5 KiB         2  1.2 µs     -  re\\u{1b}dis (docker:0123)\n  \
             3     -    4.0 KiB  4.0 KiB         0         2       -     -  re\\u{1b}dis\n\
             \n1 event was lost: memtrace report says which\n"
        );
        sort(&mut listing.processes, Sort::Pid);
        assert_eq!(listing.processes[0].pid, 3);
    }

    #[test]
    fn headroom_of_a_cgroup() {
        let listing = Listing {
            cgroups: vec![CgroupLine {
                path: "/a".into(),
                container: None,
                processes: 2,
                current_bytes: Some(3 << 20),
                max_bytes: Some(4 << 20),
                high_bytes: None,
                growth_per_second: 1024.0,
                headroom_bytes: Some(1 << 20),
                seconds_left: Some(1024.0),
            }],
            ..Listing::default()
        };
        let mut out = Vec::new();
        cgroups(&listing, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "CHARGED    LIMIT     LEFT  GROWTH/S   TIME LEFT  PROCESSES  CGROUP\n\
             3.0 MiB  4.0 MiB  1.0 MiB  +1.0 KiB  17 min 4 s          2  /a\n"
        );
    }
}
