//! System calls by events of their own, for a trace that lasts.
//!
//! While one of them is there, every system call of the machine takes the kernel's slow path, which is 40 ns and more of
//! it; with the raw tracepoints of all system calls it is 150 (getppid, on the machine of docs/ARCHITECTURE.md). The
//! kernel takes 35 ms to remove each.

use std::os::fd::{AsFd as _, OwnedFd};

use super::{
    Error,
    object::Object,
    perf::{self, Scope, Source},
    points::Status,
    tracefs::Tracefs,
};

/// A program, the events that it runs at, and the one without which the others are of no use.
pub struct Calls {
    program: &'static str,
    events: &'static [&'static str],
    required: &'static str,
}

impl Calls {
    /// Whether this kernel has their events.
    pub fn are_there(&self, tracefs: &Tracefs) -> bool {
        tracefs.id(&format!("syscalls/{}", self.required)).is_ok()
    }
}

/// Returns of calls that change an address space. A call that a kernel does not have (shmat without System V IPC) does
/// nothing to one.
pub const CHANGES: Calls = Calls {
    program: "memory_call_event",
    events: &[
        "sys_exit_brk",
        "sys_exit_mmap",
        "sys_exit_munmap",
        "sys_exit_mremap",
        "sys_exit_mprotect",
        "sys_exit_madvise",
        "sys_exit_shmat",
        "sys_exit_shmdt",
    ],
    required: "sys_exit_mmap",
};

/// Entries of calls that end one.
pub const ENDS: Calls = Calls {
    program: "address_space_event",
    events: &[
        "sys_enter_execve",
        "sys_enter_execveat",
        "sys_enter_exit_group",
    ],
    required: "sys_enter_exit_group",
};

/// Links, and the events that they are on.
pub struct CallEvents(#[expect(dead_code, reason = "held open")] Vec<[OwnedFd; 2]>);

impl CallEvents {
    /// Attaches to all of them, for every CPU, whichever the event is opened on. An error where the kernel does not
    /// have these events (`CONFIG_FTRACE_SYSCALLS`).
    pub fn attach(
        object: &Object,
        tracefs: &Tracefs,
        calls: &Calls,
    ) -> Result<(Self, Vec<Status>), Error> {
        let mut attached = Vec::with_capacity(calls.events.len());
        let mut statuses = Vec::with_capacity(calls.events.len());
        for &name in calls.events {
            let one = attach(object, tracefs, calls.program, name);
            statuses.push(Status {
                name: name.to_owned(),
                failure: one.as_ref().err().map(ToString::to_string),
            });
            match one {
                Ok(one) => attached.push(one),
                Err(error) if name == calls.required => return Err(error),
                Err(_) => {}
            }
        }
        Ok((Self(attached), statuses))
    }
}

fn attach(
    object: &Object,
    tracefs: &Tracefs,
    program: &'static str,
    name: &str,
) -> Result<[OwnedFd; 2], Error> {
    let event = format!("syscalls/{name}");
    let id = tracefs.id(&event).map_err(|source| Error::Tracepoint {
        name: event.clone(),
        source,
    })?;
    let opened = perf::open(Source::Tracepoint(id), Scope::Cpu(0));
    let opened = opened.map_err(|source| Error::Event {
        name: event.clone(),
        source,
    })?;
    let link = perf::link(object.program(program)?, opened.as_fd(), 0);
    let link = link.map_err(|source| Error::Attach {
        name: event,
        source,
    })?;
    Ok([link, opened])
}
