//! What can go wrong when probes are placed.

use std::{io, path::PathBuf};

/// Why a probe could not be loaded or attached: what failed, on what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused the programs.
    #[error("the kernel did not load memtrace's programs: {reason}")]
    Load {
        /// The kernel's or the loader's words, first line.
        reason: String,
    },
    /// Not root, or a capability is missing.
    #[error(
        "tracing needs root (CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN for tracefs): run memtrace as root"
    )]
    Privileges,
    /// tracefs could not be reached.
    #[error("tracefs cannot be opened: {source}; try: mount -t tracefs nodev /sys/kernel/tracing")]
    Tracefs {
        /// The system's error.
        source: io::Error,
    },
    /// The kernel does not have a tracepoint.
    #[error("this kernel has no tracepoint {name}: {source}")]
    Tracepoint {
        /// Category and name.
        name: String,
        /// The system's error.
        source: io::Error,
    },
    /// perf_event_open(2) failed.
    #[error("cannot open the perf event {name}: {source}")]
    Event {
        /// What the event was for.
        name: String,
        /// The system's error.
        source: io::Error,
    },
    /// A program could not be attached to its event.
    #[error("cannot attach to {name}: {source}")]
    Attach {
        /// Tracepoint or function.
        name: String,
        /// The system's error.
        source: io::Error,
    },
    /// A map or program of the object is missing or of another type: the object is not this memtrace's.
    #[error("memtrace's BPF object lacks {name}: rebuild with cargo xtask build")]
    Object {
        /// Map or program.
        name: &'static str,
    },
    /// A map operation failed.
    #[error("cannot write the map {name}: {reason}")]
    Map {
        /// Which map.
        name: &'static str,
        /// Why.
        reason: String,
    },
    /// Pids here are not those of the kernel's programs.
    #[error(
        "memtrace runs in a pid namespace of its own, where pids are not the kernel's: run it on the host, or in a container with the host's pids (--pid=host)"
    )]
    PidNamespace,
    /// A thread's id was given for a process's.
    #[error("{tid} is a thread of process {pid}: attach to {pid}")]
    Thread {
        /// The id asked for.
        tid: u32,
        /// Its process.
        pid: u32,
    },
    /// A zombie or a kernel thread.
    #[error(
        "process {pid} has no memory of its own: it has ended already, or it is a kernel thread"
    )]
    NoMemory {
        /// The pid asked for.
        pid: u32,
    },
    /// A process to attach to is not there.
    #[error("no process with pid {pid}")]
    NoProcess {
        /// The pid asked for.
        pid: u32,
    },
    /// A file that a probe is to be placed in cannot be opened.
    #[error("cannot open {path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}
