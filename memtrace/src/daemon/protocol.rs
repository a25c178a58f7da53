//! What is asked through the socket, and what is answered: one JSON line each way for each connection.

use serde::{Deserialize, Serialize};

use super::within::Within;
use crate::{report::document::Document, trace::selector::Selector};

/// Version of the protocol; another one is refused.
pub const VERSION: u32 = 1;

/// Bytes of a question at most.
pub const MAX_QUESTION: usize = 64 << 10;

/// Bytes of an answer at most.
pub const MAX_ANSWER: usize = 64 << 20;

/// A question with its version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// [`VERSION`].
    pub version: u32,
    /// What is asked.
    pub request: Request,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// A line for each process, and for each cgroup.
    Ps {},
    /// The report, as of now or of a time that is over.
    Report {
        /// Of these processes; empty for all.
        #[serde(default)]
        pids: Vec<u32>,
        /// Where it begins: a mark, an age or a time; `None` with `until` for now.
        #[serde(default)]
        since: Option<String>,
        /// Where it ends.
        #[serde(default)]
        until: Option<String>,
        /// Of the processes in there alone.
        #[serde(default)]
        within: Within,
    },
    /// Probes heaps, or does not any more.
    Heap {
        /// Whether they are to be probed.
        on: bool,
        /// Whose.
        selector: Selector,
    },
    /// Names this moment.
    Mark {
        /// The name.
        name: String,
    },
}

/// An answer with its version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// [`VERSION`].
    pub version: u32,
    /// What is answered.
    pub reply: Reply,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Ps`].
    Ps(Listing),
    /// To [`Request::Report`].
    Report(Box<Document>),
    /// To [`Request::Heap`].
    Heap {
        /// Processes that have, or had, the probes.
        processes: u64,
    },
    /// To [`Request::Mark`].
    Done {},
    /// The question was refused, or could not be answered; for a person.
    Error {
        /// One line.
        message: String,
    },
}

impl Reply {
    /// A refusal.
    pub fn error(message: impl std::fmt::Display) -> Self {
        let message = message.to_string();
        Self::Error { message }
    }
}

/// What the daemon tracks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Listing {
    /// `CLOCK_MONOTONIC` of the last reading.
    pub time_ns: u64,
    /// Events known to be lost so far.
    pub lost: u64,
    /// In order of first sight.
    pub processes: Vec<ProcessLine>,
    /// In order of path.
    pub cgroups: Vec<CgroupLine>,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessLine {
    /// As the host numbers it.
    pub pid: u32,
    /// As its own pid namespace numbers it; `None` where that is the host's.
    pub container_pid: Option<u32>,
    /// Name of the main thread.
    pub comm: String,
    /// Bytes mapped.
    pub reserved_bytes: u64,
    /// Bytes resident.
    pub committed_bytes: u64,
    /// Bytes reserved and not resident.
    pub lazy_bytes: u64,
    /// Growth of resident bytes a second over the last minute, or since first sight.
    pub growth_per_second: f64,
    /// Minor faults so far.
    pub minor: u64,
    /// Major faults so far.
    pub major: u64,
    /// Faults a second over the last reading.
    pub faults_per_second: f64,
    /// 99th percentile of the latency of faults over the last minute; `None` without a fault.
    pub fault_p99_ns: Option<u64>,
    /// Bytes in live blocks; `None` where the heap is not seen.
    pub heap_live_bytes: Option<u64>,
    /// cgroup path.
    pub cgroup: String,
    /// Container or unit that the path names.
    pub container: Option<String>,
}

/// One cgroup with processes in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CgroupLine {
    /// Path as in /proc/PID/cgroup.
    pub path: String,
    /// Container or unit that the path names.
    pub container: Option<String>,
    /// Processes in it that are traced.
    pub processes: u64,
    /// Bytes charged to it; `None` where no memory controller tells.
    pub current_bytes: Option<u64>,
    /// `memory.max`; `None` without a limit.
    pub max_bytes: Option<u64>,
    /// `memory.high`; `None` without one.
    pub high_bytes: Option<u64>,
    /// Growth of `current_bytes` a second over the last minute.
    pub growth_per_second: f64,
    /// Bytes left to the nearest limit.
    pub headroom_bytes: Option<u64>,
    /// Seconds left at that growth; `None` where nothing grows or nothing limits.
    pub seconds_left: Option<f64>,
}
