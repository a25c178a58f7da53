//! The kernel's own tracepoints: processes, memory system calls, totals at exit.
//!
//! Raw tracepoints: they need no tracefs, cost the least, and go without a wait.

use std::io;

use super::{Error, object::Object, version};

/// State of one probe, for the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Tracepoint, function or event.
    pub name: String,
    /// Why it is not attached; `None` when it is.
    pub failure: Option<String>,
}

/// Program, tracepoint, and whether a trace without it would be wrong rather than incomplete.
const HOOKS: [(&str, &str, bool); 10] = [
    ("process_fork", "task_newtask", true),
    ("process_prepare_exec", "sched_prepare_exec", false),
    ("process_exec", "sched_process_exec", true),
    ("process_exit", "sched_process_exit", true),
    ("process_rename", "task_rename", false),
    ("memory_before_signal", "signal_deliver", false),
    ("syscall_enter", "sys_enter", false),
    ("syscall_exit", "sys_exit", false),
    ("fault_start_user", "page_fault_user", false),
    ("fault_start_kernel", "page_fault_kernel", false),
];

/// Groups of [`HOOKS`] that may be left out, each by the beginning of its programs' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The starts of faults.
    Faults,
    /// System calls.
    Calls,
    /// What the entry of an execve would tell.
    PrepareExec,
}

impl Group {
    fn has(self, program: &str) -> bool {
        program.starts_with(match self {
            Self::Faults => "fault_start",
            Self::Calls => "syscall_",
            Self::PrepareExec => "process_prepare_exec",
        })
    }
}

/// Whether tracepoints alone tell what an address space was when it ends: `sched_process_exit` finds it still there since
/// 6.16 (do_exit(), kernel/exit.c), and `sched_prepare_exec` tells an execve before that takes the old one away (6.10).
pub fn tell_ends() -> bool {
    version::is_at_least((6, 16))
}

/// Attaches every hook that this kernel has but those of some groups, for as long as the object lives.
pub fn attach(object: &mut Object, without: &[Group]) -> Result<Vec<Status>, Error> {
    let mut statuses = Vec::new();
    let wanted = |program: &str| !without.iter().any(|group| group.has(program));
    for (program, tracepoint, required) in HOOKS.into_iter().filter(|hook| wanted(hook.0)) {
        let failure = match object.attach_raw(program, tracepoint) {
            Ok(()) => None,
            Err(error) if required => return Err(error),
            Err(error) => Some(error.to_string()),
        };
        statuses.push(Status {
            name: tracepoint.to_owned(),
            failure,
        });
    }
    Ok(statuses)
}

/// EACCES and EPERM mean missing privileges, whatever the event.
pub(super) fn event_error(name: String, source: io::Error) -> Error {
    if source.kind() == io::ErrorKind::PermissionDenied {
        Error::Privileges
    } else {
        Error::Event { name, source }
    }
}
