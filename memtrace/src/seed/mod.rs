//! What /proc says about a process, as events: where tracing begins with a process that runs, and where
//! page faults alone cannot tell what is resident.

pub mod container;

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use memtrace_common::histogram::{KernelCounts, Pair};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime},
};
use procfs::process::{MMPermissions, MMapPath, MemoryMap, MemoryMaps, Process, VmFlags};

use crate::event::{Event, EventKind, MemoryTotals, Pid, SmapsRegion, Started};

/// Now, on the clock of all events.
pub fn now_ns() -> u64 {
    // CLOCK_MONOTONIC always exists: clock_gettime(2).
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap_or(TimeSpec::new(0, 0));
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// Whether pids are those of the initial namespace, as the kernel's programs have them.
pub fn in_initial_pid_namespace() -> bool {
    /// `PROC_PID_INIT_INO`, include/linux/proc_ns.h.
    const INITIAL: u64 = 0xEFFF_FFFC;
    fs::metadata("/proc/self/ns/pid").is_ok_and(|namespace| namespace.ino() == INITIAL)
}

/// The process that a thread belongs to; `None` when it is gone.
pub fn process_of(tid: u32) -> Option<Pid> {
    let status = Process::new(tid as i32).ok()?.status().ok()?;
    Some(status.tgid as Pid)
}

/// Whether a process runs: it is there and more than a zombie.
pub fn is_alive(pid: Pid) -> bool {
    let stat = Process::new(pid as i32).and_then(|process| process.stat());
    // Z and X: proc_pid_stat(5). A leader that ended before its threads is a zombie too, and its process runs.
    stat.is_ok_and(|stat| !matches!(stat.state, 'Z' | 'X') || stat.num_threads > 1)
}

/// Threads of a process now; empty when it is gone.
pub fn threads(pid: Pid) -> Vec<u32> {
    let Ok(process) = Process::new(pid as i32) else {
        return Vec::new();
    };
    let Ok(tasks) = process.tasks() else {
        return Vec::new();
    };
    tasks.flatten().map(|task| task.tid as u32).collect()
}

/// Identity of a process that begins to be traced: what it is, where it runs, how it was called.
pub fn identity(pid: Pid, start_ns: u64, already_running: bool) -> Vec<Event> {
    let at = |kind| Event {
        time_ns: start_ns,
        pid,
        tid: pid,
        kind,
    };
    let process = Process::new(pid as i32).ok();
    let stat = process.as_ref().and_then(|process| process.stat().ok());
    let exe = process
        .as_ref()
        .and_then(|process| process.exe().ok())
        .unwrap_or_default();
    let mut events = vec![at(EventKind::Started(Box::new(Started {
        parent: stat.as_ref().map_or(0, |stat| stat.ppid as u32),
        start_ns,
        comm: stat.map(|stat| stat.comm).unwrap_or_default().into(),
        exe: exe.to_string_lossy().into(),
        already_running,
    })))];
    if let Some(arguments) = process.as_ref().and_then(|process| process.cmdline().ok()) {
        events.push(at(EventKind::CommandLine {
            arguments: arguments.into(),
            truncated: false,
        }));
    }
    if let Some(path) = cgroup(pid) {
        events.push(at(EventKind::Cgroup { path: path.into() }));
    }
    events
}

/// What processes are chosen by, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Thread-group id.
    pub pid: Pid,
    /// Name of the main thread.
    pub comm: String,
    /// Path of the program as the process sees it; empty where it cannot be read.
    pub exe: String,
    /// Real user.
    pub uid: u32,
    /// Its cgroups, in each hierarchy.
    pub cgroups: Vec<String>,
}

/// `None` when the process is gone.
pub fn facts(pid: Pid) -> Option<Facts> {
    let process = Process::new(pid as i32).ok()?;
    let status = process.status().ok()?;
    let exe = process.exe().unwrap_or_default();
    let groups = process.cgroups().map(|groups| groups.0).unwrap_or_default();
    Some(Facts {
        pid,
        comm: status.name,
        exe: exe.to_string_lossy().into_owned(),
        uid: status.ruid,
        cgroups: groups.into_iter().map(|group| group.pathname).collect(),
    })
}

/// The cgroup v2 path; on a hybrid system that of the memory controller.
pub fn cgroup(pid: Pid) -> Option<String> {
    let groups = Process::new(pid as i32).ok()?.cgroups().ok()?.0;
    let memory = groups
        .iter()
        .find(|group| group.controllers.iter().any(|name| name == "memory"));
    let unified = groups.iter().find(|group| group.hierarchy == 0);
    memory.or(unified).map(|group| group.pathname.clone())
}

/// The sums of an address space from /proc/PID/status; `None` where there is none: a process that is gone, a zombie,
/// a kernel thread.
pub fn totals(pid: Pid) -> Option<MemoryTotals> {
    let status = Process::new(pid as i32).ok()?.status().ok()?;
    let bytes = |kib: Option<u64>| kib.unwrap_or(0).saturating_mul(1024);
    status.vmrss?;
    Some(MemoryTotals {
        file_bytes: bytes(status.rssfile),
        anonymous_bytes: bytes(status.rssanon),
        shared_bytes: bytes(status.rssshmem),
        swapped_bytes: bytes(status.vmswap),
        peak_resident_bytes: bytes(status.vmhwm),
        mapped_bytes: bytes(status.vmsize),
        peak_mapped_bytes: bytes(status.vmpeak),
        break_start: 0,
        break_end: 0,
        stack: 0,
        // Exact since 6.16 (task_mem(), fs/proc/task_mmu.c); before, per-CPU parts are left out.
        approximate: true,
        last: false,
    })
}

/// The faults of a process as the kernel counts them, those of threads that have ended included; `None` when it is gone.
pub fn faults(pid: Pid) -> Option<Pair> {
    let stat = Process::new(pid as i32).ok()?.stat().ok()?;
    Some(Pair {
        minor: stat.minflt,
        major: stat.majflt,
    })
}

/// The faults of the threads that a process has now, but for one of them.
pub fn faults_of_threads(pid: Pid, but: Option<u32>) -> Pair {
    let tasks = Process::new(pid as i32).and_then(|process| process.tasks());
    let others = tasks.into_iter().flatten().flatten();
    let stats = others
        .filter(|task| Some(task.tid as u32) != but)
        .filter_map(|task| task.stat().ok());
    stats.fold(Pair::NONE, |sum, stat| Pair {
        minor: sum.minor + stat.minflt,
        major: sum.major + stat.majflt,
    })
}

/// What the kernel counted of a process by now.
pub fn kernel_counts(pid: Pid) -> KernelCounts {
    let before = faults_of_threads(pid, None);
    let all = faults(pid).unwrap_or_default();
    KernelCounts {
        before,
        ended_before: all - before,
        others: 0,
        ended: Pair::NONE,
    }
}

/// The whole address space from /proc/PID/smaps, between a begin and an end. Empty when the process is gone.
pub fn smaps(pid: Pid) -> Vec<Event> {
    // Stamped before the read: what happens meanwhile is applied again, which changes little; stamped after,
    // a mapping made meanwhile would be forgotten.
    let time_ns = now_ns();
    let Some(maps) = maps(pid) else {
        return Vec::new();
    };
    let at = |kind| Event {
        time_ns,
        pid,
        tid: 0,
        kind,
    };
    let regions = maps
        .0
        .iter()
        .map(|map| at(EventKind::Smaps(Box::new(region(map)))));
    [at(EventKind::SmapsBegin)]
        .into_iter()
        .chain(regions)
        .chain([at(EventKind::SmapsEnd)])
        .collect()
}

/// The mappings as any thread tells them: those of a leader that has ended are empty.
fn maps(pid: Pid) -> Option<MemoryMaps> {
    threads(pid).into_iter().find_map(|tid| {
        let thread = PathBuf::from(format!("/proc/{pid}/task/{tid}"));
        let maps = Process::new_with_root(thread).and_then(|thread| thread.smaps());
        maps.ok().filter(|maps| !maps.0.is_empty())
    })
}

fn region(map: &MemoryMap) -> SmapsRegion {
    let bytes = |key: &str| map.extension.map.get(key).copied().unwrap_or(0);
    let bit = |permission, bit: i32| {
        if map.perms.contains(permission) {
            bit as u32
        } else {
            0
        }
    };
    SmapsRegion {
        start: map.address.0,
        end: map.address.1,
        protection: bit(MMPermissions::READ, libc::PROT_READ)
            | bit(MMPermissions::WRITE, libc::PROT_WRITE)
            | bit(MMPermissions::EXECUTE, libc::PROT_EXEC),
        shared: map.perms.contains(MMPermissions::SHARED),
        offset: map.offset,
        path: path(&map.pathname),
        inode: map.inode,
        resident_bytes: bytes("Rss"),
        anonymous_bytes: bytes("Anonymous"),
        swapped_bytes: bytes("Swap"),
        huge_bytes: bytes("AnonHugePages").saturating_add(bytes("ShmemPmdMapped")),
        advised_huge: advised_huge(map.extension.vm_flags),
    }
}

fn advised_huge(flags: VmFlags) -> Option<bool> {
    (flags.intersects(VmFlags::HG | VmFlags::NH)).then_some(flags.contains(VmFlags::HG))
}

/// Whether anonymous memory of the machine gets huge pages of 2 MiB unasked
/// (Documentation/admin-guide/mm/transhuge.rst; by size since 6.8).
pub fn huge_pages_unasked() -> bool {
    let read = |file: &str| {
        let path = Path::new("/sys/kernel/mm/transparent_hugepage").join(file);
        fs::read_to_string(path).unwrap_or_default()
    };
    let of_size = read("hugepages-2048kB/enabled");
    let inherits = of_size.is_empty() || of_size.contains("[inherit]");
    let enabled = if inherits { read("enabled") } else { of_size };
    enabled.contains("[always]")
}

fn path(path: &MMapPath) -> Box<str> {
    match path {
        MMapPath::Path(path) => Path::to_string_lossy(path).into(),
        MMapPath::Heap => "[heap]".into(),
        MMapPath::Stack | MMapPath::TStack(_) => "[stack]".into(),
        MMapPath::Vdso => "[vdso]".into(),
        MMapPath::Vvar => "[vvar]".into(),
        MMapPath::Vsyscall => "[vsyscall]".into(),
        MMapPath::Rollup => "[rollup]".into(),
        MMapPath::Anonymous => "".into(),
        MMapPath::Vsys(id) => format!("/SYSV{id:08x}").into(),
        MMapPath::Other(name) => format!("[{name}]").into(),
    }
}

/// The pid of a process in its own pid namespace; `None` where that is the host's, or the process is gone.
pub fn container_pid(pid: Pid) -> Option<Pid> {
    let namespaces = Process::new(pid as i32).ok()?.status().ok()?.nspid?;
    let innermost = *namespaces.last()? as Pid;
    (namespaces.len() > 1).then_some(innermost)
}
