//! perf events and the BPF links on them, by system call: aya opens neither an event of a tracefs uprobe
//! for one process with inheritance, nor passes a cookie to it.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    sync::LazyLock,
};

use perf_event_open_sys::bindings::{
    PERF_COUNT_SW_DUMMY, PERF_COUNT_SW_PAGE_FAULTS, PERF_COUNT_SW_PAGE_FAULTS_MAJ,
    PERF_COUNT_SW_PAGE_FAULTS_MIN, PERF_FLAG_FD_CLOEXEC, PERF_FLAG_PID_CGROUP, PERF_SAMPLE_READ,
    PERF_SAMPLE_TID, PERF_TYPE_SOFTWARE, PERF_TYPE_TRACEPOINT, perf_event_attr,
};

/// Whose events an event counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One thread; with `inherit`, also all threads and processes that it makes from now on.
    Thread {
        /// Thread id.
        tid: u32,
        /// Follow new threads and processes.
        inherit: bool,
    },
    /// One thread, with all threads and processes that it makes from now on, each until it execs
    /// (`remove_on_exec`, since 5.13).
    Program {
        /// Thread id.
        tid: u32,
    },
    /// Everything on one CPU. A tracepoint's program runs for every CPU wherever its event is.
    Cpu(u32),
    /// What the processes of a cgroup, and of those below it, do on one CPU.
    Cgroup {
        /// The open directory of the cgroup in the unified hierarchy.
        directory: RawFd,
        /// The CPU.
        cpu: u32,
    },
}

impl Scope {
    /// Whether what the thread makes has the event too.
    pub const fn inherits(self) -> bool {
        matches!(
            self,
            Self::Thread { inherit: true, .. } | Self::Program { .. }
        )
    }
}

/// What an event counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A tracepoint or tracefs uprobe, by its id.
    Tracepoint(u64),
    /// The starts of faults, each one.
    Faults,
    /// Minor faults, each one.
    MinorFaults,
    /// Minor faults, one of so many: the kernel only counts the others.
    SomeMinorFaults(u64),
    /// Major faults, each one.
    MajorFaults,
}

/// An attribute structure with its size set.
pub(super) fn attributes() -> perf_event_attr {
    perf_event_attr {
        size: size_of::<perf_event_attr>() as u32,
        ..Default::default()
    }
}

/// Attributes of an event that counts nothing and only carries records.
pub(super) fn dummy() -> perf_event_attr {
    let mut attr = attributes();
    attr.type_ = PERF_TYPE_SOFTWARE;
    attr.config = u64::from(PERF_COUNT_SW_DUMMY);
    attr
}

/// Opens an event.
pub fn open(source: Source, scope: Scope) -> io::Result<OwnedFd> {
    let mut attr = attributes();
    attr.__bindgen_anon_1.sample_period = 1;
    match source {
        Source::Tracepoint(id) => {
            attr.type_ = PERF_TYPE_TRACEPOINT;
            attr.config = id;
        }
        Source::Faults => {
            attr.type_ = PERF_TYPE_SOFTWARE;
            attr.config = u64::from(PERF_COUNT_SW_PAGE_FAULTS);
        }
        Source::MinorFaults => {
            attr.type_ = PERF_TYPE_SOFTWARE;
            attr.config = u64::from(PERF_COUNT_SW_PAGE_FAULTS_MIN);
        }
        Source::SomeMinorFaults(period) => {
            attr.type_ = PERF_TYPE_SOFTWARE;
            attr.config = u64::from(PERF_COUNT_SW_PAGE_FAULTS_MIN);
            attr.__bindgen_anon_1.sample_period = period;
        }
        Source::MajorFaults => {
            attr.type_ = PERF_TYPE_SOFTWARE;
            attr.config = u64::from(PERF_COUNT_SW_PAGE_FAULTS_MAJ);
        }
    }
    if matches!(source, Source::Tracepoint(_)) && scope.inherits() && *KEEPS_EVENTS {
        attr.sample_type = KEEP;
    }
    open_with(attr, scope)
}

/// Keeps inherited events with the task that they were opened for.
///
/// Tasks with inherited copies of the same events swap these when one of them runs after the other
/// (perf_event_context_sched_out(), kernel/events/core.c). Uprobes do not bear that: the end of one task then takes the
/// breakpoints from another (uprobe_perf_close() of an event of a task that goes on, kernel/trace/trace_uprobe.c).
/// Events that are read as samples are not swapped; an inherited event may be one since 6.13.
const KEEP: u64 = (PERF_SAMPLE_READ | PERF_SAMPLE_TID) as u64;

/// Whether the kernel knows [`KEEP`].
static KEEPS_EVENTS: LazyLock<bool> = LazyLock::new(|| {
    let mut attr = dummy();
    attr.sample_type = KEEP;
    let tid = std::process::id();
    open_with(attr, Scope::Thread { tid, inherit: true }).is_ok()
});

/// Where the kernel does not keep inherited events with their tasks: an event of a thread that is not inherited, which
/// keeps it from swapping with what it forks, and that from one another.
pub(super) fn keep_events(tid: u32) -> Option<OwnedFd> {
    if *KEEPS_EVENTS {
        return None;
    }
    let inherit = false;
    open_with(dummy(), Scope::Thread { tid, inherit }).ok()
}

/// Opens an event with attributes of the caller's making.
pub(super) fn open_with(mut attr: perf_event_attr, scope: Scope) -> io::Result<OwnedFd> {
    let mut flags = PERF_FLAG_FD_CLOEXEC;
    let (pid, cpu) = match scope {
        Scope::Thread { tid, inherit } => {
            attr.set_inherit(u64::from(inherit));
            (tid as i32, -1)
        }
        Scope::Program { tid } => {
            attr.set_inherit(1);
            attr.set_remove_on_exec(1);
            (tid as i32, -1)
        }
        Scope::Cpu(cpu) => (-1, cpu as i32),
        Scope::Cgroup { directory, cpu } => {
            flags |= PERF_FLAG_PID_CGROUP;
            (directory, cpu as i32)
        }
    };
    open_raw(attr, pid, cpu, flags)
}

/// perf_event_open(2) with pid, cpu and flags as that page has them.
pub(super) fn open_raw(
    mut attr: perf_event_attr,
    pid: i32,
    cpu: i32,
    flags: u32,
) -> io::Result<OwnedFd> {
    // SAFETY: attr is initialised and says its own size.
    let fd = unsafe {
        perf_event_open_sys::perf_event_open(&raw mut attr, pid, cpu, -1, u64::from(flags) as _)
    };
    owned(fd)
}

/// `BPF_LINK_CREATE` on a perf event (since 5.15), with a cookie. The program stays attached while the
/// link or the event is open.
pub fn link(program: BorrowedFd<'_>, event: BorrowedFd<'_>, cookie: u64) -> io::Result<OwnedFd> {
    /// `union bpf_attr`, the part for BPF_LINK_CREATE of a perf event (include/uapi/linux/bpf.h).
    #[repr(C)]
    #[derive(Default)]
    struct LinkCreate {
        prog_fd: u32,
        target_fd: u32,
        attach_type: u32,
        flags: u32,
        cookie: u64,
        rest: [u64; 5],
    }
    const BPF_LINK_CREATE: libc::c_long = 28;
    const BPF_PERF_EVENT: u32 = 41;
    let attr = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: event.as_raw_fd() as u32,
        attach_type: BPF_PERF_EVENT,
        cookie,
        ..Default::default()
    };
    // SAFETY: the structure outlives the call and its size is passed with it.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_CREATE,
            &raw const attr,
            size_of::<LinkCreate>(),
        )
    };
    owned(fd as RawFd)
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
