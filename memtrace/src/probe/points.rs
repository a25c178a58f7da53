//! The kernel's own tracepoints: processes, memory system calls, totals at exit.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use super::{
    Error,
    object::Object,
    perf::{self, Scope, Source},
    tracefs::Tracefs,
};

/// Program and tracepoint. Without the required ones a trace would be wrong; without the others it is
/// incomplete, and the report says so.
struct Hook {
    program: &'static str,
    tracepoint: &'static str,
    required: bool,
}

const fn required(program: &'static str, tracepoint: &'static str) -> Hook {
    Hook { program, tracepoint, required: true }
}

const fn optional(program: &'static str, tracepoint: &'static str) -> Hook {
    Hook { program, tracepoint, required: false }
}

const HOOKS: &[Hook] = &[
    required("process_fork", "task/task_newtask"),
    required("process_exec", "sched/sched_process_exec"),
    required("process_exit", "sched/sched_process_exit"),
    optional("process_rename", "task/task_rename"),
    optional("process_executed", "syscalls/sys_exit_execve"),
    optional("process_executed", "syscalls/sys_exit_execveat"),
    optional("memory_before_end", "syscalls/sys_enter_exit_group"),
    optional("memory_before_end", "syscalls/sys_enter_execve"),
    optional("memory_before_end", "syscalls/sys_enter_execveat"),
    optional("memory_before_signal", "signal/signal_deliver"),
    optional("enter_brk", "syscalls/sys_enter_brk"),
    optional("exit_brk", "syscalls/sys_exit_brk"),
    optional("enter_mmap", "syscalls/sys_enter_mmap"),
    optional("exit_mmap", "syscalls/sys_exit_mmap"),
    optional("enter_munmap", "syscalls/sys_enter_munmap"),
    optional("exit_munmap", "syscalls/sys_exit_munmap"),
    optional("enter_mremap", "syscalls/sys_enter_mremap"),
    optional("exit_mremap", "syscalls/sys_exit_mremap"),
    optional("enter_mprotect", "syscalls/sys_enter_mprotect"),
    optional("exit_mprotect", "syscalls/sys_exit_mprotect"),
    optional("enter_madvise", "syscalls/sys_enter_madvise"),
    optional("exit_madvise", "syscalls/sys_exit_madvise"),
    optional("enter_shmat", "syscalls/sys_enter_shmat"),
    optional("exit_shmat", "syscalls/sys_exit_shmat"),
    optional("enter_shmdt", "syscalls/sys_enter_shmdt"),
    optional("exit_shmdt", "syscalls/sys_exit_shmdt"),
];

/// State of one probe, for the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Tracepoint, function or event.
    pub name: String,
    /// Why it is not attached; `None` when it is.
    pub failure: Option<String>,
}

/// Attached kernel tracepoints; dropped, they are gone.
pub struct KernelPoints {
    attached: Vec<[OwnedFd; 2]>,
    /// One per hook.
    pub statuses: Vec<Status>,
}

impl KernelPoints {
    /// Attaches every hook that this kernel has.
    pub fn attach(object: &Object, tracefs: &Tracefs) -> Result<Self, Error> {
        let mut points = Self { attached: Vec::new(), statuses: Vec::new() };
        for hook in HOOKS {
            let failure = match attach(object, tracefs, hook) {
                Ok(descriptors) => {
                    points.attached.push(descriptors);
                    None
                }
                Err(error) if hook.required => return Err(error),
                Err(error) => Some(error.to_string()),
            };
            points.statuses.push(Status { name: hook.tracepoint.to_owned(), failure });
        }
        Ok(points)
    }

    /// How many are attached.
    pub fn len(&self) -> usize {
        self.attached.len()
    }

    /// Whether none is attached.
    pub fn is_empty(&self) -> bool {
        self.attached.is_empty()
    }
}

/// A tracepoint's program runs on every CPU, wherever its event is: one event, on CPU 0, is enough.
fn attach(object: &Object, tracefs: &Tracefs, hook: &Hook) -> Result<[OwnedFd; 2], Error> {
    let name = || hook.tracepoint.to_owned();
    let id = tracefs
        .id(hook.tracepoint)
        .map_err(|source| Error::Tracepoint { name: name(), source })?;
    let event = perf::open(Source::Tracepoint(id), Scope::Cpu(0))
        .map_err(|source| event_error(name(), source))?;
    let link = perf::link(object.program(hook.program)?, event.as_fd(), 0)
        .map_err(|source| Error::Attach { name: name(), source })?;
    Ok([link, event])
}

/// EACCES and EPERM mean missing privileges, whatever the event.
pub(super) fn event_error(name: String, source: io::Error) -> Error {
    if source.kind() == io::ErrorKind::PermissionDenied { Error::Privileges } else { Error::Event { name, source } }
}
